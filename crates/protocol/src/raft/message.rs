//! Messages between the peers of one group, and their form on the wire.
//!
//! A message from the network is checked here and in `RaftPeer::step` for everything that `raft-rs` takes for granted
//! and would stop the process for: what does not hold is an error, and the message is dropped.

use base::ids::{LogIndex, PeerId, Term};
use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{self, MessageType};

use super::configuration::{Change, Configuration};
use super::{ENTRY_COMMAND, ENTRY_CONFIGURATION, Entry, MESSAGE_BYTES_MAX, UNCOMMITTED_BYTES_MAX};

/// Bytes of an encoded message: one entry of the largest size, or many small ones, and the rest.
pub const MESSAGE_LEN_MAX: usize = UNCOMMITTED_BYTES_MAX as usize + (1 << 20);
/// Terms, indices and ids stay below this, so that sums of a few never overflow.
const NUMBER_MAX: u64 = 1 << 62;
/// Index, term and frame of an entry, beside its data.
const ENTRY_COST: u64 = 24;
/// Bytes of a heartbeat's context.
const CONTEXT_LEN_MAX: usize = 64;

/// What a message is for, as far as others need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MessageKind {
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    /// Also the question before it (PreVote).
    Vote,
    VoteReply,
    /// Says that a snapshot is needed, and of what; the rows are not in it.
    Snapshot,
    Other,
}

/// A message between peers of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct Message(pub(super) eraftpb::Message);

impl Message {
    pub fn to(&self) -> PeerId {
        PeerId(self.0.to)
    }

    pub fn from(&self) -> PeerId {
        PeerId(self.0.from)
    }

    pub fn term(&self) -> Term {
        Term(self.0.term)
    }

    pub fn kind(&self) -> MessageKind {
        match self.0.get_msg_type() {
            MessageType::MsgAppend => MessageKind::Append,
            MessageType::MsgAppendResponse => MessageKind::AppendReply,
            MessageType::MsgHeartbeat => MessageKind::Heartbeat,
            MessageType::MsgHeartbeatResponse => MessageKind::HeartbeatReply,
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => MessageKind::Vote,
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => MessageKind::VoteReply,
            MessageType::MsgSnapshot => MessageKind::Snapshot,
            _ => MessageKind::Other,
        }
    }

    /// Of a heartbeat and its answer: it confirms a read.
    pub fn has_context(&self) -> bool {
        !self.0.context.is_empty()
    }

    /// Of a snapshot message: the index and term that the snapshot must reach, and the configuration there.
    pub fn snapshot(&self) -> Option<(LogIndex, Term, Configuration)> {
        if self.kind() != MessageKind::Snapshot {
            return None;
        }
        let metadata = self.0.get_snapshot().get_metadata();
        let configuration = Configuration::decode(&self.0.get_snapshot().data).ok()?;
        Some((LogIndex(metadata.index), Term(metadata.term), configuration))
    }

    /// The same snapshot message for the rows that were really pulled: those of `index`, not below the original's.
    #[must_use]
    pub fn with_snapshot(&self, index: LogIndex, term: Term, configuration: &Configuration) -> Message {
        assert_eq!(self.kind(), MessageKind::Snapshot, "only a snapshot message can be rewritten to another snapshot");
        let original = self.0.get_snapshot().get_metadata();
        assert!(index.0 >= original.index && term.0 >= original.term, "a sender's state never goes back");
        let mut message = self.0.clone();
        message.set_snapshot(snapshot_of(index.0, term.0, configuration));
        Message(message)
    }

    pub fn encode(&self) -> Bytes {
        let message = &self.0;
        let entry = |entry: &eraftpb::Entry| EntryRow { index: entry.index, term: entry.term, data: data_out(entry) };
        let row = MessageRow {
            kind: message.get_msg_type() as u32,
            to: message.to,
            from: message.from,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: message.get_entries().iter().map(entry).collect(),
            commit: message.commit,
            commit_term: message.commit_term,
            snapshot: (message.get_msg_type() == MessageType::MsgSnapshot).then(|| SnapshotRow {
                index: message.get_snapshot().get_metadata().index,
                term: message.get_snapshot().get_metadata().term,
                configuration: message.get_snapshot().data.clone(),
            }),
            request_snapshot: message.request_snapshot,
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context.clone(),
        };
        row.encode_to_vec().into()
    }

