//! The contract of [`Kv`] as a suite that every implementation passes: [`run`]. It holds the store against a model, an
//! ordered map and the list of transactions, through commits, flushes, snapshots and crashes.

use super::{Change, Kv, KvError, KvRead, Row, VALUE_LEN_MAX};
use base::env::{Random, RandomExt};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// What the suite needs around a store: to open it, to run it, and to take its power.
pub trait Harness {
    /// The store as it is after the last crash; empty the first time.
    fn open(&mut self) -> Arc<dyn Kv>;
    /// Drives a flush to its end; `None` when the power failed before.
    fn flush(&mut self, kv: &Arc<dyn Kv>) -> Option<Result<(), KvError>>;
    /// Lets background work go on for a while.
    fn settle(&mut self);
    /// Takes the power away. Handles of the store are of no use from now on, until `open`.
    fn crash(&mut self);
    /// Has the power fail within the next few disk operations, where there are any.
    fn crash_soon(&mut self);
    /// Whether the power has failed.
    fn is_down(&self) -> bool;
    fn random(&self) -> &dyn Random;
}

/// Runs everything. `steps` is the length of the random part; panics where the contract is broken.
pub fn run(harness: &mut dyn Harness, steps: usize) {
    orders_and_limits(harness);
    transactions_apply_in_order(harness);
    snapshots_do_not_change(harness);
    lengths_up_to_the_bounds(harness);
    many_deletions_in_a_row(harness);
    Walk::new(harness).run(steps);
}

