//! What cannot be done is refused with one sentence and exit status 1.

use crate::harness::{Server, TestDir, henge, run, stderr};
use std::process::Output;

fn assert_one_sentence(output: &Output, expected: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("henge: ") && said.trim_end().lines().count() == 1, "{said:?}");
    assert!(said.contains(expected), "{said:?} should contain {expected:?}");
}

#[test]
fn flags_that_do_not_exist_or_make_no_sense() {
    assert_one_sentence(&run(&["server", "--data", "d", "--bogus"]), "--bogus");
    assert_one_sentence(&run(&["nonsense"]), "nonsense");
    assert_one_sentence(&run(&["server"]), "--data");
    assert_one_sentence(&run(&["server", "--data", "d", "--s3", "here"]), "here");
    assert_one_sentence(&run(&["dev", "--nodes", "10", "--data", "d"]), "1..=9");
    assert_one_sentence(&run(&["bench", "put", "--size", "huge"]), "huge");
    assert_one_sentence(&run(&["bench", "verify", "/nonexistent/log"]), "credentials");
    assert_one_sentence(&run(&["fsck", "/nonexistent"]), "/nonexistent");
    assert_one_sentence(&run(&["demo", "/nonexistent/file"]), "/nonexistent/file");
    assert!(run(&["--help"]).status.success() && run(&["server", "--help"]).status.success());
}

#[test]
fn directories_that_cannot_be_used() {
    let directory = TestDir::new("unusable");
    let file = directory.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let ports = ["--s3", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cluster", "127.0.0.1:0"];
    let output = henge().args(["server", "--data"]).arg(&file).args(ports).output().unwrap();
    assert_one_sentence(&output, "--data");
    let data = directory.path().join("data");
    let output = henge().args(["server", "--data"]).arg(&data).args(ports).arg("--disk").arg(&file).output().unwrap();
    assert_one_sentence(&output, "--disk");
    let output = henge().args(["server", "--data"]).arg(&data).args(ports).arg("--disk").arg(&data).output().unwrap();
    assert_one_sentence(&output, "own directory");
    // A directory full of somebody's files is not taken over.
    let foreign = directory.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "precious").unwrap();
    let output =
        henge().args(["server", "--data"]).arg(&data).args(ports).arg("--disk").arg(&foreign).output().unwrap();
    assert_one_sentence(&output, foreign.to_str().unwrap());
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 2, "the file and the lock, nothing else");
}

#[test]
fn ports_and_directories_that_are_taken() {
    let directory = TestDir::new("taken");
    let server = Server::start(directory.path());
    let other = TestDir::new("taken-other");
    for (flag, address) in [("--s3", server.s3_address()), ("--admin", server.admin_address())] {
        let mut command = henge();
        command.args(["server", "--data"]).arg(other.path());
        for port in ["--s3", "--admin", "--cluster"] {
            command.args([port, if port == flag { &address } else { "127.0.0.1:0" }]);
        }
        assert_one_sentence(&command.output().unwrap(), flag);
    }
    let ports = ["--s3", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cluster", "127.0.0.1:0"];
    let output = henge().args(["server", "--data"]).arg(directory.path()).args(ports).output().unwrap();
    assert_one_sentence(&output, "in use");
    assert_one_sentence(&server.command(&["bucket", "create", "Not-A-Bucket"]), "bucket");
    let output = henge().arg("fsck").arg(directory.path()).output().unwrap();
    assert_one_sentence(&output, "in use");
}

#[test]
fn credentials_that_are_half_given_or_too_weak() {
    let directory = TestDir::new("half");
    for environment in [
        vec![("HENGE_ROOT_USER", "somebody")],
        vec![("HENGE_ROOT_PASSWORD", "0123456789")],
        vec![("HENGE_ROOT_USER", "somebody"), ("HENGE_ROOT_PASSWORD", "short")],
    ] {
        let mut command = henge();
        command.args(["server", "--s3", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cluster", "127.0.0.1:0", "--data"]);
        let output = command.arg(directory.path()).envs(environment).output().unwrap();
        assert_one_sentence(&output, "HENGE_ROOT_PASSWORD");
    }
}

#[test]
fn nobody_answers() {
    let environment = [("HENGE_ROOT_USER", "somebody"), ("HENGE_ROOT_PASSWORD", "0123456789")];
    // Port 9 (discard) of this machine has no server.
    let output = henge().args(["status", "--admin", "127.0.0.1:9"]).envs(environment).output().unwrap();
    assert_one_sentence(&output, "127.0.0.1:9");
    assert_one_sentence(&run(&["key", "list"]), "credentials");
}
