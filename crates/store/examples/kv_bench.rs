//! Measures the ordered key-value store on a real directory: `cargo run --release -p store --example kv_bench -- DIR`.
//!
//! Rows look like those of object metadata: keys of about 50 bytes with long shared prefixes, values of 200 bytes.
//! Times depend on the machine; ratios say more than figures.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)]

use base::env::{
    BoxFuture, Caching, Channel, Clock, Disk, DiskSpace, Env, File, FileEntry, Flush, Frame, Handler, IoFuture,
    MonoTime, Net, NetError, OpenMode, Random, Spawn, WallTime,
};
use base::ids::NodeId;
use bytes::Bytes;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};
use store::kv::{Change, Kv, KvOptions, KvRead, LsmKv};

const VALUE_BYTES: usize = 200;
const ROWS_PER_TRANSACTION: u64 = 4;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().expect("usage: kv_bench DIR [ROWS]"));
    let rows: u64 = arguments.next().map_or(2_000_000, |rows| rows.parse().expect("a number of rows"));
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    let bench = Bench { directory, rows };
    bench.load("keys in random order", |n, rows| mix(n) % rows);
    bench.load("keys in rising order", |n, _| n);
    bench.small_flushes();
    std::fs::remove_dir_all(&bench.directory).unwrap();
}

struct Bench {
    directory: PathBuf,
    rows: u64,
}

impl Bench {
    fn open(&self) -> Arc<LsmKv> {
        let disk = Arc::new(RealDisk { directory: self.directory.clone() });
        block_on(LsmKv::open(&env(), disk, 7, KvOptions::default())).unwrap().0
    }

    fn fresh(&self) -> Arc<LsmKv> {
        for entry in std::fs::read_dir(&self.directory).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        self.open()
    }

    fn load(&self, what: &str, number: impl Fn(u64, u64) -> u64) {
        println!("== {} rows of {VALUE_BYTES} bytes, {what}", self.rows);
        let kv = self.fresh();
        let cpu = cpu_time();
        let (mut commit_time, mut flush_time) = (Duration::ZERO, Duration::ZERO);
        let started = Instant::now();
        for at in (0..self.rows).step_by(ROWS_PER_TRANSACTION as usize) {
            let changes = (at..at + ROWS_PER_TRANSACTION).map(|n| put(number(n, self.rows))).collect();
            let before = Instant::now();
            kv.commit(changes).unwrap();
            commit_time += before.elapsed();
            if kv.unflushed_bytes() > KvOptions::default().flush_bytes {
                let before = Instant::now();
                block_on(kv.flush()).unwrap();
                flush_time += before.elapsed();
            }
        }
        block_on(kv.flush()).unwrap();
        let per_row = |time: Duration| time.as_secs_f64() * 1e6 / self.rows as f64;
        println!("commit {:.2} us a row, flush {:.2} us a row", per_row(commit_time), per_row(flush_time));
        settle(&kv);
        println!("all    {:.2} us a row, {:.2} us of CPU", per_row(started.elapsed()), per_row(cpu_time() - cpu));
        let stats = kv.stats();
        let logical = self.rows * (VALUE_BYTES as u64 + 48);
        let written = stats.flush_bytes + stats.compaction_bytes_written;
        println!("written {:.2} bytes a byte, runs {:?}", written as f64 / logical as f64, stats.level_runs);
        println!("disk {:.2} bytes a byte", kv.disk_bytes() as f64 / logical as f64);
        block_on(kv.close());
        self.reads();
    }

    fn reads(&self) {
        let started = Instant::now();
        let kv = self.open();
        println!("open   {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
        let gets = 200_000;
        for (what, absent) in [("present, cold cache", false), ("present", false), ("absent", true)] {
            let cpu = cpu_time();
            let mut found = 0;
            for n in 0..gets {
                let mut key = key(mix(n) % self.rows).to_vec();
                if absent {
                    key.push(b'!');
                }
                found += u64::from(kv.get(&key).unwrap().is_some());
            }
            let each = (cpu_time() - cpu).as_secs_f64() * 1e6 / gets as f64;
            println!("get    {each:.2} us of CPU ({what}, {found} of {gets} found)");
        }
        for limit in [1_usize, 1000] {
            let scans = 100_000 / limit as u64 + 200;
            let cpu = cpu_time();
            let mut rows = 0;
            for n in 0..scans {
                rows += kv.scan(&key(mix(n) % self.rows), b"z", limit).unwrap().len();
            }
            let time = (cpu_time() - cpu).as_secs_f64() * 1e6;
            println!("scan   {:.2} us of CPU, {:.2} us a row (limit {limit})", time / scans as f64, time / rows as f64);
        }
        block_on(kv.close());
    }

    /// A store that is flushed often, as for trimming Raft logs.
    fn small_flushes(&self) {
        let flushes = 2_000;
        println!("== {flushes} flushes of 100 rows in random order");
        let kv = self.fresh();
        let started = Instant::now();
        for flush in 0..flushes {
            kv.commit((0..100).map(|n| put(mix(flush * 100 + n) % self.rows)).collect()).unwrap();
            block_on(kv.flush()).unwrap();
        }
        println!("flush  {:.2} ms each", started.elapsed().as_secs_f64() * 1e3 / flushes as f64);
        settle(&kv);
        let stats = kv.stats();
        let written = stats.compaction_bytes_written as f64 / stats.flush_bytes as f64;
        println!("compaction wrote {written:.2} bytes a byte flushed, runs {:?}", stats.level_runs);
        block_on(kv.close());
    }
}

fn settle(kv: &LsmKv) {
    let mut last = kv.stats();
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = kv.stats();
        if now.compactions == last.compactions && now.disk_bytes == last.disk_bytes {
            return;
        }
        last = now;
    }
}

