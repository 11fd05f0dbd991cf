//! What a node has heard of the others: who is silent, unfit, or cut off from whom, whose clock is far off, and who
//! leads and votes in each group. Pure; `control.rs` decides by it.

use base::env::MonoTime;
use base::ids::{DiskId, GROUP_ZERO, GroupId, NodeId, PgEpoch, PoolId};
use client::disk_id;
use client::wire::{DiskTail, GroupReport, NodeReport, PgDone};
use meta::map::command::{ClusterMap, NodeRow, NodeState};
use protocol::detector::{self, Detector, Life, Links, Opinion, Turn};
use protocol::slowness;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Disks of a node whose latencies are kept.
const TAILS_MAX: usize = 256;
/// Groups whose reports are kept.
const GROUPS_MAX: usize = 4096;
/// Wall clocks further apart than this are told to the operator, and lifecycle rules are not judged by one that is so
/// far from most others.
pub const CLOCK_OFFSET_MAX: Duration = Duration::from_secs(60);
/// What a node said of its clock longer ago does not count: much less than the offset, so that it need not be added.
const CLOCK_AGE_MAX: Duration = Duration::from_secs(10);

/// Word of a node comes ten times a second; three deadlines of at least 150 ms make it suspect.
pub const DETECTION: detector::Rules = detector::Rules {
    interval: Duration::from_millis(100),
    floor: Duration::from_millis(150),
    ceiling: Duration::from_millis(700),
    pause_min: Duration::from_millis(250),
};
/// How long a node may be unfit.
const UNFIT_PATIENCE: Duration = Duration::from_millis(200);
/// How long a link may be broken.
const CUT_PATIENCE: Duration = Duration::from_millis(500);
/// A new leader of group 0 is heard by everybody within this.
const LEADER_PATIENCE: Duration = Duration::from_millis(700);

/// What was heard of the nodes.
#[derive(Clone, Debug)]
pub struct Observations {
    detector: Detector,
    /// The version of the map, and the voters of group 0, that the observed nodes were told from.
    observed_for: Option<(u64, Vec<NodeId>)>,
    /// Since when this node leads group 0.
    led_since: MonoTime,
    nodes: BTreeMap<NodeId, Heard>,
    /// By the latest leader that reported.
    groups: BTreeMap<GroupId, GroupReport>,
    /// When this node first saw these nodes down.
    down_since: BTreeMap<NodeId, MonoTime>,
    unfit_since: BTreeMap<OneLife, MonoTime>,
    cut_since: BTreeMap<(OneLife, OneLife), MonoTime>,
    /// Which disks are slow, by what was told of them.
    pub slowness: slowness::Judge,
}

