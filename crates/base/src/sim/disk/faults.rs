//! What tests can make a disk do: its speed, its faults, its power supply, and looking at and changing its contents.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::medium::{InodeRef, Medium};
use super::{CAPACITY_DEFAULT_BYTES, DiskCounts, SimDisk};
use crate::env::Disk;
use crate::sim::executor::lock;
use crate::sim::prng::Prng;

/// How long operations take, each in nanoseconds from the least to the most, and per MiB that is moved. One in a
/// hundred takes ten times as long.
#[derive(Clone, Copy, Debug)]
pub struct DiskModel {
    pub read_nanos: (u64, u64),
    pub write_nanos: (u64, u64),
    pub flush_nanos: (u64, u64),
    pub per_mib_nanos: u64,
    /// Everything takes so many times as long: a gray disk.
    pub slowness: u64,
}

impl Default for DiskModel {
    /// A plain NVMe drive without power-loss protection.
    fn default() -> DiskModel {
        DiskModel {
            read_nanos: (20_000, 120_000),
            write_nanos: (15_000, 100_000),
            flush_nanos: (100_000, 1_500_000),
            per_mib_nanos: 500_000,
            slowness: 1,
        }
    }
}

/// What can be made to go wrong, once ([`SimDisk::inject`]) or at a rate ([`SimDisk::set_rate_ppm`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A read fails.
    ReadError,
    /// A write fails, and may have written a part.
    WriteError,
    /// A flush fails. What it should have covered may be lost at a crash even if a later flush succeeds.
    FlushError,
    /// One bit of what is read has flipped on the medium, for good.
    BitRot,
    /// A write is reported done and was not done.
    LostWrite,
    /// A write lands elsewhere on the disk, at a multiple of the sector size.
    MisdirectedWrite,
    /// A flush of the directory fails and makes nothing durable.
    DirectoryFlushError,
}

impl Fault {
    /// As counted.
    pub(super) fn what(self) -> &'static str {
        match self {
            Fault::ReadError => "reads that fail",
            Fault::WriteError => "writes that fail",
            Fault::FlushError => "flushes that fail",
            Fault::BitRot => "bits flipped by reads",
            Fault::LostWrite => "writes lost",
            Fault::MisdirectedWrite => "writes misdirected",
            Fault::DirectoryFlushError => "flushes of a directory that fail",
        }
    }
}

pub(super) const FAULT_COUNT: usize = Fault::DirectoryFlushError as usize + 1;

/// The power supply that all disks of one node share.
pub(in crate::sim) struct Power {
    off: AtomicBool,
    /// How many more changing operations begin before the power fails; zero means that it does not.
    operations_left: AtomicU64,
}

#[derive(PartialEq, Eq)]
pub(super) enum Supply {
    On,
    /// This operation is the one in the middle of which the power fails.
    Failing,
    Off,
}

impl Power {
    pub(in crate::sim) fn new() -> Power {
        Power { off: AtomicBool::new(false), operations_left: AtomicU64::new(0) }
    }

    pub(in crate::sim) fn cut(&self) {
        self.off.store(true, Ordering::Relaxed);
        self.operations_left.store(0, Ordering::Relaxed);
    }

    pub(in crate::sim) fn restore(&self) {
        self.off.store(false, Ordering::Relaxed);
    }

    pub(in crate::sim) fn fail_after(&self, operations: u64) {
        self.operations_left.store(operations, Ordering::Relaxed);
    }

    pub(super) fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    /// Begins one changing operation.
    pub(super) fn draw(&self) -> Supply {
        if self.is_off() {
            return Supply::Off;
        }
        match self.operations_left.load(Ordering::Relaxed) {
            0 => Supply::On,
            1 => {
                self.cut();
                Supply::Failing
            }
            left => {
                self.operations_left.store(left - 1, Ordering::Relaxed);
                Supply::On
            }
        }
    }
}

#[derive(Clone, Copy, Default)]
pub(super) struct FaultSetting {
    /// It happens to the n-th operation from here; zero means never.
    pub(super) nth: u64,
    pub(super) rate_ppm: u64,
}

impl SimDisk {
    /// Sets latencies.
    pub fn set_model(&self, model: DiskModel) {
        self.state().model = model;
    }

    /// Makes every operation take `factor` times as long as usual.
    pub fn set_slowness(&self, factor: u64) {
        self.state().model.slowness = factor.max(1);
    }

    /// Whatever is asked of the disk from now on is done when this time is over: with no error, and in the order asked.
    pub fn hang_for(&self, time: Duration) {
        let until = self.core.now_nanos().saturating_add(time.as_nanos() as u64);
        self.state().hangs_until_nanos = until;
    }

    /// Has `fault` happen to the `nth` operation of its kind from now; 1 is the next one.
    pub fn inject(&self, fault: Fault, nth: u64) {
        assert!(nth > 0, "operations are counted from one");
        self.state().faults[fault as usize].nth = nth;
    }

    /// Has `fault` happen to so many in a million operations of its kind.
    pub fn set_rate_ppm(&self, fault: Fault, rate_ppm: u64) {
        self.state().faults[fault as usize].rate_ppm = rate_ppm;
    }

