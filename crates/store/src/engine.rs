//! The engine of one disk directory: what the rest of henge calls.
//!
//! ```text
//! put ─┬─ small ─────────────────────────► queue ─► committer: batch, flush, apply, answer
//!      └─ large ─► bulk write ─► flush ──► locator ──┘
//! get ─► index ─► read ─► verify
//! ```

use base::checksum::Crc64;
use base::env::Disk;
use base::ids::{ChunkId, GroupId, LogIndex, OwnerId, PgEpoch, PoolId, Session, Slot as PlacementSlot, Term};
use base::plant::{self, Plant};
use base::{CHUNK_SIZE_MAX, Env, GIB, KIB, MIB};
use bytes::Bytes;
use std::future::Future;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

use crate::bulk::{self, LargeChunk};
use crate::committer::Committer;
use crate::compaction;
use crate::errors::{StoreError, is_no_space};
use crate::format::batch::RecordIn;
use crate::format::record::{Kind, RecordHeader};
use crate::format::volume::{VolumeKind, VolumeName};
use crate::identity::{self, DiskIdentity, FoundIdentity, IDENTITY_FILE};
use crate::index::{Slot, VolumeNumber};
use crate::inner::{EngineOptions, Inner, Shared, Spare, count};
use crate::queue::{Outcome, Request};
use crate::raft_log::{RaftLog, RaftWrite};
use crate::read::{self, ReadFailure};
use crate::recovery::{self, Recovered, Source};
use crate::report::{
    ChunkData, ChunkStat, DamagedRecord, DamagedWhat, Digest, DiskState, DiskUsage, EngineStats, Known, RecoveryReport,
    ScrubReport,
};
use crate::round::judge_put;
use crate::scrub;
use crate::summary;
use crate::volume_file::VolumeFile;

/// Payloads up to this length in bytes go into the journal, larger ones into a bulk volume.
pub const SMALL_LEN_MAX: usize = 256 << 10;
/// Most bytes of hard state and entries of one [`RaftWrite`].
pub const RAFT_WRITE_LEN_MAX: usize = 16 << 20;
/// Most entries of one [`RaftWrite`].
pub const RAFT_WRITE_ENTRIES_MAX: usize = 64 << 10;
/// Tombstones per request of a large delete.
const DELETE_IDS_MAX: usize = 8192;
/// How often the engine looks at the file system, unasked.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(2);

const _: () = assert!(CHUNK_SIZE_MAX as u64 <= GIB);

/// A chunk to store.
#[derive(Clone, Debug)]
pub struct NewChunk {
    pub id: ChunkId,
    pub owner: OwnerId,
    pub epoch: PgEpoch,
    /// CRC-64/NVME of the payload, computed by the writer; verified before anything is acknowledged.
    pub crc64: u64,
    /// At most [`CHUNK_SIZE_MAX`] bytes together. Large payloads whose pieces are whole, aligned blocks (the last may be
    /// shorter) are written without a copy.
    pub payload: Vec<Bytes>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutOutcome {
    Stored,
    /// The same bytes were durable under this id before.
    AlreadyStored,
}

/// One disk. Clones share it; when the last one goes, the engine stops without its closing batch (see
/// [`Engine::close`]).
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
    _stopper: Arc<Stopper>,
}

struct Stopper(Arc<Inner>);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.shutdown.begin();
    }
}

impl Engine {
    /// Makes an empty directory a henge disk. Refuses one that holds anything else.
    pub async fn format(
        _env: &Env,
        disk: Arc<dyn Disk>,
        identity: &DiskIdentity,
        _options: &EngineOptions,
    ) -> Result<(), StoreError> {
        let _lock = lock(&disk)?;
        if Engine::read_identity(&disk).await?.is_some() {
            return Err(StoreError::Foreign("it is a formatted henge disk already".into()));
        }
        let entries = disk.list().map_err(|error| StoreError::io("listing the disk directory", &error))?;
        let temporary = format!("{IDENTITY_FILE}.new");
        if let Some(entry) = entries.iter().find(|entry| entry.name != temporary && !is_harmless(&entry.name)) {
            return Err(StoreError::Foreign(format!("it holds {:?}", entry.name)));
        }
        identity::write(&disk, identity).await
    }

