//! What the simulated network promises, and that it takes what it does not promise.

use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::Env;
use crate::sim::{Sim, SimHandle};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

/// Answers with what it was asked, after a while, and notes it.
struct Echo {
    env: Env,
    wait: Duration,
    seen: Arc<Mutex<Vec<(NodeId, Bytes)>>>,
}

impl Handler for Echo {
    fn handle(&self, from: NodeId, _channel: Channel, request: Frame) -> BoxFuture<Frame> {
        lock(&self.seen).push((from, request.head.clone()));
        let sleep = self.env.sleep(self.wait);
        Box::pin(async move {
            sleep.await;
            request
        })
    }
}

type Seen = Arc<Mutex<Vec<(NodeId, Bytes)>>>;

fn start(sim: &SimHandle, node: NodeId, wait: Duration) -> (Env, Seen) {
    let (env, seen) = (sim.env(node), Seen::default());
    env.net.serve(Arc::new(Echo { env: env.clone(), wait, seen: seen.clone() }));
    (env, seen)
}

fn frame(number: u64) -> Frame {
    Frame { head: Bytes::copy_from_slice(&number.to_le_bytes()), bulk: Vec::new() }
}

/// Calls with a deadline of one second and says how that ended.
async fn ask(env: &Env, to: NodeId, request: Frame) -> CallResult {
    env.net.call(to, Channel::Raft, request, env.now() + Duration::from_secs(1)).await
}

#[test]
fn calls_are_answered_and_bulk_is_not_copied() {
    let sim = Sim::new(1);
    let (a, seen_a) = start(&sim, A, Duration::ZERO);
    let (_, seen_b) = start(&sim, B, Duration::ZERO);
    let request = Frame { head: Bytes::from_static(b"head"), bulk: vec![Bytes::from(vec![5; 10_000])] };
    let answer = sim.block_on(ask(&a, B, request.clone())).unwrap();
    assert_eq!(answer, request);
    assert_eq!(answer.bulk[0].as_ptr(), request.bulk[0].as_ptr());
    assert!(sim.now().0 >= 100_000, "there and back take time");
    assert_eq!(*lock(&seen_b), [(A, request.head.clone())]);

    let before = sim.now();
    sim.set_net_model(NetModel { loss_ppm: PPM, ..NetModel::default() });
    sim.cut(A, A);
    assert_eq!(sim.block_on(ask(&a, A, request.clone())), Ok(request));
    assert_eq!(sim.now(), before, "what a node says to itself arrives at once and always");
    assert_eq!(lock(&seen_a).len(), 1);
}

#[test]
fn who_is_not_there_is_not_reached() {
    let sim = Sim::new(1);
    let (a, _) = start(&sim, A, Duration::ZERO);
    assert_eq!(sim.block_on(ask(&a, NodeId(77), frame(1))), Err(NetError::NotSent));
    sim.env(B);
    assert_eq!(sim.block_on(ask(&a, B, frame(1))), Err(NetError::NotSent), "it runs and does not listen");
    sim.crash(B);
    assert_eq!(sim.block_on(ask(&a, B, frame(1))), Err(NetError::NotSent));
    assert!(sim.now() < MonoTime(100_000_000));
    sim.crash(A);
    assert_eq!(sim.block_on(ask(&a, B, frame(1))), Err(NetError::NotSent), "a dead node sends nothing");
}

#[test]
fn deadlines_hold_by_the_callers_clock() {
    let sim = Sim::new(1);
    let (a, _) = start(&sim, A, Duration::ZERO);
    let (_, seen) = start(&sim, B, Duration::from_secs(5));
    let before = a.now();
    assert_eq!(sim.block_on(ask(&a, B, frame(1))), Err(NetError::DeadlineExceeded));
    assert_eq!(a.now().since(before), Duration::from_secs(1));
    assert_eq!(lock(&seen).len(), 1, "the request was carried out all the same");
    let past = a.net.call(B, Channel::Raft, frame(2), a.now());
    assert_eq!(sim.block_on(past), Err(NetError::DeadlineExceeded));
    let endless = a.net.call(B, Channel::Raft, frame(3), MonoTime(u64::MAX));
    assert_eq!(sim.block_on(endless), Ok(frame(3)));
}

