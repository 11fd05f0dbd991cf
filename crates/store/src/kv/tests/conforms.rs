//! The suite, run against every implementation.

use base::env::{Random, RandomExt};
use base::sim::Sim;
use std::sync::Arc;
use std::time::Duration;

use super::{Machine, small};
use crate::kv::conformance::{self, Harness};
use crate::kv::{Kv, KvError, LsmKv, MemKv};

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
    for seed in 0..20 {
        conformance::run(&mut LsmHarness { machine: Machine::new(seed, small()), kv: None }, 1_000);
    }
}

#[test]
fn lsm_conforms_with_default_sizes() {
    let machine = Machine::new(7, crate::kv::KvOptions::default());
    conformance::run(&mut LsmHarness { machine, kv: None }, 500);
}
