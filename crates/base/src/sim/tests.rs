//! What the executor, clocks and nodes promise.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::*;
use crate::env::{Caching, Disk, Flush, OpenMode, RandomExt};

const NODE: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Counts, a millisecond at a time, for as long as its task lives.
fn spawn_counter(env: &Env) -> Arc<AtomicU64> {
    let counter = Arc::new(AtomicU64::new(0));
    let (env2, counter2) = (env.clone(), counter.clone());
    env.spawn("counter", async move {
        loop {
            env2.sleep(millis(1)).await;
            counter2.fetch_add(1, Ordering::Relaxed);
        }
    });
    counter
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn sleeps_end_in_order_and_at_their_time() {
    let sim = Sim::new(1);
    let env = sim.env(NODE);
    let started = env.now();
    let order = Arc::new(Mutex::new(Vec::new()));
    for wait in [30, 10, 20] {
        let (env2, order) = (env.clone(), order.clone());
        env.spawn("sleeper", async move {
            env2.sleep(millis(wait)).await;
            lock(&order).push(wait);
        });
    }
    sim.run_for(millis(25));
    assert_eq!(*lock(&order), [10, 20]);
    sim.block_on(env.sleep(millis(15)));
    assert_eq!(*lock(&order), [10, 20, 30]);
    assert_eq!(env.now().since(started), millis(40));
}

#[test]
fn a_timeout_cuts_off_and_leaves_no_timer_behind() {
    let sim = Sim::new(1);
    let env = sim.env(NODE);
    sim.block_on(async {
        assert_eq!(env.timeout(millis(5), std::future::pending::<()>()).await, None);
        assert_eq!(env.timeout(Duration::from_secs(3600), async { 7 }).await, Some(7));
        assert_eq!(env.timeout(Duration::MAX, env.sleep(millis(1))).await, Some(()));
    });
    assert_eq!(sim.now(), MonoTime(6_000_000));
    sim.run_for(Duration::from_secs(4000));
    assert!(sim.events_done() < 12, "{} events", sim.events_done());
}

#[test]
#[should_panic(expected = "1 tasks wait [waits for nothing on node 1]")]
fn a_deadlock_is_reported_with_who_waits() {
    let sim = Sim::new(1);
    let env = sim.env(NODE);
    let (_sender, receiver) = oneshot::channel::<()>();
    env.spawn("waits for nothing", async move { drop(receiver.await) });
    sim.block_on(std::future::pending::<()>());
}

#[test]
#[should_panic(expected = "live lock")]
fn a_live_lock_is_reported() {
    let sim = Sim::new(1);
    sim.set_events_max(1000);
    sim.spawn(
        "spins",
        std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        }),
    );
    sim.run_for(millis(1));
}

#[test]
#[should_panic(expected = "do not nest it")]
fn driving_does_not_nest() {
    let sim = Sim::new(1);
    sim.block_on(async { sim.run_for(millis(1)) });
}

#[test]
fn ready_tasks_run_in_an_order_drawn_by_the_seed() {
    let order_of = |seed| {
        let sim = Sim::new(seed);
        let env = sim.env(NODE);
        let order = Arc::new(Mutex::new(Vec::new()));
        for number in 0..4 {
            let order = order.clone();
            env.spawn("ready", async move { lock(&order).push(number) });
        }
        sim.run_for(millis(1));
        lock(&order).clone()
    };
    let orders: std::collections::BTreeSet<Vec<i32>> = (0..400).map(order_of).collect();
    assert_eq!(orders.len(), 24, "400 seeds meet all orders of four tasks");
    assert_eq!(order_of(5), order_of(5));
}

