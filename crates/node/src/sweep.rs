//! The orphan sweep: chunks on this node's disks that were stored and never committed.
//!
//! Once every shard has closed a session, nobody can commit a chunk of it any more; so what no row names then goes, here.
//! Other nodes do the same with their copies; whoever comes too late for that finds the tombstones of the others when
//! copies are compared.
//!
//! Each session is swept once, but for what comes from others afterwards (`arrivals.rs`), and what is damaged: a chunk
//! that was deleted everywhere comes back without its bytes where the record of its tombstone is lost. Nor is a chunk
//! lost of which no good copy is left, unless a row names it: that is asked here, too.

use base::Env;
use base::ids::{ChunkId, Generation, GroupId, NodeId, PoolId, SLOT_BITS, Session};
use base::plant::{self, Plant};
use client::wire::{Answer, Failure, NamedIds, Told};
use client::{Client, Error, NAMED_IDS_MAX};
use meta::group::Install;
use meta::map::command::{self as map, ClusterMap, NodeRow};
use meta::view::{View, ViewError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use store::{ChunkStat, DiskState, Engine};
use tokio::sync::watch;

use crate::arrivals::{Arrivals, Come};
use crate::machine::KvView;
use crate::service::{Service, Standing};

/// Rows read at once while references are looked for.
const SCAN_ROWS: usize = 1000;
const INVENTORY_PAGE: usize = 4096;
/// Tombstones written at once.
const DELETES_MAX: usize = 1024;
/// Pause before a sweep that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Below which generation each node's sessions have been swept from this node's disks.
pub type Swept = BTreeMap<NodeId, Generation>;

/// Sweeps at the start, and from time to time.
pub async fn run(env: Env, service: Arc<Service>, client: Client, interval: Duration, mut stop: watch::Receiver<bool>) {
    let mut standing = service.standing.subscribe();
    let mut swept = recorded(&service).await;
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            serves = standing.wait_for(|standing| *standing == Standing::Serving) => if serves.is_err() { return },
        }
        let asked = ask_about_hopeless(&service, &client).await;
        if let Err(error) = &asked {
            tracing::warn!("whether chunks without a good copy are named is not known now: {error}");
        }
        let pause = match sweep(&service, &client, &mut swept).await {
            Ok(Done { removed, whole }) => {
                if removed > 0 {
                    tracing::info!("removed {removed} chunks that were stored and never committed");
                }
                service.counters.orphan_chunks.inc_by(removed);
                if whole {
                    record(&service.arrivals, swept.get(&service.node).copied()).await;
                }
                if asked.is_ok() { interval } else { RETRY.min(interval) }
            }
            Err(error) => {
                tracing::warn!("orphans are not removed now: {error}");
                RETRY.min(interval)
            }
        };
        let doubt = async {
            env.sleep(RETRY.min(interval)).await;
            service.repair.doubt.notified().await;
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(pause) => {}
            () = doubt => {}
        }
    }
}

/// What the lives before have swept. Where a disk is damaged, the record of a tombstone may be lost, and what it stood
/// against is there again: then all is swept anew.
async fn recorded(service: &Service) -> Swept {
    if service.disks.engines().any(|engine| engine.stats().damaged > 0) {
        return Swept::new();
    }
    Swept::from([service.arrivals.recorded().await])
}

/// Only what a row names can be lost.
async fn ask_about_hopeless(service: &Service, client: &Client) -> Result<(), Error> {
    let doubtful = service.repair.doubtful();
    let groups = shards(&service.map.borrow());
    if doubtful.is_empty() || groups.is_empty() {
        return Ok(());
    }
    let mut rest: BTreeSet<ChunkId> = doubtful.into_iter().collect();
    let mut failed = Ok(());
    for group in groups {
        if rest.is_empty() {
            break;
        }
        let ids: Vec<ChunkId> = rest.iter().copied().collect();
        match client.named_chunks(group, &ids).await {
            // What one shard names is lost, whatever the others say.
            Ok(named) => {
                service.repair.answer(&named, true);
                let named: BTreeSet<ChunkId> = named.into_iter().collect();
                rest.retain(|id| !named.contains(id));
            }
            Err(error) => failed = Err(error),
        }
    }
    if failed.is_ok() {
        let unnamed: Vec<ChunkId> = rest.into_iter().collect();
        service.repair.answer(&unnamed, false);
    }
    failed
}

