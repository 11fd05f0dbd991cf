//! Which placement groups move next, and where: pure, so that each decision can be tested as data.
//!
//! A move is Open -> Closed -> Open. Closing raises the group's epoch: from then on writers go elsewhere, the new
//! members unite what the old ones hold, and when all of them have reported that, the group opens with them.
//!
//! What holds at every step:
//! - the number of copies in effect never falls, and rises only when every Raft group has as many voters;
//! - at most half of the groups of each pool are closed at once, those with the fewest usable copies first;
//! - a group is never closed while a member may come back with bytes that nobody has asked it for (its node is down but
//!   not lost), nor towards a node that cannot take part now;
//! - a group none of whose members can be asked stays where it is, until an operator has removed their nodes;
//! - a group changes only when the set of its disks does, and never shrinks for lack of disks.

use base::ids::{DiskId, NodeId, PgEpoch, PgId, PoolId};
use base::plant::{self, Plant};
use std::collections::{BTreeMap, BTreeSet};

use crate::placement::{self, Candidate, Held, Locality};

/// Most groups that one step changes: bounds the command that carries it.
pub const CHANGES_MAX: usize = 1024;
/// Most members before a move that a group remembers.
pub const MEMBERS_BEFORE_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeState {
    /// Known, and has never served.
    Joining,
    Up,
    /// Silent: its disks keep their places, because it is expected back.
    Down,
    /// Will not come back: what it held is gone.
    Lost,
    /// Serves, and gets nothing new.
    Draining,
    Removed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskView {
    pub node: NodeId,
    pub capacity_bytes: u64,
    /// Neither failed nor removed.
    pub usable: bool,
    /// Serves, and is to be emptied.
    pub drains: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolView {
    pub pool: PoolId,
    /// What the policy asks for, and what is in effect.
    pub copies: usize,
    pub copies_effective: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupView {
    pub pg: PgId,
    pub epoch: PgEpoch,
    pub closed: bool,
    pub members: Vec<DiskId>,
    pub members_before: Vec<DiskId>,
    /// Nodes that have united what they hold of this group, in this epoch.
    pub done: BTreeSet<NodeId>,
}

/// All that a decision is made from.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub nodes: BTreeMap<NodeId, NodeState>,
    /// Where nodes stand; one that is not named stands nowhere in particular.
    pub localities: BTreeMap<NodeId, Locality>,
    pub disks: BTreeMap<DiskId, DiskView>,
    pub pools: Vec<PoolView>,
    pub groups: Vec<GroupView>,
    /// The smallest number of voters that any Raft group has.
    pub voters_ready: usize,
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    RaiseCopies {
        pool: PoolId,
        copies: usize,
    },
    /// In the order of their groups.
    Change(Vec<Change>),
}

/// A group's next row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub pg: PgId,
    pub epoch: PgEpoch,
    pub closed: bool,
    pub members: Vec<DiskId>,
    pub members_before: Vec<DiskId>,
}

/// The next step towards where everything belongs; `None` when it is there, or must wait.
pub fn next(cluster: &Cluster) -> Option<Step> {
    if let Some(raise) = cluster.pools.iter().find_map(|pool| cluster.raise(pool)) {
        return Some(raise);
    }
    let wanted = cluster.wanted();
    let mut changes = cluster.openings();
    changes.extend(cluster.closings(&wanted));
    changes.truncate(CHANGES_MAX);
    changes.sort_by_key(|change| (change.pg.pool, change.pg.prefix));
    (!changes.is_empty()).then_some(Step::Change(changes))
}

/// Whether every group is where it belongs: open, on the disks that would be chosen today.
pub fn is_settled(cluster: &Cluster) -> bool {
    let wanted = cluster.wanted();
    let settled = |group: &GroupView| !group.closed && cluster.new_members(group, &wanted).is_none();
    cluster.groups.iter().all(settled)
}

/// Copies that are still to be made where they belong: of the groups that move, and of those that will.
pub fn copies_to_move(cluster: &Cluster) -> usize {
    let wanted = cluster.wanted();
    let new = |group: &GroupView| {
        let (from, to) = match group.closed {
            true => (&group.members_before, Some(group.members.clone())),
            false => (&group.members, cluster.new_members(group, &wanted)),
        };
        to.map_or(0, |to| to.iter().filter(|disk| !from.contains(disk)).count())
    };
    cluster.groups.iter().map(new).sum()
}

/// Where each group belongs.
type Wanted = BTreeMap<PgId, Vec<DiskId>>;

impl Cluster {
    fn node(&self, disk: DiskId) -> Option<(NodeId, NodeState)> {
        let node = self.disks.get(&disk)?.node;
        Some((node, *self.nodes.get(&node)?))
    }

    /// What this disk held cannot be asked for any more.
    fn is_gone(&self, disk: DiskId) -> bool {
        let node_gone = self.node(disk).is_none_or(|(_, state)| matches!(state, NodeState::Lost | NodeState::Removed));
        node_gone || self.disks.get(&disk).is_none_or(|disk| !disk.usable)
    }

    /// Somebody can be asked for what the group holds, or nobody ever can again: a failed disk may be read once more, and a
    /// lost node come back, with the only copies; moved without them, the group would know of nothing that they hold.
    fn has_source(&self, group: &GroupView) -> bool {
        let mut holders = group.members.iter().chain(&group.members_before);
        let is_removed = |disk: &DiskId| self.node(*disk).is_none_or(|(_, state)| state == NodeState::Removed);
        holders.clone().any(|disk| !self.is_gone(*disk)) || holders.all(is_removed)
    }

    fn is_waited_for(&self, disk: DiskId) -> bool {
        self.node(disk).is_some_and(|(_, state)| matches!(state, NodeState::Down | NodeState::Joining))
    }

    /// Disks that data may be placed on. A node that is down keeps its disks' places, and gets no others.
    fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(id, disk): (&DiskId, &DiskView)| {
            let state = *self.nodes.get(&disk.node)?;
            let takes_data = disk.usable && !disk.drains && matches!(state, NodeState::Up | NodeState::Down);
            takes_data.then(|| Candidate {
                disk: *id,
                node: disk.node,
                capacity_bytes: rounded(disk.capacity_bytes),
                locality: self.localities.get(&disk.node).cloned().unwrap_or_default(),
                may_gain: state == NodeState::Up,
            })
        };
        self.disks.iter().filter_map(candidate).collect()
    }

    /// Where all groups belong, the least movement away from where they are.
    fn wanted(&self) -> Wanted {
        let candidates = self.candidates();
        let of_pool = |pool: &PoolView| {
            let groups = self.groups.iter().filter(|group| group.pg.pool == pool.pool);
            let held: Vec<Held> = groups.map(|group| (group.pg, group.members.clone())).collect();
            let wanted = placement::plan(&held, pool.copies_effective, &candidates);
            held.into_iter().map(|(pg, _)| pg).zip(wanted).collect::<Vec<_>>()
        };
        self.pools.iter().flat_map(of_pool).collect()
    }

    /// As many copies as there are nodes in service and voters for.
    fn raise(&self, pool: &PoolView) -> Option<Step> {
        let copies = self.copies_due(pool).min(self.voters_ready);
        (copies > pool.copies_effective).then_some(Step::RaiseCopies { pool: pool.pool, copies })
    }

    fn copies_due(&self, pool: &PoolView) -> usize {
        let usable = self.disks.values().filter(|disk| disk.usable && disk.capacity_bytes > 0);
        let up = usable.map(|disk| disk.node).filter(|node| self.nodes.get(node) == Some(&NodeState::Up));
        pool.copies.min(up.collect::<BTreeSet<NodeId>>().len())
    }

    /// Closed groups that have what they need.
    fn openings(&self) -> Vec<Change> {
        let open = |group: &GroupView| Change {
            pg: group.pg,
            epoch: PgEpoch(group.epoch.0 + 1),
            closed: false,
            members: group.members.clone(),
            members_before: Vec::new(),
        };
        self.groups.iter().filter(|group| self.opens(group)).map(open).collect()
    }

    /// Every member that still can has united what there is, and there is one.
    fn opens(&self, group: &GroupView) -> bool {
        let living: Vec<DiskId> = group.members.iter().copied().filter(|member| !self.is_gone(*member)).collect();
        let is_done = |member: &DiskId| self.node(*member).is_some_and(|(node, _)| group.done.contains(&node));
        group.closed && !living.is_empty() && (living.iter().all(is_done) || plant::is(Plant::OpenEarly))
    }

    /// Groups to close: those that belong elsewhere, and those that were moving to a disk that is gone since.
    fn closings(&self, wanted: &Wanted) -> Vec<Change> {
        let mut room = self.room();
        let mut again = Vec::new();
        let mut moves: Vec<(usize, usize, &GroupView, Vec<DiskId>)> = Vec::new();
        for group in self.groups.iter().filter(|group| !self.opens(group) && self.has_source(group)) {
            let Some(members) = self.new_members(group, wanted) else { continue };
            if group.closed {
                let goes_nowhere = group.members.iter().any(|member| self.is_gone(*member));
                again.extend(close(group, members).filter(|_| goes_nowhere));
            } else if !group.members.iter().any(|member| self.is_waited_for(*member)) {
                let living: Vec<DiskId> = group.members.iter().copied().filter(|disk| !self.is_gone(*disk)).collect();
                moves.push((living.len(), self.zones(&living), group, members));
            }
        }
        // The last copies first; then those that one accident would take together.
        moves.sort_by_key(|(copies, zones, group, _)| (*copies, *zones, group.pg.pool, group.pg.prefix));
        let fits = |change: &Change| match room.get_mut(&change.pg.pool) {
            Some(room) if *room > 0 => {
                *room -= 1;
                true
            }
            _ => false,
        };
        let moves = moves.into_iter().filter_map(|(_, _, group, to)| close(group, to));
        again.into_iter().chain(moves.filter(fits)).collect()
    }

    /// How many more groups of each pool may be closed: with the other half open, the pool takes writes meanwhile.
    fn room(&self) -> BTreeMap<PoolId, usize> {
        let mut counts: BTreeMap<PoolId, (usize, usize)> = BTreeMap::new();
        for group in &self.groups {
            let (all, closed) = counts.entry(group.pg.pool).or_default();
            *all += 1;
            *closed += usize::from(group.closed && !self.opens(group));
        }
        let room = |(all, closed): (usize, usize)| (all / 2).max(1).saturating_sub(closed);
        counts.into_iter().map(|(pool, counts)| (pool, room(counts))).collect()
    }

    /// In how many different places these disks are, above the node.
    fn zones(&self, disks: &[DiskId]) -> usize {
        let places = disks.iter().filter_map(|disk| self.localities.get(&self.node(*disk)?.0));
        places.collect::<BTreeSet<&Locality>>().len()
    }

    /// The disks that should hold the group, if they are others than now. Where there are too few, old members stay, even
    /// lost ones: they mark how many copies are owed.
    fn new_members(&self, group: &GroupView, wanted: &Wanted) -> Option<Vec<DiskId>> {
        let pool = self.pools.iter().find(|pool| pool.pool == group.pg.pool)?;
        let copies = pool.copies_effective;
        let drains = |disk: &DiskId| {
            let node_drains = self.node(*disk).is_none_or(|(_, state)| state == NodeState::Draining);
            node_drains || self.disks.get(disk).is_some_and(|disk| disk.drains)
        };
        let may_stay = |disk: &DiskId| !self.is_gone(*disk) && !drains(disk);
        if self.copies_due(pool) > copies && group.members.len() >= copies && group.members.iter().all(may_stay) {
            // More copies come as soon as there are voters for them; to move the few that exist would be for nothing.
            return None;
        }
        let mut members = wanted.get(&group.pg).cloned().unwrap_or_default();
        let mut nodes: BTreeSet<NodeId> = members.iter().filter_map(|id| Some(self.node(*id)?.0)).collect();
        let mut stay: Vec<DiskId> = group.members.iter().copied().filter(|id| !members.contains(id)).collect();
        stay.sort_by_key(|member| self.is_gone(*member));
        for member in stay {
            let node = self.disks.get(&member).map(|disk| disk.node);
            if members.len() < copies && node.is_none_or(|node| nodes.insert(node)) {
                members.push(member);
            }
        }
        let set = |ids: &[DiskId]| ids.iter().copied().collect::<BTreeSet<DiskId>>();
        (!members.is_empty() && set(&members) != set(&group.members)).then_some(members)
    }
}

