//! Positions in sorted rows: in one run, in a level of runs, and the merge of all sources of a store into one order.
//!
//! Damage is a position too: a cursor that meets rows it cannot read stands at the first key they may have, and its
//! cell is the error. So a scan serves everything before the damage and never steps over it unawares, and a newer
//! version of a hidden key in another source still counts.

use bytes::Bytes;
use std::sync::Arc;

use super::block::{BlockCursor, Cell};
use super::memtable::MemCursor;
use super::run::{Run, successor};
use super::{KvError, Row};

/// A position in one run.
pub(super) struct RunCursor {
    run: Arc<Run>,
    part: usize,
    index: Option<BlockCursor>,
    data: Option<BlockCursor>,
    /// Set while the cursor stands before rows that cannot be read: the first key they may have, and why.
    damage: Option<(Bytes, KvError)>,
}

impl RunCursor {
    /// A cursor at the first row with a key of at least `from`.
    pub(super) fn new(run: Arc<Run>, from: &[u8]) -> RunCursor {
        let mut cursor = RunCursor { run, part: 0, index: None, data: None, damage: None };
        cursor.seek(from);
        cursor
    }

    /// `None` behind the last row.
    pub(super) fn key(&self) -> Option<&[u8]> {
        match &self.damage {
            Some((at, _)) => Some(at),
            None => self.data.as_ref().and_then(BlockCursor::key),
        }
    }

    /// The verified cell at the cursor, which must not be behind the last row.
    pub(super) fn cell(&self) -> Result<Cell, KvError> {
        if let Some((_, error)) = &self.damage {
            return Err(error.clone());
        }
        let data = self.data.as_ref().expect("a cursor that is not at its end has a block");
        let key = data.key().expect("a cursor that is not at its end is at an entry");
        verified(key, data.cell())
    }

    pub(super) fn advance(&mut self) {
        if let Some((at, _)) = self.damage.take() {
            self.seek(&successor(&at));
        } else if let Err(error) = self.try_advance() {
            self.stand_before(&[], error);
        }
    }

    fn seek(&mut self, from: &[u8]) {
        (self.index, self.data, self.damage) = (None, None, None);
        if let Err(error) = self.try_seek(from) {
            self.stand_before(from, error);
        }
    }

    fn try_seek(&mut self, from: &[u8]) -> Result<(), KvError> {
        if let Some(error) = self.run.whole_damage() {
            return if from <= &self.run.meta.last[..] { Err(error) } else { Ok(()) };
        }
        self.part = self.run.find_part(from);
        if self.part == self.run.parts() {
            return Ok(());
        }
        let (run, part) = (&self.run, self.part);
        let mut index = run.index_cursor(part)?;
        index.seek(from).map_err(|error| run.index_malformed(part, &error))?;
        let mut data = run.data_cursor(part, &index)?;
        data.seek(from).map_err(|error| run.data_malformed(part, &index, &error))?;
        (self.index, self.data) = (Some(index), Some(data));
        Ok(())
    }

    fn try_advance(&mut self) -> Result<(), KvError> {
        let (Some(index), Some(data)) = (&mut self.index, &mut self.data) else { return Ok(()) };
        let (run, part) = (&self.run, self.part);
        data.advance().map_err(|error| run.data_malformed(part, index, &error))?;
        if data.key().is_some() {
            return Ok(());
        }
        self.data = None;
        index.advance().map_err(|error| run.index_malformed(part, &error))?;
        if index.key().is_none() {
            self.part += 1;
            self.index = None;
            if self.part == run.parts() {
                return Ok(());
            }
            let mut next = run.index_cursor(self.part)?;
            next.first().map_err(|error| run.index_malformed(self.part, &error))?;
            self.index = Some(next);
        }
        let index = self.index.as_ref().expect("kept or set above");
        let mut data = run.data_cursor(self.part, index)?;
        data.first().map_err(|error| run.data_malformed(self.part, index, &error))?;
        self.data = Some(data);
        Ok(())
    }

    fn stand_before(&mut self, from: &[u8], error: KvError) {
        let at = match &error {
            KvError::Damaged { first, .. } if &first[..] > from => first.clone(),
            _ => Bytes::copy_from_slice(from),
        };
        self.damage = Some((at, error));
    }
}

