//! One object: PUT, GET, HEAD and what is known about it.

use super::{Gateway, is_versioned, storage_class};
use crate::acl;
use crate::attributes::{OVERRIDES, kept_headers, write_checksums, write_headers};
use crate::auth::Caller;
use crate::authorize::Wish;
use crate::body::ResponseBody;
use crate::checksum::{Algorithm, ChecksumType, Hashes, Promised, Sums};
use crate::conditions::{ReadConditions, of_write as write_conditions};
use crate::date::http_date;
use crate::encoding::version_text;
use crate::error::{Code, Result, S3Error};
use crate::lifecycle;
use crate::lock;
use crate::names;
use crate::payload::Payload;
use crate::range::{ByteRange, content_range};
use crate::request::{Reply, Request, empty, insert, insert_etag, xml_reply};
use crate::tags;
use crate::xml::Writer;
use access::Action;
use bytes::Bytes;
use client::{
    Attributes, Body, BucketInfo, ChangeRequest, FinishPut, ObjectVersion, ObjectWriter, Part, STANDARD, Written,
};
use http::StatusCode;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, IF_RANGE, LAST_MODIFIED, RANGE};
use std::ops::Range;

pub async fn put(gateway: &Gateway, request: &Request, mut payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let promised = Promised::read(&request.headers, &request.announced)?;
    let precondition = write_conditions(&request.headers)?;
    let attributes = of_write(gateway, request, &bucket).await?;
    let key = request.target.key.clone();
    let place = bucket.clone().in_pool(attributes.pool);
    let mut writer = gateway.writer(request, &place, key, payload.announced_length());
    let sums = store(&mut payload, &mut writer, &promised, promised.algorithms()).await?;
    let attributes = Attributes { etag: sums.etag(), checksums: sums.checksums, ..attributes };
    let checksums = attributes.checksums.clone();
    let attributes_kept = Attributes { tags: attributes.tags.clone(), ..Attributes::default() };
    let written = writer.finish(FinishPut { attributes, precondition }).await?;
    let mut reply = empty(StatusCode::OK);
    insert_etag(&mut reply, &written.etag);
    write_checksums(&checksums, reply.headers_mut());
    insert(&mut reply, names::OBJECT_SIZE, &written.size.to_string());
    insert_written_version(&mut reply, &written.version);
    let stored = ObjectVersion {
        modified_ms: written.modified_ms,
        body: Some(Body { size: written.size, ..Body::default() }),
        attributes: Some(attributes_kept),
        ..ObjectVersion::default()
    };
    lifecycle::insert_expiration(&mut reply, &bucket, &request.target.key, &stored);
    Ok(reply)
}

/// What a write says besides its content: headers, metadata, tags, access list. ETag and checksums come later.
pub async fn of_write(gateway: &Gateway, request: &Request, bucket: &BucketInfo) -> Result<Attributes> {
    let acl = acl::of_new_object(&request.headers, bucket, request.caller.access_key())?;
    super::acl::refuse_public(bucket, &acl)?;
    super::acl::check_users(gateway, &acl).await?;
    Ok(Attributes {
        headers: kept_headers(&request.headers)?,
        tags: tags::of_headers(&request.headers)?,
        acl: acl.encode(&bucket.owner),
        lock: lock::of_write(&request.headers, gateway.client.wall_ms())?,
        pool: storage_class::pool_of_write(gateway, request).await?,
        ..Attributes::default()
    })
}

/// Changes what a version says of itself. Delete markers are errors that say so.
pub async fn change(gateway: &Gateway, bucket: &BucketInfo, key: &Bytes, change: ChangeRequest) -> Result<Written> {
    let named = change.version.clone();
    match (gateway.client.change_version(bucket, key, change).await, named) {
        (Err(client::Error::DeleteMarker { .. }), Some(version)) => Err(S3Error::marker_named(&version_text(&version))),
        (result, _) => result.map_err(|error| with_key(error, key)),
    }
}

/// Moves the content of a request into the cluster, hashing it while it passes. When this returns, the content is
/// complete and is what the client promised; until then nothing was committed.
pub async fn store(
    payload: &mut Payload,
    writer: &mut ObjectWriter,
    promised: &Promised,
    algorithms: Vec<Algorithm>,
) -> Result<Sums> {
    let mut hashes = Hashes::new(&algorithms);
    while let Some(piece) = payload.next().await {
        let piece = piece?;
        // The writer first: storing goes on while this piece is hashed. Cloning shares the bytes.
        writer.write(piece.clone()).await?;
        hashes.update(&piece);
    }
    let sums = hashes.finish();
    promised.verify(&sums, |name| payload.trailer(name))?;
    Ok(sums)
}

