//! The nodes under test: started, crashed and started again on the same simulated disks, and joined to each other.

use base::Env;
use base::env::Disk;
use base::env::RandomExt;
use base::ids::{ChunkId, ClusterId, Generation, GroupId, NodeId, PoolId, Term};
use base::sim::{Crashed, SimDisk, SimHandle};
use client::Client;
use meta::map::command::{ClusterMap, MapCommand, NodeRow, NodeState, SetNodeState};
use node::{Config, DiskSpec, Node, Status};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

use crate::plan::Plan;
use crate::recorder::Recorder;

/// The node that makes the cluster; the others join it.
pub const FOUNDER: NodeId = NodeId(1);
pub const OWNER: &str = "root";

/// The group of the one object shard.
pub const SHARD: GroupId = GroupId(1);

/// Virtual time within which a start must end, one way or the other.
const START_MAX: Duration = Duration::from_secs(120);

/// Metrics of the product that are added up over all lives of the node.
const GATHERED: [(&str, &str); 8] = [
    ("henge_metadata_flushes_total", "key_value_flushes"),
    ("henge_garbage_chunks_total", "garbage_chunks"),
    ("henge_orphan_chunks_total", "orphan_chunks"),
    ("henge_store_batches_total", "batches"),
    ("henge_store_compacted_bytes_total", "compacted_bytes"),
    ("henge_store_scrub_passes_total", "scrub_passes"),
    ("henge_store_conflicts_total", "conflicts"),
    ("henge_store_damaged_total", "records_damaged"),
];

/// Nothing came back. What was asked for may have been done, or may still be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoAnswer {
    /// The node crashed meanwhile.
    Crashed,
    /// The client lost its patience; the node, for all it knows, is still at it.
    Late,
}

/// One life of a node, as its clients see it.
#[derive(Clone)]
pub struct Serving {
    pub node: NodeId,
    pub client: Client,
    env: Env,
    sim: SimHandle,
    /// How long a client waits before it goes to another node, where there is one.
    patience: Option<Duration>,
    /// The last client that asked had to give up: others are asked first, until an answer comes after all.
    is_silent: Arc<AtomicBool>,
}

impl Serving {
    /// The same for a client that waits for as long as it takes.
    pub fn patient(&self) -> Serving {
        Serving { patience: None, ..self.clone() }
    }

    /// Runs `task` within the node: it dies with it.
    pub async fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Result<T, NoAnswer> {
        let (sender, receiver) = oneshot::channel();
        let is_silent = self.is_silent.clone();
        self.env.spawn("client", async move {
            let done = task.await;
            is_silent.store(false, Ordering::Relaxed);
            // Nobody may be waiting for the result any more.
            let _ = sender.send(done);
        });
        let Some(patience) = self.patience else { return receiver.await.map_err(|_| NoAnswer::Crashed) };
        tokio::select! {
            biased;
            answer = receiver => answer.map_err(|_| NoAnswer::Crashed),
            () = self.sim.sleep(patience) => {
                self.is_silent.store(true, Ordering::Relaxed);
                Err(NoAnswer::Late)
            }
        }
    }
}

/// Why a start did not lead to a serving node.
#[derive(Debug)]
pub enum StartFailure {
    Crashed,
    /// The node says no, and why.
    Refused(String),
    Late,
}

