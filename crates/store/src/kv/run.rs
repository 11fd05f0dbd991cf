//! Run files: immutable sorted rows on disk.
//!
//! ```text
//! run        part * n, firsts, directory, footer                               file `kv-run-<id as 16 hex digits>`
//! part       data block * m, index block, filter                           about 1 MiB
//! data block see `block.rs`: key -> value or deletion, about 16 KiB; a large value stands alone
//! index      a block: last key of a data block -> offset u64, length u32, first key of the data block
//! filter     Bloom filter of the part's keys (`filter.rs`), crc u32
//! firsts     for each part: first key len u16, first key; crc u32
//! directory  first key len u16, first key, then for each part
//!              last key len u16, last key, data offset u64, index offset u64, index len u32, filter len u32
//!            crc u32
//! footer      0 magic "HENGEKVR"    8 version u32      12 parts u32      16 run id u64      24 nonce u64
//!            32 directory offset   40 directory len u32, 44 zero u32     48 entries u64     56 deletions u64
//!            64 firsts len u32     68 crc u32                                                     72 bytes
//! ```
//! The filter follows its index block. Every block, filter, directory and footer ends with a CRC-32C seeded with the
//! disk's id, run id, nonce and the offset in the file, so that bytes of another disk, run or place do not verify.
//!
//! Rows of different owners ([`super::KvOptions::owner_len`]) share no block and no part, and first and last keys tell exactly
//! what a damaged block or part hides: so it hides nothing of another owner's. Older versions wrote no first keys, and pass
//! over them: in their runs damage may hide every key behind the block before.
//!
//! Only the directory and the first keys of parts stay in memory (about 150 bytes per MiB of rows, and per owner); filters, index and data blocks come through
//! the block cache. A filter that is damaged is passed over, as it only saves work; every other damage is an error
//! that names the keys it hides, never an answer.

use base::codec::{DecodeError, Reader, Writer};
use base::env::{Caching, Disk, File, OpenMode};
use bytes::Bytes;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::block::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BlockCursor, Cell, checked};
use super::cursor::RunCursor;
use super::filter;
use super::{KEY_LEN_MAX, KvError};
use crate::cache::BlockCache;

pub(super) const FILE_PREFIX: &str = "kv-run-";
pub(super) const MAGIC: [u8; 8] = *b"HENGEKVR";
pub(super) const VERSION: u32 = 1;
pub(super) const FOOTER_BYTES: usize = 72;
/// Bytes of the largest filter: a part of one-byte rows stays far below it.
const FILTER_BYTES_MAX: usize = 8 << 20;

/// The disk, and what all runs of one store share.
pub(super) struct Files {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) disk_seed: u128,
    pub(super) cache: BlockCache,
    /// Bytes of all run files that exist.
    pub(super) run_bytes: AtomicU64,
    /// How often a filter did not verify and was passed over.
    pub(super) filters_damaged: AtomicU64,
    /// Why writing has stopped, once it has.
    stopped: OnceLock<String>,
}

impl Files {
    pub(super) fn new(disk: Arc<dyn Disk>, disk_seed: u128, cache_bytes: usize) -> Files {
        Files {
            disk,
            disk_seed,
            cache: BlockCache::new(cache_bytes),
            run_bytes: AtomicU64::new(0),
            filters_damaged: AtomicU64::new(0),
            stopped: OnceLock::new(),
        }
    }

    /// Stops all further writing and removing, for good. The first reason stays.
    pub(super) fn stop(&self, reason: String) -> KvError {
        KvError::Io(self.stopped.get_or_init(|| reason).clone())
    }

    pub(super) fn check_writing(&self) -> Result<(), KvError> {
        match self.stopped.get() {
            None => Ok(()),
            Some(reason) => Err(KvError::Io(reason.clone())),
        }
    }
}

/// What the manifest says about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunMeta {
    /// Never reused.
    pub(super) id: u64,
    /// Random, in case an id is reused after all.
    pub(super) nonce: u64,
    pub(super) size_bytes: u64,
    pub(super) entries: u64,
    pub(super) deletions: u64,
    pub(super) first: Bytes,
    pub(super) last: Bytes,
}

impl RunMeta {
    pub(super) fn file_name(&self) -> String {
        file_name(self.id)
    }

    /// Whether the run may hold keys of `from..=to`.
    pub(super) fn overlaps(&self, from: &[u8], to: &[u8]) -> bool {
        &self.first[..] <= to && from <= &self.last[..]
    }

