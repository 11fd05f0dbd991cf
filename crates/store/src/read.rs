//! Reads: only the blocks that are needed, and none of them returned before its checksum was verified.

use base::buffer::{BLOCK, align_up};
use base::checksum::{crc32c, crc64};
use base::ids::{ChunkId, GroupId, OwnerId, PeerId};
use base::plant::{self, Plant};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::errors::StoreError;
use crate::format::record::{self, CRC_BLOCK, HEADER_LEN, Kind, RecordHeader, apart_at, record_len, table_len};
use crate::index::{Health, Live, Slot, VolumeNumber};
use crate::inner::{Inner, Shared, count};
use crate::raft_log::{EntryAt, GroupLog, RaftEntry, RaftLog};
use crate::report::{ChunkData, ChunkStat};
use crate::volume_file::VolumeFile;

/// Header and payload this close together are read at once, in bytes.
const ONE_READ_LEN: u64 = 64 << 10;
/// How often a read looks again when compaction moved the chunk under it.
const MOVES_MAX: usize = 8;
/// Longest payload that is kept in memory when it is stored or read.
const CACHED_LEN_MAX: usize = 16 << 10;
/// Longest payload that is kept in memory when it is read again: longer ones come from a disk nearly as fast.
const CACHED_LARGE_LEN_MAX: usize = 1 << 20;
/// Bytes of a Raft log read at once.
const WINDOW_LEN: u64 = 1 << 20;

/// Why a read gave nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadFailure {
    Io(String),
    /// The bytes do not verify.
    Damaged(String),
}

pub fn stat_of(id: ChunkId, live: &Live) -> ChunkStat {
    let damaged = live.health != Health::Good;
    ChunkStat { id, len: live.len, crc64: live.crc64, epoch: live.epoch, damaged }
}

/// A verified part of a chunk; its owner when it is to be `owned`, unless only its header cannot be read, and maybe otherwise. When
/// compaction moved it meanwhile, it is looked up again.
pub async fn chunk(inner: &Inner, id: ChunkId, range: Range<u32>, owned: bool) -> Result<ChunkData, StoreError> {
    for _ in 0..MOVES_MAX {
        let (live, file) = {
            let shared = inner.shared();
            let live = match shared.state.index.get(id) {
                None | Some(Slot::Evicted { .. }) => return Err(StoreError::NotFound),
                Some(Slot::Deleted { .. }) => return Err(StoreError::Deleted),
                Some(Slot::Live(live)) => live,
            };
            (live, shared.files.get(&live.volume).cloned())
        };
        if live.health == Health::Unknown {
            return Err(StoreError::Damaged(format!("chunk {id}: its record is damaged")));
        }
        let Some(file) = file else {
            return Err(StoreError::Damaged(format!("chunk {id}: its volume is missing")));
        };
        if let Some(piece) = cached(inner, &live, &range).filter(|_| !owned) {
            let pieces = if piece.is_empty() { Vec::new() } else { vec![piece] };
            return Ok(ChunkData { stat: stat_of(id, &live), owner: None, pieces, from_memory: true });
        }
        let read = match (live.apart, owned) {
            (0, _) => verified_range(&file, id, &live, range.clone()).await.map(|(owner, piece)| (Some(owner), piece)),
            (_, false) => apart(&file, &live, &range).await.map(|piece| (None, piece)),
            (_, true) => match apart(&file, &live, &range).await {
                Ok(piece) => Ok((owner_of(&file, id, &live).await, piece)),
                Err(failure) => Err(failure),
            },
        };
        match read {
            Ok((None, _)) if owned && has_moved(&inner.shared(), id, &live) => {}
            Ok((owner, piece)) => {
                count(&inner.counters.read_bytes, piece.len() as u64);
                if live.health == Health::Good && !owned && piece.len() == live.len as usize {
                    keep_read(inner, &live, &piece);
                }
                let pieces = if piece.is_empty() { Vec::new() } else { vec![piece] };
                return Ok(ChunkData { stat: stat_of(id, &live), owner, pieces, from_memory: false });
            }
            Err(failure) => {
                let mut shared = inner.shared();
                if has_moved(&shared, id, &live) {
                    continue;
                }
                return Err(match failure {
                    ReadFailure::Io(detail) => StoreError::Io(detail),
                    ReadFailure::Damaged(detail) => {
                        shared.state.mark_damaged(id, live.volume, live.offset, &detail);
                        StoreError::Damaged(format!("chunk {id}: {detail}"))
                    }
                });
            }
        }
    }
    Err(StoreError::Io(format!("chunk {id} kept moving")))
}

