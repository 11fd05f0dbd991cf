//! `henge server`: one node, from its directories to its ports.
//!
//! The order matters: ports are taken before anything is written, so that a wrong address changes nothing;
//! `cluster.json` is replaced before anybody is told `ready`; S3 is served last and stopped first.

use base::buffer_pool::BufferPool;
use base::env::Disk;
use gateway_s3::S3Meter;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::admin::{Admin, AdminNode};
use crate::admission::Gate;
use crate::cli::{DiskArg, ServerArgs};
use crate::cluster_file::{self, ClusterFile, ClusterNode};
use crate::credentials::{self, Credentials, Origin};
use crate::env::net::hello::Club;
use crate::env::{RealDisk, RealNet, real_env, system_random};
use crate::events::EventView;
use crate::failure::{Context, Failure};
use crate::fence_command::FenceCommand;
use crate::listener;
use crate::membership::{self, Applicant, Standing};
use crate::memory;
use crate::predecessor;
use crate::report::Report;
use crate::root_user::{Follower, RootUser};
use crate::signals::Signals;

/// How long a large buffer that nobody needs is kept.
const BUFFER_AGE: Duration = Duration::from_secs(5);

/// Runs the node until it is told to stop.
pub async fn run(args: ServerArgs) -> Result<ExitCode, Failure> {
    raise_file_limit();
    let data = absolute(&args.data)?;
    let buffers: Arc<BufferPool> = Arc::default();
    let data_disk = open_directory(&data, "--data", &buffers)?;
    let ports = Ports::take(&args).await?;
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(listener::tls_acceptor(certificate, key)?),
        _ => None,
    };
    let addresses = ports.addresses;
    let disks = disk_args(&args, &data)?;
    let opened = disks.iter().map(|disk| open_directory(&disk.directory, "--disk", &buffers));
    let opened = opened.collect::<Result<Vec<_>, _>>()?;
    for disk in opened.iter().chain([&data_disk]) {
        predecessor::wait_for_lock(&**disk).await;
    }
    let applicant =
        Applicant { args: &args, data: &data, data_disk: &*data_disk, disks: &opened, own: addresses.cluster };
    let advertise = applicant.advertise()?;
    let standing = applicant.stand().await?;
    let random = system_random();
    let (given, origin) = credentials::load_or_make(&data, &random)?;
    let root = RootUser::at_start(&data, &given)?;
    let token = credentials::load_or_make_monitoring_token(&data, &random)?;
    let (stop, stopping) = watch::channel(false);
    if !addresses.admin.ip().is_loopback() {
        tracing::warn!(
            "--admin {}: root credentials travel there unencrypted; keep it within a trusted network",
            addresses.admin
        );
    }

    let admin = Admin::new(root.credentials.clone(), &token, addresses.admin.ip().is_loopback());
    let admin_service = hyper_util::service::TowerToHyperService::new(admin.clone().router());
    let admin_task = tokio::spawn(listener::serve(ports.admin, None, admin_service, stopping.clone()));

    let plan = Plan { args: &args, data: &data, disks: &disks, addresses, advertise, given: &given, buffers };
    let (env, started) = plan.start(standing, data_disk, opened, ports.cluster).await?;
    let (node, net) = (Arc::clone(&started.node), Arc::clone(&started.net));
    let (region, meter) = (started.region.clone(), started.s3_meter.clone());
    let https = tls.is_some();
    let file = plan.cluster_file(&region, &node).with_root(&root);
    file.write(&data)?;
    let follower = Follower { data: data.clone(), file, given: (given.clone(), origin) };
    env.spawn("root user", follower.follow(node.client()));
    admin.attach(Arc::new(started));
    let s3_task =
        tokio::spawn(listener::serve(ports.s3, tls, s3_service(&args, &region, &env, &node, meter), stopping));
    announce(addresses, https, origin, &given, &data, &region);

    let mut signals = Signals::new()?;
    let ended = tokio::select! {
        biased;
        () = signals.next() => None,
        why = node.ended() => Some(why),
        why = net.replaced() => Some(format!(
            "{why}. This process has ended: of a data directory and a copy of it, only one may run"
        )),
    };
    println!("stopping: finishing requests (a second signal ends at once)");
    tokio::spawn(async move {
        signals.next().await;
        std::process::exit(1);
    });
    stop.send_replace(true);
    let (s3_end, admin_end) = tokio::join!(s3_task, admin_task);
    s3_end.and(admin_end).context(|| "a listener ended early".into())?;
    node.shutdown().await;
    ended.map_or(Ok(ExitCode::SUCCESS), |why| Err(Failure(why)))
}

/// All that is decided before the node starts.
struct Plan<'a> {
    args: &'a ServerArgs,
    data: &'a Path,
    disks: &'a [DiskArg],
    addresses: Addresses,
    advertise: String,
    /// The root user, unless a command has set it.
    given: &'a Credentials,
    buffers: Arc<BufferPool>,
}

