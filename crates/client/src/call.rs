//! Asking the cluster: who leads, retries that are idempotent, capped and jittered, and an end to waiting for nodes that
//! were voted out.

use base::Env;
use base::env::{Channel, Frame, MonoTime, NetError, RandomExt};
use base::ids::{GROUP_ZERO, GroupId, NodeId, Session};
use bytes::Bytes;
use meta::map::command::{Acknowledgement, MapCommand};
use meta::object::command::{
    CloseSession, Done, InitShard, Reason, Refused, RetireGarbage, SetFeatureLevel, ShardAnswer, ShardCommand,
    ShardEntry, ShardFound, ShardOutcome, ShardQuery, ShardRead,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::hedge::Hedge;
use crate::newest::Newest;
use crate::slots::Slots;
use crate::terms::Staleness;
use crate::wire::{self, Answer, Ask, Failure, ProposeShard, QueryShard, Request, Told};

/// How long one attempt at a command or a query may take.
pub(crate) const ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// How long one replica of several may take to answer from what it has.
const EVENTUAL_ATTEMPT_MAX: Duration = Duration::from_millis(500);
/// As ATTEMPT_MAX, for a question to which the leader reads all its rows: tens of millions. A lost question is not to be
/// waited for as long as that: it begins low, grows eightfold with each silence, and is twice what the last answer took.
const SCAN_ATTEMPT_MIN: Duration = Duration::from_secs(10);
const SCAN_ATTEMPT_MAX: Duration = Duration::from_secs(600);
/// How long an operation is tried before the caller is told.
pub(crate) const OPERATION_MAX: Duration = Duration::from_secs(30);
/// How long an operation waits for a leader. An election takes a second or two; after this, a majority is gone, and whoever
/// asks should know.
pub(crate) const LEADERLESS_MAX: Duration = Duration::from_secs(4);
/// How long a question waits for this node to come back when it was voted out.
const FENCED_MAX: Duration = Duration::from_secs(3);
/// First pause between attempts; doubles up to the maximum, with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// While a group has no leader: an election takes a fraction of a second, and whoever waits wants to know.
const ELECTION_BACKOFF_MAX: Duration = Duration::from_millis(80);
/// Hints to a leader that are followed at once, one after the other. More means that the hints are stale.
const HINTS_MAX: u32 = 3;

/// Retries that a client may save up, one for each answer. When a whole cluster is in trouble and none are left, retries
/// come as slowly as they may, so that they do not multiply the load.
const RETRY_BUDGET_MAX: u32 = 1000;
/// Chunks of which some copies are still under way after their acknowledgement (`majority`, `one`): bounds memory.
const LAGGING_STORES_MAX: usize = 64;

/// What a client is made from.
#[derive(Clone)]
pub struct ClientConfig {
    pub env: Env,
    /// The session of the node that this client runs in.
    pub session: Session,
    /// Asked first for the map: the own node, or members of the cluster.
    pub contacts: Vec<NodeId>,
    pub region: String,
}

/// The cluster, seen from a gateway. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub env: Env,
    life: RwLock<Arc<Life>>,
    /// Those before it in which writes may still be under way.
    former: Mutex<Vec<Weak<Life>>>,
    contacts: Vec<NodeId>,
    region: String,
    pub newest: Newest,
    leaders: Mutex<BTreeMap<GroupId, NodeId>>,
    /// How long the leader of a group may take to read all its rows.
    scan_patience: Mutex<BTreeMap<GroupId, Duration>>,
    retry_budget: AtomicU32,
    pub lagging: Arc<Semaphore>,
    /// Copies that a reader found missing or damaged while another copy was whole.
    pub bad_copies: AtomicU64,
    pub hedge: Hedge,
    /// When a majority of group 0 was last asked for, and whether it answered. One asks for all.
    pub majority: tokio::sync::Mutex<Option<(MonoTime, bool)>>,
}

/// What belongs to one session: renewed as a whole. Whoever names chunks in a session commits them in the same one: when
/// a session is closed, what it named and never committed is nobody's any more.
pub(crate) struct Life {
    session: Session,
    slots: Mutex<BTreeMap<GroupId, Arc<Slots>>>,
    next_chunk: AtomicU32,
}

impl Life {
    fn new(session: Session) -> Arc<Life> {
        Arc::new(Life { session, slots: Mutex::new(BTreeMap::new()), next_chunk: AtomicU32::new(1) })
    }

