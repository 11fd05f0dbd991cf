//! Listings: skip-scans in key order whose cost follows the results, not the keys.
//!
//! After a common prefix the scan jumps to the prefix's end; after a key it jumps past the key's other versions. A key
//! whose newest version is a delete marker is not there for `ListObjects`, and makes no common prefix.

use base::ids::{BucketId, GroupId};
use bytes::Bytes;

use super::PAGE_LIMIT_MAX;
use super::apply::{Halt, random_id, refuse};
use super::buckets::bucket_row;
use super::command::{
    Attributes, Body, ListObjects, ListUploads, ListVersions, ObjectPage, ObjectVersion, Reason, Upload, UploadPage,
};
use super::scan::Cursor;
use super::versions::{Found, NULL_VERSION, decode_version, named, order_of_version};
use crate::group::{GroupState, decode_row};
use crate::keys::{Key, Space};
use crate::view::{View, ViewError};

/// Rows that one query looks at. A page that ends here says where to go on (`resume`).
const ROWS_VISITED_MAX: usize = 100_000;

/// What all listings share: which keys of which bucket, and where the page begins.
struct Walk<'q> {
    space: Space,
    bucket: BucketId,
    prefix: &'q [u8],
    delimiter: &'q [u8],
    limit: usize,
}

/// The rows of a walk.
struct Rows<'v> {
    cursor: Cursor<'v>,
    /// The prefix goes on beyond the shard's range: from this key.
    beyond: Option<Bytes>,
}

impl Walk<'_> {
    /// The common prefix that hides `key`, if one does.
    fn common_prefix(&self, key: &Bytes) -> Option<Bytes> {
        if self.delimiter.is_empty() || !key.starts_with(self.prefix) {
            return None;
        }
        let rest = &key[self.prefix.len()..];
        let at = rest.windows(self.delimiter.len()).position(|window| window == self.delimiter)?;
        Some(key.slice(..self.prefix.len() + at + self.delimiter.len()))
    }

    /// The first row that may lie after `marker`: a common prefix at or around it has been returned.
    fn after(&self, marker: &Bytes) -> Bytes {
        match self.common_prefix(marker) {
            Some(prefix) => self.space.prefix_end(self.bucket, &prefix),
            None => self.space.key_end(self.bucket, marker),
        }
    }

    /// The rows from `start` on, of the keys with the prefix, in the shard's range.
    fn rows<'v>(&self, view: &'v dyn View, state: &GroupState, start: Bytes, from: &Bytes) -> Result<Rows<'v>, Halt> {
        let mut start = start.max(self.space.prefix_start(self.bucket, self.prefix));
        if !from.is_empty() {
            start = start.max(self.space.key_start(self.bucket, from));
        }
        let end = self.space.prefix_end(self.bucket, self.prefix);
        let (range_start, range_end) = self.space.range(&state.range_start, &state.range_end);
        if state.feature_level == 0 || start < range_start {
            return refuse(Reason::WrongRange, "the listing starts before this shard's range");
        }
        let beyond = (range_end < end).then(|| state.range_end.slice(state.range_end.len().min(8)..));
        Ok(Rows { cursor: Cursor::new(view, start, end.min(range_end)), beyond })
    }
}

fn page_limit(limit: u32) -> usize {
    limit.min(PAGE_LIMIT_MAX) as usize
}

pub(super) fn check_bucket(view: &dyn View, group: GroupId, bucket: BucketId) -> Result<i32, Halt> {
    match bucket_row(view, group, bucket)? {
        Some(row) => Ok(row.versioning),
        None => refuse(Reason::NoSuchBucket, bucket.to_string()),
    }
}

