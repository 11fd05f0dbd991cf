//! `henge demo`: what henge promises, shown on this machine in a few seconds: store, kill -9, start, read, compare.

use base::env::RandomExt;
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::time::Instant;

use crate::cli::DemoArgs;
use crate::cluster_file::{ClusterFile, ClusterNode};
use crate::env::system_random;
use crate::failure::{Context, Failure};
use crate::processes::{self, Lifetime, ServerSpec};
use crate::s3_client::{Payload, S3Client, S3Error};
use crate::scratch::ScratchDir;
use crate::signals::Signals;
use crate::units::show_bytes;

const BUCKET: &str = "demo";

/// Files larger than one part are stored by multipart upload, and all are read back in such pieces.
const PART_BYTES: u64 = 16 << 20;

/// Sizes of the generated objects: many small, some that are one chunk, one that takes a multipart upload.
const GENERATED: [(usize, u64); 3] = [(50, 4 << 10), (5, 1 << 20), (1, 40 << 20)];

pub async fn run(args: DemoArgs) -> Result<ExitCode, Failure> {
    let items = if args.files.is_empty() { generate()? } else { open_files(&args.files)? };
    let mut signals = Signals::new()?;
    tokio::select! {
        biased;
        () = signals.next() => Err(Failure("stopped; the demo's server and data are gone".into())),
        outcome = show(&items) => outcome,
    }
}

async fn show(items: &[Item]) -> Result<ExitCode, Failure> {
    let directory = ScratchDir::create_temporary("demo").context(|| "no temporary directory can be made".into())?;
    let mut demo = Demo { directory, server: None };
    let bytes: u64 = items.iter().map(|item| item.size).sum();

    println!(
        "1. Starting henge in the empty directory {}: no configuration, fresh credentials.",
        demo.directory.path().display()
    );
    let began = Instant::now();
    let s3 = demo.start().await?;
    println!("   It serves S3 on http://{} after {} ms.", s3.address(), began.elapsed().as_millis());

    println!(
        "2. Storing {} objects, {}, through S3. Each `200 OK` means: flushed to the disk.",
        items.len(),
        show_bytes(bytes)
    );
    let began = Instant::now();
    s3.ensure_bucket(BUCKET).await.map_err(failed("the bucket cannot be made"))?;
    for item in items {
        store(&s3, item).await?;
    }
    println!("   All acknowledged after {:.2} s.", began.elapsed().as_secs_f64());

    println!("3. Killing it with kill -9, right after the last acknowledgement.");
    demo.kill()?;

    println!("4. Starting it again on the same directory.");
    let began = Instant::now();
    let s3 = demo.start().await?;
    println!("   It has recovered and serves after {} ms.", began.elapsed().as_millis());

    println!("5. Reading everything back and comparing every byte.");
    let listed = s3.list(BUCKET, "").await.map_err(failed("the bucket cannot be listed"))?;
    let mut differing = 0;
    for item in items {
        if let Err(why) = compare(&s3, item).await {
            differing += 1;
            println!("   {}: {why}", item.key);
        }
    }
    // A listing has at most 1,000 keys on its first page.
    if differing > 0 || listed.len() != items.len().min(1000) {
        return Err(Failure(format!(
            "{differing} of {} objects differ and {} are listed; this must not happen, please report it",
            items.len(),
            listed.len()
        )));
    }
    println!("   {} of {} objects are there, identical. Lost: 0. Wrong: 0.\n", items.len(), items.len());
    println!("One node alone keeps one copy of everything: `henge status` calls that `at_risk`. What was acknowledged");
    println!("survives crashes and power cuts, and a flipped bit is never served, but a lost disk loses data.\n");
    println!("To go on:   {} server --data ./henge-data", how_to_call_it());
    println!("It prints the credentials once, as lines to paste for the aws CLI. Then, for example:");
    println!("            aws s3 mb s3://my-bucket && aws s3 cp FILE s3://my-bucket/");
    println!("            {} status --data ./henge-data", how_to_call_it());
    Ok(ExitCode::SUCCESS)
}

/// How the user started this very binary.
fn how_to_call_it() -> String {
    let called = std::env::args().next().unwrap_or_else(|| "henge".into());
    if called.contains("target/release") { "cargo run --release --".into() } else { called }
}

/// The demo's server; gone, with all its data, when this is dropped.
struct Demo {
    directory: ScratchDir,
    server: Option<Child>,
}

impl Demo {
    async fn start(&mut self) -> Result<S3Client, Failure> {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let spec = ServerSpec {
            data: self.directory.path().join("data"),
            s3: any_port,
            admin: any_port,
            cluster: any_port,
            log: self.directory.path().join("log"),
            lifetime: Lifetime::WithParent,
        };
        let server = self.server.insert(processes::spawn_server(&spec)?);
        let cluster: ClusterFile = processes::wait_ready(server, &spec).await?;
        let node: &ClusterNode = cluster.nodes.first().expect("wait_ready found the server's own entry");
        Ok(S3Client::new(&node.s3, &cluster.region, cluster.credentials()))
    }

