//! What the records of one Raft group add up to: hard state, base, and where each entry lies.
//!
//! The same `apply` runs when a record has just become durable and when recovery meets it again, so that both see the
//! same log. Recovery may lack volumes that were emptied and recycled: a log may then look as if it had a hole until
//! the trim that made the hole is read. Only at the end must it be sound.

use base::ids::{GroupId, LogIndex, PeerId, Term};
use base::plant::{self, Plant};
use bytes::Bytes;
use std::collections::BTreeMap;

use crate::format::batch::DIRECTORY_LINE_LEN;
use crate::format::raft::{BasePayload, ListedGroup, decode_base, decode_base_outline, decode_trim};
use crate::format::record::{Kind, RECORD_ALIGN, RecordHeader, record_len};
use crate::index::VolumeNumber;

/// One entry of a log as the caller hands it in and gets it back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RaftEntry {
    pub index: LogIndex,
    pub term: Term,
    pub data: Bytes,
}

/// One durable round for one group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RaftWrite {
    pub group: GroupId,
    /// The peer this log belongs to. A write under another peer is refused unless it resets the log.
    pub peer: PeerId,
    pub hard_state: Option<Bytes>,
    /// Empties the log first: the next entry follows this index and term (a snapshot was installed). Keeps the hard
    /// state when the write brings none and the peer stays the same.
    pub reset: Option<(LogIndex, Term)>,
    /// Contiguous. When the first index is at or below the last one, the log is cut there first.
    pub entries: Vec<RaftEntry>,
    /// Entries up to this index may go, now or later.
    pub trim_to: Option<LogIndex>,
}

impl RaftWrite {
    /// Bytes of payload in this write.
    pub fn size_bytes(&self) -> usize {
        self.hard_state.as_ref().map_or(0, Bytes::len) + self.entries.iter().map(|e| e.data.len()).sum::<usize>()
    }
}

/// A whole log, verified.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RaftLog {
    pub peer: PeerId,
    pub hard_state: Option<Bytes>,
    /// Index and term that the first entry follows.
    pub base: (LogIndex, Term),
    pub entries: Vec<RaftEntry>,
}

/// Where an entry's data lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryAt {
    pub term: Term,
    pub volume: VolumeNumber,
    unit: u32,
    /// The data's place inside the record's payload.
    pub part: (u32, u32),
    pub record_payload_len: u32,
    pub damaged: bool,
}

impl EntryAt {
    /// Of the record in its volume, in bytes.
    pub fn offset(&self) -> u64 {
        u64::from(self.unit) * RECORD_ALIGN as u64
    }

    fn cost(&self) -> u64 {
        if self.part.1 == self.record_payload_len {
            record_cost(self.record_payload_len)
        } else {
            u64::from(self.part.1)
        }
    }
}

fn record_cost(payload_len: u32) -> u64 {
    (record_len(payload_len as usize) + DIRECTORY_LINE_LEN) as u64
}

/// A change in what a volume keeps alive: records and bytes, to add or to take away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Weight {
    pub volume: VolumeNumber,
    pub records: i64,
    pub bytes: i64,
}

/// The state of one group.
#[derive(Clone, Debug)]
pub struct GroupLog {
    pub peer: PeerId,
    /// Of the last record.
    pub number: u64,
    pub hard_state: Option<Bytes>,
    pub base: (LogIndex, Term),
    /// By index. While recovery reads there may be holes.
    entries: BTreeMap<LogIndex, EntryAt>,
    /// The group left this disk; kept so that older records do not bring it back.
    pub removed: bool,
    damaged: Option<String>,
    hard_state_damaged: bool,
    /// Some entry was damaged at some time. While none ever was, an asker need not look at each of them.
    entry_was_damaged: bool,
    /// Which volumes hold the records that still matter, beside the entries: (volume, bytes).
    pins: [Option<(VolumeNumber, u64)>; 3],
}

const PIN_HARD_STATE: usize = 0;
const PIN_BASE: usize = 1;
const PIN_DAMAGED: usize = 2;

impl GroupLog {
    pub fn new(peer: PeerId) -> GroupLog {
        GroupLog {
            peer,
            number: 0,
            hard_state: None,
            base: (LogIndex(0), Term(0)),
            entries: BTreeMap::new(),
            removed: false,
            damaged: None,
            hard_state_damaged: false,
            entry_was_damaged: false,
            pins: [None; 3],
        }
    }

    pub fn last(&self) -> LogIndex {
        self.entries.last_key_value().map_or(self.base.0, |(last, _)| *last)
    }

