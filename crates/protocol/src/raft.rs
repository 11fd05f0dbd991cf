//! One member of one Raft group as a state machine without I/O (Ongaro 2014), on top of `raft-rs`.
//!
//! The driver feeds [`RaftPeer`] with ticks, messages and proposals, and carries out what [`RaftPeer::take_ready`]
//! hands out: make `append` and `hard_state` durable, then call [`RaftPeer::persisted`]; send `messages` at once and
//! `messages_after_flush` only afterwards; apply `committed`, then call [`RaftPeer::applied`].
//!
//! The log since the last trim is kept in memory (bounded by the driver, which trims); the durable copy is the
//! driver's business. Only what is durable is ever counted or handed out as committed.

use base::env::{Random, RandomExt};
use base::ids::{LogIndex, PeerId, Term};
use bytes::Bytes;
use raft::eraftpb;
use raft::{Config, GetEntriesContext, RaftState, RawNode, ReadOnlyOption, StateRole, Storage, StorageError};
use std::collections::VecDeque;
use std::sync::Arc;

/// Ticks without a leader before an election, at least; drawn up to twice this.
pub const ELECTION_TICKS: usize = 10;
/// Ticks between heartbeats of a leader.
pub const HEARTBEAT_TICKS: usize = 2;
/// Bytes of proposals that may be waiting for commitment before new ones are refused.
/// All of them may end up in one write to the log.
pub const UNCOMMITTED_BYTES_MAX: u64 = 8 << 20;
/// Bytes of entries handed out for apply at once.
const COMMITTED_BYTES_PER_READY_MAX: u64 = 4 << 20;
/// Bytes of entries in one append message.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Append messages in flight to one follower.
const INFLIGHT_MESSAGES_MAX: usize = 256;

const _: () = assert!(HEARTBEAT_TICKS * 3 < ELECTION_TICKS, "a follower forgives at least three lost heartbeats");
const _: () = assert!(COMMITTED_BYTES_PER_READY_MAX < UNCOMMITTED_BYTES_MAX);

/// One entry of the log. An empty `data` is the entry with which a new leader commits its term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: LogIndex,
    pub term: Term,
    pub data: Bytes,
}

/// What must never be forgotten: the current term and whom it was given to. The commit index is not part of it: it
/// is found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HardState {
    pub term: Term,
    /// Peer 0: nobody.
    pub vote: PeerId,
}

/// Members of a group. Joint configurations come with several nodes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Configuration {
    pub voters: Vec<PeerId>,
    pub learners: Vec<PeerId>,
}

/// Everything a peer is started from; all of it was read back from disk.
#[derive(Clone, Debug)]
pub struct Restored {
    pub peer: PeerId,
    pub configuration: Configuration,
    pub hard_state: HardState,
    /// Index and term of the entry before the first of `entries`.
    pub base: (LogIndex, Term),
    pub entries: Vec<Entry>,
    /// The state machine holds the effect of everything up to here.
    pub applied: LogIndex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
}

/// Who leads, as this peer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    pub term: Term,
    pub role: Role,
    pub leader: Option<PeerId>,
}

/// A message between peers of one group. Its encoding for the wire comes with several nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Message(eraftpb::Message);

impl Message {
    pub fn to(&self) -> PeerId {
        PeerId(self.0.to)
    }
}

/// A linearizable read may be served once `index` is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadGrant {
    /// As given to [`RaftPeer::read_index`]; all earlier contexts are granted with it.
    pub context: u64,
    pub index: LogIndex,
}

/// Work for the driver. Readies are handled in the order of their numbers.
#[derive(Debug, Default)]
pub struct Ready {
    pub number: u64,
    /// To be made durable; replaces what the log held from the first index on.
    pub append: Vec<Entry>,
    /// To be made durable with (not after) `append`.
    pub hard_state: Option<HardState>,
    pub messages: Vec<Message>,
    pub messages_after_flush: Vec<Message>,
    pub committed: Vec<Entry>,
    pub reads: Vec<ReadGrant>,
}

/// Why a proposal or read was not taken. Nothing was done; ask the leader, or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    NotLeader,
    /// Too many bytes are waiting for commitment.
    Busy,
}

/// See the module's head.
pub struct RaftPeer {
    node: RawNode<LogCache>,
    random: Arc<dyn Random>,
    election_timeout_ticks: usize,
    drawn_for: (u64, StateRole),
    hard_state_taken: HardState,
}