fn close(group: &GroupView, members: Vec<DiskId>) -> Option<Change> {
    let mut before = group.members_before.clone();
    before.extend(group.members.iter().filter(|member| !group.members_before.contains(member)));
    let (pg, epoch) = (group.pg, PgEpoch(group.epoch.0 + 1));
    // Beyond the bound the group waits: it opens, or its members come back.
    (before.len() <= MEMBERS_BEFORE_MAX).then_some(Change { pg, epoch, closed: true, members, members_before: before })
}

/// A capacity to six binary digits, below what the planner tolerates: a file system that grows or shrinks by a little must
/// not move data.
fn rounded(bytes: u64) -> u64 {
    let drop = (u64::BITS - bytes.leading_zeros()).saturating_sub(6);
    bytes >> drop << drop
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POOL: PoolId = PoolId(1);
    const BITS: u8 = 4;

    fn disk(node: u32) -> DiskId {
        DiskId((u128::from(node) << 64) + 0x1234_5678 * u128::from(node))
    }

    /// One node with everything on it.
    fn one_node() -> Cluster {
        let mut cluster = Cluster {
            pools: vec![PoolView { pool: POOL, copies: 3, copies_effective: 1 }],
            voters_ready: 1,
            ..Cluster::default()
        };
        join(&mut cluster, 1);
        cluster.groups = groups_of(POOL).collect();
        cluster
    }

    fn groups_of(pool: PoolId) -> impl Iterator<Item = GroupView> {
        (0..1 << BITS).map(move |prefix| GroupView {
            pg: PgId { pool, bits: BITS, prefix },
            epoch: PgEpoch(1),
            closed: false,
            members: vec![disk(1)],
            members_before: vec![],
            done: BTreeSet::new(),
        })
    }

    /// One node with two pools on it; the second one asks for `copies`.
    fn two_pools(copies: usize) -> Cluster {
        let mut cluster = one_node();
        let pool = PoolId(2);
        cluster.pools.push(PoolView { pool, copies, copies_effective: 1 });
        cluster.groups.extend(groups_of(pool));
        cluster
    }

    fn join(cluster: &mut Cluster, node: u32) {
        cluster.nodes.insert(NodeId(node), NodeState::Up);
        cluster
            .disks
            .insert(disk(node), DiskView { node: NodeId(node), capacity_bytes: 1 << 40, usable: true, drains: false });
    }

    fn set(cluster: &mut Cluster, node: u32, state: NodeState) {
        cluster.nodes.insert(NodeId(node), state);
    }

    /// Carries out a step as the map would, and checks what must hold at every step.
    fn apply(cluster: &mut Cluster, step: &Step) {
        match step {
            Step::RaiseCopies { pool, copies } => {
                let voters = cluster.voters_ready;
                let row = cluster.pools.iter_mut().find(|row| row.pool == *pool).unwrap();
                assert!(*copies > row.copies_effective && *copies <= row.copies && *copies <= voters);
                row.copies_effective = *copies;
            }
            Step::Change(changes) => {
                for change in changes {
                    let at = cluster.groups.iter().position(|group| group.pg == change.pg).unwrap();
                    check(cluster, &cluster.groups[at], change);
                    cluster.groups[at] = GroupView {
                        pg: change.pg,
                        epoch: change.epoch,
                        closed: change.closed,
                        members: change.members.clone(),
                        members_before: change.members_before.clone(),
                        done: BTreeSet::new(),
                    };
                }
                for pool in &cluster.pools {
                    let groups = || cluster.groups.iter().filter(|group| group.pg.pool == pool.pool);
                    let closed = groups().filter(|group| group.closed).count();
                    assert!(closed <= groups().count() / 2, "{closed} groups of {:?} are closed at once", pool.pool);
                }
            }
        }
    }

    fn check(cluster: &Cluster, group: &GroupView, change: &Change) {
        assert_eq!(change.epoch.0, group.epoch.0 + 1);
        assert!(change.members.len() >= group.members.len(), "a group never shrinks");
        let mut nodes: Vec<NodeId> = change.members.iter().map(|id| cluster.disks[id].node).collect();
        nodes.sort();
        nodes.dedup();
        assert_eq!(nodes.len(), change.members.len(), "one copy a node");
        if change.closed {
            let is_down = |id: &DiskId| cluster.nodes[&cluster.disks[id].node] == NodeState::Down;
            assert!(group.closed || !group.members.iter().any(is_down), "its bytes may come back unasked");
            for old in group.members.iter().chain(&group.members_before) {
                assert!(change.members_before.contains(old), "whoever may hold something is remembered");
            }
        } else {
            assert!(group.closed && change.members == group.members && change.members_before.is_empty());
        }
    }

    fn report_done(cluster: &mut Cluster) {
        let (nodes, disks) = (cluster.nodes.clone(), cluster.disks.clone());
        for group in cluster.groups.iter_mut().filter(|group| group.closed) {
            let waits = |id: &DiskId| nodes[&disks[id].node] == NodeState::Down;
            if !group.members.iter().chain(&group.members_before).any(waits) {
                group.done = group.members.iter().map(|id| disks[id].node).collect();
            }
        }
    }

    fn settle(cluster: &mut Cluster) -> usize {
        for steps in 0..100 {
            report_done(cluster);
            match next(cluster) {
                Some(step) => apply(cluster, &step),
                None => return steps,
            }
        }
        panic!("it never settles");
    }

    fn members_of(cluster: &Cluster) -> BTreeSet<DiskId> {
        cluster.groups.iter().flat_map(|group| group.members.clone()).collect()
    }

    /// A disk that could not be read at one start lost its groups to the other disk, and with them the only copies.
    #[test]
    fn a_group_without_a_source_waits_for_one() {
        let mut cluster = one_node();
        let spare = DiskView { node: NodeId(1), capacity_bytes: 1 << 40, usable: true, drains: false };
        cluster.disks.insert(DiskId(99), spare);
        let wanted = cluster.wanted();
        cluster.groups.iter_mut().for_each(|group| group.members = wanted[&group.pg].clone());
        assert_eq!(next(&cluster), None);
        cluster.disks.get_mut(&disk(1)).unwrap().usable = false;
        assert_eq!(next(&cluster), None, "what only the failed disk holds cannot be copied");
    }

    #[test]
    fn one_node_alone_is_settled() {
        let cluster = one_node();
        assert_eq!(next(&cluster), None);
        assert!(is_settled(&cluster));
    }

    #[test]
    fn copies_rise_with_nodes_and_never_before_the_voters() {
        let mut cluster = one_node();
        join(&mut cluster, 2);
        assert_eq!(next(&cluster), None, "metadata would have fewer copies than data");
        cluster.voters_ready = 2;
        assert_eq!(next(&cluster), Some(Step::RaiseCopies { pool: POOL, copies: 2 }));
        settle(&mut cluster);
        assert!(cluster.groups.iter().all(|group| group.members.len() == 2 && !group.closed));
        join(&mut cluster, 3);
        cluster.voters_ready = 3;
        settle(&mut cluster);
        assert!(cluster.groups.iter().all(|group| group.members.len() == 3 && !group.closed));
        join(&mut cluster, 4);
        settle(&mut cluster);
        assert_eq!(cluster.pools[0].copies_effective, 3, "the policy asks for no more");
        assert!(members_of(&cluster).contains(&disk(4)));
        assert!(is_settled(&cluster));
    }

    fn three_nodes() -> Cluster {
        let mut cluster = one_node();
        join(&mut cluster, 2);
        join(&mut cluster, 3);
        cluster.voters_ready = 3;
        settle(&mut cluster);
        cluster
    }

    #[test]
    fn half_of_the_groups_are_closed_first() {
        let mut cluster = one_node();
        join(&mut cluster, 2);
        cluster.voters_ready = 2;
        let raise = next(&cluster).unwrap();
        apply(&mut cluster, &raise);
        let Some(Step::Change(changes)) = next(&cluster) else { panic!("groups close") };
        assert_eq!(changes.len(), 8);
        apply(&mut cluster, &Step::Change(changes));
        assert_eq!(next(&cluster), None, "the other half waits until these are done");
    }

    /// All groups of the first pool were closed, and none of the second: they were half of all groups.
    #[test]
    fn half_of_the_groups_of_each_pool_are_closed_first() {
        let mut cluster = two_pools(2);
        join(&mut cluster, 2);
        join(&mut cluster, 3);
        cluster.voters_ready = 3;
        let changes = loop {
            match next(&cluster).expect("copies rise, then groups close") {
                raise @ Step::RaiseCopies { .. } => apply(&mut cluster, &raise),
                Step::Change(changes) => break changes,
            }
        };
        for pool in [1, 2] {
            let closed = changes.iter().filter(|change| change.closed && change.pg.pool == PoolId(pool)).count();
            assert_eq!(closed, 8, "of pool {pool}");
        }
        settle(&mut cluster);
        assert!(is_settled(&cluster));
    }

    #[test]
    fn down_changes_nothing_and_lost_without_a_spare_keeps_the_place() {
        let mut cluster = three_nodes();
        let before = cluster.groups.clone();
        set(&mut cluster, 2, NodeState::Down);
        assert_eq!(next(&cluster), None);
        set(&mut cluster, 2, NodeState::Lost);
        assert_eq!(next(&cluster), None);
        assert_eq!(cluster.groups, before);
        assert_eq!(cluster.pools[0].copies_effective, 3);
        join(&mut cluster, 4);
        settle(&mut cluster);
        assert_eq!(members_of(&cluster), BTreeSet::from([disk(1), disk(3), disk(4)]));
    }

    #[test]
    fn a_group_with_a_member_that_is_down_is_not_closed() {
        let mut cluster = three_nodes();
        join(&mut cluster, 4);
        set(&mut cluster, 2, NodeState::Down);
        if let Some(step) = next(&cluster) {
            apply(&mut cluster, &step);
        }
        assert!(cluster.groups.iter().all(|group| !group.closed), "every group has a member on node 2");
    }

    #[test]
    fn fewest_copies_go_first() {
        let mut cluster = three_nodes();
        join(&mut cluster, 4);
        join(&mut cluster, 5);
        settle(&mut cluster);
        set(&mut cluster, 1, NodeState::Lost);
        let hurt: BTreeSet<PgId> =
            cluster.groups.iter().filter(|group| group.members.contains(&disk(1))).map(|group| group.pg).collect();
        assert!(hurt.len() > 4 && hurt.len() < 16, "{}", hurt.len());
        let Some(Step::Change(changes)) = next(&cluster) else { panic!("groups close") };
        let first: BTreeSet<PgId> = changes.iter().map(|change| change.pg).collect();
        assert!(if hurt.len() >= 8 { first.is_subset(&hurt) } else { hurt.is_subset(&first) });
    }

    #[test]
    fn a_new_member_that_is_lost_on_the_way_is_replaced_and_one_without_replacement_does_not_hold_it_up() {
        let mut cluster = three_nodes();
        set(&mut cluster, 3, NodeState::Lost);
        join(&mut cluster, 4);
        let step = next(&cluster).unwrap();
        apply(&mut cluster, &step);
        set(&mut cluster, 4, NodeState::Lost);
        let mut without = cluster.clone();
        settle(&mut without);
        assert!(without.groups.iter().all(|group| !group.closed), "two copies serve");
        join(&mut cluster, 5);
        settle(&mut cluster);
        assert_eq!(members_of(&cluster), BTreeSet::from([disk(1), disk(2), disk(5)]));
    }

    #[test]
    fn a_draining_node_is_emptied_only_where_others_take_over() {
        let mut cluster = three_nodes();
        set(&mut cluster, 2, NodeState::Draining);
        assert_eq!(next(&cluster), None);
        join(&mut cluster, 4);
        settle(&mut cluster);
        assert!(!members_of(&cluster).contains(&disk(2)));
    }

    #[test]
    fn a_draining_disk_is_emptied_onto_its_neighbour() {
        let mut cluster = three_nodes();
        let spare = DiskId(77);
        let view = DiskView { node: NodeId(2), capacity_bytes: 1 << 40, usable: true, drains: false };
        cluster.disks.insert(spare, view);
        cluster.disks.get_mut(&disk(2)).unwrap().drains = true;
        assert_eq!(copies_to_move(&cluster), 16);
        settle(&mut cluster);
        assert_eq!(members_of(&cluster), BTreeSet::from([disk(1), disk(3), spare]));
        assert_eq!(copies_to_move(&cluster), 0);
    }

    #[test]
    fn zones_that_are_told_later_part_the_copies() {
        let mut cluster = three_nodes();
        for node in 4..=6 {
            join(&mut cluster, node);
        }
        settle(&mut cluster);
        let zone = |node: u32| format!("zone={}", ["a", "a", "b", "b", "c", "c"][node as usize - 1]);
        cluster.localities = (1..=6).map(|node| (NodeId(node), Locality::parse(&zone(node)))).collect();
        settle(&mut cluster);
        for group in &cluster.groups {
            let zones: BTreeSet<&Locality> =
                group.members.iter().map(|disk| &cluster.localities[&cluster.disks[disk].node]).collect();
            assert_eq!(zones.len(), 3, "{group:?}");
        }
        assert!(is_settled(&cluster));
    }

    #[test]
    fn a_failed_disk_is_replaced_by_another_of_its_node() {
        let mut cluster = three_nodes();
        let spare = DiskId(77);
        cluster.disks.insert(spare, DiskView { node: NodeId(2), capacity_bytes: 1 << 40, usable: true, drains: false });
        cluster.disks.get_mut(&disk(2)).unwrap().usable = false;
        settle(&mut cluster);
        assert_eq!(members_of(&cluster), BTreeSet::from([disk(1), disk(3), spare]));
    }

    #[test]
    fn a_little_more_room_moves_nothing() {
        let mut cluster = three_nodes();
        join(&mut cluster, 4);
        settle(&mut cluster);
        cluster.disks.get_mut(&disk(4)).unwrap().capacity_bytes += 1 << 30;
        assert_eq!(next(&cluster), None);
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Write(u32),
        Step,
        Unite(u32),
        Down(u32),
        Back(u32),
        Join,
        Lose(u32),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0u32..16).prop_map(Event::Write),
            6 => Just(Event::Step),
            6 => (1u32..7).prop_map(Event::Unite),
            1 => (1u32..7).prop_map(Event::Down),
            2 => (1u32..7).prop_map(Event::Back),
            1 => Just(Event::Join),
            1 => (1u32..7).prop_map(Event::Lose),
        ]
    }

    /// The bytes that follow the rows: what each disk holds of each group.
    #[derive(Default)]
    struct Model {
        held: BTreeMap<(DiskId, u32), BTreeSet<u32>>,
        written: BTreeMap<u32, BTreeSet<u32>>,
        joined: u32,
        writes: u32,
    }

    impl Model {
        fn is_up(cluster: &Cluster, id: DiskId) -> bool {
            cluster.nodes[&cluster.disks[&id].node] == NodeState::Up
        }

        fn write(&mut self, cluster: &Cluster, prefix: u32) {
            let group = &cluster.groups[prefix as usize];
            let up: Vec<DiskId> = group.members.iter().copied().filter(|id| Model::is_up(cluster, *id)).collect();
            if group.closed || up.len() * 2 <= group.members.len() {
                return;
            }
            self.writes += 1;
            self.written.entry(prefix).or_default().insert(self.writes);
            for id in up {
                self.held.entry((id, prefix)).or_default().insert(self.writes);
            }
        }

        /// What the repair of a node does: unites moving groups; in open ones fetches what others have.
        fn unite(&mut self, cluster: &mut Cluster, node: u32) {
            for at in 0..cluster.groups.len() {
                let group = cluster.groups[at].clone();
                let prefix = group.pg.prefix;
                let all = group.members.iter().chain(&group.members_before);
                let (gone, rest): (Vec<DiskId>, Vec<DiskId>) = all.copied().partition(|id| cluster.is_gone(*id));
                let reachable = rest.iter().all(|id| Model::is_up(cluster, *id));
                let up = rest.iter().filter(|id| Model::is_up(cluster, **id));
                let union: BTreeSet<u32> =
                    up.filter_map(|id| self.held.get(&(*id, prefix))).flatten().copied().collect();
                let own = group.members.iter().find(|id| cluster.disks[*id].node == NodeId(node));
                let Some(own) = own.filter(|id| !gone.contains(id) && Model::is_up(cluster, **id)) else { continue };
                self.held.insert((*own, prefix), union);
                if group.closed && reachable {
                    cluster.groups[at].done.insert(NodeId(node));
                }
            }
            let groups = cluster.groups.clone();
            self.held.retain(|(id, prefix), _| {
                let group = &groups[*prefix as usize];
                group.closed || group.members.contains(id)
            });
        }

        /// Every write is on some disk that is not lost.
        fn check(&self, cluster: &Cluster) -> Result<(), TestCaseError> {
            for (prefix, writes) in &self.written {
                let group = &cluster.groups[*prefix as usize];
                let all = group.members.iter().chain(&group.members_before);
                let living = all.filter(|id| !cluster.is_gone(**id));
                let held: BTreeSet<u32> =
                    living.filter_map(|id| self.held.get(&(*id, *prefix))).flatten().copied().collect();
                prop_assert!(writes.is_subset(&held), "group {prefix} lost {:?}", writes.difference(&held));
            }
            Ok(())
        }

        /// A node is lost only when all data has all its copies: then no single loss loses anything.
        fn may_lose(&self, cluster: &Cluster, node: u32) -> bool {
            let known = cluster.nodes.get(&NodeId(node)) == Some(&NodeState::Up);
            let whole = |group: &GroupView| {
                let copies = group.members.iter().filter(|id| Model::is_up(cluster, **id)).filter(|id| {
                    let written = self.written.get(&group.pg.prefix);
                    written.is_none_or(|written| self.held.get(&(**id, group.pg.prefix)) == Some(written))
                });
                !group.closed && copies.count() >= 2
            };
            known && cluster.pools[0].copies_effective > 1 && cluster.groups.iter().all(whole)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        /// `apply` checks it after each step.
        #[test]
        fn half_of_the_groups_of_each_pool_stay_open_whatever_happens(
            events in proptest::collection::vec(event(), 0..200), copies in 1usize..4, voters in 1usize..4,
        ) {
            let mut cluster = two_pools(copies);
            cluster.voters_ready = voters;
            let mut joined = 1;
            for event in events {
                let state = |cluster: &Cluster, node| cluster.nodes.get(&NodeId(node)).copied();
                match event {
                    Event::Step => {
                        if let Some(step) = next(&cluster) {
                            apply(&mut cluster, &step);
                        }
                    }
                    Event::Unite(node) => {
                        for group in cluster.groups.iter_mut().filter(|group| group.closed) {
                            group.done.insert(NodeId(node));
                        }
                    }
                    Event::Down(node) if state(&cluster, node) == Some(NodeState::Up) => {
                        set(&mut cluster, node, NodeState::Down);
                    }
                    Event::Back(node) if state(&cluster, node) == Some(NodeState::Down) => {
                        set(&mut cluster, node, NodeState::Up);
                    }
                    Event::Join if joined < 6 => {
                        joined += 1;
                        join(&mut cluster, joined);
                    }
                    Event::Lose(node) if state(&cluster, node).is_some() => set(&mut cluster, node, NodeState::Lost),
                    _ => {}
                }
            }
        }

        #[test]
        fn nothing_is_lost_whatever_happens_in_between(
            events in proptest::collection::vec(event(), 0..400), voters in 2usize..4,
        ) {
            let mut cluster = one_node();
            cluster.voters_ready = voters;
            let mut model = Model { joined: 1, ..Model::default() };
            for event in events {
                match event {
                    Event::Write(prefix) => model.write(&cluster, prefix),
                    Event::Step => {
                        if let Some(step) = next(&cluster) {
                            apply(&mut cluster, &step);
                        }
                    }
                    Event::Unite(node) => model.unite(&mut cluster, node),
                    Event::Down(node) if cluster.nodes.get(&NodeId(node)) == Some(&NodeState::Up) => {
                        set(&mut cluster, node, NodeState::Down);
                    }
                    Event::Back(node) if cluster.nodes.get(&NodeId(node)) == Some(&NodeState::Down) => {
                        set(&mut cluster, node, NodeState::Up);
                    }
                    Event::Join if model.joined < 6 => {
                        model.joined += 1;
                        join(&mut cluster, model.joined);
                    }
                    Event::Lose(node) if model.may_lose(&cluster, node) => set(&mut cluster, node, NodeState::Lost),
                    _ => {}
                }
                model.check(&cluster)?;
            }
        }
    }
}
