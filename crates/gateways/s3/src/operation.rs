//! Which operation a request asks for, by method, target and query. What is known but not built is named, and what
//! is not known is refused: a `PUT /bucket/key?something-new` must never be taken for a PUT of the object.

use crate::error::{Code, Result, S3Error, not_implemented};
use crate::names;
use crate::query::Query;
use crate::target::Target;
use http::{HeaderMap, Method};

/// An operation that is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    ListBuckets,
    CreateBucket,
    DeleteBucket,
    HeadBucket,
    GetBucketLocation,
    GetBucketVersioning,
    PutBucketVersioning,
    GetBucketAcl,
    PutBucketAcl,
    GetObjectAcl,
    PutObjectAcl,
    GetBucketPolicy,
    PutBucketPolicy,
    DeleteBucketPolicy,
    GetBucketPolicyStatus,
    GetPublicAccessBlock,
    PutPublicAccessBlock,
    DeletePublicAccessBlock,
    GetBucketLifecycle,
    PutBucketLifecycle,
    DeleteBucketLifecycle,
    GetObjectLockConfiguration,
    PutObjectLockConfiguration,
    GetObjectRetention,
    PutObjectRetention,
    GetObjectLegalHold,
    PutObjectLegalHold,
    GetBucketCors,
    PutBucketCors,
    DeleteBucketCors,
    GetBucketTagging,
    PutBucketTagging,
    DeleteBucketTagging,
    GetBucketOwnershipControls,
    PutBucketOwnershipControls,
    DeleteBucketOwnershipControls,
    ListObjects,
    ListObjectsV2,
    ListObjectVersions,
    ListMultipartUploads,
    DeleteObjects,
    PutObject,
    /// A browser's form.
    PostObject,
    CopyObject,
    GetObject,
    HeadObject,
    DeleteObject,
    GetObjectTagging,
    PutObjectTagging,
    DeleteObjectTagging,
    GetObjectAttributes,
    CreateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListParts,
    /// GET of a setting that no bucket can have yet: the proper "there is none".
    AbsentSetting(Code),
    /// GET of a setting whose absence is an empty document with this root element.
    EmptySetting(&'static str),
    /// DELETE of a setting that no bucket can have yet: there is nothing to do.
    DeleteAbsentSetting,
}

/// A subresource of a bucket or object: its query parameter, and its operation per method (empty: there is none).
struct Subresource {
    query: &'static str,
    get: &'static str,
    put: &'static str,
    delete: &'static str,
    post: &'static str,
}

const fn sub(
    query: &'static str,
    get: &'static str,
    put: &'static str,
    delete: &'static str,
    post: &'static str,
) -> Subresource {
    Subresource { query, get, put, delete, post }
}

