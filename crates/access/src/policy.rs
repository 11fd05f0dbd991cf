//! A policy: statements that allow or deny actions on resources to principals under conditions.

use crate::action::Action;
use crate::condition::{self, Context, Test};
use crate::json::Json;
use crate::pattern::{Pattern, Reading};
use std::sync::Arc;

/// The longest policy in bytes, as in S3.
pub const POLICY_LEN_MAX: usize = 20 << 10;

const STATEMENTS_MAX: usize = 500;
const RESOURCE_PREFIX: &str = "arn:aws:s3:::";

/// What is wrong with a policy, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// A policy that was read.
#[derive(Clone, Debug)]
pub struct Policy {
    statements: Vec<Statement>,
}

/// The policy of a key or a bucket as the decision needs it.
#[derive(Clone, Debug, Default)]
pub enum Attached {
    #[default]
    None,
    Policy(Arc<Policy>),
    /// There is one, and it cannot be read: nobody knows what it forbids.
    Unreadable,
}

impl Attached {
    /// Whether a decision can depend on the request's context.
    pub fn is_none(&self) -> bool {
        matches!(self, Attached::None)
    }

    pub(crate) fn policy(&self) -> Option<&Policy> {
        match self {
            Attached::Policy(policy) => Some(policy),
            Attached::None | Attached::Unreadable => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Allow,
    Deny,
}

#[derive(Clone, Debug)]
struct Statement {
    sid: String,
    effect: Effect,
    /// `None` in the policy of a key, which speaks of that key alone.
    principals: Option<Principals>,
    actions: Set,
    resources: Set,
    conditions: Vec<Test>,
}

/// Patterns, or everything but what they match.
#[derive(Clone, Debug)]
struct Set {
    patterns: Vec<Pattern>,
    inverted: bool,
}

#[derive(Clone, Debug)]
struct Principals {
    everybody: bool,
    names: Vec<String>,
    inverted: bool,
}

/// What a statement is compared with.
pub(crate) struct Question<'a> {
    /// All names of the caller; empty when nobody has signed.
    pub names: &'a [String],
    pub action: Action,
    /// `arn:aws:s3:::bucket/key`.
    pub resource: &'a str,
    pub context: &'a Context,
}

impl Policy {
    /// Reads the policy of a bucket: every statement names principals, and resources of this bucket.
    pub fn of_bucket(text: &str, bucket: &str) -> Result<Policy, Malformed> {
        Policy::read(text, Some(bucket))
    }

    /// Reads the policy of a key: no statement names principals.
    pub fn of_key(text: &str) -> Result<Policy, Malformed> {
        Policy::read(text, None)
    }

    /// `bucket`: whose policy it is; `None` for the policy of a key.
    fn read(text: &str, bucket: Option<&str>) -> Result<Policy, Malformed> {
        if text.len() > POLICY_LEN_MAX {
            return refuse(format!("it is longer than {POLICY_LEN_MAX} bytes"));
        }
        let document = Json::read(text).map_err(|why| Malformed(format!("it is no valid JSON: {why}")))?;
        let Json::Object(members) = document else { return refuse("it is not a JSON object") };
        let mut variables = false;
        let mut statements = None;
        for (name, value) in &members {
            match (name.as_str(), value) {
                ("Version", Json::Text(version)) if version == "2012-10-17" => variables = true,
                ("Version", Json::Text(version)) if version == "2008-10-17" => {}
                ("Id", Json::Text(_)) => {}
                ("Statement", Json::List(list)) => statements = Some(list.as_slice()),
                ("Statement", one @ Json::Object(_)) => statements = Some(std::slice::from_ref(one)),
                _ => return refuse(format!("the member {name:?} is not known, or its value is invalid")),
            }
        }
        let statements = statements.ok_or_else(|| Malformed("it has no Statement".to_owned()))?;
        if statements.is_empty() || statements.len() > STATEMENTS_MAX {
            return refuse(format!("it has none or more than {STATEMENTS_MAX} statements"));
        }
        let read = |statement| Statement::read(statement, bucket, variables);
        Ok(Policy { statements: statements.iter().map(read).collect::<Result<_, _>>()? })
    }

    /// The `Sid` of the first statement with this effect that applies.
    pub(crate) fn find(&self, effect: Effect, question: &Question<'_>) -> Option<&str> {
        let applies = |statement: &&Statement| statement.effect == effect && statement.applies(question);
        self.statements.iter().find(applies).map(|statement| statement.sid.as_str())
    }