pub async fn get(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let (bucket, object, selected) = select(gateway, request).await?;
    let mut reply = describe(gateway, request, &bucket, &object, &selected)?;
    let length = selected.range.end - selected.range.start;
    if length > 0 {
        let mut reader = gateway.client.read(&bucket, &object, selected.range);
        let first = reader.next().await.transpose()?.unwrap_or_default();
        *reply.body_mut() = ResponseBody::object(first, reader, length);
    }
    Ok(reply)
}

pub async fn head(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let (bucket, object, selected) = select(gateway, request).await?;
    describe(gateway, request, &bucket, &object, &selected)
}

/// The part of an object that a read asks for.
struct Selected {
    range: Range<u64>,
    /// Whether a range or part was asked for (206).
    partial: bool,
    /// Set when a part of a multipart object was asked for.
    part: Option<SelectedPart>,
}

struct SelectedPart {
    number: u32,
    /// Parts of the object.
    count: usize,
    checksums: Vec<client::Checksum>,
}

/// RFC 9110 section 13.1.5: a range of another version than the one that the client began with is not sent.
fn if_range_holds(request: &Request, object: &ObjectVersion) -> bool {
    let Some(validator) = request.header(&IF_RANGE) else { return true };
    let etag = object.attributes.as_ref().map_or("", |attributes| attributes.etag.as_str());
    validator.trim_matches('"') == etag || validator == http_date(object.modified_ms)
}

async fn select(gateway: &Gateway, request: &Request) -> Result<(BucketInfo, ObjectVersion, Selected)> {
    if matches!(request.caller, Caller::Anonymous) && OVERRIDES.iter().any(|name| request.query.has(name)) {
        let message = "Request specific response headers cannot be used for anonymous GET requests.";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let bucket = gateway.lookup(request).await?;
    let version = request.version()?;
    let action = if version.is_some() { Action::GET_OBJECT_VERSION } else { Action::GET_OBJECT };
    let wish = Wish::new(action, &bucket, &request.target.key).naming(version.as_ref());
    let object = gateway.object(request, wish).await?;
    ReadConditions::of_read(&request.headers)?.check(&object)?;
    let range = request.header(&RANGE).and_then(ByteRange::read).filter(|_| if_range_holds(request, &object));
    let mut selected = match (request.query.number("partNumber")?, range) {
        (Some(_), Some(_)) => {
            let message = "Cannot specify both Range header and partNumber query parameter.";
            return Err(S3Error::new(Code::InvalidRequest, message));
        }
        (Some(number), None) => select_part(&object, number)?,
        (None, Some(range)) => Selected { range: range.within(size_of(&object))?, partial: true, part: None },
        (None, None) => Selected { range: 0..size_of(&object), partial: false, part: None },
    };
    if let Some((part, body)) = selected.part.as_mut().zip(object.body.as_ref()).filter(|_| wants_checksums(request)) {
        let before = part.number - 1;
        let page = gateway.client.list_parts(&bucket, &object.key, &body.upload, before, 1).await?;
        let row = page.parts.into_iter().next().filter(|row| row.number == part.number);
        part.checksums = row.map(|row| row.checksums).unwrap_or_default();
    }
    Ok((bucket, object, selected))
}

fn wants_checksums(request: &Request) -> bool {
    request.header(&names::CHECKSUM_MODE).is_some_and(|mode| mode.eq_ignore_ascii_case("ENABLED"))
}

/// The newest version of a key, or the named one. Delete markers are errors that say so.
pub async fn find(
    gateway: &Gateway,
    bucket: &BucketInfo,
    key: &Bytes,
    version: Option<Bytes>,
) -> Result<ObjectVersion> {
    let named = version.clone();
    let marker = |id: &str| match &named {
        Some(version) => S3Error::marker_named(&version_text(version)),
        None => S3Error::from(client::Error::DeleteMarker { version: id.to_owned() }),
    };
    match gateway.client.head(bucket, key, version).await {
        Ok(object) if object.delete_marker => Err(marker(&version_text(&object.version))),
        Ok(object) => Ok(object),
        Err(client::Error::DeleteMarker { version }) => Err(marker(&version)),
        Err(error) => Err(with_key(error, key)),
    }
}

/// An error about a key names it, as S3 does.
fn with_key(error: client::Error, key: &Bytes) -> S3Error {
    let names_key = matches!(error, client::Error::NoSuchKey | client::Error::NoSuchVersion);
    let error = S3Error::from(error);
    if !names_key {
        return error;
    }
    error
        .field("Key", String::from_utf8_lossy(key))
        .header(names::DELETE_MARKER, http::HeaderValue::from_static("false"))
}

fn select_part(object: &ObjectVersion, number: u32) -> Result<Selected> {
    let parts = object.body.as_ref().map_or(&[][..], |body| &body.parts);
    let absent = || S3Error::new(Code::InvalidPart, "The requested partnumber is not satisfiable.");
    if parts.is_empty() {
        // An object that was written in one piece is its own first part.
        let whole = Selected { range: 0..size_of(object), partial: size_of(object) > 0, part: None };
        return if number == 1 { Ok(whole) } else { Err(absent()) };
    }
    let position = parts.iter().position(|part| part.number == number).ok_or_else(absent)?;
    let start: u64 = parts[..position].iter().map(|part| part.size).sum();
    let range = start..start + parts[position].size;
    let part = SelectedPart { number, count: parts.len(), checksums: Vec::new() };
    Ok(Selected { partial: !range.is_empty(), range, part: Some(part) })
}

/// The headers of an answer to GET and HEAD.
fn describe(
    gateway: &Gateway,
    request: &Request,
    bucket: &BucketInfo,
    object: &ObjectVersion,
    selected: &Selected,
) -> Result<Reply> {
    let unknown = Attributes::default();
    let attributes = object.attributes.as_ref().unwrap_or(&unknown);
    let mut reply = empty(if selected.partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK });
    write_headers(&attributes.headers, |name| request.query.get(name), reply.headers_mut())?;
    insert_etag(&mut reply, &attributes.etag);
    insert(&mut reply, LAST_MODIFIED, &http_date(object.modified_ms));
    insert(&mut reply, ACCEPT_RANGES, "bytes");
    insert(&mut reply, CONTENT_LENGTH, &(selected.range.end - selected.range.start).to_string());
    if selected.partial {
        insert(&mut reply, CONTENT_RANGE, &content_range(&selected.range, size_of(object)));
    } else if wants_checksums(request) {
        write_checksums(&attributes.checksums, reply.headers_mut());
    }
    if let Some(part) = &selected.part {
        write_checksums(&part.checksums, reply.headers_mut());
        if let Some(whole) = attributes.checksums.first().filter(|_| !part.checksums.is_empty()) {
            insert(&mut reply, names::CHECKSUM_TYPE, ChecksumType::of(whole).as_str());
        }
        insert(&mut reply, names::MP_PARTS_COUNT, &part.count.to_string());
    }
    if !attributes.tags.is_empty() {
        insert(&mut reply, names::TAGGING_COUNT, &attributes.tags.len().to_string());
    }
    lock::insert(&mut reply, attributes.lock.as_ref());
    if attributes.pool != 0 {
        let classes = gateway.client.storage_classes(bucket);
        let class = classes.name(attributes.pool);
        // As in S3, the usual one goes without saying.
        if class != STANDARD {
            insert(&mut reply, names::STORAGE_CLASS, class);
        }
    }
    if object.latest {
        lifecycle::insert_expiration(&mut reply, bucket, &object.key, object);
    }
    if is_versioned(bucket) {
        insert_version(&mut reply, &object.version);
    }
    Ok(reply)
}