impl RaftPeer {
    /// Refuses (with a sentence) what cannot have been written by a correct peer.
    pub fn new(restored: Restored, random: Arc<dyn Random>) -> Result<RaftPeer, String> {
        let cache = LogCache::new(&restored)?;
        if restored.applied < restored.base.0 || restored.applied.0 > cache.last() {
            return Err(format!(
                "the state machine is at entry {}, but the log holds {} to {}",
                restored.applied,
                restored.base.0.0 + 1,
                cache.last()
            ));
        }
        let config = Config {
            id: restored.peer.0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: restored.applied.0,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_PER_READY_MAX,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, cache, &logger).map_err(|error| format!("raft refuses to start: {error}"))?;
        let mut peer = RaftPeer {
            node,
            random,
            election_timeout_ticks: ELECTION_TICKS,
            drawn_for: (u64::MAX, StateRole::Follower),
            hard_state_taken: restored.hard_state,
        };
        peer.redraw_election_timeout();
        Ok(peer)
    }

    pub fn tick(&mut self) {
        self.node.tick();
        self.redraw_election_timeout();
    }

    /// Starts an election now: for the only voter of a group, which need not wait for anybody.
    pub fn campaign(&mut self) {
        // Refused only while a snapshot or a configuration change is pending; then the election timer decides.
        let _ = self.node.campaign();
        self.redraw_election_timeout();
    }

    pub fn step(&mut self, message: Message) {
        // An error means that the message is out of date or of no concern: dropping it is what Raft expects.
        let _ = self.node.step(message.0);
        self.redraw_election_timeout();
    }

    /// Appends a command to the leader's log. It is executed if and only if the entry committed at the answered
    /// index has the answered term.
    pub fn propose(&mut self, data: Bytes) -> Result<(LogIndex, Term), NotTaken> {
        assert!(!data.is_empty(), "an empty entry is the mark of a new term");
        if self.node.raft.state != StateRole::Leader {
            return Err(NotTaken::NotLeader);
        }
        let before = self.node.raft.raft_log.last_index();
        match self.node.propose(Vec::new(), data.to_vec()) {
            Ok(()) => {}
            Err(raft::Error::ProposalDropped) => return Err(NotTaken::Busy),
            Err(_) => return Err(NotTaken::NotLeader),
        }
        let index = self.node.raft.raft_log.last_index();
        assert_eq!(index, before + 1, "a leader appends each proposal as one entry");
        Ok((LogIndex(index), Term(self.node.raft.term)))
    }

    /// Asks for a linearizable read (ReadIndex, Ongaro 2014 section 6.4). The grant comes in a later [`Ready`]; none
    /// comes when leadership is lost first. Refused until the leader has committed an entry of its own term.
    pub fn read_index(&mut self, context: u64) -> Result<(), NotTaken> {
        if self.node.raft.state != StateRole::Leader {
            return Err(NotTaken::NotLeader);
        }
        if !self.node.raft.commit_to_current_term() {
            return Err(NotTaken::Busy);
        }
        self.node.read_index(context.to_be_bytes().to_vec());
        Ok(())
    }

    /// The next piece of work, if any.
    pub fn take_ready(&mut self) -> Option<Ready> {
        if !self.node.has_ready() {
            return None;
        }
        let mut taken = self.node.ready();
        assert!(taken.snapshot().get_metadata().index == 0, "no peer sends snapshots yet");
        let entries = taken.take_entries();
        let hard_state = taken.hs().map(|hs| HardState { term: Term(hs.term), vote: PeerId(hs.vote) });
        let ready = Ready {
            number: taken.number(),
            append: entries.iter().map(entry_out).collect(),
            hard_state: hard_state.filter(|hs| *hs != self.hard_state_taken),
            messages: taken.take_messages().into_iter().map(Message).collect(),
            messages_after_flush: taken.take_persisted_messages().into_iter().map(Message).collect(),
            committed: taken.take_committed_entries().iter().map(entry_out).collect(),
            reads: taken.take_read_states().into_iter().filter_map(grant_out).collect(),
        };
        if let Some(hard_state) = ready.hard_state {
            self.hard_state_taken = hard_state;
        }
        self.node.mut_store().append(entries);
        self.node.advance_append_async(taken);
        self.redraw_election_timeout();
        Some(ready)
    }

    /// Everything in readies up to `number` is durable.
    pub fn persisted(&mut self, number: u64) {
        self.node.on_persist_ready(number);
    }

    /// The state machine has applied everything up to `index`.
    pub fn applied(&mut self, index: LogIndex) {
        self.node.advance_apply_to(index.0);
    }

    /// Forgets entries up to `index`, which must be applied and durably so.
    pub fn trim(&mut self, index: LogIndex) {
        assert!(index.0 <= self.node.raft.raft_log.applied, "only what is applied may leave the log");
        self.node.mut_store().trim(index.0);
    }