#[derive(Clone)]
pub struct Cluster {
    pub sim: SimHandle,
    plan: Arc<Plan>,
    recorder: Recorder,
    shared: Arc<Mutex<Shared>>,
    /// Counts starts and ends of lives.
    changes: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Shared {
    members: BTreeMap<NodeId, Member>,
    /// Those that are to be emptied and to go.
    leaving: BTreeSet<NodeId>,
    recoveries: u64,
    /// Where another version is played than the plan's.
    feature_levels: BTreeMap<NodeId, u32>,
}

/// A node that belongs to the cluster, running or not.
#[derive(Default)]
struct Member {
    /// Processes that it has had.
    starts: u64,
    node: Option<Arc<Node>>,
    serving: Option<Serving>,
}

impl Cluster {
    pub fn new(sim: SimHandle, plan: Arc<Plan>, recorder: Recorder) -> Cluster {
        let founder = BTreeMap::from([(FOUNDER, Member::default())]);
        let shared = Arc::new(Mutex::new(Shared { members: founder, ..Shared::default() }));
        Cluster { sim, plan, recorder, shared, changes: Arc::new(watch::Sender::new(0)) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `change` to a member, and tells those who wait for one.
    fn change<T>(&self, node: NodeId, change: impl FnOnce(&mut Member) -> T) -> T {
        let out = change(self.shared().members.entry(node).or_default());
        self.changes.send_modify(|changes| *changes += 1);
        out
    }

    /// All nodes that belong to the cluster, running or not.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.shared().members.keys().copied().collect()
    }

    /// All disks of a node, the home directory first, then the one with the metadata.
    pub fn disks(&self, node: NodeId) -> Vec<Arc<SimDisk>> {
        let names = std::iter::once("data".to_string()).chain((0..self.plan.disks).map(disk_name));
        names.map(|name| self.sim.disk(node, &name)).collect()
    }

    /// The disks that hold chunks; the first holds the metadata too.
    pub fn chunk_disks(&self, node: NodeId) -> Vec<Arc<SimDisk>> {
        self.disks(node).split_off(1)
    }

    fn config(&self, node: NodeId, env: Env) -> Config {
        let spec = |disk: Arc<SimDisk>| {
            let label = disk.name().to_string();
            DiskSpec { disk, size_bytes_max: Some(self.plan.disk_bytes), label }
        };
        let data: Arc<dyn Disk> = self.sim.disk(node, "data");
        Config {
            env,
            data,
            disks: self.chunk_disks(node).into_iter().map(spec).collect(),
            locality: self.plan.profile.locality(node),
            advertise: address(node),
            region: "us-east-1".into(),
            root: (OWNER.into(), "not-a-secret".into()),
            authority: None,
            feature_level_max: self.feature_level_max(node),
        }
    }

    /// From its next start on, the node is of the version that knows this feature level.
    pub fn set_feature_level(&self, node: NodeId, level: u32) {
        self.shared().feature_levels.insert(node, level);
    }

    fn feature_level_max(&self, node: NodeId) -> u32 {
        self.shared().feature_levels.get(&node).copied().unwrap_or(self.plan.feature_level)
    }

    /// Of all nodes that run: the feature levels of the map and of a shard, as far as they know.
    pub fn feature_levels(&self, shard: GroupId) -> Vec<(NodeId, u32, u32)> {
        let shared = self.shared();
        let running = shared.members.iter().filter_map(|(id, member)| Some((*id, member.node.as_ref()?)));
        let levels = |(id, node): (NodeId, &Arc<Node>)| {
            Some((id, node.client().map().map.feature_level, node.feature_level(shard)?))
        };
        running.filter_map(levels).collect()
    }

    /// Starts a node, which must not run.
    pub async fn start(&self, id: NodeId) -> Result<(), StartFailure> {
        assert!(!self.sim.is_running(id), "a node is started once at a time");
        let env = self.sim.env(id);
        self.recorder.note(|| format!("node {id} starts"));
        self.shared().members.entry(id).or_default().starts += 1;
        let (config, tuning) = (self.config(id, env.clone()), self.plan.tuning());
        let (sender, receiver) = oneshot::channel();
        env.spawn("start", async move {
            let _ = sender.send(Node::start_tuned(config, tuning).await);
        });
        let started = tokio::select! {
            biased;
            started = receiver => started.map_err(|_| StartFailure::Crashed)?,
            () = self.sim.sleep(START_MAX) => return Err(StartFailure::Late),
        };
        let node = Arc::new(started.map_err(|error| StartFailure::Refused(error.0))?);
        self.watch(id, node.clone());
        if self.plan.nodes == 1 {
            // Sessions of earlier lives are closed now: nothing of theirs is executed any more. In a cluster, what they
            // have under way may still be anywhere.
            self.recorder.close_unknown();
        }
        let serving = Serving {
            node: id,
            client: node.client(),
            env,
            sim: self.sim.clone(),
            patience: self.plan.patience,
            is_silent: Arc::default(),
        };
        self.change(id, |member| (member.node, member.serving) = (Some(node), Some(serving)));
        Ok(())
    }

    /// Makes a new node of the cluster, through the gateway of `through`: its id is allotted, its directory says who it
    /// is. It does not run yet.
    pub async fn join(&self, through: &Serving) -> Result<NodeId, String> {
        let client = through.client.clone();
        let feature_level_max = self.plan.feature_level;
        let row = NodeRow { state: NodeState::Joining as i32, feature_level_max, ..NodeRow::default() };
        let allotted = through.run(async move { client.change_map_checked(MapCommand::SetNode(row)).await }).await;
        let reply = allotted.map_err(|_| "no answer".to_string())?.map_err(|error| error.to_string())?;
        let id = NodeId(u32::try_from(reply.id).map_err(|error| error.to_string())?);
        let contacts: Vec<(NodeId, String)> = self.nodes().into_iter().map(|node| (node, address(node))).collect();
        let (disk, cluster) = (self.sim.disk(id, "data"), self.cluster_id().ok_or("no node runs")?);
        let joined = self.sim.node(id).run(async move { node::join_identity(&*disk, cluster, id, &contacts).await });
        match joined.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(Crashed) => return Err("the new node crashed".into()),
        }
        self.sim.kill(id);
        self.change(id, |_| ());
        Ok(id)
    }

