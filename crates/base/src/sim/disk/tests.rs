//! What simulated disks promise, and that they take what they do not promise.

use bytes::Bytes;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::env::replace_file;
use crate::sim::{Crashed, Sim};

const NODE: NodeId = NodeId(1);
const SEEDS: u64 = 200;

fn block(byte: u8, count: usize) -> Vec<Bytes> {
    vec![Bytes::from(vec![byte; 4096 * count])]
}

fn create(disk: &SimDisk, name: &str) -> Arc<dyn File> {
    let file = disk.open(name, OpenMode::CreateNew, Caching::Direct).unwrap();
    disk.flush_directory().unwrap();
    file
}

fn open(disk: &SimDisk, name: &str) -> Arc<dyn File> {
    disk.open(name, OpenMode::Existing, Caching::Direct).unwrap()
}

/// A simulation with one disk and on it a flushed file `f` of four blocks of ones.
fn with_file(seed: u64) -> (Sim, Arc<SimDisk>, Arc<dyn File>) {
    let sim = Sim::new(seed);
    let disk = sim.disk(NODE, "d");
    let file = create(&disk, "f");
    sim.block_on(file.write_at(0, block(1, 4), Flush::Yes)).unwrap();
    (sim, disk, file)
}

fn blocks_of(disk: &SimDisk, name: &str) -> Vec<u8> {
    disk.contents(name).unwrap().chunks(4096).map(|block| block[0]).collect()
}

#[test]
fn what_was_flushed_survives_and_what_was_not_may_go_in_any_part() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let (sim, disk, file) = with_file(seed);
        sim.block_on(file.write_at(8192, block(2, 2), Flush::No)).unwrap();
        assert_eq!(blocks_of(&disk, "f"), [1, 1, 2, 2], "visible at once");
        sim.crash(NODE);
        let contents = disk.contents("f").unwrap();
        assert_eq!(contents[..8192], [1; 8192]);
        outcomes.insert(blocks_of(&disk, "f"));
        assert!(open(&disk, "f").size_bytes().is_ok());
        assert!(file.size_bytes().is_err(), "what was open before the crash is of no use");
        assert!(sim.block_on(file.flush()).is_err());
    }
    let expected = [[1, 1, 1, 1], [1, 1, 1, 2], [1, 1, 2, 1], [1, 1, 2, 2]].map(Vec::from);
    assert_eq!(outcomes, BTreeSet::from(expected), "a later sector may survive an earlier one");
}

#[test]
fn a_flush_covers_all_earlier_writes() {
    for seed in 0..SEEDS {
        let (sim, disk, file) = with_file(seed);
        sim.block_on(async {
            file.write_at(0, block(2, 2), Flush::No).await.unwrap();
            file.write_at(8192, block(3, 1), Flush::No).await.unwrap();
            if seed % 2 == 0 {
                file.flush().await.unwrap();
            } else {
                file.write_at(12288, block(4, 1), Flush::Yes).await.unwrap();
            }
        });
        sim.crash(NODE);
        assert_eq!(blocks_of(&disk, "f")[..3], [2, 2, 3]);
    }
}

#[test]
fn a_flush_does_not_cover_what_completes_after_it_began() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let (sim, disk, file) = with_file(seed);
        disk.set_model(DiskModel { flush_nanos: (1_000_000_000, 1_000_000_000), ..DiskModel::default() });
        let flush = file.flush();
        sim.block_on(file.write_at(0, block(2, 1), Flush::No)).unwrap();
        sim.block_on(flush).unwrap();
        sim.crash(NODE);
        lost += u64::from(blocks_of(&disk, "f")[0] == 1);
    }
    assert!(lost > 50 && lost < SEEDS, "{lost}");
}

