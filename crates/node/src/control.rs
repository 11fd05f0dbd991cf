//! The control plane's decisions: what group 0's leader has heard of the nodes, and what it therefore changes in the
//! map. Pure, so that each decision can be tested as data; `controller.rs` carries them out.
//!
//! A node that has been silent for [`Rules::down_after`] is voted down: writes go on without it, and its generation is
//! fenced. After [`Rules::lost_after`] its copies are made again elsewhere. Silence is a guess: whoever was wronged comes
//! back under a new generation.

use base::env::MonoTime;
use base::ids::{GROUP_ZERO, Generation, GroupId, NodeId, PgEpoch, PgId, PoolId, Session};
use client::disk_id;
use client::wire::{GroupReport, NodeReport, PgDone};
use meta::map::command::{ClusterMap, DiskState, MapCommand, NodeRow, NodeState, PgRow, PgRows, PoolRow, SetNodeState};
use protocol::rebalance::{self, Change, Cluster, DiskView, GroupView, PoolView, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Groups whose reports are kept.
const GROUPS_MAX: usize = 4096;
/// Wall clocks further apart than this are told to the operator; nothing else depends on them.
pub const CLOCK_OFFSET_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The node that decides: never silent to itself.
    pub own: NodeId,
    pub down_after: Duration,
    pub lost_after: Duration,
}

/// What was heard of the nodes.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    /// Nobody is taken to have been silent since before this: the start of leadership, or the end of an own pause.
    forgiven: MonoTime,
    nodes: BTreeMap<NodeId, Heard>,
    /// By the latest leader that reported.
    groups: BTreeMap<GroupId, GroupReport>,
    /// When this node first saw these nodes down.
    down_since: BTreeMap<NodeId, MonoTime>,
    /// The generation that each serving node was last seen under, and since when: who has just come up cannot have been
    /// heard before.
    lives: BTreeMap<NodeId, (u32, MonoTime)>,
}

#[derive(Clone, Debug)]
struct Heard {
    at: MonoTime,
    clock_offset_ms: i64,
    done: BTreeSet<Done>,
}

type Done = (PoolId, u32, PgEpoch);

impl Observations {
    /// Takes in a report; `wall_ms` is the own wall clock. Answers whether the sender's clock has just become suspect.
    pub fn hear(&mut self, from: NodeId, report: NodeReport, now: MonoTime, wall_ms: u64) -> bool {
        let clock_offset_ms = i64::try_from(i128::from(report.wall_ms) - i128::from(wall_ms)).unwrap_or(i64::MAX);
        for group in report.groups.into_iter().take(GROUPS_MAX) {
            let id = GroupId(group.group);
            let is_newer = self.groups.get(&id).is_none_or(|known| known.term <= group.term);
            if is_newer && (self.groups.len() < GROUPS_MAX || self.groups.contains_key(&id)) {
                self.groups.insert(id, group);
            }
        }
        let done = report.done.iter().filter_map(done).collect();
        let before = self.nodes.insert(from, Heard { at: now, clock_offset_ms, done });
        is_suspect(clock_offset_ms) && !before.is_some_and(|before| is_suspect(before.clock_offset_ms))
    }

    /// Starts to count everybody's silence anew.
    pub fn forgive(&mut self, now: MonoTime) {
        self.forgiven = now;
        self.down_since.clear();
        self.lives.clear();
    }

    /// By how much the wall clocks of other nodes are ahead of the own, in milliseconds.
    pub fn clock_offsets_ms(&self) -> BTreeMap<NodeId, i64> {
        self.nodes.iter().map(|(node, heard)| (*node, heard.clock_offset_ms)).collect()
    }

    fn silence(&self, node: NodeId, now: MonoTime) -> Duration {
        let heard = self.nodes.get(&node).map_or(MonoTime(0), |heard| heard.at);
        let up = self.lives.get(&node).map_or(MonoTime(0), |(_, since)| *since);
        now.since(heard.max(self.forgiven).max(up))
    }

    fn note_lives(&mut self, map: &ClusterMap, now: MonoTime) {
        let is_first_look = self.lives.is_empty();
        let serving = map.nodes.iter().filter(|row| row.state().serves());
        let known = std::mem::take(&mut self.lives);
        self.lives = serving
            .map(|row| {
                let since = match known.get(&NodeId(row.id)) {
                    Some((generation, since)) if *generation == row.generation => *since,
                    _ if is_first_look => self.forgiven,
                    _ => now,
                };
                (NodeId(row.id), (row.generation, since))
            })
            .collect();
    }

