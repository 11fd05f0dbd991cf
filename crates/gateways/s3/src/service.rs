//! The HTTP service: limits, health, admission, and errors as S3 writes them.

use crate::attributes::refuse_unbuilt;
use crate::auth::{self, BodyProof, Caller, KeySource, Signed};
use crate::authorize::Policies;
use crate::body::ResponseBody;
use crate::cors;
use crate::encoding::hex;
use crate::error::{Code, Result, S3Error};
use crate::fair::{Place, Places, Weight};
use crate::form::{self, Form};
use crate::meter::S3Meter;
use crate::names;
use crate::operation::Operation;
use crate::ops::{self, Gateway};
use crate::payload::{Length, Payload, RawBody};
use crate::query::Query;
use crate::request::{Peer, Reply, Request, empty, insert};
use crate::target::Target;
use crate::terms;
use access::Cost;
use base::env::{BoxFuture, Clock, Random, RandomExt};
use bytes::Bytes;
use client::Client;
use http::header::{
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONTENT_LENGTH, Entry, HOST,
    HeaderName, HeaderValue, ORIGIN, TRANSFER_ENCODING,
};
use http::{HeaderMap, Method, StatusCode, request};
use http_body::Body as _;
use http_body_util::BodyExt;
use std::convert::Infallible;
use std::sync::Arc;

/// The longest path and query in bytes: a key and a marker of 1,024 bytes, percent-encoded, and a presigned query.
const URI_LENGTH_MAX: usize = 16 << 10;

/// The most bytes of header names and values.
const HEADERS_LENGTH_MAX: usize = 16 << 10;

/// The largest object or part in one request.
pub const CONTENT_LENGTH_MAX: u64 = 5 * base::GIB;

/// Unauthenticated, for load balancers: 200 when the node serves, 503 when it does not.
const READY_PATH: &str = "/health/ready";

/// What the service needs besides the client.
#[derive(Clone)]
pub struct S3Options {
    /// The name whose subdomains are buckets (virtual-hosted requests). `None`: path-style requests only.
    pub domain: Option<String>,
    /// The region that signatures must name.
    pub region: String,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// Whether the node serves writes; asked by `/health/ready`.
    pub ready: Arc<dyn Fn() -> bool + Send + Sync>,
    pub meter: S3Meter,
}

/// Makes the service. It is cheap to clone, and serves any number of connections.
pub fn service(client: Client, options: S3Options) -> S3Service {
    let gateway = Gateway { client, region: options.region.clone(), policies: Policies::default() };
    S3Service { inner: Arc::new(Inner { gateway, options, places: Places::default() }) }
}

#[derive(Clone)]
pub struct S3Service {
    inner: Arc<Inner>,
}

struct Inner {
    gateway: Gateway,
    options: S3Options,
    places: Places,
}

impl<B> hyper::service::Service<http::Request<B>> for S3Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = http::Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<std::result::Result<Self::Response, Infallible>>;

    fn call(&self, request: http::Request<B>) -> Self::Future {
        let inner = self.inner.clone();
        let (parts, body) = request.into_parts();
        let body = RawBody::new(body.map_err(Into::into));
        Box::pin(async move { Ok(inner.answer(parts, body).await) })
    }
}