#[test]
fn an_overwritten_sector_goes_back_to_any_version_since_the_flush() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let (sim, disk, file) = with_file(seed);
        sim.block_on(async {
            file.write_at(0, block(2, 1), Flush::Yes).await.unwrap();
            file.write_at(0, block(3, 1), Flush::No).await.unwrap();
            file.write_at(0, block(4, 1), Flush::No).await.unwrap();
        });
        sim.crash(NODE);
        outcomes.insert(disk.contents("f").unwrap()[0]);
    }
    assert_eq!(outcomes, BTreeSet::from([2, 3, 4]));
}

#[test]
fn a_write_in_flight_may_be_kept_in_part_and_torn_at_512_bytes() {
    let (mut none, mut part, mut all, mut torn) = (0, 0, 0, 0);
    for seed in 0..SEEDS {
        let (sim, disk, file) = with_file(seed);
        let write = file.write_at(0, block(2, 4), Flush::Yes);
        sim.run_for(Duration::from_micros(1));
        sim.crash(NODE);
        assert!(sim.block_on(write).is_err());
        let contents = disk.contents("f").unwrap();
        let atoms: Vec<u8> = contents.chunks(512).map(|atom| atom[0]).collect();
        assert!(contents.chunks(512).all(|atom| atom.iter().all(|byte| *byte == atom[0])));
        match atoms.iter().filter(|byte| **byte == 2).count() {
            0 => none += 1,
            32 => all += 1,
            _ => part += 1,
        }
        torn += atoms.chunks(8).filter(|sector| sector.iter().any(|byte| *byte != sector[0])).count();
    }
    assert!(none > 20 && part > 20 && all > 10 && torn > 10, "{none} {part} {all} {torn}");
}

#[test]
fn operations_in_flight_complete_in_any_order() {
    let mut orders = BTreeSet::new();
    for seed in 0..SEEDS {
        let (sim, _, file) = with_file(seed);
        let order = Arc::new(Mutex::new(Vec::new()));
        for number in 0..3 {
            let (write, order) = (file.write_at(number * 4096, block(2, 1), Flush::No), order.clone());
            sim.spawn("writer", async move {
                write.await.unwrap();
                lock(&order).push(number);
            });
        }
        sim.run_for(Duration::from_millis(10));
        orders.insert(lock(&order).clone());
    }
    assert_eq!(orders.len(), 6);
}

#[test]
fn a_dropped_future_does_not_cancel_its_operation() {
    let (sim, disk, file) = with_file(1);
    drop(file.write_at(0, block(9, 1), Flush::No));
    sim.run_for(Duration::from_millis(10));
    assert_eq!(blocks_of(&disk, "f"), [9, 1, 1, 1]);
}

#[test]
fn directory_changes_last_once_flushed_and_else_by_prefix() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let (sim, disk, _file) = with_file(seed);
        create(&disk, "g");
        disk.rename("g", "h").unwrap();
        disk.remove("f").unwrap();
        disk.open("i", OpenMode::CreateNew, Caching::Direct).unwrap();
        assert_eq!(disk.files(), ["h", "i"]);
        sim.crash(NODE);
        outcomes.insert(disk.files().concat());
    }
    assert_eq!(outcomes, BTreeSet::from(["fg", "fh", "h", "hi"].map(String::from)));
}

#[test]
fn a_flushed_file_without_a_flushed_name_may_vanish() {
    let mut vanished = 0;
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        let disk = sim.disk(NODE, "d");
        let file = disk.open("f", OpenMode::CreateNew, Caching::Direct).unwrap();
        sim.block_on(file.write_at(0, block(1, 1), Flush::Yes)).unwrap();
        sim.crash(NODE);
        match disk.contents("f") {
            Some(contents) => assert_eq!(contents, [1; 4096]),
            None => vanished += 1,
        }
    }
    assert!(vanished > 50 && vanished < SEEDS, "{vanished}");
}