    pub fn entries(&self) -> impl ExactSizeIterator<Item = (LogIndex, &EntryAt)> {
        self.entries.iter().map(|(index, entry)| (*index, entry))
    }

    /// Term of an index that the log still knows.
    pub fn term(&self, index: LogIndex) -> Option<Term> {
        if index == self.base.0 { Some(self.base.1) } else { self.entries.get(&index).map(|entry| entry.term) }
    }

    /// Why this log cannot be trusted, if so.
    pub fn damage(&self) -> Option<String> {
        if self.removed {
            return None;
        }
        if let Some(reason) = &self.damaged {
            return Some(reason.clone());
        }
        if self.hard_state_damaged {
            return Some("the hard state is damaged".into());
        }
        // Asked before every write: without damage, the ends of the log tell whether it is whole.
        let whole_len = self.last().0.saturating_sub(self.base.0.0);
        let starts_at_base = self.entries.first_key_value().is_none_or(|(first, _)| first.0 == self.base.0.0 + 1);
        if !self.entry_was_damaged && starts_at_base && self.entries.len() as u64 == whole_len {
            return None;
        }
        for (expected, (index, entry)) in (self.base.0.0 + 1..).zip(&self.entries) {
            if index.0 != expected {
                return Some(format!("entries from {expected} to before {index} are missing"));
            }
            if entry.damaged {
                return Some(format!("entry {index} is damaged"));
            }
        }
        None
    }

    pub fn mark_damaged(&mut self, reason: &str) {
        self.damaged.get_or_insert_with(|| reason.to_string());
    }

    /// Marks the entry or record at this place damaged; whether it was one of this log's.
    pub fn mark_damaged_at(&mut self, volume: VolumeNumber, offset: u64) -> bool {
        let mut found = false;
        for entry in self.entries.values_mut().filter(|entry| entry.volume == volume && entry.offset() == offset) {
            entry.damaged = true;
            self.entry_was_damaged = true;
            found = true;
        }
        found
    }

    /// Whether the damage is written down in a record of its own.
    pub fn damage_is_recorded(&self) -> bool {
        self.pins[PIN_DAMAGED].is_some()
    }

    pub fn listed(&self, group: GroupId) -> ListedGroup {
        ListedGroup { group, peer: self.peer, number: self.number }
    }

    /// Whether all that this group keeps alive in `volume` is the record of its damage.
    pub fn only_damage_in(&self, volume: VolumeNumber) -> bool {
        let others = self.hard_state_lies_in(volume) || self.base_lies_in(volume) || self.entries_lie_in(volume);
        self.pins[PIN_DAMAGED].is_some_and(|(number, _)| number == volume) && !others
    }

    pub fn hard_state_lies_in(&self, volume: VolumeNumber) -> bool {
        self.pins[PIN_HARD_STATE].is_some_and(|(number, _)| number == volume)
    }

    pub fn base_lies_in(&self, volume: VolumeNumber) -> bool {
        self.pins[PIN_BASE].is_some_and(|(number, _)| number == volume)
    }

    pub fn entries_lie_in(&self, volume: VolumeNumber) -> bool {
        self.entries.values().any(|entry| entry.volume == volume)
    }

    /// Volumes that this group keeps alive.
    pub fn pinned_volumes(&self) -> impl Iterator<Item = VolumeNumber> {
        let pins = self.pins.iter().flatten().map(|(volume, _)| *volume);
        pins.chain(self.entries.values().map(|entry| entry.volume))
    }

