//! Sequences of faults that chance alone would rarely tell to the end: each is a thing that happens in the world, with the
//! writes and reads at the moments where it hurts. What they have in common with the rest, the checkers, is elsewhere.

use base::env::RandomExt;
use base::ids::{GroupId, NodeId, Term};
use futures_util::future::{join, join_all};
use meta::map::command::{DiskRow, PgRow};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::{SHARD, Serving};
use crate::disaster::{LAG_STEP, LAG_STEPS_FEW};
use crate::nemesis::{Nemesis, Refused};
use crate::surge::Burst;

/// Within this, others take the place of a leader that nobody hears.
const SUCCESSION_MAX: Duration = Duration::from_secs(6);
/// How closely elections are followed.
const FOLLOW: Duration = Duration::from_millis(1);
/// Leadership is spread over the nodes within this, when all is quiet.
const SPREAD_MAX: Duration = Duration::from_secs(12);
/// How much slower disks are whose power is to fail before they have done what they were asked for.
const SLOWNESS: u64 = 60;
/// How long a slow body takes: longer than it takes to vote a node out and to sweep what its sessions left.
const BODY: Duration = Duration::from_millis(8500);
/// Bursts of writes through those that know older maps.
const BURSTS_MAX: u32 = 16;
/// Of the placement groups, so many are where the old nodes are before they go, and so many have gone elsewhere when a
/// gateway counts as overtaken.
const OVERTAKEN_MAX: usize = 128;
const OVERTAKEN_MIN: usize = 16;
/// So long are leaders apart that never agree to part.
const APART: Duration = Duration::from_secs(12);

/// From whom to whom.
type Links = Vec<(NodeId, NodeId)>;

impl Nemesis {
    pub async fn until_set_up(&self) {
        while !self.is_set_up.load(Ordering::Relaxed) {
            self.sim.sleep(Duration::from_millis(100)).await;
        }
        self.sim.sleep(Duration::from_millis(300 + self.sim.below(2500))).await;
    }

    /// The links between a node and all others, to it and from it.
    fn links_of(&self, node: NodeId) -> (Links, Links) {
        let others: Vec<NodeId> = self.cluster.nodes().into_iter().filter(|other| *other != node).collect();
        let to = others.iter().map(|other| (*other, node)).collect();
        (to, others.iter().map(|other| (node, *other)).collect())
    }

    fn sever(&self, links: &[(NodeId, NodeId)]) {
        links.iter().for_each(|(from, to)| self.sim.cut(*from, *to));
    }

    fn join_again(&self, links: &[(NodeId, NodeId)]) {
        links.iter().for_each(|(from, to)| self.sim.uncut(*from, *to));
    }

    pub fn serving_on(&self, node: NodeId) -> Option<Serving> {
        self.cluster.all_serving().into_iter().find(|serving| serving.node == node)
    }

    /// The node that leads the objects, once everybody is there.
    async fn leading(&self) -> Result<Option<NodeId>, Refused> {
        self.until_set_up().await;
        self.await_safe("before the story").await?;
        Ok(self.cluster.leaders().get(&SHARD.0).copied())
    }

    /// Waits until another node than `before` leads `group` under a newer term.
    async fn successor(&self, group: GroupId, before: NodeId, term: Term) -> Option<NodeId> {
        let began = self.sim.now();
        while self.sim.now().since(began) < SUCCESSION_MAX {
            let newer =
                |(led, in_term, node): &(GroupId, Term, NodeId)| *led == group && *in_term > term && *node != before;
            if let Some((_, _, node)) = self.cluster.claims().into_iter().find(newer) {
                return Some(node);
            }
            self.sim.sleep(FOLLOW).await;
        }
        None
    }

    fn term_of(&self, group: GroupId) -> Term {
        self.cluster
            .claims()
            .iter()
            .filter(|(led, _, _)| *led == group)
            .map(|(_, term, _)| *term)
            .max()
            .unwrap_or(Term(0))
    }

