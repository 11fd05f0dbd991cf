//! `cargo xtask test` and `cargo xtask check`: everything that the gate runs, as one command. `cargo xtask bench`: what it
//! all costs.
//!
//! Knows: which checks exist. Never knows: how the product works; it starts cargo and counts.

#![allow(
    clippy::disallowed_methods,
    reason = "tools of the repository drive the real system; nothing here is simulated"
)]

mod bench;
mod chaos;
mod conformance;
mod fuzz;
mod graph;
mod run;

use run::{Counts, step};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test    all tests, then the fixed list of simulated seeds, then the short half of chaos; needs only Rust and a C
          compiler
  check   test, and: format, clippy with warnings denied, documentation, the crate graph,
          cargo deny where it is installed
  lint    only the fast half of check: format, clippy, the crate graph
  bench   the machine's limits, henge, and what is there to compare it with; `bench --help` for its options
  conformance s3 | clients
          suites and clients of others against a cluster: `cargo xtask conformance` says more
  fuzz    fuzz SECONDS [TARGET...]: each decoder for so long; needs cargo-fuzz
  chaos   real servers under real faults; `cargo xtask chaos --help` has its options
  sim     the simulator: --seed N, --minutes M, --shrink, --plants, --fixed, --traces, --points; `sim --help` says more

The last line is `henge: N passed, N failed, N skipped`.";

/// How the simulator is started; what follows is for it.
const SIMULATE: [&str; 7] = ["run", "--quiet", "--package", "sim", "--bin", "simulate", "--"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("bench", options)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return bench::run(options);
    }
    if let Some(("chaos", options)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return chaos::run(options).into();
    }
    let mut counts = Counts::default();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["sim", rest @ ..] => return run::instead("cargo", &[&SIMULATE[..], rest].concat()),
        ["test"] => test(&mut counts),
        ["lint"] => lint(&mut counts),
        ["check"] => {
            lint(&mut counts);
            test(&mut counts);
            documentation(&mut counts);
            deny(&mut counts);
        }
        ["conformance", rest @ ..] => return conformance::run(rest),
        ["fuzz", seconds, only @ ..] if seconds.parse::<u64>().is_ok() => {
            fuzz::run(&mut counts, seconds.parse().unwrap_or_default(), only);
        }
        [] | ["help" | "-h" | "--help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprintln!("xtask: unknown command `{}`\n\n{USAGE}", other.join(" "));
            return ExitCode::FAILURE;
        }
    }
    println!("henge: {} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn test(counts: &mut Counts) {
    run::tests(counts);
    step(counts, "simulation", "cargo", &[&SIMULATE[..], &["--fixed"]].concat());
    match chaos::run(&["--gate".to_owned()]) {
        chaos::HOLDS => counts.passed += 1,
        chaos::SKIPPED => counts.skipped += 1,
        _ => counts.failed += 1,
    }
}

fn lint(counts: &mut Counts) {
    step(counts, "format", "cargo", &["fmt", "--all", "--check"]);
    step(counts, "clippy", "cargo", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
    graph::check(counts);
}

fn documentation(counts: &mut Counts) {
    // Warnings (broken links above all) are denied through the workspace's lints for rustdoc.
    step(counts, "documentation", "cargo", &["doc", "--quiet", "--workspace", "--no-deps"]);
}

fn deny(counts: &mut Counts) {
    if run::exists("cargo-deny") {
        step(counts, "deny", "cargo", &["deny", "check", "bans", "licenses", "sources"]);
    } else {
        println!("== deny: skipped, because cargo-deny is not installed (cargo install cargo-deny --locked)");
        counts.skipped += 1;
    }
}