/// A run with tasks, disks, messages, a crash and randomness in it.
fn busy_run(seed: u64, extra_byte: bool) -> (u64, Vec<TraceEvent>) {
    let sim = Sim::new(seed);
    sim.record_trace();
    sim.set_net_model(NetModel::rough());
    for node in [NODE, OTHER] {
        let env = sim.env(node);
        let disk = sim.disk(node, "d");
        for worker in 0..3u8 {
            let (env, disk) = (env.clone(), disk.clone());
            env.clone().spawn("worker", async move {
                let file = disk.open(&format!("f{worker}"), OpenMode::CreateNew, Caching::Buffered).unwrap();
                for round in 0..20 {
                    env.sleep(Duration::from_micros(env.random.below(3000))).await;
                    let data = vec![worker; if extra_byte && round == 19 { 101 } else { 100 }];
                    let _ = file.write_at(round * 100, vec![data.into()], Flush::Yes).await;
                    let to = if node == NODE { OTHER } else { NODE };
                    env.net.send(to, crate::env::Channel::Raft, crate::env::Frame::default());
                }
            });
        }
    }
    sim.run_for(millis(20));
    sim.crash(OTHER);
    sim.run_for(millis(200));
    (sim.trace_hash(), sim.trace())
}

/// `tokio::sync::watch` wakes its receivers in an order that differs from process to process.
#[test]
fn the_order_of_wakes_changes_nothing() {
    let run = |backwards: bool| {
        let sim = Sim::new(3);
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut senders = Vec::new();
        for number in 0..10 {
            let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
            let order = order.clone();
            sim.spawn("waiter", async move {
                let _ = receiver.await;
                order.lock().unwrap().push(number);
            });
            senders.push(sender);
        }
        sim.run_for(millis(1));
        if backwards {
            senders.reverse();
        }
        senders.into_iter().for_each(|sender| sender.send(()).unwrap());
        sim.run_for(millis(1));
        (order.lock().unwrap().clone(), sim.trace_hash())
    };
    assert_eq!(run(false), run(true));
}

#[test]
fn same_seed_same_trace_other_seed_another() {
    for seed in 0..20 {
        let (hash, events) = busy_run(seed, false);
        let (again, events_again) = busy_run(seed, false);
        assert_eq!(events, events_again);
        assert_eq!(hash, again);
        assert_ne!(hash, busy_run(seed + 1, false).0);
        assert_ne!(hash, busy_run(seed, true).0, "one byte more in one write shows in the hash");
    }
}

#[test]
fn a_crash_drops_the_tasks_of_its_node_alone() {
    let sim = Sim::new(1);
    let old_env = sim.env(NODE);
    let (crashed, other) = (spawn_counter(&old_env), spawn_counter(&sim.env(OTHER)));
    sim.run_for(millis(10));
    sim.crash(NODE);
    assert_eq!(Arc::strong_count(&crashed), 1, "the task is gone with all it held");
    assert!(!sim.is_running(NODE) && sim.is_running(OTHER));
    sim.run_for(millis(10));
    assert_eq!((count(&crashed), count(&other)), (10, 20));

    let dead = spawn_counter(&old_env);
    assert_eq!(Arc::strong_count(&dead), 1, "a dead environment starts no tasks");
    let reborn = spawn_counter(&sim.env(NODE));
    assert!(sim.is_running(NODE));
    sim.run_for(millis(10));
    assert_eq!((count(&crashed), count(&dead), count(&reborn)), (10, 0, 10));
}

#[test]
fn a_power_cut_takes_all_nodes() {
    let sim = Sim::new(1);
    let (one, other) = (spawn_counter(&sim.env(NODE)), spawn_counter(&sim.env(OTHER)));
    sim.crash_all();
    assert!(!sim.is_running(NODE) && !sim.is_running(OTHER));
    assert_eq!((Arc::strong_count(&one), Arc::strong_count(&other)), (1, 1));
}

#[test]
fn simulations_may_run_on_many_threads_one_on_each() {
    fn movable<T: Send>(value: T) -> T {
        value
    }
    drop(movable(Sim::new(1)));
}

#[test]
fn a_node_may_be_crashed_from_within() {
    let sim = Sim::new(1);
    let (env, handle) = (sim.env(NODE), SimHandle::clone(&sim));
    let counter = spawn_counter(&env);
    env.clone().spawn("suicide", async move {
        env.sleep(millis(5)).await;
        handle.crash(NODE);
        env.sleep(millis(5)).await;
        panic!("a crashed node does not go on");
    });
    sim.block_on(sim.stopped(NODE));
    sim.run_for(millis(20));
    assert!((4..=5).contains(&count(&counter)));
}

