//! Where the copies of a chunk must be, and what is to be said of those that there are. Pure.

use base::ids::{ChunkId, DiskId, PgId, PoolId};
use meta::chunks::ChunkRef;
use meta::map::command::{ClusterMap, DiskState, NodeState};
use protocol::placement::Locality;
use std::collections::{BTreeMap, BTreeSet};
use store::ChunkStat;

/// What the disks hold: for each chunk, what each disk says of it.
#[derive(Default)]
pub struct Held {
    pub chunks: BTreeMap<ChunkId, Vec<(DiskId, ChunkStat)>>,
    /// The disks that were given, with their paths.
    pub disks: BTreeMap<DiskId, String>,
    /// A disk that was given could not be read: it may be any of those that are missing.
    pub some_unreadable: bool,
}

/// The disks of each placement group.
#[derive(Default)]
pub struct Holders {
    pg_bits: BTreeMap<u8, u8>,
    groups: BTreeMap<PgId, Group>,
    nodes: BTreeMap<DiskId, u32>,
    /// Where each disk stands that may hold data: region, zone, rack, each with those around it.
    domains: BTreeMap<DiskId, [String; 3]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// As many copies are wanted as there are members.
    pub members: Vec<DiskId>,
    /// While the group moves: where else its chunks may be.
    pub before: Vec<DiskId>,
}

impl Holders {
    pub fn of(map: &ClusterMap) -> Holders {
        let mut holders = Holders::default();
        for pool in &map.pools {
            if let (Ok(id), Ok(bits)) = (u8::try_from(pool.id), u8::try_from(pool.pg_bits)) {
                holders.pg_bits.insert(id, bits.min(24));
            }
        }
        for row in &map.pgs {
            let Ok(pool) = u8::try_from(row.pool) else { continue };
            let Some(bits) = holders.pg_bits.get(&pool) else { continue };
            let before = if row.closed { disks(&row.members_before) } else { Vec::new() };
            let group = Group { members: disks(&row.members), before };
            holders.groups.insert(PgId { pool: PoolId(pool), bits: *bits, prefix: row.prefix }, group);
        }
        for row in map.disks.iter().filter(|row| row.state() == DiskState::Up) {
            let node = map.nodes.iter().find(|node| node.id == row.node);
            let node = node.filter(|node| matches!(node.state(), NodeState::Up | NodeState::Down));
            if let (Some(node), Some(disk)) = (node, disks(std::slice::from_ref(&row.id)).first()) {
                let Locality { region, zone, rack } = Locality::parse(&node.locality);
                let zone = format!("{region},zone={zone}");
                let rack = format!("{zone},rack={rack}");
                holders.domains.insert(*disk, [region, zone, rack].map(|name| format!("region={name}")));
            }
        }
        for row in &map.disks {
            holders.nodes.extend(disks(std::slice::from_ref(&row.id)).first().map(|disk| (*disk, row.node)));
        }
        holders
    }

    /// `None`: the map does not say.
    pub fn of_chunk(&self, id: ChunkId) -> Option<&Group> {
        let bits = *self.pg_bits.get(&id.pool.0)?;
        self.groups.get(&PgId::of_slot(id.pool, bits, id.slot))
    }

    pub fn node_of(&self, disk: DiskId) -> Option<u32> {
        self.nodes.get(&disk).copied()
    }

    /// All disks that hold copies, or did before a move that goes on.
    pub fn all(&self) -> BTreeSet<DiskId> {
        self.groups.values().flat_map(|group| group.members.iter().chain(&group.before)).copied().collect()
    }

