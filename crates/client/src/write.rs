//! Bytes on their way in: cut into chunks while they arrive, stored while more arrive, and committed by one command when
//! all of them are durable.

use base::buffer::AlignedBuf;
use base::buffer_pool::BufferPool;
use base::checksum::crc32c;
use base::plant::{self, Plant};
use base::{CHUNK_SIZE_MAX, KIB};
use bytes::{Bytes, BytesMut};
use meta::chunks::{self, ChunkRef};
use meta::object::command::{
    Attributes, Body, Checksum, Part, Precondition, PutObject, PutPart, ShardCommand, ShardOutcome, Written,
};
use meta::object::transition::MoveBody;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::oneshot;

use crate::buckets::BucketInfo;
use crate::call::{Client, Life};
use crate::error::Error;
use crate::objects::mixed_up;
use crate::read::Position;

/// Objects up to this many bytes ride inside the commit: one round and one flush instead of two.
pub const INLINE_BYTES_MAX: u64 = KIB;
/// Payloads up to this are passed on in the pieces they came in; larger ones are gathered in aligned memory, from
/// which disks write without another copy.
const PIECES_BYTES_MAX: usize = 256 << 10;
/// Chunks of one object that are being stored while more bytes arrive.
const STORES_IN_FLIGHT_MAX: usize = 3;

/// What [`ObjectWriter::finish`] commits besides the bytes.
#[derive(Clone, Debug, Default)]
pub struct FinishPut {
    pub attributes: Attributes,
    pub precondition: Option<Precondition>,
}

#[derive(Clone, Debug, Default)]
pub struct FinishPart {
    /// Upload id as in `Upload::upload`.
    pub upload: Bytes,
    /// 1..=10,000.
    pub number: u32,
    /// MD5 in hex.
    pub etag: String,
    pub checksums: Vec<Checksum>,
}

/// Bytes on their way into the cluster. Nothing is visible before `finish`. Dropping the writer abandons what was
/// stored: it is deleted in the background, or found by the orphan sweep.
pub struct ObjectWriter {
    client: Client,
    life: Arc<Life>,
    bucket: BucketInfo,
    key: Bytes,
    size: u64,
    /// Bytes that were announced, if any: so that a small object takes no buffer of a whole chunk.
    size_hint: Option<u64>,
    filling: Filling,
    stored: Vec<ChunkRef>,
    in_flight: VecDeque<oneshot::Receiver<Result<ChunkRef, Error>>>,
    held: Option<Arc<dyn Send + Sync>>,
}

/// The chunk that is being gathered.
enum Filling {
    Pieces(Vec<Bytes>, usize),
    Aligned(AlignedBuf),
}

impl Filling {
    fn empty() -> Filling {
        Filling::Pieces(Vec::new(), 0)
    }

    fn len(&self) -> usize {
        match self {
            Filling::Pieces(_, len) => *len,
            Filling::Aligned(buffer) => buffer.len(),
        }
    }

    /// Takes bytes up to a full chunk and leaves the rest in `bytes`. `rest` bytes or more are to come, these included.
    fn take(&mut self, bytes: &mut Bytes, rest: usize, buffers: &Arc<BufferPool>) {
        if let Filling::Pieces(pieces, len) = self {
            if *len + bytes.len() <= PIECES_BYTES_MAX {
                *len += bytes.len();
                pieces.push(std::mem::take(bytes));
                return;
            }
            let mut buffer = buffers.take((*len + rest).min(CHUNK_SIZE_MAX));
            for piece in pieces {
                buffer.fill_from(piece);
            }
            *self = Filling::Aligned(buffer);
        }
        if let Filling::Aligned(buffer) = self {
            if buffer.spare() == 0 && buffer.capacity() < CHUNK_SIZE_MAX {
                // More came than was announced.
                let mut larger = buffers.take(CHUNK_SIZE_MAX);
                larger.fill_from(buffer.as_slice());
                *buffer = larger;
            }
            let taken = buffer.fill_from(bytes);
            let _ = bytes.split_to(taken);
        }
    }

    fn into_payload(self) -> Vec<Bytes> {
        match self {
            Filling::Pieces(pieces, _) => pieces,
            Filling::Aligned(buffer) => vec![buffer.freeze()],
        }
    }
}

