//! What the tasks of one engine share.

use base::Env;
use base::env::{Disk, OpenMode};
use base::ids::ChunkId;
use base::plant::{self, Plant};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

use crate::bulk::Bulk;
use crate::cache::{BlockCache, Missed};
use crate::errors::{StoreError, is_no_space};
use crate::format::Seed;
use crate::format::batch::Apart;
use crate::format::volume::{VolumeKind, VolumeName};
use crate::identity::{DiskIdentity, FoundIdentity};
use crate::index::VolumeNumber;
use crate::queue::Queue;
use crate::recovery::{incarnation_of, number_of};
use crate::report::EngineStats;
use crate::space::Space;
use crate::state::{State, Volume};
use crate::summary::Summaries;
use crate::volume_file::VolumeFile;

/// Decides whether a tombstone may go once no volume of this disk holds its chunk: its placement group was healthy
/// with all members after the deletion.
pub type TombstoneRule = Arc<dyn Fn(ChunkId) -> bool + Send + Sync>;

#[derive(Clone)]
pub struct EngineOptions {
    /// What the disk may hold at most, in bytes; by default what the file system has.
    pub size_bytes_max: Option<u64>,
    /// Size of new volumes; by default clamp(disk / 64, 64 MiB, 1 GiB).
    pub volume_size_bytes: Option<u64>,
    /// Space set aside ahead of the journal's head, in bytes.
    pub ahead_bytes: u64,
    /// Chunks of whole blocks are laid apart from their headers, so that a read of one needs no block more, when there are so
    /// many blocks of them for each one that a batch grows by.
    pub apart_worth: usize,
    /// Most bytes a second that compaction rewrites while there is room.
    pub compaction_bytes_per_s: u64,
    /// Most bytes a second that the background scrub reads; 0 turns it off.
    pub scrub_bytes_per_s: u64,
    /// From the start of a scrub pass to the start of the next, in seconds.
    pub scrub_interval_s: u64,
    /// Memory for the contents of small chunks that were stored or read last; 0: none.
    pub cache_bytes: usize,
    /// Memory for the contents of larger chunks, up to 1 MiB, that are read again and again; 0: none.
    pub large_cache_bytes: usize,
    pub may_drop_tombstone: TombstoneRule,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            size_bytes_max: None,
            volume_size_bytes: None,
            ahead_bytes: 8 << 20,
            apart_worth: 8,
            compaction_bytes_per_s: 64 << 20,
            scrub_bytes_per_s: 16 << 20,
            scrub_interval_s: 24 * 3600,
            cache_bytes: 0,
            large_cache_bytes: 0,
            may_drop_tombstone: Arc::new(|_| true),
        }
    }
}

/// Larger chunks whose misses are remembered, at least; and for how many bytes of their cache there is one: sixteen times as
/// many as it holds of the longest, a quarter of what it holds of the shortest.
const MISSED_MIN: usize = 512;
const MISSED_EACH_BYTES: usize = 64 << 10;

/// An emptied volume's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spare {
    pub name: VolumeName,
    pub size_bytes: u64,
}

/// The mutable state. The committer changes what records change; the lock is never held across an await.
pub struct Shared {
    pub state: State,
    pub files: BTreeMap<VolumeNumber, Arc<VolumeFile>>,
    /// Files waiting for their next incarnation.
    pub spare: Vec<Spare>,
    /// The journal volume being written.
    pub journal: VolumeNumber,
}

pub struct Inner {
    pub env: Env,
    pub disk: Arc<dyn Disk>,
    pub identity: DiskIdentity,
    /// Whether payloads may stand apart from their headers on this disk.
    pub apart: Apart,
    pub options: EngineOptions,
    /// Held while a volume is made, and while the list of volumes is composed: an incarnation that was given out is
    /// among the live volumes before anybody lists them.
    pub making_volumes: Mutex<()>,
    /// Of volumes made from now on, in bytes.
    pub volume_size: u64,
    pub shared: Mutex<Shared>,
    pub queue: Queue,
    pub bulk: Bulk,
    pub space: Space,
    pub summaries: Summaries,
    pub counters: Counters,
    pub cache: BlockCache,
    pub large_cache: BlockCache,
    /// Of chunks that the cache of larger ones lacked.
    pub missed: Missed,
    pub ahead_wake: Notify,
    pub compaction_wake: Notify,
    pub empties_wake: Notify,
    pub scrub_lock: tokio::sync::Mutex<()>,
    broken: OnceLock<String>,
    pub shutdown: Shutdown,
    /// Each task holds the other end; all gone means all ended.
    pub alive: Mutex<Option<mpsc::Receiver<()>>>,
    pub lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

impl Inner {
    pub fn new(
        env: Env,
        disk: Arc<dyn Disk>,
        found: FoundIdentity,
        options: EngineOptions,
        volume_size: u64,
        shared: Shared,
        lock: Box<dyn Send + Sync>,
    ) -> Inner {
        let missed = MISSED_MIN.max(options.large_cache_bytes / MISSED_EACH_BYTES);
        let (cache, large_cache) =
            (BlockCache::new(options.cache_bytes), BlockCache::for_large(options.large_cache_bytes));
        Inner {
            env,
            disk,
            identity: found.identity,
            apart: found.knows_apart().then_some(options.apart_worth),
            options,
            making_volumes: Mutex::new(()),
            volume_size,
            shared: Mutex::new(shared),
            queue: Queue::new(),
            bulk: Bulk::new(),
            space: Space::default(),
            summaries: Summaries::default(),
            counters: Counters::default(),
            cache,
            large_cache,
            missed: Missed::new(missed),
            ahead_wake: Notify::new(),
            compaction_wake: Notify::new(),
            empties_wake: Notify::new(),
            scrub_lock: tokio::sync::Mutex::new(()),
            broken: OnceLock::new(),
            shutdown: Shutdown::default(),
            alive: Mutex::new(None),
            lock: Mutex::new(Some(lock)),
        }
    }

