//! Erasing a range: how the state of a replica is replaced when some of its rows cannot be read any more. Deletions
//! would not do, as nobody can name the rows that are hidden by damage.

use bytes::Bytes;
use std::sync::Arc;

use super::KvError;
use super::block::BlockCursor;
use super::flush::SPILL_ROWS;
use super::lsm::Inner;
use super::run::{Run, RunMeta};
use super::run_writer::{RunWriter, remove_abandoned};

/// Which rows go. Ranges are `from <= key < to`.
enum Doomed {
    Within((Bytes, Bytes)),
    Outside(Vec<(Bytes, Bytes)>),
}

impl Doomed {
    fn holds(&self, key: &[u8]) -> bool {
        self.holds_all(key, key)
    }

    /// Whether every key of `first..=last` goes.
    fn holds_all(&self, first: &[u8], last: &[u8]) -> bool {
        match self {
            Doomed::Within((from, to)) => &from[..] <= first && last < &to[..],
            Doomed::Outside(kept) => !kept.iter().any(|(from, to)| first < &to[..] && &from[..] <= last),
        }
    }

    fn concerns(&self, meta: &RunMeta) -> bool {
        match self {
            Doomed::Within((from, to)) => meta.overlaps(from, to),
            Doomed::Outside(_) => true,
        }
    }

    /// Whether all that this error hides goes.
    fn covers(&self, error: &KvError) -> bool {
        match error {
            KvError::Damaged { first, last, .. } => self.holds_all(first, last),
            KvError::Io(_) => false,
        }
    }
}

impl Inner {
    /// Removes the rows of `from..to` that were committed before this call, and damage that hides nothing else.
    pub(super) async fn erase(self: Arc<Self>, from: Bytes, to: Bytes) -> Result<(), KvError> {
        self.remove(Doomed::Within((from, to))).await
    }

    /// Removes the rows outside all these ranges, likewise.
    pub(super) async fn retain(self: Arc<Self>, kept: Vec<(Bytes, Bytes)>) -> Result<(), KvError> {
        self.remove(Doomed::Outside(kept)).await
    }

    async fn remove(self: Arc<Self>, doomed: Doomed) -> Result<(), KvError> {
        self.files.check_writing()?;
        let target = *self.writer.lock().expect("a commit does not panic halfway");
        self.flush_up_to(target).await?;
        // No merge carries rows of the range past this. A flush may add a run meanwhile, with later rows only.
        let _merging = self.merging.lock().await;
        let mut exchanges: Vec<(Arc<Run>, Option<Arc<Run>>)> = Vec::new();
        for run in self.view().tree.runs().filter(|run| doomed.concerns(&run.meta)) {
            match self.without(run, &doomed).await {
                Ok(rest) => exchanges.push((run.clone(), rest)),
                Err(error) => {
                    // Named nowhere: they go at once, as this may be tried again and again.
                    exchanges.iter().filter_map(|(_, rest)| rest.as_ref()).for_each(|rest| rest.mark_obsolete());
                    return Err(error);
                }
            }
        }
        self.install(None, |tree| tree.with_exchanged(&exchanges)).await?;
        exchanges.iter().for_each(|(run, _)| run.mark_obsolete());
        Ok(())
    }

    /// A run like `run` without the doomed rows; `None` when nothing is left. What a failed try leaves behind is
    /// named nowhere, so the next opening removes it.
    async fn without(&self, run: &Arc<Run>, doomed: &Doomed) -> Result<Option<Arc<Run>>, KvError> {
        if doomed.holds_all(&run.meta.first, &run.meta.last) {
            return Ok(None);
        }
        if let Some(error) = run.whole_damage() {
            return Err(error);
        }
        let mut begun = None;
        match self.copy_without(run, doomed, &mut begun).await {
            Ok(None) => Ok(None),
            Ok(Some(meta)) => self.adopt(meta).map(Some),
            Err(error) => {
                if let Some(id) = begun {
                    remove_abandoned(&self.files, id);
                }
                Err(error)
            }
        }
    }

    async fn copy_without(
        &self,
        run: &Run,
        doomed: &Doomed,
        begun: &mut Option<u64>,
    ) -> Result<Option<RunMeta>, KvError> {
        let failed = |error| self.write_failed("an erasure", &error);
        let mut writer: Option<RunWriter> = None;
        for part in 0..run.parts() {
            let blocks = match run.read_part(part).await {
                Ok(content) => content.blocks,
                Err(error) if doomed.covers(&error) => continue,
                Err(error) => return Err(error),
            };
            for block in blocks {
                let block = match block {
                    Ok(block) => block,
                    Err(error) if doomed.covers(&error) => continue,
                    Err(error) => return Err(error),
                };
                let malformed = |error| run.index_malformed(part, &error);
                let mut cursor = BlockCursor::new(block).map_err(malformed)?;
                cursor.first().map_err(malformed)?;
                while let Some(key) = cursor.key() {
                    if !doomed.holds(key) {
                        let mut current = match writer.take() {
                            Some(current) => current,
                            None => self.create_run().map_err(failed)?,
                        };
                        *begun = Some(current.id());
                        // The cell keeps its own checksum, so a damaged value stays a damaged value.
                        let cell = cursor.cell();
                        current.add(key, &cell);
                        if current.entries().is_multiple_of(SPILL_ROWS) || cell.is_large() {
                            current.spill().await.map_err(failed)?;
                        }
                        writer = Some(current);
                    }
                    cursor.advance().map_err(malformed)?;
                }
            }
        }
        match writer {
            None => Ok(None),
            Some(writer) => writer.finish().await.map(Some).map_err(failed),
        }
    }
}
