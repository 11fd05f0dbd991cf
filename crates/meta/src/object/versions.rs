//! The versions of a key: what PUT and DELETE do to them.
//!
//! Versions are adjacent, newest first, by their order number. Where the null version stands depends on how it was
//! written:
//! - In a bucket that was never versioned it stands at order 0, the oldest place: an overwrite touches one row, and a
//!   read is a lookup, not a scan.
//! - Written while versioning is suspended it takes a fresh order, for it is the newest version. The row at order 0
//!   then says where it is (`null_order`), so that "the null version" is found without a scan.
//!
//! A version's id starts with its order, so that it too is found without a scan or an index.

use base::ids::BucketId;
use bytes::Bytes;
use prost::Message;

use super::CONDITION_ETAGS_MAX;
use super::apply::{Halt, Step, check_attributes, random_id, refuse};
use super::command::{
    BucketRow, DeleteObject, Deleted, ObjectVersion, Precondition, PutObject, Reason, ShardOutcome, Versioning, Written,
};
use super::lock::{BucketLock, ObjectLock, RetentionMode};
use crate::group::read_row;
use crate::keys::{Key, Space};
use crate::map::command::ConfigurationKind;
use crate::view::{View, ViewError};

/// The id of the version that is not versioned.
pub const NULL_VERSION: &[u8] = b"null";

/// The order of the version with this id of 16 bytes; `None` when it cannot be one.
pub fn order_of_version(id: &[u8]) -> Option<u64> {
    let id = <[u8; 16]>::try_from(id).ok()?;
    let order = (u128::from_be_bytes(id) >> 64) as u64;
    (order != 0).then_some(order)
}

fn version_id(order: u64, random: u128) -> Bytes {
    let id = (u128::from(order) << 64) | u128::from(random as u64);
    Bytes::copy_from_slice(&id.to_be_bytes())
}

/// A version as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub order: u64,
    /// Its `key` is empty.
    pub row: ObjectVersion,
}

impl Found {
    pub fn is_null(&self) -> bool {
        self.row.version == NULL_VERSION
    }
}

fn read_version(view: &dyn View, bucket: BucketId, key: &Bytes, order: u64) -> Result<Option<Found>, ViewError> {
    let row = read_row::<ObjectVersion>(view, &Key::Version { bucket, key: key.clone(), order })?;
    Ok(row.map(|row| Found { order, row }))
}

/// The newest version of a key, which may be a delete marker.
pub(super) fn newest(
    view: &dyn View,
    bucket: BucketId,
    key: &Bytes,
    versioning: Versioning,
) -> Result<Option<Found>, ViewError> {
    if versioning == Versioning::Off {
        return read_version(view, bucket, key, 0);
    }
    let (from, to) = (Space::Versions.key_start(bucket, key), Space::Versions.key_end(bucket, key));
    let Some((raw, value)) = view.scan(&from, &to, 1)?.into_iter().next() else {
        return Ok(None);
    };
    let found = decode_version(&raw, value)?.1;
    // A pointer is older than the version it points at, so it is never the first row.
    if found.row.null_order != 0 {
        return Err(ViewError::bad_row(&raw, "points at a null version that is not there"));
    }
    Ok(Some(found))
}

/// Reads a row of the space of versions: its object key and the version.
pub(super) fn decode_version(raw: &[u8], value: Bytes) -> Result<(Bytes, Found), ViewError> {
    let Ok(Key::Version { key, order, .. }) = Key::decode(raw) else {
        return Err(ViewError::bad_row(raw, "not the key of a version"));
    };
    let row = ObjectVersion::decode(value).map_err(|error| ViewError::bad_row(raw, error))?;
    Ok((key, Found { order, row }))
}

