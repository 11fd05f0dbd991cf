//! All replicas of groups on this node: found at the start, made when a leader adds this node to a group, dropped when
//! it is removed.

use base::Env;
use base::env::{MonoTime, RandomExt};
use base::ids::{GROUP_ZERO, GroupId, LogIndex, NodeId, PeerId, Term};
use base::plant::{self, Plant};
use bytes::Bytes;
use client::wire::RowsState;
use meta::group::{self, FEATURE_LEVEL, GroupState, Install};
use meta::map::command::ClusterMap;
use meta::view::ViewError;
use protocol::raft::{Configuration, Entry, HardState, Message, RaftPeer, Restored, Waiting};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use store::kv::{Damage, Kv, KvError, LsmKv};
use store::{Engine, RaftLog, RaftWrite, StoreError};
use tokio::sync::{Mutex, watch};

use crate::events::EventLog;
use crate::group::turn::{self, Turn};
use crate::group::{self as driver, GroupHandle, decode_hard_state};
use crate::heartbeats::Heartbeats;
use crate::machine::{KvView, Machine, change_out};
use crate::transport::{self, PeerGone, RaftBatch, RaftItem};

/// The peer that a group begins with.
pub const FIRST_PEER: PeerId = PeerId(1);

/// At most this long after a replica could not be made or dropped, and at least half as long, it is tried again.
const CHANGE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Within this a member hears its leader, if there is one.
const MEMBER_HEARS: Duration = Duration::from_secs(2);

pub struct Replicas {
    env: Env,
    node: NodeId,
    engine: Engine,
    kv: Arc<LsmKv>,
    map: watch::Sender<Arc<ClusterMap>>,
    groups: RwLock<BTreeMap<GroupId, GroupHandle>>,
    /// Held while a replica is made or dropped; until when nothing is tried again after a failure.
    changing: Arc<Mutex<MonoTime>>,
    /// Of a cluster that was recovered and whose map does not say so yet.
    generation_min: Arc<AtomicU32>,
    /// See [`driver::Parts::tail_entries`].
    tail_entries: u64,
    /// Replicas of a newer feature level are not opened.
    feature_level_max: u32,
    heartbeats: Arc<Heartbeats>,
    events: Arc<EventLog>,
}

/// Why a replica on the disk is not started.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    /// Its bytes are not what was written: this peer never votes again.
    #[error("{0}")]
    Damaged(String),
    /// The disk does not answer, or a newer henge wrote it: nothing is wrong with the replica.
    #[error("{0}")]
    Refused(String),
}

/// What is to happen to the replica of a group.
enum Change {
    /// An empty one for this peer, which waits for a snapshot.
    Begin(PeerId),
    /// This peer was removed from the group.
    Drop(PeerId),
    Reopen(PeerId),
}

/// Whose rows they are.
#[derive(Clone)]
struct Owner {
    id: GroupId,
    peer: PeerId,
    configuration: Arc<Configuration>,
}

/// Whether a group of this configuration has no majority without `node`.
fn needs(configuration: &Configuration, node: NodeId) -> bool {
    let here = configuration.peer_of(node);
    configuration.voters.len() <= 2 && here.is_some_and(|peer| configuration.is_voter(peer))
}

/// Erases all these ranges. A file that holds rows of several of them cannot be rewritten without the first while damage
/// hides rows of the second: so what fails is tried again after others succeeded.
pub async fn erase_all(kv: &LsmKv, ranges: Vec<(Bytes, Bytes)>) -> Result<(), KvError> {
    let mut left = ranges;
    loop {
        let mut failed = Vec::new();
        let mut why = None;
        let before = left.len();
        for (from, to) in left {
            if let Err(error) = kv.erase(&from, &to).await {
                why = Some(error);
                failed.push((from, to));
            }
        }
        match why {
            None => return Ok(()),
            Some(error) if failed.len() == before => return Err(error),
            Some(_) => left = failed,
        }
    }
}

