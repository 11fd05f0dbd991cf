//! `henge dev`: the cluster on one machine, and what its commands do to it.

use crate::harness::{PATIENCE, TestDir, henge, request, signal, stderr, stdout, wait_for};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

struct Dev {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Dev {
    fn start(data: &Path, base_port: Option<u16>) -> Dev {
        Dev::start_nodes(1, data, base_port)
    }

    fn start_nodes(nodes: u32, data: &Path, base_port: Option<u16>) -> Dev {
        let mut command = henge();
        command.args(["dev", "--nodes", &nodes.to_string(), "--data"]).arg(data);
        if let Some(port) = base_port {
            command.args(["--base-port", &port.to_string()]);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        Dev { child, lines }
    }

    fn wait_for_line(&self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.lines.recv_timeout(deadline - Instant::now()).expect(wanted);
            if line.starts_with(wanted) {
                return;
            }
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // The node follows its parent.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports of three nodes that were free a moment ago, below those that the system gives to outgoing connections: any of
/// the many clients that run beside this test could take one of those while its node is down.
fn free_base_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    const LOWEST: u16 = 12_000;
    const BLOCK: u16 = 32;
    const BLOCKS: u16 = 600;
    let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap();
    wait_for("free ports in a row", || {
        let block = (start + TRIED.fetch_add(1, Ordering::Relaxed)) % BLOCKS;
        let port = LOWEST + block * BLOCK;
        let taken = [0, 1, 2, 10, 11, 12, 20, 21, 22].map(|offset| TcpListener::bind(("127.0.0.1", port + offset)));
        taken.iter().all(Result::is_ok).then_some(port)
    })
}

fn node_command(what: &str, data: &Path) -> Output {
    henge().args(["dev", what, "1", "--data"]).arg(data).output().unwrap()
}

fn cluster(data: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(data.join("cluster.json")).unwrap()).unwrap()
}

fn is_ready(cluster: &Value) -> bool {
    let admin = cluster["nodes"][0]["admin"].as_str().unwrap();
    request(admin, "GET", "/health/ready", None).is_some_and(|answer| answer.status == 200)
}

#[test]
fn a_node_is_killed_started_paused_and_the_cluster_comes_back() {
    let directory = TestDir::new("dev");
    let data = directory.path().join("cluster");
    let base_port = free_base_port();
    let mut dev = Dev::start(&data, Some(base_port));
    dev.wait_for_line("ready");
    let before = cluster(&data);
    assert!(is_ready(&before));
    assert_eq!(before["nodes"][0]["s3"], format!("127.0.0.1:{base_port}"));
    assert_eq!(before["nodes"][0]["cluster"], format!("127.0.0.1:{}", base_port + 2));
    assert_eq!(before["nodes"][0]["id"], 1);

    let twice = henge().args(["dev", "--nodes", "1", "--data"]).arg(&data).output().unwrap();
    assert_eq!(twice.status.code(), Some(1));
    assert!(stderr(&twice).contains("another `henge dev`"), "{}", stderr(&twice));

    assert!(node_command("kill", &data).status.success());
    dev.wait_for_line("node 1 ended");
    assert!(!is_ready(&before), "nobody starts a dead node");
    assert_eq!(node_command("kill", &data).status.code(), Some(1));
    let started = node_command("start", &data);
    assert!(started.status.success(), "{}", stderr(&started));
    let after = cluster(&data);
    assert!(is_ready(&after));
    assert_ne!(after["nodes"][0]["pid"], before["nodes"][0]["pid"]);
    for field in ["s3", "admin", "cluster", "data", "disks"] {
        assert_eq!(after["nodes"][0][field], before["nodes"][0][field], "{field}");
    }
    assert_eq!(after["secret_key"], before["secret_key"]);
    assert_eq!(node_command("start", &data).status.code(), Some(1), "it runs");

    assert!(node_command("pause", &data).status.success());
    let pid = after["nodes"][0]["pid"].as_u64().unwrap();
    // A signal takes effect when the process next looks.
    wait_for("the pause", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ").then_some(())
    });
    assert!(node_command("resume", &data).status.success());
    assert!(is_ready(&after));
    let status = henge().args(["status", "--data"]).arg(&data).output().unwrap();
    assert_eq!(status.status.code(), Some(2), "{}", stdout(&status));

    signal(dev.child.id(), "INT");
    assert!(dev.child.wait().unwrap().success());
    assert!(!is_ready(&after), "Ctrl-C stops all, also what `dev start` has started");

    let dev = Dev::start(&data, None);
    dev.wait_for_line("ready");
    let again = cluster(&data);
    assert_eq!(again["cluster"], before["cluster"]);
    assert_eq!(again["nodes"][0]["s3"], before["nodes"][0]["s3"], "the same ports");
    assert!(node_command("stop", &data).status.success());
    assert!(!is_ready(&again));
}

/// Runs a client command against the cluster in `data`.
fn run(args: &[&str], data: &Path) -> Output {
    henge().args(args).arg("--data").arg(data).output().unwrap()
}

#[test]
fn three_nodes_lose_nothing_when_one_or_all_are_killed() {
    let directory = TestDir::new("dev3");
    let data = directory.path().join("cluster");
    let log = directory.path().join("acks");
    let log = log.to_str().unwrap();
    let base_port = free_base_port();
    let mut dev = Dev::start_nodes(3, &data, Some(base_port));
    dev.wait_for_line("ready");
    let before = cluster(&data);
    let ids: Vec<u64> = before["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3]);
    let safe = || (run(&["status"], &data).status.code() == Some(0)).then_some(());
    wait_for("three copies of everything", safe);
    let load = |size: &str| {
        let put =
            run(&["bench", "mixed", "--size", size, "--seconds", "0.5", "--concurrency", "6", "--ack-log", log], &data);
        assert!(put.status.success(), "{}", stderr(&put));
    };
    let verified = || {
        let verified = run(&["bench", "verify", log], &data);
        assert!(verified.status.success(), "{}{}", stdout(&verified), stderr(&verified));
    };
    load("4KiB");
    load("300KiB");
    for victim in ["1", "2", "3"] {
        assert!(run(&["dev", "kill", victim], &data).status.success());
        verified();
        load("1KiB");
        let started = run(&["dev", "start", victim], &data);
        assert!(started.status.success(), "{}", stderr(&started));
        wait_for("healing", safe);
    }
    assert!(run(&["dev", "kill", "1", "2", "3"], &data).status.success());
    assert_eq!(run(&["dev", "kill", "1", "2", "3"], &data).status.code(), Some(1), "none of them runs");
    let started = run(&["dev", "start", "1", "2", "3"], &data);
    assert!(started.status.success(), "{}", stderr(&started));
    wait_for("safety", safe);
    verified();

    signal(dev.child.id(), "INT");
    assert!(dev.child.wait().unwrap().success());
    let fewer = henge().args(["dev", "--nodes", "2", "--data"]).arg(&data).output().unwrap();
    assert!(stderr(&fewer).contains("--nodes 3 or more"), "{}", stderr(&fewer));
    let dev = Dev::start_nodes(3, &data, None);
    dev.wait_for_line("ready");
    verified();
}
