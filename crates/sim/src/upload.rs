//! Multipart uploads: parts in parallel, parts sent again, completion and abortion alone and against each other.

use base::env::RandomExt;
use bytes::Bytes;
use client::{BucketInfo, CompleteRequest, CreateUpload, Error, FinishPart, NamedPart};
use futures_util::future::{join, join_all};

use crate::cluster::{NoAnswer, Serving};
use crate::content::{Content, Run};
use crate::history::{Action, Condition, Outcome, Value};
use crate::recorder::KeyName;
use crate::worker::{self, Judged, Worker};

/// Smallest size of every part but the last, as S3 has it.
const PART_BYTES_MIN: u64 = 5 << 20;
/// How often a part or a completion is tried again when its outcome is unknown.
const TRIES_MAX: u32 = 4;

/// A part as it was stored last.
#[derive(Clone, Copy)]
struct SentPart {
    number: u32,
    run: Run,
}

impl SentPart {
    fn etag(&self) -> String {
        format!("part-{:x}", self.run.seed)
    }
}

/// An upload in progress.
struct InProgress {
    key: KeyName,
    id: Bytes,
}

impl Worker {
    /// One upload from its creation to whatever end.
    pub async fn upload(&self, serving: &Serving, info: &BucketInfo, key: &KeyName) {
        let create = CreateUpload { key: key.key.clone(), owner: "root".into(), ..CreateUpload::default() };
        let (client, bucket) = (serving.client.clone(), info.clone());
        let created = serving.run(async move { client.create_upload(&bucket, create).await }).await;
        let Judged::Done(id) = self.judge("create upload", Condition::Always, created) else { return };
        let upload = InProgress { key: key.clone(), id };
        let Some(parts) = self.send_parts(info, &upload).await else { return };
        self.recorder.count("uploads", 1);
        match self.sim.below(10) {
            0 => {}
            1 => {
                let serving = self.serving().await;
                let aborted = self.abort(&serving, info, &upload).await;
                self.judge_gone(info, &upload, matches!(aborted, Judged::Done(()))).await;
            }
            2..4 => self.race(info, &upload, &parts).await,
            _ => {
                self.complete(info, &upload, &parts, false).await;
            }
        }
    }

    /// Sends one to three parts in parallel, some of them twice. `None`: given up, the upload stays open.
    async fn send_parts(&self, info: &BucketInfo, upload: &InProgress) -> Option<Vec<SentPart>> {
        let is_large = self.sim.below(10_000) < self.plan.large_per_myriad;
        let count = if is_large { 1 + self.sim.below(2) } else { 0 };
        let mut sizes = vec![PART_BYTES_MIN + self.sim.below(3); count as usize];
        sizes.push(self.plan.draw_size(&self.sim));
        let mut number = 0;
        let sends = sizes.into_iter().map(|len| {
            number += 1 + self.sim.below(3) as u32;
            self.send_part(info, upload, number, len)
        });
        join_all(sends).await.into_iter().collect()
    }

    async fn send_part(&self, info: &BucketInfo, upload: &InProgress, number: u32, len: u64) -> Option<SentPart> {
        let mut sent = None;
        let mut again = self.sim.below(5) == 0;
        for _ in 0..TRIES_MAX {
            let part = SentPart { number, run: Run { seed: self.sim.below(1 << 48), len } };
            let serving = self.serving().await;
            let (client, bucket, key, id) =
                (serving.client.clone(), info.clone(), upload.key.key.clone(), upload.id.clone());
            let answer = serving.run(async move {
                let mut writer = client.write(&bucket, key, None);
                writer.write(part.run.bytes(0..len)).await?;
                let finish = FinishPart { upload: id, number, etag: part.etag(), ..FinishPart::default() };
                writer.finish_part(finish).await
            });
            match self.judge("put part", Condition::Always, answer.await) {
                Judged::Done(_) => sent = Some(part),
                // It may still come, from wherever it is under way, and replace what is sent after it.
                Judged::Pending => return None,
                Judged::Unknown if self.plan.nodes > 1 => return None,
                // Sent again under the same number: whichever was stored, the next one replaces it.
                _ => {
                    sent = None;
                    continue;
                }
            }
            if !again {
                break;
            }
            again = false;
        }
        sent
    }

