//! What clients did to one key and what they were told, in the order in which the simulation saw it.

/// The number of a write, unique in a run: what was read tells by it which write it came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Value(pub u32);

impl Value {
    /// The ETag that the object is written with.
    pub fn etag(self) -> String {
        format!("{:08x}", self.0)
    }

    pub fn from_etag(etag: &str) -> Option<Value> {
        u32::from_str_radix(etag, 16).ok().map(Value)
    }
}

/// One version of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Entry {
    Value(Value),
    Marker,
}

/// When a write is to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    Always,
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match: etag`.
    Is(Value),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Put {
        value: Value,
        condition: Condition,
    },
    Delete {
        condition: Condition,
    },
    /// Removes one version for good.
    DeleteVersion {
        value: Value,
    },
    /// The newest version; `None`: there is none, or it is a delete marker.
    Read {
        found: Option<Value>,
    },
    /// One version by its id.
    ReadVersion {
        value: Value,
        found: bool,
    },
    /// All versions, oldest first.
    ReadVersions {
        found: Vec<Entry>,
    },
}

impl Action {
    /// In a bucket without versioning: leaves the same state, whatever was there before.
    pub fn overwrites(&self) -> bool {
        matches!(
            self,
            Action::Put { condition: Condition::Always, .. } | Action::Delete { condition: Condition::Always }
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    /// The condition did not hold.
    Refused,
    /// It may have happened, or may still happen before its end, or never.
    Unknown,
}

/// The end of an operation that may still happen at any time.
pub const OPEN: u64 = u64::MAX;

/// One operation with the moments between which it happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    pub client: u32,
    /// Positions in the order of all beginnings and ends of the run. When the outcome is unknown, `end` is the moment
    /// after which it cannot happen any more, [`OPEN`] as long as there is none.
    pub begin: u64,
    pub end: u64,
    pub action: Action,
    pub outcome: Outcome,
}

/// What is promised of one key: its versions, oldest first. In a bucket without versioning there is at most one.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct KeyState {
    pub entries: Vec<Entry>,
}

impl KeyState {
    pub fn newest(&self) -> Option<Value> {
        match self.entries.last() {
            Some(Entry::Value(value)) => Some(*value),
            Some(Entry::Marker) | None => None,
        }
    }

    /// The state after `action` with `outcome`, or `None` when the outcome contradicts this state. An unknown outcome
    /// is stepped as if it had happened now.
    pub fn step(&self, versioned: bool, action: &Action, outcome: Outcome) -> Option<KeyState> {
        match action {
            Action::Put { value, condition } => {
                self.decide(self.allows_put(*condition), outcome, |next| next.write(versioned, Entry::Value(*value)))
            }
            Action::Delete { condition } => {
                self.decide(self.allows_delete(*condition), outcome, |next| next.delete(versioned, *condition))
            }
            Action::DeleteVersion { value } => {
                self.decide(true, outcome, |next| next.entries.retain(|entry| *entry != Entry::Value(*value)))
            }
            Action::Read { found } => (self.newest() == *found).then(|| self.clone()),
            Action::ReadVersion { value, found } => {
                (self.entries.contains(&Entry::Value(*value)) == *found).then(|| self.clone())
            }
            Action::ReadVersions { found } => (self.entries == *found).then(|| self.clone()),
        }
    }

    fn decide(&self, allowed: bool, outcome: Outcome, change: impl FnOnce(&mut KeyState)) -> Option<KeyState> {
        if allowed == (outcome == Outcome::Refused) {
            return None;
        }
        let mut next = self.clone();
        if outcome != Outcome::Refused {
            change(&mut next);
        }
        Some(next)
    }

    fn allows_put(&self, condition: Condition) -> bool {
        match condition {
            Condition::Always => true,
            Condition::Absent => self.newest().is_none(),
            Condition::Is(value) => self.newest() == Some(value),
        }
    }

    /// As in S3, deleting what was never there succeeds whatever the condition; a delete marker fulfils none.
    fn allows_delete(&self, condition: Condition) -> bool {
        self.entries.is_empty() || self.allows_put(condition)
    }

    fn write(&mut self, versioned: bool, entry: Entry) {
        if !versioned {
            self.entries.clear();
        }
        self.entries.push(entry);
    }

    fn delete(&mut self, versioned: bool, condition: Condition) {
        if !versioned {
            self.entries.clear();
        } else if condition == Condition::Always || !self.entries.is_empty() {
            self.entries.push(Entry::Marker);
        }
    }
}
