//! Compaction: merging runs, in a background task that ends when no merge is due.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::KvError;
use super::block::{BlockCursor, Cell};
use super::cursor::verified;
use super::flush::SPILL_ROWS;
use super::lsm::Inner;
use super::run::{Run, RunMeta};
use super::run_writer::{RunWriter, remove_abandoned};
use super::tree::{Job, Tree};

/// Bytes that are written between two pauses of a compaction with a rate.
const PACE_BYTES: u64 = 1 << 20;

/// Why a job was given up. The store is as it was.
enum GivenUp {
    Write(io::Error),
    Read(KvError),
    Closed,
}

impl Inner {
    /// Starts the background task unless it runs or nothing is to be done. Returns whether it runs.
    pub(super) fn start_compaction(self: &Arc<Self>) -> bool {
        let due = !self.is_closed()
            && self.files.check_writing().is_ok()
            && self.view().tree.next_job(&self.options).is_some();
        if !due {
            return self.compacting.load(Ordering::SeqCst);
        }
        if !self.compacting.swap(true, Ordering::SeqCst) {
            let inner = self.clone();
            self.env.spawn("kv-compact", async move { inner.compact_all().await });
        }
        true
    }

    async fn compact_all(self: Arc<Self>) {
        let mut going_on = true;
        while going_on {
            going_on = self.compact_one().await;
            self.compacted.notify_waiters();
        }
        self.compacting.store(false, Ordering::SeqCst);
        // Who waits must learn that the task has ended.
        self.compacted.notify_waiters();
        let trouble = self.compaction_trouble.lock().expect("nothing panics while it is locked").is_some();
        // A flush that found the task still running relies on it.
        if !trouble {
            self.start_compaction();
        }
    }

    /// Does the next job. Returns whether to look for another one.
    async fn compact_one(&self) -> bool {
        let _merging = self.merging.lock().await;
        let tree = self.view().tree.clone();
        let Some(job) = tree.next_job(&self.options) else { return false };
        if self.is_closed() || self.files.check_writing().is_err() {
            return false;
        }
        let outcome = match self.merge(&tree, &job).await {
            Ok(outputs) => self.replace_inputs(&job, outputs).await,
            Err(GivenUp::Write(error)) => Err(self.write_failed("a compaction", &error)),
            Err(GivenUp::Read(error)) => Err(error),
            Err(GivenUp::Closed) => return false,
        };
        let trouble = outcome.err().map(|error| error.to_string());
        if let Some(trouble) = &trouble {
            tracing::error!(disk = self.files.disk.describe(), trouble, "key-value compaction has given up a merge");
        }
        let going_on = trouble.is_none();
        *self.compaction_trouble.lock().expect("nothing panics while it is locked") = trouble;
        going_on
    }

    /// Writes the merged rows of the job's inputs into new runs. What was written is removed on an error.
    async fn merge(&self, tree: &Tree, job: &Job) -> Result<Vec<Arc<Run>>, GivenUp> {
        if job.moves {
            return Ok(job.inputs.iter().flatten().cloned().collect());
        }
        let mut output = Output { inner: self, writer: None, finished: Vec::new(), unpaced_bytes: 0 };
        match self.merge_into(tree, job, &mut output).await {
            Ok(()) => {
                let metas = std::mem::take(&mut output.finished);
                // A failure here is final, and what is named nowhere is removed at the next start.
                metas.into_iter().map(|meta| self.adopt(meta).map_err(GivenUp::Read)).collect()
            }
            Err(error) => {
                output.abandon();
                Err(error)
            }
        }
    }

    async fn merge_into(&self, tree: &Tree, job: &Job, output: &mut Output<'_>) -> Result<(), GivenUp> {
        let mut streams = Vec::new();
        for runs in &job.inputs {
            let mut stream = Stream::new(runs.clone());
            stream.next_block().await.map_err(GivenUp::Read)?;
            streams.push(stream);
        }
        let mut key = Vec::new();
        // The newest version is that of the first stream at the smallest key.
        while let Some(first) = smallest(&streams) {
            key.clear();
            key.extend_from_slice(streams[first].key().expect("the smallest has a key"));
            let cell = streams[first].cell().map_err(GivenUp::Read)?;
            for stream in &mut streams[first..] {
                if stream.key() == Some(key.as_slice()) && !stream.advance_in_block().map_err(GivenUp::Read)? {
                    stream.next_block().await.map_err(GivenUp::Read)?;
                }
            }
            // Inside level 0 older runs that take no part may hold the key, so deletions stay.
            let needless = cell.value.is_none() && job.level > 0 && !tree.holds_below(job.level, &key);
            if !needless {
                output.add(&key, &cell, job.level > 0).await?;
            }
        }
        let bytes_read: u64 = streams.iter().map(|stream| stream.bytes_read).sum();
        self.counters.compaction_bytes_read.fetch_add(bytes_read, Ordering::Relaxed);
        output.end_run().await
    }

    async fn replace_inputs(&self, job: &Job, outputs: Vec<Arc<Run>>) -> Result<(), KvError> {
        let written: u64 = if job.moves { 0 } else { outputs.iter().map(|run| run.meta.size_bytes).sum() };
        self.install(None, |tree| tree.with_merged(job, outputs)).await?;
        if !job.moves {
            job.inputs.iter().flatten().for_each(|run| run.mark_obsolete());
        }
        self.counters.compactions.fetch_add(1, Ordering::Relaxed);
        self.counters.compaction_bytes_written.fetch_add(written, Ordering::Relaxed);
        Ok(())
    }
}

