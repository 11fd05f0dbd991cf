//! The ground everything stands on: ids, generations, epochs, checksums, byte-map codecs, and the one door
//! (`Env`, `Disk`, `Net`) to time, randomness, spawning, disk and network.
//!
//! Knows: what a henge id is and how bytes are verified. Never knows: storage formats, clusters, protocols.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod buffer;
pub mod buffer_pool;
pub mod calendar;
pub mod checksum;
pub mod codec;
pub mod env;
pub mod ids;
pub mod plant;
pub mod sim;

pub use env::Env;

/// Bytes in a kibibyte.
pub const KIB: u64 = 1 << 10;
/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;
/// Bytes in a gibibyte.
pub const GIB: u64 = 1 << 30;

/// The largest chunk payload in bytes. An object larger than this is cut into several chunks.
pub const CHUNK_SIZE_MAX: usize = 4 << 20;
