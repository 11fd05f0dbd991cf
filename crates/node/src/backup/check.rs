//! Reading a backup through: is every byte there, and what does it hold?

use base::ids::{ClusterId, DiskId, GROUP_ZERO, GroupId, LogIndex, NodeId, PeerId};
use bytes::Bytes;
use meta::group::{self, GroupState};
use meta::keys::Key;
use meta::map;
use meta::map::command::{ClusterMap, DiskRow, NodeRow, NodeState};
use meta::view::Change;
use protocol::raft::Configuration;
use std::io::Read;

use super::{GroupHead, Head, Kind, Pieces, Rows};

/// What a whole and undamaged backup holds.
#[derive(Clone, Debug)]
pub struct Summary {
    pub cluster: ClusterId,
    /// When it was taken; what restores it goes on under a higher one.
    pub cluster_generation: u32,
    /// Milliseconds since 1970, by the clock of the node that took it.
    pub taken_ms: u64,
    pub groups: Vec<GroupSummary>,
    /// Those that were not removed, with the cluster address of each.
    pub nodes: Vec<(NodeId, String)>,
    pub buckets: usize,
    /// Versions of objects, delete markers included.
    pub versions: u64,
    /// The disk of each node that held its metadata.
    pub metadata_disks: Vec<(NodeId, DiskId)>,
    /// Tells this backup from others: of all its checksums.
    pub digest: u32,
}

impl Summary {
    /// The generation under which a cluster goes on that is restored from this backup, on every node alike: above the
    /// backup's and above `known`; and, but for one in 65,536, another one for every backup: nodes that were restored from
    /// different ones do not take each other for the same cluster.
    pub fn generation_above(&self, known: u32) -> Result<u32, String> {
        let above = u64::from(self.cluster_generation.max(known)) + 1 + u64::from(self.digest & 0xffff);
        match u32::try_from(above) {
            Ok(generation) if generation <= GENERATION_MAX => Ok(generation),
            _ => Err(format!("no generation of the cluster is left above {known}")),
        }
    }
}

/// Fence tokens have the generation in their upper bits.
const GENERATION_MAX: u32 = (1 << 24) - 1;

#[derive(Clone, Debug)]
pub struct GroupSummary {
    pub group: GroupId,
    pub rows: u64,
    /// The last entry of its log that the rows hold.
    pub applied: LogIndex,
    /// The nodes that voted in it.
    pub voters: Vec<NodeId>,
}

/// The rows of one group, announced.
pub(super) struct Announced {
    pub group: GroupId,
    pub state: GroupState,
    pub configuration: Configuration,
}

impl Announced {
    /// The peer with which `node` votes in it. While one is replaced there may be two on a node: the one that votes counts.
    pub fn voter_on(&self, node: NodeId) -> Option<PeerId> {
        let peers = self.configuration.nodes.iter().filter(|(_, on)| **on == node).map(|(peer, _)| *peer);
        peers.filter(|peer| self.configuration.is_voter(*peer)).max()
    }
}

/// Reads all of it. The error is a sentence that says what is wrong.
pub fn check(input: impl Read) -> Result<Summary, String> {
    let mut walk = Walk::begin(input)?;
    let head = walk.head.clone();
    let mut seen = Seen::default();
    let rows = loop {
        match walk.next()? {
            Step::Group(announced) => seen.group(&announced),
            Step::Rows(rows) => seen.rows(&rows)?,
            Step::End { rows } => break rows,
        }
    };
    if rows != seen.groups.iter().map(|group| group.rows).sum::<u64>() {
        return Err("it does not hold as many rows as its end says".into());
    }
    let cluster: [u8; 16] = head.cluster.as_ref().try_into().map_err(|_| "its cluster's id is malformed")?;
    if seen.map.cluster != head.cluster {
        return Err("it does not hold the map of its cluster".into());
    }
    let is_there = |row: &&NodeRow| row.state() != NodeState::Removed;
    Ok(Summary {
        cluster: ClusterId(u128::from_be_bytes(cluster)),
        cluster_generation: seen.map.cluster_generation,
        taken_ms: head.taken_ms,
        groups: seen.groups,
        nodes: seen.map.nodes.iter().filter(is_there).map(|row| (NodeId(row.id), row.address.clone())).collect(),
        buckets: seen.map.buckets.len(),
        versions: seen.versions,
        metadata_disks: seen.map.disks.iter().filter(|row| row.metadata).filter_map(place_of).collect(),
        digest: walk.pieces.digest,
    })
}

