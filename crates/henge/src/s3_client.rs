//! A small S3 client for the demo and the benchmarks: signed requests (AWS Signature Version 4, header form) with
//! path-style addresses, over kept-alive connections. It knows all nodes of a cluster: what one does not take, because
//! nobody listens there, the next is asked.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::credentials::Credentials;
use crate::http_client::{Answer, HttpClient, HttpError};

pub struct S3Client {
    endpoints: Arc<Vec<HttpClient>>,
    /// The endpoint that is asked first.
    first: usize,
    credentials: Credentials,
    region: String,
    /// The signing key of one day, so that a request costs one HMAC instead of five.
    signing_key: Mutex<Option<(String, [u8; 32])>>,
}

/// Why a request has no good answer.
#[derive(Debug, Clone)]
pub enum S3Error {
    /// Nothing happened: not sent, or refused.
    Refused { status: u16, message: String },
    /// It never left.
    NotSent(String),
    /// It may or may not have been carried out.
    Unknown(String),
}

impl std::fmt::Display for S3Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            S3Error::Refused { status, message } => write!(f, "refused with status {status}: {message}"),
            S3Error::NotSent(why) => write!(f, "not sent: {why}"),
            S3Error::Unknown(why) => write!(f, "outcome unknown: {why}"),
        }
    }
}

/// Whether the signature covers the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload {
    Signed,
    Unsigned,
}

/// What a request is about, as it goes over the wire.
struct Target {
    path: String,
    /// Sorted `name=value` pairs, encoded.
    query: String,
    /// Value of the `Range` header.
    range: Option<String>,
}

impl S3Client {
    /// `addresses`: HOST:PORT of each node; at least one. The first is preferred.
    pub fn new(addresses: &[String], region: &str, credentials: Credentials) -> S3Client {
        assert!(!addresses.is_empty(), "a client has somebody to ask");
        S3Client {
            endpoints: Arc::new(addresses.iter().map(|address| HttpClient::new(address)).collect()),
            first: 0,
            credentials,
            region: region.to_owned(),
            signing_key: Mutex::new(None),
        }
    }

    /// A client of the same nodes that gives up on an answer after `patience`.
    pub fn with_patience(self, patience: Duration) -> S3Client {
        let again = |endpoint: &HttpClient| HttpClient::with_patience(endpoint.address(), patience);
        S3Client { endpoints: Arc::new(self.endpoints.iter().map(again).collect()), ..self }
    }

    /// The same client with another node preferred: `index` counts round all of them.
    pub fn preferring(&self, index: usize) -> S3Client {
        S3Client {
            endpoints: Arc::clone(&self.endpoints),
            first: index % self.endpoints.len(),
            credentials: self.credentials.clone(),
            region: self.region.clone(),
            signing_key: Mutex::new(None),
        }
    }

    /// For messages.
    pub fn address(&self) -> &str {
        self.endpoints[self.first].address()
    }

