//! Finds out what a disk holds: which volumes are live, then every record of every journal volume in order.
//!
//! 1. The newest journal volume whose first batch verifies lists all live volumes.
//!    Less those that were dropped since.
//! 2. Each listed journal volume is walked up to its sealed end, or its summary is read instead, then those that were
//!    being written.
//! 3. Every record is applied to the state as it was when it became durable; damage is written into the report.
//! 4. What is missing, or points nowhere, is damage too.
//!
//! Nothing is written here: `inspect` uses the same code.

use base::env::{Disk, OpenMode};
use base::ids::{DiskId, PeerId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::committer::Cut;
use crate::errors::StoreError;
use crate::format::Seed;
use crate::format::batch::{self, BatchHeader, Contents, Parsed};
use crate::format::raft::decode_raft_list;
use crate::format::record::{Kind, RecordHeader};
use crate::format::summary::{Line, SummaryEnd, parse_summary_name};
use crate::format::volume::{END_OPEN, VolumeKind, VolumeList, VolumeName};
use crate::index::{Slot, VolumeNumber, bulk_len};
use crate::raft_log::GroupLog;
use crate::read::{self, ReadFailure, RecordReader};
use crate::report::{DamagedWhat, RecoveryReport};
use crate::scan::{Extent, FoundBatch, Item, ScanEnd, read_tolerant, scan};
use crate::state::{State, Volume};
use crate::summary_file::Summary;
use crate::volume_file::VolumeFile;

/// What a disk holds.
pub struct Recovered {
    pub state: State,
    pub files: BTreeMap<VolumeNumber, Arc<VolumeFile>>,
    /// Files that hold nothing: free ones, and those that were dropped or never used.
    pub spare: Vec<VolumeName>,
    /// Where the journal was cut.
    pub cut: Cut,
    /// Journal volumes that were not read, because their summaries were.
    pub summarised: BTreeSet<VolumeNumber>,
    /// Volumes, perhaps gone, with summaries that were of no use.
    pub stale_summaries: Vec<VolumeNumber>,
    /// Journal volumes whose ends were found, not listed: what was read there may not be on stable storage yet.
    pub unsealed: Vec<VolumeNumber>,
    pub report: RecoveryReport,
}

/// Where the records of sealed journal volumes are taken from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// From their summaries, as far as there are any: damage in them shows when they are read. But for the live
    /// entries of Raft logs: those are read here.
    Summaries,
    /// From the volumes: all damage shows.
    Volumes,
}

pub async fn recover(disk: &Arc<dyn Disk>, disk_id: DiskId, source: Source) -> Result<Recovered, StoreError> {
    let (names, summaries) = list(disk)?;
    let mut files = BTreeMap::new();
    for name in &names {
        if let VolumeName::Live(_, incarnation) = *name {
            let seed = Seed { disk: disk_id, incarnation };
            let file = VolumeFile::open(disk.as_ref(), *name, seed, OpenMode::Existing)
                .map_err(|error| StoreError::io(&format!("opening {name}"), &error))?;
            files.insert(number_of(incarnation)?, Arc::new(file));
        }
    }
    let newest = newest_list(&files).await;
    let mut plan = Plan::make(&files, newest);
    if source == Source::Summaries {
        plan.summaries = summaries.iter().copied().collect();
    }
    let (replay, cut, unsealed) = loop {
        match replay(&plan, disk.as_ref(), &files, &names).await {
            Ok(done) if !plan.forget(&done.0.dropped) => break done,
            Ok(_) => {}
            Err(Stopped::Disbelieved(volume)) => plan.disbelieve(volume),
            Err(Stopped::Unread(error)) => return Err(error),
        }
    };
    let Replay { mut state, mut report, summarised, .. } = replay;
    verify_logs(&mut state, &files, &summarised).await;
    report.summarised = summarised.len() as u64;
    report.volumes = state.volumes.len() as u64;
    report.damaged = state.all_damage();
    report.raft_damaged =
        state.raft.iter().filter(|(_, log)| log.damage().is_some()).map(|(group, _)| *group).collect();
    let mut spare: Vec<_> = names.into_iter().filter(|name| matches!(name, VolumeName::Free(_))).collect();
    spare.extend(files.iter().filter(|(number, _)| !state.volumes.contains_key(number)).map(|(_, file)| file.name));
    files.retain(|number, _| state.volumes.contains_key(number));
    let stale_summaries = summaries.into_iter().filter(|number| !summarised.contains(number)).collect();
    Ok(Recovered { state, files, spare, cut, summarised, stale_summaries, unsealed, report })
}