#[test]
fn a_cut_is_one_way_and_ends() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..40 {
        let sim = Sim::new(seed);
        let (a, seen_a) = start(&sim, A, Duration::ZERO);
        let (b, seen_b) = start(&sim, B, Duration::ZERO);
        sim.cut(A, B);
        let until = a.now() + Duration::from_secs(2);
        let error = sim.block_on(a.net.call(B, Channel::Raft, frame(1), until)).unwrap_err();
        outcomes.insert(format!("{error:?}"));
        assert!(lock(&seen_b).is_empty());
        // The request gets through, the answer does not.
        assert!(sim.block_on(ask(&b, A, frame(2))).is_err());
        assert_eq!(lock(&seen_a).len(), 1);
        sim.uncut(A, B);
        assert_eq!(sim.block_on(ask(&a, B, frame(3))), Ok(frame(3)));
    }
    assert_eq!(outcomes, BTreeSet::from(["DeadlineExceeded".into(), "NotSent".into()]), "nobody resets a connection");
}

#[test]
fn a_cut_takes_what_is_on_its_way() {
    let sim = Sim::new(1);
    let (a, _) = start(&sim, A, Duration::ZERO);
    let (_, seen) = start(&sim, B, Duration::ZERO);
    a.net.send(B, Channel::Raft, frame(1));
    sim.cut(A, B);
    sim.run_for(Duration::from_secs(1));
    sim.heal();
    sim.run_for(Duration::from_secs(1));
    assert!(lock(&seen).is_empty());
}

#[test]
fn partitions_separate_groups_and_heal() {
    let sim = Sim::new(1);
    let nodes = [1, 2, 3, 4].map(NodeId);
    let envs = nodes.map(|node| start(&sim, node, Duration::ZERO).0);
    sim.partition(&[&nodes[..2], &nodes[2..3]]);
    let reached = || {
        let mut reached = BTreeSet::new();
        for (env, to) in envs.iter().zip(nodes).flat_map(|(env, from)| nodes.map(|to| (env, (from, to)))) {
            if sim.block_on(ask(env, to.1, frame(1))).is_ok() {
                reached.insert((to.0.0, to.1.0));
            }
        }
        reached
    };
    let separated = BTreeSet::from([(1, 3), (3, 1), (2, 3), (3, 2)]);
    let all: BTreeSet<(u32, u32)> = (1..=4).flat_map(|a| (1..=4).map(move |b| (a, b))).collect();
    assert_eq!(reached(), &all - &separated);
    sim.heal();
    assert_eq!(reached(), all);
}

#[test]
fn losses_show_as_breaks_or_silence_and_are_as_frequent_as_asked() {
    let sim = Sim::new(1);
    let (a, _) = start(&sim, A, Duration::ZERO);
    let (_, seen) = start(&sim, B, Duration::ZERO);
    sim.set_net_model(NetModel { loss_ppm: 200_000, ..NetModel::default() });
    let (mut answered, mut broken, mut silent) = (0, 0, 0);
    for number in 0..1000 {
        match sim.block_on(ask(&a, B, frame(number))) {
            Ok(_) => answered += 1,
            Err(NetError::Broken) => broken += 1,
            Err(NetError::DeadlineExceeded) => silent += 1,
            Err(NetError::NotSent) => panic!("it was sent"),
        }
    }
    // Requests and answers are lost alike: 0.8 of the requests arrive, 0.64 of the calls are answered.
    assert!((750..850).contains(&lock(&seen).len()));
    assert!((590..690).contains(&answered), "{answered}");
    assert!(broken > 100 && silent > 100, "{broken} {silent}");
}

#[test]
fn duplicates_run_the_handler_twice() {
    let sim = Sim::new(1);
    let (a, _) = start(&sim, A, Duration::ZERO);
    let (_, seen) = start(&sim, B, Duration::ZERO);
    sim.set_net_model(NetModel { duplicate_ppm: PPM, ..NetModel::default() });
    assert_eq!(sim.block_on(ask(&a, B, frame(1))), Ok(frame(1)));
    a.net.send(B, Channel::Raft, frame(2));
    sim.run_for(Duration::from_secs(1));
    assert_eq!(lock(&seen).len(), 4);
}

