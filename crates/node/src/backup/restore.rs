//! Putting a backup back: on each stopped node of its cluster, and the same on each.
//!
//! Every node that voted in a group then gets the same rows, and a log that begins behind them: as many replicas that
//! agree, which elect a leader when they start. What the nodes' logs and rows were before is given up; the cluster goes on under
//! a generation of its own, so that a node on which nothing was restored is refused by the others, and no word of the former
//! life (votes, entries, who leads) is heard in this one. That is why restoring twice under one generation must not be.
//!
//! The order makes every crash safe: while the directory says `restoring`, the node does not start, and the restoration
//! is begun again.

use base::Env;
use base::env::Disk;
use base::ids::{DiskId, LogIndex, NodeId, Term};
use meta::group::{self, Install};
use meta::map;
use meta::view::Change;
use protocol::raft::HardState;
use std::io::Read;
use std::sync::Arc;
use store::kv::{Kv, KvOptions, LsmKv};
use store::{DiskIdentity, Engine, EngineOptions, RaftWrite};

use super::check::{Announced, Step, Walk};
use super::{Summary, check};
use crate::group::encode_hard_state;
use crate::home::{self, NodeIdentity};
use crate::machine::change_out;

/// What is committed before it is flushed.
const FLUSH_BYTES: usize = 64 << 20;

/// Puts the metadata of a backup in the place of that of the stopped node whose directory is `data`; `metadata` is its first
/// disk. `open` opens the file; it is read twice, the first time before anything is changed. `generation`: under
/// which the cluster goes on; the same on every node, above all that it had.
///
/// The node does not start before [`finish`] was called. What its key-value store held is set aside. Running it again after it
/// was cut off is harmless. Answers one sentence a group.
pub async fn restore<R: Read>(
    env: &Env,
    data: &dyn Disk,
    metadata: Arc<dyn Disk>,
    open: impl Fn() -> Result<R, String>,
    generation: u32,
) -> Result<Vec<String>, String> {
    let summary = check(open()?)?;
    let identity = home::load_identity(data).await.map_err(|error| error.to_string())?;
    let identity = identity.ok_or("no node has been here: a restored node keeps its own directory")?;
    fits(&summary, &identity, generation)?;
    let engine = open_engine(env, &metadata, &identity).await?;
    if !identity.restoring {
        LsmKv::set_aside(&*metadata).map_err(|error| error.to_string())?;
        let begun = NodeIdentity { restoring: true, ..identity };
        home::store_identity(data, &begun).await.map_err(|error| error.to_string())?;
    }
    let seed = engine.identity().disk.0;
    let (kv, _) = LsmKv::open(env, metadata, seed, KvOptions::default()).await.map_err(|error| error.to_string())?;
    // Of a restoration that was cut off.
    kv.retain(Vec::new()).await.map_err(|error| error.to_string())?;
    for id in engine.raft_groups() {
        engine.raft_remove(id).await.map_err(|error| error.to_string())?;
    }
    let done = put(&engine, &kv, &identity, Walk::begin(open()?)?, generation).await?;
    kv.close().await;
    engine.close().await;
    home::forget_sweeps(data, identity.node).await.map_err(|error| error.to_string())?;
    if home::load_contacts(data).await.map_err(|error| error.to_string())?.is_empty() {
        home::store_contacts(data, &summary.nodes).await.map_err(|error| error.to_string())?;
    }
    Ok(done)
}

