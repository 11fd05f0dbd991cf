//! The product's own source, with loom's locks in place of the system's.
#![cfg(test)]

#[path = "../../crates/henge/src/env/job_queue.rs"]
mod job_queue;

use job_queue::{Bell, JobQueue};
use loom::sync::{Arc, Condvar};
use loom::thread;

/// Switches away from a thread that could go on, in one run. Few suffice to meet most mistakes (Musuvathi and Qadeer,
/// PLDI 2007), and without a bound the larger cases take hours.
const PREEMPTIONS_MAX: usize = 3;

/// All that was queued is handed out once, in order, and everybody comes to an end: no wake-up is lost.
/// `greedy`: who has a job takes more while there are any, and only then waits.
fn every_job_once(jobs_max: usize, callers: usize, each: usize, takers: usize, greedy: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    model.check(move || {
        let queue = Arc::new(JobQueue::new(jobs_max));
        let took: Vec<_> = (0..takers)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let own = Bell::new(Condvar::new());
                    let mut took: Vec<usize> = Vec::new();
                    while let Some(job) = queue.pop(&own) {
                        took.push(job);
                        if greedy {
                            took.extend(std::iter::from_fn(|| queue.try_pop()));
                        }
                    }
                    took
                })
            })
            .collect();
        let pushed: Vec<_> = (1..callers)
            .map(|caller| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || (0..each).for_each(|job| _ = queue.push(caller * each + job)))
            })
            .collect();
        (0..each).for_each(|job| _ = queue.push(job));
        pushed.into_iter().for_each(|caller| caller.join().unwrap());
        queue.close();
        let lists: Vec<Vec<usize>> = took.into_iter().map(|taker| taker.join().unwrap()).collect();
        for list in &lists {
            for caller in 0..callers {
                let own: Vec<usize> = list.iter().copied().filter(|job| job / each == caller).collect();
                assert!(own.is_sorted(), "jobs of one caller stay in order: {own:?}");
            }
        }
        let mut all = lists.concat();
        all.sort_unstable();
        assert_eq!(all, (0..callers * each).collect::<Vec<_>>());
    });
}

#[test]
fn one_caller_waits_for_room_and_one_thread_for_work() {
    every_job_once(1, 1, 3, 1, false);
}

#[test]
fn two_threads_share_the_work() {
    every_job_once(2, 1, 3, 2, false);
}

#[test]
fn two_callers_wait_for_one_place() {
    every_job_once(1, 2, 2, 1, false);
}

#[test]
fn a_thread_that_takes_what_there_is_makes_room_for_two_callers() {
    every_job_once(1, 2, 2, 1, true);
}

#[test]
fn two_threads_take_what_there_is() {
    every_job_once(2, 1, 3, 2, true);
}
