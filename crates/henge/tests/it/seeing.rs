//! What an operator sees: metrics, the timeline of events, disks.

use crate::harness::{Server, TestDir, stderr, stdout, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const UNITS: [&str; 3] = ["_bucket", "_count", "_sum"];

/// Names of henge's metrics that a text uses.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_part(c)).filter(|word| word.starts_with("henge_"));
    words.map(str::to_owned).collect()
}

/// Names of the series in a scrape.
fn exported(scrape: &str) -> BTreeSet<String> {
    let series = scrape.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    series.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

fn two_nodes(directory: &Path) -> (Server, Server) {
    let first = Server::start(&directory.join("1"));
    let address = first.cluster["nodes"][0]["cluster"].as_str().unwrap().to_owned();
    let made = first.command(&["token", "create"]);
    let token = stdout(&made).lines().last().unwrap().to_owned();
    let joins = ["--join", &address];
    let second = Server::start_with(&directory.join("2"), &joins, &[("HENGE_JOIN_TOKEN", &token)]);
    (first, second)
}

/// A dashboard or an alert that names what nobody exports is silent for ever.
#[test]
fn every_metric_of_the_dashboard_and_the_alerts_is_exported() {
    let directory = TestDir::new("metrics");
    let (first, _second) = two_nodes(directory.path());
    assert!(first.command(&["bench", "put", "--size", "20KiB", "--seconds", "0.2"]).status.success());
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    let mut wanted = BTreeSet::new();
    for file in ["grafana/henge.json", "prometheus/henge.rules.yml"] {
        wanted.extend(names(&std::fs::read_to_string(deploy.join(file)).unwrap()));
    }
    assert!(wanted.len() > 30, "{wanted:?}");
    wait_for("both nodes see each other", || {
        let scrape = first.admin("GET", "/metrics", None).unwrap().text;
        let found = exported(&scrape);
        let missing: Vec<&String> = wanted.iter().filter(|name| !found.contains(*name)).collect();
        // What comes with the first report of the other node takes a moment.
        (missing.is_empty()).then_some(()).or_else(|| {
            std::thread::sleep(std::time::Duration::from_millis(500));
            eprintln!("not exported yet: {missing:?}");
            None
        })
    });
    let scrape = first.admin("GET", "/metrics", None).unwrap().text;
    assert!(scrape.ends_with("# EOF\n") && scrape.matches("# EOF").count() == 1);
    for name in exported(&scrape).iter().filter(|name| name.starts_with("henge_")) {
        let base = UNITS.iter().fold(name.as_str(), |name, unit| name.strip_suffix(unit).unwrap_or(name));
        assert!(!base.ends_with("_total_total"), "{name}");
    }
}

#[test]
fn the_timeline_tells_how_a_node_was_missed() {
    let directory = TestDir::new("events");
    let (first, mut second) = two_nodes(directory.path());
    second.kill();
    let of = |server: &Server| -> Vec<Value> {
        let events = server.command(&["events", "--json"]);
        assert!(events.status.success(), "{}", stderr(&events));
        serde_json::from_slice(&events.stdout).unwrap()
    };
    let events = wait_for("the node is suspected", || {
        let events = of(&first);
        events.iter().any(|event| event["kind"] == "confirmed" && event["node"] == 2).then_some(events)
    });
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
    for kind in ["started", "elected", "up", "suspected"] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
    assert!(events.is_sorted_by_key(|event| event["time_ms"].as_u64()));
    let shown = stdout(&first.command(&["events"]));
    assert!(shown.lines().any(|line| line.contains("suspected") && line.contains("node 2")), "{shown}");
}

#[test]
fn disks_and_nodes_are_drained_only_where_their_data_has_a_place() {
    let directory = TestDir::new("drain");
    let first = Server::start(directory.path());
    let listed = first.command(&["disk", "list", "--json"]);
    let disks: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((disks.len(), &disks[0]["state"]), (1, &"up".into()), "{}", stderr(&listed));
    assert_eq!(disks[0]["placement_groups"], 128);
    let id = disks[0]["id"].as_str().unwrap();
    for args in [&["disk", "drain", id][..], &["disk", "remove", id], &["node", "drain", "1"]] {
        let refused = first.command(args);
        assert_eq!(refused.status.code(), Some(1), "{args:?}");
        assert!(stderr(&refused).contains("first"), "{}", stderr(&refused));
    }
    assert!(stderr(&first.command(&["disk", "drain", "zz"])).contains("no disk"));
}

/// `henge events | head -1`.
#[test]
fn who_reads_only_the_beginning_is_told_no_more() {
    let directory = TestDir::new("pipe");
    let server = Server::start(directory.path());
    let mut command = crate::harness::henge();
    command.args(["events", "--data"]).arg(directory.path());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
    drop(server);
}
