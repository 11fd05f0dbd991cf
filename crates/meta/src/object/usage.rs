//! How much a bucket holds, and the quota that limits it.
//!
//! Only buckets with a quota are counted: counting costs every write a row more. When a quota is set, the rows that are
//! there already are counted in bounded steps, in key order; until the count has come as far as a key, writes to that
//! key do not change it. So the count is exact as soon as it has come to the end, whatever was written meanwhile, and is
//! never too high before.
//!
//! Counted are all versions with their sizes, delete markers as nothing. Parts of uploads in progress count when their
//! upload is completed.

use base::ids::{BucketId, GroupId};
use bytes::Bytes;
use prost::Message;

use super::apply::{Halt, Step, done, refuse};
use super::buckets::bucket_row;
use super::command::{BucketRow, Done, ObjectVersion, Reason, ShardOutcome};
use super::scan::Cursor;
use super::versions::decode_version;
use crate::group::read_row;
use crate::keys::{Key, Space};
use crate::map::command::ConfigurationKind;
use crate::view::{View, ViewError};

/// Rows counted by one command.
const COUNT_ROWS_MAX: usize = 5_000;

/// What a bucket may hold at most; absent: any amount.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Quota {
    #[prost(uint64, optional, tag = "1")]
    pub bytes_max: Option<u64>,
    /// Versions that are no delete markers.
    #[prost(uint64, optional, tag = "2")]
    pub objects_max: Option<u64>,
}

/// What a bucket holds, as far as it was counted.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Usage {
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    #[prost(uint64, tag = "2")]
    pub objects: u64,
    /// Rows below this are counted.
    #[prost(bytes = "bytes", tag = "3")]
    pub counted_to: Bytes,
    /// All rows are counted.
    #[prost(bool, tag = "4")]
    pub complete: bool,
}

/// What one command adds and takes away, of one bucket.
#[derive(Debug, Default)]
pub(super) struct Account {
    changes: Vec<(Bytes, i64, i64)>,
}

impl Account {
    fn note(&mut self, row_key: Bytes, row: &ObjectVersion, sign: i64) {
        if !row.delete_marker && row.null_order == 0 {
            let size = row.body.as_ref().map_or(0, |body| body.size);
            self.changes.push((row_key, sign * i64::try_from(size).unwrap_or(i64::MAX), sign));
        }
    }

    /// A version row was written.
    pub fn add(&mut self, bucket: BucketId, key: &Bytes, order: u64, row: &ObjectVersion) {
        self.note(Key::Version { bucket, key: key.clone(), order }.encode(), row, 1);
    }

    /// A version row was removed.
    pub fn take(&mut self, bucket: BucketId, key: &Bytes, order: u64, row: &ObjectVersion) {
        self.note(Key::Version { bucket, key: key.clone(), order }.encode(), row, -1);
    }
}

fn usage_key(group: GroupId, bucket: BucketId) -> Key {
    Key::BucketUsage { group, bucket }
}

/// The quota in a bucket's row.
pub(super) fn quota_of(row: &BucketRow) -> Option<Quota> {
    let kind = ConfigurationKind::Quota as i32;
    let found = row.configurations.iter().find(|configuration| configuration.kind == kind)?;
    // What cannot be read is of a newer version; a limit that nobody knows cannot be kept.
    Quota::decode(found.value.clone()).ok()
}

/// What a bucket with a quota holds; `None` for one without.
pub fn usage(view: &dyn View, group: GroupId, bucket: BucketId) -> Result<Option<Usage>, ViewError> {
    read_row::<Usage>(view, &usage_key(group, bucket))
}

/// Buckets whose rows are not all counted yet.
pub fn buckets_to_count(view: &dyn View, group: GroupId) -> Result<Vec<BucketId>, ViewError> {
    let (from, to) = crate::keys::usage_rows(group);
    let mut cursor = Cursor::new(view, from, to);
    let mut buckets = Vec::new();
    while let Some((raw, value)) = cursor.next()? {
        let row = crate::group::decode_row::<Usage>(&raw, Some(value))?.unwrap_or_default();
        if let (Ok(Key::BucketUsage { bucket, .. }), false) = (Key::decode(&raw), row.complete) {
            buckets.push(bucket);
        }
    }
    Ok(buckets)
}

