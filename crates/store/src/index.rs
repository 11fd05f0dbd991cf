//! The index: where each chunk lies and which ids are deleted. Derived from the volumes at start, in RAM, 44 bytes a
//! record, in id order.

use base::ids::{ChunkId, PgEpoch, PoolId, SLOT_BITS, Slot as PlacementSlot};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::format::batch::DIRECTORY_LINE_LEN;
use crate::format::record::{self, Locator, RECORD_ALIGN};
use crate::report::Digest;
use base::buffer::{BLOCK, align_up};

/// Number of a volume in RAM: its incarnation, which stays below 2^32.
pub type VolumeNumber = u32;

/// How far a live record can be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    Good,
    /// Length and checksum are known, the bytes do not verify.
    Damaged,
    /// Only the id is known.
    Unknown,
}

/// A chunk that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Live {
    pub len: u32,
    pub crc64: u64,
    pub epoch: PgEpoch,
    /// Where the payload is: the journal volume itself, or a bulk volume.
    pub volume: VolumeNumber,
    /// Of the record (journal) or header block (bulk), in bytes.
    pub offset: u64,
    /// The journal volume with the record or its locator.
    pub journal: VolumeNumber,
    /// See [`record::RecordHeader::apart`]; 0 in a bulk volume.
    pub apart: u16,
    pub health: Health,
    /// Other journal volumes may hold a (dead) record of this id, too: it was moved or repaired.
    pub copies: bool,
}

impl Live {
    pub fn is_large(&self) -> bool {
        self.volume != self.journal
    }

    /// Bytes this chunk keeps alive in its journal volume.
    pub fn journal_cost(&self) -> u64 {
        let payload = if self.is_large() { Locator::LEN } else { self.len as usize };
        let copied = if self.apart > 0 { record::HEADER_LEN } else { 0 };
        (record::record_len(payload) + copied + DIRECTORY_LINE_LEN) as u64
    }

    /// Bytes this chunk keeps alive in its bulk volume.
    pub fn bulk_cost(&self) -> u64 {
        if self.is_large() { bulk_len(self.len) } else { 0 }
    }
}

/// Bytes a large chunk takes in a bulk volume: header block and padded payload.
pub fn bulk_len(payload_len: u32) -> u64 {
    BLOCK as u64 + align_up(u64::from(payload_len))
}

/// Bytes a tombstone keeps alive in its journal volume.
pub const TOMBSTONE_COST: u64 = (record::record_len(0) + DIRECTORY_LINE_LEN) as u64;

/// Journal volumes that still hold a (dead) record of a deleted id. While there is one, the tombstone must stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    None,
    One(VolumeNumber),
    Many,
}

