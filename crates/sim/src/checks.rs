//! What must hold when everything is quiet: every key as its history says, listings equal to reads, background work
//! done, metadata and chunks naming each other exactly.

use base::Env;
use base::env::{Disk, RandomExt};
use base::ids::{ChunkId, PoolId};
use bytes::Bytes;
use client::ListObjectsRequest;
use meta::object::{NamedChunk, references};
use node::Verdict;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use store::Engine;
use store::kv::{KvRead, LsmKv};
use tokio::sync::oneshot;

use crate::cluster::{FOUNDER, Serving};
use crate::history::{Action, Condition, Outcome};
use crate::nemesis::Nemesis;
use crate::plan::Profile;
use crate::worker::Worker;

/// Virtual time in which garbage, orphans and compaction must come to their end when nobody writes.
const QUIET: Duration = Duration::from_secs(6);
/// Long enough for the first scrub, which begins ten minutes after a start.
pub const QUIET_LONG: Duration = Duration::from_secs(620);
/// Virtual time within which a healthy node must take a write.
const SERVICE_MAX: Duration = Duration::from_secs(20);

/// One of each kind: inline, a small chunk, a large one.
const SERVICE_LENS: [u64; 3] = [100, 5000, 300_000];

impl Worker {
    /// Reads every key of every bucket: what it is, and (`whole`) all its bytes.
    pub async fn read_all(&self, serving: &Serving, whole: bool) {
        for bucket in 0..self.plan.buckets.len() {
            let Some(info) = self.bucket(serving, bucket).await else { return };
            for key in &self.plan.keys {
                let key = self.key(bucket, key);
                if whole {
                    self.get_whole(serving, &info, &key).await;
                } else {
                    self.head(serving, &info, &key).await;
                }
            }
        }
    }

    /// Listings of all shapes against one listing of everything, which is itself checked against the histories.
    pub async fn check_listings(&self, serving: &Serving) {
        for bucket in 0..self.plan.buckets.len() {
            let Some(info) = self.bucket(serving, bucket).await else { return };
            let begin = self.recorder.moment();
            let request = ListObjectsRequest { limit: 1000, ..ListObjectsRequest::default() };
            let (client, asked) = (serving.client.clone(), info.clone());
            let Ok(Ok(page)) = serving.run(async move { client.list_objects(&asked, request).await }).await else {
                self.recorder.violation("a quiet, healthy node does not list".into());
                return;
            };
            for key in &self.plan.keys {
                let name = self.key(bucket, key);
                let object = page.objects.iter().find(|object| object.key == *key);
                let found = object.and_then(|object| self.identify(&name, object)).map(|(value, _)| value);
                self.recorder.record(self.id, &name, begin, Action::Read { found }, Outcome::Done);
                if self.is_versioned(bucket) {
                    self.list_versions(serving, &info, &name).await;
                }
            }
            let keys: Vec<Bytes> = page.objects.iter().map(|object| object.key.clone()).collect();
            self.check_folders(serving, &info, &keys).await;
            for _ in 0..3 {
                self.list(serving, &info, bucket).await;
            }
        }
    }

    /// A listing with a delimiter, page by page, against the same made from all keys.
    async fn check_folders(&self, serving: &Serving, info: &client::BucketInfo, keys: &[Bytes]) {
        let mut expected = BTreeSet::new();
        for key in keys {
            let end = key.iter().position(|byte| *byte == b'/').map_or(key.len(), |at| at + 1);
            expected.insert(key.slice(..end));
        }
        let mut found = Vec::new();
        let limit = 1 + self.sim.below(3) as u32;
        let mut request =
            ListObjectsRequest { delimiter: Bytes::from_static(b"/"), limit, ..ListObjectsRequest::default() };
        loop {
            let (client, info, asked) = (serving.client.clone(), info.clone(), request.clone());
            let Ok(Ok(page)) = serving.run(async move { client.list_objects(&info, asked).await }).await else {
                self.recorder.violation("a quiet, healthy node does not list with a delimiter".into());
                return;
            };
            found.extend(page.objects.iter().map(|object| object.key.clone()).chain(page.prefixes));
            if !page.truncated || found.len() > keys.len() {
                break;
            }
            request.after = page.next_after;
        }
        found.sort();
        if found != expected.into_iter().collect::<Vec<_>>() {
            self.recorder.violation(format!("folders listed: {found:?}, of the keys {keys:?}"));
        }
    }
}

