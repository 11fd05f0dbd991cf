//! Reads `decisions.txt`:
//!
//! ```text
//! == title                      a scene: nothing is attached
//! bucket OWNER                  the bucket `b` belongs to this key
//! key NAME [root]               a key; its access key is AK-NAME
//! policy bucket                 the JSON up to the next empty line is the bucket's policy
//! policy NAME                   ... or the key's; the text `unreadable` stands for one that cannot be read
//! restrict                      the bucket has RestrictPublicBuckets
//! ACTION RESOURCE [k=v ...] : WHO=OUTCOME ...
//! ```
//!
//! A resource is a path (`b/key`, `b`) or `-` when there is no bucket. Context values with blanks stand in quotes; a key
//! with several values is given several times. An outcome is `allow`, `deny`, or with what decided: `allow/owner`,
//! `deny/bucket` ...

use access::{Action, Ask, Attached, BucketRights, Caller, Context, Decision, KeyRights, Policy, Why, decide};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Default)]
struct Scene {
    owner: String,
    of_bucket: Attached,
    restrict_public: bool,
    keys: BTreeMap<String, KeyRights>,
}

impl Scene {
    fn caller(&self, who: &str) -> Caller {
        if who == "anon" {
            return Caller::Anonymous;
        }
        Caller::Key(self.keys.get(who).unwrap_or_else(|| panic!("no key {who}")).clone())
    }

    fn command(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["bucket", owner] => self.owner = access_key(owner),
            ["restrict"] => self.restrict_public = true,
            ["key", name] | ["key", name, "root"] => {
                let root = words.len() == 3;
                let key =
                    KeyRights { access_key: access_key(name), name: name.to_owned(), root, policy: Attached::None };
                self.keys.insert(name.to_owned(), key);
            }
            _ => return false,
        }
        true
    }

    fn attach(&mut self, to: &str, text: &str) {
        let read = |policy: Result<Policy, access::Malformed>| match text.trim() {
            "unreadable" => Attached::Unreadable,
            text => Attached::Policy(Arc::new(policy.unwrap_or_else(|why| panic!("{why}\n{text}")))),
        };
        if to == "bucket" {
            self.of_bucket = read(Policy::of_bucket(text, "b"));
        } else {
            self.keys.get_mut(to).unwrap_or_else(|| panic!("no key {to}")).policy = read(Policy::of_key(text));
        }
    }

    fn decide(&self, who: &str, action: Action, resource: &str, context: &Context) -> Decision {
        let rights = BucketRights {
            owner: self.owner.clone(),
            policy: self.of_bucket.clone(),
            restrict_public: self.restrict_public,
            granted_by_acl: false,
        };
        let arn = format!("arn:aws:s3:::{}", if resource == "-" { "*" } else { resource });
        let bucket = (resource != "-").then_some(&rights);
        let mut context = context.clone();
        if let Some(key) = self.keys.get(who) {
            context.set("aws:username", key.name.clone());
            context.set("aws:userid", key.access_key.clone());
        }
        decide(&Ask { caller: &self.caller(who), action, resource: &arn, bucket, context: &context })
    }
}

fn access_key(name: &str) -> String {
    format!("AK-{name}")
}

fn outcome(decision: &Decision) -> String {
    let (word, why) = match decision {
        Decision::Allowed(why) => ("allow", why),
        Decision::Denied(why) => ("deny", why),
    };
    let why = match why {
        Why::Root => "root",
        Why::Owner => "owner",
        Why::KeyPolicy(_) => "key",
        Why::BucketPolicy(_) => "bucket",
        Why::Acl => "acl",
        Why::Unreadable => "unreadable",
        Why::TooCostly => "costly",
        Why::Default => "default",
    };
    format!("{word}/{why}")
}

/// Splits at blanks that are not within double quotes, which go.
fn words(text: &str) -> Vec<String> {
    let (mut out, mut quoted) = (vec![String::new()], false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => out.push(String::new()),
            other => out.last_mut().expect("it starts with one word").push(other),
        }
    }
    out.retain(|word| !word.is_empty());
    out
}

/// Decides one line; answers how many decisions it held, and what is not as it says.
fn check(scene: &Scene, number: usize, line: &str, wrong: &mut Vec<String>) -> usize {
    let (question, answers) = line.split_once(" : ").unwrap_or_else(|| panic!("line {number}: {line}"));
    let question = words(question);
    let [name, resource, pairs @ ..] = &question[..] else { panic!("line {number}: {line}") };
    let action = Action::named(&format!("s3:{name}")).unwrap_or_else(|| panic!("line {number}: no action {name}"));
    let mut context = Context::default();
    for pair in pairs {
        let (key, value) = pair.split_once('=').unwrap_or_else(|| panic!("line {number}: {pair}"));
        context.add(key, value);
    }
    let answers = words(answers);
    for answer in &answers {
        let (who, expected) = answer.split_once('=').unwrap_or_else(|| panic!("line {number}: {answer}"));
        let found = outcome(&scene.decide(who, action, resource, &context));
        if found != expected && found.split('/').next() != Some(expected) {
            wrong.push(format!("line {number}: {who} {line}\n    found {found}"));
        }
    }
    answers.len()
}

#[test]
fn every_decision_is_as_the_table_says() {
    let table = include_str!("decisions.txt");
    let mut lines = table.lines().enumerate().map(|(index, line)| (index + 1, line));
    let (mut scene, mut decisions, mut wrong) = (Scene::default(), 0, Vec::new());
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with("==") {
            scene = Scene::default();
        } else if let Some(to) = line.strip_prefix("policy ") {
            let text: Vec<&str> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| !line.trim().is_empty()).collect();
            scene.attach(to.trim(), &text.join("\n"));
        } else if !scene.command(line) {
            decisions += check(&scene, number, line, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{} of {decisions} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(decisions >= 300, "{decisions} decisions");
}