    pub(super) fn seed(&self, disk_seed: u128, offset: u64) -> [u8; 40] {
        seed(disk_seed, self.id, self.nonce, offset)
    }
}

pub(super) fn file_name(id: u64) -> String {
    format!("{FILE_PREFIX}{id:016x}")
}

/// What the checksum of the piece at `offset` is seeded with.
pub(super) fn seed(disk_seed: u128, id: u64, nonce: u64, offset: u64) -> [u8; 40] {
    let mut seed = [0; 40];
    seed[..16].copy_from_slice(&disk_seed.to_le_bytes());
    seed[16..24].copy_from_slice(&id.to_le_bytes());
    seed[24..32].copy_from_slice(&nonce.to_le_bytes());
    seed[32..].copy_from_slice(&offset.to_le_bytes());
    seed
}

/// Where a block or filter stands, checksum included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Extent {
    pub(super) fn end(self) -> u64 {
        self.offset + u64::from(self.len)
    }

    /// The value of an index entry.
    pub(super) fn encode(self, first: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(12 + first.len());
        out.put_u64(self.offset);
        out.put_u32(self.len);
        out.put_bytes(first);
        Bytes::from(out)
    }

    /// With the first key, if it is there. Refuses what no writer makes, so that damage cannot ask for much memory.
    fn decode(value: &Bytes, len_max: usize) -> Result<(Extent, Option<Bytes>), DecodeError> {
        let mut reader = Reader::new(value);
        let extent = Extent { offset: reader.u64("block offset")?, len: reader.u32("block length")? };
        extent.within(len_max)?;
        let first = value.slice(value.len() - reader.remaining()..);
        if first.len() > KEY_LEN_MAX {
            return Err(reader.error("key length"));
        }
        Ok((extent, (!first.is_empty()).then_some(first)))
    }

    fn within(self, len_max: usize) -> Result<(), DecodeError> {
        let possible = (BLOCK_BYTES_MIN..=len_max).contains(&(self.len as usize))
            && self.offset.checked_add(u64::from(self.len)).is_some();
        if possible { Ok(()) } else { Err(DecodeError { what: "impossible block length", offset: 0 }) }
    }
}

/// One entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The first key that it may hold.
    pub(super) first: Bytes,
    pub(super) last: Bytes,
    pub(super) data_offset: u64,
    pub(super) index: Extent,
    pub(super) filter: Extent,
}

pub(super) fn encode_directory(first: &[u8], parts: &[Part]) -> Vec<u8> {
    let key_len = |key: &[u8]| u16::try_from(key.len()).expect("KEY_LEN_MAX fits in u16");
    let mut out = Vec::new();
    out.put_u16(key_len(first));
    out.put_bytes(first);
    for part in parts {
        out.put_u16(key_len(&part.last));
        out.put_bytes(&part.last);
        out.put_u64(part.data_offset);
        out.put_u64(part.index.offset);
        out.put_u32(part.index.len);
        out.put_u32(part.filter.len);
    }
    out
}

pub(super) fn decode_directory(content: &[u8], parts: u32) -> Result<Vec<Part>, DecodeError> {
    let mut reader = Reader::new(content);
    let mut next_first = take_key(&mut reader)?;
    let mut out = Vec::new();
    for _ in 0..parts {
        let last = take_key(&mut reader)?;
        let first = std::mem::replace(&mut next_first, successor(&last));
        let data_offset = reader.u64("data offset")?;
        let index = Extent { offset: reader.u64("index offset")?, len: reader.u32("index length")? };
        index.within(BLOCK_BYTES_MAX)?;
        let filter = Extent { offset: index.end(), len: reader.u32("filter length")? };
        filter.within(FILTER_BYTES_MAX)?;
        let data_bytes = index.offset.checked_sub(data_offset).ok_or(reader.error("data behind its index"))?;
        if data_bytes > 4 * BLOCK_BYTES_MAX as u64 {
            return Err(reader.error("part too large"));
        }
        out.push(Part { first, last, data_offset, index, filter });
    }
    if reader.remaining() != 0 || out.is_empty() {
        return Err(reader.error("directory length"));
    }
    Ok(out)
}

pub(super) fn encode_firsts(parts: &[Part]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.put_u16(u16::try_from(part.first.len()).expect("KEY_LEN_MAX fits in u16"));
        out.put_bytes(&part.first);
    }
    out
}

