//! Bytes on their way out: read ahead a little, verified piece by piece, from whichever copy verifies.

use base::checksum::{Crc64, crc32c};
use base::env::BoxFuture;
use base::ids::{ChunkId, DiskId};
use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesOrdered, StreamExt};
use meta::chunks::{self, ChunkRef};
use meta::object::command::{Body, ObjectVersion, PartSize};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::buckets::BucketInfo;
use crate::call::{Backoff, Client, LEADERLESS_MAX};
use crate::error::Error;
use crate::map::{Member, Placement};
use crate::terms::{Reads, Terms};
use crate::wire::{Ask, Failure, GetChunk};

/// Bytes asked for at once.
const PIECE_BYTES_MAX: u32 = 1 << 20;
/// Pieces of one reader under way: bounds its memory to 4 MiB.
const PIECES_IN_FLIGHT_MAX: usize = 4;
/// How long the first try at one of several copies may take, before the next one is asked.
const FIRST_TRY_MAX: Duration = Duration::from_secs(1);
/// How long a later try may take, and one at an only copy.
const TRY_MAX: Duration = Duration::from_secs(5);
/// Part rows fetched at once.
const PART_PAGE: u32 = 64;

/// Verified pieces, in order. After an error nothing more comes.
pub struct ObjectReader {
    client: Client,
    source: Arc<Source>,
    /// Parts (or the one body) not yet cut into pieces: number (0: the object's own body) and range within it.
    spans: VecDeque<(u32, Range<u64>)>,
    part_bodies: BTreeMap<u32, Body>,
    /// Of the span that was cut last, and the number of its part.
    pieces: VecDeque<Piece>,
    part: u32,
    in_flight: FuturesOrdered<BoxFuture<Fetched>>,
    /// Checksum over the chunk that is being delivered, when it is delivered whole.
    running: Option<Crc64>,
    ready: VecDeque<Bytes>,
    failed: bool,
}

/// A piece with its bytes.
type Fetched = Result<(Piece, Vec<Bytes>), Error>;

/// A run of bytes that is asked for at once.
enum Piece {
    Inline(Bytes),
    /// `index`: which of the body's chunks.
    Chunk {
        index: usize,
        chunk: ChunkRef,
        range: Range<u32>,
        whole: bool,
    },
}

/// A version that is read.
pub(crate) struct Source {
    pub bucket: BucketInfo,
    pub object: ObjectVersion,
}

/// Where a chunk stands in a version: there its bytes are found again when a transition has moved them.
#[derive(Clone)]
pub(crate) struct Position {
    pub source: Arc<Source>,
    /// 0: in the object's own body.
    pub part: u32,
    pub index: usize,
}

impl Client {
    /// Reads `range` (cut to the object's size) of what `head` answered: never a mix of versions.
    pub fn read(&self, bucket: &BucketInfo, object: &ObjectVersion, range: Range<u64>) -> ObjectReader {
        let body = object.body.clone().unwrap_or_default();
        let range = range.start.min(body.size)..range.end.min(body.size);
        let spans = if body.upload.is_empty() { VecDeque::from([(0, range)]) } else { part_spans(&body.parts, &range) };
        let part_bodies = if body.upload.is_empty() { BTreeMap::from([(0, body)]) } else { BTreeMap::new() };
        ObjectReader {
            client: self.clone(),
            source: Arc::new(Source { bucket: bucket.clone(), object: object.clone() }),
            spans,
            part_bodies,
            pieces: VecDeque::new(),
            part: 0,
            in_flight: FuturesOrdered::new(),
            running: None,
            ready: VecDeque::new(),
            failed: false,
        }
    }
}

