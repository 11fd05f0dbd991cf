//! Nodes and tokens, for operators and for the handshake of those who join. Refusals are sentences.

use base::ids::NodeId;
use bytes::Bytes;
use meta::map::command::{
    DiskRow, DiskState, MapCommand, MapOutcome, MapReply, NodeRow, NodeState, PgRow, RedeemToken, SetNodeState,
    TokenRow,
};
use std::time::Duration;

use crate::call::Client;
use crate::error::Error;
use crate::map::{MapView, Member, disk_id};

/// A node with what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeInfo {
    pub row: NodeRow,
    pub disks: Vec<DiskRow>,
    /// Placement groups that have a member on it, or had one before a move that has not ended.
    pub placement_groups: usize,
}

/// A disk with what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskInfo {
    pub row: DiskRow,
    /// Placement groups that have a member on it, or had one before a move that has not ended.
    pub placement_groups: usize,
}

/// What was decided about a node that is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It serves until its data is elsewhere.
    Draining,
    /// It is out for ever.
    Removed,
}

impl Client {
    /// Records a new token. `id` is 16 lower-case hexadecimal digits, `secret_hash` the SHA-256 of its secret.
    pub async fn create_token(&self, id: &str, secret_hash: [u8; 32], lifetime: Duration) -> Result<TokenRow, Error> {
        let created_ms = self.wall_ms();
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let row = TokenRow {
            id: id.to_string(),
            secret_hash: Bytes::copy_from_slice(&secret_hash),
            created_ms,
            expires_ms: created_ms.saturating_add(lifetime_ms),
            ..TokenRow::default()
        };
        let reply = self.change_map(MapCommand::CreateToken(row.clone())).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(row),
            MapOutcome::TooMany => {
                let why = "there are 1000 unused tokens; wait until some have expired".to_string();
                Err(Error::Unavailable(why))
            }
            _ => Err(Error::Invalid(reply.detail)),
        }
    }

    /// Uses a token up and answers the id of the new node. `joiner`: see [`RedeemToken::joiner`]; `node`: its locality,
    /// address and feature level.
    pub async fn redeem_token(
        &self,
        id: &str,
        secret_hash: [u8; 32],
        joiner: Bytes,
        node: NodeRow,
    ) -> Result<NodeId, Error> {
        let redeem = RedeemToken {
            id: id.to_string(),
            secret_hash: Bytes::copy_from_slice(&secret_hash),
            now_ms: self.wall_ms(),
            node: Some(node),
            joiner,
        };
        redeemed(self.change_map(MapCommand::RedeemToken(redeem)).await?)
    }

    /// By id, those that were removed included.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, Error> {
        let map = self.refresh_map().await?;
        Ok(map.map.nodes.iter().map(|row| info(&map, row)).collect())
    }

    /// Takes a node out: drains it, or, when it is `lost`, gives it up at once. The decision is fenced: when the node
    /// comes up meanwhile, nothing is done.
    pub async fn remove_node(&self, node: NodeId, lost: bool) -> Result<Removal, Error> {
        let map = self.refresh_map().await?;
        let row = map.node(node).ok_or_else(|| Error::Invalid(format!("there is no node {node}")))?;
        let removal = check_removal(&map, row, lost).map_err(Error::Invalid)?;
        let state = match removal {
            Removal::Draining => NodeState::Draining,
            Removal::Removed => NodeState::Removed,
        };
        let raise_floor = removal == Removal::Removed;
        let generation = row.generation;
        let change = SetNodeState { id: node.0, state: state as i32, raise_floor, generation, stays: false };
        self.set_node_state(change).await.map(|()| removal)
    }

    /// Moves all data off a node that stays in the cluster, or lets it take data again.
    pub async fn drain_node(&self, node: NodeId, drains: bool) -> Result<(), Error> {
        let map = self.refresh_map().await?;
        let row = map.node(node).ok_or_else(|| Error::Invalid(format!("there is no node {node}")))?;
        let state = if drains { NodeState::Draining } else { NodeState::Up };
        match row.state() {
            NodeState::Up if drains => check_drain(&map, row).map_err(Error::Invalid)?,
            NodeState::Draining if !row.leaving => {}
            NodeState::Draining => {
                return Err(Error::Invalid(format!("node {node} is being removed; it is gone when it is empty")));
            }
            NodeState::Up => return Ok(()),
            _ => return Err(Error::Invalid(format!("node {node} is not up"))),
        }
        let (id, generation) = (node.0, row.generation);
        let change = SetNodeState { id, state: state as i32, raise_floor: false, generation, stays: true };
        self.set_node_state(change).await
    }

    async fn set_node_state(&self, change: SetNodeState) -> Result<(), Error> {
        let node = change.id;
        let reply = self.change_map(MapCommand::SetNodeState(change)).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(()),
            MapOutcome::Stale => Err(Error::Invalid(format!("node {node} came up meanwhile; nothing was changed"))),
            _ => Err(Error::Invalid(reply.detail)),
        }
    }

    /// By id.
    pub async fn disks(&self) -> Result<Vec<DiskInfo>, Error> {
        let map = self.refresh_map().await?;
        Ok(map.map.disks.iter().map(|row| disk_info(&map, row)).collect())
    }

    /// Moves all data off a disk, named by its id or the beginning of it; or lets it take data again.
    pub async fn drain_disk(&self, name: &str, drains: bool) -> Result<DiskInfo, Error> {
        let map = self.refresh_map().await?;
        let row = find_disk(&map, name).map_err(Error::Invalid)?;
        match row.state() {
            DiskState::Up | DiskState::Draining if drains => check_disk_drain(&map, row).map_err(Error::Invalid)?,
            DiskState::Up | DiskState::Draining => {}
            _ => return Err(Error::Invalid("the disk does not serve: its copies are made again from others".into())),
        }
        let state = if drains { DiskState::Draining } else { DiskState::Up };
        self.set_disk_state(row, state).await
    }

    /// Forgets a disk that holds nothing any more.
    pub async fn remove_disk(&self, name: &str) -> Result<DiskInfo, Error> {
        let map = self.refresh_map().await?;
        let row = find_disk(&map, name).map_err(Error::Invalid)?;
        let held = disk_info(&map, row).placement_groups;
        match row.state() {
            DiskState::Up => Err(Error::Invalid("the disk is in service: drain it first".into())),
            _ if held > 0 => Err(Error::Invalid(format!(
                "{held} placement groups still count on the disk: wait until their copies are elsewhere"
            ))),
            _ => self.set_disk_state(row, DiskState::Removed).await,
        }
    }

    async fn set_disk_state(&self, row: &DiskRow, state: DiskState) -> Result<DiskInfo, Error> {
        let after = DiskRow { state: state as i32, ..row.clone() };
        self.change_map_checked(MapCommand::SetDisk(after.clone())).await?;
        Ok(disk_info(&self.map(), &after))
    }
}

