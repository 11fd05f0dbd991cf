//! `henge dev`: a whole cluster on this machine, each node a child process that can be killed, paused and started.
//!
//! `DIR/cluster.json` is the only state: which node is which process, and where. A dead child stays dead until somebody
//! asks for it.

use base::env::Disk;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};

use crate::cli::{DevAction, DevArgs, DevNode};
use crate::cluster_file::{ClusterFile, ClusterNode};
use crate::env::RealDisk;
use crate::failure::{Context, Failure};
use crate::processes::{self, Lifetime, Running, ServerSpec};
use crate::signals::Signals;

const DEFAULT_BASE_PORT: u16 = 9000;

/// Ports of neighbouring nodes are this far apart.
const PORTS_PER_NODE: u16 = 10;

/// How often the children are looked at.
const WATCH_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

pub async fn run(args: DevArgs) -> Result<ExitCode, Failure> {
    match args.action {
        None => {
            let nodes = args.nodes.expect("clap requires it without a subcommand");
            let data = args.data.expect("clap requires it without a subcommand");
            supervise(nodes, &data, args.base_port).await
        }
        Some(DevAction::Start(node)) => start(&node).await,
        Some(DevAction::Stop(node)) => stop(&node).await,
        Some(DevAction::Kill(node)) => kill(&node).await,
        Some(DevAction::Pause(node)) => signal_running(&node, libc::SIGSTOP, "paused"),
        Some(DevAction::Resume(node)) => signal_running(&node, libc::SIGCONT, "resumed"),
    }
}

/// Runs the cluster until Ctrl-C.
async fn supervise(nodes: u32, data: &Path, base_port: Option<u16>) -> Result<ExitCode, Failure> {
    if nodes != 1 {
        return Err(Failure(format!("this version of henge runs one node, not {nodes}; use --nodes 1")));
    }
    let unusable = || format!("--data {} cannot be used as a directory", data.display());
    let disk = RealDisk::open_or_create(data).context(unusable)?;
    let data = data.canonicalize().context(unusable)?;
    let _only_one = disk.lock().context(|| format!("another `henge dev` runs on {}", data.display()))?;
    let earlier = ClusterFile::read(&data)?;
    let base_port = choose_base_port(base_port, earlier.as_ref(), &data)?;
    let mut nodes_before = earlier.iter().flat_map(|cluster| &cluster.nodes);
    if let Some(node) = nodes_before.find(|node| running(node).is_some()) {
        return Err(Failure(format!(
            "node {} of this cluster runs already (process {}); stop it with `henge dev stop {} --data {}`",
            node.id,
            node.pid,
            node.id,
            data.display()
        )));
    }
    let mut signals = Signals::new()?;
    let mut children = Vec::new();
    for id in 1..=nodes {
        let spec = spec_of(id, &data, base_port, Lifetime::WithParent)?;
        let mut child = processes::spawn_server(&spec)?;
        let started = tokio::select! {
            biased;
            () = signals.next() => Err(Failure("stopped before it was ready".into())),
            ready = processes::wait_ready(&mut child, &spec) => ready,
        };
        let cluster = match started {
            Ok(cluster) => cluster,
            Err(failure) => {
                // It may have ended already.
                let _ = child.kill().and_then(|()| child.wait());
                return Err(failure);
            }
        };
        record(&data, id, cluster)?;
        children.push((id, child));
    }
    let cluster = ClusterFile::read(&data)?.expect("it was just written");
    for node in &cluster.nodes {
        println!(
            "node {}: S3 on http://{}, administration on http://{}, log in {}",
            node.id,
            node.s3,
            node.admin,
            log_of(node.id, &data).display()
        );
    }
    println!("addresses and credentials are in {}", ClusterFile::path_in(&data).display());
    println!("try: henge dev kill|start|pause|resume 1 --data {}; Ctrl-C stops the cluster", data.display());
    println!("ready");
    watch_until_signal(&mut children, &mut signals, &data).await?;
    stop_all(&data, children).await
}

