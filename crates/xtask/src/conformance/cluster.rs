//! A cluster for a conformance run: `henge dev` in a private directory, and access keys in it.

use super::Options;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Ports of neighbouring nodes, as `henge dev` spaces them.
const PORTS_PER_NODE: u16 = 10;

/// The debug setting that makes a day of lifecycle rules last this long, as the suite expects.
pub const LIFECYCLE_DAY_S: u32 = 10;

pub struct Cluster {
    henge: PathBuf,
    pub directory: PathBuf,
    supervisor: Child,
    pub base_port: u16,
    pub nodes: u32,
}

/// An access key.
#[derive(Clone)]
pub struct Key {
    pub id: String,
    pub secret: String,
}

impl Cluster {
    pub fn start(options: &Options) -> Result<Cluster, String> {
        let henge = match &options.henge {
            Some(henge) => henge.clone(),
            None => build()?,
        };
        let directory = std::env::temp_dir().join(format!("henge-conformance.{}", std::process::id()));
        std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let mut supervisor = Command::new(&henge)
            .args(["dev", "--nodes", &options.nodes.to_string(), "--base-port", &options.base_port.to_string()])
            .arg("--data")
            .arg(directory.join("dev"))
            .env("HENGE_DEBUG_LIFECYCLE_DAY_S", LIFECYCLE_DAY_S.to_string())
            .stdout(Stdio::piped())
            .stderr(log(&directory.join("dev.log"))?)
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", henge.display()))?;
        let stdout = supervisor.stdout.take().ok_or("henge dev has no output")?;
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        if !lines.any(|line| line.starts_with("ready")) {
            let _ = supervisor.wait();
            return Err(format!("henge dev did not become ready: see {}", directory.join("dev.log").display()));
        }
        // Read to the end: a supervisor that cannot say that a node died would die of that.
        std::thread::spawn(move || lines.for_each(drop));
        let (base_port, nodes) = (options.base_port, options.nodes);
        Ok(Cluster { henge, directory, supervisor, base_port, nodes })
    }

    pub fn dev(&self) -> PathBuf {
        self.directory.join("dev")
    }

    /// HOST:PORT of the S3 port of a node, from 1 on.
    pub fn s3(&self, node: u32) -> String {
        format!("127.0.0.1:{}", self.port(node))
    }

    pub fn port(&self, node: u32) -> u16 {
        self.base_port + PORTS_PER_NODE * (node as u16 - 1)
    }

    /// Runs a henge command; answers what it printed.
    pub fn henge(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.henge).args(arguments).arg("--data").arg(self.dev()).output();
        let output = output.map_err(|error| format!("henge {}: {error}", arguments.join(" ")))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("henge {} failed: {why}", arguments.join(" ")));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn create_key(&self, name: &str) -> Result<Key, String> {
        let printed = self.henge(&["key", "create", name])?;
        let value = |variable: &str| {
            let line = printed.lines().find_map(|line| line.strip_prefix("export ")?.strip_prefix(variable));
            line.and_then(|rest| rest.strip_prefix('=')).map(str::to_owned)
        };
        match (value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => Ok(Key { id, secret }),
            _ => Err("henge key create printed no key".to_owned()),
        }
    }

    /// Stops everything and removes what it wrote.
    pub fn stop(mut self) {
        // An interrupt lets the supervisor stop its nodes in order.
        let pid = self.supervisor.id().to_string();
        let _ = Command::new("kill").args(["-INT", &pid]).status();
        let _ = self.supervisor.wait();
        if std::env::var_os("KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

fn log(path: &Path) -> Result<std::fs::File, String> {
    std::fs::File::create(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn build() -> Result<PathBuf, String> {
    let status = Command::new("cargo").args(["build", "--release", "--quiet", "--package", "henge"]).status();
    if !status.map_err(|error| format!("cargo: {error}"))?.success() {
        return Err("henge cannot be built".to_owned());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(target.join("release/henge"))
}
