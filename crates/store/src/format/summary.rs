//! Summaries: what replaying a sealed journal volume needs of it, in a file of its own, `summary-<incarnation>`.
//!
//! A summary is a stream of lines, one a record in the order of the volume, cut into checked blocks wherever they are
//! full, and an end block. Nothing in it is the truth: it is believed only as a whole, and only for the very volume
//! whose last batch it names.

use base::buffer::{AlignedBuf, BLOCK, align_up};
use base::checksum::crc32c;
use base::codec::{DecodeError, Reader, Writer};
use bytes::Bytes;

use super::Seed;
use super::raft::{decode_base, outline_of_base};
use super::record::{APART_MAX, Kind, PAYLOAD_MAX, RECORD_ALIGN, RecordHeader, VOLUME_SIZE_MAX, may_stand_apart};

/// Length of a block of lines in bytes; the last one may be shorter.
pub const LINES_BLOCK_LEN: usize = 256 << 10;
/// Length of the end block in bytes.
pub const END_BLOCK_LEN: usize = BLOCK;
/// Length of a block's header in bytes.
const HEADER_LEN: usize = 32;
/// Bytes of lines that one block takes.
pub const LINES_IN_BLOCK: usize = LINES_BLOCK_LEN - HEADER_LEN;
/// Length of a line without the part of the payload that is kept, in bytes.
const LINE_LEN: usize = 53;

const MAGIC: u32 = u32::from_le_bytes(*b"HSUM");
const VERSION: u16 = 1;
const LINES: u16 = 1;
const END: u16 = 2;

/// Name of the summary of a journal volume.
pub fn summary_name(incarnation: u64) -> String {
    format!("summary-{incarnation:016x}")
}

/// The incarnation in a summary's name.
pub fn parse_summary_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("summary-")?;
    let incarnation = u64::from_str_radix(digits, 16).ok()?;
    (summary_name(incarnation) == name).then_some(incarnation)
}

/// What the end block says of the volume, and of the lines before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SummaryEnd {
    /// Where the volume was sealed, in bytes.
    pub volume_end: u64,
    /// Of its last batch's header. Batches are chained, so that it stands for all of them.
    pub checksum: u32,
    pub batches: u64,
    pub records: u64,
    /// Of all lines together, in bytes.
    pub lines_len: u64,
}

impl SummaryEnd {
    const LEN: usize = 36;

    pub fn encode(&self, seed: Seed) -> Bytes {
        let mut out = Vec::with_capacity(SummaryEnd::LEN);
        out.put_u64(self.volume_end);
        out.put_u32(self.checksum);
        out.put_u64(self.batches);
        out.put_u64(self.records);
        out.put_u64(self.lines_len);
        encode_block(seed, END, lines_end(self.lines_len), &out)
    }

    /// Decodes the end block that stands at byte `offset` of the summary.
    pub fn decode(block: &[u8], seed: Seed, offset: u64) -> Result<SummaryEnd, DecodeError> {
        let mut reader = Reader::new(decode_block(block, seed, END, offset)?);
        let end = SummaryEnd {
            volume_end: reader.u64("volume end")?,
            checksum: reader.u32("last batch's checksum")?,
            batches: reader.u64("batch count")?,
            records: reader.u64("record count")?,
            lines_len: reader.u64("length of the lines")?,
        };
        if reader.remaining() != 0 || end.lines_len > offset || lines_end(end.lines_len) != offset {
            return Err(reader.error("summary end"));
        }
        Ok(end)
    }
}

/// Where the blocks with `lines_len` bytes of lines end, in bytes of the summary.
pub fn lines_end(lines_len: u64) -> u64 {
    let (whole, rest) = (lines_len / LINES_IN_BLOCK as u64, lines_len % LINES_IN_BLOCK as u64);
    let last = if rest == 0 { 0 } else { align_up(HEADER_LEN as u64 + rest) };
    whole * LINES_BLOCK_LEN as u64 + last
}

/// A block of at most [`LINES_IN_BLOCK`] bytes of lines for byte `offset` of the summary.
pub fn encode_lines(seed: Seed, offset: u64, lines: &[u8]) -> Bytes {
    assert!(lines.len() <= LINES_IN_BLOCK, "lines are cut into blocks");
    encode_block(seed, LINES, offset, lines)
}

/// The lines in the block that stands at byte `offset` of the summary.
pub fn decode_lines(block: &[u8], seed: Seed, offset: u64) -> Result<&[u8], DecodeError> {
    decode_block(block, seed, LINES, offset)
}

