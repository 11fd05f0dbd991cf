//! Measuring and checking.

use clap::{Args, Subcommand};
use std::path::PathBuf;

use super::TargetArgs;
use super::values::parse_host_port;
use crate::units::{parse_bytes, parse_duration, parse_seconds};

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
