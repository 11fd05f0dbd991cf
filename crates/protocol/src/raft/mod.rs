//! One member of one Raft group as a state machine without I/O (Ongaro 2014), on top of `raft-rs`.
//!
//! The driver feeds [`RaftPeer`] with ticks, messages and proposals, and carries out what [`RaftPeer::take_ready`]
//! hands out: make `restored`, `append` and `hard_state` durable, then call [`RaftPeer::persisted`]; send `messages`
//! at once and `messages_after_flush` only afterwards; apply `committed` (configurations through
//! [`RaftPeer::apply_configuration`]), then call [`RaftPeer::applied`].
//!
//! The log since the last trim is kept in memory (bounded by the driver, which trims); the durable copy is the
//! driver's business. Only what is durable is ever counted or handed out as committed.

mod cache;
mod configuration;
mod message;

use base::env::{Random, RandomExt};
use base::ids::{LogIndex, PeerId, Term};
use base::plant::{self, Plant};
use bytes::Bytes;
use raft::eraftpb::{self, MessageType};
use raft::{Config, GetEntriesContext, ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole, Storage};
use std::collections::BTreeMap;
use std::sync::Arc;

use cache::{LogCache, known_commit};
use configuration::Change;
pub use configuration::{Configuration, ConfigurationChange, MEMBERS_MAX};
pub use message::{MESSAGE_LEN_MAX, Message, MessageKind};
use message::{data_out, raft_entry};

/// Ticks between the candidacies of peers who know that the leader's process has ended.
const ENDED_TICKS_APART: usize = 2;
/// Ticks without a leader before an election, at least; drawn up to twice this.
pub const ELECTION_TICKS: usize = 10;
/// Ticks between heartbeats of a leader.
pub const HEARTBEAT_TICKS: usize = 2;
/// Bytes of proposals that may be waiting for commitment before new ones are refused.
/// All of them may end up in one write to the log.
pub const UNCOMMITTED_BYTES_MAX: u64 = 8 << 20;
/// First byte of the entry of a command.
pub const ENTRY_COMMAND: u8 = 1;
/// First byte of the entry of a configuration change. Alone, it ends a joint configuration.
pub const ENTRY_CONFIGURATION: u8 = 2;
/// Bytes of entries handed out for apply at once.
const COMMITTED_BYTES_PER_READY_MAX: u64 = 4 << 20;
/// Bytes of entries in one append message.
pub(super) const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Append messages in flight to one follower.
const INFLIGHT_MESSAGES_MAX: usize = 64;
/// Ticks after which a leader offers a snapshot again to a follower that has said nothing since.
const SNAPSHOT_RETRY_TICKS: u32 = 2 * ELECTION_TICKS as u32;
/// Entries that the next leader may lack when leadership is handed over: no proposal is taken until it has them.
const TRANSFER_LAG_MAX: u64 = 1000;

const _: () = assert!(HEARTBEAT_TICKS * 3 < ELECTION_TICKS, "a follower forgives at least three lost heartbeats");
const _: () = assert!(COMMITTED_BYTES_PER_READY_MAX < UNCOMMITTED_BYTES_MAX);
const _: () = assert!((MESSAGE_BYTES_MAX as usize) < MESSAGE_LEN_MAX);

/// One entry of the log. An empty `data` is the entry with which a new leader commits its term; otherwise the first
/// byte is its kind.
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

/// Whether a peer has a state to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Waiting {
    #[default]
    No,
    /// The replica is new, or its state is lost and only its log is left. It votes and acknowledges entries, which
    /// its log can vouch for, but applies nothing and never campaigns, until a snapshot has come.
    ForState,
}

