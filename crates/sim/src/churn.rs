//! A client that makes, fills, empties and deletes buckets, against one that writes into them at the wrong moment.

use base::env::RandomExt;
use bytes::Bytes;
use client::{BucketInfo, DeleteRequest, Error, ListVersionsRequest};
use futures_util::future::join;

use crate::cluster::{NoAnswer, OWNER, Serving};
use crate::content::Content;
use crate::history::{Condition, Value};
use crate::worker::{self, Judged, Worker};

/// Rounds of one run.
const ROUNDS: u64 = 6;

/// Tries of one step while its outcome is unknown.
const TRIES_MAX: u32 = 50;

impl Worker {
    /// Rounds of create, race a put against the deletion, empty, delete, look that nothing is left.
    pub async fn churn(self) {
        for round in 0..1 + self.sim.below(ROUNDS) {
            let name = format!("churn-{}", round % 2);
            if self.churn_once(&name).await.is_none() {
                self.recorder.count("churn_given_up", 1);
                return;
            }
            self.recorder.count("bucket_lives", 1);
            self.pause(self.sim.below(60)).await;
        }
    }

    /// `None`: an outcome stayed unknown for too long.
    async fn churn_once(&self, name: &str) -> Option<()> {
        let info = self.make(name).await?;
        let leftover = self.count_versions(&info).await?;
        if leftover > 0 {
            self.recorder.violation(format!("bucket {name} is new and holds {leftover} objects"));
        }
        let serving = self.serving().await;
        let put = self.put_into(&serving, &info, b"racer");
        let remove = self.remove(&serving, name);
        let (put, removed) = join(put, remove).await;
        if matches!(put, Judged::Done(())) && matches!(removed, Judged::Done(())) {
            self.recorder.violation(format!("bucket {name} was deleted with an acknowledged object in it"));
        }
        self.recorder.count("bucket_races", 1);
        if matches!(removed, Judged::Pending) {
            return None;
        }
        for _ in 0..TRIES_MAX {
            let serving = self.serving().await;
            self.empty(&serving, &info).await;
            match self.remove(&serving, name).await {
                Judged::Done(()) => return self.judge_removed(name, &info).await,
                // It may still be removed, or what is made under its name after it.
                Judged::Pending => return None,
                _ => {}
            }
            self.pause(30).await;
        }
        None
    }

    async fn make(&self, name: &str) -> Option<BucketInfo> {
        for _ in 0..TRIES_MAX {
            let serving = self.serving().await;
            let (client, name) = (serving.client.clone(), name.to_string());
            let made = serving.run(async move {
                match client.create_bucket(&name, OWNER).await {
                    Err(Error::BucketExists { .. }) => client.bucket(&name).await,
                    other => other,
                }
            });
            match made.await {
                Ok(Ok(info)) => return Some(info),
                // Half made: its creation is finished at the next start, or by whoever creates it again.
                Ok(Err(Error::NoSuchBucket)) | Err(NoAnswer::Crashed) => {}
                // It may still be made, when nobody expects it any more.
                Err(NoAnswer::Late) => return None,
                Ok(Err(error)) => self.judge_error("create bucket", &error),
            }
            self.pause(30).await;
        }
        None
    }

    async fn put_into(&self, serving: &Serving, info: &BucketInfo, key: &'static [u8]) -> Judged<()> {
        let content = Content::one(self.sim.below(1 << 40), self.plan.draw_size(&self.sim));
        let write = (Value(u32::MAX), content);
        let put = worker::put(
            serving.client.clone(),
            info.clone(),
            Bytes::from_static(key),
            write,
            Condition::Always,
            usize::MAX,
        );
        match serving.run(put).await {
            Ok(Err(Error::NoSuchBucket)) => Judged::Nothing,
            answer => match self.judge("put into a bucket that goes", Condition::Always, answer) {
                Judged::Done(_) => Judged::Done(()),
                Judged::Refused | Judged::Nothing => Judged::Nothing,
                Judged::Unknown => Judged::Unknown,
                Judged::Pending => Judged::Pending,
            },
        }
    }

    async fn remove(&self, serving: &Serving, name: &str) -> Judged<()> {
        let (client, name) = (serving.client.clone(), name.to_string());
        match serving.run(async move { client.delete_bucket(&name).await }).await {
            Ok(Err(Error::BucketNotEmpty)) => Judged::Nothing,
            // An earlier try, whose outcome was unknown, has done it.
            Ok(Err(Error::NoSuchBucket)) => Judged::Done(()),
            answer => self.judge("delete bucket", Condition::Always, answer),
        }
    }

    async fn empty(&self, serving: &Serving, info: &BucketInfo) {
        let (client, info) = (serving.client.clone(), info.clone());
        let answer = serving.run(async move {
            client.delete(&info, &Bytes::from_static(b"racer"), DeleteRequest::default()).await.map(|_| ())
        });
        match answer.await {
            Ok(Ok(()) | Err(Error::NoSuchBucket)) | Err(_) => {}
            Ok(Err(error)) => self.judge_error("delete from a bucket that goes", &error),
        }
    }

    async fn count_versions(&self, info: &BucketInfo) -> Option<usize> {
        for _ in 0..TRIES_MAX {
            let serving = self.serving().await;
            let (client, info) = (serving.client.clone(), info.clone());
            let request = ListVersionsRequest { limit: 100, ..ListVersionsRequest::default() };
            match serving.run(async move { client.list_versions(&info, request).await }).await {
                Ok(Ok(page)) => return Some(page.objects.len()),
                Ok(Err(error)) => self.judge_error("list a new bucket", &error),
                Err(_) => {}
            }
            self.pause(30).await;
        }
        None
    }

    /// A deleted bucket is in no listing and takes no writes.
    async fn judge_removed(&self, name: &str, info: &BucketInfo) -> Option<()> {
        let serving = self.serving().await;
        let client = serving.client.clone();
        if let Ok(Ok(buckets)) = serving.run(async move { client.list_buckets().await }).await
            && buckets.iter().any(|bucket| bucket.name == name)
        {
            self.recorder.violation(format!("bucket {name} was deleted and is still listed"));
        }
        if matches!(self.put_into(&serving, info, b"late").await, Judged::Done(())) {
            self.recorder.violation(format!("bucket {name} was deleted and still takes objects"));
        }
        Some(())
    }
}