    /// Takes in the group's next record. `weigh` hears how the volumes' live weight changes. An entry's payload may be
    /// missing, and of a base record's the outline is enough, which is shorter unless nothing was left out.
    pub fn apply(
        &mut self,
        volume: VolumeNumber,
        offset: u64,
        header: &RecordHeader,
        payload: &[u8],
        weigh: &mut dyn FnMut(Weight),
    ) {
        self.miss_base(header);
        self.number = header.epoch;
        let pin = (volume, record_cost(header.payload_len));
        match header.kind {
            Kind::RaftEntry => {
                let len = header.payload_len;
                let part = (0, len);
                self.push(header.index(), entry_at(Term(header.check), volume, offset, part, len), weigh);
            }
            Kind::RaftHardState => {
                self.hard_state = Some(Bytes::copy_from_slice(payload));
                self.hard_state_damaged = false;
                self.pin(PIN_HARD_STATE, Some(pin), weigh);
            }
            Kind::RaftBase => {
                let is_whole = payload.len() == header.payload_len as usize;
                let decoded =
                    if is_whole { decode_base(payload) } else { decode_base_outline(payload, header.payload_len) };
                match decoded {
                    Ok(base) => self.rebase(volume, offset, header, payload, &base, weigh),
                    Err(error) => self.mark_damaged(&format!("base record: {error}")),
                }
            }
            Kind::RaftTrim => match decode_trim(payload) {
                Ok(last) => self.trim(header.index(), Term(header.check), last, pin, weigh),
                Err(error) => self.mark_damaged(&format!("trim record: {error}")),
            },
            Kind::RaftDamaged => {
                let reason = String::from_utf8_lossy(payload).into_owned();
                self.damaged = Some(reason);
                self.pin(PIN_DAMAGED, Some(pin), weigh);
            }
            Kind::RaftRemove => {
                self.clear(weigh);
                self.removed = true;
                self.pin(PIN_BASE, Some(pin), weigh);
            }
            _ => unreachable!("only Raft records are handed to a group"),
        }
    }

    /// All that was met so far is superseded: by the base of this peer's log, which lay in a volume that is gone because a
    /// later trim stands for it. Where something was damaged, nobody knows whether it was a part of the later log.
    pub fn begin_anew(&mut self, peer: PeerId, weigh: &mut dyn FnMut(Weight)) {
        if self.damaged.is_some() || self.hard_state_damaged || self.entry_was_damaged {
            return self.lose(peer, "records of this log or of an earlier one are damaged");
        }
        self.clear(weigh);
        (self.peer, self.base, self.removed) = (peer, (LogIndex(0), Term(0)), false);
    }

    /// Records of this peer's log are lost, whatever was here before.
    pub fn lose(&mut self, peer: PeerId, reason: &str) {
        if peer != PeerId(0) {
            self.peer = peer;
        }
        self.removed = false;
        self.mark_damaged(reason);
    }

    /// A log begins with a base record. Without it, neither a removed log comes back nor does one peer's follow another's.
    fn miss_base(&mut self, header: &RecordHeader) {
        let follows_a_base = matches!(header.kind, Kind::RaftEntry | Kind::RaftHardState | Kind::RaftTrim);
        let is_another = self.peer != PeerId(0) && self.peer != PeerId(header.owner);
        if follows_a_base && (self.removed || is_another) {
            self.lose(PeerId(header.owner), "the base of the log is lost");
        }
    }

    /// Takes in a record of this group that does not verify, as far as its directory line tells.
    pub fn apply_damaged(
        &mut self,
        volume: VolumeNumber,
        offset: u64,
        kind: Kind,
        index: LogIndex,
        weigh: &mut dyn FnMut(Weight),
    ) {
        self.number += 1;
        // Whatever was lost, the log was in use.
        self.removed &= matches!(kind, Kind::RaftRemove | Kind::RaftDamaged);
        match kind {
            Kind::RaftEntry => {
                let mut entry = entry_at(Term(0), volume, offset, (0, 0), 0);
                entry.damaged = true;
                self.entry_was_damaged = true;
                self.push(index, entry, weigh);
            }
            Kind::RaftHardState => {
                self.hard_state_damaged = true;
                self.pin(PIN_HARD_STATE, Some((volume, 0)), weigh);
            }
            _ => {
                self.mark_damaged("a record of the log's base is damaged");
                self.pin(PIN_DAMAGED, Some((volume, 0)), weigh);
            }
        }
    }

    /// An entry cuts the log before it, also where recovery knows nothing of what was in between: a volume that held
    /// only entries that were overwritten or trimmed later may be gone.
    fn push(&mut self, index: LogIndex, entry: EntryAt, weigh: &mut dyn FnMut(Weight)) {
        if !plant::is(Plant::ResurrectBehindCut) {
            self.cut_from(index, weigh);
        }
        weigh(Weight { volume: entry.volume, records: 1, bytes: entry.cost() as i64 });
        self.entries.insert(index, entry);
    }

    fn cut_from(&mut self, index: LogIndex, weigh: &mut dyn FnMut(Weight)) {
        let cut = self.entries.split_off(&index);
        unweigh(&cut, weigh);
    }

