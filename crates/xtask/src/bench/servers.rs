//! Starting and stopping the servers that are measured. All of them keep their data in a directory of the run.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Options;
use super::meter::used;

const START_MAX: Duration = Duration::from_secs(60);
/// Before idle memory is read.
const IDLE: Duration = Duration::from_secs(3);

pub struct Kind {
    pub name: &'static str,
    pub folder: &'static str,
    what: What,
    nodes: u32,
    base_port: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Henge,
    /// Garage; whether it flushes what it acknowledges.
    Garage {
        flushed: bool,
    },
}

pub const KINDS: [&Kind; 6] = [
    &Kind { name: "henge, 1 node", folder: "henge1", what: What::Henge, nodes: 1, base_port: 28100 },
    &Kind { name: "henge, 3 nodes", folder: "henge3", what: What::Henge, nodes: 3, base_port: 28200 },
    &Kind {
        name: "garage, 3 nodes, flushed",
        folder: "garage-flushed",
        what: What::Garage { flushed: true },
        nodes: 3,
        base_port: 28300,
    },
    &Kind {
        name: "garage, 3 nodes, not flushed",
        folder: "garage",
        what: What::Garage { flushed: false },
        nodes: 3,
        base_port: 28400,
    },
    &Kind {
        name: "garage, 1 node, flushed",
        folder: "garage1-flushed",
        what: What::Garage { flushed: true },
        nodes: 1,
        base_port: 28500,
    },
    &Kind {
        name: "garage, 1 node, not flushed",
        folder: "garage1",
        what: What::Garage { flushed: false },
        nodes: 1,
        base_port: 28600,
    },
];

/// A server that runs; stopped when dropped.
pub struct Server {
    pub kind: &'static Kind,
    pub endpoints: Vec<String>,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    /// Those that were started here; with `henge dev`, the one that started the nodes.
    children: Vec<Child>,
    nodes: Vec<u32>,
    idle_rss_mib: f64,
}

impl Server {
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.clone()
    }

    pub fn idle_rss_mib(&self) -> f64 {
        self.idle_rss_mib
    }

    pub fn rss_mib(&self) -> f64 {
        used(&self.nodes).rss_mib
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            // SIGINT: `henge dev` stops its nodes in good order, Garage itself.
            let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
            let _ = child.wait();
        }
    }
}

pub fn start(kind: &'static Kind, options: &Options, folder: &Path) -> Result<Server, String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut server = match kind.what {
        What::Henge => start_henge(kind, options, folder)?,
        What::Garage { flushed } => start_garage(kind, flushed, folder)?,
    };
    std::thread::sleep(IDLE);
    server.idle_rss_mib = server.rss_mib();
    Ok(server)
}

