//! What a node does in the background: flushes of the key-value store and trimming of logs, deletion of what no key
//! names any more, removal of what was stored and never committed.

use base::Env;
use base::env::{Disk, MonoTime};
use base::ids::{ChunkId, GROUP_ZERO, GroupId, NodeId};
use base::plant::{self, Plant};
use base::{GIB, MIB};
use bytes::Bytes;
use client::{Client, Error};
use meta::group::GroupState;
use meta::map::command::{DiskRow, DiskState, MapCommand, NodeRow, NodeState};
use meta::object::command::{Garbage, ListGarbage, ShardFound, ShardQuery, ShardRead};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use crate::events::EventKind;
use crate::group::GroupHandle;
use crate::home::GenerationClock;
use crate::machine::KvView;
use crate::service::{Service, Standing};

/// Unflushed state that makes a flush worth its writing, or twice as many bytes of log. Each takes about three bytes of memory until then.
pub const FLUSH_BYTES: u64 = 16 * MIB;
const FLUSH_CHECK: Duration = Duration::from_millis(200);
/// How long a reader may still need chunks that were deleted: liveness only.
pub const GARBAGE_GRACE: Duration = Duration::from_secs(15);
const GARBAGE_CHECK: Duration = Duration::from_millis(500);
/// A session lives for a day at most.
pub const RENEW_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
const LEVEL_CHECK: Duration = Duration::from_secs(1);
const DISK_CHECK: Duration = Duration::from_secs(1);
/// How long a node hears no leader of group 0 until it asks around for the map, and how often it does.
const MAP_CHECK: Duration = Duration::from_secs(1);
const RENEW_CHECK: Duration = Duration::from_secs(60);
/// Garbage rows handled at once.
const GARBAGE_ROWS_MAX: u32 = 128;

const _: () = assert!(FLUSH_BYTES < GIB / 8, "replay after a crash stays short");

/// Flushes the key-value store when enough has gathered, then lets the logs forget what is durable.
pub async fn flush_key_value(env: Env, service: Arc<Service>, flush_bytes: u64, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(FLUSH_CHECK) => {}
        }
        let log_bytes: u64 = service.replicas.all().iter().map(|group| group.log_bytes()).sum();
        if service.kv.unflushed_bytes() >= flush_bytes || log_bytes >= 2 * flush_bytes {
            flush_now(&service).await;
        }
    }
}

/// One flush. The applied indexes are read before it: everything up to them is then durable.
pub async fn flush_now(service: &Service) {
    let applied: Vec<_> = service.replicas.all().into_iter().map(|group| (group.applied(), group)).collect();
    if !plant::is(Plant::TrimBeyondFlush)
        && let Err(error) = service.kv.flush().await
    {
        tracing::error!("the key-value store cannot be flushed: {error}");
        return;
    }
    service.counters.kv_flushes.inc();
    for (index, group) in applied {
        group.trim(index).await;
    }
}

/// Raises the generation after `period`, again and again, and before a session runs out of chunk numbers.
pub async fn renew_session(
    env: Env,
    service: Arc<Service>,
    client: Client,
    clock: Arc<GenerationClock>,
    period: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let mut renewed = env.now();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(RENEW_CHECK.min(period)) => {}
        }
        // One that is out comes back under a new generation anyway.
        if *service.standing.borrow() != Standing::Serving {
            continue;
        }
        if env.now().since(renewed) < period && client.chunks_named() < u32::MAX / 2 {
            continue;
        }
        match crate::announce::raise(&client, &clock).await {
            Ok(_) => renewed = env.now(),
            Err(why) => tracing::error!("the generation cannot be raised: {why}"),
        }
    }
}

/// Tells the shards that this node leads which feature level the cluster has reached: before, they refuse newer commands.
pub async fn raise_shards(env: Env, service: Arc<Service>, client: Client, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(LEVEL_CHECK) => {}
        }
        let level = client.map().map.feature_level;
        for group in service.replicas.all().into_iter().filter(|group| group.id != GROUP_ZERO && group.is_leader()) {
            // A shard at level 0 is still being made.
            let is_behind = |state: GroupState| (1..level).contains(&state.feature_level);
            if !meta::group::load(&KvView::of(&service.kv), group.id).is_ok_and(is_behind) {
                continue;
            }
            match client.raise_shard(group.id, level).await {
                Ok(()) => tracing::info!("group {} is at feature level {level} now", group.id),
                Err(error) => tracing::info!("group {} cannot be told of feature level {level} yet: {error}", group.id),
            }
        }
    }
}

/// Writes tombstones for the chunks in the garbage queues of all shards, then retires the rows.
pub async fn collect_garbage(
    env: Env,
    service: Arc<Service>,
    client: Client,
    grace: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let mut seen: BTreeMap<GroupId, VecDeque<(MonoTime, u64)>> = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(GARBAGE_CHECK) => {}
        }
        // A shard's leader collects: of what is garbage there, nothing can be named again.
        let led: Vec<GroupHandle> =
            service.replicas.all().into_iter().filter(|group| group.id != GROUP_ZERO && group.is_leader()).collect();
        seen.retain(|id, _| led.iter().any(|group| group.id == *id));
        for group in led {
            let grace = if service.disks.short_of_space() { Duration::ZERO } else { grace };
            let due = due_sequence(&env, &group, seen.entry(group.id).or_default(), grace);
            if let Err(error) = collect_until(&service, &client, group.id, due).await {
                tracing::warn!("garbage of group {} waits: {error}", group.id);
            }
        }
    }
}

