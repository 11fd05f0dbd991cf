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

/// XFS may not mount after a cut that tore one of its blocks (`docs/chaos.md`): one disk at most for so many cuts.
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
    if rig.refused > rig.figures.events.div_ceil(REFUSED_ONE_OF) {
        return fail(format!("{} disks could not be mounted, of {} cuts", rig.refused, rig.figures.events));
    }
    Ok(())
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
        drop((mounts, images));
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
            let mut refused = false;
            let (mounted, image) = loop {
                let image = Arc::new(disk.image.clone());
                let refusal = match Mounted::mount(self.kind, Arc::clone(&image), &point) {
                    Ok(mounted) => break (mounted, image),
                    Err(refusal) => refusal,
                };
                let torn = self.torn_metadata(disk, &refusal);
                if torn.is_empty() {
                    return Err(refusal);
                }
                self.refused += u64::from(!refused);
                refused = true;
                self.figures
                    .notes
                    .push(format!("as if sectors {torn:x?} were in pages that the cut had not torn: {refusal}"));
                torn.into_iter().for_each(|sector| disk.mend(sector));
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

    /// The blocks because of which the kernel cannot mount a disk: XFS takes a block of its own, of which the cut kept the
    /// first sectors and not the others, for written whole. No server has touched that disk since, and none can. With these
    /// blocks whole it must mount, or name others, and is judged like all others. Empty if there is any other reason.
    fn torn_metadata(&self, disk: &Left, refusal: &Failure) -> Vec<u64> {
        let blocks = filesystem::blocks_of_bad_checksum(&refusal.0).filter(|_| self.kind == Kind::Xfs);
        blocks.filter(|blocks| blocks.iter().all(|sector| disk.is_torn(*sector))).unwrap_or_default()
    }

    fn places(&self, folder: &Path, count: usize) -> Result<Vec<super::cluster::Place>, Failure> {
        let mut places = self.arena.local_places(folder, count as u8)?;
        for place in &mut places {
            place.data = place.data.join("data");
        }
        Ok(places)
    }
}
