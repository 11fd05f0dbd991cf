//! What is destroyed and does not come back, and what operators do about it: disks and nodes that are replaced, rot, all
//! power at once, nodes that are recovered, added and emptied.

use base::env::RandomExt;
use base::ids::NodeId;
use base::sim::Fault;
use futures_util::future::join_all;
use std::future::Future;
use std::time::Duration;

use crate::cluster::StartFailure;
use crate::nemesis::{Nemesis, Refused};
use crate::plan::Profile;

/// So long until silence has been voted down, with some to spare.
const VOTED_DOWN: Duration = Duration::from_secs(3);
/// Writes of each bad kind, one after the other, and how long each is waited for.
const SPOILT_WRITES: usize = 3;
const SPOILING: Duration = Duration::from_millis(300);
/// How messages to those that lag behind become slower.
pub const LAG_STEP: Duration = Duration::from_millis(100);
/// So far that some of what is asked is given up.
const LAG_STEPS: u32 = 20;
/// So far that everything works, slowly.
pub const LAG_STEPS_FEW: u32 = 6;

impl Nemesis {
    /// The one event that the ration does not hold for: everything that was acknowledged is on disks.
    pub async fn cut_all_power(&self) -> Result<(), Refused> {
        if self.sim.below(2) == 0 {
            // Much is on its way to the disks then.
            self.recorder.note(|| "NEMESIS all disks are slow".into());
            self.set_slowness(100);
            self.sim.sleep(Duration::from_millis(self.sim.below(2000))).await;
        }
        self.recorder.note(|| "NEMESIS all nodes lose their power".into());
        self.cut_power_of_all().await
    }

    pub async fn cut_power_of_all(&self) -> Result<(), Refused> {
        self.recorder.fault("a power cut of all nodes");
        self.cluster.crash_all().await;
        self.set_slowness(1);
        let starts = self.cluster.nodes().into_iter().map(|node| async move {
            self.sim.sleep(Duration::from_millis(self.sim.below(2000))).await;
            self.start(node).await
        });
        join_all(starts).await.into_iter().collect()
    }

    pub fn set_slowness(&self, factor: u64) {
        let disks = self.cluster.nodes().into_iter().flat_map(|node| self.cluster.disks(node));
        disks.for_each(|disk| disk.set_slowness(factor));
    }

    /// On slow disks, each node loses its power for a moment, again and again: terms, votes and entries are on their way
    /// to the disks whenever it happens. As with all power at once, nothing that was flushed is harmed.
    pub async fn flicker(&self) -> Result<(), Refused> {
        self.recorder.fault("power that flickers on slow disks");
        self.recorder.note(|| "NEMESIS all disks are slow, and power comes and goes".into());
        self.set_slowness([20, 60][self.sim.below(2) as usize]);
        let each = self.cluster.nodes().into_iter().map(|node| async move {
            for _ in 0..1 + self.sim.below(3) {
                self.sim.sleep(Duration::from_millis(self.sim.below(2500))).await;
                self.cluster.crash(node).await;
                self.sim.sleep(Duration::from_millis(self.sim.below(300))).await;
                self.start(node).await?;
            }
            Ok(())
        });
        let done = join_all(each).await.into_iter().collect();
        self.set_slowness(1);
        done
    }

    /// A disk without metadata comes back empty.
    pub async fn replace_disk(&self) -> Result<(), Refused> {
        let victim = self.draw_doomed().await?;
        let Some(disk) = self.cluster.chunk_disks(victim).get(1).cloned() else { return Ok(()) };
        self.ration.strike(victim, self.plan.nodes);
        self.recorder.fault("a disk is replaced by an empty one");
        self.recorder.note(|| format!("NEMESIS disk {} of node {victim} is replaced by an empty one", disk.name()));
        self.cluster.crash(victim).await;
        self.exchange_disk(&disk);
        self.sim.sleep(self.outage()).await;
        self.start(victim).await?;
        self.ration.mend(victim);
        self.await_safe("after a disk was replaced").await
    }

    /// A node is gone with all its disks, is removed, and a new one joins.
    pub async fn replace_node(&self) -> Result<(), Refused> {
        let victim = self.draw_doomed().await?;
        self.ration.strike(victim, self.plan.nodes);
        self.cluster.crash(victim).await;
        self.sim.sleep(self.outage()).await;
        self.replace(victim).await
    }

    /// Removes `victim`, which does not run, and has a new node join.
    async fn replace(&self, victim: NodeId) -> Result<(), Refused> {
        self.recorder.fault("a node is replaced by a new one");
        self.recorder.note(|| format!("NEMESIS node {victim} is gone for good, with all its disks"));
        self.cluster.disks(victim).iter().for_each(|disk| disk.erase());
        self.remove(victim).await?;
        self.ration.mend(victim);
        self.ration.untaint();
        self.join().await?;
        self.await_safe("after a node was replaced").await
    }

