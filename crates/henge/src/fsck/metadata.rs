//! The metadata of the cluster: the key-value stores and Raft logs of all disks that were given, brought together to the
//! one state that the groups' next leaders would have.

use base::Env;
use base::ids::{GROUP_ZERO, GroupId, LogIndex};
use bytes::Bytes;
use meta::group::{self, GroupState};
use meta::keys::Key;
use meta::view::{Overlay, Row, View, ViewError};
use node::offline::{self, KvView};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use store::RaftLog;
use store::kv::{KvOptions, LsmKv};

use super::Findings;
use super::places::{InspectedDisk, running_or};
use super::replicas::{self, Conflict, Replica};
use crate::failure::Failure;

/// Rows read at once.
const SCAN_ROWS: usize = 1000;

/// The key-value store and the logs of one disk.
pub struct Metadata {
    place: String,
    pub kv: Arc<LsmKv>,
    logs: BTreeMap<GroupId, RaftLog>,
    /// Some rows cannot be read.
    is_damaged: bool,
    _lock: Box<dyn Send + Sync>,
}

/// The state of one group as its next leader would have it.
pub struct GroupRows<'a> {
    pub group: GroupId,
    /// Path of the disk of the replica that was chosen.
    pub place: &'a str,
    pub rows: Overlay<'a>,
    /// Which rows are the group's.
    pub ranges: Vec<(Bytes, Bytes)>,
    /// Some of them cannot be read or were not brought up to date.
    pub is_incomplete: bool,
}

/// `None`: it cannot be opened, which is among the findings.
pub async fn open(env: &Env, disk: &mut InspectedDisk, findings: &mut Findings) -> Result<Option<Metadata>, Failure> {
    let place = disk.path.display().to_string();
    let lock = disk.disk.lock().map_err(|error| running_or(&disk.path, &error))?;
    let seed = disk.report.identity.disk.0;
    let opened = LsmKv::open_read_only(env, Arc::clone(&disk.disk), seed, KvOptions::default()).await;
    let (kv, report) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            findings.add("metadata", place, format!("the key-value store cannot be opened: {error}"));
            return Ok(None);
        }
    };
    if let Some(detail) = report.manifest_copy_damage {
        findings.add("metadata", &place, format!("one of two copies of the manifest: {detail}"));
    }
    let verification = kv.verify(None).await;
    findings.verified_bytes += verification.bytes;
    for damage in &verification.damages {
        let rows = format!("rows from {} up to {}", show_row(&damage.first), show_row(&damage.last));
        findings.add("metadata", &place, format!("{rows} cannot be read: {}", damage.detail));
    }
    for harmless in &verification.harmless {
        findings.add("metadata", &place, format!("no row lost: {harmless}"));
    }
    let is_damaged = !verification.damages.is_empty();
    // Logs that cannot be trusted are among the findings of the disk.
    let logs = std::mem::take(&mut disk.report.raft);
    let logs = logs.into_iter().filter_map(|(group, log)| Some((group, log.ok()?))).collect();
    Ok(Some(Metadata { place, kv, logs, is_damaged, _lock: lock }))
}

/// A row as the operator may know it. Bucket names may lie in rows that cannot be read, so ids stand for them.
fn show_row(key: &[u8]) -> String {
    match Key::decode(key) {
        Ok(Key::Version { bucket, key, .. }) => format!("the versions of bucket {bucket}, key {}", key.escape_ascii()),
        Ok(Key::Part { bucket, key, number, .. }) => {
            format!("part {number} of bucket {bucket}, key {}", key.escape_ascii())
        }
        Ok(other) => format!("{other:?}"),
        Err(_) => format!("{}", key.escape_ascii()),
    }
}

/// All groups of which a state was found, in the order of their ids. `views`: of the same stores, in the same order.
pub fn unite<'a>(metadata: &'a [Metadata], views: &'a [KvView<'a>], findings: &mut Findings) -> Vec<GroupRows<'a>> {
    let generations: Vec<u32> = (0..metadata.len()).map(|at| cluster_generation(&metadata[at], &views[at])).collect();
    let groups: BTreeSet<GroupId> = metadata.iter().flat_map(|disk| disk.logs.keys().copied()).collect();
    let mut united = Vec::new();
    for group in groups {
        let replicas = find_replicas(metadata, views, &generations, group, findings);
        findings.replicas += replicas.len() as u64;
        let Some(chosen) = replicas::choose(&replicas) else {
            findings.add("metadata", format!("group {group}"), "none of the disks that were given has its state");
            continue;
        };
        findings.groups += 1;
        let is_damaged = replicas[chosen].has_damaged_rows;
        let mut rows = Judge { group, replicas: &replicas, chosen, views, findings: &mut *findings }.judge();
        rows.is_incomplete |= is_damaged;
        united.push(rows);
    }
    united
}

