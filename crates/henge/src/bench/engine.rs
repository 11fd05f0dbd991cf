//! The rows of `henge bench disk` that go through the chunk store's engine: what a node itself has of its disk, beside
//! what the disk layer has. And how long a disk with many chunks takes to open after its process was killed.

use base::buffer::AlignedBuf;
use base::checksum::crc64;
use base::env::{Disk, RandomExt};
use base::ids::{ChunkId, ClusterId, DiskId, Generation, NodeId, OwnerId, PgEpoch, PoolId, SLOT_BITS, Session, Slot};
use bytes::Bytes;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use store::{DiskIdentity, Engine, EngineOptions, NewChunk};

use super::disk::{Bench, LARGE_AT_ONCE, LARGE_BYTES, Row};
use crate::cli::BenchDiskArgs;
use crate::env::{FIRST_NODE, RealDisk, real_env, system_random};
use crate::failure::{Context, Failure};

/// Writers of the row with many: enough that one flush is shared by hundreds.
const MANY_WRITERS: u32 = 256;
/// Bytes of small chunks that the reads are drawn from: as fio's rows have.
const READ_SPACE_BYTES: u64 = 512 << 20;
/// Of the row whose bulk volumes are recycled ones, as fio's goes round in a file: size of the volumes, large chunks that stay
/// while more are stored, how many of those before them go at a time, and how many are stored before one measures.
const RECYCLED_VOLUME_BYTES: u64 = 256 << 20;
const KEPT_CHUNKS: u32 = 256;
const DELETED_AT_ONCE: u32 = 32;
const WORN_CHUNKS: u32 = 4 * KEPT_CHUNKS;
/// Free space without which that row is left out.
const RECYCLED_ROOM_BYTES: u64 = 8 << 30;
/// What the filling process says once all records are stored.
const FILLED: &str = "filled";
/// Of the chunks that are found again, one of so many is read and verified.
const READ_ONE_OF: usize = 1000;
/// For so long it goes on writing before it is killed.
const UNTIL_KILLED: Duration = Duration::from_millis(300);

/// One engine on a directory of its own, and the chunks that it is given.
#[derive(Clone)]
struct Store {
    engine: Engine,
    next: Arc<AtomicU32>,
}

impl Store {
    async fn format(directory: &Path) -> Result<Store, Failure> {
        Store::format_with(directory, EngineOptions::default()).await
    }

