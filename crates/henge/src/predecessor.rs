//! A process that was just killed may hold its ports and locks for a moment more. Its successor waits a little before
//! it says that they are taken.

use base::env::Disk;
use std::io;
use std::time::Duration;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until the directory can be locked. Whether it can, whoever locks it next finds out.
pub async fn wait_for_lock(disk: &dyn Disk) {
    // The guard of a successful try is dropped at once.
    let _ = retry(io::ErrorKind::WouldBlock, || disk.lock().map(drop)).await;
}

/// Tries again while the outcome is `busy`, within bounds.
pub async fn retry<T>(busy: io::ErrorKind, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(error) if error.kind() == busy && Instant::now() < deadline => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            outcome => return outcome,
        }
    }
}
