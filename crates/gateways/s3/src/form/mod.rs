//! A browser's upload: POST of `multipart/form-data` to a bucket. The fields before the file say what the object shall
//! be and prove who allowed it (a signed policy); the file streams on as a body that ends at the form's boundary.
//!
//! Source: "POST Object", Amazon S3 API Reference; RFC 7578.

mod policy;

use crate::date::parse_amz_date;
use crate::encoding::unbase64;
use crate::error::{Code, Result, S3Error};
use crate::payload::{Payload, RawBody};
use crate::tags;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, request};
use http_body_util::StreamBody;
use std::ops::RangeInclusive;

/// The most bytes before the content of the file: fields and the headers of all parts.
const HEAD_LENGTH_MAX: usize = 64 << 10;
/// The most fields.
const FIELDS_MAX: usize = 100;
/// The most bytes behind the file.
const TAIL_LENGTH_MAX: usize = 64 << 10;
/// The most characters of a boundary (RFC 2046 section 5.1.1).
const BOUNDARY_MAX: usize = 70;

/// What stands before the file.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Form {
    /// Names in lower case. None stands there twice.
    fields: Vec<(String, String)>,
    /// The name of the file, without a path.
    filename: String,
}

/// What the sender wants to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Success {
    /// An empty answer with this status.
    Status(u16),
    /// 201 and a document.
    Document,
    /// 303 to this address, which learns bucket, key and ETag.
    Redirect(String),
}

/// How a form says who allowed it.
#[derive(Debug, PartialEq, Eq)]
pub enum Signature<'a> {
    /// Nobody in particular.
    None,
    /// AWS Signature Version 4 over the policy.
    V4 { credential: &'a str, signature: &'a str },
    /// The older form: HMAC-SHA1 over the policy. What is signed is the policy's text itself, so that none of the
    /// ambiguities apply for which Version 2 is refused elsewhere.
    V2 { access_key: &'a str, signature: &'a str },
}

/// A policy that is not encoded: fuzzers do not find base64.
#[cfg(fuzzing)]
pub fn check_document(document: &[u8], form: &Form, bucket: &str, now_ms: u64) -> Result<RangeInclusive<u64>> {
    policy::check(document, form, bucket, &form.key()?, now_ms)
}

/// The boundary of a form upload; `None` when the request is none.
pub fn boundary(parts: &request::Parts) -> Option<String> {
    let text = parts.headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let (kind, parameters) = text.split_once(';').unwrap_or((text, ""));
    if parts.method != http::Method::POST || !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let value = |parameter: &str| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    };
    // An empty one, which no part can follow, is refused when the form is read.
    Some(parameters.split(';').find_map(value).unwrap_or_default())
}

impl Form {
    /// Reads up to the content of the file. Answers the form, and the content as a body.
    pub async fn read(body: Payload, boundary: &str) -> Result<(Form, RawBody)> {
        if boundary.is_empty() || boundary.len() > BOUNDARY_MAX {
            return Err(malformed("the boundary is missing or too long"));
        }
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        // A line break before the first boundary, so that all look the same.
        let mut reader = Reader { body, pending: BytesMut::from(&b"\r\n"[..]), delimiter, taken: 0, done: false };
        let mut form = Form::default();
        if !reader.until_delimiter().await?.is_empty() {
            return Err(malformed("it does not begin with its boundary"));
        }
        loop {
            reader.begin_part().await?;
            let (name, filename) = disposition(&reader.until(b"\r\n\r\n").await?)?;
            if name == "file" {
                form.filename = filename.unwrap_or_default();
                return Ok((form, reader.into_body()));
            }
            let value = String::from_utf8(reader.until_delimiter().await?.to_vec());
            form.add(name, value.map_err(|_| malformed("a field is not UTF-8"))?)?;
        }
    }

    fn add(&mut self, name: String, value: String) -> Result<()> {
        if self.get(&name).is_some() {
            return Err(malformed("a field is given twice"));
        }
        if self.fields.len() >= FIELDS_MAX {
            return Err(malformed("it has more than 100 fields"));
        }
        self.fields.push((name, value));
        Ok(())
    }

