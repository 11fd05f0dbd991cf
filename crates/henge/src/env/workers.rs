//! Threads that make blocking system calls for one disk, so that no task of the runtime ever blocks on it.

use std::io;
use std::sync::Arc;

use super::job_queue::JobQueue;

/// Threads per disk: as many operations as a disk is asked to do at once.
pub const THREADS: usize = 8;

/// Operations that may wait for a thread. A caller beyond this waits in place.
const QUEUE_OPERATIONS_MAX: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// Dropping it lets the threads finish what is queued and end.
pub struct Workers {
    queue: Arc<JobQueue<Job>>,
}

impl Workers {
    pub fn start() -> io::Result<Workers> {
        let workers = Workers { queue: Arc::new(JobQueue::new(QUEUE_OPERATIONS_MAX)) };
        for _ in 0..THREADS {
            let queue = Arc::clone(&workers.queue);
            std::thread::Builder::new().name("disk".into()).spawn(move || work(&queue))?;
        }
        Ok(workers)
    }

    /// Queues `job`; first in, first started.
    pub fn submit(&self, job: Job) {
        self.queue.push(job);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn work(queue: &JobQueue<Job>) {
    while let Some(job) = queue.pop() {
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
