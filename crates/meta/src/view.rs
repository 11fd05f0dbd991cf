//! What apply and queries read, and what apply changes.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Bound;

use bytes::Bytes;

/// A row of a scan: key and value.
pub type Row = (Bytes, Bytes);

/// Why rows could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// Rows from `first` up to `last` (inclusive) failed their checksum or do not decode. This replica can neither
    /// apply nor answer from them; another replica or a snapshot can.
    #[error("rows from {} up to {} are damaged: {detail}", first.escape_ascii(), last.escape_ascii())]
    Damaged { first: Bytes, last: Bytes, detail: String },
    #[error("the key-value store cannot be read: {0}")]
    Io(String),
}

impl ViewError {
    /// A row that was read but makes no sense.
    pub(crate) fn bad_row(key: &[u8], detail: impl std::fmt::Display) -> ViewError {
        let key = Bytes::copy_from_slice(key);
        ViewError::Damaged { first: key.clone(), last: key, detail: detail.to_string() }
    }
}

/// An ordered key-value map as it stands between two commands.
pub trait View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError>;
    /// Rows with `from <= key < to` in byte order, at most `limit`.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, ViewError>;
}

/// One change of the ordered key-value map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put { key: Bytes, value: Bytes },
    Delete { key: Bytes },
}

/// What one command changes, in order: a later change of the same key wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(pub Vec<Change>);

impl Changes {
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.0.push(Change::Put { key, value });
    }

    pub fn delete(&mut self, key: Bytes) {
        self.0.push(Change::Delete { key });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A map in memory: the model of a view, for tests here and elsewhere.
impl View for BTreeMap<Bytes, Bytes> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        Ok(BTreeMap::get(self, key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, ViewError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let rows = self.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        Ok(rows.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// Makes `changes` in a map in memory.
pub fn commit(map: &mut BTreeMap<Bytes, Bytes>, changes: Changes) {
    for change in changes.0 {
        match change {
            Change::Put { key, value } => map.insert(key, value),
            Change::Delete { key } => map.remove(&key),
        };
    }
}

/// A view with changes on top that are not committed yet, so that a batch of log entries is applied one after the
/// other and committed in one transaction.
pub struct Overlay<'a> {
    base: &'a dyn View,
    /// `None`: deleted.
    pending: BTreeMap<Bytes, Option<Bytes>>,
}

impl<'a> Overlay<'a> {
    pub fn new(base: &'a dyn View) -> Overlay<'a> {
        Overlay { base, pending: BTreeMap::new() }
    }

    /// Puts `changes` on top.
    pub fn absorb(&mut self, changes: Changes) {
        for change in changes.0 {
            match change {
                Change::Put { key, value } => self.pending.insert(key, Some(value)),
                Change::Delete { key } => self.pending.insert(key, None),
            };
        }
    }

    /// Number of keys changed so far.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The sum of all changes: one for each key, in key order.
    pub fn into_changes(self) -> Changes {
        let change = |(key, value)| match value {
            Some(value) => Change::Put { key, value },
            None => Change::Delete { key },
        };
        Changes(self.pending.into_iter().map(change).collect())
    }
}

impl View for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        match self.pending.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, ViewError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let mut pending = self.pending.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))).peekable();
        if pending.peek().is_none() {
            return self.base.scan(from, to, limit);
        }
        let mut out = Vec::new();
        let mut base_from = Bytes::copy_from_slice(from);
        // Each round reads as many rows of the base as are still missing. Deleted ones among them make another round
        // necessary; the base ends the loop.
        while out.len() < limit {
            let wanted = limit - out.len();
            let base_rows = self.base.scan(&base_from, to, wanted)?;
            let base_ended = base_rows.len() < wanted;
            if let Some((last, _)) = base_rows.last() {
                base_from = successor(last);
            }
            merge(&mut out, base_rows, &mut pending, limit);
            if base_ended {
                let rest = pending.by_ref().filter_map(present);
                out.extend(rest.take(limit.saturating_sub(out.len())));
                break;
            }
        }
        Ok(out)
    }
}

type Pending<'a> = std::iter::Peekable<btree_map::Range<'a, Bytes, Option<Bytes>>>;

fn present((key, value): (&Bytes, &Option<Bytes>)) -> Option<Row> {
    value.as_ref().map(|value| (key.clone(), value.clone()))
}

/// Takes all of `base` and what is pending up to its last key; pending wins where keys are equal.
fn merge(out: &mut Vec<Row>, base: Vec<Row>, pending: &mut Pending<'_>, limit: usize) {
    for (key, value) in base {
        while let Some(entry) = pending.next_if(|(changed, _)| **changed < key) {
            out.extend(present(entry));
            if out.len() >= limit {
                return;
            }
        }
        match pending.next_if(|(changed, _)| **changed == key) {
            Some(entry) => out.extend(present(entry)),
            None => out.push((key, value)),
        }
        if out.len() >= limit {
            return;
        }
    }
}

/// The smallest key above `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    Bytes::from(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Map = BTreeMap<Bytes, Bytes>;

    fn key(raw: u8) -> Bytes {
        Bytes::copy_from_slice(&[b'k', raw])
    }

    fn changes(raw: Vec<(u8, Option<u8>)>) -> Changes {
        let change = |(k, v): (u8, Option<u8>)| match v {
            Some(v) => Change::Put { key: key(k), value: Bytes::copy_from_slice(&[v]) },
            None => Change::Delete { key: key(k) },
        };
        Changes(raw.into_iter().map(change).collect())
    }

    proptest! {
        #[test]
        fn an_overlay_reads_as_the_flat_map_would(
            base in proptest::collection::vec((0u8..40, any::<u8>()), 0..40),
            batches in proptest::collection::vec(proptest::collection::vec((0u8..40, any::<Option<u8>>()), 0..20), 0..4),
            from in 0u8..40, to in 0u8..42, limit in 0usize..50,
        ) {
            let base: Map = base.into_iter().map(|(k, v)| (key(k), Bytes::copy_from_slice(&[v]))).collect();
            let mut flat = base.clone();
            let mut overlay = Overlay::new(&base);
            for batch in batches {
                commit(&mut flat, changes(batch.clone()));
                overlay.absorb(changes(batch));
            }
            prop_assert_eq!(overlay.scan(&key(from), &key(to), limit), View::scan(&flat, &key(from), &key(to), limit));
            prop_assert_eq!(View::get(&overlay, &key(from)), View::get(&flat, &key(from)));
            let mut committed = base.clone();
            commit(&mut committed, overlay.into_changes());
            prop_assert_eq!(committed, flat);
        }
    }
}