impl Inner {
    async fn answer(&self, parts: request::Parts, body: RawBody) -> Reply {
        if let Some(reply) = health(&parts, &self.options) {
            return reply;
        }
        let mut id = [0; 8];
        self.options.random.fill(&mut id);
        let id = hex(&id).to_ascii_uppercase();
        let (method, raw_path) = (parts.method.clone(), parts.uri.path().to_owned());
        let began = self.options.clock.now();
        // Nobody answers such a request with 100, and botocore takes what it then reads on the same connection for a
        // part of this answer: the next PUT waits for its timeout.
        let waits_in_vain = parts.headers.contains_key(http::header::EXPECT) && body.size_hint().exact() == Some(0);
        let across = Across::of(&parts, &self.options);
        let mut operation = None;
        let outcome = if method == Method::OPTIONS {
            check_limits(&parts).and_then(|()| across.preflight(&self.gateway.client))
        } else {
            match admit(parts, body, &self.gateway.client, &self.options).await {
                Ok((request, payload)) => {
                    operation = Some(request.operation);
                    self.serve(request, payload).await
                }
                Err(error) => Err(error),
            }
        };
        let mut reply = outcome.unwrap_or_else(|error| error_reply(&error, &method, &raw_path, &id));
        across.decorate(&method, &self.gateway.client, &mut reply);
        self.options.meter.record(operation, reply.status().as_u16(), self.options.clock.now().since(began));
        insert(&mut reply, names::REQUEST_ID, &id);
        reply.headers_mut().insert(http::header::SERVER, HeaderValue::from_static("henge"));
        if waits_in_vain {
            reply.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        reply
    }
}

impl Inner {
    /// Runs a request when it is its turn.
    async fn serve(&self, mut request: Request, payload: Payload) -> Result<Reply> {
        let (tenant, weight) = (tenant_of(&request), weight_of(&request, &payload));
        let place = Arc::new(self.places.take(tenant, weight, &*self.options.clock).await?);
        request.place = Some(place.clone());
        let waits = Waits(&place);
        let run = ops::run(&self.gateway, &request, payload).await;
        drop(waits);
        let staleness = terms::staleness(&request.terms);
        match (run, staleness) {
            (Ok(mut reply), staleness) => {
                if let Some(staleness) = staleness {
                    insert(&mut reply, names::STALENESS_MS, &staleness);
                }
                reply.body_mut().hold(place);
                Ok(reply)
            }
            (Err(error), Some(staleness)) => {
                let value = HeaderValue::from_str(&staleness).expect("digits and a word are valid in a header");
                Err(error.header(names::STALENESS_MS, value))
            }
            (Err(error), None) => Err(error),
        }
    }
}

/// Somebody waits for the answer: until it begins, or the request is broken off. What of it is still being stored then
/// takes memory, and stands in nobody's way.
struct Waits<'a>(&'a Place);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.begin();
    }
}

pub(crate) fn tenant_of(request: &Request) -> String {
    match (request.caller.access_key(), request.peer.address) {
        ("", Some(address)) => format!("from {}", Peer::sender(address)),
        (access_key, _) => access_key.to_owned(),
    }
}

/// What may hold several chunks in memory at once is heavy.
fn weight_of(request: &Request, payload: &Payload) -> Weight {
    const LIGHT_MAX: u64 = 256 << 10;
    let copies = matches!(request.operation, Operation::CopyObject | Operation::UploadPartCopy);
    let is_short = payload.announced_length().is_some_and(|length| length <= LIGHT_MAX);
    let reads = matches!(request.operation, Operation::GetObject | Operation::HeadObject);
    if copies || !(is_short || reads) { Weight::Heavy } else { Weight::Light }
}

fn health(parts: &request::Parts, options: &S3Options) -> Option<Reply> {
    let asks = parts.uri.path() == READY_PATH
        && matches!(parts.method, Method::GET | Method::HEAD)
        && parts.uri.query().is_none()
        && !parts.headers.contains_key(AUTHORIZATION);
    let status = if (options.ready)() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    asks.then(|| empty(status))
}

/// Turns a raw request into one whose sender is proven and whose words are decoded, or says why not. Nothing of the
/// body is read here.
pub(crate) async fn admit(
    parts: request::Parts,
    body: RawBody,
    keys: &impl KeySource,
    options: &S3Options,
) -> Result<(Request, Payload)> {
    check_limits(&parts)?;
    let host = parts.headers.get(HOST).and_then(|value| value.to_str().ok());
    let target = Target::read(parts.uri.path(), host, options.domain.as_deref())?;
    if let Some(boundary) = form::boundary(&parts).filter(|_| target.key.is_empty()) {
        return admit_form(parts, body, target, &boundary, keys, options).await;
    }
    let raw_query = parts.uri.query().unwrap_or_default();
    let signed = Signed { method: &parts.method, raw_path: parts.uri.path(), raw_query, headers: &parts.headers };
    let (caller, proof) = auth::authenticate(signed, keys, options.clock.wall().0, &options.region).await?;
    let query = Query::read(raw_query)?;
    let peer = parts.extensions.get::<Peer>().copied().unwrap_or_default();
    let mut headers = parts.headers;
    headers_from_query(&query, &mut headers)?;
    let operation = Operation::resolve(&parts.method, &target, &query, &headers)?;
    refuse_unbuilt(&headers)?;
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    let terms = terms::of_headers(&headers, reads)?;
    let announced = announced_trailers(&headers);
    let length = content_length(&body, &proof, &headers)?;
    let payload = Payload::new(body, proof, length, announced.clone(), options.clock.clone());
    let (cost, success, place) = (Cost::default(), None, None);
    let request = Request { operation, target, query, headers, caller, terms, peer, cost, success, announced, place };
    Ok((request, payload))
}

