//! Repair: what this node's disks lack of the placement groups that they are members of is pulled from other members,
//! what others have deleted is deleted here, and what belongs elsewhere leaves. A copy is always made by whoever lacks it.
//!
//! - A group that **moves** (closed): everything that any member holds, old or new, is united on the new members, each for
//!   itself; then the node reports it done. `work.rs`, [`Repairer::unite`].
//! - An **open** group: digests are compared every few seconds; where they differ, inventories are, and what lacks here
//!   for longer than a writer takes is pulled. A group is healthy when nothing differs for long, all members serve, and
//!   nothing is damaged. `work.rs`, [`Repairer::compare`].
//! - A group that **left** this node's disk: its chunks go, once the open group's map is here.
//!
//! `plan.rs` decides, `exchange.rs` walks inventories side by side, `budget.rs` says how much goes on at once, `speed.rs` how fast
//! it goes, `answer.rs` answers other nodes.

mod answer;
mod budget;
pub mod exchange;
mod plan;
mod speed;
mod work;

#[cfg(test)]
mod tests;

pub use answer::{digests, inventory};
pub use budget::Budget;
pub use work::Repairer;

use base::env::{BoxFuture, MonoTime};
use base::ids::{ChunkId, DiskId, NodeId, PgEpoch, PgId, PoolId};
use base::plant::{self, Plant};
use client::Client;
use client::wire::{Ask, PgDone};
use exchange::{Asked, Peers};
use meta::map::command::ClusterMap;
use plan::Group;
use prometheus_client::metrics::counter::Counter;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// What repair knows about the copies on this node, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeHealth {
    /// All groups were compared at least once since the start.
    pub checked: bool,
    /// Placement groups with a member here.
    pub groups: u64,
    /// Of these: open, all members in service, and nothing differs or is damaged.
    pub healthy: u64,
    /// Of these: fewer copies in service than the pool has in effect.
    pub degraded: u64,
    /// Of these: closed, because they move.
    pub moving: u64,
    /// Of these: one copy in service, of several that there should be.
    pub last_copy: u64,
    /// What is owed, by urgency: see [`Urgency`].
    pub queue: [Owed; 3],
    /// What this node lacks and others have: copies that the groups that move, and those that differ, still owe.
    pub missing_chunks: u64,
    pub missing_bytes: u64,
    /// As measured lately.
    pub pulled_bytes_per_s: u64,
    /// Chunks here whose bytes do not verify.
    pub corrupt_chunks: u64,
    /// Chunks of which no member that answered has a good copy.
    pub hopeless_chunks: u64,
    /// Of these: those that metadata names; the first few by name. Like the next two, of the first
    /// [`client::NAMED_IDS_MAX`] hopeless ones.
    pub lost_chunks: u64,
    pub lost: Vec<ChunkId>,
    /// Of these: those that no shard names. They go when their sessions are closed.
    pub unnamed_chunks: u64,
    /// Of these: those that the shards have not been asked about yet.
    pub unasked_chunks: u64,
}

/// How much depends on a copy that is to be made: the first is made first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// One copy is left.
    LastCopy,
    /// Fewer copies than there should be.
    Degraded,
    /// The copies are there; they move, or differ.
    Whole,
}

impl Urgency {
    pub const ALL: [Urgency; 3] = [Urgency::LastCopy, Urgency::Degraded, Urgency::Whole];

    pub fn as_str(self) -> &'static str {
        match self {
            Urgency::LastCopy => "last_copy",
            Urgency::Degraded => "degraded",
            Urgency::Whole => "whole",
        }
    }
}

/// Chunks that a disk seems to lack: another member has so much more.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Owed {
    pub chunks: u64,
    pub bytes: u64,
}

impl Owed {
    pub fn and(self, other: Owed) -> Owed {
        Owed { chunks: self.chunks + other.chunks, bytes: self.bytes + other.bytes }
    }
}

/// How far repair has come: shared with reports, status and the rule for tombstones.
#[derive(Default)]
pub struct Progress {
    state: Mutex<State>,
    pub counters: RepairCounters,
    /// There are hopeless chunks that no shard has been asked about.
    pub doubt: Notify,
}

#[derive(Default)]
pub struct RepairCounters {
    pub pulled_chunks: Counter,
    pub pulled_bytes: Counter,
    pub buried_chunks: Counter,
    pub evicted_chunks: Counter,
}

type Key = (PoolId, u32);

#[derive(Default)]
struct State {
    done: BTreeMap<Key, PgEpoch>,
    /// Groups with a member here that lack no member, by the newest map. `None` before the first map.
    whole: Option<BTreeMap<Key, Mark>>,
    /// Groups with a member here, by the newest map.
    own: BTreeSet<Key>,
    /// What the last comparison found healthy.
    healthy: BTreeMap<Key, Mark>,
    bits: BTreeMap<PoolId, u8>,
    health: NodeHealth,
    /// Chunks without a good copy; and whether a shard names them, once all have been asked.
    hopeless: BTreeMap<ChunkId, Option<bool>>,
    /// When the last finished comparison of everything began.
    compared: Option<MonoTime>,
}

