//! Records: a 64-byte header, one CRC-32C per 16 KiB of payload, the payload; which may stand apart, further on in the batch.

use base::buffer::BLOCK;
use base::checksum::crc32c;
use base::codec::{DecodeError, Reader, Writer};
use base::ids::{ChunkId, GroupId, LogIndex, OwnerId, PeerId, PgEpoch, Term};
use base::plant::{self, Plant};
use std::ops::Range;

use super::Seed;

/// Length of a record header in bytes.
pub const HEADER_LEN: usize = 64;
/// Payload bytes under one CRC-32C.
pub const CRC_BLOCK: usize = 16 << 10;
/// Largest volume in bytes.
pub const VOLUME_SIZE_MAX: u64 = 1 << 30;
/// Records in a batch start at multiples of this many bytes.
pub const RECORD_ALIGN: usize = 8;
/// Furthest that a payload stands from its header, in blocks: what the index has room for.
pub const APART_MAX: u16 = 511;
/// Largest payload of one record in bytes (a base record with a whole Raft tail; chunks are smaller).
pub const PAYLOAD_MAX: usize = 32 << 20;

const VERSION: u8 = 1;

/// What a record is. The numbers are the format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A chunk with its payload.
    Chunk = 1,
    /// Says where in a bulk volume a large chunk lies. Without it the chunk does not exist.
    Locator = 2,
    /// The id is deleted, for ever.
    Tombstone = 3,
    /// One Raft log entry. An index at or below the last one cuts the log there first.
    RaftEntry = 4,
    /// The group's latest hard state.
    RaftHardState = 5,
    /// Hard state, base and all entries of a group: supersedes all its earlier records.
    RaftBase = 6,
    /// Entries up to the index are gone; the index and its term become the base.
    RaftTrim = 7,
    /// The group's log was found damaged: this peer never votes again.
    RaftDamaged = 8,
    /// The group is no longer on this disk.
    RaftRemove = 9,
    /// All live volumes, in each journal volume's first batch.
    VolumeList = 10,
    /// All Raft groups with their last record's number, in each journal volume's first batch.
    RaftList = 11,
    /// The volume holds nothing any more and may be missing.
    VolumeDropped = 12,
    /// The last record of a journal volume: names the one that follows.
    Seal = 13,
    /// Reserved: record of a volume's write-ahead log.
    Log = 15,
    /// The chunk left this disk; a later chunk or locator record brings it back.
    Evicted = 16,
}

impl Kind {
    pub fn from_u8(raw: u8) -> Option<Kind> {
        use Kind::*;
        const ALL: [Kind; 15] = [
            Chunk,
            Locator,
            Tombstone,
            RaftEntry,
            RaftHardState,
            RaftBase,
            RaftTrim,
            RaftDamaged,
            RaftRemove,
            VolumeList,
            RaftList,
            VolumeDropped,
            Seal,
            Log,
            Evicted,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == raw)
    }

    /// Whether the record belongs to a Raft group and carries the group's record number.
    pub fn is_raft(self) -> bool {
        use Kind::*;
        matches!(self, RaftEntry | RaftHardState | RaftBase | RaftTrim | RaftDamaged | RaftRemove)
    }

    /// Whether `id` is a chunk id.
    pub fn is_chunk(self) -> bool {
        matches!(self, Kind::Chunk | Kind::Locator | Kind::Tombstone | Kind::Evicted)
    }
}

/// The header of a record. The four generic fields mean, by kind:
///
/// | field | chunk, locator, tombstone, evicted | Raft kinds | volume kinds |
/// |---|---|---|---|
/// | `id` | chunk id | group, log index (big-endian) | incarnation, 0 |
/// | `owner` | owner domain | peer | 0 |
/// | `check` | CRC-64/NVME of the chunk | term | 0 |
/// | `epoch` | `pg_epoch` | the group's record number | 0 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    pub kind: Kind,
    pub payload_len: u32,
    pub id: [u8; 16],
    pub owner: u64,
    pub check: u64,
    pub epoch: u64,
    /// CRC-32C of the block checksums; in a bulk volume of all of the header block behind the header.
    pub table_crc: u32,
    /// The payload begins so many blocks behind the one that the header begins in; 0: right behind header and table.
    pub apart: u16,
}

