//! The log-structured store: [`LsmKv`].
//!
//! ```text
//! commit -> memtable --flush--> run of level 0 --compaction--> runs of deeper levels
//! get, scan, snapshot <- memtable, frozen memtable, tree of runs (together: a *view*)
//! ```
//! There is no write-ahead log: Raft's log is the durability of what is not flushed. A flush freezes the memtable,
//! writes it as one run, makes the run's file and name durable, then replaces the manifest. That is the moment at
//! which its transactions are durable, all at once; and as each flush takes everything before it, a crash keeps a
//! prefix of transactions. It leaves at most orphan files, which the next opening removes.
//!
//! Locks, taken in this order: `flushing` (one flush at a time), `merging` (one merge
//! at a time), `installing` (one change of the manifest at a time),
//! `writer` (one commit, or the exchange of the memtable), `view` (the exchange of one pointer), then those inside a
//! memtable or cache shard. Only the first three are held while I/O is waited for; reads and commits take neither.
//!
//! A failed write, flush or change of the directory is final: all later writing fails with the same reason, nothing is
//! removed any more, reads go on. Only a disk that is full while a run is written is not final: what the run would
//! have held is still in memory, and a later flush begins a new file.

use base::env::{BoxFuture, Disk, Env};
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::{Notify, oneshot};

use super::block::Cell;
use super::cursor::{Merge, Source, verified};
use super::memtable::{Hold, MemCursor, Memtable};
use super::open;
use super::run::Files;
use super::tree::Tree;
use super::verify::{self, Damage, Verification};
use super::{Change, Kv, KvError, KvRead, Row};

/// Sizes and bounds. The defaults suit a node; tests make them small.
#[derive(Clone, Debug)]
pub struct KvOptions {
    /// Memory of the block cache.
    pub cache_bytes: usize,
    /// Data blocks end when they reach this size.
    pub block_bytes: usize,
    /// A compaction's output files end when they reach this size.
    pub run_bytes: u64,
    /// Runs of level 0 at which compaction begins. At least 2.
    pub l0_runs: usize,
    /// Runs of level 0 at which a flush waits for compaction.
    pub l0_runs_max: usize,
    /// Bytes of level 1; each deeper level may have `level_ratio` times as many as the one above it.
    pub level1_bytes: u64,
    pub level_ratio: u64,
    /// How fast compaction writes while level 0 is not crowded; `None` is as fast as it can.
    pub compaction_bytes_per_s: Option<u64>,
    /// Unflushed bytes at which the caller should flush. The store itself never waits for that.
    pub flush_bytes: u64,
    /// How many first bytes of a key say whose it is. On disk, rows of different owners share nothing that could be damaged for
    /// both but what describes a run as a whole.
    pub owner_len: fn(&[u8]) -> usize,
}

impl Default for KvOptions {
    fn default() -> KvOptions {
        KvOptions {
            cache_bytes: 64 << 20,
            block_bytes: 16 << 10,
            run_bytes: 32 << 20,
            l0_runs: 4,
            l0_runs_max: 16,
            level1_bytes: 128 << 20,
            level_ratio: 10,
            compaction_bytes_per_s: None,
            flush_bytes: 64 << 20,
            owner_len: |_| 0,
        }
    }
}

impl KvOptions {
    pub(super) fn level_bytes_max(&self, level: usize) -> u64 {
        let steps = u32::try_from(level.saturating_sub(1)).expect("there are few levels");
        self.level1_bytes.saturating_mul(self.level_ratio.saturating_pow(steps))
    }
}

/// What an opening found.
#[derive(Clone, Debug, Default)]
pub struct KvReport {
    /// There was no store, so an empty one was made.
    pub created: bool,
    /// Transactions since the store was made that are durable.
    pub transactions: u64,
    pub runs: usize,
    /// Files that a crash left behind, now removed (when read only: which would be).
    pub orphans: Vec<String>,
    /// What is wrong with one of the manifest's two copies; it was written anew (unless read only).
    pub manifest_copy_damage: Option<String>,
    /// Runs that are missing or cannot be opened. Damage inside runs is found by reads and by [`LsmKv::verify`].
    pub damages: Vec<Damage>,
}

