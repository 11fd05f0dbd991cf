//! Who is silent, judged from when word of a node comes, not by a fixed deadline. Pure: times come in, opinions go out.
//!
//! Every node says something every [`Rules::interval`] to its observers. How late word of it may be is learnt from the
//! gaps so far: their mean and deviation, exponentially weighted (Jacobson 1988), give a deadline between a floor and a
//! ceiling. A deadline that passes is a miss; three in a row make a node *suspect*. Then others are asked whether they
//! reach it (SWIM; Das, Gupta, Motivala 2002): when nobody does it is *silent*, when somebody does it is the link
//! between the two that is *cut*, and no node is blamed. When nobody can be asked, or nobody answers, it may be the observer
//! that hears nobody: that is no verdict, until it has lasted for long or there is nobody else in the cluster.
//!
//! The observer itself may have been paused: time in which it did not look is nobody's silence.

use base::env::MonoTime;
use base::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Deadlines that pass until a node is suspect.
pub const MISSES_MAX: u32 = 3;
/// Up to so many nodes, each observes all others.
pub const EVERYBODY_MAX: usize = 8;
/// Observers of a node in a larger cluster, besides those that observe everybody.
pub const OBSERVERS: usize = 3;
/// Nodes that are asked whether they reach a suspect.
pub const HELPERS: usize = 3;
/// Deviations that word may be late.
const DEVIATIONS: u32 = 4;
/// A node that stays away is asked about again and again, ever more rarely.
const ASK_AGAIN_MIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(16);

/// Silence of a node that is believed although nobody says the same.
const ALONE_PATIENCE: Duration = Duration::from_secs(2);

const _: () = assert!(HELPERS <= EVERYBODY_MAX);

#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// From one word of a node to its next.
    pub interval: Duration,
    /// The deadline is never shorter, however regular a node is.
    pub floor: Duration,
    /// Nor longer, however irregular.
    pub ceiling: Duration,
    /// A look that comes so much later than the last one means that this node was paused.
    pub pause_min: Duration,
}

/// What is thought of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opinion {
    Trusted,
    /// Three deadlines have passed; others are being asked.
    Suspect,
    /// Nobody who was asked reaches it.
    Silent,
    /// Others reach it: the link between it and this node is broken, in one direction at least.
    Cut,
}

/// Which life of a node is observed: a node that comes up has not been silent before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    pub generation: u32,
    pub serves: bool,
}

#[derive(Clone, Debug)]
struct Observed {
    life: Life,
    /// When word of it last came, or when it came up.
    heard: MonoTime,
    mean_us: i64,
    deviation_us: i64,
    opinion: Opinion,
    /// When others are asked next, while it is not trusted.
    ask_at: MonoTime,
    ask_pause: Duration,
}

/// The nodes that one node observes.
#[derive(Clone, Debug)]
pub struct Detector {
    rules: Rules,
    looked: MonoTime,
    observed: BTreeMap<NodeId, Observed>,
}

/// An opinion that has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    pub node: NodeId,
    pub from: Opinion,
    pub to: Opinion,
}

impl Detector {
    pub fn new(rules: Rules) -> Detector {
        assert!(rules.interval <= rules.floor && rules.floor <= rules.ceiling, "word is given time to come");
        Detector { rules, looked: MonoTime(0), observed: BTreeMap::new() }
    }

    /// Observes exactly these nodes from now on.
    pub fn observe(&mut self, nodes: &BTreeMap<NodeId, Life>, now: MonoTime) {
        self.observed.retain(|node, _| nodes.contains_key(node));
        for (node, life) in nodes {
            let held = self.observed.entry(*node).or_insert_with(|| Observed::new(*life, now, &self.rules));
            let comes_up = held.life.generation != life.generation || (life.serves && !held.life.serves);
            held.life = *life;
            if comes_up {
                let (mean_us, deviation_us) = (held.mean_us, held.deviation_us);
                *held = Observed { mean_us, deviation_us, ..Observed::new(*life, now, &self.rules) };
            }
        }
    }