    fn cluster_id(&self) -> Option<ClusterId> {
        self.shared().members.values().find_map(|member| member.node.as_ref().map(|node| node.cluster()))
    }

    /// The cluster forgets a node that is gone for good.
    pub async fn remove(&self, gone: NodeId, through: &Serving) -> Result<(), String> {
        let client = through.client.clone();
        self.shared().members.remove(&gone);
        let removal = async move {
            let map = client.refresh_map().await?;
            let row = map.map.nodes.iter().find(|row| row.id == gone.0).cloned().unwrap_or_default();
            let change = SetNodeState {
                id: gone.0,
                state: NodeState::Removed as i32,
                raise_floor: true,
                generation: row.generation,
                stays: false,
            };
            client.change_map_checked(MapCommand::SetNodeState(change)).await
        };
        match through.run(removal).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }

    /// From now on the node may end by itself.
    pub fn set_leaving(&self, node: NodeId) {
        self.shared().leaving.insert(node);
    }

    /// Asks that a node be emptied and go; whether it has gone.
    pub async fn drain(&self, node: NodeId, through: &Serving) -> Result<bool, String> {
        let client = through.client.clone();
        let asked = through.run(async move {
            let map = client.refresh_map().await?;
            if map.node(node).is_none_or(|row| row.state() == NodeState::Removed) {
                return Ok(true);
            }
            client.remove_node(node, false).await.map(|_| false)
        });
        match asked.await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }

    /// Moves all data off a node that stays, or lets it take data again.
    pub async fn set_empty(&self, node: NodeId, is_empty: bool, through: &Serving) -> Result<(), String> {
        let client = through.client.clone();
        let asked = through.run(async move { client.drain_node(node, is_empty).await });
        match asked.await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }

    /// Stops a node that has gone, and forgets it.
    pub async fn dismiss(&self, node: NodeId) {
        if self.sim.is_running(node) {
            self.kill(node).await;
        }
        self.shared().members.remove(&node);
    }

    /// Makes a stopped node the only voter of every group. Answers what was done.
    pub async fn recover(&self, node: NodeId) -> Result<Vec<String>, String> {
        self.shared().recoveries += 1;
        let env = self.sim.env(node);
        let data: Arc<dyn Disk> = self.sim.disk(node, "data");
        let metadata: Arc<dyn Disk> = self.chunk_disks(node)[0].clone();
        let recovered = self.sim.node(node).run(async move { node::offline::recover(&env, &*data, metadata).await });
        let recovered = recovered.await.unwrap_or_else(|Crashed| Err("the node crashed".into()));
        self.sim.kill(node);
        recovered
    }

    /// How often all nodes but one were given up.
    pub fn recoveries(&self) -> u64 {
        self.shared().recoveries
    }