impl Nemesis {
    /// After the last trouble: one more power cut, then everything must be as it should.
    pub async fn check_all(&self) {
        self.arm(FOUNDER, 0);
        self.cluster.crash(FOUNDER).await;
        if self.start_undisturbed().await.is_err() {
            return;
        }
        let serving = self.verifier.serving().await;
        self.check_service(&serving).await;
        if self.plan.profile == Profile::DiskFull && !self.fill_and_empty().await {
            return;
        }
        let serving = self.verifier.serving().await;
        let damaged = |counts: BTreeMap<&'static str, u64>| counts.get("damaged").copied().unwrap_or(0);
        let damaged_before = damaged(self.recorder.counts());
        self.verifier.read_all(&serving, true).await;
        let has_damage = damaged(self.recorder.counts()) > damaged_before;
        if !self.verifier.are_errors_excused() {
            self.verifier.check_listings(&serving).await;
        }
        self.sim.sleep(if self.sim.below(4) == 0 { QUIET_LONG } else { QUIET }).await;
        self.check_status(has_damage);
        if self.verifier.are_errors_excused() {
            self.cluster.crash(FOUNDER).await;
            return;
        }
        self.cluster.shut_down(FOUNDER).await;
        self.check_disks().await;
    }

    pub async fn start_undisturbed(&self) -> Result<(), ()> {
        match self.cluster.start(FOUNDER).await {
            Ok(()) => Ok(()),
            Err(failure) if self.verifier.are_errors_excused() => {
                self.recorder.count("starts_refused", 1);
                drop(failure);
                Err(())
            }
            Err(failure) => {
                self.recorder.violation(format!("the last start failed: {failure:?}"));
                Err(())
            }
        }
    }

    /// Liveness: a healthy node takes a write within a bounded time.
    pub async fn check_service(&self, serving: &Serving) {
        let worker = &self.verifier;
        let key = worker.key(0, &self.plan.keys[0]);
        let puts = async {
            let Some(info) = worker.bucket(serving, 0).await else { return };
            for len in SERVICE_LENS {
                let is_done = worker.put_len(serving, &info, &key, Condition::Always, len).await;
                if !is_done && !worker.are_errors_excused() {
                    self.recorder.violation(format!(
                        "node {} is healthy and does not take an object of {len} bytes",
                        serving.node
                    ));
                }
            }
        };
        tokio::select! {
            biased;
            () = puts => {}
            () = self.sim.sleep(SERVICE_MAX) => {
                self.recorder.violation(format!("node {} is healthy and took no write within {SERVICE_MAX:?}", serving.node));
            }
        }
    }

    /// One copy is never safe; and nothing is reported that was not done.
    fn check_status(&self, has_damage: bool) {
        let Some(status) = self.cluster.status(FOUNDER) else {
            return self.recorder.violation("a running node has no status".into());
        };
        let expected = if has_damage {
            // A client was just told that its object is damaged.
            status.verdict >= Verdict::Unavailable
        } else if self.verifier.are_errors_excused() {
            status.verdict >= Verdict::AtRisk
        } else {
            status.verdict == Verdict::AtRisk && status.chunks.corrupt == 0 && status.chunks.lost == 0
        };
        let is_full = self.plan.profile == Profile::DiskFull && status.verdict == Verdict::Unavailable;
        if !expected && !is_full {
            self.recorder.violation(format!("status says {:?} because of {:?}", status.verdict, status.reasons));
        }
    }

