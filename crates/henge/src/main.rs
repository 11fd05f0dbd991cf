//! The binary: command line, configuration, the real `Env`, and the wiring of all rooms into one process.
//!
//! Knows: every room, and the operating system. Never knows: how any of them does its work.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod env;
mod scratch;

fn main() {}
