//! Opening a store: manifest, runs, orphans.

use base::env::{Disk, Env};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::Notify;

use super::KvError;
use super::lsm::{Counters, Inner, KvOptions, KvReport, View};
use super::manifest::{self, Found, LEVELS, Manifest};
use super::memtable::Memtable;
use super::run::{FILE_PREFIX, Files, Run, RunMeta};
use super::tree::Tree;
use super::verify::Damage;

/// What all files of the store begin with.
const PREFIX: &str = "kv-";
/// What is put before the names of a store that was set aside.
const ASIDE: &str = "damaged-";

pub(super) async fn open(
    env: &Env,
    disk: Arc<dyn Disk>,
    disk_seed: u128,
    options: KvOptions,
    read_only: bool,
) -> Result<(Arc<Inner>, KvReport), KvError> {
    assert!(options.l0_runs >= 2 && options.l0_runs_max >= options.l0_runs, "a merge needs two runs");
    let names = list(&*disk)?;
    let (mut manifest, mut report) = find_manifest(&*disk, disk_seed, &names).await?;
    check_order(&manifest)?;
    report.orphans = orphans(&names, &manifest);
    let highest_id = names.iter().filter_map(|name| run_id(name)).max();
    manifest.next_run_id = manifest.next_run_id.max(highest_id.map_or(0, |id| id.saturating_add(1)));

    let files = Arc::new(Files::new(disk, disk_seed, options.cache_bytes));
    let open_runs = |level: &Vec<RunMeta>| level.iter().map(|meta| Run::open(meta.clone(), &files)).collect();
    let tree = Tree::new(manifest.levels.iter().map(open_runs).collect());
    report.runs = tree.runs().count();
    report.damages = unreadable_runs(&tree);
    if read_only {
        files.stop("it is open for reading only".to_owned());
    } else {
        clean_up(&files, &mut manifest, &report).await?;
    }
    let inner = Inner {
        env: env.clone(),
        options,
        files,
        view: RwLock::new(Arc::new(View { memtable: Arc::new(Memtable::default()), frozen: None, tree })),
        writer: Mutex::new(manifest.transactions),
        flushing: tokio::sync::Mutex::new(()),
        installing: tokio::sync::Mutex::new(manifest.sequence),
        merging: tokio::sync::Mutex::new(()),
        durable: AtomicU64::new(manifest.transactions),
        next_run_id: AtomicU64::new(manifest.next_run_id),
        manifest_bytes: AtomicU64::new(manifest.file_bytes()),
        counters: Counters::default(),
        compacting: AtomicBool::new(false),
        compacted: Notify::new(),
        compaction_trouble: Mutex::new(None),
        closed: AtomicBool::new(read_only),
    };
    let inner = Arc::new(inner);
    inner.start_compaction();
    Ok((inner, report))
}

pub(super) fn unreadable_runs(tree: &Tree) -> Vec<Damage> {
    tree.runs().filter_map(|run| run.whole_damage()).filter_map(Damage::of).collect()
}

/// See [`LsmKv::set_aside`](super::LsmKv::set_aside).
pub(super) fn set_aside(disk: &dyn Disk) -> Result<(), KvError> {
    let failed = |error| KvError::Io(format!("the damaged store in {} cannot be set aside: {error}", disk.describe()));
    let mut names = list(disk)?;
    // The manifest first: what a crash leaves half done is runs without a manifest, which is damage as well. One store is
    // kept; an earlier one goes when the manifest shows that this is another.
    names.sort_by_key(|name| name != manifest::FILE_NAME);
    if names.first().is_some_and(|name| name == manifest::FILE_NAME) {
        for entry in disk.list().map_err(failed)? {
            if entry.name.strip_prefix(ASIDE).is_some_and(|name| name.starts_with(PREFIX)) {
                disk.remove(&entry.name).map_err(failed)?;
            }
        }
    }
    for name in names {
        disk.rename(&name, &format!("{ASIDE}{name}")).map_err(failed)?;
    }
    disk.flush_directory().map_err(failed)
}

/// Names of the store's files.
fn list(disk: &dyn Disk) -> Result<Vec<String>, KvError> {
    let entries = disk
        .list()
        .map_err(|error| KvError::Io(format!("the files of {} cannot be listed: {error}", disk.describe())))?;
    Ok(entries.into_iter().map(|entry| entry.name).filter(|name| name.starts_with(PREFIX)).collect())
}

async fn find_manifest(disk: &dyn Disk, disk_seed: u128, names: &[String]) -> Result<(Manifest, KvReport), KvError> {
    match manifest::read(disk, disk_seed).await? {
        Found::Manifest { manifest, copy_damage } => {
            let transactions = manifest.transactions;
            Ok((manifest, KvReport { transactions, manifest_copy_damage: copy_damage, ..KvReport::default() }))
        }
        // The manifest of an empty store is durable before its first run is begun.
        Found::Nothing if names.iter().any(|name| run_id(name).is_some()) => Err(manifest::damaged(format!(
            "{} in {} is missing, and there are runs; {}",
            manifest::FILE_NAME,
            disk.describe(),
            manifest::ADVICE
        ))),
        Found::Nothing => {
            let manifest = Manifest { levels: vec![Vec::new(); LEVELS], ..Manifest::default() };
            Ok((manifest, KvReport { created: true, ..KvReport::default() }))
        }
    }
}

/// A manifest that verifies was written by this code, yet nothing read from a disk may end in a failed assertion.
fn check_order(manifest: &Manifest) -> Result<(), KvError> {
    let rising = |runs: &Vec<RunMeta>| runs.windows(2).all(|pair| pair[0].last < pair[1].first);
    if manifest.levels[1..].iter().all(rising) {
        return Ok(());
    }
    Err(manifest::damaged(format!("{}: runs of a level overlap; {}", manifest::FILE_NAME, manifest::ADVICE)))
}

fn orphans(names: &[String], manifest: &Manifest) -> Vec<String> {
    let in_use = |name: &String| {
        *name == manifest::FILE_NAME
            || run_id(name).is_some_and(|id| manifest.levels.iter().flatten().any(|run| run.id == id))
    };
    names.iter().filter(|name| !in_use(name)).cloned().collect()
}

fn run_id(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(FILE_PREFIX)?;
    if digits.len() == 16 { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// Removes orphans, and writes the manifest where there was none or one of its copies is damaged.
async fn clean_up(files: &Files, manifest: &mut Manifest, report: &KvReport) -> Result<(), KvError> {
    let failed = |what: &str, error| KvError::Io(format!("{what} in {}: {error}", files.disk.describe()));
    for name in &report.orphans {
        files.disk.remove(name).map_err(|error| failed(&format!("{name} cannot be removed"), error))?;
    }
    if report.created || report.manifest_copy_damage.is_some() {
        manifest.sequence += 1;
        let replaced = manifest.replace(&*files.disk, files.disk_seed).await;
        replaced.map_err(|error| failed(&format!("{} cannot be written", manifest::FILE_NAME), error))?;
    }
    Ok(())
}
