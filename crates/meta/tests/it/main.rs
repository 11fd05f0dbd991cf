//! The state machines from outside: apply and query as a driver calls them.
#![allow(clippy::unwrap_used)]

mod semantics;
mod shard;
