//! A request that was admitted: its sender is proven, its words are decoded.

use crate::auth::Caller;
use crate::body::ResponseBody;
use crate::checksum::{Hashes, Promised};
use crate::encoding::version_bytes;
use crate::error::{Code, Result, S3Error};
use crate::fair::Place;
use crate::form::Success;
use crate::operation::Operation;
use crate::payload::Payload;
use crate::query::Query;
use crate::target::Target;
use crate::xml;
use access::Cost;
use bytes::Bytes;
use client::Terms;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// The longest XML body in bytes: 10,000 parts with a SHA-256 each fit.
const XML_LENGTH_MAX: u64 = 4 << 20;

/// The other end of a connection. The listener puts it among the extensions of each request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer {
    /// The address of the socket, never one that a header tells.
    pub address: Option<IpAddr>,
    /// Over TLS.
    pub secure: bool,
}

impl Peer {
    /// Who is behind an address: with IPv6, whoever has the network of 64 bits has all addresses in it.
    pub fn sender(address: IpAddr) -> IpAddr {
        match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 => v4,
        }
    }
}

pub struct Request {
    pub operation: Operation,
    pub target: Target,
    pub query: Query,
    pub headers: HeaderMap,
    pub caller: Caller,
    /// What the sender asks for beyond what the bucket says.
    pub terms: Terms,
    pub peer: Peer,
    /// What deciding about it has cost so far.
    pub cost: Cost,
    /// What the sender of a form wants to be told.
    pub success: Option<Success>,
    /// Names of the trailers that will follow the body, in lower case.
    pub announced: Vec<String>,
    /// Among those that run at once.
    pub place: Option<Arc<Place>>,
}

impl Request {
    /// The text of a header; `None` when it is absent, empty or not ASCII.
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty())
    }

    /// The `versionId` that is asked for.
    pub fn version(&self) -> Result<Option<Bytes>> {
        self.query.get("versionId").map(parse_version).transpose()
    }

    /// The XML body, complete and verified. `body_is_summed`: `x-amz-checksum-*` is about this body (and not about an
    /// object that it speaks of).
    pub async fn xml_body(
        &self,
        mut payload: Payload,
        root: &'static str,
        body_is_summed: bool,
    ) -> Result<xml::Element> {
        let mut only_md5 = HeaderMap::new();
        if let Some(md5) = self.headers.get(crate::names::CONTENT_MD5) {
            only_md5.insert(crate::names::CONTENT_MD5, md5.clone());
        }
        let headers = if body_is_summed { &self.headers } else { &only_md5 };
        let promised = Promised::read(headers, &self.announced)?;
        let document = payload.collect(XML_LENGTH_MAX).await?;
        let mut hashes = Hashes::new(&promised.algorithms());
        hashes.update(&document);
        promised.verify(&hashes.finish(), |name| payload.trailer(name))?;
        if document.is_empty() {
            return Err(malformed_xml("it is empty"));
        }
        let element = xml::read(&document).map_err(|xml::Malformed(why)| malformed_xml(why))?;
        if element.name == root { Ok(element) } else { Err(malformed_xml("its root element is another one")) }
    }
}

pub fn malformed_xml(why: &str) -> S3Error {
    S3Error::new(
        Code::MalformedXML,
        format!("The XML you provided was not well-formed or did not validate against our published schema: {why}."),
    )
}

/// A version id as clients write it.
pub fn parse_version(text: &str) -> Result<Bytes> {
    version_bytes(text).ok_or_else(|| {
        S3Error::new(Code::InvalidArgument, "Invalid version id specified.")
            .field("ArgumentName", "versionId")
            .field("ArgumentValue", text)
    })
}

/// An answer.
pub type Reply = http::Response<ResponseBody>;

pub fn empty(status: StatusCode) -> Reply {
    let mut reply = Reply::new(ResponseBody::empty());
    *reply.status_mut() = status;
    reply
}

pub fn xml_reply(document: String) -> Reply {
    let mut reply = Reply::new(ResponseBody::whole(document));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    reply
}

/// Adds a header whose value may come from a client (and then has been valid in a header before).
pub fn insert(reply: &mut Reply, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
}

/// The `ETag` header, quoted.
pub fn insert_etag(reply: &mut Reply, etag: &str) {
    insert(reply, http::header::ETAG, &quoted(etag));
}

pub fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}
