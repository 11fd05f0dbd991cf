//! The contents of one simulated file, with what a crash may still undo. Pure data: no time, no faults of its own.
//!
//! A file is a sparse list of 4 KiB sectors. Each sector that was written since the last flush remembers what it held
//! before, once per write, so that a crash can go back to any of these versions, sector by sector.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::prng::{PPM, Prng};
use crate::buffer::AlignedBuf;

pub(super) const SECTOR: usize = 4096;

/// What the medium writes as a whole: a sector may be torn between these.
const ATOM: usize = 512;

/// How many versions of one sector (or of the size) are told apart between two flushes. Writes beyond that count as
/// flushed with the write before them, which costs some coverage and breaks no promise.
const VERSIONS_MAX: usize = 4;

/// The largest offset that a simulated file may reach, in bytes: its sector list is a plain vector.
const FILE_SIZE_MAX: u64 = 1 << 38;

static ZEROES: [u8; SECTOR] = [0; SECTOR];

type Sector = Option<Arc<[u8]>>;

#[derive(Clone, Default)]
pub(super) struct Inode {
    size_bytes: u64,
    /// `None` is a hole and reads as zeroes. May be shorter than the size says.
    sectors: Vec<Sector>,
    allocated: u64,
    unflushed: BTreeMap<usize, Versions>,
    size_undo: Vec<SizeUndo>,
    /// Counts changes; each undo entry names the change that it undoes.
    changes: u64,
    /// Changes up to this one were in a flush that failed: a later flush no longer makes them durable, as with the
    /// page cache of Linux, which takes pages for clean after it has reported the error once.
    abandoned_upto: u64,
}

/// What a sector held before each of its unflushed changes, oldest first. The common case has one and no allocation.
#[derive(Clone)]
struct Versions {
    first: Undo,
    rest: Vec<Undo>,
}

#[derive(Clone)]
struct Undo {
    change: u64,
    before: Sector,
    by_truncation: bool,
}

#[derive(Clone, Copy)]
struct SizeUndo {
    change: u64,
    before_bytes: u64,
    by_truncation: bool,
}

/// How much of what was not flushed survives a crash. One for the whole disk, so that extremes are met often.
#[derive(Clone, Copy)]
pub(super) struct Survival {
    pub(super) keep_ppm: u64,
    torn_ppm: u64,
}

impl Survival {
    pub(super) const ALL: Survival = Survival { keep_ppm: PPM, torn_ppm: 0 };
    pub(super) const NOTHING: Survival = Survival { keep_ppm: 0, torn_ppm: 0 };

    pub(super) fn draw(prng: &mut Prng) -> Survival {
        let torn_ppm = PPM / 8;
        match prng.below(8) {
            0 => Survival::ALL,
            1 | 2 => Survival::NOTHING,
            3 => Survival { keep_ppm: PPM / 10, torn_ppm },
            4 => Survival { keep_ppm: PPM * 9 / 10, torn_ppm },
            _ => Survival { keep_ppm: PPM / 2, torn_ppm },
        }
    }

    /// A version from `low..=high`, where `high` is the newest.
    fn version(self, prng: &mut Prng, low: usize, high: usize) -> usize {
        if low == high || self.keep_ppm == 0 {
            low
        } else if prng.chance(self.keep_ppm) {
            high
        } else {
            low + prng.below((high - low) as u64) as usize
        }
    }
}

/// What a crash took.
#[derive(Clone, Copy, Default)]
pub(super) struct Lost {
    pub(super) sectors: u64,
    pub(super) torn: u64,
    /// Changes of the directory.
    pub(super) names: u64,
}

/// The write did not fit; what came before the full sector was written.
#[derive(Debug)]
pub(super) struct NoRoom;

