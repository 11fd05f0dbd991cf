//! Load through S3, what it was told, and whether that is true: `henge bench mixed` and `henge bench verify`, both
//! processes of their own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::cluster::Cluster;
use super::json::Json;
use super::processes::{Failure, Process, Tried, fail, finish, now_ms, sleep, wait_for};
use super::report::Figures;

/// Longer than any fault takes; the rig ends the load.
const LOAD_SECONDS: u32 = 80_000;

/// Until the first writes have gone through.
const WARM_UP_PATIENCE: Duration = Duration::from_secs(60);

/// Writes that count as "the load runs".
const WARM_UP_WRITES: usize = 20;

pub struct Wish {
    pub size: &'static str,
    pub concurrency: u32,
    /// How long a client waits before it goes on with the same key through another node: only where a node that does not
    /// answer for so long is certainly voted out.
    pub fenced_after: Option<Duration>,
}

/// What most faults are tried with.
pub const USUAL: Wish = Wish { size: "16KiB", concurrency: 12, fenced_after: None };

pub struct Load {
    process: Process,
    pub log: PathBuf,
}

impl Load {
    /// Starts clients of all nodes and waits until they are served.
    pub fn start(cluster: &Cluster<'_>, log: &Path, wish: &Wish) -> Result<Load, Failure> {
        let mut command = cluster.client();
        command.args(["bench", "mixed", "--size", wish.size]).arg("--ack-log").arg(log);
        command.args(["--concurrency", &wish.concurrency.to_string(), "--seconds", &LOAD_SECONDS.to_string()]);
        for s3 in cluster.s3_of_all() {
            command.args(["--s3", &s3]);
        }
        if let Some(time) = wish.fenced_after {
            command.args(["--expect-fenced", "--timeout", &format!("{}s", time.as_secs())]);
        }
        let process = Process::start("the load", command, &log.with_extension("said"))?;
        let mut load = Load { process, log: log.to_owned() };
        wait_for(
            WARM_UP_PATIENCE,
            || "the first writes".into(),
            || {
                load.check_running()?;
                Ok((load.acks()?.iter().filter(|ack| ack.is_write_done()).count() >= WARM_UP_WRITES).then_some(()))
            },
        )?;
        Ok(load)
    }

    pub fn check_running(&mut self) -> Result<(), Failure> {
        let said = self.log.with_extension("said");
        self.process
            .ended()
            .map_or(Ok(()), |how| fail(format!("{how}: {}", std::fs::read_to_string(said).unwrap_or_default())))
    }

    /// Bytes of whole lines that are in the log by now.
    pub fn log_len(&self) -> Result<u64, Failure> {
        Ok(read(&self.log)?.rfind('\n').map_or(0, |at| at as u64 + 1))
    }

    /// All that was logged so far.
    pub fn acks(&self) -> Result<Vec<Ack>, Failure> {
        acks_of(&self.log)
    }

    /// Until a write succeeds that was answered after `since_ms`; when that was.
    pub fn wait_served(&mut self, since_ms: u64, patience: Duration) -> Result<u64, Failure> {
        wait_for(
            patience,
            || "the next write".into(),
            || {
                self.check_running()?;
                sleep(Duration::from_millis(20))?;
                Ok(self
                    .acks()?
                    .iter()
                    .rev()
                    .find(|ack| ack.is_write_done())
                    .map(|ack| ack.t_ms)
                    .filter(|t| *t > since_ms))
            },
        )
    }

    /// Ends the load. Its log is complete: what was under way is in it as sent.
    pub fn end(self) -> PathBuf {
        self.process.kill();
        self.log
    }
}

/// A line of the ack log, as far as the rig needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Ack {
    pub t_ms: u64,
    pub is_write: bool,
    /// `sent`, `ok`, `fail` or `unknown`.
    pub result: String,
}

impl Ack {
    fn parse(line: &str) -> Option<Ack> {
        // The log is large and written by one known program: no general parser is needed to find three fields.
        let after = |name: &str| line.split_once(name).map(|(_, rest)| rest);
        let t_ms = after("\"t_ms\":")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        let op = after("\"op\":\"")?.split('"').next()?;
        let result = after("\"result\":\"")?.split('"').next()?;
        Some(Ack { t_ms, is_write: op != "get", result: result.to_owned() })
    }

    pub fn is_write_done(&self) -> bool {
        self.is_write && self.result == "ok"
    }
}

fn read(log: &Path) -> Result<String, Failure> {
    match std::fs::read_to_string(log) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => fail(format!("{}: {error}", log.display())),
    }
}

pub fn acks_of(log: &Path) -> Result<Vec<Ack>, Failure> {
    Ok(read(log)?.lines().filter_map(Ack::parse).collect())
}

