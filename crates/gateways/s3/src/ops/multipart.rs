//! Multipart uploads. Parts and completion are decided in the shard; the ETag and checksums of the whole are computed
//! here, from the parts that the request names.

use super::Gateway;
use super::object::{insert_written_version, of_write, store, write_checksum_elements};
use crate::attributes::write_checksums;
use crate::checksum::{Algorithm, ChecksumType, Promised, combine, multipart_etag};
use crate::conditions::{bare_etag, of_write as write_conditions};
use crate::encoding::{hex, percent_encode_path, unhex};
use crate::error::{Code, Result, S3Error};
use crate::names;
use crate::payload::Payload;
use crate::request::{Reply, Request, empty, insert, insert_etag, malformed_xml, quoted, xml_reply};
use crate::xml::{Element, Writer};
use bytes::Bytes;
use client::{BucketInfo, Checksum, CompleteRequest, CreateUpload, FinishPart, NamedPart, Part, Upload};
use http::StatusCode;

/// The highest part number, and so the most parts.
const PARTS_MAX: u32 = 10_000;

/// Part rows that are read at once.
const PART_PAGE: u32 = 1000;

pub async fn create(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let asked_type = request.header(&names::CHECKSUM_TYPE);
    let checksum = match (request.header(&names::CHECKSUM_ALGORITHM), asked_type) {
        (Some(name), _) => {
            let algorithm = Algorithm::wanted(name)?;
            Some((algorithm, ChecksumType::of_upload(algorithm, asked_type)?))
        }
        (None, Some(_)) => {
            let message = "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.";
            return Err(S3Error::new(Code::InvalidRequest, message));
        }
        (None, None) => None,
    };
    let upload = CreateUpload {
        key: request.target.key.clone(),
        attributes: Some(of_write(gateway, request, &bucket).await?),
        checksum_algorithm: checksum.map_or_else(String::new, |(algorithm, _)| algorithm.name().to_owned()),
        checksum_type: checksum.map_or_else(String::new, |(_, kind)| kind.as_str().to_owned()),
        owner: request.caller.access_key().to_owned(),
        ..CreateUpload::default()
    };
    let id = gateway.client.create_upload(&bucket, upload).await?;
    let mut reply = xml_reply(Writer::answer("InitiateMultipartUploadResult", |xml| {
        xml.text("Bucket", &bucket.name);
        xml.text("Key", request.target.key_text());
        xml.text("UploadId", &hex(&id));
    }));
    if let Some((algorithm, kind)) = checksum {
        insert(&mut reply, names::CHECKSUM_ALGORITHM, &algorithm.upper_name());
        insert(&mut reply, names::CHECKSUM_TYPE, kind.as_str());
    }
    Ok(reply)
}

pub async fn part(gateway: &Gateway, request: &Request, mut payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let (id, number) = (upload_of(request)?, part_number(request)?);
    let upload = gateway.client.upload(&bucket, &request.target.key, &id).await?;
    let promised = Promised::read(&request.headers, &request.announced)?;
    let algorithms = part_algorithms(promised.algorithms(), &upload)?;
    let place = bucket.clone().in_pool(upload.attributes.as_ref().map_or(0, |attributes| attributes.pool));
    let mut writer = gateway.writer(request, &place, request.target.key.clone(), payload.announced_length());
    let sums = store(&mut payload, &mut writer, &promised, algorithms).await?;
    let finish = FinishPart { upload: id, number, etag: sums.etag(), checksums: sums.checksums };
    let part = writer.finish_part(finish).await?;
    let mut reply = empty(StatusCode::OK);
    insert_etag(&mut reply, &part.etag);
    write_checksums(&part.checksums, reply.headers_mut());
    reply.headers_mut().remove(names::CHECKSUM_TYPE);
    Ok(reply)
}

