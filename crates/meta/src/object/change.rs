//! What may change in a version that stands: its tags and its access list, never its bytes or its date.

use base::ids::BucketId;
use bytes::Bytes;

use super::apply::{Halt, Step, check_attributes, refuse};
use super::command::{ChangeVersion, Reason, ShardOutcome, Versioning, Written};
use super::query::version_text;
use super::versions::{check_version_id, named, newest};

impl Step<'_> {
    pub fn change_version(&mut self, change: ChangeVersion) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(change.bucket);
        self.check_key(bucket, &change.key)?;
        let versioning = self.writable_bucket(bucket)?;
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