impl Default for Observations {
    fn default() -> Observations {
        Observations {
            detector: Detector::new(DETECTION),
            observed_for: None,
            led_since: MonoTime(0),
            nodes: BTreeMap::new(),
            groups: BTreeMap::new(),
            down_since: BTreeMap::new(),
            unfit_since: BTreeMap::new(),
            cut_since: BTreeMap::new(),
            slowness: slowness::Judge::default(),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Heard {
    clock_offset_ms: i64,
    /// What its wall clock said, and when this was heard.
    wall_ms: u64,
    at: MonoTime,
    done: BTreeSet<Done>,
    /// Whom it does not hear although others do.
    cut: BTreeSet<NodeId>,
    unfit: bool,
    /// How slow its disks are.
    tails: BTreeMap<DiskId, Duration>,
}

/// What a report changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct News {
    pub turn: Option<Turn>,
    /// The sender's clock has just become suspect.
    pub wrong_clock: bool,
}

/// A placement group under an epoch for which a node has done its part.
pub type Done = (PoolId, u32, PgEpoch);
/// A node under a generation: what has lasted for too long under one is no reason to vote down the next.
type OneLife = (NodeId, u32);

impl Observations {
    /// Takes in a report; `wall_ms` is the own wall clock.
    pub fn hear(&mut self, from: NodeId, report: NodeReport, now: MonoTime, wall_ms: u64) -> News {
        let clock_offset_ms = i64::try_from(i128::from(report.wall_ms) - i128::from(wall_ms)).unwrap_or(i64::MAX);
        for group in report.groups.into_iter().take(GROUPS_MAX) {
            let id = GroupId(group.group);
            let is_newer = self.groups.get(&id).is_none_or(|known| known.term <= group.term);
            if is_newer && (self.groups.len() < GROUPS_MAX || self.groups.contains_key(&id)) {
                self.groups.insert(id, group);
            }
        }
        let done = report.done.iter().filter_map(done).collect();
        let cut = report.cut.iter().copied().map(NodeId).collect();
        let tail = |tail: &DiskTail| Some((disk_id(&tail.disk)?, Duration::from_micros(tail.tail_us)));
        let tails = report.tails.iter().take(TAILS_MAX).filter_map(tail).collect();
        let heard = Heard { clock_offset_ms, wall_ms: report.wall_ms, at: now, done, cut, unfit: report.unfit, tails };
        let before = self.nodes.insert(from, heard);
        let was_suspect = before.is_some_and(|before| is_suspect(before.clock_offset_ms));
        let turn = self.detector.hear(from, now);
        News { turn, wrong_clock: is_suspect(clock_offset_ms) && !was_suspect }
    }

    /// Observes the nodes that `own` is an observer of, and judges them. Answers who has just become suspect, and about
    /// whom others are to be asked now.
    pub fn look(
        &mut self,
        map: &ClusterMap,
        own: NodeId,
        voters: &[NodeId],
        now: MonoTime,
    ) -> (Vec<Turn>, Vec<NodeId>) {
        // Of many nodes it takes a while to tell who observes whom, and it rarely changes.
        if self.observed_for.as_ref().is_none_or(|(version, known)| *version != map.version || known != voters) {
            self.detector.observe(&observed_by(own, map, voters), now);
            self.observed_for = Some((map.version, voters.to_vec()));
        }
        self.nodes.retain(|node, _| map.version == 0 || map.nodes.iter().any(|row| row.id == node.0));
        let looked = self.detector.look(now);
        self.note_troubles(map, own, now);
        looked
    }

    /// Since when nodes are unfit and links broken.
    fn note_troubles(&mut self, map: &ClusterMap, own: NodeId, now: MonoTime) {
        let serving = map.nodes.iter().filter(|row| row.state().serves());
        let lives: BTreeMap<NodeId, OneLife> =
            serving.map(|row| (NodeId(row.id), (NodeId(row.id), row.generation))).collect();
        let life = |node: NodeId| lives.get(&node).copied();
        let is_unfit = |node: &NodeId| {
            let heard = self.nodes.get(node);
            heard.is_some_and(|heard| heard.unfit) && self.detector.opinion(*node) == Opinion::Trusted
        };
        let unfit: BTreeSet<OneLife> = self.nodes.keys().copied().filter(is_unfit).filter_map(life).collect();
        let links = self.cuts(own).into_iter().filter_map(|(a, b)| Some((life(a)?, life(b)?))).collect();
        note(&mut self.unfit_since, &unfit, now);
        note(&mut self.cut_since, &links, now);
    }

    /// Broken links: what this node sees, and what those whom it hears say.
    fn cuts(&self, own: NodeId) -> Links {
        let link = |a: NodeId, b: NodeId| (a.min(b), a.max(b));
        let of_own = self.detector.opinions().filter(|(_, opinion)| *opinion == Opinion::Cut);
        let heard = self.nodes.iter().filter(|(node, _)| {
            **node != own && self.detector.heard(**node).is_some() && self.detector.opinion(**node) == Opinion::Trusted
        });
        let told = heard.flat_map(|(node, heard)| heard.cut.iter().map(move |other| link(*node, *other)));
        of_own.map(|(node, _)| link(own, node)).chain(told).filter(|(a, b)| a != b).collect()
    }

    /// Whom this node does not hear although others reach them.
    pub fn cut(&self) -> Vec<NodeId> {
        self.detector.opinions().filter(|(_, opinion)| *opinion == Opinion::Cut).map(|(node, _)| node).collect()
    }

    /// Serving nodes between which and `own` the link is broken, in one direction or both.
    pub fn cut_off_from(&self, map: &ClusterMap, own: NodeId) -> Vec<NodeId> {
        let serves = |node: &NodeId| map.nodes.iter().any(|row| row.id == node.0 && row.state().serves());
        let ends = self.cuts(own).into_iter().filter(|(a, b)| *a == own || *b == own);
        ends.map(|(a, b)| if a == own { b } else { a }).filter(serves).collect()
    }

    /// The process of a node is said to have ended.
    pub fn ended(&mut self, node: NodeId, now: MonoTime) -> Option<Turn> {
        self.detector.ended(node, now)
    }

    /// Others were asked about a suspect.
    pub fn told(&mut self, suspect: NodeId, is_reached: bool) -> Option<Turn> {
        self.detector.told(suspect, is_reached)
    }

    /// Nobody could be asked about a suspect, or nobody answered.
    pub fn unanswered(&mut self, suspect: NodeId, now: MonoTime) -> Option<Turn> {
        self.detector.unanswered(suspect, now)
    }

    pub fn detector(&self) -> &Detector {
        &self.detector
    }

    /// This node leads group 0 from now on.
    pub fn lead(&mut self, now: MonoTime) {
        self.led_since = now;
        self.down_since.clear();
        self.unfit_since.clear();
        self.slowness.reset();
    }

    /// These nodes are down now.
    pub fn note_down(&mut self, down: &BTreeSet<NodeId>, now: MonoTime) {
        note(&mut self.down_since, down, now);
    }

    /// How long this node has been seen down.
    pub fn down_for(&self, node: NodeId, now: MonoTime) -> Option<Duration> {
        self.down_since.get(&node).map(|since| now.since(*since))
    }

    /// How slow a node says that its disk is.
    pub fn tail(&self, node: NodeId, disk: DiskId) -> Option<Duration> {
        self.nodes.get(&node)?.tails.get(&disk).copied()
    }

    /// Who has done its part for a placement group.
    pub fn done(&self) -> BTreeMap<Done, BTreeSet<NodeId>> {
        let mut done: BTreeMap<Done, BTreeSet<NodeId>> = BTreeMap::new();
        for (node, heard) in &self.nodes {
            for key in &heard.done {
                done.entry(*key).or_default().insert(*node);
            }
        }
        done
    }

    /// By how much the wall clocks of other nodes are ahead of the own, in milliseconds.
    pub fn clock_offsets_ms(&self) -> BTreeMap<NodeId, i64> {
        self.nodes.iter().map(|(node, heard)| (*node, heard.clock_offset_ms)).collect()
    }

    /// Why nothing is to be deleted by the wall clock of `own`, which says `wall_ms`: it and the nodes whose clocks are
    /// near are no majority of those that have said theirs lately, or no other has.
    pub fn doubts_clock(&self, map: &ClusterMap, own: NodeId, now: MonoTime, wall_ms: u64) -> Option<String> {
        let others = map.nodes.iter().filter(|row| row.state().serves() && row.id != own.0);
        let others: Vec<Option<&Heard>> = others.map(|row| self.nodes.get(&NodeId(row.id))).collect();
        if others.is_empty() {
            return None;
        }
        let heard = others.into_iter().flatten().filter(|heard| now.since(heard.at) <= CLOCK_AGE_MAX);
        let heard: Vec<u64> = heard.map(|heard| heard.wall_ms).collect();
        let far_ms = CLOCK_OFFSET_MAX.as_millis() as u64;
        let far = heard.iter().filter(|theirs| theirs.abs_diff(wall_ms) > far_ms).count();
        let (near, all) = (1 + heard.len() - far, 1 + heard.len());
        match heard.len() {
            0 => Some("no other node has said lately what its clock says".into()),
            _ if 2 * near > all => None,
            others => {
                Some(format!("the clocks of {far} of {others} other nodes are far from this node's: set the clocks"))
            }
        }
    }

    /// Nodes that serve and should not. All that are silent; those that are unfit, and one end of each broken link, only as
    /// long as a majority of the cluster stays: they are heard, and better than nothing.
    pub fn out(&self, map: &ClusterMap, own: NodeId, now: MonoTime) -> BTreeMap<NodeId, Why> {
        let is_old = |since: &MonoTime, patience| now.since(*since) > patience;
        let serves = |row: &&NodeRow| row.state().serves();
        let serving: BTreeSet<NodeId> = map.nodes.iter().filter(serves).map(|row| NodeId(row.id)).collect();
        let others = serving.iter().copied().filter(|node| *node != own);
        let silent = others.filter(|node| self.detector.opinion(*node) == Opinion::Silent);
        let mut out: BTreeMap<NodeId, Why> = silent.map(|node| (node, Why::Silent)).collect();
        let members = map.nodes.iter().filter(|row| is_observed(row)).count();
        let spare = serving.len().saturating_sub(out.len() + members / 2 + 1);
        // A new leader may not have been heard by everybody yet.
        let is_settled = is_old(&self.led_since, LEADER_PATIENCE);
        let unfit = self.unfit_since.iter().filter(|(_, since)| is_settled && is_old(since, UNFIT_PATIENCE));
        let links = self.cut_since.iter().filter(|(_, since)| is_old(since, CUT_PATIENCE));
        let links = links.map(|((one, other), _)| (one.0, other.0));
        let cut = detector::without_cuts(&links.collect(), own).into_iter().map(|node| (node, Why::Cut));
        let rest = unfit.map(|((node, _), _)| (*node, Why::Unfit)).chain(cut);
        let rest: Vec<(NodeId, Why)> =
            rest.filter(|(node, _)| *node != own && serving.contains(node) && !out.contains_key(node)).collect();
        for (node, why) in rest {
            if out.len() < spare + out.values().filter(|why| **why == Why::Silent).count() {
                out.entry(node).or_insert(why);
            }
        }
        out
    }

    /// Voters of each group that the map knows; `None` while one has not reported.
    pub fn voters(&self, map: &ClusterMap) -> Option<Vec<&GroupReport>> {
        let shards = map.shards.iter().map(|row| GroupId(row.group));
        std::iter::once(GROUP_ZERO).chain(shards).map(|group| self.groups.get(&group)).collect()
    }
}

/// Why a node is voted down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    Silent,
    Unfit,
    /// The link between it and another node that serves is broken.
    Cut,
}

impl Why {
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Silent => "is silent, and nobody reaches it",
            Why::Unfit => {
                "says that it hears no leader of group 0, or that a disk does not answer or has no room for its log"
            }
            Why::Cut => "does not reach another node that serves",
        }
    }
}

