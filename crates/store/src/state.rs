//! What the records of a disk add up to: index, Raft groups, and what each volume keeps alive.
//!
//! `apply` runs once per record: when it has just become durable, and again when recovery meets it. Applying is
//! nearly order-free for chunks (a tombstone always wins, copies are equal), and follows log order for Raft.

use base::ids::{ChunkId, GroupId, PeerId, PgEpoch};
use std::collections::{BTreeMap, BTreeSet};

use crate::format::record::{Kind, Locator, RecordHeader, split_id};
use crate::format::volume::VolumeKind;
use crate::index::{Health, Holder, Index, Live, Slot, TOMBSTONE_COST, VolumeNumber};
use crate::raft_log::{GroupLog, Weight};
use crate::report::{DamagedRecord, DamagedWhat};

/// Most entries of the quarantine list; beyond that, damage is only counted.
pub const DAMAGED_LISTED_MAX: usize = 100_000;

/// What a volume holds.
#[derive(Clone, Debug)]
pub struct Volume {
    pub kind: VolumeKind,
    /// Bytes that count: the head of an open volume, the sealed end of another.
    pub end: u64,
    pub sealed: bool,
    /// Records that still matter. At zero a sealed volume can be recycled.
    pub live_records: i64,
    pub live_bytes: i64,
    /// Of the live bytes, those of tombstones.
    pub tombstone_bytes: i64,
    /// Other journal volumes with (dead) records of chunks that are in this one: mostly those that they were moved from.
    pub elders: BTreeSet<VolumeNumber>,
    /// Bulk: payloads being written whose locators are not durable yet.
    pub pending: u32,
    /// Records nobody can name, or a Raft group's, do not verify: the volume is kept as it is.
    pub pinned: bool,
    /// Live chunks in it that are damaged: until they are repaired or deleted the volume is kept.
    pub damaged_live: i64,
    /// Of the newest finding in it, its number among all findings; 0: there is none.
    pub finding: u64,
    /// What is damaged in it matters to nobody any more: it is to be rewritten and recycled.
    pub rewrite: bool,
}

impl Volume {
    pub fn new(kind: VolumeKind) -> Volume {
        Volume {
            kind,
            end: 0,
            sealed: false,
            live_records: 0,
            live_bytes: 0,
            tombstone_bytes: 0,
            elders: BTreeSet::new(),
            pending: 0,
            pinned: false,
            damaged_live: 0,
            finding: 0,
            rewrite: false,
        }
    }
}

#[derive(Default)]
pub struct State {
    pub index: Index,
    pub volumes: BTreeMap<VolumeNumber, Volume>,
    pub raft: BTreeMap<GroupId, GroupLog>,
    pub damaged: Vec<DamagedRecord>,
    pub damaged_count: u64,
    /// The same id was met with different bytes.
    pub conflicts: u64,
    /// Raft records were lost and it is unknown whose: no unknown group may be trusted to be new.
    pub raft_lost: bool,
    pub next_incarnation: u64,
}

impl State {
    /// Takes in a durable record. `payload` may be empty for a chunk or a Raft entry, and the outline of a base record:
    /// the rest of the bytes does not matter here.
    pub fn apply(&mut self, volume: VolumeNumber, offset: u64, header: &RecordHeader, payload: &[u8]) {
        match header.kind {
            Kind::Chunk => {
                let live = Live {
                    len: header.payload_len,
                    crc64: header.check,
                    epoch: PgEpoch(header.epoch as u32),
                    volume,
                    offset,
                    journal: volume,
                    apart: header.apart,
                    health: Health::Good,
                    copies: false,
                };
                self.store(header.chunk_id(), live);
            }
            Kind::Locator => match Locator::decode(payload) {
                Ok(locator) => self.store(header.chunk_id(), located(header, &locator, volume)),
                Err(error) => {
                    self.note_damage(volume, offset, DamagedWhat::Chunk(header.chunk_id()), &error.to_string())
                }
            },
            Kind::Tombstone => self.delete(header.chunk_id(), volume),
            Kind::Evicted => self.evict(header.chunk_id(), volume),
            Kind::VolumeDropped => self.drop_volume(header.incarnation()),
            kind if kind.is_raft() => self.apply_raft(volume, offset, header, payload),
            _ => {}
        }
    }

