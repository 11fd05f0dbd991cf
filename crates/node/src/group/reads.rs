//! Linearizable reads: one ReadIndex for all that gather, queued until the leader has committed in its term, answered
//! when the granted index is applied.
//!
//! One question to the followers is under way at a time; what comes meanwhile shares the next. A lost question costs
//! one interval of heartbeats: each of them asks it again.

use base::ids::{LogIndex, NodeId};
use protocol::raft::{NotTaken, RaftPeer, ReadGrant};
use std::collections::BTreeMap;
use tokio::sync::oneshot;

use super::GroupError;

type Barrier = oneshot::Sender<Result<(), GroupError>>;

#[derive(Default)]
pub struct Reads {
    /// Not yet given to Raft.
    new: Vec<Barrier>,
    /// Given to Raft, by context.
    asked: BTreeMap<u64, Vec<Barrier>>,
    /// By the index that must be applied first.
    granted: BTreeMap<LogIndex, Vec<Barrier>>,
    last_context: u64,
}

impl Reads {
    pub fn add(&mut self, barrier: Barrier) {
        self.new.push(barrier);
    }

    pub fn ask(&mut self, raft: &mut RaftPeer, leader: Option<NodeId>) {
        if self.new.is_empty() || !self.asked.is_empty() {
            return;
        }
        match raft.read_index(self.last_context + 1) {
            Ok(()) => {
                self.last_context += 1;
                self.asked.insert(self.last_context, std::mem::take(&mut self.new));
            }
            Err(NotTaken::NotLeader) => {
                for barrier in self.new.drain(..) {
                    let _ = barrier.send(Err(GroupError::NotLeader(leader)));
                }
            }
            // A new leader has not committed in its term yet: they wait for it.
            Err(NotTaken::Busy) => {}
        }
    }

    pub fn grant(&mut self, grants: &[ReadGrant], applied: LogIndex) {
        for grant in grants {
            // A grant holds for all earlier ones too: their confirmation may have been lost.
            let later = self.asked.split_off(&(grant.context + 1));
            for barrier in std::mem::replace(&mut self.asked, later).into_values().flatten() {
                if grant.index <= applied {
                    let _ = barrier.send(Ok(()));
                } else {
                    self.granted.entry(grant.index).or_default().push(barrier);
                }
            }
        }
    }

    pub fn applied(&mut self, applied: LogIndex) {
        let later = self.granted.split_off(&LogIndex(applied.0 + 1));
        for barrier in std::mem::replace(&mut self.granted, later).into_values().flatten() {
            let _ = barrier.send(Ok(()));
        }
    }

    pub fn refuse_all(&mut self, error: &GroupError) {
        let asked = std::mem::take(&mut self.asked).into_values().flatten();
        let granted = std::mem::take(&mut self.granted).into_values().flatten();
        for barrier in self.new.drain(..).chain(asked).chain(granted) {
            let _ = barrier.send(Err(error.clone()));
        }
    }
}
