//! One client of a run: what all its operations have in common, and how answers are judged.

use base::env::RandomExt;
use base::ids::NodeId;
use base::sim::SimHandle;
use bytes::Bytes;
use client::{Attributes, BucketInfo, Client, Error, FinishPut, ObjectVersion, Precondition, Written};
use meta::map::command::{Acknowledgement, BucketEntry, MapCommand};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::cluster::{Cluster, FOUNDER, NoAnswer, OWNER, Serving};
use crate::content::Content;
use crate::fences::Tokens;
use crate::history::{Condition, Outcome, Value};
use crate::plan::{Plan, Profile};
use crate::recorder::{KeyName, Recorder};

/// What the nemesis has made excusable at the moment.
#[derive(Default)]
pub struct Excuses {
    /// Damage was done: errors are right answers, wrong bytes never are.
    pub damage: AtomicBool,
    /// A disk is or was full.
    pub full: AtomicBool,
    /// In a cluster: since when nothing stands in the way of an answer; `TROUBLE` while something does.
    pub calm_since_nanos: AtomicU64,
    /// The story has been told: clients that go on until then may end.
    pub told: AtomicBool,
}

/// There is no calm.
pub const TROUBLE: u64 = u64::MAX;

/// An answer that comes when the calm is older than this was asked for in the calm.
const ANSWER_MAX: Duration = Duration::from_secs(45);

/// Of so many operations of a client, one goes to another node than the one before.
const ROAM: u64 = 12;

#[derive(Clone)]
pub struct Worker {
    pub id: u32,
    pub sim: SimHandle,
    pub cluster: Cluster,
    pub recorder: Recorder,
    pub plan: Arc<Plan>,
    pub excuses: Arc<Excuses>,
    /// The node that this client asked last.
    pub home: Arc<AtomicU32>,
    pub tokens: Arc<Tokens>,
}

/// An answer to a write.
pub enum Judged<T> {
    Done(T),
    /// The condition did not hold.
    Refused,
    /// Surely nothing was done.
    Nothing,
    Unknown,
    /// Unknown, and may still be asked for anew, under whatever session the node has by then.
    Pending,
}

impl<T> Judged<T> {
    /// As histories record it; `None`: not at all.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Judged::Done(_) => Some(Outcome::Done),
            Judged::Refused => Some(Outcome::Refused),
            Judged::Nothing => None,
            Judged::Unknown | Judged::Pending => Some(Outcome::Unknown),
        }
    }
}

/// What a GET came to: the row, and the bytes of the range that was asked for.
pub struct Got {
    pub object: ObjectVersion,
    pub range: Range<u64>,
    pub body: Result<Vec<Bytes>, Error>,
}

impl Worker {
    /// Whom this client asks next: mostly the same node as before, when it serves.
    pub async fn serving(&self) -> Serving {
        let mut home = NodeId(self.home.load(Ordering::Relaxed));
        if self.plan.nodes > 1 && self.sim.below(ROAM) == 0 {
            let nodes = self.cluster.nodes();
            home = nodes[self.sim.below(nodes.len() as u64) as usize];
        }
        let serving = self.cluster.serving(home).await;
        self.home.store(serving.node.0, Ordering::Relaxed);
        serving
    }

    /// A bucket of the plan, by its number.
    pub fn key(&self, bucket: usize, key: &Bytes) -> KeyName {
        KeyName { bucket, key: key.clone() }
    }

    pub fn is_versioned(&self, bucket: usize) -> bool {
        self.plan.buckets[bucket].versioned
    }

    /// The bucket as the node serves it now. A bucket of the plan always exists.
    pub async fn bucket(&self, serving: &Serving, bucket: usize) -> Option<BucketInfo> {
        let (client, name) = (serving.client.clone(), self.plan.buckets[bucket].name);
        let found = serving.run(async move { client.bucket(name).await }).await;
        match found {
            Ok(Ok(info)) => Some(info),
            Ok(Err(error)) => {
                self.judge_error("bucket", &error);
                None
            }
            Err(_) => None,
        }
    }

    /// Makes the buckets of the plan, through as many crashes as it takes.
    pub async fn set_up(&self) {
        let mut serving = self.serving().await;
        for bucket in 0..self.plan.buckets.len() {
            while !self.make_bucket(&serving, bucket).await {
                self.pause(50).await;
                serving = self.serving().await;
            }
        }
    }

