//! Faults of disks under real file systems: each node stands on an ext4 of its own whose device is in this process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::arena::Arena;
use super::cluster::{Cluster, OBJECTS_GROUP};
use super::filesystem::{self, Kind, Mounted};
use super::image::{self, Image, Survivors, Trouble};
use super::load::{self, Load, USUAL, Wish, acks_of};
use super::processes::{Failure, now_ms, sleep, wait_for};
use super::report::Figures;

const SERVED_PATIENCE: Duration = Duration::from_secs(60);

/// Room for some volumes.
const DISK_LEN: u64 = 2 << 30;

/// Less than the clients of `full` want to keep.
const SMALL_DISK_LEN: u64 = 1 << 30;

/// Three nodes on disks of their own, and clients of all of them.
struct Stage<'a> {
    // Dropped in this order: clients, servers, file systems.
    load: Load,
    cluster: Cluster<'a>,
    mounts: Vec<Mounted>,
    images: Vec<Arc<Image>>,
    folder: std::path::PathBuf,
}

impl<'a> Stage<'a> {
    fn set(arena: &'a Arena, fault: &str, len_bytes: u64, wish: &Wish) -> Result<Stage<'a>, Failure> {
        let folder = arena.folder(fault)?;
        let empty = filesystem::format(Kind::Ext4, len_bytes, &folder)?;
        let images: Vec<Arc<Image>> = (0..3).map(|_| Arc::new(empty.clone())).collect();
        let mounts = images.iter().enumerate().map(|(index, image)| mount(image, &folder, index + 1));
        let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
        let mut places = arena.local_places(&folder, 3)?;
        for place in &mut places {
            place.data = place.data.join("data");
        }
        let cluster = Cluster::found(arena, &folder, places)?;
        let load = Load::start(&cluster, &folder.join("acks.jsonl"), wish)?;
        Ok(Stage { load, cluster, mounts, images, folder })
    }

    /// The node is killed, its disk works again, with only what was flushed; and it is started.
    fn replace_disk(&mut self, node: usize, arena: &Arena) -> Result<(), Failure> {
        self.cluster.kill(node);
        let left = image::cut(&self.images[node - 1..node], Survivors::Nothing, &mut arena.random()).disks;
        let left = left.into_iter().next().expect("one disk was cut").image;
        drop(self.mounts.remove(node - 1));
        self.images[node - 1] = Arc::new(left);
        self.mounts.insert(node - 1, mount(&self.images[node - 1], &self.folder, node)?);
        self.cluster.start(node)?;
        self.cluster.wait_ready(node)
    }
}

fn mount(image: &Arc<Image>, folder: &Path, node: usize) -> Result<Mounted, Failure> {
    Mounted::mount(Kind::Ext4, Arc::clone(image), &folder.join(format!("node{node}")))
}

/// Clients want to keep half as much again as fits: writes are refused, reads and deletes go on, and nothing breaks.
pub fn full(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let wish = Wish { size: "4MiB", ..USUAL };
    let mut stage = Stage::set(arena, "disk-full", SMALL_DISK_LEN, &wish)?;
    figures.events += 1;
    let began = now_ms();
    sleep(arena.time(20_000, 60_000))?;
    stage.cluster.check_running()?;
    stage.load.wait_served(now_ms(), SERVED_PATIENCE)?;
    let acks = acks_of(&stage.load.log)?;
    let count = |write: bool, result: &str| {
        acks.iter().filter(|ack| ack.t_ms >= began && ack.is_write == write && ack.result == result).count()
    };
    let refused = count(true, "fail") + count(true, "unknown");
    figures.notes.push(format!(
        "{} changes acknowledged and {refused} refused, {} reads good",
        count(true, "ok"),
        count(false, "ok")
    ));
    if refused == 0 {
        figures.notes.push("the disks did not become full: this says nothing".into());
    }
    load::conclude(stage.cluster, stage.load, &[], figures)
}

/// One node's disk answers nothing but errors; later it is back with what was flushed.
pub fn vanishes(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    one_disk(arena, figures, "disk-vanishes", Trouble::Gone)
}

/// The device under one node's file system fails its flushes; later it is back with what was flushed before.
pub fn flush_fails(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    one_disk(arena, figures, "disk-flush-fails", Trouble::FlushFails)
}

fn one_disk(arena: &Arena, figures: &mut Figures, fault: &str, trouble: Trouble) -> Result<(), Failure> {
    let mut stage = Stage::set(arena, fault, DISK_LEN, &USUAL)?;
    let mut events = Vec::new();
    for round in 0..arena.rounds(1, 3) {
        let node = round as usize % 3 + 1;
        let witness = node % 3 + 1;
        events.push(now_ms());
        figures.events += 1;
        stage.images[node - 1].set_trouble(trouble);
        stage.load.wait_served(now_ms() + 1_000, SERVED_PATIENCE)?;
        let told = || format!("a status other than `safe` while node {node} has {trouble:?}");
        wait_for(SERVED_PATIENCE, told, || {
            let status = stage.cluster.status(witness)?;
            Ok(status.and_then(|status| (status.text("verdict") != Some("safe")).then_some(())))
        })?;
        sleep(Duration::from_secs(8))?;
        stage.replace_disk(node, arena)?;
        stage.cluster.wait_safe()?;
    }
    load::conclude(stage.cluster, stage.load, &events, figures)
}

/// The disk of the node that leads the objects' shard becomes slow, without any error.
pub fn slow(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let mut stage = Stage::set(arena, "slow-disk", DISK_LEN, &USUAL)?;
    let mut events = Vec::new();
    for _ in 0..arena.rounds(1, 2) {
        let node = stage.cluster.leader(OBJECTS_GROUP)?;
        events.push(now_ms());
        figures.events += 1;
        stage.images[node - 1].set_trouble(Trouble::Slow(Duration::from_millis(50)));
        sleep(Duration::from_secs(20))?;
        let leader = stage.cluster.leader(OBJECTS_GROUP)?;
        figures.notes.push(format!("node {node} led and became slow; 20 s later node {leader} leads"));
        stage.images[node - 1].set_trouble(Trouble::Nothing);
        stage.load.wait_served(now_ms(), SERVED_PATIENCE)?;
        stage.cluster.wait_safe()?;
    }
    load::conclude(stage.cluster, stage.load, &events, figures)
}