impl Plan<'_> {
    /// Starts the node within its cluster.
    async fn start(
        &self,
        standing: Standing,
        data_disk: Arc<dyn Disk>,
        opened: Vec<Arc<dyn Disk>>,
        cluster_port: TcpListener,
    ) -> Result<(base::Env, Running), Failure> {
        let (env, net) = real_env(standing.node, tokio::runtime::Handle::current(), Arc::clone(&self.buffers));
        env.spawn("age buffers", age_buffers(env.clone()));
        if self.args.cluster_bulk_plaintext {
            tracing::warn!(
                "chunks travel unencrypted between this node and those that were started with --cluster-bulk-plaintext, \
                 too: whoever can read or alter the cluster's network can read or alter them"
            );
        }
        let mut cluster_port = Some(cluster_port);
        let mut enter = |club: Club| match cluster_port.take() {
            Some(port) => {
                let advertise = self.advertise.clone();
                let plaintext = self.args.cluster_bulk_plaintext;
                membership::enter(&net, standing.node, club, &standing.authority, port, advertise, plaintext)
            }
            None => Ok(()),
        };
        // A founder has nobody to talk to before its cluster has an id.
        standing.club.map_or(Ok(()), &mut enter)?;
        let region = standing.region.clone().unwrap_or_else(|| self.args.region.clone());
        let authority = standing.authority.clone();
        let config = node::Config {
            feature_level_max: meta::group::FEATURE_LEVEL,
            env: env.clone(),
            data: data_disk,
            disks: disk_specs(self.disks, opened),
            locality: self.args.locality.clone(),
            advertise: self.advertise.clone(),
            region: region.clone(),
            root: (self.given.access_key.clone(), self.given.secret_key.clone()),
            authority: Some((authority.certificate_pem.clone(), authority.key_pem.clone())),
        };
        let node = node::Node::start_tuned(config, self.tuning()).await.map_err(|error| Failure(error.to_string()))?;
        let node = Arc::new(node);
        enter(Club { cluster: node.cluster(), generation: 0 })?;
        let (client, cluster) = (node.client(), node.cluster());
        let gate = Gate { env: env.clone(), client: client.clone(), cluster, authority };
        net.admit_by(Arc::new(gate.clone()));
        env.spawn(
            "membership",
            membership::follow(Arc::clone(&net), env.clone(), standing, client, self.data.to_owned()),
        );
        let s3_meter = S3Meter::default();
        Ok((env, Running { node, net, s3_meter, gate, advertise: self.advertise.clone(), region }))
    }

    fn tuning(&self) -> node::Tuning {
        let mut tuning = node::Tuning::default();
        tuning.engine.large_cache_bytes = memory::for_large_chunks(self.disks.len());
        if let Some(program) = &self.args.fence_command {
            tuning.fence_agent = Some(Arc::new(FenceCommand { program: program.clone() }));
        }
        if let Some(seconds) = self.args.lost_after_seconds {
            tuning.healing.lost_after = Duration::from_secs(seconds.into());
        }
        if let Some(seconds) = self.args.lifecycle_day_seconds {
            let day_ms = 1000 * u64::from(seconds.max(1));
            tuning.lifecycle = node::LifecyclePace { interval: std::time::Duration::from_secs(1), day_ms };
        }
        tuning
    }

    fn cluster_file(&self, region: &str, node: &node::Node) -> ClusterFile {
        ClusterFile {
            version: cluster_file::VERSION,
            cluster: node.cluster().to_string(),
            region: region.to_owned(),
            access_key: self.given.access_key.clone(),
            secret_key: self.given.secret_key.clone(),
            root_changes: 0,
            nodes: vec![ClusterNode {
                id: node.id().0,
                pid: std::process::id(),
                s3: self.addresses.s3.to_string(),
                admin: self.addresses.admin.to_string(),
                cluster: self.addresses.cluster.to_string(),
                data: self.data.to_owned(),
                disks: self.disks.iter().map(|disk| disk.directory.clone()).collect(),
            }],
        }
    }
}

/// The three ports of a node.
struct Ports {
    s3: TcpListener,
    admin: TcpListener,
    cluster: TcpListener,
    addresses: Addresses,
}

#[derive(Clone, Copy)]
struct Addresses {
    s3: SocketAddr,
    admin: SocketAddr,
    cluster: SocketAddr,
}

impl Ports {
    async fn take(args: &ServerArgs) -> Result<Ports, Failure> {
        let s3 = listener::bind(args.s3, "--s3").await?;
        let admin = listener::bind(args.admin, "--admin").await?;
        let cluster = listener::bind(args.cluster, "--cluster").await?;
        let address_of = |listener: &TcpListener| listener.local_addr().context(|| "a port has no address".into());
        let addresses = Addresses { s3: address_of(&s3)?, admin: address_of(&admin)?, cluster: address_of(&cluster)? };
        Ok(Ports { s3, admin, cluster, addresses })
    }
}

