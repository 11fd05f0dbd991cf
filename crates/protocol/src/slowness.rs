//! Which disk is far slower than its peers: it answers, so no deadline finds it, and everybody who waits for it is slow
//! with it (a gray failure; Huang et al., "Gray Failure: The Achilles' Heel of Cloud-Scale Systems", HotOS 2017). Pure:
//! latencies come in, decisions go out.
//!
//! A disk is judged by its tail, the latency that every second of work goes through (see [`Tail`]), beside the median tail
//! of the other nodes' disks: under load all are slow, and nobody is blamed. Whoever is called slow stays so until its tail
//! has been near its peers' for a while; one that is asked for nothing any more says nothing, and is tried again after a
//! time, which doubles with each relapse.
//!
//! At most one node has slow disks, and only while a majority of the others is in service: a slow copy is better than none.

use base::env::MonoTime;
use base::ids::{DiskId, NodeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A disk is slow at so many times the median of its peers, and never below [`SLOW_MIN`].
const SLOW_FACTOR: u32 = 4;
pub const SLOW_MIN: Duration = Duration::from_millis(60);
/// It has recovered at so many times the median, or below half of the minimum.
const FAST_FACTOR: u32 = 2;
/// Slow for so long at a stretch: it is called slow.
const SLOW_FOR: Duration = Duration::from_millis(1500);
/// Near its peers for so long at a stretch, or silent: it is called slow no more. Doubles with each relapse.
const FAST_FOR_MIN: Duration = Duration::from_secs(30);
const FAST_FOR_MAX: Duration = Duration::from_secs(1800);
/// A relapse after so long is none.
const RELAPSE_WITHIN: Duration = Duration::from_secs(3600);
/// Nodes with figures, besides the one that is judged.
const PEERS_MIN: usize = 2;

/// Seconds of work that a tail looks at.
const SECONDS: usize = 5;
/// What is older says nothing about now.
const SECOND_AGE_MAX: Duration = Duration::from_secs(30);

/// The latency that is met in every second: the median of the longest latencies of the last seconds in which there was
/// work. Two bad seconds of five are a hiccup, three are not.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    /// The second, and the longest latency in it.
    seconds: VecDeque<(u64, Duration)>,
}

impl Tail {
    /// An operation has taken `latency`, or has so far.
    pub fn note(&mut self, latency: Duration, now: MonoTime) {
        let second = now.0 / 1_000_000_000;
        match self.seconds.back_mut() {
            Some((last, longest)) if *last == second => *longest = latency.max(*longest),
            _ => {
                self.seconds.push_back((second, latency));
                if self.seconds.len() > SECONDS {
                    self.seconds.pop_front();
                }
            }
        }
    }

    /// `None`: there was too little work lately.
    pub fn get(&self, now: MonoTime) -> Option<Duration> {
        let oldest = (now.0 / 1_000_000_000).saturating_sub(SECOND_AGE_MAX.as_secs());
        let mut longest: Vec<Duration> =
            self.seconds.iter().filter(|(second, _)| *second >= oldest).map(|(_, longest)| *longest).collect();
        longest.sort();
        (longest.len() == SECONDS).then(|| longest[longest.len() / 2])
    }
}

/// A disk as it is judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    pub node: NodeId,
    pub tail: Option<Duration>,
    /// As the map says.
    pub slow: bool,
}

/// What is to change in the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub disk: DiskId,
    pub slow: bool,
    pub tail: Option<Duration>,
    /// The median of its peers.
    pub peers: Option<Duration>,
}

/// What was seen of the disks over time.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    /// Since when a disk has been what it is not called yet.
    since: BTreeMap<DiskId, MonoTime>,
    /// When a disk was last called slow, and how long it must be fast to be called so no more.
    relapses: BTreeMap<DiskId, (MonoTime, Duration)>,
}

impl Judge {
    /// Begins anew: somebody else has judged meanwhile.
    pub fn reset(&mut self) {
        self.since.clear();
    }

    /// `serving`: nodes in service; `members`: nodes of the cluster.
    pub fn look(
        &mut self,
        disks: &BTreeMap<DiskId, Disk>,
        serving: &BTreeSet<NodeId>,
        members: usize,
        now: MonoTime,
    ) -> Vec<Verdict> {
        self.since.retain(|disk, _| disks.contains_key(disk));
        self.relapses.retain(|disk, _| disks.contains_key(disk));
        let mut verdicts = Vec::new();
        // What a node that is gone was called spares nobody.
        let is_slow = |disk: &&Disk| disk.slow && serving.contains(&disk.node);
        let mut slow_nodes: BTreeSet<NodeId> = disks.values().filter(is_slow).map(|disk| disk.node).collect();
        for (id, disk) in disks.iter().filter(|(_, disk)| serving.contains(&disk.node)) {
            let peers = median_of_others(disks, serving, disk.node);
            if !self.has_turned(*id, disk, peers, now) {
                continue;
            }
            if !disk.slow {
                let others = serving.len() - 1;
                let is_spared = slow_nodes.iter().any(|node| *node != disk.node) || others < members / 2 + 1;
                if is_spared {
                    continue;
                }
                slow_nodes.insert(disk.node);
                self.relapse(*id, now);
            }
            self.since.remove(id);
            verdicts.push(Verdict { disk: *id, slow: !disk.slow, tail: disk.tail, peers });
        }
        verdicts
    }