    fn kill(&mut self) -> Result<(), Failure> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        // `Child::kill` is SIGKILL.
        server.kill().and_then(|()| server.wait()).context(|| "the server cannot be killed".into())?;
        Ok(())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Its directory goes next, with all that it could have kept.
        let _ = self.kill();
    }
}

/// Something to store.
struct Item {
    key: String,
    size: u64,
    source: Source,
}

enum Source {
    Memory(Bytes),
    File { path: PathBuf, file: File },
}

impl Item {
    fn piece(&self, offset: u64, len: u64) -> io::Result<Bytes> {
        match &self.source {
            Source::Memory(bytes) => Ok(bytes.slice(offset as usize..(offset + len) as usize)),
            Source::File { file, .. } => {
                let mut piece = vec![0; usize::try_from(len).map_err(io::Error::other)?];
                file.read_exact_at(&mut piece, offset)?;
                Ok(piece.into())
            }
        }
    }

    /// Offset and length of each piece of at most `PART_BYTES`.
    fn pieces(&self) -> impl Iterator<Item = (u64, u64)> {
        let size = self.size;
        (0..size.div_ceil(PART_BYTES)).map(move |index| {
            let offset = index * PART_BYTES;
            (offset, PART_BYTES.min(size - offset))
        })
    }

    fn read(&self, offset: u64, len: u64) -> Result<Bytes, Failure> {
        self.piece(offset, len).context(|| match &self.source {
            Source::Memory(_) => "generated data".into(),
            Source::File { path, .. } => format!("{} cannot be read", path.display()),
        })
    }
}

fn generate() -> Result<Vec<Item>, Failure> {
    let random = system_random();
    let mut items = Vec::new();
    for (count, size) in GENERATED {
        for number in 1..=count {
            let mut data = vec![0; size as usize];
            random.fill(&mut data);
            let key = format!("{}/{number:03}", show_bytes(size).replace(' ', "-"));
            items.push(Item { key, size, source: Source::Memory(data.into()) });
        }
    }
    Ok(items)
}

fn open_files(paths: &[PathBuf]) -> Result<Vec<Item>, Failure> {
    let mut items: Vec<Item> = Vec::new();
    for path in paths {
        let file = File::open(path).context(|| format!("{} cannot be opened", path.display()))?;
        let metadata = file.metadata().context(|| format!("{} cannot be read", path.display()))?;
        if !metadata.is_file() {
            return Err(Failure(format!("{} is no file; name files to store", path.display())));
        }
        let mut key = key_of(path);
        if items.iter().any(|item| item.key == key) {
            key = format!("{}/{key}", items.len() + 1);
        }
        items.push(Item { key, size: metadata.len(), source: Source::File { path: path.clone(), file } });
    }
    Ok(items)
}

fn key_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

async fn store(s3: &S3Client, item: &Item) -> Result<(), Failure> {
    let doing = || format!("{} cannot be stored", item.key);
    if item.size <= PART_BYTES {
        let body = item.read(0, item.size)?;
        return s3.put(BUCKET, &item.key, body, Payload::Signed).await.context(doing);
    }
    let upload = s3.create_upload(BUCKET, &item.key).await.context(doing)?;
    let mut etags = Vec::new();
    for (offset, len) in item.pieces() {
        let number = u32::try_from(etags.len() + 1).context(doing)?;
        let body = item.read(offset, len)?;
        etags.push(s3.put_part(BUCKET, &item.key, &upload, number, body).await.context(doing)?);
    }
    s3.complete_upload(BUCKET, &item.key, &upload, &etags).await.context(doing)
}

/// Why the stored object is not what was stored.
async fn compare(s3: &S3Client, item: &Item) -> Result<(), String> {
    if item.size <= PART_BYTES {
        let found = s3.get(BUCKET, &item.key).await.map_err(|error| error.to_string())?;
        let found = found.ok_or("it is gone")?;
        let expected = item.read(0, item.size).map_err(|failure| failure.0)?;
        return if found == expected { Ok(()) } else { Err("it differs".into()) };
    }
    for (offset, len) in item.pieces() {
        let found = s3.get_range(BUCKET, &item.key, offset, len).await.map_err(|error| error.to_string())?;
        let expected = item.read(offset, len).map_err(|failure| failure.0)?;
        if found != expected {
            return Err(format!("it differs within {len} bytes from byte {offset} on"));
        }
    }
    Ok(())
}

fn failed(doing: &'static str) -> impl Fn(S3Error) -> Failure {
    move |error| Failure(format!("{doing}: {error}"))
}