impl Holder {
    pub fn with(self, journal: VolumeNumber) -> Holder {
        match self {
            Holder::None => Holder::One(journal),
            Holder::One(holder) if holder == journal => self,
            _ => Holder::Many,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    Live(Live),
    Deleted {
        journal: VolumeNumber,
        holder: Holder,
    },
    /// Not here any more, by a record that must stay as long as a tombstone; may come back.
    Evicted {
        journal: VolumeNumber,
        holder: Holder,
    },
}

impl Slot {
    /// Of a deletion or eviction: the volume with its record, and who still holds what it refers to.
    pub fn mark(&self) -> Option<(VolumeNumber, Holder)> {
        match *self {
            Slot::Live(_) => None,
            Slot::Deleted { journal, holder } | Slot::Evicted { journal, holder } => Some((journal, holder)),
        }
    }
}

/// A slot in 28 bytes of alignment 4, so that the tree packs it.
#[derive(Clone, Copy)]
struct Packed {
    crc64: [u32; 2],
    /// Offset in units of the record alignment (27 bits), and the low bits of `apart`; a tombstone's holder kind.
    unit: u32,
    /// Length (23 bits), the high bits of `apart` (4), and flags.
    len_flags: u32,
    volume: u32,
    journal: u32,
    epoch: u32,
}

const LEN_MASK: u32 = (1 << 23) - 1;
const UNIT_BITS: u32 = 27;
const APART_LOW_BITS: u32 = u32::BITS - UNIT_BITS;
const APART_HIGH_SHIFT: u32 = 23;
const APART_HIGH_MASK: u32 = 0xf;
const DELETED: u32 = 1 << 31;
const DAMAGED: u32 = 1 << 30;
const UNKNOWN: u32 = 1 << 29;
const COPIES: u32 = 1 << 28;
const EVICTED: u32 = 1 << 27;
const _: () = assert!(base::CHUNK_SIZE_MAX <= LEN_MASK as usize);
const _: () = assert!((record::APART_MAX as u32) < (APART_HIGH_MASK + 1) << APART_LOW_BITS);
const _: () = assert!(std::mem::size_of::<Packed>() == 28);

fn pack(slot: Slot) -> Packed {
    match slot {
        Slot::Live(live) => {
            let unit = u32::try_from(live.offset / RECORD_ALIGN as u64).unwrap_or(u32::MAX);
            assert!(unit < 1 << UNIT_BITS, "volumes are at most 1 GiB long");
            let apart = u32::from(live.apart);
            let (apart_low, apart_high) = (apart << UNIT_BITS, (apart >> APART_LOW_BITS) << APART_HIGH_SHIFT);
            let health = match live.health {
                Health::Good => 0,
                Health::Damaged => DAMAGED,
                Health::Unknown => UNKNOWN,
            };
            Packed {
                crc64: [live.crc64 as u32, (live.crc64 >> 32) as u32],
                unit: unit | apart_low,
                len_flags: live.len | apart_high | health | if live.copies { COPIES } else { 0 },
                volume: live.volume,
                journal: live.journal,
                epoch: live.epoch.0,
            }
        }
        Slot::Deleted { journal, holder } => pack_mark(journal, holder, DELETED),
        Slot::Evicted { journal, holder } => pack_mark(journal, holder, DELETED | EVICTED),
    }
}

fn pack_mark(journal: VolumeNumber, holder: Holder, len_flags: u32) -> Packed {
    let (unit, volume) = match holder {
        Holder::None => (0, 0),
        Holder::One(volume) => (1, volume),
        Holder::Many => (2, 0),
    };
    Packed { crc64: [0; 2], unit, len_flags, volume, journal, epoch: 0 }
}

fn unpack(packed: &Packed) -> Slot {
    if packed.len_flags & DELETED != 0 {
        let holder = match packed.unit {
            0 => Holder::None,
            1 => Holder::One(packed.volume),
            _ => Holder::Many,
        };
        let journal = packed.journal;
        return match packed.len_flags & EVICTED {
            0 => Slot::Deleted { journal, holder },
            _ => Slot::Evicted { journal, holder },
        };
    }
    let health = match packed.len_flags & (DAMAGED | UNKNOWN) {
        0 => Health::Good,
        DAMAGED => Health::Damaged,
        _ => Health::Unknown,
    };
    let apart_high = (packed.len_flags >> APART_HIGH_SHIFT) & APART_HIGH_MASK;
    Slot::Live(Live {
        len: packed.len_flags & LEN_MASK,
        crc64: u64::from(packed.crc64[0]) | (u64::from(packed.crc64[1]) << 32),
        epoch: PgEpoch(packed.epoch),
        volume: packed.volume,
        offset: u64::from(packed.unit & ((1 << UNIT_BITS) - 1)) * RECORD_ALIGN as u64,
        journal: packed.journal,
        apart: ((packed.unit >> UNIT_BITS) | (apart_high << APART_LOW_BITS)) as u16,
        health,
        copies: packed.len_flags & COPIES != 0,
    })
}

fn digest_of(id: &[u8; 16], packed: &Packed) -> Digest {
    match packed.len_flags & (DAMAGED | UNKNOWN) {
        0 => {
            let bytes = u64::from(packed.len_flags & LEN_MASK);
            Digest { chunks: 1, damaged: 0, bytes, sum: weight_of(id, packed) }
        }
        _ => Digest { damaged: 1, ..Digest::default() },
    }
}

#[derive(Default)]
pub struct Index {
    slots: BTreeMap<[u8; 16], Packed>,
    live: u64,
    /// By pool and the first bits of the slot.
    digests: BTreeMap<(u8, u32), Digest>,
}

/// Digests are kept for runs of slots with this many leading bits in common.
const DIGEST_BITS: u32 = 12;
const _: () = assert!(DIGEST_BITS <= SLOT_BITS);

/// What a good chunk adds to the sum of a digest: the finalizer of SplitMix64 (Steele, Lea and Flood 2014) over id, length
/// and checksum. A sum does not depend on an order, and what was added can be taken away.
fn weight_of(id: &[u8; 16], packed: &Packed) -> u64 {
    let mix = |value: u64| {
        let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let id = u128::from_be_bytes(*id);
    let crc64 = u64::from(packed.crc64[0]) | (u64::from(packed.crc64[1]) << 32);
    let words = [(id >> 64) as u64, id as u64, u64::from(packed.len_flags & LEN_MASK), crc64];
    words.into_iter().fold(0, |hash, word| mix(hash ^ word))
}

impl Index {
    pub fn get(&self, id: ChunkId) -> Option<Slot> {
        self.slots.get(&id.to_bytes()).map(unpack)
    }

    pub fn set(&mut self, id: ChunkId, slot: Slot) {
        let packed = pack(slot);
        let was = self.slots.insert(id.to_bytes(), packed);
        self.count(id, was, false);
        self.count(id, Some(packed), true);
    }

    pub fn remove(&mut self, id: ChunkId) {
        let was = self.slots.remove(&id.to_bytes());
        self.count(id, was, false);
    }

    fn count(&mut self, id: ChunkId, slot: Option<Packed>, comes: bool) {
        let Some(packed) = slot.filter(|packed| packed.len_flags & DELETED == 0) else { return };
        let cell = (id.pool.0, id.slot.get() >> (SLOT_BITS - DIGEST_BITS));
        let one = digest_of(&id.to_bytes(), &packed);
        let digest = self.digests.entry(cell).or_default();
        if comes {
            self.live += 1;
            *digest = digest.and(one);
        } else {
            self.live -= 1;
            *digest = Digest {
                chunks: digest.chunks - one.chunks,
                damaged: digest.damaged - one.damaged,
                bytes: digest.bytes - one.bytes,
                sum: digest.sum.wrapping_sub(one.sum),
            };
        }
        if *digest == Digest::default() {
            self.digests.remove(&cell);
        }
    }

    /// What there is in these slots of a pool, as one number.
    pub fn digest(&self, pool: PoolId, slots: RangeInclusive<u32>) -> Digest {
        let shift = SLOT_BITS - DIGEST_BITS;
        let (first, last) = (*slots.start() >> shift, *slots.end() >> shift);
        let whole = *slots.start() == first << shift && *slots.end() == ((last + 1) << shift) - 1;
        if whole {
            let cells = self.digests.range((pool.0, first)..=(pool.0, last)).map(|(_, digest)| *digest);
            return cells.fold(Digest::default(), Digest::and);
        }
        let at = |slot: u32| ChunkId { pool, slot: PlacementSlot::new(slot), ..ChunkId::from_u128(0) }.to_u128();
        let (from, to) = (at(*slots.start()).to_be_bytes(), (at(*slots.end()) | ((1 << 96) - 1)).to_be_bytes());
        let live = self.slots.range(from..=to).filter(|(_, packed)| packed.len_flags & DELETED == 0);
        live.map(|(id, packed)| digest_of(id, packed)).fold(Digest::default(), Digest::and)
    }

    /// Number of chunks that exist.
    pub fn live_count(&self) -> u64 {
        self.live
    }

    pub fn tombstone_count(&self) -> u64 {
        self.slots.len() as u64 - self.live
    }

    pub fn iter(&self) -> impl Iterator<Item = (ChunkId, Slot)> {
        self.slots.iter().map(|(id, packed)| (ChunkId::from_bytes(*id), unpack(packed)))
    }

    /// Chunks and tombstones of this range of ids, in id order.
    pub fn slots_in(&self, range: RangeInclusive<ChunkId>) -> impl Iterator<Item = (ChunkId, Slot)> {
        let bounds = range.start().to_bytes()..=range.end().to_bytes();
        let bounds = if bounds.start() > bounds.end() { [0xff; 16]..=[0xff; 16] } else { bounds };
        let empty = range.start() > range.end();
        let slots = self.slots.range(bounds).filter(move |_| !empty);
        slots.map(|(id, packed)| (ChunkId::from_bytes(*id), unpack(packed)))
    }

    /// Live chunks with `range` as id bounds, in id order.
    pub fn live_in(&self, range: RangeInclusive<ChunkId>) -> impl Iterator<Item = (ChunkId, Live)> {
        self.slots_in(range).filter_map(|(id, slot)| match slot {
            Slot::Live(live) => Some((id, live)),
            Slot::Deleted { .. } | Slot::Evicted { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slots_survive_packing(
            len in 0u32..=base::CHUNK_SIZE_MAX as u32, crc64: u64, epoch: u32, volume: u32, unit in 0u64..(1 << 27),
            journal: u32, apart in 0..=record::APART_MAX, health in 0u8..3, copies: bool, holder in 0u8..3,
        ) {
            let health = [Health::Good, Health::Damaged, Health::Unknown][health as usize];
            let offset = unit * 8;
            let epoch = PgEpoch(epoch);
            let live = Slot::Live(Live { len, crc64, epoch, volume, offset, journal, apart, health, copies });
            prop_assert_eq!(unpack(&pack(live)), live);
            let holder = [Holder::None, Holder::One(volume), Holder::Many][holder as usize];
            let deleted = Slot::Deleted { journal, holder };
            prop_assert_eq!(unpack(&pack(deleted)), deleted);
        }
    }

    #[test]
    fn counts_follow_every_change() {
        let mut index = Index::default();
        let id = ChunkId::from_u128(5);
        let (epoch, health) = (PgEpoch(0), Health::Good);
        let live = Live { len: 1, crc64: 2, epoch, volume: 1, offset: 8, journal: 1, apart: 0, health, copies: false };
        index.set(id, Slot::Live(live));
        index.set(id, Slot::Live(live));
        assert_eq!((index.live_count(), index.tombstone_count()), (1, 0));
        index.set(id, Slot::Deleted { journal: 1, holder: Holder::One(1) });
        assert_eq!((index.live_count(), index.tombstone_count()), (0, 1));
        index.remove(id);
        index.remove(id);
        assert_eq!((index.live_count(), index.tombstone_count()), (0, 0));
    }
}