fn disk_info(map: &MapView, row: &DiskRow) -> DiskInfo {
    let holds = |pg: &&PgRow| pg.members.iter().chain(&pg.members_before).any(|disk| *disk == row.id);
    DiskInfo { row: row.clone(), placement_groups: map.map.pgs.iter().filter(holds).count() }
}

/// The one disk whose id begins so.
fn find_disk<'a>(map: &'a MapView, name: &str) -> Result<&'a DiskRow, String> {
    let plain = |text: &str| text.replace('-', "").to_ascii_lowercase();
    let id = |row: &DiskRow| disk_id(&row.id).map_or_else(String::new, |id| plain(&id.to_string()));
    let mut found = map.map.disks.iter().filter(|row| id(row).starts_with(&plain(name)));
    match (found.next(), found.next()) {
        (Some(row), None) => Ok(row),
        (None, _) => Err(format!("no disk has an id that begins with {name}")),
        _ => Err(format!("several disks have ids that begin with {name}: give more of it")),
    }
}

/// What a draining disk holds needs another place: on its node, or on a node that has no copy yet.
fn check_disk_drain(map: &MapView, row: &DiskRow) -> Result<(), String> {
    let serves = |disk: &&DiskRow| {
        disk.id != row.id
            && disk.state() == DiskState::Up
            && map.node(NodeId(disk.node)).is_some_and(|node| node.state() == NodeState::Up)
    };
    let nodes: std::collections::BTreeSet<u32> = map.map.disks.iter().filter(serves).map(|disk| disk.node).collect();
    let copies = map.map.pools.iter().map(|pool| pool.copies_effective as usize).max().unwrap_or(1).max(1);
    if nodes.len() < copies {
        return Err(format!(
            "without this disk there are {} nodes with disks for {copies} copies of the data: add a disk or a node first",
            nodes.len()
        ));
    }
    Ok(())
}

