//! `henge server`: one node, from its directories to its ports.
//!
//! The order matters: ports are taken before anything is written, so that a wrong address changes nothing;
//! `cluster.json` is replaced before anybody is told `ready`; S3 is served last and stopped first.

use base::env::Disk;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::admin::{Admin, AdminNode};
use crate::cli::{DiskArg, ServerArgs};
use crate::cluster_file::{self, ClusterFile, ClusterNode};
use crate::credentials::{self, Credentials, Origin};
use crate::env::{FIRST_NODE, RealDisk, real_env};
use crate::failure::{Context, Failure};
use crate::listener;
use crate::predecessor;
use crate::report::Report;
use crate::signals::Signals;

/// Runs the node until it is told to stop.
pub async fn run(args: ServerArgs) -> Result<ExitCode, Failure> {
    raise_file_limit();
    let data = absolute(&args.data)?;
    let data_disk = open_directory(&data, "--data")?;
    let ports = Ports::take(&args).await?;
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(listener::tls_acceptor(certificate, key)?),
        _ => None,
    };
    let (env, _net) = real_env(FIRST_NODE, tokio::runtime::Handle::current());
    let (root, origin) = credentials::load_or_make(&data, &*env.random)?;
    let token = credentials::load_or_make_monitoring_token(&data, &*env.random)?;
    let (stop, stopping) = watch::channel(false);
    let addresses = ports.addresses;
    if !addresses.admin.ip().is_loopback() {
        tracing::warn!(
            "--admin {}: root credentials travel there unencrypted; keep it within a trusted network",
            addresses.admin
        );
    }

    let admin = Admin::new(root.clone(), &token, addresses.admin.ip().is_loopback());
    let admin_service = hyper_util::service::TowerToHyperService::new(admin.clone().router());
    let admin_task = tokio::spawn(listener::serve(ports.admin, None, admin_service, stopping.clone()));

    let disks = disk_args(&args, &data)?;
    let config = node_config(&args, env.clone(), data_disk, &disks, &root, addresses)?;
    for disk in config.disks.iter().map(|spec| &spec.disk).chain([&config.data]) {
        predecessor::wait_for_lock(&**disk).await;
    }
    let node = node::Node::start(config).await.map_err(|error| Failure(error.to_string()))?;
    let node = Arc::new(node);
    let https = tls.is_some();
    cluster_file(&args, &root, &node, addresses, &data, &disks).write(&data)?;
    admin.attach(Arc::new(Shown(Arc::clone(&node))));
    let s3_task = tokio::spawn(listener::serve(ports.s3, tls, s3_service(&args, &env, &node), stopping));
    announce(addresses, https, origin, &root, &data, &args.region);

    let mut signals = Signals::new()?;
    signals.next().await;
    println!("stopping: finishing requests (a second signal ends at once)");
    tokio::spawn(async move {
        signals.next().await;
        std::process::exit(1);
    });
    stop.send_replace(true);
    let (s3_end, admin_end) = tokio::join!(s3_task, admin_task);
    s3_end.and(admin_end).context(|| "a listener ended early".into())?;
    node.shutdown().await;
    drop(ports.cluster);
    Ok(ExitCode::SUCCESS)
}

/// The three ports of a node.
struct Ports {
    s3: TcpListener,
    admin: TcpListener,
    /// Taken, so that no other program sits there when the cluster grows; nobody listens on it in a cluster of one.
    cluster: std::os::fd::OwnedFd,
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
        let (cluster, cluster_address) = listener::reserve(args.cluster, "--cluster").await?;
        let address_of = |listener: &TcpListener| listener.local_addr().context(|| "a port has no address".into());
        let addresses = Addresses { s3: address_of(&s3)?, admin: address_of(&admin)?, cluster: cluster_address };
        Ok(Ports { s3, admin, cluster, addresses })
    }
}

/// The S3 gateway over the node's client.
fn s3_service(args: &ServerArgs, env: &base::Env, node: &Arc<node::Node>) -> gateway_s3::S3Service {
    let asked = Arc::clone(node);
    let options = gateway_s3::S3Options {
        domain: args.s3_domain.clone(),
        region: args.region.clone(),
        clock: Arc::clone(&env.clock),
        random: Arc::clone(&env.random),
        ready: Arc::new(move || asked.ready()),
    };
    gateway_s3::service(node.client(), options)
}

/// A node as its admin port shows it.
struct Shown(Arc<node::Node>);

impl AdminNode for Shown {
    fn ready(&self) -> bool {
        self.0.ready()
    }
    fn metrics_text(&self) -> String {
        self.0.metrics_text()
    }
    fn report(&self) -> Report {
        self.0.status().into()
    }
    fn client(&self) -> client::Client {
        self.0.client()
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

fn node_config(
    args: &ServerArgs,
    env: base::Env,
    data: Arc<dyn Disk>,
    disks: &[DiskArg],
    root: &Credentials,
    addresses: Addresses,
) -> Result<node::Config, Failure> {
    let open = |disk: &DiskArg| {
        Ok(node::DiskSpec {
            disk: open_directory(&disk.directory, "--disk")?,
            size_bytes_max: disk.size_bytes_max,
            label: disk.directory.display().to_string(),
        })
    };
    Ok(node::Config {
        env,
        data,
        disks: disks.iter().map(open).collect::<Result<_, Failure>>()?,
        locality: args.locality.clone(),
        advertise: args.advertise.clone().unwrap_or_else(|| addresses.cluster.to_string()),
        region: args.region.clone(),
        root: (root.access_key.clone(), root.secret_key.clone()),
    })
}

fn cluster_file(
    args: &ServerArgs,
    root: &Credentials,
    node: &node::Node,
    addresses: Addresses,
    data: &Path,
    disks: &[DiskArg],
) -> ClusterFile {
    ClusterFile {
        version: cluster_file::VERSION,
        cluster: node.cluster().to_string(),
        region: args.region.clone(),
        access_key: root.access_key.clone(),
        secret_key: root.secret_key.clone(),
        nodes: vec![ClusterNode {
            id: FIRST_NODE.0,
            pid: std::process::id(),
            s3: addresses.s3.to_string(),
            admin: addresses.admin.to_string(),
            cluster: addresses.cluster.to_string(),
            data: data.to_owned(),
            disks: disks.iter().map(|disk| disk.directory.clone()).collect(),
        }],
    }
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
    println!(
        "one node keeps one copy of everything; `henge status --data {}` says how safe the data is",
        data.display()
    );
}

fn open_directory(directory: &Path, flag: &str) -> Result<Arc<dyn Disk>, Failure> {
    let disk = RealDisk::open_or_create(directory)
        .context(|| format!("{flag} {} cannot be used as a directory", directory.display()))?;
    Ok(Arc::new(disk))
}

/// Without symbolic links where it exists already, so that one directory has one name.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize()
        .or_else(|_| std::path::absolute(path))
        .context(|| format!("{} is no usable path", path.display()))
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
