//! Lifecycle configurations as XML: read, checked, written again in the form they came in.

use crate::date::{http_date, iso8601};
use crate::encoding::hex;
use crate::error::{Code, Result, S3Error};
use crate::names;
use crate::request::{Reply, malformed_xml};
use crate::xml::{Element, Writer};
use base::calendar::{UtcDay, parse_iso8601};
use bytes::Bytes;
use client::{
    BucketInfo, Configuration, ConfigurationKind, FilterForm, Header, LifecycleRule, LifecycleRules, ObjectVersion,
    Transition,
};
use std::collections::BTreeSet;

/// As in S3.
const RULES_MAX: usize = 1000;
const ID_LENGTH_MAX: usize = 255;
const NONCURRENT_KEPT_MAX: u32 = 100;

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    S3Error::new(Code::InvalidArgument, message)
}

/// The rules of a bucket, if it has any.
pub fn of_bucket(bucket: &BucketInfo) -> Option<LifecycleRules> {
    bucket.configuration(ConfigurationKind::Lifecycle)?.decode()
}

pub fn encode(rules: &LifecycleRules) -> Bytes {
    Configuration::encode(rules)
}

/// `x-amz-expiration`: when a current version expires, and by which rule.
pub fn insert_expiration(reply: &mut Reply, bucket: &BucketInfo, key: &[u8], object: &ObjectVersion) {
    let Some(rules) = of_bucket(bucket) else { return };
    if let Some((ms, id)) = rules.expiry_of(key, object) {
        let mut encoded = String::new();
        crate::encoding::percent_encode_into(&mut encoded, id.as_bytes(), true);
        let value = format!("expiry-date=\"{}\", rule-id=\"{encoded}\"", http_date(ms));
        crate::request::insert(reply, names::EXPIRATION, &value);
    }
}

/// Reads a `LifecycleConfiguration`. Rules without an id get one from `draw`, which makes random bytes.
pub fn read(document: &Element, mut draw: impl FnMut() -> [u8; 16]) -> Result<LifecycleRules> {
    let mut rules = Vec::new();
    for element in document.all("Rule") {
        let mut rule = read_rule(element)?;
        if rule.id.is_empty() {
            rule.id = hex(&draw());
        }
        rules.push(rule);
    }
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(malformed_xml("a lifecycle configuration has 1 to 1000 rules"));
    }
    let mut ids: Vec<&str> = rules.iter().map(|rule| rule.id.as_str()).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(invalid("Rule ID must be unique. Found same ID for more than one rule"));
    }
    Ok(LifecycleRules { rules })
}

/// What is misspelt or misplaced would be ignored, and a rule without its filter deletes everything.
fn only(element: &Element, names: &[&str]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for child in &element.children {
        let name = child.name.as_str();
        if !names.contains(&name) {
            return Err(malformed_xml(&format!("{} does not belong in {}", child.name, element.name)));
        }
        if !seen.insert(name) && name != "Tag" && !name.ends_with("Transition") {
            return Err(malformed_xml(&format!("{} is there twice in {}", child.name, element.name)));
        }
    }
    Ok(())
}

