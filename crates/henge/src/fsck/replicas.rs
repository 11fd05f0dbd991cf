//! Which replica of a group says what the group's state is, and whether the others agree with it. Pure.
//!
//! The next leader is a voter whose log is at least as up to date as those of a majority (Raft's election restriction,
//! Ongaro 2014, section 3.6.1): it holds everything that was ever acknowledged. The most up to date of all voters is
//! one of those.

use base::ids::{LogIndex, NodeId, PeerId, Term};
use node::offline::ReplicaState;
use protocol::raft::{Configuration, ENTRY_CONFIGURATION};
use std::collections::BTreeSet;
use std::fmt;
use store::RaftEntry;

/// One replica of one group, on a disk that was given.
pub struct Replica<'a> {
    /// Number of its disk among those with metadata.
    pub disk: usize,
    /// The disk's path, for messages.
    pub place: &'a str,
    pub peer: PeerId,
    /// Of the cluster: a replica from before a recovery has no say after it.
    pub cluster_generation: u32,
    /// Some rows of its disk cannot be read.
    pub has_damaged_rows: bool,
    /// `None`: it has a log only.
    pub state: Option<ReplicaState>,
    /// Index and term that the first entry follows.
    pub base: (LogIndex, Term),
    pub entries: &'a [RaftEntry],
}

impl<'a> Replica<'a> {
    pub fn new(
        disk: usize,
        place: &'a str,
        cluster_generation: u32,
        state: Option<ReplicaState>,
        log: &'a store::RaftLog,
    ) -> Replica<'a> {
        let mut replica = Replica {
            disk,
            place,
            peer: log.peer,
            cluster_generation,
            has_damaged_rows: false,
            state,
            base: log.base,
            entries: &log.entries,
        };
        if let Some(state) = replica.state.as_ref().filter(|state| state.log_due)
            && replica.term_at(state.applied.0) != Some(state.applied.1)
        {
            (replica.base, replica.entries) = (state.applied, &[]);
        }
        replica
    }

    /// Index and term of the log's last entry.
    pub fn last(&self) -> (LogIndex, Term) {
        self.entries.last().map_or(self.base, |entry| (entry.index, entry.term))
    }

    fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.entry(index).map(|entry| entry.term)
    }

    fn entry(&self, index: LogIndex) -> Option<&'a RaftEntry> {
        let at = self.entries.binary_search_by_key(&index, |entry| entry.index).ok()?;
        self.entries.get(at)
    }

    fn is_voter(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.configuration.is_voter(self.peer))
    }

    /// What is wrong with it whatever the others say.
    pub fn problem(&self) -> Option<String> {
        let applied = self.state.as_ref()?.applied;
        let (first, last) = (self.base.0, self.last().0);
        if applied.0 < first {
            return Some(format!(
                "the log begins after entry {first}, the key-value store ends at entry {}",
                applied.0
            ));
        }
        if applied.0 > last {
            return Some(format!("the log ends at entry {last}, and entry {} was applied", applied.0));
        }
        let logged = self.term_at(applied.0);
        (logged != Some(applied.1)).then(|| {
            format!(
                "entry {} was applied under term {}, and the log has another under that number",
                applied.0, applied.1
            )
        })
    }
}

/// The replica that the group's next leader would have; one that is no voter only when there is no other. `None`: none
/// has a state.
pub fn choose(replicas: &[Replica<'_>]) -> Option<usize> {
    let rank = |replica: &Replica<'_>| {
        let (index, term) = replica.last();
        (
            replica.cluster_generation,
            replica.problem().is_none(),
            replica.is_voter(),
            term,
            index,
            !replica.has_damaged_rows,
        )
    };
    let with_state = (0..replicas.len()).filter(|at| replicas[*at].state.is_some());
    // Of equal ones the first, so that the same directories give the same answer.
    with_state.rev().max_by_key(|at| rank(&replicas[*at]))
}

