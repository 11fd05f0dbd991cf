//! Looks a disk through offline: recovery without a write, then every live byte verified.

use base::env::Disk;
use std::sync::Arc;

use crate::errors::StoreError;
use crate::identity;
use crate::index::{Health, Live, Slot};
use crate::read::{self, ReadFailure, stat_of};
use crate::recovery::{self, Source};
use crate::report::{DamagedRecord, DamagedWhat, InspectReport};

/// Inspects the disk of a stopped node. Takes the directory's lock meanwhile (`InUse` when its node runs) and never
/// writes. Damage is in the report; an error means that nothing could be said.
pub async fn inspect(disk: Arc<dyn Disk>) -> Result<InspectReport, StoreError> {
    let _lock = disk.lock().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => StoreError::InUse,
        _ => StoreError::io("locking the disk directory", &error),
    })?;
    let found = identity::find(&disk).await?.ok_or(StoreError::NotFormatted)?;
    let mut recovered = recovery::recover(&disk, found.identity.disk, Source::Volumes).await?;
    let mut report = InspectReport {
        identity: found.identity,
        recovery: std::mem::take(&mut recovered.report),
        chunks: Vec::new(),
        tombstones: recovered.state.index.tombstone_count(),
        raft: Vec::new(),
        damaged: Vec::new(),
        verified_bytes: 0,
    };
    let live: Vec<_> = recovered
        .state
        .index
        .iter()
        .filter_map(|(id, slot)| match slot {
            Slot::Live(live) => Some((id, live)),
            Slot::Deleted { .. } | Slot::Evicted { .. } => None,
        })
        .collect();
    for (id, live) in live {
        let mut stat = stat_of(id, &live);
        match verify(&recovered, id, &live).await {
            Ok(()) => report.verified_bytes += u64::from(live.len),
            Err(detail) => {
                stat.damaged = true;
                recovered.state.mark_damaged(id, live.volume, live.offset, &detail);
            }
        }
        report.chunks.push(stat);
    }
    for (group, log) in recovered.state.raft.iter().filter(|(_, log)| !log.removed) {
        let loaded = match log.damage() {
            Some(reason) => Err(reason),
            None => read::raft_log(&recovered.files, *group, log).await.map_err(|failure| match failure {
                ReadFailure::Io(detail) | ReadFailure::Damaged(detail) => detail,
            }),
        };
        report.raft.push((*group, loaded));
    }
    report.damaged = recovered.state.all_damage();
    if found.copy_damaged {
        let detail = "one copy of the identity is damaged".to_string();
        report.damaged.push(DamagedRecord { volume: 0, offset: 0, what: DamagedWhat::Identity, detail });
    }
    Ok(report)
}

async fn verify(recovered: &recovery::Recovered, id: base::ids::ChunkId, live: &Live) -> Result<(), String> {
    if live.health == Health::Unknown {
        return Err("its record is damaged".into());
    }
    let Some(file) = recovered.files.get(&live.volume) else { return Err("its volume is missing".into()) };
    let payload = read::whole(file, id, live).await.map_err(|failure| match failure {
        ReadFailure::Io(detail) | ReadFailure::Damaged(detail) => detail,
    })?;
    if base::checksum::crc64(&payload) == live.crc64 { Ok(()) } else { Err("whole-chunk checksum".into()) }
}
