//! Where faults happen: the binary under test, a private directory, and what this machine and user can do.

use std::cell::{Cell, OnceCell};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cluster::Place;
use super::processes::{Failure, Tried, fail, find_program, finish};
use super::random::Random;

pub struct Arena {
    /// The binary under test.
    pub henge: PathBuf,
    /// Removed at the end.
    pub work: PathBuf,
    /// Short versions.
    pub gate: bool,
    /// Instead of each fault's own number of rounds.
    pub rounds: Option<u64>,
    pub seed: u64,
    /// In namespaces for mounts and networks of this process alone, with the right to use them.
    pub privileged: bool,
    pub shim: OnceCell<PathBuf>,
    /// Whether the directory stays for a look.
    pub keep: Cell<bool>,
}

/// What a fault cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Root, and namespaces of its own.
    Root,
    /// A program that the system may have.
    Program(&'static str),
    /// A device or file.
    File(&'static str),
    /// A file system that the kernel knows.
    FileSystem(&'static str),
}

impl Arena {
    /// Why a fault with this need cannot be tried here.
    pub fn lacks(&self, need: Need) -> Option<String> {
        match need {
            Need::Root => (!self.privileged).then(|| "needs root, `unshare`, `nsenter` and `ip`".into()),
            Need::Program(name) => find_program(name).is_none().then(|| format!("`{name}` is not installed")),
            Need::File(path) => (!Path::new(path).exists()).then(|| format!("{path} does not exist")),
            Need::FileSystem(name) => {
                let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
                let known = known.lines().any(|line| line.split_whitespace().last() == Some(name));
                (!known).then(|| format!("the kernel does not know {name}"))
            }
        }
    }

    /// Rounds of a fault, in the short version and in the complete one.
    pub fn rounds(&self, gate: u64, full: u64) -> u64 {
        self.rounds.unwrap_or(if self.gate { gate } else { full })
    }

    /// A time in the short version and in the complete one.
    pub fn time(&self, gate_ms: u64, full_ms: u64) -> std::time::Duration {
        std::time::Duration::from_millis(if self.gate { gate_ms } else { full_ms })
    }

    pub fn random(&self) -> Random {
        Random::new(self.seed)
    }

    /// A directory for one fault.
    pub fn folder(&self, fault: &str) -> Result<PathBuf, Failure> {
        let folder = self.work.join(fault);
        std::fs::create_dir_all(&folder).tried(|| format!("{} cannot be made", folder.display()))?;
        Ok(folder)
    }

    /// Nodes on loopback addresses of their own, with directories below `folder`.
    pub fn local_places(&self, folder: &Path, count: u8) -> Result<Vec<Place>, Failure> {
        let network = self.free_network(count)?;
        let place = |number: u8| {
            let [a, b, c, _] = network.octets();
            Place {
                ip: Ipv4Addr::new(a, b, c, number),
                data: folder.join(format!("node{number}")),
                namespace: None,
                environment: Vec::new(),
            }
        };
        Ok((1..=count).map(place).collect())
    }

    /// Loopback addresses whose ports nobody uses: all of 127.0.0.0/8 is this machine.
    fn free_network(&self, count: u8) -> Result<Ipv4Addr, Failure> {
        let start = std::process::id() as u8;
        let networks = (0..=u8::MAX).map(|turn| Ipv4Addr::new(127, 77, start.wrapping_add(turn), 0));
        let mut free = networks.filter(|network| {
            let [a, b, c, _] = network.octets();
            let ports = (1..=count).flat_map(|n| [9000, 9001, 9002].map(|port| (Ipv4Addr::new(a, b, c, n), port)));
            ports.into_iter().all(|address| TcpListener::bind(address).is_ok())
        });
        free.next().ok_or_else(|| Failure("no loopback addresses with free ports 9000 to 9002".into()))
    }

    /// The library that fails flushes and turns clocks, compiled once.
    pub fn shim(&self) -> Result<&Path, Failure> {
        if let Some(shim) = self.shim.get() {
            return Ok(shim);
        }
        let (source, library) = (self.work.join("shim.c"), self.work.join("shim.so"));
        std::fs::write(&source, include_str!("shim.c")).tried(|| "the shim".into())?;
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
        let compiled = finish(&mut compiler)?;
        if compiled.status != 0 {
            return fail(format!("the shim does not compile: {}", compiled.stderr));
        }
        Ok(self.shim.get_or_init(|| library))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if !self.keep.get() {
            // What is left is found and removed by the next run.
            let _ = std::fs::remove_dir_all(&self.work);
        }
    }
}
