//! How long repair will take is said from how fast it goes.

use base::env::MonoTime;

/// How fast missing copies come, while there are any.
#[derive(Default)]
pub struct Speed {
    /// When more had been pulled than before, and how much; at first, when something was missing. None while nothing is.
    looked: Option<(MonoTime, u64)>,
    bytes_per_s: u64,
}

impl Speed {
    /// Bytes in a second, lately; 0 when it is not known yet. Time in which there was nothing to pull says nothing about it:
    /// it is measured from the moment that something is known to be missing.
    pub fn look(&mut self, now: MonoTime, pulled: u64, lacks: bool) -> u64 {
        if !lacks {
            *self = Speed::default();
            return 0;
        }
        let (then, before) = *self.looked.get_or_insert((now, pulled));
        if pulled > before {
            self.looked = Some((now, pulled));
            let millis = now.since(then).as_millis().max(1) as u64;
            let latest = (pulled - before).saturating_mul(1000) / millis;
            self.bytes_per_s = if self.bytes_per_s == 0 { latest } else { (self.bytes_per_s + latest) / 2 };
        }
        self.bytes_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After hours without repair, the first seconds of one said that it would take an hour. It took half a minute.
    #[test]
    fn time_without_anything_to_pull_does_not_count() {
        let at = |seconds: u64| MonoTime(seconds * 1_000_000_000);
        let mut speed = Speed::default();
        assert_eq!(speed.look(at(2), 0, false), 0);
        assert_eq!(speed.look(at(7200), 0, true), 0, "nothing was measured yet");
        assert_eq!(speed.look(at(7202), 200 << 20, true), 100 << 20);
        assert_eq!(speed.look(at(7204), 200 << 20, true), 100 << 20, "a look between two pulls");
        assert_eq!(speed.look(at(7206), 400 << 20, true), 75 << 20, "which counts with the next one");
        assert_eq!(speed.look(at(7208), 500 << 20, false), 0);
        // Of the next one nothing is known from the last.
        assert_eq!(speed.look(at(9000), 500 << 20, true), 0);
        assert_eq!(speed.look(at(9001), 510 << 20, true), 10 << 20);
    }
}