impl Inode {
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.allocated * SECTOR as u64
    }

    pub(super) fn read(&self, offset: u64, len: usize) -> Bytes {
        let len = self.size_bytes.saturating_sub(offset).min(len as u64) as usize;
        let mut buffer = AlignedBuf::zeroed(len);
        let out = buffer.as_mut_slice();
        let mut done = 0;
        while done < len {
            let at = offset as usize + done;
            let within = at % SECTOR;
            let count = (SECTOR - within).min(len - done);
            if let Some(Some(sector)) = self.sectors.get(at / SECTOR) {
                out[done..done + count].copy_from_slice(&sector[within..within + count]);
            }
            done += count;
        }
        buffer.freeze()
    }

    /// Writes `pieces` one after the other. With `partial`, only a drawn part of the sectors is written. `room_bytes`
    /// bounds what may be allocated newly.
    pub(super) fn write(
        &mut self,
        offset: u64,
        pieces: &[Bytes],
        mut partial: Option<&mut Prng>,
        room_bytes: u64,
    ) -> Result<(), NoRoom> {
        let len: usize = pieces.iter().map(Bytes::len).sum();
        let end = offset + len as u64;
        assert!(end <= FILE_SIZE_MAX, "a simulated file ends at {FILE_SIZE_MAX} bytes, this write at {end}");
        self.changes += 1;
        let mut room = room_bytes / SECTOR as u64;
        let mut source = Source { pieces, piece: 0, within: 0 };
        let mut at = offset as usize;
        while (at as u64) < end {
            let index = at / SECTOR;
            let within = at % SECTOR;
            let count = (SECTOR - within).min(end as usize - at);
            let contents = source.sector(self.sector(index), within, count);
            if self.sector(index).is_none() {
                if room == 0 {
                    self.grow_to(at as u64);
                    return Err(NoRoom);
                }
                room -= 1;
            }
            if partial.as_mut().is_none_or(|prng| prng.chance(PPM / 2)) {
                self.replace(index, Some(contents), false);
            }
            at += count;
        }
        self.grow_to(end);
        Ok(())
    }

    /// Sets space aside up to `size_bytes`: holes there become zeroes that take room, as far as there is some.
    pub(super) fn reserve(&mut self, size_bytes: u64, room_bytes: u64) -> Result<(), NoRoom> {
        assert!(size_bytes <= FILE_SIZE_MAX, "a simulated file ends at {FILE_SIZE_MAX} bytes");
        let sectors = size_bytes.div_ceil(SECTOR as u64) as usize;
        let holes: Vec<usize> = (0..sectors).filter(|index| self.sector(*index).is_none()).collect();
        let room = usize::try_from(room_bytes / SECTOR as u64).unwrap_or(usize::MAX);
        self.changes += 1;
        let zeroes: Arc<[u8]> = Arc::from(&ZEROES[..]);
        holes.iter().take(room).for_each(|index| self.replace(*index, Some(zeroes.clone()), false));
        if let Some(full) = holes.get(room) {
            self.grow_to((full * SECTOR) as u64);
            return Err(NoRoom);
        }
        self.grow_to(size_bytes);
        Ok(())
    }

    pub(super) fn set_size(&mut self, size_bytes: u64) {
        assert!(size_bytes <= FILE_SIZE_MAX, "a simulated file ends at {FILE_SIZE_MAX} bytes");
        self.changes += 1;
        if size_bytes >= self.size_bytes {
            self.grow_to(size_bytes);
            return;
        }
        self.note_size(true);
        self.size_bytes = size_bytes;
        for (index, contents) in self.beyond(size_bytes) {
            self.replace(index, contents, true);
        }
    }

    /// What a flush that starts now will cover.
    pub(super) fn flush_point(&self) -> u64 {
        self.changes
    }

    /// A flush that started at `upto` has completed.
    pub(super) fn flushed(&mut self, upto: u64) {
        let abandoned = self.abandoned_upto;
        // Only a change that came after a failed flush makes its sector durable, and then as a whole.
        let covered = |changes: &mut dyn Iterator<Item = u64>| {
            let (count, last) = changes.take_while(|c| *c <= upto).fold((0, 0), |(n, _), c| (n + 1, c));
            if last > abandoned { count } else { 0 }
        };
        self.unflushed.retain(|_, versions| {
            let count = covered(&mut std::iter::once(&versions.first).chain(&versions.rest).map(|undo| undo.change));
            versions.drop_oldest(count)
        });
        let count = covered(&mut self.size_undo.iter().map(|undo| undo.change));
        self.size_undo.drain(..count);
    }

    /// A flush that started at `upto` has failed: the changes it should have covered may never become durable.
    pub(super) fn flush_failed(&mut self, upto: u64) {
        self.abandoned_upto = self.abandoned_upto.max(upto);
    }

    /// Power is lost: any subset of what was not flushed survives, in any order, sectors torn between atoms.
    /// Answers how many sectors went back to an earlier version, and how many are a mix of two.
    pub(super) fn crash(&mut self, prng: &mut Prng, survival: Survival) -> Lost {
        let mut lost = Lost::default();
        if self.unflushed.is_empty() && self.size_undo.is_empty() {
            return lost;
        }
        let sizes = self.size_undo.len();
        let kept = survival.version(prng, 0, sizes);
        // File systems truncate atomically: the sectors cut off come back exactly when the old size does.
        let undone_from = self.size_undo[kept..].iter().find(|undo| undo.by_truncation).map_or(u64::MAX, |u| u.change);
        let size_bytes = self.size_undo.get(kept).map_or(self.size_bytes, |undo| undo.before_bytes);
        for (index, versions) in std::mem::take(&mut self.unflushed) {
            let current = self.sectors[index].take();
            let survivor = versions.survivor(current, undone_from, prng, survival, &mut lost);
            self.put(index, survivor);
        }
        self.size_bytes = size_bytes;
        for (index, contents) in self.beyond(size_bytes) {
            self.put(index, contents);
        }
        self.forget_undo();
        self.allocated = self.sectors.iter().flatten().count() as u64;
        lost
    }

    /// Takes everything for durable, the changes of failed flushes included.
    pub(super) fn forget_undo(&mut self) {
        self.unflushed.clear();
        self.size_undo.clear();
        self.abandoned_upto = 0;
    }

    /// Changes bytes behind everybody's back, durably.
    pub(super) fn overwrite(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset as usize;
        let end = at + data.len();
        while at < end {
            let (index, within) = (at / SECTOR, at % SECTOR);
            let count = (SECTOR - within).min(end - at);
            let mut contents = self.sector(index).map_or(ZEROES.to_vec(), |old| old.to_vec());
            let from = at - offset as usize;
            contents[within..within + count].copy_from_slice(&data[from..from + count]);
            if self.put(index, Some(contents.into())).is_none() {
                self.allocated += 1;
            }
            self.unflushed.remove(&index);
            at += count;
        }
        self.size_bytes = self.size_bytes.max(end as u64);
    }

    /// The numbers of the sectors that hold something.
    pub(super) fn allocated_sectors(&self) -> impl Iterator<Item = usize> + '_ {
        self.sectors.iter().enumerate().filter(|(_, sector)| sector.is_some()).map(|(index, _)| index)
    }

    fn sector(&self, index: usize) -> Option<&Arc<[u8]>> {
        self.sectors.get(index).and_then(Option::as_ref)
    }

    /// Puts new contents into a sector and remembers the old.
    fn replace(&mut self, index: usize, contents: Sector, by_truncation: bool) {
        let before = self.put(index, contents);
        match (self.sectors[index].is_some(), before.is_some()) {
            (true, false) => self.allocated += 1,
            (false, true) => self.allocated -= 1,
            _ => {}
        }
        let undo = Undo { change: self.changes, before, by_truncation };
        match self.unflushed.entry(index) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Versions { first: undo, rest: Vec::new() });
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let versions = entry.get_mut();
                if by_truncation || versions.rest.len() + 1 < VERSIONS_MAX || self.abandoned_upto > 0 {
                    versions.rest.push(undo);
                }
            }
        }
    }

    fn put(&mut self, index: usize, contents: Sector) -> Sector {
        if index >= self.sectors.len() {
            self.sectors.resize(index + 1, None);
        }
        std::mem::replace(&mut self.sectors[index], contents)
    }

    fn grow_to(&mut self, size_bytes: u64) {
        if size_bytes > self.size_bytes {
            self.note_size(false);
            self.size_bytes = size_bytes;
        }
    }

    fn note_size(&mut self, by_truncation: bool) {
        if by_truncation || self.size_undo.len() < VERSIONS_MAX || self.abandoned_upto > 0 {
            self.size_undo.push(SizeUndo { change: self.changes, before_bytes: self.size_bytes, by_truncation });
        }
    }

    /// What the sectors at and behind a new end must hold: the cut one padded with zeroes, nothing after it.
    fn beyond(&self, size_bytes: u64) -> Vec<(usize, Sector)> {
        let end = size_bytes as usize;
        let mut out = Vec::new();
        if !end.is_multiple_of(SECTOR)
            && let Some(cut) = self.sector(end / SECTOR)
            && cut[end % SECTOR..] != ZEROES[end % SECTOR..]
        {
            let mut contents = cut.to_vec();
            contents[end % SECTOR..].fill(0);
            out.push((end / SECTOR, Some(contents.into())));
        }
        let after = end.div_ceil(SECTOR)..self.sectors.len();
        out.extend(after.filter(|index| self.sectors[*index].is_some()).map(|index| (index, None)));
        out
    }
}

