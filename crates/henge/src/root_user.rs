//! The root user: who it is says the cluster map, once this node has one. What the node was given (environment or file)
//! counts until then, and for good only while no command has set the root user.
//!
//! `cluster.json`, and the credentials file where there is one, follow the map, so that commands on this machine go on.

use client::{Client, KeyRow};
use std::path::{Path, PathBuf};

use crate::cluster_file::ClusterFile;
use crate::credentials::{self, Credentials, Origin, PASSWORD_VARIABLE, USER_VARIABLE};
use crate::failure::Failure;

/// The root user as a node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RootUser {
    pub credentials: Credentials,
    /// How often a command has set it; 0: never.
    pub changes: u64,
}

impl From<&KeyRow> for RootUser {
    fn from(row: &KeyRow) -> RootUser {
        let credentials = Credentials { access_key: row.access_key.clone(), secret_key: row.secret_key.clone() };
        RootUser { credentials, changes: row.root_changes }
    }
}

impl RootUser {
    /// Before there is a map: what the node in `data` last heard, if a command had set it, else what it was given.
    pub fn at_start(data: &Path, given: &Credentials) -> Result<RootUser, Failure> {
        let heard = ClusterFile::read(data)?.map(|file| file.root()).filter(|root| root.changes > 0);
        Ok(heard.unwrap_or_else(|| RootUser { credentials: given.clone(), changes: 0 }))
    }
}

/// What a node keeps on its disk about the root user.
pub struct Follower {
    pub data: PathBuf,
    /// As it stands in the directory.
    pub file: ClusterFile,
    /// What the node was given when it started.
    pub given: (Credentials, Origin),
}

impl Follower {
    /// Follows the map for as long as the node runs.
    pub async fn follow(mut self, client: Client) {
        let mut map = client.map();
        // What was not written is tried again with the next map.
        let mut settled = None;
        loop {
            let root = map.root().map(RootUser::from);
            if let Some(root) = root.filter(|root| settled.as_ref() != Some(root)) {
                match self.adopt(&root) {
                    Ok(()) => settled = Some(root),
                    Err(failure) => tracing::error!("{failure}"),
                }
            }
            map = client.map_newer_than(map.version()).await;
        }
    }

    fn adopt(&mut self, root: &RootUser) -> Result<(), Failure> {
        if self.file.root() != *root {
            let file = self.file.clone().with_root(root);
            file.write(&self.data)?;
            self.file = file;
        }
        if root.changes == 0 {
            return Ok(());
        }
        let (given, origin) = &self.given;
        let path = credentials::file_of(&self.data);
        if *origin == Origin::Environment && *given != root.credentials {
            tracing::warn!(
                "{USER_VARIABLE} and {PASSWORD_VARIABLE} of this node are ignored: `henge root set-secret` has changed the root \
                 user; its credentials are in {}",
                ClusterFile::path_in(&self.data).display()
            );
        }
        if credentials::kept(&self.data)?.is_some_and(|kept| kept != root.credentials) {
            credentials::store(&self.data, &root.credentials)?;
            tracing::warn!(
                "{} was no longer what the root user has, and was replaced: `henge root set-secret` has changed it",
                path.display()
            );
        }
        Ok(())
    }
}