    pub fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no one panics while holding the state")
    }

    pub fn file(&self, number: VolumeNumber) -> Option<Arc<VolumeFile>> {
        self.shared().files.get(&number).cloned()
    }

    /// Stops all writing for good. The first reason stays.
    pub fn poison(&self, reason: String) -> StoreError {
        let kept = self.broken.get_or_init(|| {
            tracing::error!(disk = %self.disk.describe(), %reason, "writing to this disk has stopped");
            reason
        });
        StoreError::Broken(kept.clone())
    }

    pub fn broken(&self) -> Option<StoreError> {
        self.broken.get().map(|reason| StoreError::Broken(reason.clone()))
    }

    /// What a failed write means: no room is told to the caller and nothing more; anything else stops the disk.
    pub fn write_failed(&self, what: &str, error: &std::io::Error) -> StoreError {
        if is_no_space(error) {
            self.space.note_no_space();
            return StoreError::Full;
        }
        self.poison(format!("{what}: {error}"))
    }

    /// Something died, or some time passed: there may be space to give back.
    pub fn wake_compaction(&self) {
        self.compaction_wake.notify_one();
        self.empties_wake.notify_one();
    }

    pub fn is_shutting_down(&self) -> bool {
        self.shutdown.is_begun()
    }

    /// Sleeps, or returns early (false) when the engine is closed.
    pub async fn pause(&self, duration: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.shutdown.wait() => false,
            () = self.env.sleep(duration) => true,
        }
    }

    /// A new volume: a recycled file under a new incarnation, or a new file. Its name is durable when this returns.
    pub fn create_volume(&self, kind: VolumeKind) -> Result<(VolumeNumber, Arc<VolumeFile>), StoreError> {
        let _making = self.making_volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let (incarnation, spare) = {
            let mut shared = self.shared();
            let incarnation = shared.state.next_incarnation.max(1);
            shared.state.next_incarnation = incarnation + 1;
            let spare = shared.spare.pop();
            let kept = spare.filter(|_| plant::is(Plant::ReuseIncarnation)).map(|spare| incarnation_of(&spare.name));
            (kept.unwrap_or(incarnation), spare)
        };
        let number = number_of(incarnation)?;
        let name = VolumeName::Live(kind, incarnation);
        let seed = Seed { disk: self.identity.disk, incarnation };
        let opened = match spare {
            Some(spare) => self
                .disk
                .rename(&spare.name.to_string(), &name.to_string())
                .and_then(|()| VolumeFile::open(self.disk.as_ref(), name, seed, OpenMode::Existing)),
            None => VolumeFile::open(self.disk.as_ref(), name, seed, OpenMode::CreateNew),
        };
        let file = Arc::new(opened.map_err(|error| self.write_failed("making a volume", &error))?);
        if !plant::is(Plant::SkipDirectoryFlush) {
            self.disk.flush_directory().map_err(|error| self.write_failed("flushing the disk directory", &error))?;
        }
        let mut shared = self.shared();
        shared.files.insert(number, file.clone());
        shared.state.volumes.insert(number, Volume::new(kind));
        Ok((number, file))
    }
}

/// Tells all tasks that the engine closes. (A `tokio::sync::watch` wakes its waiters in random order, which no seed
/// would replay.)
#[derive(Default)]
pub struct Shutdown {
    begun: AtomicBool,
    notify: Notify,
}

impl Shutdown {
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    pub fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    pub async fn wait(&self) {
        let notified = self.notify.notified();
        tokio::pin!(notified);
        // Registered before the look, so that a shutdown in between is not missed.
        notified.as_mut().enable();
        if !self.is_begun() {
            notified.await;
        }
    }
}

/// Holds background work to a rate, and to half of it while users wait.
pub struct Pacer {
    pub inner: Arc<Inner>,
    /// 0: no limit.
    pub bytes_per_s: u64,
}

impl Pacer {
    /// Waits as long as `bytes` should have taken.
    pub async fn took(&self, bytes: u64) {
        if self.bytes_per_s == 0 {
            return;
        }
        let busy = 1 + u64::from(self.inner.queue.is_busy());
        let nanos = u128::from(bytes) * 1_000_000_000 * u128::from(busy) / u128::from(self.bytes_per_s);
        self.inner.pause(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))).await;
    }
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// Event counts since the engine was opened.
        #[derive(Default)]
        pub struct Counters { $(pub $name: AtomicU64),* }

        impl Counters {
            pub fn fill(&self, stats: &mut EngineStats) {
                $(stats.$name = self.$name.load(Ordering::Relaxed);)*
            }
        }
    };
}

counters!(
    batches,
    closing_batches,
    flushes,
    records,
    journal_bytes,
    bulk_bytes,
    copied_bytes,
    read_bytes,
    puts,
    gets,
    deletes,
    conflicts,
    compacted_volumes,
    compacted_bytes,
    scrub_passes,
    scrubbed_bytes,
);

/// Adds to an event count.
pub fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
