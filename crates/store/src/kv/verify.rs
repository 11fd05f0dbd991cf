//! Reading and checking everything: for fsck and scrub.

use base::env::Disk;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

use super::block::BlockCursor;
use super::cursor::verified;
use super::lsm::Inner;
use super::manifest::{self, Found};
use super::run::Run;
use super::{KvError, filter};

/// Rows that cannot be read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub first: Bytes,
    pub last: Bytes,
    pub detail: String,
}

impl Damage {
    /// The damage that an error tells of.
    pub fn of(error: KvError) -> Option<Damage> {
        match error {
            KvError::Damaged { first, last, detail } => Some(Damage { first, last, detail }),
            KvError::Io(_) => None,
        }
    }
}

/// What a whole reading found.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    pub runs: usize,
    /// Entries read, deletions and overwritten versions included.
    pub entries: u64,
    pub bytes: u64,
    /// Rows that cannot be read.
    pub damages: Vec<Damage>,
    /// Damage that hides no row: filters, a copy of the manifest.
    pub harmless: Vec<String>,
}

pub(super) async fn verify(inner: &Inner, bytes_per_s: Option<u64>) -> Verification {
    let mut found = Verification::default();
    check_manifest(&*inner.files.disk, inner.files.disk_seed, &mut found).await;
    // Runs stay readable as long as the view is held, whatever compaction does.
    let view = inner.view();
    for run in view.tree.runs() {
        found.runs += 1;
        if let Some(error) = run.whole_damage() {
            found.damages.extend(Damage::of(error));
            continue;
        }
        found.harmless.extend(run.harmless_damage());
        let entries_before = found.entries;
        let damages_before = found.damages.len();
        for part in 0..run.parts() {
            let bytes = check_part(run, part, &mut found).await;
            if let Some(rate) = bytes_per_s {
                inner.env.sleep(Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)).await;
            }
        }
        let entries = found.entries - entries_before;
        if found.damages.len() == damages_before && entries != run.meta.entries {
            let detail = format!("has {entries} entries instead of {}", run.meta.entries);
            found.damages.push(damage(run, detail));
        }
    }
    found
}

async fn check_manifest(disk: &dyn Disk, disk_seed: u128, found: &mut Verification) {
    match manifest::read(disk, disk_seed).await {
        Ok(Found::Manifest { manifest, copy_damage }) => {
            found.bytes += manifest.file_bytes();
            found.harmless.extend(copy_damage.map(|what| format!("{}: {what}", manifest::FILE_NAME)));
        }
        Ok(Found::Nothing) => found.harmless.push(format!("{} is missing", manifest::FILE_NAME)),
        Err(error) => match Damage::of(error.clone()) {
            Some(damage) => found.damages.push(damage),
            None => found.harmless.push(error.to_string()),
        },
    }
}

/// Checks one part: its blocks, their order, each value, and that the filter holds each key. Returns bytes read.
async fn check_part(run: &Arc<Run>, part: usize, found: &mut Verification) -> u64 {
    let content = match run.read_part(part).await {
        Ok(content) => content,
        Err(error) => {
            found.damages.extend(Damage::of(error));
            return 0;
        }
    };
    found.bytes += content.bytes;
    if let Err(what) = &content.filter {
        found.harmless.push(format!("filter: {what}"));
    }
    let mut filtered_wrongly = false;
    for block in content.blocks {
        let outcome = block.and_then(|block| {
            check_block(run, block, found, |key| {
                let held = content.filter.as_ref().map_or(true, |bits| filter::may_contain(bits, filter::hash(key)));
                filtered_wrongly |= !held;
            })
        });
        found.damages.extend(outcome.err().and_then(Damage::of));
    }
    if filtered_wrongly {
        let detail = format!("the filter of part {part} lacks keys that the part holds");
        found.damages.push(damage(run, detail));
    }
    content.bytes
}

fn check_block(
    run: &Run,
    content: Bytes,
    found: &mut Verification,
    mut each_key: impl FnMut(&[u8]),
) -> Result<(), KvError> {
    let malformed = |what: String| {
        let Damage { first, last, detail } = damage(run, what);
        KvError::Damaged { first, last, detail }
    };
    let mut cursor = BlockCursor::new(content).map_err(|error| malformed(error.to_string()))?;
    cursor.first().map_err(|error| malformed(error.to_string()))?;
    let mut before: Option<Vec<u8>> = None;
    while let Some(key) = cursor.key() {
        if before.as_deref().is_some_and(|before| before >= key) {
            return Err(malformed("keys do not rise".to_owned()));
        }
        if let Err(error) = verified(key, cursor.cell()) {
            found.damages.extend(Damage::of(error));
        }
        each_key(key);
        found.entries += 1;
        before = Some(key.to_vec());
        cursor.advance().map_err(|error| malformed(error.to_string()))?;
    }
    Ok(())
}

fn damage(run: &Run, what: String) -> Damage {
    let detail = format!("{}: {what}", run.meta.file_name());
    Damage { first: run.meta.first.clone(), last: run.meta.last.clone(), detail }
}
