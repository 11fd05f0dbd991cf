//! `simulate`: runs seeds of the simulation and says what came of them.

use clap::Parser;
use sim::{Planted, Profile, Report, Wanted, events, run};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Violations that are printed in full.
const SHOWN_MAX: usize = 5;

#[derive(Parser)]
#[command(about = "Runs nodes of real code under simulated faults; one seed is one replayable story.")]
struct Arguments {
    /// Seeds FROM..TO, without TO.
    #[arg(long, value_parser = parse_range, value_name = "FROM..TO")]
    seeds: Option<(u64, u64)>,
    /// Fresh seeds for so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// With `--seconds`: the seed to begin with, so that every run tries the same ones.
    #[arg(long, requires = "seconds")]
    first: Option<u64>,
    /// One seed, twice, comparing the traces.
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed: prints what happens as it happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Seeds run at once; as many as there are processors by default.
    #[arg(long)]
    jobs: Option<usize>,
    /// Plants a bug, to see that it is found: flush, directory (flushes that do nothing), stale-reads, unsent-stores,
    /// unsent-deletes.
    #[arg(long, value_parser = parse_planted)]
    plant: Option<Planted>,
    /// Runs of this kind only, such as crashes or cluster3; otherwise the seed chooses.
    #[arg(long, value_parser = parse_profile)]
    profile: Option<Profile>,
}

impl Arguments {
    fn wanted(&self) -> Wanted {
        Wanted { planted: self.plant, profile: self.profile }
    }
}

fn parse_profile(text: &str) -> Result<Profile, String> {
    let found = Profile::ALL.into_iter().find(|profile| format!("{profile:?}").eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("{text:?} is none of {:?}", Profile::ALL))
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("a range is written FROM..TO")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    Ok((number(from)?, number(to)?))
}

/// Names of what can be planted.
const PLANTED: [(&str, Planted); 5] = [
    ("flush", Planted::SkipFlushes),
    ("directory", Planted::SkipDirectoryFlushes),
    ("stale-reads", Planted::StaleReads),
    ("unsent-stores", Planted::UnsentStores),
    ("unsent-deletes", Planted::UnsentDeletes),
];

fn parse_planted(text: &str) -> Result<Planted, String> {
    let found = PLANTED.iter().find(|(name, _)| *name == text).map(|(_, planted)| *planted);
    found.ok_or_else(|| format!("{text:?} is none of {}", PLANTED.map(|(name, _)| name).join(", ")))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return replay(seed, arguments.wanted(), arguments.trace);
    }
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let source = match (arguments.seeds, arguments.seconds) {
        (Some((from, to)), _) => Source { next: AtomicU64::new(from), end: Some(to), deadline: None },
        (None, seconds) => {
            let first = arguments.first.unwrap_or_else(fresh_seed);
            let deadline = now() + Duration::from_secs(seconds.unwrap_or(60));
            println!("seeds from {first} on");
            Source { next: AtomicU64::new(first), end: None, deadline: Some(deadline) }
        }
    };
    let began = now();
    let total = run_all(&source, jobs, arguments.wanted());
    total.print(began.elapsed(), jobs)
}

/// One seed, twice: what it shows, and that it shows it again.
fn replay(seed: u64, wanted: Wanted, is_traced: bool) -> ExitCode {
    let began = now();
    let first = run(seed, wanted, is_traced);
    let again = run(seed, wanted, false);
    let mut total = Total::default();
    println!("seed {seed}: {:?}, trace hash {:016x}", first.profile, first.trace_hash);
    if first.trace_hash != again.trace_hash {
        total.violations += 1;
        println!("seed {seed}: the second run differs: trace hash {:016x}", again.trace_hash);
        let (one, other) = (events(seed, wanted), events(seed, wanted));
        match one.iter().zip(&other).position(|(one, other)| one != other) {
            Some(at) => println!(
                "  after {:#?}\n  one: {:?}\n  other: {:?}",
                &one[at.saturating_sub(3)..at],
                one[at],
                other[at]
            ),
            None => println!("  two further runs had {} and {} events and did not differ", one.len(), other.len()),
        }
    }
    total.add(first, wanted);
    total.print(began.elapsed(), 1)
}

