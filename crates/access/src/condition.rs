//! Conditions of statements: operators, qualifiers, and what a request brings to compare.
//!
//! Source: "IAM JSON policy elements: Condition operators", AWS IAM User Guide.

use crate::json::Json;
use crate::pattern::{Pattern, Reading};
use base::calendar;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Conditions of one statement; values of one condition.
const TESTS_MAX: usize = 100;
const VALUES_MAX: usize = 1000;

/// Steps that comparing texts may take in one decision: tens of milliseconds. The longest policy against the longest key
/// takes far fewer; only long headers against many wildcards or variables take more.
const STEPS_MAX: usize = 8 << 20;

/// Of the steps of one decision, those that its request is not charged with: policies of a few dozen statements take no
/// more, and a request that names a thousand objects makes up to two thousand decisions.
const STEPS_FREE: usize = 16 << 10;

/// What is known about a request, by condition key in lower case. A key without a value is absent. It serves one decision:
/// what comparing costs is counted here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    values: BTreeMap<String, Vec<String>>,
    steps: Cell<usize>,
}

impl Context {
    /// Sets a key to one value.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.values.insert(key.to_ascii_lowercase(), vec![value.into()]);
    }

    /// Adds a value to a key that may have several.
    pub fn add(&mut self, key: &str, value: impl Into<String>) {
        self.values.entry(key.to_ascii_lowercase()).or_default().push(value.into());
    }

    fn all(&self, key: &str) -> &[String] {
        self.values.get(key).map_or(&[], Vec::as_slice)
    }

    /// The value of a key that has exactly one.
    pub(crate) fn single(&self, key: &str) -> Option<&str> {
        match self.all(key) {
            [value] => Some(value),
            _ => None,
        }
    }

    /// `None` from the moment on in which a decision has cost too much: what is compared from then on is not known.
    pub(crate) fn spend(&self, steps: usize) -> Option<()> {
        self.steps.set(self.steps.get().saturating_add(steps));
        (!self.is_exhausted()).then_some(())
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.steps.get() > STEPS_MAX
    }
}

/// What all decisions of one request have cost together. Once that is too much, the caller decides nothing more: else
/// whoever names a thousand objects in one request could have a thousand costly decisions made.
#[derive(Debug, Default)]
pub struct Cost(AtomicUsize);

impl Cost {
    /// Charges for the decision that `context` served.
    pub fn charge(&self, context: &Context) {
        self.0.fetch_add(context.steps.get().saturating_sub(STEPS_FREE), Ordering::Relaxed);
    }

    pub fn is_too_much(&self) -> bool {
        self.0.load(Ordering::Relaxed) > STEPS_MAX - STEPS_FREE
    }
}

/// Keys that requests to this server can have, in lower case. A condition on any other key could never mean what its
/// author wanted, so a policy that names one is refused.
const KEYS: &[&str] = &[
    "aws:currenttime",
    "aws:epochtime",
    "aws:principalarn",
    "aws:principaltype",
    "aws:referer",
    "aws:requestedregion",
    "aws:securetransport",
    "aws:sourceip",
    "aws:useragent",
    "aws:userid",
    "aws:username",
    "s3:authtype",
    "s3:delimiter",
    "s3:if-match",
    "s3:if-none-match",
    "s3:locationconstraint",
    "s3:max-keys",
    "s3:object-lock-legal-hold",
    "s3:object-lock-mode",
    "s3:object-lock-remaining-retention-days",
    "s3:object-lock-retain-until-date",
    "s3:objectcreationoperation",
    "s3:prefix",
    "s3:requestobjecttagkeys",
    "s3:signatureage",
    "s3:signatureversion",
    "s3:versionid",
    "s3:x-amz-acl",
    "s3:x-amz-content-sha256",
    "s3:x-amz-copy-source",
    "s3:x-amz-grant-full-control",
    "s3:x-amz-grant-read",
    "s3:x-amz-grant-read-acp",
    "s3:x-amz-grant-write",
    "s3:x-amz-grant-write-acp",
    "s3:x-amz-metadata-directive",
    "s3:x-amz-object-ownership",
    "s3:x-amz-server-side-encryption",
    "s3:x-amz-server-side-encryption-aws-kms-key-id",
    "s3:x-amz-server-side-encryption-customer-algorithm",
    "s3:x-amz-storage-class",
    "s3:x-amz-website-redirect-location",
    "s3:x-henge-fence",
];

/// Keys that go on with the name of a tag.
pub(crate) const EXISTING_TAG: &str = "s3:existingobjecttag/";
const REQUEST_TAG: &str = "s3:requestobjecttag/";

/// `key` in lower case.
pub(crate) fn is_known_key(key: &str) -> bool {
    let of_tag = |prefix: &str| key.strip_prefix(prefix).is_some_and(|tag| !tag.is_empty());
    KEYS.contains(&key) || of_tag(EXISTING_TAG) || of_tag(REQUEST_TAG)
}

