//! Objects and uploads by their metadata: what is asked of the shard that owns the key.

use base::env::RandomExt;
use base::ids::{BucketId, GroupId};
use bytes::Bytes;
use meta::object::command::{
    AbortUpload, ChangeVersion, Checksum, CompleteUpload, CreateUpload, DeleteObject, Deleted, GetObject, GetUpload,
    Header, ListObjects, ListParts, ListUploads, ListVersions, NamedPart, ObjectPage, ObjectVersion, PartPage,
    Precondition, Retention, ShardCommand, ShardEntry, ShardFound, ShardOutcome, ShardRead, Tags, Upload, UploadPage,
    Written,
};

use crate::buckets::BucketInfo;
use crate::call::{Client, Life};
use crate::error::Error;
use crate::terms::{Reads, Terms};

#[derive(Clone, Debug, Default)]
pub struct DeleteRequest {
    /// 16 bytes or `null`; absent for a plain DELETE.
    pub version: Option<Bytes>,
    pub precondition: Option<Precondition>,
    /// The caller may bypass a governance retention, and asks to.
    pub bypass_governance: bool,
}

/// What is `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct ChangeRequest {
    /// 16 bytes or `null`; absent for the newest version.
    pub version: Option<Bytes>,
    pub tags: Option<Vec<Header>>,
    pub acl: Option<String>,
    pub retention: Option<Retention>,
    pub legal_hold: Option<bool>,
    /// As in [`DeleteRequest`].
    pub bypass_governance: bool,
}

#[derive(Clone, Debug, Default)]
pub struct ListObjectsRequest {
    pub prefix: Bytes,
    pub delimiter: Bytes,
    /// Only keys and common prefixes greater than this.
    pub after: Bytes,
    pub limit: u32,
}

#[derive(Clone, Debug, Default)]
pub struct ListVersionsRequest {
    pub prefix: Bytes,
    pub delimiter: Bytes,
    pub key_marker: Bytes,
    pub version_marker: Option<Bytes>,
    pub limit: u32,
}

#[derive(Clone, Debug, Default)]
pub struct ListUploadsRequest {
    pub prefix: Bytes,
    pub delimiter: Bytes,
    pub key_marker: Bytes,
    pub upload_marker: Bytes,
    pub limit: u32,
}

/// What CompleteMultipartUpload names.
#[derive(Clone, Debug, Default)]
pub struct CompleteRequest {
    pub parts: Vec<NamedPart>,
    /// MD5 of the parts' MD5s, in hex, with `-N`.
    pub etag: String,
    pub checksums: Vec<Checksum>,
    pub size_expected: Option<u64>,
    pub precondition: Option<Precondition>,
}

impl Client {
    /// The newest version, or the named one (16 bytes or `null`).
    pub async fn head(&self, bucket: &BucketInfo, key: &Bytes, version: Option<Bytes>) -> Result<ObjectVersion, Error> {
        let read = GetObject { bucket: bucket.id, key: key.clone(), version };
        match self.read_key(bucket, key, ShardRead::GetObject(read)).await? {
            ShardFound::Object(object) => Ok(object),
            _ => Err(mixed_up()),
        }
    }

    pub async fn delete(&self, bucket: &BucketInfo, key: &Bytes, request: DeleteRequest) -> Result<Deleted, Error> {
        let command = DeleteObject {
            bucket: bucket.id,
            key: key.clone(),
            version: request.version,
            precondition: request.precondition,
            modified_ms: self.wall_ms(),
            marker_id: self.random_id(),
            bypass_governance: request.bypass_governance,
        };
        match self.change_key(bucket, key, ShardCommand::DeleteObject(command)).await? {
            ShardOutcome::Deleted(deleted) => Ok(deleted),
            _ => Err(mixed_up()),
        }
    }