    /// Chunks of one node rot, or their writes are lost or land elsewhere; from then on, those of the others are spared.
    pub async fn spoil_chunks(&self) -> Result<(), Refused> {
        let victim = self.draw_doomed().await?;
        let Some(disk) = self.cluster.chunk_disks(victim).get(1).cloned() else { return Ok(()) };
        self.ration.taint(victim);
        self.recorder.fault("chunks of a node are spoilt");
        // Where each kind of fault is to strike often, more of those that are rare.
        let is_storm = self.plan.profile == Profile::Storm;
        let (times, kinds) = if is_storm { (6, 4) } else { (1, 6) };
        for _ in 0..times + self.sim.below(6) {
            let soon = 1 + self.sim.below(20);
            match self.sim.below(kinds) {
                0 => disk.inject(Fault::LostWrite, soon),
                1 => disk.inject(Fault::MisdirectedWrite, soon),
                // Both copies of the identity are no chunks: a disk without one is replaced by hand.
                _ => {
                    if let Some((file, offset)) = disk.flip_where(|file| file != "identity") {
                        self.recorder
                            .note(|| format!("NEMESIS a bit flips on node {victim} in {file} at byte {offset}"));
                    }
                }
            }
        }
        // One of each kind waits for its write at a time: the next ones when those have been written.
        for _ in 0..if is_storm { SPOILT_WRITES } else { 0 } {
            disk.inject(Fault::LostWrite, 1 + self.sim.below(3));
            disk.inject(Fault::MisdirectedWrite, 1 + self.sim.below(3));
            self.sim.sleep(SPOILING).await;
        }
        Ok(())
    }

