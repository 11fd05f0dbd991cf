//! Full disks, and space that comes back.

use base::ids::{GroupId, LogIndex, PeerId, Term};
use base::sim::DiskModel;
use bytes::Bytes;
use std::time::Duration;
use store::{DiskState, Engine, EngineOptions, RaftEntry, RaftLog, RaftWrite, StoreError};

use crate::bench::{Bench, chunk, id, payload, small};

const MIB: u64 = 1 << 20;

fn limited(size_mib: u64) -> EngineOptions {
    EngineOptions { size_bytes_max: Some(size_mib * MIB), ..small() }
}

/// Puts chunks of `len` bytes until the disk is full. The numbers that were stored.
fn fill(bench: &Bench, engine: &Engine, from: u32, len: usize) -> Vec<u32> {
    let mut stored = Vec::new();
    for number in from.. {
        match bench.put(engine, chunk(number, len)) {
            Ok(_) => stored.push(number),
            Err(StoreError::Full) => return stored,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("the disk is finite")
}

#[test]
fn written_and_deleted_ten_times_over_the_space_comes_back() {
    let bench = Bench::formatted(1);
    let (engine, _) = bench.try_open_with(limited(40)).unwrap();
    let mut number = 0;
    for round in 0..10 {
        let mut numbers = Vec::new();
        for _ in 0..40 {
            let len = if number % 3 == 0 { 900_000 } else { 20_000 };
            bench.put(&engine, chunk(number, len)).unwrap_or_else(|error| panic!("round {round}: {error}"));
            numbers.push(number);
            number += 1;
        }
        bench.delete(&engine, numbers.into_iter().map(id).collect());
        bench.sim.run_for(Duration::from_secs(2));
    }
    let usage = engine.usage();
    assert!(usage.used_bytes < 12 * MIB, "{usage:?} {:?}", engine.stats());
    let on_disk: u64 = bench.dyn_disk().list().unwrap().iter().map(|entry| entry.size_bytes).sum();
    assert!(on_disk < 24 * MIB, "{on_disk}");
    assert_eq!(engine.state(), DiskState::Healthy);
}

/// Volumes are emptied, moved and used again under what is kept in memory: it goes with them, and never hides what stands
/// there now.
#[test]
fn what_is_kept_in_memory_follows_chunks_that_move_and_goes_with_their_volumes() {
    let bench = Bench::formatted(9);
    let (engine, _) = bench.try_open_with(EngineOptions { large_cache_bytes: 64 << 20, ..limited(40) }).unwrap();
    let len_of = |number: u32| if number.is_multiple_of(3) { 500_000 } else { 20_000 };
    let check = |kept: &[u32]| {
        for number in kept.iter().chain(kept).chain(kept) {
            assert_eq!(bench.get(&engine, id(*number)).unwrap(), payload(*number, len_of(*number)), "{number}");
        }
    };
    let mut kept: Vec<u32> = Vec::new();
    for round in 0..6 {
        let new: Vec<u32> = (round * 40..round * 40 + 40).collect();
        for number in &new {
            bench.put(&engine, chunk(*number, len_of(*number))).unwrap();
        }
        check(&new);
        check(&kept);
        // Every eighth stays, so that volumes have to be moved to be emptied.
        let (stays, goes): (Vec<u32>, Vec<u32>) =
            new.iter().chain(&kept).partition(|number| (*number + 8 - round).is_multiple_of(8));
        bench.delete(&engine, goes.into_iter().map(id).collect());
        bench.sim.run_for(Duration::from_secs(2));
        kept = stays;
        check(&kept);
    }
    let stats = engine.stats();
    assert!(stats.compacted_volumes > 10 && stats.cache_hits > 200 && stats.cache_misses > 200, "{stats:?}");
    bench.delete(&engine, kept.into_iter().map(id).collect());
    // What is written to is not emptied: go on to other volumes.
    for number in 1000..1200 {
        bench.put(&engine, chunk(number, if number < 1010 { 500_000 } else { 20_000 })).unwrap();
    }
    bench.sim.run_for(Duration::from_secs(5));
    let cached = engine.stats().cached_bytes;
    assert!(stats.cached_bytes > 0 && cached == 0, "{} before, {cached} now", stats.cached_bytes);
}

#[test]
fn a_full_disk_reads_deletes_and_votes_and_takes_writes_again_after_deletes() {
    for len in [30_000, 800_000] {
        let bench = Bench::formatted(2);
        let (engine, _) = bench.try_open_with(limited(32)).unwrap();
        let stored = fill(&bench, &engine, 0, len);
        assert!(stored.len() * len > 20 << 20, "{}", stored.len());
        assert_eq!(engine.state(), DiskState::Full);
        assert!(!engine.usage().placement_open);
        for number in &stored {
            assert_eq!(bench.get(&engine, id(*number)).unwrap(), payload(*number, len));
        }
        let write = RaftWrite {
            group: GroupId(1),
            peer: PeerId(1),
            hard_state: Some(Bytes::from_static(b"vote")),
            entries: vec![RaftEntry { index: LogIndex(1), term: Term(1), data: payload(1, 5000) }],
            ..RaftWrite::default()
        };
        bench.sim.block_on(engine.raft_write(write)).unwrap();
        // Every second one: compaction has to move the others to win anything.
        let (gone, kept): (Vec<u32>, Vec<u32>) = stored.iter().partition(|number| *number % 2 == 0);
        bench.delete(&engine, gone.iter().copied().map(id).collect());
        bench.sim.run_for(Duration::from_secs(5));
        assert_eq!(engine.state(), DiskState::Healthy, "{:?}", engine.usage());
        let more = fill(&bench, &engine, 100_000, len);
        assert!(more.len() * 3 > gone.len(), "{} of {}", more.len(), gone.len());
        bench.crash(engine);
        let (engine, report) = bench.try_open_with(limited(32)).unwrap();
        assert_eq!(report.damaged, []);
        for number in kept.iter().chain(&more) {
            assert_eq!(bench.get(&engine, id(*number)).unwrap(), payload(*number, len));
        }
        assert!(engine.stats().damaged == 0);
    }
}

#[test]
fn a_file_system_without_room_is_no_broken_disk() {
    let bench = Bench::formatted(3);
    let (engine, _) = bench.try_open().unwrap();
    let stored: Vec<u32> = (0..20).collect();
    for number in &stored {
        bench.put(&engine, chunk(*number, 30_000)).unwrap();
    }
    // Somebody else took all the room.
    let on_disk: u64 = bench.dyn_disk().list().unwrap().iter().map(|entry| entry.size_bytes).sum();
    bench.disk.set_capacity(on_disk + 8192);
    bench.sim.run_for(Duration::from_secs(5));
    for number in 1000..1100 {
        match bench.put(&engine, chunk(number, 60_000)) {
            Ok(_) | Err(StoreError::Full) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(engine.state(), DiskState::Full);
    for number in &stored {
        assert_eq!(bench.get(&engine, id(*number)).unwrap(), payload(*number, 30_000));
    }
    bench.disk.set_capacity(1 << 30);
    bench.sim.run_for(Duration::from_secs(5));
    assert_eq!(engine.state(), DiskState::Healthy);
    bench.put(&engine, chunk(5000, 500_000)).unwrap();
    bench.crash(engine);
    let (engine, report) = bench.try_open().unwrap();
    assert_eq!(report.damaged, []);
    assert_eq!(bench.get(&engine, id(5000)).unwrap(), payload(5000, 500_000));
    for number in &stored {
        assert_eq!(bench.get(&engine, id(*number)).unwrap(), payload(*number, 30_000));
    }
}

/// They only make the next start faster.
#[test]
fn a_file_system_without_room_gets_the_summaries_back() {
    let bench = Bench::formatted(5);
    let (engine, _) = bench.try_open().unwrap();
    let stored: Vec<u32> = (0..200).collect();
    for number in &stored {
        bench.put(&engine, chunk(*number, 60_000)).unwrap();
    }
    bench.sim.run_for(Duration::from_secs(5));
    assert!(!bench.files("summary-").is_empty());
    let on_disk: u64 = bench.dyn_disk().list().unwrap().iter().map(|entry| entry.size_bytes).sum();
    bench.disk.set_capacity(on_disk);
    // Tombstones go beyond what is kept back from chunks, until the file system refuses.
    let more = (0..1000).map(|n| (1000 + n * 1000..2000 + n * 1000).map(id).collect());
    let refused = more.map(|ids| bench.sim.block_on(engine.delete(ids))).find_map(Result::err);
    assert_eq!(refused, Some(StoreError::Full));
    bench.sim.run_for(Duration::from_secs(5));
    assert_eq!(bench.files("summary-"), [""; 0]);
    bench.disk.set_capacity(1 << 30);
    bench.crash(engine);
    let (engine, report) = bench.try_open().unwrap();
    assert_eq!(report.damaged, []);
    for number in &stored {
        assert_eq!(bench.get(&engine, id(*number)).unwrap(), payload(*number, 60_000));
    }
}

/// Files that wait for new volumes must not keep a full file system full.
#[test]
fn deletes_open_a_disk_that_the_file_system_called_full() {
    let bench = Bench::formatted(4);
    let (engine, _) = bench.try_open().unwrap();
    let stored: Vec<u32> = (0..400).collect();
    for number in &stored {
        bench.put(&engine, chunk(*number, 500_000)).unwrap();
    }
    let on_disk: u64 = bench.dyn_disk().list().unwrap().iter().map(|entry| entry.size_bytes).sum();
    bench.disk.set_capacity(on_disk + 8192);
    bench.sim.run_for(Duration::from_secs(5));
    let more: Vec<u32> = (1000..1200).filter(|number| bench.put(&engine, chunk(*number, 500_000)).is_ok()).collect();
    assert_eq!(engine.state(), DiskState::Full);
    bench.delete(&engine, stored.iter().chain(&more).copied().map(id).collect());
    bench.sim.run_for(Duration::from_secs(30));
    assert_eq!(engine.state(), DiskState::Healthy, "{:?} {:?}", engine.usage(), engine.stats());
    bench.put(&engine, chunk(5000, 500_000)).unwrap();
    assert_eq!(bench.get(&engine, id(5000)).unwrap(), payload(5000, 500_000));
}

#[test]
fn an_empty_disk_is_small_and_a_recycled_volume_shows_nothing_of_its_past() {
    let bench = Bench::formatted(4);
    let (engine, _) = bench.try_open_with(EngineOptions::default()).unwrap();
    bench.sim.run_for(Duration::from_secs(10));
    let on_disk: u64 = bench.dyn_disk().list().unwrap().iter().map(|entry| entry.size_bytes).sum();
    assert!(on_disk < 20 * MIB, "{on_disk}");
    bench.close(engine);

    let engine = bench.open();
    let rounds = 12;
    for round in 0..rounds {
        for number in round * 100..round * 100 + 40 {
            bench.put(&engine, chunk(number, 60_000)).unwrap();
        }
        bench.delete(&engine, (round * 100..round * 100 + 40).map(id).collect());
        bench.sim.run_for(Duration::from_secs(2));
    }
    let stats = engine.stats();
    assert!(stats.compacted_volumes > 5, "{stats:?}");
    bench.put(&engine, chunk(99_999, 1000)).unwrap();
    bench.crash(engine);
    let (engine, report) = bench.try_open().unwrap();
    assert_eq!(report.damaged, [], "stale batches of an earlier incarnation are nothing");
    assert_eq!(engine.stats().chunks, 1);
    for number in 0..rounds * 100 {
        assert!(matches!(bench.get(&engine, id(number)), Err(StoreError::Deleted | StoreError::NotFound)));
    }
}

#[test]
fn many_restarts_do_not_pile_up_volumes() {
    let bench = Bench::formatted(5);
    for life in 0..40 {
        let engine = bench.open();
        bench.put(&engine, chunk(life, 1000)).unwrap();
        bench.sim.run_for(Duration::from_secs(3));
        bench.close(engine);
    }
    let engine = bench.open();
    bench.sim.run_for(Duration::from_secs(3));
    assert!(engine.stats().volumes < 20, "{:?}", engine.stats());
    for life in 0..40 {
        assert_eq!(bench.get(&engine, id(life)).unwrap(), payload(life, 1000));
    }
}

#[test]
fn a_cold_log_does_not_pin_a_dead_volume() {
    let bench = Bench::formatted(6);
    let engine = bench.open();
    let entry = |index| RaftEntry { index: LogIndex(index), term: Term(1), data: payload(index as u32, 300) };
    let write = RaftWrite {
        group: GroupId(1),
        peer: PeerId(1),
        hard_state: Some(Bytes::from_static(b"vote")),
        entries: (1..=10).map(entry).collect(),
        ..RaftWrite::default()
    };
    bench.sim.block_on(engine.raft_write(write)).unwrap();
    let before = bench.sim.block_on(engine.raft_load(GroupId(1))).unwrap();
    let first = bench.files("journal").remove(0);
    for number in 0..120 {
        bench.put(&engine, chunk(number, 50_000)).unwrap();
        bench.delete(&engine, vec![id(number)]);
    }
    bench.sim.run_for(Duration::from_secs(5));
    assert!(!bench.files("journal").contains(&first), "{:?}", bench.disk.files());
    assert_eq!(bench.sim.block_on(engine.raft_load(GroupId(1))).unwrap(), before);
    bench.crash(engine);
    let engine = bench.open();
    assert_eq!(bench.sim.block_on(engine.raft_load(GroupId(1))).unwrap(), before);
}

/// A group's log moves on: the volume with the base of a later peer goes, that with the earlier peer's log stays. The base
/// and the vote are written anew, and the earlier peer, removed or not, does not come back.
#[test]
fn the_log_of_a_later_peer_outlives_the_volume_that_it_began_in() {
    for removed in [false, true] {
        let bench = Bench::formatted(13);
        let engine = bench.open();
        let entry = |index| RaftEntry { index: LogIndex(index), term: Term(3), data: payload(index as u32, 300) };
        let of = |group, peer, base, entries: Vec<RaftEntry>, hard_state: &'static [u8]| RaftWrite {
            group: GroupId(group),
            peer: PeerId(peer),
            hard_state: Some(Bytes::from_static(hard_state)),
            reset: (base > 0).then_some((LogIndex(base), Term(3))),
            entries,
            ..RaftWrite::default()
        };
        let write = |write: RaftWrite| bench.sim.block_on(engine.raft_write(write)).unwrap();
        write(of(1, 1, 0, (1..=3).map(entry).collect(), b"earlier"));
        if removed {
            bench.sim.block_on(engine.raft_remove(GroupId(1))).unwrap();
        }
        // Volumes that stay, and then one that goes.
        let stay = 0..400;
        for number in stay.clone() {
            bench.put(&engine, chunk(number, 30_000)).unwrap();
        }
        write(of(1, 2, 7, Vec::new(), b"later"));
        write(of(2, 2, 0, Vec::new(), b"from the beginning"));
        let began_in = bench.files("journal").last().unwrap().clone();
        for number in 1000..1400 {
            bench.put(&engine, chunk(number, 30_000)).unwrap();
            bench.delete(&engine, vec![id(number)]);
        }
        bench.sim.run_for(Duration::from_secs(5));
        assert!(!bench.files("journal").contains(&began_in), "{:?}", bench.disk.files());
        let load = |engine: &Engine, group| bench.sim.block_on(engine.raft_load(GroupId(group))).unwrap().unwrap();
        let before = [load(&engine, 1), load(&engine, 2)];
        assert_eq!((before[0].peer, before[0].base), (PeerId(2), (LogIndex(7), Term(3))));
        bench.crash(engine);
        let (engine, report) = bench.try_open().unwrap();
        assert_eq!((report.damaged, report.raft_damaged), (vec![], vec![]));
        assert_eq!([load(&engine, 1), load(&engine, 2)], before);
        let next = RaftWrite { group: GroupId(1), peer: PeerId(2), entries: vec![entry(8)], ..RaftWrite::default() };
        bench.sim.block_on(engine.raft_write(next)).unwrap();
        bench.crash(engine);
        let engine = bench.open();
        let after = RaftLog { entries: vec![entry(8)], ..before[0].clone() };
        assert_eq!((load(&engine, 1), engine.stats().chunks), (after, stay.len() as u64));
    }
}

/// What is never deleted keeps the oldest volume for ever; the tombstones of what compaction has moved stayed with it.
#[test]
fn tombstones_of_moved_chunks_go_although_an_older_volume_stays() {
    let bench = Bench::formatted(12);
    let engine = bench.open();
    for number in 0..400 {
        bench.put(&engine, chunk(number, 30_000)).unwrap();
    }
    // One in eight is moved while the others go, and goes then.
    for round in 1..=10 {
        let numbers = round * 1000..round * 1000 + 400;
        for number in numbers.clone() {
            bench.put(&engine, chunk(number, 30_000)).unwrap();
        }
        let (moved, others): (Vec<u32>, Vec<u32>) = numbers.partition(|number| number.is_multiple_of(8));
        bench.delete(&engine, others.into_iter().map(id).collect());
        bench.sim.run_for(Duration::from_secs(5));
        bench.delete(&engine, moved.into_iter().map(id).collect());
        bench.sim.run_for(Duration::from_secs(5));
    }
    assert!(engine.stats().compacted_bytes > 100 * 30_000, "{:?}", engine.stats());
    assert!(engine.stats().tombstones < 150, "{:?}", engine.stats());
    bench.crash(engine);
    let engine = bench.open();
    assert_eq!(engine.stats().chunks, 400);
}

/// Under load a log is never the same for as long as rewriting it takes. Its vote, which is seldom written, kept the first
/// volume for ever, and with it all tombstones of the disk.
#[test]
fn a_busy_log_does_not_pin_a_dead_volume() {
    let bench = Bench::formatted(11);
    let engine = bench.open();
    let write = |index: u64, hard_state: Option<&'static [u8]>| RaftWrite {
        group: GroupId(1),
        peer: PeerId(1),
        hard_state: hard_state.map(Bytes::from_static),
        entries: vec![RaftEntry { index: LogIndex(index), term: Term(1), data: payload(index as u32, 300) }],
        trim_to: index.is_multiple_of(64).then(|| LogIndex(index - 32)),
        ..RaftWrite::default()
    };
    bench.sim.block_on(engine.raft_write(write(1, Some(b"vote")))).unwrap();
    let first = bench.files("journal").remove(0);
    let (busy, env) = (engine.clone(), bench.node.env());
    let until = env.now() + std::time::Duration::from_secs(60);
    bench.sim.block_on(async {
        let log = async {
            let mut index = 1;
            while env.now() < until {
                index += 1;
                busy.raft_write(write(index, None)).await.unwrap();
            }
        };
        let chunks = async {
            for number in 0..400 {
                engine.put(chunk(number, 30_000)).await.unwrap();
                engine.delete(vec![id(number)]).await.unwrap();
            }
        };
        futures_util::future::join(log, chunks).await
    });
    assert!(!bench.files("journal").contains(&first), "{:?}", bench.disk.files());
    assert!(engine.stats().tombstones < 150, "{:?}", engine.stats());
    let before = bench.sim.block_on(engine.raft_load(GroupId(1))).unwrap();
    assert_eq!(before.as_ref().and_then(|log| log.hard_state.clone()), Some(Bytes::from_static(b"vote")));
    bench.crash(engine);
    let engine = bench.open();
    assert_eq!(bench.sim.block_on(engine.raft_load(GroupId(1))).unwrap(), before);
}

#[test]
fn tombstones_go_once_no_volume_holds_their_chunk() {
    let bench = Bench::formatted(7);
    let engine = bench.open();
    for number in 0..400 {
        bench.put(&engine, chunk(number, 30_000)).unwrap();
        bench.delete(&engine, vec![id(number)]);
    }
    bench.sim.run_for(Duration::from_secs(5));
    assert!(engine.stats().tombstones < 150, "{:?}", engine.stats());
}

/// A bulk volume is full, sealed, and nothing in it is alive yet: its payloads are written, their locators still wait
/// for a flush. It must not be taken for an empty one.
#[test]
fn a_volume_whose_locators_are_on_their_way_is_not_recycled() {
    let bench = Bench::formatted(8);
    let engine = bench.open();
    bench.put(&engine, chunk(0, 400_000)).unwrap();
    bench.delete(&engine, vec![id(0)]);
    let slow = DiskModel { flush_nanos: (50_000_000, 60_000_000), ..DiskModel::default() };
    bench.disk.set_model(slow);
    bench.sim.block_on(async {
        let puts = (1..=8).map(|number| engine.put(chunk(number, 400_000)));
        let deletes = async {
            for number in 100..110 {
                engine.delete(vec![id(number)]).await.unwrap();
            }
        };
        let (stored, ()) = futures_util::future::join(futures_util::future::join_all(puts), deletes).await;
        assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    });
    for number in 1..=8 {
        assert_eq!(bench.get(&engine, id(number)).unwrap(), payload(number, 400_000));
    }
}
