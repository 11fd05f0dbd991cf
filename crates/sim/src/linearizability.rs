//! Whether a history of one key is linearizable: whether each operation can be given a moment between its beginning
//! and its end so that, in the order of these moments, every answer is right.
//!
//! The algorithm of Wing and Gong (1993) with Lowe's memory of seen configurations (2017): operations that may come
//! first are tried in turn; a configuration (the set of operations done, the state reached) is never tried twice.
//! Operations with unknown outcomes may be given a moment at any time between their beginning and their end (which may be
//! never), or none; to keep the search small, they are given one only where something may notice it.

use crate::history::{KeyState, Operation, Outcome};

/// Configurations that are looked at before the search gives up.
const CONFIGURATIONS_MAX: usize = 2_000_000;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Linearizable,
    /// The longest run of operations (indices into the history) that could be put in order; what comes next fits
    /// nowhere.
    Violation {
        longest: Vec<usize>,
    },
    /// The search became too large.
    Undecided,
}

/// Checks the history of one key of a bucket that is `versioned` or not, from the empty state.
pub fn check(versioned: bool, history: &[Operation]) -> Verdict {
    Search::new(versioned, history).run()
}

/// An operation's beginning or its end.
#[derive(Clone, Copy)]
struct Event {
    operation: usize,
    is_begin: bool,
}

/// The events not yet dealt with, as a list with links both ways: taking an operation out and putting it back is
/// cheap, in reverse order. Position 0 is a sentinel before the first event.
struct Events {
    events: Vec<Event>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where each operation begins and ends in `events`; no end when its outcome is unknown, for nothing then has to wait
    /// for it.
    begin_at: Vec<usize>,
    end_at: Vec<Option<usize>>,
}

const SENTINEL: usize = 0;

impl Events {
    fn new(history: &[Operation]) -> Events {
        let mut moments = Vec::with_capacity(2 * history.len());
        for (operation, op) in history.iter().enumerate() {
            moments.push((op.begin, Event { operation, is_begin: true }));
            if op.outcome != Outcome::Unknown {
                assert!(op.end > op.begin, "an operation ends after its beginning");
                moments.push((op.end, Event { operation, is_begin: false }));
            }
        }
        moments.sort_by_key(|(at, _)| *at);
        let mut begin_at = vec![0; history.len()];
        let mut end_at = vec![None; history.len()];
        let mut events = vec![Event { operation: usize::MAX, is_begin: false }];
        for (_, event) in moments {
            if event.is_begin {
                begin_at[event.operation] = events.len();
            } else {
                end_at[event.operation] = Some(events.len());
            }
            events.push(event);
        }
        let count = events.len();
        let next = (0..count).map(|at| (at + 1) % count).collect();
        let previous = (0..count).map(|at| (at + count - 1) % count).collect();
        Events { events, next, previous, begin_at, end_at }
    }

    fn unlink(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn relink(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = at;
        self.previous[next] = at;
    }

    fn take(&mut self, operation: usize) {
        self.unlink(self.begin_at[operation]);
        if let Some(end) = self.end_at[operation] {
            self.unlink(end);
        }
    }

    fn put_back(&mut self, operation: usize) {
        if let Some(end) = self.end_at[operation] {
            self.relink(end);
        }
        self.relink(self.begin_at[operation]);
    }
}

#[expect(clippy::disallowed_types, reason = "only membership is asked for, so the order does not matter")]
type Seen = std::collections::HashSet<(Vec<u64>, KeyState, bool)>;

struct Search<'a> {
    versioned: bool,
    history: &'a [Operation],
    events: Events,
    done: Vec<u64>,
    /// Operations in the order tried, each with the state and the newest beginning before it.
    order: Vec<(usize, KeyState, u64)>,
    state: KeyState,
    /// The newest beginning among the operations placed: whatever comes next happens after it.
    newest_begin: u64,
    /// Operations with known outcomes that have no place yet.
    unplaced: usize,
    seen: Seen,
    longest: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(versioned: bool, history: &'a [Operation]) -> Search<'a> {
        Search {
            versioned,
            history,
            events: Events::new(history),
            done: vec![0; history.len().div_ceil(64)],
            order: Vec::new(),
            state: KeyState::default(),
            newest_begin: 0,
            unplaced: history.iter().filter(|op| op.outcome != Outcome::Unknown).count(),
            seen: Seen::default(),
            longest: Vec::new(),
        }
    }

    fn run(mut self) -> Verdict {
        let mut at = self.events.next[SENTINEL];
        while self.unplaced > 0 {
            let event = self.events.events[at];
            if at != SENTINEL && event.is_begin {
                at = if self.place(event.operation) { self.events.next[SENTINEL] } else { self.events.next[at] };
            } else {
                // An operation has ended that could not be placed (or nothing is left to try): one step back.
                match self.step_back() {
                    Some(next) => at = next,
                    None => return Verdict::Violation { longest: self.longest },
                }
            }
            if self.seen.len() > CONFIGURATIONS_MAX {
                return Verdict::Undecided;
            }
        }
        Verdict::Linearizable
    }

    /// Has `operation` happen next, if its outcome fits and the configuration is new.
    fn place(&mut self, operation: usize) -> bool {
        let op = &self.history[operation];
        if op.outcome == Outcome::Unknown && op.end < self.newest_begin {
            return false;
        }
        if self.last_is_unknown() && !self.versioned && op.action.overwrites() {
            // Whatever the unknown operation did is gone: the order without it reaches the same state.
            return false;
        }
        let Some(next) = self.state.step(self.versioned, &op.action, op.outcome) else { return false };
        self.done[operation / 64] |= 1 << (operation % 64);
        if !self.seen.insert((self.done.clone(), next.clone(), op.outcome == Outcome::Unknown)) {
            self.done[operation / 64] &= !(1 << (operation % 64));
            return false;
        }
        self.order.push((operation, std::mem::replace(&mut self.state, next), self.newest_begin));
        self.newest_begin = self.newest_begin.max(op.begin);
        self.events.take(operation);
        self.unplaced -= usize::from(op.outcome != Outcome::Unknown);
        if self.order.len() > self.longest.len() {
            self.longest = self.order.iter().map(|(operation, ..)| *operation).collect();
        }
        true
    }

    fn last_is_unknown(&self) -> bool {
        self.order.last().is_some_and(|(operation, ..)| self.history[*operation].outcome == Outcome::Unknown)
    }

    /// Takes the last operation out of the order again; answers where to go on.
    fn step_back(&mut self) -> Option<usize> {
        let (operation, before, newest_begin) = self.order.pop()?;
        self.state = before;
        self.newest_begin = newest_begin;
        self.done[operation / 64] &= !(1 << (operation % 64));
        self.events.put_back(operation);
        self.unplaced += usize::from(self.history[operation].outcome != Outcome::Unknown);
        Some(self.events.next[self.events.begin_at[operation]])
    }
}

#[cfg(test)]
mod tests;
