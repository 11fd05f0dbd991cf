//! The policy of a bucket, and the block against opening it to everybody.

use super::Gateway;
use crate::error::{Code, Result, S3Error};
use crate::payload::Payload;
use crate::public_access::PublicAccessBlock;
use crate::request::{Reply, Request, empty, xml_reply};
use crate::xml::Writer;
use access::Policy;
use bytes::Bytes;
use client::{BucketInfo, ConfigurationKind};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};

fn kept(bucket: &BucketInfo) -> Result<Bytes> {
    let kept = bucket.configuration(ConfigurationKind::Policy);
    kept.map(|kept| kept.value).ok_or_else(|| {
        S3Error::new(Code::NoSuchBucketPolicy, "The bucket policy does not exist").field("BucketName", &*bucket.name)
    })
}

/// Byte for byte as it was put.
pub async fn get(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let mut reply = xml_reply(String::from_utf8_lossy(&kept(&bucket)?).into_owned());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(reply)
}

pub async fn put(gateway: &Gateway, request: &Request, mut payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let text = payload.collect(access::POLICY_LEN_MAX as u64).await?;
    let malformed = |why: String| S3Error::new(Code::MalformedPolicy, format!("The policy is malformed: {why}."));
    let json = std::str::from_utf8(&text).map_err(|_| malformed("it is not UTF-8".to_owned()))?;
    let policy = Policy::of_bucket(json, &bucket.name).map_err(|why| malformed(why.to_string()))?;
    if policy.is_public() && PublicAccessBlock::of(&bucket).block_public_policy {
        let message = "Access Denied: the policy is public, and the bucket blocks public policies.";
        return Err(S3Error::new(Code::AccessDenied, message));
    }
    gateway.client.set_configuration(&bucket, ConfigurationKind::Policy, Some(text), None).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub async fn delete(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    gateway.client.set_configuration(&bucket, ConfigurationKind::Policy, None, None).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Public is what a policy or the bucket's list opens to users at large.
pub async fn status(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let by_policy = kept(&bucket).ok().is_some_and(|text| {
        let policy = std::str::from_utf8(&text).ok().and_then(|text| Policy::of_bucket(text, &bucket.name).ok());
        policy.is_some_and(|policy| policy.is_public())
    });
    let is_public = by_policy || crate::acl::Acl::of_bucket(&bucket).is_public();
    Ok(xml_reply(Writer::answer("PolicyStatus", |xml| xml.flag("IsPublic", is_public))))
}

pub async fn get_block(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    if bucket.configuration(ConfigurationKind::PublicAccessBlock).is_none() {
        let message = "The public access block configuration was not found";
        let error = S3Error::new(Code::NoSuchPublicAccessBlockConfiguration, message);
        return Err(error.field("BucketName", &*bucket.name));
    }
    Ok(xml_reply(PublicAccessBlock::of(&bucket).write()))
}

pub async fn put_block(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let document = request.xml_body(payload, "PublicAccessBlockConfiguration", true).await?;
    let value = Some(PublicAccessBlock::read(&document)?.encode());
    gateway.client.set_configuration(&bucket, ConfigurationKind::PublicAccessBlock, value, None).await?;
    Ok(empty(StatusCode::OK))
}

pub async fn delete_block(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    gateway.client.set_configuration(&bucket, ConfigurationKind::PublicAccessBlock, None, None).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
