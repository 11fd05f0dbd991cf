//! `cargo xtask conformance`: test suites and clients that others wrote, against a cluster that is started for them.

#![expect(
    clippy::disallowed_methods,
    reason = "a tool of this repository: real processes, files and clocks are what it works with"
)]

mod clients;
mod cluster;
mod expected;
mod s3_tests;

use cluster::Cluster;
use std::path::PathBuf;
use std::process::ExitCode;

pub const USAGE: &str = "\
usage: cargo xtask conformance s3 --suite DIR [--python PYTHON] [--select EXPRESSION] [--workers N] [OPTIONS]
       cargo xtask conformance clients [--only NAME] [OPTIONS]

  s3        runs ceph/s3-tests from DIR (a checkout; its requirements are installed for PYTHON) and compares the
            outcome with conformance/s3-tests.toml
  clients   runs the scripts of conformance/clients: put, get, list, multipart, sync, delete, presign with each client
            that is installed

  --nodes N        nodes of the cluster (1)
  --kill           kill the last of several nodes half-way and start it again a minute later
  --base-port P    first port (29500)
  --henge PATH     the binary; without it a release build is made
  --select E       pytest's -k: only the tests that it selects; nothing is compared then
  --workers N      processes that run tests (pytest-xdist must be installed)";

/// What the command line says.
pub struct Options {
    pub suite: Option<PathBuf>,
    pub python: String,
    pub select: Option<String>,
    pub workers: Option<u32>,
    pub only: Option<String>,
    pub nodes: u32,
    pub kill: bool,
    pub base_port: u16,
    pub henge: Option<PathBuf>,
}

pub fn run(arguments: &[&str]) -> ExitCode {
    let outcome = match arguments {
        ["s3", rest @ ..] => Options::read(rest).and_then(|options| with_cluster(&options, s3_tests::run)),
        ["clients", rest @ ..] => Options::read(rest).and_then(|options| with_cluster(&options, clients::run)),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn with_cluster(options: &Options, body: fn(&Options, &mut Cluster) -> Result<bool, String>) -> Result<bool, String> {
    let mut cluster = Cluster::start(options)?;
    let outcome = body(options, &mut cluster);
    cluster.stop();
    outcome
}

impl Options {
    fn read(arguments: &[&str]) -> Result<Options, String> {
        let mut options = Options {
            suite: None,
            python: "python3".to_owned(),
            select: None,
            workers: None,
            only: None,
            nodes: 1,
            kill: false,
            base_port: 29500,
            henge: std::env::var_os("HENGE").map(PathBuf::from),
        };
        let mut rest = arguments.iter();
        while let Some(name) = rest.next() {
            if *name == "--kill" {
                options.kill = true;
                continue;
            }
            let value = (*rest.next().ok_or_else(|| format!("{name} needs a value\n\n{USAGE}"))?).to_owned();
            let number = || value.parse::<u16>().map_err(|_| format!("{name} needs a number, not {value:?}"));
            match *name {
                "--suite" => options.suite = Some(PathBuf::from(&value)),
                "--python" => options.python = value,
                "--select" => options.select = Some(value),
                "--workers" => options.workers = Some(u32::from(number()?)),
                "--only" => options.only = Some(value),
                "--nodes" => options.nodes = u32::from(number()?),
                "--base-port" => options.base_port = number()?,
                "--henge" => options.henge = Some(PathBuf::from(&value)),
                _ => return Err(format!("unknown option {name}\n\n{USAGE}")),
            }
        }
        Ok(options)
    }
}
