//! Starting a node: read the past, raise the generation, open disks, replay, lead, announce, serve.

use base::Env;
use base::env::Disk;
use base::ids::{
    ChunkId, ClusterId, DiskId, GROUP_ZERO, Generation, GroupId, NodeId, PoolId, SLOT_BITS, Session, Term,
};
use bytes::Bytes;
use client::{Client, ClientConfig, MapView};
use meta::map::command::ClusterMap;
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use store::kv::{KvError, KvOptions, LsmKv};
use store::{DiskIdentity, Engine, EngineOptions, StoreError};
use tokio::sync::{mpsc, watch};

use crate::announce::Announcer;
use crate::arrivals::Arrivals;
use crate::backup;
use crate::controller;
use crate::disks::{Disks, NodeDisk};
use crate::events::{Event, EventKind, EventLog};
use crate::fence_agent::FenceAgent;
use crate::group::GroupHandle;
use crate::group::install::Offered;
use crate::home::{self, GenerationClock, HomeError, NodeIdentity};
use crate::lifecycle::{self, LifecyclePace};
use crate::metrics::{self, Counters};
use crate::repair::{Budget, Others, Progress, Repairer};
use crate::replicas::Replicas;
use crate::service::{Front, Service, Standing};
use crate::status::{self, Status};
use crate::sweep;
use crate::traffic::{Metered, Traffic};
use crate::workers;

/// How long a start waits for the cluster to take the node in: of a cluster of one, and of several.
const START_ALONE_MAX: Duration = Duration::from_secs(60);
const START_MAX: Duration = Duration::from_secs(5);
/// The group of the one object shard that a new cluster has.
pub const FIRST_SHARD: GroupId = GroupId(1);

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
    /// Certificate and key (PEM) of the cluster's certificate authority.
    pub authority: Option<(String, String)>,
    /// The newest feature level that this node follows: [`meta::group::FEATURE_LEVEL`], but where an older version is played.
    pub feature_level_max: u32,
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
    /// Entries that a log keeps for followers that lag a little; those that lag more are sent a snapshot.
    pub tail_entries: u64,
    /// Rows of one page of a snapshot.
    pub snapshot_page_rows: usize,
    pub healing: Healing,
    /// Asked before a node is given up by itself. Every node that may lead group 0 should have one.
    pub fence_agent: Option<Arc<dyn FenceAgent>>,
    /// Placement groups of a new cluster's pool: two to the power of this.
    pub first_pg_bits: u8,
    pub lifecycle: LifecyclePace,
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
    /// How long a node that runs on keeps a session; the one before is closed then.
    pub renew_after: Duration,
}

impl Default for Healing {
    fn default() -> Healing {
        Healing {
            lost_after: controller::LOST_AFTER,
            compare_interval: Duration::from_secs(2),
            missing_after: Duration::from_secs(5),
            sweep_interval: Duration::from_secs(600),
            renew_after: workers::RENEW_AFTER,
        }
    }
}

/// Memory of each disk for the small chunks that were stored or read last: as many as the key-value store's blocks.
const CHUNK_CACHE_BYTES: usize = 64 << 20;

