//! What travels between nodes: one request, one answer. The head is Protocol Buffers; bulk bytes ride beside it in the
//! frame, uncopied. Field numbers are never reused.

use base::env::Frame;
use bytes::Bytes;
use meta::map::command::{Acknowledgement, ClusterMap, MapEntry, MapReply};
use meta::object::command::{ShardAnswer, ShardEntry, ShardQuery, ShardReply};
use prost::Message;

/// Largest encoded head in bytes that a node accepts.
pub const HEAD_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Session of the sender; a node below its floor is answered `StaleGeneration`.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    #[prost(uint32, tag = "2")]
    pub generation: u32,
    /// Newest map that the sender knows.
    #[prost(uint64, tag = "3")]
    pub map_version: u64,
    /// Of the cluster as the sender knows it: raised when the cluster is recovered from one node.
    #[prost(uint32, tag = "4")]
    pub cluster_generation: u32,
    #[prost(oneof = "Ask", tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 23, 24, 25, 26, 27")]
    pub ask: Option<Ask>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[expect(clippy::large_enum_variant, reason = "one request lives at a time; boxing would allocate for each")]
pub enum Ask {
    #[prost(message, tag = "10")]
    GetMap(GetMap),
    #[prost(message, tag = "11")]
    ProposeMap(MapEntry),
    #[prost(message, tag = "12")]
    ProposeShard(ProposeShard),
    #[prost(message, tag = "13")]
    QueryShard(QueryShard),
    #[prost(message, tag = "14")]
    PutChunk(PutChunk),
    #[prost(message, tag = "15")]
    GetChunk(GetChunk),
    #[prost(message, tag = "16")]
    DeleteChunks(DeleteChunks),
    /// One-way: the answer is dropped.
    #[prost(message, tag = "17")]
    NodeReport(NodeReport),
    #[prost(message, tag = "18")]
    Inventory(Inventory),
    #[prost(message, tag = "20")]
    SnapshotPage(SnapshotPage),
    #[prost(message, tag = "21")]
    Named(Named),
    #[prost(message, tag = "22")]
    GetStatus(GetStatus),
    #[prost(message, tag = "23")]
    PgDigests(PgDigests),
    #[prost(message, tag = "24")]
    Reach(Reach),
    #[prost(message, tag = "25")]
    GetEvents(GetEvents),
    #[prost(message, tag = "26")]
    CloneChunk(CloneChunk),
    #[prost(message, tag = "27")]
    Rows(AskRows),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GetMap {
    /// Confirmed by a quorum, not only what the replica has applied.
    #[prost(bool, tag = "1")]
    pub linearizable: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ProposeShard {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(message, optional, tag = "2")]
    pub entry: Option<ShardEntry>,
    /// Whose flush of the entry the answer waits for.
    #[prost(enumeration = "Acknowledgement", tag = "4")]
    pub acknowledgement: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct QueryShard {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(message, optional, tag = "2")]
    pub query: Option<ShardQuery>,
    /// Whatever this replica has applied will do; the answer says how stale it may be.
    #[prost(bool, tag = "3")]
    pub eventual: bool,
}

/// The payload is the frame's bulk.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutChunk {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub disk: Bytes,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub id: Bytes,
    #[prost(uint64, tag = "3")]
    pub owner: u64,
    #[prost(uint32, tag = "4")]
    pub epoch: u32,
    #[prost(fixed64, tag = "5")]
    pub crc64: u64,
}

/// Answered with the bytes of the range, cut at the chunk's end, as the frame's bulk.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetChunk {
    #[prost(bytes = "bytes", tag = "1")]
    pub disk: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub id: Bytes,
    #[prost(uint32, tag = "3")]
    pub start: u32,
    #[prost(uint32, tag = "4")]
    pub end: u32,
    /// Not for a user: work that yields to users does not yield to this.
    #[prost(bool, tag = "5")]
    pub repair: bool,
}

/// Stores bytes `start..end` of a chunk that the disk holds under a new id. Nothing travels; the answer has the
/// checksum of what was stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloneChunk {
    #[prost(bytes = "bytes", tag = "1")]
    pub disk: Bytes,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub from: Bytes,
    #[prost(uint32, tag = "3")]
    pub start: u32,
    #[prost(uint32, tag = "4")]
    pub end: u32,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "5")]
    pub id: Bytes,
    #[prost(uint64, tag = "6")]
    pub owner: u64,
    #[prost(uint32, tag = "7")]
    pub epoch: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteChunks {
    #[prost(bytes = "bytes", tag = "1")]
    pub disk: Bytes,
    /// 16 bytes each.
    #[prost(bytes = "bytes", tag = "2")]
    pub ids: Bytes,
}