/// The newest sequence that has been garbage for at least `grace`.
fn due_sequence(env: &Env, group: &GroupHandle, seen: &mut VecDeque<(MonoTime, u64)>, grace: Duration) -> u64 {
    const SEEN_MAX: usize = 256;
    // Whatever is garbage now has a sequence up to the one of the applied index.
    let newest = meta::object::garbage_sequence_max(group.applied());
    if seen.back().is_none_or(|(_, last)| *last < newest) && seen.len() < SEEN_MAX {
        seen.push_back((env.now(), newest));
    }
    let mut due = 0;
    while let Some((since, sequence)) = seen.front().copied() {
        if env.now().since(since) < grace {
            break;
        }
        due = sequence;
        seen.pop_front();
    }
    due
}

async fn collect_until(service: &Service, client: &Client, group: GroupId, due: u64) -> Result<(), Error> {
    let mut after = 0;
    while after < due {
        let read = ShardRead::ListGarbage(ListGarbage { after, limit: GARBAGE_ROWS_MAX });
        let query = ShardQuery { range_epoch: 0, read: Some(read) };
        let answer = match meta::object::query(&KvView::of(&service.kv), group, query) {
            Ok(answer) => answer,
            Err(error) => return Err(service.lost_rows(group, &error).await),
        };
        let Some(ShardFound::Garbage(page)) = answer.found else { return Ok(()) };
        let rows: Vec<_> = page.rows.into_iter().take_while(|row| row.sequence <= due).collect();
        let Some(last) = rows.last() else { return Ok(()) };
        after = last.sequence;
        let buried = bury_rows(service, client, &rows).await?;
        if !buried.is_empty() {
            client.retire_garbage(group, buried).await?;
        }
    }
    Ok(())
}

/// Writes tombstones for the chunks of all rows at once or, where a disk is out of service, row by row, so that what
/// cannot be deleted now does not hold up the rest. Answers the rows that are done.
async fn bury_rows(service: &Service, client: &Client, rows: &[Garbage]) -> Result<Vec<u64>, Error> {
    let mut chunks: Vec<Vec<ChunkId>> = Vec::with_capacity(rows.len());
    for row in rows {
        let unpacked = meta::chunks::unpack(&row.chunks).map_err(|error| Error::Damaged(error.to_string()))?;
        chunks.push(unpacked.into_iter().map(|chunk| chunk.id).collect());
    }
    if client.bury_chunks(&chunks.concat()).await.is_ok() {
        service.counters.garbage_chunks.inc_by(chunks.iter().map(|ids| ids.len() as u64).sum());
        return Ok(rows.iter().map(|row| row.sequence).collect());
    }
    let mut buried = Vec::new();
    for (row, ids) in rows.iter().zip(&chunks) {
        match client.bury_chunks(ids).await {
            Ok(()) => {
                service.counters.garbage_chunks.inc_by(ids.len() as u64);
                buried.push(row.sequence);
            }
            Err(error) => tracing::debug!("garbage row {} waits: {error}", row.sequence),
        }
    }
    Ok(buried)
}

/// Tells the cluster map when a disk fails while the node runs, so that no new data is placed there.
pub async fn announce_failures(env: Env, service: Arc<Service>, client: Client, mut stop: watch::Receiver<bool>) {
    let mut announced = BTreeSet::new();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(DISK_CHECK) => {}
        }
        for disk in service.disks.all.iter().filter(|disk| disk.state().0 == "failed") {
            let id = Bytes::copy_from_slice(&disk.id.0.to_be_bytes());
            let map = client.map();
            let row = map.map.disks.iter().find(|row| row.id == id && row.state().serves());
            let Some(row) = row.filter(|_| !announced.contains(&disk.id)) else { continue };
            tracing::error!("disk {} has failed: {}", disk.label, disk.state().1);
            let failed = DiskRow { state: DiskState::Failed as i32, ..row.clone() };
            match client.change_map_checked(MapCommand::SetDisk(failed)).await {
                Ok(_) => {
                    announced.insert(disk.id);
                    let what = format!("disk {} of node {} has failed: {}", disk.label, service.node, disk.state().1);
                    service.events.record(EventKind::DiskFailed, service.node, what);
                }
                Err(error) => tracing::warn!("the failure of disk {} is not in the map yet: {error}", disk.label),
            }
        }
    }
}

/// Asks other nodes for their map while this one hears no leader of group 0: it may have been voted out, and no member
/// of that group any more, so that nobody sends it anything.
pub async fn ask_for_map(env: Env, service: Arc<Service>, client: Client, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(MAP_CHECK) => {}
        }
        let hears = |group: &GroupHandle| group.is_leader() || env.now().since(group.leader_heard()) < MAP_CHECK;
        if !service.replicas.get(GROUP_ZERO).is_some_and(|group| hears(&group)) {
            client.ask_around().await;
        }
    }
}

/// Shows every new version of the map to the client and the network, and keeps the addresses of the other nodes.
pub async fn follow_map(env: Env, service: Arc<Service>, client: Client, home: Arc<dyn Disk>) {
    let mut map = service.map.clone();
    let mut known = Vec::new();
    loop {
        let newest = map.borrow_and_update().clone();
        if newest.version > 0 {
            client.learn_map(newest.as_ref().clone());
            let there = |row: &&NodeRow| row.state() != NodeState::Removed && row.id != service.node.0;
            let others: Vec<(NodeId, String)> =
                newest.nodes.iter().filter(there).map(|row| (NodeId(row.id), row.address.clone())).collect();
            if others != known {
                env.net.learn_peers(&others);
                match crate::home::store_contacts(&*home, &others).await {
                    Ok(()) => known = others,
                    Err(error) => tracing::warn!("the addresses of the other nodes cannot be kept: {error}"),
                }
            }
        }
        if map.changed().await.is_err() {
            return;
        }
    }
}
