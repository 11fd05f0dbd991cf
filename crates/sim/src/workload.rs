//! What clients do to the keys of the plan's buckets: writes, reads, deletes, listings, all at once.

use base::env::RandomExt;
use bytes::Bytes;
use client::{BucketInfo, DeleteRequest, Error, ListObjectsRequest, ListVersionsRequest, ObjectPage};
use futures_util::future::join_all;
use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::cluster::Serving;
use crate::content::Content;
use crate::history::{Action, Condition, Entry, Outcome, Value};
use crate::plan::Profile;
use crate::recorder::KeyName;
use crate::worker::{self, Got, Judged, Worker};

/// Pages of one listing.
const PAGES_MAX: u32 = 1000;

/// Between two operations of a client that goes on until a story has been told.
const STORY_PAUSE_MILLIS: u64 = 200;
/// The same where much happens besides.
const STORM_PAUSE_MILLIS: u64 = 500;

/// The whole of an object, in thousandths.
const WHOLE: Range<u64> = 0..1000;

impl Worker {
    /// Works through its share of operations, through all crashes.
    pub async fn work(self) {
        let is_story = self.plan.profile.is_story();
        let pause_millis = if self.plan.profile == Profile::Storm { STORM_PAUSE_MILLIS } else { STORY_PAUSE_MILLIS };
        for _ in 0..self.plan.operations {
            if is_story && self.excuses.told.load(Ordering::Relaxed) {
                return;
            }
            let serving = self.serving().await;
            self.operate(&serving).await;
            self.recorder.count("operations", 1);
            // Mostly no pause, sometimes a long one: lulls let background work come to its end.
            // In a cluster they must last through troubles of seconds.
            let slower = if self.plan.nodes > 1 { 8 } else { 1 };
            match self.sim.below(20) {
                _ if is_story => self.pause(20 + self.sim.below(pause_millis)).await,
                0 => self.pause(self.sim.below(400) * slower).await,
                1..5 => self.pause(self.sim.below(20) * slower).await,
                _ => {}
            }
        }
    }

    async fn operate(&self, serving: &Serving) {
        let bucket = self.sim.below(self.plan.buckets.len() as u64) as usize;
        let key = &self.plan.keys[self.sim.below(self.plan.keys.len() as u64) as usize];
        let key = self.key(bucket, key);
        let Some(info) = self.bucket(serving, bucket).await else { return };
        let is_versioned = self.is_versioned(bucket);
        if self.plan.nodes > 1 && self.sim.below(25) == 0 {
            return self.race_to_create(&info, &key).await;
        }
        match self.sim.below(100) {
            0..30 => self.put(serving, &info, &key, Condition::Always).await,
            30..35 => self.put(serving, &info, &key, Condition::Absent).await,
            35..40 => {
                let condition = self.guess(&key).map_or(Condition::Absent, Condition::Is);
                self.put(serving, &info, &key, condition).await;
            }
            40..42 => self.abandon(serving, &info, &key).await,
            42..64 => self.get(serving, &info, &key).await,
            64..68 => self.head(serving, &info, &key).await,
            68..77 => self.delete(serving, &info, &key, Condition::Always).await,
            77..79 => {
                if let Some(value) = self.guess(&key) {
                    self.delete(serving, &info, &key, Condition::Is(value)).await;
                }
            }
            79..87 => self.list(serving, &info, bucket).await,
            87..91 if is_versioned => self.delete_version(serving, &info, &key).await,
            91..94 if is_versioned => self.read_version(serving, &info, &key).await,
            94..96 if is_versioned => self.list_versions(serving, &info, &key).await,
            _ => self.upload(serving, &info, &key).await,
        }
    }

    /// The same key is created through all gateways at once: the key's history knows of one winner at most.
    async fn race_to_create(&self, info: &BucketInfo, key: &KeyName) {
        let gateways = self.cluster.all_serving();
        self.recorder.count("creation_races", 1);
        join_all(gateways.iter().map(|serving| self.put(serving, info, key, Condition::Absent))).await;
    }

