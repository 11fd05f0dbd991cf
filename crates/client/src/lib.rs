//! The one API that gateways speak: buckets, objects, uploads, access keys.
//!
//! Knows: how bytes are cut into chunks, where the map says they belong, how to fan out, verify and retry. Never
//! knows: local disks, gateways, outside protocols.
//!
//! The path of a PUT: [`Client::write`] -> `write.rs` (chunks) -> `copies.rs` (placement group, stores in parallel, the
//! rule of acknowledgement) -> [`ObjectWriter::finish`] -> `call.rs` (slot, leader, retries) -> the shard.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod buckets;
mod call;
mod clone;
mod copies;
mod error;
mod hedge;
mod keys;
mod map;
mod newest;
mod nodes;
mod objects;
mod peers;
mod pools;
mod read;
mod slots;
mod terms;
mod tombstones;
pub mod wire;
mod write;

pub use buckets::{BucketInfo, Configuration};
pub use call::{Client, ClientConfig};
pub use error::Error;
pub use map::{MapView, Member, Placement, disk_id};
/// The words of the object shard that gateways need.
pub use meta::map::command::{Acknowledgement, ConfigurationKind, KeyRow, PoolRow};
pub use meta::object::command::{
    Attributes, Body, Checksum, CreateUpload, Deleted, Header, NamedPart, ObjectPage, ObjectVersion, Part, PartPage,
    PartSize, Precondition, Retention, Upload, UploadPage, Versioning, Written,
};
pub use meta::object::fence::{FENCE_KEY_LEN_MAX, Fence, FencePolicy};
pub use meta::object::lifecycle::{FilterForm, LifecycleRule, LifecycleRules, Transition};
pub use meta::object::lock::{BucketLock, ObjectLock, RetentionMode};
pub use meta::object::usage::{Quota, Usage};
pub use nodes::{DiskInfo, NodeInfo, Removal};
pub use objects::{
    ChangeRequest, CompleteRequest, DeleteRequest, ListObjectsRequest, ListUploadsRequest, ListVersionsRequest,
};
pub use peers::NAMED_IDS_MAX;
pub use pools::{STANDARD, StorageClasses};
pub use read::ObjectReader;
pub use terms::{Reads, Staleness, Terms};
pub use write::{FinishPart, FinishPut, ObjectWriter};