impl ObjectReader {
    /// The next verified piece; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        if self.failed {
            return None;
        }
        let result = self.advance().await;
        self.failed = result.is_err();
        result.transpose()
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Ok(Some(bytes));
            }
            while self.in_flight.len() < PIECES_IN_FLIGHT_MAX {
                let Some(piece) = self.next_piece().await? else { break };
                let (client, source, part) = (self.client.clone(), self.source.clone(), self.part);
                self.in_flight.push_back(Box::pin(async move {
                    let bytes = match &piece {
                        Piece::Inline(bytes) => vec![bytes.clone()],
                        Piece::Chunk { index, chunk, range, .. } => {
                            let position = Position { source, part, index: *index };
                            client.read_chunk(chunk, range.clone(), &position).await?
                        }
                    };
                    Ok((piece, bytes))
                }));
            }
            match self.in_flight.next().await {
                None => return Ok(None),
                Some(result) => {
                    let (piece, bytes) = result?;
                    self.verify(&piece, &bytes)?;
                    self.ready.extend(bytes.into_iter().filter(|bytes| !bytes.is_empty()));
                }
            }
        }
    }

    async fn next_piece(&mut self) -> Result<Option<Piece>, Error> {
        while self.pieces.is_empty() {
            let Some((number, range)) = self.spans.pop_front() else { return Ok(None) };
            let body = self.body_of(number).await?;
            self.pieces = cut(&body, range).map_err(|why| self.damaged(&why))?;
            self.part = number;
        }
        Ok(self.pieces.pop_front())
    }

    /// The body of a part (0: of the object), fetched with the parts that follow it.
    async fn body_of(&mut self, number: u32) -> Result<Body, Error> {
        if let Some(body) = self.part_bodies.remove(&number) {
            return Ok(body);
        }
        let source = self.source.clone();
        let (bucket, key) = (&source.bucket, &source.object.key);
        let page = match self.client.list_parts(bucket, key, &source.upload(), number - 1, PART_PAGE).await {
            // The object was overwritten or deleted since; what is left of the old version cannot be found any more.
            Err(Error::NoSuchUpload) => {
                return Err(Error::Unavailable("the object was replaced while it was read".into()));
            }
            other => other?,
        };
        self.part_bodies = page.parts.into_iter().filter_map(|part| Some((part.number, part.body?))).collect();
        self.part_bodies.remove(&number).ok_or_else(|| self.damaged(&format!("part {number} is missing")))
    }

    /// The last line of defence: the disk has verified its blocks; this compares with what the writer computed.
    fn verify(&mut self, piece: &Piece, bytes: &[Bytes]) -> Result<(), Error> {
        let Piece::Chunk { chunk, range, whole, .. } = piece else { return Ok(()) };
        let len: usize = bytes.iter().map(Bytes::len).sum();
        if len != range.len() {
            return Err(self.damaged(&format!("chunk {}: {len} bytes came instead of {}", chunk.id, range.len())));
        }
        if !whole {
            return Ok(());
        }
        let running = self.running.get_or_insert_with(Crc64::new);
        bytes.iter().for_each(|piece| running.update(piece));
        if range.end == chunk.len {
            let crc64 = self.running.take().map(Crc64::finish);
            if crc64 != Some(chunk.crc64) {
                return Err(self.damaged(&format!("chunk {} does not match the checksum of its writer", chunk.id)));
            }
        }
        Ok(())
    }

    fn damaged(&self, why: &str) -> Error {
        let Source { bucket, object } = &*self.source;
        Error::Damaged(format!("{}/{}: {why}", bucket.name, object.key.escape_ascii()))
    }
}

impl Source {
    fn upload(&self) -> Bytes {
        self.object.body.as_ref().map(|body| body.upload.clone()).unwrap_or_default()
    }
}

/// What one round over the copies of a chunk has found out.
#[derive(Default)]
struct Round {
    asked: usize,
    /// Surely not there, or damaged.
    bad: usize,
    why: String,
}

impl Client {
    /// A range of a chunk from the first copy that has it and verifies; from the one that has taken its place when the
    /// version has moved to another pool meanwhile.
    pub(crate) async fn read_chunk(
        &self,
        chunk: &ChunkRef,
        range: Range<u32>,
        position: &Position,
    ) -> Result<Vec<Bytes>, Error> {
        let key = &position.source.object.key;
        if let Some(bytes) = self.read_copies(chunk, range.clone(), key).await? {
            return Ok(bytes);
        }
        let moved = match self.find_moved(chunk, position).await? {
            Some(moved) => self.read_copies(&moved, range, key).await?,
            None => None,
        };
        moved.ok_or_else(|| {
            Error::Unavailable(format!("{} was replaced or deleted while it was read", key.escape_ascii()))
        })
    }

