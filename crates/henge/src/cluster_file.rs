//! `cluster.json`: what scripts and client commands need to reach a cluster on this machine.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::credentials::Credentials;
use crate::failure::{Context, Failure};
use crate::private_file;
use crate::root_user::RootUser;

/// Scripts depend on the names and shapes of all fields.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct ClusterFile {
    pub version: u32,
    /// UUID of the cluster.
    pub cluster: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    /// How often a command has set the root user; absent: never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub root_changes: u64,
    pub nodes: Vec<ClusterNode>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ClusterNode {
    pub id: u32,
    pub pid: u32,
    /// HOST:PORT, as the next two.
    pub s3: String,
    pub admin: String,
    pub cluster: String,
    pub data: PathBuf,
    pub disks: Vec<PathBuf>,
}

/// The version that this binary writes.
pub const VERSION: u32 = 1;

impl fmt::Debug for ClusterFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterFile")
            .field("cluster", &self.cluster)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

impl ClusterFile {
    pub fn path_in(directory: &Path) -> PathBuf {
        directory.join("cluster.json")
    }

    /// `None` when the directory has none. The file of a whole cluster was written when a node was started: each
    /// running node's own follows the root user.
    pub fn read(directory: &Path) -> Result<Option<ClusterFile>, Failure> {
        let Some(mut file) = ClusterFile::read_alone(directory)? else { return Ok(None) };
        let elsewhere: Vec<PathBuf> =
            file.nodes.iter().map(|node| node.data.clone()).filter(|data| data != directory).collect();
        for data in elsewhere {
            // A node whose directory is gone says nothing.
            let root = ClusterFile::read_alone(&data).ok().flatten().filter(|own| own.cluster == file.cluster);
            if let Some(root) = root.map(|own| own.root()).filter(|root| root.changes > file.root_changes) {
                file = file.with_root(&root);
            }
        }
        Ok(Some(file))
    }

    fn read_alone(directory: &Path) -> Result<Option<ClusterFile>, Failure> {
        let path = ClusterFile::path_in(directory);
        let Some(text) = private_file::read(&path).context(|| format!("{} cannot be read", path.display()))? else {
            return Ok(None);
        };
        let file: ClusterFile =
            serde_json::from_str(&text).context(|| format!("{} is not a cluster file", path.display()))?;
        if file.version != VERSION {
            return Err(Failure(format!(
                "{} has version {}, and this henge knows version {VERSION}; use the henge that wrote it",
                path.display(),
                file.version
            )));
        }
        Ok(Some(file))
    }

    /// Replaces the directory's file, atomically and for its owner only.
    pub fn write(&self, directory: &Path) -> Result<(), Failure> {
        let path = ClusterFile::path_in(directory);
        let mut text = serde_json::to_string(self).context(|| "cluster.json cannot be encoded".into())?;
        text.push('\n');
        private_file::replace(&path, text.as_bytes()).context(|| format!("{} cannot be written", path.display()))
    }

    pub fn credentials(&self) -> Credentials {
        Credentials { access_key: self.access_key.clone(), secret_key: self.secret_key.clone() }
    }

    pub fn root(&self) -> RootUser {
        RootUser { credentials: self.credentials(), changes: self.root_changes }
    }

    #[must_use]
    pub fn with_root(self, root: &RootUser) -> ClusterFile {
        let Credentials { access_key, secret_key } = root.credentials.clone();
        ClusterFile { access_key, secret_key, root_changes: root.changes, ..self }
    }

    pub fn node(&self, id: u32) -> Option<&ClusterNode> {
        self.nodes.iter().find(|node| node.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::ScratchDir;

    #[test]
    fn has_the_shape_that_scripts_depend_on() {
        let node = ClusterNode {
            id: 1,
            pid: 2,
            s3: "127.0.0.1:9000".into(),
            admin: "127.0.0.1:9001".into(),
            cluster: "127.0.0.1:9002".into(),
            data: "/d/node1".into(),
            disks: vec!["/d/node1/disk0".into()],
        };
        let file = ClusterFile {
            version: VERSION,
            cluster: "c".into(),
            region: "us-east-1".into(),
            access_key: "a".into(),
            secret_key: "s".into(),
            root_changes: 0,
            nodes: vec![node],
        };
        let directory = ScratchDir::new("cluster-file");
        assert_eq!(ClusterFile::read(directory.path()).unwrap(), None);
        file.write(directory.path()).unwrap();
        assert_eq!(ClusterFile::read(directory.path()).unwrap(), Some(file));
        let text = std::fs::read_to_string(ClusterFile::path_in(directory.path())).unwrap();
        assert_eq!(
            text.trim(),
            r#"{"version":1,"cluster":"c","region":"us-east-1","access_key":"a","secret_key":"s","nodes":[{"id":1,"pid":2,"s3":"127.0.0.1:9000","admin":"127.0.0.1:9001","cluster":"127.0.0.1:9002","data":"/d/node1","disks":["/d/node1/disk0"]}]}"#
        );
    }

    #[test]
    fn the_file_of_a_whole_cluster_goes_by_the_node_that_heard_last_of_the_root_user() {
        let directory = ScratchDir::new("cluster-root");
        let node = |id: u32| ClusterNode {
            id,
            pid: 2,
            s3: "127.0.0.1:9000".into(),
            admin: "127.0.0.1:9001".into(),
            cluster: "127.0.0.1:9002".into(),
            data: directory.path().join(format!("node{id}")),
            disks: vec![],
        };
        let root = |secret: &str, changes| {
            let credentials = Credentials { access_key: "root".into(), secret_key: secret.into() };
            RootUser { credentials, changes }
        };
        let whole = ClusterFile {
            version: VERSION,
            cluster: "c".into(),
            region: "us-east-1".into(),
            access_key: "root".into(),
            secret_key: "first".into(),
            root_changes: 0,
            nodes: vec![node(1), node(2), node(3)],
        };
        whole.write(directory.path()).unwrap();
        for (id, secret, changes) in [(1, "second", 1), (2, "third", 2)] {
            let data = directory.path().join(format!("node{id}"));
            std::fs::create_dir(&data).unwrap();
            let own = ClusterFile { nodes: vec![node(id)], ..whole.clone() };
            own.with_root(&root(secret, changes)).write(&data).unwrap();
        }
        assert_eq!(ClusterFile::read(directory.path()).unwrap().unwrap().root(), root("third", 2));
    }
}