    /// Every node that serves, but `of` itself, has a map by which sessions of `of` that began before now are fenced.
    fn is_fenced_everywhere(&self, of: &Serving) -> bool {
        let generation = of.client.session().generation;
        let others = self.cluster.all_serving().into_iter().filter(|serving| serving.node != of.node);
        others.into_iter().all(|other| {
            let map = other.client.map();
            let is_fenced = map.node(of.node).is_some_and(|row| row.generation_floor > generation.0);
            // What its gateway has fetched, the node itself may not have yet.
            let own = self.cluster.status(other.node).map_or(0, |status| status.epoch);
            is_fenced && own >= map.version().0
        })
    }

    /// A node, a leader mostly, stops for as long as it takes that others lead and its generation is fenced. When it wakes
    /// up it is asked for what it knew, and to write: it must neither answer from the past nor write under its old name.
    pub async fn wake_zombie(&self) -> Result<(), Refused> {
        let Some(leader) = self.leading().await? else { return Ok(()) };
        let zombie = if self.sim.below(4) == 0 { self.draw_node() } else { leader };
        let (Some(asleep), term) = (self.serving_on(zombie), self.term_of(SHARD)) else { return Ok(()) };
        self.ration.strike(zombie, self.plan.nodes);
        self.recorder.story("a node sleeps until it is fenced");
        self.recorder
            .note(|| format!("NEMESIS node {zombie} stops in the middle of writes, until others have gone on"));
        let burst = Burst { bucket: self.sim.below(self.plan.buckets.len() as u64) as usize, count: 6, len_max: 9000 };
        let paused = async {
            self.sim.sleep(Duration::from_micros(self.sim.below(4000))).await;
            self.sim.pause(zombie);
            if zombie == leader && self.successor(SHARD, zombie, term).await.is_none() {
                self.recorder.note(|| "nobody took its place".into());
            }
            let began = self.sim.now();
            while !self.is_fenced_everywhere(&asleep) && self.sim.now().since(began) < SUCCESSION_MAX {
                self.sim.sleep(Duration::from_millis(20)).await;
            }
            let is_fenced = self.is_fenced_everywhere(&asleep);
            let others: Vec<Serving> =
                self.cluster.all_serving().into_iter().filter(|serving| serving.node != zombie).collect();
            if let Some(other) = others.first() {
                self.verifier.overwrite_all(other).await;
            }
            let asked = join(self.verifier.ask_all(&asleep), self.verifier.write_as_zombie(&asleep, is_fenced));
            let woken = async {
                self.sim.sleep(Duration::from_millis(1)).await;
                self.recorder.note(|| format!("node {zombie} wakes up"));
                self.sim.resume(zombie);
            };
            join(asked, woken).await;
        };
        join(self.verifier.burst(&asleep, burst), paused).await;
        self.ration.mend(zombie);
        Ok(())
    }

    /// A leader is out of reach; of the two others, one elects the other, on a slow disk, and loses its power at once. When
    /// it is back, it reaches only the old leader, and is asked for a vote again.
    pub async fn vote_twice(&self) -> Result<(), Refused> {
        let Some(old) = self.leading().await? else { return Ok(()) };
        let group = if self.sim.below(3) == 0 { GroupId(0) } else { SHARD };
        let old = self.cluster.leaders().get(&group.0).copied().unwrap_or(old);
        let others: Vec<NodeId> = self.cluster.nodes().into_iter().filter(|node| *node != old).collect();
        let term = self.term_of(group);
        self.recorder.story("power is lost between two elections");
        self.recorder
            .note(|| format!("NEMESIS nobody reaches node {old}, which leads group {group}; all disks are slow"));
        let (to, from) = self.links_of(old);
        self.set_slowness(SLOWNESS);
        self.sever(&to);
        self.sever(&from);
        let elected = self.successor(group, old, term).await;
        let voter = others.iter().copied().find(|node| Some(*node) != elected);
        if let (Some(elected), Some(voter)) = (elected, voter) {
            self.recorder.note(|| format!("NEMESIS node {voter} loses its power, and nobody reaches node {elected}"));
            self.cluster.crash(voter).await;
            self.set_slowness(1);
            let (to_elected, from_elected) = self.links_of(elected);
            self.sever(&to_elected);
            self.sever(&from_elected);
            self.join_again(&[(old, voter), (voter, old)]);
            self.start_plainly(voter).await?;
            self.sim.sleep(Duration::from_millis(1500 + self.sim.below(2000))).await;
        }
        self.set_slowness(1);
        self.sim.heal();
        self.await_safe("after the elections").await
    }

