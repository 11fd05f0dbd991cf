//! What the engine promises when nothing goes wrong.

use base::ids::{GroupId, LogIndex, PeerId, PoolId, Term};
use bytes::Bytes;
use store::{ChunkData, DiskState, Engine, LOG_START, PutOutcome, RaftEntry, RaftWrite, StoreError};

use crate::bench::{Bench, IDENTITY, chunk, id, payload, small};

const LENGTHS: [usize; 12] =
    [0, 1, 100, 4096, 16_384, 16_385, 100_000, 256 << 10, (256 << 10) + 1, 300_000, 1 << 20, (1 << 20) + 4097];

#[test]
fn chunks_of_all_lengths_come_back_before_and_after_a_restart() {
    let bench = Bench::formatted(1);
    let engine = bench.open();
    for (number, len) in LENGTHS.into_iter().enumerate() {
        assert_eq!(bench.put(&engine, chunk(number as u32, len)), Ok(PutOutcome::Stored));
        assert_eq!(bench.put(&engine, chunk(number as u32, len)), Ok(PutOutcome::AlreadyStored));
    }
    let check = |engine: &Engine| {
        for (number, len) in LENGTHS.into_iter().enumerate() {
            let number = number as u32;
            assert_eq!(bench.get(engine, id(number)).unwrap(), payload(number, len), "{len} bytes");
            let stat = engine.stat(id(number)).unwrap();
            assert_eq!((stat.len as usize, stat.damaged), (len, false));
        }
    };
    check(&engine);
    bench.close(engine);
    let (engine, report) = bench.try_open().unwrap();
    assert_eq!(report.damaged, []);
    check(&engine);
    bench.crash(engine);
    let (engine, report) = bench.try_open().unwrap();
    assert_eq!(report.damaged, []);
    check(&engine);
    assert_eq!(engine.state(), DiskState::Healthy);
}

#[test]
fn ranges_are_exact_and_cut_at_the_end() {
    let bench = Bench::formatted(2);
    let engine = bench.open();
    // The last two stand apart from their headers.
    for (number, len) in [(1, 50_000), (2, 500_000), (4, 16_384), (5, 4096)] {
        bench.put(&engine, chunk(number, len)).unwrap();
        let whole = payload(number, len);
        let len = len as u32;
        for range in [0..1, 1..2, 0..len, 16_383..16_385, 16_384..32_768, 40_000..u32::MAX, len - 1..len, len..len + 9]
        {
            let expected = whole.slice(range.start.min(len) as usize..range.end.min(len) as usize);
            let data: ChunkData = bench.sim.block_on(engine.get(id(number), range.clone())).unwrap();
            assert_eq!(data.into_bytes(), expected, "{range:?}");
            let data: ChunkData = bench.sim.block_on(engine.get_owned(id(number), range.clone())).unwrap();
            assert_eq!(data.owner.map(|owner| owner.0), Some(7));
            assert_eq!(data.into_bytes(), expected, "{range:?}");
        }
    }
    assert_eq!(bench.get(&engine, id(3)), Err(StoreError::NotFound));
}

#[test]
fn other_bytes_under_a_known_id_are_refused_and_counted() {
    let bench = Bench::formatted(3);
    let engine = bench.open();
    bench.put(&engine, chunk(1, 100)).unwrap();
    let mut other = chunk(2, 100);
    other.id = id(1);
    assert_eq!(bench.put(&engine, other.clone()), Err(StoreError::Conflict));
    other.id = id(5);
    other.crc64 ^= 1;
    assert_eq!(bench.put(&engine, other), Err(StoreError::BadPayload));
    assert_eq!(engine.stats().conflicts, 1);
    assert_eq!(bench.get(&engine, id(1)).unwrap(), payload(1, 100));
    // Two different payloads for one id in one round: exactly one wins.
    let (first, mut second) = (chunk(8, 50), chunk(9, 50));
    second.id = first.id;
    let both = bench.sim.block_on(async { futures_util::future::join(engine.put(first), engine.put(second)).await });
    assert!(matches!(both, (Ok(PutOutcome::Stored), Err(StoreError::Conflict))), "{both:?}");
}

