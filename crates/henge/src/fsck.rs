//! `henge fsck`: reads the directories of stopped nodes, verifies every byte, and compares what metadata names with what
//! the disks hold. Changes nothing.
//!
//! The stages, in order: find the disks behind the directories; inspect each disk (volumes, chunks, Raft logs); read
//! the key-value store and replay the logs over it in memory; compare.

use base::env::Disk;
use base::ids::{BucketId, ChunkId, DiskId, GROUP_ZERO, PgId};
use bytes::Bytes;
use meta::keys::Key;
use meta::map::command::ClusterMap;
use meta::object::command::{Body, ObjectVersion, Part};
use meta::view::{Overlay, View, ViewError};
use prost::Message;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use store::kv::{KvOptions, LsmKv};
use store::{ChunkStat, DamagedWhat, InspectReport, StoreError};

use crate::admin_commands::print_json;
use crate::cli::FsckArgs;
use crate::cluster_file::ClusterFile;
use crate::env::{FIRST_NODE, RealDisk, real_env};
use crate::failure::{Context, Failure};
use crate::predecessor;
use crate::units::show_bytes;

/// Lines of damage, and ids of orphans, that are listed.
const DAMAGE_LISTED_MAX: usize = 10_000;
const ORPHANS_LISTED_MAX: usize = 10_000;

/// Lines of damage shown to people; `--json` has more.
const DAMAGE_SHOWN_MAX: usize = 50;

/// Rows read at once.
const SCAN_ROWS: usize = 1000;

/// What was found. Printed as it is with `--json`.
#[derive(Serialize, Default)]
struct Findings {
    version: u32,
    clean: bool,
    disks: u64,
    verified_bytes: u64,
    /// Object versions and parts that metadata names.
    objects: u64,
    /// Chunks that they name, and chunks that the disks hold.
    chunks_named: u64,
    chunks_held: u64,
    /// Chunks on disks whose directories were not given.
    chunks_elsewhere: u64,
    /// Deleted chunks whose space comes back when the node runs.
    garbage: u64,
    /// Log entries that the next start will apply.
    replayed: u64,
    damage_count: u64,
    damage: Vec<Damage>,
    orphans: Orphans,
    /// What could not be compared, and other remarks.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Damage {
    /// `identity`, `store`, `log`, `metadata`, `lost` or `corrupt`.
    kind: &'static str,
    /// A path, or `bucket/key`.
    place: String,
    detail: String,
}

/// Chunks that nothing names: stored by a PUT that was never committed. The running node removes them.
#[derive(Serialize, Default)]
struct Orphans {
    chunks: u64,
    bytes: u64,
    ids: Vec<String>,
}

impl Findings {
    fn add(&mut self, kind: &'static str, place: impl Into<String>, detail: impl Into<String>) {
        self.damage_count += 1;
        if self.damage.len() < DAMAGE_LISTED_MAX {
            self.damage.push(Damage { kind, place: place.into(), detail: detail.into() });
        }
    }
}

