//! Chunks that leave a disk and come back, and the digests by which disks are compared.

use base::ids::PoolId;
use std::collections::BTreeMap;
use std::time::Duration;
use store::{Digest, Engine, Known, StoreError};

use crate::bench::{Bench, chunk, id};

const SLOTS: u32 = 1 << 24;

/// Computed anew from the inventory: an odd border cannot be answered from what is kept.
fn walked(engine: &Engine) -> Digest {
    engine.digest(PoolId(1), 0..=SLOTS / 2).and(engine.digest(PoolId(1), SLOTS / 2 + 1..=SLOTS - 1))
}

fn whole(engine: &Engine) -> Digest {
    engine.digest(PoolId(1), 0..=SLOTS - 1)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Here,
    Away,
    Deleted,
}

fn check(bench: &Bench, engine: &Engine, model: &BTreeMap<u32, (State, usize)>) {
    assert_eq!(whole(engine), walked(engine));
    let here = model.values().filter(|(state, _)| *state == State::Here).count() as u64;
    assert_eq!((whole(engine).chunks, whole(engine).damaged), (here, 0));
    for (number, (state, len)) in model {
        match (state, bench.get(engine, id(*number))) {
            (State::Here, Ok(bytes)) => assert_eq!(bytes.len(), *len),
            (State::Away, Err(StoreError::NotFound)) => {}
            // The tombstone goes when nothing of the chunk is left.
            (State::Deleted, Err(StoreError::Deleted | StoreError::NotFound)) => {}
            (state, found) => panic!("chunk {number} is {state:?}, read {found:?}"),
        }
    }
}

/// Large chunks lie in bulk volumes: once one that was evicted is gone, an old locator must not be taken for a chunk.
#[test]
fn what_left_stays_away_over_crashes_and_compaction_and_may_come_back() {
    for seed in 0..6 {
        let bench = Bench::formatted(seed);
        let mut engine = bench.open();
        let mut model: BTreeMap<u32, (State, usize)> = BTreeMap::new();
        let mut state = seed + 77;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for step in 0..600 {
            let number = draw(60) as u32;
            let len = if number.is_multiple_of(4) { 400_000 } else { 9_000 };
            match (draw(10), model.get(&number).map(|(state, _)| *state)) {
                (_, Some(State::Deleted)) => {}
                (0, Some(_)) => {
                    bench.delete(&engine, vec![id(number)]);
                    model.insert(number, (State::Deleted, len));
                }
                (1..=4, Some(State::Here)) => {
                    bench.sim.block_on(engine.evict(vec![id(number), id(9999)])).unwrap();
                    model.insert(number, (State::Away, len));
                }
                _ => {
                    bench.put(&engine, chunk(number, len)).unwrap();
                    model.insert(number, (State::Here, len));
                }
            }
            if step % 97 == 0 {
                model.retain(|_, (state, _)| *state != State::Deleted);
                bench.sim.run_for(Duration::from_secs(3));
                let before = whole(&engine);
                match draw(2) {
                    0 => bench.close(engine),
                    _ => bench.crash(engine),
                }
                let (again, report) = bench.try_open().unwrap();
                assert_eq!(report.damaged, [], "seed {seed}, step {step}");
                engine = again;
                assert_eq!(whole(&engine), before, "seed {seed}, step {step}");
                // A number that was deleted is used again only once its tombstone has gone, as if it were new.
                model.retain(|number, _| !engine.is_deleted(id(*number)));
                for number in 0..60 {
                    if engine.is_deleted(id(number)) {
                        model.insert(number, (State::Deleted, 0));
                    }
                }
            }
            if step % 20 == 0 {
                check(&bench, &engine, &model);
            }
        }
        assert!(engine.stats().compacted_volumes > 0, "volumes were recycled meanwhile: {:?}", engine.stats());
    }
}

#[test]
fn a_deletion_is_final_also_for_what_is_away() {
    let bench = Bench::formatted(9);
    let engine = bench.open();
    bench.put(&engine, chunk(1, 5000)).unwrap();
    bench.sim.block_on(engine.evict(vec![id(1)])).unwrap();
    bench.delete(&engine, vec![id(1)]);
    assert_eq!(bench.put(&engine, chunk(1, 5000)), Err(StoreError::Deleted));
    bench.sim.block_on(engine.evict(vec![id(1)])).unwrap();
    assert_eq!(bench.get(&engine, id(1)), Err(StoreError::Deleted));
}

#[test]
fn known_ids_are_told_with_tombstones() {
    let bench = Bench::formatted(10);
    let engine = bench.open();
    for number in 1..=4 {
        bench.put(&engine, chunk(number, 100)).unwrap();
    }
    bench.delete(&engine, vec![id(2)]);
    bench.sim.block_on(engine.evict(vec![id(3)])).unwrap();
    let mut after = None;
    let mut found = Vec::new();
    loop {
        let page = engine.known(after, PoolId(1), 0..=SLOTS - 1, 2);
        let Some(last) = page.last() else { break };
        after = Some(last.id());
        found.extend(page);
    }
    let mut told: Vec<(u32, bool)> =
        found.iter().map(|known| (known.id().counter, matches!(known, Known::Chunk(_)))).collect();
    told.sort();
    assert_eq!(told, [(1, true), (2, false), (4, true)]);
}
