//! The directories that are looked at: which they are, whose, and what each disk says by itself.

use base::env::Disk;
use base::ids::{DiskId, NodeId};
use node::offline::NodeIdentity;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{DamagedWhat, InspectReport, StoreError};

use super::Findings;
use super::copies::Held;
use crate::cluster_file::ClusterFile;
use crate::env::RealDisk;
use crate::failure::{Context, Failure};
use crate::predecessor;

/// The directories behind the arguments.
#[derive(Default)]
pub struct Places {
    /// Nodes' own directories.
    pub homes: BTreeSet<PathBuf>,
    pub disks: BTreeSet<PathBuf>,
}

pub fn find_places(directories: &[PathBuf]) -> Result<Places, Failure> {
    let mut places = Places::default();
    for given in directories {
        let directory = given.canonicalize().context(|| format!("{} cannot be opened", given.display()))?;
        let is_home = directory.join("node").exists() || directory.join("generation").exists();
        let is_disk = directory.join("identity").exists() || directory.join("kv-manifest").exists();
        let cluster = ClusterFile::read(&directory)?;
        if !is_home && !is_disk && cluster.is_none() {
            return Err(Failure(format!(
                "{} is no directory of henge's: give a node's --data directory, a dev cluster's, or a --disk directory",
                given.display()
            )));
        }
        if is_home {
            places.homes.insert(directory.clone());
        }
        if is_disk {
            places.disks.insert(directory.clone());
        }
        for node in cluster.into_iter().flat_map(|cluster| cluster.nodes) {
            // The same directory may be given twice, under different names.
            let plain = |path: PathBuf| path.canonicalize().unwrap_or(path);
            places.homes.insert(plain(node.data));
            places.disks.extend(node.disks.into_iter().map(plain));
        }
        let default_disk = directory.join("disk0");
        if is_home && default_disk.is_dir() {
            places.disks.insert(default_disk);
        }
    }
    Ok(places)
}

/// A node's own directory. Its lock keeps the node from starting meanwhile.
pub struct Home {
    path: PathBuf,
    identity: Option<NodeIdentity>,
    _lock: Box<dyn Send + Sync>,
}

/// Verifies the nodes' own files.
pub async fn check_homes(homes: &BTreeSet<PathBuf>, findings: &mut Findings) -> Result<Vec<Home>, Failure> {
    let mut checked = Vec::new();
    for path in homes {
        let place = path.display().to_string();
        let disk = match RealDisk::open(path) {
            Ok(disk) => disk,
            Err(error) => {
                findings.add("identity", place, format!("the node's directory cannot be opened: {error}"));
                continue;
            }
        };
        predecessor::wait_for_lock(&disk).await;
        let lock = disk.lock().map_err(|error| running_or(path, &error))?;
        let identity = match node::offline::identity(&disk).await {
            Ok(Some(identity)) => Some(identity),
            Ok(None) => {
                findings.add("identity", place, "the node's identity is missing");
                None
            }
            Err(error) => {
                findings.add("identity", place, error.to_string());
                None
            }
        };
        checked.push(Home { path: path.clone(), identity, _lock: lock });
    }
    Ok(checked)
}

/// Refuses directories of several clusters, and copies of one node or disk: nothing could be said of them together.
pub fn check_one_cluster(homes: &[Home], disks: &[InspectedDisk]) -> Result<(), Failure> {
    let homes: Vec<_> = homes.iter().filter_map(|home| Some((home.path.as_path(), home.identity?))).collect();
    let of_homes = homes.iter().map(|(path, identity)| (identity.cluster, *path));
    let of_disks = disks.iter().map(|disk| (disk.report.identity.cluster, disk.path.as_path()));
    let mut all = of_homes.chain(of_disks);
    if let Some((one, here)) = all.next()
        && let Some((other, there)) = all.find(|(other, _)| *other != one)
    {
        return Err(Failure(format!(
            "{} belongs to cluster {one}, and {} to cluster {other}: check one cluster at a time",
            here.display(),
            there.display()
        )));
    }
    let mut nodes = BTreeMap::<NodeId, &Path>::new();
    for (path, identity) in homes {
        if let Some(other) = nodes.insert(identity.node, path) {
            return Err(twice(&format!("node {}", identity.node), other, path));
        }
    }
    let mut seen = BTreeMap::<DiskId, &Path>::new();
    for disk in disks {
        let id = disk.report.identity.disk;
        if let Some(other) = seen.insert(id, &disk.path) {
            return Err(twice(&format!("disk {id}"), other, &disk.path));
        }
    }
    Ok(())
}