/// Why records are not all read.
enum Stopped {
    /// The summary of this volume is not what it seemed.
    Disbelieved(VolumeNumber),
    /// The disk does not read what may be the newest of them.
    Unread(StoreError),
}

/// Reads every record that counts by this plan. Gives where the journal was cut, too, and the volumes whose ends were
/// found rather than listed.
async fn replay(
    plan: &Plan,
    disk: &dyn Disk,
    files: &BTreeMap<VolumeNumber, Arc<VolumeFile>>,
    names: &[VolumeName],
) -> Result<(Replay, Cut, Vec<VolumeNumber>), Stopped> {
    let mut replay = Replay::new(plan);
    for incarnation in names.iter().map(incarnation_of) {
        replay.state.next_incarnation = replay.state.next_incarnation.max(incarnation.saturating_add(1));
    }
    for (number, kind) in &plan.live {
        replay.state.volumes.insert(*number, Volume { sealed: true, ..Volume::new(*kind) });
    }
    let (mut cut, mut unsealed) = (Cut::default(), Vec::new());
    for (number, extent) in &plan.journals {
        let file = &files[number];
        replay.begin(*number);
        let by_summary = summarised(plan, &mut replay, disk, file, *number, *extent).await;
        if let Some(end) = by_summary.map_err(Stopped::Disbelieved)? {
            cut = Cut { incarnation: u64::from(*number), end: end.volume_end, checksum: end.checksum };
            continue;
        }
        let extent = extent.unwrap_or(Extent::Open(file.written_end()));
        let end = scan(&file.file, file.seed, extent, &mut |item| replay.item(item)).await;
        if let (Extent::Open(_), Some(why)) = (extent, &end.unread) {
            let name = &file.name;
            let what = format!(
                "{name}, where its end is looked for ({why}): what cannot be read may have been acknowledged, so nothing is cut; \
                 start again when the disk reads, or replace it"
            );
            return Err(Stopped::Unread(StoreError::Io(what)));
        }
        replay.end(extent, &end);
        if end.last.is_some() || matches!(extent, Extent::Sealed(_)) {
            let checksum = end.last.map_or(0, |last| last.checksum);
            cut = Cut { incarnation: u64::from(*number), end: end.end, checksum };
            if matches!(extent, Extent::Open(_)) {
                unsealed.push(*number);
            }
        } else {
            replay.state.volumes.remove(number);
        }
    }
    replay.finish(files);
    Ok((replay, cut, unsealed))
}

/// Replays a sealed volume by its summary, if there is one that is about all of it.
async fn summarised(
    plan: &Plan,
    replay: &mut Replay,
    disk: &dyn Disk,
    file: &VolumeFile,
    number: VolumeNumber,
    extent: Option<Extent>,
) -> Result<Option<SummaryEnd>, VolumeNumber> {
    let Some(Extent::Sealed(end)) = extent.filter(|_| plan.summaries.contains(&number)) else { return Ok(None) };
    let Some(summary) = Summary::open(disk, file, end).await else { return Ok(None) };
    summary.read(&mut |line| replay.line(&line)).await.map_err(|_| number)?;
    replay.end_of_lines(&summary.end);
    Ok(Some(summary.end))
}

