//! henge from outside: the real binary, real processes, real sockets and signals.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod bad_input;
mod bench;
mod dev;
mod fsck;
mod harness;
mod join;
mod metadata;
mod root;
mod s3;
mod s3_access;
mod s3_client;
mod seeing;
mod server;
