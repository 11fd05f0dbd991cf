//! Decides what one round writes: a pure function of the state and the requests.

use base::ids::{ChunkId, GroupId, LogIndex, OwnerId, PeerId, PgEpoch, Term};
use std::collections::{BTreeMap, BTreeSet};

use crate::errors::StoreError;
use crate::format::batch::RecordIn;
use crate::format::raft::{encode_base, encode_trim};
use crate::format::record::{Kind, RecordHeader};
use crate::index::{Health, Slot, VolumeNumber};
use crate::queue::{Outcome, Place, Request, Waiting};
use crate::raft_log::{GroupLog, RaftWrite};
use crate::state::State;

/// Records to write, and what to answer once they are durable.
#[derive(Default)]
pub struct Round {
    pub records: Vec<RecordIn>,
    pub answers: Vec<(Waiting, Result<Outcome, StoreError>)>,
    /// Volumes let go of, with the tombstones that go with them.
    pub dropped: Vec<(VolumeNumber, Vec<ChunkId>)>,
    pub conflicts: u64,
}

pub fn compose(state: &State, requests: Vec<Waiting>) -> Round {
    let mut desk = Desk::new(state, &requests);
    let mut round = Round::default();
    for waiting in requests {
        let answer = desk.decide(&waiting.request, &mut round);
        round.conflicts += u64::from(answer == Err(StoreError::Conflict));
        round.answers.push((waiting, answer));
    }
    round
}

/// The state as this round's earlier requests will leave it.
struct Desk<'a> {
    state: &'a State,
    stored: BTreeMap<ChunkId, (u32, u64)>,
    deleted: BTreeSet<ChunkId>,
    evicted: BTreeSet<ChunkId>,
    /// Tombstones that go with a volume dropped in this round: a delete must write a new one.
    forgotten: BTreeSet<ChunkId>,
}