fn redeemed(reply: MapReply) -> Result<NodeId, Error> {
    let refused = match reply.outcome() {
        MapOutcome::Done => return Ok(NodeId(reply.id as u32)),
        MapOutcome::TokenUnknown => "the cluster does not know this join token: make a new one on a member with \
                                     `henge token create`"
            .into(),
        MapOutcome::TokenUsed => "this join token was used already: each node needs its own".into(),
        MapOutcome::TokenExpired => {
            "this join token has expired: make a new one on a member with `henge token create`".into()
        }
        _ => reply.detail,
    };
    Err(Error::Invalid(refused))
}

fn info(map: &MapView, row: &NodeRow) -> NodeInfo {
    let on_it = |member: &Member| member.node == NodeId(row.id);
    let holds = |pg: &&PgRow| {
        let placement = map.placement_of(pg);
        placement.members.iter().chain(&placement.members_before).any(on_it)
    };
    NodeInfo {
        row: row.clone(),
        disks: map.map.disks.iter().filter(|disk| disk.node == row.id).cloned().collect(),
        placement_groups: map.map.pgs.iter().filter(holds).count(),
    }
}

/// Whether a node may go. Refusals are sentences that say what to do instead.
fn check_removal(map: &MapView, row: &NodeRow, lost: bool) -> Result<Removal, String> {
    let id = row.id;
    match row.state() {
        NodeState::Removed => Err(format!("node {id} was removed already")),
        // It holds nothing.
        NodeState::Joining => Ok(Removal::Removed),
        NodeState::Up | NodeState::Draining if lost => Err(format!(
            "node {id} is in service: stop it first, or remove it without --lost, so that its data moves away"
        )),
        NodeState::Draining => Ok(Removal::Draining),
        NodeState::Up => check_drain(map, row).map(|()| Removal::Draining),
        NodeState::Down | NodeState::Lost if lost => check_lost(map, NodeId(id)).map(|()| Removal::Removed),
        NodeState::Down | NodeState::Lost => {
            Err(format!("node {id} is down, so its data cannot move away: start it again, or give it up with --lost"))
        }
    }
}

fn check_drain(map: &MapView, row: &NodeRow) -> Result<(), String> {
    let left = map.map.nodes.iter().filter(|other| other.id != row.id && other.state() == NodeState::Up).count();
    let copies = map.map.pools.iter().map(|pool| pool.copies_effective as usize).max().unwrap_or(1).max(1);
    if left < copies {
        return Err(format!(
            "without node {} there are {left} nodes for {copies} copies of the data: add a node first",
            row.id
        ));
    }
    Ok(())
}

