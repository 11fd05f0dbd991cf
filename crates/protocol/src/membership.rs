//! Which nodes hold replicas of a group, and which of them vote: a pure planner, run by the group's leader.
//!
//! It answers one change at a time; the next one follows when that is applied. It never lowers the number of voters
//! unless an operator removed a node, and a node that is only down changes nothing: it comes back.

use base::ids::{GroupId, LogIndex, NodeId, PeerId};

use crate::raft::{Configuration, ConfigurationChange, PeerProgress};

/// Entries that a learner may lack to be made a voter: the new majority may need it at once.
pub const CAUGHT_UP_LAG_MAX: u64 = 1000;

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    Up,
    /// Not there at the moment. Nothing is decided about it.
    Down,
    /// Lost: it is not expected back. Its votes are replaced as soon as another can take them.
    Gone,
    /// Removed by the operator: its votes are taken from it even if nobody can take them over.
    Removed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeView {
    pub node: NodeId,
    pub state: NodeState,
}

/// The next change of a group's members, if one is due.
///
/// `nodes` is in the order in which they are to be chosen; a node that is not listed counts as down. In group 0 every
/// node gets a replica; in other groups, as many as there are to be voters.
pub fn next_change(
    configuration: &Configuration,
    nodes: &[NodeView],
    progress: &[PeerProgress],
    wanted_voters: usize,
    group_zero: bool,
) -> Option<ConfigurationChange> {
    if configuration.is_empty() || configuration.is_joint() {
        return None;
    }
    let plan = Plan { configuration, nodes, progress, wanted_voters, group_zero };
    plan.replace_voter()
        .or_else(|| plan.grow())
        .or_else(|| plan.add_learner())
        .or_else(|| plan.remove_voter())
        .or_else(|| plan.remove_learner())
}

struct Plan<'a> {
    configuration: &'a Configuration,
    nodes: &'a [NodeView],
    progress: &'a [PeerProgress],
    wanted_voters: usize,
    group_zero: bool,
}

impl Plan<'_> {
    /// A voter that is not expected back gives its vote to a learner, in one step.
    fn replace_voter(&self) -> Option<ConfigurationChange> {
        let leaving =
            self.voters_in(&[NodeState::Removed]).next().or_else(|| self.voters_in(&[NodeState::Gone]).next())?;
        let heir = self.caught_up().next()?;
        Some(ConfigurationChange::Promote { peers: vec![heir], remove: vec![leaving] })
    }

    /// One voter more, until there are three; from then on two, because an even number tolerates no more failures
    /// than the odd one below it.
    fn grow(&self) -> Option<ConfigurationChange> {
        let voters = self.configuration.voters.len();
        if voters >= self.wanted_voters {
            return None;
        }
        let count = if voters >= 3 && voters % 2 == 1 { 2 } else { 1 };
        if voters + count > self.wanted_voters {
            return None;
        }
        let peers: Vec<PeerId> = self.caught_up().take(count).collect();
        (peers.len() == count).then_some(ConfigurationChange::Promote { peers, remove: vec![] })
    }

    fn add_learner(&self) -> Option<ConfigurationChange> {
        if !self.group_zero && self.replicas_that_stay() >= self.wanted_voters {
            return None;
        }
        let lacks = |view: &&NodeView| view.state == NodeState::Up && self.configuration.peer_of(view.node).is_none();
        let node = self.nodes.iter().find(lacks)?.node;
        Some(ConfigurationChange::AddLearner { node })
    }

    /// A removed node's vote goes even if nobody takes it over; but a learner that is on its way is waited for.
    fn remove_voter(&self) -> Option<ConfigurationChange> {
        if self.learners_in(&[NodeState::Up]).next().is_some() || self.configuration.voters.len() < 2 {
            return None;
        }
        let leaving = self.voters_in(&[NodeState::Removed]).next()?;
        Some(ConfigurationChange::Remove { peers: vec![leaving] })
    }

    /// Learners of nodes that do not come back; and in groups other than 0, those that are not needed any more.
    fn remove_learner(&self) -> Option<ConfigurationChange> {
        let surplus = || {
            let enough = self.voters_in(&[NodeState::Up, NodeState::Down]).count() >= self.wanted_voters;
            let idle = !self.group_zero && enough;
            self.configuration.learners.iter().copied().find(|_| idle)
        };
        let leaving = self.learners_in(&[NodeState::Gone, NodeState::Removed]).next().or_else(surplus)?;
        Some(ConfigurationChange::Remove { peers: vec![leaving] })
    }

    /// Learners that can take a vote now, in the order of `nodes`.
    fn caught_up(&self) -> impl Iterator<Item = PeerId> + '_ {
        let last = self.progress.iter().map(|progress| progress.matched).max().unwrap_or_default();
        let able = move |peer: &PeerId| {
            let near = |of: &PeerProgress| {
                // Nothing matched: it has no state yet.
                of.peer == *peer && of.active && of.matched > LogIndex(0) && of.matched.0 + CAUGHT_UP_LAG_MAX >= last.0
            };
            self.configuration.learners.contains(peer) && self.progress.iter().any(near)
        };
        let up = self.nodes.iter().filter(|view| view.state == NodeState::Up);
        up.filter_map(|view| self.configuration.peer_of(view.node)).filter(able)
    }

    fn replicas_that_stay(&self) -> usize {
        let stay = [NodeState::Up, NodeState::Down];
        self.voters_in(&stay).count() + self.learners_in(&stay).count()
    }

    fn voters_in<'a>(&'a self, states: &'a [NodeState]) -> impl Iterator<Item = PeerId> + 'a {
        self.configuration.voters.iter().copied().filter(|peer| states.contains(&self.state_of(*peer)))
    }

    fn learners_in<'a>(&'a self, states: &'a [NodeState]) -> impl Iterator<Item = PeerId> + 'a {
        self.configuration.learners.iter().copied().filter(|peer| states.contains(&self.state_of(*peer)))
    }

    fn state_of(&self, peer: PeerId) -> NodeState {
        let node = self.configuration.node_of(peer);
        let view = self.nodes.iter().find(|view| Some(view.node) == node);
        view.map_or(NodeState::Down, |view| view.state)
    }
}

/// The voter that should lead, so that leaders are spread over nodes: groups take turns through the voters' nodes,
/// and the next one that is up stands in. `None` when no voter's node is up.
pub fn preferred_leader(group: GroupId, configuration: &Configuration, up: &[NodeId]) -> Option<PeerId> {
    let mut voters: Vec<(NodeId, PeerId)> =
        configuration.voters.iter().filter_map(|peer| configuration.node_of(*peer).map(|node| (node, *peer))).collect();
    voters.sort();
    let first = (group.0 % voters.len().max(1) as u64) as usize;
    let turn = voters[first..].iter().chain(&voters[..first]);
    turn.into_iter().find(|(node, _)| up.contains(node)).map(|(_, peer)| *peer)
}
