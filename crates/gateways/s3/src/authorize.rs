//! Requests in the words of policies. What is asked is decided by [`access::decide`] alone; here it is translated: the
//! operation into an action, path and object into a resource; what conditions may ask is in [`crate::context`].
//!
//! Every operation passes [`Gateway::bucket`], [`Gateway::object`] or one of the `authorize` functions before it reads
//! or changes anything.

use crate::acl::{Acl, Permission};
use crate::auth::Caller;
use crate::context::{About, NOTHING, Said, context};
use crate::error::{Code, Result, S3Error};
use crate::names;
use crate::operation::Operation;
use crate::ops::Gateway;
use crate::public_access::PublicAccessBlock;
use crate::request::Request;
use access::{Action, Ask, Attached, BucketRights, Context, Cost, Decision, KeyRights, Policy, Why, decide};
use bytes::Bytes;
use client::{BucketInfo, ConfigurationKind, KeyRow, ObjectVersion};
use http::HeaderMap;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Policies that are kept parsed. More make the cache begin anew.
const PARSED_MAX: usize = 4096;

/// Policies as they were last parsed, by their text: what was changed is parsed again.
#[derive(Default)]
pub struct Policies {
    parsed: Mutex<BTreeMap<Owner, (Bytes, Attached)>>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Bucket(u64),
    Key(String),
}

impl Policies {
    fn of_bucket(&self, bucket: &BucketInfo) -> Attached {
        let Some(kept) = bucket.configuration(ConfigurationKind::Policy) else { return Attached::None };
        self.parse(Owner::Bucket(bucket.id), &kept.value, |text| Policy::of_bucket(text, &bucket.name))
    }

    fn of_key(&self, key: &KeyRow) -> Attached {
        if key.policy.is_empty() {
            return Attached::None;
        }
        let text = Bytes::copy_from_slice(key.policy.as_bytes());
        self.parse(Owner::Key(key.access_key.clone()), &text, Policy::of_key)
    }

    /// What does not parse was written by a newer version or is damaged: [`Attached::Unreadable`] forbids.
    fn parse(
        &self,
        owner: Owner,
        text: &Bytes,
        read: impl Fn(&str) -> std::result::Result<Policy, access::Malformed>,
    ) -> Attached {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, attached)) = parsed.get(&owner).filter(|(known, _)| known == text) {
            return attached.clone();
        }
        let policy = std::str::from_utf8(text).ok().and_then(|text| read(text).ok());
        let attached = policy.map_or(Attached::Unreadable, |policy| Attached::Policy(Arc::new(policy)));
        if parsed.len() >= PARSED_MAX {
            parsed.clear();
        }
        parsed.insert(owner, (text.clone(), attached.clone()));
        attached
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Wish<'a> {
    action: Action,
    bucket: &'a BucketInfo,
    /// Empty: the bucket itself.
    key: &'a [u8],
    /// The version that the request names: in its query, its document or as the source of a copy.
    named: Option<&'a Bytes>,
    object: Option<&'a ObjectVersion>,
    said: &'a Said,
}

