//! The rules that let scripts of other origins use a bucket.

use super::Gateway;
use crate::cors;
use crate::error::{Code, Result, S3Error};
use crate::payload::Payload;
use crate::request::{Reply, Request, empty, xml_reply};
use bytes::Bytes;
use client::ConfigurationKind;
use http::StatusCode;

pub async fn get(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    match bucket.configuration(ConfigurationKind::Cors) {
        Some(kept) => Ok(xml_reply(String::from_utf8_lossy(&kept.value).into_owned())),
        None => Err(S3Error::new(Code::NoSuchCORSConfiguration, "The CORS configuration does not exist.")
            .field("BucketName", bucket.name.as_str())),
    }
}

pub async fn put(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let rules = cors::read(&request.xml_body(payload, "CORSConfiguration", true).await?)?;
    let value = Some(Bytes::from(cors::to_xml(&rules)));
    gateway.client.set_configuration(&bucket, ConfigurationKind::Cors, value, None).await?;
    Ok(empty(StatusCode::OK))
}

pub async fn delete(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    gateway.client.set_configuration(&bucket, ConfigurationKind::Cors, None, None).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
