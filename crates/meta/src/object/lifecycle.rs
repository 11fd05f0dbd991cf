//! Lifecycle rules, and the decision what they do to the versions of a key at a given time.
//!
//! The worker on the leader's node looks for keys to which something is due (`expire::due`) and names them in a command; apply
//! decides again, on the versions and rules that it finds then. So a PUT that comes in between is safe, a command that
//! is sent twice does nothing more, and a worker that dies loses nothing.
//!
//! Days are dates of the UTC calendar: what is due N days after a moment is due with the midnight that follows its Nth
//! next day. Source: "Lifecycle configuration elements", Amazon S3 User Guide.

use base::calendar::UtcDay;
use bytes::Bytes;

use super::command::{Header, ObjectVersion};

/// The lifecycle configuration of a bucket.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LifecycleRules {
    #[prost(message, repeated, tag = "1")]
    pub rules: Vec<LifecycleRule>,
}

/// One rule: a filter, all parts of which must match, and what is done.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LifecycleRule {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub enabled: bool,
    #[prost(bytes = "bytes", tag = "3")]
    pub prefix: Bytes,
    #[prost(message, repeated, tag = "4")]
    pub tags: Vec<Header>,
    /// Only objects larger than this, in bytes.
    #[prost(uint64, optional, tag = "5")]
    pub size_above: Option<u64>,
    /// Only objects smaller than this.
    #[prost(uint64, optional, tag = "6")]
    pub size_below: Option<u64>,

    /// The current version expires so many days after it was written ...
    #[prost(uint32, optional, tag = "7")]
    pub expire_days: Option<u32>,
    /// ... or at this moment (a midnight UTC), in milliseconds since 1970.
    #[prost(uint64, optional, tag = "8")]
    pub expire_date_ms: Option<u64>,
    /// Delete markers that hide nothing are removed.
    #[prost(bool, tag = "9")]
    pub expire_marker: bool,
    /// Versions are removed so many days after they stopped being the current one ...
    #[prost(uint32, optional, tag = "10")]
    pub noncurrent_days: Option<u32>,
    /// ... when at least so many newer noncurrent ones are there.
    #[prost(uint32, tag = "11")]
    pub noncurrent_kept: u32,
    /// Uploads in progress are aborted so many days after they began.
    #[prost(uint32, optional, tag = "12")]
    pub abort_days: Option<u32>,
    /// Where the bytes of current versions, and of others, are moved to.
    #[prost(message, repeated, tag = "14")]
    pub transitions: Vec<Transition>,
    #[prost(message, repeated, tag = "15")]
    pub noncurrent_transitions: Vec<Transition>,
    /// How the filter was written, to answer it the same.
    #[prost(enumeration = "FilterForm", tag = "13")]
    pub form: i32,
}

/// Versions move to a storage class so many days after they were written (or stopped being the current one), or at a
/// moment. Of several that are due, the one that fell due last counts.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Transition {
    #[prost(string, tag = "1")]
    pub class: String,
    #[prost(uint32, tag = "2")]
    pub days: u32,
    /// A midnight UTC, in milliseconds since 1970; then `days` does not count. Of current versions only.
    #[prost(uint64, optional, tag = "3")]
    pub date_ms: Option<u64>,
    /// Of noncurrent versions: at least so many newer ones are there.
    #[prost(uint32, tag = "4")]
    pub kept: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum FilterForm {
    /// A prefix beside the rule's other elements, as in the first version of the API.
    Prefix = 0,
    /// One condition in a filter.
    Filter = 1,
    /// Several in a filter.
    And = 2,
}

/// The time by which rules are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub now_ms: u64,
    /// 0: days are dates. Else, for tests, each "day" lasts so long and nothing is rounded.
    pub day_ms: u64,
}

impl Moment {
    fn is_due(self, since_ms: u64, days: u32) -> bool {
        self.now_ms >= self.due_ms(since_ms, days)
    }

    /// When what is due `days` days after a moment is due.
    fn due_ms(self, since_ms: u64, days: u32) -> u64 {
        match self.day_ms {
            0 => due_day(since_ms, days).start_ms(),
            day_ms => since_ms.saturating_add(u64::from(days).saturating_mul(day_ms)),
        }
    }
}