    /// Word of a node has come. Answers the turn, when it had not been trusted.
    pub fn hear(&mut self, node: NodeId, now: MonoTime) -> Option<Turn> {
        let held = self.observed.get_mut(&node)?;
        held.learn(now.since(held.heard).min(self.rules.ceiling));
        held.heard = held.heard.max(now);
        let from = std::mem::replace(&mut held.opinion, Opinion::Trusted);
        (from != Opinion::Trusted).then_some(Turn { node, from, to: Opinion::Trusted })
    }

    /// Judges everybody anew; to be called several times an interval. Answers who has just become suspect, and about
    /// whom others are to be asked now.
    pub fn look(&mut self, now: MonoTime) -> (Vec<Turn>, Vec<NodeId>) {
        let unseen = now.since(self.looked);
        if self.looked > MonoTime(0) && unseen > self.rules.pause_min {
            self.forgive(unseen, now);
        }
        self.looked = now;
        let (mut turns, mut asks) = (Vec::new(), Vec::new());
        for (node, held) in &mut self.observed {
            let is_late = now.since(held.heard) >= held.deadline(&self.rules) * MISSES_MAX;
            if held.opinion == Opinion::Trusted && is_late {
                held.opinion = Opinion::Suspect;
                (held.ask_at, held.ask_pause) = (now, ASK_AGAIN_MIN);
                turns.push(Turn { node: *node, from: Opinion::Trusted, to: Opinion::Suspect });
            }
            if held.opinion != Opinion::Trusted && now >= held.ask_at {
                asks.push(*node);
            }
        }
        // With nobody to ask they wait: the first who is heard again is asked at once.
        asks.retain(|node| !self.helpers(*node).is_empty() || self.stands_alone(*node, now));
        for node in &asks {
            let held = self.observed.get_mut(node).expect("it was among them above");
            held.ask_at = now + held.ask_pause;
            held.ask_pause = (held.ask_pause * 2).min(ASK_AGAIN_MAX);
        }
        (turns, asks)
    }

    /// The machine of a node says that its process has ended: nobody waits for its silence, others are asked at once.
    /// Answers the turn, when it had been trusted.
    pub fn ended(&mut self, node: NodeId, now: MonoTime) -> Option<Turn> {
        let held = self.observed.get_mut(&node).filter(|held| held.opinion == Opinion::Trusted)?;
        held.opinion = Opinion::Suspect;
        (held.ask_at, held.ask_pause) = (now + ASK_AGAIN_MIN, ASK_AGAIN_MIN);
        Some(Turn { node, from: Opinion::Trusted, to: Opinion::Suspect })
    }

    /// What others said of a node that is not trusted: whether one of them reaches it.
    pub fn told(&mut self, node: NodeId, is_reached: bool) -> Option<Turn> {
        let held = self.observed.get_mut(&node).filter(|held| held.opinion != Opinion::Trusted)?;
        let to = if is_reached { Opinion::Cut } else { Opinion::Silent };
        let from = std::mem::replace(&mut held.opinion, to);
        (from != to).then_some(Turn { node, from, to })
    }

    /// There was nobody to ask about a node that is not trusted, or nobody answered. Others are asked again at once; in the end the
    /// silence is believed.
    pub fn unanswered(&mut self, node: NodeId, now: MonoTime) -> Option<Turn> {
        if self.stands_alone(node, now) {
            return self.told(node, false);
        }
        let held = self.observed.get_mut(&node).filter(|held| held.opinion != Opinion::Trusted)?;
        (held.ask_at, held.ask_pause) = (now, ASK_AGAIN_MIN);
        None
    }

    /// Whether this node's own word about another is enough.
    fn stands_alone(&self, node: NodeId, now: MonoTime) -> bool {
        let is_two = !self.observed.iter().any(|(other, held)| *other != node && held.life.serves);
        is_two || self.heard(node).is_some_and(|heard| now.since(heard) >= ALONE_PATIENCE)
    }