#[rustfmt::skip]
const OF_BUCKET: &[Subresource] = &[
    sub("accelerate", "GetBucketAccelerateConfiguration", "PutBucketAccelerateConfiguration", "", ""),
    sub("acl", "GetBucketAcl", "PutBucketAcl", "", ""),
    sub("abac", "GetBucketAbac", "PutBucketAbac", "", ""),
    sub("analytics", "GetBucketAnalyticsConfiguration", "PutBucketAnalyticsConfiguration", "DeleteBucketAnalyticsConfiguration", ""),
    sub("cors", "GetBucketCors", "PutBucketCors", "DeleteBucketCors", ""),
    sub("delete", "", "", "", "DeleteObjects"),
    sub("encryption", "GetBucketEncryption", "PutBucketEncryption", "DeleteBucketEncryption", ""),
    sub("intelligent-tiering", "GetBucketIntelligentTieringConfiguration", "PutBucketIntelligentTieringConfiguration", "DeleteBucketIntelligentTieringConfiguration", ""),
    sub("inventory", "GetBucketInventoryConfiguration", "PutBucketInventoryConfiguration", "DeleteBucketInventoryConfiguration", ""),
    sub("lifecycle", "GetBucketLifecycleConfiguration", "PutBucketLifecycleConfiguration", "DeleteBucketLifecycle", ""),
    sub("location", "GetBucketLocation", "", "", ""),
    sub("logging", "GetBucketLogging", "PutBucketLogging", "", "PostBucketLogging"),
    sub("metadataConfiguration", "GetBucketMetadataConfiguration", "", "DeleteBucketMetadataConfiguration", "CreateBucketMetadataConfiguration"),
    sub("metadataTable", "GetBucketMetadataTableConfiguration", "", "DeleteBucketMetadataTableConfiguration", "CreateBucketMetadataTableConfiguration"),
    sub("metrics", "GetBucketMetricsConfiguration", "PutBucketMetricsConfiguration", "DeleteBucketMetricsConfiguration", ""),
    sub("notification", "GetBucketNotificationConfiguration", "PutBucketNotificationConfiguration", "", ""),
    sub("object-lock", "GetObjectLockConfiguration", "PutObjectLockConfiguration", "", ""),
    sub("ownershipControls", "GetBucketOwnershipControls", "PutBucketOwnershipControls", "DeleteBucketOwnershipControls", ""),
    sub("policy", "GetBucketPolicy", "PutBucketPolicy", "DeleteBucketPolicy", ""),
    sub("policyStatus", "GetBucketPolicyStatus", "", "", ""),
    sub("publicAccessBlock", "GetPublicAccessBlock", "PutPublicAccessBlock", "DeletePublicAccessBlock", ""),
    sub("replication", "GetBucketReplication", "PutBucketReplication", "DeleteBucketReplication", ""),
    sub("requestPayment", "GetBucketRequestPayment", "PutBucketRequestPayment", "", ""),
    sub("session", "CreateSession", "", "", ""),
    sub("tagging", "GetBucketTagging", "PutBucketTagging", "DeleteBucketTagging", ""),
    sub("uploads", "ListMultipartUploads", "", "", ""),
    sub("versioning", "GetBucketVersioning", "PutBucketVersioning", "", ""),
    sub("versions", "ListObjectVersions", "", "", ""),
    sub("website", "GetBucketWebsite", "PutBucketWebsite", "DeleteBucketWebsite", ""),
];

#[rustfmt::skip]
const OF_OBJECT: &[Subresource] = &[
    sub("acl", "GetObjectAcl", "PutObjectAcl", "", ""),
    sub("append", "", "AppendObject", "", "AppendObject"),
    sub("attributes", "GetObjectAttributes", "", "", ""),
    sub("encryption", "", "UpdateObjectEncryption", "", ""),
    sub("legal-hold", "GetObjectLegalHold", "PutObjectLegalHold", "", ""),
    sub("renameObject", "", "RenameObject", "", ""),
    sub("restore", "", "", "", "RestoreObject"),
    sub("retention", "GetObjectRetention", "PutObjectRetention", "", ""),
    sub("select", "", "", "", "SelectObjectContent"),
    sub("tagging", "GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging", ""),
    sub("torrent", "GetObjectTorrent", "", "", ""),
    sub("uploads", "", "", "", "CreateMultipartUpload"),
];

/// Query parameters that writing requests may carry besides a subresource.
const OF_WRITES: &[&str] = &["partNumber", "uploadId", "versionId"];

impl Operation {
    pub fn resolve(method: &Method, target: &Target, query: &Query, headers: &HeaderMap) -> Result<Operation> {
        if target.bucket.is_empty() {
            return if method == Method::GET { Ok(Operation::ListBuckets) } else { Err(wrong_method(method)) };
        }
        let of_object = !target.key.is_empty();
        let table = if of_object { OF_OBJECT } else { OF_BUCKET };
        if method != Method::HEAD
            && let Some(subresource) = table.iter().find(|subresource| query.has(subresource.query))
        {
            let name = match *method {
                Method::GET => subresource.get,
                Method::PUT => subresource.put,
                Method::DELETE => subresource.delete,
                Method::POST => subresource.post,
                _ => "",
            };
            return Operation::of_subresource(name, method);
        }
        refuse_unknown_parameters(method, query, of_object)?;
        if of_object { of_object_plain(method, query, headers) } else { of_bucket_plain(method, query) }
    }

