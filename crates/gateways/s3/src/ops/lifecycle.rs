//! The lifecycle configuration of a bucket. What its rules do is decided in the shards.

use super::Gateway;
use crate::error::{Code, Result, S3Error};
use crate::lifecycle;
use crate::payload::Payload;
use crate::request::{Reply, Request, empty, xml_reply};
use client::ConfigurationKind;
use http::StatusCode;

pub async fn get(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    match lifecycle::of_bucket(&bucket) {
        Some(rules) => Ok(xml_reply(lifecycle::write(&rules))),
        None => Err(S3Error::new(Code::NoSuchLifecycleConfiguration, "The lifecycle configuration does not exist")
            .field("BucketName", &*bucket.name)),
    }
}

pub async fn put(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let document = request.xml_body(payload, "LifecycleConfiguration", true).await?;
    let rules = lifecycle::read(&document, || {
        let mut id = [0; 16];
        gateway.client.random_bytes(&mut id);
        id
    })?;
    for rule in &rules.rules {
        for transition in rule.transitions.iter().chain(&rule.noncurrent_transitions) {
            super::storage_class::pool_of(gateway, &transition.class).await?;
        }
    }
    let value = Some(lifecycle::encode(&rules));
    gateway.client.set_configuration(&bucket, ConfigurationKind::Lifecycle, value, None).await?;
    Ok(empty(StatusCode::OK))
}

pub async fn delete(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    gateway.client.set_configuration(&bucket, ConfigurationKind::Lifecycle, None, None).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
