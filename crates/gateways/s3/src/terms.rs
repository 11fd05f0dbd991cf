//! Headers of henge's own: the terms that a request is done under.

use crate::error::{Code, Result, S3Error};
use crate::names;
use bytes::Bytes;
use client::{Acknowledgement, FENCE_KEY_LEN_MAX, Fence, Reads, Terms};
use http::{HeaderMap, HeaderName};
use std::sync::Arc;

const KNOWN: [HeaderName; 3] = [names::FENCE, names::ACKNOWLEDGE, names::CONSISTENCY];

/// The terms in the headers of a request. `reads`: it changes nothing; what a write reads on its way is always strong. A
/// misspelt header would be a promise that nobody keeps: unknown ones are refused.
pub fn of_headers(headers: &HeaderMap, reads: bool) -> Result<Terms> {
    let is_unknown = |name: &&HeaderName| name.as_str().starts_with("x-henge-") && !KNOWN.contains(name);
    if let Some(name) = headers.keys().find(is_unknown) {
        return Err(S3Error::new(Code::InvalidArgument, format!("The header {name} is not known."))
            .field("ArgumentName", name.as_str()));
    }
    let fence = headers.get(names::FENCE).map(|value| fence(value.as_bytes())).transpose()?;
    let acknowledgement = headers.get(names::ACKNOWLEDGE).map(|value| acknowledgement(value.as_bytes())).transpose()?;
    let reads = match headers.get(names::CONSISTENCY).map(|value| value.as_bytes()) {
        Some(b"eventual") if reads => Reads::Eventual(Arc::default()),
        Some(b"eventual" | b"strong") | None => Reads::Strong,
        Some(_) => return Err(invalid(&names::CONSISTENCY, "The header x-henge-consistency is strong or eventual.")),
    };
    Ok(Terms { fence, acknowledgement, reads })
}

/// `x-henge-staleness-ms`: for how long the replica that answered an eventual read has not known that it holds
/// everything; `unknown` when it never did. `None`: no replica was asked for an eventual answer, or none gave one.
pub fn staleness(terms: &Terms) -> Option<String> {
    let Reads::Eventual(staleness) = &terms.reads else { return None };
    staleness
        .is_noted()
        .then(|| staleness.get_ms().map_or_else(|| "unknown".to_owned(), |staleness_ms| staleness_ms.to_string()))
}

/// The terms of a form are fields: a header beside it would be a promise that nobody keeps.
pub fn refuse_beside_form(headers: &HeaderMap) -> Result<()> {
    let Some(name) = headers.keys().find(|name| name.as_str().starts_with("x-henge-")) else { return Ok(()) };
    let message = format!("With a form, {name} is given as a field of the form, before the file.");
    Err(S3Error::new(Code::InvalidArgument, message).field("ArgumentName", name.as_str()))
}

fn invalid(name: &HeaderName, message: &'static str) -> S3Error {
    S3Error::new(Code::InvalidArgument, message).field("ArgumentName", name.as_str())
}

fn acknowledgement(value: &[u8]) -> Result<Acknowledgement> {
    let known = std::str::from_utf8(value).ok().and_then(Acknowledgement::from_name);
    let message = "The header x-henge-acknowledge is all-strict, all, majority or one.";
    known.ok_or_else(|| invalid(&names::ACKNOWLEDGE, message))
}

/// `x-henge-fence: KEY:TOKEN`. The key is 1 to 128 visible ASCII characters and may hold colons; the token is a decimal
/// number below 2^64.
fn fence(value: &[u8]) -> Result<Fence> {
    let read = || {
        let (key, token) = std::str::from_utf8(value).ok()?.rsplit_once(':')?;
        let plain = key.bytes().all(|byte| byte.is_ascii_graphic());
        let digits = token.bytes().all(|byte| byte.is_ascii_digit());
        let valid = (1..=FENCE_KEY_LEN_MAX).contains(&key.len()) && plain && digits;
        Some(Fence { key: Bytes::copy_from_slice(key.as_bytes()), token: token.parse().ok().filter(|_| valid)? })
    };
    read().ok_or_else(|| {
        let message = "The header x-henge-fence must be KEY:TOKEN, with a key of 1 to 128 visible ASCII characters and a \
                       decimal number.";
        invalid(&names::FENCE, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(name: &'static str, value: &str, reads: bool) -> Option<Terms> {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
        of_headers(&headers, reads).ok()
    }

    #[test]
    fn unknown_terms_are_refused() {
        assert!(terms("x-henge-fence", "a:1", false).unwrap().fence.is_some());
        assert_eq!(terms("x-henge-fense", "a:1", false), None);
        assert_eq!(terms("x-amz-acl", "private", false), Some(Terms::default()));
        assert_eq!(terms("x-henge-acknowledge", "most", false), None);
        assert_eq!(terms("x-henge-consistency", "weak", true), None);
    }

    #[test]
    fn nothing_is_said_of_staleness_before_a_replica_has_answered() {
        let reads = Terms { reads: Reads::Eventual(Arc::default()), ..Terms::default() };
        assert_eq!((staleness(&reads), staleness(&Terms::default())), (None, None));
    }

    #[test]
    fn what_a_write_reads_is_strong() {
        let reads = |reads| terms("x-henge-consistency", "eventual", reads).unwrap().reads;
        assert_ne!(reads(true), Reads::Strong);
        assert_eq!(reads(false), Reads::Strong);
        for (name, rule) in [("all-strict", Acknowledgement::AllStrict), ("one", Acknowledgement::One)] {
            assert_eq!(terms("x-henge-acknowledge", name, false).unwrap().acknowledgement, Some(rule));
        }
    }

    #[test]
    fn a_fence_is_a_key_and_a_number() {
        let of = |text: &str| fence(text.as_bytes()).ok().map(|fence| (fence.key, fence.token));
        assert_eq!(of("lock:7"), Some((Bytes::from_static(b"lock"), 7)));
        assert_eq!(of("a:b:18446744073709551615"), Some((Bytes::from_static(b"a:b"), u64::MAX)));
        let long = "k".repeat(129);
        for bad in
            ["", "7", ":7", "lock:", "lock:x", "lock:-1", "lock:+1", "a b:7", "lock:18446744073709551616", "\u{e9}:7"]
        {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(of(&format!("{long}:7")), None);
        assert!(of(&format!("{}:7", &long[1..])).is_some());
    }
}
