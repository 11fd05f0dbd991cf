//! The text that a signature covers. Used by the verifier and by the signer.

use crate::encoding::{hex, percent_decode, percent_encode_into, percent_encode_path};
use http::HeaderMap;
use sha2::{Digest, Sha256};

/// What a signing key is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// `yyyymmdd`.
    pub date: String,
    pub region: String,
    pub service: String,
}

impl Scope {
    pub fn text(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }
}

pub struct CanonicalRequest<'a> {
    pub method: &'a str,
    pub raw_path: &'a str,
    pub raw_query: &'a str,
    pub headers: &'a HeaderMap,
    /// Lower case, in the order in which the client listed them.
    pub signed_headers: &'a [String],
    /// Hash of the body in hex, or the word that stands for it.
    pub payload: &'a str,
}

impl CanonicalRequest<'_> {
    /// With the path in S3's encoding. `None` when path or query cannot be decoded.
    pub fn text(&self) -> Option<String> {
        let path = percent_encode_path(&percent_decode(self.raw_path, false)?);
        self.with_path(&path)
    }

    /// With the path as it stood on the wire; `None` when that is the same as [`CanonicalRequest::text`].
    pub fn text_with_raw_path(&self) -> Option<String> {
        let path = percent_encode_path(&percent_decode(self.raw_path, false)?);
        if path == self.raw_path { None } else { self.with_path(self.raw_path) }
    }

    fn with_path(&self, path: &str) -> Option<String> {
        let mut text = String::with_capacity(512);
        text.push_str(self.method);
        text.push('\n');
        text.push_str(path);
        text.push('\n');
        text.push_str(&canonical_query(self.raw_query)?);
        text.push('\n');
        let mut names: Vec<&str> = self.signed_headers.iter().map(String::as_str).collect();
        names.sort_unstable();
        for name in &names {
            text.push_str(name);
            text.push(':');
            for (position, value) in self.headers.get_all(*name).iter().enumerate() {
                if position > 0 {
                    text.push(',');
                }
                push_folded(&mut text, std::str::from_utf8(value.as_bytes()).ok()?);
            }
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&names.join(";"));
        text.push('\n');
        text.push_str(self.payload);
        Some(text)
    }
}

/// The query without its signature: each name and value decoded and encoded again in S3's way, sorted.
fn canonical_query(raw: &str) -> Option<String> {
    let mut pairs = Vec::new();
    for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode(name, true)?;
        if name == b"X-Amz-Signature" {
            continue;
        }
        let mut encoded = String::with_capacity(pair.len() + 8);
        percent_encode_into(&mut encoded, &name, false);
        let mut value_encoded = String::new();
        percent_encode_into(&mut value_encoded, &percent_decode(value, true)?, false);
        pairs.push((encoded, value_encoded));
    }
    pairs.sort_unstable();
    let joined: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    Some(joined.join("&"))
}

/// Appends a header value trimmed and with runs of spaces folded into one.
fn push_folded(text: &mut String, value: &str) {
    for (position, word) in value.split(' ').filter(|word| !word.is_empty()).enumerate() {
        if position > 0 {
            text.push(' ');
        }
        text.push_str(word.trim_matches('\t'));
    }
}

/// `AWS4-HMAC-SHA256`, the moment, the scope, and the hash of the canonical request.
pub fn string_to_sign(canonical: &str, timestamp: &str, scope: &Scope) -> String {
    format!("AWS4-HMAC-SHA256\n{timestamp}\n{}\n{}", scope.text(), hex(&Sha256::digest(canonical)))
}