    /// Whether the disk has been the opposite of what it is called for long enough.
    fn has_turned(&mut self, id: DiskId, disk: &Disk, peers: Option<Duration>, now: MonoTime) -> bool {
        let (is_opposite, patience) = match (disk.slow, disk.tail, peers) {
            (false, Some(tail), Some(peers)) => (tail >= SLOW_MIN.max(peers * SLOW_FACTOR), SLOW_FOR),
            (false, ..) => (false, SLOW_FOR),
            (true, Some(tail), peers) => {
                let limit = (SLOW_MIN / 2).max(peers.unwrap_or_default() * FAST_FACTOR);
                (tail <= limit, self.fast_for(id))
            }
            (true, None, _) => (true, self.fast_for(id)),
        };
        if !is_opposite {
            self.since.remove(&id);
            return false;
        }
        let since = *self.since.entry(id).or_insert(now);
        now.since(since) >= patience
    }

    fn fast_for(&self, id: DiskId) -> Duration {
        self.relapses.get(&id).map_or(FAST_FOR_MIN, |(_, patience)| *patience)
    }

    fn relapse(&mut self, id: DiskId, now: MonoTime) {
        let patience = match self.relapses.get(&id) {
            Some((last, patience)) if now.since(*last) < RELAPSE_WITHIN => (*patience * 2).min(FAST_FOR_MAX),
            _ => FAST_FOR_MIN,
        };
        self.relapses.insert(id, (now, patience));
    }
}

