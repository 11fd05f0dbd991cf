//! The cluster map as a client uses it: decoded once, looked up often.

use base::ids::{BucketId, ChunkId, DiskId, GroupId, MapVersion, NodeId, PgEpoch, PgId, PoolId, Session, Slot};
use bytes::Bytes;
use meta::map::command::{
    Acknowledgement, BucketConfigurationRow, BucketEntry, BucketState, ClusterMap, KeyRow, NodeRow, PgRow, ShardRow,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One version of the map.
#[derive(Debug, Default)]
pub struct MapView {
    pub map: ClusterMap,
    nodes: BTreeMap<NodeId, usize>,
    disks: BTreeMap<DiskId, DiskPlace>,
    pgs: BTreeMap<(PoolId, u32), usize>,
    pg_bits: BTreeMap<PoolId, u8>,
    buckets: BTreeMap<String, usize>,
    bucket_ids: BTreeMap<BucketId, usize>,
    configurations: BTreeMap<BucketId, Arc<[BucketConfigurationRow]>>,
    keys: BTreeMap<String, usize>,
    root: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct DiskPlace {
    node: NodeId,
    usable: bool,
    slow: bool,
}

/// Where a chunk goes or is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub epoch: PgEpoch,
    pub closed: bool,
    /// Disks with their nodes, in the group's order; then, while the group moves, the members before.
    pub members: Vec<Member>,
    pub members_before: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub disk: DiskId,
    pub node: NodeId,
    /// Neither its node nor itself is known to be out of service.
    pub usable: bool,
    /// It answers far more slowly than its peers.
    pub slow: bool,
}

impl MapView {
    pub fn new(map: ClusterMap) -> MapView {
        let nodes: BTreeMap<NodeId, usize> = map.nodes.iter().enumerate().map(|(i, row)| (NodeId(row.id), i)).collect();
        let serves = |node: u32| nodes.get(&NodeId(node)).is_some_and(|i| map.nodes[*i].state().serves());
        let disks = map
            .disks
            .iter()
            .filter_map(|row| {
                let usable = row.state().serves() && serves(row.node);
                Some((disk_id(&row.id)?, DiskPlace { node: NodeId(row.node), usable, slow: row.slow }))
            })
            .collect();
        let pgs = map.pgs.iter().enumerate().map(|(i, row)| ((pool_id(row.pool), row.prefix), i)).collect();
        let pg_bits = map.pools.iter().map(|row| (pool_id(row.id), row.pg_bits.min(24) as u8)).collect();
        let buckets = map.buckets.iter().enumerate().map(|(i, row)| (row.name.clone(), i)).collect();
        let bucket_ids = map.buckets.iter().enumerate().map(|(i, row)| (BucketId(row.id), i)).collect();
        let keys = map.keys.iter().enumerate().map(|(i, row)| (row.access_key.clone(), i)).collect();
        let root = map.keys.iter().position(|row| row.root);
        let configurations = configurations_by_bucket(&map.configurations);
        MapView { nodes, disks, pgs, pg_bits, buckets, bucket_ids, configurations, keys, root, map }
    }

    pub fn version(&self) -> MapVersion {
        MapVersion(self.map.version)
    }

    pub fn node(&self, id: NodeId) -> Option<&NodeRow> {
        self.nodes.get(&id).map(|i| &self.map.nodes[*i])
    }

    pub fn bucket(&self, name: &str) -> Option<&BucketEntry> {
        self.buckets.get(name).map(|i| &self.map.buckets[*i])
    }

    pub(crate) fn bucket_of(&self, id: BucketId) -> Option<&BucketEntry> {
        self.bucket_ids.get(&id).map(|i| &self.map.buckets[*i])
    }

    /// Buckets that exist for clients.
    pub fn active_bucket(&self, name: &str) -> Option<&BucketEntry> {
        self.bucket(name).filter(|entry| entry.state() == BucketState::Active)
    }

    /// The configurations of a bucket, by kind.
    pub fn configurations(&self, bucket: BucketId) -> Arc<[BucketConfigurationRow]> {
        self.configurations.get(&bucket).cloned().unwrap_or_default()
    }

    pub fn key(&self, access_key: &str) -> Option<&KeyRow> {
        self.keys.get(access_key).map(|i| &self.map.keys[*i])
    }

    /// The root user's key; `None` before the cluster is set up.
    pub fn root(&self) -> Option<&KeyRow> {
        self.root.map(|i| &self.map.keys[i])
    }

    pub fn acknowledgement(&self, bucket: BucketId) -> Acknowledgement {
        let row = self.bucket_ids.get(&bucket).map(|i| &self.map.buckets[*i]);
        row.map_or(Acknowledgement::All, |row| row.acknowledgement())
    }

    /// The placement group of a chunk.
    pub fn placement(&self, id: ChunkId) -> Option<Placement> {
        let bits = *self.pg_bits.get(&id.pool)?;
        let group = PgId::of_slot(id.pool, bits, id.slot);
        let row = &self.map.pgs[*self.pgs.get(&(group.pool, group.prefix))?];
        Some(self.placement_of(row))
    }

    pub(crate) fn placement_of(&self, row: &PgRow) -> Placement {
        let members = |ids: &[Bytes]| ids.iter().filter_map(|raw| self.member(disk_id(raw)?)).collect();
        Placement {
            epoch: PgEpoch(row.epoch),
            closed: row.closed,
            members: members(&row.members),
            members_before: members(&row.members_before),
        }
    }

    fn member(&self, disk: DiskId) -> Option<Member> {
        let place = self.disks.get(&disk)?;
        Some(Member { disk, node: place.node, usable: place.usable, slow: place.slow })
    }

    /// Whether neither the disk nor its node is known to be out of service.
    pub fn is_usable(&self, disk: DiskId) -> bool {
        self.member(disk).is_some_and(|member| member.usable)
    }

    /// Draws a slot whose group is open and has all its members in service; with `draw` uniform in 24 bits. Those
    /// without slow disks come first. When there is none, one whose group is open and has as many members in service as
    /// `rule` waits for at least.
    pub fn draw(
        &self,
        pool: PoolId,
        rule: Acknowledgement,
        mut draw: impl FnMut() -> u32,
    ) -> Option<(Slot, Placement)> {
        let copies = self.map.pools.iter().find(|row| pool_id(row.id) == pool).map_or(1, |row| row.copies as usize);
        let fitness = |placement: &Placement| Fitness::of(placement, rule, copies);
        const DRAWS_MAX: usize = 16;
        let mut best = Best::default();
        for _ in 0..DRAWS_MAX {
            let slot = Slot::new(draw());
            let probe = ChunkId { pool, slot, session: Session::default(), counter: 0 };
            let Some(placement) = self.placement(probe) else { continue };
            best.offer(fitness(&placement), slot, placement);
            if best.is_whole() {
                break;
            }
        }
        // Hardly any group is fit: all are looked at, from a random one on.
        best.found.or_else(|| self.draw_from_all(pool, fitness, draw()))
    }

    fn draw_from_all(
        &self,
        pool: PoolId,
        fitness: impl Fn(&Placement) -> Fitness,
        random: u32,
    ) -> Option<(Slot, Placement)> {
        let bits = *self.pg_bits.get(&pool)?;
        let slots = |prefix| PgId { pool, bits, prefix }.slots();
        let mut best = Best::default();
        let first = PgId::of_slot(pool, bits, Slot::new(random)).prefix;
        let from_first = self.pgs.range((pool, first)..=(pool, u32::MAX));
        for ((_, prefix), row) in from_first.chain(self.pgs.range((pool, 0)..(pool, first))) {
            let placement = self.placement_of(&self.map.pgs[*row]);
            // Within the group any slot will do: the low bits are as random as the high ones.
            let slot = Slot::new((slots(*prefix).start() & !low_bits(bits)) | (random & low_bits(bits)));
            best.offer(fitness(&placement), slot, placement);
            if best.is_whole() {
                break;
            }
        }
        best.found
    }

    /// The shard whose range holds `(bucket, key)`.
    pub fn shard(&self, bucket: BucketId, key: &[u8]) -> Option<&ShardRow> {
        let mut position = bucket.0.to_be_bytes().to_vec();
        position.extend_from_slice(key);
        self.map.shards.iter().find(|row| {
            row.range_start.as_ref() <= position.as_slice()
                && (row.range_end.is_empty() || position.as_slice() < row.range_end.as_ref())
        })
    }

    pub fn shard_of_group(&self, group: GroupId) -> Option<&ShardRow> {
        self.map.shards.iter().find(|row| row.group == group.0)
    }
}

/// The fittest group so far.
#[derive(Default)]
struct Best {
    fitness: Fitness,
    found: Option<(Slot, Placement)>,
}

impl Best {
    fn offer(&mut self, fitness: Fitness, slot: Slot, placement: Placement) {
        if fitness > self.fitness {
            *self = Best { fitness, found: Some((slot, placement)) };
        }
    }

    fn is_whole(&self) -> bool {
        self.fitness == Fitness::Whole
    }
}

/// How well a placement group can take new chunks.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fitness {
    /// Closed, or too few members in service for the acknowledgement.
    #[default]
    Unfit,
    Enough,
    /// All members are in service, and the disk of one is slow.
    Slow,
    Whole,
}