    fn apply_raft(&mut self, volume: VolumeNumber, offset: u64, header: &RecordHeader, payload: &[u8]) {
        let volumes = &mut self.volumes;
        let log = self.raft.entry(header.group()).or_insert_with(|| GroupLog::new(PeerId(header.owner)));
        log.apply(volume, offset, header, payload, &mut |weight| weigh(volumes, weight));
    }

    /// What is known of a group's log is from before the one that this peer has begun.
    pub fn begin_raft_anew(&mut self, group: GroupId, peer: PeerId) {
        let volumes = &mut self.volumes;
        if let Some(log) = self.raft.get_mut(&group) {
            log.begin_anew(peer, &mut |weight| weigh(volumes, weight));
        }
    }

    /// Takes in a record that does not verify, by what its directory line says it is.
    pub fn apply_damaged(&mut self, volume: VolumeNumber, offset: u64, kind: Kind, id: &[u8; 16], detail: &str) {
        let chunk = ChunkId::from_bytes(*id);
        let (group, index) = split_id(id);
        let what = match kind {
            Kind::Chunk | Kind::Locator => DamagedWhat::Chunk(chunk),
            kind if kind.is_raft() => DamagedWhat::Raft(group),
            _ => DamagedWhat::Bookkeeping,
        };
        self.note_damage(volume, offset, what, detail);
        match kind {
            Kind::Chunk | Kind::Locator => self.store_damaged(chunk, volume, offset),
            // A tombstone is nothing but its id, and the directory verified.
            Kind::Tombstone => self.delete(chunk, volume),
            Kind::Evicted => self.evict(chunk, volume),
            kind if kind.is_raft() => {
                let volumes = &mut self.volumes;
                let log = self.raft.entry(group).or_insert_with(|| GroupLog::new(PeerId(0)));
                log.apply_damaged(volume, offset, kind, index, &mut |weight| weigh(volumes, weight));
            }
            _ => {}
        }
    }

    fn store_damaged(&mut self, id: ChunkId, volume: VolumeNumber, offset: u64) {
        // A good copy elsewhere on this disk (compaction was about to drop one of them) makes this one irrelevant.
        if let Some(Slot::Live(good @ Live { health: Health::Good, .. })) = self.index.get(id) {
            self.note_copy(id, good, volume);
            return;
        }
        let health = Health::Unknown;
        let (epoch, copies) = (PgEpoch(0), false);
        self.store(id, Live { len: 0, crc64: 0, epoch, volume, offset, journal: volume, apart: 0, health, copies });
    }

