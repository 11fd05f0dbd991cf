//! A stopped node, looked at without changing anything: what the offline check needs besides `store::inspect`.

use base::Env;
use base::env::Disk;
use base::ids::{GroupId, LogIndex, PeerId, Term};
use bytes::Bytes;
use meta::group::{self, Install};
use meta::view::{Overlay, View};
use protocol::raft::{Configuration, Entry};
use std::sync::Arc;
use store::kv::{Kv, LsmKv};
use store::{Engine, EngineOptions, RaftWrite};

pub use crate::home::{HomeError, NodeIdentity, Restoring, load_restoring as restoring};
pub use crate::machine::KvView;
use crate::replicas::reset_log;
use crate::start::key_value_options;

/// Whose directory `data` is; `None` when no node has been here. Checks all of the node's own files.
pub async fn identity(data: &dyn Disk) -> Result<Option<NodeIdentity>, HomeError> {
    let Some(identity) = crate::home::load_identity(data).await? else { return Ok(None) };
    crate::home::load_generations(data, identity.node).await?;
    Ok(Some(identity))
}

/// Makes a stopped node the sole voter of every group of which it has a replica, for when the other voters are gone for
/// good: what only they had is lost. `metadata` is the disk with the Raft logs. Answers one sentence a group. Running
/// it again is harmless.
///
/// The node starts under a new generation of the cluster: nodes that know only the one before are refused by it.
pub async fn recover(env: &Env, data: &dyn Disk, metadata: Arc<dyn Disk>) -> Result<Vec<String>, String> {
    let identity = crate::home::load_identity(data).await.map_err(|error| error.to_string())?;
    let identity = identity.ok_or("no node has been here")?;
    if crate::home::load_restoring(data).await.map_err(|error| error.to_string())?.is_some() {
        return Err("the restoration of its metadata was cut off: run `henge metadata restore` again first".into());
    }
    let (engine, _) =
        Engine::open(env, metadata.clone(), keeping_tombstones()).await.map_err(|error| error.to_string())?;
    let seed = engine.identity().disk.0;
    let (kv, _) = LsmKv::open(env, metadata, seed, key_value_options()).await.map_err(|error| error.to_string())?;
    let mut done = Vec::new();
    for id in engine.raft_groups() {
        done.push(recover_group(&engine, &kv, &identity, id).await.map_err(|why| format!("group {id}: {why}"))?);
    }
    if done.is_empty() {
        return Err("this disk holds no replica of any group".into());
    }
    kv.flush().await.map_err(|error| error.to_string())?;
    let recovered = NodeIdentity { recovered: true, ..identity };
    crate::home::store_identity(data, &recovered).await.map_err(|error| error.to_string())?;
    kv.close().await;
    engine.close().await;
    Ok(done)
}

/// Nobody can say here which tombstones may go.
pub(crate) fn keeping_tombstones() -> EngineOptions {
    EngineOptions { may_drop_tombstone: Arc::new(|_| false), ..EngineOptions::default() }
}

async fn recover_group(
    engine: &Engine,
    kv: &Arc<LsmKv>,
    identity: &NodeIdentity,
    id: GroupId,
) -> Result<String, String> {
    let state = group::load(&KvView::over(&**kv), id).map_err(|error| error.to_string())?;
    let mut log = engine.raft_load(id).await.map_err(|error| error.to_string())?.ok_or("its log is gone")?;
    if state.install() == Install::Incomplete || state.conf_state.is_empty() {
        return Err("this node has no whole state of it: recover another node".into());
    }
    if state.install() == Install::LogDue {
        // A snapshot was installed, and the state was not flushed again since.
        log = reset_log(engine, id, log, &state).await?;
    }
    let before = Configuration::decode(&state.conf_state)?;
    // Changes of the members that were never applied would bring the others back: they become empty entries. The log
    // is rewritten from the first of them on, in one write, so that a crash keeps the one or the other.
    let is_void = |entry: &store::RaftEntry| entry.index.0 > state.applied_index && as_entry(entry).is_configuration();
    let voided = log.entries.iter().filter(|entry| is_void(entry)).count() as u64;
    // Each of those changes may have allotted one peer id, which must not be allotted again.
    let peer_last = PeerId(before.peer_last.0 + voided);
    let alone = Configuration { peer_last, ..Configuration::of_one(log.peer, identity.node) };
    if let Some(first) = log.entries.iter().position(is_void) {
        let entries: Vec<store::RaftEntry> = log.entries[first..]
            .iter()
            .map(|entry| match is_void(entry) {
                true => store::RaftEntry { data: Bytes::new(), ..entry.clone() },
                false => entry.clone(),
            })
            .collect();
        let write = RaftWrite { group: id, peer: log.peer, entries, ..RaftWrite::default() };
        engine.raft_write(write).await.map_err(|error| error.to_string())?;
    }
    let (index, term) = (LogIndex(state.applied_index), Term(state.applied_term));
    let row = group::advance(&KvView::over(&**kv), id, index, term, alone.encode()).map_err(|e| e.to_string())?;
    kv.commit(vec![crate::machine::change_out(row)]).map_err(|error| error.to_string())?;
    let last = log.entries.last().map_or(log.base.0, |entry| entry.index);
    let voters = before.voters.len();
    Ok(format!("group {id}: sole voter instead of one of {voters}; its log ends at entry {last}"))
}

fn as_entry(entry: &store::RaftEntry) -> Entry {
    Entry { index: entry.index, term: entry.term, data: entry.data.clone() }
}

/// What the rows of a replica say of themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// The rows hold the effect of everything up to here.
    pub applied: (LogIndex, Term),
    pub configuration: Configuration,
    /// The rows are a snapshot's: unless the log holds the applied entry, it is void.
    pub log_due: bool,
}

/// `None`: the replica has no state; it was never given one, or was being given one.
pub fn replica_state(rows: &dyn View, id: GroupId) -> Result<Option<ReplicaState>, String> {
    let state = group::load(rows, id).map_err(|error| error.to_string())?;
    if !state.is_supported() {
        return Err(format!("it is at feature level {}: use a newer henge", state.feature_level));
    }
    if state.install() == Install::Incomplete || state.conf_state.is_empty() {
        return Ok(None);
    }
    Ok(Some(ReplicaState {
        applied: (LogIndex(state.applied_index), Term(state.applied_term)),
        configuration: Configuration::decode(&state.conf_state)?,
        log_due: state.install() == Install::LogDue,
    }))
}

/// Applies to `rows` the entries after `from` up to and with `until`, as a leader that holds them would. Answers how
/// many that were, or why it cannot be done.
pub fn replay(
    rows: &mut Overlay<'_>,
    id: GroupId,
    entries: &[store::RaftEntry],
    from: LogIndex,
    until: LogIndex,
) -> Result<u64, String> {
    let mut replayed = 0;
    for entry in entries.iter().filter(|entry| entry.index > from && entry.index <= until).map(as_entry) {
        if !entry.data.is_empty() && !entry.is_configuration() {
            crate::machine::apply_one(rows, id, &entry).map_err(|error| error.to_string())?;
        }
        replayed += 1;
    }
    Ok(replayed)
}
