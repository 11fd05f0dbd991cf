//! What an engine must hold after any crash, kept beside it.

use base::ids::{GroupId, LogIndex, PeerId, Term};
use bytes::Bytes;
use std::collections::BTreeMap;
use store::{RaftEntry, RaftLog, RaftWrite, StoreError};

use crate::bench::payload;

/// What was asked for a chunk and what was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Chunk {
    pub len: usize,
    pub stored: bool,
    pub delete_asked: bool,
    pub deleted: bool,
}

#[derive(Default)]
pub struct Model {
    pub chunks: BTreeMap<u32, Chunk>,
    pub logs: BTreeMap<GroupId, RaftLog>,
    /// The write of each group that was not answered.
    pub asked: BTreeMap<GroupId, RaftWrite>,
    /// Volumes compacted or recycled so far.
    pub compacted: u64,
}

impl Model {
    /// Compares a chunk with what was read, and learns what a crash left open. The violation, if it is one.
    pub fn check_chunk(&mut self, number: u32, read: Result<Bytes, StoreError>) -> Result<(), String> {
        let chunk = self.chunks.get_mut(&number).expect("only asked for known chunks");
        match read {
            Ok(data) => {
                if data != payload(number, chunk.len) {
                    return Err(format!("chunk {number}: wrong bytes"));
                }
                if chunk.deleted {
                    return Err(format!("chunk {number}: came back after its deletion was acknowledged"));
                }
                // What was seen once may not vanish later.
                chunk.stored = true;
            }
            Err(StoreError::Deleted) if chunk.delete_asked => chunk.deleted = true,
            Err(StoreError::NotFound) if !chunk.stored => {}
            // Its tombstone has gone already, because no volume holds the chunk any more.
            Err(StoreError::NotFound) if chunk.delete_asked => chunk.deleted = true,
            Err(error) => return Err(format!("chunk {number} ({chunk:?}): {error:?}")),
        }
        Ok(())
    }

    pub fn check_log(&mut self, group: GroupId, read: Result<Option<RaftLog>, StoreError>) -> Result<(), String> {
        let before = self.logs.get(&group).cloned();
        let after = self.asked.remove(&group).map(|write| applied(before.clone(), &write));
        let read = read.map_err(|error| format!("group {group}: {error:?}"))?;
        if read == before || after.as_ref().is_some_and(|after| read.as_ref() == Some(after)) {
            self.logs.extend(read.map(|log| (group, log)));
            return Ok(());
        }
        let brief = |log: Option<&RaftLog>| {
            log.map(|log| {
                (log.hard_state.clone(), log.base, log.entries.iter().map(|e| (e.index, e.term)).collect::<Vec<_>>())
            })
        };
        Err(format!(
            "group {group}: read {:?}, expected {:?} or {:?}",
            brief(read.as_ref()),
            brief(before.as_ref()),
            brief(after.as_ref())
        ))
    }
}

/// The log after a write, by the book.
pub fn applied(log: Option<RaftLog>, write: &RaftWrite) -> RaftLog {
    let mut log = log.unwrap_or(RaftLog { peer: write.peer, ..RaftLog::default() });
    if let Some(base) = write.reset {
        log = RaftLog { peer: write.peer, hard_state: log.hard_state, base, entries: Vec::new() };
    }
    if let Some(first) = write.entries.first() {
        log.entries.retain(|entry| entry.index < first.index);
        log.entries.extend(write.entries.iter().cloned());
    }
    if let Some(hard_state) = &write.hard_state {
        log.hard_state = Some(hard_state.clone());
    }
    if let Some(trim_to) = write.trim_to.filter(|index| *index > log.base.0) {
        let term = log.entries.iter().find(|entry| entry.index == trim_to).expect("trims a known entry").term;
        log.base = (trim_to, term);
        log.entries.retain(|entry| entry.index > trim_to);
    }
    log
}

/// A write that fits the log: appends, cuts, votes, trims, resets, as `draw` decides.
pub fn next_write(group: GroupId, log: Option<&RaftLog>, draw: &mut dyn FnMut(u64) -> u64) -> RaftWrite {
    let base = log.map_or((LogIndex(0), Term(0)), |log| log.base);
    let last = log.and_then(|log| log.entries.last()).map_or(base, |entry| (entry.index, entry.term));
    let mut write = RaftWrite { group, peer: PeerId(1), ..RaftWrite::default() };
    let term = Term(last.1.0 + u64::from(draw(4) == 0));
    let mut from = last.0.0 + 1;
    if draw(10) == 0 {
        from = base.0.0 + 1 + draw(from - base.0.0);
    }
    if draw(40) == 0 {
        let reset = (LogIndex(last.0.0 + 5), Term(term.0 + 1));
        write.reset = Some(reset);
        from = reset.0.0 + 1;
    }
    let entry = |index: u64, len: u64| RaftEntry {
        index: LogIndex(index),
        term,
        data: payload((index * 31 + term.0) as u32, len as usize),
    };
    let count = draw(5);
    write.entries = (from..from + count).map(|index| entry(index, draw(3000))).collect();
    if draw(2) == 0 || write.entries.is_empty() {
        write.hard_state = Some(payload(draw(1 << 20) as u32, 24));
    }
    let end = write.entries.last().map_or(from - 1, |entry| entry.index.0);
    if draw(6) == 0 && write.reset.is_none() && end > base.0.0 && from == last.0.0 + 1 {
        write.trim_to = Some(LogIndex(base.0.0 + 1 + draw(end - base.0.0)));
    }
    write
}