    pub fn leadership(&self) -> Leadership {
        let raft = &self.node.raft;
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        };
        let leader = (raft.leader_id != 0).then_some(PeerId(raft.leader_id));
        Leadership { term: Term(raft.term), role, leader }
    }

    /// Bytes and number of the entries in memory.
    pub fn log_size(&self) -> (u64, usize) {
        let cache = self.node.store();
        (cache.bytes, cache.entries.len())
    }

    /// `raft-rs` draws election timeouts from a generator of its own; here every draw comes from `Env`.
    fn redraw_election_timeout(&mut self) {
        let now = (self.node.raft.term, self.node.raft.state);
        if now != self.drawn_for {
            self.drawn_for = now;
            let spread = self.random.below(ELECTION_TICKS as u64) as usize;
            self.election_timeout_ticks = ELECTION_TICKS + spread;
        }
        self.node.raft.set_randomized_election_timeout(self.election_timeout_ticks);
    }
}

fn entry_out(entry: &eraftpb::Entry) -> Entry {
    assert!(
        entry.get_entry_type() == eraftpb::EntryType::EntryNormal,
        "configuration changes come with several nodes: none was ever proposed"
    );
    Entry { index: LogIndex(entry.index), term: Term(entry.term), data: Bytes::copy_from_slice(&entry.data) }
}

fn entry_in(entry: &Entry) -> eraftpb::Entry {
    eraftpb::Entry {
        index: entry.index.0,
        term: entry.term.0,
        data: entry.data.to_vec().into(),
        ..eraftpb::Entry::default()
    }
}

fn grant_out(state: raft::ReadState) -> Option<ReadGrant> {
    let context = u64::from_be_bytes(state.request_ctx.as_slice().try_into().ok()?);
    Some(ReadGrant { context, index: LogIndex(state.index) })
}

/// The log since the last trim, in memory, as `raft-rs` reads it.
struct LogCache {
    initial: RaftState,
    base: (u64, u64),
    entries: VecDeque<eraftpb::Entry>,
    bytes: u64,
}

impl LogCache {
    fn new(restored: &Restored) -> Result<LogCache, String> {
        let base = (restored.base.0.0, restored.base.1.0);
        let mut last = base;
        for entry in &restored.entries {
            if entry.index.0 != last.0 + 1 || entry.term.0 < last.1 {
                return Err(format!(
                    "the log has entry {} of term {} after entry {} of term {}",
                    entry.index, entry.term, last.0, last.1
                ));
            }
            last = (entry.index.0, entry.term.0);
        }
        if restored.hard_state.term.0 < last.1 {
            return Err(format!(
                "the log reaches term {}, but the hard state is at {}",
                last.1, restored.hard_state.term
            ));
        }
        let hard_state = eraftpb::HardState {
            term: restored.hard_state.term.0,
            vote: restored.hard_state.vote.0,
            // What was applied was committed.
            commit: restored.applied.0,
            ..eraftpb::HardState::default()
        };
        let mut conf_state = eraftpb::ConfState::default();
        conf_state.set_voters(restored.configuration.voters.iter().map(|peer| peer.0).collect());
        conf_state.set_learners(restored.configuration.learners.iter().map(|peer| peer.0).collect());
        let entries: VecDeque<eraftpb::Entry> = restored.entries.iter().map(entry_in).collect();
        let bytes = entries.iter().map(entry_bytes).sum();
        Ok(LogCache { initial: RaftState::new(hard_state, conf_state), base, entries, bytes })
    }

    fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    fn append(&mut self, entries: Vec<eraftpb::Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.base.0 && first.index <= self.last() + 1, "a log has no gaps");
        while self.last() >= first.index {
            let dropped = self.entries.pop_back().expect("last() is above the base, so there is an entry");
            self.bytes -= entry_bytes(&dropped);
        }
        self.bytes += entries.iter().map(entry_bytes).sum::<u64>();
        self.entries.extend(entries);
    }

    fn trim(&mut self, index: u64) {
        while self.base.0 < index {
            let Some(dropped) = self.entries.pop_front() else { return };
            self.bytes -= entry_bytes(&dropped);
            self.base = (dropped.index, dropped.term);
        }
    }
}

fn entry_bytes(entry: &eraftpb::Entry) -> u64 {
    entry.data.len() as u64 + 64
}

