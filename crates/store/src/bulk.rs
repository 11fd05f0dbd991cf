//! Large payloads: written straight from the caller's buffers into a bulk volume, several at a time; flushed
//! together; then named by locators in the journal.

use base::CHUNK_SIZE_MAX;
use base::buffer::{BLOCK, is_aligned};
use base::buffer_pool::BufferPool;
use base::checksum::{Crc32c, crc32c};
use base::codec::Writer;
use base::plant::{self, Plant};
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::errors::StoreError;
use crate::format::Seed;
use crate::format::batch::RecordIn;
use crate::format::record::{self, CRC_BLOCK, Kind, Locator, RecordHeader};
use crate::format::volume::VolumeKind;
use crate::index::{VolumeNumber, bulk_len};
use crate::inner::{Inner, count};
use crate::queue::{Outcome, Place, Request};
use crate::round::judge_put;
use crate::volume_file::VolumeFile;

/// Large payloads in flight at once.
const SLOTS: usize = 8;
/// What background work writes before it flushes. A flush waits for whatever the device has been given by then, the flush
/// of a user as well.
const BACKGROUND_BYTES: usize = 1 << 20;
const _: () = assert!(
    record::HEADER_LEN + record::table_len(CHUNK_SIZE_MAX) <= BLOCK,
    "the block checksums of the largest chunk fit into its header block"
);

type Answer = Result<Outcome, StoreError>;

struct Finished {
    file: Arc<VolumeFile>,
    request: Request,
    reply: oneshot::Sender<Answer>,
    background: bool,
}

pub struct Bulk {
    slots: Arc<Semaphore>,
    active: tokio::sync::Mutex<Option<VolumeNumber>>,
    /// Written, to be flushed. `None` once nobody flushes any more.
    finished: Mutex<Option<Vec<Finished>>>,
    wake: Notify,
}

/// A large chunk on its way to the disk.
pub struct LargeChunk {
    /// Of kind `Locator`.
    pub header: RecordHeader,
    pub len: u32,
    pub payload: Vec<Bytes>,
    pub moved_from: Option<Place>,
}

impl Bulk {
    pub fn new() -> Bulk {
        Bulk {
            slots: Arc::new(Semaphore::new(SLOTS)),
            active: tokio::sync::Mutex::new(None),
            finished: Mutex::new(Some(Vec::new())),
            wake: Notify::new(),
        }
    }

    fn finished(&self) -> MutexGuard<'_, Option<Vec<Finished>>> {
        self.finished.lock().expect("no one panics while holding the list")
    }

    /// The bulk volume to go on with after a restart.
    pub async fn resume(&self, number: Option<VolumeNumber>) {
        *self.active.lock().await = number;
    }
}

/// Stores a large chunk. Once begun it runs to its end, also when the caller goes away.
pub async fn store(inner: &Arc<Inner>, chunk: LargeChunk, background: bool) -> Answer {
    let slot = inner.bulk.slots.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
    if chunk.moved_from.is_none() {
        // Who waited long for an answer has asked again meanwhile: the first one's bytes may be there by now.
        let judged = judge_put(&inner.shared().state, chunk.header.chunk_id(), chunk.len, chunk.header.check);
        if judged != Ok(Outcome::Done) {
            return judged;
        }
    }
    let (reply, answer) = oneshot::channel();
    let task_inner = inner.clone();
    inner.env.spawn("store bulk write", async move {
        write(&task_inner, chunk, reply, background).await;
        drop(slot);
    });
    answer.await.map_err(|_| StoreError::Closed)?
}