/// The log as it must be judged for an instant between two lengths of it: what was answered before the first was
/// acknowledged, what was sent before the second may have been done.
pub fn cut_log(log: &Path, before_len: u64, after_len: u64, out: &Path) -> Result<(), Failure> {
    let text = read(log)?;
    let (before, rest) = text.split_at(before_len as usize);
    let between = &rest[..(after_len - before_len) as usize];
    let mut file = std::fs::File::create(out).tried(|| format!("{} cannot be written", out.display()))?;
    let sent = between.lines().filter(|line| Ack::parse(line).is_some_and(|ack| ack.result == "sent"));
    let sent: String = sent.flat_map(|line| [line, "\n"]).collect();
    file.write_all(before.as_bytes()).and_then(|()| file.write_all(sent.as_bytes())).tried(|| "the cut log".into())
}

/// The longest time without a successful write within each window, milliseconds. A window begins with an event; the last
/// success before it begins the first gap.
pub fn gaps(acks: &[Ack], windows: &[(u64, u64)]) -> Vec<u64> {
    let mut served: Vec<u64> = acks.iter().filter(|ack| ack.is_write_done()).map(|ack| ack.t_ms).collect();
    served.sort_unstable();
    windows.iter().map(|window| gap(&served, *window)).collect()
}

fn gap(served: &[u64], (from, to): (u64, u64)) -> u64 {
    let inside = served.iter().copied().filter(|at| (from..to).contains(at));
    let points: Vec<u64> = std::iter::once(from).chain(inside).chain([to]).collect();
    points.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

/// Reads back everything that a log names and adds the judgement to the figures.
pub fn verify(cluster: &Cluster<'_>, log: &Path, figures: &mut Figures) -> Result<(), Failure> {
    let mut command: Command = cluster.client();
    command.args(["bench", "verify", "--json"]).arg(log);
    for s3 in cluster.s3_of_all() {
        command.args(["--s3", &s3]);
    }
    let finished = finish(&mut command)?;
    let Some(judgement) = Json::parse(&finished.stdout) else {
        return fail(format!("bench verify: {}{}", finished.stdout, finished.stderr));
    };
    let count = |name| judgement.number(name).unwrap_or(0);
    figures.verified += count("keys");
    figures.lost += count("lost");
    figures.wrong += count("wrong") + count("wrong_reads");
    figures.unreadable += count("unreadable");
    if finished.status != 0 {
        figures.problem(format!("{} ({})", finished.stderr.trim(), log.display()));
    }
    Ok(())
}

/// The usual end of a fault: the cluster must heal, all that was acknowledged must be there, and the directories clean.
pub fn conclude(mut cluster: Cluster<'_>, load: Load, events: &[u64], figures: &mut Figures) -> Result<(), Failure> {
    let end_ms = now_ms();
    let log = load.end();
    let acks = acks_of(&log)?;
    figures.count(&acks);
    let ends = events.iter().skip(1).copied().chain([end_ms]);
    let windows: Vec<(u64, u64)> = events.iter().copied().zip(ends).collect();
    figures.gaps_ms.extend(gaps(&acks, &windows));
    cluster.check_running()?;
    let safe = cluster.wait_safe();
    verify(&cluster, &log, figures)?;
    safe?;
    cluster.stop_all()?;
    cluster.fsck()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(t_ms: u64, is_write: bool, result: &str) -> Ack {
        Ack { t_ms, is_write, result: result.into() }
    }

    #[test]
    fn lines_of_the_log_are_read() {
        let line =
            r#"{"t_ms":5,"op":"put","bucket":"b","key":"k","version":1,"bytes":3,"sha256":"00","result":"unknown"}"#;
        assert_eq!(Ack::parse(line), Some(ack(5, true, "unknown")));
        assert_eq!(Ack::parse(&line.replace("put", "get").replace("unknown", "ok")), Some(ack(5, false, "ok")));
        assert_eq!(Ack::parse("{\"t_ms\":5,\"op\":\"pu"), None, "a line that is being written");
    }

    #[test]
    fn a_gap_counts_from_the_event_and_only_writes_that_succeed_end_it() {
        let acks: Vec<Ack> = [(100, true, "ok"), (150, false, "ok"), (160, true, "fail"), (400, true, "ok")]
            .map(|(t_ms, is_write, result)| ack(t_ms, is_write, result))
            .into();
        assert_eq!(gaps(&acks, &[(110, 500), (390, 700), (800, 1000)]), [290, 300, 200]);
    }

    #[test]
    fn the_log_of_an_instant_keeps_what_was_sent_and_forgets_later_answers() {
        let folder = std::env::temp_dir().join(format!("chaos-cut-log-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let line = |op: &str, result: &str| format!("{{\"t_ms\":1,\"op\":\"{op}\",\"result\":\"{result}\"}}\n");
        let before = line("put", "sent") + &line("put", "ok");
        let between = line("delete", "sent") + &line("delete", "ok") + &line("get", "ok") + &line("put", "sent");
        let log = folder.join("log");
        std::fs::write(&log, before.clone() + &between + &line("put", "ok")).unwrap();
        let out = folder.join("cut");
        cut_log(&log, before.len() as u64, (before.len() + between.len()) as u64, &out).unwrap();
        let expected = before + &line("delete", "sent") + &line("put", "sent");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), expected);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
