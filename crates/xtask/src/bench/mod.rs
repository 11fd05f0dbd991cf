//! `cargo xtask bench`: what this machine can do at all (fio, nginx), then henge on one node and on three, then Garage
//! where it is installed, all in one run, as one table with ratios. Absolute figures of different days or machines say
//! little; those of one run do.
//!
//! The load comes from `henge bench`, which speaks plain S3, so that every server is asked the same things the same way.

mod limits;
mod meter;
mod servers;
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use meter::Meter;
use servers::Server;
use table::{Line, Report};

pub const USAGE: &str = "\
usage: cargo xtask bench [OPTIONS]

  --seconds N      length of one measurement (default 3)
  --repeat N       measurements of each row, of which the median is shown (default 3)
  --records N      chunks of the disk that is opened after a kill (default 1000000, of 4 KiB each)
  --only TEXT      only subjects or rows whose name contains TEXT; may be repeated
  --data DIR       where the servers keep their data (default: the system's temporary directory)
  --henge FILE     a binary that is built already (default: cargo build --release)
  --json FILE      write the figures there
  --baseline FILE  compare with figures that were written earlier

fio, nginx and garage are used where they are on the PATH; what is missing is named.";

/// What is measured of each server.
const ROWS: [Row; 8] = [
    Row { op: "put", size: "4KiB", bytes: 4 << 10, concurrency: 1 },
    Row { op: "put", size: "4KiB", bytes: 4 << 10, concurrency: 16 },
    Row { op: "put", size: "4KiB", bytes: 4 << 10, concurrency: 64 },
    Row { op: "get", size: "4KiB", bytes: 4 << 10, concurrency: 16 },
    Row { op: "put", size: "1MiB", bytes: 1 << 20, concurrency: 16 },
    Row { op: "get", size: "1MiB", bytes: 1 << 20, concurrency: 16 },
    Row { op: "put", size: "64MiB", bytes: 64 << 20, concurrency: 16 },
    Row { op: "get", size: "64MiB", bytes: 64 << 20, concurrency: 16 },
];

#[derive(Clone, Copy)]
pub struct Row {
    /// `put` or `get`.
    pub op: &'static str,
    pub size: &'static str,
    pub bytes: u64,
    pub concurrency: u32,
}

impl Row {
    fn name(&self) -> String {
        format!("{} {} c={}", self.op.to_uppercase(), self.size, self.concurrency)
    }
}

pub struct Options {
    pub seconds: f64,
    pub repeat: usize,
    pub records: u32,
    only: Vec<String>,
    pub data: PathBuf,
    pub henge: PathBuf,
    json: Option<PathBuf>,
    baseline: Option<PathBuf>,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Options, String> {
        let mut options = Options {
            seconds: 3.0,
            repeat: 3,
            records: 1_000_000,
            only: Vec::new(),
            data: std::env::temp_dir(),
            henge: PathBuf::new(),
            json: None,
            baseline: None,
        };
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            let value = rest.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let wrong = || format!("{flag} {value} makes no sense");
            match flag.as_str() {
                "--seconds" => options.seconds = value.parse().map_err(|_| wrong())?,
                "--repeat" => options.repeat = value.parse::<usize>().map_err(|_| wrong())?.max(1),
                "--records" => options.records = value.parse().map_err(|_| wrong())?,
                "--only" => options.only.push(value.clone()),
                "--data" => options.data = value.into(),
                "--henge" => options.henge = value.into(),
                "--json" => options.json = Some(value.into()),
                "--baseline" => options.baseline = Some(value.into()),
                _ => return Err(format!("unknown option {flag}")),
            }
        }
        Ok(options)
    }

    /// Whether a row of a subject is wanted.
    pub fn wants(&self, subject: &str, row: &str) -> bool {
        let name = format!("{subject} {row}");
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str()))
    }
}