    /// Reads of this file fail that reach behind a byte of it, until they may again (`None`).
    pub fn set_unreadable(&self, place: Option<(&str, u64)>) {
        let unreadable = place.map(|(name, from)| (self.inode(name), from));
        self.state().unreadable = unreadable;
    }

    /// The disk answers every operation with an error until it is there again; its contents stay.
    pub fn set_vanished(&self, vanished: bool) {
        self.state().vanished = vanished;
    }

    /// Flushes, of files and of the directory, are reported done and protect nothing: to show that a test would see it.
    pub fn ignore_flushes(&self, ignore: bool) {
        self.state().ignore_flushes = ignore;
        self.state().ignore_directory_flushes = ignore;
    }

    /// As `ignore_flushes`, for those of the directory alone.
    pub fn ignore_directory_flushes(&self, ignore: bool) {
        self.state().ignore_directory_flushes = ignore;
    }

    /// What may be allocated, in bytes of whole sectors; writes beyond it fail with `StorageFull`.
    pub fn set_capacity(&self, capacity_bytes: u64) {
        self.state().capacity_bytes = capacity_bytes;
    }

    /// As `set_capacity`: what is used now, and so much more.
    pub fn set_room(&self, room_bytes: u64) {
        let mut state = self.state();
        state.capacity_bytes = state.medium.used_bytes() + room_bytes;
    }

    /// As much space as at first.
    pub fn set_unlimited(&self) {
        self.state().capacity_bytes = CAPACITY_DEFAULT_BYTES;
    }

    /// Power fails on the whole node in the middle of its n-th changing disk operation from now (writes, flushes,
    /// directory changes, sizes; a write with a flush is two). All later operations fail, and the node crashes before
    /// any other task runs.
    pub fn crash_after_ops(&self, nth: u64) {
        self.power.fail_after(nth);
    }

    /// How often each kind of operation was begun.
    pub fn counts(&self) -> DiskCounts {
        self.state().counts
    }

    /// The names of all files, sorted, as the running node sees them.
    pub fn files(&self) -> Vec<String> {
        self.state().medium.names().cloned().collect()
    }

    /// The whole of a file, as the running node sees it; `None` when there is none.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let inode = self.state().medium.find(name).ok()?.clone();
        let inode = lock(&inode);
        Some(inode.read(0, inode.size_bytes() as usize).to_vec())
    }

    /// Changes bytes of an existing file behind the node's back, durably.
    pub fn overwrite(&self, name: &str, offset: u64, data: &[u8]) {
        lock(&self.inode(name)).overwrite(offset, data);
    }

    /// Flips the bits of `mask` in one byte of a file, durably.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) {
        self.core.count_fault("bits flipped at rest", 1);
        let inode = self.inode(name);
        let mut inode = lock(&inode);
        let old = inode.read(offset, 1);
        assert!(!old.is_empty(), "{name} has no byte {offset}");
        inode.overwrite(offset, &[old[0] ^ mask]);
    }

    /// Flips one bit anywhere in what is allocated. Where it was, or `None` on an empty disk.
    pub fn flip_anywhere(&self) -> Option<(String, u64)> {
        self.flip_where(|_| true)
    }

    /// The same, in a file that is wanted; `None` as well when none was drawn.
    pub fn flip_where(&self, is_wanted: impl Fn(&str) -> bool) -> Option<(String, u64)> {
        const DRAWS_MAX: usize = 64;
        let drawn = {
            let mut state = self.state();
            let state = &mut *state;
            let mut draws = (0..DRAWS_MAX).map_while(|_| state.medium.draw_bit(&mut state.prng));
            draws.find(|(name, _, _)| is_wanted(name))
        };
        let (name, offset, mask) = drawn?;
        self.flip(&name, offset, mask);
        Some((name, offset))
    }

    /// Replaces everything on this disk by what `other` shows now, durably: a copied directory.
    pub fn copy_from(&self, other: &SimDisk) {
        let copy = other.state().medium.copy_as_durable();
        self.state().medium = copy;
    }

    /// Replaces everything on this disk by what `other` might hold were its power lost now. `other` goes on as if
    /// nothing had happened: so one run shows many crashes, each drawn by a `seed` of its own.
    pub fn crash_image_of(&self, other: &SimDisk, seed: u64) {
        let (mut image, writes, capacity_bytes) = {
            let state = other.state();
            let mut writes = state.unfinished_writes();
            (state.medium.deep_copy(&mut writes), writes, state.capacity_bytes)
        };
        let _ = image.lose_power(writes, capacity_bytes, &mut Prng::new(seed));
        self.state().medium = image;
    }

    /// Removes everything, durably: an exchanged disk.
    pub fn erase(&self) {
        self.state().medium = Medium::default();
    }

    fn inode(&self, name: &str) -> InodeRef {
        let found = self.state().medium.find(name).cloned();
        found.unwrap_or_else(|_| panic!("{name} is not on {}", self.describe()))
    }
}
