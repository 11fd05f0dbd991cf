//! Reads everything again from time to time, so that rot is found while other copies still exist.

use base::ids::ChunkId;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::compaction::{large_in, live_where};
use crate::errors::StoreError;
use crate::format::batch::Parsed;
use crate::format::record::{Kind, Locator, split_id};
use crate::format::volume::VolumeKind;
use crate::index::{Live, Slot, VolumeNumber};
use crate::inner::{Inner, Pacer, count};
use crate::read::{self, ReadFailure};
use crate::report::{DamagedWhat, ScrubReport};
use crate::scan::{Extent, Item, scan_paced};
use crate::volume_file::VolumeFile;

/// How long after the start the first pass begins.
const FIRST_DELAY: Duration = Duration::from_secs(600);

/// Runs until the engine is closed.
pub async fn run(inner: Arc<Inner>) {
    if inner.options.scrub_bytes_per_s == 0 || !inner.pause(FIRST_DELAY).await {
        return;
    }
    loop {
        let begun = inner.env.now();
        // A pass ends early only when the engine is closed.
        let _ = pass(&inner, inner.options.scrub_bytes_per_s).await;
        let rest = Duration::from_secs(inner.options.scrub_interval_s).saturating_sub(inner.env.now().since(begun));
        if !inner.pause(rest.max(Duration::from_secs(1))).await {
            return;
        }
    }
}

/// One pass over all volumes at this rate (0: as fast as it goes).
pub async fn pass(inner: &Arc<Inner>, bytes_per_s: u64) -> Result<ScrubReport, StoreError> {
    let _one_at_a_time = inner.scrub_lock.lock().await;
    let pacer = Pacer { inner: inner.clone(), bytes_per_s };
    let before = inner.shared().state.damaged_count;
    let mut report = ScrubReport::default();
    let volumes: Vec<(VolumeNumber, VolumeKind)> =
        inner.shared().state.volumes.iter().map(|(number, volume)| (*number, volume.kind)).collect();
    for (number, kind) in volumes {
        if inner.is_shutting_down() {
            return Err(StoreError::Closed);
        }
        let Some(file) = inner.file(number) else { continue };
        match kind {
            VolumeKind::Journal => journal(inner, number, &file, &pacer, &mut report).await,
            VolumeKind::Bulk => bulk(inner, number, &file, &pacer, &mut report).await,
        }
    }
    report.damaged = inner.shared().state.damaged_count - before;
    inner.counters.scrub_passes.fetch_add(1, Ordering::Relaxed);
    count(&inner.counters.scrubbed_bytes, report.bytes);
    Ok(report)
}

async fn journal(inner: &Arc<Inner>, number: VolumeNumber, file: &VolumeFile, pacer: &Pacer, report: &mut ScrubReport) {
    let end = inner.shared().state.volumes.get(&number).map_or(0, |volume| volume.end);
    // Stretches in which no record can be named, and the locators that were met elsewhere.
    let mut holes: Vec<Range<u64>> = Vec::new();
    let mut located: Located = BTreeSet::new();
    let mut visit = |item: Item| match item {
        Item::Gap(range) => {
            let what = DamagedWhat::Unknown { len_bytes: range.end - range.start };
            note(inner, number, range.start, what, "no batch can be read here");
            holes.push(range);
        }
        Item::Batch(batch) => {
            report.bytes += u64::from(batch.header.len);
            report.records += batch.contents.records.len() as u64;
            let at = batch.header.position.offset;
            for record in batch.contents.records.iter().filter(|record| record.content.is_err()) {
                damaged_record(inner, number, record);
            }
            if let Some(range) = &batch.contents.unknown {
                let what = DamagedWhat::Unknown { len_bytes: range.end - range.start };
                note(inner, number, range.start, what, "records of a batch cannot be told apart");
                holes.push(range.clone());
            }
            for record in batch.contents.records.iter().filter(|record| record.kind == Kind::Locator) {
                let Ok((_, payload)) = &record.content else { continue };
                if let Ok(at) = Locator::decode(&batch.data[payload.clone()]) {
                    located.insert((ChunkId::from_bytes(record.id), at.incarnation, at.offset));
                }
            }
            let whole = batch.contents.records.iter().all(|record| record.content.is_ok());
            if let Some(blemish) = batch.blemish {
                note(inner, number, at, DamagedWhat::Bookkeeping, blemish);
            } else if !batch.contents.intact && whole && batch.contents.unknown.is_none() {
                note(inner, number, at, DamagedWhat::Bookkeeping, "unused bytes of a batch are damaged");
            }
        }
    };
    scan_paced(&file.file, file.seed, Extent::Sealed(end), Some(pacer), &mut visit).await;
    if !holes.is_empty() {
        mark_lost(inner, number, &holes, &located).await;
    }
}

/// Chunks, and where locators that can be read say that they are: one from before a move says nothing.
type Located = BTreeSet<(ChunkId, u64, u64)>;

/// What the index believes to lie in a hole is not there: a write that was reported done and never was, or landed
/// elsewhere. After the next start nothing would even name it.
async fn mark_lost(inner: &Inner, number: VolumeNumber, holes: &[Range<u64>], located: &Located) {
    let is_lost = |id: &ChunkId, live: &Live| match live.is_large() {
        true => !located.contains(&(*id, u64::from(live.volume), live.offset)),
        false => holes.iter().any(|hole| hole.contains(&live.offset)),
    };
    let held = live_where(inner, |live| live.journal == number).await;
    for (id, live) in held.into_iter().filter(|(id, live)| is_lost(id, live)) {
        let detail = "its record cannot be read any more";
        inner.shared().state.mark_damaged(id, live.volume, live.offset, detail);
    }
}

/// Writes a finding down, unless the volume was recycled under the scrub.
fn note(inner: &Inner, number: VolumeNumber, offset: u64, what: DamagedWhat, detail: &str) {
    let mut shared = inner.shared();
    if shared.state.volumes.contains_key(&number) {
        shared.state.note_damage(number, offset, what, detail);
    }
}

fn damaged_record(inner: &Inner, number: VolumeNumber, record: &Parsed) {
    let detail = record.content.as_ref().err().map_or("", String::as_str);
    let mut shared = inner.shared();
    let state = &mut shared.state;
    if !state.volumes.contains_key(&number) {
        return;
    }
    if record.kind.is_raft() {
        let (group, _) = split_id(&record.id);
        state.note_damage(number, record.offset, DamagedWhat::Raft(group), detail);
        if let Some(log) = state.raft.get_mut(&group) {
            log.mark_damaged_at(number, record.offset);
        }
        return;
    }
    let id = ChunkId::from_bytes(record.id);
    match state.index.get(id) {
        // Of a large chunk only the locator is here: it is damaged in the journal.
        Some(Slot::Live(live)) if matches!(record.kind, Kind::Chunk | Kind::Locator) && live.journal == number => {
            state.mark_damaged(id, live.volume, live.offset, detail);
        }
        _ => state.note_damage(number, record.offset, DamagedWhat::Bookkeeping, detail),
    }
}

async fn bulk(inner: &Arc<Inner>, number: VolumeNumber, file: &VolumeFile, pacer: &Pacer, report: &mut ScrubReport) {
    for (id, live) in large_in(inner, number).await {
        report.records += 1;
        report.bytes += u64::from(live.len);
        if let Err(ReadFailure::Damaged(detail)) = read::verified_range(file, id, &live, 0..u32::MAX).await {
            inner.shared().state.mark_damaged(id, live.volume, live.offset, &detail);
        }
        pacer.took(u64::from(live.len)).await;
        if inner.is_shutting_down() {
            return;
        }
    }
}