fn start_henge(kind: &'static Kind, options: &Options, folder: &Path) -> Result<Server, String> {
    let data = folder.join("dev");
    let mut child = Command::new(&options.henge)
        .args(["dev", "--nodes", &kind.nodes.to_string(), "--base-port", &kind.base_port.to_string(), "--data"])
        .arg(&data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", options.henge.display()))?;
    let output = child.stdout.take();
    let ready = output.is_some_and(|output| {
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let ready = lines.any(|line| line.starts_with("ready"));
        // Read on, so that it never waits for its reader.
        std::thread::spawn(move || lines.for_each(drop));
        ready
    });
    let mut server = Server {
        kind,
        endpoints: Vec::new(),
        region: String::new(),
        access_key: String::new(),
        secret_key: String::new(),
        children: vec![child],
        nodes: Vec::new(),
        idle_rss_mib: 0.0,
    };
    if !ready {
        return Err("it did not become ready".into());
    }
    let raw = std::fs::read(data.join("cluster.json")).map_err(|error| format!("cluster.json: {error}"))?;
    let cluster: serde_json::Value = serde_json::from_slice(&raw).map_err(|error| format!("cluster.json: {error}"))?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = cluster["nodes"].as_array().cloned().unwrap_or_default();
    server.endpoints = nodes.iter().map(|node| text(&node["s3"])).collect();
    server.nodes = nodes.iter().filter_map(|node| u32::try_from(node["pid"].as_u64()?).ok()).collect();
    server.region = text(&cluster["region"]);
    server.access_key = text(&cluster["access_key"]);
    server.secret_key = text(&cluster["secret_key"]);
    if kind.nodes > 1 {
        // One node alone has one copy, and says so for ever.
        wait_safe(options, &data)?;
    }
    Ok(server)
}

/// Until everything has all its copies: before, a PUT is kept in fewer.
fn wait_safe(options: &Options, data: &Path) -> Result<(), String> {
    wait("it did not become safe", || {
        let status = Command::new(&options.henge).args(["status", "--data"]).arg(data).stdout(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    })
}

fn wait(why: &str, mut ready: impl FnMut() -> bool) -> Result<(), String> {
    let began = Instant::now();
    while !ready() {
        if began.elapsed() > START_MAX {
            return Err(format!("{why} within {} s", START_MAX.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// As in Garage's quick start: a copy on each node; the layout is one node a zone.
fn start_garage(kind: &'static Kind, flushed: bool, folder: &Path) -> Result<Server, String> {
    if !crate::run::exists("garage") {
        return Err("garage is not on the PATH (cargo install garage --version 2.5.0 --locked)".into());
    }
    let mut server = Server {
        kind,
        endpoints: Vec::new(),
        region: "us-east-1".into(),
        access_key: String::new(),
        secret_key: String::new(),
        children: Vec::new(),
        nodes: Vec::new(),
        idle_rss_mib: 0.0,
    };
    let configs: Vec<String> =
        (0..kind.nodes).map(|number| configure_garage(kind, number, flushed, folder)).collect::<Result<_, _>>()?;
    for (number, config) in configs.iter().enumerate() {
        let child = Command::new("garage")
            .args(["-c", config, "server"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("garage: {error}"))?;
        server.nodes.push(child.id());
        server.children.push(child);
        server.endpoints.push(format!("127.0.0.1:{}", kind.base_port + 10 * number as u16));
    }
    let mut ids = Vec::new();
    for config in &configs {
        wait("a node did not start", || garage(config, &["node", "id", "-q"]).is_ok_and(|id| !id.is_empty()))?;
        // That was read from its disk; this it answers itself.
        wait("a node did not answer", || garage(config, &["status"]).is_ok())?;
        ids.push(garage(config, &["node", "id", "-q"])?.trim().to_owned());
    }
    for (number, id) in ids.iter().enumerate() {
        if number > 0 {
            garage(&configs[0], &["node", "connect", id])?;
        }
        let short = id.split('@').next().unwrap_or(id);
        let zone = format!("zone{number}");
        garage(&configs[0], &["layout", "assign", "-z", &zone, "-c", "100G", short])?;
    }
    garage(&configs[0], &["layout", "apply", "--version", "1"])?;
    let made = garage(&configs[0], &["key", "create", "bench"])?;
    let word = |name: &str| {
        let line = made.lines().find_map(|line| line.trim().strip_prefix(name));
        line.map(|rest| rest.trim().to_owned()).ok_or_else(|| format!("garage did not tell its {name}"))
    };
    (server.access_key, server.secret_key) = (word("Key ID:")?, word("Secret key:")?);
    garage(&configs[0], &["key", "allow", "--create-bucket", "bench"])?;
    Ok(server)
}

fn configure_garage(kind: &Kind, number: u32, flushed: bool, folder: &Path) -> Result<String, String> {
    let (port, node) = (kind.base_port + 10 * number as u16, folder.join(format!("node{number}")));
    std::fs::create_dir_all(&node).map_err(|error| format!("{}: {error}", node.display()))?;
    let path = node.join("garage.toml");
    let mut file = std::fs::File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let written = write!(
        file,
        "metadata_dir = \"{0}/meta\"\ndata_dir = \"{0}/data\"\ndb_engine = \"lmdb\"\nreplication_factor = {5}\n\
         metadata_fsync = {flushed}\ndata_fsync = {flushed}\nrpc_bind_addr = \"127.0.0.1:{1}\"\n\
         rpc_public_addr = \"127.0.0.1:{1}\"\nrpc_secret = \"{2}\"\n[s3_api]\ns3_region = \"us-east-1\"\n\
         api_bind_addr = \"127.0.0.1:{3}\"\nroot_domain = \".s3.garage\"\n[admin]\napi_bind_addr = \"127.0.0.1:{4}\"\n",
        node.display(),
        port + 1,
        "1f".repeat(32),
        port,
        port + 2,
        kind.nodes
    );
    written.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path.display().to_string())
}

fn garage(config: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("garage").args(["-c", config]).args(arguments).output();
    let output = output.map_err(|error| format!("garage: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("garage {}: {}", arguments.join(" "), said.lines().last().unwrap_or_default()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
