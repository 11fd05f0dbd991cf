//! Whom the reply to a synchronous write waits for: every voter that counts has flushed its entry, so that metadata
//! never has fewer durable copies than data.
//!
//! A voter counts when the map does not mark its node as down and it has caught up once since the node came back. So
//! a silent voter holds replies up until it is voted down, and one that returns does not while it catches up.

use base::ids::{LogIndex, PeerId};
use std::collections::BTreeMap;
use tokio::sync::oneshot;

use super::GroupError;
use crate::machine::Reply;

/// A voter as the leader sees it.
pub struct Voter {
    pub peer: PeerId,
    /// Its node is up, as far as the map says.
    pub is_up: bool,
    /// Everything up to here is durable there.
    pub matched: LogIndex,
}

pub type Answer = oneshot::Sender<Result<Reply, GroupError>>;

/// Executed commands whose replies wait.
#[derive(Default)]
pub struct Waiting {
    replies: BTreeMap<LogIndex, (Reply, Answer)>,
    /// Voters that were down, with what they must hold to count again: fixed when they are seen up.
    behind: BTreeMap<PeerId, Option<LogIndex>>,
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    pub fn add(&mut self, index: LogIndex, reply: Reply, answer: Answer) {
        self.replies.insert(index, (reply, answer));
    }

    /// Follows who is down and who has caught up: also while nothing waits. `committed` is what a majority holds.
    pub fn observe(&mut self, voters: &[Voter], committed: LogIndex) {
        self.behind.retain(|peer, _| voters.iter().any(|voter| voter.peer == *peer));
        for voter in voters {
            if !voter.is_up {
                self.behind.insert(voter.peer, None);
            } else if let Some(target) = self.behind.get_mut(&voter.peer) {
                let target = *target.get_or_insert(committed);
                if voter.matched >= target {
                    self.behind.remove(&voter.peer);
                }
            }
        }
    }

    /// Sends every reply whose index all counted voters hold.
    pub fn release(&mut self, voters: &[Voter], committed: LogIndex) {
        self.observe(voters, committed);
        let reached = self.reached(voters, committed);
        let later = self.replies.split_off(&LogIndex(reached.0 + 1));
        for (reply, answer) in std::mem::replace(&mut self.replies, later).into_values() {
            let _ = answer.send(Ok(reply));
        }
    }

    fn reached(&self, voters: &[Voter], committed: LogIndex) -> LogIndex {
        let counted = voters.iter().filter(|voter| !self.behind.contains_key(&voter.peer));
        counted.map(|voter| voter.matched).fold(committed, LogIndex::min)
    }

    /// Leadership was lost, or the replica stops: what was executed may have fewer copies than promised.
    pub fn abandon(&mut self, why: &str) {
        for (_, answer) in std::mem::take(&mut self.replies).into_values() {
            let _ = answer.send(Err(GroupError::Unknown(why.into())));
        }
    }

    /// A new time of leadership begins, or none.
    pub fn forget(&mut self) {
        self.behind.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(peer: u64, is_up: bool, matched: u64) -> Voter {
        Voter { peer: PeerId(peer), is_up, matched: LogIndex(matched) }
    }

    fn reached(waiting: &mut Waiting, voters: [Voter; 3], committed: u64) -> u64 {
        waiting.observe(&voters, LogIndex(committed));
        waiting.reached(&voters, LogIndex(committed)).0
    }

    #[test]
    fn a_silent_voter_counts_until_it_is_voted_down_and_again_once_it_caught_up() {
        let mut waiting = Waiting::default();
        let three = |up: bool, matched| [voter(1, true, 9), voter(2, true, 9), voter(3, up, matched)];
        assert_eq!(reached(&mut waiting, three(true, 5), 9), 5, "a silent voter holds replies up");
        assert_eq!(reached(&mut waiting, three(false, 5), 9), 9, "until it is voted down");
        assert_eq!(reached(&mut waiting, three(true, 7), 9), 9, "back, and catching up");
        assert_eq!(reached(&mut waiting, three(true, 9), 9), 9);
        assert_eq!(reached(&mut waiting, [voter(1, true, 12), voter(2, true, 12), voter(3, true, 9)], 12), 9);
    }

    /// What it must reach is fixed when it comes back: under load the newest entry is always ahead of it.
    #[test]
    fn one_that_came_back_counts_again_under_load() {
        let mut waiting = Waiting::default();
        assert_eq!(reached(&mut waiting, [voter(1, true, 9), voter(2, true, 9), voter(3, false, 5)], 9), 9);
        assert_eq!(reached(&mut waiting, [voter(1, true, 9), voter(2, true, 9), voter(3, true, 6)], 9), 9);
        assert_eq!(reached(&mut waiting, [voter(1, true, 14), voter(2, true, 14), voter(3, true, 11)], 14), 11);
    }

    #[test]
    fn what_is_not_committed_is_never_released() {
        assert_eq!(reached(&mut Waiting::default(), [voter(1, true, 20), voter(2, true, 9), voter(3, true, 9)], 3), 3);
    }
}