impl Versions {
    /// Drops the `count` oldest versions; whether any are left.
    fn drop_oldest(&mut self, count: usize) -> bool {
        if count > self.rest.len() {
            return false;
        }
        if count > 0 {
            let mut kept = self.rest.drain(count - 1..);
            let first = kept.next().expect("more versions than are dropped");
            let rest = kept.collect();
            *self = Versions { first, rest };
        }
        true
    }

    /// What the sector holds after a crash, where truncations from the change `undone_from` on did not happen and
    /// earlier ones did.
    fn survivor(
        self,
        current: Sector,
        undone_from: u64,
        prng: &mut Prng,
        survival: Survival,
        lost: &mut Lost,
    ) -> Sector {
        let mut low = 0;
        let mut contents = Vec::with_capacity(self.rest.len() + 2);
        let mut high = None;
        for undo in std::iter::once(self.first).chain(self.rest) {
            if undo.by_truncation && undo.change >= undone_from {
                high.get_or_insert(contents.len());
            } else if undo.by_truncation {
                low = contents.len() + 1;
            }
            contents.push(undo.before);
        }
        contents.push(current);
        let high = high.unwrap_or(contents.len() - 1);
        let version = survival.version(prng, low, high);
        lost.sectors += u64::from(version + 1 < contents.len());
        if low == high || !prng.chance(survival.torn_ppm) {
            return contents.swap_remove(version);
        }
        lost.torn += 1;
        let other = low + prng.below((high - low + 1) as u64) as usize;
        Some(torn(contents[version].as_deref(), contents[other].as_deref(), prng))
    }
}

