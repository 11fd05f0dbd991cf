//! Deleting one object, and up to a thousand.

use super::Gateway;
use crate::authorize::Wish;
use crate::conditions::{bare_etag, of_delete};
use crate::date::{parse_http_date, parse_iso8601};
use crate::encoding::version_text;
use crate::error::{Code, Result, S3Error};
use crate::names;
use crate::payload::Payload;
use crate::request::{Reply, Request, empty, insert, malformed_xml, parse_version, xml_reply};
use crate::target::Target;
use crate::xml::{Element, Writer};
use access::Action;
use bytes::Bytes;
use client::{BucketInfo, DeleteRequest, Deleted, Precondition};
use futures_util::{StreamExt, stream};
use http::StatusCode;

/// The most objects in one request.
const OBJECTS_MAX: usize = 1000;

/// Deletes that are under way at once for one request.
const IN_FLIGHT_MAX: usize = 16;

pub async fn object(gateway: &Gateway, request: &Request) -> Result<Reply> {
    let bucket = gateway.bucket(request).await?;
    let version = request.version()?;
    let wish = Wish::new(Action::DELETE_OBJECT_VERSION, &bucket, &request.target.key).naming(version.as_ref());
    let bypass_governance = version.is_some() && gateway.bypasses_governance(request, wish).await?;
    let wanted = DeleteRequest { version, precondition: of_delete(&request.headers)?, bypass_governance };
    let named = wanted.version.clone();
    let deleted = delete(gateway, &bucket, &request.target.key, wanted).await?;
    let mut reply = empty(StatusCode::NO_CONTENT);
    if deleted.marker {
        insert(&mut reply, names::DELETE_MARKER, "true");
    }
    let version = named.as_ref().unwrap_or(&deleted.version);
    super::object::insert_version(&mut reply, version);
    Ok(reply)
}

/// To delete what is not there is a success, unless a condition says what must be there.
async fn delete(gateway: &Gateway, bucket: &BucketInfo, key: &Bytes, request: DeleteRequest) -> Result<Deleted> {
    let conditional = request.precondition.is_some();
    match gateway.client.delete(bucket, key, request).await {
        Err(client::Error::NoSuchKey | client::Error::NoSuchVersion) if !conditional => Ok(Deleted::default()),
        other => Ok(other?),
    }
}

/// One `Object` of a request.
struct Wanted {
    key: String,
    version: Option<String>,
    etag: Option<String>,
    size: Option<String>,
    modified: Option<String>,
}

struct Outcome {
    key: String,
    version: Option<String>,
    result: Result<Deleted>,
}

pub async fn objects(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let bucket = gateway.lookup(request).await?;
    // Each key is decided for itself; but a document of somebody who can delete none of them is not read.
    if !gateway.list_grants(request, &bucket, Action::DELETE_OBJECT) {
        gateway.refuse_strangers(request, &bucket)?;
    }
    let document = request.xml_body(payload, "Delete", true).await?;
    let (wanted, quiet) = read(&document)?;
    let outcomes: Vec<Outcome> = stream::iter(wanted)
        .map(|wanted| delete_wanted(gateway, request, &bucket, wanted))
        .buffered(IN_FLIGHT_MAX)
        .collect()
        .await;
    Ok(xml_reply(Writer::answer("DeleteResult", |xml| {
        for outcome in &outcomes {
            write_outcome(xml, outcome, quiet);
        }
    })))
}

fn read(document: &Element) -> Result<(Vec<Wanted>, bool)> {
    let mut wanted = Vec::new();
    for object in document.all("Object") {
        // The key is taken as it stands: white space may belong to it.
        let key = object.child("Key").map(|key| key.text.clone()).filter(|key| !key.is_empty());
        let text = |name: &str| object.child_text(name).filter(|text| !text.is_empty()).map(str::to_owned);
        wanted.push(Wanted {
            key: key.ok_or_else(|| malformed_xml("an object has no key"))?,
            version: text("VersionId"),
            etag: text("ETag"),
            size: text("Size"),
            modified: text("LastModifiedTime"),
        });
    }
    if wanted.is_empty() || wanted.len() > OBJECTS_MAX {
        return Err(malformed_xml("it must name 1 to 1000 objects"));
    }
    let quiet = document.child_text("Quiet").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    Ok((wanted, quiet))
}

