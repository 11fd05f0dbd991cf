//! Rows and commands of the cluster map. Protocol Buffers wire format; field numbers are never reused.

use bytes::Bytes;

use crate::object::command::{SlotRef, Versioning};

/// A node as the map knows it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeRow {
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// What is below is fenced.
    #[prost(uint32, tag = "2")]
    pub generation_floor: u32,
    /// The generation that the node last announced.
    #[prost(uint32, tag = "3")]
    pub generation: u32,
    #[prost(enumeration = "NodeState", tag = "4")]
    pub state: i32,
    /// `region=r,zone=z,rack=k`; may be empty.
    #[prost(string, tag = "5")]
    pub locality: String,
    /// HOST:PORT of the cluster port.
    #[prost(string, tag = "6")]
    pub address: String,
    #[prost(uint32, tag = "7")]
    pub feature_level_max: u32,
    /// An operator wants it gone: whenever it comes up it drains. Set and cleared by `SetNodeState`; `SetNode` keeps it.
    #[prost(bool, tag = "8")]
    pub leaving: bool,
    /// Sessions of generations below are closed, although the process that had them may live: it does nothing in them any more.
    /// Never above `generation`; `SetNode` never lowers it. Since feature level 5.
    #[prost(uint32, tag = "9")]
    pub closed_below: u32,
}

impl NodeRow {
    /// Commands of sessions of generations below are refused, by whoever has heard of it.
    pub fn sessions_open_from(&self) -> u32 {
        self.generation_floor.max(self.closed_below)
    }
}

/// What the cluster decided about a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum NodeState {
    Up = 0,
    /// Silent: writes skip it.
    Down = 1,
    /// Silent for so long that its copies are made again elsewhere.
    Lost = 2,
    /// Serves as when up, and is given nothing new: its data moves away.
    Draining = 3,
    /// For ever.
    Removed = 4,
    /// Redeemed a token and was never up: takes no data and no votes.
    Joining = 5,
}