/// What a node says of itself, ten times a second, to its observers: that it lives, and what it has done. Those who do not
/// vote in group 0 are told no more than that it lives.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeReport {
    /// The sender's wall clock in milliseconds since 1970: only for an alarm.
    #[prost(uint64, tag = "1")]
    pub wall_ms: u64,
    /// Closed placement groups of which the sender's disk has all that any member had.
    #[prost(message, repeated, tag = "2")]
    pub done: Vec<PgDone>,
    /// The groups that the sender leads.
    #[prost(message, repeated, tag = "3")]
    pub groups: Vec<GroupReport>,
    /// Nodes that the sender does not hear although others reach them.
    #[prost(uint32, repeated, tag = "4")]
    pub cut: Vec<u32>,
    /// The sender lives and is not to be counted on: it cannot follow the map, or a disk of its does not answer.
    #[prost(bool, tag = "5")]
    pub unfit: bool,
    /// How slow the sender's disks are.
    #[prost(message, repeated, tag = "6")]
    pub tails: Vec<DiskTail>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DiskTail {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub disk: Bytes,
    /// The latency that is met in every second of work (`protocol::slowness::Tail`).
    #[prost(uint64, tag = "2")]
    pub tail_us: u64,
}

/// Asks whether the receiver reaches a node, which may be itself, now.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Reach {
    #[prost(uint32, tag = "1")]
    pub node: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Reached {
    #[prost(bool, tag = "1")]
    pub reached: bool,
}

/// Asks a node what it saw happen.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct GetEvents {}

/// In the node's own encoding.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EncodedEvents {
    #[prost(bytes = "bytes", tag = "1")]
    pub events: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PgDone {
    #[prost(uint32, tag = "1")]
    pub pool: u32,
    #[prost(uint32, tag = "2")]
    pub prefix: u32,
    #[prost(uint32, tag = "3")]
    pub epoch: u32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GroupReport {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Nodes whose replicas vote.
    #[prost(uint32, repeated, tag = "3")]
    pub voters: Vec<u32>,
}

/// Asks what a disk holds of a placement group. A node whose map has an older epoch of the group answers `Busy`; from its
/// answer on it takes no store under an older epoch.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Inventory {
    #[prost(bytes = "bytes", tag = "1")]
    pub disk: Bytes,
    #[prost(uint32, tag = "2")]
    pub pool: u32,
    #[prost(uint32, tag = "3")]
    pub prefix: u32,
    #[prost(uint32, tag = "4")]
    pub epoch: u32,
    /// The last id of the page before (16 bytes), or empty.
    #[prost(bytes = "bytes", tag = "5")]
    pub after: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InventoryPage {
    /// In id order, 29 bytes each: id (16, big-endian), length (4, LE), CRC-64/NVME (8, LE), state (1: 0 good, 1 deleted,
    /// 2 damaged; the length and checksum of what is not good are 0).
    #[prost(bytes = "bytes", tag = "1")]
    pub entries: Bytes,
    /// More follows behind the last entry.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// Asks the leader of a group which of these chunks (16 bytes each) its rows name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Named {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub ids: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NamedIds {
    #[prost(bytes = "bytes", tag = "1")]
    pub ids: Bytes,
}

/// Asks a node what it sees of itself.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct GetStatus {}

/// In the node's own encoding.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EncodedStatus {
    #[prost(bytes = "bytes", tag = "1")]
    pub status: Bytes,
}

/// Asks what disks hold of open placement groups, each as one number.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PgDigests {
    #[prost(message, repeated, tag = "1")]
    pub groups: Vec<PgDigestAsk>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PgDigestAsk {
    #[prost(bytes = "bytes", tag = "1")]
    pub disk: Bytes,
    #[prost(uint32, tag = "2")]
    pub pool: u32,
    #[prost(uint32, tag = "3")]
    pub prefix: u32,
}

/// One line for each that was asked for, in that order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PgDigestPage {
    #[prost(message, repeated, tag = "1")]
    pub groups: Vec<PgDigestLine>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PgDigestLine {
    /// Of the group in the answering node's map.
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
    /// Chunks that are there and not known to be damaged.
    #[prost(uint64, tag = "2")]
    pub chunks: u64,
    /// Over (id, length, CRC) of those, as the store computes it.
    #[prost(fixed64, tag = "3")]
    pub sum: u64,
    /// The disk does not serve.
    #[prost(bool, tag = "4")]
    pub unavailable: bool,
    /// Payload bytes of the chunks.
    #[prost(uint64, tag = "5")]
    pub bytes: u64,
}

/// A page of the state of a group, for a replica that lags too far behind the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotPage {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// 0: a new snapshot; else as answered.
    #[prost(uint64, tag = "2")]
    pub token: u64,
    /// The last key of the page before.
    #[prost(bytes = "bytes", tag = "3")]
    pub after: Bytes,
    /// Of a new snapshot: only the leader answers, with everything that was acknowledged before it was asked.
    #[prost(bool, tag = "4")]
    pub newest: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotRows {
    #[prost(uint64, tag = "1")]
    pub token: u64,
    /// The group's own row as of this snapshot.
    #[prost(bytes = "bytes", tag = "2")]
    pub state: Bytes,
    #[prost(message, repeated, tag = "3")]
    pub rows: Vec<SnapshotRow>,
    /// Nothing follows.
    #[prost(bool, tag = "4")]
    pub done: bool,
}