/// Group by group: rows, the group's own row, then the log that begins behind them.
async fn put<R: Read>(
    engine: &Engine,
    kv: &LsmKv,
    identity: &NodeIdentity,
    mut walk: Walk<R>,
    generation: u32,
) -> Result<Vec<String>, String> {
    let mut done = Vec::new();
    let mut now: Option<Box<Announced>> = None;
    let (mut rows, mut unflushed) = (0, 0);
    loop {
        let step = walk.next()?;
        if !matches!(step, Step::Rows(_))
            && let Some(ended) = now.take()
        {
            let whole = group::mark(ended.group, &ended.state, Install::Whole);
            kv.commit(vec![change_out(whole)]).map_err(|error| error.to_string())?;
            kv.flush().await.map_err(|error| error.to_string())?;
            begin_log(engine, &ended, identity.node).await?;
            let (group, applied) = (ended.group, ended.state.applied_index);
            done.push(format!("group {group}: {rows} rows, up to entry {applied} of its log"));
        }
        match step {
            Step::Group(begun) if begun.is_voter(identity.node) => {
                (rows, now) = (0, Some(begun));
            }
            Step::Group(begun) => done.push(format!("group {}: this node did not vote in it", begun.group)),
            Step::Rows(_) if now.is_none() => {}
            Step::Rows(changes) => {
                rows += changes.len() as u64;
                let mut puts = Vec::with_capacity(changes.len());
                for change in changes {
                    let change = map::revive(change, generation).map_err(|error| error.to_string())?;
                    if let Change::Put { key, value } = &change {
                        unflushed += key.len() + value.len();
                    }
                    puts.push(change_out(change));
                }
                if !puts.is_empty() {
                    kv.commit(puts).map_err(|error| error.to_string())?;
                }
                if unflushed >= FLUSH_BYTES {
                    kv.flush().await.map_err(|error| error.to_string())?;
                    unflushed = 0;
                }
            }
            Step::End { .. } => return Ok(done),
        }
    }
}

/// The last step: from now on the node may start.
pub async fn finish(data: &dyn Disk) -> Result<(), String> {
    let identity = home::load_identity(data).await.map_err(|error| error.to_string())?;
    let identity = identity.ok_or("no node has been here")?;
    let restored = NodeIdentity { restoring: false, recovered: false, set_up: true, ..identity };
    home::store_identity(data, &restored).await.map_err(|error| error.to_string())
}

fn fits(summary: &Summary, identity: &NodeIdentity, generation: u32) -> Result<(), String> {
    if summary.cluster != identity.cluster {
        return Err(format!(
            "it is a backup of cluster {}, and this directory belongs to cluster {}",
            summary.cluster, identity.cluster
        ));
    }
    if !summary.nodes.iter().any(|(node, _)| *node == identity.node) {
        return Err(format!(
            "it does not know node {}, which joined later: start that node anew with an empty --data and a token",
            identity.node
        ));
    }
    if generation <= summary.cluster_generation {
        return Err(format!("the generation must be above {}, the backup's", summary.cluster_generation));
    }
    Ok(())
}

/// The metadata disk, formatted when it is a new one.
async fn open_engine(env: &Env, metadata: &Arc<dyn Disk>, identity: &NodeIdentity) -> Result<Engine, String> {
    let options = EngineOptions::default();
    let found = Engine::read_identity(metadata).await.map_err(|error| error.to_string())?;
    match found {
        Some(found) if (found.cluster, found.node) != (identity.cluster, identity.node) => {
            return Err(format!("the disk belongs to node {} of cluster {}", found.node, found.cluster));
        }
        Some(_) => {}
        None => {
            let disk = DiskId::random(&*env.random);
            let fresh = DiskIdentity { cluster: identity.cluster, disk, node: identity.node };
            Engine::format(env, metadata.clone(), &fresh, &options).await.map_err(|error| error.to_string())?;
        }
    }
    let (engine, _) = Engine::open(env, metadata.clone(), options).await.map_err(|error| error.to_string())?;
    Ok(engine)
}

/// An empty log behind the rows. The peer has neither voted nor acknowledged anything in this life of the cluster.
async fn begin_log(engine: &Engine, announced: &Announced, node: NodeId) -> Result<(), String> {
    let peer = announced.configuration.peer_of(node).ok_or("this node is no member of it")?;
    let (index, term) = (LogIndex(announced.state.applied_index), Term(announced.state.applied_term));
    let hard_state = HardState { term, ..HardState::default() };
    let write = RaftWrite {
        group: announced.group,
        peer,
        hard_state: Some(encode_hard_state(hard_state)),
        reset: Some((index, term)),
        ..RaftWrite::default()
    };
    engine.raft_write(write).await.map_err(|error| error.to_string())
}
