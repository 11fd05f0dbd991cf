//! What many runs add up to.

use sim::{Point, Report, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

/// Every kind of fault that a run may meet is to have struck so often in a long campaign.
const FAULTS_MIN: u64 = 1000;

#[derive(Default)]
pub struct Totals {
    pub seeds: u64,
    pub violations: u64,
    pub failed: Vec<u64>,
    pub points: BTreeSet<Point>,
    profiles: BTreeMap<String, u64>,
    counts: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
    stories: BTreeMap<&'static str, u64>,
    histories: u64,
    undecided: u64,
    simulated: Duration,
    events: u64,
}

impl Totals {
    pub fn add(&mut self, report: Report, wanted: &Wanted) {
        self.seeds += 1;
        *self.profiles.entry(report.profile.name()).or_insert(0) += 1;
        self.histories += report.histories;
        self.undecided += report.undecided;
        self.simulated += report.simulated;
        self.events += report.events;
        self.points.extend(&report.points);
        for (what, count) in report.counts {
            *self.counts.entry(what).or_insert(0) += count;
        }
        for (what, count) in report.faults {
            *self.faults.entry(what).or_insert(0) += count;
        }
        for (what, count) in report.stories {
            *self.stories.entry(what).or_insert(0) += count;
        }
        if !report.violations.is_empty() {
            self.fail(report.seed, &report.violations.join("\n  "), wanted);
        }
    }

    pub fn fail(&mut self, seed: u64, why: &str, wanted: &Wanted) {
        self.violations += 1;
        self.failed.push(seed);
        println!("seed {seed} FAILED:\n  {why}");
        println!("  replay: {}", replay(seed, wanted));
    }

    /// The figures of a campaign of so long on so many processors.
    pub fn print(&self, took: Duration, jobs: usize) -> ExitCode {
        let list = |counts: &BTreeMap<&'static str, u64>| {
            counts.iter().map(|(what, count)| format!("{count} {}", what.replace('_', " "))).collect::<Vec<_>>()
        };
        let profiles: Vec<String> = self.profiles.iter().map(|(name, count)| format!("{count} {name}")).collect();
        println!("runs: {}", profiles.join(", "));
        println!("happened: {}", list(&self.counts).join(", "));
        println!("stories, which are sequences of faults:");
        for (what, count) in &self.stories {
            println!("  {count:>12}  {what}");
        }
        println!("faults by kind ({}):", self.faults.len());
        for (what, count) in &self.faults {
            println!("  {count:>12}  {what}");
        }
        let rare: Vec<&str> =
            self.faults.iter().filter(|(_, count)| **count < FAULTS_MIN).map(|(what, _)| *what).collect();
        if !rare.is_empty() {
            println!("  fewer than {FAULTS_MIN} of: {}", rare.join(", "));
        }
        if let Some(cpu) = cpu_time() {
            let ratio = self.simulated.as_secs_f64() / cpu.as_secs_f64().max(1e-9);
            println!(
                "processor time: {:.1} s, {ratio:.0} : 1; {:.2} s a seed",
                cpu.as_secs_f64(),
                cpu.as_secs_f64() / self.seeds.max(1) as f64
            );
        }
        let of = |what: &str| self.counts.get(what).copied().unwrap_or(0);
        let seconds = took.as_secs_f64() * jobs as f64;
        let ratio = self.simulated.as_secs_f64() / seconds.max(1e-9);
        println!(
            "simulation: {} seeds, {} operations, {} histories checked ({} undecided), {:.2} simulated hours in {:.1} s on \
             {jobs} processors ({ratio:.0} : 1 each by the wall clock, {:.1} million events a second), {} violations",
            self.seeds,
            of("operations"),
            self.histories,
            self.undecided,
            self.simulated.as_secs_f64() / 3600.0,
            took.as_secs_f64(),
            self.events as f64 / seconds.max(1e-9) / 1e6,
            self.violations
        );
        if self.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// What all threads of this process have cost, where the system says so (Linux, `man 5 proc_pid_stat`: `utime`, `stime`).
fn cpu_time() -> Option<Duration> {
    const TICKS_PER_S: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program is in brackets, and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    Some(Duration::from_secs_f64(ticks.sum::<f64>() / TICKS_PER_S))
}

/// The one command that runs a seed again.
pub fn replay(seed: u64, wanted: &Wanted) -> String {
    let mut out = format!("cargo xtask sim --seed {seed}");
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            out.push_str(&format!(" --{name} {value}"));
        }
    };
    add("profile", wanted.profile.map(|profile| profile.name()));
    add("plant", wanted.plant.map(|plant| plant.name().to_string()));
    add("clients", wanted.limits.clients.map(|limit| limit.to_string()));
    add("operations", wanted.limits.operations.map(|limit| limit.to_string()));
    add("troubles", wanted.limits.troubles.map(|limit| limit.to_string()));
    add("buckets", wanted.limits.buckets.map(|limit| limit.to_string()));
    add("keys", wanted.limits.keys.map(|limit| limit.to_string()));
    out
}