fn has_moved(shared: &Shared, id: ChunkId, from: &Live) -> bool {
    !matches!(shared.state.index.get(id), Some(Slot::Live(now)) if (now.volume, now.offset) == (from.volume, from.offset))
}

/// The range of a chunk that is kept in memory. What a scrub has found damaged is read from the disk.
fn cached(inner: &Inner, live: &Live, range: &Range<u32>) -> Option<Bytes> {
    if live.health != Health::Good || live.len as usize > CACHED_LARGE_LEN_MAX {
        return None;
    }
    let cache = if live.len as usize <= CACHED_LEN_MAX { &inner.cache } else { &inner.large_cache };
    let kept = cache.get((u64::from(live.volume), live.offset))?;
    (kept.len() == live.len as usize).then(|| part(&kept, live, range))
}

fn part(payload: &Bytes, live: &Live, range: &Range<u32>) -> Bytes {
    let (from, to) = (range.start.min(live.len) as usize, range.end.min(live.len) as usize);
    payload.slice(from..to.max(from))
}

/// Keeps the verified payload of a small chunk in memory.
pub fn keep(inner: &Inner, volume: VolumeNumber, offset: u64, payload: &[u8]) {
    if payload.len() <= CACHED_LEN_MAX && inner.options.cache_bytes > 0 {
        inner.cache.insert((u64::from(volume), offset), &Bytes::copy_from_slice(payload));
    }
}

/// Keeps the verified payload of a chunk that was read from the disk: of a small one always, of a larger one when it was read
/// not long before, too. A copy: the buffer it was read into is used again, and may be twice as long. What repair reads, with
/// its owner, is not kept: users may never ask for it.
fn keep_read(inner: &Inner, live: &Live, payload: &[u8]) {
    keep(inner, live.volume, live.offset, payload);
    let address = (u64::from(live.volume), live.offset);
    let is_larger = payload.len() > CACHED_LEN_MAX && payload.len() <= CACHED_LARGE_LEN_MAX;
    if is_larger && inner.large_cache.has_room_for(payload.len()) && inner.missed.again(address) {
        inner.large_cache.insert(address, &Bytes::copy_from_slice(payload));
    }
}

/// A part of a payload that stands apart: all of it is read, and nothing else, and held against the chunk's own checksum,
/// which the index has.
async fn apart(file: &VolumeFile, live: &Live, range: &Range<u32>) -> Result<Bytes, ReadFailure> {
    let from = apart_at(live.offset, live.apart);
    let payload = span(file, from, from + u64::from(live.len)).await?;
    if crc64(&payload) != live.crc64 && !plant::is(Plant::IgnoreChecksum) {
        return Err(ReadFailure::Damaged("whole-chunk checksum".into()));
    }
    Ok(part(&payload, live, range))
}

/// What the header says that a payload apart belongs to.
async fn owner_of(file: &VolumeFile, id: ChunkId, live: &Live) -> Option<OwnerId> {
    let head = span(file, live.offset, live.offset + HEADER_LEN as u64).await.ok()?;
    let header = RecordHeader::decode(&head, file.seed, live.offset).ok()?;
    (header.id == id.to_bytes()).then_some(OwnerId(header.owner))
}

/// All of a chunk's bytes, verified.
pub async fn whole(file: &VolumeFile, id: ChunkId, live: &Live) -> Result<Bytes, ReadFailure> {
    match live.apart {
        0 => Ok(verified_range(file, id, live, 0..u32::MAX).await?.1),
        _ => apart(file, live, &(0..u32::MAX)).await,
    }
}