pub(super) fn decode_firsts(content: &[u8], parts: &mut [Part]) -> Result<(), DecodeError> {
    let mut reader = Reader::new(content);
    let firsts: Result<Vec<Bytes>, DecodeError> = parts.iter().map(|_| take_key(&mut reader)).collect();
    for (part, first) in parts.iter_mut().zip(firsts?) {
        // It may begin later than the directory says, never earlier.
        if part.first <= first && first <= part.last {
            part.first = first;
        }
    }
    Ok(())
}

pub(super) fn take_key(reader: &mut Reader<'_>) -> Result<Bytes, DecodeError> {
    let len = usize::from(reader.u16("key length")?);
    if len > KEY_LEN_MAX {
        return Err(reader.error("key length"));
    }
    Ok(Bytes::copy_from_slice(reader.take(len, "key")?))
}

/// An open run. Its file is removed when the run is obsolete and the last reader has gone.
pub(super) struct Run {
    pub(super) meta: RunMeta,
    files: Arc<Files>,
    /// The file and its directory, or why none of the run's rows can be read.
    body: Result<Body, String>,
    /// A compaction has replaced it, durably.
    obsolete: AtomicBool,
    /// Compaction met damage in it, so it stays as it is.
    damaged: AtomicBool,
}

struct Body {
    file: Arc<dyn File>,
    parts: Vec<Part>,
    /// What is wrong with the first keys: damage hides more than it would have to.
    firsts_damage: Option<String>,
}

impl Run {
    /// Opens the run that the manifest names. A run that is missing or damaged opens too: its rows are damaged then.
    pub(super) fn open(meta: RunMeta, files: &Arc<Files>) -> Arc<Run> {
        let body = Body::open(&meta, files).map_err(|detail| format!("{}: {detail}", meta.file_name()));
        let damaged = AtomicBool::new(body.is_err());
        files.run_bytes.fetch_add(meta.size_bytes, Ordering::Relaxed);
        Arc::new(Run { meta, files: files.clone(), body, obsolete: AtomicBool::new(false), damaged })
    }