fn put(key: &str, value: &str) -> Change {
    Change::Put { key: Bytes::copy_from_slice(key.as_bytes()), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn delete(key: &str) -> Change {
    Change::Delete { key: Bytes::copy_from_slice(key.as_bytes()) }
}

fn commit(kv: &Arc<dyn Kv>, changes: Vec<Change>) {
    kv.commit(changes).expect("a sound disk takes commits");
}

fn flush(harness: &mut dyn Harness, kv: &Arc<dyn Kv>) {
    harness.flush(kv).expect("nothing takes the power").expect("a sound disk takes flushes");
}

fn get(kv: &dyn KvRead, key: &str) -> Option<String> {
    kv.get(key.as_bytes()).expect("a sound disk is readable").map(|value| String::from_utf8_lossy(&value).into_owned())
}

fn scan(kv: &dyn KvRead, from: &str, to: &str, limit: usize) -> Vec<String> {
    let rows = kv.scan(from.as_bytes(), to.as_bytes(), limit).expect("a sound disk is readable");
    rows.iter().map(|row| format!("{}={}", row.key.escape_ascii(), row.value.escape_ascii())).collect()
}

/// Removes all rows, so that each case starts with none.
fn clear(kv: &Arc<dyn Kv>) {
    let rows = all_rows(&**kv);
    commit(kv, rows.into_iter().map(|row| Change::Delete { key: row.key }).collect());
}

fn all_rows(kv: &dyn KvRead) -> Vec<Row> {
    kv.scan(&[], &[0xff; 16], usize::MAX).expect("a sound disk is readable")
}

fn orders_and_limits(harness: &mut dyn Harness) {
    let kv = harness.open();
    clear(&kv);
    commit(&kv, vec![put("b", "2"), put("", "0"), put("a\0", "1a"), put("c", "3"), put("a", "1")]);
    for flushed in [false, true] {
        if flushed {
            flush(harness, &kv);
        }
        assert_eq!(scan(&*kv, "", "z", 10), ["=0", "a=1", "a\\x00=1a", "b=2", "c=3"], "rows come in byte order");
        assert_eq!(scan(&*kv, "a", "c", 10), ["a=1", "a\\x00=1a", "b=2"], "the first bound is in, the last one out");
        assert_eq!(scan(&*kv, "a\0\0", "z", 1), ["b=2"], "the limit counts rows");
        assert_eq!(scan(&*kv, "c", "a", 10), Vec::<String>::new(), "an inverted range is empty");
        assert_eq!(scan(&*kv, "a", "a", 10), Vec::<String>::new());
        assert_eq!(get(&*kv, ""), Some("0".to_owned()));
        assert_eq!(get(&*kv, "aa"), None);
    }
}

fn transactions_apply_in_order(harness: &mut dyn Harness) {
    let kv = harness.open();
    clear(&kv);
    flush(harness, &kv);
    commit(&kv, vec![put("a", "1"), delete("a"), put("b", "1"), put("b", "2"), delete("c"), put("c", "1")]);
    assert_eq!(scan(&*kv, "", "z", 10), ["b=2", "c=1"], "the last change of a key counts");
    flush(harness, &kv);
    commit(&kv, vec![delete("b"), delete("absent")]);
    commit(&kv, Vec::new());
    assert_eq!(scan(&*kv, "", "z", 10), ["c=1"], "a deletion hides what was flushed");
    flush(harness, &kv);
    commit(&kv, vec![put("b", "3")]);
    assert_eq!(scan(&*kv, "", "z", 10), ["b=3", "c=1"], "a row may come back");
    assert!(kv.unflushed_bytes() > 0);
    flush(harness, &kv);
    assert_eq!(kv.unflushed_bytes(), 0, "nothing is unflushed after a flush");
    harness.crash();
    let kv = harness.open();
    assert_eq!(scan(&*kv, "", "z", 10), ["b=3", "c=1"], "what was flushed survives a crash");
}

fn snapshots_do_not_change(harness: &mut dyn Harness) {
    let kv = harness.open();
    clear(&kv);
    commit(&kv, vec![put("a", "1"), put("b", "1")]);
    let first = kv.snapshot();
    commit(&kv, vec![put("a", "2"), delete("b"), put("c", "2")]);
    let second = kv.snapshot();
    for round in 0..20 {
        commit(&kv, vec![put("a", &format!("later {round}")), put("b", "later"), delete("c")]);
        if round % 3 == 0 {
            flush(harness, &kv);
        }
        harness.settle();
        assert_eq!(scan(&*first, "", "z", 10), ["a=1", "b=1"], "round {round}");
        assert_eq!(scan(&*second, "", "z", 10), ["a=2", "c=2"], "round {round}");
        assert_eq!((get(&*first, "c"), get(&*second, "c")), (None, Some("2".to_owned())));
        assert_eq!((get(&*first, "b"), get(&*second, "b")), (Some("1".to_owned()), None));
    }
    assert_eq!(scan(&*kv, "", "z", 10), ["a=later 19", "b=later"]);
}

fn lengths_up_to_the_bounds(harness: &mut dyn Harness) {
    let kv = harness.open();
    clear(&kv);
    let long_key = Bytes::from(vec![0xfe; super::KEY_LEN_MAX]);
    let large: Bytes = (0..VALUE_LEN_MAX).map(|at| (at % 251) as u8).collect();
    let row = |key: Bytes, value: Bytes| Change::Put { key, value };
    commit(&kv, vec![row(long_key.clone(), large.clone()), put("k", ""), put("l", "small"), put("m", "small")]);
    commit(&kv, vec![row(Bytes::from_static(b"l"), large.clone())]);
    for flushed in [false, true] {
        if flushed {
            flush(harness, &kv);
        }
        assert_eq!(kv.get(&long_key).expect("readable"), Some(large.clone()), "flushed: {flushed}");
        assert_eq!(kv.get(b"l").expect("readable"), Some(large.clone()), "flushed: {flushed}");
        assert_eq!((get(&*kv, "k"), get(&*kv, "m")), (Some(String::new()), Some("small".to_owned())));
        assert_eq!(all_rows(&*kv).len(), 4);
    }
    clear(&kv);
    flush(harness, &kv);
    assert_eq!(all_rows(&*kv), []);
}

fn many_deletions_in_a_row(harness: &mut dyn Harness) {
    let kv = harness.open();
    clear(&kv);
    let key = |n: u32| format!("row {n:08}");
    commit(&kv, (0..20_000).map(|n| put(&key(n), "x")).collect());
    flush(harness, &kv);
    commit(&kv, (0..19_999).map(|n| delete(&key(n))).collect());
    let last = format!("{}=x", key(19_999));
    assert_eq!(scan(&*kv, "", "z", 10), std::slice::from_ref(&last));
    flush(harness, &kv);
    harness.settle();
    assert_eq!(scan(&*kv, "", "z", 10), [last]);
}

type Model = BTreeMap<Bytes, Bytes>;

/// A random walk with the store beside its model.
struct Walk<'a> {
    harness: &'a mut dyn Harness,
    kv: Arc<dyn Kv>,
    /// What the store must hold now.
    model: Model,
    /// What it must hold at least: the state of the last completed flush, and the transactions since.
    durable: Model,
    since_flush: Vec<Vec<Change>>,
    snapshots: Vec<(Arc<dyn KvRead>, Model)>,
}

impl<'a> Walk<'a> {
    fn new(harness: &'a mut dyn Harness) -> Walk<'a> {
        let kv = harness.open();
        clear(&kv);
        flush(harness, &kv);
        let (model, durable) = (Model::new(), Model::new());
        Walk { harness, kv, model, durable, since_flush: Vec::new(), snapshots: Vec::new() }
    }

    fn run(mut self, steps: usize) {
        for _ in 0..steps {
            match self.below(100) {
                0..60 => self.commit(),
                60..75 => self.read(),
                75..82 => self.flush(),
                82..87 => self.snapshot(),
                87..92 => self.harness.settle(),
                92..96 => self.harness.crash_soon(),
                96..98 => self.harness.crash(),
                _ => self.read_all(),
            }
            if self.harness.is_down() {
                self.reopen();
            }
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.harness.random().below(bound)
    }

    /// Keys of a small space, so that rows are overwritten and deleted, with shared prefixes of any length.
    fn key(&self) -> Bytes {
        let len = self.below(7) as usize;
        (0..len).map(|_| b'a' + self.below(3) as u8).collect()
    }

    fn commit(&mut self) {
        let changes: Vec<Change> = (0..self.below(12))
            .map(|_| {
                let key = self.key();
                if self.below(4) == 0 {
                    return Change::Delete { key };
                }
                let len = if self.below(30) == 0 { 3000 } else { self.below(60) as usize };
                let value = std::iter::repeat_n(self.below(256) as u8, len).collect();
                Change::Put { key, value }
            })
            .collect();
        match self.kv.commit(changes.clone()) {
            Ok(()) => {
                apply(&mut self.model, &changes);
                self.since_flush.push(changes);
            }
            Err(error) => assert!(self.harness.is_down(), "only a dead disk refuses commits: {error}"),
        }
    }

    fn flush(&mut self) {
        match self.harness.flush(&self.kv) {
            Some(Ok(())) => {
                self.durable = self.model.clone();
                self.since_flush.clear();
            }
            Some(Err(error)) => assert!(self.harness.is_down(), "only a dead disk refuses flushes: {error}"),
            None => assert!(self.harness.is_down()),
        }
    }

    fn snapshot(&mut self) {
        if self.snapshots.len() > 3 {
            let gone = self.below(self.snapshots.len() as u64) as usize;
            self.snapshots.swap_remove(gone);
        }
        self.snapshots.push((self.kv.snapshot(), self.model.clone()));
    }

    fn read(&mut self) {
        let (from, to, limit) = (self.key(), self.key(), 1 + self.below(20) as usize);
        compare(&*self.kv, &self.model, &from, &to, limit);
        for (snapshot, model) in &self.snapshots {
            compare(&**snapshot, model, &from, &to, limit);
        }
    }

    fn read_all(&mut self) {
        compare(&*self.kv, &self.model, &[], b"zzz", usize::MAX);
    }

    /// After a crash: the store holds what some prefix of transactions made, everything flushed included.
    fn reopen(&mut self) {
        self.snapshots.clear();
        self.kv = self.harness.open();
        let found: Model = all_rows(&*self.kv).into_iter().map(|row| (row.key, row.value)).collect();
        let mut model = self.durable.clone();
        let mut kept = 0;
        while model != found {
            let Some(changes) = self.since_flush.get(kept) else {
                panic!("after a crash the rows are those of no prefix of transactions: {found:?}");
            };
            apply(&mut model, changes);
            kept += 1;
        }
        self.durable = model.clone();
        self.model = model;
        self.since_flush.clear();
    }
}

fn apply(model: &mut Model, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put { key, value } => model.insert(key.clone(), value.clone()),
            Change::Delete { key } => model.remove(key),
        };
    }
}

fn compare(kv: &dyn KvRead, model: &Model, from: &[u8], to: &[u8], limit: usize) {
    assert_eq!(
        kv.get(from).expect("a sound disk is readable").as_ref(),
        model.get(from),
        "row {}",
        from.escape_ascii()
    );
    let rows = kv.scan(from, to, limit).expect("a sound disk is readable");
    let expected: Vec<Row> = if from < to {
        model
            .range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
            .take(limit)
            .map(|(key, value)| Row { key: key.clone(), value: value.clone() })
            .collect()
    } else {
        Vec::new()
    };
    assert_eq!(rows, expected, "rows from {} to {}", from.escape_ascii(), to.escape_ascii());
}
