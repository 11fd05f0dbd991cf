//! The rows that no run holds yet, in memory, in key order.
//!
//! Transactions are numbered from 1. A row keeps its newest version, and an older one only while a [`Hold`] (a
//! snapshot or a running scan) may ask for it: so a key that every transaction overwrites costs one row. A hold sees
//! the rows as they were at its transaction, whatever is committed later.
//!
//! Invariants: the transaction number and the rows change together under the write lock, so a reader sees whole
//! transactions. Once frozen (no more commits) a memtable never changes.

use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use super::Change;
use super::block::Cell;

/// Bytes that a row takes beside its key and value, roughly.
const ROW_OVERHEAD_BYTES: usize = 128;
/// Keys and values up to this many bytes are copied together, so that a small one does not keep the large message
/// alive that it came in.
const COPY_BYTES_MAX: usize = 4096;
/// Bytes that are allocated at once for copies.
const PIECE_BYTES: usize = 64 << 10;
/// Rows that a cursor examines under one lock, at most.
const BATCH_ROWS_MAX: usize = 256;

#[derive(Default)]
pub(super) struct Memtable {
    rows: RwLock<Rows>,
    /// Transactions that holds are at, with the number of holds. Added to under the read lock of `rows`, so that no
    /// commit is under way.
    holds: Mutex<BTreeMap<u64, usize>>,
    bytes: AtomicU64,
}

#[derive(Default)]
struct Rows {
    map: BTreeMap<Bytes, Versions>,
    transaction: u64,
    copies: BytesMut,
}

/// The versions of one row, each with the transaction that made it.
struct Versions {
    newest: (u64, Cell),
    /// Newest first; empty without holds.
    older: Vec<(u64, Cell)>,
}

impl Versions {
    fn at(&self, transaction: u64) -> Option<&Cell> {
        if self.newest.0 <= transaction {
            return Some(&self.newest.1);
        }
        self.older.iter().find(|(made_by, _)| *made_by <= transaction).map(|(_, cell)| cell)
    }
}

impl Memtable {
    /// Memory in bytes: keys, values, overhead, and what overwritten rows left behind.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Applies a transaction; readers see all of it or nothing. One writer at a time, else the order is any.
    pub(super) fn commit(&self, changes: Vec<Change>) {
        // Checksums of large values take a while, so they are made before the lock is taken.
        let cells: Vec<(Bytes, Cell)> = changes
            .into_iter()
            .map(|change| match change {
                Change::Put { key, value } => {
                    let cell = Cell::put(&key, value);
                    (key, cell)
                }
                Change::Delete { key } => (key, Cell::deletion()),
            })
            .collect();
        let mut rows = self.rows.write().expect("nothing panics while the rows are locked");
        rows.transaction += 1;
        let held = self.holds.lock().expect("nothing panics while holds are locked").keys().next_back().copied();
        let grown: usize = cells.into_iter().map(|(key, cell)| rows.apply(key, cell, held)).sum();
        self.bytes.fetch_add(grown as u64, Ordering::Relaxed);
    }

    /// The newest cell of `key`, or the one at the hold's transaction.
    pub(super) fn get(&self, key: &[u8], transaction: u64) -> Option<Cell> {
        self.read().map.get(key).and_then(|versions| versions.at(transaction)).cloned()
    }

    /// Keeps the rows as they are now readable, until the hold is dropped.
    pub(super) fn hold(self: &Arc<Self>) -> Hold {
        let rows = self.read();
        let transaction = rows.transaction;
        *self.holds.lock().expect("nothing panics while holds are locked").entry(transaction).or_insert(0) += 1;
        Hold { table: self.clone(), transaction }
    }

    fn read(&self) -> RwLockReadGuard<'_, Rows> {
        self.rows.read().expect("nothing panics while the rows are locked")
    }
}

impl Rows {
    /// Puts `cell` under `key`. Returns the bytes of memory this took. `held` is the newest transaction on hold.
    fn apply(&mut self, key: Bytes, cell: Cell, held: Option<u64>) -> usize {
        let mut grown = 0;
        let cell = Cell { crc: cell.crc, value: cell.value.map(|value| self.keep(value, &mut grown)) };
        if let Some(versions) = self.map.get_mut(&key) {
            let old = std::mem::replace(&mut versions.newest, (self.transaction, cell));
            // A hold is older than this transaction, so it needs the old version if it is not older than that.
            if held.is_some_and(|held| held >= old.0) && old.0 != self.transaction {
                versions.older.insert(0, old);
                grown += ROW_OVERHEAD_BYTES;
            }
        } else {
            let key = self.keep(key, &mut grown);
            let newest = (self.transaction, cell);
            self.map.insert(key, Versions { newest, older: Vec::new() });
            grown += ROW_OVERHEAD_BYTES;
        }
        grown
    }

    fn keep(&mut self, data: Bytes, grown: &mut usize) -> Bytes {
        *grown += data.len();
        if data.is_empty() || data.len() > COPY_BYTES_MAX {
            return data;
        }
        if self.copies.capacity() < data.len() {
            self.copies = BytesMut::with_capacity(PIECE_BYTES);
        }
        self.copies.extend_from_slice(&data);
        self.copies.split().freeze()
    }
}

