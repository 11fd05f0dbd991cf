//! What all clients of a run did and saw, and what was wrong with it.

use base::ids::{Generation, NodeId, Session};
use base::sim::SimHandle;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::content::Content;
use crate::history::{Action, OPEN, Operation, Outcome, Value};
use crate::linearizability::{self, Verdict};

/// Violations that are kept: the first ones tell the story.
const VIOLATIONS_MAX: usize = 20;

/// A key of one of the run's buckets, by the bucket's place in the plan.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KeyName {
    pub bucket: usize,
    pub key: Bytes,
}

/// What is printed while a run goes on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Shown {
    #[default]
    Nothing,
    /// Who leads, what was cut, lost and repaired.
    Story,
    /// Also what each client did and all that the product logs.
    Everything,
}

/// Shared by all clients of a run; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sim: SimHandle,
    shown: Shown,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    /// Counts beginnings and ends of operations: their order is what linearizability is about.
    moments: u64,
    values: Vec<Written>,
    histories: BTreeMap<KeyName, Vec<Operation>>,
    /// Writes whose outcome is unknown, by the session that they were asked for in.
    open: Vec<OpenWrite>,
    fences: Vec<Fence>,
    violations: Vec<String>,
    violations_count: u64,
    counts: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
    stories: BTreeMap<&'static str, u64>,
}

struct OpenWrite {
    key: KeyName,
    /// In the key's history.
    position: usize,
    session: Session,
}

/// From `moment` on, nothing of `node`'s sessions below `floor` is executed.
struct Fence {
    node: NodeId,
    floor: Generation,
    moment: u64,
}

/// What a value was written as.
#[derive(Clone, Debug)]
pub struct Written {
    pub key: KeyName,
    pub content: Content,
    /// In a versioned bucket, once it is known.
    pub version: Option<Bytes>,
}

impl Recorder {
    pub fn new(sim: SimHandle, shown: Shown) -> Recorder {
        Recorder { sim, shown, log: Arc::default() }
    }

    /// A line of the story, where it is asked for.
    pub fn note(&self, line: impl FnOnce() -> String) {
        self.say(Shown::Story, line);
    }

    fn say(&self, level: Shown, line: impl FnOnce() -> String) {
        if self.shown >= level {
            println!("{}  {}", stamp(&self.sim), line());
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new value, known before it is sent anywhere.
    pub fn new_value(&self, key: &KeyName, content: impl FnOnce(Value) -> Content) -> Value {
        let mut log = self.log();
        let value = Value(u32::try_from(log.values.len()).expect("a run writes less than 2^32 values"));
        log.values.push(Written { key: key.clone(), content: content(value), version: None });
        value
    }

    pub fn written(&self, value: Value) -> Option<Written> {
        self.log().values.get(value.0 as usize).cloned()
    }

    pub fn learn_version(&self, value: Value, version: &Bytes) {
        if !version.is_empty()
            && let Some(written) = self.log().values.get_mut(value.0 as usize)
        {
            written.version = Some(version.clone());
        }
    }

    /// The value that was given out for this key `back` values before the last one.
    pub fn recent_value(&self, key: &KeyName, back: usize) -> Option<Value> {
        let log = self.log();
        let of_key = log.values.iter().enumerate().rev().filter(|(_, written)| written.key == *key);
        of_key.map(|(index, _)| Value(index as u32)).nth(back)
    }

    /// Values of a key whose version ids are known, oldest first.
    pub fn versions_of(&self, key: &KeyName) -> Vec<(Value, Bytes)> {
        let log = self.log();
        let of_key = |(index, written): (usize, &Written)| {
            let version = written.version.clone().filter(|_| written.key == *key)?;
            Some((Value(index as u32), version))
        };
        log.values.iter().enumerate().filter_map(of_key).collect()
    }

    /// The moment at which an operation begins, or has ended.
    pub fn moment(&self) -> u64 {
        let mut log = self.log();
        log.moments += 1;
        log.moments
    }

    /// Adds an operation that has just ended.
    pub fn record(&self, client: u32, key: &KeyName, begin: u64, action: Action, outcome: Outcome) {
        let end = if outcome == Outcome::Unknown { OPEN } else { self.moment() };
        self.record_span(client, key, (begin, end), action, outcome);
    }

    pub fn record_span(&self, client: u32, key: &KeyName, (begin, end): (u64, u64), action: Action, outcome: Outcome) {
        let operation = Operation { client, begin, end, action, outcome };
        self.say(Shown::Everything, || {
            let Operation { action, outcome, .. } = &operation;
            format!(
                "client {client:<4} {}:{} {action:?} -> {outcome:?} [{begin}..{end}]",
                key.bucket,
                key.key.escape_ascii()
            )
        });
        self.log().histories.entry(key.clone()).or_default().push(operation);
    }

    /// Adds a write that has just ended, all of which was asked for in `session`, or in an earlier one of its node;
    /// `None`: it may still be asked for in any.
    pub fn record_write(
        &self,
        client: u32,
        session: Option<Session>,
        key: &KeyName,
        begin: u64,
        action: Action,
        outcome: Outcome,
    ) {
        self.record(client, key, begin, action, outcome);
        let Some(session) = session else { return };
        let now = self.moment();
        let mut log = self.log();
        let log = &mut *log;
        let fence = log.fences.iter().find(|fence| fence.node == session.node && fence.floor > session.generation);
        let operations = log.histories.get_mut(key).expect("it was just recorded");
        let position = operations.len() - 1;
        match (outcome, fence) {
            (Outcome::Unknown, Some(_)) => operations[position].end = now,
            (Outcome::Unknown, None) => log.open.push(OpenWrite { key: key.clone(), position, session }),
            (Outcome::Done, Some(fence)) if fence.moment < begin => {
                let what = format!("{session:?} was closed, and then wrote {:?}", operations[position].action);
                log.violations_count += 1;
                log.violations.push(what);
            }
            _ => {}
        }
    }

    /// Sessions of `node` below `floor` are closed: what they left undecided has happened by now, or never will.
    pub fn fence(&self, node: NodeId, floor: Generation) {
        let moment = self.moment();
        let mut log = self.log();
        let log = &mut *log;
        if log.fences.iter().any(|fence| fence.node == node && fence.floor >= floor) {
            return;
        }
        log.fences.push(Fence { node, floor, moment });
        log.open.retain(|open| {
            let is_closed = open.session.node == node && open.session.generation < floor;
            if is_closed && let Some(operations) = log.histories.get_mut(&open.key) {
                operations[open.position].end = moment;
            }
            !is_closed
        });
    }

    /// The node has started anew: what earlier lives left undecided has happened by now, or never will.
    pub fn close_unknown(&self) {
        let now = self.moment();
        let mut log = self.log();
        let operations = log.histories.values_mut().flatten();
        for operation in operations.filter(|operation| operation.outcome == Outcome::Unknown && operation.end == OPEN) {
            operation.end = now;
        }
    }

    pub fn violation(&self, what: String) {
        self.note(|| format!("VIOLATION {what}"));
        let mut log = self.log();
        log.violations_count += 1;
        if log.violations.len() < VIOLATIONS_MAX {
            log.violations.push(what);
        }
    }

    pub fn violations(&self) -> Vec<String> {
        self.log().violations.clone()
    }

    pub fn has_violations(&self) -> bool {
        self.log().violations_count > 0
    }

    pub fn count(&self, what: &'static str, by: u64) {
        if by == 1 && !matches!(what, "operations" | "puts_acknowledged") {
            self.say(Shown::Everything, || what.replace('_', " "));
        }
        *self.log().counts.entry(what).or_insert(0) += by;
    }

    /// The nemesis does that now.
    pub fn fault(&self, what: &'static str) {
        *self.log().faults.entry(what).or_insert(0) += 1;
    }

    /// The nemesis tells that sequence of faults now.
    pub fn story(&self, what: &'static str) {
        *self.log().stories.entry(what).or_insert(0) += 1;
    }

    pub fn stories(&self) -> BTreeMap<&'static str, u64> {
        self.log().stories.clone()
    }

    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.log().faults.clone()
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.log().counts.clone()
    }

