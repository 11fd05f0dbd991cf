//! `henge bench put` and `get`: many requests at once for a while, through S3 over HTTP as any client.

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::env::Random;

use super::ack_log::{AckLine, AckLog, Op, Outcome, now_ms};
use super::histogram::Histogram;
use super::payload::{payload, sha256, stamped};
use super::windows::{WINDOW, Windows};
use crate::admin_commands::print_json;
use crate::cli::BenchLoadArgs;
use crate::env::system_random;
use crate::failure::{Context, Failure};
use crate::s3_client::{Payload, S3Client, S3Error};
use crate::target::Target;
use crate::units::show_bytes;

/// What `get` reads is at most this many bytes and objects in all.
const GET_SET_BYTES_MAX: u64 = 256 << 20;
const GET_SET_OBJECTS_MAX: u64 = 4096;

/// How long a run that counts objects may take.
const COUNTED_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// After a request that did not reach the server or broke, before the next.
pub const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);
/// After the answer that too much is asked: what `Retry-After` says.
const PAUSE_AFTER_SLOW_DOWN: Duration = Duration::from_secs(1);
const SLOW_DOWN: u16 = 503;

/// What all workers of a run share.
pub struct Run {
    pub s3: S3Client,
    pub args: BenchLoadArgs,
    pub log: Option<AckLog>,
    /// Begins all keys of this run, so that runs never touch each other's objects.
    pub prefix: String,
    pub deadline: Instant,
    pub windows: Windows,
}

/// What one worker, or all, have seen.
#[derive(Clone)]
pub struct Tally {
    pub latencies: Histogram,
    pub bytes: u64,
    pub failed: u64,
    pub unknown: u64,
    pub not_sent: u64,
    pub wrong: u64,
}

impl Tally {
    pub fn new() -> Tally {
        Tally { latencies: Histogram::new(), bytes: 0, failed: 0, unknown: 0, not_sent: 0, wrong: 0 }
    }

    pub fn merge(&mut self, other: &Tally) {
        self.latencies.merge(&other.latencies);
        self.bytes += other.bytes;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.not_sent += other.not_sent;
        self.wrong += other.wrong;
    }

    /// Counts a put or delete and says what became of it.
    pub async fn change(&mut self, run: &Run, began: Instant, bytes: u64, answer: Result<(), S3Error>) -> Outcome {
        match answer {
            Ok(()) => {
                self.served(run, began, bytes);
                Outcome::Ok
            }
            Err(error) => self.error(&error).await,
        }
    }

    pub fn served(&mut self, run: &Run, began: Instant, bytes: u64) {
        self.latencies.record(began.elapsed());
        self.bytes += bytes;
        run.windows.count();
    }

    /// Counts an error and says what it means for the operation.
    pub async fn error(&mut self, error: &S3Error) -> Outcome {
        match error {
            S3Error::Refused { status, .. } => {
                self.failed += 1;
                if self.failed == 1 {
                    eprintln!("henge: the first refusal: {error}");
                }
                if *status == SLOW_DOWN {
                    tokio::time::sleep(PAUSE_AFTER_SLOW_DOWN).await;
                }
                Outcome::Fail
            }
            S3Error::NotSent(_) => {
                self.not_sent += 1;
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                Outcome::Fail
            }
            S3Error::Unknown(_) => {
                self.unknown += 1;
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                Outcome::Unknown
            }
        }
    }
}

/// The figures of a run.
#[derive(Serialize)]
struct Figures<'a> {
    bench: &'a str,
    size_bytes: u64,
    concurrency: u32,
    seconds: f64,
    ops: u64,
    ops_per_s: f64,
    mb_per_s: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    /// Of the stretches of ten seconds that were over: the one with the fewest operations per second, and the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    least_ops_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    median_ops_per_s: Option<f64>,
    failed: u64,
    unknown: u64,
    not_sent: u64,
    wrong: u64,
}

impl Run {
    pub async fn prepare(args: BenchLoadArgs) -> Result<Run, Failure> {
        let target = Target::find_s3(&args.target)?;
        let s3 = target.s3_client()?.with_patience(args.timeout);
        let log = args.ack_log.as_deref().map(AckLog::open).transpose()?;
        s3.ensure_bucket(&args.bucket).await.map_err(|error| {
            Failure(format!("bucket {} cannot be used on the server at {}: {error}", args.bucket, s3.address()))
        })?;
        let prefix = format!("{:012x}", system_random().next_u64() >> 16);
        let deadline = Instant::now() + Duration::from_secs_f64(args.seconds);
        let deadline = if args.objects.is_some() { Instant::now() + COUNTED_MAX } else { deadline };
        let windows = Windows::new(deadline.saturating_duration_since(Instant::now()));
        Ok(Run { s3, args, log, prefix, deadline, windows })
    }

