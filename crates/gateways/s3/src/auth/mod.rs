//! Who is asking: AWS Signature Version 4, in a header or in a presigned URL. Signature Version 2 is refused.
//!
//! The result is an [`Authenticated`], which nothing but the constant-time comparison in [`proof`] can make. Bodies
//! that are signed or hashed are verified while they arrive ([`crate::payload`]); nothing is committed before.
//!
//! Source: "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API Reference.

pub(crate) mod canonical;
pub(crate) mod claim;
mod form;
pub(crate) mod proof;
#[cfg(test)]
mod tests;

use crate::encoding::hex;
use crate::error::{Code, Result, S3Error};
use crate::names;
use canonical::{CanonicalRequest, Scope};
use claim::{Claim, PayloadClaim};
use http::{HeaderMap, Method};
use proof::SigningKey;
use sha2::{Digest, Sha256};
use std::future::Future;

pub use form::authenticate_form;
pub use proof::Authenticated;

/// How far a client's clock may be off, either way, in milliseconds.
const SKEW_MAX_MS: u64 = 15 * 60 * 1000;

/// The longest life of a presigned URL in seconds: seven days.
const PRESIGNED_MAX_S: u64 = 7 * 24 * 3600;

/// The secret of an access key. It shows itself to nobody.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Who sent a request. What an anonymous sender may do is decided as for everybody, by policies and lists.
#[derive(Clone, Debug)]
pub enum Caller {
    Signed(Authenticated),
    /// The request carries no signature at all. (One that does not match is refused.)
    Anonymous,
}

impl Caller {
    /// Empty for an anonymous sender: no key and no owner is called so.
    pub fn access_key(&self) -> &str {
        match self {
            Caller::Signed(signed) => signed.access_key(),
            Caller::Anonymous => "",
        }
    }
}

/// Where secrets come from.
pub trait KeySource: Send + Sync + 'static {
    /// The secret of `access_key`; `None` when there is no such key.
    fn secret(&self, access_key: &str) -> impl Future<Output = Result<Option<Secret>>> + Send;
}

impl KeySource for client::Client {
    async fn secret(&self, access_key: &str) -> Result<Option<Secret>> {
        let row = self.access_key(access_key).await?;
        Ok(row.map(|row| Secret::new(row.secret_key)))
    }
}

/// What the signature says about the body.
pub enum BodyProof {
    /// Nothing: `UNSIGNED-PAYLOAD`.
    None,
    /// Its SHA-256.
    Sha256([u8; 32]),
    /// It arrives in aws-chunked framing without chunk signatures, with trailers.
    ChunkedUnsigned,
    /// It arrives in aws-chunked framing; each chunk is signed.
    ChunkedSigned { chain: ChunkChain, trailers: bool },
}

/// The chain of chunk signatures: each covers its predecessor, the first the request's own.
pub struct ChunkChain {
    key: SigningKey,
    /// `timestamp LF scope LF`, a part of every string to sign.
    context: String,
    previous: [u8; 32],
}

impl ChunkChain {
    /// Whether `signature` is the right one for a chunk with this hash. The chain goes on from it.
    pub fn accept_chunk(&mut self, signature: &[u8; 32], sha256: &[u8; 32]) -> bool {
        let text = self.chunk_text(sha256);
        self.accept(&text, signature)
    }

    /// Whether `signature` is the right one for the trailers (`name:value LF` each, sorted).
    pub fn accept_trailers(&mut self, signature: &[u8; 32], canonical: &str) -> bool {
        let text = self.trailer_text(canonical);
        self.accept(&text, signature)
    }

    fn accept(&mut self, text: &str, signature: &[u8; 32]) -> bool {
        let genuine = self.key.verifies(text, signature);
        if genuine {
            self.previous = *signature;
        }
        genuine
    }

    pub(crate) fn chunk_text(&self, sha256: &[u8; 32]) -> String {
        let empty = hex(&Sha256::digest(b""));
        format!("AWS4-HMAC-SHA256-PAYLOAD\n{}{}\n{empty}\n{}", self.context, hex(&self.previous), hex(sha256))
    }

    pub(crate) fn trailer_text(&self, canonical: &str) -> String {
        let hash = hex(&Sha256::digest(canonical));
        format!("AWS4-HMAC-SHA256-TRAILER\n{}{}\n{hash}", self.context, hex(&self.previous))
    }

    /// Starts a chain behind the request's own signature.
    pub(crate) fn new(key: SigningKey, timestamp: &str, scope: &Scope, seed: [u8; 32]) -> ChunkChain {
        ChunkChain { key, context: format!("{timestamp}\n{}\n", scope.text()), previous: seed }
    }

    /// Signs the next string of the chain, as the sender does.
    #[cfg(test)]
    pub(crate) fn extend(&mut self, text: &str) -> [u8; 32] {
        self.previous = self.key.sign(text);
        self.previous
    }
}

