//! Chunks that come from other nodes although their sessions have been swept here.
//!
//! A node that was away takes what it lacks from the others, orphans among it; and whoever would have deleted those may be
//! gone for good before anybody hears of it (seed 1 of the simulator's storms). So what has come is asked about once more,
//! by the next sweep. Which sessions that is, is kept in memory: a start sweeps all sessions but the node's own anew, and
//! the record of those is taken back before the first chunk of them is stored.

use base::ids::{DiskId, Generation, NodeId, Session};
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::home::GenerationClock;

pub struct Arrivals {
    clock: Arc<GenerationClock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Chunks that are being stored.
    coming: usize,
    come: Come,
}

/// Of which sessions chunks have come, and to which disks.
pub type Come = BTreeSet<(DiskId, Session)>;

/// A chunk on its way to a disk; to be held until it is there, or never will be.
pub struct Coming<'a> {
    arrivals: &'a Arrivals,
    disk: DiskId,
    session: Session,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut state = self.arrivals.state();
        state.coming -= 1;
        state.come.insert((self.disk, self.session));
    }
}

impl Arrivals {
    pub fn new(clock: Arc<GenerationClock>) -> Arrivals {
        Arrivals { clock, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails when the record of the last sweep cannot be taken back: then the chunk must not be stored now.
    pub async fn expect(&self, disk: DiskId, session: Session) -> io::Result<Coming<'_>> {
        self.state().coming += 1;
        let coming = Coming { arrivals: self, disk, session };
        if session.node == self.clock.node() {
            self.clock.take_back_sweep(session.generation).await?;
        }
        Ok(coming)
    }

    /// What a sweep that begins now is to look at again.
    pub fn take(&self) -> Come {
        std::mem::take(&mut self.state().come)
    }

    /// What a sweep has taken and not looked at.
    pub fn put_back(&self, mut come: Come) {
        self.state().come.append(&mut come);
    }

    /// Below which generation the node's own sessions were swept, in this life or before.
    pub async fn recorded(&self) -> (NodeId, Generation) {
        (self.clock.node(), self.clock.now().await.swept)
    }

    /// Records a sweep, unless chunks have come since it began: it may have missed them.
    pub async fn record(&self, swept: Generation) -> io::Result<()> {
        let is_seen = || {
            let state = self.state();
            state.coming == 0 && state.come.is_empty()
        };
        self.clock.record_sweep(swept, is_seen).await
    }
}
