//! A simulated disk: one flat directory whose contents survive the crashes of its node, less what was not flushed.
//! What it may do and what it never does is told at the head of [`crate::sim`].

mod faults;
mod file;
mod medium;
#[cfg(test)]
mod tests;

pub use faults::{DiskModel, Fault};

use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use tokio::sync::oneshot;

use super::executor::{Core, Event, EventKey, lock};
use super::prng::{PPM, Prng};
use super::trace::TraceKind;
use crate::env::{Caching, Disk, DiskSpace, File, FileEntry, Flush, OpenMode};
use crate::ids::NodeId;
use faults::{FAULT_COUNT, FaultSetting, Supply};
use file::SimFile;
use medium::{InodeRef, Medium, UnfinishedWrite};

pub(super) use faults::Power;

/// Operations of one disk that may be in flight at once: more is a missing bound in the code under test.
const IN_FLIGHT_MAX: usize = 65_536;

/// Capacity in bytes unless told otherwise.
const CAPACITY_DEFAULT_BYTES: u64 = 1 << 40;

type Reply<T> = oneshot::Sender<io::Result<T>>;

/// One disk of one node, over all starts of the node. [`Disk`] is what the node sees of it; everything else is for
/// tests.
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
    /// From this byte of the file on.
    unreadable: Option<(InodeRef, u64)>,
    capacity_bytes: u64,
    vanished: bool,
    /// Nothing that begins before is done before, in virtual nanoseconds.
    hangs_until_nanos: u64,
    ignore_flushes: bool,
    ignore_directory_flushes: bool,
    medium: Medium,
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
            unreadable: None,
            capacity_bytes: CAPACITY_DEFAULT_BYTES,
            vanished: false,
            hangs_until_nanos: 0,
            ignore_flushes: false,
            ignore_directory_flushes: false,
            medium: Medium::default(),
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

    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The node has lost its power.
    pub(super) fn crash(&self) {
        let mut state = self.state();
        let (operations, writes) = state.stop();
        let state = &mut *state;
        self.core.count_fault("writes in flight at a power cut", writes.len() as u64);
        let lost = state.medium.lose_power(writes, state.capacity_bytes, &mut state.prng);
        self.core.count_fault("sectors lost at a power cut", lost.sectors);
        self.core.count_fault("sectors torn at a power cut", lost.torn);
        self.core.count_fault("names lost at a power cut", lost.names);
        self.forget(operations);
    }

    /// The process has been killed: what the operating system was given, it will finish. Flushed it is not.
    pub(super) fn kill(&self) {
        let mut state = self.state();
        let (operations, mut writes) = state.stop();
        let state = &mut *state;
        state.medium.finish_writes(&mut writes, state.capacity_bytes, &mut state.prng);
        self.forget(operations);
    }

    /// Drops what is in flight, at the end of the simulation.
    pub(super) fn forget_operations(&self) {
        let operations = std::mem::take(&mut self.state().in_flight);
        drop(operations);
    }

    /// Takes back the events of operations; whoever still waits for one is told that the node crashed.
    fn forget(&self, operations: BTreeMap<u64, Operation>) {
        for operation in operations.values() {
            self.core.cancel(operation.event);
        }
    }

    /// Begins a changing operation: whether the power fails in the middle of it.
    fn begin_change(&self, state: &State) -> io::Result<bool> {
        if state.vanished {
            self.core.count_fault("operations on a vanished disk", 1);
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
            self.core.count_fault("operations on a vanished disk", 1);
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
        let hang = state.hangs_until_nanos.saturating_sub(self.core.now_nanos());
        self.core.count_fault("operations on a disk that hangs", u64::from(hang > 0));
        let event = self.core.schedule_in(nanos.max(hang), Event::Disk(this, number));
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
        self.core.count_fault("operations on a vanished disk", u64::from(state.vanished));
        self.core.count_fault("operations on a slow disk", u64::from(state.model.slowness > 1));
        match (kind, gone) {
            (OperationKind::Read { reply, .. }, Some(error)) => Outcome::Read(reply, Err(error)),
            (OperationKind::Write { reply, .. } | OperationKind::Flush { reply, .. }, Some(error)) => {
                Outcome::Done(reply, Err(error))
            }
            (OperationKind::Read { inode, offset, len, reply }, None) => {
                let result = state.read(&inode, offset, len);
                // The only way in which a read fails here.
                self.core.count_fault("reads that fail", u64::from(result.is_err()));
                Outcome::Read(reply, result)
            }
            (OperationKind::Write { inode, offset, pieces, flush, fault, reply }, None) => {
                self.count_injected(fault);
                let result = state.write(&inode, offset, &pieces, fault);
                self.core.count_fault("writes on a full disk", u64::from(is_full(&result)));
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
                    self.count_injected(Some(Fault::FlushError));
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

    fn count_injected(&self, fault: Option<Fault>) {
        if let Some(fault) = fault {
            self.core.count_fault(fault.what(), 1);
        }
    }

    /// A change of the directory or of a size: done at once, durable later. An error when the power fails meanwhile.
    fn change<T>(&self, apply: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        let power_fails = self.begin_change(&state)?;
        let out = apply(&mut state)?;
        if power_fails { Err(power_is_off()) } else { Ok(out) }
    }
}

fn is_full(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
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

    fn room_bytes(&self) -> u64 {
        if self.capacity_bytes == CAPACITY_DEFAULT_BYTES {
            return u64::MAX;
        }
        self.capacity_bytes.saturating_sub(self.medium.used_bytes())
    }

    fn read(&mut self, inode: &InodeRef, offset: u64, len: usize) -> io::Result<Bytes> {
        self.counts.reads += 1;
        if self.strikes(Fault::ReadError) {
            return Err(io::Error::other("injected: the read failed"));
        }
        let is_sick = |(sick, from): &(InodeRef, u64)| Arc::ptr_eq(sick, inode) && offset + len as u64 > *from;
        if self.unreadable.as_ref().is_some_and(is_sick) {
            return Err(io::Error::other("injected: the disk cannot read this"));
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
                self.medium.write_anywhere(pieces, &mut self.prng);
                Ok(())
            }
            Some(_) => {
                let _ = lock(inode).write(offset, pieces, Some(&mut self.prng), room_bytes);
                return Err(io::Error::other("injected: the write failed"));
            }
        };
        written.map_err(|_| io::Error::new(io::ErrorKind::StorageFull, "the disk is full"))
    }

    /// What was in flight is so no more, and what was opened is useless. Returns it, and apart what it would write.
    fn stop(&mut self) -> (BTreeMap<u64, Operation>, Vec<UnfinishedWrite>) {
        let writes = self.unfinished_writes();
        self.crashes += 1;
        self.lock_holder = None;
        (std::mem::take(&mut self.in_flight), writes)
    }

    fn unfinished_writes(&self) -> Vec<UnfinishedWrite> {
        let write = |operation: &Operation| match &operation.kind {
            OperationKind::Write { fault: Some(Fault::LostWrite | Fault::MisdirectedWrite), .. } => None,
            OperationKind::Write { inode, offset, pieces, .. } => {
                Some(UnfinishedWrite { inode: inode.clone(), offset: *offset, pieces: pieces.clone() })
            }
            _ => None,
        };
        self.in_flight.values().filter_map(write).collect()
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str, mode: OpenMode, caching: Caching) -> io::Result<Arc<dyn File>> {
        assert!(!name.is_empty() && !name.contains('/'), "{name:?} is not the name of a file in a flat directory");
        let inode = match mode {
            OpenMode::Existing => {
                let state = self.state();
                self.check_readable(&state)?;
                state.medium.find(name)?.clone()
            }
            OpenMode::CreateNew => self.change(|state| state.medium.create(name))?,
        };
        let disk = self.this.upgrade().expect("a method of a disk runs while the disk is held");
        let opened_at = self.state().crashes;
        Ok(Arc::new(SimFile { disk, inode, opened_at, caching }))
    }

    fn list(&self) -> io::Result<Vec<FileEntry>> {
        let state = self.state();
        self.check_readable(&state)?;
        Ok(state.medium.list())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|state| state.medium.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|state| state.medium.remove(name))
    }

    fn flush_directory(&self) -> io::Result<()> {
        let mut state = self.state();
        state.counts.directory_flushes += 1;
        if self.begin_change(&state)? {
            return Err(power_is_off());
        }
        if state.strikes(Fault::DirectoryFlushError) {
            self.count_injected(Some(Fault::DirectoryFlushError));
            return Err(io::Error::other("injected: the flush of the directory failed"));
        }
        if !state.ignore_directory_flushes {
            state.medium.flush_directory();
        }
        Ok(())
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let state = self.state();
        self.check_readable(&state)?;
        let available_bytes = state.capacity_bytes.saturating_sub(state.medium.used_bytes());
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
