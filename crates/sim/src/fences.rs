//! Clients that take locks and write what these protect. Once a write under a token is acknowledged, no write with a lower
//! token that begins afterwards is done; and tokens rise in the order in which they are handed out.

use base::env::RandomExt;
use bytes::Bytes;
use client::{BucketInfo, DeleteRequest, Error, Fence, FinishPut, Terms};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::cluster::{OWNER, Serving};
use crate::worker::Worker;

const BUCKET: &str = "fenced";
const LOCKS: u64 = 2;

/// What is known of the tokens.
#[derive(Default)]
pub struct Tokens {
    /// By lock.
    locks: Mutex<BTreeMap<u64, Known>>,
    /// The highest that was handed out.
    newest: Mutex<u64>,
}

#[derive(Clone, Copy, Default)]
struct Known {
    /// The highest under which a write was acknowledged, and under which one was sent.
    acknowledged: u64,
    sent: u64,
}

impl Tokens {
    fn with<T>(&self, lock: u64, look: impl FnOnce(&mut Known) -> T) -> T {
        look(self.locks.lock().unwrap_or_else(PoisonError::into_inner).entry(lock).or_default())
    }

    fn newest(&self) -> std::sync::MutexGuard<'_, u64> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Takes locks and writes, through all troubles. Others take them meanwhile: nobody gives one back.
    pub async fn hold_locks(self) {
        let mut left = self.plan.operations;
        while left > 0 {
            left -= 1;
            let lock = self.sim.below(LOCKS);
            let Some(token) = self.take_lock().await else { continue };
            for _ in 0..1 + self.sim.below(6) {
                left = left.saturating_sub(1);
                self.write_under(lock, token).await;
                // Sometimes so long that somebody else takes the lock, or that the node is voted out meanwhile.
                let pause = [10, 100, 3000][self.sim.below(3) as usize];
                self.pause(self.sim.below(pause)).await;
            }
        }
    }

    async fn take_lock(&self) -> Option<u64> {
        let serving = self.serving().await;
        let before = *self.tokens.newest();
        let client = serving.client.clone();
        match serving.run(async move { client.next_fence().await }).await {
            Ok(Ok(token)) => {
                if token <= before {
                    self.recorder.violation(format!("fence token {token} was handed out after {before}"));
                }
                let mut newest = self.tokens.newest();
                *newest = token.max(*newest);
                Some(token)
            }
            Ok(Err(error)) => {
                self.judge_error("next fence", &error);
                None
            }
            Err(_) => None,
        }
    }

    async fn write_under(&self, lock: u64, token: u64) {
        let serving = self.serving().await;
        let Some(bucket) = self.fenced_bucket(&serving).await else { return };
        let fence = Fence { key: Bytes::from(format!("lock{lock}")), token };
        let bucket = bucket.under(Terms { fence: Some(fence), ..Terms::default() });
        let key = Bytes::from(format!("state{lock}"));
        let client = serving.client.clone();
        let floor = self.tokens.with(lock, |known| {
            known.sent = known.sent.max(token);
            known.acknowledged
        });
        let (deletes, size) = (self.sim.below(4) == 0, self.sim.below(20_000));
        let write = serving.run(async move {
            if deletes {
                return client.delete(&bucket, &key, DeleteRequest::default()).await.map(drop);
            }
            let mut writer = client.write(&bucket, key, None);
            writer.write(vec![7; size as usize].into()).await?;
            writer.finish(FinishPut::default()).await.map(drop)
        });
        let known = |change: fn(&mut Known, u64)| self.tokens.with(lock, |known| (change(known, token), *known).1);
        match write.await {
            // A DELETE of what is absent was decided behind the floor, too.
            Ok(Ok(()) | Err(Error::NoSuchKey)) if token < floor => {
                self.recorder.violation(format!("a write under token {token} was done after one under {floor}"));
            }
            Ok(Ok(()) | Err(Error::NoSuchKey)) => {
                known(|known, token| known.acknowledged = known.acknowledged.max(token));
                self.recorder.count("fenced_writes", 1);
            }
            Ok(Err(Error::StaleFence(why))) => {
                self.recorder.count("fenced_out", 1);
                if known(|_, _| ()).sent <= token {
                    self.recorder.violation(format!("a write under the newest token {token} was refused: {why}"));
                }
            }
            Ok(Err(error)) => self.judge_error("fenced write", &error),
            Err(_) => {}
        }
    }

    async fn fenced_bucket(&self, serving: &Serving) -> Option<BucketInfo> {
        let client = serving.client.clone();
        let made = serving.run(async move {
            match client.bucket(BUCKET).await {
                Err(Error::NoSuchBucket) => {
                    let made = client.create_bucket(BUCKET, OWNER).await?;
                    client.require_fence(BUCKET, true).await?;
                    Ok(made)
                }
                found => found,
            }
        });
        match made.await {
            Ok(Ok(bucket)) => Some(bucket),
            // Another client makes it at this moment.
            Ok(Err(Error::BucketExists { .. } | Error::NoSuchBucket)) | Err(_) => None,
            Ok(Err(error)) => {
                self.judge_error("bucket", &error);
                None
            }
        }
    }
}