fn encode_block(seed: Seed, what: u16, offset: u64, body: &[u8]) -> Bytes {
    let mut head = Vec::with_capacity(HEADER_LEN);
    head.put_u32(0);
    head.put_u32(MAGIC);
    head.put_u16(VERSION);
    head.put_u16(what);
    head.put_u64(seed.incarnation);
    head.put_u32((offset / BLOCK as u64) as u32);
    head.put_u32(body.len() as u32);
    head.put_u32(0);
    let used = HEADER_LEN + body.len();
    let mut buffer = AlignedBuf::zeroed(align_up(used as u64) as usize);
    let out = buffer.as_mut_slice();
    out[..HEADER_LEN].copy_from_slice(&head);
    out[HEADER_LEN..used].copy_from_slice(body);
    let crc = crc32c(&seed.header(offset), &out[4..used]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    buffer.freeze()
}

fn decode_block(block: &[u8], seed: Seed, what: u16, offset: u64) -> Result<&[u8], DecodeError> {
    let mut reader = Reader::new(block);
    let crc = reader.u32("summary checksum")?;
    if reader.u32("summary magic")? != MAGIC {
        return Err(reader.error("summary magic"));
    }
    let version = reader.u16("summary version")?;
    let found = reader.u16("summary block kind")?;
    let incarnation = reader.u64("incarnation")?;
    let at_block = reader.u32("summary offset")?;
    let len = reader.u32("length of the lines")?;
    let reserved = reader.u32("summary reserved")?;
    let body = reader.take(len as usize, "lines")?;
    if crc != crc32c(&seed.header(offset), &block[4..HEADER_LEN + body.len()]) {
        return Err(reader.error("summary checksum"));
    }
    let at_home = incarnation == seed.incarnation && u64::from(at_block) * BLOCK as u64 == offset;
    if version != VERSION || found != what || reserved != 0 || !at_home {
        return Err(reader.error("summary header field"));
    }
    Ok(body)
}

/// Appends the line of a record whose header was written at byte `offset` of the volume.
pub fn put_line(out: &mut Vec<u8>, offset: u64, header: &RecordHeader, payload: &[u8]) {
    out.put_u8(header.kind as u8);
    out.put_u32((offset / RECORD_ALIGN as u64) as u32);
    out.put_u32(header.payload_len);
    out.put_bytes(&header.id);
    out.put_u64(header.owner);
    out.put_u64(header.check);
    out.put_u64(header.epoch);
    match header.kind {
        // Where their payloads lie is all that is kept of them in memory, too.
        Kind::Chunk if header.apart > 0 => put_kept(out, &header.apart.to_le_bytes()),
        Kind::Chunk | Kind::RaftEntry => put_kept(out, &[]),
        Kind::RaftBase => match decode_base(payload) {
            Ok(base) => put_kept(out, &outline_of_base(payload, &base)),
            Err(_) => put_kept(out, payload),
        },
        _ => put_kept(out, payload),
    }
}

fn put_kept(out: &mut Vec<u8>, kept: &[u8]) {
    out.put_u32(kept.len() as u32);
    out.put_bytes(kept);
}

/// A record as its summary knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line<'a> {
    /// Of the record in the volume, in bytes.
    pub offset: u64,
    /// Without the checksum of the block checksums.
    pub header: RecordHeader,
    /// What of the payload was kept.
    pub kept: &'a [u8],
}

/// Takes lines apart that arrive in pieces, cut anywhere.
#[derive(Default)]
pub struct Lines {
    /// The start of a line whose end has not come yet.
    carried: Vec<u8>,
}

