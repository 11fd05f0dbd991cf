//! The event loop: tasks, virtual time, nodes. It runs ready tasks, each time one drawn by the seed, until none is
//! ready; then it jumps to the next event. Nothing else makes time pass.
//!
//! Locks are for `Send + Sync` only, since everything runs on the one thread that drives the simulation. They are
//! taken in the order disk or network, world, ready queue, and never held while foreign code runs (polls, drops, wakes).

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use tokio::sync::oneshot;

use super::clock::NodeClock;
use super::disk::{Power, SimDisk};
use super::net::{NetState, Packet};
use super::prng::Prng;
use super::trace::{Trace, TraceKind};
use crate::env::{BoxFuture, Env};
use crate::ids::NodeId;

/// The slot of the simulation's own tasks (workloads, nemesis) among the nodes. It never crashes and never pauses.
pub(super) const HOST: usize = 0;

/// How many events a simulation may have unless told otherwise: more is taken for a live lock.
pub(super) const EVENTS_MAX_DEFAULT: u64 = 200_000_000;

/// Time ends here, in nanoseconds: what is scheduled later (a deadline that never comes) never happens.
const TIME_MAX_NANOS: u64 = 1 << 62;

/// Slot number that stands for the future of `block_on`.
const MAIN_SLOT: u32 = u32::MAX;

pub(super) struct Core {
    pub(super) seed: u64,
    pub(super) net: Mutex<NetState>,
    now_nanos: AtomicU64,
    ready: Arc<ReadyQueue>,
    world: Mutex<World>,
}

pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    pub(super) node_slots: BTreeMap<NodeId, usize>,
    pub(super) trace: Trace,
    /// How often which kind of fault has happened.
    pub(super) faults: BTreeMap<&'static str, u64>,
    pub(super) prng: Prng,
    pub(super) events_max: u64,
    pub(super) events_done: u64,
    /// Whose task runs at the moment.
    pub(super) running_node: Option<NodeId>,
    /// Keyed by time, then by order of scheduling.
    events: BTreeMap<EventKey, Event>,
    events_scheduled: u64,
    tasks: Vec<TaskSlot>,
    free: Vec<u32>,
    /// Nodes whose power failed within a task: they crash before anything else happens.
    failing: Vec<NodeId>,
    main: MainFuture,
    closed: bool,
}

/// The future of `block_on`: how many there were, and whether one is being driven.
#[derive(Default)]
struct MainFuture {
    count: u32,
    driven: bool,
}

/// When an event happens in nanoseconds, and its sequence number.
pub(super) type EventKey = (u64, u64);

pub(super) enum Event {
    Timer(Waker),
    Disk(Arc<SimDisk>, u64),
    Deliver(Box<Packet>),
    CallDeadline(u64),
    CallFailed(u64, crate::env::NetError),
}

pub(super) struct Node {
    pub(super) id: NodeId,
    /// How often this node has been started.
    pub(super) starts: u64,
    pub(super) running: Option<(Arc<Incarnation>, Env)>,
    pub(super) clock: Arc<NodeClock>,
    pub(super) disks: BTreeMap<String, Arc<SimDisk>>,
    pub(super) power: Arc<Power>,
    /// Dropped when the node stops, which tells those who wait for that.
    pub(super) watchers: Vec<oneshot::Sender<()>>,
    paused: bool,
    /// Tasks that became ready while the node was paused.
    parked: Vec<TaskId>,
}

/// One run of a node, from start to crash.
pub(super) struct Incarnation {
    pub(super) node: NodeId,
    pub(super) slot: usize,
    pub(super) number: u64,
    alive: AtomicBool,
}

impl Incarnation {
    pub(super) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct TaskId {
    slot: u32,
    use_count: u32,
}

struct TaskSlot {
    use_count: u32,
    task: Option<Task>,
}

struct Task {
    node: usize,
    name: &'static str,
    waker: Arc<TaskWaker>,
    /// `None` while it is being polled.
    future: Option<BoxFuture<()>>,
}

struct TaskWaker {
    id: TaskId,
    /// Whether the task waits in the ready queue (or is parked): it is never there twice.
    queued: AtomicBool,
    queue: Arc<ReadyQueue>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            lock(&self.queue.0).insert(self.id);
        }
    }
}