    /// A recent value of the key: perhaps the present one.
    fn guess(&self, key: &KeyName) -> Option<Value> {
        self.recorder.recent_value(key, self.sim.below(2) as usize)
    }

    pub async fn put(&self, serving: &Serving, info: &BucketInfo, key: &KeyName, condition: Condition) {
        let len = self.plan.draw_size(&self.sim);
        self.put_len(serving, info, key, condition, len).await;
    }

    /// Answers whether it was acknowledged.
    pub async fn put_len(
        &self,
        serving: &Serving,
        info: &BucketInfo,
        key: &KeyName,
        condition: Condition,
        len: u64,
    ) -> bool {
        let value = self.recorder.new_value(key, |value| Content::one(u64::from(value.0), len));
        let content = self.recorder.written(value).expect("it was just made").content;
        let piece_len = [usize::MAX, 64 << 10, 100_000][self.sim.below(3) as usize];
        let put =
            worker::put(serving.client.clone(), info.clone(), key.key.clone(), (value, content), condition, piece_len);
        let begin = self.recorder.moment();
        let judged = self.judge("put", condition, serving.run(put).await);
        if let Judged::Done(written) = &judged {
            self.recorder.learn_version(value, &written.version);
            self.recorder.count("puts_acknowledged", 1);
        }
        self.record_write(serving, key, begin, Action::Put { value, condition }, &judged);
        matches!(judged, Judged::Done(_))
    }

    /// A client that goes away in the middle of its body.
    async fn abandon(&self, serving: &Serving, info: &BucketInfo, key: &KeyName) {
        let (client, info, key) = (serving.client.clone(), info.clone(), key.key.clone());
        let content = Content::one(self.sim.below(1 << 40), 5 << 20);
        let abandoned = serving.run(async move {
            let mut writer = client.write(&info, key, None);
            let written = writer.write(content.runs[0].bytes(0..content.len())).await;
            drop(writer);
            written
        });
        self.judge("abandoned put", Condition::Always, abandoned.await);
    }

    pub async fn get(&self, serving: &Serving, info: &BucketInfo, key: &KeyName) {
        let part = match self.sim.below(3) {
            0 => {
                let start = self.sim.below(1000);
                start..start + self.sim.below(1001 - start)
            }
            _ => WHOLE,
        };
        self.get_part(serving, info, key, part).await;
    }

    pub async fn get_whole(&self, serving: &Serving, info: &BucketInfo, key: &KeyName) {
        self.get_part(serving, info, key, WHOLE).await;
    }

    async fn get_part(&self, serving: &Serving, info: &BucketInfo, key: &KeyName, part: Range<u64>) {
        let begin = self.recorder.moment();
        let get = worker::get(serving.client.clone(), info.clone(), key.key.clone(), None, part);
        let Ok(answer) = serving.run(get).await else { return };
        match answer {
            Ok(got) => {
                if let Some((value, _)) = self.identify(key, &got.object) {
                    self.recorder.record(self.id, key, begin, Action::Read { found: Some(value) }, Outcome::Done);
                }
                self.compare(key, &got);
                self.judge_body(serving, info, key, &got).await;
            }
            Err(error) => self.judge_absence(key, begin, &error),
        }
    }

    /// A body may break off because the object was replaced meanwhile; otherwise never.
    async fn judge_body(&self, serving: &Serving, info: &BucketInfo, key: &KeyName, got: &Got) {
        let Err(error) = &got.body else { return };
        if self.are_errors_excused() {
            return self.judge_error("get", error);
        }
        let (client, info, name) = (serving.client.clone(), info.clone(), key.key.clone());
        let version = Some(got.object.version.clone()).filter(|_| self.is_versioned(key.bucket));
        let Ok(again) = serving.run(async move { client.head(&info, &name, version).await }).await else { return };
        if again.is_ok_and(|again| again.attributes == got.object.attributes) {
            self.judge_error("get of an object that is still there", error);
        }
    }

