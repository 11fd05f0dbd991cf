//! Access control lists and the ownership of objects.

use super::object::insert_version;
use super::{Gateway, is_versioned};
use crate::acl::{self, Acl, Kind, Ownership};
use crate::authorize::Wish;
use crate::error::{Code, Result, S3Error};
use crate::payload::Payload;
use crate::public_access::PublicAccessBlock;
use crate::request::{Reply, Request, empty, malformed_xml, xml_reply};
use crate::xml::Writer;
use access::Action;
use bytes::Bytes;
use client::{BucketInfo, ChangeRequest, ConfigurationKind};
use http::{HeaderMap, StatusCode};

pub async fn get_of_bucket(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    Ok(document(&Acl::of_bucket(&bucket)))
}

pub async fn get_of_object(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.lookup(request).await?;
    let version = request.version()?;
    let action = if version.is_some() { Action::GET_OBJECT_VERSION_ACL } else { Action::GET_OBJECT_ACL };
    let wish = Wish::new(action, &bucket, &request.target.key).naming(version.as_ref());
    let object = gateway.object(request, wish).await?;
    let mut reply = document(&Acl::of_object(&bucket, &object));
    if is_versioned(&bucket) {
        insert_version(&mut reply, &object.version);
    }
    Ok(reply)
}

fn document(acl: &Acl) -> Reply {
    xml_reply(Writer::answer("AccessControlPolicy", |xml| acl.write(xml)))
}

pub async fn put_of_bucket(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let acl = asked(gateway, request, payload, &bucket, Kind::Bucket, &bucket.owner).await?;
    keep_of_bucket(gateway, &bucket, &acl).await?;
    Ok(empty(StatusCode::OK))
}

pub async fn put_of_object(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.lookup(request).await?;
    let version = request.version()?;
    let action = if version.is_some() { Action::PUT_OBJECT_VERSION_ACL } else { Action::PUT_OBJECT_ACL };
    let wish = Wish::new(action, &bucket, &request.target.key).naming(version.as_ref());
    let object = gateway.object(request, wish).await?;
    let owner = Acl::of_object(&bucket, &object).owner;
    let acl = asked(gateway, request, payload, &bucket, Kind::Object, &owner).await?;
    // The version that was looked at: a newer one may have another owner.
    let version = is_versioned(&bucket).then(|| object.version.clone());
    let change = ChangeRequest { version, acl: Some(acl.encode(&bucket.owner)), ..ChangeRequest::default() };
    let changed = super::object::change(gateway, &bucket, &request.target.key, change).await?;
    let mut reply = empty(StatusCode::OK);
    insert_version(&mut reply, &changed.version);
    Ok(reply)
}

/// The list that a request sets: by name, by headers or as a document.
async fn asked(
    gateway: &Gateway,
    request: &Request,
    payload: Payload,
    bucket: &BucketInfo,
    kind: Kind,
    owner: &str,
) -> Result<Acl> {
    let of_headers = Acl::of_headers(&request.headers, kind, owner, &bucket.owner)?;
    let acl = match of_headers {
        Some(_) if !payload.is_empty() => {
            let message = "This request does not support content: the list is given by headers.";
            return Err(S3Error::new(Code::UnexpectedContent, message));
        }
        Some(acl) => acl,
        None if payload.is_empty() => {
            let message = "Your request was missing a required header: x-amz-acl, x-amz-grant-* or a document.";
            return Err(S3Error::new(Code::MissingSecurityHeader, message));
        }
        None => Acl::read(&request.xml_body(payload, "AccessControlPolicy", true).await?, owner)?,
    };
    acl::check_settable(bucket)?;
    refuse_public(bucket, &acl)?;
    check_users(gateway, &acl).await?;
    Ok(acl)
}

/// `BlockPublicAcls`.
pub fn refuse_public(bucket: &BucketInfo, acl: &Acl) -> Result<()> {
    if acl.is_public() && PublicAccessBlock::of(bucket).block_public_acls {
        return Err(S3Error::new(Code::AccessDenied, "Access Denied: the bucket blocks public access lists."));
    }
    Ok(())
}

/// Whoever is granted something must exist.
pub async fn check_users(gateway: &Gateway, acl: &Acl) -> Result<()> {
    for user in acl.users().filter(|user| *user != acl.owner) {
        if gateway.client.access_key(user).await?.is_none() {
            return Err(S3Error::new(Code::InvalidArgument, "Invalid id.")
                .field("ArgumentName", "CanonicalUser/ID")
                .field("ArgumentValue", user));
        }
    }
    Ok(())
}

