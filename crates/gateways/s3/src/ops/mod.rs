//! The operations, each a function of the gateway and an admitted request.

mod acl;
mod bucket;
mod copy;
mod cors;
mod delete;
mod list;
mod multipart;
mod object;
mod post;
mod tagging;

use crate::error::{Code, Result, S3Error};
use crate::names;
use crate::operation::Operation;
use crate::payload::Payload;
use crate::request::{Reply, Request};
use crate::xml::Writer;
use client::{BucketInfo, Client, Versioning};

/// What every operation works with.
pub struct Gateway {
    pub client: Client,
    pub region: String,
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

impl Gateway {
    /// The bucket that the request names.
    async fn bucket(&self, request: &Request) -> Result<BucketInfo> {
        let bucket = self.client.bucket(&request.target.bucket).await?;
        self.authorize(request, &bucket).await?;
        check_owner(&bucket, request.header(&names::EXPECTED_BUCKET_OWNER))?;
        Ok(bucket)
    }

    /// The one place that decides whether a caller may use a bucket: its owner and the root user may do everything,
    /// others nothing. (Policies will be decided here.)
    async fn authorize(&self, request: &Request, bucket: &BucketInfo) -> Result<()> {
        if bucket.owner == request.caller.access_key() || self.is_root(request).await? {
            return Ok(());
        }
        Err(S3Error::new(Code::AccessDenied, "Access denied: the bucket belongs to another access key."))
    }

    async fn is_root(&self, request: &Request) -> Result<bool> {
        Ok(self.client.access_key(request.caller.access_key()).await?.is_some_and(|key| key.root))
    }
}

/// `expected`: the value of an `expected-bucket-owner` header.
fn check_owner(bucket: &BucketInfo, expected: Option<&str>) -> Result<()> {
    match expected {
        Some(owner) if owner != bucket.owner => {
            Err(S3Error::new(Code::AccessDenied, "Access denied: the bucket belongs to another owner."))
        }
        _ => Ok(()),
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
