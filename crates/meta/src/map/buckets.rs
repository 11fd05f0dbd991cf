//! Buckets in the cluster map: their names, their entries and their configurations.

use base::ids::BucketId;
use bytes::Bytes;

use super::apply::{Halt, Step, check_text, count_up, refuse, require};
use super::command::{
    Acknowledgement, BucketConfigurationRow, BucketEntry, BucketId as BucketIdMessage, BucketState, ConfigurationKind,
    MapOutcome, MapReply, SetBucketConfiguration,
};
use super::{BUCKETS_MAX, CONFIGURATION_LEN_MAX, CONFIGURATIONS_LEN_MAX};
use crate::group::decode_row;
use crate::keys::{self, Key};
use crate::object::command::Versioning;
use crate::object::fence::FENCE_LEVEL_MIN;

/// A kind is a byte of a key.
const KINDS_MAX: usize = 256;

impl Step<'_> {
    pub fn create_bucket(&mut self, mut entry: BucketEntry) -> Result<MapReply, Halt> {
        check_bucket(&entry)?;
        require(!entry.name.is_empty(), "a bucket has a name")?;
        check_text(&entry.owner)?;
        check_text(&entry.region)?;
        let name_key = bucket_name_key(&entry);
        if let Some(taken) = self.read::<BucketIdMessage>(&name_key)? {
            let bucket = self.read(&Key::BucketEntry { id: BucketId(taken.id) })?;
            let outcome = MapOutcome::BucketExists as i32;
            return Err(Halt::Refused(Box::new(MapReply { outcome, bucket, ..MapReply::default() })));
        }
        count_up(&mut self.state.buckets, BUCKETS_MAX, "buckets")?;
        self.state.bucket_id_last += 1;
        entry.id = self.state.bucket_id_last;
        entry.settings_version = 1;
        self.put(&Key::BucketEntry { id: BucketId(entry.id) }, &entry, None);
        self.put(&name_key, &BucketIdMessage { id: entry.id }, None);
        Ok(MapReply { id: entry.id, bucket: Some(entry), ..MapReply::default() })
    }

    pub fn set_bucket(&mut self, entry: BucketEntry) -> Result<MapReply, Halt> {
        check_bucket(&entry)?;
        let key = Key::BucketEntry { id: BucketId(entry.id) };
        let Some(before) = self.read::<BucketEntry>(&key)? else {
            return refuse(MapOutcome::NotFound, format!("bucket {}", entry.id));
        };
        if entry.settings_version != 0 && entry.settings_version != before.settings_version {
            let detail = format!("the bucket's settings are at version {}", before.settings_version);
            return refuse(MapOutcome::Stale, detail);
        }
        require(entry.name.is_empty() || entry.name == before.name, "a bucket keeps its name")?;
        let switched_off = entry.versioning == Versioning::Off as i32 && before.versioning != Versioning::Off as i32;
        require(!switched_off, "versioning can be suspended, not switched off")?;
        let lock = self.read::<BucketConfigurationRow>(&lock_key(BucketId(entry.id)))?;
        let keeps_versions = entry.versioning == Versioning::Enabled as i32;
        require(lock.is_none() || keeps_versions, "a bucket with object lock keeps versions")?;
        let mut after = BucketEntry {
            versioning: entry.versioning,
            pool: entry.pool,
            acknowledgement: entry.acknowledgement,
            state: entry.state,
            ..before.clone()
        };
        if after != before {
            after.settings_version += 1;
        }
        self.put(&key, &after, Some(&before));
        Ok(MapReply { id: after.id, bucket: Some(after), ..MapReply::default() })
    }

    pub fn remove_bucket(&mut self, id: BucketIdMessage) -> Result<MapReply, Halt> {
        let key = Key::BucketEntry { id: BucketId(id.id) };
        let Some(entry) = self.read::<BucketEntry>(&key)? else {
            return refuse(MapOutcome::NotFound, format!("bucket {}", id.id));
        };
        self.changes.delete(key.encode());
        self.changes.delete(bucket_name_key(&entry).encode());
        let (from, to) = keys::configuration_rows(BucketId(id.id));
        for (key, value) in self.view.scan(&from, &to, KINDS_MAX)? {
            let row = decode_row::<BucketConfigurationRow>(&key, Some(value))?.unwrap_or_default();
            self.state.configuration_bytes -= row.value.len() as u64;
            self.changes.delete(key);
        }
        self.state.buckets -= 1;
        self.is_effective = true;
        Ok(MapReply { id: id.id, ..MapReply::default() })
    }

    pub fn set_bucket_configuration(&mut self, set: SetBucketConfiguration) -> Result<MapReply, Halt> {
        let kind = ConfigurationKind::try_from(set.kind).unwrap_or(ConfigurationKind::Unspecified);
        require(kind != ConfigurationKind::Unspecified, "the kind of configuration is not known")?;
        let bucket = BucketId(set.bucket);
        let entry_key = Key::BucketEntry { id: bucket };
        let Some(before) = self.read::<BucketEntry>(&entry_key)?.filter(|entry| entry.state() != BucketState::Deleting)
        else {
            return refuse(MapOutcome::NotFound, bucket.to_string());
        };
        if set.settings_version != 0 && set.settings_version != before.settings_version {
            let detail = format!("the bucket's settings are at version {}", before.settings_version);
            return refuse(MapOutcome::Stale, detail);
        }
        if kind == ConfigurationKind::ObjectLock {
            require(set.value.is_some(), "object lock cannot be switched off")?;
            let keeps_versions = before.versioning == Versioning::Enabled as i32;
            require(keeps_versions, "object lock needs a bucket with versioning enabled")?;
        }
        if kind == ConfigurationKind::Fence && set.value.is_some() {
            let knows = self.state.feature_level >= FENCE_LEVEL_MIN;
            require(knows, "the cluster's feature level does not know fences yet")?;
        }
        let key = Key::BucketConfiguration { bucket, kind: kind as u8 };
        let row_before = self.read::<BucketConfigurationRow>(&key)?;
        if row_before.as_ref().map(|row| &row.value) == set.value.as_ref() {
            return Ok(MapReply { id: before.id, bucket: Some(before), ..MapReply::default() });
        }
        let (old, new) = (row_before.map_or(0, |row| row.value.len()), set.value.as_ref().map_or(0, Bytes::len));
        require(new <= CONFIGURATION_LEN_MAX, "the configuration is longer than 128 KiB")?;
        let total = self.state.configuration_bytes - old as u64 + new as u64;
        // What shrinks is always taken: that is the way out of a full map.
        if total > CONFIGURATIONS_LEN_MAX && new > old {
            return refuse(MapOutcome::TooMany, "the configurations of all buckets are longer than 8 MiB");
        }
        self.state.configuration_bytes = total;
        let after = BucketEntry { settings_version: before.settings_version + 1, ..before.clone() };
        match set.value {
            Some(value) => {
                let row = BucketConfigurationRow {
                    bucket: set.bucket,
                    kind: set.kind,
                    version: after.settings_version,
                    value,
                };
                self.put(&key, &row, None);
            }
            None => self.changes.delete(key.encode()),
        }
        self.put(&entry_key, &after, Some(&before));
        Ok(MapReply { id: after.id, bucket: Some(after), ..MapReply::default() })
    }
}

fn check_bucket(entry: &BucketEntry) -> Result<(), Halt> {
    let is_known = Versioning::try_from(entry.versioning).is_ok()
        && Acknowledgement::try_from(entry.acknowledgement).is_ok()
        && BucketState::try_from(entry.state).is_ok();
    require(is_known, "a setting of the bucket is not known")?;
    check_text(&entry.name)
}

fn lock_key(bucket: BucketId) -> Key {
    Key::BucketConfiguration { bucket, kind: ConfigurationKind::ObjectLock as u8 }
}

fn bucket_name_key(entry: &BucketEntry) -> Key {
    Key::BucketName { name: Bytes::copy_from_slice(entry.name.as_bytes()) }
}
