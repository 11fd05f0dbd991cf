//! Gives space back: rewrites what is still alive in a volume that is mostly dead, then recycles the volume's file.
//!
//! Everything is read and verified first and written through the committer, which drops a move when the chunk was
//! deleted or moved meanwhile. A volume goes only once a `VolumeDropped` record is durable, and only if nothing in it
//! matters any more; a volume with damage stays as it is until [`crate::Engine::release_damage`].

use base::checksum::crc64;
use base::env::MonoTime;
use base::ids::{ChunkId, GroupId, LogIndex, PeerId, Term};
use base::plant::{self, Plant};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

use crate::bulk::{self, LargeChunk};
use crate::errors::StoreError;
use crate::format::batch::RecordIn;
use crate::format::record::{Kind, Locator, PAYLOAD_MAX, RecordHeader};
use crate::format::volume::{VolumeKind, VolumeName};
use crate::index::{Health, Live, Slot, VolumeNumber};
use crate::inner::{Inner, Pacer, Spare, count};
use crate::queue::{Outcome, Pending, Place, Request};
use crate::raft_log::GroupLog;
use crate::read::{self, RecordReader};
use crate::round::base_record;
use crate::scan::{Extent, Item, scan_paced};
use crate::state::Volume;
use crate::summary_file;
use crate::volume_file::VolumeFile;

/// Part of a volume that must be dead before it is compacted, in percent; and when space is short.
const DEAD_PERCENT_MIN: u64 = 50;
const DEAD_PERCENT_MIN_SHORT: u64 = 5;
/// Journal volumes sealed early (by restarts) that may pile up before they are merged.
const STUBS_MAX: usize = 8;
/// Emptied files kept for reuse.
const SPARE_MAX: usize = 4;
/// Bytes of moves in flight at once.
const MOVES_LEN_MAX: usize = 1 << 20;
/// How often a log that is being written may spoil its own rewriting. Then it is left to its trims: under load they soon
/// leave nothing but its hard state and base in a volume, which are written anew beside everything else.
const REWRITES_MAX: usize = 3;
/// Of a base and of a hard state that has grown meanwhile, in bytes.
const RENEWED_LEN_SPARE: usize = 64;
/// How long a volume that could not be compacted is left alone.
const DEFER: Duration = Duration::from_secs(30);

/// What the choice looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub number: VolumeNumber,
    pub kind: VolumeKind,
    /// Bytes that come back when the volume goes.
    pub held_bytes: u64,
    pub live_bytes: u64,
    pub live_records: i64,
    /// Has damage that nobody needs.
    pub rewrite: bool,
}

/// Which volume to compact next: one with damage; else the one with most to win; else one of too many stubs. Empty ones
/// need no compaction.
pub fn choose(candidates: &[Candidate], volume_size: u64, short: bool) -> Option<VolumeNumber> {
    let candidates: Vec<_> = candidates.iter().filter(|candidate| candidate.live_records > 0).collect();
    if let Some(damaged) = candidates.iter().find(|candidate| candidate.rewrite) {
        return Some(damaged.number);
    }
    let dead = |candidate: &Candidate| candidate.held_bytes.saturating_sub(candidate.live_bytes);
    let least = if short { DEAD_PERCENT_MIN_SHORT } else { DEAD_PERCENT_MIN };
    let worth = |candidate: &&&Candidate| dead(candidate) * 100 >= candidate.held_bytes * least;
    let share = |candidate: &Candidate| dead(candidate) * 1000 / candidate.held_bytes.max(1);
    if let Some(best) = candidates.iter().filter(worth).max_by_key(|candidate| share(candidate)) {
        return Some(best.number);
    }
    let is_stub =
        |candidate: &&&Candidate| candidate.kind == VolumeKind::Journal && candidate.held_bytes < volume_size / 4;
    let stubs: Vec<_> = candidates.iter().filter(is_stub).collect();
    (stubs.len() > STUBS_MAX).then(|| stubs.iter().min_by_key(|stub| stub.live_bytes).map(|stub| stub.number))?
}

