//! Object lock in the words of S3: headers of writes and reads, and the three documents.

use crate::date::{iso8601, parse_http_date, parse_iso8601};
use crate::error::{Code, Result, S3Error};
use crate::names;
use crate::request::{Reply, malformed_xml};
use crate::xml::{Element, Writer};
use client::{BucketLock, ObjectLock, Retention, RetentionMode};
use http::{HeaderMap, HeaderName};

/// The longest default retention, as in S3: a hundred years.
const DEFAULT_DAYS_MAX: i64 = 36_500;
const DEFAULT_YEARS_MAX: i64 = 100;

fn invalid(message: &'static str) -> S3Error {
    S3Error::new(Code::InvalidArgument, message)
}

fn mode_named(name: &str) -> Option<RetentionMode> {
    match name {
        "GOVERNANCE" => Some(RetentionMode::Governance),
        "COMPLIANCE" => Some(RetentionMode::Compliance),
        _ => None,
    }
}

pub fn mode_name(mode: RetentionMode) -> Option<&'static str> {
    match mode {
        RetentionMode::None => None,
        RetentionMode::Governance => Some("GOVERNANCE"),
        RetentionMode::Compliance => Some("COMPLIANCE"),
    }
}

/// The lock that the headers of a write ask for.
pub fn of_write(headers: &HeaderMap, now_ms: u64) -> Result<Option<ObjectLock>> {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let (mode, until) = (text(&names::OBJECT_LOCK_MODE), text(&names::OBJECT_LOCK_RETAIN_UNTIL));
    let hold = text(&names::OBJECT_LOCK_LEGAL_HOLD);
    let mut lock = ObjectLock::default();
    match (mode, until) {
        (None, None) => {}
        (Some(mode), Some(until)) => {
            lock.mode = mode_named(mode).ok_or_else(|| invalid("Unknown wormMode directive."))? as i32;
            lock.retain_until_ms = future(until, now_ms)?;
        }
        _ => {
            return Err(invalid(
                "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied",
            ));
        }
    }
    lock.legal_hold = match hold {
        Some("ON") => true,
        None | Some("OFF") => false,
        Some(_) => return Err(invalid("Legal Hold must be either of 'ON' or 'OFF'")),
    };
    Ok((mode.is_some() || hold.is_some()).then_some(lock))
}

/// A date of retention.
pub fn parse_until(text: &str) -> Option<u64> {
    parse_iso8601(text).or_else(|| parse_http_date(text))
}

fn future(text: &str, now_ms: u64) -> Result<u64> {
    let ms = parse_until(text).ok_or_else(|| invalid("The retain until date must be provided in ISO 8601 format"))?;
    if ms > now_ms { Ok(ms) } else { Err(invalid("The retain until date must be in the future!")) }
}

/// The lock of a version as headers of an answer.
pub fn insert(reply: &mut Reply, lock: Option<&ObjectLock>) {
    let Some(lock) = lock else { return };
    if let Some(mode) = mode_name(lock.mode()) {
        crate::request::insert(reply, names::OBJECT_LOCK_MODE, mode);
        crate::request::insert(reply, names::OBJECT_LOCK_RETAIN_UNTIL, &iso8601(lock.retain_until_ms));
    }
    if lock.legal_hold {
        crate::request::insert(reply, names::OBJECT_LOCK_LEGAL_HOLD, "ON");
    }
}

/// Reads a `Retention`; an empty one removes what is there.
pub fn read_retention(document: &Element, now_ms: u64) -> Result<Retention> {
    let (mode, until) = (document.child_text("Mode"), document.child_text("RetainUntilDate"));
    match (mode, until) {
        (None, None) => Ok(Retention::default()),
        (Some(mode), Some(until)) => {
            let mode = mode_named(mode).ok_or_else(|| malformed_xml("the Mode is GOVERNANCE or COMPLIANCE"))?;
            Ok(Retention { mode: mode as i32, until_ms: future(until, now_ms)? })
        }
        _ => Err(malformed_xml("a retention has a Mode and a RetainUntilDate")),
    }
}

pub fn write_retention(lock: &ObjectLock) -> Option<String> {
    let mode = mode_name(lock.mode())?;
    Some(Writer::answer("Retention", |xml| {
        xml.text("Mode", mode);
        xml.text("RetainUntilDate", &iso8601(lock.retain_until_ms));
    }))
}

/// Reads a `LegalHold`.
pub fn read_hold(document: &Element) -> Result<bool> {
    match document.child_text("Status") {
        Some("ON") => Ok(true),
        Some("OFF") => Ok(false),
        _ => Err(malformed_xml("the Status of a legal hold is ON or OFF")),
    }
}

pub fn write_hold(lock: &ObjectLock) -> String {
    Writer::answer("LegalHold", |xml| xml.text("Status", if lock.legal_hold { "ON" } else { "OFF" }))
}

