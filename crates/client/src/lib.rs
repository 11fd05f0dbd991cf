//! The one API that gateways speak: buckets, objects, uploads, access keys.
//!
//! Knows: how bytes are cut into chunks, where the map says they belong, how to fan out, verify and retry. Never
//! knows: local disks, gateways, outside protocols.

mod api;
mod error;

pub use api::{
    BucketInfo, Client, DeleteRequest, FinishPart, FinishPut, ListObjectsRequest, ListUploadsRequest,
    ListVersionsRequest, ObjectReader, ObjectWriter, PartSource,
};
pub use error::Error;
/// The words of the object shard that gateways need.
pub use meta::object::command::{
    Attributes, Body, Checksum, CreateUpload, Deleted, Header, NamedPart, ObjectPage, ObjectVersion, Part, PartPage,
    PartSize, Precondition, Upload, UploadPage, Versioning, Written,
};
pub use meta::map::command::KeyRow;
