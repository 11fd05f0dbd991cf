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
use crate::listener;
use crate::local_cluster::{self, is_member};
use crate::processes::{self, Lifetime, Running, ServerSpec};
use crate::signals::Signals;

const DEFAULT_BASE_PORT: u16 = 9000;

/// Ports of neighbouring nodes are this far apart.
const PORTS_PER_NODE: u16 = 10;

/// Enough to play with; more would only share one machine.
const NODES_MAX: u32 = 9;

/// How long `start` waits for a node to serve that runs already: with too few others it does not.
const START_PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);

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
    let unusable = || format!("--data {} cannot be used as a directory", data.display());
    let disk = RealDisk::open_or_create(data).context(unusable)?;
    let data = data.canonicalize().context(unusable)?;
    let _only_one = disk.lock().context(|| format!("another `henge dev` runs on {}", data.display()))?;
    let earlier = ClusterFile::read(&data)?;
    earlier.iter().try_for_each(|cluster| check_is_dev(cluster, &data))?;
    let base_port = choose_base_port(base_port, earlier.as_ref(), &data)?;
    check_nothing_runs(earlier.as_ref(), &data)?;
    let members: Vec<u32> = (1..=NODES_MAX).filter(|id| is_member(&directory_of(*id, &data))).collect();
    if let Some(last) = members.last().filter(|last| **last > nodes) {
        return Err(Failure(format!(
            "the cluster in {} has a node {last}; use --nodes {last} or more",
            data.display()
        )));
    }
    let mut signals = Signals::new()?;
    let mut children = Vec::new();
    let started = tokio::select! {
        biased;
        () = signals.next() => Err(Failure("stopped before it was ready".into())),
        started = start_all(nodes, &members, &data, base_port, &mut children) => started,
    };
    if let Err(failure) = started {
        for (_, child) in &mut children {
            // It may have ended already.
            let _ = child.kill().and_then(|()| child.wait());
        }
        return Err(failure);
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
    println!("try: henge dev kill|start|pause|resume|stop NODE --data {}; Ctrl-C stops the cluster", data.display());
    println!("ready");
    watch_until_signal(&mut children, &mut signals, &data).await?;
    stop_all(&data, children).await
}

/// Each node of a dev cluster has its place below the cluster's directory. A server's own directory has a file of
/// addresses as well, and that server is nothing to kill or to start another in the place of.
fn check_is_dev(cluster: &ClusterFile, data: &Path) -> Result<(), Failure> {
    match cluster.nodes.iter().find(|node| node.data != directory_of(node.id, data)) {
        None => Ok(()),
        Some(_) => Err(Failure(format!(
            "{} belongs to a node that was started by `henge server`, and `henge dev` keeps away from it",
            data.display()
        ))),
    }
}

fn check_nothing_runs(earlier: Option<&ClusterFile>, data: &Path) -> Result<(), Failure> {
    let mut nodes_before = earlier.iter().flat_map(|cluster| &cluster.nodes);
    match nodes_before.find(|node| running(node).is_some()) {
        None => Ok(()),
        Some(node) => Err(Failure(format!(
            "node {} of this cluster runs already (process {}); stop it with `henge dev stop {} --data {}`",
            node.id,
            node.pid,
            node.id,
            data.display()
        ))),
    }
}

/// First those who are members already, all at once, because one alone may not be enough to serve; then the new ones,
/// one after the other. `children` has all that were started, also when it fails.
async fn start_all(
    nodes: u32,
    members: &[u32],
    data: &Path,
    base_port: u16,
    children: &mut Vec<(u32, Child)>,
) -> Result<(), Failure> {
    let spec = |id| spec_of(id, data, base_port, Lifetime::WithParent);
    for id in 1..=nodes {
        let spec = spec(id)?;
        for address in [spec.s3, spec.admin, spec.cluster] {
            // Taken and let go: a port in use is found here, where the flag that changes it is known.
            drop(listener::bind(address, "--base-port").await?);
        }
    }
    for id in members {
        children.push((*id, processes::spawn_server(&spec(*id)?)?));
    }
    for (id, child) in children.iter_mut() {
        record(data, *id, processes::wait_ready(child, &spec(*id)?).await?)?;
    }
    for id in (1..=nodes).filter(|id| !members.contains(id)) {
        let mut spec = spec(id)?;
        if !children.is_empty() {
            let cluster = ClusterFile::read(data)?.expect("a node was recorded");
            spec.join = Some(local_cluster::invite(&cluster).await?);
        }
        let child = processes::spawn_server(&spec)?;
        children.push((id, child));
        let (_, child) = children.last_mut().expect("it was just pushed");
        record(data, id, processes::wait_ready(child, &spec).await?)?;
    }
    Ok(())
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
        data: directory_of(id, data),
        s3: address(first),
        admin: address(first + 1),
        cluster: address(first + 2),
        log: log_of(id, data),
        lifetime,
        join: None,
    })
}