    /// Entries up to `index` go. So does what is behind `last`, where the log ended when the trim was written: the
    /// entry that had cut it may have been trimmed, and its volume be gone.
    fn trim(
        &mut self,
        index: LogIndex,
        term: Term,
        last: LogIndex,
        pin: (VolumeNumber, u64),
        weigh: &mut dyn FnMut(Weight),
    ) {
        self.cut_from(LogIndex(last.0 + 1), weigh);
        let kept = self.entries.split_off(&LogIndex(index.0 + 1));
        let trimmed = std::mem::replace(&mut self.entries, kept);
        unweigh(&trimmed, weigh);
        self.base = (index, term);
        self.pin(PIN_BASE, Some(pin), weigh);
    }

    fn rebase(
        &mut self,
        volume: VolumeNumber,
        offset: u64,
        header: &RecordHeader,
        payload: &[u8],
        base: &BasePayload,
        weigh: &mut dyn FnMut(Weight),
    ) {
        self.clear(weigh);
        self.peer = PeerId(header.owner);
        self.removed = false;
        self.base = (header.index(), Term(header.check));
        self.hard_state =
            base.hard_state.map(|(at, len)| Bytes::copy_from_slice(&payload[at as usize..][..len as usize]));
        self.pin(PIN_BASE, Some((volume, 64)), weigh);
        // A pin of its own: a later trim moves the base elsewhere and leaves the hard state here.
        if let Some(hard_state) = &self.hard_state {
            self.pin(PIN_HARD_STATE, Some((volume, hard_state.len() as u64)), weigh);
        }
        for (index, entry) in (self.base.0.0 + 1..).zip(&base.entries) {
            let part = (entry.offset, entry.len);
            self.push(LogIndex(index), entry_at(entry.term, volume, offset, part, header.payload_len), weigh);
        }
    }

    fn clear(&mut self, weigh: &mut dyn FnMut(Weight)) {
        self.cut_from(LogIndex(0), weigh);
        for which in [PIN_HARD_STATE, PIN_BASE, PIN_DAMAGED] {
            self.pin(which, None, weigh);
        }
        self.hard_state = None;
        self.damaged = None;
        self.hard_state_damaged = false;
    }

    fn pin(&mut self, which: usize, to: Option<(VolumeNumber, u64)>, weigh: &mut dyn FnMut(Weight)) {
        if let Some((volume, bytes)) = std::mem::replace(&mut self.pins[which], to) {
            weigh(Weight { volume, records: -1, bytes: -(bytes as i64) });
        }
        if let Some((volume, bytes)) = to {
            weigh(Weight { volume, records: 1, bytes: bytes as i64 });
        }
    }
}

fn unweigh(entries: &BTreeMap<LogIndex, EntryAt>, weigh: &mut dyn FnMut(Weight)) {
    for entry in entries.values() {
        weigh(Weight { volume: entry.volume, records: -1, bytes: -(entry.cost() as i64) });
    }
}

