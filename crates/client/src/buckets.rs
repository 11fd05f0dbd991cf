//! Buckets: named in group 0, their settings replicated into every shard that holds a part of them.

use base::ids::{BucketId, GroupId};
use bytes::Bytes;
use meta::map::command::{
    Acknowledgement, BucketConfigurationRow, BucketEntry, BucketId as BucketRefInMap, BucketState, ConfigurationKind,
    MapCommand, MapOutcome, SetBucketConfiguration,
};
use meta::object::command::{
    BucketRef, BucketRow, Done, ShardCommand, ShardFound, ShardOutcome, ShardRead, Versioning,
};
use meta::object::expire::Expire;
use meta::object::usage::{CountUsage, Quota, Usage};
use prost::Message;

use std::sync::Arc;

use crate::call::Client;
use crate::error::Error;
use crate::map::MapView;
use crate::terms::Terms;

/// The pool that buckets live in until a user may choose.
const DEFAULT_POOL: u32 = 1;
/// Changes of settings that a deletion is interrupted by before it gives up.
const THAWS_MAX: u32 = 8;

/// What the shards must obey themselves, and so have copies of.
const SPREAD: [ConfigurationKind; 4] =
    [ConfigurationKind::ObjectLock, ConfigurationKind::Quota, ConfigurationKind::Lifecycle, ConfigurationKind::Fence];

/// A bucket as gateways see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketInfo {
    pub id: u64,
    pub name: String,
    /// Access key of the owner.
    pub owner: String,
    pub created_ms: u64,
    /// As the creator named it; empty: that of the cluster.
    pub region: String,
    pub versioning: Versioning,
    /// What a write that does not say anything else waits for.
    pub acknowledgement: Acknowledgement,
    /// Where what is stored through this value goes.
    pub pool: u32,
    /// What is done through this value is done under these terms.
    pub terms: Terms,
    configurations: Arc<[BucketConfigurationRow]>,
}

/// A setting of a bucket, in the encoding of whoever owns its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    pub value: Bytes,
    /// The bucket's settings version at which it was set: rises with each change.
    pub version: u64,
}

impl Configuration {
    /// The bytes of a configuration that is a message.
    pub fn encode(value: &impl Message) -> Bytes {
        Bytes::from(value.encode_to_vec())
    }

    /// `None`: it is of a newer version, or damaged.
    pub fn decode<M: Message + Default>(&self) -> Option<M> {
        M::decode(self.value.clone()).ok()
    }
}

impl BucketInfo {
    /// The bucket's configuration of this kind, as of the map that the bucket was looked up in.
    pub fn configuration(&self, kind: ConfigurationKind) -> Option<Configuration> {
        let row = self.configurations.iter().find(|row| row.kind == kind as i32)?;
        Some(Configuration { value: row.value.clone(), version: row.version })
    }
}

impl Client {
    /// Creates a bucket owned by `owner`. `BucketExists` names the present owner.
    pub async fn create_bucket(&self, name: &str, owner: &str) -> Result<BucketInfo, Error> {
        self.create_bucket_in(name, owner, "").await
    }

    /// As `create_bucket`; `region`: the cluster's, where the creator named it, else empty.
    pub async fn create_bucket_in(&self, name: &str, owner: &str, region: &str) -> Result<BucketInfo, Error> {
        let entry = BucketEntry {
            name: name.to_string(),
            owner: owner.to_string(),
            created_ms: self.wall_ms(),
            pool: DEFAULT_POOL,
            state: BucketState::Creating as i32,
            region: region.to_string(),
            ..BucketEntry::default()
        };
        let reply = self.change_map(MapCommand::CreateBucket(entry)).await?;
        match reply.outcome() {
            MapOutcome::Done => {}
            MapOutcome::BucketExists => {
                let found = reply.bucket.unwrap_or_default();
                if found.state() != BucketState::Creating || found.owner != owner {
                    return Err(Error::BucketExists { owner: found.owner });
                }
                // An earlier try got only half way: go on with it.
            }
            _ => return Err(Error::Invalid(reply.detail)),
        }
        let map = self.refresh_map().await?;
        let entry = map.bucket(name).cloned().ok_or(Error::NoSuchBucket)?;
        self.activate(entry).await
    }