    /// Placement groups with two members on one node, or in one domain although there are enough: one failure takes two
    /// copies. Of domains inside each other the widest is named.
    pub fn crowded(&self) -> Vec<(PgId, String)> {
        let mut crowded = Vec::new();
        let there_are: [usize; 3] =
            [0, 1, 2].map(|level| self.domains.values().map(|names| &names[level]).collect::<BTreeSet<_>>().len());
        for (id, group) in &self.groups {
            let mut seen = BTreeSet::new();
            let nodes = group.members.iter().filter_map(|disk| self.node_of(*disk));
            crowded.extend(nodes.filter(|node| !seen.insert(*node)).map(|node| (*id, format!("on node {node}"))));
            for level in (0..3).filter(|level| there_are[*level] >= group.members.len()) {
                let mut seen = BTreeSet::new();
                let names = group.members.iter().filter_map(|disk| Some(&self.domains.get(disk)?[level]));
                let before = crowded.len();
                crowded.extend(names.filter(|name| !seen.insert(*name)).map(|name| (*id, format!("in {name}"))));
                if crowded.len() > before {
                    break;
                }
            }
        }
        crowded
    }
}

fn disks(raw: &[bytes::Bytes]) -> Vec<DiskId> {
    raw.iter().filter_map(|raw| Some(DiskId(u128::from_be_bytes(raw.as_ref().try_into().ok()?)))).collect()
}

/// What is to be said of the copies of one chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Why no good copy is where it should be, though all its disks were given.
    pub lost: Option<String>,
    /// No good copy is on the disks that were given; others may have one.
    pub is_elsewhere: bool,
    /// Copies that are whole and have other bytes than those that were stored, where a good one is left or may be.
    /// Damaged ones are told with their disk.
    pub corrupt: Vec<DiskId>,
    pub degraded: Option<Degraded>,
    /// Copies on disks that should have none any more.
    pub stray: Vec<DiskId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degraded {
    pub good: usize,
    pub wanted: usize,
    /// Members that were not given: they may have more.
    pub not_given: usize,
    /// The members that were given and have no good copy.
    pub missing_on: Vec<DiskId>,
}

pub fn judge(chunk: &ChunkRef, held: &Held, group: Option<&Group>) -> Judged {
    let copies = held.chunks.get(&chunk.id).map(Vec::as_slice).unwrap_or_default();
    let everywhere = Group { members: copies.iter().map(|(disk, _)| *disk).collect(), before: Vec::new() };
    let group = group.unwrap_or(&everywhere);
    let holders: BTreeSet<DiskId> = group.members.iter().chain(&group.before).copied().collect();
    let not_given = holders.iter().filter(|disk| !held.disks.contains_key(disk)).count();
    let is_good = |stat: &ChunkStat| !stat.damaged && stat.len == chunk.len && stat.crc64 == chunk.crc64;
    let (mut judged, mut good) = (Judged::default(), BTreeSet::new());
    for (disk, stat) in copies {
        if !holders.contains(disk) {
            judged.stray.push(*disk);
        } else if is_good(stat) {
            good.insert(*disk);
        } else if !stat.damaged {
            judged.corrupt.push(*disk);
        }
    }
    if good.is_empty() {
        judged.is_elsewhere = not_given > 0 && !held.some_unreadable;
        if !judged.is_elsewhere {
            judged.lost = Some(why_lost(chunk, copies, &holders));
            judged.corrupt.clear();
            return judged;
        }
    }
    let is_missing = |disk: &&DiskId| held.disks.contains_key(disk) && !good.contains(disk);
    let missing_on: Vec<DiskId> = group.members.iter().filter(is_missing).copied().collect();
    // A group that moves has its copies on the members of before until the new ones have got theirs.
    let is_enough = !group.before.is_empty() && good.len() + not_given >= group.members.len();
    if !missing_on.is_empty() && !is_enough {
        let (good, wanted) = (good.len(), group.members.len());
        judged.degraded = Some(Degraded { good, wanted, not_given, missing_on });
    }
    judged
}

fn why_lost(chunk: &ChunkRef, copies: &[(DiskId, ChunkStat)], holders: &BTreeSet<DiskId>) -> String {
    match copies.iter().find(|(disk, _)| holders.contains(disk)) {
        None if copies.is_empty() => "is on none of the disks".into(),
        None => "is on none of its disks, only on one where nobody looks for it".into(),
        Some((_, stat)) if stat.damaged => "is damaged".into(),
        Some((_, stat)) => format!("has other bytes ({} instead of {})", stat.len, chunk.len),
    }
}