#[test]
fn a_removed_file_that_comes_back_has_its_flushed_contents() {
    let mut back = 0;
    for seed in 0..SEEDS {
        let (sim, disk, _) = with_file(seed);
        disk.remove("f").unwrap();
        let new = disk.open("f", OpenMode::CreateNew, Caching::Direct).unwrap();
        sim.block_on(new.write_at(0, block(7, 1), Flush::Yes)).unwrap();
        sim.crash(NODE);
        match disk.contents("f") {
            Some(contents) if contents == [1; 16384] => back += 1,
            Some(contents) => assert_eq!(contents, [7; 4096]),
            None => {}
        }
    }
    assert!(back > 50, "{back}");
}

#[test]
fn a_truncation_happens_whole_or_not_at_all() {
    let (mut cut, mut whole) = (0, 0);
    for seed in 0..SEEDS {
        let (sim, disk, file) = with_file(seed);
        file.set_size(6000).unwrap();
        assert_eq!(disk.contents("f").unwrap(), [1; 6000]);
        file.set_size(16384).unwrap();
        assert_eq!(disk.contents("f").unwrap()[6000..], [0; 10384], "grows with zeroes");
        sim.crash(NODE);
        let contents = disk.contents("f").unwrap();
        assert_eq!(contents[..6000], [1; 6000]);
        let tail = &contents[6000..];
        if tail.iter().all(|byte| *byte == 0) {
            cut += 1;
        } else {
            assert_eq!(contents, [1; 16384], "old or new, never neither");
            whole += 1;
        }
    }
    assert!(cut > 20 && whole > 20, "{cut} {whole}");
}

#[test]
fn replacing_a_file_is_atomic_at_every_operation() {
    let (old, new) = (vec![1; 5000], vec![2; 7000]);
    let mut outcomes = BTreeSet::new();
    for (seed, nth) in (0..40).flat_map(|seed| (1..=8).map(move |nth| (seed, nth))) {
        let sim = Sim::new(seed);
        let (node, disk) = (sim.node(NODE), sim.disk(NODE, "d"));
        sim.block_on(replace_file(&*disk, "f", old.clone().into())).unwrap();
        disk.crash_after_ops(nth);
        let (disk2, new2) = (disk.clone(), new.clone());
        let result = sim.block_on(node.run(async move { replace_file(&*disk2, "f", new2.into()).await }));
        let contents = disk.contents("f").unwrap();
        assert!(contents == old || contents == new, "crash at operation {nth} of seed {seed}");
        if matches!(result, Ok(Ok(()))) {
            assert_eq!(contents, new);
        }
        outcomes.insert((nth, contents == new));
    }
    // The operations are remove, create, write, flush, rename and the flush of the directory.
    let may_be_new: Vec<u64> = outcomes.iter().filter(|(_, new)| *new).map(|(nth, _)| *nth).collect();
    let may_be_old: Vec<u64> = outcomes.iter().filter(|(_, new)| !*new).map(|(nth, _)| *nth).collect();
    assert_eq!(may_be_new, [5, 6, 7, 8]);
    assert_eq!(may_be_old, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn replacing_a_file_without_flushes_is_caught() {
    let broken = (0..SEEDS).filter(|seed| {
        let sim = Sim::new(*seed);
        let disk = sim.disk(NODE, "d");
        sim.block_on(replace_file(&*disk, "f", vec![1; 5000].into())).unwrap();
        disk.ignore_flushes(true);
        sim.block_on(replace_file(&*disk, "f", vec![2; 7000].into())).unwrap();
        sim.crash(NODE);
        disk.contents("f").unwrap() != [2; 7000]
    });
    assert!(broken.count() > 100);
}

#[test]
fn power_fails_in_the_middle_of_a_sequence() {
    let (sim, disk, _) = with_file(1);
    let node = sim.node(NODE);
    disk.crash_after_ops(2);
    let disk2 = disk.clone();
    let result = sim.block_on(node.run(async move {
        disk2.rename("f", "g").unwrap();
        assert!(disk2.flush_directory().is_err(), "this is where the power fails");
        assert!(disk2.list().is_err() && disk2.remove("g").is_err() && disk2.lock().is_err());
        std::future::pending::<()>().await;
    }));
    assert_eq!(result, Err(Crashed));
    assert!(!node.is_running());
    assert!(disk.list().is_ok(), "the power is back");
    let names: BTreeSet<String> = (0..SEEDS).map(crashed_name).collect();
    assert_eq!(names, BTreeSet::from(["f".into(), "g".into()]));
}

/// What `f` is called after power failed in the flush that follows its renaming to `g`.
fn crashed_name(seed: u64) -> String {
    let (sim, disk, _) = with_file(seed);
    disk.crash_after_ops(2);
    disk.rename("f", "g").unwrap();
    disk.flush_directory().unwrap_err();
    sim.run_for(Duration::from_millis(1));
    disk.files().concat()
}

#[test]
fn a_killed_process_loses_nothing_until_the_power_goes() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let (sim, disk, file) = with_file(seed);
        sim.env(NODE);
        drop(file.write_at(0, block(2, 1), Flush::No));
        sim.node(NODE).kill();
        assert!(!sim.is_running(NODE));
        assert_eq!(blocks_of(&disk, "f"), [2, 1, 1, 1]);
        assert!(file.size_bytes().is_err());
        sim.crash(NODE);
        lost += u64::from(blocks_of(&disk, "f")[0] == 1);
    }
    assert!(lost > 50 && lost < SEEDS, "{lost}");
}

