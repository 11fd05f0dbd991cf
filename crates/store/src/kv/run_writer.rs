//! Writes run files: rows in, one file out, sequentially, in large pieces. The format is in `run.rs`.

use base::checksum::crc32c;
use base::codec::Writer;
use base::env::{Caching, File, Flush, OpenMode};
use base::plant::{self, Plant};
use bytes::Bytes;
use std::io;
use std::sync::Arc;

use super::block::{BlockBuilder, Cell};
use super::filter;
use super::run::{
    Extent, FOOTER_BYTES, Files, MAGIC, Part, RunMeta, VERSION, encode_directory, encode_firsts, file_name, seed,
};

/// Bytes that are written at once.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes of data blocks after which a part ends.
const PART_BYTES: u64 = 1 << 20;

pub(super) struct RunWriter {
    files: Arc<Files>,
    file: Arc<dyn File>,
    id: u64,
    nonce: u64,
    block_bytes: usize,
    /// See [`super::KvOptions::owner_len`].
    owner_len: fn(&[u8]) -> usize,
    block: BlockBuilder,
    block_first: Vec<u8>,
    index: BlockBuilder,
    hashes: Vec<u64>,
    part_first: Bytes,
    parts: Vec<Part>,
    part_offset: u64,
    /// What is not yet given to the file; it goes to `written`.
    piece: Vec<u8>,
    written: u64,
    entries: u64,
    deletions: u64,
    first: Option<Bytes>,
    last: Vec<u8>,
}

