//! `henge bench disk`: what the disk gives through henge's own disk layer, and through the chunk store's engine on it,
//! to be held beside fio.

use base::buffer::{AlignedBuf, BLOCK, align_up};
use base::env::{Caching, Disk, File, Flush, OpenMode, RandomExt};
use bytes::Bytes;
use serde::Serialize;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::engine;
use super::histogram::Histogram;
use crate::admin_commands::print_json;
use crate::cli::BenchDiskArgs;
use crate::env::{RealDisk, system_random};
use crate::failure::{Context, Failure};
use crate::scratch::ScratchDir;
use crate::units::show_bytes;

/// Space that writes go round in, and reads are drawn from; less where the disk has less to spare.
const SPACE_BYTES_MAX: u64 = 512 << 20;
pub const LARGE_BYTES: u64 = 1 << 20;
pub const LARGE_AT_ONCE: u32 = 8;

/// Scripts depend on the names and shapes of all fields.
#[derive(Serialize)]
pub struct Row {
    pub row: String,
    pub at_once: u32,
    pub bytes: u64,
    pub ops_per_s: f64,
    pub mb_per_s: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    /// Of a disk that was opened: its chunks, the memory that they take, its volumes, and how many of these were opened
    /// by their summaries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summarised: Option<u64>,
}

