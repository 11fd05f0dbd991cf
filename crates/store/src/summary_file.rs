//! A summary's file: written block by block, read with several blocks in flight.

use base::buffer::BLOCK;
use base::env::{Caching, Disk, File, Flush, OpenMode};
use futures_util::{StreamExt, stream};
use std::io;
use std::sync::Arc;

use crate::format::Seed;
use crate::format::batch::BatchHeader;
use crate::format::summary::{
    END_BLOCK_LEN, LINES_BLOCK_LEN, LINES_IN_BLOCK, Line, Lines, SummaryEnd, decode_lines, encode_lines, lines_end,
    summary_name,
};
use crate::volume_file::VolumeFile;

/// Blocks that are read ahead.
const READS_AT_ONCE: usize = 4;

/// A summary that is being written. Until it has its end it is nothing.
pub struct SummaryWriter {
    file: Arc<dyn File>,
    seed: Seed,
    /// Lines that do not fill a block yet.
    rest: Vec<u8>,
    lines_len: u64,
    at: u64,
}

impl SummaryWriter {
    pub fn create(disk: &dyn Disk, seed: Seed) -> io::Result<SummaryWriter> {
        let name = summary_name(seed.incarnation);
        remove(disk, seed.incarnation)?;
        let file = disk.open(&name, OpenMode::CreateNew, Caching::Direct)?;
        Ok(SummaryWriter { file, seed, rest: Vec::new(), lines_len: 0, at: 0 })
    }

    pub async fn push(&mut self, lines: &[u8]) -> io::Result<()> {
        self.lines_len += lines.len() as u64;
        self.rest.extend_from_slice(lines);
        while self.rest.len() >= LINES_IN_BLOCK {
            let later = self.rest.split_off(LINES_IN_BLOCK);
            let block = std::mem::replace(&mut self.rest, later);
            self.write(&block).await?;
        }
        Ok(())
    }

    async fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let block = encode_lines(self.seed, self.at, lines);
        let at = self.at;
        self.at += block.len() as u64;
        self.file.write_at(at, vec![block], Flush::No).await
    }

    /// Writes what is left, to be followed by a flush and [`SummaryWriter::end`].
    pub async fn finish(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.write(&rest).await?;
        }
        assert_eq!(self.at, lines_end(self.lines_len), "blocks are full but for the last one");
        Ok(())
    }

    pub async fn end(&self, end: SummaryEnd) -> io::Result<()> {
        let end = SummaryEnd { lines_len: self.lines_len, ..end };
        self.file.write_at(self.at, vec![end.encode(self.seed)], Flush::No).await
    }

    pub async fn flush(&self) -> io::Result<()> {
        self.file.flush().await
    }
}

/// Removes the summary of a volume, if there is one.
pub fn remove(disk: &dyn Disk, incarnation: u64) -> io::Result<()> {
    match disk.remove(&summary_name(incarnation)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A summary that is about the volume it was asked for. Whether its lines can be believed shows when they are read.
pub struct Summary {
    file: Arc<dyn File>,
    seed: Seed,
    pub end: SummaryEnd,
}

/// The part of a summary that says why nothing can be said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unbelievable;

impl Summary {
    /// The summary of a volume that was sealed at `volume_end`; `None` when there is none that is about all of it. The
    /// volume's last batch is looked at: it must be the one that the summary ends with.
    pub async fn open(disk: &dyn Disk, volume: &VolumeFile, volume_end: u64) -> Option<Summary> {
        let seed = volume.seed;
        let file = disk.open(&summary_name(seed.incarnation), OpenMode::Existing, Caching::Direct).ok()?;
        let end_at = file.size_bytes().ok()?.checked_sub(END_BLOCK_LEN as u64)?;
        if end_at % BLOCK as u64 != 0 || volume_end < BLOCK as u64 {
            return None;
        }
        let block = file.read_at(end_at, END_BLOCK_LEN).await.ok()?;
        let end = SummaryEnd::decode(&block, seed, end_at).ok().filter(|end| end.volume_end == volume_end)?;
        let last = volume.file.read_at(volume_end - BLOCK as u64, BLOCK).await.ok()?;
        let last = BatchHeader::decode_copy(&last, seed, volume_end).ok()?;
        (last.checksum == end.checksum).then_some(Summary { file, seed, end })
    }

    /// Hands every line to `visit`, in order. After an error, what was handed out is worth nothing.
    pub async fn read(&self, visit: &mut (dyn FnMut(Line<'_>) + Send)) -> Result<(), Unbelievable> {
        let places = (0..self.end.lines_len).step_by(LINES_IN_BLOCK).zip((0u64..).step_by(LINES_BLOCK_LEN));
        let reads = places.map(|(first, at)| {
            let lines_len = (self.end.lines_len - first).min(LINES_IN_BLOCK as u64);
            let read = self.file.read_at(at, lines_end(lines_len) as usize);
            async move { (at, lines_len, read.await) }
        });
        let mut reads = stream::iter(reads).buffered(READS_AT_ONCE);
        let (mut lines, mut records) = (Lines::default(), 0);
        while let Some((at, lines_len, read)) = reads.next().await {
            let block = read.map_err(|_| Unbelievable)?;
            let piece = decode_lines(&block, self.seed, at).map_err(|_| Unbelievable)?;
            if piece.len() as u64 != lines_len {
                return Err(Unbelievable);
            }
            let mut counted = |line: Line<'_>| {
                records += 1;
                visit(line);
            };
            lines.take(piece, &mut counted).map_err(|_| Unbelievable)?;
        }
        if lines.is_done() && records == self.end.records { Ok(()) } else { Err(Unbelievable) }
    }
}
