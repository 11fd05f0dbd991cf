//! Power cuts on real file systems.
//!
//! In turns: a cluster of one node or of three serves clients, each node on a file system of its own whose device is in
//! this process. While they work, the state of all disks is taken at random instants, as a power cut at that instant would
//! leave it. Then each of these is mounted, its servers started, and everything verified that was acknowledged before
//! the instant. Some are cut once more while their servers recover. The work goes on from one of the cuts, so that disks
//! grow old over many of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::arena::Arena;
use super::cluster::Cluster;
use super::filesystem::{self, Kind, Mounted};
use super::image::{self, Image, Left, Survivors};
use super::load::{self, Load, USUAL, Wish, acks_of, cut_log};
use super::processes::{Failure, fail, now_ms, sleep};
use super::random::Random;
use super::report::Figures;

const DISK_LEN: u64 = 1 << 30;

/// Instants taken in one turn of each kind of cluster.
const CUTS_ONE_NODE: u64 = 16;
const CUTS_THREE_NODES: u64 = 8;

/// Of these turns one has three nodes. With one node there is no second copy that hides a loss.
const TURNS_PER_THREE: u64 = 3;

/// Time between two instants.
const PAUSE_MS: (u64, u64) = (30, 500);

/// Share of the cuts that wait for a moment at which something is not flushed, and how often they look.
const IN_THE_MIDDLE_PERCENT: u64 = 80;
const LOOKS_MAX: u32 = 2_000;
const LOOK_INTERVAL: Duration = Duration::from_micros(50);

/// Share of the cuts that are cut again during recovery, and how long after the start.
const CUT_AGAIN_PERCENT: u64 = 25;
const CUT_AGAIN_AFTER_MS: (u64, u64) = (10, 400);

/// XFS may not mount after a cut that tore one of its blocks (`docs/chaos.md`): of so many cuts at most one.
const REFUSED_ONE_OF: u64 = 10;

/// Small enough to ride inside commands, small chunks of the journal, large payloads of bulk volumes.
const SIZES: [&str; 4] = ["16KiB", "600B", "700KiB", "16KiB"];

pub fn cut_ext4(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    run(arena, figures, "power-cut-ext4", Kind::Ext4, 200)
}

pub fn cut_xfs(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    run(arena, figures, "power-cut-xfs", Kind::Xfs, 50)
}

fn run(arena: &Arena, figures: &mut Figures, fault: &str, kind: Kind, cuts: u64) -> Result<(), Failure> {
    let cuts = arena.rounds(8, cuts);
    let mut rig = Rig {
        arena,
        kind,
        folder: arena.folder(fault)?,
        random: arena.random(),
        figures,
        with_unflushed: 0,
        again: 0,
        of_all_three: 0,
        refused: 0,
    };
    let empty = Left::of(filesystem::format(kind, DISK_LEN, &rig.folder)?);
    let mut one = Lineage::new("one", vec![empty.clone()]);
    let mut three = Lineage::new("three", vec![empty; 3]);
    let mut turn = 0;
    while rig.figures.events < cuts {
        let left = cuts - rig.figures.events;
        turn += 1;
        if turn % TURNS_PER_THREE == 0 {
            rig.turn(&mut three, left.min(CUTS_THREE_NODES), turn)?;
        } else {
            rig.turn(&mut one, left.min(CUTS_ONE_NODE), turn)?;
        }
    }
    rig.figures.notes.push(format!(
        "{} cuts with writes that were not flushed, {} of all three nodes at one instant, {} once more during recovery",
        rig.with_unflushed, rig.of_all_three, rig.again
    ));
    if rig.refused * REFUSED_ONE_OF > rig.figures.events {
        return fail(format!("{} of {} cuts made file systems that do not mount", rig.refused, rig.figures.events));
    }
    Ok(())
}

/// The blocks of which the kernel says that their checksum is wrong, as numbers of sectors.
fn blocks_of_bad_checksum(said: &str) -> Vec<u64> {
    let blocks = said.split("Metadata CRC error detected").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split_once(" block 0x"));
    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_hexdigit).collect::<String>();
    blocks.filter_map(|(_, rest)| u64::from_str_radix(&digits(rest), 16).ok()).collect()
}

