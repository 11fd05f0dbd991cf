//! What may be read from a shard. The caller has confirmed that the view is as fresh as it promises.

use base::ids::{BucketId, GroupId};

use super::PAGE_LIMIT_MAX;
use super::apply::{Halt, random_id, refuse};
use super::command::{
    Garbage, GarbagePage, GetObject, GetUpload, ListGarbage, ListParts, ObjectVersion, PartPage, Reason, Refused,
    ShardAnswer, ShardFound, ShardQuery, ShardRead, Upload, Versioning,
};
use super::list::{check_bucket, list_objects, list_uploads, list_versions};
use super::scan::Cursor;
use super::uploads::decode_part;
use super::versions::{NULL_VERSION, named, newest};
use crate::group::{self, GroupState, Install, decode_row, read_row};
use crate::keys::{self, Key};
use crate::view::{View, ViewError};

/// A page of parts or garbage rows ends when their chunk lists are this long together.
const PAGE_CHUNKS_BYTES: usize = 1 << 20;

/// Answers `query` from the rows of `group`.
pub fn query(view: &dyn View, group: GroupId, query: ShardQuery) -> Result<ShardAnswer, ViewError> {
    let state = group::load(view, group)?;
    if state.install() == Install::Incomplete {
        return Err(ViewError::Io(format!("the rows of group {group} are being replaced")));
    }
    let found = if query.range_epoch != 0 && query.range_epoch != state.range_epoch {
        refuse(Reason::WrongRange, "the range has another epoch")
    } else {
        read(view, group, &state, query.read)
    };
    let found = match found {
        Ok(found) => found,
        Err(Halt::Refused(reason, detail)) => ShardFound::Refused(Refused { reason: reason as i32, detail }),
        Err(Halt::View(error)) => return Err(error),
    };
    Ok(ShardAnswer { found: Some(found) })
}

fn read(view: &dyn View, group: GroupId, state: &GroupState, read: Option<ShardRead>) -> Result<ShardFound, Halt> {
    let Some(read) = read else {
        return refuse(Reason::Invalid, "an unknown query, perhaps of a newer version");
    };
    Ok(match read {
        ShardRead::GetObject(get) => ShardFound::Object(get_object(view, group, state, get)?),
        ShardRead::ListObjects(list) => ShardFound::Objects(list_objects(view, group, state, &list)?),
        ShardRead::ListVersions(list) => ShardFound::Versions(list_versions(view, group, state, &list)?),
        ShardRead::GetUpload(get) => ShardFound::Upload(get_upload(view, group, state, get)?),
        ShardRead::ListParts(list) => ShardFound::Parts(list_parts(view, group, state, list)?),
        ShardRead::ListUploads(list) => ShardFound::Uploads(list_uploads(view, group, state, &list)?),
        ShardRead::ListGarbage(list) => ShardFound::Garbage(list_garbage(view, group, list)?),
        ShardRead::GetUsage(bucket) => {
            let bucket = base::ids::BucketId(bucket.bucket);
            check_bucket(view, group, bucket)?;
            ShardFound::Usage(super::usage::usage(view, group, bucket)?.unwrap_or_default())
        }
    })
}

fn check_owned(state: &GroupState, bucket: u64, key: &[u8]) -> Result<BucketId, Halt> {
    if !state.owns(BucketId(bucket), key) {
        return refuse(Reason::WrongRange, "the key is not in this shard's range");
    }
    Ok(BucketId(bucket))
}