/// The day with whose midnight something is due `days` days after a moment.
fn due_day(since_ms: u64, days: u32) -> UtcDay {
    UtcDay::of(since_ms).plus(days.saturating_add(1))
}

/// What is done to a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// The current version expires as a plain DELETE would have it: a delete marker where the bucket is versioned.
    Expire,
    /// The version is removed for good.
    Remove,
}

impl LifecycleRule {
    /// Whether the filter matches. A delete marker has neither tags nor a size: a filter by them never matches one.
    fn matches(&self, key: &[u8], row: &ObjectVersion) -> bool {
        let filters_content = !self.tags.is_empty() || self.size_above.is_some() || self.size_below.is_some();
        if !self.enabled || !key.starts_with(&self.prefix) || row.delete_marker && filters_content {
            return false;
        }
        let size = row.body.as_ref().map_or(0, |body| body.size);
        let tags = row.attributes.as_ref().map_or(&[][..], |attributes| &attributes.tags);
        self.tags.iter().all(|tag| tags.contains(tag))
            && self.size_above.is_none_or(|bound| size > bound)
            && self.size_below.is_none_or(|bound| size < bound)
    }

    fn expires(&self, row: &ObjectVersion, at: Moment) -> bool {
        self.expire_days.is_some_and(|days| at.is_due(row.modified_ms, days))
            || self.expire_date_ms.is_some_and(|date| at.now_ms >= date)
    }
}

/// Judges the versions of one key, newest first.
pub struct Judge<'r> {
    rules: &'r LifecycleRules,
    key: &'r [u8],
    at: Moment,
    /// When the next newer version was written: then this one stopped being current.
    replaced_ms: Option<u64>,
    /// Noncurrent versions with content seen so far.
    noncurrent: u32,
}

impl<'r> Judge<'r> {
    pub fn new(rules: &'r LifecycleRules, key: &'r [u8], at: Moment) -> Judge<'r> {
        Judge { rules, key, at, replaced_ms: None, noncurrent: 0 }
    }

    /// The verdict on the next version. `is_last`: no older one follows.
    pub fn next(&mut self, row: &ObjectVersion, is_last: bool) -> Verdict {
        let verdict = match self.replaced_ms {
            None if row.delete_marker => self.on_current_marker(row, is_last),
            None => self.on_current(row),
            Some(replaced_ms) => self.on_noncurrent(row, replaced_ms),
        };
        if self.replaced_ms.is_some() && !row.delete_marker {
            self.noncurrent += 1;
        }
        self.replaced_ms = Some(row.modified_ms);
        verdict
    }

    /// The storage class that the next version should be in by now; `None`: where it is. Asked before the verdict.
    pub fn class_due(&self, row: &ObjectVersion) -> Option<&'r str> {
        if row.delete_marker {
            return None;
        }
        let rules = self.rules.rules.iter().filter(|rule| rule.matches(self.key, row));
        let due = rules.flat_map(|rule| match self.replaced_ms {
            None => rule.transitions.iter().map(|to| (to, row.modified_ms)).collect::<Vec<_>>(),
            Some(replaced_ms) => rule.noncurrent_transitions.iter().map(|to| (to, replaced_ms)).collect(),
        });
        let due = due.filter(|(to, _)| self.noncurrent >= to.kept);
        let due = due.map(|(to, since_ms)| (to.date_ms.unwrap_or_else(|| self.at.due_ms(since_ms, to.days)), to));
        let due = due.filter(|(due_ms, _)| *due_ms <= self.at.now_ms);
        due.max_by_key(|(due_ms, _)| *due_ms).map(|(_, to)| to.class.as_str())
    }

    fn matching<'a>(&'a self, row: &'a ObjectVersion) -> impl Iterator<Item = &'a LifecycleRule> {
        self.rules.rules.iter().filter(|rule| rule.matches(self.key, row))
    }

    fn on_current(&self, row: &ObjectVersion) -> Verdict {
        let expires = self.matching(row).any(|rule| rule.expires(row, self.at));
        if expires { Verdict::Expire } else { Verdict::Keep }
    }

    /// A marker that hides nothing goes when a rule says so, or when a rule would have expired it had it been an object.
    fn on_current_marker(&self, row: &ObjectVersion, is_only: bool) -> Verdict {
        let goes = is_only && self.matching(row).any(|rule| rule.expire_marker || rule.expires(row, self.at));
        if goes { Verdict::Remove } else { Verdict::Keep }
    }

    fn on_noncurrent(&self, row: &ObjectVersion, replaced_ms: u64) -> Verdict {
        let lock = row.attributes.as_ref().and_then(|attributes| attributes.lock).unwrap_or_default();
        if lock.check_removal(self.at.now_ms, false).is_err() {
            return Verdict::Keep;
        }
        let is_due = |rule: &LifecycleRule| {
            rule.noncurrent_days.is_some_and(|days| self.at.is_due(replaced_ms, days))
                && self.noncurrent >= rule.noncurrent_kept
        };
        if self.matching(row).any(is_due) { Verdict::Remove } else { Verdict::Keep }
    }
}

