//! All replicas of groups on this node: found at the start, made when a leader adds this node to a group, dropped when
//! it is removed.

use base::Env;
use base::ids::{GROUP_ZERO, GroupId, LogIndex, NodeId, PeerId, Term};
use bytes::Bytes;
use meta::group::{self, FEATURE_LEVEL, Install};
use meta::map::command::ClusterMap;
use protocol::raft::{Configuration, Entry, HardState, Message, RaftPeer, Restored, Waiting};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use store::kv::{Kv, LsmKv};
use store::{Engine, RaftLog, RaftWrite};
use tokio::sync::{Mutex, watch};

use crate::group::{self as driver, GroupHandle, decode_hard_state};
use crate::machine::{KvView, Machine, change_out};
use crate::transport::{self, PeerGone, RaftBatch, RaftItem};

/// The peer that a group begins with.
pub const FIRST_PEER: PeerId = PeerId(1);

pub struct Replicas {
    env: Env,
    node: NodeId,
    engine: Engine,
    kv: Arc<LsmKv>,
    map: watch::Sender<Arc<ClusterMap>>,
    groups: RwLock<BTreeMap<GroupId, GroupHandle>>,
    /// Held while a replica is made or dropped.
    changing: Mutex<()>,
}

impl Replicas {
    pub fn new(env: Env, node: NodeId, engine: Engine, kv: Arc<LsmKv>) -> Replicas {
        let map = watch::Sender::new(Arc::new(ClusterMap::default()));
        Replicas { env, node, engine, kv, map, groups: RwLock::default(), changing: Mutex::default() }
    }

    pub fn watch_map(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.map.subscribe()
    }

    pub fn get(&self, id: GroupId) -> Option<GroupHandle> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// In the order of their ids.
    pub fn all(&self) -> Vec<GroupHandle> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Starts every replica that the disk holds. `alone`: this node is the whole cluster, so that nothing can replace
    /// what is damaged; else a damaged replica is dropped, and its group adds a new one.
    pub async fn open_all(&self, alone: bool) -> Result<(), String> {
        for id in self.engine.raft_groups() {
            match self.open(id).await {
                Ok(()) => {}
                Err(why) if alone => return Err(why),
                Err(why) => {
                    tracing::error!("the replica of group {id} is given up and will be made anew: {why}");
                    self.forget(id).await?;
                }
            }
        }
        Ok(())
    }

    async fn open(&self, id: GroupId) -> Result<(), String> {
        let log = self.engine.raft_load(id).await.map_err(|error| {
            format!(
                "the Raft log of group {id} is damaged ({error}): with one copy nothing can replace it; \
                 bring back the disk's earlier state, or recover files with `henge fsck`"
            )
        })?;
        if let Some(log) = log {
            self.start(id, log).await?;
        }
        Ok(())
    }

    /// Founds a group with this node as its only voter. First the configuration, durably; then the log, whose
    /// existence says that the group exists.
    pub async fn found(&self, id: GroupId) -> Result<(), String> {
        let configuration = Configuration::of_one(FIRST_PEER, self.node);
        let failed = |why: String| format!("group {id} cannot be created: {why}");
        let view = KvView::over(&*self.kv);
        let row = group::advance(&view, id, LogIndex(0), Term(0), configuration.encode());
        self.kv
            .commit(vec![change_out(row.map_err(|error| failed(error.to_string()))?)])
            .map_err(|error| failed(error.to_string()))?;
        self.kv.flush().await.map_err(|error| failed(error.to_string()))?;
        self.begin_log(id, FIRST_PEER).await.map_err(failed)?;
        self.open(id).await
    }

    async fn begin_log(&self, id: GroupId, peer: PeerId) -> Result<(), String> {
        let base = RaftWrite {
            group: id,
            peer,
            hard_state: Some(Bytes::from_static(&[0; 16])),
            entries: Vec::new(),
            trim_to: None,
            reset: Some((LogIndex(0), Term(0))),
        };
        self.engine.raft_write(base).await.map_err(|error| error.to_string())
    }

    /// Takes what other nodes' replicas say.
    pub async fn deliver(&self, from: NodeId, batch: RaftBatch) {
        for item in batch.items {
            let Ok(message) = Message::decode(&item.message) else { continue };
            self.deliver_one(from, &item, message).await;
        }
        for gone in batch.gone {
            let Some(handle) = self.get(GroupId(gone.group)) else { continue };
            if handle.peer == PeerId(gone.peer) {
                tracing::warn!("this node's replica of group {} was removed from it", handle.id);
                let _changing = self.changing.lock().await;
                if let Err(why) = self.drop_replica(&handle).await {
                    tracing::error!("{why}");
                }
            } else {
                handle.gone(PeerId(gone.peer));
            }
        }
    }

    async fn deliver_one(&self, from: NodeId, item: &RaftItem, message: Message) {
        let (id, to) = (GroupId(item.group), message.to());
        if let Some(handle) = self.get(id).filter(|handle| handle.peer == to) {
            return handle.step(from, message);
        }
        if item.fresh {
            match self.begin(id, to).await {
                Ok(Some(handle)) => return handle.step(from, message),
                Ok(None) => {}
                Err(why) => {
                    tracing::error!("a replica of group {id} cannot be made: {why}");
                    return;
                }
            }
        }
        transport::send_gone(&self.env, from, PeerGone { group: id.0, peer: to.0 });
    }

