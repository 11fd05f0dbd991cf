//! `henge status`, `henge key` and `henge bucket`: questions to the admin port of a running node.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::process::ExitCode;
use std::time::Duration;

use crate::admin::{
    BucketChange, BucketView, FenceFloor, FenceView, FenceWish, KeyPolicy, KeyView, KeyWish, NOTHING_HERE, Named,
    NewKeyView, PoolView, PoolWish, QuotaView, QuotaWish, Refusal,
};
use crate::basic_auth;
use crate::cli::{
    AcknowledgeArg, BucketAction, BucketQuotaArgs, FenceAction, FenceArg, KeyAction, KeyPolicyArgs, PoolAction,
    StatusArgs, TargetArgs, VersioningArg,
};
use crate::failure::{Context, Failure};
use crate::http_client::{Answer, HttpClient, HttpError};
use crate::report::{self, Report};
use crate::target::Target;

/// How long a node may take to answer; another may be paused.
const PATIENCE: Duration = Duration::from_secs(15);

pub async fn status(args: StatusArgs) -> Result<ExitCode, Failure> {
    let target = Target::find(&args.target)?;
    let report: Report = ask(&target, Method::GET, "/status", None::<&()>).await?;
    if report.version != report::VERSION {
        return Err(Failure(format!("the answer is a report of version {}", report.version)));
    }
    if args.json {
        print_json(&report)?;
    } else {
        print!("{}", report.for_people());
    }
    Ok(ExitCode::from(report.verdict.exit_status()))
}

