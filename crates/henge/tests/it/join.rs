//! A second node: how it comes into the cluster, and what keeps others out.

use crate::harness::{Server, TestDir, henge, stderr, stdout, wait_for};
use crate::s3_client::S3;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

fn cluster_address(server: &Server) -> String {
    server.cluster["nodes"][0]["cluster"].as_str().unwrap().to_owned()
}

fn token(server: &Server, expires: &str) -> String {
    let made = server.command(&["token", "create", "--expires", expires]);
    assert!(made.status.success(), "{}", stderr(&made));
    stdout(&made).lines().last().unwrap().to_owned()
}

fn nodes(server: &Server) -> Vec<Value> {
    let listed = server.command(&["node", "list", "--json"]);
    assert!(listed.status.success(), "{}", stderr(&listed));
    serde_json::from_slice(&listed.stdout).unwrap()
}

/// The sentence with which a server refuses to start; it leaves no member's directory behind.
fn refusal(data: &Path, args: &[&str], token: Option<&str>) -> String {
    let was_member = data.join("node").exists();
    let mut command = henge();
    command.args(["server", "--s3", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"]).arg(data).args(args);
    if !args.contains(&"--cluster") {
        command.args(["--cluster", "127.0.0.1:0"]);
    }
    let output = command.envs(token.map(|token| ("HENGE_JOIN_TOKEN", token))).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("henge: ")).count(), 1, "{said}");
    assert!(was_member || !data.join("node").exists(), "half done: {said}");
    assert!(token.is_none_or(|token| !said.contains(token)), "the token is quoted: {said}");
    said
}

#[test]
fn a_node_joins_with_a_token_and_comes_back_without() {
    let directory = TestDir::new("join");
    let (first_data, second_data) = (directory.path().join("1"), directory.path().join("2"));
    let first = Server::start(&first_data);
    let (address, token) = (cluster_address(&first), token(&first, "1h"));
    let file = directory.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let join = ["--join", &address, "--token-file", file.to_str().unwrap()];
    let mut second = Server::start_with(&second_data, &join, &[]);
    assert_eq!(second.cluster["nodes"][0]["id"], 2);
    for field in ["cluster", "access_key", "secret_key", "region"] {
        assert_eq!(second.cluster[field], first.cluster[field], "{field}");
    }
    let up = |node: &Value| node["state"] == "up";
    assert_eq!(nodes(&second).iter().filter(|node| up(node)).count(), 2);
    // One cluster: what one node makes, the other has.
    assert!(first.command(&["bucket", "create", "shared"]).status.success());
    assert!(stdout(&second.command(&["bucket", "list"])).contains("shared"));

    let used = refusal(&directory.path().join("3"), &["--join", &address], Some(&token));
    assert!(used.contains("used already"), "{used}");
    let alien = Server::start(&directory.path().join("alien"));
    let other = self::token(&alien, "1h");
    second.kill();
    let merged = refusal(&second_data, &["--join", &cluster_address(&alien)], Some(&other));
    assert!(merged.contains("never merge"), "{merged}");
    let second = Server::start_with(&second_data, &["--join", &address], &[]);
    assert_eq!(second.cluster["nodes"][0]["id"], 2);
    wait_for("both nodes up", || (nodes(&second).iter().filter(|node| up(node)).count() == 2).then_some(()));
}