/// Everything a peer is started from; all of it was read back from disk.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    pub peer: PeerId,
    /// As of `applied`. Empty only with [`Waiting::ForState`].
    pub configuration: Configuration,
    pub hard_state: HardState,
    /// Index and term of the entry before the first of `entries`.
    pub base: (LogIndex, Term),
    pub entries: Vec<Entry>,
    /// The state machine holds the effect of everything up to here. Ignored with [`Waiting::ForState`].
    pub applied: LogIndex,
    pub waiting: Waiting,
    /// Followers hear what is committed with the next entries or the next heartbeat, not in a message of its own: half
    /// of the messages of a lone command. For groups whose followers' state nobody waits for.
    pub commits_lazily: bool,
}

impl Restored {
    fn applied_index(&self) -> LogIndex {
        match self.waiting {
            Waiting::No => self.applied,
            Waiting::ForState => self.base.0,
        }
    }
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

/// How far a member is, as the leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    pub peer: PeerId,
    /// It has everything up to here, durably.
    pub matched: LogIndex,
    /// It answered within the last election timeout.
    pub active: bool,
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
    /// A snapshot was stepped: the state is that of this index and term. The log begins anew there, or `keeps_log`.
    pub restored: Option<(LogIndex, Term, Configuration)>,
    /// With `restored`: the log that was handed out already holds that entry and what follows it, all of which may have been
    /// acknowledged. It is trimmed up to there, and never emptied: not even for a moment.
    pub keeps_log: bool,
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
    /// Too many bytes are waiting for commitment, leadership is being handed over, or (for a configuration) another
    /// change is under way or this one does not fit what the configuration is now.
    Busy,
}

/// A stepped snapshot that is not durable yet.
struct Installing {
    index: u64,
    /// The last entry of the log that stays, of which everything was handed out before.
    kept_to: Option<u64>,
    /// Of the ready that hands it out, once it did.
    number: Option<u64>,
}

/// See the module's head.
pub struct RaftPeer {
    node: RawNode<LogCache>,
    random: Arc<dyn Random>,
    election_timeout_ticks: usize,
    drawn_for: (u64, StateRole),
    hard_state_taken: HardState,
    /// The ready that it was in, until that is durable.
    hard_state_due: Option<u64>,
    /// As of the last applied change or restored snapshot, which is that of `configuration_index`.
    configuration: Configuration,
    configuration_index: LogIndex,
    waiting: Waiting,
    installing: Option<Installing>,
    /// Leader only: for how many ticks a follower has been offered a snapshot.
    offered_ticks: BTreeMap<u64, u32>,
}

impl RaftPeer {
    /// Refuses (with a sentence) what cannot have been written by a correct peer.
    pub fn new(restored: Restored, random: Arc<dyn Random>) -> Result<RaftPeer, String> {
        restored.configuration.validate()?;
        if restored.configuration.is_empty() && restored.waiting == Waiting::No {
            return Err("a replica without a configuration can only wait for a snapshot".into());
        }
        let cache = LogCache::new(&restored)?;
        let config = Config {
            id: restored.peer.0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: restored.applied_index().0,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            // Entries that gather between two readies travel in one message, and are acknowledged by one. `take_ready` parts
            // those that grow too long so: raft-rs has no bound for them.
            batch_append: true,
            skip_bcast_commit: restored.commits_lazily,
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
            hard_state_due: None,
            configuration_index: restored.applied_index(),
            configuration: restored.configuration,
            waiting: restored.waiting,
            installing: None,
            offered_ticks: BTreeMap::new(),
        };
        peer.redraw_election_timeout();
        Ok(peer)
    }

    pub fn tick(&mut self) {
        if self.node.raft.state == StateRole::Leader {
            self.node.tick();
            self.leave_joint();
            self.offer_snapshots_again();
        } else if self.may_campaign() {
            self.node.tick();
        } else {
            // Time passes all the same: a leader that was not heard of for long no longer keeps it from voting.
            self.node.raft.election_elapsed += 1;
        }
        self.redraw_election_timeout();
    }

    /// Starts an election now: for the only voter of a group, which need not wait for anybody, and where the leader is
    /// known to be of no use.
    pub fn campaign(&mut self) {
        if self.may_campaign() && self.node.raft.promotable() {
            // Refused only while a configuration change is to be applied; then the election timer decides.
            let _ = self.node.campaign();
        }
        self.redraw_election_timeout();
    }