/// The version with this id (16 bytes or `null`).
pub(super) fn named(view: &dyn View, bucket: BucketId, key: &Bytes, id: &[u8]) -> Result<Option<Found>, ViewError> {
    if id == NULL_VERSION {
        return null_version(view, bucket, key);
    }
    let Some(order) = order_of_version(id) else {
        return Ok(None);
    };
    Ok(read_version(view, bucket, key, order)?.filter(|found| found.row.version == id))
}

/// Queries read while rows change. A null version that is gone where the pointer said it is has been replaced meanwhile:
/// the pointer, which changes together with it, says where it is now.
fn null_version(view: &dyn View, bucket: BucketId, key: &Bytes) -> Result<Option<Found>, ViewError> {
    const FOLLOWED_MAX: u32 = 16;
    let mut followed = 0;
    for _ in 0..FOLLOWED_MAX {
        let oldest = read_version(view, bucket, key, 0)?;
        let order = oldest.as_ref().map_or(0, |found| found.row.null_order);
        if order == 0 || order == followed {
            return Ok(oldest.filter(|_| order == 0));
        }
        if let Some(found) = read_version(view, bucket, key, order)? {
            return Ok(Some(found));
        }
        followed = order;
    }
    Ok(None)
}

impl Step<'_> {
    pub fn put_object(&mut self, put: PutObject) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(put.bucket);
        self.check_key(bucket, &put.key)?;
        let (settings, versioning) = self.open_bucket(bucket)?;
        let body = self.check_body(put.body)?;
        let mut attributes = put.attributes.unwrap_or_default();
        attributes.lock = lock_of_new(&settings, attributes.lock, put.modified_ms)?;
        check_attributes(&attributes)?;
        self.check_write_condition(bucket, &put.key, versioning, put.precondition.as_ref())?;
        let (size, etag) = (body.size, attributes.etag.clone());
        let row = ObjectVersion {
            modified_ms: put.modified_ms,
            body: Some(body),
            attributes: Some(attributes),
            ..ObjectVersion::default()
        };
        let (_, version) = self.write_version(bucket, &put.key, versioning, row, &put.version_id)?;
        self.settle_usage(bucket, &settings)?;
        Ok(ShardOutcome::Written(Written { version, etag, modified_ms: put.modified_ms, size }))
    }

    pub fn delete_object(&mut self, delete: DeleteObject) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(delete.bucket);
        self.check_key(bucket, &delete.key)?;
        let (settings, versioning) = self.open_bucket(bucket)?;
        let target = match &delete.version {
            Some(id) => {
                check_version_id(id)?;
                named(self.view, bucket, &delete.key, id)?
            }
            None => newest(self.view, bucket, &delete.key, versioning)?,
        };
        if let Some(condition) = &delete.precondition {
            // As in S3, deleting what is not there succeeds, whatever the condition; then nothing is written.
            let Some(target) = &target else {
                return Ok(ShardOutcome::Deleted(Deleted::default()));
            };
            check_condition(condition, &target.row)?;
        }
        if let Some(target) = target.as_ref().filter(|_| delete.version.is_some()) {
            let allowed = lock_of(&target.row).check_removal(delete.modified_ms, delete.bypass_governance);
            allowed.or_else(|forbidden| refuse(Reason::ObjectLocked, forbidden.to_string()))?;
        }
        let deleted = match delete.version {
            Some(id) => self.delete_version(bucket, &delete.key, versioning, target, id),
            None => self.delete_newest(bucket, versioning, target, &delete)?,
        };
        if let Some(removed) = deleted.1 {
            self.drop_content(bucket, &delete.key, &removed.row)?;
        }
        self.settle_usage(bucket, &settings)?;
        Ok(ShardOutcome::Deleted(deleted.0))
    }

    /// DELETE of a named version removes it for good; what was below it becomes the newest.
    fn delete_version(
        &mut self,
        bucket: BucketId,
        key: &Bytes,
        versioning: Versioning,
        target: Option<Found>,
        id: Bytes,
    ) -> (Deleted, Option<Found>) {
        let marker = target.as_ref().is_some_and(|found| found.row.delete_marker);
        if let Some(found) = &target {
            self.remove_row(bucket, key, found);
        }
        let version = if versioning == Versioning::Off { Bytes::new() } else { id };
        (Deleted { marker, version }, target)
    }

    /// The plain DELETE: removes the object of a bucket that was never versioned, else writes a delete marker (which,
    /// while suspended, takes the place of the null version).
    pub fn delete_newest(
        &mut self,
        bucket: BucketId,
        versioning: Versioning,
        newest: Option<Found>,
        delete: &DeleteObject,
    ) -> Result<(Deleted, Option<Found>), Halt> {
        if versioning == Versioning::Off {
            if let Some(found) = &newest {
                self.remove_row(bucket, &delete.key, found);
            }
            return Ok((Deleted::default(), newest));
        }
        let row = ObjectVersion { delete_marker: true, modified_ms: delete.modified_ms, ..ObjectVersion::default() };
        let (_, version) = self.write_version(bucket, &delete.key, versioning, row, &delete.marker_id)?;
        Ok((Deleted { marker: true, version }, None))
    }

    /// Writes `row` as the newest version, as the bucket's versioning asks. Answers its order, and its id as replies
    /// give it (empty when the bucket was never versioned).
    pub fn write_version(
        &mut self,
        bucket: BucketId,
        key: &Bytes,
        versioning: Versioning,
        mut row: ObjectVersion,
        random: &[u8],
    ) -> Result<(u64, Bytes), Halt> {
        let order = if versioning == Versioning::Off { 0 } else { self.fresh_order() };
        row.version = match versioning {
            Versioning::Enabled => version_id(order, random_id(random)?),
            Versioning::Off | Versioning::Suspended => Bytes::from_static(NULL_VERSION),
        };
        if versioning != Versioning::Enabled
            && let Some(replaced) = named(self.view, bucket, key, NULL_VERSION)?
        {
            // The row at order 0 is written anew below.
            if replaced.order != 0 {
                self.changes.delete(Key::Version { bucket, key: key.clone(), order: replaced.order }.encode());
            }
            self.account.take(bucket, key, replaced.order, &replaced.row);
            self.drop_content(bucket, key, &replaced.row)?;
        }
        self.account.add(bucket, key, order, &row);
        if versioning == Versioning::Suspended {
            let pointer = ObjectVersion { null_order: order, ..ObjectVersion::default() };
            self.put_row(bucket, key, 0, &pointer);
        }
        self.put_row(bucket, key, order, &row);
        let answered = if versioning == Versioning::Off { Bytes::new() } else { row.version };
        Ok((order, answered))
    }

    pub(super) fn put_row(&mut self, bucket: BucketId, key: &Bytes, order: u64, row: &ObjectVersion) {
        let value = Bytes::from(row.encode_to_vec());
        self.changes.put(Key::Version { bucket, key: key.clone(), order }.encode(), value);
    }

    /// Removes a version's row, and what points at it.
    pub fn remove_row(&mut self, bucket: BucketId, key: &Bytes, found: &Found) {
        self.changes.delete(Key::Version { bucket, key: key.clone(), order: found.order }.encode());
        self.account.take(bucket, key, found.order, &found.row);
        if found.is_null() && found.order != 0 {
            self.changes.delete(Key::Version { bucket, key: key.clone(), order: 0 }.encode());
        }
    }

    /// Drops the chunks of a version whose row goes.
    pub fn drop_content(&mut self, bucket: BucketId, key: &Bytes, row: &ObjectVersion) -> Result<(), Halt> {
        self.dropped.body(bucket, row.body.as_ref());
        if let Some(upload) = row.body.as_ref().map(|body| &body.upload).filter(|upload| !upload.is_empty()) {
            self.drop_parts(bucket, key, random_id(upload)?)?;
        }
        Ok(())
    }

    /// The conditions of a write, against what a GET would find now: a delete marker counts as absent.
    pub fn check_write_condition(
        &self,
        bucket: BucketId,
        key: &Bytes,
        versioning: Versioning,
        condition: Option<&Precondition>,
    ) -> Result<(), Halt> {
        let Some(condition) = condition else {
            return Ok(());
        };
        let current = newest(self.view, bucket, key, versioning)?.filter(|found| !found.row.delete_marker);
        match current {
            Some(found) => check_condition(condition, &found.row),
            None if needs_an_object(condition) => {
                refuse(Reason::NoSuchKey, "a condition names an object, and there is none")
            }
            None => Ok(()),
        }
    }
}