    /// Damage that hides no row.
    pub(super) fn harmless_damage(&self) -> Option<String> {
        let why = self.body.as_ref().ok()?.firsts_damage.as_ref()?;
        Some(format!("{}: {why}", self.meta.file_name()))
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    pub(super) fn mark_damaged(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    /// Lets the file go with the last reader. Only for a run that the durable manifest no longer names.
    pub(super) fn mark_obsolete(&self) {
        self.obsolete.store(true, Ordering::Relaxed);
    }

    /// The damage that hides all rows of the run, if there is one.
    pub(super) fn whole_damage(&self) -> Option<KvError> {
        self.body.as_ref().err().map(|detail| self.damage(&self.meta.first, &self.meta.last, detail))
    }

    pub(super) fn parts(&self) -> usize {
        self.body.as_ref().map_or(0, |body| body.parts.len())
    }

    /// The cell under `key`, verified. `hash` is that of the key for filters.
    pub(super) fn get(self: &Arc<Run>, key: &[u8], hash: u64) -> Result<Option<Cell>, KvError> {
        if !self.meta.overlaps(key, key) || !self.may_contain(key, hash)? {
            return Ok(None);
        }
        let cursor = RunCursor::new(self.clone(), key);
        // Where damage may hide the key, the cursor stands at the key and its cell is the error.
        if cursor.key() == Some(key) { cursor.cell().map(Some) } else { Ok(None) }
    }

    /// Whether the filter lets `key` pass. A damaged filter does.
    fn may_contain(&self, key: &[u8], hash: u64) -> Result<bool, KvError> {
        let body = self.body()?;
        let Some(part) = body.parts.get(self.find_part(key)) else { return Ok(false) };
        let Ok(filter) = self.block(body, part.filter) else {
            self.files.filters_damaged.fetch_add(1, Ordering::Relaxed);
            return Ok(true);
        };
        Ok(filter::may_contain(&filter, hash))
    }

    /// The part that holds `key` if the run does; behind the last part if no part can.
    pub(super) fn find_part(&self, key: &[u8]) -> usize {
        self.body.as_ref().map_or(0, |body| body.parts.partition_point(|part| &part.last[..] < key))
    }

    /// A cursor over the index of part `at`.
    pub(super) fn index_cursor(&self, at: usize) -> Result<BlockCursor, KvError> {
        let body = self.body()?;
        let extent = body.parts[at].index;
        let content = self.block(body, extent).map_err(|detail| self.part_damage(at, &detail))?;
        BlockCursor::new(content).map_err(|error| self.index_malformed(at, &error))
    }

    /// A cursor over the data block that the index cursor of part `at` is at.
    pub(super) fn data_cursor(&self, at: usize, index: &BlockCursor) -> Result<BlockCursor, KvError> {
        let body = self.body()?;
        let (extent, _) = extent_at(index).map_err(|error| self.index_malformed(at, &error))?;
        let content = self.block(body, extent).map_err(|detail| self.block_damage(at, index, &detail))?;
        BlockCursor::new(content).map_err(|error| self.data_malformed(at, index, &error))
    }

    pub(super) fn index_malformed(&self, at: usize, error: &DecodeError) -> KvError {
        self.part_damage(at, &format!("{}: index of part {at}: {error}", self.meta.file_name()))
    }

    pub(super) fn data_malformed(&self, at: usize, index: &BlockCursor, error: &DecodeError) -> KvError {
        self.block_damage(at, index, &format!("{}: block of part {at}: {error}", self.meta.file_name()))
    }

    /// The damage that hides all rows of part `at`.
    fn part_damage(&self, at: usize, detail: &str) -> KvError {
        match &self.body {
            Ok(body) => self.damage(&body.parts[at].first, &body.parts[at].last, detail),
            Err(_) => self.damage(&self.meta.first, &self.meta.last, detail),
        }
    }

    /// The damage that hides the rows of the data block that the index cursor of part `at` is at.
    fn block_damage(&self, at: usize, index: &BlockCursor, detail: &str) -> KvError {
        let (Ok(body), Some(last)) = (&self.body, index.key()) else { return self.part_damage(at, detail) };
        let part = &body.parts[at];
        let listed = self.block(body, part.index).ok().and_then(|content| list_index(&content, &part.first).ok());
        let first = listed.unwrap_or_default().into_iter().find(|block| block.last == last).map(|block| block.first);
        self.damage(first.as_ref().unwrap_or(&part.first), last, detail)
    }

    fn body(&self) -> Result<&Body, KvError> {
        self.body.as_ref().map_err(|detail| self.damage(&self.meta.first, &self.meta.last, detail))
    }

    fn damage(&self, first: &[u8], last: &[u8], detail: &str) -> KvError {
        KvError::Damaged {
            first: Bytes::copy_from_slice(first),
            last: Bytes::copy_from_slice(last),
            detail: detail.to_owned(),
        }
    }

    /// A verified block, from the cache or the disk.
    fn block(&self, body: &Body, extent: Extent) -> Result<Bytes, String> {
        let address = (self.meta.id, extent.offset);
        if let Some(content) = self.files.cache.get(address) {
            return Ok(content);
        }
        let raw = body.file.read_now(extent.offset, extent.len as usize);
        let content = self.check(raw, extent)?;
        self.files.cache.insert(address, &content);
        Ok(content)
    }

    fn check(&self, raw: io::Result<Bytes>, extent: Extent) -> Result<Bytes, String> {
        let place = || format!("{} at byte {}", self.meta.file_name(), extent.offset);
        let raw = raw.map_err(|error| format!("{} cannot be read: {error}", place()))?;
        if raw.len() != extent.len as usize {
            return Err(format!("{} is cut short", place()));
        }
        checked(raw, &self.meta.seed(self.files.disk_seed, extent.offset))
            .ok_or_else(|| format!("{} fails its checksum", place()))
    }

    /// Reads part `at` with one large read, past the cache, and checks all of it.
    pub(super) async fn read_part(&self, at: usize) -> Result<PartContent, KvError> {
        let body = self.body()?;
        let part = &body.parts[at];
        let whole = |detail: String| self.damage(&part.first, &part.last, &detail);
        let len = usize::try_from(part.filter.end() - part.data_offset).expect("checked when the directory was read");
        let place = |error| format!("{} at byte {} cannot be read: {error}", self.meta.file_name(), part.data_offset);
        let raw = body.file.read_at(part.data_offset, len).await.map_err(|error| whole(place(error)))?;
        let cut = |extent: Extent| {
            let start = usize::try_from(extent.offset.checked_sub(part.data_offset)?).ok()?;
            let end = start.checked_add(extent.len as usize)?;
            (end <= raw.len()).then(|| raw.slice(start..end))
        };
        let get = |extent: Extent| match cut(extent) {
            None => Err(format!("{} at byte {} is cut short", self.meta.file_name(), extent.offset)),
            Some(piece) => self.check(Ok(piece), extent),
        };
        let index = get(part.index).map_err(&whole)?;
        let blocks = list_index(&index, &part.first).map_err(|error| self.index_malformed(at, &error))?;
        let mut content = PartContent { blocks: Vec::new(), filter: get(part.filter), bytes: raw.len() as u64 };
        for Listed { first, last, extent } in blocks {
            content.blocks.push(get(extent).map_err(|detail| self.damage(&first, &last, &detail)));
        }
        Ok(content)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !*self.obsolete.get_mut() {
            return;
        }
        self.files.run_bytes.fetch_sub(self.meta.size_bytes, Ordering::Relaxed);
        self.files.cache.forget(self.meta.id);
        // After a failure it is not known which manifest is durable, so nothing is removed any more.
        if self.files.check_writing().is_ok()
            && let Err(error) = self.files.disk.remove(&self.meta.file_name())
        {
            tracing::warn!(file = self.meta.file_name(), %error, "an obsolete run stays until the next start");
        }
    }
}

impl Body {
    fn open(meta: &RunMeta, files: &Files) -> Result<Body, String> {
        let file = match files.disk.open(&meta.file_name(), OpenMode::Existing, Caching::Buffered) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err("the file is missing".to_owned()),
            other => other.map_err(|error| format!("cannot be opened: {error}"))?,
        };
        let size_bytes = file.size_bytes().map_err(|error| format!("cannot be measured: {error}"))?;
        if size_bytes != meta.size_bytes {
            return Err(format!("has {size_bytes} bytes instead of {}", meta.size_bytes));
        }
        let footer_at = size_bytes.checked_sub(FOOTER_BYTES as u64).ok_or("too short for a run")?;
        let read = |offset: u64, len: usize, what: &str| {
            let raw = file.read_now(offset, len).map_err(|error| format!("{what} cannot be read: {error}"))?;
            let content = if raw.len() == len { checked(raw, &meta.seed(files.disk_seed, offset)) } else { None };
            content.ok_or_else(|| format!("{what} fails its checksum"))
        };
        let footer = read(footer_at, FOOTER_BYTES, "footer")?;
        let (directory, parts, firsts) = decode_footer(&footer, meta).map_err(|error| format!("footer: {error}"))?;
        if directory.end() != footer_at {
            return Err("footer: the directory does not end at the footer".to_owned());
        }
        let content = read(directory.offset, directory.len as usize, "directory")?;
        let mut parts = decode_directory(&content, parts).map_err(|error| format!("directory: {error}"))?;
        let ends = parts.first().zip(parts.last());
        if ends.is_none_or(|(first, last)| first.first != meta.first || last.last != meta.last) {
            return Err("directory: its keys are not those of the manifest".to_owned());
        }
        let firsts = firsts.map(|at| {
            let content = read(at.offset, at.len as usize, "first keys")?;
            decode_firsts(&content, &mut parts).map_err(|error| format!("first keys: {error}"))
        });
        let firsts_damage = firsts.and_then(Result::err);
        Ok(Body { file, parts, firsts_damage })
    }
}

/// Where the directory is, how many parts it has, and where their first keys are.
fn decode_footer(content: &[u8], meta: &RunMeta) -> Result<(Extent, u32, Option<Extent>), DecodeError> {
    let mut reader = Reader::new(content);
    if reader.array::<8>("magic")? != MAGIC || reader.u32("version")? != VERSION {
        return Err(reader.error("not a run of a version that is known here"));
    }
    let parts = reader.u32("parts")?;
    if reader.u64("run id")? != meta.id || reader.u64("nonce")? != meta.nonce {
        return Err(reader.error("another run"));
    }
    let directory = Extent { offset: reader.u64("directory offset")?, len: reader.u32("directory length")? };
    directory.within(u32::MAX as usize)?;
    reader.u32("zero")?;
    if reader.u64("entries")? != meta.entries || reader.u64("deletions")? != meta.deletions {
        return Err(reader.error("other counts than in the manifest"));
    }
    let len = reader.u32("first keys' length")?;
    let firsts = directory.offset.checked_sub(u64::from(len)).map(|offset| Extent { offset, len });
    Ok((directory, parts, firsts.filter(|firsts| firsts.len > 4)))
}

/// What an index says of a data block.
pub(super) struct Listed {
    /// Where the index does not tell it: the first key that the block may hold.
    pub(super) first: Bytes,
    pub(super) last: Bytes,
    pub(super) extent: Extent,
}

/// `first`: of the part.
pub(super) fn list_index(content: &Bytes, first: &Bytes) -> Result<Vec<Listed>, DecodeError> {
    let mut cursor = BlockCursor::new(content.clone())?;
    let mut out = Vec::new();
    let mut may_begin = first.clone();
    cursor.first()?;
    while let Some(key) = cursor.key() {
        let (extent, first) = extent_at(&cursor)?;
        let first = first.filter(|first| may_begin <= *first && &first[..] <= key);
        out.push(Listed { first: first.unwrap_or(may_begin), last: Bytes::copy_from_slice(key), extent });
        may_begin = successor(key);
        cursor.advance()?;
    }
    Ok(out)
}

fn extent_at(index: &BlockCursor) -> Result<(Extent, Option<Bytes>), DecodeError> {
    let value = index.cell().value.ok_or(DecodeError { what: "index entry without a value", offset: 0 })?;
    Extent::decode(&value, BLOCK_BYTES_MAX)
}

/// The smallest key above `key`.
pub(super) fn successor(key: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.extend_from_slice(key);
    out.push(0);
    Bytes::from(out)
}

/// A whole part of a run, checked.
pub(super) struct PartContent {
    /// Checked data blocks in key order, or the damage in their place.
    pub(super) blocks: Vec<Result<Bytes, KvError>>,
    /// The filter, or what is wrong with it.
    pub(super) filter: Result<Bytes, String>,
    pub(super) bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::super::block::BlockBuilder;
    use super::*;