    /// Makes an empty replica that waits for a snapshot. `None`: the peer is older than the one here.
    async fn begin(&self, id: GroupId, peer: PeerId) -> Result<Option<GroupHandle>, String> {
        let _changing = self.changing.lock().await;
        if let Some(handle) = self.get(id) {
            if handle.peer >= peer {
                return Ok((handle.peer == peer).then_some(handle));
            }
            self.drop_replica(&handle).await?;
        }
        self.begin_log(id, peer).await?;
        self.open(id).await?;
        Ok(self.get(id))
    }

    async fn drop_replica(&self, handle: &GroupHandle) -> Result<(), String> {
        handle.stop().await;
        self.groups.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.id);
        self.forget(handle.id).await
    }

    /// Removes a replica's state, then its log. The state first: a log without state is known to be unfinished.
    async fn forget(&self, id: GroupId) -> Result<(), String> {
        let failed = |why: String| format!("the replica of group {id} cannot be removed: {why}");
        let state = group::load(&KvView::over(&*self.kv), id).unwrap_or_default();
        for (from, to) in group::row_ranges(id, &state) {
            self.kv.erase(&from, &to).await.map_err(|error| failed(error.to_string()))?;
        }
        self.engine.raft_remove(id).await.map_err(|error| failed(error.to_string()))?;
        if id == GROUP_ZERO {
            tracing::info!("the cluster map here is what it was until group 0 sends it anew");
        }
        Ok(())
    }

    async fn start(&self, id: GroupId, mut log: RaftLog) -> Result<(), String> {
        let refuse = |why: String| format!("group {id} cannot be restored: {why}");
        let kv: Arc<dyn Kv> = self.kv.clone();
        let mut state = group::load(&KvView::of(&kv), id).map_err(|error| refuse(error.to_string()))?;
        if !state.is_supported() {
            return Err(refuse(format!(
                "it is at feature level {}, this binary knows {FEATURE_LEVEL}: start a newer henge",
                state.feature_level
            )));
        }
        let never_acknowledged = log.base.0.0 == 0 && log.entries.is_empty();
        match state.install() {
            Install::Whole => {}
            // Its log still vouches for what this peer acknowledged.
            Install::Incomplete => state.applied_index = 0,
            Install::LogDue => log = self.reset_log(id, log, &state).await.map_err(refuse)?,
        }
        let configuration = match state.conf_state.is_empty() {
            true => Configuration::default(),
            false => Configuration::decode(&state.conf_state).map_err(refuse)?,
        };
        let stateless = configuration.is_empty() || state.install() == Install::Incomplete;
        if configuration.is_empty() && !never_acknowledged {
            return Err(refuse("its state is missing from the key-value store".into()));
        }
        let hard_state = match &log.hard_state {
            None => HardState::default(),
            Some(raw) => decode_hard_state(raw).ok_or_else(|| refuse("its hard state is malformed".into()))?,
        };
        let entry = |entry: store::RaftEntry| Entry { index: entry.index, term: entry.term, data: entry.data };
        let only_voter = configuration.voters == [log.peer];
        let restored = Restored {
            peer: log.peer,
            configuration: configuration.clone(),
            hard_state,
            base: log.base,
            entries: log.entries.into_iter().map(entry).collect(),
            applied: LogIndex(state.applied_index),
            waiting: if stateless { Waiting::ForState } else { Waiting::No },
        };
        let mut raft = RaftPeer::new(restored, self.env.random.clone()).map_err(refuse)?;
        if only_voter && !stateless {
            raft.campaign();
        }
        let machine =
            Machine::new(id, kv, &configuration, stateless, &self.map).map_err(|error| refuse(error.to_string()))?;
        let handle = driver::start(driver::Parts {
            env: self.env.clone(),
            id,
            node: self.node,
            peer: log.peer,
            raft,
            machine,
            configuration,
            applied: LogIndex(state.applied_index),
            stateless,
            engine: self.engine.clone(),
            kv: self.kv.clone(),
            map: self.map.subscribe(),
        });
        self.groups.write().unwrap_or_else(PoisonError::into_inner).insert(id, handle);
        Ok(())
    }

    /// After the installation of a snapshot that was cut off at its end.
    async fn reset_log(&self, id: GroupId, log: RaftLog, state: &group::GroupState) -> Result<RaftLog, String> {
        let (index, term) = (LogIndex(state.applied_index), Term(state.applied_term));
        let holds = (index, term) == log.base || log.entries.iter().any(|e| e.index == index && e.term == term);
        if holds {
            return Ok(log);
        }
        // The term of the log's hard state is never below the snapshot's: it came under a leader of such a term.
        let mut hard_state = log.hard_state.as_deref().and_then(decode_hard_state).unwrap_or_default();
        if hard_state.term < term {
            hard_state = HardState { term, vote: PeerId(0) };
        }
        let reset = RaftWrite {
            group: id,
            peer: log.peer,
            hard_state: Some(driver::encode_hard_state(hard_state)),
            entries: Vec::new(),
            trim_to: None,
            reset: Some((index, term)),
        };
        self.engine.raft_write(reset).await.map_err(|error| error.to_string())?;
        let log = self.engine.raft_load(id).await.map_err(|error| error.to_string())?;
        log.ok_or_else(|| "its log cannot be read back".into())
    }
}
