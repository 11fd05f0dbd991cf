//! Faults of processes, which need no root: nodes that die, pause and restart, flushes that fail, clocks that jump.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arena::Arena;
use super::cluster::{Cluster, MAP_GROUP, OBJECTS_GROUP, Place};
use super::load::{self, Load, USUAL, Wish};
use super::processes::{Failure, Tried, fail, now_ms, sleep, wait_for};
use super::report::Figures;

/// Until a write succeeds again, whatever happened.
const SERVED_PATIENCE: Duration = Duration::from_secs(60);

/// Three nodes on loopback addresses, and clients of all of them.
fn three<'a>(arena: &'a Arena, fault: &str, wish: &Wish) -> Result<(Cluster<'a>, Load), Failure> {
    let folder = arena.folder(fault)?;
    let cluster = Cluster::found(arena, &folder, arena.local_places(&folder, 3)?)?;
    let load = Load::start(&cluster, &folder.join("acks.jsonl"), wish)?;
    Ok((cluster, load))
}

/// kill -9 of each node in turn.
pub fn kill_each(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let (mut cluster, mut load) = three(arena, "kill-each", &USUAL)?;
    let mut events = Vec::new();
    for _ in 0..arena.rounds(1, 5) {
        for number in cluster.numbers() {
            events.push(now_ms());
            figures.events += 1;
            cluster.kill(number);
            sleep(arena.time(2_000, 8_000))?;
            cluster.start(number)?;
            cluster.wait_ready(number)?;
            load.wait_served(now_ms(), SERVED_PATIENCE)?;
            sleep(arena.time(1_000, 10_000))?;
        }
    }
    load::conclude(cluster, load, &events, figures)
}

/// kill -9 of the node that leads the objects' shard, over and over. The gap is the time in which no write succeeds.
pub fn kill_leaders(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let (mut cluster, mut load) = three(arena, "kill-leaders", &USUAL)?;
    let (mut events, mut windows) = (Vec::new(), Vec::new());
    for _ in 0..arena.rounds(1, 50) {
        let leader = cluster.leader(OBJECTS_GROUP)?;
        let killed = now_ms();
        cluster.kill(leader);
        load.wait_served(killed, SERVED_PATIENCE)?;
        sleep(Duration::from_secs(3))?;
        // Only up to here: what the return of the node costs is measured by `kill-each`.
        windows.push((killed, now_ms()));
        events.push(killed);
        figures.events += 1;
        cluster.start(leader)?;
        cluster.wait_ready(leader)?;
        // Copies are still being made; but never are two nodes away at once.
        cluster.wait_all_up()?;
    }
    figures.gaps_ms = load::gaps(&load.acks()?, &windows);
    load::conclude(cluster, load, &[], figures)
}

/// kill -9 of all nodes at one moment.
pub fn power_cycle(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let (mut cluster, mut load) = three(arena, "power-cycle", &USUAL)?;
    let mut events = Vec::new();
    for _ in 0..arena.rounds(1, 5) {
        events.push(now_ms());
        figures.events += 1;
        cluster.kill_all();
        cluster.start_all()?;
        load.wait_served(now_ms(), SERVED_PATIENCE)?;
        sleep(arena.time(1_000, 10_000))?;
    }
    load::conclude(cluster, load, &events, figures)
}

/// SIGSTOP of each kind of leader, for longer than the cluster waits before it votes a node out. Clients go on with
/// their keys through other nodes meanwhile, so that a late write of the paused node would show as a wrong state.
pub fn pause_leaders(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let wish = Wish { fenced_after: Some(arena.time(3_000, 5_000)), ..USUAL };
    let (cluster, mut load) = three(arena, "pause-leaders", &wish)?;
    let mut events = Vec::new();
    for _ in 0..arena.rounds(1, 3) {
        for group in [MAP_GROUP, OBJECTS_GROUP] {
            let paused = cluster.leader(group)?;
            let witness = paused % cluster.len() + 1;
            let before = cluster.generation(paused, witness)?;
            events.push(now_ms());
            figures.events += 1;
            cluster.pause(paused);
            sleep(arena.time(6_000, 30_000))?;
            cluster.resume(paused);
            let fenced = || format!("a new generation of node {paused}, which was paused");
            wait_for(SERVED_PATIENCE, fenced, || {
                Ok((cluster.generation(paused, witness).unwrap_or(0) > before).then_some(()))
            })?;
            load.wait_served(now_ms(), SERVED_PATIENCE)?;
        }
    }
    load::conclude(cluster, load, &events, figures)?;
    figures.notes.push(format!("zombie writes {}", figures.wrong));
    Ok(())
}

/// Each node stopped in good order and started again, as for an upgrade.
pub fn rolling_restart(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let (mut cluster, mut load) = three(arena, "rolling-restart", &USUAL)?;
    let mut events = Vec::new();
    for _ in 0..arena.rounds(1, 3) {
        for number in cluster.numbers() {
            events.push(now_ms());
            figures.events += 1;
            cluster.stop(number)?;
            cluster.start(number)?;
            cluster.wait_ready(number)?;
            cluster.wait_safe()?;
            load.wait_served(now_ms(), SERVED_PATIENCE)?;
        }
    }
    let acks = load.acks()?;
    let refused = acks.iter().filter(|ack| ack.is_write && ack.result == "fail").count();
    let unknown = acks.iter().filter(|ack| ack.is_write && ack.result == "unknown").count();
    figures.notes.push(format!("{refused} writes refused, {unknown} of unknown outcome"));
    load::conclude(cluster, load, &events, figures)
}