    fn judge_absence(&self, key: &KeyName, begin: u64, error: &Error) {
        match error {
            Error::NoSuchKey | Error::DeleteMarker { .. } => {
                self.recorder.record(self.id, key, begin, Action::Read { found: None }, Outcome::Done);
            }
            other => self.judge_error("get", other),
        }
    }

    pub async fn head(&self, serving: &Serving, info: &BucketInfo, key: &KeyName) {
        let (client, info, name) = (serving.client.clone(), info.clone(), key.key.clone());
        let begin = self.recorder.moment();
        let Ok(answer) = serving.run(async move { client.head(&info, &name, None).await }).await else { return };
        match answer {
            Ok(object) => {
                if let Some((value, _)) = self.identify(key, &object) {
                    self.recorder.record(self.id, key, begin, Action::Read { found: Some(value) }, Outcome::Done);
                }
            }
            Err(error) => self.judge_absence(key, begin, &error),
        }
    }

    pub async fn delete(&self, serving: &Serving, info: &BucketInfo, key: &KeyName, condition: Condition) {
        let request = DeleteRequest { precondition: worker::precondition(condition), ..DeleteRequest::default() };
        let (client, info, name) = (serving.client.clone(), info.clone(), key.key.clone());
        let begin = self.recorder.moment();
        let answer = serving.run(async move { client.delete(&info, &name, request).await }).await;
        let judged = self.judge("delete", condition, answer);
        self.record_write(serving, key, begin, Action::Delete { condition }, &judged);
    }

    pub fn record_write<T>(&self, serving: &Serving, key: &KeyName, begin: u64, action: Action, judged: &Judged<T>) {
        if let Some(outcome) = judged.outcome() {
            let is_over = !matches!(judged, Judged::Pending);
            let session = is_over.then(|| serving.client.session());
            self.recorder.record_write(self.id, session, key, begin, action, outcome);
        }
    }

    async fn delete_version(&self, serving: &Serving, info: &BucketInfo, key: &KeyName) {
        let Some(drawn) = self.draw_version(key) else { return };
        self.delete_this_version(serving, info, key, drawn).await;
    }

    pub async fn delete_this_version(
        &self,
        serving: &Serving,
        info: &BucketInfo,
        key: &KeyName,
        (value, version): (Value, Bytes),
    ) {
        let request = DeleteRequest { version: Some(version), ..DeleteRequest::default() };
        let (client, info, name) = (serving.client.clone(), info.clone(), key.key.clone());
        let begin = self.recorder.moment();
        let answer = serving.run(async move { client.delete(&info, &name, request).await }).await;
        let judged = self.judge("delete version", Condition::Always, answer);
        self.record_write(serving, key, begin, Action::DeleteVersion { value }, &judged);
    }

    fn draw_version(&self, key: &KeyName) -> Option<(Value, Bytes)> {
        let known = self.recorder.versions_of(key);
        let count = known.len() as u64;
        (count > 0).then(|| known[self.sim.below(count) as usize].clone())
    }

    async fn read_version(&self, serving: &Serving, info: &BucketInfo, key: &KeyName) {
        let Some((value, version)) = self.draw_version(key) else { return };
        let begin = self.recorder.moment();
        let get = worker::get(serving.client.clone(), info.clone(), key.key.clone(), Some(version), WHOLE);
        let Ok(answer) = serving.run(get).await else { return };
        let found = match answer {
            Ok(got) => {
                self.compare(key, &got);
                self.judge_body(serving, info, key, &got).await;
                if self.identify(key, &got.object).is_some_and(|(other, _)| other != value) {
                    self.recorder.violation(format!("key {:?}: another version has the id of {value:?}", key.key));
                }
                true
            }
            Err(Error::NoSuchVersion | Error::NoSuchKey) => false,
            Err(error) => return self.judge_error("get version", &error),
        };
        self.recorder.record(self.id, key, begin, Action::ReadVersion { value, found }, Outcome::Done);
    }

