//! What happens to single nodes of a cluster, to their disks and clocks, and to the network between them, and is undone
//! after a while. What is not undone is in `disaster.rs`.

use base::env::RandomExt;
use base::ids::NodeId;
use base::sim::{Fault, NetModel};
use futures_util::future::{join, join_all};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::FOUNDER;
use crate::nemesis::{NEVER, Nemesis, Refused};
use crate::plan::Profile;
use crate::worker::TROUBLE;

/// After so much of an outage, the others must serve.
const FAILOVER_MAX: Duration = Duration::from_secs(5);
/// Outages this long are used to look whether they do.
const OUTAGE_LONG: Duration = Duration::from_secs(9);
/// Reads that fail on a bad day of a disk, in a million.
const READ_ERRORS_PPM: u64 = 20_000;
/// What a full disk may still take.
const FULL_ROOM_BYTES: u64 = 3 << 20;
/// Where little is written, disks are fuller, reads fail more often, and both for longer.
const FULL_ROOM_STORM_BYTES: u64 = 96 << 10;
const READ_ERRORS_STORM_PPM: u64 = 200_000;
const OUTAGE_OF_DISK_MIN: Duration = Duration::from_millis(700);

/// What happens to one node, and is undone after a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    PowerCut,
    PowerCutInOperation,
    Kill,
    ShutDown,
    Pause,
    Isolated,
    Mute,
    Deaf,
    Bridge,
    OneWay,
    Flapping,
    Hang,
    SlowLinks,
    SlowDisks,
    HangingDisks,
    FlushError,
    ReadErrors,
    FullDisk,
    VanishedDisk,
    ClockJumps,
}

pub const TROUBLES: [Trouble; 20] = [
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
    Trouble::SlowLinks,
    Trouble::SlowDisks,
    Trouble::HangingDisks,
    Trouble::FlushError,
    Trouble::ReadErrors,
    Trouble::FullDisk,
    Trouble::VanishedDisk,
    Trouble::ClockJumps,
];

impl Trouble {
    /// All others can work as if the node did not exist.
    fn leaves_service(self) -> bool {
        matches!(
            self,
            Trouble::PowerCut
                | Trouble::PowerCutInOperation
                | Trouble::Kill
                | Trouble::ShutDown
                | Trouble::Pause
                | Trouble::Isolated
                | Trouble::Mute
                | Trouble::Deaf
                | Trouble::Hang
                | Trouble::HangingDisks
                | Trouble::ClockJumps
        )
    }

    /// The replicas on the node may have to be made anew afterwards.
    fn may_wound(self) -> bool {
        matches!(self, Trouble::FlushError | Trouble::ReadErrors | Trouble::FullDisk | Trouble::VanishedDisk)
    }

    /// As the story tells it and as it is counted.
    fn what(self) -> &'static str {
        match self {
            Trouble::PowerCut => "a power cut",
            Trouble::PowerCutInOperation => "a power cut in the middle of a disk operation",
            Trouble::Kill => "its process is killed",
            Trouble::ShutDown => "an orderly shutdown",
            Trouble::Pause => "it is paused",
            Trouble::Isolated => "no link to anybody",
            Trouble::Mute => "nobody hears it",
            Trouble::Deaf => "it hears nobody",
            Trouble::Bridge => "one link is cut, the others are bridges",
            Trouble::OneWay => "one link is cut one way",
            Trouble::Flapping => "its links come and go",
            Trouble::Hang => "its connections hang",
            Trouble::SlowLinks => "its links are slow",
            Trouble::SlowDisks => "its disks are slow",
            Trouble::HangingDisks => "its disks answer nothing",
            Trouble::FlushError => "a flush fails, then it is started anew",
            Trouble::ReadErrors => "reads of a disk fail now and then",
            Trouble::FullDisk => "a disk is full",
            Trouble::VanishedDisk => "a disk vanishes, then it is started anew with the disk",
            Trouble::ClockJumps => "its clocks jump and drift",
        }
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
        if self.is_undisturbed() {
            self.excuses.calm_since_nanos.store(0, Ordering::Relaxed);
            return Ok(());
        }
        for number in 0..self.plan.crashes {
            if clients_done.load(Ordering::Relaxed) {
                break;
            }
            self.sim.sleep(Duration::from_millis(self.sim.below(600))).await;
            self.excuses.calm_since_nanos.store(TROUBLE, Ordering::Relaxed);
            match self.plan.profile {
                // Nothing happens before the end of its story.
                Profile::Calm if number > 0 => break,
                Profile::Calm => self.lose_all_but_one().await?,
                Profile::Growth if number > 1 => break,
                Profile::Growth if number == 0 => self.grow().await?,
                Profile::Growth => self.shrink().await?,
                Profile::Disaster if number > 0 => break,
                Profile::Disaster => self.trust_and_lose().await?,
                Profile::LostLog => self.lose_a_log().await?,
                Profile::Apart => self.part_leaders_for_long().await?,
                Profile::Zombie => self.wake_zombie().await?,
                Profile::Ballot => self.vote_twice().await?,
                Profile::Stranded => self.strand_entries().await?,
                Profile::Behind => self.interrupt_install().await?,
                Profile::Surge => self.surge().await?,
                Profile::Renewal => self.renew_all().await?,
                Profile::Upgrade => self.upgrade().await?,
                Profile::Overtaken => self.overtake_gateway().await?,
                Profile::Handover => self.hand_over_deleted().await?,
                Profile::Twofold => self.lose_two().await?,
                Profile::Absence => self.outstay_tombstones().await?,
                Profile::Storm if number > 0 => break,
                Profile::Storm => self.storm().await?,
                _ => self.bring_some().await?,
            }
            self.excuses.calm_since_nanos.store(self.sim.now().0, Ordering::Relaxed);
        }
        self.excuses.told.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Nothing happens at all: then nothing is excused.
    pub fn is_undisturbed(&self) -> bool {
        self.plan.profile == Profile::Calm && self.plan.nodes > 3
    }

