//! Moves of placement groups: no step forgets a disk that may hold something.

use std::collections::BTreeSet;

use bytes::Bytes;
use meta::map::command::*;
use proptest::prelude::*;

use crate::map::{Map, node, redeem, token};
use crate::shard::random;

/// Disks 5 to 8, on nodes 1 to 4; disk 9 on node 5, which is joining.
fn map_of_disks() -> Map {
    let mut map = Map::initialised();
    for id in 2..5 {
        map.expect(MapCommand::SetNode(node(id, 1)), MapOutcome::Done);
    }
    map.expect(MapCommand::CreateToken(token(1)), MapOutcome::Done);
    assert_eq!(map.expect(MapCommand::RedeemToken(redeem(1, 1500)), MapOutcome::Done).id, 5);
    for number in 2..6 {
        let row = DiskRow { id: random(4 + u128::from(number)), node: number, capacity_bytes: 9, ..DiskRow::default() };
        map.expect(MapCommand::SetDisk(row), MapOutcome::Done);
    }
    map
}

fn disks(ids: &[u128]) -> Vec<Bytes> {
    ids.iter().map(|id| random(*id)).collect()
}

fn open(epoch: u32, members: &[u128]) -> MapCommand {
    let row = PgRow { pool: 1, prefix: 0, epoch, members: disks(members), ..PgRow::default() };
    MapCommand::SetPgs(PgRows { rows: vec![row] })
}

fn closed(epoch: u32, members: &[u128], before: &[u128]) -> MapCommand {
    let (members, members_before) = (disks(members), disks(before));
    let row = PgRow { pool: 1, prefix: 0, epoch, closed: true, members, members_before };
    MapCommand::SetPgs(PgRows { rows: vec![row] })
}

#[test]
fn each_step_follows_from_the_one_before() {
    let mut map = map_of_disks();
    // (step, expected)
    for (step, command, outcome) in [
        ("same epoch", closed(1, &[6], &[5]), MapOutcome::Stale),
        ("skips an epoch", closed(3, &[6], &[5]), MapOutcome::Invalid),
        ("open to open", open(2, &[6]), MapOutcome::Invalid),
        ("open to open, unchanged", open(2, &[5]), MapOutcome::Invalid),
        ("forgets the old member", closed(2, &[6], &[]), MapOutcome::Invalid),
        ("invents a member", closed(2, &[6], &[5, 7]), MapOutcome::Invalid),
        ("a joining node takes no data", closed(2, &[9], &[5]), MapOutcome::Invalid),
        ("closes", closed(2, &[5, 6], &[5]), MapOutcome::Done),
        ("opens with others", open(3, &[5, 7]), MapOutcome::Invalid),
        ("opens with fewer", open(3, &[5]), MapOutcome::Invalid),
        ("forgets the first target", closed(3, &[7, 8], &[5]), MapOutcome::Invalid),
        ("another plan", closed(3, &[7, 8], &[5, 6]), MapOutcome::Done),
        ("forgets all but the last", closed(4, &[7, 8], &[7, 8]), MapOutcome::Invalid),
        ("opens", open(4, &[7, 8]), MapOutcome::Done),
        ("stale controller", open(4, &[7, 8]), MapOutcome::Stale),
        ("order of members before is free", closed(5, &[5], &[8, 7]), MapOutcome::Done),
    ] {
        let reply = map.run(command);
        assert_eq!(reply.outcome(), outcome, "{step}: {}", reply.detail);
    }
    let keeps =
        PgRow { pool: 1, prefix: 0, epoch: 6, members: disks(&[5]), members_before: disks(&[7]), closed: false };
    map.expect(MapCommand::SetPgs(PgRows { rows: vec![keeps] }), MapOutcome::Invalid);
}

#[test]
fn a_new_group_starts_at_epoch_1() {
    let mut map = map_of_disks();
    map.expect(
        MapCommand::SetPool(PoolRow {
            id: 2,
            name: "q".into(),
            copies: 3,
            copies_effective: 1,
            pg_bits: 0,
            ..PoolRow::default()
        }),
        MapOutcome::Done,
    );
    let row = |epoch| PgRow { pool: 2, prefix: 0, epoch, members: disks(&[5]), ..PgRow::default() };
    map.expect(MapCommand::SetPgs(PgRows { rows: vec![row(2)] }), MapOutcome::Invalid);
    map.expect(MapCommand::SetPgs(PgRows { rows: vec![row(1)] }), MapOutcome::Done);
}

