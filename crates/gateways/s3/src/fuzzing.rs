//! What `fuzz/` reaches of the gateway: everything that is read before anybody has proved who they are. Only compiled for
//! it.

use access::{Action, Ask, Attached, BucketRights, Caller, Context, KeyRights, Policy, decide};
use base::env::{BoxFuture, Clock, MonoTime, WallTime};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::Method;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, StreamBody};
use std::sync::Arc;

use crate::auth::claim::Claim;
use crate::auth::{BodyProof, Signed};
use crate::checksum::Promised;
use crate::conditions::{self, ReadConditions};
use crate::form::Form;
use crate::operation::Operation;
use crate::payload::chunked::{Chunked, Piece};
use crate::payload::{Length, Payload, RawBody};
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
    if let Ok(element) = xml::read(data) {
        settings(&element);
    }
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

/// Documents that become settings.
fn settings(element: &xml::Element) {
    let _ = crate::lifecycle::read(element, || [7; 16]).map(|rules| crate::lifecycle::write(&rules));
    let _ =
        (crate::lock::read_retention(element, 0), crate::lock::read_hold(element), crate::lock::read_bucket(element));
    let _ = (crate::tags::of_xml(element, crate::tags::OF_OBJECT_MAX), crate::acl::Acl::read(element, "owner"));
    let _ = crate::cors::read(element);
}

struct Still;

impl Clock for Still {
    fn now(&self) -> MonoTime {
        MonoTime(0)
    }
    fn wall(&self) -> WallTime {
        WallTime(1_700_000_000_000)
    }
    fn sleep_until(&self, _: MonoTime) -> BoxFuture<()> {
        Box::pin(std::future::pending())
    }
}

/// A browser's form with the boundary `XX`; the first byte says how long the pieces are in which it arrives.
pub fn form(data: &[u8]) {
    let Some((step, data)) = data.split_first() else { return };
    let whole = read_form(data, data.len().max(1));
    let pieces = read_form(data, usize::from(*step) + 1);
    assert_eq!(whole, pieces, "how a form is cut into packets changes nothing");
}

/// The headers and the file, of a form that is well-formed and whose policy allows it.
fn read_form(data: &[u8], step: usize) -> Option<(HeaderMap, Bytes)> {
    let pieces: Vec<_> = data
        .chunks(step)
        .map(|piece| Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let raw = RawBody::new(StreamBody::new(stream::iter(pieces)).map_err(Into::into));
    let payload = Payload::new(raw, BodyProof::None, Length::AtMost(1 << 30), Vec::new(), Arc::new(Still));
    let (form, file) = Form::read(payload, "XX").now_or_never().expect("nothing here waits").ok()?;
    let _ = (form.signature().is_ok(), form.signed_ms(), form.success());
    if let Some(document) = form.policy() {
        // Fuzzers do not find base64: what is signed is read as it stands, too.
        let _ = crate::form::check_document(document.as_bytes(), &form, "bucket", 1_700_000_000_000);
    }
    form.check_policy("bucket", 1_700_000_000_000).ok()?;
    let _ = Target::new("bucket".to_owned(), &form.key().ok()?).ok()?;
    let headers = form.headers().ok()?;
    let file = file.collect().now_or_never().expect("nothing here waits").ok()?;
    Some((headers, file.to_bytes()))
}

/// Lines: an action, a resource, a user agent; then the policy of a bucket.
pub fn policy(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.splitn(4, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let action = Action::named(line()).unwrap_or(Action::GET_OBJECT);
    let (resource, agent, policy) = (line(), line(), line());
    let _ = Policy::of_key(policy);
    let Ok(read) = Policy::of_bucket(policy, "b") else { return };
    let is_public = read.is_public();
    let mut context = Context::default();
    context.set("aws:UserAgent", agent);
    context.set("aws:SourceIp", "10.1.2.3");
    context.set("s3:max-keys", "10");
    context.set("aws:CurrentTime", "2026-01-01T00:00:00Z");
    let attached = Attached::Policy(Arc::new(read));
    let decided = |caller: &Caller, restrict_public: bool| {
        let policy = attached.clone();
        let bucket = BucketRights { owner: "owner".to_owned(), policy, restrict_public, granted_by_acl: false };
        let context = context.clone();
        decide(&Ask { caller, action, resource, bucket: Some(&bucket), context: &context })
    };
    let rights = |name: &str, root: bool| {
        let (access_key, name) = (name.to_owned(), name.to_owned());
        Caller::Key(KeyRights { access_key, name, root, policy: Attached::None })
    };
    for caller in [Caller::Anonymous, rights("r", true), rights("owner", false), rights("other", false)] {
        let first = decided(&caller, false);
        assert_eq!(first, decided(&caller, false), "a decision depends on nothing else");
    }
    assert!(!(is_public && decided(&Caller::Anonymous, true).is_allowed()), "a public policy allows nothing then");
}