    /// All versions of one key, as one read.
    pub async fn list_versions(&self, serving: &Serving, info: &BucketInfo, key: &KeyName) {
        let request = ListVersionsRequest { prefix: key.key.clone(), limit: 1000, ..ListVersionsRequest::default() };
        let (client, info) = (serving.client.clone(), info.clone());
        let begin = self.recorder.moment();
        let Ok(answer) = serving.run(async move { client.list_versions(&info, request).await }).await else { return };
        let page = match answer {
            Ok(page) => page,
            Err(error) => return self.judge_error("list versions", &error),
        };
        if page.truncated {
            return;
        }
        let mut found = Vec::new();
        for object in page.objects.iter().rev() {
            if object.delete_marker {
                found.push(Entry::Marker);
            } else if let Some((value, _)) = self.identify(key, object) {
                self.recorder.learn_version(value, &object.version);
                found.push(Entry::Value(value));
            }
        }
        self.recorder.record(self.id, key, begin, Action::ReadVersions { found }, Outcome::Done);
    }

    /// A listing in pages. Each page is a read of every key in its range, those included that are not there.
    pub async fn list(&self, serving: &Serving, info: &BucketInfo, bucket: usize) {
        let prefix = [&b""[..], b"", b"a/", b"b/"][self.sim.below(4) as usize];
        let delimiter = if self.sim.below(4) == 0 { &b"/"[..] } else { b"" };
        let mut request = ListObjectsRequest {
            prefix: Bytes::from_static(prefix),
            delimiter: Bytes::from_static(delimiter),
            after: Bytes::new(),
            limit: 1 + self.sim.below(6) as u32,
        };
        for _ in 0..PAGES_MAX {
            let begin = self.recorder.moment();
            let (client, info, asked) = (serving.client.clone(), info.clone(), request.clone());
            let Ok(answer) = serving.run(async move { client.list_objects(&info, asked).await }).await else { return };
            match answer {
                Ok(page) => {
                    let end = self.recorder.moment();
                    self.judge_page(bucket, &request, &page, (begin, end));
                    if !page.truncated {
                        return;
                    }
                    request.after = page.next_after;
                }
                Err(error) => return self.judge_error("list", &error),
            }
        }
        self.recorder.violation(format!("a listing of {:?} has no end", info.name));
    }

    fn judge_page(&self, bucket: usize, request: &ListObjectsRequest, page: &ObjectPage, span: (u64, u64)) {
        let listed: Vec<&Bytes> = page.objects.iter().map(|object| &object.key).collect();
        let is_sorted = listed.windows(2).all(|pair| pair[0] < pair[1]) && page.prefixes.is_sorted();
        let is_inside = listed.iter().all(|key| key.starts_with(&request.prefix) && **key > request.after);
        let count = page.objects.len() + page.prefixes.len();
        if !is_sorted || !is_inside || count > request.limit as usize || !page.resume.is_empty() {
            self.recorder.violation(format!("a page is out of order or bounds: {request:?} -> {page:?}"));
        }
        for object in &page.objects {
            if !self.plan.keys.contains(&object.key) {
                self.recorder.violation(format!("a listing names {:?}, which nobody wrote", object.key));
            }
        }
        let is_folded =
            |key: &Bytes| !request.delimiter.is_empty() && key[request.prefix.len()..].contains(&request.delimiter[0]);
        for key in &self.plan.keys {
            let is_covered = key.starts_with(&request.prefix)
                && *key > request.after
                && (!page.truncated || *key <= page.next_after)
                && !is_folded(key);
            if !is_covered {
                continue;
            }
            let name = self.key(bucket, key);
            let object = page.objects.iter().find(|object| object.key == *key);
            let found = object.and_then(|object| self.identify(&name, object)).map(|(value, _)| value);
            self.recorder.record_span(self.id, &name, span, Action::Read { found }, Outcome::Done);
        }
        self.recorder.count("pages_listed", 1);
    }
}
