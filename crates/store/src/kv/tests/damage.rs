//! Flipped bits, missing files, foreign files: never a panic, never a wrong row, always a name for what is lost.

use base::env::{Caching, Disk, OpenMode};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Machine, small};
use crate::kv::block::Cell;
use crate::kv::filter;
use crate::kv::run::{Files, Run};
use crate::kv::run_writer::RunWriter;
use crate::kv::{Change, Damage, Kv, KvError, KvOptions, KvRead, LsmKv, Row};

type Rows = BTreeMap<Bytes, Bytes>;

/// A store with runs in several levels, with rows, overwritten rows and deletions, closed.
fn filled(seed: u64) -> (Machine, Rows) {
    let machine = Machine::new(seed, small());
    let (kv, _) = machine.open();
    let mut rows = Rows::new();
    for round in 0_u64..9 {
        let mut changes = Vec::new();
        for n in 0..60 {
            let key = Bytes::from(format!("bucket/{:03}", (n * 7 + round * 13) % 150));
            if (n + round) % 5 == 0 {
                rows.remove(&key);
                changes.push(Change::Delete { key });
            } else {
                let value = Bytes::from(format!("value {n} of round {round}").repeat(1 + (n % 3) as usize));
                rows.insert(key.clone(), value.clone());
                changes.push(Change::Put { key, value });
            }
        }
        kv.commit(changes).unwrap();
        machine.sim.block_on(kv.flush()).unwrap();
    }
    machine.sim.block_on(kv.close());
    let levels = kv.stats().level_runs.iter().filter(|runs| **runs > 0).count();
    assert!(levels >= 2, "{:?}", kv.stats());
    (machine, rows)
}

