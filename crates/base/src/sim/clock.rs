//! A node's clocks: a monotonic one that may drift a little, and a wall clock that may be anywhere.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use super::executor::{Core, Event, EventKey, Incarnation, lock};
use super::prng::PPM;
use crate::env::{BoxFuture, Clock, MonoTime, WallTime};

/// The largest drift of a monotonic clock, in millionths: hardware stays well below.
pub const DRIFT_PPM_MAX: i64 = 10_000;

/// When a simulation starts by its wall clocks: 2026-01-01 UTC in milliseconds since 1970.
pub const WALL_START_MILLIS: u64 = 1_767_225_600_000;

const NANOS_PER_MILLI: u64 = 1_000_000;

/// From simulated time to the node's own. Each start of a node gives its monotonic clock a new beginning.
#[derive(Default)]
pub(super) struct NodeClock(Mutex<Setting>);

#[derive(Default, Clone, Copy)]
struct Setting {
    /// At simulated time `since_nanos`, the monotonic clock showed `base_nanos`.
    since_nanos: u64,
    base_nanos: u64,
    drift_ppm: i64,
    wall_offset_millis: i64,
}

impl NodeClock {
    pub(super) fn start(&self, now_nanos: u64, base_nanos: u64) {
        let mut setting = lock(&self.0);
        setting.since_nanos = now_nanos;
        setting.base_nanos = base_nanos;
    }

    pub(super) fn set_drift(&self, now_nanos: u64, drift_ppm: i64) {
        assert!(drift_ppm.abs() <= DRIFT_PPM_MAX, "a drift of {drift_ppm} millionths is beyond any clock");
        let mut setting = lock(&self.0);
        setting.base_nanos = setting.mono_nanos(now_nanos);
        setting.since_nanos = now_nanos;
        setting.drift_ppm = drift_ppm;
    }

    pub(super) fn jump_wall(&self, by_millis: i64) {
        lock(&self.0).wall_offset_millis += by_millis;
    }

    pub(super) fn mono_nanos(&self, now_nanos: u64) -> u64 {
        lock(&self.0).mono_nanos(now_nanos)
    }

    /// The earliest simulated time at which the monotonic clock shows `deadline` or more, were its drift to stay.
    pub(super) fn sim_nanos(&self, deadline: MonoTime) -> u64 {
        let setting = lock(&self.0);
        let ahead = u128::from(deadline.0.saturating_sub(setting.base_nanos));
        let rate = u128::from(PPM.saturating_add_signed(setting.drift_ppm));
        let elapsed = (ahead * u128::from(PPM)).div_ceil(rate);
        setting.since_nanos.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

impl Setting {
    fn mono_nanos(&self, now_nanos: u64) -> u64 {
        let elapsed = now_nanos.saturating_sub(self.since_nanos);
        if self.drift_ppm == 0 {
            return self.base_nanos.saturating_add(elapsed);
        }
        let rate = u128::from(PPM.saturating_add_signed(self.drift_ppm));
        self.base_nanos + u64::try_from(u128::from(elapsed) * rate / u128::from(PPM)).unwrap_or(u64::MAX / 2)
    }
}

/// [`Clock`] of one incarnation. After the crash its sleeps never end.
pub(super) struct SimClock {
    pub(super) core: Arc<Core>,
    pub(super) clock: Arc<NodeClock>,
    pub(super) incarnation: Arc<Incarnation>,
}

impl Clock for SimClock {
    fn now(&self) -> MonoTime {
        MonoTime(self.clock.mono_nanos(self.core.now_nanos()))
    }

    fn wall(&self) -> WallTime {
        let start = WALL_START_MILLIS + self.core.now_nanos() / NANOS_PER_MILLI;
        WallTime(start.saturating_add_signed(lock(&self.clock.0).wall_offset_millis))
    }

    fn sleep_until(&self, deadline: MonoTime) -> BoxFuture<()> {
        let of_node = Some((self.clock.clone(), self.incarnation.clone()));
        Box::pin(Sleep { core: self.core.clone(), of_node, deadline, timer: None })
    }
}

/// A sleep of a node by its own clock, or (`of_node` is `None`) of the simulation by simulated time.
pub(super) struct Sleep {
    pub(super) core: Arc<Core>,
    pub(super) of_node: Option<(Arc<NodeClock>, Arc<Incarnation>)>,
    pub(super) deadline: MonoTime,
    pub(super) timer: Option<EventKey>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let wake_nanos = match &self.of_node {
            Some((_, incarnation)) if !incarnation.is_alive() => return Poll::Pending,
            Some((clock, _)) => clock.sim_nanos(self.deadline),
            None => self.deadline.0,
        };
        if wake_nanos <= self.core.now_nanos() {
            return Poll::Ready(());
        }
        match self.timer {
            Some(key) if key.0 == wake_nanos => self.core.rearm(key, context.waker()),
            old => {
                if let Some(key) = old {
                    self.core.cancel(key);
                }
                self.timer = Some(self.core.schedule(wake_nanos, Event::Timer(context.waker().clone())));
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.timer {
            self.core.cancel(key);
        }
    }
}
