//! What is on a disk: a directory of inodes, as everybody sees it and as a crash may leave it.

use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};

use crate::env::FileEntry;
use crate::sim::executor::lock;
use crate::sim::inode::{Inode, Lost, SECTOR, Survival};
use crate::sim::prng::{PPM, Prng};

/// Directory changes that may wait for a flush. Beyond that the oldest become durable by themselves, as they do on a
/// real file system after some seconds.
const DIRECTORY_PENDING_MAX: usize = 4096;

pub(super) type InodeRef = Arc<Mutex<Inode>>;
type Directory = BTreeMap<String, InodeRef>;

#[derive(Default)]
pub(super) struct Medium {
    /// The directory as everybody sees it, and as it is durable; `pending` leads from the latter to the former.
    current: Directory,
    durable: Directory,
    pending: VecDeque<DirectoryChange>,
}

#[derive(Clone)]
enum DirectoryChange {
    Created(String, InodeRef),
    Renamed(String, String),
    Removed(String),
}

/// A write that was in flight.
pub(super) struct UnfinishedWrite {
    pub(super) inode: InodeRef,
    pub(super) offset: u64,
    pub(super) pieces: Vec<Bytes>,
}

impl Medium {
    pub(super) fn find(&self, name: &str) -> io::Result<&InodeRef> {
        self.current.get(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no file {name}")))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.current.keys()
    }

    pub(super) fn list(&self) -> Vec<FileEntry> {
        let entry = |(name, inode): (&String, &InodeRef)| {
            let size_bytes = lock(inode).size_bytes();
            FileEntry { name: name.clone(), size_bytes }
        };
        self.current.iter().map(entry).collect()
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.current.values().map(|inode| lock(inode).allocated_bytes()).sum()
    }

    pub(super) fn create(&mut self, name: &str) -> io::Result<InodeRef> {
        if self.current.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} exists")));
        }
        let inode = InodeRef::default();
        self.change(DirectoryChange::Created(name.into(), inode.clone()));
        Ok(inode)
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.find(from)?;
        if from != to {
            self.change(DirectoryChange::Renamed(from.into(), to.into()));
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> io::Result<()> {
        self.find(name)?;
        self.change(DirectoryChange::Removed(name.into()));
        Ok(())
    }

    pub(super) fn flush_directory(&mut self) {
        for change in self.pending.drain(..) {
            apply(&mut self.durable, change);
        }
    }

    fn change(&mut self, change: DirectoryChange) {
        apply(&mut self.current, change.clone());
        self.pending.push_back(change);
        if self.pending.len() > DIRECTORY_PENDING_MAX {
            let oldest = self.pending.pop_front().expect("the list is not empty");
            apply(&mut self.durable, oldest);
        }
    }

    /// Power is lost: in-flight writes count as begun and not flushed, then the directory and each file go back as
    /// far as chance wants.
    pub(super) fn lose_power(
        &mut self,
        mut writes: Vec<UnfinishedWrite>,
        capacity_bytes: u64,
        prng: &mut Prng,
    ) -> Lost {
        let survival = Survival::draw(prng);
        self.finish_writes(&mut writes, capacity_bytes, prng);
        let kept = match survival.keep_ppm {
            PPM => self.pending.len(),
            0 => 0,
            _ => prng.below(self.pending.len() as u64 + 1) as usize,
        };
        for change in self.pending.drain(..kept) {
            apply(&mut self.durable, change);
        }
        let mut lost = Lost { names: self.pending.len() as u64, ..Lost::default() };
        self.pending.clear();
        self.current = self.durable.clone();
        for inode in self.current.values() {
            let of_file = lock(inode).crash(prng, survival);
            lost.sectors += of_file.sectors;
            lost.torn += of_file.torn;
        }
        lost
    }

    /// Applies writes that were in flight, in any order.
    pub(super) fn finish_writes(&self, writes: &mut Vec<UnfinishedWrite>, capacity_bytes: u64, prng: &mut Prng) {
        while !writes.is_empty() {
            let write = writes.swap_remove(prng.below(writes.len() as u64) as usize);
            let room_bytes = capacity_bytes.saturating_sub(self.used_bytes());
            // What does not fit any more has simply not been written.
            let _ = lock(&write.inode).write(write.offset, &write.pieces, None, room_bytes);
        }
    }

    /// Writes somewhere inside of what some file has.
    pub(super) fn write_anywhere(&mut self, pieces: &[Bytes], prng: &mut Prng) {
        let Some(victim) = self.draw_file(prng) else { return };
        let mut victim = lock(&victim);
        let sectors = victim.size_bytes() / SECTOR as u64;
        if sectors == 0 {
            return;
        }
        let offset = prng.below(sectors) * SECTOR as u64;
        let mut room = (victim.size_bytes() - offset) as usize;
        let mut fitting = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let taken = piece.slice(..piece.len().min(room));
            room -= taken.len();
            fitting.push(taken);
        }
        victim.write(offset, &fitting, None, u64::MAX).expect("room was not bounded");
    }