fn twice(what: &str, one: &Path, other: &Path) -> Failure {
    Failure(format!(
        "{} and {} both are {what}: one is a copy of the other; give the one that the cluster uses",
        one.display(),
        other.display()
    ))
}

pub fn running_or(directory: &Path, error: &std::io::Error) -> Failure {
    let directory = directory.display();
    match error.kind() {
        std::io::ErrorKind::WouldBlock => Failure(format!("{directory} is in use: stop its node first")),
        _ => Failure(format!("{directory} cannot be locked: {error}")),
    }
}

pub struct InspectedDisk {
    pub path: PathBuf,
    pub disk: Arc<dyn Disk>,
    pub report: InspectReport,
    pub holds_metadata: bool,
}

/// `None`: nothing could be read of it, which is among the findings.
pub async fn inspect(path: &Path, findings: &mut Findings) -> Result<Option<InspectedDisk>, Failure> {
    let place = path.display().to_string();
    let disk: Arc<dyn Disk> = match RealDisk::open(path) {
        Ok(disk) => Arc::new(disk),
        Err(error) => {
            findings.add("store", place, format!("the disk's directory cannot be opened: {error}"));
            return Ok(None);
        }
    };
    predecessor::wait_for_lock(&*disk).await;
    let report = match store::inspect(Arc::clone(&disk)).await {
        Ok(report) => report,
        Err(StoreError::InUse) => return Err(Failure(format!("{place} is in use: stop its node first"))),
        Err(StoreError::NewerFormat { found, known }) => {
            return Err(Failure(format!("{place} has format {found}, this henge knows {known}: use a newer henge")));
        }
        Err(error) => {
            findings.add("identity", place, error.to_string());
            return Ok(None);
        }
    };
    findings.verified_bytes += report.verified_bytes;
    for damaged in &report.damaged {
        let at = format!("volume {}, byte {}: {}", damaged.volume, damaged.offset, damaged.detail);
        match damaged.what {
            DamagedWhat::Chunk(id) => findings.add("corrupt", &place, format!("chunk {id}: {at}")),
            DamagedWhat::Raft(group) => findings.add("log", &place, format!("log of group {group}: {at}")),
            DamagedWhat::Unknown { len_bytes } => {
                findings.add("store", &place, format!("{len_bytes} bytes that cannot be identified: {at}"));
            }
            DamagedWhat::MissingVolume => findings.add("store", &place, format!("a volume is missing: {at}")),
            DamagedWhat::Bookkeeping => findings.add("store", &place, format!("bookkeeping, no data lost: {at}")),
            DamagedWhat::Identity => findings.add("identity", &place, format!("one of two copies: {at}")),
        }
    }
    for (group, log) in &report.raft {
        if let Err(why) = log {
            findings.add("log", &place, format!("the log of group {group} cannot be trusted: {why}"));
        }
    }
    let holds_metadata = !report.raft.is_empty() || path.join("kv-manifest").exists();
    Ok(Some(InspectedDisk { path: path.to_owned(), disk, report, holds_metadata }))
}

/// What the disks hold together. `given`: how many there should be.
pub fn hold(disks: &[InspectedDisk], given: usize) -> Held {
    let mut held = Held { some_unreadable: disks.len() < given, ..Held::default() };
    for disk in disks {
        let id = disk.report.identity.disk;
        held.disks.insert(id, disk.path.display().to_string());
        for stat in &disk.report.chunks {
            held.chunks.entry(stat.id).or_default().push((id, *stat));
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::ClusterId;

    fn home(path: &str, cluster: u128, node: u32) -> Home {
        let (cluster, node) = (ClusterId(cluster), NodeId(node));
        let identity = Some(NodeIdentity { cluster, node, set_up: true, joined: false, recovered: false });
        Home { path: path.into(), identity, _lock: Box::new(()) }
    }

    #[test]
    fn several_clusters_and_copies_of_a_node_are_refused() {
        assert!(check_one_cluster(&[home("/a", 1, 1), home("/b", 1, 2)], &[]).is_ok());
        let two = check_one_cluster(&[home("/a", 1, 1), home("/b", 1, 1)], &[]).unwrap_err();
        assert!(two.0.contains("/a and /b both are node 1"), "{}", two.0);
        let two = check_one_cluster(&[home("/a", 1, 1), home("/b", 2, 1)], &[]).unwrap_err();
        assert!(two.0.contains("one cluster at a time"), "{}", two.0);
    }
}