    fn of_subresource(name: &'static str, method: &Method) -> Result<Operation> {
        use Operation as O;
        Ok(match name {
            "" => return Err(wrong_method(method)),
            "DeleteObjects" => O::DeleteObjects,
            "GetBucketLocation" => O::GetBucketLocation,
            "GetBucketVersioning" => O::GetBucketVersioning,
            "PutBucketVersioning" => O::PutBucketVersioning,
            "GetBucketAcl" => O::GetBucketAcl,
            "PutBucketAcl" => O::PutBucketAcl,
            "GetObjectAcl" => O::GetObjectAcl,
            "PutObjectAcl" => O::PutObjectAcl,
            "GetBucketPolicy" => O::GetBucketPolicy,
            "PutBucketPolicy" => O::PutBucketPolicy,
            "DeleteBucketPolicy" => O::DeleteBucketPolicy,
            "GetBucketPolicyStatus" => O::GetBucketPolicyStatus,
            "GetPublicAccessBlock" => O::GetPublicAccessBlock,
            "PutPublicAccessBlock" => O::PutPublicAccessBlock,
            "DeletePublicAccessBlock" => O::DeletePublicAccessBlock,
            "GetBucketLifecycleConfiguration" => O::GetBucketLifecycle,
            "PutBucketLifecycleConfiguration" => O::PutBucketLifecycle,
            "DeleteBucketLifecycle" => O::DeleteBucketLifecycle,
            "GetObjectLockConfiguration" => O::GetObjectLockConfiguration,
            "PutObjectLockConfiguration" => O::PutObjectLockConfiguration,
            "GetObjectRetention" => O::GetObjectRetention,
            "PutObjectRetention" => O::PutObjectRetention,
            "GetObjectLegalHold" => O::GetObjectLegalHold,
            "PutObjectLegalHold" => O::PutObjectLegalHold,
            "GetBucketCors" => O::GetBucketCors,
            "PutBucketCors" => O::PutBucketCors,
            "DeleteBucketCors" => O::DeleteBucketCors,
            "GetBucketTagging" => O::GetBucketTagging,
            "PutBucketTagging" => O::PutBucketTagging,
            "DeleteBucketTagging" => O::DeleteBucketTagging,
            "GetBucketOwnershipControls" => O::GetBucketOwnershipControls,
            "PutBucketOwnershipControls" => O::PutBucketOwnershipControls,
            "DeleteBucketOwnershipControls" => O::DeleteBucketOwnershipControls,
            "ListMultipartUploads" => O::ListMultipartUploads,
            "ListObjectVersions" => O::ListObjectVersions,
            "GetObjectTagging" => O::GetObjectTagging,
            // BitTorrent is gone from S3; clients take this as "there is no torrent".
            "GetObjectTorrent" => O::AbsentSetting(Code::NoSuchKey),
            "PutObjectTagging" => O::PutObjectTagging,
            "DeleteObjectTagging" => O::DeleteObjectTagging,
            "GetObjectAttributes" => O::GetObjectAttributes,
            "CreateMultipartUpload" => O::CreateMultipartUpload,
            "GetBucketAccelerateConfiguration" => O::EmptySetting("AccelerateConfiguration"),
            "GetBucketLogging" => O::EmptySetting("BucketLoggingStatus"),
            "GetBucketNotificationConfiguration" => O::EmptySetting("NotificationConfiguration"),
            "GetBucketRequestPayment" => O::EmptySetting("RequestPaymentConfiguration"),
            "GetBucketEncryption" => O::AbsentSetting(Code::ServerSideEncryptionConfigurationNotFoundError),
            "GetBucketReplication" => O::AbsentSetting(Code::ReplicationConfigurationNotFoundError),
            "GetBucketWebsite" => O::AbsentSetting(Code::NoSuchWebsiteConfiguration),
            "DeleteBucketEncryption" | "DeleteBucketReplication" | "DeleteBucketWebsite" => O::DeleteAbsentSetting,
            name => return Err(not_implemented(name)),
        })
    }
}

fn of_bucket_plain(method: &Method, query: &Query) -> Result<Operation> {
    Ok(match *method {
        Method::GET if query.get("list-type") == Some("2") => Operation::ListObjectsV2,
        Method::GET => Operation::ListObjects,
        Method::HEAD => Operation::HeadBucket,
        Method::PUT => Operation::CreateBucket,
        Method::DELETE => Operation::DeleteBucket,
        _ => return Err(wrong_method(method)),
    })
}