    /// Refuses (with a sentence) what no correct peer sends, and what only a newer one may send.
    pub fn decode(raw: &[u8]) -> Result<Message, String> {
        if raw.len() > MESSAGE_LEN_MAX {
            return Err(format!("a Raft message has {} bytes", raw.len()));
        }
        let row = MessageRow::decode(Bytes::copy_from_slice(raw))
            .map_err(|error| format!("a Raft message is malformed: {error}"))?;
        if row.encoded_len() != raw.len() {
            return Err("a Raft message has fields that this version does not know".into());
        }
        let kind = kind_in(row.kind).ok_or_else(|| format!("a Raft message has the unknown kind {}", row.kind))?;
        row.check_numbers()?;
        row.check_entries(kind)?;
        let mut message = eraftpb::Message::default();
        message.set_msg_type(kind);
        if kind == MessageType::MsgSnapshot {
            let snapshot = row.snapshot.as_ref().ok_or("a Raft snapshot message says nothing of a snapshot")?;
            message.set_snapshot(snapshot.check(row.term)?);
        } else if row.snapshot.is_some() {
            return Err("a Raft message of another kind brings a snapshot".into());
        }
        message.to = row.to;
        message.from = row.from;
        message.term = row.term;
        message.log_term = row.log_term;
        message.index = row.index;
        let entry = |row: EntryRow| raft_entry(row.index, row.term, row.data);
        message.set_entries(row.entries.into_iter().map(entry).collect::<Vec<_>>().into());
        message.commit = row.commit;
        message.commit_term = row.commit_term;
        message.request_snapshot = row.request_snapshot;
        message.reject = row.reject;
        message.reject_hint = row.reject_hint;
        message.context = row.context;
        Ok(Message(message))
    }
}

/// An append of more than [`MESSAGE_BYTES_MAX`] as several, each of which follows the one before.
pub(super) fn in_parts(mut message: eraftpb::Message) -> Vec<Message> {
    let len = |entry: &eraftpb::Entry| entry.data.len() as u64 + ENTRY_COST;
    let is_long = message.get_entries().iter().map(len).sum::<u64>() > MESSAGE_BYTES_MAX;
    if message.get_msg_type() != MessageType::MsgAppend || !is_long {
        return vec![Message(message)];
    }
    let entries: Vec<eraftpb::Entry> = message.take_entries().into();
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (Vec::new(), 0);
    let mut follows = (message.index, message.log_term);
    let mut finish = |part: &mut Vec<eraftpb::Entry>| {
        let mut one = message.clone();
        (one.index, one.log_term) = follows;
        follows = part.last().map_or(follows, |last: &eraftpb::Entry| (last.index, last.term));
        one.set_entries(std::mem::take(part).into());
        parts.push(Message(one));
    };
    for entry in entries {
        if !part.is_empty() && bytes + len(&entry) > MESSAGE_BYTES_MAX {
            finish(&mut part);
            bytes = 0;
        }
        bytes += len(&entry);
        part.push(entry);
    }
    finish(&mut part);
    parts
}

/// The kinds that peers send to each other. Others exist inside `raft-rs` and are never taken from the network.
fn kind_in(number: u32) -> Option<MessageType> {
    const KINDS: [MessageType; 10] = [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgSnapshot,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgTimeoutNow,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
    ];
    KINDS.into_iter().find(|kind| *kind as u32 == number)
}

/// An entry as `raft-rs` keeps it: it must know configuration changes when it sees them in its log.
pub(super) fn raft_entry(index: u64, term: u64, data: Bytes) -> eraftpb::Entry {
    let mut entry = eraftpb::Entry { index, term, ..eraftpb::Entry::default() };
    if data.first() == Some(&ENTRY_CONFIGURATION) {
        entry.set_entry_type(eraftpb::EntryType::EntryConfChangeV2);
        entry.data = data.slice(1..);
    } else {
        entry.data = data;
    }
    entry
}

/// The reverse: data with its kind byte.
pub(super) fn data_out(entry: &eraftpb::Entry) -> Bytes {
    match entry.get_entry_type() {
        eraftpb::EntryType::EntryNormal => entry.data.clone(),
        eraftpb::EntryType::EntryConfChangeV2 => {
            let mut data = Vec::with_capacity(1 + entry.data.len());
            data.push(ENTRY_CONFIGURATION);
            data.extend_from_slice(&entry.data);
            data.into()
        }
        eraftpb::EntryType::EntryConfChange => unreachable!("changes of the first version are never proposed"),
    }
}

