//! What may change in a version that stands: its tags, its access list and its lock, never its bytes or its date.

use base::ids::BucketId;
use bytes::Bytes;

use super::apply::{Halt, Step, check_attributes, refuse};
use super::command::{BucketRow, ChangeVersion, Reason, Retention, ShardOutcome, Versioning, Written};
use super::lock::{Forbidden, ObjectLock, RetentionMode};
use super::query::version_text;
use super::versions::{check_version_id, lock_of_bucket, named, newest};

impl Step<'_> {
    pub fn change_version(&mut self, change: ChangeVersion) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(change.bucket);
        self.check_key(bucket, &change.key)?;
        let (settings, versioning) = self.open_bucket(bucket)?;
        let target = match &change.version {
            Some(id) => {
                check_version_id(id)?;
                named(self.view, bucket, &change.key, id)?
            }
            None => newest(self.view, bucket, &change.key, versioning)?,
        };
        let Some(found) = target else {
            return refuse(if change.version.is_some() { Reason::NoSuchVersion } else { Reason::NoSuchKey }, "");
        };
        let mut row = found.row;
        if row.delete_marker {
            return refuse(Reason::DeleteMarker, version_text(&row.version));
        }
        let mut attributes = row.attributes.take().unwrap_or_default();
        if let Some(tags) = change.tags {
            attributes.tags = tags.tags;
        }
        if let Some(acl) = change.acl {
            attributes.acl = acl;
        }
        attributes.lock =
            changed_lock(&settings, attributes.lock, change.retention, change.legal_hold, &|lock, to| {
                lock.check_retention(to.mode(), to.until_ms, change.now_ms, change.bypass_governance)
            })?;
        check_attributes(&attributes)?;
        let written = Written {
            version: if versioning == Versioning::Off { Bytes::new() } else { row.version.clone() },
            etag: attributes.etag.clone(),
            modified_ms: row.modified_ms,
            size: row.body.as_ref().map_or(0, |body| body.size),
        };
        row.attributes = Some(attributes);
        self.put_row(bucket, &change.key, found.order, &row);
        Ok(ShardOutcome::Written(written))
    }
}

/// The lock after a change of retention or legal hold, when it is allowed.
fn changed_lock(
    settings: &BucketRow,
    before: Option<ObjectLock>,
    retention: Option<Retention>,
    legal_hold: Option<bool>,
    check: &dyn Fn(&ObjectLock, Retention) -> Result<(), Forbidden>,
) -> Result<Option<ObjectLock>, Halt> {
    if retention.is_none() && legal_hold.is_none() {
        return Ok(before);
    }
    if lock_of_bucket(settings)?.is_none() {
        return refuse(Reason::NotLockable, "the bucket has no object lock");
    }
    let mut lock = before.unwrap_or_default();
    if let Some(to) = retention {
        check(&lock, to).or_else(|forbidden| refuse(Reason::ObjectLocked, forbidden.to_string()))?;
        lock.mode = to.mode;
        lock.retain_until_ms = if to.mode() == RetentionMode::None { 0 } else { to.until_ms };
    }
    lock.legal_hold = legal_hold.unwrap_or(lock.legal_hold);
    // Kept even when it locks nothing any more: that a hold was lifted is an answer.
    Ok(Some(lock))
}
