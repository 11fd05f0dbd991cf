//! Several nodes of real code in one simulation: how a cluster grows, loses a node and takes it back.

use base::env::Disk;
use base::ids::NodeId;
use base::sim::{Sim, SimNode};
use bytes::Bytes;
use client::Client;
use meta::map::command::{MapCommand, NodeRow, NodeState};
use node::{Config, DiskSpec, EventKind, Healing, Node, Tuning, Verdict};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use store::EngineOptions;

use crate::{bytes_of, get, put};

pub struct Cluster {
    pub sim: Sim,
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Where nodes stand, by id; nowhere in particular when empty.
    pub places: Vec<&'static str>,
    /// Of nodes that are started from now on.
    pub tuning: Box<dyn Fn(NodeId) -> Tuning>,
}

/// What happens every ten minutes happens every few seconds.
pub fn tuning(_: NodeId) -> Tuning {
    let healing = Healing { sweep_interval: Duration::from_secs(5), ..Healing::default() };
    Tuning { healing, ..Tuning::default() }
}

impl Cluster {
    /// Founds a cluster on node 1.
    pub fn found(seed: u64) -> Cluster {
        Cluster::found_with(seed, Box::new(tuning))
    }

    pub fn found_with(seed: u64, tuning: Box<dyn Fn(NodeId) -> Tuning>) -> Cluster {
        let mut cluster = Cluster { sim: Sim::new(seed), nodes: BTreeMap::new(), places: Vec::new(), tuning };
        cluster.start(NodeId(1));
        cluster
    }

    pub fn sim_node(&self, node: NodeId) -> SimNode {
        self.sim.node(node)
    }

    pub fn config(&self, node: NodeId) -> Config {
        let data: Arc<dyn Disk> = self.sim.disk(node, "data");
        let disk: Arc<dyn Disk> = self.sim.disk(node, "disk");
        Config {
            feature_level_max: meta::group::FEATURE_LEVEL,
            env: self.sim_node(node).env(),
            data,
            disks: vec![DiskSpec { disk, size_bytes_max: Some(4 << 30), label: format!("disk of {node}") }],
            locality: self.places.get(node.0 as usize - 1).map_or_else(String::new, |place| (*place).into()),
            advertise: format!("node{node}:9002"),
            region: "us-east-1".into(),
            root: ("root".into(), "secret-secret".into()),
            authority: None,
        }
    }

    pub fn start(&mut self, id: NodeId) {
        let config = self.config(id);
        let started = self.sim.block_on(self.sim_node(id).run(Node::start_tuned(config, (self.tuning)(id))));
        self.nodes.insert(id, Arc::new(started.expect("no crash meanwhile").expect("the node starts")));
    }

    /// Lets a new node in, and starts it.
    pub fn join(&mut self) -> NodeId {
        let (member, node) = self.nodes.last_key_value().expect("somebody is there");
        let (member, client, cluster) = (*member, node.client(), node.cluster());
        let row = NodeRow {
            state: NodeState::Joining as i32,
            address: "somewhere:1".into(),
            feature_level_max: meta::group::FEATURE_LEVEL,
            ..NodeRow::default()
        };
        let reply = self.on(member, async move { client.change_map_checked(MapCommand::SetNode(row)).await });
        let id = NodeId(reply.expect("a node id is allotted").id as u32);
        let contacts: Vec<(NodeId, String)> =
            self.nodes.keys().map(|node| (*node, format!("node{node}:9002"))).collect();
        let data: Arc<dyn Disk> = self.sim.disk(id, "data");
        let _env = self.sim_node(id).env();
        let joined = self.on(id, async move { node::join_identity(&*data, cluster, id, &contacts).await });
        joined.expect("an empty directory joins");
        self.start(id);
        id
    }

    pub fn client(&self, node: NodeId) -> Client {
        self.nodes[&node].client()
    }

