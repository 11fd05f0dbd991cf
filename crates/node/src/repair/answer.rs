//! What other nodes are told about this node's disks.

use base::ids::{ChunkId, DiskId, PgEpoch, PgId};
use base::plant::{self, Plant};
use client::wire::{self, Answer, Failure, InventoryPage, PgDigestLine, PgDigestPage, Told};
use meta::map::command::{ClusterMap, PgRow};

use super::exchange;
use super::plan::{Group, pg_id};
use crate::disks::Disks;

/// Groups of one question.
pub const DIGESTS_MAX: usize = 4096;

/// A page of what a disk holds of a group. Refused while the map here is older than the asker's: once it is not, nothing
/// that a writer stores here under the older epoch counts any more.
pub fn inventory(map: &ClusterMap, disks: &Disks, ask: &wire::Inventory) -> Answer {
    let Some((row, pg)) = find(map, ask.pool, ask.prefix) else {
        return Answer::failed(Failure::Busy, "the map here does not have this placement group");
    };
    if row.epoch != ask.epoch && !(row.epoch < ask.epoch && plant::is(Plant::InventoryEarly)) {
        let failure = if row.epoch < ask.epoch { Failure::Busy } else { Failure::StalePlacement };
        return Answer::failed(failure, format!("placement group {pg} is at epoch {} here", row.epoch));
    }
    let after = match ask.after.len() {
        0 => None,
        _ => match ask.after.as_ref().try_into() {
            Ok(raw) => Some(ChunkId::from_bytes(raw)),
            Err(_) => return Answer::failed(Failure::Invalid, "a chunk id has 16 bytes"),
        },
    };
    let Some(own) = disk_id(&ask.disk) else { return Answer::failed(Failure::Invalid, "a disk id has 16 bytes") };
    let group = Group {
        pg,
        epoch: PgEpoch(row.epoch),
        closed: row.closed,
        own,
        others: Vec::new(),
        degraded: false,
        sources: 0,
        wanted: 0,
        lives: Vec::new(),
    };
    match disks.engine(own) {
        Err(why) => Answer::failed(Failure::NoDisk, why),
        Ok(engine) => {
            let (entries, more) = exchange::page_of(engine, &group, after);
            Answer::of(Told::Inventory(InventoryPage { entries: exchange::encode(&entries), more }))
        }
    }
}

pub fn digests(map: &ClusterMap, disks: &Disks, ask: &wire::PgDigests) -> Answer {
    if ask.groups.len() > DIGESTS_MAX {
        return Answer::failed(Failure::Invalid, format!("at most {DIGESTS_MAX} placement groups at once"));
    }
    let nothing = PgDigestLine { unavailable: true, ..PgDigestLine::default() };
    let line = |ask: &wire::PgDigestAsk| {
        let (row, pg) = find(map, ask.pool, ask.prefix)?;
        let engine = disks.engine(disk_id(&ask.disk)?).ok()?;
        let digest = engine.digest(pg.pool, pg.slots());
        let (chunks, bytes, sum) = (digest.chunks, digest.bytes, digest.sum);
        Some(PgDigestLine { epoch: row.epoch, chunks, bytes, sum, unavailable: false })
    };
    let groups = ask.groups.iter().map(|ask| line(ask).unwrap_or(nothing)).collect();
    Answer::of(Told::PgDigests(PgDigestPage { groups }))
}

fn disk_id(raw: &[u8]) -> Option<DiskId> {
    client::disk_id(raw)
}

fn find(map: &ClusterMap, pool: u32, prefix: u32) -> Option<(&PgRow, PgId)> {
    let at = map.pgs.binary_search_by_key(&(pool, prefix), |row| (row.pool, row.prefix)).ok()?;
    let bits = map.pools.iter().map(|row| (row.id, row.pg_bits.min(24) as u8)).collect();
    let row = &map.pgs[at];
    Some((row, pg_id(row, &bits)?))
}