    /// Checks every key's history; answers how many were checked and how many were too large to decide.
    pub fn check_histories(&self, is_versioned: impl Fn(usize) -> bool) -> (u64, u64) {
        let histories = std::mem::take(&mut self.log().histories);
        let mut undecided = 0;
        for (key, history) in &histories {
            match linearizability::check(is_versioned(key.bucket), history) {
                Verdict::Linearizable => {}
                Verdict::Undecided => undecided += 1,
                Verdict::Violation { longest } => self.violation(describe(key, history, &longest)),
            }
        }
        let checked = histories.len() as u64;
        self.log().histories = histories;
        (checked, undecided)
    }
}

/// The simulated time, as lines of the timeline begin.
pub fn stamp(sim: &SimHandle) -> String {
    format!("{:>10.4} s", sim.now().0 as f64 / 1e9)
}

/// The end of the longest order that fits, and the operations around the point where none does.
fn describe(key: &KeyName, history: &[Operation], longest: &[usize]) -> String {
    const SHOWN: usize = 14;
    let name = key.key.escape_ascii();
    let mut out = format!("key {name} of bucket {}: the history is not linearizable\n", key.bucket);
    let stuck = (0..history.len()).filter(|i| !longest.contains(i) && history[*i].outcome != Outcome::Unknown);
    let first_stuck = stuck.clone().min_by_key(|i| history[*i].end);
    let horizon = first_stuck.map_or(u64::MAX, |i| history[i].end);
    let line = |i: usize, mark: &str| {
        let op = &history[i];
        let span = if op.end == OPEN { format!("{}..", op.begin) } else { format!("{}..{}", op.begin, op.end) };
        format!("    {mark} [{span:>13}] client {}: {:?} -> {:?}\n", op.client, op.action, op.outcome)
    };
    for i in longest.iter().skip(longest.len().saturating_sub(SHOWN)) {
        out.push_str(&line(*i, "fits "));
    }
    for i in stuck.filter(|i| history[*i].begin < horizon) {
        out.push_str(&line(i, "STUCK"));
    }
    for i in (0..history.len()).filter(|i| !longest.contains(i) && history[*i].outcome == Outcome::Unknown) {
        out.push_str(&line(i, "maybe"));
    }
    out
}