#[test]
fn who_may_not_join_is_told_why_and_nothing_is_half_done() {
    let directory = TestDir::new("refused");
    let first = Server::start(&directory.path().join("1"));
    let alien = Server::start(&directory.path().join("alien"));
    let address = cluster_address(&first);
    let good = token(&first, "1h");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let expired = token(&first, "1s");
    let wrong = with_other_secret(&good);
    let of_alien = token(&alien, "1h");
    let data = directory.path().join("2");
    let join = |address: &str, token: Option<&str>| refusal(&data, &["--join", address], token);
    for (said, expected) in [
        (join(&address, None), "needs a token"),
        (join(&address, Some("henge1-12")), "incomplete"),
        (join(&address, Some(&wrong)), "does not know"),
        (join(&address, Some(&of_alien)), "another cluster"),
        (join(&closed, Some(&good)), "cannot be reached"),
        (refusal(&data, &["--join", &closed, "--cluster", &closed], Some(&good)), "this node itself"),
        (join(&cluster_address(&alien), Some(&good)), "another cluster"),
        (join(&first.admin_address(), Some(&good)), "cannot be reached"),
        (refusal(&data, &["--cluster", "0.0.0.0:0"], None), "--advertise"),
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let disk = directory.path().join("alien").join("disk0");
    let foreign = refusal(&data, &["--join", &address, "--disk", disk.to_str().unwrap()], Some(&good));
    assert!(foreign.contains("never merge"), "{foreign}");
    wait_for("the token's end", || join(&address, Some(&expired)).contains("expired").then_some(()));
    // Another root user is noticed late, and even then the token is as good as new for the same directory.
    let other_root = henge()
        .args(["server", "--s3", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cluster", "127.0.0.1:0"])
        .args(["--join", &address, "--data"])
        .arg(&data)
        .envs([
            ("HENGE_JOIN_TOKEN", good.as_str()),
            ("HENGE_ROOT_USER", "somebody"),
            ("HENGE_ROOT_PASSWORD", "12345678"),
        ])
        .output()
        .unwrap();
    assert!(stderr(&other_root).contains("not the cluster's root credentials"), "{}", stderr(&other_root));
    let second = Server::start_with(&data, &["--join", &address], &[("HENGE_JOIN_TOKEN", &good)]);
    assert_eq!(nodes(&second).len(), 2);
}

/// Passes on what comes to an address of its own, and keeps it.
struct Relay {
    address: String,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Relay {
    fn to(target: String) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay { address: listener.local_addr().unwrap().to_string(), heard: Arc::default() };
        let tape = Arc::clone(&relay.heard);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (near, Ok(far)) = (near.unwrap(), TcpStream::connect(&target)) else { continue };
                for (from, to) in [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))] {
                    let (from, to, tape) = (from.unwrap(), to.unwrap(), Arc::clone(&tape));
                    std::thread::spawn(move || pass_on(from, to, &tape));
                }
            }
        });
        relay
    }

    fn has_heard(&self, what: &[u8]) -> bool {
        self.heard.lock().unwrap().windows(what.len()).any(|window| window == what)
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, tape: &Mutex<Vec<u8>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        tape.lock().unwrap().extend_from_slice(&buffer[..len]);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn chunks_are_overheard_only_where_both_nodes_were_told_that_they_may_be() {
    const WHAT: &[u8] = b"who reads along reads this ";
    const LEN: usize = 600_000;
    for (flags, variable) in [(["--cluster-bulk-plaintext"].as_slice(), "true"), (&[], "yes"), (&[], "false")] {
        let directory = TestDir::new("plaintext");
        let first = Server::start_with(&directory.path().join("1"), flags, &[]);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let relay = Relay::to(port.clone());
        let address = cluster_address(&first);
        let join = ["--join", &address, "--cluster", &port, "--advertise", &relay.address];
        let environment = [("HENGE_JOIN_TOKEN", &*token(&first, "1h")), ("HENGE_CLUSTER_BULK_PLAINTEXT", variable)];
        let second = Server::start_with(&directory.path().join("2"), &join, &environment);
        assert_eq!(second.log().contains("unencrypted"), variable != "false", "{}", second.log());

        let s3 = S3::of(&first);
        assert_eq!(s3.send("PUT", "/words", &[], b"").status, 200);
        let body = WHAT.repeat(LEN / WHAT.len());
        let mut number = 0;
        wait_for("chunks between the nodes", || {
            number += 1;
            assert_eq!(s3.send("PUT", &format!("/words/{number}"), &[], &body).status, 200);
            assert!(s3.send("GET", &format!("/words/{number}"), &[], b"").body == body);
            (relay.heard.lock().unwrap().len() > LEN).then_some(())
        });
        assert_eq!(relay.has_heard(WHAT), !flags.is_empty(), "{flags:?} {variable}");
    }
}

#[test]
fn nodes_are_removed_with_reasons() {
    let directory = TestDir::new("remove");
    let first = Server::start(directory.path());
    for (args, expected) in [
        (vec!["node", "remove", "1"], "add a node first"),
        (vec!["node", "remove", "1", "--lost"], "in service"),
        (vec!["node", "remove", "7"], "no node 7"),
    ] {
        let refused = first.command(&args);
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(expected), "{}", stderr(&refused));
    }
    assert_eq!(nodes(&first)[0]["state"], "up");
}

/// The same token but for its secret, with the right check sum.
fn with_other_secret(token: &str) -> String {
    let digits = token.strip_prefix("henge1-").unwrap();
    let mut raw: Vec<u8> =
        (0..digits.len() / 2).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap()).collect();
    raw.truncate(raw.len() - 4);
    raw[8] ^= 1;
    let sum = crc32c(&raw).to_be_bytes();
    raw.extend_from_slice(&sum);
    format!("henge1-{}", raw.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// RFC 3720, bit by bit.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}