    /// Changes what a version says of itself. Answers what was changed; its version is empty in a bucket without versions.
    pub async fn change_version(
        &self,
        bucket: &BucketInfo,
        key: &Bytes,
        request: ChangeRequest,
    ) -> Result<Written, Error> {
        let command = ChangeVersion {
            bucket: bucket.id,
            key: key.clone(),
            version: request.version,
            tags: request.tags.map(|tags| Tags { tags }),
            acl: request.acl,
            retention: request.retention,
            legal_hold: request.legal_hold,
            bypass_governance: request.bypass_governance,
            now_ms: self.wall_ms(),
        };
        match self.change_key(bucket, key, ShardCommand::ChangeVersion(command)).await? {
            ShardOutcome::Written(written) => Ok(written),
            _ => Err(mixed_up()),
        }
    }

    pub async fn list_objects(&self, bucket: &BucketInfo, request: ListObjectsRequest) -> Result<ObjectPage, Error> {
        let mut read = ListObjects {
            bucket: bucket.id,
            prefix: request.prefix,
            delimiter: request.delimiter,
            after: request.after,
            limit: request.limit,
            ..ListObjects::default()
        };
        loop {
            match self.read_key(bucket, b"", ShardRead::ListObjects(read.clone())).await? {
                // The shard looked at as much as it does at once and found nothing to show yet.
                ShardFound::Objects(page) if is_step(&page) => read.from = page.resume,
                ShardFound::Objects(page) => return Ok(page),
                _ => return Err(mixed_up()),
            }
        }
    }

    pub async fn list_versions(&self, bucket: &BucketInfo, request: ListVersionsRequest) -> Result<ObjectPage, Error> {
        let mut read = ListVersions {
            bucket: bucket.id,
            prefix: request.prefix,
            delimiter: request.delimiter,
            key_marker: request.key_marker,
            version_marker: request.version_marker,
            limit: request.limit,
            ..ListVersions::default()
        };
        loop {
            match self.read_key(bucket, b"", ShardRead::ListVersions(read.clone())).await? {
                ShardFound::Versions(page) if is_step(&page) => read.from = page.resume,
                ShardFound::Versions(page) => return Ok(page),
                _ => return Err(mixed_up()),
            }
        }
    }

    /// `upload.bucket`, `upload.upload` and `upload.created_ms` are filled in here. Answers the 16-byte upload id.
    pub async fn create_upload(&self, bucket: &BucketInfo, mut upload: CreateUpload) -> Result<Bytes, Error> {
        let id = self.random_id();
        upload.bucket = bucket.id;
        upload.upload = id.clone();
        upload.created_ms = self.wall_ms();
        let key = upload.key.clone();
        self.change_key(bucket, &key, ShardCommand::CreateUpload(upload)).await?;
        Ok(id)
    }

    pub async fn upload(&self, bucket: &BucketInfo, key: &Bytes, upload: &Bytes) -> Result<Upload, Error> {
        let read = GetUpload { bucket: bucket.id, key: key.clone(), upload: upload.clone() };
        match self.read_key(bucket, key, ShardRead::GetUpload(read)).await? {
            ShardFound::Upload(upload) => Ok(upload),
            _ => Err(mixed_up()),
        }
    }

    /// Parts with a number greater than `after`. Also reads the parts of a completed object (`Body::upload`). Always
    /// strong: an older row of a part does not belong to the object's row that another replica has shown.
    pub async fn list_parts(
        &self,
        bucket: &BucketInfo,
        key: &Bytes,
        upload: &Bytes,
        after: u32,
        limit: u32,
    ) -> Result<PartPage, Error> {
        let read = ListParts { bucket: bucket.id, key: key.clone(), upload: upload.clone(), after, limit };
        let strong = bucket.clone().under(Terms::default());
        match self.read_key(&strong, key, ShardRead::ListParts(read)).await? {
            ShardFound::Parts(page) => Ok(page),
            _ => Err(mixed_up()),
        }
    }

