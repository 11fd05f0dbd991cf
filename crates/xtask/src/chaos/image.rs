//! A disk in memory that knows what was flushed: a power cut at any instant keeps that, and of what was written since
//! then whatever chance wants, down to single sectors.
//!
//! Contents are pages that are shared and copied only when they change, so that a cut costs milliseconds and a few bytes,
//! and hundreds of cut disks fit beside the live one.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Index, IndexMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::random::Random;

pub const PAGE: usize = 4096;

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;

/// How long a flush takes, as on a disk that has a platter or flash behind its memory.
const FLUSH_TIME: Duration = Duration::from_millis(2);

/// `None`: zeros.
type Page = Option<Arc<[u8; PAGE]>>;

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    #[default]
    Nothing,
    /// It answers nothing but errors.
    Gone,
    /// Writes go through, flushes fail.
    FlushFails,
    /// Each request takes this much longer.
    Slow(Duration),
}

/// What a power cut leaves of the writes since the last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    Nothing,
    Everything,
    /// The first ones, and a part of the next.
    First,
    /// Any of them, each as a whole.
    AnyWrites,
    /// Any of their sectors.
    AnySectors,
}

impl Survivors {
    pub fn draw(random: &mut Random) -> Survivors {
        use Survivors::{AnySectors, AnyWrites, Everything, First, Nothing};
        [Nothing, Everything, First, First, AnyWrites, AnyWrites, AnySectors, AnySectors][random.below(8) as usize]
    }
}

/// Pages by number, of those that were kept.
#[derive(Default)]
struct Kept(BTreeMap<usize, Page>);

impl Index<usize> for Kept {
    type Output = Page;
    fn index(&self, page: usize) -> &Page {
        self.0.get(&page).expect("a page is kept when it is written")
    }
}

impl IndexMut<usize> for Kept {
    fn index_mut(&mut self, page: usize) -> &mut Page {
        self.0.get_mut(&page).expect("a page is kept when it is written")
    }
}

struct Write {
    offset: usize,
    data: Vec<u8>,
}

#[derive(Default)]
struct State {
    /// What a read sees.
    current: Vec<Page>,
    /// Pages that were written since the last flush, as they were then.
    flushed: Kept,
    /// Writes since the last flush, in their order.
    since: Vec<Write>,
    /// Writes that were flushed so far.
    flushed_count: u64,
    trouble: Trouble,
}

pub struct Image {
    pub len_bytes: u64,
    state: Mutex<State>,
}