/// Reads and verifies the blocks under `range` (cut at the chunk's end) of a chunk whose payload follows its header. Gives the
/// owner and the bytes.
pub async fn verified_range(
    file: &VolumeFile,
    id: ChunkId,
    live: &Live,
    range: Range<u32>,
) -> Result<(OwnerId, Bytes), ReadFailure> {
    let len = live.len as usize;
    let table_len = table_len(len);
    // In a bulk volume the header block stands alone and the last checksum covers the padding.
    let (head_len, covered) = if live.is_large() {
        (BLOCK as u64, align_up(len as u64))
    } else {
        ((HEADER_LEN + table_len) as u64, len as u64)
    };
    let (from, to) = ((range.start as usize).min(len), (range.end as usize).min(len));
    let to = to.max(from);
    let payload_at = live.offset + head_len;
    let blocks = from / CRC_BLOCK..to.div_ceil(CRC_BLOCK);
    let data_from = payload_at + (blocks.start * CRC_BLOCK) as u64;
    let data_to = payload_at + ((blocks.end * CRC_BLOCK) as u64).min(covered);
    let (head, data) = if from == to {
        (span(file, live.offset, live.offset + head_len).await?, Bytes::new())
    } else if data_from - live.offset <= ONE_READ_LEN {
        let all = span(file, live.offset, data_to).await?;
        (all.slice(..head_len as usize), all.slice((data_from - live.offset) as usize..))
    } else {
        let head = span(file, live.offset, live.offset + head_len);
        let (head, data) = futures_util::future::join(head, span(file, data_from, data_to)).await;
        (head?, data?)
    };
    let header =
        RecordHeader::decode(&head, file.seed, live.offset).map_err(|e| ReadFailure::Damaged(e.to_string()))?;
    let expected = (Kind::Chunk, id.to_bytes(), live.len, live.crc64, 0);
    if (header.kind, header.id, header.payload_len, header.check, header.apart) != expected {
        return Err(ReadFailure::Damaged("another record is where the chunk should be".into()));
    }
    if crc32c(&[], &head[HEADER_LEN..]) != header.table_crc {
        return Err(ReadFailure::Damaged("block checksums".into()));
    }
    let table = &head[HEADER_LEN..HEADER_LEN + table_len];
    record::verify_blocks(file.seed, &header.id, table, blocks.start, &data)
        .map_err(|block| ReadFailure::Damaged(format!("payload block {block}")))?;
    let start = from - from.min(blocks.start * CRC_BLOCK);
    let piece = if from == to { Bytes::new() } else { data.slice(start..start + (to - from)) };
    Ok((OwnerId(header.owner), piece))
}

/// The bytes from `from` to `to`, by one read of whole blocks.
async fn span(file: &VolumeFile, from: u64, to: u64) -> Result<Bytes, ReadFailure> {
    let start = from - from % BLOCK as u64;
    let len = (align_up(to) - start) as usize;
    let data = file.file.read_at(start, len).await.map_err(|error| ReadFailure::Io(error.to_string()))?;
    if data.len() < len {
        return Err(ReadFailure::Damaged("the volume's file is too short".into()));
    }
    let skip = (from - start) as usize;
    Ok(data.slice(skip..skip + (to - from) as usize))
}

/// Reads journal records one after the other, through a window.
pub struct RecordReader {
    window: Option<(VolumeNumber, u64, Bytes)>,
    /// The record that was read last: many entries of a log may lie in one, and it is verified once.
    last: Option<(VolumeNumber, u64, RecordHeader, Bytes)>,
}

impl RecordReader {
    pub fn new() -> RecordReader {
        RecordReader { window: None, last: None }
    }

    /// The verified header and payload of the journal record at `offset`, whose payload follows its header.
    pub async fn read(
        &mut self,
        number: VolumeNumber,
        file: &VolumeFile,
        offset: u64,
        payload_len: u32,
    ) -> Result<(RecordHeader, Bytes), ReadFailure> {
        if let Some((volume, at, header, payload)) = &self.last
            && (*volume, *at, header.payload_len) == (number, offset, payload_len)
        {
            return Ok((*header, payload.clone()));
        }
        let bytes = self.bytes(number, file, offset, record_len(payload_len as usize) as u64).await?;
        let (header, payload) =
            record::verify_record(&bytes, file.seed, offset).map_err(|e| ReadFailure::Damaged(e.to_string()))?;
        let payload = bytes.slice(payload);
        self.last = Some((number, offset, header, payload.clone()));
        Ok((header, payload))
    }

