//! `henge fsck` on real directories: clean after any end, and every flipped bit of data is found and named.

use crate::harness::{Server, TestDir, henge, stderr, stdout, wait_for};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

fn fsck(directory: &Path) -> (Option<i32>, Value) {
    fsck_all(&[directory])
}

fn fsck_all(directories: &[&Path]) -> (Option<i32>, Value) {
    let output = henge().arg("fsck").args(directories).arg("--json").output().unwrap();
    let report =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}{}", stdout(&output), stderr(&output)));
    (output.status.code(), report)
}

fn bulk_volume(disk: &Path) -> PathBuf {
    let files = std::fs::read_dir(disk).unwrap().map(|entry| entry.unwrap().path());
    let mut volumes = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("bulk-"));
    volumes.next().expect("large chunks make a bulk volume")
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

    let bulk = bulk_volume(&directory.path().join("disk0"));
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

/// Three nodes with three copies of everything, and some objects.
fn three_nodes(data: &[PathBuf; 3]) -> [Server; 3] {
    let first = Server::start(&data[0]);
    let address = first.cluster["nodes"][0]["cluster"].as_str().unwrap().to_owned();
    let join = |data: &Path| {
        let made = first.command(&["token", "create"]);
        let token = stdout(&made).lines().last().expect("a token is made").to_owned();
        Server::start_with(data, &["--join", &address], &[("HENGE_JOIN_TOKEN", &token)])
    };
    let (second, third) = (join(&data[1]), join(&data[2]));
    let put = second.command(&["bench", "put", "--size", "2MiB", "--seconds", "0.5", "--concurrency", "2", "--keep"]);
    assert!(put.status.success(), "{}", stderr(&put));
    wait_for("three copies of everything", || {
        let status: Value = serde_json::from_slice(&first.command(&["status", "--json"]).stdout).ok()?;
        (status["verdict"] == "safe" && status["nodes"].as_array()?.len() == 3).then_some(())
    });
    [first, second, third]
}

#[test]
fn three_nodes_are_judged_together() {
    let directory = TestDir::new("fsck-nodes");
    let data = ["1", "2", "3"].map(|name| directory.path().join(name));
    three_nodes(&data).iter_mut().for_each(Server::kill);
    let all: Vec<&Path> = data.iter().map(PathBuf::as_path).collect();
    let (status, report) = fsck_all(&all);
    assert_eq!((status, &report["clean"]), (Some(0), &true.into()), "{report}");
    let count = |report: &Value, name: &str| report[name].as_u64().unwrap();
    assert_eq!((count(&report, "disks"), count(&report, "groups"), count(&report, "replicas")), (3, 2, 6), "{report}");
    assert_eq!((count(&report, "degraded"), count(&report, "chunks_elsewhere")), (0, 0), "{report}");
    assert_eq!(report["notes"], Value::Array(vec![]), "{report}");
    let objects = count(&report, "objects");
    assert!(objects > 0, "{report}");

    // Two of three voters know all that was acknowledged; one says that it may not.
    let (status, two) = fsck_all(&all[1..]);
    assert_eq!((status, count(&two, "objects")), (Some(0), objects), "{two}");
    assert!(!two["notes"].to_string().contains("voters"), "{two}");
    let (status, one) = fsck_all(&all[2..]);
    assert_eq!(status, Some(0), "{one}");
    assert!(one["notes"].to_string().contains("1 of 3 voters"), "{one}");

    let bulk = bulk_volume(&data[1].join("disk0"));
    let aside = directory.path().join("aside");
    std::fs::rename(&bulk, &aside).unwrap();
    let (status, report) = fsck_all(&all);
    assert_eq!((status, count(&report, "degraded")), (Some(2), count(&report, "chunks_named")), "{report}");
    assert!(report["damage_kinds"]["lost"].is_null(), "{report}");
    std::fs::rename(&aside, &bulk).unwrap();
    assert_eq!(fsck_all(&all).0, Some(0));

    // A disk may be given by itself, wherever it lies.
    std::fs::rename(data[1].join("disk0"), &aside).unwrap();
    let moved = henge().arg("fsck").args([&data[0], &data[0].join("disk0"), &aside]).output().unwrap();
    assert_eq!(moved.status.code(), Some(0), "{}", stdout(&moved));
    std::fs::rename(&aside, data[1].join("disk0")).unwrap();

    let copied = std::process::Command::new("cp").arg("-a").args([&data[0], &aside]).status().unwrap();
    assert!(copied.success());
    let twice = henge().arg("fsck").args([&data[0], &aside]).output().unwrap();
    assert_eq!(twice.status.code(), Some(1));
    assert!(stderr(&twice).contains("both are node 1"), "{}", stderr(&twice));
    let alien = directory.path().join("alien");
    Server::start(&alien).kill();
    let mixed = henge().arg("fsck").args([&data[0], &alien]).output().unwrap();
    assert_eq!(mixed.status.code(), Some(1));
    assert!(stderr(&mixed).contains("one cluster at a time"), "{}", stderr(&mixed));
}