impl Replicas {
    pub fn new(
        env: Env,
        node: NodeId,
        engine: Engine,
        kv: Arc<LsmKv>,
        tail_entries: u64,
        events: Arc<EventLog>,
    ) -> Replicas {
        let map = watch::Sender::new(Arc::new(ClusterMap::default()));
        Replicas {
            heartbeats: Arc::new(Heartbeats::new(env.clone())),
            events,
            env,
            node,
            engine,
            kv,
            map,
            groups: RwLock::default(),
            changing: Arc::default(),
            generation_min: Arc::default(),
            tail_entries,
            feature_level_max: FEATURE_LEVEL,
        }
    }

    /// Other than [`FEATURE_LEVEL`].
    pub fn knowing(self, feature_level_max: u32) -> Replicas {
        Replicas { feature_level_max, ..self }
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

    /// Whether every replica that the disk holds serves: none waits for its state, or to be made anew.
    pub fn are_sound(&self) -> bool {
        let is_sound = |id| self.get(id).is_some_and(|handle| handle.failed().is_none() && handle.is_ready());
        self.engine.raft_groups().into_iter().all(is_sound)
    }

    /// For a replica elsewhere that wants to have its rows replaced. One that has stopped for good is in nobody's way: its
    /// group replaces it.
    pub fn rows_of(&self, id: GroupId) -> RowsState {
        match self.get(id) {
            Some(handle) => RowsState {
                waits: handle.is_without_rows(),
                claims: handle.claims_turn(),
                stopped: handle.failed().is_some(),
                voter: handle.configuration().is_voter(handle.peer),
            },
            // One that is opened anew at this moment is not there, and will be.
            None => RowsState { waits: self.changing.try_lock().is_err(), claims: false, stopped: true, voter: false },
        }
    }

    /// Groups whose replica here waits for another replica's rows.
    pub fn without_rows(&self) -> Vec<GroupId> {
        let is_without = |handle: &GroupHandle| handle.is_without_rows();
        self.all().into_iter().filter(is_without).map(|handle| handle.id).collect()
    }

    /// What of the state of all replicas cannot even be opened, at this moment.
    pub fn unreadable_rows(&self) -> Vec<Damage> {
        self.kv.unreadable_runs()
    }

    /// Starts every replica that the disk holds. `alone`: this node is the whole cluster, so that nothing can replace
    /// what is damaged; else a damaged replica stays where it is, and its group makes a new one under a new peer id.
    /// `recovered`: an operator made this node the only voter, and the map does not say so yet.
    pub async fn open_all(&self, alone: bool, recovered: bool) -> Result<(), String> {
        for id in self.engine.raft_groups() {
            match self.open(id).await {
                Ok(()) => {}
                Err(OpenError::Damaged(why)) if !alone && !self.is_needed(id) => {
                    tracing::error!("the replica of group {id} cannot be used and will be made anew: {why}");
                }
                Err(OpenError::Damaged(why)) if !alone => {
                    return Err(format!(
                        "{why}; this node is one of at most two voters, so nothing can replace it: bring back the \
                         disk's earlier state, or make another node the only voter with `henge recover`"
                    ));
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        if recovered {
            self.generation_min.store(self.map.borrow().cluster_generation + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the group has no majority without this node, as far as can be told.
    fn is_needed(&self, id: GroupId) -> bool {
        let Ok(state) = group::load(&KvView::over(&*self.kv), id) else { return false };
        Configuration::decode(&state.conf_state).is_ok_and(|configuration| needs(&configuration, self.node))
    }

    async fn open(&self, id: GroupId) -> Result<(), OpenError> {
        let log = self.engine.raft_load(id).await.map_err(|error| {
            let why = format!(
                "the Raft log of group {id} is damaged ({error}): with one copy nothing can replace it; \
                 bring back the disk's earlier state, or recover files with `henge fsck`"
            );
            match error {
                StoreError::Damaged(_) => OpenError::Damaged(why),
                other => OpenError::Refused(format!("the Raft log of group {id} cannot be read: {other}")),
            }
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
        self.open(id).await.map_err(|error| error.to_string())
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

    /// The cluster's generation, never below what an operator's recovery made it.
    pub fn generation(&self) -> u32 {
        self.generation_min.load(Ordering::Relaxed).max(self.map.borrow().cluster_generation)
    }

    /// A node without a map takes the word of those who add it.
    pub fn learn_generation(&self, generation: u32) {
        self.generation_min.fetch_max(generation, Ordering::Relaxed);
    }

    /// Takes what other nodes' replicas say. Never waits: what needs a replica to be made or dropped goes on in a task,
    /// and its message is lost, as a network may lose it.
    pub fn deliver(self: &Arc<Self>, from: NodeId, batch: RaftBatch) {
        for item in batch.items {
            if let Ok(message) = Message::decode(&item.message) {
                self.deliver_one(from, &item, message);
            }
        }
        for gone in batch.gone {
            let (id, peer) = (GroupId(gone.group), PeerId(gone.peer));
            match self.get(id) {
                Some(handle) if handle.peer == peer => self.change(id, Change::Drop(peer)),
                Some(handle) => handle.gone(peer),
                None => {}
            }
        }
    }

    fn deliver_one(self: &Arc<Self>, from: NodeId, item: &RaftItem, message: Message) {
        let (id, to) = (GroupId(item.group), message.to());
        match self.get(id).filter(|handle| handle.peer == to) {
            Some(handle) if handle.wants_reopening() => return self.change(id, Change::Reopen(to)),
            Some(handle) if handle.failed().is_none() => {
                return handle.step(from, message, item.committed.map(LogIndex), item.waits);
            }
            // Soon it is opened anew, or it has failed for good.
            Some(handle) if handle.is_mending() => return,
            // A failed replica never answers again under this id, unless its disk comes back with the log.
            Some(_) => {}
            // A member whose disk was away and is back has its log, and the leader that gave it up hears of that soon. No
            // leader speaks to one that was removed.
            None if self.get(id).is_some_and(|handle| handle.peer < to && self.is_member(&handle)) => return,
            None if (item.fresh || plant::is(Plant::VoteAfterLoss))
                && self.get(id).is_none_or(|handle| handle.peer < to) =>
            {
                return self.change(id, Change::Begin(to));
            }
            None => {}
        }
        // One that is opened anew at this moment is not there, and will be.
        if self.changing.try_lock().is_err() {
            return;
        }
        transport::send_gone(&self.env, from, self.generation(), PeerGone { group: id.0, peer: to.0 });
    }

    /// Whether this replica has its log, and heard a leader lately, or was opened just now. It may wait for its state: it votes
    /// all the same.
    fn is_member(&self, handle: &GroupHandle) -> bool {
        let heard = self.env.now().since(handle.leader_heard());
        handle.failed().is_none() && !handle.configuration().is_empty() && heard < MEMBER_HEARS
    }

    /// Makes or drops a replica in a task of its own, one at a time; while one is at it, others are let go.
    fn change(self: &Arc<Self>, id: GroupId, change: Change) {
        let Ok(mut again_at) = self.changing.clone().try_lock_owned() else { return };
        if self.env.now() < *again_at {
            return;
        }
        let replicas = self.clone();
        self.env.spawn("change replica", async move {
            if let Err(why) = replicas.carry_out(id, change).await {
                tracing::error!("the replica of group {id}: {why}");
                // Two nodes in each other's way must not try at the same times for ever.
                *again_at = replicas.env.now() + replicas.env.random.jitter(CHANGE_PAUSE_MAX);
            }
        });
    }

    async fn carry_out(&self, id: GroupId, change: Change) -> Result<(), String> {
        let handle = self.get(id);
        match change {
            Change::Drop(peer) => {
                let Some(handle) = handle.filter(|handle| handle.peer == peer) else { return Ok(()) };
                tracing::warn!("this node's replica of group {id} was removed from it");
                self.stop(&handle).await;
                self.forget(id).await
            }
            Change::Reopen(peer) => {
                let Some(handle) = handle.filter(|handle| handle.peer == peer) else { return Ok(()) };
                self.stop(&handle).await;
                self.open(id).await.map_err(|error| error.to_string())
            }
            Change::Begin(peer) => {
                match &handle {
                    Some(handle) if handle.peer >= peer => return Ok(()),
                    Some(handle) => self.stop(handle).await,
                    // Left where it was, because it could not be opened.
                    None => {
                        let left = self.engine.raft_load(id).await;
                        if left.is_ok_and(|log| log.is_some_and(|log| log.peer >= peer)) {
                            return Ok(());
                        }
                    }
                }
                self.forget(id).await?;
                self.begin_log(id, peer).await?;
                self.open(id).await.map_err(|error| error.to_string())
            }
        }
    }

    async fn stop(&self, handle: &GroupHandle) {
        handle.stop().await;
        self.groups.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.id);
    }

    /// Removes a replica's state, then its log. The state first: a log without state is known to be unfinished. Rows go range by
    /// range, and damage may keep the group's own where others went: so that one says first that none of them counts any more.
    async fn forget(&self, id: GroupId) -> Result<(), String> {
        let failed = |why: String| format!("the replica of group {id} cannot be removed: {why}");
        let loaded = group::load(&KvView::over(&*self.kv), id);
        let nothing = loaded.as_ref().is_ok_and(|state| *state == GroupState::default());
        let state = loaded.unwrap_or_default();
        if !nothing {
            let mark = change_out(group::mark(id, &state, Install::Incomplete));
            self.kv.commit(vec![mark]).map_err(|error| failed(error.to_string()))?;
            self.kv.flush().await.map_err(|error| failed(error.to_string()))?;
        }
        if let Err(why) = erase_all(&self.kv, group::row_ranges(id, &state)).await {
            tracing::warn!("the state of group {id} is hidden by damage together with other rows: {why}");
            self.erase_all_but_the_sound().await.map_err(failed)?;
        }
        self.engine.raft_remove(id).await.map_err(|error| failed(error.to_string()))?;
        if id == GROUP_ZERO {
            tracing::info!("the cluster map here is what it was until group 0 sends it anew");
        }
        Ok(())
    }

    /// Where damage hides rows of several replicas, none of them can be removed alone. What no replica owns goes; a running
    /// replica whose rows are hidden has lost them, and is given up as well when its group can do without it.
    async fn erase_all_but_the_sound(&self) -> Result<(), String> {
        loop {
            let mut waiting = Vec::new();
            let erased = self.erase_around(&mut waiting).await;
            // Before anybody is asked: they vote.
            for owner in waiting {
                if let Err(error) = self.open(owner.id).await {
                    tracing::error!("the replica of group {} will be made anew: {error}", owner.id);
                }
            }
            let Some((hurt, why)) = erased? else { return Ok(()) };
            let id = hurt.id;
            self.may_give_up(hurt).await.map_err(|not| format!("{why}; group {id} needs it: {not}"))?;
            tracing::error!("the replica of group {id} has lost rows and will be made anew: {why}");
            if let Some(handle) = self.get(id) {
                self.stop(&handle).await;
            }
        }
    }

    /// Answers whose rows are hidden by the same damage, and what it is. `waiting`: replicas that wait for their state own nothing
    /// but their group's row; they were stopped for this, and are to be opened again, with their vote and log.
    async fn erase_around(&self, waiting: &mut Vec<Owner>) -> Result<Option<(Owner, String)>, String> {
        let (mut kept, mut owners) = (Vec::new(), Vec::new());
        let lives = |handle: &GroupHandle| handle.failed().is_none() || handle.wants_reopening() || handle.is_mending();
        for handle in self.all().into_iter().filter(lives) {
            let owner = Owner { id: handle.id, peer: handle.peer, configuration: handle.configuration() };
            let state = match group::load(&KvView::over(&*self.kv), handle.id) {
                Ok(state) => state,
                // What cannot be read now says nothing about what it owns: nothing is touched.
                Err(ViewError::Io(why)) => return Err(why),
                // All that it may own: if the damage is in the way below, its owner is given up.
                Err(ViewError::Damaged { .. }) => GroupState { feature_level: FEATURE_LEVEL, ..GroupState::default() },
            };
            if state.install() == Install::Incomplete {
                // Nothing puts rows any more when it has stopped.
                self.stop(&handle).await;
                waiting.push(owner);
                continue;
            }
            if !handle.is_ready() {
                return Err(format!("the replica of group {} is not complete yet; then it is tried again", handle.id));
            }
            for range in group::row_ranges(handle.id, &state) {
                kept.push(range);
                owners.push(owner.clone());
            }
        }
        for owner in waiting.iter() {
            let key = group::state_key(owner.id);
            let behind = [key.as_ref(), &[0]].concat().into();
            kept.push((key, behind));
            owners.push(owner.clone());
        }
        let (first, last, why) = match self.kv.retain(kept.clone()).await {
            Ok(()) => return Ok(None),
            Err(KvError::Damaged { first, last, detail }) => (first, last, detail),
            Err(error) => return Err(error.to_string()),
        };
        let hurt = kept.iter().position(|(from, to)| first < *to && *from <= last);
        hurt.map(|position| Some((owners.swap_remove(position), why.clone()))).ok_or(why)
    }

    /// Whether the group can do without the replica here for good. One that goes on waits with its claim from here on, which
    /// ends with it.
    async fn may_give_up(&self, owner: Owner) -> Result<(), String> {
        let handle = self.get(owner.id);
        if handle.as_ref().is_some_and(|handle| !handle.begin_mending()) {
            return Err("it is about to have its rows replaced".into());
        }
        let turn = Turn {
            env: self.env.clone(),
            group: owner.id,
            node: self.node,
            peer: owner.peer,
            others: turn::others(&owner.configuration, self.node),
            map: self.map.subscribe(),
            at_least: handle.as_ref().map_or(LogIndex(0), GroupHandle::applied),
            claims: handle.as_ref().map_or_else(Arc::default, GroupHandle::claims),
        };
        let taken = turn.take_for_good().await;
        if let (Err(why), Some(handle)) = (&taken, handle) {
            handle.end_mending(why.clone()).await;
        }
        taken
    }

    async fn start(&self, id: GroupId, mut log: RaftLog) -> Result<(), OpenError> {
        let refuse = |why: String| OpenError::Damaged(format!("group {id} cannot be restored: {why}"));
        let kv: Arc<dyn Kv> = self.kv.clone();
        let mut state = group::load(&KvView::of(&kv), id).map_err(|error| match error {
            ViewError::Damaged { .. } => refuse(error.to_string()),
            ViewError::Io(why) => OpenError::Refused(format!("the state of group {id} cannot be read: {why}")),
        })?;
        if state.feature_level > self.feature_level_max {
            return Err(OpenError::Refused(format!(
                "group {id} cannot be restored: {}",
                format_args!(
                    "it is at feature level {}, this binary knows {}: start a newer henge",
                    state.feature_level, self.feature_level_max
                )
            )));
        }
        let never_acknowledged = log.base.0.0 == 0 && log.entries.is_empty();
        match state.install() {
            Install::Whole => {}
            // Its log still vouches for what this peer acknowledged.
            Install::Incomplete => state.applied_index = 0,
            Install::LogDue => log = reset_log(&self.engine, id, log, &state).await.map_err(refuse)?,
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
            // Every node acts by its own replica of the map.
            commits_lazily: id != GROUP_ZERO,
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
            generation_min: self.generation_min.clone(),
            tail_entries: self.tail_entries,
            heartbeats: self.heartbeats.clone(),
            events: self.events.clone(),
        });
        self.groups.write().unwrap_or_else(PoisonError::into_inner).insert(id, handle);
        Ok(())
    }
}

/// After the installation of a snapshot that was cut off at its end.
pub async fn reset_log(
    engine: &Engine,
    id: GroupId,
    log: RaftLog,
    state: &group::GroupState,
) -> Result<RaftLog, String> {
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
    engine.raft_write(reset).await.map_err(|error| error.to_string())?;
    let log = engine.raft_load(id).await.map_err(|error| error.to_string())?;
    log.ok_or_else(|| "its log cannot be read back".into())
}