/// Compacts, one volume after the other, until the engine is closed.
pub async fn run(inner: Arc<Inner>) {
    let mut deferred: BTreeMap<VolumeNumber, MonoTime> = BTreeMap::new();
    loop {
        while !inner.is_shutting_down() && inner.broken().is_none() {
            let now = inner.env.now();
            deferred.retain(|_, until| *until > now);
            let mut candidates = candidates(&inner);
            candidates.retain(|candidate| !deferred.contains_key(&candidate.number));
            let short = inner.space.is_short(&inner);
            let Some(victim) = choose(&candidates, inner.volume_size, short) else { break };
            if !compact(&inner, victim).await {
                deferred.insert(victim, inner.env.now() + DEFER);
            }
        }
        if !woken(&inner, &inner.compaction_wake).await {
            return;
        }
    }
}

/// Lets go of volumes in which nothing is alive: beside [`run`], so that mass deletions give their space back while
/// some other volume is being compacted at its leisure.
pub async fn run_empties(inner: Arc<Inner>) {
    loop {
        let empty: Vec<_> = candidates(&inner).into_iter().filter(|candidate| candidate.live_records == 0).collect();
        for candidate in empty {
            if inner.is_shutting_down() || inner.broken().is_some() {
                break;
            }
            if let Some(file) = inner.file(candidate.number) {
                let_go(&inner, candidate.number, &file, Vec::new()).await;
            }
        }
        if !woken(&inner, &inner.empties_wake).await {
            return;
        }
    }
}

/// Waits for a reason to look again; false when the engine is closed.
async fn woken(inner: &Inner, wake: &Notify) -> bool {
    tokio::select! {
        biased;
        () = inner.shutdown.wait() => false,
        () = wake.notified() => true,
    }
}

/// Sealed volumes without damage that may matter.
fn candidates(inner: &Inner) -> Vec<Candidate> {
    let shared = inner.shared();
    let eligible = |volume: &Volume| volume.sealed && !volume.pinned && volume.damaged_live == 0 && volume.pending == 0;
    let volumes = shared.state.volumes.iter().filter(|(_, volume)| eligible(volume));
    let candidate = |(number, volume): (&VolumeNumber, &Volume)| {
        let file_bytes = shared.files.get(number).map_or(0, |file| file.written_end());
        // In the oldest journal volume every tombstone is idle and goes with it.
        let idle = if shared.state.is_oldest_journal(*number) { volume.tombstone_bytes } else { 0 };
        Candidate {
            number: *number,
            kind: volume.kind,
            held_bytes: file_bytes.max(volume.end),
            live_bytes: (volume.live_bytes - idle).max(0) as u64,
            live_records: volume.live_records,
            rewrite: volume.rewrite,
        }
    };
    volumes.map(candidate).collect()
}

/// Moves what is alive out of the volume and lets go of it. Whether that succeeded.
async fn compact(inner: &Arc<Inner>, number: VolumeNumber) -> bool {
    let Some(file) = inner.file(number) else { return false };
    let Some(volume) = inner.shared().state.volumes.get(&number).cloned() else { return false };
    let short = inner.space.is_short(inner);
    let bytes_per_s = if short { 0 } else { inner.options.compaction_bytes_per_s };
    let pacer = Pacer { inner: inner.clone(), bytes_per_s };
    let mut tombstones = Vec::new();
    if volume.live_records > 0 {
        let moved = match volume.kind {
            VolumeKind::Journal => move_journal(inner, number, &file, &volume, &pacer).await,
            VolumeKind::Bulk => move_bulk(inner, number, &file, &pacer).await.map(|()| Vec::new()),
        };
        match moved {
            Ok(idle) => tombstones = idle,
            Err(error) => {
                tracing::debug!(volume = number, %error, "not compacted");
                return false;
            }
        }
    }
    let_go(inner, number, &file, tombstones).await
}

/// Drops a volume in which nothing but these tombstones is alive. Whether that is (still) so.
async fn let_go(inner: &Arc<Inner>, number: VolumeNumber, file: &VolumeFile, tombstones: Vec<ChunkId>) -> bool {
    let dropped = inner.queue.run(Request::Drop { volume: number, tombstones }, true).await;
    if dropped != Ok(Outcome::Done) {
        return false;
    }
    count(&inner.counters.compacted_volumes, 1);
    recycle(inner, number, file);
    inner.space.recompute(inner);
    true
}

