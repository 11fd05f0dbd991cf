//! The key-value store in memory: the executable statement of the contract, and the twin that tests of other crates
//! use. It models a crash: [`MemKv::after_crash`] is the store that a reopening would find.

use super::{Change, Kv, KvError, KvRead, Row};
use base::env::BoxFuture;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

type Rows = BTreeMap<Bytes, Bytes>;

/// Rows in a `BTreeMap`; what a flush made durable is kept beside it, for [`MemKv::after_crash`].
#[derive(Default)]
pub struct MemKv {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rows: Arc<Rows>,
    durable: Arc<Rows>,
    unflushed_bytes: u64,
    failure: Option<String>,
}

impl MemKv {
    pub fn new() -> Arc<MemKv> {
        Arc::new(MemKv::default())
    }

    /// What a reopened store holds after a crash now: exactly what the last flush made durable.
    pub fn after_crash(&self) -> Arc<MemKv> {
        let durable = self.lock().durable.clone();
        let state = State { rows: durable.clone(), durable, ..State::default() };
        Arc::new(MemKv { state: Arc::new(Mutex::new(state)) })
    }

    /// From now on writing fails, as after a failed flush of the disk. Reads go on.
    pub fn fail(&self, reason: &str) {
        self.lock().failure = Some(reason.to_owned());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("nothing panics while the rows are locked")
}

impl KvRead for MemKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.lock().rows.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, KvError> {
        let rows = self.lock().rows.clone();
        Ok(scan(&rows, from, to, limit))
    }
}

impl Kv for MemKv {
    fn commit(&self, changes: Vec<Change>) -> Result<(), KvError> {
        let mut state = self.lock();
        if let Some(reason) = &state.failure {
            return Err(KvError::Io(reason.clone()));
        }
        let mut grown = 0;
        // Copies the map only while a snapshot or the durable state still shares it.
        let rows = Arc::make_mut(&mut state.rows);
        for change in changes {
            change.assert_bounds();
            match change {
                Change::Put { key, value } => {
                    grown += key.len() + value.len();
                    rows.insert(key, value);
                }
                Change::Delete { key } => {
                    grown += key.len();
                    rows.remove(&key);
                }
            }
        }
        state.unflushed_bytes += grown as u64;
        Ok(())
    }

    fn flush(&self) -> BoxFuture<Result<(), KvError>> {
        let state = self.state.clone();
        Box::pin(async move {
            let mut state = lock(&state);
            if let Some(reason) = &state.failure {
                return Err(KvError::Io(reason.clone()));
            }
            state.durable = state.rows.clone();
            state.unflushed_bytes = 0;
            Ok(())
        })
    }

    fn unflushed_bytes(&self) -> u64 {
        self.lock().unflushed_bytes
    }

    fn snapshot(&self) -> Arc<dyn KvRead> {
        Arc::new(MemSnapshot(self.lock().rows.clone()))
    }
}

struct MemSnapshot(Arc<Rows>);

impl KvRead for MemSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, KvError> {
        Ok(scan(&self.0, from, to, limit))
    }
}

fn scan(rows: &Rows, from: &[u8], to: &[u8], limit: usize) -> Vec<Row> {
    assert!(limit > 0, "a scan is for at least one row");
    if from >= to {
        return Vec::new();
    }
    rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
        .take(limit)
        .map(|(key, value)| Row { key: key.clone(), value: value.clone() })
        .collect()
}
