//! What must hold of a cluster when all trouble is over and all is quiet: it is safe, every node tells the same, and each
//! chunk that metadata names is on the members of its placement group, and nowhere else.

use base::Env;
use base::checksum::Crc64;
use base::env::{Disk, RandomExt};
use base::ids::{ChunkId, DiskId, GROUP_ZERO, Generation, GroupId, NodeId, PoolId};
use base::sim::NetModel;
use client::MapView;
use meta::object::NamedChunk;
use meta::view::View;
use node::offline::KvView;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use store::Engine;
use store::kv::LsmKv;
use tokio::sync::oneshot;

use crate::checks::{QUIET_LONG, named_chunks};
use crate::nemesis::Nemesis;

/// Virtual time in which garbage goes, and what no key names is swept, on all nodes.
const QUIET_CLUSTER: Duration = Duration::from_secs(15);

/// What a stopped node holds.
struct Holding {
    /// By the rows of its own replicas.
    named: BTreeMap<ChunkId, NamedChunk>,
    /// Of each group with a replica here: what is applied, and a digest of its rows.
    states: BTreeMap<GroupId, (u64, u64)>,
    /// Length and CRC-64 of each chunk on each disk.
    chunks: BTreeMap<DiskId, BTreeMap<ChunkId, (u32, u64)>>,
    problems: Vec<String>,
}

impl Nemesis {
    /// After the last trouble.
    pub async fn check_cluster(&self) {
        self.sim.heal();
        self.sim.set_net_model(NetModel::default());
        self.excuses.calm_since_nanos.store(self.sim.now().0, Ordering::Relaxed);
        if !self.is_undisturbed() && self.sim.below(3) == 0 && self.cut_all_power().await.is_err() {
            return;
        }
        if self.await_safe("after all trouble").await.is_err() {
            return;
        }
        // Nothing is excused from here on.
        self.excuses.calm_since_nanos.store(0, Ordering::Relaxed);
        for serving in self.cluster.all_serving() {
            self.check_service(&serving).await;
            self.verifier.read_all(&serving, true).await;
            self.verifier.check_listings(&serving).await;
        }
        self.sim.sleep(if self.ration.tainted().is_some() { QUIET_LONG } else { QUIET_CLUSTER }).await;
        if self.await_safe("when all is quiet").await.is_err() || self.recorder.has_violations() {
            return;
        }
        let replicas = self.check_agreement();
        let Some(map) = self.cluster.all_serving().first().map(|serving| serving.client.map()) else { return };
        crate::domains::crowded(&map.map).into_iter().for_each(|what| self.recorder.violation(what));
        for node in self.cluster.nodes() {
            self.cluster.shut_down(node).await;
        }
        let mut holdings = BTreeMap::new();
        for node in self.cluster.nodes() {
            if let Some(holding) = self.look_through(node).await {
                holdings.insert(node, holding);
            }
        }
        for problem in compare(&holdings, &replicas, &map, self.is_undisturbed()) {
            self.recorder.violation(problem);
        }
    }

    /// All nodes have the same map and the same voters. Answers which nodes hold replicas of shards.
    fn check_agreement(&self) -> Vec<NodeId> {
        let all = self.cluster.all_serving();
        for pair in all.windows(2) {
            let (one, other) = (pair[0].client.map(), pair[1].client.map());
            if one.map != other.map {
                self.recorder.violation(format!(
                    "when all is quiet, node {} has map version {} and node {} version {}{}",
                    pair[0].node,
                    one.version(),
                    pair[1].node,
                    other.version(),
                    if one.version() == other.version() { ", which differ" } else { "" },
                ));
            }
        }
        let mut voters: BTreeMap<u64, (NodeId, Vec<u64>)> = BTreeMap::new();
        let mut replicas = Vec::new();
        for serving in &all {
            let Some(status) = self.cluster.status(serving.node) else { continue };
            // A node without a replica of a group knows none of its voters.
            for group in status.groups.iter().filter(|group| !group.voters.is_empty()) {
                let (first, known) = voters.entry(group.id).or_insert((serving.node, group.voters.clone()));
                if *known != group.voters {
                    self.recorder.violation(format!(
                        "group {} has voters {known:?} on node {first}, {:?} on node {}",
                        group.id, group.voters, serving.node
                    ));
                }
                if group.id != 0 && !replicas.contains(&serving.node) {
                    replicas.push(serving.node);
                }
            }
        }
        replicas
    }

