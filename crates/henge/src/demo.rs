//! `henge demo`: what henge promises, shown on this machine in a few seconds: three nodes; store, kill -9 one of them, read
//! through another, compare, start it again, see it heal, compare.

use base::env::RandomExt;
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use crate::cli::DemoArgs;
use crate::cluster_file::{ClusterFile, ClusterNode};
use crate::env::system_random;
use crate::failure::{Context, Failure};
use crate::local_cluster;
use crate::processes::{Lifetime, ServerSpec};
use crate::report::{Report, Verdict};
use crate::s3_client::{Payload, S3Client, S3Error};
use crate::scratch::ScratchDir;
use crate::signals::Signals;
use crate::units::show_bytes;

const BUCKET: &str = "demo";

const NODES: u32 = 3;

/// The node that is killed: the founder, which leads as long as nobody else does. And the one that is read through.
const VICTIM: u32 = 1;
const READER: u32 = 2;

/// How long the cluster may take to be safe, and to serve again after the kill.
const SAFETY_PATIENCE: Duration = Duration::from_secs(120);
const SERVICE_PATIENCE: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Files larger than one part are stored by multipart upload, and all are read back in such pieces.
const PART_BYTES: u64 = 16 << 20;

/// Sizes of the generated objects: many small, some that are one chunk, one that takes a multipart upload.
const GENERATED: [(usize, u64); 3] = [(50, 4 << 10), (5, 1 << 20), (1, 40 << 20)];

pub async fn run(args: DemoArgs) -> Result<ExitCode, Failure> {
    let items = if args.files.is_empty() { generate()? } else { open_files(&args.files)? };
    let mut signals = Signals::new()?;
    tokio::select! {
        biased;
        () = signals.next() => Err(Failure("stopped; the demo's servers and data are gone".into())),
        outcome = show(&items) => outcome,
    }
}

async fn show(items: &[Item]) -> Result<ExitCode, Failure> {
    let directory = ScratchDir::create_temporary("demo").context(|| "no temporary directory can be made".into())?;
    let mut demo = Demo { directory, cluster: None, nodes: Vec::new() };
    let bytes: u64 = items.iter().map(|item| item.size).sum();

    println!(
        "1. Starting {NODES} nodes in the empty directory {}: one founds the cluster, the others join with tokens.",
        demo.directory.path().display()
    );
    let began = Instant::now();
    for number in 1..=NODES {
        demo.start(number).await?;
        println!(
            "   Node {number} serves after {} ms, at http://{}.",
            began.elapsed().as_millis(),
            demo.node(number).s3
        );
    }
    demo.wait_until_safe().await?;
    println!("   Each object will have {NODES} copies: `safe` after {} ms.", began.elapsed().as_millis());

    println!(
        "2. Storing {} objects, {}, through S3. Each `200 OK` means: flushed to {NODES} disks.",
        items.len(),
        show_bytes(bytes)
    );
    let began = Instant::now();
    let through = |number: u32| demo.s3(number);
    through(1).ensure_bucket(BUCKET).await.map_err(failed("the bucket cannot be made"))?;
    for (item, number) in items.iter().zip((1..=NODES).cycle()) {
        store(&through(number), item).await?;
    }
    println!("   All acknowledged after {:.2} s.", began.elapsed().as_secs_f64());

    println!("3. Killing node {VICTIM} with kill -9, right after the last acknowledgement.");
    demo.kill(VICTIM)?;

    println!("4. Reading everything back through node {READER} and comparing every byte.");
    let began = Instant::now();
    let through_reader = demo.s3(READER);
    first_answer(&through_reader).await?;
    println!("   It answers {} ms after the kill.", began.elapsed().as_millis());
    check(&through_reader, items).await?;

    println!("5. Starting node {VICTIM} again, and waiting until the cluster is `safe`.");
    let began = Instant::now();
    demo.start(VICTIM).await?;
    demo.wait_until_safe().await?;
    println!("   `safe` after {} ms. Reading everything back through node {VICTIM}.", began.elapsed().as_millis());
    check(&demo.s3(VICTIM), items).await?;

    println!(
        "\nAny one of three nodes may be killed, or lose its disks, at any moment: nothing that was acknowledged is"
    );
    println!("lost, and a flipped bit is never served.\n");
    println!("To go on:   {} server --data ./henge-data", how_to_call_it());
    println!("It prints the credentials once, as lines to paste for the aws CLI. Then, for example:");
    println!("            aws s3 mb s3://my-bucket && aws s3 cp FILE s3://my-bucket/");
    println!("            {} status --data ./henge-data", how_to_call_it());
    println!("            {} token create --data ./henge-data   (for the next machine)", how_to_call_it());
    Ok(ExitCode::SUCCESS)
}