fn entry_at(term: Term, volume: VolumeNumber, offset: u64, part: (u32, u32), record_payload_len: u32) -> EntryAt {
    let unit = u32::try_from(offset / RECORD_ALIGN as u64).expect("volumes are at most 1 GiB long");
    EntryAt { term, volume, unit, part, record_payload_len, damaged: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::raft::{encode_base, encode_trim};

    struct Bench {
        log: GroupLog,
        weights: std::collections::BTreeMap<VolumeNumber, (i64, i64)>,
        volume: VolumeNumber,
        offset: u64,
        peer: PeerId,
    }

    impl Bench {
        fn new() -> Bench {
            let peer = PeerId(1);
            Bench { log: GroupLog::new(peer), weights: Default::default(), volume: 1, offset: 64, peer }
        }

        fn record(&mut self, kind: Kind, index: u64, term: u64, payload: &[u8]) {
            let number = self.log.number + 1;
            let mut header = RecordHeader::raft(kind, GroupId(7), self.peer, LogIndex(index), Term(term), number);
            header.payload_len = payload.len() as u32;
            let weights = &mut self.weights;
            let mut weigh = |weight: Weight| {
                let line = weights.entry(weight.volume).or_default();
                *line = (line.0 + weight.records, line.1 + weight.bytes);
            };
            self.log.apply(self.volume, self.offset, &header, payload, &mut weigh);
            self.offset += 1024;
        }

        /// As recovery does it that finds the peer of a later log in a list.
        fn begin_anew(&mut self) {
            let weights = &mut self.weights;
            self.log.begin_anew(self.peer, &mut |weight: Weight| {
                let line = weights.entry(weight.volume).or_default();
                *line = (line.0 + weight.records, line.1 + weight.bytes);
            });
        }

        fn indexes(&self) -> Vec<u64> {
            self.log.entries().map(|(index, _)| index.0).collect()
        }
    }

    #[test]
    fn entries_append_cut_and_trim() {
        let mut bench = Bench::new();
        for index in 1..=5 {
            bench.record(Kind::RaftEntry, index, 1, b"x");
        }
        bench.record(Kind::RaftEntry, 3, 2, b"y");
        assert_eq!(bench.indexes(), [1, 2, 3]);
        assert_eq!(bench.log.term(LogIndex(3)), Some(Term(2)));
        bench.record(Kind::RaftTrim, 2, 1, &encode_trim(LogIndex(3)));
        assert_eq!(bench.indexes(), [3]);
        assert_eq!(bench.log.term(LogIndex(2)), Some(Term(1)));
        assert_eq!(bench.log.damage(), None);
        assert_eq!(bench.weights[&1].0, 2);
    }

    #[test]
    fn a_hole_is_damage_unless_a_later_trim_explains_it() {
        let mut bench = Bench::new();
        bench.record(Kind::RaftEntry, 1, 1, b"x");
        bench.record(Kind::RaftEntry, 7, 1, b"x");
        bench.record(Kind::RaftEntry, 8, 1, b"x");
        assert!(bench.log.damage().is_some());
        bench.record(Kind::RaftTrim, 6, 1, &encode_trim(LogIndex(8)));
        assert_eq!(bench.log.damage(), None);
        assert_eq!(bench.indexes(), [7, 8]);
    }

    #[test]
    fn entries_before_a_hole_stay_when_the_hole_is_overwritten() {
        // Indexes 3 and 4 were in a volume that is gone, because they were overwritten.
        let mut bench = Bench::new();
        for index in [1, 2, 5, 6, 3, 4] {
            bench.record(Kind::RaftEntry, index, 1, b"x");
        }
        assert_eq!(bench.log.damage(), None);
        assert_eq!(bench.indexes(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_trim_repeats_the_cut_of_an_entry_that_is_gone() {
        // Entry 2 of term 2 cut 2 to 5, was trimmed, and its volume is gone: 3 to 5 must not come back.
        let mut bench = Bench::new();
        for index in 1..=5 {
            bench.record(Kind::RaftEntry, index, 1, b"x");
        }
        bench.record(Kind::RaftTrim, 2, 2, &encode_trim(LogIndex(2)));
        assert_eq!(bench.indexes(), [0; 0]);
        assert_eq!((bench.log.base, bench.log.last()), ((LogIndex(2), Term(2)), LogIndex(2)));
    }

    #[test]
    fn a_base_supersedes_everything_and_frees_the_old_volume() {
        let mut bench = Bench::new();
        bench.record(Kind::RaftHardState, 0, 0, b"hs");
        bench.record(Kind::RaftEntry, 1, 1, b"x");
        bench.volume = 2;
        let entries = [(Term(3), b"abc".as_slice()), (Term(4), b"".as_slice())];
        let payload = encode_base(Some(b"new"), entries.into_iter());
        bench.record(Kind::RaftBase, 9, 3, &payload);
        assert_eq!(bench.indexes(), [10, 11]);
        assert_eq!(bench.log.hard_state.as_deref(), Some(b"new".as_slice()));
        assert_eq!(bench.weights[&1], (0, 0));
        assert_eq!(bench.weights[&2].0, 4);
    }

    /// The volume with the base was emptied by a trim and recycled, and with it went the vote.
    #[test]
    fn the_hard_state_of_a_base_outlives_a_trim() {
        let mut bench = Bench::new();
        let entries = [(Term(3), b"abc".as_slice())];
        bench.record(Kind::RaftBase, 9, 3, &encode_base(Some(b"vote"), entries.into_iter()));
        bench.volume = 2;
        bench.record(Kind::RaftTrim, 10, 3, &encode_trim(LogIndex(10)));
        assert!(bench.log.pinned_volumes().any(|volume| volume == 1));
        bench.record(Kind::RaftHardState, 0, 0, b"next");
        assert!(bench.log.pinned_volumes().all(|volume| volume == 2));
        assert_eq!(bench.weights[&1], (0, 0));
    }

    /// The volume with the base of a later peer was emptied by its trim and recycled, while that of an earlier peer was
    /// still there: the log was taken for the earlier one's, or for a removed one.
    #[test]
    fn an_earlier_peer_does_not_come_back_when_the_base_of_the_later_one_is_gone() {
        for (removed, rotten, told) in
            [(false, false, true), (true, false, true), (true, true, true), (true, false, false)]
        {
            let mut bench = Bench::new();
            bench.record(Kind::RaftHardState, 0, 0, b"earlier");
            bench.record(Kind::RaftEntry, 1, 1, b"x");
            bench.record(Kind::RaftEntry, 2, 1, b"x");
            if removed {
                bench.record(Kind::RaftRemove, 0, 0, b"");
            }
            (bench.volume, bench.peer) = (2, PeerId(2));
            if told {
                bench.begin_anew();
            }
            if rotten {
                bench.log.apply_damaged(2, 64, Kind::RaftEntry, LogIndex(12), &mut |_| {});
            } else {
                bench.record(Kind::RaftEntry, 12, 4, b"y");
            }
            bench.record(Kind::RaftHardState, 0, 0, b"later");
            bench.record(Kind::RaftTrim, 11, 4, &encode_trim(LogIndex(12)));
            let log = &bench.log;
            assert_eq!(log.damage().is_some(), rotten || !told, "{:?}", log.damage());
            if told {
                assert_eq!((log.peer, log.removed, bench.indexes()), (PeerId(2), false, vec![12]));
                assert_eq!((log.hard_state.as_deref(), log.base), (Some(b"later".as_slice()), (LogIndex(11), Term(4))));
                assert_eq!(bench.weights[&1], (0, 0));
            }
        }
    }

    /// The base of the later peer's log had rotted in a volume that is there still, and with it the vote.
    #[test]
    fn damage_is_not_forgotten_when_another_peer_is_listed() {
        for what in [Kind::RaftBase, Kind::RaftHardState, Kind::RaftEntry] {
            let mut bench = Bench::new();
            bench.record(Kind::RaftHardState, 0, 0, b"earlier");
            bench.log.apply_damaged(1, 64, what, LogIndex(1), &mut |_| {});
            (bench.volume, bench.peer) = (4, PeerId(2));
            bench.begin_anew();
            bench.record(Kind::RaftEntry, 12, 4, b"y");
            bench.record(Kind::RaftTrim, 11, 4, &encode_trim(LogIndex(12)));
            assert!(bench.log.damage().is_some(), "{what:?}");
            assert_eq!(bench.log.peer, PeerId(2), "a reset by the later peer is no new one's");
        }
    }

    /// A removed log of which something was lost afterwards counted as removed: its vote was forgotten without a word.
    #[test]
    fn what_is_lost_behind_a_removal_is_damage() {
        for kind in [Kind::RaftBase, Kind::RaftHardState, Kind::RaftEntry, Kind::RaftTrim] {
            let mut bench = Bench::new();
            bench.record(Kind::RaftEntry, 1, 1, b"x");
            bench.record(Kind::RaftRemove, 0, 0, b"");
            assert_eq!(bench.log.damage(), None);
            bench.log.apply_damaged(1, 64, Kind::RaftRemove, LogIndex(0), &mut |_| {});
            assert_eq!(bench.log.damage(), None, "it stays removed");
            bench.log.apply_damaged(1, 64, kind, LogIndex(3), &mut |_| {});
            assert!(bench.log.damage().is_some(), "{kind:?}");
        }
    }

    #[test]
    fn damage_that_was_superseded_does_not_count() {
        let mut bench = Bench::new();
        bench.record(Kind::RaftEntry, 1, 1, b"x");
        bench.log.apply_damaged(1, 64, Kind::RaftEntry, LogIndex(2), &mut |_| {});
        bench.log.apply_damaged(1, 64, Kind::RaftHardState, LogIndex(0), &mut |_| {});
        assert!(bench.log.damage().is_some());
        bench.record(Kind::RaftHardState, 0, 0, b"hs");
        assert_eq!(bench.log.damage().as_deref(), Some("entry 2 is damaged"));
        bench.record(Kind::RaftEntry, 2, 2, b"y");
        assert_eq!(bench.log.damage(), None);
    }

    #[test]
    fn a_removed_group_stays_removed_until_a_base_brings_it_back() {
        let mut bench = Bench::new();
        bench.record(Kind::RaftEntry, 1, 1, b"x");
        bench.record(Kind::RaftRemove, 0, 0, b"");
        assert!(bench.log.removed && bench.indexes().is_empty());
        bench.record(Kind::RaftBase, 4, 2, &encode_base(None, std::iter::empty()));
        assert!(!bench.log.removed);
        assert_eq!(bench.log.last(), LogIndex(4));
    }
}