/// Figures for metrics. Counters start at zero when the store is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvStats {
    pub memtable_bytes: u64,
    /// Of the memtable that a flush is writing.
    pub frozen_bytes: u64,
    pub disk_bytes: u64,
    pub level_runs: Vec<usize>,
    pub level_bytes: Vec<u64>,
    pub flushes: u64,
    pub flush_bytes: u64,
    pub compactions: u64,
    pub compaction_bytes_read: u64,
    pub compaction_bytes_written: u64,
    pub cache_bytes: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    /// How often a damaged filter was passed over.
    pub filters_damaged: u64,
    pub runs_damaged: usize,
    /// Why compaction does not go on, if so.
    pub compaction_trouble: Option<String>,
}

/// An ordered key-value store in the files `kv-*` of one disk directory.
///
/// Memory: the caller flushes when [`Kv::unflushed_bytes`] passes [`KvOptions::flush_bytes`], and stops committing
/// when it passes what the node can afford; commits themselves never wait. A snapshot keeps the memory and files alive
/// that it reads from.
pub struct LsmKv {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) env: Env,
    pub(super) options: KvOptions,
    pub(super) files: Arc<Files>,
    pub(super) view: RwLock<Arc<View>>,
    /// Transactions committed since the store was made.
    pub(super) writer: Mutex<u64>,
    pub(super) flushing: tokio::sync::Mutex<()>,
    /// Sequence of the durable manifest.
    pub(super) installing: tokio::sync::Mutex<u64>,
    /// Held during a merge and an erasure: one of them at a time rewrites runs.
    pub(super) merging: tokio::sync::Mutex<()>,
    /// Transactions that are durable, counted as in `writer`.
    pub(super) durable: AtomicU64,
    pub(super) next_run_id: AtomicU64,
    pub(super) manifest_bytes: AtomicU64,
    pub(super) counters: Counters,
    /// A compaction task runs.
    pub(super) compacting: AtomicBool,
    /// Told when a compaction has ended a job or has given up.
    pub(super) compacted: Notify,
    pub(super) compaction_trouble: Mutex<Option<String>>,
    /// No new flush or compaction begins.
    pub(super) closed: AtomicBool,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) flushes: AtomicU64,
    pub(super) flush_bytes: AtomicU64,
    pub(super) compactions: AtomicU64,
    pub(super) compaction_bytes_read: AtomicU64,
    pub(super) compaction_bytes_written: AtomicU64,
}

/// Where all rows are at one moment.
pub(super) struct View {
    pub(super) memtable: Arc<Memtable>,
    pub(super) frozen: Option<Frozen>,
    pub(super) tree: Tree,
}

/// The memtable that a flush is writing, and the number of its last transaction.
#[derive(Clone)]
pub(super) struct Frozen {
    pub(super) memtable: Arc<Memtable>,
    pub(super) transactions: u64,
}

impl LsmKv {
    /// Opens the store in `disk`, or makes an empty one where there is none, and removes what a crash left behind.
    /// `disk_seed` is the disk's id: files of another disk do not verify.
    ///
    /// Damage in runs is met again by reads of the rows concerned; a manifest without a sound copy is an error.
    pub async fn open(
        env: &Env,
        disk: Arc<dyn Disk>,
        disk_seed: u128,
        options: KvOptions,
    ) -> Result<(Arc<LsmKv>, KvReport), KvError> {
        let (inner, report) = open::open(env, disk, disk_seed, options, false).await?;
        Ok((Arc::new(LsmKv { inner }), report))
    }

    /// Opens the store for looking only: nothing on the disk changes, commits and flushes fail.
    pub async fn open_read_only(
        env: &Env,
        disk: Arc<dyn Disk>,
        disk_seed: u128,
        options: KvOptions,
    ) -> Result<(Arc<LsmKv>, KvReport), KvError> {
        let (inner, report) = open::open(env, disk, disk_seed, options, true).await?;
        Ok((Arc::new(LsmKv { inner }), report))
    }

    /// Renames the files of a store that cannot be opened, so that an empty one can take its place: for a node whose
    /// peers have all that it held. The last one set aside is kept for whoever wants to look.
    pub fn set_aside(disk: &dyn Disk) -> Result<(), KvError> {
        open::set_aside(disk)
    }

