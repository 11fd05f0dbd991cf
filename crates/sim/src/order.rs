//! Two of five nodes are destroyed at once: of some chunks one copy is left, of others two. Whoever makes copies again begins
//! with the last ones: one more loss would be their end. Judged by what the survivors' disks hold and by the map that each
//! acts by; in which order anything was meant to be done is not asked.

use base::env::{MonoTime, RandomExt};
use base::ids::{ChunkId, NodeId, PgId, PoolId};
use futures_util::future::{Either, join_all, select};
use meta::map::command::{ClusterMap, DiskRow, NodeState, PgRow};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use crate::nemesis::{Nemesis, Refused};

const POOL: PoolId = PoolId(1);
/// Versions of every key beforehand, each a chunk: several of them in most placement groups' neighbourhoods.
const ROUNDS: usize = 10;
/// How much slower disks are, so that making copies takes long enough to see an order in it.
const SLOWNESS: u64 = 200;
/// How closely one looks.
const LOOK: Duration = Duration::from_millis(5);
/// A map that not all have yet is waited for.
const GRACE: Duration = Duration::from_secs(1);
/// What was under way when a node learnt of last copies may come to its end, on slow disks, and while it yields to users:
/// so many chunks at most.
const UNDER_WAY_MAX: u64 = 8;

/// What one survivor was seen to do.
#[derive(Default)]
struct Seen {
    held: BTreeSet<ChunkId>,
    /// Since when it has known of last copies that it lacks.
    waiting_since: Option<MonoTime>,
    /// Of other chunks, so many have come since then.
    others: u64,
}

impl Nemesis {
    pub async fn lose_two(&self) -> Result<(), Refused> {
        self.until_set_up().await;
        let Some(serving) = self.cluster.all_serving().first().cloned() else { return Ok(()) };
        for _ in 0..ROUNDS {
            self.verifier.add_versions(&serving).await;
        }
        self.await_safe("before two nodes are destroyed").await?;
        let Some((one, other)) = self.draw_pair() else { return Ok(()) };
        self.recorder.story("two of five nodes are destroyed");
        self.recorder
            .note(|| format!("NEMESIS nodes {one} and {other} are destroyed, and disks without metadata are slow"));
        let copies = self.copies_without(&[one, other]);
        self.ration.strike(one, self.plan.nodes);
        self.ration.strike(other, self.plan.nodes);
        self.cluster.crash(one).await;
        self.cluster.crash(other).await;
        for gone in [one, other] {
            self.cluster.disks(gone).iter().for_each(|disk| disk.erase());
        }
        // Those with metadata stay as they are: who leads, and who is there, is not the question.
        let slow = |factor| {
            let nodes = self.cluster.nodes().into_iter();
            nodes.for_each(|node| self.cluster.chunk_disks(node)[1].set_slowness(factor));
        };
        slow(SLOWNESS);
        let repaired = async {
            self.remove(one).await?;
            self.remove(other).await?;
            self.ration.mend(one);
            self.ration.mend(other);
            self.await_safe("once the copies are made again").await
        };
        let repaired = match select(pin!(repaired), pin!(self.watch_order(&copies))).await {
            Either::Left((repaired, _)) => repaired,
            Either::Right(((), repaired)) => repaired.await,
        };
        slow(1);
        repaired?;
        join_all((0..2).map(|_| self.join())).await.into_iter().collect::<Result<(), Refused>>()?;
        self.await_safe("after nodes have joined in their place").await
    }

    /// Two nodes that are no majority of any group.
    fn draw_pair(&self) -> Option<(NodeId, NodeId)> {
        let nodes = self.cluster.nodes();
        let voters: Vec<Vec<u64>> = self.cluster.status(nodes[0])?.groups.iter().map(|it| it.voters.clone()).collect();
        let pairs =
            nodes.iter().flat_map(|one| nodes.iter().filter(move |other| one < other).map(move |it| (*one, *it)));
        let is_minority = |(one, other): &(NodeId, NodeId)| {
            let gone =
                |group: &Vec<u64>| group.iter().filter(|it| [one.0, other.0].map(u64::from).contains(it)).count();
            voters.iter().all(|group| gone(group) <= group.len().saturating_sub(1) / 2)
        };
        let mut pairs: Vec<(NodeId, NodeId)> = pairs.filter(is_minority).collect();
        (!pairs.is_empty()).then(|| pairs.swap_remove(self.sim.below(pairs.len() as u64) as usize))
    }

