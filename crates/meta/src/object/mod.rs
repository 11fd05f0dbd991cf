//! The object shard: buckets' rows, object versions, uploads, garbage, sessions.
//!
//! Read [`apply`] first: it is the whole write path. `versions` says what PUT and DELETE do to the versions of a key,
//! `change` what may change in a version that stands, `transition` how its bytes move to another pool, `uploads` how
//! parts become an object, `garbage` where dropped chunks go. `query` and `list` only read.

mod apply;
mod buckets;
mod change;
pub mod command;
pub mod expire;
pub mod fence;
mod garbage;
pub mod lifecycle;
mod list;
pub mod lock;
mod query;
mod scan;
pub mod transition;
mod uploads;
pub mod usage;
mod versions;

pub use apply::apply;
pub use garbage::{NamedChunk, garbage_sequence_max, references};
pub use query::query;
pub use versions::{NULL_VERSION, order_of_version};

/// The largest body that may ride in a version or part row, in bytes. Writers choose far less; this bounds a row.
pub const INLINE_BYTES_MAX: usize = 256 << 10;
/// The most chunks that one row may name: 5 GiB in chunks of 80 KiB.
pub const CHUNKS_MAX: usize = 65_536;
/// Bytes of a bucket's encoded row: every write reads it.
pub const BUCKET_ROW_LEN_MAX: usize = 16 << 10;
/// Bytes of encoded attributes.
pub const ATTRIBUTES_LEN_MAX: usize = 64 << 10;
/// Bytes of an ETag (without quotes).
pub const ETAG_LEN_MAX: usize = 256;
/// Part numbers are 1..=this, as in S3.
pub const PART_NUMBER_MAX: u32 = 10_000;
/// Every part but the last of a completed upload has at least this size, as in S3.
pub const PART_SIZE_MIN: u64 = 5 << 20;
/// The largest object, as in S3: 5 TiB.
pub const OBJECT_SIZE_MAX: u64 = 5 << 40;
/// ETags in a precondition.
pub const CONDITION_ETAGS_MAX: usize = 256;
/// Results of one page of a listing, as in S3.
pub const PAGE_LIMIT_MAX: u32 = 1000;
/// Garbage rows retired by one command.
pub const RETIRE_MAX: usize = 1000;