    /// Stops background work and waits until none is under way, so that the directory can be opened again. Later
    /// commits and flushes fail. What was not flushed is lost, as in a crash.
    pub async fn close(&self) {
        self.inner.close().await;
    }

    /// Reads and checks every byte of the store at this moment, and lists what is damaged. `bytes_per_s` bounds how
    /// fast, so that users are not disturbed.
    pub async fn verify(&self, bytes_per_s: Option<u64>) -> Verification {
        verify::verify(&self.inner, bytes_per_s).await
    }

    /// Removes the rows of `from <= key < to` that were committed before this call, whether they can be read or not,
    /// and makes that durable; rows committed meanwhile may go or stay. It is how rows are replaced that damage hides:
    /// afterwards reads of the range are sound again, and the rows can be put anew. Fails, and changes nothing, when
    /// damage also hides rows outside the range: [`LsmKv::verify`] says how far each damage reaches.
    pub fn erase(&self, from: &[u8], to: &[u8]) -> BoxFuture<Result<(), KvError>> {
        let (from, to) = (Bytes::copy_from_slice(from), Bytes::copy_from_slice(to));
        Box::pin(self.inner.clone().erase(from, to))
    }

    /// Like [`LsmKv::erase`] of everything outside the ranges `from <= key < to` of `kept`. Where damage hides rows of
    /// several ranges, none of them can be erased alone.
    pub fn retain(&self, kept: Vec<(Bytes, Bytes)>) -> BoxFuture<Result<(), KvError>> {
        Box::pin(self.inner.clone().retain(kept))
    }

    /// Bytes of the store's files on the disk, also of those that only a snapshot still reads.
    pub fn disk_bytes(&self) -> u64 {
        self.inner.disk_bytes()
    }

    pub fn stats(&self) -> KvStats {
        self.inner.stats()
    }

    /// Runs that are missing or cannot be opened, and are still in use. It reads nothing.
    pub fn unreadable_runs(&self) -> Vec<Damage> {
        open::unreadable_runs(&self.inner.view().tree)
    }

    /// Empties the block cache: for tests and measurements.
    pub fn clear_cache(&self) {
        self.inner.files.cache.clear();
    }
}

impl Drop for LsmKv {
    fn drop(&mut self) {
        // A compaction that runs stops at its next step.
        self.inner.closed.store(true, Ordering::SeqCst);
    }
}

impl KvRead for LsmKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let view = self.inner.view();
        let frozen = view.frozen.as_ref().map(|frozen| &frozen.memtable);
        for memtable in std::iter::once(&view.memtable).chain(frozen) {
            if let Some(cell) = memtable.get(key, u64::MAX) {
                return Ok(verified(key, cell)?.value);
            }
        }
        Ok(view.tree.get(key)?.and_then(|cell| cell.value))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, KvError> {
        Snapshot::new(self.inner.view()).scan(from, to, limit)
    }
}

impl Kv for LsmKv {
    fn commit(&self, changes: Vec<Change>) -> Result<(), KvError> {
        self.inner.files.check_writing()?;
        changes.iter().for_each(Change::assert_bounds);
        let mut transactions = self.inner.writer.lock().expect("a commit does not panic halfway");
        // The memtable is exchanged only under the writer lock, so this is the current one until the end.
        self.inner.view().memtable.commit(changes);
        *transactions += 1;
        Ok(())
    }

    fn flush(&self) -> BoxFuture<Result<(), KvError>> {
        let inner = self.inner.clone();
        let target = *inner.writer.lock().expect("a commit does not panic halfway");
        Box::pin(async move {
            inner.files.check_writing()?;
            if inner.durable.load(Ordering::Acquire) >= target {
                return Ok(());
            }
            // A task of its own, so that a caller who gives up does not leave a flush half done.
            let (done, outcome) = oneshot::channel();
            let flusher = inner.clone();
            inner.env.spawn("kv-flush", async move {
                let _ = done.send(flusher.flush_up_to(target).await);
            });
            outcome.await.unwrap_or_else(|_| Err(KvError::Io("the node stops".to_owned())))
        })
    }

