//! The signals that ask a process to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Context, Failure};

/// Ctrl-C and SIGTERM.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub fn new() -> Result<Signals, Failure> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).context(|| "SIGINT cannot be handled".into())?,
            terminate: signal(SignalKind::terminate()).context(|| "SIGTERM cannot be handled".into())?,
        })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
