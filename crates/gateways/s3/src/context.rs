//! What conditions of policies may ask about a request: who sends it, from where, when, and what its headers, its query
//! and its document say. A word that has no effect on the request is not among them: it would speak for one that has.

use crate::auth::Caller;
use crate::names;
use crate::operation::Operation;
use crate::ops::copy::CopySource;
use crate::request::Request;
use access::Context;
use base::calendar::{UtcDay, iso8601};
use bytes::Bytes;
use client::{Header, KeyRow, ObjectVersion, Retention};
use http::HeaderName;

/// Headers that conditions may speak of, each under `s3:` and its name.
const CONDITION_HEADERS: &[&str] = &[
    "x-amz-acl",
    "x-amz-content-sha256",
    "x-amz-grant-full-control",
    "x-amz-grant-read",
    "x-amz-grant-read-acp",
    "x-amz-grant-write",
    "x-amz-grant-write-acp",
    "x-amz-object-ownership",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-storage-class",
    "x-amz-website-redirect-location",
    "x-henge-fence",
    "if-match",
    "if-none-match",
];

/// What a request says in its document, for conditions that would otherwise only see headers.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub tags: Vec<Header>,
    pub retention: Option<Retention>,
    pub legal_hold: Option<bool>,
    pub location: Option<String>,
}

/// Nothing besides the headers.
pub static NOTHING: Said = Said { tags: Vec::new(), retention: None, legal_hold: None, location: None };

/// What a request is about, as far as conditions may ask.
pub struct About<'a> {
    pub key: Option<&'a KeyRow>,
    pub region: &'a str,
    /// The version that the request names.
    pub version: Option<&'a Bytes>,
    pub object: Option<&'a ObjectVersion>,
    /// Instead of the query's.
    pub prefix: Option<&'a str>,
    pub said: &'a Said,
    pub now_ms: u64,
}

/// Everything that conditions may ask about a request.
pub fn context(request: &Request, about: &About<'_>) -> Context {
    let now_ms = about.now_ms;
    let mut context = Context::default();
    context.set("aws:CurrentTime", iso8601(now_ms));
    context.set("aws:RequestedRegion", about.region);
    context.set("aws:EpochTime", (now_ms / 1000).to_string());
    context.set("aws:SecureTransport", request.peer.secure.to_string());
    if let Some(address) = request.peer.address {
        // Never from a forwarded header: anybody can write one.
        context.set("aws:SourceIp", address.to_string());
    }
    match about.key {
        None => context.set("aws:PrincipalType", "Anonymous"),
        Some(key) => {
            let name = if key.name.is_empty() { &key.access_key } else { &key.name };
            let arn = if key.root { "arn:aws:iam:::root".to_owned() } else { format!("arn:aws:iam:::user/{name}") };
            context.set("aws:username", name.as_str());
            context.set("aws:userid", key.access_key.as_str());
            context.set("aws:PrincipalArn", arn);
            context.set("aws:PrincipalType", if key.root { "Account" } else { "User" });
        }
    }
    of_headers(request, &mut context);
    of_writes(request, &mut context, now_ms);
    of_document(about.said, &mut context, now_ms);
    of_query(request, &mut context, about.prefix);
    of_signature(request, &mut context, now_ms);
    if let Some(version) = about.version {
        context.set("s3:VersionId", crate::encoding::version_text(version));
    }
    for tag in about.object.and_then(|object| object.attributes.as_ref()).map_or(&[][..], |attributes| &attributes.tags)
    {
        context.set(&format!("s3:ExistingObjectTag/{}", tag.name), tag.value.as_str());
    }
    context
}

fn of_headers(request: &Request, context: &mut Context) {
    let text = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    for name in CONDITION_HEADERS {
        if let Some(value) = text(name) {
            context.set(&format!("s3:{name}"), value);
        }
    }
    for (name, key) in [("user-agent", "aws:UserAgent"), ("referer", "aws:Referer")] {
        if let Some(value) = text(name) {
            context.set(key, value);
        }
    }
    let is_copy = matches!(request.operation, Operation::CopyObject | Operation::UploadPartCopy);
    if let Some(source) = request.headers.get(names::COPY_SOURCE).filter(|_| is_copy) {
        // As the copy will read it; what cannot be read is refused there.
        context
            .set("s3:x-amz-copy-source", CopySource::read(source.as_bytes()).map_or(String::new(), |read| read.path()));
    }
    if let Some(directive) = text(names::METADATA_DIRECTIVE.as_str()).filter(|_| is_copy) {
        context.set("s3:x-amz-metadata-directive", directive);
    }
    if let Some(creates) = creates_object(request.operation) {
        context.set("s3:ObjectCreationOperation", creates.to_string());
    }
}

