//! The task that owns one replica.
//!
//! A round: take what Raft hands out; send what may go at once; start to make entries durable (at most one write under
//! way, the next takes all that gathered meanwhile: group commit); apply what is committed in one transaction; answer.

use base::Env;
use base::env::{BoxFuture, MonoTime};
use base::ids::{GroupId, LogIndex, NodeId, PeerId, Term};
use base::plant::{self, Plant};
use bytes::Bytes;
use meta::map::command::ClusterMap;
use meta::view::ViewError;
use protocol::membership::VOTERS;
use protocol::raft::{Configuration, Entry, HardState, Message, MessageKind, NotTaken, RaftPeer, Ready, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use store::kv::{Kv, LsmKv};
use store::{Engine, RaftEntry, RaftWrite, StoreError};
use tokio::sync::{mpsc, oneshot, watch};

pub mod damage;
mod members;
mod snapshot;

use self::members::is_fit;
pub(super) use self::members::is_up;
use super::acknowledge::{Answer, Voter, Waiting};
use super::freshness::Freshness;
use super::install;
use super::log_write::in_pieces;
use super::reads::Reads;
use super::{Acknowledge, GroupError, GroupHandle, Parts, Request, Shared, acknowledge, encode_hard_state};
use crate::events::{EventKind, EventLog};
use crate::heartbeats::{self, Heartbeats};
use crate::machine::{Machine, Reply};
use crate::transport::{self, PeerGone, RaftItem};

/// State that may wait for a flush; beyond it new commands are refused until the disk has caught up.
const UNFLUSHED_BYTES_MAX: u64 = 256 << 20;
/// Pause before a log write is tried again that the disk had no room for.
const FULL_PAUSE: Duration = Duration::from_millis(200);
/// Requests taken in one round.
const ROUND_MAX: usize = 256;
/// How long a leader may add nothing to its own log.
const LOG_PATIENCE: Duration = Duration::from_secs(1);
/// How often a leader looks whether its group should have other members.
const MEMBERSHIP_INTERVAL: Duration = Duration::from_millis(200);
/// How often a leader looks whether another should lead.
const LEADERSHIP_INTERVAL: Duration = Duration::from_secs(5);
/// Log that is kept for members that are catching up.
const LOG_BYTES_KEPT: u64 = 128 << 20;

pub struct Driver {
    env: Env,
    id: GroupId,
    node: NodeId,
    peer: PeerId,
    raft: RaftPeer,
    machine: Machine,
    configuration: Configuration,
    engine: Engine,
    kv: Arc<LsmKv>,
    map: watch::Receiver<Arc<ClusterMap>>,
    /// The cluster's generation is at least this, whatever the map says yet.
    generation_min: Arc<AtomicU32>,
    tail_entries: u64,
    shared: Arc<Shared>,
    heartbeats: Arc<Heartbeats>,
    events: Arc<EventLog>,
    mailbox: mpsc::WeakSender<Request>,
    unwritten: Unwritten,
    writing: Option<Writing>,
    proposals: BTreeMap<LogIndex, Proposal>,
    waiting: Waiting,
    reads: Reads,
    freshness: Freshness,
    applied: LogIndex,
    /// The term of the last entry that was applied since the start.
    applied_term: Term,
    /// The term in which this replica leads.
    led: Option<Term>,
    /// A snapshot is being fetched; what is committed meanwhile is kept for afterwards.
    fetching: Option<Fetching>,
    /// There is no state: none came yet, or fetching it was cut off when the old one was gone already.
    stateless: bool,
    held: Vec<Entry>,
    survey_due: MonoTime,
    unsendable_due: MonoTime,
    /// It has failed because it could not read rows that it needed.
    stopped_over_rows: bool,
    fetch_due: MonoTime,
    /// Where peers wrote from, for answers before the configuration is known.
    heard_from: BTreeMap<PeerId, NodeId>,
    /// Peers that say that they will never answer again; one whose disk is back may, with its log.
    gone: BTreeSet<PeerId>,
    /// Peers that said last that they have no rows: they cannot lead.
    rowless: BTreeSet<PeerId>,
    membership_due: MonoTime,
    /// What was committed at the look before: by the next one every voter should have it.
    committed_before: LogIndex,
    /// How many looks in a row have found that the leader is voted out of the cluster.
    leader_out_looks: usize,
    leadership_due: MonoTime,
    /// Writes that wait for room stop waiting.
    given_up: Arc<AtomicBool>,
    /// The driver was asked to end.
    stopping: Option<oneshot::Sender<()>>,
}

struct Proposal {
    term: Term,
    acknowledge: Acknowledge,
    answer: Answer,
}

/// What Raft wants durable and is not being written yet, and the messages that must not go before it is.
#[derive(Default)]
struct Unwritten {
    number: u64,
    entries: Vec<Entry>,
    hard_state: Option<HardState>,
    trim: Option<LogIndex>,
    reset: Option<(LogIndex, Term)>,
    messages: Vec<Message>,
}

struct Fetching {
    cancelled: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

struct Writing {
    done: BoxFuture<Result<(), StoreError>>,
    number: u64,
    messages: Vec<Message>,
}

impl Driver {
    pub(super) fn new(parts: Parts, handle: &GroupHandle) -> Driver {
        let now = parts.env.now();
        Driver {
            env: parts.env,
            id: parts.id,
            node: parts.node,
            peer: parts.peer,
            raft: parts.raft,
            machine: parts.machine,
            configuration: parts.configuration,
            engine: parts.engine,
            kv: parts.kv,
            map: parts.map,
            generation_min: parts.generation_min,
            tail_entries: parts.tail_entries,
            shared: handle.shared.clone(),
            heartbeats: parts.heartbeats,
            events: parts.events,
            mailbox: handle.mailbox.downgrade(),
            unwritten: Unwritten::default(),
            writing: None,
            proposals: BTreeMap::new(),
            waiting: Waiting::default(),
            reads: Reads::default(),
            freshness: Freshness::default(),
            applied: parts.applied,
            applied_term: Term(0),
            led: None,
            fetching: None,
            stateless: parts.stateless,
            held: Vec::new(),
            survey_due: now,
            unsendable_due: now,
            stopped_over_rows: false,
            fetch_due: now,
            heard_from: BTreeMap::new(),
            gone: BTreeSet::new(),
            rowless: BTreeSet::new(),
            membership_due: now,
            committed_before: LogIndex(0),
            leader_out_looks: 0,
            leadership_due: now + LEADERSHIP_INTERVAL,
            given_up: Arc::default(),
            stopping: None,
        }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut tick = self.env.clock.sleep_until(heartbeats::next_tick(self.node, self.env.now()));
        loop {
            self.advance();
            tokio::select! {
                biased;
                written = next_written(&mut self.writing) => self.written(written),
                request = requests.recv() => match request {
                    None => return,
                    Some(request) => {
                        self.take(request);
                        for _ in 1..ROUND_MAX {
                            let Ok(request) = requests.try_recv() else { break };
                            self.take(request);
                        }
                    }
                },
                () = &mut tick => {
                    tick = self.env.clock.sleep_until(heartbeats::next_tick(self.node, self.env.now()));
                    self.tick();
                }
            }
            if let Some(done) = self.stopping.take() {
                return self.stop(done).await;
            }
        }
    }

    async fn stop(mut self, done: oneshot::Sender<()>) {
        self.given_up.store(true, Ordering::Release);
        if let Some(fetching) = self.fetching.take() {
            // Nothing of it touches the rows any more when this returns.
            fetching.cancelled.store(true, Ordering::Release);
            let _ = fetching.ended.await;
        }
        if let Some(writing) = self.writing.take() {
            // Whether it succeeded matters to nobody any more: what waits for it is told that its outcome is unknown.
            let _ = writing.done.await;
        }
        self.abandon(&GroupError::Busy("the node is shutting down".into()));
        let _ = done.send(());
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Propose { data, acknowledge, reply } => self.propose(data, acknowledge, reply),
            Request::Barrier { reply } => self.reads.add(reply),
            Request::Stop { done } => self.stopping = Some(done),
            Request::Trim { index } => self.trim(index),
            Request::Step { from, message, committed, waits } => {
                self.note_rows(message.from(), waits);
                self.step(from, message, committed);
            }
            Request::Gone { peer } => self.peer_gone(peer),
            Request::Installed(result) => self.installed(result),
            Request::Ended { node } if self.leader_node() == Some(node) => self.raft.leader_ended(),
            Request::Ended { .. } => {}
            Request::HandOver => _ = self.hand_over(),
            Request::Hurt { why, reply } => {
                let _ = reply.send(self.hurt(why));
            }
            Request::Kept { why } => self.kept(why),
            Request::Unsendable { why } => self.unsendable(why),
            Request::Surveyed { why, found } => self.surveyed(why, found),
        }
    }

    fn tick(&mut self) {
        if self.failed().is_some() {
            return;
        }
        self.raft.tick();
        let now = self.env.now();
        if self.led.is_none() || self.raft.leadership().role != Role::Leader {
            if now >= self.membership_due {
                self.membership_due = now + MEMBERSHIP_INTERVAL;
                self.replace_leader_that_is_out();
            }
            return;
        }
        let voters = self.voters();
        self.waiting.observe(&voters, self.applied);
        let is_due = now >= self.membership_due;
        if is_due {
            self.membership_due = now + MEMBERSHIP_INTERVAL;
            self.show_who_lacks(&voters);
            self.plan_membership();
        }
        if is_due && self.shared.blocked_for(now) > LOG_PATIENCE {
            // What it proposes is committed by the others, and it applies nothing: it does not even see that it is voted out.
            self.hand_over();
        }
        // Clients do not ask a node that is voted out, even if it leads; and all wait for one that is slow.
        if now >= self.leadership_due || (is_due && !is_fit(&self.map.borrow(), self.node)) {
            self.leadership_due = now + LEADERSHIP_INTERVAL;
            self.plan_leadership();
        }
    }

    fn propose(&mut self, data: Bytes, acknowledge: Acknowledge, answer: Answer) {
        if let Some(why) = self.failed() {
            let _ = answer.send(Err(GroupError::Failed(why)));
            return;
        }
        // Only a leader knows its voters.
        if acknowledge == Acknowledge::Strict && self.raft.leadership().role != Role::Leader {
            let _ = answer.send(Err(GroupError::NotLeader(self.leader_node())));
            return;
        }
        if acknowledge == Acknowledge::Strict
            && let Some(why) = acknowledge::lacking(&self.voters(), VOTERS)
        {
            let _ = answer.send(Err(GroupError::TooFewCopies(why)));
            return;
        }
        if self.machine.unflushed_bytes() > UNFLUSHED_BYTES_MAX {
            let _ = answer.send(Err(GroupError::Busy("the key-value store is behind with its flushes".into())));
            return;
        }
        match self.raft.propose(data) {
            Ok((index, term)) => {
                self.proposals.insert(index, Proposal { term, acknowledge, answer });
            }
            Err(NotTaken::NotLeader) => {
                let _ = answer.send(Err(GroupError::NotLeader(self.leader_node())));
            }
            Err(NotTaken::Busy) => {
                let _ = answer.send(Err(GroupError::Busy("too many commands are waiting to be committed".into())));
            }
        }
    }

    fn trim(&mut self, index: LogIndex) {
        let alone = self.configuration.voters.len() + self.configuration.learners.len() <= 1;
        let index = if alone { index } else { LogIndex(index.0.saturating_sub(self.tail_entries)) };
        let mut index = index.min(self.applied).min(self.raft.applied_index());
        if self.raft.log_size().0 < LOG_BYTES_KEPT {
            // Whoever is on the way to catch up would need a new snapshot again and again.
            let active = self.raft.progress().into_iter().filter(|progress| progress.active);
            index = active.map(|progress| progress.matched).fold(index, LogIndex::min);
        }
        if index.0 > 0 {
            self.raft.trim(index);
            self.unwritten.trim = self.unwritten.trim.max(Some(index));
        }
    }

    /// `committed`: all that is committed, as the sender knows, which leads.
    fn step(&mut self, from: NodeId, message: Message, committed: Option<LogIndex>) {
        if matches!(message.kind(), MessageKind::Append | MessageKind::Heartbeat | MessageKind::Snapshot) {
            self.shared.leader_heard.store(self.env.now().0, Ordering::Relaxed);
        }
        self.note_freshness(&message, committed);
        if self.failed().is_some() {
            return;
        }
        let sender = message.from();
        self.heard_from.insert(sender, from);
        if self.gone.remove(&sender) {
            tracing::info!(
                group = self.id.0,
                peer = sender.0,
                "a peer that was given up has its log and answers again"
            );
        }
        if self.is_removed(sender) {
            // Its removal is committed, and it does not know: else it would disturb elections for ever.
            transport::send_gone(&self.env, from, self.generation(), PeerGone { group: self.id.0, peer: sender.0 });
            return;
        }
        if message.kind() == MessageKind::Snapshot && self.fetch_snapshot(from, &message) {
            return;
        }
        if message.kind() == MessageKind::Vote && self.leader_is_out() {
            self.raft.forget_leader();
        }
        if let Err(why) = self.raft.step(message) {
            tracing::warn!(group = self.id.0, "{why}");
        }
    }

    fn note_freshness(&mut self, message: &Message, committed: Option<LogIndex>) {
        if message.term() < self.raft.leadership().term {
            return;
        }
        let now = self.env.now();
        if let Some(committed) = committed {
            self.freshness.told(committed, self.applied, now);
        }
        match message.kind() {
            MessageKind::AppendReply | MessageKind::HeartbeatReply => self.freshness.answered(message.from(), now),
            _ => {}
        }
    }

    /// Peer ids are never used again: one that was allotted and is in no role any more was removed.
    fn is_removed(&self, peer: PeerId) -> bool {
        let configuration = &self.configuration;
        !configuration.is_empty() && peer <= configuration.peer_last && !configuration.is_member(peer)
    }

    fn peer_gone(&mut self, peer: PeerId) {
        if peer != self.peer && self.configuration.is_member(peer) && self.gone.insert(peer) {
            tracing::warn!(group = self.id.0, peer = peer.0, "a peer has lost its log and will be replaced");
        }
    }

    /// Carries out everything that Raft has decided so far.
    fn advance(&mut self) {
        if self.failed().is_some() {
            return self.refuse_all();
        }
        let leader = self.leader_node();
        self.reads.ask(&mut self.raft, leader);
        while let Some(ready) = self.raft.take_ready() {
            if !self.carry_out(ready) {
                return self.refuse_all();
            }
        }
        self.write();
        self.follow_leadership();
        self.release();
        self.show();
    }

    /// `false` when the replica has failed.
    fn carry_out(&mut self, ready: Ready) -> bool {
        self.send(ready.messages);
        match ready.restored {
            Some((index, ..)) if ready.keeps_log => self.unwritten.trim = self.unwritten.trim.max(Some(index)),
            Some((index, term, _)) => self.unwritten.reset(index, term),
            None => {}
        }
        self.reads.grant(&ready.reads, self.applied);
        if !ready.committed.is_empty() && !self.apply(ready.committed) {
            return false;
        }
        let (hasty, after_flush) = ready.messages_after_flush.into_iter().partition(is_hasty);
        self.send(hasty);
        self.unwritten.add(ready.number, ready.append, ready.hard_state, after_flush);
        self.write();
        true
    }

    /// Starts to make durable what gathered, unless a write is under way.
    fn write(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let unwritten = std::mem::take(&mut self.unwritten);
        if unwritten.is_empty() {
            // Nothing but messages or reads: as good as durable.
            if unwritten.number > 0 {
                self.raft.persisted(unwritten.number);
            }
            self.send(unwritten.messages);
            return;
        }
        let entry_out = |entry: Entry| RaftEntry { index: entry.index, term: entry.term, data: entry.data };
        let write = RaftWrite {
            group: self.id,
            peer: self.peer,
            hard_state: unwritten.hard_state.filter(|_| !plant::is(Plant::ForgetVote)).map(encode_hard_state),
            entries: unwritten.entries.into_iter().map(entry_out).collect(),
            trim_to: unwritten.trim,
            reset: unwritten.reset,
        };
        self.shared.writing_since.store(self.env.now().0, Ordering::Relaxed);
        let (engine, env, given_up) = (self.engine.clone(), self.env.clone(), self.given_up.clone());
        let shared = self.shared.clone();
        let done = Box::pin(async move {
            for piece in in_pieces(write) {
                // Space may come back, and nothing was written: meanwhile new commands are refused as too many. The disk
                // is full and has said so; that makes it no slow one.
                let mut result = engine.raft_write(piece.clone()).await;
                let full_since = env.now().0;
                while result == Err(StoreError::Full) && !given_up.load(Ordering::Acquire) {
                    shared.writing_since.store(0, Ordering::Relaxed);
                    shared.full_since.store(full_since, Ordering::Relaxed);
                    env.sleep(FULL_PAUSE).await;
                    shared.writing_since.store(env.now().0, Ordering::Relaxed);
                    result = engine.raft_write(piece.clone()).await;
                }
                shared.full_since.store(0, Ordering::Relaxed);
                result?;
            }
            Ok(())
        });
        self.writing = Some(Writing { done, number: unwritten.number, messages: unwritten.messages });
    }

    fn written(&mut self, result: Result<(), StoreError>) {
        let Some(writing) = self.writing.take() else { return };
        let since = self.shared.writing_since.swap(0, Ordering::Relaxed);
        if since > 0 {
            let now = self.env.now();
            let mut tail = self.shared.log_tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.note(now.since(MonoTime(since)), now);
        }
        match result {
            Ok(()) => {
                if writing.number > 0 {
                    self.raft.persisted(writing.number);
                }
                self.send(writing.messages);
            }
            Err(error) => self.fail(format!("its log cannot be written: {error}")),
        }
    }

    /// `false` when the replica has failed.
    fn apply(&mut self, entries: Vec<Entry>) -> bool {
        if self.fetching.is_some() || self.stateless {
            self.held.extend(entries);
            return true;
        }
        let last = entries.last().expect("a batch is never empty").index;
        // What a snapshot brought already is not applied again; Raft follows its configurations all the same.
        let (old, new): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| entry.index <= self.applied);
        for entry in old.iter().filter(|entry| entry.is_configuration()) {
            self.raft.apply_configuration(entry);
        }
        if !new.is_empty() {
            let raft = &mut self.raft;
            let mut reconfigure = |entry: &Entry| raft.apply_configuration(entry);
            let applied = match self.machine.apply(&new, &mut reconfigure) {
                Ok(applied) => applied,
                Err(error) => {
                    if matches!(error, ViewError::Damaged { .. }) {
                        self.stopped_over_rows = true;
                        self.survey(error.to_string());
                    }
                    self.fail(error.to_string());
                    return false;
                }
            };
            (self.applied, self.applied_term) = applied.last;
            self.shared.applied.store(self.applied.0, Ordering::Release);
            if self.configuration != *self.raft.configuration() {
                let before = std::mem::replace(&mut self.configuration, self.raft.configuration().clone());
                self.tell_removed(&before);
                self.keep_configuration();
            }
            for (index, term, reply) in applied.replies {
                self.answer(index, term, reply);
            }
        }
        self.raft.applied(last);
        self.reads.applied(self.applied);
        true
    }

    /// Tells the nodes of members that were removed: nobody else will speak to them.
    fn tell_removed(&self, before: &Configuration) {
        let removed = before.nodes.iter().filter(|(peer, _)| !self.configuration.is_member(**peer));
        for (peer, node) in removed.filter(|(peer, _)| **peer != self.peer) {
            transport::send_gone(&self.env, *node, self.generation(), PeerGone { group: self.id.0, peer: peer.0 });
        }
    }

    fn generation(&self) -> u32 {
        self.generation_min.load(Ordering::Relaxed).max(self.map.borrow().cluster_generation)
    }

    /// Flushes soon: after a restart of all nodes, those that can vote should know how the others may.
    fn keep_configuration(&self) {
        let kv = self.kv.clone();
        self.env.spawn("flush configuration", async move {
            if let Err(error) = kv.flush().await {
                tracing::warn!("a new configuration is not flushed yet: {error}");
            }
        });
    }

    fn answer(&mut self, index: LogIndex, term: Term, reply: Reply) {
        let Some(proposal) = self.proposals.remove(&index) else { return };
        if proposal.term != term {
            // Another leader's entry took the place: ours will never be committed.
            let _ = proposal.answer.send(Err(GroupError::NotLeader(self.leader_node())));
        } else if proposal.acknowledge == Acknowledge::Strict {
            self.waiting.add_strict(index, reply, proposal.answer);
        } else if proposal.acknowledge == Acknowledge::Everyone
            && self.configuration.voters.len() > 1
            && !plant::is(Plant::AckAtMajority)
            && !plant::is(Plant::AckBeforeQuorum)
        {
            self.waiting.add(index, reply, proposal.answer);
        } else {
            let _ = proposal.answer.send(Ok(reply));
        }
    }

    /// Sends the replies whose entries all counted voters have flushed.
    fn release(&mut self) {
        if self.led.is_some() && !self.waiting.is_empty() {
            let voters = self.voters();
            self.waiting.release(&voters, self.applied, VOTERS);
        }
    }

    /// The voters as this leader sees them.
    fn voters(&self) -> Vec<Voter> {
        let map = self.map.borrow().clone();
        let serves = |peer: &PeerId| {
            !self.gone.contains(peer) && self.configuration.nodes.get(peer).is_none_or(|node| is_up(&map, *node))
        };
        let voters = self.raft.progress().into_iter().filter(|it| self.configuration.is_voter(it.peer));
        voters.map(|it| Voter { peer: it.peer, is_up: serves(&it.peer), matched: it.matched }).collect()
    }

    fn follow_leadership(&mut self) {
        let leadership = self.raft.leadership();
        let leads = (leadership.role == Role::Leader).then_some(leadership.term);
        if leads != self.led {
            let was_asked = self.led.is_some() || !self.proposals.is_empty() || !self.waiting.is_empty();
            if was_asked {
                self.abandon(&GroupError::NotLeader(self.leader_node()));
            }
            self.waiting.forget();
            self.freshness.turn();
            self.gone.clear();
            self.committed_before = self.applied;
            self.shared.set_lacking(Vec::new());
            if let Some(term) = leads {
                let what = format!("node {} leads group {} in term {}", self.node, self.id, term.0);
                self.events.record(EventKind::Elected, self.node, what);
            }
        }
        self.led = leads;
    }

    /// Tells everybody who waits. What was proposed may still be executed.
    fn abandon(&mut self, reads: &GroupError) {
        let why = "leadership was lost, or the replica stops, before it was known whether enough copies exist";
        for proposal in std::mem::take(&mut self.proposals).into_values() {
            let _ = proposal.answer.send(Err(GroupError::Unknown(why.into())));
        }
        self.waiting.abandon(why);
        self.reads.refuse_all(reads);
    }

    fn refuse_all(&mut self) {
        self.abandon(&GroupError::Failed(self.failed().unwrap_or_default()));
    }

    fn leader_node(&self) -> Option<NodeId> {
        let leadership = self.raft.leadership();
        match leadership.role {
            Role::Leader => Some(self.node),
            _ => self.node_of(leadership.leader?),
        }
    }

    fn node_of(&self, peer: PeerId) -> Option<NodeId> {
        self.configuration.nodes.get(&peer).or_else(|| self.heard_from.get(&peer)).copied()
    }

    /// Voters that have lost their log or their rows, or lack what was committed at the look before.
    fn show_who_lacks(&mut self, voters: &[Voter]) {
        let committed = std::mem::replace(&mut self.committed_before, self.applied);
        let lacks = |voter: &&Voter| {
            voter.matched < committed || self.gone.contains(&voter.peer) || self.rowless.contains(&voter.peer)
        };
        let nodes = voters.iter().filter(lacks).filter_map(|voter| self.node_of(voter.peer)).collect();
        self.shared.set_lacking(nodes);
    }

    fn show(&mut self) {
        let leadership = self.raft.leadership();
        let leader = self.leader_node().map_or(0, |node| u64::from(node.0));
        self.shared.term.store(leadership.term.0, Ordering::Relaxed);
        self.shared.leader_node.store(leader, Ordering::Relaxed);
        self.shared.leads.store(leadership.role == Role::Leader, Ordering::Relaxed);
        if leadership.role == Role::Leader && self.applied_term == leadership.term {
            self.freshness.lead(self.peer, &self.configuration.voters, self.env.now());
        }
        self.freshness.applied(self.applied);
        let fresh_at = self.freshness.as_of().map_or(0, |at| at.0);
        self.shared.fresh_at.store(fresh_at, Ordering::Relaxed);
        let ready = self.fetching.is_none() && !self.stateless;
        self.shared.ready.store(ready, Ordering::Relaxed);
        self.shared.log_bytes.store(self.raft.log_size().0, Ordering::Relaxed);
        let mut shown = self.shared.configuration.lock().unwrap_or_else(PoisonError::into_inner);
        if **shown != self.configuration {
            *shown = Arc::new(self.configuration.clone());
        }
    }

    fn failed(&self) -> Option<String> {
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&mut self, why: String) {
        tracing::error!(group = self.id.0, "the replica stops serving: {why}");
        self.shared.leader_node.store(0, Ordering::Relaxed);
        self.shared.leads.store(false, Ordering::Relaxed);
        *self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Sends messages to their peers' nodes, all for one node together.
    fn send(&mut self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        let progress = if self.configuration.learners.is_empty() { Vec::new() } else { self.raft.progress() };
        let mut by_node: BTreeMap<NodeId, Vec<RaftItem>> = BTreeMap::new();
        let committed = self.raft.known_committed().map(|index| index.0);
        let waits = self.stateless || self.fetching.is_some();
        for message in messages {
            let to = message.to();
            let Some(node) = self.node_of(to) else { continue };
            // Only a peer that never acknowledged anything may begin with an empty log.
            let matched = progress.iter().find(|progress| progress.peer == to).map(|progress| progress.matched);
            let fresh = self.configuration.learners.contains(&to) && matched == Some(LogIndex(0));
            let item = RaftItem { group: self.id.0, message: message.encode(), fresh, committed, waits };
            if heartbeats::may_wait(&message) {
                self.heartbeats.add(node, self.generation(), item);
            } else {
                by_node.entry(node).or_default().push(item);
            }
        }
        for (node, items) in by_node {
            transport::send(&self.env, node, self.generation(), items);
        }
    }

    fn source(&self, from: NodeId, cancelled: Arc<AtomicBool>) -> install::Source {
        install::Source { env: self.env.clone(), group: self.id, from, cancelled }
    }
}

impl Unwritten {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.hard_state.is_none() && self.trim.is_none() && self.reset.is_none()
    }

    fn add(&mut self, number: u64, entries: Vec<Entry>, hard_state: Option<HardState>, messages: Vec<Message>) {
        self.number = number;
        if let Some(first) = entries.first() {
            // Raft replaces its tail from here on; what was not written yet need not be.
            let keep = self.entries.iter().take_while(|entry| entry.index < first.index).count();
            self.entries.truncate(keep);
        }
        self.entries.extend(entries);
        self.hard_state = hard_state.or(self.hard_state);
        self.messages.extend(messages);
    }

    /// A snapshot took the place of everything before.
    fn reset(&mut self, index: LogIndex, term: Term) {
        self.entries.clear();
        self.trim = None;
        self.reset = Some((index, term));
    }
}

async fn next_written(writing: &mut Option<Writing>) -> Result<(), StoreError> {
    match writing {
        None => std::future::pending().await,
        Some(writing) => (&mut writing.done).await,
    }
}

/// Messages that a planted defect does not hold back until the flush.
fn is_hasty(message: &Message) -> bool {
    let is_vote = matches!(message.kind(), MessageKind::Vote | MessageKind::VoteReply);
    (is_vote && plant::is(Plant::VoteBeforeFlush))
        || (message.kind() == MessageKind::AppendReply && plant::is(Plant::AckBeforeFlush))
}