/// How it stands with the rows of the replica of a group: asked by one that is about to do without its own.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct AskRows {
    #[prost(uint64, tag = "1")]
    pub group: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct RowsState {
    /// It is without rows, or is giving them up, and is going to have another replica's.
    #[prost(bool, tag = "1")]
    pub waits: bool,
    /// Its rows are damaged, and it is about to do without them.
    #[prost(bool, tag = "2")]
    pub claims: bool,
    /// It is not there, or has stopped.
    #[prost(bool, tag = "3")]
    pub stopped: bool,
    /// It is a voter, and no learner, as far as it knows.
    #[prost(bool, tag = "4")]
    pub voter: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotRow {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    /// Newest map that the answering node knows.
    #[prost(uint64, tag = "1")]
    pub map_version: u64,
    /// Of an eventual query: for how long the replica has not known that it holds everything. Absent: it never did.
    #[prost(uint64, optional, tag = "2")]
    pub staleness_ms: Option<u64>,
    #[prost(oneof = "Told", tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23")]
    pub told: Option<Told>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Told {
    #[prost(message, tag = "10")]
    Failed(Failed),
    #[prost(message, tag = "11")]
    Map(ClusterMap),
    #[prost(message, tag = "12")]
    MapReply(MapReply),
    #[prost(message, tag = "13")]
    ShardReply(ShardReply),
    #[prost(message, tag = "14")]
    ShardAnswer(ShardAnswer),
    /// A chunk request was carried out.
    #[prost(message, tag = "15")]
    Chunk(ChunkDone),
    #[prost(message, tag = "16")]
    Inventory(InventoryPage),
    /// Those of the ids that were asked for.
    #[prost(message, tag = "17")]
    Named(NamedIds),
    #[prost(message, tag = "18")]
    PgDigests(PgDigestPage),
    #[prost(message, tag = "19")]
    SnapshotRows(SnapshotRows),
    #[prost(message, tag = "20")]
    Status(EncodedStatus),
    #[prost(message, tag = "21")]
    Reached(Reached),
    #[prost(message, tag = "22")]
    Events(EncodedEvents),
    #[prost(message, tag = "23")]
    Rows(RowsState),
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ChunkDone {
    /// Of a store: the placement epoch under which it counts.
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
    /// Of a read: the chunk's owner domain.
    #[prost(uint64, tag = "2")]
    pub owner: u64,
    /// Of a clone: over the bytes that were stored.
    #[prost(fixed64, tag = "3")]
    pub crc64: u64,
}

/// The node did not carry out the request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failed {
    #[prost(enumeration = "Failure", tag = "1")]
    pub failure: i32,
    #[prost(string, tag = "2")]
    pub detail: String,
    /// For `NotLeader`: who leads, 0 when unknown.
    #[prost(uint32, tag = "3")]
    pub leader: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Failure {
    /// Malformed, or of a newer version.
    Invalid = 0,
    /// Nothing was done; another node leads.
    NotLeader = 1,
    /// Nothing was done; later it may be.
    Busy = 2,
    /// A proposal may or may not be committed later.
    Unknown = 3,
    /// Nothing was done: the disk takes no more data.
    Full = 4,
    NotFound = 5,
    /// The chunk has a tombstone.
    Deleted = 6,
    Damaged = 7,
    /// The same chunk id is stored with other bytes.
    Conflict = 8,
    /// The sender's placement epoch is not the group's.
    StalePlacement = 9,
    /// The sender's generation is below its floor.
    StaleGeneration = 10,
    /// The disk has failed, or the node does not have it.
    NoDisk = 11,
    /// Nothing was done: fewer copies would be made than were asked for.
    TooFewCopies = 12,
}

impl Failed {
    pub fn new(failure: Failure, detail: impl Into<String>) -> Failed {
        Failed { failure: failure as i32, detail: detail.into(), leader: 0 }
    }
}

impl From<Failed> for Answer {
    fn from(failed: Failed) -> Answer {
        Answer::of(Told::Failed(failed))
    }
}

impl Answer {
    pub fn failed(failure: Failure, detail: impl Into<String>) -> Answer {
        Failed::new(failure, detail).into()
    }

    pub fn of(told: Told) -> Answer {
        Answer { told: Some(told), ..Answer::default() }
    }
}

/// A message and bulk bytes as a frame.
pub fn frame(head: &impl Message, bulk: Vec<Bytes>) -> Frame {
    Frame { head: head.encode_to_vec().into(), bulk }
}

/// The head of a frame. Refuses what is too long or malformed.
pub fn head<M: Message + Default>(frame: &Frame) -> Result<M, String> {
    if frame.head.len() > HEAD_BYTES_MAX {
        return Err(format!("a head of {} bytes is longer than the {HEAD_BYTES_MAX} allowed", frame.head.len()));
    }
    M::decode(frame.head.clone()).map_err(|error| format!("malformed message: {error}"))
}