    async fn format_with(directory: &Path, options: EngineOptions) -> Result<Store, Failure> {
        let cannot = || format!("{} cannot be made a disk", directory.display());
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open_or_create(directory).context(cannot)?);
        let (env, _) = real_env(FIRST_NODE, tokio::runtime::Handle::current(), Arc::default());
        let (disk_id, cluster) = (DiskId::random(&*env.random), ClusterId::random(&*env.random));
        let identity = DiskIdentity { cluster, disk: disk_id, node: FIRST_NODE };
        Engine::format(&env, Arc::clone(&disk), &identity, &options).await.context(cannot)?;
        let (engine, _) = Engine::open(&env, disk, options).await.context(cannot)?;
        Ok(Store { engine, next: Arc::default() })
    }

    /// Stores the payload under the next id, which it answers.
    async fn put(&self, payload: Payload) -> io::Result<u32> {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        let Payload { bytes, crc64 } = payload;
        let chunk = NewChunk { id: id_of(counter), owner: OwnerId(1), epoch: PgEpoch(1), crc64, payload: vec![bytes] };
        self.engine.put(chunk).await.map_err(io::Error::other)?;
        Ok(counter)
    }

    /// The same; and what was stored long before goes, some at a time.
    async fn replace(&self, payload: Payload) -> io::Result<()> {
        let counter = self.put(payload).await?;
        if counter.is_multiple_of(DELETED_AT_ONCE) && counter >= KEPT_CHUNKS + DELETED_AT_ONCE {
            let last = counter - KEPT_CHUNKS;
            let gone = (last - DELETED_AT_ONCE..last).map(id_of).collect();
            self.engine.delete(gone).await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Stores and deletes until new volumes are recycled ones.
    async fn wear(&self, payload: &Payload) -> Result<(), Failure> {
        let cannot = || "the disk cannot be filled".into();
        let tasks: Vec<_> = (0..LARGE_AT_ONCE)
            .map(|_| {
                let (store, payload) = (self.clone(), payload.clone());
                tokio::spawn(async move {
                    while store.next.load(Ordering::Relaxed) < WORN_CHUNKS {
                        store.replace(payload.clone()).await?;
                    }
                    Ok::<_, io::Error>(())
                })
            })
            .collect();
        for task in tasks {
            task.await.map_err(io::Error::other).and_then(|done| done).context(cannot)?;
        }
        Ok(())
    }
}

/// As a writer draws them: anywhere in the pool.
fn id_of(counter: u32) -> ChunkId {
    let slot = Slot::new(counter.wrapping_mul(0x9e37_79b1) >> (32 - SLOT_BITS));
    ChunkId { pool: PoolId(1), slot, session: Session { node: NodeId(1), generation: Generation(1) }, counter }
}

/// Random bytes; computing their checksum is the writer's work, not the disk's.
#[derive(Clone)]
struct Payload {
    bytes: Bytes,
    crc64: u64,
}

impl Payload {
    fn random(len: u64) -> Payload {
        let mut buffer = AlignedBuf::zeroed(len as usize);
        system_random().fill(buffer.as_mut_slice());
        let bytes = buffer.freeze().slice(..len as usize);
        Payload { crc64: crc64(&bytes), bytes }
    }
}

/// All rows of an engine in the directory below `parent`.
pub async fn measure(bench: &Bench, parent: &Path, small: u64, at_once: u32) -> Result<Vec<Row>, Failure> {
    let cannot = || format!("the engine on {} cannot be measured", parent.display());
    let directory = parent.join("engine");
    let store = Store::format(&directory).await?;
    let large = Payload::random(LARGE_BYTES);
    let payload = Payload::random(small);
    let mut rows = vec![
        put(bench, &store, "engine: put, durable, on an empty disk", &large, LARGE_AT_ONCE).await.context(cannot)?,
        put(bench, &store, "engine: put, durable", &payload, 1).await.context(cannot)?,
        put(bench, &store, "engine: put, durable", &payload, MANY_WRITERS).await.context(cannot)?,
    ];
    store.engine.close().await;
    std::fs::remove_dir_all(&directory).context(cannot)?;
    if bench.room_bytes >= RECYCLED_ROOM_BYTES {
        let directory = parent.join("engine-recycled");
        let volume_size_bytes = Some(RECYCLED_VOLUME_BYTES);
        let store =
            Store::format_with(&directory, EngineOptions { volume_size_bytes, ..EngineOptions::default() }).await?;
        store.wear(&large).await?;
        rows.push(replace(bench, &store, "engine: put, durable", &large, LARGE_AT_ONCE).await.context(cannot)?);
        store.engine.close().await;
        std::fs::remove_dir_all(&directory).context(cannot)?;
    }
    // A directory of their own, so that every id up to the last is one of theirs.
    let directory = parent.join("engine-reads");
    let store = Store::format(&directory).await?;
    let records = u32::try_from(READ_SPACE_BYTES.div_ceil(small.max(1))).unwrap_or(u32::MAX).min(1 << 20);
    fill(&store, &payload, records).await?;
    rows.push(get(bench, &store, small, at_once, records).await.context(cannot)?);
    store.engine.close().await;
    Ok(rows)
}

async fn put(bench: &Bench, store: &Store, row: &str, payload: &Payload, at_once: u32) -> io::Result<Row> {
    bench
        .measure(row, payload.bytes.len() as u64, at_once, || {
            let (store, payload) = (store.clone(), payload.clone());
            move || {
                let (store, payload) = (store.clone(), payload.clone());
                Box::pin(async move { store.put(payload).await.map(drop) })
            }
        })
        .await
}

async fn replace(bench: &Bench, store: &Store, row: &str, payload: &Payload, at_once: u32) -> io::Result<Row> {
    bench
        .measure(row, payload.bytes.len() as u64, at_once, || {
            let (store, payload) = (store.clone(), payload.clone());
            move || {
                let (store, payload) = (store.clone(), payload.clone());
                Box::pin(async move { store.replace(payload).await })
            }
        })
        .await
}

/// The engine keeps no contents in memory here, and the disk is read past the system's cache.
async fn get(bench: &Bench, store: &Store, bytes: u64, at_once: u32, records: u32) -> io::Result<Row> {
    let random = Arc::new(system_random());
    bench
        .measure("engine: get, nothing cached", bytes, at_once, || {
            let (engine, random) = (store.engine.clone(), Arc::clone(&random));
            move || {
                let (engine, id) = (engine.clone(), id_of(random.below(u64::from(records)) as u32));
                Box::pin(async move { engine.get(id, 0..u32::MAX).await.map(drop).map_err(io::Error::other) })
            }
        })
        .await
}

async fn fill(store: &Store, payload: &Payload, records: u32) -> Result<(), Failure> {
    let tasks: Vec<_> = (0..MANY_WRITERS)
        .map(|_| {
            let (store, payload) = (store.clone(), payload.clone());
            tokio::spawn(async move {
                while store.next.load(Ordering::Relaxed) < records {
                    store.put(payload.clone()).await?;
                }
                Ok::<_, io::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await
            .map_err(io::Error::other)
            .and_then(|filled| filled)
            .context(|| "the disk cannot be filled".into())?;
    }
    Ok(())
}

/// The process that is killed: stores the records, says so, and goes on until it dies.
pub async fn fill_until_killed(args: &BenchDiskArgs) -> Result<(), Failure> {
    let store = Store::format(&args.data).await?;
    let payload = Payload::random(args.size.max(1));
    let records = args.records.unwrap_or(1);
    fill(&store, &payload, records).await?;
    println!("{FILLED}");
    fill(&store, &payload, u32::MAX).await
}

/// Opens a disk that another process has filled until it was killed.
pub async fn measure_open(parent: &Path, args: &BenchDiskArgs, records: u32) -> Result<Row, Failure> {
    let directory = parent.join("engine-open");
    let cannot = || format!("opening {} cannot be measured", directory.display());
    std::fs::create_dir(&directory).context(cannot)?;
    let mut filler = Filler::start(&directory, args, records).context(cannot)?;
    filler.wait_until_filled().context(cannot)?;
    tokio::time::sleep(UNTIL_KILLED).await;
    drop(filler);

    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&directory).context(cannot)?);
    let (env, _) = real_env(FIRST_NODE, tokio::runtime::Handle::current(), Arc::default());
    let before = resident_bytes();
    let began = Instant::now();
    let (engine, report) = Engine::open(&env, disk, EngineOptions::default()).await.context(cannot)?;
    let took = began.elapsed();
    let resident_bytes = resident_bytes().saturating_sub(before);
    let chunks = engine.stats().chunks;
    // The filler said that all of these are stored.
    let lost = (0..records).filter(|counter| engine.stat(id_of(*counter)).is_none()).count();
    if lost > 0 || !report.damaged.is_empty() {
        return Err(Failure(format!("{lost} of {records} chunks are lost after the kill: {:?}", report.damaged)));
    }
    for counter in (0..records).step_by(READ_ONE_OF) {
        engine.get(id_of(counter), 0..u32::MAX).await.context(|| format!("chunk {counter} after the kill"))?;
    }
    engine.close().await;
    let seconds = took.as_secs_f64();
    Ok(Row {
        row: "engine: open after kill -9".into(),
        at_once: 1,
        bytes: args.size,
        ops_per_s: chunks as f64 / seconds,
        mb_per_s: chunks as f64 / seconds * args.size as f64 / 1e6,
        p50_us: took.as_micros() as u64,
        p99_us: took.as_micros() as u64,
        records: Some(chunks),
        resident_bytes: Some(resident_bytes),
        volumes: Some(report.volumes),
        summarised: Some(report.summarised),
    })
}

/// Killed when it is dropped, without a chance to say goodbye.
struct Filler(Child);

impl Filler {
    fn start(directory: &Path, args: &BenchDiskArgs, records: u32) -> io::Result<Filler> {
        let (records, size) = (records.to_string(), args.size.to_string());
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "disk", "--fill-until-killed", "--records", &records, "--size", &size, "--data"]);
        command.arg(directory).stdout(Stdio::piped()).spawn().map(Filler)
    }

    fn wait_until_filled(&mut self) -> io::Result<()> {
        let output = self.0.stdout.take().ok_or_else(|| io::Error::other("its output was asked for"))?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line.trim() == FILLED { Ok(()) } else { Err(io::Error::other("the filling process ended early")) }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // `kill` is SIGKILL. One that has died by itself is gone as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Memory of this process that is in use now; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
