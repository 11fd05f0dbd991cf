//! The committer: the one task that writes journal volumes and changes the state.
//!
//! ```text
//! drain the queue -> compose records -> write batch + flush -> apply -> answer everybody
//! ```
//!
//! There is no timer on this path: a round starts as soon as the one before is durable, with whatever waits by then.
//! When no records follow, a closing batch does, so that the last round, too, is covered by a later `durable_upto`.

use base::buffer::BLOCK;
use base::env::{BoxFuture, MonoTime};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::engine;
use crate::errors::StoreError;
use crate::format::Seed;
use crate::format::batch::{self, Encoded, Layout, Position, RecordIn};
use crate::format::raft::encode_raft_list;
use crate::format::record::{Kind, RecordHeader};
use crate::format::volume::{END_OPEN, ListedVolume, VolumeKind, VolumeList};
use crate::index::VolumeNumber;
use crate::inner::{Inner, Spare, count};
use crate::queue::{ROUND_COST_MAX, Request, Waiting};
use crate::read;
use crate::round::{Round, compose};
use crate::summary::Composer;
use crate::volume_file::VolumeFile;

/// How long after the last batch of records a closing batch is written; well within the 100 ms that are promised.
const CLOSING_DELAY: Duration = Duration::from_millis(50);
/// Kept free at a volume's end: one closing batch and the seal.
const TAIL_LEN: u64 = 2 * BLOCK as u64;

/// Where a journal volume was left: what the next one names as its predecessor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cut {
    pub incarnation: u64,
    pub end: u64,
    pub checksum: u32,
}

pub struct Committer {
    inner: Arc<Inner>,
    number: VolumeNumber,
    file: Arc<VolumeFile>,
    position: Position,
    follows: Cut,
    summary: Composer,
    /// The list of live volumes is not durable in this volume yet.
    needs_list: bool,
    /// Since when the last batch holds records and no later one vouches for it.
    uncovered: Option<MonoTime>,
}

impl Committer {
    /// Starts a new journal volume that follows `cut`. Returns once its first batch is durable.
    pub async fn start(inner: Arc<Inner>, cut: Cut) -> Result<Committer, StoreError> {
        let (number, file) = inner.create_volume(VolumeKind::Journal)?;
        inner.shared().journal = number;
        let summary = Composer::new(&inner.summaries, number);
        let mut committer = Committer {
            inner,
            number,
            file,
            position: first_position(),
            follows: cut,
            summary,
            needs_list: true,
            uncovered: None,
        };
        committer.write_list().await?;
        Ok(committer)
    }

    /// Serves the queue until it is closed and empty.
    pub async fn run(mut self) {
        let cost_max = ROUND_COST_MAX.min(self.inner.volume_size as usize / 4);
        // Outlives rounds: a timer set anew for each would wake the thread that keeps the timers each time.
        let mut alarm: Option<BoxFuture<()>> = None;
        loop {
            let uncovered = self.uncovered.filter(|_| self.inner.broken().is_none());
            let due = uncovered.map(|since| since + CLOSING_DELAY);
            if due.is_some_and(|due| self.inner.env.now() >= due) {
                self.closing_batch().await;
                continue;
            }
            // In this order: what is pushed before it is closed is served.
            let is_closed = self.inner.queue.is_closed();
            let requests = self.inner.queue.take(cost_max);
            if !requests.is_empty() {
                self.round(requests).await;
            } else if is_closed {
                break;
            } else if let Some(due) = due {
                let rung = alarm.get_or_insert_with(|| self.inner.env.clock.sleep_until(due));
                tokio::select! {
                    biased;
                    () = self.inner.queue.wake.notified() => {}
                    () = rung => alarm = None,
                }
            } else {
                self.inner.queue.wake.notified().await;
            }
        }
        if self.uncovered.is_some() && self.inner.broken().is_none() {
            self.closing_batch().await;
        }
    }

