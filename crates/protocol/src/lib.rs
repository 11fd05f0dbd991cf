//! Pure distributed decisions: message or tick in; state, messages and writes out.
//!
//! Knows: Raft (behind a narrow surface), the voters of groups, placement and its changes,
//! who is silent and who is slow. Never knows: I/O, async, what a command means.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod detector;
pub mod membership;
pub mod placement;
pub mod raft;
pub mod rebalance;
pub mod slowness;
