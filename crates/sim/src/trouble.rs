//! What happens to the nodes of a cluster, to their disks and to the network between them; rationed, so that what is
//! promised can be kept.

use base::env::RandomExt;
use base::ids::NodeId;
use base::sim::NetModel;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cluster::{FOUNDER, Serving};
use crate::nemesis::{Nemesis, Refused};
use crate::worker::TROUBLE;
use node::Verdict;

/// Virtual time within which a cluster that nothing stands in the way of must be safe.
const SAFE_MAX: Duration = Duration::from_secs(180);
/// How often one looks whether it is.
const SAFE_CHECK: Duration = Duration::from_millis(500);
/// After so much of an outage, the others must serve.
const FAILOVER_MAX: Duration = Duration::from_secs(5);
/// Outages this long are used to look whether they do.
const OUTAGE_LONG: Duration = Duration::from_secs(9);
/// Tries of a change of the membership.
const TRIES_MAX: u32 = 20;

/// Which nodes are in trouble: never more than a minority at once, apart from power cuts that hit all.
#[derive(Clone, Default)]
pub struct Ration(Arc<Mutex<Rationed>>);

#[derive(Default)]
struct Rationed {
    struck: BTreeSet<NodeId>,
    /// Its copies may be bad or missing, so that those of the others must be spared.
    tainted: Option<NodeId>,
}

impl Ration {
    fn held(&self) -> MutexGuard<'_, Rationed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strike(&self, node: NodeId, nodes: usize) {
        let mut held = self.held();
        assert!(held.struck.insert(node), "one trouble at a time for node {node}");
        assert!(held.struck.len() <= (nodes - 1) / 2, "at most a minority of {nodes} nodes is in trouble");
        let is_spared = held.tainted.is_some_and(|tainted| tainted != node);
        assert!(!is_spared || held.struck.len() == 1, "beside node {:?} only one more is touched", held.tainted);
    }

    /// The copies of some node may be bad until they have been looked at.
    pub fn is_tainted(&self) -> bool {
        self.held().tainted.is_some()
    }

    pub fn is_tainted_node(&self, node: NodeId) -> bool {
        self.held().tainted == Some(node)
    }

    fn mend(&self, node: NodeId) {
        assert!(self.held().struck.remove(&node), "node {node} was in trouble");
    }
}

/// What happens to one node, and is undone after a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    PowerCut,
    PowerCutInOperation,
    Kill,
    ShutDown,
    Pause,
    /// No link to anybody, in neither direction.
    Isolated,
    /// It is heard by nobody.
    Mute,
    /// It hears nobody.
    Deaf,
    /// One link is cut, both ways: the others are bridges.
    Bridge,
    /// One link is cut, one way.
    OneWay,
    Flapping,
    /// What is sent to it and by it waits, and arrives later.
    Hang,
    SlowDisks,
}

const TROUBLES: [Trouble; 13] = [
    Trouble::PowerCut,
    Trouble::PowerCutInOperation,
    Trouble::Kill,
    Trouble::ShutDown,
    Trouble::Pause,
    Trouble::Isolated,
    Trouble::Mute,
    Trouble::Deaf,
    Trouble::Bridge,
    Trouble::OneWay,
    Trouble::Flapping,
    Trouble::Hang,
    Trouble::SlowDisks,
];

impl Trouble {
    /// All others can work as if the node did not exist.
    fn leaves_service(self) -> bool {
        !matches!(self, Trouble::Bridge | Trouble::OneWay | Trouble::Flapping | Trouble::SlowDisks)
    }
}

impl Nemesis {
    /// The first node, and all that join it. In a cluster: until everything is safe.
    pub async fn found(&self) -> Result<(), Refused> {
        self.start(FOUNDER).await?;
        if self.plan.nodes == 1 {
            return Ok(());
        }
        self.excuses.calm_since_nanos.store(TROUBLE, Ordering::Relaxed);
        self.unsettle_clocks(FOUNDER);
        for _ in 1..self.plan.nodes {
            self.join().await?;
        }
        self.await_safe("after the nodes have joined").await
    }