pub async fn run(args: FsckArgs) -> Result<ExitCode, Failure> {
    let mut findings = Findings { version: 1, ..Findings::default() };
    let places = find_places(&args.directories)?;
    let _locks = check_homes(&places.homes, &mut findings).await?;
    let mut disks = Vec::new();
    for path in &places.disks {
        disks.extend(inspect(path, &mut findings).await?);
    }
    findings.disks = disks.len() as u64;
    check_one_cluster(&disks, &mut findings);
    let mut held = hold(&disks, &mut findings);
    held.some_unreadable = disks.len() < places.disks.len();
    let mut named = Named::default();
    let mut metadata_found = false;
    for disk in disks.iter().filter(|disk| disk.holds_metadata) {
        metadata_found = true;
        read_metadata(disk, &held, &mut named, &mut findings).await?;
    }
    if findings.chunks_elsewhere > 0 {
        let chunks = findings.chunks_elsewhere;
        findings.notes.push(format!(
            "{chunks} chunks lie on disks whose directories were not given: give all to have them checked"
        ));
    }
    if metadata_found {
        find_orphans(&held, &named, &mut findings);
    } else {
        findings.notes.push("none of the disks holds metadata: chunks were verified, but not compared".into());
    }
    findings.clean = findings.damage_count == 0;
    if args.json {
        print_json(&findings)?
    } else {
        findings.print()
    }
    Ok(if findings.clean { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// The directories behind the arguments.
#[derive(Default)]
struct Places {
    /// Nodes' own directories.
    homes: BTreeSet<PathBuf>,
    disks: BTreeSet<PathBuf>,
}

fn find_places(directories: &[PathBuf]) -> Result<Places, Failure> {
    let mut places = Places::default();
    for given in directories {
        let directory = given.canonicalize().context(|| format!("{} cannot be opened", given.display()))?;
        let is_home = directory.join("node").exists() || directory.join("generation").exists();
        let is_disk = directory.join("identity").exists() || directory.join("kv-manifest").exists();
        let cluster = ClusterFile::read(&directory)?;
        if !is_home && !is_disk && cluster.is_none() {
            return Err(Failure(format!(
                "{} is no directory of henge's: give a node's --data directory, a dev cluster's, or a --disk directory",
                given.display()
            )));
        }
        if is_home {
            places.homes.insert(directory.clone());
        }
        if is_disk {
            places.disks.insert(directory.clone());
        }
        for node in cluster.into_iter().flat_map(|cluster| cluster.nodes) {
            places.homes.insert(node.data);
            places.disks.extend(node.disks);
        }
        let default_disk = directory.join("disk0");
        if is_home && default_disk.is_dir() {
            places.disks.insert(default_disk);
        }
    }
    Ok(places)
}

/// Verifies the nodes' own files; the locks keep the nodes from starting meanwhile.
async fn check_homes(homes: &BTreeSet<PathBuf>, findings: &mut Findings) -> Result<Vec<Box<dyn Send + Sync>>, Failure> {
    let mut locks = Vec::new();
    for home in homes {
        let place = home.display().to_string();
        let disk = match RealDisk::open(home) {
            Ok(disk) => disk,
            Err(error) => {
                findings.add("identity", place, format!("the node's directory cannot be opened: {error}"));
                continue;
            }
        };
        predecessor::wait_for_lock(&disk).await;
        locks.push(disk.lock().map_err(|error| running_or(home, &error))?);
        match node::offline::identity(&disk).await {
            Ok(Some(_)) => {}
            Ok(None) => findings.add("identity", place, "the node's identity is missing"),
            Err(error) => findings.add("identity", place, error.to_string()),
        }
    }
    Ok(locks)
}

fn running_or(directory: &Path, error: &std::io::Error) -> Failure {
    let directory = directory.display();
    match error.kind() {
        std::io::ErrorKind::WouldBlock => Failure(format!("{directory} is in use: stop its node first")),
        _ => Failure(format!("{directory} cannot be locked: {error}")),
    }
}

struct InspectedDisk {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    report: InspectReport,
    holds_metadata: bool,
}

/// `None`: nothing could be read of it, which is among the findings.
async fn inspect(path: &Path, findings: &mut Findings) -> Result<Option<InspectedDisk>, Failure> {
    let place = path.display().to_string();
    let disk: Arc<dyn Disk> = match RealDisk::open(path) {
        Ok(disk) => Arc::new(disk),
        Err(error) => {
            findings.add("store", place, format!("the disk's directory cannot be opened: {error}"));
            return Ok(None);
        }
    };
    predecessor::wait_for_lock(&*disk).await;
    let report = match store::inspect(Arc::clone(&disk)).await {
        Ok(report) => report,
        Err(StoreError::InUse) => return Err(Failure(format!("{place} is in use: stop its node first"))),
        Err(StoreError::NewerFormat { found, known }) => {
            return Err(Failure(format!("{place} has format {found}, this henge knows {known}: use a newer henge")));
        }
        Err(error) => {
            findings.add("identity", place, error.to_string());
            return Ok(None);
        }
    };
    findings.verified_bytes += report.verified_bytes;
    for damaged in &report.damaged {
        let at = format!("volume {}, byte {}: {}", damaged.volume, damaged.offset, damaged.detail);
        match damaged.what {
            DamagedWhat::Chunk(id) => findings.add("corrupt", &place, format!("chunk {id}: {at}")),
            DamagedWhat::Raft(group) => findings.add("log", &place, format!("log of group {group}: {at}")),
            DamagedWhat::Unknown { len_bytes } => {
                findings.add("store", &place, format!("{len_bytes} bytes that cannot be identified: {at}"));
            }
            DamagedWhat::MissingVolume => findings.add("store", &place, format!("a volume is missing: {at}")),
            DamagedWhat::Bookkeeping => findings.add("store", &place, format!("bookkeeping, no data lost: {at}")),
            DamagedWhat::Identity => findings.add("identity", &place, format!("one of two copies: {at}")),
        }
    }
    for (group, log) in &report.raft {
        if let Err(why) = log {
            findings.add("log", &place, format!("the log of group {group} cannot be trusted: {why}"));
        }
    }
    let holds_metadata = !report.raft.is_empty() || path.join("kv-manifest").exists();
    Ok(Some(InspectedDisk { path: path.to_owned(), disk, report, holds_metadata }))
}

fn check_one_cluster(disks: &[InspectedDisk], findings: &mut Findings) {
    let Some(first) = disks.first() else { return };
    for disk in &disks[1..] {
        let (ours, theirs) = (first.report.identity.cluster, disk.report.identity.cluster);
        if ours != theirs {
            let detail = format!("it belongs to cluster {theirs}, {} to cluster {ours}", first.path.display());
            findings.add("identity", disk.path.display().to_string(), detail);
        }
    }
}

/// What the disks hold: for each chunk, what each disk says of it.
#[derive(Default)]
struct Held {
    chunks: BTreeMap<ChunkId, Vec<(DiskId, ChunkStat)>>,
    disks: BTreeMap<DiskId, String>,
    /// A disk that was given could not be read: it may be any of those that are missing.
    some_unreadable: bool,
}

fn hold(disks: &[InspectedDisk], findings: &mut Findings) -> Held {
    let mut held = Held::default();
    for disk in disks {
        let id = disk.report.identity.disk;
        if let Some(other) = held.disks.insert(id, disk.path.display().to_string()) {
            let detail = format!("it has the same identity as {other}: one is a copy of the other");
            findings.add("identity", disk.path.display().to_string(), detail);
        }
        for stat in &disk.report.chunks {
            held.chunks.entry(stat.id).or_default().push((id, *stat));
        }
    }
    findings.chunks_held = held.chunks.len() as u64;
    held
}

/// What metadata names.
#[derive(Default)]
struct Named {
    chunks: BTreeSet<ChunkId>,
    garbage: BTreeSet<ChunkId>,
    /// Some rows could not be read: what they name is unknown.
    incomplete: bool,
}

async fn read_metadata(
    disk: &InspectedDisk,
    held: &Held,
    named: &mut Named,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let place = disk.path.display().to_string();
    let _lock = disk.disk.lock().map_err(|error| running_or(&disk.path, &error))?;
    let (env, _) = real_env(FIRST_NODE, tokio::runtime::Handle::current());
    let seed = disk.report.identity.disk.0;
    let opened = LsmKv::open_read_only(&env, Arc::clone(&disk.disk), seed, KvOptions::default()).await;
    let (kv, report) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            named.incomplete = true;
            findings.add("metadata", place, format!("the key-value store cannot be opened: {error}"));
            return Ok(());
        }
    };
    if let Some(detail) = report.manifest_copy_damage {
        findings.add("metadata", &place, format!("one of two copies of the manifest: {detail}"));
    }
    let verification = kv.verify(None).await;
    findings.verified_bytes += verification.bytes;
    for damage in &verification.damages {
        named.incomplete = true;
        let rows = format!("rows from {} up to {}", show_row(&damage.first), show_row(&damage.last));
        findings.add("metadata", &place, format!("{rows} cannot be read: {}", damage.detail));
    }
    for harmless in &verification.harmless {
        findings.add("metadata", &place, format!("no row lost: {harmless}"));
    }
    let stored = node::offline::KvView::over(&*kv);
    let mut rows = Overlay::new(&stored);
    for (group, log) in disk.report.raft.iter().filter_map(|(group, log)| Some((*group, log.as_ref().ok()?))) {
        match node::offline::replay(&mut rows, group, log) {
            Ok(replayed) => findings.replayed += replayed,
            Err(why) => {
                named.incomplete = true;
                findings.add("log", &place, format!("group {group} cannot be brought up to date: {why}"));
            }
        }
    }
    let compare = Compare::new(&rows, held, &place, findings);
    compare.all_rows(named, findings);
    kv.close().await;
    Ok(())
}

/// A row as the operator may know it. Bucket names may lie in rows that cannot be read, so ids stand for them.
fn show_row(key: &[u8]) -> String {
    match Key::decode(key) {
        Ok(Key::Version { bucket, key, .. }) => format!("the versions of bucket {bucket}, key {}", key.escape_ascii()),
        Ok(Key::Part { bucket, key, number, .. }) => {
            format!("part {number} of bucket {bucket}, key {}", key.escape_ascii())
        }
        Ok(other) => format!("{other:?}"),
        Err(_) => format!("{}", key.escape_ascii()),
    }
}

/// One walk over all rows of one key-value store.
struct Compare<'a> {
    rows: &'a Overlay<'a>,
    held: &'a Held,
    place: &'a str,
    map: ClusterMap,
}

