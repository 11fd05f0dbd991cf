//! What the machine itself can do: fio for the disk, nginx for HTTP, and henge's own disk layer beside them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::Options;
use super::table::{Gate, Limit, Line, Report};

const FIO: &str = "fio";
const NGINX_PORT: u16 = 28000;

/// Name, arguments, and which figure of fio's is meant.
type FioRow = (&'static str, &'static [&'static str], Figure);

const FIO_ROWS: [FioRow; 5] = [
    ("append 4 KiB, flush each", &["--rw=write", "--bs=4k", "--size=256m", "--fdatasync=1"], Figure::WriteIops),
    (
        "write 4 KiB at random, 32 at once",
        &["--rw=randwrite", "--bs=4k", "--size=512m", "--direct=1", "--ioengine=libaio", "--iodepth=32"],
        Figure::WriteIops,
    ),
    (
        "write 1 MiB, 8 at once",
        &["--rw=write", "--bs=1m", "--size=1g", "--direct=1", "--ioengine=libaio", "--iodepth=8"],
        Figure::WriteMb,
    ),
    (
        "read 4 KiB at random, 1 at once",
        &["--rw=randread", "--bs=4k", "--size=512m", "--direct=1", "--ioengine=libaio", "--iodepth=1"],
        Figure::ReadIops,
    ),
    (
        "read 4 KiB at random, 32 at once",
        &["--rw=randread", "--bs=4k", "--size=512m", "--direct=1", "--ioengine=libaio", "--iodepth=32"],
        Figure::ReadIops,
    ),
];

const OWN: &str = "henge bench disk";

/// What the chunk store's engine must have of what fio has of the disk.
const GATES: [Gate; 4] = [
    Gate {
        subject: OWN,
        row: "engine: put, durable, 1 MiB, 8 at once",
        beside: FIO,
        beside_row: "write 1 MiB, 8 at once",
        limit: Limit::ValueAtLeast(0.9),
    },
    Gate {
        subject: OWN,
        row: "engine: put, durable, 4 KiB, 256 at once",
        beside: FIO,
        beside_row: "write 4 KiB at random, 32 at once",
        limit: Limit::ValueAtLeast(1.0),
    },
    Gate {
        subject: OWN,
        row: "engine: put, durable, 4 KiB, 1 at once",
        beside: FIO,
        beside_row: "append 4 KiB, flush each",
        limit: Limit::MedianAtMost(1.3),
    },
    Gate {
        subject: OWN,
        row: "engine: get, nothing cached, 4 KiB, 32 at once",
        beside: FIO,
        beside_row: "read 4 KiB at random, 32 at once",
        limit: Limit::ValueAtLeast(0.85),
    },
];
/// Opening so many chunks after a kill may take so many seconds. With fewer, the volume that was being written, which is
/// read whole, is most of it, and nothing is judged.
const OPEN_RECORDS: f64 = 10e6;
const OPEN_SECONDS_MAX: f64 = 10.0;

#[derive(Clone, Copy)]
enum Figure {
    ReadIops,
    WriteIops,
    WriteMb,
}

/// One measurement of every row.
type Round = Vec<(&'static str, Line)>;

pub fn measure(options: &Options, folder: &Path, report: &mut Report) -> Result<(), String> {
    disk(options, folder, report);
    match super::ROWS.iter().any(|row| row.op == "get" && options.wants("nginx", &row.name())) {
        true => nginx(options, folder, report),
        false => Ok(()),
    }
}

/// fio and henge's own layers in turns, so that both meet the same minutes of a machine that others use, too.
fn disk(options: &Options, folder: &Path, report: &mut Report) {
    let own = options.wants(OWN, "");
    let mut fio_rows = FIO_ROWS.iter().filter(|(row, ..)| options.wants(FIO, row)).collect::<Vec<_>>();
    if !fio_rows.is_empty() && !crate::run::exists(FIO) {
        report.missing("fio is not on the PATH (apt-get install fio)");
        fio_rows.clear();
    }
    let mut rounds: Vec<Round> = Vec::new();
    for number in 0..if own || !fio_rows.is_empty() { options.repeat } else { 0 } {
        let mut round = Round::new();
        for row in &fio_rows {
            match fio(options, folder, row) {
                Some(line) => round.push((FIO, line)),
                None => report.missing(&format!("fio, {}: it failed", row.0)),
            }
        }
        // Files of 1 GiB are in the way of what follows.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("limit.") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        if own {
            round.extend(own_disk(options, folder, number == 0, report).into_iter().map(|line| (OWN, line)));
        }
        rounds.push(round);
    }
    let mut shown = Vec::new();
    for (subject, line) in rounds.iter().flatten() {
        if !shown.contains(&(subject, &line.row)) {
            shown.push((subject, &line.row));
            let same = rounds.iter().flatten().filter(|(of, other)| of == subject && other.row == line.row);
            let runs: Vec<Line> = same.map(|(_, line)| line.clone()).collect();
            report.add(subject, super::table::median(&line.row, &runs).expect("it was measured"));
        }
    }
    GATES.iter().for_each(|gate| report.judge(gate, &rounds));
}

fn fio(options: &Options, folder: &Path, (row, arguments, figure): &FioRow) -> Option<Line> {
    let output = Command::new(FIO)
        .args(["--name=limit", "--output-format=json", "--time_based", &format!("--runtime={}", options.seconds)])
        .arg(format!("--directory={}", folder.display()))
        .args(*arguments)
        .output();
    let parsed = output.ok().and_then(|output| serde_json::from_slice::<serde_json::Value>(&output.stdout).ok())?;
    let job = &parsed["jobs"][0];
    let (value, unit) = match figure {
        Figure::ReadIops => (job["read"]["iops"].as_f64()?, "per s"),
        Figure::WriteIops => (job["write"]["iops"].as_f64()?, "per s"),
        Figure::WriteMb => (job["write"]["bw_bytes"].as_f64()? / 1e6, "MB/s"),
    };
    Some(Line { value, unit, p50_us: p50_us(job), ..Line::named(row) })
}

/// Median of an operation, with that of its flush where there is one.
fn p50_us(job: &serde_json::Value) -> Option<f64> {
    let median = |what: &serde_json::Value| what["percentile"]["50.000000"].as_f64().map(|nanos| nanos / 1e3);
    let operation = ["write", "read"].iter().find_map(|kind| median(&job[kind]["clat_ns"]))?;
    Some(operation + median(&job["sync"]["lat_ns"]).unwrap_or(0.0))
}

/// `opening`: also what is done once, whatever is repeated.
fn own_disk(options: &Options, folder: &Path, opening: bool, report: &mut Report) -> Vec<Line> {
    let mut command = Command::new(&options.henge);
    command.args(["bench", "disk", "--json", "--seconds", &options.seconds.to_string(), "--data"]).arg(folder);
    if opening {
        command.args(["--records", &options.records.to_string()]);
    }
    let output = command.output();
    let parsed = output.ok().and_then(|output| serde_json::from_slice::<serde_json::Value>(&output.stdout).ok());
    let rows = parsed.as_ref().and_then(|rows| rows.as_array().cloned()).unwrap_or_default();
    if rows.is_empty() {
        report.missing(&format!("{OWN}: it failed"));
    }
    rows.iter().map(own_line).collect()
}

fn own_line(row: &serde_json::Value) -> Line {
    let number = |name: &str| row[name].as_f64();
    let what = row["row"].as_str().unwrap_or_default();
    if let Some(records) = number("records") {
        return opened(what, records, row);
    }
    let large = number("bytes").is_some_and(|bytes| bytes >= (1 << 20) as f64);
    let size = if large { "1 MiB" } else { "4 KiB" };
    let name = format!("{what}, {size}, {} at once", number("at_once").unwrap_or(0.0));
    let (value, unit) = if large { (number("mb_per_s"), "MB/s") } else { (number("ops_per_s"), "per s") };
    Line { value: value.unwrap_or(0.0), unit, p50_us: number("p50_us"), p99_us: number("p99_us"), ..Line::named(&name) }
}

/// The line of a disk that was opened after a kill.
fn opened(what: &str, records: f64, row: &serde_json::Value) -> Line {
    let seconds = row["p50_us"].as_f64().unwrap_or(0.0) / 1e6;
    let verdict = match records >= OPEN_RECORDS {
        true if seconds * OPEN_RECORDS <= OPEN_SECONDS_MAX * records => " (gate: holds)",
        true => " (gate: DOES NOT HOLD)",
        false => "",
    };
    let memory = row["resident_bytes"].as_f64().unwrap_or(0.0) / records;
    let name = format!("{what}, {records} chunks, {memory:.0} bytes each{verdict}");
    Line { value: seconds, unit: "s", ..Line::named(&name) }
}

/// Files over HTTP, stored through WebDAV: what a read costs when there is nothing but a file and a socket.
fn nginx(options: &Options, folder: &Path, report: &mut Report) -> Result<(), String> {
    let Some(_server) = Nginx::start(&folder.join("nginx")) else {
        report.missing("nginx is not on the PATH, or did not start (apt-get install nginx)");
        return Ok(());
    };
    for row in super::ROWS.iter().filter(|row| row.op == "get" && options.wants("nginx", &row.name())) {
        super::repeat(options, report, "nginx", row, || {
            let mut command = super::bench_command(options, row);
            command.args(["--s3", &format!("127.0.0.1:{NGINX_PORT}")]);
            command.env("HENGE_ROOT_USER", "nobody").env("HENGE_ROOT_PASSWORD", "anything-long");
            super::line_of(command, row, || ()).map(|(loaded, ())| loaded.line)
        })?;
    }
    Ok(())
}

struct Nginx(Child);

impl Nginx {
    fn start(folder: &Path) -> Option<Nginx> {
        let root = folder.join("root/bench");
        std::fs::create_dir_all(&root).ok()?;
        let config = folder.join("nginx.conf");
        let text = format!(
            "user root; daemon off; worker_processes auto; pid {0}/pid; error_log {0}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000000;\n\
             client_max_body_size 0; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy;\n\
             fastcgi_temp_path {0}/fastcgi; uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;\n\
             server {{ listen 127.0.0.1:{NGINX_PORT}; root {0}/root; dav_methods PUT DELETE; create_full_put_path on;\n\
             location = /bench {{ return 200; }} }} }}\n",
            folder.display()
        );
        std::fs::write(&config, text).ok()?;
        let child = Command::new("nginx").arg("-c").arg(&config).stderr(Stdio::null()).spawn().ok()?;
        let mut server = Nginx(child);
        std::thread::sleep(Duration::from_millis(300));
        let runs = matches!(server.0.try_wait(), Ok(None));
        runs.then_some(server)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}
