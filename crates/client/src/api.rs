//! What a gateway can ask for. (Skeleton: signatures are settled.)

use bytes::Bytes;
use std::ops::Range;

use crate::Error;
use meta::map::command::KeyRow;
use meta::object::command::{
    Attributes, Checksum, CreateUpload, Deleted, NamedPart, ObjectPage, ObjectVersion, Part, PartPage, Precondition, Upload,
    UploadPage, Versioning, Written,
};

/// A bucket as gateways see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketInfo {
    pub id: u64,
    pub name: String,
    /// Access key of the owner.
    pub owner: String,
    pub created_ms: u64,
    pub region: String,
    pub versioning: Versioning,
}

/// The cluster, seen from a gateway. Cheap to clone.
#[derive(Clone)]
pub struct Client {}

/// What `ObjectWriter::finish` commits besides the bytes.
#[derive(Clone, Debug, Default)]
pub struct FinishPut {
    pub attributes: Attributes,
    pub precondition: Option<Precondition>,
}

#[derive(Clone, Debug, Default)]
pub struct FinishPart {
    /// Upload id as in `Upload::upload`.
    pub upload: Bytes,
    /// 1..=10,000.
    pub number: u32,
    /// MD5 in hex.
    pub etag: String,
    pub checksums: Vec<Checksum>,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteRequest {
    /// 16 bytes or `null`; absent for a plain DELETE.
    pub version: Option<Bytes>,
    pub precondition: Option<Precondition>,
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

/// What a part of a copy is read from.
#[derive(Clone, Debug)]
pub struct PartSource {
    pub object: ObjectVersion,
    pub range: Range<u64>,
}

/// Bytes on their way into the cluster. Chunks are stored while bytes arrive; nothing is visible before `finish`.
/// Dropping the writer abandons what was stored (it becomes garbage).
pub struct ObjectWriter {}

/// Bytes on their way out: verified pieces, in order. After an error nothing more comes.
pub struct ObjectReader {}

impl Client {
    /// Creates a bucket owned by `owner`. `BucketExists` names the present owner.
    pub async fn create_bucket(&self, name: &str, owner: &str) -> Result<BucketInfo, Error> { let _ = (name, owner); unimplemented!() }
    pub async fn delete_bucket(&self, name: &str) -> Result<(), Error> { let _ = name; unimplemented!() }
    pub async fn bucket(&self, name: &str) -> Result<BucketInfo, Error> { let _ = name; unimplemented!() }
    /// Sorted by name.
    pub async fn list_buckets(&self) -> Result<Vec<BucketInfo>, Error> { unimplemented!() }
    pub async fn set_versioning(&self, name: &str, versioning: Versioning) -> Result<(), Error> { let _ = (name, versioning); unimplemented!() }

    /// Starts an object (or part) in `bucket`. `size_hint`: the expected number of bytes, if known.
    pub fn write(&self, bucket: &BucketInfo, key: Bytes, size_hint: Option<u64>) -> ObjectWriter { let _ = (bucket, key, size_hint); unimplemented!() }
    /// The newest version, or the named one (16 bytes or `null`).
    pub async fn head(&self, bucket: &BucketInfo, key: &Bytes, version: Option<Bytes>) -> Result<ObjectVersion, Error> { let _ = (bucket, key, version); unimplemented!() }
    /// Reads `range` (must lie within the body) of what `head` answered: never a mix of versions.
    pub fn read(&self, bucket: &BucketInfo, object: &ObjectVersion, range: Range<u64>) -> ObjectReader { let _ = (bucket, object, range); unimplemented!() }
    pub async fn delete(&self, bucket: &BucketInfo, key: &Bytes, request: DeleteRequest) -> Result<Deleted, Error> { let _ = (bucket, key, request); unimplemented!() }
    pub async fn list_objects(&self, bucket: &BucketInfo, request: ListObjectsRequest) -> Result<ObjectPage, Error> { let _ = (bucket, request); unimplemented!() }
    pub async fn list_versions(&self, bucket: &BucketInfo, request: ListVersionsRequest) -> Result<ObjectPage, Error> { let _ = (bucket, request); unimplemented!() }

    /// `upload.bucket`, `upload.upload` and `upload.created_ms` are filled in here. Answers the 16-byte upload id.
    pub async fn create_upload(&self, bucket: &BucketInfo, upload: CreateUpload) -> Result<Bytes, Error> { let _ = (bucket, upload); unimplemented!() }
    pub async fn upload(&self, bucket: &BucketInfo, key: &Bytes, upload: &Bytes) -> Result<Upload, Error> { let _ = (bucket, key, upload); unimplemented!() }
    /// Parts with a number greater than `after`. Also reads the parts of a completed object (`Body::upload`).
    pub async fn list_parts(&self, bucket: &BucketInfo, key: &Bytes, upload: &Bytes, after: u32, limit: u32) -> Result<PartPage, Error> { let _ = (bucket, key, upload, after, limit); unimplemented!() }
    pub async fn list_uploads(&self, bucket: &BucketInfo, request: ListUploadsRequest) -> Result<UploadPage, Error> { let _ = (bucket, request); unimplemented!() }
    #[allow(clippy::too_many_arguments)]
    pub async fn complete_upload(&self, bucket: &BucketInfo, key: &Bytes, upload: &Bytes, parts: Vec<NamedPart>, etag: String, checksums: Vec<Checksum>, size_expected: Option<u64>, precondition: Option<Precondition>) -> Result<Written, Error> { let _ = (bucket, key, upload, parts, etag, checksums, size_expected, precondition); unimplemented!() }
    pub async fn abort_upload(&self, bucket: &BucketInfo, key: &Bytes, upload: &Bytes) -> Result<(), Error> { let _ = (bucket, key, upload); unimplemented!() }

    /// The key row with its secret; from the cached map, refreshed when unknown.
    pub async fn access_key(&self, access_key: &str) -> Result<Option<KeyRow>, Error> { let _ = access_key; unimplemented!() }
    /// Makes an access key with random credentials.
    pub async fn create_access_key(&self, name: &str) -> Result<KeyRow, Error> { let _ = name; unimplemented!() }
    pub async fn delete_access_key(&self, name: &str) -> Result<(), Error> { let _ = name; unimplemented!() }
    pub async fn list_access_keys(&self) -> Result<Vec<KeyRow>, Error> { unimplemented!() }

    /// Wall-clock now in milliseconds (for date checks of gateways).
    pub fn wall_ms(&self) -> u64 { unimplemented!() }
    /// Random bytes from the node's generator.
    pub fn random_bytes(&self, out: &mut [u8]) { let _ = out; unimplemented!() }
    /// The cluster's region.
    pub fn region(&self) -> String { unimplemented!() }
}

impl ObjectWriter {
    /// Takes bytes; returns when there is room for more (backpressure).
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Error> { let _ = bytes; unimplemented!() }
    /// Bytes taken so far.
    pub fn size(&self) -> u64 { unimplemented!() }
    /// Waits until every chunk is durable, then commits the object. Call only when the whole body has arrived and its
    /// signature and checksums have verified.
    pub async fn finish(self, finish: FinishPut) -> Result<Written, Error> { let _ = finish; unimplemented!() }
    /// As `finish`, for a part of an upload.
    pub async fn finish_part(self, finish: FinishPart) -> Result<Part, Error> { let _ = finish; unimplemented!() }
}

impl ObjectReader {
    /// The next verified piece; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> { unimplemented!() }
}
