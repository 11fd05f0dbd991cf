//! What is kept of a request's headers beside the content, and how it comes back.

use crate::checksum::{Algorithm, ChecksumType};
use crate::error::{Code, Result, S3Error, not_implemented};
use crate::names;
use client::{Checksum, Header};
use http::HeaderMap;
use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES, HeaderName,
    HeaderValue,
};

/// The most bytes of user metadata: names without their prefix, and values.
const METADATA_MAX: usize = 2048;

/// User metadata carries this prefix.
const METADATA_PREFIX: &str = "x-amz-meta-";

/// Query parameters that override headers of an answer.
pub const OVERRIDES: [&str; 6] = [
    "response-content-type",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-expires",
];

/// Headers of a write that are kept and sent back with the object; the query parameter that overrides each.
const KEPT: [(HeaderName, &str); 6] = [
    (CONTENT_TYPE, OVERRIDES[0]),
    (CACHE_CONTROL, OVERRIDES[1]),
    (CONTENT_DISPOSITION, OVERRIDES[2]),
    (CONTENT_ENCODING, OVERRIDES[3]),
    (CONTENT_LANGUAGE, OVERRIDES[4]),
    (EXPIRES, OVERRIDES[5]),
];

/// The type of content whose writer named none.
const DEFAULT_TYPE: &str = "binary/octet-stream";

/// Headers that ask for what is not built. Taking such a request would promise what is not kept.
const NOT_BUILT: [(&str, &str); 4] = [
    ("x-amz-server-side-encryption", "Server-side encryption"),
    ("x-amz-copy-source-server-side-encryption", "Server-side encryption"),
    ("x-amz-website-redirect-location", "Website redirection"),
    ("x-amz-write-offset-bytes", "Appending"),
];

/// Refuses a request whose headers ask for what is not built.
pub fn refuse_unbuilt(headers: &HeaderMap) -> Result<()> {
    for name in headers.keys() {
        if let Some((_, what)) = NOT_BUILT.iter().find(|(prefix, _)| name.as_str().starts_with(prefix)) {
            return Err(not_implemented(&format!("{what} ({name})")));
        }
    }
    Ok(())
}

/// Content headers and user metadata.
pub fn kept_headers(headers: &HeaderMap) -> Result<Vec<Header>> {
    let mut kept = Vec::new();
    for (name, _) in &KEPT {
        let Some(value) = headers.get(name) else { continue };
        let text = header_text(name, value)?;
        let text = if *name == CONTENT_ENCODING { without_aws_chunked(&text) } else { text };
        if !text.is_empty() {
            kept.push(Header { name: name.as_str().to_owned(), value: text });
        }
    }
    let mut total = 0;
    let mut metadata = Vec::new();
    for (name, value) in headers {
        if let Some(short) = name.as_str().strip_prefix(METADATA_PREFIX).filter(|short| !short.is_empty()) {
            let text = header_text(name, value)?;
            total += short.len() + text.len();
            metadata.push(Header { name: name.as_str().to_owned(), value: text });
        }
    }
    if total > METADATA_MAX {
        let message = "Your metadata headers exceed the maximum allowed metadata size.";
        return Err(S3Error::new(Code::MetadataTooLarge, message)
            .field("Size", total.to_string())
            .field("MaxSizeAllowed", METADATA_MAX.to_string()));
    }
    metadata.sort_by(|a, b| a.name.cmp(&b.name));
    kept.extend(metadata);
    Ok(kept)
}

fn header_text(name: &HeaderName, value: &HeaderValue) -> Result<String> {
    String::from_utf8(value.as_bytes().to_vec())
        .map_err(|_| S3Error::new(Code::InvalidArgument, format!("The header {name} is not UTF-8.")))
}

/// `aws-chunked` says how the request was framed, not what the object is.
fn without_aws_chunked(encodings: &str) -> String {
    if !encodings.split(',').any(|encoding| encoding.trim() == "aws-chunked") {
        return encodings.to_owned();
    }
    let kept: Vec<&str> = encodings
        .split(',')
        .map(str::trim)
        .filter(|encoding| !encoding.is_empty() && *encoding != "aws-chunked")
        .collect();
    kept.join(", ")
}

