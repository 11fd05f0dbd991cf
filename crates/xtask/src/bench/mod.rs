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
use std::process::{Command, ExitCode};

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
    limits::measure(&options, &scratch.0, &mut report);
    for kind in servers::KINDS {
        if !ROWS.iter().any(|row| options.wants(kind.name, &row.name())) {
            continue;
        }
        match servers::start(kind, &options, &scratch.0.join(kind.folder)) {
            Ok(server) => measure(&options, &server, &mut report),
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
fn measure(options: &Options, server: &Server, report: &mut Report) {
    report.add(server.kind.name, Line { value: server.idle_rss_mib(), unit: "MiB", ..Line::named("idle, resident") });
    for row in ROWS.iter().filter(|row| options.wants(server.kind.name, &row.name())) {
        let runs: Vec<_> = (0..options.repeat).map_while(|_| load(options, server, row)).collect();
        match table::median(&row.name(), &runs) {
            Some(line) => report.add(server.kind.name, line),
            None => report.missing(&format!("{} {}: the load failed", server.kind.name, row.name())),
        }
    }
    let rss = Line { value: server.rss_mib(), unit: "MiB", ..Line::named("after the load, resident") };
    report.add(server.kind.name, rss);
}

/// One measurement; `None` when the load did not run.
fn load(options: &Options, server: &Server, row: &Row) -> Option<Line> {
    let (seconds, concurrency) = (options.seconds.to_string(), row.concurrency.to_string());
    let mut command = Command::new(&options.henge);
    command.args(["bench", row.op, "--json", "--bucket", "bench", "--size", row.size]);
    command.args(["--seconds", &seconds, "--concurrency", &concurrency, "--region", &server.region]);
    for endpoint in &server.endpoints {
        command.args(["--s3", endpoint]);
    }
    command.env("HENGE_ROOT_USER", &server.access_key).env("HENGE_ROOT_PASSWORD", &server.secret_key);
    let meter = Meter::start(&server.pids());
    let output = command.output().ok()?;
    let used = meter.stop();
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let number = |name: &str| figures[name].as_f64();
    let ops = number("ops")?;
    if ops < 1.0 || number("wrong")? > 0.0 {
        return None;
    }
    // A read row stores what it reads first: its costs are those of both.
    let own = |value: f64| (row.op == "put").then_some(value);
    Some(Line {
        value: number("ops_per_s")?,
        unit: "ops/s",
        p50_us: number("p50_us"),
        p99_us: number("p99_us"),
        cpu_us: own(used.cpu_s * 1e6 / ops),
        disk_bytes: own(used.written_bytes / (ops * row.bytes as f64)),
        failed: number("failed")? + number("unknown")? + number("not_sent")?,
        ..Line::named(&row.name())
    })
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
