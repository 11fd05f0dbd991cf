//! Tags of objects and of buckets.

use super::object::insert_version;
use super::{Gateway, is_versioned};
use crate::authorize::Wish;
use crate::context::Said;
use crate::error::{Code, Result, S3Error};
use crate::payload::Payload;
use crate::request::{Reply, Request, empty, xml_reply};
use crate::tags;
use access::Action;
use bytes::Bytes;
use client::{BucketInfo, ChangeRequest, ConfigurationKind, Header};
use http::StatusCode;

pub async fn get(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.lookup(request).await?;
    let version = request.version()?;
    let of_version = version.is_some();
    let action = if of_version { Action::GET_OBJECT_VERSION_TAGGING } else { Action::GET_OBJECT_TAGGING };
    let wish = Wish::new(action, &bucket, &request.target.key).naming(version.as_ref());
    let object = gateway.object(request, wish).await?;
    let tags = object.attributes.map(|attributes| attributes.tags).unwrap_or_default();
    let mut reply = xml_reply(tags::to_xml(&tags));
    if is_versioned(&bucket) {
        insert_version(&mut reply, &object.version);
    }
    Ok(reply)
}

pub async fn put(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.lookup(request).await?;
    gateway.refuse_strangers(request, &bucket)?;
    // Policies may ask which tags these are, so they are read before anything is decided.
    let document = request.xml_body(payload, "Tagging", true).await?;
    let said = Said { tags: tags::of_xml(&document, tags::OF_OBJECT_MAX)?, ..Said::default() };
    gateway.authorize_own(request, &bucket, &said).await?;
    set(gateway, request, &bucket, said.tags, StatusCode::OK).await
}

pub async fn delete(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    set(gateway, request, &bucket, Vec::new(), StatusCode::NO_CONTENT).await
}

async fn set(
    gateway: &Gateway,
    request: &Request,
    bucket: &BucketInfo,
    tags: Vec<Header>,
    status: StatusCode,
) -> Result<Reply> {
    let change = ChangeRequest { version: request.version()?, tags: Some(tags), ..ChangeRequest::default() };
    let changed = super::object::change(gateway, bucket, &request.target.key, change).await?;
    let mut reply = empty(status);
    insert_version(&mut reply, &changed.version);
    Ok(reply)
}

pub async fn get_of_bucket(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    match bucket.configuration(ConfigurationKind::Tagging) {
        Some(kept) => Ok(xml_reply(String::from_utf8_lossy(&kept.value).into_owned())),
        None => {
            Err(S3Error::new(Code::NoSuchTagSet, "The TagSet does not exist.")
                .field("BucketName", bucket.name.as_str()))
        }
    }
}

pub async fn put_of_bucket(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let document = request.xml_body(payload, "Tagging", true).await?;
    let tags = tags::of_xml(&document, tags::OF_BUCKET_MAX)?;
    // An empty set is no set, as in S3.
    let value = (!tags.is_empty()).then(|| Bytes::from(tags::to_xml(&tags)));
    gateway.client.set_configuration(&bucket, ConfigurationKind::Tagging, value, None).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub async fn delete_of_bucket(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    gateway.client.set_configuration(&bucket, ConfigurationKind::Tagging, None, None).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