    /// An id that was never used before: its session and counter.
    pub fn next_chunk_number(&self) -> Result<(Session, u32), Error> {
        let next = |number: u32| number.checked_add(1);
        match self.next_chunk.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(number) => Ok((self.session, number)),
            Err(_) => {
                Err(Error::Unavailable("the session has named 4 billion chunks and waits for its successor".into()))
            }
        }
    }

    fn slots(&self, group: GroupId) -> Arc<Slots> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(group).or_insert_with(|| Slots::new(self.session)).clone()
    }
}

/// Why one attempt gave no answer.
enum Attempt {
    /// Surely nothing was done, and the node named the leader.
    Elsewhere,
    /// Surely nothing was done; nobody leads that this node knows of, or it cannot be reached.
    NoLeader(String),
    /// Surely nothing was done.
    NotDone(String),
    /// Surely nothing was done: this node was voted out.
    Fenced(String),
    /// Perhaps it was done.
    Unknown(String),
    /// An answer that no retry will change.
    Final(Error),
}

/// Why a call to a node has no reply.
pub(crate) struct NoReply {
    /// It may have arrived.
    sent: bool,
    pub why: String,
}

impl Client {
    pub fn new(config: ClientConfig) -> Client {
        assert!(!config.contacts.is_empty(), "a client needs somebody to ask");
        Client {
            shared: Arc::new(Shared {
                env: config.env,
                life: RwLock::new(Life::new(config.session)),
                former: Mutex::default(),
                contacts: config.contacts,
                region: config.region,
                newest: Newest::default(),
                leaders: Mutex::new(BTreeMap::new()),
                scan_patience: Mutex::new(BTreeMap::new()),
                retry_budget: AtomicU32::new(RETRY_BUDGET_MAX),
                lagging: Arc::new(Semaphore::new(LAGGING_STORES_MAX)),
                bad_copies: AtomicU64::new(0),
                hedge: Hedge::default(),
                majority: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Wall-clock time in milliseconds since 1970, for dates that users see.
    pub fn wall_ms(&self) -> u64 {
        self.shared.env.clock.wall().0
    }

    /// Random bytes from the node's generator.
    pub fn random_bytes(&self, out: &mut [u8]) {
        self.shared.env.random.fill(out);
    }

    pub fn region(&self) -> String {
        self.shared.region.clone()
    }

    pub fn session(&self) -> Session {
        self.life().session
    }

    /// Goes on under a new generation. What is in flight ends under the old one. Nothing happens when it goes on under a newer one
    /// already: whoever raises a generation waits for the map, and the node may be voted out and come back meanwhile.
    pub fn renew_session(&self, session: Session) {
        let mut life = self.shared.life.write().unwrap_or_else(PoisonError::into_inner);
        if session > life.session {
            let former = std::mem::replace(&mut *life, Life::new(session));
            let mut all = self.shared.former.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|life| life.strong_count() > 0);
            all.push(Arc::downgrade(&former));
        }
    }

    /// The oldest session in which something is still under way here: a slow PUT commits in the one that it began in.
    pub fn oldest_session(&self) -> Session {
        let present = self.life();
        let former = self.shared.former.lock().unwrap_or_else(PoisonError::into_inner);
        let held = former.iter().filter_map(Weak::upgrade).map(|life| life.session);
        held.chain([present.session]).min().unwrap_or(present.session)
    }

    /// Chunks named in this session so far: a node raises its generation long before 4 billion.
    pub fn chunks_named(&self) -> u32 {
        self.life().next_chunk.load(Ordering::Relaxed)
    }

    /// Chunks that were acknowledged while copies of them are still under way (`majority`, `one`).
    pub fn lagging_stores(&self) -> usize {
        LAGGING_STORES_MAX - self.shared.lagging.available_permits()
    }

    pub(crate) fn life(&self) -> Arc<Life> {
        self.shared.life.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives a new shard its range.
    pub async fn init_shard(&self, group: GroupId, init: InitShard) -> Result<(), Error> {
        self.change_shard(group, 0, ShardCommand::InitShard(init), Acknowledgement::All).await.map(|_| ())
    }

    /// From here on, `group` follows the commands of this feature level.
    pub async fn raise_shard(&self, group: GroupId, level: u32) -> Result<(), Error> {
        let raise = ShardCommand::SetFeatureLevel(SetFeatureLevel { level });
        self.change_shard(group, 0, raise, Acknowledgement::Majority).await.map(|_| ())
    }

    /// The chunks of these garbage rows have tombstones now.
    pub async fn retire_garbage(&self, group: GroupId, sequences: Vec<u64>) -> Result<(), Error> {
        let retire = ShardCommand::RetireGarbage(RetireGarbage { sequences });
        self.change_shard(group, 0, retire, Acknowledgement::Majority).await.map(|_| ())
    }

    /// From here on, `group` refuses what earlier sessions of `floor.node` still have under way.
    pub async fn close_sessions(&self, group: GroupId, floor: Session) -> Result<(), Error> {
        let close = CloseSession { node: floor.node.0, floor: floor.generation.0 };
        if group == GROUP_ZERO {
            return self.change_map_checked(MapCommand::CloseSession(close)).await.map(|_| ());
        }
        // Slot rows go a bounded number at a time.
        let majority = Acknowledgement::Majority;
        let close = || self.change_shard(group, 0, ShardCommand::CloseSession(close.clone()), majority);
        while close().await? == ShardOutcome::Done(Done { more: true }) {}
        Ok(())
    }

    /// Changes a shard, once, whatever is lost on the way. A refusal is an error.
    pub(crate) async fn change_shard(
        &self,
        group: GroupId,
        range_epoch: u64,
        command: ShardCommand,
        acknowledgement: Acknowledgement,
    ) -> Result<ShardOutcome, Error> {
        let entry = ShardEntry { range_epoch, command: Some(command), ..ShardEntry::default() };
        self.change_shard_in(&self.life(), group, entry, acknowledgement).await
    }

    /// As `change_shard`, in a session that may be renewed meanwhile. The entry's slot is filled in here.
    pub(crate) async fn change_shard_in(
        &self,
        life: &Life,
        group: GroupId,
        entry: ShardEntry,
        acknowledgement: Acknowledgement,
    ) -> Result<ShardOutcome, Error> {
        let slot = life.slots(group).take().await;
        let entry = ShardEntry { slot: Some(slot.reference()), ..entry };
        let acknowledgement = acknowledgement as i32;
        let ask = Ask::ProposeShard(ProposeShard { group: group.0, entry: Some(entry), acknowledgement });
        match self.ask_leader(group, ask).await? {
            Told::ShardReply(reply) => match reply.outcome {
                Some(ShardOutcome::Refused(refused)) => Err(refusal(&refused)),
                Some(outcome) => Ok(outcome),
                None => Err(Error::OutcomeUnknown("the shard's reply is empty".into())),
            },
            other => Err(unexpected(&other)),
        }
    }

    /// Reads from a shard, linearizably.
    pub(crate) async fn query_shard(&self, group: GroupId, epoch: u64, read: ShardRead) -> Result<ShardFound, Error> {
        let query = ShardQuery { range_epoch: epoch, read: Some(read) };
        let ask = Ask::QueryShard(QueryShard { group: group.0, query: Some(query), eventual: false });
        match self.ask_leader(group, ask).await? {
            Told::ShardAnswer(ShardAnswer { found: Some(ShardFound::Refused(refused)) }) => Err(refusal(&refused)),
            Told::ShardAnswer(ShardAnswer { found: Some(found) }) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads from whichever replica answers first, as of whatever it has applied; the own node's is asked first. Notes
    /// how stale that may be, of refusals as well.
    pub(crate) async fn query_any(
        &self,
        group: GroupId,
        epoch: u64,
        read: ShardRead,
        staleness: &Staleness,
    ) -> Result<ShardFound, Error> {
        let query = ShardQuery { range_epoch: epoch, read: Some(read) };
        let ask = Ask::QueryShard(QueryShard { group: group.0, query: Some(query), eventual: true });
        let own = self.session().node;
        let mut nodes = self.contacts(group);
        nodes.sort_by_key(|node| *node != own);
        let mut why = String::new();
        for node in nodes {
            let frame = wire::frame(&self.request(ask.clone()), Vec::new());
            let answer = match self.call(node, Channel::Control, frame, EVENTUAL_ATTEMPT_MAX).await {
                Ok(reply) => wire::head::<Answer>(&reply),
                Err(none) => Err(none.why),
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    why = error;
                    continue;
                }
            };
            self.map_shown(answer.map_version, node);
            match answer.told {
                Some(Told::ShardAnswer(ShardAnswer { found: Some(found) })) => {
                    staleness.note(answer.staleness_ms);
                    return match found {
                        ShardFound::Refused(refused) => Err(refusal(&refused)),
                        found => Ok(found),
                    };
                }
                Some(Told::Failed(failed)) => why = format!("node {node}: {}", failed.detail),
                _ => why = format!("node {node} sent another answer"),
            }
        }
        Err(Error::Unavailable(format!("no replica of group {group} answers: {why}")))
    }

    pub(crate) fn slots(&self, group: GroupId) -> Arc<Slots> {
        self.life().slots(group)
    }

    /// Asks the leader of `group` until there is an answer, or the time is up, or there has been no leader for long. `ask`
    /// must be idempotent.
    pub(crate) async fn ask_leader(&self, group: GroupId, ask: Ask) -> Result<Told, Error> {
        self.ask_leader_within(group, ask, LEADERLESS_MAX).await
    }

    /// `leaderless_max`: how long there may be no leader.
    pub(crate) async fn ask_leader_within(
        &self,
        group: GroupId,
        ask: Ask,
        leaderless_max: Duration,
    ) -> Result<Told, Error> {
        let env = &self.shared.env;
        let is_change = matches!(ask, Ask::ProposeMap(_) | Ask::ProposeShard(_));
        let mut request = self.request(ask);
        let mut backoff = Backoff::for_operation(env);
        let mut perhaps_done = false;
        let (mut contact, mut hints) = (0, 0);
        let mut trouble = Trouble::default();
        loop {
            let to = self.leader_or_contact(group, &mut contact);
            let why = match self.attempt(group, to, &request).await {
                Ok(told) => {
                    self.earn_retry();
                    return Ok(told);
                }
                // What this attempt was told says nothing about an earlier one.
                Err(Attempt::Final(error)) if perhaps_done => return Err(Error::OutcomeUnknown(error.to_string())),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Elsewhere) if hints < HINTS_MAX => {
                    hints += 1;
                    continue;
                }
                Err(Attempt::Elsewhere) => {
                    trouble.leaderless(env.now());
                    format!("the nodes disagree on who leads group {group}")
                }
                Err(Attempt::NoLeader(why)) => {
                    backoff.cap(ELECTION_BACKOFF_MAX);
                    trouble.leaderless(env.now());
                    why
                }
                Err(Attempt::Fenced(why)) => {
                    trouble.fenced.get_or_insert(env.now());
                    why
                }
                Err(Attempt::NotDone(why)) => {
                    trouble = Trouble::default();
                    why
                }
                Err(Attempt::Unknown(why)) => {
                    // Whether anybody leads, nobody knows: it does not end the time without a leader.
                    perhaps_done |= is_change;
                    trouble.unanswered(env.now());
                    why
                }
            };
            if let Some(end) = trouble.end(group, env.now(), leaderless_max) {
                let why = format!("{end} ({why})");
                return Err(if perhaps_done { Error::OutcomeUnknown(why) } else { Error::Unavailable(why) });
            }
            hints = 0;
            if !self.spend_retry() {
                backoff.slow_down();
            }
            if !backoff.wait(env).await {
                return Err(if perhaps_done { Error::OutcomeUnknown(why) } else { Error::Unavailable(why) });
            }
            if !is_change {
                // A command stays what it is; a question may be asked by the next life of this node.
                request = self.request(request.ask.take().expect("set above and put back by each turn"));
            }
        }
    }

    /// Asks one given node once, with bulk bytes both ways: for chunks. `Busy` also stands for no answer.
    pub(crate) async fn ask_node(
        &self,
        to: NodeId,
        ask: Ask,
        bulk: Vec<Bytes>,
        patience: Duration,
    ) -> Result<(Told, Vec<Bytes>), (Failure, String)> {
        self.ask_over(Channel::Bulk, to, ask, bulk, patience).await
    }

    pub(crate) async fn ask_over(
        &self,
        channel: Channel,
        to: NodeId,
        ask: Ask,
        bulk: Vec<Bytes>,
        patience: Duration,
    ) -> Result<(Told, Vec<Bytes>), (Failure, String)> {
        let frame = wire::frame(&self.request(ask), bulk);
        let reply = self.call(to, channel, frame, patience).await;
        let reply = reply.map_err(|none| (Failure::Busy, none.why))?;
        let answer: Answer = wire::head(&reply).map_err(|error| (Failure::Invalid, error))?;
        self.map_shown(answer.map_version, to);
        match answer.told {
            Some(Told::Failed(failed)) => Err((failed.failure(), format!("node {to}: {}", failed.detail))),
            Some(told) => Ok((told, reply.bulk)),
            None => Err((Failure::Invalid, format!("node {to} sent an answer of a newer version"))),
        }
    }

    /// Sends a request and waits for the reply: until the time is up, or until the map shows that the node was voted
    /// out since. So a node that hangs costs no more than it takes the cluster to notice.
    pub(crate) async fn call(
        &self,
        to: NodeId,
        channel: Channel,
        request: Frame,
        patience: Duration,
    ) -> Result<Frame, NoReply> {
        let deadline = self.shared.env.now() + patience;
        let reply = self.shared.env.net.call(to, channel, request, deadline);
        let result = tokio::select! {
            biased;
            result = reply => result,
            () = self.voted_out(to) => {
                return Err(NoReply { sent: true, why: format!("node {to} was voted out before it answered") });
            }
        };
        result.map_err(|error| NoReply { sent: error != NetError::NotSent, why: format!("node {to}: {error}") })
    }

    /// Waits until a node that serves now is voted out. For one that is out already, or that the map does not know,
    /// there is nothing to wait for; this node is not cut short by its own fate.
    async fn voted_out(&self, node: NodeId) {
        let map = self.map();
        let life = map.node(node).filter(|row| row.state().serves()).map(|row| row.generation);
        let Some(generation) = life.filter(|_| node != self.session().node) else {
            return std::future::pending().await;
        };
        let mut version = map.version();
        drop(map);
        loop {
            let map = self.map_newer_than(version).await;
            let row = map.node(node);
            if row.is_some_and(|row| !row.state().serves() || row.generation_floor > generation) {
                return;
            }
            version = map.version();
        }
    }

    /// What is asked, with whom it comes from.
    pub fn request(&self, ask: Ask) -> Request {
        let session = self.session();
        let map = self.map();
        Request {
            node: session.node.0,
            generation: session.generation.0,
            map_version: map.version().0,
            cluster_generation: map.map.cluster_generation,
            ask: Some(ask),
        }
    }

    async fn attempt(&self, group: GroupId, to: NodeId, request: &Request) -> Result<Told, Attempt> {
        let frame = wire::frame(request, Vec::new());
        let is_scan = matches!(request.ask, Some(Ask::Named(_)));
        let patience = if is_scan { self.scan_patience(group) } else { ATTEMPT_MAX };
        let began = self.shared.env.now();
        let reply = match self.call(to, Channel::Control, frame, patience).await {
            Ok(reply) => reply,
            Err(NoReply { sent, why }) => {
                self.forget_leader(group, to);
                if is_scan && self.shared.env.now().since(began) >= patience {
                    // It goes on over there: few of them are to run beside each other.
                    self.note_scan(group, 4 * patience);
                }
                return Err(if sent { Attempt::Unknown(why) } else { Attempt::NoLeader(why) });
            }
        };
        let answer: Answer = wire::head(&reply).map_err(Attempt::Unknown)?;
        self.map_shown(answer.map_version, to);
        let failed = match answer.told {
            Some(Told::Failed(failed)) => failed,
            Some(told) => {
                self.learn_leader(group, to);
                if is_scan {
                    self.note_scan(group, self.shared.env.now().since(began));
                }
                return Ok(told);
            }
            None => return Err(Attempt::Unknown(format!("node {to} sent an answer of a newer version"))),
        };
        let is_change = matches!(request.ask, Some(Ask::ProposeMap(_) | Ask::ProposeShard(_)));
        Err(match failed.failure() {
            Failure::NotLeader => {
                self.forget_leader(group, to);
                let hint = NodeId(failed.leader);
                if hint != to && self.may_lead(hint) {
                    self.learn_leader(group, hint);
                    Attempt::Elsewhere
                } else {
                    Attempt::NoLeader(format!("group {group} has no leader that node {to} knows of"))
                }
            }
            Failure::Busy => Attempt::NotDone(failed.detail),
            Failure::Unknown => Attempt::Unknown(failed.detail),
            Failure::Full => Attempt::Final(Error::Full),
            Failure::TooFewCopies => Attempt::Final(Error::Unavailable(failed.detail)),
            // Surely not done, and it never will be: a command belongs to the life that sent it.
            Failure::StaleGeneration if is_change => Attempt::Final(Error::Unavailable(failed.detail)),
            Failure::StaleGeneration => Attempt::Fenced(failed.detail),
            Failure::Damaged if self.contacts(group).len() > 1 => {
                // This replica has failed; another may lead.
                self.forget_leader(group, to);
                if is_change { Attempt::Unknown(failed.detail) } else { Attempt::NoLeader(failed.detail) }
            }
            Failure::Damaged => Attempt::Final(Error::Damaged(failed.detail)),
            _ => Attempt::Final(Error::Invalid(failed.detail)),
        })
    }

    fn scan_patience(&self, group: GroupId) -> Duration {
        let held = self.shared.scan_patience.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(&group).copied().unwrap_or(SCAN_ATTEMPT_MIN)
    }

    /// A scan has taken so long.
    fn note_scan(&self, group: GroupId, took: Duration) {
        let patience = (2 * took).clamp(SCAN_ATTEMPT_MIN, SCAN_ATTEMPT_MAX);
        self.shared.scan_patience.lock().unwrap_or_else(PoisonError::into_inner).insert(group, patience);
    }

    /// Whom to ask about `group`, each once: those that the client was made with, then the nodes that serve, those with
    /// a replica first.
    pub(crate) fn contacts(&self, group: GroupId) -> Vec<NodeId> {
        let map = self.map();
        let replicas = map.shard_of_group(group).map(|row| row.nodes.clone()).unwrap_or_default();
        let serving = map.map.nodes.iter().filter(|row| row.state().serves()).map(|row| NodeId(row.id));
        let (near, far): (Vec<_>, Vec<_>) = serving.partition(|node| replicas.contains(&node.0));
        let mut contacts = self.shared.contacts.clone();
        for node in near.into_iter().chain(far) {
            if !contacts.contains(&node) {
                contacts.push(node);
            }
        }
        contacts
    }

    /// The leader, when it is known, else the contacts in turn.
    fn leader_or_contact(&self, group: GroupId, contact: &mut usize) -> NodeId {
        let leader = self.shared.leaders.lock().unwrap_or_else(PoisonError::into_inner).get(&group).copied();
        if let Some(leader) = leader.filter(|leader| self.may_lead(*leader)) {
            return leader;
        }
        let contacts = self.contacts(group);
        let next = contacts[*contact % contacts.len()];
        *contact += 1;
        next
    }

    /// A node that the map does not know yet may lead.
    fn may_lead(&self, node: NodeId) -> bool {
        node.0 != 0 && self.map().node(node).is_none_or(|row| row.state().serves())
    }

    fn learn_leader(&self, group: GroupId, leader: NodeId) {
        self.shared.leaders.lock().unwrap_or_else(PoisonError::into_inner).insert(group, leader);
    }

    /// Unless somebody has found another one meanwhile.
    fn forget_leader(&self, group: GroupId, leader: NodeId) {
        let mut leaders = self.shared.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        if leaders.get(&group) == Some(&leader) {
            leaders.remove(&group);
        }
    }

    fn spend_retry(&self) -> bool {
        let spend = |left: u32| left.checked_sub(1);
        self.shared.retry_budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }

    fn earn_retry(&self) {
        let earn = |left: u32| (left < RETRY_BUDGET_MAX).then_some(left + 1);
        let _ = self.shared.retry_budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earn);
    }
}

/// What keeps an operation from its answer, since when.
#[derive(Default)]
struct Trouble {
    /// Nobody was found who leads, or who answers; and whether somebody said that nobody leads.
    unanswered: Option<MonoTime>,
    is_leaderless: bool,
    fenced: Option<MonoTime>,
}

impl Trouble {
    fn leaderless(&mut self, now: MonoTime) {
        self.unanswered(now);
        self.is_leaderless = true;
    }

    fn unanswered(&mut self, now: MonoTime) {
        self.unanswered.get_or_insert(now);
    }

    /// Why it is of no use to go on.
    fn end(&self, group: GroupId, now: MonoTime, leaderless_max: Duration) -> Option<String> {
        let lasts = |since: Option<MonoTime>, max: Duration| since.is_some_and(|since| now.since(since) >= max);
        if self.is_leaderless && lasts(self.unanswered, leaderless_max) {
            let who = if group == GROUP_ZERO { "the cluster map" } else { "the metadata of this object" };
            return Some(format!(
                "{who} (group {group}) has no leader within reach: a majority of its voters must be up and in touch with \
                 this node"
            ));
        }
        lasts(self.fenced, FENCED_MAX).then(|| {
            "this node was voted out of the cluster and has not come back: ask another node; `henge status` says why".into()
        })
    }
}

/// Exponential pauses with jitter, until a deadline.
pub(crate) struct Backoff {
    next: Duration,
    deadline: MonoTime,
}

impl Backoff {
    pub fn new(deadline: MonoTime) -> Backoff {
        Backoff { next: BACKOFF_MIN, deadline }
    }

    /// A backoff for an operation that starts now.
    pub fn for_operation(env: &Env) -> Backoff {
        Backoff::new(env.now() + OPERATION_MAX)
    }

    pub fn deadline(&self) -> MonoTime {
        self.deadline
    }

    /// The next pause is no longer than this.
    fn cap(&mut self, max: Duration) {
        self.next = self.next.min(max);
    }

    /// The next pause is the longest there is.
    fn slow_down(&mut self) {
        self.next = BACKOFF_MAX;
    }

    /// Pauses; `false` when the time is up.
    pub async fn wait(&mut self, env: &Env) -> bool {
        if env.now() + self.next >= self.deadline {
            return false;
        }
        env.sleep(env.random.jitter(self.next)).await;
        self.next = (self.next * 2).min(BACKOFF_MAX);
        true
    }
}

pub(crate) fn unexpected(told: &Told) -> Error {
    let kind = match told {
        Told::Failed(_) => "a failure",
        Told::Map(_) => "a map",
        Told::MapReply(_) => "a map reply",
        Told::ShardReply(_) => "a shard reply",
        Told::ShardAnswer(_) => "a shard answer",
        Told::Chunk(_) => "a chunk answer",
        Told::SnapshotRows(_) => "a page of a snapshot",
        Told::Status(_) => "a status",
        Told::Inventory(_)
        | Told::PgDigests(_)
        | Told::Named(_)
        | Told::Reached(_)
        | Told::Events(_)
        | Told::Rows(_) => "an answer to a node",
    };
    Error::OutcomeUnknown(format!("{kind} came as the answer to another kind of request"))
}

/// What a shard's refusal means to the caller.
fn refusal(refused: &Refused) -> Error {
    let detail = refused.detail.clone();
    match refused.reason() {
        Reason::NoSuchBucket | Reason::BucketFrozen => Error::NoSuchBucket,
        Reason::NoSuchKey => Error::NoSuchKey,
        Reason::NoSuchVersion => Error::NoSuchVersion,
        Reason::NoSuchUpload => Error::NoSuchUpload,
        Reason::PreconditionFailed => Error::PreconditionFailed,
        Reason::InvalidPart => Error::InvalidPart { detail },
        Reason::InvalidPartOrder => Error::InvalidPartOrder,
        Reason::EntityTooSmall => Error::EntityTooSmall { detail },
        Reason::EntityTooLarge => Error::EntityTooLarge { detail },
        Reason::BucketNotEmpty => Error::BucketNotEmpty,
        Reason::DeleteMarker => Error::DeleteMarker { version: detail },
        Reason::WrongRange => Error::Unavailable(format!("the key's range has moved: {detail}")),
        Reason::SessionClosed | Reason::StaleSequence => Error::OutcomeUnknown(detail),
        Reason::Damaged => Error::Damaged(detail),
        Reason::ObjectLocked => Error::ObjectLocked(detail),
        Reason::NotLockable => Error::NotLockable,
        Reason::StaleFence => Error::StaleFence(detail),
        Reason::FenceRequired => Error::FenceRequired,
        Reason::QuotaExceeded => Error::QuotaExceeded { limit: detail },
        Reason::Invalid | Reason::Unspecified => Error::Invalid(detail),
    }
}