    /// A node that gives up by itself is a violation: none that is removed runs here, but those that are emptied.
    fn watch(&self, id: NodeId, node: Arc<Node>) {
        if self.shared().leaving.contains(&id) {
            return;
        }
        let (recorder, stopped) = (self.recorder.clone(), self.sim.stopped(id));
        let shared = self.shared.clone();
        self.sim.spawn("watch a node", async move {
            tokio::select! {
                biased;
                () = stopped => {}
                why = node.ended() => {
                    let is_leaving = shared.lock().unwrap_or_else(PoisonError::into_inner).leaving.contains(&id);
                    if !is_leaving {
                        recorder.violation(format!("node {id} has ended: {why}"));
                    }
                }
            }
        });
    }

    /// Waits until the node has stopped, and lets go of it.
    pub async fn stopped(&self, id: NodeId) {
        self.sim.node(id).stopped().await;
        drop(self.let_go(id));
    }

    /// Nobody is sent to the node any more. What it counted is added up.
    fn let_go(&self, id: NodeId) -> Option<Arc<Node>> {
        self.gather_metrics(id);
        self.change(id, |member| {
            member.serving = None;
            member.node.take()
        })
    }

    /// Power cut.
    pub async fn crash(&self, id: NodeId) {
        let before = self.sim.fault_counts();
        self.sim.crash(id);
        self.stopped(id).await;
        let taken = |kind| self.sim.fault_counts().get(kind).unwrap_or(&0) - before.get(kind).unwrap_or(&0);
        self.recorder.note(|| {
            let (lost, torn) = (taken("sectors lost at a power cut"), taken("sectors torn at a power cut"));
            format!("node {id} is without power: of what it had not flushed, {lost} sectors are lost and {torn} torn")
        });
    }

    /// Power cut of all nodes at once.
    pub async fn crash_all(&self) {
        self.sim.crash_all();
        for id in self.nodes() {
            self.stopped(id).await;
        }
    }

    /// The process ends, the operating system goes on.
    pub async fn kill(&self, id: NodeId) {
        self.recorder.note(|| format!("node {id} is killed"));
        self.sim.kill(id);
        self.stopped(id).await;
    }

    /// An orderly end. The node may still crash in the middle of it.
    pub async fn shut_down(&self, id: NodeId) {
        if let Some(node) = self.let_go(id) {
            let (sender, receiver) = oneshot::channel::<()>();
            self.sim.env(id).spawn("shut down", async move {
                node.shutdown().await;
                let _ = sender.send(());
            });
            let _ = receiver.await;
        }
        self.kill(id).await;
    }

    /// The present or next life of `home`; of another node, drawn, when that one does not serve or answer.
    pub async fn serving(&self, home: NodeId) -> Serving {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(serving) = self.choose(home) {
                return serving;
            }
            changes.changed().await.expect("the sender lives in this cluster");
        }
    }

    fn choose(&self, home: NodeId) -> Option<Serving> {
        let shared = self.shared();
        let mut all: Vec<&Serving> = shared.members.values().filter_map(|member| member.serving.as_ref()).collect();
        if all.iter().any(|serving| !serving.is_silent.load(Ordering::Relaxed)) {
            all.retain(|serving| !serving.is_silent.load(Ordering::Relaxed));
        }
        match all.iter().find(|serving| serving.node == home) {
            Some(serving) => Some((*serving).clone()),
            None if all.len() < 2 => all.first().copied().cloned(),
            None => Some(all[self.sim.below(all.len() as u64) as usize].clone()),
        }
    }

    /// What serves at present, one for each such node.
    pub fn all_serving(&self) -> Vec<Serving> {
        self.shared().members.values().filter_map(|member| member.serving.clone()).collect()
    }

    /// Nothing stands in the way of an answer: the node runs, and was not told to end.
    pub fn is_serving(&self, id: NodeId) -> bool {
        self.shared().members.get(&id).is_some_and(|member| member.serving.is_some()) && self.sim.is_running(id)
    }

