//! Threads that make blocking system calls for one disk, so that no task of the runtime ever blocks on it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::job_queue::{Bell, JobQueue};

/// Operations that may wait for a thread. A caller beyond this waits in place.
const QUEUE_OPERATIONS_MAX: usize = 1024;

/// Dropping it lets the threads finish what is queued and end.
pub struct Workers<J> {
    queue: Arc<JobQueue<J>>,
    serve: fn(&JobQueue<J>),
    threads: AtomicUsize,
    threads_max: usize,
}

impl<J: Send + 'static> Workers<J> {
    /// Up to `threads_max` threads, each of which does what `serve` does; the first is started now.
    pub fn start(threads_max: usize, serve: fn(&JobQueue<J>)) -> io::Result<Workers<J>> {
        let queue = Arc::new(JobQueue::new(QUEUE_OPERATIONS_MAX));
        let workers = Workers { queue, serve, threads: AtomicUsize::new(1), threads_max };
        workers.start_thread()?;
        Ok(workers)
    }

    /// Queues `job`; first in, first started. Threads are started as they are needed, and stay.
    pub fn submit(&self, job: J) {
        let one_more = |threads| (threads < self.threads_max).then_some(threads + 1);
        let lacks_threads = self.queue.push(job);
        if lacks_threads && self.threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
            // Where the system has no more threads, those that are there do the work.
            if self.start_thread().is_err() {
                self.threads.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn start_thread(&self) -> io::Result<()> {
        let (queue, serve) = (Arc::clone(&self.queue), self.serve);
        std::thread::Builder::new().name("disk".into()).spawn(move || or_abort(|| serve(&queue))).map(drop)
    }
}

impl<J> Drop for Workers<J> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn or_abort(serve: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(serve)).is_err() {
        eprintln!("henge: a disk operation broke an invariant (above); stopping the node");
        std::process::abort();
    }
}

pub type Job = Box<dyn FnOnce() + Send>;

/// One job after the other.
pub fn serve_jobs(queue: &JobQueue<Job>) {
    let own = Bell::default();
    while let Some(job) = queue.pop(&own) {
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    const THREADS_MAX: usize = 8;

    #[test]
    fn runs_all_that_was_queued_also_beyond_the_bound_and_after_the_drop() {
        let done = Arc::new(AtomicUsize::new(0));
        let workers = Workers::start(THREADS_MAX, serve_jobs).unwrap();
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
    /// With fewer, this does not end.
    #[test]
    fn as_many_operations_at_once_as_there_may_be_threads_and_no_more() {
        let workers = Workers::start(THREADS_MAX, serve_jobs).unwrap();
        let all_there = Arc::new(Barrier::new(THREADS_MAX + 1));
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..2 * THREADS_MAX {
            let (all_there, done) = (Arc::clone(&all_there), Arc::clone(&done));
            workers.submit(Box::new(move || {
                all_there.wait();
                done.fetch_add(1, Ordering::Relaxed);
            }));
        }
        assert_eq!(workers.threads.load(Ordering::Relaxed), THREADS_MAX);
        // Each time all threads are in an operation at once.
        all_there.wait();
        all_there.wait();
        drop(workers);
        while done.load(Ordering::Relaxed) < 2 * THREADS_MAX {
            std::thread::yield_now();
        }
    }
}