/// Reads everything in every way; each answer is right or names its damage. Returns how many keys cannot be read.
fn check_reads(kv: &LsmKv, rows: &Rows) -> usize {
    let mut unreadable = 0;
    for n in 0..150 {
        let key = format!("bucket/{n:03}");
        match kv.get(key.as_bytes()) {
            Ok(value) => assert_eq!(value.as_ref(), rows.get(key.as_bytes()), "{key}"),
            Err(KvError::Damaged { first, last, .. }) => {
                assert!(first <= key && key.as_bytes() <= &last[..], "{key} is not in {first:?}..={last:?}");
                unreadable += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let mut from = Bytes::new();
    let mut seen = Vec::new();
    loop {
        match kv.scan(&from, b"z", 7) {
            Ok(found) => {
                let Some(last) = found.last() else { break };
                from = [&last.key[..], b"\0"].concat().into();
                seen.extend(found);
            }
            Err(KvError::Damaged { first, last, .. }) => {
                assert!(last >= from, "damage from {first:?} to {last:?} is behind {from:?}");
                // What comes before the damage can still be asked for.
                if first > from {
                    let before = kv.scan(&from, &first, usize::MAX).unwrap();
                    seen.extend(before);
                }
                from = [&last[..], b"\0"].concat().into();
            }
            Err(error) => panic!("{error}"),
        }
    }
    for Row { key, value } in seen {
        assert_eq!(rows.get(&key), Some(&value), "{key:?}");
    }
    unreadable
}

#[test]
fn a_flipped_bit_anywhere_is_harmless_or_named() {
    let (machine, rows) = filled(1);
    let files: Vec<String> = machine.disk.files();
    assert!(files.len() > 3, "{files:?}");
    let (mut named, mut harmless) = (0, 0);
    for (turn, file) in files.iter().enumerate() {
        let size = machine.disk.contents(file).unwrap().len() as u64;
        // Every third byte of runs, so some of every field; of the manifest, whose padding is large, every ninth.
        for offset in (0..size).step_by(if file.starts_with("kv-run") { 3 } else { 9 }) {
            let mask = 1 << ((offset + turn as u64) % 8);
            machine.disk.flip(file, offset, mask);
            let (kv, report) = machine.open_read_only().expect("one flip leaves one sound copy of the manifest");
            let unreadable = check_reads(&kv, &rows);
            let verification = machine.sim.block_on(kv.verify(None));
            let told = !verification.damages.is_empty() || !verification.harmless.is_empty();
            assert!(told, "{file} byte {offset}: not found by a whole reading");
            assert!(unreadable == 0 || !verification.damages.is_empty(), "{file} byte {offset}");
            if unreadable > 0 {
                named += 1
            } else {
                harmless += 1
            }
            if !file.starts_with("kv-run") {
                assert!(report.manifest_copy_damage.is_some() && unreadable == 0, "{file} byte {offset}");
            }
            machine.disk.flip(file, offset, mask);
        }
    }
    assert!(named > 300 && harmless > 30, "{named} named, {harmless} harmless");
    let (kv, _) = machine.open_read_only().unwrap();
    assert_eq!(check_reads(&kv, &rows), 0);
    let verification = machine.sim.block_on(kv.verify(None));
    assert_eq!((verification.damages, verification.harmless), (Vec::new(), Vec::new()));
}

#[test]
fn a_missing_run_is_damage_of_its_rows_alone() {
    let (machine, rows) = filled(2);
    let mut unreadable = 0;
    for file in machine.disk.files().into_iter().filter(|name| name.starts_with("kv-run")) {
        let contents = machine.disk.contents(&file).unwrap();
        machine.disk.remove(&file).unwrap();
        let (kv, report) = machine.open_read_only().unwrap();
        assert_eq!(report.damages.len(), 1, "{report:?}");
        assert!(report.damages[0].detail.contains(&file));
        // Newer versions elsewhere hide some of its rows.
        unreadable += check_reads(&kv, &rows);
        let verification = machine.sim.block_on(kv.verify(None));
        assert_eq!(verification.damages, report.damages);
        machine.disk.open(&file, OpenMode::CreateNew, Caching::Buffered).unwrap();
        machine.disk.overwrite(&file, 0, &contents);
    }
    assert!(unreadable >= 150, "{unreadable}");
}

#[test]
fn a_lost_manifest_is_an_error_that_says_what_to_do() {
    let (machine, _) = filled(3);
    let contents = machine.disk.contents("kv-manifest").unwrap();
    let half = contents.len() as u64 / 2;
    for offset in (0..half).step_by(97) {
        machine.disk.flip("kv-manifest", offset, 1);
        machine.disk.flip("kv-manifest", half + offset, 1);
        let error = machine.open_read_only().map(|_| ()).unwrap_err();
        assert!(matches!(error, KvError::Damaged { .. }));
        assert!(error.to_string().contains("refilled from its peers"), "{error}");
        machine.disk.flip("kv-manifest", offset, 1);
        machine.disk.flip("kv-manifest", half + offset, 1);
    }
    machine.disk.remove("kv-manifest").unwrap();
    let error = machine.open_read_only().map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
}

#[test]
fn a_damaged_copy_of_the_manifest_is_written_anew() {
    let (machine, rows) = filled(4);
    machine.disk.flip("kv-manifest", 100, 4);
    let (kv, report) = machine.open();
    assert!(report.manifest_copy_damage.is_some());
    machine.sim.block_on(kv.close());
    let (kv, report) = machine.open();
    assert_eq!(report.manifest_copy_damage, None);
    assert_eq!(check_reads(&kv, &rows), 0);
}

#[test]
fn compaction_leaves_damaged_runs_alone_and_writing_goes_on() {
    for seed in 0..20 {
        let (machine, mut rows) = filled(seed);
        let files: Vec<String> = machine.disk.files().into_iter().filter(|name| name.starts_with("kv-run")).collect();
        machine.disk.flip(&files[seed as usize % files.len()], 10 + seed, 0x80);
        let (kv, _) = machine.open();
        for round in 0..30 {
            let key = Bytes::from(format!("bucket/{:03}", round * 5));
            let value = Bytes::from(format!("new {round}"));
            rows.insert(key.clone(), value.clone());
            kv.commit(vec![Change::Put { key, value }]).unwrap();
            machine.sim.block_on(kv.flush()).unwrap();
        }
        machine.sim.run_for(std::time::Duration::from_secs(5));
        kv.clear_cache();
        check_reads(&kv, &rows);
        let verification = machine.sim.block_on(kv.verify(None));
        assert!(!verification.damages.is_empty(), "damage is not compacted away");
    }
}

#[test]
fn two_levels_swapped_or_a_stale_file_do_not_verify() {
    let (machine, rows) = filled(5);
    let files: Vec<String> = machine.disk.files().into_iter().filter(|name| name.starts_with("kv-run")).collect();
    let contents: Vec<Vec<u8>> = files.iter().map(|file| machine.disk.contents(file).unwrap()).collect();
    // A misdirected write: the start of one run lands on another.
    let len = contents[0].len().min(contents[1].len()).min(512);
    machine.disk.overwrite(&files[0], 0, &contents[1][..len]);
    let (kv, _) = machine.open_read_only().unwrap();
    check_reads(&kv, &rows);
    assert!(!machine.sim.block_on(kv.verify(None)).damages.is_empty());
}

#[test]
fn an_erased_range_is_sound_and_can_be_filled_again() {
    for seed in 0..12 {
        let (machine, mut rows) = filled(seed);
        let files: Vec<String> = machine.disk.files().into_iter().filter(|name| name.starts_with("kv-run")).collect();
        let file = &files[seed as usize % files.len()];
        if seed % 4 == 3 {
            machine.disk.remove(file).unwrap();
        } else {
            machine.disk.flip(file, 20 + 40 * seed, 1);
        }
        let (kv, _) = machine.open();
        let verification = machine.sim.block_on(kv.verify(None));
        assert!(!verification.damages.is_empty());
        let snapshot = kv.snapshot();
        kv.commit(vec![Change::Put { key: Bytes::from_static(b"bucket/0500"), value: Bytes::new() }]).unwrap();
        rows.insert(Bytes::from_static(b"bucket/0500"), Bytes::new());
        for Damage { first, last, .. } in &verification.damages {
            let behind = [&last[..], b"\0"].concat();
            if first < last {
                machine.sim.block_on(kv.flush()).unwrap();
                let files = machine.disk.files();
                assert!(machine.sim.block_on(kv.erase(first, last)).is_err(), "the last row stays hidden");
                assert_eq!(machine.disk.files(), files, "a failure leaves nothing behind");
            }
            machine.sim.block_on(kv.erase(first, &behind)).unwrap();
            rows.retain(|key, _| !(first..=last).contains(&key));
            assert_eq!(kv.scan(first, &behind, 10).unwrap(), []);
        }
        assert_eq!(check_reads(&kv, &rows), 0);
        assert_eq!(machine.sim.block_on(kv.verify(None)).damages, []);
        // What a snapshot read before, it still reads.
        assert!(snapshot.scan(b"", b"z", usize::MAX).is_err());
        drop((kv, snapshot));
        machine.node.crash();
        let (kv, report) = machine.open();
        assert_eq!(report.damages, []);
        assert_eq!(check_reads(&kv, &rows), 0);
        for round in 0..20 {
            let key = Bytes::from(format!("bucket/{:03}", round * 7));
            rows.insert(key.clone(), Bytes::from_static(b"anew"));
            kv.commit(vec![Change::Put { key, value: Bytes::from_static(b"anew") }]).unwrap();
            machine.sim.block_on(kv.flush()).unwrap();
        }
        machine.sim.run_for(std::time::Duration::from_secs(5));
        assert_eq!(kv.stats().compaction_trouble, None);
        assert_eq!(check_reads(&kv, &rows), 0);
    }
}

/// What hides rows on both sides of a border goes when neither side is kept, and not before.
#[test]
fn what_is_retained_is_sound() {
    for seed in 0..12 {
        let (machine, mut rows) = filled(seed);
        for file in machine.disk.files().into_iter().filter(|name| name.starts_with("kv-run")) {
            machine.disk.flip(&file, 20 + 40 * seed, 1);
        }
        let (kv, _) = machine.open();
        let damages = machine.sim.block_on(kv.verify(None)).damages;
        let border = Bytes::from_static(b"bucket/075");
        for kept in [(Bytes::new(), border.clone()), (border, Bytes::from_static(b"z"))] {
            let is_hurt = damages.iter().any(|damage| damage.first < kept.1 && kept.0 <= damage.last);
            let retained = machine.sim.block_on(kv.retain(vec![kept.clone()]));
            assert_eq!(retained.is_err(), is_hurt, "{damages:?}");
            if !is_hurt {
                rows.retain(|key, _| (&kept.0..&kept.1).contains(&key));
                break;
            }
        }
        let after = machine.sim.block_on(kv.verify(None)).damages;
        if rows.len() < 75 {
            assert_eq!(after, []);
            assert_eq!(check_reads(&kv, &rows), 0);
        }
        machine.sim.block_on(kv.retain(Vec::new())).unwrap();
        assert_eq!(check_reads(&kv, &Rows::new()), 0);
        assert_eq!(machine.sim.block_on(kv.verify(None)).damages, []);
    }
}

/// Rows of several owners lie in one file. What was damaged of one's hid another's as well, so that neither could be replaced
/// alone.
#[test]
fn what_is_damaged_of_one_owners_rows_stands_in_nobody_elses_way() {
    let files = |machine: &Machine| -> Vec<String> {
        machine.disk.files().into_iter().filter(|name| name.starts_with("kv-run")).collect()
    };
    let owners = [b"a", b"b", b"c"].map(|owner| Bytes::from_static(owner));
    let filled = |seed| {
        let machine = Machine::new(seed, KvOptions { owner_len: |_| 1, ..small() });
        let (kv, _) = machine.open();
        let rows =
            owners.iter().flat_map(|owner| (0..20).map(|n| [&owner[..], format!("/{n:02}").as_bytes()].concat()));
        let puts = rows.map(|key| Change::Put { key: key.into(), value: Bytes::from_static(&[7; 30]) });
        kv.commit(puts.collect()).unwrap();
        machine.sim.block_on(kv.flush()).unwrap();
        machine.sim.block_on(kv.close());
        machine
    };
    let machine = filled(1);
    let len = machine.disk.contents(&files(&machine)[0]).unwrap().len() as u64;
    let mut hurt_by_owner = [0; 3];
    for at in (0..len).step_by(3) {
        let machine = filled(1);
        machine.disk.flip(&files(&machine)[0], at, 1);
        let (kv, report) = machine.open();
        if !report.damages.is_empty() {
            // What describes the run as a whole.
            assert_eq!(kv.scan(b"a", b"d", 1000).map_err(|_| ()), Err(()));
            continue;
        }
        let damages = machine.sim.block_on(kv.verify(None)).damages;
        let Some(damage) = damages.first() else { continue };
        assert_eq!(damage.first[0], damage.last[0], "byte {at}: {damages:?}");
        let hurt = owners.iter().position(|owner| damage.first[..1] == owner[..]).unwrap();
        hurt_by_owner[hurt] += 1;
        for (number, owner) in owners.iter().enumerate() {
            let behind = [owner[0] + 1];
            assert_eq!(kv.scan(owner, &behind, 1000).is_err(), number == hurt, "byte {at}");
        }
        machine.sim.block_on(kv.erase(&owners[hurt], &[owners[hurt][0] + 1])).unwrap();
        assert_eq!(machine.sim.block_on(kv.verify(None)).damages, []);
        assert_eq!(kv.scan(b"a", b"d", 1000).unwrap().len(), 40, "byte {at}");
    }
    assert!(hurt_by_owner.iter().all(|count| *count > 50), "{hurt_by_owner:?}");
}

/// A value's own checksum is made at its commit and never again: a value that changed in memory is not laundered.
#[test]
fn a_value_that_changed_before_it_was_written_is_found() {
    let machine = Machine::new(6, small());
    let (kv, _) = machine.open();
    let files = Arc::new(Files::new(machine.disk.clone(), super::DISK_SEED, 0));
    let mut writer = RunWriter::create(&files, 7, 7, 4096, |_| 0).unwrap();
    let changed =
        Cell { crc: Cell::put(b"b", Bytes::from_static(b"right")).crc, value: Some(Bytes::from_static(b"wrong")) };
    writer.add(b"a", &Cell::put(b"a", Bytes::from_static(b"1")));
    writer.add(b"b", &changed);
    writer.add(b"c", &Cell::put(b"c", Bytes::from_static(b"3")));
    let run = Run::open(machine.sim.block_on(writer.finish()).unwrap(), &files);
    assert_eq!(run.get(b"a", filter::hash(b"a")).unwrap().unwrap().value.unwrap(), "1");
    let error = run.get(b"b", filter::hash(b"b")).unwrap_err();
    assert!(matches!(error, KvError::Damaged { first, last, .. } if first == "b" && last == "b"));
    drop(kv);
}