/// One key of one operator.
#[derive(Clone, Debug)]
pub struct Test {
    pub key: String,
    operator: Operator,
    negated: bool,
    qualifier: Qualifier,
    if_exists: bool,
    values: Vec<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qualifier {
    None,
    ForAnyValue,
    ForAllValues,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    /// Exact; with or without regard to case.
    Text {
        fold_case: bool,
    },
    /// With wildcards.
    Like,
    /// ARNs: with wildcards, part by part.
    Arn,
    Number(Order),
    Date(Order),
    Bool,
    Binary,
    Ip,
    /// Whether the key is absent.
    Null,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug)]
enum Value {
    Pattern(Pattern),
    Number(f64),
    /// Milliseconds since 1970.
    Date(u64),
    Bool(bool),
    Network {
        address: IpAddr,
        bits: u8,
    },
}

/// Reads a `Condition` element. The error says what is wrong.
pub fn read(condition: &Json, variables: bool) -> Result<Vec<Test>, String> {
    let Json::Object(operators) = condition else { return Err("Condition is not an object".to_owned()) };
    let mut tests = Vec::new();
    for (name, keys) in operators {
        let Json::Object(keys) = keys else { return Err(format!("the condition {name} is not an object")) };
        for (key, values) in keys {
            tests.push(Test::read(name, key, values, variables)?);
        }
    }
    if tests.len() > TESTS_MAX {
        return Err(format!("a statement has more than {TESTS_MAX} conditions"));
    }
    Ok(tests)
}

impl Test {
    fn read(name: &str, key: &str, values: &Json, variables: bool) -> Result<Test, String> {
        let unknown = || format!("the condition operator {name:?} is not known");
        let (qualifier, rest) = match name.split_once(':') {
            None => (Qualifier::None, name),
            Some(("ForAnyValue", rest)) => (Qualifier::ForAnyValue, rest),
            Some(("ForAllValues", rest)) => (Qualifier::ForAllValues, rest),
            Some(_) => return Err(unknown()),
        };
        let (rest, if_exists) = rest.strip_suffix("IfExists").map_or((rest, false), |rest| (rest, true));
        let (operator, negated) = Operator::named(rest).ok_or_else(unknown)?;
        if operator == Operator::Null && (if_exists || qualifier != Qualifier::None) {
            return Err(unknown());
        }
        let lower = key.to_ascii_lowercase();
        if !is_known_key(&lower) {
            return Err(format!("the condition key {key:?} is not known"));
        }
        let texts = values.scalars().ok_or_else(|| format!("the values of {key} are not texts"))?;
        if texts.is_empty() || texts.len() > VALUES_MAX {
            return Err(format!("{key} is compared with 1 to {VALUES_MAX} values"));
        }
        let read = |text: &String| operator.value(text, variables).map_err(|why| format!("{key}: {text:?}: {why}"));
        let values = texts.iter().map(read).collect::<Result<_, String>>()?;
        Ok(Test { key: lower, operator, negated, qualifier, if_exists, values })
    }

    /// Whether the condition holds. `None`: it cannot be told, because what the request has cannot be compared.
    pub fn holds(&self, context: &Context) -> Option<bool> {
        let present = context.all(&self.key);
        if self.operator == Operator::Null {
            let wants_absent = |value: &Value| matches!(value, Value::Bool(absent) if *absent == present.is_empty());
            return Some(self.values.iter().any(wants_absent));
        }
        if present.is_empty() {
            // As in IAM: what is absent equals nothing, and every one of no values is anything.
            return Some(
                self.if_exists
                    || self.qualifier == Qualifier::ForAllValues
                    || self.negated && self.qualifier == Qualifier::None,
            );
        }
        // A negated operator without a qualifier says of every value that it matches none.
        let every = self.qualifier == Qualifier::ForAllValues || self.negated && self.qualifier == Qualifier::None;
        let mut unknown = false;
        for value in present {
            match self.matches_one(value, context) {
                Some(matched) if (matched != self.negated) != every => return Some(!every),
                Some(_) => {}
                None => unknown = true,
            }
        }
        if unknown { None } else { Some(every) }
    }

    /// Whether one value of the request equals one of the policy.
    fn matches_one(&self, present: &str, context: &Context) -> Option<bool> {
        let mut unknown = false;
        for wanted in &self.values {
            match self.operator.compare(present, wanted, context) {
                Some(true) => return Some(true),
                Some(false) => {}
                // A variable that is absent equals nothing; only what is negated must not profit from that.
                None if matches!(wanted, Value::Pattern(_)) && !self.negated => {}
                None => unknown = true,
            }
        }
        if unknown { None } else { Some(false) }
    }

    /// Whether it limits who asks to few, fixed senders: then an allow to everybody is not public.
    pub fn restricts_senders(&self) -> bool {
        if self.negated || self.if_exists || self.qualifier == Qualifier::ForAllValues {
            return false;
        }
        let narrow = |value: &Value| match value {
            Value::Network { address: IpAddr::V4(_), bits } => *bits >= 8,
            Value::Network { address: IpAddr::V6(_), bits } => *bits >= 32,
            Value::Pattern(pattern) => pattern.is_fixed(),
            _ => false,
        };
        let of_senders = ["aws:sourceip", "aws:username", "aws:userid", "aws:principalarn"];
        self.operator != Operator::Null && of_senders.contains(&self.key.as_str()) && self.values.iter().all(narrow)
    }
}

