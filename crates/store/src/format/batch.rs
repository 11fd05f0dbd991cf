//! Batches: what one round of the committer writes to a journal volume.
//!
//! header (64 bytes) | records | zeroes | directory (24 bytes a record) | copy of the header (64 bytes)
//!
//! Or, in batches with so many payloads of whole blocks that it costs little, so that a read of such a payload needs no more
//! blocks than it has:
//!
//! header | records, of which some without payload | zeroes | those payloads | zeroes | copies of all record headers (64 bytes
//! each) | directory | copy of the header
//!
//! Many record headers then share a block. The copies keep the loss of one from being the loss of all.
//!
//! The directory names every record, so that one whose own header is damaged is still known by id; the copy of the
//! header lets recovery find a batch whose first block is damaged. The body checksum covers everything between the
//! two headers, zeroes included.

use base::buffer::BLOCK;
use base::buffer_pool::BufferPool;
use base::checksum::crc32c;
use base::codec::{DecodeError, Reader, Writer};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

use super::record::{self, APART_MAX, CRC_BLOCK, Kind, RECORD_ALIGN, RecordHeader, VOLUME_SIZE_MAX};
use super::{FORMAT_VERSION, Seed};

/// Length of a batch header, and of its copy at the end, in bytes.
pub const HEADER_LEN: usize = 64;
/// Length of a directory line in bytes.
pub const DIRECTORY_LINE_LEN: usize = 24;
/// Longest batch in bytes: one largest record with everything around it.
pub const BATCH_LEN_MAX: usize = record::PAYLOAD_MAX + (1 << 20);

const MAGIC: u32 = u32::from_le_bytes(*b"HBAT");
/// Flag of a batch that repeats its record headers.
const REPEATED: u16 = 1;

/// Where a batch stands in its volume's chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    pub sequence: u64,
    /// Of the batch in the volume, in bytes.
    pub offset: u64,
    /// Every byte of the volume below this was on stable storage when the batch was composed.
    pub durable_upto: u64,
    /// Header checksum of the batch before, 0 for the first.
    pub predecessor: u32,
    /// Raft records in this volume before this batch (modulo 2^32): says whether an unreadable stretch held any.
    pub raft_count: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    pub incarnation: u64,
    pub position: Position,
    /// Of the whole batch in bytes, a multiple of 4 KiB.
    pub len: u32,
    pub count: u32,
    /// End of the last record, in bytes from the start of the batch.
    pub records_end: u32,
    pub body_crc: u32,
    pub directory_crc: u32,
    /// The record headers are repeated in front of the directory.
    pub repeated: bool,
    /// This header's own checksum: what the next batch names as its predecessor.
    pub checksum: u32,
}

impl BatchHeader {
    fn encode(&self, seed: Seed) -> [u8; HEADER_LEN] {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.put_u32(MAGIC);
        out.put_u16(FORMAT_VERSION);
        out.put_u16(if self.repeated { REPEATED } else { 0 });
        out.put_u64(self.incarnation);
        out.put_u64(self.position.sequence);
        out.put_u32((self.position.offset / BLOCK as u64) as u32);
        out.put_u32((self.position.durable_upto / BLOCK as u64) as u32);
        out.put_u32(self.position.predecessor);
        out.put_u32(self.len);
        out.put_u32(self.count);
        out.put_u32(self.records_end);
        out.put_u32(self.body_crc);
        out.put_u32(self.directory_crc);
        out.put_u32(self.position.raft_count);
        let crc = crc32c(&seed.header(self.position.offset), &out);
        out.put_u32(crc);
        let mut header = [0; HEADER_LEN];
        header.copy_from_slice(&out);
        header
    }