impl<'a> Compare<'a> {
    fn new(rows: &'a Overlay<'a>, held: &'a Held, place: &'a str, findings: &mut Findings) -> Compare<'a> {
        let map = meta::map::load(rows).unwrap_or_else(|error| {
            findings.add("metadata", place, format!("the cluster map (group {GROUP_ZERO}): {error}"));
            ClusterMap::default()
        });
        Compare { rows, held, place, map }
    }

    fn all_rows(&self, named: &mut Named, findings: &mut Findings) {
        let mut from = Bytes::new();
        let end = [0xff; 1];
        loop {
            let page = match self.rows.scan(&from, &end, SCAN_ROWS) {
                Ok(page) => page,
                Err(ViewError::Damaged { first, last, .. }) => {
                    // Listed when the store was verified. Up to `first` row by row, then on behind `last`.
                    named.incomplete = true;
                    self.rows_before(&mut from, &first, named, findings);
                    from = after(&from.max(last));
                    continue;
                }
                Err(ViewError::Io(why)) => {
                    named.incomplete = true;
                    findings.add("metadata", self.place, why);
                    return;
                }
            };
            for (key, value) in &page {
                self.row(key, value, named, findings);
            }
            match page.last() {
                Some((last, _)) if page.len() == SCAN_ROWS => from = after(last),
                _ => return,
            }
        }
    }

    /// The rows from `from` on that come before a damaged place.
    fn rows_before(&self, from: &mut Bytes, damaged: &Bytes, named: &mut Named, findings: &mut Findings) {
        while let Ok(page) = self.rows.scan(from, damaged, 1) {
            let Some((key, value)) = page.first() else { return };
            self.row(key, value, named, findings);
            *from = after(key);
        }
    }

    fn row(&self, key: &Bytes, value: &Bytes, named: &mut Named, findings: &mut Findings) {
        let chunks = match meta::object::references(key, value) {
            Ok(chunks) => chunks,
            Err(error) => {
                named.incomplete = true;
                findings.add("metadata", self.place, error.to_string());
                return;
            }
        };
        let mut object = None;
        if let Ok(Key::Version { .. } | Key::Part { .. }) = Key::decode(key) {
            findings.objects += 1;
            object = self.check_body(key, value, findings);
        }
        let name = object.unwrap_or_default();
        let mut body_bytes = 0;
        for chunk in chunks {
            let id = chunk.chunk.id;
            if chunk.garbage {
                named.garbage.insert(id);
                continue;
            }
            if !named.chunks.insert(id) {
                findings.add("metadata", name.to_string(), format!("chunk {id} is named by two objects"));
            }
            findings.chunks_named += 1;
            body_bytes += u64::from(chunk.chunk.len);
            self.check_chunk(&name.to_string(), &chunk.chunk, findings);
        }
        if let Some(expected) = name.chunk_bytes.filter(|expected| *expected != body_bytes) {
            let detail = format!("its chunks have {body_bytes} bytes, it should have {expected}");
            findings.add("lost", name.to_string(), detail);
        }
    }

    /// Checks what a version or part says of its own bytes.
    fn check_body(&self, key: &Bytes, value: &Bytes, findings: &mut Findings) -> Option<ObjectName> {
        let (bucket, object, what, body) = match Key::decode(key).ok()? {
            Key::Version { bucket, key, .. } => {
                let row = ObjectVersion::decode(value.clone()).ok()?;
                let what = format!("version {}", row.version.escape_ascii());
                (bucket, key, what, row.body?)
            }
            Key::Part { bucket, key, number, .. } => {
                (bucket, key, format!("part {number}"), Part::decode(value.clone()).ok()?.body?)
            }
            _ => return None,
        };
        let mut name = ObjectName { bucket: self.bucket_name(bucket), key: object.clone(), what, chunk_bytes: None };
        if let Some(inline) = &body.inline {
            if base::checksum::crc32c(&[], inline) != body.inline_crc32c || inline.len() as u64 != body.size {
                findings.add("corrupt", name.to_string(), "the bytes in its row do not verify");
            }
        } else if body.upload.is_empty() {
            name.chunk_bytes = Some(body.size);
        } else {
            self.check_parts(&name, bucket, &object, &body, findings);
        }
        Some(name)
    }

    fn check_parts(&self, name: &ObjectName, bucket: BucketId, key: &Bytes, body: &Body, findings: &mut Findings) {
        let Ok(upload) = <[u8; 16]>::try_from(body.upload.as_ref()) else {
            findings.add("metadata", name.to_string(), "its upload id is malformed");
            return;
        };
        let upload = u128::from_be_bytes(upload);
        let sum: u64 = body.parts.iter().map(|part| part.size).sum();
        if sum != body.size {
            findings.add("metadata", name.to_string(), "its size is not the sum of its parts");
        }
        for part in &body.parts {
            let number = u16::try_from(part.number).unwrap_or(0);
            let row = Key::Part { bucket, key: key.clone(), upload, number }.encode();
            if let Ok(None) = self.rows.get(&row) {
                findings.add("lost", name.to_string(), format!("part {} is missing", part.number));
            }
        }
    }

    /// Whether a chunk is where it should be, as it should be.
    fn check_chunk(&self, name: &str, chunk: &meta::chunks::ChunkRef, findings: &mut Findings) {
        let copies = self.held.chunks.get(&chunk.id).map(Vec::as_slice).unwrap_or_default();
        let good = |stat: &ChunkStat| !stat.damaged && stat.len == chunk.len && stat.crc64 == chunk.crc64;
        let good_on: BTreeSet<DiskId> = copies.iter().filter(|(_, stat)| good(stat)).map(|(disk, _)| *disk).collect();
        let members = self.members_of(chunk.id);
        let elsewhere = |member: &DiskId| !self.held.disks.contains_key(member);
        if copies.is_empty() && !self.held.some_unreadable && members.iter().any(elsewhere) {
            findings.chunks_elsewhere += 1;
            return;
        }
        if good_on.is_empty() {
            let why = match copies.first() {
                None => "is on none of the disks".to_owned(),
                Some((_, stat)) if stat.damaged => "is damaged".to_owned(),
                Some((_, stat)) => format!("has other bytes ({} instead of {})", stat.len, chunk.len),
            };
            findings.add("lost", name, format!("chunk {} {why}", chunk.id));
            return;
        }
        for member in members {
            if let Some(path) = self.held.disks.get(&member).filter(|_| !good_on.contains(&member)) {
                findings.add(
                    "corrupt",
                    path,
                    format!("the copy of chunk {} of {name} is missing or damaged", chunk.id),
                );
            }
        }
    }

    /// The disks that must hold a chunk.
    fn members_of(&self, id: ChunkId) -> Vec<DiskId> {
        let Some(pool) = self.map.pools.iter().find(|pool| pool.id == u32::from(id.pool.0)) else { return Vec::new() };
        let bits = u8::try_from(pool.pg_bits).unwrap_or(0).min(24);
        let group = PgId::of_slot(id.pool, bits, id.slot);
        let row = self.map.pgs.iter().find(|row| row.pool == pool.id && row.prefix == group.prefix);
        let members = row.map(|row| row.members.as_slice()).unwrap_or_default();
        members.iter().filter_map(|raw| Some(DiskId(u128::from_be_bytes(raw.as_ref().try_into().ok()?)))).collect()
    }

    fn bucket_name(&self, id: BucketId) -> String {
        let entry = self.map.buckets.iter().find(|bucket| bucket.id == id.0);
        entry.map_or_else(|| format!("bucket {id}"), |bucket| bucket.name.clone())
    }
}

