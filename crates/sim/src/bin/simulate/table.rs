//! The table of planted defects: after how many seeds each is caught, and that the same seeds pass without it.

use base::plant::{self, Plant};
use sim::{Profile, Wanted, hunting_ground, run};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// By what a defect was caught.
struct Caught {
    seed: u64,
    by: String,
}

/// Seeds of each kind that must pass without any defect.
type Passing = BTreeMap<Profile, u64>;

pub fn print(plants: &[Plant], seeds_max: u64, jobs: usize) -> ExitCode {
    // What a defect makes the product stop for need not be read here.
    std::panic::set_hook(Box::new(|_| ()));
    let next = AtomicUsize::new(0);
    let found: Mutex<BTreeMap<Plant, Option<Caught>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(plant) = plants.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                    let caught = hunt(plant, seeds_max);
                    let by = caught.as_ref().map_or("NOT CAUGHT", |caught| &caught.by);
                    eprintln!("{}: {} {by}", plant.name(), caught.as_ref().map_or(seeds_max, |caught| caught.seed + 1));
                    found.lock().unwrap_or_else(PoisonError::into_inner).insert(plant, caught);
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("| defect | what goes wrong | seeds | of kind | caught by |");
    println!("|---|---|---|---|---|");
    let mut passing = Passing::new();
    for (plant, caught) in &found {
        let profile = hunting_ground(*plant);
        let (seeds, by) = match caught {
            Some(caught) => (format!("{}", caught.seed + 1), caught.by.as_str()),
            None => (format!("> {seeds_max}"), "NOT CAUGHT"),
        };
        println!("| `{}` | {} | {seeds} | {} | {by} |", plant.name(), plant.what(), profile.name());
        let seeds = caught.as_ref().map_or(0, |caught| caught.seed + 1);
        let most = passing.entry(profile).or_insert(0);
        *most = seeds.max(*most);
    }
    let missed = found.values().filter(|caught| caught.is_none()).count();
    println!("\nplanted: {} of {} caught within {seeds_max} seeds", found.len() - missed, found.len());
    let failed = run_clean(&passing);
    if missed == 0 && failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The first seed that catches the defect.
fn hunt(plant: Plant, seeds_max: u64) -> Option<Caught> {
    let wanted = Wanted { plant: Some(plant), profile: Some(hunting_ground(plant)), ..Wanted::default() };
    (0..seeds_max).find_map(|seed| match catch_unwind(AssertUnwindSafe(|| run(seed, &wanted))) {
        Ok(report) => {
            let first = report.violations.first()?;
            Some(Caught { seed, by: shorten(first) })
        }
        Err(panic) => {
            plant::set(None);
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_string()));
            Some(Caught { seed, by: shorten(&format!("the product stops: {}", text.unwrap_or_default())) })
        }
    })
}

/// The same seeds without any defect. Answers how many fail.
fn run_clean(passing: &Passing) -> u64 {
    let mut failed = 0;
    for (profile, seeds) in passing {
        let wanted = Wanted { profile: Some(*profile), ..Wanted::default() };
        for seed in 0..*seeds {
            let passes = catch_unwind(|| run(seed, &wanted)).is_ok_and(|report| report.violations.is_empty());
            if !passes {
                println!("without any defect, seed {seed} of kind {} FAILS", profile.name());
                failed += 1;
            }
        }
    }
    let total: u64 = passing.values().sum();
    println!("without any defect: {} of the same {total} seeds pass", total - failed);
    failed
}

fn shorten(text: &str) -> String {
    const LEN_MAX: usize = 110;
    let line: String = text.lines().next().unwrap_or_default().chars().take(LEN_MAX).collect();
    line.replace('|', "/").trim().to_string()
}