    pub fn on<T: Send + 'static>(&self, node: NodeId, task: impl Future<Output = T> + Send + 'static) -> T {
        self.sim.block_on(self.sim_node(node).run(task)).expect("no crash meanwhile")
    }

    /// Lets virtual time pass until `holds`; panics after `at_most`.
    pub fn wait(&self, what: &str, at_most: Duration, holds: impl Fn(&Cluster) -> bool) {
        let start = self.sim.now();
        while !holds(self) {
            assert!(self.sim.now().since(start) < at_most, "{what}: not within {at_most:?}");
            self.sim.run_for(Duration::from_millis(50));
        }
    }

    /// All nodes together say that everything has all its copies.
    pub fn wait_for_safety(&self, asked: NodeId) {
        let start = self.sim.now();
        loop {
            let node = self.nodes[&asked].clone();
            let status = self.on(asked, async move { node.cluster_status().await });
            if status.verdict == Verdict::Safe {
                return;
            }
            let waited = self.sim.now().since(start);
            assert!(waited < Duration::from_secs(120), "not safe after {waited:?}: {:?}", status.reasons);
            self.sim.run_for(Duration::from_millis(200));
        }
    }

    /// Every group has these voters, as each of its replicas sees it.
    pub fn wait_for_voters(&self, nodes: &[u64]) {
        self.wait(&format!("voters {nodes:?}"), Duration::from_secs(60), |cluster| {
            cluster.nodes.iter().filter(|(id, _)| cluster.sim.is_running(**id)).all(|(_, node)| {
                let groups = node.status().groups;
                groups.len() == 2
                    && groups.iter().all(|group| {
                        let mut voters = group.voters.clone();
                        voters.sort_unstable();
                        voters == nodes
                    })
            })
        });
    }
}

#[test]
fn a_cluster_grows_and_each_node_serves_what_was_there() {
    let mut cluster = Cluster::found(1);
    let client = cluster.client(NodeId(1));
    cluster.on(NodeId(1), async move {
        let bucket = client.create_bucket("photos", "root").await.expect("the name is free");
        for i in 0..20u8 {
            put(&client, &bucket, &format!("key-{i}"), bytes_of(3000 * usize::from(i), i)).await.expect("stored");
        }
    });
    for expected in [2, 3] {
        assert_eq!(cluster.join(), NodeId(expected));
    }
    cluster.wait_for_voters(&[1, 2, 3]);
    for id in [1, 2, 3] {
        let client = cluster.client(NodeId(id));
        cluster.on(NodeId(id), async move {
            let bucket = client.bucket("photos").await.expect("the bucket is there");
            for i in 0..20u8 {
                let found = get(&client, &bucket, &format!("key-{i}")).await.expect("the object is there");
                assert!(found == bytes_of(3000 * usize::from(i), i), "object {i} differs on node {id}");
            }
            let more = Bytes::from(format!("from node {id}"));
            put(&client, &bucket, &format!("from-{id}"), more).await.expect("stored");
        });
    }
}

#[test]
fn a_node_that_dies_is_voted_down_and_comes_back() {
    let mut cluster = Cluster::found(2);
    cluster.join();
    cluster.join();
    cluster.wait_for_voters(&[1, 2, 3]);
    for victim in [1, 2, 3] {
        let survivor = NodeId(victim % 3 + 1);
        cluster.sim.crash(NodeId(victim));
        cluster.nodes.remove(&NodeId(victim));
        let client = cluster.client(survivor);
        cluster.on(survivor, async move {
            let name = format!("without-{victim}");
            let bucket = client.create_bucket(&name, "root").await.expect("two of three are enough");
            put(&client, &bucket, "small", bytes_of(100, 1)).await.expect("stored inline");
        });
        cluster.start(NodeId(victim));
        let client = cluster.client(NodeId(victim));
        cluster.on(NodeId(victim), async move {
            let bucket = client.bucket(&format!("without-{victim}")).await.expect("it learned of the bucket");
            assert!(get(&client, &bucket, "small").await.expect("the object is there") == bytes_of(100, 1));
        });
    }
}