    async fn round(&mut self, requests: Vec<Waiting>) {
        if let Some(broken) = self.inner.broken() {
            return self.refuse(requests, &broken);
        }
        let round = compose(&self.inner.shared().state, requests);
        count(&self.inner.counters.conflicts, round.conflicts);
        match self.write_round(&round.records).await {
            Ok(written) => self.finish(round, written),
            Err(error) => {
                let refused = round.answers.into_iter().map(|(waiting, _)| waiting).collect();
                self.refuse(refused, &error);
            }
        }
    }

    fn refuse(&self, requests: Vec<Waiting>, error: &StoreError) {
        for waiting in requests {
            self.settle(&waiting);
            waiting.answer(Err(error.clone()));
        }
    }

    /// A bulk payload is no longer in flight once its locator's fate is known.
    fn settle(&self, waiting: &Waiting) {
        if let Request::Store { bulk: Some(number), .. } = &waiting.request
            && let Some(volume) = self.inner.shared().state.volumes.get_mut(number)
        {
            volume.pending -= 1;
        }
    }

    /// Makes the records durable. `None` when there was nothing to write.
    async fn write_round(&mut self, records: &[RecordIn]) -> Result<Option<Encoded>, StoreError> {
        if records.is_empty() {
            if self.is_to_be_rewritten() {
                self.rotate().await?;
                self.write_list().await?;
            }
            return Ok(None);
        }
        let layout = batch::lay_out(records, self.inner.apart);
        if self.position.offset + layout.len as u64 + TAIL_LEN > self.inner.volume_size || self.is_to_be_rewritten() {
            self.rotate().await?;
        }
        if self.needs_list {
            self.write_list().await?;
        }
        let written = self.write_as(records, &layout).await?;
        self.uncovered = Some(self.inner.env.now());
        count(&self.inner.counters.batches, 1);
        count(&self.inner.counters.records, records.len() as u64);
        Ok(Some(written))
    }

    /// Whether the volume has damage that nobody needs any more: sealed, compaction may have it.
    fn is_to_be_rewritten(&self) -> bool {
        self.inner.shared().state.volumes.get(&self.number).is_some_and(|volume| volume.rewrite)
    }

    fn finish(&self, round: Round, written: Option<Encoded>) {
        for (header, offset, payload) in written.iter().flat_map(records_of) {
            if header.kind == Kind::Chunk {
                // Nobody can ask for it yet.
                read::keep(&self.inner, self.number, *offset, payload);
            }
        }
        let mut shared = self.inner.shared();
        if let Some(written) = &written {
            for (header, offset, payload) in records_of(written) {
                shared.state.apply(self.number, *offset, header, payload);
            }
        }
        for (volume, tombstones) in &round.dropped {
            for id in tombstones {
                shared.state.forget_tombstone(*id, *volume);
            }
        }
        drop(shared);
        let mut freed = !round.dropped.is_empty();
        for (waiting, answer) in round.answers {
            freed |= matches!(waiting.request, Request::Delete { .. } | Request::Evict { .. });
            self.settle(&waiting);
            waiting.answer(answer);
        }
        if freed {
            self.inner.wake_compaction();
        }
    }

    async fn write(&mut self, records: &[RecordIn]) -> Result<Encoded, StoreError> {
        let layout = batch::lay_out(records, self.inner.apart);
        self.write_as(records, &layout).await
    }

    /// One batch: written, flushed, and chained.
    async fn write_as(&mut self, records: &[RecordIn], layout: &Layout) -> Result<Encoded, StoreError> {
        let seed = Seed { disk: self.inner.identity.disk, incarnation: u64::from(self.number) };
        let encoded = batch::encode(seed, self.position, records, layout, &self.inner.env.buffers);
        let appended = self.file.append(self.position.offset, encoded.bytes.clone()).await;
        count(&self.inner.counters.flushes, 1);
        // A batch that failed for lack of room was promised to nobody: the next one takes its place.
        appended.map_err(|error| self.inner.write_failed("writing the journal", &error))?;
        count(&self.inner.counters.journal_bytes, encoded.bytes.len() as u64);
        let raft_records = encoded.records.iter().filter(|(header, _)| header.kind.is_raft()).count() as u32;
        self.position = Position {
            sequence: self.position.sequence + 1,
            offset: encoded.header.end(),
            durable_upto: encoded.header.end(),
            predecessor: encoded.header.checksum,
            raft_count: self.position.raft_count.wrapping_add(raft_records),
        };
        let mut shared = self.inner.shared();
        if let Some(volume) = shared.state.volumes.get_mut(&self.number) {
            volume.end = self.position.offset;
        }
        drop(shared);
        self.summary.note(&self.inner.summaries, records_of(&encoded));
        if engine::lacks_space_ahead(&self.inner, &self.file, self.position.offset) {
            self.inner.ahead_wake.notify_one();
        }
        Ok(encoded)
    }

