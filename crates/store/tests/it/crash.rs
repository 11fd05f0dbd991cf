//! Power cuts at any disk operation, over many seeds: nothing acknowledged is lost, nothing deleted comes back, Raft
//! logs are exact. And without flushes the same test finds violations: it can fail.

use base::Env;
use base::env::{BoxFuture, Disk, RandomExt};
use base::ids::GroupId;
use base::sim::SimHandle;
use std::sync::{Arc, Mutex};
use store::{Engine, RaftWrite, StoreError};

use crate::bench::{Bench, chunk, id, payload, small};
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
            // Half of them of whole blocks, whose payloads stand apart.
            _ => match sim.below(9_000) {
                len if len % 2 == 0 => len.next_multiple_of(4096),
                len => len,
            },
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
        let compacted = engine.stats().compacted_volumes;
        let mut model = model.lock().unwrap();
        model.compacted = model.compacted.max(compacted);
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

/// One life: open, compare with the model, work until the power goes.
async fn live(env: Env, disk: Arc<dyn Disk>, sim: SimHandle, model: Shared, life: u64) -> Result<(), String> {
    let (engine, report) = match Engine::open(&env, disk, small()).await {
        Ok(opened) => opened,
        Err(error) => return power_or(format!("open: {error:?}")),
    };
    if !report.damaged.is_empty() {
        return Err(format!("damage after a plain crash: {:?}", report.damaged));
    }
    if let Err(violation) = check(&engine, &model).await {
        return power_or(violation);
    }
    let chunks = (0..WORKERS).map(|worker| {
        let (engine, sim, model) = (engine.clone(), sim.clone(), model.clone());
        Box::pin(chunk_worker(engine, sim, model, worker, life, 25)) as BoxFuture<()>
    });
    let logs = (1..=GROUPS).map(|group| {
        let (engine, sim, model) = (engine.clone(), sim.clone(), model.clone());
        Box::pin(raft_worker(engine, sim, model, GroupId(group), 40)) as BoxFuture<()>
    });
    futures_util::future::join_all(chunks.chain(logs)).await;
    if sim.below(2) == 0 {
        engine.close().await;
    }
    Ok(())
}

/// What went wrong, unless it is that the power went.
fn power_or(violation: String) -> Result<(), String> {
    if violation.contains("power") || violation.contains("crash") { Ok(()) } else { Err(violation) }
}

/// Several lives of one disk under one seed. How many volumes were compacted meanwhile; or the first violation.
fn lives(seed: u64, ignore_flushes: bool) -> Result<u64, String> {
    let bench = Bench::formatted(seed);
    bench.disk.ignore_flushes(ignore_flushes);
    bench.disk.ignore_directory_flushes(ignore_flushes);
    let model = Shared::default();
    for life in 0..LIVES {
        // Some crashes hit recovery itself.
        let few = if bench.sim.below(4) == 0 { 12 } else { 400 };
        bench.disk.crash_after_ops(1 + bench.sim.below(few));
        let life = live(bench.node.env(), bench.dyn_disk(), (*bench.sim).clone(), model.clone(), life);
        if let Ok(lived) = bench.sim.block_on(bench.node.run(life)) {
            lived?;
        }
        bench.node.crash();
    }
    let engine = bench.try_open().map_err(|error| format!("{error:?}"))?.0;
    bench.sim.block_on(check(&engine, &model))?;
    let compacted = model.lock().unwrap().compacted;
    Ok(compacted)
}

fn seeds() -> u64 {
    std::env::var("HENGE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

#[test]
fn nothing_acknowledged_is_lost_over_many_crashes() {
    let mut compacted = 0;
    for seed in 0..seeds() {
        match lives(seed, false) {
            Ok(volumes) => compacted += volumes,
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    assert!(compacted >= seeds(), "compaction was hardly tested: {compacted}");
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
        let life = live(bench.node.env(), bench.dyn_disk(), (*bench.sim).clone(), Shared::default(), 0);
        bench.sim.block_on(bench.node.run(life)).unwrap().unwrap();
        bench.sim.trace_hash()
    };
    assert_eq!(hash(5), hash(5));
    assert_ne!(hash(5), hash(6));
}

/// A process is killed, not its machine: what it had written and not flushed is still read by the next start, which
/// acts on it. From then on it must stay, whatever the power does.
#[test]
fn what_one_start_has_seen_no_later_power_cut_takes_away() {
    for seed in 0..20 {
        let bench = Bench::formatted(seed);
        let engine = bench.open();
        bench.disk.ignore_flushes(true);
        for number in 0..10 {
            bench.put(&engine, chunk(number, 5000)).unwrap();
        }
        let vote = RaftWrite { group: GroupId(1), hard_state: Some(payload(1, 20)), ..RaftWrite::default() };
        bench.sim.block_on(engine.raft_write(vote)).unwrap();
        bench.close(engine);
        bench.disk.ignore_flushes(false);
        let engine = bench.open();
        for number in 0..10 {
            assert_eq!(bench.get(&engine, id(number)).unwrap(), payload(number, 5000));
        }
        bench.crash(engine);
        let engine = bench.open();
        for number in 0..10 {
            assert_eq!(bench.get(&engine, id(number)).unwrap(), payload(number, 5000), "seed {seed}");
        }
        let log = bench.sim.block_on(engine.raft_load(GroupId(1))).unwrap().unwrap();
        assert_eq!(log.hard_state, Some(payload(1, 20)), "seed {seed}");
    }
}
