//! Ids, generations and epochs. Each is a newtype, so that they cannot be swapped by mistake.
//!
//! Ids are allotted once and never reused: node ids, bucket ids, peer ids and group ids by group 0; chunk ids by
//! their writer, from its session and a counter.

use std::fmt;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl $name {
            /// A fresh random id (UUID version 4 bits, RFC 9562).
            pub fn random(random: &dyn crate::env::Random) -> $name {
                let raw = (u128::from(random.next_u64()) << 64) | u128::from(random.next_u64());
                $name((raw & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62))
            }

            /// Parses the hyphenated form that `Display` prints. `None` when it is anything else.
            pub fn parse(text: &str) -> Option<$name> {
                let groups: Vec<&str> = text.split('-').collect();
                if groups.iter().map(|g| g.len()).ne([8, 4, 4, 4, 12]) {
                    return None;
                }
                if !text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()) {
                    return None;
                }
                u128::from_str_radix(&groups.concat(), 16).ok().map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let hex = format!("{:032x}", self.0);
                write!(f, "{}-{}-{}-{}-{}", &hex[0..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

uuid_id!(
    /// A whole cluster. Made at the first start of its first node; two clusters never merge.
    ClusterId
);
uuid_id!(
    /// One disk directory. Made when it is formatted; an emptied disk gets a new one.
    DiskId
);

number_id!(
    /// A node (one `henge server` process and its data directory). Allotted by group 0, never reused.
    NodeId(u32)
);
number_id!(
    /// How often a node has started (and one more a day): a counter in the node's own directory, raised and flushed
    /// before it is used. Group 0 keeps a floor per node; what is below the floor is refused (generation clock).
    Generation(u32)
);
number_id!(
    /// A storage pool: a redundancy policy and the placement groups that follow it.
    PoolId(u8)
);
number_id!(
    /// Counts the moves of one placement group. Stores stamped with an older one are refused with `StalePlacement`.
    PgEpoch(u32)
);
number_id!(
    /// The version of the cluster map: raised by every change in group 0.
    MapVersion(u64)
);
number_id!(
    /// A Raft group. Group 0 is the cluster map; each shard has one of its own.
    GroupId(u64)
);
number_id!(
    /// A member of a Raft group. Allotted by a configuration change, never reused within its group.
    PeerId(u64)
);
number_id!(
    /// Counts the changes of the key range of one shard.
    RangeEpoch(u64)
);
number_id!(
    /// A bucket. Allotted by group 0, never reused.
    BucketId(u64)
);
number_id!(
    /// The single owner domain of a chunk, in its record header: a bucket (later also a volume family).
    OwnerId(u64)
);
number_id!(
    /// A Raft term.
    Term(u64)
);
number_id!(
    /// A position in a Raft log.
    LogIndex(u64)
);
number_id!(
    /// The behaviour that a state machine follows. Stored in its own state, never derived from the binary.
    FeatureLevel(u32)
);

/// The group of the cluster map.
pub const GROUP_ZERO: GroupId = GroupId(0);

impl From<BucketId> for OwnerId {
    fn from(bucket: BucketId) -> OwnerId {
        OwnerId(bucket.0)
    }
}

/// One life of one node: the writer half of every chunk id, and what fences a zombie.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Session {
    pub node: NodeId,
    pub generation: Generation,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.generation)
    }
}

/// Number of bits of a slot.
pub const SLOT_BITS: u32 = 24;

/// Where in its pool a chunk lives: 24 bits, of which a placement group is a prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Slot(u32);

impl Slot {
    /// Keeps the low 24 bits of `raw`.
    pub fn new(raw: u32) -> Slot {
        Slot(raw & ((1 << SLOT_BITS) - 1))
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

/// A placement group: all slots of `pool` whose first `bits` bits are `prefix`. Doubling the number of groups splits
/// each in two without renaming a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PgId {
    pub pool: PoolId,
    pub bits: u8,
    pub prefix: u32,
}

impl PgId {
    /// The group of `slot` in a pool whose groups are `bits` bits long (at most 24).
    pub fn of_slot(pool: PoolId, bits: u8, slot: Slot) -> PgId {
        assert!(u32::from(bits) <= SLOT_BITS, "a placement group is a prefix of the 24 slot bits");
        PgId { pool, bits, prefix: slot.0 >> (SLOT_BITS - u32::from(bits)) }
    }

    /// First and last slot (inclusive) of this group.
    pub fn slots(self) -> std::ops::RangeInclusive<u32> {
        let shift = SLOT_BITS - u32::from(self.bits);
        let first = self.prefix << shift;
        first..=(first | ((1u32 << shift) - 1))
    }
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}/{}", self.pool, self.prefix, self.bits)
    }
}

/// The name of an immutable run of bytes; never reused. 16 bytes: pool (1), slot (3), node (4), generation (4),
/// counter (4), all big-endian, so that byte order is placement order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId {
    pub pool: PoolId,
    pub slot: Slot,
    pub session: Session,
    /// Counts the chunks of one session. When it is used up, the writer starts a new generation.
    pub counter: u32,
}

impl ChunkId {
    /// Length of the encoded form in bytes.
    pub const LEN: usize = 16;

    pub fn to_u128(self) -> u128 {
        (u128::from(self.pool.0) << 120)
            | (u128::from(self.slot.0) << 96)
            | (u128::from(self.session.node.0) << 64)
            | (u128::from(self.session.generation.0) << 32)
            | u128::from(self.counter)
    }

    pub fn from_u128(raw: u128) -> ChunkId {
        ChunkId {
            pool: PoolId((raw >> 120) as u8),
            slot: Slot::new((raw >> 96) as u32),
            session: Session { node: NodeId((raw >> 64) as u32), generation: Generation((raw >> 32) as u32) },
            counter: raw as u32,
        }
    }

    pub fn to_bytes(self) -> [u8; ChunkId::LEN] {
        self.to_u128().to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; ChunkId::LEN]) -> ChunkId {
        ChunkId::from_u128(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:06x}-{}-{}", self.pool, self.slot.0, self.session, self.counter)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunk_id_round_trips(raw: u128) {
            let id = ChunkId::from_u128(raw);
            prop_assert_eq!(id.to_u128(), raw);
            prop_assert_eq!(ChunkId::from_bytes(id.to_bytes()), id);
        }

        #[test]
        fn every_slot_is_in_exactly_the_group_of_its_prefix(raw: u32, bits in 0u8..=24) {
            let slot = Slot::new(raw);
            let group = PgId::of_slot(PoolId(1), bits, slot);
            prop_assert!(group.slots().contains(&slot.get()));
        }

        #[test]
        fn uuids_round_trip(raw: u128) {
            prop_assert_eq!(ClusterId::parse(&ClusterId(raw).to_string()), Some(ClusterId(raw)));
        }
    }

    #[test]
    fn bad_uuids_are_refused() {
        for text in ["", "x", "00000000-0000-0000-0000-00000000000", "+0000000-0000-0000-0000-000000000000"] {
            assert_eq!(DiskId::parse(text), None, "{text}");
        }
    }
}
