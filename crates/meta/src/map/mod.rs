//! The cluster map: the state machine of group 0.
//!
//! `apply` is the write path: it reads the rows that a command names, never the whole map. `rows` turns rows into a
//! [`command::ClusterMap`], whole once ([`load`]) and then change by change ([`absorb`]).

mod apply;
mod buckets;
pub mod command;
mod nodes;
mod placement;
mod revive;
mod rows;

pub use apply::{AUTHORITY_LEVEL_MIN, CLOSED_LEVEL_MIN, ROOT_LEVEL_MIN, ROOT_NAME, apply, level_of};
pub use revive::revive;
pub use rows::{absorb, load};

/// Bounds of the map. A command above one is refused with `TooMany`.
pub const NODES_MAX: u64 = 10_000;
pub const DISKS_MAX: u64 = 100_000;
pub const PGS_MAX: u64 = 1 << 18;
pub const SHARDS_MAX: u64 = 100_000;
pub const BUCKETS_MAX: u64 = 100_000;
pub const ACCESS_KEYS_MAX: u64 = 10_000;
pub const TOKENS_MAX: u64 = 1000;
/// Copies of a pool, and members of a placement group.
pub const COPIES_MAX: usize = 16;
/// Disks that a placement group may be spread over while it moves, and moves again before it has arrived.
pub const MEMBERS_BEFORE_MAX: usize = 4 * COPIES_MAX;
/// Bytes of the name of a storage class: capital letters, digits and underscores.
pub const CLASS_LEN_MAX: usize = 32;
/// Bits of a placement group's prefix.
pub const PG_BITS_MAX: u32 = 16;
/// Bytes of names, addresses and localities.
pub const TEXT_LEN_MAX: usize = 1024;
/// Bytes of the policy of a key.
pub const POLICY_LEN_MAX: usize = 20 << 10;
/// Bytes of one configuration of a bucket.
pub const CONFIGURATION_LEN_MAX: usize = 128 << 10;
/// Bytes of all configurations together: the map travels as a whole, and a message between nodes has at most 16 MiB.
pub const CONFIGURATIONS_LEN_MAX: u64 = 8 << 20;
/// Bytes of a certificate or key in PEM.
pub const PEM_LEN_MAX: usize = 16 << 10;
