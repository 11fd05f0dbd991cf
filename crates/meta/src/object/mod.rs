//! The object shard: buckets' rows, object versions, uploads, garbage, sessions.

pub mod command;
