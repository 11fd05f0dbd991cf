//! `henge server --fence-command PROGRAM`: a program that makes sure that a node cannot act any more.

use base::env::BoxFuture;
use node::{FenceAgent, Target};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// Of what the program says, so much is kept for people.
const SAID_LEN_MAX: usize = 160;
/// And so much is kept at all; the rest is read and dropped.
const SAID_BYTES_MAX: usize = 4 << 10;

/// How long its last words may take after its end, when somebody else keeps the pipe.
const LAST_WORDS: Duration = Duration::from_millis(200);

pub struct FenceCommand {
    pub program: PathBuf,
}

impl FenceAgent for FenceCommand {
    /// The program and what it has started are killed when nobody waits for it any more.
    fn stop(&self, target: Target) -> BoxFuture<Result<String, String>> {
        let mut command = Command::new(&self.program);
        command.arg(target.node.to_string()).arg(&target.address).arg(target.generation.0.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = self.program.display().to_string();
        Box::pin(async move {
            let child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
            let (status, said) = end_of(child).await.map_err(|error| format!("{program}: {error}"))?;
            let said: String = String::from_utf8_lossy(&said).trim().chars().take(SAID_LEN_MAX).collect();
            if status.success() { Ok(said) } else { Err(format!("{status}: {said}")) }
        })
    }
}

/// Waits for the program itself, not for those to whom it left its output.
async fn end_of(mut child: Child) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    let said = Mutex::default();
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut program = Killed { child };
    let mut listened = Box::pin(async { tokio::join!(drain(out, &said), drain(err, &said)) });
    let ended = tokio::select! {
        biased;
        status = program.child.wait() => Some(status?),
        _ = &mut listened => None,
    };
    let status = match ended {
        None => program.child.wait().await?,
        Some(status) => {
            // What it said last may still lie in the pipe.
            let _ = tokio::time::timeout(LAST_WORDS, &mut listened).await;
            status
        }
    };
    drop(listened);
    Ok((status, said.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

/// A program that is killed, with all that it has started, when it has not ended by itself.
struct Killed {
    child: Child,
}

impl Drop for Killed {
    fn drop(&mut self) {
        // None when it has ended: its number may be another's by now.
        let Some(group) = self.child.id().and_then(|id| libc::pid_t::try_from(id).ok()) else { return };
        // SAFETY: kill(2) touches no memory; the group is the program's, which was not waited for and so keeps its number.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

async fn drain(from: Option<impl AsyncRead + Unpin>, said: &Mutex<Vec<u8>>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SAID_BYTES_MAX - said.len();
        said.extend_from_slice(&buffer[..len.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::ScratchDir;
    use base::ids::{Generation, NodeId};

    fn stop(program: &str) -> Result<String, String> {
        let target = Target { node: NodeId(3), address: "c:9002".into(), generation: Generation(7) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(FenceCommand { program: program.into() }.stop(target))
    }

    #[test]
    fn the_program_is_told_whom_and_its_exit_code_counts() {
        assert_eq!(stop("/bin/echo"), Ok("3 c:9002 7".into()));
        assert_eq!(stop("/bin/false"), Err("exit status: 1: ".into()));
        assert!(stop("/nowhere/at/all").unwrap_err().contains("/nowhere/at/all"));
    }

    fn script(lines: &str) -> (ScratchDir, String) {
        use std::os::unix::fs::PermissionsExt;
        let dir = ScratchDir::new("fence");
        let path = dir.path().join("fence");
        std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = path.display().to_string();
        (dir, program)
    }

    /// It was waited for the end of the output, up to the time that the program may take.
    #[test]
    fn a_child_that_keeps_the_output_does_not_hold_up_the_answer() {
        let (_dir, program) = script("sleep 30 &\necho it is off");
        assert_eq!(stop(&program), Ok("it is off".into()));
    }

    #[test]
    fn of_long_output_little_is_kept() {
        let (_dir, program) = script("head -c 3000000 /dev/zero | tr '\\0' x; exit 3");
        assert_eq!(stop(&program), Err(format!("exit status: 3: {}", "x".repeat(SAID_LEN_MAX))));
    }

    #[test]
    fn what_it_has_started_is_killed_with_it() {
        let (dir, program) = script("sleep 300 & echo $! > \"$(dirname \"$0\")/child\"\nwait");
        let target = Target { node: NodeId(3), address: "c:9002".into(), generation: Generation(7) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let child = dir.path().join("child");
        runtime.block_on(async {
            let agent = FenceCommand { program: program.into() };
            tokio::select! {
                biased;
                _ = agent.stop(target) => panic!("it waits for its child"),
                () = async { while !std::fs::read_to_string(&child).is_ok_and(|pid| pid.ends_with('\n')) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                } } => {}
            }
        });
        let pid = std::fs::read_to_string(&child).unwrap();
        let is_gone = || match std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
            // A zombie that nobody has waited for yet.
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        while !is_gone() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
