//! Putting a backup back: on each stopped node of its cluster, and the same on each.
//!
//! Every node that voted in a group then gets the same rows, and a log that begins behind them: as many replicas that
//! agree, which elect a leader when they start. What the nodes' logs and rows were before is given up; the cluster goes on under
//! a generation of its own, so that a node on which nothing was restored is refused by the others, and no word of the former
//! life (votes, entries, who leads) is heard in this one. That is why restoring twice under one generation must not be.
//!
//! The order makes every crash safe: while the directory has a file `restoring`, the node does not start, and the restoration
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
use store::kv::{Kv, LsmKv};
use store::{DiskIdentity, Engine, RaftWrite};

use super::check::{Announced, Step, Walk};
use super::{Summary, check};
use crate::group::encode_hard_state;
use crate::home::{self, NodeIdentity, Restoring};
use crate::machine::change_out;
use crate::offline::keeping_tombstones;
use crate::start::key_value_options;

/// What is committed before it is flushed.
const FLUSH_BYTES: usize = 64 << 20;

/// What is restored, and how.
pub struct Target<'a> {
    pub env: &'a Env,
    /// The node's own directory.
    pub data: &'a dyn Disk,
    /// Its first disk, which holds the metadata.
    pub metadata: Arc<dyn Disk>,
    /// It is another one than it was when the backup was taken; an empty one is formatted.
    pub new_disk: bool,
    /// Of the cluster, under which it goes on: [`Summary::generation_above`], the same on every node.
    pub generation: u32,
}

/// Puts the metadata of a backup in the place of that of a stopped node. `open` opens the file; it is read twice, the
/// first time before anything is changed.
///
/// The node does not start before [`finish`] was called. What its key-value store held is set aside. Running it again after it
/// was cut off is harmless. Answers one sentence a group.
pub async fn restore<R: Read>(target: Target<'_>, open: impl Fn() -> Result<R, String>) -> Result<Vec<String>, String> {
    let Target { env, data, metadata, new_disk, generation } = target;
    let summary = check(open()?)?;
    let identity = home::load_identity(data).await.map_err(|error| error.to_string())?;
    let identity = identity.ok_or("no node has been here: a restored node keeps its own directory")?;
    fits(&summary, &identity, generation)?;
    check_disk(&metadata, &identity, &summary, new_disk).await?;
    let begun = home::load_restoring(data).await.map_err(|error| error.to_string())?;
    let now = Restoring { generation, digest: summary.digest, set_aside: false };
    if let Some(begun) = begun
        && (begun.generation, begun.digest) != (now.generation, now.digest)
        && begun.generation >= generation
    {
        return Err(format!(
            "another restoration, as generation {}, was begun here and cut off: complete that one",
            begun.generation
        ));
    }
    let set_aside = begun.is_some_and(|begun| begun.set_aside);
    home::store_restoring(data, Restoring { set_aside, ..now }).await.map_err(|error| error.to_string())?;
    if !set_aside {
        LsmKv::set_aside(&*metadata).map_err(|error| error.to_string())?;
        home::store_restoring(data, Restoring { set_aside: true, ..now }).await.map_err(|error| error.to_string())?;
    }
    let engine = open_engine(env, &metadata, &identity).await?;
    let seed = engine.identity().disk.0;
    let (kv, _) = LsmKv::open(env, metadata, seed, key_value_options()).await.map_err(|error| error.to_string())?;
    // Of a restoration that was cut off.
    kv.retain(Vec::new()).await.map_err(|error| error.to_string())?;
    for id in engine.raft_groups() {
        engine.raft_remove(id).await.map_err(|error| error.to_string())?;
    }
    let done = put(&engine, &kv, &identity, Walk::begin(open()?)?, generation).await?;
    kv.close().await;
    engine.close().await;
    home::forget_sweeps(data, identity.node).await.map_err(|error| error.to_string())?;
    let others: Vec<_> = summary.nodes.into_iter().filter(|(node, _)| *node != identity.node).collect();
    if !others.is_empty() && home::load_contacts(data).await.map_err(|error| error.to_string())?.is_empty() {
        home::store_contacts(data, &others).await.map_err(|error| error.to_string())?;
    }
    let told = NodeIdentity { recovered: false, ..identity };
    home::store_identity(data, &told).await.map_err(|error| error.to_string())?;
    Ok(done)
}

/// Another disk than the one that the node had its metadata on would be restored, and the node would start with the old one.
async fn check_disk(
    metadata: &Arc<dyn Disk>,
    identity: &NodeIdentity,
    summary: &Summary,
    new_disk: bool,
) -> Result<(), String> {
    let found = Engine::read_identity(metadata).await.map_err(|error| error.to_string())?;
    let place = metadata.describe();
    match found {
        Some(found) if (found.cluster, found.node) != (identity.cluster, identity.node) => {
            Err(format!("{place} belongs to node {} of cluster {}", found.node, found.cluster))
        }
        Some(found) if new_disk || summary.metadata_disks.contains(&(identity.node, found.disk)) => Ok(()),
        None if new_disk => Ok(()),
        _ => Err(format!(
            "{place} is not the disk on which node {} had its metadata when the backup was taken: give the first --disk that \
             the node is started with, as a directory; or --new-disk, when it is another one by now",
            identity.node
        )),
    }
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
            Step::Group(begun) if begun.voter_on(identity.node).is_some() => {
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
pub fn finish(data: &dyn Disk) -> Result<(), String> {
    home::end_restoring(data).map_err(|error| error.to_string())
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
            "it does not know node {}, which joined later: keep its directories until `henge fsck`, given them too, finds \
             nothing lost; then start it anew with empty ones and a token",
            identity.node
        ));
    }
    if generation <= summary.cluster_generation {
        return Err(format!("the generation must be above {}, the backup's", summary.cluster_generation));
    }
    Ok(())
}

/// The metadata disk, formatted when it is an empty one.
async fn open_engine(env: &Env, metadata: &Arc<dyn Disk>, identity: &NodeIdentity) -> Result<Engine, String> {
    let options = keeping_tombstones();
    if Engine::read_identity(metadata).await.map_err(|error| error.to_string())?.is_none() {
        let disk = DiskId::random(&*env.random);
        let fresh = DiskIdentity { cluster: identity.cluster, disk, node: identity.node };
        Engine::format(env, metadata.clone(), &fresh, &options).await.map_err(|error| error.to_string())?;
    }
    let (engine, _) = Engine::open(env, metadata.clone(), options).await.map_err(|error| error.to_string())?;
    Ok(engine)
}

/// An empty log behind the rows. The peer has neither voted nor acknowledged anything in this life of the cluster.
async fn begin_log(engine: &Engine, announced: &Announced, node: NodeId) -> Result<(), String> {
    let peer = announced.voter_on(node).ok_or("this node does not vote in it")?;
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
