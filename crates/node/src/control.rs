//! The control plane's decisions: what group 0's leader changes in the map for what it has heard of the nodes
//! (`observations.rs`). Pure, so that each decision can be tested as data; `controller.rs` carries them out.
//!
//! A node is voted down (writes go on without it, its generation is fenced) when
//! - it is silent: it missed three deadlines, and nobody who was asked reaches it (`protocol::detector`);
//! - it says that it is unfit: it hears no leader of group 0, or a disk of its does not answer;
//! - the link between it and another node is broken for longer than a moment: both are healthy, but what needs the two
//!   would wait for ever, so one of them has to go.
//!
//! After [`Rules::lost_after`] its copies are made again elsewhere. Silence is a guess: whoever was wronged comes back under a
//! new generation.

use crate::observations::{Done, Observations, Why, is_observed};
use base::env::MonoTime;
use base::ids::{self, DiskId, GROUP_ZERO, Generation, GroupId, NodeId, PgEpoch, PgId, PoolId, Session};
use base::plant::{self, Plant};
use bytes::Bytes;
use client::disk_id;
use client::wire::GroupReport;
use meta::map::command::{
    ClusterMap, DiskRow, DiskState, FeatureLevel, MapCommand, NodeRow, NodeState, PgRow, PgRows, PoolRow, SetDiskSlow,
    SetNodeState,
};
use meta::map::level_of;
use protocol::placement::Locality;
use protocol::rebalance::{self, Change, Cluster, DiskView, GroupView, PoolView, Step};
use protocol::slowness;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The node that decides: never silent to itself.
    pub own: NodeId,
    pub lost_after: Duration,
}

/// Nodes that are down, lost, or may go for good; each with a sentence for the timeline.
pub fn decide_nodes(
    map: &ClusterMap,
    seen: &mut Observations,
    now: MonoTime,
    rules: &Rules,
) -> Vec<(MapCommand, String)> {
    let down: BTreeSet<NodeId> =
        map.nodes.iter().filter(|row| row.state() == NodeState::Down).map(|row| NodeId(row.id)).collect();
    seen.note_down(&down, now);
    let out = seen.out(map, rules.own, now);
    map.nodes.iter().filter_map(|row| decide_node(map, seen, &out, now, rules, row)).collect()
}

fn decide_node(
    map: &ClusterMap,
    seen: &Observations,
    out: &BTreeMap<NodeId, Why>,
    now: MonoTime,
    rules: &Rules,
    row: &NodeRow,
) -> Option<(MapCommand, String)> {
    let id = NodeId(row.id);
    let (state, why) = match (row.state(), out.get(&id)) {
        (_, Some(why)) => (NodeState::Down, why.as_str()),
        (NodeState::Down, _) if seen.down_for(id, now).is_some_and(|down_for| down_for > rules.lost_after) => {
            (NodeState::Lost, "has been down for too long")
        }
        (NodeState::Draining | NodeState::Lost, _) if row.leaving && is_unused(map, seen, id) => {
            (NodeState::Removed, "holds nothing any more")
        }
        _ => return None,
    };
    let change =
        SetNodeState { id: row.id, state: state as i32, raise_floor: true, generation: row.generation, stays: false };
    let then = match state {
        NodeState::Down => format!("generation {} is fenced, writes go on without it", row.generation),
        NodeState::Lost => "its copies are made again on other nodes".into(),
        _ => "it is removed from the cluster".into(),
    };
    Some((MapCommand::SetNodeState(change), format!("node {id} {why}: {then}")))
}

/// What all nodes know that have not been removed, when the map knows less: from then on older versions are refused.
pub fn decide_level(map: &ClusterMap) -> Option<(MapCommand, String)> {
    let members = map.nodes.iter().filter(|row| row.state() != NodeState::Removed);
    let level = members.map(|row| row.feature_level_max).min()?;
    let raise = MapCommand::SetFeatureLevel(FeatureLevel { level });
    (level > map.feature_level)
        .then(|| (raise, format!("the cluster is at feature level {level}: every node knows it")))
}

