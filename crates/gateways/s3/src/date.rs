//! Dates as S3 writes and reads them, from and to milliseconds since 1970-01-01 UTC. Proleptic Gregorian calendar
//! after Hinnant, "chrono-Compatible Low-Level Date Algorithms".

const DAY_MS: u64 = 86_400_000;
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A moment taken apart.
struct Civil {
    year: u64,
    /// 1..=12.
    month: u64,
    /// 1..=31.
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    ms: u64,
}

impl Civil {
    fn from_ms(ms: u64) -> Civil {
        let days = ms / DAY_MS + 719_468;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let in_day = ms % DAY_MS;
        Civil {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            hour: in_day / 3_600_000,
            minute: in_day / 60_000 % 60,
            second: in_day / 1_000 % 60,
            ms: in_day % 1_000,
        }
    }

    /// `None` before 1970, after 9999, or when a field is out of its range.
    fn to_ms(&self) -> Option<u64> {
        let in_range = (1970..=9999).contains(&self.year)
            && (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60
            && self.ms < 1_000;
        if !in_range {
            return None;
        }
        let year = if self.month <= 2 { self.year - 1 } else { self.year };
        let month_from_march = (self.month + 9) % 12;
        let day_of_year = (153 * month_from_march + 2) / 5 + self.day - 1;
        let year_of_era = year % 400;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = year / 400 * 146_097 + day_of_era - 719_468;
        let ms = days * DAY_MS + self.hour * 3_600_000 + self.minute * 60_000 + self.second * 1_000 + self.ms;
        // A day that the month does not have (31 April) comes back as another one.
        (Civil::from_ms(ms).day == self.day).then_some(ms)
    }
}

/// `2009-10-12T17:50:30.000Z`, as XML bodies carry it.
pub fn iso8601(ms: u64) -> String {
    let c = Civil::from_ms(ms);
    format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", c.year, c.month, c.day, c.hour, c.minute, c.second, c.ms)
}

/// `Wed, 12 Oct 2009 17:50:00 GMT` (RFC 9110 section 5.6.7).
pub fn http_date(ms: u64) -> String {
    let c = Civil::from_ms(ms);
    let weekday = WEEKDAYS[(ms / DAY_MS % 7) as usize];
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

/// Parses [`iso8601`], with or without a fraction of up to nine digits.
pub fn parse_iso8601(text: &str) -> Option<u64> {
    let bytes = text.strip_suffix('Z')?.as_bytes();
    if bytes.len() < 19
        || bytes[4] != b'-'
        || bytes[7] != b'-'
        || bytes[10] != b'T'
        || bytes[13] != b':'
        || bytes[16] != b':'
    {
        return None;
    }
    let ms = match &bytes[19..] {
        [] => 0,
        [b'.', fraction @ ..] if (1..=9).contains(&fraction.len()) && fraction.iter().all(u8::is_ascii_digit) => {
            let digit = |at: usize| fraction.get(at).map_or(0, |b| u64::from(b - b'0'));
            digit(0) * 100 + digit(1) * 10 + digit(2)
        }
        _ => return None,
    };
    Civil {
        year: digits(bytes, 0, 4)?,
        month: digits(bytes, 5, 2)?,
        day: digits(bytes, 8, 2)?,
        hour: digits(bytes, 11, 2)?,
        minute: digits(bytes, 14, 2)?,
        second: digits(bytes, 17, 2)?,
        ms,
    }
    .to_ms()
}

fn digits(bytes: &[u8], from: usize, count: usize) -> Option<u64> {
    let mut number = 0;
    for byte in bytes.get(from..from + count)? {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number * 10 + u64::from(byte - b'0');
    }
    Some(number)
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
