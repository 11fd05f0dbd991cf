//! Copies. No bytes are shared between keys: the nodes clone the source's chunks under new ids. Only where a checksum is
//! asked for that nobody knows yet is the source read, hashed and written anew.

use super::object::{insert_written_version, of_write, size_of, write_checksum_elements};
use super::storage_class::pool_of_write;
use super::{Gateway, is_versioned};
use crate::authorize::{Wish, check_owner};
use crate::checksum::{Algorithm, Hashes, Sums};
use crate::conditions::{ReadConditions, of_write as write_conditions};
use crate::context::Said;
use crate::date::iso8601;
use crate::encoding::{percent_decode, unhex, version_text};
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
use client::{Attributes, BucketInfo, Checksum, FinishPart, FinishPut, ObjectVersion, ObjectWriter};
use http::HeaderName;
use std::ops::Range;

/// `x-amz-copy-source: [/]BUCKET/KEY[?versionId=ID]`, percent-encoded.
#[derive(Debug, PartialEq, Eq)]
pub struct CopySource {
    target: Target,
    version: Option<Bytes>,
}

impl CopySource {
    /// `BUCKET/KEY`, decoded.
    pub fn path(&self) -> String {
        format!("{}/{}", self.target.bucket, self.target.key_text())
    }

    pub fn read(header: &[u8]) -> Result<CopySource> {
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
    let of_action = |action| Wish::new(action, &bucket, &wanted.target.key).naming(wanted.version.as_ref());
    let found = gateway.object(request, of_action(action)).await;
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
        let action = if version_named { Action::GET_OBJECT_VERSION_TAGGING } else { Action::GET_OBJECT_TAGGING };
        gateway.authorize_object(request, of_action(action), &object).await?;
    }
    ReadConditions::of_copy_source(&request.headers)?.check(&object)?;
    let is_target = wanted.target == request.target;
    Ok(Source { bucket, object, version_named, is_target })
}

