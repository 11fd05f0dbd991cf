//! Multipart uploads. Parts have rows of their own, which stay when the upload is completed: the object's body names
//! them, so that completing costs a pass over the parts and copies no chunk list.

use base::ids::BucketId;
use base::plant::{self, Plant};
use bytes::Bytes;
use prost::Message;

use super::apply::{Halt, Step, check_attributes, check_etag, done, random_id, refuse};
use super::command::{
    AbortUpload, Body, Checksum, CompleteUpload, CreateUpload, NamedPart, ObjectVersion, Part, PartSize, PutPart,
    Reason, ShardOutcome, Upload, Written,
};
use super::versions::lock_of_new;
use super::{ATTRIBUTES_LEN_MAX, OBJECT_SIZE_MAX, PART_NUMBER_MAX, PART_SIZE_MIN};
use crate::group::{decode_row, read_row};
use crate::keys::{self, Key};
use crate::view::ViewError;

/// Rows of one read while walking over the parts of an upload.
const PARTS_BATCH: usize = 256;

/// What a completed upload became. Makes completing it again answer the same; goes with the object's parts.
#[derive(Clone, PartialEq, prost::Message)]
struct CompletedRow {
    #[prost(uint64, tag = "1")]
    order: u64,
}

impl Step<'_> {
    pub fn create_upload(&mut self, create: CreateUpload) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(create.bucket);
        self.check_key(bucket, &create.key)?;
        let (settings, _) = self.open_bucket(bucket)?;
        let upload = random_id(&create.upload)?;
        let attributes = create.attributes.unwrap_or_default();
        lock_of_new(&settings, attributes.lock, create.created_ms)?;
        check_attributes(&attributes)?;
        if create.checksum_algorithm.len() + create.checksum_type.len() + create.owner.len() > ATTRIBUTES_LEN_MAX {
            return refuse(Reason::Invalid, "the upload's attributes are too long");
        }
        if self.is_upload_id_used(bucket, &create.key, upload)? {
            return refuse(Reason::Invalid, "the upload id is in use");
        }
        let row = Upload {
            key: Bytes::new(),
            upload: create.upload,
            created_ms: create.created_ms,
            attributes: Some(attributes),
            checksum_algorithm: create.checksum_algorithm,
            checksum_type: create.checksum_type,
            owner: create.owner,
        };
        let key = Key::Upload { bucket, key: create.key, upload }.encode();
        self.changes.put(key, Bytes::from(row.encode_to_vec()));
        Ok(done())
    }

    pub fn put_part(&mut self, put: PutPart) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(put.bucket);
        self.check_key(bucket, &put.key)?;
        self.writable_bucket(bucket)?;
        let upload = random_id(&put.upload)?;
        let body = self.check_body(put.body)?;
        let number = part_number(put.number)?;
        self.open_upload(bucket, &put.key, upload)?;
        let key = Key::Part { bucket, key: put.key, upload, number };
        if let Some(replaced) = read_row::<Part>(self.view, &key)? {
            self.dropped.body(bucket, replaced.body.as_ref());
        }
        let written =
            Written { version: Bytes::new(), etag: put.etag.clone(), modified_ms: put.modified_ms, size: body.size };
        let row = Part {
            number: put.number,
            body: Some(body),
            etag: put.etag,
            checksums: put.checksums,
            modified_ms: put.modified_ms,
        };
        check_etag(&row.etag)?;
        if row.checksums.iter().map(Message::encoded_len).sum::<usize>() > ATTRIBUTES_LEN_MAX {
            return refuse(Reason::Invalid, "the part's attributes are too long");
        }
        self.changes.put(key.encode(), Bytes::from(row.encode_to_vec()));
        Ok(ShardOutcome::Written(written))
    }

    pub fn complete_upload(&mut self, complete: CompleteUpload) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(complete.bucket);
        self.check_key(bucket, &complete.key)?;
        let (settings, versioning) = self.open_bucket(bucket)?;
        let upload = random_id(&complete.upload)?;
        if let Some(written) = self.completed_before(bucket, &complete, upload)? {
            return Ok(ShardOutcome::Written(written));
        }
        let created = self.open_upload(bucket, &complete.key, upload)?;
        check_named_parts(&complete.parts)?;
        self.check_write_condition(bucket, &complete.key, versioning, complete.precondition.as_ref())?;
        let parts = self.take_parts(bucket, &complete.key, upload, &complete.parts)?;
        let size = total_size(&parts, complete.size_expected)?;
        let mut attributes = created.attributes.unwrap_or_default();
        attributes.etag = complete.etag.clone();
        attributes.checksums = complete.checksums;
        attributes.lock = lock_of_new(&settings, attributes.lock, complete.modified_ms)?;
        check_attributes(&attributes)?;

        let row = ObjectVersion {
            modified_ms: complete.modified_ms,
            body: Some(Body { size, upload: complete.upload.clone(), parts, ..Body::default() }),
            attributes: Some(attributes),
            from_upload: complete.upload,
            ..ObjectVersion::default()
        };
        let (order, version) = self.write_version(bucket, &complete.key, versioning, row, &complete.version_id)?;
        if !plant::is(Plant::KeepUpload) {
            self.changes.delete(Key::Upload { bucket, key: complete.key.clone(), upload }.encode());
        }
        let completed = Key::Completed { bucket, key: complete.key, upload }.encode();
        self.changes.put(completed, Bytes::from(CompletedRow { order }.encode_to_vec()));
        self.settle_usage(bucket, &settings)?;
        Ok(ShardOutcome::Written(Written { version, etag: complete.etag, modified_ms: complete.modified_ms, size }))
    }

    pub fn abort_upload(&mut self, abort: AbortUpload) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(abort.bucket);
        self.check_key(bucket, &abort.key)?;
        self.writable_bucket(bucket)?;
        let upload = random_id(&abort.upload)?;
        self.open_upload(bucket, &abort.key, upload)?;
        self.changes.delete(Key::Upload { bucket, key: abort.key.clone(), upload }.encode());
        self.drop_parts(bucket, &abort.key, upload)?;
        Ok(done())
    }

    /// Removes the rows of all parts of an upload, and drops their chunks. Answers how many there were.
    pub fn drop_parts(&mut self, bucket: BucketId, key: &Bytes, upload: u128) -> Result<usize, Halt> {
        let mut after = 0;
        let mut count = 0;
        // Ends after at most PART_NUMBER_MAX rows.
        loop {
            let rows = self.part_batch(bucket, key, upload, after)?;
            let is_last = rows.len() < PARTS_BATCH;
            count += rows.len();
            for (number, raw, part) in rows {
                after = number;
                self.dropped.body(bucket, part.body.as_ref());
                self.changes.delete(raw);
            }
            if is_last {
                break;
            }
        }
        self.changes.delete(Key::Completed { bucket, key: key.clone(), upload }.encode());
        Ok(count)
    }

    fn is_upload_id_used(&self, bucket: BucketId, key: &Bytes, upload: u128) -> Result<bool, Halt> {
        let row = Key::Upload { bucket, key: key.clone(), upload }.encode();
        let completed = Key::Completed { bucket, key: key.clone(), upload }.encode();
        Ok(self.view.get(&row)?.is_some() || self.view.get(&completed)?.is_some())
    }

    /// The row of an upload in progress.
    fn open_upload(&self, bucket: BucketId, key: &Bytes, upload: u128) -> Result<Upload, Halt> {
        match read_row::<Upload>(self.view, &Key::Upload { bucket, key: key.clone(), upload })? {
            Some(row) => Ok(row),
            None => refuse(Reason::NoSuchUpload, format!("{upload:032x}")),
        }
    }

    /// The answer that the same command got before, while the version that it made exists.
    fn completed_before(
        &self,
        bucket: BucketId,
        complete: &CompleteUpload,
        upload: u128,
    ) -> Result<Option<Written>, Halt> {
        let key = complete.key.clone();
        let Some(completed) =
            read_row::<CompletedRow>(self.view, &Key::Completed { bucket, key: key.clone(), upload })?
        else {
            return Ok(None);
        };
        let row = read_row::<ObjectVersion>(self.view, &Key::Version { bucket, key, order: completed.order })?;
        let Some(row) = row.filter(|row| row.from_upload == complete.upload) else {
            return Ok(None);
        };
        let etag = row.attributes.unwrap_or_default().etag;
        if etag != complete.etag {
            return Ok(None);
        }
        // A bucket that was never versioned keeps its objects at order 0 and answers no version id; an object that was
        // written there before versioning was switched on answers as it did then.
        let version = if completed.order == 0 { Bytes::new() } else { row.version };
        let size = row.body.map_or(0, |body| body.size);
        Ok(Some(Written { version, etag, modified_ms: row.modified_ms, size }))
    }

    /// Checks the named parts against their rows; drops the parts that are not named. Answers the sizes in order.
    fn take_parts(
        &mut self,
        bucket: BucketId,
        key: &Bytes,
        upload: u128,
        named: &[NamedPart],
    ) -> Result<Vec<PartSize>, Halt> {
        let mut wanted = named.iter().peekable();
        let mut sizes = Vec::with_capacity(named.len());
        let mut after = 0;
        // Ends after at most PART_NUMBER_MAX rows.
        loop {
            let rows = self.part_batch(bucket, key, upload, after)?;
            let is_last = rows.len() < PARTS_BATCH;
            for (number, raw, part) in rows {
                after = number;
                if let Some(missing) = wanted.peek().filter(|next| next.number < u32::from(number)) {
                    return refuse(Reason::InvalidPart, missing.number.to_string());
                }
                let Some(next) = wanted.next_if(|next| next.number == u32::from(number)) else {
                    self.dropped.body(bucket, part.body.as_ref());
                    self.changes.delete(raw);
                    continue;
                };
                check_part(next, &part)?;
                let size = part.body.map_or(0, |body| body.size);
                if size < PART_SIZE_MIN && wanted.peek().is_some() {
                    return refuse(Reason::EntityTooSmall, next.number.to_string());
                }
                sizes.push(PartSize { number: next.number, size });
            }
            if is_last {
                break;
            }
        }
        match wanted.next() {
            Some(missing) => refuse(Reason::InvalidPart, missing.number.to_string()),
            None => Ok(sizes),
        }
    }

    fn part_batch(
        &self,
        bucket: BucketId,
        key: &Bytes,
        upload: u128,
        after: u16,
    ) -> Result<Vec<(u16, Bytes, Part)>, ViewError> {
        let (from, to) = keys::part_rows(bucket, key, upload, after);
        let rows = self.view.scan(&from, &to, PARTS_BATCH)?;
        rows.into_iter()
            .map(|(raw, value)| decode_part(&raw, value).map(|(number, part)| (number, raw, part)))
            .collect()
    }
}

