//! The store as a whole: against the conformance suite, on a simulated disk, under crashes and damage.

mod conforms;
mod damage;
mod faults;

use base::env::Env;
use base::ids::NodeId;
use base::sim::{Sim, SimDisk, SimNode};
use std::sync::Arc;

use super::{KvError, KvOptions, KvReport, LsmKv};

const NODE: NodeId = NodeId(1);
const DISK_SEED: u128 = 0x0068_656e_6765;

/// Small sizes, so that a few rows make several levels.
fn small() -> KvOptions {
    KvOptions {
        cache_bytes: 256 << 10,
        block_bytes: 256,
        run_bytes: 4096,
        l0_runs: 3,
        l0_runs_max: 6,
        level1_bytes: 8 << 10,
        level_ratio: 4,
        ..KvOptions::default()
    }
}

struct Machine {
    sim: Sim,
    node: SimNode,
    disk: Arc<SimDisk>,
    options: KvOptions,
}

impl Machine {
    fn new(seed: u64, options: KvOptions) -> Machine {
        let sim = Sim::new(seed);
        let node = sim.node(NODE);
        let disk = sim.disk(NODE, "disk");
        Machine { sim, node, disk, options }
    }

    fn env(&self) -> Env {
        self.node.env()
    }

    /// Opens the store; `None` when the power failed meanwhile.
    fn try_open(&self) -> Option<Result<(Arc<LsmKv>, KvReport), KvError>> {
        let (env, disk, options) = (self.env(), self.disk.clone(), self.options.clone());
        let opening = async move { LsmKv::open(&env, disk, DISK_SEED, options).await };
        self.sim.block_on(self.node.run(opening)).ok()
    }

    fn open(&self) -> (Arc<LsmKv>, KvReport) {
        self.try_open().expect("nothing takes the power").unwrap()
    }

    fn open_read_only(&self) -> Result<(Arc<LsmKv>, KvReport), KvError> {
        let (env, disk, options) = (self.env(), self.disk.clone(), self.options.clone());
        self.sim.block_on(async move { LsmKv::open_read_only(&env, disk, DISK_SEED, options).await })
    }
}