/// The parts of a request that its signature covers.
pub struct Signed<'a> {
    pub method: &'a Method,
    /// As it stood in the request line, still encoded.
    pub raw_path: &'a str,
    /// As it stood in the request line, still encoded; empty when there was none.
    pub raw_query: &'a str,
    pub headers: &'a HeaderMap,
}

/// Proves who sent the request. `now_ms`: wall clock; `region`: the only one that is served.
pub async fn authenticate(
    request: Signed<'_>,
    keys: &impl KeySource,
    now_ms: u64,
    region: &str,
) -> Result<(Caller, BodyProof)> {
    let Some(claim) = Claim::read(&request)? else { return anonymous(&request) };
    claim.check_scope(region)?;
    claim.check_time(now_ms)?;
    check_signed_headers(&claim, request.headers)?;
    let secret = keys.secret(&claim.access_key).await?.ok_or_else(unknown_key)?;
    let key = SigningKey::derive(&secret.0, &claim.scope);
    let canonical = CanonicalRequest {
        method: request.method.as_str(),
        raw_path: request.raw_path,
        raw_query: request.raw_query,
        headers: request.headers,
        signed_headers: &claim.signed_headers,
        payload: &claim.payload_text,
    };
    let caller = proof::compare(&key, &canonical, &claim).ok_or_else(no_match)?;
    let body = match claim.payload {
        PayloadClaim::Unsigned => BodyProof::None,
        PayloadClaim::Sha256(hash) => BodyProof::Sha256(hash),
        PayloadClaim::ChunkedUnsigned => BodyProof::ChunkedUnsigned,
        PayloadClaim::ChunkedSigned { trailers } => BodyProof::ChunkedSigned {
            chain: ChunkChain::new(key, &claim.timestamp, &claim.scope, claim.signature),
            trailers,
        },
    };
    Ok((Caller::Signed(caller), body))
}

/// A request without a signature: what it says about its body is still held against it.
fn anonymous(request: &Signed<'_>) -> Result<(Caller, BodyProof)> {
    refuse_repeated(request.headers)?;
    let proof = match claim::unsigned_payload(request.headers)? {
        PayloadClaim::Unsigned => BodyProof::None,
        PayloadClaim::Sha256(hash) => BodyProof::Sha256(hash),
        PayloadClaim::ChunkedUnsigned => BodyProof::ChunkedUnsigned,
        PayloadClaim::ChunkedSigned { .. } => {
            let message = "Access denied: the request announces signed chunks and carries no signature.";
            return Err(S3Error::new(Code::AccessDenied, message));
        }
    };
    Ok((Caller::Anonymous, proof))
}

fn refuse_repeated(headers: &HeaderMap) -> Result<()> {
    for name in headers.keys() {
        if headers.get_all(name).iter().nth(1).is_some() && (names::is_ours(name) || single(name)) {
            return Err(S3Error::new(Code::InvalidRequest, format!("The header {name} is given more than once.")));
        }
    }
    Ok(())
}

fn unknown_key() -> S3Error {
    S3Error::new(
        Code::InvalidAccessKeyId,
        "The access key you provided does not exist. Check it, or make one with `henge key create`.",
    )
}

fn no_match() -> S3Error {
    S3Error::new(
        Code::SignatureDoesNotMatch,
        "The request signature we calculated does not match the signature you provided. Check your secret key and \
         signing method.",
    )
}

/// A header that changes the meaning of a request must be covered by the signature, and stand there once: else a
/// middleman could add it, or two readers could see different values.
fn check_signed_headers(claim: &Claim, headers: &HeaderMap) -> Result<()> {
    if !claim.signed_headers.iter().any(|name| name == "host") {
        return Err(claim.malformed("The host header must be among the signed headers."));
    }
    refuse_repeated(headers)?;
    for name in headers.keys() {
        let covered = claim.signed_headers.iter().any(|signed| signed == name.as_str());
        // The hash of the body is itself a part of the canonical request of header authentication. In a presigned
        // request it only promises a check more.
        if names::is_ours(name) && !covered && *name != names::CONTENT_SHA256 {
            return Err(S3Error::new(
                Code::AccessDenied,
                format!("There were headers present in the request which were not signed: {name}."),
            )
            .field("HeadersNotSigned", name.as_str()));
        }
    }
    match claim.signed_headers.iter().find(|name| !headers.contains_key(name.as_str())) {
        Some(missing) => Err(S3Error::new(
            Code::SignatureDoesNotMatch,
            format!("The signed header {missing} is not in the request."),
        )),
        None => Ok(()),
    }
}

/// Headers that must not be repeated because they decide what is read or written.
fn single(name: &http::HeaderName) -> bool {
    use http::header as h;
    [h::HOST, h::CONTENT_LENGTH, h::CONTENT_TYPE, h::RANGE, h::IF_MATCH, h::IF_NONE_MATCH, names::CONTENT_MD5]
        .contains(name)
}
