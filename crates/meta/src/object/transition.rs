//! The move of a version's bytes to another pool. A worker has stored them there under new ids; apply puts the new names in
//! the place of the old ones, if these are still the ones that the worker read. Content, date, ETag, lock: nothing else
//! changes, so nobody needs to be asked.
//!
//! The parts of a multipart object move one by one, each in a command of its own, and the version says at last that it
//! has moved: a worker that dies half way leaves an object that is whole, and the next one goes on with the rest.

use base::ids::BucketId;
use bytes::Bytes;
use prost::Message;

use super::apply::{Halt, Step, done, random_id, refuse};
use super::command::{Body, ObjectVersion, Part, Reason, ShardOutcome};
use super::uploads::part_number;
use crate::group::read_row;
use crate::keys::Key;

/// The lowest feature level at which a shard knows pools.
pub const POOLS_LEVEL_MIN: u32 = 4;

/// `PreconditionFailed` when the version is gone or not what it was.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MoveBody {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    /// Of the version, as its row's key says.
    #[prost(uint64, tag = "3")]
    pub order: u64,
    /// Of the version as it was read.
    #[prost(uint64, tag = "4")]
    pub modified_ms: u64,
    #[prost(uint32, tag = "5")]
    pub pool_before: u32,
    /// 0: the version itself; else a part of its body.
    #[prost(uint32, tag = "6")]
    pub part: u32,
    /// The packed references that `body` takes the place of.
    #[prost(bytes = "bytes", tag = "7")]
    pub chunks_before: Bytes,
    /// The same bytes elsewhere. Absent: no chunk is the version's own (it rides in its row, or its parts have moved).
    #[prost(message, optional, tag = "8")]
    pub body: Option<Body>,
    /// What the version says afterwards; of a part's move, nothing changes yet.
    #[prost(uint32, tag = "9")]
    pub pool: u32,
}

impl Step<'_> {
    pub fn move_body(&mut self, moved: MoveBody) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(moved.bucket);
        self.check_key(bucket, &moved.key)?;
        self.open_bucket(bucket)?;
        let at = Key::Version { bucket, key: moved.key.clone(), order: moved.order };
        let row = read_row::<ObjectVersion>(self.view, &at)?.filter(|row| is_the_one(row, &moved));
        let Some(mut row) = row else {
            return refuse(Reason::PreconditionFailed, "the version was replaced, removed or moved meanwhile");
        };
        let body = row.body.get_or_insert_default();
        if moved.part == 0 {
            self.replace(bucket, body, &moved)?;
            row.attributes.get_or_insert_default().pool = moved.pool;
            self.put_row(bucket, &moved.key, moved.order, &row);
            return Ok(done());
        }
        let upload = random_id(&body.upload)?;
        let at = Key::Part { bucket, key: moved.key.clone(), upload, number: part_number(moved.part)? };
        let Some(mut part) = read_row::<Part>(self.view, &at)? else {
            return refuse(Reason::InvalidPart, format!("the version has no part {}", moved.part));
        };
        self.replace(bucket, part.body.get_or_insert_default(), &moved)?;
        self.changes.put(at.encode(), Bytes::from(part.encode_to_vec()));
        Ok(done())
    }

    fn replace(&mut self, bucket: BucketId, body: &mut Body, moved: &MoveBody) -> Result<(), Halt> {
        if body.chunks != moved.chunks_before {
            return refuse(Reason::PreconditionFailed, "the bytes were moved meanwhile");
        }
        let Some(new) = &moved.body else {
            return match body.chunks.is_empty() {
                true => Ok(()),
                false => refuse(Reason::Invalid, "a move names where the chunks are now"),
            };
        };
        let new = self.check_body(Some(new.clone()))?;
        if new.size != body.size || new.inline.is_some() || body.inline.is_some() || !body.upload.is_empty() {
            return refuse(Reason::Invalid, "a move keeps the size, and moves chunks only");
        }
        self.dropped.body(bucket, Some(body));
        body.chunks = new.chunks;
        Ok(())
    }
}

fn is_the_one(row: &ObjectVersion, moved: &MoveBody) -> bool {
    let pool = row.attributes.as_ref().map_or(0, |attributes| attributes.pool);
    !row.delete_marker
        && row.null_order == 0
        && row.modified_ms == moved.modified_ms
        && pool == moved.pool_before
        && row.body.is_some()
}