/// Reads the live entries of Raft logs in volumes that were not read: a peer that has lost some must know it before it
/// votes.
async fn verify_logs(
    state: &mut State,
    files: &BTreeMap<VolumeNumber, Arc<VolumeFile>>,
    summarised: &BTreeSet<VolumeNumber>,
) {
    let mut found = Vec::new();
    for (group, log) in state.raft.iter().filter(|(_, log)| log.damage().is_none()) {
        let mut reader = RecordReader::new();
        for (_, at) in log.entries().filter(|(_, at)| summarised.contains(&at.volume)) {
            let read = read::raft_entry(&mut reader, files, *group, log.peer, at).await;
            if let Err(ReadFailure::Damaged(detail) | ReadFailure::Io(detail)) = read {
                found.push((*group, at.volume, at.offset(), detail));
            }
        }
    }
    for (group, volume, offset, detail) in found {
        state.note_damage(volume, offset, DamagedWhat::Raft(group), &detail);
        state.raft.get_mut(&group).expect("it was met above").mark_damaged_at(volume, offset);
    }
}

/// The volumes' files, and the volumes that have a summary.
fn list(disk: &Arc<dyn Disk>) -> Result<(Vec<VolumeName>, Vec<VolumeNumber>), StoreError> {
    let entries = disk.list().map_err(|error| StoreError::io("listing the disk directory", &error))?;
    let names = entries.iter().filter_map(|entry| VolumeName::parse(&entry.name)).collect();
    let summaries = entries.iter().filter_map(|entry| parse_summary_name(&entry.name));
    Ok((names, summaries.filter_map(|incarnation| VolumeNumber::try_from(incarnation).ok()).collect()))
}

pub fn incarnation_of(name: &VolumeName) -> u64 {
    let (VolumeName::Live(_, incarnation) | VolumeName::Free(incarnation)) = *name;
    incarnation
}

/// Incarnations are counted up from 1; a disk would wear out long before it has used 2^32 of them.
pub fn number_of(incarnation: u64) -> Result<VolumeNumber, StoreError> {
    VolumeNumber::try_from(incarnation)
        .map_err(|_| StoreError::Foreign(format!("a volume file with the impossible incarnation {incarnation}")))
}

/// The list that opens the newest journal volume that has one, and that volume's number.
async fn newest_list(files: &BTreeMap<VolumeNumber, Arc<VolumeFile>>) -> Option<(VolumeNumber, VolumeList)> {
    for (number, file) in files.iter().rev().filter(|(_, file)| is_journal(file)) {
        if let Some(list) = first_list(file).await {
            return Some((*number, list));
        }
    }
    None
}

fn is_journal(file: &VolumeFile) -> bool {
    matches!(file.name, VolumeName::Live(VolumeKind::Journal, _))
}

async fn first_list(file: &VolumeFile) -> Option<VolumeList> {
    let block = read_tolerant(&file.file, 0, base::buffer::BLOCK as u64).await;
    let header = BatchHeader::decode(&block, file.seed, 0).ok()?;
    if header.end() > file.written_end() {
        return None;
    }
    let data = read_tolerant(&file.file, 0, u64::from(header.len)).await;
    let contents: Contents = batch::parse(&data, &header, file.seed);
    let listed = contents.records.into_iter().find(|record| record.kind == Kind::VolumeList)?;
    let (_, payload) = listed.content.ok()?;
    VolumeList::decode(&data[payload]).ok()
}

/// Which volumes are live and how far each counts, before any record is read.
#[derive(Default)]
struct Plan {
    live: BTreeMap<VolumeNumber, VolumeKind>,
    /// In order; those without an extent were being written.
    journals: BTreeMap<VolumeNumber, Option<Extent>>,
    /// Listed, and no file is there.
    missing: BTreeSet<VolumeNumber>,
    /// Of these volumes the summaries may be read instead, where they are sealed.
    summaries: BTreeSet<VolumeNumber>,
    disbelieved: usize,
}

/// Each summary that turns out to be damaged has everything read again. After so many none is believed any more.
const DISBELIEVED_MAX: usize = 3;

