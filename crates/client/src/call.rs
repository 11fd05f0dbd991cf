//! Asking the cluster: who leads, retries that are idempotent, capped, jittered and budgeted, and the cached map.

use base::Env;
use base::env::{Channel, MonoTime, NetError, RandomExt};
use base::ids::{GROUP_ZERO, GroupId, MapVersion, NodeId, Session};
use bytes::Bytes;
use meta::map::command::{MapCommand, MapEntry, MapOutcome, MapReply};
use meta::object::command::{
    CloseSession, Done, InitShard, Reason, Refused, RetireGarbage, ShardAnswer, ShardCommand, ShardEntry, ShardFound,
    ShardOutcome, ShardQuery, ShardRead,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use crate::error::Error;
use crate::map::MapView;
use crate::slots::Slots;
use crate::wire::{self, Answer, Ask, Failure, GetMap, ProposeShard, QueryShard, Request, Told};

/// How long one attempt may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// How long an operation is tried before the caller is told.
const OPERATION_MAX: Duration = Duration::from_secs(30);
/// First pause between attempts; doubles up to the maximum, with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Retries per first attempt that a client spends on average, and how many it may save up. When a whole cluster is in
/// trouble, retries must not multiply the load.
const RETRY_BUDGET_MAX: u32 = 1000;

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
    contacts: Vec<NodeId>,
    region: String,
    map: RwLock<Arc<MapView>>,
    leaders: Mutex<BTreeMap<GroupId, NodeId>>,
    retry_budget: AtomicU32,
    /// When an unknown name was last looked for in a fresh map.
    looked_up: Mutex<Option<MonoTime>>,
}

/// What belongs to one session: renewed as a whole.
struct Life {
    session: Session,
    slots: Mutex<BTreeMap<GroupId, Arc<Slots>>>,
    next_chunk: AtomicU32,
}

impl Life {
    fn new(session: Session) -> Arc<Life> {
        Arc::new(Life { session, slots: Mutex::new(BTreeMap::new()), next_chunk: AtomicU32::new(1) })
    }
}

/// Why one attempt gave no answer.
enum Attempt {
    /// Surely nothing was done.
    NotDone(String),
    /// Perhaps it was done.
    Unknown(String),
    /// An answer that no retry will change.
    Final(Error),
}