/// A memtable as it was after one transaction.
pub(super) struct Hold {
    table: Arc<Memtable>,
    transaction: u64,
}

impl Hold {
    pub(super) fn get(&self, key: &[u8]) -> Option<Cell> {
        self.table.get(key, self.transaction)
    }

    /// Up to `rows_max` rows from `from` on, below `to`, into `out`. Returns where to go on, if anywhere.
    fn batch(&self, from: &mut Position, to: Option<&[u8]>, rows_max: usize, out: &mut Vec<(Bytes, Cell)>) {
        let rows = self.table.read();
        let lower = match from {
            Position::From(key) => Bound::Included(&key[..]),
            Position::Behind(key) => Bound::Excluded(&key[..]),
            Position::End => return,
        };
        let mut last = None;
        for (key, versions) in rows.map.range::<[u8], _>((lower, Bound::Unbounded)).take(rows_max) {
            if to.is_some_and(|to| &key[..] >= to) {
                last = None;
                break;
            }
            last = Some(key);
            if let Some(cell) = versions.at(self.transaction) {
                out.push((key.clone(), cell.clone()));
            }
        }
        *from = last.map_or(Position::End, |key| Position::Behind(key.clone()));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = self.table.holds.lock().expect("nothing panics while holds are locked");
        let count = holds.get_mut(&self.transaction).expect("a hold is counted until it is dropped");
        *count -= 1;
        if *count == 0 {
            holds.remove(&self.transaction);
        }
    }
}

enum Position {
    From(Bytes),
    Behind(Bytes),
    End,
}

/// Walks a held memtable in key order. Takes the lock once per batch, never while anything else is waited for.
pub(super) struct MemCursor {
    hold: Arc<Hold>,
    to: Option<Bytes>,
    position: Position,
    batch: Vec<(Bytes, Cell)>,
    /// The current row in `batch`.
    at: usize,
    rows_next: usize,
}

impl MemCursor {
    /// A cursor at the first row of `from <= key < to`.
    pub(super) fn new(hold: Arc<Hold>, from: &[u8], to: Option<&[u8]>) -> MemCursor {
        let mut cursor = MemCursor {
            hold,
            to: to.map(Bytes::copy_from_slice),
            position: Position::From(Bytes::copy_from_slice(from)),
            batch: Vec::new(),
            at: 0,
            rows_next: 8,
        };
        cursor.fill();
        cursor
    }

    pub(super) fn row(&self) -> Option<&(Bytes, Cell)> {
        self.batch.get(self.at)
    }

    pub(super) fn advance(&mut self) {
        self.at += 1;
        if self.at >= self.batch.len() {
            self.fill();
        }
    }

    fn fill(&mut self) {
        self.batch.clear();
        self.at = 0;
        // A batch may be empty when all its rows are younger than the hold.
        while self.batch.is_empty() && !matches!(self.position, Position::End) {
            self.hold.batch(&mut self.position, self.to.as_deref(), self.rows_next, &mut self.batch);
            self.rows_next = (self.rows_next * 2).min(BATCH_ROWS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Change {
        Change::Put { key: Bytes::copy_from_slice(key.as_bytes()), value: Bytes::copy_from_slice(value.as_bytes()) }
    }

    fn values(hold: &Arc<Hold>) -> Vec<(Bytes, Option<Bytes>)> {
        let mut cursor = MemCursor::new(hold.clone(), b"", None);
        let mut out = Vec::new();
        while let Some((key, cell)) = cursor.row() {
            out.push((key.clone(), cell.value.clone()));
            cursor.advance();
        }
        out
    }

    #[test]
    fn a_hold_sees_its_transaction_whatever_comes_later() {
        let table = Arc::new(Memtable::default());
        table.commit(vec![put("a", "1"), put("b", "1"), put("a", "2")]);
        let first = Arc::new(table.hold());
        table.commit(vec![put("a", "3"), Change::Delete { key: Bytes::from_static(b"b") }, put("c", "3")]);
        let second = Arc::new(table.hold());
        for n in 0..1000 {
            table.commit(vec![put("a", "4"), put(&format!("b{n}"), "4")]);
        }
        let row = |key: &'static str, value: Option<&'static str>| (Bytes::from(key), value.map(Bytes::from));
        assert_eq!(values(&first), [row("a", Some("2")), row("b", Some("1"))]);
        assert_eq!(values(&second), [row("a", Some("3")), row("b", None), row("c", Some("3"))]);
        assert_eq!(first.get(b"c"), None);
        assert_eq!(values(&Arc::new(table.hold())).len(), 1003);
    }

    #[test]
    fn old_versions_are_kept_only_for_holds() {
        let table = Arc::new(Memtable::default());
        let versions = |table: &Memtable| table.read().map[&b"a"[..]].older.len();
        for _ in 0..10 {
            table.commit(vec![put("a", "x")]);
        }
        assert_eq!(versions(&table), 0);
        let hold = table.hold();
        for _ in 0..10 {
            table.commit(vec![put("a", "y")]);
        }
        assert_eq!(versions(&table), 1);
        assert_eq!(hold.get(b"a").unwrap().value.unwrap(), "x");
        drop(hold);
        assert!(table.holds.lock().unwrap().is_empty());
    }
}