impl Plan {
    fn make(files: &BTreeMap<VolumeNumber, Arc<VolumeFile>>, newest: Option<(VolumeNumber, VolumeList)>) -> Plan {
        let mut plan = Plan::default();
        let (list_number, list) = newest.unwrap_or_default();
        for (number, file) in files {
            let VolumeName::Live(kind, _) = file.name else { continue };
            // What was made after the list was written is not in it.
            let after = u64::from(*number) >= list.next_incarnation || *number >= list_number;
            let listed = list.volumes.iter().find(|listed| listed.incarnation == u64::from(*number));
            if listed.is_none() && !after {
                continue;
            }
            plan.live.insert(*number, kind);
            if kind == VolumeKind::Journal {
                let sealed = listed.filter(|listed| listed.end != END_OPEN);
                plan.journals.insert(*number, sealed.map(|listed| Extent::Sealed(listed.end)));
            }
        }
        for listed in &list.volumes {
            if let Ok(number) = VolumeNumber::try_from(listed.incarnation)
                && !plan.live.contains_key(&number)
            {
                plan.missing.insert(number);
            }
        }
        plan
    }

    /// The summary of this volume is not to be read again.
    fn disbelieve(&mut self, volume: VolumeNumber) {
        self.summaries.remove(&volume);
        self.disbelieved += 1;
        if self.disbelieved >= DISBELIEVED_MAX {
            self.summaries.clear();
        }
    }

    /// Takes out what was dropped after the list was written: it may be missing, and does not count where its file
    /// has kept its name. Whether that changed anything, so that the records must be read again.
    fn forget(&mut self, dropped: &[VolumeNumber]) -> bool {
        let mut changed = false;
        for number in dropped {
            changed |= self.missing.remove(number);
            changed |= self.live.remove(number).is_some();
            self.journals.remove(number);
        }
        changed
    }
}

/// Applies the records and keeps the books about what is missing among them.
struct Replay {
    state: State,
    report: RecoveryReport,
    missing: BTreeSet<VolumeNumber>,
    volume: VolumeNumber,
    previous: VolumeNumber,
    /// Raft records of this volume so far, as the batch headers count them.
    raft_seen: u32,
    /// Of these, how many were lost nameless, and how many of them the groups' own numbers account for.
    raft_lost: u64,
    raft_attributed: u64,
    /// The last thing met was a stretch that may have held anything.
    unknown_open: bool,
    /// An earlier volume lost Raft records that are not accounted for yet.
    unaccounted: bool,
    /// This volume follows the one walked before it, so that its list of groups must agree.
    direct: bool,
    successor: Option<u64>,
    /// Volumes that a later record says were let go of.
    dropped: Vec<VolumeNumber>,
    summarised: BTreeSet<VolumeNumber>,
    /// Chunks of a summary, not applied yet: see [`Replay::line`].
    run: Vec<(u64, RecordHeader)>,
}

/// Chunks of a summary that are applied together.
const RUN_LEN_MAX: usize = 128 << 10;

impl Replay {
    fn new(plan: &Plan) -> Replay {
        Replay {
            state: State::default(),
            report: RecoveryReport::default(),
            missing: plan.missing.clone(),
            volume: 0,
            previous: 0,
            raft_seen: 0,
            raft_lost: 0,
            raft_attributed: 0,
            unknown_open: false,
            unaccounted: false,
            direct: false,
            successor: None,
            dropped: Vec::new(),
            summarised: BTreeSet::new(),
            run: Vec::new(),
        }
    }

    fn begin(&mut self, number: VolumeNumber) {
        self.previous = std::mem::replace(&mut self.volume, number);
        (self.raft_seen, self.raft_lost, self.raft_attributed) = (0, 0, 0);
        (self.unknown_open, self.direct, self.successor) = (false, false, None);
    }

    fn item(&mut self, item: Item) {
        match item {
            Item::Gap(range) => {
                self.unknown_open = true;
                let what = DamagedWhat::Unknown { len_bytes: range.end - range.start };
                self.state.note_damage(self.volume, range.start, what, "no batch can be read here");
            }
            Item::Batch(batch) => self.batch(&batch),
        }
    }