    pub async fn list_uploads(&self, bucket: &BucketInfo, request: ListUploadsRequest) -> Result<UploadPage, Error> {
        let mut read = ListUploads {
            bucket: bucket.id,
            prefix: request.prefix,
            delimiter: request.delimiter,
            key_marker: request.key_marker,
            upload_marker: request.upload_marker,
            limit: request.limit,
            ..ListUploads::default()
        };
        loop {
            match self.read_key(bucket, b"", ShardRead::ListUploads(read.clone())).await? {
                ShardFound::Uploads(page)
                    if page.uploads.is_empty() && page.prefixes.is_empty() && !page.resume.is_empty() =>
                {
                    read.from = page.resume;
                }
                ShardFound::Uploads(page) => return Ok(page),
                _ => return Err(mixed_up()),
            }
        }
    }

    /// Checked, decided and made visible in one command.
    pub async fn complete_upload(
        &self,
        bucket: &BucketInfo,
        key: &Bytes,
        upload: &Bytes,
        request: CompleteRequest,
    ) -> Result<Written, Error> {
        let command = CompleteUpload {
            bucket: bucket.id,
            key: key.clone(),
            upload: upload.clone(),
            parts: request.parts,
            precondition: request.precondition,
            checksums: request.checksums,
            modified_ms: self.wall_ms(),
            version_id: self.random_id(),
            etag: request.etag,
            size_expected: request.size_expected,
        };
        match self.change_key(bucket, key, ShardCommand::CompleteUpload(command)).await? {
            ShardOutcome::Written(written) => Ok(written),
            _ => Err(mixed_up()),
        }
    }

    pub async fn abort_upload(&self, bucket: &BucketInfo, key: &Bytes, upload: &Bytes) -> Result<(), Error> {
        let command = AbortUpload { bucket: bucket.id, key: key.clone(), upload: upload.clone() };
        self.change_key(bucket, key, ShardCommand::AbortUpload(command)).await.map(|_| ())
    }

    pub(crate) async fn change_key(
        &self,
        bucket: &BucketInfo,
        key: &[u8],
        command: ShardCommand,
    ) -> Result<ShardOutcome, Error> {
        self.change_key_in(&self.life(), bucket, key, command).await
    }

    pub(crate) async fn change_key_in(
        &self,
        life: &Life,
        bucket: &BucketInfo,
        key: &[u8],
        command: ShardCommand,
    ) -> Result<ShardOutcome, Error> {
        let (group, epoch) = self.shard_of(bucket, key).await?;
        let fence = bucket.terms.fence.clone();
        let entry = ShardEntry { slot: None, range_epoch: epoch, fence, command: Some(command) };
        let acknowledgement = self.acknowledgement(&self.map(), bucket);
        self.change_shard_in(life, group, entry, acknowledgement).await
    }

    async fn read_key(&self, bucket: &BucketInfo, key: &[u8], read: ShardRead) -> Result<ShardFound, Error> {
        match &bucket.terms.reads {
            Reads::Strong => {
                let (group, epoch) = self.shard_of(bucket, key).await?;
                self.query_shard(group, epoch, read).await
            }
            Reads::Eventual(staleness) => {
                let (group, epoch) = self.shard_of(bucket, key).await?;
                self.query_any(group, epoch, read, staleness).await
            }
        }
    }

    /// The shard that owns a key. (One shard holds everything until ranges split; listings then go from range to range.)
    async fn shard_of(&self, bucket: &BucketInfo, key: &[u8]) -> Result<(GroupId, u64), Error> {
        let id = BucketId(bucket.id);
        if let Some(row) = self.map().shard(id, key) {
            return Ok((GroupId(row.group), row.range_epoch));
        }
        let map = self.refresh_map().await?;
        let row = map.shard(id, key).ok_or_else(|| Error::Unavailable("the map names no shard for this key".into()))?;
        Ok((GroupId(row.group), row.range_epoch))
    }

    /// 16 random bytes: a version or upload id.
    pub(crate) fn random_id(&self) -> Bytes {
        let mut id = [0; 16];
        self.shared.env.random.fill(&mut id);
        Bytes::copy_from_slice(&id)
    }
}

pub(crate) fn mixed_up() -> Error {
    Error::OutcomeUnknown("the shard answered another question".into())
}

/// A page without anything to show that says where to go on.
fn is_step(page: &ObjectPage) -> bool {
    page.objects.is_empty() && page.prefixes.is_empty() && !page.resume.is_empty()
}