    /// Time in which this node did not look is taken off everybody's silence.
    fn forgive(&mut self, unseen: Duration, now: MonoTime) {
        for held in self.observed.values_mut() {
            held.heard = (held.heard + unseen).min(now);
            if held.opinion == Opinion::Suspect {
                held.opinion = Opinion::Trusted;
            }
        }
    }

    /// A node that is not observed is trusted.
    pub fn opinion(&self, node: NodeId) -> Opinion {
        self.observed.get(&node).map_or(Opinion::Trusted, |held| held.opinion)
    }

    /// Everybody who is observed, in the order of their ids.
    pub fn opinions(&self) -> impl Iterator<Item = (NodeId, Opinion)> + '_ {
        self.observed.iter().map(|(node, held)| (*node, held.opinion))
    }

    /// How long word of a node may be overdue, once.
    pub fn deadline(&self, node: NodeId) -> Option<Duration> {
        self.observed.get(&node).map(|held| held.deadline(&self.rules))
    }

    /// When word of a node last came, or when it came up.
    pub fn heard(&self, node: NodeId) -> Option<MonoTime> {
        self.observed.get(&node).map(|held| held.heard)
    }

    /// Whom to ask about a suspect: those whose word came last.
    pub fn helpers(&self, suspect: NodeId) -> Vec<NodeId> {
        let trusted = self
            .observed
            .iter()
            .filter(|(node, held)| **node != suspect && held.opinion == Opinion::Trusted && held.life.serves);
        let mut helpers: Vec<(MonoTime, NodeId)> = trusted.map(|(node, held)| (held.heard, *node)).collect();
        helpers.sort_by(|a, b| b.cmp(a));
        helpers.into_iter().take(HELPERS).map(|(_, node)| node).collect()
    }
}

impl Observed {
    fn new(life: Life, now: MonoTime, rules: &Rules) -> Observed {
        let mean_us = rules.interval.as_micros() as i64;
        Observed {
            life,
            heard: now,
            mean_us,
            // Unknown yet: patience first.
            deviation_us: mean_us / 4,
            opinion: Opinion::Trusted,
            ask_at: now,
            ask_pause: ASK_AGAIN_MIN,
        }
    }

    /// Weights as in TCP's retransmission timer (RFC 6298): an eighth for the mean, a quarter for the deviation.
    fn learn(&mut self, gap: Duration) {
        let error = gap.as_micros() as i64 - self.mean_us;
        self.mean_us += error / 8;
        self.deviation_us += (error.abs() - self.deviation_us) / 4;
    }

    fn deadline(&self, rules: &Rules) -> Duration {
        let micros = self.mean_us + i64::from(DEVIATIONS) * self.deviation_us;
        Duration::from_micros(micros.max(0) as u64).clamp(rules.floor, rules.ceiling)
    }
}

/// Who observes `node`: in a small cluster everybody, in a larger one those who follow it in the ring of ids, and
/// `always` (whoever may have to decide). `nodes` is in the order of the ids.
pub fn observers(node: NodeId, nodes: &[NodeId], always: &[NodeId]) -> BTreeSet<NodeId> {
    let after = nodes.partition_point(|other| *other <= node);
    let ring = nodes[after..].iter().chain(&nodes[..after]).filter(|other| **other != node);
    let many = if nodes.len() <= EVERYBODY_MAX { nodes.len() } else { OBSERVERS };
    let known = always.iter().filter(|other| **other != node && nodes.binary_search(other).is_ok());
    ring.take(many).chain(known).copied().collect()
}

/// Links between two nodes that are broken, in one direction at least; the smaller id first.
pub type Links = BTreeSet<(NodeId, NodeId)>;