async fn write(inner: &Arc<Inner>, chunk: LargeChunk, reply: oneshot::Sender<Answer>, background: bool) {
    let written = match allocate(inner, chunk.len).await {
        Ok((number, file, offset)) => {
            let placed = place(inner, chunk, number, &file, offset, background).await;
            placed.map(|request| (file, request))
        }
        Err(error) => Err(error),
    };
    match written {
        Ok((file, request)) => {
            let mut finished = inner.bulk.finished();
            let Some(list) = &mut *finished else {
                drop(reply.send(Err(StoreError::Closed)));
                return;
            };
            list.push(Finished { file, request, reply, background });
            drop(finished);
            inner.bulk.wake.notify_one();
        }
        Err(error) => drop(reply.send(Err(error))),
    }
}

/// Gives the chunk its own place in the active bulk volume, or in a new one.
async fn allocate(inner: &Arc<Inner>, len: u32) -> Result<(VolumeNumber, Arc<VolumeFile>, u64), StoreError> {
    let mut active = inner.bulk.active.lock().await;
    let need = bulk_len(len);
    if let Some(number) = *active {
        let mut shared = inner.shared();
        let file = shared.files.get(&number).cloned();
        if let (Some(file), Some(volume)) = (file, shared.state.volumes.get_mut(&number)) {
            if volume.end + need <= inner.volume_size {
                let offset = volume.end;
                volume.end += need;
                volume.pending += 1;
                return Ok((number, file, offset));
            }
            volume.sealed = true;
        }
        *active = None;
    }
    let (number, file) = inner.create_volume(VolumeKind::Bulk)?;
    let mut shared = inner.shared();
    let volume = shared.state.volumes.get_mut(&number).expect("just made, and not sealed");
    volume.end = need;
    volume.pending = 1;
    *active = Some(number);
    Ok((number, file, 0))
}

/// Writes header block and payload; the locator that will make them a chunk.
async fn place(
    inner: &Inner,
    chunk: LargeChunk,
    number: VolumeNumber,
    file: &VolumeFile,
    offset: u64,
    background: bool,
) -> Result<Request, StoreError> {
    let (pieces, copied) = aligned(&chunk.payload, &inner.env.buffers);
    count(&inner.counters.copied_bytes, copied);
    let payload_header = RecordHeader { kind: Kind::Chunk, payload_len: chunk.len, ..chunk.header };
    let (block, header_crc) = header_block(file.seed, offset, payload_header, &pieces, &inner.env.buffers);
    let mut out = vec![block];
    out.extend(pieces);
    let written = match background {
        true => place_gently(inner, file, offset, out).await,
        false => place_all(inner, file, offset, out).await,
    };
    if let Err(error) = written {
        if let Some(volume) = inner.shared().state.volumes.get_mut(&number) {
            volume.pending -= 1;
        }
        return Err(error);
    }
    count(&inner.counters.bulk_bytes, bulk_len(chunk.len));
    let locator = Locator { incarnation: u64::from(number), offset, len: chunk.len, header_crc };
    let record = RecordIn::new(chunk.header, locator.encode());
    let (len, crc64) = (chunk.len, chunk.header.check);
    Ok(Request::Store { record, len, crc64, moved_from: chunk.moved_from, bulk: Some(number) })
}

async fn place_all(inner: &Inner, file: &VolumeFile, offset: u64, out: Vec<Bytes>) -> Result<(), StoreError> {
    let written = file.place(offset, out).await;
    written.map_err(|error| inner.write_failed("writing a bulk volume", &error))
}

/// Writes and flushes in turn. The end is left to the flush of the whole.
async fn place_gently(inner: &Inner, file: &VolumeFile, mut offset: u64, out: Vec<Bytes>) -> Result<(), StoreError> {
    let mut parts = out.into_iter().flat_map(parts_of).peekable();
    while parts.peek().is_some() {
        let (mut some, mut len) = (Vec::new(), 0);
        while let Some(part) = parts.next_if(|part| len + part.len() <= BACKGROUND_BYTES + BLOCK) {
            len += part.len();
            some.push(part);
        }
        place_all(inner, file, offset, some).await?;
        offset += len as u64;
        if parts.peek().is_some() {
            count(&inner.counters.flushes, 1);
            let done = file.flush_in_background().await;
            done.map_err(|error| inner.poison(format!("flushing {}: {error}", file.name)))?;
        }
    }
    Ok(())
}

