//! Where client commands find the server they talk to, and the credentials they show it.

use std::path::Path;

use crate::cli::{S3TargetArgs, TargetArgs};
use crate::cluster_file::ClusterFile;
use crate::credentials::{self, Credentials};
use crate::failure::Failure;
use crate::s3_client::S3Client;

/// What is known of the servers.
pub struct Target {
    /// HOST:PORT of each node; any of them answers for the cluster.
    pub admins: Vec<String>,
    pub s3: Vec<String>,
    pub region: String,
    pub credentials: Option<Credentials>,
}

impl Target {
    pub fn find(args: &TargetArgs) -> Result<Target, Failure> {
        let cluster = args.data.as_deref().map(read_cluster).transpose()?;
        let nodes = cluster.iter().flat_map(|cluster| &cluster.nodes);
        let admins: Vec<String> = match &args.admin {
            Some(admin) => vec![admin.clone()],
            None => nodes.clone().map(|node| node.admin.clone()).collect(),
        };
        let s3: Vec<String> = nodes.map(|node| node.s3.clone()).collect();
        let credentials = match credentials::from_environment()? {
            Some(credentials) => Some(credentials),
            None => cluster.as_ref().map(ClusterFile::credentials),
        };
        Ok(Target {
            admins: if admins.is_empty() { vec!["127.0.0.1:9001".into()] } else { admins },
            s3: if s3.is_empty() { vec!["127.0.0.1:9000".into()] } else { s3 },
            region: cluster.as_ref().map_or("us-east-1".into(), |cluster| cluster.region.clone()),
            credentials,
        })
    }

    pub fn find_s3(args: &S3TargetArgs) -> Result<Target, Failure> {
        let mut target = Target::find(&args.target)?;
        if !args.s3.is_empty() {
            target.s3 = args.s3.clone();
        }
        target.region = args.region.clone().unwrap_or(target.region);
        Ok(target)
    }

    /// A client that knows all nodes.
    pub fn s3_client(&self) -> Result<S3Client, Failure> {
        Ok(S3Client::new(&self.s3, &self.region, self.credentials()?))
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