/// What this version can apply. A follower does not acknowledge what it could not execute.
pub(super) fn check_data(data: &[u8]) -> Result<(), String> {
    match data {
        [] | [ENTRY_COMMAND, ..] => Ok(()),
        [ENTRY_CONFIGURATION, change @ ..] => Change::decode(change).map(|_| ()),
        [kind, ..] => Err(format!("a log entry has the unknown kind {kind}: a newer version may know it")),
    }
}

pub(super) fn snapshot_of(index: u64, term: u64, configuration: &Configuration) -> eraftpb::Snapshot {
    let mut snapshot = eraftpb::Snapshot { data: configuration.encode(), ..eraftpb::Snapshot::default() };
    let metadata = snapshot.mut_metadata();
    metadata.index = index;
    metadata.term = term;
    metadata.set_conf_state(configuration.conf_state());
    snapshot
}

impl Entry {
    /// Whether it changes the configuration: it is given to `RaftPeer::apply_configuration`, not to a state machine.
    pub fn is_configuration(&self) -> bool {
        self.data.first() == Some(&ENTRY_CONFIGURATION)
    }
}

/// `kind` is a `MessageType` of `eraftpb.proto`; the other fields mean what they mean there.
#[derive(Clone, PartialEq, prost::Message)]
struct MessageRow {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(uint64, tag = "3")]
    from: u64,
    #[prost(uint64, tag = "4")]
    term: u64,
    #[prost(uint64, tag = "5")]
    log_term: u64,
    #[prost(uint64, tag = "6")]
    index: u64,
    #[prost(message, repeated, tag = "7")]
    entries: Vec<EntryRow>,
    #[prost(uint64, tag = "8")]
    commit: u64,
    #[prost(uint64, tag = "9")]
    commit_term: u64,
    #[prost(message, optional, tag = "10")]
    snapshot: Option<SnapshotRow>,
    #[prost(uint64, tag = "11")]
    request_snapshot: u64,
    #[prost(bool, tag = "12")]
    reject: bool,
    #[prost(uint64, tag = "13")]
    reject_hint: u64,
    #[prost(bytes = "bytes", tag = "14")]
    context: Bytes,
}

/// `data` has its kind byte.
#[derive(Clone, PartialEq, prost::Message)]
struct EntryRow {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SnapshotRow {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(bytes = "bytes", tag = "3")]
    configuration: Bytes,
}

impl MessageRow {
    fn check_numbers(&self) -> Result<(), String> {
        if self.to == 0 || self.from == 0 || self.to == self.from || self.term == 0 {
            return Err(format!("a Raft message of term {} is from {} to {}", self.term, self.from, self.to));
        }
        let numbers = [
            self.to,
            self.from,
            self.term,
            self.log_term,
            self.index,
            self.commit,
            self.commit_term,
            self.request_snapshot,
            self.reject_hint,
        ];
        if numbers.into_iter().any(|number| number >= NUMBER_MAX) {
            return Err("a Raft message has an impossible number".into());
        }
        if self.context.len() > CONTEXT_LEN_MAX {
            return Err(format!("a Raft message has a context of {} bytes", self.context.len()));
        }
        Ok(())
    }

    /// Entries follow each other and what the sender says they follow.
    fn check_entries(&self, kind: MessageType) -> Result<(), String> {
        if kind != MessageType::MsgAppend {
            return match self.entries.is_empty() {
                true => Ok(()),
                false => Err("a Raft message of another kind brings entries".into()),
            };
        }
        if self.log_term > self.term {
            return Err("a Raft message follows an entry of a later term".into());
        }
        let (mut index, mut term) = (self.index, self.log_term);
        for entry in &self.entries {
            if entry.index != index + 1 || entry.term < term || entry.term > self.term {
                return Err(format!(
                    "a Raft message of term {} brings entry {} of term {} after entry {index} of term {term}",
                    self.term, entry.index, entry.term
                ));
            }
            check_data(&entry.data)?;
            (index, term) = (entry.index, entry.term);
        }
        Ok(())
    }
}

impl SnapshotRow {
    fn check(&self, message_term: u64) -> Result<eraftpb::Snapshot, String> {
        let configuration = Configuration::decode(&self.configuration)?;
        if configuration.is_empty() {
            return Err("a Raft snapshot has no members".into());
        }
        if self.index == 0 || self.index >= NUMBER_MAX || self.term == 0 || self.term > message_term {
            return Err(format!("a Raft snapshot is of entry {} of term {}", self.index, self.term));
        }
        Ok(snapshot_of(self.index, self.term, &configuration))
    }
}
