//! Makes the summaries by which sealed journal volumes are opened, beside everything else and never waited for.
//!
//! The committer's own volumes are summed up while they are written, from memory. Any other sealed volume that has no
//! summary is read again and summed up if all of it verifies. A volume with damage never has one: the next start must
//! read it whole, and name what is damaged.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

use crate::errors::StoreError;
use crate::format::Seed;
use crate::format::record::RecordHeader;
use crate::format::summary::{LINES_IN_BLOCK, SummaryEnd, put_line};
use crate::format::volume::VolumeKind;
use crate::index::VolumeNumber;
use crate::inner::{Inner, Pacer};
use crate::scan::{Extent, FoundBatch, Item, scan_paced};
use crate::summary_file::{self, SummaryWriter};

/// A volume shorter than this part of a full one is read as quickly as its summary would be.
const WORTH_SHARE: u64 = 8;
/// Bytes of lines that may wait for the disk; beyond that the volume is left to be read again.
const WAITING_LEN_MAX: usize = 16 << 20;
/// Bytes of lines that are gathered from a volume that is read again; one with more gets no summary.
const GATHERED_LEN_MAX: usize = 64 << 20;
/// How long after the start volumes of earlier lives are read again.
const START_DELAY: Duration = Duration::from_secs(10);
/// How often it is looked for volumes without a summary, and for summaries of volumes with damage.
const INTERVAL: Duration = Duration::from_secs(2);

/// Which volumes have a summary, and what is on its way there.
#[derive(Default)]
pub struct Summaries {
    shelf: Mutex<Shelf>,
    wake: Notify,
}

#[derive(Default)]
struct Shelf {
    /// Volumes with a whole one on the disk.
    whole: BTreeSet<VolumeNumber>,
    /// Volumes whose lines come from the committer.
    drafts: BTreeSet<VolumeNumber>,
    /// Volumes that get none in this life.
    given_up: BTreeSet<VolumeNumber>,
    waiting: VecDeque<Piece>,
    waiting_len: usize,
}

/// Part of a draft, on its way to the disk.
struct Piece {
    number: VolumeNumber,
    lines: Vec<u8>,
    what: What,
}

enum What {
    More,
    End(SummaryEnd),
    /// It will not be finished.
    Abandoned,
}

impl Summaries {
    /// Volumes whose summaries the start has read.
    pub fn set_whole(&self, whole: BTreeSet<VolumeNumber>) {
        self.shelf().whole = whole;
    }

    /// The volume is being dropped: its summary goes with it.
    pub fn forget(&self, number: VolumeNumber) {
        let mut shelf = self.shelf();
        shelf.whole.remove(&number);
        shelf.given_up.remove(&number);
    }

    /// The file system is full: the next start reads the volumes instead.
    pub fn give_back(&self, inner: &Inner) {
        let mut shelf = self.shelf();
        let whole = std::mem::take(&mut shelf.whole);
        shelf.given_up.extend(&whole);
        drop(shelf);
        whole.into_iter().for_each(|number| remove(inner, number));
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Each change is whole before the lock is let go.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room for it.
    fn send(&self, piece: Piece) -> bool {
        let mut shelf = self.shelf();
        let wanted = shelf.drafts.contains(&piece.number);
        let fits = shelf.waiting_len + piece.lines.len() <= WAITING_LEN_MAX;
        if wanted && fits {
            shelf.waiting_len += piece.lines.len();
            shelf.waiting.push_back(piece);
            self.wake.notify_one();
        }
        wanted && fits
    }

    fn next_piece(&self) -> Option<Piece> {
        let mut shelf = self.shelf();
        let piece = shelf.waiting.pop_front()?;
        shelf.waiting_len -= piece.lines.len();
        Some(piece)
    }
}

/// Gathers the lines of the volume that the committer is writing.
pub struct Composer {
    number: VolumeNumber,
    lines: Vec<u8>,
    batches: u64,
    records: u64,
    given_up: bool,
}

impl Composer {
    pub fn new(summaries: &Summaries, number: VolumeNumber) -> Composer {
        summaries.shelf().drafts.insert(number);
        Composer { number, lines: Vec::new(), batches: 0, records: 0, given_up: false }
    }

    /// A batch of these records (header, offset in the volume, payload) is durable.
    pub fn note<'a>(
        &mut self,
        summaries: &Summaries,
        records: impl Iterator<Item = (&'a RecordHeader, &'a u64, &'a [u8])>,
    ) {
        if self.given_up {
            return;
        }
        self.batches += 1;
        for (header, offset, payload) in records {
            self.records += 1;
            put_line(&mut self.lines, *offset, header, payload);
        }
        while self.lines.len() >= LINES_IN_BLOCK && !self.given_up {
            let later = self.lines.split_off(LINES_IN_BLOCK);
            let lines = std::mem::replace(&mut self.lines, later);
            if !summaries.send(Piece { number: self.number, lines, what: What::More }) {
                self.give_up(summaries);
            }
        }
    }