    /// A byte in what is allocated, and one bit of it. `None` on an empty disk.
    pub(super) fn draw_bit(&self, prng: &mut Prng) -> Option<(String, u64, u8)> {
        let mut sectors = Vec::new();
        for (name, inode) in &self.current {
            let inode = lock(inode);
            let inside = inode.allocated_sectors().map(|index| (index * SECTOR) as u64);
            sectors.extend(inside.filter(|start| *start < inode.size_bytes()).map(|start| (name, start)));
        }
        if sectors.is_empty() {
            return None;
        }
        let (name, start) = sectors.swap_remove(prng.below(sectors.len() as u64) as usize);
        let end = lock(&self.current[name]).size_bytes().min(start + SECTOR as u64);
        Some((name.clone(), prng.between(start, end - 1), 1 << prng.below(8)))
    }

    fn draw_file(&self, prng: &mut Prng) -> Option<InodeRef> {
        let count = self.current.len() as u64;
        let drawn = if count == 0 { 0 } else { prng.below(count) };
        self.current.values().nth(drawn as usize).cloned()
    }

    /// What is seen now, all durable.
    pub(super) fn copy_as_durable(&self) -> Medium {
        let copy = |(name, inode): (&String, &InodeRef)| {
            let mut inode = lock(inode).clone();
            inode.forget_undo();
            (name.clone(), Arc::new(Mutex::new(inode)))
        };
        let files: Directory = self.current.iter().map(copy).collect();
        Medium { current: files.clone(), durable: files, pending: VecDeque::new() }
    }

    /// A copy that shares nothing with the original, what is not flushed included; `writes` are moved to the copy.
    pub(super) fn deep_copy(&self, writes: &mut Vec<UnfinishedWrite>) -> Medium {
        // Looked up by address, never walked: addresses are not the same in every run.
        let mut copies: BTreeMap<usize, InodeRef> = BTreeMap::new();
        let mut copy = |inode: &InodeRef| {
            let fresh = || Arc::new(Mutex::new(lock(inode).clone()));
            copies.entry(Arc::as_ptr(inode).addr()).or_insert_with(fresh).clone()
        };
        let mut directory = |files: &Directory| files.iter().map(|(n, inode)| (n.clone(), copy(inode))).collect();
        let (current, durable) = (directory(&self.current), directory(&self.durable));
        let change = |change: &DirectoryChange| match change {
            DirectoryChange::Created(name, inode) => DirectoryChange::Created(name.clone(), copy(inode)),
            other => other.clone(),
        };
        let pending = self.pending.iter().map(change).collect();
        for write in writes {
            write.inode = copy(&write.inode);
        }
        Medium { current, durable, pending }
    }
}

fn apply(directory: &mut Directory, change: DirectoryChange) {
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