    #[cfg(test)]
    pub fn of(fields: &[(&str, &str)]) -> Form {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Form { fields, filename: "a.txt".to_owned() }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The key of the object: `${filename}` stands for the name of the file.
    pub fn key(&self) -> Result<String> {
        let key = self.get("key").map(|key| key.replace("${filename}", &self.filename));
        key.filter(|key| !key.is_empty()).ok_or_else(|| {
            let message = "Bucket POST must contain a field named 'key'. If it is specified, please check the order of \
                           the fields.";
            S3Error::new(Code::InvalidArgument, message).field("ArgumentName", "key")
        })
    }

    /// What is signed.
    pub fn policy(&self) -> Option<&str> {
        self.get("policy")
    }

    pub fn signature(&self) -> Result<Signature<'_>> {
        let missing = |name: &'static str| {
            S3Error::new(Code::InvalidArgument, format!("Bucket POST must contain a field named '{name}'."))
                .field("ArgumentName", name)
        };
        let v4 = ["x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"].map(|name| self.get(name));
        let v2 = ["awsaccesskeyid", "signature"].map(|name| self.get(name));
        match (self.policy(), v4, v2) {
            (None, [None, None, None, None], [None, None]) => Ok(Signature::None),
            (None, ..) => Err(missing("policy")),
            (Some(_), [None, None, None, None], [Some(access_key), Some(signature)]) => {
                Ok(Signature::V2 { access_key, signature })
            }
            (Some(_), [Some(algorithm), Some(credential), Some(_), Some(signature)], [None, None]) => {
                if algorithm != "AWS4-HMAC-SHA256" {
                    return Err(S3Error::new(Code::InvalidArgument, "X-Amz-Algorithm only supports AWS4-HMAC-SHA256."));
                }
                Ok(Signature::V4 { credential, signature })
            }
            (Some(_), [None, None, None, None], [None, _]) => Err(missing("AWSAccessKeyId")),
            (Some(_), [None, None, None, None], [_, None]) => Err(missing("signature")),
            (Some(_), [_, None, ..], _) => Err(missing("X-Amz-Credential")),
            (Some(_), [_, _, None, _], _) => Err(missing("X-Amz-Date")),
            (Some(_), [_, _, _, None], _) => Err(missing("X-Amz-Signature")),
            _ => Err(S3Error::new(Code::InvalidArgument, "Only one authentication mechanism is allowed.")),
        }
    }

    /// `x-amz-date`, where it is a time.
    pub fn signed_ms(&self) -> Option<u64> {
        parse_amz_date(self.get("x-amz-date")?)
    }

    /// Whether the policy allows this form. Answers how long the file may be.
    pub fn check_policy(&self, bucket: &str, now_ms: u64) -> Result<RangeInclusive<u64>> {
        let Some(text) = self.policy() else { return Ok(0..=u64::MAX) };
        let document = unbase64(text).ok_or_else(|| policy::invalid("it is not base64"))?;
        policy::check(&document, self, bucket, &self.key()?, now_ms)
    }

    /// The fields as the headers of a PUT.
    pub fn headers(&self) -> Result<HeaderMap> {
        const PLAIN: [&str; 6] =
            ["content-type", "cache-control", "content-disposition", "content-encoding", "content-language", "expires"];
        let mut headers = HeaderMap::new();
        for (name, value) in &self.fields {
            let name = match name.as_str() {
                "acl" => "x-amz-acl",
                "tagging" => {
                    headers.insert(crate::names::TAGGING, header_value("tagging", &tagging(value)?)?);
                    continue;
                }
                // What concerns the form itself.
                "x-amz-algorithm" | "x-amz-credential" | "x-amz-date" | "x-amz-signature" => continue,
                name if PLAIN.contains(&name) || crate::names::are_ours(name) || name == "content-md5" => name,
                _ => continue,
            };
            let value = header_value(name, value)?;
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| malformed("a field has no valid name"))?;
            headers.insert(name, value);
        }
        Ok(headers)
    }

    pub fn success(&self) -> Success {
        let redirect = self.get("success_action_redirect").or(self.get("redirect"));
        match (redirect, self.get("success_action_status")) {
            // Neither a script nor a relative address.
            (Some(url), _) if url.starts_with("http://") || url.starts_with("https://") => {
                Success::Redirect(url.to_owned())
            }
            (_, Some("201")) => Success::Document,
            (_, Some("200")) => Success::Status(200),
            _ => Success::Status(204),
        }
    }
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue> {
    HeaderValue::from_bytes(value.as_bytes())
        .map_err(|_| S3Error::new(Code::InvalidArgument, format!("The value of the field {name} is invalid.")))
}

/// The tags of a form come as XML; as a header they are pairs.
fn tagging(document: &str) -> Result<String> {
    let element = crate::xml::read(document.as_bytes())
        .map_err(|crate::xml::Malformed(why)| crate::request::malformed_xml(why))?;
    let mut out = String::new();
    for tag in tags::of_xml(&element, tags::OF_OBJECT_MAX)? {
        if !out.is_empty() {
            out.push('&');
        }
        crate::encoding::percent_encode_into(&mut out, tag.name.as_bytes(), false);
        out.push('=');
        crate::encoding::percent_encode_into(&mut out, tag.value.as_bytes(), false);
    }
    Ok(out)
}

