//! The one door to the outside world. Product code takes these traits as objects and never calls the real clock,
//! random generator, file system, network or spawner (`clippy.toml` bans them); so a whole cluster of real code runs
//! in one process, on virtual time, under a seed.
//!
//! Futures are `Send`, so that the same code runs on a many-threaded runtime in production. Primitives of
//! `tokio::sync` may be used everywhere; `tokio::{time, net, fs, spawn}` may not. Every `select!` is `biased`.

use bytes::Bytes;
use std::future::Future;
use std::io;
use std::ops::{Add, Sub};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::buffer_pool::BufferPool;
use crate::ids::NodeId;

/// A boxed future that owns what it needs.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// A boxed future of an I/O operation.
pub type IoFuture<T> = BoxFuture<io::Result<T>>;

/// Time, randomness, spawning, the network and the large buffers of one node. Disks are passed beside it, one object
/// each.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub spawner: Arc<dyn Spawn>,
    pub net: Arc<dyn Net>,
    pub buffers: Arc<BufferPool>,
}

impl Env {
    /// Monotonic time now.
    pub fn now(&self) -> MonoTime {
        self.clock.now()
    }

    /// Waits for `duration` of monotonic time.
    pub fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        self.clock.sleep_until(self.clock.now() + duration)
    }

    /// Runs `task` in the background until it ends or the node does. `name` appears in traces.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawner.spawn(name, Box::pin(task));
    }

    /// `future`, or `None` when `duration` passes first.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> Option<F::Output> {
        let sleep = self.sleep(duration);
        tokio::pin!(future);
        tokio::select! {
            biased;
            out = &mut future => Some(out),
            () = sleep => None,
        }
    }
}

