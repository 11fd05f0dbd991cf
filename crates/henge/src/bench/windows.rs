//! What a run served over time: operations in each stretch of ten seconds, for stalls that a percentile hides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const WINDOW: Duration = Duration::from_secs(10);
/// A day; what comes later counts for the last window, which is not looked at.
const WINDOWS_MAX: usize = 24 * 360;

pub struct Windows {
    began: Instant,
    served: Vec<AtomicU64>,
}

/// Operations per second in windows that are over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub windows: usize,
    pub least: f64,
    pub median: f64,
}

impl Windows {
    /// For a run that begins now and takes `length`.
    pub fn new(length: Duration) -> Windows {
        let windows = (length.as_secs() / WINDOW.as_secs()) as usize + 2;
        let served = (0..windows.min(WINDOWS_MAX)).map(|_| AtomicU64::new(0)).collect();
        Windows { began: Instant::now(), served }
    }

    pub fn count(&self) {
        let window = (self.began.elapsed().as_secs() / WINDOW.as_secs()) as usize;
        self.served[window.min(self.served.len() - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// Of the windows that were over after `took`; nothing when there was none.
    pub fn spread(&self, took: Duration) -> Option<Spread> {
        let over = (took.as_secs() / WINDOW.as_secs()) as usize;
        let over = over.min(self.served.len() - 1);
        let mut rates: Vec<f64> = self.served[..over].iter().map(rate).collect();
        rates.sort_by(f64::total_cmp);
        Some(Spread { windows: over, least: *rates.first()?, median: rates[over / 2] })
    }

    /// Tells on standard error how it goes, as long as it is polled.
    pub async fn tell(&self, end: Instant) {
        for (number, served) in self.served.iter().enumerate() {
            let over = self.began + WINDOW * (number as u32 + 1);
            if over >= end {
                break;
            }
            tokio::time::sleep_until(over.into()).await;
            eprintln!("{:>6} s: {:.0} ops/s", over.duration_since(self.began).as_secs(), rate(served));
        }
        std::future::pending::<()>().await;
    }
}

fn rate(served: &AtomicU64) -> f64 {
    served.load(Ordering::Relaxed) as f64 / WINDOW.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_windows_that_are_over_count() {
        let windows = Windows::new(Duration::from_secs(60));
        for (number, served) in [500, 10, 300, 400, 7].into_iter().enumerate() {
            windows.served[number].store(served, Ordering::Relaxed);
        }
        assert_eq!(windows.spread(Duration::from_secs(9)), None);
        let four = Spread { windows: 4, least: 1.0, median: 40.0 };
        assert_eq!(windows.spread(Duration::from_secs(49)), Some(four));
        windows.count();
        assert_eq!(windows.served[0].load(Ordering::Relaxed), 501);
    }

    #[test]
    fn a_run_of_a_week_has_a_bounded_number() {
        let windows = Windows::new(Duration::from_secs(7 * 24 * 3600));
        assert_eq!(windows.served.len(), WINDOWS_MAX);
        assert_eq!(
            windows.spread(Duration::from_secs(7 * 24 * 3600)).map(|spread| spread.windows),
            Some(WINDOWS_MAX - 1)
        );
    }
}
