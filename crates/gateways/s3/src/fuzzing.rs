//! What `fuzz/` reaches of the gateway: everything that is read before anybody has proved who they are. Only compiled for
//! it.

use bytes::Bytes;
use http::Method;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};

use crate::auth::Signed;
use crate::auth::claim::Claim;
use crate::checksum::Promised;
use crate::conditions::{self, ReadConditions};
use crate::operation::Operation;
use crate::payload::chunked::{Chunked, Piece};
use crate::query::Query;
use crate::range::{self, ByteRange};
use crate::target::Target;
use crate::{attributes, date, encoding, request, xml};

/// Lines: method, path and query, then `name: value`.
pub fn head(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let method = lines.next().and_then(|line| Method::from_bytes(line.as_bytes()).ok()).unwrap_or(Method::GET);
    let uri = lines.next().unwrap_or_default();
    let (path, raw_query) = uri.split_once('?').unwrap_or((uri, ""));
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let name = HeaderName::from_bytes(name.trim().as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value.trim())) {
            headers.append(name, value);
        }
    }
    if let Ok(Some(claim)) = Claim::read(&Signed { method: &method, raw_path: path, raw_query, headers: &headers }) {
        let _ = (claim.check_scope("us-east-1"), claim.check_time(1_700_000_000_000));
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    if let (Ok(target), Ok(query)) = (Target::read(path, host, Some("s3.test")), Query::read(raw_query)) {
        let _ = Operation::resolve(&method, &target, &query, &headers);
    }
    let _ = (ReadConditions::of_read(&headers), ReadConditions::of_copy_source(&headers));
    let _ = (conditions::of_write(&headers), conditions::of_delete(&headers));
    let _ = (attributes::kept_headers(&headers), crate::tags::of_headers(&headers));
    let _ = crate::lock::of_write(&headers, 1_700_000_000_000);
    let _ = Promised::read(&headers, &[]);
}

/// The first byte says how long the pieces are in which the rest arrives.
pub fn body(data: &[u8]) {
    let Some((step, data)) = data.split_first() else { return };
    let whole = decode_body(data, data.len().max(1));
    let pieces = decode_body(data, usize::from(*step) + 1);
    assert_eq!(whole, pieces, "how a body is cut into packets changes nothing");
}

/// The content and the trailers; `None` when the framing is broken.
fn decode_body(data: &[u8], step: usize) -> Option<(Vec<u8>, Vec<(String, String)>)> {
    const ROOM: u64 = 1 << 16;
    let mut chunked = Chunked::new(None, true);
    let mut content = Vec::new();
    for piece in data.chunks(step) {
        let mut input = Bytes::copy_from_slice(piece);
        while !input.is_empty() {
            let room = ROOM.saturating_sub(content.len() as u64);
            match chunked.decode(&mut input, room).ok()? {
                Piece::Content(bytes) => content.extend_from_slice(&bytes),
                Piece::NeedMore => break,
            }
        }
    }
    let trailers = chunked.finish().ok()?;
    assert!(content.len() as u64 <= ROOM, "no more than was allowed");
    Some((content, trailers))
}

pub fn document(data: &[u8]) {
    let _ = xml::read(data);
}

pub fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = (date::parse_amz_date(text), date::parse_http_date(text), request::parse_version(text));
    let _ = (ByteRange::read(text).map(|range| range.within(1_000)), range::copy_range(text, 1_000));
    let _ = (encoding::percent_decode(text, true), encoding::continuation_key(text), encoding::version_bytes(text));
    if let Some(bytes) = encoding::unbase64(text) {
        assert_eq!(encoding::unbase64(&encoding::base64(&bytes)), Some(bytes));
    }
    let _ = conditions::bare_etag(text);
}
