//! Object lock: what a version's retention and legal hold forbid.
//!
//! Two rules hold without exception, for every caller, the root user included: a compliance retention is never
//! shortened, weakened or bypassed while it lasts, and a legal hold forbids removal until it is lifted. A governance
//! retention yields to whoever has the right to bypass it; the gateway has decided that right, apply takes its word.
//!
//! Times are those of the command. Retention is the one promise of henge that needs a clock.
//!
//! Source: "Locking objects with Object Lock", Amazon S3 User Guide.

use base::calendar;

/// The lock of one version.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ObjectLock {
    #[prost(enumeration = "RetentionMode", tag = "1")]
    pub mode: i32,
    /// The retention lasts until this moment; 0 without a mode.
    #[prost(uint64, tag = "2")]
    pub retain_until_ms: u64,
    #[prost(bool, tag = "3")]
    pub legal_hold: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum RetentionMode {
    None = 0,
    Governance = 1,
    Compliance = 2,
}

/// The object lock of a bucket: its versions may be locked, and are by default when there is a mode.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct BucketLock {
    #[prost(enumeration = "RetentionMode", tag = "1")]
    pub default_mode: i32,
    /// The length of the default retention: one of the two is not 0 when there is a mode.
    #[prost(uint32, tag = "2")]
    pub default_days: u32,
    #[prost(uint32, tag = "3")]
    pub default_years: u32,
}

/// What forbids a change, for the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbidden {
    LegalHold,
    Compliance,
    /// The right to bypass it would help.
    Governance,
}

impl std::fmt::Display for Forbidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Forbidden::LegalHold => "the version is under a legal hold",
            Forbidden::Compliance => "the version is under a compliance retention, which nobody can shorten or bypass",
            Forbidden::Governance => "the version is under a governance retention",
        })
    }
}

impl ObjectLock {
    fn lasts(&self, now_ms: u64) -> bool {
        self.mode() != RetentionMode::None && now_ms < self.retain_until_ms
    }

    /// Whether the version may be removed for good. `bypass`: the caller may bypass governance, and asked to.
    pub fn check_removal(&self, now_ms: u64, bypass: bool) -> Result<(), Forbidden> {
        if self.legal_hold {
            return Err(Forbidden::LegalHold);
        }
        match self.mode() {
            _ if !self.lasts(now_ms) => Ok(()),
            RetentionMode::Compliance => Err(Forbidden::Compliance),
            RetentionMode::Governance if !bypass => Err(Forbidden::Governance),
            RetentionMode::Governance | RetentionMode::None => Ok(()),
        }
    }

    /// Whether the retention may become `mode` until `until_ms`. (The legal hold is changed by its own right.)
    pub fn check_retention(
        &self,
        mode: RetentionMode,
        until_ms: u64,
        now_ms: u64,
        bypass: bool,
    ) -> Result<(), Forbidden> {
        let same_and_no_shorter = mode == self.mode() && until_ms >= self.retain_until_ms;
        match self.mode() {
            _ if same_and_no_shorter || !self.lasts(now_ms) => Ok(()),
            RetentionMode::Compliance => Err(Forbidden::Compliance),
            RetentionMode::Governance if !bypass => Err(Forbidden::Governance),
            RetentionMode::Governance | RetentionMode::None => Ok(()),
        }
    }

    /// Nothing is locked: not worth a row's bytes.
    pub fn is_empty(&self) -> bool {
        *self == ObjectLock::default()
    }
}

