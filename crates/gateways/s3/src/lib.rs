//! The S3 protocol over the client's API: an HTTP service that authenticates, parses, and answers in S3's words.
//!
//! Knows: SigV4, S3's requests, answers and errors. Never knows: nodes, disks, Raft, listeners, TLS.
//!
//! A request passes through [`service`] (limits, health, errors), [`auth`] (who asks), [`operation`] (what is asked)
//! and ends in [`ops`]; its body is a [`payload`] that verifies itself.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod acl;
#[cfg(test)]
mod admission;
mod attributes;
mod auth;
mod authorize;
mod body;
mod checksum;
mod conditions;
mod context;
mod cors;
mod date;
mod encoding;
mod error;
mod fair;
mod form;
#[cfg(fuzzing)]
pub mod fuzzing;
mod lifecycle;
mod lock;
mod meter;
mod names;
#[cfg(test)]
mod negative;
mod operation;
mod ops;
mod pace;
mod payload;
mod public_access;
mod query;
mod range;
mod request;
mod service;
#[cfg(test)]
mod sign;
mod tags;
mod target;
mod terms;
mod xml;

pub use body::{BodyError, ResponseBody};
pub use meter::S3Meter;
pub use pace::Pace;
pub use request::Peer;
pub use service::{S3Options, S3Service, service};
pub use target::is_bucket_name;