impl Image {
    pub fn new(len_bytes: u64) -> Image {
        let state = State { current: vec![None; len_bytes as usize / PAGE], ..State::default() };
        Image { len_bytes, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on.
    pub fn set_trouble(&self, trouble: Trouble) {
        self.lock().trouble = trouble;
    }

    /// The state, once the trouble has had its way.
    fn serve(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        match state.trouble {
            Trouble::Gone => Err(io::Error::from_raw_os_error(libc::EIO)),
            Trouble::Slow(time) => {
                drop(state);
                std::thread::sleep(time);
                Ok(self.lock())
            }
            Trouble::Nothing | Trouble::FlushFails => Ok(state),
        }
    }

    pub fn read(&self, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        let state = self.serve()?;
        let end = (offset + len).min(self.len_bytes as usize);
        let mut out = vec![0; end.saturating_sub(offset)];
        for (page, within, taken) in pieces(offset, out.len()) {
            if let Some(bytes) = &state.current[page] {
                let at = page * PAGE + within - offset;
                out[at..at + taken].copy_from_slice(&bytes[within..within + taken]);
            }
        }
        Ok(out)
    }

    pub fn write(&self, offset: usize, data: &[u8]) -> io::Result<()> {
        let mut state = self.serve()?;
        if offset + data.len() > self.len_bytes as usize {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let state = &mut *state;
        for (page, _, _) in pieces(offset, data.len()) {
            state.flushed.0.entry(page).or_insert_with(|| state.current[page].clone());
        }
        apply(&mut state.current, offset, data);
        state.since.push(Write { offset, data: data.to_vec() });
        Ok(())
    }

    /// Takes its time. What is written meanwhile is not covered.
    pub fn flush(&self) -> io::Result<()> {
        let state = self.serve()?;
        let covered = state.flushed_count + state.since.len() as u64;
        drop(state);
        std::thread::sleep(FLUSH_TIME);
        let mut state = self.serve()?;
        if state.trouble == Trouble::FlushFails {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        // Another flush may have covered some of it meanwhile.
        let count = covered.saturating_sub(state.flushed_count) as usize;
        state.settle(count);
        Ok(())
    }

    pub fn has_unflushed(&self) -> bool {
        !self.lock().since.is_empty()
    }
}

impl State {
    /// The first `count` writes since the last flush are durable.
    fn settle(&mut self, count: usize) {
        let later = self.since.split_off(count);
        let mut flushed = std::mem::take(&mut self.flushed);
        for write in self.since.drain(..) {
            apply(&mut flushed, write.offset, &write.data);
        }
        for write in &later {
            for (page, _, _) in pieces(write.offset, write.data.len()) {
                if let Some(contents) = flushed.0.remove(&page) {
                    self.flushed.0.insert(page, contents);
                }
            }
        }
        self.since = later;
        self.flushed_count += count as u64;
    }
}

/// The same contents, all flushed, without trouble.
impl Clone for Image {
    fn clone(&self) -> Image {
        let state = State { current: self.lock().current.clone(), ..State::default() };
        Image { len_bytes: self.len_bytes, state: Mutex::new(state) }
    }
}

/// What is left after a power cut.
pub struct Cut {
    pub disks: Vec<Left>,
    /// Writes that were not flushed at that moment.
    pub unflushed: usize,
}

/// What a power cut leaves of a disk.
#[derive(Clone)]
pub struct Left {
    pub image: Image,
    /// What a disk that tears no page would have kept of the same writes: each piece as its first sector went.
    pub untorn: Image,
}

impl Left {
    /// Of a disk that was not cut.
    pub fn of(image: Image) -> Left {
        Left { untorn: image.clone(), image }
    }

    /// Whether the cut tore the page in which this sector is.
    pub fn is_torn(&self, sector: u64) -> bool {
        self.page_of(sector).is_some_and(|page| self.image.lock().current[page] != self.untorn.lock().current[page])
    }

    /// As if the cut had not torn that page.
    pub fn mend(&mut self, sector: u64) {
        if let Some(page) = self.page_of(sector) {
            self.image.lock().current[page] = self.untorn.lock().current[page].clone();
        }
    }

    fn page_of(&self, sector: u64) -> Option<usize> {
        let page = (sector / (PAGE / SECTOR) as u64) as usize;
        (page < self.image.len_bytes as usize / PAGE).then_some(page)
    }
}

/// The power fails on all disks at one instant.
pub fn cut(disks: &[Arc<Image>], survivors: Survivors, random: &mut Random) -> Cut {
    let states: Vec<_> = disks.iter().map(|disk| disk.lock()).collect();
    let unflushed = states.iter().map(|state| state.since.len()).sum();
    let left = disks.iter().zip(&states).map(|(disk, state)| {
        let mut current = state.current.clone();
        for (page, flushed) in &state.flushed.0 {
            current[*page] = flushed.clone();
        }
        let mut untorn = current.clone();
        for (write, kept) in state.since.iter().zip(kept_of(&state.since, survivors, random)) {
            let mut at = 0;
            for run in kept.chunk_by(|one, next| one == next) {
                let end = (at + run.len() * SECTOR).min(write.data.len());
                if run[0] {
                    apply(&mut current, write.offset + at, &write.data[at..end]);
                }
                at = end;
            }
            for (page, within, len) in pieces(write.offset, write.data.len()) {
                let at = page * PAGE + within - write.offset;
                if kept[at / SECTOR] {
                    apply(&mut untorn, write.offset + at, &write.data[at..at + len]);
                }
            }
        }
        let image =
            |current| Image { len_bytes: disk.len_bytes, state: Mutex::new(State { current, ..State::default() }) };
        Left { image: image(current), untorn: image(untorn) }
    });
    Cut { disks: left.collect(), unflushed }
}

/// Which sectors of each write are kept.
fn kept_of(writes: &[Write], survivors: Survivors, random: &mut Random) -> Vec<Vec<bool>> {
    let whole = match survivors {
        Survivors::Nothing => 0,
        Survivors::First => random.below(writes.len() as u64 + 1) as usize,
        _ => writes.len(),
    };
    let kept = writes.iter().enumerate().map(|(index, write)| {
        let sectors = write.data.len().div_ceil(SECTOR);
        match survivors {
            Survivors::AnyWrites => vec![random.chance(50); sectors],
            Survivors::AnySectors => (0..sectors).map(|_| random.chance(50)).collect(),
            Survivors::First if index == whole => {
                let first = random.below(sectors as u64 + 1) as usize;
                (0..sectors).map(|sector| sector < first).collect()
            }
            _ => vec![index < whole; sectors],
        }
    });
    kept.collect()
}

fn apply(pages: &mut impl IndexMut<usize, Output = Page>, offset: usize, data: &[u8]) {
    let mut rest = data;
    for (number, within, taken) in pieces(offset, data.len()) {
        let (part, behind) = rest.split_at(taken);
        rest = behind;
        let page = &mut pages[number];
        if taken == PAGE && part.iter().all(|byte| *byte == 0) {
            *page = None;
            continue;
        }
        let bytes = Arc::make_mut(page.get_or_insert_with(|| Arc::new([0; PAGE])));
        bytes[within..within + taken].copy_from_slice(part);
    }
}

/// The pages that a range touches: page, offset in it, length in it.
fn pieces(offset: usize, len: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let within = at % PAGE;
        let taken = (PAGE - within).min(end - at);
        let piece = (at / PAGE, within, taken);
        at += taken;
        (taken > 0).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice::from_ref;

    /// Sector 0 to 23 hold 1, flushed; then 2 goes to sectors 0 to 11 and 3 to sectors 8 to 19.
    fn disk() -> Arc<Image> {
        let image = Image::new(1 << 20);
        image.write(0, &[1; 24 * SECTOR]).unwrap();
        image.flush().unwrap();
        image.write(0, &[2; 12 * SECTOR]).unwrap();
        image.write(8 * SECTOR, &[3; 12 * SECTOR]).unwrap();
        Arc::new(image)
    }

    fn sectors(image: &Image) -> Vec<u8> {
        let bytes = image.read(0, 24 * SECTOR).unwrap();
        bytes
            .chunks(SECTOR)
            .map(|sector| sector.iter().all(|b| *b == sector[0]).then_some(sector[0]).unwrap())
            .collect()
    }

    #[test]
    fn a_cut_keeps_what_was_flushed_and_nothing_or_everything_since() {
        let disk = disk();
        let mut random = Random::new(1);
        let live = [[2; 8].as_slice(), &[3; 12], &[1; 4]].concat();
        assert_eq!(sectors(&disk), live);
        let left = cut(from_ref(&disk), Survivors::Nothing, &mut random);
        assert_eq!((sectors(&left.disks[0].image), left.unflushed), (vec![1; 24], 2));
        assert_eq!(sectors(&cut(from_ref(&disk), Survivors::Everything, &mut random).disks[0].image), live);
        disk.flush().unwrap();
        assert_eq!(sectors(&cut(from_ref(&disk), Survivors::Nothing, &mut random).disks[0].image), live);
        assert_eq!(sectors(&disk), live, "the live disk does not notice");
    }

    #[test]
    fn a_flush_covers_only_what_was_written_before_it() {
        let disk = disk();
        // As if the second write had come while the first was being flushed.
        disk.lock().settle(1);
        let left = cut(from_ref(&disk), Survivors::Nothing, &mut Random::new(1));
        assert_eq!(sectors(&left.disks[0].image), [[2; 12].as_slice(), &[1; 12]].concat());
        assert_eq!(left.unflushed, 1);
        disk.flush().unwrap();
        assert!(!disk.has_unflushed() && disk.lock().flushed.0.is_empty());
    }

    #[test]
    fn a_cut_never_invents_and_sectors_tear() {
        let disk = disk();
        let mut seen_torn = false;
        for seed in 0..100 {
            for survivors in [Survivors::First, Survivors::AnyWrites, Survivors::AnySectors] {
                let left = cut(from_ref(&disk), survivors, &mut Random::new(seed));
                let found = sectors(&left.disks[0].image);
                for (index, value) in found.iter().enumerate() {
                    let possible: &[u8] = match index {
                        0..8 => &[1, 2],
                        8..12 => &[1, 2, 3],
                        12..20 => &[1, 3],
                        _ => &[1],
                    };
                    assert!(possible.contains(value), "sector {index} holds {value} after {survivors:?}");
                }
                seen_torn |= found[0] != found[7];
                // Sectors 0 to 7 are a page, and the writes meet in the next.
                let untorn = sectors(&left.disks[0].untorn);
                assert!(untorn[..8].iter().all(|value| *value == found[0]), "{survivors:?}: {untorn:?}");
                assert!(untorn[16..20].iter().all(|value| *value == found[16]), "{survivors:?}: {untorn:?}");
                let mut mended = left.disks[0].clone();
                assert_eq!(mended.is_torn(7), found[..8] != untorn[..8], "{survivors:?}: {found:?}");
                assert!(!mended.is_torn(24) && !mended.is_torn(u64::MAX), "nothing was written there");
                mended.mend(7);
                mended.mend(u64::MAX);
                assert_eq!(sectors(&mended.image), [&untorn[..8], &found[8..]].concat());
                assert!(!mended.is_torn(0));
                if matches!(survivors, Survivors::AnyWrites) {
                    assert_eq!(found, untorn);
                }
            }
        }
        assert!(seen_torn);
    }

    #[test]
    fn trouble_shows_and_passes() {
        let disk = disk();
        disk.set_trouble(Trouble::FlushFails);
        assert!(disk.flush().is_err() && disk.read(0, 1).is_ok() && disk.write(0, &[9]).is_ok());
        disk.set_trouble(Trouble::Gone);
        assert!(disk.flush().is_err() && disk.read(0, 1).is_err() && disk.write(0, &[9]).is_err());
        disk.set_trouble(Trouble::Nothing);
        assert!(disk.flush().is_ok());
        assert!(disk.write((1 << 20) - 1, &[1, 2]).is_err(), "beyond the end");
        assert_eq!(disk.read((1 << 20) - 1, 10).unwrap(), [0]);
    }
}
