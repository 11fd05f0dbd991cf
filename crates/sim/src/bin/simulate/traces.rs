//! Equal seeds give equal runs, in other processes too: each seed is run in two, and their trace hashes are compared.

use sim::Profile;
use std::ops::Range;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

/// What came of all comparisons.
#[derive(Default)]
struct Compared {
    equal: u64,
    failed: Vec<String>,
}

pub fn compare(seeds: Range<u64>, profile: Option<Profile>, jobs: usize) -> ExitCode {
    let next = AtomicU64::new(seeds.start);
    let compared: Mutex<Compared> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let hashes = (trace_hash(seed, profile), trace_hash(seed, profile));
                    let mut compared = compared.lock().unwrap_or_else(PoisonError::into_inner);
                    match hashes {
                        (Ok(one), Ok(other)) if one == other => compared.equal += 1,
                        (one, other) => compared.failed.push(format!("seed {seed}: {one:?} and {other:?}")),
                    }
                }
            });
        }
    });
    let compared = compared.into_inner().unwrap_or_else(PoisonError::into_inner);
    compared.failed.iter().for_each(|failed| println!("{failed}"));
    println!(
        "traces: {} seeds, each in two processes of its own: {} equal, {} not",
        seeds.end.saturating_sub(seeds.start),
        compared.equal,
        compared.failed.len()
    );
    if compared.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The hash that another process prints in its last line.
fn trace_hash(seed: u64, profile: Option<Profile>) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["--quiet", "--seed", &seed.to_string()]);
    if let Some(profile) = profile {
        command.args(["--profile", &profile.name()]);
    }
    let output = command.output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    match last.rsplit_once("trace hash ") {
        Some((_, hash)) => Ok(hash.to_string()),
        None => Err(format!("no trace hash: {last}")),
    }
}
