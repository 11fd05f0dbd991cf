//! One disk directory: append-only volumes with one committer for chunks and Raft logs, recovery, compaction, scrub,
//! and the ordered key-value store that state machines live in.
//!
//! Knows: how bytes stay on one disk and how damage is told from a crash. Never knows: the network, replicas, what a
//! chunk means.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod kv;
