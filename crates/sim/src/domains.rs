//! Where copies are, by the map: no two on one node, ever; and when all is quiet, spread over zones as evenly as there are
//! zones. Judged from the rows of the map alone: what planned them is not asked.

use meta::map::command::{ClusterMap, DiskState, NodeState, PgRow};
use std::collections::{BTreeMap, BTreeSet};

/// Groups with two members on one node, open or not.
pub fn on_one_node(map: &ClusterMap) -> Vec<String> {
    let nodes: BTreeMap<&[u8], u32> = map.disks.iter().map(|disk| (disk.id.as_ref(), disk.node)).collect();
    let is_shared = |row: &&PgRow| {
        let of_members: Vec<u32> = row.members.iter().filter_map(|disk| nodes.get(disk.as_ref()).copied()).collect();
        of_members.iter().collect::<BTreeSet<&u32>>().len() < of_members.len()
    };
    let shared = map.pgs.iter().filter(is_shared);
    shared.map(|row| format!("placement group {}.{:x} has two members on one node", row.pool, row.prefix)).collect()
}

/// Open groups that have more members in one zone than their even share, by the zones that could take them.
pub fn crowded(map: &ClusterMap) -> Vec<String> {
    let zones: BTreeMap<u32, &str> = map.nodes.iter().map(|row| (row.id, row.locality.as_str())).collect();
    let up: BTreeSet<u32> = map.nodes.iter().filter(|row| row.state() == NodeState::Up).map(|row| row.id).collect();
    let takes_data = |row: &&meta::map::command::DiskRow| {
        row.capacity_bytes > 0 && row.state() == DiskState::Up && up.contains(&row.node)
    };
    let able: BTreeSet<&str> =
        map.disks.iter().filter(takes_data).filter_map(|disk| zones.get(&disk.node).copied()).collect();
    let of_disk: BTreeMap<&[u8], &str> =
        map.disks.iter().filter_map(|disk| Some((disk.id.as_ref(), *zones.get(&disk.node)?))).collect();
    let mut crowded = Vec::new();
    for row in map.pgs.iter().filter(|row| !row.closed) {
        let most = row.members.len().div_ceil(able.len().max(1));
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for zone in row.members.iter().filter_map(|disk| of_disk.get(disk.as_ref())) {
            *counts.entry(zone).or_default() += 1;
        }
        if let Some((zone, count)) = counts.into_iter().find(|(_, count)| *count > most) {
            crowded.push(format!(
                "placement group {}.{:x} has {count} members in {zone:?}, and there are {} zones",
                row.pool,
                row.prefix,
                able.len()
            ));
        }
    }
    crowded
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use meta::map::command::{DiskRow, NodeRow};

    fn map(zones: &[&str], members: &[u32]) -> ClusterMap {
        let raw = |id: u32| Bytes::copy_from_slice(&u128::from(id).to_be_bytes());
        // Two disks on each node: numbers 10 and 11 are of node 1.
        let disk = |id: u32| DiskRow {
            id: raw(id),
            node: id / 10,
            capacity_bytes: 1,
            state: DiskState::Up as i32,
            ..DiskRow::default()
        };
        let node = |(at, zone): (usize, &&str)| NodeRow {
            id: at as u32 + 1,
            state: NodeState::Up as i32,
            locality: (*zone).to_string(),
            ..NodeRow::default()
        };
        ClusterMap {
            nodes: zones.iter().enumerate().map(node).collect(),
            disks: (1..=zones.len() as u32).flat_map(|node| [disk(node * 10), disk(node * 10 + 1)]).collect(),
            pgs: vec![PgRow { pool: 1, members: members.iter().map(|id| raw(*id)).collect(), ..PgRow::default() }],
            ..ClusterMap::default()
        }
    }

    #[test]
    fn two_members_on_one_node_are_seen() {
        assert_eq!(on_one_node(&map(&["", "", ""], &[10, 20, 31])), Vec::<String>::new());
        assert_eq!(on_one_node(&map(&["", "", ""], &[10, 11, 31])).len(), 1);
    }

    #[test]
    fn two_members_in_one_of_three_zones_are_too_many_and_in_one_of_two_are_not() {
        assert_eq!(crowded(&map(&["a", "b", "c", "a"], &[10, 20, 31])), Vec::<String>::new());
        assert_eq!(crowded(&map(&["a", "b", "c", "a"], &[10, 20, 41])).len(), 1);
        assert_eq!(crowded(&map(&["a", "b", "a", "b"], &[10, 20, 31])), Vec::<String>::new());
        assert_eq!(crowded(&map(&["", "", ""], &[10, 20, 31])), Vec::<String>::new());
    }
}