/// A piece in parts of at most [`BACKGROUND_BYTES`]: whole blocks, as the piece is.
fn parts_of(piece: Bytes) -> impl Iterator<Item = Bytes> {
    let parts = piece.len().div_ceil(BACKGROUND_BYTES);
    (0..parts).map(move |n| piece.slice(n * BACKGROUND_BYTES..piece.len().min((n + 1) * BACKGROUND_BYTES)))
}

/// The payload in pieces that direct I/O takes, padded with zeroes to whole blocks; and how many bytes were copied.
fn aligned(payload: &[Bytes], buffers: &Arc<BufferPool>) -> (Vec<Bytes>, u64) {
    let len: usize = payload.iter().map(Bytes::len).sum();
    // All but the end in place: whole blocks of the last piece, and the rest padded.
    let whole = payload.split_last().filter(|(last, others)| {
        (last.as_ptr() as usize).is_multiple_of(BLOCK) && others.iter().all(|piece| is_aligned(piece))
    });
    if let Some((last, others)) = whole {
        let kept = last.len() - last.len() % BLOCK;
        let mut pieces = others.to_vec();
        if kept > 0 {
            pieces.push(last.slice(..kept));
        }
        let rest = &last[kept..];
        if !rest.is_empty() {
            let mut buffer = buffers.take(rest.len());
            buffer.fill_from(rest);
            pieces.push(buffer.freeze_padded());
        }
        return (pieces, rest.len() as u64);
    }
    let mut buffer = buffers.take(len);
    for piece in payload {
        buffer.fill_from(piece);
    }
    (vec![buffer.freeze_padded()], len as u64)
}

/// The block in front of a large payload: record header, block checksums, zeroes. Each block checksum covers the
/// padding, too; `table_crc` covers everything behind the header.
fn header_block(
    seed: Seed,
    offset: u64,
    header: RecordHeader,
    pieces: &[Bytes],
    buffers: &Arc<BufferPool>,
) -> (Bytes, u32) {
    let mut buffer = buffers.take(BLOCK);
    buffer.set_len(BLOCK);
    let block = buffer.as_mut_slice();
    block.fill(0);
    let table = table_of_pieces(seed, &header.id, pieces);
    block[record::HEADER_LEN..record::HEADER_LEN + table.len()].copy_from_slice(&table);
    let table_crc = crc32c(&[], &block[record::HEADER_LEN..]);
    let encoded = RecordHeader { table_crc, ..header }.encode(seed, offset);
    block[..record::HEADER_LEN].copy_from_slice(&encoded);
    let header_crc = u32::from_le_bytes([encoded[60], encoded[61], encoded[62], encoded[63]]);
    (buffer.freeze(), header_crc)
}

/// The block checksums of a payload in pieces.
fn table_of_pieces(seed: Seed, id: &[u8; 16], pieces: &[Bytes]) -> Vec<u8> {
    let mut table = Vec::with_capacity(BLOCK);
    let (mut number, mut filled) = (0, 0);
    let mut crc = Crc32c::new(&seed.block(id, number));
    for piece in pieces {
        let mut rest = piece.as_ref();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(CRC_BLOCK - filled));
            crc.update(part);
            filled += part.len();
            rest = after;
            if filled == CRC_BLOCK {
                (number, filled) = (number + 1, 0);
                let done = std::mem::replace(&mut crc, Crc32c::new(&seed.block(id, number)));
                table.put_u32(done.finish());
            }
        }
    }
    if filled > 0 {
        table.put_u32(crc.finish());
    }
    table
}