    /// Completes the upload; tries again while the outcome is unknown. Answers whether it was acknowledged.
    async fn complete(&self, info: &BucketInfo, upload: &InProgress, parts: &[SentPart], is_raced: bool) -> bool {
        let runs = parts.iter().map(|part| part.run).collect();
        let value = self.recorder.new_value(&upload.key, |_| Content { runs });
        let condition = if self.sim.below(5) == 0 { Condition::Absent } else { Condition::Always };
        let begin = self.recorder.moment();
        let action = Action::Put { value, condition };
        let mut is_unknown = false;
        for _ in 0..TRIES_MAX {
            let serving = self.serving().await;
            let answer = self.try_complete(&serving, info, upload, parts, value, condition).await;
            let judged = match answer {
                Ok(Err(Error::NoSuchUpload)) if is_unknown || is_raced => Judged::Nothing,
                // An earlier try has won, and now stands in its own way.
                Ok(Err(Error::PreconditionFailed)) if is_unknown => Judged::Unknown,
                answer => self.judge("complete upload", condition, answer),
            };
            let outcome = match judged {
                Judged::Unknown | Judged::Pending => {
                    is_unknown = true;
                    continue;
                }
                Judged::Nothing if is_unknown => break,
                Judged::Nothing => return false,
                Judged::Refused => Outcome::Refused,
                Judged::Done(written) => {
                    self.recorder.learn_version(value, &written.version);
                    self.recorder.count("uploads_completed", 1);
                    Outcome::Done
                }
            };
            self.recorder.record(self.id, &upload.key, begin, action, outcome);
            return outcome == Outcome::Done;
        }
        self.recorder.record(self.id, &upload.key, begin, action, Outcome::Unknown);
        false
    }

    async fn try_complete(
        &self,
        serving: &Serving,
        info: &BucketInfo,
        upload: &InProgress,
        parts: &[SentPart],
        value: Value,
        condition: Condition,
    ) -> Result<Result<client::Written, Error>, NoAnswer> {
        let named =
            parts.iter().map(|part| NamedPart { number: part.number, etag: part.etag(), ..NamedPart::default() });
        let request = CompleteRequest {
            parts: named.collect(),
            etag: value.etag(),
            precondition: worker::precondition(condition),
            ..CompleteRequest::default()
        };
        let (client, bucket) = (serving.client.clone(), info.clone());
        let (key, id) = (upload.key.key.clone(), upload.id.clone());
        serving.run(async move { client.complete_upload(&bucket, &key, &id, request).await }).await
    }

    async fn abort(&self, serving: &Serving, info: &BucketInfo, upload: &InProgress) -> Judged<()> {
        let (client, bucket) = (serving.client.clone(), info.clone());
        let (key, id) = (upload.key.key.clone(), upload.id.clone());
        let answer = serving.run(async move { client.abort_upload(&bucket, &key, &id).await }).await;
        match answer {
            // A completion was faster.
            Ok(Err(Error::NoSuchUpload)) => Judged::Nothing,
            answer => self.judge("abort upload", Condition::Always, answer),
        }
    }

    /// Completion against abortion: at most one of them is acknowledged.
    async fn race(&self, info: &BucketInfo, upload: &InProgress, parts: &[SentPart]) {
        let serving = self.serving().await;
        let abort = self.abort(&serving, info, upload);
        let complete = self.complete(info, upload, parts, true);
        let (aborted, is_completed) = join(abort, complete).await;
        self.recorder.count("upload_races", 1);
        let is_aborted = matches!(aborted, Judged::Done(()));
        if is_aborted && is_completed {
            self.recorder.violation(format!("upload to {:?}: completed and aborted", upload.key.key));
        }
        self.judge_gone(info, upload, is_aborted || is_completed).await;
    }

    /// An upload that has ended is not there any more.
    async fn judge_gone(&self, info: &BucketInfo, upload: &InProgress, has_ended: bool) {
        let serving = self.serving().await;
        let (client, bucket) = (serving.client.clone(), info.clone());
        let (key, id) = (upload.key.key.clone(), upload.id.clone());
        match serving.run(async move { client.upload(&bucket, &key, &id).await }).await {
            Ok(Ok(_)) if has_ended => {
                self.recorder.violation(format!("upload to {:?} has ended and is still there", upload.key.key));
            }
            Ok(Ok(_) | Err(Error::NoSuchUpload)) | Err(_) => {}
            Ok(Err(error)) => self.judge_error("upload", &error),
        }
    }
}
