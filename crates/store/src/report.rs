//! What the engine tells about itself: reports, usage, counters.

use base::ids::{ChunkId, GroupId, OwnerId, PgEpoch};

use crate::identity::DiskIdentity;
use crate::raft_log::RaftLog;

/// What the index knows of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkStat {
    pub id: ChunkId,
    /// Of the payload in bytes.
    pub len: u32,
    /// CRC-64/NVME of the payload.
    pub crc64: u64,
    pub epoch: PgEpoch,
    /// The bytes were found not to verify. `len` and `crc64` are zero when even they are unknown.
    pub damaged: bool,
}

/// What a disk has of some slots, as one number: equal on two disks when they hold the same good chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Digest {
    /// Chunks that are not known to be damaged.
    pub chunks: u64,
    /// Chunks that are.
    pub damaged: u64,
    /// Payload bytes of the good ones.
    pub bytes: u64,
    /// Over id, length and checksum of the good ones, modulo 2^64.
    pub sum: u64,
}

impl Digest {
    pub fn and(self, other: Digest) -> Digest {
        Digest {
            chunks: self.chunks + other.chunks,
            damaged: self.damaged + other.damaged,
            bytes: self.bytes + other.bytes,
            sum: self.sum.wrapping_add(other.sum),
        }
    }
}

/// What a disk knows of an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    Chunk(ChunkStat),
    /// A tombstone.
    Deleted(ChunkId),
}

impl Known {
    pub fn id(&self) -> ChunkId {
        match self {
            Known::Chunk(stat) => stat.id,
            Known::Deleted(id) => *id,
        }
    }
}

/// A verified part of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkData {
    pub stat: ChunkStat,
    /// Where it was asked for, or came along.
    pub owner: Option<OwnerId>,
    /// The bytes of the range that was asked for, cut at the chunk's end.
    pub pieces: Vec<bytes::Bytes>,
    /// The disk was not asked.
    pub from_memory: bool,
}

impl ChunkData {
    /// All pieces as one, without a copy when there is only one.
    pub fn into_bytes(mut self) -> bytes::Bytes {
        if self.pieces.len() == 1 {
            return self.pieces.remove(0);
        }
        self.pieces.concat().into()
    }
}

/// What a damaged place held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DamagedWhat {
    Chunk(ChunkId),
    /// A record of a Raft group's log or hard state.
    Raft(GroupId),
    /// Records that nobody can name any more; this many bytes.
    Unknown {
        len_bytes: u64,
    },
    /// A whole volume is missing.
    MissingVolume,
    /// The engine's own bookkeeping or unused bytes: nothing of a user's was lost.
    Bookkeeping,
    /// One of the two copies of the disk's identity.
    Identity,
}

/// A line of the quarantine list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedRecord {
    /// Incarnation of the volume; 0 for files outside of volumes.
    pub volume: u64,
    /// In the volume, in bytes.
    pub offset: u64,
    pub what: DamagedWhat,
    pub detail: String,
}

/// What opening a disk found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    pub volumes: u64,
    /// Journal volumes that were not read, because their summaries were.
    pub summarised: u64,
    pub batches: u64,
    pub records: u64,
    /// Bytes behind the last whole batch: what a crash left half written, never acknowledged.
    pub torn_bytes: u64,
    pub damaged: Vec<DamagedRecord>,
    /// Groups whose logs cannot be trusted: their peers never vote again.
    pub raft_damaged: Vec<GroupId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskUsage {
    /// What this disk may hold: the size it was given or what the file system has room for, whichever is less.
    pub capacity_bytes: u64,
    /// Taken, counting dead records that compaction has not given back yet.
    pub used_bytes: u64,
    /// Needed by records that still matter.
    pub live_bytes: u64,
    /// Files of this directory outside of the volumes (the key-value store).
    pub other_bytes: u64,
    /// Below 90 %: new data may be placed here.
    pub placement_open: bool,
    /// Below 95 %: puts are taken.
    pub writable: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskState {
    Healthy,
    /// Puts are refused until space comes back; everything else works.
    Full,
    /// A write or flush failed: nothing is written any more, reads go on. The reason.
    Broken(String),
    Closed,
}

/// Counters since the engine was opened, and a few gauges.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EngineStats {
    pub chunks: u64,
    pub tombstones: u64,
    pub volumes: u64,
    pub free_volumes: u64,
    pub raft_groups: u64,
    /// Rounds of the committer that carried records.
    pub batches: u64,
    pub closing_batches: u64,
    /// Flushes of the journal and of bulk volumes.
    pub flushes: u64,
    pub records: u64,
    pub journal_bytes: u64,
    pub bulk_bytes: u64,
    /// Payload bytes copied in memory before they were written.
    pub copied_bytes: u64,
    pub read_bytes: u64,
    pub puts: u64,
    pub gets: u64,
    pub deletes: u64,
    pub conflicts: u64,
    /// Records found damaged, by recovery, reads or scrubs.
    pub damaged: u64,
    /// Journal volumes that are kept because of it: see [`crate::Engine::release_damage`].
    pub volumes_with_damage: u64,
    pub compacted_volumes: u64,
    /// Bytes rewritten by compaction.
    pub compacted_bytes: u64,
    pub scrub_passes: u64,
    pub scrubbed_bytes: u64,
    /// Memory that contents of chunks take now.
    pub cached_bytes: u64,
    /// Looks for a chunk there that found it, and that did not.
    pub cache_hits: u64,
    pub cache_misses: u64,
}

/// What a scrub pass read and found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubReport {
    pub records: u64,
    pub bytes: u64,
    pub damaged: u64,
}

/// What an offline inspection found.
#[derive(Debug)]
pub struct InspectReport {
    pub identity: DiskIdentity,
    pub recovery: RecoveryReport,
    /// Every chunk that exists, in id order; `damaged` when its bytes do not verify.
    pub chunks: Vec<ChunkStat>,
    pub tombstones: u64,
    /// Every group here: its verified log, or why it cannot be trusted.
    pub raft: Vec<(GroupId, Result<RaftLog, String>)>,
    /// All damage, that of recovery included.
    pub damaged: Vec<DamagedRecord>,
    /// Payload bytes read and verified.
    pub verified_bytes: u64,
}
