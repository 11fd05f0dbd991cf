//! What is done to the directories of stopped nodes, and with backups.

use clap::{Args, Subcommand};
use std::path::PathBuf;

use super::TargetArgs;

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