/// Turns a browser's form into the PUT that it stands for: its fields are the headers, its file is the body.
async fn admit_form(
    parts: request::Parts,
    body: RawBody,
    target: Target,
    boundary: &str,
    keys: &impl KeySource,
    options: &S3Options,
) -> Result<(Request, Payload)> {
    let peer = parts.extensions.get::<Peer>().copied().unwrap_or_default();
    let length = content_length(&body, &BodyProof::None, &parts.headers)?;
    let whole = Payload::new(body, BodyProof::None, length, Vec::new(), options.clock.clone());
    terms::refuse_beside_form(&parts.headers)?;
    let (form, file) = Form::read(whole, boundary).await?;
    let signed = auth::authenticate_form(&form, keys, &options.region).await?;
    let caller = signed.map_or(Caller::Anonymous, Caller::Signed);
    let allowed = form.check_policy(&target.bucket, options.clock.wall().0)?;
    let target = Target::new(target.bucket, &form.key()?)?;
    let headers = form.headers()?;
    refuse_unbuilt(&headers)?;
    let terms = terms::of_headers(&headers, false)?;
    let length = Length::Between(*allowed.start(), CONTENT_LENGTH_MAX.min(*allowed.end()));
    let payload = Payload::new(file, BodyProof::None, length, Vec::new(), options.clock.clone());
    let request = Request {
        operation: Operation::PostObject,
        target,
        query: Query::default(),
        headers,
        caller,
        terms,
        peer,
        cost: Cost::default(),
        success: Some(form.success()),
        announced: Vec::new(),
        place: None,
    };
    Ok((request, payload))
}

fn check_limits(parts: &request::Parts) -> Result<()> {
    let uri = parts.uri.path().len() + parts.uri.query().map_or(0, str::len);
    if uri > URI_LENGTH_MAX {
        return Err(S3Error::new(Code::InvalidURI, format!("The URI is longer than {URI_LENGTH_MAX} bytes.")));
    }
    let headers: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers > HEADERS_LENGTH_MAX {
        let message = format!("The headers are longer than {HEADERS_LENGTH_MAX} bytes.");
        return Err(S3Error::new(Code::RequestHeaderSectionTooLarge, message));
    }
    // Two ways to tell where a body ends let two readers disagree (request smuggling, RFC 9112 section 6.1).
    if parts.headers.contains_key(TRANSFER_ENCODING) && parts.headers.contains_key(CONTENT_LENGTH) {
        let message = "Transfer-Encoding and Content-Length must not be given together.";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    Ok(())
}

/// What a request says to a browser's rules on other origins. It is asked before anything is known of its sender.
struct Across {
    headers: HeaderMap,
    bucket: String,
}

impl Across {
    fn of(parts: &request::Parts, options: &S3Options) -> Across {
        if !parts.headers.contains_key(ORIGIN) {
            return Across { headers: HeaderMap::new(), bucket: String::new() };
        }
        let host = parts.headers.get(HOST).and_then(|value| value.to_str().ok());
        let target = Target::read(parts.uri.path(), host, options.domain.as_deref()).unwrap_or_default();
        let kept = [ORIGIN, ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_REQUEST_HEADERS];
        let copy = |name: HeaderName| parts.headers.get(&name).cloned().map(|value| (name, value));
        Across { headers: kept.into_iter().filter_map(copy).collect(), bucket: target.bucket }
    }

    fn preflight(&self, client: &Client) -> Result<Reply> {
        cors::preflight(&self.headers, client.known_bucket(&self.bucket).as_ref())
    }

    fn decorate(&self, method: &Method, client: &Client, reply: &mut Reply) {
        if self.headers.is_empty() || *method == Method::OPTIONS {
            return;
        }
        if let Some(bucket) = client.known_bucket(&self.bucket) {
            cors::decorate(method, &self.headers, &bucket, reply);
        }
    }
}

/// Presigning clients may put `x-amz-*` and `x-henge-*` headers into the query, in any case, where the signature covers
/// them. `x-henge-*` is said once.
fn headers_from_query(query: &Query, headers: &mut HeaderMap) -> Result<()> {
    for (name, value) in query.pairs() {
        let is_term = names::is_term(name);
        let lower = name.to_ascii_lowercase();
        if !is_term && !names::are_ours(&lower) || OF_SIGNATURES.contains(&lower.as_str()) && lower != *name {
            continue;
        }
        let refuse = |why: &str| {
            let message = format!("The query parameter {name:?} {why}.");
            Err(S3Error::new(Code::InvalidArgument, message).field("ArgumentName", name))
        };
        let read = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value));
        let (Ok(header), Ok(value)) = read else { return refuse("cannot be a header") };
        match headers.entry(header) {
            Entry::Occupied(given) if is_term && given.get() != value => return refuse("is given in another way, too"),
            Entry::Occupied(_) => {}
            Entry::Vacant(free) => drop(free.insert(value)),
        }
    }
    Ok(())
}