    /// The payload that stands apart from the record with this header, at `offset`, held against the chunk's checksum. A copy:
    /// a slice of a few blocks would keep the whole window alive.
    pub async fn apart(
        &mut self,
        number: VolumeNumber,
        file: &VolumeFile,
        offset: u64,
        header: &RecordHeader,
    ) -> Result<Bytes, ReadFailure> {
        let from = apart_at(offset, header.apart);
        let payload = self.bytes(number, file, from, u64::from(header.payload_len)).await?;
        if crc64(&payload) != header.check || payload.len() < header.payload_len as usize {
            return Err(ReadFailure::Damaged("whole-chunk checksum".into()));
        }
        Ok(Bytes::copy_from_slice(&payload))
    }

    /// The bytes from `offset` on, fewer at the end of the volume, of a window that is moved there when they are not in it.
    async fn bytes(
        &mut self,
        number: VolumeNumber,
        file: &VolumeFile,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, ReadFailure> {
        let inside = self.window.as_ref().is_some_and(|(volume, at, data)| {
            *volume == number && offset >= *at && offset + len <= at + data.len() as u64
        });
        if !inside {
            if offset >= file.written_end() {
                return Err(ReadFailure::Damaged("the volume's file is too short".into()));
            }
            let start = offset - offset % BLOCK as u64;
            let want = (offset - start + len).max(WINDOW_LEN).min(file.written_end().saturating_sub(start));
            let end = start + want.max(offset - start + len);
            let data = span(file, start, align_up(end).min(align_up(file.written_end()))).await?;
            self.window = Some((number, start, data));
        }
        let Some((_, at, data)) = &self.window else { unreachable!("just filled") };
        let from = (offset - at) as usize;
        Ok(data.slice(from.min(data.len())..(from + len as usize).min(data.len())))
    }
}

/// A group's whole log, every entry verified.
pub async fn raft_log(
    files: &BTreeMap<VolumeNumber, Arc<VolumeFile>>,
    group: GroupId,
    log: &GroupLog,
) -> Result<RaftLog, ReadFailure> {
    let mut reader = RecordReader::new();
    let mut entries = Vec::with_capacity(log.entries().len());
    for (index, at) in log.entries() {
        let data = raft_entry(&mut reader, files, group, log.peer, at).await.map_err(|failure| match failure {
            ReadFailure::Damaged(detail) => ReadFailure::Damaged(format!("entry {index}: {detail}")),
            ReadFailure::Io(detail) => ReadFailure::Io(detail),
        })?;
        entries.push(RaftEntry { index, term: at.term, data });
    }
    Ok(RaftLog { peer: log.peer, hard_state: log.hard_state.clone(), base: log.base, entries })
}

/// The verified data of one entry of a log.
pub async fn raft_entry(
    reader: &mut RecordReader,
    files: &BTreeMap<VolumeNumber, Arc<VolumeFile>>,
    group: GroupId,
    peer: PeerId,
    at: &EntryAt,
) -> Result<Bytes, ReadFailure> {
    let damaged = |detail: &str| ReadFailure::Damaged(detail.into());
    let file = files.get(&at.volume).ok_or_else(|| damaged("its volume is missing"))?;
    let (header, payload) = reader.read(at.volume, file, at.offset(), at.record_payload_len).await?;
    if header.group() != group || header.owner != peer.0 {
        return Err(damaged("another record is where the entry should be"));
    }
    let (from, len) = (at.part.0 as usize, at.part.1 as usize);
    if from + len > payload.len() {
        return Err(damaged("the record is too short"));
    }
    // A copy: a slice of a few bytes would keep the whole window alive, and with it the chunks around the entry.
    Ok(Bytes::copy_from_slice(&payload[from..from + len]))
}