fn choose_base_port(given: Option<u16>, earlier: Option<&ClusterFile>, data: &Path) -> Result<u16, Failure> {
    let first = earlier.and_then(|cluster| cluster.node(1));
    let known = first.and_then(|node| node.s3.parse::<SocketAddr>().ok()).map(|address| address.port());
    match (given, known) {
        (Some(given), Some(known)) if given != known => Err(Failure(format!(
            "the cluster in {} was made with --base-port {known}; use that, or another directory",
            data.display()
        ))),
        (given, known) => Ok(given.or(known).unwrap_or(DEFAULT_BASE_PORT)),
    }
}

fn spec_of(id: u32, data: &Path, base_port: u16, lifetime: Lifetime) -> Result<ServerSpec, Failure> {
    let offset = u16::try_from(id - 1).ok().and_then(|index| index.checked_mul(PORTS_PER_NODE));
    let first =
        offset.and_then(|offset| base_port.checked_add(offset)).filter(|first| *first > 0 && *first < u16::MAX - 1);
    let first = first.ok_or_else(|| Failure(format!("--base-port {base_port} leaves no ports for node {id}")))?;
    let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(ServerSpec {
        data: data.join(format!("node{id}")),
        s3: address(first),
        admin: address(first + 1),
        cluster: address(first + 2),
        log: log_of(id, data),
        lifetime,
    })
}

fn log_of(id: u32, data: &Path) -> PathBuf {
    data.join(format!("node{id}.log"))
}

/// Puts what a started node says of itself into the cluster's file.
fn record(data: &Path, id: u32, node_file: ClusterFile) -> Result<(), Failure> {
    // Two commands may start two nodes at once: one after the other reads, changes and replaces the file.
    let guard = data.join("cluster.lock");
    let cannot = || format!("{} cannot be locked", guard.display());
    let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&guard).context(cannot)?;
    lock.lock().context(cannot)?;
    let mut cluster = ClusterFile::read(data)?.unwrap_or_else(|| ClusterFile { nodes: vec![], ..node_file.clone() });
    if cluster.cluster != node_file.cluster {
        return Err(Failure(format!(
            "node {id} belongs to cluster {}, and {} to cluster {}; give each cluster its own directory",
            node_file.cluster,
            data.display(),
            cluster.cluster
        )));
    }
    // The node knows itself as the first of its own file.
    let started = node_file.nodes.into_iter().next().map(|node| ClusterNode { id, ..node });
    cluster.nodes.retain(|node| node.id != id);
    cluster.nodes.extend(started);
    cluster.nodes.sort_by_key(|node| node.id);
    cluster.access_key = node_file.access_key;
    cluster.secret_key = node_file.secret_key;
    cluster.region = node_file.region;
    cluster.write(data)
}

