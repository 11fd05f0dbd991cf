//! Copies: the source is read, verified and written anew, as a stream. No bytes are shared between keys.

use super::object::{insert_written_version, of_write, size_of, write_checksum_elements};
use super::{Gateway, is_versioned};
use crate::authorize::check_owner;
use crate::checksum::{Algorithm, Hashes, Sums};
use crate::conditions::{ReadConditions, of_write as write_conditions};
use crate::date::iso8601;
use crate::encoding::{percent_decode, version_text};
use crate::error::{Code, Result, S3Error};
use crate::names;
use crate::operation::Operation;
use crate::range::copy_range;
use crate::request::{Reply, Request, insert, parse_version, quoted, xml_reply};
use crate::service::CONTENT_LENGTH_MAX;
use crate::target::Target;
use crate::xml::Writer;
use access::Action;
use bytes::Bytes;
use client::{Attributes, BucketInfo, FinishPart, FinishPut, ObjectVersion, ObjectWriter};
use http::HeaderName;
use std::ops::Range;

/// `x-amz-copy-source: [/]BUCKET/KEY[?versionId=ID]`, percent-encoded.
#[derive(Debug, PartialEq, Eq)]
struct CopySource {
    target: Target,
    version: Option<Bytes>,
}

impl CopySource {
    fn read(header: &[u8]) -> Result<CopySource> {
        let invalid = |why: &str| S3Error::new(Code::InvalidArgument, format!("Invalid copy source: {why}."));
        let text = std::str::from_utf8(header).map_err(|_| invalid("it is not UTF-8"))?;
        // A question mark in the key is percent-encoded.
        let (path, version) = match text.split_once("?versionId=") {
            Some((path, version)) => (path, Some(parse_version(version)?)),
            None => (text, None),
        };
        let path = percent_decode(path, false).and_then(|path| String::from_utf8(path).ok());
        let path = path.ok_or_else(|| invalid("it cannot be decoded"))?;
        if path.starts_with("arn:") {
            return Err(crate::error::not_implemented("A copy source that is an access point"));
        }
        let split = path.strip_prefix('/').unwrap_or(&path).split_once('/').filter(|(_, key)| !key.is_empty());
        let (bucket, key) = split.ok_or_else(|| invalid("it must be BUCKET/KEY"))?;
        Ok(CopySource { target: Target::new(bucket.to_owned(), key)?, version })
    }
}

/// What is copied: a version that was found, and that meets the conditions on the source.
struct Source {
    bucket: BucketInfo,
    object: ObjectVersion,
    /// Whether the request named the version.
    version_named: bool,
    is_target: bool,
}

async fn source(gateway: &Gateway, request: &Request) -> Result<Source> {
    let header = request.headers.get(names::COPY_SOURCE).map(|value| value.as_bytes()).unwrap_or_default();
    let wanted = CopySource::read(header)?;
    let bucket = gateway.client.bucket(&wanted.target.bucket).await?;
    check_owner(&bucket, request.header(&names::EXPECTED_SOURCE_BUCKET_OWNER))?;
    let version_named = wanted.version.is_some();
    let action = if version_named { Action::GET_OBJECT_VERSION } else { Action::GET_OBJECT };
    let found = gateway.object(request, &bucket, &wanted.target.key, wanted.version, action).await;
    // A marker that is named as the source is a bad request, not a method that is not allowed.
    let object = found.map_err(|error| match error.code {
        Code::MethodNotAllowed => S3Error::new(
            Code::InvalidRequest,
            "The source of a copy request may not specifically refer to a delete marker by version id.",
        ),
        _ => error,
    })?;
    if object.attributes.as_ref().is_some_and(|attributes| !attributes.tags.is_empty())
        && !replaces(request, &names::TAGGING_DIRECTIVE)?
        && request.operation == Operation::CopyObject
    {
        // The tags come along: whoever may not read them may not copy them.
        gateway.authorize_object(request, &bucket, Action::GET_OBJECT_TAGGING, &object).await?;
    }
    ReadConditions::of_copy_source(&request.headers)?.check(&object)?;
    Ok(Source { bucket, object, version_named, is_target: wanted.target == request.target })
}