/// Keeps the file for the next volume, or removes it when there are enough.
fn recycle(inner: &Inner, number: VolumeNumber, file: &VolumeFile) {
    let spares = {
        let mut shared = inner.shared();
        shared.files.remove(&number);
        shared.spare.len()
    };
    inner.summaries.forget(number);
    inner.cache.forget(u64::from(number));
    inner.large_cache.forget(u64::from(number));
    // What stays behind after a failure is removed, or found and used, at the next start.
    let _ = summary_file::remove(inner.disk.as_ref(), file.seed.incarnation);
    let size_bytes = file.written_end();
    if spares >= SPARE_MAX || size_bytes < inner.volume_size / 2 {
        let _ = inner.disk.remove(&file.name.to_string());
        return;
    }
    let name = VolumeName::Free(file.seed.incarnation);
    if inner.disk.rename(&file.name.to_string(), &name.to_string()).is_ok() {
        inner.shared().spare.push(Spare { name, size_bytes });
    }
}

/// What must be moved out of a journal volume.
enum Alive {
    Chunk {
        live: Live,
        payload_len: u32,
    },
    /// Its header may be there as a copy only.
    Apart {
        live: Live,
        header: RecordHeader,
    },
    Locator {
        live: Live,
    },
}

/// Moves chunks, locators, tombstones and logs. Gives the tombstones that may go with the volume.
async fn move_journal(
    inner: &Arc<Inner>,
    number: VolumeNumber,
    file: &VolumeFile,
    volume: &Volume,
    pacer: &Pacer,
) -> Result<Vec<ChunkId>, StoreError> {
    // First, because it is what fails most: a log that is being written is waited for without reading the volume.
    move_logs(inner, number).await?;
    let mut alive = Vec::new();
    let (mut tombstones, mut evicted) = (Vec::new(), Vec::new());
    // Records that are damaged, and where some cannot even be named.
    let (mut damaged, mut holes) = (false, Vec::new());
    let mut visit = |item: Item| {
        let batch = match item {
            Item::Batch(batch) => batch,
            Item::Gap(range) => return holes.push(range),
        };
        holes.extend(batch.contents.unknown.clone());
        let shared = inner.shared();
        for record in batch.contents.records {
            let id = ChunkId::from_bytes(record.id);
            let slot = record.kind.is_chunk().then(|| shared.state.index.get(id)).flatten();
            // A tombstone is nothing but its id, and the directory verified: it counts, damaged or not.
            match (record.kind, slot) {
                (Kind::Tombstone, Some(Slot::Deleted { journal, .. })) if journal == number => tombstones.push(id),
                (Kind::Evicted, Some(Slot::Evicted { journal, .. })) if journal == number => evicted.push(id),
                _ => {}
            }
            let Ok((header, payload)) = record.content else {
                damaged = true;
                continue;
            };
            match (header.kind, slot) {
                (Kind::Chunk, Some(Slot::Live(live))) if (live.volume, live.offset) == (number, record.offset) => {
                    let what = match header.apart {
                        0 => Alive::Chunk { live, payload_len: header.payload_len },
                        _ => Alive::Apart { live, header },
                    };
                    alive.push((id, record.offset, what));
                }
                // An older locator of the same chunk, from before a repair, is dead.
                (Kind::Locator, Some(Slot::Live(live))) if live.journal == number => {
                    let meant = Locator::decode(&batch.data[payload])
                        .is_ok_and(|at| (at.incarnation, at.offset) == (u64::from(live.volume), live.offset));
                    if meant {
                        alive.push((id, record.offset, Alive::Locator { live }));
                    }
                }
                _ => {}
            }
        }
    };
    scan_paced(&file.file, file.seed, Extent::Sealed(volume.end), Some(pacer), &mut visit).await;
    // A damaged record that is alive is counted as such, and keeps the volume. What cannot be named is not counted.
    let known = holes.iter().all(|hole| inner.shared().state.is_known_hole(number, hole));
    if !volume.rewrite && (damaged || !holes.is_empty()) || !known {
        return Err(StoreError::Damaged("the volume has damage: it stays".into()));
    }
    if !holes.is_empty() {
        // Marks that lay in a hole are known from before it was one.
        (tombstones, evicted) = marks_in(inner, number).await;
    }
    // A chunk that left twice has two marks in one volume, of which the index counts one.
    for marks in [&mut tombstones, &mut evicted] {
        marks.sort_unstable();
        marks.dedup();
    }
    move_chunks(inner, number, file, alive, pacer).await?;
    let (mut idle, needed, marks) = {
        let shared = inner.shared();
        let rule = &inner.options.may_drop_tombstone;
        let is_idle = |id: &ChunkId| shared.state.tombstone_is_idle(*id, number) || plant::is(Plant::DropTombstone);
        let (idle, needed): (Vec<_>, Vec<_>) = tombstones.into_iter().partition(|id| is_idle(id) && rule(*id));
        let (idle_marks, marks): (Vec<_>, Vec<_>) = evicted.into_iter().partition(is_idle);
        ([idle, idle_marks].concat(), needed, marks)
    };
    let moved_from = Some(number);
    for some in needed.chunks(4096) {
        inner.queue.run(Request::Delete { ids: some.to_vec(), moved_from }, true).await?;
    }
    for some in marks.chunks(4096) {
        inner.queue.run(Request::Evict { ids: some.to_vec(), moved_from }, true).await?;
    }
    idle.shrink_to_fit();
    Ok(idle)
}

