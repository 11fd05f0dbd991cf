//! The node under test: started, crashed and started again on the same simulated disks.

use base::Env;
use base::env::Disk;
use base::ids::NodeId;
use base::sim::{Crashed, SimDisk, SimHandle};
use client::Client;
use node::{Config, DiskSpec, Node, Status};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

use crate::plan::Plan;
use crate::recorder::Recorder;

pub const NODE: NodeId = NodeId(1);
pub const OWNER: &str = "root";

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

/// One life of the node, as its clients see it.
#[derive(Clone)]
pub struct Serving {
    pub client: Client,
    /// Counts successful starts.
    pub start: u64,
    env: Env,
}

impl Serving {
    /// Runs `task` within the node: it dies with it.
    pub async fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Result<T, Crashed> {
        let (sender, receiver) = oneshot::channel();
        self.env.spawn("client", async move {
            // Nobody may be waiting for the result any more.
            let _ = sender.send(task.await);
        });
        receiver.await.map_err(|_| Crashed)
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
    serving: Arc<watch::Sender<Option<Serving>>>,
}

#[derive(Default)]
struct Shared {
    node: Option<Node>,
    starts: u64,
}

impl Cluster {
    pub fn new(sim: SimHandle, plan: Arc<Plan>, recorder: Recorder) -> Cluster {
        Cluster { sim, plan, recorder, shared: Arc::default(), serving: Arc::new(watch::Sender::new(None)) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All disks, the home directory first, then the one with the metadata.
    pub fn disks(&self) -> Vec<Arc<SimDisk>> {
        let names = std::iter::once("data".to_string()).chain((0..self.plan.disks).map(disk_name));
        names.map(|name| self.sim.disk(NODE, &name)).collect()
    }

    /// The disks that hold chunks; the first holds the metadata too.
    pub fn chunk_disks(&self) -> Vec<Arc<SimDisk>> {
        self.disks().split_off(1)
    }

    fn config(&self, env: Env) -> Config {
        let spec = |disk: Arc<SimDisk>| {
            let label = disk.name().to_string();
            DiskSpec { disk, size_bytes_max: Some(self.plan.disk_bytes), label }
        };
        let data: Arc<dyn Disk> = self.sim.disk(NODE, "data");
        Config {
            env,
            data,
            disks: self.chunk_disks().into_iter().map(spec).collect(),
            locality: String::new(),
            advertise: "127.0.0.1:9002".into(),
            region: "us-east-1".into(),
            root: (OWNER.into(), "not-a-secret".into()),
            authority: None,
        }
    }

    /// Starts the node, which must not run.
    pub async fn start(&self) -> Result<(), StartFailure> {
        assert!(!self.sim.is_running(NODE), "the node is started once at a time");
        let env = self.sim.env(NODE);
        let (config, tuning) = (self.config(env.clone()), self.plan.tuning());
        let (sender, receiver) = oneshot::channel();
        env.spawn("start", async move {
            let _ = sender.send(Node::start_tuned(config, tuning).await);
        });
        let started = tokio::select! {
            biased;
            started = receiver => started.map_err(|_| StartFailure::Crashed)?,
            () = self.sim.sleep(START_MAX) => return Err(StartFailure::Late),
        };
        let node = started.map_err(|error| StartFailure::Refused(error.0))?;
        let client = node.client();
        let start = {
            let mut shared = self.shared();
            shared.starts += 1;
            shared.node = Some(node);
            shared.starts
        };
        // Sessions of earlier lives are closed now: nothing of theirs is executed any more.
        self.recorder.close_unknown();
        self.serving.send_replace(Some(Serving { client, start, env }));
        Ok(())
    }

    /// Waits until the node has stopped, and lets go of it.
    pub async fn stopped(&self) {
        self.sim.node(NODE).stopped().await;
        self.serving.send_replace(None);
        self.gather_metrics();
        let node = self.shared().node.take();
        drop(node);
    }

    /// Power cut.
    pub async fn crash(&self) {
        self.sim.crash(NODE);
        self.stopped().await;
    }

    /// The process ends, the operating system goes on.
    pub async fn kill(&self) {
        self.sim.kill(NODE);
        self.stopped().await;
    }

    /// An orderly end. The node may still crash in the middle of it.
    pub async fn shut_down(&self) {
        self.serving.send_replace(None);
        self.gather_metrics();
        let node = self.shared().node.take();
        if let Some(node) = node {
            let (sender, receiver) = oneshot::channel::<()>();
            self.sim.env(NODE).spawn("shut down", async move {
                node.shutdown().await;
                let _ = sender.send(());
            });
            let _ = receiver.await;
        }
        self.kill().await;
    }

    /// The node's present or next life after the one numbered `after`.
    pub async fn serving(&self, after: u64) -> Serving {
        let mut watch = self.serving.subscribe();
        let ready = watch.wait_for(|serving| serving.as_ref().is_some_and(|serving| serving.start > after));
        ready.await.expect("the sender lives in this cluster").clone().expect("just waited for")
    }

    /// Nothing stands in the way of an answer: the node runs, and was not told to end.
    pub fn is_serving(&self) -> bool {
        self.serving.borrow().is_some() && self.sim.is_running(NODE)
    }

    pub fn status(&self) -> Option<Status> {
        self.shared().node.as_ref().map(Node::status)
    }

    /// What the product says about its background work: a run in which nothing of it happened tests little.
    fn gather_metrics(&self) {
        let Some(text) = self.shared().node.as_ref().map(Node::metrics_text) else { return };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let name = name.split('{').next().unwrap_or(name);
            if let Some((_, count)) = GATHERED.iter().find(|(metric, _)| *metric == name) {
                self.recorder.count(count, value.parse::<f64>().unwrap_or(0.0) as u64);
            }
        }
    }
}

fn disk_name(index: usize) -> String {
    format!("disk{index}")
}
