//! The S3 protocol over the client's API: an HTTP service that authenticates, parses, and answers in S3's words.
//!
//! Knows: SigV4, S3's requests, answers and errors. Never knows: nodes, disks, Raft, listeners, TLS.
//!
//! A request passes through [`service`] (limits, health, errors), [`auth`] (who asks), [`operation`] (what is asked)
//! and ends in [`ops`]; its body is a [`payload`] that verifies itself.
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(test)]
mod admission;
mod attributes;
mod auth;
mod body;
mod checksum;
mod conditions;
mod date;
mod encoding;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod names;
mod operation;
mod ops;
mod payload;
mod query;
mod range;
mod request;
mod service;
#[cfg(test)]
mod sign;
mod target;
mod xml;

pub use body::{BodyError, ResponseBody};
pub use service::{S3Options, S3Service, service};