impl NodeState {
    /// Reads and stores may be sent to it.
    pub fn serves(self) -> bool {
        matches!(self, NodeState::Up | NodeState::Draining)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DiskRow {
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(uint32, tag = "2")]
    pub node: u32,
    #[prost(uint64, tag = "3")]
    pub capacity_bytes: u64,
    #[prost(enumeration = "DiskState", tag = "4")]
    pub state: i32,
    /// Its node's groups have their logs and rows on it.
    #[prost(bool, tag = "5")]
    pub metadata: bool,
    /// It answers far more slowly than its peers: who can do without it does. Set and cleared by `SetDiskSlow`; `SetDisk`
    /// keeps it.
    #[prost(bool, tag = "6")]
    pub slow: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum DiskState {
    Up = 0,
    Failed = 1,
    Removed = 2,
    /// Serves as when up, and is given nothing new: its data moves away.
    Draining = 3,
}

impl DiskState {
    /// Reads and stores may be sent to it.
    pub fn serves(self) -> bool {
        matches!(self, DiskState::Up | DiskState::Draining)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PoolRow {
    #[prost(uint32, tag = "1")]
    pub id: u32,
    #[prost(string, tag = "2")]
    pub name: String,
    /// `replicate(n)`: the copies that the policy asks for.
    #[prost(uint32, tag = "3")]
    pub copies: u32,
    /// The copies that there are disks for now; raised by itself, never lowered by itself.
    #[prost(uint32, tag = "4")]
    pub copies_effective: u32,
    /// Length of a placement group's prefix in bits.
    #[prost(uint32, tag = "5")]
    pub pg_bits: u32,
    /// The storage class by which clients name it; empty: none. Once set it stays, and no other pool has it.
    #[prost(string, tag = "6")]
    pub class: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PgRow {
    #[prost(uint32, tag = "1")]
    pub pool: u32,
    #[prost(uint32, tag = "2")]
    pub prefix: u32,
    #[prost(uint32, tag = "3")]
    pub epoch: u32,
    #[prost(bool, tag = "4")]
    pub closed: bool,
    /// Disk ids (16 bytes each) in order.
    #[prost(bytes = "bytes", repeated, tag = "5")]
    pub members: Vec<Bytes>,
    /// While closed: the members before the move.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub members_before: Vec<Bytes>,
}

/// An entry of the shard directory: a hint; the shard owns the truth.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardRow {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub range_start: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub range_end: Bytes,
    #[prost(uint64, tag = "4")]
    pub range_epoch: u64,
    /// Where its replicas are.
    #[prost(uint32, repeated, tag = "5")]
    pub nodes: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct BucketEntry {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    /// Access key of the owner.
    #[prost(string, tag = "3")]
    pub owner: String,
    #[prost(uint64, tag = "4")]
    pub created_ms: u64,
    #[prost(enumeration = "Versioning", tag = "5")]
    pub versioning: i32,
    #[prost(uint32, tag = "6")]
    pub pool: u32,
    #[prost(enumeration = "Acknowledgement", tag = "7")]
    pub acknowledgement: i32,
    #[prost(enumeration = "BucketState", tag = "8")]
    pub state: i32,
    #[prost(uint64, tag = "9")]
    pub settings_version: u64,
    #[prost(string, tag = "10")]
    pub region: String,
}

/// One setting of a bucket. The map holds the rows, so that every gateway decides with them without asking anybody;
/// what a shard must obey is copied into its [`crate::object::command::BucketRow`] besides.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct BucketConfigurationRow {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(enumeration = "ConfigurationKind", tag = "2")]
    pub kind: i32,
    /// The bucket's settings version at which the value was set.
    #[prost(uint64, tag = "3")]
    pub version: u64,
    /// In the encoding of whoever owns the kind; the map only bounds its length.
    #[prost(bytes = "bytes", tag = "4")]
    pub value: Bytes,
}

/// What a configuration of a bucket is about. A bucket has at most one of each kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum ConfigurationKind {
    Unspecified = 0,
    Acl = 1,
    Cors = 2,
    Tagging = 3,
    Policy = 4,
    Lifecycle = 5,
    Ownership = 6,
    PublicAccessBlock = 7,
    ObjectLock = 8,
    Quota = 9,
    Fence = 20,
    // 10 encryption, 11 notification, 12 website, 13 logging: reserved for later.
}

/// Sets or removes one configuration of an active bucket.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SetBucketConfiguration {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(enumeration = "ConfigurationKind", tag = "2")]
    pub kind: i32,
    /// Absent: the bucket shall have none of this kind.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub value: Option<Bytes>,
    /// The settings version of the bucket that the change was made from; another one is `Stale`. 0: any.
    #[prost(uint64, tag = "4")]
    pub settings_version: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Acknowledgement {
    /// Every copy whose node and disk the map does not mark as out of service, never fewer than a majority.
    All = 0,
    Majority = 1,
    /// As many copies as the policy asks for, or no answer.
    AllStrict = 2,
    /// One copy of the bytes; metadata by a majority, as always.
    One = 3,
}

impl Acknowledgement {
    pub const EVERY: [Acknowledgement; 4] =
        [Acknowledgement::AllStrict, Acknowledgement::All, Acknowledgement::Majority, Acknowledgement::One];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Acknowledgement::AllStrict => "all-strict",
            Acknowledgement::All => "all",
            Acknowledgement::Majority => "majority",
            Acknowledgement::One => "one",
        }
    }

    pub fn from_name(name: &str) -> Option<Acknowledgement> {
        Acknowledgement::EVERY.into_iter().find(|rule| rule.name() == name)
    }
}

/// A bucket exists for clients only while `Active`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum BucketState {
    /// Named in group 0, not yet applied by every range.
    Creating = 0,
    Active = 1,
    Deleting = 2,
}