fn read_rule(element: &Element) -> Result<LifecycleRule> {
    const FILTER: [&str; 6] = ["Prefix", "Tag", "Tags", "ObjectSizeGreaterThan", "ObjectSizeLessThan", "And"];
    const RULE: [&str; 9] = [
        "ID",
        "Status",
        "Prefix",
        "Filter",
        "Expiration",
        "NoncurrentVersionExpiration",
        "AbortIncompleteMultipartUpload",
        "Transition",
        "NoncurrentVersionTransition",
    ];
    only(element, &RULE)?;
    if let Some(filter) = element.child("Filter") {
        only(filter, &FILTER)?;
        if let Some(and) = filter.child("And") {
            only(and, &FILTER[..5])?;
            if filter.children.len() > 1 {
                return Err(malformed_xml("And is the only part of its Filter"));
            }
        }
    }
    for (name, parts) in [
        ("Expiration", &["Days", "Date", "ExpiredObjectDeleteMarker"][..]),
        ("NoncurrentVersionExpiration", &["NoncurrentDays", "NewerNoncurrentVersions"][..]),
        ("AbortIncompleteMultipartUpload", &["DaysAfterInitiation"][..]),
    ] {
        if let Some(part) = element.child(name) {
            only(part, parts)?;
        }
    }
    let id = element.child_text("ID").unwrap_or_default().to_owned();
    if id.len() > ID_LENGTH_MAX {
        return Err(invalid("ID length should not exceed allowed limit of 255"));
    }
    let enabled = match element.child_text("Status") {
        Some("Enabled") => true,
        Some("Disabled") => false,
        _ => return Err(malformed_xml("the Status of a rule is Enabled or Disabled")),
    };
    let mut rule = LifecycleRule { id, enabled, ..LifecycleRule::default() };
    read_filter(element, &mut rule)?;
    read_expiration(element, &mut rule)?;
    if let Some(noncurrent) = element.child("NoncurrentVersionExpiration") {
        let days = positive(noncurrent, "NoncurrentDays")?;
        rule.noncurrent_days = Some(days.ok_or_else(|| malformed_xml("NoncurrentDays is missing"))?);
        rule.noncurrent_kept = read_kept(noncurrent)?;
    }
    if let Some(abort) = element.child("AbortIncompleteMultipartUpload") {
        let days = positive(abort, "DaysAfterInitiation")?;
        rule.abort_days = Some(days.ok_or_else(|| malformed_xml("DaysAfterInitiation is missing"))?);
        if !rule.tags.is_empty() || rule.size_above.is_some() || rule.size_below.is_some() {
            return Err(invalid("AbortIncompleteMultipartUpload cannot be specified with a filter by tags or size"));
        }
    }
    read_transitions(element, &mut rule)?;
    let does_something = !rule.transitions.is_empty()
        || !rule.noncurrent_transitions.is_empty()
        || rule.expire_days.is_some()
        || rule.expire_date_ms.is_some()
        || rule.expire_marker
        || rule.noncurrent_days.is_some()
        || rule.abort_days.is_some();
    if !does_something {
        return Err(invalid("At least one action needs to be specified in a rule"));
    }
    Ok(rule)
}

fn read_filter(element: &Element, rule: &mut LifecycleRule) -> Result<()> {
    let (parts, form) = match (element.child("Filter"), element.child("Prefix")) {
        (Some(_), Some(_)) => return Err(malformed_xml("a rule has either a Filter or a Prefix")),
        (None, None) => return Err(malformed_xml("a rule has a Filter or a Prefix")),
        (None, Some(_)) => (element, FilterForm::Prefix),
        (Some(filter), None) => match filter.child("And") {
            Some(and) => (and, FilterForm::And),
            None => (filter, FilterForm::Filter),
        },
    };
    rule.form = form as i32;
    rule.prefix = parts.child("Prefix").map(|prefix| Bytes::from(prefix.text.clone())).unwrap_or_default();
    if form == FilterForm::Prefix {
        return Ok(());
    }
    // `Tags` is how some clients write a list of them.
    let listed = parts.child("Tags").into_iter().flat_map(|tags| tags.all("Tag"));
    for tag in parts.all("Tag").chain(listed) {
        let text = |name: &str| tag.child(name).map(|child| child.text.clone());
        let name = text("Key").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| malformed_xml("a tag of a filter has no key"))?;
        if rule.tags.iter().any(|known| known.name == name) {
            return Err(invalid("Duplicate Tag Keys are not allowed."));
        }
        rule.tags.push(Header { name, value: text("Value").unwrap_or_default() });
    }
    let size = |name: &str| match parts.child_text(name).map(str::parse::<u64>) {
        None => Ok(None),
        Some(Ok(size)) => Ok(Some(size)),
        Some(Err(_)) => Err(invalid(format!("'{name}' must be a whole number of bytes"))),
    };
    rule.size_above = size("ObjectSizeGreaterThan")?;
    rule.size_below = size("ObjectSizeLessThan")?;
    if rule.size_above.zip(rule.size_below).is_some_and(|(above, below)| above.saturating_add(1) >= below) {
        return Err(invalid("'ObjectSizeLessThan' has to be a value greater than 'ObjectSizeGreaterThan'"));
    }
    Ok(())
}