/// Waits until the reader answers at all: the others notice a dead node after about a second.
async fn first_answer(s3: &S3Client) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        match s3.list(BUCKET, "").await {
            Ok(_) => return Ok(()),
            Err(error) if began.elapsed() > SERVICE_PATIENCE => {
                return Err(Failure(format!("the other nodes do not serve: {error}; this must not happen")));
            }
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// Every object is there and identical, or it is a failure.
async fn check(s3: &S3Client, items: &[Item]) -> Result<(), Failure> {
    let listed = s3.list(BUCKET, "").await.map_err(failed("the bucket cannot be listed"))?;
    let mut differing = 0;
    for item in items {
        if let Err(why) = compare(s3, item).await {
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
    println!("   {} of {} objects are there, identical. Lost: 0. Wrong: 0.", items.len(), items.len());
    Ok(())
}

/// How the user started this very binary.
fn how_to_call_it() -> String {
    let called = std::env::args().next().unwrap_or_else(|| "henge".into());
    if called.contains("target/release") { "cargo run --release --".into() } else { called }
}

/// The demo's nodes; gone, with all their data, when this is dropped.
struct Demo {
    directory: ScratchDir,
    cluster: Option<ClusterFile>,
    nodes: Vec<(u32, Child)>,
}

impl Demo {
    /// Starts a node: for the first time on free ports, then on the same again.
    async fn start(&mut self, number: u32) -> Result<(), Failure> {
        let known = self.cluster.as_ref().and_then(|cluster| cluster.node(number));
        let [s3, admin, cluster] = match known {
            None => free_addresses()?,
            Some(node) => {
                [&node.s3, &node.admin, &node.cluster].map(|known| known.parse().expect("a node listens there"))
            }
        };
        let join = match &self.cluster {
            Some(cluster) if known.is_none() => Some(local_cluster::invite(cluster).await?),
            _ => None,
        };
        let spec = ServerSpec {
            data: self.directory.path().join(format!("node{number}")),
            s3,
            admin,
            cluster,
            log: self.directory.path().join(format!("node{number}.log")),
            lifetime: Lifetime::WithParent,
            join,
        };
        let (child, file) = local_cluster::start(&spec).await?;
        self.nodes.push((number, child));
        let cluster = self.cluster.get_or_insert_with(|| ClusterFile { nodes: vec![], ..file.clone() });
        local_cluster::add_node(cluster, number, file);
        Ok(())
    }

    fn cluster(&self) -> &ClusterFile {
        self.cluster.as_ref().expect("a node was started")
    }

    fn node(&self, number: u32) -> &ClusterNode {
        self.cluster().node(number).expect("the node was started")
    }

    /// A client of this node alone.
    fn s3(&self, number: u32) -> S3Client {
        let cluster = self.cluster();
        S3Client::new(&[self.node(number).s3.clone()], &cluster.region, cluster.credentials())
    }

    async fn wait_until_safe(&self) -> Result<(), Failure> {
        let all_up = |report: &Report| report.nodes.iter().filter(|node| node.state == "up").count() == NODES as usize;
        let safe = |report: &Report| report.verdict == Verdict::Safe && all_up(report);
        local_cluster::wait_for_status(self.cluster(), SAFETY_PATIENCE, "`safe`", safe).await.map(drop)
    }

    fn kill(&mut self, number: u32) -> Result<(), Failure> {
        for (_, child) in self.nodes.iter_mut().filter(|(node, _)| *node == number) {
            // `Child::kill` is SIGKILL.
            child.kill().and_then(|()| child.wait()).context(|| "the server cannot be killed".into())?;
        }
        self.nodes.retain(|(node, _)| *node != number);
        Ok(())
    }
}

/// Three addresses of this machine that were free a moment ago, below the ports that systems give to outgoing connections:
/// while a node is down, its ports stay its own.
fn free_addresses() -> Result<[SocketAddr; 3], Failure> {
    const PORTS: Range<u16> = 12_000..32_000;
    const TRIES: usize = 100;
    let random = system_random();
    let pick = || PORTS.start + random.below(u64::from(PORTS.end - PORTS.start)) as u16;
    let three = |first| [0, 1, 2].map(|offset| SocketAddr::from((Ipv4Addr::LOCALHOST, first + offset)));
    let is_free = |addresses: &[SocketAddr; 3]| addresses.map(TcpListener::bind).iter().all(io::Result::is_ok);
    let found = (0..TRIES).map(|_| three(pick())).find(is_free);
    found.ok_or_else(|| Failure(format!("no three free ports in a row were found from {PORTS:?} on 127.0.0.1")))
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Their directory goes next, with all that it could have kept.
        for (_, child) in &mut self.nodes {
            let _ = child.kill().and_then(|()| child.wait());
        }
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
