//! Errors as S3 tells them: a code, an HTTP status, a message that says what to do, and the resource.

use crate::xml::Writer;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use std::borrow::Cow;

macro_rules! codes {
    ($($name:ident = $status:literal,)*) => {
        /// An S3 error code ("Error responses", Amazon S3 API Reference).
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Code { $($name,)* }

        impl Code {
            /// As it stands in the XML body.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => stringify!($name),)* }
            }

            fn status(self) -> u16 {
                match self { $(Code::$name => $status,)* }
            }
        }
    };
}

codes! {
    AccessControlListNotSupported = 400,
    AccessDenied = 403,
    AccessForbidden = 403,
    AuthorizationHeaderMalformed = 400,
    AuthorizationQueryParametersError = 400,
    BadDigest = 400,
    BadRequest = 400,
    BucketAlreadyExists = 409,
    BucketAlreadyOwnedByYou = 409,
    BucketNotEmpty = 409,
    EntityTooLarge = 400,
    EntityTooSmall = 400,
    FenceTokenRequired = 428,
    FenceTokenStale = 412,
    IllegalVersioningConfigurationException = 400,
    IncompleteBody = 400,
    InternalError = 500,
    InvalidAccessKeyId = 403,
    InvalidArgument = 400,
    InvalidBucketAclWithObjectOwnership = 400,
    InvalidBucketName = 400,
    InvalidBucketState = 409,
    InvalidDigest = 400,
    InvalidLocationConstraint = 400,
    InvalidPart = 400,
    InvalidPartOrder = 400,
    InvalidPolicyDocument = 400,
    InvalidRange = 416,
    InvalidRequest = 400,
    InvalidRetentionPeriod = 400,
    InvalidStorageClass = 400,
    InvalidTag = 400,
    InvalidToken = 400,
    InvalidURI = 400,
    KeyTooLongError = 400,
    MalformedPOSTRequest = 400,
    MalformedTrailerError = 400,
    MalformedPolicy = 400,
    MalformedXML = 400,
    MaxMessageLengthExceeded = 400,
    MaxPostPreDataLengthExceededError = 400,
    MetadataTooLarge = 400,
    MethodNotAllowed = 405,
    MissingContentLength = 411,
    MissingSecurityHeader = 400,
    NoSuchBucket = 404,
    NoSuchBucketPolicy = 404,
    NoSuchCORSConfiguration = 404,
    NoSuchKey = 404,
    NoSuchLifecycleConfiguration = 404,
    NoSuchObjectLockConfiguration = 404,
    NoSuchPublicAccessBlockConfiguration = 404,
    NoSuchTagSet = 404,
    NoSuchUpload = 404,
    NoSuchVersion = 404,
    NoSuchWebsiteConfiguration = 404,
    NotImplemented = 501,
    NotModified = 304,
    ObjectLockConfigurationNotFoundError = 404,
    OwnershipControlsNotFoundError = 404,
    PreconditionFailed = 412,
    QuotaExceeded = 403,
    ReplicationConfigurationNotFoundError = 404,
    RequestHeaderSectionTooLarge = 400,
    RequestTimeTooSkewed = 403,
    RequestTimeout = 400,
    ServerSideEncryptionConfigurationNotFoundError = 404,
    ServiceUnavailable = 503,
    SignatureDoesNotMatch = 403,
    SlowDown = 503,
    UnexpectedContent = 400,
    UnresolvableGrantByEmailAddress = 400,
    XAmzContentSHA256Mismatch = 400,
}

/// Why a request was not done. Never holds a secret: it is sent to the client as it is.
#[derive(Clone, Debug)]
pub struct S3Error {
    pub code: Code,
    pub message: Cow<'static, str>,
    /// Headers of the answer, such as `x-amz-delete-marker`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Further elements of the XML body, in order.
    pub fields: Vec<(&'static str, String)>,
}

pub type Result<T> = std::result::Result<T, S3Error>;

impl S3Error {
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> S3Error {
        S3Error { code, message: message.into(), headers: Vec::new(), fields: Vec::new() }
    }

    /// Adds a header to the answer.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> S3Error {
        self.headers.push((name, value));
        self
    }

    /// Adds an element to the XML body.
    pub fn field(mut self, name: &'static str, value: impl Into<String>) -> S3Error {
        self.fields.push((name, value.into()));
        self
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status()).expect("every code in the table has a valid status")
    }

    /// The XML body. `resource`: the decoded path of the request.
    pub fn to_xml(&self, resource: &str, request_id: &str) -> String {
        let mut xml = Writer::document();
        xml.element("Error", |xml| {
            xml.text("Code", self.code.as_str());
            xml.text("Message", &self.message);
            for (name, value) in &self.fields {
                xml.text(name, value);
            }
            xml.text("Resource", resource);
            xml.text("RequestId", request_id);
        });
        xml.finish()
    }
}

impl std::fmt::Display for S3Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for S3Error {}

/// An operation that is known but not built.
pub fn not_implemented(operation: &str) -> S3Error {
    S3Error::new(Code::NotImplemented, format!("{operation} is not implemented by this server."))
}

