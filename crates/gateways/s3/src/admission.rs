//! Requests as attackers and broken clients send them, against the whole of admission and the body that follows it.
//! None of them reaches a store: what passes is drained, verified and shown.

use crate::auth::{KeySource, Secret};
use crate::checksum::{Hashes, Promised};
use crate::error::{Code, Result};
use crate::meter::S3Meter;
use crate::payload::RawBody;
use crate::request::Peer;
use crate::service::{S3Options, admit, tenant_of};
use crate::sign::{SignedBody, Signer};
use base::env::{BoxFuture, Clock, MonoTime, Random, WallTime};
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

pub(crate) const NOW_MS: u64 = 1_700_000_000_000;
const HOST: &str = "localhost:9000";

struct Still;

impl Clock for Still {
    fn now(&self) -> MonoTime {
        MonoTime(0)
    }
    fn wall(&self) -> WallTime {
        WallTime(NOW_MS)
    }
    fn sleep_until(&self, _: MonoTime) -> BoxFuture<()> {
        Box::pin(std::future::pending())
    }
}

impl Random for Still {
    fn next_u64(&self) -> u64 {
        7
    }
}

struct Keys;

impl KeySource for Keys {
    async fn secret(&self, access_key: &str) -> Result<Option<Secret>> {
        Ok((access_key == "access").then(|| Secret::new("secret".to_owned())))
    }
}

pub(crate) fn signer() -> Signer {
    Signer::new("access", "secret", "us-east-1")
}

/// A body whose announced length and content are chosen apart.
struct Loose {
    pieces: VecDeque<std::result::Result<Bytes, &'static str>>,
    announced: Option<u64>,
}