/// The lock of a version that stands.
pub(super) fn lock_of(row: &ObjectVersion) -> ObjectLock {
    row.attributes.as_ref().and_then(|attributes| attributes.lock).unwrap_or_default()
}

/// The object lock of a bucket, if it has one. What cannot be read is of a newer version: nothing is written under it.
pub(super) fn lock_of_bucket(row: &BucketRow) -> Result<Option<BucketLock>, Halt> {
    let kind = ConfigurationKind::ObjectLock as i32;
    let Some(found) = row.configurations.iter().find(|found| found.kind == kind) else { return Ok(None) };
    match BucketLock::decode(found.value.clone()) {
        Ok(lock) => Ok(Some(lock)),
        Err(_) => refuse(Reason::Invalid, "the bucket's object lock cannot be read"),
    }
}

/// The lock of a version that is written now: what its writer asks for, else the bucket's default.
pub(super) fn lock_of_new(
    settings: &BucketRow,
    asked: Option<ObjectLock>,
    now_ms: u64,
) -> Result<Option<ObjectLock>, Halt> {
    let asked = asked.unwrap_or_default();
    let lock = match lock_of_bucket(settings)? {
        None if !asked.is_empty() => return refuse(Reason::NotLockable, "the bucket has no object lock"),
        None => asked,
        Some(_) if asked.mode != RetentionMode::None as i32 => asked,
        Some(of_bucket) => ObjectLock { legal_hold: asked.legal_hold, ..of_bucket.default_at(now_ms) },
    };
    Ok(Some(lock).filter(|lock| !lock.is_empty()))
}

