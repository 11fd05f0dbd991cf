//! When a second copy is asked although the first has not failed (Dean & Barroso, "The tail at scale", CACM 2013): after a
//! delay that follows what reads take here, and only for a small share of all reads, so that a cluster that is slow as a
//! whole is not asked twice for everything.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The delay stays within these, whatever was measured.
const DELAY_MIN: Duration = Duration::from_millis(5);
const DELAY_MAX: Duration = Duration::from_millis(500);
/// Before anything was measured.
const DELAY_FIRST: Duration = Duration::from_millis(100);
/// The delay is this many times what nineteen of twenty reads take.
const DELAY_FACTOR: u32 = 2;
/// A hedge costs what this many reads have earned: one in 32 is hedged at most, but for what was saved up.
const COST: u32 = 32;
const SAVED_MAX: u32 = 16 * COST;
/// Reads up to this many bytes are one class, longer ones another.
const SMALL_BYTES_MAX: u32 = 64 << 10;

#[derive(Default)]
pub(crate) struct Hedge {
    /// For each class, what nineteen of twenty reads take, in nanoseconds; 0: not measured yet.
    taken_nanos: [AtomicU64; 2],
    saved: AtomicU32,
    /// Second copies that were asked.
    pub asked: AtomicU64,
}

impl Hedge {
    /// How long a read of so many bytes may take before a second copy is asked.
    pub fn delay(&self, bytes: u32) -> Duration {
        match self.taken_nanos[class_of(bytes)].load(Ordering::Relaxed) {
            0 => DELAY_FIRST,
            nanos => (Duration::from_nanos(nanos) * DELAY_FACTOR).clamp(DELAY_MIN, DELAY_MAX),
        }
    }

    /// A first copy answered after this time, or had not yet when another did.
    pub fn note(&self, bytes: u32, took: Duration) {
        let earn = |saved: u32| (saved < SAVED_MAX).then_some(saved + 1);
        let _ = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earn);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let follow = |taken: u64| {
            Some(match taken {
                0 => nanos,
                // Nineteen small steps down weigh as much as one up.
                _ if nanos > taken => (taken + taken / 8 + 1).min(nanos),
                _ => (taken - taken / 152).max(nanos),
            })
        };
        let _ = self.taken_nanos[class_of(bytes)].fetch_update(Ordering::Relaxed, Ordering::Relaxed, follow);
    }

    /// Whether one more read may be hedged.
    pub fn spend(&self) -> bool {
        let spend = |saved: u32| saved.checked_sub(COST);
        let may = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok();
        self.asked.fetch_add(u64::from(may), Ordering::Relaxed);
        may
    }
}

fn class_of(bytes: u32) -> usize {
    usize::from(bytes > SMALL_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_delay_follows_what_most_reads_take() {
        let hedge = Hedge::default();
        assert_eq!(hedge.delay(1), DELAY_FIRST);
        for i in 0..4000u32 {
            // One in fifty takes a second.
            hedge.note(4096, if i % 50 == 0 { 1000 * MS } else { 10 * MS });
        }
        assert!(hedge.delay(4096) >= 20 * MS && hedge.delay(4096) < 40 * MS, "{:?}", hedge.delay(4096));
        assert_eq!(hedge.delay(1 << 20), DELAY_FIRST, "another class");
        (0..4000).for_each(|_| hedge.note(4096, 400 * MS));
        assert_eq!(hedge.delay(4096), DELAY_MAX);
    }

    #[test]
    fn only_a_small_share_is_hedged() {
        let hedge = Hedge::default();
        assert!(!hedge.spend(), "nothing is saved yet");
        let hedged = (0..32_000).filter(|_| {
            hedge.note(1, MS);
            hedge.spend()
        });
        assert_eq!(hedged.count(), 1000);
        (0..100_000).for_each(|_| hedge.note(1, MS));
        assert_eq!((0..1000).filter(|_| hedge.spend()).count(), 16);
    }
}