    /// Decodes and verifies a header, or its copy, of the batch that starts at byte `offset` of the volume.
    pub fn decode(data: &[u8], seed: Seed, offset: u64) -> Result<BatchHeader, DecodeError> {
        let mut reader = Reader::new(data);
        let covered = Reader::new(data).take(HEADER_LEN - 4, "batch header")?;
        if reader.u32("batch magic")? != MAGIC {
            return Err(reader.error("batch magic"));
        }
        let version = reader.u16("batch version")?;
        let flags = reader.u16("batch flags")?;
        let incarnation = reader.u64("incarnation")?;
        let sequence = reader.u64("sequence")?;
        let at_block = reader.u32("batch offset")?;
        let durable_block = reader.u32("durable offset")?;
        let predecessor = reader.u32("predecessor")?;
        let len = reader.u32("batch length")?;
        let count = reader.u32("record count")?;
        let records_end = reader.u32("records end")?;
        let body_crc = reader.u32("body checksum")?;
        let directory_crc = reader.u32("directory checksum")?;
        let raft_count = reader.u32("raft count")?;
        let checksum = reader.u32("batch header checksum")?;
        if incarnation != seed.incarnation || u64::from(at_block) * BLOCK as u64 != offset {
            return Err(reader.error("batch of another place"));
        }
        if checksum != crc32c(&seed.header(offset), covered) {
            return Err(reader.error("batch header checksum"));
        }
        let repeated = flags == REPEATED;
        let least = (records_end as usize).saturating_add(tail_len(count as usize, repeated));
        let lengths_fit = (records_end as usize) >= HEADER_LEN
            && least <= len as usize
            && (len as usize).is_multiple_of(BLOCK)
            && len as usize <= BATCH_LEN_MAX;
        let fits_volume = offset.saturating_add(u64::from(len)) <= VOLUME_SIZE_MAX;
        let known = version == FORMAT_VERSION && flags & !REPEATED == 0;
        if !known || !lengths_fit || !fits_volume || durable_block > at_block {
            return Err(reader.error("batch header field"));
        }
        let durable_upto = u64::from(durable_block) * BLOCK as u64;
        let position = Position { sequence, offset, durable_upto, predecessor, raft_count };
        Ok(BatchHeader { incarnation, position, len, count, records_end, body_crc, directory_crc, repeated, checksum })
    }

    /// The header copy in the last bytes of `block`, the last block of some batch that ends at byte `end`.
    pub fn decode_copy(block: &[u8], seed: Seed, end: u64) -> Result<BatchHeader, DecodeError> {
        let whole = Reader::new(block);
        if block.len() < HEADER_LEN {
            return Err(whole.error("batch header copy"));
        }
        let copy = &block[block.len() - HEADER_LEN..];
        let mut reader = Reader::new(copy);
        if reader.u32("batch magic")? != MAGIC {
            return Err(reader.error("batch magic"));
        }
        reader.take(20, "batch header")?;
        let offset = u64::from(reader.u32("batch offset")?) * BLOCK as u64;
        let header = BatchHeader::decode(copy, seed, offset)?;
        if offset + u64::from(header.len) != end {
            return Err(reader.error("batch end"));
        }
        Ok(header)
    }

    pub fn end(&self) -> u64 {
        self.position.offset + u64::from(self.len)
    }

    /// Where in the batch what follows the payloads begins.
    fn tail_at(&self) -> usize {
        self.len as usize - tail_len(self.count as usize, self.repeated)
    }
}

/// Bytes behind the last payload: copies of the record headers, directory, copy of the batch header.
const fn tail_len(records: usize, repeated: bool) -> usize {
    let line = DIRECTORY_LINE_LEN + if repeated { record::HEADER_LEN } else { 0 };
    records.saturating_mul(line).saturating_add(HEADER_LEN)
}

/// A record on its way into a batch.
#[derive(Clone, Debug)]
pub struct RecordIn {
    /// `payload_len` and `table_crc` are filled in by the encoder.
    pub header: RecordHeader,
    pub payload: Vec<Bytes>,
}

impl RecordIn {
    pub fn new(header: RecordHeader, payload: impl Into<Bytes>) -> RecordIn {
        RecordIn { header, payload: vec![payload.into()] }
    }

    pub fn bare(header: RecordHeader) -> RecordIn {
        RecordIn { header, payload: Vec::new() }
    }

    pub fn payload_len(&self) -> usize {
        self.payload.iter().map(Bytes::len).sum()
    }

    /// Bytes that this record adds to a batch.
    pub fn cost(&self) -> usize {
        record::record_len(self.payload_len()) + DIRECTORY_LINE_LEN
    }

    fn may_stand_apart(&self) -> bool {
        self.header.kind == Kind::Chunk && record::may_stand_apart(self.payload_len())
    }
}

/// Length in bytes of a batch whose records cost `cost` together, when no payload stands apart.
const fn packed_len(cost: usize) -> usize {
    (2 * HEADER_LEN + cost).next_multiple_of(BLOCK)
}

