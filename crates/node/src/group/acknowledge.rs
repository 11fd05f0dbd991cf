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
    /// Those that wait for every voter, down or not.
    strict: BTreeMap<LogIndex, (Reply, Answer)>,
    /// Voters that were down, with what they must hold to count again: fixed when they are seen up.
    behind: BTreeMap<PeerId, Option<LogIndex>>,
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.strict.is_empty()
    }

    pub fn add(&mut self, index: LogIndex, reply: Reply, answer: Answer) {
        self.replies.insert(index, (reply, answer));
    }

    pub fn add_strict(&mut self, index: LogIndex, reply: Reply, answer: Answer) {
        self.strict.insert(index, (reply, answer));
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

    /// Sends every reply whose index all counted voters hold. `whole`: voters without which nothing is strict.
    pub fn release(&mut self, voters: &[Voter], committed: LogIndex, whole: usize) {
        self.release_strict(voters, committed, whole);
        self.observe(voters, committed);
        let reached = self.reached(voters, committed);
        let later = self.replies.split_off(&LogIndex(reached.0 + 1));
        for (reply, answer) in std::mem::replace(&mut self.replies, later).into_values() {
            let _ = answer.send(Ok(reply));
        }
    }

    fn release_strict(&mut self, voters: &[Voter], committed: LogIndex, whole: usize) {
        let reached = voters.iter().map(|voter| voter.matched).fold(committed, LogIndex::min);
        let lacking = lacking(voters, whole);
        for (index, (reply, answer)) in std::mem::take(&mut self.strict) {
            match &lacking {
                _ if index <= reached && voters.len() >= whole => drop(answer.send(Ok(reply))),
                Some(why) => {
                    drop(answer.send(Err(GroupError::Unknown(format!("a majority has the write, but {why}")))))
                }
                None => drop(self.strict.insert(index, (reply, answer))),
            }
        }
    }

    fn reached(&self, voters: &[Voter], committed: LogIndex) -> LogIndex {
        let counted = voters.iter().filter(|voter| !self.behind.contains_key(&voter.peer));
        counted.map(|voter| voter.matched).fold(committed, LogIndex::min)
    }

    /// Leadership was lost, or the replica stops: what was executed may have fewer copies than promised.
    pub fn abandon(&mut self, why: &str) {
        let replies = std::mem::take(&mut self.replies).into_values();
        for (_, answer) in replies.chain(std::mem::take(&mut self.strict).into_values()) {
            let _ = answer.send(Err(GroupError::Unknown(why.into())));
        }
    }

    /// A new time of leadership begins, or none.
    pub fn forget(&mut self) {
        self.behind.clear();
    }
}

/// Why not every voter of a whole group can acknowledge a write now.
pub fn lacking(voters: &[Voter], whole: usize) -> Option<String> {
    if voters.len() < whole {
        return Some(format!("all-strict needs {whole} copies of the metadata, and there are {}", voters.len()));
    }
    let down = voters.iter().filter(|voter| !voter.is_up).count();
    (down > 0).then(|| format!("all-strict needs all copies, and {down} of {} voters are out of service", voters.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::object::command::ShardReply;

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
    fn a_strict_reply_waits_for_all_and_is_unknown_when_one_goes() {
        let reply = || Reply::Shard(ShardReply::default());
        let voters = |matched: [u64; 3], up: bool| {
            [voter(1, true, matched[0]), voter(2, true, matched[1]), voter(3, up, matched[2])]
        };
        let mut waiting = Waiting::default();
        let mut answers = Vec::new();
        for index in [4, 5, 6] {
            let (answer, answered) = oneshot::channel();
            waiting.add_strict(LogIndex(index), reply(), answer);
            answers.push(answered);
        }
        waiting.release(&voters([6, 6, 4], true), LogIndex(6), 3);
        assert!(matches!(answers[0].try_recv(), Ok(Ok(_))));
        assert!(answers[1].try_recv().is_err(), "it waits");
        // The third has flushed 5 and goes: that one is whole, the next never will be.
        waiting.release(&voters([6, 6, 5], false), LogIndex(6), 3);
        assert!(matches!(answers[1].try_recv(), Ok(Ok(_))));
        assert!(matches!(answers[2].try_recv(), Ok(Err(GroupError::Unknown(_)))));
        assert!(waiting.is_empty());
        assert!(lacking(&voters([1, 1, 1], true), 3).is_none());
        assert!(lacking(&voters([1, 1, 1], false), 3).is_some());
        assert!(lacking(&voters([1, 1, 1], true)[..2], 3).is_some());
    }

    #[test]
    fn what_is_not_committed_is_never_released() {
        assert_eq!(reached(&mut Waiting::default(), [voter(1, true, 20), voter(2, true, 9), voter(3, true, 9)], 3), 3);
    }
}
