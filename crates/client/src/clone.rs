//! Server-side copies: the chunks of an object under new ids, made by the nodes whose disks hold them. No byte passes
//! through the client.
//!
//! A clone lies in the placement group of its source, so that every member makes it from its own copy. Where that fails
//! (the group moves, a member lacks the chunk or does not serve, the copy is for another pool) the bytes are read and
//! stored like any others.

use base::checksum::Crc64;
use base::ids::ChunkId;
use meta::chunks::{self, ChunkRef};
use meta::object::command::{Body, ObjectVersion};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::buckets::BucketInfo;
use crate::call::{Backoff, Client, Life};
use crate::copies::{Content, Halt, NewCopy};
use crate::error::Error;
use crate::read::{Position, Source};
use crate::write::ObjectWriter;

/// Part rows fetched at once.
const PART_PAGE: u32 = 64;

impl ObjectWriter {
    /// Appends `range` of a version that `head` answered, without moving its bytes where that is possible.
    pub async fn copy_from(
        &mut self,
        bucket: &BucketInfo,
        source: &ObjectVersion,
        range: Range<u64>,
    ) -> Result<(), Error> {
        let source = Arc::new(Source { bucket: bucket.clone(), object: source.clone() });
        let Source { bucket, object } = &*source;
        let body = object.body.clone().unwrap_or_default();
        if body.upload.is_empty() {
            return self.copy_body(&source, 0, &body, &range, 0).await;
        }
        let mut start = 0;
        let mut after = 0;
        for parts in body.parts.chunks(PART_PAGE as usize) {
            let client = self.client().clone();
            let page = client.list_parts(bucket, &object.key, &body.upload, after, PART_PAGE).await?;
            for part in parts {
                let row = page.parts.iter().find(|row| row.number == part.number).and_then(|row| row.body.as_ref());
                let row = row.ok_or_else(|| {
                    Error::Unavailable("the source was replaced while it was copied; nothing was changed".into())
                })?;
                self.copy_body(&source, part.number, row, &range, start).await?;
                start += part.size;
                after = part.number;
            }
        }
        Ok(())
    }

    /// What of `body`, which is that of a part (0: of the object) and begins at `start` of the object, lies in `range`.
    pub(crate) async fn copy_body(
        &mut self,
        source: &Arc<Source>,
        part: u32,
        body: &Body,
        range: &Range<u64>,
        start: u64,
    ) -> Result<(), Error> {
        if let Some(inline) = &body.inline {
            let within = overlap(range, start, body.size);
            return self.write(inline.slice(within.start as usize..within.end as usize)).await;
        }
        let key = &source.object.key;
        let unreadable = |_| Error::Damaged(format!("{}: the list of chunks is cut short", key.escape_ascii()));
        let mut start = start;
        for (index, chunk) in chunks::unpack(&body.chunks).map_err(unreadable)?.into_iter().enumerate() {
            let within = overlap(range, start, u64::from(chunk.len));
            if !within.is_empty() {
                let position = Position { source: source.clone(), part, index };
                self.push_clone(position, chunk, within.start as u32..within.end as u32).await?;
            }
            start += u64::from(chunk.len);
        }
        Ok(())
    }
}

/// What of the `len` bytes from `start` on lies in `range`, counted from `start`.
fn overlap(range: &Range<u64>, start: u64, len: u64) -> Range<u64> {
    let from = range.start.saturating_sub(start).min(len);
    let to = range.end.saturating_sub(start).min(len);
    from..to.max(from)
}

impl Client {
    /// Makes `range` of a chunk durable under a new id.
    pub(crate) async fn clone_chunk(
        &self,
        life: &Life,
        bucket: &BucketInfo,
        position: &Position,
        source: ChunkRef,
        range: Range<u32>,
    ) -> Result<ChunkRef, Error> {
        if let Some(made) = self.try_clone(life, bucket, source, range.clone()).await? {
            return Ok(made);
        }
        let whole = range == (0..source.len);
        let payload = self.read_chunk(&source, range, position).await?;
        if whole {
            let mut crc = Crc64::new();
            payload.iter().for_each(|piece| crc.update(piece));
            if crc.finish() != source.crc64 {
                let why = format!("chunk {} does not match the checksum of its writer", source.id);
                return Err(Error::Damaged(why));
            }
        }
        self.store_chunk(life, bucket, payload).await
    }

    /// `None` when the disks could not make it.
    async fn try_clone(
        &self,
        life: &Life,
        bucket: &BucketInfo,
        source: ChunkRef,
        range: Range<u32>,
    ) -> Result<Option<ChunkRef>, Error> {
        let map = self.map();
        let placement = map.placement(source.id).filter(|_| u32::from(source.id.pool.0) == bucket.pool);
        let Some(placement) = placement.filter(|placement| !placement.closed) else { return Ok(None) };
        // With a member out of service a clone would have fewer copies than a chunk that is stored anew elsewhere.
        if !placement.members.iter().all(|member| member.usable) {
            return Ok(None);
        }
        let (session, counter) = life.next_chunk_number()?;
        let id = ChunkId { session, counter, ..source.id };
        let whole = range == (0..source.len);
        let crc64 = if whole { OnceLock::from(source.crc64) } else { OnceLock::new() };
        let len = range.len() as u32;
        let content = Content::Clone { from: source.id, range, crc64 };
        let copy = Arc::new(NewCopy { id, owner: bucket.id, content });
        let deadline = Backoff::for_operation(&self.shared.env).deadline();
        match self.store_copies(bucket, &placement, copy.clone(), deadline).await {
            Ok(()) => Ok(copy.crc64().map(|crc64| ChunkRef { id, len, crc64 })),
            Err(Halt::Elsewhere(failure, why)) => {
                tracing::debug!(chunk = %source.id, ?failure, why, "a chunk is copied through the client");
                self.delete_in_background(vec![id]);
                Ok(None)
            }
            Err(Halt::Nowhere(why)) => {
                self.delete_in_background(vec![id]);
                Err(Error::Unavailable(why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_to_each_chunk() {
        let chunks = [(0, 10), (10, 10), (20, 5)];
        let of = |range: Range<u64>| -> Vec<Range<u64>> {
            chunks.iter().map(|(start, len)| overlap(&range, *start, *len)).collect()
        };
        assert_eq!(of(0..25), [0..10, 0..10, 0..5]);
        assert_eq!(of(5..15), [5..10, 0..5, 0..0]);
        assert_eq!(of(12..13), [10..10, 2..3, 0..0]);
        assert_eq!(of(20..25), [10..10, 10..10, 0..5]);
    }
}
