//! The shard's copy of each bucket's settings, and the removal of buckets.

use base::ids::{BucketId, GroupId};
use base::plant::{self, Plant};
use bytes::Bytes;
use prost::Message;

use super::BUCKET_ROW_LEN_MAX;
use super::apply::{Halt, Step, done, refuse};
use super::command::{BucketRow, Done, Reason, ShardOutcome, Versioning};
use super::fence::{self, FENCE_LEVEL_MIN};
use crate::group::read_row;
use crate::keys::{Key, Space};
use crate::map::command::{BucketConfigurationRow, ConfigurationKind};
use crate::view::{View, ViewError};

/// Uploads aborted by one `DropBucket`.
const DROP_UPLOADS_MAX: usize = 1000;
/// Parts of aborted uploads after which one `DropBucket` takes no further upload.
const DROP_PARTS_MAX: usize = 5000;

/// The row of a bucket that exists here, whether frozen or not.
pub(super) fn bucket_row(view: &dyn View, group: GroupId, bucket: BucketId) -> Result<Option<BucketRow>, ViewError> {
    Ok(read_row::<BucketRow>(view, &Key::Bucket { group, bucket })?.filter(|row| !row.dropped))
}

impl Step<'_> {
    fn bucket_key(&self, bucket: BucketId) -> Key {
        Key::Bucket { group: self.group, bucket }
    }

    fn existing_bucket(&self, bucket: BucketId) -> Result<BucketRow, Halt> {
        match bucket_row(self.view, self.group, bucket)? {
            Some(row) => Ok(row),
            None => refuse(Reason::NoSuchBucket, bucket.to_string()),
        }
    }

    /// The versioning of a bucket that takes writes.
    pub fn writable_bucket(&self, bucket: BucketId) -> Result<Versioning, Halt> {
        Ok(self.open_bucket(bucket)?.1)
    }

    /// The row and the versioning of a bucket that takes writes.
    pub fn open_bucket(&self, bucket: BucketId) -> Result<(BucketRow, Versioning), Halt> {
        let row = self.existing_bucket(bucket)?;
        if row.frozen {
            return refuse(Reason::BucketFrozen, bucket.to_string());
        }
        match Versioning::try_from(row.versioning) {
            Ok(versioning) => Ok((row, versioning)),
            Err(_) => refuse(Reason::Invalid, format!("versioning {} is not known", row.versioning)),
        }
    }

    pub fn set_bucket(&mut self, mut row: BucketRow) -> Result<ShardOutcome, Halt> {
        row.dropped = false;
        let Ok(versioning) = Versioning::try_from(row.versioning) else {
            return refuse(Reason::Invalid, format!("versioning {} is not known", row.versioning));
        };
        // No write could carry a fence: the bucket would take none.
        if self.state.feature_level < FENCE_LEVEL_MIN && fence::is_required(&row) {
            return refuse(Reason::Invalid, "the shard's feature level does not know fences yet");
        }
        let rules = self.split_rules(&mut row);
        if row.encoded_len() > BUCKET_ROW_LEN_MAX {
            return refuse(Reason::Invalid, format!("the bucket's row is longer than {BUCKET_ROW_LEN_MAX} bytes"));
        }
        let key = self.bucket_key(BucketId(row.bucket));
        if let Some(before) = read_row::<BucketRow>(self.view, &key)? {
            if before.dropped {
                return refuse(Reason::NoSuchBucket, "the bucket was dropped");
            }
            if row.settings_version <= before.settings_version {
                return Ok(done());
            }
            if plant::is(Plant::StaleVersioning) {
                row.versioning = before.versioning;
            }
            if versioning == Versioning::Off && before.versioning != Versioning::Off as i32 {
                return refuse(Reason::Invalid, "versioning can be suspended, not switched off");
            }
        }
        self.follow_quota(&row)?;
        match rules {
            Some(rules) => self.changes.put(self.rules_key(&row).encode(), rules),
            None => self.changes.delete(self.rules_key(&row).encode()),
        }
        self.changes.put(key.encode(), Bytes::from(row.encode_to_vec()));
        Ok(done())
    }

    fn rules_key(&self, row: &BucketRow) -> Key {
        Key::BucketRules { group: self.group, bucket: BucketId(row.bucket) }
    }

    /// Takes the lifecycle rules out of a bucket's row: they have a row of their own, because every write reads this.
    fn split_rules(&self, row: &mut BucketRow) -> Option<Bytes> {
        let is_rules = |found: &BucketConfigurationRow| found.kind == ConfigurationKind::Lifecycle as i32;
        let rules = row.configurations.iter().find(|found| is_rules(found)).map(|found| found.value.clone());
        row.configurations.retain(|found| !is_rules(found));
        rules
    }

    pub fn freeze_bucket(&mut self, bucket: BucketId) -> Result<ShardOutcome, Halt> {
        let mut row = self.existing_bucket(bucket)?;
        if !self.is_without_versions(bucket)? {
            return refuse(Reason::BucketNotEmpty, bucket.to_string());
        }
        row.frozen = !plant::is(Plant::SkipFreeze);
        self.changes.put(self.bucket_key(bucket).encode(), Bytes::from(row.encode_to_vec()));
        Ok(done())
    }

    pub fn drop_bucket(&mut self, bucket: BucketId) -> Result<ShardOutcome, Halt> {
        let key = self.bucket_key(bucket);
        let row = read_row::<BucketRow>(self.view, &key)?;
        match &row {
            Some(row) if row.dropped => return Ok(done()),
            Some(row) if !row.frozen && !plant::is(Plant::SkipFreeze) => {
                return refuse(Reason::Invalid, "the bucket is not frozen");
            }
            _ => {}
        }
        if !plant::is(Plant::SkipFreeze) && !self.is_without_versions(bucket)? {
            return refuse(Reason::BucketNotEmpty, bucket.to_string());
        }
        if self.abort_some_uploads(bucket)? || self.drop_fences(bucket)? {
            return Ok(ShardOutcome::Done(Done { more: true }));
        }
        let row = BucketRow { bucket: bucket.0, frozen: true, dropped: true, ..row.unwrap_or_default() };
        self.changes.delete(self.rules_key(&row).encode());
        self.follow_quota(&row)?;
        self.changes.put(key.encode(), Bytes::from(row.encode_to_vec()));
        Ok(done())
    }

    fn is_without_versions(&self, bucket: BucketId) -> Result<bool, Halt> {
        let (from, to) = self.bucket_rows(Space::Versions, bucket);
        Ok(self.view.scan(&from, &to, 1)?.is_empty())
    }

    /// Aborts uploads in progress until a bound is reached. Answers whether some are left.
    fn abort_some_uploads(&mut self, bucket: BucketId) -> Result<bool, Halt> {
        let (from, to) = self.bucket_rows(Space::Uploads, bucket);
        let rows = self.view.scan(&from, &to, DROP_UPLOADS_MAX + 1)?;
        let mut parts = 0;
        for (number, (raw, _)) in rows.into_iter().enumerate() {
            if number == DROP_UPLOADS_MAX || parts >= DROP_PARTS_MAX {
                return Ok(true);
            }
            let Ok(Key::Upload { key, upload, .. }) = Key::decode(&raw) else {
                return Err(ViewError::bad_row(&raw, "not the key of an upload").into());
            };
            self.changes.delete(raw);
            parts += self.drop_parts(bucket, &key, upload)?;
        }
        Ok(false)
    }

    /// The bucket's rows in this shard's range.
    fn bucket_rows(&self, space: Space, bucket: BucketId) -> (Bytes, Bytes) {
        let (from, to) = space.range(&self.state.range_start, &self.state.range_end);
        (from.max(space.prefix_start(bucket, b"")), to.min(space.prefix_end(bucket, b"")))
    }
}
