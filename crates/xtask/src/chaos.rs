//! `cargo xtask chaos`: real servers on this machine under real faults, with clients of every node, judged by what was
//! acknowledged.
//!
//! Installs nothing, and leaves nothing behind: what needs root happens in namespaces for mounts and networks that exist
//! only as long as this process and its children do. Whatever ends them (Ctrl-C, a panic, kill -9), the kernel takes the
//! mounts, loop devices and network devices with them. Children die with this process; its directory is removed by
//! itself or by the next run.

mod arena;
mod cluster;
mod disks;
mod filesystem;
mod image;
mod json;
mod load;
mod network;
mod nodes;
mod power;
mod processes;
mod random;
mod report;
mod switch;

use std::cell::{Cell, OnceCell};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arena::{Arena, Need};
use json::quote;
use processes::{Failure, Tried, fail, find_program, finish, tool};
use report::Figures;

pub const USAGE: &str = "\
usage: cargo xtask chaos [OPTIONS]

  --list          name the faults, and what each needs
  --only NAME     only this fault; may be repeated
  --gate          short versions of the faults that need no root: about 3 minutes
  --rounds N      instead of each fault's own number of rounds
  --seed N        for what is drawn at random [default: from the clock; printed]
  --binary FILE   the henge to try [default: built: as `cargo build` does for --gate, with --release otherwise]
  --json          one JSON line for each fault

Exit status: 0 everything holds, 1 something does not, 3 something was skipped and the rest holds.
With KEEP=1 in the environment the directories of the nodes are left for a look.";

struct Fault {
    name: &'static str,
    what: &'static str,
    needs: &'static [Need],
    run: fn(&Arena, &mut Figures) -> Result<(), Failure>,
    /// Part of the gate.
    gate: bool,
}

const COMPILER: &[Need] = &[Need::Program("cc")];
const NETWORK: &[Need] = &[Need::Root, Need::File("/dev/net/tun")];
const DISK: &[Need] =
    &[Need::Root, Need::File("/dev/fuse"), Need::File("/dev/loop-control"), Need::Program("mkfs.ext4")];
const XFS: &[Need] = &[
    Need::Root,
    Need::File("/dev/fuse"),
    Need::File("/dev/loop-control"),
    Need::FileSystem("xfs"),
    Need::Program("mkfs.xfs"),
];

const FAULTS: &[Fault] = &[
    Fault { name: "kill-each", what: "kill -9 of each node in turn", needs: &[], run: nodes::kill_each, gate: true },
    Fault {
        name: "kill-leaders",
        what: "kill -9 of the node that leads the objects' shard, 50 times",
        needs: &[],
        run: nodes::kill_leaders,
        gate: true,
    },
    Fault {
        name: "pause-leaders",
        what: "SIGSTOP of each kind of leader for 30 s, then its late writes",
        needs: &[],
        run: nodes::pause_leaders,
        gate: true,
    },
    Fault {
        name: "rolling-restart",
        what: "each node stopped in good order and started again",
        needs: &[],
        run: nodes::rolling_restart,
        gate: true,
    },
    Fault {
        name: "power-cycle",
        what: "kill -9 of all nodes at one moment",
        needs: &[],
        run: nodes::power_cycle,
        gate: true,
    },
    Fault {
        name: "flush-fails",
        what: "one node's flushes fail",
        needs: COMPILER,
        run: nodes::flush_fails,
        gate: true,
    },
    Fault {
        name: "clock-jumps",
        what: "wall clocks jump by minutes and days, of each node and of all",
        needs: COMPILER,
        run: nodes::clock_jumps,
        gate: true,
    },
    Fault {
        name: "cuts",
        what: "each node cut off both ways, deaf, mute",
        needs: NETWORK,
        run: network::cuts,
        gate: false,
    },
    Fault { name: "splits", what: "five nodes split 2 to 3", needs: NETWORK, run: network::splits, gate: false },
    Fault {
        name: "bridge",
        what: "one link of three cut: both ends still reach the third node",
        needs: NETWORK,
        run: network::bridge,
        gate: false,
    },
    Fault {
        name: "flapping",
        what: "one node's links come and go several times a second",
        needs: NETWORK,
        run: network::flapping,
        gate: false,
    },
    Fault {
        name: "bad-network",
        what: "delay, loss, duplicates and reordering on all links",
        needs: NETWORK,
        run: network::bad_network,
        gate: false,
    },
    Fault {
        name: "slow-link",
        what: "one node behind 1 MB/s and 50 ms",
        needs: NETWORK,
        run: network::slow_link,
        gate: false,
    },
    Fault {
        name: "power-cut-ext4",
        what: "200 power cuts on ext4: what was not flushed is lost, torn or kept at random",
        needs: DISK,
        run: power::cut_ext4,
        gate: false,
    },
    Fault { name: "power-cut-xfs", what: "50 power cuts on xfs", needs: XFS, run: power::cut_xfs, gate: false },
    Fault {
        name: "disk-full",
        what: "more data than fits: reads and deletes work, writes are refused",
        needs: DISK,
        run: disks::full,
        gate: false,
    },
    Fault {
        name: "disk-vanishes",
        what: "one node's disk answers nothing but errors, and comes back",
        needs: DISK,
        run: disks::vanishes,
        gate: false,
    },
    Fault {
        name: "disk-flush-fails",
        what: "the device under ext4 fails its flushes",
        needs: DISK,
        run: disks::flush_fails,
        gate: false,
    },
    Fault {
        name: "slow-disk",
        what: "one node's disk takes 50 ms a request",
        needs: DISK,
        run: disks::slow,
        gate: false,
    },
];

