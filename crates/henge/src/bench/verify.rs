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
use super::mixed::settle;
use super::payload::{payload, sha256};
use crate::admin_commands::print_json;
use crate::cli::BenchVerifyArgs;
use crate::failure::{Context, Failure};
use crate::s3_client::S3Client;
use crate::target::Target;

/// How long a server may take to come back before a key counts as unreadable.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// Problems shown one by one.
const SHOWN_MAX: usize = 20;

/// All that the log says of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct History {
    /// As in `mixed`: the last acknowledged state, then those of unknown outcome since.
    possible: Vec<Option<String>>,
    /// The last put that the log names: its version and its bytes.
    version: u64,
    bytes: u64,
}

type Histories = BTreeMap<(String, String), History>;

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
    /// The state of a put that was sent when the benchmark died, before it could be logged.
    unlogged: u64,
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
    for (index, ((bucket, key), history)) in histories.into_iter().enumerate() {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        let s3 = s3.preferring(index);
        reads.push(tokio::spawn(async move {
            let found = read_patiently(&s3, &bucket, &key).await;
            drop(permit);
            (format!("{bucket}/{key}"), judge(&history, &key, found))
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
        let history = histories.entry((line.bucket, line.key)).or_insert_with(|| History {
            possible: vec![None],
            version: 0,
            bytes: line.bytes,
        });
        let state = (line.op == Op::Put).then_some(line.sha256);
        settle(&mut history.possible, state, line.result);
        if line.op == Op::Put {
            (history.version, history.bytes) = (line.version, line.bytes);
        }
    }
    Ok(histories)
}

/// What a key holds, by its SHA-256; waits for a server that is starting.
async fn read_patiently(s3: &S3Client, bucket: &str, key: &str) -> Result<Option<String>, String> {
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
    Unlogged,
    Lost,
    Wrong(String),
    Unreadable(String),
}

fn judge(history: &History, key: &str, found: Result<Option<String>, String>) -> Verdict {
    let found = match found {
        Ok(found) => found,
        Err(why) => return Verdict::Unreadable(why),
    };
    let (acknowledged, unknown) = history.possible.split_first().expect("a history begins with a state");
    if found == *acknowledged {
        return Verdict::Good;
    }
    if unknown.contains(&found) {
        return Verdict::UnknownDone;
    }
    let Some(found) = found else { return Verdict::Lost };
    let next = payload(key, history.version + 1, history.bytes as usize);
    if found == sha256(&next) { Verdict::Unlogged } else { Verdict::Wrong(found) }
}

impl Verdict {
    fn problem(&self) -> Option<String> {
        match self {
            Verdict::Good | Verdict::UnknownDone | Verdict::Unlogged => None,
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
            Verdict::Unlogged => &mut self.unlogged,
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
            "{} answers for {} keys: {} as last acknowledged, {} as an operation of unknown outcome left them, {} unlogged",
            self.lines, self.keys, self.good, self.unknown_done, self.unlogged
        );
        println!("wrong when read: {}, unreadable: {}", self.wrong_reads, self.unreadable);
        println!("lost {}, wrong {}", self.lost, self.wrong);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(lines: &[(Op, &str, Outcome)]) -> History {
        let mut history = History { possible: vec![None], version: 0, bytes: 4 };
        for (op, sha256, result) in lines {
            settle(&mut history.possible, (*op == Op::Put).then(|| (*sha256).to_owned()), *result);
            history.version += u64::from(*op == Op::Put);
        }
        history
    }

    fn found(sha256: &str) -> Result<Option<String>, String> {
        Ok(Some(sha256.to_owned()))
    }

    #[test]
    fn the_last_acknowledged_state_or_an_unknown_one_after_it() {
        use Op::{Delete, Put};
        use Outcome::{Fail, Ok as Acked, Unknown};
        let acked = history(&[(Put, "old", Unknown), (Put, "a", Acked), (Put, "b", Fail)]);
        assert_eq!(judge(&acked, "k", found("a")), Verdict::Good);
        assert_eq!(judge(&acked, "k", Ok(None)), Verdict::Lost);
        assert_eq!(judge(&acked, "k", found("b")), Verdict::Wrong("b".into()));
        assert_eq!(judge(&acked, "k", found("old")), Verdict::Wrong("old".into()), "superseded by the acknowledged");
        assert_eq!(judge(&acked, "k", Err("503".into())), Verdict::Unreadable("503".into()));

        let unknown = history(&[(Put, "a", Acked), (Put, "b", Unknown), (Delete, "", Unknown)]);
        assert_eq!(judge(&unknown, "k", found("a")), Verdict::Good);
        assert_eq!(judge(&unknown, "k", found("b")), Verdict::UnknownDone);
        assert_eq!(judge(&unknown, "k", Ok(None)), Verdict::UnknownDone);

        let deleted = history(&[(Put, "a", Acked), (Delete, "", Acked)]);
        assert_eq!(judge(&deleted, "k", Ok(None)), Verdict::Good);
        assert_eq!(judge(&deleted, "k", found("a")), Verdict::Wrong("a".into()), "resurrected");
        let unlogged = sha256(&payload("k", 2, 4));
        assert_eq!(judge(&deleted, "k", found(&unlogged)), Verdict::Unlogged);
    }
}