    /// The metadata disk of one node rots while it is stopped: it serves what is right, or says no and is replaced.
    pub async fn rot_metadata(&self) -> Result<(), Refused> {
        let victim = self.draw_doomed().await?;
        self.ration.strike(victim, self.plan.nodes);
        self.ration.taint(victim);
        self.ration.wound(victim);
        self.recorder.fault("the metadata of a node rots");
        self.cluster.crash(victim).await;
        let disk = &self.cluster.chunk_disks(victim)[0];
        for _ in 0..1 + self.sim.below(4) {
            if let Some((file, offset)) = disk.flip_anywhere() {
                self.recorder.note(|| format!("NEMESIS a bit flips on node {victim} in {file} at byte {offset}"));
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

    /// A node is started with another's metadata disk: it says no, and with its own it goes on.
    pub async fn give_wrong_disk(&self) -> Result<(), Refused> {
        self.spare_the_wounded().await?;
        let victim = self.draw_node();
        let nodes = self.cluster.nodes();
        let Some(other) = nodes.into_iter().find(|node| *node != victim) else { return Ok(()) };
        self.ration.strike(victim, self.plan.nodes);
        self.recorder.fault("a node is given another's disk");
        self.recorder.note(|| format!("NEMESIS node {victim} is given a disk of node {other}"));
        self.cluster.shut_down(victim).await;
        let (own, theirs) = (self.cluster.chunk_disks(victim), self.cluster.chunk_disks(other));
        let kept = self.sim.disk(victim, "kept");
        kept.copy_from(&own[0]);
        own[0].copy_from(&theirs[0]);
        match self.cluster.start(victim).await {
            Err(StartFailure::Refused(why)) => self.recorder.note(|| format!("node {victim} says: {why}")),
            other => self.recorder.violation(format!("node {victim} was given a disk of another: {:?}", other.err())),
        }
        if self.sim.is_running(victim) {
            self.cluster.kill(victim).await;
        }
        own[0].copy_from(&kept);
        kept.erase();
        self.start(victim).await?;
        self.ration.mend(victim);
        Ok(())
    }

    /// A node is emptied and goes, and a new one comes.
    pub async fn drain_one(&self) -> Result<(), Refused> {
        let victim = self.draw_doomed().await?;
        self.drain(victim).await?;
        if self.ration.tainted() == Some(victim) {
            self.ration.untaint();
        }
        self.join().await?;
        self.await_safe("after a node was emptied").await
    }

    /// Two of three nodes are destroyed at once, in the middle of everything. What was acknowledged by all that are up is
    /// on the third, which is made the only voter and goes on; two new nodes join.
    pub async fn lose_all_but_one(&self) -> Result<(), Refused> {
        self.until_set_up().await;
        self.sim.sleep(Duration::from_millis(self.sim.below(2000))).await;
        let nodes = self.cluster.nodes();
        let survivor = nodes[self.sim.below(nodes.len() as u64) as usize];
        self.lose_all_but(survivor).await
    }

    /// The same, when the third is hard to keep up with: its links or a disk of its are slow; or it has just come back,
    /// with or without what it had, and everybody says that everything is safe.
    pub async fn trust_and_lose(&self) -> Result<(), Refused> {
        self.until_set_up().await;
        let nodes = self.cluster.nodes();
        let survivor = nodes[self.sim.below(nodes.len() as u64) as usize];
        match self.sim.below(4) {
            how @ 0..2 => {
                self.await_safe("before a node falls behind").await?;
                let lives = self.lives_of(survivor);
                if how == 0 {
                    self.slow_down(survivor).await
                } else {
                    self.slow_down_disk(survivor).await
                }
                // Whoever is voted down is not waited for, and need not have everything.
                if self.lives_of(survivor) != lives {
                    self.heal_delays();
                    self.set_slowness(1);
                    return Ok(());
                }
            }
            how => {
                self.ration.strike(survivor, self.plan.nodes);
                self.recorder.note(|| format!("NEMESIS node {survivor} is away for a while"));
                self.cluster.crash(survivor).await;
                if how == 2 {
                    let disk = &self.cluster.chunk_disks(survivor)[1];
                    self.recorder.fault("a disk is replaced by an empty one");
                    disk.erase();
                }
                self.sim.sleep(VOTED_DOWN + Duration::from_millis(self.sim.below(3000))).await;
                self.start(survivor).await?;
                self.ration.mend(survivor);
                self.await_safe("after a node came back").await?;
            }
        }
        self.lose_all_but(survivor).await
    }

    /// The lives under which the node serves, by every node's map.
    fn lives_of(&self, node: NodeId) -> Vec<Option<u32>> {
        let life = |other: NodeId| {
            let status = self.cluster.status(other)?;
            let row = status.nodes.iter().find(|row| row.id == node.0 && row.state == "up")?;
            Some(row.generation)
        };
        self.cluster.nodes().into_iter().map(life).collect()
    }

    /// Slower and slower, so that it is not taken to be silent.
    async fn slow_down(&self, node: NodeId) {
        let others: Vec<NodeId> = self.cluster.nodes().into_iter().filter(|other| *other != node).collect();
        let links: Vec<(NodeId, NodeId)> = others.iter().map(|other| (*other, node)).collect();
        self.recorder.fault("links to some nodes become slower and slower");
        self.recorder.note(|| format!("NEMESIS node {node} hears later and later of what the others say"));
        for step in 1..=LAG_STEPS_FEW {
            self.set_delays(&links, LAG_STEP * step);
            self.sim.sleep(LAG_STEP * 2).await;
        }
        self.sim.sleep(Duration::from_millis(self.sim.below(2000))).await;
    }

    /// The disk without metadata takes long for everything.
    pub async fn slow_down_disk(&self, node: NodeId) {
        self.recorder.fault("a disk without metadata is slow");
        self.recorder.note(|| format!("NEMESIS a disk of node {node} is slow"));
        self.cluster.chunk_disks(node)[1].set_slowness(300);
        self.sim.sleep(Duration::from_millis(500 + self.sim.below(2500))).await;
    }

    async fn lose_all_but(&self, survivor: NodeId) -> Result<(), Refused> {
        let nodes = self.cluster.nodes();
        self.recorder.story("all nodes but one are destroyed, and that one is recovered");
        self.recorder.note(|| format!("NEMESIS all nodes but node {survivor} are destroyed"));
        self.cluster.crash_all().await;
        self.sim.heal();
        self.heal_delays();
        self.set_slowness(1);
        let gone: Vec<NodeId> = nodes.into_iter().filter(|node| *node != survivor).collect();
        for node in &gone {
            self.cluster.disks(*node).iter().for_each(|disk| disk.erase());
        }
        match self.cluster.recover(survivor).await {
            Ok(done) => self.recorder.note(|| format!("node {survivor} is recovered: {}", done.join("; "))),
            Err(why) => {
                self.recorder.violation(format!("node {survivor} cannot be recovered: {why}"));
                return Err(Refused);
            }
        }
        self.start(survivor).await?;
        for node in gone {
            self.remove(node).await?;
        }
        for _ in 1..self.plan.nodes {
            self.join().await?;
        }
        self.await_safe("after the recovery").await
    }

    fn heal_delays(&self) {
        let nodes = self.cluster.nodes();
        let links: Vec<(NodeId, NodeId)> = nodes.iter().flat_map(|from| nodes.iter().map(|to| (*from, *to))).collect();
        self.set_delays(&links, Duration::ZERO);
    }

    /// As many nodes again join, all at the same moment.
    pub async fn grow(&self) -> Result<(), Refused> {
        self.sim.sleep(Duration::from_millis(self.sim.below(3000))).await;
        self.recorder.fault("nodes are added");
        let mut newcomers = Vec::new();
        for _ in 0..self.plan.nodes {
            newcomers.push(self.admit().await?);
        }
        let started = join_all(newcomers.into_iter().map(|node| self.start(node)));
        let started = async {
            let started = started.await;
            self.sim.sleep(VOTED_DOWN).await;
            started
        };
        let leader = self.cluster.leaders().get(&0).copied();
        let nodes = self.cluster.nodes();
        // None of them the one that decides about the map.
        let late: Vec<NodeId> = nodes.into_iter().filter(|node| Some(*node) != leader).take(2).collect();
        let started =
            if self.sim.below(4) == 0 { started.await } else { self.lag_behind(&late, None, LAG_STEPS, started).await };
        started.into_iter().collect::<Result<(), Refused>>()?;
        self.await_safe("after nodes were added").await
    }

    /// Two nodes are emptied at once.
    pub async fn shrink(&self) -> Result<(), Refused> {
        self.sim.sleep(Duration::from_millis(self.sim.below(3000))).await;
        let nodes = self.cluster.nodes();
        let first = self.sim.below(nodes.len() as u64) as usize;
        let (one, other) = (nodes[first], nodes[(first + 1) % nodes.len()]);
        let (one, other) = futures_util::future::join(self.drain(one), self.drain(other)).await;
        one?;
        other?;
        self.await_safe("after nodes were emptied").await
    }

    /// These nodes hear ever later of what the others say, or only of what `from` says: as long as it takes until `done`,
    /// they know an older map.
    pub async fn lag_behind<T>(
        &self,
        late: &[NodeId],
        from: Option<NodeId>,
        steps: u32,
        done: impl Future<Output = T>,
    ) -> T {
        let nodes = self.cluster.nodes();
        let prompt = nodes.iter().filter(|node| !late.contains(node) && from.is_none_or(|from| from == **node));
        let links: Vec<(NodeId, NodeId)> = prompt.flat_map(|from| late.iter().map(|to| (*from, *to))).collect();
        self.recorder.fault("links to some nodes become slower and slower");
        self.recorder.note(|| format!("NEMESIS nodes {late:?} hear later and later of what the others say"));
        // Slowly, so that nobody is taken to be silent.
        for step in 1..=steps {
            self.set_delays(&links, LAG_STEP * step);
            self.sim.sleep(LAG_STEP * 2).await;
        }
        let done = done.await;
        self.set_delays(&links, Duration::ZERO);
        done
    }

    pub fn set_delays(&self, links: &[(NodeId, NodeId)], delay: Duration) {
        links.iter().for_each(|(from, to)| self.sim.set_link_delay(*from, *to, delay));
    }

    /// One node lags behind, another loses the disk with its log, the third is away: nothing can be decided until it is
    /// back, and nothing that was acknowledged may be forgotten.
    pub async fn lose_a_log(&self) -> Result<(), Refused> {
        let forgetful = self.draw_doomed().await?;
        let others: Vec<NodeId> = self.cluster.nodes().into_iter().filter(|node| *node != forgetful).collect();
        let late = others[self.sim.below(others.len() as u64) as usize];
        let Some(away) = others.into_iter().find(|node| *node != late) else { return Ok(()) };
        self.ration.taint(forgetful);
        self.recorder.story("a log is lost while another lags behind");
        self.recorder.note(|| {
            format!("NEMESIS node {late} lags behind, node {forgetful} loses its log, node {away} is away meanwhile")
        });
        self.cluster.crash(late).await;
        self.sim.sleep(VOTED_DOWN + Duration::from_millis(self.sim.below(3000))).await;
        self.cluster.crash(forgetful).await;
        self.cluster.crash(away).await;
        self.cluster.chunk_disks(forgetful)[0].erase();
        self.start_plainly(forgetful).await?;
        self.start_plainly(late).await?;
        self.sim.sleep(VOTED_DOWN + Duration::from_millis(self.sim.below(5000))).await;
        self.start_plainly(away).await?;
        self.await_safe("after a log was lost").await?;
        self.ration.untaint();
        Ok(())
    }

    /// Starts a node that waits for others and may not crash on the way: they are not there yet.
    pub async fn start_plainly(&self, node: NodeId) -> Result<(), Refused> {
        match self.cluster.start(node).await {
            Ok(()) => Ok(()),
            Err(failure) => {
                self.recorder.violation(format!("node {node} does not start: {failure:?}"));
                Err(Refused)
            }
        }
    }
}
