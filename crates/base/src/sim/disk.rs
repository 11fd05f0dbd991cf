//! A simulated disk: one flat directory whose contents survive the crashes of its node, less what was not flushed.
//! What it may do and what it never does is told at the head of [`crate::sim`].

use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use tokio::sync::oneshot;

use super::executor::{Core, Event, EventKey, lock};
use super::inode::{Inode, SECTOR, Survival};
use super::prng::{PPM, Prng};
use super::trace::{TraceKind, digest_pieces, fold};
use crate::buffer::BLOCK;
use crate::env::{Caching, Disk, DiskSpace, File, FileEntry, Flush, IoFuture, OpenMode};
use crate::ids::NodeId;

/// Operations of one disk that may be in flight at once: more is a missing bound in the code under test.
const IN_FLIGHT_MAX: usize = 65_536;

/// Directory changes that may wait for a flush. Beyond that the oldest become durable by themselves, as they do on a
/// real file system after some seconds.
const DIRECTORY_PENDING_MAX: usize = 4096;

/// Capacity in bytes unless told otherwise.
const CAPACITY_DEFAULT_BYTES: u64 = 1 << 40;

type InodeRef = Arc<Mutex<Inode>>;
type Reply<T> = oneshot::Sender<io::Result<T>>;

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
}

const FAULT_COUNT: usize = 6;

/// The power supply that all disks of one node share.
pub(super) struct Power {
    off: AtomicBool,
    /// How many more changing operations begin before the power fails; zero means that it does not.
    operations_left: AtomicU64,
}

#[derive(PartialEq, Eq)]
enum Supply {
    On,
    /// This operation is the one in the middle of which the power fails.
    Failing,
    Off,
}

impl Power {
    pub(super) fn new() -> Power {
        Power { off: AtomicBool::new(false), operations_left: AtomicU64::new(0) }
    }

    pub(super) fn cut(&self) {
        self.off.store(true, Ordering::Relaxed);
        self.operations_left.store(0, Ordering::Relaxed);
    }

    pub(super) fn restore(&self) {
        self.off.store(false, Ordering::Relaxed);
    }

    pub(super) fn fail_after(&self, operations: u64) {
        self.operations_left.store(operations, Ordering::Relaxed);
    }

    fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    /// Begins one changing operation.
    fn draw(&self) -> Supply {
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

pub struct SimDisk {
    core: Arc<Core>,
    node: NodeId,
    name: String,
    power: Arc<Power>,
    this: Weak<SimDisk>,
    state: Mutex<State>,
}

struct State {
    prng: Prng,
    model: DiskModel,
    faults: [FaultSetting; FAULT_COUNT],
    capacity_bytes: u64,
    vanished: bool,
    ignore_flushes: bool,
    ignore_directory_flushes: bool,
    /// The directory as everybody sees it, and as it is on the medium; `pending` leads from the latter to the former.
    current: BTreeMap<String, InodeRef>,
    durable: BTreeMap<String, InodeRef>,
    pending: VecDeque<DirectoryChange>,
    in_flight: BTreeMap<u64, Operation>,
    operations_begun: u64,
    /// Counts crashes. What was opened before one is of no use after it.
    crashes: u64,
    lock_holder: Option<u64>,
    counts: DiskCounts,
}

/// How often each kind of operation was begun, since the disk was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskCounts {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub directory_flushes: u64,
    pub written_bytes: u64,
    pub read_bytes: u64,
}

#[derive(Clone, Copy, Default)]
struct FaultSetting {
    /// It happens to the n-th operation from here; zero means never.
    nth: u64,
    rate_ppm: u64,
}

#[derive(Clone)]
enum DirectoryChange {
    Created(String, InodeRef),
    Renamed(String, String),
    Removed(String),
}

struct Operation {
    kind: OperationKind,
    event: EventKey,
}

enum OperationKind {
    Read { inode: InodeRef, offset: u64, len: usize, reply: Reply<Bytes> },
    Write { inode: InodeRef, offset: u64, pieces: Vec<Bytes>, flush: Flush, fault: Option<Fault>, reply: Reply<()> },
    Flush { inode: InodeRef, upto: u64, fails: bool, reply: Reply<()> },
}

/// What an operation has come to.
enum Outcome {
    Read(Reply<Bytes>, io::Result<Bytes>),
    Done(Reply<()>, io::Result<()>),
    /// The write is done, its flush has begun.
    Continues,
}

impl SimDisk {
    pub(super) fn new(core: &Arc<Core>, node: NodeId, name: &str, power: Arc<Power>) -> Arc<SimDisk> {
        let label = format!("disk {node} {name}");
        let state = State {
            prng: Prng::derived(core.seed, label.as_bytes()),
            model: DiskModel::default(),
            faults: Default::default(),
            capacity_bytes: CAPACITY_DEFAULT_BYTES,
            vanished: false,
            ignore_flushes: false,
            ignore_directory_flushes: false,
            current: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: VecDeque::new(),
            in_flight: BTreeMap::new(),
            operations_begun: 0,
            crashes: 0,
            lock_holder: None,
            counts: DiskCounts::default(),
        };
        Arc::new_cyclic(|this| SimDisk {
            core: core.clone(),
            node,
            name: name.into(),
            power,
            this: this.clone(),
            state: Mutex::new(state),
        })
    }