/// For messages: whose bytes these are.
#[derive(Default)]
struct ObjectName {
    bucket: String,
    key: Bytes,
    what: String,
    /// Bytes that its chunks should have.
    chunk_bytes: Option<u64>,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} ({})", self.bucket, self.key.escape_ascii(), self.what)
    }
}

/// The smallest key above `key`.
fn after(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}

fn find_orphans(held: &Held, named: &Named, findings: &mut Findings) {
    for (id, copies) in &held.chunks {
        if named.chunks.contains(id) {
            continue;
        }
        if named.garbage.contains(id) {
            findings.garbage += 1;
            continue;
        }
        findings.orphans.chunks += 1;
        findings.orphans.bytes += copies.iter().map(|(_, stat)| u64::from(stat.len)).sum::<u64>();
        if findings.orphans.ids.len() < ORPHANS_LISTED_MAX {
            findings.orphans.ids.push(id.to_string());
        }
    }
    if named.incomplete && findings.orphans.chunks > 0 {
        findings.notes.push("some rows cannot be read: what is listed as orphans may be named by them".into());
    }
}

impl Findings {
    fn print(&self) {
        for damage in self.damage.iter().take(DAMAGE_SHOWN_MAX) {
            println!("DAMAGE ({}) {}: {}", damage.kind, damage.place, damage.detail);
        }
        if self.damage_count > DAMAGE_SHOWN_MAX as u64 {
            println!("... and {} more; --json lists them", self.damage_count - DAMAGE_SHOWN_MAX as u64);
        }
        for note in &self.notes {
            println!("note: {note}");
        }
        println!(
            "{} disk(s), {} read and verified: {} object versions and parts name {} chunks; the disks hold {}",
            self.disks,
            show_bytes(self.verified_bytes),
            self.objects,
            self.chunks_named,
            self.chunks_held
        );
        println!(
            "{} log entries will be applied at the next start; {} deleted chunks are being removed",
            self.replayed, self.garbage
        );
        if self.orphans.chunks > 0 {
            println!(
                "{} orphan chunk(s), {}: stored, never committed, named by nothing; the running node removes them",
                self.orphans.chunks,
                show_bytes(self.orphans.bytes)
            );
        }
        if self.clean {
            println!("clean");
        } else {
            println!("{} finding(s) of damage; bring back what is lost from a backup or a copy", self.damage_count);
        }
    }
}
