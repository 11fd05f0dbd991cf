//! Disks that fail, fill up or lose power at a bad moment, and callers that give up.

use base::env::{Caching, Disk, OpenMode};
use base::sim::Fault;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

use super::{DISK_SEED, Machine, small};
use crate::kv::{Change, Kv, KvError, KvOptions, KvRead, LsmKv};

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Change {
    Change::Put { key: key.into(), value: value.into() }
}

fn fill(kv: &LsmKv, round: u64, rows: u64) {
    let row = |n: u64| put(format!("key {:05}", (n * 31 + round * 17) % 1000), format!("{round} {n} ").repeat(8));
    kv.commit((0..rows).map(row).collect()).unwrap();
}

fn flush(machine: &Machine, kv: &LsmKv) -> Result<(), KvError> {
    machine.sim.block_on(kv.flush())
}

fn settle(machine: &Machine) {
    machine.sim.run_for(Duration::from_secs(5));
}

fn run_files(machine: &Machine) -> Vec<String> {
    machine.disk.files().into_iter().filter(|name| name.starts_with("kv-run")).collect()
}

#[test]
fn a_failed_write_or_flush_is_final_and_reads_go_on() {
    for (fault, nth) in [(Fault::FlushError, 1), (Fault::FlushError, 2), (Fault::WriteError, 1), (Fault::WriteError, 2)]
    {
        let machine = Machine::new(1, small());
        let (kv, _) = machine.open();
        kv.commit(vec![put("a", "1")]).unwrap();
        flush(&machine, &kv).unwrap();
        kv.commit(vec![put("a", "2"), put("b", "2")]).unwrap();
        machine.disk.inject(fault, nth);
        assert!(matches!(flush(&machine, &kv), Err(KvError::Io(_))), "{fault:?}");
        assert!(matches!(flush(&machine, &kv), Err(KvError::Io(_))), "a second try does not succeed");
        assert!(matches!(kv.commit(vec![put("c", "3")]), Err(KvError::Io(_))));
        assert_eq!(kv.get(b"a").unwrap().unwrap(), "2");
        assert_eq!(kv.scan(b"", b"z", 10).unwrap().len(), 2);
        drop(kv);
        machine.node.crash();
        let (kv, report) = machine.open();
        assert_eq!(report.damages, []);
        // The transaction may have become durable although its flush failed, but only as a whole.
        let a = kv.get(b"a").unwrap().unwrap();
        assert!(a == "1" && kv.get(b"b").unwrap().is_none() || a == "2" && kv.get(b"b").unwrap().is_some());
    }
}

#[test]
fn a_full_disk_is_not_final() {
    let machine = Machine::new(1, small());
    let (kv, _) = machine.open();
    fill(&kv, 0, 50);
    flush(&machine, &kv).unwrap();
    let files = machine.disk.files();
    machine.disk.set_capacity(32 << 10);
    fill(&kv, 1, 1000);
    for _ in 0..3 {
        let error = flush(&machine, &kv).unwrap_err();
        assert!(matches!(error, KvError::Io(_)), "{error}");
        assert_eq!(machine.disk.files(), files, "nothing stays of a flush that did not fit");
    }
    kv.commit(vec![put("later", "x")]).unwrap();
    machine.disk.set_capacity(1 << 30);
    flush(&machine, &kv).unwrap();
    let before = kv.scan(b"", b"z", usize::MAX).unwrap();
    drop(kv);
    machine.node.crash();
    let (kv, _) = machine.open();
    assert_eq!(kv.scan(b"", b"z", usize::MAX).unwrap(), before);
    assert_eq!(kv.get(b"later").unwrap().unwrap(), "x");
}

#[test]
fn compaction_on_a_full_disk_gives_up_and_goes_on_when_there_is_room() {
    let machine = Machine::new(1, small());
    let (kv, _) = machine.open();
    fill(&kv, 0, 500);
    flush(&machine, &kv).unwrap();
    machine.disk.set_capacity(80 << 10);
    for round in 1..5 {
        fill(&kv, round, 5);
        flush(&machine, &kv).unwrap();
        settle(&machine);
    }
    // The merge of level 0 does not fit beside its inputs.
    let stats = kv.stats();
    assert!(stats.compaction_trouble.is_some(), "{stats:?}");
    machine.disk.set_capacity(1 << 30);
    fill(&kv, 5, 5);
    flush(&machine, &kv).unwrap();
    settle(&machine);
    let stats = kv.stats();
    assert!(stats.compaction_trouble.is_none() && stats.compactions > 0, "{stats:?}");
    assert_eq!(run_files(&machine).len(), stats.level_runs.iter().sum::<usize>(), "no file is left over");
}

