//! Bytes on their way in: cut into chunks while they arrive, stored on every member of a drawn placement group, and
//! committed by one command when all of them are durable.

use base::buffer::AlignedBuf;
use base::checksum::{Crc64, crc32c};
use base::env::{BoxFuture, Random};
use base::ids::{ChunkId, PoolId};
use base::{CHUNK_SIZE_MAX, KIB};
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use meta::chunks::{self, ChunkRef};
use meta::map::command::Acknowledgement;
use meta::object::command::{
    Attributes, Body, Checksum, Part, Precondition, PutObject, PutPart, ShardCommand, ShardOutcome, Written,
};
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::oneshot;

use crate::buckets::BucketInfo;
use crate::call::{Backoff, Client};
use crate::error::Error;
use crate::map::{Member, Placement};
use crate::objects::mixed_up;
use crate::wire::{Ask, DeleteChunks, Failure, PutChunk, Told};

/// Objects up to this many bytes ride inside the commit: one round and one flush instead of two.
pub const INLINE_BYTES_MAX: u64 = KIB;
/// Payloads up to this are passed on in the pieces they came in; larger ones are gathered in aligned memory, from
/// which disks write without another copy.
const PIECES_BYTES_MAX: usize = 256 << 10;
/// Chunks of one object that are being stored while more bytes arrive.
const STORES_IN_FLIGHT_MAX: usize = 3;
/// Chunks named in one delete request.
const DELETES_MAX: usize = 1024;
/// Placement groups that are tried for one chunk.
const STORE_ATTEMPTS_MAX: usize = 8;

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
    bucket: BucketInfo,
    key: Bytes,
    size: u64,
    filling: Filling,
    stored: Vec<ChunkRef>,
    in_flight: VecDeque<oneshot::Receiver<Result<ChunkRef, Error>>>,
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

    /// Takes bytes up to a full chunk and leaves the rest in `bytes`.
    fn take(&mut self, bytes: &mut Bytes) {
        if let Filling::Pieces(pieces, len) = self {
            if *len + bytes.len() <= PIECES_BYTES_MAX {
                *len += bytes.len();
                pieces.push(std::mem::take(bytes));
                return;
            }
            let mut buffer = AlignedBuf::with_capacity(CHUNK_SIZE_MAX);
            for piece in pieces {
                buffer.fill_from(piece);
            }
            *self = Filling::Aligned(buffer);
        }
        if let Filling::Aligned(buffer) = self {
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
    pub fn write(&self, bucket: &BucketInfo, key: Bytes, _size_hint: Option<u64>) -> ObjectWriter {
        ObjectWriter {
            client: self.clone(),
            bucket: bucket.clone(),
            key,
            size: 0,
            filling: Filling::empty(),
            stored: Vec::new(),
            in_flight: VecDeque::new(),
        }
    }
}

impl ObjectWriter {
    /// Takes bytes; returns when there is room for more (backpressure).
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            self.filling.take(&mut bytes);
            if self.filling.len() == CHUNK_SIZE_MAX {
                self.dispatch().await?;
            }
        }
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

    /// Starts to store the gathered chunk; waits when too many are under way.
    async fn dispatch(&mut self) -> Result<(), Error> {
        if self.in_flight.len() == STORES_IN_FLIGHT_MAX {
            self.collect_one().await?;
        }
        let payload = std::mem::replace(&mut self.filling, Filling::empty()).into_payload();
        let (sender, receiver) = oneshot::channel();
        let client = self.client.clone();
        let bucket = self.bucket.clone();
        self.client.shared.env.spawn("store chunk", async move {
            let result = client.store_chunk(&bucket, payload).await;
            if let Err(Ok(chunk)) = sender.send(result) {
                // The writer is gone; so nobody will ever commit this chunk.
                client.delete_chunks(vec![chunk]).await;
            }
        });
        self.in_flight.push_back(receiver);
        Ok(())
    }

    async fn collect_one(&mut self) -> Result<(), Error> {
        let Some(receiver) = self.in_flight.pop_front() else { return Ok(()) };
        let chunk = receiver.await.map_err(|_| Error::Unavailable("the node is shutting down".into()))??;
        self.stored.push(chunk);
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
        let outcome = self.client.change_key(&self.bucket, &self.key, command).await;
        match &outcome {
            Ok(_) | Err(Error::OutcomeUnknown(_)) => {}
            Err(_) => self.stored = stored,
        }
        outcome
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        // Chunks in flight see the closed channel and clean up after themselves.
        let abandoned = std::mem::take(&mut self.stored);
        if !abandoned.is_empty() {
            let client = self.client.clone();
            self.client
                .shared
                .env
                .spawn("delete abandoned chunks", async move { client.delete_chunks(abandoned).await });
        }
    }
}

impl Client {
    /// Makes one chunk durable on a drawn placement group. What cannot be stored there goes elsewhere under a new id.
    async fn store_chunk(&self, bucket: &BucketInfo, payload: Vec<Bytes>) -> Result<ChunkRef, Error> {
        let len = payload.iter().map(Bytes::len).sum::<usize>();
        assert!(len > 0 && len <= CHUNK_SIZE_MAX, "a chunk holds between 1 byte and 4 MiB");
        let mut crc = Crc64::new();
        payload.iter().for_each(|piece| crc.update(piece));
        let crc64 = crc.finish();
        let mut backoff = Backoff::for_operation(&self.shared.env);
        let mut why = String::from("no placement group can take data");
        let mut full = 0;
        for attempt in 0..STORE_ATTEMPTS_MAX {
            if attempt > 0 {
                if !backoff.wait(&self.shared.env).await {
                    break;
                }
                self.refresh_map().await?;
            }
            let Some((id, placement)) = self.draw(bucket) else { continue };
            let copy = Copies { id, owner: bucket.id, crc64, payload: &payload };
            match self.store_copies(bucket, &placement, copy).await {
                Ok(()) => return Ok(ChunkRef { id, len: len as u32, crc64 }),
                Err((failure, detail)) => {
                    full += usize::from(failure == Failure::Full);
                    why = detail;
                    self.delete_copies(id, &placement);
                }
            }
        }
        Err(if full > 0 { Error::Full } else { Error::Unavailable(format!("no chunk could be stored: {why}")) })
    }