/// What the cluster answered, in the words of S3. A full cluster is `ServiceUnavailable` (503): S3 has no code for it,
/// and clients give up after a few tries, showing the message.
impl From<client::Error> for S3Error {
    fn from(error: client::Error) -> S3Error {
        use client::Error;
        match error {
            Error::NoSuchBucket => S3Error::new(Code::NoSuchBucket, "The specified bucket does not exist."),
            Error::BucketExists { .. } => S3Error::new(
                Code::BucketAlreadyExists,
                "The requested bucket name is taken by another owner. Choose a different name.",
            ),
            Error::BucketNotEmpty => S3Error::new(
                Code::BucketNotEmpty,
                "The bucket you tried to delete is not empty. Delete all its objects, versions and delete markers first.",
            ),
            Error::NoSuchKey => S3Error::new(Code::NoSuchKey, "The specified key does not exist."),
            Error::NoSuchVersion => S3Error::new(Code::NoSuchVersion, "The specified version does not exist."),
            Error::DeleteMarker { version } => delete_marker(&version),
            Error::NoSuchUpload => S3Error::new(
                Code::NoSuchUpload,
                "The specified multipart upload does not exist. It may have been completed or aborted.",
            ),
            Error::PreconditionFailed => {
                S3Error::new(Code::PreconditionFailed, "At least one of the preconditions you specified did not hold.")
            }
            Error::StaleFence(detail) => S3Error::new(
                Code::FenceTokenStale,
                format!(
                    "Somebody else holds the lock by now ({detail}). Nothing was changed. Take the lock again before you \
                     write."
                ),
            ),
            Error::FenceRequired => S3Error::new(
                Code::FenceTokenRequired,
                "The bucket takes writes only with the header x-henge-fence: KEY:TOKEN.",
            ),
            Error::InvalidPart { detail } => S3Error::new(
                Code::InvalidPart,
                format!("Part {detail} was not found, or its ETag or checksum differs from the uploaded part's."),
            ),
            Error::InvalidPartOrder => {
                S3Error::new(Code::InvalidPartOrder, "The list of parts must be in ascending order of part numbers.")
            }
            Error::EntityTooLarge { detail } => S3Error::new(
                Code::EntityTooLarge,
                "Your proposed upload exceeds the maximum allowed object size of 5 TiB.",
            )
            .field("ProposedSize", detail)
            .field("MaxSizeAllowed", (5u64 << 40).to_string()),
            Error::EntityTooSmall { detail } => S3Error::new(
                Code::EntityTooSmall,
                format!("Part {detail} is smaller than 5 MiB, which only the last part may be."),
            ),
            Error::ObjectLocked(why) => S3Error::new(
                Code::AccessDenied,
                format!("Access Denied because object protected by object lock: {why}."),
            ),
            Error::NotLockable => S3Error::new(Code::InvalidRequest, "Bucket is missing Object Lock Configuration"),
            Error::QuotaExceeded { limit } => S3Error::new(
                Code::QuotaExceeded,
                format!("The bucket may hold no more than {limit}. Delete something, or have its quota raised."),
            ),
            Error::Invalid(message) => S3Error::new(Code::InvalidRequest, message),
            Error::NotImplemented(what) => not_implemented(&what),
            Error::Full => later(S3Error::new(Code::ServiceUnavailable, format!("{error}."))),
            Error::Unavailable(why) => {
                let message = format!("Please try again: {why}. Nothing was changed.");
                later(S3Error::new(Code::ServiceUnavailable, message))
            }
            // Retried by clients like an InternalError; the message is what differs.
            Error::OutcomeUnknown(why) => S3Error::new(
                Code::ServiceUnavailable,
                format!("It is not known whether the request was carried out ({why}). Read back before trying again."),
            ),
            Error::Damaged(what) => S3Error::new(
                Code::InternalError,
                format!("Every copy within reach is damaged or gone: {what}. The object can be deleted or replaced."),
            ),
            other => S3Error::new(Code::InternalError, format!("{other}.")),
        }
    }
}

fn later(error: S3Error) -> S3Error {
    error.header(http::header::RETRY_AFTER, HeaderValue::from_static("1"))
}

/// `version` empty: the newest version is a delete marker and a plain GET met it; else the marker was named.
fn delete_marker(version: &str) -> S3Error {
    S3Error::new(Code::NoSuchKey, "The specified key does not exist; its newest version is a delete marker.")
        .header(crate::names::DELETE_MARKER, HeaderValue::from_static("true"))
        .version(version)
}

impl S3Error {
    fn version(self, version: &str) -> S3Error {
        match HeaderValue::from_str(version) {
            Ok(value) if !version.is_empty() => self.header(crate::names::VERSION_ID, value),
            _ => self,
        }
    }

    /// GET or HEAD of a version id that is a delete marker.
    pub fn marker_named(version: &str) -> S3Error {
        S3Error::new(Code::MethodNotAllowed, "The specified version is a delete marker: it can only be deleted.")
            .header(crate::names::DELETE_MARKER, HeaderValue::from_static("true"))
            .header(http::header::ALLOW, HeaderValue::from_static("DELETE"))
            .version(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_code_message_resource_and_request() {
        let error = S3Error::new(Code::NoSuchKey, "gone <&>").field("Key", "a\"b");
        let xml = error.to_xml("/bucket/a&b", "0123");
        assert_eq!(
            xml,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>NoSuchKey</Code><Message>gone &lt;&amp;&gt;</Message>\
             <Key>a&quot;b</Key><Resource>/bucket/a&amp;b</Resource><RequestId>0123</RequestId></Error>"
        );
        assert_eq!(error.status(), 404);
    }

    #[test]
    fn worth_a_retry_is_5xx_and_an_answer_is_4xx() {
        let status = |error: client::Error| S3Error::from(error).status().as_u16();
        assert_eq!(status(client::Error::Unavailable("x".into())), 503);
        assert_eq!(status(client::Error::OutcomeUnknown("x".into())), 503);
        assert_eq!(status(client::Error::Damaged("x".into())), 500);
        assert_eq!(status(client::Error::Full), 503);
        assert_eq!(status(client::Error::PreconditionFailed), 412);
        assert_eq!(status(client::Error::NoSuchUpload), 404);
    }
}
