//! The one decision: may this caller do this?
//!
//! In this order, the first that holds:
//! 1. A policy that cannot be read forbids everything, and so does one whose comparison with the request's words costs too
//!    much ([`Why::TooCostly`]). Except: the root user, and the owner of the bucket, may always
//!    read, replace and remove the bucket's policy, so that nobody locks a bucket for ever.
//! 2. A statement of the key's or the bucket's policy that denies, whoever the caller is (the same exception).
//! 3. The root user may do everything.
//! 4. A key without a policy may do everything with the buckets that it owns, and make and list its own.
//! 5. A statement of the key's policy that allows.
//! 6. A statement of the bucket's policy that allows; not when the bucket blocks what its policy opens to the public.
//! 7. An access control list that grants it (for keys that have a policy of their own it grants nothing).
//! 8. Else no.
//!
//! A key that has a policy has the rights that policies give it, and no others: owning a bucket adds nothing.

use crate::action::Action;
use crate::condition::Context;
use crate::policy::{Attached, Effect, Question};

/// Who asks.
#[derive(Clone, Debug)]
pub enum Caller {
    /// The request carries no signature.
    Anonymous,
    Key(KeyRights),
}

/// An access key whose signature was compared.
#[derive(Clone, Debug)]
pub struct KeyRights {
    pub access_key: String,
    /// The name that the operator gave it; may be empty.
    pub name: String,
    pub root: bool,
    pub policy: Attached,
}

/// The bucket that the request is about.
#[derive(Clone, Debug)]
pub struct BucketRights {
    /// Access key of the owner.
    pub owner: String,
    pub policy: Attached,
    /// `RestrictPublicBuckets`: a policy that is public allows nothing.
    pub restrict_public: bool,
    /// An access control list grants the caller this action. (What `IgnorePublicAcls` hides grants nothing.)
    pub granted_by_acl: bool,
}

/// A request in the words of policies.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub caller: &'a Caller,
    pub action: Action,
    /// `arn:aws:s3:::bucket/key`, `arn:aws:s3:::bucket`, or `arn:aws:s3:::*` for all buckets.
    pub resource: &'a str,
    /// `None` when the request is about no bucket that exists.
    pub bucket: Option<&'a BucketRights>,
    pub context: &'a Context,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed(Why),
    Denied(Why),
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Root,
    Owner,
    /// The statement with this `Sid`.
    KeyPolicy(String),
    BucketPolicy(String),
    Acl,
    /// A policy that cannot be read.
    Unreadable,
    /// Comparing the request with the policies costs too much: what they say is not known.
    TooCostly,
    /// Nothing allows it.
    Default,
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allowed(_))
    }
}

/// Decides one request.
pub fn decide(ask: &Ask<'_>) -> Decision {
    let names = ask.caller.names();
    let question = Question { names: &names, action: ask.action, resource: ask.resource, context: ask.context };
    let none = Attached::None;
    let of_key = ask.caller.policy().unwrap_or(&none);
    let of_bucket = ask.bucket.map_or(&none, |bucket| &bucket.policy);
    let owns = ask.owns();
    let is_keeper = ask.caller.is_root() || owns;
    if !(is_keeper && keeps_policy(ask.action)) {
        if matches!(of_key, Attached::Unreadable) || matches!(of_bucket, Attached::Unreadable) {
            return Decision::Denied(Why::Unreadable);
        }
        if let Some(sid) = found(of_key, Effect::Deny, &question) {
            return Decision::Denied(Why::KeyPolicy(sid));
        }
        if let Some(sid) = found(of_bucket, Effect::Deny, &question) {
            return Decision::Denied(Why::BucketPolicy(sid));
        }
        if ask.context.is_exhausted() {
            return Decision::Denied(Why::TooCostly);
        }
    }
    if ask.caller.is_root() {
        return Decision::Allowed(Why::Root);
    }
    if owns {
        return Decision::Allowed(Why::Owner);
    }
    if let Some(sid) = found(of_key, Effect::Allow, &question) {
        return Decision::Allowed(Why::KeyPolicy(sid));
    }
    let is_blocked = ask.bucket.is_some_and(|bucket| bucket.restrict_public)
        && of_bucket.policy().is_some_and(|policy| policy.is_public());
    if let Some(sid) = found(of_bucket, Effect::Allow, &question).filter(|_| !is_blocked) {
        return Decision::Allowed(Why::BucketPolicy(sid));
    }
    if of_key.is_none() && ask.bucket.is_some_and(|bucket| bucket.granted_by_acl) {
        return Decision::Allowed(Why::Acl);
    }
    Decision::Denied(Why::Default)
}

fn found(attached: &Attached, effect: Effect, question: &Question<'_>) -> Option<String> {
    attached.policy().and_then(|policy| policy.find(effect, question)).map(str::to_owned)
}

/// What keeps a bucket from being locked for ever.
fn keeps_policy(action: Action) -> bool {
    [Action::GET_BUCKET_POLICY, Action::PUT_BUCKET_POLICY, Action::DELETE_BUCKET_POLICY].contains(&action)
}

impl Ask<'_> {
    /// A key without a policy owns its buckets, and what is about no bucket: making them, and listing its own.
    fn owns(&self) -> bool {
        let Caller::Key(key) = self.caller else { return false };
        if !key.policy.is_none() {
            return false;
        }
        match self.bucket {
            Some(bucket) => !key.access_key.is_empty() && bucket.owner == key.access_key,
            None => [Action::CREATE_BUCKET, Action::LIST_ALL_MY_BUCKETS].contains(&self.action),
        }
    }
}

impl Caller {
    fn is_root(&self) -> bool {
        matches!(self, Caller::Key(key) if key.root)
    }

    fn policy(&self) -> Option<&Attached> {
        match self {
            Caller::Anonymous => None,
            Caller::Key(key) => Some(&key.policy),
        }
    }

    /// As policies may name it. Each key is an account of its own, whose number is the access key.
    fn names(&self) -> Vec<String> {
        let Caller::Key(key) = self else { return Vec::new() };
        let id = &key.access_key;
        let mut names = vec![id.clone(), format!("arn:aws:iam:::user/{id}"), format!("arn:aws:iam::{id}:root")];
        if !key.name.is_empty() {
            names.push(format!("arn:aws:iam:::user/{}", key.name));
        }
        if key.root {
            names.push("arn:aws:iam:::root".to_owned());
        }
        names
    }
}
