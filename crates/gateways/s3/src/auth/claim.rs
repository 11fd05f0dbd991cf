//! What a request claims about its sender, before anything is proven.

use super::canonical::Scope;
use super::{PRESIGNED_MAX_S, SKEW_MAX_MS, Signed};
use crate::date::parse_amz_date;
use crate::encoding::{percent_decode, unhex};
use crate::error::{Code, Result, S3Error};
use crate::names;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

pub struct Claim {
    pub access_key: String,
    pub scope: Scope,
    /// `yyyymmddThhmmssZ`.
    pub timestamp: String,
    /// Lower case.
    pub signed_headers: Vec<String>,
    pub signature: [u8; 32],
    pub payload: PayloadClaim,
    /// How the payload stands in the canonical request.
    pub payload_text: String,
    /// Seconds that a presigned URL lives; `None` for a signature in the header.
    expires_s: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PayloadClaim {
    Unsigned,
    Sha256([u8; 32]),
    ChunkedUnsigned,
    ChunkedSigned { trailers: bool },
}

/// What a request without a signature says about its body.
pub(super) fn unsigned_payload(headers: &HeaderMap) -> Result<PayloadClaim> {
    single(headers, &names::CONTENT_SHA256)?.map_or(Ok(PayloadClaim::Unsigned), payload_claim)
}

/// A parameter that only signed requests have: without its companions it is a broken signature, not none.
fn names_signature(parameter: &str) -> bool {
    ["X-Amz-Credential", "X-Amz-SignedHeaders", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Security-Token"]
        .iter()
        .any(|name| parameter.eq_ignore_ascii_case(name))
}

impl Claim {
    /// `None`: the request claims nothing.
    pub fn read(request: &Signed<'_>) -> Result<Option<Claim>> {
        let query = signature_query(request.raw_query)?;
        let in_header = request.headers.contains_key(AUTHORIZATION);
        let is_v2 = query.iter().any(|(name, _)| name == "AWSAccessKeyId" || name == "Signature");
        let in_query = query.iter().any(|(name, _)| name == "X-Amz-Algorithm" || name == "X-Amz-Signature");
        match (in_header, in_query) {
            (true, true) => Err(S3Error::new(
                Code::InvalidArgument,
                "Only one authentication mechanism is allowed: a header or a presigned URL.",
            )),
            (true, false) => Claim::from_header(request.headers).map(Some),
            (false, true) => Claim::from_query(&query, request.headers).map(Some),
            (false, false) if is_v2 => Err(version_2_refused()),
            (false, false) if query.iter().any(|(name, _)| names_signature(name)) => {
                Err(query_malformed("X-Amz-Algorithm and X-Amz-Signature are missing"))
            }
            (false, false) => Ok(None),
        }
    }

    /// `AWS4-HMAC-SHA256 Credential=..., SignedHeaders=..., Signature=...`
    fn from_header(headers: &HeaderMap) -> Result<Claim> {
        let text = single(headers, &AUTHORIZATION)?.unwrap_or_default();
        if text.starts_with("AWS ") {
            return Err(version_2_refused());
        }
        let Some(fields) = text.strip_prefix(ALGORITHM).and_then(|rest| rest.strip_prefix([' ', '\t'])) else {
            return Err(S3Error::new(Code::InvalidArgument, "Unsupported authorization type; use AWS4-HMAC-SHA256."));
        };
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for field in fields.split(',') {
            let (name, value) = field.trim().split_once('=').ok_or_else(|| header_malformed("a field has no value"))?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(header_malformed("it has an unknown field")),
            };
            if slot.replace(value).is_some() {
                return Err(header_malformed("a field is given twice"));
            }
        }
        let (Some(credential), Some(signed_headers), Some(signature)) = (credential, signed_headers, signature) else {
            return Err(header_malformed("Credential, SignedHeaders and Signature are all required"));
        };
        refuse_session_token(headers.contains_key(names::SECURITY_TOKEN))?;
        let Some(timestamp) = single(headers, &names::DATE)? else {
            return Err(S3Error::new(Code::AccessDenied, "A signed request requires a valid x-amz-date header."));
        };
        let Some(payload_text) = single(headers, &names::CONTENT_SHA256)? else {
            return Err(S3Error::new(Code::InvalidRequest, "The header x-amz-content-sha256 is missing."));
        };
        let (access_key, scope) =
            credential_parts(credential).ok_or_else(|| header_malformed("the credential is invalid"))?;
        Ok(Claim {
            access_key,
            scope,
            timestamp: timestamp.to_owned(),
            signed_headers: header_list(signed_headers).ok_or_else(|| header_malformed("SignedHeaders is invalid"))?,
            signature: unhex(signature).ok_or_else(|| header_malformed("the signature is not 64 hex digits"))?,
            payload: payload_claim(payload_text)?,
            payload_text: payload_text.to_owned(),
            expires_s: None,
        })
    }

    fn from_query(query: &[(String, String)], headers: &HeaderMap) -> Result<Claim> {
        let get = |wanted: &str| -> Result<Option<&str>> {
            let mut values = query.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
            match (values.next(), values.next()) {
                (_, Some(_)) => Err(query_malformed(format!("{wanted} is given twice"))),
                (value, None) => Ok(value),
            }
        };
        let need = |wanted: &str| get(wanted)?.ok_or_else(|| query_malformed(format!("{wanted} is missing")));
        if need("X-Amz-Algorithm")? != ALGORITHM {
            return Err(query_malformed("X-Amz-Algorithm only supports AWS4-HMAC-SHA256"));
        }
        refuse_session_token(get("X-Amz-Security-Token")?.is_some() || headers.contains_key(names::SECURITY_TOKEN))?;
        let (access_key, scope) = credential_parts(need("X-Amz-Credential")?)
            .ok_or_else(|| query_malformed("X-Amz-Credential is invalid"))?;
        let expires = need("X-Amz-Expires")?;
        let expires_s = expires.parse::<u64>().ok().filter(|_| expires.bytes().all(|b| b.is_ascii_digit()));
        let out_of_range = || {
            let message = "The presigned URL is not valid; X-Amz-Expires must be 0 to 604800 seconds (a week).";
            S3Error::new(Code::AccessDenied, message)
        };
        let expires_s = expires_s.filter(|seconds| *seconds <= PRESIGNED_MAX_S).ok_or_else(out_of_range)?;
        let signed_headers = header_list(need("X-Amz-SignedHeaders")?)
            .ok_or_else(|| query_malformed("X-Amz-SignedHeaders is invalid"))?;
        let signature =
            unhex(need("X-Amz-Signature")?).ok_or_else(|| query_malformed("X-Amz-Signature is not 64 hex digits"))?;
        let header = single(headers, &names::CONTENT_SHA256)?;
        let covered = signed_headers.iter().any(|name| *name == names::CONTENT_SHA256.as_str());
        let payload = match get("X-Amz-Content-Sha256")?.or(header) {
            Some(text) => payload_claim(text)?,
            None => PayloadClaim::Unsigned,
        };
        if matches!(payload, PayloadClaim::ChunkedSigned { .. } | PayloadClaim::ChunkedUnsigned) {
            return Err(crate::error::not_implemented("A presigned request with an aws-chunked body"));
        }
        let payload_text = match (get("X-Amz-Content-Sha256")?, header) {
            (Some(text), _) => text,
            (None, Some(text)) if covered => text,
            _ => UNSIGNED,
        };
        Ok(Claim {
            access_key,
            scope,
            timestamp: need("X-Amz-Date")?.to_owned(),
            signed_headers,
            signature,
            payload,
            payload_text: payload_text.to_owned(),
            expires_s: Some(expires_s),
        })
    }

    /// The signature must have been made for this region and for S3.
    pub fn check_scope(&self, region: &str) -> Result<()> {
        if self.scope.service != "s3" {
            return Err(self.malformed(&format!("the service {:?} is wrong; expecting \"s3\"", self.scope.service)));
        }
        if self.scope.region != region {
            return Err(self
                .malformed(&format!("the region {:?} is wrong; expecting {region:?}", self.scope.region))
                .field("Region", region));
        }
        Ok(())
    }

    pub fn check_time(&self, now_ms: u64) -> Result<()> {
        let Some(signed_ms) = parse_amz_date(&self.timestamp) else {
            return Err(self.malformed("the date must be in the format yyyymmddThhmmssZ"));
        };
        if !self.timestamp.starts_with(&self.scope.date) {
            return Err(self.malformed("the date of the credential is not the date of the request"));
        }
        match self.expires_s {
            None if signed_ms.abs_diff(now_ms) > SKEW_MAX_MS => Err(S3Error::new(
                Code::RequestTimeTooSkewed,
                "The difference between the request time and the server's time is too large. Set the client's clock.",
            )
            .field("RequestTime", self.timestamp.as_str())
            .field("ServerTime", crate::date::iso8601(now_ms))),
            Some(_) if signed_ms > now_ms + SKEW_MAX_MS => {
                Err(S3Error::new(Code::AccessDenied, "The presigned request is not valid yet."))
            }
            Some(expires_s) if now_ms > signed_ms + expires_s * 1000 => {
                Err(S3Error::new(Code::AccessDenied, "The presigned request has expired.")
                    .field("ServerTime", crate::date::iso8601(now_ms)))
            }
            _ => Ok(()),
        }
    }

    pub fn malformed(&self, why: &str) -> S3Error {
        if self.expires_s.is_some() { query_malformed(why.to_owned()) } else { header_malformed(why) }
    }
}

fn header_malformed(why: &str) -> S3Error {
    S3Error::new(Code::AuthorizationHeaderMalformed, format!("The authorization header is malformed; {why}."))
}

fn query_malformed(why: impl std::fmt::Display) -> S3Error {
    S3Error::new(Code::AuthorizationQueryParametersError, format!("The presigned URL is malformed; {why}."))
}

fn version_2_refused() -> S3Error {
    S3Error::new(
        Code::InvalidRequest,
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
    )
}

fn refuse_session_token(given: bool) -> Result<()> {
    if given {
        return Err(S3Error::new(Code::InvalidToken, "Session tokens are not issued by this server."));
    }
    Ok(())
}

/// The value of a header that must not be repeated. `None` when it is absent.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    text.map(Some)
        .ok_or_else(|| S3Error::new(Code::InvalidRequest, format!("The header {name} is repeated or invalid.")))
}

