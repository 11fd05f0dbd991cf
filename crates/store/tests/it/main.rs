//! The engine as a whole, on simulated disks that lose, tear, rot and fill up.
#![allow(clippy::unwrap_used)]

mod basic;
mod bench;
mod crash;
mod damage;
mod evict;
mod model;
mod space;