    fn batch(&mut self, batch: &FoundBatch) {
        self.report.batches += 1;
        let at = batch.header.position.offset;
        let counted = batch.header.position.raft_count;
        self.raft_lost += u64::from(counted.saturating_sub(self.raft_seen));
        self.raft_seen = counted;
        self.unknown_open = false;
        if let Some(blemish) = batch.blemish {
            self.state.note_damage(self.volume, at, DamagedWhat::Bookkeeping, blemish);
        }
        let contents = &batch.contents;
        let named_damage = contents.records.iter().any(|record| record.content.is_err());
        if !contents.intact && !named_damage && contents.unknown.is_none() {
            self.state.note_damage(self.volume, at, DamagedWhat::Bookkeeping, "unused bytes of a batch are damaged");
        }
        for record in &contents.records {
            self.report.records += 1;
            self.raft_seen = self.raft_seen.wrapping_add(u32::from(record.kind.is_raft()));
            self.record(record, &batch.data);
        }
        if let Some(range) = &contents.unknown {
            self.unknown_open = true;
            let what = DamagedWhat::Unknown { len_bytes: range.end - range.start };
            self.state.note_damage(self.volume, range.start, what, "records of a batch cannot be told apart");
        }
    }

    fn record(&mut self, record: &Parsed, data: &[u8]) {
        match &record.content {
            Ok((header, payload)) => self.whole_record(record.offset, header, &data[payload.clone()]),
            Err(detail) => self.state.apply_damaged(self.volume, record.offset, record.kind, &record.id, detail),
        }
    }

    /// Takes in a record of a volume that is not read. The index is in id order and records are not: chunks that follow
    /// each other are put in order first, which spares the processor's caches. It makes no difference to the outcome:
    /// what is known of one id does not depend on others, and equal ids stay in their order.
    fn line(&mut self, line: &Line<'_>) {
        if line.header.kind == Kind::Chunk {
            self.run.push((line.offset, line.header));
            if self.run.len() < RUN_LEN_MAX {
                return;
            }
        }
        let commutes = line.header.kind.is_raft() || matches!(line.header.kind, Kind::VolumeList | Kind::RaftList);
        if !commutes {
            self.end_run();
        }
        if line.header.kind != Kind::Chunk {
            self.whole_record(line.offset, &line.header, line.kept);
        }
    }

    fn end_run(&mut self) {
        let mut run = std::mem::take(&mut self.run);
        run.sort_by_key(|(_, header)| header.id);
        for (offset, header) in run.drain(..) {
            self.state.apply(self.volume, offset, &header, &[]);
        }
        self.run = run;
    }

    /// The volume that is not read ends here. Only what verified as a whole has a summary.
    fn end_of_lines(&mut self, end: &SummaryEnd) {
        self.end_run();
        self.report.batches += end.batches;
        self.report.records += end.records;
        if let Some(volume) = self.state.volumes.get_mut(&self.volume) {
            volume.end = end.volume_end;
        }
        self.summarised.insert(self.volume);
    }

    fn whole_record(&mut self, offset: u64, header: &RecordHeader, payload: &[u8]) {
        match header.kind {
            Kind::VolumeList => self.volume_list(payload),
            Kind::RaftList => self.raft_list(payload),
            Kind::Seal => self.successor = Some(header.incarnation()),
            Kind::VolumeDropped => {
                self.dropped.extend(VolumeNumber::try_from(header.incarnation()));
                self.state.apply(self.volume, offset, header, payload);
            }
            kind if kind.is_raft() => self.raft(offset, header, payload),
            _ => self.state.apply(self.volume, offset, header, payload),
        }
    }

    /// A group's records are numbered without holes within a volume.
    fn raft(&mut self, offset: u64, header: &RecordHeader, payload: &[u8]) {
        let expected = self.state.raft.get(&header.group()).map_or(0, |log| log.number) + 1;
        let lost = header.epoch.saturating_sub(expected);
        self.raft_attributed += lost;
        self.state.apply(self.volume, offset, header, payload);
        // A base record supersedes whatever was lost before it.
        if lost > 0
            && header.kind != Kind::RaftBase
            && let Some(log) = self.state.raft.get_mut(&header.group())
        {
            log.mark_damaged(&format!("{lost} records before number {} are lost", header.epoch));
        }
    }

