//! The cluster's nodes as the admin port shows them.

use client::{DiskInfo, NodeInfo};
use meta::map::command::{DiskState, NodeState};
use serde::{Deserialize, Serialize};

/// A node as scripts see it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct NodeView {
    pub id: u32,
    /// `up`, `down`, `lost`, `draining`, `removed` or `joining`.
    pub state: String,
    /// HOST:PORT of its cluster port.
    pub address: String,
    pub generation: u32,
    pub locality: String,
    /// How many disks the cluster knows of it.
    pub disks: u64,
    /// Placement groups that have a member on it, or had one before a move that has not ended.
    pub placement_groups: u64,
}

/// A disk as scripts see it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DiskView {
    pub id: String,
    pub node: u32,
    /// `up`, `failed`, `draining` or `removed`.
    pub state: String,
    pub capacity_bytes: u64,
    /// Placement groups that have a member on it, or had one before a move that has not ended.
    pub placement_groups: u64,
}

impl From<DiskInfo> for DiskView {
    fn from(disk: DiskInfo) -> DiskView {
        let state = match disk.row.state() {
            DiskState::Up => "up",
            DiskState::Failed => "failed",
            DiskState::Removed => "removed",
            DiskState::Draining => "draining",
        };
        DiskView {
            id: client::disk_id(&disk.row.id).map_or_else(String::new, |id| id.to_string()),
            node: disk.row.node,
            state: state.into(),
            capacity_bytes: disk.row.capacity_bytes,
            placement_groups: disk.placement_groups as u64,
        }
    }
}

impl From<NodeInfo> for NodeView {
    fn from(node: NodeInfo) -> NodeView {
        let state = match node.row.state() {
            NodeState::Up => "up",
            NodeState::Down => "down",
            NodeState::Lost => "lost",
            NodeState::Draining => "draining",
            NodeState::Removed => "removed",
            NodeState::Joining => "joining",
        };
        NodeView {
            id: node.row.id,
            state: state.into(),
            address: node.row.address,
            generation: node.row.generation,
            locality: node.row.locality,
            disks: node.disks.len() as u64,
            placement_groups: node.placement_groups as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::map::command::NodeRow;

    #[test]
    fn has_the_shape_that_scripts_depend_on() {
        let row = NodeRow { id: 2, address: "a:1".into(), generation: 3, ..NodeRow::default() };
        let view = NodeView::from(NodeInfo { row, disks: vec![], placement_groups: 4 });
        assert_eq!(
            serde_json::to_string(&view).unwrap(),
            r#"{"id":2,"state":"up","address":"a:1","generation":3,"locality":"","disks":0,"placement_groups":4}"#
        );
    }
}