    async fn look_through(&self, node: NodeId) -> Option<Holding> {
        let env = self.sim.env(node);
        let (sender, receiver) = oneshot::channel();
        let disks = self.cluster.chunk_disks(node).into_iter().map(|disk| disk as Arc<dyn Disk>).collect();
        let (task_env, tuning) = (env.clone(), self.plan.tuning());
        env.spawn("look through disks", async move {
            let _ = sender.send(holding(&task_env, disks, tuning).await);
        });
        let found = receiver.await;
        self.sim.kill(node);
        match found {
            Ok(Ok(holding)) => return Some(holding),
            // What rotted and nobody read is not known to be bad.
            Ok(Err(why)) if self.ration.tainted() == Some(node) => {
                self.recorder.note(|| format!("the disks of node {node} cannot be read: {why}"));
                self.recorder.count("rot_found_late", 1);
            }
            Ok(Err(why)) => self.recorder.violation(format!("the disks of node {node} cannot be read: {why}")),
            Err(_) => self.recorder.violation("the check of the disks was cut short".into()),
        }
        None
    }
}

async fn holding(env: &Env, disks: Vec<Arc<dyn Disk>>, tuning: node::Tuning) -> Result<Holding, String> {
    let identity = Engine::read_identity(&disks[0]).await.map_err(|error| error.to_string())?;
    let seed = identity.ok_or("the metadata disk has no identity")?.disk.0;
    let opened = LsmKv::open_read_only(env, disks[0].clone(), seed, tuning.key_value.clone()).await;
    let (kv, _) = opened.map_err(|error| error.to_string())?;
    let named = named_chunks(&*kv)?;
    let states = states(&kv)?;
    let mut holding = Holding { named, states, chunks: BTreeMap::new(), problems: Vec::new() };
    for disk in disks {
        let opened = Engine::open(env, disk, tuning.engine.clone()).await;
        let (engine, report) = opened.map_err(|error| error.to_string())?;
        if report.torn_bytes > 0 {
            holding.problems.push(format!("an orderly shutdown left {report:?}"));
        }
        let mut chunks = BTreeMap::new();
        for stat in engine.inventory(None, PoolId(1), 0..=u32::MAX >> 8, usize::MAX) {
            match engine.get(stat.id, 0..u32::MAX).await {
                Ok(_) => drop(chunks.insert(stat.id, (stat.len, stat.crc64))),
                Err(error) => holding.problems.push(format!("chunk {} cannot be read: {error}", stat.id)),
            }
        }
        holding.chunks.insert(engine.identity().disk, chunks);
        engine.close().await;
    }
    Ok(holding)
}

/// What each group's replica has applied, and a digest over its rows: equal wherever the same is applied.
fn states(kv: &LsmKv) -> Result<BTreeMap<GroupId, (u64, u64)>, String> {
    const ROWS: usize = 1000;
    let view = KvView::over(kv);
    let mut states = BTreeMap::new();
    for group in [GROUP_ZERO, GroupId(1)] {
        let state = meta::group::load(&view, group).map_err(|error| error.to_string())?;
        if state.conf_state.is_empty() {
            continue;
        }
        let own_row = meta::group::state_key(group);
        let mut digest = Crc64::new();
        for (start, end) in meta::group::row_ranges(group, &state) {
            let mut from = start;
            loop {
                let rows = view.scan(&from, &end, ROWS).map_err(|error| error.to_string())?;
                for (key, value) in rows.iter().filter(|(key, _)| *key != own_row) {
                    digest.update(key);
                    digest.update(value);
                }
                let Some((last, _)) = rows.last() else { break };
                from = [last.as_ref(), &[0]].concat().into();
            }
        }
        states.insert(group, (state.applied_index, digest.finish()));
    }
    Ok(states)
}