/// How many of the voters were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quorum {
    pub given: usize,
    pub voters: usize,
    /// A majority was given, of both halves of a joint configuration: nothing acknowledged can be missing.
    pub is_majority: bool,
    /// Nodes of the voters that were not given.
    pub missing: BTreeSet<NodeId>,
}

pub fn quorum(configuration: &Configuration, given: &BTreeSet<PeerId>) -> Quorum {
    let halves = [&configuration.voters, &configuration.voters_outgoing];
    let count = |half: &[PeerId]| half.iter().filter(|peer| given.contains(peer)).count();
    let voters: BTreeSet<PeerId> = halves.into_iter().flatten().copied().collect();
    let missing = voters.iter().filter(|peer| !given.contains(peer)).filter_map(|peer| configuration.node_of(*peer));
    Quorum {
        given: voters.intersection(given).count(),
        voters: voters.len(),
        is_majority: halves.into_iter().all(|half| half.is_empty() || count(half) * 2 > half.len()),
        missing: missing.collect(),
    }
}

/// How the log of a replica goes with the chosen one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Up to here both say the same. `None`: they have no entry in common.
    pub until: Option<LogIndex>,
    pub conflict: Option<Conflict>,
}

/// What no correct replicas of one group can show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// One entry, two contents.
    Contents { index: LogIndex, term: Term },
    /// An entry that one of them applied is another one's at the other.
    Applied { index: LogIndex, terms: (Term, Term) },
    /// The chosen one lacks what this one applied.
    Behind { applied: LogIndex, chosen_last: LogIndex },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conflict::Contents { index, term } => write!(f, "entry {index} of term {term} has two contents"),
            Conflict::Applied { index, terms: (here, there) } => {
                write!(f, "entry {index} was applied, and is of term {here} here and of term {there} there")
            }
            Conflict::Behind { applied, chosen_last } => {
                write!(f, "entry {applied} was applied here, and the log there ends at entry {chosen_last}")
            }
        }
    }
}

pub fn compare(chosen: &Replica<'_>, other: &Replica<'_>) -> Agreement {
    let applied = |replica: &Replica<'_>| replica.state.as_ref().map_or(LogIndex(0), |state| state.applied.0);
    let applied_max = applied(chosen).max(applied(other));
    let first = chosen.base.0.max(other.base.0);
    let last = chosen.last().0.min(other.last().0);
    let mut agreement = Agreement { until: None, conflict: None };
    for index in (first.0..=last.0).map(LogIndex) {
        let (Some(there), Some(here)) = (chosen.term_at(index), other.term_at(index)) else { break };
        if here != there {
            if index <= applied_max {
                agreement.conflict = Some(Conflict::Applied { index, terms: (here, there) });
            }
            break;
        }
        if let (Some(there), Some(here)) = (chosen.entry(index), other.entry(index))
            && !is_same(there, here)
        {
            agreement.conflict = Some(Conflict::Contents { index, term: here.term });
            break;
        }
        agreement.until = Some(index);
    }
    if agreement.conflict.is_none() && applied(other) > chosen.last().0 {
        agreement.conflict = Some(Conflict::Behind { applied: applied(other), chosen_last: chosen.last().0 });
    }
    agreement
}

