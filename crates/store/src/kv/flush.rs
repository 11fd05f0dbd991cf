//! The flush: from the memtable to a durable run.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::lsm::{Frozen, Inner, View};
use super::manifest::Manifest;
use super::memtable::{MemCursor, Memtable};
use super::run::{Run, RunMeta};
use super::run_writer::{RunWriter, remove_abandoned};
use super::tree::Tree;
use super::{KvError, KvOptions};

/// Rows that are added to a run between two looks at whether there is enough to write.
pub(super) const SPILL_ROWS: u64 = 64;

impl Inner {
    /// Makes at least the first `target` transactions durable.
    pub(super) async fn flush_up_to(self: &Arc<Self>, target: u64) -> Result<(), KvError> {
        let _flushing = self.flushing.lock().await;
        while self.durable.load(Ordering::Acquire) < target {
            if self.is_closed() {
                return Err(KvError::Io("it is closed".to_owned()));
            }
            self.files.check_writing()?;
            self.wait_for_level0().await;
            let frozen = self.freeze();
            let run = self.write_memtable(&frozen.memtable).await?;
            self.install(Some(frozen.transactions), |tree| match run {
                None => tree.clone(),
                Some(run) => tree.with_flushed(run),
            })
            .await?;
            self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        }
        self.start_compaction();
        Ok(())
    }

    /// Exchanges the memtable for an empty one, unless a frozen one still waits for a flush that failed.
    fn freeze(&self) -> Frozen {
        let transactions = self.writer.lock().expect("a commit does not panic halfway");
        if let Some(frozen) = &self.view().frozen {
            return frozen.clone();
        }
        let frozen = Frozen { memtable: self.view().memtable.clone(), transactions: *transactions };
        self.change_view(|view| View {
            memtable: Arc::new(Memtable::default()),
            frozen: Some(frozen.clone()),
            tree: view.tree.clone(),
        });
        frozen
    }

    /// Writes a frozen memtable as a run and makes the file durable. `None` when there is nothing to keep.
    async fn write_memtable(&self, memtable: &Arc<Memtable>) -> Result<Option<Arc<Run>>, KvError> {
        // In an empty tree there is nothing that a deletion would hide.
        let keep_deletions = self.view().tree.runs().next().is_some();
        let mut begun = None;
        match self.write_rows(memtable, keep_deletions, &mut begun).await {
            Ok(None) => Ok(None),
            Ok(Some(meta)) => {
                self.counters.flush_bytes.fetch_add(meta.size_bytes, Ordering::Relaxed);
                self.adopt(meta).map(Some)
            }
            Err(error) => {
                if let Some(id) = begun {
                    remove_abandoned(&self.files, id);
                }
                Err(self.write_failed("a flush", &error))
            }
        }
    }

    /// Writes the rows into a run file, whose id it leaves in `begun` in any case.
    async fn write_rows(
        &self,
        memtable: &Arc<Memtable>,
        keep_deletions: bool,
        begun: &mut Option<u64>,
    ) -> io::Result<Option<RunMeta>> {
        let mut cursor = MemCursor::new(Arc::new(memtable.hold()), &[], None);
        let mut writer: Option<RunWriter> = None;
        while let Some((key, cell)) = cursor.row() {
            if keep_deletions || cell.value.is_some() {
                let mut current = match writer.take() {
                    Some(current) => current,
                    None => self.create_run()?,
                };
                *begun = Some(current.id());
                current.add(key, cell);
                if current.entries().is_multiple_of(SPILL_ROWS) || cell.is_large() {
                    current.spill().await?;
                }
                writer = Some(current);
            }
            cursor.advance();
        }
        match writer {
            None => Ok(None),
            Some(writer) => writer.finish().await.map(Some),
        }
    }

    /// Creates the file of the next run.
    pub(super) fn create_run(&self) -> io::Result<RunWriter> {
        let id = self.next_run_id.fetch_add(1, Ordering::Relaxed);
        let KvOptions { block_bytes, owner_len, .. } = self.options;
        RunWriter::create(&self.files, id, self.env.random.next_u64(), block_bytes, owner_len)
    }

    /// Makes the name of a finished run durable, so that a manifest may name it, and opens it.
    pub(super) fn adopt(&self, meta: RunMeta) -> Result<Arc<Run>, KvError> {
        self.files
            .disk
            .flush_directory()
            .map_err(|error| self.files.stop(format!("{}: {error}", self.files.disk.describe())))?;
        let run = Run::open(meta, &self.files);
        match run.whole_damage() {
            None => Ok(run),
            // Nothing has been given up for it yet.
            Some(error) => Err(self.files.stop(format!("a run reads back damaged just after its flush: {error}"))),
        }
    }

    /// The error of a failed write. It is final unless the disk was merely full.
    pub(super) fn write_failed(&self, what: &str, error: &io::Error) -> KvError {
        let reason = format!("{what} in {} failed: {error}", self.files.disk.describe());
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return KvError::Io(reason);
        }
        self.files.stop(reason)
    }

    /// Makes a changed tree durable, then visible. `flushed` is the number of transactions of the frozen memtable,
    /// which is in the new tree.
    pub(super) async fn install(
        &self,
        flushed: Option<u64>,
        change: impl FnOnce(&Tree) -> Tree,
    ) -> Result<(), KvError> {
        let mut sequence = self.installing.lock().await;
        self.files.check_writing()?;
        // The tree changes only here, so this one is still the current one below.
        let tree = change(&self.view().tree);
        let manifest = Manifest {
            sequence: *sequence + 1,
            next_run_id: self.next_run_id.load(Ordering::Relaxed),
            transactions: flushed.unwrap_or(self.durable.load(Ordering::Acquire)),
            levels: tree.metas(),
        };
        let replaced = manifest.replace(&*self.files.disk, self.files.disk_seed).await;
        // Whether the new manifest is the durable one is unknown after an error, even if the disk is merely full.
        replaced
            .map_err(|error| self.files.stop(format!("the manifest in {}: {error}", self.files.disk.describe())))?;
        *sequence += 1;
        self.manifest_bytes.store(manifest.file_bytes(), Ordering::Relaxed);
        self.change_view(|view| View {
            memtable: view.memtable.clone(),
            frozen: if flushed.is_some() { None } else { view.frozen.clone() },
            tree,
        });
        if let Some(transactions) = flushed {
            self.durable.store(transactions, Ordering::Release);
        }
        Ok(())
    }

    /// While level 0 is full and compaction makes progress, waits for it. Reads stay fast this way; meanwhile memory
    /// grows, which the caller bounds.
    async fn wait_for_level0(self: &Arc<Self>) {
        while self.view().tree.level(0).len() >= self.options.l0_runs_max && self.start_compaction() {
            let compacted = self.compacted.notified();
            tokio::pin!(compacted);
            compacted.as_mut().enable();
            if !self.compacting.load(Ordering::SeqCst) {
                continue;
            }
            compacted.await;
            if self.compaction_trouble.lock().expect("nothing panics while it is locked").is_some() {
                return;
            }
        }
    }
}
