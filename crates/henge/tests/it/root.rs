//! `henge root set-secret`: the root user is what the command says, on every node, whatever nodes are given.

use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::harness::{Server, TestDir, henge, stderr, stdout, wait_for};
use crate::s3_client::S3;

const NAME: &str = "HENGE_ROOT_USER";
const PASSWORD: &str = "HENGE_ROOT_PASSWORD";

fn join(data: &Path, member: &Server) -> Server {
    let made = member.command(&["token", "create"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let token = stdout(&made).lines().last().unwrap().to_owned();
    let address = member.cluster["nodes"][0]["cluster"].as_str().unwrap();
    Server::start_with(data, &["--join", address], &[("HENGE_JOIN_TOKEN", &token)])
}

/// An administrative command with these credentials and no directory.
fn keys_as(server: &Server, access_key: &str, secret_key: &str) -> Output {
    let environment = [(NAME, access_key), (PASSWORD, secret_key)];
    henge().args(["key", "list", "--admin", &server.admin_address()]).envs(environment).output().unwrap()
}

/// Until the node has heard of the change: the old secret is refused and the new one taken, on both of its ports.
fn goes_by(server: &Server, access_key: &str, old: &str, new: &str) {
    let s3 = |secret: &str| S3 { access_key: access_key.into(), secret_key: secret.into(), ..S3::of(server) };
    wait_for("the new secret over S3", || (s3(new).get("/").status == 200).then_some(()));
    assert_eq!(s3(old).get("/").outcome(), (403, "SignatureDoesNotMatch".to_owned()));
    let taken = keys_as(server, access_key, new);
    assert!(taken.status.success(), "{}", stderr(&taken));
    let refused = keys_as(server, access_key, old);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("root credentials"), "{}", stderr(&refused));
    // What is kept on the disk follows, so that commands on this machine go on.
    wait_for("a command with the node's directory", || server.command(&["key", "list"]).status.success().then_some(()));
}

fn credentials_file(data: &Path) -> String {
    std::fs::read_to_string(data.join("credentials")).unwrap()
}

#[test]
fn the_root_secret_changes_on_all_nodes_and_no_start_brings_the_old_one_back() {
    let directory = TestDir::new("root-secret");
    let data: Vec<_> = (1..=4).map(|id| directory.path().join(format!("{id}"))).collect();
    let first = Server::start(&data[0]);
    let second = join(&data[1], &first);
    let mut third = join(&data[2], &first);
    let access_key = first.cluster["access_key"].as_str().unwrap();
    let old = first.cluster["secret_key"].as_str().unwrap();
    assert_eq!(S3::of(&first).put("/bucket", b"").status, 200);
    // One that is away hears of it when it comes back.
    wait_for("three voters", || {
        let status = second.command(&["status", "--json"]);
        let report: Value = serde_json::from_slice(&status.stdout).ok()?;
        (report["verdict"] == "safe").then_some(())
    });
    assert_eq!(third.stop(), Some(0));

    let changed = second.command(&["root", "set-secret", "--json"]);
    assert!(changed.status.success(), "{}", stderr(&changed));
    let view: Value = serde_json::from_slice(&changed.stdout).unwrap();
    let new = view["secret_key"].as_str().unwrap();
    assert_eq!((view["access_key"].as_str(), view["changes"].as_u64()), (Some(access_key), Some(1)));
    assert!(new.len() == 40 && new != old);
    // The next command on that machine works at once.
    let next = second.command(&["key", "list"]);
    assert!(next.status.success(), "{}", stderr(&next));
    goes_by(&first, access_key, old, new);
    goes_by(&second, access_key, old, new);
    for data in &data[..2] {
        wait_for("the file", || {
            (credentials_file(data).contains(new) && !credentials_file(data).contains(old)).then_some(())
        });
    }

    assert!(credentials_file(&data[2]).contains(old));
    let mut third = Server::start(&data[2]);
    goes_by(&third, access_key, old, new);
    wait_for("the warning", || third.log().contains("was no longer what the root user has").then_some(()));
    assert!(credentials_file(&data[2]).contains(new));
    assert_eq!(third.stop(), Some(0));
    let third = Server::start_with(&data[2], &[], &[(NAME, access_key), (PASSWORD, old)]);
    wait_for("the warning", || third.log().contains("HENGE_ROOT_PASSWORD of this node are ignored").then_some(()));
    for server in [&first, &second, &third] {
        goes_by(server, access_key, old, new);
    }
    assert!(!third.log().contains(new) && !third.log().contains(old), "secrets are not logged");
    // Whoever joins is told the new one.
    let fourth = join(&data[3], &third);
    assert_eq!(fourth.cluster["secret_key"].as_str(), Some(new));
    goes_by(&fourth, access_key, old, new);
}

#[test]
fn a_secret_comes_from_a_file_or_standard_input_and_the_access_key_changes_when_asked_to() {
    let directory = TestDir::new("root-file");
    let data = directory.path().join("data");
    let mut server = Server::start(&data);
    let app = S3::of_new_key(&server, "app", None);
    let old = S3::of(&server);
    assert_eq!(old.put("/bucket", b"").status, 200);
    let file = directory.path().join("secret");
    let set = |secret: &str, more: &[&str]| {
        std::fs::write(&file, format!("{secret}\n")).unwrap();
        let mut args = vec!["root", "set-secret", "--secret-file", file.to_str().unwrap()];
        args.extend(more);
        server.command(&args)
    };
    for (said, expected) in [
        (set("short", &[]), "8 to 128 visible ASCII characters"),
        (set("long enough, but blank", &[]), "8 to 128 visible ASCII characters"),
        (set("long-enough", &["--access-key", "a/b"]), "without '/'"),
        (set("long-enough", &["--access-key", &app.access_key]), "exists"),
    ] {
        assert_eq!(said.status.code(), Some(1));
        assert!(stderr(&said).contains(expected), "{expected}: {}", stderr(&said));
    }
    assert_eq!(old.get("/").status, 200, "nothing was changed");

    let changed = set("the-first-secret", &["--access-key", "boss"]);
    assert!(changed.status.success(), "{}", stderr(&changed));
    assert!(stdout(&changed).contains("boss") && !stdout(&changed).contains("the-first-secret"));
    assert_eq!(old.get("/").outcome(), (403, "InvalidAccessKeyId".to_owned()));
    let boss = S3 { access_key: "boss".into(), secret_key: "the-first-secret".into(), ..S3::of(&server) };
    assert_eq!(boss.put("/bucket/key", b"x").status, 200, "what the root user made before is its own");
    goes_by(&server, "boss", &old.secret_key, "the-first-secret");

    let mut piped = henge()
        .args(["root", "set-secret", "--secret-file", "-", "--data"])
        .arg(&data)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(b"the-second-secret\n").unwrap();
    assert!(piped.wait().unwrap().success());
    goes_by(&server, "boss", "the-first-secret", "the-second-secret");
    // Alone, the node goes by what it last heard.
    assert_eq!(server.stop(), Some(0));
    let server = Server::start_with(&data, &[], &[(NAME, "elsewhere"), (PASSWORD, "long-enough-too")]);
    goes_by(&server, "boss", "long-enough-too", "the-second-secret");
    assert_eq!(keys_as(&server, "elsewhere", "long-enough-too").status.code(), Some(1));
}