    /// The process that leads has ended. Nobody waits for its silence: this peer votes for others at once, and is a
    /// candidate itself when the others know it too, one peer after the other.
    pub fn leader_ended(&mut self) {
        let leader = PeerId(self.node.raft.leader_id);
        if self.node.raft.state != StateRole::Follower || leader == PeerId(0) {
            return;
        }
        self.node.raft.leader_id = 0;
        let own = PeerId(self.node.raft.id);
        let before = self.configuration.voters.iter().filter(|peer| **peer != leader && **peer < own).count();
        let pause = 1 + before * ENDED_TICKS_APART;
        let due = self.election_timeout_ticks.saturating_sub(pause);
        self.node.raft.election_elapsed = self.node.raft.election_elapsed.max(due);
    }

    /// The leader is known to be of no use: hearing it no longer keeps this peer from voting for others.
    pub fn forget_leader(&mut self) {
        if self.node.raft.state == StateRole::Follower {
            self.node.raft.leader_id = 0;
        }
    }

    /// Whether an election would be sound now: with a state, whose log is durable. (`raft-rs` stops the process when
    /// a group's only voter elects itself before its last entries are flushed, or before a snapshot is applied.)
    fn may_campaign(&self) -> bool {
        let log = &self.node.raft.raft_log;
        self.waiting == Waiting::No && self.installing.is_none() && log.persisted == log.last_index()
    }

    /// Takes a message from another peer. An error means that no correct peer sends it to this one: it was dropped.
    /// Messages that are merely late or of no concern are dropped in silence, as Raft expects.
    pub fn step(&mut self, message: Message) -> Result<(), String> {
        let mut message = message.0;
        if message.to != self.node.raft.id {
            return Err(format!("a Raft message for peer {} came to peer {}", message.to, self.node.raft.id));
        }
        let kind = message.get_msg_type();
        if self.waiting == Waiting::ForState {
            // The commit index stays where the lost state may have been: a snapshot is taken only from there on.
            (message.commit, message.commit_term) = (0, 0);
            // A genuine new replica has no vote; one that lost its log must not give it again.
            let asks_for_vote = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
            if self.is_blank() && (asks_for_vote || kind == MessageType::MsgAppend) && !plant::is(Plant::VoteAfterLoss)
            {
                return Ok(());
            }
        }
        self.check(&message)?;
        match kind {
            MessageType::MsgTimeoutNow if !self.may_campaign() => {}
            MessageType::MsgSnapshot => self.step_snapshot(message),
            MessageType::MsgAppendResponse => self.step_append_reply(message),
            _ => self.step_in(message),
        }
        if self.waiting == Waiting::ForState && kind == MessageType::MsgHeartbeat {
            self.request_snapshot();
        }
        self.redraw_election_timeout();
        Ok(())
    }

    fn step_in(&mut self, message: eraftpb::Message) {
        // An error means that the message is out of date or of no concern: dropping it is what Raft expects.
        let _ = self.node.step(message);
    }

