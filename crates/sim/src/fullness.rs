//! A disk is filled to the brim: writes get a clear error, reads and deletes work, and after deletes so do writes.

use base::MIB;
use base::env::RandomExt;
use bytes::Bytes;
use client::{BucketInfo, DeleteRequest, Error};
use std::collections::BTreeMap;

use crate::cluster::{FOUNDER, OWNER};
use crate::content::Content;
use crate::history::{Condition, Value};
use crate::nemesis::Nemesis;
use crate::worker;

/// Objects that surely do not fit.
const OBJECTS_MAX: u32 = 400;
/// Virtual seconds after which space must have come back.
const EMPTY_SECONDS_MAX: u32 = 120;
const BUCKET: &str = "filler";

/// What was stored to fill the disk.
struct Filling {
    info: BucketInfo,
    stored: BTreeMap<u32, Content>,
}

impl Nemesis {
    /// `false`: the node is gone.
    pub async fn fill_and_empty(&self) -> bool {
        let Some(mut filling) = self.make_filler().await else { return true };
        if !self.fill(&mut filling).await {
            self.recorder.violation("the disk takes more than it can hold".into());
            return true;
        }
        self.recorder.count("disks_filled", 1);
        self.read_some(&filling).await;
        if self.sim.below(2) == 0 {
            self.cluster.crash(FOUNDER).await;
            if self.start_undisturbed().await.is_err() {
                return false;
            }
            self.read_some(&filling).await;
        }
        self.empty(&filling).await;
        self.await_room(&filling).await;
        true
    }

    async fn make_filler(&self) -> Option<Filling> {
        let serving = self.verifier.serving().await;
        let client = serving.client.clone();
        match serving.run(async move { client.create_bucket(BUCKET, OWNER).await }).await {
            Ok(Ok(info)) => Some(Filling { info, stored: BTreeMap::new() }),
            other => {
                self.recorder.violation(format!("a bucket on an empty disk: {other:?}"));
                None
            }
        }
    }

    async fn put_filler(&self, info: &BucketInfo, number: u32) -> Result<Content, Error> {
        let serving = self.verifier.serving().await;
        let len = [MIB, 2 * MIB, 200 << 10, 4 * MIB][self.sim.below(4) as usize];
        let content = Content::one(u64::from(number) << 32, len);
        let write = (Value(number), content.clone());
        let (client, info, key) = (serving.client.clone(), info.clone(), filler_key(number));
        let put = worker::put(client, info, key, write, Condition::Always, usize::MAX);
        match serving.run(put).await {
            Ok(answer) => answer.map(|_| content),
            Err(_) => Err(Error::OutcomeUnknown("the node crashed".into())),
        }
    }

    /// `false`: it never became full.
    async fn fill(&self, filling: &mut Filling) -> bool {
        for number in 0..OBJECTS_MAX {
            match self.put_filler(&filling.info, number).await {
                Ok(content) => {
                    filling.stored.insert(number, content);
                }
                Err(Error::Full) => return true,
                Err(error) => {
                    self.recorder.violation(format!("a put on a disk that fills up was answered {error:?}"));
                    return true;
                }
            }
        }
        false
    }

    async fn read_some(&self, filling: &Filling) {
        for (number, content) in filling.stored.iter().step_by(7) {
            let serving = self.verifier.serving().await;
            let (client, info) = (serving.client.clone(), filling.info.clone());
            let got = serving.run(worker::get(client, info, filler_key(*number), None, 0..1000)).await;
            let pieces = match got {
                Ok(Ok(worker::Got { body: Ok(pieces), .. })) => pieces,
                Ok(Ok(worker::Got { body: Err(error), .. }) | Err(error)) => {
                    self.recorder.violation(format!("a read on a full disk was answered {error:?}"));
                    return;
                }
                Err(_) => return,
            };
            if content.compare(0, &pieces.concat()).is_err() {
                self.recorder.violation("WRONG BYTES on a full disk".into());
            }
        }
    }

    async fn empty(&self, filling: &Filling) {
        for number in filling.stored.keys() {
            let serving = self.verifier.serving().await;
            let (client, info, key) = (serving.client.clone(), filling.info.clone(), filler_key(*number));
            let answer = serving.run(async move { client.delete(&info, &key, DeleteRequest::default()).await }).await;
            if let Ok(Err(error)) = answer {
                self.recorder.violation(format!("a delete on a full disk was answered {error:?}"));
                return;
            }
        }
    }

    async fn await_room(&self, filling: &Filling) {
        let mut last = None;
        for _ in 0..EMPTY_SECONDS_MAX {
            match self.put_filler(&filling.info, OBJECTS_MAX).await {
                Ok(_) => {
                    self.recorder.count("disks_emptied", 1);
                    return;
                }
                Err(error) => last = Some(error),
            }
            self.verifier.pause(1000).await;
        }
        self.recorder.violation(format!("after everything was deleted, a put is still answered {last:?}"));
    }
}

fn filler_key(number: u32) -> Bytes {
    Bytes::from(format!("filler-{number:04}"))
}