    /// Brings trouble until its share is done or the clients are; then all nodes run and reach each other.
    pub async fn trouble(&self, clients_done: Arc<AtomicBool>) -> Result<(), Refused> {
        for _ in 0..self.plan.crashes {
            if clients_done.load(Ordering::Relaxed) {
                break;
            }
            self.sim.sleep(Duration::from_millis(self.sim.below(600))).await;
            self.excuses.calm_since_nanos.store(TROUBLE, Ordering::Relaxed);
            match self.sim.below(20) {
                0..2 => self.cut_all_power().await?,
                2 => self.replace_disk().await?,
                3 => self.replace_node().await?,
                4 => self.rot_chunks().await?,
                5 => self.rot_metadata().await?,
                _ => self.strike_some().await?,
            }
            self.excuses.calm_since_nanos.store(self.sim.now().0, Ordering::Relaxed);
        }
        Ok(())
    }

    fn draw_node(&self) -> NodeId {
        let nodes = self.cluster.nodes();
        nodes[self.sim.below(nodes.len() as u64) as usize]
    }

    /// Short outages mostly, long ones sometimes.
    fn outage(&self) -> Duration {
        let millis_max = match self.sim.below(10) {
            0..4 => 300,
            4..7 => 1500,
            7..9 => 5000,
            _ => return OUTAGE_LONG + Duration::from_millis(self.sim.below(25_000)),
        };
        Duration::from_millis(self.sim.below(millis_max))
    }

    /// Trouble for one node, or in a large cluster for a minority of them, each in its own way.
    async fn strike_some(&self) -> Result<(), Refused> {
        let tainted = self.ration.held().tainted;
        let count_max = if tainted.is_some() { 1 } else { (self.plan.nodes as u64 - 1) / 2 };
        let count = 1 + self.sim.below(count_max);
        let mut victims = BTreeSet::new();
        while (victims.len() as u64) < count {
            victims.insert(self.draw_node());
        }
        let spared: Vec<NodeId> = self.cluster.nodes().into_iter().filter(|node| !victims.contains(node)).collect();
        let troubles: Vec<(NodeId, Trouble)> = victims
            .into_iter()
            .map(|victim| (victim, TROUBLES[self.sim.below(TROUBLES.len() as u64) as usize]))
            .collect();
        let outage = self.outage();
        self.recorder.note(|| format!("for {outage:?}: {troubles:?}"));
        // Two of five may be two of the three that vote in a shard.
        let leaves_service = troubles.len() == 1 && troubles.iter().all(|(_, trouble)| trouble.leaves_service());
        let strikes = troubles.into_iter().map(|(victim, trouble)| self.strike(victim, trouble, outage));
        let (struck, ()) = futures_util::future::join(join_all(strikes), async {
            if leaves_service && outage >= OUTAGE_LONG {
                self.sim.sleep(FAILOVER_MAX).await;
                self.probe(&spared).await;
            }
        })
        .await;
        struck.into_iter().collect()
    }

    /// Those who are well serve, whatever happens to the others.
    async fn probe(&self, nodes: &[NodeId]) {
        // What is lost in silence is waited for in vain, however well everybody is.
        if !self.is_set_up.load(Ordering::Relaxed) || self.plan.is_rough {
            return;
        }
        for serving in self.cluster.all_serving().iter().filter(|serving| nodes.contains(&serving.node)) {
            let began = self.sim.now();
            let worker = &self.verifier;
            let Some(info) = worker.bucket(serving, 0).await else { continue };
            let key = worker.key(0, &self.plan.keys[0]);
            let is_done = worker.put_len(serving, &info, &key, crate::history::Condition::Always, 5000).await;
            let took = self.sim.now().since(began);
            self.recorder.count("probes", 1);
            if !is_done || took > FAILOVER_MAX {
                self.recorder.violation(format!(
                    "at {:?}: a minority is in trouble, and node {} of the others {} in {took:?}",
                    Duration::from_nanos(self.sim.now().0),
                    serving.node,
                    if is_done { "wrote only" } else { "did not write" },
                ));
            }
        }
    }