fn read_transitions(element: &Element, rule: &mut LifecycleRule) -> Result<()> {
    for transition in element.all("Transition") {
        only(transition, &["Days", "Date", "StorageClass"])?;
        let days = whole(transition, "Days", 0)?;
        let date_ms = transition.child_text("Date").map(midnight).transpose()?;
        if days.is_some() == date_ms.is_some() {
            return Err(malformed_xml("a Transition has either Days or a Date"));
        }
        let days = days.unwrap_or(0);
        if date_ms.is_none() && rule.expire_days.is_some_and(|expire_days| expire_days <= days) {
            let message = "'Days' in the Expiration action must be greater than 'Days' in the Transition action";
            return Err(invalid(message));
        }
        rule.transitions.push(Transition { class: class_of(transition)?, days, date_ms, kept: 0 });
    }
    for transition in element.all("NoncurrentVersionTransition") {
        only(transition, &["NoncurrentDays", "NewerNoncurrentVersions", "StorageClass"])?;
        let days = whole(transition, "NoncurrentDays", 0)?;
        let days = days.ok_or_else(|| malformed_xml("NoncurrentDays is missing"))?;
        if rule.noncurrent_days.is_some_and(|expire_days| expire_days <= days) {
            let message = "'NoncurrentDays' in the NoncurrentVersionExpiration action must be greater than \
                           'NoncurrentDays' in the NoncurrentVersionTransition action";
            return Err(invalid(message));
        }
        let kept = read_kept(transition)?;
        rule.noncurrent_transitions.push(Transition { class: class_of(transition)?, days, date_ms: None, kept });
    }
    for listed in [&rule.transitions, &rule.noncurrent_transitions] {
        let classes: BTreeSet<&str> = listed.iter().map(|transition| transition.class.as_str()).collect();
        if classes.len() < listed.len() {
            return Err(invalid("'StorageClass' must be different for the Transition actions of a rule"));
        }
    }
    let by_date = rule.expire_date_ms.is_some() || rule.transitions.iter().any(|to| to.date_ms.is_some());
    let by_days = rule.expire_days.is_some() || rule.transitions.iter().any(|to| to.date_ms.is_none());
    if by_date && by_days {
        let message = "Found mixed 'Date' and 'Days' based Expiration and Transition actions in lifecycle rule";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    Ok(())
}

fn class_of(transition: &Element) -> Result<String> {
    let class = transition.child_text("StorageClass").filter(|class| !class.is_empty());
    class.map(str::to_owned).ok_or_else(|| malformed_xml("a transition has a StorageClass"))
}

fn read_kept(noncurrent: &Element) -> Result<u32> {
    let kept = positive(noncurrent, "NewerNoncurrentVersions")?.unwrap_or(0);
    if kept > NONCURRENT_KEPT_MAX {
        return Err(invalid("'NewerNoncurrentVersions' must be between 1 and 100"));
    }
    Ok(kept)
}

fn midnight(text: &str) -> Result<u64> {
    let ms = parse_iso8601(text).or_else(|| parse_iso8601(&format!("{text}T00:00:00Z")));
    let ms = ms.ok_or_else(|| malformed_xml("a Date is not of ISO 8601"))?;
    if UtcDay::of(ms).start_ms() != ms {
        return Err(invalid("'Date' must be at midnight GMT"));
    }
    Ok(ms)
}

fn read_expiration(element: &Element, rule: &mut LifecycleRule) -> Result<()> {
    let Some(expiration) = element.child("Expiration") else { return Ok(()) };
    rule.expire_days = positive(expiration, "Days")?;
    rule.expire_date_ms = expiration.child_text("Date").map(midnight).transpose()?;
    rule.expire_marker = match expiration.child_text("ExpiredObjectDeleteMarker") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(malformed_xml("ExpiredObjectDeleteMarker is true or false")),
    };
    let given = [rule.expire_days.is_some(), rule.expire_date_ms.is_some(), rule.expire_marker];
    if given.into_iter().filter(|given| *given).count() > 1 {
        return Err(malformed_xml("an Expiration has one of Days, Date and ExpiredObjectDeleteMarker"));
    }
    if rule.expire_marker && !rule.tags.is_empty() {
        return Err(invalid("ExpiredObjectDeleteMarker cannot be specified with Tags."));
    }
    Ok(())
}