    async fn closing_batch(&mut self) {
        self.uncovered = None;
        if self.write(&[]).await.is_ok() {
            count(&self.inner.counters.closing_batches, 1);
        }
    }

    /// Seals the volume and goes on in a new one. The new file exists before the seal names it.
    async fn rotate(&mut self) -> Result<(), StoreError> {
        let (number, file) = self.inner.create_volume(VolumeKind::Journal)?;
        let seal = RecordIn::bare(RecordHeader::volume(Kind::Seal, u64::from(number)));
        let sealed = self.write(&[seal]).await;
        if let Err(error) = sealed {
            let mut shared = self.inner.shared();
            shared.state.volumes.remove(&number);
            shared.files.remove(&number);
            shared.spare.push(Spare { name: file.name, size_bytes: file.written_end() });
            return Err(error);
        }
        // The seal vouches for all that was before it.
        self.uncovered = None;
        self.follows =
            Cut { incarnation: u64::from(self.number), end: self.position.offset, checksum: self.position.predecessor };
        let mut shared = self.inner.shared();
        if let Some(volume) = shared.state.volumes.get_mut(&self.number) {
            volume.sealed = true;
        }
        shared.journal = number;
        drop(shared);
        let summary = std::mem::replace(&mut self.summary, Composer::new(&self.inner.summaries, number));
        summary.seal(&self.inner, self.follows.end, self.follows.checksum);
        (self.number, self.file, self.position, self.needs_list) = (number, file, first_position(), true);
        self.inner.wake_compaction();
        Ok(())
    }

    /// The first batch of a volume: all live volumes, all groups.
    async fn write_list(&mut self) -> Result<(), StoreError> {
        let records = {
            // A volume that another task is making right now has an incarnation but is not among the live ones yet; the
            // list must have either both or neither.
            let _making = self.inner.making_volumes.lock().unwrap_or_else(PoisonError::into_inner);
            let shared = self.inner.shared();
            let listed = shared.state.volumes.iter().filter(|(number, _)| **number != self.number);
            let volumes = listed.map(|(number, volume)| ListedVolume {
                kind: volume.kind,
                incarnation: u64::from(*number),
                end: if volume.kind == VolumeKind::Bulk { END_OPEN } else { volume.end },
            });
            let list = VolumeList {
                follows_incarnation: self.follows.incarnation,
                follows_end: self.follows.end,
                follows_checksum: self.follows.checksum,
                next_incarnation: shared.state.next_incarnation,
                volumes: volumes.collect(),
            };
            let groups: Vec<_> = shared.state.raft.iter().map(|(group, log)| log.listed(*group)).collect();
            [
                RecordIn::new(RecordHeader::volume(Kind::VolumeList, u64::from(self.number)), list.encode()),
                RecordIn::new(RecordHeader::volume(Kind::RaftList, u64::from(self.number)), encode_raft_list(&groups)),
            ]
        };
        self.write(&records).await?;
        self.needs_list = false;
        Ok(())
    }
}

/// Each record of a batch as it was written: header, offset in the volume, payload.
fn records_of(written: &Encoded) -> impl Iterator<Item = (&RecordHeader, &u64, &[u8])> {
    let start = written.header.position.offset;
    written.records.iter().map(move |(header, offset)| {
        let record = &written.bytes[(offset - start) as usize..];
        (header, offset, &record[header.payload_range(*offset)])
    })
}

fn first_position() -> Position {
    Position { sequence: 0, offset: 0, durable_upto: 0, predecessor: 0, raft_count: 0 }
}