    async fn strike(&self, victim: NodeId, trouble: Trouble, outage: Duration) -> Result<(), Refused> {
        self.ration.strike(victim, self.plan.nodes);
        let others: Vec<NodeId> = self.cluster.nodes().into_iter().filter(|node| *node != victim).collect();
        let other = others[self.sim.below(others.len() as u64) as usize];
        let to: Vec<(NodeId, NodeId)> = others.iter().map(|other| (*other, victim)).collect();
        let from: Vec<(NodeId, NodeId)> = others.iter().map(|other| (victim, *other)).collect();
        match trouble {
            Trouble::PowerCut | Trouble::PowerCutInOperation | Trouble::Kill | Trouble::ShutDown => {
                self.stop(victim, trouble).await;
                self.sim.sleep(outage).await;
                self.start(victim).await?;
            }
            Trouble::Pause => {
                self.sim.pause(victim);
                self.sim.sleep(outage).await;
                self.sim.resume(victim);
            }
            Trouble::Isolated => self.cut(&[to, from].concat(), outage).await,
            Trouble::Mute => self.cut(&from, outage).await,
            Trouble::Deaf => self.cut(&to, outage).await,
            Trouble::Bridge => self.cut(&[(victim, other), (other, victim)], outage).await,
            Trouble::OneWay => self.cut(&[(victim, other)], outage).await,
            Trouble::Flapping => {
                for _ in 0..2 + self.sim.below(8) {
                    let open = Duration::from_millis(self.sim.below(400));
                    self.cut(&[&to[..], &from[..]].concat(), Duration::from_millis(20 + self.sim.below(700))).await;
                    self.sim.sleep(open).await;
                }
            }
            Trouble::Hang => self.hang(&[to, from].concat(), outage).await,
            Trouble::SlowDisks => {
                let factor = [20, 200][self.sim.below(2) as usize];
                self.cluster.disks(victim).iter().for_each(|disk| disk.set_slowness(factor));
                self.sim.sleep(outage).await;
                self.cluster.disks(victim).iter().for_each(|disk| disk.set_slowness(1));
            }
        }
        self.recorder.count("node_outages", 1);
        self.ration.mend(victim);
        Ok(())
    }

    async fn stop(&self, victim: NodeId, trouble: Trouble) {
        match trouble {
            Trouble::PowerCutInOperation => {
                self.arm(victim, 1 + self.sim.below([5, 60, 400][self.sim.below(3) as usize]));
                let stopped = self.sim.node(victim).stopped();
                tokio::select! {
                    biased;
                    () = stopped => {}
                    () = self.sim.sleep(Duration::from_secs(1)) => {}
                }
                self.recorder.count("crashes_in_operations", 1);
                self.cluster.crash(victim).await;
                self.arm(victim, 0);
            }
            Trouble::Kill => {
                self.recorder.count("kills", 1);
                self.cluster.kill(victim).await;
            }
            Trouble::ShutDown => {
                self.recorder.count("shutdowns", 1);
                self.cluster.shut_down(victim).await;
            }
            _ => {
                self.recorder.count("crashes", 1);
                self.cluster.crash(victim).await;
            }
        }
    }

    async fn cut(&self, links: &[(NodeId, NodeId)], outage: Duration) {
        self.recorder.count("network_cuts", 1);
        links.iter().for_each(|(from, to)| self.sim.cut(*from, *to));
        self.sim.sleep(outage).await;
        links.iter().for_each(|(from, to)| self.sim.uncut(*from, *to));
    }

    async fn hang(&self, links: &[(NodeId, NodeId)], outage: Duration) {
        self.recorder.count("network_hangs", 1);
        links.iter().for_each(|(from, to)| self.sim.hang(*from, *to));
        self.sim.sleep(outage).await;
        links.iter().for_each(|(from, to)| self.sim.unhang(*from, *to));
    }