/// GetObjectAttributes: what `x-amz-object-attributes` lists.
pub async fn attributes(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.lookup(request).await?;
    let version = request.version()?;
    let of_version = version.is_some();
    let action = if of_version { Action::GET_OBJECT_VERSION } else { Action::GET_OBJECT };
    let of_action = |action| Wish::new(action, &bucket, &request.target.key).naming(version.as_ref());
    let object = gateway.object(request, of_action(action)).await?;
    let action = if of_version { Action::GET_OBJECT_VERSION_ATTRIBUTES } else { Action::GET_OBJECT_ATTRIBUTES };
    gateway.authorize_object(request, of_action(action), &object).await?;
    let wanted: Vec<String> = request
        .headers
        .get_all(names::OBJECT_ATTRIBUTES)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_owned()))
        .collect();
    const KNOWN: [&str; 5] = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];
    if wanted.is_empty() || !wanted.iter().all(|name| KNOWN.contains(&name.as_str())) {
        return Err(S3Error::new(Code::InvalidArgument, "The x-amz-object-attributes header is missing or invalid."));
    }
    let wants = |name: &str| wanted.iter().any(|given| given == name);
    let parts = match &object.body {
        Some(body) if wants("ObjectParts") && !body.parts.is_empty() => {
            Some(part_page(gateway, request, &bucket, &object, body).await?)
        }
        _ => None,
    };
    let known = object.attributes.clone().unwrap_or_default();
    let mut reply = xml_reply(Writer::answer("GetObjectAttributesResponse", |xml| {
        if wants("ETag") {
            xml.text("ETag", &known.etag);
        }
        if wants("Checksum") && !known.checksums.is_empty() {
            xml.element("Checksum", |xml| write_checksum_elements(xml, &known.checksums, true));
        }
        if let Some((page, count)) = &parts {
            xml.element("ObjectParts", |xml| {
                page.write(xml);
                xml.number("PartsCount", *count as u64);
            });
        }
        if wants("StorageClass") {
            xml.text("StorageClass", gateway.client.storage_classes(&bucket).name(known.pool));
        }
        if wants("ObjectSize") {
            xml.number("ObjectSize", size_of(&object));
        }
    }));
    insert(&mut reply, LAST_MODIFIED, &http_date(object.modified_ms));
    if is_versioned(&bucket) {
        insert_version(&mut reply, &object.version);
    }
    Ok(reply)
}