fn key(n: u64) -> Bytes {
    Bytes::from(format!("objects/bucket-0042/photos/2024/{:04}/img-{n:010}", n % 1000))
}

fn put(n: u64) -> Change {
    let mut value = Vec::with_capacity(VALUE_BYTES);
    let mut state = n;
    while value.len() < VALUE_BYTES {
        state = mix(state);
        value.extend_from_slice(&state.to_le_bytes());
    }
    value.truncate(VALUE_BYTES);
    Change::Put { key: key(n), value: Bytes::from(value) }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// User and system time of all threads, from `/proc/self/stat` in clock ticks of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks: Vec<u64> =
        stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2).map(|n| n.parse().unwrap()).collect();
    Duration::from_millis(10 * (ticks[0] + ticks[1]))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(out) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return out;
        }
        std::thread::park();
    }
}

fn env() -> Env {
    let real = Arc::new(Real { started: Instant::now(), random: AtomicU64::new(1) });
    Env { clock: real.clone(), random: real.clone(), spawner: real.clone(), net: real, buffers: Arc::default() }
}

struct Real {
    started: Instant,
    random: AtomicU64,
}

impl Clock for Real {
    fn now(&self) -> MonoTime {
        MonoTime(self.started.elapsed().as_nanos() as u64)
    }
    fn wall(&self) -> WallTime {
        WallTime(0)
    }
    fn sleep_until(&self, deadline: MonoTime) -> BoxFuture<()> {
        std::thread::sleep(deadline.since(self.now()));
        Box::pin(async {})
    }
}

impl Random for Real {
    fn next_u64(&self) -> u64 {
        mix(self.random.fetch_add(1, Ordering::Relaxed))
    }
}

impl Spawn for Real {
    fn spawn(&self, _: &'static str, task: BoxFuture<()>) {
        std::thread::spawn(|| block_on(task));
    }
}

impl Net for Real {
    fn call(&self, _: NodeId, _: Channel, _: Frame, _: MonoTime) -> BoxFuture<Result<Frame, NetError>> {
        Box::pin(async { Err(NetError::NotSent) })
    }
    fn send(&self, _: NodeId, _: Channel, _: Frame) {}
    fn serve(&self, _: Arc<dyn Handler>) {}
}

struct RealDisk {
    directory: PathBuf,
}

struct RealFile(std::fs::File);

impl Disk for RealDisk {
    fn open(&self, name: &str, mode: OpenMode, _: Caching) -> io::Result<Arc<dyn File>> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create_new(mode == OpenMode::CreateNew);
        Ok(Arc::new(RealFile(options.open(self.directory.join(name))?)))
    }
    fn list(&self) -> io::Result<Vec<FileEntry>> {
        let mut out = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            out.push(FileEntry { name, size_bytes: entry.metadata()?.len() });
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.directory.join(from), self.directory.join(to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.directory.join(name))
    }
    fn flush_directory(&self) -> io::Result<()> {
        std::fs::File::open(&self.directory)?.sync_all()
    }
    fn space(&self) -> io::Result<DiskSpace> {
        Ok(DiskSpace::default())
    }
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        Ok(Box::new(()))
    }
    fn describe(&self) -> String {
        self.directory.display().to_string()
    }
}

impl File for RealFile {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn read_at(&self, offset: u64, len: usize) -> IoFuture<Bytes> {
        let read = self.read_now(offset, len);
        Box::pin(async { read })
    }
    fn read_now(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut out = vec![0; len];
        let mut done = 0;
        while done < len {
            match self.0.read_at(&mut out[done..], offset + done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        out.truncate(done);
        Ok(Bytes::from(out))
    }
    fn write_at(&self, mut offset: u64, pieces: Vec<Bytes>, flush: Flush) -> IoFuture<()> {
        let write = (|| {
            for piece in &pieces {
                self.0.write_all_at(piece, offset)?;
                offset += piece.len() as u64;
            }
            if flush == Flush::Yes { self.0.sync_data() } else { Ok(()) }
        })();
        Box::pin(async { write })
    }
    fn flush(&self) -> IoFuture<()> {
        let flush = self.0.sync_data();
        Box::pin(async { flush })
    }
    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.0.set_len(size_bytes)
    }
}