    /// A leader that nobody reaches writes down what it is asked for; others lead meanwhile, and their entries take the
    /// place of its own. Before they have taken the place of all, it loses its power.
    pub async fn strand_entries(&self) -> Result<(), Refused> {
        let Some(old) = self.leading().await? else { return Ok(()) };
        let Some(serving) = self.serving_on(old) else { return Ok(()) };
        let term = self.term_of(SHARD);
        self.ration.strike(old, self.plan.nodes);
        self.recorder.story("entries of a lonely leader are replaced");
        self.recorder.note(|| format!("NEMESIS nobody reaches node {old}, which leads, and much is asked of it"));
        let (to, from) = self.links_of(old);
        self.sever(&to);
        self.sever(&from);
        let burst = Burst { bucket: 0, count: 40, len_max: 200 };
        let asked = self.verifier.burst(&serving, burst);
        let replaced = async {
            self.successor(SHARD, old, term).await;
            self.sim.sleep(Duration::from_millis(self.sim.below(100))).await;
            self.join_again(&to);
            self.join_again(&from);
            self.sim.sleep(Duration::from_millis(20 + self.sim.below(250))).await;
            self.cluster.crash(old).await;
            self.start(old).await
        };
        let ((), started) = join(asked, replaced).await;
        started?;
        self.ration.mend(old);
        Ok(())
    }

    /// A node was away for so long that it needs the others' state; page by page it comes, slowly, and the node loses its
    /// power, or is killed, in the middle of it, more than once.
    pub async fn interrupt_install(&self) -> Result<(), Refused> {
        let Some(leader) = self.leading().await? else { return Ok(()) };
        let others: Vec<NodeId> = self.cluster.nodes().into_iter().filter(|node| *node != leader).collect();
        let victim = others[self.sim.below(others.len() as u64) as usize];
        self.ration.strike(victim, self.plan.nodes);
        self.recorder.story("a node is interrupted while it is brought up to date");
        self.recorder.note(|| format!("NEMESIS node {victim} is away, and comes back slowly, again and again"));
        self.cluster.crash(victim).await;
        for _ in 0..2 {
            if let Some(serving) = self.serving_on(leader) {
                self.verifier.burst(&serving, Burst { bucket: 0, count: 12, len_max: 900 }).await;
            }
            self.sim.sleep(Duration::from_millis(600)).await;
        }
        let (to, from) = self.links_of(victim);
        for _ in 0..2 + self.sim.below(3) {
            let delay = Duration::from_millis(20 + self.sim.below(120));
            to.iter().chain(&from).for_each(|(from, to)| self.sim.set_link_delay(*from, *to, delay));
            let factor = [1, SLOWNESS][self.sim.below(2) as usize];
            self.cluster.disks(victim).iter().for_each(|disk| disk.set_slowness(factor));
            self.start_plainly(victim).await?;
            self.sim.sleep(Duration::from_millis(self.sim.below(2500))).await;
            if self.sim.below(2) == 0 { self.cluster.crash(victim).await } else { self.cluster.kill(victim).await }
        }
        to.iter().chain(&from).for_each(|(from, to)| self.sim.set_link_delay(*from, *to, Duration::ZERO));
        self.cluster.disks(victim).iter().for_each(|disk| disk.set_slowness(1));
        self.start(victim).await?;
        self.ration.mend(victim);
        Ok(())
    }