    fn draw(&self, bucket: &BucketInfo) -> Option<(ChunkId, Placement)> {
        let map = self.map();
        let pool = map.bucket(&bucket.name).map_or(1, |entry| entry.pool);
        let pool = PoolId(u8::try_from(pool).ok()?);
        let random: &dyn Random = &*self.shared.env.random;
        let (slot, placement) = map.draw(pool, || random.next_u64() as u32)?;
        let (session, counter) = self.next_chunk_number().ok()?;
        Some((ChunkId { pool, slot, session, counter }, placement))
    }

    /// Stores on all members in parallel and judges the answers by the bucket's acknowledgement rule.
    async fn store_copies(
        &self,
        bucket: &BucketInfo,
        placement: &Placement,
        copy: Copies<'_>,
    ) -> Result<(), (Failure, String)> {
        let targets: Vec<&Member> = placement.members.iter().filter(|member| member.usable).collect();
        let stores = targets.iter().map(|member| self.store_copy(member, placement, &copy));
        let mut stored = 0;
        let mut failed = None;
        for result in join_all(stores).await {
            match result {
                Ok(()) => stored += 1,
                Err(error) => failed = Some(error),
            }
        }
        let majority = placement.members.len() / 2 + 1;
        let needed = match self.map().acknowledgement(base::ids::BucketId(bucket.id)) {
            Acknowledgement::All => targets.len().max(majority),
            Acknowledgement::Majority => majority,
        };
        if stored >= needed {
            return Ok(());
        }
        Err(failed.unwrap_or((Failure::Busy, format!("only {stored} of {needed} copies could be stored"))))
    }

    async fn store_copy(
        &self,
        member: &Member,
        placement: &Placement,
        copy: &Copies<'_>,
    ) -> Result<(), (Failure, String)> {
        let ask = Ask::PutChunk(PutChunk {
            disk: Bytes::copy_from_slice(&member.disk.0.to_be_bytes()),
            id: Bytes::copy_from_slice(&copy.id.to_bytes()),
            owner: copy.owner,
            epoch: placement.epoch.0,
            crc64: copy.crc64,
        });
        match self.ask_node(member.node, ask, copy.payload.to_vec()).await?.0 {
            Told::Chunk(done) if done.epoch == placement.epoch.0 => Ok(()),
            _ => Err((Failure::StalePlacement, format!("node {} counts under another epoch", member.node))),
        }
    }

    /// Writes tombstones for chunks that nobody will name; best effort: the orphan sweep finds the rest.
    pub(crate) async fn delete_chunks(&self, abandoned: Vec<ChunkRef>) {
        let map = self.map();
        for chunk in abandoned {
            if let Some(placement) = map.placement(chunk.id) {
                for delete in self.deletes(chunk.id, &placement) {
                    delete.await;
                }
            }
        }
    }

    /// Writes tombstones on every member that is in service, and fails unless a majority of each group has them.
    pub async fn bury_chunks(&self, ids: &[ChunkId]) -> Result<(), Error> {
        let map = self.map();
        let mut by_disk: BTreeMap<Member, Vec<u8>> = BTreeMap::new();
        for id in ids {
            let Some(placement) = map.placement(*id) else { continue };
            let members = placement.members.iter().chain(&placement.members_before);
            for member in members.filter(|member| member.usable) {
                by_disk.entry(*member).or_default().extend_from_slice(&id.to_bytes());
            }
            let usable = placement.members.iter().filter(|member| member.usable).count();
            if usable <= placement.members.len() / 2 {
                return Err(Error::Unavailable(format!("chunk {id} has no majority of its disks in service")));
            }
        }
        for (member, ids) in by_disk {
            for ids in ids.chunks(DELETES_MAX * ChunkId::LEN) {
                let disk = Bytes::copy_from_slice(&member.disk.0.to_be_bytes());
                let ask = Ask::DeleteChunks(DeleteChunks { disk, ids: Bytes::copy_from_slice(ids) });
                self.ask_node(member.node, ask, Vec::new()).await.map_err(|(_, why)| Error::Unavailable(why))?;
            }
        }
        Ok(())
    }

    fn delete_copies(&self, id: ChunkId, placement: &Placement) {
        for delete in self.deletes(id, placement) {
            self.shared.env.spawn("delete a partial store", delete);
        }
    }

    fn deletes(&self, id: ChunkId, placement: &Placement) -> Vec<BoxFuture<()>> {
        let members = placement.members.iter().chain(&placement.members_before);
        members
            .map(|member| {
                let (client, member) = (self.clone(), *member);
                let delete: BoxFuture<()> = Box::pin(async move {
                    let disk = Bytes::copy_from_slice(&member.disk.0.to_be_bytes());
                    let ids = Bytes::copy_from_slice(&id.to_bytes());
                    let _ = client.ask_node(member.node, Ask::DeleteChunks(DeleteChunks { disk, ids }), vec![]).await;
                });
                delete
            })
            .collect()
    }
}

/// One chunk on its way to all its members.
struct Copies<'a> {
    id: ChunkId,
    owner: u64,
    crc64: u64,
    payload: &'a [Bytes],
}