/// The generation of the cluster that a disk knows of: from its map, after all that its log holds.
fn cluster_generation(disk: &Metadata, view: &KvView<'_>) -> u32 {
    let mut rows = Overlay::new(view);
    if let (Some(log), Ok(Some(state))) = (disk.logs.get(&GROUP_ZERO), offline::replica_state(view, GROUP_ZERO)) {
        // What is wrong with it is told when the replica is judged.
        let _ = offline::replay(&mut rows, GROUP_ZERO, &log.entries, state.applied.0, LogIndex(u64::MAX));
    }
    meta::map::load(&rows).map_or(0, |map| map.cluster_generation)
}

fn find_replicas<'a>(
    metadata: &'a [Metadata],
    views: &'a [KvView<'a>],
    generations: &[u32],
    group: GroupId,
    findings: &mut Findings,
) -> Vec<Replica<'a>> {
    let mut found = Vec::new();
    for (at, disk) in metadata.iter().enumerate() {
        let Some(log) = disk.logs.get(&group) else { continue };
        let state = match offline::replica_state(&views[at], group) {
            Ok(Some(state)) => Some(state),
            Ok(None) => {
                let place = &disk.place;
                findings.notes.push(format!(
                    "the replica of group {group} on {place} has no state: it was about to be given one"
                ));
                None
            }
            Err(why) => {
                findings.add("metadata", &disk.place, format!("the replica of group {group}: {why}"));
                None
            }
        };
        let mut replica = Replica::new(at, &disk.place, generations[at], state, log);
        replica.has_damaged_rows = disk.is_damaged;
        if let Some(problem) = replica.problem() {
            findings.add("log", &disk.place, format!("group {group} cannot be brought up to date: {problem}"));
        }
        found.push(replica);
    }
    found
}

/// One group's replicas against the chosen one.
struct Judge<'a, 'r> {
    group: GroupId,
    replicas: &'r [Replica<'a>],
    chosen: usize,
    views: &'a [KvView<'a>],
    findings: &'r mut Findings,
}

impl<'a> Judge<'a, '_> {
    fn judge(mut self) -> GroupRows<'a> {
        let chosen = &self.replicas[self.chosen];
        let state = chosen.state.as_ref().expect("only a replica with a state is chosen");
        let peers = self.replicas.iter().filter(|other| other.cluster_generation == chosen.cluster_generation);
        let quorum = replicas::quorum(&state.configuration, &peers.map(|replica| replica.peer).collect());
        if !quorum.is_majority {
            let nodes: Vec<String> = quorum.missing.iter().map(ToString::to_string).collect();
            self.findings.notes.push(format!(
                "group {}: {} of {} voters were found (not those on node {}): what only the others hold was not seen",
                self.group,
                quorum.given,
                quorum.voters,
                nodes.join(", ")
            ));
        }
        let mut comparable: BTreeMap<LogIndex, Vec<usize>> = BTreeMap::new();
        let chosen = self.chosen;
        for at in (0..self.replicas.len()).filter(|at| *at != chosen) {
            if let Some(until) = self.compare_log(at, quorum.is_majority) {
                comparable.entry(until).or_default().push(at);
            }
        }
        self.bring_up(state.applied.0, &comparable)
    }

    /// Up to which entry the rows of a replica can be compared with the chosen one's.
    fn compare_log(&mut self, at: usize, is_majority: bool) -> Option<LogIndex> {
        let (chosen, other) = (&self.replicas[self.chosen], &self.replicas[at]);
        if other.cluster_generation != chosen.cluster_generation {
            let (place, group) = (other.place, self.group);
            self.findings.notes.push(format!(
                "the replica of group {group} on {place} is from before the cluster was recovered: it was not compared"
            ));
            return None;
        }
        let agreement = replicas::compare(chosen, other);
        if let Some(conflict) = agreement.conflict {
            let why = format!("group {}: {conflict}, on {}", self.group, chosen.place);
            match conflict {
                Conflict::Behind { .. } if !is_majority => self.findings.notes.push(format!("{}: {why}", other.place)),
                _ => self.findings.add("log", other.place, why),
            }
            return None;
        }
        let applied = |replica: &Replica<'_>| replica.state.as_ref().map(|state| state.applied.0);
        let reached = applied(chosen)?.max(applied(other)?);
        agreement.until.filter(|until| *until >= reached && other.problem().is_none())
    }

    /// Replays the whole log of the chosen replica; on the way, compares its rows with those of others.
    fn bring_up(self, applied: LogIndex, comparable: &BTreeMap<LogIndex, Vec<usize>>) -> GroupRows<'a> {
        let Judge { group, replicas, chosen, views, findings } = self;
        let chosen = &replicas[chosen];
        let mut rows = Overlay::new(&views[chosen.disk]);
        let (mut is_incomplete, mut reached) = (false, applied);
        for (until, others) in comparable.iter().chain([(&chosen.last().0, &Vec::new())]) {
            match offline::replay(&mut rows, group, chosen.entries, reached, *until) {
                Ok(replayed) => findings.replayed += replayed,
                Err(why) => {
                    let why = format!("group {group} cannot be brought up to date: {why}");
                    findings.add("log", chosen.place, why);
                    is_incomplete = true;
                    break;
                }
            }
            reached = *until;
            for other in others.iter().map(|at| &replicas[*at]) {
                match difference(group, &rows, other, &views[other.disk], *until) {
                    Ok(None) => findings.replicas_compared += 1,
                    Ok(Some(key)) => {
                        let row = show_row(&key);
                        let detail = format!("group {group}, after entry {until}: {row} is not as on {}", chosen.place);
                        findings.add("metadata", other.place, detail);
                    }
                    // Rows that cannot be read are among the findings of their disk.
                    Err(_) => {}
                }
            }
        }
        let state = group::load(&rows, group).unwrap_or_default();
        let ranges = group::row_ranges(group, &state);
        GroupRows { group, place: chosen.place, rows, ranges, is_incomplete }
    }
}

