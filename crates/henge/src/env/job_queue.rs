//! A bounded queue between callers and threads. `loom/` runs this file under every order in which the threads may meet.

use std::collections::VecDeque;
use std::sync::PoisonError;

#[cfg(loom)]
use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Condvar, Mutex, MutexGuard};

pub struct JobQueue<J> {
    jobs_max: usize,
    inner: Mutex<Inner<J>>,
    job_added: Condvar,
    room_made: Condvar,
}

struct Inner<J> {
    jobs: VecDeque<J>,
    /// Threads that wait for a job, woken for one or not.
    idle: usize,
    closed: bool,
}

impl<J> JobQueue<J> {
    pub fn new(jobs_max: usize) -> JobQueue<J> {
        let inner = Mutex::new(Inner { jobs: VecDeque::new(), idle: 0, closed: false });
        JobQueue { jobs_max, inner, job_added: Condvar::new(), room_made: Condvar::new() }
    }

    /// Queues `job`; first in, first out. Waits in place while the queue is full: those who take from it need nothing
    /// from the caller to go on, so this ends. Answers whether one more thread would have something to do.
    pub fn push(&self, job: J) -> bool {
        let mut inner = self.lock();
        while inner.jobs.len() >= self.jobs_max {
            inner = self.room_made.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.jobs.push_back(job);
        let lacks_threads = inner.jobs.len() > inner.idle;
        drop(inner);
        self.job_added.notify_one();
        lacks_threads
    }

    /// The next job; waits for one. `None` when the queue is closed and empty.
    pub fn pop(&self) -> Option<J> {
        let mut inner = self.lock();
        loop {
            if let Some(job) = inner.jobs.pop_front() {
                // Callers wait only while it is full: from one less on each of them finds room or is not alone.
                if inner.jobs.len() == self.jobs_max - 1 {
                    self.room_made.notify_all();
                }
                return Some(job);
            }
            if inner.closed {
                return None;
            }
            inner.idle += 1;
            inner = self.job_added.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.idle -= 1;
        }
    }

    /// What is queued is still handed out, then `None` to everybody.
    pub fn close(&self) {
        self.lock().closed = true;
        self.job_added.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner<J>> {
        // Nothing can panic while the lock is held, so a poisoned lock still guards a whole queue.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