    /// Many writes are under way through one node, and then answers are lost: the node hears nobody any more, or who leads
    /// is gone, or the network is rough.
    pub async fn surge(&self) -> Result<(), Refused> {
        let Some(leader) = self.leading().await? else { return Ok(()) };
        let nodes = self.cluster.nodes();
        let followers: Vec<NodeId> = nodes.into_iter().filter(|node| *node != leader).collect();
        let gateway = followers[self.sim.below(followers.len() as u64) as usize];
        let Some(serving) = self.serving_on(gateway) else { return Ok(()) };
        let burst = Burst {
            bucket: self.sim.below(self.plan.buckets.len() as u64) as usize,
            count: 16,
            len_max: [900, 20_000][self.sim.below(2) as usize],
        };
        let is_slow = self.sim.below(2) == 0;
        if is_slow {
            self.set_slowness(SLOWNESS);
        }
        let soon = Duration::from_micros(self.sim.below(if is_slow { 400_000 } else { 7000 }));
        let trouble = async {
            self.sim.sleep(soon).await;
            match self.sim.below(4) {
                3 => {
                    self.recorder.note(|| "NEMESIS all nodes lose their power, with many writes under way".into());
                    return self.cut_power_of_all().await;
                }
                0 => {
                    let (to, _) = self.links_of(gateway);
                    self.recorder.story("a node with many writes under way hears nobody");
                    self.recorder.note(|| format!("NEMESIS node {gateway} hears nobody, with many writes under way"));
                    self.ration.strike(gateway, self.plan.nodes);
                    self.cut(&to, Duration::from_millis(4500 + self.sim.below(4000))).await;
                    self.ration.mend(gateway);
                }
                1 => {
                    self.recorder.story("a leader goes with many writes under way");
                    self.recorder
                        .note(|| format!("NEMESIS node {leader}, which leads, goes with many writes under way"));
                    self.ration.strike(leader, self.plan.nodes);
                    if self.sim.below(2) == 0 {
                        let (to, from) = self.links_of(leader);
                        self.cut(&[to, from].concat(), Duration::from_millis(400 + self.sim.below(2500))).await;
                    } else {
                        self.cluster.kill(leader).await;
                        self.sim.sleep(Duration::from_millis(self.sim.below(2500))).await;
                        self.start(leader).await?;
                    }
                    self.ration.mend(leader);
                }
                _ => self.roughen().await?,
            }
            Ok(())
        };
        let ((), struck) = join(self.verifier.burst(&serving, burst), trouble).await;
        self.set_slowness(1);
        struck
    }

    /// Those who lead different groups do not reach each other, so that one of them is voted out and does not hear of it;
    /// long bodies come in through it, which are stored and not yet committed when its sessions are closed and swept.
    pub async fn part_leaders_for_long(&self) -> Result<(), Refused> {
        self.until_set_up().await;
        let began = self.sim.now();
        let (decider, other) = loop {
            let leaders = self.cluster.leaders();
            match (leaders.get(&0), leaders.get(&SHARD.0)) {
                (Some(decider), Some(other)) if decider != other => break (*decider, *other),
                _ if self.sim.now().since(began) > SPREAD_MAX => return Ok(()),
                _ => self.sim.sleep(Duration::from_millis(100)).await,
            }
        };
        let Some(serving) = self.serving_on(other) else { return Ok(()) };
        self.ration.strike(other, self.plan.nodes);
        self.recorder.fault("leaders do not reach each other");
        self.recorder.note(|| {
            format!("NEMESIS nodes {decider} and {other}, who lead, are apart for {APART:?}; long bodies come in through {other}")
        });
        let apart = async {
            self.sim.sleep(Duration::from_millis(30 + self.sim.below(200))).await;
            self.cut(&[(decider, other), (other, decider)], APART).await;
        };
        join(self.verifier.slow_bodies(&serving, BODY), apart).await;
        self.ration.mend(other);
        Ok(())
    }