/// A point in monotonic time: nanoseconds since some moment before the node started. Never compared between nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// Time since `earlier`; zero when `earlier` is later.
    pub fn since(self, earlier: MonoTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for MonoTime {
    type Output = MonoTime;
    fn add(self, duration: Duration) -> MonoTime {
        MonoTime(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<MonoTime> for MonoTime {
    type Output = Duration;
    fn sub(self, earlier: MonoTime) -> Duration {
        self.since(earlier)
    }
}

/// Wall-clock time: milliseconds since 1970-01-01 UTC. For `LastModified` and lifecycle only; no safety depends on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct WallTime(pub u64);

pub trait Clock: Send + Sync {
    fn now(&self) -> MonoTime;
    fn wall(&self) -> WallTime;
    fn sleep_until(&self, deadline: MonoTime) -> BoxFuture<()>;
}

/// Random bits, unpredictable enough for credentials and tokens in production.
pub trait Random: Send + Sync {
    fn next_u64(&self) -> u64;
}

/// Conveniences over [`Random`].
pub trait RandomExt: Random {
    /// Uniform in `0..bound`; `bound` must not be zero.
    fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no member to draw");
        // Multiply-shift (Lemire 2019); the bias is below 2^-32 for the bounds used here.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    fn fill(&self, out: &mut [u8]) {
        for piece in out.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            piece.copy_from_slice(&bytes[..piece.len()]);
        }
    }

    /// `duration` times a factor uniform in 0.5..1.0: "equal jitter".
    fn jitter(&self, duration: Duration) -> Duration {
        let half_nanos = u64::try_from(duration.as_nanos() / 2).unwrap_or(u64::MAX / 2);
        Duration::from_nanos(half_nanos + self.below(half_nanos.max(1)))
    }
}

impl<R: Random + ?Sized> RandomExt for R {}

pub trait Spawn: Send + Sync {
    fn spawn(&self, name: &'static str, task: BoxFuture<()>);
}

/// One flat directory on one disk. Names have no separators. What `create`, `rename` and `remove` change is durable
/// only after [`Disk::flush_directory`].
pub trait Disk: Send + Sync {
    /// Opens a file for reading and writing.
    fn open(&self, name: &str, mode: OpenMode, caching: Caching) -> io::Result<Arc<dyn File>>;
    /// All files of the directory with their sizes, sorted by name.
    fn list(&self) -> io::Result<Vec<FileEntry>>;
    /// Atomically replaces `to` if it exists.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    fn flush_directory(&self) -> io::Result<()>;
    fn space(&self) -> io::Result<DiskSpace>;
    /// Takes the exclusive lock of the directory; `WouldBlock` when another process or engine holds it. The lock
    /// goes when the guard is dropped, and when the process dies.
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>>;
    /// For messages: where this is (a path in production).
    fn describe(&self) -> String;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// The file must exist.
    Existing,
    /// The file must not exist.
    CreateNew,
}

/// Whether the operating system's page cache is used. `Direct` falls back to buffered where the file system lacks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caching {
    Direct,
    Buffered,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileEntry {
    pub name: String,
    pub size_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskSpace {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

/// Whether a write returns only after all earlier and this write to the file are on stable storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    No,
    Yes,
}

/// A file. Offsets and lengths of writes and of reads are multiples of [`crate::buffer::BLOCK`] for files opened
/// `Direct` (asserted by every implementation, also where the file system would not care); any for `Buffered`.
///
/// Several operations may be in flight; they may complete in any order. A dropped future does not cancel its operation.
pub trait File: Send + Sync {
    fn size_bytes(&self) -> io::Result<u64>;
    /// Reads up to `len` bytes; fewer only at the end of the file.
    fn read_at(&self, offset: u64, len: usize) -> IoFuture<Bytes>;
    /// As `read_at`, blocking the caller: for small metadata blocks that are usually cached.
    fn read_now(&self, offset: u64, len: usize) -> io::Result<Bytes>;
    /// Writes the pieces one after the other from `offset` on. Memory aligned to `BLOCK` is written without a copy.
    fn write_at(&self, offset: u64, pieces: Vec<Bytes>, flush: Flush) -> IoFuture<()>;
    /// Makes all completed writes durable. An error is final: the caller must not retry into success.
    fn flush(&self) -> IoFuture<()>;
    /// Cuts or extends (with zeroes) the file.
    fn set_size(&self, size_bytes: u64) -> io::Result<()>;
    /// Extends the file to at least `size_bytes` and has the space for it set aside, where the file system can do that;
    /// elsewhere nothing happens. What was never written reads as zeroes.
    fn reserve(&self, size_bytes: u64) -> IoFuture<()> {
        let _ = size_bytes;
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Replaces the small file `name` as a whole: after a crash it has the old bytes or the new, never neither.
pub async fn replace_file(disk: &dyn Disk, name: &str, contents: Bytes) -> io::Result<()> {
    let temporary = format!("{name}.new");
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.open(&temporary, OpenMode::CreateNew, Caching::Buffered)?;
    file.write_at(0, vec![contents], Flush::Yes).await?;
    disk.rename(&temporary, name)?;
    disk.flush_directory()
}

/// Reads the small file `name` as a whole; `None` when there is none. Refuses files above `size_max`.
pub async fn read_file(disk: &dyn Disk, name: &str, size_max: u64) -> io::Result<Option<Bytes>> {
    let file = match disk.open(name, OpenMode::Existing, Caching::Buffered) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let size = file.size_bytes()?;
    if size > size_max {
        return Err(io::Error::other(format!("{name} has {size} bytes, more than the {size_max} it may have")));
    }
    file.read_at(0, usize::try_from(size).map_err(io::Error::other)?).await.map(Some)
}

/// Separate connections, so that bulk bytes never delay a heartbeat, nor chunks that are copied again those of users.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum Channel {
    Control,
    Raft,
    Bulk,
    Repair,
}

/// A message between nodes: a small encoded head, and bulk bytes that travel outside of it, uncopied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    pub head: Bytes,
    pub bulk: Vec<Bytes>,
}

/// Why a call has no answer. In every case but `NotSent` the outcome at the other side is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetError {
    /// The request never left: unknown or unreachable peer, or its queue is full.
    NotSent,
    /// The connection broke after the request may have arrived.
    Broken,
    /// The deadline passed.
    DeadlineExceeded,
}

impl std::fmt::Display for NetError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NetError::NotSent => "the peer could not be reached",
            NetError::Broken => "the connection broke before the answer came",
            NetError::DeadlineExceeded => "the peer did not answer in time",
        })
    }
}

impl std::error::Error for NetError {}

/// Whole messages between nodes. Delivery is at most once, in no promised order.
pub trait Net: Send + Sync {
    /// Sends a request and waits for its answer, at most until `deadline`.
    fn call(
        &self,
        to: NodeId,
        channel: Channel,
        request: Frame,
        deadline: MonoTime,
    ) -> BoxFuture<Result<Frame, NetError>>;
    /// Sends without waiting; may be lost.
    fn send(&self, to: NodeId, channel: Channel, message: Frame);
    /// Whom incoming requests and messages, also those to oneself, are given to. Set once, at start.
    fn serve(&self, handler: Arc<dyn Handler>);
    /// Where the other nodes are: HOST:PORT each. Replaces what was learnt before about these nodes; a connection to an
    /// address that changed is made anew. A network that knows where everybody is has nothing to learn.
    fn learn_peers(&self, peers: &[(NodeId, String)]) {
        let _ = peers;
    }
}

/// The receiving side of [`Net`].
pub trait Handler: Send + Sync {
    /// Answers a request. For a one-way message the answer is dropped.
    fn handle(&self, from: NodeId, channel: Channel, request: Frame) -> BoxFuture<Frame>;
    /// The process of a node has ended: its connections broke, and its machine says that nobody listens there. A hint that
    /// saves waiting for its silence: it may never come, and by now another process may run there.
    fn ended(&self, node: NodeId) {
        let _ = node;
    }
}