/// The algorithms to compute for a part: those of its request and that of its upload, which must not contradict.
fn part_algorithms(mut given: Vec<Algorithm>, upload: &Upload) -> Result<Vec<Algorithm>> {
    let Some(of_upload) = Algorithm::named(&upload.checksum_algorithm) else { return Ok(given) };
    if let Some(other) = given.iter().find(|&&algorithm| algorithm != of_upload) {
        let (expected, actual) = (of_upload.name(), other.name());
        let message = format!(
            "Checksum Type mismatch occurred, expected checksum Type: {expected}, actual checksum Type: {actual}"
        );
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    if given.is_empty() {
        given.push(of_upload);
    }
    Ok(given)
}

pub async fn complete(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let id = upload_of(request)?;
    let document = request.xml_body(payload, "CompleteMultipartUpload", false).await?;
    let named = named_parts(&document)?;
    let etag = multipart_etag(named.iter().map(|part| part.etag.as_str()))
        .ok_or(client::Error::InvalidPart { detail: "with an ETag that is no MD5".to_owned() })?;
    let size_expected = match request.header(&names::MP_OBJECT_SIZE).map(str::parse) {
        Some(Ok(size)) => Some(size),
        Some(Err(_)) => return Err(S3Error::new(Code::InvalidRequest, "x-amz-mp-object-size is not a number.")),
        None => None,
    };
    let precondition = write_conditions(&request.headers)?;
    let key = &request.target.key;
    // An upload that is gone may have been completed by the same request before: the shard knows.
    let checksums = match gateway.client.upload(&bucket, key, &id).await {
        Ok(upload) => whole_checksum(gateway, &bucket, request, &upload, &named).await?,
        Err(client::Error::NoSuchUpload) => completed_checksums(gateway, &bucket, key, &id).await?,
        Err(error) => return Err(error.into()),
    };
    let completed = CompleteRequest { parts: named, etag, checksums: checksums.clone(), size_expected, precondition };
    let written = gateway.client.complete_upload(&bucket, key, &id, completed).await?;
    let mut reply = xml_reply(Writer::answer("CompleteMultipartUploadResult", |xml| {
        xml.text("Location", &format!("/{}/{}", bucket.name, percent_encode_path(key)));
        xml.text("Bucket", &bucket.name);
        xml.text("Key", request.target.key_text());
        xml.text("ETag", &quoted(&written.etag));
        write_checksum_elements(xml, &checksums, true);
    }));
    insert_written_version(&mut reply, &written.version);
    Ok(reply)
}

/// The checksums of an object that this upload has made already.
async fn completed_checksums(gateway: &Gateway, bucket: &BucketInfo, key: &Bytes, id: &Bytes) -> Result<Vec<Checksum>> {
    match gateway.client.head(bucket, key, None).await {
        Ok(object) if object.from_upload == *id => Ok(object.attributes.unwrap_or_default().checksums),
        Ok(_) | Err(client::Error::NoSuchKey | client::Error::DeleteMarker { .. }) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// The parts that the request names: 1 to 10,000, in ascending order.
fn named_parts(document: &Element) -> Result<Vec<NamedPart>> {
    let mut named: Vec<NamedPart> = Vec::new();
    for part in document.all("Part") {
        let number = part.child_text("PartNumber").and_then(|text| text.parse::<u32>().ok());
        let number = number.ok_or_else(|| malformed_xml("a part has no number"))?;
        let etag = part.child_text("ETag").map(bare_etag).ok_or_else(|| malformed_xml("a part has no ETag"))?;
        if !(1..=PARTS_MAX).contains(&number) {
            return Err(part_number_out_of_range());
        }
        match named.last().map(|before| before.number) {
            Some(before) if before > number => return Err(client::Error::InvalidPartOrder.into()),
            // A part that was uploaded twice may be named twice: the later one counts.
            Some(before) if before == number => drop(named.pop()),
            _ => {}
        }
        let checksum = |algorithm: Algorithm| {
            let value = part.child_text(algorithm.element())?.to_owned();
            Some(Checksum { algorithm: algorithm.name().to_owned(), value, composite: false })
        };
        let checksums = Algorithm::ALL.into_iter().filter_map(checksum).collect();
        named.push(NamedPart { number, etag: etag.to_ascii_lowercase(), checksums });
    }
    if named.is_empty() { Err(malformed_xml("it names no part")) } else { Ok(named) }
}

/// The checksum of the whole object, computed from its parts' and compared with what the request promises.
async fn whole_checksum(
    gateway: &Gateway,
    bucket: &BucketInfo,
    request: &Request,
    upload: &Upload,
    named: &[NamedPart],
) -> Result<Vec<Checksum>> {
    let promised = Algorithm::ALL.into_iter().find_map(|algorithm| {
        let value = request.headers.get(algorithm.header())?.to_str().ok()?;
        Some((algorithm, value))
    });
    let Some(algorithm) = Algorithm::named(&upload.checksum_algorithm) else {
        return match promised {
            None => Ok(Vec::new()),
            Some((algorithm, _)) => {
                let name = algorithm.upper_name();
                let message =
                    format!("The upload was created without a checksum algorithm, so {name} cannot be verified.");
                Err(S3Error::new(Code::InvalidRequest, message))
            }
        };
    };
    let kind = if upload.checksum_type == "FULL_OBJECT" { ChecksumType::FullObject } else { ChecksumType::Composite };
    if request.header(&names::CHECKSUM_TYPE).is_some_and(|asked| asked != kind.as_str()) {
        let message = "The x-amz-checksum-type is not that of the upload.";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let rows = all_parts(gateway, bucket, request, &upload.upload).await?;
    let values = part_values(algorithm, &rows, named)?;
    let Some(whole) = combine(algorithm, kind, &values) else {
        let message = format!("The upload was created using a {} checksum, but a part has none.", algorithm.name());
        return Err(S3Error::new(Code::InvalidRequest, message));
    };
    match promised {
        Some((other, value)) if other != algorithm || value != whole.value => {
            let message = "The checksum you specified did not match the calculated checksum. The upload is unchanged.";
            Err(S3Error::new(Code::BadDigest, message))
        }
        _ => Ok(vec![whole]),
    }
}

/// All part rows of an upload, in order: at most 10,000.
async fn all_parts(gateway: &Gateway, bucket: &BucketInfo, request: &Request, upload: &Bytes) -> Result<Vec<Part>> {
    let mut rows: Vec<Part> = Vec::new();
    loop {
        let after = rows.last().map_or(0, |part| part.number);
        let page = gateway.client.list_parts(bucket, &request.target.key, upload, after, PART_PAGE).await?;
        let more = page.truncated && !page.parts.is_empty();
        rows.extend(page.parts);
        if !more || rows.len() >= PARTS_MAX as usize {
            return Ok(rows);
        }
    }
}

/// Checksum and length of each named part.
fn part_values<'a>(algorithm: Algorithm, rows: &'a [Part], named: &[NamedPart]) -> Result<Vec<(Option<&'a str>, u64)>> {
    let value = |part: &NamedPart| {
        let position = rows.binary_search_by_key(&part.number, |row| row.number);
        let missing = || S3Error::from(client::Error::InvalidPart { detail: part.number.to_string() });
        let row = &rows[position.map_err(|_| missing())?];
        let checksum = row.checksums.iter().find(|checksum| checksum.algorithm == algorithm.name());
        let size = row.body.as_ref().map_or(0, |body| body.size);
        Ok((checksum.map(|checksum| checksum.value.as_str()), size))
    };
    named.iter().map(value).collect()
}

pub async fn abort(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    gateway.client.abort_upload(&bucket, &request.target.key, &upload_of(request)?).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// The upload that the request names.
pub fn upload_of(request: &Request) -> Result<Bytes> {
    upload_id(request.query.get("uploadId").unwrap_or_default())
}

/// An upload id as clients see it: 32 hex digits.
pub fn upload_id(text: &str) -> Result<Bytes> {
    let id = unhex::<16>(text).map(|id| Bytes::copy_from_slice(&id));
    id.ok_or_else(|| S3Error::from(client::Error::NoSuchUpload).field("UploadId", text))
}

pub fn part_number(request: &Request) -> Result<u32> {
    let text = request.query.get("partNumber").unwrap_or_default();
    let number = text.parse::<u32>().ok().filter(|number| (1..=PARTS_MAX).contains(number));
    number.ok_or_else(part_number_out_of_range)
}

fn part_number_out_of_range() -> S3Error {
    let message = "Part number must be an integer between 1 and 10000, inclusive.";
    S3Error::new(Code::InvalidArgument, message).field("ArgumentName", "partNumber")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(inside: &str) -> std::result::Result<Vec<(u32, String)>, Code> {
        let document = format!("<CompleteMultipartUpload>{inside}</CompleteMultipartUpload>");
        let parts = named_parts(&crate::xml::read(document.as_bytes()).unwrap()).map_err(|error| error.code)?;
        Ok(parts.into_iter().map(|part| (part.number, part.etag)).collect())
    }

    #[test]
    fn parts_are_named_in_ascending_order() {
        let part = |number: &str| format!("<Part><PartNumber>{number}</PartNumber><ETag>\"A{number}\"</ETag></Part>");
        assert_eq!(named(&(part("1") + &part("3"))), Ok(vec![(1, "a1".to_owned()), (3, "a3".to_owned())]));
        assert_eq!(named(&(part("3") + &part("1"))), Err(Code::InvalidPartOrder));
        assert_eq!(named(&(part("1").replace("A1", "B1") + &part("1"))), Ok(vec![(1, "a1".to_owned())]));
        assert_eq!(named(&part("10001")), Err(Code::InvalidArgument));
        assert_eq!(named(&part("0")), Err(Code::InvalidArgument));
        assert_eq!(named(""), Err(Code::MalformedXML));
        assert_eq!(named("<Part><PartNumber>1</PartNumber></Part>"), Err(Code::MalformedXML));
    }

    #[test]
    fn a_part_follows_its_uploads_algorithm() {
        let upload = Upload { checksum_algorithm: "sha256".to_owned(), ..Upload::default() };
        assert_eq!(part_algorithms(vec![], &upload).unwrap(), [Algorithm::Sha256]);
        assert!(part_algorithms(vec![Algorithm::Crc32], &upload).is_err());
        assert_eq!(part_algorithms(vec![Algorithm::Crc32], &Upload::default()).unwrap(), [Algorithm::Crc32]);
    }
}