    /// Whether it allows something to everybody, wherever they are.
    pub fn is_public(&self) -> bool {
        self.statements.iter().any(Statement::is_public)
    }

    /// Whether a decision may depend on the tags that the object has.
    pub fn asks_for_existing_tags(&self) -> bool {
        let mut tests = self.statements.iter().flat_map(|statement| &statement.conditions);
        tests.any(|test| test.key.starts_with(condition::EXISTING_TAG))
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(why.into()))
}

/// The members of a statement, each at most once (JSON has refused doubles).
#[derive(Default)]
struct Members<'a> {
    sid: &'a str,
    effect: Option<Effect>,
    principals: Option<(&'a Json, bool)>,
    actions: Option<(&'a Json, bool)>,
    resources: Option<(&'a Json, bool)>,
    conditions: Option<&'a Json>,
}

impl<'a> Members<'a> {
    fn read(statement: &'a Json) -> Result<Members<'a>, Malformed> {
        let Json::Object(members) = statement else { return refuse("a statement is not an object") };
        let mut found = Members::default();
        for (name, value) in members {
            let (slot, inverted) = match (name.as_str(), value) {
                ("Sid", Json::Text(sid)) => {
                    found.sid = sid;
                    continue;
                }
                ("Effect", Json::Text(effect)) if effect == "Allow" => {
                    found.effect = Some(Effect::Allow);
                    continue;
                }
                ("Effect", Json::Text(effect)) if effect == "Deny" => {
                    found.effect = Some(Effect::Deny);
                    continue;
                }
                ("Condition", value) => {
                    found.conditions = Some(value);
                    continue;
                }
                ("Principal", _) => (&mut found.principals, false),
                ("NotPrincipal", _) => (&mut found.principals, true),
                ("Action", _) => (&mut found.actions, false),
                ("NotAction", _) => (&mut found.actions, true),
                ("Resource", _) => (&mut found.resources, false),
                ("NotResource", _) => (&mut found.resources, true),
                _ => {
                    return refuse(format!("the member {name:?} of a statement is not known, or its value is invalid"));
                }
            };
            if slot.replace((value, inverted)).is_some() {
                return refuse(format!("a statement has both {name} and its opposite"));
            }
        }
        Ok(found)
    }
}

impl Statement {
    fn read(statement: &Json, bucket: Option<&str>, variables: bool) -> Result<Statement, Malformed> {
        let members = Members::read(statement)?;
        let missing = |what: &str| Malformed(format!("a statement has no {what}"));
        let effect = members.effect.ok_or_else(|| missing("Effect"))?;
        let principals = match (members.principals, bucket.is_some()) {
            (Some((value, inverted)), true) => Some(Principals::read(value, inverted)?),
            (None, false) => None,
            (None, true) => return Err(missing("Principal")),
            (Some(_), false) => return refuse("the policy of a key names no Principal: it is the key's own"),
        };
        if effect == Effect::Allow && principals.as_ref().is_some_and(|principals| principals.inverted) {
            return refuse("Allow with NotPrincipal would allow everybody else; name the principals");
        }
        let (value, inverted) = members.actions.ok_or_else(|| missing("Action"))?;
        let actions = Set { patterns: action_patterns(value)?, inverted };
        let (value, inverted) = members.resources.ok_or_else(|| missing("Resource"))?;
        let resources = Set { patterns: resource_patterns(value, bucket, variables)?, inverted };
        let conditions = match members.conditions {
            Some(value) => condition::read(value, variables).map_err(Malformed)?,
            None => Vec::new(),
        };
        Ok(Statement { sid: members.sid.to_owned(), effect, principals, actions, resources, conditions })
    }

    /// Whether it speaks of the question. What cannot be told counts for a denial and against an allowance.
    fn applies(&self, question: &Question<'_>) -> bool {
        if !self.principals.as_ref().is_none_or(|principals| principals.include(question.names)) {
            return false;
        }
        let mut unknown = false;
        let parts = [
            self.actions.includes(question.action.as_str(), question.context),
            self.resources.includes(question.resource, question.context),
        ];
        for part in parts.into_iter().chain(self.conditions.iter().map(|test| test.holds(question.context))) {
            match part {
                Some(true) => {}
                Some(false) => return false,
                None => unknown = true,
            }
        }
        !unknown || self.effect == Effect::Deny
    }

    fn is_public(&self) -> bool {
        self.effect == Effect::Allow
            && self.principals.as_ref().is_some_and(|principals| principals.everybody)
            && !self.conditions.iter().any(Test::restricts_senders)
    }
}

impl Set {
    /// `None`: the request does not have a variable, and what is inverted must not profit from that.
    fn includes(&self, text: &str, context: &Context) -> Option<bool> {
        let mut unknown = false;
        for pattern in &self.patterns {
            match pattern.matches(text, context) {
                Some(true) => return Some(!self.inverted),
                Some(false) => {}
                None => unknown = true,
            }
        }
        if unknown && self.inverted { None } else { Some(self.inverted) }
    }
}

impl Principals {
    fn read(value: &Json, inverted: bool) -> Result<Principals, Malformed> {
        let mut principals = Principals { everybody: false, names: Vec::new(), inverted };
        match value {
            Json::Text(text) if text == "*" => principals.everybody = true,
            Json::Object(kinds) if !kinds.is_empty() => {
                for (kind, value) in kinds {
                    principals.add(kind, value)?;
                }
            }
            _ => return refuse("Principal is \"*\" or an object such as {\"AWS\": ...}"),
        }
        Ok(principals)
    }

    fn add(&mut self, kind: &str, value: &Json) -> Result<(), Malformed> {
        let names = value.scalars().filter(|names| !names.is_empty());
        let names = names.ok_or_else(|| Malformed(format!("the principals {kind} are not texts")))?;
        match kind {
            "AWS" => {
                for name in names {
                    match name.as_str() {
                        "*" => self.everybody = true,
                        "" => return refuse("a principal is empty"),
                        wild if wild.contains('*') => {
                            return refuse("a principal is \"*\" or a whole name: wildcards within are not allowed");
                        }
                        _ => self.names.push(name),
                    }
                }
            }
            "CanonicalUser" => self.names.extend(names),
            // Nobody here is one, so nothing matches.
            "Service" | "Federated" => {}
            _ => return refuse(format!("the kind of principal {kind:?} is not known")),
        }
        Ok(())
    }

    fn include(&self, names: &[String]) -> bool {
        let named = self.everybody || self.names.iter().any(|name| names.contains(name));
        named != self.inverted
    }
}

fn action_patterns(value: &Json) -> Result<Vec<Pattern>, Malformed> {
    let reading = Reading { wildcards: true, variables: false, fold_case: true };
    let nothing = Context::default();
    let read = |text: &String| {
        let pattern = Pattern::read(text, reading).map_err(|why| Malformed(format!("the action {text:?}: {why}")))?;
        if !Action::names().any(|name| pattern.matches(name, &nothing) == Some(true)) {
            return refuse(format!("there is no action {text:?}"));
        }
        Ok(pattern)
    };
    let texts = value.scalars().filter(|texts| !texts.is_empty());
    texts.ok_or_else(|| Malformed("Action is no text and no list of texts".to_owned()))?.iter().map(read).collect()
}

fn resource_patterns(value: &Json, bucket: Option<&str>, variables: bool) -> Result<Vec<Pattern>, Malformed> {
    let reading = Reading { wildcards: true, variables, fold_case: false };
    let read = |text: &String| {
        let named = match text.strip_prefix(RESOURCE_PREFIX) {
            Some(path) => path.split('/').next().unwrap_or_default(),
            None if text == "*" => "*",
            None => {
                let form = format!("neither * nor of the form {RESOURCE_PREFIX}BUCKET/KEY");
                return refuse(format!("the resource {text:?} is {form}"));
            }
        };
        let malformed = |why| Malformed(format!("the resource {text:?}: {why}"));
        let pattern = Pattern::read(text, reading).map_err(malformed)?;
        let of_bucket = Pattern::read(named, reading).map_err(malformed)?;
        // What a variable will stand for is not known yet.
        if bucket.is_some_and(|bucket| of_bucket.matches(bucket, &Context::default()) == Some(false)) {
            return refuse(format!("the resource {text:?} is not of this bucket"));
        }
        Ok(pattern)
    };
    let texts = value.scalars().filter(|texts| !texts.is_empty());
    texts.ok_or_else(|| Malformed("Resource is no text and no list of texts".to_owned()))?.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(member: &str, value: &str) -> String {
        let mut members = vec![
            ("Effect", r#""Allow""#),
            ("Principal", r#""*""#),
            ("Action", r#""s3:GetObject""#),
            ("Resource", r#""arn:aws:s3:::b/*""#),
        ];
        members.retain(|(name, _)| *name != member);
        if !value.is_empty() {
            members.push((member, value));
        }
        let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!(r#"{{"Version": "2012-10-17", "Statement": [{{{}}}]}}"#, members.join(", "))
    }

    fn reads(text: &str) -> bool {
        Policy::of_bucket(text, "b").is_ok()
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        assert!(reads(&with("Sid", r#""x""#)));
        for (member, value) in [
            ("Effect", r#""allow""#),
            ("Effect", ""),
            ("Principal", ""),
            ("Principal", r#""alice""#),
            ("Principal", r#"{"AWS": "arn:aws:iam:::user/*"}"#),
            ("Principal", r#"{"Robot": "*"}"#),
            ("Principal", "{}"),
            ("Action", r#""s3:GetObjekt""#),
            ("Action", r#""ec2:*""#),
            ("Action", "[]"),
            ("Action", "7"),
            ("NotAction", r#""s3:GetObject""#),
            ("Resource", ""),
            ("Resource", r#""arn:aws:s3:::other/*""#),
            ("Resource", r#""b/*""#),
            ("Resource", r#""arn:aws:s3:::b/${aws:username""#),
            ("NotPrincipal", r#"{"AWS": "x"}"#),
            ("Condition", "[]"),
            ("Condition", r#"{"StringEquals": "x"}"#),
            ("Condition", r#"{"StringSame": {"aws:username": "x"}}"#),
            ("Condition", r#"{"StringEquals": {"aws:SourceVpc": "x"}}"#),
            ("Condition", r#"{"StringEquals": {"aws:username": []}}"#),
            ("Condition", r#"{"StringEquals": {"s3:ExistingObjectTag/": "x"}}"#),
            ("Condition", r#"{"NumericLessThan": {"s3:max-keys": "many"}}"#),
            ("Condition", r#"{"DateLessThan": {"aws:CurrentTime": "tomorrow"}}"#),
            ("Condition", r#"{"IpAddress": {"aws:SourceIp": "10.0.0.0/33"}}"#),
            ("Condition", r#"{"IpAddress": {"aws:SourceIp": "10.0.0"}}"#),
            ("Condition", r#"{"Bool": {"aws:SecureTransport": "yes"}}"#),
            ("Condition", r#"{"NullIfExists": {"aws:username": "true"}}"#),
            ("Condition", r#"{"ForSomeValue:StringEquals": {"aws:username": "x"}}"#),
            ("Colour", r#""red""#),
        ] {
            assert!(!reads(&with(member, value)), "{member}: {value}");
        }
        for bad in ["", "[]", "{}", r#"{"Statement": []}"#, r#"{"Version": "2020-01-01", "Statement": []}"#, "{"] {
            assert!(!reads(bad), "{bad}");
        }
        assert!(!reads(&with("Sid", &format!("\"{}\"", "x".repeat(POLICY_LEN_MAX)))), "too long");
        let deny = with("Effect", r#""Deny""#);
        assert!(reads(&deny.replace("\"Principal\": \"*\"", r#""NotPrincipal": {"AWS": "x"}"#)));
    }

    #[test]
    fn the_policy_of_a_key_names_no_principal() {
        assert!(Policy::of_key(&with("Principal", "")).is_ok());
        assert!(Policy::of_key(&with("Principal", r#""*""#)).is_err());
    }

    #[test]
    fn public_is_what_everybody_may_from_anywhere() {
        let public = |text: String| Policy::of_bucket(&text, "b").unwrap().is_public();
        assert!(public(with("Sid", r#""x""#)));
        assert!(public(with("Principal", r#"{"AWS": ["x", "*"]}"#)));
        assert!(!public(with("Principal", r#"{"AWS": "x"}"#)));
        assert!(!public(with("Effect", r#""Deny""#)));
        for (condition, expected) in [
            (r#"{"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}"#, false),
            (r#"{"IpAddress": {"aws:SourceIp": ["10.0.0.0/8", "0.0.0.0/0"]}}"#, true),
            (r#"{"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}}"#, true),
            (r#"{"StringEquals": {"aws:username": "x"}}"#, false),
            (r#"{"StringEqualsIfExists": {"aws:username": "x"}}"#, true),
            (r#"{"StringLike": {"aws:username": "*"}}"#, true),
            (r#"{"StringLike": {"aws:Referer": "http://x/*"}}"#, true),
            (r#"{"Bool": {"aws:SecureTransport": "true"}}"#, true),
        ] {
            assert_eq!(public(with("Condition", condition)), expected, "{condition}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "[\\[\\]{}\",:a-zA-Z0-9$*? ]{0,120}", value in "[\\[\\]{}\",:a-z0-9$*? ]{0,40}") {
            let _ = (Policy::of_key(&text), reads(&with("Condition", &value)), reads(&with("Resource", &value)));
        }
    }
}