pub async fn object(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let precondition = write_conditions(&request.headers)?;
    let source = source(gateway, request).await?;
    let replace_metadata = replaces(request, &names::METADATA_DIRECTIVE)?;
    let replace_tags = replaces(request, &names::TAGGING_DIRECTIVE)?;
    let pool = pool_of_write(gateway, request).await?;
    let classes = gateway.client.storage_classes(&bucket);
    let same_class = classes.name(pool) == classes.of(source.object.attributes.as_ref());
    if source.is_target && !source.version_named && !replace_metadata && same_class {
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
    if !replace_tags && !known.tags.is_empty() {
        // Tags that come along are set as well.
        let said = Said { tags: known.tags.clone(), ..Said::default() };
        let wish = Wish::new(Action::PUT_OBJECT_TAGGING, &bucket, &request.target.key).saying(&said);
        gateway.authorize(request, wish).await?;
    }
    let wanted = request.header(&names::CHECKSUM_ALGORITHM).map(Algorithm::wanted).transpose()?;
    let place = bucket.clone().in_pool(pool);
    let mut writer = gateway.writer(request, &place, request.target.key.clone(), Some(size));
    let copied = match Copied::of_object(&known, wanted) {
        Some(copied) => {
            writer.copy_from(&source.bucket, &source.object, 0..size).await?;
            copied
        }
        None => {
            let sums = transfer(gateway, &source, 0..size, &mut writer, wanted.as_slice()).await?;
            verify_against(&known, &sums)?;
            Copied::of_sums(sums)
        }
    };
    let attributes = Attributes {
        etag: copied.etag,
        headers: if replace_metadata { asked.headers } else { known.headers },
        tags: if replace_tags { asked.tags } else { known.tags },
        checksums: copied.checksums.clone(),
        // A copy is as private as a new object: the source's list is not taken over.
        acl: asked.acl,
        lock: asked.lock,
        pool,
    };
    let written = writer.finish(FinishPut { attributes, precondition }).await?;
    let mut reply = xml_reply(result("CopyObjectResult", written.modified_ms, &written.etag, &copied.checksums, true));
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
    let wanted = Algorithm::named(&upload.checksum_algorithm);
    let known = source.object.attributes.clone().unwrap_or_default();
    let place = bucket.clone().in_pool(upload.attributes.as_ref().map_or(0, |attributes| attributes.pool));
    let mut writer = gateway.writer(request, &place, request.target.key.clone(), Some(length));
    let copied = match Copied::of_part(&known, &range, size_of(&source.object), wanted) {
        Some(copied) => {
            writer.copy_from(&source.bucket, &source.object, range).await?;
            copied
        }
        None => Copied::of_sums(transfer(gateway, &source, range, &mut writer, wanted.as_slice()).await?),
    };
    let Copied { etag, checksums } = copied;
    let finish = FinishPart { upload: id, number, etag, checksums: checksums.clone() };
    let part = writer.finish_part(finish).await?;
    let mut reply = xml_reply(result("CopyPartResult", part.modified_ms, &part.etag, &checksums, false));
    insert_source_version(&mut reply, &source);
    Ok(reply)
}

/// What a copy says of its content.
struct Copied {
    etag: String,
    checksums: Vec<Checksum>,
}

impl Copied {
    fn of_sums(sums: Sums) -> Copied {
        Copied { etag: sums.etag(), checksums: sums.checksums }
    }

    /// What is known of the copy of a whole object without reading it: all that the source says of itself. `None` when a
    /// checksum is asked for that the source does not have over its full content.
    fn of_object(source: &Attributes, wanted: Option<Algorithm>) -> Option<Copied> {
        let checksums = match wanted {
            None => source.checksums.clone(),
            Some(algorithm) => vec![full_checksum(source, algorithm)?],
        };
        Some(Copied { etag: source.etag.clone(), checksums })
    }

    /// As `of_object`, for a part. Its ETag is an MD5 where that is known; else it is one over the source's ETag and the
    /// range, which says the same of the same bytes.
    fn of_part(source: &Attributes, range: &Range<u64>, size: u64, wanted: Option<Algorithm>) -> Option<Copied> {
        let whole = *range == (0..size);
        let checksums = match wanted {
            None => Vec::new(),
            Some(algorithm) if whole => vec![full_checksum(source, algorithm)?],
            Some(_) => return None,
        };
        let etag = match unhex::<16>(&source.etag) {
            Some(_) if whole => source.etag.clone(),
            _ => {
                let mut hashes = Hashes::new(&[]);
                hashes.update(format!("{} {}-{}", source.etag, range.start, range.end).as_bytes());
                hashes.finish().etag()
            }
        };
        Some(Copied { etag, checksums })
    }
}

/// A checksum over the content, not over the checksums of parts.
fn full_checksum(source: &Attributes, algorithm: Algorithm) -> Option<Checksum> {
    source.checksums.iter().find(|sum| sum.algorithm == algorithm.name() && !sum.composite).cloned()
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

fn result(root: &str, modified_ms: u64, etag: &str, checksums: &[Checksum], with_type: bool) -> String {
    Writer::answer(root, |xml| {
        xml.text("LastModified", &iso8601(modified_ms));
        xml.text("ETag", &quoted(etag));
        write_checksum_elements(xml, checksums, with_type);
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
    fn a_copy_is_called_what_its_source_says_or_is_read() {
        let sum = |algorithm: Algorithm, composite| Checksum {
            algorithm: algorithm.name().to_owned(),
            value: "v".to_owned(),
            composite,
        };
        let md5 = "0cc175b9c0f1b6a831c399e269772661";
        let plain = Attributes {
            etag: md5.to_owned(),
            checksums: vec![sum(Algorithm::Crc32, false), sum(Algorithm::Sha256, true)],
            ..Attributes::default()
        };
        let of_object = |wanted| Copied::of_object(&plain, wanted).map(|copied| (copied.etag, copied.checksums.len()));
        assert_eq!(of_object(None), Some((md5.to_owned(), 2)));
        assert_eq!(of_object(Some(Algorithm::Crc32)), Some((md5.to_owned(), 1)));
        assert_eq!(of_object(Some(Algorithm::Sha256)), None, "a composite checksum is not one of the content");
        assert_eq!(of_object(Some(Algorithm::Sha1)), None);
        let of_part =
            |source: &Attributes, range, wanted| Copied::of_part(source, &range, 10, wanted).map(|copied| copied.etag);
        assert_eq!(of_part(&plain, 0..10, None).as_deref(), Some(md5));
        assert_eq!(of_part(&plain, 0..10, Some(Algorithm::Crc32)).as_deref(), Some(md5));
        assert_eq!(of_part(&plain, 0..5, Some(Algorithm::Crc32)), None);
        let multipart = Attributes { etag: format!("{md5}-2"), ..plain.clone() };
        let made = [of_part(&plain, 0..5, None), of_part(&plain, 5..10, None), of_part(&multipart, 0..10, None)];
        let distinct: std::collections::BTreeSet<_> = made.iter().flatten().collect();
        assert_eq!(distinct.len(), 3);
        assert!(made.iter().flatten().all(|etag| unhex::<16>(etag).is_some()), "a part's ETag is an MD5 in form");
    }

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