/// Of the operations that need the right to put an object: whether it makes one.
fn creates_object(operation: Operation) -> Option<bool> {
    use Operation as O;
    match operation {
        O::PutObject | O::PostObject | O::CopyObject | O::CompleteMultipartUpload => Some(true),
        O::CreateMultipartUpload | O::UploadPart | O::UploadPartCopy => Some(false),
        _ => None,
    }
}

/// Tags and locks of a new object. On other requests these headers have no effect, and must not speak for the document
/// that has; nor do the tags of a copy that takes its source's along.
fn of_writes(request: &Request, context: &mut Context, now_ms: u64) {
    let text = |name: &HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok());
    let is_copy = request.operation == Operation::CopyObject;
    let writes =
        matches!(request.operation, Operation::PutObject | Operation::PostObject | Operation::CreateMultipartUpload);
    if !writes && !is_copy {
        return;
    }
    if !is_copy || text(&names::TAGGING_DIRECTIVE) == Some("REPLACE") {
        set_tags(&crate::tags::of_headers(&request.headers).unwrap_or_default(), context);
    }
    for (name, key) in [
        (&names::OBJECT_LOCK_MODE, "s3:object-lock-mode"),
        (&names::OBJECT_LOCK_RETAIN_UNTIL, "s3:object-lock-retain-until-date"),
        (&names::OBJECT_LOCK_LEGAL_HOLD, "s3:object-lock-legal-hold"),
    ] {
        if let Some(value) = text(name) {
            context.set(key, value);
        }
    }
    if let Some(until_ms) = text(&names::OBJECT_LOCK_RETAIN_UNTIL).and_then(crate::lock::parse_until) {
        set_remaining_days(until_ms, now_ms, context);
    }
}

fn of_document(said: &Said, context: &mut Context, now_ms: u64) {
    set_tags(&said.tags, context);
    if let Some(retention) = &said.retention
        && let Some(mode) = crate::lock::mode_name(retention.mode())
    {
        context.set("s3:object-lock-mode", mode);
        context.set("s3:object-lock-retain-until-date", iso8601(retention.until_ms));
        set_remaining_days(retention.until_ms, now_ms, context);
    }
    if let Some(on) = said.legal_hold {
        context.set("s3:object-lock-legal-hold", if on { "ON" } else { "OFF" });
    }
    if let Some(location) = &said.location {
        context.set("s3:LocationConstraint", location.as_str());
    }
}

fn set_tags(tags: &[Header], context: &mut Context) {
    for tag in tags {
        context.add("s3:RequestObjectTagKeys", tag.name.as_str());
        context.set(&format!("s3:RequestObjectTag/{}", tag.name), tag.value.as_str());
    }
}

fn set_remaining_days(until_ms: u64, now_ms: u64, context: &mut Context) {
    let days = UtcDay::of(until_ms).0.saturating_sub(UtcDay::of(now_ms).0);
    context.set("s3:object-lock-remaining-retention-days", days.to_string());
}

fn of_query(request: &Request, context: &mut Context, prefix: Option<&str>) {
    for (name, key) in [("delimiter", "s3:delimiter"), ("max-keys", "s3:max-keys"), ("prefix", "s3:prefix")] {
        if let Some(value) = request.query.get(name) {
            context.set(key, value);
        }
    }
    if let Some(prefix) = prefix {
        context.set("s3:prefix", prefix);
    }
}