    /// Voters of each group that the map knows; `None` while one has not reported.
    fn voters(&self, map: &ClusterMap) -> Option<Vec<&GroupReport>> {
        let shards = map.shards.iter().map(|row| GroupId(row.group));
        std::iter::once(GROUP_ZERO).chain(shards).map(|group| self.groups.get(&group)).collect()
    }
}

fn is_suspect(offset_ms: i64) -> bool {
    offset_ms.unsigned_abs() > CLOCK_OFFSET_MAX.as_millis() as u64
}

fn done(done: &PgDone) -> Option<Done> {
    Some((PoolId(u8::try_from(done.pool).ok()?), done.prefix, PgEpoch(done.epoch)))
}

/// Nodes that are down, lost, or may go for good.
pub fn decide_nodes(map: &ClusterMap, seen: &mut Observations, now: MonoTime, rules: &Rules) -> Vec<MapCommand> {
    let down: BTreeSet<NodeId> =
        map.nodes.iter().filter(|row| row.state() == NodeState::Down).map(|row| NodeId(row.id)).collect();
    seen.note_lives(map, now);
    seen.down_since.retain(|node, _| down.contains(node));
    for node in &down {
        seen.down_since.entry(*node).or_insert(now);
    }
    map.nodes.iter().filter_map(|row| decide_node(map, seen, now, rules, row)).collect()
}

fn decide_node(
    map: &ClusterMap,
    seen: &Observations,
    now: MonoTime,
    rules: &Rules,
    row: &NodeRow,
) -> Option<MapCommand> {
    let id = NodeId(row.id);
    let (state, raise_floor) = match row.state() {
        NodeState::Up | NodeState::Draining if id != rules.own && seen.silence(id, now) > rules.down_after => {
            (NodeState::Down, true)
        }
        NodeState::Down if seen.down_since.get(&id).is_some_and(|since| now.since(*since) > rules.lost_after) => {
            (NodeState::Lost, true)
        }
        NodeState::Draining | NodeState::Lost if row.leaving && is_unused(map, seen, id) => (NodeState::Removed, true),
        _ => return None,
    };
    let change = SetNodeState { id: row.id, state: state as i32, raise_floor, generation: row.generation };
    Some(MapCommand::SetNodeState(change))
}

/// No placement group names a disk of this node, and no group has it as a voter.
fn is_unused(map: &ClusterMap, seen: &Observations, node: NodeId) -> bool {
    let disks: BTreeSet<&[u8]> = map.disks.iter().filter(|row| row.node == node.0).map(|row| row.id.as_ref()).collect();
    let named = |row: &PgRow| row.members.iter().chain(&row.members_before).any(|disk| disks.contains(disk.as_ref()));
    let votes = |group: &&GroupReport| group.voters.contains(&node.0);
    seen.voters(map).is_some_and(|groups| !groups.iter().any(votes)) && !map.pgs.iter().any(named)
}

/// The next step of moving data to where it belongs.
pub fn decide_placement(map: &ClusterMap, seen: &Observations) -> Option<MapCommand> {
    match rebalance::next(&cluster(map, seen))? {
        Step::RaiseCopies { pool, copies } => {
            let row = map.pools.iter().find(|row| row.id == u32::from(pool.0))?;
            Some(MapCommand::SetPool(PoolRow { copies_effective: copies as u32, ..row.clone() }))
        }
        Step::Change(changes) => Some(MapCommand::SetPgs(PgRows { rows: changes.into_iter().map(row_of).collect() })),
    }
}

/// Whether all data is where it belongs, as far as the map says.
pub fn is_settled(map: &ClusterMap) -> bool {
    rebalance::is_settled(&cluster(map, &Observations::default()))
}

fn row_of(change: Change) -> PgRow {
    let raw =
        |ids: &[base::ids::DiskId]| ids.iter().map(|id| bytes::Bytes::copy_from_slice(&id.0.to_be_bytes())).collect();
    PgRow {
        pool: u32::from(change.pg.pool.0),
        prefix: change.pg.prefix,
        epoch: change.epoch.0,
        closed: change.closed,
        members: raw(&change.members),
        members_before: raw(&change.members_before),
    }
}

