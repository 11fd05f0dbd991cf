//! `simulate`: runs seeds of the simulation and says what came of them. `cargo xtask sim` passes its arguments on to it.

mod points;
mod shrink;
mod table;
mod totals;
mod traces;

use base::plant::Plant;
use clap::Parser;
use sim::{Limits, Profile, Shown, Wanted, events, hunting_ground, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use totals::Totals;

/// Violations that are printed in full.
const SHOWN_MAX: usize = 5;

/// Seeds that the gate runs, each of a kind that the seed alone would rarely draw, beside the first ones of all kinds.
pub const FIXED: [(Profile, std::ops::Range<u64>); 36] = [
    (Profile::Crashes, 0..40),
    (Profile::FlushErrors, 0..10),
    (Profile::BitRot, 0..10),
    (Profile::MetadataRot, 0..10),
    (Profile::Cluster3, 0..8),
    (Profile::Cluster5, 0..3),
    (Profile::Calm, 0..3),
    (Profile::Growth, 0..1),
    (Profile::LostLog, 0..3),
    (Profile::Apart, 0..2),
    (Profile::Fences, 0..3),
    (Profile::Upgrade, 0..3),
    // Seed 2: a node whose snapshot was installed and not flushed again is made the only voter.
    (Profile::Disaster, 0..4),
    (Profile::Zombie, 0..2),
    (Profile::Ballot, 0..2),
    (Profile::Stranded, 0..2),
    (Profile::Behind, 0..2),
    (Profile::Surge, 0..2),
    (Profile::Renewal, 0..1),
    (Profile::Overtaken, 0..2),
    (Profile::Absence, 0..2),
    (Profile::Handover, 0..2),
    (Profile::Twofold, 0..3),
    // Whose members had not heard of the map yet waited until all others were repaired.
    (Profile::Twofold, 1_094..1_095),
    // Seed 1: a node takes orphans from others when it has swept their session, and who would have deleted them is lost.
    (Profile::Storm, 0..3),
    // A node's metadata is lost or out of reach, and right after it is back another node is stopped.
    (Profile::Cluster3, 164..165),
    // The disk vanishes under a leader's metadata.
    (Profile::Cluster3, 15..16),
    // A copy in a hole of a journal; a node that joins a recovered cluster and crashes in its first start.
    (Profile::Cluster3, 26..27),
    // A replica that is removed loses some of its rows and keeps the group's own, which vouches for all, and its node restarts.
    (Profile::Cluster3, 27..28),
    (Profile::Calm, 63_742_407_156_617..63_742_407_156_618),
    // A block that was written elsewhere held the tombstone of a chunk that was deleted everywhere.
    (Profile::Storm, 9_890_933_563_010..9_890_933_563_011),
    // A disk that was broken while orphans were swept came back with them.
    (Profile::Storm, 191_519_144_451_755..191_519_144_451_756),
    // A file of rows of all groups is lost, with the map by which others would be asked whether they can do without them.
    (Profile::Storm, 189_550_805_434_439..189_550_805_434_440),
    // The same tombstone, while the process that had stored its chunk lived on.
    (Profile::Storm, 139_906_159_759_317..139_906_159_759_318),
    // A log is lost, its node's new replica learns, all lose their power, and another node is destroyed.
    (Profile::Storm, 97_387_178_987_437..97_387_178_987_438),
    // A node is started anew, and back between two looks, while a link of its lasts to be broken.
    (Profile::Storm, 113_281_190_908_475..113_281_190_908_476),
];

#[derive(Parser)]
#[command(
    name = "cargo xtask sim",
    about = "Runs nodes of real code under simulated faults; one seed is one replayable story."
)]
struct Arguments {
    /// One seed: tells its story and its trace hash.
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed: also what each client did, and all that the product logs.
    #[arg(long, requires = "seed")]
    verbose: bool,
    /// With --seed: no story, only the trace hash.
    #[arg(long, requires = "seed")]
    quiet: bool,
    /// With --seed: runs it twice and says where the runs part, if they do.
    #[arg(long, requires = "seed")]
    twice: bool,
    /// With --seed: looks for a shorter story that fails.
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// Seeds FROM..TO, without TO.
    #[arg(long, value_parser = parse_range, value_name = "FROM..TO")]
    seeds: Option<(u64, u64)>,
    /// Fresh seeds on all processors for so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// The same for so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// With --minutes or --seconds: the seed to begin with, so that every run tries the same ones.
    #[arg(long)]
    first: Option<u64>,
    /// The fixed list of seeds that the gate runs.
    #[arg(long)]
    fixed: bool,
    /// Runs seeds with each planted defect until it is caught, the same seeds without it, and prints the table.
    #[arg(long)]
    plants: bool,
    /// With --plants: seeds after which a defect counts as not caught.
    #[arg(long, default_value_t = 500)]
    seeds_max: u64,
    /// Runs seeds FROM..TO twice, each time in a process of its own, and compares the trace hashes.
    #[arg(long, value_parser = parse_range, value_name = "FROM..TO")]
    traces: Option<(u64, u64)>,
    /// Says which points of the product were never reached.
    #[arg(long)]
    points: bool,
    /// Seeds run at once; as many as there are processors by default.
    #[arg(long)]
    jobs: Option<usize>,
    /// Plants a defect, to see that it is found; `list` names them. With --plants: of these only, by commas.
    #[arg(long)]
    plant: Option<String>,
    /// Runs of this kind only, such as crashes or cluster3; otherwise the seed chooses.
    #[arg(long, value_parser = parse_profile)]
    profile: Option<Profile>,
    /// At most so many clients; as `--shrink` finds them.
    #[arg(long)]
    clients: Option<u32>,
    #[arg(long)]
    operations: Option<u32>,
    #[arg(long)]
    troubles: Option<u32>,
    #[arg(long)]
    buckets: Option<usize>,
    #[arg(long)]
    keys: Option<usize>,
}

