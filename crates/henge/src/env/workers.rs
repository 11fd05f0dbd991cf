//! Threads that make blocking system calls for one disk, so that no task of the runtime ever blocks on it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Threads per disk: as many operations as a disk is asked to do at once.
pub const THREADS: usize = 8;

/// Operations that may wait for a thread. A caller beyond this waits in place: the threads need nothing from the
/// caller to go on, so this ends.
const QUEUE_OPERATIONS_MAX: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// Dropping it lets the threads finish what is queued and end.
pub struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    job_added: Condvar,
    room_made: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Workers {
    pub fn start() -> io::Result<Workers> {
        let shared = Arc::new(Shared { queue: Mutex::default(), job_added: Condvar::new(), room_made: Condvar::new() });
        let workers = Workers { shared };
        for _ in 0..THREADS {
            let shared = Arc::clone(&workers.shared);
            std::thread::Builder::new().name("disk".into()).spawn(move || work(&shared))?;
        }
        Ok(workers)
    }

    /// Queues `job`; first in, first started.
    pub fn submit(&self, job: Job) {
        let mut queue = self.shared.lock();
        while queue.jobs.len() >= QUEUE_OPERATIONS_MAX {
            queue = self.shared.room_made.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.job_added.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.job_added.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing can panic while the lock is held, so a poisoned lock still guards a whole queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                if queue.jobs.len() == QUEUE_OPERATIONS_MAX - 1 {
                    self.room_made.notify_all();
                }
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self.job_added.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn work(shared: &Shared) {
    while let Some(job) = shared.next() {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            eprintln!("henge: a disk operation broke an invariant (above); stopping the node");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn runs_all_that_was_queued_also_beyond_the_bound_and_after_the_drop() {
        let done = Arc::new(AtomicUsize::new(0));
        let workers = Workers::start().unwrap();
        for _ in 0..3 * QUEUE_OPERATIONS_MAX {
            let done = Arc::clone(&done);
            workers.submit(Box::new(move || {
                done.fetch_add(1, Ordering::Relaxed);
            }));
        }
        drop(workers);
        while done.load(Ordering::Relaxed) < 3 * QUEUE_OPERATIONS_MAX {
            std::thread::yield_now();
        }
    }
}