async fn move_chunks(
    inner: &Arc<Inner>,
    number: VolumeNumber,
    file: &VolumeFile,
    alive: Vec<(ChunkId, u64, Alive)>,
    pacer: &Pacer,
) -> Result<(), StoreError> {
    // Payloads that stand apart are ahead of the records: each reader only goes forward.
    let (mut reader, mut apart) = (RecordReader::new(), RecordReader::new());
    let mut moving: Vec<Pending> = Vec::new();
    let mut len = 0;
    for (id, offset, what) in alive {
        let (live, read) = match what {
            Alive::Chunk { live, payload_len } => (live, reader.read(number, file, offset, payload_len).await),
            Alive::Locator { live } => (live, reader.read(number, file, offset, Locator::LEN as u32).await),
            Alive::Apart { live, header } => {
                let payload = apart.apart(number, file, offset, &header).await;
                (live, payload.map(|payload| (header, payload)))
            }
        };
        let (header, payload) = match read {
            Ok(read) => read,
            Err(failure) => {
                let detail = format!("{failure:?}");
                inner.shared().state.mark_damaged(id, live.volume, live.offset, &detail);
                return Err(StoreError::Damaged(detail));
            }
        };
        if header.kind == Kind::Chunk && crc64(&payload) != header.check {
            inner.shared().state.mark_damaged(id, live.volume, live.offset, "whole-chunk checksum");
            return Err(StoreError::Damaged(format!("chunk {id}: whole-chunk checksum")));
        }
        let record = RecordIn { header, payload: vec![payload] };
        let moved_from = Some(Place { volume: live.volume, offset: live.offset, journal: live.journal });
        len += record.cost();
        let request = Request::Store { record, len: live.len, crc64: live.crc64, moved_from, bulk: None };
        moving.push(inner.queue.push(request, true).await?);
        if len >= MOVES_LEN_MAX {
            settle(inner, &mut moving, &mut len, pacer).await?;
        }
    }
    settle(inner, &mut moving, &mut len, pacer).await
}

async fn settle(inner: &Inner, moving: &mut Vec<Pending>, len: &mut usize, pacer: &Pacer) -> Result<(), StoreError> {
    for pending in moving.drain(..) {
        pending.await.map_err(|_| StoreError::Closed)??;
    }
    count(&inner.counters.compacted_bytes, *len as u64);
    pacer.took(*len as u64).await;
    *len = 0;
    Ok(())
}