/// The map and what was heard as the planner takes them.
fn cluster(map: &ClusterMap, seen: &Observations) -> Cluster {
    let nodes = map.nodes.iter().map(|row| (NodeId(row.id), state_of(row.state()))).collect();
    let disk = |row: &meta::map::command::DiskRow| {
        let usable = row.state() == DiskState::Up;
        Some((disk_id(&row.id)?, DiskView { node: NodeId(row.node), capacity_bytes: row.capacity_bytes, usable }))
    };
    let pool = |row: &PoolRow| PoolView {
        pool: PoolId(row.id.min(255) as u8),
        copies: row.copies as usize,
        copies_effective: row.copies_effective as usize,
    };
    let mut done: BTreeMap<Done, BTreeSet<NodeId>> = BTreeMap::new();
    for (node, heard) in &seen.nodes {
        for key in &heard.done {
            done.entry(*key).or_default().insert(*node);
        }
    }
    let bits: BTreeMap<u32, u8> = map.pools.iter().map(|row| (row.id, row.pg_bits.min(24) as u8)).collect();
    let group = |row: &PgRow| {
        let pool = PoolId(row.pool.min(255) as u8);
        Some(GroupView {
            pg: PgId { pool, bits: *bits.get(&row.pool)?, prefix: row.prefix },
            epoch: PgEpoch(row.epoch),
            closed: row.closed,
            members: row.members.iter().filter_map(|raw| disk_id(raw)).collect(),
            members_before: row.members_before.iter().filter_map(|raw| disk_id(raw)).collect(),
            done: done.get(&(pool, row.prefix, PgEpoch(row.epoch))).cloned().unwrap_or_default(),
        })
    };
    let voters = seen.voters(map).unwrap_or_default();
    Cluster {
        nodes,
        disks: map.disks.iter().filter_map(disk).collect(),
        pools: map.pools.iter().map(pool).collect(),
        groups: map.pgs.iter().filter_map(group).collect(),
        voters_ready: voters.iter().map(|group| group.voters.len()).min().unwrap_or(0),
    }
}

fn state_of(state: NodeState) -> rebalance::NodeState {
    match state {
        NodeState::Joining => rebalance::NodeState::Joining,
        NodeState::Up => rebalance::NodeState::Up,
        NodeState::Down => rebalance::NodeState::Down,
        NodeState::Lost => rebalance::NodeState::Lost,
        NodeState::Draining => rebalance::NodeState::Draining,
        NodeState::Removed => rebalance::NodeState::Removed,
    }
}

