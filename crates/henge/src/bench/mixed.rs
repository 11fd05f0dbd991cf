//! `henge bench mixed`: puts, overwrites, gets and deletes. Each key belongs to one worker, so that what must be there
//! is known at any moment: the last acknowledged state, or one of unknown outcome after it.
//!
//! What has an unknown outcome may still be carried out at any later time, so its key is left alone from then on. Only
//! with `--expect-fenced` the worker goes on with it, through another node: then a late write of the first one, which
//! the cluster must have fenced meanwhile, shows as a wrong state.

use base::env::{Random, RandomExt};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use super::ack_log::{AckLine, Op, Outcome, now_ms};
use super::load::{Run, Tally, put_line, told};
use super::payload::{payload, sha256};
use crate::cli::BenchLoadArgs;
use crate::env::system_random;
use crate::failure::Failure;
use crate::s3_client::{Payload, S3Client};

const KEYS_PER_WORKER: usize = 32;

pub async fn run(args: BenchLoadArgs) -> Result<ExitCode, Failure> {
    let mut run = Run::prepare(args).await?;
    run.begin();
    let run = Arc::new(run);
    let began = Instant::now();
    let tally = told(&run, |index| Worker::new(Arc::clone(&run), index).work()).await?;
    run.finish("mixed", &tally, began.elapsed())
}

/// What may be there: an object by its SHA-256, or nothing.
pub type State = Option<String>;

struct Key {
    name: String,
    /// Puts so far.
    version: u64,
    /// The last acknowledged state, then those of unknown outcome since.
    possible: Vec<State>,
}

struct Worker {
    run: Arc<Run>,
    s3: S3Client,
    /// The node that is asked first, counted round.
    preferred: u32,
    keys: Vec<Key>,
    /// Makes the names of keys that replace others.
    replaced: u64,
    tally: Tally,
}

impl Worker {
    fn new(run: Arc<Run>, index: u32) -> Worker {
        let name = |number| format!("{}/{index:04}-{number:02}", run.prefix);
        let keys = (0..KEYS_PER_WORKER).map(|n| Key { name: name(n), version: 0, possible: vec![None] }).collect();
        Worker { s3: run.s3_of(index), run, preferred: index, keys, replaced: 0, tally: Tally::new() }
    }

    async fn work(mut self) -> Result<Tally, Failure> {
        let random = system_random();
        while Instant::now() < self.run.deadline {
            let index = random.below(KEYS_PER_WORKER as u64) as usize;
            match draw(&random, &self.keys[index]) {
                Op::Put => self.put(index).await?,
                Op::Get => self.get(index).await?,
                Op::Delete => self.delete(index).await?,
            }
        }
        if !self.run.keeps_objects() {
            for key in &self.keys {
                if let Err(error) = self.s3.delete(&self.run.args.bucket, &key.name).await {
                    self.tally.error(&error).await;
                }
            }
        }
        Ok(self.tally)
    }

    async fn put(&mut self, index: usize) -> Result<(), Failure> {
        let run = Arc::clone(&self.run);
        let key = &mut self.keys[index];
        key.version += 1;
        let (name, version) = (key.name.clone(), key.version);
        let body = payload(&name, version, run.size());
        let state = Some(sha256(&body));
        settle(&mut key.possible, &state, Outcome::Sent);
        run.log(|| put_line(&run, name.clone(), version, &body, Outcome::Sent))?;
        let began = Instant::now();
        let answer = self.s3.put(&run.args.bucket, &name, body.clone(), Payload::Unsigned).await;
        let result = self.tally.change(&run, began, body.len() as u64, answer).await;
        settle(&mut key.possible, &state, result);
        run.log(|| put_line(&run, name, version, &body, result))?;
        if result == Outcome::Unknown {
            self.move_on(index);
        }
        Ok(())
    }

    async fn delete(&mut self, index: usize) -> Result<(), Failure> {
        let run = Arc::clone(&self.run);
        let key = &mut self.keys[index];
        settle(&mut key.possible, &None, Outcome::Sent);
        run.log(|| line(&run, Op::Delete, key, 0, String::new(), Outcome::Sent))?;
        let began = Instant::now();
        let answer = self.s3.delete(&run.args.bucket, &key.name).await;
        let result = self.tally.change(&run, began, 0, answer).await;
        settle(&mut key.possible, &None, result);
        run.log(|| line(&run, Op::Delete, key, 0, String::new(), result))?;
        if result == Outcome::Unknown {
            self.move_on(index);
        }
        Ok(())
    }

    /// Goes on after an unknown outcome.
    fn move_on(&mut self, index: usize) {
        if self.run.args.expect_fenced {
            self.preferred = self.preferred.wrapping_add(1);
            self.s3 = self.run.s3_of(self.preferred);
            return;
        }
        self.replaced += 1;
        let name = format!("{}-{}", self.keys[index].name, self.replaced);
        self.keys[index] = Key { name, version: 0, possible: vec![None] };
    }

    async fn get(&mut self, index: usize) -> Result<(), Failure> {
        let run = Arc::clone(&self.run);
        let key = &self.keys[index];
        let began = Instant::now();
        let found = match self.s3.get(&run.args.bucket, &key.name).await {
            Ok(found) => found,
            Err(error) => {
                // A read that failed says nothing about the key, and nothing needs to be known of it later.
                self.tally.error(&error).await;
                return Ok(());
            }
        };
        let state: State = found.as_ref().map(|body| sha256(body));
        let good = key.possible.contains(&state);
        if good {
            self.tally.served(&run, began, found.as_ref().map_or(0, |body| body.len() as u64));
        } else {
            self.tally.wrong += 1;
            eprintln!("henge: WRONG: {} is {state:?}, and should be one of {:?}", key.name, key.possible);
        }
        let bytes = found.map_or(0, |body| body.len() as u64);
        let result = if good { Outcome::Ok } else { Outcome::Fail };
        run.log(|| line(&run, Op::Get, key, bytes, state.unwrap_or_default(), result))
    }
}

/// Mostly puts and gets while there is something, mostly puts while there is nothing.
fn draw(random: &impl Random, key: &Key) -> Op {
    let there = key.possible.iter().any(Option::is_some);
    match (there, random.below(100)) {
        (true, 0..40) => Op::Put,
        (true, 40..80) => Op::Get,
        (true, _) => Op::Delete,
        (false, 0..80) => Op::Put,
        (false, _) => Op::Get,
    }
}

/// What may be there after a step of an operation that makes it `state`: sent, then its result.
pub fn settle(possible: &mut Vec<State>, state: &State, result: Outcome) {
    match result {
        Outcome::Sent => possible.push(state.clone()),
        Outcome::Ok => *possible = vec![state.clone()],
        Outcome::Unknown if possible.contains(state) => {}
        Outcome::Unknown => possible.push(state.clone()),
        // It was the last that was sent. The first state is the acknowledged one.
        Outcome::Fail if possible.len() > 1 && possible.last() == Some(state) => drop(possible.pop()),
        Outcome::Fail => {}
    }
}

fn line(run: &Run, op: Op, key: &Key, bytes: u64, sha256: String, result: Outcome) -> AckLine {
    let (bucket, version) = (run.args.bucket.clone(), key.version);
    AckLine { t_ms: now_ms(), op, bucket, key: key.name.clone(), version, bytes, sha256, result }
}