fn place_of(row: &DiskRow) -> Option<(NodeId, DiskId)> {
    let id: [u8; 16] = row.id.as_ref().try_into().ok()?;
    Some((NodeId(row.node), DiskId(u128::from_be_bytes(id))))
}

/// What comes next in a backup.
pub(super) enum Step {
    Group(Box<Announced>),
    /// Of the group that was announced last, in order; its own row is not among them.
    Rows(Vec<Change>),
    End {
        rows: u64,
    },
}

/// Goes through a whole backup, and checks its order, its checksums and that each row belongs to the group that it is said
/// to be of.
pub(super) struct Walk<R> {
    pub head: Head,
    pieces: Pieces<R>,
    /// Groups that the head names and that were announced.
    groups: usize,
    group: GroupId,
    ranges: Vec<(Bytes, Bytes)>,
    /// The last row's key.
    last: Bytes,
}

impl<R: Read> Walk<R> {
    pub fn begin(input: R) -> Result<Walk<R>, String> {
        let mut pieces = Pieces::open(input)?;
        match pieces.next()? {
            Kind::Head(head) => {
                let (group, ranges, last) = (GROUP_ZERO, Vec::new(), Bytes::new());
                Ok(Walk { head, pieces, groups: 0, group, ranges, last })
            }
            _ => Err("it does not begin with its head".into()),
        }
    }

    /// After its end, an error.
    pub fn next(&mut self) -> Result<Step, String> {
        match self.pieces.next()? {
            Kind::Group(begun) => self.announce(&begun),
            Kind::Rows(rows) => self.rows(rows),
            Kind::End(_) if self.groups < self.head.groups.len() => Err("it lacks groups that its head names".into()),
            Kind::End(end) => {
                self.pieces.ends_here()?;
                Ok(Step::End { rows: end.rows })
            }
            Kind::Head(_) | Kind::Failed(_) => Err("it has two heads".into()),
        }
    }

    fn announce(&mut self, begun: &GroupHead) -> Result<Step, String> {
        let group = GroupId(begun.group);
        if self.head.groups.get(self.groups) != Some(&begun.group) {
            return Err(format!("group {group} is not where its head says"));
        }
        let state = group::decode(&begun.state)?;
        if !state.is_supported() {
            return Err(format!("group {group} is at feature level {}: use a newer henge", state.feature_level));
        }
        let configuration = Configuration::decode(&state.conf_state)?;
        self.groups += 1;
        self.group = group;
        self.ranges = group::row_ranges(group, &state);
        self.last.clear();
        Ok(Step::Group(Box::new(Announced { group, state, configuration })))
    }

    fn rows(&mut self, rows: Rows) -> Result<Step, String> {
        let own = group::state_key(self.group);
        let mut changes = Vec::with_capacity(rows.rows.len());
        for row in rows.rows {
            let is_inside = self.ranges.iter().any(|(from, to)| *from <= row.key && row.key < *to);
            if !is_inside || row.key <= self.last {
                let (row, group) = (row.key.escape_ascii(), self.group);
                return Err(format!("row {row} does not belong to group {group}, or not there"));
            }
            self.last = row.key.clone();
            if row.key != own {
                changes.push(Change::Put { key: row.key, value: row.value });
            }
        }
        Ok(Step::Rows(changes))
    }
}

#[derive(Default)]
struct Seen {
    groups: Vec<GroupSummary>,
    map: ClusterMap,
    versions: u64,
}

impl Seen {
    fn group(&mut self, announced: &Announced) {
        let Announced { group, state, configuration } = announced;
        let voters = configuration.voters.iter().filter_map(|peer| configuration.node_of(*peer)).collect();
        // Its own row is one.
        self.groups.push(GroupSummary { group: *group, rows: 1, applied: LogIndex(state.applied_index), voters });
    }

    fn rows(&mut self, rows: &[Change]) -> Result<(), String> {
        let group = self.groups.last_mut().ok_or("it has rows of no group")?;
        group.rows += rows.len() as u64;
        for row in rows {
            let Change::Put { key, .. } = row else { continue };
            match Key::decode(key) {
                Ok(Key::Version { .. }) => self.versions += 1,
                Ok(_) => {}
                Err(error) => return Err(format!("row {} is malformed: {error}", key.escape_ascii())),
            }
            if group.group == GROUP_ZERO {
                map::absorb(&mut self.map, row).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}