/// Nodes to do without, so that all others reach each other: of each broken link one end, as few as a greedy choice
/// finds (the node with the most broken links first; of two alike the one with the higher id), and never `kept`.
pub fn without_cuts(links: &Links, kept: NodeId) -> Vec<NodeId> {
    let mut left = links.clone();
    let mut out = Vec::new();
    while !left.is_empty() {
        let mut broken: BTreeMap<NodeId, usize> = BTreeMap::new();
        for end in left.iter().flat_map(|(a, b)| [*a, *b]).filter(|end| *end != kept) {
            *broken.entry(end).or_default() += 1;
        }
        let Some((worst, _)) = broken.into_iter().max_by_key(|(node, count)| (*count, *node)) else { break };
        left.retain(|(a, b)| *a != worst && *b != worst);
        out.push(worst);
    }
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: Rules = Rules {
        interval: Duration::from_millis(100),
        floor: Duration::from_millis(150),
        ceiling: Duration::from_millis(700),
        pause_min: Duration::from_millis(250),
    };
    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);

    fn at(millis: u64) -> MonoTime {
        MonoTime(1_000_000_000 + millis * 1_000_000)
    }

    fn lives(generations: &[(NodeId, u32)]) -> BTreeMap<NodeId, Life> {
        generations.iter().map(|(node, generation)| (*node, Life { generation: *generation, serves: true })).collect()
    }

    fn detector() -> Detector {
        let mut detector = Detector::new(RULES);
        detector.observe(&lives(&[(A, 1), (B, 1)]), at(0));
        detector
    }

    /// Word of these nodes comes every 100 ms, and one looks every 50.
    fn run(detector: &mut Detector, from: u64, to: u64, nodes: &[NodeId]) -> Vec<Turn> {
        let mut turns = Vec::new();
        for millis in (from..to).step_by(50) {
            if millis % 100 == 0 {
                turns.extend(nodes.iter().filter_map(|node| detector.hear(*node, at(millis))));
            }
            turns.extend(detector.look(at(millis)).0);
        }
        turns
    }

    #[test]
    fn three_deadlines_make_a_suspect_and_others_decide_what_it_is() {
        let mut detector = detector();
        assert_eq!(run(&mut detector, 0, 5000, &[A, B]), vec![]);
        assert_eq!(detector.deadline(A), Some(RULES.floor), "regular as a clock");
        // The last word came at 4900.
        assert_eq!(run(&mut detector, 5000, 5350, &[B]), vec![]);
        let (turns, asks) = detector.look(at(5350));
        assert_eq!(turns, vec![Turn { node: A, from: Opinion::Trusted, to: Opinion::Suspect }]);
        assert_eq!((asks, detector.helpers(A)), (vec![A], vec![B]));
        assert_eq!(detector.told(A, false).map(|turn| turn.to), Some(Opinion::Silent));
        assert_eq!(detector.told(A, false), None, "said once");
        assert_eq!(detector.told(A, true).map(|turn| turn.to), Some(Opinion::Cut));
        assert_eq!(detector.hear(A, at(5400)).map(|turn| turn.from), Some(Opinion::Cut));
        assert_eq!(detector.opinion(A), Opinion::Trusted);
        assert_eq!(detector.told(A, false), None, "an answer that comes too late");
    }

    #[test]
    fn the_end_of_a_process_makes_a_suspect_at_once() {
        let mut detector = detector();
        run(&mut detector, 0, 1000, &[A, B]);
        let suspected = Some(Turn { node: A, from: Opinion::Trusted, to: Opinion::Suspect });
        assert_eq!(detector.ended(A, at(1000)), suspected);
        assert_eq!(detector.ended(A, at(1001)), None, "said once");
        assert_eq!(detector.ended(NodeId(99), at(1000)), None);
        assert_eq!(detector.look(at(1050)).1, vec![], "whoever was told asks");
        assert_eq!(detector.told(A, false).map(|turn| turn.to), Some(Opinion::Silent));
        // It was started again: its first word ends the suspicion, and it has its usual time.
        assert_eq!(detector.hear(A, at(1100)).map(|turn| turn.to), Some(Opinion::Trusted));
        assert_eq!(run(&mut detector, 1150, 1400, &[B]), vec![]);
    }

    #[test]
    fn one_that_hears_nobody_gives_no_verdict_until_it_has_lasted() {
        let mut detector = detector();
        run(&mut detector, 0, 1000, &[A, B]);
        // Nothing comes in for a while: both are suspect, and there is nobody to ask.
        assert_eq!(run(&mut detector, 1000, 1500, &[]).len(), 2);
        assert_eq!(detector.look(at(1500)).1, vec![]);
        // The first who is heard again is asked, and does not answer: nothing follows, and it is asked again.
        detector.hear(B, at(1550));
        assert_eq!(detector.look(at(1550)).1, vec![A]);
        assert_eq!(detector.unanswered(A, at(1600)), None);
        assert_eq!(detector.opinion(A), Opinion::Suspect);
        assert_eq!(detector.look(at(1600)).1, vec![A]);
        detector.unanswered(A, at(1600));
        let mut silent = Vec::new();
        for millis in (1650..5000).step_by(50) {
            for node in detector.look(at(millis)).1 {
                silent.extend(detector.unanswered(node, at(millis)).map(|turn| (millis, turn.node, turn.to)));
            }
        }
        // Two seconds after the last word of each, or later when its word had been irregular.
        assert_eq!(silent[0], (2900, A, Opinion::Silent));
        assert!(silent.len() == 2 && silent[1].0 >= 3550, "{silent:?}");
    }

    #[test]
    fn of_two_nodes_one_judges_the_other_alone() {
        let mut detector = Detector::new(RULES);
        detector.observe(&lives(&[(A, 1)]), at(0));
        run(&mut detector, 0, 1000, &[A]);
        run(&mut detector, 1000, 1350, &[]);
        assert_eq!(detector.look(at(1350)).1, vec![A]);
        assert_eq!(detector.unanswered(A, at(1350)).map(|turn| turn.to), Some(Opinion::Silent));
    }

    #[test]
    fn an_irregular_node_is_given_more_time_and_never_too_much() {
        let mut detector = detector();
        let mut now = 0;
        for gap in [100, 400, 50, 250, 500, 100, 300, 80, 450, 120].repeat(5) {
            now += gap;
            detector.hear(A, at(now));
        }
        let deadline = detector.deadline(A).unwrap();
        assert!(deadline > Duration::from_millis(400) && deadline <= RULES.ceiling, "{deadline:?}");
        for _ in 0..50 {
            now += 60_000;
            detector.hear(A, at(now));
        }
        assert_eq!(detector.deadline(A), Some(RULES.ceiling));
        for _ in 0..100 {
            now += 100;
            detector.hear(A, at(now));
        }
        assert_eq!(detector.deadline(A), Some(RULES.floor), "what was long ago is forgotten");
    }

    #[test]
    fn ones_own_pause_is_nobodys_silence() {
        let mut detector = detector();
        run(&mut detector, 0, 1000, &[A, B]);
        // Thirty seconds without a look. Word that waited in a queue comes only after the first look.
        assert_eq!(detector.look(at(31_000)), (vec![], vec![]));
        assert_eq!(run(&mut detector, 31_050, 31_350, &[]), vec![], "and then everybody has the usual time");
        assert_eq!(run(&mut detector, 31_350, 31_500, &[]).len(), 2);
    }

    #[test]
    fn who_comes_up_has_not_been_silent_before() {
        let mut detector = detector();
        run(&mut detector, 0, 1000, &[B]);
        detector.told(A, false);
        assert_eq!(detector.opinion(A), Opinion::Silent);
        let voted_down = Life { generation: 1, serves: false };
        detector.observe(&BTreeMap::from([(A, voted_down), (B, Life { serves: true, ..voted_down })]), at(1000));
        assert_eq!(detector.opinion(A), Opinion::Silent, "what is known of it is not forgotten");
        detector.observe(&lives(&[(A, 2), (B, 1)]), at(1000));
        assert_eq!(detector.opinion(A), Opinion::Trusted);
        assert_eq!(run(&mut detector, 1000, 1400, &[B]), vec![]);
        detector.observe(&lives(&[(B, 1)]), at(1400));
        assert_eq!(detector.opinion(A), Opinion::Trusted, "nobody looks at it any more");
    }

    #[test]
    fn one_who_stays_away_is_asked_about_ever_more_rarely() {
        let mut detector = detector();
        run(&mut detector, 0, 1000, &[B]);
        let mut asks = 0;
        for millis in (1000..61_000).step_by(50) {
            detector.hear(B, at(millis));
            asks += detector.look(at(millis)).1.len();
        }
        assert!((4..10).contains(&asks), "{asks}");
    }

    #[test]
    fn everybody_is_observed_by_a_few() {
        let nodes = |count: u32| (1..=count).map(NodeId).collect::<Vec<_>>();
        let voters = [1, 2, 3, 4, 5].map(NodeId);
        assert_eq!(observers(NodeId(2), &nodes(3), &[]), BTreeSet::from([NodeId(1), NodeId(3)]));
        assert_eq!(observers(NodeId(7), &nodes(8), &[]).len(), 7);
        let of_99 = observers(NodeId(99), &nodes(100), &voters);
        assert_eq!(of_99, [1, 2, 3, 4, 5, 100].into_iter().map(NodeId).collect());
        assert_eq!(observers(NodeId(3), &nodes(100), &voters), [1, 2, 4, 5, 6].into_iter().map(NodeId).collect());
        assert_eq!(observers(NodeId(50), &nodes(100), &[NodeId(200)]).len(), OBSERVERS, "only who is there");
    }

    #[test]
    fn of_each_broken_link_one_end_goes() {
        let links = |pairs: &[(u32, u32)]| pairs.iter().map(|(a, b)| (NodeId(*a), NodeId(*b))).collect::<Links>();
        let out = |pairs: &[(u32, u32)], kept| {
            without_cuts(&links(pairs), NodeId(kept)).iter().map(|node| node.0).collect::<Vec<_>>()
        };
        assert_eq!(out(&[], 1), []);
        assert_eq!(out(&[(2, 3)], 1), [3]);
        assert_eq!(out(&[(2, 3)], 3), [2], "the one that decides stays");
        assert_eq!(out(&[(2, 3), (2, 4), (2, 5)], 1), [2], "one node with many broken links");
        assert_eq!(out(&[(1, 2), (1, 3)], 1), [2, 3]);
        assert_eq!(out(&[(2, 3), (4, 5)], 1), [3, 5]);
    }

    proptest! {
        #[test]
        fn whoever_stays_reaches_whoever_stays(pairs in proptest::collection::btree_set((1u32..8, 1u32..8), 0..12)) {
            let links: Links = pairs.into_iter().filter(|(a, b)| a < b).map(|(a, b)| (NodeId(a), NodeId(b))).collect();
            let out = without_cuts(&links, NodeId(1));
            prop_assert!(!out.contains(&NodeId(1)));
            prop_assert!(links.iter().all(|(a, b)| out.contains(a) || out.contains(b)));
            prop_assert!(out.iter().all(|node| links.iter().any(|(a, b)| a == node || b == node)));
        }

        /// Word comes every 100 ms give or take what a loaded machine takes: nobody is suspected; whoever then falls
        /// silent is, within three deadlines.
        #[test]
        fn lateness_alone_is_not_suspect(
            delays in proptest::collection::vec(0u64..120, 200), pauses in proptest::collection::vec(0usize..200, 0..3)
        ) {
            let mut detector = detector();
            let mut arrivals: Vec<u64> = delays.iter().enumerate().map(|(n, late)| n as u64 * 100 + late).collect();
            pauses.iter().for_each(|n| arrivals[*n] += 150);
            arrivals.sort();
            let end = *arrivals.last().unwrap();
            let mut next = arrivals.iter().peekable();
            for now in (0..end).step_by(25) {
                while next.next_if(|arrival| **arrival <= now).is_some() {
                    detector.hear(A, at(now));
                    detector.hear(B, at(now));
                }
                prop_assert_eq!(detector.look(at(now)).0, vec![]);
            }
            let latest = end + 3 * detector.deadline(A).unwrap().as_millis() as u64 + 200;
            let turned = run(&mut detector, end.next_multiple_of(50), latest, &[]);
            prop_assert_eq!(turned.len(), 2);
        }
    }
}