    /// The one event that the ration does not hold for: everything that was acknowledged is on disks.
    pub async fn cut_all_power(&self) -> Result<(), Refused> {
        self.recorder.count("power_cuts_of_all", 1);
        self.cluster.crash_all().await;
        let starts = self.cluster.nodes().into_iter().map(|node| async move {
            self.sim.sleep(Duration::from_millis(self.sim.below(2000))).await;
            self.start(node).await
        });
        join_all(starts).await.into_iter().collect()
    }

    /// Before something is destroyed, everything has all its copies; and nothing else was damaged before.
    async fn draw_doomed(&self) -> Result<NodeId, Refused> {
        self.await_safe("before something is destroyed").await?;
        let tainted = self.ration.held().tainted;
        Ok(tainted.unwrap_or_else(|| self.draw_node()))
    }

    /// A disk without metadata comes back empty.
    async fn replace_disk(&self) -> Result<(), Refused> {
        let victim = self.draw_doomed().await?;
        let Some(disk) = self.cluster.chunk_disks(victim).get(1).cloned() else { return Ok(()) };
        self.ration.strike(victim, self.plan.nodes);
        self.recorder.note(|| format!("disk {} of node {victim} is replaced by an empty one", disk.name()));
        self.recorder.count("disks_replaced", 1);
        self.cluster.crash(victim).await;
        disk.erase();
        self.sim.sleep(self.outage()).await;
        self.start(victim).await?;
        self.ration.mend(victim);
        self.await_safe("after a disk was replaced").await
    }

    /// A node is gone with all its disks, is removed, and a new one joins.
    async fn replace_node(&self) -> Result<(), Refused> {
        let victim = self.draw_doomed().await?;
        self.ration.strike(victim, self.plan.nodes);
        self.cluster.crash(victim).await;
        self.sim.sleep(self.outage()).await;
        self.replace(victim).await
    }

    /// Removes `victim`, which does not run, and has a new node join.
    async fn replace(&self, victim: NodeId) -> Result<(), Refused> {
        self.recorder.note(|| format!("node {victim} is gone for good"));
        self.recorder.count("nodes_replaced", 1);
        self.cluster.disks(victim).iter().for_each(|disk| disk.erase());
        let mut last = String::new();
        let mut is_removed = false;
        for _ in 0..TRIES_MAX {
            let through = self.any_serving_but(victim).await;
            match self.cluster.remove(victim, &through).await {
                Ok(()) => {
                    is_removed = true;
                    break;
                }
                Err(why) => last = why,
            }
            self.sim.sleep(Duration::from_secs(1)).await;
        }
        self.ration.mend(victim);
        self.ration.held().tainted = None;
        if !is_removed {
            self.recorder.violation(format!("node {victim} cannot be removed: {last}"));
            return Err(Refused);
        }
        self.join().await?;
        self.await_safe("after a node was replaced").await
    }

    /// No two clocks agree.
    fn unsettle_clocks(&self, node: NodeId) {
        let drift_ppm_max = 500;
        self.sim.set_drift(node, self.sim.below(2 * drift_ppm_max) as i64 - drift_ppm_max as i64);
        self.sim.jump_wall(node, self.sim.below(120_000) as i64 - 60_000);
    }

    async fn any_serving_but(&self, not: NodeId) -> Serving {
        loop {
            let serving = self.verifier.serving().await;
            if serving.node != not {
                return serving;
            }
            self.sim.sleep(SAFE_CHECK).await;
        }
    }

