//! A cluster of real servers, one process a node, each with an address of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::arena::Arena;
use super::json::Json;
use super::processes::{Failure, Finished, Process, fail, finish, wait_for};

const S3_PORT: u16 = 9000;
const ADMIN_PORT: u16 = 9001;
const CLUSTER_PORT: u16 = 9002;

/// The shard with all objects; group 0 holds the cluster map.
pub const MAP_GROUP: u64 = 0;
pub const OBJECTS_GROUP: u64 = 1;

const READY_PATIENCE: Duration = Duration::from_secs(90);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const SAFE_PATIENCE: Duration = Duration::from_secs(180);

/// Before the first look at a status again: the nodes have work of their own.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

const ACCESS_KEY: &str = "chaos-root";
const SECRET_KEY: &str = "chaos-root-secret-that-guards-nothing";

/// How a node is to be run.
#[derive(Clone)]
pub struct Place {
    pub ip: Ipv4Addr,
    /// Its directory.
    pub data: PathBuf,
    /// Network namespace to run in, by the file that names it.
    pub namespace: Option<PathBuf>,
    /// More environment, for shims.
    pub environment: Vec<(String, String)>,
}

pub struct Node {
    pub place: Place,
    process: Option<Process>,
}

pub struct Cluster<'a> {
    arena: &'a Arena,
    nodes: Vec<Node>,
    /// Where logs go.
    folder: PathBuf,
}

impl<'a> Cluster<'a> {
    /// Founds a cluster in empty directories and waits until it says `safe`.
    pub fn found(arena: &'a Arena, folder: &Path, places: Vec<Place>) -> Result<Cluster<'a>, Failure> {
        let mut cluster = Cluster::stopped(arena, folder, places);
        cluster.start(1)?;
        cluster.wait_ready(1)?;
        for number in 2..=cluster.len() {
            let token = cluster.henge(&["token", "create", "--admin", &cluster.admin(1)])?;
            let Some(token) = token.stdout.lines().last().map(str::to_owned) else {
                return fail(format!("no token to join with: {}", token.stderr));
            };
            cluster.launch(number, Some(token))?;
            cluster.wait_ready(number)?;
        }
        if cluster.len() > 1 {
            cluster.wait_safe()?;
        }
        Ok(cluster)
    }

    /// A cluster whose directories are there, and of which no node runs.
    pub fn stopped(arena: &'a Arena, folder: &Path, places: Vec<Place>) -> Cluster<'a> {
        let nodes = places.into_iter().map(|place| Node { place, process: None }).collect();
        Cluster { arena, nodes, folder: folder.to_owned() }
    }

    /// Nodes are numbered from 1 on, and have these ids.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn numbers(&self) -> impl Iterator<Item = usize> + use<> {
        1..=self.nodes.len()
    }

    fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    fn address(&self, number: usize, port: u16) -> SocketAddr {
        (self.node(number).place.ip, port).into()
    }

    pub fn admin(&self, number: usize) -> String {
        self.address(number, ADMIN_PORT).to_string()
    }

    pub fn s3_of_all(&self) -> Vec<String> {
        self.numbers().map(|number| self.address(number, S3_PORT).to_string()).collect()
    }

    pub fn directories(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(|node| node.place.data.clone()).collect()
    }

    pub fn log_of(&self, number: usize) -> PathBuf {
        self.folder.join(format!("node{number}.log"))
    }

    pub fn start(&mut self, number: usize) -> Result<(), Failure> {
        self.launch(number, None)
    }

    pub fn start_all(&mut self) -> Result<(), Failure> {
        self.numbers().try_for_each(|number| self.start(number))?;
        self.numbers().try_for_each(|number| self.wait_ready(number))
    }

    fn launch(&mut self, number: usize, token: Option<String>) -> Result<(), Failure> {
        let place = &self.node(number).place;
        let mut command = match &place.namespace {
            None => Command::new(&self.arena.henge),
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", namespace.display())).arg(&self.arena.henge);
                command
            }
        };
        command.arg("server").arg("--data").arg(&place.data);
        for (flag, port) in [("--s3", S3_PORT), ("--admin", ADMIN_PORT), ("--cluster", CLUSTER_PORT)] {
            command.arg(flag).arg(self.address(number, port).to_string());
        }
        command.envs(place.environment.iter().map(|(name, value)| (name, value)));
        command.envs(credentials());
        if let Some(token) = token {
            command.arg("--join").arg(self.address(1, CLUSTER_PORT).to_string()).env("HENGE_JOIN_TOKEN", token);
        }
        let process = Process::start(&format!("node {number}"), command, &self.log_of(number))?;
        self.nodes[number - 1].process = Some(process);
        Ok(())
    }

    /// Until the node serves writes.
    pub fn wait_ready(&mut self, number: usize) -> Result<(), Failure> {
        let (address, log) = (self.address(number, ADMIN_PORT), self.log_of(number));
        let process = self.nodes[number - 1].process.as_mut();
        let process = process.ok_or_else(|| Failure(format!("node {number} does not run")))?;
        wait_for(
            READY_PATIENCE,
            || format!("the readiness of node {number} (its log is {})", log.display()),
            || match process.ended() {
                Some(how) => fail(format!("{how}: {}", last_lines(&log))),
                None => Ok(is_ready(address).then_some(())),
            },
        )
    }

