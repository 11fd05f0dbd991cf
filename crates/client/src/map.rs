//! The cluster map as a client uses it: decoded once, looked up often.

use base::ids::{BucketId, ChunkId, DiskId, GroupId, MapVersion, NodeId, PgEpoch, PgId, PoolId, Session, Slot};
use bytes::Bytes;
use meta::map::command::{
    Acknowledgement, BucketEntry, BucketState, ClusterMap, DiskState, KeyRow, NodeState, PgRow, ShardRow,
};
use std::collections::BTreeMap;

/// One version of the map.
#[derive(Debug, Default)]
pub struct MapView {
    pub map: ClusterMap,
    disks: BTreeMap<DiskId, DiskPlace>,
    pgs: BTreeMap<(PoolId, u32), usize>,
    pg_bits: BTreeMap<PoolId, u8>,
    buckets: BTreeMap<String, usize>,
    keys: BTreeMap<String, usize>,
}

#[derive(Clone, Copy, Debug)]
struct DiskPlace {
    node: NodeId,
    usable: bool,
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
}

impl MapView {
    pub fn new(map: ClusterMap) -> MapView {
        let up = |node: u32| map.nodes.iter().any(|row| row.id == node && row.state() == NodeState::Up);
        let disks = map
            .disks
            .iter()
            .filter_map(|row| {
                let place = DiskPlace { node: NodeId(row.node), usable: row.state() == DiskState::Up && up(row.node) };
                Some((disk_id(&row.id)?, place))
            })
            .collect();
        let pgs = map.pgs.iter().enumerate().map(|(i, row)| ((pool_id(row.pool), row.prefix), i)).collect();
        let pg_bits = map.pools.iter().map(|row| (pool_id(row.id), row.pg_bits.min(24) as u8)).collect();
        let buckets = map.buckets.iter().enumerate().map(|(i, row)| (row.name.clone(), i)).collect();
        let keys = map.keys.iter().enumerate().map(|(i, row)| (row.access_key.clone(), i)).collect();
        MapView { disks, pgs, pg_bits, buckets, keys, map }
    }

    pub fn version(&self) -> MapVersion {
        MapVersion(self.map.version)
    }

    pub fn bucket(&self, name: &str) -> Option<&BucketEntry> {
        self.buckets.get(name).map(|i| &self.map.buckets[*i])
    }

    /// Buckets that exist for clients.
    pub fn active_bucket(&self, name: &str) -> Option<&BucketEntry> {
        self.bucket(name).filter(|entry| entry.state() == BucketState::Active)
    }

    pub fn key(&self, access_key: &str) -> Option<&KeyRow> {
        self.keys.get(access_key).map(|i| &self.map.keys[*i])
    }

    pub fn acknowledgement(&self, bucket: BucketId) -> Acknowledgement {
        self.map.buckets.iter().find(|row| row.id == bucket.0).map_or(Acknowledgement::All, |row| row.acknowledgement())
    }

    /// The placement group of a chunk.
    pub fn placement(&self, id: ChunkId) -> Option<Placement> {
        let bits = *self.pg_bits.get(&id.pool)?;
        let group = PgId::of_slot(id.pool, bits, id.slot);
        let row = &self.map.pgs[*self.pgs.get(&(group.pool, group.prefix))?];
        Some(self.placement_of(row))
    }

    fn placement_of(&self, row: &PgRow) -> Placement {
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
        Some(Member { disk, node: place.node, usable: place.usable })
    }

    /// Draws a slot whose group is open and has all its members in service; with `draw` uniform in 24 bits. When a
    /// few draws find none, the last open one that has any member in service.
    pub fn draw(&self, pool: PoolId, mut draw: impl FnMut() -> u32) -> Option<(Slot, Placement)> {
        const DRAWS_MAX: usize = 32;
        let mut fallback = None;
        for _ in 0..DRAWS_MAX {
            let slot = Slot::new(draw());
            let probe = ChunkId { pool, slot, session: Session::default(), counter: 0 };
            let Some(placement) = self.placement(probe) else { continue };
            if placement.closed || placement.members.is_empty() {
                continue;
            }
            if placement.members.iter().all(|member| member.usable) {
                return Some((slot, placement));
            }
            if placement.members.iter().any(|member| member.usable) {
                fallback = Some((slot, placement));
            }
        }
        fallback
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

/// A disk id as the map writes it.
pub fn disk_id(raw: &[u8]) -> Option<DiskId> {
    Some(DiskId(u128::from_be_bytes(raw.try_into().ok()?)))
}

fn pool_id(raw: u32) -> PoolId {
    PoolId(raw.min(255) as u8)
}