    async fn make_bucket(&self, serving: &Serving, bucket: usize) -> bool {
        let (client, plan) = (serving.client.clone(), self.plan.buckets[bucket].clone());
        let made = serving.run(async move {
            match client.create_bucket(plan.name, OWNER).await {
                Ok(_) | Err(Error::BucketExists { .. }) => {}
                Err(error) => return Err(error),
            }
            if plan.versioned {
                client.set_versioning(plan.name, client::Versioning::Enabled).await?;
            }
            if plan.majority {
                acknowledge_by_majority(&client, plan.name).await?;
            }
            Ok(())
        });
        match made.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                self.judge_error("create bucket", &error);
                false
            }
            Err(_) => false,
        }
    }

    pub async fn pause(&self, millis: u64) {
        self.sim.sleep(std::time::Duration::from_millis(millis)).await;
    }

    pub fn are_errors_excused(&self) -> bool {
        self.excuses.damage.load(Ordering::Relaxed)
    }

    /// Something stands in the way of an answer, or may have when it was asked for.
    fn is_troubled(&self) -> bool {
        if self.plan.nodes == 1 {
            return !self.cluster.is_serving(FOUNDER);
        }
        let calm_since = self.excuses.calm_since_nanos.load(Ordering::Relaxed);
        self.sim.now().0.checked_sub(calm_since).is_none_or(|calm| Duration::from_nanos(calm) < ANSWER_MAX)
    }

    fn is_full_excused(&self) -> bool {
        self.plan.profile == Profile::DiskFull || (self.excuses.full.load(Ordering::Relaxed) && self.is_troubled())
    }

    /// Answers that are always possible are fine; anything else is a violation.
    pub fn judge_error(&self, what: &str, error: &Error) {
        match error {
            Error::Unavailable(_) | Error::OutcomeUnknown(_) if self.are_errors_excused() || self.is_troubled() => {
                self.recorder.count("unavailable", 1);
            }
            Error::Full if self.is_full_excused() => self.recorder.count("full", 1),
            Error::Damaged(_) if self.are_errors_excused() => self.recorder.count("damaged", 1),
            other => self.recorder.violation(format!(
                "client {} at {:?}: {what} answered {other:?}",
                self.id,
                std::time::Duration::from_nanos(self.sim.now().0)
            )),
        }
    }

    /// What the answer to a write under `condition` says.
    pub fn judge<T>(&self, what: &str, condition: Condition, answer: Result<Result<T, Error>, NoAnswer>) -> Judged<T> {
        match answer {
            Err(NoAnswer::Crashed) => Judged::Unknown,
            Err(NoAnswer::Late) => Judged::Pending,
            Ok(Ok(done)) => Judged::Done(done),
            Ok(Err(error @ Error::OutcomeUnknown(_))) => {
                self.judge_error(what, &error);
                Judged::Unknown
            }
            Ok(Err(Error::PreconditionFailed)) if condition != Condition::Always => Judged::Refused,
            // S3 answers so when `If-Match` finds no object.
            Ok(Err(Error::NoSuchKey)) if matches!(condition, Condition::Is(_)) => Judged::Refused,
            Ok(Err(error)) => {
                self.judge_error(what, &error);
                Judged::Nothing
            }
        }
    }

    /// Compares what was read with what was written.
    pub fn compare(&self, key: &KeyName, got: &Got) {
        let place = || format!("bucket {} key {}", key.bucket, key.key.escape_ascii());
        let Some((_, content)) = self.identify(key, &got.object) else { return };
        if got.object.body.as_ref().map_or(0, |body| body.size) != content.len() {
            self.recorder.violation(format!("{}: the size differs from what was written", place()));
        }
        let Ok(pieces) = &got.body else { return };
        let mut offset = got.range.start;
        for piece in pieces {
            if let Err(at) = content.compare(offset, piece) {
                self.recorder.violation(format!("{}: WRONG BYTES at offset {at} of a GET", place()));
                return;
            }
            offset += piece.len() as u64;
        }
        self.recorder.count("bytes_compared", offset - got.range.start);
        if offset != got.range.end.min(content.len()).max(got.range.start) {
            self.recorder.violation(format!("{}: a GET of {:?} ended at offset {offset}", place(), got.range));
        }
    }

    /// Which write an object came from. A value of another key, or none at all, is a violation.
    pub fn identify(&self, key: &KeyName, object: &ObjectVersion) -> Option<(Value, Content)> {
        let etag = object.attributes.as_ref().map_or("", |attributes| attributes.etag.as_str());
        let value = Value::from_etag(etag);
        let written = value.and_then(|value| Some((value, self.recorder.written(value)?)));
        match written {
            Some((value, written)) if written.key == *key => Some((value, written.content)),
            _ => {
                let place = format!("bucket {} key {}", key.bucket, key.key.escape_ascii());
                self.recorder.violation(format!("{place}: ETag {etag:?} was never written there"));
                None
            }
        }
    }
}

async fn acknowledge_by_majority(client: &Client, name: &str) -> Result<(), Error> {
    let map = client.refresh_map().await?;
    let entry = map.active_bucket(name).cloned().ok_or(Error::NoSuchBucket)?;
    let entry = BucketEntry { acknowledgement: Acknowledgement::Majority as i32, ..entry };
    client.change_map_checked(MapCommand::SetBucket(entry)).await.map(|_| ())
}

/// Writes an object in pieces of `piece_len` bytes.
pub async fn put(
    client: Client,
    bucket: BucketInfo,
    key: Bytes,
    (value, content): (Value, Content),
    condition: Condition,
    piece_len: usize,
) -> Result<Written, Error> {
    let mut writer = client.write(&bucket, key, Some(content.len()));
    for run in &content.runs {
        let mut bytes = run.bytes(0..run.len);
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(piece_len));
            writer.write(piece).await?;
        }
    }
    let attributes = Attributes { etag: value.etag(), ..Attributes::default() };
    writer.finish(FinishPut { attributes, precondition: precondition(condition) }).await
}

pub fn precondition(condition: Condition) -> Option<Precondition> {
    match condition {
        Condition::Always => None,
        Condition::Absent => Some(Precondition { must_not_exist: true, ..Precondition::default() }),
        Condition::Is(value) => Some(Precondition { etag_is: vec![value.etag()], ..Precondition::default() }),
    }
}

/// Reads `part` (in thousandths of the size) of the newest or of one version.
pub async fn get(
    client: Client,
    bucket: BucketInfo,
    key: Bytes,
    version: Option<Bytes>,
    part: Range<u64>,
) -> Result<Got, Error> {
    let object = client.head(&bucket, &key, version).await?;
    let size = object.body.as_ref().map_or(0, |body| body.size);
    let range = size * part.start / 1000..(size * part.end).div_ceil(1000);
    let mut reader = client.read(&bucket, &object, range.clone());
    let mut pieces = Vec::new();
    let mut body = Ok(());
    while let Some(piece) = reader.next().await {
        match piece {
            Ok(piece) => pieces.push(piece),
            Err(error) => body = Err(error),
        }
    }
    Ok(Got { object, range, body: body.map(|()| pieces) })
}
