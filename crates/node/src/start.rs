//! Starting a node: read the past, raise the generation, open disks, replay, lead, announce, serve.

use base::Env;
use base::buffer::BLOCK;
use base::env::Disk;
use base::ids::{
    ClusterId, DiskId, GROUP_ZERO, Generation, GroupId, LogIndex, NodeId, PeerId, PgId, PoolId, Session, Term,
};
use bytes::Bytes;
use client::{Client, ClientConfig, KeyRow, MapView};
use meta::group::{self, FEATURE_LEVEL};
use meta::map::command::{DiskRow, DiskState, InitCluster, MapCommand, NodeRow, PgRow, PgRows, PoolRow, ShardRow};
use meta::object::command::InitShard;
use protocol::placement::{Candidate, members};
use protocol::raft::{Configuration, Entry, HardState, RaftPeer, Restored, Waiting};
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use store::kv::{Kv, KvOptions, LsmKv};
use store::{DiskIdentity, Engine, EngineOptions, RaftLog, StoreError};
use tokio::sync::watch;

use crate::controller;
use crate::disks::{Disks, NodeDisk};
use crate::group::{self as driver, GroupHandle, decode_hard_state};
use crate::home::{self, GenerationClock, HomeError, NodeIdentity};
use crate::machine::{KvView, Machine, change_out, decode_configuration, encode_configuration};
use crate::metrics::{self, Counters};
use crate::service::{Front, Service};
use crate::status::{self, Status};
use crate::workers;

/// The group of the one object shard that a new cluster has.
const FIRST_SHARD: GroupId = GroupId(1);
/// The pool that a new cluster has.
const FIRST_POOL: PoolId = PoolId(1);
/// Its placement groups: 2^7. The number doubles as the cluster grows.
const FIRST_PG_BITS: u8 = 7;
/// Copies that the default pool asks for.
const DEFAULT_COPIES: u32 = 3;
/// A node's only peer until groups have more: peer 1 of each group.
const FIRST_PEER: PeerId = PeerId(1);
/// How long a start waits for its groups to elect and catch up.
const START_MAX: Duration = Duration::from_secs(60);

/// What a node is started with.
pub struct Config {
    pub env: Env,
    /// The node's own directory: identity and generation.
    pub data: Arc<dyn Disk>,
    /// At least one; the first holds the metadata.
    pub disks: Vec<DiskSpec>,
    /// `region=r,zone=z,rack=k`, or empty.
    pub locality: String,
    /// HOST:PORT under which other nodes reach this one.
    pub advertise: String,
    pub region: String,
    /// Access key and secret key of the root user.
    pub root: (String, String),
}

pub struct DiskSpec {
    pub disk: Arc<dyn Disk>,
    pub size_bytes_max: Option<u64>,
    /// For messages: a path in production.
    pub label: String,
}

/// Sizes and times of background work. The defaults suit a server; simulations make them small, so that whatever happens
/// once a day happens many times a minute.
#[derive(Clone)]
pub struct Tuning {
    /// The engine's options for every disk, but for `size_bytes_max`.
    pub engine: EngineOptions,
    pub key_value: KvOptions,
    /// Unflushed state that makes a flush of the key-value store worth its writing; twice as much log does too.
    pub flush_bytes: u64,
    /// How long a reader may still need chunks that were deleted: liveness only.
    pub garbage_grace: Duration,
    pub healing: Healing,
}

/// Times of detection and repair.
#[derive(Clone, Debug)]
pub struct Healing {
    /// How long a node may be down until its copies are made again elsewhere.
    pub lost_after: Duration,
    /// From one comparison of the copies of placement groups to the next.
    pub compare_interval: Duration,
    /// A chunk that a copy lacks in two comparisons at least this far apart is missing; before, it may be under way.
    pub missing_after: Duration,
    /// From one sweep for chunks that nothing names to the next.
    pub sweep_interval: Duration,
}

impl Default for Healing {
    fn default() -> Healing {
        Healing {
            lost_after: controller::LOST_AFTER,
            compare_interval: Duration::from_secs(2),
            missing_after: Duration::from_secs(5),
            sweep_interval: Duration::from_secs(3600),
        }
    }
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            engine: EngineOptions::default(),
            key_value: KvOptions::default(),
            flush_bytes: workers::FLUSH_BYTES,
            garbage_grace: workers::GARBAGE_GRACE,
            healing: Healing::default(),
        }
    }
}

