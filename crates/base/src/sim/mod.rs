//! The simulated `Env`: a whole cluster of real code on one thread, on virtual time, under one seed.
//!
//! ```text
//!  test ──► Sim ──► executor: ready tasks in drawn order, then jump to the next event
//!                     │ polls                         ▲ timers, completions, arrivals
//!                     ▼                               │
//!          node code ──► Env { clock, random, spawner, net } and SimDisk
//! ```
//!
//! **Determinism.** All chance comes from the seed; equal seeds give equal runs, checked by [`SimHandle::trace_hash`].
//! Code under test must not use other threads, other clocks, or the order of hash maps.
//!
//! **Time** passes only from event to event; computing takes none. A monotonic clock starts anywhere at each start of
//! its node, may drift by a percent at most, and never goes back while the node runs. A wall clock may jump.
//!
//! **Nodes** crash at any await (their tasks are dropped), or within a disk operation. A paused node computes nothing;
//! its I/O and the messages to it go on. A killed node loses its tasks but its disks lose nothing yet. A node that was
//! crashed or killed starts anew when its environment is asked for.
//!
//! **Disks.** What a disk may do:
//! - complete operations that are in flight together in any order; a write takes effect when it completes;
//! - at a crash, go back for each sector of 4 KiB to any version since the last completed flush that covered it, each
//!   sector for itself, so that later writes may survive earlier ones; mix two versions at 512 bytes (a torn sector);
//! - keep any part of a write that was in flight at the crash, and of one that failed;
//! - at a crash, have the size as it was before any of the changes that were not flushed;
//! - at a crash, have any prefix of the directory changes that were not flushed: a flushed file may have no name;
//! - after a failed flush, report later flushes done and still lose what the failed one should have covered;
//! - with faults switched on: fail, rot, lose or misdirect writes, fill up, vanish, be slow.
//!
//! What it never does: lose or change what a completed flush covered (other than by an injected fault); bring back a
//! part of a truncation; reorder directory changes; make up bytes that were never written; free what it should keep.
//!
//! **Network.** Messages have delays of their own, hence overtake each other; may be lost, with or without an error;
//! may arrive twice; wait while a link hangs; vanish in a cut one. A message is never changed, never reaches a later
//! incarnation than the one it was sent to, and what a node sends to itself arrives at once.
//!
//! ```
//! use base::env::{Caching, Disk, Flush, OpenMode};
//! use base::{ids::NodeId, sim::Sim};
//!
//! for seed in 0..100 {
//!     let sim = Sim::new(seed);
//!     let (node, disk) = (sim.node(NodeId(1)), sim.disk(NodeId(1), "disk"));
//!     disk.crash_after_ops(seed % 4 + 1); // create, flush of the directory, write, flush
//!     let on_node = disk.clone();
//!     let stored = sim.block_on(node.run(async move {
//!         let file = on_node.open("f", OpenMode::CreateNew, Caching::Direct)?;
//!         on_node.flush_directory()?;
//!         file.write_at(0, vec![vec![7; 4096].into()], Flush::Yes).await
//!     }));
//!     node.crash();
//!     let env = node.env(); // the node starts anew
//!     sim.block_on(env.sleep(std::time::Duration::from_secs(1)));
//!     assert!(!matches!(stored, Ok(Ok(()))) || disk.contents("f") == Some(vec![7; 4096]));
//! }
//! ```

mod clock;
mod disk;
mod executor;
mod inode;
mod net;
mod prng;
mod trace;

#[cfg(test)]
mod tests;

pub use clock::{DRIFT_PPM_MAX, WALL_START_MILLIS};
pub use disk::{DiskCounts, DiskModel, Fault, SimDisk};
pub use net::NetModel;
pub use trace::{TraceEvent, TraceKind};

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clock::{SimClock, Sleep};
use executor::{Core, HOST, Incarnation, lock};
use net::SimNet;
use prng::Prng;
use tokio::sync::oneshot;

use crate::env::{BoxFuture, Env, MonoTime, Random, Spawn};
use crate::ids::NodeId;

/// A simulation. It ends, and drops all that is in it, with this value; see [`SimHandle`] for what it can do.
pub struct Sim(SimHandle);

impl Sim {
    pub fn new(seed: u64) -> Sim {
        Sim(SimHandle { core: Core::new(seed) })
    }
}

impl Deref for Sim {
    type Target = SimHandle;
    fn deref(&self) -> &SimHandle {
        &self.0
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // While a panic unwinds, the state may be broken: leaking it is better than a second panic.
        if !std::thread::panicking() {
            self.0.core.shut_down();
        }
    }
}

/// What tests drive a simulation by. Tasks inside the simulation hold clones of this, never the [`Sim`] itself.
#[derive(Clone)]
pub struct SimHandle {
    core: Arc<Core>,
}