/// As every store of metadata is opened.
pub(crate) fn key_value_options() -> KvOptions {
    KvOptions { owner_len: meta::keys::owner_len, ..KvOptions::default() }
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            engine: EngineOptions { cache_bytes: CHUNK_CACHE_BYTES, ..EngineOptions::default() },
            key_value: key_value_options(),
            flush_bytes: workers::FLUSH_BYTES,
            garbage_grace: workers::GARBAGE_GRACE,
            tail_entries: crate::group::TAIL_ENTRIES,
            snapshot_page_rows: crate::group::install::PAGE_ROWS,
            healing: Healing::default(),
            fence_agent: None,
            first_pg_bits: crate::announce::FIRST_PG_BITS,
            lifecycle: LifecyclePace::default(),
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
        let traffic = Arc::new(Traffic::default());
        let mut config = config;
        config.env.net = Metered::over(config.env.net, &traffic);
        let env = config.env.clone();
        let home_lock = lock_home(&config)?;
        let identity = identify(&config).await?;
        let contacts = home::load_contacts(&*config.data).await?;
        env.net.learn_peers(&contacts);
        let clock = Arc::new(GenerationClock::start(config.data.clone(), &identity).await?);
        let session = Session { node: identity.node, generation: clock.now().await.current };

        // What a node of several loses, the others have.
        let alone = contacts.is_empty();
        let repair = Arc::new(Progress::default());
        let tuning = with_tombstone_rule(tuning, &repair);
        let disks = Arc::new(open_disks(&config, &tuning, &identity, alone).await?);
        let kv = open_key_value(&config, &tuning, &identity, &disks, contacts.len()).await?;
        let events = Arc::new(EventLog::open(env.clone(), identity.node, &*config.data).await);
        let started = format!("node {} starts under generation {}", identity.node, session.generation);
        events.record(EventKind::Started, identity.node, started);
        let metadata = disks.metadata().clone();
        let replicas =
            Replicas::new(env.clone(), identity.node, metadata, kv.clone(), tuning.tail_entries, events.clone())
                .knowing(config.feature_level_max);
        open_groups(&replicas, &identity, alone).await?;

        let service = Arc::new(Service {
            node: identity.node,
            env: env.clone(),
            disks: disks.clone(),
            map: replicas.watch_map(),
            kv: kv.clone(),
            offered: Offered::new(tuning.snapshot_page_rows),
            standing: watch::Sender::new(Standing::Starting),
            counters: Arc::new(Counters::default()),
            control: Arc::default(),
            events: events.clone(),
            traffic,
            repair,
            arrivals: Arc::new(Arrivals::new(env.clone(), replicas.watch_map(), clock.clone())),
            replicas: Arc::new(replicas),
            view: RwLock::new(Arc::new(MapView::default())),
        });
        env.net.serve(Arc::new(Front(service.clone())));
        let others = contacts.iter().map(|(node, _)| *node).filter(|node| *node != identity.node);
        let client = Client::new(ClientConfig {
            env: env.clone(),
            session,
            contacts: std::iter::once(identity.node).chain(others).collect(),
            region: config.region.clone(),
        });
        let stop = watch::Sender::new(false);
        env.spawn("keep events", events.keep(config.data.clone(), stop.subscribe()));
        let announcer =
            Announcer::new(&config, identity, clock.clone(), &service, &client).with_pg_bits(tuning.first_pg_bits);
        env.spawn("announce", announcer.keep(stop.subscribe()));
        start_workers(&env, &tuning, &service, &client, &stop, clock, config.data.clone());
        let node = Node { service, client, cluster: identity.cluster, stop, kv, _home_lock: home_lock };
        node.first_standing(&env, alone).await?;
        Ok(node)
    }

    /// Waits until the cluster has taken the node in, or it is clear that it must not run. A node of several does not
    /// wait for ever: the others may come later.
    async fn first_standing(&self, env: &Env, alone: bool) -> Result<(), StartError> {
        let mut standing = self.service.standing.subscribe();
        let settled = standing.wait_for(|standing| !matches!(standing, Standing::Starting));
        let patience = if alone { START_ALONE_MAX } else { START_MAX };
        match env.timeout(patience, settled).await {
            Some(Ok(standing)) => match &*standing {
                Standing::Ended(why) => Err(StartError(why.clone())),
                _ => Ok(()),
            },
            _ if alone => Err(StartError("the cluster map has no leader after 60 s; see the log".into())),
            _ => {
                tracing::warn!("the node waits for a majority of the cluster map's voters");
                Ok(())
            }
        }
    }

    /// Ends when the node must not run any longer, with the reason.
    pub async fn ended(&self) -> String {
        let mut standing = self.service.standing.subscribe();
        let ended = standing.wait_for(|standing| matches!(standing, Standing::Ended(_))).await;
        match ended.as_deref() {
            Ok(Standing::Ended(why)) => why.clone(),
            _ => "the node has shut down".into(),
        }
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
        self.client.session().generation
    }

    /// The generation below which the sessions of `node` are closed in `group`, as far as the replica here has applied
    /// it; `None` when it cannot be read.
    pub fn closed_below(&self, group: GroupId, node: NodeId) -> Option<Generation> {
        meta::slots::floor(&crate::machine::KvView::over(&*self.kv), group, node).ok()
    }

    /// The feature level of `group`, as far as the replica here has applied it; `None` when there is none that can be read.
    pub fn feature_level(&self, group: GroupId) -> Option<u32> {
        let state = meta::group::load(&crate::machine::KvView::over(&*self.kv), group).ok()?;
        (state.feature_level > 0).then_some(state.feature_level)
    }

    /// The map that this node acts by: as far as its own replica has applied it.
    pub fn own_map(&self) -> Arc<ClusterMap> {
        self.service.map.borrow().clone()
    }

    /// Chunks of a pool on any of this node's disks, as their indexes have them; without those that are known to be damaged.
    pub fn held_chunks(&self, pool: PoolId) -> BTreeSet<ChunkId> {
        let all = |engine: &Engine| engine.inventory(None, pool, 0..=(1 << SLOT_BITS) - 1, usize::MAX);
        let good = self.service.disks.engines().flat_map(all).filter(|stat| !stat.damaged);
        good.map(|stat| stat.id).collect()
    }

    /// The groups that this node leads, as far as it knows, each with the term.
    pub fn led_groups(&self) -> Vec<(GroupId, Term)> {
        let led = self.service.replicas.all().into_iter().filter(GroupHandle::is_leader);
        led.map(|group| (group.id, group.term())).collect()
    }

    /// Serves reads and writes now.
    pub fn ready(&self) -> bool {
        let serves = *self.service.standing.borrow() == Standing::Serving;
        let works = |group: &GroupHandle| group.failed().is_none() && group.is_ready() && group.leader().is_some();
        serves && self.service.replicas.all().iter().all(works) && !*self.stop.borrow()
    }

    /// The groups whose replica here has given up its rows, or has none yet, and waits for another's.
    pub fn groups_without_rows(&self) -> Vec<GroupId> {
        self.service.replicas.without_rows()
    }

    /// As this node sees itself; other nodes are not asked.
    pub fn status(&self) -> Status {
        status::of_this_node(&self.service)
    }

    /// As all nodes of the cluster see themselves; takes about a second when one does not answer.
    pub async fn cluster_status(&self) -> Status {
        status::of_the_cluster(&self.service, &self.client).await
    }

    /// What happened, as the nodes that answer saw it: oldest first.
    pub async fn cluster_events(&self) -> Vec<Event> {
        status::events_of_the_cluster(&self.service, &self.client).await
    }

    /// Sends the bytes of a backup of the whole cluster's metadata, in order: see [`crate::backup`].
    pub async fn backup(&self, out: mpsc::Sender<Bytes>) {
        backup::take(&self.service, &self.client, out).await;
    }

    /// In Prometheus' text format.
    pub fn metrics_text(&self) -> String {
        self.metrics_text_with(&|_| {})
    }

    /// As `metrics_text`, with the metrics that `more` registers.
    pub fn metrics_text_with(&self, more: &dyn Fn(&mut Registry)) -> String {
        metrics::text(&self.service, &self.status(), self.client.lagging_stores(), more)
    }

    /// Stops workers, flushes the key-value store (so that the next start replays little), closes the disks.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        workers::flush_now(&self.service).await;
        for group in self.service.replicas.all() {
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
    if home::load_restoring(&*config.data).await?.is_some() {
        let why = "the restoration of this node's metadata was cut off: run `henge metadata restore` again";
        return Err(StartError(why.into()));
    }
    if let Some(identity) = home::load_identity(&*config.data).await? {
        return Ok(identity);
    }
    let cluster = ClusterId::random(&*config.env.random);
    let identity = NodeIdentity { cluster, node: NodeId(1), set_up: false, joined: false, recovered: false };
    home::store_identity(&*config.data, &identity).await.map_err(HomeError::from)?;
    Ok(identity)
}