    /// Tells the recorder which sessions are closed in the object shard, as any replica has applied it.
    pub fn note_fences(&self) {
        let shared = self.shared();
        let nodes: Vec<&Arc<Node>> = shared.members.values().filter_map(|member| member.node.as_ref()).collect();
        for id in shared.members.keys() {
            let floor = nodes.iter().filter_map(|node| node.closed_below(SHARD, *id)).max();
            if let Some(floor) = floor.filter(|floor| floor.0 > 0) {
                self.recorder.fence(*id, floor);
            }
        }
    }

    /// The nodes that lead, by group, as far as any node says so under the newest term.
    pub fn leaders(&self) -> BTreeMap<u64, NodeId> {
        let shared = self.shared();
        let mut newest: BTreeMap<u64, (u64, NodeId)> = BTreeMap::new();
        for (id, member) in &shared.members {
            for (group, term) in member.node.iter().flat_map(|node| node.led_groups()) {
                let held = newest.entry(group.0).or_insert((term.0, *id));
                *held = (*held).max((term.0, *id));
            }
        }
        newest.into_iter().map(|(group, (_, node))| (group, node)).collect()
    }

    /// Every time of leadership that some running node claims: group, term, node.
    pub fn claims(&self) -> Vec<(GroupId, Term, NodeId)> {
        let shared = self.shared();
        let of_member = |(id, member): (&NodeId, &Member)| {
            let led = member.node.as_ref().map(|node| node.led_groups()).unwrap_or_default();
            led.into_iter().map(|(group, term)| (group, term, *id)).collect::<Vec<_>>()
        };
        shared.members.iter().flat_map(of_member).collect()
    }

    pub fn status(&self, id: NodeId) -> Option<Status> {
        self.shared().members.get(&id)?.node.as_ref().map(|node| node.status())
    }

    /// Every good chunk on the disks of a node that runs.
    pub fn held_chunks(&self, id: NodeId) -> BTreeSet<ChunkId> {
        let shared = self.shared();
        let node = shared.members.get(&id).and_then(|member| member.node.as_ref());
        node.map(|node| node.held_chunks(PoolId(1))).unwrap_or_default()
    }

    /// The newest map that any running node acts by, also one that nobody reaches.
    pub fn newest_map(&self) -> Option<Arc<ClusterMap>> {
        let shared = self.shared();
        let nodes = shared.members.values().filter_map(|member| member.node.as_ref());
        nodes.map(|node| node.own_map()).max_by_key(|map| map.version)
    }

    /// How often a node's process was started.
    pub fn starts(&self, id: NodeId) -> u64 {
        self.shared().members.get(&id).map_or(0, |member| member.starts)
    }

    /// The generation of a node's present life.
    pub fn generation(&self, id: NodeId) -> Option<Generation> {
        let shared = self.shared();
        let node = shared.members.get(&id).and_then(|member| member.node.as_ref());
        node.filter(|_| self.sim.is_running(id)).map(|node| node.generation())
    }

    /// The map that a node acts by.
    pub fn own_map(&self, id: NodeId) -> Option<Arc<ClusterMap>> {
        self.shared().members.get(&id)?.node.as_ref().map(|node| node.own_map())
    }

    /// What a node says of the whole cluster, having asked the others.
    pub async fn cluster_status(&self, id: NodeId) -> Option<Status> {
        let (node, serving) = {
            let shared = self.shared();
            let member = shared.members.get(&id)?;
            (member.node.clone()?, member.serving.clone()?)
        };
        serving.run(async move { node.cluster_status().await }).await.ok()
    }

    /// What the product says about its background work: a run in which nothing of it happened tests little.
    fn gather_metrics(&self, id: NodeId) {
        let text =
            self.shared().members.get(&id).and_then(|member| member.node.as_ref().map(|node| node.metrics_text()));
        let Some(text) = text else { return };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let name = name.split('{').next().unwrap_or(name);
            if let Some((_, count)) = GATHERED.iter().find(|(metric, _)| *metric == name) {
                self.recorder.count(count, value.parse::<f64>().unwrap_or(0.0) as u64);
            }
        }
    }
}

fn address(node: NodeId) -> String {
    format!("10.0.0.{node}:9002")
}

fn disk_name(index: usize) -> String {
    format!("disk{index}")
}
