//! Buckets and their settings.

use super::acl::AtCreation;
use super::{Gateway, write_owner};
use crate::context::Said;
use crate::date::iso8601;
use crate::encoding::{continuation_key, continuation_token};
use crate::error::{Code, Result, S3Error, not_implemented};
use crate::names;
use crate::payload::Payload;
use crate::request::{Reply, Request, empty, insert, malformed_xml, xml_reply};
use crate::xml::Writer;
use client::{ConfigurationKind, Versioning};
use http::StatusCode;

/// The most buckets in one page.
const PAGE_MAX: u32 = 10_000;

/// The region whose name S3 leaves out, and in which creating one's own bucket again succeeds.
const CLASSIC_REGION: &str = "us-east-1";

pub async fn list(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let limit = request.query.number("max-buckets")?.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX) as usize;
    let prefix = request.query.get("prefix").unwrap_or_default();
    let after = match request.query.get("continuation-token") {
        Some(token) => continuation_key(token).ok_or_else(super::list::bad_token)?,
        None => Vec::new(),
    };
    let mut buckets = gateway.client.list_buckets().await?;
    gateway.authorize_listing(request).await?;
    if !gateway.sees_all_buckets(request).await? {
        buckets.retain(|bucket| bucket.owner == request.caller.access_key());
    }
    buckets.retain(|bucket| bucket.name.starts_with(prefix) && bucket.name.as_bytes() > after.as_slice());
    let more = buckets.len() > limit;
    buckets.truncate(limit);
    Ok(xml_reply(Writer::answer("ListAllMyBucketsResult", |xml| {
        write_owner(xml, "Owner", request.caller.access_key());
        xml.element("Buckets", |xml| {
            for bucket in &buckets {
                xml.element("Bucket", |xml| {
                    xml.text("Name", &bucket.name);
                    xml.text("CreationDate", &iso8601(bucket.created_ms));
                    xml.text("BucketRegion", &gateway.region);
                });
            }
        });
        if let Some(last) = buckets.last().filter(|_| more) {
            xml.text("ContinuationToken", &continuation_token(last.name.as_bytes()));
        }
        if !prefix.is_empty() {
            xml.text("Prefix", prefix);
        }
    })))
}

pub async fn create(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let mut constrained = String::new();
    if !payload.is_empty() {
        let configuration = request.xml_body(payload, "CreateBucketConfiguration", true).await?;
        let constraint = configuration.child_text("LocationConstraint").unwrap_or_default();
        if !constraint.is_empty() && constraint != gateway.region {
            let message =
                format!("The specified location constraint is not valid; this cluster is {}.", gateway.region);
            return Err(S3Error::new(Code::InvalidLocationConstraint, message)
                .field("LocationConstraint", constraint)
                .field("Region", gateway.region.as_str()));
        }
        constrained = constraint.to_owned();
    }
    let name = &request.target.bucket;
    let said = Said { location: (!constrained.is_empty()).then(|| constrained.clone()), ..Said::default() };
    gateway.authorize_creation(request, name, &said).await?;
    let owner = request.caller.access_key();
    let asked = AtCreation::read(&request.headers, owner)?;
    asked.check(gateway).await?;
    match gateway.client.create_bucket_in(name, owner, &constrained).await {
        Ok(bucket) => {
            asked.keep(gateway, &bucket).await?;
            super::lock::at_creation(gateway, request, true).await?;
        }
        Err(client::Error::BucketExists { owner: present }) if present == owner => {
            let bucket = gateway.client.bucket(name).await?;
            if !asked.is_of(&bucket) {
                let message = "You own this bucket already, with other settings than those that you ask for.";
                return Err(S3Error::new(Code::BucketAlreadyExists, message).field("BucketName", name.as_str()));
            }
            // An earlier try may have got only so far.
            super::lock::at_creation(gateway, request, false).await?;
            if gateway.region != CLASSIC_REGION {
                let message = "Your previous request to create the named bucket succeeded and you already own it.";
                return Err(S3Error::new(Code::BucketAlreadyOwnedByYou, message).field("BucketName", name.as_str()));
            }
        }
        Err(error) => return Err(S3Error::from(error).field("BucketName", name.as_str())),
    }
    let mut reply = empty(StatusCode::OK);
    insert(&mut reply, http::header::LOCATION, &format!("/{name}"));
    Ok(reply)
}

pub async fn delete(gateway: &Gateway, request: &Request) -> Result<Reply> {
    gateway.bucket(request).await?;
    gateway.client.delete_bucket(&request.target.bucket).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub async fn head(gateway: &Gateway, request: &Request) -> Result<Reply> {
    gateway.bucket(request).await?;
    let mut reply = empty(StatusCode::OK);
    insert(&mut reply, names::BUCKET_REGION, &gateway.region);
    Ok(reply)
}

pub async fn location(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    // In the classic region the answer is empty, unless the bucket was asked for with the region's name.
    let region = match bucket.region.as_str() {
        "" if gateway.region == CLASSIC_REGION => "",
        "" => &gateway.region,
        named => named,
    };
    Ok(xml_reply(Writer::answer("LocationConstraint", |xml| xml.raw(region))))
}

pub async fn versioning(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    Ok(xml_reply(Writer::answer("VersioningConfiguration", |xml| match bucket.versioning {
        Versioning::Off => {}
        Versioning::Enabled => xml.text("Status", "Enabled"),
        Versioning::Suspended => xml.text("Status", "Suspended"),
    })))
}

pub async fn set_versioning(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let configuration = request.xml_body(payload, "VersioningConfiguration", true).await?;
    if configuration.child_text("MfaDelete").is_some_and(|value| value != "Disabled") {
        return Err(not_implemented("PutBucketVersioning with MfaDelete"));
    }
    let versioning = match configuration.child_text("Status") {
        Some("Enabled") => Versioning::Enabled,
        Some("Suspended") => Versioning::Suspended,
        Some(_) => return Err(malformed_xml("the status is neither Enabled nor Suspended")),
        None => {
            let message = "The versioning configuration must have a status.";
            return Err(S3Error::new(Code::IllegalVersioningConfigurationException, message));
        }
    };
    if versioning != Versioning::Enabled && bucket.configuration(ConfigurationKind::ObjectLock).is_some() {
        let message =
            "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed.";
        return Err(S3Error::new(Code::InvalidBucketState, message));
    }
    gateway.client.set_versioning(&request.target.bucket, versioning).await?;
    Ok(empty(StatusCode::OK))
}

/// No bucket can have this setting yet.
pub async fn absent_setting(gateway: &Gateway, request: &Request, code: Code) -> Result<Reply> {
    existing(gateway, request).await?;
    Err(S3Error::new(code, "The specified configuration does not exist.")
        .field("BucketName", request.target.bucket.as_str()))
}

pub async fn empty_setting(gateway: &Gateway, request: &Request, root: &'static str) -> Result<Reply> {
    existing(gateway, request).await?;
    Ok(xml_reply(Writer::answer(root, |xml| {
        if root == "RequestPaymentConfiguration" {
            xml.text("Payer", "BucketOwner");
        }
    })))
}

pub async fn delete_absent_setting(gateway: &Gateway, request: &Request) -> Result<Reply> {
    existing(gateway, request).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// The bucket, after making sure that the object exists where the request names one.
async fn existing(gateway: &Gateway, request: &Request) -> Result<client::BucketInfo> {
    let bucket = gateway.bucket(request).await?;
    if !request.target.key.is_empty() {
        super::object::find(gateway, &bucket, &request.target.key, request.version()?).await?;
    }
    Ok(bucket)
}