/// Each key is decided for itself.
async fn delete_wanted(gateway: &Gateway, request: &Request, bucket: &BucketInfo, wanted: Wanted) -> Outcome {
    let result = async {
        let target = Target::new(bucket.name.clone(), &wanted.key)?;
        let mut asked = delete_request(&wanted)?;
        let version = asked.version.clone();
        let action = if version.is_some() { Action::DELETE_OBJECT_VERSION } else { Action::DELETE_OBJECT };
        let wish = Wish::new(action, bucket, &target.key).naming(version.as_ref());
        gateway.authorize(request, wish).await?;
        asked.bypass_governance = version.is_some() && gateway.bypasses_governance(request, wish).await?;
        delete(gateway, bucket, &target.key, asked).await
    };
    let result = result.await;
    Outcome { key: wanted.key, version: wanted.version, result }
}

fn delete_request(wanted: &Wanted) -> Result<DeleteRequest> {
    let invalid = |name: &str| S3Error::new(Code::InvalidArgument, format!("The value of {name} is invalid."));
    let version = match wanted.version.as_deref().map(parse_version) {
        Some(Err(_)) => return Err(S3Error::new(Code::NoSuchVersion, "The specified version does not exist.")),
        Some(Ok(version)) => Some(version),
        None => None,
    };
    let size_is = wanted.size.as_deref().map(str::parse).transpose().map_err(|_| invalid("Size"))?;
    let date =
        |text: &str| parse_iso8601(text).or_else(|| parse_http_date(text)).ok_or_else(|| invalid("LastModifiedTime"));
    let modified_ms_is = wanted.modified.as_deref().map(date).transpose()?;
    let mut precondition = Precondition { size_is, modified_ms_is, ..Precondition::default() };
    match wanted.etag.as_deref().map(bare_etag) {
        Some("*") => precondition.must_exist = true,
        Some(etag) => precondition.etag_is = vec![etag.to_owned()],
        None => {}
    }
    let precondition = (precondition != Precondition::default()).then_some(precondition);
    Ok(DeleteRequest { version, precondition, bypass_governance: false })
}

fn write_outcome(xml: &mut Writer, outcome: &Outcome, quiet: bool) {
    match &outcome.result {
        Ok(_) if quiet => {}
        Ok(deleted) => xml.element("Deleted", |xml| {
            xml.text("Key", &outcome.key);
            if let Some(version) = &outcome.version {
                xml.text("VersionId", version);
            }
            if deleted.marker {
                xml.flag("DeleteMarker", true);
                xml.text("DeleteMarkerVersionId", &version_text(&deleted.version));
            }
        }),
        Err(error) => xml.element("Error", |xml| {
            xml.text("Key", &outcome.key);
            if let Some(version) = &outcome.version {
                xml.text("VersionId", version);
            }
            xml.text("Code", error.code.as_str());
            xml.text("Message", &error.message);
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_one_to_a_thousand_objects() {
        let of = |inside: &str| read(&crate::xml::read(format!("<Delete>{inside}</Delete>").as_bytes()).unwrap());
        let object = "<Object><Key> a </Key><VersionId>null</VersionId><ETag>\"x\"</ETag><Size>3</Size></Object>";
        let (wanted, quiet) = of(&format!("<Quiet>true</Quiet>{object}")).unwrap();
        assert!(quiet);
        assert_eq!(wanted[0].key, " a ", "white space belongs to the key");
        let request = delete_request(&wanted[0]).unwrap();
        assert_eq!(request.version.unwrap(), "null");
        let precondition = request.precondition.unwrap();
        assert_eq!((precondition.etag_is, precondition.size_is), (vec!["x".to_owned()], Some(3)));
        assert!(of("").is_err());
        assert!(of("<Object><Key/></Object>").is_err());
        assert!(of(&object.repeat(1000)).is_ok());
        assert!(of(&object.repeat(1001)).is_err());
    }
}
