//! Who the members of a group are, and how that changes (Ongaro 2014, chapter 4; joint consensus as in `raft-rs`).
//!
//! A configuration takes effect when its entry is applied. A new one is proposed only after the one before was applied
//! by the leader, so two configurations in use at the same time are always neighbours, whose quorums overlap.

use base::ids::{NodeId, PeerId};
use bytes::Bytes;
use prost::Message;
use raft::eraftpb::{self, ConfChangeType};
use std::collections::{BTreeMap, BTreeSet};

/// Members of one group, all roles together.
pub const MEMBERS_MAX: usize = 1000;

/// Members of a group. Empty: this replica has not been told yet.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Configuration {
    /// Those who decide; in a joint configuration, the majority of the new ones.
    pub voters: Vec<PeerId>,
    pub learners: Vec<PeerId>,
    /// Not empty in a joint configuration: the old voters, whose majority must agree as well.
    pub voters_outgoing: Vec<PeerId>,
    /// Voters of the old configuration that become learners when the joint one ends.
    pub learners_next: Vec<PeerId>,
    /// The leader ends the joint configuration as soon as it is applied.
    pub auto_leave: bool,
    /// Where each member lives.
    pub nodes: BTreeMap<PeerId, NodeId>,
    /// The highest peer id that was ever allotted in this group.
    pub peer_last: PeerId,
}

/// A change of a group's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigurationChange {
    /// A new peer on this node, which is brought up by a snapshot.
    AddLearner {
        node: NodeId,
    },
    /// Learners become voters, and `remove` leaves, in one step: no moment in between counts with fewer voters.
    Promote {
        peers: Vec<PeerId>,
        remove: Vec<PeerId>,
    },
    Remove {
        peers: Vec<PeerId>,
    },
}

impl Configuration {
    /// The first configuration of a new group.
    pub fn of_one(peer: PeerId, node: NodeId) -> Configuration {
        Configuration {
            voters: vec![peer],
            nodes: BTreeMap::from([(peer, node)]),
            peer_last: peer,
            ..Configuration::default()
        }
    }

    /// Bytes of the group's row: `Row`, as protobuf.
    pub fn encode(&self) -> Bytes {
        Row::of(self).encode_to_vec().into()
    }

    /// Refuses (with a sentence) what no correct peer wrote, and what a newer one may have written.
    pub fn decode(raw: &[u8]) -> Result<Configuration, String> {
        let row = Row::decode(raw).map_err(|error| format!("the configuration is malformed: {error}"))?;
        if row.encoded_len() != raw.len() {
            return Err("the configuration has fields that this version does not know".into());
        }
        let mut configuration = row.into_configuration();
        if configuration.nodes.is_empty() {
            // Written before peers were placed on nodes: peer n was on node n.
            for peer in configuration.members() {
                let node = u32::try_from(peer.0).map_err(|_| format!("no node can be told for peer {peer}"))?;
                configuration.nodes.insert(peer, NodeId(node));
            }
            configuration.peer_last = configuration.members().last().copied().unwrap_or_default();
        }
        configuration.validate()?;
        Ok(configuration)
    }

    /// The member on this node: the newest, when it has several.
    pub fn peer_of(&self, node: NodeId) -> Option<PeerId> {
        self.nodes.iter().rev().find(|(_, on)| **on == node).map(|(peer, _)| *peer)
    }

    pub fn node_of(&self, peer: PeerId) -> Option<NodeId> {
        self.nodes.get(&peer).copied()
    }

    /// Whether this peer's vote counts, in the new or in the old half.
    pub fn is_voter(&self, peer: PeerId) -> bool {
        self.voters.contains(&peer) || self.voters_outgoing.contains(&peer)
    }

    pub fn is_member(&self, peer: PeerId) -> bool {
        self.is_voter(peer) || self.learners.contains(&peer)
    }

    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    /// All members in ascending order.
    pub fn members(&self) -> BTreeSet<PeerId> {
        self.voters.iter().chain(&self.voters_outgoing).chain(&self.learners).copied().collect()
    }

