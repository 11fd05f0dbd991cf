//! The cluster's nodes as the admin port lists and removes them.

use bytes::Bytes;
use client::Client;
use meta::map::command::{ClusterMap, MapCommand, MapOutcome, NodeRow, NodeState, PgRow, SetNodeState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

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
    pub disks: u32,
}

/// Why a node is not removed: one sentence.
#[derive(Debug)]
pub enum NotRemoved {
    /// There is no such node.
    Unknown(String),
    /// It may not be, as things are.
    Refused(String),
    Failed(client::Error),
}

pub async fn list(client: &Client) -> Result<Vec<NodeView>, client::Error> {
    let map = client.refresh_map().await?;
    Ok(map.map.nodes.iter().map(|row| view(&map.map, row)).collect())
}

/// Has a node emptied, after which it is removed by itself; with `lost`, removes at once a node that is gone.
pub async fn remove(client: &Client, id: u32, lost: bool) -> Result<NodeView, NotRemoved> {
    let map = client.refresh_map().await.map_err(NotRemoved::Failed)?;
    let state = decide(&map.map, id, lost)?;
    let row = map.map.nodes.iter().find(|row| row.id == id).expect("decide found it");
    let raise_floor = state == NodeState::Removed;
    let change = SetNodeState { id, state: state as i32, raise_floor, generation: row.generation };
    let reply = client.change_map(MapCommand::SetNodeState(change)).await.map_err(NotRemoved::Failed)?;
    match reply.outcome() {
        MapOutcome::Done => {}
        // The node has changed between the look and the change.
        outcome => return Err(NotRemoved::Refused(format!("{outcome:?}: {}; look again and repeat it", reply.detail))),
    }
    let map = client.refresh_map().await.map_err(NotRemoved::Failed)?;
    let row = map.map.nodes.iter().find(|row| row.id == id);
    row.map(|row| view(&map.map, row)).ok_or_else(|| NotRemoved::Unknown(format!("there is no node {id}")))
}

/// The state that the removal of node `id` begins with.
fn decide(map: &ClusterMap, id: u32, lost: bool) -> Result<NodeState, NotRemoved> {
    let refuse = |why: String| Err(NotRemoved::Refused(why));
    let Some(row) = map.nodes.iter().find(|row| row.id == id) else {
        return Err(NotRemoved::Unknown(format!("the cluster has no node {id}; see `henge node list`")));
    };
    let others_serve = map.nodes.iter().any(|other| other.id != id && other.state().serves());
    match (row.state(), lost) {
        (NodeState::Removed, _) => refuse(format!("node {id} is removed already")),
        (NodeState::Joining, _) => Ok(NodeState::Removed),
        _ if !others_serve => refuse(format!("no other node is up: with node {id} everything would go")),
        (NodeState::Up | NodeState::Draining, false) => Ok(NodeState::Draining),
        (NodeState::Up | NodeState::Draining, true) => {
            refuse(format!("node {id} is up and its data can be moved: remove it without --lost, or stop it first"))
        }
        (NodeState::Down | NodeState::Lost, false) => refuse(format!(
            "node {id} does not answer, so its data cannot be moved: start it; or, when its disks are gone for good, \
             `henge node remove {id} --lost`"
        )),
        (NodeState::Down | NodeState::Lost, true) => match last_copies(map, id) {
            0 => Ok(NodeState::Removed),
            groups => refuse(format!(
                "node {id} holds the last copies of {groups} of {} placement groups: start it again, or bring back another \
                 of their nodes first",
                map.pgs.len()
            )),
        },
    }
}

