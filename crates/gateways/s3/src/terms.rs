//! Headers of henge's own: the terms that a request is done under.

use crate::error::{Code, Result, S3Error};
use crate::names;
use bytes::Bytes;
use client::{FENCE_KEY_LEN_MAX, Fence, Terms};
use http::{HeaderMap, HeaderName};

const KNOWN: [HeaderName; 1] = [names::FENCE];

/// The terms in a request's headers. A misspelt one would be a promise that nobody keeps: unknown ones are refused.
pub fn of_headers(headers: &HeaderMap) -> Result<Terms> {
    let is_unknown = |name: &&HeaderName| name.as_str().starts_with("x-henge-") && !KNOWN.contains(name);
    if let Some(name) = headers.keys().find(is_unknown) {
        return Err(S3Error::new(Code::InvalidArgument, format!("The header {name} is not known."))
            .field("ArgumentName", name.as_str()));
    }
    let fence = headers.get(names::FENCE).map(|value| fence(value.as_bytes())).transpose()?;
    Ok(Terms { fence })
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
        S3Error::new(Code::InvalidArgument, message).field("ArgumentName", "x-henge-fence")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_terms_are_refused() {
        let headers =
            |name: &'static str| HeaderMap::from_iter([(HeaderName::from_static(name), "a:1".parse().unwrap())]);
        assert!(of_headers(&headers("x-henge-fence")).unwrap().fence.is_some());
        assert!(of_headers(&headers("x-henge-fense")).is_err());
        assert_eq!(of_headers(&headers("x-amz-acl")).unwrap(), Terms::default());
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