    /// Of each chunk: how many nodes hold it, but for these.
    fn copies_without(&self, gone: &[NodeId]) -> BTreeMap<ChunkId, usize> {
        let mut copies = BTreeMap::new();
        for node in self.cluster.nodes().into_iter().filter(|node| !gone.contains(node)) {
            for id in self.cluster.held_chunks(node) {
                *copies.entry(id).or_insert(0) += 1;
            }
        }
        copies
    }

    /// Never ends.
    async fn watch_order(&self, copies: &BTreeMap<ChunkId, usize>) {
        let mut seen: BTreeMap<NodeId, Seen> = BTreeMap::new();
        loop {
            let mut held = BTreeMap::new();
            for node in self.cluster.nodes().into_iter().filter(|node| self.cluster.is_serving(*node)) {
                held.insert(node, self.cluster.held_chunks(node));
            }
            for (node, now_held) in &held {
                let Some(map) = self.cluster.own_map(*node) else { continue };
                let due = due_of(&map, *node);
                let lacks_last = |id: &ChunkId| {
                    // Of those that users have deleted since, no copy is left.
                    copies[id] == 1 && due.get(id, &map) == Some(1) && held.values().any(|held| held.contains(id))
                };
                let waits = copies.keys().any(|id| !now_held.contains(id) && lacks_last(id));
                let state = seen.entry(*node).or_insert_with(|| Seen { held: now_held.clone(), ..Seen::default() });
                let now = self.sim.now();
                let since = waits.then(|| *state.waiting_since.get_or_insert(now));
                state.waiting_since = since;
                let is_other = |id: &&ChunkId| {
                    copies.get(id).is_some_and(|copies| *copies > 1) && due.get(id, &map).is_some_and(|it| it > 1)
                };
                let pulled = now_held.difference(&state.held).filter(is_other).count() as u64;
                self.recorder.count("pulled_with_copies_left", pulled);
                if waits {
                    self.recorder.count("looks_at_waiting_last_copies", 1);
                }
                let is_late = since.is_some_and(|since| now.since(since) > GRACE);
                state.others = if is_late { state.others + pulled } else { 0 };
                if pulled > 0 && state.others > UNDER_WAY_MAX {
                    self.recorder.violation(format!(
                        "node {node} has pulled {} chunks of which two copies are left since it knows of others that it \
                         lacks and of which one is left",
                        state.others
                    ));
                }
                state.held.clone_from(now_held);
            }
            self.sim.sleep(LOOK).await;
        }
    }
}

/// Groups that a node has to unite: in how many places that serve each of them was.
struct Due(BTreeMap<PgId, usize>);

impl Due {
    fn get(&self, id: &ChunkId, map: &ClusterMap) -> Option<usize> {
        self.0.get(&PgId::of_slot(id.pool, bits_of(map), id.slot)).copied()
    }
}

fn bits_of(map: &ClusterMap) -> u8 {
    map.pools.iter().find(|row| row.id == u32::from(POOL.0)).map_or(0, |row| row.pg_bits.min(24) as u8)
}

fn due_of(map: &ClusterMap, node: NodeId) -> Due {
    let node_of: BTreeMap<&[u8], u32> = map.disks.iter().map(|disk: &DiskRow| (disk.id.as_ref(), disk.node)).collect();
    let serving: BTreeSet<u32> = map
        .nodes
        .iter()
        .filter(|row| matches!(row.state(), NodeState::Up | NodeState::Draining))
        .map(|row| row.id)
        .collect();
    let on = |disk: &bytes::Bytes| node_of.get(disk.as_ref()).copied().unwrap_or(0);
    let awaited: BTreeSet<u32> =
        map.nodes.iter().filter(|row| row.state() == NodeState::Down).map(|row| row.id).collect();
    let is_due = |row: &&PgRow| {
        // Who may come back with what only it has is waited for.
        let waits = row.members.iter().chain(&row.members_before).any(|disk| awaited.contains(&on(disk)));
        let is_own = row.members.iter().any(|disk| on(disk) == node.0);
        row.closed && row.pool == u32::from(POOL.0) && is_own && !waits
    };
    let line = |row: &PgRow| {
        let left = row.members_before.iter().filter(|disk| serving.contains(&on(disk))).count();
        (PgId { pool: POOL, bits: bits_of(map), prefix: row.prefix }, left)
    };
    Due(map.pgs.iter().filter(is_due).map(line).collect())
}
