//! Pools, which users of S3 know as storage classes: made by an operator, named by writes, changed by lifecycle.

use base::ids::{BucketId, DiskId, NodeId, PgId, PoolId};
use bytes::Bytes;
use meta::chunks;
use meta::map::command::{
    Acknowledgement, DiskRow, DiskState, MapCommand, MapOutcome, NodeState, PgRow, PgRows, PoolRow,
};
use meta::object::command::{Attributes, Body, ObjectVersion, ShardCommand};
use meta::object::expire::{Move, Pools};
use meta::object::transition::MoveBody;
use protocol::membership::VOTERS;
use protocol::placement::{self, Candidate, Held, Locality};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::buckets::BucketInfo;
use crate::call::Client;
use crate::error::Error;
use crate::map::{MapView, disk_id};
use crate::read::Source;
use crate::terms::Terms;

/// The storage class of the pool that a cluster is founded with, and of what names none.
pub const STANDARD: &str = "STANDARD";
/// A new pool has 2^7 placement groups, as the first one.
const PG_BITS: u8 = 7;
/// Copies in effect never exceed the voters of the metadata; a pool that asked for more would be short of them for ever.
const COPIES_MAX: u32 = VOTERS as u32;
/// Part rows fetched at once.
const PART_PAGE: u32 = 64;

/// Names of pools.
#[derive(Clone, Debug)]
pub struct StorageClasses {
    own: u32,
    by_pool: BTreeMap<u32, String>,
}

impl StorageClasses {
    /// Of what says that it lies in this pool (0: the bucket's own).
    pub fn name(&self, pool: u32) -> &str {
        let pool = if pool == 0 { self.own } else { pool };
        self.by_pool.get(&pool).map_or(STANDARD, String::as_str)
    }

    pub fn of(&self, attributes: Option<&Attributes>) -> &str {
        self.name(attributes.map_or(0, |attributes| attributes.pool))
    }
}

impl BucketInfo {
    /// The same bucket; what is stored through it goes to this pool. 0: to its own.
    #[must_use]
    pub fn in_pool(mut self, pool: u32) -> BucketInfo {
        if pool != 0 {
            self.pool = pool;
        }
        self
    }
}

impl MapView {
    /// The pool that clients know by this name, if it can take data.
    fn pool_of_class(&self, class: &str) -> Option<&PoolRow> {
        self.map.pools.iter().find(|row| row.class == class && self.has_groups(row))
    }

    fn has_groups(&self, row: &PoolRow) -> bool {
        self.map.pgs.binary_search_by_key(&(row.id, 0), |group| (group.pool, group.prefix)).is_ok()
    }
}

impl Client {
    pub fn pools(&self) -> Vec<PoolRow> {
        self.map().map.pools.clone()
    }

    /// The pool of a storage class. One that is not in the cached map may be anybody's invention; it is looked for in a
    /// fresh one, if that was not just done.
    pub async fn pool_of_class(&self, class: &str) -> Result<Option<u32>, Error> {
        if let Some(row) = self.map().pool_of_class(class) {
            return Ok(Some(row.id));
        }
        Ok(self.refresh_map_sometimes().await?.pool_of_class(class).map(|row| row.id))
    }

    /// The names of all pools, for versions in `bucket`.
    pub fn storage_classes(&self, bucket: &BucketInfo) -> StorageClasses {
        let map = self.map();
        let named = map.map.pools.iter().filter(|row| !row.class.is_empty());
        StorageClasses { own: bucket.pool, by_pool: named.map(|row| (row.id, row.class.clone())).collect() }
    }

    /// What a search for due transitions must know; `None`: the bucket is not there any more.
    pub fn pools_for(&self, bucket: BucketId) -> Option<Pools> {
        let map = self.map();
        let own = map.bucket_of(bucket)?.pool;
        let ready = map.map.pools.iter().filter(|row| !row.class.is_empty() && map.has_groups(row));
        let by_class = ready.map(|row| (row.class.clone(), row.id)).collect();
        Some(Pools { by_class, own, ..Pools::default() })
    }

    /// Makes a pool with `copies` copies of everything, on all disks. A try that got half way is finished.
    pub async fn create_pool(&self, name: &str, class: &str, copies: u32) -> Result<PoolRow, Error> {
        if copies > COPIES_MAX {
            return Err(Error::Invalid(format!(
                "a pool has at most {COPIES_MAX} copies: as many as the metadata, without which they are of no use"
            )));
        }
        let map = self.refresh_map().await?;
        let row = match map.map.pools.iter().find(|row| row.class == class) {
            // Its row stays: copies may have been raised meanwhile.
            Some(row) if row.name == name && row.copies == copies && !map.has_groups(row) => row.clone(),
            Some(row) => {
                return Err(Error::Invalid(format!("pool {} ({}) has the storage class {class}", row.id, row.name)));
            }
            // One that was founded before there were classes is known by no name.
            None if class == STANDARD => {
                return Err(Error::Invalid(format!("the pool that the cluster was founded with is {STANDARD}")));
            }
            None => {
                let row = new_pool(&map, name, class, copies)?;
                self.change_map_checked(MapCommand::SetPool(row.clone())).await?;
                row
            }
        };
        let rows = new_groups(&map, &row);
        let reply = self.change_map(MapCommand::SetPgs(PgRows { rows })).await?;
        match reply.outcome() {
            // Stale: somebody else finished it in between.
            MapOutcome::Done | MapOutcome::Stale => Ok(row),
            _ => Err(Error::Invalid(reply.detail)),
        }
    }