/// Says when a child ends; never starts it again.
async fn watch_until_signal(
    children: &mut Vec<(u32, Child)>,
    signals: &mut Signals,
    data: &Path,
) -> Result<(), Failure> {
    loop {
        tokio::select! {
            biased;
            () = signals.next() => return Ok(()),
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
        let mut running = Vec::new();
        for (id, mut child) in children.drain(..) {
            match child.try_wait().context(|| format!("node {id} cannot be watched"))? {
                None => running.push((id, child)),
                Some(status) => println!(
                    "node {id} ended ({status}); start it again with `henge dev start {id} --data {}`",
                    data.display()
                ),
            }
        }
        *children = running;
    }
}

/// Stops all nodes, also those that `henge dev start` has started since.
async fn stop_all(data: &Path, mut children: Vec<(u32, Child)>) -> Result<ExitCode, Failure> {
    println!("stopping");
    let cluster = ClusterFile::read(data)?;
    let nodes = cluster.map(|cluster| cluster.nodes).unwrap_or_default();
    let running: Vec<Running> = nodes.iter().filter_map(running).collect();
    for process in &running {
        ask_to_stop(process)?;
    }
    for process in &running {
        if process.wait_gone().await.is_err() {
            process.signal(libc::SIGKILL)?;
            process.wait_gone().await?;
        }
    }
    for (id, child) in &mut children {
        child.wait().context(|| format!("node {id} cannot be waited for"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn running(node: &ClusterNode) -> Option<Running> {
    Running::find(node.pid, &node.data)
}

fn ask_to_stop(process: &Running) -> Result<(), Failure> {
    process.signal(libc::SIGTERM)?;
    // A paused process acts on it only when it goes on.
    process.signal(libc::SIGCONT)
}

async fn start(args: &DevNode) -> Result<ExitCode, Failure> {
    let (data, cluster, node) = find(args)?;
    if running(&node).is_some() {
        return Err(Failure(format!("node {} runs already (process {})", node.id, node.pid)));
    }
    processes::wait_if_dying(node.pid).await?;
    let base_port = choose_base_port(None, Some(&cluster), &data)?;
    let spec = spec_of(node.id, &data, base_port, Lifetime::OnItsOwn)?;
    let mut child = processes::spawn_server(&spec)?;
    let started = processes::wait_ready(&mut child, &spec).await?;
    record(&data, node.id, started)?;
    println!("node {} is ready (process {})", node.id, child.id());
    Ok(ExitCode::SUCCESS)
}

async fn stop(args: &DevNode) -> Result<ExitCode, Failure> {
    let process = find_running(args)?;
    ask_to_stop(&process)?;
    process.wait_gone().await?;
    println!("node {} has stopped", args.node);
    Ok(ExitCode::SUCCESS)
}

async fn kill(args: &DevNode) -> Result<ExitCode, Failure> {
    let process = find_running(args)?;
    process.signal(libc::SIGKILL)?;
    process.wait_gone().await?;
    println!("node {} was killed (process {})", args.node, process.pid());
    Ok(ExitCode::SUCCESS)
}

fn signal_running(args: &DevNode, signal: libc::c_int, done: &str) -> Result<ExitCode, Failure> {
    find_running(args)?.signal(signal)?;
    println!("node {} is {done}", args.node);
    Ok(ExitCode::SUCCESS)
}

fn find(args: &DevNode) -> Result<(PathBuf, ClusterFile, ClusterNode), Failure> {
    let none =
        || format!("{} holds no dev cluster; make one with `henge dev --nodes 1 --data DIR`", args.data.display());
    let data = args.data.canonicalize().context(none)?;
    let cluster = ClusterFile::read(&data)?.ok_or_else(|| Failure(none()))?;
    let Some(node) = cluster.node(args.node).cloned() else {
        let ids: Vec<String> = cluster.nodes.iter().map(|node| node.id.to_string()).collect();
        return Err(Failure(format!("the cluster has no node {}, only {}", args.node, ids.join(", "))));
    };
    Ok((data, cluster, node))
}

fn find_running(args: &DevNode) -> Result<Running, Failure> {
    let (_, _, node) = find(args)?;
    running(&node).ok_or_else(|| {
        let (id, data) = (node.id, args.data.display());
        Failure(format!("node {id} does not run; start it with `henge dev start {id} --data {data}`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_from_the_base_port() {
        let spec = spec_of(3, Path::new("/d"), 9000, Lifetime::OnItsOwn).unwrap();
        assert_eq!((spec.s3.port(), spec.admin.port(), spec.cluster.port()), (9020, 9021, 9022));
        assert_eq!(spec.data, Path::new("/d/node3"));
        for base in [0, 65534, 65535] {
            assert!(spec_of(1, Path::new("/d"), base, Lifetime::OnItsOwn).is_err(), "{base}");
        }
        assert!(spec_of(7000, Path::new("/d"), 9000, Lifetime::OnItsOwn).is_err());
    }
}