impl Fitness {
    /// `copies`: what the pool's policy asks for.
    fn of(placement: &Placement, rule: Acknowledgement, copies: usize) -> Fitness {
        let usable = placement.members.iter().filter(|member| member.usable).count();
        let needed = match rule {
            Acknowledgement::AllStrict => placement.members.len().max(copies),
            Acknowledgement::All | Acknowledgement::Majority => placement.majority(),
            Acknowledgement::One => 1,
        };
        match placement.members.len() {
            _ if placement.closed || usable < needed => Fitness::Unfit,
            0 => Fitness::Unfit,
            all if usable < all => Fitness::Enough,
            _ if placement.members.iter().any(|member| member.slow) => Fitness::Slow,
            _ => Fitness::Whole,
        }
    }
}

impl Placement {
    /// Copies without which nothing is acknowledged.
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }
}

/// `rows` are sorted by bucket.
fn configurations_by_bucket(rows: &[BucketConfigurationRow]) -> BTreeMap<BucketId, Arc<[BucketConfigurationRow]>> {
    rows.chunk_by(|a, b| a.bucket == b.bucket).map(|rows| (BucketId(rows[0].bucket), rows.into())).collect()
}

/// The bits of a slot below the prefix of its group.
fn low_bits(pg_bits: u8) -> u32 {
    (1u32 << (24 - u32::from(pg_bits))) - 1
}