impl Storage for LogCache {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.base.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "raft asks only for entries that it appended");
        let size_max = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let mut out = Vec::new();
        for entry in self.entries.range((low - self.base.0 - 1) as usize..(high - self.base.0 - 1) as usize) {
            size += entry_bytes(entry);
            if size > size_max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index < self.base.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let position = (index - self.base.0 - 1) as usize;
        self.entries.get(position).map(|entry| entry.term).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Counter(AtomicU64);

    impl Random for Counter {
        fn next_u64(&self) -> u64 {
            let z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
        }
    }

    fn random(seed: u64) -> Arc<dyn Random> {
        Arc::new(Counter(AtomicU64::new(seed)))
    }

    fn fresh(peer: u64, voters: &[u64]) -> Restored {
        Restored {
            peer: PeerId(peer),
            configuration: Configuration { voters: voters.iter().copied().map(PeerId).collect(), learners: vec![] },
            hard_state: HardState::default(),
            base: (LogIndex(0), Term(0)),
            entries: vec![],
            applied: LogIndex(0),
        }
    }

    /// Handles all readies of one peer as a driver would, without losing anything.
    fn settle(peer: &mut RaftPeer) -> (Vec<Entry>, Vec<Message>, Vec<ReadGrant>) {
        let (mut committed, mut messages, mut reads) = (vec![], vec![], vec![]);
        while let Some(ready) = peer.take_ready() {
            messages.extend(ready.messages);
            peer.persisted(ready.number);
            messages.extend(ready.messages_after_flush);
            if let Some(last) = ready.committed.last() {
                peer.applied(last.index);
            }
            committed.extend(ready.committed);
            reads.extend(ready.reads);
        }
        (committed, messages, reads)
    }

    #[test]
    fn the_only_voter_leads_at_once_and_commits_only_what_is_durable() {
        let mut peer = RaftPeer::new(fresh(1, &[1]), random(1)).unwrap();
        assert_eq!(peer.propose(Bytes::from_static(b"x")), Err(NotTaken::NotLeader));
        peer.campaign();
        assert_eq!(peer.leadership().role, Role::Leader);
        settle(&mut peer);
        let (index, term) = peer.propose(Bytes::from_static(b"a")).unwrap();
        let ready = peer.take_ready().unwrap();
        assert_eq!(ready.append, vec![Entry { index, term, data: Bytes::from_static(b"a") }]);
        assert!(ready.committed.is_empty(), "not durable yet, so not committed");
        assert!(peer.take_ready().is_none());
        peer.persisted(ready.number);
        let (committed, _, _) = settle(&mut peer);
        assert_eq!(committed.len(), 1);
        peer.read_index(7).unwrap();
        let (_, _, reads) = settle(&mut peer);
        assert_eq!(reads, vec![ReadGrant { context: 7, index }]);
    }

    #[test]
    fn a_restarted_peer_continues_after_what_was_applied() {
        let mut restored = fresh(1, &[1]);
        restored.hard_state = HardState { term: Term(3), vote: PeerId(1) };
        restored.base = (LogIndex(10), Term(2));
        restored.entries =
            (11..=14).map(|i| Entry { index: LogIndex(i), term: Term(3), data: Bytes::from_static(b"c") }).collect();
        restored.applied = LogIndex(12);
        let mut peer = RaftPeer::new(restored.clone(), random(2)).unwrap();
        peer.campaign();
        let (committed, _, _) = settle(&mut peer);
        let indices: Vec<u64> = committed.iter().map(|entry| entry.index.0).collect();
        assert_eq!(indices, vec![13, 14, 15], "the rest of the log and the new term's own entry");
        peer.trim(LogIndex(14));
        assert_eq!(peer.log_size().1, 1);

        restored.applied = LogIndex(15);
        assert!(RaftPeer::new(restored, random(2)).is_err(), "a state machine ahead of its log lost entries");
    }

    #[test]
    fn three_peers_elect_one_leader_and_agree() {
        let mut peers: Vec<RaftPeer> =
            (1..=3).map(|i| RaftPeer::new(fresh(i, &[1, 2, 3]), random(i * 77)).unwrap()).collect();
        let mut logs: Vec<Vec<Entry>> = vec![vec![]; 3];
        let mut proposed = 0;
        for round in 0..200 {
            for peer in &mut peers {
                peer.tick();
            }
            for peer in &mut peers {
                if round > 60 && proposed < 20 && peer.propose(Bytes::from(vec![proposed])).is_ok() {
                    proposed += 1;
                }
            }
            for _ in 0..6 {
                let mut all = vec![];
                for (peer, log) in peers.iter_mut().zip(&mut logs) {
                    let (committed, messages, _) = settle(peer);
                    log.extend(committed);
                    all.extend(messages);
                }
                for message in all {
                    let to = message.to().0 as usize - 1;
                    peers[to].step(message);
                }
            }
        }
        let leaders = peers.iter().filter(|peer| peer.leadership().role == Role::Leader).count();
        assert_eq!(leaders, 1);
        assert_eq!(proposed, 20);
        assert_eq!(logs[0].iter().filter(|entry| !entry.data.is_empty()).count(), 20);
        assert_eq!(logs[0], logs[1]);
        assert_eq!(logs[1], logs[2]);
    }
}
