//! Header names that the `http` crate does not have.

use http::header::HeaderName;

macro_rules! names {
    ($($constant:ident = $text:literal;)*) => {
        $(pub const $constant: HeaderName = HeaderName::from_static($text);)*
    };
}

names! {
    ACL = "x-amz-acl";
    BUCKET_OBJECT_LOCK_ENABLED = "x-amz-bucket-object-lock-enabled";
    BUCKET_REGION = "x-amz-bucket-region";
    BYPASS_GOVERNANCE = "x-amz-bypass-governance-retention";
    CHECKSUM_ALGORITHM = "x-amz-checksum-algorithm";
    CHECKSUM_MODE = "x-amz-checksum-mode";
    CHECKSUM_TYPE = "x-amz-checksum-type";
    CONTENT_MD5 = "content-md5";
    CONTENT_SHA256 = "x-amz-content-sha256";
    COPY_SOURCE = "x-amz-copy-source";
    COPY_SOURCE_IF_MATCH = "x-amz-copy-source-if-match";
    COPY_SOURCE_IF_MODIFIED_SINCE = "x-amz-copy-source-if-modified-since";
    COPY_SOURCE_IF_NONE_MATCH = "x-amz-copy-source-if-none-match";
    COPY_SOURCE_IF_UNMODIFIED_SINCE = "x-amz-copy-source-if-unmodified-since";
    COPY_SOURCE_RANGE = "x-amz-copy-source-range";
    COPY_SOURCE_VERSION_ID = "x-amz-copy-source-version-id";
    DATE = "x-amz-date";
    DECODED_CONTENT_LENGTH = "x-amz-decoded-content-length";
    DELETE_MARKER = "x-amz-delete-marker";
    EXPECTED_BUCKET_OWNER = "x-amz-expected-bucket-owner";
    EXPIRATION = "x-amz-expiration";
    EXPECTED_SOURCE_BUCKET_OWNER = "x-amz-source-expected-bucket-owner";
    ACKNOWLEDGE = "x-henge-acknowledge";
    CONSISTENCY = "x-henge-consistency";
    FENCE = "x-henge-fence";
    STALENESS_MS = "x-henge-staleness-ms";
    IF_MATCH_LAST_MODIFIED_TIME = "x-amz-if-match-last-modified-time";
    IF_MATCH_SIZE = "x-amz-if-match-size";
    METADATA_DIRECTIVE = "x-amz-metadata-directive";
    MP_OBJECT_SIZE = "x-amz-mp-object-size";
    MP_PARTS_COUNT = "x-amz-mp-parts-count";
    OBJECT_ATTRIBUTES = "x-amz-object-attributes";
    OBJECT_OWNERSHIP = "x-amz-object-ownership";
    OBJECT_LOCK_LEGAL_HOLD = "x-amz-object-lock-legal-hold";
    OBJECT_LOCK_MODE = "x-amz-object-lock-mode";
    OBJECT_LOCK_RETAIN_UNTIL = "x-amz-object-lock-retain-until-date";
    OBJECT_SIZE = "x-amz-object-size";
    REQUEST_ID = "x-amz-request-id";
    SDK_CHECKSUM_ALGORITHM = "x-amz-sdk-checksum-algorithm";
    SECURITY_TOKEN = "x-amz-security-token";
    STORAGE_CLASS = "x-amz-storage-class";
    TAGGING = "x-amz-tagging";
    TAGGING_COUNT = "x-amz-tagging-count";
    TAGGING_DIRECTIVE = "x-amz-tagging-directive";
    TRAILER = "x-amz-trailer";
    VERSION_ID = "x-amz-version-id";
}

/// Whether a header speaks to this service, and to nobody on the way.
pub fn is_ours(name: &HeaderName) -> bool {
    are_ours(name.as_str())
}

/// Whether a name, in whatever case, is one of the terms that a request is done under.
pub fn is_term(name: &str) -> bool {
    name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("x-henge-"))
}

/// The same of a name in lower case.
pub fn are_ours(name: &str) -> bool {
    name.starts_with("x-amz-") || name.starts_with("x-henge-")
}
