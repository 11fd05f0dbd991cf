//! The command line: what can be asked, and the help that explains it.

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::membership::VOTERS;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::failure::Failure;
use crate::units::{parse_bytes, parse_duration, parse_seconds};

/// henge: one distributed storage system in one binary.
///
/// `henge demo` shows what it does; `henge server --data DIR` starts a complete object store, without configuration.
#[derive(Parser, Debug)]
#[command(name = "henge", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a node: an S3 object store that keeps its data in DIR
    Server(ServerArgs),
    /// Run a whole cluster on this machine to play with: kill, pause and restart its nodes
    Dev(DevArgs),
    /// See it work: three nodes; store files, kill a node, read them back through another, compare, heal
    Demo(DemoArgs),
    /// Say whether the data is safe, and what to do if not (exit: 0 safe, 2 at risk, 3 worse, 1 error)
    Status(StatusArgs),
    /// Show what happened in the cluster, as a timeline: suspected, fenced, elected, repaired, moved
    Events(EventsArgs),
    /// Make, list and delete access keys
    Key(KeyArgs),
    /// Change the root user's secret
    Root(RootArgs),
    /// Make, list and change buckets
    Bucket(BucketArgs),
    /// Make and list pools, which clients know as storage classes
    Pool(PoolArgs),
    /// Hand out fence tokens, with which a write proves that its sender still holds a lock
    Fence(FenceArgs),
    /// Make a token with which a new node may join the cluster
    Token(TokenArgs),
    /// List the cluster's nodes, drain one, remove one
    Node(NodeArgs),
    /// List the cluster's disks, drain one, remove one
    Disk(DiskArgs),
    /// Measure the disk or a running server, and check what it acknowledged
    Bench(BenchArgs),
    /// Check the directories of stopped nodes: is everything there that metadata names (exit: 0 clean, 2 damage)
    Fsck(FsckArgs),
    /// Give a stopped cluster another certificate authority, when the key of its own may be known to others
    Authority(AuthorityArgs),
    /// Keep the cluster's metadata in a file, and put it back when it is lost
    Metadata(MetadataArgs),
    /// Make a stopped node the only voter of its cluster, when the majority of voters is gone for good
    Recover(RecoverArgs),
}

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

/// How client commands find the node and prove who they are.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Which server")]
pub struct TargetArgs {
    /// Admin address of a node [default: that of --data, or 127.0.0.1:9001]
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_host_port)]
    pub admin: Option<String>,
    /// Directory of a node or dev cluster on this machine, for its addresses and root credentials
    /// [otherwise: HENGE_ROOT_USER and HENGE_ROOT_PASSWORD]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Only what happened in this time before the newest event (for example 10m)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub since: Option<std::time::Duration>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct KeyArgs {
    #[command(subcommand)]
    pub action: KeyAction,
}

#[derive(Subcommand, Debug)]
pub enum KeyAction {
    /// Make an access key; its secret is shown now and never again
    Create(KeyCreateArgs),
    /// List access keys
    List(ListArgs),
    /// Show or change the policy of an access key
    Policy(KeyPolicyArgs),
    /// Delete an access key by its name or key id
    Delete(NamedArgs),
}

