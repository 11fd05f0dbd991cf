//! The other side of [`crate::auth`]: signs requests as a client would, for the tests. The examples of the S3 reference
//! hold both sides to what neither of them made up.

use crate::auth::ChunkChain;
use crate::auth::canonical::{CanonicalRequest, Scope, string_to_sign};
use crate::auth::proof::SigningKey;
use crate::date::amz_date;
use crate::encoding::{hex, percent_encode_into};
use crate::names;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{HeaderMap, Request};
use sha2::{Digest, Sha256};

/// Credentials and where they are used. It never shows its secret.
#[derive(Clone)]
pub struct Signer {
    pub access_key: String,
    pub region: String,
    secret_key: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("access_key", &self.access_key)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// What the signature says about the body.
#[derive(Clone, Copy, Debug)]
pub enum SignedBody<'a> {
    Unsigned,
    Bytes(&'a [u8]),
    /// Any other value of `x-amz-content-sha256`.
    Named(&'a str),
}

impl Signer {
    pub fn new(access_key: &str, secret_key: &str, region: &str) -> Signer {
        Signer { access_key: access_key.to_owned(), region: region.to_owned(), secret_key: secret_key.to_owned() }
    }

    /// Adds `x-amz-date`, `x-amz-content-sha256` and `authorization`. The request has its `host` header already, and
    /// every header present is signed. Answers the signature.
    pub fn sign<B>(&self, request: &mut Request<B>, body: SignedBody<'_>, now_ms: u64) -> [u8; 32] {
        let timestamp = amz_date(now_ms);
        let payload = match body {
            SignedBody::Unsigned => "UNSIGNED-PAYLOAD".to_owned(),
            SignedBody::Bytes(bytes) => hex(&Sha256::digest(bytes)),
            SignedBody::Named(name) => name.to_owned(),
        };
        request.headers_mut().insert(names::DATE, text_value(&timestamp));
        request.headers_mut().insert(names::CONTENT_SHA256, text_value(&payload));
        let signed_headers = header_names(request.headers());
        let scope = self.scope(&timestamp);
        let signature = self.signature(request, &signed_headers, &payload, &timestamp, &scope);
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={}",
            self.access_key,
            scope.text(),
            signed_headers.join(";"),
            hex(&signature)
        );
        request.headers_mut().insert(AUTHORIZATION, text_value(&authorization));
        signature
    }

    /// The path and query of a presigned request that lives for `expires_s` seconds. The headers that `request` has
    /// (`host` at least) must be sent with it.
    pub fn presign<B>(&self, request: &Request<B>, expires_s: u64, now_ms: u64) -> String {
        let timestamp = amz_date(now_ms);
        let scope = self.scope(&timestamp);
        let signed_headers = header_names(request.headers());
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let mut full = query.to_owned();
        for (name, value) in [
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()),
            ("X-Amz-Credential", format!("{}/{}", self.access_key, scope.text())),
            ("X-Amz-Date", timestamp.clone()),
            ("X-Amz-Expires", expires_s.to_string()),
            ("X-Amz-SignedHeaders", signed_headers.join(";")),
        ] {
            if !full.is_empty() {
                full.push('&');
            }
            full.push_str(name);
            full.push('=');
            percent_encode_into(&mut full, value.as_bytes(), false);
        }
        let canonical = CanonicalRequest {
            method: request.method().as_str(),
            raw_path: path,
            raw_query: &full,
            headers: request.headers(),
            signed_headers: &signed_headers,
            payload: "UNSIGNED-PAYLOAD",
        };
        let signature = self.sign_text(&canonical, &timestamp, &scope);
        format!("{path}?{full}&X-Amz-Signature={}", hex(&signature))
    }

    /// An aws-chunked body whose chunks (and trailers, where there are any) are signed in a chain that starts at
    /// `seed`, the request's own signature.
    pub fn chunked_body(
        &self,
        chunks: &[&[u8]],
        trailers: Option<&[(&str, &str)]>,
        seed: [u8; 32],
        now_ms: u64,
    ) -> Vec<u8> {
        let timestamp = amz_date(now_ms);
        let scope = self.scope(&timestamp);
        let mut chain = ChunkChain::new(SigningKey::derive(&self.secret_key, &scope), &timestamp, &scope, seed);
        let mut out = Vec::new();
        for chunk in chunks.iter().copied().chain([&[][..]]) {
            let text = chain.chunk_text(&Sha256::digest(chunk).into());
            let signature = hex(&chain.extend(&text));
            out.extend_from_slice(format!("{:x};chunk-signature={signature}\r\n", chunk.len()).as_bytes());
            out.extend_from_slice(chunk);
            if !chunk.is_empty() {
                out.extend_from_slice(b"\r\n");
            }
        }
        if let Some(trailers) = trailers {
            let canonical: String = trailers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
            for (name, value) in trailers {
                out.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
            }
            let text = chain.trailer_text(&canonical);
            let signature = hex(&chain.extend(&text));
            out.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    fn scope(&self, timestamp: &str) -> Scope {
        Scope { date: timestamp[..8].to_owned(), region: self.region.clone(), service: "s3".to_owned() }
    }

    fn signature<B>(
        &self,
        request: &Request<B>,
        signed_headers: &[String],
        payload: &str,
        timestamp: &str,
        scope: &Scope,
    ) -> [u8; 32] {
        let canonical = CanonicalRequest {
            method: request.method().as_str(),
            raw_path: request.uri().path(),
            raw_query: request.uri().query().unwrap_or_default(),
            headers: request.headers(),
            signed_headers,
            payload,
        };
        self.sign_text(&canonical, timestamp, scope)
    }

    fn sign_text(&self, canonical: &CanonicalRequest<'_>, timestamp: &str, scope: &Scope) -> [u8; 32] {
        let text = canonical.text().expect("the caller's own path, query and headers can be decoded");
        SigningKey::derive(&self.secret_key, scope).sign(&string_to_sign(&text, timestamp, scope))
    }
}

fn header_names(headers: &HeaderMap) -> Vec<String> {
    let mut names: Vec<String> = headers.keys().map(|name| name.as_str().to_owned()).collect();
    names.sort_unstable();
    names
}

fn text_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("dates, hashes and credentials are visible ASCII")
}
