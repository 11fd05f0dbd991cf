//! A bounded queue between callers and threads. `loom/` runs this file under every order in which the threads may meet.
//!
//! Of the threads that wait, the one that has waited least is woken: what it needs is still in the processor's caches, and
//! those that are not needed sleep on.

use std::collections::VecDeque;
use std::sync::PoisonError;

#[cfg(loom)]
use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// What one thread is woken by.
pub type Bell = Arc<Condvar>;

pub struct JobQueue<J> {
    jobs_max: usize,
    inner: Mutex<Inner<J>>,
    room_made: Condvar,
}

struct Inner<J> {
    jobs: VecDeque<J>,
    /// What the threads that wait for a job are woken by, in the order in which they came.
    idle: Vec<Bell>,
    /// Threads that were woken for a job and have not come for it yet.
    woken: usize,
    closed: bool,
}

impl<J> JobQueue<J> {
    pub fn new(jobs_max: usize) -> JobQueue<J> {
        let inner = Mutex::new(Inner { jobs: VecDeque::new(), idle: Vec::new(), woken: 0, closed: false });
        JobQueue { jobs_max, inner, room_made: Condvar::new() }
    }

    /// Queues `job`; first in, first out. Waits in place while the queue is full: those who take from it need nothing
    /// from the caller to go on, so this ends. Answers whether one more thread would have something to do.
    pub fn push(&self, job: J) -> bool {
        let mut inner = self.lock();
        while inner.jobs.len() >= self.jobs_max {
            inner = self.room_made.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.jobs.push_back(job);
        let woken = inner.idle.pop();
        inner.woken += usize::from(woken.is_some());
        let lacks_threads = inner.jobs.len() > inner.woken;
        drop(inner);
        if let Some(thread) = woken {
            thread.notify_one();
        }
        lacks_threads
    }

    /// The next job; waits for one, until the thread's own bell rings. `None` when the queue is closed and empty.
    pub fn pop(&self, own: &Bell) -> Option<J> {
        let mut inner = self.lock();
        loop {
            if let Some(job) = self.take(&mut inner) {
                return Some(job);
            }
            if inner.closed {
                return None;
            }
            inner.idle.push(Arc::clone(own));
            inner = own.wait(inner).unwrap_or_else(PoisonError::into_inner);
            // Still among them: woken by nobody.
            match inner.idle.iter().rposition(|idle| Arc::ptr_eq(idle, own)) {
                Some(place) => drop(inner.idle.remove(place)),
                None => inner.woken -= 1,
            }
        }
    }

    /// The next job if there is one now.
    pub fn try_pop(&self) -> Option<J> {
        self.take(&mut self.lock())
    }

    fn take(&self, inner: &mut Inner<J>) -> Option<J> {
        let job = inner.jobs.pop_front()?;
        // Callers wait only while it is full: from one less on each of them finds room or is not alone.
        if inner.jobs.len() == self.jobs_max - 1 {
            self.room_made.notify_all();
        }
        Some(job)
    }

    /// What is queued is still handed out, then `None` to everybody.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        let idle = std::mem::take(&mut inner.idle);
        inner.woken += idle.len();
        drop(inner);
        idle.iter().for_each(|thread| thread.notify_one());
    }

    fn lock(&self) -> MutexGuard<'_, Inner<J>> {
        // Nothing can panic while the lock is held, so a poisoned lock still guards a whole queue.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