fn of_object_plain(method: &Method, query: &Query, headers: &HeaderMap) -> Result<Operation> {
    let (of_upload, of_part) = (query.has("uploadId"), query.has("partNumber"));
    let copies = headers.contains_key(names::COPY_SOURCE);
    Ok(match *method {
        Method::GET if of_upload => Operation::ListParts,
        Method::GET => Operation::GetObject,
        Method::HEAD => Operation::HeadObject,
        Method::PUT if of_upload && of_part && copies => Operation::UploadPartCopy,
        Method::PUT if of_upload && of_part => Operation::UploadPart,
        Method::PUT if of_upload || of_part => {
            return Err(S3Error::new(Code::InvalidArgument, "partNumber and uploadId are only valid together."));
        }
        Method::PUT if copies => Operation::CopyObject,
        Method::PUT => Operation::PutObject,
        Method::DELETE if of_upload => Operation::AbortMultipartUpload,
        Method::DELETE => Operation::DeleteObject,
        Method::POST if of_upload => Operation::CompleteMultipartUpload,
        _ => return Err(wrong_method(method)),
    })
}

/// Reading ignores parameters that it does not know, as S3 does; writing refuses them, because they may be a
/// subresource of a later day. `x-...` is for the client's own use.
fn refuse_unknown_parameters(method: &Method, query: &Query, of_object: bool) -> Result<()> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    // On a bucket they are what is left of a request whose key was lost: never a request to the bucket.
    let known = |name: &str| of_object && OF_WRITES.contains(&name) || name.starts_with("x-") || name.starts_with("X-");
    match query.names().find(|name| !known(name)) {
        Some(name) => Err(not_implemented(&format!("The subresource {name:?} with {method}"))),
        None => Ok(()),
    }
}

fn wrong_method(method: &Method) -> S3Error {
    let message = "The specified method is not allowed against this resource.";
    S3Error::new(Code::MethodNotAllowed, message).field("Method", method.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(method: &str, path: &str, query: &str) -> Result<Operation> {
        let target = Target::read(path, None, None)?;
        Operation::resolve(&method.parse().unwrap(), &target, &Query::read(query)?, &HeaderMap::new())
    }

    #[test]
    fn requests_find_their_operation() {
        use Operation as O;
        for (method, path, query, operation) in [
            ("GET", "/", "", O::ListBuckets),
            ("PUT", "/bucket", "", O::CreateBucket),
            ("GET", "/bucket/", "list-type=2&prefix=a", O::ListObjectsV2),
            ("GET", "/bucket", "unknown=1", O::ListObjects),
            ("GET", "/bucket", "versions", O::ListObjectVersions),
            ("POST", "/bucket", "delete=", O::DeleteObjects),
            ("GET", "/bucket", "policy", O::GetBucketPolicy),
            ("PUT", "/bucket/k", "x-id=PutObject", O::PutObject),
            ("PUT", "/bucket/k", "partNumber=1&uploadId=u", O::UploadPart),
            ("POST", "/bucket/k", "uploads", O::CreateMultipartUpload),
            ("POST", "/bucket/k", "uploadId=u", O::CompleteMultipartUpload),
            ("DELETE", "/bucket/k", "uploadId=u", O::AbortMultipartUpload),
            ("DELETE", "/bucket/k", "versionId=v", O::DeleteObject),
            ("HEAD", "/bucket/k", "", O::HeadObject),
        ] {
            assert_eq!(resolve(method, path, query).unwrap(), operation, "{method} {path}?{query}");
        }
    }

    #[test]
    fn what_is_not_built_is_named_and_never_taken_for_something_else() {
        for (method, path, query, named) in [
            ("PUT", "/bucket/k", "renameObject", "RenameObject"),
            ("PUT", "/bucket", "website", "PutBucketWebsite"),
            ("PUT", "/bucket/k", "futureThing", "futureThing"),
            ("DELETE", "/bucket", "metadataConfiguration", "DeleteBucketMetadataConfiguration"),
            ("DELETE", "/bucket", "futureThing", "futureThing"),
            ("POST", "/bucket/k", "select&select-type=2", "SelectObjectContent"),
        ] {
            let error = resolve(method, path, query).unwrap_err();
            assert_eq!(error.code, Code::NotImplemented, "{method} {path}?{query}");
            assert!(error.message.contains(named), "{}", error.message);
        }
        for (method, path, query) in [("POST", "/", ""), ("PATCH", "/bucket/k", ""), ("DELETE", "/bucket", "versions")]
        {
            assert_eq!(
                resolve(method, path, query).unwrap_err().code,
                Code::MethodNotAllowed,
                "{method} {path}?{query}"
            );
        }
    }
}
