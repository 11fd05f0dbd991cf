//! Conditional requests (RFC 9110 section 13). Conditions of reads are decided here, against the version that was
//! read; conditions of writes are handed on and decided where the write is applied.

use crate::date::{http_date, parse_http_date};
use crate::error::{Code, Result, S3Error};
use crate::names;
use client::{ObjectVersion, Precondition};
use http::HeaderMap;
use http::header::{
    ETAG, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};

/// The value of `If-Match` or `If-None-Match`.
#[derive(Clone, PartialEq, Eq, Debug)]
enum ETags {
    Any,
    List(Vec<String>),
}

impl ETags {
    fn read(headers: &HeaderMap, name: &HeaderName) -> Result<Option<ETags>> {
        let Some(value) = headers.get(name) else { return Ok(None) };
        let invalid = || S3Error::new(Code::InvalidArgument, format!("The header {name} is invalid."));
        let text = value.to_str().map_err(|_| invalid())?.trim();
        if text == "*" {
            return Ok(Some(ETags::Any));
        }
        let list: Vec<String> = text.split(',').map(|etag| bare_etag(etag).to_owned()).collect();
        if list.iter().any(String::is_empty) { Err(invalid()) } else { Ok(Some(ETags::List(list))) }
    }

    fn contain(&self, etag: &str) -> bool {
        match self {
            ETags::Any => true,
            ETags::List(list) => list.iter().any(|one| one == etag),
        }
    }
}

/// An ETag without its quotes and without the mark of a weak one; S3's clients send both forms.
pub fn bare_etag(text: &str) -> &str {
    let text = text.trim();
    let text = text.strip_prefix("W/").unwrap_or(text);
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// The headers that condition a read, or the source of a copy.
pub struct ReadConditions {
    if_match: Option<ETags>,
    if_none_match: Option<ETags>,
    modified_since_s: Option<u64>,
    unmodified_since_s: Option<u64>,
    /// A copy answers 412 where a read answers 304.
    of_copy: bool,
}

impl ReadConditions {
    pub fn of_read(headers: &HeaderMap) -> Result<ReadConditions> {
        ReadConditions::read(headers, [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE], false)
    }

    pub fn of_copy_source(headers: &HeaderMap) -> Result<ReadConditions> {
        let names = [
            names::COPY_SOURCE_IF_MATCH,
            names::COPY_SOURCE_IF_NONE_MATCH,
            names::COPY_SOURCE_IF_MODIFIED_SINCE,
            names::COPY_SOURCE_IF_UNMODIFIED_SINCE,
        ];
        ReadConditions::read(headers, names, true)
    }

    fn read(headers: &HeaderMap, names: [HeaderName; 4], of_copy: bool) -> Result<ReadConditions> {
        let [if_match, if_none_match, modified, unmodified] = names;
        // RFC 9110: a date that cannot be read is as if it were not there.
        let seconds = |name: HeaderName| {
            headers.get(name).and_then(|value| value.to_str().ok()).and_then(parse_http_date).map(|ms| ms / 1000)
        };
        Ok(ReadConditions {
            if_match: ETags::read(headers, &if_match)?,
            if_none_match: ETags::read(headers, &if_none_match)?,
            modified_since_s: seconds(modified),
            unmodified_since_s: seconds(unmodified),
            of_copy,
        })
    }

    /// In the order of RFC 9110 section 13.2.2; a tag condition overrides the date condition of its kind.
    pub fn check(&self, object: &ObjectVersion) -> Result<()> {
        let etag = object.attributes.as_ref().map_or("", |attributes| attributes.etag.as_str());
        let modified_s = object.modified_ms / 1000;
        let failed = |condition: &'static str| {
            let message = "At least one of the preconditions you specified did not hold.";
            Err(S3Error::new(Code::PreconditionFailed, message).field("Condition", condition))
        };
        match (&self.if_match, self.unmodified_since_s) {
            (Some(tags), _) if !tags.contain(etag) => return failed("If-Match"),
            (None, Some(since)) if modified_s > since => return failed("If-Unmodified-Since"),
            _ => {}
        }
        let unchanged = match (&self.if_none_match, self.modified_since_s) {
            (Some(tags), _) => tags.contain(etag),
            (None, Some(since)) => modified_s <= since,
            (None, None) => false,
        };
        match (unchanged, self.of_copy) {
            (false, _) => Ok(()),
            (true, true) => failed("If-None-Match or If-Modified-Since"),
            (true, false) => Err(not_modified(etag, object.modified_ms)),
        }
    }
}

fn not_modified(etag: &str, modified_ms: u64) -> S3Error {
    let value = |text: &str| HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    S3Error::new(Code::NotModified, "Not modified.")
        .header(ETAG, value(&format!("\"{etag}\"")))
        .header(LAST_MODIFIED, value(&http_date(modified_ms)))
}