    /// What `raft-rs` would stop the process for.
    pub(super) fn validate(&self) -> Result<(), String> {
        let members = self.members();
        let listed = self.voters.iter().chain(&self.learners).chain(&self.voters_outgoing).chain(&self.learners_next);
        if listed.into_iter().any(|peer| *peer == PeerId(0)) {
            return Err("the configuration lists peer 0".into());
        }
        for part in [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next] {
            if part.iter().collect::<BTreeSet<_>>().len() != part.len() {
                return Err("the configuration lists a peer twice".into());
            }
        }
        if members.len() > MEMBERS_MAX {
            return Err(format!("the configuration has {} members", members.len()));
        }
        if self.voters.is_empty() && (!members.is_empty() || !self.nodes.is_empty()) {
            return Err("the configuration has members and no voter".into());
        }
        if self.learners.iter().any(|peer| self.is_voter(*peer)) {
            return Err("a learner of the configuration is a voter as well".into());
        }
        let staged = |peer: &PeerId| self.voters_outgoing.contains(peer) && !self.voters.contains(peer);
        if !self.learners_next.iter().all(staged) {
            return Err("a future learner of the configuration is no leaving voter".into());
        }
        if self.auto_leave && !self.is_joint() {
            return Err("the configuration is to leave a joint one that it is not in".into());
        }
        if !self.nodes.keys().eq(members.iter()) {
            return Err("the configuration does not place exactly its members on nodes".into());
        }
        if members.last().is_some_and(|last| *last > self.peer_last) {
            return Err("the configuration has a peer that was never allotted".into());
        }
        Ok(())
    }

    pub(super) fn conf_state(&self) -> eraftpb::ConfState {
        let numbers = |peers: &[PeerId]| peers.iter().map(|peer| peer.0).collect();
        let mut state = eraftpb::ConfState::default();
        state.set_voters(numbers(&self.voters));
        state.set_learners(numbers(&self.learners));
        state.set_voters_outgoing(numbers(&self.voters_outgoing));
        state.set_learners_next(numbers(&self.learners_next));
        state.auto_leave = self.auto_leave;
        state
    }

    /// The configuration from `change` on, which `raft-rs` says has these members.
    pub(super) fn after(&self, change: &Change, state: &eraftpb::ConfState) -> Configuration {
        let peers = |numbers: &[u64]| {
            let mut peers: Vec<PeerId> = numbers.iter().copied().map(PeerId).collect();
            peers.sort();
            peers
        };
        let mut after = Configuration {
            voters: peers(state.get_voters()),
            learners: peers(state.get_learners()),
            voters_outgoing: peers(state.get_voters_outgoing()),
            learners_next: peers(state.get_learners_next()),
            auto_leave: state.auto_leave,
            nodes: self.nodes.clone(),
            peer_last: self.peer_last.max(change.peer_last),
        };
        after.nodes.extend(change.nodes.iter().copied());
        let members = after.members();
        after.nodes.retain(|peer, _| members.contains(peer));
        after
    }

    /// What an entry for `change` says. `None`: it does not fit this configuration.
    pub(super) fn plan(&self, change: &ConfigurationChange) -> Option<Change> {
        let mut plan = Change { singles: Vec::new(), nodes: Vec::new(), peer_last: self.peer_last };
        match change {
            ConfigurationChange::AddLearner { node } => {
                let peer = PeerId(self.peer_last.0 + 1);
                plan.singles.push((ConfChangeType::AddLearnerNode, peer));
                plan.nodes.push((peer, *node));
                plan.peer_last = peer;
            }
            ConfigurationChange::Promote { peers, remove } => {
                plan.singles.extend(peers.iter().map(|peer| (ConfChangeType::AddNode, *peer)));
                plan.singles.extend(remove.iter().map(|peer| (ConfChangeType::RemoveNode, *peer)));
                if !peers.iter().all(|peer| self.learners.contains(peer)) {
                    return None;
                }
            }
            ConfigurationChange::Remove { peers } => {
                plan.singles.extend(peers.iter().map(|peer| (ConfChangeType::RemoveNode, *peer)));
            }
        }
        let distinct: BTreeSet<PeerId> = plan.singles.iter().map(|(_, peer)| *peer).collect();
        let leaving = || plan.leaving();
        let fits = !plan.singles.is_empty()
            && distinct.len() == plan.singles.len()
            && leaving().all(|peer| self.is_member(peer))
            && self.members().len() + plan.nodes.len() <= MEMBERS_MAX
            && (self.voters.iter().any(|peer| leaving().all(|left| left != *peer))
                || plan.singles.iter().any(|(kind, _)| *kind == ConfChangeType::AddNode));
        fits.then_some(plan)
    }
}

/// A change as its log entry has it. Without any single change it ends the joint configuration.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Change {
    singles: Vec<(ConfChangeType, PeerId)>,
    nodes: Vec<(PeerId, NodeId)>,
    peer_last: PeerId,
}

impl Change {
    pub fn leaving(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.singles.iter().filter(|(kind, _)| *kind == ConfChangeType::RemoveNode).map(|(_, peer)| *peer)
    }

    /// The bytes that `raft-rs` keeps in its entry, and reads as its own `ConfChangeV2`.
    pub fn encode(&self) -> Bytes {
        if self.singles.is_empty() {
            return Bytes::new();
        }
        let allotted = AllottedRow { nodes: place_rows(self.nodes.iter().copied()), peer_last: self.peer_last.0 };
        let single = |(kind, peer): &(ConfChangeType, PeerId)| SingleRow { kind: *kind as i32, peer: peer.0 };
        let singles = self.singles.iter().map(single).collect();
        ChangeRow { transition: 0, singles, context: allotted.encode_to_vec() }.encode_to_vec().into()
    }

