//! Repair: what this node's disks lack of the placement groups that they are members of is pulled from other members.

use client::wire::PgDone;
use std::sync::{Mutex, PoisonError};

/// How far this node has come, for its reports.
#[derive(Default)]
pub struct Progress {
    done: Mutex<Vec<PgDone>>,
}

/// How far the copies on this node are what they should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Placement groups of which a disk of this node is a member.
    pub groups: u64,
    /// Those found equal with all other members at their present epoch.
    pub healthy: u64,
    /// What other members have and this node lacks.
    pub missing_chunks: u64,
    pub missing_bytes: u64,
}

impl Progress {
    pub fn health(&self) -> Health {
        Health::default()
    }

    /// Closed groups of which this node has united what there is.
    pub fn done(&self) -> Vec<PgDone> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