#[test]
fn tombstones_win_for_present_and_absent_ids_and_over_later_puts() {
    let bench = Bench::formatted(4);
    let engine = bench.open();
    bench.put(&engine, chunk(1, 100)).unwrap();
    bench.put(&engine, chunk(2, 400_000)).unwrap();
    bench.delete(&engine, vec![id(1), id(2), id(3)]);
    let check = |engine: &Engine| {
        for number in 1..=3 {
            assert_eq!(bench.get(engine, id(number)), Err(StoreError::Deleted));
            assert_eq!(bench.put(engine, chunk(number, 100)), Err(StoreError::Deleted));
            assert!(engine.stat(id(number)).is_none() && engine.is_deleted(id(number)));
        }
    };
    check(&engine);
    bench.crash(engine);
    check(&bench.open());
}

#[test]
fn the_inventory_is_in_id_order_by_pages_and_slots() {
    let bench = Bench::formatted(5);
    let engine = bench.open();
    for number in 0..50 {
        bench.put(&engine, chunk(number, 10)).unwrap();
    }
    bench.delete(&engine, vec![id(7)]);
    let mut expected: Vec<_> = (0..50).filter(|number| *number != 7).map(id).collect();
    expected.sort();
    let mut found = Vec::new();
    loop {
        let page = engine.inventory(found.last().copied(), PoolId(1), 0..=0xff_ffff, 7);
        if page.is_empty() {
            break;
        }
        found.extend(page.iter().map(|stat| stat.id));
    }
    assert_eq!(found, expected);
    let middle = expected[20].slot.get()..=expected[30].slot.get();
    let some: Vec<_> = engine.inventory(None, PoolId(1), middle, 100).iter().map(|stat| stat.id).collect();
    assert_eq!(some, expected[20..=30]);
    assert_eq!(engine.inventory(None, PoolId(2), 0..=0xff_ffff, 100), []);
}

fn entry(index: u64, term: u64) -> RaftEntry {
    RaftEntry { index: LogIndex(index), term: Term(term), data: payload((index * 100 + term) as u32, 200) }
}

fn write(entries: Vec<RaftEntry>) -> RaftWrite {
    RaftWrite { group: GroupId(3), peer: PeerId(9), entries, ..RaftWrite::default() }
}

#[test]
fn a_raft_log_appends_cuts_trims_and_resets() {
    let bench = Bench::formatted(6);
    let engine = bench.open();
    let run = |engine: &Engine, write: RaftWrite| bench.sim.block_on(engine.raft_write(write));
    let load = |engine: &Engine| bench.sim.block_on(engine.raft_load(GroupId(3)));
    assert_eq!(load(&engine), Ok(None));
    let first = RaftWrite {
        hard_state: Some(Bytes::from_static(b"term 1")),
        ..write((1..=10).map(|index| entry(index, 1)).collect())
    };
    run(&engine, first).unwrap();
    run(&engine, write(vec![entry(8, 2), entry(9, 2)])).unwrap();
    run(&engine, RaftWrite { trim_to: Some(LogIndex(4)), ..write(vec![]) }).unwrap();
    let log = load(&engine).unwrap().unwrap();
    assert_eq!((log.peer, log.base), (PeerId(9), (LogIndex(4), Term(1))));
    assert_eq!(log.hard_state.as_deref(), Some(b"term 1".as_slice()));
    let expected = vec![entry(5, 1), entry(6, 1), entry(7, 1), entry(8, 2), entry(9, 2)];
    assert_eq!(log.entries, expected);
    bench.crash(engine);

    let engine = bench.open();
    assert_eq!(load(&engine).unwrap().unwrap(), log);
    assert_eq!(engine.raft_groups(), [GroupId(3)]);
    for bad in [write(vec![entry(11, 2)]), write(vec![entry(4, 2)]), write(vec![entry(10, 2), entry(12, 2)])] {
        assert!(matches!(run(&engine, bad), Err(StoreError::Invalid(_))));
    }
    let stranger = RaftWrite { peer: PeerId(8), ..write(vec![entry(10, 2)]) };
    assert!(matches!(run(&engine, stranger), Err(StoreError::Invalid(_))));
    let reset = RaftWrite { reset: Some((LogIndex(100), Term(7))), ..write(vec![entry(101, 7)]) };
    run(&engine, reset).unwrap();
    bench.close(engine);

    let engine = bench.open();
    let log = load(&engine).unwrap().unwrap();
    assert_eq!((log.base, log.entries), ((LogIndex(100), Term(7)), vec![entry(101, 7)]));
    assert_eq!(log.hard_state.as_deref(), Some(b"term 1".as_slice()), "a reset keeps the vote");
    bench.sim.block_on(engine.raft_remove(GroupId(3))).unwrap();
    assert_eq!(engine.raft_groups(), []);
    bench.crash(engine);
    let engine = bench.open();
    assert_eq!(load(&engine), Ok(None));
    let fresh = RaftWrite { peer: PeerId(10), reset: Some(LOG_START), ..write(vec![entry(1, 8)]) };
    run(&engine, fresh).unwrap();
    assert_eq!(load(&engine).unwrap().unwrap().entries, [entry(1, 8)]);
}

