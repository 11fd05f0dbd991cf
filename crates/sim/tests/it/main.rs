//! That equal seeds give equal runs, also in other processes; and that some planted defects are caught, quickly. The
//! fixed list of seeds is run by `cargo xtask sim --fixed`.

use base::plant::Plant;
use sim::{Profile, Wanted, hunting_ground, run};
use std::process::Command;

/// The trace hash that another process has for a seed.
fn hash_elsewhere(seed: u64, profile: Profile) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulate"));
    let output = command.args(["--quiet", "--seed", &seed.to_string(), "--profile", &profile.name()]).output();
    let text = String::from_utf8(output.expect("the simulator can be started").stdout).expect("it prints text");
    text.lines().last().unwrap_or_default().rsplit(' ').next().unwrap_or_default().to_string()
}

#[test]
fn equal_seeds_give_equal_runs_in_other_processes_too() {
    for (profile, seeds) in [(Profile::Crashes, 0..6), (Profile::Cluster3, 0..2)] {
        let mut hashes = Vec::new();
        for seed in seeds {
            let here = run(seed, &Wanted { profile: Some(profile), ..Wanted::default() }).trace_hash;
            assert_eq!(hash_elsewhere(seed, profile), format!("{here:016x}"), "{profile:?} {seed}");
            hashes.push(here);
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert!(hashes.len() > 1, "different seeds are different stories");
    }
}

/// Whether one of the first seeds of the plant's kind shows it.
fn is_caught(plant: Plant, seeds_max: u64) -> bool {
    let wanted = Wanted { plant: Some(plant), profile: Some(hunting_ground(plant)), ..Wanted::default() };
    (0..seeds_max).any(|seed| {
        // The product may also stop at what the defect left behind: that is caught, too.
        std::panic::catch_unwind(|| run(seed, &wanted)).map_or(true, |report| !report.violations.is_empty())
    })
}

#[test]
fn a_skipped_flush_is_caught() {
    assert!(is_caught(Plant::SkipFlush, 10));
}

#[test]
fn a_retry_that_is_executed_twice_is_caught() {
    assert!(is_caught(Plant::RetryTwice, 10));
}

#[test]
fn a_reused_chunk_id_is_caught() {
    assert!(is_caught(Plant::ReuseChunkId, 10));
}
