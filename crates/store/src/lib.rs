//! One disk directory: append-only volumes with one committer for chunks and Raft logs, recovery, compaction, scrub,
//! and the ordered key-value store that state machines live in.
//!
//! Knows: how bytes stay on one disk and how damage is told from a crash. Never knows: the network, replicas, what a
//! chunk means.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bulk;
mod cache;
mod committer;
mod compaction;
mod engine;
mod errors;
pub mod format;
#[cfg(fuzzing)]
pub mod fuzzing;
mod identity;
mod index;
mod inner;
mod inspect;
pub mod kv;
mod queue;
mod raft_log;
mod read;
mod recovery;
mod report;
mod round;
mod scan;
mod scrub;
mod space;
mod state;
mod summary;
mod summary_file;
mod volume_file;

pub use engine::{Engine, LOG_START, NewChunk, PutOutcome, RAFT_WRITE_ENTRIES_MAX, RAFT_WRITE_LEN_MAX, SMALL_LEN_MAX};
pub use errors::StoreError;
pub use identity::DiskIdentity;
pub use inner::{EngineOptions, TombstoneRule};
pub use inspect::inspect;
pub use raft_log::{RaftEntry, RaftLog, RaftWrite};
pub use report::*;