    /// What stands now where a deleted chunk stood, if the version is there still, and the bytes are the same.
    async fn find_moved(&self, gone: &ChunkRef, position: &Position) -> Result<Option<ChunkRef>, Error> {
        let Position { source, part, index } = position;
        let object = &source.object;
        // A stale replica would name the deleted chunk again.
        let bucket = source.bucket.clone().under(Terms { reads: Reads::Strong, ..source.bucket.terms.clone() });
        let now = match self.head(&bucket, &object.key, Some(object.version.clone())).await {
            Ok(now) if is_same(object, &now) => now,
            Ok(_) | Err(Error::NoSuchBucket | Error::NoSuchKey | Error::NoSuchVersion | Error::DeleteMarker { .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let body = match part.checked_sub(1) {
            None => now.body,
            Some(before) => match self.list_parts(&bucket, &object.key, &source.upload(), before, 1).await {
                Ok(page) => page.parts.into_iter().find(|row| row.number == *part).and_then(|row| row.body),
                Err(Error::NoSuchUpload) => None,
                Err(error) => return Err(error),
            },
        };
        let chunks = chunks::unpack(&body.unwrap_or_default().chunks);
        let chunks = chunks.map_err(|error| Error::Damaged(format!("{}: {error}", object.key.escape_ascii())))?;
        let holds_the_same = |new: &ChunkRef| new.id != gone.id && (new.len, new.crc64) == (gone.len, gone.crc64);
        Ok(chunks.get(*index).copied().filter(holds_the_same))
    }

    /// `None`: the chunk was deleted.
    async fn read_copies(&self, chunk: &ChunkRef, range: Range<u32>, key: &Bytes) -> Result<Option<Vec<Bytes>>, Error> {
        let mut backoff = Backoff::for_operation(&self.shared.env);
        let mut patience = FIRST_TRY_MAX;
        let mut absent_since = None;
        loop {
            let placement = self.map().placement(chunk.id);
            let holders = self.holders(placement.as_ref());
            let mut round = Round::default();
            for (position, member) in holders.iter().enumerate() {
                let patience = if holders.len() > 1 { patience } else { TRY_MAX };
                let second = holders.get(position + 1).filter(|second| second.usable);
                match self.read_hedged(member, second, chunk.id, &range, patience).await {
                    Ok(bytes) => {
                        self.note_bad_copies(chunk.id, &round);
                        return Ok(Some(bytes));
                    }
                    // Deletion is decided by the shard and final: the object was replaced or moved while it was read.
                    Err((Failure::Deleted, _)) => return Ok(None),
                    Err((failure, why)) => {
                        round.asked += 1;
                        round.bad += usize::from(matches!(failure, Failure::NotFound | Failure::Damaged));
                        round.why = why;
                    }
                }
            }
            let lost =
                format!("{}: chunk {} cannot be read from any copy: {}", key.escape_ascii(), chunk.id, round.why);
            let all_bad = round.asked > 0 && round.bad == round.asked;
            if all_bad && self.is_where(chunk.id, placement.as_ref()).await {
                return Err(Error::Damaged(lost));
            }
            // Everybody who serves has denied it: who else may hold it is out of service, and may stay so for long.
            let serving = holders.iter().filter(|member| member.usable).count();
            let is_absent = round.bad > 0 && round.bad >= serving && serving < holders.len();
            absent_since = absent_since.filter(|_| is_absent).or(is_absent.then(|| self.shared.env.now()));
            let is_hopeless = absent_since.is_some_and(|since| self.shared.env.now().since(since) >= LEADERLESS_MAX);
            if is_hopeless || !backoff.wait(&self.shared.env).await {
                return Err(Error::Unavailable(lost));
            }
            patience = TRY_MAX;
        }
    }

    /// Reads from one copy, and when that takes long from a second one, too: the first good answer, or else why there is
    /// none from the first.
    async fn read_hedged(
        &self,
        first: &Member,
        second: Option<&Member>,
        id: ChunkId,
        range: &Range<u32>,
        patience: Duration,
    ) -> Result<Vec<Bytes>, (Failure, String)> {
        let (env, hedge) = (&self.shared.env, &self.shared.hedge);
        let (began, bytes) = (env.now(), range.end - range.start);
        let mut reading = std::pin::pin!(self.read_copy(first, id, range, patience));
        let early = match second {
            Some(_) => env.timeout(hedge.delay(bytes), &mut reading).await,
            None => None,
        };
        let read = match (early, second) {
            (Some(read), _) => read,
            (None, Some(second)) if hedge.spend() => {
                let other = std::pin::pin!(self.read_copy(second, id, range, patience));
                match select(reading, other).await {
                    Either::Left((Ok(pieces), _)) | Either::Right((Ok(pieces), _)) => Ok(pieces),
                    Either::Left((Err(failed), other)) => other.await.map_err(|_| failed),
                    Either::Right((Err(_), first)) => first.await,
                }
            }
            (None, _) => reading.await,
        };
        hedge.note(bytes, env.now().since(began));
        read
    }

    /// Whether a chunk is placed as `placement` says in the map as it is now: only then is what all members say the
    /// whole truth. With an older map the wrong disks were asked.
    async fn is_where(&self, id: ChunkId, placement: Option<&Placement>) -> bool {
        let Ok(map) = self.refresh_map().await else { return false };
        let now = map.placement(id);
        let disks = |placement: &Placement| -> Vec<DiskId> {
            placement.members.iter().chain(&placement.members_before).map(|member| member.disk).collect()
        };
        match (placement, now.as_ref()) {
            (Some(placement), Some(now)) => placement.epoch == now.epoch && disks(placement) == disks(now),
            _ => false,
        }
    }

    /// Members that should hold a chunk: those in service first, slow ones last of these, the new before the old, the
    /// own node before others.
    fn holders(&self, placement: Option<&Placement>) -> Vec<Member> {
        let Some(placement) = placement else { return Vec::new() };
        let mut members: Vec<Member> = Vec::new();
        for member in placement.members.iter().chain(&placement.members_before) {
            if !members.contains(member) {
                members.push(*member);
            }
        }
        members.sort_by_key(|member| (!member.usable, member.slow, member.node != self.session().node));
        members
    }

    async fn read_copy(
        &self,
        member: &Member,
        id: ChunkId,
        range: &Range<u32>,
        patience: Duration,
    ) -> Result<Vec<Bytes>, (Failure, String)> {
        let ask = Ask::GetChunk(GetChunk {
            disk: Bytes::copy_from_slice(&member.disk.0.to_be_bytes()),
            id: Bytes::copy_from_slice(&id.to_bytes()),
            start: range.start,
            end: range.end,
            repair: false,
        });
        let (_, bulk) = self.ask_node(member.node, ask, Vec::new(), patience).await?;
        Ok(bulk)
    }

    /// The comparison of the members' inventories finds and repairs what is missing; here it is only seen first.
    fn note_bad_copies(&self, id: ChunkId, round: &Round) {
        if round.bad > 0 {
            tracing::warn!("chunk {id} was read from another copy: {}", round.why);
            self.shared.bad_copies.fetch_add(round.bad as u64, Ordering::Relaxed);
        }
    }

    /// Copies that reads found missing or damaged while another copy was whole, since the start.
    pub fn bad_copies_seen(&self) -> u64 {
        self.shared.bad_copies.load(Ordering::Relaxed)
    }
}

/// Whether this is the version that was read before. Of an object that was replaced by its like, either will do.
fn is_same(before: &ObjectVersion, now: &ObjectVersion) -> bool {
    let of = |version: &ObjectVersion| {
        let etag = version.attributes.as_ref().map(|attributes| attributes.etag.clone());
        let body = version.body.as_ref().map(|body| (body.size, body.upload.clone()));
        (version.version.clone(), version.modified_ms, version.from_upload.clone(), etag, body)
    };
    of(before) == of(now)
}

/// The parts that a range touches, with the range within each.
fn part_spans(parts: &[PartSize], range: &Range<u64>) -> VecDeque<(u32, Range<u64>)> {
    let mut spans = VecDeque::new();
    let mut start = 0;
    for part in parts {
        let end = start + part.size;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            spans.push_back((part.number, from - start..to - start));
        }
        start = end;
    }
    spans
}

/// Cuts a range of one body into pieces. Refuses a body that contradicts itself.
fn cut(body: &Body, range: Range<u64>) -> Result<VecDeque<Piece>, String> {
    if let Some(inline) = &body.inline {
        if crc32c(&[], inline) != body.inline_crc32c {
            return Err("the bytes in the metadata do not match the checksum of their writer".into());
        }
        if range.end > inline.len() as u64 {
            return Err(format!("{} bytes lie in the metadata instead of {}", inline.len(), body.size));
        }
        return Ok(VecDeque::from([Piece::Inline(inline.slice(range.start as usize..range.end as usize))]));
    }
    let mut pieces = VecDeque::new();
    let mut start = 0;
    let chunks = chunks::unpack(&body.chunks).map_err(|error| format!("list of chunks: {error}"))?;
    for (index, chunk) in chunks.into_iter().enumerate() {
        let end = start + u64::from(chunk.len);
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            cut_chunk(index, chunk, (from - start) as u32..(to - start) as u32, &mut pieces);
        }
        start = end;
    }
    if start != body.size {
        return Err(format!("its chunks have {start} bytes instead of {}", body.size));
    }
    Ok(pieces)
}

fn cut_chunk(index: usize, chunk: ChunkRef, range: Range<u32>, pieces: &mut VecDeque<Piece>) {
    let whole = range == (0..chunk.len);
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min((start / PIECE_BYTES_MAX + 1) * PIECE_BYTES_MAX);
        pieces.push_back(Piece::Chunk { index, chunk, range: start..end, whole });
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(counter: u32, len: u32) -> ChunkRef {
        let mut id = ChunkId::from_u128(0);
        id.counter = counter;
        ChunkRef { id, len, crc64: 0 }
    }

    #[test]
    fn a_range_is_cut_at_chunks_and_pieces() {
        let chunks = [reference(1, 4 << 20), reference(2, 10)];
        let body = Body { size: (4 << 20) + 10, chunks: chunks::pack(&chunks), ..Body::default() };
        let pieces = cut(&body, (1 << 20) - 1..(4 << 20) + 5).unwrap();
        let ranges: Vec<(u32, Range<u32>)> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Chunk { chunk, range, .. } => (chunk.id.counter, range.clone()),
                Piece::Inline(_) => unreachable!("nothing is inline here"),
            })
            .collect();
        let mib = 1 << 20;
        assert_eq!(
            ranges,
            vec![(1, mib - 1..mib), (1, mib..2 * mib), (1, 2 * mib..3 * mib), (1, 3 * mib..4 * mib), (2, 0..5)]
        );
    }

    #[test]
    fn a_body_that_contradicts_itself_is_refused() {
        let short = Body { size: 11, chunks: chunks::pack(&[reference(1, 10)]), ..Body::default() };
        assert!(cut(&short, 0..11).is_err());
        let inline = Body { size: 3, inline: Some(Bytes::from_static(b"abc")), inline_crc32c: 1, ..Body::default() };
        assert!(cut(&inline, 0..3).is_err());
    }

    #[test]
    fn a_range_finds_its_parts() {
        let parts = [PartSize { number: 2, size: 10 }, PartSize { number: 7, size: 5 }];
        assert_eq!(part_spans(&parts, &(9..12)), VecDeque::from([(2, 9..10), (7, 0..2)]));
        assert_eq!(part_spans(&parts, &(0..0)), VecDeque::new());
    }
}