/// A page of the parts of a completed object.
struct PartsOfObject {
    parts: Vec<Part>,
    limit: u32,
    marker: u32,
    truncated: bool,
}

impl PartsOfObject {
    fn write(&self, xml: &mut Writer) {
        xml.flag("IsTruncated", self.truncated);
        xml.number("MaxParts", u64::from(self.limit));
        xml.number("PartNumberMarker", u64::from(self.marker));
        if let Some(last) = self.parts.last() {
            xml.number("NextPartNumberMarker", u64::from(last.number));
        }
        // S3 lists the parts only of objects whose parts have checksums.
        for part in self.parts.iter().filter(|part| !part.checksums.is_empty()) {
            xml.element("Part", |xml| {
                write_checksum_elements(xml, &part.checksums, false);
                xml.number("PartNumber", u64::from(part.number));
                xml.number("Size", part.body.as_ref().map_or(0, |body| body.size));
            });
        }
    }
}

async fn part_page(
    gateway: &Gateway,
    request: &Request,
    bucket: &BucketInfo,
    object: &ObjectVersion,
    body: &Body,
) -> Result<(PartsOfObject, usize)> {
    let number = |name: &'static str| {
        let text = request.headers.get(name).and_then(|value| value.to_str().ok());
        text.map(|text| text.parse::<u32>())
            .transpose()
            .map_err(|_| S3Error::new(Code::InvalidArgument, format!("The header {name} must be a whole number.")))
    };
    let limit = number("x-amz-max-parts")?.unwrap_or(1000).min(1000);
    let marker = number("x-amz-part-number-marker")?.unwrap_or(0);
    let page = gateway.client.list_parts(bucket, &object.key, &body.upload, marker, limit).await?;
    Ok((PartsOfObject { parts: page.parts, limit, marker, truncated: page.truncated }, body.parts.len()))
}

/// Checksums as XML elements.
pub fn write_checksum_elements(xml: &mut Writer, checksums: &[client::Checksum], with_type: bool) {
    for checksum in checksums {
        if let Some(algorithm) = Algorithm::named(&checksum.algorithm) {
            xml.text(algorithm.element(), &checksum.value);
        }
    }
    if let Some(checksum) = checksums.first().filter(|_| with_type) {
        xml.text("ChecksumType", ChecksumType::of(checksum).as_str());
    }
}

pub fn size_of(object: &ObjectVersion) -> u64 {
    object.body.as_ref().map_or(0, |body| body.size)
}

/// `x-amz-version-id` of what was written: not for the null version, which has no id of its own.
pub fn insert_written_version(reply: &mut Reply, version: &[u8]) {
    if version != b"null" {
        insert_version(reply, version);
    }
}

/// `x-amz-version-id`, where the bucket has versions.
pub fn insert_version(reply: &mut Reply, version: &[u8]) {
    if !version.is_empty() {
        insert(reply, names::VERSION_ID, &version_text(version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::PartSize;

    #[test]
    fn a_part_number_selects_the_bytes_of_that_part() {
        let parts = [(1, 10), (3, 20), (4, 5)].map(|(number, size)| PartSize { number, size }).to_vec();
        let object =
            ObjectVersion { body: Some(Body { size: 35, parts, ..Body::default() }), ..ObjectVersion::default() };
        let of =
            |number| select_part(&object, number).map(|s| (s.range, s.part.map(|part| part.count))).map_err(|e| e.code);
        assert_eq!(of(1), Ok((0..10, Some(3))));
        assert_eq!(of(3), Ok((10..30, Some(3))));
        assert_eq!(of(4), Ok((30..35, Some(3))));
        assert_eq!(of(2), Err(Code::InvalidPart));
        let plain = ObjectVersion { body: Some(Body { size: 7, ..Body::default() }), ..ObjectVersion::default() };
        assert_eq!(select_part(&plain, 1).unwrap().range, 0..7);
        assert!(select_part(&plain, 2).is_err());
    }
}