/// Access key and scope of `KEY/yyyymmdd/region/service/aws4_request`.
pub(super) fn credential_parts(credential: &str) -> Option<(String, Scope)> {
    let mut parts = credential.rsplitn(5, '/');
    let (terminator, service, region) = (parts.next()?, parts.next()?, parts.next()?);
    let (date, access_key) = (parts.next()?, parts.next()?);
    let valid = terminator == "aws4_request"
        && date.len() == 8
        && date.bytes().all(|b| b.is_ascii_digit())
        && !access_key.is_empty();
    let scope = Scope { date: date.to_owned(), region: region.to_owned(), service: service.to_owned() };
    valid.then(|| (access_key.to_owned(), scope))
}

fn header_list(text: &str) -> Option<Vec<String>> {
    let names: Vec<String> = text.split(';').map(str::to_owned).collect();
    let valid = |name: &String| {
        HeaderName::from_bytes(name.as_bytes()).is_ok() && !name.bytes().any(|b| b.is_ascii_uppercase())
    };
    // Each name costs a copy of its header's value in the canonical request: a name that is repeated would multiply it.
    let once = names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len();
    (once && names.iter().all(valid)).then_some(names)
}

fn payload_claim(text: &str) -> Result<PayloadClaim> {
    match text {
        UNSIGNED => Ok(PayloadClaim::Unsigned),
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Ok(PayloadClaim::ChunkedUnsigned),
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Ok(PayloadClaim::ChunkedSigned { trailers: false }),
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => Ok(PayloadClaim::ChunkedSigned { trailers: true }),
        other => unhex(other).map(PayloadClaim::Sha256).ok_or_else(|| {
            S3Error::new(
                Code::InvalidArgument,
                "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, \
                 STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a SHA-256 in hex.",
            )
        }),
    }
}

/// The query parameters that say something about authentication, decoded.
fn signature_query(raw: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for pair in raw.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| percent_decode(text, true).and_then(|bytes| String::from_utf8(bytes).ok());
        let (Some(name), Some(value)) = (decode(name), decode(value)) else {
            return Err(S3Error::new(Code::InvalidURI, "The query string could not be decoded."));
        };
        if name.starts_with("X-Amz-") || name == "AWSAccessKeyId" || name == "Signature" {
            found.push((name, value));
        }
    }
    Ok(found)
}
