//! Chunks that come to this node's disks although their sessions are fenced, and may have been swept here.
//!
//! A node that was away takes what it lacks from the others, orphans among it; and whoever would have deleted those may be
//! gone for good before anybody hears of it (seed 1 of the simulator's storms). So what has come is asked about once more,
//! by the next sweep. What that is, is kept in memory: a start sweeps all sessions but the node's own anew, and the record of
//! those is taken back before a chunk of them is stored.

use base::Env;
use base::env::MonoTime;
use base::ids::{ChunkId, DiskId, Generation, NodeId, Session};
use base::plant::{self, Plant};
use client::NAMED_IDS_MAX;
use meta::map::command::ClusterMap;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

use crate::home::GenerationClock;

/// How long a copy waits for the record to be taken back, and after a failure others do not try. Copies come first.
const RECORD_PATIENCE: Duration = Duration::from_secs(1);
const RECORD_RETRY: Duration = Duration::from_secs(10);

pub struct Arrivals {
    env: Env,
    map: watch::Receiver<Arc<ClusterMap>>,
    clock: Arc<GenerationClock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Chunks of this node's own sessions that are being stored.
    coming: usize,
    come: Come,
    /// More has come since the last sweep than can be asked about at once.
    overflown: bool,
    record_failed: Option<MonoTime>,
}

/// What has come to which disks; where that is too much, of which sessions something has.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Come {
    chunks: BTreeSet<(DiskId, ChunkId)>,
    sessions: BTreeSet<(DiskId, Session)>,
}

impl Come {
    pub fn has(&self, disk: DiskId, id: ChunkId) -> bool {
        self.chunks.contains(&(disk, id)) || self.sessions.contains(&(disk, id.session))
    }

    /// Forgets what came to this disk.
    pub fn settle(&mut self, disk: DiskId) {
        self.chunks.retain(|(on, _)| *on != disk);
        self.sessions.retain(|(on, _)| *on != disk);
    }

    fn has_of(&self, node: NodeId) -> bool {
        let mut sessions = self.chunks.iter().map(|(_, id)| id.session).chain(self.sessions.iter().map(|(_, of)| *of));
        sessions.any(|session| session.node == node)
    }
}

impl State {
    fn note(&mut self, disk: DiskId, id: ChunkId) {
        if self.come.chunks.len() < NAMED_IDS_MAX {
            self.come.chunks.insert((disk, id));
        } else if !self.come.chunks.contains(&(disk, id)) {
            self.come.sessions.insert((disk, id.session));
            self.overflown = true;
        }
    }
}

/// A chunk on its way to a disk; to be held until it is there, or never will be.
pub struct Coming<'a> {
    arrivals: &'a Arrivals,
    disk: DiskId,
    id: ChunkId,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        // In this order: whoever sees that nothing is on its way sees what has come.
        self.arrivals.came(self.disk, self.id);
        if self.id.session.node == self.arrivals.clock.node() {
            self.arrivals.state().coming -= 1;
        }
    }
}

impl Arrivals {
    pub fn new(env: Env, map: watch::Receiver<Arc<ClusterMap>>, clock: Arc<GenerationClock>) -> Arrivals {
        Arrivals { env, map, clock, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a chunk is fetched. It is stored also where the record of the sweep cannot be taken back: then it may stay, as
    /// an orphan, if the node ends before the next sweep.
    pub async fn expect(&self, disk: DiskId, id: ChunkId) -> Coming<'_> {
        let is_own = id.session.node == self.clock.node();
        if is_own {
            self.state().coming += 1;
        }
        let coming = Coming { arrivals: self, disk, id };
        if is_own && self.may_try() {
            let taken_back = self.env.timeout(RECORD_PATIENCE, self.take_back(id.session.generation)).await;
            let failed = match taken_back {
                Some(Ok(())) => None,
                Some(Err(error)) => Some(error.to_string()),
                None => Some("the disk does not answer".into()),
            };
            if let Some(why) = failed {
                tracing::warn!("what was swept for orphans cannot be recorded now: {why}");
                self.state().record_failed = Some(self.env.now());
            }
        }
        coming
    }

    /// May be given up at any time: a write that has begun goes on, before any other of the clock's.
    async fn take_back(&self, generation: Generation) -> io::Result<()> {
        if self.clock.now().await.swept <= generation {
            return Ok(());
        }
        let clock = self.clock.clone();
        let (done, outcome) = oneshot::channel();
        self.env.spawn("take back the record of a sweep", async move {
            // Nobody may be waiting any more.
            let _ = done.send(clock.take_back_sweep(generation).await);
        });
        outcome.await.unwrap_or_else(|_| Err(io::Error::other("the node stops")))
    }

    fn may_try(&self) -> bool {
        let failed = self.state().record_failed;
        failed.is_none_or(|failed| self.env.now() >= failed + RECORD_RETRY)
    }

    /// A chunk was stored, or may have been. Sweeps that begin later find it by themselves, unless its session is fenced
    /// already.
    pub fn came(&self, disk: DiskId, id: ChunkId) {
        // The second guard against what these let back in.
        if plant::is(Plant::ForgetTombstone) || plant::is(Plant::ForgetInMove) {
            return;
        }
        let floor = {
            let map = self.map.borrow();
            map.nodes.iter().find(|row| row.id == id.session.node.0).map(|row| Generation(row.generation_floor))
        };
        if floor.is_none_or(|floor| id.session.generation < floor) {
            self.state().note(disk, id);
        }
    }

    /// What a sweep that begins now is to look at again. While more comes than can be asked about at once, whole sessions wait:
    /// they are asked about when it is over, not again and again.
    pub fn take(&self) -> Come {
        let mut state = self.state();
        let mut come = std::mem::take(&mut state.come);
        if std::mem::take(&mut state.overflown) {
            state.come.sessions = std::mem::take(&mut come.sessions);
        }
        come
    }

    /// What a sweep has taken and not looked at.
    pub fn put_back(&self, come: Come) {
        let mut state = self.state();
        let overflown = state.overflown;
        for (disk, id) in come.chunks {
            state.note(disk, id);
        }
        state.come.sessions.extend(come.sessions);
        state.overflown = overflown;
    }

    /// Below which generation the node's own sessions were swept, in this life or before.
    pub async fn recorded(&self) -> (NodeId, Generation) {
        (self.clock.node(), self.clock.now().await.swept)
    }

    /// Records a sweep of the node's own sessions, unless chunks of them have come since it began: it may have missed them.
    pub async fn record(&self, swept: Generation) -> io::Result<()> {
        let is_seen = || {
            let state = self.state();
            state.coming == 0 && !state.come.has_of(self.clock.node())
        };
        self.clock.record_sweep(swept, is_seen).await
    }
}