    /// Writes a finding into the quarantine list and keeps its volume from being recycled.
    pub fn note_damage(&mut self, volume: VolumeNumber, offset: u64, what: DamagedWhat, detail: &str) {
        let record = DamagedRecord { volume: u64::from(volume), offset, what, detail: detail.to_string() };
        // What was known is no news: whoever watches the count would look for its cause again and again.
        let known = self.damaged.iter().any(|d| d.volume == record.volume && d.offset == offset && d.what == what);
        if known {
            return;
        }
        self.damaged_count += 1;
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.pinned |= matches!(what, DamagedWhat::Raft(_) | DamagedWhat::Unknown { .. });
            (volume.finding, volume.rewrite) = (self.damaged_count, false);
        }
        if self.damaged.len() < DAMAGED_LISTED_MAX {
            self.damaged.push(record);
        }
    }

    /// Whatever the first `findings` findings may have cost this disk, it has again, or nobody needs it: the journal
    /// volumes with them are to be rewritten. Answers how many.
    pub fn release_damage(&mut self, findings: u64) -> usize {
        let is_due = |volume: &&mut Volume| {
            volume.kind == VolumeKind::Journal && (1..=findings).contains(&volume.finding) && !volume.rewrite
        };
        let due = self.volumes.values_mut().filter(is_due);
        due.map(|volume| (volume.pinned, volume.rewrite) = (false, true)).count()
    }

    /// Whether this stretch of a volume was found unreadable before.
    pub fn is_known_hole(&self, volume: VolumeNumber, hole: &std::ops::Range<u64>) -> bool {
        let is_it = |known: &DamagedRecord| match known.what {
            DamagedWhat::Unknown { len_bytes } => {
                let end = known.offset + len_bytes;
                known.volume == u64::from(volume) && known.offset <= hole.start && hole.end <= end
            }
            _ => false,
        };
        self.damaged.iter().any(is_it)
    }

    /// Journal volumes with findings that [`State::release_damage`] was not told about yet.
    pub fn volumes_with_damage(&self) -> u64 {
        let is_held = |volume: &&Volume| volume.kind == VolumeKind::Journal && volume.finding > 0 && !volume.rewrite;
        self.volumes.values().filter(is_held).count() as u64
    }

    fn store(&mut self, id: ChunkId, mut live: Live) {
        match self.index.get(id) {
            Some(Slot::Deleted { journal, holder }) => {
                self.index.set(id, Slot::Deleted { journal, holder: holder.with(live.journal) });
                return;
            }
            // It comes back. The mark is dead: whatever it stood against is superseded by this record.
            Some(Slot::Evicted { journal, holder }) => {
                self.weigh_tombstone(journal, -1);
                live.copies = true;
                let elders = match holder {
                    Holder::None => vec![journal],
                    Holder::One(number) => vec![journal, number],
                    Holder::Many => self.volumes.keys().copied().collect(),
                };
                self.note_elders(live.journal, elders);
            }
            Some(Slot::Live(old)) => {
                let differs = (old.len, old.crc64) != (live.len, live.crc64);
                if differs && old.health == Health::Good && live.health == Health::Good {
                    // Refused at run time, so this is damage that happens to verify, or a bug. The first one stays.
                    self.conflicts += 1;
                    self.note_damage(live.journal, live.offset, DamagedWhat::Chunk(id), "other bytes under a known id");
                    self.note_copy(id, old, live.journal);
                    return;
                }
                if (old.volume, old.offset) == (live.volume, live.offset) {
                    // Compaction moved only the locator: the bytes are where they were, and as damaged as they were.
                    live.health = old.health;
                }
                self.release(&old);
                live.copies = old.copies || old.journal != live.journal;
                if live.copies && old.journal != live.journal {
                    let its = self.volumes.get(&old.journal).filter(|_| old.copies).map(|volume| volume.elders.clone());
                    self.note_elders(live.journal, its.into_iter().flatten().chain([old.journal]).collect());
                }
            }
            None => {}
        }
        self.weigh_live(&live, 1);
        self.index.set(id, Slot::Live(live));
    }

    /// A record of this chunk in `journal` does not count, and will be there when the chunk's tombstone may not be.
    fn note_copy(&mut self, id: ChunkId, live: Live, journal: VolumeNumber) {
        self.note_elders(live.journal, vec![journal]);
        self.index.set(id, Slot::Live(Live { copies: live.copies || journal != live.journal, ..live }));
    }

    /// A chunk whose record is now in `journal` may have left records in these volumes.
    fn note_elders(&mut self, journal: VolumeNumber, mut elders: Vec<VolumeNumber>) {
        elders.retain(|elder| *elder != journal && self.volumes.contains_key(elder));
        if let Some(volume) = self.volumes.get_mut(&journal) {
            volume.elders.extend(elders);
        }
    }

    /// Who has records of this chunk. A chunk that was moved has left some only where the volume it came from is there
    /// still, because something else in it stays: one that is compacted whole is gone a moment later.
    fn holder_of(&self, live: &Live) -> Holder {
        let is_there = |elder: &VolumeNumber| self.volumes.contains_key(elder);
        let volume = self.volumes.get(&live.journal);
        if live.copies && volume.is_none_or(|volume| volume.elders.iter().any(is_there)) {
            return Holder::Many;
        }
        Holder::One(live.journal)
    }

    fn delete(&mut self, id: ChunkId, journal: VolumeNumber) {
        let holder = match self.index.get(id) {
            None => Holder::None,
            Some(Slot::Live(old)) => {
                self.release(&old);
                self.holder_of(&old)
            }
            Some(Slot::Deleted { journal: old, holder }) => {
                self.weigh_tombstone(old, -1);
                holder
            }
            Some(Slot::Evicted { journal: old, holder }) => {
                self.weigh_tombstone(old, -1);
                holder.with(old)
            }
        };
        self.weigh_tombstone(journal, 1);
        self.index.set(id, Slot::Deleted { journal, holder });
    }

    /// Takes in that a chunk left this disk. Unlike a tombstone, it counts only for what came before it.
    fn evict(&mut self, id: ChunkId, journal: VolumeNumber) {
        let holder = match self.index.get(id) {
            None => Holder::None,
            Some(Slot::Deleted { .. }) => return,
            Some(Slot::Live(old)) => {
                self.release(&old);
                self.holder_of(&old)
            }
            Some(Slot::Evicted { journal: old, holder }) => {
                self.weigh_tombstone(old, -1);
                holder
            }
        };
        self.weigh_tombstone(journal, 1);
        self.index.set(id, Slot::Evicted { journal, holder });
    }

    /// Forgets a tombstone (or evicted mark) whose volume has just been dropped.
    pub fn forget_tombstone(&mut self, id: ChunkId, dropped: VolumeNumber) {
        if self.index.get(id).and_then(|slot| slot.mark()).is_some_and(|(journal, _)| journal == dropped) {
            self.index.remove(id);
        }
    }

    fn drop_volume(&mut self, incarnation: u64) {
        self.next_incarnation = self.next_incarnation.max(incarnation.saturating_add(1));
        if let Ok(number) = VolumeNumber::try_from(incarnation) {
            self.volumes.remove(&number);
            self.damaged.retain(|record| record.volume != incarnation);
        }
    }

    /// Marks a live chunk damaged after a read found it so. Returns whether it was still the one at that place.
    pub fn mark_damaged(&mut self, id: ChunkId, volume: VolumeNumber, offset: u64, detail: &str) -> bool {
        let Some(Slot::Live(live)) = self.index.get(id) else { return false };
        if (live.volume, live.offset) != (volume, offset) {
            return false;
        }
        if live.health == Health::Good {
            self.weigh_live(&live, -1);
            let live = Live { health: Health::Damaged, ..live };
            self.weigh_live(&live, 1);
            self.index.set(id, Slot::Live(live));
        }
        self.note_damage(volume, offset, DamagedWhat::Chunk(id), detail);
        true
    }

    fn release(&mut self, old: &Live) {
        self.weigh_live(old, -1);
    }

    fn weigh_live(&mut self, live: &Live, sign: i64) {
        self.weigh(live.journal, sign, sign * live.journal_cost() as i64);
        if live.is_large() {
            self.weigh(live.volume, sign, sign * live.bulk_cost() as i64);
        }
        if live.health != Health::Good {
            for number in [live.journal, live.volume] {
                if let Some(volume) = self.volumes.get_mut(&number) {
                    volume.damaged_live += sign;
                }
            }
        }
    }

    fn weigh_tombstone(&mut self, volume: VolumeNumber, sign: i64) {
        self.weigh(volume, sign, sign * TOMBSTONE_COST as i64);
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.tombstone_bytes += sign * TOMBSTONE_COST as i64;
        }
    }

    fn weigh(&mut self, volume: VolumeNumber, records: i64, bytes: i64) {
        weigh(&mut self.volumes, Weight { volume, records, bytes });
    }

    /// Declares the logs of all groups here untrustworthy.
    pub fn mark_all_raft_damaged(&mut self, reason: &str) {
        self.raft_lost = true;
        for log in self.raft.values_mut() {
            log.mark_damaged(reason);
        }
    }

    /// The quarantine list, less the chunks that were repaired or deleted since.
    pub fn quarantine(&self) -> Vec<DamagedRecord> {
        self.findings().filter(|(_, dead)| !dead).map(|(record, _)| record).collect()
    }

    /// All damage that was found; where a record had been superseded, as damage by which nothing was lost.
    pub fn all_damage(&self) -> Vec<DamagedRecord> {
        let as_told = |(record, dead)| {
            if dead { DamagedRecord { what: DamagedWhat::Bookkeeping, ..record } } else { record }
        };
        self.findings().map(as_told).collect()
    }

    /// Each finding, and whether it is about a chunk that does not need the damaged record any more.
    fn findings(&self) -> impl Iterator<Item = (DamagedRecord, bool)> {
        self.damaged.iter().map(|record| {
            let needed = match record.what {
                DamagedWhat::Chunk(id) => {
                    matches!(self.index.get(id), Some(Slot::Live(live)) if live.health != Health::Good)
                }
                _ => true,
            };
            (record.clone(), !needed)
        })
    }

    /// Whether a tombstone may go together with its volume: no other volume holds a record of its chunk. A chunk is
    /// never written after its tombstone, so the oldest journal volume has all that could matter in itself.
    pub fn tombstone_is_idle(&self, id: ChunkId, own: VolumeNumber) -> bool {
        let Some((journal, holder)) = self.index.get(id).and_then(|slot| slot.mark()) else { return false };
        if journal != own {
            return false;
        }
        match holder {
            Holder::None => true,
            Holder::One(number) => number == own || !self.volumes.contains_key(&number),
            Holder::Many => self.is_oldest_journal(own),
        }
    }

    pub fn is_oldest_journal(&self, number: VolumeNumber) -> bool {
        let mut journals = self.volumes.iter().filter(|(_, volume)| volume.kind == VolumeKind::Journal);
        journals.next().is_some_and(|(oldest, _)| *oldest == number)
    }
}