#[test]
fn destructors_of_a_crash_reach_no_disk() {
    struct Cleaner(Arc<SimDisk>);
    impl Drop for Cleaner {
        fn drop(&mut self) {
            assert!(self.0.remove("f").is_err());
        }
    }
    let sim = Sim::new(1);
    let (env, disk) = (sim.env(NODE), sim.disk(NODE, "d"));
    disk.open("f", OpenMode::CreateNew, Caching::Buffered).unwrap();
    disk.flush_directory().unwrap();
    let cleaner = Cleaner(disk.clone());
    env.spawn("cleans up", async move {
        std::future::pending::<()>().await;
        drop(cleaner);
    });
    sim.run_for(millis(1));
    sim.crash(NODE);
    assert_eq!(disk.files(), ["f"]);
}

#[test]
fn results_of_a_node_come_back_or_its_crash_does() {
    let sim = Sim::new(1);
    let node = sim.node(NODE);
    assert_eq!(sim.block_on(node.run(async { 5 })), Ok(5));
    let never = node.run(std::future::pending::<()>());
    node.crash();
    assert_eq!(sim.block_on(never), Err(Crashed));
}

#[test]
fn a_paused_node_computes_nothing_and_catches_up() {
    let sim = Sim::new(1);
    let (paused, other) = (spawn_counter(&sim.env(NODE)), spawn_counter(&sim.env(OTHER)));
    sim.run_for(millis(5));
    sim.pause(NODE);
    sim.run_for(millis(10));
    assert_eq!((count(&paused), count(&other)), (5, 15));
    sim.resume(NODE);
    sim.run_for(millis(5));
    // Its timer fired late once, then it went on from there.
    assert_eq!((count(&paused), count(&other)), (11, 20));
    sim.pause(NODE);
    sim.run_for(millis(5));
    sim.crash(NODE);
    let reborn = spawn_counter(&sim.env(NODE));
    sim.run_for(millis(5));
    assert_eq!((count(&paused), count(&reborn)), (11, 5));
}

#[test]
fn clocks_drift_and_jump_without_going_back() {
    let sim = Sim::new(1);
    let (fast, slow) = (sim.env(NODE), sim.env(OTHER));
    sim.set_drift(NODE, 10_000);
    sim.set_drift(OTHER, -10_000);
    let (fast_start, slow_start, wall) = (fast.now(), slow.now(), fast.clock.wall());
    assert_ne!(fast_start, slow_start, "monotonic clocks of two nodes have nothing in common");
    sim.run_for(Duration::from_secs(100));
    assert_eq!(fast.now().since(fast_start), Duration::from_secs(101));
    assert_eq!(slow.now().since(slow_start), Duration::from_secs(99));
    assert_eq!(fast.clock.wall().0 - wall.0, 100_000);
    sim.jump_wall(NODE, -3_600_000);
    assert_eq!(wall.0 - fast.clock.wall().0, 3_500_000);

    // A sleep ends by the node's own clock, also when the drift changes meanwhile.
    let before = fast.now();
    let sleep = fast.sleep(Duration::from_secs(10));
    sim.spawn("changes the drift", {
        let handle = SimHandle::clone(&sim);
        async move {
            handle.sleep(Duration::from_secs(5)).await;
            handle.set_drift(NODE, -10_000);
        }
    });
    sim.block_on(sleep);
    let slept = fast.now().since(before);
    assert!(slept >= Duration::from_secs(10) && slept < Duration::from_micros(10_000_002), "{slept:?}");
}

#[test]
fn an_ended_simulation_leaves_nothing_behind() {
    let sim = Sim::new(1);
    let env = sim.env(NODE);
    let weak: Weak<Core> = Arc::downgrade(&sim.core);
    let counter = spawn_counter(&env);
    let disk = sim.disk(NODE, "d");
    let file = disk.open("f", OpenMode::CreateNew, Caching::Buffered).unwrap();
    drop(file.write_at(0, vec![vec![1; 100].into()], Flush::Yes));
    let handle = SimHandle::clone(&sim);
    sim.spawn("holds a handle", async move { handle.sleep(Duration::from_secs(1000)).await });
    sim.run_for(millis(1));
    drop((env, file, disk));
    drop(sim);
    assert_eq!(Arc::strong_count(&counter), 1);
    assert!(weak.upgrade().is_none());
}