    /// Sets latencies.
    pub fn set_model(&self, model: DiskModel) {
        self.state().model = model;
    }

    /// Makes every operation take `factor` times as long as usual.
    pub fn set_slowness(&self, factor: u64) {
        self.state().model.slowness = factor.max(1);
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
        self.state().current.keys().cloned().collect()
    }

    /// The whole of a file, as the running node sees it; `None` when there is none.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let inode = self.state().current.get(name)?.clone();
        let inode = lock(&inode);
        Some(inode.read(0, inode.size_bytes() as usize).to_vec())
    }

    /// Changes bytes of an existing file behind the node's back, durably.
    pub fn overwrite(&self, name: &str, offset: u64, data: &[u8]) {
        let inode = self.state().current.get(name).cloned();
        lock(&inode.unwrap_or_else(|| panic!("{name} is not on {}", self.describe()))).overwrite(offset, data);
    }

    /// Flips the bits of `mask` in one byte of a file, durably.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) {
        let inode = self.state().current.get(name).cloned();
        let inode = inode.unwrap_or_else(|| panic!("{name} is not on {}", self.describe()));
        let mut inode = lock(&inode);
        let old = inode.read(offset, 1);
        assert!(!old.is_empty(), "{name} has no byte {offset}");
        inode.overwrite(offset, &[old[0] ^ mask]);
    }

    /// Flips one bit anywhere in what is allocated. Where it was, or `None` on an empty disk.
    pub fn flip_anywhere(&self) -> Option<(String, u64)> {
        let (name, offset, mask) = {
            let mut state = self.state();
            let mut places = Vec::new();
            for (name, inode) in &state.current {
                let inode = lock(inode);
                let inside = inode.allocated_sectors().filter(|i| ((i * SECTOR) as u64) < inode.size_bytes());
                places.extend(inside.map(|index| (name.clone(), index)));
            }
            if places.is_empty() {
                return None;
            }
            let (name, index) = places.swap_remove(state.prng.below(places.len() as u64) as usize);
            let start = (index * SECTOR) as u64;
            let size_bytes = lock(&state.current[&name]).size_bytes();
            let offset = state.prng.between(start, (start + SECTOR as u64).min(size_bytes) - 1);
            let mask = 1 << state.prng.below(8);
            (name, offset, mask)
        };
        self.flip(&name, offset, mask);
        Some((name, offset))
    }

    /// Replaces everything on this disk by what `other` shows now, durably: a copied directory.
    pub fn copy_from(&self, other: &SimDisk) {
        let files: BTreeMap<String, InodeRef> = other
            .state()
            .current
            .iter()
            .map(|(name, inode)| (name.clone(), Arc::new(Mutex::new(lock(inode).copy()))))
            .collect();
        let mut state = self.state();
        state.durable = files.clone();
        state.current = files;
        state.pending.clear();
    }

    /// Removes everything, durably: an exchanged disk.
    pub fn erase(&self) {
        let mut state = self.state();
        state.current.clear();
        state.durable.clear();
        state.pending.clear();
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Loses power: in-flight writes count as begun and not flushed, then each file and the directory go back as far
    /// as the seed wants.
    pub(super) fn crash(&self) {
        let (events, dropped) = {
            let mut state = self.state();
            let survival = Survival::draw(&mut state.prng);
            let mut operations: Vec<Operation> = std::mem::take(&mut state.in_flight).into_values().collect();
            let events: Vec<EventKey> = operations.iter().map(|operation| operation.event).collect();
            let mut dropped = Vec::new();
            while !operations.is_empty() {
                let drawn = state.prng.below(operations.len() as u64) as usize;
                let operation = operations.swap_remove(drawn);
                if let OperationKind::Write { inode, offset, pieces, fault, .. } = &operation.kind
                    && !matches!(fault, Some(Fault::LostWrite | Fault::MisdirectedWrite))
                {
                    let room_bytes = state.room_bytes();
                    // What does not fit any more has simply not been written.
                    let _ = lock(inode).write(*offset, pieces, None, room_bytes);
                }
                dropped.push(operation);
            }
            state.crash_directory(survival);
            let files: Vec<InodeRef> = state.current.values().cloned().collect();
            for inode in files {
                lock(&inode).crash(&mut state.prng, survival);
            }
            state.crashes += 1;
            state.lock_holder = None;
            (events, dropped)
        };
        for event in events {
            self.core.cancel(event);
        }
        drop(dropped);
    }

    /// Drops what is in flight, at the end of the simulation.
    pub(super) fn forget_operations(&self) {
        let operations = std::mem::take(&mut self.state().in_flight);
        drop(operations);
    }

    /// Begins a changing operation: whether the power fails in the middle of it.
    fn begin_change(&self, state: &State) -> io::Result<bool> {
        if state.vanished {
            return Err(io::Error::other("the disk is gone"));
        }
        match self.power.draw() {
            Supply::On => Ok(false),
            Supply::Off => Err(power_is_off()),
            Supply::Failing => {
                self.core.trace(TraceKind::Fault, u64::from(self.node.0), u64::MAX);
                self.core.crash_soon(self.node);
                Ok(true)
            }
        }
    }

    fn check_readable(&self, state: &State) -> io::Result<()> {
        if state.vanished {
            return Err(io::Error::other("the disk is gone"));
        }
        if self.power.is_off() { Err(power_is_off()) } else { Ok(()) }
    }

    /// Puts an operation in flight; it completes after `nanos`.
    fn begin(&self, state: &mut State, kind: OperationKind, nanos: u64, digest: u64) {
        assert!(
            state.in_flight.len() < IN_FLIGHT_MAX,
            "more than {IN_FLIGHT_MAX} operations in flight on {}",
            self.describe()
        );
        state.operations_begun += 1;
        let number = state.operations_begun;
        self.core.trace(TraceKind::DiskStart, u64::from(self.node.0), digest);
        let this = self.this.upgrade().expect("a method of a disk runs while the disk is held");
        let event = self.core.schedule_in(nanos, Event::Disk(this, number));
        state.in_flight.insert(number, Operation { kind, event });
    }

    /// The time of operation `number` has come.
    pub(super) fn complete(&self, number: u64) {
        let outcome = {
            let mut state = self.state();
            let Some(operation) = state.in_flight.remove(&number) else {
                return;
            };
            self.core.trace(TraceKind::DiskDone, u64::from(self.node.0), number);
            self.perform(&mut state, operation.kind)
        };
        // Whoever asked may have gone: the operation happened all the same.
        match outcome {
            Outcome::Read(reply, result) => drop(reply.send(result)),
            Outcome::Done(reply, result) => drop(reply.send(result)),
            Outcome::Continues => {}
        }
    }

    fn perform(&self, state: &mut State, kind: OperationKind) -> Outcome {
        let gone = state.vanished.then(|| io::Error::other("the disk is gone"));
        match (kind, gone) {
            (OperationKind::Read { reply, .. }, Some(error)) => Outcome::Read(reply, Err(error)),
            (OperationKind::Write { reply, .. } | OperationKind::Flush { reply, .. }, Some(error)) => {
                Outcome::Done(reply, Err(error))
            }
            (OperationKind::Read { inode, offset, len, reply }, None) => {
                let result = state.read(&inode, offset, len);
                Outcome::Read(reply, result)
            }
            (OperationKind::Write { inode, offset, pieces, flush, fault, reply }, None) => {
                let result = state.write(&inode, offset, &pieces, fault);
                if result.is_err() || flush == Flush::No {
                    return Outcome::Done(reply, result);
                }
                self.begin_flush(state, inode, reply);
                Outcome::Continues
            }
            (OperationKind::Flush { inode, upto, fails, reply }, None) => {
                let ignore = state.ignore_flushes;
                let mut inode = lock(&inode);
                if fails {
                    inode.flush_failed(upto);
                    return Outcome::Done(reply, Err(io::Error::other("injected: the flush failed")));
                }
                if !ignore {
                    inode.flushed(upto);
                }
                Outcome::Done(reply, Ok(()))
            }
        }
    }

    fn begin_flush(&self, state: &mut State, inode: InodeRef, reply: Reply<()>) {
        if let Err(error) = self.begin_change(state) {
            drop(reply.send(Err(error)));
            return;
        }
        state.counts.flushes += 1;
        let upto = lock(&inode).flush_point();
        let fails = state.strikes(Fault::FlushError);
        let range = state.model.flush_nanos;
        let nanos = state.latency_nanos(range, 0);
        self.begin(state, OperationKind::Flush { inode, upto, fails, reply }, nanos, upto);
    }

    /// A change of the directory or of a size: done at once, durable later. An error when the power fails meanwhile.
    fn change<T>(&self, apply: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        let power_fails = self.begin_change(&state)?;
        let out = apply(&mut state)?;
        if power_fails { Err(power_is_off()) } else { Ok(out) }
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the node has lost its power")
}

impl State {
    fn strikes(&mut self, fault: Fault) -> bool {
        let setting = &mut self.faults[fault as usize];
        if setting.nth > 0 {
            setting.nth -= 1;
            if setting.nth == 0 {
                return true;
            }
        }
        let rate_ppm = setting.rate_ppm;
        self.prng.chance(rate_ppm)
    }

    fn latency_nanos(&mut self, range: (u64, u64), len: usize) -> u64 {
        let mut nanos = self.prng.between(range.0, range.1);
        if self.prng.chance(PPM / 100) {
            nanos *= 10;
        }
        let moved = len as u64 * self.model.per_mib_nanos / crate::MIB;
        (nanos + moved).saturating_mul(self.model.slowness)
    }

    fn used_bytes(&self) -> u64 {
        self.current.values().map(|inode| lock(inode).allocated_bytes()).sum()
    }

    fn room_bytes(&self) -> u64 {
        if self.capacity_bytes == CAPACITY_DEFAULT_BYTES {
            return u64::MAX;
        }
        self.capacity_bytes.saturating_sub(self.used_bytes())
    }

    fn read(&mut self, inode: &InodeRef, offset: u64, len: usize) -> io::Result<Bytes> {
        self.counts.reads += 1;
        if self.strikes(Fault::ReadError) {
            return Err(io::Error::other("injected: the read failed"));
        }
        let rots = self.strikes(Fault::BitRot);
        let mut inode = lock(inode);
        let data = inode.read(offset, len);
        self.counts.read_bytes += data.len() as u64;
        if !rots || data.is_empty() {
            return Ok(data);
        }
        let at = self.prng.below(data.len() as u64);
        inode.overwrite(offset + at, &[data[at as usize] ^ (1 << self.prng.below(8))]);
        Ok(inode.read(offset, len))
    }

    fn write(&mut self, inode: &InodeRef, offset: u64, pieces: &[Bytes], fault: Option<Fault>) -> io::Result<()> {
        let room_bytes = self.room_bytes();
        let written = match fault {
            None => lock(inode).write(offset, pieces, None, room_bytes),
            Some(Fault::LostWrite) => Ok(()),
            Some(Fault::MisdirectedWrite) => {
                self.write_elsewhere(pieces);
                Ok(())
            }
            Some(_) => {
                let _ = lock(inode).write(offset, pieces, Some(&mut self.prng), room_bytes);
                return Err(io::Error::other("injected: the write failed"));
            }
        };
        written.map_err(|_| io::Error::new(io::ErrorKind::StorageFull, "the disk is full"))
    }

    /// Writes where it was not meant, inside of what some file has.
    fn write_elsewhere(&mut self, pieces: &[Bytes]) {
        let names: Vec<&InodeRef> = self.current.values().collect();
        let Some(victim) = names.get(self.prng.below(names.len().max(1) as u64) as usize) else {
            return;
        };
        let mut victim = lock(victim);
        let sectors = victim.size_bytes() / SECTOR as u64;
        if sectors > 0 {
            let offset = self.prng.below(sectors) * SECTOR as u64;
            let mut room = (victim.size_bytes() - offset) as usize;
            let fitting = pieces.iter().map(|piece| {
                let taken = piece.slice(..piece.len().min(room));
                room -= taken.len();
                taken
            });
            let fitting: Vec<Bytes> = fitting.collect();
            let _ = victim.write(offset, &fitting, None, u64::MAX);
        }
    }

    fn find(&self, name: &str) -> io::Result<&InodeRef> {
        self.current.get(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no file {name}")))
    }

    fn change_directory(&mut self, change: DirectoryChange) {
        apply_change(&mut self.current, change.clone());
        self.pending.push_back(change);
        if self.pending.len() > DIRECTORY_PENDING_MAX {
            let oldest = self.pending.pop_front().expect("the list is not empty");
            apply_change(&mut self.durable, oldest);
        }
    }

    /// A prefix of the changes that were not flushed has reached the medium.
    fn crash_directory(&mut self, survival: Survival) {
        let mut pending = std::mem::take(&mut self.pending);
        let kept = match survival.keep_ppm {
            PPM => pending.len(),
            0 => 0,
            _ => self.prng.below(pending.len() as u64 + 1) as usize,
        };
        for change in pending.drain(..kept) {
            apply_change(&mut self.durable, change);
        }
        self.current = self.durable.clone();
    }
}

fn apply_change(directory: &mut BTreeMap<String, InodeRef>, change: DirectoryChange) {
    match change {
        DirectoryChange::Created(name, inode) => {
            directory.insert(name, inode);
        }
        DirectoryChange::Renamed(from, to) => {
            let inode = directory.remove(&from).expect("a change applies to the directory it was made in");
            directory.insert(to, inode);
        }
        DirectoryChange::Removed(name) => {
            directory.remove(&name);
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str, mode: OpenMode, caching: Caching) -> io::Result<Arc<dyn File>> {
        assert!(!name.is_empty() && !name.contains('/'), "{name:?} is not the name of a file in a flat directory");
        let inode = match mode {
            OpenMode::Existing => {
                let state = self.state();
                self.check_readable(&state)?;
                state.find(name)?.clone()
            }
            OpenMode::CreateNew => self.change(|state| {
                if state.current.contains_key(name) {
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} exists")));
                }
                let inode = InodeRef::default();
                state.change_directory(DirectoryChange::Created(name.into(), inode.clone()));
                Ok(inode)
            })?,
        };
        let disk = self.this.upgrade().expect("a method of a disk runs while the disk is held");
        let opened_at = self.state().crashes;
        Ok(Arc::new(SimFile { disk, inode, opened_at, caching }))
    }

    fn list(&self) -> io::Result<Vec<FileEntry>> {
        let state = self.state();
        self.check_readable(&state)?;
        let entry = |(name, inode): (&String, &InodeRef)| FileEntry {
            name: name.clone(),
            size_bytes: lock(inode).size_bytes(),
        };
        Ok(state.current.iter().map(entry).collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|state| {
            state.find(from)?;
            if from != to {
                state.change_directory(DirectoryChange::Renamed(from.into(), to.into()));
            }
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|state| {
            state.find(name)?;
            state.change_directory(DirectoryChange::Removed(name.into()));
            Ok(())
        })
    }

    fn flush_directory(&self) -> io::Result<()> {
        let mut state = self.state();
        state.counts.directory_flushes += 1;
        if self.begin_change(&state)? {
            return Err(power_is_off());
        }
        if state.strikes(Fault::FlushError) {
            return Err(io::Error::other("injected: the flush of the directory failed"));
        }
        if !state.ignore_directory_flushes {
            state.pending.clear();
            state.durable = state.current.clone();
        }
        Ok(())
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let state = self.state();
        self.check_readable(&state)?;
        let available_bytes = state.capacity_bytes.saturating_sub(state.used_bytes());
        Ok(DiskSpace { total_bytes: state.capacity_bytes, available_bytes })
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.state();
        self.check_readable(&state)?;
        if state.lock_holder.is_some() {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another engine holds the lock of this disk"));
        }
        state.operations_begun += 1;
        let ticket = state.operations_begun;
        state.lock_holder = Some(ticket);
        let disk = self.this.upgrade().expect("a method of a disk runs while the disk is held");
        Ok(Box::new(LockGuard { disk, ticket }))
    }

    fn describe(&self) -> String {
        format!("simulated disk {} of node {}", self.name, self.node)
    }
}

struct LockGuard {
    disk: Arc<SimDisk>,
    ticket: u64,
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.lock_holder == Some(self.ticket) {
            state.lock_holder = None;
        }
    }
}

/// An open file. Of no use after a crash of its disk, like everything else that the process held.
struct SimFile {
    disk: Arc<SimDisk>,
    inode: InodeRef,
    opened_at: u64,
    caching: Caching,
}

impl SimFile {
    fn check_alignment(&self, offset: u64, len: usize) {
        let aligned = offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK);
        assert!(
            aligned || self.caching == Caching::Buffered,
            "direct I/O of {len} bytes at {offset} is not aligned to {BLOCK}"
        );
    }

    fn check_fresh(&self, state: &State) -> io::Result<()> {
        if self.opened_at == state.crashes {
            Ok(())
        } else {
            Err(io::Error::other("this file was opened before the crash"))
        }
    }

    fn begin_read(&self, offset: u64, len: usize, reply: Reply<Bytes>) -> Result<(), (Reply<Bytes>, io::Error)> {
        let mut state = self.disk.state();
        if let Err(error) = self.check_fresh(&state).and_then(|()| self.disk.check_readable(&state)) {
            return Err((reply, error));
        }
        let range = state.model.read_nanos;
        let nanos = state.latency_nanos(range, len);
        let kind = OperationKind::Read { inode: self.inode.clone(), offset, len, reply };
        self.disk.begin(&mut state, kind, nanos, fold(offset, len as u64));
        Ok(())
    }

    fn begin_write(
        &self,
        offset: u64,
        pieces: Vec<Bytes>,
        flush: Flush,
        reply: Reply<()>,
    ) -> Result<(), (Reply<()>, io::Error)> {
        let mut state = self.disk.state();
        if let Err(error) = self.check_fresh(&state).and_then(|()| self.disk.begin_change(&state)) {
            return Err((reply, error));
        }
        let len: usize = pieces.iter().map(Bytes::len).sum();
        state.counts.writes += 1;
        state.counts.written_bytes += len as u64;
        let faults = [Fault::WriteError, Fault::LostWrite, Fault::MisdirectedWrite];
        let fault = faults.into_iter().filter(|fault| state.strikes(*fault)).last();
        if let Some(fault) = fault {
            self.disk.core.trace(TraceKind::Fault, u64::from(self.disk.node.0), fault as u64);
        }
        let range = state.model.write_nanos;
        let nanos = state.latency_nanos(range, len);
        let digest = digest_pieces(offset, &pieces);
        let kind = OperationKind::Write { inode: self.inode.clone(), offset, pieces, flush, fault, reply };
        self.disk.begin(&mut state, kind, nanos, digest);
        Ok(())
    }
}

async fn answer<T>(receiver: oneshot::Receiver<io::Result<T>>) -> io::Result<T> {
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the node crashed during the operation")))
}

impl File for SimFile {
    fn size_bytes(&self) -> io::Result<u64> {
        let state = self.disk.state();
        self.check_fresh(&state)?;
        self.disk.check_readable(&state)?;
        Ok(lock(&self.inode).size_bytes())
    }

    fn read_at(&self, offset: u64, len: usize) -> IoFuture<Bytes> {
        self.check_alignment(offset, len);
        let (reply, receiver) = oneshot::channel();
        if let Err((reply, error)) = self.begin_read(offset, len, reply) {
            drop(reply.send(Err(error)));
        }
        Box::pin(answer(receiver))
    }

    fn read_now(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.check_alignment(offset, len);
        let mut state = self.disk.state();
        self.check_fresh(&state)?;
        self.disk.check_readable(&state)?;
        state.read(&self.inode, offset, len)
    }

    fn write_at(&self, offset: u64, pieces: Vec<Bytes>, flush: Flush) -> IoFuture<()> {
        self.check_alignment(offset, pieces.iter().map(Bytes::len).sum());
        let (reply, receiver) = oneshot::channel();
        if let Err((reply, error)) = self.begin_write(offset, pieces, flush, reply) {
            drop(reply.send(Err(error)));
        }
        Box::pin(answer(receiver))
    }

    fn flush(&self) -> IoFuture<()> {
        let (reply, receiver) = oneshot::channel();
        let mut state = self.disk.state();
        match self.check_fresh(&state) {
            Ok(()) => self.disk.begin_flush(&mut state, self.inode.clone(), reply),
            Err(error) => drop(reply.send(Err(error))),
        }
        drop(state);
        Box::pin(answer(receiver))
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        let fresh = self.check_fresh(&self.disk.state());
        fresh?;
        self.disk.change(|_| {
            lock(&self.inode).set_size(size_bytes);
            Ok(())
        })
    }
}
