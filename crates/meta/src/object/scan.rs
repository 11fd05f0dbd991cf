//! A cursor over rows that can jump: the heart of every listing.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::view::{Row, View, ViewError};

const BATCH_MIN: usize = 8;
const BATCH_MAX: usize = 256;

/// Reads rows in order, in batches that grow while most rows are used and shrink while jumps waste them, so that the
/// cost follows what is used.
pub(super) struct Cursor<'v> {
    view: &'v dyn View,
    from: Bytes,
    to: Bytes,
    rows: VecDeque<Row>,
    batch: usize,
    used: usize,
    /// Nothing is left beyond `rows`.
    ended: bool,
    /// Rows handed out so far.
    pub visited: usize,
}

impl<'v> Cursor<'v> {
    /// Over `from <= key < to`.
    pub fn new(view: &'v dyn View, from: Bytes, to: Bytes) -> Cursor<'v> {
        Cursor {
            view,
            from,
            to,
            rows: VecDeque::new(),
            batch: BATCH_MIN * 2,
            used: BATCH_MIN * 2,
            ended: false,
            visited: 0,
        }
    }

    pub fn next(&mut self) -> Result<Option<Row>, ViewError> {
        if self.rows.is_empty() && !self.ended {
            self.fill()?;
        }
        let row = self.rows.pop_front();
        if row.is_some() {
            self.used += 1;
            self.visited += 1;
        }
        Ok(row)
    }

    /// Passes over every row below `to`.
    pub fn seek(&mut self, to: &Bytes) {
        while self.rows.front().is_some_and(|(key, _)| key < to) {
            self.rows.pop_front();
        }
        if self.rows.is_empty() && self.from < *to {
            self.from = to.clone();
        }
    }

    fn fill(&mut self) -> Result<(), ViewError> {
        let rows = self.view.scan(&self.from, &self.to, self.batch)?;
        self.ended = rows.len() < self.batch;
        if let Some((last, _)) = rows.last() {
            // The successor of a key is the key and a zero byte.
            self.from = [last.as_ref(), &[0]].concat().into();
        }
        let was_wasted = self.used * 2 < self.batch;
        self.batch = if was_wasted { self.batch / 2 } else { self.batch * 2 }.clamp(BATCH_MIN, BATCH_MAX);
        self.used = 0;
        self.rows = rows.into();
        Ok(())
    }
}
