//! The metadata in a file: `henge metadata`.

use crate::harness::{Server, TestDir, run, stderr, stdout};
use std::os::unix::fs::PermissionsExt;

#[test]
fn metadata_is_kept_lost_and_restored() {
    let directory = TestDir::new("metadata");
    let (data, file) = (directory.path().join("node"), directory.path().join("backup"));
    let (data_path, path) = (data.to_str().unwrap(), file.to_str().unwrap());
    let log = directory.path().join("log");
    let mut server = Server::start(&data);
    let put = ["bench", "put", "--size", "20KiB", "--seconds", "0.3", "--ack-log", log.to_str().unwrap()];
    assert!(server.command(&put).status.success());
    let taken = server.command(&["metadata", "backup", path]);
    assert!(taken.status.success(), "{}", stderr(&taken));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = server.command(&["metadata", "backup", path]);
    assert!(!again.status.success() && stderr(&again).contains("exists"), "{}", stderr(&again));
    let checked: serde_json::Value =
        serde_json::from_slice(&run(&["metadata", "check", path, "--json"]).stdout).unwrap();
    assert_eq!(checked["groups"].as_array().unwrap().len(), 2);

    let restore = ["metadata", "restore", path, "--data", data_path, "--yes"];
    let running = run(&restore);
    assert!(stderr(&running).contains("stop the node first"), "{}", stderr(&running));
    server.kill();
    for entry in std::fs::read_dir(data.join("disk0")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_str().unwrap().starts_with("kv-") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let unasked = run(&restore[..restore.len() - 1]);
    assert!(stderr(&unasked).contains("asks before"), "{}", stderr(&unasked));
    let done = run(&restore);
    assert!(done.status.success(), "{}", stderr(&done));
    let twice = run(&restore);
    assert!(stderr(&twice).contains("--above"), "{} {}", stdout(&twice), stderr(&twice));
    let server = Server::start(&data);
    let verified = server.command(&["bench", "verify", log.to_str().unwrap()]);
    assert!(verified.status.success(), "{} {}", stdout(&verified), stderr(&verified));
}

/// With another authority a node starts as before, and lets others join.
#[test]
fn a_stopped_cluster_gets_another_certificate_authority() {
    let directory = TestDir::new("authority");
    let (data, file) = (directory.path().join("1"), directory.path().join("authority"));
    let (data_path, path) = (data.to_str().unwrap(), file.to_str().unwrap());
    let certificate = || std::fs::read(data.join("tls/ca.pem")).unwrap();
    let mut first = Server::start(&data);
    let old_token = stdout(&first.command(&["token", "create"])).lines().last().unwrap().to_owned();
    let before = certificate();
    assert!(run(&["authority", "make", path]).status.success());
    let install = ["authority", "install", path, "--data", data_path];
    assert!(stderr(&run(&install)).contains("stop the node first"));
    first.kill();
    let made = run(&install);
    assert!(made.status.success(), "{}", stderr(&made));
    assert_ne!(certificate(), before);
    let first = Server::start(&data);
    let address = first.cluster["nodes"][0]["cluster"].as_str().unwrap().to_owned();
    let mut join = crate::harness::henge();
    join.args([
        "server",
        "--s3",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--cluster",
        "127.0.0.1:0",
        "--join",
        &address,
    ]);
    let refused =
        join.arg("--data").arg(directory.path().join("2")).env("HENGE_JOIN_TOKEN", old_token).output().unwrap();
    assert!(stderr(&refused).contains("certificate authority"), "{}", stderr(&refused));
    let token = stdout(&first.command(&["token", "create"])).lines().last().unwrap().to_owned();
    let second = directory.path().join("3");
    let second = Server::start_with(&second, &["--join", &address], &[("HENGE_JOIN_TOKEN", &token)]);
    assert_eq!(std::fs::read(directory.path().join("3/tls/ca.pem")).unwrap(), certificate());
    drop(second);
}

#[test]
fn only_root_may_have_the_metadata() {
    let directory = TestDir::new("metadata-root");
    let server = Server::start(directory.path());
    let answer = server.admin("GET", "/v1/metadata/backup", None).unwrap();
    assert_eq!(answer.status, 401);
}