impl RecordHeader {
    /// A chunk, locator, tombstone or evicted mark; `payload_len` is filled in by the encoder.
    pub fn chunk(kind: Kind, id: ChunkId, owner: OwnerId, epoch: PgEpoch, crc64: u64) -> RecordHeader {
        let epoch = u64::from(epoch.0);
        RecordHeader {
            kind,
            payload_len: 0,
            id: id.to_bytes(),
            owner: owner.0,
            check: crc64,
            epoch,
            table_crc: 0,
            apart: 0,
        }
    }

    pub fn raft(kind: Kind, group: GroupId, peer: PeerId, index: LogIndex, term: Term, number: u64) -> RecordHeader {
        let id = raft_id(group, index);
        RecordHeader { kind, payload_len: 0, id, owner: peer.0, check: term.0, epoch: number, table_crc: 0, apart: 0 }
    }

    pub fn volume(kind: Kind, incarnation: u64) -> RecordHeader {
        let id = raft_id(GroupId(incarnation), LogIndex(0));
        RecordHeader { kind, payload_len: 0, id, owner: 0, check: 0, epoch: 0, table_crc: 0, apart: 0 }
    }

    pub fn chunk_id(&self) -> ChunkId {
        ChunkId::from_bytes(self.id)
    }

    pub fn group(&self) -> GroupId {
        split_id(&self.id).0
    }

    pub fn index(&self) -> LogIndex {
        split_id(&self.id).1
    }

    /// Of volume kinds.
    pub fn incarnation(&self) -> u64 {
        split_id(&self.id).0.0
    }

    pub fn encode(&self, seed: Seed, offset: u64) -> [u8; HEADER_LEN] {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.put_u8(self.kind as u8);
        out.put_u8(VERSION);
        out.put_u16(self.apart);
        out.put_u32(self.payload_len);
        out.put_bytes(&self.id);
        out.put_u64(self.owner);
        out.put_u64(self.check);
        out.put_u64(self.epoch);
        out.put_u32(self.table_crc);
        out.put_u64(0);
        let crc = crc32c(&seed.header(offset), &out);
        out.put_u32(crc);
        let mut header = [0; HEADER_LEN];
        header.copy_from_slice(&out);
        header
    }

    /// Decodes and verifies the header that stands at byte `offset` of the volume.
    pub fn decode(data: &[u8], seed: Seed, offset: u64) -> Result<RecordHeader, DecodeError> {
        let mut reader = Reader::new(data);
        let body = Reader::new(data).take(HEADER_LEN - 4, "record header")?;
        let kind = reader.u8("record kind")?;
        let version = reader.u8("record version")?;
        let apart = reader.u16("distance of the payload")?;
        let payload_len = reader.u32("payload length")?;
        let id = reader.array("record id")?;
        let owner = reader.u64("record owner")?;
        let check = reader.u64("record check")?;
        let epoch = reader.u64("record epoch")?;
        let table_crc = reader.u32("table checksum")?;
        let reserved = reader.u64("record reserved")?;
        let crc = reader.u32("record header checksum")?;
        if crc != crc32c(&seed.header(offset), body) {
            return Err(reader.error("record header checksum"));
        }
        let kind = Kind::from_u8(kind).ok_or_else(|| reader.error("record kind"))?;
        let fits = apart == 0 || kind == Kind::Chunk && may_stand_apart(payload_len as usize) && apart <= APART_MAX;
        let len_max = if kind == Kind::Chunk { base::CHUNK_SIZE_MAX } else { PAYLOAD_MAX };
        if version != VERSION || reserved != 0 || payload_len as usize > len_max || !fits {
            return Err(reader.error("record header field"));
        }
        Ok(RecordHeader { kind, payload_len, id, owner, check, epoch, table_crc, apart })
    }

    /// Bytes of the block checksums that follow the header.
    pub fn table_len(&self) -> usize {
        table_len(self.payload_len as usize)
    }

    /// Bytes from the record's start to the next one's.
    pub fn stride(&self) -> usize {
        match self.apart {
            0 => record_len(self.payload_len as usize),
            _ => head_len(self.payload_len as usize),
        }
    }

    /// Where the payload lies, in bytes from the start of the record, which stands at byte `offset` of the volume.
    pub fn payload_range(&self, offset: u64) -> Range<usize> {
        let start = match self.apart {
            0 => HEADER_LEN + self.table_len(),
            apart => (apart_at(offset, apart) - offset) as usize,
        };
        start..start + self.payload_len as usize
    }
}