#[derive(Args, Debug)]
pub struct KeyCreateArgs {
    pub name: String,
    /// What the key may do, as a policy in JSON; without one it may do everything with the buckets that it makes
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct KeyPolicyArgs {
    /// Name or key id
    pub name: String,
    /// Replace the policy by the one in FILE
    #[arg(long, value_name = "FILE", conflicts_with = "clear")]
    pub set: Option<PathBuf>,
    /// Take the policy away: the key may do everything with the buckets that it makes
    #[arg(long)]
    pub clear: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct RootArgs {
    #[command(subcommand)]
    pub action: RootAction,
}

#[derive(Subcommand, Debug)]
pub enum RootAction {
    /// Give the root user a new secret, on all nodes at once; it is shown now and never again. From then on the old one is
    /// refused, and what nodes are given when they start (HENGE_ROOT_USER, HENGE_ROOT_PASSWORD, DIR/credentials) does not
    /// count any more
    SetSecret(RootSetSecretArgs),
}

#[derive(Args, Debug)]
pub struct RootSetSecretArgs {
    /// Take the secret from the first line of FILE (`-`: standard input) instead of drawing one
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Change the access key, too [default: it stays]
    #[arg(long, value_name = "NAME")]
    pub access_key: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct BucketQuotaArgs {
    pub name: String,
    /// At most so many bytes, for example 500GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, conflicts_with = "none")]
    pub bytes: Option<u64>,
    /// At most so many objects (versions included)
    #[arg(long, value_name = "N", conflicts_with = "none")]
    pub objects: Option<u64>,
    /// Take the quota away
    #[arg(long)]
    pub none: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct BucketArgs {
    #[command(subcommand)]
    pub action: BucketAction,
}

#[derive(Subcommand, Debug)]
pub enum BucketAction {
    /// Make a bucket
    Create(NamedArgs),
    /// List buckets
    List(ListArgs),
    /// Change a bucket's settings
    Set(BucketSetArgs),
    /// Show or change how much a bucket may hold
    Quota(BucketQuotaArgs),
}

#[derive(Args, Debug)]
pub struct PoolArgs {
    #[command(subcommand)]
    pub action: PoolAction,
}

#[derive(Subcommand, Debug)]
pub enum PoolAction {
    /// Make a pool on all disks, with a number of copies of its own: objects are written to it with the header
    /// `x-amz-storage-class: CLASS`, or moved to it by lifecycle rules. It stays for ever
    Create(PoolCreateArgs),
    /// List pools
    List(ListArgs),
}

#[derive(Args, Debug)]
pub struct PoolCreateArgs {
    pub name: String,
    /// The storage class by which clients name it: capital letters, digits and underscores, for example COLD
    #[arg(long)]
    pub class: String,
    /// Copies of every object, on as many nodes: 2 or 3
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = parse_copies)]
    pub copies: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct FenceArgs {
    #[command(subcommand)]
    pub action: FenceAction,
}

#[derive(Subcommand, Debug)]
pub enum FenceAction {
    /// Hand out the next token for KEY, higher than all before: writes that carry the header
    /// `x-henge-fence: KEY:TOKEN` are refused once a write with a higher token of the same key has come
    Next(FenceNextArgs),
    /// Forget the highest token that BUCKET has seen under KEY, or set it: when somebody has written with one that nobody
    /// can exceed, or when the bucket has as many keys as it may. Writes that were refused as stale may be taken again
    Reset(FenceResetArgs),
}

#[derive(Args, Debug)]
pub struct FenceResetArgs {
    pub bucket: String,
    /// The name of the lock
    pub key: String,
    /// Writes with a lower token are refused from now on [default: none is]
    #[arg(long)]
    pub token: Option<u64>,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct FenceNextArgs {
    /// The name of the lock
    pub key: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub action: TokenAction,
}

#[derive(Subcommand, Debug)]
pub enum TokenAction {
    /// Make a token: one node may join with it, once; printed alone on the last line
    Create(TokenCreateArgs),
}

#[derive(Args, Debug)]
pub struct TokenCreateArgs {
    /// How long it may be used, for example 30m, 1h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub expires: std::time::Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(subcommand)]
    pub action: NodeAction,
}

#[derive(Subcommand, Debug)]
pub enum NodeAction {
    /// List the cluster's nodes
    List(NodeListArgs),
    /// Move all data off a node, which stays in the cluster; it takes data again when it is started anew, or with --undo
    Drain(DrainArgs),
    /// Remove a node: its data moves to others first, then it is gone for good
    Remove(NodeRemoveArgs),
}

#[derive(Args, Debug)]
pub struct DrainArgs {
    #[arg(value_name = "ID")]
    pub id: String,
    /// Take data again
    #[arg(long)]
    pub undo: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct DiskArgs {
    #[command(subcommand)]
    pub action: DiskAction,
}

#[derive(Subcommand, Debug)]
pub enum DiskAction {
    /// List the cluster's disks
    List(NodeListArgs),
    /// Move all data off a disk; ID is the beginning of its id. To replace a disk: drain it, wait, remove it, start the node
    /// without it
    Drain(DrainArgs),
    /// Forget a disk that holds nothing any more, or that has failed
    Remove(DiskRemoveArgs),
}

#[derive(Args, Debug)]
pub struct DiskRemoveArgs {
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct NodeListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct NodeRemoveArgs {
    #[arg(value_name = "ID")]
    pub id: u32,
    /// The node is silent and its disks will not come back: make its copies again from the others at once
    #[arg(long)]
    pub lost: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct NamedArgs {
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only this one
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("setting").required(true).multiple(true))]
pub struct BucketSetArgs {
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Whether overwritten and deleted objects stay as older versions
    #[arg(long, value_enum, group = "setting")]
    pub versioning: Option<VersioningArg>,
    /// Whether writes need a fence token (header x-henge-fence)
    #[arg(long, value_enum, group = "setting")]
    pub fence: Option<FenceArg>,
    /// What a write waits for: that all copies are flushed, in service or not; those in service; a majority; one
    #[arg(long, value_enum, group = "setting")]
    pub acknowledge: Option<AcknowledgeArg>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceArg {
    Required,
    Optional,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcknowledgeArg {
    AllStrict,
    All,
    Majority,
    One,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersioningArg {
    Enabled,
    Suspended,
}

#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: BenchWhat,
}

#[derive(Subcommand, Debug)]
pub enum BenchWhat {
    /// Measure the disk under a directory, through henge's own disk layer and through the chunk store's engine
    Disk(BenchDiskArgs),
    /// Store objects
    Put(BenchLoadArgs),
    /// Read objects (stored first), comparing every byte
    Get(BenchLoadArgs),
    /// Put, overwrite, get and delete, checking every answer
    Mixed(BenchLoadArgs),
    /// Read back all that an ack log names: is the last acknowledged state there (exit: 0 yes, 2 lost or wrong)
    Verify(BenchVerifyArgs),
}

#[derive(Args, Debug, Clone)]
pub struct BenchDiskArgs {
    /// Directory on the disk to measure; a private directory is made in it and removed
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub data: PathBuf,
    /// Bytes of a small write or read
    #[arg(long, value_name = "BYTES", default_value = "4KiB", value_parser = parse_bytes)]
    pub size: u64,
    /// Operations at once in the concurrent rows
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub concurrency: u32,
    /// Length of each row
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = parse_seconds)]
    pub seconds: f64,
    /// Have another process store this many chunks of `--size`, kill it, and time how long its disk takes to open
    #[arg(long, value_name = "N")]
    pub records: Option<u32>,
    /// Be that process
    #[arg(long, hide = true)]
    pub fill_until_killed: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug, Clone)]
pub struct BenchLoadArgs {
    /// Bytes of an object
    #[arg(long, value_name = "BYTES", default_value = "4KiB", value_parser = parse_bytes)]
    pub size: u64,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: u32,
    /// How long
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub seconds: f64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Append a line for each answer to FILE, for `henge bench verify`; the objects are then left in place
    #[arg(long, value_name = "FILE")]
    pub ack_log: Option<PathBuf>,
    /// Bucket to use; made when it is missing
    #[arg(long, value_name = "NAME", default_value = "henge-bench")]
    pub bucket: String,
    /// Leave the objects in place
    #[arg(long)]
    pub keep: bool,
    /// `put`: end after so many objects instead of a time, and leave them in place
    #[arg(long, value_name = "N")]
    pub objects: Option<u64>,
    /// `put`: spread the keys over so many folders (at most a million)
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub folders: u32,
    /// How long an answer may take before its outcome counts as unknown, for example 5s
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = parse_duration)]
    pub timeout: std::time::Duration,
    /// `mixed`: after an unknown outcome go on with the same key through another node. Right only where the cluster has
    /// voted out whoever does not answer within the timeout
    #[arg(long)]
    pub expect_fenced: bool,
    #[command(flatten)]
    pub target: S3TargetArgs,
}

#[derive(Args, Debug, Clone)]
pub struct BenchVerifyArgs {
    /// The ack log
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: S3TargetArgs,
}

#[derive(Args, Debug, Clone)]
pub struct S3TargetArgs {
    /// S3 address of a node; may be repeated, then all are used [default: those of --data, or 127.0.0.1:9000]
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_host_port, help_heading = "Which server")]
    pub s3: Vec<String>,
    /// Region to sign for [default: that of --data, or us-east-1]
    #[arg(long, value_name = "NAME", help_heading = "Which server")]
    pub region: Option<String>,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
#[command(after_help = FSCK_HELP)]
pub struct FsckArgs {
    /// The --data directory of every node, or of a dev cluster, and --disk directories outside of them
    #[arg(value_name = "DIR", required = true)]
    pub directories: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

const FSCK_HELP: &str = "\
Give the directories of all nodes of one cluster: what is committed, and whether a chunk has all its copies, no node can
tell alone. Of some nodes only, what was not seen is named in notes. Nothing is changed.

Kinds of findings: `lost` (no good copy is left), `degraded` (good copies are missing on disks that were given; the running
cluster makes them again), `corrupt` (a copy has other bytes), `placement` (two copies on one node), `metadata` and `log`
(rows or Raft logs are damaged, or replicas contradict each other), `store` and `identity` (the disk's own files).
Orphans (chunks that nothing names) and strays (copies that moved away) are counted; they are no damage.";

#[derive(Args, Debug)]
pub struct AuthorityArgs {
    #[command(subcommand)]
    pub action: AuthorityAction,
}

#[derive(Subcommand, Debug)]
pub enum AuthorityAction {
    /// Write a new certificate authority with its key to FILE
    Make(AuthorityMakeArgs),
    /// Put it in the place of a stopped node's; to be done on every node of the cluster
    Install(AuthorityInstallArgs),
}

#[derive(Args, Debug)]
pub struct AuthorityMakeArgs {
    /// A new file
    pub file: PathBuf,
}

#[derive(Args, Debug)]
pub struct AuthorityInstallArgs {
    pub file: PathBuf,
    /// The node's own directory
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
}

#[derive(Args, Debug)]
pub struct MetadataArgs {
    #[command(subcommand)]
    pub action: MetadataAction,
}

#[derive(Subcommand, Debug)]
pub enum MetadataAction {
    /// Write the metadata of the running cluster to FILE: which objects there are, and where their bytes lie; not the
    /// bytes themselves. It holds secrets
    Backup(MetadataBackupArgs),
    /// Read a backup through, and say what it holds
    Check(MetadataCheckArgs),
    /// Put a backup in the place of a stopped node's metadata; to be done on every node of the cluster
    Restore(MetadataRestoreArgs),
}

#[derive(Args, Debug)]
pub struct MetadataBackupArgs {
    /// A new file
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct MetadataCheckArgs {
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = RESTORE_HELP)]
pub struct MetadataRestoreArgs {
    pub file: PathBuf,
    /// The node's own directory
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// The first --disk that the node was started with, if any: it holds the metadata
    #[arg(long, value_name = "DIR")]
    pub disk: Option<PathBuf>,
    /// The metadata disk is another one than it was when the backup was taken; an empty one is formatted
    #[arg(long)]
    pub new_disk: bool,
    /// The cluster goes on under a generation above N: for restoring once more; the same on every node
    #[arg(long, value_name = "N")]
    pub above: Option<u32>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

const RESTORE_HELP: &str = "\
For when the metadata is lost on so many nodes that `henge recover` finds no survivor, or is wrong on all of them. Stop all
nodes, run this on each with the same file, and check them with `henge fsck` before they start: objects written since the
backup are not in it, and what was deleted or overwritten since has no bytes any more. What the nodes start to clean up
afterwards cannot be undone. A node that is left out is refused by the others until it is restored as well.";

#[derive(Args, Debug)]
#[command(after_help = RECOVER_HELP)]
pub struct RecoverArgs {
    /// The node's own directory
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// The first --disk that the node was started with, if any: it holds the metadata
    #[arg(long, value_name = "DIR")]
    pub disk: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

const RECOVER_HELP: &str = "\
What only the lost nodes had is lost: the last changes may be missing, so choose the survivor whose status was the newest.
The cluster goes on under a new generation. Nodes from before that turn up again are refused by it, and must be started
anew with an empty --data and a token.";

/// Parses the arguments of this process. Help and version are printed and end it; what cannot be understood is one
/// sentence.
pub fn parse() -> Result<Cli, Failure> {
    use clap::error::ErrorKind;
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // The whole help is the answer; the status says that nothing was done.
            eprint!("{}", error.render());
            std::process::exit(1)
        }
        _ => Failure(one_sentence(&error.render().to_string())),
    })
}

/// The first paragraph of clap's message, on one line.
fn one_sentence(rendered: &str) -> String {
    let paragraph: Vec<&str> = rendered.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let joined = paragraph.join(" ");
    let sentence = joined.strip_prefix("error: ").unwrap_or(&joined);
    let usage = rendered.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or("henge");
    let command: Vec<&str> =
        usage.split_whitespace().take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase())).collect();
    format!("{sentence}; see `{} --help`", command.join(" "))
}

/// `DIR` or `DIR=SIZE`. A directory with `=` in its name needs the size.
fn parse_disk(text: &str) -> Result<DiskArg, String> {
    let (directory, size) = match text.rsplit_once('=') {
        None => (text, None),
        Some((directory, size)) => (directory, Some(parse_bytes(size)?)),
    };
    if directory.is_empty() {
        return Err("the directory is missing".into());
    }
    Ok(DiskArg { directory: directory.into(), size_bytes_max: size })
}

fn parse_copies(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(0..=1) => Err("with fewer than 2 copies, every lost disk is lost data".into()),
        Ok(copies) if copies as usize > VOTERS => {
            Err(format!("at most {VOTERS}: as many as the metadata has, without which copies are of no use"))
        }
        Ok(copies) => Ok(copies),
        Err(_) => Err(format!("expected a number from 2 to {VOTERS}")),
    }
}