/// Keeps what is still true, since when; and what is true from now on.
fn note<K: Ord + Copy>(since: &mut BTreeMap<K, MonoTime>, now_true: &BTreeSet<K>, now: MonoTime) {
    since.retain(|key, _| now_true.contains(key));
    for key in now_true {
        since.entry(*key).or_insert(now);
    }
}

/// Nodes that may come back are observed too: whether their links work decides when.
pub fn is_observed(row: &NodeRow) -> bool {
    row.state().serves() || row.state() == NodeState::Down
}

/// Whom `own` observes. `voters`: those of group 0, each of whom may have to decide.
fn observed_by(own: NodeId, map: &ClusterMap, voters: &[NodeId]) -> BTreeMap<NodeId, Life> {
    let nodes: Vec<NodeId> = map.nodes.iter().filter(|row| is_observed(row)).map(|row| NodeId(row.id)).collect();
    let observes = |row: &&NodeRow| {
        is_observed(row) && row.id != own.0 && detector::observers(NodeId(row.id), &nodes, voters).contains(&own)
    };
    let life = |row: &NodeRow| Life { generation: row.generation, serves: row.state().serves() };
    map.nodes.iter().filter(observes).map(|row| (NodeId(row.id), life(row))).collect()
}

/// Who observes `own`.
pub fn observers_of(own: NodeId, map: &ClusterMap, voters: &[NodeId]) -> BTreeSet<NodeId> {
    let nodes: Vec<NodeId> = map.nodes.iter().filter(|row| is_observed(row)).map(|row| NodeId(row.id)).collect();
    detector::observers(own, &nodes, voters)
}

