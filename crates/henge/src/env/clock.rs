//! Time from the operating system: monotonic time for every decision, wall-clock time for people.

use base::env::{BoxFuture, Clock, MonoTime, WallTime};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time counts from the moment this was made.
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    pub fn new() -> SystemClock {
        SystemClock { origin: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> MonoTime {
        MonoTime(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn wall(&self) -> WallTime {
        // A clock set before 1970 shows as 1970: no safety property reads it.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn sleep_until(&self, deadline: MonoTime) -> BoxFuture<()> {
        match self.origin.checked_add(Duration::from_nanos(deadline.0)) {
            Some(instant) => Box::pin(tokio::time::sleep_until(instant.into())),
            // Further away than the clock can tell: never.
            None => Box::pin(std::future::pending()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sleeps_at_least_as_long_as_asked() {
        let clock = SystemClock::new();
        let deadline = clock.now() + Duration::from_millis(5);
        clock.sleep_until(deadline).await;
        assert!(clock.now() >= deadline);
        assert!(clock.wall().0 > 1_600_000_000_000, "this century, in milliseconds");
    }
}