fn directory_of(id: u32, data: &Path) -> PathBuf {
    data.join(format!("node{id}"))
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
    local_cluster::add_node(&mut cluster, id, node_file);
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
    let (data, cluster, nodes) = find(args)?;
    let base_port = choose_base_port(None, Some(&cluster), &data)?;
    // All at once: one alone may not be enough to serve.
    let mut children = Vec::new();
    for node in &nodes {
        if running(node).is_some() {
            return Err(Failure(format!("node {} runs already (process {})", node.id, node.pid)));
        }
        processes::wait_if_dying(node.pid).await?;
        let mut spec = spec_of(node.id, &data, base_port, Lifetime::OnItsOwn)?;
        let others = cluster.nodes.iter().any(|other| other.id != node.id && is_member(&other.data));
        if !is_member(&spec.data) && others {
            // Its directory is gone: in its place comes a new member.
            spec.join = Some(local_cluster::invite(&cluster).await?);
        }
        children.push((node.id, processes::spawn_server(&spec)?, spec));
    }
    for (id, mut child, spec) in children {
        let (file, ready) = processes::wait_started(&mut child, &spec, START_PATIENCE).await?;
        if let Err(failure) = record(&data, id, file) {
            // What is not part of the cluster must not stay on its addresses.
            let _ = child.kill().and_then(|()| child.wait());
            return Err(failure);
        }
        let state = if ready { "is ready" } else { "runs, and serves as soon as enough of the others do" };
        println!("node {id} {state} (process {})", child.id());
    }
    Ok(ExitCode::SUCCESS)
}

async fn stop(args: &DevNode) -> Result<ExitCode, Failure> {
    let running = find_running(args)?;
    for (_, process) in &running {
        ask_to_stop(process)?;
    }
    for (id, process) in &running {
        process.wait_gone().await?;
        println!("node {id} has stopped");
    }
    Ok(ExitCode::SUCCESS)
}

async fn kill(args: &DevNode) -> Result<ExitCode, Failure> {
    let running = find_running(args)?;
    for (_, process) in &running {
        process.signal(libc::SIGKILL)?;
    }
    for (id, process) in &running {
        process.wait_gone().await?;
        println!("node {id} was killed (process {})", process.pid());
    }
    Ok(ExitCode::SUCCESS)
}

fn signal_running(args: &DevNode, signal: libc::c_int, done: &str) -> Result<ExitCode, Failure> {
    for (id, process) in find_running(args)? {
        process.signal(signal)?;
        println!("node {id} is {done}");
    }
    Ok(ExitCode::SUCCESS)
}

fn find(args: &DevNode) -> Result<(PathBuf, ClusterFile, Vec<ClusterNode>), Failure> {
    let none =
        || format!("{} holds no dev cluster; make one with `henge dev --nodes 3 --data DIR`", args.data.display());
    let data = args.data.canonicalize().context(none)?;
    let cluster = ClusterFile::read(&data)?.ok_or_else(|| Failure(none()))?;
    check_is_dev(&cluster, &data)?;
    let mut nodes: Vec<ClusterNode> = Vec::new();
    for id in &args.nodes {
        let Some(node) = cluster.node(*id) else {
            let ids: Vec<String> = cluster.nodes.iter().map(|node| node.id.to_string()).collect();
            return Err(Failure(format!("the cluster has no node {id}, only {}", ids.join(", "))));
        };
        nodes.push(node.clone());
    }
    nodes.dedup_by_key(|node| node.id);
    Ok((data, cluster, nodes))
}

/// All of the nodes asked for, or none.
fn find_running(args: &DevNode) -> Result<Vec<(u32, Running)>, Failure> {
    let (_, _, nodes) = find(args)?;
    let found = nodes.iter().map(|node| {
        let running = running(node).map(|running| (node.id, running));
        running.ok_or_else(|| {
            let (id, data) = (node.id, args.data.display());
            Failure(format!("node {id} does not run; start it with `henge dev start {id} --data {data}`"))
        })
    });
    found.collect()
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