/// Why a node does not start: one sentence that says what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

impl From<HomeError> for StartError {
    fn from(error: HomeError) -> StartError {
        StartError(format!("data directory: {error}"))
    }
}

impl From<client::Error> for StartError {
    fn from(error: client::Error) -> StartError {
        StartError(format!("the cluster map cannot be set up: {error}"))
    }
}

/// A running node.
pub struct Node {
    service: Arc<Service>,
    client: Client,
    cluster: ClusterId,
    generation: Generation,
    stop: watch::Sender<bool>,
    kv: Arc<LsmKv>,
    _home_lock: Box<dyn Send + Sync>,
}

impl Node {
    /// Returns when the node serves reads and writes.
    pub async fn start(config: Config) -> Result<Node, StartError> {
        Node::start_tuned(config, Tuning::default()).await
    }

    pub async fn start_tuned(config: Config, tuning: Tuning) -> Result<Node, StartError> {
        assert!(!config.disks.is_empty(), "a node has at least one disk");
        let env = config.env.clone();
        let home_lock = lock_home(&config)?;
        let identity = identify(&config).await?;
        let clock = Arc::new(GenerationClock::start(config.data.clone(), &identity).await?);
        let session = Session { node: identity.node, generation: clock.now().await.current };

        let disks = Arc::new(open_disks(&config, &tuning, &identity).await?);
        let (kv, metadata_damage) = open_key_value(&config, &tuning, &identity, &disks).await?;
        let (groups, map) = open_groups(&env, &identity, disks.metadata(), &kv).await?;

        let counters = Arc::new(Counters::default());
        let service = Arc::new(Service {
            node: identity.node,
            disks: disks.clone(),
            groups,
            kv: kv.clone(),
            map: map.clone(),
            counters,
            metadata_damage,
            control: Arc::default(),
            repair: Arc::default(),
            env: env.clone(),
            view: RwLock::new(Arc::new(MapView::default())),
        });
        env.net.serve(Arc::new(Front(service.clone())));
        let client = Client::new(ClientConfig {
            env: env.clone(),
            session,
            contacts: vec![identity.node],
            region: config.region.clone(),
        });
        let announced = env.timeout(START_MAX, announce(&config, &identity, session, &disks, &client)).await;
        announced.ok_or_else(|| StartError("the cluster map has no leader after 60 s; see the log".into()))??;
        if !identity.set_up {
            let set_up = NodeIdentity { set_up: true, ..identity };
            home::store_identity(&*config.data, &set_up).await.map_err(HomeError::from)?;
        }

        let stop = watch::Sender::new(false);
        start_workers(&env, &tuning, &service, &client, &stop, clock);
        Ok(Node {
            service,
            client,
            cluster: identity.cluster,
            generation: session.generation,
            stop,
            kv,
            _home_lock: home_lock,
        })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub fn id(&self) -> NodeId {
        self.service.node
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The generation below which the sessions of `node` are closed in `group`, as far as the replica here has applied
    /// it; `None` when it cannot be read.
    pub fn closed_below(&self, group: GroupId, node: NodeId) -> Option<Generation> {
        meta::slots::floor(&KvView::over(&*self.kv), group, node).ok()
    }

    /// Serves reads and writes now.
    pub fn ready(&self) -> bool {
        let groups_ready =
            self.service.groups.values().all(|group| group.failed().is_none() && group.leader().is_some());
        groups_ready && !*self.stop.borrow()
    }

    pub fn status(&self) -> Status {
        status::collect(&self.service)
    }

    /// In Prometheus' text format.
    pub fn metrics_text(&self) -> String {
        metrics::text(&self.service, &self.status())
    }

    /// Stops workers, flushes the key-value store (so that the next start replays little), closes the disks.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        workers::flush_now(&self.service).await;
        for group in self.service.groups.values() {
            group.stop().await;
        }
        self.kv.close().await;
        for engine in self.service.disks.engines() {
            engine.clone().close().await;
        }
    }
}

fn lock_home(config: &Config) -> Result<Box<dyn Send + Sync>, StartError> {
    config.data.lock().map_err(|error| {
        let place = config.data.describe();
        match error.kind() {
            std::io::ErrorKind::WouldBlock => StartError(format!(
                "{place} is in use by another henge process: stop that one first, or use another --data"
            )),
            _ => StartError(format!("{place} cannot be locked: {error}")),
        }
    })
}

async fn identify(config: &Config) -> Result<NodeIdentity, StartError> {
    if let Some(identity) = home::load_identity(&*config.data).await? {
        return Ok(identity);
    }
    let cluster = ClusterId::random(&*config.env.random);
    let identity = NodeIdentity { cluster, node: NodeId(1), set_up: false };
    home::store_identity(&*config.data, &identity).await.map_err(HomeError::from)?;
    Ok(identity)
}

async fn open_disks(config: &Config, tuning: &Tuning, identity: &NodeIdentity) -> Result<Disks, StartError> {
    let mut all: Vec<NodeDisk> = Vec::new();
    for (position, spec) in config.disks.iter().enumerate() {
        let disk = open_disk(&config.env, spec, &tuning.engine, identity, position == 0).await?;
        if all.iter().any(|other| other.id == disk.id) {
            return Err(StartError(format!("{} is given twice, or is a copy of another disk", spec.label)));
        }
        all.push(disk);
    }
    Ok(Disks::new(all))
}

async fn open_disk(
    env: &Env,
    spec: &DiskSpec,
    options: &EngineOptions,
    identity: &NodeIdentity,
    metadata: bool,
) -> Result<NodeDisk, StartError> {
    let label = spec.label.clone();
    let refuse = |why: String| StartError(format!("disk {label}: {why}"));
    let options = EngineOptions { size_bytes_max: spec.size_bytes_max, ..options.clone() };
    let found = Engine::read_identity(&spec.disk).await;
    let found = match found {
        Ok(found) => found,
        Err(error) if metadata || !matches!(error, StoreError::Io(_)) => return Err(refuse(error.to_string())),
        // The disk itself is out of order: the others go on.
        Err(error) => return Ok(NodeDisk { label, id: DiskId(0), engine: Err(error.to_string()) }),
    };
    let id = match found {
        Some(found) if found.cluster != identity.cluster => {
            return Err(refuse(format!(
                "it belongs to cluster {}, this node to cluster {}: use the right directory, or empty this one",
                found.cluster, identity.cluster
            )));
        }
        Some(found) if found.node != identity.node => {
            return Err(refuse(format!("it belongs to node {}, this is node {}", found.node, identity.node)));
        }
        Some(found) => found.disk,
        None if metadata && identity.set_up => {
            return Err(refuse(
                "it held this node's metadata and is empty now: bring the disk back, or start anew with an empty --data".into(),
            ));
        }
        None => {
            let fresh =
                DiskIdentity { cluster: identity.cluster, disk: DiskId::random(&*env.random), node: identity.node };
            Engine::format(env, spec.disk.clone(), &fresh, &options).await.map_err(|e| refuse(e.to_string()))?;
            fresh.disk
        }
    };
    match Engine::open(env, spec.disk.clone(), options).await {
        Ok((engine, report)) => {
            for damage in &report.damaged {
                tracing::error!("disk {label}: damage found at start: {damage:?}");
            }
            Ok(NodeDisk { label, id, engine: Ok(engine) })
        }
        Err(error) if metadata || matches!(error, StoreError::InUse | StoreError::NewerFormat { .. }) => {
            Err(refuse(error.to_string()))
        }
        Err(error) => Ok(NodeDisk { label, id, engine: Err(error.to_string()) }),
    }
}

/// The key-value store lies on the metadata disk, beside the Raft logs that it depends on.
async fn open_key_value(
    config: &Config,
    tuning: &Tuning,
    identity: &NodeIdentity,
    disks: &Disks,
) -> Result<(Arc<LsmKv>, Vec<String>), StartError> {
    let spec = &config.disks[0];
    let seed = disks.metadata().identity().disk.0;
    let opened = LsmKv::open(&config.env, spec.disk.clone(), seed, tuning.key_value.clone()).await;
    let (kv, report) = opened.map_err(|error| StartError(format!("disk {}: {error}", spec.label)))?;
    if report.created && identity.set_up {
        return Err(StartError(format!(
            "disk {}: the key-value store with this node's metadata is missing; with one copy nothing can replace it: \
             bring back the disk's earlier state, or start anew with an empty --data",
            spec.label
        )));
    }
    let damages: Vec<String> =
        report.damages.iter().map(|damage| format!("key-value store on disk {}: {damage:?}", spec.label)).collect();
    for damage in &damages {
        tracing::error!("{damage}");
    }
    Ok((kv, damages))
}

type Groups = (BTreeMap<GroupId, GroupHandle>, watch::Receiver<Arc<meta::map::command::ClusterMap>>);

async fn open_groups(
    env: &Env,
    identity: &NodeIdentity,
    engine: &Engine,
    kv: &Arc<LsmKv>,
) -> Result<Groups, StartError> {
    let kv: Arc<dyn Kv> = kv.clone();
    let mut groups = BTreeMap::new();
    let mut map = None;
    for id in [GROUP_ZERO, FIRST_SHARD] {
        let log = engine.raft_load(id).await.map_err(|error| {
            StartError(format!(
                "the Raft log of group {id} is damaged ({error}): with one copy nothing can replace it; \
                 bring back the disk's earlier state, or recover files with `henge fsck`"
            ))
        })?;
        let log = match log {
            Some(log) => log,
            None if identity.set_up => {
                return Err(StartError(format!("the Raft log of group {id} is missing from the metadata disk")));
            }
            None => create_group(engine, &kv, id).await?,
        };
        let (raft, machine) = restore(env, &kv, id, log)?;
        map = map.or_else(|| machine.watch_map());
        groups.insert(id, driver::start(env, id, FIRST_PEER, raft, machine, engine.clone()));
    }
    Ok((groups, map.expect("group 0 is among the groups and keeps the map")))
}

/// First the configuration, durably; then the log, whose existence says that the group exists.
async fn create_group(engine: &Engine, kv: &Arc<dyn Kv>, id: GroupId) -> Result<RaftLog, StartError> {
    let failed = |why: String| StartError(format!("group {id} cannot be created: {why}"));
    let configuration = Configuration { voters: vec![FIRST_PEER], ..Configuration::default() };
    let encoded = encode_configuration(&configuration);
    let row = group::advance(&KvView::of(kv), id, LogIndex(0), Term(0), encoded).map_err(|e| failed(e.to_string()))?;
    kv.commit(vec![change_out(row)]).map_err(|error| failed(error.to_string()))?;
    kv.flush().await.map_err(|error| failed(error.to_string()))?;
    let base = store::RaftWrite {
        group: id,
        peer: FIRST_PEER,
        hard_state: Some(Bytes::from_static(&[0; 16])),
        entries: Vec::new(),
        trim_to: None,
        reset: None,
    };
    engine.raft_write(base).await.map_err(|error| failed(error.to_string()))?;
    let log = engine.raft_load(id).await.map_err(|error| failed(error.to_string()))?;
    log.ok_or_else(|| failed("its log cannot be read back".into()))
}

fn restore(env: &Env, kv: &Arc<dyn Kv>, id: GroupId, log: RaftLog) -> Result<(RaftPeer, Machine), StartError> {
    let refuse = |why: String| StartError(format!("group {id} cannot be restored: {why}"));
    let state = group::load(&KvView::of(kv), id).map_err(|error| refuse(error.to_string()))?;
    if !state.is_supported() {
        return Err(refuse(format!(
            "it is at feature level {}, this binary knows {FEATURE_LEVEL}: start a newer henge",
            state.feature_level
        )));
    }
    let configuration = decode_configuration(&state.conf_state).map_err(refuse)?;
    if configuration.voters.is_empty() {
        return Err(refuse("its state is missing from the key-value store".into()));
    }
    let hard_state = match &log.hard_state {
        None => HardState::default(),
        Some(raw) => decode_hard_state(raw).ok_or_else(|| refuse("its hard state is malformed".into()))?,
    };
    let entry = |entry: store::RaftEntry| Entry { index: entry.index, term: entry.term, data: entry.data };
    let only_voter = configuration.voters == [log.peer];
    let restored = Restored {
        peer: log.peer,
        configuration: configuration.clone(),
        hard_state,
        base: log.base,
        entries: log.entries.into_iter().map(entry).collect(),
        applied: LogIndex(state.applied_index),
        waiting: Waiting::No,
    };
    let mut raft = RaftPeer::new(restored, env.random.clone()).map_err(refuse)?;
    if only_voter {
        raft.campaign();
    }
    let machine = Machine::new(id, kv.clone(), configuration).map_err(|error| refuse(error.to_string()))?;
    Ok((raft, machine))
}

/// Brings the map up to date with what this node is and has; on the very first start, sets the cluster up.
async fn announce(
    config: &Config,
    identity: &NodeIdentity,
    session: Session,
    disks: &Disks,
    client: &Client,
) -> Result<(), StartError> {
    let map = client.refresh_map().await?;
    if map.map.cluster.is_empty() {
        let init = InitCluster {
            cluster: Bytes::copy_from_slice(&identity.cluster.0.to_be_bytes()),
            region: config.region.clone(),
            feature_level: FEATURE_LEVEL,
        };
        client.change_map_checked(MapCommand::InitCluster(init)).await?;
    } else if map.map.cluster.as_ref() != identity.cluster.0.to_be_bytes() {
        return Err(StartError("the metadata on this disk belongs to another cluster than the data directory".into()));
    }
    let node = NodeRow {
        id: identity.node.0,
        // Whatever an earlier life of this node still has under way is refused from here on.
        generation_floor: session.generation.0,
        generation: session.generation.0,
        locality: config.locality.clone(),
        address: config.advertise.clone(),
        feature_level_max: FEATURE_LEVEL,
        ..NodeRow::default()
    };
    client.change_map_checked(MapCommand::SetNode(node)).await?;
    announce_disks(identity.node, disks, client).await?;
    // The groups come after the pool: a first start that crashed in between is finished here.
    if client.map().map.pgs.is_empty() {
        set_up_pool(identity.node, disks, client).await?;
    }
    if client.map().map.shards.is_empty() {
        set_up_shard(identity.node, client).await?;
    }
    announce_root(config, client).await
}

async fn announce_disks(node: NodeId, disks: &Disks, client: &Client) -> Result<(), StartError> {
    let map = client.map();
    let id_bytes = |id: DiskId| Bytes::copy_from_slice(&id.0.to_be_bytes());
    for disk in disks.all.iter().filter(|disk| disk.id != DiskId(0)) {
        let state = if disk.engine.is_ok() { DiskState::Up } else { DiskState::Failed };
        let row = DiskRow {
            id: id_bytes(disk.id),
            node: node.0,
            capacity_bytes: disk.usage().capacity_bytes / BLOCK as u64 * BLOCK as u64,
            state: state as i32,
        };
        client.change_map_checked(MapCommand::SetDisk(row)).await?;
    }
    let present = |row: &DiskRow| disks.all.iter().any(|disk| id_bytes(disk.id) == row.id);
    for row in map.map.disks.iter().filter(|row| row.node == node.0 && !present(row)) {
        tracing::error!("disk {} of this node is missing: what only it holds cannot be read", hex(&row.id));
        let failed = DiskRow { state: DiskState::Failed as i32, ..row.clone() };
        client.change_map_checked(MapCommand::SetDisk(failed)).await?;
    }
    Ok(())
}

async fn set_up_pool(node: NodeId, disks: &Disks, client: &Client) -> Result<(), StartError> {
    let candidate = |disk: &NodeDisk| Candidate { disk: disk.id, node, capacity_bytes: disk.usage().capacity_bytes };
    let candidates: Vec<Candidate> = disks.all.iter().filter(|disk| disk.engine.is_ok()).map(candidate).collect();
    let row = |prefix: u32| {
        let group = PgId { pool: FIRST_POOL, bits: FIRST_PG_BITS, prefix };
        let chosen = members(group, DEFAULT_COPIES as usize, &candidates);
        PgRow {
            pool: u32::from(FIRST_POOL.0),
            prefix,
            epoch: 1,
            closed: false,
            members: chosen.iter().map(|id| Bytes::copy_from_slice(&id.0.to_be_bytes())).collect(),
            members_before: Vec::new(),
        }
    };
    let rows: Vec<PgRow> = (0..1 << FIRST_PG_BITS).map(row).collect();
    let pool = PoolRow {
        id: u32::from(FIRST_POOL.0),
        name: "default".into(),
        copies: DEFAULT_COPIES,
        copies_effective: rows.iter().map(|row| row.members.len() as u32).min().unwrap_or(0),
        pg_bits: u32::from(FIRST_PG_BITS),
    };
    client.change_map_checked(MapCommand::SetPool(pool)).await?;
    client.change_map_checked(MapCommand::SetPgs(PgRows { rows })).await?;
    Ok(())
}

async fn set_up_shard(node: NodeId, client: &Client) -> Result<(), StartError> {
    const FIRST_RANGE_EPOCH: u64 = 1;
    let init = InitShard { range_epoch: FIRST_RANGE_EPOCH, feature_level: FEATURE_LEVEL, ..InitShard::default() };
    client.init_shard(FIRST_SHARD, init).await?;
    let row =
        ShardRow { group: FIRST_SHARD.0, range_epoch: FIRST_RANGE_EPOCH, nodes: vec![node.0], ..ShardRow::default() };
    client.change_map_checked(MapCommand::SetShard(row)).await?;
    Ok(())
}

async fn announce_root(config: &Config, client: &Client) -> Result<(), StartError> {
    let (access_key, secret_key) = config.root.clone();
    let known = client.map().key(&access_key).cloned();
    if known.is_some_and(|row| row.secret_key == secret_key && row.root) {
        return Ok(());
    }
    let row = KeyRow { access_key, secret_key, name: "root".into(), created_ms: client.wall_ms(), root: true };
    match client.insert_access_key(row).await {
        Ok(_) => Ok(()),
        Err(client::Error::KeyExists) => {
            let why =
                "the root user has the id of another access key: choose another HENGE_ROOT_USER, or delete that key";
            Err(StartError(why.into()))
        }
        Err(error) => Err(error.into()),
    }
}

fn start_workers(
    env: &Env,
    tuning: &Tuning,
    service: &Arc<Service>,
    client: &Client,
    stop: &watch::Sender<bool>,
    clock: Arc<GenerationClock>,
) {
    env.spawn(
        "flush key-value",
        workers::flush_key_value(env.clone(), service.clone(), tuning.flush_bytes, stop.subscribe()),
    );
    let collect =
        workers::collect_garbage(env.clone(), service.clone(), client.clone(), tuning.garbage_grace, stop.subscribe());
    env.spawn("collect garbage", collect);
    let (sweeper, finisher) = (client.clone(), client.clone());
    let renew = workers::renew_session(env.clone(), client.clone(), clock.clone(), stop.subscribe());
    env.spawn("renew session", renew);
    let announce = workers::announce_failures(env.clone(), service.clone(), client.clone(), stop.subscribe());
    env.spawn("announce failures", announce);
    env.spawn("sweep orphans", workers::sweep_orphans(env.clone(), service.clone(), sweeper, clock));
    env.spawn("report", controller::report(env.clone(), service.clone(), client.clone(), stop.subscribe()));
    let control =
        controller::control(env.clone(), service.clone(), client.clone(), tuning.healing.lost_after, stop.subscribe());
    env.spawn("control", control);
    env.spawn("finish buckets", async move {
        if let Err(error) = finisher.finish_buckets().await {
            tracing::warn!("half-made buckets wait for the next start: {error}");
        }
    });
    let (follower, mut map) = (client.clone(), service.map.clone());
    env.spawn("follow map", async move {
        while map.changed().await.is_ok() {
            let newest = map.borrow_and_update().clone();
            follower.learn_map(newest.as_ref().clone());
        }
    });
}

fn hex(raw: &[u8]) -> String {
    client::disk_id(raw).map_or_else(|| "?".into(), |id| id.to_string())
}
