//! What one node says of itself. Protocol Buffers, because other nodes ask for it; field numbers are never reused.

use base::ids::GROUP_ZERO;
use std::collections::BTreeSet;
use std::time::Duration;
use store::DamagedWhat;

use super::Verdict;
use crate::repair::Urgency;
use crate::service::{Service, Standing};

/// A voter that hears no leader for longer is none that can be counted on.
const LEADER_HEARD_MAX: Duration = Duration::from_secs(2);

#[derive(Clone, PartialEq, prost::Message)]
pub struct LocalStatus {
    /// Of the map that this node has applied.
    #[prost(uint64, tag = "2")]
    pub map_version: u64,
    #[prost(message, repeated, tag = "3")]
    pub disks: Vec<LocalDisk>,
    #[prost(message, repeated, tag = "4")]
    pub groups: Vec<LocalGroup>,
    #[prost(message, repeated, tag = "5")]
    pub findings: Vec<Finding>,
    /// Copies of chunks.
    #[prost(uint64, tag = "6")]
    pub chunks: u64,
    #[prost(uint64, tag = "7")]
    pub corrupt: u64,
    /// Placement groups of which a disk here is a member, and those of them that were found equal with all other
    /// members at their present epoch.
    #[prost(uint64, tag = "8")]
    pub placement_groups: u64,
    #[prost(uint64, tag = "9")]
    pub healthy_groups: u64,
    /// What other members have and this node still lacks.
    #[prost(uint64, tag = "10")]
    pub missing_chunks: u64,
    #[prost(uint64, tag = "11")]
    pub missing_bytes: u64,
    /// Chunks that metadata names, and of which no member that answered has a good copy.
    #[prost(uint64, tag = "16")]
    pub lost_chunks: u64,
    /// How fast missing copies came lately.
    #[prost(uint64, tag = "14")]
    pub pulled_bytes_per_s: u64,
    /// Of what is missing: chunks with one copy left.
    #[prost(uint64, tag = "15")]
    pub last_copies: u64,
    /// Empty while it serves; else what it waits for.
    #[prost(string, tag = "12")]
    pub standing: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct LocalDisk {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub path: String,
    #[prost(string, tag = "3")]
    pub state: String,
    #[prost(uint64, tag = "4")]
    pub total_bytes: u64,
    #[prost(uint64, tag = "5")]
    pub used_bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct LocalGroup {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Node id; 0 when unknown.
    #[prost(uint32, tag = "2")]
    pub leader: u32,
    #[prost(uint64, tag = "3")]
    pub term: u64,
    #[prost(uint32, repeated, tag = "4")]
    pub voters: Vec<u32>,
    /// Has its state, serves, and hears its leader or leads.
    #[prost(bool, tag = "5")]
    pub works: bool,
    /// Has no vote: it was made anew, or its node is not among the voters.
    #[prost(bool, tag = "6")]
    pub learns: bool,
    /// It leads, and the voters on these nodes do not have what was committed a moment ago.
    #[prost(uint32, repeated, tag = "7")]
    pub lacking: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Finding {
    /// As `Verdict` counts, 0 the best.
    #[prost(uint32, tag = "1")]
    pub verdict: u32,
    #[prost(string, tag = "2")]
    pub reason: String,
}

pub fn collect(service: &Service) -> LocalStatus {
    let map_version = service.map.borrow().version;
    let mut status = LocalStatus { map_version, ..LocalStatus::default() };
    status.standing = match &*service.standing.borrow() {
        Standing::Serving => String::new(),
        Standing::Starting => "waits for a majority of the cluster map's voters".into(),
        Standing::Fenced => "was voted out and is on its way back".into(),
        Standing::Ended(why) => why.clone(),
    };
    let health = service.repair.health(&service.map.borrow(), service.node);
    status.placement_groups = health.groups;
    status.healthy_groups = health.healthy;
    status.missing_chunks = health.missing_chunks;
    status.missing_bytes = health.missing_bytes;
    status.pulled_bytes_per_s = health.pulled_bytes_per_s;
    status.lost_chunks = health.lost_chunks;
    status.last_copies = health.queue[Urgency::LastCopy as usize].chunks;
    for chunk in &health.lost {
        let what = format!("chunk {chunk} has no good copy on any disk of its placement group");
        status.find(Verdict::Lost, format!("{what}; `henge fsck` names the object, restore it"));
    }
    let without = "chunks have no good copy on any disk of their placement groups";
    if let count @ 1.. = health.unasked_chunks {
        status.find(Verdict::AtRisk, format!("{count} {without}; whether anything names them is being asked"));
    }
    if let count @ 1.. = health.unnamed_chunks {
        status.find(Verdict::AtRisk, format!("{count} {without}; nothing names them, and they are to go"));
    }
    let only_copy = service.map.borrow().pools.iter().any(|pool| pool.copies_effective <= 1);
    if !health.checked && !only_copy {
        status.find(Verdict::AtRisk, "the copies here have not been compared since the node started".into());
    }
    disks(service, only_copy, &mut status);
    damage(service, only_copy, &mut status);
    groups(service, &mut status);
    for why in service.control.shots.findings(&service.map.borrow()) {
        status.find(Verdict::AtRisk, why);
    }
    for damage in service.replicas.unreadable_rows() {
        let verdict = if only_copy { Verdict::Lost } else { Verdict::AtRisk };
        status.find(
            verdict,
            format!(
                "key-value store on disk {}: {damage:?}; `henge fsck` names what it held",
                service.disks.all[0].label
            ),
        );
    }
    status
}

impl LocalStatus {
    fn find(&mut self, verdict: Verdict, reason: String) {
        if self.findings.len() < super::REASONS_MAX {
            self.findings.push(Finding { verdict: verdict as u32, reason });
        }
    }
}

fn disks(service: &Service, only_copy: bool, status: &mut LocalStatus) {
    for disk in &service.disks.all {
        let (state, why) = disk.state();
        match state {
            "up" => {}
            "full" => status.find(Verdict::Unavailable, format!("disk {} is full: it {why}", disk.label)),
            _ => status.find(
                if only_copy { Verdict::Unavailable } else { Verdict::AtRisk },
                format!("disk {} is out of service ({why}): what only it holds cannot be read", disk.label),
            ),
        }
        let usage = disk.usage();
        status.disks.push(LocalDisk {
            id: disk.id.to_string(),
            path: disk.label.clone(),
            state: state.into(),
            total_bytes: usage.capacity_bytes,
            used_bytes: usage.used_bytes,
        });
    }
}

/// Damage on a node that holds the only copy is loss; else another member has the bytes.
fn damage(service: &Service, only_copy: bool, status: &mut LocalStatus) {
    let (verdict, then) = if only_copy {
        (Verdict::Lost, "`henge fsck` names the object, restore it")
    } else {
        (Verdict::AtRisk, "it is fetched again from another node")
    };
    for engine in service.disks.engines() {
        status.chunks += engine.stats().chunks;
        let mut chunks = BTreeSet::new();
        for record in engine.damaged() {
            match record.what {
                DamagedWhat::Chunk(id) => {
                    if chunks.insert(id) {
                        status.find(verdict, format!("chunk {id} is damaged on disk: {}; {then}", record.detail));
                    }
                }
                // A replica that was made anew stands in for one whose log was damaged.
                DamagedWhat::Raft(group) if service.replicas.get(group).is_some_and(|it| it.failed().is_none()) => {}
                DamagedWhat::Raft(group) => {
                    let what = format!("the log of group {group} is damaged: {}", record.detail);
                    status.find(Verdict::Unavailable, what);
                }
                // With other copies, what a damaged record held is found missing when placement groups are compared.
                DamagedWhat::MissingVolume if only_copy => {
                    status.find(verdict, format!("a volume is missing: {}", record.detail));
                }
                DamagedWhat::Unknown { len_bytes } if only_copy => {
                    let what = format!("{len_bytes} bytes of records cannot be identified: {}", record.detail);
                    status.find(verdict, format!("{what}; `henge fsck` names what is missing"));
                }
                DamagedWhat::MissingVolume | DamagedWhat::Unknown { .. } => {}
                // Nothing is lost or at risk; the log and the metrics have it.
                DamagedWhat::Bookkeeping | DamagedWhat::Identity => {}
            }
        }
        status.corrupt += chunks.len() as u64;
    }
}

fn groups(service: &Service, status: &mut LocalStatus) {
    let now = service.env.now();
    for handle in service.replicas.all() {
        let in_touch = handle.is_leader() || now.since(handle.leader_heard()) < LEADER_HEARD_MAX;
        let kind = if handle.id == GROUP_ZERO { "map" } else { "objects" };
        if let Some(why) = handle.failed() {
            status.find(Verdict::AtRisk, format!("a replica of group {} ({kind}) has stopped: {why}", handle.id));
        }
        status.groups.push(LocalGroup {
            id: handle.id.0,
            leader: handle.leader().map_or(0, |node| node.0),
            term: handle.term().0,
            voters: handle.voter_nodes().iter().map(|node| node.0).collect(),
            works: handle.failed().is_none() && handle.is_ready() && in_touch,
            learns: !handle.configuration().is_voter(handle.peer),
            lacking: handle.lacking().iter().map(|node| node.0).collect(),
        });
    }
}
