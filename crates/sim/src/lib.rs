//! A node in a test tube: the product's own code on simulated time, disks and network, under one seed; clients that
//! use it, a nemesis that crashes it, and checkers that hold what clients saw against what was promised.
//!
//! Knows: everything. Nothing depends on it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod checks;
mod churn;
mod cluster;
pub mod content;
mod fullness;
pub mod history;
pub mod linearizability;
mod nemesis;
mod plan;
mod recorder;
mod run;
mod timeline;
mod upload;
mod worker;
mod workload;

pub use plan::{Plan, Planted, Profile};
pub use run::{Report, events, run};