impl RunWriter {
    /// Creates the file of run `id`, which must not exist.
    pub(super) fn create(
        files: &Arc<Files>,
        id: u64,
        nonce: u64,
        block_bytes: usize,
        owner_len: fn(&[u8]) -> usize,
    ) -> io::Result<RunWriter> {
        let file = files.disk.open(&file_name(id), OpenMode::CreateNew, Caching::Buffered)?;
        Ok(RunWriter {
            files: files.clone(),
            file,
            id,
            nonce,
            block_bytes,
            owner_len,
            block: BlockBuilder::default(),
            block_first: Vec::new(),
            index: BlockBuilder::default(),
            hashes: Vec::new(),
            part_first: Bytes::new(),
            parts: Vec::new(),
            part_offset: 0,
            piece: Vec::with_capacity(PIECE_BYTES + block_bytes),
            written: 0,
            entries: 0,
            deletions: 0,
            first: None,
            last: Vec::new(),
        })
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Bytes that the file has so far, roughly.
    pub(super) fn size_bytes(&self) -> u64 {
        self.offset() + self.block.size_bytes() as u64
    }

    /// Adds a row; keys rise. Call [`RunWriter::spill`] now and then.
    pub(super) fn add(&mut self, key: &[u8], cell: &Cell) {
        assert!(self.first.is_none() || key > self.last.as_slice(), "keys of a run rise");
        if self.first.is_some() && self.owner(key) != self.owner(&self.last) {
            self.end_part();
        }
        // A large value gets a block of its own, so that its neighbours can be read without it.
        let cell_bytes = cell.value.as_ref().map_or(0, Bytes::len);
        if cell_bytes >= self.block_bytes && !self.block.is_empty() {
            self.end_block();
        }
        if self.block.is_empty() {
            self.block_first.clear();
            self.block_first.extend_from_slice(key);
            if self.index.is_empty() {
                self.part_first = Bytes::copy_from_slice(key);
            }
        }
        self.block.add(key, cell);
        self.hashes.push(filter::hash(key));
        self.first.get_or_insert_with(|| Bytes::copy_from_slice(key));
        self.last.clear();
        self.last.extend_from_slice(key);
        self.entries += 1;
        self.deletions += u64::from(cell.value.is_none());
        if self.block.size_bytes() >= self.block_bytes {
            self.end_block();
        }
    }

    /// Writes what has gathered, if it is enough to be worth it. Returns the bytes written.
    pub(super) async fn spill(&mut self) -> io::Result<u64> {
        if self.piece.len() < PIECE_BYTES {
            return Ok(0);
        }
        self.write_piece(Flush::No).await
    }

    /// Ends the file and flushes it. At least one row must have been added.
    pub(super) async fn finish(mut self) -> io::Result<RunMeta> {
        let first = self.first.clone().expect("a run has at least one row");
        self.end_part();
        let firsts = self.put_checked(&encode_firsts(&self.parts));
        let directory = self.put_checked(&encode_directory(&first, &self.parts));
        let mut footer = Vec::with_capacity(FOOTER_BYTES);
        footer.put_bytes(&MAGIC);
        footer.put_u32(VERSION);
        footer.put_u32(u32::try_from(self.parts.len()).expect("far fewer parts than bytes"));
        footer.put_u64(self.id);
        footer.put_u64(self.nonce);
        footer.put_u64(directory.offset);
        footer.put_u32(directory.len);
        footer.put_u32(0);
        footer.put_u64(self.entries);
        footer.put_u64(self.deletions);
        footer.put_u32(firsts.len);
        let footer = self.put_checked(&footer);
        assert_eq!(footer.len as usize, FOOTER_BYTES, "the footer is as documented");
        self.write_piece(if plant::is(Plant::SkipRunFlush) { Flush::No } else { Flush::Yes }).await?;
        Ok(RunMeta {
            id: self.id,
            nonce: self.nonce,
            size_bytes: self.written,
            entries: self.entries,
            deletions: self.deletions,
            first,
            last: Bytes::from(std::mem::take(&mut self.last)),
        })
    }

    fn owner<'key>(&self, key: &'key [u8]) -> &'key [u8] {
        &key[..(self.owner_len)(key).min(key.len())]
    }

    fn offset(&self) -> u64 {
        self.written + self.piece.len() as u64
    }

    fn seed(&self) -> [u8; 40] {
        seed(self.files.disk_seed, self.id, self.nonce, self.offset())
    }

    fn end_block(&mut self) {
        let (offset, seed) = (self.offset(), self.seed());
        let last = self.block.last_key().to_vec();
        let len = self.block.finish_into(&mut self.piece, &seed);
        self.index.add(&last, &Cell::put(&last, Extent { offset, len }.encode(&self.block_first)));
        if self.offset() - self.part_offset >= PART_BYTES {
            self.end_part();
        }
    }

    /// Unless nothing was added since the last one ended.
    fn end_part(&mut self) {
        if !self.block.is_empty() {
            self.end_block();
        }
        if self.index.is_empty() {
            return;
        }
        let (offset, seed) = (self.offset(), self.seed());
        let last = Bytes::copy_from_slice(self.index.last_key());
        let len = self.index.finish_into(&mut self.piece, &seed);
        let filter = self.put_checked(&filter::build(&self.hashes));
        self.hashes.clear();
        let first = std::mem::take(&mut self.part_first);
        self.parts.push(Part { first, last, data_offset: self.part_offset, index: Extent { offset, len }, filter });
        self.part_offset = self.offset();
    }

    fn put_checked(&mut self, content: &[u8]) -> Extent {
        let (offset, seed) = (self.offset(), self.seed());
        self.piece.put_bytes(content);
        self.piece.put_u32(crc32c(&seed, content));
        Extent { offset, len: u32::try_from(content.len() + 4).expect("directories are far below 4 GiB") }
    }

    async fn write_piece(&mut self, flush: Flush) -> io::Result<u64> {
        let piece = Bytes::from(std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES + self.block_bytes)));
        let len = piece.len() as u64;
        self.file.write_at(self.written, vec![piece], flush).await?;
        self.written += len;
        Ok(len)
    }
}

/// Removes what an abandoned writer left. A failure leaves an orphan, which the next start removes.
pub(super) fn remove_abandoned(files: &Files, id: u64) {
    if let Err(error) = files.disk.remove(&file_name(id)) {
        tracing::warn!(file = file_name(id), %error, "an abandoned run stays until the next start");
    }
}