/// The node crashed before the task was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crashed;

impl SimHandle {
    pub fn seed(&self) -> u64 {
        self.core.seed
    }

    /// Simulated time since the start.
    pub fn now(&self) -> MonoTime {
        MonoTime(self.core.now_nanos())
    }

    /// Drives the simulation until `future` is done. The future belongs to no node: it survives all crashes.
    ///
    /// # Panics
    /// When nothing can happen any more (deadlock), when too much has happened (live lock), or when a task panics.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.core.block_on(future)
    }

    /// Drives the simulation up to `time`; what waits for later stays.
    pub fn run_until(&self, time: MonoTime) {
        self.core.run_until(time.0);
    }

    /// Drives the simulation for `duration`.
    pub fn run_for(&self, duration: Duration) {
        self.run_until(self.now() + duration);
    }

    /// Waits for simulated time, by no node's clock.
    pub fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let deadline = self.now() + duration;
        Box::pin(Sleep { core: self.core.clone(), of_node: None, deadline, timer: None })
    }

    /// Starts a task that belongs to no node: a workload, a nemesis.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.core.spawn(HOST, None, name, Box::pin(task));
    }

    pub fn node(&self, node: NodeId) -> SimNode {
        SimNode { sim: self.clone(), id: node }
    }

    /// The environment of `node`, which is started by this if it does not run.
    pub fn env(&self, node: NodeId) -> Env {
        let core = &self.core;
        core.start(node, |incarnation, clock| {
            let label = format!("node {node} start {}", incarnation.number);
            let random = Prng::derived(core.seed, label.as_bytes());
            let (clock, core, incarnation) = (clock.clone(), core.clone(), incarnation.clone());
            Env {
                clock: Arc::new(SimClock {
                    core: core.clone(),
                    clock: clock.clone(),
                    incarnation: incarnation.clone(),
                }),
                random: Arc::new(SimRandom(Mutex::new(random))),
                spawner: Arc::new(SimSpawner { core: core.clone(), incarnation: incarnation.clone() }),
                net: Arc::new(SimNet { core, clock, incarnation }),
                buffers: Arc::default(),
            }
        })
    }

    /// The disk called `name` of `node`, made on first mention. It is the same one over all starts of the node.
    pub fn disk(&self, node: NodeId, name: &str) -> Arc<SimDisk> {
        let mut world = self.core.world();
        let slot = world.slot_of(node);
        let entry = &mut world.nodes[slot];
        let power = entry.power.clone();
        entry.disks.entry(name.into()).or_insert_with(|| SimDisk::new(&self.core, node, name, power)).clone()
    }

    /// Takes the power from a node: its tasks end, its disks lose what was not flushed.
    pub fn crash(&self, node: NodeId) {
        self.core.crash(node);
    }

    /// Takes the power from all nodes.
    pub fn crash_all(&self) {
        let nodes: Vec<NodeId> = self.core.world().node_slots.keys().copied().collect();
        for node in nodes {
            self.crash(node);
        }
    }

    /// Kills the node's process and nothing else: what it wrote stays visible, and what it did not flush may still be
    /// lost at a later crash.
    pub fn kill(&self, node: NodeId) {
        self.core.kill(node);
    }

    /// Waits until the node does not run.
    pub fn stopped(&self, node: NodeId) -> BoxFuture<()> {
        let (sender, receiver) = oneshot::channel();
        let mut world = self.core.world();
        let slot = world.slot_of(node);
        let entry = &mut world.nodes[slot];
        if entry.running.is_some() {
            entry.watchers.push(sender);
        }
        Box::pin(async move {
            // Nothing is ever sent: the sender is dropped when the node stops.
            let _ = receiver.await;
        })
    }

    /// Whether the node has been started and has not stopped since.
    pub fn is_running(&self, node: NodeId) -> bool {
        let mut world = self.core.world();
        let slot = world.slot_of(node);
        world.nodes[slot].running.is_some()
    }

    /// Stops a node's computing, as a debugger or a long collection would.
    pub fn pause(&self, node: NodeId) {
        self.core.set_paused(node, true);
    }

    pub fn resume(&self, node: NodeId) {
        self.core.set_paused(node, false);
    }

    /// Sets how fast the node's monotonic clock runs, in millionths too fast; at most [`DRIFT_PPM_MAX`] either way.
    pub fn set_drift(&self, node: NodeId, drift_ppm: i64) {
        let mut world = self.core.world();
        let slot = world.slot_of(node);
        world.nodes[slot].clock.set_drift(self.core.now_nanos(), drift_ppm);
    }

    /// Moves the node's wall clock, forth or back.
    pub fn jump_wall(&self, node: NodeId, by_millis: i64) {
        let mut world = self.core.world();
        let slot = world.slot_of(node);
        world.nodes[slot].clock.jump_wall(by_millis);
    }

    pub fn set_net_model(&self, model: NetModel) {
        lock(&self.core.net).model = model;
    }

    /// Swallows everything from `from` to `to`, what is on its way included. The other direction stays.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        lock(&self.core.net).set_cut(from, to, true);
    }

    /// Ends a cut.
    pub fn uncut(&self, from: NodeId, to: NodeId) {
        lock(&self.core.net).set_cut(from, to, false);
    }

    /// Cuts all links between different groups, both ways. Nodes in no group keep all their links.
    pub fn partition(&self, groups: &[&[NodeId]]) {
        for (index, group) in groups.iter().enumerate() {
            for other in groups.iter().skip(index + 1) {
                for (a, b) in group.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
                    self.cut(a, b);
                    self.cut(b, a);
                }
            }
        }
    }

    /// Holds back everything from `from` to `to` until [`SimHandle::unhang`] or [`SimHandle::heal`].
    pub fn hang(&self, from: NodeId, to: NodeId) {
        lock(&self.core.net).set_hung(from, to);
    }

    /// Everything from `from` to `to` takes so much longer; zero takes that back.
    pub fn set_link_delay(&self, from: NodeId, to: NodeId, delay: Duration) {
        lock(&self.core.net).set_delay(from, to, u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn unhang(&self, from: NodeId, to: NodeId) {
        self.core.net_unhang(from, to);
    }

    /// Ends all cuts and hangs.
    pub fn heal(&self) {
        self.core.net_heal();
    }

    /// A hash over all that has happened so far.
    pub fn trace_hash(&self) -> u64 {
        self.core.world().trace.hash()
    }

    /// Keeps all that happens from now on, for [`SimHandle::trace`]: to find where two runs part.
    pub fn record_trace(&self) {
        self.core.world().trace.record();
    }

    pub fn trace(&self) -> Vec<TraceEvent> {
        self.core.world().trace.recorded()
    }

    /// How often which kind of fault has happened so far, by what the simulation itself decides: not what was asked for
    /// but what was done.
    pub fn fault_counts(&self) -> BTreeMap<&'static str, u64> {
        self.core.world().faults.clone()
    }

    /// The node whose task is running, if it is one's: for what is told about it.
    pub fn running_node(&self) -> Option<NodeId> {
        self.core.world().running_node
    }

    /// How many task runs and events there were.
    pub fn events_done(&self) -> u64 {
        self.core.world().events_done
    }

    /// Panics when there are more task runs and events than this.
    pub fn set_events_max(&self, events_max: u64) {
        self.core.world().events_max = events_max;
    }
}