    /// What `raft-rs` would stop the process for.
    fn check(&self, message: &eraftpb::Message) -> Result<(), String> {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if message.term >= raft.term && message.commit > last => Err(format!(
                "peer {} counts on entry {}, but the log of peer {} ends at {last}",
                message.from, message.commit, raft.id
            )),
            MessageType::MsgAppendResponse
                if message.term == raft.term
                    && raft.state == StateRole::Leader
                    && !message.reject
                    && message.index > last =>
            {
                Err(format!("peer {} has entry {}, but its leader's log ends at {last}", message.from, message.index))
            }
            _ => Ok(()),
        }
    }

    fn step_append_reply(&mut self, message: eraftpb::Message) {
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Leader || message.term != raft.term {
            return self.step_in(message);
        }
        if let Some(progress) = raft.mut_prs().get_mut(message.from) {
            if message.request_snapshot > 0 {
                progress.recent_active = true;
                return self.offer_snapshot(message.from, message.request_snapshot);
            }
            if progress.state == ProgressState::Snapshot && !message.reject && message.index > progress.matched {
                // It may have installed an earlier offer than the last one: go on from what it has.
                progress.pending_snapshot = progress.pending_snapshot.min(message.index);
            }
        }
        self.step_in(message);
    }

    /// Answers a request. Entries go on being sent meanwhile: a replica without state can still acknowledge them.
    fn offer_snapshot(&mut self, to: u64, reach: u64) {
        // Absent for the moment: it is asked for again with the next heartbeat.
        let Ok(snapshot) = self.node.store().snapshot(reach, to) else { return };
        let mut message = eraftpb::Message { to, ..eraftpb::Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(snapshot);
        self.send(message);
    }

    /// Asks the leader for a snapshot. (`raft-rs` has a request of its own, which a peer without any entry of the
    /// current term cannot make, and which keeps it from acknowledging entries until the snapshot is there.)
    fn request_snapshot(&mut self) {
        let log = &self.node.raft.raft_log;
        let mut message = eraftpb::Message { to: self.node.raft.leader_id, ..eraftpb::Message::default() };
        if message.to == 0 {
            return;
        }
        message.set_msg_type(MessageType::MsgAppendResponse);
        message.reject = true;
        message.index = log.last_index();
        message.reject_hint = log.last_index();
        message.log_term = log.last_term();
        message.request_snapshot = log.committed.max(1);
        self.send(message);
    }

    fn send(&mut self, mut message: eraftpb::Message) {
        message.from = self.node.raft.id;
        message.term = self.node.raft.term;
        self.node.raft.msgs.push(message);
    }

    fn step_snapshot(&mut self, message: eraftpb::Message) {
        let metadata = message.get_snapshot().get_metadata();
        let (index, term) = (metadata.index, metadata.term);
        let Ok(configuration) = Configuration::decode(&message.get_snapshot().data) else { return };
        let raft = &mut self.node.raft;
        let (mut tail, mut kept_to) = (Vec::new(), None);
        if self.waiting == Waiting::ForState {
            // Makes `raft-rs` restore even if its log reaches that far.
            raft.pending_request_snapshot = 1;
            if raft.raft_log.match_term(index, term) {
                // What follows was acknowledged and may be committed because of that: it stays.
                let all = raft.raft_log.entries(index + 1, None, GetEntriesContext::empty(false));
                tail = all.expect("entries after one that is in the log are in the log");
                let handed_out = raft.raft_log.unstable.offset - 1;
                kept_to = Some(handed_out).filter(|handed_out| *handed_out >= index);
            }
        }
        let before = raft.snap().map(|snapshot| snapshot.get_metadata().index);
        self.step_in(message);
        let raft = &mut self.node.raft;
        raft.pending_request_snapshot = 0;
        let after = raft.snap().map(|snapshot| snapshot.get_metadata().index);
        if after != Some(index) || after == before {
            return;
        }
        raft.raft_log.append(&tail);
        raft.raft_log.commit_to(known_commit(index, tail.iter()));
        self.configuration = configuration;
        self.configuration_index = LogIndex(index);
        self.waiting = Waiting::No;
        self.installing = Some(Installing { index, kept_to, number: None });
    }

    /// Whether stepping this snapshot message now leads to a [`Ready::restored`]. Others need not be pulled.
    pub fn would_restore(&self, message: &Message) -> bool {
        let raft = &self.node.raft;
        let Some((index, term, configuration)) = message.snapshot() else { return false };
        message.0.to == raft.id
            && message.0.term >= raft.term
            && (raft.state != StateRole::Leader || message.0.term > raft.term)
            && configuration.is_member(PeerId(raft.id))
            && index.0 >= raft.raft_log.committed
            && (self.waiting == Waiting::ForState || !raft.raft_log.match_term(index.0, term.0))
    }

    /// Whether this replica waits for its state. It asks the leader for a snapshot by itself, with every heartbeat.
    pub fn needs_snapshot(&self) -> bool {
        self.waiting == Waiting::ForState
    }

    /// Nothing was ever written to this replica's log: without the state before them, first entries are of no use.
    fn is_blank(&self) -> bool {
        self.configuration.is_empty() && self.node.raft.raft_log.last_index() == 0
    }

    /// Appends a command to the leader's log. It is executed if and only if the entry committed at the answered
    /// index has the answered term.
    pub fn propose(&mut self, data: Bytes) -> Result<(LogIndex, Term), NotTaken> {
        assert_eq!(data.first(), Some(&ENTRY_COMMAND), "the first byte of an entry is its kind");
        self.append(data)
    }

    fn append(&mut self, data: Bytes) -> Result<(LogIndex, Term), NotTaken> {
        if self.node.raft.state != StateRole::Leader {
            return Err(NotTaken::NotLeader);
        }
        if data.len() as u64 > UNCOMMITTED_BYTES_MAX {
            return Err(NotTaken::Busy);
        }
        let before = self.node.raft.raft_log.last_index();
        let mut message = eraftpb::Message { from: self.node.raft.id, ..eraftpb::Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![raft_entry(0, 0, data)].into());
        match self.node.step(message) {
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

    /// Appends a change of the members to the leader's log: one at a time. A leader that would remove itself hands
    /// leadership over instead, and answers `Busy`.
    pub fn propose_configuration(&mut self, change: &ConfigurationChange) -> Result<(LogIndex, Term), NotTaken> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return Err(NotTaken::NotLeader);
        }
        // (`raft-rs` would take it, and append an empty entry in its place.)
        if self.pending_configuration() || !raft.commit_to_current_term() {
            return Err(NotTaken::Busy);
        }
        let plan = self.configuration.plan(change).ok_or(NotTaken::Busy)?;
        let own = PeerId(raft.id);
        if plan.leaving().any(|peer| peer == own) {
            let stays = |other: &PeerProgress| other.peer != own && plan.leaving().all(|peer| peer != other.peer);
            let heirs = self.progress().into_iter().filter(|other| self.configuration.is_voter(other.peer));
            let heir = heirs.filter(|other| other.active && stays(other)).max_by_key(|other| other.matched);
            if let Some(heir) = heir {
                self.transfer_leadership(heir.peer);
            }
            return Err(NotTaken::Busy);
        }
        let data = [&[ENTRY_CONFIGURATION], &plan.encode()[..]].concat();
        let (index, term) = self.append(data.into())?;
        assert_eq!(self.node.raft.pending_conf_index, index.0, "the change was appended as what it is");
        Ok((index, term))
    }

    /// Whether a change is under way, so that the next one has to wait. Leader only.
    pub fn pending_configuration(&self) -> bool {
        self.node.raft.has_pending_conf() || self.configuration.is_joint()
    }

    /// Brings a committed configuration entry into effect and answers the configuration from then on. The driver
    /// calls this when it applies the entry, in its order among the others.
    pub fn apply_configuration(&mut self, entry: &Entry) -> Configuration {
        assert!(entry.is_configuration(), "other entries are the state machine's");
        if entry.index <= self.configuration_index {
            return self.configuration.clone();
        }
        self.configuration_index = entry.index;
        let change = Change::decode(&entry.data[1..]).expect("entries are checked before they enter the log");
        // What does not fit is skipped, by every replica alike: it depends on the configuration before alone. (Two
        // leaders in turn may both have ended the same joint configuration.)
        if let Ok(state) = self.node.apply_conf_change(&change.conf_change()) {
            self.configuration = self.configuration.after(&change, &state);
        }
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && !raft.promotable() {
            // It is no member any more; `raft-rs` counts on a leader being one.
            let term = raft.term;
            raft.become_follower(term, 0);
            self.redraw_election_timeout();
        }
        self.configuration.clone()
    }

    /// As of the last entry given to [`RaftPeer::apply_configuration`], or of the restored snapshot.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Ends a joint configuration that was entered under another leader.
    fn leave_joint(&mut self) {
        let stays = self.configuration.is_joint() && self.configuration.auto_leave;
        if stays && !self.node.raft.has_pending_conf() && self.node.raft.commit_to_current_term() {
            // Refused while leadership is handed over; then the next tick or the next leader does it.
            let _ = self.append(Bytes::from_static(&[ENTRY_CONFIGURATION]));
        }
    }

    /// The next piece of work, if any.
    pub fn take_ready(&mut self) -> Option<Ready> {
        if !self.node.has_ready() {
            return None;
        }
        let mut taken = self.node.ready();
        let restored = restored_out(taken.snapshot());
        let entries = taken.take_entries();
        let installing = self.installing.as_ref().filter(|_| restored.is_some());
        let kept_to = installing.and_then(|installing| installing.kept_to);
        let is_new = |entry: &&eraftpb::Entry| kept_to.is_none_or(|kept_to| entry.index > kept_to);
        let hard_state = taken.hs().map(|hs| HardState { term: Term(hs.term), vote: PeerId(hs.vote) });
        let mut ready = Ready {
            number: taken.number(),
            restored,
            keeps_log: kept_to.is_some(),
            append: entries.iter().filter(is_new).map(entry_out).collect(),
            hard_state: hard_state.filter(|hs| *hs != self.hard_state_taken),
            messages: taken.take_messages().into_iter().flat_map(message::in_parts).collect(),
            messages_after_flush: taken.take_persisted_messages().into_iter().flat_map(message::in_parts).collect(),
            committed: taken.take_committed_entries().iter().map(entry_out).collect(),
            reads: taken.take_read_states().into_iter().filter_map(grant_out).collect(),
        };
        if let Some(hard_state) = ready.hard_state {
            self.hard_state_taken = hard_state;
            self.hard_state_due = Some(ready.number);
        }
        if self.hard_state_due.is_some() {
            // Who asks others for their votes has a durable term before they answer. A group's only voter asks nobody: learners must not
            // hear of a term that it may have forgotten after a crash, and would lead in again with other entries.
            ready.messages_after_flush.splice(..0, ready.messages.drain(..));
        }
        if let Some((index, term, _)) = &ready.restored {
            self.node.mut_store().reset(index.0, term.0);
            let installing = self.installing.as_mut().expect("a snapshot to install was stepped");
            installing.number = Some(ready.number);
        }
        assert!(self.installing.is_none() || ready.committed.is_empty(), "nothing is applied before the snapshot");
        assert!(self.waiting == Waiting::No || ready.committed.is_empty(), "nothing is applied without a state");
        self.node.mut_store().append(entries);
        self.node.advance_append_async(taken);
        self.redraw_election_timeout();
        Some(ready)
    }

    /// Everything in readies up to `number` is durable; with a restored snapshot, so is the state.
    pub fn persisted(&mut self, number: u64) {
        self.hard_state_due = self.hard_state_due.filter(|due| *due > number);
        match self.installing {
            None => {
                self.node.on_persist_ready(number);
                if plant::is(Plant::AckBeforeQuorum) && self.node.raft.state == StateRole::Leader {
                    let persisted = self.node.raft.raft_log.persisted;
                    self.node.raft.raft_log.commit_to(persisted);
                }
            }
            Some(Installing { index, number: Some(handed_out), .. }) if handed_out <= number => {
                self.installing = None;
                self.node.on_persist_ready(number);
                self.applied(LogIndex(index));
            }
            // Earlier readies count together with the snapshot: what follows it must not be handed out before.
            Some(_) => {}
        }
    }

    /// The state machine has applied everything up to `index`.
    pub fn applied(&mut self, index: LogIndex) {
        if index.0 <= self.node.raft.raft_log.applied || self.installing.is_some() {
            return;
        }
        // The snapshot point first: with this call a leader may already offer it.
        self.node.raft.raft_log.store.set_snapshot_point(index.0, &self.configuration);
        self.node.advance_apply_to(index.0);
    }

    /// What [`RaftPeer::applied`] was last told.
    pub fn applied_index(&self) -> LogIndex {
        LogIndex(self.node.raft.raft_log.applied)
    }

    /// Forgets entries up to `index`, which must be applied and durably so.
    pub fn trim(&mut self, index: LogIndex) {
        if self.installing.is_some() {
            return;
        }
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

    /// All that is committed, when this peer leads and has committed in its term: before, it may lack what an earlier
    /// leader acknowledged.
    pub fn known_committed(&self) -> Option<LogIndex> {
        let raft = &self.node.raft;
        let knows = raft.state == StateRole::Leader && raft.commit_to_current_term();
        knows.then_some(LogIndex(raft.raft_log.committed))
    }

    /// All members with how far they are, itself included. Empty unless this peer leads.
    pub fn progress(&self) -> Vec<PeerProgress> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let mut all: Vec<PeerProgress> = raft
            .prs()
            .iter()
            .map(|(id, progress)| PeerProgress {
                peer: PeerId(*id),
                matched: LogIndex(progress.matched),
                active: progress.recent_active || *id == raft.id,
            })
            .collect();
        all.sort_by_key(|progress| progress.peer);
        all
    }

    /// Hands leadership to another voter that is there and nearly up to date; otherwise does nothing. Proposals are
    /// refused as `Busy` until it leads, for an election timeout at most.
    pub fn transfer_leadership(&mut self, peer: PeerId) {
        let last = self.node.raft.raft_log.last_index();
        let able = |progress: &PeerProgress| {
            progress.peer == peer && progress.active && progress.matched.0 + TRANSFER_LAG_MAX >= last
        };
        if self.configuration.voters.contains(&peer) && self.progress().iter().any(able) {
            self.node.transfer_leader(peer.0);
        }
    }

    /// The connection to this peer broke: messages in flight may be lost.
    pub fn report_unreachable(&mut self, peer: PeerId) {
        self.node.report_unreachable(peer.0);
    }

    /// Whether the peer has installed the snapshot it was offered. Not needed for progress: the leader offers again
    /// after a while, and goes on when the peer acknowledges.
    pub fn report_snapshot(&mut self, peer: PeerId, ok: bool) {
        let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node.report_snapshot(peer.0, status);
    }

    /// A lost offer would otherwise never be repeated.
    fn offer_snapshots_again(&mut self) {
        let waiting: Vec<u64> = {
            let all = self.node.raft.prs().iter();
            all.filter(|(_, progress)| progress.state == ProgressState::Snapshot).map(|(id, _)| *id).collect()
        };
        self.offered_ticks.retain(|id, _| waiting.contains(id));
        for id in waiting {
            let ticks = self.offered_ticks.entry(id).or_default();
            *ticks += 1;
            if *ticks >= SNAPSHOT_RETRY_TICKS {
                *ticks = 0;
                self.node.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    /// The entry before the first in the log: whoever has applied it has what this log does not hold any more.
    pub fn log_base(&self) -> LogIndex {
        self.node.store().base()
    }

    /// Bytes and number of the entries in memory.
    pub fn log_size(&self) -> (u64, usize) {
        self.node.store().size()
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
    Entry { index: LogIndex(entry.index), term: Term(entry.term), data: data_out(entry) }
}

fn restored_out(snapshot: &eraftpb::Snapshot) -> Option<(LogIndex, Term, Configuration)> {
    let metadata = snapshot.get_metadata();
    if metadata.index == 0 {
        return None;
    }
    let configuration = Configuration::decode(&snapshot.data).expect("a snapshot is checked before it is stepped");
    Some((LogIndex(metadata.index), Term(metadata.term), configuration))
}

fn grant_out(state: raft::ReadState) -> Option<ReadGrant> {
    let context = u64::from_be_bytes(state.request_ctx.as_slice().try_into().ok()?);
    Some(ReadGrant { context, index: LogIndex(state.index) })
}

#[cfg(test)]
mod tests;