/// Data that may be nowhere else must not be given up.
fn check_lost(map: &MapView, node: NodeId) -> Result<(), String> {
    let is_last = |pg: &&PgRow| {
        let placement = map.placement_of(pg);
        // While a group moves, its new members may lack what only those before have.
        let holders = if placement.closed { placement.members_before } else { placement.members };
        holders.iter().any(|member| member.node == node)
            && !holders.iter().any(|member| member.usable && member.node != node)
    };
    let last = map.map.pgs.iter().filter(is_last).count();
    if last > 0 {
        let all = map.map.pgs.len();
        return Err(format!(
            "node {node} holds the last copy of {last} of {all} placement groups that is not out of service: start it, \
             or another node that has copies"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::map::command::{ClusterMap, PoolRow};

    const LETTERS: &str = "UDLGRJ";

    /// A letter a node: its state (`G`: draining), in the order of [`NodeState`]. Each has one disk of its own number.
    fn map(states: &str, copies_effective: u32, groups: &[(&[u32], &[u32])]) -> MapView {
        let disk = |id: u32| Bytes::copy_from_slice(&u128::from(id).to_be_bytes());
        let disks = |ids: &[u32]| ids.iter().map(|id| disk(*id)).collect::<Vec<_>>();
        let node = |(number, letter): (usize, char)| NodeRow {
            id: number as u32 + 1,
            state: LETTERS.find(letter).unwrap() as i32,
            ..NodeRow::default()
        };
        let nodes: Vec<NodeRow> = states.chars().enumerate().map(node).collect();
        let pg = |(prefix, (members, before)): (usize, &(&[u32], &[u32]))| PgRow {
            pool: 1,
            prefix: prefix as u32,
            epoch: 1,
            closed: !before.is_empty(),
            members: disks(members),
            members_before: disks(before),
        };
        MapView::new(ClusterMap {
            disks: nodes.iter().map(|row| DiskRow { id: disk(row.id), node: row.id, ..DiskRow::default() }).collect(),
            nodes,
            pools: vec![PoolRow { id: 1, copies: 3, copies_effective, pg_bits: 2, ..PoolRow::default() }],
            pgs: groups.iter().enumerate().map(pg).collect(),
            ..ClusterMap::default()
        })
    }

    fn check(map: &MapView, node: u32, lost: bool) -> Result<Removal, String> {
        check_removal(map, map.node(NodeId(node)).unwrap(), lost)
    }

    #[test]
    fn a_node_drains_only_where_its_copies_have_a_place() {
        assert_eq!(check(&map("UUUU", 3, &[]), 1, false), Ok(Removal::Draining));
        assert!(check(&map("UUU", 3, &[]), 1, false).unwrap_err().contains("2 nodes for 3 copies"));
        assert_eq!(check(&map("UUU", 2, &[]), 1, false), Ok(Removal::Draining));
        // Who is down, drains or has not come up yet is no place for copies.
        for others in ["D", "L", "G", "R", "J"] {
            assert!(check(&map(&format!("UUU{others}"), 3, &[]), 1, false).is_err(), "{others}");
        }
        // Again, for who asks twice.
        assert_eq!(check(&map("GUU", 3, &[]), 1, false), Ok(Removal::Draining));
    }

    #[test]
    fn only_what_is_out_of_service_is_given_up_as_lost() {
        for (state, is_given_up) in [("U", false), ("G", false), ("D", true), ("L", true), ("J", true), ("R", false)] {
            let map = map(&format!("{state}UU"), 3, &[]);
            assert_eq!(check(&map, 1, true).is_ok(), is_given_up, "{state}");
        }
        assert!(check(&map("DUU", 3, &[]), 1, false).unwrap_err().contains("--lost"));
        assert_eq!(check(&map("JUU", 3, &[]), 1, false), Ok(Removal::Removed));
    }

    #[test]
    fn the_last_copy_is_never_given_up() {
        let lost = |states: &str, groups: &[(&[u32], &[u32])]| check(&map(states, 3, groups), 1, true);
        assert!(lost("DUU", &[(&[1, 2], &[]), (&[2, 3], &[])]).is_ok());
        assert!(lost("DUU", &[(&[1], &[]), (&[1, 2], &[]), (&[1], &[])]).unwrap_err().contains("2 of 3"));
        // The other copy is out of service too.
        assert!(lost("DDU", &[(&[1, 2], &[])]).is_err());
        // The new members are still empty.
        assert!(lost("DUU", &[(&[2, 3], &[1])]).is_err());
        assert!(lost("DUU", &[(&[1, 3], &[1, 2])]).is_ok());
    }

    #[test]
    fn a_disk_drains_only_where_its_copies_have_a_place() {
        let three = map("UUU", 3, &[(&[1, 2, 3], &[])]);
        assert!(check_disk_drain(&three, &three.map.disks[0]).unwrap_err().contains("2 nodes with disks for 3 copies"));
        let four = map("UUUU", 3, &[(&[1, 2, 3], &[])]);
        assert_eq!(check_disk_drain(&four, &four.map.disks[0]), Ok(()));
        assert_eq!(disk_info(&four, &four.map.disks[0]).placement_groups, 1);
        let id = disk_id(&four.map.disks[2].id).unwrap().to_string();
        assert_eq!(find_disk(&four, &id), Ok(&four.map.disks[2]));
        assert!(find_disk(&four, "0").unwrap_err().contains("several"));
        assert!(find_disk(&four, "f").unwrap_err().contains("no disk"));
    }

    #[test]
    fn a_node_is_shown_with_its_disks_and_groups() {
        let map = map("UUU", 3, &[(&[1, 2], &[]), (&[2, 3], &[1]), (&[2], &[])]);
        let shown = info(&map, map.node(NodeId(1)).unwrap());
        assert_eq!((shown.disks.len(), shown.placement_groups), (1, 2));
    }

    #[test]
    fn refusals_of_tokens_say_what_to_do() {
        for outcome in [MapOutcome::TokenUnknown, MapOutcome::TokenUsed, MapOutcome::TokenExpired] {
            let refused = redeemed(MapReply { outcome: outcome as i32, ..MapReply::default() }).unwrap_err();
            assert!(matches!(refused, Error::Invalid(sentence) if sentence.contains("token")));
        }
        assert_eq!(redeemed(MapReply { id: 4, ..MapReply::default() }), Ok(NodeId(4)));
    }
}