    fn key(out: &mut Vec<u8>, key: &[u8]) {
        out.put_u16(key.len() as u16);
        out.put_bytes(key);
    }

    /// What henge wrote before there were first keys.
    #[test]
    fn a_run_without_first_keys_hides_all_that_it_may() {
        let mut directory = Vec::new();
        key(&mut directory, b"apple");
        for (last, data_offset, index_offset) in [(b"fig", 0, 500), (b"yam", 600, 900)] {
            key(&mut directory, last);
            directory.put_u64(data_offset);
            directory.put_u64(index_offset);
            directory.put_u32(40);
            directory.put_u32(20);
        }
        let parts = decode_directory(&directory, 2).unwrap();
        let ends: Vec<(&[u8], &[u8])> = parts.iter().map(|part| (&part.first[..], &part.last[..])).collect();
        assert_eq!(ends, [(&b"apple"[..], &b"fig"[..]), (b"fig\0", b"yam")]);

        let mut index = BlockBuilder::default();
        for (last, offset) in [(b"kiwi", 600), (b"plum", 700)] {
            index.add(last, &Cell::put(last, Extent { offset, len: 50 }.encode(b"")));
        }
        let mut block = Vec::new();
        index.finish_into(&mut block, b"seed");
        let listed = list_index(&checked(block.into(), b"seed").unwrap(), &parts[1].first).unwrap();
        let ends: Vec<(&[u8], &[u8])> = listed.iter().map(|block| (&block.first[..], &block.last[..])).collect();
        assert_eq!(ends, [(&b"fig\0"[..], &b"kiwi"[..]), (b"kiwi\0", b"plum")]);
    }

    #[test]
    fn a_directory_and_first_keys_round_trip() {
        let part = |first: &'static [u8], last: &'static [u8], at: u64| Part {
            first: Bytes::from_static(first),
            last: Bytes::from_static(last),
            data_offset: at,
            index: Extent { offset: at + 100, len: 40 },
            filter: Extent { offset: at + 140, len: 20 },
        };
        let parts = [part(b"a", b"c", 0), part(b"g", b"k", 160)];
        let mut read = decode_directory(&encode_directory(b"a", &parts), 2).unwrap();
        assert_eq!(read[1].first, "c\0", "as far as the directory knows");
        decode_firsts(&encode_firsts(&parts), &mut read).unwrap();
        assert_eq!(read, parts);
        let wrong = [part(b"a", b"c", 0), part(b"b", b"k", 160)];
        decode_firsts(&encode_firsts(&wrong), &mut read).unwrap();
        assert_eq!(read, parts, "what cannot be is passed over");
        decode_firsts(b"\x09", &mut read).unwrap_err();
    }
}
