//! `henge fsck`: reads the directories of stopped nodes of one cluster, verifies every byte, and compares what metadata
//! names with what the disks hold. Changes nothing.
//!
//! The stages, in order: find the disks behind the directories and inspect each by itself (`places`: volumes, chunks,
//! Raft logs); bring the key-value stores and logs of all nodes together to the state that the next leaders would have
//! (`metadata`, by the rules of `replicas`); walk over it (`compare`) and judge the copies of each chunk (`copies`).

mod compare;
mod copies;
mod metadata;
mod places;
mod replicas;

use base::ids::{ChunkId, DiskId, GROUP_ZERO};
use meta::map::command::ClusterMap;
use node::offline::KvView;
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::ExitCode;

use crate::admin_commands::print_json;
use crate::cli::FsckArgs;
use crate::env::{FIRST_NODE, real_env};
use crate::failure::Failure;
use crate::units::show_bytes;
use compare::{Compare, Named};
use copies::{Held, Holders};
use places::InspectedDisk;

/// Lines of damage, and ids of chunks out of place, that are listed.
const DAMAGE_LISTED_MAX: usize = 10_000;
const LOOSE_LISTED_MAX: usize = 10_000;

/// Lines of damage shown to people; `--json` has more.
const DAMAGE_SHOWN_MAX: usize = 50;

/// What was found. Printed as it is with `--json`.
#[derive(Serialize, Default)]
struct Findings {
    version: u32,
    clean: bool,
    disks: u64,
    verified_bytes: u64,
    /// Raft groups whose state was found, their replicas on these disks, and how many of those were found to have the
    /// same rows as the one that was chosen. Others were at another entry, or have no state.
    groups: u64,
    replicas: u64,
    replicas_compared: u64,
    /// Object versions and parts that metadata names.
    objects: u64,
    /// Chunks that they name, and chunks that the disks hold.
    chunks_named: u64,
    chunks_held: u64,
    /// Chunks of which no copy was found, on disks of which some were not given.
    chunks_elsewhere: u64,
    /// Chunks that lack a good copy on a disk that was given, and are not lost.
    degraded: u64,
    /// Deleted chunks whose space comes back when the node runs.
    garbage: u64,
    /// Log entries that the next start will apply.
    replayed: u64,
    damage_count: u64,
    /// The same by kind.
    damage_kinds: BTreeMap<&'static str, u64>,
    damage: Vec<Damage>,
    /// Chunks that nothing names: stored by a PUT that was never committed. The running node removes them.
    orphans: Loose,
    /// Copies on disks that the placement group has left. The running node removes them.
    strays: Loose,
    /// What could not be compared, and other remarks.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Damage {
    /// `identity`, `store`, `log`, `metadata`, `placement`, `lost`, `corrupt` or `degraded`.
    kind: &'static str,
    /// A path, or `bucket/key`.
    place: String,
    detail: String,
}

/// Chunks that are where nobody needs them.
#[derive(Serialize, Default)]
struct Loose {
    chunks: u64,
    bytes: u64,
    ids: Vec<String>,
}

impl Loose {
    fn count(&mut self, id: ChunkId, bytes: u64) {
        self.chunks += 1;
        self.bytes += bytes;
        if self.ids.len() < LOOSE_LISTED_MAX {
            self.ids.push(id.to_string());
        }
    }
}

impl Findings {
    fn add(&mut self, kind: &'static str, place: impl Into<String>, detail: impl Into<String>) {
        self.damage_count += 1;
        *self.damage_kinds.entry(kind).or_default() += 1;
        if self.damage.len() < DAMAGE_LISTED_MAX {
            self.damage.push(Damage { kind, place: place.into(), detail: detail.into() });
        }
    }
}