#[derive(Default)]
struct Options {
    list: bool,
    only: Vec<String>,
    gate: bool,
    rounds: Option<u64>,
    seed: Option<u64>,
    binary: Option<PathBuf>,
    json: bool,
}

/// Says inside the namespaces that they are there.
const INSIDE: &str = "HENGE_CHAOS_INSIDE";

/// Exit status when everything holds, when something does not, and when something was skipped and the rest holds.
pub const HOLDS: u8 = 0;
const FAILED: u8 = 1;
pub const SKIPPED: u8 = 3;

/// The exit status.
pub fn run(arguments: &[String]) -> u8 {
    let outcome = parse(arguments).and_then(|options| carry_out(options, arguments));
    outcome.unwrap_or_else(|failure| {
        eprintln!("xtask chaos: {failure}");
        FAILED
    })
}

fn parse(arguments: &[String]) -> Result<Options, Failure> {
    let mut options = Options::default();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().cloned().ok_or_else(|| Failure(format!("{word} needs a value\n\n{USAGE}")));
        let number = |text: String| text.parse::<u64>().tried(|| text);
        match word.as_str() {
            "--list" => options.list = true,
            "--gate" => options.gate = true,
            "--json" => options.json = true,
            "--only" => options.only.push(value()?),
            "--rounds" => options.rounds = Some(number(value()?)?),
            "--seed" => options.seed = Some(number(value()?)?),
            "--binary" => options.binary = Some(value()?.into()),
            "-h" | "--help" => return fail(USAGE),
            other => return fail(format!("unknown option {other}\n\n{USAGE}")),
        }
    }
    if let Some(unknown) = options.only.iter().find(|name| !FAULTS.iter().any(|fault| fault.name == **name)) {
        return fail(format!("there is no fault `{unknown}`; --list names them"));
    }
    Ok(options)
}

fn carry_out(options: Options, arguments: &[String]) -> Result<u8, Failure> {
    if options.list {
        for fault in FAULTS {
            println!("{:18} {}{}", fault.name, fault.what, if fault.gate { " (gate)" } else { "" });
        }
        return Ok(HOLDS);
    }
    let privileged = std::env::var_os(INSIDE).is_some();
    let henge = find_binary(&options)?;
    if !privileged && !options.gate && may_unshare() {
        return Err(enter_namespaces(&henge, arguments));
    }
    processes::catch_signals();
    if privileged {
        tool("ip link set lo up")?;
        tool("mount -t tmpfs none /run")?;
    }
    let seed = options.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64 % 1_000_000)
    });
    let arena = Arena {
        henge,
        work: make_work_directory()?,
        gate: options.gate,
        rounds: options.rounds,
        seed,
        privileged,
        shim: OnceCell::new(),
        keep: Cell::new(std::env::var_os("KEEP").is_some()),
    };
    let chosen = |fault: &&Fault| match options.only.as_slice() {
        [] => fault.gate || !options.gate,
        only => only.iter().any(|name| name == fault.name),
    };
    println!("== chaos: {} with seed {seed}", arena.henge.display());
    let mut tally = Tally::default();
    for fault in FAULTS.iter().filter(chosen) {
        tally.try_fault(fault, &arena, options.json);
        processes::check_interrupted()?;
    }
    println!("chaos: {} held, {} did not hold, {} skipped", tally.held, tally.failed, tally.skipped);
    Ok(match (tally.failed, tally.skipped) {
        (0, 0) => HOLDS,
        (0, _) => SKIPPED,
        _ => FAILED,
    })
}