    pub fn decode(raw: &[u8]) -> Result<Change, String> {
        let malformed = |error: prost::DecodeError| format!("a configuration change is malformed: {error}");
        let row = ChangeRow::decode(raw).map_err(malformed)?;
        let allotted = AllottedRow::decode(&*row.context).map_err(malformed)?;
        if row.encoded_len() != raw.len() || allotted.encoded_len() != row.context.len() || row.transition != 0 {
            return Err("a configuration change has fields that this version does not know".into());
        }
        let single = |single: SingleRow| {
            let kind = match single.kind {
                0 => ConfChangeType::AddNode,
                1 => ConfChangeType::RemoveNode,
                2 => ConfChangeType::AddLearnerNode,
                kind => return Err(format!("a configuration change has the unknown kind {kind}")),
            };
            match single.peer {
                0 => Err("a configuration change names peer 0".to_string()),
                peer => Ok((kind, PeerId(peer))),
            }
        };
        if row.singles.len() > MEMBERS_MAX || allotted.nodes.len() > MEMBERS_MAX {
            return Err("a configuration change is too large".into());
        }
        let singles = row.singles.into_iter().map(single).collect::<Result<Vec<_>, _>>()?;
        let nodes = allotted.nodes.iter().map(|row| (PeerId(row.peer), NodeId(row.node))).collect();
        Ok(Change { singles, nodes, peer_last: PeerId(allotted.peer_last) })
    }

    pub fn conf_change(&self) -> eraftpb::ConfChangeV2 {
        let mut change = eraftpb::ConfChangeV2::default();
        let single = |(kind, peer): &(ConfChangeType, PeerId)| raft_single(*kind, *peer);
        change.set_changes(self.singles.iter().map(single).collect::<Vec<_>>().into());
        change
    }
}

fn raft_single(kind: ConfChangeType, peer: PeerId) -> eraftpb::ConfChangeSingle {
    let mut single = eraftpb::ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = peer.0;
    single
}

fn place_rows(places: impl Iterator<Item = (PeerId, NodeId)>) -> Vec<PlaceRow> {
    places.map(|(peer, node)| PlaceRow { peer: peer.0, node: node.0 }).collect()
}

#[derive(Clone, PartialEq, prost::Message)]
struct PlaceRow {
    #[prost(uint64, tag = "1")]
    peer: u64,
    #[prost(uint32, tag = "2")]
    node: u32,
}

/// A configuration in a group's row and in a snapshot message.
#[derive(Clone, PartialEq, prost::Message)]
struct Row {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    auto_leave: bool,
    #[prost(message, repeated, tag = "6")]
    nodes: Vec<PlaceRow>,
    #[prost(uint64, tag = "7")]
    peer_last: u64,
}

impl Row {
    fn of(configuration: &Configuration) -> Row {
        let numbers = |peers: &[PeerId]| peers.iter().map(|peer| peer.0).collect();
        Row {
            voters: numbers(&configuration.voters),
            learners: numbers(&configuration.learners),
            voters_outgoing: numbers(&configuration.voters_outgoing),
            learners_next: numbers(&configuration.learners_next),
            auto_leave: configuration.auto_leave,
            nodes: place_rows(configuration.nodes.iter().map(|(peer, node)| (*peer, *node))),
            peer_last: configuration.peer_last.0,
        }
    }

    fn into_configuration(self) -> Configuration {
        let peers = |numbers: Vec<u64>| numbers.into_iter().map(PeerId).collect();
        Configuration {
            voters: peers(self.voters),
            learners: peers(self.learners),
            voters_outgoing: peers(self.voters_outgoing),
            learners_next: peers(self.learners_next),
            auto_leave: self.auto_leave,
            nodes: self.nodes.iter().map(|row| (PeerId(row.peer), NodeId(row.node))).collect(),
            peer_last: PeerId(self.peer_last),
        }
    }
}

/// `ConfChangeV2` of `eraftpb.proto`, tag for tag.
#[derive(Clone, PartialEq, prost::Message)]
struct ChangeRow {
    #[prost(int32, tag = "1")]
    transition: i32,
    #[prost(message, repeated, tag = "2")]
    singles: Vec<SingleRow>,
    /// An [`AllottedRow`].
    #[prost(bytes = "vec", tag = "3")]
    context: Vec<u8>,
}

/// `ConfChangeSingle` of `eraftpb.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct SingleRow {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    peer: u64,
}

/// What a change allots.
#[derive(Clone, PartialEq, prost::Message)]
struct AllottedRow {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<PlaceRow>,
    #[prost(uint64, tag = "2")]
    peer_last: u64,
}