/// Whether payloads may stand apart: how many of their blocks there must be for each one that the batch grows by. `None`: the
/// disk was formatted by a henge that knew no such payloads.
pub type Apart = Option<usize>;

/// Where everything in a batch goes, in bytes from its start.
pub struct Layout {
    pub len: usize,
    /// Of each record, in order.
    places: Vec<Place>,
    records_end: usize,
    /// The record headers are repeated.
    repeated: bool,
}

#[derive(Clone, Copy)]
struct Place {
    at: usize,
    apart: u16,
}

/// The shortest layout, or one whose payloads of whole blocks stand apart, where that costs little.
pub fn lay_out(records: &[RecordIn], apart: Apart) -> Layout {
    let packed = lay_out_packed(records);
    let blocks: usize = records.iter().filter(|record| record.may_stand_apart()).map(|r| r.payload_len() / BLOCK).sum();
    let Some(worth) = apart.filter(|_| blocks > 0) else { return packed };
    match lay_out_apart(records) {
        Some(layout) if (layout.len - packed.len) / BLOCK * worth <= blocks => layout,
        _ => packed,
    }
}

fn lay_out_packed(records: &[RecordIn]) -> Layout {
    let mut at = HEADER_LEN;
    let place = |record: &RecordIn| {
        let place = Place { at, apart: 0 };
        at += record::record_len(record.payload_len());
        place
    };
    let places = records.iter().map(place).collect();
    let len = packed_len(records.iter().map(RecordIn::cost).sum());
    Layout { len, places, records_end: at, repeated: false }
}

/// `None` when a payload would be too far from its header.
fn lay_out_apart(records: &[RecordIn]) -> Option<Layout> {
    let stride = |record: &RecordIn| match record.may_stand_apart() {
        true => record::head_len(record.payload_len()),
        false => record::record_len(record.payload_len()),
    };
    let records_end = HEADER_LEN + records.iter().map(stride).sum::<usize>();
    let mut payload_block = records_end.div_ceil(BLOCK);
    let mut at = HEADER_LEN;
    let mut places = Vec::with_capacity(records.len());
    for record in records {
        let mut apart = 0;
        if record.may_stand_apart() {
            apart = u16::try_from(payload_block - at / BLOCK).ok().filter(|apart| *apart <= APART_MAX)?;
            payload_block += record.payload_len() / BLOCK;
        }
        places.push(Place { at, apart });
        at += stride(record);
    }
    let len = (payload_block * BLOCK + tail_len(records.len(), true)).next_multiple_of(BLOCK);
    Some(Layout { len, places, records_end, repeated: true })
}

/// A batch, ready to be written at `header.position.offset`.
pub struct Encoded {
    pub header: BatchHeader,
    pub bytes: Bytes,
    /// Of each record: its header as written and its offset in the volume.
    pub records: Vec<(RecordHeader, u64)>,
}

/// Writes the records where the layout says. Payloads are copied once, into the buffer that is written.
pub fn encode(
    seed: Seed,
    position: Position,
    records: &[RecordIn],
    layout: &Layout,
    buffers: &Arc<BufferPool>,
) -> Encoded {
    let len = layout.len;
    assert!(len <= BATCH_LEN_MAX, "the committer bounds its rounds");
    assert!(position.offset.is_multiple_of(BLOCK as u64) && position.durable_upto <= position.offset);
    let mut buffer = buffers.take(len);
    buffer.set_len(len);
    let out = buffer.as_mut_slice();
    let mut copies = Vec::new();
    let mut directory = Vec::with_capacity(records.len() * DIRECTORY_LINE_LEN);
    let mut written = Vec::with_capacity(records.len());
    let mut payloads_end = layout.records_end;
    for (record, place) in records.iter().zip(&layout.places) {
        let offset = position.offset + place.at as u64;
        let header = encode_record(seed, offset, &mut out[place.at..], place.apart, record);
        let payload = header.payload_range(offset);
        if place.apart > 0 {
            // Payloads apart are in the order of their records, without gaps.
            let (start, end) = (place.at + payload.start, place.at + payload.end);
            if payloads_end == layout.records_end {
                out[payloads_end..start].fill(0);
            }
            payloads_end = end;
        }
        if layout.repeated {
            copies.put_bytes(&header.encode(seed, offset));
        }
        directory.put_u8(header.kind as u8);
        directory.put_bytes(&[0; 3]);
        directory.put_u32(place.at as u32);
        directory.put_bytes(&header.id);
        written.push((header, offset));
    }
    let copy_at = len - HEADER_LEN;
    // The buffer was used before.
    let directory_at = copy_at - directory.len();
    let tail_at = directory_at - copies.len();
    out[payloads_end..tail_at].fill(0);
    out[tail_at..directory_at].copy_from_slice(&copies);
    out[directory_at..copy_at].copy_from_slice(&directory);
    let mut header = BatchHeader {
        incarnation: seed.incarnation,
        position,
        len: len as u32,
        count: records.len() as u32,
        records_end: layout.records_end as u32,
        body_crc: crc32c(&[], &out[HEADER_LEN..copy_at]),
        directory_crc: crc32c(&[], &directory),
        repeated: layout.repeated,
        checksum: 0,
    };
    let bytes = header.encode(seed);
    header.checksum = u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
    out[..HEADER_LEN].copy_from_slice(&bytes);
    out[copy_at..].copy_from_slice(&bytes);
    Encoded { header, bytes: buffer.freeze(), records: written }
}