/// Reads an `ObjectLockConfiguration`.
pub fn read_bucket(document: &Element) -> Result<BucketLock> {
    if document.child_text("ObjectLockEnabled") != Some("Enabled") {
        return Err(malformed_xml("ObjectLockEnabled is Enabled"));
    }
    let Some(rule) = document.child("Rule") else { return Ok(BucketLock::default()) };
    let retention = rule.child("DefaultRetention").ok_or_else(|| malformed_xml("a Rule has a DefaultRetention"))?;
    let mode = retention.child_text("Mode").and_then(mode_named);
    let mode = mode.ok_or_else(|| malformed_xml("the Mode is GOVERNANCE or COMPLIANCE"))?;
    let length = |name: &str, max: i64| match retention.child_text(name).map(str::parse::<i64>) {
        None => Ok(None),
        Some(Ok(length)) if (1..=max).contains(&length) => Ok(u32::try_from(length).ok()),
        Some(Ok(_)) => {
            let message = "Default retention period must be a positive integer value, of at most 100 years.";
            Err(S3Error::new(Code::InvalidRetentionPeriod, message))
        }
        Some(Err(_)) => Err(malformed_xml("a number cannot be read")),
    };
    match (length("Days", DEFAULT_DAYS_MAX)?, length("Years", DEFAULT_YEARS_MAX)?) {
        (Some(_), Some(_)) | (None, None) => Err(malformed_xml("a DefaultRetention has either Days or Years")),
        (days, years) => Ok(BucketLock {
            default_mode: mode as i32,
            default_days: days.unwrap_or(0),
            default_years: years.unwrap_or(0),
        }),
    }
}

pub fn write_bucket(lock: &BucketLock) -> String {
    Writer::answer("ObjectLockConfiguration", |xml| {
        xml.text("ObjectLockEnabled", "Enabled");
        let Some(mode) = mode_name(lock.default_mode()) else { return };
        xml.element("Rule", |xml| {
            xml.element("DefaultRetention", |xml| {
                xml.text("Mode", mode);
                if lock.default_days > 0 {
                    xml.number("Days", u64::from(lock.default_days));
                }
                if lock.default_years > 0 {
                    xml.number("Years", u64::from(lock.default_years));
                }
            });
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn document(text: &str) -> Element {
        crate::xml::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn headers_of_writes() {
        let of = |pairs: &[(&'static str, &str)]| {
            let headers = pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
            of_write(&headers.collect(), NOW).map_err(|error| error.code)
        };
        const MODE: &str = "x-amz-object-lock-mode";
        const UNTIL: &str = "x-amz-object-lock-retain-until-date";
        const HOLD: &str = "x-amz-object-lock-legal-hold";
        let lock = of(&[(MODE, "COMPLIANCE"), (UNTIL, "2030-01-01T00:00:00Z"), (HOLD, "ON")]).unwrap().unwrap();
        assert_eq!(
            (lock.mode(), iso8601(lock.retain_until_ms).as_str()),
            (RetentionMode::Compliance, "2030-01-01T00:00:00.000Z")
        );
        assert!(lock.legal_hold);
        assert_eq!(of(&[]), Ok(None));
        for bad in [
            &[(MODE, "COMPLIANCE")][..],
            &[(UNTIL, "2030-01-01T00:00:00Z")],
            &[(MODE, "compliance"), (UNTIL, "2030-01-01T00:00:00Z")],
            &[(MODE, "GOVERNANCE"), (UNTIL, "2020-01-01T00:00:00Z")],
            &[(MODE, "GOVERNANCE"), (UNTIL, "tomorrow")],
            &[(HOLD, "on")],
        ] {
            assert_eq!(of(bad), Err(Code::InvalidArgument), "{bad:?}");
        }
    }

    #[test]
    fn configurations() {
        let of = |inside: &str| {
            read_bucket(&document(&format!("<ObjectLockConfiguration>{inside}</ObjectLockConfiguration>")))
                .map_err(|error| error.code)
        };
        let rule = |inside: &str| {
            format!(
                "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>{inside}</DefaultRetention></Rule>"
            )
        };
        let years = of(&rule("<Mode>COMPLIANCE</Mode><Years>2</Years>")).unwrap();
        assert_eq!(read_bucket(&document(&write_bucket(&years))).unwrap(), years);
        assert_eq!(of("<ObjectLockEnabled>Enabled</ObjectLockEnabled>"), Ok(BucketLock::default()));
        for (inside, code) in [
            ("<Mode>COMPLIANCE</Mode><Years>2</Years><Days>1</Days>", Code::MalformedXML),
            ("<Mode>COMPLIANCE</Mode>", Code::MalformedXML),
            ("<Mode>abc</Mode><Days>1</Days>", Code::MalformedXML),
            ("<Mode>GOVERNANCE</Mode><Days>0</Days>", Code::InvalidRetentionPeriod),
            ("<Mode>GOVERNANCE</Mode><Years>-1</Years>", Code::InvalidRetentionPeriod),
            ("<Mode>GOVERNANCE</Mode><Years>101</Years>", Code::InvalidRetentionPeriod),
        ] {
            assert_eq!(of(&rule(inside)), Err(code), "{inside}");
        }
        assert_eq!(of("<ObjectLockEnabled>Disabled</ObjectLockEnabled>"), Err(Code::MalformedXML));
    }
}
