//! How slow the other end of a connection may be: a peer that keeps us waiting for a whole window and moves next to
//! nothing meanwhile is given up. Only time spent waiting for it counts, so that our own slowness is never held against
//! anybody.

use std::time::Duration;

/// Waiting time after which the balance is drawn.
pub const WINDOW: Duration = Duration::from_secs(30);
/// Bytes that must have moved for each window of waiting: about 1 KiB a second.
pub const BYTES_MIN: u64 = 32 << 10;

/// The balance of one direction of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// How much longer may be waited until the balance is drawn.
    pub fn patience(&self) -> Duration {
        WINDOW.saturating_sub(self.waited)
    }

    /// So long was waited before something moved.
    pub fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    pub fn moved(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// The patience is over. Answers whether the peer was fast enough; then the next window begins.
    pub fn settle(&mut self) -> bool {
        let fast_enough = self.bytes >= BYTES_MIN;
        *self = Pace::default();
        fast_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits for each piece of `bytes` for `wait`; answers how many arrive before the peer is given up.
    fn pieces_taken(bytes: usize, wait: Duration, pieces: usize) -> usize {
        let mut pace = Pace::default();
        for taken in 0..pieces {
            let mut wait = wait;
            while wait >= pace.patience() {
                wait -= pace.patience();
                if !pace.settle() {
                    return taken;
                }
            }
            pace.waited(wait);
            pace.moved(bytes);
        }
        pieces
    }

    #[test]
    fn who_drips_is_given_up_and_who_is_slow_is_not() {
        let seconds = Duration::from_secs;
        assert_eq!(pieces_taken(1, seconds(1), 1000), 29, "a byte a second");
        assert_eq!(pieces_taken(4096, seconds(1), 10_000), 10_000, "4 KiB a second");
        assert_eq!(pieces_taken(1, Duration::from_millis(1), 20_000), 20_000, "small pieces, and fast");
        assert_eq!(pieces_taken(1 << 20, seconds(29), 100), 100, "large pieces, far apart");
        assert_eq!(pieces_taken(1 << 20, seconds(70), 100), 0, "silence");
    }
}
