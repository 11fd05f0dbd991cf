//! Processes, signals and time: what the rig needs of the operating system.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a state that cannot be waited for is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Why a fault could not be carried out, or what did not hold.
#[derive(Debug)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub fn fail<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure(why.into()))
}

/// Says what was tried when an operation of the system failed.
pub trait Tried<T> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Tried<T> for Result<T, E> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("{}: {error}", what())))
    }
}

/// Set by SIGINT, SIGTERM and SIGHUP. Every wait looks at it, so that the owners of processes, mounts and directories
/// are dropped in good order.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on signals end this process in good order. The second one ends it at once.
pub fn catch_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the zeroed structure is a valid empty one, and the handler only stores an atomic.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = interrupt as *const () as usize;
            action.sa_flags = libc::SA_RESETHAND;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

pub fn check_interrupted() -> Result<(), Failure> {
    if INTERRUPTED.load(Ordering::Relaxed) { fail("interrupted") } else { Ok(()) }
}

pub fn sleep(time: Duration) -> Result<(), Failure> {
    let end = Instant::now() + time;
    loop {
        check_interrupted()?;
        let Some(left) = end.checked_duration_since(Instant::now()) else { return Ok(()) };
        std::thread::sleep(left.min(POLL_INTERVAL));
    }
}

/// Waits until `reached` answers with something.
pub fn wait_for<T>(
    patience: Duration,
    what: impl Fn() -> String,
    mut reached: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = reached()? {
            return Ok(found);
        }
        if Instant::now() > end {
            return fail(format!("{} did not happen within {} s", what(), patience.as_secs()));
        }
        sleep(POLL_INTERVAL)?;
    }
}

/// Wall-clock milliseconds since 1970, as the ack log has them.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A child process that dies with this one, or when it is dropped.
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// `log` gets what it says.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Process, Failure> {
        let cannot_log = || format!("{} cannot be written", log.display());
        let out = File::options().create(true).append(true).open(log).tried(cannot_log)?;
        let also_out = out.try_clone().tried(cannot_log)?;
        // In a group of its own, so that Ctrl-C reaches only this process, which then decides.
        command.stdin(Stdio::null()).stdout(out).stderr(also_out).process_group(0);
        // SAFETY: prctl(2) is a plain system call, as all that may run between fork and exec must be.
        unsafe { command.pre_exec(die_with_parent) };
        let child = command.spawn().tried(|| format!("{name} cannot be started"))?;
        Ok(Process { name: name.to_owned(), child })
    }

    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("the kernel's process ids fit");
        // SAFETY: the child was not waited for yet, so the id is still its own.
        unsafe { libc::kill(pid, signal) };
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| format!("{} ended: {status}", self.name))
    }

    pub fn kill(mut self) {
        self.kill_now();
    }

    /// Its good end, which it was asked for.
    pub fn wait_end(mut self, patience: Duration) -> Result<(), Failure> {
        let name = self.name.clone();
        let ended = wait_for(
            patience,
            || format!("the end of {name}"),
            || self.child.try_wait().tried(|| format!("{name} cannot be waited for")),
        )?;
        if ended.success() { Ok(()) } else { fail(format!("{name} was asked to stop and ended with {ended}")) }
    }

    fn kill_now(&mut self) {
        // It may have ended already.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_now();
    }
}

fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a finished command left behind.
pub struct Finished {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Result<Finished, Failure> {
    check_interrupted()?;
    // SAFETY: as in `Process::start`.
    let output = unsafe { command.stdin(Stdio::null()).pre_exec(die_with_parent) }.output();
    let output = output.tried(|| format!("{} cannot be run", command_name(command)))?;
    check_interrupted()?;
    Ok(Finished {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a tool of the system that must succeed. `line`: program and arguments, split at spaces.
pub fn tool(line: &str) -> Result<(), Failure> {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a line names a program");
    let finished = finish(Command::new(program).args(words))?;
    if finished.status == 0 {
        return Ok(());
    }
    fail(format!("`{line}` ended with {}: {}", finished.status, finished.stderr.trim()))
}

/// Whether a program is on the path, or where administrators' tools are.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn command_name(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