    /// Makes the bucket, unless it is there.
    pub async fn ensure_bucket(&self, bucket: &str) -> Result<(), S3Error> {
        match self.call(Method::PUT, bucket_target(bucket, ""), Bytes::new(), Payload::Signed).await {
            // It exists and is ours.
            Err(S3Error::Refused { status: 409, message }) if message.contains("BucketAlreadyOwnedByYou") => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    pub async fn put(&self, bucket: &str, key: &str, body: Bytes, payload: Payload) -> Result<(), S3Error> {
        self.call(Method::PUT, object_target(bucket, key, ""), body, payload).await.map(|_| ())
    }

    /// `None` when there is no such object.
    pub async fn get(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, S3Error> {
        match self.call(Method::GET, object_target(bucket, key, ""), Bytes::new(), Payload::Signed).await {
            Err(S3Error::Refused { status: 404, message }) if message.contains("NoSuchKey") => Ok(None),
            outcome => outcome.map(|answer| Some(answer.body)),
        }
    }

    /// `len` bytes (at least 1) of an object from `offset` on.
    pub async fn get_range(&self, bucket: &str, key: &str, offset: u64, len: u64) -> Result<Bytes, S3Error> {
        let mut target = object_target(bucket, key, "");
        target.range = Some(format!("bytes={offset}-{}", offset + len - 1));
        self.call(Method::GET, target, Bytes::new(), Payload::Signed).await.map(|answer| answer.body)
    }

    pub async fn delete(&self, bucket: &str, key: &str) -> Result<(), S3Error> {
        self.call(Method::DELETE, object_target(bucket, key, ""), Bytes::new(), Payload::Signed).await.map(|_| ())
    }

    /// The first 1,000 keys from `prefix` on.
    pub async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, S3Error> {
        let target = bucket_target(bucket, &format!("list-type=2&prefix={}", encode(prefix, b"")));
        let answer = self.call(Method::GET, target, Bytes::new(), Payload::Signed).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        Ok(elements(&text, "Key").map(unescape_xml).collect())
    }

    pub async fn create_upload(&self, bucket: &str, key: &str) -> Result<String, S3Error> {
        let target = object_target(bucket, key, "uploads=");
        let answer = self.call(Method::POST, target, Bytes::new(), Payload::Signed).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let upload = elements(&text, "UploadId").next().map(unescape_xml);
        upload.ok_or_else(|| S3Error::Unknown("the answer names no upload id".into()))
    }

    /// Answers the part's ETag. `number` is 1 to 10,000.
    pub async fn put_part(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, S3Error> {
        let query = format!("partNumber={number}&uploadId={}", encode(upload, b""));
        let answer = self.call(Method::PUT, object_target(bucket, key, &query), body, Payload::Signed).await?;
        let etag = answer.headers.get("etag").and_then(|value| value.to_str().ok()).map(str::to_owned);
        etag.ok_or_else(|| S3Error::Unknown("the answer has no ETag".into()))
    }

    /// `etags`: of parts 1, 2, 3, ...
    pub async fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        etags: &[String],
    ) -> Result<(), S3Error> {
        let mut body = String::from("<CompleteMultipartUpload>");
        for (index, etag) in etags.iter().enumerate() {
            let number = index + 1;
            let etag = etag.replace('"', "&quot;");
            let _ = write!(body, "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        }
        body.push_str("</CompleteMultipartUpload>");
        let target = object_target(bucket, key, &format!("uploadId={}", encode(upload, b"")));
        let answer = self.call(Method::POST, target, body.into(), Payload::Signed).await?;
        // S3 may say 200 and fail later, in the body.
        let text = String::from_utf8_lossy(&answer.body);
        if text.contains("<Error>") { Err(S3Error::Unknown(text.into_owned())) } else { Ok(()) }
    }

    async fn call(&self, method: Method, target: Target, body: Bytes, payload: Payload) -> Result<Answer, S3Error> {
        let mut answer = Err(HttpError::NotSent(String::new()));
        for turn in 0..self.endpoints.len() {
            let endpoint = &self.endpoints[(self.first + turn) % self.endpoints.len()];
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let time = Timestamp::new(seconds);
            let request = self.sign(endpoint.address(), method.clone(), &target, body.clone(), payload, &time);
            answer = endpoint.request(request).await;
            if !matches!(answer, Err(HttpError::NotSent(_))) {
                break;
            }
        }
        let answer = answer.map_err(|error| match error {
            HttpError::NotSent(why) => S3Error::NotSent(why),
            HttpError::Unknown(why) => S3Error::Unknown(why),
        })?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let text = String::from_utf8_lossy(&answer.body);
        let word = |name| elements(&text, name).next().map(unescape_xml).unwrap_or_default();
        let message = format!("{} {}", word("Code"), word("Message"));
        // Who is told to slow down was not let in.
        let refused = answer.status == StatusCode::NOT_IMPLEMENTED || word("Code") == "SlowDown";
        if answer.status.is_server_error() && !refused {
            return Err(S3Error::Unknown(format!("status {}: {message}", answer.status.as_u16())));
        }
        Err(S3Error::Refused { status: answer.status.as_u16(), message })
    }

    /// As specified in "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)".
    fn sign(
        &self,
        host: &str,
        method: Method,
        target: &Target,
        body: Bytes,
        payload: Payload,
        time: &Timestamp,
    ) -> Request<Full<Bytes>> {
        let payload_hash = match payload {
            Payload::Signed => hex(&Sha256::digest(&body)),
            Payload::Unsigned => "UNSIGNED-PAYLOAD".to_owned(),
        };
        let signed_headers = "host;x-amz-content-sha256;x-amz-date";
        let canonical = format!(
            "{method}\n{}\n{}\nhost:{host}\nx-amz-content-sha256:{payload_hash}\nx-amz-date:{}\n\n{signed_headers}\n{payload_hash}",
            target.path, target.query, time.full
        );
        let scope = format!("{}/{}/s3/aws4_request", time.day, self.region);
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", time.full, hex(&Sha256::digest(canonical.as_bytes())));
        let signature = hex(&hmac(&self.signing_key(&time.day), to_sign.as_bytes()));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed_headers}, Signature={signature}",
            self.credentials.access_key
        );
        let uri =
            if target.query.is_empty() { target.path.clone() } else { format!("{}?{}", target.path, target.query) };
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(range) = &target.range {
            request = request.header("range", range);
        }
        request
            .header("host", host)
            .header("x-amz-content-sha256", payload_hash)
            .header("x-amz-date", &time.full)
            .header("authorization", authorization)
            .body(Full::new(body))
            .expect("paths are percent-encoded and credentials visible ASCII")
    }

    fn signing_key(&self, day: &str) -> [u8; 32] {
        let mut cached = self.signing_key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((cached_day, key)) = &*cached
            && cached_day == day
        {
            return *key;
        }
        let secret = format!("AWS4{}", self.credentials.secret_key);
        let key = [self.region.as_bytes(), b"s3", b"aws4_request"]
            .iter()
            .fold(hmac(secret.as_bytes(), day.as_bytes()), |key, part| hmac(&key, part));
        *cached = Some((day.to_owned(), key));
        key
    }
}

fn bucket_target(bucket: &str, query: &str) -> Target {
    Target { path: format!("/{}", encode(bucket, b"")), query: query.to_owned(), range: None }
}

fn object_target(bucket: &str, key: &str, query: &str) -> Target {
    Target { path: format!("/{}/{}", encode(bucket, b""), encode(key, b"/")), query: query.to_owned(), range: None }
}

/// Percent-encodes all but the unreserved characters of RFC 3986 and those in `also_plain`.
fn encode(text: &str, also_plain: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also_plain.contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// Lower-case hexadecimal.
pub fn hex(data: &[u8]) -> String {
    let mut out = String::with_capacity(data.len() * 2);
    for byte in data {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// The texts of all elements `name` that have no attributes and no children.
fn elements<'a>(xml: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let start = rest.find(&open)? + open.len();
        let end = start + rest[start..].find(&close)?;
        let found = &rest[start..end];
        rest = &rest[end + close.len()..];
        Some(found)
    })
}

fn unescape_xml(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'").replace("&amp;", "&")
}

/// A moment as Signature Version 4 writes it.
struct Timestamp {
    /// `20130524T000000Z`.
    full: String,
    /// `20130524`.
    day: String,
}

impl Timestamp {
    fn new(unix_seconds: u64) -> Timestamp {
        let (year, month, day) = civil_from_days(unix_seconds / 86_400);
        let second = unix_seconds % 86_400;
        let day = format!("{year:04}{month:02}{day:02}");
        let full = format!("{day}T{:02}{:02}{:02}Z", second / 3600, second / 60 % 60, second % 60);
        Timestamp { full, day }
    }
}

/// Year, month and day of a number of days since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms").
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example_client() -> S3Client {
        let credentials = Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
        };
        S3Client::new(&["examplebucket.s3.amazonaws.com".into()], "us-east-1", credentials)
    }

    /// "GET Bucket (List Objects)" of Amazon's examples for Signature Version 4.
    #[test]
    fn signs_the_published_example() {
        let target = Target { path: "/".into(), query: "max-keys=2&prefix=J".into(), range: None };
        let time = Timestamp::new(1_369_353_600);
        let request = example_client().sign(
            "examplebucket.s3.amazonaws.com",
            Method::GET,
            &target,
            Bytes::new(),
            Payload::Signed,
            &time,
        );
        let authorization = request.headers()["authorization"].to_str().unwrap();
        let expected = "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7";
        assert!(authorization.ends_with(expected), "{authorization}");
        assert_eq!(request.uri(), "/?max-keys=2&prefix=J");
    }

    #[test]
    fn dates_and_names_are_written_as_s3_wants_them() {
        assert_eq!(Timestamp::new(1_369_353_600).full, "20130524T000000Z");
        assert_eq!(Timestamp::new(951_827_696).full, "20000229T123456Z");
        assert_eq!(encode("a b/ü~", b"/"), "a%20b/%C3%BC~");
        let listing = "<R><Key>a&amp;lt;</Key><Size>1</Size><Key>b</Key></R>";
        assert_eq!(elements(listing, "Key").map(unescape_xml).collect::<Vec<_>>(), ["a&lt;", "b"]);
    }
}