/// A page of the keys whose newest version is no delete marker.
pub(super) fn list_objects(
    view: &dyn View,
    group: GroupId,
    state: &GroupState,
    list: &ListObjects,
) -> Result<ObjectPage, Halt> {
    let bucket = BucketId(list.bucket);
    check_bucket(view, group, bucket)?;
    let limit = page_limit(list.limit);
    let walk = Walk { space: Space::Versions, bucket, prefix: &list.prefix, delimiter: &list.delimiter, limit };
    let start = if list.after.is_empty() { Bytes::new() } else { walk.after(&list.after) };
    let mut rows = walk.rows(view, state, start, &list.from)?;
    let mut page = ObjectPage::default();
    if limit == 0 {
        return Ok(page);
    }
    while let Some((raw, value)) = rows.cursor.next()? {
        let (key, found) = decode_version(&raw, value)?;
        if rows.cursor.visited > ROWS_VISITED_MAX {
            page.truncated = true;
            page.resume = key;
            return Ok(page);
        }
        if found.row.delete_marker {
            rows.cursor.seek(&walk.space.key_end(bucket, &key));
            continue;
        }
        if is_full(&mut page, &walk) {
            return Ok(page);
        }
        if let Some(prefix) = walk.common_prefix(&key) {
            rows.cursor.seek(&walk.space.prefix_end(bucket, &prefix));
            page.next_after = prefix.clone();
            page.prefixes.push(prefix);
        } else {
            rows.cursor.seek(&walk.space.key_end(bucket, &key));
            page.next_after = key.clone();
            page.objects.push(ObjectVersion { latest: true, ..entry_of(key, found.row) });
        }
    }
    end_page(&mut page, rows.beyond);
    Ok(page)
}

/// A page of all versions and delete markers: keys in order, the newest version of each first.
pub(super) fn list_versions(
    view: &dyn View,
    group: GroupId,
    state: &GroupState,
    list: &ListVersions,
) -> Result<ObjectPage, Halt> {
    let bucket = BucketId(list.bucket);
    check_bucket(view, group, bucket)?;
    let limit = page_limit(list.limit);
    let walk = Walk { space: Space::Versions, bucket, prefix: &list.prefix, delimiter: &list.delimiter, limit };
    let start = versions_start(view, &walk, list)?;
    // A page that begins within a key does not see the newest version of that key.
    let mut newest_seen = if start.is_empty() { None } else { newest_of(view, bucket, &list.key_marker)? };
    let mut rows = walk.rows(view, state, start, &list.from)?;
    let mut page = ObjectPage::default();
    if limit == 0 {
        return Ok(page);
    }
    while let Some((raw, value)) = rows.cursor.next()? {
        let (key, found) = decode_version(&raw, value)?;
        if rows.cursor.visited > ROWS_VISITED_MAX {
            page.truncated = true;
            page.resume = key;
            return Ok(page);
        }
        if found.row.null_order != 0 {
            continue;
        }
        if is_full(&mut page, &walk) {
            return Ok(page);
        }
        if let Some(prefix) = walk.common_prefix(&key) {
            rows.cursor.seek(&walk.space.prefix_end(bucket, &prefix));
            page.next_after = prefix.clone();
            page.next_version = None;
            page.prefixes.push(prefix);
            continue;
        }
        let latest = match &newest_seen {
            Some((seen, order)) if *seen == key => *order == found.order,
            _ => true,
        };
        if latest {
            newest_seen = Some((key.clone(), found.order));
        }
        page.next_after = key.clone();
        page.next_version = Some(found.row.version.clone());
        page.objects.push(ObjectVersion { latest, ..entry_of(key, found.row) });
    }
    end_page(&mut page, rows.beyond);
    Ok(page)
}

/// The first row after the markers of a listing of versions.
fn versions_start(view: &dyn View, walk: &Walk<'_>, list: &ListVersions) -> Result<Bytes, Halt> {
    let key = &list.key_marker;
    if key.is_empty() {
        return Ok(Bytes::new());
    }
    let Some(version) = list.version_marker.as_ref().filter(|_| walk.common_prefix(key).is_none()) else {
        return Ok(walk.after(key));
    };
    // The order is part of the id, so a marker whose version has gone meanwhile still says where to go on.
    let order = if version == NULL_VERSION {
        named(view, walk.bucket, key, NULL_VERSION)?.map(|found| found.order)
    } else if version.len() == 16 {
        order_of_version(version)
    } else {
        return refuse(Reason::Invalid, "a version id marker has 16 bytes or is null");
    };
    Ok(match order.and_then(|order| order.checked_sub(1)) {
        Some(next) => Key::Version { bucket: walk.bucket, key: key.clone(), order: next }.encode(),
        None => walk.after(key),
    })
}

