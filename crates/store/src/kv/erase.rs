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

/// The keys `from <= key < to`.
struct Range<'a> {
    from: &'a [u8],
    to: &'a [u8],
}

impl Range<'_> {
    fn holds(&self, key: &[u8]) -> bool {
        self.from <= key && key < self.to
    }

    /// Whether all that this error hides lies in the range.
    fn covers(&self, error: &KvError) -> bool {
        match error {
            KvError::Damaged { first, last, .. } => self.holds(first) && self.holds(last),
            KvError::Io(_) => false,
        }
    }
}

impl Inner {
    /// Removes the rows of `from..to` that were committed before this call, and damage that hides nothing else.
    pub(super) async fn erase(self: Arc<Self>, from: Bytes, to: Bytes) -> Result<(), KvError> {
        self.files.check_writing()?;
        let target = *self.writer.lock().expect("a commit does not panic halfway");
        self.flush_up_to(target).await?;
        // No merge carries rows of the range past this. A flush may add a run meanwhile, with later rows only.
        let _merging = self.merging.lock().await;
        let range = Range { from: &from, to: &to };
        let mut exchanges = Vec::new();
        for run in self.view().tree.runs().filter(|run| run.meta.overlaps(&from, &to)) {
            exchanges.push((run.clone(), self.without(run, &range).await?));
        }
        self.install(None, |tree| tree.with_exchanged(&exchanges)).await?;
        exchanges.iter().for_each(|(run, _)| run.mark_obsolete());
        Ok(())
    }

    /// A run like `run` without the rows of the range; `None` when nothing is left. What a failed try leaves behind is
    /// named nowhere, so the next opening removes it.
    async fn without(&self, run: &Arc<Run>, range: &Range<'_>) -> Result<Option<Arc<Run>>, KvError> {
        if range.holds(&run.meta.first) && range.holds(&run.meta.last) {
            return Ok(None);
        }
        if let Some(error) = run.whole_damage() {
            return Err(error);
        }
        let mut begun = None;
        match self.copy_without(run, range, &mut begun).await {
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
        range: &Range<'_>,
        begun: &mut Option<u64>,
    ) -> Result<Option<RunMeta>, KvError> {
        let failed = |error| self.write_failed("an erasure", &error);
        let mut writer: Option<RunWriter> = None;
        for part in 0..run.parts() {
            let blocks = match run.read_part(part).await {
                Ok(content) => content.blocks,
                Err(error) if range.covers(&error) => continue,
                Err(error) => return Err(error),
            };
            for block in blocks {
                let block = match block {
                    Ok(block) => block,
                    Err(error) if range.covers(&error) => continue,
                    Err(error) => return Err(error),
                };
                let malformed = |error| run.index_malformed(part, &error);
                let mut cursor = BlockCursor::new(block).map_err(malformed)?;
                cursor.first().map_err(malformed)?;
                while let Some(key) = cursor.key() {
                    if !range.holds(key) {
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