/// Placement groups of which nothing is left once node `id` is gone.
fn last_copies(map: &ClusterMap, id: u32) -> usize {
    let gone = |row: &&NodeRow| row.id == id || matches!(row.state(), NodeState::Lost | NodeState::Removed);
    let gone: BTreeSet<u32> = map.nodes.iter().filter(gone).map(|row| row.id).collect();
    let remains = |disk: &Bytes| map.disks.iter().any(|row| row.id == *disk && !gone.contains(&row.node));
    let own: BTreeSet<&Bytes> = map.disks.iter().filter(|row| row.node == id).map(|row| &row.id).collect();
    // Of a group that moves, only the members from before surely have everything.
    let holders = |row: &PgRow| if row.closed { row.members_before.clone() } else { row.members.clone() };
    let is_last = |row: &&PgRow| {
        let holders = holders(row);
        holders.iter().any(|disk| own.contains(disk)) && !holders.iter().any(remains)
    };
    map.pgs.iter().filter(is_last).count()
}

fn view(map: &ClusterMap, row: &NodeRow) -> NodeView {
    let state = match row.state() {
        NodeState::Up => "up",
        NodeState::Down => "down",
        NodeState::Lost => "lost",
        NodeState::Draining => "draining",
        NodeState::Removed => "removed",
        NodeState::Joining => "joining",
    };
    let disks = map.disks.iter().filter(|disk| disk.node == row.id).count();
    NodeView {
        id: row.id,
        state: state.into(),
        address: row.address.clone(),
        generation: row.generation,
        locality: row.locality.clone(),
        disks: u32::try_from(disks).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::map::command::DiskRow;

    fn disk(id: u8) -> Bytes {
        Bytes::copy_from_slice(&u128::from(id).to_be_bytes())
    }

    /// Nodes 1.. in these states, each with the disk of its number; one group on `members`.
    fn map(states: &[NodeState], members: &[u8]) -> ClusterMap {
        let ids = 1..=states.len() as u32;
        let node = |(id, state): (u32, &NodeState)| NodeRow { id, state: *state as i32, ..NodeRow::default() };
        let disk_row = |id: u32| DiskRow { id: disk(id as u8), node: id, ..DiskRow::default() };
        ClusterMap {
            nodes: ids.clone().zip(states).map(node).collect(),
            disks: ids.map(disk_row).collect(),
            pgs: vec![PgRow { members: members.iter().copied().map(disk).collect(), ..PgRow::default() }],
            ..ClusterMap::default()
        }
    }

    #[test]
    fn what_is_up_drains_and_only_what_is_gone_is_lost() {
        use NodeState::{Down, Draining, Joining, Lost, Removed, Up};
        let outcome = |states: &[NodeState], members: &[u8], lost| decide(&map(states, members), 1, lost).ok();
        assert_eq!(outcome(&[Up, Up], &[1, 2], false), Some(Draining));
        assert_eq!(outcome(&[Up, Up], &[1, 2], true), None, "it is up");
        assert_eq!(outcome(&[Up], &[1], false), None, "the only one");
        assert_eq!(outcome(&[Up, Down], &[1, 2], false), None, "nobody could take over");
        assert_eq!(outcome(&[Down, Up], &[1, 2], false), None, "its data cannot be moved");
        assert_eq!(outcome(&[Down, Up], &[1, 2], true), Some(Removed));
        assert_eq!(outcome(&[Lost, Up], &[2], true), Some(Removed));
        assert_eq!(outcome(&[Down, Up], &[1], true), None, "a last copy");
        assert_eq!(outcome(&[Down, Lost, Up], &[1, 2], true), None, "the other copy is lost");
        assert_eq!(outcome(&[Joining, Up], &[2], false), Some(Removed));
        assert_eq!(outcome(&[Removed, Up], &[2], false), None);
        assert!(matches!(decide(&map(&[Up], &[1]), 9, false), Err(NotRemoved::Unknown(_))));
    }

    #[test]
    fn a_group_on_the_move_counts_only_those_who_have_everything() {
        let mut moving = map(&[NodeState::Down, NodeState::Up], &[2]);
        moving.pgs[0].closed = true;
        moving.pgs[0].members_before = vec![disk(1)];
        assert!(decide(&moving, 1, true).is_err());
    }
}