fn parse_host_port(text: &str) -> Result<String, String> {
    let valid = text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if valid { Ok(text.to_owned()) } else { Err("expected HOST:PORT".into()) }
}

fn parse_locality(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 3] = ["region", "zone", "rack"];
    let mut next = 0;
    for pair in text.split(',').filter(|_| !text.is_empty()) {
        let (level, name) = pair.split_once('=').ok_or("expected region=R,zone=Z,rack=K")?;
        let found = LEVELS.iter().position(|known| *known == level).ok_or("the levels are region, zone and rack")?;
        if found < next {
            return Err("name each level once, in the order region, zone, rack".into());
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(format!("the name of the {level} must consist of letters, digits, '-', '_' and '.'"));
        }
        next = found + 1;
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_that_scripts_depend_on() {
        let Command::Server(server) = Cli::try_parse_from(["henge", "server", "--data", "d"]).unwrap().command else {
            panic!("server");
        };
        assert_eq!(server.s3, "127.0.0.1:9000".parse().unwrap());
        assert_eq!(server.admin, "127.0.0.1:9001".parse().unwrap());
        assert_eq!(server.cluster, "127.0.0.1:9002".parse().unwrap());
        assert_eq!(server.region, "us-east-1");
    }

    #[test]
    fn mistakes_become_one_sentence() {
        for (args, expected) in [
            (vec!["henge", "server", "--data", "d", "--bogus"], "unexpected argument '--bogus' found"),
            (vec!["henge", "server"], "the following required arguments were not provided: --data <DIR>"),
            (vec!["henge", "server", "--data", "d", "--s3", "nowhere"], "invalid value 'nowhere'"),
            (vec!["henge", "server", "--data", "d", "--tls-cert", "c"], "--tls-key"),
            (vec!["henge", "server", "--data", "d", "--disk", "/a=lots"], "invalid value '/a=lots'"),
            (vec!["henge", "server", "--data", "d", "--locality", "planet=3"], "the levels are"),
            (vec!["henge", "dev", "--data", "d"], "--nodes <N>"),
            (vec!["henge", "dev", "kill", "one", "--data", "d"], "invalid value 'one'"),
            (vec!["henge", "pool", "create", "p", "--class", "P", "--copies", "4"], "as many as the metadata has"),
            (vec!["henge", "nonsense"], "unrecognized subcommand 'nonsense'"),
            (vec!["henge", "fsck"], "<DIR>"),
        ] {
            let error = Cli::try_parse_from(&args).expect_err(&format!("{args:?}"));
            let sentence = one_sentence(&error.render().to_string());
            assert!(sentence.contains(expected), "{args:?}: {sentence}");
            assert!(!sentence.contains('\n') && sentence.contains("--help`"), "{sentence}");
        }
    }

    #[test]
    fn disks_may_have_sizes() {
        let plain = DiskArg { directory: "/mnt/a".into(), size_bytes_max: None };
        assert_eq!(parse_disk("/mnt/a"), Ok(plain));
        let sized = DiskArg { directory: "/mnt/a".into(), size_bytes_max: Some(3 << 30) };
        assert_eq!(parse_disk("/mnt/a=3GiB"), Ok(sized));
        assert!(parse_disk("=3GiB").is_err());
    }
}