pub async fn object(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let precondition = write_conditions(&request.headers)?;
    let source = source(gateway, request).await?;
    let replace_metadata = replaces(request, &names::METADATA_DIRECTIVE)?;
    let replace_tags = replaces(request, &names::TAGGING_DIRECTIVE)?;
    if source.is_target && !source.version_named && !replace_metadata {
        let message = "This copy request is illegal because it is trying to copy an object to itself without changing \
                       the object's metadata, storage class, website redirect location or encryption attributes.";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let size = size_of(&source.object);
    if size > CONTENT_LENGTH_MAX {
        let message =
            "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120.";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let asked = of_write(gateway, request, &bucket).await?;
    let known = source.object.attributes.clone().unwrap_or_default();
    let algorithms = algorithms(request, &known)?;
    let mut writer = gateway.client.write(&bucket, request.target.key.clone(), Some(size));
    let sums = transfer(gateway, &source, 0..size, &mut writer, &algorithms).await?;
    verify_against(&known, &sums)?;
    let attributes = Attributes {
        etag: sums.etag(),
        headers: if replace_metadata { asked.headers } else { known.headers },
        tags: if replace_tags { asked.tags } else { known.tags },
        checksums: sums.checksums.clone(),
        // A copy is as private as a new object: the source's list is not taken over.
        acl: asked.acl,
        lock: asked.lock,
    };
    let written = writer.finish(FinishPut { attributes, precondition }).await?;
    let mut reply = xml_reply(result("CopyObjectResult", written.modified_ms, &written.etag, &sums, true));
    insert_written_version(&mut reply, &written.version);
    insert_source_version(&mut reply, &source);
    Ok(reply)
}

pub async fn part(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let (id, number) = (super::multipart::upload_of(request)?, super::multipart::part_number(request)?);
    let upload = gateway.client.upload(&bucket, &request.target.key, &id).await?;
    let source = source(gateway, request).await?;
    let range = match request.header(&names::COPY_SOURCE_RANGE) {
        Some(header) => copy_range(header, size_of(&source.object))?,
        None => 0..size_of(&source.object),
    };
    let length = range.end - range.start;
    if length > CONTENT_LENGTH_MAX {
        let message = "A part that is copied has at most 5 GiB; give a smaller x-amz-copy-source-range.";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let algorithms: Vec<Algorithm> = Algorithm::named(&upload.checksum_algorithm).into_iter().collect();
    let mut writer = gateway.client.write(&bucket, request.target.key.clone(), Some(length));
    let sums = transfer(gateway, &source, range, &mut writer, &algorithms).await?;
    let finish = FinishPart { upload: id, number, etag: sums.etag(), checksums: sums.checksums.clone() };
    let part = writer.finish_part(finish).await?;
    let mut reply = xml_reply(result("CopyPartResult", part.modified_ms, &part.etag, &sums, false));
    insert_source_version(&mut reply, &source);
    Ok(reply)
}

/// Reads `range` of the source into `writer`, hashing it.
async fn transfer(
    gateway: &Gateway,
    source: &Source,
    range: Range<u64>,
    writer: &mut ObjectWriter,
    algorithms: &[Algorithm],
) -> Result<Sums> {
    let length = range.end - range.start;
    let mut hashes = Hashes::new(algorithms);
    let mut taken = 0;
    if length > 0 {
        let mut reader = gateway.client.read(&source.bucket, &source.object, range);
        while let Some(piece) = reader.next().await {
            let piece = piece?;
            taken += piece.len() as u64;
            writer.write(piece.clone()).await?;
            hashes.update(&piece);
        }
    }
    if taken != length {
        let message = format!("The source ended after {taken} of {length} bytes. Nothing was stored.");
        return Err(S3Error::new(Code::InternalError, message));
    }
    Ok(hashes.finish())
}

/// Whether a directive says REPLACE; the default is COPY.
fn replaces(request: &Request, name: &HeaderName) -> Result<bool> {
    match request.header(name) {
        None | Some("COPY") => Ok(false),
        Some("REPLACE") => Ok(true),
        Some(_) => Err(S3Error::new(Code::InvalidArgument, format!("Unknown {name}: use COPY or REPLACE."))),
    }
}

/// The checksums of the copy: the one asked for, else those that the source has.
fn algorithms(request: &Request, known: &Attributes) -> Result<Vec<Algorithm>> {
    match request.header(&names::CHECKSUM_ALGORITHM) {
        Some(name) => Ok(vec![Algorithm::wanted(name)?]),
        None => Ok(known.checksums.iter().filter_map(|sum| Algorithm::named(&sum.algorithm)).collect()),
    }
}

/// What the source says about itself must be true of the bytes that were read.
fn verify_against(known: &Attributes, sums: &Sums) -> Result<()> {
    let differs = |sum: &client::Checksum| {
        let stored = known.checksums.iter().find(|stored| stored.algorithm == sum.algorithm && !stored.composite);
        stored.is_some_and(|stored| stored.value != sum.value)
    };
    if sums.checksums.iter().any(differs) {
        let message = "The source does not have the checksum that it was stored with. Nothing was copied.";
        return Err(S3Error::new(Code::InternalError, message));
    }
    Ok(())
}

fn result(root: &str, modified_ms: u64, etag: &str, sums: &Sums, with_type: bool) -> String {
    Writer::answer(root, |xml| {
        xml.text("LastModified", &iso8601(modified_ms));
        xml.text("ETag", &quoted(etag));
        write_checksum_elements(xml, &sums.checksums, with_type);
    })
}

fn insert_source_version(reply: &mut Reply, source: &Source) {
    if is_versioned(&source.bucket) {
        insert(reply, names::COPY_SOURCE_VERSION_ID, &version_text(&source.object.version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_source_is_decoded_once() {
        let of = |text: &str| {
            CopySource::read(text.as_bytes())
                .map(|source| (source.target.bucket.clone(), source.target.key_text().to_owned(), source.version))
                .map_err(|error| error.code)
        };
        let key = |key: &str| Ok(("bucket".to_owned(), key.to_owned(), None));
        assert_eq!(of("/bucket/a%20b"), key("a b"));
        assert_eq!(of("bucket/a/b"), key("a/b"));
        assert_eq!(of("bucket%2Fa"), key("a"));
        assert_eq!(of("bucket/a%253Fb"), key("a%3Fb"));
        assert_eq!(of("bucket/a%3FversionId=x"), key("a?versionId=x"));
        assert_eq!(of("bucket/../secret"), key("../secret"), "bytes of a key, never a path");
        assert_eq!(
            of("bucket/a?versionId=null"),
            Ok(("bucket".to_owned(), "a".to_owned(), Some(Bytes::from_static(b"null"))))
        );
        for bad in ["", "bucket", "bucket/", "/bucket/%zz", "bucket/a?versionId=x"] {
            assert_eq!(of(bad), Err(Code::InvalidArgument), "{bad}");
        }
        assert_eq!(of("Bad_Bucket/a"), Err(Code::InvalidBucketName));
    }
}