impl Client {
    pub fn new(config: ClientConfig) -> Client {
        assert!(!config.contacts.is_empty(), "a client needs somebody to ask");
        Client {
            shared: Arc::new(Shared {
                env: config.env,
                life: RwLock::new(Life::new(config.session)),
                contacts: config.contacts,
                region: config.region,
                map: RwLock::new(Arc::new(MapView::default())),
                leaders: Mutex::new(BTreeMap::new()),
                retry_budget: AtomicU32::new(RETRY_BUDGET_MAX),
                looked_up: Mutex::new(None),
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

    /// Goes on under a new generation. What is in flight ends under the old one.
    pub fn renew_session(&self, session: Session) {
        let mut life = self.shared.life.write().unwrap_or_else(PoisonError::into_inner);
        assert!(session > life.session, "generations only rise");
        *life = Life::new(session);
    }

    /// Chunks named in this session so far: a node raises its generation long before 4 billion.
    pub fn chunks_named(&self) -> u32 {
        self.life().next_chunk.load(Ordering::Relaxed)
    }

    fn life(&self) -> Arc<Life> {
        self.shared.life.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The map as cached; possibly empty before the first refresh.
    pub fn map(&self) -> Arc<MapView> {
        self.shared.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fetches the map; linearizable: all changes acknowledged before the call are in it.
    pub async fn refresh_map(&self) -> Result<Arc<MapView>, Error> {
        let ask = Ask::GetMap(GetMap { linearizable: true });
        match self.ask_leader(GROUP_ZERO, Channel::Control, ask).await? {
            Told::Map(map) => Ok(self.learn_map(map)),
            other => Err(unexpected(&other)),
        }
    }

    /// As `refresh_map`, but at most every 100 ms: for names that may be anybody's invention. In between the cached map
    /// answers, which this node's own replica keeps fresh.
    pub(crate) async fn refresh_map_sometimes(&self) -> Result<Arc<MapView>, Error> {
        const INTERVAL: Duration = Duration::from_millis(100);
        {
            let mut last = self.shared.looked_up.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.shared.env.now();
            if last.is_some_and(|last| now.since(last) < INTERVAL) {
                return Ok(self.map());
            }
            *last = Some(now);
        }
        self.refresh_map().await
    }

    /// Keeps the newer of two maps.
    pub fn learn_map(&self, map: meta::map::command::ClusterMap) -> Arc<MapView> {
        let held = self.map();
        if MapVersion(map.version) <= held.version() && held.version().0 > 0 {
            return held;
        }
        // Indexed outside of the lock: every other request waits there.
        let fresh = Arc::new(MapView::new(map));
        let mut held = self.shared.map.write().unwrap_or_else(PoisonError::into_inner);
        if fresh.version() > held.version() || held.version().0 == 0 {
            *held = fresh;
        }
        held.clone()
    }

    /// Changes the map, once, whatever is lost on the way; afterwards the cached map includes the change.
    pub async fn change_map(&self, command: MapCommand) -> Result<MapReply, Error> {
        let slot = self.slots(GROUP_ZERO).take().await;
        let entry = MapEntry { slot: Some(slot.reference()), command: Some(command) };
        match self.ask_leader(GROUP_ZERO, Channel::Control, Ask::ProposeMap(entry)).await? {
            Told::MapReply(reply) => {
                self.refresh_map().await?;
                Ok(reply)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// As a change of the map whose refusal is an error.
    pub async fn change_map_checked(&self, command: MapCommand) -> Result<MapReply, Error> {
        let reply = self.change_map(command).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(reply),
            outcome => Err(Error::Invalid(format!("{outcome:?}: {}", reply.detail))),
        }
    }

    /// Gives a new shard its range.
    pub async fn init_shard(&self, group: GroupId, init: InitShard) -> Result<(), Error> {
        self.change_shard(group, 0, ShardCommand::InitShard(init)).await.map(|_| ())
    }

    /// The chunks of these garbage rows have tombstones now.
    pub async fn retire_garbage(&self, group: GroupId, sequences: Vec<u64>) -> Result<(), Error> {
        self.change_shard(group, 0, ShardCommand::RetireGarbage(RetireGarbage { sequences })).await.map(|_| ())
    }

    /// From here on, `group` refuses what earlier sessions of `floor.node` still have under way.
    pub async fn close_sessions(&self, group: GroupId, floor: Session) -> Result<(), Error> {
        let close = CloseSession { node: floor.node.0, floor: floor.generation.0 };
        if group == GROUP_ZERO {
            return self.change_map_checked(MapCommand::CloseSession(close)).await.map(|_| ());
        }
        // Slot rows go a bounded number at a time.
        let close = || self.change_shard(group, 0, ShardCommand::CloseSession(close.clone()));
        while close().await? == ShardOutcome::Done(Done { more: true }) {}
        Ok(())
    }

    /// Changes a shard, once, whatever is lost on the way. A refusal is an error.
    pub(crate) async fn change_shard(
        &self,
        group: GroupId,
        range_epoch: u64,
        command: ShardCommand,
    ) -> Result<ShardOutcome, Error> {
        let slot = self.slots(group).take().await;
        let entry = ShardEntry { slot: Some(slot.reference()), range_epoch, command: Some(command) };
        let ask = Ask::ProposeShard(ProposeShard { group: group.0, entry: Some(entry) });
        match self.ask_leader(group, Channel::Control, ask).await? {
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
        let ask = Ask::QueryShard(QueryShard { group: group.0, query: Some(query) });
        match self.ask_leader(group, Channel::Control, ask).await? {
            Told::ShardAnswer(ShardAnswer { found: Some(ShardFound::Refused(refused)) }) => Err(refusal(&refused)),
            Told::ShardAnswer(ShardAnswer { found: Some(found) }) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    /// An id that was never used before: its session and counter.
    pub(crate) fn next_chunk_number(&self) -> Result<(Session, u32), Error> {
        let life = self.life();
        let next = |number: u32| number.checked_add(1);
        match life.next_chunk.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(number) => Ok((life.session, number)),
            Err(_) => {
                Err(Error::Unavailable("the session has named 4 billion chunks and waits for its successor".into()))
            }
        }
    }

    fn slots(&self, group: GroupId) -> Arc<Slots> {
        let life = self.life();
        let mut slots = life.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(group).or_insert_with(|| Slots::new(life.session)).clone()
    }

    /// Asks the leader of `group` until there is an answer or the time is up. `ask` must be idempotent.
    async fn ask_leader(&self, group: GroupId, channel: Channel, ask: Ask) -> Result<Told, Error> {
        let env = &self.shared.env;
        let deadline = env.now() + OPERATION_MAX;
        let is_change = matches!(ask, Ask::ProposeMap(_) | Ask::ProposeShard(_));
        let request = self.request(ask);
        let mut backoff = Backoff::new(deadline);
        let mut perhaps_done = false;
        let mut contact = 0;
        loop {
            let to = self.leader_guess(group, contact);
            match self.attempt(group, to, channel, &request, Vec::new()).await {
                Ok((told, _)) => {
                    self.earn_retry();
                    return Ok(told);
                }
                // What this attempt was told says nothing about an earlier one.
                Err(Attempt::Final(error)) if perhaps_done => return Err(Error::OutcomeUnknown(error.to_string())),
                Err(Attempt::Final(error)) => return Err(error),
                Err(attempt) => {
                    contact += 1;
                    let why = match attempt {
                        Attempt::Unknown(why) => {
                            perhaps_done = is_change;
                            why
                        }
                        Attempt::NotDone(why) => why,
                        Attempt::Final(_) => unreachable!("returned above"),
                    };
                    if !self.spend_retry() || !backoff.wait(env).await {
                        return Err(if perhaps_done { Error::OutcomeUnknown(why) } else { Error::Unavailable(why) });
                    }
                }
            }
        }
    }

    /// Asks one given node once, with bulk bytes both ways: for chunks.
    pub(crate) async fn ask_node(
        &self,
        to: NodeId,
        ask: Ask,
        bulk: Vec<Bytes>,
    ) -> Result<(Told, Vec<Bytes>), (Failure, String)> {
        let request = self.request(ask);
        let frame = wire::frame(&request, bulk);
        let deadline = self.shared.env.now() + ATTEMPT_MAX;
        let reply = self.shared.env.net.call(to, Channel::Bulk, frame, deadline).await;
        let reply = reply.map_err(|error| (Failure::Busy, format!("node {to}: {error}")))?;
        let answer: Answer = wire::head(&reply).map_err(|error| (Failure::Invalid, error))?;
        match answer.told {
            Some(Told::Failed(failed)) => Err((failed.failure(), format!("node {to}: {}", failed.detail))),
            Some(told) => Ok((told, reply.bulk)),
            None => Err((Failure::Invalid, format!("node {to} sent an answer of a newer version"))),
        }
    }

    fn request(&self, ask: Ask) -> Request {
        let session = self.session();
        Request {
            node: session.node.0,
            generation: session.generation.0,
            map_version: self.map().version().0,
            ask: Some(ask),
        }
    }

    async fn attempt(
        &self,
        group: GroupId,
        to: NodeId,
        channel: Channel,
        request: &Request,
        bulk: Vec<Bytes>,
    ) -> Result<(Told, Vec<Bytes>), Attempt> {
        let deadline: MonoTime = self.shared.env.now() + ATTEMPT_MAX;
        let reply = match self.shared.env.net.call(to, channel, wire::frame(request, bulk), deadline).await {
            Ok(reply) => reply,
            Err(NetError::NotSent) => return Err(Attempt::NotDone(format!("node {to} cannot be reached"))),
            Err(error) => return Err(Attempt::Unknown(format!("node {to}: {error}"))),
        };
        let answer: Answer = wire::head(&reply).map_err(Attempt::Unknown)?;
        let failed = match answer.told {
            Some(Told::Failed(failed)) => failed,
            Some(told) => return Ok((told, reply.bulk)),
            None => return Err(Attempt::Unknown(format!("node {to} sent an answer of a newer version"))),
        };
        Err(match failed.failure() {
            Failure::NotLeader => {
                self.learn_leader(group, NodeId(failed.leader));
                Attempt::NotDone(format!("node {to} does not lead group {group}"))
            }
            Failure::Busy => Attempt::NotDone(failed.detail),
            Failure::Unknown => Attempt::Unknown(failed.detail),
            Failure::Full => Attempt::Final(Error::Full),
            Failure::StaleGeneration => Attempt::Final(Error::OutcomeUnknown(failed.detail)),
            Failure::Damaged => Attempt::Final(Error::Damaged(failed.detail)),
            _ => Attempt::Final(Error::Invalid(failed.detail)),
        })
    }

    fn leader_guess(&self, group: GroupId, attempt: usize) -> NodeId {
        let leaders = self.shared.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        match leaders.get(&group) {
            Some(leader) if attempt.is_multiple_of(2) => *leader,
            _ => self.shared.contacts[attempt % self.shared.contacts.len()],
        }
    }

    fn learn_leader(&self, group: GroupId, leader: NodeId) {
        let mut leaders = self.shared.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        if leader.0 == 0 {
            leaders.remove(&group);
        } else {
            leaders.insert(group, leader);
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

fn unexpected(told: &Told) -> Error {
    let kind = match told {
        Told::Failed(_) => "a failure",
        Told::Map(_) => "a map",
        Told::MapReply(_) => "a map reply",
        Told::ShardReply(_) => "a shard reply",
        Told::ShardAnswer(_) => "a shard answer",
        Told::Chunk(_) => "a chunk answer",
        Told::Inventory(_) | Told::PgDigests(_) | Told::Named(_) => "an answer to a node",
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
        Reason::BucketNotEmpty => Error::BucketNotEmpty,
        Reason::DeleteMarker => Error::DeleteMarker { version: detail },
        Reason::WrongRange => Error::Unavailable(format!("the key's range has moved: {detail}")),
        Reason::SessionClosed | Reason::StaleSequence => Error::OutcomeUnknown(detail),
        Reason::Damaged => Error::Damaged(detail),
        Reason::Invalid | Reason::Unspecified => Error::Invalid(detail),
    }
}
