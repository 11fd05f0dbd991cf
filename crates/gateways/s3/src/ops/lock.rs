//! Object lock: the bucket's configuration, and retention and legal hold of versions. The shard decides what a lock
//! forbids; here is decided who may ask for it.

use super::object::{change, insert_version};
use super::{Gateway, is_versioned};
use crate::authorize::Wish;
use crate::context::{NOTHING, Said};
use crate::error::{Code, Result, S3Error};
use crate::lock;
use crate::names;
use crate::payload::Payload;
use crate::request::{Reply, Request, empty, xml_reply};
use access::Action;
use bytes::Bytes;
use client::{BucketInfo, BucketLock, ChangeRequest, ConfigurationKind, ObjectLock, ObjectVersion, Versioning};
use http::StatusCode;

/// `None`: the bucket has no object lock.
fn of_bucket(bucket: &BucketInfo) -> Option<BucketLock> {
    bucket.configuration(ConfigurationKind::ObjectLock).map(|kept| kept.decode().unwrap_or_default())
}

pub async fn get_of_bucket(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    match of_bucket(&bucket) {
        Some(kept) => Ok(xml_reply(lock::write_bucket(&kept))),
        None => {
            let message = "Object Lock configuration does not exist for this bucket";
            let error = S3Error::new(Code::ObjectLockConfigurationNotFoundError, message);
            Err(error.field("BucketName", &*bucket.name))
        }
    }
}

pub async fn put_of_bucket(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let document = request.xml_body(payload, "ObjectLockConfiguration", true).await?;
    let wanted = lock::read_bucket(&document)?;
    if bucket.versioning != Versioning::Enabled {
        let message = "Versioning must be 'Enabled' on the bucket to apply an Object Lock configuration";
        return Err(S3Error::new(Code::InvalidBucketState, message));
    }
    keep(gateway, &bucket, &wanted).await?;
    Ok(empty(StatusCode::OK))
}

async fn keep(gateway: &Gateway, bucket: &BucketInfo, wanted: &BucketLock) -> Result<()> {
    let value = Some(client::Configuration::encode(wanted));
    Ok(gateway.client.set_configuration(bucket, ConfigurationKind::ObjectLock, value, None).await?)
}

/// `x-amz-bucket-object-lock-enabled` of CreateBucket. `is_new`: this request has made the bucket; else its policy is asked.
pub async fn at_creation(gateway: &Gateway, request: &Request, is_new: bool) -> Result<()> {
    let asks = request.header(&names::BUCKET_OBJECT_LOCK_ENABLED).is_some_and(|text| text.eq_ignore_ascii_case("true"));
    if !asks {
        return Ok(());
    }
    let name = &request.target.bucket;
    let bucket = gateway.client.bucket(name).await?;
    if of_bucket(&bucket).is_some() {
        return Ok(());
    }
    if !is_new {
        for action in [Action::PUT_BUCKET_OBJECT_LOCK_CONFIGURATION, Action::PUT_BUCKET_VERSIONING] {
            gateway.authorize(request, Wish::new(action, &bucket, b"")).await?;
        }
    }
    gateway.client.set_versioning(name, Versioning::Enabled).await?;
    keep(gateway, &bucket, &BucketLock::default()).await
}

/// The version that is asked about, of a bucket with object lock.
async fn version_of(gateway: &Gateway, request: &Request, action: Action) -> Result<ObjectVersion> {
    let bucket = gateway.lookup(request).await?;
    version_in(gateway, request, &bucket, action, &NOTHING).await
}

async fn version_in(
    gateway: &Gateway,
    request: &Request,
    bucket: &BucketInfo,
    action: Action,
    said: &Said,
) -> Result<ObjectVersion> {
    let version = request.version()?;
    let wish = Wish::new(action, bucket, &request.target.key).naming(version.as_ref()).saying(said);
    let object = gateway.object(request, wish).await?;
    if of_bucket(bucket).is_none() {
        return Err(client::Error::NotLockable.into());
    }
    Ok(object)
}

fn kept_lock(object: &ObjectVersion) -> Option<ObjectLock> {
    object.attributes.as_ref().and_then(|attributes| attributes.lock)
}

fn no_lock() -> S3Error {
    let message = "The specified object does not have a ObjectLock configuration";
    S3Error::new(Code::NoSuchObjectLockConfiguration, message)
}

pub async fn get_retention(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let object = version_of(gateway, request, Action::GET_OBJECT_RETENTION).await?;
    let document = kept_lock(&object).and_then(|kept| lock::write_retention(&kept));
    document.map(xml_reply).ok_or_else(no_lock)
}

pub async fn get_hold(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let object = version_of(gateway, request, Action::GET_OBJECT_LEGAL_HOLD).await?;
    kept_lock(&object).map(|kept| xml_reply(lock::write_hold(&kept))).ok_or_else(no_lock)
}

pub async fn put_retention(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.lookup(request).await?;
    gateway.refuse_strangers(request, &bucket)?;
    // Policies may ask what is set, so it is read before anything is decided.
    let document = request.xml_body(payload, "Retention", true).await?;
    let retention = Some(lock::read_retention(&document, gateway.client.wall_ms())?);
    let said = Said { retention, ..Said::default() };
    let object = version_in(gateway, request, &bucket, Action::PUT_OBJECT_RETENTION, &said).await?;
    let version = request.version()?;
    let wish = Wish::new(Action::BYPASS_GOVERNANCE_RETENTION, &bucket, &request.target.key);
    let wish = wish.naming(version.as_ref()).saying(&said).about(&object);
    let bypass_governance = gateway.bypasses_governance(request, wish).await?;
    let wanted = ChangeRequest { retention, bypass_governance, ..ChangeRequest::default() };
    keep_change(gateway, request, &bucket, object.version, wanted).await
}

pub async fn put_hold(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.lookup(request).await?;
    gateway.refuse_strangers(request, &bucket)?;
    let document = request.xml_body(payload, "LegalHold", true).await?;
    let legal_hold = Some(lock::read_hold(&document)?);
    let said = Said { legal_hold, ..Said::default() };
    let object = version_in(gateway, request, &bucket, Action::PUT_OBJECT_LEGAL_HOLD, &said).await?;
    let wanted = ChangeRequest { legal_hold, ..ChangeRequest::default() };
    keep_change(gateway, request, &bucket, object.version, wanted).await
}

/// Changes the version that was decided about, not one that became the newest meanwhile.
async fn keep_change(
    gateway: &Gateway,
    request: &Request,
    bucket: &BucketInfo,
    version: Bytes,
    wanted: ChangeRequest,
) -> Result<Reply> {
    let wanted = ChangeRequest { version: is_versioned(bucket).then_some(version), ..wanted };
    let changed = change(gateway, bucket, &request.target.key, wanted).await?;
    let mut reply = empty(StatusCode::OK);
    insert_version(&mut reply, &changed.version);
    Ok(reply)
}
