//! `henge bench`: measures the disk or a running server, and checks afterwards what the server acknowledged.

mod ack_log;
mod disk;
mod engine;
mod histogram;
mod load;
mod mixed;
mod payload;
mod verify;
mod windows;

use std::process::ExitCode;

use crate::cli::{BenchArgs, BenchWhat};
use crate::failure::Failure;

pub async fn run(args: BenchArgs) -> Result<ExitCode, Failure> {
    match args.what {
        BenchWhat::Disk(args) => disk::run(args).await,
        BenchWhat::Put(args) => load::put(args).await,
        BenchWhat::Get(args) => load::get(args).await,
        BenchWhat::Mixed(args) => mixed::run(args).await,
        BenchWhat::Verify(args) => verify::run(args).await,
    }
}
