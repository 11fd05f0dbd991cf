//! An open volume: its file, and how far its space was written before.

use base::env::{Caching, Disk, File, Flush, OpenMode};
use base::plant::{self, Plant};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::Seed;
use crate::format::volume::VolumeName;

pub struct VolumeFile {
    pub name: VolumeName,
    pub seed: Seed,
    pub file: Arc<dyn File>,
    /// Bytes from the start on that have been written at some time, by this incarnation or an earlier one. Writing there needs
    /// no new space.
    written_end: AtomicU64,
    /// Bytes from the start on that are set aside for this file, written or not.
    reserved_end: AtomicU64,
    /// Whether a flush of background work failed; held while such a flush is under way. A failed flush may take with it what
    /// others have written to the file, and their own flush, right behind it, reports success (Rebello et al., "Can
    /// applications recover from fsync failures?", 2020).
    flush_failed: tokio::sync::Mutex<bool>,
}

impl VolumeFile {
    pub fn open(disk: &dyn Disk, name: VolumeName, seed: Seed, mode: OpenMode) -> io::Result<VolumeFile> {
        let file = disk.open(&name.to_string(), mode, Caching::Direct)?;
        let written_end = AtomicU64::new(file.size_bytes()?);
        Ok(VolumeFile {
            name,
            seed,
            file,
            reserved_end: AtomicU64::new(written_end.load(Ordering::Relaxed)),
            written_end,
            flush_failed: tokio::sync::Mutex::new(false),
        })
    }

    pub fn written_end(&self) -> u64 {
        self.written_end.load(Ordering::Acquire)
    }

    /// Sets space aside, in large pieces, so that the file does not scatter; batches there are still fresh.
    pub async fn reserve(&self, upto: u64) -> io::Result<()> {
        if self.reserved_end.load(Ordering::Acquire) < upto {
            self.file.reserve(upto).await?;
            self.reserved_end.fetch_max(upto, Ordering::AcqRel);
        }
        Ok(())
    }

    pub fn reserved_end(&self) -> u64 {
        self.reserved_end.load(Ordering::Acquire).max(self.written_end())
    }

    /// Writes and flushes a journal batch.
    pub async fn append(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let flush = if plant::is(Plant::SkipFlush) { Flush::No } else { Flush::Yes };
        let written = self.file.write_at(offset, vec![bytes], flush).await;
        if plant::is(Plant::RetryFlush) {
            self.file.flush().await?
        } else {
            written?
        }
        self.written_end.fetch_max(end, Ordering::AcqRel);
        self.no_flush_failed().await
    }

    /// Flushes payloads that were placed.
    pub async fn flush(&self) -> io::Result<()> {
        self.file.flush().await?;
        self.no_flush_failed().await
    }

    /// Flushes for background work, one at a time.
    pub async fn flush_in_background(&self) -> io::Result<()> {
        let mut failed = self.flush_failed.lock().await;
        if *failed {
            return Err(overlapping_flush_failed());
        }
        // Stays true when this flush fails, or is abandoned with its outcome unknown.
        *failed = true;
        self.file.flush().await?;
        *failed = false;
        Ok(())
    }

    /// What was flushed is durable only if no flush that overlapped with it failed: waits for the one under way.
    async fn no_flush_failed(&self) -> io::Result<()> {
        if *self.flush_failed.lock().await { Err(overlapping_flush_failed()) } else { Ok(()) }
    }

    /// Writes a bulk payload, not flushed. Several may be in flight: the caller gave each its own place.
    pub async fn place(&self, offset: u64, pieces: Vec<Bytes>) -> io::Result<()> {
        let end = offset + pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.written_end.fetch_max(end, Ordering::AcqRel);
        self.file.write_at(offset, pieces, Flush::No).await
    }
}

fn overlapping_flush_failed() -> io::Error {
    io::Error::other("a flush of this volume failed at the same time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::volume::VolumeKind;
    use base::ids::{DiskId, NodeId};
    use base::sim::{Fault, Sim};
    use std::time::Duration;

    /// Found by the simulator: the flush of zeroes failed and took an acknowledged batch with it, whose own flush had
    /// reported success.
    #[test]
    fn a_batch_is_not_durable_when_an_overlapping_flush_failed() {
        const BATCHES: usize = 100;
        let mut overlapped = 0;
        for seed in 0..400 {
            let nth = seed % 80 + 1;
            let sim = Sim::new(seed);
            let node = sim.node(NodeId(1));
            let env = node.env();
            let disk = sim.disk(NodeId(1), "disk");
            let on_node = disk.clone();
            let name = VolumeName::Live(VolumeKind::Journal, 1);
            let appended = sim.block_on(node.run(async move {
                let seed = Seed { disk: DiskId(1), incarnation: 1 };
                let file = VolumeFile::open(&*on_node, name, seed, OpenMode::CreateNew).expect("a new file");
                on_node.flush_directory().expect("durable name");
                on_node.inject(Fault::FlushError, nth);
                let file = Arc::new(file);
                let background = file.clone();
                env.spawn("background", async move { while background.flush_in_background().await.is_ok() {} });
                let mut acknowledged = 0;
                while acknowledged < BATCHES
                    && file.append(acknowledged as u64 * 4096, vec![7; 4096].into()).await.is_ok()
                {
                    acknowledged += 1;
                }
                acknowledged
            }));
            sim.crash(NodeId(1));
            let acknowledged = appended.expect("nothing crashes meanwhile");
            let contents = disk.contents(&name.to_string()).expect("the name is durable");
            assert!(
                contents[..acknowledged * 4096].iter().all(|byte| *byte == 7),
                "seed {seed}: acknowledged and lost"
            );
            overlapped += usize::from(acknowledged > 0 && acknowledged < BATCHES);
        }
        assert!(overlapped > 0, "some seeds let the flushes overlap");
    }

    /// The same in a bulk volume: parts of background work are flushed beside users' payloads.
    #[test]
    fn a_payload_is_not_durable_when_an_overlapping_flush_failed() {
        let mut overlapped = 0;
        for seed in 0..400 {
            let sim = Sim::new(seed);
            let node = sim.node(NodeId(1));
            let env = node.env();
            let disk = sim.disk(NodeId(1), "disk");
            let on_node = disk.clone();
            let name = VolumeName::Live(VolumeKind::Bulk, 1);
            let flushed = sim.block_on(node.run(async move {
                let seed = Seed { disk: DiskId(1), incarnation: 1 };
                let file = VolumeFile::open(&*on_node, name, seed, OpenMode::CreateNew).expect("a new file");
                on_node.flush_directory().expect("durable name");
                let file = Arc::new(file);
                file.place(0, vec![vec![7; 4096].into()]).await.expect("room");
                on_node.inject(Fault::FlushError, 1);
                let background = file.clone();
                env.spawn("background", async move { drop(background.flush_in_background().await) });
                env.sleep(Duration::from_nanos(1)).await;
                file.flush().await.is_ok()
            }));
            sim.crash(NodeId(1));
            let contents = disk.contents(&name.to_string()).expect("the name is durable");
            let is_durable = contents.len() >= 4096 && contents[..4096].iter().all(|byte| *byte == 7);
            let acknowledged = flushed.expect("nothing crashes meanwhile");
            assert!(is_durable || !acknowledged, "seed {seed}: acknowledged and lost");
            overlapped += usize::from(!is_durable);
        }
        assert!(overlapped > 0, "some seeds lose the payload");
    }
}
