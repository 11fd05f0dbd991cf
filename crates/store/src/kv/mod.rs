//! The ordered key-value store of a disk, behind a narrow trait. One instance per disk holds the state of all Raft
//! groups there.
//!
//! The contract: **a crash keeps a prefix of transactions**. Nothing is durable before [`Kv::flush`] returns; what
//! was committed before a completed flush is durable; transactions after it may vanish, but only from the end. Raft's
//! log is the durability of what is not flushed yet.
//!
//! [`LsmKv`] keeps rows on a disk, [`MemKv`] in memory, for tests; both pass [`conformance`].

mod block;
mod compact;
pub mod conformance;
mod cursor;
mod erase;
mod filter;
mod flush;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod lsm;
mod manifest;
mod memory;
mod memtable;
mod open;
mod run;
mod run_writer;
mod tree;
mod verify;

#[cfg(test)]
mod tests;

pub use lsm::{KvOptions, KvReport, KvStats, LsmKv};
pub use memory::MemKv;
pub use verify::{Damage, Verification};

use base::env::BoxFuture;
use bytes::Bytes;
use std::sync::Arc;

/// Longest key in bytes: a 1,024-byte object key with every byte escaped, and its row suffix.
pub const KEY_LEN_MAX: usize = 4096;
/// Longest value in bytes: the row of an object of 5 TiB names its chunk manifests, not its chunks.
pub const VALUE_LEN_MAX: usize = 8 << 20;

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put { key: Bytes, value: Bytes },
    Delete { key: Bytes },
}

impl Change {
    /// Whoever builds transactions keeps their bounds; to break them is a bug that must not reach a disk.
    fn assert_bounds(&self) {
        let (key, value_len) = match self {
            Change::Put { key, value } => (key, value.len()),
            Change::Delete { key } => (key, 0),
        };
        assert!(key.len() <= KEY_LEN_MAX, "a key has at most KEY_LEN_MAX bytes");
        assert!(value_len <= VALUE_LEN_MAX, "a value has at most VALUE_LEN_MAX bytes");
    }
}

/// A row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub key: Bytes,
    pub value: Bytes,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum KvError {
    /// A value or block failed its checksum. The rows between these keys cannot be served.
    #[error("key-value data is damaged ({detail}); rows from {} up to {} cannot be read", first.escape_ascii(), last.escape_ascii())]
    Damaged { first: Bytes, last: Bytes, detail: String },
    /// The disk failed. All further writing has stopped.
    #[error("key-value store: {0}")]
    Io(String),
}

/// Reads. Each call sees all transactions committed before it and none partly.
pub trait KvRead: Send + Sync {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;
    /// Rows with `from <= key < to` in byte order, at most `limit` (at least 1).
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, KvError>;
}

/// The whole store.
pub trait Kv: KvRead {
    /// Applies all changes or, after a crash, none; in order, visible at once, not durable before `flush`.
    fn commit(&self, changes: Vec<Change>) -> Result<(), KvError>;
    /// Makes every transaction committed before this call durable. An error is final, and writing has stopped, unless
    /// the disk was merely full: then nothing is lost, commits still succeed, and a later flush may.
    fn flush(&self) -> BoxFuture<Result<(), KvError>>;
    /// Bytes in memory that a flush would write: the caller's hint to flush.
    fn unflushed_bytes(&self) -> u64;
    /// A consistent view that later commits do not change, for long scans and Raft snapshots.
    fn snapshot(&self) -> Arc<dyn KvRead>;
}