/// The first row in which a replica, brought up to the same entry, differs.
fn difference(
    group: GroupId,
    rows: &Overlay<'_>,
    other: &Replica<'_>,
    view: &KvView<'_>,
    until: LogIndex,
) -> Result<Option<Bytes>, ViewError> {
    let state = other.state.as_ref().expect("only replicas with a state are compared");
    let mut theirs = Overlay::new(view);
    offline::replay(&mut theirs, group, other.entries, state.applied.0, until).map_err(ViewError::Io)?;
    let own_row = group::state_key(group);
    for (from, to) in group::row_ranges(group, &group::load(rows, group)?) {
        let mut from = from;
        loop {
            let (ours, theirs) = (rows.scan(&from, &to, SCAN_ROWS)?, theirs.scan(&from, &to, SCAN_ROWS)?);
            if let Some(key) = first_difference(&ours, &theirs, &own_row) {
                return Ok(Some(key));
            }
            match ours.last() {
                Some((last, _)) if ours.len() == SCAN_ROWS => from = after(last),
                _ => break,
            }
        }
    }
    Ok(None)
}

fn first_difference(ours: &[Row], theirs: &[Row], own_row: &Bytes) -> Option<Bytes> {
    for at in 0..ours.len().max(theirs.len()) {
        match (ours.get(at), theirs.get(at)) {
            (Some(one), Some(other)) if one == other => {}
            (Some((key, one)), Some((same, other))) if key == same && key == own_row && is_same_state(one, other) => {}
            (Some((one, _)), Some((other, _))) => return Some(one.min(other).clone()),
            (Some((key, _)), None) | (None, Some((key, _))) => return Some(key.clone()),
            (None, None) => break,
        }
    }
    None
}

/// The group's row but for what differs from replica to replica: how far it was flushed.
fn is_same_state(one: &Bytes, other: &Bytes) -> bool {
    let flushed = |raw| {
        let state = group::decode(raw)?;
        let nothing = GroupState::default();
        Ok::<_, String>(GroupState {
            applied_index: nothing.applied_index,
            applied_term: nothing.applied_term,
            conf_state: nothing.conf_state,
            install: nothing.install,
            ..state
        })
    };
    matches!((flushed(one), flushed(other)), (Ok(one), Ok(other)) if one == other)
}

/// The smallest key above `key`.
pub fn after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, value: &str) -> Row {
        (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()))
    }

    #[test]
    fn the_first_row_that_differs_is_named() {
        let own = Bytes::from_static(b"own");
        let ours = [row("a", "1"), row("b", "2"), row("d", "4")];
        let find = |theirs: &[Row]| first_difference(&ours, theirs, &own);
        assert_eq!(find(&ours), None);
        assert_eq!(find(&[row("a", "1"), row("b", "3"), row("d", "4")]).unwrap(), "b");
        assert_eq!(find(&[row("a", "1"), row("b", "2"), row("c", "4")]).unwrap(), "c");
        assert_eq!(find(&ours[..2]).unwrap(), "d");
        assert_eq!(first_difference(&ours[..1], &ours, &own).unwrap(), "b");
    }

    #[test]
    fn how_far_a_replica_was_flushed_is_no_difference() {
        let row = |applied: u64, range: &'static [u8]| {
            let state = GroupState {
                applied_index: applied,
                applied_term: applied,
                feature_level: 1,
                range_start: Bytes::from_static(range),
                ..GroupState::default()
            };
            (group::state_key(GroupId(1)), group::encode(&state))
        };
        let own = group::state_key(GroupId(1));
        assert_eq!(first_difference(&[row(5, b"")], &[row(9, b"")], &own), None);
        assert_eq!(first_difference(&[row(5, b"")], &[row(5, b"x")], &own), Some(own));
    }
}
