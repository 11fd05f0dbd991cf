//! The bench and its verifier: a verifier that cannot find a loss would be worth nothing.

use crate::harness::{Server, TestDir, henge, stderr, stdout};
use serde_json::Value;

#[test]
fn mixed_load_is_verified_and_a_missing_write_is_found() {
    let directory = TestDir::new("mixed");
    let log = directory.path().join("acks");
    let server = Server::start(&directory.path().join("data"));
    let log_flag = log.to_str().unwrap();
    let mixed =
        server.command(&["bench", "mixed", "--seconds", "1", "--concurrency", "4", "--json", "--ack-log", log_flag]);
    assert!(mixed.status.success(), "{}", stderr(&mixed));
    let figures: Value = serde_json::from_slice(&mixed.stdout).unwrap();
    assert_eq!((&figures["wrong"], &figures["failed"]), (&0.into(), &0.into()));
    let verified = server.command(&["bench", "verify", log_flag]);
    assert!(verified.status.success(), "{}{}", stdout(&verified), stderr(&verified));
    assert!(stdout(&verified).contains("lost 0, wrong 0"));

    // Claim an acknowledged write that never happened, and other bytes in place of some that did.
    let text = std::fs::read_to_string(&log).unwrap();
    let put = text.lines().rfind(|line| line.contains(r#""op":"put""#)).unwrap();
    let mut line: Value = serde_json::from_str(put).unwrap();
    line["key"] = "never-stored".into();
    std::fs::write(&log, format!("{text}{line}\n")).unwrap();
    let verified = server.command(&["bench", "verify", log_flag, "--json"]);
    assert_eq!(verified.status.code(), Some(2));
    let judgement: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!((&judgement["lost"], &judgement["wrong"]), (&1.into(), &0.into()));
    let mut line: Value = serde_json::from_str(put).unwrap();
    line["sha256"] = "00".into();
    std::fs::write(&log, format!("{text}{line}\n")).unwrap();
    let verified = server.command(&["bench", "verify", log_flag, "--json"]);
    assert_eq!(verified.status.code(), Some(2), "{}", stdout(&verified));
}

#[test]
fn put_get_and_disk_give_figures_and_clean_up() {
    let directory = TestDir::new("figures");
    let server = Server::start(&directory.path().join("data"));
    for what in ["put", "get"] {
        let bench =
            server.command(&["bench", what, "--size", "10KiB", "--seconds", "0.3", "--concurrency", "3", "--json"]);
        assert!(bench.status.success(), "{}", stderr(&bench));
        let figures: Value = serde_json::from_slice(&bench.stdout).unwrap();
        assert!(figures["ops"].as_u64() > Some(0) && figures["wrong"] == 0, "{figures}");
    }
    let disk = henge()
        .args(["bench", "disk", "--seconds", "0.05", "--json", "--data"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert!(disk.status.success(), "{}", stderr(&disk));
    let rows: Value = serde_json::from_slice(&disk.stdout).unwrap();
    assert!(rows.as_array().is_some_and(|rows| rows.len() >= 8));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "only the server's data is left");
}

#[test]
fn the_demo_keeps_its_promise_with_files_of_the_user() {
    let directory = TestDir::new("demo");
    let (small, empty, large) =
        (directory.path().join("a b+ü"), directory.path().join("empty"), directory.path().join("large"));
    std::fs::write(&small, "hello").unwrap();
    std::fs::write(&empty, "").unwrap();
    let bytes: Vec<u8> = (0..17u32 << 18).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&large, bytes).unwrap();
    let demo = henge().arg("demo").args([&small, &empty, &large]).env("TMPDIR", directory.path()).output().unwrap();
    let said = stdout(&demo);
    assert!(demo.status.success(), "{said}{}", stderr(&demo));
    assert!(said.contains("3 of 3 objects are there, identical. Lost: 0. Wrong: 0."), "{said}");
    assert!(
        said.contains("kill -9") && said.contains("`safe`") && said.contains("henge") && said.contains("server --data")
    );
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3, "it cleans up");
}
