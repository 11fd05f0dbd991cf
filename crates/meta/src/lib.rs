//! Deterministic state machines: the cluster map (group 0) and the object shards.
//!
//! Knows: which keys exist in the ordered key-value, what each command changes, what each query answers. Apply reads
//! replicated state only: no clock, no map, no configuration of the node. Never knows: Raft, HTTP, disks.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod chunks;
pub mod group;
pub mod keys;
pub mod map;
pub mod object;
pub mod slots;
pub mod view;