/// A key pair of S3. Its `Debug` does not show the secret.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct KeyRow {
    #[prost(string, tag = "1")]
    pub access_key: String,
    #[prost(string, tag = "2")]
    pub secret_key: String,
    /// The name the operator gave it.
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(uint64, tag = "4")]
    pub created_ms: u64,
    #[prost(bool, tag = "5")]
    pub root: bool,
    /// JSON; empty: none, the key may do everything with the buckets that it owns. The map only bounds its length.
    #[prost(string, tag = "6")]
    pub policy: String,
    /// Of the root key: how often a command has set it. 0: it is what the node that started last was given; else it stays
    /// whatever nodes are given.
    #[prost(uint64, tag = "7")]
    pub root_changes: u64,
}

impl std::fmt::Debug for KeyRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRow")
            .field("access_key", &self.access_key)
            .field("name", &self.name)
            .field("created_ms", &self.created_ms)
            .field("root", &self.root)
            .field("root_changes", &self.root_changes)
            .finish_non_exhaustive()
    }
}

/// The root user as an operator wants it. Its `Debug` does not show the secret.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct SetRootKey {
    #[prost(string, tag = "1")]
    pub access_key: String,
    #[prost(string, tag = "2")]
    pub secret_key: String,
    /// [`KeyRow::root_changes`] of the key that was shown for this change.
    #[prost(uint64, tag = "3")]
    pub changes_before: u64,
    /// Wall-clock time of the proposer.
    #[prost(uint64, tag = "4")]
    pub now_ms: u64,
}

impl std::fmt::Debug for SetRootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetRootKey")
            .field("access_key", &self.access_key)
            .field("changes_before", &self.changes_before)
            .field("now_ms", &self.now_ms)
            .finish_non_exhaustive()
    }
}

/// The right to join once. What the operator passes on holds the secret; the map holds its hash, and `Debug` shows
/// neither.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct TokenRow {
    /// 16 lower-case hexadecimal digits.
    #[prost(string, tag = "1")]
    pub id: String,
    /// SHA-256 of the secret.
    #[prost(bytes = "bytes", tag = "2")]
    pub secret_hash: Bytes,
    /// Wall-clock time; of `now_ms` and later it is refused.
    #[prost(uint64, tag = "3")]
    pub expires_ms: u64,
    /// The node that joined with it; 0: unused.
    #[prost(uint32, tag = "4")]
    pub used_by: u32,
    /// When it was made: older tokens that had expired by then are removed.
    #[prost(uint64, tag = "5")]
    pub created_ms: u64,
    /// See [`RedeemToken::joiner`].
    #[prost(bytes = "bytes", tag = "6")]
    pub joiner: Bytes,
}

impl std::fmt::Debug for TokenRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenRow")
            .field("id", &self.id)
            .field("expires_ms", &self.expires_ms)
            .field("used_by", &self.used_by)
            .finish_non_exhaustive()
    }
}