/// What a finding is about: it is void when the group moved, or a member was away meanwhile.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mark {
    epoch: PgEpoch,
    lives: Vec<u32>,
}

impl State {
    fn is_healthy(&self, key: Key) -> bool {
        let now = self.whole.as_ref().and_then(|whole| whole.get(&key));
        now.is_some() && now == self.healthy.get(&key)
    }

    fn hopeless_with(&self, named: Option<bool>) -> impl Iterator<Item = ChunkId> {
        self.hopeless.iter().filter(move |(_, is_named)| **is_named == named).map(|(id, _)| *id)
    }
}

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closed groups of which this node has united what there is.
    pub fn done(&self) -> Vec<PgDone> {
        let line = |((pool, prefix), epoch): (&Key, &PgEpoch)| PgDone {
            pool: u32::from(pool.0),
            prefix: *prefix,
            epoch: epoch.0,
        };
        self.state().done.iter().map(line).collect()
    }

    /// As of this map, which may be newer than the last comparison: what that found then does not count.
    pub fn health(&self, map: &ClusterMap, node: NodeId) -> NodeHealth {
        let groups = plan::groups_of(map, node);
        let state = self.state();
        let is_healthy = |group: &&Group| {
            !group.degraded && !group.closed && state.healthy.get(&group.key()) == Some(&Mark::of(group))
        };
        NodeHealth {
            groups: groups.len() as u64,
            healthy: groups.iter().filter(is_healthy).count() as u64,
            degraded: groups.iter().filter(|group| group.degraded).count() as u64,
            last_copy: groups.iter().filter(|group| group.urgency() == Urgency::LastCopy).count() as u64,
            moving: groups.iter().filter(|group| group.closed).count() as u64,
            lost_chunks: state.hopeless_with(Some(true)).count() as u64,
            lost: state.hopeless_with(Some(true)).take(LOST_NAMED_MAX).collect(),
            unnamed_chunks: state.hopeless_with(Some(false)).count() as u64,
            unasked_chunks: state.hopeless_with(None).count() as u64,
            ..state.health.clone()
        }
    }

    /// Whether this disk had all its chunks, and others had them too, in a comparison that began after `since`.
    pub fn is_whole(&self, map: &ClusterMap, node: NodeId, disk: DiskId, since: MonoTime) -> bool {
        let groups = plan::groups_of(map, node);
        let state = self.state();
        let is_whole = |group: &Group| {
            let is_open = !group.degraded && !group.closed && !group.others.is_empty();
            is_open && state.healthy.get(&group.key()) == Some(&Mark::of(group))
        };
        let mut own = groups.iter().filter(|group| group.own == disk).peekable();
        state.compared.is_some_and(|began| began > since) && own.peek().is_some() && own.all(is_whole)
    }

    /// Chunks without a good copy of which it is not known that a shard names them, at most [`client::NAMED_IDS_MAX`].
    pub fn doubtful(&self) -> Vec<ChunkId> {
        let state = self.state();
        state.hopeless.iter().filter(|(_, named)| **named != Some(true)).map(|(id, _)| *id).collect()
    }

    /// A shard names these chunks, or none does.
    pub fn answer(&self, ids: &[ChunkId], are_named: bool) {
        let mut state = self.state();
        for id in ids {
            if let Some(named) = state.hopeless.get_mut(id) {
                *named = Some(are_named);
            }
        }
    }

    /// Whether no member can bring this chunk back: its group is healthy with all of them, or is none of this node's.
    pub fn may_forget(&self, id: ChunkId) -> bool {
        let state = self.state();
        let Some(bits) = state.bits.get(&id.pool).filter(|_| state.whole.is_some()) else { return false };
        let group = PgId::of_slot(id.pool, *bits, id.slot);
        let key = (group.pool, group.prefix);
        !state.own.contains(&key) || state.is_healthy(key) || plant::is(Plant::ForgetTombstone)
    }
}

/// Lost chunks that are named.
const LOST_NAMED_MAX: usize = 20;

/// How long a node may take to answer from memory, and for a whole chunk.
const PATIENCE: Duration = Duration::from_secs(2);
const CHUNK_PATIENCE: Duration = Duration::from_secs(10);

/// The other nodes as the client reaches them.
pub struct Others(pub Client);

impl Peers for Others {
    fn ask(&self, node: NodeId, ask: Ask) -> BoxFuture<Asked> {
        let client = self.0.clone();
        let patience = if matches!(ask, Ask::GetChunk(_)) { CHUNK_PATIENCE } else { PATIENCE };
        Box::pin(async move { client.ask_peer(node, ask, patience).await })
    }
}