/// The median over other nodes in service of the median of their disks' tails: neither a second slow disk nor one of a
/// faster kind is the measure.
fn median_of_others(disks: &BTreeMap<DiskId, Disk>, serving: &BTreeSet<NodeId>, own: NodeId) -> Option<Duration> {
    let mut by_node: BTreeMap<NodeId, Vec<Duration>> = BTreeMap::new();
    for disk in disks.values().filter(|disk| disk.node != own && serving.contains(&disk.node)) {
        by_node.entry(disk.node).or_default().extend(disk.tail);
    }
    let of_node = |mut tails: Vec<Duration>| {
        tails.sort();
        tails.get(tails.len().saturating_sub(1) / 2).copied()
    };
    let mut tails: Vec<Duration> = by_node.into_values().filter_map(of_node).collect();
    tails.sort();
    // Of two, the larger: to be blamed a disk must be slow beside both.
    (tails.len() >= PEERS_MIN).then(|| tails[tails.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(ms: u64) -> MonoTime {
        MonoTime(ms * 1_000_000)
    }

    /// A disk a node, with these tails; 0: none.
    fn disks(tails: &[u64], slow: &[u32]) -> BTreeMap<DiskId, Disk> {
        let disk = |(number, tail): (usize, &u64)| {
            let node = NodeId(number as u32 + 1);
            let tail = (*tail > 0).then(|| ms(*tail));
            (DiskId(u128::from(node.0)), Disk { node, tail, slow: slow.contains(&node.0) })
        };
        tails.iter().enumerate().map(disk).collect()
    }

    fn serving(nodes: u32) -> BTreeSet<NodeId> {
        (1..=nodes).map(NodeId).collect()
    }

    /// The first verdict within `for_ms`, looking ten times a second, and when it came.
    fn first(
        judge: &mut Judge,
        disks: &BTreeMap<DiskId, Disk>,
        from_ms: u64,
        for_ms: u64,
    ) -> Option<(u64, u128, bool)> {
        let nodes = disks.len() as u32;
        (from_ms..from_ms + for_ms).step_by(100).find_map(|ms| {
            let verdicts = judge.look(disks, &serving(nodes), nodes as usize, at(ms));
            verdicts.first().map(|verdict| (ms - from_ms, verdict.disk.0, verdict.slow))
        })
    }

    #[test]
    fn far_above_its_peers_for_long_enough_is_slow() {
        let mut judge = Judge::default();
        assert_eq!(first(&mut judge, &disks(&[8, 400, 10], &[]), 0, 10_000), Some((1500, 2, true)));
        for fine in [[8, 55, 10], [120, 400, 130], [8, 10, 9]] {
            assert_eq!(first(&mut Judge::default(), &disks(&fine, &[]), 0, 60_000), None, "{fine:?}");
        }
        assert_eq!(first(&mut Judge::default(), &disks(&[8, 400, 0], &[]), 0, 60_000), None, "one peer is no measure");
    }

    #[test]
    fn a_hiccup_is_forgotten() {
        let (calm, hiccup) = (disks(&[8, 9, 10], &[]), disks(&[8, 900, 10], &[]));
        let mut judge = Judge::default();
        for round in 0..20 {
            assert_eq!(first(&mut judge, &hiccup, round * 2000, 1400), None);
            assert_eq!(first(&mut judge, &calm, round * 2000 + 1400, 600), None);
        }
    }

    #[test]
    fn one_that_recovers_is_trusted_later_each_time() {
        let mut judge = Judge::default();
        let (bad, good, still_bad) = (disks(&[8, 400, 10], &[]), disks(&[8, 9, 10], &[2]), disks(&[8, 300, 10], &[2]));
        assert!(first(&mut judge, &bad, 0, 5000).is_some());
        assert_eq!(first(&mut judge, &still_bad, 5000, 100_000), None);
        assert_eq!(first(&mut judge, &good, 200_000, 60_000), Some((30_000, 2, false)));
        assert!(first(&mut judge, &bad, 300_000, 5000).is_some());
        assert_eq!(first(&mut judge, &good, 310_000, 100_000), Some((60_000, 2, false)));
        // One that is asked for nothing is tried again.
        assert!(first(&mut judge, &bad, 400_000, 5000).is_some());
        assert_eq!(first(&mut judge, &disks(&[8, 0, 10], &[2]), 410_000, 200_000), Some((120_000, 2, false)));
    }

    #[test]
    fn never_two_nodes_and_never_without_a_majority_of_others() {
        let two = disks(&[400, 500, 9, 10, 11], &[]);
        let mut judge = Judge::default();
        let mut named = BTreeSet::new();
        for ms in (0..5000).step_by(100) {
            let called: Vec<u32> = named.iter().copied().collect();
            let now = disks(&[400, 500, 9, 10, 11], &called);
            named.extend(judge.look(&now, &serving(5), 5, at(ms)).iter().map(|verdict| verdict.disk.0 as u32));
        }
        assert_eq!(named.len(), 1);
        let verdicts = |serving: &BTreeSet<NodeId>, members| {
            let mut judge = Judge::default();
            judge.look(&two, serving, members, at(0));
            judge.look(&two, serving, members, at(5000)).len()
        };
        assert_eq!(verdicts(&serving(5), 5), 1);
        assert_eq!(verdicts(&[1, 3, 4].map(NodeId).into(), 5), 0, "two of five are down already");
    }

    #[test]
    fn one_who_is_gone_spares_nobody_and_a_faster_kind_is_no_measure() {
        let mut judge = Judge::default();
        let gone_was_slow = disks(&[8, 400, 10, 9, 500], &[5]);
        let look = |judge: &mut Judge, ms| judge.look(&gone_was_slow, &serving(4), 5, at(ms));
        assert_eq!(look(&mut judge, 0), vec![]);
        assert_eq!(look(&mut judge, 2000).first().map(|verdict| verdict.disk), Some(DiskId(2)));
        // Each node has a fast disk and two slower ones: these are what the others' slower ones are compared with.
        let disk = |number: u32| {
            let tail = Some(ms(if number.is_multiple_of(3) { 2 } else { 90 }));
            (DiskId(u128::from(number)), Disk { node: NodeId(number / 3 + 1), tail, slow: false })
        };
        let mixed: BTreeMap<DiskId, Disk> = (0..9).map(disk).collect();
        let mut judge = Judge::default();
        assert!((0..10_000).step_by(100).all(|ms| judge.look(&mixed, &serving(3), 3, at(ms)).is_empty()));
    }

    #[test]
    fn a_tail_is_met_in_most_seconds() {
        let mut tail = Tail::default();
        assert_eq!(tail.get(at(0)), None);
        for (second, longest) in [(1, 5), (2, 900), (3, 6), (4, 800), (5, 7)] {
            tail.note(ms(1), at(second * 1000));
            tail.note(ms(longest), at(second * 1000 + 500));
        }
        assert_eq!(tail.get(at(5900)), Some(ms(7)));
        tail.note(ms(700), at(6000));
        tail.note(ms(700), at(7000));
        assert_eq!(tail.get(at(7000)), Some(ms(700)));
        assert_eq!(tail.get(at(60_000)), None, "long ago");
    }

    proptest! {
        #[test]
        fn at_most_one_node_is_slow_whatever_comes(
            rounds in proptest::collection::vec(proptest::collection::vec(0u64..1000, 5), 1..60)
        ) {
            let mut judge = Judge::default();
            let mut slow: BTreeSet<u32> = BTreeSet::new();
            for (round, tails) in rounds.iter().enumerate() {
                let called: Vec<u32> = slow.iter().copied().collect();
                for verdict in judge.look(&disks(tails, &called), &serving(5), 5, at(round as u64 * 1000)) {
                    let node = verdict.disk.0 as u32;
                    let _ = if verdict.slow { slow.insert(node) } else { slow.remove(&node) };
                }
                prop_assert!(slow.len() <= 1);
            }
        }
    }
}
