//! Who takes the power away, kills the process, breaks flushes and flips bits, and brings the node back each time.
//! What happens to several nodes and to the network between them is in `trouble.rs`.

use base::env::RandomExt;
use base::ids::NodeId;
use base::sim::{Fault, SimDisk, SimHandle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::{Cluster, FOUNDER, StartFailure};
use crate::plan::{Plan, Profile};
use crate::ration::Ration;
use crate::recorder::Recorder;
use crate::worker::{Excuses, Worker};
use node::Verdict;

/// Starts that may crash in a row before one is let through.
const CRASHED_STARTS_MAX: u32 = 5;
/// As the n-th operation from now: never.
pub const NEVER: u64 = u64::MAX;

#[derive(Clone)]
pub struct Nemesis {
    pub sim: SimHandle,
    pub cluster: Cluster,
    pub recorder: Recorder,
    pub plan: Arc<Plan>,
    pub excuses: Arc<Excuses>,
    /// Reads everything after each start.
    pub verifier: Worker,
    /// The buckets of the plan exist.
    pub is_set_up: Arc<AtomicBool>,
    pub ration: Ration,
}

/// The node refused to start, rightly: the run is over.
pub struct Refused;

impl Nemesis {
    /// Brings trouble until its share is done or the clients are; then the node runs.
    pub async fn run(&self, clients_done: Arc<AtomicBool>) -> Result<(), Refused> {
        for _ in 0..self.plan.crashes {
            if clients_done.load(Ordering::Relaxed) {
                break;
            }
            match self.plan.profile {
                Profile::FlushErrors if self.sim.below(2) == 0 => self.break_flushes().await,
                Profile::BitRot => self.rot(),
                _ => {}
            }
            self.stop_somehow().await;
            if self.plan.profile == Profile::MetadataRot && self.sim.below(3) == 0 {
                self.flip_metadata();
            }
            self.start(FOUNDER).await?;
            self.verify().await;
        }
        self.arm(FOUNDER, 0);
        Ok(())
    }

    /// The end of one life of the node, in one of many ways.
    async fn stop_somehow(&self) {
        let patience = Duration::from_millis(self.sim.below(250));
        match self.sim.below(10) {
            0..5 => {
                // In the middle of a disk operation.
                self.arm(FOUNDER, 1 + self.sim.below([5, 60, 400][self.sim.below(3) as usize]));
                let stopped = self.sim.node(FOUNDER).stopped();
                tokio::select! {
                    biased;
                    () = stopped => {}
                    () = self.sim.sleep(patience * 4) => {}
                }
                self.recorder.fault("a power cut in the middle of a disk operation");
                self.recorder.count("crashes_in_operations", 1);
                self.cluster.crash(FOUNDER).await;
            }
            5..8 => {
                self.sim.sleep(patience).await;
                self.recorder.fault("a power cut");
                self.recorder.count("crashes", 1);
                self.cluster.crash(FOUNDER).await;
            }
            8 => {
                self.sim.sleep(patience).await;
                self.recorder.fault("its process is killed");
                self.recorder.count("kills", 1);
                self.cluster.kill(FOUNDER).await;
            }
            _ => {
                self.sim.sleep(patience).await;
                self.recorder.fault("an orderly shutdown");
                self.recorder.count("shutdowns", 1);
                self.cluster.shut_down(FOUNDER).await;
            }
        }
        self.arm(FOUNDER, 0);
    }

    /// Has the power fail in the middle of the n-th disk operation from now; 0 takes that back.
    pub fn arm(&self, node: NodeId, nth: u64) {
        self.sim.disk(node, "data").crash_after_ops(nth);
    }

    /// Starts a node; some starts crash on the way.
    pub async fn start(&self, node: NodeId) -> Result<(), Refused> {
        self.sim.sleep(Duration::from_millis(self.sim.below(50))).await;
        let mut crashed = 0;
        loop {
            if crashed < CRASHED_STARTS_MAX && self.sim.below(4) == 0 {
                self.arm(node, 1 + self.sim.below([3, 15, 80][self.sim.below(3) as usize]));
            }
            let started = self.cluster.start(node).await;
            if !self.sim.is_running(node) {
                // Also when the start was quick enough to report what the failing power did to it.
                crashed += 1;
                self.recorder.fault("a power cut in the middle of a start");
                self.recorder.count("crashes_in_starts", 1);
                self.cluster.stopped(node).await;
                self.arm(node, 0);
                continue;
            }
            match started {
                Ok(()) => {
                    if self.plan.nodes > 1 {
                        // One node alone may well crash on; of several, only those whose turn it is.
                        self.arm(node, 0);
                    }
                    self.recorder.count("starts", 1);
                    return Ok(());
                }
                Err(StartFailure::Crashed) => unreachable!("a start that crashed leaves no running node"),
                Err(StartFailure::Refused(why)) if self.excuses.damage.load(Ordering::Relaxed) => {
                    self.recorder.count("starts_refused", 1);
                    if why.is_empty() {
                        self.recorder.violation("a start was refused without a reason".into());
                    }
                    return Err(Refused);
                }
                Err(StartFailure::Refused(why)) if self.is_identity_spoilt(node, &why) => {
                    self.recorder.note(|| {
                        format!("node {node} does not start, and its disk is replaced by an empty one: {why}")
                    });
                    self.recorder.fault("a disk is replaced by an empty one");
                    if self.sim.is_running(node) {
                        self.cluster.kill(node).await;
                    }
                    self.exchange_disk(&self.cluster.chunk_disks(node)[1]);
                }
                Err(StartFailure::Refused(why)) => {
                    self.recorder.violation(format!("node {node} refuses to start: {why}"));
                    return Err(Refused);
                }
                Err(StartFailure::Late) => {
                    self.recorder.violation(format!("node {node} did not start in time"));
                    return Err(Refused);
                }
            }
        }
    }

    /// A write that landed elsewhere may have hit both copies of who the disk is: then somebody has to come and replace it.
    fn is_identity_spoilt(&self, node: NodeId, why: &str) -> bool {
        self.ration.tainted() == Some(node)
            && self.plan.disks > 1
            && why.contains("disk1: the disk's identity is damaged")
    }

    /// An empty disk in the place of this one. What was to befall that does not befall the new one's identity.
    pub fn exchange_disk(&self, disk: &SimDisk) {
        disk.erase();
        disk.inject(Fault::LostWrite, NEVER);
        disk.inject(Fault::MisdirectedWrite, NEVER);
    }

    /// Flush errors are final: until it is started anew, the node must not acknowledge what it cannot keep.
    async fn break_flushes(&self) {
        let disks = self.cluster.chunk_disks(FOUNDER);
        let disk = &disks[self.sim.below(disks.len() as u64) as usize];
        self.excuses.damage.store(true, Ordering::Relaxed);
        disk.inject(Fault::FlushError, 1 + self.sim.below(40));
        self.recorder.count("flush_errors", 1);
        self.sim.sleep(Duration::from_millis(self.sim.below(800))).await;
        if let Some(status) = self.cluster.status(FOUNDER) {
            let is_broken = status.nodes.iter().flat_map(|node| &node.disks).any(|disk| disk.state == "failed");
            if is_broken {
                self.recorder.count("disks_broken", 1);
            }
            if is_broken && status.verdict < Verdict::Unavailable {
                self.recorder.violation(format!("a disk is broken and the status says {:?}", status.verdict));
            }
        }
        disk.inject(Fault::FlushError, NEVER);
        // Ended here, so that no answer given meanwhile is excused later.
        self.recorder.count("crashes", 1);
        self.cluster.crash(FOUNDER).await;
        self.arm(FOUNDER, 0);
        self.excuses.damage.store(false, Ordering::Relaxed);
        if self.start(FOUNDER).await.is_err() {
            self.recorder.violation("the node does not come back after a flush error".into());
        }
    }

    /// Damages a disk without metadata, at rest or by writes to come.
    fn rot(&self) {
        let disks = self.cluster.chunk_disks(FOUNDER);
        let Some(disk) = disks.get(1) else { return };
        self.excuses.damage.store(true, Ordering::Relaxed);
        if self.sim.below(2) == 0 {
            disk.set_rate_ppm(Fault::BitRot, 100_000);
        }
        for _ in 0..1 + self.sim.below(4) {
            let soon = 1 + self.sim.below(20);
            match self.sim.below(6) {
                0 => disk.inject(Fault::LostWrite, soon),
                1 => disk.inject(Fault::MisdirectedWrite, soon),
                2 => disk.inject(Fault::ReadError, soon),
                _ => drop(disk.flip_anywhere()),
            }
            self.recorder.count("disk_faults", 1);
        }
    }

    /// Flips bits on the disk with the metadata.
    fn flip_metadata(&self) {
        self.excuses.damage.store(true, Ordering::Relaxed);
        for _ in 0..1 + self.sim.below(3) {
            if let Some((file, offset)) = self.cluster.chunk_disks(FOUNDER)[0].flip_anywhere() {
                self.recorder.note(|| format!("a bit has flipped in {file} at byte {offset}"));
                self.recorder.count("metadata_bits_flipped", 1);
            }
        }
    }

    /// What every start is followed by: a read of every key.
    async fn verify(&self) {
        if !self.is_set_up.load(Ordering::Relaxed) {
            return;
        }
        let serving = self.verifier.serving().await;
        self.verifier.read_all(&serving, self.sim.below(3) == 0).await;
    }
}