fn weigh(volumes: &mut BTreeMap<VolumeNumber, Volume>, weight: Weight) {
    // A volume that is not (or no longer) there has no weight to keep: recovery may meet records that speak of it.
    if let Some(volume) = volumes.get_mut(&weight.volume) {
        volume.live_records += weight.records;
        volume.live_bytes += weight.bytes;
    }
}

fn located(header: &RecordHeader, locator: &Locator, journal: VolumeNumber) -> Live {
    Live {
        len: locator.len,
        crc64: header.check,
        epoch: PgEpoch(header.epoch as u32),
        volume: VolumeNumber::try_from(locator.incarnation).unwrap_or(VolumeNumber::MAX),
        offset: locator.offset,
        journal,
        apart: 0,
        health: Health::Good,
        copies: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::{LogIndex, OwnerId, Term};

    fn state() -> State {
        let mut state = State::default();
        for number in 1..=4 {
            state.volumes.insert(number, Volume::new(VolumeKind::Journal));
        }
        state
    }

    fn chunk(id: u128, len: u32) -> RecordHeader {
        let mut header =
            RecordHeader::chunk(Kind::Chunk, ChunkId::from_u128(id), OwnerId(1), PgEpoch(1), u64::from(len) * 31);
        header.payload_len = len;
        header
    }

    fn tombstone(id: u128) -> RecordHeader {
        RecordHeader::chunk(Kind::Tombstone, ChunkId::from_u128(id), OwnerId(0), PgEpoch(0), 0)
    }

    #[test]
    fn a_tombstone_wins_in_any_order_and_remembers_who_holds_the_dead_record() {
        let mut state = state();
        state.apply(1, 64, &chunk(5, 100), &[]);
        state.apply(2, 64, &tombstone(5), &[]);
        let id = ChunkId::from_u128(5);
        assert_eq!(state.index.get(id), Some(Slot::Deleted { journal: 2, holder: Holder::One(1) }));
        state.apply(3, 64, &chunk(5, 100), &[]);
        assert_eq!(state.index.get(id), Some(Slot::Deleted { journal: 2, holder: Holder::Many }));
        assert_eq!(state.volumes[&1].live_records, 0);
        assert_eq!(state.volumes[&1].live_bytes, 0);
        assert_eq!(state.volumes[&2].live_records, 1);
        assert_eq!(state.volumes[&3].live_records, 0);
    }

    #[test]
    fn a_moved_chunk_is_held_by_one_volume_once_those_it_came_from_are_gone() {
        let id = ChunkId::from_u128(5);
        for (gone, holder) in [(vec![], Holder::Many), (vec![2], Holder::Many), (vec![1, 2], Holder::One(3))] {
            let mut state = state();
            for volume in 1..=3 {
                state.apply(volume, 64, &chunk(5, 100), &[]);
            }
            for number in gone {
                state.drop_volume(number);
            }
            state.apply(4, 64, &tombstone(5), &[]);
            assert_eq!(state.index.get(id), Some(Slot::Deleted { journal: 4, holder }));
        }
    }

    /// A record that rotted before a crash gave its chunk back, once the good copy, the chunk and its tombstone were gone.
    #[test]
    fn a_damaged_record_beside_a_good_copy_keeps_the_tombstone() {
        let id = ChunkId::from_u128(5);
        let mut state = state();
        state.apply(1, 64, &chunk(5, 100), &[]);
        state.apply_damaged(2, 64, Kind::Chunk, &id.to_bytes(), "flip");
        state.apply(3, 64, &chunk(5, 100), &[]);
        state.drop_volume(1);
        state.apply(4, 64, &tombstone(5), &[]);
        assert_eq!(state.index.get(id), Some(Slot::Deleted { journal: 4, holder: Holder::Many }));
        assert!(!state.tombstone_is_idle(id, 4));
    }

    #[test]
    fn moving_a_chunk_moves_its_weight() {
        let mut state = state();
        state.apply(1, 64, &chunk(5, 100), &[]);
        let bytes = state.volumes[&1].live_bytes;
        state.apply(2, 64, &chunk(5, 100), &[]);
        assert_eq!((state.volumes[&1].live_records, state.volumes[&1].live_bytes), (0, 0));
        assert_eq!((state.volumes[&2].live_records, state.volumes[&2].live_bytes), (1, bytes));
    }

    #[test]
    fn a_good_copy_beats_a_damaged_one_and_other_bytes_never_replace() {
        let mut state = state();
        let id = ChunkId::from_u128(5);
        state.apply_damaged(1, 64, Kind::Chunk, &id.to_bytes(), "flip");
        assert!(matches!(state.index.get(id), Some(Slot::Live(Live { health: Health::Unknown, .. }))));
        state.apply(2, 64, &chunk(5, 100), &[]);
        state.apply_damaged(3, 64, Kind::Chunk, &id.to_bytes(), "flip");
        let Some(Slot::Live(live)) = state.index.get(id) else { panic!("live") };
        assert_eq!((live.volume, live.health), (2, Health::Good));
        state.apply(4, 64, &chunk(5, 101), &[]);
        let Some(Slot::Live(live)) = state.index.get(id) else { panic!("live") };
        assert_eq!((live.volume, live.len), (2, 100));
        assert_eq!(state.conflicts, 1);
    }

    /// A read found a large chunk damaged; then compaction moved its locator, and `status` said that all was well.
    #[test]
    fn moving_the_locator_of_a_damaged_chunk_does_not_heal_it() {
        let mut state = state();
        let id = ChunkId::from_u128(5);
        let live = Live {
            len: 1 << 20,
            crc64: 1,
            epoch: PgEpoch(1),
            volume: 4,
            offset: 4096,
            journal: 1,
            apart: 0,
            health: Health::Good,
            copies: false,
        };
        state.store(id, live);
        assert!(state.mark_damaged(id, 4, 4096, "payload block 0"));
        state.store(id, Live { journal: 2, ..live });
        assert_eq!(state.quarantine().len(), 1);
        state.store(id, Live { volume: 3, offset: 8192, ..live });
        assert!(state.quarantine().is_empty(), "a copy elsewhere is a repair");
    }

    #[test]
    fn a_damaged_raft_record_damages_its_group_only() {
        let mut state = state();
        for group in [1, 2] {
            let header = RecordHeader::raft(Kind::RaftEntry, GroupId(group), PeerId(1), LogIndex(1), Term(1), 1);
            state.apply(1, 64 * group, &header, &[]);
        }
        let id = crate::format::record::raft_id(GroupId(1), LogIndex(2));
        state.apply_damaged(1, 640, Kind::RaftEntry, &id, "flip");
        assert!(state.raft[&GroupId(1)].damage().is_some());
        assert_eq!(state.raft[&GroupId(2)].damage(), None);
    }
}
