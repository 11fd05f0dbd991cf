//! Running nodes: one of a cluster, a whole cluster to play with, and a demonstration.

use clap::{Args, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

use super::values::{parse_disk, parse_host_port, parse_locality};

#[derive(Args, Debug, Clone)]
#[command(after_help = SERVER_HELP)]
pub struct ServerArgs {
    /// Directory of the node: its identity and credentials, and its data where no --disk is given
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Directory on a disk to store data in, and how much of it to use (for example /mnt/a=500GiB); may be repeated
    #[arg(long = "disk", value_name = "DIR[=SIZE]", value_parser = parse_disk)]
    pub disks: Vec<DiskArg>,
    /// Where the node stands, so that copies are kept apart, for example region=eu,zone=a,rack=7
    #[arg(long, value_name = "region=R,zone=Z,rack=K", default_value = "", hide_default_value = true, value_parser = parse_locality)]
    pub locality: String,
    /// Address under which other nodes reach this one [default: the cluster address]
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_host_port)]
    pub advertise: Option<String>,
    /// Join the cluster of the member with this cluster address; the token is in HENGE_JOIN_TOKEN or --token-file
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_host_port)]
    pub join: Option<String>,
    /// File that holds the join token
    #[arg(long, value_name = "FILE", requires = "join")]
    pub token_file: Option<PathBuf>,
    /// Address for S3 (port 0: any free one)
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9000")]
    pub s3: SocketAddr,
    /// Address for health, metrics, status and administration
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9001")]
    pub admin: SocketAddr,
    /// Address for other nodes
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9002")]
    pub cluster: SocketAddr,
    /// On a network that nobody else can read or alter: let chunks travel unencrypted between this node and those that were
    /// started with this, too. Everything else stays encrypted, and all nodes still prove who they are
    #[arg(long, env = "HENGE_CLUSTER_BULK_PLAINTEXT", value_parser = clap::builder::BoolishValueParser::new())]
    pub cluster_bulk_plaintext: bool,
    /// Also answer for buckets as host names below NAME (virtual-hosted style)
    #[arg(long, value_name = "NAME")]
    pub s3_domain: Option<String>,
    /// Region that clients sign their requests for
    #[arg(long, value_name = "NAME", default_value = "us-east-1")]
    pub region: String,
    /// Certificate chain (PEM) to serve S3 over HTTPS with
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Program that stops another node for good, asked before a silent node is given up: PROGRAM NODE ADDRESS GENERATION.
    /// Exit code 0: the node is known to be off
    #[arg(long, value_name = "PROGRAM")]
    pub fence_command: Option<PathBuf>,
    /// For tests: a silent node is given up after so many seconds
    #[arg(long, value_name = "SECONDS", env = "HENGE_DEBUG_LOST_AFTER_S", hide = true)]
    pub lost_after_seconds: Option<u32>,
    /// For tests: lifecycle rules take so many seconds for a day, and look every second
    #[arg(long, value_name = "SECONDS", env = "HENGE_DEBUG_LIFECYCLE_DAY_S", hide = true)]
    pub lifecycle_day_seconds: Option<u32>,
}

const SERVER_HELP: &str = "\
Root credentials come from HENGE_ROOT_USER and HENGE_ROOT_PASSWORD, or are made at the first start and kept in
DIR/credentials, which `AWS_SHARED_CREDENTIALS_FILE=DIR/credentials aws ...` understands. After `henge root set-secret`
neither counts any more: the cluster knows them, and DIR/credentials is rewritten.

A node that joins a cluster needs a token once, from `henge token create` on a member: in HENGE_JOIN_TOKEN or in a file.
Other nodes reach this one at its cluster address: give one that they can reach, or --advertise.

What the node says of itself goes to standard error; RUST_LOG=debug says more.";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskArg {
    pub directory: PathBuf,
    pub size_bytes_max: Option<u64>,
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct DevArgs {
    #[command(subcommand)]
    pub action: Option<DevAction>,
    /// How many nodes, 1 to 9: the first founds the cluster, the others join it
    #[arg(long, value_name = "N", required = true, value_parser = clap::value_parser!(u32).range(1..=9))]
    pub nodes: Option<u32>,
    /// Directory of the cluster; running again on it is the same cluster on the same ports
    #[arg(long, value_name = "DIR", required = true)]
    pub data: Option<PathBuf>,
    /// Node i serves S3 on this port + 10 (i - 1), administration on the next, the cluster on the one after
    /// [default: 9000, or what the cluster was made with]
    #[arg(long, value_name = "PORT")]
    pub base_port: Option<u16>,
}

#[derive(Subcommand, Debug, Clone)]
pub enum DevAction {
    /// Start nodes that were stopped or killed
    Start(DevNode),
    /// Stop nodes in good order (SIGTERM)
    Stop(DevNode),
    /// Kill nodes (SIGKILL)
    Kill(DevNode),
    /// Freeze nodes (SIGSTOP)
    Pause(DevNode),
    /// Let frozen nodes go on (SIGCONT)
    Resume(DevNode),
}

#[derive(Args, Debug, Clone)]
pub struct DevNode {
    /// Numbers of the nodes, from 1
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<u32>,
    /// Directory of the cluster
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
}

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Files to store; generated data when there are none
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
}