/// Writes a record at the start of `out`, which is byte `offset` of the volume.
fn encode_record(seed: Seed, offset: u64, out: &mut [u8], apart: u16, record: &RecordIn) -> RecordHeader {
    let payload_len = record.payload_len();
    assert!(payload_len <= record::PAYLOAD_MAX, "requests are checked before they are queued");
    let mut header = RecordHeader { payload_len: payload_len as u32, apart, ..record.header };
    let payload_range = header.payload_range(offset);
    let mut to = payload_range.start;
    for piece in &record.payload {
        out[to..to + piece.len()].copy_from_slice(piece);
        to += piece.len();
    }
    let mut table = Vec::with_capacity(header.table_len());
    for (number, block) in out[payload_range.clone()].chunks(CRC_BLOCK).enumerate() {
        table.put_u32(crc32c(&seed.block(&header.id, number as u32), block));
    }
    header.table_crc = crc32c(&[], &table);
    let table_end = record::HEADER_LEN + table.len();
    out[record::HEADER_LEN..table_end].copy_from_slice(&table);
    let padding_at = if apart == 0 { payload_range.end } else { table_end };
    out[padding_at..header.stride()].fill(0);
    out[..record::HEADER_LEN].copy_from_slice(&header.encode(seed, offset));
    header
}

/// A record found in a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    pub kind: Kind,
    pub id: [u8; 16],
    /// Of the record in the volume, in bytes.
    pub offset: u64,
    /// The header and where in the batch its payload lies; the reason when the record does not verify.
    pub content: Result<(RecordHeader, Range<usize>), String>,
}

/// What a batch holds, damaged or not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    pub records: Vec<Parsed>,
    /// Everything between the two headers verified.
    pub intact: bool,
    /// Parts of the volume (in bytes) where records were that nobody can name any more.
    pub unknown: Option<Range<u64>>,
}

/// Takes a batch apart whose header verified. `data` is the whole batch.
pub fn parse(data: &[u8], header: &BatchHeader, seed: Seed) -> Contents {
    let len = header.len as usize;
    assert!(data.len() == len, "the caller reads the whole batch");
    let copy_at = len - HEADER_LEN;
    let intact = crc32c(&[], &data[HEADER_LEN..copy_at]) == header.body_crc;
    let directory = &data[copy_at - header.count as usize * DIRECTORY_LINE_LEN..copy_at];
    if crc32c(&[], directory) != header.directory_crc {
        return walk(data, header, seed);
    }
    let mut records = Vec::with_capacity(header.count as usize);
    let mut least_at = HEADER_LEN;
    for (number, line) in directory.chunks_exact(DIRECTORY_LINE_LEN).enumerate() {
        let parsed = parse_line(data, header, seed, (number, line), intact);
        // Records are in the order of their lines, and no two share a place.
        let at = parsed.as_ref().map_or(0, |parsed| (parsed.offset - header.position.offset) as usize);
        let is_next = at >= least_at && at.is_multiple_of(RECORD_ALIGN);
        least_at = at + record::HEADER_LEN;
        records.push(parsed.filter(|_| is_next));
    }
    if records.iter().any(Option::is_none) {
        return walk(data, header, seed);
    }
    Contents { records: records.into_iter().flatten().collect(), intact, unknown: None }
}

