//! Whether the journal's space is worth writing ahead.
//!
//! A flush of a write into space that was written before needs nothing of the file system. Into fresh space, reserved
//! but never written, it brings the file system's own records along: with ext4's journal three blocks and a second
//! flush (measured: 12 KiB, and two to three times the latency; without a journal one block and nearly nothing).
//! Zeroes written ahead avoid that and cost as many bytes again as they make room for. So they pay where batches are
//! small and flushes into fresh space are slower here, by measurement; elsewhere each byte is written once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Batches longer than this on average cost more as zeroes than as records of the file system.
const BATCH_BYTES_MAX: u64 = 12 << 10;
/// At the start of each volume, this part of it takes batches into fresh space, and three times as much that follows
/// takes them into zeroes: so both are measured again from time to time.
const PROBE_SHARE: u64 = 256;
const PROBE_BYTES_MAX: u64 = 256 << 10;
/// Fewer flushes say nothing.
const SAMPLES_MIN: u32 = 16;
/// Zeroes pay when a flush into fresh space takes this many percent of one into written space, or more.
const FRESH_PERCENT_MIN: u64 = 175;

pub struct Ahead {
    probe_bytes: u64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    batch_bytes: u64,
    written: Median,
    fresh: Median,
}

impl Ahead {
    pub fn new(volume_size: u64) -> Ahead {
        Ahead { probe_bytes: (volume_size / PROBE_SHARE).min(PROBE_BYTES_MAX), seen: Mutex::default() }
    }

    /// A batch of `len` bytes was written and flushed.
    pub fn note(&self, len: u64, took: Duration, into_fresh: bool) {
        let mut seen = self.seen();
        seen.batch_bytes = if seen.batch_bytes == 0 { len } else { (seen.batch_bytes * 15 + len) / 16 };
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if into_fresh { seen.fresh.take(nanos) } else { seen.written.take(nanos) }
    }

    /// Up to where zeroes should be written when `head` is the end of a volume's last batch; 0 for nowhere.
    pub fn zeroes_end(&self, head: u64, ahead_bytes: u64) -> u64 {
        let probe_end = 4 * self.probe_bytes;
        if head < self.probe_bytes || !self.pays(head < probe_end) {
            return 0;
        }
        if head < probe_end { probe_end } else { head + ahead_bytes }
    }

    fn pays(&self, is_probe: bool) -> bool {
        let seen = self.seen();
        let slower = match (seen.fresh.value(), seen.written.value()) {
            (Some(fresh), Some(written)) => fresh > written / 100 * FRESH_PERCENT_MIN,
            _ => true,
        };
        seen.batch_bytes <= BATCH_BYTES_MAX && (slower || is_probe)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nothing can panic while the lock is held, so a poisoned lock still guards whole figures.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the median of a stream of durations: a step of an eighth up or down for each. Outliers, of which flushes
/// have many, count as much as any other.
#[derive(Default)]
struct Median {
    nanos: u64,
    samples: u32,
}

impl Median {
    fn take(&mut self, nanos: u64) {
        self.nanos = match self.samples {
            0 => nanos,
            _ if nanos > self.nanos => self.nanos + (self.nanos / 8).max(1).min(nanos - self.nanos),
            _ => self.nanos - (self.nanos / 8).min(self.nanos - nanos),
        };
        self.samples = self.samples.saturating_add(1);
    }

    fn value(&self) -> Option<u64> {
        (self.samples >= SAMPLES_MIN).then_some(self.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: u64 = 64 << 20;

    fn after(batch_len: u64, fresh_us: u64, written_us: u64) -> Ahead {
        let ahead = Ahead::new(FAR);
        for i in 0..100 {
            // One in ten is an outlier.
            let slow = if i % 10 == 0 { 100 } else { 1 };
            ahead.note(batch_len, Duration::from_micros(fresh_us * slow), true);
            ahead.note(batch_len, Duration::from_micros(written_us * slow), false);
        }
        ahead
    }

    #[test]
    fn zeroes_pay_for_small_batches_where_fresh_space_is_slow() {
        assert_eq!(after(8 << 10, 206, 96).zeroes_end(FAR, 10), FAR + 10);
        assert_eq!(after(8 << 10, 105, 100).zeroes_end(FAR, 10), 0, "no slower");
        assert_eq!(after(64 << 10, 206, 96).zeroes_end(FAR, 10), 0, "more bytes than they save");
        assert_eq!(Ahead::new(FAR).zeroes_end(FAR, 10), FAR + 10, "not known yet");
    }

    #[test]
    fn each_volume_measures_both() {
        let (quick, slow) = (after(8 << 10, 100, 100), after(8 << 10, 300, 100));
        for ahead in [&quick, &slow] {
            assert_eq!(ahead.zeroes_end(0, 1), 0);
            assert_eq!(ahead.zeroes_end(PROBE_BYTES_MAX, 1), 4 * PROBE_BYTES_MAX);
        }
        assert_eq!(quick.zeroes_end(4 * PROBE_BYTES_MAX, 1), 0);
        assert_eq!(slow.zeroes_end(4 * PROBE_BYTES_MAX, 1), 4 * PROBE_BYTES_MAX + 1);
    }
}
