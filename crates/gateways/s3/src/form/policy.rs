//! The policy of a form: a JSON document that its signer wrote, with conditions that the form must meet.
//!
//! Source: "POST policy", Amazon S3 API Reference.

use super::Form;
use crate::date::parse_iso8601;
use crate::error::{Code, Result, S3Error};
use serde_json::Value;
use std::ops::RangeInclusive;

/// The most conditions.
const CONDITIONS_MAX: usize = 200;

/// One condition on a field.
struct Condition<'a> {
    /// In lower case.
    field: String,
    value: &'a str,
    is_prefix: bool,
}

/// Whether `document` allows the form now. Answers how long the file may be.
pub fn check(document: &[u8], form: &Form, bucket: &str, key: &str, now_ms: u64) -> Result<RangeInclusive<u64>> {
    let document: Value = serde_json::from_slice(document).map_err(|_| invalid("it is not JSON"))?;
    let expiration = document.get("expiration").and_then(Value::as_str).and_then(parse_iso8601);
    let expiration_ms = expiration.ok_or_else(|| invalid("its expiration is missing or no date"))?;
    let conditions = document.get("conditions").and_then(Value::as_array);
    let conditions = conditions.ok_or_else(|| invalid("it has no list of conditions"))?;
    if conditions.len() > CONDITIONS_MAX {
        return Err(invalid("it has more than 200 conditions"));
    }
    let mut length = 0..=u64::MAX;
    let mut on_fields = Vec::new();
    for condition in conditions {
        match condition {
            Value::Object(pairs) if !pairs.is_empty() => {
                for (field, value) in pairs {
                    let value = value.as_str().ok_or_else(|| invalid("a condition is not about a text"))?;
                    on_fields.push(Condition { field: field.to_ascii_lowercase(), value, is_prefix: false });
                }
            }
            Value::Array(words) => match read(words)? {
                Words::Length(range) => length = *length.start().max(range.start())..=*length.end().min(range.end()),
                Words::Field(condition) => on_fields.push(condition),
            },
            _ => return Err(invalid("a condition is neither an object with a field nor a list")),
        }
    }
    if now_ms >= expiration_ms {
        return Err(denied("Policy expired."));
    }
    meets(form, &on_fields, bucket, key)?;
    Ok(length)
}

enum Words<'a> {
    Length(RangeInclusive<u64>),
    Field(Condition<'a>),
}

/// `["eq" | "starts-with", "$field", "value"]` or `["content-length-range", least, most]`.
fn read(words: &[Value]) -> Result<Words<'_>> {
    let [operator, first, second] = words else {
        return Err(invalid("a condition does not have three elements"));
    };
    let operator = operator.as_str().unwrap_or_default().to_ascii_lowercase();
    if operator == "content-length-range" {
        return match (first.as_u64(), second.as_u64()) {
            (Some(least), Some(most)) => Ok(Words::Length(least..=most)),
            _ => Err(invalid("a content-length-range is not two numbers from 0 on")),
        };
    }
    let (Some(field), Some(value)) = (first.as_str().and_then(|name| name.strip_prefix('$')), second.as_str()) else {
        return Err(invalid("a condition does not name a $field and a text"));
    };
    let is_prefix = match operator.as_str() {
        "eq" => false,
        "starts-with" => true,
        _ => return Err(invalid("a condition has an unknown operator")),
    };
    Ok(Words::Field(Condition { field: field.to_ascii_lowercase(), value, is_prefix }))
}

/// Every condition must hold, and every field must be in a condition: whoever signed the policy said what may be sent.
fn meets(form: &Form, conditions: &[Condition<'_>], bucket: &str, key: &str) -> Result<()> {
    for condition in conditions {
        let actual = match condition.field.as_str() {
            // Where the object really goes, whatever the fields say.
            "bucket" => Some(bucket),
            "key" => Some(key),
            field => form.get(field),
        };
        let wanted = condition.value;
        let holds =
            actual.is_some_and(|text| if condition.is_prefix { text.starts_with(wanted) } else { text == wanted });
        if !holds {
            return Err(denied(&format!("Policy Condition failed: {} {:?}", condition.field, condition.value)));
        }
    }
    let named = |name: &str| conditions.iter().any(|condition| condition.field == name);
    let fields = form.fields.iter().map(|(name, _)| name.as_str()).filter(|name| !is_exempt(name));
    match fields.chain(["bucket", "key"]).find(|name| !named(name)) {
        Some(extra) => Err(denied(&format!("Extra input fields: {extra}"))),
        None => Ok(()),
    }
}

/// Fields that a policy need not name: what carries it, and promises about the content that are only verified.
fn is_exempt(name: &str) -> bool {
    matches!(name, "policy" | "signature" | "awsaccesskeyid" | "x-amz-signature" | "x-amz-sdk-checksum-algorithm")
        || name.starts_with("x-ignore-")
        || name.starts_with("x-amz-checksum-")
}

pub fn invalid(why: &str) -> S3Error {
    S3Error::new(Code::InvalidPolicyDocument, format!("The content of the form does not meet the policy rules: {why}."))
}

fn denied(why: &str) -> S3Error {
    S3Error::new(Code::AccessDenied, format!("Invalid according to Policy: {why}"))
}