/// Reads the row of a part: its number and the part.
pub(super) fn decode_part(raw: &Bytes, value: Bytes) -> Result<(u16, Part), ViewError> {
    let Ok(Key::Part { number, .. }) = Key::decode(raw) else {
        return Err(ViewError::bad_row(raw, "not the key of a part"));
    };
    Ok((number, decode_row::<Part>(raw, Some(value))?.unwrap_or_default()))
}

pub(super) fn part_number(number: u32) -> Result<u16, Halt> {
    match u16::try_from(number) {
        Ok(small) if (1..=PART_NUMBER_MAX).contains(&number) => Ok(small),
        _ => refuse(Reason::Invalid, format!("part number {number} is not in 1..={PART_NUMBER_MAX}")),
    }
}

fn check_named_parts(parts: &[NamedPart]) -> Result<(), Halt> {
    if parts.is_empty() {
        return refuse(Reason::Invalid, "an object is made of at least one part");
    }
    if parts.len() > PART_NUMBER_MAX as usize {
        return refuse(Reason::Invalid, format!("more than {PART_NUMBER_MAX} parts"));
    }
    if let Some(pair) = parts.windows(2).find(|pair| pair[0].number >= pair[1].number) {
        return refuse(Reason::InvalidPartOrder, pair[1].number.to_string());
    }
    Ok(())
}

/// The ETag and each given checksum must be the part's own.
fn check_part(named: &NamedPart, part: &Part) -> Result<(), Halt> {
    let is_kept = |given: &Checksum| {
        part.checksums.iter().any(|kept| kept.algorithm == given.algorithm && kept.value == given.value)
    };
    if named.etag == part.etag && named.checksums.iter().all(is_kept) {
        return Ok(());
    }
    refuse(Reason::InvalidPart, named.number.to_string())
}

fn total_size(parts: &[PartSize], expected: Option<u64>) -> Result<u64, Halt> {
    let Some(size) = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.size)) else {
        return refuse(Reason::Invalid, "the parts are larger than any object");
    };
    match expected {
        Some(expected) if expected != size => {
            refuse(Reason::Invalid, format!("the parts have {size} bytes, not the {expected} expected"))
        }
        _ if size > OBJECT_SIZE_MAX => refuse(Reason::EntityTooLarge, size.to_string()),
        _ => Ok(size),
    }
}