#[derive(Default)]
struct Tally {
    held: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    fn try_fault(&mut self, fault: &Fault, arena: &Arena, json: bool) {
        if let Some(reason) = fault.needs.iter().find_map(|need| arena.lacks(*need)) {
            println!("SKIPPED {}: {reason}", fault.name);
            if json {
                println!("{{\"fault\":{},\"skipped\":{}}}", quote(fault.name), quote(&reason));
            }
            self.skipped += 1;
            return;
        }
        let began = Instant::now();
        let mut figures = Figures::default();
        if let Err(failure) = (fault.run)(arena, &mut figures) {
            figures.problem(failure.to_string());
        }
        let seconds = began.elapsed().as_secs_f64();
        let verdict = if figures.hold() { "holds" } else { "DOES NOT HOLD" };
        println!("{} {verdict} ({seconds:.0} s): {}", fault.name, figures.line());
        figures.notes.iter().for_each(|note| println!("  note: {note}"));
        figures.problems.iter().for_each(|problem| println!("  problem: {problem}"));
        if json {
            println!("{}", figures.json(fault.name, seconds));
        }
        if figures.hold() {
            self.held += 1;
            if !arena.keep.get() {
                // All faults together leave forty gigabytes. What cannot be removed goes with the whole.
                let _ = std::fs::remove_dir_all(arena.work.join(fault.name));
            }
        } else {
            self.failed += 1;
            if processes::check_interrupted().is_ok() {
                arena.keep.set(true);
                println!(
                    "  the logs of its nodes are in {}, until the next run",
                    arena.work.join(fault.name).display()
                );
            }
        }
    }
}

fn find_binary(options: &Options) -> Result<PathBuf, Failure> {
    let given = options.binary.clone().or_else(|| std::env::var_os("HENGE").map(PathBuf::from));
    let binary = match given {
        Some(given) => given,
        None => build(options.gate)?,
    };
    binary.canonicalize().tried(|| binary.display().to_string())
}

fn build(gate: bool) -> Result<PathBuf, Failure> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--package", "henge"]);
    if !gate {
        cargo.arg("--release");
    }
    let built = finish(&mut cargo)?;
    if built.status != 0 {
        return fail(format!("henge does not compile: {}", built.stderr));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(target.join(if gate { "debug" } else { "release" }).join("henge"))
}

/// Whether this process may have namespaces of its own, and there is what is needed to set them up.
fn may_unshare() -> bool {
    let there = ["unshare", "nsenter", "ip", "mount"].iter().all(|name| find_program(name).is_some());
    let mut attempt = Command::new("unshare");
    attempt.args(["--mount", "--net", "sh", "-c", "mount -t tmpfs none /run"]);
    there && finish(&mut attempt).is_ok_and(|finished| finished.status == 0)
}

/// Becomes the same command inside of new namespaces. Returns only if that fails.
fn enter_namespaces(henge: &Path, arguments: &[String]) -> Failure {
    let Ok(own) = std::env::current_exe() else { return Failure("this program cannot be found".into()) };
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net"]).arg(own).arg("chaos").args(arguments);
    Failure(format!("unshare: {}", command.env(INSIDE, "1").env("HENGE", henge).exec()))
}

/// Makes this run's directory and removes those of runs that have ended without doing so.
fn make_work_directory() -> Result<PathBuf, Failure> {
    let all = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from).join("chaos");
    std::fs::create_dir_all(&all).tried(|| format!("{}", all.display()))?;
    let all = all.canonicalize().tried(|| format!("{}", all.display()))?;
    for entry in std::fs::read_dir(&all).tried(|| format!("{}", all.display()))?.flatten() {
        let alive = entry.file_name().to_str().is_none_or(|pid| Path::new("/proc").join(pid).exists());
        if !alive && std::env::var_os("KEEP").is_none() {
            std::fs::remove_dir_all(entry.path()).tried(|| format!("{}", entry.path().display()))?;
        }
    }
    let own = all.join(std::process::id().to_string());
    std::fs::create_dir_all(&own).tried(|| format!("{}", own.display()))?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn faults_have_names_of_their_own_and_the_gate_needs_no_root() {
        let names: BTreeSet<&str> = FAULTS.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), FAULTS.len());
        assert!(FAULTS.iter().filter(|fault| fault.gate).all(|fault| !fault.needs.contains(&Need::Root)));
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let options = parse(&words("--only kill-each --rounds 7 --json")).ok().unwrap();
        assert_eq!((options.only, options.rounds, options.json), (vec!["kill-each".to_owned()], Some(7), true));
        for wrong in ["--only nothing", "--rounds", "--rounds x", "kill-each"] {
            assert!(parse(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