    /// The volume was sealed here, with this checksum of its last batch.
    pub fn seal(mut self, inner: &Inner, volume_end: u64, checksum: u32) {
        let is_worth_it = volume_end >= inner.volume_size / WORTH_SHARE;
        let lines = std::mem::take(&mut self.lines);
        let end = SummaryEnd { volume_end, checksum, batches: self.batches, records: self.records, lines_len: 0 };
        let piece = Piece { number: self.number, lines, what: What::End(end) };
        if self.given_up || !is_worth_it || !inner.summaries.send(piece) {
            self.give_up(&inner.summaries);
        }
    }

    fn give_up(&mut self, summaries: &Summaries) {
        (self.given_up, self.lines) = (true, Vec::new());
        let mut shelf = summaries.shelf();
        if shelf.drafts.remove(&self.number) {
            shelf.waiting.push_back(Piece { number: self.number, lines: Vec::new(), what: What::Abandoned });
            summaries.wake.notify_one();
        }
    }
}

/// Writes down what the committer hands over, until the engine is closed.
pub async fn run_writer(inner: Arc<Inner>) {
    let mut draft: Option<(VolumeNumber, SummaryWriter)> = None;
    loop {
        while let Some(piece) = inner.summaries.next_piece() {
            let number = piece.number;
            match take_piece(&inner, &mut draft, piece).await {
                Ok(false) => {}
                Ok(true) => settle(&inner, number, true),
                Err(error) => {
                    tracing::debug!(volume = number, %error, "no summary");
                    draft = None;
                    settle(&inner, number, false);
                }
            }
        }
        tokio::select! {
            biased;
            () = inner.shutdown.wait() => return,
            () = inner.summaries.wake.notified() => {}
        }
    }
}

/// Whether the summary is whole now.
async fn take_piece(
    inner: &Inner,
    draft: &mut Option<(VolumeNumber, SummaryWriter)>,
    piece: Piece,
) -> Result<bool, StoreError> {
    let number = piece.number;
    if matches!(piece.what, What::Abandoned) {
        *draft = None;
        remove(inner, number);
        return Ok(false);
    }
    // What waits of a draft that has failed.
    if !inner.summaries.shelf().drafts.contains(&number) {
        return Ok(false);
    }
    let (_, writer) = match draft.take().filter(|(begun, _)| *begun == number) {
        Some(begun) => draft.insert(begun),
        None => draft.insert((number, create(inner, number)?)),
    };
    writer.push(&piece.lines).await.map_err(|error| StoreError::io("writing a summary", &error))?;
    let What::End(end) = piece.what else { return Ok(false) };
    finish(inner, writer, end).await?;
    *draft = None;
    Ok(true)
}

fn create(inner: &Inner, number: VolumeNumber) -> Result<SummaryWriter, StoreError> {
    inner.broken().map_or(Ok(()), Err)?;
    if inner.space.is_short(inner) {
        return Err(StoreError::Full);
    }
    let seed = Seed { disk: inner.identity.disk, incarnation: u64::from(number) };
    SummaryWriter::create(inner.disk.as_ref(), seed).map_err(|error| StoreError::io("making a summary", &error))
}

/// Writes what is left, then the end: whoever finds the end may expect the rest.
async fn finish(inner: &Inner, writer: &mut SummaryWriter, end: SummaryEnd) -> Result<(), StoreError> {
    let failed = |error| StoreError::io("writing a summary", &error);
    let flush_failed = |error: std::io::Error| inner.write_failed("flushing a summary", &error);
    writer.finish().await.map_err(failed)?;
    writer.flush().await.map_err(flush_failed)?;
    writer.end(end).await.map_err(failed)?;
    writer.flush().await.map_err(flush_failed)?;
    inner.disk.flush_directory().map_err(flush_failed)
}

/// A summary was finished, or will not be. One of a volume that has gone meanwhile goes, too.
fn settle(inner: &Inner, number: VolumeNumber, is_whole: bool) {
    let is_live = inner.shared().state.volumes.contains_key(&number);
    let mut shelf = inner.summaries.shelf();
    shelf.drafts.remove(&number);
    if is_whole && is_live {
        shelf.whole.insert(number);
        return;
    }
    if is_live {
        shelf.given_up.insert(number);
    }
    drop(shelf);
    remove(inner, number);
}

fn remove(inner: &Inner, number: VolumeNumber) {
    // One that stays is not believed, or is removed at the next start.
    let _ = summary_file::remove(inner.disk.as_ref(), u64::from(number));
}

/// What is to be done next.
enum Due {
    /// The volume has damage.
    Remove(VolumeNumber),
    /// The volume is sealed here and has no summary.
    Make(VolumeNumber, u64),
}

/// Sums up volumes of earlier lives, and removes summaries of volumes in which damage was found, until the engine is
/// closed. `stale` were of no use to the start.
pub async fn run_maker(inner: Arc<Inner>, stale: Vec<VolumeNumber>) {
    stale.into_iter().for_each(|number| remove(&inner, number));
    let makes_from = inner.env.now() + START_DELAY;
    while !inner.is_shutting_down() {
        match due(&inner, inner.env.now() >= makes_from) {
            Some(Due::Remove(number)) => withdraw(&inner, number),
            Some(Due::Make(number, end)) => {
                let made = make(&inner, number, end).await;
                if let Err(error) = &made {
                    tracing::debug!(volume = number, %error, "no summary");
                }
                settle(&inner, number, made.is_ok());
            }
            None => {
                inner.pause(INTERVAL).await;
            }
        }
    }
    // What was found last must be named by the next start.
    while let Some(Due::Remove(number)) = due(&inner, false) {
        withdraw(&inner, number);
    }
}

fn due(inner: &Inner, makes: bool) -> Option<Due> {
    if inner.broken().is_some() {
        return None;
    }
    let makes = makes && !inner.space.is_short(inner);
    let shared = inner.shared();
    let shelf = inner.summaries.shelf();
    let journals = shared.state.volumes.iter().filter(|(_, volume)| volume.kind == VolumeKind::Journal);
    for (number, volume) in journals {
        let has_damage = volume.finding > 0 || volume.pinned || volume.damaged_live > 0;
        if has_damage && shelf.whole.contains(number) {
            return Some(Due::Remove(*number));
        }
        let has_or_gets = [&shelf.whole, &shelf.drafts, &shelf.given_up].iter().any(|set| set.contains(number));
        let is_worth_it = volume.sealed && !has_damage && volume.end >= inner.volume_size / WORTH_SHARE;
        if makes && is_worth_it && !has_or_gets {
            return Some(Due::Make(*number, volume.end));
        }
    }
    None
}

fn withdraw(inner: &Inner, number: VolumeNumber) {
    inner.summaries.shelf().whole.remove(&number);
    remove(inner, number);
    let _ = inner.disk.flush_directory();
}

/// Reads a sealed volume and writes its summary.
async fn make(inner: &Arc<Inner>, number: VolumeNumber, end: u64) -> Result<(), StoreError> {
    let Some(file) = inner.file(number) else { return Err(StoreError::NotFound) };
    let pacer = Pacer { inner: inner.clone(), bytes_per_s: inner.options.compaction_bytes_per_s };
    let mut gathered = Gathered::default();
    let mut visit = |item: Item| gathered.take(item);
    let scanned = tokio::select! {
        biased;
        () = inner.shutdown.wait() => return Err(StoreError::Closed),
        scanned = scan_paced(&file.file, file.seed, Extent::Sealed(end), Some(&pacer), &mut visit) => scanned,
    };
    let last = scanned.last.filter(|last| !gathered.is_unfit && last.end() == end && scanned.end == end);
    let Some(last) = last else { return Err(StoreError::Damaged("not all of it verifies".into())) };
    let mut writer = create(inner, number)?;
    writer.push(&gathered.lines).await.map_err(|error| StoreError::io("writing a summary", &error))?;
    let (batches, records) = (gathered.batches, gathered.records);
    let end = SummaryEnd { volume_end: end, checksum: last.checksum, batches, records, lines_len: 0 };
    finish(inner, &mut writer, end).await
}

/// The lines of a volume that is read again.
#[derive(Default)]
struct Gathered {
    lines: Vec<u8>,
    batches: u64,
    records: u64,
    /// Not all of it verifies, or there is too much of it.
    is_unfit: bool,
}

impl Gathered {
    fn take(&mut self, item: Item) {
        match item {
            Item::Batch(batch) if !self.is_unfit && batch.is_flawless() => self.batch(&batch),
            _ => self.is_unfit = true,
        }
        self.is_unfit |= self.lines.len() > GATHERED_LEN_MAX;
        if self.is_unfit {
            self.lines = Vec::new();
        }
    }

    fn batch(&mut self, batch: &FoundBatch) {
        self.batches += 1;
        for record in &batch.contents.records {
            let Ok((header, payload)) = &record.content else { continue };
            self.records += 1;
            put_line(&mut self.lines, record.offset, header, &batch.data[payload.clone()]);
        }
    }
}

#[cfg(test)]
mod tests;
