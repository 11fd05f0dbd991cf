//! The suite, run against every implementation.

use base::env::{Random, RandomExt};
use base::sim::Sim;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Machine, small};
use crate::kv::conformance::{self, Harness};
use crate::kv::{Change, Kv, KvError, KvOptions, LsmKv, MemKv, Row};

struct MemoryHarness {
    sim: Sim,
    kv: Arc<MemKv>,
    down: bool,
}

impl Harness for MemoryHarness {
    fn open(&mut self) -> Arc<dyn Kv> {
        if self.down {
            self.kv = self.kv.after_crash();
            self.down = false;
        }
        self.kv.clone()
    }

    fn flush(&mut self, kv: &Arc<dyn Kv>) -> Option<Result<(), KvError>> {
        Some(self.sim.block_on(kv.flush()))
    }

    fn settle(&mut self) {}

    fn crash(&mut self) {
        self.down = true;
    }

    fn crash_soon(&mut self) {
        self.down = true;
    }

    fn is_down(&self) -> bool {
        self.down
    }

    fn random(&self) -> &dyn Random {
        &*self.sim
    }
}

struct LsmHarness {
    machine: Machine,
    kv: Option<Arc<LsmKv>>,
}

impl Harness for LsmHarness {
    fn open(&mut self) -> Arc<dyn Kv> {
        if let Some(kv) = &self.kv
            && self.machine.node.is_running()
        {
            return kv.clone();
        }
        // Power may fail while opening too; the next try goes on.
        let (kv, report) = loop {
            if let Some(opened) = self.machine.try_open() {
                break opened.expect("a crash damages nothing");
            }
        };
        assert_eq!(report.damages, []);
        assert_eq!(report.manifest_copy_damage, None);
        self.kv = Some(kv.clone());
        kv
    }

    fn flush(&mut self, kv: &Arc<dyn Kv>) -> Option<Result<(), KvError>> {
        let kv = kv.clone();
        self.machine.sim.block_on(self.machine.node.run(async move { kv.flush().await })).ok()
    }

    fn settle(&mut self) {
        self.machine.sim.run_for(Duration::from_millis(self.machine.sim.below(20)));
    }

    fn crash(&mut self) {
        self.machine.node.crash();
    }

    fn crash_soon(&mut self) {
        self.machine.disk.crash_after_ops(1 + self.machine.sim.below(40));
    }

    fn is_down(&self) -> bool {
        // Power may have failed in an operation outside of any task, as when a snapshot is dropped.
        self.machine.sim.run_for(Duration::ZERO);
        !self.machine.node.is_running()
    }

    fn random(&self) -> &dyn Random {
        &*self.machine.sim
    }
}

#[test]
fn memory_conforms() {
    let kv = MemKv::new();
    conformance::run(&mut MemoryHarness { sim: Sim::new(1), kv, down: false }, 5_000);
}

#[test]
fn lsm_conforms() {
    for seed in 0..12 {
        // Few or many, small or large runs and levels, so that each kind of merge happens.
        let options = KvOptions {
            block_bytes: [64, 256, 4096][seed as usize % 3],
            run_bytes: [600, 4096, 1 << 20][seed as usize / 2 % 3],
            l0_runs: 2 + seed as usize % 3,
            level1_bytes: [1000, 8 << 10, 64 << 10][seed as usize / 3 % 3],
            ..small()
        };
        conformance::run(&mut LsmHarness { machine: Machine::new(seed, options), kv: None }, 1_000);
    }
}

#[test]
fn lsm_conforms_with_default_sizes() {
    let machine = Machine::new(7, crate::kv::KvOptions::default());
    conformance::run(&mut LsmHarness { machine, kv: None }, 500);
}

/// A disk that forgets flushes breaks the contract, and the suite must see it.
#[test]
#[should_panic(expected = "a crash")]
fn the_suite_sees_a_disk_that_does_not_flush() {
    for seed in 0..20 {
        let machine = Machine::new(seed, small());
        machine.disk.ignore_flushes(true);
        conformance::run(&mut LsmHarness { machine, kv: None }, 1_000);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Flush,
    Crash,
    Settle,
    Scan(u8, u8, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => any::<(u8, u8)>().prop_map(|(key, value)| Step::Put(key % 32, value)),
        3 => any::<u8>().prop_map(|key| Step::Delete(key % 32)),
        2 => Just(Step::Flush),
        1 => Just(Step::Crash),
        1 => Just(Step::Settle),
        2 => any::<(u8, u8, u8)>().prop_map(|(a, b, limit)| Step::Scan(a % 34, b % 34, 1 + usize::from(limit % 9))),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One change a transaction and no crash within an operation: what fails here shrinks to a few steps.
    #[test]
    fn lsm_is_an_ordered_map(seed: u64, steps in steps()) {
        let options = KvOptions { run_bytes: 300, block_bytes: 64, l0_runs: 2, l0_runs_max: 4, level1_bytes: 600, ..small() };
        let mut harness = LsmHarness { machine: Machine::new(seed, options), kv: None };
        let mut kv = harness.open();
        let (mut model, mut durable) = (BTreeMap::new(), BTreeMap::new());
        let bytes = |key: u8| Bytes::from(format!("key/{key:02}"));
        for step in steps {
            match step {
                Step::Put(key, value) => {
                    let value = Bytes::from(vec![value; usize::from(value) % 40]);
                    model.insert(bytes(key), value.clone());
                    kv.commit(vec![Change::Put { key: bytes(key), value }]).unwrap();
                }
                Step::Delete(key) => {
                    model.remove(&bytes(key));
                    kv.commit(vec![Change::Delete { key: bytes(key) }]).unwrap();
                }
                Step::Flush => {
                    harness.flush(&kv).unwrap().unwrap();
                    durable = model.clone();
                }
                Step::Crash => {
                    harness.crash();
                    kv = harness.open();
                    model = durable.clone();
                }
                Step::Settle => harness.settle(),
                Step::Scan(from, to, limit) => {
                    let (from, to) = (bytes(from), bytes(to));
                    let found = kv.scan(&from, &to, limit).unwrap();
                    let expected: Vec<Row> = model
                        .iter()
                        .filter(|(key, _)| from <= **key && **key < to)
                        .take(limit)
                        .map(|(key, value): (&Bytes, &Bytes)| Row { key: key.clone(), value: value.clone() })
                        .collect();
                    prop_assert_eq!(found, expected);
                    prop_assert_eq!(kv.get(&from).unwrap(), model.get(&from).cloned());
                }
            }
        }
    }
}