fn is_suspect(offset_ms: i64) -> bool {
    offset_ms.unsigned_abs() > CLOCK_OFFSET_MAX.as_millis() as u64
}

fn done(done: &PgDone) -> Option<Done> {
    Some((PoolId(u8::try_from(done.pool).ok()?), done.prefix, PgEpoch(done.epoch)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonoTime {
        MonoTime(1_000_000_000 + millis * 1_000_000)
    }

    fn map(nodes: u32) -> ClusterMap {
        let node = |id| NodeRow { id, ..NodeRow::default() };
        ClusterMap { nodes: (1..=nodes).map(node).collect(), ..ClusterMap::default() }
    }

    #[test]
    fn a_clock_that_is_off_is_told_once() {
        let mut seen = Observations::default();
        let wrong = NodeReport { wall_ms: 200_000, ..NodeReport::default() };
        assert!(seen.hear(NodeId(2), wrong.clone(), at(0), 100_000).wrong_clock);
        assert!(!seen.hear(NodeId(2), wrong.clone(), at(0), 100_000).wrong_clock);
        assert!(!seen.hear(NodeId(3), wrong, at(0), 140_000).wrong_clock);
        assert_eq!(seen.clock_offsets_ms()[&NodeId(2)], 100_000);
    }

    #[test]
    fn a_clock_that_no_majority_shares_is_doubted() {
        let three = map(3);
        let mut seen = Observations::default();
        let doubts =
            |seen: &Observations, now, wall_ms| seen.doubts_clock(&three, NodeId(1), at(now), wall_ms).is_some();
        assert_eq!(seen.doubts_clock(&map(1), NodeId(1), at(0), 0), None, "alone, there is no other");
        assert!(doubts(&seen, 0, 0), "who knows");
        let report = |wall_ms| NodeReport { wall_ms, ..NodeReport::default() };
        seen.hear(NodeId(2), report(1_000_000), at(0), 1_000_000);
        assert!(!doubts(&seen, 0, 1_000_000));
        assert!(doubts(&seen, 0, 1_100_000), "one says so, the other so");
        seen.hear(NodeId(3), report(1_100_000), at(0), 1_000_000);
        assert!(!doubts(&seen, 0, 1_000_000) && !doubts(&seen, 0, 1_100_000), "one of the two is near");
        assert!(doubts(&seen, 0, 500_000) && doubts(&seen, 0, 2_000_000));
        assert!(!doubts(&seen, 10_000, 1_010_000));
        assert!(doubts(&seen, 11_000, 1_011_000), "nobody has said anything lately");
    }
}