fn shards(map: &ClusterMap) -> Vec<GroupId> {
    map.shards.iter().map(|row| GroupId(row.group)).collect()
}

async fn record(arrivals: &Arrivals, swept: Option<Generation>) {
    if let Some(swept) = swept
        && let Err(error) = arrivals.record(swept).await
    {
        tracing::warn!("the sweep cannot be recorded and will be repeated: {error}");
    }
}

struct Done {
    /// Chunks.
    removed: u64,
    /// Every disk of the node was looked at. One that was not may come back with the next start, and is to be swept then.
    whole: bool,
}

/// One sweep over all disks.
async fn sweep(service: &Service, client: &Client, swept: &mut Swept) -> Result<Done, Error> {
    let mut come = service.arrivals.take();
    let done = sweep_with(service, client, &mut come, swept).await;
    service.arrivals.put_back(come);
    done
}

/// Takes out of `come` what it has looked at.
async fn sweep_with(service: &Service, client: &Client, come: &mut Come, swept: &mut Swept) -> Result<Done, Error> {
    let map = service.map.borrow().clone();
    let groups = shards(&map);
    if groups.is_empty() {
        return Ok(Done { removed: 0, whole: false });
    }
    let due =
        Due { fenced: floors(&map, |row| row.generation_floor), closed: floors(&map, NodeRow::sessions_open_from) };
    let mut closed = BTreeSet::new();
    let mut removed = 0;
    let mut whole = has_all_disks(service, &map);
    for engine in service.disks.engines() {
        if matches!(engine.state(), DiskState::Broken(_) | DiskState::Closed) {
            // It takes no tombstones, in this life.
            come.settle(engine.identity().disk);
            whole = false;
            continue;
        }
        for pool in map.pools.iter().filter_map(|row| u8::try_from(row.id).ok()).map(PoolId) {
            let mut after = None;
            loop {
                let (found, next) = candidates(engine, pool, &due, swept, come, after);
                for node in found.iter().map(|id| id.session.node).collect::<BTreeSet<NodeId>>() {
                    if closed.insert(node) && !plant::is(Plant::SweepBeforeClose) {
                        close(client, &groups, Session { node, generation: due.closed[&node] }).await?;
                    }
                }
                removed += remove_unnamed(client, engine, &groups, found).await?;
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        come.settle(engine.identity().disk);
    }
    for (node, floor) in due.fenced {
        let swept = swept.entry(node).or_insert(floor);
        *swept = floor.max(*swept);
    }
    Ok(Done { removed, whole })
}

/// Whether every disk that the map knows of this node is open here.
fn has_all_disks(service: &Service, map: &ClusterMap) -> bool {
    let own = map.disks.iter().filter(|row| row.node == service.node.0 && row.state() != map::DiskState::Removed);
    let open: BTreeSet<[u8; 16]> =
        service.disks.engines().map(|engine| engine.identity().disk.0.to_be_bytes()).collect();
    own.into_iter().all(|row| open.iter().any(|id| id[..] == row.id[..]))
}

/// Of each node: of which sessions what nobody names may go.
pub struct Due {
    /// Everything of those below: their process has ended, or was voted out.
    pub fenced: Swept,
    /// What is damaged of those below. To ask about everything that a process has stored in a day, each day, would cost more
    /// than the few chunks are worth that a PUT of unknown outcome leaves.
    pub closed: Swept,
}

fn floors(map: &ClusterMap, of: impl Fn(&NodeRow) -> u32) -> Swept {
    map.nodes.iter().map(|row| (NodeId(row.id), Generation(of(row)))).collect()
}

async fn close(client: &Client, groups: &[GroupId], floor: Session) -> Result<(), Error> {
    for group in groups {
        client.close_sessions(*group, floor).await?;
    }
    Ok(())
}

/// Chunks of fenced sessions that were not swept yet, or of which some have come since, and damaged ones of all closed
/// sessions, from behind `after` on, at most as many as are asked about at once; and where to go on.
pub fn candidates(
    engine: &Engine,
    pool: PoolId,
    due: &Due,
    swept: &Swept,
    come: &Come,
    mut after: Option<ChunkId>,
) -> (Vec<ChunkId>, Option<ChunkId>) {
    let is_due = |stat: &&ChunkStat| {
        let (node, generation) = (stat.id.session.node, stat.id.session.generation);
        let is_below = |floors: &Swept| floors.get(&node).is_some_and(|floor| generation < *floor);
        let is_unswept =
            swept.get(&node).is_none_or(|swept| generation >= *swept) || come.has(engine.identity().disk, stat.id);
        (stat.damaged && is_below(&due.closed)) || (is_unswept && is_below(&due.fenced))
    };
    let mut found = Vec::new();
    while found.len() + INVENTORY_PAGE <= NAMED_IDS_MAX {
        let page = engine.inventory(after, pool, 0..=(1 << SLOT_BITS) - 1, INVENTORY_PAGE);
        found.extend(page.iter().filter(is_due).map(|stat| stat.id));
        match page.last() {
            Some(last) if page.len() == INVENTORY_PAGE => after = Some(last.id),
            _ => return (found, None),
        }
    }
    (found, after)
}

/// Deletes those that no shard names. The shards have closed the sessions before: what they do not name now, they never
/// will.
async fn remove_unnamed(
    client: &Client,
    engine: &Engine,
    groups: &[GroupId],
    found: Vec<ChunkId>,
) -> Result<u64, Error> {
    let unnamed: Vec<ChunkId> = unnamed(client, groups, &found).await?.into_iter().collect();
    for ids in unnamed.chunks(DELETES_MAX) {
        engine.delete(ids.to_vec()).await.map_err(|error| Error::Unavailable(error.to_string()))?;
    }
    Ok(unnamed.len() as u64)
}

/// Those that no shard names now. One that cannot be asked, or whose rows are damaged, may name anything: then nothing is
/// answered.
async fn unnamed(client: &Client, groups: &[GroupId], found: &[ChunkId]) -> Result<BTreeSet<ChunkId>, Error> {
    let mut unnamed: BTreeSet<ChunkId> = found.iter().copied().collect();
    for group in groups {
        if unnamed.is_empty() {
            break;
        }
        let ids: Vec<ChunkId> = unnamed.iter().copied().collect();
        for id in client.named_chunks(*group, &ids).await? {
            unnamed.remove(&id);
        }
    }
    Ok(unnamed)
}

/// Answers which of these chunks the rows of `group` name; the caller has confirmed that they are as of now.
pub async fn named(service: &Service, group: GroupId, raw: &[u8]) -> Result<Answer, ViewError> {
    if !raw.len().is_multiple_of(ChunkId::LEN) || raw.len() > NAMED_IDS_MAX * ChunkId::LEN {
        let why = format!("at most {NAMED_IDS_MAX} chunk ids of 16 bytes");
        return Ok(Answer::failed(Failure::Invalid, why));
    }
    let id = |raw: &[u8]| Some(ChunkId::from_bytes(raw.try_into().ok()?));
    let asked: BTreeSet<ChunkId> = raw.chunks_exact(ChunkId::LEN).filter_map(id).collect();
    let named = references(service, group, &asked).await?;
    let ids: Vec<u8> = named.iter().flat_map(|id| id.to_bytes()).collect();
    Ok(Answer::of(Told::Named(NamedIds { ids: ids.into() })))
}

async fn references(
    service: &Service,
    group: GroupId,
    asked: &BTreeSet<ChunkId>,
) -> Result<BTreeSet<ChunkId>, ViewError> {
    let snapshot = service.kv.snapshot();
    let view = KvView::over(&*snapshot);
    let state = meta::group::load(&view, group)?;
    // Rows that are being replaced name little: what they do not name is not unnamed.
    if state.feature_level == 0 || state.install() != Install::Whole {
        return Err(ViewError::Io(format!("group {group} does not have its rows yet")));
    }
    let mut named = BTreeSet::new();
    for (start, end) in meta::group::row_ranges(group, &state) {
        let mut from = start;
        loop {
            let rows = view.scan(&from, &end, SCAN_ROWS)?;
            for (key, value) in &rows {
                let references = meta::object::references(key, value)?;
                named.extend(references.into_iter().map(|named| named.chunk.id).filter(|id| asked.contains(id)));
            }
            let Some((last, _)) = rows.last() else { break };
            from = [last.as_ref(), &[0]].concat().into();
            // A long scan must not starve the requests that share this thread.
            service.env.sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(named)
}
