//! Servers as child processes: how `dev` and `demo` start them, know that they serve, and signal them.

use http::Request;
use http_body_util::Full;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster_file::ClusterFile;
use crate::failure::{Context, Failure};
use crate::http_client::HttpClient;
use crate::membership;

/// A server to start.
pub struct ServerSpec {
    pub data: PathBuf,
    pub s3: SocketAddr,
    pub admin: SocketAddr,
    pub cluster: SocketAddr,
    /// Gets what the server says.
    pub log: PathBuf,
    pub lifetime: Lifetime,
    /// For a directory that is new to a cluster that exists.
    pub join: Option<Join>,
}

/// The right to join a cluster.
pub struct Join {
    /// Cluster address of a member.
    pub address: String,
    pub token: String,
}

/// What becomes of a server when the process that started it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    /// It is told to stop.
    WithParent,
    /// It goes on.
    OnItsOwn,
}

/// How long a server may take until it serves, and until it has stopped.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a state that cannot be waited for is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Starts a server of this binary. Secrets travel in the inherited environment or in files, never in arguments.
pub fn spawn_server(spec: &ServerSpec) -> Result<Child, Failure> {
    let binary = std::env::current_exe().context(|| "this binary cannot be found".into())?;
    let cannot_log = || format!("{} cannot be written", spec.log.display());
    let log = fs::OpenOptions::new().create(true).append(true).open(&spec.log).context(cannot_log)?;
    let also_log = log.try_clone().context(cannot_log)?;
    let mut command = Command::new(binary);
    command.arg("server").arg("--data").arg(&spec.data);
    for (flag, address) in [("--s3", spec.s3), ("--admin", spec.admin), ("--cluster", spec.cluster)] {
        command.arg(flag).arg(address.to_string());
    }
    // What this process was given to join with is not meant for its children.
    command.env_remove(membership::TOKEN_VARIABLE);
    if let Some(join) = &spec.join {
        command.arg("--join").arg(&join.address).env(membership::TOKEN_VARIABLE, &join.token);
    }
    // In a group of its own, so that Ctrl-C reaches only whom the user started.
    command.stdin(Stdio::null()).stdout(log).stderr(also_log).process_group(0);
    if spec.lifetime == Lifetime::WithParent {
        // SAFETY: prctl(2) is a plain system call, as all that may run between fork and exec must be.
        unsafe { command.pre_exec(stop_with_parent) };
    }
    command.spawn().context(|| "the server cannot be started".into())
}

/// Linux tells the child to stop when the thread that started it is gone.
fn stop_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until the child serves writes; what it wrote into its `cluster.json`.
pub async fn wait_ready(child: &mut Child, spec: &ServerSpec) -> Result<ClusterFile, Failure> {
    match wait_started(child, spec, READY_TIMEOUT).await? {
        (file, true) => Ok(file),
        (_, false) => Err(Failure(format!("the server does not get ready; {} may say why", spec.log.display()))),
    }
}

/// Waits until the child runs, and then at most `patience` for it to serve writes. What it wrote into its
/// `cluster.json`, and whether it serves.
pub async fn wait_started(
    child: &mut Child,
    spec: &ServerSpec,
    patience: Duration,
) -> Result<(ClusterFile, bool), Failure> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context(|| "the server cannot be watched".into())? {
            return Err(Failure(last_words(&spec.log).unwrap_or_else(|| format!("the server ended with {status}"))));
        }
        if let Ok(Some(cluster)) = ClusterFile::read(&spec.data)
            && let Some(node) = cluster.nodes.iter().find(|node| node.pid == child.id())
        {
            let ready = is_ready(&node.admin).await;
            if ready || began.elapsed() > patience {
                return Ok((cluster, ready));
            }
        }
        if began.elapsed() > READY_TIMEOUT {
            return Err(Failure(format!("the server does not start; {} may say why", spec.log.display())));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn is_ready(admin: &str) -> bool {
    let request = Request::builder().uri("/health/ready").header("host", admin).body(Full::default());
    let request = request.expect("a fixed path and an address make a request");
    HttpClient::new(admin).request(request).await.is_ok_and(|answer| answer.status.is_success())
}

/// The sentence with which a server refused to start.
fn last_words(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    text.lines().rev().find_map(|line| line.strip_prefix("henge: ").map(str::to_owned))
}

/// A process that is certainly the one meant: process ids are used again, the kernel's handles are not.
pub struct Running {
    pid: u32,
    handle: OwnedFd,
}

impl Running {
    /// The server on `data` that was process `pid`, if it still is.
    pub fn find(pid: u32, data: &Path) -> Option<Running> {
        // First the handle, then the look: what is seen belongs to the process of the handle.
        let running = Running::open(pid)?;
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut arguments = arguments.split(|byte| *byte == 0);
        arguments.any(|argument| argument == data.as_os_str().as_bytes()).then_some(running)
    }

    fn open(pid: u32) -> Option<Running> {
        let raw = libc::pid_t::try_from(pid).ok().filter(|raw| *raw > 0)?;
        // SAFETY: pidfd_open(2) takes two integers.
        let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, raw, 0) };
        let handle = std::os::fd::RawFd::try_from(handle).ok().filter(|handle| *handle >= 0)?;
        // SAFETY: the call has just made this descriptor, and nobody else knows it.
        Some(Running { pid, handle: unsafe { OwnedFd::from_raw_fd(handle) } })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn signal(&self, signal: libc::c_int) -> Result<(), Failure> {
        let no_details = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal(2) with a null siginfo reads no memory of ours.
        match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.handle.as_raw_fd(), signal, no_details, 0) } {
            0 => Ok(()),
            _ => Err(Failure(format!("process {} cannot be signalled: {}", self.pid, io::Error::last_os_error()))),
        }
    }

    /// Waits until the process has ended, and with it all its locks and ports are free.
    pub async fn wait_gone(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !self.has_ended() {
            if Instant::now() > deadline {
                return Err(Failure(format!("process {} does not stop; end it with `kill -9 {}`", self.pid, self.pid)));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// A process that was killed loses its arguments first and its files later; the handle tells of the very end.
    fn has_ended(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.handle.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the structure is one valid pollfd, and the call does not wait.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }
}

/// Waits for a process that is about to end: it has lost its arguments already, but may hold its files and ports.
pub async fn wait_if_dying(pid: u32) -> Result<(), Failure> {
    let Some(process) = Running::open(pid) else { return Ok(()) };
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(arguments) if arguments.is_empty() => process.wait_gone().await,
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_known_by_its_arguments_and_its_end_is_seen() {
        let me = std::process::id();
        let program = std::env::args_os().next().unwrap();
        assert!(Running::find(me, Path::new(&program)).is_some());
        assert!(Running::find(me, Path::new("/elsewhere")).is_none());
        assert!(Running::find(u32::MAX / 2, Path::new(&program)).is_none());

        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        // Until it has become the other program, it shows our arguments.
        let found = loop {
            if let Some(found) = Running::find(child.id(), Path::new("1000")) {
                break found;
            }
            std::thread::yield_now();
        };
        assert!(!found.has_ended());
        found.signal(libc::SIGKILL).unwrap();
        found.wait_gone().await.unwrap();
        wait_if_dying(child.id()).await.unwrap();
        child.wait().unwrap();
        assert!(found.signal(libc::SIGKILL).is_err());
    }
}
