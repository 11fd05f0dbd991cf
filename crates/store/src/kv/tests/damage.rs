//! Flipped bits, missing files, foreign files: never a panic, never a wrong row, always a name for what is lost.

use bytes::Bytes;
use std::collections::BTreeMap;

use super::{Machine, small};
use crate::kv::{Change, Kv, KvError, KvRead, LsmKv, Row};

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
fn every_flipped_byte_is_harmless_or_named() {
    let (machine, rows) = filled(1);
    let files: Vec<String> = machine.disk.files();
    assert!(files.len() > 3, "{files:?}");
    let (mut named, mut harmless) = (0, 0);
    for (turn, file) in files.iter().enumerate() {
        let size = machine.disk.contents(file).unwrap().len() as u64;
        // Every byte of runs; of the manifest, whose padding is large, every seventh.
        for offset in (0..size).step_by(if file.starts_with("kv-run") { 1 } else { 7 }) {
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
    assert!(named > 1000 && harmless > 100, "{named} named, {harmless} harmless");
    let (kv, _) = machine.open_read_only().unwrap();
    assert_eq!(check_reads(&kv, &rows), 0);
    let verification = machine.sim.block_on(kv.verify(None));
    assert_eq!((verification.damages, verification.harmless), (Vec::new(), Vec::new()));
}