    /// New machines for old: as many nodes and one more join, and all that were there before are emptied, while some know
    /// older maps than the others, and write whenever placement groups have begun to move.
    pub async fn renew_all(&self) -> Result<(), Refused> {
        self.until_set_up().await;
        let old = self.cluster.nodes();
        self.recorder.fault("nodes are added");
        let mut newcomers = Vec::new();
        for _ in 0..=old.len() {
            newcomers.push(self.admit().await?);
        }
        let started = join_all(newcomers.iter().map(|node| self.start(*node))).await;
        started.into_iter().collect::<Result<(), Refused>>()?;
        if self.sim.below(2) == 0 {
            self.await_safe("after nodes were added").await?;
        }
        let leader = self.cluster.leaders().get(&0).copied();
        let late = self.draw_late(&old, &newcomers, leader);
        let from = if self.sim.below(3) > 0 { leader } else { None };
        let is_over = AtomicBool::new(false);
        let until = self.sim.sleep(Duration::from_millis(3000 + self.sim.below(10_000)));
        let lagging = self.lag_behind(&late, from, LAG_STEPS_FEW, until);
        let drained = async {
            let drained = join_all(old.iter().map(|node| self.drain(*node))).await;
            drained.into_iter().collect::<Result<(), Refused>>()
        };
        let moved = async {
            let (done, ()) = join(drained, lagging).await;
            is_over.store(true, Ordering::Relaxed);
            done
        };
        let (done, ()) = join(moved, self.write_through_late(&late, &is_over)).await;
        done?;
        self.await_safe("after all old nodes were emptied").await
    }

    /// New machines for old, at one blow, while a gateway that holds nothing hears of everything late. When groups are
    /// whole on new disks already, it still takes the old ones for their place, and writes to them: what they took then,
    /// nobody would look for.
    pub async fn overtake_gateway(&self) -> Result<(), Refused> {
        self.until_set_up().await;
        let old = self.cluster.nodes();
        self.recorder.fault("nodes are added");
        let mut newcomers = Vec::new();
        for _ in 0..=old.len() {
            newcomers.push(self.admit().await?);
        }
        let started = join_all(newcomers.iter().map(|node| self.start(*node))).await;
        started.into_iter().collect::<Result<(), Refused>>()?;
        self.await_safe("after nodes were added").await?;
        all(newcomers.iter().map(|node| self.set_empty(*node, true))).await?;
        let leaders = self.cluster.leaders();
        let leads = |node: &NodeId| leaders.values().any(|leader| leader == node);
        let Some(at) = newcomers.iter().rposition(|node| !leads(node)) else { return Ok(()) };
        let Some(serving) = self.serving_on(newcomers.remove(at)) else { return Ok(()) };
        self.until_moved(&serving, OVERTAKEN_MAX, |now, _| !now.closed && !holds_any(now, &serving, &newcomers)).await;
        let (to, _) = self.links_of(serving.node);
        self.recorder.story("a gateway is overtaken by the map");
        self.recorder.note(|| format!("NEMESIS node {} hears late of what becomes of the old nodes", serving.node));
        for step in 1..=LAG_STEPS_FEW {
            self.set_delays(&to, LAG_STEP * step);
            self.sim.sleep(LAG_STEP * 2).await;
        }
        let decider = leaders.get(&0).and_then(|node| self.serving_on(*node));
        let swapped = async {
            if let Some(decider) = &decider {
                // All at once, so that groups move from the old nodes to the new in one step.
                join_all(newcomers.iter().map(|node| self.cluster.set_empty(*node, false, decider))).await;
                join_all(old.iter().map(|node| self.cluster.drain(*node, decider))).await;
            }
            all(newcomers.iter().map(|node| self.set_empty(*node, false))).await?;
            all(old.iter().map(|node| self.drain(*node))).await
        };
        let written = async {
            let is_elsewhere = |now: &PgRow, then: &PgRow| then.members.iter().all(|disk| !now.members.contains(disk));
            if self.until_moved(&serving, OVERTAKEN_MIN, is_elsewhere).await {
                // The new disks unite what the old ones hold at once. From here on only who decides is heard late.
                self.sim.sleep(Duration::from_millis(50 + self.sim.below(300))).await;
                let prompt = |(from, _): &&(NodeId, NodeId)| leaders.get(&0) != Some(from);
                self.set_delays(&to.iter().filter(prompt).copied().collect::<Links>(), Duration::ZERO);
                let burst = Burst { bucket: self.plan.buckets.len() - 1, count: self.plan.keys.len(), len_max: 6000 };
                self.verifier.burst(&serving, burst).await;
            }
            self.set_delays(&to, Duration::ZERO);
        };
        let (swapped, ()) = join(swapped, written).await;
        swapped?;
        self.set_empty(serving.node, false).await?;
        self.await_safe("after all old nodes were emptied").await
    }