    fn unflushed_bytes(&self) -> u64 {
        let view = self.inner.view();
        view.memtable.bytes() + view.frozen.as_ref().map_or(0, |frozen| frozen.memtable.bytes())
    }

    fn snapshot(&self) -> Arc<dyn KvRead> {
        Arc::new(Snapshot::new(self.inner.view()))
    }
}

/// The rows of one view as they were after one transaction.
struct Snapshot {
    view: Arc<View>,
    memtable: Arc<Hold>,
    frozen: Option<Arc<Hold>>,
}

impl Snapshot {
    /// Of this moment or a later one, but before the memtable of `view` was frozen.
    fn new(view: Arc<View>) -> Snapshot {
        let memtable = Arc::new(view.memtable.hold());
        let frozen = view.frozen.as_ref().map(|frozen| Arc::new(frozen.memtable.hold()));
        Snapshot { view, memtable, frozen }
    }

    fn holds(&self) -> impl Iterator<Item = &Arc<Hold>> {
        std::iter::once(&self.memtable).chain(&self.frozen)
    }
}

impl KvRead for Snapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let in_memory = self.holds().find_map(|hold| hold.get(key));
        let cell: Option<Cell> = match in_memory {
            Some(cell) => Some(verified(key, cell)?),
            None => self.view.tree.get(key)?,
        };
        Ok(cell.and_then(|cell| cell.value))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, KvError> {
        assert!(limit > 0, "a scan is for at least one row");
        if from >= to {
            return Ok(Vec::new());
        }
        let memory = |hold: &Arc<Hold>| Source::Memory(MemCursor::new(hold.clone(), from, Some(to)));
        let mut sources: Vec<Source> = self.holds().map(memory).collect();
        self.view.tree.sources(from, to, &mut sources);
        Merge::new(sources).rows(to, limit)
    }
}

impl Inner {
    pub(super) fn view(&self) -> Arc<View> {
        self.view.read().expect("the view's lock is held for an exchange only").clone()
    }

    /// Exchanges the view for one made of it.
    pub(super) fn change_view(&self, change: impl FnOnce(&View) -> View) {
        let mut view = self.view.write().expect("the view's lock is held for an exchange only");
        let next = Arc::new(change(&view));
        let last = std::mem::replace(&mut *view, next);
        // Dropping a view may free much memory, which nobody should wait for.
        drop(view);
        drop(last);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let _flushing = self.flushing.lock().await;
        while self.compacting.load(Ordering::SeqCst) {
            let compacted = self.compacted.notified();
            tokio::pin!(compacted);
            compacted.as_mut().enable();
            if self.compacting.load(Ordering::SeqCst) {
                compacted.await;
            }
        }
        self.files.stop("it was closed".to_owned());
    }

    fn disk_bytes(&self) -> u64 {
        self.files.run_bytes.load(Ordering::Relaxed) + self.manifest_bytes.load(Ordering::Relaxed)
    }

    fn stats(&self) -> KvStats {
        let view = self.view();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let trouble = self.compaction_trouble.lock().expect("nothing panics while it is locked").clone();
        KvStats {
            memtable_bytes: view.memtable.bytes(),
            frozen_bytes: view.frozen.as_ref().map_or(0, |frozen| frozen.memtable.bytes()),
            disk_bytes: self.disk_bytes(),
            level_runs: view.tree.levels().map(<[_]>::len).collect(),
            level_bytes: view.tree.levels().map(|runs| runs.iter().map(|run| run.meta.size_bytes).sum()).collect(),
            flushes: get(&self.counters.flushes),
            flush_bytes: get(&self.counters.flush_bytes),
            compactions: get(&self.counters.compactions),
            compaction_bytes_read: get(&self.counters.compaction_bytes_read),
            compaction_bytes_written: get(&self.counters.compaction_bytes_written),
            cache_bytes: self.files.cache.bytes(),
            cache_hits: self.files.cache.hits(),
            cache_misses: self.files.cache.misses(),
            filters_damaged: get(&self.files.filters_damaged),
            runs_damaged: view.tree.runs().filter(|run| run.is_damaged()).count(),
            compaction_trouble: trouble,
        }
    }
}