impl LifecycleRules {
    /// Whether an upload in progress is to be aborted.
    pub fn aborts(&self, key: &[u8], created_ms: u64, at: Moment) -> bool {
        let is_due = |rule: &LifecycleRule| {
            rule.enabled
                && key.starts_with(&rule.prefix)
                && rule.abort_days.is_some_and(|days| at.is_due(created_ms, days))
        };
        self.rules.iter().any(is_due)
    }

    /// When a current version expires, and by which rule: the earliest of those that match.
    pub fn expiry_of(&self, key: &[u8], row: &ObjectVersion) -> Option<(u64, &str)> {
        let matching = self.rules.iter().filter(|rule| rule.matches(key, row));
        let due = matching.filter_map(|rule| {
            let by_days = rule.expire_days.map(|days| due_day(row.modified_ms, days).start_ms());
            let ms = by_days.into_iter().chain(rule.expire_date_ms).min()?;
            Some((ms, rule.id.as_str()))
        });
        due.min_by_key(|(ms, _)| *ms)
    }

    /// The prefixes under which rules may find something, sorted, none within another.
    pub fn prefixes(&self) -> Vec<Bytes> {
        let mut prefixes: Vec<Bytes> =
            self.rules.iter().filter(|rule| rule.enabled).map(|rule| rule.prefix.clone()).collect();
        prefixes.sort();
        let mut kept: Vec<Bytes> = Vec::new();
        for prefix in prefixes {
            if kept.last().is_none_or(|wider| !prefix.starts_with(wider)) {
                kept.push(prefix);
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::command::{Attributes, Body};
    use crate::object::lock::{ObjectLock, RetentionMode};
    use base::calendar::parse_iso8601;

    fn ms(text: &str) -> u64 {
        parse_iso8601(text).unwrap()
    }

    fn at(text: &str) -> Moment {
        Moment { now_ms: ms(text), day_ms: 0 }
    }

    fn object(modified: &str) -> ObjectVersion {
        ObjectVersion {
            modified_ms: ms(modified),
            body: Some(Body { size: 100, ..Body::default() }),
            attributes: Some(Attributes::default()),
            ..ObjectVersion::default()
        }
    }

    fn marker(modified: &str) -> ObjectVersion {
        ObjectVersion { delete_marker: true, modified_ms: ms(modified), ..ObjectVersion::default() }
    }

    fn rule() -> LifecycleRule {
        LifecycleRule { id: "r".to_owned(), enabled: true, ..LifecycleRule::default() }
    }

    fn judge(rule: LifecycleRule, versions: &[ObjectVersion], at: Moment) -> Vec<Verdict> {
        let rules = LifecycleRules { rules: vec![rule] };
        let mut judge = Judge::new(&rules, b"dir/key", at);
        let last = versions.len() - 1;
        versions.iter().enumerate().map(|(i, row)| judge.next(row, i == last)).collect()
    }

    use Verdict::{Expire, Keep, Remove};

    #[test]
    fn days_end_at_the_midnight_after() {
        let rule = LifecycleRule { expire_days: Some(3), ..rule() };
        // The example of the S3 user guide: written on 15 January 10:30, three days: 19 January 00:00.
        let versions = [object("2014-01-15T10:30:00Z")];
        assert_eq!(judge(rule.clone(), &versions, at("2014-01-18T23:59:59.999Z")), [Keep]);
        assert_eq!(judge(rule.clone(), &versions, at("2014-01-19T00:00:00Z")), [Expire]);
        // Over the end of a leap February.
        let versions = [object("2024-02-27T23:59:59Z")];
        assert_eq!(judge(rule.clone(), &versions, at("2024-03-01T23:00:00Z")), [Keep]);
        assert_eq!(judge(rule.clone(), &versions, at("2024-03-02T00:00:00Z")), [Expire]);
        let rules = LifecycleRules { rules: vec![rule] };
        assert_eq!(rules.expiry_of(b"k", &object("2014-01-15T10:30:00Z")), Some((ms("2014-01-19T00:00:00Z"), "r")));
    }

    #[test]
    fn test_days_are_short_and_not_rounded() {
        let rule = LifecycleRule { expire_days: Some(2), ..rule() };
        let versions = [object("2024-01-01T00:00:00Z")];
        let after = |seconds: u64| Moment { now_ms: ms("2024-01-01T00:00:00Z") + seconds * 1000u64, day_ms: 10_000 };
        assert_eq!(judge(rule.clone(), &versions, after(19)), [Keep]);
        assert_eq!(judge(rule, &versions, after(20)), [Expire]);
    }

    #[test]
    fn dates() {
        let rule = LifecycleRule { expire_date_ms: Some(ms("2024-05-01T00:00:00Z")), ..rule() };
        assert_eq!(judge(rule.clone(), &[object("2024-04-30T23:00:00Z")], at("2024-04-30T23:59:59Z")), [Keep]);
        assert_eq!(judge(rule.clone(), &[object("2024-04-30T23:00:00Z")], at("2024-05-01T00:00:00Z")), [Expire]);
        assert_eq!(judge(rule, &[object("2024-06-01T00:00:00Z")], at("2024-06-02T00:00:00Z")), [Expire], "ever after");
    }

    #[test]
    fn filters() {
        let now = at("2025-01-01T00:00:00Z");
        let tag = |name: &str, value: &str| Header { name: name.to_owned(), value: value.to_owned() };
        let mut row = object("2024-01-01T00:00:00Z");
        row.attributes = Some(Attributes { tags: vec![tag("a", "1"), tag("b", "2")], ..Attributes::default() });
        let base = LifecycleRule { expire_days: Some(1), ..rule() };
        let of = |rule: LifecycleRule| judge(rule, &[row.clone()], now)[0];
        assert_eq!(of(LifecycleRule { prefix: Bytes::from_static(b"dir/"), ..base.clone() }), Expire);
        assert_eq!(of(LifecycleRule { prefix: Bytes::from_static(b"dirs"), ..base.clone() }), Keep);
        assert_eq!(of(LifecycleRule { tags: vec![tag("a", "1"), tag("b", "2")], ..base.clone() }), Expire);
        assert_eq!(of(LifecycleRule { tags: vec![tag("a", "1"), tag("c", "2")], ..base.clone() }), Keep);
        assert_eq!(of(LifecycleRule { tags: vec![tag("a", "2")], ..base.clone() }), Keep);
        assert_eq!(of(LifecycleRule { size_above: Some(100), ..base.clone() }), Keep);
        assert_eq!(of(LifecycleRule { size_above: Some(99), size_below: Some(101), ..base.clone() }), Expire);
        assert_eq!(of(LifecycleRule { size_below: Some(100), ..base.clone() }), Keep);
        assert_eq!(of(LifecycleRule { enabled: false, ..base }), Keep);
    }

    #[test]
    fn noncurrent_versions_count_from_when_they_were_replaced() {
        let versions = [object("2024-01-10T12:00:00Z"), object("2024-01-05T12:00:00Z"), object("2024-01-01T12:00:00Z")];
        let rule = LifecycleRule { noncurrent_days: Some(2), ..rule() };
        assert_eq!(judge(rule.clone(), &versions, at("2024-01-07T23:59:59Z")), [Keep, Keep, Keep]);
        assert_eq!(judge(rule.clone(), &versions, at("2024-01-08T00:00:00Z")), [Keep, Keep, Remove]);
        assert_eq!(judge(rule.clone(), &versions, at("2024-01-13T00:00:00Z")), [Keep, Remove, Remove]);
        let keep_one = LifecycleRule { noncurrent_kept: 1, ..rule };
        assert_eq!(judge(keep_one, &versions, at("2024-01-13T00:00:00Z")), [Keep, Keep, Remove]);
    }

    #[test]
    fn markers_do_not_count_among_the_newer_versions_that_are_kept() {
        let versions = [
            object("2024-01-10T00:00:00Z"),
            marker("2024-01-09T00:00:00Z"),
            object("2024-01-08T00:00:00Z"),
            object("2024-01-07T00:00:00Z"),
        ];
        let rule = LifecycleRule { noncurrent_days: Some(1), noncurrent_kept: 1, ..rule() };
        assert_eq!(judge(rule, &versions, at("2024-02-01T00:00:00Z")), [Keep, Keep, Keep, Remove]);
    }

    #[test]
    fn markers_that_hide_nothing_go() {
        let cleans = LifecycleRule { expire_marker: true, ..rule() };
        let now = at("2024-02-01T00:00:00Z");
        assert_eq!(judge(cleans.clone(), &[marker("2024-01-31T00:00:00Z")], now), [Remove]);
        let hiding = [marker("2024-01-31T00:00:00Z"), object("2024-01-30T00:00:00Z")];
        assert_eq!(judge(cleans.clone(), &hiding, now), [Keep, Keep]);
        let by_age = LifecycleRule { expire_days: Some(5), ..rule() };
        assert_eq!(judge(by_age.clone(), &[marker("2024-01-31T00:00:00Z")], now), [Keep], "not old enough");
        assert_eq!(judge(by_age, &[marker("2024-01-20T00:00:00Z")], now), [Remove]);
        let sized = LifecycleRule { size_below: Some(5), ..cleans };
        assert_eq!(judge(sized, &[marker("2024-01-20T00:00:00Z")], now), [Keep], "a marker has no size");
    }

    #[test]
    fn locked_versions_stay() {
        let mut old = object("2024-01-01T00:00:00Z");
        let mode = RetentionMode::Governance as i32;
        let lock = ObjectLock { mode, retain_until_ms: ms("2024-06-01T00:00:00Z"), legal_hold: false };
        old.attributes = Some(Attributes { lock: Some(lock), ..Attributes::default() });
        let versions = [object("2024-01-10T00:00:00Z"), old];
        let rule = LifecycleRule { noncurrent_days: Some(1), ..rule() };
        assert_eq!(judge(rule.clone(), &versions, at("2024-05-31T00:00:00Z")), [Keep, Keep]);
        assert_eq!(judge(rule, &versions, at("2024-06-01T00:00:00Z")), [Keep, Remove]);
    }

    #[test]
    fn uploads_and_prefixes() {
        let of = |prefix: &'static str, enabled| LifecycleRule {
            prefix: Bytes::from_static(prefix.as_bytes()),
            abort_days: Some(1),
            enabled,
            ..rule()
        };
        let rules = LifecycleRules { rules: vec![of("b/x", true), of("a", false), of("b/", true), of("c", true)] };
        assert_eq!(rules.prefixes(), ["b/", "c"]);
        let created = ms("2024-01-01T10:00:00Z");
        assert!(!rules.aborts(b"b/1", created, at("2024-01-02T23:00:00Z")));
        assert!(rules.aborts(b"b/1", created, at("2024-01-03T00:00:00Z")));
        assert!(!rules.aborts(b"a/1", created, at("2025-01-03T00:00:00Z")));
    }
}