#[test]
fn a_survivor_is_recovered_and_what_was_before_stays_out() {
    let mut cluster = Cluster::found(3);
    cluster.join();
    cluster.join();
    cluster.wait_for_voters(&[1, 2, 3]);
    let client = cluster.client(NodeId(1));
    cluster.on(NodeId(1), async move {
        let bucket = client.create_bucket("photos", "root").await.expect("the name is free");
        put(&client, &bucket, "small", bytes_of(100, 1)).await.expect("stored inline");
    });
    for id in [1, 2, 3] {
        cluster.sim.crash(NodeId(id));
        cluster.nodes.remove(&NodeId(id));
    }
    // Nodes 1 and 3 are gone for good.
    let id = NodeId(2);
    let (data, disk): (Arc<dyn Disk>, Arc<dyn Disk>) = (cluster.sim.disk(id, "data"), cluster.sim.disk(id, "disk"));
    let env = cluster.sim_node(id).env();
    for _ in 0..2 {
        let (env, data, disk) = (env.clone(), data.clone(), disk.clone());
        let told = cluster.on(id, async move { node::offline::recover(&env, &*data, disk).await });
        assert_eq!(told.expect("node 2 has whole state").len(), 2, "again is harmless");
    }
    cluster.start(id);
    let client = cluster.client(id);
    cluster.on(id, async move {
        let bucket = client.bucket("photos").await.expect("the bucket is there");
        assert!(get(&client, &bucket, "small").await.expect("the object is there") == bytes_of(100, 1));
        put(&client, &bucket, "more", bytes_of(100, 2)).await.expect("one voter is enough");
    });
    // Node 1 was not gone after all. It knows only the cluster before.
    let config = cluster.config(NodeId(1));
    let node = cluster.sim.block_on(cluster.sim_node(NodeId(1)).run(Node::start(config)));
    if let Ok(Ok(node)) = node {
        let why = cluster.on(NodeId(1), async move { node.ended().await });
        assert!(why.contains("recovered without this node"), "{why}");
    }
}

/// A node had come back and been given the state of a shard; the others were destroyed before it flushed that state
/// again. It had everything, and `recover` said that it had no whole state. Found by the simulator.
#[test]
fn a_survivor_whose_snapshot_was_not_flushed_again_is_recovered() {
    let mut cluster = Cluster::found(5);
    cluster.join();
    cluster.join();
    cluster.wait_for_voters(&[1, 2, 3]);
    let client = cluster.client(NodeId(1));
    cluster.on(NodeId(1), async move {
        let bucket = client.create_bucket("photos", "root").await.expect("the name is free");
        put(&client, &bucket, "small", bytes_of(100, 1)).await.expect("stored inline");
    });
    for id in [1, 2, 3] {
        cluster.sim.crash(NodeId(id));
        cluster.nodes.remove(&NodeId(id));
    }
    let id = NodeId(2);
    let (data, disk): (Arc<dyn Disk>, Arc<dyn Disk>) = (cluster.sim.disk(id, "data"), cluster.sim.disk(id, "disk"));
    let env = cluster.sim_node(id).env();
    let told = cluster.on(id, async move {
        mark_as_just_installed(&env, disk.clone()).await;
        node::offline::recover(&env, &*data, disk).await
    });
    assert_eq!(told.expect("node 2 has whole state").len(), 2);
    cluster.start(id);
    let client = cluster.client(id);
    cluster.on(id, async move {
        let bucket = client.bucket("photos").await.expect("the bucket is there");
        assert!(get(&client, &bucket, "small").await.expect("the object is there") == bytes_of(100, 1));
    });
}

/// Leaves the rows of both groups as they are right after a snapshot.
async fn mark_as_just_installed(env: &base::Env, disk: Arc<dyn Disk>) {
    let identity = store::Engine::read_identity(&disk).await.expect("readable").expect("a node has been here");
    let opened = store::kv::LsmKv::open(env, disk, identity.disk.0, store::kv::KvOptions::default()).await;
    let (kv, _) = opened.expect("it opens");
    for group in [base::ids::GROUP_ZERO, base::ids::GroupId(1)] {
        let state = meta::group::load(&node::offline::KvView::over(&*kv), group).expect("whole");
        let mark = match meta::group::mark(group, &state, meta::group::Install::LogDue) {
            meta::view::Change::Put { key, value } => store::kv::Change::Put { key, value },
            meta::view::Change::Delete { .. } => unreachable!("a mark is a row"),
        };
        store::kv::Kv::commit(&*kv, vec![mark]).expect("committed");
    }
    store::kv::Kv::flush(&*kv).await.expect("flushed");
    kv.close().await;
}

const OBJECTS: u32 = 60;

fn object(i: u32) -> Bytes {
    bytes_of((i as usize * 7919) % 70_000, i as u8)
}