/// A sector of which some atoms are from one version and the rest from another.
fn torn(one: Option<&[u8]>, other: Option<&[u8]>, prng: &mut Prng) -> Arc<[u8]> {
    let mut out = one.unwrap_or(&ZEROES).to_vec();
    let other = other.unwrap_or(&ZEROES);
    let mask = prng.next_u64();
    for atom in (0..SECTOR / ATOM).filter(|atom| mask >> atom & 1 == 1) {
        let range = atom * ATOM..(atom + 1) * ATOM;
        out[range.clone()].copy_from_slice(&other[range]);
    }
    out.into()
}

/// Walks through the pieces of a write, a sector at a time.
struct Source<'a> {
    pieces: &'a [Bytes],
    piece: usize,
    within: usize,
}

impl Source<'_> {
    /// The sector that holds `old`, with the next `count` bytes of the pieces placed at `start`.
    fn sector(&mut self, old: Option<&Arc<[u8]>>, start: usize, count: usize) -> Arc<[u8]> {
        if let Some(piece) = self.pieces.get(self.piece)
            && count == SECTOR
            && piece.len() - self.within >= SECTOR
        {
            let whole = &piece[self.within..self.within + SECTOR];
            self.within += SECTOR;
            return Arc::from(whole);
        }
        let mut scratch = [0; SECTOR];
        if let Some(old) = old {
            scratch.copy_from_slice(old);
        }
        let mut at = start;
        while at < start + count {
            let rest = &self.pieces[self.piece][self.within..];
            let taken = rest.len().min(start + count - at);
            scratch[at..at + taken].copy_from_slice(&rest[..taken]);
            at += taken;
            self.within += taken;
            if self.within == self.pieces[self.piece].len() {
                self.piece += 1;
                self.within = 0;
            }
        }
        Arc::from(&scratch[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATOMS: usize = 48;

    /// For each atom of a file what it may hold after a crash, oldest first; the last is what it holds now.
    struct Model {
        allowed: Vec<Vec<u8>>,
    }

    /// Random writes, flushes that cover what came before they began, crashes: whatever the crash
    /// leaves was written since the last flush that covered it, or by that flush.
    #[test]
    fn a_crash_leaves_only_what_the_contract_allows() {
        let mut kept_old = 0;
        for seed in 0..2000 {
            let mut prng = Prng::new(seed);
            let mut inode = Inode::default();
            inode.write(0, &[vec![0; ATOMS * ATOM].into()], None, u64::MAX).unwrap();
            inode.flushed(inode.flush_point());
            let mut model = Model { allowed: vec![vec![0]; ATOMS] };
            let mut began = None;
            for value in 1..=prng.between(1, 60) as u8 {
                match prng.below(10) {
                    0 => began = Some((inode.flush_point(), model.allowed.clone())),
                    1 => {
                        if let Some((upto, before)) = began.take() {
                            inode.flushed(upto);
                            model.flushed(&before);
                        }
                    }
                    _ => {
                        let first = prng.below(ATOMS as u64) as usize;
                        let count = prng.between(1, 20).min((ATOMS - first) as u64) as usize;
                        let data = vec![value; count * ATOM];
                        let cut = prng.below(data.len() as u64) as usize;
                        let pieces = [data[..cut].to_vec().into(), data[cut..].to_vec().into()];
                        inode.write((first * ATOM) as u64, &pieces, None, u64::MAX).unwrap();
                        model.allowed[first..first + count].iter_mut().for_each(|atom| atom.push(value));
                    }
                }
                assert_eq!(atoms(&inode), model.allowed.iter().map(|a| a[a.len() - 1]).collect::<Vec<u8>>());
            }
            let survival = Survival::draw(&mut prng);
            inode.crash(&mut prng, survival);
            for (left, allowed) in atoms(&inode).into_iter().zip(&model.allowed) {
                assert!(allowed.contains(&left), "seed {seed}: {left} is none of {allowed:?}");
                kept_old += u32::from(left != allowed[allowed.len() - 1]);
            }
        }
        assert!(kept_old > 1000, "crashes do take back what they may: {kept_old}");
    }

    impl Model {
        /// A flush has completed that began when `before` was allowed: the newest value of that time is the oldest now.
        fn flushed(&mut self, before: &[Vec<u8>]) {
            for (allowed, before) in self.allowed.iter_mut().zip(before) {
                let durable = before[before.len() - 1];
                let position = allowed.iter().rposition(|value| *value == durable);
                if let Some(position) = position {
                    allowed.drain(..position);
                }
            }
        }
    }

    fn atoms(inode: &Inode) -> Vec<u8> {
        inode.read(0, ATOMS * ATOM).chunks(ATOM).map(|atom| atom[0]).collect()
    }

    #[test]
    fn allocation_is_counted() {
        let mut inode = Inode::default();
        inode.write(4096, &[vec![1; 8192].into()], None, u64::MAX).unwrap();
        assert_eq!((inode.allocated_bytes(), inode.size_bytes()), (8192, 12288));
        inode.write(8192, &[vec![1; 8192].into()], None, 4096).unwrap();
        assert!(inode.write(0, &[vec![1; 1].into()], None, 4095).is_err());
        inode.set_size(5000);
        assert_eq!(inode.allocated_bytes(), 4096);
        inode.crash(&mut Prng::new(1), Survival::NOTHING);
        assert_eq!((inode.allocated_bytes(), inode.size_bytes()), (0, 0));
    }

    #[test]
    fn a_failed_flush_is_not_made_good_by_the_next() {
        let mut inode = Inode::default();
        inode.write(0, &[vec![1; 8192].into()], None, u64::MAX).unwrap();
        inode.flushed(inode.flush_point());
        inode.write(0, &[vec![2; 8192].into()], None, u64::MAX).unwrap();
        inode.flush_failed(inode.flush_point());
        inode.write(4096, &[vec![3; 4096].into()], None, u64::MAX).unwrap();
        inode.flushed(inode.flush_point());
        inode.crash(&mut Prng::new(1), Survival::NOTHING);
        assert_eq!((inode.read(0, 1)[0], inode.read(4096, 1)[0]), (1, 3));
    }
}
