//! Many operations at once through one node, for the moment at which something happens to it.

use base::env::RandomExt;
use bytes::Bytes;
use client::{BucketInfo, FinishPut};
use futures_util::future::join_all;
use std::time::Duration;

use crate::cluster::Serving;
use crate::content::Content;
use crate::history::{Action, Condition};
use crate::recorder::KeyName;
use crate::worker::{self, Judged, Worker};

/// Objects that are stored as soon as their last byte has come, and before their end is known: one whole chunk.
const SLOW_LEN: u64 = 4 << 20;
/// Long bodies at once.
const SLOW_BODIES: usize = 4;

/// Writes at once.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    pub bucket: usize,
    pub count: usize,
    pub len_max: u64,
}

impl Worker {
    /// Puts, most of them under a condition that may well hold.
    pub async fn burst(&self, serving: &Serving, burst: Burst) {
        let Some(info) = self.bucket(serving, burst.bucket).await else { return };
        // Many writes of one key at once, all of whose versions stay, make a history that takes too long to judge.
        let most = if self.is_versioned(burst.bucket) { self.plan.keys.len() } else { usize::MAX };
        let puts = (0..burst.count.min(most)).map(|number| {
            let key = self.key(burst.bucket, &self.plan.keys[number % self.plan.keys.len()]);
            let info = info.clone();
            async move {
                let recent = self.recorder.recent_value(&key, 0);
                let condition = match self.sim.below(3) {
                    0 => Condition::Always,
                    1 => Condition::Absent,
                    _ => recent.map_or(Condition::Absent, Condition::Is),
                };
                self.put_len(serving, &info, &key, condition, 1 + self.sim.below(burst.len_max)).await;
            }
        });
        join_all(puts).await;
        self.recorder.count("bursts", 1);
    }

    /// Every key anew, without conditions.
    pub async fn overwrite_all(&self, serving: &Serving) {
        for bucket in 0..self.plan.buckets.len() {
            let Some(info) = self.bucket(serving, bucket).await else { return };
            let puts = self.plan.keys.iter().map(|key| {
                let (key, info) = (self.key(bucket, key), info.clone());
                async move { self.put_len(serving, &info, &key, Condition::Always, 100).await }
            });
            join_all(puts).await;
        }
    }

    /// Reads of every key, all at once.
    pub async fn ask_all(&self, serving: &Serving) {
        let reads = (0..self.plan.buckets.len()).flat_map(|bucket| {
            self.plan.keys.iter().map(move |key| {
                let key = self.key(bucket, key);
                async move {
                    let Some(info) = serving.client.known_bucket(self.plan.buckets[bucket].name) else { return };
                    self.head(serving, &info, &key).await;
                }
            })
        });
        join_all(reads).await;
    }

    /// Writes that are asked of a node before it knows that it is fenced. `is_fenced`: everybody else knows it.
    pub async fn write_as_zombie(&self, serving: &Serving, is_fenced: bool) {
        let writes = self.plan.keys.iter().map(|key| {
            let key = self.key(0, key);
            async move {
                let Some(info) = serving.client.known_bucket(self.plan.buckets[0].name) else { return };
                self.write_one_as_zombie(serving, &info, &key, is_fenced).await;
            }
        });
        join_all(writes).await;
    }

    async fn write_one_as_zombie(&self, serving: &Serving, info: &BucketInfo, key: &KeyName, is_fenced: bool) {
        let asked_as = serving.client.session();
        let value = self.recorder.new_value(key, |value| Content::one(u64::from(value.0), 64));
        let content = self.recorder.written(value).expect("it was just made").content;
        let (client, info, name) = (serving.client.clone(), info.clone(), key.key.clone());
        let begin = self.recorder.moment();
        let answer = serving.run(async move {
            // The session of the writer, which is taken before anything is waited for.
            let session = client.session();
            (session, worker::put(client, info, name, (value, content), Condition::Always, usize::MAX).await)
        });
        let (session, answer) = match answer.await {
            Ok((session, answer)) => (Some(session), Ok(answer)),
            Err(none) => (None, Err(none)),
        };
        let judged = self.judge("put by a node that was asleep", Condition::Always, answer);
        let is_done = matches!(judged, Judged::Done(_));
        if is_fenced && is_done && session == Some(asked_as) {
            self.recorder.violation(format!("{asked_as:?} was fenced, as all others knew, and then wrote {value:?}"));
        }
        if let Judged::Done(written) = &judged {
            self.recorder.learn_version(value, &written.version);
        }
        self.record_write(serving, key, begin, Action::Put { value, condition: Condition::Always }, &judged);
    }

    /// Bodies whose end takes long, so that their chunks are stored long before they are committed.
    pub async fn slow_bodies(&self, serving: &Serving, pause: Duration) {
        // The bucket that is content with a majority goes on writing when one member is out of reach.
        let bucket = self.plan.buckets.len() - 1;
        let Some(info) = self.bucket(serving, bucket).await else { return };
        let bodies = self.plan.keys.iter().take(SLOW_BODIES).map(|key| {
            let (key, info) = (self.key(bucket, key), info.clone());
            async move { self.put_slowly(serving, &info, &key, pause).await }
        });
        join_all(bodies).await;
    }

    async fn put_slowly(&self, serving: &Serving, info: &BucketInfo, key: &KeyName, pause: Duration) {
        let value = self.recorder.new_value(key, |value| Content::one(u64::from(value.0), SLOW_LEN));
        let content = self.recorder.written(value).expect("it was just made").content;
        let (client, info, name, sim) = (serving.client.clone(), info.clone(), key.key.clone(), self.sim.clone());
        let begin = self.recorder.moment();
        // Patience is for answers: the body is still on its way.
        let serving = serving.patient();
        let answer = serving.run(async move {
            let mut writer = client.write(&info, name, Some(content.len()));
            let bytes: Bytes = content.runs[0].bytes(0..content.len());
            writer.write(bytes).await?;
            // Of a node that is voted out, others take no more chunks: everything was stored before.
            sim.sleep(pause).await;
            let attributes = client::Attributes { etag: value.etag(), ..client::Attributes::default() };
            writer.finish(FinishPut { attributes, precondition: None }).await
        });
        let judged = self.judge("put with a long body", Condition::Always, answer.await);
        if let Judged::Done(written) = &judged {
            self.recorder.learn_version(value, &written.version);
        }
        self.recorder.count("long_bodies", 1);
        self.record_write(&serving, key, begin, Action::Put { value, condition: Condition::Always }, &judged);
    }
}