#[test]
fn a_storage_class_names_one_pool_for_ever() {
    let mut map = map_of_disks();
    let pool = |id, class: &str| {
        MapCommand::SetPool(PoolRow { id, copies: 3, copies_effective: 1, class: class.into(), ..PoolRow::default() })
    };
    let knows_none = map.expect(pool(2, "COLD"), MapOutcome::Invalid);
    assert!(knows_none.detail.contains("feature level"), "a node of an older version would forget it: {knows_none:?}");
    for id in map.map().nodes.iter().map(|row| row.id).collect::<Vec<_>>() {
        map.expect(MapCommand::SetNode(NodeRow { feature_level_max: 4, ..node(id, 1) }), MapOutcome::Done);
    }
    map.expect(MapCommand::SetFeatureLevel(FeatureLevel { level: 4 }), MapOutcome::Done);
    map.expect(pool(2, "COLD"), MapOutcome::Done);
    map.expect(pool(2, "COLD"), MapOutcome::Done);
    map.expect(pool(3, "COLD"), MapOutcome::Invalid);
    map.expect(pool(2, "WARM"), MapOutcome::Invalid);
    map.expect(pool(2, ""), MapOutcome::Invalid);
    map.expect(pool(3, ""), MapOutcome::Done);
    map.expect(pool(3, "DEEP_ARCHIVE2"), MapOutcome::Done);
    for class in ["cold", "A B", "A-B", &"A".repeat(33)] {
        map.expect(pool(4, class), MapOutcome::Invalid);
    }
}

/// Two operators made a pool at once: the second one's row took the place of the first one's.
#[test]
fn a_pool_keeps_its_name_and_never_has_fewer_copies() {
    let mut map = map_of_disks();
    let pool = |name: &str, copies, copies_effective| {
        MapCommand::SetPool(PoolRow { id: 2, name: name.into(), copies, copies_effective, ..PoolRow::default() })
    };
    for (step, command, outcome) in [
        ("made", pool("cold", 3, 1), MapOutcome::Done),
        ("other name", pool("icy", 3, 1), MapOutcome::Invalid),
        ("fewer copies", pool("cold", 2, 1), MapOutcome::Invalid),
        ("raised", pool("cold", 3, 2), MapOutcome::Done),
        ("the half-made pool again", pool("cold", 3, 1), MapOutcome::Invalid),
        ("raised again", pool("cold", 3, 3), MapOutcome::Done),
    ] {
        let reply = map.run(command);
        assert_eq!(reply.outcome(), outcome, "{step}: {}", reply.detail);
    }
}

#[test]
fn what_was_removed_takes_no_new_data_and_is_still_named_while_it_is_left() {
    let mut map = map_of_disks();
    let removed = |id: u128, node| DiskRow {
        id: random(id),
        node,
        capacity_bytes: 9,
        state: DiskState::Removed as i32,
        ..DiskRow::default()
    };
    map.expect(MapCommand::SetDisk(removed(6, 2)), MapOutcome::Done);
    map.expect(MapCommand::SetDisk(removed(5, 1)), MapOutcome::Done);
    map.expect(closed(2, &[6], &[5]), MapOutcome::Invalid);
    map.expect(closed(2, &[7], &[5]), MapOutcome::Done);
    map.expect(open(3, &[7]), MapOutcome::Done);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Against a model: whoever may have been given a chunk since the last opening is named in every row.
    #[test]
    fn no_sequence_of_steps_forgets_a_holder(
        steps in proptest::collection::vec(
            (any::<bool>(), prop::sample::subsequence(vec![5u128, 6, 7, 8], 0..4), 0u8..8), 1..40,
        ),
    ) {
        let mut map = map_of_disks();
        let mut holders: BTreeSet<Bytes> = disks(&[5]).into_iter().collect();
        for (close, mut members, luck) in steps {
            let row = map.map().pgs[0].clone();
            let mut before: Vec<Bytes> = holders.iter().cloned().collect();
            if luck == 0 {
                before.pop();
            }
            if luck == 1 {
                members.push(5);
            }
            let members = if close { disks(&members) } else { row.members.clone() };
            let members_before = if close { before } else { Vec::new() };
            let next = PgRow { epoch: row.epoch + 1, closed: close, members: members.clone(), members_before, ..row.clone() };
            let reply = map.run(MapCommand::SetPgs(PgRows { rows: vec![next.clone()] }));
            if reply.outcome() != MapOutcome::Done {
                prop_assert_eq!(&map.map().pgs[0], &row);
                continue;
            }
            // A closed group's new members pull copies from now on; an open one's are all it has.
            if close {
                holders.extend(members.iter().cloned());
            } else {
                holders = members.iter().cloned().collect();
            }
            let row = &map.map().pgs[0];
            prop_assert_eq!(row, &next);
            let named: BTreeSet<Bytes> = row.members.iter().chain(&row.members_before).cloned().collect();
            prop_assert_eq!(&named, &holders);
        }
    }
}
