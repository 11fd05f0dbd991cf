//! `henge fsck` on real directories: clean after any end, and every flipped bit of data is found and named.

use crate::harness::{Server, TestDir, henge, stderr, stdout};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::Path;

fn fsck(directory: &Path) -> (Option<i32>, Value) {
    let output = henge().arg("fsck").arg(directory).arg("--json").output().unwrap();
    let report =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}{}", stdout(&output), stderr(&output)));
    (output.status.code(), report)
}

#[test]
fn clean_after_kill_9_and_damage_is_named() {
    let directory = TestDir::new("fsck");
    let mut server = Server::start(directory.path());
    // Large objects lie in a bulk volume, whose payload fills nearly all of the file.
    let put = server.command(&["bench", "put", "--size", "2MiB", "--seconds", "0.5", "--concurrency", "2", "--keep"]);
    assert!(put.status.success(), "{}", stderr(&put));
    server.kill();
    let (status, report) = fsck(directory.path());
    assert_eq!((status, &report["clean"]), (Some(0), &true.into()), "{report}");
    assert!(report["objects"].as_u64() > Some(0) && report["chunks_named"].as_u64() > Some(0), "{report}");

    let bulk = std::fs::read_dir(directory.path().join("disk0"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("bulk-"))
        .expect("large chunks make a bulk volume");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(bulk).unwrap();
    let place = 300_000;
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 1], place).unwrap();
    let (status, report) = fsck(directory.path());
    assert_eq!((status, &report["clean"]), (Some(2), &false.into()), "{report}");
    let damage = report["damage"].as_array().unwrap();
    assert!(
        damage.iter().any(|line| line["kind"] == "lost" && line["place"].as_str().unwrap().starts_with("henge-bench/")),
        "{report}"
    );
    file.write_all_at(&byte, place).unwrap();
    assert_eq!(fsck(directory.path()).0, Some(0));

    let identity = directory.path().join("node");
    let good = std::fs::read(&identity).unwrap();
    std::fs::write(&identity, &good[..good.len() - 1]).unwrap();
    assert_eq!(fsck(directory.path()).0, Some(2));
    let refused = henge()
        .args(["server", "--s3", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cluster", "127.0.0.1:0", "--data"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("`node` is damaged"), "{}", stderr(&refused));
    std::fs::write(&identity, good).unwrap();
    assert_eq!(fsck(directory.path()).0, Some(0));
}

#[test]
fn with_two_disks_a_missing_one_is_told_from_one_that_was_not_given() {
    let directory = TestDir::new("fsck-disks");
    let place = |name: &str| directory.path().join(name);
    let disks = [place("a").display().to_string(), place("b").display().to_string()];
    let mut server = Server::start_with(&place("data"), &["--disk", &disks[0], "--disk", &disks[1]], &[]);
    let put = server.command(&["bench", "put", "--size", "300KiB", "--seconds", "1", "--concurrency", "8", "--keep"]);
    assert!(put.status.success(), "{}", stderr(&put));
    server.kill();
    let (status, all) = fsck(&place("data"));
    assert_eq!((status, &all["disks"], &all["chunks_elsewhere"]), (Some(0), &2.into(), &0.into()), "{all}");
    let (status, one) = fsck(&place("a"));
    assert_eq!(status, Some(0), "{one}");
    assert!(one["chunks_elsewhere"].as_u64() > Some(0), "placement uses both disks: {one}");
    std::fs::rename(place("b"), place("gone")).unwrap();
    let (status, lost) = fsck(&place("data"));
    assert_eq!(status, Some(2), "{lost}");
    assert!(lost["damage"].as_array().unwrap().iter().any(|line| line["kind"] == "lost"), "{lost}");
}
