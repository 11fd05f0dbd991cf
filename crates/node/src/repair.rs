//! Repair: what this node's disks lack of the placement groups that they are members of is pulled from other members.

use client::wire::PgDone;
use std::sync::{Mutex, PoisonError};

/// How far this node has come, for its reports.
#[derive(Default)]
pub struct Progress {
    done: Mutex<Vec<PgDone>>,
}

impl Progress {
    /// Closed groups of which this node has united what there is.
    pub fn done(&self) -> Vec<PgDone> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