    /// The disks of the stopped node: each chunk that metadata names exists and verifies; nobody else does.
    async fn check_disks(&self) {
        let env = self.sim.env(FOUNDER);
        let (sender, receiver) = oneshot::channel();
        let disks: Vec<Arc<dyn Disk>> =
            self.cluster.chunk_disks(FOUNDER).into_iter().map(|disk| disk as Arc<dyn Disk>).collect();
        let tuning = self.plan.tuning();
        let task_env = env.clone();
        env.spawn("check disks", async move {
            let _ = sender.send(compare_disks(&task_env, disks, tuning).await);
        });
        match receiver.await {
            Ok(Ok(problems)) => problems.into_iter().for_each(|problem| self.recorder.violation(problem)),
            Ok(Err(why)) => self.recorder.violation(format!("the stopped node's disks cannot be read: {why}")),
            Err(_) => self.recorder.violation("the check of the disks was cut short".into()),
        }
        self.sim.kill(FOUNDER);
    }
}

async fn compare_disks(env: &Env, disks: Vec<Arc<dyn Disk>>, tuning: node::Tuning) -> Result<Vec<String>, String> {
    let mut problems = Vec::new();
    let identity = Engine::read_identity(&disks[0]).await.map_err(|error| error.to_string())?;
    let seed = identity.ok_or("the metadata disk has no identity")?.disk.0;
    let opened = LsmKv::open_read_only(env, disks[0].clone(), seed, tuning.key_value.clone()).await;
    let named = named_chunks(&*opened.map_err(|error| error.to_string())?.0)?;
    let mut found = BTreeMap::new();
    for disk in disks {
        let (engine, report) =
            Engine::open(env, disk, tuning.engine.clone()).await.map_err(|error| error.to_string())?;
        if !report.damaged.is_empty() || report.torn_bytes > 0 {
            problems.push(format!("an orderly shutdown left {report:?}"));
        }
        for stat in engine.inventory(None, PoolId(1), 0..=u32::MAX >> 8, usize::MAX) {
            if let Err(error) = engine.get(stat.id, 0..u32::MAX).await {
                problems.push(format!("chunk {} cannot be read: {error}", stat.id));
            }
            if found.insert(stat.id, (stat.len, stat.crc64)).is_some() {
                problems.push(format!("chunk {} is on two disks", stat.id));
            }
        }
        engine.close().await;
    }
    for (id, name) in &named {
        match found.remove(id) {
            None if name.garbage => {}
            None => problems.push(format!("chunk {id} is named by metadata and on no disk")),
            Some(stat) if stat != (name.chunk.len, name.chunk.crc64) => {
                problems.push(format!("chunk {id} is on disk as {stat:?}, in metadata as {:?}", name.chunk));
            }
            Some(_) if name.garbage => problems.push(format!("chunk {id} is garbage and was not collected")),
            Some(_) => {}
        }
    }
    problems.extend(found.keys().map(|id: &ChunkId| format!("chunk {id} is on disk and nobody names it")));
    Ok(problems)
}

/// All chunks that rows name; each by one row only.
pub fn named_chunks(kv: &dyn KvRead) -> Result<BTreeMap<ChunkId, NamedChunk>, String> {
    const ROWS: usize = 1000;
    let mut named = BTreeMap::new();
    let mut from = Vec::new();
    loop {
        let rows = kv.scan(&from, &[0xff; 64], ROWS).map_err(|error| error.to_string())?;
        for row in &rows {
            for name in references(&row.key, &row.value).map_err(|error| error.to_string())? {
                if named.insert(name.chunk.id, name).is_some() {
                    return Err(format!("chunk {} is named twice", name.chunk.id));
                }
            }
        }
        let Some(last) = rows.last() else { return Ok(named) };
        from = [&last.key[..], &[0]].concat();
    }
}