fn get_object(view: &dyn View, group: GroupId, state: &GroupState, get: GetObject) -> Result<ObjectVersion, Halt> {
    let bucket = check_owned(state, get.bucket, &get.key)?;
    let versioning = check_bucket(view, group, bucket)?;
    // Whatever else a later level calls it, it is not Off: a scan finds the newest version in every case.
    let versioning = Versioning::try_from(versioning).unwrap_or(Versioning::Enabled);
    let newest = newest(view, bucket, &get.key, versioning)?;
    let newest_order = newest.as_ref().map(|found| found.order);
    let found = match &get.version {
        None => newest,
        Some(id) if id == NULL_VERSION || id.len() == 16 => named(view, bucket, &get.key, id)?,
        Some(_) => return refuse(Reason::Invalid, "a version id has 16 bytes or is null"),
    };
    let Some(found) = found else {
        let reason = if get.version.is_some() { Reason::NoSuchVersion } else { Reason::NoSuchKey };
        return refuse(reason, "");
    };
    if found.row.delete_marker {
        return refuse(Reason::DeleteMarker, version_text(&found.row.version));
    }
    Ok(ObjectVersion { key: get.key, latest: newest_order == Some(found.order), ..found.row })
}

/// A version id for people: `null`, or hex.
pub(super) fn version_text(id: &[u8]) -> String {
    if id == NULL_VERSION {
        return "null".to_owned();
    }
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn get_upload(view: &dyn View, group: GroupId, state: &GroupState, get: GetUpload) -> Result<Upload, Halt> {
    let bucket = check_owned(state, get.bucket, &get.key)?;
    check_bucket(view, group, bucket)?;
    let upload = random_id(&get.upload)?;
    match read_row::<Upload>(view, &Key::Upload { bucket, key: get.key.clone(), upload })? {
        Some(row) => Ok(Upload { key: get.key, ..row }),
        None => refuse(Reason::NoSuchUpload, format!("{upload:032x}")),
    }
}

fn list_parts(view: &dyn View, group: GroupId, state: &GroupState, list: ListParts) -> Result<PartPage, Halt> {
    let bucket = check_owned(state, list.bucket, &list.key)?;
    check_bucket(view, group, bucket)?;
    let upload = random_id(&list.upload)?;
    let after = u16::try_from(list.after).unwrap_or(u16::MAX);
    let (from, to) = keys::part_rows(bucket, &list.key, upload, after);
    let limit = list.limit.min(PAGE_LIMIT_MAX) as usize;
    let mut cursor = Cursor::new(view, from, to);
    let mut page = PartPage::default();
    let mut bytes = 0;
    while limit > 0
        && let Some((raw, value)) = cursor.next()?
    {
        if page.parts.len() >= limit || bytes >= PAGE_CHUNKS_BYTES {
            page.truncated = true;
            break;
        }
        bytes += value.len();
        page.parts.push(decode_part(&raw, value)?.1);
    }
    if page.parts.is_empty() && !upload_exists(view, bucket, &list, upload)? {
        return refuse(Reason::NoSuchUpload, format!("{upload:032x}"));
    }
    Ok(page)
}

/// In progress, or completed and still the body of a version.
fn upload_exists(view: &dyn View, bucket: BucketId, list: &ListParts, upload: u128) -> Result<bool, ViewError> {
    let open = Key::Upload { bucket, key: list.key.clone(), upload }.encode();
    let completed = Key::Completed { bucket, key: list.key.clone(), upload }.encode();
    Ok(view.get(&open)?.is_some() || view.get(&completed)?.is_some())
}

fn list_garbage(view: &dyn View, group: GroupId, list: ListGarbage) -> Result<GarbagePage, Halt> {
    let limit = list.limit.min(PAGE_LIMIT_MAX) as usize;
    let (from, to) = keys::garbage_rows(group, Some(list.after));
    let mut cursor = Cursor::new(view, from, to);
    let mut page = GarbagePage::default();
    let mut bytes = 0;
    while limit > 0
        && let Some((raw, value)) = cursor.next()?
    {
        if page.rows.len() >= limit || bytes >= PAGE_CHUNKS_BYTES {
            page.truncated = true;
            break;
        }
        let Ok(Key::Garbage { sequence, .. }) = Key::decode(&raw) else {
            return Err(ViewError::bad_row(&raw, "not the key of a garbage row").into());
        };
        bytes += value.len();
        let row = decode_row::<Garbage>(&raw, Some(value))?.unwrap_or_default();
        page.rows.push(Garbage { sequence, ..row });
    }
    Ok(page)
}