/// A tombstone may go once no member of its placement group can bring the chunk back.
fn with_tombstone_rule(mut tuning: Tuning, repair: &Arc<Progress>) -> Tuning {
    let (repair, given) = (repair.clone(), tuning.engine.may_drop_tombstone.clone());
    tuning.engine.may_drop_tombstone = Arc::new(move |id| repair.may_forget(id) && given(id));
    tuning
}

async fn open_disks(
    config: &Config,
    tuning: &Tuning,
    identity: &NodeIdentity,
    alone: bool,
) -> Result<Disks, StartError> {
    let mut all: Vec<NodeDisk> = Vec::new();
    for (position, spec) in config.disks.iter().enumerate() {
        let disk = open_disk(&config.env, spec, &tuning.engine, identity, position == 0, alone).await?;
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
    alone: bool,
) -> Result<NodeDisk, StartError> {
    let label = spec.label.clone();
    let refuse = |why: String| StartError(format!("disk {label}: {why}"));
    let options = EngineOptions { size_bytes_max: spec.size_bytes_max, ..options.clone() };
    let found = Engine::read_identity(&spec.disk).await;
    let found = match found {
        Ok(found) => found,
        Err(error) if metadata || !matches!(error, StoreError::Io(_)) => return Err(refuse(error.to_string())),
        // The disk itself is out of order: the others go on.
        Err(error) => return Ok(NodeDisk::new(label, DiskId(0), Err(error.to_string()))),
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
        None if metadata && identity.set_up && alone => {
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
            Ok(NodeDisk::new(label, id, Ok(engine)))
        }
        Err(error) if metadata || matches!(error, StoreError::InUse | StoreError::NewerFormat { .. }) => {
            Err(refuse(error.to_string()))
        }
        Err(error) => Ok(NodeDisk::new(label, id, Err(error.to_string()))),
    }
}

/// The key-value store lies on the metadata disk, beside the Raft logs that it depends on. One that is damaged as a whole
/// is set aside when two `others` have what it held: its replicas are then made anew under new peer ids.
async fn open_key_value(
    config: &Config,
    tuning: &Tuning,
    identity: &NodeIdentity,
    disks: &Disks,
    others: usize,
) -> Result<Arc<LsmKv>, StartError> {
    let spec = &config.disks[0];
    let seed = disks.metadata().identity().disk.0;
    let refuse = |error: KvError| StartError(format!("disk {}: {error}", spec.label));
    let open = || LsmKv::open(&config.env, spec.disk.clone(), seed, tuning.key_value.clone());
    let opened = match open().await {
        Err(error @ KvError::Damaged { .. }) if others >= 2 => {
            tracing::error!("disk {}: {error}; it is set aside, the other nodes have what it held", spec.label);
            LsmKv::set_aside(&*spec.disk).map_err(refuse)?;
            open().await
        }
        opened => opened,
    };
    let (kv, report) = opened.map_err(refuse)?;
    if report.created && identity.set_up && others == 0 {
        return Err(StartError(format!(
            "disk {}: the key-value store with this node's metadata is missing; with one copy nothing can replace it: \
             bring back the disk's earlier state, or start anew with an empty --data",
            spec.label
        )));
    }
    for damage in &report.damages {
        tracing::error!("key-value store on disk {}: {damage:?}", spec.label);
    }
    Ok(kv)
}

fn start_repair(env: &Env, tuning: &Tuning, service: &Arc<Service>, client: &Client, stop: &watch::Sender<bool>) {
    let repairer = Arc::new(Repairer {
        env: env.clone(),
        node: service.node,
        disks: service.disks.clone(),
        peers: Arc::new(Others(client.clone())),
        progress: service.repair.clone(),
        healing: tuning.healing.clone(),
        arrivals: service.arrivals.clone(),
        events: Some(service.events.clone()),
        budget: Budget::new(&service.disks),
    });
    // Before, the map here may be older than what this node had adopted.
    let is_present = |service: Arc<Service>| move || *service.standing.borrow() == Standing::Serving;
    let (map, may_act) = (service.map.clone(), is_present(service.clone()));
    env.spawn("unite", repairer.clone().run_moves(map.clone(), may_act, stop.subscribe()));
    let replicas = service.replicas.clone();
    let are_sound = move || replicas.are_sound();
    env.spawn("scrub damage", repairer.clone().run_scrubs(map.clone(), are_sound, stop.subscribe()));
    env.spawn("compare", repairer.run_comparisons(map, is_present(service.clone()), stop.subscribe()));
}

/// The replicas that are there; on the very first start of a founder, the groups that a cluster begins with.
async fn open_groups(replicas: &Replicas, identity: &NodeIdentity, alone: bool) -> Result<(), StartError> {
    replicas.open_all(alone, identity.recovered).await.map_err(StartError)?;
    if identity.joined {
        return Ok(());
    }
    for id in [GROUP_ZERO, FIRST_SHARD] {
        if replicas.get(id).is_some() {
            continue;
        }
        if !identity.set_up {
            replicas.found(id).await.map_err(StartError)?;
        } else if alone {
            return Err(StartError(format!("the Raft log of group {id} is missing from the metadata disk")));
        }
    }
    Ok(())
}

fn start_workers(
    env: &Env,
    tuning: &Tuning,
    service: &Arc<Service>,
    client: &Client,
    stop: &watch::Sender<bool>,
    clock: Arc<GenerationClock>,
    home: Arc<dyn Disk>,
) {
    env.spawn(
        "flush key-value",
        workers::flush_key_value(env.clone(), service.clone(), tuning.flush_bytes, stop.subscribe()),
    );
    let collect =
        workers::collect_garbage(env.clone(), service.clone(), client.clone(), tuning.garbage_grace, stop.subscribe());
    env.spawn("collect garbage", collect);
    let expire =
        lifecycle::run(env.clone(), service.clone(), client.clone(), tuning.lifecycle.clone(), stop.subscribe());
    env.spawn("lifecycle", expire);
    let (sweeper, finisher) = (client.clone(), client.clone());
    let period = tuning.healing.renew_after;
    let renew =
        workers::renew_session(env.clone(), service.clone(), client.clone(), clock.clone(), period, stop.subscribe());
    env.spawn("renew session", renew);
    let announce = workers::announce_failures(env.clone(), service.clone(), client.clone(), stop.subscribe());
    env.spawn("announce failures", announce);
    let raise = workers::raise_shards(env.clone(), service.clone(), client.clone(), stop.subscribe());
    env.spawn("raise shards", raise);
    let interval = tuning.healing.sweep_interval;
    env.spawn("sweep orphans", sweep::run(env.clone(), service.clone(), sweeper, interval, stop.subscribe()));
    env.spawn("report", controller::report(env.clone(), service.clone(), client.clone(), stop.subscribe()));
    let control = controller::control(
        env.clone(),
        service.clone(),
        client.clone(),
        tuning.healing.lost_after,
        tuning.fence_agent.clone(),
        stop.subscribe(),
    );
    env.spawn("control", control);
    start_repair(env, tuning, service, client, stop);
    let mut standing = service.standing.subscribe();
    env.spawn("finish buckets", async move {
        if standing.wait_for(|standing| *standing == Standing::Serving).await.is_err() {
            return;
        }
        if let Err(error) = finisher.finish_buckets().await {
            tracing::warn!("half-made buckets wait for the next start: {error}");
        }
    });
    let ask = workers::ask_for_map(env.clone(), service.clone(), client.clone(), stop.subscribe());
    env.spawn("ask for the map", ask);
    env.spawn("follow map", workers::follow_map(env.clone(), service.clone(), client.clone(), home));
}
