//! What a node can say about the safety of the data, computed, never guessed.

use base::ids::GROUP_ZERO;
use std::collections::BTreeSet;
use store::DamagedWhat;

use crate::service::Service;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// Every copy that the policy asks for exists and verifies.
    Safe,
    /// Everything can be read; one more failure may lose or block something.
    AtRisk,
    /// Something cannot be served now.
    Unavailable,
    /// Something is gone.
    Lost,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Safe => "safe",
            Verdict::AtRisk => "at_risk",
            Verdict::Unavailable => "unavailable",
            Verdict::Lost => "lost",
        }
    }
}

/// The whole picture, as this node sees it.
#[derive(Clone, Debug)]
pub struct Status {
    pub verdict: Verdict,
    /// Whole sentences: what is wrong, with what, and what to do.
    pub reasons: Vec<String>,
    /// Version of the cluster map.
    pub epoch: u64,
    pub nodes: Vec<NodeStatus>,
    pub groups: Vec<GroupStatus>,
    pub chunks: ChunkCounts,
    pub repair: RepairStatus,
}

#[derive(Clone, Debug)]
pub struct NodeStatus {
    pub id: u32,
    pub generation: u32,
    pub state: &'static str,
    pub locality: String,
    pub disks: Vec<DiskStatus>,
}

#[derive(Clone, Debug)]
pub struct DiskStatus {
    pub id: String,
    pub path: String,
    pub state: &'static str,
    pub total_bytes: u64,
    pub used_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct GroupStatus {
    pub id: u64,
    /// `map` or `objects`.
    pub kind: &'static str,
    /// Node id of the leader; 0 when there is none.
    pub leader: u64,
    pub term: u64,
    pub voters: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct ChunkCounts {
    pub total: u64,
    /// Fewer copies than there are domains for.
    pub degraded: u64,
    /// One good copy left although the policy asks for more.
    pub last_copy: u64,
    pub corrupt: u64,
    pub lost: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct RepairStatus {
    pub queued_bytes: u64,
    pub eta_s: Option<u64>,
}

/// Reasons are cut here, so that a broken disk does not fill the screen.
const REASONS_MAX: usize = 20;

pub fn collect(service: &Service) -> Status {
    let map = service.map.borrow().clone();
    let mut findings = Findings::default();
    let copies = map.pools.iter().map(|pool| (pool.copies, pool.copies_effective)).max().unwrap_or((3, 1));
    let mut chunks = count_chunks(service, &mut findings);
    if copies.1 < copies.0 {
        chunks.degraded = chunks.total;
        chunks.last_copy = if copies.1 == 1 { chunks.total } else { 0 };
        let (n, nodes) = (copies.1, map.nodes.len().max(1));
        findings.add(
            Verdict::AtRisk,
            format!(
                "each object has {n} of {} copies, because the cluster has {nodes} of {} nodes: a lost disk loses data; \
                 keep a backup, or add nodes as soon as your version of henge can",
                copies.0, copies.0
            ),
        );
    }
    for damage in &service.metadata_damage {
        findings.add(Verdict::Lost, format!("{damage}; `henge fsck` names what it held"));
    }
    let groups = groups(service, &mut findings);
    let nodes = map.nodes.iter().map(|row| NodeStatus {
        id: row.id,
        generation: row.generation,
        state: "up",
        locality: row.locality.clone(),
        disks: if row.id == service.node.0 { disks(service, &mut findings) } else { Vec::new() },
    });
    let nodes = nodes.collect();
    let Findings { verdict, reasons } = findings;
    Status { verdict, reasons, epoch: map.version, nodes, groups, chunks, repair: RepairStatus::default() }
}

struct Findings {
    verdict: Verdict,
    reasons: Vec<String>,
}

impl Default for Findings {
    fn default() -> Findings {
        Findings { verdict: Verdict::Safe, reasons: Vec::new() }
    }
}

impl Findings {
    fn add(&mut self, verdict: Verdict, reason: String) {
        self.verdict = self.verdict.max(verdict);
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(reason);
        }
    }
}

fn disks(service: &Service, findings: &mut Findings) -> Vec<DiskStatus> {
    let mut out = Vec::new();
    for disk in &service.disks.all {
        let (state, why) = disk.state();
        match state {
            "up" => {}
            "full" => findings.add(Verdict::Unavailable, format!("disk {} is full: it {why}", disk.label)),
            _ => findings.add(
                Verdict::Unavailable,
                format!("disk {} is out of service ({why}): what only it holds cannot be read", disk.label),
            ),
        }
        let usage = disk.usage();
        out.push(DiskStatus {
            id: disk.id.to_string(),
            path: disk.label.clone(),
            state,
            total_bytes: usage.capacity_bytes,
            used_bytes: usage.used_bytes,
        });
    }
    out
}

/// Damage on a node that holds the only copy is loss.
fn count_chunks(service: &Service, findings: &mut Findings) -> ChunkCounts {
    let mut counts = ChunkCounts::default();
    for engine in service.disks.engines() {
        counts.total += engine.stats().chunks;
        let mut chunks = BTreeSet::new();
        for record in engine.damaged() {
            match record.what {
                DamagedWhat::Chunk(id) => {
                    if chunks.insert(id) {
                        let what = format!("chunk {id} is damaged on disk: {}", record.detail);
                        findings.add(Verdict::Lost, format!("{what}; `henge fsck` names the object, restore it"));
                    }
                }
                DamagedWhat::Raft(group) => {
                    findings
                        .add(Verdict::Unavailable, format!("the log of group {group} is damaged: {}", record.detail));
                }
                DamagedWhat::MissingVolume => {
                    findings.add(Verdict::Lost, format!("a volume is missing: {}", record.detail));
                }
                DamagedWhat::Unknown { len_bytes } => {
                    let what = format!("{len_bytes} bytes of records cannot be identified: {}", record.detail);
                    findings.add(Verdict::Lost, format!("{what}; `henge fsck` names what is missing"));
                }
                DamagedWhat::Bookkeeping | DamagedWhat::Identity => {
                    findings.add(Verdict::AtRisk, format!("damage without loss: {}", record.detail));
                }
            }
        }
        counts.corrupt += chunks.len() as u64;
        counts.lost += chunks.len() as u64;
    }
    counts
}

fn groups(service: &Service, findings: &mut Findings) -> Vec<GroupStatus> {
    let describe = |handle: &crate::group::GroupHandle, findings: &mut Findings| {
        let kind = if handle.id == GROUP_ZERO { "map" } else { "objects" };
        if let Some(why) = handle.failed() {
            findings.add(Verdict::Unavailable, format!("group {} ({kind}) has stopped: {why}", handle.id));
        } else if handle.leader().is_none() {
            findings.add(Verdict::Unavailable, format!("group {} ({kind}) has no leader yet", handle.id));
        }
        GroupStatus {
            id: handle.id.0,
            kind,
            leader: handle.leader().map_or(0, |node| u64::from(node.0)),
            term: handle.term().0,
            voters: handle.voter_nodes().into_iter().map(|node| u64::from(node.0)).collect(),
        }
    };
    service.replicas.all().iter().map(|handle| describe(handle, findings)).collect()
}