impl Arguments {
    fn wanted(&self, plant: Option<Plant>) -> Wanted {
        let (clients, operations, troubles) = (self.clients, self.operations, self.troubles);
        Wanted {
            plant,
            profile: self.profile.or(plant.map(hunting_ground)),
            limits: Limits { clients, operations, troubles, buckets: self.buckets, keys: self.keys },
            shown: Shown::Nothing,
        }
    }

    fn plants(&self) -> Result<Vec<Plant>, String> {
        let Some(names) = &self.plant else { return Ok(Vec::new()) };
        names
            .split(',')
            .map(|name| Plant::from_name(name).ok_or_else(|| format!("no defect is called {name}")))
            .collect()
    }

    fn jobs(&self) -> usize {
        self.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }
}

fn parse_profile(text: &str) -> Result<Profile, String> {
    let found = Profile::ALL.into_iter().find(|profile| profile.name() == text.to_lowercase());
    found.ok_or_else(|| format!("{text:?} is none of {:?}", Profile::ALL.map(Profile::name)))
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("a range is written FROM..TO")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    Ok((number(from)?, number(to)?))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.plant.as_deref() == Some("list") {
        Plant::ALL.iter().for_each(|plant| println!("{:<24} {}", plant.name(), plant.what()));
        return ExitCode::SUCCESS;
    }
    let plants = match arguments.plants() {
        Ok(plants) => plants,
        Err(why) => {
            eprintln!("{why}; `--plant list` names them all");
            return ExitCode::FAILURE;
        }
    };
    if arguments.plants {
        let plants = if plants.is_empty() { Plant::ALL.to_vec() } else { plants };
        return table::print(&plants, arguments.seeds_max, arguments.jobs());
    }
    if let Some((from, to)) = arguments.traces {
        return traces::compare(from..to, arguments.profile, arguments.jobs());
    }
    let wanted = arguments.wanted(plants.first().copied());
    match arguments.seed {
        Some(seed) if arguments.shrink => shrink::shrink(seed, wanted),
        Some(seed) => tell(seed, wanted, &arguments),
        None => campaign(&wanted, &arguments),
    }
}