struct ReadyQueue(Mutex<Ready>);

struct Ready {
    /// Sorted: which task is drawn must not depend on the order in which they were woken, for that order may be random
    /// (`tokio::sync::watch` wakes its receivers in an order of its own).
    tasks: Vec<TaskId>,
    prng: Prng,
}

impl Ready {
    fn insert(&mut self, id: TaskId) {
        let place = self.tasks.partition_point(|ready| *ready < id);
        self.tasks.insert(place, id);
    }
}

/// What one step of the loop did.
enum Step {
    Worked,
    /// The future of `block_on` is ready to be polled.
    Main,
    /// No task is ready and no event is due.
    Idle,
}

/// A panic while a lock was held ends the simulation anyway; the state is only looked at to report and to drop it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Core {
    pub(super) fn new(seed: u64) -> Arc<Core> {
        let ready = Ready { tasks: Vec::new(), prng: Prng::derived(seed, b"schedule") };
        let mut world = World {
            nodes: Vec::new(),
            node_slots: BTreeMap::new(),
            trace: Trace::default(),
            faults: BTreeMap::new(),
            prng: Prng::derived(seed, b"world"),
            events_max: EVENTS_MAX_DEFAULT,
            events_done: 0,
            running_node: None,
            events: BTreeMap::new(),
            events_scheduled: 0,
            tasks: Vec::new(),
            free: Vec::new(),
            failing: Vec::new(),
            main: MainFuture::default(),
            closed: false,
        };
        world.nodes.push(Node::new(NodeId(u32::MAX)));
        Arc::new(Core {
            seed,
            net: Mutex::new(NetState::new(Prng::derived(seed, b"net"))),
            now_nanos: AtomicU64::new(0),
            ready: Arc::new(ReadyQueue(Mutex::new(ready))),
            world: Mutex::new(world),
        })
    }

    pub(super) fn now_nanos(&self) -> u64 {
        self.now_nanos.load(Ordering::Relaxed)
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    pub(super) fn trace(&self, kind: TraceKind, a: u64, b: u64) {
        self.world().trace.push(self.now_nanos(), kind, a, b);
    }

    pub(super) fn count_fault(&self, kind: &'static str, by: u64) {
        if by > 0 {
            *self.world().faults.entry(kind).or_insert(0) += by;
        }
    }

    pub(super) fn schedule(&self, at_nanos: u64, event: Event) -> EventKey {
        let mut world = self.world();
        world.events_scheduled += 1;
        let key = (at_nanos.max(self.now_nanos()), world.events_scheduled);
        world.events.insert(key, event);
        key
    }

    pub(super) fn schedule_in(&self, delay_nanos: u64, event: Event) -> EventKey {
        self.schedule(self.now_nanos().saturating_add(delay_nanos), event)
    }

    /// Takes an event back. What it held is dropped after the lock is released.
    pub(super) fn cancel(&self, key: EventKey) {
        let event = self.world().events.remove(&key);
        drop(event);
    }

    /// Replaces who is woken by a timer that has not fired yet.
    pub(super) fn rearm(&self, key: EventKey, waker: &Waker) {
        let mut old = None;
        if let Some(Event::Timer(current)) = self.world().events.get_mut(&key)
            && !current.will_wake(waker)
        {
            old = Some(std::mem::replace(current, waker.clone()));
        }
        drop(old);
    }

    /// Starts a task on the node in `slot`; drops it when `incarnation` has ended.
    pub(super) fn spawn(
        &self,
        slot: usize,
        incarnation: Option<&Incarnation>,
        name: &'static str,
        future: BoxFuture<()>,
    ) {
        let mut world = self.world();
        if world.closed || incarnation.is_some_and(|i| !i.is_alive()) {
            drop(world);
            drop(future);
            return;
        }
        let index = world.free.pop().unwrap_or_else(|| {
            world.tasks.push(TaskSlot { use_count: 0, task: None });
            u32::try_from(world.tasks.len() - 1).expect("tasks fit the memory, so their number fits 32 bits")
        });
        let task_slot = &mut world.tasks[index as usize];
        let id = TaskId { slot: index, use_count: task_slot.use_count };
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(false), queue: self.ready.clone() });
        task_slot.task = Some(Task { node: slot, name, waker: waker.clone(), future: Some(future) });
        drop(world);
        waker.wake();
    }

    /// Drives everything until `future` is done.
    pub(super) fn block_on<F: Future>(self: &Arc<Core>, future: F) -> F::Output {
        let mut future = pin!(future);
        let id = self.enter_main();
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(false), queue: self.ready.clone() });
        waker.wake_by_ref();
        let std_waker = Waker::from(waker.clone());
        let mut context = Context::from_waker(&std_waker);
        loop {
            match self.step(u64::MAX) {
                Step::Worked => {}
                Step::Main => {
                    waker.queued.store(false, Ordering::Relaxed);
                    let note = PanicNote { core: self, what: "the future of block_on", node: None };
                    let polled = future.as_mut().poll(&mut context);
                    drop(note);
                    if let Poll::Ready(output) = polled {
                        self.world().main.driven = false;
                        return output;
                    }
                }
                Step::Idle => {
                    let report = self.world().stuck_report();
                    panic!(
                        "deadlock at {} ns of seed {}: no task is ready and no event will come; {report}",
                        self.now_nanos(),
                        self.seed
                    );
                }
            }
        }
    }

    /// Drives everything up to and including the events of `until_nanos`; time is then `until_nanos`.
    pub(super) fn run_until(self: &Arc<Core>, until_nanos: u64) {
        self.enter_main();
        while !matches!(self.step(until_nanos), Step::Idle) {}
        self.now_nanos.fetch_max(until_nanos, Ordering::Relaxed);
        self.world().main.driven = false;
    }

    fn enter_main(&self) -> TaskId {
        let mut world = self.world();
        assert!(!world.main.driven, "the simulation is driven already: await inside of block_on, do not nest it");
        world.main.driven = true;
        world.main.count += 1;
        TaskId { slot: MAIN_SLOT, use_count: world.main.count }
    }

    fn step(self: &Arc<Core>, until_nanos: u64) -> Step {
        let failing = self.world().failing.pop();
        if let Some(node) = failing {
            self.crash(node);
            return Step::Worked;
        }
        if let Some(id) = self.ready.draw() {
            if id.slot != MAIN_SLOT {
                self.run_task(id);
                return Step::Worked;
            }
            // A future that block_on has finished with may still be woken.
            return if id.use_count == self.world().main.count { Step::Main } else { Step::Worked };
        }
        let (key, event) = {
            let mut world = self.world();
            match world.events.first_entry() {
                Some(first) if first.key().0 <= until_nanos.min(TIME_MAX_NANOS) => {
                    let (key, event) = first.remove_entry();
                    world.count_event(self.seed);
                    (key, event)
                }
                _ => return Step::Idle,
            }
        };
        self.now_nanos.store(key.0, Ordering::Relaxed);
        match event {
            Event::Timer(waker) => {
                self.trace(TraceKind::Timer, key.1, 0);
                waker.wake();
            }
            Event::Disk(disk, operation) => disk.complete(operation),
            Event::Deliver(packet) => self.net_deliver(*packet),
            Event::CallDeadline(call) => self.net_finish(call, Err(crate::env::NetError::DeadlineExceeded)),
            Event::CallFailed(call, error) => self.net_finish(call, Err(error)),
        }
        Step::Worked
    }

    fn run_task(self: &Arc<Core>, id: TaskId) {
        let (mut future, waker, name, node) = {
            let mut world = self.world();
            let world = &mut *world;
            let slot = &mut world.tasks[id.slot as usize];
            if slot.use_count != id.use_count {
                return;
            }
            let task = slot.task.as_mut().expect("a slot in use has a task");
            let node = &mut world.nodes[task.node];
            if node.paused {
                node.parked.push(id);
                return;
            }
            task.waker.queued.store(false, Ordering::Relaxed);
            let future = task.future.take().expect("a task is polled by one call at a time");
            world.running_node = (task.node != HOST).then_some(node.id);
            let out = (future, task.waker.clone(), task.name, node.id);
            world.trace.push(self.now_nanos(), TraceKind::Task, u64::from(id.slot), u64::from(id.use_count));
            world.count_event(self.seed);
            out
        };
        let note = PanicNote { core: self, what: name, node: Some(node) };
        let waker = Waker::from(waker);
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        let mut world = self.world();
        world.running_node = None;
        let slot = &mut world.tasks[id.slot as usize];
        let mut finished = None;
        // The node may have crashed meanwhile: then the slot is no longer ours.
        if slot.use_count == id.use_count {
            if polled.is_pending() {
                let task = slot.task.as_mut().expect("a slot in use has a task");
                task.future = Some(future);
                drop(world);
                drop(note);
                return;
            }
            finished = world.free_slot(id.slot as usize);
        }
        drop(world);
        drop(finished);
        drop(future);
        drop(note);
    }

    /// Ends the node's run: disks lose what they may lose, tasks are dropped, nothing of it is heard of again.
    pub(super) fn crash(self: &Arc<Core>, node: NodeId) {
        self.stop(node, SimDisk::crash);
    }

    /// As `crash`, but only the process dies and the operating system goes on.
    pub(super) fn kill(self: &Arc<Core>, node: NodeId) {
        self.stop(node, SimDisk::kill);
        self.net_end(node);
    }

    fn stop(self: &Arc<Core>, node: NodeId, stop_disk: impl Fn(&SimDisk)) {
        let (tasks, disks, power, run, watchers) = {
            let mut world = self.world();
            let slot = world.slot_of(node);
            world.failing.retain(|failing| *failing != node);
            let number = world.nodes[slot].starts;
            world.trace.push(self.now_nanos(), TraceKind::Crash, u64::from(node.0), number);
            let entry = &mut world.nodes[slot];
            entry.parked.clear();
            entry.paused = false;
            let run = entry.running.take();
            let watchers = std::mem::take(&mut entry.watchers);
            let disks: Vec<Arc<SimDisk>> = entry.disks.values().cloned().collect();
            let power = entry.power.clone();
            (world.take_tasks(Some(slot)), disks, power, run, watchers)
        };
        if let Some((incarnation, _)) = &run {
            incarnation.alive.store(false, Ordering::Relaxed);
        }
        // Destructors do not run on a machine that lost its power: whatever they try on a disk must fail.
        power.cut();
        for disk in disks {
            stop_disk(&disk);
        }
        let handler = self.net_forget(node);
        drop(tasks);
        drop((handler, run, watchers));
        power.restore();
    }

    /// Has the node crash as soon as the running task returns.
    pub(super) fn crash_soon(&self, node: NodeId) {
        self.world().failing.push(node);
    }

    pub(super) fn set_paused(&self, node: NodeId, paused: bool) {
        let mut world = self.world();
        let slot = world.slot_of(node);
        world.nodes[slot].paused = paused;
        if !paused {
            let parked = std::mem::take(&mut world.nodes[slot].parked);
            let mut ready = lock(&self.ready.0);
            parked.into_iter().for_each(|id| ready.insert(id));
        }
    }

    /// Makes the node in `slot` run, when it does not, with the environment that `build` makes for the new incarnation.
    pub(super) fn start(&self, node: NodeId, build: impl FnOnce(&Arc<Incarnation>, &Arc<NodeClock>) -> Env) -> Env {
        let mut world = self.world();
        let slot = world.slot_of(node);
        if let Some((_, env)) = &world.nodes[slot].running {
            return env.clone();
        }
        let base_nanos = world.prng.between(1_000_000_000, 1_000_000_000_000);
        let entry = &mut world.nodes[slot];
        entry.starts += 1;
        entry.clock.start(self.now_nanos(), base_nanos);
        let incarnation = Arc::new(Incarnation { node, slot, number: entry.starts, alive: AtomicBool::new(true) });
        let env = build(&incarnation, &entry.clock);
        entry.running = Some((incarnation, env.clone()));
        let number = entry.starts;
        world.trace.push(self.now_nanos(), TraceKind::Start, u64::from(node.0), number);
        env
    }

    /// Drops everything that could hold the simulation alive in a circle.
    pub(super) fn shut_down(&self) {
        let (tasks, nodes, events) = {
            let mut world = self.world();
            world.closed = true;
            let tasks = world.take_tasks(None);
            let nodes: Vec<Node> = world.nodes.drain(1..).collect();
            world.node_slots.clear();
            (tasks, nodes, std::mem::take(&mut world.events))
        };
        for node in &nodes {
            if let Some((incarnation, _)) = &node.running {
                incarnation.alive.store(false, Ordering::Relaxed);
            }
            node.power.cut();
        }
        let net = std::mem::replace(&mut *lock(&self.net), NetState::new(Prng::new(0)));
        drop((tasks, events, net));
        for node in nodes {
            for disk in node.disks.values() {
                disk.forget_operations();
            }
        }
        let late = std::mem::take(&mut self.world().events);
        drop(late);
    }
}