fn compare_states(holdings: &BTreeMap<NodeId, Holding>) -> Vec<String> {
    let mut known: BTreeMap<(GroupId, u64), (NodeId, u64)> = BTreeMap::new();
    let mut problems = Vec::new();
    for (node, holding) in holdings {
        for (group, (applied, digest)) in &holding.states {
            let (first, expected) = *known.entry((*group, *applied)).or_insert((*node, *digest));
            if expected != *digest {
                problems.push(format!(
                    "the replicas of group {group} on nodes {first} and {node} differ although both have applied entry \
                     {applied}"
                ));
            }
        }
    }
    problems
}

fn floor(map: &MapView, node: NodeId) -> Generation {
    Generation(map.node(node).map_or(0, |row| row.generation_floor))
}

/// `undisturbed`: nothing stood in the way of anything, so that what was given up is gone.
fn compare(holdings: &BTreeMap<NodeId, Holding>, replicas: &[NodeId], map: &MapView, undisturbed: bool) -> Vec<String> {
    let mut problems: Vec<String> = Vec::new();
    for (node, holding) in holdings {
        problems.extend(holding.problems.iter().map(|problem| format!("node {node}: {problem}")));
    }
    problems.extend(compare_states(holdings));
    let mut replicas = replicas.iter().filter(|node| holdings.contains_key(node));
    let Some(first) = replicas.next() else { return vec!["no node has a replica of a shard".into()] };
    let named = &holdings[first].named;
    for other in replicas {
        let theirs = &holdings[other].named;
        let differs = |id: &&ChunkId| named.get(id).map(|name| name.chunk) != theirs.get(id).map(|name| name.chunk);
        for id in named.keys().chain(theirs.keys()).filter(differs) {
            problems.push(format!("chunk {id} is not named alike by the replicas on nodes {first} and {other}"));
        }
    }
    let mut disks: BTreeMap<DiskId, &BTreeMap<ChunkId, (u32, u64)>> = BTreeMap::new();
    for holding in holdings.values() {
        disks.extend(holding.chunks.iter().map(|(disk, chunks)| (*disk, chunks)));
    }
    for (id, name) in named {
        let Some(placement) = map.placement(*id) else {
            problems.push(format!("chunk {id} has no place in the map"));
            continue;
        };
        for member in &placement.members {
            if !holdings.contains_key(&member.node) {
                continue;
            }
            let found = disks.get(&member.disk).and_then(|chunks| chunks.get(id));
            match found {
                Some(_) if name.garbage => problems.push(format!("chunk {id} is garbage on node {}", member.node)),
                Some(stat) if *stat != (name.chunk.len, name.chunk.crc64) => {
                    problems.push(format!("chunk {id} on node {} is {stat:?}, named {:?}", member.node, name.chunk));
                }
                None if !name.garbage => {
                    problems.push(format!("chunk {id} is not on node {}, a member of its group", member.node));
                }
                _ => {}
            }
        }
    }
    for (disk, chunks) in &disks {
        for id in chunks.keys() {
            let is_member = map.placement(*id).is_some_and(|place| place.members.iter().any(|m| m.disk == *disk));
            if !named.contains_key(id) {
                // What a living session stored, and gave up, goes when the session ends.
                if undisturbed || floor(map, id.session.node) > id.session.generation {
                    problems.push(format!("chunk {id} is on disk {disk} and nobody names it"));
                }
            } else if !is_member {
                problems.push(format!("chunk {id} is on disk {disk}, which is no member of its group"));
            }
        }
    }
    problems
}