/// A number of days or versions: 1 to 2^31 - 1.
fn positive(parent: &Element, name: &str) -> Result<Option<u32>> {
    whole(parent, name, 1)
}

/// A number from `least` to 2^31 - 1.
fn whole(parent: &Element, name: &str, least: i64) -> Result<Option<u32>> {
    let Some(text) = parent.child_text(name) else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(number) if (least..=i64::from(i32::MAX)).contains(&number) => Ok(u32::try_from(number).ok()),
        Ok(_) => Err(invalid(format!("'{name}' for an action must be at least {least}"))),
        Err(_) => Err(malformed_xml("a number cannot be read")),
    }
}

/// The document that [`read`] would read.
pub fn write(rules: &LifecycleRules) -> String {
    Writer::answer("LifecycleConfiguration", |xml| {
        for rule in &rules.rules {
            xml.element("Rule", |xml| write_rule(xml, rule));
        }
    })
}

fn write_rule(xml: &mut Writer, rule: &LifecycleRule) {
    xml.text("ID", &rule.id);
    let prefix = String::from_utf8_lossy(&rule.prefix).into_owned();
    match rule.form() {
        FilterForm::Prefix => xml.text("Prefix", &prefix),
        FilterForm::Filter => xml.element("Filter", |xml| write_parts(xml, rule, &prefix)),
        FilterForm::And => xml.element("Filter", |xml| xml.element("And", |xml| write_parts(xml, rule, &prefix))),
    }
    xml.text("Status", if rule.enabled { "Enabled" } else { "Disabled" });
    if rule.expire_days.is_some() || rule.expire_date_ms.is_some() || rule.expire_marker {
        xml.element("Expiration", |xml| {
            if let Some(days) = rule.expire_days {
                xml.number("Days", u64::from(days));
            }
            if let Some(ms) = rule.expire_date_ms {
                xml.text("Date", &iso8601(ms));
            }
            if rule.expire_marker {
                xml.flag("ExpiredObjectDeleteMarker", true);
            }
        });
    }
    for transition in &rule.transitions {
        xml.element("Transition", |xml| {
            match transition.date_ms {
                Some(ms) => xml.text("Date", &iso8601(ms)),
                None => xml.number("Days", u64::from(transition.days)),
            }
            xml.text("StorageClass", &transition.class);
        });
    }
    for transition in &rule.noncurrent_transitions {
        xml.element("NoncurrentVersionTransition", |xml| {
            xml.number("NoncurrentDays", u64::from(transition.days));
            if transition.kept > 0 {
                xml.number("NewerNoncurrentVersions", u64::from(transition.kept));
            }
            xml.text("StorageClass", &transition.class);
        });
    }
    if let Some(days) = rule.noncurrent_days {
        xml.element("NoncurrentVersionExpiration", |xml| {
            xml.number("NoncurrentDays", u64::from(days));
            if rule.noncurrent_kept > 0 {
                xml.number("NewerNoncurrentVersions", u64::from(rule.noncurrent_kept));
            }
        });
    }
    if let Some(days) = rule.abort_days {
        xml.element("AbortIncompleteMultipartUpload", |xml| xml.number("DaysAfterInitiation", u64::from(days)));
    }
}