/// Disks that are to be called slow, or slow no more; each with a sentence for the timeline.
pub fn decide_slow(map: &ClusterMap, seen: &mut Observations, now: MonoTime) -> Vec<(MapCommand, String)> {
    // Below this level the map refuses it, and the judge would take its own verdicts for carried out.
    if ids::FeatureLevel(map.feature_level) < level_of(&MapCommand::SetDiskSlow(SetDiskSlow::default())) {
        return Vec::new();
    }
    let serving: BTreeSet<NodeId> =
        map.nodes.iter().filter(|row| row.state().serves()).map(|row| NodeId(row.id)).collect();
    let disk = |row: &DiskRow| {
        let (id, node) = (disk_id(&row.id)?, NodeId(row.node));
        let tail = seen.tail(node, id);
        row.state().serves().then_some((id, slowness::Disk { node, tail, slow: row.slow }))
    };
    let disks: BTreeMap<DiskId, slowness::Disk> = map.disks.iter().filter_map(disk).collect();
    let members = map.nodes.iter().filter(|row| is_observed(row)).count();
    let verdicts = seen.slowness.look(&disks, &serving, members, now);
    let command = |verdict: slowness::Verdict| {
        let id = Bytes::copy_from_slice(&verdict.disk.0.to_be_bytes());
        let ms = |tail: Option<Duration>| tail.map_or("?".to_owned(), |tail| tail.as_millis().to_string());
        let (node, own, peers) = (disks[&verdict.disk].node, ms(verdict.tail), ms(verdict.peers));
        let then = match verdict.slow {
            true => "it leads nothing and is given nothing new that others can take",
            false => "it is used as before",
        };
        let is = if verdict.slow { "is slow" } else { "is slow no more" };
        let what = format!("disk {} of node {node} {is} ({own} ms, its peers {peers} ms): {then}", verdict.disk);
        (MapCommand::SetDiskSlow(SetDiskSlow { id, slow: verdict.slow }), what)
    };
    verdicts.into_iter().map(command).collect()
}