pub async fn run(args: FsckArgs) -> Result<ExitCode, Failure> {
    let mut findings = Findings { version: 1, ..Findings::default() };
    let places = places::find_places(&args.directories)?;
    let homes = places::check_homes(&places.homes, &mut findings).await?;
    let mut disks = Vec::new();
    for path in &places.disks {
        disks.extend(places::inspect(path, &mut findings).await?);
    }
    places::check_one_cluster(&homes, &disks)?;
    let held = places::hold(&disks, places.disks.len());
    findings.disks = disks.len() as u64;
    findings.chunks_held = held.chunks.len() as u64;
    compare_all(&mut disks, &held, &mut findings).await?;
    findings.clean = findings.damage_count == 0;
    if args.json {
        print_json(&findings)?
    } else {
        findings.print()
    }
    Ok(if findings.clean { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Compares what metadata names with what the disks hold.
async fn compare_all(disks: &mut [InspectedDisk], held: &Held, findings: &mut Findings) -> Result<(), Failure> {
    let (env, _) = real_env(FIRST_NODE, tokio::runtime::Handle::current(), std::sync::Arc::default());
    let (mut metadata, mut unopened) = (Vec::new(), 0);
    for disk in disks.iter_mut().filter(|disk| disk.holds_metadata) {
        match metadata::open(&env, disk, findings).await? {
            Some(opened) => metadata.push(opened),
            None => unopened += 1,
        }
    }
    if metadata.is_empty() && unopened == 0 {
        findings.notes.push("none of the disks holds metadata: chunks were verified, but not compared".into());
        return Ok(());
    }
    let views: Vec<KvView<'_>> = metadata.iter().map(|disk| KvView::over(&*disk.kv)).collect();
    let groups = metadata::unite(&metadata, &views, findings);
    let map = match groups.iter().find(|group| group.group == GROUP_ZERO) {
        None => ClusterMap::default(),
        Some(group) => meta::map::load(&group.rows).unwrap_or_else(|error| {
            findings.add("metadata", group.place, format!("the cluster map (group {GROUP_ZERO}): {error}"));
            ClusterMap::default()
        }),
    };
    let holders = Holders::of(&map);
    check_placement(&holders, held, findings);
    let mut named = Named::default();
    for row in &map.shards {
        if !groups.iter().any(|group| group.group.0 == row.group) {
            named.incomplete = true;
            findings.notes.push(format!("what the objects of group {} name is not known", row.group));
        }
    }
    named.incomplete |= map.shards.is_empty();
    for group in &groups {
        Compare { group, held, holders: &holders, map: &map }.all_rows(&mut named, findings);
    }
    find_orphans(held, &named, findings);
    if findings.chunks_elsewhere > 0 {
        let chunks = findings.chunks_elsewhere;
        findings.notes.push(format!("{chunks} chunks lie on disks whose directories were not given"));
    }
    drop(groups);
    drop(views);
    for disk in metadata {
        disk.kv.close().await;
    }
    Ok(())
}

/// Names the disks that were not given, and groups whose copies are not on distinct nodes.
fn check_placement(holders: &Holders, held: &Held, findings: &mut Findings) {
    let absent = |disk: &DiskId| !held.disks.contains_key(disk);
    let disks: Vec<String> = holders
        .all()
        .into_iter()
        .filter(absent)
        .map(|disk| match holders.node_of(disk) {
            Some(node) => format!("{disk} of node {node}"),
            None => disk.to_string(),
        })
        .collect();
    if !disks.is_empty() {
        let disks = disks.join(", ");
        findings.notes.push(format!("not given, or not readable, so that copies there were not checked: disk {disks}"));
    }
    for (group, place) in holders.crowded() {
        let detail = format!("two of its copies are {place}: one failure takes both");
        findings.add("placement", format!("placement group {group}"), detail);
    }
}

fn find_orphans(held: &Held, named: &Named, findings: &mut Findings) {
    for (id, copies) in &held.chunks {
        if named.chunks.contains(id) {
            continue;
        }
        if copies::copies_differ(copies) {
            let paths = copies.iter().filter_map(|(disk, _)| held.disks.get(disk)).cloned().collect::<Vec<_>>();
            findings.add("corrupt", paths.join(", "), format!("the copies of chunk {id}, which nothing names, differ"));
        }
        if named.garbage.contains(id) {
            findings.garbage += 1;
            continue;
        }
        findings.orphans.count(*id, copies.iter().map(|(_, stat)| u64::from(stat.len)).sum());
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
        println!("{} Raft group(s), {} replica(s); {}", self.groups, self.replicas, self.compared());
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
        if self.strays.chunks > 0 {
            println!(
                "{} stray copies, {}: on disks that their placement groups have left; the running node removes them",
                self.strays.chunks,
                show_bytes(self.strays.bytes)
            );
        }
        if self.clean {
            println!("clean");
            return;
        }
        let kinds: Vec<String> = self.damage_kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let advice = if self.damage_kinds.keys().all(|kind| ["degraded", "corrupt"].contains(kind)) {
            "nothing is lost: the running cluster makes the copies again"
        } else {
            "bring back what is lost from a backup or a copy"
        };
        println!("{} finding(s): {}; {advice}", self.damage_count, kinds.join(", "));
    }

    fn compared(&self) -> String {
        match self.replicas_compared {
            0 => "no other replica at the same entry".into(),
            count => format!("{count} found to be equal with that of the next leader"),
        }
    }
}