/// The S3 gateway over the node's client.
fn s3_service(
    args: &ServerArgs,
    region: &str,
    env: &base::Env,
    node: &Arc<node::Node>,
    meter: S3Meter,
) -> gateway_s3::S3Service {
    let asked = Arc::clone(node);
    let options = gateway_s3::S3Options {
        domain: args.s3_domain.clone(),
        region: region.to_owned(),
        clock: Arc::clone(&env.clock),
        random: Arc::clone(&env.random),
        ready: Arc::new(move || asked.ready()),
        meter,
    };
    gateway_s3::service(node.client(), options)
}

/// A node as its admin port shows it.
struct Running {
    node: Arc<node::Node>,
    net: Arc<RealNet>,
    s3_meter: S3Meter,
    gate: Gate,
    advertise: String,
    region: String,
}

impl AdminNode for Running {
    fn ready(&self) -> bool {
        self.node.ready()
    }
    fn metrics_text(&self) -> String {
        self.node.metrics_text_with(&|registry| self.s3_meter.register(registry))
    }
    fn report(&self) -> base::env::BoxFuture<Report> {
        let node = Arc::clone(&self.node);
        Box::pin(async move { node.cluster_status().await.into() })
    }
    fn events(&self) -> base::env::BoxFuture<Vec<EventView>> {
        let node = Arc::clone(&self.node);
        Box::pin(async move { node.cluster_events().await.into_iter().map(EventView::from).collect() })
    }
    fn client(&self) -> client::Client {
        self.node.client()
    }
    fn root(&self) -> Option<RootUser> {
        self.node.client().map().root().map(RootUser::from)
    }
    fn metadata_backup(&self) -> tokio::sync::mpsc::Receiver<bytes::Bytes> {
        let (out, pieces) = tokio::sync::mpsc::channel(2);
        let node = Arc::clone(&self.node);
        tokio::spawn(async move { node.backup(out).await });
        pieces
    }
    fn gate(&self) -> (&Gate, &str) {
        (&self.gate, &self.advertise)
    }
}

fn disk_args(args: &ServerArgs, data: &Path) -> Result<Vec<DiskArg>, Failure> {
    if args.disks.is_empty() {
        return Ok(vec![DiskArg { directory: data.join("disk0"), size_bytes_max: None }]);
    }
    let mut disks: Vec<DiskArg> = Vec::with_capacity(args.disks.len());
    for disk in &args.disks {
        let directory = absolute(&disk.directory)?;
        if directory == data {
            return Err(Failure(format!(
                "--disk {} is the node's own directory; give it a directory of its own, for example {}",
                directory.display(),
                data.join("disk0").display()
            )));
        }
        if disks.iter().any(|earlier| earlier.directory == directory) {
            return Err(Failure(format!("--disk {} is given twice", directory.display())));
        }
        disks.push(DiskArg { directory, size_bytes_max: disk.size_bytes_max });
    }
    Ok(disks)
}

fn disk_specs(disks: &[DiskArg], opened: Vec<Arc<dyn Disk>>) -> Vec<node::DiskSpec> {
    let spec = |(arg, disk): (&DiskArg, Arc<dyn Disk>)| node::DiskSpec {
        disk,
        size_bytes_max: arg.size_bytes_max,
        label: arg.directory.display().to_string(),
    };
    disks.iter().zip(opened).map(spec).collect()
}

fn announce(addresses: Addresses, https: bool, origin: Origin, root: &Credentials, data: &Path, region: &str) {
    if origin == Origin::Made {
        credentials::show_once(root, data, addresses.s3, region, https);
    }
    let scheme = if https { "https" } else { "http" };
    println!(
        "S3 on {scheme}://{}, administration on http://{}, data in {}",
        addresses.s3,
        addresses.admin,
        data.display()
    );
    println!("`henge status --data {}` says how safe the data is", data.display());
}

fn open_directory(directory: &Path, flag: &str, buffers: &Arc<BufferPool>) -> Result<Arc<dyn Disk>, Failure> {
    let disk = RealDisk::open_or_create(directory)
        .context(|| format!("{flag} {} cannot be used as a directory", directory.display()))?;
    Ok(Arc::new(disk.with_buffers(Arc::clone(buffers))))
}

/// Without symbolic links where it exists already, so that one directory has one name.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize()
        .or_else(|_| std::path::absolute(path))
        .context(|| format!("{} is no usable path", path.display()))
}

/// Gives the memory of buffers back that a burst of large requests needed.
async fn age_buffers(env: base::Env) {
    loop {
        env.sleep(BUFFER_AGE).await;
        env.buffers.age();
    }
}

/// As many open files as this process may have: each connection and each volume is one.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read or fill the structure that they are given.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            // When it is refused, the limit stays what it was.
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