/// Flushes what was written and hands the locators to the committer. A journal round never waits for this.
pub async fn run_flusher(inner: Arc<Inner>) {
    loop {
        let finished = inner.bulk.finished().as_mut().map(std::mem::take).unwrap_or_default();
        if finished.is_empty() {
            tokio::select! {
                biased;
                () = inner.bulk.wake.notified() => continue,
                () = inner.shutdown.wait() => break,
            }
        }
        let flushed = flush_all(&inner, &finished).await;
        for one in finished {
            hand_over(&inner, one, flushed.clone()).await;
        }
    }
    let late = inner.bulk.finished().take().unwrap_or_default();
    for one in late {
        let _ = one.reply.send(Err(StoreError::Closed));
    }
    // The last one who may bring locators.
    inner.queue.close();
}

/// Waits until no payload is in flight; none can be begun after.
pub async fn drain(inner: &Inner) {
    let all = inner.bulk.slots.acquire_many(SLOTS as u32).await;
    inner.bulk.slots.close();
    drop(all);
}

async fn flush_all(inner: &Inner, finished: &[Finished]) -> Result<(), StoreError> {
    let mut flushed: Vec<&Arc<VolumeFile>> = Vec::new();
    for one in finished {
        if flushed.iter().any(|file| file.name == one.file.name) || plant::is(Plant::SkipBulkFlush) {
            continue;
        }
        count(&inner.counters.flushes, 1);
        // No room at a flush means that written bytes are gone: as final as any other failure.
        let done = one.file.flush().await;
        done.map_err(|error| inner.poison(format!("flushing {}: {error}", one.file.name)))?;
        flushed.push(&one.file);
    }
    Ok(())
}

async fn hand_over(inner: &Inner, one: Finished, flushed: Result<(), StoreError>) {
    let queued = match flushed {
        Ok(()) => inner.queue.push(one.request, one.background).await,
        Err(error) => Err(error),
    };
    match queued {
        Ok(pending) => {
            let reply = one.reply;
            inner.env.spawn("store bulk answer", async move {
                let is_early = plant::is(Plant::AckBeforeLocator);
                let answer =
                    if is_early { Ok(Outcome::Done) } else { pending.await.unwrap_or(Err(StoreError::Closed)) };
                let _ = reply.send(answer);
            });
        }
        Err(error) => {
            let _ = one.reply.send(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::buffer::AlignedBuf;
    use base::ids::DiskId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_table_does_not_depend_on_how_the_payload_is_cut(
            lens in proptest::collection::vec(0usize..40_000, 1..6), incarnation: u64,
        ) {
            let seed = Seed { disk: DiskId(3), incarnation };
            let whole: Vec<u8> = (0..lens.iter().sum::<usize>()).map(|i| (i * 31 % 251) as u8).collect();
            let mut rest = Bytes::from(whole.clone());
            let pieces: Vec<_> = lens.iter().map(|len| rest.split_to(*len)).collect();
            let expected = record::block_table(seed, &[5; 16], &whole);
            prop_assert_eq!(table_of_pieces(seed, &[5; 16], &pieces), expected);
            let (padded, _) = aligned(&pieces, &Arc::default());
            let joined = padded.concat();
            prop_assert!(padded.iter().all(|piece| is_aligned(piece)));
            prop_assert_eq!(joined.len(), whole.len().next_multiple_of(BLOCK).max(if whole.is_empty() { 0 } else { BLOCK }));
            prop_assert_eq!(&joined[..whole.len()], whole.as_slice());
        }
    }

    #[test]
    fn aligned_payloads_are_not_copied() {
        let mut buffer = AlignedBuf::zeroed(1 << 20);
        buffer.as_mut_slice().fill(7);
        let payload = buffer.freeze();
        assert_eq!(aligned(std::slice::from_ref(&payload), &Arc::default()).1, 0);
        assert_eq!(aligned(&[payload.slice(..payload.len() - 100)], &Arc::default()).1, 4096 - 100);
        assert_eq!(aligned(&[payload.slice(1..)], &Arc::default()).1, payload.len() as u64 - 1);
    }
}