    /// A new node joins and starts.
    async fn join(&self) -> Result<(), Refused> {
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            let through = self.verifier.serving().await;
            match self.cluster.join(&through).await {
                Ok(node) => {
                    self.recorder.note(|| format!("node {node} joins"));
                    self.recorder.count("nodes_joined", 1);
                    self.unsettle_clocks(node);
                    return self.start(node).await;
                }
                Err(why) => last = why,
            }
            self.sim.sleep(Duration::from_secs(1)).await;
        }
        self.recorder.violation(format!("no node can join: {last}"));
        Err(Refused)
    }

    /// Chunks of one node rot; from then on, those of the others are spared.
    async fn rot_chunks(&self) -> Result<(), Refused> {
        let victim = self.draw_doomed().await?;
        let Some(disk) = self.cluster.chunk_disks(victim).get(1).cloned() else { return Ok(()) };
        self.ration.held().tainted = Some(victim);
        for _ in 0..1 + self.sim.below(6) {
            if let Some((file, offset)) = disk.flip_anywhere() {
                self.recorder.note(|| format!("a bit has flipped on node {victim} in {file} at byte {offset}"));
                self.recorder.count("chunk_bits_flipped", 1);
            }
        }
        Ok(())
    }

    /// The metadata disk of one node rots while it is stopped: it serves what is right, or says no and is replaced.
    async fn rot_metadata(&self) -> Result<(), Refused> {
        let victim = self.draw_doomed().await?;
        self.ration.strike(victim, self.plan.nodes);
        self.ration.held().tainted = Some(victim);
        self.cluster.crash(victim).await;
        let disk = &self.cluster.chunk_disks(victim)[0];
        for _ in 0..1 + self.sim.below(4) {
            if let Some((file, offset)) = disk.flip_anywhere() {
                self.recorder.note(|| format!("a bit has flipped on node {victim} in {file} at byte {offset}"));
                self.recorder.count("metadata_bits_flipped", 1);
            }
        }
        match self.cluster.start(victim).await {
            Ok(()) => {
                self.ration.mend(victim);
                Ok(())
            }
            Err(failure) => {
                self.recorder.note(|| format!("node {victim} does not start: {failure:?}"));
                self.recorder.count("starts_refused", 1);
                if self.sim.is_running(victim) {
                    self.cluster.kill(victim).await;
                }
                self.replace(victim).await
            }
        }
    }

    /// Waits until every node runs, reaches the others, and says that everything is safe.
    pub async fn await_safe(&self, when: &str) -> Result<(), Refused> {
        let began = self.sim.now();
        loop {
            let Some(why) = self.why_unsafe().await else {
                self.recorder.note(|| format!("safe {when}, after {:?}", self.sim.now().since(began)));
                return Ok(());
            };
            if self.sim.now().since(began) > SAFE_MAX / 2 {
                // What is lost in silence again and again, nobody can wait for.
                self.sim.set_net_model(NetModel::default());
            }
            if self.sim.now().since(began) > SAFE_MAX {
                self.recorder.violation(format!("never safe {when}: {why}"));
                return Err(Refused);
            }
            self.sim.sleep(SAFE_CHECK).await;
        }
    }

    /// What the first node says that does not find everything safe.
    async fn why_unsafe(&self) -> Option<String> {
        for node in self.cluster.nodes() {
            let why = self.why_unsafe_to(node).await;
            if why.is_some() {
                return why;
            }
        }
        None
    }

    async fn why_unsafe_to(&self, node: NodeId) -> Option<String> {
        let Some(status) = self.cluster.cluster_status(node).await else {
            return Some(format!("node {node} does not serve"));
        };
        let is_safe = status.verdict == Verdict::Safe;
        (!is_safe).then(|| {
            let nodes: Vec<String> =
                status.nodes.iter().map(|node| format!("{}.{} {}", node.id, node.generation, node.state)).collect();
            let groups: Vec<String> = status
                .groups
                .iter()
                .map(|group| format!("{}: node {} leads {:?}", group.id, group.leader, group.voters))
                .collect();
            format!(
                "node {node} says {:?}: {}\n      (map {}, nodes [{}], groups [{}])",
                status.verdict,
                status.reasons.join("; "),
                status.epoch,
                nodes.join(", "),
                groups.join(", ")
            )
        })
    }
}
