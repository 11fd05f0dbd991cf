//! The binary: command line, configuration, the real `Env`, and the wiring of all rooms into one process.
//!
//! Knows: every room, and the operating system. Never knows: how any of them does its work.

#![cfg_attr(test, allow(clippy::unwrap_used))]
#![expect(
    clippy::disallowed_methods,
    reason = "this crate is what stands behind `Env`: the real clock, threads, files, sockets and tasks"
)]

mod admin;
mod admin_commands;
mod admission;
mod authority_command;
mod basic_auth;
mod bench;
mod cli;
mod cluster_file;
mod credentials;
mod demo;
mod dev;
mod env;
mod events;
mod failure;
mod fence_command;
mod fsck;
mod http_client;
mod join;
mod listener;
mod local_cluster;
mod membership;
mod memory;
mod metadata;
mod node_commands;
mod nodes;
mod paced;
mod predecessor;
mod private_file;
mod processes;
mod recover;
mod report;
mod root_command;
mod root_user;
mod s3_client;
mod scratch;
mod server;
mod signals;
mod target;
mod units;

use std::future::Future;
use std::process::ExitCode;

use cli::Command;
use failure::{Context, Failure};

/// See `docs/decisions/0008-speed.md`: glibc's took an eighth of the processor time of a small GET.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    small_pages();
    end_quietly_without_reader();
    let outcome = cli::parse().and_then(|cli| run(cli.command));
    outcome.unwrap_or_else(|failure| {
        eprintln!("henge: {failure}");
        ExitCode::FAILURE
    })
}

/// Huge pages would let each node hold 20 MiB more than it uses: the allocator asks for them (prctl(2)).
fn small_pages() {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes plain integers and changes how later page faults are served. Refused, nothing changes.
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}

/// `henge events | head -1`: whoever read what is printed has gone. Ends as a signal would (SIGPIPE itself stays ignored,
/// because sockets would raise it too).
fn end_quietly_without_reader() {
    const ENDED_BY_SIGPIPE: i32 = 128 + 13;
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let why = panic.payload().downcast_ref::<String>();
        if why.is_some_and(|why| why.starts_with("failed printing to stdout: Broken pipe")) {
            std::process::exit(ENDED_BY_SIGPIPE);
        }
        usual(panic);
    }));
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Server(args) => {
            log_to_stderr();
            on_runtime(server::run(args))
        }
        Command::Status(args) => on_runtime(admin_commands::status(args)),
        Command::Events(args) => on_runtime(events::run(args)),
        Command::Key(args) => on_runtime(admin_commands::key(args.action)),
        Command::Root(args) => on_runtime(root_command::run(args.action)),
        Command::Pool(args) => on_runtime(admin_commands::pool(args.action)),
        Command::Fence(args) => on_runtime(admin_commands::fence(args.action)),
        Command::Bucket(args) => on_runtime(admin_commands::bucket(args.action)),
        Command::Token(args) => on_runtime(node_commands::token(args.action)),
        Command::Node(args) => on_runtime(node_commands::node(args.action)),
        Command::Disk(args) => on_runtime(node_commands::disk(args.action)),
        Command::Dev(args) => on_runtime(dev::run(args)),
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Bench(args) => on_runtime(bench::run(args)),
        Command::Fsck(args) => on_runtime(fsck::run(args)),
        Command::Authority(args) => authority_command::run(args.action),
        Command::Metadata(args) => on_runtime(metadata::run(args.action)),
        Command::Recover(args) => on_runtime(recover::run(args)),
    }
}

fn on_runtime(work: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context(|| "the threads of the runtime cannot be started".into())?;
    let outcome = runtime.block_on(work);
    // What still runs in the background (an idle connection, a cut-off request) must not delay the end.
    runtime.shutdown_background();
    outcome
}

/// Logs go to standard error; `RUST_LOG` says how much.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