/// No placement group names a disk of this node, and no group has it as a voter.
fn is_unused(map: &ClusterMap, seen: &Observations, node: NodeId) -> bool {
    let disks: BTreeSet<&[u8]> = map.disks.iter().filter(|row| row.node == node.0).map(|row| row.id.as_ref()).collect();
    let named = |row: &PgRow| row.members.iter().chain(&row.members_before).any(|disk| disks.contains(disk.as_ref()));
    let votes = |group: &&GroupReport| group.voters.contains(&node.0);
    seen.voters(map).is_some_and(|groups| !groups.iter().any(votes))
        && (!map.pgs.iter().any(named) || plant::is(Plant::DrainEarly))
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

/// Copies of placement groups that are still to be made where they belong, as far as the map says.
pub fn to_move(map: &ClusterMap) -> u64 {
    rebalance::copies_to_move(&cluster(map, &Observations::default())) as u64
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
        let usable = row.state().serves();
        let drains = row.state() == DiskState::Draining;
        let view = DiskView { node: NodeId(row.node), capacity_bytes: row.capacity_bytes, usable, drains };
        Some((disk_id(&row.id)?, view))
    };
    let pool = |row: &PoolRow| PoolView {
        pool: PoolId(row.id.min(255) as u8),
        copies: row.copies as usize,
        copies_effective: row.copies_effective as usize,
    };
    let done: BTreeMap<Done, BTreeSet<NodeId>> = seen.done();
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
        localities: map.nodes.iter().map(|row| (NodeId(row.id), Locality::parse(&row.locality))).collect(),
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

/// Sessions that some group may still take commands from although the map has fenced or closed them.
pub fn sessions_due(map: &ClusterMap, closed: &BTreeMap<(GroupId, NodeId), u32>) -> Vec<(GroupId, Session)> {
    let groups: Vec<GroupId> =
        std::iter::once(GROUP_ZERO).chain(map.shards.iter().map(|row| GroupId(row.group))).collect();
    let due = |row: &NodeRow| {
        let (node, floor) = (NodeId(row.id), row.sessions_open_from());
        let is_open = |group: &GroupId| closed.get(&(*group, node)).is_none_or(|closed| *closed < floor);
        let session = Session { node, generation: Generation(floor) };
        groups.iter().copied().filter(is_open).map(|group| (group, session)).collect::<Vec<_>>()
    };
    map.nodes.iter().filter(|row| row.sessions_open_from() > 0).flat_map(due).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::wire::{DiskTail, NodeReport, PgDone};
    use meta::map::command::ShardRow;

    const OWN: NodeId = NodeId(1);
    const RULES: Rules = Rules { own: OWN, lost_after: Duration::from_secs(600) };

    fn at(millis: u64) -> MonoTime {
        MonoTime(1_000_000_000 + millis * 1_000_000)
    }

    fn raw(disk: u128) -> Bytes {
        Bytes::copy_from_slice(&DiskId(disk).0.to_be_bytes())
    }

    fn map(nodes: u32) -> ClusterMap {
        let node = |id| NodeRow { id, generation: 3, generation_floor: 3, ..NodeRow::default() };
        let disk = |id: u32| DiskRow { id: raw(id.into()), node: id, capacity_bytes: 1 << 40, ..DiskRow::default() };
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
        seen.look(&map(nodes), OWN, &[], now);
        for node in 1..=nodes {
            seen.hear(NodeId(node), report(&voters), now, 0);
        }
        seen
    }

    /// From one moment to another these nodes report, and everybody else is asked about and not reached. Answers what was
    /// decided first, and when.
    fn first_decision(
        map: &ClusterMap,
        seen: &mut Observations,
        (from, to): (u64, u64),
        reports: &[(u32, NodeReport)],
        is_reached: bool,
    ) -> Option<(u64, Vec<(u32, NodeState)>)> {
        for millis in (from..to).step_by(50) {
            if millis % 100 == 0 {
                for (node, report) in reports {
                    seen.hear(NodeId(*node), report.clone(), at(millis), 0);
                }
            }
            for suspect in seen.look(map, OWN, &[], at(millis)).1 {
                seen.told(suspect, is_reached);
            }
            let decided = decide_nodes(map, seen, at(millis), &RULES);
            if !decided.is_empty() {
                return Some((millis, states(&decided)));
            }
        }
        None
    }

    fn states(commands: &[(MapCommand, String)]) -> Vec<(u32, NodeState)> {
        let state = |(command, _): &(MapCommand, String)| match command {
            MapCommand::SetNodeState(change) => {
                assert!(change.generation == 3 && change.raise_floor);
                (change.id, change.state())
            }
            other => panic!("{other:?}"),
        };
        commands.iter().map(state).collect()
    }

    /// Two versions side by side: the older one decides what may be commanded.
    #[test]
    fn the_feature_level_rises_when_the_last_node_knows_it() {
        let mut map = map(3);
        map.feature_level = 2;
        map.nodes.iter_mut().for_each(|row| row.feature_level_max = 3);
        map.nodes[1].feature_level_max = 2;
        assert_eq!(decide_level(&map), None);
        map.nodes[1].state = NodeState::Removed as i32;
        let raise = MapCommand::SetFeatureLevel(FeatureLevel { level: 3 });
        assert_eq!(decide_level(&map).map(|(command, _)| command), Some(raise));
        map.feature_level = 3;
        assert_eq!(decide_level(&map), None);
    }

    #[test]
    fn silence_is_voted_down_within_600_ms_and_never_the_own() {
        let (map, mut seen) = (map(3), heard(3, at(0)));
        let two = [(2, report(&[])), (3, report(&[]))];
        assert_eq!(first_decision(&map, &mut seen, (0, 5000), &two, false), None);
        let (when, decided) = first_decision(&map, &mut seen, (5000, 6000), &two[..1], false).unwrap();
        // Its last word came at 4900.
        assert_eq!((when, decided), (5350, vec![(3, NodeState::Down)]));
        // Of two nodes one has nobody to ask.
        let (when, decided) = first_decision(&self::map(2), &mut heard(2, at(0)), (50, 3000), &[], false).unwrap();
        assert!(when <= 800, "{when}: with one that was heard only once, a little more patience");
        assert_eq!(decided, vec![(2, NodeState::Down)]);
    }

    /// All others fell silent at once, because nothing came in here for half a second: they were all voted down.
    #[test]
    fn one_that_hears_nobody_votes_nobody_down_until_it_has_lasted() {
        let (map, mut seen) = (map(3), heard(3, at(0)));
        let two = [(2, report(&[])), (3, report(&[]))];
        assert_eq!(first_decision(&map, &mut seen, (0, 5000), &two, false), None);
        assert_eq!(first_decision(&map, &mut seen, (5000, 5900), &[], false), None);
        assert_eq!(first_decision(&map, &mut seen, (5900, 9000), &two, false), None);
        let (when, decided) = first_decision(&map, &mut seen, (9000, 12_000), &[], false).unwrap();
        assert_eq!((when, decided), (10_900, vec![(2, NodeState::Down), (3, NodeState::Down)]));
    }

    #[test]
    fn a_broken_link_to_the_leader_counts_only_when_it_lasts() {
        let (map, mut seen) = (map(3), heard(3, at(0)));
        let two = [(2, report(&[])), (3, report(&[]))];
        assert_eq!(first_decision(&map, &mut seen, (0, 5000), &two, true), None);
        let (when, decided) = first_decision(&map, &mut seen, (5000, 7000), &two[..1], true).unwrap();
        assert!((5850..6000).contains(&when), "{when}");
        assert_eq!(decided, vec![(3, NodeState::Down)]);
    }

    #[test]
    fn of_two_nodes_that_do_not_hear_each_other_one_goes() {
        let (mut map, mut seen) = (map(3), heard(3, at(0)));
        let cut_from = |other: u32| NodeReport { cut: vec![other], ..report(&[]) };
        // One of the two says so: a link that is broken one way is broken.
        let (two, three) = ((2, cut_from(3)), (3, report(&[])));
        let (when, decided) = first_decision(&map, &mut seen, (0, 2000), &[two.clone(), three.clone()], false).unwrap();
        assert!((500..700).contains(&when), "{when}");
        assert_eq!(decided, vec![(3, NodeState::Down)]);
        map.nodes[2].state = NodeState::Down as i32;
        map.version += 1;
        assert_eq!(first_decision(&map, &mut seen, (2000, 9000), &[two, three.clone()], false), None);
        // The third one is told so, and stays away until the link works.
        assert_eq!(seen.cut_off_from(&map, NodeId(3)), vec![NodeId(2)]);
        assert_eq!(first_decision(&map, &mut seen, (9000, 9500), &[(2, report(&[])), three], false), None);
        assert_eq!(seen.cut_off_from(&map, NodeId(3)), vec![]);
    }

    /// Found by the simulator: a node that was started anew, and back between two looks, was fenced at once for the link that
    /// its process before had lacked.
    #[test]
    fn a_new_life_has_a_patience_of_its_own() {
        for cut in [true, false] {
            let (mut map, mut seen) = (map(3), heard(3, at(0)));
            let told = |node: u32| match cut {
                true => NodeReport { cut: vec![5 - node], ..report(&[]) },
                false => NodeReport { unfit: node == 3, ..report(&[]) },
            };
            let two = [(2, told(2)), (3, told(3))];
            let patience = if cut { 500 } else { 200 };
            assert_eq!(first_decision(&map, &mut seen, (0, patience), &two, false), None);
            map.nodes[2].generation = 4;
            map.version += 1;
            for millis in (patience..2 * patience).step_by(50) {
                for (node, report) in &two {
                    seen.hear(NodeId(*node), report.clone(), at(millis), 0);
                }
                seen.look(&map, OWN, &[], at(millis));
                assert!(decide_nodes(&map, &mut seen, at(millis), &RULES).is_empty(), "{millis}");
            }
        }
    }

    #[test]
    fn broken_links_never_cost_the_majority() {
        let (mut map, mut seen) = (map(3), heard(3, at(0)));
        map.nodes[2].state = NodeState::Down as i32;
        map.version += 1;
        let two = (2, NodeReport { cut: vec![1], ..report(&[]) });
        assert_eq!(first_decision(&map, &mut seen, (0, 9000), &[two], false), None);
    }

    #[test]
    fn who_says_that_it_is_unfit_goes_unless_the_leader_is_new() {
        let (map, mut seen) = (map(3), heard(3, at(0)));
        let unfit = [(2, NodeReport { unfit: true, ..report(&[]) }), (3, report(&[]))];
        seen.lead(at(0));
        let (when, decided) = first_decision(&map, &mut seen, (0, 3000), &unfit, false).unwrap();
        assert!((750..=800).contains(&when), "{when}: it may not have heard the new leader yet");
        assert_eq!(decided, vec![(2, NodeState::Down)]);
    }

    /// Three nodes on one disk that hangs: to vote two of them down would make it worse.
    #[test]
    fn the_unfit_never_cost_the_majority() {
        let (mut map, mut seen) = (map(3), heard(3, at(0)));
        let unfit = |node| (node, NodeReport { unfit: true, ..report(&[]) });
        let (_, decided) = first_decision(&map, &mut seen, (0, 3000), &[unfit(2), unfit(3)], false).unwrap();
        assert_eq!(decided, vec![(2, NodeState::Down)]);
        map.nodes[1].state = NodeState::Down as i32;
        map.version += 1;
        assert_eq!(first_decision(&map, &mut seen, (3000, 6000), &[unfit(2), unfit(3)], false), None);
    }

    #[test]
    fn a_disk_far_slower_than_its_peers_is_called_slow_and_recovers() {
        let (mut map, mut seen) = (map(3), heard(3, at(0)));
        let tails = |ms: u64, disk: u128| NodeReport {
            tails: vec![DiskTail { disk: raw(disk), tail_us: ms * 1000 }],
            ..report(&[])
        };
        let mut look = |map: &ClusterMap, (from, to): (u64, u64), of_two: u64| {
            (from..to).step_by(100).find_map(|millis| {
                for (node, ms) in [(1, 8), (2, of_two), (3, 12)] {
                    seen.hear(NodeId(node), tails(ms, node.into()), at(millis), 0);
                }
                let (command, what) = decide_slow(map, &mut seen, at(millis)).pop()?;
                let MapCommand::SetDiskSlow(set) = command else { panic!("{command:?}") };
                assert_eq!(set.id, raw(2));
                Some((millis - from, set.slow, what))
            })
        };
        assert_eq!(look(&map, (0, 5000), 400), None, "a node of an older version would not follow");
        map.feature_level = 3;
        let (after, slow, what) = look(&map, (5000, 10_000), 400).unwrap();
        assert!(slow && after <= 2000, "{after}");
        assert!(what.contains("400 ms") && what.contains("node 2"), "{what}");
        map.disks[1].slow = true;
        assert_eq!(look(&map, (10_000, 60_000), 300), None);
        let (after, slow, _) = look(&map, (60_000, 200_000), 9).unwrap();
        assert!(!slow && after >= 29_000, "{after}");
    }

    #[test]
    fn one_that_slept_blames_nobody() {
        let (map, mut seen) = (map(3), heard(3, at(0)));
        let two = [(2, report(&[])), (3, report(&[]))];
        first_decision(&map, &mut seen, (0, 2000), &two, false);
        assert_eq!(first_decision(&map, &mut seen, (32_000, 32_300), &[], false), None);
        assert_eq!(first_decision(&map, &mut seen, (32_300, 34_000), &two, false), None);
    }

    #[test]
    fn who_has_just_come_up_is_given_time_to_be_heard() {
        let (mut map, mut seen) = (map(3), heard(3, at(0)));
        map.nodes[2].state = NodeState::Joining as i32;
        map.version += 1;
        let two = [(2, report(&[]))];
        assert_eq!(first_decision(&map, &mut seen, (0, 5000), &two, false), None);
        map.nodes[2].state = NodeState::Up as i32;
        map.version += 1;
        let (when, decided) = first_decision(&map, &mut seen, (5000, 9000), &two, false).unwrap();
        assert!((5450..5800).contains(&when), "{when}");
        assert_eq!(decided, vec![(3, NodeState::Down)]);
    }

    #[test]
    fn down_for_ten_minutes_is_lost_counted_by_whoever_leads() {
        let (mut map, mut seen) = (map(3), heard(3, at(0)));
        map.nodes[2].state = NodeState::Down as i32;
        map.version += 1;
        assert_eq!(decide_nodes(&map, &mut seen, at(0), &RULES), vec![]);
        assert_eq!(decide_nodes(&map, &mut seen, at(600_000), &RULES), vec![]);
        assert_eq!(states(&decide_nodes(&map, &mut seen, at(600_001), &RULES)), [(3, NodeState::Lost)]);
        // Back, and down again: the count starts anew.
        map.nodes[2].state = NodeState::Up as i32;
        map.version += 1;
        decide_nodes(&map, &mut seen, at(600_002), &RULES);
        map.nodes[2].state = NodeState::Down as i32;
        map.version += 1;
        assert_eq!(decide_nodes(&map, &mut seen, at(700_000), &RULES), vec![]);
    }

    #[test]
    fn a_drained_node_goes_when_nothing_names_it() {
        let (mut map, mut seen) = (map(4), heard(4, at(0)));
        map.nodes[3].state = NodeState::Draining as i32;
        map.version += 1;
        map.nodes[3].leaving = true;
        map.pgs[2].members_before = vec![raw(4)];
        assert_eq!(decide_nodes(&map, &mut seen, at(0), &RULES), vec![], "a move may still need its disk");
        map.pgs[2].members_before.clear();
        assert_eq!(states(&decide_nodes(&map, &mut seen, at(0), &RULES)), [(4, NodeState::Removed)]);
        seen.hear(OWN, report(&[1, 2, 4]), at(0), 0);
        assert_eq!(decide_nodes(&map, &mut seen, at(0), &RULES), vec![], "it votes");
        let mut seen = Observations::default();
        let zero = GroupReport { group: 0, term: 2, voters: vec![1, 2, 3] };
        seen.hear(OWN, NodeReport { groups: vec![zero], ..NodeReport::default() }, at(0), 0);
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
}