#[test]
fn the_lock_is_exclusive_until_dropped_or_crashed() {
    let sim = Sim::new(1);
    let disk = sim.disk(NODE, "d");
    let guard = disk.lock().unwrap();
    let second = disk.lock().err().unwrap();
    assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    drop(guard);
    let old = disk.lock().unwrap();
    sim.crash(NODE);
    let new = disk.lock().unwrap();
    drop(old);
    assert!(disk.lock().is_err(), "a guard from before the crash releases nothing");
    drop(new);
    assert!(disk.lock().is_ok());
}

#[test]
#[should_panic(expected = "not aligned")]
fn direct_files_insist_on_alignment() {
    let (_sim, _disk, file) = with_file(1);
    drop(file.write_at(512, block(1, 1), Flush::No));
}

#[test]
fn buffered_files_take_any_offset() {
    let (sim, disk, _) = with_file(1);
    let file = disk.open("f", OpenMode::Existing, Caching::Buffered).unwrap();
    let pieces = [&b"ab"[..], b"", b"cdef"].map(Bytes::from_static).to_vec();
    sim.block_on(file.write_at(4093, pieces, Flush::No)).unwrap();
    assert_eq!(file.read_now(4092, 8).unwrap(), &b"\x01abcdef\x01"[..]);
    assert_eq!(sim.block_on(file.read_at(16380, 100)).unwrap(), &[1; 4][..], "short at the end");
    assert!(file.read_now(20000, 5).unwrap().is_empty());
}

#[test]
fn a_failed_flush_may_lose_data_though_a_later_one_succeeds() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let (sim, disk, file) = with_file(seed);
        disk.inject(Fault::FlushError, 2);
        sim.block_on(async {
            file.flush().await.unwrap();
            file.write_at(0, block(2, 1), Flush::Yes).await.unwrap_err();
            file.write_at(4096, block(3, 1), Flush::No).await.unwrap();
            file.flush().await.unwrap();
        });
        sim.crash(NODE);
        let blocks = blocks_of(&disk, "f");
        assert_eq!(blocks[1..], [3, 1, 1]);
        lost += u64::from(blocks[0] == 1);
    }
    assert!(lost > 50 && lost < SEEDS, "{lost}");
}

