//! Valid requests of every kind of authentication, each changed in one place at a time: none of the changed ones is
//! taken for its sender's.

use crate::admission::{ChunkedPut, NOW_MS, UNSIGNED_TRAILER, request, send, signed_put, signer};
use crate::sign::SignedBody;
use http::header::{HeaderName, HeaderValue};

/// What was tried, and what got in.
#[derive(Default)]
struct Tally {
    tried: usize,
    accepted: Vec<String>,
}

impl Tally {
    fn try_one(&mut self, what: impl Fn() -> String, request: http::Request<()>, body: &[u8]) {
        self.tried += 1;
        if send(request, body).is_ok() {
            self.accepted.push(what());
        }
    }
}

/// Another character of the same kind, so that the change passes as many checks of form as may be.
fn other(byte: u8) -> char {
    char::from(match byte {
        b'0'..=b'8' | b'a'..=b'e' | b'g'..=b'y' | b'A'..=b'Y' => byte + 1,
        b'9' => b'0',
        b'f' => b'a',
        b'z' => b'a',
        b'Z' => b'A',
        _ => b'x',
    })
}

/// The text with one character changed, for every place; then cut short and repeated.
fn changed(text: &str) -> impl Iterator<Item = String> + '_ {
    let replaced = (0..text.len()).map(|at| {
        let mut copy = text.to_owned();
        copy.replace_range(at..=at, &other(text.as_bytes()[at]).to_string());
        copy
    });
    let cut = (1..text.len()).step_by(7).map(|at| text[..at].to_owned());
    replaced.chain(cut)
}

fn with_header(mut request: http::Request<()>, name: &'static str, value: &str) -> http::Request<()> {
    request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    request
}

fn with_uri(mut request: http::Request<()>, uri: &str) -> Option<http::Request<()>> {
    *request.uri_mut() = uri.parse().ok()?;
    Some(request)
}

/// Changes of what a header signature covers.
fn of_header(tally: &mut Tally, make: &dyn Fn() -> http::Request<()>, body: &[u8]) {
    assert!(send(make(), body).is_ok(), "the request is valid as it was signed");
    let original = make();
    for (name, value) in original.headers() {
        let text = value.to_str().unwrap().to_owned();
        for copy in changed(&text) {
            let mut request = make();
            request.headers_mut().insert(name.clone(), HeaderValue::from_str(&copy).unwrap());
            tally.try_one(|| format!("{name}: {copy}"), request, body);
        }
        let mut without = make();
        without.headers_mut().remove(name);
        tally.try_one(|| format!("without {name}"), without, body);
        let mut twice = make();
        twice.headers_mut().append(name.clone(), value.clone());
        tally.try_one(|| format!("{name} twice"), twice, body);
    }
    let uri = original.uri().to_string();
    for copy in changed(&uri).filter(|copy| copy.starts_with('/')) {
        if let Some(request) = with_uri(make(), &copy) {
            tally.try_one(|| format!("to {copy}"), request, body);
        }
    }
    for (name, value) in [
        ("x-amz-copy-source", "bucket/secret"),
        ("x-amz-acl", "public-read"),
        ("x-amz-bypass-governance-retention", "true"),
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        ("x-amz-security-token", "t"),
        ("x-amz-meta-more", "1"),
    ] {
        tally.try_one(|| format!("with {name}"), with_header(make(), name, value), body);
    }
    for method in ["GET", "HEAD", "POST", "DELETE", "PUT"].into_iter().filter(|method| *method != original.method()) {
        let mut request = make();
        *request.method_mut() = method.parse().unwrap();
        tally.try_one(|| method.to_owned(), request, body);
    }
}

/// Changes of a body that is signed or hashed.
fn of_body(tally: &mut Tally, make: &dyn Fn() -> (http::Request<()>, Vec<u8>), step: usize) {
    let (_, body) = make();
    for at in (0..body.len()).step_by(step) {
        let mut copy = body.clone();
        copy[at] = other(copy[at]) as u8;
        if copy != body {
            tally.try_one(|| format!("byte {at} of the body"), make().0, &copy);
        }
    }
    for at in (0..body.len()).step_by(11) {
        tally.try_one(|| format!("the body cut at {at}"), make().0, &body[..at]);
    }
    tally.try_one(|| "the body twice".to_owned(), make().0, &[&body[..], &body[..]].concat());
}

#[test]
fn no_changed_request_is_accepted() {
    let mut tally = Tally::default();
    let hashed =
        || signed_put("/bucket/key?x-id=PutObject", &[("x-amz-meta-a", "b"), ("content-type", "text/x")], b"hello");
    of_header(&mut tally, &hashed, b"hello");
    of_body(&mut tally, &|| (hashed(), b"hello".to_vec()), 1);
    let unsigned = || {
        let mut put = request("DELETE", "/bucket/key?versionId=null", &[]);
        signer().sign(&mut put, SignedBody::Unsigned, NOW_MS);
        put
    };
    of_header(&mut tally, &unsigned, b"");

    let presigned = signer().presign(&request("GET", "/bucket/key?versionId=null", &[]), 600, NOW_MS);
    assert!(send(request("GET", &presigned, &[]), b"").is_ok());
    for copy in changed(&presigned).filter(|copy| copy.starts_with('/')) {
        if let Some(request) = with_uri(request("GET", "/", &[]), &copy) {
            tally.try_one(|| format!("presigned {copy}"), request, b"");
        }
    }
    for method in ["PUT", "DELETE", "HEAD", "POST"] {
        tally.try_one(|| format!("presigned for {method}"), request(method, &presigned, &[]), b"");
    }

    for put in [
        ChunkedPut::signed(),
        ChunkedPut::with_trailer("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
        ChunkedPut::with_trailer(UNSIGNED_TRAILER),
    ] {
        let (valid, body) = put.build();
        assert!(send(valid, &body).is_ok());
        of_header(&mut tally, &|| put.build().0, &body);
        of_body(&mut tally, &|| put.build(), 1);
    }
    assert!(
        tally.accepted.is_empty(),
        "{} of {} were accepted: {:#?}",
        tally.accepted.len(),
        tally.tried,
        tally.accepted
    );
    assert!(tally.tried >= 1000, "{} cases", tally.tried);
    println!("{} changed requests, 0 accepted", tally.tried);
}
