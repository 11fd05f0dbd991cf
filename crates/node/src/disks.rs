//! The disks of this node: each an engine of its own, the failure of one leaves the others serving.

use base::Env;
use base::env::MonoTime;
use base::ids::DiskId;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use protocol::slowness::{self, Tail};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use store::{DiskState, DiskUsage, Engine};

/// One disk as configured and opened.
pub struct NodeDisk {
    /// A path in production.
    pub label: String,
    pub id: DiskId,
    /// The engine, or why there is none.
    pub engine: Result<Engine, String>,
    pub meter: DiskMeter,
}

/// How a disk answers, as its node sees it.
pub struct DiskMeter {
    in_flight: AtomicU64,
    /// When the disk was last idle, and when it last finished something, in monotonic nanoseconds.
    busy_since: AtomicU64,
    progressed: AtomicU64,
    /// From a request to its answer: stores of chunks (durable), and reads.
    pub store_seconds: Histogram,
    pub read_seconds: Histogram,
    /// Stores and reads that the disk failed.
    pub errors: Counter,
    /// Latencies of stores, as they are compared with other nodes' disks.
    tail: Mutex<Tail>,
    /// When an operation for a user began last, as a [`MonoTime`], so that background work can see it; 0: never.
    served: AtomicU64,
    /// Scrub passes when last looked, and when the last of them had ended.
    scrubbed: Mutex<(u64, Option<u64>)>,
}

/// Which latency an operation counts for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Store,
    Read,
}

/// Who an answer came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnsweredBy {
    Disk,
    FailedDisk,
    Memory,
}

/// An operation under way; counted when it ends, however it ends.
pub struct UnderWay<'a> {
    meter: &'a DiskMeter,
    env: &'a Env,
    since: MonoTime,
}

/// All disks, the one that holds metadata first.
pub struct Disks {
    pub all: Vec<NodeDisk>,
    by_id: BTreeMap<DiskId, usize>,
}

impl Disks {
    pub fn new(all: Vec<NodeDisk>) -> Disks {
        let by_id = all.iter().enumerate().map(|(i, disk)| (disk.id, i)).collect();
        Disks { all, by_id }
    }

    /// The disk with this id, or a sentence.
    pub fn disk(&self, id: DiskId) -> Result<&NodeDisk, String> {
        let index = self.by_id.get(&id).ok_or_else(|| format!("this node has no disk {id}"))?;
        Ok(&self.all[*index])
    }

    /// The engine of a disk, or a sentence.
    pub fn engine(&self, id: DiskId) -> Result<&Engine, String> {
        let disk = self.disk(id)?;
        disk.engine.as_ref().map_err(|why| format!("disk {} is out of service: {why}", disk.label))
    }

    pub fn metadata(&self) -> &Engine {
        self.all[0].engine.as_ref().expect("a node does not start without its metadata disk")
    }

    pub fn engines(&self) -> impl Iterator<Item = &Engine> {
        self.all.iter().filter_map(|disk| disk.engine.as_ref().ok())
    }

    /// Filled so far that waiting with the deletion of garbage would hurt.
    pub fn short_of_space(&self) -> bool {
        self.engines().any(|engine| {
            let usage = engine.usage();
            usage.used_bytes > usage.capacity_bytes / 10 * 7
        })
    }
}

impl NodeDisk {
    pub fn new(label: String, id: DiskId, engine: Result<Engine, String>) -> NodeDisk {
        NodeDisk { label, id, engine, meter: DiskMeter::default() }
    }

    /// As `status` shows it.
    pub fn state(&self) -> (&'static str, String) {
        match &self.engine {
            Err(why) => ("failed", why.clone()),
            Ok(engine) => match engine.state() {
                DiskState::Healthy => ("up", String::new()),
                DiskState::Full => ("full", "takes no new data until something is deleted".into()),
                DiskState::Broken(why) => ("failed", why),
                DiskState::Closed => ("closed", String::new()),
            },
        }
    }

    pub fn usage(&self) -> DiskUsage {
        self.engine.as_ref().map(Engine::usage).unwrap_or_default()
    }
}