impl ReadyQueue {
    /// Takes any of the ready tasks: the order in which they run is the seed's choice.
    fn draw(&self) -> Option<TaskId> {
        let mut ready = lock(&self.0);
        let ready = &mut *ready;
        match ready.tasks.len() {
            0 | 1 => ready.tasks.pop(),
            many => Some(ready.tasks.remove(ready.prng.below(many as u64) as usize)),
        }
    }
}

impl World {
    /// The slot of `node`, made on first mention.
    pub(super) fn slot_of(&mut self, node: NodeId) -> usize {
        if let Some(slot) = self.node_slots.get(&node) {
            return *slot;
        }
        assert!(!self.closed, "this simulation has ended");
        self.nodes.push(Node::new(node));
        self.node_slots.insert(node, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn count_event(&mut self, seed: u64) {
        self.events_done += 1;
        assert!(
            self.events_done <= self.events_max,
            "seed {seed}: more than {} events, so this is taken for a live lock (see set_events_max)",
            self.events_max
        );
    }

    fn free_slot(&mut self, index: usize) -> Option<Task> {
        let slot = &mut self.tasks[index];
        slot.use_count = slot.use_count.wrapping_add(1);
        self.free.push(index as u32);
        slot.task.take()
    }

    /// Takes out the tasks of the node in `slot`, or all, in slot order.
    fn take_tasks(&mut self, slot: Option<usize>) -> Vec<Task> {
        let mut taken = Vec::new();
        for index in 0..self.tasks.len() {
            if self.tasks[index].task.as_ref().is_some_and(|task| slot.is_none_or(|slot| task.node == slot)) {
                taken.extend(self.free_slot(index));
            }
        }
        taken
    }

    fn stuck_report(&self) -> String {
        const SHOWN_MAX: usize = 20;
        let names: Vec<String> = self
            .tasks
            .iter()
            .filter_map(|slot| slot.task.as_ref())
            .map(|task| {
                if task.node == HOST {
                    task.name.into()
                } else {
                    format!("{} on node {}", task.name, self.nodes[task.node].id)
                }
            })
            .collect();
        let paused: Vec<String> =
            self.nodes.iter().filter(|node| node.paused).map(|node| node.id.to_string()).collect();
        let shown = names[..names.len().min(SHOWN_MAX)].join(", ");
        format!("{} tasks wait [{shown}], paused nodes [{}]", names.len(), paused.join(", "))
    }
}

impl Node {
    fn new(id: NodeId) -> Node {
        Node {
            id,
            starts: 0,
            running: None,
            clock: Arc::new(NodeClock::default()),
            disks: BTreeMap::new(),
            power: Arc::new(Power::new()),
            watchers: Vec::new(),
            paused: false,
            parked: Vec::new(),
        }
    }
}

/// Says on a panic where in the simulation it happened, so that it can be replayed.
struct PanicNote<'a> {
    core: &'a Core,
    what: &'static str,
    node: Option<NodeId>,
}

impl Drop for PanicNote<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let node = match self.node {
                Some(id) if id.0 != u32::MAX => format!(" on node {id}"),
                _ => String::new(),
            };
            eprintln!(
                "simulation: {}{node} panicked at {} ns of seed {}",
                self.what,
                self.core.now_nanos(),
                self.core.seed
            );
        }
    }
}
