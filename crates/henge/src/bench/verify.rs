//! `henge bench verify`: reads back every key of an ack log and judges: what is there must be the last acknowledged
//! state, or one of unknown outcome after it.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

use super::ack_log::{AckLine, Op, Outcome};
use super::load::PAUSE_AFTER_ERROR;
use super::mixed::{State, settle};
use super::payload::sha256;
use crate::admin_commands::print_json;
use crate::cli::BenchVerifyArgs;
use crate::failure::{Context, Failure};
use crate::s3_client::S3Client;
use crate::target::Target;

/// How long a server may take to come back before a key counts as unreadable.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// Problems shown one by one.
const SHOWN_MAX: usize = 20;

/// What may be at each key: the last acknowledged state, then those of unknown outcome since.
type Histories = BTreeMap<(String, String), Vec<State>>;

#[derive(Serialize, Default, Debug, PartialEq, Eq)]
struct Judgement {
    /// Lines of the log, and how many of its reads were wrong when they were made.
    lines: u64,
    wrong_reads: u64,
    keys: u64,
    /// The last acknowledged state.
    good: u64,
    /// A state of unknown outcome after it.
    unknown_done: u64,
    /// Acknowledged and gone.
    lost: u64,
    /// Something else than what may be there.
    wrong: u64,
    /// Cannot be read.
    unreadable: u64,
}

