//! The log since the last trim, in memory, as `raft-rs` reads it. The durable copy is the driver's business.

use base::ids::{LogIndex, PeerId};
use raft::eraftpb;
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;

use super::configuration::Configuration;
use super::message::{check_data, raft_entry, snapshot_of};
use super::{Restored, Waiting};

/// Memory of one entry beside its data.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

pub(super) struct LogCache {
    initial: RaftState,
    /// Index and term of the entry before the first one.
    base: (u64, u64),
    entries: VecDeque<eraftpb::Entry>,
    bytes: u64,
    /// What a snapshot of this replica would be of: its applied state. Absent while it has none.
    snapshot_point: Option<(u64, u64, Configuration)>,
}

impl LogCache {
    /// Refuses (with a sentence) what cannot have been written by a correct peer.
    pub fn new(restored: &Restored) -> Result<LogCache, String> {
        let base = (restored.base.0.0, restored.base.1.0);
        let mut last = base;
        for entry in &restored.entries {
            if entry.index.0 != last.0 + 1 || entry.term.0 < last.1 {
                return Err(format!(
                    "the log has entry {} of term {} after entry {} of term {}",
                    entry.index, entry.term, last.0, last.1
                ));
            }
            check_data(&entry.data).map_err(|why| format!("entry {}: {why}", entry.index))?;
            last = (entry.index.0, entry.term.0);
        }
        if restored.hard_state.term.0 < last.1 {
            return Err(format!(
                "the log reaches term {}, but the hard state is at {}",
                last.1, restored.hard_state.term
            ));
        }
        let applied = restored.applied_index();
        if applied < restored.base.0 || applied.0 > last.0 {
            return Err(format!(
                "the state machine is at entry {applied}, but the log holds {} to {}",
                base.0 + 1,
                last.0
            ));
        }
        let in_raft = |entry: &super::Entry| raft_entry(entry.index.0, entry.term.0, entry.data.clone());
        let entries: VecDeque<eraftpb::Entry> = restored.entries.iter().map(in_raft).collect();
        let commit = match restored.waiting {
            Waiting::No => known_commit(applied.0, entries.iter()),
            // Nothing can be applied before a state is there.
            Waiting::ForState => applied.0,
        };
        let hard_state = eraftpb::HardState {
            term: restored.hard_state.term.0,
            vote: restored.hard_state.vote.0,
            commit,
            ..eraftpb::HardState::default()
        };
        let initial = RaftState::new(hard_state, restored.configuration.conf_state());
        let bytes = entries.iter().map(entry_bytes).sum();
        let mut cache = LogCache { initial, base, entries, bytes, snapshot_point: None };
        if restored.waiting == Waiting::No {
            cache.set_snapshot_point(applied.0, &restored.configuration);
        }
        Ok(cache)
    }

    pub fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    pub fn base(&self) -> LogIndex {
        LogIndex(self.base.0)
    }

    /// Bytes and number of the entries.
    pub fn size(&self) -> (u64, usize) {
        (self.bytes, self.entries.len())
    }

    pub fn append(&mut self, entries: Vec<eraftpb::Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.base.0 && first.index <= self.last() + 1, "a log has no gaps");
        while self.last() >= first.index {
            let dropped = self.entries.pop_back().expect("last() is above the base, so there is an entry");
            self.bytes -= entry_bytes(&dropped);
        }
        self.bytes += entries.iter().map(entry_bytes).sum::<u64>();
        self.entries.extend(entries);
    }

    pub fn trim(&mut self, index: u64) {
        while self.base.0 < index {
            let Some(dropped) = self.entries.pop_front() else { return };
            self.bytes -= entry_bytes(&dropped);
            self.base = (dropped.index, dropped.term);
        }
    }

    /// A snapshot of this index and term takes the place of all entries.
    pub fn reset(&mut self, index: u64, term: u64) {
        self.base = (index, term);
        self.entries.clear();
        self.bytes = 0;
    }

    /// The state machine is at `index`, under this configuration.
    pub fn set_snapshot_point(&mut self, index: u64, configuration: &Configuration) {
        if index == 0 || configuration.is_empty() {
            return;
        }
        let term = self.term(index).expect("what is applied is trimmed only up to itself");
        match &mut self.snapshot_point {
            Some((at, of, known)) if known == configuration => (*at, *of) = (index, term),
            point => *point = Some((index, term, configuration.clone())),
        }
    }
}

/// The highest index that is known to be committed: `commit`, or what the configuration changes in the log tell. A
/// leader appends one only after it has applied the one before, so all but the last are committed. A peer that
/// forgot this over a restart could campaign under a configuration that lies two changes back, whose majorities need
/// not overlap with today's; knowing it, `raft-rs` applies them first.
pub(super) fn known_commit<'a>(commit: u64, entries: impl Iterator<Item = &'a eraftpb::Entry>) -> u64 {
    let is_change = |entry: &&eraftpb::Entry| entry.get_entry_type() == eraftpb::EntryType::EntryConfChangeV2;
    let changes: Vec<u64> = entries.filter(is_change).map(|entry| entry.index).collect();
    changes.iter().rev().nth(1).map_or(commit, |index| commit.max(*index))
}

fn entry_bytes(entry: &eraftpb::Entry) -> u64 {
    entry.data.len() as u64 + ENTRY_OVERHEAD_BYTES
}

impl Storage for LogCache {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.base.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "raft asks only for entries that it appended");
        let size_max = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let mut out = Vec::new();
        for entry in self.entries.range((low - self.base.0 - 1) as usize..(high - self.base.0 - 1) as usize) {
            size += entry_bytes(entry);
            if size > size_max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index < self.base.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let position = (index - self.base.0 - 1) as usize;
        self.entries.get(position).map(|entry| entry.term).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<eraftpb::Snapshot> {
        match &self.snapshot_point {
            // A receiver that the snapshot does not know would refuse it: the point follows within a moment.
            Some((index, term, configuration)) if *index >= request_index && configuration.is_member(PeerId(to)) => {
                Ok(snapshot_of(*index, *term, configuration))
            }
            _ => Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable)),
        }
    }
}
