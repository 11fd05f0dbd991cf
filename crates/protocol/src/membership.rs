//! Which nodes hold replicas of a group, and which of them vote: a pure planner, run by the group's leader.
//!
//! It answers one change at a time; the next one follows when that is applied. It never lowers the number of voters
//! unless an operator removed a node, and a node that is only down changes nothing: it comes back.

use base::ids::{GroupId, LogIndex, NodeId, PeerId};

use crate::placement::Locality;
use crate::raft::{Configuration, ConfigurationChange, PeerProgress};

/// Entries that a learner may lack to be made a voter: the new majority may need it at once.
pub const CAUGHT_UP_LAG_MAX: u64 = 1000;

/// Voters of a shard, and of group 0 while the cluster is small. Data has no more copies than its metadata.
pub const VOTERS: usize = 3;

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    Up,
    /// Serves as when up, but is to go: its votes are replaced as soon as others can take them.
    Draining,
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
/// `nodes` is in the order in which they are to be chosen; a node that is not listed counts as down. `gone`: peers that
/// never answer again although their nodes are there, because they lost their logs. In group 0 every node gets a
/// replica; in other groups, as many as there are to be voters.
pub fn next_change(
    configuration: &Configuration,
    nodes: &[NodeView],
    gone: &[PeerId],
    progress: &[PeerProgress],
    wanted_voters: usize,
    group_zero: bool,
) -> Option<ConfigurationChange> {
    if configuration.is_empty() || configuration.is_joint() {
        return None;
    }
    let plan = Plan { configuration, nodes, gone, progress, wanted_voters, group_zero };
    plan.replace_voter()
        .or_else(|| plan.grow())
        .or_else(|| plan.add_learner())
        .or_else(|| plan.remove_voter())
        .or_else(|| plan.remove_learner())
}

struct Plan<'a> {
    configuration: &'a Configuration,
    nodes: &'a [NodeView],
    gone: &'a [PeerId],
    progress: &'a [PeerProgress],
    wanted_voters: usize,
    group_zero: bool,
}

impl Plan<'_> {
    /// A voter that is not expected back gives its vote to a learner, in one step.
    fn replace_voter(&self) -> Option<ConfigurationChange> {
        let leaving = [NodeState::Removed, NodeState::Gone, NodeState::Draining]
            .iter()
            .find_map(|state| self.voters_in(std::slice::from_ref(state)).next())?;
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
        let serves =
            |view: &NodeView| view.state == NodeState::Up || (self.group_zero && view.state == NodeState::Draining);
        let has = |node| self.configuration.peer_of(node).is_some_and(|peer| !self.gone.contains(&peer));
        let lacks = |view: &&NodeView| serves(view) && !has(view.node);
        let node = self.nodes.iter().find(lacks)?.node;
        Some(ConfigurationChange::AddLearner { node })
    }

    /// A removed node's vote goes even if nobody takes it over, and so does that of a node that is being emptied when
    /// enough others vote; but a learner that is on its way is waited for.
    fn remove_voter(&self) -> Option<ConfigurationChange> {
        if self.learners_in(&[NodeState::Up]).next().is_some() || self.configuration.voters.len() < 2 {
            return None;
        }
        let enough = self.voters_in(&[NodeState::Up]).count() >= self.wanted_voters;
        let emptied = || self.voters_in(&[NodeState::Draining]).next().filter(|_| enough);
        let leaving = self.voters_in(&[NodeState::Removed]).next().or_else(emptied)?;
        Some(ConfigurationChange::Remove { peers: vec![leaving] })
    }

    /// Learners of nodes that do not come back; and in groups other than 0, those that are not needed any more.
    fn remove_learner(&self) -> Option<ConfigurationChange> {
        // A leader that was elected just now does not know yet who lost its log: only voters that answer are counted on.
        let surplus = || {
            let voters = self.voters_in(&[NodeState::Up, NodeState::Down]);
            let enough = voters.filter(|peer| self.answers(*peer)).count() >= self.wanted_voters;
            let idle = !self.group_zero && enough;
            self.configuration.learners.iter().copied().find(|_| idle)
        };
        let leaving = self.learners_in(&[NodeState::Gone, NodeState::Removed]).next();
        let leaving = leaving.or_else(|| self.needless()).or_else(surplus)?;
        Some(ConfigurationChange::Remove { peers: vec![leaving] })
    }

    /// A learner that was to replace a member on its own node, which answers again.
    fn needless(&self) -> Option<PeerId> {
        let node_of = |peer| self.configuration.node_of(peer);
        let members = || self.configuration.voters.iter().chain(&self.configuration.learners).copied();
        let is_twin = |learner: &PeerId| {
            members().any(|member| member < *learner && node_of(member) == node_of(*learner) && self.answers(member))
        };
        self.configuration.learners.iter().copied().find(is_twin)
    }

    fn answers(&self, peer: PeerId) -> bool {
        let is_active = self.progress.iter().any(|progress| progress.peer == peer && progress.active);
        is_active && !self.gone.contains(&peer)
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
        if self.gone.contains(&peer) {
            return NodeState::Gone;
        }
        let node = self.configuration.node_of(peer);
        let view = self.nodes.iter().find(|view| Some(view.node) == node);
        view.map_or(NodeState::Down, |view| view.state)
    }
}

