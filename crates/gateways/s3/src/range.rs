//! Byte ranges (RFC 9110 section 14). One range a request; more than one is answered with the whole, as S3 does.

use crate::error::{Code, Result, S3Error};
use http::header::{CONTENT_RANGE, HeaderValue};
use std::ops::Range;

/// A `Range` header that can be honoured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ByteRange {
    /// First and, where given, last byte, inclusive.
    From(u64, Option<u64>),
    /// The last so many bytes.
    Suffix(u64),
}

impl ByteRange {
    /// `None` for what RFC 9110 says to ignore: another unit, broken syntax, several ranges.
    pub fn read(header: &str) -> Option<ByteRange> {
        let (first, last) = header.trim().strip_prefix("bytes=")?.split_once('-')?;
        let (first, last) = (first.trim(), last.trim());
        match (first, last) {
            ("", length) => number(length).map(ByteRange::Suffix),
            (first, "") => Some(ByteRange::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(ByteRange::From(first, Some(last)))
            }
        }
    }

    /// The bytes of an object of `size` bytes that are meant; `InvalidRange` (416) when there are none.
    pub fn within(self, size: u64) -> Result<Range<u64>> {
        let range = match self {
            ByteRange::From(first, last) => first..last.map_or(size, |last| last.saturating_add(1)).min(size),
            ByteRange::Suffix(length) => size.saturating_sub(length)..size,
        };
        if range.is_empty() {
            return Err(not_satisfiable(size));
        }
        Ok(range)
    }
}

/// `x-amz-copy-source-range: bytes=FIRST-LAST`, both inclusive and within the source of `size` bytes.
pub fn copy_range(header: &str, size: u64) -> Result<Range<u64>> {
    match ByteRange::read(header) {
        Some(ByteRange::From(first, Some(last))) if last < size => Ok(first..last + 1),
        Some(ByteRange::From(_, Some(_))) => Err(S3Error::new(
            Code::InvalidRange,
            format!("Range specified is not valid for source object of size: {size}."),
        )),
        _ => Err(S3Error::new(
            Code::InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the \
             zero-based offsets of the first and last bytes to copy.",
        )),
    }
}

/// The `Content-Range` of a partial answer.
pub fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

pub fn not_satisfiable(size: u64) -> S3Error {
    let value = HeaderValue::from_str(&format!("bytes */{size}")).expect("digits are valid in a header");
    S3Error::new(Code::InvalidRange, "The requested range is not satisfiable.")
        .field("ActualObjectSize", size.to_string())
        .header(CONTENT_RANGE, value)
}

fn number(digits: &str) -> Option<u64> {
    // A number too large for 64 bits means "to the end".
    let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    valid.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(header: &str, size: u64) -> Option<std::result::Result<Range<u64>, Code>> {
        ByteRange::read(header).map(|range| range.within(size).map_err(|error| error.code))
    }

    proptest! {
        #[test]
        fn a_range_never_leaves_the_object(header in "bytes=[0-9]{0,22}-[0-9]{0,22}", size in 0u64..1_000) {
            if let Some(Ok(range)) = of(&header, size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }

    #[test]
    fn ranges_as_rfc_9110_has_them() {
        for (header, range) in [
            ("bytes=0-0", 0..1),
            ("bytes=2-", 2..10),
            ("bytes=5-100", 5..10),
            ("bytes=-3", 7..10),
            ("bytes=-20", 0..10),
        ] {
            assert_eq!(of(header, 10), Some(Ok(range)), "{header}");
        }
        for header in ["bytes=10-", "bytes=10-20", "bytes=-0"] {
            assert_eq!(of(header, 10), Some(Err(Code::InvalidRange)), "{header}");
        }
        assert_eq!(of("bytes=0-", 0), Some(Err(Code::InvalidRange)), "an empty object has no bytes");
        for header in ["bytes=2-1", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "bytes=-", "0-1", ""] {
            assert_eq!(of(header, 10), None, "{header}");
        }
    }

    #[test]
    fn the_range_of_a_copy_must_be_exact() {
        assert_eq!(copy_range("bytes=0-9", 10).unwrap(), 0..10);
        assert_eq!(copy_range("bytes=0-10", 10).unwrap_err().code, Code::InvalidRange);
        for header in ["bytes=5-", "bytes=-5", "0-5"] {
            assert_eq!(copy_range(header, 10).unwrap_err().code, Code::InvalidArgument, "{header}");
        }
    }
}