    /// The load proper begins now: what was needed for it was no part of it.
    pub fn begin(&mut self) {
        let length = Duration::from_secs_f64(self.args.seconds);
        if self.args.objects.is_none() {
            (self.deadline, self.windows) = (Instant::now() + length, Windows::new(length));
        }
    }

    /// The client of worker `index`: the workers are spread over all nodes.
    pub fn s3_of(&self, index: u32) -> S3Client {
        self.s3.preferring(index as usize)
    }

    pub fn size(&self) -> usize {
        self.args.size as usize
    }

    pub fn log(&self, line: impl FnOnce() -> AckLine) -> Result<(), Failure> {
        self.log.as_ref().map_or(Ok(()), |log| log.append(&line()))
    }

    pub fn keeps_objects(&self) -> bool {
        self.args.keep || self.args.ack_log.is_some() || self.args.objects.is_some()
    }

    /// Prints the figures; exit status 2 when a wrong byte was read.
    pub fn finish(&self, bench: &str, tally: &Tally, took: Duration) -> Result<ExitCode, Failure> {
        let ops = tally.latencies.count();
        let spread = self.windows.spread(took);
        let figures = Figures {
            bench,
            size_bytes: self.args.size,
            concurrency: self.args.concurrency,
            seconds: took.as_secs_f64(),
            ops,
            ops_per_s: ops as f64 / took.as_secs_f64(),
            mb_per_s: tally.bytes as f64 / 1e6 / took.as_secs_f64(),
            p50_us: tally.latencies.percentile_us(50.0),
            p99_us: tally.latencies.percentile_us(99.0),
            p999_us: tally.latencies.percentile_us(99.9),
            max_us: tally.latencies.max_us(),
            least_ops_per_s: spread.map(|spread| spread.least),
            median_ops_per_s: spread.map(|spread| spread.median),
            failed: tally.failed,
            unknown: tally.unknown,
            not_sent: tally.not_sent,
            wrong: tally.wrong,
        };
        if self.args.json {
            print_json(&figures)?;
        } else {
            figures.print();
        }
        if ops == 0 && tally.wrong == 0 {
            return Err(Failure(format!("no request succeeded on the server at {}", self.s3.address())));
        }
        Ok(if tally.wrong == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) })
    }
}

impl Figures<'_> {
    fn print(&self) {
        println!(
            "{} {}, {} at once, {:.1} s: {:.0} ops/s, {:.1} MB/s; p50 {} us, p99 {} us, p99.9 {} us, max {} us",
            self.bench,
            show_bytes(self.size_bytes),
            self.concurrency,
            self.seconds,
            self.ops_per_s,
            self.mb_per_s,
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.max_us
        );
        if let (Some(least), Some(median)) = (self.least_ops_per_s, self.median_ops_per_s) {
            println!("in {} s each: at least {least:.0} ops/s, median {median:.0}", WINDOW.as_secs());
        }
        println!(
            "ok {}, failed {}, unknown {}, not sent {}, wrong {}",
            self.ops, self.failed, self.unknown, self.not_sent, self.wrong
        );
    }
}

/// Runs the load, one task per concurrent request, and says from time to time how it goes.
pub async fn told<F>(run: &Run, worker: impl Fn(u32) -> F) -> Result<Tally, Failure>
where
    F: Future<Output = Result<Tally, Failure>> + Send + 'static,
{
    if run.args.json {
        return workers(run.args.concurrency, worker).await;
    }
    tokio::select! {
        biased;
        tally = workers(run.args.concurrency, worker) => tally,
        () = run.windows.tell(run.deadline) => unreachable!("it never returns"),
    }
}

/// Runs one task per concurrent request and sums up what they saw.
pub async fn workers<F>(count: u32, worker: impl Fn(u32) -> F) -> Result<Tally, Failure>
where
    F: Future<Output = Result<Tally, Failure>> + Send + 'static,
{
    let tasks: Vec<_> = (0..count).map(|index| tokio::spawn(worker(index))).collect();
    let mut sum = Tally::new();
    for task in tasks {
        sum.merge(&task.await.context(|| "a worker broke".into())??);
    }
    Ok(sum)
}

pub async fn put(args: BenchLoadArgs) -> Result<ExitCode, Failure> {
    let mut run = Run::prepare(args).await?;
    run.begin();
    let run = Arc::new(run);
    let stored = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let tally = told(&run, |index| put_worker(Arc::clone(&run), Arc::clone(&stored), index)).await?;
    let took = began.elapsed();
    let outcome = run.finish("put", &tally, took)?;
    if !run.keeps_objects() {
        remove(&run, stored.load(Ordering::Relaxed)).await?;
    }
    Ok(outcome)
}

fn key_of(run: &Run, number: u64) -> String {
    match u64::from(run.args.folders) {
        0 => format!("{}/{number:09}", run.prefix),
        folders => format!("{}/{:06}/{number:012}", run.prefix, number % folders),
    }
}

