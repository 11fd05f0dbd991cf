//! The real `Env`: the only place where product code meets the operating system's clock, randomness, tasks, network
//! and disks. Everything here has a simulated twin in `base::sim`, and the two are held to one contract by
//! `conformance.rs`.

mod clock;
#[cfg(test)]
mod conformance;
mod disk;
mod net;
mod random;
mod recycle;
mod workers;

pub use disk::RealDisk;

use base::Env;
use base::env::{BoxFuture, Spawn};
use base::ids::NodeId;
use futures_util::FutureExt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::runtime::Handle;

/// The node that a cluster of one consists of.
pub const FIRST_NODE: NodeId = NodeId(1);

/// The operating system, seen through `Env`; tasks run on `runtime`.
pub fn real_env(runtime: Handle) -> Env {
    let clock = Arc::new(clock::SystemClock::new());
    Env {
        clock: Arc::clone(&clock) as Arc<dyn base::env::Clock>,
        random: Arc::new(random::SystemRandom::new()),
        spawner: Arc::new(RuntimeSpawner { runtime: runtime.clone() }),
        net: Arc::new(net::LocalNet::new(FIRST_NODE, runtime, clock)),
    }
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