/// One seed: its story, its hash, and what it came to.
fn tell(seed: u64, wanted: Wanted, arguments: &Arguments) -> ExitCode {
    let shown = match (arguments.quiet, arguments.verbose) {
        (true, _) => Shown::Nothing,
        (false, true) => Shown::Everything,
        (false, false) => Shown::Story,
    };
    let began = now();
    let report = run(seed, &Wanted { shown, ..wanted.clone() });
    let hash = report.trace_hash;
    let mut total = Totals::default();
    if arguments.twice && run(seed, &wanted).trace_hash != hash {
        total.fail(seed, "the second run differs from the first", &wanted);
        say_where_runs_part(seed, &wanted);
    }
    total.add(report, &wanted);
    let code = total.print(began.elapsed(), 1);
    println!("seed {seed}: trace hash {hash:016x}");
    code
}

fn say_where_runs_part(seed: u64, wanted: &Wanted) {
    let (one, other) = (events(seed, wanted), events(seed, wanted));
    match one.iter().zip(&other).position(|(one, other)| one != other) {
        Some(at) => {
            println!("  after {:#?}\n  one: {:?}\n  other: {:?}", &one[at.saturating_sub(3)..at], one[at], other[at])
        }
        None => println!("  two further runs had {} and {} events and did not differ", one.len(), other.len()),
    }
}

/// Many seeds: fresh ones, a range, or the fixed list.
fn campaign(wanted: &Wanted, arguments: &Arguments) -> ExitCode {
    let jobs = arguments.jobs();
    let began = now();
    let total = if arguments.fixed {
        let each = |(profile, seeds): (Profile, std::ops::Range<u64>)| seeds.map(move |seed| (Some(profile), seed));
        run_list(FIXED.into_iter().flat_map(each).collect(), jobs, wanted)
    } else if let Some((from, to)) = arguments.seeds {
        run_list((from..to).map(|seed| (wanted.profile, seed)).collect(), jobs, wanted)
    } else {
        let minutes = arguments.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
        let length = minutes.unwrap_or(Duration::from_secs(arguments.seconds.unwrap_or(60)));
        let first = arguments.first.unwrap_or_else(fresh_seed);
        println!("seeds from {first} on");
        run_for(first, began + length, jobs, wanted)
    };
    if arguments.points {
        points::print(&total.points);
    }
    total.print(began.elapsed(), jobs)
}

fn run_list(seeds: Vec<(Option<Profile>, u64)>, jobs: usize, wanted: &Wanted) -> Totals {
    let next = AtomicU64::new(0);
    run_all(jobs, wanted, &|| seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize).copied())
}

fn run_for(first: u64, deadline: Instant, jobs: usize, wanted: &Wanted) -> Totals {
    let next = AtomicU64::new(first);
    run_all(jobs, wanted, &|| (now() < deadline).then(|| (wanted.profile, next.fetch_add(1, Ordering::Relaxed))))
}

/// Runs what `next` gives, on as many threads as there are jobs, until nothing comes or too much has failed.
fn run_all(jobs: usize, wanted: &Wanted, next: &(dyn Fn() -> Option<(Option<Profile>, u64)> + Sync)) -> Totals {
    let total = Mutex::new(Totals::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed)
                    && let Some((profile, seed)) = next()
                {
                    let wanted = Wanted { profile, ..wanted.clone() };
                    let result = catch_unwind(AssertUnwindSafe(|| run(seed, &wanted)));
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(report) => total.add(report, &wanted),
                        // The panic has printed itself.
                        Err(_) => total.fail(seed, "it panicked", &wanted),
                    }
                    stop.store(total.failed.len() >= SHOWN_MAX, Ordering::Relaxed);
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods, reason = "how long the simulation itself takes is real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// A seed that nobody chose: the standard library seeds its hash maps from the operating system's entropy.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 16
}
