//! Raft groups of several members, end to end, in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod cluster;
mod detection;
mod members;
mod trouble;