/// Every object through the gateway of every running node.
fn verify(cluster: &Cluster) {
    for id in cluster.nodes.keys().copied() {
        let client = cluster.client(id);
        cluster.on(id, async move {
            let bucket = client.bucket("photos").await.expect("the bucket is there");
            for i in 0..OBJECTS {
                let found = get(&client, &bucket, &format!("key-{i}")).await.expect("the object is there");
                assert!(found == object(i), "object {i} differs through node {id}");
            }
        });
    }
}

#[test]
fn data_of_one_node_reaches_three_copies_and_outlives_it() {
    let mut cluster = Cluster::found(4);
    let client = cluster.client(NodeId(1));
    cluster.on(NodeId(1), async move {
        let bucket = client.create_bucket("photos", "root").await.expect("the name is free");
        for i in 0..OBJECTS {
            put(&client, &bucket, &format!("key-{i}"), object(i)).await.expect("stored");
        }
    });
    cluster.join();
    cluster.join();
    cluster.wait_for_safety(NodeId(2));
    verify(&cluster);
    // The first node and all its disks are destroyed.
    cluster.sim.crash(NodeId(1));
    cluster.nodes.remove(&NodeId(1));
    verify(&cluster);
    cluster.sim.run_for(Duration::from_secs(3));
    let client = cluster.client(NodeId(2));
    cluster.on(NodeId(2), async move { client.remove_node(NodeId(1), true).await }).expect("a lost node may go");
    assert_eq!(cluster.join(), NodeId(4));
    cluster.wait_for_safety(NodeId(3));
    verify(&cluster);
    cluster.wait_for_voters(&[2, 3, 4]);
}

/// Objects of three chunks or inside the commit, through one node; how long the slowest took.
fn slowest_put(cluster: &Cluster, via: NodeId, bucket: &'static str, count: u32) -> Duration {
    let (client, env) = (cluster.client(via), cluster.sim.env(via));
    cluster.on(via, async move {
        let bucket = match client.bucket(bucket).await {
            Ok(bucket) => bucket,
            Err(_) => client.create_bucket(bucket, "root").await.expect("the name is free"),
        };
        let mut slowest = Duration::ZERO;
        for i in 0..count {
            let began = env.now();
            let size = if i % 2 == 0 { 100 } else { 9000 };
            put(&client, &bucket, &format!("key-{i}"), bytes_of(size, i as u8)).await.expect("stored");
            slowest = slowest.max(env.now().since(began));
        }
        slowest
    })
}

fn three(seed: u64) -> Cluster {
    three_with(seed, Box::new(tuning))
}

pub fn three_with(seed: u64, tuning: Box<dyn Fn(NodeId) -> Tuning>) -> Cluster {
    let mut cluster = Cluster::found_with(seed, tuning);
    cluster.join();
    cluster.join();
    cluster.wait_for_voters(&[1, 2, 3]);
    cluster.wait_for_safety(NodeId(1));
    cluster
}

pub fn state_of(cluster: &Cluster, asked: NodeId, node: NodeId) -> NodeState {
    let map = cluster.client(asked).map();
    map.node(node).map_or(NodeState::Removed, NodeRow::state)
}

/// Two nodes do not hear each other, and both hear the third: one of the two goes, the others serve, and the one is back when
/// the link is.
#[test]
fn a_broken_link_between_two_nodes_stalls_nobody() {
    for (seed, one_way) in [(21, false), (22, true), (23, false)] {
        let cluster = three(seed);
        let leader = cluster.nodes[&NodeId(1)].status().groups[0].leader as u32;
        let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).map(NodeId).collect();
        cluster.sim.cut(others[0], others[1]);
        if !one_way {
            cluster.sim.cut(others[1], others[0]);
        }
        let took = slowest_put(&cluster, NodeId(leader), "photos", 20);
        assert!(took < Duration::from_secs(3), "seed {seed}: {took:?}");
        cluster.sim.run_for(Duration::from_secs(5));
        let states: Vec<NodeState> = others.iter().map(|id| state_of(&cluster, NodeId(leader), *id)).collect();
        assert_eq!(states.iter().filter(|state| **state == NodeState::Down).count(), 1, "{states:?}");
        let took = slowest_put(&cluster, NodeId(leader), "photos", 20);
        assert!(took < Duration::from_millis(500), "it stays away while the link is broken: {took:?}");
        cluster.sim.heal();
        cluster.wait_for_safety(NodeId(leader));
        assert!(others.iter().all(|id| state_of(&cluster, NodeId(leader), *id) == NodeState::Up));
    }
}