/// What the shim in a node reads, see `shim.c`.
struct Control {
    file: File,
}

impl Control {
    /// Lets the node at `place` run with the shim.
    fn attach(arena: &Arena, place: &mut Place, folder: &Path, number: usize) -> Result<Control, Failure> {
        let path: PathBuf = folder.join(format!("control{number}"));
        let file = File::create(&path).tried(|| format!("{}", path.display()))?;
        let control = Control { file };
        control.set(0, false)?;
        place.environment.push(("LD_PRELOAD".into(), arena.shim()?.display().to_string()));
        place.environment.push(("CHAOS_CONTROL".into(), path.display().to_string()));
        Ok(control)
    }

    fn set(&self, clock_offset_seconds: i64, flushes_fail: bool) -> Result<(), Failure> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&clock_offset_seconds.to_ne_bytes());
        bytes[8..].copy_from_slice(&i64::from(flushes_fail).to_ne_bytes());
        self.file.write_all_at(&bytes, 0).tried(|| "the shim's control".into())
    }
}

/// Three nodes that run with the shim.
fn three_with_shims<'a>(arena: &'a Arena, fault: &str) -> Result<(Cluster<'a>, Vec<Control>), Failure> {
    let folder = arena.folder(fault)?;
    let mut places = arena.local_places(&folder, 3)?;
    let mut controls = Vec::new();
    for (index, place) in places.iter_mut().enumerate() {
        controls.push(Control::attach(arena, place, &folder, index + 1)?);
    }
    Ok((Cluster::found(arena, &folder, places)?, controls))
}

/// One node's flushes fail: it must not acknowledge any more, the others go on, and `status` must not say `safe`. It
/// comes back after a restart on a disk that works again.
pub fn flush_fails(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let (mut cluster, controls) = three_with_shims(arena, "flush-fails")?;
    let log = arena.folder("flush-fails")?.join("acks.jsonl");
    let mut load = Load::start(&cluster, &log, &USUAL)?;
    let mut events = Vec::new();
    let numbers: Vec<usize> = cluster.numbers().take(arena.rounds(1, 3) as usize).collect();
    for number in numbers {
        let failed = now_ms();
        events.push(failed);
        figures.events += 1;
        controls[number - 1].set(0, true)?;
        load.wait_served(failed + 1_000, SERVED_PATIENCE)?;
        sleep(arena.time(3_000, 8_000))?;
        let witness = number % cluster.len() + 1;
        let told = || format!("a status other than `safe` while node {number} cannot flush");
        wait_for(SERVED_PATIENCE, told, || {
            let status = cluster.status(witness)?;
            Ok(status.and_then(|status| (status.text("verdict") != Some("safe")).then_some(())))
        })?;
        // The disk works again, but the node must not believe that: nothing may have become safe.
        controls[number - 1].set(0, false)?;
        sleep(arena.time(2_000, 5_000))?;
        let status = cluster.status(witness)?;
        if status.is_some_and(|status| status.text("verdict") == Some("safe")) {
            return fail(format!("node {number} retried a failed flush into success"));
        }
        cluster.kill(number);
        cluster.start(number)?;
        cluster.wait_ready(number)?;
        cluster.wait_safe()?;
    }
    load::conclude(cluster, load, &events, figures)
}

/// Jumps of one node's wall clock, in seconds. Beyond 15 minutes S3 refuses requests whose date is so far off: clients
/// of that node must be told, and the others go on.
const JUMPS_S: [i64; 6] = [300, -300, 86_400, -86_400, 40 * 86_400, 0];

/// Wall clocks jump, of each node in turn, then of all: no leader changes for that, no write is lost.
pub fn clock_jumps(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let (mut cluster, controls) = three_with_shims(arena, "clock-jumps")?;
    let log = arena.folder("clock-jumps")?.join("acks.jsonl");
    let mut load = Load::start(&cluster, &log, &USUAL)?;
    let mut events = Vec::new();
    let terms_before = terms(&cluster)?;
    for number in cluster.numbers() {
        for jump in JUMPS_S {
            events.push(now_ms());
            figures.events += 1;
            controls[number - 1].set(jump, false)?;
            sleep(arena.time(400, 2_000))?;
        }
    }
    for jump in [120, -120, 0] {
        events.push(now_ms());
        figures.events += 1;
        controls.iter().try_for_each(|control| control.set(jump, false))?;
        sleep(arena.time(500, 2_000))?;
    }
    cluster.check_running()?;
    load.wait_served(now_ms(), SERVED_PATIENCE)?;
    let terms_after = terms(&cluster)?;
    if terms_before != terms_after {
        figures.notes.push(format!("terms before {terms_before:?}, after {terms_after:?}: leaders changed"));
    }
    load::conclude(cluster, load, &events, figures)
}

/// The term of each group.
fn terms(cluster: &Cluster<'_>) -> Result<Vec<u64>, Failure> {
    let status = cluster.status(1)?;
    let groups = status.iter().flat_map(|status| status.list("groups"));
    Ok(groups.filter_map(|group| group.number("term")).collect())
}
