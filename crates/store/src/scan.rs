//! Walks the batches of a journal volume and tells a crash's torn tail from damage.
//!
//! What does not verify is damage when a later batch says that everything up to there was on stable storage when it
//! was composed (`durable_upto`), or when the volume was sealed behind it. Then the walk goes on at the next batch
//! header that verifies. Otherwise it is what a crash left of writes that nobody was told about: the volume is cut
//! there.

use base::buffer::BLOCK;
use base::env::File;
use base::plant::{self, Plant};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::format::Seed;
use crate::format::batch::{self, BatchHeader, Contents};
use crate::inner::Pacer;

/// Bytes read at once.
const WINDOW_LEN: u64 = 1 << 20;

/// How far a volume counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// A later list says that it ends here: everything below was durable.
    Sealed(u64),
    /// It was being written: its end is to be found, at most here.
    Open(u64),
}

/// A stretch of the volume, in order.
#[derive(Clone, Debug)]
pub enum Item {
    Batch(FoundBatch),
    /// No batch can be made out here.
    Gap(Range<u64>),
}

#[derive(Clone, Debug)]
pub struct FoundBatch {
    pub header: BatchHeader,
    /// The whole batch.
    pub data: Bytes,
    pub contents: Contents,
    /// Both headers verified. One that did not may be the trace of a crash: the body of a closing batch is all zeroes,
    /// and verifies without having been written.
    pub headers_whole: bool,
    /// What is wrong although no record need be: for the report.
    pub blemish: Option<&'static str>,
}

impl FoundBatch {
    /// Whether every byte of it verifies, and it follows the batch before.
    pub fn is_flawless(&self) -> bool {
        let contents = &self.contents;
        let all_good = contents.unknown.is_none() && contents.records.iter().all(|record| record.content.is_ok());
        contents.intact && self.headers_whole && self.blemish.is_none() && all_good
    }
}

impl Item {
    fn start(&self) -> u64 {
        match self {
            Item::Batch(batch) => batch.header.position.offset,
            Item::Gap(range) => range.start,
        }
    }

    /// What it takes; where nothing was found, at least the block in which a batch would begin.
    fn range(&self) -> Range<u64> {
        match self {
            Item::Batch(batch) => self.start()..batch.header.end(),
            Item::Gap(range) => range.start..range.end.max(range.start + BLOCK as u64),
        }
    }

    fn is_whole(&self) -> bool {
        matches!(self, Item::Batch(batch) if batch.contents.intact && batch.headers_whole)
    }
}

/// Decides, item by item, what is certain. Pure: fed by the walk below, and by tests.
pub struct Judge {
    sealed: bool,
    /// Highest offset that some verified header says was durable.
    durable_upto: u64,
    undecided: VecDeque<Item>,
}

impl Judge {
    pub fn new(extent: Extent) -> Judge {
        let sealed = matches!(extent, Extent::Sealed(_));
        Judge { sealed, durable_upto: 0, undecided: VecDeque::new() }
    }

    /// Takes the next item; gives those that are now known to count, in order.
    pub fn take(&mut self, item: Item) -> Vec<Item> {
        if let Item::Batch(batch) = &item {
            let vouched = if plant::is(Plant::CutDamage) { 0 } else { batch.header.position.durable_upto };
            self.durable_upto = self.durable_upto.max(vouched);
        }
        self.undecided.push_back(item);
        let mut certain = Vec::new();
        while let Some(front) = self.undecided.front() {
            if !front.is_whole() && !self.sealed && front.start() >= self.durable_upto {
                break;
            }
            certain.extend(self.undecided.pop_front());
        }
        certain
    }

    /// The first item that never became certain: the volume must be cut before it.
    pub fn cut(&self) -> Option<Range<u64>> {
        self.undecided.front().map(Item::range)
    }
}

/// What a walk ended with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanEnd {
    /// Where the volume counts up to.
    pub end: u64,
    /// The last batch that counts.
    pub last: Option<BatchHeader>,
    /// Bytes between the end and the last byte that is not zero space, when a crash cut a batch.
    pub torn_bytes: u64,
    /// Why some of the batch at the end that was found could not be read: it may count, and more behind it. (Without it, nothing behind it
    /// was acknowledged: batches become durable one after the other.)
    pub unread: Option<String>,
}

/// Walks a volume and hands every item that counts to `visit`.
pub async fn scan(file: &Arc<dyn File>, seed: Seed, extent: Extent, visit: &mut (dyn FnMut(Item) + Send)) -> ScanEnd {
    scan_paced(file, seed, extent, None, visit).await
}