/// The cell, if its value is the one that was committed under `key`.
pub(super) fn verified(key: &[u8], cell: Cell) -> Result<Cell, KvError> {
    if cell.verifies(key) {
        return Ok(cell);
    }
    let key = Bytes::copy_from_slice(key);
    Err(KvError::Damaged { first: key.clone(), last: key, detail: "the value fails its own checksum".to_owned() })
}

/// A position in a level: runs in key order that do not overlap. A run of level 0 is a level of its own here.
pub(super) struct LevelCursor {
    runs: Arc<[Arc<Run>]>,
    at: usize,
    cursor: Option<RunCursor>,
}

impl LevelCursor {
    pub(super) fn new(runs: Arc<[Arc<Run>]>, from: &[u8]) -> LevelCursor {
        let at = runs.partition_point(|run| &run.meta.last[..] < from);
        let cursor = runs.get(at).map(|run| RunCursor::new(run.clone(), from));
        LevelCursor { runs, at, cursor }
    }

    fn key(&self) -> Option<&[u8]> {
        self.cursor.as_ref().and_then(RunCursor::key)
    }

    fn cell(&self) -> Result<Cell, KvError> {
        self.cursor.as_ref().expect("asked only where there is a key").cell()
    }

    fn advance(&mut self) {
        let Some(cursor) = &mut self.cursor else { return };
        cursor.advance();
        if cursor.key().is_none() {
            self.at += 1;
            self.cursor = self.runs.get(self.at).map(|run| RunCursor::new(run.clone(), &[]));
        }
    }
}

/// One input of a merge.
pub(super) enum Source {
    Memory(MemCursor),
    Level(Box<LevelCursor>),
}

impl Source {
    fn key(&self) -> Option<&[u8]> {
        match self {
            Source::Memory(cursor) => cursor.row().map(|(key, _)| &key[..]),
            Source::Level(cursor) => cursor.key(),
        }
    }

    fn cell(&self) -> Result<Cell, KvError> {
        match self {
            Source::Memory(cursor) => {
                let (key, cell) = cursor.row().expect("asked only where there is a key");
                verified(key, cell.clone())
            }
            Source::Level(cursor) => cursor.cell(),
        }
    }

    fn advance(&mut self) {
        match self {
            Source::Memory(cursor) => cursor.advance(),
            Source::Level(cursor) => cursor.advance(),
        }
    }
}

/// All sources in one key order, each key once, in its newest version.
pub(super) struct Merge {
    /// Newest first.
    sources: Vec<Source>,
    /// Sources that have a row, by key, then newest first. The next row is that of the first.
    order: Vec<usize>,
}

impl Merge {
    /// `sources` are given newest first.
    pub(super) fn new(sources: Vec<Source>) -> Merge {
        let mut merge = Merge { order: Vec::with_capacity(sources.len()), sources };
        for source in 0..merge.sources.len() {
            merge.place(source);
        }
        merge
    }

    /// The rows with keys below `to`, at most `limit` of them. Deletions are passed over.
    pub(super) fn rows(mut self, to: &[u8], limit: usize) -> Result<Vec<Row>, KvError> {
        let mut rows = Vec::new();
        while rows.len() < limit {
            let Some(&first) = self.order.first() else { break };
            let key = self.sources[first].key().expect("a source in order has a row");
            if key >= to {
                break;
            }
            let key = Bytes::copy_from_slice(key);
            let cell = self.sources[first].cell()?;
            self.step_over(&key);
            if let Some(value) = cell.value {
                rows.push(Row { key, value });
            }
        }
        Ok(rows)
    }

    /// Advances all sources that are at `key`.
    fn step_over(&mut self, key: &[u8]) {
        while let Some(&first) = self.order.first()
            && self.sources[first].key() == Some(key)
        {
            self.order.remove(0);
            self.sources[first].advance();
            self.place(first);
        }
    }

    /// Puts a source where it belongs in `order`; usually that is near the front.
    fn place(&mut self, source: usize) {
        let Some(key) = self.sources[source].key() else { return };
        let before = |other: &usize| {
            let other_key = self.sources[*other].key().expect("a source in order has a row");
            (other_key, *other) < (key, source)
        };
        let at = self.order.iter().position(|other| !before(other)).unwrap_or(self.order.len());
        self.order.insert(at, source);
    }
}