impl http_body::Body for Loose {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.pieces.pop_front().map(|piece| piece.map(Frame::data).map_err(Into::into)))
    }

    fn size_hint(&self) -> SizeHint {
        self.announced.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

pub(crate) fn request(method: &str, uri: &str, headers: &[(&'static str, &str)]) -> http::Request<()> {
    let mut request = http::Request::builder().method(method).uri(uri).body(()).unwrap();
    for (name, value) in [("host", HOST)].iter().chain(headers) {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    request
}

fn options() -> S3Options {
    S3Options {
        domain: None,
        region: "us-east-1".to_owned(),
        clock: Arc::new(Still),
        random: Arc::new(Still),
        ready: Arc::new(|| true),
        meter: S3Meter::default(),
    }
}

/// The terms that an empty request is admitted under.
fn terms_of(request: http::Request<()>) -> std::result::Result<client::Terms, Code> {
    let whole = http_body_util::BodyExt::map_err(Full::new(Bytes::new()), |never| match never {});
    let admitted = async move { admit(request.into_parts().0, RawBody::new(whole), &Keys, &options()).await };
    let admitted = admitted.now_or_never().expect("nothing here waits");
    admitted.map(|(request, _)| request.terms).map_err(|error| error.code)
}

/// What came through admission and verification, or the code of the refusal.
fn send_body(request: http::Request<()>, body: RawBody) -> std::result::Result<Bytes, Code> {
    let options = options();
    let run = async move {
        let (request, mut payload) = admit(request.into_parts().0, body, &Keys, &options).await?;
        let promised = Promised::read(&request.headers, &request.announced)?;
        let content = payload.collect(u64::MAX).await?;
        let mut hashes = Hashes::new(&promised.algorithms());
        hashes.update(&content);
        promised.verify(&hashes.finish(), |name| payload.trailer(name))?;
        // Unsigned requests are admitted as nobody; what nobody may do is decided later.
        if matches!(request.caller, crate::auth::Caller::Anonymous) {
            return Err(crate::authorize::denied());
        }
        assert_eq!(request.caller.access_key(), "access");
        Ok(content)
    };
    run.now_or_never().expect("nothing here waits").map_err(|error: crate::error::S3Error| error.code)
}

pub(crate) fn send(request: http::Request<()>, body: &[u8]) -> std::result::Result<Bytes, Code> {
    let whole = Full::new(Bytes::copy_from_slice(body));
    send_body(request, RawBody::new(http_body_util::BodyExt::map_err(whole, |never| match never {})))
}

pub(crate) fn signed_put(uri: &str, headers: &[(&'static str, &str)], body: &[u8]) -> http::Request<()> {
    let mut put = request("PUT", uri, headers);
    signer().sign(&mut put, SignedBody::Bytes(body), NOW_MS);
    put
}

#[test]
fn a_signed_request_passes() {
    assert_eq!(
        send(signed_put("/bucket/a%20b?x-id=PutObject", &[("x-amz-meta-a", "b  c")], b"hello"), b"hello").unwrap(),
        "hello"
    );
    assert_eq!(send(signed_put("/bucket/a+b$(c)/%C3%A9", &[], b""), b"").unwrap(), "");
    let mut unsigned = request("PUT", "/bucket/key", &[]);
    signer().sign(&mut unsigned, SignedBody::Unsigned, NOW_MS);
    assert_eq!(send(unsigned, b"anything").unwrap(), "anything");
}

#[test]
fn a_request_that_was_changed_after_signing_is_refused() {
    let signed = || signed_put("/bucket/key?x-id=a", &[("x-amz-meta-a", "b")], b"hello");
    type Change = fn(&mut http::Request<()>);
    let changes: [(&str, Change, Code); 9] = [
        ("method", |r| *r.method_mut() = http::Method::POST, Code::SignatureDoesNotMatch),
        ("path", |r| *r.uri_mut() = "/bucket/kez?x-id=a".parse().unwrap(), Code::SignatureDoesNotMatch),
        ("query", |r| *r.uri_mut() = "/bucket/key?x-id=b".parse().unwrap(), Code::SignatureDoesNotMatch),
        ("added query", |r| *r.uri_mut() = "/bucket/key?x-id=a&acl".parse().unwrap(), Code::SignatureDoesNotMatch),
        ("host", |r| drop(r.headers_mut().insert("host", "b".parse().unwrap())), Code::SignatureDoesNotMatch),
        ("header", |r| drop(r.headers_mut().insert("x-amz-meta-a", "c".parse().unwrap())), Code::SignatureDoesNotMatch),
        ("removed header", |r| drop(r.headers_mut().remove("x-amz-meta-a")), Code::SignatureDoesNotMatch),
        (
            "added header",
            |r| drop(r.headers_mut().insert("x-amz-copy-source", "b/secret".parse().unwrap())),
            Code::AccessDenied,
        ),
        (
            "repeated header",
            |r| assert!(r.headers_mut().append("x-amz-meta-a", "b".parse().unwrap())),
            Code::InvalidRequest,
        ),
    ];
    assert!(send(signed(), b"hello").is_ok());
    for (what, change, code) in changes {
        let mut changed = signed();
        change(&mut changed);
        assert_eq!(send(changed, b"hello"), Err(code), "{what}");
    }
    assert_eq!(send(signed(), b"hellp"), Err(Code::XAmzContentSHA256Mismatch));
}

#[test]
fn forged_authorizations_are_refused() {
    let forge = |from: &str, to: &str| {
        let mut forged = signed_put("/bucket/key", &[], b"");
        let text = forged.headers()["authorization"].to_str().unwrap().to_owned();
        assert!(text.contains(from), "{text}");
        forged.headers_mut().insert("authorization", text.replacen(from, to, 1).parse().unwrap());
        send(forged, b"").unwrap_err()
    };
    assert_eq!(forge("Credential=access", "Credential=other"), Code::InvalidAccessKeyId);
    assert_eq!(forge("us-east-1", "eu-west-1"), Code::AuthorizationHeaderMalformed);
    assert_eq!(forge("/s3/", "/sts/"), Code::AuthorizationHeaderMalformed);
    assert_eq!(forge("aws4_request", "aws4_other"), Code::AuthorizationHeaderMalformed);
    assert_eq!(forge("access/2023", "access/2022"), Code::AuthorizationHeaderMalformed);
    assert_eq!(forge("SignedHeaders=host;", "SignedHeaders="), Code::AuthorizationHeaderMalformed);
    assert_eq!(forge(";x-amz-date", ""), Code::AccessDenied);
    assert_eq!(forge("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"), Code::InvalidArgument);
    assert_eq!(forge("Signature=", "Signature=0"), Code::AuthorizationHeaderMalformed);
    for digit in 0..64 {
        let mut forged = signed_put("/bucket/key", &[], b"");
        let mut text = forged.headers()["authorization"].to_str().unwrap().to_owned();
        let at = text.len() - 64 + digit;
        let other = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
        text.replace_range(at..=at, other);
        forged.headers_mut().insert("authorization", text.parse().unwrap());
        assert_eq!(send(forged, b""), Err(Code::SignatureDoesNotMatch), "digit {digit}");
    }
    let mut stranger = request("PUT", "/bucket/key", &[]);
    Signer::new("access", "guess", "us-east-1").sign(&mut stranger, SignedBody::Bytes(b""), NOW_MS);
    assert_eq!(send(stranger, b""), Err(Code::SignatureDoesNotMatch));
}

#[test]
fn other_ways_to_authenticate_are_refused() {
    assert_eq!(send(request("GET", "/bucket/key", &[]), b""), Err(Code::AccessDenied), "anonymous");
    let v2 = request("GET", "/bucket/key", &[("authorization", "AWS access:frJIUN8DYpKDtOLCwo//yllqDzg=")]);
    assert_eq!(send(v2, b""), Err(Code::InvalidRequest), "SigV2");
    let v2 = request("GET", "/bucket/key?AWSAccessKeyId=access&Expires=1900000000&Signature=abc", &[]);
    assert_eq!(send(v2, b""), Err(Code::InvalidRequest), "presigned SigV2");
    let bearer = request("GET", "/bucket/key", &[("authorization", "Bearer abc")]);
    assert_eq!(send(bearer, b""), Err(Code::InvalidArgument));
    let mut both = request("GET", "/bucket/key?X-Amz-Signature=00", &[]);
    signer().sign(&mut both, SignedBody::Bytes(b""), NOW_MS);
    assert_eq!(send(both, b""), Err(Code::InvalidArgument), "header and query");
    let session = signed_put("/bucket/key", &[("x-amz-security-token", "t")], b"");
    assert_eq!(send(session, b""), Err(Code::InvalidToken));
    let form = request("POST", "/bucket", &[("content-type", "multipart/form-data; boundary=a")]);
    assert_eq!(send(form, b""), Err(Code::MalformedPOSTRequest), "a form without its parts");
}

#[test]
fn a_clock_may_be_off_by_15_minutes() {
    let at = |ms: u64| {
        let mut get = request("GET", "/bucket/key", &[]);
        signer().sign(&mut get, SignedBody::Bytes(b""), ms);
        send(get, b"")
    };
    let quarter_ms = 15 * 60 * 1000;
    assert!(at(NOW_MS - quarter_ms).is_ok() && at(NOW_MS + quarter_ms).is_ok());
    assert_eq!(at(NOW_MS - quarter_ms - 1000), Err(Code::RequestTimeTooSkewed));
    assert_eq!(at(NOW_MS + quarter_ms + 1000), Err(Code::RequestTimeTooSkewed));
}

#[test]
fn presigned_requests_live_as_long_as_they_say_and_at_most_a_week() {
    let send_at = |expires_s: u64, made_ms: u64, change: fn(String) -> String| {
        let uri = change(signer().presign(&request("GET", "/bucket/key?versionId=null", &[]), expires_s, made_ms));
        send(request("GET", &uri, &[]), b"")
    };
    let week_s = 7 * 24 * 3600;
    assert!(send_at(60, NOW_MS, |uri| uri).is_ok());
    assert!(send_at(week_s, NOW_MS - (week_s - 1) * 1000, |uri| uri).is_ok());
    assert_eq!(send_at(week_s + 1, NOW_MS, |uri| uri), Err(Code::AccessDenied));
    assert_eq!(send_at(60, NOW_MS - 61_000, |uri| uri), Err(Code::AccessDenied), "expired");
    assert_eq!(send_at(60, NOW_MS + 16 * 60 * 1000, |uri| uri), Err(Code::AccessDenied), "not valid yet");
    assert_eq!(
        send_at(60, NOW_MS - 61_000, |uri| uri.replace("Expires=60", "Expires=3600")),
        Err(Code::SignatureDoesNotMatch)
    );
    assert_eq!(send_at(60, NOW_MS, |uri| uri.replace("/key", "/kez")), Err(Code::SignatureDoesNotMatch));
    assert_eq!(send_at(60, NOW_MS, |uri| uri.replace("Expires=60", "Expires=-1")), Err(Code::AccessDenied));
    assert_eq!(
        send_at(60, NOW_MS, |uri| uri.replace("us-east-1", "eu-west-1")),
        Err(Code::AuthorizationQueryParametersError)
    );
    assert_eq!(send_at(60, NOW_MS, |uri| uri + "&X-Amz-Expires=60"), Err(Code::AuthorizationQueryParametersError));
    let uri = signer().presign(&request("PUT", "/bucket/key", &[]), 60, NOW_MS);
    assert_eq!(send(request("PUT", &uri, &[]), b"body").unwrap(), "body");
    assert_eq!(
        send(request("PUT", &uri, &[("x-amz-acl", "private")]), b""),
        Err(Code::AccessDenied),
        "unsigned header"
    );
}

/// A PUT in aws-chunked framing, before and after signing.
pub(crate) struct ChunkedPut {
    mode: &'static str,
    trailers: Option<Vec<(&'static str, String)>>,
    chunks: Vec<&'static [u8]>,
}

impl ChunkedPut {
    pub fn signed() -> ChunkedPut {
        ChunkedPut {
            mode: "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            trailers: None,
            chunks: vec![b"hello ", b"world", b"!"],
        }
    }

    pub fn with_trailer(mode: &'static str) -> ChunkedPut {
        let crc = crate::encoding::base64(&base::checksum::crc32c(&[], b"hello world!").to_be_bytes());
        ChunkedPut { mode, trailers: Some(vec![("x-amz-checksum-crc32c", crc)]), ..ChunkedPut::signed() }
    }

    pub fn build(&self) -> (http::Request<()>, Vec<u8>) {
        let length = self.chunks.iter().map(|chunk| chunk.len()).sum::<usize>().to_string();
        let announced: Vec<&str> = self.trailers.iter().flatten().map(|(name, _)| *name).collect();
        let mut put = request(
            "PUT",
            "/bucket/key",
            &[("content-encoding", "aws-chunked"), ("x-amz-decoded-content-length", &length)],
        );
        if !announced.is_empty() {
            put.headers_mut().insert("x-amz-trailer", announced.join(",").parse().unwrap());
        }
        let seed = signer().sign(&mut put, SignedBody::Named(self.mode), NOW_MS);
        let trailers: Option<Vec<(&str, &str)>> = self
            .trailers
            .as_ref()
            .map(|trailers| trailers.iter().map(|(name, value)| (*name, value.as_str())).collect());
        let body = match self.mode {
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => self.unsigned_body(),
            _ => signer().chunked_body(&self.chunks, trailers.as_deref(), seed, NOW_MS),
        };
        (put, body)
    }

    fn unsigned_body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for chunk in &self.chunks {
            body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(chunk);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n");
        for (name, value) in self.trailers.iter().flatten() {
            body.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
        }
        body.extend_from_slice(b"\r\n");
        body
    }

    fn send_changed(&self, change: impl FnOnce(&mut Vec<u8>)) -> std::result::Result<Bytes, Code> {
        let (put, mut body) = self.build();
        change(&mut body);
        send(put, &body)
    }
}

const SIGNED_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";
pub(crate) const UNSIGNED_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

#[test]
fn chunked_bodies_pass_whole() {
    for put in
        [ChunkedPut::signed(), ChunkedPut::with_trailer(SIGNED_TRAILER), ChunkedPut::with_trailer(UNSIGNED_TRAILER)]
    {
        assert_eq!(put.send_changed(|_| {}).unwrap(), "hello world!", "{}", put.mode);
    }
}

#[test]
fn no_byte_of_a_signed_chunked_body_can_be_changed_or_cut_off() {
    for put in [ChunkedPut::signed(), ChunkedPut::with_trailer(SIGNED_TRAILER)] {
        let (_, body) = put.build();
        // The very last CR LF only ends what is complete already.
        let meaningful = body.len() - 2;
        for position in 0..meaningful {
            let changed = put.send_changed(|body| body[position] ^= 1);
            // A changed letter case in a number or a name means the same; nothing else does.
            if let Ok(content) = changed {
                assert_eq!(content, "hello world!", "{} at {position}", put.mode);
                panic!("{} at {position}: {:?}", put.mode, body[position] as char);
            }
            let last_line_end = position + 2 >= meaningful;
            assert!(
                last_line_end || put.send_changed(|body| body.truncate(position)).is_err(),
                "{} cut at {position}",
                put.mode
            );
        }
    }
}

#[test]
fn the_trailer_guards_a_body_whose_chunks_are_not_signed() {
    let put = ChunkedPut::with_trailer(UNSIGNED_TRAILER);
    let replace = |from: &'static str, to: &'static str| {
        put.send_changed(|body| *body = String::from_utf8(body.clone()).unwrap().replacen(from, to, 1).into_bytes())
    };
    assert_eq!(replace("world", "worle"), Err(Code::BadDigest));
    assert_eq!(replace("x-amz-checksum-crc32c:", "x-amz-checksum-crc32c:AAAA"), Err(Code::BadDigest));
    assert_eq!(replace("x-amz-checksum-crc32c:", "x-amz-checksum-crc64nvme:"), Err(Code::MalformedTrailerError));
    assert_eq!(replace("0\r\nx-amz", "0\r\nx-amz-meta-a:b\r\nx-amz"), Err(Code::MalformedTrailerError));
    assert_eq!(replace("6\r\nhello \r\n", ""), Err(Code::IncompleteBody));
    assert_eq!(replace("6\r\nhello ", "7\r\nhello  "), Err(Code::IncompleteBody));
    assert_eq!(replace("6\r\n", "ffffffffffffffff\r\n"), Err(Code::IncompleteBody));
    assert!(put.send_changed(|body| body.truncate(body.len() - 40)).is_err());
}

#[test]
fn chunks_of_another_order_or_request_are_refused() {
    let put = ChunkedPut::signed();
    let (request_a, body_a) = put.build();
    let swapped = ChunkedPut { chunks: vec![b"world", b"hello ", b"!"], ..ChunkedPut::signed() }.build().1;
    assert!(send(request_a, &swapped).is_ok(), "the seed is the same: this is a validly signed body");
    let mut other = request("PUT", "/bucket/other", &[("x-amz-decoded-content-length", "12")]);
    signer().sign(&mut other, SignedBody::Named(put.mode), NOW_MS);
    assert_eq!(send(other, &body_a), Err(Code::SignatureDoesNotMatch), "chunks of another request");
    let (request_c, body_c) = put.build();
    let text = String::from_utf8(body_c).unwrap();
    let second = text.find("5;chunk").unwrap();
    let third = text.find("1;chunk").unwrap();
    let reordered = [
        &text[..second],
        &text[third..text.find("0;chunk").unwrap()],
        &text[second..third],
        &text[text.find("0;chunk").unwrap()..],
    ]
    .concat();
    assert_eq!(send(request_c, reordered.as_bytes()), Err(Code::SignatureDoesNotMatch));
}

#[test]
fn a_body_of_another_length_is_refused() {
    let loose = |pieces: &[std::result::Result<&'static str, &'static str>], announced: Option<u64>| {
        let pieces = pieces.iter().map(|piece| piece.map(|text| Bytes::from_static(text.as_bytes()))).collect();
        let mut put = request("PUT", "/bucket/key", &[]);
        signer().sign(&mut put, SignedBody::Unsigned, NOW_MS);
        send_body(put, RawBody::new(Loose { pieces, announced }))
    };
    assert_eq!(loose(&[Ok("ab"), Ok("cd")], Some(4)).unwrap(), "abcd");
    assert_eq!(loose(&[Ok("ab")], Some(4)), Err(Code::IncompleteBody));
    assert_eq!(loose(&[Ok("ab"), Err("reset by peer")], Some(4)), Err(Code::IncompleteBody));
    assert_eq!(loose(&[Ok("abcde")], Some(4)), Err(Code::IncompleteBody));
    assert_eq!(loose(&[Ok("ab")], None), Err(Code::MissingContentLength));
    assert_eq!(loose(&[], Some(5 * (1 << 30) + 1)), Err(Code::EntityTooLarge));
    let mut coded = request("PUT", "/bucket/key", &[("transfer-encoding", "chunked")]);
    signer().sign(&mut coded, SignedBody::Unsigned, NOW_MS);
    let pieces = [Ok(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"c"))].into();
    assert_eq!(send_body(coded, RawBody::new(Loose { pieces, announced: None })).unwrap(), "abc", "HTTP marks the end");
    let no_length = ChunkedPut::signed();
    let (mut put, body) = no_length.build();
    put.headers_mut().remove("x-amz-decoded-content-length");
    assert!(send(put, &body).is_err());
}

#[test]
fn a_client_that_falls_silent_is_given_up() {
    struct Impatient;
    impl Clock for Impatient {
        fn now(&self) -> MonoTime {
            MonoTime(0)
        }
        fn wall(&self) -> WallTime {
            WallTime(NOW_MS)
        }
        fn sleep_until(&self, _: MonoTime) -> BoxFuture<()> {
            Box::pin(std::future::ready(()))
        }
    }
    let silent =
        futures_util::stream::pending::<std::result::Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>();
    let body = RawBody::new(http_body_util::StreamBody::new(silent));
    let proof = crate::auth::BodyProof::ChunkedUnsigned;
    let length = crate::payload::Length::Exactly(1);
    let mut payload = crate::payload::Payload::new(body, proof, length, Vec::new(), Arc::new(Impatient));
    let error = payload.next().now_or_never().unwrap().unwrap().unwrap_err();
    assert_eq!(error.code, Code::RequestTimeout);
}

/// With IPv6 one sender has many addresses.
#[test]
fn whoever_has_no_key_is_known_by_the_network() {
    let tenant = |address: &str| {
        let mut request = request("GET", "/bucket/key", &[]);
        let peer = Peer { address: Some(address.parse().unwrap()), secure: false };
        request.extensions_mut().insert(peer);
        let whole = http_body_util::BodyExt::map_err(Full::new(Bytes::new()), |never| match never {});
        let admitted = async move { admit(request.into_parts().0, RawBody::new(whole), &Keys, &options()).await };
        tenant_of(&admitted.now_or_never().expect("nothing here waits").unwrap().0)
    };
    assert_eq!(tenant("2001:db8::1"), tenant("2001:db8::ffff:2"));
    assert_ne!(tenant("2001:db8::1"), tenant("2001:db8:0:1::1"));
    assert_ne!(tenant("10.0.0.1"), tenant("10.0.0.2"));
}

#[test]
fn no_term_of_a_request_is_dropped() {
    let presigned = |query: &str| {
        let uri = signer().presign(&request("PUT", &format!("/bucket/key?{query}"), &[]), 60, NOW_MS);
        terms_of(request("PUT", &uri, &[]))
    };
    for name in ["x-henge-fence", "X-Henge-Fence", "X-HENGE-FENCE"] {
        let fence = presigned(&format!("{name}=lock%3A7")).unwrap().fence.unwrap();
        assert_eq!((&fence.key[..], fence.token), (&b"lock"[..], 7), "{name}");
    }
    let refused = Err(Code::InvalidArgument);
    assert_eq!(presigned("X-Henge-Fense=lock%3A7"), refused);
    assert_eq!(presigned("x-henge-fence=lock%3A7%0A"), refused, "no header can say this");
    assert_eq!(presigned("X-Henge-Fence=lock%3A7&x-henge-fence=lock%3A8"), refused);
    let form = ("content-type", "multipart/form-data; boundary=a");
    for name in ["x-henge-fence", "x-henge-acknowledge"] {
        assert_eq!(terms_of(request("POST", "/bucket", &[form, (name, "lock:7")])), refused, "{name}");
    }
}

#[test]
fn limits_hold() {
    let long = format!("/bucket/{}", "k".repeat(17 << 10));
    assert_eq!(send(signed_put(&long, &[], b""), b""), Err(Code::InvalidURI));
    let key = format!("/bucket/{}", "k".repeat(1025));
    assert_eq!(send(signed_put(&key, &[], b""), b""), Err(Code::KeyTooLongError));
    let big = "v".repeat(17 << 10);
    assert_eq!(
        send(signed_put("/bucket/key", &[("x-amz-meta-a", &big)], b""), b""),
        Err(Code::RequestHeaderSectionTooLarge)
    );
    let both = signed_put("/bucket/key", &[("transfer-encoding", "chunked"), ("content-length", "0")], b"");
    assert_eq!(send(both, b""), Err(Code::InvalidRequest));
    assert_eq!(send(signed_put("/Bad_Bucket/key", &[], b""), b""), Err(Code::InvalidBucketName));
    assert_eq!(send(signed_put("/bucket/key?x-id=a&x-id=b", &[], b""), b""), Err(Code::InvalidArgument));
}

proptest! {
    #[test]
    fn any_chunked_body_is_refused_or_whole_and_never_panics(bytes: Vec<u8>, text in "[0-9a-f;=\r\n:hx-]{0,80}") {
        for body in [&bytes[..], text.as_bytes()] {
            let (put, _) = ChunkedPut::with_trailer(UNSIGNED_TRAILER).build();
            if let Ok(content) = send(put, body) {
                prop_assert_eq!(content, "hello world!");
            }
        }
    }

    #[test]
    fn any_authorization_is_refused_and_never_panics(text in "(AWS4-HMAC-SHA256 )?[ -~]{0,80}", query in "(X-Amz-[A-Za-z]{0,9}=[ -~]{0,9}&?){0,5}") {
        let mut forged = request("GET", "/bucket/key", &[]);
        forged.headers_mut().insert("authorization", HeaderValue::from_str(&text).unwrap());
        prop_assert!(send(forged, b"").is_err());
        let uri = format!("/bucket/key?{}", query.replace([' ', '#', '%', '"', '<', '>', '\\', '^', '`', '{', '|', '}'], ""));
        if let Ok(uri) = uri.parse::<http::Uri>() {
            prop_assert!(send(request("GET", &uri.to_string(), &[]), b"").is_err());
        }
    }
}