impl BucketLock {
    /// The retention of a version that is written at `now_ms` and brings none of its own.
    pub fn default_at(&self, now_ms: u64) -> ObjectLock {
        if self.default_mode() == RetentionMode::None {
            return ObjectLock::default();
        }
        let after_years = calendar::plus_years(now_ms, self.default_years);
        let retain_until_ms = calendar::plus_days(after_years, self.default_days);
        ObjectLock { mode: self.default_mode, retain_until_ms, legal_hold: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RetentionMode::{Compliance, Governance, None};
    use proptest::prelude::*;

    const NOW: u64 = 1_000_000;

    fn lock(mode: RetentionMode, until: u64) -> ObjectLock {
        ObjectLock { mode: mode as i32, retain_until_ms: until, legal_hold: false }
    }

    fn any_mode() -> impl Strategy<Value = RetentionMode> {
        prop_oneof![Just(None), Just(Governance), Just(Compliance)]
    }

    #[test]
    fn removal() {
        let held = |lock: ObjectLock| ObjectLock { legal_hold: true, ..lock };
        for (lock, without, with) in [
            (lock(None, 0), Ok(()), Ok(())),
            (lock(Governance, NOW + 1), Err(Forbidden::Governance), Ok(())),
            (lock(Governance, NOW), Ok(()), Ok(())),
            (lock(Compliance, NOW + 1), Err(Forbidden::Compliance), Err(Forbidden::Compliance)),
            (lock(Compliance, NOW), Ok(()), Ok(())),
            (held(lock(None, 0)), Err(Forbidden::LegalHold), Err(Forbidden::LegalHold)),
            (held(lock(Governance, NOW + 1)), Err(Forbidden::LegalHold), Err(Forbidden::LegalHold)),
        ] {
            assert_eq!(lock.check_removal(NOW, false), without, "{lock:?}");
            assert_eq!(lock.check_removal(NOW, true), with, "{lock:?}, bypassing");
        }
    }

    #[test]
    fn retention() {
        let later = NOW + 100;
        for (from, to, until, without, with) in [
            (lock(None, 0), Compliance, later, true, true),
            (lock(Governance, later), Governance, later + 1, true, true),
            (lock(Governance, later), Governance, later - 1, false, true),
            (lock(Governance, later), Compliance, later, false, true),
            (lock(Governance, later), None, 0, false, true),
            (lock(Compliance, later), Compliance, later + 1, true, true),
            (lock(Compliance, later), Compliance, later, true, true),
            (lock(Compliance, later), Compliance, later - 1, false, false),
            (lock(Compliance, later), Governance, later + 1, false, false),
            (lock(Compliance, later), None, 0, false, false),
            (lock(Compliance, NOW), None, 0, true, true),
        ] {
            assert_eq!(from.check_retention(to, until, NOW, false).is_ok(), without, "{from:?} -> {to:?} {until}");
            assert_eq!(
                from.check_retention(to, until, NOW, true).is_ok(),
                with,
                "{from:?} -> {to:?} {until}, bypassing"
            );
        }
    }

    proptest! {
        /// Whatever is tried, with every right: while a compliance retention lasts, the version stays locked at least
        /// as long.
        #[test]
        fn nobody_shortens_compliance(
            until in NOW + 1..NOW + 1000,
            tries in proptest::collection::vec((any_mode(), 0u64..NOW + 2000, 0u64..100, any::<bool>()), 0..20),
        ) {
            let mut lock = lock(Compliance, until);
            let mut now = NOW;
            for (mode, wanted, passes, bypass) in tries {
                now += passes;
                if now >= until {
                    break;
                }
                prop_assert_eq!(lock.check_removal(now, bypass), Err(Forbidden::Compliance));
                if lock.check_retention(mode, wanted, now, bypass).is_ok() {
                    lock = ObjectLock { mode: mode as i32, retain_until_ms: wanted, ..lock };
                }
                prop_assert!(lock.mode() == Compliance && lock.retain_until_ms >= until);
            }
        }
    }

    #[test]
    fn defaults_follow_the_calendar() {
        let at = |text: &str| calendar::parse_iso8601(text).unwrap();
        let rule =
            |days, years| BucketLock { default_mode: Governance as i32, default_days: days, default_years: years };
        let until = |rule: BucketLock, from: &str| rule.default_at(at(from)).retain_until_ms;
        assert_eq!(until(rule(1, 0), "2024-02-28T10:00:00Z"), at("2024-02-29T10:00:00Z"));
        assert_eq!(until(rule(0, 1), "2024-02-29T10:00:00Z"), at("2025-03-01T10:00:00Z"));
        assert_eq!(until(rule(0, 100), "2024-03-01T10:00:00Z"), at("2124-03-01T10:00:00Z"));
        assert!(BucketLock::default().default_at(NOW).is_empty());
    }
}
