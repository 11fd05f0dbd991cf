//! What `henge status` says: the JSON that scripts depend on, and the same for people.

use serde::{Deserialize, Serialize};
use std::fmt::Write;

use crate::units::{show_bytes, show_seconds};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Report {
    pub version: u32,
    pub verdict: Verdict,
    /// Whole sentences: why the verdict is not `safe`.
    pub reasons: Vec<String>,
    /// What the cluster does about it by itself.
    #[serde(default)]
    pub doing: Vec<String>,
    /// What people should do.
    #[serde(default)]
    pub todo: Vec<String>,
    /// Version of the cluster map.
    pub epoch: u64,
    pub nodes: Vec<NodeReport>,
    pub groups: Vec<GroupReport>,
    pub chunks: ChunkReport,
    pub repair: RepairReport,
}

/// From best to worst.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every object has all its copies.
    Safe,
    /// All is there, but fewer failures than intended would lose something.
    AtRisk,
    /// Something cannot be read or written now.
    Unavailable,
    /// Something is gone.
    Lost,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct NodeReport {
    pub id: u32,
    pub generation: u32,
    /// `up`, `suspect`, `down`, `lost` or `draining`.
    pub state: String,
    pub locality: String,
    pub disks: Vec<DiskReport>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DiskReport {
    pub id: String,
    pub path: String,
    pub state: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct GroupReport {
    pub id: u64,
    pub kind: String,
    /// Node id; `null` while there is none.
    pub leader: Option<u64>,
    pub term: u64,
    pub voters: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct ChunkReport {
    pub total: u64,
    pub degraded: u64,
    pub last_copy: u64,
    pub corrupt: u64,
    pub lost: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct RepairReport {
    pub queued_bytes: u64,
    /// `null` while it cannot be told.
    pub eta_s: Option<u64>,
    /// Copies to be made of what has one copy left: they are made first.
    #[serde(default)]
    pub last_copies: u64,
}

/// The version of the report's shape.
pub const VERSION: u32 = 1;

impl Verdict {
    pub fn exit_status(self) -> u8 {
        match self {
            Verdict::Safe => 0,
            Verdict::AtRisk => 2,
            Verdict::Unavailable | Verdict::Lost => 3,
        }
    }

    fn headline(self) -> &'static str {
        match self {
            Verdict::Safe => "SAFE: every object has all its copies.",
            Verdict::AtRisk => "AT RISK: everything is there, but not on as many copies as it should be.",
            Verdict::Unavailable => "UNAVAILABLE: something cannot be read or written now.",
            Verdict::Lost => "LOST: something has no readable copy left.",
        }
    }
}

impl Report {
    /// The report for people: the verdict first, then why, then what there is.
    pub fn for_people(&self) -> String {
        let mut out = format!("{}\n", self.verdict.headline());
        for (title, lines) in [
            ("What is wrong:", &self.reasons),
            ("What henge does about it:", &self.doing),
            ("What you should do:", &self.todo),
        ] {
            if !lines.is_empty() {
                let _ = writeln!(out, "{title}");
                for line in lines {
                    let _ = writeln!(out, "  - {line}");
                }
            }
        }
        out.push('\n');
        for node in &self.nodes {
            let place = if node.locality.is_empty() { String::new() } else { format!("  {}", node.locality) };
            let _ = writeln!(out, "node {}  {}  generation {}{place}", node.id, node.state, node.generation);
            for disk in &node.disks {
                let percent =
                    (u128::from(disk.used_bytes) * 100).checked_div(u128::from(disk.total_bytes)).unwrap_or(0);
                let _ = writeln!(
                    out,
                    "  disk {}  {}  {} of {} used ({percent} %)",
                    disk.path,
                    disk.state,
                    show_bytes(disk.used_bytes),
                    show_bytes(disk.total_bytes),
                );
            }
        }
        for group in &self.groups {
            let leader = group.leader.map_or("no leader".to_owned(), |leader| format!("leader {leader}"));
            let _ = writeln!(
                out,
                "group {} ({})  {leader}  term {}  {} voter(s)",
                group.id,
                group.kind,
                group.term,
                group.voters.len()
            );
        }
        let chunks = &self.chunks;
        let _ = writeln!(
            out,
            "chunks: {} in all, {} short of copies, {} on their last copy, {} corrupt, {} lost",
            chunks.total, chunks.degraded, chunks.last_copy, chunks.corrupt, chunks.lost
        );
        let _ = match self.repair.queued_bytes {
            0 => writeln!(out, "repair: nothing to do"),
            bytes => {
                let eta =
                    self.repair.eta_s.map_or("done in unknown time".into(), |s| format!("done in {}", show_seconds(s)));
                let last = match self.repair.last_copies {
                    0 => String::new(),
                    last => format!(", {last} chunks with one copy left first"),
                };
                writeln!(out, "repair: {} to go, {eta}{last}", show_bytes(bytes))
            }
        };
        out
    }
}

impl From<node::Status> for Report {
    fn from(status: node::Status) -> Report {
        let verdict = match status.verdict {
            node::Verdict::Safe => Verdict::Safe,
            node::Verdict::AtRisk => Verdict::AtRisk,
            node::Verdict::Unavailable => Verdict::Unavailable,
            node::Verdict::Lost => Verdict::Lost,
        };
        let chunks = status.chunks;
        let repair = status.repair;
        Report {
            version: VERSION,
            verdict,
            reasons: status.reasons,
            doing: status.doing,
            todo: status.todo,
            epoch: status.epoch,
            nodes: status.nodes.into_iter().map(NodeReport::from).collect(),
            groups: status.groups.into_iter().map(GroupReport::from).collect(),
            chunks: ChunkReport {
                total: chunks.total,
                degraded: chunks.degraded,
                last_copy: chunks.last_copy,
                corrupt: chunks.corrupt,
                lost: chunks.lost,
            },
            repair: RepairReport {
                queued_bytes: repair.queued_bytes,
                eta_s: if repair.queued_bytes == 0 { Some(0) } else { repair.eta_s },
                last_copies: repair.last_copies,
            },
        }
    }
}

impl From<node::NodeStatus> for NodeReport {
    fn from(node: node::NodeStatus) -> NodeReport {
        let disk = |disk: node::DiskStatus| DiskReport {
            id: disk.id,
            path: disk.path,
            state: disk.state,
            total_bytes: disk.total_bytes,
            used_bytes: disk.used_bytes,
        };
        NodeReport {
            id: node.id,
            generation: node.generation,
            state: node.state.into(),
            locality: node.locality,
            disks: node.disks.into_iter().map(disk).collect(),
        }
    }
}

impl From<node::GroupStatus> for GroupReport {
    fn from(group: node::GroupStatus) -> GroupReport {
        GroupReport {
            id: group.id,
            kind: group.kind.into(),
            leader: (group.leader != 0).then_some(group.leader),
            term: group.term,
            voters: group.voters,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_shape_that_scripts_depend_on() {
        let disk = DiskReport { id: "d".into(), path: "/d".into(), state: "up".into(), total_bytes: 10, used_bytes: 5 };
        let node = NodeReport { id: 1, generation: 3, state: "up".into(), locality: String::new(), disks: vec![disk] };
        let group = GroupReport { id: 0, kind: "map".into(), leader: Some(1), term: 2, voters: vec![1] };
        let report = Report {
            version: VERSION,
            verdict: Verdict::AtRisk,
            reasons: vec!["one copy".into()],
            doing: vec![],
            todo: vec!["add nodes".into()],
            epoch: 7,
            nodes: vec![node],
            groups: vec![group],
            chunks: ChunkReport::default(),
            repair: RepairReport { queued_bytes: 0, eta_s: Some(0), last_copies: 0 },
        };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"version":1,"verdict":"at_risk","reasons":["one copy"],"doing":[],"todo":["add nodes"],"epoch":7,"nodes":[{"id":1,"generation":3,"state":"up","locality":"","disks":[{"id":"d","path":"/d","state":"up","total_bytes":10,"used_bytes":5}]}],"groups":[{"id":0,"kind":"map","leader":1,"term":2,"voters":[1]}],"chunks":{"total":0,"degraded":0,"last_copy":0,"corrupt":0,"lost":0},"repair":{"queued_bytes":0,"eta_s":0,"last_copies":0}}"#
        );
        let shown = report.for_people();
        assert!(shown.starts_with("AT RISK") && shown.contains("(50 %)"), "{shown}");
        assert!(
            shown.contains("What you should do:\n  - add nodes\n") && !shown.contains("What henge does"),
            "{shown}"
        );
        assert_eq!(Verdict::Lost.exit_status(), 3);
    }
}