/// Count the next rows of a bucket. `more`: send it again.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CountUsage {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
}

impl Step<'_> {
    /// Brings the count of a bucket in line with what the command did, and refuses what the quota does not allow.
    /// Called once, when everything else of the command is decided.
    pub fn settle_usage(&mut self, bucket: BucketId, row: &BucketRow) -> Result<(), Halt> {
        let Some(quota) = quota_of(row) else { return Ok(()) };
        let key = usage_key(self.group, bucket);
        let Some(mut usage) = read_row::<Usage>(self.view, &key)? else { return Ok(()) };
        let (mut bytes, mut objects) = (0i64, 0i64);
        for (row_key, size, count) in &self.account.changes {
            if usage.complete || *row_key < usage.counted_to {
                bytes = bytes.saturating_add(*size);
                objects += count;
            }
        }
        if bytes == 0 && objects == 0 {
            return Ok(());
        }
        usage.bytes = usage.bytes.saturating_add_signed(bytes);
        usage.objects = usage.objects.saturating_add_signed(objects);
        // What makes a bucket smaller is always taken.
        if bytes > 0 && quota.bytes_max.is_some_and(|max| usage.bytes > max) {
            return refuse(Reason::QuotaExceeded, format!("{} bytes", quota.bytes_max.unwrap_or_default()));
        }
        if objects > 0 && quota.objects_max.is_some_and(|max| usage.objects > max) {
            return refuse(Reason::QuotaExceeded, format!("{} objects", quota.objects_max.unwrap_or_default()));
        }
        self.changes.put(key.encode(), Bytes::from(usage.encode_to_vec()));
        Ok(())
    }

    /// The bucket's settings were changed: counting begins with a quota and ends with it.
    pub fn follow_quota(&mut self, row: &BucketRow) -> Result<(), Halt> {
        let bucket = BucketId(row.bucket);
        let key = usage_key(self.group, bucket);
        let counted = read_row::<Usage>(self.view, &key)?.is_some();
        match (quota_of(row).is_some() && !row.dropped, counted) {
            (true, false) => self.changes.put(key.encode(), Bytes::from(Usage::default().encode_to_vec())),
            (false, true) => self.changes.delete(key.encode()),
            _ => {}
        }
        Ok(())
    }

    pub fn count_usage(&mut self, count: CountUsage) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(count.bucket);
        if bucket_row(self.view, self.group, bucket)?.is_none() {
            return Ok(done());
        }
        let key = usage_key(self.group, bucket);
        let Some(mut usage) = read_row::<Usage>(self.view, &key)?.filter(|usage| !usage.complete) else {
            return Ok(done());
        };
        let space = Space::Versions;
        let (range_start, range_end) = space.range(&self.state.range_start, &self.state.range_end);
        let from = space.prefix_start(bucket, b"").max(range_start).max(usage.counted_to.clone());
        let to = space.prefix_end(bucket, b"").min(range_end);
        let rows = self.view.scan(&from, &to.clone().max(from.clone()), COUNT_ROWS_MAX)?;
        usage.complete = rows.len() < COUNT_ROWS_MAX;
        for (raw, value) in rows {
            let (_, found) = decode_version(&raw, value)?;
            if !found.row.delete_marker && found.row.null_order == 0 {
                usage.objects += 1;
                usage.bytes = usage.bytes.saturating_add(found.row.body.as_ref().map_or(0, |body| body.size));
            }
            // The successor of a key is the key and a zero byte.
            usage.counted_to = [raw.as_ref(), &[0]].concat().into();
        }
        let more = !usage.complete;
        self.changes.put(key.encode(), Bytes::from(usage.encode_to_vec()));
        Ok(ShardOutcome::Done(Done { more }))
    }
}
