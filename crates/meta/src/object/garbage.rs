//! Chunks that no key names any more wait in garbage rows until a worker has written their tombstones.

use base::ids::{BucketId, GroupId, LogIndex, OwnerId};
use bytes::{Bytes, BytesMut};
use prost::Message;

use super::command::{Body, Garbage, ObjectVersion, Part};
use crate::chunks::{self, ChunkRef};
use crate::group::decode_row;
use crate::keys::Key;
use crate::view::{Changes, ViewError};

/// A row takes what a command drops until it is this long, so that a large object becomes few rows.
const GARBAGE_ROW_BYTES: usize = 16_384 * ChunkRef::LEN;
/// Rows of one command: its log index, shifted by this, numbers them. A command drops at most the parts of two uploads
/// (those that Complete does not name, and those of the object that it replaces) or one step of `DropBucket`; each part
/// may fill a row of its own.
const ROWS_BITS: u32 = 16;
const _: () = assert!(1 << ROWS_BITS > 4 * super::PART_NUMBER_MAX as u64);

/// The highest sequence that a garbage row written by the entries up to `index` can have. (Sequences are not log
/// positions themselves: one entry may write several rows.)
pub fn garbage_sequence_max(index: LogIndex) -> u64 {
    sequence(index, (1 << ROWS_BITS) - 1)
}

fn sequence(index: LogIndex, number: u64) -> u64 {
    (index.0 << ROWS_BITS) | number
}

/// What one command has dropped so far. All of it is of one bucket.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    owner: BucketId,
    open: BytesMut,
    full: Vec<Bytes>,
}

impl Dropped {
    /// Drops the chunks of `body` (those of its parts lie in their own rows).
    pub fn body(&mut self, bucket: BucketId, body: Option<&Body>) {
        let Some(body) = body.filter(|body| !body.chunks.is_empty()) else {
            return;
        };
        assert!(self.is_empty() || self.owner == bucket, "one command drops chunks of one bucket");
        self.owner = bucket;
        if !self.open.is_empty() && self.open.len() + body.chunks.len() > GARBAGE_ROW_BYTES {
            self.full.push(self.open.split().freeze());
        }
        self.open.extend_from_slice(&body.chunks);
    }

    fn is_empty(&self) -> bool {
        self.full.is_empty() && self.open.is_empty()
    }

    /// Writes the rows. Their sequence is made of the log index, so it rises and no counter is kept.
    pub fn finish(mut self, group: GroupId, index: LogIndex, changes: &mut Changes) {
        if !self.open.is_empty() {
            self.full.push(self.open.freeze());
        }
        assert!(self.full.len() < 1 << ROWS_BITS, "a command drops at most the parts of a bounded step");
        for (number, chunks) in self.full.into_iter().enumerate() {
            let sequence = sequence(index, number as u64);
            let row = Garbage { sequence: 0, owner: self.owner.0, chunks };
            changes.put(Key::Garbage { group, sequence }.encode(), Bytes::from(row.encode_to_vec()));
        }
    }
}

/// A chunk that a row names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedChunk {
    pub chunk: ChunkRef,
    /// The owner domain that the chunk's record must carry.
    pub owner: OwnerId,
    /// Named only by the garbage queue: it may be gone already, in part or everywhere.
    pub garbage: bool,
}

/// The chunks that a row of the key-value names, whatever row it is. For the offline check and the orphan sweep.
pub fn references(key: &[u8], value: &Bytes) -> Result<Vec<NamedChunk>, ViewError> {
    let parsed = Key::decode(key).map_err(|error| ViewError::bad_row(key, error))?;
    let value = Some(value.clone());
    let (owner, packed, garbage) = match parsed {
        Key::Version { bucket, .. } => {
            let row = decode_row::<ObjectVersion>(key, value)?.unwrap_or_default();
            (OwnerId::from(bucket), row.body.unwrap_or_default().chunks, false)
        }
        Key::Part { bucket, .. } => {
            let row = decode_row::<Part>(key, value)?.unwrap_or_default();
            (OwnerId::from(bucket), row.body.unwrap_or_default().chunks, false)
        }
        Key::Garbage { .. } => {
            let row = decode_row::<Garbage>(key, value)?.unwrap_or_default();
            (OwnerId(row.owner), row.chunks, true)
        }
        _ => return Ok(Vec::new()),
    };
    let chunks = chunks::unpack(&packed).map_err(|error| ViewError::bad_row(key, error))?;
    Ok(chunks.into_iter().map(|chunk| NamedChunk { chunk, owner, garbage }).collect())
}
