//! A server process in a private directory on free ports, and a way to run other commands against it.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Long enough for the slowest machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A directory that vanishes with the test.
pub struct TestDir(PathBuf);

impl TestDir {
    pub fn new(purpose: &str) -> TestDir {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let unique = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("henge-it-{purpose}-{}-{unique}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        TestDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The binary, without credentials from the environment of whoever runs the tests.
pub fn henge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_henge"));
    command
        .env_remove("HENGE_JOIN_TOKEN")
        .env_remove("HENGE_ROOT_USER")
        .env_remove("HENGE_ROOT_PASSWORD")
        .env_remove("RUST_LOG");
    command.stdin(Stdio::null());
    command
}

pub fn run(args: &[&str]) -> Output {
    henge().args(args).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Polls until `condition` gives something.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub struct Server {
    pub child: Child,
    pub cluster: Value,
    data: PathBuf,
    log: Arc<Mutex<String>>,
}

impl Server {
    pub fn start(data: &Path) -> Server {
        Server::start_with(data, &[], &[])
    }

    pub fn start_with(data: &Path, args: &[&str], environment: &[(&str, &str)]) -> Server {
        let mut command = henge();
        command.args(["server", "--s3", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"]);
        command.arg(data).args(args).envs(environment.iter().copied());
        if !args.contains(&"--cluster") {
            command.args(["--cluster", "127.0.0.1:0"]);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Pipes that nobody reads would stop the server when they are full.
        let log = Arc::default();
        drain(child.stdout.take().unwrap(), Arc::default());
        drain(child.stderr.take().unwrap(), Arc::clone(&log));
        let pid = child.id();
        let cluster = wait_for("the server's start", || {
            assert!(child.try_wait().unwrap().is_none(), "the server ended");
            let text = std::fs::read_to_string(data.join("cluster.json")).ok()?;
            let cluster: Value = serde_json::from_str(&text).unwrap();
            (cluster["nodes"][0]["pid"] == pid).then_some(cluster)
        });
        let server = Server { child, cluster, data: data.to_owned(), log };
        wait_for("readiness", || server.admin("GET", "/health/ready", None).filter(|answer| answer.status == 200));
        server
    }

    pub fn s3_address(&self) -> String {
        self.cluster["nodes"][0]["s3"].as_str().unwrap().to_owned()
    }

    pub fn admin_address(&self) -> String {
        self.cluster["nodes"][0]["admin"].as_str().unwrap().to_owned()
    }

    /// A request to the admin port.
    pub fn admin(&self, method: &str, path: &str, authorization: Option<&str>) -> Option<Answer> {
        request(&self.admin_address(), method, path, authorization)
    }

    /// A client command that finds this server and its credentials by `--data`.
    pub fn command(&self, args: &[&str]) -> Output {
        henge().args(args).arg("--data").arg(&self.data).output().unwrap()
    }

    /// What the server has said to standard error so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit status.
    pub fn stop(&mut self) -> Option<i32> {
        signal(self.child.id(), "TERM");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

fn drain(pipe: impl Read + Send + 'static, into: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            into.lock().unwrap().extend([line.as_str(), "\n"]);
        }
    });
}

pub struct Answer {
    pub status: u16,
    pub text: String,
}

/// One HTTP request over one connection; `None` when nobody listens.
pub fn request(address: &str, method: &str, path: &str, authorization: Option<&str>) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    let extra = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{extra}Content-Length: 0\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(Answer { status, text })
}
