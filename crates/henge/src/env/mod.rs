//! The real `Env`: the only place where product code meets the operating system's clock, randomness, tasks, network
//! and disks. Everything here has a simulated twin in `base::sim`, and the two are held to one contract by
//! `conformance.rs`.

mod clock;
#[cfg(test)]
mod conformance;
mod direct_reads;
mod disk;
mod job_queue;
pub mod net;
mod random;
mod workers;

pub use disk::RealDisk;
pub use net::RealNet;

use base::Env;
use base::buffer_pool::BufferPool;
use base::env::{BoxFuture, Clock, Net, Random, Spawn};
use base::ids::NodeId;
use futures_util::FutureExt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::runtime::Handle;

/// The node that founds a cluster.
pub const FIRST_NODE: NodeId = NodeId(1);

/// The operating system, seen through `Env` as `node` does; tasks run on `runtime`. The network is given twice: as what
/// product code sees, and as what the binary sets up. `buffers` is what its disks read into, too.
pub fn real_env(node: NodeId, runtime: Handle, buffers: Arc<BufferPool>) -> (Env, Arc<RealNet>) {
    let clock: Arc<dyn Clock> = Arc::new(clock::SystemClock::new());
    let random: Arc<dyn Random> = Arc::new(random::SystemRandom::new());
    let pool = Arc::clone(&buffers);
    let net = Arc::new(RealNet::new(node, runtime.clone(), Arc::clone(&clock), Arc::clone(&random), pool));
    let spawner = Arc::new(RuntimeSpawner { runtime });
    (Env { clock, random, spawner, net: Arc::clone(&net) as Arc<dyn Net>, buffers }, net)
}

/// The kernel's random bits, for commands that need no whole `Env`.
pub fn system_random() -> impl base::env::Random {
    random::SystemRandom::new()
}

struct RuntimeSpawner {
    runtime: Handle,
}

impl Spawn for RuntimeSpawner {
    fn spawn(&self, name: &'static str, task: BoxFuture<()>) {
        self.runtime.spawn(or_abort(name, task));
    }
}

/// Runs `task`; a panic in it ends the process. A broken invariant must stop the node: a runtime would otherwise drop
/// the task that owns some state, and the rest would go on without it.
async fn or_abort(name: &'static str, task: impl Future<Output = ()>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        eprintln!("henge: the task `{name}` broke an invariant (above); stopping the node");
        std::process::abort();
    }
}
