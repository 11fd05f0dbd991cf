//! What may be asked of an object shard, and what it answers. Protocol Buffers wire format, so that fields can be
//! added; field numbers are never reused. These messages travel between nodes and lie in Raft logs.

use bytes::Bytes;

use super::expire::Expire;
use super::fence::Fence;
use super::lock::{ObjectLock, RetentionMode};
use super::transition::MoveBody;
use super::usage::{CountUsage, Usage};
use crate::map::command::BucketConfigurationRow;

/// Where a command stands in the slot table of its shard (as in NFSv4.1, RFC 8881 section 2.10.6): makes a retry
/// return the first answer instead of executing again.
#[derive(Clone, PartialEq, Eq, Copy, prost::Message)]
pub struct SlotRef {
    #[prost(uint32, tag = "1")]
    pub node: u32,
    #[prost(uint32, tag = "2")]
    pub generation: u32,
    /// 0..256.
    #[prost(uint32, tag = "3")]
    pub slot: u32,
    /// Starts at 1 and rises by one for each new command in this slot.
    #[prost(uint64, tag = "4")]
    pub sequence: u64,
}

/// One entry of a shard's Raft log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardEntry {
    #[prost(message, optional, tag = "1")]
    pub slot: Option<SlotRef>,
    /// The range epoch that the sender believes in; checked in apply. 0: not checked (internal commands).
    #[prost(uint64, tag = "2")]
    pub range_epoch: u64,
    /// Of a write to a bucket: the token that its sender holds.
    #[prost(message, optional, tag = "3")]
    pub fence: Option<Fence>,
    #[prost(oneof = "ShardCommand", tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 31, 32, 33, 34")]
    pub command: Option<ShardCommand>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ShardCommand {
    #[prost(message, tag = "10")]
    InitShard(InitShard),
    /// Creates or replaces the shard's copy of a bucket's settings.
    #[prost(message, tag = "11")]
    SetBucket(BucketRow),
    /// Answers `BucketNotEmpty` and changes nothing, or freezes the bucket here: the caller then removes the bucket
    /// from group 0 and sends `DropBucket`. Uploads in progress do not count as content. To thaw (another range was
    /// not empty), send `SetBucket` with a higher settings version.
    #[prost(message, tag = "12")]
    FreezeBucket(BucketRef),
    /// Removes what is left of a frozen, empty bucket: uploads in progress are aborted, a bounded number in one step.
    /// While the answer is `Done { more: true }`, send it again (under a new sequence).
    #[prost(message, tag = "13")]
    DropBucket(BucketRef),
    #[prost(message, tag = "14")]
    PutObject(PutObject),
    #[prost(message, tag = "15")]
    DeleteObject(DeleteObject),
    #[prost(message, tag = "16")]
    CreateUpload(CreateUpload),
    #[prost(message, tag = "17")]
    PutPart(PutPart),
    #[prost(message, tag = "18")]
    CompleteUpload(CompleteUpload),
    #[prost(message, tag = "19")]
    AbortUpload(AbortUpload),
    /// A worker has written tombstones for these garbage rows on their members.
    #[prost(message, tag = "20")]
    RetireGarbage(RetireGarbage),
    /// From here on, entries of `node`'s sessions below `floor` are refused.
    #[prost(message, tag = "21")]
    CloseSession(CloseSession),
    /// Raises the level of behaviour that apply follows. Never falls.
    #[prost(message, tag = "22")]
    SetFeatureLevel(SetFeatureLevel),
    /// Changes what a version says of itself, not its bytes. Answers `Written`.
    #[prost(message, tag = "23")]
    ChangeVersion(ChangeVersion),
    /// What a bucket's lifecycle rules say. While the answer is `Done { more: true }`, send it again.
    #[prost(message, tag = "31")]
    Expire(Expire),
    /// Counts what a bucket with a quota holds, a bounded number of rows in one step, as `Expire`.
    #[prost(message, tag = "32")]
    CountUsage(CountUsage),
    /// Sets or forgets the floor of a fence, if there is one.
    #[prost(message, tag = "33")]
    ResetFence(ResetFence),
    /// The bytes of a version (or of one of its parts) are in another pool now. Answers `Done`.
    #[prost(message, tag = "34")]
    MoveBody(MoveBody),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ResetFence {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    /// As in [`Fence`].
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    /// The new floor; absent: none.
    #[prost(uint64, optional, tag = "3")]
    pub token: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InitShard {
    /// First and last (exclusive, empty = unbounded) point of the shard's range in the space (bucket, key), as
    /// [`crate::keys::range_point`] writes it.
    #[prost(bytes = "bytes", tag = "1")]
    pub range_start: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    #[prost(uint64, tag = "3")]
    pub range_epoch: u64,
    #[prost(uint32, tag = "4")]
    pub feature_level: u32,
    /// Added to the Raft index to make version orders: above every order that a key of this range ever had in another
    /// group, so that orders rise when a range moves. 0 for a new range.
    #[prost(uint64, tag = "5")]
    pub order_base: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SetFeatureLevel {
    #[prost(uint32, tag = "1")]
    pub level: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Versioning {
    Off = 0,
    Enabled = 1,
    Suspended = 2,
}

/// A bucket's settings as the shard keeps them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BucketRow {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(enumeration = "Versioning", tag = "2")]
    pub versioning: i32,
    #[prost(bool, tag = "3")]
    pub frozen: bool,
    /// Raised by each change of the settings in group 0; only a higher one replaces the row (and may thaw it).
    #[prost(uint64, tag = "4")]
    pub settings_version: u64,
    /// The bucket was dropped. The row stays for ever (ids are never reused), so that a late `SetBucket` cannot make
    /// a dropped bucket writable again. Never set by senders.
    #[prost(bool, tag = "8")]
    pub dropped: bool,
    /// The configurations that apply must obey. Every write reads this row, so they are few and short.
    #[prost(message, repeated, tag = "5")]
    pub configurations: Vec<BucketConfigurationRow>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct BucketRef {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
}

/// A set of conditions, all of which must hold at the moment of apply.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Precondition {
    /// `If-None-Match: *`.
    #[prost(bool, tag = "1")]
    pub must_not_exist: bool,
    /// `If-Match: *`.
    #[prost(bool, tag = "2")]
    pub must_exist: bool,
    /// `If-Match: "etag", ...` without quotes: the current ETag must be among them. Empty: no condition.
    #[prost(string, repeated, tag = "3")]
    pub etag_is: Vec<String>,
    /// `If-None-Match: "etag", ...`: the current ETag must not be among them.
    #[prost(string, repeated, tag = "4")]
    pub etag_is_not: Vec<String>,
    /// For DELETE (`x-amz-if-match-size`, `x-amz-if-match-last-modified-time`).
    #[prost(uint64, optional, tag = "5")]
    pub size_is: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub modified_ms_is: Option<u64>,
}

/// Where the bytes of an object (or part) are.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Body {
    #[prost(uint64, tag = "1")]
    pub size: u64,
    /// A small object rides here: at most [`crate::object::INLINE_BYTES_MAX`] bytes.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub inline: Option<Bytes>,
    /// Packed references ([`crate::chunks`]), in order.
    #[prost(bytes = "bytes", tag = "3")]
    pub chunks: Bytes,
    /// Set for a completed multipart object: the bytes are in the part rows of this upload (16 bytes).
    #[prost(bytes = "bytes", tag = "4")]
    pub upload: Bytes,
    /// For a completed multipart object: its parts in order.
    #[prost(message, repeated, tag = "5")]
    pub parts: Vec<PartSize>,
    /// CRC-32C of `inline`, made by the client at the writing gateway: end-to-end verification.
    #[prost(fixed32, tag = "6")]
    pub inline_crc32c: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PartSize {
    #[prost(uint32, tag = "1")]
    pub number: u32,
    #[prost(uint64, tag = "2")]
    pub size: u64,
}

/// A header-like pair. For system headers (`content-type`, `cache-control`, ...) the lower-case name; user metadata
/// carries its `x-amz-meta-` prefix.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Header {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A checksum that a client asked to be kept: algorithm as in the S3 header name (`crc32`, `crc32c`, `crc64nvme`,
/// `sha1`, `sha256`), value in base64 (with `-N` for composite ones).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Checksum {
    #[prost(string, tag = "1")]
    pub algorithm: String,
    #[prost(string, tag = "2")]
    pub value: String,
    /// Composite (a checksum of part checksums) rather than over the full object.
    #[prost(bool, tag = "3")]
    pub composite: bool,
}

/// What a version row says besides where its bytes are.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attributes {
    /// Without quotes.
    #[prost(string, tag = "1")]
    pub etag: String,
    #[prost(message, repeated, tag = "2")]
    pub headers: Vec<Header>,
    #[prost(message, repeated, tag = "3")]
    pub checksums: Vec<Checksum>,
    #[prost(message, repeated, tag = "4")]
    pub tags: Vec<Header>,
    /// Who owns the object and what others may do with it, as the gateway writes it; empty: all to the bucket's owner.
    #[prost(string, tag = "7")]
    pub acl: String,
    #[prost(message, optional, tag = "5")]
    pub lock: Option<ObjectLock>,
    // 6 encryption: reserved for later.
    /// The pool of the storage class that the writer asked for, or that lifecycle moved the bytes to; 0: the bucket's.
    #[prost(uint32, tag = "8")]
    pub pool: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PutObject {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(message, optional, tag = "3")]
    pub body: Option<Body>,
    #[prost(message, optional, tag = "4")]
    pub attributes: Option<Attributes>,
    #[prost(message, optional, tag = "5")]
    pub precondition: Option<Precondition>,
    /// The gateway's wall clock, for LastModified only.
    #[prost(uint64, tag = "6")]
    pub modified_ms: u64,
    /// 16 random bytes. In a versioned bucket apply makes the version id of them: their first 8 are replaced by the
    /// version's order, so that a version is found by its id without an index. `Written::version` has the result.
    #[prost(bytes = "bytes", tag = "7")]
    pub version_id: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteObject {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    /// The version to delete: 16 bytes, or `null` for the null version. Absent: the plain DELETE.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub version: Option<Bytes>,
    #[prost(message, optional, tag = "4")]
    pub precondition: Option<Precondition>,
    #[prost(uint64, tag = "5")]
    pub modified_ms: u64,
    /// 16 random bytes for the delete marker's version id (made as `PutObject::version_id`).
    #[prost(bytes = "bytes", tag = "6")]
    pub marker_id: Bytes,
    /// The caller may bypass a governance retention, and asks to.
    #[prost(bool, tag = "7")]
    pub bypass_governance: bool,
}

/// What is absent stays as it is. The date of the version stays, too: its content does not change.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChangeVersion {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    /// 16 bytes, or `null`. Absent: the newest version.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub version: Option<Bytes>,
    #[prost(message, optional, tag = "4")]
    pub tags: Option<Tags>,
    #[prost(string, optional, tag = "5")]
    pub acl: Option<String>,
    #[prost(message, optional, tag = "6")]
    pub retention: Option<Retention>,
    #[prost(bool, optional, tag = "7")]
    pub legal_hold: Option<bool>,
    /// As in [`DeleteObject`].
    #[prost(bool, tag = "8")]
    pub bypass_governance: bool,
    /// The gateway's wall clock: whether the retention that is there still lasts.
    #[prost(uint64, tag = "9")]
    pub now_ms: u64,
}

/// A retention to set; without a mode: to remove.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Retention {
    #[prost(enumeration = "RetentionMode", tag = "1")]
    pub mode: i32,
    #[prost(uint64, tag = "2")]
    pub until_ms: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Tags {
    #[prost(message, repeated, tag = "1")]
    pub tags: Vec<Header>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateUpload {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    /// 16 random bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub upload: Bytes,
    #[prost(message, optional, tag = "4")]
    pub attributes: Option<Attributes>,
    #[prost(uint64, tag = "5")]
    pub created_ms: u64,
    /// Checksum algorithm and type that the parts will carry (empty: none), as S3 names them.
    #[prost(string, tag = "6")]
    pub checksum_algorithm: String,
    #[prost(string, tag = "7")]
    pub checksum_type: String,
    /// Access key of the initiator, for listings.
    #[prost(string, tag = "8")]
    pub owner: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PutPart {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub upload: Bytes,
    /// 1..=10,000.
    #[prost(uint32, tag = "4")]
    pub number: u32,
    #[prost(message, optional, tag = "5")]
    pub body: Option<Body>,
    /// MD5 in hex, without quotes.
    #[prost(string, tag = "6")]
    pub etag: String,
    #[prost(message, repeated, tag = "7")]
    pub checksums: Vec<Checksum>,
    #[prost(uint64, tag = "8")]
    pub modified_ms: u64,
}

/// A part as CompleteMultipartUpload names it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamedPart {
    #[prost(uint32, tag = "1")]
    pub number: u32,
    #[prost(string, tag = "2")]
    pub etag: String,
    /// Must equal the part's where given.
    #[prost(message, repeated, tag = "3")]
    pub checksums: Vec<Checksum>,
}

/// Apply checks parts (order, existence, ETags, minimum size), and keeps `etag` and `checksums` as given (the gateway
/// computed or verified them against `ListParts`). Completing again what was completed with the same ETag answers the
/// same while that version exists.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CompleteUpload {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub upload: Bytes,
    #[prost(message, repeated, tag = "4")]
    pub parts: Vec<NamedPart>,
    #[prost(message, optional, tag = "5")]
    pub precondition: Option<Precondition>,
    #[prost(message, repeated, tag = "6")]
    pub checksums: Vec<Checksum>,
    #[prost(uint64, tag = "7")]
    pub modified_ms: u64,
    #[prost(bytes = "bytes", tag = "8")]
    pub version_id: Bytes,
    /// MD5-of-MD5s in hex with `-N`, computed by the gateway from `parts`' ETags.
    #[prost(string, tag = "9")]
    pub etag: String,
    /// `x-amz-mp-object-size`, when given: must equal the sum of the parts.
    #[prost(uint64, optional, tag = "10")]
    pub size_expected: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AbortUpload {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub upload: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RetireGarbage {
    /// Sequence numbers of garbage rows, at most [`crate::object::RETIRE_MAX`].
    #[prost(uint64, repeated, tag = "1")]
    pub sequences: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseSession {
    #[prost(uint32, tag = "1")]
    pub node: u32,
    #[prost(uint32, tag = "2")]
    pub floor: u32,
}

/// What apply answers. Kept (encoded) in the slot table, so it stays small.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardReply {
    #[prost(oneof = "ShardOutcome", tags = "1, 2, 3, 4")]
    pub outcome: Option<ShardOutcome>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ShardOutcome {
    #[prost(message, tag = "1")]
    Done(Done),
    #[prost(message, tag = "2")]
    Written(Written),
    #[prost(message, tag = "3")]
    Deleted(Deleted),
    #[prost(message, tag = "4")]
    Refused(Refused),
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Done {
    /// The command did a bounded step of its work: send it again.
    #[prost(bool, tag = "1")]
    pub more: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Written {
    /// Version id for the reply header: 16 bytes, `null` (suspended), or empty (never versioned).
    #[prost(bytes = "bytes", tag = "1")]
    pub version: Bytes,
    #[prost(string, tag = "2")]
    pub etag: String,
    #[prost(uint64, tag = "3")]
    pub modified_ms: u64,
    #[prost(uint64, tag = "4")]
    pub size: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Deleted {
    /// A delete marker was written (plain DELETE) or removed (DELETE of a version).
    #[prost(bool, tag = "1")]
    pub marker: bool,
    /// Id of the marker written, or of the version removed; empty when the bucket was never versioned.
    #[prost(bytes = "bytes", tag = "2")]
    pub version: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Refused {
    #[prost(enumeration = "Reason", tag = "1")]
    pub reason: i32,
    /// What was found, for the message (for example the offending part).
    #[prost(string, tag = "2")]
    pub detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Reason {
    Unspecified = 0,
    NoSuchBucket = 1,
    NoSuchKey = 2,
    NoSuchVersion = 3,
    NoSuchUpload = 4,
    PreconditionFailed = 5,
    InvalidPart = 6,
    InvalidPartOrder = 7,
    EntityTooSmall = 8,
    BucketNotEmpty = 9,
    /// The bucket is being deleted.
    BucketFrozen = 10,
    /// The key is not in this shard's range: refresh the map and ask another.
    WrongRange = 11,
    /// The session is below the floor: the outcome of the first try is unknown; never executed.
    SessionClosed = 12,
    /// A later command was executed in this slot: this late copy is fenced.
    StaleSequence = 13,
    /// The command is malformed or of a newer version.
    Invalid = 14,
    /// HEAD/GET of a key whose newest version is a delete marker (`detail` is its id in hex), or of a marker itself.
    DeleteMarker = 15,
    /// A row needed for the answer is damaged on this replica.
    Damaged = 16,
    /// The parts are more than the largest object has (`detail`: their bytes).
    EntityTooLarge = 17,
    /// Object lock forbids it (`detail` says what).
    ObjectLocked = 30,
    /// The bucket has no object lock, so nothing in it can be locked.
    NotLockable = 31,
    /// The bucket would hold more than its quota (`detail`).
    QuotaExceeded = 32,
    /// The write came with a lower fence token than an earlier one (`detail`: the key and both tokens).
    StaleFence = 33,
    /// The bucket takes no write without a fence token.
    FenceRequired = 34,
}

/// What may be read from a shard.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardQuery {
    #[prost(uint64, tag = "1")]
    pub range_epoch: u64,
    #[prost(oneof = "ShardRead", tags = "10, 11, 12, 13, 14, 15, 16, 30")]
    pub read: Option<ShardRead>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ShardRead {
    #[prost(message, tag = "10")]
    GetObject(GetObject),
    #[prost(message, tag = "11")]
    ListObjects(ListObjects),
    #[prost(message, tag = "12")]
    ListVersions(ListVersions),
    #[prost(message, tag = "13")]
    GetUpload(GetUpload),
    #[prost(message, tag = "14")]
    ListParts(ListParts),
    #[prost(message, tag = "15")]
    ListUploads(ListUploads),
    /// The oldest garbage rows.
    #[prost(message, tag = "16")]
    ListGarbage(ListGarbage),
    /// What a bucket with a quota holds.
    #[prost(message, tag = "30")]
    GetUsage(BucketRef),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GetObject {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub version: Option<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListObjects {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub prefix: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub delimiter: Bytes,
    /// Keys and common prefixes must be greater than this (StartAfter, Marker or the continuation). A common prefix
    /// that equals it was already returned.
    #[prost(bytes = "bytes", tag = "4")]
    pub after: Bytes,
    #[prost(uint32, tag = "5")]
    pub limit: u32,
    /// Where the scan goes on (`ObjectPage::resume`): a key, inclusive. `after` holds besides it. Empty: at `after`.
    #[prost(bytes = "bytes", tag = "6")]
    pub from: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListVersions {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub prefix: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub delimiter: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub key_marker: Bytes,
    /// Within `key_marker`, go on after this version; absent: after all versions of `key_marker`.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub version_marker: Option<Bytes>,
    #[prost(uint32, tag = "6")]
    pub limit: u32,
    /// As in [`ListObjects`].
    #[prost(bytes = "bytes", tag = "7")]
    pub from: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GetUpload {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub upload: Bytes,
}

/// Also reads the part rows of a completed object (its `Body::upload`): whether an upload is still in progress is
/// asked with [`GetUpload`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListParts {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub upload: Bytes,
    #[prost(uint32, tag = "4")]
    pub after: u32,
    #[prost(uint32, tag = "5")]
    pub limit: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListUploads {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub prefix: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub delimiter: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub key_marker: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub upload_marker: Bytes,
    #[prost(uint32, tag = "6")]
    pub limit: u32,
    /// As in [`ListObjects`].
    #[prost(bytes = "bytes", tag = "7")]
    pub from: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListGarbage {
    #[prost(uint64, tag = "1")]
    pub after: u64,
    #[prost(uint32, tag = "2")]
    pub limit: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardAnswer {
    #[prost(oneof = "ShardFound", tags = "1, 2, 3, 4, 5, 6, 7, 8, 30")]
    pub found: Option<ShardFound>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ShardFound {
    #[prost(message, tag = "1")]
    Refused(Refused),
    #[prost(message, tag = "2")]
    Object(ObjectVersion),
    #[prost(message, tag = "3")]
    Objects(ObjectPage),
    #[prost(message, tag = "4")]
    Versions(ObjectPage),
    #[prost(message, tag = "5")]
    Upload(Upload),
    #[prost(message, tag = "6")]
    Uploads(UploadPage),
    #[prost(message, tag = "7")]
    Parts(PartPage),
    #[prost(message, tag = "8")]
    Garbage(GarbagePage),
    #[prost(message, tag = "30")]
    Usage(Usage),
}

/// A version row with its key. Also the value that is stored (then `key` is empty: it is in the row's key).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ObjectVersion {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// 16 bytes, or `null`.
    #[prost(bytes = "bytes", tag = "2")]
    pub version: Bytes,
    #[prost(bool, tag = "3")]
    pub delete_marker: bool,
    #[prost(uint64, tag = "4")]
    pub modified_ms: u64,
    #[prost(message, optional, tag = "5")]
    pub body: Option<Body>,
    #[prost(message, optional, tag = "6")]
    pub attributes: Option<Attributes>,
    /// Filled in answers: whether this is the newest version of its key.
    #[prost(bool, tag = "7")]
    pub latest: bool,
    /// Upload id of the multipart upload that made it (16 bytes), else empty: makes Complete idempotent.
    #[prost(bytes = "bytes", tag = "8")]
    pub from_upload: Bytes,
    /// In storage only: this row is no version but says at which order the null version of its key is (a suspended
    /// bucket). It lies at order 0, the oldest place.
    #[prost(uint64, tag = "9")]
    pub null_order: u64,
}

/// In listings, `body` has only its size, and `attributes` only ETag, checksums and pool.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ObjectPage {
    #[prost(message, repeated, tag = "1")]
    pub objects: Vec<ObjectVersion>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub prefixes: Vec<Bytes>,
    #[prost(bool, tag = "3")]
    pub truncated: bool,
    /// Where to go on: the last key or common prefix returned (and, for versions, its version).
    #[prost(bytes = "bytes", tag = "4")]
    pub next_after: Bytes,
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub next_version: Option<Bytes>,
    /// Not empty: the page ended before its limit because this shard's range or the work allowed for one query ended.
    /// The client (not the user) goes on at once: the same query with `from` set to this, `after` (or the markers)
    /// set to what was returned last, if anything was, and the limit less what was returned.
    #[prost(bytes = "bytes", tag = "6")]
    pub resume: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Upload {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub upload: Bytes,
    #[prost(uint64, tag = "3")]
    pub created_ms: u64,
    #[prost(message, optional, tag = "4")]
    pub attributes: Option<Attributes>,
    #[prost(string, tag = "5")]
    pub checksum_algorithm: String,
    #[prost(string, tag = "6")]
    pub checksum_type: String,
    #[prost(string, tag = "7")]
    pub owner: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UploadPage {
    #[prost(message, repeated, tag = "1")]
    pub uploads: Vec<Upload>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub prefixes: Vec<Bytes>,
    #[prost(bool, tag = "3")]
    pub truncated: bool,
    #[prost(bytes = "bytes", tag = "4")]
    pub next_key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub next_upload: Bytes,
    /// As in [`ObjectPage`].
    #[prost(bytes = "bytes", tag = "6")]
    pub resume: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Part {
    #[prost(uint32, tag = "1")]
    pub number: u32,
    #[prost(message, optional, tag = "2")]
    pub body: Option<Body>,
    #[prost(string, tag = "3")]
    pub etag: String,
    #[prost(message, repeated, tag = "4")]
    pub checksums: Vec<Checksum>,
    #[prost(uint64, tag = "5")]
    pub modified_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PartPage {
    #[prost(message, repeated, tag = "1")]
    pub parts: Vec<Part>,
    #[prost(bool, tag = "2")]
    pub truncated: bool,
}

/// The oldest garbage rows after `ListGarbage::after`, in order. May be shorter than the limit when the rows are long.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GarbagePage {
    #[prost(message, repeated, tag = "1")]
    pub rows: Vec<Garbage>,
    #[prost(bool, tag = "2")]
    pub truncated: bool,
}

/// A garbage row: chunks that no key names any more. Their tombstones are written by a worker.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Garbage {
    /// Rises with the log; [`crate::object::garbage_sequence_max`] relates it to log positions.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    #[prost(uint64, tag = "2")]
    pub owner: u64,
    /// Packed references.
    #[prost(bytes = "bytes", tag = "3")]
    pub chunks: Bytes,
}