/// As [`scan`], at the speed of `pacer`.
pub async fn scan_paced(
    file: &Arc<dyn File>,
    seed: Seed,
    extent: Extent,
    pacer: Option<&Pacer>,
    visit: &mut (dyn FnMut(Item) + Send),
) -> ScanEnd {
    let (Extent::Sealed(limit) | Extent::Open(limit)) = extent;
    let limit = limit - limit % BLOCK as u64;
    let mut reader = Reader { file, window: Bytes::new(), window_at: 0, limit, pacer, unread: Unread::default() };
    let mut judge = Judge::new(extent);
    let mut last = None;
    let mut previous: Option<BatchHeader> = None;
    let mut chained = true;
    let mut at = 0;
    let mut seen_upto = 0;
    while at < limit {
        let (found, whole_header) = match decode_at(&mut reader, seed, at).await {
            Some(header) => (Some(header), true),
            None => (seek(&mut reader, seed, at).await, false),
        };
        let Some(header) = found else {
            // Nothing more: unwritten space, or a torn first batch whose later parts cannot be told from garbage.
            if matches!(extent, Extent::Sealed(_)) {
                judge.take(Item::Gap(at..limit)).into_iter().for_each(&mut *visit);
                at = limit;
            } else {
                judge.take(Item::Gap(at..at));
            }
            break;
        };
        let start = header.position.offset;
        if start > at {
            judge.take(Item::Gap(at..start)).into_iter().for_each(&mut *visit);
            chained = false;
        }
        let data = reader.span(start, u64::from(header.len)).await;
        let contents = batch::parse(&data, &header, seed);
        let follows = chained && follows(previous.as_ref(), &header);
        let whole_header = whole_header || BatchHeader::decode(&data, seed, start).is_ok();
        let whole_copy = copy_is_whole(&data, &header, seed);
        let blemish = match (whole_header, whole_copy, follows || !chained) {
            (false, _, _) => Some("batch header damaged, its copy is whole"),
            (_, false, _) => Some("copy of a batch header damaged"),
            (_, _, false) => Some("batch does not follow the one before"),
            _ => None,
        };
        let found = FoundBatch { header, data, contents, headers_whole: whole_header && whole_copy, blemish };
        at = header.end();
        seen_upto = at;
        previous = Some(header);
        chained = true;
        for item in judge.take(Item::Batch(found)) {
            if let Item::Batch(batch) = &item {
                last = Some(batch.header);
            }
            visit(item);
        }
    }
    let cut = judge.cut();
    let end = cut.as_ref().map_or(at, |item| item.start).min(limit);
    let unread = cut.filter(|item| reader.unread.touches(item)).map(|_| reader.unread.why);
    ScanEnd { end, last, torn_bytes: seen_upto.saturating_sub(end), unread }
}

fn follows(previous: Option<&BatchHeader>, header: &BatchHeader) -> bool {
    match previous {
        None => header.position.sequence == 0 && header.position.predecessor == 0,
        Some(previous) => {
            header.position.sequence == previous.position.sequence + 1
                && header.position.predecessor == previous.checksum
        }
    }
}

fn copy_is_whole(data: &[u8], header: &BatchHeader, seed: Seed) -> bool {
    BatchHeader::decode_copy(data, seed, header.end()).is_ok_and(|copy| copy == *header)
}

async fn decode_at(reader: &mut Reader<'_>, seed: Seed, at: u64) -> Option<BatchHeader> {
    let block = reader.span(at, BLOCK as u64).await;
    BatchHeader::decode(&block, seed, at).ok().filter(|header| header.end() <= reader.limit)
}

/// The next batch at or after `from`, by its header or by the copy at its end.
async fn seek(reader: &mut Reader<'_>, seed: Seed, from: u64) -> Option<BatchHeader> {
    let mut at = from;
    while at < reader.limit {
        let block = reader.span(at, BLOCK as u64).await;
        let head = BatchHeader::decode(&block, seed, at).ok().filter(|header| header.end() <= reader.limit);
        let end = at + BLOCK as u64;
        let found = head.or_else(|| BatchHeader::decode_copy(&block, seed, end).ok());
        if let Some(header) = found.filter(|header| header.position.offset >= from) {
            return Some(header);
        }
        at = end;
    }
    None
}

struct Reader<'a> {
    file: &'a Arc<dyn File>,
    window: Bytes,
    window_at: u64,
    limit: u64,
    pacer: Option<&'a Pacer>,
    unread: Unread,
}

/// What the disk did not read.
#[derive(Default)]
struct Unread {
    /// Runs of blocks.
    runs: Vec<Range<u64>>,
    /// The last error.
    why: String,
}

