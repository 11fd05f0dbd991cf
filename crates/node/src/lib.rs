//! One server: its disks, its Raft groups, what it answers to clients, and its background workers.
//!
//! Knows: how decisions of `protocol` and states of `meta` are carried out on the disks of `store`. Never knows:
//! gateways, command lines, the real clock or file system.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod announce;
mod arrivals;
pub mod backup;
mod control;
mod controller;
mod disks;
mod events;
mod fence_agent;
#[cfg(fuzzing)]
pub mod fuzzing;
mod group;
mod heartbeats;
mod home;
mod lifecycle;
mod machine;
mod metrics;
mod observations;
pub mod offline;
mod repair;
mod replicas;
mod service;
mod start;
mod status;
mod sweep;
mod traffic;
mod transport;
mod workers;

pub use events::{Event, EventKind};
pub use fence_agent::{FenceAgent, Target};
pub use home::join as join_identity;
pub use lifecycle::LifecyclePace;
pub use start::{Config, DiskSpec, Healing, Node, StartError, Tuning};
pub use status::{ChunkCounts, DiskStatus, GroupStatus, NodeStatus, RepairStatus, Status, Verdict};