fn newest_of(view: &dyn View, bucket: BucketId, key: &Bytes) -> Result<Option<(Bytes, u64)>, ViewError> {
    let (from, to) = (Space::Versions.key_start(bucket, key), Space::Versions.key_end(bucket, key));
    let Some((raw, value)) = view.scan(&from, &to, 1)?.into_iter().next() else {
        return Ok(None);
    };
    let (key, Found { order, .. }) = decode_version(&raw, value)?;
    Ok(Some((key, order)))
}

/// Marks the page when there is a result and no room for it.
fn is_full(page: &mut ObjectPage, walk: &Walk<'_>) -> bool {
    page.truncated = page.objects.len() + page.prefixes.len() >= walk.limit;
    page.truncated
}

fn end_page(page: &mut ObjectPage, beyond: Option<Bytes>) {
    if let Some(key) = beyond {
        page.truncated = true;
        page.resume = key;
    }
}

/// What a listing says of a version: not where its bytes are.
fn entry_of(key: Bytes, row: ObjectVersion) -> ObjectVersion {
    let body = row.body.map(|body| Body { size: body.size, ..Body::default() });
    let attributes = row.attributes.map(|attributes| Attributes {
        etag: attributes.etag,
        checksums: attributes.checksums,
        pool: attributes.pool,
        ..Attributes::default()
    });
    ObjectVersion {
        key,
        version: row.version,
        delete_marker: row.delete_marker,
        modified_ms: row.modified_ms,
        body,
        attributes,
        ..ObjectVersion::default()
    }
}

/// A page of the uploads in progress, by key, then by upload id.
pub(super) fn list_uploads(
    view: &dyn View,
    group: GroupId,
    state: &GroupState,
    list: &ListUploads,
) -> Result<UploadPage, Halt> {
    let bucket = BucketId(list.bucket);
    check_bucket(view, group, bucket)?;
    let limit = page_limit(list.limit);
    let walk = Walk { space: Space::Uploads, bucket, prefix: &list.prefix, delimiter: &list.delimiter, limit };
    let start = uploads_start(&walk, list)?;
    let mut rows = walk.rows(view, state, start, &list.from)?;
    let mut page = UploadPage::default();
    if limit == 0 {
        return Ok(page);
    }
    while let Some((raw, value)) = rows.cursor.next()? {
        let Ok(Key::Upload { key, .. }) = Key::decode(&raw) else {
            return Err(ViewError::bad_row(&raw, "not the key of an upload").into());
        };
        if page.uploads.len() + page.prefixes.len() >= limit {
            page.truncated = true;
            return Ok(page);
        }
        if let Some(prefix) = walk.common_prefix(&key) {
            rows.cursor.seek(&walk.space.prefix_end(bucket, &prefix));
            page.next_key = prefix.clone();
            page.next_upload = Bytes::new();
            page.prefixes.push(prefix);
            continue;
        }
        let upload = decode_row::<Upload>(&raw, Some(value))?.unwrap_or_default();
        page.next_key = key.clone();
        page.next_upload = upload.upload.clone();
        page.uploads.push(Upload { key, ..upload });
    }
    if let Some(key) = rows.beyond {
        page.truncated = true;
        page.resume = key;
    }
    Ok(page)
}

fn uploads_start(walk: &Walk<'_>, list: &ListUploads) -> Result<Bytes, Halt> {
    let key = &list.key_marker;
    if key.is_empty() {
        return Ok(Bytes::new());
    }
    if list.upload_marker.is_empty() || walk.common_prefix(key).is_some() {
        return Ok(walk.after(key));
    }
    let upload = random_id(&list.upload_marker)?;
    Ok(match upload.checked_add(1) {
        Some(upload) => Key::Upload { bucket: walk.bucket, key: key.clone(), upload }.encode(),
        None => walk.after(key),
    })
}