/// The cluster's own certificate authority. Its `Debug` does not show the key.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct Authority {
    #[prost(string, tag = "1")]
    pub certificate_pem: String,
    #[prost(string, tag = "2")]
    pub key_pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// One entry of group 0's log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MapEntry {
    #[prost(message, optional, tag = "1")]
    pub slot: Option<SlotRef>,
    #[prost(
        oneof = "MapCommand",
        tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 40, 50, 51, 52"
    )]
    pub command: Option<MapCommand>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum MapCommand {
    /// First entry of the log: cluster id, region, feature level.
    #[prost(message, tag = "10")]
    InitCluster(InitCluster),
    /// Adds or updates a node. Id 0: allots one. An older generation than the row's, or one below the floor of a node
    /// that is to serve, is `Stale`; a lower floor leaves the row's, and so does a lower `closed_below`; `Removed` is
    /// final; a node that is leaving drains instead of being up.
    #[prost(message, tag = "11")]
    SetNode(NodeRow),
    #[prost(message, tag = "12")]
    SetDisk(DiskRow),
    #[prost(message, tag = "13")]
    SetPool(PoolRow),
    /// All rows or none. A new row has epoch 1. Afterwards each change raises the epoch by one (not above the row's:
    /// `Stale`), and is one step of a move, all else is `Invalid`:
    ///
    /// ```text
    /// open   -> closed   members: the new ones; members_before: all members before the step
    /// closed -> closed   the same: other new members; members_before: all of both lists before the step
    /// closed -> open     the same members; members_before: none
    /// ```
    #[prost(message, tag = "14")]
    SetPgs(PgRows),
    #[prost(message, tag = "15")]
    SetShard(ShardRow),
    /// Allots the id. Refused with `BucketExists` when the name is taken.
    #[prost(message, tag = "16")]
    CreateBucket(BucketEntry),
    /// Replaces versioning, pool, acknowledgement and state of an existing bucket by id; raises its settings_version
    /// when something changed. A settings_version other than 0 and the row's is `Stale`.
    #[prost(message, tag = "17")]
    SetBucket(BucketEntry),
    #[prost(message, tag = "18")]
    RemoveBucket(BucketId),
    /// A root key takes the place of the one before; `Stale` when a command has set that one.
    #[prost(message, tag = "19")]
    CreateKey(KeyRow),
    #[prost(message, tag = "20")]
    DeleteKey(KeyName),
    #[prost(message, tag = "21")]
    CloseSession(crate::object::command::CloseSession),
    #[prost(message, tag = "22")]
    SetFeatureLevel(FeatureLevel),
    /// Expired tokens go; `TooMany` when the map is full of unused ones.
    #[prost(message, tag = "23")]
    CreateToken(TokenRow),
    /// Allots a node id, in state `Joining`. Refused with `TokenUnknown` (also for a wrong secret), `TokenUsed`,
    /// `TokenExpired`, and with `Invalid` when the node's software is too old for the cluster.
    #[prost(message, tag = "24")]
    RedeemToken(RedeemToken),
    /// Before level 5 once: refused when another one is there.
    #[prost(message, tag = "25")]
    SetAuthority(Authority),
    /// Raised by a recovery; never falls.
    #[prost(message, tag = "26")]
    SetClusterGeneration(ClusterGeneration),
    /// Down, lost, draining, removed; or up again after draining. `Stale` when the node has announced another
    /// generation meanwhile. A node that never was up can only be removed.
    #[prost(message, tag = "27")]
    SetNodeState(SetNodeState),
    /// Raises the bucket's settings version when something changed, and answers its row. `TooMany` when the map holds
    /// as many bytes of configurations as it may.
    #[prost(message, tag = "28")]
    SetBucketConfiguration(SetBucketConfiguration),
    /// Replaces the policy of an access key.
    #[prost(message, tag = "40")]
    SetKeyPolicy(SetKeyPolicy),
    /// Hands out a fence token (`MapReply::id`): higher than every one before, also than those that a recovery forgot.
    #[prost(message, tag = "50")]
    NextFence(NextFence),
    /// `NotFound` for a disk that is not there or was removed.
    #[prost(message, tag = "51")]
    SetDiskSlow(SetDiskSlow),
    /// Replaces the root key: from now on no node's start does. `Stale` when another command was faster, `KeyExists` when
    /// the access key is another key's. Answers the new [`KeyRow::root_changes`] as `MapReply::id`.
    #[prost(message, tag = "52")]
    SetRootKey(SetRootKey),
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct RedeemToken {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub secret_hash: Bytes,
    /// Wall-clock time of the proposer.
    #[prost(uint64, tag = "3")]
    pub now_ms: u64,
    /// Locality, address and feature level of the node that joins; its id is 0.
    #[prost(message, optional, tag = "4")]
    pub node: Option<NodeRow>,
    /// What only this joiner has and keeps over its own crashes (the hash of its public key), or empty. While its node
    /// has not been up, redeeming again with the same answers the same node: its first answer may have been lost.
    #[prost(bytes = "bytes", tag = "5")]
    pub joiner: Bytes,
}

impl std::fmt::Debug for RedeemToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedeemToken").field("id", &self.id).field("node", &self.node).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterGeneration {
    #[prost(uint32, tag = "1")]
    pub generation: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SetNodeState {
    #[prost(uint32, tag = "1")]
    pub id: u32,
    #[prost(enumeration = "NodeState", tag = "2")]
    pub state: i32,
    /// Fences the row's generation: the floor becomes one more.
    #[prost(bool, tag = "3")]
    pub raise_floor: bool,
    /// The generation in the row that the decision was made from.
    #[prost(uint32, tag = "4")]
    pub generation: u32,
    /// Of a node that drains: it is not to leave the cluster when it is empty.
    #[prost(bool, tag = "5")]
    pub stays: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InitCluster {
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: Bytes,
    #[prost(string, tag = "2")]
    pub region: String,
    #[prost(uint32, tag = "3")]
    pub feature_level: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PgRows {
    #[prost(message, repeated, tag = "1")]
    pub rows: Vec<PgRow>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct BucketId {
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyName {
    /// Access key or operator's name.
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SetKeyPolicy {
    /// Access key or operator's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// As [`KeyRow::policy`].
    #[prost(string, tag = "2")]
    pub policy: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SetDiskSlow {
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(bool, tag = "2")]
    pub slow: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct NextFence {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FeatureLevel {
    #[prost(uint32, tag = "1")]
    pub level: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MapReply {
    #[prost(enumeration = "MapOutcome", tag = "1")]
    pub outcome: i32,
    #[prost(string, tag = "2")]
    pub detail: String,
    /// The map version after the command.
    #[prost(uint64, tag = "3")]
    pub version: u64,
    /// The id that was allotted, if any.
    #[prost(uint64, tag = "4")]
    pub id: u64,
    /// The bucket that exists already (`BucketExists`), or the bucket's row after `CreateBucket` and `SetBucket`.
    #[prost(message, optional, tag = "5")]
    pub bucket: Option<BucketEntry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum MapOutcome {
    Done = 0,
    BucketExists = 1,
    NotFound = 2,
    /// An older epoch, generation or settings version than the row's.
    Stale = 3,
    Invalid = 4,
    SessionClosed = 5,
    KeyExists = 6,
    TooMany = 7,
    /// No such token, or the wrong secret.
    TokenUnknown = 8,
    TokenUsed = 9,
    TokenExpired = 10,
}

/// The whole map as clients cache it. Secrets travel only when asked for by a node of the cluster.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterMap {
    #[prost(uint64, tag = "1")]
    pub version: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub cluster: Bytes,
    #[prost(string, tag = "3")]
    pub region: String,
    #[prost(uint32, tag = "4")]
    pub feature_level: u32,
    #[prost(message, repeated, tag = "5")]
    pub nodes: Vec<NodeRow>,
    #[prost(message, repeated, tag = "6")]
    pub disks: Vec<DiskRow>,
    #[prost(message, repeated, tag = "7")]
    pub pools: Vec<PoolRow>,
    #[prost(message, repeated, tag = "8")]
    pub pgs: Vec<PgRow>,
    #[prost(message, repeated, tag = "9")]
    pub shards: Vec<ShardRow>,
    #[prost(message, repeated, tag = "10")]
    pub buckets: Vec<BucketEntry>,
    #[prost(message, repeated, tag = "11")]
    pub keys: Vec<KeyRow>,
    #[prost(message, optional, tag = "12")]
    pub authority: Option<Authority>,
    #[prost(message, repeated, tag = "13")]
    pub tokens: Vec<TokenRow>,
    /// How often the cluster was recovered from fewer than a majority of its metadata.
    #[prost(uint32, tag = "14")]
    pub cluster_generation: u32,
    /// By bucket, then by kind.
    #[prost(message, repeated, tag = "15")]
    pub configurations: Vec<BucketConfigurationRow>,
}