    /// Whose disk this is; `None` when it was never formatted.
    pub async fn read_identity(disk: &Arc<dyn Disk>) -> Result<Option<DiskIdentity>, StoreError> {
        Ok(identity::find(disk).await?.map(|found| found.identity))
    }

    /// Locks the directory, recovers what it holds, and starts serving.
    pub async fn open(
        env: &Env,
        disk: Arc<dyn Disk>,
        options: EngineOptions,
    ) -> Result<(Engine, RecoveryReport), StoreError> {
        let lock = lock(&disk)?;
        let identity = find_identity(&disk).await?;
        let mut recovered = recovery::recover(&disk, identity.identity.disk, Source::Summaries).await?;
        let mut report = std::mem::take(&mut recovered.report);
        if identity.copy_damaged {
            report.damaged.push(DamagedRecord {
                volume: 0,
                offset: 0,
                what: DamagedWhat::Identity,
                detail: "one copy of the identity was damaged and has been rewritten".into(),
            });
            identity::rewrite(&disk, &identity).await?;
        }
        // A later cut must not take away what this start has already seen.
        for number in recovered.unsealed.iter().filter(|_| !plant::is(Plant::SkipRecoveredFlush)) {
            let file = &recovered.files[number].file;
            file.flush().await.map_err(|error| StoreError::Broken(format!("flushing a recovered volume: {error}")))?;
        }
        let volume_size = volume_size(&disk, &options)?;
        let inner = start_inner(env, disk, identity, options, volume_size, &mut recovered, lock);
        resume_bulk(&inner, report.damaged.is_empty()).await;
        let committer = Committer::start(inner.clone(), recovered.cut).await?;
        // Only now may files that the old list named be used again.
        let spare = recovered.spare.iter().filter(|name| !matches!(name, VolumeName::Free(_)));
        let spare: Vec<_> = spare.map(|name| spare_of(&inner, *name)).collect();
        inner.shared().spare.extend(spare);
        inner.summaries.set_whole(std::mem::take(&mut recovered.summarised));
        spawn_tasks(&inner, committer, recovered.stale_summaries);
        let engine = Engine { _stopper: Arc::new(Stopper(inner.clone())), inner };
        engine.record_raft_damage(&report.raft_damaged).await?;
        Ok((engine, report))
    }

    /// Writes down which groups lost their logs, so that no later compaction can make them look whole.
    async fn record_raft_damage(&self, groups: &[GroupId]) -> Result<(), StoreError> {
        for group in groups {
            let reason = {
                let shared = self.inner.shared();
                let log = shared.state.raft.get(group).filter(|log| !log.damage_is_recorded());
                log.and_then(|log| log.damage())
            };
            if let Some(reason) = reason {
                self.inner.queue.run(Request::RaftDamaged { group: *group, reason }, false).await?;
            }
        }
        Ok(())
    }

    pub fn identity(&self) -> &DiskIdentity {
        &self.inner.identity
    }

    /// Stores a chunk; durable when it returns. Storing the same bytes again is harmless.
    pub async fn put(&self, chunk: NewChunk) -> Result<PutOutcome, StoreError> {
        self.put_for(chunk, false).await
    }

    /// The same for background work: a large chunk is written and flushed a part at a time, so that no flush of a user waits
    /// for all of it.
    pub async fn put_gently(&self, chunk: NewChunk) -> Result<PutOutcome, StoreError> {
        self.put_for(chunk, true).await
    }