/// Runs the benchmark.
pub fn run(arguments: &[String]) -> ExitCode {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match Options::read(arguments).and_then(bench) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask bench: {why}\n\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn bench(mut options: Options) -> Result<(), String> {
    // Read first: a wrong name is told before minutes have passed.
    let baseline = options.baseline.as_deref().map(Report::read).transpose()?;
    if options.henge.as_os_str().is_empty() {
        options.henge = build()?;
    }
    let scratch = Scratch::make(&options.data)?;
    let mut report = Report::default();
    limits::measure(&options, &scratch.0, &mut report)?;
    for kind in servers::KINDS {
        if !ROWS.iter().any(|row| options.wants(kind.name, &row.name())) {
            continue;
        }
        let folder = scratch.0.join(kind.folder);
        match servers::start(kind, &options, &folder) {
            Ok(server) => {
                measure(&options, &server, &mut report)?;
                drop(server);
                // The next one needs the room. What cannot be removed is left for the end.
                let _ = std::fs::remove_dir_all(&folder);
            }
            Err(why) => report.missing(&format!("{}: {why}", kind.name)),
        }
    }
    report.print(baseline.as_ref());
    if let Some(path) = &options.json {
        report.write(path)?;
    }
    Ok(())
}

fn build() -> Result<PathBuf, String> {
    let status = Command::new("cargo").args(["build", "--release", "--quiet", "--package", "henge"]).status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(format!("henge was not built: {status}")),
        Err(error) => return Err(format!("cargo cannot be started: {error}")),
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(target.join("release/henge"))
}

/// All rows of one server.
fn measure(options: &Options, server: &Server, report: &mut Report) -> Result<(), String> {
    report.add(server.kind.name, Line { value: server.idle_rss_mib(), unit: "MiB", ..Line::named("idle, resident") });
    for row in ROWS.iter().filter(|row| options.wants(server.kind.name, &row.name())) {
        repeat(options, report, server.kind.name, row, || load(options, server, row))?;
    }
    let rss = Line { value: server.rss_mib(), unit: "MiB", ..Line::named("after the load, resident") };
    report.add(server.kind.name, rss);
    Ok(())
}

/// Measures a row as often as asked. Wrong bytes end everything: figures of a server that answers them mean nothing.
fn repeat(
    options: &Options,
    report: &mut Report,
    subject: &str,
    row: &Row,
    mut one: impl FnMut() -> Result<Line, Fault>,
) -> Result<(), String> {
    let mut runs = Vec::new();
    for _ in 0..options.repeat {
        match one() {
            Ok(line) => runs.push(line),
            Err(Fault::Wrong) => return Err(format!("{subject} {}: WRONG BYTES were read", row.name())),
            Err(Fault::NotMeasured(why)) => report.missing(&format!("a round of {subject} {}: {why}", row.name())),
        }
    }
    if let Some(line) = table::median(&row.name(), &runs) {
        report.add(subject, line);
    }
    Ok(())
}

/// Why a round has no figures.
enum Fault {
    Wrong,
    NotMeasured(String),
}

impl From<String> for Fault {
    fn from(why: String) -> Fault {
        Fault::NotMeasured(why)
    }
}

/// One measurement.
fn load(options: &Options, server: &Server, row: &Row) -> Result<Line, Fault> {
    let mut command = bench_command(options, row);
    command.args(["--region", &server.region]);
    for endpoint in &server.endpoints {
        command.args(["--s3", endpoint]);
    }
    command.env("HENGE_ROOT_USER", &server.access_key).env("HENGE_ROOT_PASSWORD", &server.secret_key);
    let meter = Meter::start(&server.pids());
    let (line, used) = line_of(command, row, || meter.stop())?;
    // A read row stores what it reads first: its costs are those of both.
    let ops = line.ops;
    let own = |value: f64| (row.op == "put").then_some(value);
    let cpu_us = own(used.cpu_s * 1e6 / ops);
    let disk_bytes = own(used.written_bytes / (ops * row.bytes as f64));
    Ok(Line { cpu_us, disk_bytes, ..line.line })
}

fn bench_command(options: &Options, row: &Row) -> Command {
    let (seconds, concurrency) = (options.seconds.to_string(), row.concurrency.to_string());
    let mut command = Command::new(&options.henge);
    command.args(["bench", row.op, "--json", "--bucket", "bench", "--size", row.size]);
    command.args(["--seconds", &seconds, "--concurrency", &concurrency]);
    command
}

/// What a load said, and how many operations it did.
struct Loaded {
    line: Line,
    ops: f64,
}

/// Runs a load. `done` is called when it has said its figures, before it removes what it has stored: that is no part of them.
fn line_of<T>(mut command: Command, row: &Row, done: impl FnOnce() -> T) -> Result<(Loaded, T), Fault> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let output = child.stdout.take().expect("it was asked for");
    let said = serde_json::Deserializer::from_reader(output).into_iter::<serde_json::Value>().next();
    let used = done();
    let status = child.wait().map_err(|error| error.to_string())?;
    let Some(Ok(figures)) = said else { return Err(Fault::NotMeasured(format!("the load failed: {status}"))) };
    let number = |name: &str| figures[name].as_f64().ok_or_else(|| format!("the load says nothing of {name}"));
    if number("wrong")? > 0.0 {
        return Err(Fault::Wrong);
    }
    let line = Line {
        value: number("ops_per_s")?,
        unit: "ops/s",
        p50_us: Some(number("p50_us")?),
        p99_us: Some(number("p99_us")?),
        failed: number("failed")? + number("unknown")? + number("not_sent")?,
        ..Line::named(&row.name())
    };
    match number("ops")? {
        0.0 => Err(Fault::NotMeasured("no request succeeded".into())),
        ops => Ok((Loaded { line, ops }, used)),
    }
}