#[test]
fn flushes_called_together_are_one() {
    let machine = Machine::new(1, small());
    let (kv, _) = machine.open();
    fill(&kv, 0, 100);
    let flushes: Vec<_> = (0..10).map(|_| kv.flush()).collect();
    machine.sim.block_on(async {
        for flush in flushes {
            flush.await.unwrap();
        }
    });
    assert_eq!(kv.stats().flushes, 1);
    let writes = machine.disk.counts().writes;
    flush(&machine, &kv).unwrap();
    assert_eq!(machine.disk.counts().writes, writes, "nothing to flush writes nothing");
}

#[test]
fn a_caller_who_gives_up_leaves_no_flush_half_done() {
    for nanos in (0..4_000_000).step_by(250_000) {
        let machine = Machine::new(nanos, small());
        let (kv, _) = machine.open();
        fill(&kv, 0, 100);
        let env = machine.env();
        let mut flush_future = kv.flush();
        machine.sim.block_on(env.timeout(Duration::from_nanos(nanos), &mut flush_future));
        drop(flush_future);
        fill(&kv, 1, 100);
        flush(&machine, &kv).unwrap();
        let before = kv.scan(b"", b"z", usize::MAX).unwrap();
        drop(kv);
        machine.node.crash();
        let (kv, _) = machine.open();
        assert_eq!(kv.scan(b"", b"z", usize::MAX).unwrap(), before);
    }
}

#[test]
fn files_of_others_stay_and_orphans_go() {
    let machine = Machine::new(1, small());
    let (kv, report) = machine.open();
    assert!(report.created);
    fill(&kv, 0, 100);
    flush(&machine, &kv).unwrap();
    machine.sim.block_on(kv.close());
    drop(kv);
    for name in ["journal-1", "kv-run-00000000000000ff", "kv-run-what", "kv-manifest.new", "kvx"] {
        machine.disk.open(name, OpenMode::CreateNew, Caching::Buffered).unwrap();
    }
    let before = machine.disk.counts();
    let (reader, report) = machine.open_read_only().unwrap();
    assert_eq!(report.orphans, ["kv-manifest.new", "kv-run-00000000000000ff", "kv-run-what"]);
    assert!(matches!(reader.commit(vec![put("a", "1")]), Err(KvError::Io(_))));
    assert!(matches!(flush(&machine, &reader), Err(KvError::Io(_))));
    let after = machine.disk.counts();
    assert_eq!((before.writes, before.directory_flushes), (after.writes, after.directory_flushes));
    let (kv, report) = machine.open();
    assert!(!report.created);
    assert_eq!(report.transactions, 1);
    let files = machine.disk.files();
    assert!(files.contains(&"journal-1".to_owned()) && files.contains(&"kvx".to_owned()));
    assert_eq!(run_files(&machine).len(), report.runs);
    // The id of a file that was once there is not used again.
    fill(&kv, 1, 10);
    flush(&machine, &kv).unwrap();
    assert!(run_files(&machine).contains(&"kv-run-0000000000000100".to_owned()), "{:?}", machine.disk.files());
}

#[test]
fn replaced_runs_stay_for_snapshots_and_go_with_them() {
    let machine = Machine::new(1, small());
    let (kv, _) = machine.open();
    fill(&kv, 0, 300);
    flush(&machine, &kv).unwrap();
    let snapshot = kv.snapshot();
    let before = snapshot.scan(b"", b"z", usize::MAX).unwrap();
    for round in 1..30 {
        fill(&kv, round, 100);
        flush(&machine, &kv).unwrap();
    }
    settle(&machine);
    let in_use: usize = kv.stats().level_runs.iter().sum();
    assert!(run_files(&machine).len() > in_use);
    let disk_bytes = kv.disk_bytes();
    kv.clear_cache();
    assert_eq!(snapshot.scan(b"", b"z", usize::MAX).unwrap(), before);
    drop(snapshot);
    assert_eq!(run_files(&machine).len(), in_use);
    assert!(kv.disk_bytes() < disk_bytes);
    let sizes: u64 = machine.disk.list().unwrap().iter().map(|entry| entry.size_bytes).sum();
    assert_eq!(kv.disk_bytes(), sizes, "the account agrees with the disk");
}