impl<'a> Wish<'a> {
    pub fn new(action: Action, bucket: &'a BucketInfo, key: &'a [u8]) -> Wish<'a> {
        Wish { action, bucket, key, named: None, object: None, said: &NOTHING }
    }

    pub fn naming(self, version: Option<&'a Bytes>) -> Wish<'a> {
        Wish { named: version, ..self }
    }

    pub fn about(self, object: &'a ObjectVersion) -> Wish<'a> {
        Wish { object: Some(object), ..self }
    }

    pub fn saying(self, said: &'a Said) -> Wish<'a> {
        Wish { said, ..self }
    }
}

impl Gateway {
    /// The bucket that the request names, without any decision. Only for what decides afterwards.
    pub async fn lookup(&self, request: &Request) -> Result<BucketInfo> {
        let bucket = self.client.bucket(&request.target.bucket).await;
        // Whether a bucket exists is no secret (names are global), as in S3.
        let bucket = bucket?;
        check_owner(&bucket, request.header(&names::EXPECTED_BUCKET_OWNER))?;
        Ok(bucket.under(request.terms.clone()))
    }

    /// The bucket that the request names, for a caller who may do what the request asks.
    pub async fn bucket(&self, request: &Request) -> Result<BucketInfo> {
        let bucket = self.lookup(request).await?;
        self.authorize_own(request, &bucket, &NOTHING).await?;
        Ok(bucket)
    }

    /// Whether the caller may do what the request asks of its own target. `said`: what its document says.
    pub async fn authorize_own(&self, request: &Request, bucket: &BucketInfo, said: &Said) -> Result<()> {
        let version = request.version()?;
        for action in actions(request) {
            let wish = Wish::new(action, bucket, &request.target.key).naming(version.as_ref()).saying(said);
            self.authorize(request, wish).await?;
        }
        if creates_object(request) && sets_list(&request.headers) {
            self.refuse_denied(request, Wish::new(Action::PUT_OBJECT_ACL, bucket, &request.target.key)).await?;
        }
        Ok(())
    }

    /// Refuses, before their document is read, those whom nothing can allow what no list grants: without a policy of the
    /// bucket, whoever has no key.
    pub fn refuse_strangers(&self, request: &Request, bucket: &BucketInfo) -> Result<()> {
        let is_stranger = matches!(request.caller, Caller::Anonymous) && self.policies.of_bucket(bucket).is_none();
        if is_stranger { Err(denied()) } else { Ok(()) }
    }

    /// Whether the bucket's list alone lets the caller do this to some object.
    pub fn list_grants(&self, request: &Request, bucket: &BucketInfo, action: Action) -> bool {
        let acl = self.effective(bucket, Acl::of_bucket(bucket));
        grants(&acl, request, permission_of_bucket(action))
    }

    /// Refuses what a policy denies expressly. What a creation sets besides, it sets by the right to create.
    async fn refuse_denied(&self, request: &Request, wish: Wish<'_>) -> Result<()> {
        match self.decide(request, &wish, &wish.bucket.owner, false, None).await? {
            Decision::Denied(Why::Default) => Ok(()),
            decision => verdict(decision),
        }
    }

    /// Whether the caller may do this to a bucket (no key) or to an object, known by its name alone.
    pub async fn authorize(&self, request: &Request, mut wish: Wish<'_>) -> Result<()> {
        let Wish { action, bucket, key, named, .. } = wish;
        let known;
        if !key.is_empty() && self.asks_for_tags(request, bucket).await? {
            let found = crate::ops::object::find(self, bucket, &Bytes::copy_from_slice(key), named.cloned()).await;
            known = match found {
                Ok(object) => Some(object),
                Err(error) if is_absence(&error) => None,
                // Its tags may forbid this.
                Err(error) => return Err(error),
            };
            wish.object = known.as_ref();
        }
        let acl = self.effective(bucket, Acl::of_bucket(bucket));
        let by_list = permission_of_bucket(action).filter(|_| request.operation != Operation::PutObjectTagging);
        let granted = grants(&acl, request, by_list);
        verdict(self.decide(request, &wish, &bucket.owner, granted, None).await?)
    }

    /// Whether the caller may do this to an object that was found: its own owner, list and tags count.
    pub async fn authorize_object(&self, request: &Request, wish: Wish<'_>, object: &ObjectVersion) -> Result<()> {
        let wish = Wish { object: Some(object), ..wish };
        let acl = self.effective(wish.bucket, Acl::of_object(wish.bucket, object));
        let by_list = permission_of_object(wish.action);
        let granted = grants(&acl, request, by_list);
        // Whoever wrote an object owns its bytes and its list; locks and tags are the bucket owner's.
        let owner = if by_list.is_some() { &acl.owner } else { &wish.bucket.owner };
        verdict(self.decide(request, &wish, owner, granted, None).await?)
    }

    /// An object for a caller who may do this with it. Whether one that is not there is missing is told only to those
    /// who may list the bucket.
    pub async fn object(&self, request: &Request, wish: Wish<'_>) -> Result<ObjectVersion> {
        let Wish { bucket, key, named, .. } = wish;
        match crate::ops::object::find(self, bucket, &Bytes::copy_from_slice(key), named.cloned()).await {
            Ok(object) => {
                self.authorize_object(request, wish, &object).await?;
                Ok(object)
            }
            // Whether it is there is not known: told as a refusal, it would not be asked again.
            Err(unknown) if !is_absence(&unknown) => Err(unknown),
            Err(missing) => {
                let acl = self.effective(bucket, Acl::of_bucket(bucket));
                let granted = grants(&acl, request, Some(Permission::Read));
                let lists = Wish::new(Action::LIST_BUCKET, bucket, b"");
                let prefix = std::str::from_utf8(key).unwrap_or_default();
                verdict(self.decide(request, &lists, &bucket.owner, granted, Some(prefix)).await?)?;
                Err(missing)
            }
        }
    }

    /// Whether the caller may list its own buckets.
    pub async fn authorize_listing(&self, request: &Request) -> Result<()> {
        verdict(self.decide_service(request, Action::LIST_ALL_MY_BUCKETS, "*", &NOTHING).await?)
    }

    /// Whether the caller may make the bucket `name`, with all that the request's headers set on it. `said`: what its
    /// document says.
    pub async fn authorize_creation(&self, request: &Request, name: &str, said: &Said) -> Result<()> {
        verdict(self.decide_service(request, Action::CREATE_BUCKET, name, said).await?)?;
        for action in set_at_creation(&request.headers) {
            match self.decide_service(request, action, name, said).await? {
                Decision::Denied(Why::Default) => {}
                decision => verdict(decision)?,
            }
        }
        Ok(())
    }

    /// Decides what is about no bucket that exists.
    async fn decide_service(&self, request: &Request, action: Action, name: &str, said: &Said) -> Result<Decision> {
        let (caller, row) = self.caller(request).await?;
        let resource = format!("arn:aws:s3:::{name}");
        let about = About { said, ..self.about(row.as_ref()) };
        let context = context(request, &about);
        let ask = Ask { caller: &caller, action, resource: &resource, bucket: None, context: &context };
        Ok(decide_within(&request.cost, &ask))
    }

    fn about<'a>(&'a self, key: Option<&'a KeyRow>) -> About<'a> {
        let now_ms = self.client.wall_ms();
        About { key, region: &self.region, version: None, object: None, prefix: None, said: &NOTHING, now_ms }
    }

    /// Listing is the caller's own buckets, or all for the root user and for keys that live by their policy alone.
    pub async fn sees_all_buckets(&self, request: &Request) -> Result<bool> {
        let (_, row) = self.caller(request).await?;
        Ok(row.is_some_and(|row| row.root || !row.policy.is_empty()))
    }

    /// Whether the caller may bypass governance where it wishes something, and asks to.
    pub async fn bypasses_governance(&self, request: &Request, wish: Wish<'_>) -> Result<bool> {
        let asks = request.header(&names::BYPASS_GOVERNANCE).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if asks {
            let wish = Wish { action: Action::BYPASS_GOVERNANCE_RETENTION, ..wish };
            match wish.object {
                Some(object) => self.authorize_object(request, wish, object).await?,
                None => self.authorize(request, wish).await?,
            }
        }
        Ok(asks)
    }

    /// A list as it counts: `IgnorePublicAcls` hides what it grants to users at large.
    fn effective(&self, bucket: &BucketInfo, acl: Acl) -> Acl {
        if PublicAccessBlock::of(bucket).ignore_public_acls { acl.without_public() } else { acl }
    }

    async fn decide(
        &self,
        request: &Request,
        wish: &Wish<'_>,
        owner: &str,
        granted_by_acl: bool,
        prefix: Option<&str>,
    ) -> Result<Decision> {
        let (caller, row) = self.caller(request).await?;
        let rights = BucketRights {
            owner: owner.to_owned(),
            policy: self.policies.of_bucket(wish.bucket),
            restrict_public: PublicAccessBlock::of(wish.bucket).restrict_public_buckets,
            granted_by_acl,
        };
        let has_policy = !rights.policy.is_none() || row.as_ref().is_some_and(|row| !row.policy.is_empty());
        let context = if has_policy && !request.cost.is_too_much() {
            let Wish { named: version, object, said, .. } = *wish;
            context(request, &About { version, object, prefix, said, ..self.about(row.as_ref()) })
        } else {
            Context::default()
        };
        let resource = resource(wish);
        let ask =
            Ask { caller: &caller, action: wish.action, resource: &resource, bucket: Some(&rights), context: &context };
        Ok(decide_within(&request.cost, &ask))
    }

    /// The caller with its rights. A key that was removed since its signature was compared is nobody's.
    async fn caller(&self, request: &Request) -> Result<(access::Caller, Option<KeyRow>)> {
        let Caller::Signed(signed) = &request.caller else { return Ok((access::Caller::Anonymous, None)) };
        let Some(row) = self.client.access_key(signed.access_key()).await? else { return Err(denied()) };
        let rights = KeyRights {
            access_key: row.access_key.clone(),
            name: row.name.clone(),
            root: row.root,
            policy: self.policies.of_key(&row),
        };
        Ok((access::Caller::Key(rights), Some(row)))
    }

    async fn asks_for_tags(&self, request: &Request, bucket: &BucketInfo) -> Result<bool> {
        let asks = |attached: &Attached| match attached {
            Attached::Policy(policy) => policy.asks_for_existing_tags(),
            Attached::None | Attached::Unreadable => false,
        };
        if asks(&self.policies.of_bucket(bucket)) {
            return Ok(true);
        }
        let (caller, _) = self.caller(request).await?;
        Ok(matches!(&caller, access::Caller::Key(key) if asks(&key.policy)))
    }
}

fn grants(acl: &Acl, request: &Request, wanted: Option<Permission>) -> bool {
    wanted.is_some_and(|wanted| acl.allows(request.caller.access_key(), wanted))
}

/// One of the decisions about a request, at its cost.
fn decide_within(cost: &Cost, ask: &Ask<'_>) -> Decision {
    if cost.is_too_much() {
        return Decision::Denied(Why::TooCostly);
    }
    let decision = decide(ask);
    cost.charge(ask.context);
    decision
}

fn verdict(decision: Decision) -> Result<()> {
    match decision {
        Decision::Allowed(_) => Ok(()),
        // Why is not told: it would describe the policies to those whom they shut out.
        Decision::Denied(_) => Err(denied()),
    }
}

pub fn denied() -> S3Error {
    S3Error::new(Code::AccessDenied, "Access Denied")
}

/// `expected`: the value of an `expected-bucket-owner` header.
pub fn check_owner(bucket: &BucketInfo, expected: Option<&str>) -> Result<()> {
    match expected {
        Some(owner) if owner != bucket.owner => {
            Err(S3Error::new(Code::AccessDenied, "Access denied: the bucket belongs to another owner."))
        }
        _ => Ok(()),
    }
}

fn resource(wish: &Wish<'_>) -> String {
    let bucket = &wish.bucket.name;
    if wish.key.is_empty() {
        return format!("arn:aws:s3:::{bucket}");
    }
    format!("arn:aws:s3:::{bucket}/{}", String::from_utf8_lossy(wish.key))
}

/// What a request's own operation needs, on its own target.
fn actions(request: &Request) -> Vec<Action> {
    let versioned = request.query.has("versionId");
    let either = |plain, of_version| if versioned { of_version } else { plain };
    use Operation as O;
    let action = match request.operation {
        // These decide for themselves, for each key or before there is a bucket.
        O::ListBuckets | O::CreateBucket | O::DeleteObjects => return Vec::new(),
        O::DeleteBucket => Action::DELETE_BUCKET,
        O::HeadBucket | O::ListObjects | O::ListObjectsV2 => Action::LIST_BUCKET,
        O::ListObjectVersions => Action::LIST_BUCKET_VERSIONS,
        O::ListMultipartUploads => Action::LIST_BUCKET_MULTIPART_UPLOADS,
        O::GetBucketLocation => Action::GET_BUCKET_LOCATION,
        O::GetBucketVersioning => Action::GET_BUCKET_VERSIONING,
        O::PutBucketVersioning => Action::PUT_BUCKET_VERSIONING,
        O::GetBucketAcl => Action::GET_BUCKET_ACL,
        O::PutBucketAcl => Action::PUT_BUCKET_ACL,
        O::GetObjectAcl => either(Action::GET_OBJECT_ACL, Action::GET_OBJECT_VERSION_ACL),
        O::PutObjectAcl => either(Action::PUT_OBJECT_ACL, Action::PUT_OBJECT_VERSION_ACL),
        O::GetBucketCors => Action::GET_BUCKET_CORS,
        O::PutBucketCors | O::DeleteBucketCors => Action::PUT_BUCKET_CORS,
        O::GetBucketTagging => Action::GET_BUCKET_TAGGING,
        O::PutBucketTagging | O::DeleteBucketTagging => Action::PUT_BUCKET_TAGGING,
        O::GetBucketOwnershipControls => Action::GET_BUCKET_OWNERSHIP_CONTROLS,
        O::PutBucketOwnershipControls | O::DeleteBucketOwnershipControls => Action::PUT_BUCKET_OWNERSHIP_CONTROLS,
        O::GetBucketPolicy => Action::GET_BUCKET_POLICY,
        O::PutBucketPolicy => Action::PUT_BUCKET_POLICY,
        O::DeleteBucketPolicy => Action::DELETE_BUCKET_POLICY,
        O::GetBucketPolicyStatus => Action::GET_BUCKET_POLICY_STATUS,
        O::GetPublicAccessBlock => Action::GET_BUCKET_PUBLIC_ACCESS_BLOCK,
        O::PutPublicAccessBlock | O::DeletePublicAccessBlock => Action::PUT_BUCKET_PUBLIC_ACCESS_BLOCK,
        O::GetBucketLifecycle => Action::GET_LIFECYCLE_CONFIGURATION,
        O::PutBucketLifecycle | O::DeleteBucketLifecycle => Action::PUT_LIFECYCLE_CONFIGURATION,
        O::GetObjectLockConfiguration => Action::GET_BUCKET_OBJECT_LOCK_CONFIGURATION,
        O::PutObjectLockConfiguration => Action::PUT_BUCKET_OBJECT_LOCK_CONFIGURATION,
        O::GetObjectRetention => Action::GET_OBJECT_RETENTION,
        O::PutObjectRetention => Action::PUT_OBJECT_RETENTION,
        O::GetObjectLegalHold => Action::GET_OBJECT_LEGAL_HOLD,
        O::PutObjectLegalHold => Action::PUT_OBJECT_LEGAL_HOLD,
        O::PutObject | O::PostObject | O::CopyObject | O::CreateMultipartUpload => return writes(request),
        O::UploadPart | O::UploadPartCopy | O::CompleteMultipartUpload => Action::PUT_OBJECT,
        O::AbortMultipartUpload => Action::ABORT_MULTIPART_UPLOAD,
        O::ListParts => Action::LIST_MULTIPART_UPLOAD_PARTS,
        O::GetObject | O::HeadObject => either(Action::GET_OBJECT, Action::GET_OBJECT_VERSION),
        O::GetObjectAttributes => return read_attributes(versioned),
        O::GetObjectTagging => either(Action::GET_OBJECT_TAGGING, Action::GET_OBJECT_VERSION_TAGGING),
        O::PutObjectTagging => either(Action::PUT_OBJECT_TAGGING, Action::PUT_OBJECT_VERSION_TAGGING),
        O::DeleteObjectTagging => either(Action::DELETE_OBJECT_TAGGING, Action::DELETE_OBJECT_VERSION_TAGGING),
        O::DeleteObject => either(Action::DELETE_OBJECT, Action::DELETE_OBJECT_VERSION),
        O::AbsentSetting(code) => action_of_absent(code),
        O::EmptySetting(root) => action_of_empty(root),
        O::DeleteAbsentSetting => Action::DELETE_BUCKET_WEBSITE,
    };
    vec![action]
}

/// A new object, and what its headers set besides.
fn writes(request: &Request) -> Vec<Action> {
    let mut actions = vec![Action::PUT_OBJECT];
    let has = |name: &http::HeaderName| request.headers.contains_key(name);
    if has(&names::TAGGING) {
        actions.push(Action::PUT_OBJECT_TAGGING);
    }
    if has(&names::OBJECT_LOCK_MODE) || has(&names::OBJECT_LOCK_RETAIN_UNTIL) {
        actions.push(Action::PUT_OBJECT_RETENTION);
    }
    if has(&names::OBJECT_LOCK_LEGAL_HOLD) {
        actions.push(Action::PUT_OBJECT_LEGAL_HOLD);
    }
    actions
}

fn creates_object(request: &Request) -> bool {
    use Operation as O;
    matches!(request.operation, O::PutObject | O::PostObject | O::CopyObject | O::CreateMultipartUpload)
}

/// Whether headers ask for an access list.
fn sets_list(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| *name == names::ACL || name.as_str().starts_with("x-amz-grant-"))
}

/// What CreateBucket sets besides.
fn set_at_creation(headers: &HeaderMap) -> Vec<Action> {
    let mut actions = Vec::new();
    if sets_list(headers) {
        actions.push(Action::PUT_BUCKET_ACL);
    }
    if headers.contains_key(names::OBJECT_OWNERSHIP) {
        actions.push(Action::PUT_BUCKET_OWNERSHIP_CONTROLS);
    }
    if headers.contains_key(names::BUCKET_OBJECT_LOCK_ENABLED) {
        actions.extend([Action::PUT_BUCKET_OBJECT_LOCK_CONFIGURATION, Action::PUT_BUCKET_VERSIONING]);
    }
    actions
}

fn read_attributes(versioned: bool) -> Vec<Action> {
    if versioned {
        vec![Action::GET_OBJECT_VERSION, Action::GET_OBJECT_VERSION_ATTRIBUTES]
    } else {
        vec![Action::GET_OBJECT, Action::GET_OBJECT_ATTRIBUTES]
    }
}

fn action_of_absent(code: Code) -> Action {
    match code {
        Code::ServerSideEncryptionConfigurationNotFoundError => Action::GET_ENCRYPTION_CONFIGURATION,
        Code::ReplicationConfigurationNotFoundError => Action::GET_REPLICATION_CONFIGURATION,
        _ => Action::GET_BUCKET_WEBSITE,
    }
}

fn action_of_empty(root: &str) -> Action {
    match root {
        "AccelerateConfiguration" => Action::GET_ACCELERATE_CONFIGURATION,
        "BucketLoggingStatus" => Action::GET_BUCKET_LOGGING,
        "NotificationConfiguration" => Action::GET_BUCKET_NOTIFICATION,
        _ => Action::GET_BUCKET_REQUEST_PAYMENT,
    }
}

/// What a bucket's list must grant for an action; `None`: no list grants it.
fn permission_of_bucket(action: Action) -> Option<Permission> {
    Some(match action {
        Action::LIST_BUCKET
        | Action::LIST_BUCKET_VERSIONS
        | Action::LIST_BUCKET_MULTIPART_UPLOADS
        | Action::GET_BUCKET_LOCATION => Permission::Read,
        // Whoever may write an object may write it with tags.
        Action::PUT_OBJECT
        | Action::PUT_OBJECT_TAGGING
        | Action::DELETE_OBJECT
        | Action::ABORT_MULTIPART_UPLOAD
        | Action::LIST_MULTIPART_UPLOAD_PARTS => Permission::Write,
        Action::GET_BUCKET_ACL => Permission::ReadAcp,
        Action::PUT_BUCKET_ACL => Permission::WriteAcp,
        _ => return None,
    })
}

fn is_absence(error: &S3Error) -> bool {
    matches!(error.code, Code::NoSuchKey | Code::NoSuchVersion | Code::MethodNotAllowed)
}

fn permission_of_object(action: Action) -> Option<Permission> {
    Some(match action {
        Action::GET_OBJECT
        | Action::GET_OBJECT_VERSION
        | Action::GET_OBJECT_ATTRIBUTES
        | Action::GET_OBJECT_VERSION_ATTRIBUTES => Permission::Read,
        Action::GET_OBJECT_ACL | Action::GET_OBJECT_VERSION_ACL => Permission::ReadAcp,
        Action::PUT_OBJECT_ACL | Action::PUT_OBJECT_VERSION_ACL => Permission::WriteAcp,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object whose tags cannot be read may have the tag that forbids: only what is not there has none.
    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_absent() {
        for code in [Code::NoSuchKey, Code::NoSuchVersion, Code::MethodNotAllowed] {
            assert!(is_absence(&S3Error::new(code, "")), "{code:?}");
        }
        for code in [Code::InternalError, Code::ServiceUnavailable, Code::SlowDown, Code::NoSuchBucket] {
            assert!(!is_absence(&S3Error::new(code, "")), "{code:?}");
        }
    }

    /// `DeleteObjects` has a decision made for each of its keys.
    #[test]
    fn after_a_costly_decision_a_request_has_no_more_made() {
        let values = vec![r#""*${aws:Referer}b*""#; 100].join(",");
        let statement = r#""Effect":"Deny","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::b/*""#;
        let condition = format!(r#""Condition":{{"StringLike":{{"aws:UserAgent":[{values}]}}}}"#);
        let text = format!(r#"{{"Version":"2012-10-17","Statement":[{{{statement},{condition}}}]}}"#);
        let policy = Attached::Policy(Arc::new(Policy::of_bucket(&text, "b").unwrap()));
        let rights = BucketRights { owner: "o".to_owned(), policy, restrict_public: false, granted_by_acl: false };
        let (access_key, name) = ("o".to_owned(), String::new());
        let caller = access::Caller::Key(KeyRights { access_key, name, root: false, policy: Attached::None });
        let mut costly = Context::default();
        costly.set("aws:Referer", "a".repeat(5_000));
        costly.set("aws:UserAgent", "a".repeat(11_000));
        let cost = Cost::default();
        let decided = |context: &Context| {
            let (action, resource) = (Action::DELETE_OBJECT, "arn:aws:s3:::b/k");
            decide_within(&cost, &Ask { caller: &caller, action, resource, bucket: Some(&rights), context })
        };
        assert!(decided(&Context::default()).is_allowed());
        assert_eq!(decided(&costly), Decision::Denied(Why::TooCostly));
        assert_eq!(decided(&Context::default()), Decision::Denied(Why::TooCostly));
    }
}