    async fn bring_some(&self) -> Result<(), Refused> {
        match self.sim.below(26) {
            0..2 => self.cut_all_power().await,
            2 => self.replace_disk().await,
            3 => self.replace_node().await,
            4 => self.spoil_chunks().await,
            5 => self.rot_metadata().await,
            6 => self.part_leaders().await,
            7 => self.restart_in_turn().await,
            8 if self.plan.nodes > 3 => self.drain_one().await,
            9 => self.give_wrong_disk().await,
            10 => self.roughen().await,
            11..13 => self.flicker().await,
            _ => self.strike_some().await,
        }
    }

    /// Any node; a leader more often than not.
    pub fn draw_node(&self) -> NodeId {
        let leaders: BTreeSet<NodeId> = self.cluster.leaders().into_values().collect();
        let nodes = self.cluster.nodes();
        let leaders: Vec<NodeId> = leaders.into_iter().filter(|node| nodes.contains(node)).collect();
        let from = if leaders.is_empty() || self.sim.below(2) == 0 { nodes } else { leaders };
        from[self.sim.below(from.len() as u64) as usize]
    }

    /// Short outages mostly, long ones sometimes.
    pub fn outage(&self) -> Duration {
        if self.plan.profile == Profile::Storm {
            return Duration::from_millis(self.sim.below([250, 250, 1000, 3000][self.sim.below(4) as usize]));
        }
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
        self.spare_the_wounded().await?;
        let count_max = if self.ration.tainted().is_some() { 1 } else { (self.plan.nodes as u64 - 1) / 2 };
        let count = 1 + self.sim.below(count_max);
        let mut victims = BTreeSet::new();
        while (victims.len() as u64) < count {
            victims.insert(self.draw_node());
        }
        let mut troubles: Vec<(NodeId, Trouble)> = victims
            .into_iter()
            .map(|victim| (victim, TROUBLES[self.sim.below(TROUBLES.len() as u64) as usize]))
            .collect();
        // The metadata of one node at a time: two of five may be two of the three that vote in a shard.
        let mut wounds = 0;
        for (_, trouble) in &mut troubles {
            wounds += usize::from(trouble.may_wound());
            if wounds > 1 && trouble.may_wound() {
                *trouble = Trouble::PowerCut;
            }
        }
        self.strike_each(troubles).await
    }

    /// Each of these nodes in its own way, and the others are looked at when it lasts.
    async fn strike_each(&self, troubles: Vec<(NodeId, Trouble)>) -> Result<(), Refused> {
        let is_struck = |node: &NodeId| troubles.iter().any(|(victim, _)| victim == node);
        let spared: Vec<NodeId> = self.cluster.nodes().into_iter().filter(|node| !is_struck(node)).collect();
        let outage = self.outage();
        for (victim, trouble) in &troubles {
            self.recorder.fault(trouble.what());
            self.recorder.note(|| format!("NEMESIS node {victim}: {}, for {outage:?}", trouble.what()));
        }
        // Two of five may be two of the three that vote in a shard.
        let leaves_service = troubles.len() == 1 && troubles.iter().all(|(_, trouble)| trouble.leaves_service());
        let strikes = troubles.into_iter().map(|(victim, trouble)| self.strike(victim, trouble, outage));
        let (struck, ()) = join(join_all(strikes), async {
            if leaves_service && outage >= OUTAGE_LONG {
                self.sim.sleep(FAILOVER_MAX).await;
                self.probe(&spared).await;
            }
        })
        .await;
        self.recorder.note(|| "NEMESIS that is over".into());
        struck.into_iter().collect()
    }