impl Operator {
    /// The operator, and whether its name negates it.
    fn named(name: &str) -> Option<(Operator, bool)> {
        use Order::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual};
        let order = |suffix: &str| {
            Some(match suffix {
                "Equals" => (Equal, false),
                "NotEquals" => (Equal, true),
                "LessThan" => (Less, false),
                "LessThanEquals" => (LessOrEqual, false),
                "GreaterThan" => (Greater, false),
                "GreaterThanEquals" => (GreaterOrEqual, false),
                _ => return None,
            })
        };
        if let Some(suffix) = name.strip_prefix("Numeric") {
            return order(suffix).map(|(order, negated)| (Operator::Number(order), negated));
        }
        if let Some(suffix) = name.strip_prefix("Date") {
            return order(suffix).map(|(order, negated)| (Operator::Date(order), negated));
        }
        Some(match name {
            "StringEquals" => (Operator::Text { fold_case: false }, false),
            "StringNotEquals" => (Operator::Text { fold_case: false }, true),
            "StringEqualsIgnoreCase" => (Operator::Text { fold_case: true }, false),
            "StringNotEqualsIgnoreCase" => (Operator::Text { fold_case: true }, true),
            "StringLike" => (Operator::Like, false),
            "StringNotLike" => (Operator::Like, true),
            "ArnEquals" | "ArnLike" => (Operator::Arn, false),
            "ArnNotEquals" | "ArnNotLike" => (Operator::Arn, true),
            "Bool" => (Operator::Bool, false),
            "BinaryEquals" => (Operator::Binary, false),
            "IpAddress" => (Operator::Ip, false),
            "NotIpAddress" => (Operator::Ip, true),
            "Null" => (Operator::Null, false),
            _ => return None,
        })
    }

    /// Reads a value of the policy.
    fn value(self, text: &str, variables: bool) -> Result<Value, &'static str> {
        let pattern =
            |wildcards, fold_case| Pattern::read(text, Reading { wildcards, variables, fold_case }).map(Value::Pattern);
        match self {
            Operator::Text { fold_case } => pattern(false, fold_case),
            Operator::Like | Operator::Arn => pattern(true, false),
            Operator::Binary => Pattern::read(text, Reading { wildcards: false, variables: false, fold_case: false })
                .map(Value::Pattern),
            Operator::Number(_) => number(text).map(Value::Number).ok_or("it is not a number"),
            Operator::Date(_) => date(text).map(Value::Date).ok_or("it is not a date"),
            Operator::Bool | Operator::Null => truth(text).map(Value::Bool).ok_or("it is neither true nor false"),
            Operator::Ip => network(text)
                .map(|(address, bits)| Value::Network { address, bits })
                .ok_or("it is no range of addresses"),
        }
    }

    fn compare(self, present: &str, wanted: &Value, context: &Context) -> Option<bool> {
        match (self, wanted) {
            (_, Value::Pattern(pattern)) => pattern.matches(present, context),
            (Operator::Number(order), Value::Number(wanted)) => Some(order.holds(number(present)?, *wanted)),
            (Operator::Date(order), Value::Date(wanted)) => Some(order.holds(date(present)?, *wanted)),
            (Operator::Bool, Value::Bool(wanted)) => Some(truth(present)? == *wanted),
            (Operator::Ip, Value::Network { address, bits }) => {
                let present: IpAddr = present.parse().ok()?;
                Some(is_within(plain(present), *address, *bits))
            }
            _ => None,
        }
    }
}

impl Order {
    fn holds<T: PartialOrd>(self, present: T, wanted: T) -> bool {
        match self {
            Order::Equal => present == wanted,
            Order::Less => present < wanted,
            Order::LessOrEqual => present <= wanted,
            Order::Greater => present > wanted,
            Order::GreaterOrEqual => present >= wanted,
        }
    }
}

fn number(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|number| number.is_finite())
}

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// A date and time of ISO 8601, a date alone (its midnight UTC), or seconds since 1970.
fn date(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse::<u64>() {
        return seconds.checked_mul(1000);
    }
    calendar::parse_iso8601(text).or_else(|| calendar::parse_iso8601(&format!("{text}T00:00:00Z")))
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = match text.split_once('/') {
        None => (text, None),
        Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
    };
    let address: IpAddr = address.parse().ok()?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(whole);
    (bits <= whole).then_some((address, bits))
}

/// IPv4 addresses that came over an IPv6 socket are IPv4 addresses.
fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        v4 => v4,
    }
}

fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let (a, b, width) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a)), u128::from(u32::from(b)), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return false,
    };
    // A shift by the whole width would overflow: nothing is compared then.
    bits == 0 || (a ^ b) >> (width - u32::from(bits)) == 0
}
