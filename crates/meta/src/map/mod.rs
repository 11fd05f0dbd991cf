//! The cluster map: the state machine of group 0.

pub mod command;