/// The record of a directory line. `None` when the line makes no sense, which a verified directory never has.
fn parse_line(
    data: &[u8],
    header: &BatchHeader,
    seed: Seed,
    (number, line): (usize, &[u8]),
    intact: bool,
) -> Option<Parsed> {
    let mut reader = Reader::new(line);
    let kind = Kind::from_u8(reader.u8("kind").ok()?)?;
    reader.take(3, "zeroes").ok()?;
    let at = reader.u32("position").ok()? as usize;
    let id: [u8; 16] = reader.array("id").ok()?;
    if at > header.records_end as usize {
        return None;
    }
    let content = content_of(data, header, seed, (number, at), intact).and_then(|(found, payload)| {
        if found.kind == kind && found.id == id {
            Ok((found, payload))
        } else {
            Err("record differs from its line".into())
        }
    });
    Some(Parsed { kind, id, offset: header.position.offset + at as u64, content })
}

/// The record of this number, at byte `at` of the batch, and where in the batch its payload lies.
fn content_of(
    data: &[u8],
    header: &BatchHeader,
    seed: Seed,
    (number, at): (usize, usize),
    intact: bool,
) -> Result<(RecordHeader, Range<usize>), String> {
    let offset = header.position.offset + at as u64;
    let record = &data[at..header.tail_at()];
    let found = if intact {
        RecordHeader::decode(record, seed, offset).map(|found| (found, found.payload_range(offset)))
    } else {
        record::verify_record(record, seed, offset)
    };
    let (found, payload) = match found {
        Ok((found, payload)) => (found, at + payload.start..at + payload.end),
        Err(error) => by_copy(data, header, seed, (number, at)).ok_or_else(|| error.to_string())?,
    };
    if fits(header, at, &found, &payload) { Ok((found, payload)) } else { Err("payload length".into()) }
}

/// What stands apart lies behind all records and in front of the tail, everything else among the records.
fn fits(header: &BatchHeader, at: usize, found: &RecordHeader, payload: &Range<usize>) -> bool {
    let records_end = header.records_end as usize;
    let apart = payload.start >= records_end && payload.end <= header.tail_at();
    at + found.stride() <= records_end && (found.apart == 0 || apart)
}

/// The same by the copy of the record's header, of one whose payload stands apart: others are read with their headers, and must
/// be damaged for whoever looks. The block checksums are those of the payload that is there.
fn by_copy(
    data: &[u8],
    header: &BatchHeader,
    seed: Seed,
    (number, at): (usize, usize),
) -> Option<(RecordHeader, Range<usize>)> {
    let offset = header.position.offset + at as u64;
    let found = copy_of(data, header, seed, number, offset).filter(|found| found.apart > 0)?;
    let payload = found.payload_range(offset);
    let payload = at + payload.start..at + payload.end;
    let table = record::block_table(seed, &found.id, data.get(payload.clone())?);
    (crc32c(&[], &table) == found.table_crc).then_some((found, payload))
}

fn copy_of(data: &[u8], header: &BatchHeader, seed: Seed, number: usize, offset: u64) -> Option<RecordHeader> {
    if !header.repeated {
        return None;
    }
    let copy = header.tail_at() + number * record::HEADER_LEN;
    RecordHeader::decode(&data[copy..copy + record::HEADER_LEN], seed, offset).ok()
}

