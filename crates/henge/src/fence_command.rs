//! `henge server --fence-command PROGRAM`: a program that makes sure that a node cannot act any more.

use base::env::BoxFuture;
use node::{FenceAgent, Target};
use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::Command;

/// Of what the program says, so much is kept for people.
const SAID_LEN_MAX: usize = 160;

pub struct FenceCommand {
    pub program: PathBuf,
}

impl FenceAgent for FenceCommand {
    /// The program is killed when nobody waits for it any more.
    fn stop(&self, target: Target) -> BoxFuture<Result<String, String>> {
        let mut command = Command::new(&self.program);
        command.arg(target.node.to_string()).arg(&target.address).arg(target.generation.0.to_string());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let program = self.program.display().to_string();
        Box::pin(async move {
            let output = command.output().await.map_err(|error| format!("{program}: {error}"))?;
            let said = [output.stdout, output.stderr].concat();
            let said: String = String::from_utf8_lossy(&said).trim().chars().take(SAID_LEN_MAX).collect();
            if output.status.success() { Ok(said) } else { Err(format!("{}: {said}", output.status)) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