/// As above, and the two lead the map's group and the objects': the one that is voted out learns it from nobody, since only
/// the other would tell it, and leads on. The third, which knows, takes over.
#[test]
fn a_leader_that_does_not_know_it_is_out_is_replaced() {
    for (seed, one_way) in [(28, None), (29, Some(true)), (30, Some(false))] {
        let cluster = three(seed);
        let leader_of =
            |cluster: &Cluster, group: usize| cluster.nodes[&NodeId(1)].status().groups[group].leader as u32;
        cluster.wait("the two groups to have different leaders", Duration::from_secs(60), |cluster| {
            leader_of(cluster, 0) != leader_of(cluster, 1)
        });
        let (map, objects) = (NodeId(leader_of(&cluster, 0)), NodeId(leader_of(&cluster, 1)));
        let third = (1..=3).map(NodeId).find(|node| ![map, objects].contains(node)).expect("three nodes");
        for (from, to, this_way) in [(map, objects, true), (objects, map, false)] {
            if one_way.is_none_or(|one_way| one_way == this_way) {
                cluster.sim.cut(from, to);
            }
        }
        let took = slowest_put(&cluster, third, "photos", 20);
        assert!(took < Duration::from_secs(3), "seed {seed}: {took:?}");
        assert_eq!(state_of(&cluster, third, objects), NodeState::Down);
        cluster.sim.heal();
        cluster.wait_for_safety(third);
        assert_eq!(state_of(&cluster, third, objects), NodeState::Up);
    }
}

/// Two of three are gone: the third refuses within seconds and says why; nothing hangs for half a minute.
#[test]
fn without_a_majority_writes_are_refused_within_seconds() {
    let mut cluster = three(24);
    let client = cluster.client(NodeId(1));
    cluster.on(NodeId(1), async move { client.create_bucket("photos", "root").await }).expect("the name is free");
    for id in [2, 3] {
        cluster.sim.crash(NodeId(id));
        cluster.nodes.remove(&NodeId(id));
    }
    let (client, env) = (cluster.client(NodeId(1)), cluster.sim.env(NodeId(1)));
    for size in [100, 9000] {
        let (client, env) = (client.clone(), env.clone());
        let (refused, took) = cluster.on(NodeId(1), async move {
            let began = env.now();
            let bucket = client.bucket("photos").await;
            let refused = match bucket {
                Ok(bucket) => put(&client, &bucket, "key", bytes_of(size, 1)).await.map(|_| ()),
                Err(error) => Err(error),
            };
            (refused, env.now().since(began))
        });
        let is_honest = matches!(refused, Err(client::Error::Unavailable(_) | client::Error::OutcomeUnknown(_)));
        assert!(is_honest && took < Duration::from_secs(8), "{size} bytes: {refused:?} after {took:?}");
    }
}

