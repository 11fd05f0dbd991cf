//! Servers as child processes: how `dev` and `demo` start them, know that they serve, and signal them.

use http::Request;
use http_body_util::Full;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster_file::ClusterFile;
use crate::failure::{Context, Failure};
use crate::http_client::HttpClient;

/// A server to start.
pub struct ServerSpec {
    pub data: PathBuf,
    pub s3: SocketAddr,
    pub admin: SocketAddr,
    pub cluster: SocketAddr,
    /// Gets what the server says.
    pub log: PathBuf,
    pub lifetime: Lifetime,
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
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().context(|| "the server cannot be watched".into())? {
            return Err(Failure(last_words(&spec.log).unwrap_or_else(|| format!("the server ended with {status}"))));
        }
        if let Ok(Some(cluster)) = ClusterFile::read(&spec.data)
            && let Some(node) = cluster.nodes.iter().find(|node| node.pid == child.id())
            && is_ready(&node.admin).await
        {
            return Ok(cluster);
        }
        if Instant::now() > deadline {
            return Err(Failure(format!("the server does not get ready; {} may say why", spec.log.display())));
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

/// Whether process `pid` is a server on `data`: a process id may meanwhile belong to somebody else.
pub fn serves(pid: u32, data: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(arguments) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut arguments = arguments.split(|byte| *byte == 0);
    arguments.any(|argument| argument == data.as_os_str().as_bytes())
}

/// Sends a signal to a process, which must be known to be ours.
pub fn send_signal(pid: u32, signal: libc::c_int) -> Result<(), Failure> {
    let raw = libc::pid_t::try_from(pid).context(|| format!("{pid} is no process"))?;
    assert!(raw > 0, "0 and negative numbers would name whole groups of processes");
    // SAFETY: kill(2) takes two integers and touches no memory of ours.
    match unsafe { libc::kill(raw, signal) } {
        0 => Ok(()),
        _ => Err(Failure(format!("process {pid} cannot be signalled: {}", io::Error::last_os_error()))),
    }
}

/// Waits until `pid` is no longer a server on `data`.
pub async fn wait_gone(pid: u32, data: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    while serves(pid, data) {
        if Instant::now() > deadline {
            return Err(Failure(format!("process {pid} does not stop; end it with `kill -9 {pid}`")));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_arguments() {
        let me = std::process::id();
        let program = std::env::args_os().next().unwrap();
        assert!(serves(me, Path::new(&program)));
        assert!(!serves(me, Path::new("/elsewhere")));
        assert!(!serves(u32::MAX / 2, Path::new(&program)));
    }
}