    fn volume_list(&mut self, payload: &[u8]) {
        let Ok(list) = VolumeList::decode(payload) else { return };
        self.state.next_incarnation = self.state.next_incarnation.max(list.next_incarnation);
        let follows = list.follows_incarnation;
        let after_missing = VolumeNumber::try_from(follows).is_ok_and(|number| self.missing.contains(&number));
        self.direct = follows == u64::from(self.previous) || after_missing;
    }

    /// What the groups' last numbers were when this volume was begun. A volume in between that was emptied and
    /// recycled explains a difference; otherwise records of the group were lost.
    fn raft_list(&mut self, payload: &[u8]) {
        let Ok(groups) = decode_raft_list(payload) else { return };
        for listed in groups {
            let log = self.state.raft.entry(listed.group).or_insert_with(|| GroupLog::new(listed.peer));
            let (lost, number) = (listed.number.saturating_sub(log.number), log.number.max(listed.number));
            let is_another = log.peer != listed.peer && log.peer != PeerId(0) && listed.peer != PeerId(0);
            if lost > 0 && self.direct {
                log.lose(listed.peer, &format!("{lost} records are lost"));
            } else if lost > 0 && (log.removed || is_another) {
                // Only a base comes between two peers, or between a removal and what is not another one. It lay in one of
                // the volumes that are gone.
                self.state.begin_raft_anew(listed.group, listed.peer);
            }
            if let Some(log) = self.state.raft.get_mut(&listed.group) {
                log.number = number;
            }
        }
        if std::mem::take(&mut self.unaccounted) && !self.direct {
            self.state.mark_all_raft_damaged("records of unknown groups are lost");
        }
    }

    fn end(&mut self, extent: Extent, end: &ScanEnd) {
        if let Some(volume) = self.state.volumes.get_mut(&self.volume) {
            volume.end = end.end;
        }
        if matches!(extent, Extent::Open(_)) {
            self.report.torn_bytes += end.torn_bytes;
        }
        self.unaccounted |= self.unknown_open || self.raft_lost > self.raft_attributed;
    }

    fn finish(&mut self, files: &BTreeMap<VolumeNumber, Arc<VolumeFile>>) {
        let state = &mut self.state;
        // A sealed volume names its successor, whose file existed before the seal was written.
        let successor = self.successor.and_then(|incarnation| VolumeNumber::try_from(incarnation).ok());
        let lost_successor = successor.filter(|number| !files.contains_key(number));
        let lost_journals = lost_successor.is_some();
        for number in self.missing.iter().copied().chain(lost_successor) {
            state.note_damage(number, 0, DamagedWhat::MissingVolume, "a live volume's file is missing");
        }
        if self.unaccounted || lost_journals {
            state.mark_all_raft_damaged("records of unknown groups are lost");
        }
        for log in state.raft.values_mut() {
            if log.pinned_volumes().next().is_none() {
                log.mark_damaged("all its records are gone");
            }
        }
        settle_bulk(state);
    }
}

/// Checks that large chunks point into volumes that are there, and finds the bulk volumes' ends.
fn settle_bulk(state: &mut State) {
    let large: Vec<_> = state
        .index
        .iter()
        .filter_map(|(id, slot)| match slot {
            Slot::Live(live) if live.is_large() => Some((id, live)),
            _ => None,
        })
        .collect();
    for (id, live) in large {
        match state.volumes.get_mut(&live.volume) {
            Some(volume) if volume.kind == VolumeKind::Bulk => {
                volume.end = volume.end.max(live.offset + bulk_len(live.len));
            }
            _ => {
                state.mark_damaged(id, live.volume, live.offset, "its bulk volume is missing");
            }
        }
    }
}