/// Sessions that some group may still take commands from although the map has fenced them.
pub fn sessions_due(map: &ClusterMap, closed: &BTreeMap<(GroupId, NodeId), u32>) -> Vec<(GroupId, Session)> {
    let groups: Vec<GroupId> =
        std::iter::once(GROUP_ZERO).chain(map.shards.iter().map(|row| GroupId(row.group))).collect();
    let due = |row: &NodeRow| {
        let (node, floor) = (NodeId(row.id), row.generation_floor);
        let is_open = |group: &GroupId| closed.get(&(*group, node)).is_none_or(|closed| *closed < floor);
        let session = Session { node, generation: Generation(floor) };
        groups.iter().copied().filter(is_open).map(|group| (group, session)).collect::<Vec<_>>()
    };
    map.nodes.iter().filter(|row| row.generation_floor > 0).flat_map(due).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::DiskId;
    use bytes::Bytes;
    use meta::map::command::{DiskRow, ShardRow};

    const OWN: NodeId = NodeId(1);
    const RULES: Rules =
        Rules { own: OWN, down_after: Duration::from_millis(600), lost_after: Duration::from_secs(600) };

    fn at(millis: u64) -> MonoTime {
        MonoTime(1_000_000_000 + millis * 1_000_000)
    }

    fn raw(disk: u128) -> Bytes {
        Bytes::copy_from_slice(&DiskId(disk).0.to_be_bytes())
    }

    fn map(nodes: u32) -> ClusterMap {
        let node = |id| NodeRow { id, generation: 3, generation_floor: 3, ..NodeRow::default() };
        let disk = |id: u32| DiskRow { id: raw(id.into()), node: id, capacity_bytes: 1 << 40, state: 0 };
        let pg = |prefix| PgRow { pool: 1, prefix, epoch: 1, members: vec![raw(1)], ..PgRow::default() };
        ClusterMap {
            nodes: (1..=nodes).map(node).collect(),
            disks: (1..=nodes).map(disk).collect(),
            pools: vec![PoolRow { id: 1, copies: 3, copies_effective: 1, pg_bits: 2, ..PoolRow::default() }],
            pgs: (0..4).map(pg).collect(),
            shards: vec![ShardRow { group: 1, ..ShardRow::default() }],
            ..ClusterMap::default()
        }
    }

    fn report(voters: &[u32]) -> NodeReport {
        let group = |group| GroupReport { group, term: 2, voters: voters.to_vec() };
        NodeReport { groups: vec![group(0), group(1)], ..NodeReport::default() }
    }

    fn heard(nodes: u32, now: MonoTime) -> Observations {
        let mut seen = Observations::default();
        let voters: Vec<u32> = (1..=nodes.min(3)).collect();
        for node in 1..=nodes {
            seen.hear(NodeId(node), report(&voters), now, 0);
        }
        seen
    }

    fn states(commands: &[MapCommand]) -> Vec<(u32, NodeState)> {
        let state = |command: &MapCommand| match command {
            MapCommand::SetNodeState(change) => {
                assert!(change.generation == 3 && change.raise_floor);
                (change.id, change.state())
            }
            other => panic!("{other:?}"),
        };
        commands.iter().map(state).collect()
    }

    #[test]
    fn silence_is_voted_down_after_600_ms_and_never_the_own() {
        let (map, mut seen) = (map(3), heard(3, at(0)));
        seen.hear(NodeId(2), report(&[]), at(500), 0);
        assert_eq!(decide_nodes(&map, &mut seen, at(600), &RULES), vec![]);
        assert_eq!(states(&decide_nodes(&map, &mut seen, at(601), &RULES)), [(3, NodeState::Down)]);
        assert_eq!(
            states(&decide_nodes(&map, &mut seen, at(5000), &RULES)),
            [(2, NodeState::Down), (3, NodeState::Down)]
        );
    }

    #[test]
    fn a_fresh_leader_and_one_that_slept_give_everybody_600_ms() {
        let (map, mut seen) = (map(3), Observations::default());
        seen.forgive(at(0));
        assert_eq!(decide_nodes(&map, &mut seen, at(600), &RULES), vec![]);
        assert_eq!(decide_nodes(&map, &mut seen, at(601), &RULES).len(), 2);
        seen.forgive(at(30_000));
        assert_eq!(decide_nodes(&map, &mut seen, at(30_600), &RULES), vec![]);
    }

    #[test]
    fn who_has_just_come_up_is_given_600_ms_to_be_heard() {
        let (mut map, mut seen) = (map(3), heard(3, at(0)));
        map.nodes[2].state = NodeState::Joining as i32;
        let feed = |seen: &mut Observations, now| seen.hear(NodeId(2), report(&[]), now, 0);
        assert_eq!(decide_nodes(&map, &mut seen, at(0), &RULES), vec![]);
        map.nodes[2].state = NodeState::Up as i32;
        feed(&mut seen, at(5000));
        assert_eq!(decide_nodes(&map, &mut seen, at(5000), &RULES), vec![]);
        feed(&mut seen, at(5600));
        assert_eq!(decide_nodes(&map, &mut seen, at(5600), &RULES), vec![]);
        feed(&mut seen, at(5601));
        assert_eq!(states(&decide_nodes(&map, &mut seen, at(5601), &RULES)), [(3, NodeState::Down)]);
    }

    #[test]
    fn down_for_ten_minutes_is_lost_counted_by_whoever_leads() {
        let (mut map, mut seen) = (map(3), heard(3, at(0)));
        map.nodes[2].state = NodeState::Down as i32;
        let feed = |seen: &mut Observations, now| seen.hear(NodeId(2), report(&[1, 2, 3]), now, 0);
        assert_eq!(decide_nodes(&map, &mut seen, at(0), &RULES), vec![]);
        feed(&mut seen, at(600_000));
        assert_eq!(decide_nodes(&map, &mut seen, at(600_000), &RULES), vec![]);
        assert_eq!(states(&decide_nodes(&map, &mut seen, at(600_001), &RULES)), [(3, NodeState::Lost)]);
        // Back, and down again: the count starts anew.
        map.nodes[2].state = NodeState::Up as i32;
        decide_nodes(&map, &mut seen, at(600_002), &RULES);
        map.nodes[2].state = NodeState::Down as i32;
        feed(&mut seen, at(700_000));
        assert_eq!(decide_nodes(&map, &mut seen, at(700_000), &RULES), vec![]);
    }

    #[test]
    fn a_drained_node_goes_when_nothing_names_it() {
        let (mut map, mut seen) = (map(4), heard(4, at(0)));
        map.nodes[3].state = NodeState::Draining as i32;
        map.nodes[3].leaving = true;
        map.pgs[2].members_before = vec![raw(4)];
        assert_eq!(decide_nodes(&map, &mut seen, at(0), &RULES), vec![], "a move may still need its disk");
        map.pgs[2].members_before.clear();
        assert_eq!(states(&decide_nodes(&map, &mut seen, at(0), &RULES)), [(4, NodeState::Removed)]);
        seen.hear(OWN, report(&[1, 2, 4]), at(0), 0);
        assert_eq!(decide_nodes(&map, &mut seen, at(0), &RULES), vec![], "it votes");
        seen.groups.remove(&GroupId(1));
        assert_eq!(decide_nodes(&map, &mut seen, at(0), &RULES), vec![], "it may vote in a group that nobody knows");
    }

    #[test]
    fn copies_rise_when_every_group_has_the_voters() {
        let (map, mut seen) = (map(3), heard(3, at(0)));
        let Some(MapCommand::SetPool(row)) = decide_placement(&map, &seen) else { panic!("copies rise") };
        assert_eq!(row.copies_effective, 3);
        let mut behind = report(&[1, 2, 3]);
        behind.groups[1] = GroupReport { group: 1, term: 3, voters: vec![1] };
        seen.hear(NodeId(2), behind, at(0), 0);
        assert_eq!(decide_placement(&map, &seen), None);
        // A deposed leader's late report changes nothing.
        seen.hear(NodeId(1), report(&[1, 2, 3]), at(0), 0);
        assert_eq!(decide_placement(&map, &seen), None);
    }

    #[test]
    fn groups_close_and_open_when_all_members_are_done() {
        let (mut map, mut seen) = (map(3), heard(3, at(0)));
        map.pools[0].copies_effective = 3;
        let Some(MapCommand::SetPgs(rows)) = decide_placement(&map, &seen) else { panic!("groups close") };
        assert_eq!(rows.rows.len(), 2, "half of them");
        for row in rows.rows {
            assert!(row.closed && row.epoch == 2 && row.members.len() == 3 && row.members_before == vec![raw(1)]);
            let at = row.prefix as usize;
            map.pgs[at] = row;
        }
        assert!(!is_settled(&map));
        for node in 1..=3 {
            assert_eq!(decide_placement(&map, &seen), None);
            let united = |row: &PgRow| PgDone { pool: 1, prefix: row.prefix, epoch: row.epoch };
            let done = map.pgs.iter().map(united).collect();
            seen.hear(NodeId(node), NodeReport { done, ..report(&[1, 2, 3]) }, at(0), 0);
        }
        let Some(MapCommand::SetPgs(rows)) = decide_placement(&map, &seen) else { panic!("groups open") };
        assert_eq!(rows.rows.iter().filter(|row| !row.closed && row.epoch == 3).count(), 2);
        assert_eq!(rows.rows.iter().filter(|row| row.closed && row.epoch == 2).count(), 2);
    }

    #[test]
    fn fenced_sessions_are_closed_in_every_group_once() {
        let mut map = map(2);
        map.nodes[1].generation_floor = 4;
        let mut closed = BTreeMap::new();
        let due = sessions_due(&map, &closed);
        assert_eq!(due.len(), 4);
        for (group, session) in due {
            closed.insert((group, session.node), session.generation.0);
        }
        assert_eq!(sessions_due(&map, &closed), vec![]);
        map.nodes[0].generation_floor = 9;
        assert_eq!(sessions_due(&map, &closed).len(), 2);
    }

    #[test]
    fn a_clock_that_is_off_is_told_once() {
        let mut seen = Observations::default();
        let wrong = NodeReport { wall_ms: 200_000, ..NodeReport::default() };
        assert!(seen.hear(NodeId(2), wrong.clone(), at(0), 100_000));
        assert!(!seen.hear(NodeId(2), wrong.clone(), at(0), 100_000));
        assert!(!seen.hear(NodeId(3), wrong, at(0), 140_000));
        assert_eq!(seen.clock_offsets_ms()[&NodeId(2)], 100_000);
    }
}