fn smallest(streams: &[Stream]) -> Option<usize> {
    let mut first: Option<(usize, &[u8])> = None;
    for (at, stream) in streams.iter().enumerate() {
        if let Some(key) = stream.key()
            && first.is_none_or(|(_, smallest)| key < smallest)
        {
            first = Some((at, key));
        }
    }
    first.map(|(at, _)| at)
}

/// The runs that a job writes.
struct Output<'a> {
    inner: &'a Inner,
    writer: Option<RunWriter>,
    finished: Vec<RunMeta>,
    unpaced_bytes: u64,
}

impl Output<'_> {
    /// Adds a row. `cut` allows to begin a new run where one is large enough.
    async fn add(&mut self, key: &[u8], cell: &Cell, cut: bool) -> Result<(), GivenUp> {
        if cut && self.writer.as_ref().is_some_and(|writer| writer.size_bytes() >= self.inner.options.run_bytes) {
            self.end_run().await?;
        }
        if self.writer.is_none() {
            self.writer = Some(self.inner.create_run().map_err(GivenUp::Write)?);
        }
        let writer = self.writer.as_mut().expect("set above");
        writer.add(key, cell);
        if !writer.entries().is_multiple_of(SPILL_ROWS) && !cell.is_large() {
            return Ok(());
        }
        self.unpaced_bytes += writer.spill().await.map_err(GivenUp::Write)?;
        if self.inner.is_closed() {
            return Err(GivenUp::Closed);
        }
        self.pace().await;
        Ok(())
    }

    async fn end_run(&mut self) -> Result<(), GivenUp> {
        if let Some(writer) = self.writer.take() {
            let id = writer.id();
            match writer.finish().await {
                Ok(meta) => self.finished.push(meta),
                Err(error) => {
                    remove_abandoned(&self.inner.files, id);
                    return Err(GivenUp::Write(error));
                }
            }
        }
        Ok(())
    }

    /// Yields to users, unless level 0 grows meanwhile.
    async fn pace(&mut self) {
        let Some(rate) = self.inner.options.compaction_bytes_per_s else { return };
        let crowded = self.inner.view().tree.level(0).len() * 2 >= self.inner.options.l0_runs_max;
        if crowded || self.unpaced_bytes < PACE_BYTES {
            return;
        }
        let pause = Duration::from_secs_f64(self.unpaced_bytes as f64 / rate.max(1) as f64);
        self.unpaced_bytes = 0;
        self.inner.env.sleep(pause).await;
    }

    fn abandon(&mut self) {
        let open = self.writer.take().map(|writer| writer.id());
        for id in open.into_iter().chain(self.finished.drain(..).map(|meta| meta.id)) {
            remove_abandoned(&self.inner.files, id);
        }
    }
}

/// Reads runs that do not overlap from the first to the last row, a part at a time.
pub(super) struct Stream {
    runs: VecDeque<Arc<Run>>,
    part: usize,
    blocks: VecDeque<Bytes>,
    cursor: Option<BlockCursor>,
    bytes_read: u64,
}

impl Stream {
    fn new(runs: Vec<Arc<Run>>) -> Stream {
        Stream { runs: runs.into(), part: 0, blocks: VecDeque::new(), cursor: None, bytes_read: 0 }
    }

    fn key(&self) -> Option<&[u8]> {
        self.cursor.as_ref().and_then(BlockCursor::key)
    }

    fn cell(&self) -> Result<Cell, KvError> {
        let cursor = self.cursor.as_ref().expect("asked only where there is a key");
        let key = cursor.key().expect("asked only where there is a key");
        verified(key, cursor.cell()).inspect_err(|_| self.mark_damaged())
    }

    /// Goes to the next row; `false` when that is in another block.
    fn advance_in_block(&mut self) -> Result<bool, KvError> {
        let Some(cursor) = &mut self.cursor else { return Ok(false) };
        match cursor.advance() {
            Ok(()) => Ok(cursor.key().is_some()),
            Err(error) => Err(self.malformed(&error.to_string())),
        }
    }

    /// Goes to the first row of the next block, if there is one.
    async fn next_block(&mut self) -> Result<(), KvError> {
        self.cursor = None;
        while self.blocks.is_empty() {
            let Some(run) = self.runs.front().cloned() else { return Ok(()) };
            if let Some(error) = run.whole_damage() {
                self.mark_damaged();
                return Err(error);
            }
            if self.part == run.parts() {
                self.runs.pop_front();
                self.part = 0;
                continue;
            }
            let content = run.read_part(self.part).await.inspect_err(|_| self.mark_damaged())?;
            let blocks: Result<VecDeque<Bytes>, KvError> = content.blocks.into_iter().collect();
            self.blocks = blocks.inspect_err(|_| self.mark_damaged())?;
            self.bytes_read += content.bytes;
            self.part += 1;
        }
        let content = self.blocks.pop_front().expect("filled above");
        let mut cursor = BlockCursor::new(content).map_err(|error| self.malformed(&error.to_string()))?;
        cursor.first().map_err(|error| self.malformed(&error.to_string()))?;
        if cursor.key().is_none() {
            return Err(self.malformed("a block without rows"));
        }
        self.cursor = Some(cursor);
        Ok(())
    }

    fn mark_damaged(&self) {
        if let Some(run) = self.runs.front() {
            run.mark_damaged();
        }
    }

    fn malformed(&self, what: &str) -> KvError {
        self.mark_damaged();
        let run = self.runs.front().expect("a run stays in front until all its rows are read");
        let (first, last) = (run.meta.first.clone(), run.meta.last.clone());
        KvError::Damaged { first, last, detail: format!("{}: {what}", run.meta.file_name()) }
    }
}