/// Sees to it that no log has anything in this volume. One with entries there is rewritten as one base record.
async fn move_logs(inner: &Arc<Inner>, number: VolumeNumber) -> Result<(), StoreError> {
    let groups: Vec<GroupId> = {
        let shared = inner.shared();
        let pinned = |log: &GroupLog| log.pinned_volumes().any(|pinned| pinned == number);
        shared.state.raft.iter().filter(|(_, log)| pinned(log)).map(|(group, _)| *group).collect()
    };
    let mut moved = Ok(());
    for group in groups {
        moved = moved.and(rewrite_log(inner, group, number).await);
    }
    moved
}

async fn rewrite_log(inner: &Arc<Inner>, group: GroupId, volume: VolumeNumber) -> Result<(), StoreError> {
    for attempt in 0..=REWRITES_MAX {
        let (log, files) = {
            let shared = inner.shared();
            let Some(log) = shared.state.raft.get(&group) else { return Ok(()) };
            if !log.pinned_volumes().any(|pinned| pinned == volume) {
                return Ok(());
            }
            (log.clone(), shared.files.clone())
        };
        if attempt == REWRITES_MAX {
            break;
        }
        let is_sound = !log.removed && log.peer != PeerId(0) && log.damage().is_none();
        if is_sound && !log.entries_lie_in(volume) {
            let len_max = log.hard_state.as_ref().map_or(0, |hard_state| hard_state.len()) + RENEWED_LEN_SPARE;
            inner.queue.run(Request::RaftRenew { group, volume, len_max }, true).await?;
            continue;
        }
        let number = log.number;
        let mark = |kind| RecordHeader::raft(kind, group, log.peer, LogIndex(0), Term(0), number + 1);
        let record = if log.removed {
            RecordIn::bare(mark(Kind::RaftRemove))
        } else if let Some(reason) = log.damage() {
            if !log.only_damage_in(volume) {
                return Err(StoreError::Damaged(format!("group {group}: {reason}")));
            }
            RecordIn::new(mark(Kind::RaftDamaged), reason.into_bytes())
        } else {
            let loaded = read::raft_log(&files, group, &log).await;
            let loaded = loaded.map_err(|failure| StoreError::Damaged(format!("group {group}: {failure:?}")))?;
            if inner.shared().state.raft.get(&group).is_some_and(|log| log.number != number) {
                continue;
            }
            base_record(group, &log, &loaded.entries)
        };
        if record.payload_len() > PAYLOAD_MAX.min(inner.volume_size as usize / 4) {
            return Err(StoreError::Invalid(format!("the log of group {group} is too long to rewrite")));
        }
        let cost = record.cost() as u64;
        if inner.queue.run(Request::RaftRewrite { record, number }, true).await? == Outcome::Done {
            count(&inner.counters.compacted_bytes, cost);
            return Ok(());
        }
    }
    Err(StoreError::Invalid(format!("the log of group {group} is busy")))
}

/// Moves the large chunks of a bulk volume, each verified, to the active one.
async fn move_bulk(
    inner: &Arc<Inner>,
    number: VolumeNumber,
    file: &VolumeFile,
    pacer: &Pacer,
) -> Result<(), StoreError> {
    for (id, live) in large_in(inner, number).await {
        if inner.is_shutting_down() {
            return Err(StoreError::Closed);
        }
        let (owner, payload) = match read::verified_range(file, id, &live, 0..u32::MAX).await {
            Ok(read) => read,
            Err(failure) => {
                let detail = format!("{failure:?}");
                inner.shared().state.mark_damaged(id, live.volume, live.offset, &detail);
                return Err(StoreError::Damaged(detail));
            }
        };
        if crc64(&payload) != live.crc64 {
            inner.shared().state.mark_damaged(id, live.volume, live.offset, "whole-chunk checksum");
            return Err(StoreError::Damaged(format!("chunk {id}: whole-chunk checksum")));
        }
        let header = RecordHeader::chunk(Kind::Locator, id, owner, live.epoch, live.crc64);
        let moved_from = Some(Place { volume: live.volume, offset: live.offset, journal: live.journal });
        let payload: Vec<Bytes> = vec![payload];
        bulk::store(inner, LargeChunk { header, len: live.len, payload, moved_from }, true).await?;
        count(&inner.counters.compacted_bytes, u64::from(live.len));
        pacer.took(u64::from(live.len)).await;
    }
    Ok(())
}