/// Where seeds come from, shared by all jobs.
struct Source {
    next: AtomicU64,
    end: Option<u64>,
    deadline: Option<Instant>,
}

impl Source {
    fn next(&self) -> Option<u64> {
        if self.deadline.is_some_and(|deadline| now() >= deadline) {
            return None;
        }
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        (self.end.is_none_or(|end| seed < end)).then_some(seed)
    }
}

#[derive(Default)]
struct Total {
    seeds: u64,
    violations: u64,
    failed: Vec<u64>,
    profiles: BTreeMap<String, u64>,
    counts: BTreeMap<&'static str, u64>,
    histories: u64,
    undecided: u64,
    simulated: Duration,
}

fn run_all(source: &Source, jobs: usize, wanted: Wanted) -> Total {
    let total = Mutex::new(Total::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed)
                    && let Some(seed) = source.next()
                {
                    let result = catch_unwind(AssertUnwindSafe(|| run(seed, wanted, false)));
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(report) => total.add(report, wanted),
                        // The panic has printed itself.
                        Err(_) => total.fail(seed, "it panicked, see above", wanted),
                    }
                    stop.store(total.failed.len() >= SHOWN_MAX, Ordering::Relaxed);
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Total {
    fn add(&mut self, report: Report, wanted: Wanted) {
        self.seeds += 1;
        *self.profiles.entry(format!("{:?}", report.profile)).or_insert(0) += 1;
        self.histories += report.histories;
        self.undecided += report.undecided;
        self.simulated += report.simulated;
        for (what, count) in report.counts {
            *self.counts.entry(what).or_insert(0) += count;
        }
        if !report.violations.is_empty() {
            self.fail(report.seed, &report.violations.join("\n  "), wanted);
        }
    }

    fn fail(&mut self, seed: u64, why: &str, wanted: Wanted) {
        self.violations += 1;
        self.failed.push(seed);
        let plant = PLANTED.iter().find(|(_, planted)| Some(*planted) == wanted.planted);
        let plant = plant.map_or(String::new(), |(name, _)| format!(" --plant {name}"));
        let profile = wanted.profile.map_or(String::new(), |profile| format!(" --profile {profile:?}").to_lowercase());
        println!("seed {seed} FAILED:\n  {why}");
        println!("  replay: cargo run -p sim --bin simulate -- --seed {seed} --trace{profile}{plant}");
    }

    fn print(&self, took: Duration, jobs: usize) -> ExitCode {
        let join = |counts: Vec<String>| counts.join(", ");
        println!("runs: {}", join(self.profiles.iter().map(|(name, count)| format!("{count} {name}")).collect()));
        let counts = self.counts.iter().map(|(what, count)| format!("{count} {}", what.replace('_', " ")));
        println!("happened: {}", join(counts.collect()));
        let of = |what: &str| self.counts.get(what).copied().unwrap_or(0);
        let crashes = of("crashes") + of("crashes_in_operations") + of("crashes_in_starts") + of("kills");
        let ratio = self.simulated.as_secs_f64() / (took.as_secs_f64() * jobs as f64).max(1e-9);
        println!(
            "simulation: {} seeds, {} operations, {crashes} crashes, {} histories checked ({} undecided), \
             {:.0} s simulated in {:.1} s ({ratio:.1} : 1 per job), {} violations",
            self.seeds,
            of("operations"),
            self.histories,
            self.undecided,
            self.simulated.as_secs_f64(),
            took.as_secs_f64(),
            self.violations
        );
        if self.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long the simulation itself takes is real time")]
fn now() -> Instant {
    Instant::now()
}

/// A seed that nobody chose: the standard library seeds its hash maps from the operating system's entropy.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 16
}