/// Where the payload begins in the volume, in bytes, `apart` blocks behind that of a record at byte `offset`.
pub const fn apart_at(offset: u64, apart: u16) -> u64 {
    offset - offset % BLOCK as u64 + apart as u64 * BLOCK as u64
}

/// Whether a chunk of this length may stand apart: whole blocks, under one checksum.
pub const fn may_stand_apart(payload_len: usize) -> bool {
    payload_len > 0 && payload_len.is_multiple_of(BLOCK) && payload_len <= CRC_BLOCK
}

/// Group and index as the 16 bytes of a Raft record's id.
pub fn raft_id(group: GroupId, index: LogIndex) -> [u8; 16] {
    ((u128::from(group.0) << 64) | u128::from(index.0)).to_be_bytes()
}

pub fn split_id(id: &[u8; 16]) -> (GroupId, LogIndex) {
    let raw = u128::from_be_bytes(*id);
    (GroupId((raw >> 64) as u64), LogIndex(raw as u64))
}

/// Number of checksummed blocks of a payload.
pub const fn block_count(payload_len: usize) -> usize {
    payload_len.div_ceil(CRC_BLOCK)
}

pub const fn table_len(payload_len: usize) -> usize {
    4 * block_count(payload_len)
}

/// Bytes of a record whose payload stands apart, without that, with its alignment.
pub const fn head_len(payload_len: usize) -> usize {
    (HEADER_LEN + table_len(payload_len)).next_multiple_of(RECORD_ALIGN)
}

/// Bytes a record takes inside a batch, with its alignment.
pub const fn record_len(payload_len: usize) -> usize {
    (HEADER_LEN + table_len(payload_len) + payload_len).next_multiple_of(RECORD_ALIGN)
}

/// The block checksums of a contiguous payload.
pub fn block_table(seed: Seed, id: &[u8; 16], payload: &[u8]) -> Vec<u8> {
    let mut table = Vec::with_capacity(table_len(payload.len()));
    for (number, block) in payload.chunks(CRC_BLOCK).enumerate() {
        table.put_u32(crc32c(&seed.block(id, number as u32), block));
    }
    table
}

/// Checks payload blocks against the table. `data` starts at block `first_block` and ends at a block boundary or at
/// the end of what the last block covers. Returns the number of the first bad block.
pub fn verify_blocks(seed: Seed, id: &[u8; 16], table: &[u8], first_block: usize, data: &[u8]) -> Result<(), u32> {
    for (position, block) in data.chunks(CRC_BLOCK).enumerate() {
        let number = first_block + position;
        let Some(expected) = table.get(4 * number..4 * number + 4) else { return Err(number as u32) };
        let is_right = crc32c(&seed.block(id, number as u32), block).to_le_bytes() == expected;
        if !is_right && !plant::is(Plant::IgnoreChecksum) {
            return Err(number as u32);
        }
    }
    Ok(())
}

/// Verifies a whole record whose bytes start at `data[0]`, at byte `offset` of the volume. Gives the header, and where in
/// `data` the payload is.
pub fn verify_record(data: &[u8], seed: Seed, offset: u64) -> Result<(RecordHeader, Range<usize>), DecodeError> {
    let header = RecordHeader::decode(data, seed, offset)?;
    let mut reader = Reader::new(data);
    reader.take(HEADER_LEN, "record header")?;
    let table = reader.take(header.table_len(), "block checksums")?;
    let range = header.payload_range(offset);
    let payload = data.get(range.clone()).ok_or_else(|| reader.error("payload"))?;
    if crc32c(&[], table) != header.table_crc {
        return Err(reader.error("block checksums"));
    }
    verify_blocks(seed, &header.id, table, 0, payload).map_err(|_| reader.error("payload checksum"))?;
    if header.apart == 0 {
        reader.take(payload.len(), "payload")?;
    }
    let padding = header.stride() - reader.offset();
    match reader.take(padding, "record padding") {
        Ok(zeroes) if zeroes.iter().any(|byte| *byte != 0) => Err(reader.error("record padding")),
        _ => Ok((header, range)),
    }
}

/// Where a large chunk lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Locator {
    pub incarnation: u64,
    /// Of the header block, in bytes.
    pub offset: u64,
    /// Of the chunk's payload, in bytes.
    pub len: u32,
    /// The header checksum of the record there, so that only that very record is meant.
    pub header_crc: u32,
}