/// A disk that answers nobody any more, on a node that is heard well: nobody waits for it for long, and it is back when
/// the disk is.
#[test]
fn a_disk_that_hangs_takes_its_node_out_and_no_more() {
    let cluster = three(25);
    let leader = cluster.nodes[&NodeId(1)].status().groups[0].leader as u32;
    let sick = NodeId(leader % 3 + 1);
    let disk = cluster.sim.disk(sick, "disk");
    disk.set_slowness(1_000_000);
    let took = slowest_put(&cluster, NodeId(leader), "photos", 10);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(state_of(&cluster, NodeId(leader), sick), NodeState::Down);
    let took = slowest_put(&cluster, NodeId(leader), "photos", 10);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// The same where the node leads the map's group or the objects': others lead, though it is heard as well as ever.
#[test]
fn a_leader_whose_disk_hangs_or_is_full_leads_no_more() {
    // Nothing is set aside for the logs: the disk has no room for them either.
    let engine = EngineOptions { ahead_bytes: 0, ..EngineOptions::default() };
    let tuning = move |node| Tuning { engine: engine.clone(), ..tuning(node) };
    for (seed, group, hangs) in [(31, 0, true), (32, 1, true), (33, 0, false), (34, 1, false)] {
        let cluster = three_with(seed, Box::new(tuning.clone()));
        let leader_of =
            |cluster: &Cluster, group: usize| cluster.nodes[&NodeId(1)].status().groups[group].leader as u32;
        cluster.wait("the two groups to have different leaders", Duration::from_secs(60), |cluster| {
            leader_of(cluster, 0) != leader_of(cluster, 1)
        });
        let sick = NodeId(leader_of(&cluster, group));
        let well = NodeId(sick.0 % 3 + 1);
        let disk = cluster.sim.disk(sick, "disk");
        match hangs {
            true => disk.hang_for(Duration::from_secs(30)),
            false => disk.set_room(0),
        }
        let took = slowest_put(&cluster, well, "photos", 200);
        assert!(took < Duration::from_secs(10), "seed {seed}: {took:?}");
        cluster.sim.run_for(Duration::from_secs(5));
        let took = slowest_put(&cluster, well, "photos", 10);
        assert!(took < Duration::from_secs(1), "seed {seed}: {took:?}");
        disk.set_unlimited();
        cluster.wait_for_safety(well);
        assert_eq!(state_of(&cluster, well, sick), NodeState::Up, "seed {seed}");
    }
}

/// What fills the disk of a node's metadata fills that of its own directory, too, where the generation is to be written under which it comes back.
#[test]
fn a_node_without_room_for_its_generation_waits_for_it() {
    let cluster = three(35);
    let (sick, well) = (NodeId(3), NodeId(1));
    let data = cluster.sim.disk(sick, "data");
    data.set_room(0);
    cluster.sim.pause(sick);
    cluster.wait("the silent node to be voted down", Duration::from_secs(10), |cluster| {
        state_of(cluster, well, sick) == NodeState::Down
    });
    cluster.sim.resume(sick);
    cluster.sim.run_for(Duration::from_secs(10));
    assert_eq!(state_of(&cluster, well, sick), NodeState::Down);
    data.set_unlimited();
    cluster.wait("the node to come back", Duration::from_secs(5), |cluster| {
        state_of(cluster, well, sick) == NodeState::Up
    });
    cluster.wait_for_safety(well);
}

/// A disk that is only slow: others lead within seconds, everything goes on, and when it is as fast as before it is used
/// as before.
#[test]
fn a_slow_disk_loses_leadership_and_gets_it_back() {
    let cluster = three(27);
    let leader_of = |cluster: &Cluster, group: usize| cluster.nodes[&NodeId(1)].status().groups[group].leader as u32;
    let client = cluster.client(NodeId(1));
    let env = cluster.sim_node(NodeId(1)).env();
    let task_env = env.clone();
    env.spawn("load", async move {
        let env = task_env;
        let bucket = client.create_bucket("photos", "root").await.expect("the name is free");
        for i in 0u32.. {
            let _ = put(&client, &bucket, &format!("load-{}", i % 50), bytes_of(5000, i as u8)).await;
            env.sleep(Duration::from_millis(20)).await;
        }
    });
    cluster.sim.run_for(Duration::from_secs(8));
    let sick = leader_of(&cluster, 1);
    let disk = cluster.sim.disk(NodeId(sick), "disk");
    disk.set_slowness(1000);
    let leads_nothing = |cluster: &Cluster| (0..2).all(|group| leader_of(cluster, group) != sick);
    let is_slow = |cluster: &Cluster| cluster.client(NodeId(1)).map().map.disks.iter().any(|row| row.slow);
    let is_found = |cluster: &Cluster| leads_nothing(cluster) && is_slow(cluster);
    cluster.wait("leadership moves, and the disk is known", Duration::from_secs(8), is_found);
    let asked = cluster.nodes[&NodeId(1)].clone();
    let status = cluster.on(NodeId(1), async move { asked.cluster_status().await });
    let states: Vec<&str> = status.nodes.iter().map(|node| node.disks[0].state.as_str()).collect();
    assert_eq!(states.iter().filter(|state| **state == "slow").count(), 1, "{states:?}");
    assert!(status.doing.iter().any(|line| line.contains("slower than its peers")), "{:?}", status.doing);
    assert_eq!(state_of(&cluster, NodeId(1), NodeId(sick)), NodeState::Up, "it is not voted down");
    cluster.sim.run_for(Duration::from_secs(40));
    assert!(leads_nothing(&cluster), "it stays so while it is slow");
    disk.set_slowness(1);
    cluster.wait("it leads again", Duration::from_secs(60), |cluster| !leads_nothing(cluster));
}

/// Cut off for so long that it was given up, and its replica of group 0 taken away: nobody sends it the map any more. It comes
/// back all the same, without a restart.
#[test]
fn a_node_that_was_lost_and_is_no_member_of_group_zero_comes_back() {
    // The fourth node is a learner. A voter's vote is taken over by it.
    for (seed, cut) in [(28, 4), (29, 2)] {
        let with_haste = |node| {
            let healing = Healing { lost_after: Duration::from_secs(5), ..tuning(node).healing };
            Tuning { healing, ..tuning(node) }
        };
        let mut cluster = Cluster::found_with(seed, Box::new(with_haste));
        cluster.join();
        cluster.join();
        cluster.wait_for_voters(&[1, 2, 3]);
        cluster.join();
        cluster.wait_for_safety(NodeId(1));
        let others = [1, 2, 3, 4].into_iter().filter(|id| *id != cut).map(NodeId);
        for other in others {
            cluster.sim.cut(NodeId(cut), other);
            cluster.sim.cut(other, NodeId(cut));
        }
        cluster.wait("it is given up", Duration::from_secs(30), |cluster| {
            let votes = cluster.nodes[&NodeId(1)].status().groups[0].voters.contains(&u64::from(cut));
            state_of(cluster, NodeId(1), NodeId(cut)) == NodeState::Lost && !votes
        });
        cluster.sim.run_for(Duration::from_secs(3));
        cluster.sim.heal();
        cluster.wait("it is back", Duration::from_secs(20), |cluster| {
            state_of(cluster, NodeId(1), NodeId(cut)) == NodeState::Up
        });
        cluster.wait_for_safety(NodeId(cut));
        assert!(slowest_put(&cluster, NodeId(cut), "photos", 4) < Duration::from_secs(1), "it serves its clients");
    }
}

/// Copies are parted by zone as zones come, metadata too; what happened can be read afterwards.
#[test]
fn copies_stand_in_three_zones_and_the_timeline_tells_how() {
    let mut cluster = Cluster::found(26);
    cluster.places = vec!["zone=a", "zone=a", "zone=b", "zone=b", "zone=c"];
    // The founder has started without a place.
    cluster.sim.kill(NodeId(1));
    cluster.nodes.clear();
    cluster.start(NodeId(1));
    for _ in 2..=5 {
        cluster.join();
    }
    cluster.wait_for_safety(NodeId(1));
    slowest_put(&cluster, NodeId(2), "photos", 10);
    cluster.wait("three zones", Duration::from_secs(60), |cluster| {
        let map = cluster.client(NodeId(1)).map();
        let zone = |disk: &Bytes| {
            let node = map.map.disks.iter().find(|row| row.id == disk).map_or(0, |row| row.node);
            map.node(NodeId(node)).map(|row| row.locality.clone())
        };
        map.map.pgs.iter().all(|pg| {
            let zones: std::collections::BTreeSet<_> = pg.members.iter().map(zone).collect();
            !pg.closed && pg.members.len() == 3 && zones.len() == 3
        })
    });
    cluster.sim.crash(NodeId(4));
    cluster.nodes.remove(&NodeId(4));
    cluster.sim.run_for(Duration::from_secs(3));
    let node = cluster.nodes[&NodeId(1)].clone();
    let events = cluster.on(NodeId(1), async move { node.cluster_events().await });
    let about = |kind| events.iter().find(|event| event.kind() == kind && event.about == 4);
    let (suspected, fenced) = (about(EventKind::Suspected), about(EventKind::Fenced));
    let (suspected, fenced) = (suspected.expect("it is noticed"), fenced.expect("it is voted out"));
    assert!(fenced.wall_ms >= suspected.wall_ms && fenced.wall_ms - suspected.wall_ms < 1000, "{events:?}");
    assert!(suspected.seen_by.len() > 1, "all who are left have noticed: {suspected:?}");
    for kind in [EventKind::Moving, EventKind::Moved, EventKind::CopiesRaised, EventKind::Elected, EventKind::Settled] {
        assert!(events.iter().any(|event| event.kind() == kind), "{kind:?} in {events:?}");
    }
}