/// The live chunks of a bulk volume, by offset.
pub async fn large_in(inner: &Inner, number: VolumeNumber) -> Vec<(ChunkId, Live)> {
    let here = |live: &Live| live.volume == number && live.is_large() && live.health == Health::Good;
    let mut found = live_where(inner, here).await;
    found.sort_by_key(|(_, live)| live.offset);
    found
}

/// Live chunks, by id.
pub async fn live_where(inner: &Inner, is_wanted: impl Fn(&Live) -> bool) -> Vec<(ChunkId, Live)> {
    let live = |slot| match slot {
        Slot::Live(live) => is_wanted(&live).then_some(live),
        Slot::Deleted { .. } | Slot::Evicted { .. } => None,
    };
    slots_where(inner, live).await
}

/// Tombstones, and marks of chunks that have left, whose records lie in this volume.
async fn marks_in(inner: &Inner, number: VolumeNumber) -> (Vec<ChunkId>, Vec<ChunkId>) {
    let here = |slot: Slot| slot.mark().filter(|(journal, _)| *journal == number).map(|_| slot);
    let marks = slots_where(inner, here).await;
    let (deleted, evicted): (Vec<_>, Vec<_>) =
        marks.into_iter().partition(|(_, slot)| matches!(slot, Slot::Deleted { .. }));
    let ids = |marks: Vec<(ChunkId, Slot)>| marks.into_iter().map(|(id, _)| id).collect();
    (ids(deleted), ids(evicted))
}

/// Looks through the index in steps, so that nobody waits long for it.
async fn slots_where<T>(inner: &Inner, wanted: impl Fn(Slot) -> Option<T>) -> Vec<(ChunkId, T)> {
    const STEP: usize = 8192;
    let mut found = Vec::new();
    let mut from = ChunkId::from_u128(0);
    loop {
        let step: Vec<_> = {
            let shared = inner.shared();
            shared.state.index.slots_in(from..=ChunkId::from_u128(u128::MAX)).take(STEP).collect()
        };
        let (len, last) = (step.len(), step.last().map(|(id, _)| id.to_u128()));
        found.extend(step.into_iter().filter_map(|(id, slot)| Some((id, wanted(slot)?))));
        match last {
            Some(last) if len == STEP && last < u128::MAX => from = ChunkId::from_u128(last + 1),
            _ => return found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(number: VolumeNumber, held_bytes: u64, live_bytes: u64) -> Candidate {
        let kind = VolumeKind::Journal;
        Candidate { number, kind, held_bytes, live_bytes, live_records: (live_bytes > 0).into(), rewrite: false }
    }

    #[test]
    fn damage_that_nobody_needs_goes_before_everything() {
        let some = [candidate(1, 1000, 300), Candidate { rewrite: true, ..candidate(2, 1000, 1000) }];
        assert_eq!(choose(&some, 1000, false), Some(2));
    }

    #[test]
    fn the_deadest_goes_first_and_empty_ones_need_no_compaction() {
        let some = [candidate(1, 1000, 400), candidate(2, 1000, 300), candidate(3, 1000, 0)];
        assert_eq!(choose(&some, 1000, false), Some(2));
        assert_eq!(choose(&some[..2], 1000, false), Some(2));
    }

    #[test]
    fn mostly_live_volumes_are_left_alone_until_space_is_short() {
        let some = [candidate(1, 1000, 600), candidate(2, 1000, 900), candidate(3, 1000, 1000)];
        assert_eq!(choose(&some, 1000, false), None);
        assert_eq!(choose(&some, 1000, true), Some(1));
        assert_eq!(choose(&some[2..], 1000, true), None);
    }

    #[test]
    fn many_stubs_are_merged() {
        let stubs: Vec<_> = (1..=9).map(|number| candidate(number, 100, 90 + u64::from(number % 2))).collect();
        assert_eq!(choose(&stubs, 1000, false), Some(2));
        assert_eq!(choose(&stubs[..8], 1000, false), None);
    }
}