pub async fn run(args: BenchVerifyArgs) -> Result<ExitCode, Failure> {
    let target = Target::find_s3(&args.target)?;
    let s3 = target.s3_client()?;
    let mut judgement = Judgement::default();
    let histories = read_log(&args.file, &mut judgement)?;
    let permits = Arc::new(Semaphore::new(args.concurrency as usize));
    let mut reads = Vec::new();
    for (index, ((bucket, key), possible)) in histories.into_iter().enumerate() {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        let s3 = s3.preferring(index);
        reads.push(tokio::spawn(async move {
            let found = read_patiently(&s3, &bucket, &key).await;
            drop(permit);
            (format!("{bucket}/{key}"), judge(&possible, found))
        }));
    }
    let mut shown = 0;
    for read in reads {
        let (name, verdict) = read.await.context(|| "a reader broke".into())?;
        judgement.count(&verdict);
        if let Some(problem) = verdict.problem()
            && shown < SHOWN_MAX
        {
            shown += 1;
            eprintln!("henge: {name}: {problem}");
        }
    }
    if args.json {
        print_json(&judgement)?;
    } else {
        judgement.print();
    }
    Ok(if judgement.holds() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn read_log(path: &Path, judgement: &mut Judgement) -> Result<Histories, Failure> {
    let cannot = || format!("the ack log {} cannot be read", path.display());
    let mut histories = Histories::new();
    for line in BufReader::new(File::open(path).context(cannot)?).lines() {
        let line = line.context(cannot)?;
        judgement.lines += 1;
        let line: AckLine = serde_json::from_str(&line)
            .context(|| format!("line {} of {} is no line of an ack log", judgement.lines, path.display()))?;
        if line.op == Op::Get {
            judgement.wrong_reads += u64::from(line.result == Outcome::Fail);
            continue;
        }
        let possible = histories.entry((line.bucket, line.key)).or_insert_with(|| vec![None]);
        settle(possible, &(line.op == Op::Put).then_some(line.sha256), line.result);
    }
    Ok(histories)
}

/// What a key holds, by its SHA-256; waits for a server that is starting.
async fn read_patiently(s3: &S3Client, bucket: &str, key: &str) -> Result<State, String> {
    let deadline = Instant::now() + READ_PATIENCE;
    loop {
        match s3.get(bucket, key).await {
            Ok(found) => return Ok(found.map(|body| sha256(&body))),
            Err(error) if Instant::now() > deadline => return Err(error.to_string()),
            Err(crate::s3_client::S3Error::Refused { status, message }) => {
                return Err(format!("status {status}: {message}"));
            }
            Err(_) => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    UnknownDone,
    Lost,
    Wrong(String),
    Unreadable(String),
}

fn judge(possible: &[State], found: Result<State, String>) -> Verdict {
    let found = match found {
        Ok(found) => found,
        Err(why) => return Verdict::Unreadable(why),
    };
    let (acknowledged, unknown) = possible.split_first().expect("a history begins with a state");
    if found == *acknowledged {
        return Verdict::Good;
    }
    if unknown.contains(&found) {
        return Verdict::UnknownDone;
    }
    found.map_or(Verdict::Lost, Verdict::Wrong)
}

impl Verdict {
    fn problem(&self) -> Option<String> {
        match self {
            Verdict::Good | Verdict::UnknownDone => None,
            Verdict::Lost => Some("LOST: it was acknowledged and is not there".into()),
            Verdict::Wrong(found) => Some(format!("WRONG: it holds {found}, which is none of the states it may have")),
            Verdict::Unreadable(why) => Some(format!("cannot be read: {why}")),
        }
    }
}

impl Judgement {
    fn count(&mut self, verdict: &Verdict) {
        self.keys += 1;
        *match verdict {
            Verdict::Good => &mut self.good,
            Verdict::UnknownDone => &mut self.unknown_done,
            Verdict::Lost => &mut self.lost,
            Verdict::Wrong(_) => &mut self.wrong,
            Verdict::Unreadable(_) => &mut self.unreadable,
        } += 1;
    }

    fn holds(&self) -> bool {
        self.lost == 0 && self.wrong == 0 && self.unreadable == 0 && self.wrong_reads == 0
    }

    fn print(&self) {
        println!(
            "{} lines on {} keys: {} as last acknowledged, {} as an operation of unknown outcome left them",
            self.lines, self.keys, self.good, self.unknown_done
        );
        println!("wrong when read: {}, unreadable: {}", self.wrong_reads, self.unreadable);
        println!("lost {}, wrong {}", self.lost, self.wrong);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Op::{Delete, Put};
    use Outcome::{Fail, Ok as Acked, Sent, Unknown};

    /// Each operation is sent, and ends as it says.
    fn history(lines: &[(Op, &str, Outcome)]) -> Vec<State> {
        let mut possible = vec![None];
        for (op, sha256, result) in lines {
            let state = (*op == Put).then(|| (*sha256).to_owned());
            settle(&mut possible, &state, Sent);
            if *result != Sent {
                settle(&mut possible, &state, *result);
            }
        }
        possible
    }

    fn found(sha256: &str) -> Result<State, String> {
        Ok(Some(sha256.to_owned()))
    }

    #[test]
    fn the_last_acknowledged_state_or_an_unknown_one_after_it() {
        let acked = history(&[(Put, "old", Unknown), (Put, "a", Acked), (Put, "b", Fail)]);
        assert_eq!(judge(&acked, found("a")), Verdict::Good);
        assert_eq!(judge(&acked, Ok(None)), Verdict::Lost);
        assert_eq!(judge(&acked, found("b")), Verdict::Wrong("b".into()));
        assert_eq!(judge(&acked, found("old")), Verdict::Wrong("old".into()), "superseded by the acknowledged");
        assert_eq!(judge(&acked, Err("503".into())), Verdict::Unreadable("503".into()));

        let unknown = history(&[(Put, "a", Acked), (Put, "b", Unknown), (Delete, "", Unknown), (Delete, "", Fail)]);
        assert_eq!(judge(&unknown, found("a")), Verdict::Good);
        assert_eq!(judge(&unknown, found("b")), Verdict::UnknownDone);
        assert_eq!(judge(&unknown, Ok(None)), Verdict::UnknownDone);

        let deleted = history(&[(Put, "a", Acked), (Delete, "", Acked)]);
        assert_eq!(judge(&deleted, Ok(None)), Verdict::Good);
        assert_eq!(judge(&deleted, found("a")), Verdict::Wrong("a".into()), "resurrected");
    }

    #[test]
    fn what_was_under_way_when_the_log_ends_may_have_been_done() {
        let put = history(&[(Put, "a", Acked), (Put, "b", Sent)]);
        assert_eq!(judge(&put, found("a")), Verdict::Good);
        assert_eq!(judge(&put, found("b")), Verdict::UnknownDone);
        assert_eq!(judge(&put, Ok(None)), Verdict::Lost);
        let deleted = history(&[(Put, "a", Acked), (Delete, "", Sent)]);
        assert_eq!(judge(&deleted, Ok(None)), Verdict::UnknownDone);
        assert_eq!(judge(&deleted, found("a")), Verdict::Good);
    }
}