    /// Brings the settings to every shard, then makes the bucket visible.
    async fn activate(&self, mut entry: BucketEntry) -> Result<BucketInfo, Error> {
        self.spread_settings(&entry).await?;
        entry.state = BucketState::Active as i32;
        let reply = self.change_map(MapCommand::SetBucket(entry.clone())).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(info(&self.map(), &entry)),
            // Somebody else finished the creation in between.
            MapOutcome::Stale => self.bucket(&entry.name).await,
            _ => Err(Error::NoSuchBucket),
        }
    }

    async fn spread_settings(&self, entry: &BucketEntry) -> Result<(), Error> {
        let configurations = self.map().configurations(BucketId(entry.id));
        let spread = configurations.iter().filter(|row| SPREAD.iter().any(|kind| *kind as i32 == row.kind));
        let row = BucketRow {
            bucket: entry.id,
            versioning: entry.versioning,
            frozen: false,
            settings_version: entry.settings_version,
            configurations: spread.cloned().collect(),
            ..BucketRow::default()
        };
        for (group, epoch) in self.groups_of(BucketId(entry.id)) {
            self.change_shard(group, epoch, ShardCommand::SetBucket(row.clone()), Acknowledgement::All).await?;
        }
        Ok(())
    }

    async fn spread_newest(&self, bucket: &BucketInfo) -> Result<(), Error> {
        let entry = self.map().active_bucket(&bucket.name).cloned().ok_or(Error::NoSuchBucket)?;
        self.spread_settings(&entry).await
    }

    /// Every shard that may hold rows of the bucket.
    pub(crate) fn groups_of(&self, bucket: BucketId) -> Vec<(GroupId, u64)> {
        let first = bucket.0.to_be_bytes();
        let after = (bucket.0 + 1).to_be_bytes();
        let map = self.map();
        let overlaps =
            |start: &[u8], end: &[u8]| start < after.as_slice() && (end.is_empty() || end > first.as_slice());
        let rows = map.map.shards.iter().filter(|row| overlaps(&row.range_start, &row.range_end));
        rows.map(|row| (GroupId(row.group), row.range_epoch)).collect()
    }

    /// Deletes an empty bucket. The shards decide, before the map forgets it: what is frozen takes no writes, and what is
    /// dropped never does again.
    pub async fn delete_bucket(&self, name: &str) -> Result<(), Error> {
        let map = self.refresh_map().await?;
        let entry = map.bucket(name).cloned().ok_or(Error::NoSuchBucket)?;
        for (group, epoch) in self.groups_of(BucketId(entry.id)) {
            self.drop_in_shard(group, epoch, BucketRef { bucket: entry.id }).await?;
        }
        let reply = self.change_map(MapCommand::RemoveBucket(BucketRefInMap { id: entry.id })).await?;
        if !matches!(reply.outcome(), MapOutcome::Done | MapOutcome::NotFound) {
            return Err(Error::Invalid(reply.detail));
        }
        Ok(())
    }

    /// A setting that is spread meanwhile thaws the bucket, which may be written to then: it is begun anew.
    async fn drop_in_shard(&self, group: GroupId, epoch: u64, bucket: BucketRef) -> Result<(), Error> {
        for _ in 0..THAWS_MAX {
            let freeze = ShardCommand::FreezeBucket(bucket.clone());
            match self.change_shard(group, epoch, freeze, Acknowledgement::All).await {
                // An earlier deletion got this far.
                Ok(_) | Err(Error::NoSuchBucket) => {}
                Err(error) => return Err(error),
            }
            loop {
                // Uploads in progress go a bounded number at a time.
                let drop = ShardCommand::DropBucket(bucket.clone());
                match self.change_shard(group, epoch, drop, Acknowledgement::All).await {
                    Ok(ShardOutcome::Done(Done { more: true })) => {}
                    Ok(_) => return Ok(()),
                    Err(Error::Invalid(_)) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Err(Error::Unavailable("the bucket's settings are being changed".into()))
    }

    /// Finishes creations that a crash left half way, so that no name is taken by a bucket that nobody sees.
    pub async fn finish_buckets(&self) -> Result<(), Error> {
        let map = self.refresh_map().await?;
        for entry in map.map.buckets.iter().filter(|entry| entry.state() == BucketState::Creating) {
            self.activate(entry.clone()).await?;
        }
        Ok(())
    }

    /// The bucket as the cached map names it: costs nothing, and may miss what was made elsewhere just now.
    pub fn known_bucket(&self, name: &str) -> Option<BucketInfo> {
        let map = self.map();
        map.active_bucket(name).map(|entry| info(&map, entry))
    }

    /// As `known_bucket`, by id.
    pub fn known_bucket_of(&self, id: BucketId) -> Option<BucketInfo> {
        let map = self.map();
        map.bucket_of(id).filter(|entry| entry.state() == BucketState::Active).map(|entry| info(&map, entry))
    }

    /// The bucket as the map names it; a name that is not in the cached map is looked for in a fresh one.
    pub async fn bucket(&self, name: &str) -> Result<BucketInfo, Error> {
        let map = self.map();
        if let Some(entry) = map.active_bucket(name) {
            return Ok(info(&map, entry));
        }
        let map = self.refresh_map().await?;
        map.active_bucket(name).map(|entry| info(&map, entry)).ok_or(Error::NoSuchBucket)
    }

    /// Sorted by name.
    pub async fn list_buckets(&self) -> Result<Vec<BucketInfo>, Error> {
        let map = self.refresh_map().await?;
        let active = map.map.buckets.iter().filter(|entry| entry.state() == BucketState::Active);
        let mut buckets: Vec<BucketInfo> = active.map(|entry| info(&map, entry)).collect();
        buckets.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(buckets)
    }

    /// Sets or removes a configuration. `settings_version`: the one that the change was made from, where that matters.
    pub async fn set_configuration(
        &self,
        bucket: &BucketInfo,
        kind: ConfigurationKind,
        value: Option<Bytes>,
        settings_version: Option<u64>,
    ) -> Result<(), Error> {
        let set = SetBucketConfiguration {
            bucket: bucket.id,
            kind: kind as i32,
            value,
            settings_version: settings_version.unwrap_or(0),
        };
        let reply = self.change_map(MapCommand::SetBucketConfiguration(set)).await?;
        match reply.outcome() {
            // The map is as new as the change, or newer: then the newer settings are spread.
            MapOutcome::Done if SPREAD.contains(&kind) => self.spread_newest(bucket).await,
            MapOutcome::Done => Ok(()),
            MapOutcome::Stale => Err(Error::Unavailable("the bucket's settings were changed meanwhile".into())),
            MapOutcome::NotFound => Err(Error::NoSuchBucket),
            // An earlier try may have been executed.
            MapOutcome::SessionClosed => Err(Error::OutcomeUnknown(reply.detail)),
            _ => Err(Error::Invalid(reply.detail)),
        }
    }

    /// What a bucket may hold at most; absent: any amount. Returns when what it holds already is counted.
    pub async fn set_quota(&self, bucket: &BucketInfo, quota: Option<Quota>) -> Result<(), Error> {
        let value = quota.map(|quota| Bytes::from(quota.encode_to_vec()));
        self.set_configuration(bucket, ConfigurationKind::Quota, value, None).await?;
        for (group, epoch) in self.groups_of(BucketId(bucket.id)) {
            self.count_usage(group, epoch, bucket.id).await?;
        }
        Ok(())
    }

    /// Counts what is not counted yet of a bucket with a quota.
    pub async fn count_usage(&self, group: GroupId, epoch: u64, bucket: u64) -> Result<(), Error> {
        let command = ShardCommand::CountUsage(CountUsage { bucket });
        let count = || self.change_shard(group, epoch, command.clone(), Acknowledgement::Majority);
        while count().await? == ShardOutcome::Done(Done { more: true }) {}
        Ok(())
    }

    /// Has lifecycle rules done to what a search found.
    pub async fn expire(&self, group: GroupId, expire: Expire) -> Result<(), Error> {
        let send = || self.change_shard(group, 0, ShardCommand::Expire(expire.clone()), Acknowledgement::Majority);
        while send().await? == ShardOutcome::Done(Done { more: true }) {}
        Ok(())
    }

    /// What a bucket with a quota holds.
    pub async fn usage(&self, bucket: &BucketInfo) -> Result<Usage, Error> {
        let mut total = Usage { complete: true, ..Usage::default() };
        for (group, epoch) in self.groups_of(BucketId(bucket.id)) {
            let read = ShardRead::GetUsage(BucketRef { bucket: bucket.id });
            if let ShardFound::Usage(usage) = self.query_shard(group, epoch, read).await? {
                total.bytes += usage.bytes;
                total.objects += usage.objects;
                total.complete &= usage.complete;
            }
        }
        Ok(total)
    }

    /// Enabled or suspended; once enabled, versioning is never off again.
    pub async fn set_versioning(&self, name: &str, versioning: Versioning) -> Result<(), Error> {
        if versioning == Versioning::Off {
            return Err(Error::Invalid("versioning can be enabled or suspended, not switched off".into()));
        }
        self.change_bucket(name, |entry| entry.versioning = versioning as i32).await?;
        let entry = self.map().active_bucket(name).cloned().ok_or(Error::NoSuchBucket)?;
        self.spread_settings(&entry).await
    }

    /// What writes to the bucket wait for that do not say anything else. Gateways elsewhere follow when they next hear
    /// from the cluster.
    pub async fn set_acknowledgement(&self, name: &str, acknowledgement: Acknowledgement) -> Result<(), Error> {
        self.change_bucket(name, |entry| entry.acknowledgement = acknowledgement as i32).await
    }

    async fn change_bucket(&self, name: &str, change: impl FnOnce(&mut BucketEntry)) -> Result<(), Error> {
        let map = self.refresh_map().await?;
        let mut entry = map.active_bucket(name).cloned().ok_or(Error::NoSuchBucket)?;
        change(&mut entry);
        let reply = self.change_map(MapCommand::SetBucket(entry)).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(()),
            MapOutcome::Stale => Err(Error::Unavailable("the bucket's settings were changed meanwhile".into())),
            MapOutcome::Invalid => Err(Error::Invalid(reply.detail)),
            _ => Err(Error::NoSuchBucket),
        }
    }
}

fn info(map: &MapView, entry: &BucketEntry) -> BucketInfo {
    BucketInfo {
        id: entry.id,
        name: entry.name.clone(),
        owner: entry.owner.clone(),
        created_ms: entry.created_ms,
        region: entry.region.clone(),
        versioning: entry.versioning(),
        acknowledgement: entry.acknowledgement(),
        pool: entry.pool,
        terms: Terms::default(),
        configurations: map.configurations(BucketId(entry.id)),
    }
}