impl Unread {
    fn note(&mut self, block_at: u64, why: &std::io::Error) {
        let end = block_at + BLOCK as u64;
        match self.runs.last_mut() {
            Some(last) if (last.start..=last.end).contains(&block_at) => last.end = last.end.max(end),
            _ => self.runs.push(block_at..end),
        }
        self.why = why.to_string();
    }

    fn touches(&self, place: &Range<u64>) -> bool {
        self.runs.iter().any(|run| run.start < place.end && place.start < run.end)
    }
}

impl Reader<'_> {
    /// `len` bytes from `at` on (both whole blocks, below the limit). What the disk cannot read comes as zeroes, which
    /// no checksum here accepts.
    async fn span(&mut self, at: u64, len: u64) -> Bytes {
        let inside = at >= self.window_at && at + len <= self.window_at + self.window.len() as u64;
        if !inside {
            let want = len.max(WINDOW_LEN).min(self.limit.saturating_sub(at)).max(len);
            self.window = read_blocks(self.file, at, want, &mut self.unread).await;
            self.window_at = at;
            if let Some(pacer) = self.pacer {
                pacer.took(want).await;
            }
        }
        let start = (at - self.window_at) as usize;
        self.window.slice(start..start + len as usize)
    }
}

/// Reads whole blocks; blocks that cannot be read, or lie behind the file's end, come as zeroes.
pub async fn read_tolerant(file: &Arc<dyn File>, at: u64, len: u64) -> Bytes {
    read_blocks(file, at, len, &mut Unread::default()).await
}

/// The same, noting what could not be read.
async fn read_blocks(file: &Arc<dyn File>, at: u64, len: u64, unread: &mut Unread) -> Bytes {
    let len = len as usize;
    match file.read_at(at, len).await {
        Ok(data) if data.len() == len => return data,
        Ok(data) => {
            let mut padded = BytesMut::from(data.as_ref());
            padded.resize(len, 0);
            return padded.freeze();
        }
        Err(_) => {}
    }
    let mut out = BytesMut::zeroed(len);
    for (number, block) in out.chunks_mut(BLOCK).enumerate() {
        let block_at = at + (number * BLOCK) as u64;
        match file.read_at(block_at, BLOCK).await {
            Ok(data) => block[..data.len()].copy_from_slice(&data),
            Err(error) => unread.note(block_at, &error),
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::batch::Position;

    fn batch(offset: u64, durable_upto: u64, intact: bool) -> Item {
        let position = Position { sequence: 0, offset, durable_upto, predecessor: 0, raft_count: 0 };
        let header = BatchHeader {
            incarnation: 1,
            position,
            len: 4096,
            count: 0,
            records_end: 64,
            body_crc: 0,
            directory_crc: 0,
            repeated: false,
            checksum: 0,
        };
        let contents = Contents { intact, ..Contents::default() };
        Item::Batch(FoundBatch { header, data: Bytes::new(), contents, headers_whole: true, blemish: None })
    }

    fn starts(items: &[Item]) -> Vec<u64> {
        items.iter().map(Item::start).collect()
    }

    #[test]
    fn a_bad_tail_that_nobody_vouches_for_is_cut() {
        let mut judge = Judge::new(Extent::Open(1 << 20));
        assert_eq!(starts(&judge.take(batch(0, 0, true))), [0]);
        assert_eq!(starts(&judge.take(batch(4096, 4096, false))), [0; 0]);
        assert_eq!(judge.cut().map(|item| item.start), Some(4096));
    }

    #[test]
    fn a_bad_stretch_below_durable_upto_is_damage_and_the_walk_goes_on() {
        let mut judge = Judge::new(Extent::Open(1 << 20));
        judge.take(batch(0, 0, true));
        assert!(judge.take(Item::Gap(4096..8192)).is_empty());
        assert_eq!(starts(&judge.take(batch(8192, 8192, true))), [4096, 8192]);
        assert_eq!(judge.cut(), None);
    }

    #[test]
    fn a_later_batch_that_was_composed_before_the_hole_was_durable_does_not_save_it() {
        let mut judge = Judge::new(Extent::Open(1 << 20));
        judge.take(batch(0, 0, true));
        assert!(judge.take(batch(4096, 4096, false)).is_empty());
        assert!(judge.take(batch(8192, 4096, true)).is_empty());
        assert_eq!(judge.cut().map(|item| item.start), Some(4096));
    }

    #[test]
    fn below_a_sealed_end_everything_bad_is_damage() {
        let mut judge = Judge::new(Extent::Sealed(8192));
        assert_eq!(judge.take(batch(0, 0, false)).len(), 1);
        assert_eq!(judge.take(Item::Gap(4096..8192)).len(), 1);
        assert_eq!(judge.cut(), None);
    }
}