/// `If-Match` and `If-None-Match` of a PUT or of a Complete.
pub fn of_write(headers: &HeaderMap) -> Result<Option<Precondition>> {
    let mut precondition = Precondition::default();
    match ETags::read(headers, &IF_MATCH)? {
        Some(ETags::Any) => precondition.must_exist = true,
        Some(ETags::List(list)) => precondition.etag_is = list,
        None => {}
    }
    match ETags::read(headers, &IF_NONE_MATCH)? {
        Some(ETags::Any) => precondition.must_not_exist = true,
        Some(ETags::List(list)) => precondition.etag_is_not = list,
        None => {}
    }
    Ok((precondition != Precondition::default()).then_some(precondition))
}

/// The conditions of a DELETE: those of a write, and the size and date that S3 has besides.
pub fn of_delete(headers: &HeaderMap) -> Result<Option<Precondition>> {
    let mut precondition = of_write(headers)?.unwrap_or_default();
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let invalid = |name: &str| S3Error::new(Code::InvalidArgument, format!("The header {name} is invalid."));
    if let Some(size) = text(names::IF_MATCH_SIZE) {
        precondition.size_is = Some(size.parse().map_err(|_| invalid("x-amz-if-match-size"))?);
    }
    if let Some(date) = text(names::IF_MATCH_LAST_MODIFIED_TIME) {
        let ms = parse_http_date(date).or_else(|| crate::date::parse_iso8601(date));
        precondition.modified_ms_is = Some(ms.ok_or_else(|| invalid("x-amz-if-match-last-modified-time"))?);
    }
    Ok((precondition != Precondition::default()).then_some(precondition))
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::Attributes;

    const MODIFIED_MS: u64 = 1_700_000_000_500;

    fn headers(pairs: &[(&'static str, String)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn check(pairs: &[(&'static str, String)]) -> std::result::Result<(), Code> {
        let object = ObjectVersion {
            modified_ms: MODIFIED_MS,
            attributes: Some(Attributes { etag: "abc".to_owned(), ..Attributes::default() }),
            ..ObjectVersion::default()
        };
        ReadConditions::of_read(&headers(pairs)).and_then(|conditions| conditions.check(&object)).map_err(|e| e.code)
    }

    #[test]
    fn reads_follow_rfc_9110() {
        let (same, before, after) =
            (http_date(MODIFIED_MS), http_date(MODIFIED_MS - 5_000), http_date(MODIFIED_MS + 5_000));
        let tag = |text: &str| text.to_owned();
        let (failed, unchanged) = (Err(Code::PreconditionFailed), Err(Code::NotModified));
        assert_eq!(check(&[]), Ok(()));
        for (value, outcome) in
            [("\"abc\"", Ok(())), ("abc", Ok(())), ("*", Ok(())), ("\"x\", \"abc\"", Ok(())), ("\"x\"", failed)]
        {
            assert_eq!(check(&[("if-match", tag(value))]), outcome, "If-Match: {value}");
        }
        for (value, outcome) in [("\"abc\"", unchanged), ("W/\"abc\"", unchanged), ("*", unchanged), ("\"x\"", Ok(()))]
        {
            assert_eq!(check(&[("if-none-match", tag(value))]), outcome, "If-None-Match: {value}");
        }
        assert_eq!(check(&[("if-modified-since", same.clone())]), unchanged, "seconds, not milliseconds");
        assert_eq!(check(&[("if-modified-since", before.clone())]), Ok(()));
        assert_eq!(check(&[("if-unmodified-since", same)]), Ok(()));
        assert_eq!(check(&[("if-unmodified-since", before.clone())]), failed);
        assert_eq!(
            check(&[("if-match", tag("abc")), ("if-unmodified-since", before.clone())]),
            Ok(()),
            "the tag overrides"
        );
        assert_eq!(check(&[("if-none-match", tag("x")), ("if-modified-since", after)]), Ok(()), "the tag overrides");
        assert_eq!(check(&[("if-modified-since", tag("yesterday"))]), Ok(()), "an invalid date is ignored");
        assert_eq!(check(&[("if-match", tag(""))]), Err(Code::InvalidArgument));
    }

    #[test]
    fn the_source_of_a_copy_answers_412_and_never_304() {
        let object = ObjectVersion::default();
        let map = headers(&[("x-amz-copy-source-if-none-match", "*".to_owned())]);
        let error = ReadConditions::of_copy_source(&map).unwrap().check(&object).unwrap_err();
        assert_eq!(error.code, Code::PreconditionFailed);
    }

    #[test]
    fn conditions_of_writes_are_handed_on() {
        assert_eq!(of_write(&HeaderMap::new()).unwrap(), None);
        let only_new = of_write(&headers(&[("if-none-match", "*".to_owned())])).unwrap().unwrap();
        assert!(only_new.must_not_exist && only_new.etag_is.is_empty());
        let same = of_write(&headers(&[("if-match", "\"abc\"".to_owned())])).unwrap().unwrap();
        assert_eq!(same.etag_is, ["abc"]);
        let delete = headers(&[("x-amz-if-match-size", "7".to_owned())]);
        assert_eq!(of_delete(&delete).unwrap().unwrap().size_is, Some(7));
        assert!(of_delete(&headers(&[("x-amz-if-match-size", "x".to_owned())])).is_err());
    }
}