impl Client {
    /// Starts an object (or part) in `bucket`. `size_hint` (the expected number of bytes, if known) is advisory.
    pub fn write(&self, bucket: &BucketInfo, key: Bytes, size_hint: Option<u64>) -> ObjectWriter {
        ObjectWriter {
            client: self.clone(),
            life: self.life(),
            bucket: bucket.clone(),
            key,
            size: 0,
            size_hint,
            filling: Filling::empty(),
            stored: Vec::new(),
            in_flight: VecDeque::new(),
            held: None,
        }
    }
}

impl ObjectWriter {
    /// Takes bytes; returns when there is room for more (backpressure).
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let taken = self.size - bytes.len() as u64;
            let rest = self.size_hint.map_or(CHUNK_SIZE_MAX as u64, |hint| hint.saturating_sub(taken));
            let rest = (rest.min(CHUNK_SIZE_MAX as u64) as usize).max(bytes.len());
            self.filling.take(&mut bytes, rest, &self.client.shared.env.buffers);
            if self.filling.len() == CHUNK_SIZE_MAX {
                self.dispatch().await?;
            }
        }
        Ok(())
    }

    /// Keeps `held` until nothing of this object is in memory any more, also when the writer is dropped while chunks of
    /// it are still being stored: what bounds a gateway's memory must count them.
    pub fn hold(&mut self, held: Arc<dyn Send + Sync>) {
        self.held = Some(held);
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Appends `range` of a chunk that is stored already; waits when too many are under way.
    pub(crate) async fn push_clone(
        &mut self,
        position: Position,
        chunk: ChunkRef,
        range: Range<u32>,
    ) -> Result<(), Error> {
        if self.filling.len() > 0 {
            self.dispatch().await?;
        }
        if self.in_flight.len() == STORES_IN_FLIGHT_MAX {
            self.collect_one().await?;
        }
        self.size += range.len() as u64;
        let (client, life, bucket) = (self.client.clone(), self.life.clone(), self.bucket.clone());
        self.spawn_store(
            "clone chunk",
            async move { client.clone_chunk(&life, &bucket, &position, chunk, range).await },
        );
        Ok(())
    }

    /// Bytes taken so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Waits until every chunk is durable, then commits the object. Call only when the whole body has arrived and its
    /// signature and checksums have verified.
    pub async fn finish(mut self, finish: FinishPut) -> Result<Written, Error> {
        let body = self.settle().await?;
        let command = PutObject {
            bucket: self.bucket.id,
            key: self.key.clone(),
            body: Some(body),
            attributes: Some(finish.attributes),
            precondition: finish.precondition,
            modified_ms: self.client.wall_ms(),
            version_id: self.client.random_id(),
        };
        match self.commit(ShardCommand::PutObject(command)).await? {
            ShardOutcome::Written(written) => Ok(written),
            _ => Err(mixed_up()),
        }
    }

    /// As `finish`, for a part of an upload.
    pub async fn finish_part(mut self, finish: FinishPart) -> Result<Part, Error> {
        let body = self.settle().await?;
        let part = Part {
            number: finish.number,
            body: Some(body.clone()),
            etag: finish.etag.clone(),
            checksums: finish.checksums.clone(),
            modified_ms: self.client.wall_ms(),
        };
        let command = PutPart {
            bucket: self.bucket.id,
            key: self.key.clone(),
            upload: finish.upload,
            number: finish.number,
            body: Some(body),
            etag: finish.etag,
            checksums: finish.checksums,
            modified_ms: part.modified_ms,
        };
        self.commit(ShardCommand::PutPart(command)).await.map(|_| part)
    }

    /// Names what was stored in the place of what `moved` names.
    pub(crate) async fn finish_move(mut self, moved: MoveBody) -> Result<(), Error> {
        let body = Some(self.settle().await?);
        self.commit(ShardCommand::MoveBody(MoveBody { body, ..moved })).await.map(|_| ())
    }

    /// Starts to store the gathered chunk; waits when too many are under way.
    async fn dispatch(&mut self) -> Result<(), Error> {
        if self.in_flight.len() == STORES_IN_FLIGHT_MAX {
            self.collect_one().await?;
        }
        let payload = std::mem::replace(&mut self.filling, Filling::empty()).into_payload();
        let (client, life, bucket) = (self.client.clone(), self.life.clone(), self.bucket.clone());
        self.spawn_store("store chunk", async move { client.store_chunk(&life, &bucket, payload).await });
        Ok(())
    }

    /// Makes a chunk durable in a task of its own.
    fn spawn_store(
        &mut self,
        name: &'static str,
        store: impl Future<Output = Result<ChunkRef, Error>> + Send + 'static,
    ) {
        let (sender, receiver) = oneshot::channel();
        let (client, held) = (self.client.clone(), self.held.clone());
        self.client.shared.env.spawn(name, async move {
            let stored = store.await;
            drop(held);
            if let Err(Ok(chunk)) = sender.send(stored) {
                // The writer is gone; so nobody will ever commit this chunk.
                client.delete_chunks(vec![chunk.id]).await;
            }
        });
        self.in_flight.push_back(receiver);
    }

    async fn collect_one(&mut self) -> Result<(), Error> {
        let Some(receiver) = self.in_flight.front_mut() else { return Ok(()) };
        // It stays in its place while it is waited for: should the request end meanwhile, the chunk is found there.
        let stored = receiver.await;
        self.in_flight.pop_front();
        self.stored.push(stored.map_err(|_| Error::Unavailable("the node is shutting down".into()))??);
        Ok(())
    }

    /// All bytes durable, as the commit names them.
    async fn settle(&mut self) -> Result<Body, Error> {
        let inline = self.size <= INLINE_BYTES_MAX && self.stored.is_empty() && self.in_flight.is_empty();
        if inline {
            let payload = std::mem::replace(&mut self.filling, Filling::empty()).into_payload();
            let mut bytes = BytesMut::with_capacity(self.size as usize);
            payload.iter().for_each(|piece| bytes.extend_from_slice(piece));
            let bytes = bytes.freeze();
            let inline_crc32c = crc32c(&[], &bytes);
            return Ok(Body { size: self.size, inline: Some(bytes), inline_crc32c, ..Body::default() });
        }
        if self.filling.len() > 0 {
            // In a task of its own, which deletes the chunk when the request is dropped meanwhile.
            self.dispatch().await?;
        }
        while !self.in_flight.is_empty() {
            self.collect_one().await?;
        }
        Ok(Body { size: self.size, chunks: chunks::pack(&self.stored), ..Body::default() })
    }

    async fn commit(&mut self, command: ShardCommand) -> Result<ShardOutcome, Error> {
        // From here on the chunks may be referenced: only a refusal makes them garbage again.
        let stored = std::mem::take(&mut self.stored);
        let outcome = self.client.change_key_in(&self.life, &self.bucket, &self.key, command).await;
        match &outcome {
            Err(Error::OutcomeUnknown(_)) if plant::is(Plant::DeleteEarly) => self.stored = stored,
            Ok(_) | Err(Error::OutcomeUnknown(_)) => {}
            Err(_) => self.stored = stored,
        }
        outcome
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        let stored = std::mem::take(&mut self.stored);
        // Chunks in flight see the closed channel and clean up after themselves; what has come through it already is dealt with here.
        let uncollected = self.in_flight.iter_mut().filter_map(|receiver| {
            receiver.close();
            receiver.try_recv().ok()?.ok()
        });
        let abandoned: Vec<_> = stored.into_iter().chain(uncollected).map(|chunk| chunk.id).collect();
        if !abandoned.is_empty() {
            self.client.delete_in_background(abandoned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::MIB;

    /// Fills as the writer does and answers the chunks.
    fn fill(pieces: &[usize], hint: usize) -> Vec<Vec<u8>> {
        let buffers: Arc<BufferPool> = Arc::default();
        let all: Bytes = (0..pieces.iter().sum::<usize>()).map(|i| (i % 251) as u8).collect::<Vec<u8>>().into();
        let (mut filling, mut chunks, mut rest) = (Filling::empty(), Vec::new(), all);
        let mut taken = 0;
        for len in pieces {
            let mut bytes = rest.split_to(*len);
            while !bytes.is_empty() {
                let before = bytes.len();
                filling.take(&mut bytes, hint.saturating_sub(taken).max(before), &buffers);
                taken += before - bytes.len();
                if filling.len() == CHUNK_SIZE_MAX {
                    chunks.push(std::mem::replace(&mut filling, Filling::empty()).into_payload().concat());
                }
            }
        }
        chunks.push(filling.into_payload().concat());
        chunks
    }

    #[test]
    fn chunks_are_the_same_whatever_was_announced() {
        let mib = MIB as usize;
        let pieces = [100_000, 300_000, mib, 5 * mib, 1];
        let expected = fill(&pieces, usize::MAX >> 1);
        assert_eq!(expected.iter().map(Vec::len).collect::<Vec<_>>(), [4 * mib, 2 * mib + 400_001]);
        for hint in [0, 1, 500_000, 2 * mib, 6 * mib + 400_001] {
            assert_eq!(fill(&pieces, hint), expected, "{hint}");
        }
    }
}