/// Written `X-Amz-...`, these belong to a presigned URL itself.
const OF_SIGNATURES: [&str; 8] = [
    "x-amz-algorithm",
    "x-amz-content-sha256",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
];

fn announced_trailers(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get(names::TRAILER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    values.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()).collect()
}

/// How much content will come: known from the request, or bounded where HTTP's own chunked coding marks the end.
fn content_length(body: &RawBody, proof: &BodyProof, headers: &HeaderMap) -> Result<Length> {
    let framed = matches!(proof, BodyProof::ChunkedUnsigned | BodyProof::ChunkedSigned { .. });
    let announced = if framed { decoded_length(headers)? } else { body.size_hint().exact() };
    match announced {
        Some(length) if length > CONTENT_LENGTH_MAX => {
            let message = "Your proposed upload exceeds the maximum allowed size of 5 GiB; use a multipart upload.";
            Err(S3Error::new(Code::EntityTooLarge, message)
                .field("ProposedSize", length.to_string())
                .field("MaxSizeAllowed", CONTENT_LENGTH_MAX.to_string()))
        }
        Some(length) => Ok(Length::Exactly(length)),
        None if !framed && headers.contains_key(TRANSFER_ENCODING) => Ok(Length::AtMost(CONTENT_LENGTH_MAX)),
        None => Err(S3Error::new(
            Code::MissingContentLength,
            "You must provide the Content-Length (for aws-chunked bodies x-amz-decoded-content-length) header.",
        )),
    }
}

fn decoded_length(headers: &HeaderMap) -> Result<Option<u64>> {
    let Some(value) = headers.get(names::DECODED_CONTENT_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let message = "The header x-amz-decoded-content-length is not a number.";
    length.map(Some).ok_or_else(|| S3Error::new(Code::InvalidArgument, message))
}

/// The answer to HEAD, and 304, have no body.
fn error_reply(error: &S3Error, method: &Method, raw_path: &str, id: &str) -> Reply {
    let status = error.status();
    if status.is_server_error() && error.code != Code::NotImplemented {
        tracing::warn!(%error, %method, path = raw_path, request = id, "a request failed");
    }
    let bodiless = *method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    let mut reply = if bodiless {
        empty(status)
    } else {
        let decoded = crate::encoding::percent_decode(raw_path, false).and_then(|path| String::from_utf8(path).ok());
        let resource = decoded.filter(|path| !path.contains('\0')).unwrap_or_else(|| raw_path.to_owned());
        crate::request::xml_reply(error.to_xml(&resource, id))
    };
    *reply.status_mut() = status;
    for (name, value) in &error.headers {
        reply.headers_mut().insert(name.clone(), value.clone());
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_in_the_query_count_in_any_case_and_those_of_the_signature_do_not() {
        let query = Query::read(
            "X-Amz-Meta-Colour=green&x-amz-acl=private&X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&other=1",
        );
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-acl", HeaderValue::from_static("public-read"));
        headers_from_query(&query.unwrap(), &mut headers).unwrap();
        let mut names: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        names.sort_unstable();
        assert_eq!(names, [("x-amz-acl", "public-read"), ("x-amz-meta-colour", "green")]);
    }
}
