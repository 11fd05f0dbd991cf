//! Pure distributed decisions: message or tick in; state, messages and writes out.
//!
//! Knows: Raft (behind a narrow surface), placement and its changes. Never knows: I/O, async, what a command means.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod placement;
pub mod raft;
pub mod rebalance;
