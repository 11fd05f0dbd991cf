//! How full the disk is, and who may still write.
//!
//! Puts stop at 95 % so that tombstones, Raft, the key-value store and compaction always find room in the rest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::errors::StoreError;
use crate::format::volume::VolumeName;
use crate::inner::{Inner, Shared};
use crate::report::DiskUsage;

/// Admitted bytes after which usage is computed anew.
const RECOMPUTE_BYTES: u64 = 8 << 20;

#[derive(Default)]
pub struct Space {
    capacity: AtomicU64,
    used: AtomicU64,
    live: AtomicU64,
    other: AtomicU64,
    /// Admitted since `used` was computed.
    since: AtomicU64,
    /// The file system said that it is full.
    no_space: AtomicBool,
    /// A put was refused, and not enough has come back since.
    full: AtomicBool,
}

impl Space {
    /// Lets a put of `len` bytes pass, or says that the disk is full.
    pub fn admit(&self, inner: &Inner, len: u64) -> Result<(), StoreError> {
        let since = self.since.fetch_add(len, Ordering::Relaxed) + len;
        if since > RECOMPUTE_BYTES || !self.has_room(inner) {
            self.recompute(inner);
            self.since.store(len, Ordering::Relaxed);
        }
        if self.has_room(inner) {
            return Ok(());
        }
        self.full.store(true, Ordering::Relaxed);
        self.since.fetch_sub(len, Ordering::Relaxed);
        Err(StoreError::Full)
    }

    fn has_room(&self, inner: &Inner) -> bool {
        let used = self.used.load(Ordering::Relaxed) + self.since.load(Ordering::Relaxed);
        !self.is_full() && used <= put_limit(self.capacity.load(Ordering::Relaxed), inner)
    }

    fn is_full(&self) -> bool {
        self.no_space.load(Ordering::Relaxed) || self.full.load(Ordering::Relaxed)
    }

    pub fn note_no_space(&self) {
        self.no_space.store(true, Ordering::Relaxed);
    }

    /// Looks at the volumes and the file system. Cheap enough for every few megabytes.
    pub fn recompute(&self, inner: &Inner) {
        if self.no_space.load(Ordering::Relaxed) {
            give_back_spares(inner);
            inner.summaries.give_back(inner);
        }
        let (used, live, held, spare) = {
            let shared = inner.shared();
            let spare: u64 = shared.spare.iter().map(|spare| spare.size_bytes).sum();
            (used_bytes(&shared), live_bytes(&shared), held_bytes(&shared), spare)
        };
        let other = self.other.load(Ordering::Relaxed);
        let Ok(space) = inner.disk.space() else { return };
        // What the file system still has, and what is in this directory already.
        let reachable = space.available_bytes.saturating_add(held).saturating_add(other).saturating_add(spare);
        let capacity = inner.options.size_bytes_max.unwrap_or(u64::MAX).min(reachable);
        self.capacity.store(capacity, Ordering::Relaxed);
        self.used.store(used + other, Ordering::Relaxed);
        self.live.store(live, Ordering::Relaxed);
        self.since.store(0, Ordering::Relaxed);
        // Some way below the limit, so that the disk does not open and close with each chunk.
        if used + other < put_limit(capacity, inner) / 50 * 49 {
            self.full.store(false, Ordering::Relaxed);
        }
        if space.available_bytes > (16 << 20) {
            self.no_space.store(false, Ordering::Relaxed);
        }
    }

    /// Counts the files that are not volumes. Lists the directory: for the housekeeping only.
    pub fn count_others(&self, inner: &Inner) {
        let Ok(entries) = inner.disk.list() else { return };
        let others = entries.iter().filter(|entry| VolumeName::parse(&entry.name).is_none());
        self.other.store(others.map(|entry| entry.size_bytes).sum(), Ordering::Relaxed);
    }

    pub fn usage(&self, inner: &Inner) -> DiskUsage {
        self.recompute(inner);
        let capacity = self.capacity.load(Ordering::Relaxed);
        let used = self.used.load(Ordering::Relaxed);
        let full = self.is_full();
        DiskUsage {
            capacity_bytes: capacity,
            used_bytes: used,
            live_bytes: self.live.load(Ordering::Relaxed),
            other_bytes: self.other.load(Ordering::Relaxed),
            placement_open: !full && used < placement_limit(capacity, inner),
            writable: !full && used < put_limit(capacity, inner),
        }
    }

    /// Whether compaction should hurry: puts are close to being refused.
    pub fn is_short(&self, inner: &Inner) -> bool {
        let used = self.used.load(Ordering::Relaxed) + self.since.load(Ordering::Relaxed);
        let capacity = self.capacity.load(Ordering::Relaxed);
        self.is_full() || used > put_limit(capacity, inner) / 10 * 9
    }
}

/// Files kept for new volumes are room that nothing else can use: on a full file system they would keep it full, with the
/// key-value store out of room, however much is deleted.
fn give_back_spares(inner: &Inner) {
    let spares = std::mem::take(&mut inner.shared().spare);
    for spare in spares {
        if inner.disk.remove(&spare.name.to_string()).is_err() {
            inner.shared().spare.push(spare);
        }
    }
}

/// Kept back from puts: 5 %, at least one volume (compaction must be able to write one before it frees one), at most
/// a quarter.
fn kept_back(capacity: u64, inner: &Inner) -> u64 {
    (capacity / 20).max(inner.volume_size).min(capacity / 4)
}

fn put_limit(capacity: u64, inner: &Inner) -> u64 {
    capacity - kept_back(capacity, inner)
}

fn placement_limit(capacity: u64, inner: &Inner) -> u64 {
    (capacity / 10 * 9).min(put_limit(capacity, inner) / 20 * 19)
}

/// Space that puts cannot have: sealed volumes hold their whole files, open ones only what is behind their heads.
fn used_bytes(shared: &Shared) -> u64 {
    let volumes = shared.state.volumes.iter();
    volumes
        .map(|(number, volume)| {
            let file = shared.files.get(number).map_or(0, |file| file.written_end());
            if volume.sealed { file.max(volume.end) } else { volume.end }
        })
        .sum()
}

fn held_bytes(shared: &Shared) -> u64 {
    shared.files.values().map(|file| file.written_end()).sum()
}

fn live_bytes(shared: &Shared) -> u64 {
    shared.state.volumes.values().map(|volume| volume.live_bytes.max(0) as u64).sum()
}