fn of_signature(request: &Request, context: &mut Context, now_ms: u64) {
    let Caller::Signed(signed) = &request.caller else { return };
    let presigned = request.query.has("X-Amz-Signature");
    let kind = match request.operation {
        Operation::PostObject => "POST",
        _ if presigned => "REST-QUERY-STRING",
        _ => "REST-HEADER",
    };
    context.set("s3:authType", kind);
    context.set("s3:signatureversion", signed.signature_version());
    let of_header = request.headers.get(names::DATE).and_then(|value| value.to_str().ok());
    let date = request.query.get("X-Amz-Date").or(of_header).and_then(crate::date::parse_amz_date);
    if let Some(date) = date {
        context.set("s3:signatureAge", now_ms.saturating_sub(date).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Query;
    use crate::target::Target;

    const NOW_MS: u64 = 1_700_000_000_000;

    /// What a condition sees, and nobody has signed.
    fn seen(operation: Operation, query: &str, headers: &[(&'static str, &str)], said: &Said) -> Context {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let request = Request {
            operation,
            target: Target::new("bucket".to_owned(), "key").unwrap(),
            query: Query::read(query).unwrap(),
            headers: headers.collect(),
            caller: Caller::Anonymous,
            terms: client::Terms::default(),
            peer: crate::request::Peer::default(),
            cost: access::Cost::default(),
            success: None,
            announced: Vec::new(),
            place: None,
        };
        let about = About { key: None, region: "r", version: None, object: None, prefix: None, said, now_ms: NOW_MS };
        context(&request, &about)
    }

    fn of(pairs: &[(&str, &str)]) -> Context {
        let mut context = seen(Operation::ListBuckets, "", &[], &NOTHING);
        pairs.iter().for_each(|(key, value)| context.add(key, *value));
        context
    }

    const CREATES: (&str, &str) = ("s3:ObjectCreationOperation", "true");
    const PART: (&str, &str) = ("s3:ObjectCreationOperation", "false");

    #[test]
    fn a_policy_sees_the_fence() {
        let fence = [("x-henge-fence", "lock:7")];
        let put = seen(Operation::DeleteObject, "", &fence, &NOTHING);
        assert_eq!(put, of(&[("s3:x-henge-fence", "lock:7")]));
    }

    #[test]
    fn a_header_without_effect_says_nothing() {
        let source = ("x-amz-copy-source", "/buc/%61?versionId=null");
        let directive = ("x-amz-metadata-directive", "REPLACE");
        let copied = [("s3:x-amz-copy-source", "buc/a"), ("s3:x-amz-metadata-directive", "REPLACE")];
        let put = |operation| seen(operation, "", &[source, directive], &NOTHING);
        assert_eq!(put(Operation::CopyObject), of(&[copied[0], copied[1], CREATES]));
        assert_eq!(put(Operation::UploadPartCopy), of(&[copied[0], copied[1], PART]));
        assert_eq!(put(Operation::PostObject), of(&[CREATES]), "a field of a form copies nothing");
        let tags = ("x-amz-tagging", "a=1&b=2");
        let tagged = [
            ("s3:RequestObjectTagKeys", "a"),
            ("s3:RequestObjectTagKeys", "b"),
            ("s3:RequestObjectTag/a", "1"),
            ("s3:RequestObjectTag/b", "2"),
        ];
        let put = |operation, more: &[(&'static str, &str)]| seen(operation, "", &[&[tags], more].concat(), &NOTHING);
        let with = |more: &[(&str, &str)]| of(&[&tagged[..], more].concat());
        assert_eq!(put(Operation::PutObject, &[]), with(&[CREATES]));
        assert_eq!(put(Operation::PutObjectTagging, &[]), of(&[]));
        assert_eq!(put(Operation::CopyObject, &[]), of(&[CREATES]), "the source's tags come along");
        assert_eq!(put(Operation::CopyObject, &[("x-amz-tagging-directive", "REPLACE")]), with(&[CREATES]));
    }

    #[test]
    fn a_document_says_what_it_sets() {
        let until_ms = NOW_MS + 3 * 86_400_000;
        let retention = Some(Retention { mode: client::RetentionMode::Compliance as i32, until_ms });
        let said = Said { retention, legal_hold: Some(false), ..Said::default() };
        let lock = ("x-amz-object-lock-mode", "GOVERNANCE");
        let expected = of(&[
            ("s3:object-lock-mode", "COMPLIANCE"),
            ("s3:object-lock-retain-until-date", &iso8601(until_ms)),
            ("s3:object-lock-remaining-retention-days", "3"),
            ("s3:object-lock-legal-hold", "OFF"),
        ]);
        assert_eq!(seen(Operation::PutObjectRetention, "", &[lock], &said), expected);
        let removed = Said { retention: Some(Retention::default()), ..Said::default() };
        assert_eq!(seen(Operation::PutObjectRetention, "", &[lock], &removed), of(&[]));
    }
}