    /// Waits until `count` rows of placement groups are so in the newest map that anybody has, beside those that the
    /// gateway knows; whether that has been.
    async fn until_moved(&self, gateway: &Serving, count: usize, is_so: impl Fn(&PgRow, &PgRow) -> bool) -> bool {
        let began = self.sim.now();
        while self.sim.now().since(began) < SPREAD_MAX {
            let (known, all) = (gateway.client.map(), self.cluster.all_serving());
            let newest = all.iter().map(|serving| serving.client.map()).max_by_key(|map| map.version());
            let rows = newest.iter().flat_map(|map| &map.map.pgs).zip(&known.map.pgs);
            if rows.filter(|(now, then)| is_so(now, then)).count() >= count {
                return true;
            }
            self.sim.sleep(Duration::from_millis(5)).await;
        }
        false
    }

    /// Bursts of writes through nodes that know older maps than the others, a moment after the others' map has changed.
    async fn write_through_late(&self, late: &[NodeId], is_over: &AtomicBool) {
        let mut seen = None;
        let mut bursts = 0;
        while bursts < BURSTS_MAX && !is_over.load(Ordering::Relaxed) {
            let all = self.cluster.all_serving();
            let (behind, ahead): (Vec<Serving>, Vec<Serving>) =
                all.into_iter().partition(|serving| late.contains(&serving.node));
            let map = ahead.iter().map(|serving| serving.client.map()).max_by_key(|map| map.version());
            if let Some(map) = map.filter(|map| seen != Some(map.version()))
                && map.map.pgs.iter().any(|row| row.closed)
            {
                seen = Some(map.version());
                bursts += 1;
                self.sim.sleep(Duration::from_millis(self.sim.below(250))).await;
                let burst = Burst { bucket: self.plan.buckets.len() - 1, count: 12, len_max: 6000 };
                join_all(behind.iter().map(|serving| self.verifier.burst(serving, burst))).await;
            }
            self.sim.sleep(Duration::from_millis(5)).await;
        }
    }

    /// Two old nodes, or one that is new, or all that are, or any two; never the one that decides about the map.
    fn draw_late(&self, old: &[NodeId], new: &[NodeId], leader: Option<NodeId>) -> Vec<NodeId> {
        let eligible =
            |nodes: &[NodeId]| -> Vec<NodeId> { nodes.iter().copied().filter(|node| Some(*node) != leader).collect() };
        match self.sim.below(4) {
            0 => eligible(old),
            1 => vec![new[new.len() - 1]],
            2 => eligible(new),
            _ => {
                let mut late = eligible(&[old, new].concat());
                while late.len() > 2 {
                    late.remove(self.sim.below(late.len() as u64) as usize);
                }
                late
            }
        }
    }
}

/// Whether a disk of one of these nodes is a member.
fn holds_any(row: &PgRow, by: &Serving, nodes: &[NodeId]) -> bool {
    let map = by.client.map();
    let is_theirs = |disk: &&DiskRow| disk.node == by.node.0 || nodes.iter().any(|node| node.0 == disk.node);
    map.map.disks.iter().filter(is_theirs).any(|disk| row.members.contains(&disk.id))
}

/// All of it, at once; the first refusal, if there is one.
pub async fn all(steps: impl Iterator<Item = impl Future<Output = Result<(), Refused>>>) -> Result<(), Refused> {
    join_all(steps).await.into_iter().collect()
}