impl Lines {
    /// Takes the next piece and hands each line that is whole to `visit`.
    pub fn take(&mut self, piece: &[u8], visit: &mut dyn FnMut(Line<'_>)) -> Result<(), DecodeError> {
        if self.carried.is_empty() {
            let used = each_line(piece, visit)?;
            self.carried.extend_from_slice(&piece[used..]);
        } else {
            self.carried.extend_from_slice(piece);
            let used = each_line(&self.carried, visit)?;
            self.carried.drain(..used);
        }
        Ok(())
    }

    /// Whether no line is left without its end.
    pub fn is_done(&self) -> bool {
        self.carried.is_empty()
    }
}

/// How many bytes the whole lines took.
fn each_line(data: &[u8], visit: &mut dyn FnMut(Line<'_>)) -> Result<usize, DecodeError> {
    let mut used = 0;
    while let Some(line) = line_at(&data[used..])? {
        used += LINE_LEN + line.kept.len();
        visit(line);
    }
    Ok(used)
}

/// The line at the start of `data`; `None` when it is not all there.
fn line_at(data: &[u8]) -> Result<Option<Line<'_>>, DecodeError> {
    if data.len() < LINE_LEN {
        return Ok(None);
    }
    let mut reader = Reader::new(data);
    let kind = Kind::from_u8(reader.u8("record kind")?).ok_or_else(|| reader.error("record kind"))?;
    let unit = reader.u32("record offset")?;
    let payload_len = reader.u32("payload length")?;
    let id = reader.array("record id")?;
    let owner = reader.u64("record owner")?;
    let check = reader.u64("record check")?;
    let epoch = reader.u64("record epoch")?;
    let kept_len = reader.u32("kept length")?;
    if u64::from(unit) * RECORD_ALIGN as u64 >= VOLUME_SIZE_MAX {
        return Err(reader.error("record offset"));
    }
    if payload_len as usize > PAYLOAD_MAX || kept_len > payload_len {
        return Err(reader.error("kept length"));
    }
    if reader.remaining() < kept_len as usize {
        return Ok(None);
    }
    let kept = reader.take(kept_len as usize, "kept payload")?;
    let offset = u64::from(unit) * RECORD_ALIGN as u64;
    let apart = match (kind, kept) {
        (Kind::Chunk, [low, high]) => u16::from_le_bytes([*low, *high]),
        _ => 0,
    };
    let is_chunk = kind == Kind::Chunk;
    let fits = apart == 0 && (!is_chunk || kept.is_empty())
        || (1..=APART_MAX).contains(&apart) && may_stand_apart(payload_len as usize);
    if !fits || is_chunk && payload_len as usize > base::CHUNK_SIZE_MAX {
        return Err(reader.error("place of a payload"));
    }
    let header = RecordHeader { kind, payload_len, id, owner, check, epoch, table_crc: 0, apart };
    Ok(Some(Line { offset, header, kept }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::DiskId;
    use proptest::prelude::*;

    const SEED: Seed = Seed { disk: DiskId(7), incarnation: 3 };

    /// Kind, place, id, the three numbers, payload.
    type Record = (u8, u32, [u8; 16], (u64, u64, u64), Vec<u8>);

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let payload = proptest::collection::vec(any::<u8>(), 0..100);
        let numbers = any::<(u64, u64, u64)>();
        proptest::collection::vec((1u8..=13, 0u32..(1 << 27), any::<[u8; 16]>(), numbers, payload), 0..50)
    }

    proptest! {
        #[test]
        fn lines_round_trip_however_they_are_cut(records in records(), piece_len in 1usize..200) {
            let mut out = Vec::new();
            let mut expected = Vec::new();
            for (kind, unit, id, (owner, check, epoch), payload) in &records {
                let kind = Kind::from_u8(*kind).unwrap();
                let payload_len = payload.len() as u32;
                let header =
                    RecordHeader { kind, payload_len, id: *id, owner: *owner, check: *check, epoch: *epoch, table_crc: 0, apart: 0 };
                put_line(&mut out, u64::from(*unit) * 8, &header, payload);
                let none = matches!(kind, Kind::Chunk | Kind::RaftEntry);
                expected.push((u64::from(*unit) * 8, header, if none { Vec::new() } else { payload.clone() }));
            }
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in out.chunks(piece_len) {
                lines.take(piece, &mut |line| found.push((line.offset, line.header, line.kept.to_vec()))).unwrap();
            }
            prop_assert!(lines.is_done());
            // A payload that is a base record by chance is kept as its outline.
            found.iter_mut().zip(&expected).filter(|(_, e)| e.1.kind == Kind::RaftBase).for_each(|(f, e)| f.2 = e.2.clone());
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn blocks_round_trip_and_only_where_they_belong(
            body in proptest::collection::vec(any::<u8>(), 0..9000), at in 0u64..1000, bit: prop::sample::Index,
        ) {
            let offset = at * LINES_BLOCK_LEN as u64;
            let block = encode_lines(SEED, offset, &body);
            prop_assert_eq!(block.len() % BLOCK, 0);
            prop_assert_eq!(decode_lines(&block, SEED, offset), Ok(body.as_slice()));
            prop_assert!(decode_lines(&block, SEED, offset + BLOCK as u64).is_err());
            for other in [Seed { incarnation: 4, ..SEED }, Seed { disk: DiskId(8), ..SEED }] {
                prop_assert!(decode_lines(&block, other, offset).is_err());
            }
            prop_assert!(SummaryEnd::decode(&block, SEED, offset).is_err());
            let mut bytes = block.to_vec();
            let bit = bit.index((HEADER_LEN + body.len()) * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_lines(&bytes, SEED, offset).is_err());
        }

        #[test]
        fn ends_round_trip(volume_end: u64, checksum: u32, batches: u64, records: u64, lines_len in 0u64..(1 << 31)) {
            let end = SummaryEnd { volume_end, checksum, batches, records, lines_len };
            let block = end.encode(SEED);
            prop_assert_eq!(block.len(), END_BLOCK_LEN);
            let at = lines_end(lines_len);
            prop_assert_eq!(SummaryEnd::decode(&block, SEED, at), Ok(end));
            prop_assert!(SummaryEnd::decode(&block, SEED, at + BLOCK as u64).is_err());
        }

        #[test]
        fn decoders_never_panic(data in proptest::collection::vec(any::<u8>(), 0..300), name: String) {
            let _ = decode_lines(&data, SEED, 0);
            let _ = SummaryEnd::decode(&data, SEED, 0);
            let _ = Lines::default().take(&data, &mut |_| ());
            let _ = parse_summary_name(&name);
        }

        #[test]
        fn names_round_trip(incarnation: u64) {
            prop_assert_eq!(parse_summary_name(&summary_name(incarnation)), Some(incarnation));
        }
    }
}