pub async fn key(action: KeyAction) -> Result<ExitCode, Failure> {
    match action {
        KeyAction::Create(args) => {
            let policy = args.policy.as_deref().map(read_policy).transpose()?.unwrap_or_default();
            let request = KeyWish { name: args.name, policy };
            let key: NewKeyView = ask_as_root(&args.target, Method::POST, "/v1/keys", Some(&request)).await?;
            if args.json {
                print_json(&key)?;
            } else {
                println!("# key {}: its secret is shown now and never again", key.name);
                println!("export AWS_ACCESS_KEY_ID={}", key.access_key);
                println!("export AWS_SECRET_ACCESS_KEY={}", key.secret_key);
            }
        }
        KeyAction::List(args) => {
            let mut keys: Vec<KeyView> = ask_as_root(&args.target, Method::GET, "/v1/keys", None::<&()>).await?;
            if let Some(name) = &args.name {
                keys.retain(|key| key.name == *name || key.access_key == *name);
            }
            if args.json {
                print_json(&keys)?;
            } else {
                for key in &keys {
                    println!("{}  {}{}", key.access_key, key.name, if key.root { "  (root)" } else { "" });
                }
            }
        }
        KeyAction::Policy(args) => key_policy(args).await?,
        KeyAction::Delete(args) => {
            let path = format!("/v1/keys/{}", path_segment(&args.name)?);
            let gone: Named = ask_as_root(&args.target, Method::DELETE, &path, None::<&()>).await?;
            if args.json { print_json(&gone)? } else { println!("key {} is deleted", gone.name) }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Without a change, prints the policy as it was set (nothing: the key has none).
async fn key_policy(args: KeyPolicyArgs) -> Result<(), Failure> {
    let name = path_segment(&args.name)?;
    if args.set.is_none() && !args.clear {
        let keys: Vec<KeyView> = ask_as_root(&args.target, Method::GET, "/v1/keys", None::<&()>).await?;
        let key = keys.into_iter().find(|key| key.name == name || key.access_key == name);
        println!("{}", key.ok_or_else(|| Failure(format!("there is no key {name}")))?.policy);
        return Ok(());
    }
    let policy = args.set.as_deref().map(read_policy).transpose()?.unwrap_or_default();
    let path = format!("/v1/keys/{name}/policy");
    let _: Named = ask_as_root(&args.target, Method::PUT, &path, Some(&KeyPolicy { policy })).await?;
    println!("the policy of {name} is {}", if args.clear { "gone" } else { "set" });
    Ok(())
}

fn read_policy(path: &std::path::Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).context(|| format!("the policy {} cannot be read", path.display()))
}

async fn bucket_quota(args: BucketQuotaArgs) -> Result<(), Failure> {
    let path = format!("/v1/buckets/{}/quota", path_segment(&args.name)?);
    let wish = QuotaWish { bytes_max: args.bytes, objects_max: args.objects };
    let changes = args.none || wish.bytes_max.is_some() || wish.objects_max.is_some();
    let view: QuotaView = if changes {
        ask_as_root(&args.target, Method::PUT, &path, Some(&wish)).await?
    } else {
        ask_as_root(&args.target, Method::GET, &path, None::<&()>).await?
    };
    if args.json {
        return print_json(&view);
    }
    let limit = |max: Option<u64>| max.map_or("any number of".to_owned(), |max| format!("at most {max}"));
    println!("bucket {}: {} bytes, {} objects", args.name, limit(view.bytes_max), limit(view.objects_max));
    if let (Some(bytes), Some(objects)) = (view.bytes, view.objects) {
        let rest = if view.counting { " so far; counting goes on" } else { "" };
        println!("it holds {bytes} bytes in {objects} objects{rest}");
    }
    Ok(())
}

pub async fn bucket(action: BucketAction) -> Result<ExitCode, Failure> {
    match action {
        BucketAction::Create(args) => {
            let request = Named { name: args.name };
            let bucket: BucketView = ask_as_root(&args.target, Method::POST, "/v1/buckets", Some(&request)).await?;
            if args.json { print_json(&bucket)? } else { println!("bucket {} is made", bucket.name) }
        }
        BucketAction::List(args) => {
            let mut buckets: Vec<BucketView> =
                ask_as_root(&args.target, Method::GET, "/v1/buckets", None::<&()>).await?;
            if let Some(name) = &args.name {
                buckets.retain(|bucket| bucket.name == *name);
            }
            if args.json {
                print_json(&buckets)?;
            } else {
                buckets.iter().for_each(|bucket| println!("{}  {}", bucket.name, settings(bucket)));
            }
        }
        BucketAction::Quota(args) => bucket_quota(args).await?,
        BucketAction::Set(args) => {
            let versioning = args.versioning.map(|versioning| match versioning {
                VersioningArg::Enabled => "enabled".to_owned(),
                VersioningArg::Suspended => "suspended".to_owned(),
            });
            let fence_required = args.fence.map(|fence| fence == FenceArg::Required);
            let acknowledge = args.acknowledge.map(|rule| {
                match rule {
                    AcknowledgeArg::AllStrict => "all-strict",
                    AcknowledgeArg::All => "all",
                    AcknowledgeArg::Majority => "majority",
                    AcknowledgeArg::One => "one",
                }
                .to_owned()
            });
            let change = BucketChange { versioning, fence_required, acknowledge };
            let path = format!("/v1/buckets/{}", path_segment(&args.name)?);
            let bucket: BucketView = ask_as_root(&args.target, Method::PATCH, &path, Some(&change)).await?;
            if args.json {
                print_json(&bucket)?;
            } else {
                println!("bucket {}: {}", bucket.name, settings(&bucket));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn settings(bucket: &BucketView) -> String {
    let fence = if bucket.fence_required { ", writes need a fence token" } else { "" };
    let acknowledge = match bucket.acknowledge.as_str() {
        "all" => String::new(),
        rule => format!(", acknowledged by {rule}"),
    };
    format!("versioning {}{fence}{acknowledge}", bucket.versioning)
}

pub async fn fence(action: FenceAction) -> Result<ExitCode, Failure> {
    match action {
        FenceAction::Next(args) => {
            let wish = FenceWish { key: args.key };
            let fence: FenceView = ask_as_root(&args.target, Method::POST, "/v1/fences", Some(&wish)).await?;
            if args.json { print_json(&fence)? } else { println!("{}:{}", fence.key, fence.token) }
        }
        FenceAction::Reset(args) => {
            let path = format!("/v1/buckets/{}/fences", path_segment(&args.bucket)?);
            let floor = FenceFloor { key: args.key, token: args.token };
            let floor: FenceFloor = ask_as_root(&args.target, Method::POST, &path, Some(&floor)).await?;
            let is = floor.token.map_or_else(|| "forgotten".to_owned(), |token| format!("at {token}"));
            println!("bucket {}: the floor of {} is {is}", args.bucket, floor.key);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn pool(action: PoolAction) -> Result<ExitCode, Failure> {
    match action {
        PoolAction::Create(args) => {
            let wish = PoolWish { name: args.name, class: args.class, copies: args.copies };
            let pool: PoolView = ask_as_root(&args.target, Method::POST, "/v1/pools", Some(&wish)).await?;
            if args.json { print_json(&pool)? } else { println!("pool {} is made: {}", pool.name, of_pool(&pool)) }
        }
        PoolAction::List(args) => {
            let mut pools: Vec<PoolView> = ask_as_root(&args.target, Method::GET, "/v1/pools", None::<&()>).await?;
            if let Some(name) = &args.name {
                pools.retain(|pool| pool.name == *name);
            }
            if args.json {
                print_json(&pools)?;
            } else {
                pools.iter().for_each(|pool| println!("{}  {}", pool.name, of_pool(pool)));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn of_pool(pool: &PoolView) -> String {
    let now = match pool.copies_effective == pool.copies {
        true => String::new(),
        false => format!(", {} now", pool.copies_effective),
    };
    format!("storage class {}, {} copies{now}", pool.class, pool.copies)
}

/// Names of keys and buckets need no encoding in a path; what would is none.
fn path_segment(name: &str) -> Result<&str, Failure> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !name.is_empty() && name.bytes().all(plain) && name != "." && name != ".." {
        return Ok(name);
    }
    Err(Failure(format!("{name:?} is no name: names consist of letters, digits, '-', '_' and '.'")))
}

pub async fn ask_as_root<A: DeserializeOwned>(
    args: &TargetArgs,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<A, Failure> {
    let target = Target::find(args)?;
    target.credentials()?;
    ask(&target, method, path, body).await
}

/// Why a question was not answered as hoped.
pub enum Unanswered {
    /// Nothing was changed.
    Refused(Failure),
    /// The answer was lost: it may or may not have been carried out.
    Unknown(Failure),
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Unanswered {
        Unanswered::Refused(failure)
    }
}

impl Unanswered {
    pub fn into_failure(self) -> Failure {
        let (Unanswered::Refused(failure) | Unanswered::Unknown(failure)) = self;
        failure
    }
}

/// One request to the admin port of the first node that takes it, with the root credentials where they are known.
pub async fn ask<A: DeserializeOwned>(
    target: &Target,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<A, Failure> {
    try_ask(target, method, path, body).await.map_err(Unanswered::into_failure)
}

/// As [`ask`], for callers who must know whether it may have been carried out.
pub async fn try_ask<A: DeserializeOwned>(
    target: &Target,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<A, Unanswered> {
    let encoded = body.map(serde_json::to_vec).transpose().context(|| "the request cannot be encoded".into())?;
    let encoded = Bytes::from(encoded.unwrap_or_default());
    let mut silent = None;
    for admin in &target.admins {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("host", admin)
            .header("content-type", "application/json");
        if let Some(credentials) = &target.credentials {
            request = request.header("authorization", basic_auth::header_value(credentials));
        }
        let request = request.body(Full::new(encoded.clone())).context(|| format!("{path:?} cannot be asked for"))?;
        let asked = tokio::time::timeout(PATIENCE, HttpClient::new(admin).request(request)).await;
        let late = || HttpError::Unknown(format!("nothing for {} s", PATIENCE.as_secs()));
        match asked.unwrap_or_else(|_| Err(late())) {
            Ok(answer) => return understand(admin, &answer),
            // Looking may be repeated elsewhere, changing may not.
            Err(error) if method == Method::GET || matches!(error, HttpError::NotSent(_)) => {
                silent = Some((admin, error));
            }
            Err(error) => return Err(Unanswered::Unknown(no_answer(admin, &error))),
        }
    }
    let (admin, error) = silent.expect("a target has at least one address");
    Err(no_answer(admin, &error).into())
}

fn no_answer(admin: &str, error: &HttpError) -> Failure {
    Failure(format!(
        "no henge answers at the admin address {admin} ({error}); is the node running, and is --admin or --data right?"
    ))
}

fn understand<A: DeserializeOwned>(admin: &str, answer: &Answer) -> Result<A, Unanswered> {
    if !answer.status.is_success() {
        let refusal = serde_json::from_slice::<Refusal>(&answer.body).map(|refusal| refusal.error);
        let failure = match refusal {
            Ok(error) if error == NOTHING_HERE => Failure(format!(
                "the node at {admin} runs an older henge, which does not know this command: upgrade it"
            )),
            Ok(error) => Failure(error),
            Err(_) => Failure(format!("{admin} answers {}", answer.status)),
        };
        let outcome_unknown = answer.status.is_server_error();
        return Err(if outcome_unknown { Unanswered::Unknown(failure) } else { Unanswered::Refused(failure) });
    }
    let decoded =
        serde_json::from_slice(&answer.body).context(|| format!("the answer of {admin} cannot be understood"));
    decoded.map_err(Unanswered::Unknown)
}

pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string(value).context(|| "the answer cannot be encoded".into())?);
    Ok(())
}
