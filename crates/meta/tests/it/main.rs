//! The state machines from outside: apply and query as a driver calls them.
#![allow(clippy::unwrap_used)]

mod cost;
mod fences;
mod lifecycle;
mod locks;
mod map;
mod membership;
mod model;
mod moves;
mod random_bytes;
mod semantics;
mod sessions;
mod shard;
mod transition;
mod uploads;
mod usage;