#[test]
fn a_second_engine_a_second_format_and_a_foreign_directory_are_refused() {
    let bench = Bench::formatted(7);
    let engine = bench.open();
    assert_eq!(bench.try_open().err(), Some(StoreError::InUse));
    bench.close(engine);
    let env = bench.node.env();
    let format = |bench: &Bench| bench.sim.block_on(Engine::format(&env, bench.dyn_disk(), &IDENTITY, &small()));
    assert!(matches!(format(&bench), Err(StoreError::Foreign(_))));
    bench.open();

    let empty = Bench::new(8);
    assert_eq!(empty.try_open().err(), Some(StoreError::NotFormatted));
    let env = empty.node.env();
    empty.sim.block_on(async {
        base::env::replace_file(empty.disk.as_ref(), "holiday.jpg", Bytes::from_static(b"x")).await.unwrap();
        let refused = Engine::format(&env, empty.dyn_disk(), &IDENTITY, &small()).await;
        assert!(matches!(refused, Err(StoreError::Foreign(_))));
    });
    assert_eq!(empty.disk.files(), ["holiday.jpg"]);
}

#[test]
fn a_closed_engine_says_so_and_lets_go_of_the_disk() {
    let bench = Bench::formatted(9);
    let engine = bench.open();
    let other = engine.clone();
    bench.put(&engine, chunk(1, 500_000)).unwrap();
    bench.close(engine);
    assert_eq!(bench.put(&other, chunk(2, 10)), Err(StoreError::Closed));
    assert_eq!(other.state(), DiskState::Closed);
    let again = bench.open();
    assert_eq!(bench.get(&again, id(1)).unwrap(), payload(1, 500_000));
}

#[test]
fn an_idle_engine_writes_one_closing_batch_and_nothing_more() {
    let bench = Bench::formatted(10);
    let engine = bench.open();
    bench.put(&engine, chunk(1, 10)).unwrap();
    bench.sim.run_for(std::time::Duration::from_millis(100));
    let stats = engine.stats();
    assert_eq!((stats.batches, stats.closing_batches), (1, 1));
    bench.sim.run_for(std::time::Duration::from_secs(30));
    assert_eq!(engine.stats().journal_bytes, stats.journal_bytes);
    assert_eq!(engine.stats().flushes, stats.flushes);
}

#[test]
fn many_writers_share_rounds() {
    let bench = Bench::formatted(11);
    let engine = bench.open();
    bench.sim.block_on(async {
        let puts = (0..200).map(|number| engine.put(chunk(number, 1000)));
        for outcome in futures_util::future::join_all(puts).await {
            assert_eq!(outcome, Ok(PutOutcome::Stored));
        }
    });
    assert!(engine.stats().batches < 20, "{:?}", engine.stats());
}

#[test]
fn a_large_chunk_is_stored_gently_in_flushed_parts() {
    let bench = Bench::formatted(31);
    let engine = bench.open();
    let lens = [300_000, 1 << 20, (1 << 20) + 1, 1_900_000];
    for (number, len) in lens.into_iter().enumerate() {
        let flushes = engine.stats().flushes;
        let whole = chunk(number as u32, len);
        let stored = bench.sim.block_on(engine.put_gently(whole));
        assert_eq!(stored, Ok(PutOutcome::Stored));
        let parts = len.div_ceil(1 << 20) as u64;
        assert!(engine.stats().flushes - flushes > parts, "the parts' and the locator's");
    }
    bench.crash(engine);
    let engine = bench.open();
    for (number, len) in lens.into_iter().enumerate() {
        let whole = chunk(number as u32, len);
        assert!(bench.get(&engine, whole.id).unwrap() == whole.payload.concat());
    }
}