/// Content headers and user metadata as headers of an answer. `overrides`: the value of a query parameter.
pub fn write_headers<'a>(
    kept: &[Header],
    overrides: impl Fn(&str) -> Option<&'a str>,
    out: &mut HeaderMap,
) -> Result<()> {
    out.insert(CONTENT_TYPE, HeaderValue::from_static(DEFAULT_TYPE));
    for header in kept {
        // What was taken from a request is valid in an answer; a damaged name or value is left out.
        let name = HeaderName::from_bytes(header.name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(header.value.as_bytes())) {
            out.insert(name, value);
        }
    }
    for (name, parameter) in &KEPT {
        if let Some(text) = overrides(parameter) {
            let value = HeaderValue::from_bytes(text.as_bytes());
            let invalid = |_| S3Error::new(Code::InvalidArgument, format!("The value of {parameter} is invalid."));
            out.insert(name, value.map_err(invalid)?);
        }
    }
    Ok(())
}

/// Checksums as headers of an answer.
pub fn write_checksums(checksums: &[Checksum], out: &mut HeaderMap) {
    for checksum in checksums {
        let Some(algorithm) = Algorithm::named(&checksum.algorithm) else { continue };
        let name = HeaderName::from_bytes(algorithm.header().as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&checksum.value)) {
            out.insert(name, value);
            out.insert(names::CHECKSUM_TYPE, HeaderValue::from_static(ChecksumType::of(checksum).as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap()))
            .collect()
    }

    #[test]
    fn headers_come_back_as_they_were_given() {
        let given = map(&[
            ("content-type", "text/plain; charset=utf-8"),
            ("content-encoding", "aws-chunked,deflate, gzip"),
            ("expires", "not even a date"),
            ("x-amz-meta-b", "grün"),
            ("x-amz-meta-a", "1"),
            ("x-amz-date", "never kept"),
        ]);
        let kept = kept_headers(&given).unwrap();
        let names: Vec<&str> = kept.iter().map(|header| header.name.as_str()).collect();
        assert_eq!(names, ["content-type", "content-encoding", "expires", "x-amz-meta-a", "x-amz-meta-b"]);
        let mut out = HeaderMap::new();
        write_headers(&kept, |_| None, &mut out).unwrap();
        assert_eq!(out["content-encoding"], "deflate, gzip");
        assert_eq!(out["x-amz-meta-b"].as_bytes(), "grün".as_bytes());
        write_headers(&kept, |name| (name == "response-content-type").then_some("text/html"), &mut out).unwrap();
        assert_eq!(out["content-type"], "text/html");
        assert!(
            write_headers(&kept, |_| Some("a\r\nb: c"), &mut out).is_err(),
            "no header can be smuggled into an answer"
        );
    }

    #[test]
    fn only_framing_leaves_no_encoding() {
        assert_eq!(kept_headers(&map(&[("content-encoding", "aws-chunked")])).unwrap(), []);
    }

    #[test]
    fn metadata_is_bounded() {
        let fits = "v".repeat(METADATA_MAX - 1);
        assert!(kept_headers(&map(&[("x-amz-meta-k", &fits)])).is_ok());
        let error = kept_headers(&map(&[("x-amz-meta-kk", &fits)])).unwrap_err();
        assert_eq!(error.code, Code::MetadataTooLarge);
    }

    #[test]
    fn what_would_not_be_kept_is_refused() {
        for (name, value, code) in [
            ("x-amz-server-side-encryption", "AES256", Code::NotImplemented),
            ("x-amz-server-side-encryption-customer-key", "k", Code::NotImplemented),
        ] {
            assert_eq!(refuse_unbuilt(&map(&[(name, value)])).unwrap_err().code, code, "{name}: {value}");
        }
        for (name, value) in [("x-amz-storage-class", "STANDARD"), ("x-amz-meta-x", "y")] {
            assert!(refuse_unbuilt(&map(&[(name, value)])).is_ok(), "{name}: {value}");
        }
    }
}