    /// kill -9.
    pub fn kill(&mut self, number: usize) {
        self.nodes[number - 1].process.take().into_iter().for_each(Process::kill);
    }

    pub fn kill_all(&mut self) {
        // First the signals, then the waiting: they fall at one moment.
        for node in &self.nodes {
            node.process.iter().for_each(|process| process.signal(libc::SIGKILL));
        }
        self.numbers().for_each(|number| self.kill(number));
    }

    /// SIGTERM, and a good end. (A second one would end it at once.)
    pub fn stop(&mut self, number: usize) -> Result<(), Failure> {
        self.node(number).process.iter().for_each(|process| process.signal(libc::SIGTERM));
        self.wait_end(number)
    }

    pub fn stop_all(&mut self) -> Result<(), Failure> {
        for node in &self.nodes {
            node.process.iter().for_each(|process| process.signal(libc::SIGTERM));
        }
        self.numbers().try_for_each(|number| self.wait_end(number))
    }

    fn wait_end(&mut self, number: usize) -> Result<(), Failure> {
        self.nodes[number - 1].process.take().map_or(Ok(()), |process| process.wait_end(STOP_PATIENCE))
    }

    pub fn pause(&self, number: usize) {
        self.node(number).process.iter().for_each(|process| process.signal(libc::SIGSTOP));
    }

    pub fn resume(&self, number: usize) {
        self.node(number).process.iter().for_each(|process| process.signal(libc::SIGCONT));
    }

    /// Why a node that should run does not.
    pub fn check_running(&mut self) -> Result<(), Failure> {
        let ended = self.nodes.iter_mut().filter_map(|node| node.process.as_mut()).find_map(Process::ended);
        ended.map_or(Ok(()), fail)
    }

    /// What the cluster says of itself through this node; `None` when it does not answer.
    pub fn status(&self, number: usize) -> Result<Option<Json>, Failure> {
        let asked = self.henge(&["status", "--json", "--admin", &self.admin(number)])?;
        Ok(Json::parse(&asked.stdout))
    }

    /// The node that leads a group, by the first node that knows.
    pub fn leader(&self, group: u64) -> Result<usize, Failure> {
        wait_for(
            SAFE_PATIENCE,
            || format!("a leader of group {group}"),
            || {
                for number in self.numbers() {
                    let Some(status) = self.status(number)? else { continue };
                    let found = status.list("groups").iter().find(|found| found.number("id") == Some(group));
                    if let Some(leader) = found.and_then(|found| found.number("leader")) {
                        return Ok(Some(leader as usize));
                    }
                }
                Ok(None)
            },
        )
    }

    /// The generation of a node, as `witness` says.
    pub fn generation(&self, number: usize, witness: usize) -> Result<u64, Failure> {
        let status = self.status(witness)?;
        let nodes = status.iter().flat_map(|status| status.list("nodes"));
        let generation =
            nodes.filter(|node| node.number("id") == Some(number as u64)).find_map(|n| n.number("generation"));
        generation.ok_or_else(|| Failure(format!("node {witness} does not know node {number}'s generation")))
    }

    /// Until every node says that everything is safe. How it looked last, if that does not happen.
    pub fn wait_safe(&mut self) -> Result<(), Failure> {
        for number in self.numbers() {
            let mut last = String::new();
            let waited = wait_for(
                SAFE_PATIENCE,
                || format!("`safe` through node {number}"),
                || {
                    self.check_running()?;
                    let asked = self.henge(&["status", "--admin", &self.admin(number)])?;
                    if asked.status == 0 {
                        return Ok(Some(()));
                    }
                    last = format!("{}{}", asked.stdout, asked.stderr);
                    super::processes::sleep(STATUS_INTERVAL)?;
                    Ok(None)
                },
            );
            waited.map_err(|failure| Failure(format!("{failure}; the last status was:\n{last}")))?;
        }
        Ok(())
    }

    /// Until the cluster knows all nodes as working again.
    pub fn wait_all_up(&self) -> Result<(), Failure> {
        wait_for(
            SAFE_PATIENCE,
            || "`up` of all nodes".into(),
            || {
                super::processes::sleep(STATUS_INTERVAL)?;
                let Some(status) = self.status(1)? else { return Ok(None) };
                let up = status.list("nodes").iter().filter(|node| node.text("state") == Some("up")).count();
                Ok((up == self.len()).then_some(()))
            },
        )
    }

    /// `henge fsck` over all directories, of which no server runs.
    pub fn fsck(&self) -> Result<(), Failure> {
        let mut command = Command::new(&self.arena.henge);
        let checked = finish(command.arg("fsck").args(self.directories()))?;
        if checked.status == 0 { Ok(()) } else { fail(format!("fsck: {}{}", checked.stdout, checked.stderr)) }
    }

    /// Runs a client command with the root credentials.
    pub fn henge(&self, arguments: &[&str]) -> Result<Finished, Failure> {
        finish(self.client().args(arguments))
    }

    /// A client command to be completed.
    pub fn client(&self) -> Command {
        let mut command = Command::new(&self.arena.henge);
        command.envs(credentials());
        command
    }
}

fn credentials() -> [(&'static str, &'static str); 2] {
    [("HENGE_ROOT_USER", ACCESS_KEY), ("HENGE_ROOT_PASSWORD", SECRET_KEY)]
}

fn is_ready(admin: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /health/ready HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    ask().is_ok_and(|answer| &answer == b"HTTP/1.1 200")
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}