/// The recovery of a survivor empties changes of the members that were not applied.
fn is_same(one: &RaftEntry, other: &RaftEntry) -> bool {
    let is_voided =
        |entry: &RaftEntry, by: &RaftEntry| by.data.is_empty() && entry.data.first() == Some(&ENTRY_CONFIGURATION);
    one.data == other.data || is_voided(one, other) || is_voided(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use store::RaftLog;

    /// A log from its base on, one letter an entry: the letter is its term and content.
    fn log(peer: u64, base: u64, text: &str) -> RaftLog {
        let term = |letter: char| Term(u64::from(letter as u32 - 'a' as u32 + 1));
        let entry = |(at, letter): (usize, char)| RaftEntry {
            index: LogIndex(base + 1 + at as u64),
            term: term(letter),
            data: Bytes::from(format!("\u{1}{letter}")),
        };
        let before = if base == 0 { Term(0) } else { Term(1) };
        let entries = text.chars().enumerate().map(entry).collect();
        RaftLog { peer: PeerId(peer), hard_state: None, base: (LogIndex(base), before), entries }
    }

    fn voters(peers: &[u64]) -> Configuration {
        Configuration {
            voters: peers.iter().copied().map(PeerId).collect(),
            nodes: peers.iter().map(|peer| (PeerId(*peer), NodeId(*peer as u32))).collect(),
            peer_last: PeerId(9),
            ..Configuration::default()
        }
    }

    fn applied(index: u64, term: u64) -> Option<ReplicaState> {
        let applied = (LogIndex(index), Term(term));
        Some(ReplicaState { applied, configuration: voters(&[1, 2, 3]), log_due: false })
    }

    fn replica<'a>(log: &'a RaftLog, state: Option<ReplicaState>) -> Replica<'a> {
        Replica::new(0, "disk", 0, state, log)
    }

    #[test]
    fn the_most_up_to_date_voter_is_chosen() {
        let (long, late, learner) = (log(1, 0, "aaaaa"), log(2, 0, "aab"), log(7, 0, "aabb"));
        let replicas = |states: [Option<ReplicaState>; 3]| {
            let [first, second, third] = states;
            [replica(&long, first), replica(&late, second), replica(&learner, third)]
        };
        assert_eq!(choose(&replicas([applied(2, 1), applied(2, 1), applied(2, 1)])), Some(1), "term before length");
        assert_eq!(choose(&replicas([applied(2, 1), None, applied(2, 1)])), Some(0), "a log alone is no state");
        assert_eq!(choose(&replicas([None, None, applied(2, 1)])), Some(2), "better a learner than nothing");
        assert_eq!(choose(&replicas([None, None, None])), None);
        let broken = applied(9, 1);
        assert_eq!(choose(&replicas([applied(2, 1), broken, None])), Some(0), "what contradicts itself comes last");
        let mut recovered = replicas([applied(2, 1), applied(2, 1), None]);
        recovered[0].cluster_generation = 1;
        assert_eq!(choose(&recovered), Some(0), "what was recovered stands above what was left behind");
        let mut same = [replica(&long, applied(2, 1)), replica(&long, applied(2, 1))];
        assert_eq!(choose(&same), Some(0));
        same[0].has_damaged_rows = true;
        assert_eq!(choose(&same), Some(1));
    }

    #[test]
    fn a_log_that_a_snapshot_made_void_counts_as_empty() {
        let old = log(3, 0, "aaaaaaa");
        let snapshot = |index, term| applied(index, term).map(|state| ReplicaState { log_due: true, ..state });
        let behind = replica(&old, snapshot(90, 4));
        assert_eq!((behind.last(), behind.entries.len()), ((LogIndex(90), Term(4)), 0));
        assert_eq!(behind.problem(), None);
        let within = replica(&old, snapshot(5, 1));
        assert_eq!(within.last(), (LogIndex(7), Term(1)), "the log holds the snapshot's entry and goes on");
        let other = replica(&old, snapshot(5, 3));
        assert_eq!(other.last(), (LogIndex(5), Term(3)), "an entry of another term is another entry");
    }

    #[test]
    fn a_replica_that_contradicts_itself_is_told() {
        let from_ten = log(1, 10, "bb");
        assert!(replica(&from_ten, applied(9, 1)).problem().unwrap().contains("begins after entry 10"));
        assert!(replica(&from_ten, applied(13, 2)).problem().unwrap().contains("ends at entry 12"));
        assert!(replica(&from_ten, applied(11, 1)).problem().unwrap().contains("under term 1"));
        assert_eq!(replica(&from_ten, applied(10, 1)).problem(), None);
        assert_eq!(replica(&from_ten, applied(12, 2)).problem(), None);
        assert_eq!(replica(&from_ten, None).problem(), None);
    }

    #[test]
    fn logs_agree_up_to_where_an_old_leader_went_astray() {
        let (chosen, astray) = (log(1, 0, "aabbb"), log(2, 0, "aaaaaa"));
        let chosen = replica(&chosen, applied(2, 1));
        let agreement = compare(&chosen, &replica(&astray, applied(1, 1)));
        assert_eq!(agreement, Agreement { until: Some(LogIndex(2)), conflict: None });
        let conflict = Some(Conflict::Applied { index: LogIndex(3), terms: (Term(1), Term(2)) });
        assert_eq!(
            compare(&chosen, &replica(&astray, applied(3, 1))).conflict,
            conflict,
            "it applied what was not chosen"
        );
        let further = Replica { state: applied(4, 2), ..chosen };
        assert_eq!(compare(&further, &replica(&astray, applied(1, 1))).until, Some(LogIndex(2)));
        assert_eq!(compare(&further, &replica(&astray, applied(1, 1))).conflict, conflict, "or lacks what was");
    }

    #[test]
    fn one_entry_has_one_content() {
        let (one, mut other) = (log(1, 0, "aab"), log(2, 1, "ab"));
        let agreement = compare(&replica(&one, applied(1, 1)), &replica(&other, applied(1, 1)));
        assert_eq!(agreement, Agreement { until: Some(LogIndex(3)), conflict: None });
        other.entries[1].data = Bytes::from_static(b"\x01x");
        let agreement = compare(&replica(&one, applied(1, 1)), &replica(&other, applied(1, 1)));
        let conflict = Conflict::Contents { index: LogIndex(3), term: Term(2) };
        assert_eq!(agreement, Agreement { until: Some(LogIndex(2)), conflict: Some(conflict) });
        let mut voided = log(1, 0, "aab");
        voided.entries[2].data = Bytes::new();
        other.entries[1].data = Bytes::from_static(&[ENTRY_CONFIGURATION, 9]);
        assert_eq!(compare(&replica(&voided, applied(1, 1)), &replica(&other, applied(1, 1))).conflict, None);
    }

    #[test]
    fn what_was_applied_must_be_in_the_chosen_log() {
        let (short, long) = (log(1, 0, "aab"), log(2, 0, "aabbbb"));
        let agreement = compare(&replica(&short, applied(3, 2)), &replica(&long, applied(5, 2)));
        let conflict = Conflict::Behind { applied: LogIndex(5), chosen_last: LogIndex(3) };
        assert_eq!(agreement, Agreement { until: Some(LogIndex(3)), conflict: Some(conflict) });
        let apart = log(2, 40, "bb");
        let agreement = compare(&replica(&apart, applied(40, 1)), &replica(&short, applied(3, 2)));
        assert_eq!(agreement, Agreement { until: None, conflict: None }, "nothing in common: nothing to say");
    }

    #[test]
    fn a_majority_is_one_of_both_halves() {
        let given = |peers: &[u64]| peers.iter().copied().map(PeerId).collect::<BTreeSet<_>>();
        let three = voters(&[1, 2, 3]);
        let two = quorum(&three, &given(&[1, 3, 8]));
        assert_eq!((two.given, two.voters, two.is_majority), (2, 3, true));
        assert_eq!(two.missing, BTreeSet::from([NodeId(2)]));
        assert!(!quorum(&three, &given(&[1])).is_majority);
        let joint = Configuration { voters_outgoing: vec![PeerId(4), PeerId(5), PeerId(6)], ..three };
        assert!(!quorum(&joint, &given(&[1, 2, 3])).is_majority);
        assert!(quorum(&joint, &given(&[1, 2, 4, 5])).is_majority);
    }
}