    async fn put_for(&self, chunk: NewChunk, background: bool) -> Result<PutOutcome, StoreError> {
        let len: usize = chunk.payload.iter().map(Bytes::len).sum();
        if len > CHUNK_SIZE_MAX {
            return Err(StoreError::Invalid(format!("a chunk of {len} bytes; at most {CHUNK_SIZE_MAX} are taken")));
        }
        let mut crc = Crc64::new();
        chunk.payload.iter().for_each(|piece| crc.update(piece));
        if crc.finish() != chunk.crc64 {
            return Err(StoreError::BadPayload);
        }
        self.check_writable()?;
        let len = len as u32;
        let judged = judge_put(&self.inner.shared().state, chunk.id, len, chunk.crc64);
        match judged {
            Ok(Outcome::AlreadyStored) => return Ok(PutOutcome::AlreadyStored),
            Err(StoreError::Conflict) => {
                count(&self.inner.counters.conflicts, 1);
                return Err(StoreError::Conflict);
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        self.inner.space.admit(&self.inner, u64::from(len) + 8 * KIB)?;
        count(&self.inner.counters.puts, 1);
        let outcome = if len as usize <= SMALL_LEN_MAX {
            count(&self.inner.counters.copied_bytes, u64::from(len));
            let header = RecordHeader::chunk(Kind::Chunk, chunk.id, chunk.owner, chunk.epoch, chunk.crc64);
            let record = RecordIn { header, payload: chunk.payload };
            let request = Request::Store { record, len, crc64: chunk.crc64, moved_from: None, bulk: None };
            self.inner.queue.run(request, false).await?
        } else {
            let header = RecordHeader::chunk(Kind::Locator, chunk.id, chunk.owner, chunk.epoch, chunk.crc64);
            let chunk = LargeChunk { header, len, payload: chunk.payload, moved_from: None };
            bulk::store(&self.inner, chunk, background).await?
        };
        Ok(if outcome == Outcome::AlreadyStored { PutOutcome::AlreadyStored } else { PutOutcome::Stored })
    }

    /// The bytes of `range`, cut at the chunk's end; every byte verified. `0..u32::MAX` is the whole chunk.
    pub async fn get(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkData, StoreError> {
        count(&self.inner.counters.gets, 1);
        read::chunk(&self.inner, id, range, false).await
    }

    /// The same with the chunk's owner, for which more may have to be read.
    pub async fn get_owned(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkData, StoreError> {
        count(&self.inner.counters.gets, 1);
        read::chunk(&self.inner, id, range, true).await
    }

    /// What the index knows; `None` when there is no such chunk or it was deleted.
    pub fn stat(&self, id: ChunkId) -> Option<ChunkStat> {
        match self.inner.shared().state.index.get(id) {
            Some(Slot::Live(live)) => Some(read::stat_of(id, &live)),
            _ => None,
        }
    }

    /// Whether a tombstone covers this id.
    pub fn is_deleted(&self, id: ChunkId) -> bool {
        matches!(self.inner.shared().state.index.get(id), Some(Slot::Deleted { .. }))
    }

    /// Writes tombstones, also for absent ids; durable when it returns.
    pub async fn delete(&self, ids: Vec<ChunkId>) -> Result<(), StoreError> {
        self.check_writable()?;
        count(&self.inner.counters.deletes, ids.len() as u64);
        for some in ids.chunks(DELETE_IDS_MAX) {
            self.inner.queue.run(Request::Delete { ids: some.to_vec(), moved_from: None }, false).await?;
        }
        Ok(())
    }

    /// Lets go of chunks whose placement group has moved to other disks. Unlike deleted ones they may be stored again.
    pub async fn evict(&self, ids: Vec<ChunkId>) -> Result<(), StoreError> {
        self.check_writable()?;
        for some in ids.chunks(DELETE_IDS_MAX) {
            self.inner.queue.run(Request::Evict { ids: some.to_vec(), moved_from: None }, true).await?;
        }
        Ok(())
    }

    /// What there is of a pool in these slots, as one number.
    pub fn digest(&self, pool: PoolId, slots: RangeInclusive<u32>) -> Digest {
        self.inner.shared().state.index.digest(pool, slots)
    }

    /// As `inventory`, with tombstones.
    pub fn known(&self, after: Option<ChunkId>, pool: PoolId, slots: RangeInclusive<u32>, limit: usize) -> Vec<Known> {
        let Some(ids) = ids_behind(after, pool, slots) else { return Vec::new() };
        let known = |(id, slot)| match slot {
            Slot::Live(live) => Some(Known::Chunk(read::stat_of(id, &live))),
            Slot::Deleted { .. } => Some(Known::Deleted(id)),
            Slot::Evicted { .. } => None,
        };
        self.inner.shared().state.index.slots_in(ids).filter_map(known).take(limit).collect()
    }

    /// Chunks of a pool in these slots, in id order from behind `after` on, at most `limit`.
    pub fn inventory(
        &self,
        after: Option<ChunkId>,
        pool: PoolId,
        slots: RangeInclusive<u32>,
        limit: usize,
    ) -> Vec<ChunkStat> {
        let Some(ids) = ids_behind(after, pool, slots) else { return Vec::new() };
        let shared = self.inner.shared();
        shared.state.index.live_in(ids).take(limit).map(|(id, live)| read::stat_of(id, &live)).collect()
    }

    /// Applies one Raft write; durable when it returns. Writes of one group must not overlap.
    pub async fn raft_write(&self, write: RaftWrite) -> Result<(), StoreError> {
        self.check_writable()?;
        let (size, entries) = (write.size_bytes(), write.entries.len());
        if size > RAFT_WRITE_LEN_MAX.min(self.inner.volume_size as usize / 4) || entries > RAFT_WRITE_ENTRIES_MAX {
            return Err(StoreError::Invalid(format!("a Raft write of {size} bytes in {entries} entries")));
        }
        self.inner.queue.run(Request::Raft(write), false).await.map(|_| ())
    }

    /// The whole log of a group, verified; `None` when this disk has none. `Damaged`: this peer never votes again.
    pub async fn raft_load(&self, group: GroupId) -> Result<Option<RaftLog>, StoreError> {
        const MOVES_MAX: usize = 8;
        for _ in 0..MOVES_MAX {
            let (log, files) = {
                let shared = self.inner.shared();
                match shared.state.raft.get(&group).filter(|log| !log.removed) {
                    None if shared.state.raft_lost => {
                        return Err(StoreError::Damaged("raft records of unknown groups are lost".into()));
                    }
                    None => return Ok(None),
                    Some(log) => (log.clone(), shared.files.clone()),
                }
            };
            if let Some(reason) = log.damage() {
                return Err(StoreError::Damaged(reason));
            }
            match read::raft_log(&files, group, &log).await {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(failure) => {
                    let mut shared = self.inner.shared();
                    let Some(now) = shared.state.raft.get_mut(&group) else { continue };
                    if now.number != log.number {
                        continue;
                    }
                    return Err(match failure {
                        ReadFailure::Io(detail) => StoreError::Io(detail),
                        ReadFailure::Damaged(detail) => {
                            now.mark_damaged(&detail);
                            StoreError::Damaged(detail)
                        }
                    });
                }
            }
        }
        Err(StoreError::Io(format!("the log of group {group} kept moving")))
    }

    /// Forgets a group: its peer has left this disk for good.
    pub async fn raft_remove(&self, group: GroupId) -> Result<(), StoreError> {
        self.check_writable()?;
        self.inner.queue.run(Request::RaftRemove(group), false).await.map(|_| ())
    }

    /// Groups with a log here, damaged ones included.
    pub fn raft_groups(&self) -> Vec<GroupId> {
        let shared = self.inner.shared();
        shared.state.raft.iter().filter(|(_, log)| !log.removed).map(|(group, _)| *group).collect()
    }

    pub fn usage(&self) -> DiskUsage {
        self.inner.space.usage(&self.inner)
    }

    pub fn state(&self) -> DiskState {
        match self.inner.broken() {
            Some(StoreError::Broken(reason)) => DiskState::Broken(reason),
            _ if self.inner.is_shutting_down() => DiskState::Closed,
            _ if !self.usage().writable => DiskState::Full,
            _ => DiskState::Healthy,
        }
    }

    pub fn stats(&self) -> EngineStats {
        let mut stats = EngineStats::default();
        self.inner.counters.fill(&mut stats);
        for cache in [&self.inner.cache, &self.inner.large_cache] {
            stats.cached_bytes += cache.bytes();
            stats.cache_hits += cache.hits();
            stats.cache_misses += cache.misses();
        }
        let shared = self.inner.shared();
        stats.chunks = shared.state.index.live_count();
        stats.tombstones = shared.state.index.tombstone_count();
        stats.volumes = shared.state.volumes.len() as u64;
        stats.free_volumes = shared.spare.len() as u64;
        stats.raft_groups = shared.state.raft.values().filter(|log| !log.removed).count() as u64;
        stats.damaged = shared.state.damaged_count;
        stats.volumes_with_damage = shared.state.volumes_with_damage();
        stats
    }

    /// What is damaged and neither repaired nor deleted since.
    pub fn damaged(&self) -> Vec<DamagedRecord> {
        self.inner.shared().state.quarantine()
    }

    /// Says that whatever the first `findings` findings ([`EngineStats::damaged`]) may have cost this disk was replaced
    /// from other copies, or is needed by nobody. Volumes are kept as they are while they have damage: evidence, and
    /// the last chance of whoever has no other copy. These are now rewritten without it, and their files used again.
    pub async fn release_damage(&self, findings: u64) -> Result<(), StoreError> {
        if self.inner.shared().state.release_damage(findings) > 0 {
            self.inner.wake_compaction();
            // The volume that is written to may be one of them. On an idle disk the next write could be far away, and a
            // tombstone that is known here from memory alone would be gone with a crash until then.
            self.inner.queue.run(Request::Seal, true).await?;
        }
        Ok(())
    }

    /// Reads everything once, as fast as it goes. What is found is in [`Engine::damaged`].
    pub async fn scrub_now(&self) -> Result<ScrubReport, StoreError> {
        scrub::pass(&self.inner, 0).await
    }

    /// As [`Engine::scrub_now`], at no more than this rate; slower while users wait.
    pub async fn scrub_at(&self, bytes_per_s: u64) -> Result<ScrubReport, StoreError> {
        scrub::pass(&self.inner, bytes_per_s).await
    }

    /// Finishes what was begun, writes the closing batch, stops all tasks and lets go of the directory.
    pub async fn close(self) {
        bulk::drain(&self.inner).await;
        self.inner.shutdown.begin();
        let alive = self.inner.alive.lock().expect("no one panics while holding it").take();
        if let Some(mut alive) = alive {
            // Nobody sends: this waits until the last task has dropped its end.
            while alive.recv().await.is_some() {}
        }
        drop(self.inner.lock.lock().expect("no one panics while holding it").take());
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        if self.inner.is_shutting_down() {
            return Err(StoreError::Closed);
        }
        self.inner.broken().map_or(Ok(()), Err)
    }
}

fn lock(disk: &Arc<dyn Disk>) -> Result<Box<dyn Send + Sync>, StoreError> {
    disk.lock().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => StoreError::InUse,
        _ => StoreError::io("locking the disk directory", &error),
    })
}

/// The ids of these slots of a pool, from behind `after` on.
fn ids_behind(after: Option<ChunkId>, pool: PoolId, slots: RangeInclusive<u32>) -> Option<RangeInclusive<ChunkId>> {
    let first = ChunkId { pool, slot: PlacementSlot::new(*slots.start()), session: Session::default(), counter: 0 };
    let end = ChunkId { slot: PlacementSlot::new(*slots.end()), ..first };
    let last = ChunkId::from_u128(end.to_u128() | ((1 << 96) - 1));
    let after = after.filter(|after| *after >= first);
    let from = after.map_or(first, |after| ChunkId::from_u128(after.to_u128().saturating_add(1)));
    (!slots.is_empty() && from <= last).then_some(from..=last)
}

/// What may be in a directory that is to be formatted: file systems put `lost+found` there, `Disk::lock` its file.
fn is_harmless(name: &str) -> bool {
    matches!(name, "lost+found" | "lock" | ".lock")
}

async fn find_identity(disk: &Arc<dyn Disk>) -> Result<FoundIdentity, StoreError> {
    if let Some(found) = identity::find(disk).await? {
        return Ok(found);
    }
    let entries = disk.list().map_err(|error| StoreError::io("listing the disk directory", &error))?;
    match entries.iter().find(|entry| VolumeName::parse(&entry.name).is_some()) {
        Some(entry) => Err(StoreError::IdentityDamaged(format!("there is {} but no identity file", entry.name))),
        None => Err(StoreError::NotFormatted),
    }
}

fn volume_size(disk: &Arc<dyn Disk>, options: &EngineOptions) -> Result<u64, StoreError> {
    let space = disk.space().map_err(|error| StoreError::io("asking for the size of the disk", &error))?;
    let size = options.size_bytes_max.unwrap_or(u64::MAX).min(space.total_bytes);
    let size = options.volume_size_bytes.unwrap_or((size / 64).clamp(64 * MIB, GIB));
    Ok(size.next_multiple_of(MIB).min(GIB))
}

fn start_inner(
    env: &Env,
    disk: Arc<dyn Disk>,
    identity: FoundIdentity,
    options: EngineOptions,
    volume_size: u64,
    recovered: &mut Recovered,
    lock: Box<dyn Send + Sync>,
) -> Arc<Inner> {
    let shared = Shared {
        state: std::mem::take(&mut recovered.state),
        files: std::mem::take(&mut recovered.files),
        spare: Vec::new(),
        journal: 0,
    };
    let inner = Arc::new(Inner::new(env.clone(), disk, identity, options, volume_size, shared, lock));
    let free = recovered.spare.iter().filter(|name| matches!(name, VolumeName::Free(_)));
    let free: Vec<_> = free.map(|name| spare_of(&inner, *name)).collect();
    inner.shared().spare = free;
    inner.space.count_others(&inner);
    inner.space.recompute(&inner);
    inner
}

fn spare_of(inner: &Inner, name: VolumeName) -> Spare {
    let entries = inner.disk.list().unwrap_or_default();
    let found = entries.iter().find(|entry| entry.name == name.to_string());
    Spare { name, size_bytes: found.map_or(0, |entry| entry.size_bytes) }
}

/// Goes on filling the newest bulk volume. A record there exists only through its locator, so what a crash left
/// behind the last one can be overwritten; after damage nothing is.
async fn resume_bulk(inner: &Inner, undamaged: bool) {
    let newest: Option<VolumeNumber> = {
        let mut shared = inner.shared();
        let mut bulk = shared.state.volumes.iter_mut().filter(|(_, volume)| volume.kind == VolumeKind::Bulk);
        bulk.next_back().filter(|(_, volume)| undamaged && volume.end < inner.volume_size).map(|(number, volume)| {
            volume.sealed = false;
            *number
        })
    };
    inner.bulk.resume(newest).await;
}

fn spawn_tasks(inner: &Arc<Inner>, committer: Committer, stale_summaries: Vec<VolumeNumber>) {
    let (alive, ended) = mpsc::channel(1);
    *inner.alive.lock().expect("no one panics while holding it") = Some(ended);
    spawn(inner, &alive, "store committer", committer.run());
    spawn(inner, &alive, "store bulk flush", bulk::run_flusher(inner.clone()));
    spawn(inner, &alive, "store reserve", reserve_ahead(inner.clone()));
    spawn(inner, &alive, "store housekeeping", housekeeping(inner.clone()));
    spawn(inner, &alive, "store compaction", compaction::run(inner.clone()));
    spawn(inner, &alive, "store recycling", compaction::run_empties(inner.clone()));
    spawn(inner, &alive, "store scrub", scrub::run(inner.clone()));
    spawn(inner, &alive, "store summary", summary::run_writer(inner.clone()));
    spawn(inner, &alive, "store summaries", summary::run_maker(inner.clone(), stale_summaries));
}

fn spawn(inner: &Inner, alive: &mpsc::Sender<()>, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    let alive = alive.clone();
    inner.env.spawn(name, async move {
        task.await;
        drop(alive);
    });
}

/// Whether less than half of the space that is to be ahead of a journal volume's head is there.
pub fn lacks_space_ahead(inner: &Inner, file: &VolumeFile, head: u64) -> bool {
    file.reserved_end() < (head + inner.options.ahead_bytes / 2).min(inner.volume_size)
}

/// Sets space aside ahead of the journal's head, so that batches need none from the file system.
async fn reserve_ahead(inner: Arc<Inner>) {
    loop {
        let (file, head) = {
            let shared = inner.shared();
            let head = shared.state.volumes.get(&shared.journal).map_or(0, |volume| volume.end);
            (shared.files.get(&shared.journal).cloned(), head)
        };
        let upto = (head + inner.options.ahead_bytes).min(inner.volume_size);
        let is_due = |file: &Arc<VolumeFile>| inner.broken().is_none() && lacks_space_ahead(&inner, file, head);
        if let Some(file) = file.filter(is_due) {
            match file.reserve(upto).await {
                Ok(()) => {}
                Err(error) if is_no_space(&error) => inner.space.note_no_space(),
                Err(error) => drop(inner.poison(format!("setting the journal's space aside: {error}"))),
            }
        }
        tokio::select! {
            biased;
            () = inner.shutdown.wait() => return,
            () = inner.ahead_wake.notified() => {}
        }
    }
}

async fn housekeeping(inner: Arc<Inner>) {
    while inner.pause(HOUSEKEEPING_INTERVAL).await {
        inner.space.count_others(&inner);
        inner.space.recompute(&inner);
        inner.wake_compaction();
    }
}

/// The base of a log that starts at its beginning.
pub const LOG_START: (LogIndex, Term) = (LogIndex(0), Term(0));
