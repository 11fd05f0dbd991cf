//! Listings: objects (two protocol versions), versions, uploads, parts. A page is one range scan; where it stopped
//! travels with the client, so any gateway can go on.

use super::{Gateway, write_owner};
use crate::acl::Acl;
use crate::checksum::{Algorithm, ChecksumType};
use crate::date::iso8601;
use crate::encoding::{continuation_key, continuation_token, hex, percent_encode_path, version_text};
use crate::error::{Code, Result, S3Error};
use crate::query::Query;
use crate::request::{Reply, Request, parse_version, quoted, xml_reply};
use crate::xml::Writer;
use bytes::Bytes;
use client::{
    BucketInfo, ListObjectsRequest, ListUploadsRequest, ListVersionsRequest, ObjectPage, ObjectVersion, StorageClasses,
};

/// The most entries in one page.
const PAGE_MAX: u32 = 1000;

/// The parameters that all listings of keys share.
struct Listing<'a> {
    prefix: &'a str,
    delimiter: &'a str,
    /// Entries in a page.
    limit: u32,
    /// Keys in the answer are percent-encoded (`encoding-type=url`).
    encoded: bool,
    /// The first version of the protocol never encodes the prefix that it repeats, and clients do not decode it.
    prefix_plain: bool,
}

impl<'a> Listing<'a> {
    fn read(query: &'a Query, limit_name: &str) -> Result<Listing<'a>> {
        let encoded = match query.get("encoding-type") {
            None | Some("") => false,
            Some("url") => true,
            Some(other) => {
                return Err(S3Error::new(Code::InvalidArgument, "Invalid Encoding Method specified in Request.")
                    .field("ArgumentName", "encoding-type")
                    .field("ArgumentValue", other));
            }
        };
        Ok(Listing {
            prefix: query.get("prefix").unwrap_or_default(),
            delimiter: query.get("delimiter").unwrap_or_default(),
            limit: query.number(limit_name)?.unwrap_or(PAGE_MAX).min(PAGE_MAX),
            encoded,
            prefix_plain: false,
        })
    }

    /// Writes an element that holds a key or a part of one.
    fn key(&self, xml: &mut Writer, element: &str, key: &[u8]) {
        if self.encoded {
            xml.text(element, &percent_encode_path(key));
        } else {
            xml.text(element, &String::from_utf8_lossy(key));
        }
    }

    /// The parameters, as every answer repeats them.
    fn write(&self, xml: &mut Writer, bucket: &BucketInfo, limit_element: &str) {
        xml.text(if limit_element == "MaxUploads" { "Bucket" } else { "Name" }, &bucket.name);
        match self.prefix_plain {
            true => xml.text("Prefix", self.prefix),
            false => self.key(xml, "Prefix", self.prefix.as_bytes()),
        }
        if !self.delimiter.is_empty() {
            self.key(xml, "Delimiter", self.delimiter.as_bytes());
        }
        xml.number(limit_element, u64::from(self.limit));
        if self.encoded {
            xml.text("EncodingType", "url");
        }
    }

    fn prefixes(&self, xml: &mut Writer, prefixes: &[Bytes]) {
        for prefix in prefixes {
            xml.element("CommonPrefixes", |xml| self.key(xml, "Prefix", prefix));
        }
    }

    fn objects(&self, xml: &mut Writer, page: &ObjectPage, classes: &StorageClasses, owner: Option<&str>) {
        for object in &page.objects {
            xml.element("Contents", |xml| {
                self.key(xml, "Key", &object.key);
                write_object(xml, object, classes);
                if let Some(owner) = owner {
                    write_owner(xml, "Owner", owner);
                }
            });
        }
    }

    /// A page of keys after `after`.
    async fn page(&self, gateway: &Gateway, bucket: &BucketInfo, after: Bytes) -> Result<ObjectPage> {
        if self.limit == 0 {
            return Ok(ObjectPage::default());
        }
        let request = ListObjectsRequest {
            prefix: Bytes::copy_from_slice(self.prefix.as_bytes()),
            delimiter: Bytes::copy_from_slice(self.delimiter.as_bytes()),
            after,
            limit: self.limit,
        };
        Ok(gateway.client.list_objects(bucket, request).await?)
    }
}

/// What all listings say about an object or version besides its key.
fn write_object(xml: &mut Writer, object: &ObjectVersion, classes: &StorageClasses) {
    xml.text("LastModified", &iso8601(object.modified_ms));
    if let Some(attributes) = &object.attributes {
        xml.text("ETag", &quoted(&attributes.etag));
        for checksum in &attributes.checksums {
            xml.text("ChecksumAlgorithm", &checksum.algorithm.to_ascii_uppercase());
        }
        if let Some(checksum) = attributes.checksums.first() {
            xml.text("ChecksumType", ChecksumType::of(checksum).as_str());
        }
    }
    xml.number("Size", super::object::size_of(object));
    xml.text("StorageClass", classes.of(object.attributes.as_ref()));
}

pub async fn objects(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let classes = gateway.client.storage_classes(&bucket);
    let listing = Listing { prefix_plain: true, ..Listing::read(&request.query, "max-keys")? };
    let marker = request.query.get("marker").unwrap_or_default();
    let page = listing.page(gateway, &bucket, Bytes::copy_from_slice(marker.as_bytes())).await?;
    Ok(xml_reply(Writer::answer("ListBucketResult", |xml| {
        listing.write(xml, &bucket, "MaxKeys");
        listing.key(xml, "Marker", marker.as_bytes());
        // Without a delimiter the last key of the page is the next marker, and S3 leaves it out.
        if page.truncated && !listing.delimiter.is_empty() {
            listing.key(xml, "NextMarker", &page.next_after);
        }
        xml.flag("IsTruncated", page.truncated);
        listing.objects(xml, &page, &classes, Some(&bucket.owner));
        listing.prefixes(xml, &page.prefixes);
    })))
}

pub async fn objects_v2(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let classes = gateway.client.storage_classes(&bucket);
    let listing = Listing::read(&request.query, "max-keys")?;
    let token = request.query.get("continuation-token");
    let start_after = request.query.get("start-after").unwrap_or_default();
    let after = match token.filter(|token| !token.is_empty()) {
        Some(token) => Bytes::from(continuation_key(token).ok_or_else(bad_token)?),
        None => Bytes::copy_from_slice(start_after.as_bytes()),
    };
    let fetch_owner = request.query.get("fetch-owner") == Some("true");
    let page = listing.page(gateway, &bucket, after).await?;
    Ok(xml_reply(Writer::answer("ListBucketResult", |xml| {
        listing.write(xml, &bucket, "MaxKeys");
        xml.number("KeyCount", (page.objects.len() + page.prefixes.len()) as u64);
        if let Some(token) = token {
            xml.text("ContinuationToken", token);
        }
        if !start_after.is_empty() {
            listing.key(xml, "StartAfter", start_after.as_bytes());
        }
        if page.truncated {
            xml.text("NextContinuationToken", &continuation_token(&page.next_after));
        }
        xml.flag("IsTruncated", page.truncated);
        listing.objects(xml, &page, &classes, fetch_owner.then_some(bucket.owner.as_str()));
        listing.prefixes(xml, &page.prefixes);
    })))
}

pub fn bad_token() -> S3Error {
    S3Error::new(Code::InvalidArgument, "The continuation token provided is incorrect.")
        .field("ArgumentName", "continuation-token")
}

pub async fn versions(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let classes = gateway.client.storage_classes(&bucket);
    let listing = Listing::read(&request.query, "max-keys")?;
    let key_marker = request.query.get("key-marker").unwrap_or_default();
    let version_marker = request.query.get("version-id-marker").filter(|text| !text.is_empty());
    if version_marker.is_some() && key_marker.is_empty() {
        let message = "A version-id marker cannot be specified without a key marker.";
        return Err(S3Error::new(Code::InvalidArgument, message));
    }
    let page = if listing.limit == 0 {
        ObjectPage::default()
    } else {
        let wanted = ListVersionsRequest {
            prefix: Bytes::copy_from_slice(listing.prefix.as_bytes()),
            delimiter: Bytes::copy_from_slice(listing.delimiter.as_bytes()),
            key_marker: Bytes::copy_from_slice(key_marker.as_bytes()),
            version_marker: version_marker.map(parse_version).transpose()?,
            limit: listing.limit,
        };
        gateway.client.list_versions(&bucket, wanted).await?
    };
    Ok(xml_reply(Writer::answer("ListVersionsResult", |xml| {
        listing.write(xml, &bucket, "MaxKeys");
        listing.key(xml, "KeyMarker", key_marker.as_bytes());
        xml.text("VersionIdMarker", version_marker.unwrap_or_default());
        if page.truncated {
            listing.key(xml, "NextKeyMarker", &page.next_after);
            if let Some(version) = &page.next_version {
                xml.text("NextVersionIdMarker", &version_text(version));
            }
        }
        xml.flag("IsTruncated", page.truncated);
        for object in &page.objects {
            xml.element(if object.delete_marker { "DeleteMarker" } else { "Version" }, |xml| {
                listing.key(xml, "Key", &object.key);
                xml.text("VersionId", &version_text(&object.version));
                xml.flag("IsLatest", object.latest);
                if object.delete_marker {
                    xml.text("LastModified", &iso8601(object.modified_ms));
                } else {
                    write_object(xml, object, &classes);
                }
                write_owner(xml, "Owner", &bucket.owner);
            });
        }
        listing.prefixes(xml, &page.prefixes);
    })))
}

pub async fn uploads(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let classes = gateway.client.storage_classes(&bucket);
    let listing = Listing::read(&request.query, "max-uploads")?;
    let key_marker = request.query.get("key-marker").unwrap_or_default();
    let upload_text = request.query.get("upload-id-marker").unwrap_or_default();
    // Without a key marker S3 ignores the upload marker.
    let upload_marker = match upload_text {
        text if text.is_empty() || key_marker.is_empty() => Bytes::new(),
        text => super::multipart::upload_id(text)?,
    };
    let page = if listing.limit == 0 {
        client::UploadPage::default()
    } else {
        let wanted = ListUploadsRequest {
            prefix: Bytes::copy_from_slice(listing.prefix.as_bytes()),
            delimiter: Bytes::copy_from_slice(listing.delimiter.as_bytes()),
            key_marker: Bytes::copy_from_slice(key_marker.as_bytes()),
            upload_marker,
            limit: listing.limit,
        };
        gateway.client.list_uploads(&bucket, wanted).await?
    };
    Ok(xml_reply(Writer::answer("ListMultipartUploadsResult", |xml| {
        listing.write(xml, &bucket, "MaxUploads");
        listing.key(xml, "KeyMarker", key_marker.as_bytes());
        xml.text("UploadIdMarker", upload_text);
        if page.truncated {
            listing.key(xml, "NextKeyMarker", &page.next_key);
            xml.text("NextUploadIdMarker", &hex(&page.next_upload));
        }
        xml.flag("IsTruncated", page.truncated);
        for upload in &page.uploads {
            xml.element("Upload", |xml| {
                listing.key(xml, "Key", &upload.key);
                xml.text("UploadId", &hex(&upload.upload));
                write_owner(xml, "Initiator", &upload.owner);
                write_owner(xml, "Owner", &Acl::of_upload(&bucket, upload).owner);
                xml.text("StorageClass", classes.of(upload.attributes.as_ref()));
                xml.text("Initiated", &iso8601(upload.created_ms));
                write_upload_checksum(xml, upload);
            });
        }
        listing.prefixes(xml, &page.prefixes);
    })))
}

pub async fn parts(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let classes = gateway.client.storage_classes(&bucket);
    let key = &request.target.key;
    let upload_text = request.query.get("uploadId").unwrap_or_default();
    let id = super::multipart::upload_id(upload_text)?;
    let limit = request.query.number("max-parts")?.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let marker = request.query.number("part-number-marker")?.unwrap_or(0);
    let upload = gateway.client.upload(&bucket, key, &id).await?;
    let page = if limit == 0 {
        client::PartPage::default()
    } else {
        gateway.client.list_parts(&bucket, key, &id, marker, limit).await?
    };
    Ok(xml_reply(Writer::answer("ListPartsResult", |xml| {
        xml.text("Bucket", &bucket.name);
        xml.text("Key", request.target.key_text());
        xml.text("UploadId", upload_text);
        write_owner(xml, "Initiator", &upload.owner);
        write_owner(xml, "Owner", &Acl::of_upload(&bucket, &upload).owner);
        xml.text("StorageClass", classes.of(upload.attributes.as_ref()));
        xml.number("PartNumberMarker", u64::from(marker));
        if let Some(last) = page.parts.last() {
            xml.number("NextPartNumberMarker", u64::from(last.number));
        }
        xml.number("MaxParts", u64::from(limit));
        xml.flag("IsTruncated", page.truncated);
        write_upload_checksum(xml, &upload);
        for part in &page.parts {
            xml.element("Part", |xml| {
                xml.number("PartNumber", u64::from(part.number));
                xml.text("LastModified", &iso8601(part.modified_ms));
                xml.text("ETag", &quoted(&part.etag));
                xml.number("Size", part.body.as_ref().map_or(0, |body| body.size));
                super::object::write_checksum_elements(xml, &part.checksums, false);
            });
        }
    })))
}

fn write_upload_checksum(xml: &mut Writer, upload: &client::Upload) {
    if let Some(algorithm) = Algorithm::named(&upload.checksum_algorithm) {
        xml.text("ChecksumAlgorithm", &algorithm.upper_name());
        xml.text("ChecksumType", &upload.checksum_type);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_and_bounded() {
        let read = |text: &str| {
            let query = Query::read(text).unwrap();
            Listing::read(&query, "max-keys").map(|l| (l.limit, l.encoded)).map_err(|e| e.code)
        };
        assert_eq!(read(""), Ok((1000, false)));
        assert_eq!(read("max-keys=5000&encoding-type=url"), Ok((1000, true)));
        assert_eq!(read("max-keys=0"), Ok((0, false)));
        for bad in ["max-keys=-1", "max-keys=x", "max-keys=99999999999", "encoding-type=base64"] {
            assert_eq!(read(bad), Err(Code::InvalidArgument), "{bad}");
        }
    }

    #[test]
    fn keys_are_escaped_or_encoded() {
        let write = |encoded| {
            let listing = Listing { prefix: "", delimiter: "", limit: 1, encoded, prefix_plain: false };
            let mut xml = Writer::document();
            listing.key(&mut xml, "Key", "a b/<é>".as_bytes());
            xml.finish().lines().nth(1).unwrap().to_owned()
        };
        assert_eq!(write(false), "<Key>a b/&lt;é&gt;</Key>");
        assert_eq!(write(true), "<Key>a%20b/%3C%C3%A9%3E</Key>");
    }
}
