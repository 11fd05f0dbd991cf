//! Dates as S3 writes and reads them, from and to milliseconds since 1970-01-01 UTC.

use base::calendar::{Civil, UtcDay, digits};
pub use base::calendar::{iso8601, parse_iso8601};

const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `Wed, 12 Oct 2009 17:50:00 GMT` (RFC 9110 section 5.6.7).
pub fn http_date(ms: u64) -> String {
    let c = Civil::from_ms(ms);
    let weekday = WEEKDAYS[(UtcDay::of(ms).0 % 7) as usize];
    let month = MONTHS[(c.month - 1) as usize];
    format!("{weekday}, {:02} {month} {:04} {:02}:{:02}:{:02} GMT", c.day, c.year, c.hour, c.minute, c.second)
}

/// `20130524T000000Z`, as SigV4 writes it.
#[cfg(test)]
pub fn amz_date(ms: u64) -> String {
    let c = Civil::from_ms(ms);
    format!("{:04}{:02}{:02}T{:02}{:02}{:02}Z", c.year, c.month, c.day, c.hour, c.minute, c.second)
}

/// Parses [`amz_date`].
pub fn parse_amz_date(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    Civil {
        year: digits(bytes, 0, 4)?,
        month: digits(bytes, 4, 2)?,
        day: digits(bytes, 6, 2)?,
        hour: digits(bytes, 9, 2)?,
        minute: digits(bytes, 11, 2)?,
        second: digits(bytes, 13, 2)?,
        ms: 0,
    }
    .to_ms()
}

/// Parses [`http_date`]; the weekday is not checked. Older forms of RFC 9110 are not read.
pub fn parse_http_date(text: &str) -> Option<u64> {
    let (_, rest) = text.trim().split_once(", ")?;
    let bytes = rest.as_bytes();
    if bytes.len() != 24 || !rest.is_ascii() || &rest[20..] != " GMT" || bytes[13 + 1] != b':' || bytes[17] != b':' {
        return None;
    }
    let month = MONTHS.iter().position(|month| *month == &rest[3..6])? as u64 + 1;
    Civil {
        year: digits(bytes, 7, 4)?,
        month,
        day: digits(bytes, 0, 2)?,
        hour: digits(bytes, 12, 2)?,
        minute: digits(bytes, 15, 2)?,
        second: digits(bytes, 18, 2)?,
        ms: 0,
    }
    .to_ms()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX_MS: u64 = 253_402_300_799_999;

    proptest! {
        #[test]
        fn all_forms_round_trip(ms in 0..=MAX_MS) {
            let second = ms / 1_000 * 1_000;
            prop_assert_eq!(parse_iso8601(&iso8601(ms)), Some(ms));
            prop_assert_eq!(parse_http_date(&http_date(ms)), Some(second));
            prop_assert_eq!(parse_amz_date(&amz_date(ms)), Some(second));
        }

        #[test]
        fn garbage_never_panics(text: String) {
            let _ = (parse_iso8601(&text), parse_http_date(&text), parse_amz_date(&text));
        }
    }

    #[test]
    fn known_moments() {
        let ms = 784_111_777_000;
        assert_eq!(http_date(ms), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(iso8601(ms + 5), "1994-11-06T08:49:37.005Z");
        assert_eq!(amz_date(951_782_400_000), "20000229T000000Z");
        assert_eq!(parse_amz_date("20010229T000000Z"), None);
        assert_eq!(parse_iso8601("2001-02-28T01:02:03Z").map(iso8601).as_deref(), Some("2001-02-28T01:02:03.000Z"));
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 PST"), None);
    }
}
