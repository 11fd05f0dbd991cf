//! Promises of the simulation, each with a test.

use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::env::{Caching, Disk, Flush, OpenMode};

const NODE: NodeId = NodeId(1);

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn block(byte: u8, count: usize) -> Vec<Bytes> {
    vec![Bytes::from(vec![byte; 4096 * count])]
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
#[should_panic(expected = "deadlock")]
fn a_deadlock_is_reported() {
    let sim = Sim::new(1);
    let env = sim.env(NODE);
    let (_sender, receiver) = oneshot::channel::<()>();
    env.spawn("waits for nothing", async move { drop(receiver.await) });
    sim.block_on(std::future::pending::<()>());
}

#[test]
fn flushed_data_survives_and_unflushed_data_may_not() {
    let mut lost = 0;
    for seed in 0..200 {
        let sim = Sim::new(seed);
        let disk = sim.disk(NODE, "d");
        sim.block_on(async {
            let file = disk.open("f", OpenMode::CreateNew, Caching::Direct).unwrap();
            file.write_at(0, block(1, 2), Flush::Yes).await.unwrap();
            disk.flush_directory().unwrap();
            file.write_at(8192, block(2, 2), Flush::No).await.unwrap();
        });
        sim.crash(NODE);
        let contents = disk.contents("f").unwrap();
        assert_eq!(contents[..8192], [1; 8192]);
        if contents.len() < 16384 || contents[8192..] != [2; 8192] {
            lost += 1;
        }
    }
    assert!(lost > 50 && lost < 190, "lost {lost} of 200");
}
