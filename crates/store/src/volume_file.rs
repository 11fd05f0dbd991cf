//! An open volume: its file, and how far its space was written before.

use base::buffer::{AlignedBuf, BLOCK};
use base::env::{Caching, Disk, File, Flush, OpenMode};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::Seed;
use crate::format::volume::VolumeName;

/// Zeroes are written ahead in pieces of this many bytes.
const ZEROES_LEN: usize = 1 << 20;

pub struct VolumeFile {
    pub name: VolumeName,
    pub seed: Seed,
    pub file: Arc<dyn File>,
    /// Bytes from the start on that have been written at some time (zeroes, or an earlier incarnation's bytes).
    /// Writing there needs no new space.
    written_end: AtomicU64,
    /// Held by whoever moves `written_end`, so that zeroes never overtake data.
    growing: tokio::sync::Mutex<()>,
}

impl VolumeFile {
    pub fn open(disk: &dyn Disk, name: VolumeName, seed: Seed, mode: OpenMode) -> io::Result<VolumeFile> {
        let file = disk.open(&name.to_string(), mode, Caching::Direct)?;
        let written_end = AtomicU64::new(file.size_bytes()?);
        Ok(VolumeFile { name, seed, file, written_end, growing: tokio::sync::Mutex::new(()) })
    }

    pub fn written_end(&self) -> u64 {
        self.written_end.load(Ordering::Acquire)
    }

    /// Writes and flushes a journal batch.
    pub async fn append(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        if end <= self.written_end() {
            return self.file.write_at(offset, vec![bytes], Flush::Yes).await;
        }
        let _growing = self.growing.lock().await;
        self.file.write_at(offset, vec![bytes], Flush::Yes).await?;
        self.written_end.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    /// Writes a bulk payload, not flushed. Several may be in flight: the caller gave each its own place.
    pub async fn place(&self, offset: u64, pieces: Vec<Bytes>) -> io::Result<()> {
        let end = offset + pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.written_end.fetch_max(end, Ordering::AcqRel);
        self.file.write_at(offset, pieces, Flush::No).await
    }

    /// Writes zeroes behind the written end, up to `upto`, and flushes. Returns the bytes written.
    pub async fn write_ahead(&self, upto: u64) -> io::Result<u64> {
        let zeroes = AlignedBuf::zeroed(ZEROES_LEN).freeze();
        let mut total = 0;
        loop {
            // Short holds: a batch that runs out of written space waits for one piece at most.
            let _growing = self.growing.lock().await;
            let from = self.written_end().next_multiple_of(BLOCK as u64);
            if from >= upto {
                return Ok(total);
            }
            let len = (upto - from).min(ZEROES_LEN as u64);
            self.file.write_at(from, vec![zeroes.slice(..len as usize)], Flush::Yes).await?;
            self.written_end.fetch_max(from + len, Ordering::AcqRel);
            total += len;
        }
    }
}