fn wait_for_writes(images: &[Arc<Image>]) {
    for _ in 0..LOOKS_MAX {
        if images.iter().all(|image| image.has_unflushed()) {
            return;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Disks that grow old together.
struct Lineage {
    name: &'static str,
    /// What the last cut has left.
    disks: Vec<Left>,
    /// Logs of all earlier turns, as they must be judged now.
    history: Vec<PathBuf>,
    founded: bool,
}

impl Lineage {
    fn new(name: &'static str, disks: Vec<Left>) -> Lineage {
        Lineage { name, disks, history: Vec::new(), founded: false }
    }
}

/// The disks at one instant.
struct Instant {
    disks: Vec<Left>,
    /// The log was at least this long before, and at most this long after.
    before_len: u64,
    after_len: u64,
    survivors: Survivors,
}

struct Rig<'a, 'f> {
    arena: &'a Arena,
    kind: Kind,
    folder: PathBuf,
    random: Random,
    figures: &'f mut Figures,
    with_unflushed: u64,
    again: u64,
    of_all_three: u64,
    /// Disks that the kernel could not mount, since the cut tore a block of the file system's.
    refused: u64,
}

impl<'a> Rig<'a, '_> {
    fn turn(&mut self, lineage: &mut Lineage, cuts: u64, turn: u64) -> Result<(), Failure> {
        let folder = self.folder.join(lineage.name);
        let log = folder.join(format!("acks-{turn}.jsonl"));
        let size = SIZES[(turn % SIZES.len() as u64) as usize];
        let instants = self.work(lineage, &folder, &log, size, cuts)?;
        self.figures.count(&acks_of(&log)?);
        let chosen = self.random.below(cuts);
        for (index, mut instant) in (0..).zip(instants) {
            let judged = folder.join(format!("judged-{turn}-{index}.jsonl"));
            cut_log(&log, instant.before_len, instant.after_len, &judged)?;
            let mut logs = vec![judged.clone()];
            if index == chosen {
                logs.extend(lineage.history.iter().cloned());
            }
            let what = format!("turn {turn}, cut {index} ({size}, {:?})", instant.survivors);
            self.judge(&mut instant.disks, &folder, &logs, lineage.name)
                .map_err(|failure| Failure(format!("{what}, seed {}: {failure}", self.arena.seed)))?;
            if index == chosen {
                lineage.disks = instant.disks;
                lineage.history.push(judged);
            }
        }
        Ok(())
    }

    /// Serves clients on the lineage's disks, and takes instants meanwhile.
    fn work(
        &mut self,
        lineage: &mut Lineage,
        folder: &Path,
        log: &Path,
        size: &'static str,
        cuts: u64,
    ) -> Result<Vec<Instant>, Failure> {
        let (mounts, images) = self.mount(&mut lineage.disks, folder)?;
        let mut cluster = if lineage.founded {
            let mut cluster = self.stopped(folder, images.len())?;
            cluster.start_all()?;
            cluster
        } else {
            let places = self.places(folder, images.len())?;
            lineage.founded = true;
            Cluster::found(self.arena, folder, places)?
        };
        let load = Load::start(&cluster, log, &Wish { size, ..USUAL })?;
        let mut instants = Vec::new();
        for _ in 0..cuts {
            sleep(Duration::from_millis(self.random.between(PAUSE_MS.0, PAUSE_MS.1)))?;
            let survivors = Survivors::draw(&mut self.random);
            let before_len = load.log_len()?;
            if self.random.chance(IN_THE_MIDDLE_PERCENT) {
                wait_for_writes(&images);
            }
            let cut = image::cut(&images, survivors, &mut self.random);
            let after_len = load.log_len()?;
            self.figures.events += 1;
            self.with_unflushed += u64::from(cut.unflushed > 0);
            self.of_all_three += u64::from(images.len() > 1);
            instants.push(Instant { disks: cut.disks, before_len, after_len, survivors });
        }
        cluster.check_running()?;
        drop(load);
        cluster.kill_all();
        drop(mounts);
        Ok(instants)
    }

    /// Starts servers on what a cut has left and verifies everything.
    fn judge(&mut self, disks: &mut [Left], folder: &Path, logs: &[PathBuf], lineage: &str) -> Result<(), Failure> {
        if !self.random.chance(CUT_AGAIN_PERCENT) {
            return self.judge_now(disks, folder, logs, lineage);
        }
        let (mounts, images) = self.mount(disks, folder)?;
        let mut cluster = self.stopped(folder, disks.len())?;
        cluster.numbers().try_for_each(|number| cluster.start(number))?;
        let after_ms = self.random.between(CUT_AGAIN_AFTER_MS.0, CUT_AGAIN_AFTER_MS.1);
        sleep(Duration::from_millis(after_ms))?;
        let survivors = Survivors::draw(&mut self.random);
        let mut cut = image::cut(&images, survivors, &mut self.random);
        cluster.kill_all();
        drop(mounts);
        self.again += 1;
        self.figures.events += 1;
        self.judge_now(&mut cut.disks, folder, logs, lineage)
            .map_err(|failure| Failure(format!("cut again {after_ms} ms after the start ({survivors:?}): {failure}")))
    }

    fn judge_now(&mut self, disks: &mut [Left], folder: &Path, logs: &[PathBuf], lineage: &str) -> Result<(), Failure> {
        let (mounts, _) = self.mount(disks, folder)?;
        let mut cluster = self.stopped(folder, disks.len())?;
        let began = now_ms();
        cluster.start_all()?;
        self.figures.gaps_ms.push(now_ms() - began);
        for log in logs {
            load::verify(&cluster, log, self.figures)?;
        }
        if !self.figures.hold() {
            return fail(format!("see the problems; the disks had {lineage} node(s)"));
        }
        cluster.stop_all()?;
        cluster.fsck()?;
        drop(cluster);
        mounts.into_iter().try_for_each(Mounted::unmount)
    }

    /// Mounts copies of disks.
    fn mount(&mut self, disks: &mut [Left], folder: &Path) -> Result<(Vec<Mounted>, Vec<Arc<Image>>), Failure> {
        let (mut mounts, mut images) = (Vec::new(), Vec::new());
        for (disk, number) in disks.iter_mut().zip(1..) {
            let point = folder.join(format!("node{number}"));
            let mut image = Arc::new(disk.image.clone());
            let mounted = match Mounted::mount(self.kind, Arc::clone(&image), &point) {
                Err(refusal) if self.is_torn_metadata(disk, &refusal) => {
                    self.refused += 1;
                    self.figures.notes.push(format!("on the cut that tears no page instead: {refusal}"));
                    disk.image = disk.untorn.clone();
                    image = Arc::new(disk.image.clone());
                    Mounted::mount(self.kind, Arc::clone(&image), &point)?
                }
                otherwise => otherwise?,
            };
            mounts.push(mounted);
            images.push(image);
        }
        Ok((mounts, images))
    }

    /// A cluster that was founded before and is not started.
    fn stopped(&self, folder: &Path, nodes: usize) -> Result<Cluster<'a>, Failure> {
        Ok(Cluster::stopped(self.arena, folder, self.places(folder, nodes)?))
    }

    /// Whether the kernel cannot mount a disk because XFS takes a block of its own, of which the cut kept the first sectors
    /// and not the others, for written whole. No server has touched that disk since, and none can. The same cut with every
    /// page whole must mount, and is judged like all others.
    fn is_torn_metadata(&self, disk: &Left, refusal: &Failure) -> bool {
        let blocks = blocks_of_bad_checksum(&refusal.0);
        self.kind == Kind::Xfs && !blocks.is_empty() && blocks.iter().all(|sector| disk.is_torn(*sector))
    }

    fn places(&self, folder: &Path, count: usize) -> Result<Vec<super::cluster::Place>, Failure> {
        let mut places = self.arena.local_places(folder, count as u8)?;
        for place in &mut places {
            place.data = place.data.join("data");
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_its_torn_blocks() {
        let said = "mount: wrong fs type; the kernel said: XFS (loop0): Starting recovery (logdev: internal) | \
            XFS (loop0): Metadata CRC error detected at xfs_dir3_block_read_verify+0xe0/0x100 [xfs], xfs_dir3_block block 0x8c8  | \
            XFS (loop0): Unmount and run xfs_repair";
        assert_eq!(blocks_of_bad_checksum(said), [0x8c8]);
        assert!(blocks_of_bad_checksum("XFS (loop0): log mount/recovery failed: error -74, block 0x7").is_empty());
    }
}
