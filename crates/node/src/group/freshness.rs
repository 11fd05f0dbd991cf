//! How stale the state of a replica may be: for reads that any replica answers.
//!
//! A follower is as fresh as the moment at which its leader said what is committed, once it has applied that. A leader is as
//! fresh as the moment at which a majority of voters last answered it. Both are moments of this replica's own clock; that a
//! message travels is not counted, so the figure may be short by the time that takes.

use base::env::MonoTime;
use base::ids::{LogIndex, PeerId};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Freshness {
    /// Everything committed by then is applied here.
    as_of: Option<MonoTime>,
    /// What was said to be committed then is not applied yet.
    owed: Option<(MonoTime, LogIndex)>,
    /// When voters last answered this leader.
    answered: BTreeMap<PeerId, MonoTime>,
}

impl Freshness {
    /// The leader says that everything up to `committed` is, and nothing behind it.
    pub fn told(&mut self, committed: LogIndex, applied: LogIndex, now: MonoTime) {
        if applied < committed {
            self.owed.get_or_insert((now, committed));
        } else if self.owed.is_none_or(|(_, owed)| owed <= committed) {
            self.owed = None;
            self.as_of = Some(now);
        }
        // Else this message was overtaken by one that says more.
    }

    pub fn applied(&mut self, applied: LogIndex) {
        if let Some((at, _)) = self.owed.filter(|(_, committed)| *committed <= applied) {
            self.owed = None;
            self.as_of = self.as_of.max(Some(at));
        }
    }

    /// A peer has answered this replica, which leads.
    pub fn answered(&mut self, peer: PeerId, now: MonoTime) {
        self.answered.insert(peer, now);
    }

    /// This replica leads, and has applied an entry of its own term: it is as fresh as the answers of a majority.
    pub fn lead(&mut self, own: PeerId, voters: &[PeerId], now: MonoTime) {
        self.owed = None;
        let at = |peer: &PeerId| if *peer == own { Some(now) } else { self.answered.get(peer).copied() };
        let mut moments: Vec<Option<MonoTime>> = voters.iter().map(at).collect();
        moments.sort();
        // A majority has answered at this moment or later.
        let moment = moments.len().checked_sub(moments.len() / 2 + 1).and_then(|place| moments[place]);
        self.as_of = self.as_of.max(moment);
    }

    /// Whom this replica follows, or that it leads, has changed.
    pub fn turn(&mut self) {
        self.answered.clear();
        self.owed = None;
    }

    pub fn as_of(&self) -> Option<MonoTime> {
        self.as_of
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(u64) -> MonoTime = MonoTime;

    #[test]
    fn a_follower_is_as_fresh_as_what_it_applied_was_when_it_was_told() {
        let mut fresh = Freshness::default();
        assert_eq!(fresh.as_of(), None, "nobody has told it anything");
        fresh.told(LogIndex(5), LogIndex(5), AT(10));
        assert_eq!(fresh.as_of(), Some(AT(10)));
        fresh.told(LogIndex(9), LogIndex(5), AT(20));
        fresh.applied(LogIndex(8));
        // An overtaken message says nothing of what is lacking.
        fresh.told(LogIndex(8), LogIndex(8), AT(30));
        assert_eq!(fresh.as_of(), Some(AT(10)));
        fresh.applied(LogIndex(9));
        assert_eq!(fresh.as_of(), Some(AT(20)));
        fresh.told(LogIndex(9), LogIndex(9), AT(40));
        assert_eq!(fresh.as_of(), Some(AT(40)));
    }

    #[test]
    fn a_leader_is_as_fresh_as_the_answers_of_a_majority() {
        let (own, voters) = (PeerId(1), [1, 2, 3].map(PeerId));
        let mut fresh = Freshness::default();
        fresh.lead(own, &voters, AT(5));
        assert_eq!(fresh.as_of(), None);
        fresh.answered(PeerId(3), AT(10));
        fresh.lead(own, &voters, AT(50));
        assert_eq!(fresh.as_of(), Some(AT(10)));
        fresh.answered(PeerId(2), AT(30));
        fresh.lead(own, &voters, AT(60));
        assert_eq!(fresh.as_of(), Some(AT(30)));
        fresh.turn();
        fresh.lead(own, &voters, AT(70));
        assert_eq!(fresh.as_of(), Some(AT(30)), "what was fresh then was");
        fresh.lead(own, &[own], AT(80));
        assert_eq!(fresh.as_of(), Some(AT(80)));
    }
}