/// The order in which nodes are to be chosen so that voters are spread over regions, then zones, then racks: first those in
/// whose domains the group has the fewest.
pub fn spread(
    mut nodes: Vec<NodeView>,
    configuration: &Configuration,
    locality: impl Fn(NodeId) -> Locality,
) -> Vec<NodeView> {
    let votes: Vec<(NodeId, Locality)> = configuration
        .voters
        .iter()
        .filter_map(|peer| configuration.node_of(*peer))
        .map(|node| (node, locality(node)))
        .collect();
    let crowd = |node: NodeId| {
        let own = locality(node);
        let others = || votes.iter().filter(|(other, _)| *other != node).map(|(_, other)| other);
        let region = others().filter(|other| other.region == own.region).count();
        let zone = others().filter(|other| (&other.region, &other.zone) == (&own.region, &own.zone)).count();
        let rack = others().filter(|other| **other == own).count();
        (region, zone, rack)
    };
    nodes.sort_by_cached_key(|view| (crowd(view.node), view.node));
    nodes
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Peer n is on node n.
    fn configuration(voters: &[u64], learners: &[u64]) -> Configuration {
        let peers = |ids: &[u64]| ids.iter().copied().map(PeerId).collect::<Vec<_>>();
        let nodes: BTreeMap<PeerId, NodeId> =
            voters.iter().chain(learners).map(|id| (PeerId(*id), NodeId(*id as u32))).collect();
        Configuration {
            voters: peers(voters),
            learners: peers(learners),
            peer_last: PeerId(20),
            nodes,
            ..Configuration::default()
        }
    }

    /// One letter a node: Up, Down, Gone, Emptied (draining), Removed.
    fn nodes(states: &str) -> Vec<NodeView> {
        let state = |letter| match letter {
            'U' => NodeState::Up,
            'D' => NodeState::Down,
            'G' => NodeState::Gone,
            'E' => NodeState::Draining,
            _ => NodeState::Removed,
        };
        states.chars().zip(1..).map(|(letter, node)| NodeView { node: NodeId(node), state: state(letter) }).collect()
    }

    /// Everybody has all of 5000 entries, but these have so many.
    fn progress(but: &[(u64, u64)]) -> Vec<PeerProgress> {
        let matched = |peer: u64| but.iter().find(|it| it.0 == peer).map_or(5000, |it| it.1);
        let of = |peer| PeerProgress { peer: PeerId(peer), matched: LogIndex(matched(peer)), active: true };
        (1..10).map(of).collect()
    }

    fn add(node: u32) -> Option<ConfigurationChange> {
        Some(ConfigurationChange::AddLearner { node: NodeId(node) })
    }

    fn promote(peers: &[u64], remove: &[u64]) -> Option<ConfigurationChange> {
        let of = |ids: &[u64]| ids.iter().copied().map(PeerId).collect();
        Some(ConfigurationChange::Promote { peers: of(peers), remove: of(remove) })
    }

    fn remove(peer: u64) -> Option<ConfigurationChange> {
        Some(ConfigurationChange::Remove { peers: vec![PeerId(peer)] })
    }

    #[test]
    fn what_is_due() {
        type Case<'a> = (&'a [u64], &'a [u64], &'a str, usize, bool, Option<ConfigurationChange>);
        let cases: &[Case<'_>] = &[
            // Growing.
            (&[1], &[], "U", 3, true, None),
            (&[1], &[], "UU", 3, true, add(2)),
            (&[1], &[], "UD", 3, true, None),
            (&[1], &[2], "UU", 3, true, promote(&[2], &[])),
            (&[1], &[2, 3], "UUU", 3, true, promote(&[2], &[])),
            (&[1, 2], &[3], "UUU", 3, true, promote(&[3], &[])),
            (&[1, 2], &[3], "UUD", 3, true, None),
            (&[1, 2, 3], &[], "UUU", 3, true, None),
            (&[1, 2, 3], &[], "UUUU", 3, true, add(4)),
            (&[1, 2, 3], &[4], "UUUU", 3, true, None),
            (&[1, 2, 3], &[4], "UUUUU", 5, true, add(5)),
            (&[1, 2, 3], &[4, 5], "UUUUU", 5, true, promote(&[4, 5], &[])),
            // A shard takes as many nodes as it needs, in their order.
            (&[1, 2, 3], &[], "UUUU", 3, false, None),
            (&[1, 2, 3], &[4], "UUUU", 3, false, remove(4)),
            (&[2], &[], "UUU", 3, false, add(1)),
            // Down changes nothing; gone is replaced and never merely dropped.
            (&[1, 2, 3], &[4], "UUDU", 3, true, None),
            (&[1, 2, 3], &[4], "UUGU", 3, true, promote(&[4], &[3])),
            (&[1, 2, 3], &[], "UUG", 3, true, None),
            (&[1, 2, 3], &[], "UUGU", 3, false, add(4)),
            (&[1, 2, 3], &[4], "UUGD", 3, true, None),
            (&[1, 2, 3], &[4], "UUUG", 3, true, remove(4)),
            // Removed goes in any case, but a learner on its way is waited for.
            (&[1, 2, 3], &[], "UUR", 3, true, remove(3)),
            (&[1, 2, 3], &[4], "UURU", 3, true, promote(&[4], &[3])),
            (&[1, 2, 3], &[], "UURU", 3, true, add(4)),
            (&[1], &[], "R", 3, true, None),
            // A node that is being emptied hands its vote over. Found by the simulator: where everybody votes already, as
            // in group 0 of five nodes, its vote stayed, and it was never let go.
            (&[1, 2, 3], &[4], "UUEU", 3, true, promote(&[4], &[3])),
            (&[1, 2, 3, 4, 5], &[], "UUUEU", 3, true, remove(4)),
            (&[1, 2, 3, 4, 5], &[], "UUDEU", 3, true, remove(4)),
            (&[1, 2, 3, 4, 5], &[], "UDDEU", 3, true, None),
            (&[1, 2, 3], &[], "UUE", 3, true, None),
        ];
        for (voters, learners, states, wanted, zero, due) in cases {
            let now = configuration(voters, learners);
            let next = next_change(&now, &nodes(states), &[], &progress(&[]), *wanted, *zero);
            assert_eq!(next, *due, "{voters:?} {learners:?} {states} {wanted} {zero}");
        }
    }

    /// Found by the simulator: a disk was away for a moment, and the voter on it was replaced although its log was whole.
    #[test]
    fn a_voter_that_answers_again_is_not_replaced() {
        let mut now = configuration(&[1, 2, 3], &[4]);
        now.nodes.insert(PeerId(4), NodeId(3));
        let new = [(4, 0)];
        let next = |gone: &[PeerId]| next_change(&now, &nodes("UUU"), gone, &progress(&new), 3, true);
        assert_eq!(next(&[PeerId(3)]), None, "its successor has no state yet");
        assert_eq!(next(&[]), remove(4));
    }

    /// Found by the simulator: the leader that had made a learner in place of a lost log was gone, and the next one, which had
    /// not heard of the loss, removed the learner as one too many.
    #[test]
    fn a_learner_is_kept_until_enough_voters_have_answered() {
        let mut now = configuration(&[1, 2, 3], &[4]);
        now.nodes.insert(PeerId(4), NodeId(3));
        let next = |now: &Configuration, silent: usize| {
            let mut progress = progress(&[]);
            progress[silent - 1].active = false;
            next_change(now, &nodes("UUUU"), &[], &progress, 3, false)
        };
        assert_eq!(next(&now, 3), None, "its own node's voter");
        assert_eq!(next(&configuration(&[1, 2, 3], &[4]), 2), None, "another's");
        assert_eq!(next(&now, 9), remove(4), "all answer");
    }

    #[test]
    fn only_who_has_caught_up_gets_a_vote() {
        let now = configuration(&[1], &[2]);
        let next = |progress: &[PeerProgress]| next_change(&now, &nodes("UU"), &[], progress, 3, true);
        assert_eq!(next(&progress(&[(2, 5000 - CAUGHT_UP_LAG_MAX)])), promote(&[2], &[]));
        assert_eq!(next(&progress(&[(2, 4999 - CAUGHT_UP_LAG_MAX)])), None);
        let mut silent = progress(&[]);
        silent[1].active = false;
        assert_eq!(next(&silent), None);
        let short_log: Vec<PeerProgress> = progress(&[(1, 3), (2, 0)]).into_iter().take(2).collect();
        assert_eq!(next(&short_log), None, "a learner without a state, however short the log");
        let removed = configuration(&[1, 3], &[2]);
        assert_eq!(next_change(&removed, &nodes("UUR"), &[], &progress(&[(2, 1)]), 3, true), None, "it is waited for");
    }

    #[test]
    fn a_joint_configuration_is_left_alone() {
        let mut now = configuration(&[1, 2], &[3]);
        now.voters_outgoing = vec![PeerId(1)];
        assert_eq!(next_change(&now, &nodes("UUU"), &[], &progress(&[]), 3, true), None);
        assert_eq!(next_change(&Configuration::default(), &nodes("UUU"), &[], &progress(&[]), 3, true), None);
    }

    #[test]
    fn voters_are_spread_over_zones() {
        // Nodes 1 and 2 in zone a, 3 and 4 in b, 5 in c.
        let zone = |node: NodeId| Locality::parse(&format!("zone={}", ["a", "a", "b", "b", "c"][node.0 as usize - 1]));
        let order = |voters: &[u64]| {
            let spread = spread(nodes("UUUUU"), &configuration(voters, &[]), zone);
            spread.iter().map(|view| view.node.0).collect::<Vec<_>>()
        };
        assert_eq!(order(&[1]), [1, 3, 4, 5, 2]);
        assert_eq!(order(&[1, 3]), [1, 3, 5, 2, 4]);
        let now = configuration(&[1, 3], &[2, 4, 5]);
        let next = next_change(&now, &spread(nodes("UUUUU"), &now, zone), &[], &progress(&[]), 3, true);
        assert_eq!(next, promote(&[5], &[]));
    }

    #[test]
    fn leaders_are_spread() {
        let now = configuration(&[1, 2, 3], &[4]);
        let lead = |group, up: &[u32]| {
            let up: Vec<NodeId> = up.iter().copied().map(NodeId).collect();
            preferred_leader(GroupId(group), &now, &up).map(|peer| peer.0)
        };
        let all: Vec<_> = (0..4).map(|group| lead(group, &[1, 2, 3, 4])).collect();
        assert_eq!(all, vec![Some(1), Some(2), Some(3), Some(1)]);
        assert_eq!(lead(1, &[1, 3, 4]), Some(3));
        assert_eq!(lead(2, &[1]), Some(1));
        assert_eq!(lead(0, &[4]), None, "learners do not lead");
    }
}
