//! Nodes in a test tube: the product's own code on simulated time, disks and network, under one seed; one node, or a
//! cluster of three or five; clients that use it through any gateway, a nemesis against it, and checkers that hold what
//! clients saw against what was promised.
//!
//! Knows: everything. Nothing depends on it.
//!
//! ```text
//! plan (drawn from the seed) ─► cluster: node::Node on base::sim ◄─ nemesis: power cuts in the middle of disk
//!        │                          ▲            │                  operations and of starts, kills, shutdowns,
//!        │                          │            │                  failing flushes, rot, lost writes, full disks
//!        │                          │            │               ◄─ trouble: outages, pauses, cuts of all shapes,
//!        ▼                          │            │                  hangs, replaced disks and nodes, rot, all power
//! workload, upload, churn ──────────┘            ▼
//!        └─► recorder: histories ─► linearizability (each key)   checks, convergence: listings, status, service, maps,
//!                                                                voters, disks (when quiet)
//! ```
//!
//! `cargo xtask sim --seed N` tells the story of one seed; `--minutes M` runs fresh ones; `--help` says what else. Each
//! failure that is mended adds its seed, or a test of its own, where the mended code is. `docs/reliability.md` has what is
//! promised, how it is tested, and what was found.
//!
//! What is held against a node: a key's history is linearizable, where what a crash left undecided has happened before
//! the next start is over, or never; every byte read is the one that was written; listings are reads of every key in
//! their range; a deleted bucket holds nothing that was acknowledged; of a completed and an aborted upload only one is
//! acknowledged; a node that nothing stands in the way of answers; when all is quiet, metadata and chunks name each other
//! exactly; and `status` is neither better nor worse than the truth.
//!
//! And against a cluster: histories hold over all gateways; nothing of a fenced session is executed; while a minority is
//! in trouble, the others write within seconds; when the trouble is over, every node finds everything safe within
//! minutes, all have one map and the same voters, and each chunk is on the members of its placement group and nowhere
//! else. What is destroyed is rationed: everything has all its copies before, and one node's copies only are damaged.
//!
//! Not covered yet: see `docs/reliability.md`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod absence;
mod checks;
mod churn;
mod cluster;
pub mod content;
mod convergence;
mod disaster;
mod domains;
mod fences;
mod fullness;
mod handover;
pub mod history;
pub mod linearizability;
mod nemesis;
mod order;
mod plan;
mod ration;
mod recorder;
mod run;
mod safety;
mod stories;
mod storm;
mod surge;
mod timeline;
mod trouble;
mod upgrade;
mod upload;
mod watch;
mod worker;
mod workload;

pub use plan::{Limits, Plan, Profile, hunting_ground};
pub use recorder::Shown;
pub use run::{Report, Wanted, events, run};
pub use timeline::Point;