    /// Moves the bytes of a version to another pool, part by part. One that is replaced or moved meanwhile is
    /// `PreconditionFailed`: what was stored for it is deleted again.
    pub async fn move_version(&self, bucket: &BucketInfo, found: &Move) -> Result<(), Error> {
        let (version, pool) = (&found.version, found.pool);
        let body = version.body.clone().unwrap_or_default();
        let moved = MoveBody {
            bucket: bucket.id,
            key: version.key.clone(),
            order: found.order,
            modified_ms: version.modified_ms,
            pool_before: version.attributes.as_ref().map_or(0, |attributes| attributes.pool),
            pool,
            ..MoveBody::default()
        };
        if !body.chunks.is_empty() {
            return self.move_chunks(bucket, version, &body, moved).await;
        }
        if !body.upload.is_empty() {
            self.move_parts(bucket, version, &body, &moved).await?;
        }
        self.change_key(&self.for_moves(bucket), &version.key, ShardCommand::MoveBody(moved)).await.map(|_| ())
    }

    /// Under a bucket's own `one` or `majority`, bytes that have long had all their copies would have fewer for a moment,
    /// while the old ones are deleted already.
    fn for_moves(&self, bucket: &BucketInfo) -> BucketInfo {
        let rule = match self.acknowledgement(&self.map(), bucket) {
            Acknowledgement::AllStrict => Acknowledgement::AllStrict,
            Acknowledgement::All | Acknowledgement::Majority | Acknowledgement::One => Acknowledgement::All,
        };
        let terms = Terms { acknowledgement: Some(rule), ..bucket.terms.clone() };
        bucket.clone().under(terms)
    }

    async fn move_parts(
        &self,
        bucket: &BucketInfo,
        version: &ObjectVersion,
        body: &Body,
        moved: &MoveBody,
    ) -> Result<(), Error> {
        let mut after = 0;
        loop {
            let page = self.list_parts(bucket, &version.key, &body.upload, after, PART_PAGE).await?;
            for part in &page.parts {
                after = part.number;
                let part_body = part.body.clone().unwrap_or_default();
                if needs_move(&part_body, moved.pool)? {
                    let moved = MoveBody { part: part.number, ..moved.clone() };
                    self.move_chunks(bucket, version, &part_body, moved).await?;
                }
            }
            if !page.truncated {
                return Ok(());
            }
        }
    }

    async fn move_chunks(
        &self,
        bucket: &BucketInfo,
        version: &ObjectVersion,
        body: &Body,
        moved: MoveBody,
    ) -> Result<(), Error> {
        let source = Arc::new(Source { bucket: bucket.clone(), object: version.clone() });
        let to = self.for_moves(bucket).in_pool(moved.pool);
        let mut writer = self.write(&to, moved.key.clone(), Some(body.size));
        writer.copy_body(&source, moved.part, body, &(0..body.size), 0).await?;
        writer.finish_move(MoveBody { chunks_before: body.chunks.clone(), ..moved }).await
    }
}

/// Whether a part has chunks that are not in the pool yet.
fn needs_move(body: &Body, pool: u32) -> Result<bool, Error> {
    let chunks = chunks::unpack(&body.chunks).map_err(|_| Error::Damaged("a list of chunks is cut short".into()))?;
    Ok(chunks.iter().any(|chunk| u32::from(chunk.id.pool.0) != pool))
}

fn new_pool(map: &MapView, name: &str, class: &str, copies: u32) -> Result<PoolRow, Error> {
    let id = map.map.pools.iter().map(|row| row.id + 1).max().unwrap_or(1);
    if id > u32::from(u8::MAX) {
        return Err(Error::Invalid("a cluster has at most 255 pools".into()));
    }
    // Metadata has as many copies as the pools so far: more are raised to in good order, metadata first.
    let reached = map.map.pools.iter().map(|row| row.copies_effective).max().unwrap_or(1);
    let nodes: BTreeSet<NodeId> = candidates(map).iter().map(|disk| disk.node).collect();
    let copies_effective = copies.min(reached).min(nodes.len() as u32);
    if copies_effective == 0 {
        return Err(Error::Unavailable("no disk can take data now".into()));
    }
    let (name, class, pg_bits) = (name.to_owned(), class.to_owned(), u32::from(PG_BITS));
    Ok(PoolRow { id, name, copies, copies_effective, pg_bits, class })
}

fn new_groups(map: &MapView, pool: &PoolRow) -> Vec<PgRow> {
    let (id, bits) = (PoolId(pool.id as u8), pool.pg_bits as u8);
    let groups: Vec<Held> = (0..1 << bits).map(|prefix| (PgId { pool: id, bits, prefix }, Vec::new())).collect();
    let chosen = placement::plan(&groups, pool.copies_effective as usize, &candidates(map));
    let row = |((pg, _), members): (&Held, Vec<DiskId>)| PgRow {
        pool: pool.id,
        prefix: pg.prefix,
        epoch: 1,
        members: members.iter().map(|id| Bytes::copy_from_slice(&id.0.to_be_bytes())).collect(),
        ..PgRow::default()
    };
    groups.iter().zip(chosen).map(row).collect()
}

/// The disks that may be given data now.
fn candidates(map: &MapView) -> Vec<Candidate> {
    let candidate = |disk: &DiskRow| {
        let node = map.node(NodeId(disk.node)).filter(|node| node.state() == NodeState::Up)?;
        Some(Candidate {
            disk: disk_id(&disk.id)?,
            node: NodeId(disk.node),
            capacity_bytes: disk.capacity_bytes,
            locality: Locality::parse(&node.locality),
            may_gain: true,
        })
    };
    map.map.disks.iter().filter(|disk| disk.state() == DiskState::Up).filter_map(candidate).collect()
}