impl<'a> Desk<'a> {
    fn new(state: &'a State, requests: &[Waiting]) -> Desk<'a> {
        let forgotten = requests.iter().filter_map(|waiting| match &waiting.request {
            Request::Drop { tombstones, .. } => Some(tombstones.iter().copied()),
            _ => None,
        });
        let forgotten = forgotten.flatten().collect();
        Desk { state, stored: BTreeMap::new(), deleted: BTreeSet::new(), evicted: BTreeSet::new(), forgotten }
    }

    fn decide(&mut self, request: &Request, round: &mut Round) -> Result<Outcome, StoreError> {
        match request {
            Request::Store { record, len, crc64, moved_from, .. } => {
                let id = record.header.chunk_id();
                let outcome = match moved_from {
                    Some(place) => self.moved(id, *place),
                    None => self.stored(id, *len, *crc64)?,
                };
                if outcome == Outcome::Done {
                    round.records.push(record.clone());
                    self.stored.insert(id, (*len, *crc64));
                }
                Ok(outcome)
            }
            Request::Delete { ids, moved_from } => {
                for id in ids {
                    self.delete(*id, *moved_from, round);
                }
                Ok(Outcome::Done)
            }
            Request::Evict { ids, moved_from } => {
                for id in ids {
                    self.evict(*id, *moved_from, round);
                }
                Ok(Outcome::Done)
            }
            Request::Raft(write) => {
                round.records.extend(raft_records(self.state, write)?);
                Ok(Outcome::Done)
            }
            Request::RaftRemove(group) => {
                if let Some(log) = self.state.raft.get(group).filter(|log| !log.removed) {
                    let (index, term, number) = (LogIndex(0), Term(0), log.number + 1);
                    let header = RecordHeader::raft(Kind::RaftRemove, *group, log.peer, index, term, number);
                    round.records.push(RecordIn::bare(header));
                }
                Ok(Outcome::Done)
            }
            Request::RaftRewrite { record, number } => {
                let current = self.state.raft.get(&record.header.group()).is_some_and(|log| log.number == *number);
                if !current {
                    return Ok(Outcome::Skipped);
                }
                round.records.push(record.clone());
                Ok(Outcome::Done)
            }
            Request::RaftRenew { group, volume, len_max } => {
                let records = self.state.raft.get(group).map(|log| renewed(*group, log, *volume)).unwrap_or_default();
                if records.iter().map(RecordIn::payload_len).sum::<usize>() > *len_max {
                    return Ok(Outcome::Skipped);
                }
                round.records.extend(records);
                Ok(Outcome::Done)
            }
            Request::RaftDamaged { group, reason } => {
                if let Some(log) = self.state.raft.get(group) {
                    let (index, term, number) = (LogIndex(0), Term(0), log.number + 1);
                    let header = RecordHeader::raft(Kind::RaftDamaged, *group, log.peer, index, term, number);
                    round.records.push(RecordIn::new(header, reason.clone().into_bytes()));
                }
                Ok(Outcome::Done)
            }
            Request::Seal => Ok(Outcome::Done),
            Request::Drop { volume, tombstones } => Ok(self.drop_volume(*volume, tombstones, round)),
        }
    }

    fn stored(&self, id: ChunkId, len: u32, crc64: u64) -> Result<Outcome, StoreError> {
        if self.deleted.contains(&id) {
            return Err(StoreError::Deleted);
        }
        if self.evicted.contains(&id) {
            return Ok(Outcome::Done);
        }
        if let Some(same_round) = self.stored.get(&id) {
            return if *same_round == (len, crc64) { Ok(Outcome::AlreadyStored) } else { Err(StoreError::Conflict) };
        }
        judge_put(self.state, id, len, crc64)
    }

    fn moved(&self, id: ChunkId, from: Place) -> Outcome {
        match self.state.index.get(id) {
            Some(Slot::Live(live))
                if (live.volume, live.offset, live.journal) == (from.volume, from.offset, from.journal)
                    && live.health == Health::Good
                    && !self.evicted.contains(&id)
                    && !self.stored.contains_key(&id) =>
            {
                Outcome::Done
            }
            _ => Outcome::Skipped,
        }
    }

    fn delete(&mut self, id: ChunkId, moved_from: Option<VolumeNumber>, round: &mut Round) {
        let needed = match (self.state.index.get(id), moved_from) {
            (Some(Slot::Deleted { journal, .. }), Some(from)) => journal == from,
            (_, Some(_)) => false,
            (Some(Slot::Deleted { .. }), None) => self.forgotten.contains(&id),
            (_, None) => true,
        };
        if needed && self.deleted.insert(id) {
            let header = RecordHeader::chunk(Kind::Tombstone, id, OwnerId(0), PgEpoch(0), 0);
            round.records.push(RecordIn::bare(header));
        }
    }

    /// A chunk that this round stores stays: it has just come.
    fn evict(&mut self, id: ChunkId, moved_from: Option<VolumeNumber>, round: &mut Round) {
        let needed = match (self.state.index.get(id), moved_from) {
            (Some(Slot::Evicted { journal, .. }), Some(from)) => journal == from,
            (Some(Slot::Live(_)), None) => true,
            _ => false,
        };
        let superseded = self.deleted.contains(&id) || self.stored.contains_key(&id);
        if needed && !superseded && self.evicted.insert(id) {
            let header = RecordHeader::chunk(Kind::Evicted, id, OwnerId(0), PgEpoch(0), 0);
            round.records.push(RecordIn::bare(header));
        }
    }

    fn drop_volume(&self, number: VolumeNumber, tombstones: &[ChunkId], round: &mut Round) -> Outcome {
        let Some(volume) = self.state.volumes.get(&number) else { return Outcome::Skipped };
        let still = |id: &&ChunkId| {
            self.state.index.get(**id).and_then(|slot| slot.mark()).is_some_and(|(journal, _)| journal == number)
        };
        let droppable = tombstones.iter().filter(still).count() as i64;
        let held = volume.pinned || volume.damaged_live > 0 || volume.pending > 0 || !volume.sealed;
        if held || volume.live_records != droppable {
            return Outcome::Skipped;
        }
        round.records.push(RecordIn::bare(RecordHeader::volume(Kind::VolumeDropped, u64::from(number))));
        round.dropped.push((number, tombstones.to_vec()));
        Outcome::Done
    }
}

/// What a put of this id comes to, before and again when it is its turn.
pub fn judge_put(state: &State, id: ChunkId, len: u32, crc64: u64) -> Result<Outcome, StoreError> {
    match state.index.get(id) {
        None | Some(Slot::Evicted { .. }) => Ok(Outcome::Done),
        Some(Slot::Deleted { .. }) => Err(StoreError::Deleted),
        Some(Slot::Live(live)) => match live.health {
            Health::Unknown => Ok(Outcome::Done),
            _ if (live.len, live.crc64) != (len, crc64) => Err(StoreError::Conflict),
            Health::Good => Ok(Outcome::AlreadyStored),
            Health::Damaged => Ok(Outcome::Done),
        },
    }
}

/// The records of one Raft write: base (a new or reset log), entries, hard state, trim.
fn raft_records(state: &State, write: &RaftWrite) -> Result<Vec<RecordIn>, StoreError> {
    let old = state.raft.get(&write.group);
    let fresh = check_peer(state, old, write)?;
    let base = write.reset.unwrap_or((LogIndex(0), Term(0)));
    let mut number = old.map_or(0, |log| log.number);
    let mut header = |kind, index, term| {
        number += 1;
        RecordHeader::raft(kind, write.group, write.peer, index, term, number)
    };
    let mut records = Vec::with_capacity(write.entries.len() + 3);
    let rebased = fresh || write.reset.is_some();
    if rebased {
        // A reset of the same peer's log keeps the hard state; what the write brings supersedes it.
        let kept = old.filter(|_| !fresh).and_then(|log| log.hard_state.as_deref());
        let hard_state = write.hard_state.as_deref().or(kept);
        let payload = encode_base(hard_state, std::iter::empty());
        records.push(RecordIn::new(header(Kind::RaftBase, base.0, base.1), payload));
    }
    let (base, last) = match old.filter(|_| !rebased) {
        Some(log) => (log.base, log.last()),
        None => (base, base.0),
    };
    check_entries(write, base.0, last)?;
    for entry in &write.entries {
        records.push(RecordIn::new(header(Kind::RaftEntry, entry.index, entry.term), entry.data.clone()));
    }
    if let Some(hard_state) = write.hard_state.clone().filter(|_| !rebased) {
        records.push(RecordIn::new(header(Kind::RaftHardState, LogIndex(0), Term(0)), hard_state));
    }
    if let Some(trim_to) = write.trim_to.filter(|index| *index > base.0) {
        let written = write.entries.iter().find(|entry| entry.index == trim_to).map(|entry| entry.term);
        let known = old.filter(|_| !rebased).and_then(|log| log.term(trim_to));
        let last = write.entries.last().map_or(last, |entry| entry.index);
        let term = written.or(known).filter(|_| trim_to <= last);
        let Some(term) = term else {
            return Err(StoreError::Invalid(format!("trim to {trim_to}, beyond the last entry {last}")));
        };
        records.push(RecordIn::new(header(Kind::RaftTrim, trim_to, term), encode_trim(last)));
    }
    Ok(records)
}

/// Whether the write starts a log of its own (new group, removed group, or another peer), or why it may not be done.
fn check_peer(state: &State, old: Option<&GroupLog>, write: &RaftWrite) -> Result<bool, StoreError> {
    match old {
        None if state.raft_lost => Err(StoreError::Damaged("raft records of unknown groups are lost".into())),
        None => Ok(true),
        Some(log) if log.removed => Ok(true),
        // The peer itself is lost: only the caller can know that this is another one.
        Some(log) if log.peer == PeerId(0) && write.reset.is_some() => Ok(true),
        Some(log) if log.peer == write.peer || log.peer == PeerId(0) => match log.damage() {
            Some(reason) => Err(StoreError::Damaged(reason)),
            None => Ok(false),
        },
        Some(_) if write.reset.is_some() => Ok(true),
        Some(log) => {
            let reason = format!("group {} belongs to peer {} here, not {}", write.group, log.peer, write.peer);
            Err(StoreError::Invalid(reason))
        }
    }
}

fn check_entries(write: &RaftWrite, base: LogIndex, last: LogIndex) -> Result<(), StoreError> {
    let Some(first) = write.entries.first() else { return Ok(()) };
    if first.index <= base || first.index.0 > last.0 + 1 {
        let reason = format!("entries from {} on do not continue a log from {base} to {last}", first.index);
        return Err(StoreError::Invalid(reason));
    }
    if write.entries.iter().zip(first.index.0..).any(|(entry, index)| entry.index.0 != index) {
        return Err(StoreError::Invalid("entries are not contiguous".into()));
    }
    Ok(())
}

/// Hard state and base of a log, as far as they lie in this volume, as records of their own.
fn renewed(group: GroupId, log: &GroupLog, volume: VolumeNumber) -> Vec<RecordIn> {
    let mut number = log.number;
    let mut header = |kind, index, term| {
        number += 1;
        RecordHeader::raft(kind, group, log.peer, index, term, number)
    };
    let mut records = Vec::new();
    if log.removed || log.peer == PeerId(0) || log.damage().is_some() {
        return records;
    }
    if let Some(hard_state) = log.hard_state.clone().filter(|_| log.hard_state_lies_in(volume)) {
        records.push(RecordIn::new(header(Kind::RaftHardState, LogIndex(0), Term(0)), hard_state));
    }
    if log.base_lies_in(volume) {
        let (index, term) = log.base;
        records.push(RecordIn::new(header(Kind::RaftTrim, index, term), encode_trim(log.last())));
    }
    records
}

/// A group's whole log as one base record.
pub fn base_record(group: GroupId, log: &GroupLog, entries: &[crate::raft_log::RaftEntry]) -> RecordIn {
    let payload = encode_base(log.hard_state.as_deref(), entries.iter().map(|e| (e.term, e.data.as_ref())));
    let header = RecordHeader::raft(Kind::RaftBase, group, log.peer, log.base.0, log.base.1, log.number + 1);
    RecordIn::new(header, payload)
}