async fn keep_of_bucket(gateway: &Gateway, bucket: &BucketInfo, acl: &Acl) -> Result<()> {
    let text = acl.encode(&bucket.owner);
    let value = (!text.is_empty()).then(|| Bytes::from(text));
    Ok(gateway.client.set_configuration(bucket, ConfigurationKind::Acl, value, None).await?)
}

/// What CreateBucket asks for besides the bucket: its list and whose its objects are.
pub struct AtCreation {
    acl: Acl,
    ownership: Option<Ownership>,
}

impl AtCreation {
    pub fn read(headers: &HeaderMap, owner: &str) -> Result<AtCreation> {
        let asked = Acl::of_headers(headers, Kind::Bucket, owner, owner)?;
        let named = headers.get(crate::names::OBJECT_OWNERSHIP).map(|value| value.to_str().unwrap_or_default());
        let ownership = named.map(|name| Ownership::read(name).ok_or_else(|| invalid_ownership(name))).transpose()?;
        let acl = asked.unwrap_or_else(|| Acl::private(owner));
        if ownership == Some(Ownership::BucketOwnerEnforced) && acl != Acl::private(owner) {
            return Err(lists_in_use());
        }
        Ok(AtCreation { acl, ownership })
    }

    /// Whether a bucket that exists is as this asks.
    pub fn is_of(&self, bucket: &BucketInfo) -> bool {
        Acl::of_bucket(bucket) == self.acl && self.ownership.is_none_or(|wanted| wanted == Ownership::of(bucket))
    }

    pub async fn check(&self, gateway: &Gateway) -> Result<()> {
        check_users(gateway, &self.acl).await
    }

    pub async fn keep(&self, gateway: &Gateway, bucket: &BucketInfo) -> Result<()> {
        if let Some(ownership) = self.ownership {
            keep_ownership(gateway, bucket, ownership).await?;
        }
        if self.acl != Acl::private(&bucket.owner) {
            keep_of_bucket(gateway, bucket, &self.acl).await?;
        }
        Ok(())
    }
}

async fn keep_ownership(gateway: &Gateway, bucket: &BucketInfo, ownership: Ownership) -> Result<()> {
    let value = Some(Bytes::from_static(ownership.as_str().as_bytes()));
    Ok(gateway.client.set_configuration(bucket, ConfigurationKind::Ownership, value, None).await?)
}

fn invalid_ownership(name: &str) -> S3Error {
    S3Error::new(Code::InvalidArgument, format!("The object ownership {name:?} is not known."))
}

fn lists_in_use() -> S3Error {
    S3Error::new(
        Code::InvalidBucketAclWithObjectOwnership,
        "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting: make its ACL private first.",
    )
}

pub async fn get_ownership(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    if bucket.configuration(ConfigurationKind::Ownership).is_none() {
        return Err(S3Error::new(
            Code::OwnershipControlsNotFoundError,
            "The bucket ownership controls were not found: objects belong to whoever writes them.",
        )
        .field("BucketName", bucket.name.as_str()));
    }
    Ok(xml_reply(Writer::answer("OwnershipControls", |xml| {
        xml.element("Rule", |xml| xml.text("ObjectOwnership", Ownership::of(&bucket).as_str()));
    })))
}

pub async fn put_ownership(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let document = request.xml_body(payload, "OwnershipControls", true).await?;
    let mut rules = document.all("Rule");
    let (Some(rule), None) = (rules.next(), rules.next()) else {
        return Err(malformed_xml("there must be one rule"));
    };
    let ownership = rule.child_text("ObjectOwnership").and_then(Ownership::read);
    let ownership = ownership.ok_or_else(|| malformed_xml("the ownership is not known"))?;
    if ownership == Ownership::BucketOwnerEnforced && Acl::of_bucket(&bucket) != Acl::private(&bucket.owner) {
        return Err(lists_in_use());
    }
    keep_ownership(gateway, &bucket, ownership).await?;
    Ok(empty(StatusCode::OK))
}

pub async fn delete_ownership(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    gateway.client.set_configuration(&bucket, ConfigurationKind::Ownership, None, None).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
