//! The UTC calendar: dates from and to milliseconds since 1970-01-01, and ISO 8601. Proleptic Gregorian calendar after
//! Hinnant, "chrono-Compatible Low-Level Date Algorithms".
//!
//! Rules that speak of days and years compare dates ([`UtcDay`]), never lengths of time: how long a day lasted is
//! asked nowhere but in the two functions that take a POSIX time apart and put it together (POSIX time has no leap
//! seconds: each of its days counts 86,400 of them, however long it was).

const POSIX_DAY_MS: u64 = 86_400_000;

/// A date of the UTC calendar, counted from 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcDay(pub u32);

impl UtcDay {
    /// The date on which the moment lies.
    pub fn of(ms: u64) -> UtcDay {
        UtcDay(u32::try_from(ms / POSIX_DAY_MS).unwrap_or(u32::MAX))
    }

    /// Its midnight, with which it begins.
    pub fn start_ms(self) -> u64 {
        u64::from(self.0) * POSIX_DAY_MS
    }

    /// The date `days` later; the last there is, when that is beyond it.
    pub fn plus(self, days: u32) -> UtcDay {
        UtcDay(self.0.saturating_add(days))
    }
}

/// The same time of day `days` dates later.
pub fn plus_days(ms: u64, days: u32) -> u64 {
    let day = UtcDay::of(ms);
    day.plus(days).start_ms() + (ms - day.start_ms().min(ms))
}

/// The same time of day on the same date `years` later; from 29 February to 1 March where there is none.
pub fn plus_years(ms: u64, years: u32) -> u64 {
    let mut civil = Civil::from_ms(ms);
    civil.year += u64::from(years);
    let is_leap = civil.year.is_multiple_of(4) && (!civil.year.is_multiple_of(100) || civil.year.is_multiple_of(400));
    if civil.month == 2 && civil.day == 29 && !is_leap {
        (civil.month, civil.day) = (3, 1);
    }
    civil.to_ms().unwrap_or(MAX_MS)
}

/// The last moment of the year 9999.
pub const MAX_MS: u64 = 253_402_300_799_999;

/// A moment taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    pub year: u64,
    /// 1..=12.
    pub month: u64,
    /// 1..=31.
    pub day: u64,
    pub hour: u64,
    pub minute: u64,
    pub second: u64,
    pub ms: u64,
}

impl Civil {
    pub fn from_ms(ms: u64) -> Civil {
        let days = ms / POSIX_DAY_MS + 719_468;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let in_day = ms % POSIX_DAY_MS;
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
    pub fn to_ms(&self) -> Option<u64> {
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
        let ms = days * POSIX_DAY_MS + self.hour * 3_600_000 + self.minute * 60_000 + self.second * 1_000 + self.ms;
        // A day that the month does not have (31 April) comes back as another one.
        (Civil::from_ms(ms).day == self.day).then_some(ms)
    }
}

/// `2009-10-12T17:50:30.000Z`.
pub fn iso8601(ms: u64) -> String {
    let c = Civil::from_ms(ms);
    format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", c.year, c.month, c.day, c.hour, c.minute, c.second, c.ms)
}

/// Parses [`iso8601`], with or without a fraction of up to nine digits; the zone is `Z`, or an offset such as `+00:00`.
pub fn parse_iso8601(text: &str) -> Option<u64> {
    let (local, offset_minutes) = split_zone(text)?;
    let bytes = local.as_bytes();
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
    let local_ms = Civil {
        year: digits(bytes, 0, 4)?,
        month: digits(bytes, 5, 2)?,
        day: digits(bytes, 8, 2)?,
        hour: digits(bytes, 11, 2)?,
        minute: digits(bytes, 14, 2)?,
        second: digits(bytes, 17, 2)?,
        ms,
    }
    .to_ms()?;
    local_ms.checked_add_signed(-offset_minutes * 60_000)
}

/// The text before the zone, and how many minutes the zone is ahead of UTC.
fn split_zone(text: &str) -> Option<(&str, i64)> {
    if let Some(local) = text.strip_suffix('Z') {
        return Some((local, 0));
    }
    let at = text.len().checked_sub(6)?;
    let (local, zone) = (text.get(..at)?, text.get(at..)?.as_bytes());
    if zone[3] != b':' {
        return None;
    }
    let (hours, minutes) = (digits(zone, 1, 2)?, digits(zone, 4, 2)?);
    if hours > 14 || minutes > 59 {
        return None;
    }
    let ahead = (hours * 60 + minutes) as i64;
    match zone[0] {
        b'+' => Some((local, ahead)),
        b'-' => Some((local, -ahead)),
        _ => None,
    }
}

/// The number that `count` digits from `from` on write.
pub fn digits(bytes: &[u8], from: usize, count: usize) -> Option<u64> {
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

    proptest! {
        #[test]
        fn dates_round_trip(ms in 0..=MAX_MS) {
            prop_assert_eq!(Civil::from_ms(ms).to_ms(), Some(ms));
            prop_assert_eq!(parse_iso8601(&iso8601(ms)), Some(ms));
            let day = UtcDay::of(ms);
            prop_assert!(day.start_ms() <= ms && ms < day.plus(1).start_ms());
            prop_assert_eq!(&iso8601(day.start_ms())[..10], &iso8601(ms)[..10]);
        }

        #[test]
        fn garbage_never_panics(text: String) {
            let _ = parse_iso8601(&text);
        }

        #[test]
        fn later_is_later(ms in 0..=MAX_MS / 2, days in 1u32..4000, years in 1u32..100) {
            prop_assert!(plus_days(ms, days) > ms && plus_years(ms, years) > ms);
            prop_assert_eq!(&iso8601(plus_days(ms, days))[10..], &iso8601(ms)[10..], "the time of day stays");
            prop_assert_eq!(&iso8601(plus_years(ms, years))[10..], &iso8601(ms)[10..]);
        }
    }

    #[test]
    fn known_dates() {
        let at = |text: &str| parse_iso8601(text).unwrap();
        assert_eq!(at("1970-01-02T00:00:00Z"), 86_400_000);
        assert_eq!(at("2030-01-01T02:00:00+02:00"), at("2030-01-01T00:00:00.000Z"));
        assert_eq!(at("2029-12-31T19:30:00-04:30"), at("2030-01-01T00:00:00Z"));
        assert_eq!(plus_years(at("2024-02-29T10:00:00Z"), 1), at("2025-03-01T10:00:00Z"));
        assert_eq!(plus_years(at("2024-02-29T10:00:00Z"), 4), at("2028-02-29T10:00:00Z"));
        assert_eq!(plus_days(at("2024-02-28T10:00:00Z"), 2), at("2024-03-01T10:00:00Z"));
        for bad in ["2001-02-29T00:00:00Z", "2030-01-01T00:00:00", "2030-01-01T00:00:00+2:00", "2030-01-01", "é+00:00"]
        {
            assert_eq!(parse_iso8601(bad), None, "{bad}");
        }
    }
}
