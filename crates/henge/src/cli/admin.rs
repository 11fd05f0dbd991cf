//! What is asked of a running cluster.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

use super::values::{parse_copies, parse_host_port};
use crate::units::{parse_bytes, parse_duration};

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