fn write_parts(xml: &mut Writer, rule: &LifecycleRule, prefix: &str) {
    let only_part = rule.tags.is_empty() && rule.size_above.is_none() && rule.size_below.is_none();
    if !prefix.is_empty() || only_part {
        xml.text("Prefix", prefix);
    }
    for tag in &rule.tags {
        xml.element("Tag", |xml| {
            xml.text("Key", &tag.name);
            xml.text("Value", &tag.value);
        });
    }
    if let Some(size) = rule.size_above {
        xml.number("ObjectSizeGreaterThan", size);
    }
    if let Some(size) = rule.size_below {
        xml.number("ObjectSizeLessThan", size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(inside: &str) -> Result<LifecycleRules> {
        let document = format!("<LifecycleConfiguration>{inside}</LifecycleConfiguration>");
        read(&crate::xml::read(document.as_bytes()).unwrap(), || [7; 16])
    }

    fn rule(parts: &str) -> String {
        format!("<Rule><ID>r</ID><Status>Enabled</Status>{parts}</Rule>")
    }

    const DAYS: &str = "<Expiration><Days>3</Days></Expiration>";

    #[test]
    fn what_was_read_is_written_the_same() {
        for parts in [
            "<Prefix>a/</Prefix><Expiration><Days>3</Days></Expiration>",
            "<Filter><Prefix></Prefix></Filter><Expiration><Date>2026-01-01T00:00:00Z</Date></Expiration>",
            "<Filter></Filter><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>",
            "<Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter><Expiration><Days>1</Days></Expiration>",
            "<Filter><And><Prefix>p &amp;</Prefix><Tag><Key>k</Key><Value>v</Value></Tag><ObjectSizeGreaterThan>5\
             </ObjectSizeGreaterThan><ObjectSizeLessThan>9</ObjectSizeLessThan></And></Filter>\
             <NoncurrentVersionExpiration><NoncurrentDays>2</NoncurrentDays><NewerNoncurrentVersions>4\
             </NewerNoncurrentVersions></NoncurrentVersionExpiration>",
            "<Prefix/><Transition><Days>0</Days><StorageClass>A</StorageClass></Transition><Transition><Days>9</Days>\
             <StorageClass>B</StorageClass></Transition><NoncurrentVersionTransition><NoncurrentDays>2</NoncurrentDays>\
             <NewerNoncurrentVersions>3</NewerNoncurrentVersions><StorageClass>B</StorageClass>\
             </NoncurrentVersionTransition>",
            "<Prefix/><Transition><Date>2026-01-01T00:00:00Z</Date><StorageClass>A</StorageClass></Transition>",
            "<Prefix/><AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation>\
             </AbortIncompleteMultipartUpload>",
        ] {
            let rules = parse(&rule(parts)).unwrap();
            let again = read(&crate::xml::read(write(&rules).as_bytes()).unwrap(), || [0; 16]).unwrap();
            assert_eq!(again, rules, "{parts}");
        }
        let unnamed = parse(&rule(&format!("<Prefix/>{DAYS}")).replace("<ID>r</ID>", "")).unwrap();
        assert_eq!(unnamed.rules[0].id, "07".repeat(16));
    }

    #[test]
    fn mistakes_have_their_codes() {
        let code = |inside: &str| parse(inside).map(|_| ()).unwrap_err().code;
        let with = |parts: &str| rule(&format!("<Prefix/>{parts}"));
        let expiration = |inside: &str| with(&format!("<Expiration>{inside}</Expiration>"));
        for (inside, expected) in [
            (String::new(), Code::MalformedXML),
            (rule(DAYS), Code::MalformedXML),
            (with(DAYS).repeat(2), Code::InvalidArgument),
            (with(DAYS).replace("<ID>r", &format!("<ID>{}", "r".repeat(256))), Code::InvalidArgument),
            (with(DAYS).replace("Enabled", "enabled"), Code::MalformedXML),
            (with(""), Code::InvalidArgument),
            (expiration("<Days>0</Days>"), Code::InvalidArgument),
            (expiration("<Days>-1</Days>"), Code::InvalidArgument),
            (expiration("<Days>x</Days>"), Code::MalformedXML),
            (expiration("<Days>1</Days><Date>2026-01-01T00:00:00Z</Date>"), Code::MalformedXML),
            (expiration("<Date>1970-08-22T19:08:21Z</Date>"), Code::InvalidArgument),
            (expiration("<Date>20200101</Date>"), Code::MalformedXML),
            (with("<Filter/>").replace("</Rule>", &format!("{DAYS}</Rule>")), Code::MalformedXML),
            (with("<Transition><Days>1</Days></Transition>"), Code::MalformedXML),
            (with("<Transition><StorageClass>A</StorageClass></Transition>"), Code::MalformedXML),
            (with("<Transition><Date>20220927</Date><StorageClass>A</StorageClass></Transition>"), Code::MalformedXML),
            (
                with(
                    "<Transition><Days>1</Days><StorageClass>A</StorageClass></Transition>\
                      <Transition><Days>2</Days><StorageClass>A</StorageClass></Transition>",
                ),
                Code::InvalidArgument,
            ),
            (
                with(
                    "<Transition><Days>3</Days><StorageClass>A</StorageClass></Transition>\
                      <Expiration><Days>3</Days></Expiration>",
                ),
                Code::InvalidArgument,
            ),
            (
                with(
                    "<Transition><Date>2026-01-01T00:00:00Z</Date><StorageClass>A</StorageClass></Transition>\
                      <Expiration><Days>3</Days></Expiration>",
                ),
                Code::InvalidRequest,
            ),
            (with("<NoncurrentVersionExpiration/>"), Code::MalformedXML),
        ] {
            assert_eq!(code(&inside), expected, "{inside}");
        }
    }

    /// A filter with a misspelt or misplaced part once became one without it: the whole bucket.
    #[test]
    fn no_part_of_a_rule_is_passed_over() {
        let tag = "<Tag><Key>k</Key><Value>v</Value></Tag>";
        for parts in [
            format!("<Filter><Perfix>a/</Perfix></Filter>{DAYS}"),
            format!("<Filter><prefix>a/</prefix></Filter>{DAYS}"),
            format!("<Filter><Key>k</Key></Filter>{DAYS}"),
            format!("<Filter><And><Prefix>a/</Prefix>{tag}</And><Prefix>b/</Prefix></Filter>{DAYS}"),
            format!("<Filter><And><And>{tag}</And></And></Filter>{DAYS}"),
            format!("<Filter><Prefix>a/</Prefix><Prefix>b/</Prefix></Filter>{DAYS}"),
            format!("<Filter/><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan>{DAYS}"),
            format!("<Filter/>{tag}{DAYS}"),
            format!("<Prefix>a/</Prefix>{DAYS}{DAYS}"),
            "<Filter/><Expiration><days>3</days></Expiration>".to_owned(),
            "<Filter/><Expiration><Days>3</Days><NewerNoncurrentVersions>1</NewerNoncurrentVersions></Expiration>"
                .to_owned(),
            "<Filter/><NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays><Days>1</Days>\
             </NoncurrentVersionExpiration>"
                .to_owned(),
        ] {
            assert_eq!(parse(&rule(&parts)).unwrap_err().code, Code::MalformedXML, "{parts}");
        }
        let both =
            parse(&rule(&format!("<Filter>{tag}<Tag><Key>l</Key><Value>w</Value></Tag></Filter>{DAYS}"))).unwrap();
        assert_eq!(both.rules[0].tags.len(), 2);
    }
}