/// Random bits for workloads and nemesis.
impl Random for SimHandle {
    fn next_u64(&self) -> u64 {
        self.core.world().prng.next_u64()
    }
}

/// One node of a simulation: shorthands.
#[derive(Clone)]
pub struct SimNode {
    sim: SimHandle,
    id: NodeId,
}

impl SimNode {
    pub fn id(&self) -> NodeId {
        self.id
    }

    pub fn env(&self) -> Env {
        self.sim.env(self.id)
    }

    pub fn disk(&self, name: &str) -> Arc<SimDisk> {
        self.sim.disk(self.id, name)
    }

    /// Runs `task` as a task of the node, so that it dies with the node; its result, or that the node has crashed.
    pub fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> BoxFuture<Result<T, Crashed>> {
        let (sender, receiver) = oneshot::channel();
        self.env().spawn("run", async move {
            // Nobody may be waiting for the result any more.
            let _ = sender.send(task.await);
        });
        Box::pin(async move { receiver.await.map_err(|_| Crashed) })
    }

    pub fn crash(&self) {
        self.sim.crash(self.id);
    }

    pub fn kill(&self) {
        self.sim.kill(self.id);
    }

    pub fn stopped(&self) -> BoxFuture<()> {
        self.sim.stopped(self.id)
    }

    pub fn is_running(&self) -> bool {
        self.sim.is_running(self.id)
    }

    pub fn pause(&self) {
        self.sim.pause(self.id);
    }

    pub fn resume(&self) {
        self.sim.resume(self.id);
    }
}

struct SimRandom(Mutex<Prng>);

impl Random for SimRandom {
    fn next_u64(&self) -> u64 {
        lock(&self.0).next_u64()
    }
}

struct SimSpawner {
    core: Arc<Core>,
    incarnation: Arc<Incarnation>,
}

impl Spawn for SimSpawner {
    fn spawn(&self, name: &'static str, task: BoxFuture<()>) {
        self.core.spawn(self.incarnation.slot, Some(&self.incarnation), name, task);
    }
}
