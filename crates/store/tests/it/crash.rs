//! Power cuts at any disk operation, over many seeds: nothing acknowledged is lost, nothing deleted comes back, Raft
//! logs are exact. And without flushes the same test finds violations: it can fail.

use base::env::RandomExt;
use base::ids::GroupId;
use base::sim::SimHandle;
use std::sync::{Arc, Mutex};
use store::{Engine, StoreError};

use crate::bench::{Bench, NODE, chunk, id, small};
use crate::model::{Chunk, Model, applied, next_write};

const LIVES: u64 = 6;
const WORKERS: u32 = 6;
const GROUPS: u64 = 3;

type Shared = Arc<Mutex<Model>>;

/// One worker: puts, reads back, deletes, as the dice fall, until the node dies or `rounds` are over.
async fn chunk_worker(engine: Engine, sim: SimHandle, model: Shared, worker: u32, life: u64, rounds: u32) {
    for round in 0..rounds {
        let number = (life as u32) << 20 | worker << 12 | round;
        let len = match sim.below(12) {
            0 => 256 * 1024 + sim.below(200_000),
            1 => sim.below(100_000),
            _ => sim.below(9_000),
        } as usize;
        model.lock().unwrap().chunks.insert(number, Chunk { len, ..Chunk::default() });
        match engine.put(chunk(number, len)).await {
            Ok(_) => model.lock().unwrap().chunks.get_mut(&number).unwrap().stored = true,
            Err(StoreError::Broken(_) | StoreError::Closed) => return,
            Err(StoreError::Deleted) if model.lock().unwrap().chunks[&number].delete_asked => {}
            Err(error) => panic!("put: {error}"),
        }
        if sim.below(2) == 0 {
            let victim = {
                let mut model = model.lock().unwrap();
                let nth = sim.below(model.chunks.len() as u64) as usize;
                let (number, victim) = model.chunks.iter_mut().nth(nth).unwrap();
                victim.delete_asked = true;
                *number
            };
            match engine.delete(vec![id(victim)]).await {
                Ok(()) => model.lock().unwrap().chunks.get_mut(&victim).unwrap().deleted = true,
                Err(_) => return,
            }
        }
    }
}

async fn raft_worker(engine: Engine, sim: SimHandle, model: Shared, group: GroupId, rounds: u32) {
    for _ in 0..rounds {
        let write = {
            let mut model = model.lock().unwrap();
            let write = next_write(group, model.logs.get(&group), &mut |bound| sim.below(bound));
            model.asked.insert(group, write.clone());
            write
        };
        match engine.raft_write(write.clone()).await {
            Ok(()) => {
                let mut model = model.lock().unwrap();
                let log = applied(model.logs.get(&group).cloned(), &write);
                model.logs.insert(group, log);
                model.asked.remove(&group);
            }
            Err(StoreError::Broken(_) | StoreError::Closed) => return,
            Err(error) => panic!("raft write {write:?}: {error}"),
        }
    }
}

async fn check(engine: &Engine, model: &Shared) -> Result<(), String> {
    let numbers: Vec<_> = model.lock().unwrap().chunks.keys().copied().collect();
    for number in numbers {
        let read = engine.get(id(number), 0..u32::MAX).await.map(store::ChunkData::into_bytes);
        model.lock().unwrap().check_chunk(number, read)?;
    }
    for group in (1..=GROUPS).map(GroupId) {
        let read = engine.raft_load(group).await;
        model.lock().unwrap().check_log(group, read)?;
    }
    Ok(())
}

/// Several lives of one disk under one seed. The first violation, if there is one.
fn lives(seed: u64, ignore_flushes: bool) -> Result<(), String> {
    let bench = Bench::formatted(seed);
    bench.disk.ignore_flushes(ignore_flushes);
    bench.disk.ignore_directory_flushes(ignore_flushes);
    let model = Shared::default();
    for life in 0..LIVES {
        let (env, disk) = (bench.node.env(), bench.dyn_disk());
        // Some crashes hit recovery itself.
        let early = bench.sim.below(4) == 0;
        if early {
            bench.disk.crash_after_ops(1 + bench.sim.below(12));
        }
        let opened = bench.sim.block_on(bench.node.run(async move { Engine::open(&env, disk, small()).await }));
        let (engine, report) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) if bench.node.is_running() && !early => return Err(format!("open: {error:?}")),
            _ => {
                bench.node.crash();
                continue;
            }
        };
        if !report.damaged.is_empty() {
            return Err(format!("damage after a plain crash: {:?}", report.damaged));
        }
        let checked = {
            let (engine, model) = (engine.clone(), model.clone());
            bench.sim.block_on(bench.node.run(async move { check(&engine, &model).await }))
        };
        match checked {
            // The power went in the middle of the check.
            Ok(Err(error)) if early && error.contains("crash") => continue,
            Ok(done) => done?,
            Err(_) if early => continue,
            Err(crashed) => panic!("{crashed:?}"),
        }
        if !early {
            bench.disk.crash_after_ops(1 + bench.sim.below(400));
        }
        work(&bench, &engine, &model, life);
        if bench.sim.below(3) == 0 && bench.node.is_running() {
            let closing = engine.clone();
            let _ = bench.sim.block_on(bench.node.run(closing.close()));
        }
        bench.sim.crash(NODE);
    }
    let engine = bench.try_open().map_err(|error| format!("{error:?}"))?.0;
    bench.sim.block_on(check(&engine, &model))
}

fn work(bench: &Bench, engine: &Engine, model: &Shared, life: u64) {
    let mut running = Vec::new();
    for worker in 0..WORKERS {
        let task = chunk_worker(engine.clone(), (*bench.sim).clone(), model.clone(), worker, life, 25);
        running.push(bench.node.run(task));
    }
    for group in (1..=GROUPS).map(GroupId) {
        running.push(bench.node.run(raft_worker(engine.clone(), (*bench.sim).clone(), model.clone(), group, 40)));
    }
    bench.sim.block_on(async {
        for one in running {
            let _ = one.await;
        }
    });
}

fn seeds() -> u64 {
    std::env::var("HENGE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

#[test]
fn nothing_acknowledged_is_lost_over_many_crashes() {
    for seed in 0..seeds() {
        if let Err(violation) = lives(seed, false) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn without_flushes_the_same_test_finds_violations() {
    let violations = (0..10).filter(|seed| lives(*seed, true).is_err()).count();
    assert!(violations > 0, "a disk that ignores flushes went unnoticed");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let hash = |seed| {
        let bench = Bench::formatted(seed);
        let engine = bench.open();
        work(&bench, &engine, &Shared::default(), 0);
        bench.sim.trace_hash()
    };
    assert_eq!(hash(5), hash(5));
    assert_ne!(hash(5), hash(6));
}