/// A disk id as the map writes it.
pub fn disk_id(raw: &[u8]) -> Option<DiskId> {
    Some(DiskId(u128::from_be_bytes(raw.try_into().ok()?)))
}

fn pool_id(raw: u32) -> PoolId {
    PoolId(raw.min(255) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::map::command::{DiskRow, NodeState, PoolRow};

    const POOL: PoolId = PoolId(1);

    fn disk(id: u32) -> Bytes {
        Bytes::copy_from_slice(&u128::from(id).to_be_bytes())
    }

    /// A disk on each node, and a group of each list of members; closed ones start with `!`.
    fn map(states: &[NodeState], groups: &[&str]) -> MapView {
        let ids = 1..=states.len() as u32;
        let node = |(id, state): (u32, &NodeState)| NodeRow { id, state: *state as i32, ..NodeRow::default() };
        let pg = |(prefix, text): (usize, &&str)| PgRow {
            pool: 1,
            prefix: prefix as u32,
            epoch: 1,
            closed: text.starts_with('!'),
            members: text.chars().filter_map(|letter| letter.to_digit(10)).map(disk).collect(),
            members_before: vec![],
        };
        MapView::new(ClusterMap {
            nodes: ids.clone().zip(states).map(node).collect(),
            disks: ids.map(|id| DiskRow { id: disk(id), node: id, ..DiskRow::default() }).collect(),
            pools: vec![PoolRow { id: 1, pg_bits: 2, copies: 3, copies_effective: 3, ..PoolRow::default() }],
            pgs: groups.iter().enumerate().map(pg).collect(),
            ..ClusterMap::default()
        })
    }

    /// The groups that are drawn, by prefix.
    fn drawn(map: &MapView) -> Vec<u32> {
        drawn_under(map, Acknowledgement::All)
    }

    fn drawn_under(map: &MapView, rule: Acknowledgement) -> Vec<u32> {
        let mut seed = 7u64;
        let mut random = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as u32
        };
        let mut drawn: Vec<u32> = Vec::new();
        for _ in 0..200 {
            let Some((slot, placement)) = map.draw(POOL, rule, &mut random) else { continue };
            let id = ChunkId { pool: POOL, slot, session: Session::default(), counter: 0 };
            assert_eq!(map.placement(id), Some(placement), "the slot is in the group that was drawn");
            drawn.push(slot.get() >> 22);
        }
        drawn.sort();
        drawn.dedup();
        drawn
    }

    use NodeState::{Down, Draining, Joining, Up};

    #[test]
    fn whole_open_groups_are_drawn_before_others() {
        assert_eq!(drawn(&map(&[Up; 4], &["123", "234", "!134", "124"])), [0, 1, 3]);
        assert_eq!(drawn(&map(&[Up, Up, Up, Down], &["123", "234", "134", "124"])), [0]);
        // Whoever drains still holds what it holds.
        assert_eq!(drawn(&map(&[Up, Up, Up, Draining], &["123", "234", "!134", "!124"])), [0, 1]);
    }

    #[test]
    fn a_majority_in_service_will_do_when_no_group_is_whole() {
        assert_eq!(drawn(&map(&[Up, Up, Down], &["123", "123", "123", "!123"])), [0, 1, 2]);
        assert_eq!(drawn(&map(&[Up, Down, Joining], &["123", "12", "1", "123"])), [2]);
        assert_eq!(drawn(&map(&[Up, Down, Down], &["123", "12", "!1", "23"])), []);
    }

    #[test]
    fn slow_disks_are_given_nothing_new_while_others_can_take_it() {
        let slow = |groups: &[&str]| {
            let mut map = map(&[Up; 4], groups).map;
            map.disks[3].slow = true;
            MapView::new(map)
        };
        assert_eq!(drawn(&slow(&["123", "234", "134", "124"])), [0]);
        assert_eq!(drawn(&slow(&["!123", "234", "134", "124"])), [1, 2, 3], "better slow than less");
    }

    #[test]
    fn how_many_must_be_in_service_follows_the_rule() {
        let groups = ["123", "12", "!123", "23"];
        let one_up = map(&[Up, Down, Down], &groups);
        assert_eq!(drawn_under(&one_up, Acknowledgement::One), [0, 1]);
        assert_eq!(drawn_under(&one_up, Acknowledgement::Majority), []);
        let two_up = map(&[Up, Up, Down], &groups);
        assert_eq!(
            drawn_under(&two_up, Acknowledgement::AllStrict),
            [],
            "a group of two is not the three of the policy"
        );
        assert_eq!(drawn_under(&map(&[Up, Up, Up], &groups), Acknowledgement::AllStrict), [0]);
    }

    #[test]
    fn one_fit_group_among_many_is_found() {
        let mut map = map(&[Up, Down], &["!1"]).map;
        map.pools[0].pg_bits = 12;
        let row = map.pgs[0].clone();
        map.pgs = (0..1 << 12).map(|prefix| PgRow { prefix, closed: prefix != 77, ..row.clone() }).collect();
        let map = MapView::new(map);
        for random in [0, 1 << 23, (1 << 24) - 1] {
            let (slot, placement) = map.draw(POOL, Acknowledgement::All, || random).unwrap();
            assert!(!placement.closed && slot.get() >> 12 == 77);
        }
    }
}