impl Locator {
    pub const LEN: usize = 24;

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Locator::LEN);
        out.put_u64(self.incarnation);
        out.put_u64(self.offset);
        out.put_u32(self.len);
        out.put_u32(self.header_crc);
        out
    }

    pub fn decode(data: &[u8]) -> Result<Locator, DecodeError> {
        let mut reader = Reader::new(data);
        let locator = Locator {
            incarnation: reader.u64("bulk incarnation")?,
            offset: reader.u64("bulk offset")?,
            len: reader.u32("chunk length")?,
            header_crc: reader.u32("bulk header checksum")?,
        };
        if reader.remaining() != 0 || locator.len as usize > base::CHUNK_SIZE_MAX {
            return Err(reader.error("locator length"));
        }
        if locator.offset >= VOLUME_SIZE_MAX {
            return Err(reader.error("bulk offset"));
        }
        Ok(locator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::DiskId;
    use proptest::prelude::*;

    pub fn arbitrary_header() -> impl Strategy<Value = RecordHeader> {
        (1u8..=13, 0u32..=base::CHUNK_SIZE_MAX as u32, any::<[u8; 16]>(), any::<(u64, u64, u64, u32)>()).prop_map(
            |(kind, payload_len, id, (owner, check, epoch, table_crc))| RecordHeader {
                kind: Kind::from_u8(kind).unwrap(),
                payload_len,
                id,
                owner,
                check,
                epoch,
                table_crc,
                apart: 0,
            },
        )
    }

    proptest! {
        #[test]
        fn headers_round_trip_and_only_where_they_belong(header in arbitrary_header(), disk: u128, inc: u64, at: u64) {
            let seed = Seed { disk: DiskId(disk), incarnation: inc };
            let bytes = header.encode(seed, at);
            prop_assert_eq!(RecordHeader::decode(&bytes, seed, at), Ok(header));
            prop_assert!(RecordHeader::decode(&bytes, seed, at ^ 8).is_err());
            for other in [Seed { incarnation: inc ^ 1, ..seed }, Seed { disk: DiskId(disk ^ 1), ..seed }] {
                prop_assert!(RecordHeader::decode(&bytes, other, at).is_err());
            }
        }

        #[test]
        fn only_small_chunks_of_whole_blocks_stand_apart(
            header in arbitrary_header(), blocks in 0u32..10, odd in 0u32..2, apart in 0u16..600,
        ) {
            let seed = Seed { disk: DiskId(7), incarnation: 3 };
            let header = RecordHeader { payload_len: blocks * BLOCK as u32 + odd, apart, ..header };
            let may = header.kind == Kind::Chunk && (1..=4).contains(&blocks) && odd == 0 && apart <= APART_MAX;
            let decoded = RecordHeader::decode(&header.encode(seed, 72), seed, 72);
            prop_assert_eq!(decoded.is_ok(), apart == 0 || may);
            if let Ok(decoded) = decoded {
                prop_assert_eq!(decoded, header);
                let payload = decoded.payload_range(72);
                prop_assert!(apart == 0 || (72 + payload.start).is_multiple_of(BLOCK) && payload.start >= decoded.stride());
            }
        }

        #[test]
        fn any_flipped_bit_of_a_header_is_found(header in arbitrary_header(), bit in 0usize..512) {
            let seed = Seed { disk: DiskId(7), incarnation: 3 };
            let mut bytes = header.encode(seed, 64);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(RecordHeader::decode(&bytes, seed, 64).is_err());
        }

        #[test]
        fn decoders_never_panic(data in proptest::collection::vec(any::<u8>(), 0..200), at: u64) {
            let seed = Seed { disk: DiskId(7), incarnation: 3 };
            let _ = RecordHeader::decode(&data, seed, at);
            let _ = verify_record(&data, seed, at);
            let _ = Locator::decode(&data);
        }

        #[test]
        fn locators_round_trip(incarnation: u64, offset in 0..VOLUME_SIZE_MAX, len in 0u32..=(4 << 20), header_crc: u32) {
            let locator = Locator { incarnation, offset, len, header_crc };
            prop_assert_eq!(Locator::decode(&locator.encode()), Ok(locator));
        }

        #[test]
        fn raft_ids_round_trip(group: u64, index: u64) {
            let (group, index) = (GroupId(group), LogIndex(index));
            prop_assert_eq!(split_id(&raft_id(group, index)), (group, index));
        }
    }
}