impl Default for DiskMeter {
    fn default() -> DiskMeter {
        // From 100 microseconds to 3.3 s.
        let seconds = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        DiskMeter {
            in_flight: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            progressed: AtomicU64::new(0),
            store_seconds: seconds(),
            read_seconds: seconds(),
            errors: Counter::default(),
            tail: Mutex::default(),
            served: AtomicU64::new(0),
            scrubbed: Mutex::default(),
        }
    }
}

impl DiskMeter {
    pub fn begin<'a>(&'a self, env: &'a Env) -> UnderWay<'a> {
        let since = env.now();
        if self.in_flight.fetch_add(1, Ordering::AcqRel) == 0 {
            self.busy_since.store(since.0, Ordering::Release);
        }
        UnderWay { meter: self, env, since }
    }

    /// An operation for a user begins.
    pub fn serve(&self, now: MonoTime) {
        self.served.store(now.0, Ordering::Relaxed);
    }

    pub fn served(&self) -> Option<MonoTime> {
        Some(self.served.load(Ordering::Relaxed)).filter(|at| *at > 0).map(MonoTime)
    }

    /// When the disk was last verified as a whole, in wall-clock milliseconds; at first, when that was first asked for.
    pub fn last_scrub_ms(&self, passes: u64, env: &Env) -> u64 {
        let now_ms = env.clock.wall().0;
        let mut scrubbed = self.scrubbed.lock().unwrap_or_else(PoisonError::into_inner);
        if passes > scrubbed.0 {
            *scrubbed = (passes, Some(now_ms));
        }
        *scrubbed.1.get_or_insert(now_ms)
    }

    /// The latency that is met in every second of work; what is under way counts as far as it has come.
    pub fn tail(&self, now: MonoTime) -> Option<Duration> {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let stalled = self.stalled_for(now);
        if stalled > slowness::SLOW_MIN {
            tail.note(stalled, now);
        }
        tail.get(now)
    }

    /// For how long operations have been under way and none has ended.
    pub fn stalled_for(&self, now: MonoTime) -> Duration {
        if self.in_flight.load(Ordering::Acquire) == 0 {
            return Duration::ZERO;
        }
        let last = self.busy_since.load(Ordering::Acquire).max(self.progressed.load(Ordering::Acquire));
        now.since(MonoTime(last))
    }
}

impl UnderWay<'_> {
    /// There is an answer: from the disk, or from memory alone, which says nothing about the disk.
    pub fn answered(self, operation: Operation, by: AnsweredBy) {
        let now = self.env.now();
        let seconds = now.since(self.since).as_secs_f64();
        if by != AnsweredBy::Memory {
            self.meter.progressed.store(now.0, Ordering::Release);
        }
        match operation {
            Operation::Store => {
                self.meter.store_seconds.observe(seconds);
                // An answer from memory says nothing of the disk, unless it had to wait for it.
                let took = now.since(self.since);
                if by != AnsweredBy::Memory || took > slowness::SLOW_MIN {
                    self.meter.tail.lock().unwrap_or_else(PoisonError::into_inner).note(took, now);
                }
            }
            Operation::Read => self.meter.read_seconds.observe(seconds),
        }
        if by == AnsweredBy::FailedDisk {
            self.meter.errors.inc();
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.meter.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::NodeId;
    use base::sim::Sim;

    /// What lies in memory is served however long the disk hangs.
    #[test]
    fn answers_from_memory_do_not_hide_a_disk_that_hangs() {
        let sim = Sim::new(1);
        let env = sim.node(NodeId(1)).env();
        let meter = DiskMeter::default();
        let hanging = meter.begin(&env);
        for _ in 0..5 {
            sim.run_for(Duration::from_secs(1));
            meter.begin(&env).answered(Operation::Read, AnsweredBy::Memory);
            drop(meter.begin(&env));
        }
        assert_eq!(meter.stalled_for(env.now()), Duration::from_secs(5));
        meter.begin(&env).answered(Operation::Read, AnsweredBy::Disk);
        assert_eq!(meter.stalled_for(env.now()), Duration::ZERO);
        sim.run_for(Duration::from_secs(1));
        hanging.answered(Operation::Store, AnsweredBy::FailedDisk);
        assert_eq!((meter.stalled_for(env.now()), meter.errors.get()), (Duration::ZERO, 1));
    }
}
