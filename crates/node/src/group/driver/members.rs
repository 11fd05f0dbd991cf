//! Which members the group should have, and which of them should lead: looked at by the leader, now and then.

use base::ids::{GROUP_ZERO, NodeId, PeerId};
use meta::map::command::{ClusterMap, DiskRow, NodeRow, NodeState};
use protocol::membership::{self, NodeView, VOTERS};
use protocol::placement::Locality;
use protocol::raft::PeerProgress;
use std::sync::atomic::Ordering;

use super::Driver;

/// Voters of group 0 from as many nodes on.
const VOTERS_OF_MAP: usize = 5;

impl Driver {
    pub(super) fn plan_membership(&mut self) {
        let map = self.map.borrow().clone();
        // A recovered cluster first says that it is a new one.
        if self.raft.pending_configuration() || map.cluster_generation < self.generation_min.load(Ordering::Relaxed) {
            return;
        }
        let locality = |node: NodeId| {
            let row = map.nodes.iter().find(|row| row.id == node.0);
            row.map(|row| Locality::parse(&row.locality)).unwrap_or_default()
        };
        let nodes = membership::spread(node_views(&map), &self.configuration, locality);
        let stay = [membership::NodeState::Up, membership::NodeState::Down];
        let members = nodes.iter().filter(|view| stay.contains(&view.state)).count();
        let wanted = if self.id == GROUP_ZERO && members >= VOTERS_OF_MAP { VOTERS_OF_MAP } else { VOTERS };
        let gone: Vec<PeerId> = self.gone.iter().copied().collect();
        let progress = self.raft.progress();
        let group_zero = self.id == GROUP_ZERO;
        let change = membership::next_change(&self.configuration, &nodes, &gone, &progress, wanted, group_zero);
        if let Some(change) = change {
            tracing::info!(group = self.id.0, "the group changes: {change:?}");
            // Refused when one is pending: planned again soon.
            let _ = self.raft.propose_configuration(&change);
        }
    }

    pub(super) fn plan_leadership(&mut self) {
        let map = self.map.borrow().clone();
        let is_able = |it: &PeerProgress| it.active && it.matched >= self.applied && !self.rowless.contains(&it.peer);
        let able = self.raft.progress().into_iter().filter(is_able);
        let able: Vec<PeerId> = able.map(|progress| progress.peer).collect();
        // One that is voted out, or slow, gives leadership to anybody who can take it at once.
        let anybody = !is_fit(&map, self.node);
        let is_able = |node| self.configuration.peer_of(node).is_some_and(|peer| able.contains(&peer));
        let may_lead = |node: &NodeId| is_fit(&map, *node) && (!anybody || is_able(*node));
        let up: Vec<NodeId> = map.nodes.iter().map(|row| NodeId(row.id)).filter(may_lead).collect();
        let Some(preferred) = membership::preferred_leader(self.id, &self.configuration, &up) else { return };
        if preferred != self.peer && able.contains(&preferred) {
            self.raft.transfer_leadership(preferred);
        }
    }

    /// The leader was voted out of the cluster, as this node's map says. It may not know: it learns the map from the leader
    /// of group 0, whom it may be the only one not to reach. Then it leads on, clients do not ask it, and what it has
    /// taken waits for ever for a voter that it does not reach.
    pub(super) fn leader_is_out(&self) -> bool {
        let map = self.map.borrow();
        let Some(leader) = self.leader_node().filter(|leader| *leader != self.node) else { return false };
        map.nodes.iter().any(|row| row.id == leader.0) && !is_up(&map, leader)
    }

    /// A leader that is out and knows it hands over at once. Where one is still out at a second look, this replica stands for
    /// election, or at a later one: one after the other, lest they split the votes. The others vote by what their own maps
    /// say, so that an old map here disturbs nobody.
    pub(super) fn replace_leader_that_is_out(&mut self) {
        self.leader_out_looks = if self.leader_is_out() { self.leader_out_looks + 1 } else { 0 };
        let map = self.map.borrow().clone();
        let comes_first = |peer: &PeerId| {
            *peer < self.peer && self.configuration.nodes.get(peer).is_some_and(|node| is_fit(&map, *node))
        };
        let before = self.configuration.voters.iter().filter(|peer| comes_first(peer)).count();
        if self.leader_out_looks > 1 + before && is_fit(&map, self.node) {
            self.raft.campaign();
        }
    }
}

pub(in crate::group) fn is_up(map: &ClusterMap, node: NodeId) -> bool {
    map.nodes
        .iter()
        .any(|row| row.id == node.0 && matches!(row.state(), NodeState::Up | NodeState::Draining | NodeState::Joining))
}

/// Up, and its metadata is on no slow disk.
pub(super) fn is_fit(map: &ClusterMap, node: NodeId) -> bool {
    let is_slow = |row: &DiskRow| row.node == node.0 && row.metadata && row.slow && row.state().serves();
    is_up(map, node) && !map.disks.iter().any(is_slow)
}

/// Nodes that were up at least once.
fn node_views(map: &ClusterMap) -> Vec<NodeView> {
    let view = |row: &NodeRow| {
        let state = match row.state() {
            NodeState::Joining => return None,
            NodeState::Up => membership::NodeState::Up,
            NodeState::Draining => membership::NodeState::Draining,
            NodeState::Down => membership::NodeState::Down,
            NodeState::Lost => membership::NodeState::Gone,
            NodeState::Removed => membership::NodeState::Removed,
        };
        Some(NodeView { node: NodeId(row.id), state })
    };
    map.nodes.iter().filter_map(view).collect()
}
