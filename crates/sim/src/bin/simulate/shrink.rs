//! Looks for a shorter story that fails: fewer clients, operations, troubles, buckets and keys, one step after the other,
//! each tried with the seed itself and with some others.

use sim::{Limits, Wanted, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use crate::totals::replay;

/// Other seeds that each step is tried with.
const OTHERS: u64 = 6;
/// Steps without success after which it is enough.
const STEPS_MAX: usize = 60;

/// A story that fails: its seed, what it leaves out, how long it takes.
struct Found {
    seed: u64,
    limits: Limits,
    events: u64,
    why: String,
}

pub fn shrink(seed: u64, wanted: Wanted) -> ExitCode {
    let Some(mut best) = attempt(seed, &wanted, wanted.limits.clone()) else {
        println!("seed {seed} does not fail");
        return ExitCode::FAILURE;
    };
    println!("seed {seed} fails after {} events: {}", best.events, first_line(&best.why));
    let mut steps = 0;
    while let Some(shorter) = candidates(&best).into_iter().find_map(|(seed, limits)| {
        steps += 1;
        attempt(seed, &wanted, limits).filter(|found| steps <= STEPS_MAX && found.events < best.events)
    }) {
        println!("shorter, {} events: {}", shorter.events, first_line(&shorter.why));
        best = shorter;
    }
    println!("{}", best.why);
    println!("replay: {}", replay(best.seed, &Wanted { limits: best.limits, ..wanted }));
    ExitCode::SUCCESS
}

/// What may be left out next, the most first.
fn candidates(found: &Found) -> Vec<(u64, Limits)> {
    let halved = |limit: Option<u32>, most: u32| Some((limit.unwrap_or(most) / 2).max(1));
    let now = &found.limits;
    let mut steps = vec![
        Limits { operations: halved(now.operations, 80), ..now.clone() },
        Limits { troubles: halved(now.troubles, 10), ..now.clone() },
        Limits { clients: halved(now.clients, 6), ..now.clone() },
        Limits { keys: Some((now.keys.unwrap_or(12) / 2).max(1)), ..now.clone() },
        Limits { buckets: Some(1), ..now.clone() },
    ];
    steps.retain(|step| format!("{step:?}") != format!("{now:?}"));
    let seeds = (0..=OTHERS).map(|other| found.seed.wrapping_add(other));
    seeds.flat_map(|seed| steps.iter().map(move |step| (seed, step.clone()))).collect()
}

fn attempt(seed: u64, wanted: &Wanted, limits: Limits) -> Option<Found> {
    let wanted = Wanted { limits: limits.clone(), ..wanted.clone() };
    match catch_unwind(AssertUnwindSafe(|| run(seed, &wanted))) {
        Ok(report) if report.violations.is_empty() => None,
        Ok(report) => Some(Found { seed, limits, events: report.events, why: report.violations.join("\n") }),
        // It has printed itself, and ends before anything is counted.
        Err(_) => Some(Found { seed, limits, events: u64::MAX - 1, why: "it panicked".into() }),
    }
}

fn first_line(why: &str) -> &str {
    why.lines().next().unwrap_or_default()
}
