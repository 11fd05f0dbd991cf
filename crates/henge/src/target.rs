//! Where client commands find the server they talk to, and the credentials they show it.

use std::path::Path;

use crate::cli::{S3TargetArgs, TargetArgs};
use crate::cluster_file::ClusterFile;
use crate::credentials::{self, Credentials};
use crate::failure::Failure;

/// What is known of the server.
pub struct Target {
    pub admin: String,
    pub s3: String,
    pub region: String,
    pub credentials: Option<Credentials>,
}

impl Target {
    pub fn find(args: &TargetArgs) -> Result<Target, Failure> {
        let cluster = args.data.as_deref().map(read_cluster).transpose()?;
        let node = cluster.as_ref().and_then(|cluster| cluster.nodes.first());
        let credentials = match credentials::from_environment()? {
            Some(credentials) => Some(credentials),
            None => cluster.as_ref().map(ClusterFile::credentials),
        };
        Ok(Target {
            admin: args.admin.clone().or(node.map(|node| node.admin.clone())).unwrap_or("127.0.0.1:9001".into()),
            s3: node.map_or("127.0.0.1:9000".into(), |node| node.s3.clone()),
            region: cluster.as_ref().map_or("us-east-1".into(), |cluster| cluster.region.clone()),
            credentials,
        })
    }

    pub fn find_s3(args: &S3TargetArgs) -> Result<Target, Failure> {
        let mut target = Target::find(&args.target)?;
        target.s3 = args.s3.clone().unwrap_or(target.s3);
        target.region = args.region.clone().unwrap_or(target.region);
        Ok(target)
    }

    /// The credentials, for commands that cannot do without.
    pub fn credentials(&self) -> Result<Credentials, Failure> {
        self.credentials.clone().ok_or_else(|| {
            Failure(format!(
                "no root credentials: give --data DIR of a node on this machine, or set {} and {}",
                credentials::USER_VARIABLE,
                credentials::PASSWORD_VARIABLE
            ))
        })
    }
}

fn read_cluster(directory: &Path) -> Result<ClusterFile, Failure> {
    let cluster = ClusterFile::read(directory)?;
    let cluster = cluster.filter(|cluster| !cluster.nodes.is_empty());
    cluster.ok_or_else(|| {
        let path = ClusterFile::path_in(directory);
        Failure(format!("{} does not exist: has a node been started on this directory?", path.display()))
    })
}