/// Goes from record to record by their own headers, for a batch whose directory is damaged.
fn walk(data: &[u8], header: &BatchHeader, seed: Seed) -> Contents {
    let mut records = Vec::new();
    let mut at = HEADER_LEN;
    let end = header.records_end as usize;
    while at < end && records.len() < header.count as usize {
        let offset = header.position.offset + at as u64;
        let number = records.len();
        let found = RecordHeader::decode(&data[at..end], seed, offset).ok();
        let Some(found) = found.or_else(|| copy_of(data, header, seed, number, offset)) else {
            let unknown = Some(offset..header.position.offset + end as u64);
            return Contents { records, intact: false, unknown };
        };
        let content = content_of(data, header, seed, (number, at), false);
        records.push(Parsed { kind: found.kind, id: found.id, offset, content });
        at += found.stride();
    }
    Contents { records, intact: false, unknown: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::{ChunkId, DiskId, OwnerId, PgEpoch};
    use proptest::prelude::*;

    const SEED: Seed = Seed { disk: DiskId(9), incarnation: 5 };

    fn position() -> Position {
        Position { sequence: 3, offset: 8192, durable_upto: 4096, predecessor: 77, raft_count: 2 }
    }

    fn records(payloads: &[Vec<u8>]) -> Vec<RecordIn> {
        let one = |(number, payload): (usize, &Vec<u8>)| {
            let id = ChunkId::from_u128(number as u128);
            let header = RecordHeader::chunk(Kind::Chunk, id, OwnerId(1), PgEpoch(2), 3);
            RecordIn::new(header, payload.clone())
        };
        payloads.iter().enumerate().map(one).collect()
    }

    fn decode(bytes: &[u8]) -> Option<(BatchHeader, Contents)> {
        let header = BatchHeader::decode(bytes, SEED, 8192)
            .or_else(|_| BatchHeader::decode_copy(bytes, SEED, 8192 + bytes.len() as u64))
            .ok()?;
        let contents = parse(bytes, &header, SEED);
        Some((header, contents))
    }

    /// Some of them of whole blocks.
    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let odd = proptest::collection::vec(any::<u8>(), 0..3000);
        let whole = (1usize..=5, any::<u8>()).prop_map(|(blocks, first)| {
            (0..blocks * BLOCK).map(|at| (at as u8).wrapping_mul(31).wrapping_add(first)).collect()
        });
        proptest::collection::vec(prop_oneof![odd, whole], 0..12)
    }

    fn apart() -> impl Strategy<Value = Apart> {
        prop_oneof![Just(None), Just(Some(0)), Just(Some(8))]
    }

    fn encoded(payloads: &[Vec<u8>], apart: Apart) -> Encoded {
        let records = records(payloads);
        // Of a buffer that was used before, everything is written anew.
        let buffers = Arc::default();
        let layout = lay_out(&records, apart);
        let mut used = BufferPool::take(&buffers, layout.len);
        used.set_len(layout.len);
        used.as_mut_slice().fill(0xff);
        drop(used);
        encode(SEED, position(), &records, &layout, &buffers)
    }

    proptest! {
        #[test]
        fn batches_round_trip(payloads in payloads(), apart in apart()) {
            let encoded = encoded(&payloads, apart);
            let (header, contents) = decode(&encoded.bytes).unwrap();
            prop_assert_eq!(header, encoded.header);
            prop_assert_eq!(BatchHeader::decode_copy(&encoded.bytes, SEED, header.end()), Ok(header));
            prop_assert!(contents.intact && contents.unknown.is_none());
            let found: Vec<_> = contents.records.iter()
                .map(|r| encoded.bytes[r.content.clone().unwrap().1].to_vec()).collect();
            prop_assert_eq!(found, payloads);
            for (parsed, (header, offset)) in contents.records.iter().zip(&encoded.records) {
                let start = header.payload_range(*offset).start as u64 + offset;
                prop_assert!(header.apart == 0 || apart.is_some() && start.is_multiple_of(BLOCK as u64));
                prop_assert!(apart != Some(0) || !record::may_stand_apart(header.payload_len as usize) || header.apart > 0);
                prop_assert_eq!(parsed.offset, *offset);
                prop_assert_eq!(&parsed.content.as_ref().unwrap().0, header);
            }
        }

        /// One damaged byte anywhere: it is noticed, at most one record is lost, and that one is named.
        #[test]
        fn one_damaged_byte_costs_at_most_one_named_record(
            payloads in payloads(), apart in apart(), at: prop::sample::Index, flip in 1u8..,
        ) {
            let encoded = encoded(&payloads, apart);
            let mut bytes = encoded.bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let (header, contents) = decode(&bytes).expect("one of the two headers is whole");
            let in_header = at < HEADER_LEN || at >= bytes.len() - HEADER_LEN;
            prop_assert!(in_header || !contents.intact);
            if in_header {
                prop_assert!(
                    BatchHeader::decode(&bytes, SEED, 8192).is_err()
                        || BatchHeader::decode_copy(&bytes, SEED, header.end()).is_err()
                );
            }
            prop_assert!(contents.unknown.is_none());
            prop_assert_eq!(contents.records.len(), payloads.len());
            let damaged = contents.records.iter().filter(|record| record.content.is_err()).count();
            prop_assert!(damaged <= 1);
            for (number, record) in contents.records.iter().enumerate() {
                prop_assert_eq!(ChunkId::from_bytes(record.id).to_u128(), number as u128);
                if let Ok((_, payload)) = &record.content {
                    prop_assert_eq!(&bytes[payload.clone()], payloads[number].as_slice());
                }
            }
        }

        #[test]
        fn heavy_damage_never_gives_wrong_bytes(
            payloads in payloads(), apart in apart(), noise: Vec<(prop::sample::Index, u8)>,
        ) {
            let encoded = encoded(&payloads, apart);
            let mut bytes = encoded.bytes.to_vec();
            for (at, value) in noise {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some((_, contents)) = decode(&bytes) {
                for record in &contents.records {
                    if let Ok((header, payload)) = &record.content {
                        prop_assert_eq!(&bytes[payload.clone()], payloads[header.chunk_id().counter as usize].as_slice());
                    }
                }
            }
        }

        #[test]
        fn decoders_never_panic(mut data in proptest::collection::vec(any::<u8>(), 0..300), with_magic: bool) {
            if with_magic && data.len() >= 4 {
                data[..4].copy_from_slice(&MAGIC.to_le_bytes());
            }
            let _ = BatchHeader::decode(&data, SEED, 0);
            let _ = BatchHeader::decode_copy(&data, SEED, 4096);
        }
    }

    /// Headers of many chunks share a block where their payloads stand apart.
    #[test]
    fn a_lost_block_costs_no_more_than_its_payload() {
        let payloads: Vec<Vec<u8>> = (1..=100u8).map(|byte| vec![byte; BLOCK]).collect();
        let encoded = encoded(&payloads, Some(8));
        assert!(encoded.records.iter().all(|(header, _)| header.apart > 0));
        let mut costless = 0;
        for block in 0..encoded.bytes.len() / BLOCK {
            let mut bytes = encoded.bytes.to_vec();
            bytes[block * BLOCK..(block + 1) * BLOCK].fill(0);
            let (_, contents) = decode(&bytes).expect("one of the two headers is whole");
            assert!(!contents.intact && contents.unknown.is_none(), "block {block}");
            let lost = contents.records.iter().filter(|record| record.content.is_err()).count();
            assert!(contents.records.len() == 100 && lost <= 1, "block {block} costs {lost} records");
            costless += usize::from(lost == 0);
        }
        assert_eq!(costless, encoded.bytes.len() / BLOCK - 100);
    }

    #[test]
    fn payloads_stand_apart_where_that_costs_little() {
        let len = |chunks: usize, apart| lay_out(&records(&vec![vec![1; BLOCK]; chunks]), apart).len / BLOCK;
        assert_eq!((len(1, None), len(1, Some(8)), len(1, Some(0))), (2, 2, 3));
        assert_eq!((len(16, None), len(16, Some(8))), (17, 18));
        assert_eq!((len(250, None), len(250, Some(8))), (256, 261));
        let is_apart = |chunks: usize| {
            let layout = lay_out(&records(&vec![vec![1; BLOCK]; chunks]), Some(8));
            layout.places.iter().all(|place| place.apart > 0)
        };
        assert!(!is_apart(7) && is_apart(8) && is_apart(500));
        assert!(!is_apart(600), "the last would be too far from their headers");
        let mut mixed = records(&[vec![1; 100], vec![2; BLOCK], vec![3; 5 * BLOCK]]);
        mixed[1].header.kind = Kind::RaftEntry;
        assert!(lay_out(&mixed, Some(0)).places.iter().all(|place| place.apart == 0), "only small chunks");
    }

    #[test]
    fn a_batch_of_another_incarnation_disk_or_place_does_not_verify() {
        let encoded = encoded(&[vec![1; 100]], None);
        assert!(BatchHeader::decode(&encoded.bytes, SEED, 8192).is_ok());
        assert!(BatchHeader::decode(&encoded.bytes, SEED, 4096).is_err());
        assert!(BatchHeader::decode(&encoded.bytes, Seed { incarnation: 6, ..SEED }, 8192).is_err());
        assert!(BatchHeader::decode(&encoded.bytes, Seed { disk: DiskId(8), ..SEED }, 8192).is_err());
    }
}