fn needs_an_object(condition: &Precondition) -> bool {
    condition.must_exist
        || !condition.etag_is.is_empty()
        || condition.size_is.is_some()
        || condition.modified_ms_is.is_some()
}

/// All conditions against a version that exists. A delete marker has no ETag and the size 0.
fn check_condition(condition: &Precondition, current: &ObjectVersion) -> Result<(), Halt> {
    if condition.etag_is.len().max(condition.etag_is_not.len()) > CONDITION_ETAGS_MAX {
        return refuse(Reason::Invalid, format!("more than {CONDITION_ETAGS_MAX} ETags in a condition"));
    }
    let etag = current.attributes.as_ref().map_or("", |attributes| attributes.etag.as_str());
    let size = current.body.as_ref().map_or(0, |body| body.size);
    // HTTP dates have whole seconds.
    let seconds = |ms: u64| ms / 1000;
    let holds = !condition.must_not_exist
        && (condition.etag_is.is_empty() || condition.etag_is.iter().any(|wanted| wanted == etag))
        && !condition.etag_is_not.iter().any(|unwanted| unwanted == etag)
        && condition.size_is.is_none_or(|wanted| wanted == size)
        && condition.modified_ms_is.is_none_or(|wanted| seconds(wanted) == seconds(current.modified_ms));
    if holds { Ok(()) } else { refuse(Reason::PreconditionFailed, etag) }
}

pub(super) fn check_version_id(id: &[u8]) -> Result<(), Halt> {
    if id == NULL_VERSION || id.len() == 16 {
        return Ok(());
    }
    refuse(Reason::Invalid, "a version id has 16 bytes or is null")
}