#[test]
fn injected_faults_hit_the_nth_operation_once() {
    let (sim, disk, file) = with_file(1);
    sim.block_on(async {
        disk.inject(Fault::ReadError, 2);
        assert!(file.read_at(0, 4096).await.is_ok());
        assert!(file.read_now(0, 4096).is_err());
        assert!(file.read_at(0, 4096).await.is_ok());

        disk.inject(Fault::LostWrite, 1);
        file.write_at(0, block(2, 4), Flush::Yes).await.unwrap();
        assert_eq!(blocks_of(&disk, "f"), [1, 1, 1, 1]);

        disk.inject(Fault::WriteError, 1);
        assert!(file.write_at(0, block(3, 4), Flush::Yes).await.is_err());
        assert!(blocks_of(&disk, "f").iter().all(|byte| [1, 3].contains(byte)));

        disk.inject(Fault::DirectoryFlushError, 1);
        assert!(disk.flush_directory().is_err());
        assert!(disk.flush_directory().is_ok());
    });
    assert_eq!(disk.counts().directory_flushes, 3);
    assert_eq!((disk.counts().reads, disk.counts().writes), (3, 3));
}

#[test]
fn a_misdirected_write_lands_elsewhere() {
    let mut elsewhere = 0;
    for seed in 0..SEEDS {
        let (sim, disk, file) = with_file(seed);
        disk.inject(Fault::MisdirectedWrite, 1);
        sim.block_on(file.write_at(0, block(2, 1), Flush::Yes)).unwrap();
        let blocks = blocks_of(&disk, "f");
        assert_eq!(blocks.iter().filter(|byte| **byte == 2).count(), 1);
        elsewhere += u64::from(blocks[0] == 1);
    }
    assert!(elsewhere > 100, "{elsewhere}");
}

#[test]
fn bits_rot_for_good() {
    let (sim, disk, file) = with_file(1);
    let flipped = |contents: Vec<u8>| contents.iter().map(|byte| (byte ^ 1).count_ones()).sum::<u32>();
    disk.inject(Fault::BitRot, 1);
    let read = file.read_now(0, 16384).unwrap();
    assert_eq!(flipped(read.to_vec()), 1);
    sim.crash(NODE);
    assert_eq!(disk.contents("f").unwrap(), read);
    let (name, offset) = disk.flip_anywhere().unwrap();
    assert!(name == "f" && offset < 16384);
    disk.flip("f", 5, 0x80);
    assert_eq!(disk.contents("f").unwrap()[5] & 0x80, 0x80);
    disk.overwrite("f", 4090, &[7; 10]);
    assert_eq!(disk.contents("f").unwrap()[4090..4100], [7; 10]);
}

#[test]
fn rates_of_faults_are_kept() {
    let (_sim, disk, file) = with_file(1);
    disk.set_rate_ppm(Fault::ReadError, 100_000);
    let failed = (0..2000).filter(|_| file.read_now(0, 4096).is_err()).count();
    assert!((150..250).contains(&failed), "{failed} of 2000");
}