/// Whether the undamaged copies of a chunk that nothing names differ.
pub fn copies_differ(copies: &[(DiskId, ChunkStat)]) -> bool {
    let mut whole = copies.iter().filter(|(_, stat)| !stat.damaged).map(|(_, stat)| (stat.len, stat.crc64));
    let first = whole.next();
    whole.any(|other| Some(other) != first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::PgEpoch;
    use bytes::Bytes;
    use meta::map::command::{DiskRow, NodeRow, PgRow, PoolRow};

    fn chunk() -> ChunkRef {
        ChunkRef { id: ChunkId::from_u128(1 << 120), len: 100, crc64: 7 }
    }

    /// For each disk that was given, by number: `g`ood, `b`ad (other bytes), `d`amaged, or ` ` for nothing.
    fn held(given: &[(u128, char)]) -> Held {
        let mut held = Held::default();
        for (disk, copy) in given {
            held.disks.insert(DiskId(*disk), format!("disk{disk}"));
            let (len, damaged) = (if *copy == 'b' { 99 } else { 100 }, *copy == 'd');
            let stat = ChunkStat { id: chunk().id, len, crc64: 7, epoch: PgEpoch(1), damaged };
            if *copy != ' ' {
                held.chunks.entry(chunk().id).or_default().push((DiskId(*disk), stat));
            }
        }
        held
    }

    fn group(members: &[u128], before: &[u128]) -> Group {
        let ids = |numbers: &[u128]| numbers.iter().copied().map(DiskId).collect();
        Group { members: ids(members), before: ids(before) }
    }

    fn judged(given: &[(u128, char)], members: &[u128], before: &[u128]) -> Judged {
        judge(&chunk(), &held(given), Some(&group(members, before)))
    }

    fn degraded(good: usize, wanted: usize, not_given: usize, missing_on: &[u128]) -> Option<Degraded> {
        Some(Degraded { good, wanted, not_given, missing_on: missing_on.iter().copied().map(DiskId).collect() })
    }

    #[test]
    fn all_copies_in_their_places_are_worth_no_word() {
        assert_eq!(judged(&[(1, 'g'), (2, 'g'), (3, 'g')], &[1, 2, 3], &[]), Judged::default());
        assert_eq!(judged(&[(1, 'g'), (9, ' ')], &[1, 2, 3], &[]), Judged::default(), "others were not given");
    }

    #[test]
    fn a_missing_copy_degrades_and_the_last_one_is_a_loss() {
        let one_missing = judged(&[(1, 'g'), (2, ' '), (3, 'g')], &[1, 2, 3], &[]);
        assert_eq!(one_missing, Judged { degraded: degraded(2, 3, 0, &[2]), ..Judged::default() });
        let all_missing = judged(&[(1, ' '), (2, ' '), (3, ' ')], &[1, 2, 3], &[]);
        assert!(all_missing.lost.unwrap().contains("none of the disks") && all_missing.degraded.is_none());
        let unknown = judged(&[(1, ' '), (2, ' ')], &[1, 2, 3], &[]);
        assert!(unknown.is_elsewhere && unknown.lost.is_none());
        assert_eq!(unknown.degraded, degraded(0, 3, 1, &[1, 2]));
        let mut broken = held(&[(1, ' '), (2, ' ')]);
        broken.some_unreadable = true;
        assert!(judge(&chunk(), &broken, Some(&group(&[1, 2, 3], &[]))).lost.is_some());
    }

    #[test]
    fn bad_copies_are_corrupt_beside_good_ones_and_lost_alone() {
        let beside = judged(&[(1, 'g'), (2, 'b'), (3, 'd')], &[1, 2, 3], &[]);
        let degraded = degraded(1, 3, 0, &[2, 3]);
        assert_eq!(beside, Judged { corrupt: vec![DiskId(2)], degraded, ..Judged::default() });
        assert!(judged(&[(1, 'd')], &[1], &[]).lost.unwrap().contains("damaged"));
        assert!(judged(&[(1, 'b')], &[1], &[]).lost.unwrap().contains("99 instead of 100"));
        let alone = judged(&[(1, 'b')], &[1, 2], &[]);
        assert!(alone.is_elsewhere && alone.corrupt == [DiskId(1)]);
    }

    #[test]
    fn what_lies_where_it_belongs_no_more_is_stray_and_saves_nothing() {
        let left_over = judged(&[(1, 'g'), (2, 'g'), (4, 'g')], &[1, 2], &[]);
        assert_eq!(left_over, Judged { stray: vec![DiskId(4)], ..Judged::default() });
        let alone = judged(&[(1, ' '), (4, 'g')], &[1], &[]);
        assert!(alone.lost.unwrap().contains("where nobody looks"));
        assert_eq!(judge(&chunk(), &held(&[(1, 'g')]), None), Judged::default(), "no map, no place");
    }

    #[test]
    fn while_a_group_moves_its_members_of_before_count() {
        assert_eq!(judged(&[(1, 'g'), (2, 'g'), (4, ' ')], &[1, 4], &[1, 2]), Judged::default());
        let thin = judged(&[(1, 'g'), (2, ' '), (4, ' ')], &[1, 4], &[1, 2]);
        assert_eq!(thin.degraded, degraded(1, 2, 0, &[4]));
        assert!(judged(&[(1, ' '), (2, ' '), (4, ' ')], &[1, 4], &[1, 2]).lost.is_some());
    }

    #[test]
    fn copies_that_nothing_names_are_compared_with_each_other() {
        let differ = |given| copies_differ(&held(given).chunks[&chunk().id]);
        assert!(!differ(&[(1, 'g'), (2, 'g'), (3, 'd')]));
        assert!(differ(&[(1, 'g'), (2, 'b')]));
    }

    #[test]
    fn two_members_on_one_node_are_crowded() {
        let raw = |disk: u128| Bytes::copy_from_slice(&disk.to_be_bytes());
        let disk = |id, node| DiskRow { id: raw(id), node, ..DiskRow::default() };
        let row = |prefix, closed, members: &[u128], before: &[u128]| PgRow {
            pool: 1,
            prefix,
            epoch: 1,
            closed,
            members: members.iter().map(|disk| raw(*disk)).collect(),
            members_before: before.iter().map(|disk| raw(*disk)).collect(),
        };
        let map = ClusterMap {
            pools: vec![PoolRow { id: 1, pg_bits: 1, ..PoolRow::default() }],
            disks: vec![disk(1, 1), disk(2, 2), disk(3, 2)],
            pgs: vec![row(0, false, &[2, 3], &[]), row(1, true, &[1, 2], &[3])],
            ..ClusterMap::default()
        };
        let holders = Holders::of(&map);
        let crowded = |holders: &Holders| -> Vec<(u32, String)> {
            holders.crowded().into_iter().map(|(id, what)| (id.prefix, what)).collect()
        };
        assert_eq!(crowded(&holders), [(0, "on node 2".into())], "members of before do not count");
        // Disks 1 and 2 share a zone, and there is another one.
        let zone = |id: u32, zone: &str| NodeRow { id, locality: format!("zone={zone}"), ..NodeRow::default() };
        let apart = ClusterMap {
            nodes: vec![zone(1, "a"), zone(2, "a"), zone(3, "b")],
            disks: vec![disk(1, 1), disk(2, 2), disk(3, 3)],
            ..map.clone()
        };
        assert_eq!(crowded(&Holders::of(&apart)), [(1, "in region=,zone=a".into())]);
        let together = ClusterMap { nodes: vec![zone(1, "a"), zone(2, "a"), zone(3, "a")], ..apart };
        assert_eq!(crowded(&Holders::of(&together)), [], "there is nowhere else");
        assert_eq!(holders.of_chunk(chunk().id), Some(&group(&[2, 3], &[])));
        assert_eq!(holders.of_chunk(ChunkId::from_u128(2 << 120)), None);
        assert_eq!(holders.all().len(), 3);
    }
}