/// Name (in lower case) and file name of a part, from its headers.
fn disposition(headers: &[u8]) -> Result<(String, Option<String>)> {
    let text = std::str::from_utf8(headers).map_err(|_| malformed("the headers of a part are not UTF-8"))?;
    let value = text.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then(|| value.trim())
    });
    let value = value.ok_or_else(|| malformed("a part has no Content-Disposition"))?;
    let (kind, mut rest) = value.split_once(';').unwrap_or((value, ""));
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return Err(malformed("a part is no form data"));
    }
    let (mut name, mut filename) = (None, None);
    while let Some((parameter, behind)) = rest.split_once('=') {
        let (value, behind) = quoted(behind).ok_or_else(|| malformed("a quoted name does not end"))?;
        match parameter.trim().to_ascii_lowercase().as_str() {
            "name" => name = Some(value.to_ascii_lowercase()),
            "filename" => filename = value.rsplit(['/', '\\']).next().map(str::to_owned),
            _ => {}
        }
        rest = behind.trim_start_matches([';', ' ', '\t']);
    }
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| malformed("a part has no name"))?;
    Ok((name, filename))
}

/// A value, quoted or not, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('"') {
        // Browsers encode quotes within a name as %22.
        Some(inside) => inside.split_once('"'),
        None => Some(text.split_at(text.find(';').unwrap_or(text.len()))),
    }
}

fn malformed(why: &str) -> S3Error {
    let message = format!("The body of your POST request is not well-formed multipart/form-data: {why}.");
    S3Error::new(Code::MalformedPOSTRequest, message)
}

/// The body of the request, taken apart.
struct Reader {
    body: Payload,
    pending: BytesMut,
    delimiter: Vec<u8>,
    /// Bytes before the file's content so far.
    taken: usize,
    done: bool,
}

impl Reader {
    /// Behind a delimiter: a part begins, or the form ends without a file.
    async fn begin_part(&mut self) -> Result<()> {
        let line = self.until(b"\r\n").await?;
        if line.starts_with(b"--") {
            let message = "POST requires exactly one file upload per request.";
            return Err(S3Error::new(Code::InvalidArgument, message).field("ArgumentName", "file"));
        }
        // A part without headers would begin with an empty line at once.
        if line.iter().all(|byte| byte.is_ascii_whitespace()) { Ok(()) } else { Err(malformed("a boundary goes on")) }
    }

    async fn until_delimiter(&mut self) -> Result<Bytes> {
        let delimiter = std::mem::take(&mut self.delimiter);
        let found = self.until(&delimiter).await;
        self.delimiter = delimiter;
        found
    }

    /// What stands before `end`, which is passed over.
    async fn until(&mut self, end: &[u8]) -> Result<Bytes> {
        // What was searched is not searched again, however small the pieces.
        let mut from = 0;
        loop {
            if let Some(at) = find(&self.pending[from..], end).map(|at| from + at) {
                let before = self.pending.split_to(at).freeze();
                let _end = self.pending.split_to(end.len());
                self.taken += before.len() + end.len();
                return Ok(before);
            }
            if self.taken + self.pending.len() > HEAD_LENGTH_MAX {
                let message = format!("The fields of the form are longer than {HEAD_LENGTH_MAX} bytes.");
                return Err(S3Error::new(Code::MaxPostPreDataLengthExceededError, message));
            }
            match self.body.next().await {
                Some(piece) => {
                    from = self.pending.len().saturating_sub(end.len().saturating_sub(1));
                    self.pending.extend_from_slice(&piece?);
                }
                None => return Err(malformed("it ends before the file")),
            }
        }
    }

    fn into_body(self) -> RawBody {
        let frames = futures_util::stream::unfold(self, |mut reader| async move {
            let frame = match reader.content().await {
                Ok(None) => return None,
                Ok(Some(content)) => Ok(http_body::Frame::data(content)),
                Err(error) => Err(error.into()),
            };
            Some((frame, reader))
        });
        RawBody::new(StreamBody::new(frames))
    }

    /// The next piece of the file.
    async fn content(&mut self) -> Result<Option<Bytes>> {
        while !self.done {
            if let Some(at) = find(&self.pending, &self.delimiter) {
                self.done = true;
                let content = self.pending.split_to(at).freeze();
                self.skip_tail().await?;
                if content.is_empty() {
                    break;
                }
                return Ok(Some(content));
            }
            // All but what may be the beginning of a delimiter.
            let safe = self.pending.len().saturating_sub(self.delimiter.len() - 1);
            if safe > 0 {
                return Ok(Some(self.pending.split_to(safe).freeze()));
            }
            match self.body.next().await {
                Some(piece) => self.pending.extend_from_slice(&piece?),
                None => return Err(malformed("it ends within the file")),
            }
        }
        Ok(None)
    }

    /// Fields behind the file are ignored, as in S3; the body must still be whole.
    async fn skip_tail(&mut self) -> Result<()> {
        let mut skipped = self.pending.len();
        self.pending.clear();
        while let Some(piece) = self.body.next().await {
            skipped += piece?.len();
            if skipped > TAIL_LENGTH_MAX {
                return Err(malformed("too much follows the file"));
            }
        }
        Ok(())
    }
}

/// Where `wanted` begins.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|&byte| byte == first) {
        if bytes[from + at..].starts_with(wanted) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests;