#[test]
fn a_full_disk_says_so_and_recovers() {
    let (sim, disk, file) = with_file(1);
    disk.set_capacity(6 * 4096);
    assert_eq!(disk.space().unwrap(), DiskSpace { total_bytes: 24576, available_bytes: 8192 });
    sim.block_on(async {
        file.write_at(16384, block(2, 2), Flush::Yes).await.unwrap();
        let error = file.write_at(0, block(3, 7), Flush::Yes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        file.write_at(0, block(4, 6), Flush::Yes).await.unwrap();
        assert_eq!(disk.space().unwrap().available_bytes, 0);
        file.set_size(4096).unwrap();
        file.write_at(4096, block(5, 5), Flush::Yes).await.unwrap();
        disk.remove("f").unwrap();
        assert_eq!(disk.space().unwrap().available_bytes, 24576);
    });
}

#[test]
fn a_vanished_disk_fails_everything_and_comes_back() {
    let (sim, disk, file) = with_file(1);
    sim.block_on(async {
        let in_flight = file.write_at(0, block(2, 1), Flush::No);
        disk.set_vanished(true);
        assert!(in_flight.await.is_err());
        assert!(file.read_at(0, 4096).await.is_err() && file.flush().await.is_err());
        assert!(file.write_at(0, block(2, 1), Flush::No).await.is_err());
        assert!(disk.list().is_err() && disk.space().is_err() && disk.lock().is_err());
        assert!(disk.open("f", OpenMode::Existing, Caching::Direct).is_err());
        disk.set_vanished(false);
        assert_eq!(file.read_at(0, 4096).await.unwrap(), [1; 4096][..]);
    });
}

#[test]
fn a_slow_disk_takes_its_time() {
    let (sim, disk, file) = with_file(1);
    let timed = || {
        let before = sim.now();
        sim.block_on(async {
            for _ in 0..100 {
                file.flush().await.unwrap();
            }
        });
        sim.now().since(before)
    };
    let usual = timed();
    disk.set_slowness(100);
    assert!(timed() > usual * 30);
}

#[test]
fn a_disk_that_hangs_answers_when_it_is_over() {
    let (sim, disk, file) = with_file(1);
    let began = sim.now();
    disk.hang_for(Duration::from_secs(7));
    sim.block_on(file.write_at(0, block(2, 1), Flush::Yes)).unwrap();
    assert!(sim.now().since(began) >= Duration::from_secs(7));
    let after = sim.now();
    sim.block_on(file.flush()).unwrap();
    assert!(sim.now().since(after) < Duration::from_secs(1));
}

#[test]
fn copies_and_crash_images_are_independent() {
    let (sim, disk, file) = with_file(1);
    sim.block_on(file.write_at(0, block(2, 1), Flush::No)).unwrap();
    let in_flight = file.write_at(4096, block(3, 1), Flush::Yes);
    let (copy, image) = (sim.disk(NodeId(2), "copy"), sim.disk(NodeId(2), "image"));
    copy.copy_from(&disk);
    assert_eq!(blocks_of(&copy, "f"), [2, 1, 1, 1]);
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        image.crash_image_of(&disk, seed);
        outcomes.insert(blocks_of(&image, "f"));
        let before = image.contents("f");
        image.crash_image_of(&disk, seed);
        assert_eq!(image.contents("f"), before);
    }
    let expected = [[1, 1, 1, 1], [2, 1, 1, 1], [1, 3, 1, 1], [2, 3, 1, 1]].map(Vec::from);
    assert_eq!(outcomes, BTreeSet::from(expected));
    image.erase();
    copy.overwrite("f", 0, &[9]);
    sim.block_on(in_flight).unwrap();
    assert_eq!(blocks_of(&disk, "f"), [2, 3, 1, 1], "the original went on");
    sim.crash(NodeId(2));
    assert_eq!(blocks_of(&copy, "f"), [9, 1, 1, 1], "a copy is durable");
    assert!(image.files().is_empty());
}

#[test]
fn large_files_cost_what_was_written() {
    let sim = Sim::new(1);
    let disk = sim.disk(NODE, "d");
    let file = create(&disk, "volume");
    let zeroes = Bytes::from(vec![0; 1 << 20]);
    sim.block_on(async {
        file.set_size(1 << 30).unwrap();
        for at in 0..64 {
            file.write_at(at << 20, vec![zeroes.clone()], Flush::Yes).await.unwrap();
        }
        file.write_at((1 << 30) - 4096, block(7, 1), Flush::Yes).await.unwrap();
        assert_eq!(file.size_bytes().unwrap(), 1 << 30);
    });
    let used_bytes = disk.space().unwrap().total_bytes - disk.space().unwrap().available_bytes;
    assert_eq!(used_bytes, (64 << 20) + 4096);
    sim.crash(NODE);
    assert_eq!(open(&disk, "volume").read_now((1 << 30) - 4096, 4096).unwrap(), [7; 4096][..]);
}
