//! The operations, each a function of the gateway and an admitted request.

mod acl;
mod bucket;
pub mod copy;
mod cors;
mod delete;
mod lifecycle;
mod list;
mod lock;
mod multipart;
pub mod object;
mod policy;
mod post;
mod storage_class;
mod tagging;

use crate::authorize::Policies;
use crate::error::Result;
use crate::operation::Operation;
use crate::payload::Payload;
use crate::request::{Reply, Request};
use crate::xml::Writer;
use bytes::Bytes;
use client::{BucketInfo, Client, ObjectWriter, Versioning};

/// What every operation works with.
pub struct Gateway {
    pub client: Client,
    pub region: String,
    pub policies: Policies,
}

impl Gateway {
    /// Starts what a request writes. The request's place among those that run is kept until none of it is in memory.
    fn writer(&self, request: &Request, bucket: &BucketInfo, key: Bytes, size_hint: Option<u64>) -> ObjectWriter {
        let mut writer = self.client.write(bucket, key, size_hint);
        if let Some(place) = request.place.clone() {
            writer.hold(place);
        }
        writer
    }
}

/// Carries out a request.
pub async fn run(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    match request.operation {
        Operation::ListBuckets => bucket::list(gateway, request).await,
        Operation::CreateBucket => bucket::create(gateway, request, payload).await,
        Operation::DeleteBucket => bucket::delete(gateway, request).await,
        Operation::HeadBucket => bucket::head(gateway, request).await,
        Operation::GetBucketLocation => bucket::location(gateway, request).await,
        Operation::GetBucketVersioning => bucket::versioning(gateway, request).await,
        Operation::PutBucketVersioning => bucket::set_versioning(gateway, request, payload).await,
        Operation::GetBucketAcl => acl::get_of_bucket(gateway, request).await,
        Operation::PutBucketAcl => acl::put_of_bucket(gateway, request, payload).await,
        Operation::GetObjectAcl => acl::get_of_object(gateway, request).await,
        Operation::PutObjectAcl => acl::put_of_object(gateway, request, payload).await,
        Operation::GetBucketPolicy => policy::get(gateway, request).await,
        Operation::PutBucketPolicy => policy::put(gateway, request, payload).await,
        Operation::DeleteBucketPolicy => policy::delete(gateway, request).await,
        Operation::GetBucketPolicyStatus => policy::status(gateway, request).await,
        Operation::GetPublicAccessBlock => policy::get_block(gateway, request).await,
        Operation::PutPublicAccessBlock => policy::put_block(gateway, request, payload).await,
        Operation::DeletePublicAccessBlock => policy::delete_block(gateway, request).await,
        Operation::GetBucketLifecycle => lifecycle::get(gateway, request).await,
        Operation::PutBucketLifecycle => lifecycle::put(gateway, request, payload).await,
        Operation::DeleteBucketLifecycle => lifecycle::delete(gateway, request).await,
        Operation::GetObjectLockConfiguration => lock::get_of_bucket(gateway, request).await,
        Operation::PutObjectLockConfiguration => lock::put_of_bucket(gateway, request, payload).await,
        Operation::GetObjectRetention => lock::get_retention(gateway, request).await,
        Operation::PutObjectRetention => lock::put_retention(gateway, request, payload).await,
        Operation::GetObjectLegalHold => lock::get_hold(gateway, request).await,
        Operation::PutObjectLegalHold => lock::put_hold(gateway, request, payload).await,
        Operation::GetBucketCors => cors::get(gateway, request).await,
        Operation::PutBucketCors => cors::put(gateway, request, payload).await,
        Operation::DeleteBucketCors => cors::delete(gateway, request).await,
        Operation::GetBucketTagging => tagging::get_of_bucket(gateway, request).await,
        Operation::PutBucketTagging => tagging::put_of_bucket(gateway, request, payload).await,
        Operation::DeleteBucketTagging => tagging::delete_of_bucket(gateway, request).await,
        Operation::GetBucketOwnershipControls => acl::get_ownership(gateway, request).await,
        Operation::PutBucketOwnershipControls => acl::put_ownership(gateway, request, payload).await,
        Operation::DeleteBucketOwnershipControls => acl::delete_ownership(gateway, request).await,
        Operation::AbsentSetting(code) => bucket::absent_setting(gateway, request, code).await,
        Operation::EmptySetting(root) => bucket::empty_setting(gateway, request, root).await,
        Operation::DeleteAbsentSetting => bucket::delete_absent_setting(gateway, request).await,
        Operation::ListObjects => list::objects(gateway, request).await,
        Operation::ListObjectsV2 => list::objects_v2(gateway, request).await,
        Operation::ListObjectVersions => list::versions(gateway, request).await,
        Operation::ListMultipartUploads => list::uploads(gateway, request).await,
        Operation::ListParts => list::parts(gateway, request).await,
        Operation::PutObject => object::put(gateway, request, payload).await,
        Operation::PostObject => post::object(gateway, request, payload).await,
        Operation::GetObject => object::get(gateway, request).await,
        Operation::HeadObject => object::head(gateway, request).await,
        Operation::GetObjectTagging => tagging::get(gateway, request).await,
        Operation::PutObjectTagging => tagging::put(gateway, request, payload).await,
        Operation::DeleteObjectTagging => tagging::delete(gateway, request).await,
        Operation::GetObjectAttributes => object::attributes(gateway, request).await,
        Operation::CopyObject => copy::object(gateway, request).await,
        Operation::UploadPartCopy => copy::part(gateway, request).await,
        Operation::DeleteObject => delete::object(gateway, request).await,
        Operation::DeleteObjects => delete::objects(gateway, request, payload).await,
        Operation::CreateMultipartUpload => multipart::create(gateway, request).await,
        Operation::UploadPart => multipart::part(gateway, request, payload).await,
        Operation::CompleteMultipartUpload => multipart::complete(gateway, request, payload).await,
        Operation::AbortMultipartUpload => multipart::abort(gateway, request).await,
    }
}

/// Whether versions have ids that clients see.
fn is_versioned(bucket: &BucketInfo) -> bool {
    bucket.versioning != Versioning::Off
}

pub fn write_owner(xml: &mut Writer, element: &str, owner: &str) {
    xml.element(element, |xml| {
        xml.text("ID", owner);
        xml.text("DisplayName", owner);
    });
}