#[test]
fn messages_overtake_each_other_and_none_is_lost() {
    let sim = Sim::new(1);
    let (a, _) = start(&sim, A, Duration::ZERO);
    let (_, seen) = start(&sim, B, Duration::ZERO);
    let sent: Vec<Bytes> = (0..100).map(|number| frame(number).head).collect();
    for number in 0..100 {
        a.net.send(B, Channel::Control, frame(number));
    }
    sim.run_for(Duration::from_secs(1));
    let mut arrived: Vec<Bytes> = lock(&seen).iter().map(|(_, head)| head.clone()).collect();
    assert_ne!(arrived, sent);
    arrived.sort();
    assert_eq!(arrived, sent);
}

#[test]
fn a_hung_link_delivers_late() {
    let sim = Sim::new(1);
    let (a, _) = start(&sim, A, Duration::ZERO);
    let (_, seen) = start(&sim, B, Duration::ZERO);
    sim.hang(A, B);
    assert_eq!(sim.block_on(ask(&a, B, frame(1))), Err(NetError::DeadlineExceeded));
    sim.run_for(Duration::from_secs(60));
    assert!(lock(&seen).is_empty());
    sim.unhang(A, B);
    sim.run_for(Duration::from_secs(1));
    assert_eq!(lock(&seen).len(), 1, "the caller gave up long ago, the request comes all the same");
}

#[test]
fn a_crash_breaks_calls_or_leaves_them_waiting() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..40 {
        let sim = Sim::new(seed);
        let (a, _) = start(&sim, A, Duration::ZERO);
        start(&sim, B, Duration::from_secs(5));
        let call = ask(&a, B, frame(1));
        let handle = SimHandle::clone(&sim);
        let (result, ()) = sim.block_on(async {
            tokio::join!(call, async {
                handle.sleep(Duration::from_millis(100)).await;
                handle.crash(B);
            })
        });
        outcomes.insert(format!("{:?}", result.unwrap_err()));
    }
    assert_eq!(outcomes, BTreeSet::from(["Broken".into(), "DeadlineExceeded".into()]));
}

#[test]
fn nothing_reaches_a_later_incarnation() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let (a, _) = start(&sim, A, Duration::ZERO);
        start(&sim, B, Duration::ZERO);
        sim.hang(A, B);
        a.net.send(B, Channel::Raft, frame(1));
        let call = ask(&a, B, frame(2));
        let early = sim.now();
        sim.spawn("restarts", {
            let handle = SimHandle::clone(&sim);
            async move {
                handle.sleep(Duration::from_millis(50)).await;
                handle.crash(B);
                let (_, seen) = start(&handle, B, Duration::ZERO);
                handle.heal();
                handle.sleep(Duration::from_millis(500)).await;
                assert!(lock(&seen).is_empty());
            }
        });
        assert_eq!(sim.block_on(call), Err(NetError::Broken));
        assert!(sim.now().since(early) < Duration::from_secs(1));
        sim.run_for(Duration::from_secs(1));
    }
}

#[test]
fn a_paused_node_answers_after_it_resumes() {
    let sim = Sim::new(1);
    let (a, _) = start(&sim, A, Duration::ZERO);
    let (_, seen) = start(&sim, B, Duration::ZERO);
    sim.pause(B);
    assert_eq!(sim.block_on(ask(&a, B, frame(1))), Err(NetError::DeadlineExceeded));
    assert!(lock(&seen).is_empty(), "a paused node does not even look");
    sim.resume(B);
    sim.run_for(Duration::from_millis(1));
    assert_eq!(lock(&seen).len(), 1);
}

#[test]
#[should_panic(expected = "sets its handler once")]
fn a_handler_is_set_once() {
    let sim = Sim::new(1);
    start(&sim, A, Duration::ZERO);
    start(&sim, A, Duration::ZERO);
}