/// A private directory, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn make(parent: &Path) -> Result<Scratch, String> {
        let path = parent.join(format!("henge-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left for the system.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str =
        r#"{"ops":2,"ops_per_s":4.5,"p50_us":1,"p99_us":2,"failed":1,"unknown":2,"not_sent":3,"wrong":WRONG}"#;

    fn told(script: String, done: impl FnOnce()) -> Result<Loaded, Fault> {
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        line_of(command, &ROWS[0], done).map(|(loaded, ())| loaded)
    }

    #[test]
    fn a_load_is_measured_until_it_says_its_figures_and_not_while_it_removes_its_objects() {
        let file = std::env::temp_dir().join(format!("henge-bench-done-{}", std::process::id()));
        let (path, said) = (file.display(), SAID.replace("WRONG", "0"));
        // It ends when `done` was called; after 20 s it gives up and says so.
        let script = format!(
            "echo '{said}'; i=0; until [ -e {path} ]; do i=$((i + 1)); [ $i -lt 2000 ] || {{ touch {path}.late; exit; }}; sleep 0.01; done"
        );
        let loaded = told(script, || std::fs::write(&file, "").unwrap()).unwrap_or_else(|_| panic!("it has figures"));
        std::fs::remove_file(&file).unwrap();
        assert!(std::fs::remove_file(format!("{path}.late")).is_err(), "it was measured to its end");
        assert_eq!((loaded.ops, loaded.line.value, loaded.line.failed), (2.0, 4.5, 6.0));
    }

    #[test]
    fn wrong_bytes_are_no_missing_round() {
        let said = |wrong: &str| format!("echo '{}'", SAID.replace("WRONG", wrong));
        assert!(matches!(told(said("1"), || ()), Err(Fault::Wrong)));
        assert!(matches!(told("exit 1".into(), || ()), Err(Fault::NotMeasured(_))));
        let nothing = said("0").replace("\"ops\":2", "\"ops\":0");
        assert!(matches!(told(nothing, || ()), Err(Fault::NotMeasured(_))));
    }
}