pub async fn run(args: BenchDiskArgs) -> Result<ExitCode, Failure> {
    if args.fill_until_killed {
        return engine::fill_until_killed(&args).await.map(|()| ExitCode::SUCCESS);
    }
    let cannot = || format!("{} cannot be measured", args.data.display());
    let scratch = ScratchDir::create(&args.data, "bench-disk").context(cannot)?;
    let disk = RealDisk::open(scratch.path()).context(cannot)?;
    let room_bytes = disk.space().context(cannot)?.available_bytes;
    let space = (room_bytes / 4).min(SPACE_BYTES_MAX) / LARGE_BYTES * LARGE_BYTES;
    if space < LARGE_BYTES * u64::from(LARGE_AT_ONCE) {
        return Err(Failure(format!("{} has too little free space to measure", args.data.display())));
    }
    let small = align_up(args.size.max(1)).min(space);
    let file = disk.open("space", OpenMode::CreateNew, Caching::Direct).context(cannot)?;
    let growing = disk.open("growing", OpenMode::CreateNew, Caching::Direct).context(cannot)?;
    let cached = disk.open("cached", OpenMode::CreateNew, Caching::Buffered).context(cannot)?;
    cached.write_at(0, vec![random_block(BLOCK as u64)], Flush::Yes).await.context(cannot)?;
    fill(&file, space).await.context(cannot)?;

    let bench = Bench { seconds: args.seconds, space, room_bytes };
    let many = args.concurrency;
    let rows = vec![
        bench.write("append and flush, into written space", &file, small, 1, Flush::Yes).await,
        bench.write("append and flush, into written space", &file, small, many, Flush::Yes).await,
        bench.write("append and flush, growing the file", &growing, small, 1, Flush::Yes).await,
        bench.write("sequential write", &file, LARGE_BYTES, LARGE_AT_ONCE, Flush::No).await,
        bench.read("random read", &file, small, 1).await,
        bench.read("random read", &file, small, many).await,
        bench.read("sequential read", &file, LARGE_BYTES, LARGE_AT_ONCE).await,
        bench.hop("cached 4 KiB through a disk thread", &cached).await,
        bench.no_hop("cached 4 KiB in place", &cached),
    ];
    let mut rows = rows.into_iter().collect::<std::io::Result<Vec<Row>>>().context(cannot)?;
    rows.extend(engine::measure(&bench, scratch.path(), small, many).await?);
    if let Some(records) = args.records {
        rows.push(engine::measure_open(scratch.path(), &args, records).await?);
    }
    if args.json {
        return print_json(&rows).map(|()| ExitCode::SUCCESS);
    }
    println!(
        "{:<40} {:>8} {:>8} {:>10} {:>10} {:>8} {:>8}",
        "", "bytes", "at once", "ops/s", "MB/s", "p50 us", "p99 us"
    );
    for row in rows {
        let bytes = show_bytes(row.bytes);
        println!(
            "{:<40} {bytes:>8} {:>8} {:>10.0} {:>10.1} {:>8} {:>8}",
            row.row, row.at_once, row.ops_per_s, row.mb_per_s, row.p50_us, row.p99_us
        );
        if let (Some(records), Some(resident), Some(volumes), Some(summarised)) =
            (row.records, row.resident_bytes, row.volumes, row.summarised)
        {
            let (seconds, memory) = (row.p50_us as f64 / 1e6, show_bytes(resident));
            println!(
                "    {records} chunks in {seconds:.2} s, {memory} of memory; {summarised} of {volumes} volumes by their summaries"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn random_block(bytes: u64) -> Bytes {
    let mut buffer = AlignedBuf::zeroed(bytes as usize);
    system_random().fill(buffer.as_mut_slice());
    buffer.freeze()
}

async fn fill(file: &Arc<dyn File>, space: u64) -> std::io::Result<()> {
    let block = random_block(LARGE_BYTES);
    for offset in (0..space).step_by(LARGE_BYTES as usize) {
        file.write_at(offset, vec![block.clone()], Flush::No).await?;
    }
    file.flush().await
}

pub struct Bench {
    seconds: f64,
    space: u64,
    /// What was free before anything was measured.
    pub room_bytes: u64,
}

impl Bench {
    /// Writes one after the other, going round within the space.
    async fn write(
        &self,
        row: &str,
        file: &Arc<dyn File>,
        bytes: u64,
        at_once: u32,
        flush: Flush,
    ) -> std::io::Result<Row> {
        let next = Arc::new(AtomicU64::new(0));
        let places = self.space / bytes;
        let block = random_block(bytes);
        let mut row = self
            .measure(row, bytes, at_once, || {
                let (file, next, block) = (Arc::clone(file), Arc::clone(&next), block.clone());
                move || {
                    let place = next.fetch_add(1, Ordering::Relaxed) % places;
                    let written = file.write_at(place * bytes, vec![block.clone()], flush);
                    Box::pin(written) as base::env::IoFuture<()>
                }
            })
            .await?;
        if flush == Flush::No {
            // What was not flushed was not stored: the flush is part of the figure.
            let began = Instant::now();
            file.flush().await?;
            let factor = self.seconds / (self.seconds + began.elapsed().as_secs_f64());
            row.ops_per_s *= factor;
            row.mb_per_s *= factor;
        }
        Ok(row)
    }

    async fn read(&self, row: &str, file: &Arc<dyn File>, bytes: u64, at_once: u32) -> std::io::Result<Row> {
        let random = Arc::new(system_random());
        let places = self.space / bytes;
        self.measure(row, bytes, at_once, || {
            let (file, random) = (Arc::clone(file), Arc::clone(&random));
            move || {
                let read = file.read_at(random.below(places) * bytes, bytes as usize);
                Box::pin(async move { read.await.map(|_| ()) }) as base::env::IoFuture<()>
            }
        })
        .await
    }

    async fn hop(&self, row: &str, file: &Arc<dyn File>) -> std::io::Result<Row> {
        self.measure(row, BLOCK as u64, 1, || {
            let file = Arc::clone(file);
            move || {
                let read = file.read_at(0, BLOCK);
                Box::pin(async move { read.await.map(|_| ()) }) as base::env::IoFuture<()>
            }
        })
        .await
    }

    fn no_hop(&self, row: &str, file: &Arc<dyn File>) -> std::io::Result<Row> {
        let mut latencies = Histogram::new();
        let began = Instant::now();
        while began.elapsed().as_secs_f64() < self.seconds {
            let start = Instant::now();
            file.read_now(0, BLOCK)?;
            latencies.record(start.elapsed());
        }
        Ok(row_of(row, BLOCK as u64, 1, &latencies, began.elapsed()))
    }

    /// Repeats operations in `at_once` tasks for the length of a row.
    pub async fn measure<O>(
        &self,
        row: &str,
        bytes: u64,
        at_once: u32,
        operation: impl Fn() -> O,
    ) -> std::io::Result<Row>
    where
        O: FnMut() -> base::env::IoFuture<()> + Send + 'static,
    {
        let began = Instant::now();
        let deadline = began + Duration::from_secs_f64(self.seconds);
        let tasks: Vec<_> = (0..at_once)
            .map(|_| {
                let mut operation = operation();
                tokio::spawn(async move {
                    let mut latencies = Histogram::new();
                    while Instant::now() < deadline {
                        let start = Instant::now();
                        operation().await?;
                        latencies.record(start.elapsed());
                    }
                    Ok::<_, std::io::Error>(latencies)
                })
            })
            .collect();
        let mut latencies = Histogram::new();
        for task in tasks {
            latencies.merge(&task.await.map_err(std::io::Error::other)??);
        }
        Ok(row_of(row, bytes, at_once, &latencies, began.elapsed()))
    }
}

fn row_of(row: &str, bytes: u64, at_once: u32, latencies: &Histogram, took: Duration) -> Row {
    let ops_per_s = latencies.count() as f64 / took.as_secs_f64();
    Row {
        row: row.to_owned(),
        at_once,
        bytes,
        ops_per_s,
        mb_per_s: ops_per_s * bytes as f64 / 1e6,
        p50_us: latencies.percentile_us(50.0),
        p99_us: latencies.percentile_us(99.0),
        records: None,
        resident_bytes: None,
        volumes: None,
        summarised: None,
    }
}