async fn put_worker(run: Arc<Run>, next: Arc<AtomicU64>, index: u32) -> Result<Tally, Failure> {
    let s3 = run.s3_of(index);
    let mut tally = Tally::new();
    // Without a log nobody asks which object has which contents; then making them is not measured.
    let mut buffer = payload(&run.prefix, 0, run.size());
    while Instant::now() < run.deadline {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if run.args.objects.is_some_and(|objects| number >= objects) {
            break;
        }
        let key = key_of(&run, number);
        let body = if run.log.is_some() {
            payload(&key, 1, run.size())
        } else {
            buffer = stamped(buffer, number);
            buffer.clone()
        };
        run.log(|| put_line(&run, key.clone(), 1, &body, Outcome::Sent))?;
        let began = Instant::now();
        let answer = s3.put(&run.args.bucket, &key, body.clone(), Payload::Unsigned).await;
        let result = tally.change(&run, began, body.len() as u64, answer).await;
        run.log(|| put_line(&run, key, 1, &body, result))?;
    }
    Ok(tally)
}

pub fn put_line(run: &Run, key: String, version: u64, body: &Bytes, result: Outcome) -> AckLine {
    AckLine {
        t_ms: now_ms(),
        op: Op::Put,
        bucket: run.args.bucket.clone(),
        key,
        version,
        bytes: body.len() as u64,
        sha256: sha256(body),
        result,
    }
}

pub async fn get(args: BenchLoadArgs) -> Result<ExitCode, Failure> {
    let mut run = Run::prepare(args).await?;
    let objects = (GET_SET_BYTES_MAX / run.args.size.max(1)).clamp(1, GET_SET_OBJECTS_MAX);
    let store = |number| {
        let (run, key) = (&run, key_of(&run, number));
        async move {
            let body = payload(&key, 1, run.size());
            run.s3_of(number as u32).put(&run.args.bucket, &key, body, Payload::Unsigned).await
        }
    };
    let at_once = usize::try_from(run.args.concurrency).unwrap_or(1);
    let stored = stream::iter(0..objects).map(store).buffer_unordered(at_once).try_collect::<()>().await;
    stored.map_err(|error| Failure(format!("the objects to read cannot be stored: {error}")))?;
    let expected: Vec<u64> =
        (0..objects).map(|number| base::checksum::crc64(&payload(&key_of(&run, number), 1, run.size()))).collect();
    let expected = Arc::new(expected);
    run.begin();
    let run = Arc::new(run);
    let began = Instant::now();
    let tally = told(&run, |index| get_worker(Arc::clone(&run), Arc::clone(&expected), index)).await?;
    let took = began.elapsed();
    let outcome = run.finish("get", &tally, took)?;
    if !run.keeps_objects() {
        remove(&run, objects).await?;
    }
    Ok(outcome)
}

async fn get_worker(run: Arc<Run>, expected: Arc<Vec<u64>>, index: u32) -> Result<Tally, Failure> {
    let s3 = run.s3_of(index);
    let mut tally = Tally::new();
    // Each worker walks all objects, from a place of its own.
    let mut number = u64::from(index) * 97;
    while Instant::now() < run.deadline {
        number = (number + 1) % expected.len() as u64;
        let key = key_of(&run, number);
        let began = Instant::now();
        let found = match s3.get(&run.args.bucket, &key).await {
            Ok(found) => found,
            Err(error) => {
                tally.error(&error).await;
                continue;
            }
        };
        let good = found
            .as_ref()
            .is_some_and(|body| body.len() == run.size() && base::checksum::crc64(body) == expected[number as usize]);
        if good {
            tally.served(&run, began, run.args.size);
        } else {
            tally.wrong += 1;
        }
        run.log(|| AckLine {
            t_ms: now_ms(),
            op: Op::Get,
            bucket: run.args.bucket.clone(),
            key,
            version: 1,
            bytes: found.as_ref().map_or(0, |body| body.len() as u64),
            sha256: found.as_ref().map_or(String::new(), |body| sha256(body)),
            result: if good { Outcome::Ok } else { Outcome::Fail },
        })?;
    }
    Ok(tally)
}

/// Deletes the objects 0 to `count` of a run.
async fn remove(run: &Arc<Run>, count: u64) -> Result<(), Failure> {
    let next = Arc::new(AtomicU64::new(0));
    let delete = |index| {
        let (run, next, s3) = (Arc::clone(run), Arc::clone(&next), run.s3_of(index));
        async move {
            let mut tally = Tally::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(tally);
                }
                if let Err(error) = s3.delete(&run.args.bucket, &key_of(&run, number)).await {
                    tally.error(&error).await;
                }
            }
        }
    };
    let tally = workers(run.args.concurrency, delete).await?;
    let left = tally.failed + tally.unknown + tally.not_sent;
    if left > 0 {
        eprintln!("henge: {left} objects below {}/ may be left in bucket {}", run.prefix, run.args.bucket);
    }
    Ok(())
}