    /// One trouble for one node.
    pub async fn strike_one(&self, trouble: Trouble) -> Result<(), Refused> {
        self.spare_the_wounded().await?;
        self.strike_each(vec![(self.draw_node(), trouble)]).await
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
                let times = if self.plan.profile == Profile::Storm { 2 } else { 8 };
                for _ in 0..2 + self.sim.below(times) {
                    let open = Duration::from_millis(self.sim.below(400));
                    self.cut(&[&to[..], &from[..]].concat(), Duration::from_millis(20 + self.sim.below(700))).await;
                    self.sim.sleep(open).await;
                }
            }
            Trouble::Hang => self.hang(&[to, from].concat(), outage).await,
            Trouble::SlowLinks => self.slow(&[to, from].concat(), outage).await,
            Trouble::SlowDisks => {
                let factor = [20, 200][self.sim.below(2) as usize];
                self.cluster.disks(victim).iter().for_each(|disk| disk.set_slowness(factor));
                self.sim.sleep(outage).await;
                self.cluster.disks(victim).iter().for_each(|disk| disk.set_slowness(1));
            }
            Trouble::HangingDisks => {
                // Short hangs are borne, long ones are not.
                let hang = outage + Duration::from_secs(self.sim.below(2) * 5);
                self.cluster.disks(victim).iter().for_each(|disk| disk.hang_for(hang));
                self.sim.sleep(hang).await;
            }
            Trouble::FlushError | Trouble::ReadErrors | Trouble::FullDisk | Trouble::VanishedDisk => {
                self.break_disk(victim, trouble, outage).await?;
            }
            Trouble::ClockJumps => {
                self.unsettle_clocks(victim);
                self.sim.sleep(outage).await;
                self.unsettle_clocks(victim);
            }
        }
        self.recorder.count("node_outages", 1);
        self.ration.mend(victim);
        Ok(())
    }

    /// One disk of a node is out of order, by errors or for lack of room; nothing that it holds is harmed.
    async fn break_disk(&self, victim: NodeId, trouble: Trouble, outage: Duration) -> Result<(), Refused> {
        let disks = self.cluster.chunk_disks(victim);
        let mut number = self.sim.below(disks.len() as u64) as usize;
        let is_full_in_storm = trouble == Trouble::FullDisk && self.plan.profile == Profile::Storm;
        if is_full_in_storm && self.sim.below(4) > 0 {
            // One that may be full to the brim.
            number = disks.len() - 1;
        }
        let disk = &disks[number];
        self.recorder.note(|| format!("NEMESIS it is {}", base::env::Disk::describe(&**disk)));
        let (room_bytes, read_errors_ppm) = match self.plan.profile {
            // What the metadata needs is kept back from others (see "Known to fail" in `docs/reliability.md`).
            Profile::Storm if number == 0 => (FULL_ROOM_BYTES, READ_ERRORS_STORM_PPM),
            Profile::Storm => (self.sim.below(FULL_ROOM_STORM_BYTES), READ_ERRORS_STORM_PPM),
            _ => (FULL_ROOM_BYTES, READ_ERRORS_PPM),
        };
        let until_restart = match trouble {
            Trouble::FlushError => {
                let nth = if self.plan.profile == Profile::Storm { 3 } else { 10 };
                disk.inject(Fault::FlushError, 1 + self.sim.below(nth));
                true
            }
            Trouble::VanishedDisk => {
                disk.set_vanished(true);
                true
            }
            Trouble::ReadErrors => {
                // The last one: where there are two, not the one with the metadata.
                disks[disks.len() - 1].set_rate_ppm(Fault::ReadError, read_errors_ppm);
                false
            }
            _ => {
                disk.set_room(room_bytes);
                self.excuses.full.store(true, Ordering::Relaxed);
                false
            }
        };
        // Long enough for something to be asked of the disk.
        let outage = if self.plan.profile == Profile::Storm { outage + OUTAGE_OF_DISK_MIN } else { outage };
        let outage = if is_full_in_storm { outage + OUTAGE_OF_DISK_MIN } else { outage };
        let is_metadata = if trouble == Trouble::ReadErrors { disks.len() == 1 } else { number == 0 };
        let asked = async {
            let serving = self.cluster.all_serving().into_iter().find(|serving| serving.node == victim);
            if let (Trouble::ReadErrors, Profile::Storm, Some(serving)) = (trouble, self.plan.profile, serving)
                && self.is_set_up.load(Ordering::Relaxed)
            {
                self.verifier.read_all(&serving, true).await;
            }
        };
        join(self.sim.sleep(outage), asked).await;
        // From here on: whoever else is in trouble was struck at the same moment.
        if is_metadata {
            self.ration.wound(victim);
        }
        for disk in &disks {
            disk.inject(Fault::FlushError, NEVER);
            disk.set_rate_ppm(Fault::ReadError, 0);
            disk.set_vanished(false);
            disk.set_unlimited();
        }
        if until_restart || trouble == Trouble::ReadErrors {
            self.cluster.crash(victim).await;
            self.start(victim).await?;
        }
        Ok(())
    }

    pub async fn stop(&self, victim: NodeId, trouble: Trouble) {
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

    pub async fn cut(&self, links: &[(NodeId, NodeId)], outage: Duration) {
        links.iter().for_each(|(from, to)| self.sim.cut(*from, *to));
        self.sim.sleep(outage).await;
        links.iter().for_each(|(from, to)| self.sim.uncut(*from, *to));
    }

    async fn hang(&self, links: &[(NodeId, NodeId)], outage: Duration) {
        links.iter().for_each(|(from, to)| self.sim.hang(*from, *to));
        self.sim.sleep(outage).await;
        links.iter().for_each(|(from, to)| self.sim.unhang(*from, *to));
    }

    pub async fn slow(&self, links: &[(NodeId, NodeId)], outage: Duration) {
        for (from, to) in links {
            self.sim.set_link_delay(*from, *to, Duration::from_millis(self.sim.below(400)));
        }
        self.sim.sleep(outage).await;
        links.iter().for_each(|(from, to)| self.sim.set_link_delay(*from, *to, Duration::ZERO));
    }

    /// For a while, the whole network loses, repeats and delays.
    pub async fn roughen(&self) -> Result<(), Refused> {
        let outage = self.outage();
        self.recorder.fault("a rough network");
        self.recorder.note(|| format!("NEMESIS the network loses, repeats and delays messages, for {outage:?}"));
        self.sim.set_net_model(NetModel { duplicate_ppm: 200_000, ..NetModel::rough() });
        self.sim.sleep(outage).await;
        self.sim.set_net_model(if self.plan.is_rough { NetModel::rough() } else { NetModel::default() });
        Ok(())
    }

    /// All nodes, one after the other, as for a new version.
    pub async fn restart_in_turn(&self) -> Result<(), Refused> {
        self.spare_the_wounded().await?;
        self.recorder.fault("all nodes are restarted in turn");
        for node in self.cluster.nodes() {
            self.recorder.note(|| format!("NEMESIS node {node} is restarted in its turn"));
            self.ration.strike(node, self.plan.nodes);
            self.stop(node, [Trouble::ShutDown, Trouble::Kill][self.sim.below(2) as usize]).await;
            self.start(node).await?;
            self.ration.mend(node);
            self.sim.sleep(Duration::from_millis(500 + self.sim.below(1500))).await;
        }
        Ok(())
    }

    /// The links between those who lead different groups are cut, both ways, for long enough that somebody is voted down.
    pub async fn part_leaders(&self) -> Result<(), Refused> {
        self.spare_the_wounded().await?;
        let leaders: Vec<NodeId> =
            self.cluster.leaders().into_values().collect::<BTreeSet<NodeId>>().into_iter().collect();
        let (Some(one), Some(other)) = (leaders.first().copied(), leaders.get(1).copied()) else { return Ok(()) };
        let outage_max = if self.plan.profile == Profile::Storm { 2000 } else { 9000 };
        let outage = Duration::from_millis(500 + self.sim.below(outage_max));
        self.recorder.fault("leaders do not reach each other");
        self.recorder.note(|| format!("NEMESIS nodes {one} and {other}, who lead, are apart for {outage:?}"));
        self.ration.strike(other, self.plan.nodes);
        self.cut(&[(one, other), (other, one)], outage).await;
        self.ration.mend(other);
        Ok(())
    }

    /// No two clocks agree.
    pub fn unsettle_clocks(&self, node: NodeId) {
        let drift_ppm_max = 500;
        self.sim.set_drift(node, self.sim.below(2 * drift_ppm_max) as i64 - drift_ppm_max as i64);
        self.sim.jump_wall(node, self.sim.below(120_000) as i64 - 60_000);
    }
}