#[test]
fn compaction_reaches_all_levels_and_drops_deletions_at_the_bottom() {
    let machine = Machine::new(1, small());
    let (kv, _) = machine.open();
    for round in 0..120 {
        fill(&kv, round, 60);
        flush(&machine, &kv).unwrap();
    }
    settle(&machine);
    let stats = kv.stats();
    assert!(stats.level_runs[1] > 0 && stats.level_runs[2] > 0 && stats.level_runs[3] > 0, "{stats:?}");
    assert!(stats.level_runs[0] < small().l0_runs_max, "{stats:?}");
    let written = stats.compaction_bytes_written as f64 / stats.flush_bytes as f64;
    assert!(written < 12.0, "compaction wrote {written} bytes a byte flushed");
    assert_eq!(kv.scan(b"", b"z", usize::MAX).unwrap().len(), 1000);
    let full = kv.disk_bytes();
    for n in 0..1000 {
        kv.commit(vec![Change::Delete { key: format!("key {n:05}").into() }]).unwrap();
        if n % 50 == 49 {
            flush(&machine, &kv).unwrap();
        }
    }
    // Rewriting all levels takes some further changes elsewhere.
    for round in 0..40 {
        kv.commit((0..200).map(|n| put(format!("key {n:05}"), format!("{round} {n}"))).collect()).unwrap();
        kv.commit((0..200).map(|n| Change::Delete { key: format!("key {n:05}").into() }).collect()).unwrap();
        flush(&machine, &kv).unwrap();
    }
    settle(&machine);
    assert_eq!(kv.scan(b"", b"z", 10).unwrap(), []);
    assert!(kv.disk_bytes() < full / 2, "{} of {full} bytes are left: {:?}", kv.disk_bytes(), kv.stats());
}

#[test]
fn an_empty_store_is_small() {
    let machine = Machine::new(1, KvOptions::default());
    let (kv, _) = machine.open();
    assert!(kv.disk_bytes() <= 8 << 10);
    assert_eq!(kv.disk_bytes(), machine.disk.contents("kv-manifest").unwrap().len() as u64);
}

#[test]
fn many_threads_see_whole_transactions() {
    let machine = Machine::new(1, small());
    let (kv, _) = machine.open();
    let keys = || (0..20).map(|n| Bytes::from(format!("key {n:02}")));
    let write = |kv: &Arc<LsmKv>, turn: u64| kv.commit(keys().map(|key| put(key, turn.to_string())).collect()).unwrap();
    write(&kv, 0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = 0;
                while last < 3000 {
                    let rows = kv.scan(b"", b"z", 100).unwrap();
                    assert_eq!(rows.len(), 20);
                    assert!(rows.iter().all(|row| row.value == rows[0].value), "{rows:?}");
                    let turn: u64 = std::str::from_utf8(&rows[0].value).unwrap().parse().unwrap();
                    assert!(turn >= last, "a later scan sees at least as much");
                    assert!(kv.get(b"key 07").unwrap().is_some());
                    last = turn;
                }
            });
        }
        for turn in 1..=3000 {
            write(&kv, turn);
            if turn % 300 == 0 {
                flush(&machine, &kv).unwrap();
            }
        }
    });
}

#[test]
fn a_closed_store_can_be_opened_again_in_the_same_process() {
    let machine = Machine::new(1, small());
    for round in 0..20 {
        let (kv, report) = machine.open();
        assert_eq!(report.orphans, Vec::<String>::new());
        assert_eq!(report.transactions, round);
        fill(&kv, round, 200);
        flush(&machine, &kv).unwrap();
        machine.sim.block_on(kv.close());
        assert!(kv.commit(vec![put("a", "1")]).is_err());
    }
}

#[test]
fn another_disks_files_are_refused() {
    let machine = Machine::new(1, small());
    let (kv, _) = machine.open();
    machine.sim.block_on(kv.close());
    let (env, disk) = (machine.env(), machine.disk.clone());
    let opened = machine.sim.block_on(LsmKv::open(&env, disk, DISK_SEED + 1, small()));
    let error = opened.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("belongs to disk"), "{error}");
}
