//! One replica of one group on this node: a task owns the Raft peer and the state machine; others send it messages.
//!
//! `driver.rs` is that task. `acknowledge.rs` knows whom a reply waits for, `reads.rs` which reads wait for what,
//! `install.rs` how the state of a replica is fetched from another, `turn.rs` which replica may do without its own meanwhile.

mod acknowledge;
mod driver;
mod freshness;
pub mod install;
mod log_write;
mod reads;
pub mod turn;

use base::Env;
use base::env::MonoTime;
use base::ids::{GroupId, LogIndex, NodeId, PeerId, Term};
use bytes::Bytes;
use meta::map::command::ClusterMap;
use protocol::raft::{Configuration, HardState, Message, RaftPeer, UNCOMMITTED_BYTES_MAX};
use protocol::slowness::{SLOW_MIN, Tail};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::Engine;
use store::kv::LsmKv;
use tokio::sync::{mpsc, oneshot, watch};

use crate::events::EventLog;
use crate::heartbeats::Heartbeats;
use crate::machine::{Command, Machine, Reply};
use driver::damage::Found;
use install::Installed;

/// Raft's unit of time.
pub const TICK: Duration = Duration::from_millis(40);
/// See [`Parts::tail_entries`].
pub const TAIL_ENTRIES: u64 = 256;
/// Requests waiting for the driver; senders wait when it is full, messages of peers are lost.
const MAILBOX_MAX: usize = 4096;

const _: () = assert!(
    2 * UNCOMMITTED_BYTES_MAX as usize <= store::RAFT_WRITE_LEN_MAX,
    "whatever gathers while a write is under way fits into the next one"
);

/// Why a group did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupError {
    /// Nothing was done. Where the leader is, if known.
    NotLeader(Option<NodeId>),
    /// Nothing was done; later it may be.
    Busy(String),
    /// Nothing was done: the voters that were asked for are not there.
    TooFewCopies(String),
    /// The command may or may not be executed later.
    Unknown(String),
    /// This replica's state is damaged or its disk has failed: it serves nothing any more. Nothing was done.
    Failed(String),
}

/// Whom the reply to a command waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acknowledge {
    /// Every voter that the map does not mark as down, never fewer than a majority.
    Everyone,
    Majority,
    /// Every voter, as many as a whole group has; without them nothing is done.
    Strict,
}

enum Request {
    Propose {
        data: Bytes,
        acknowledge: Acknowledge,
        reply: oneshot::Sender<Result<Reply, GroupError>>,
    },
    Barrier {
        reply: oneshot::Sender<Result<(), GroupError>>,
    },
    Trim {
        index: LogIndex,
    },
    /// From the peer on this node.
    Step {
        from: NodeId,
        message: Message,
        /// All that is committed, as the sender knows, which leads.
        committed: Option<LogIndex>,
        /// The sender has no rows, so that it cannot lead.
        waits: bool,
    },
    /// That peer of the group has lost its log, or was removed long ago: it never answers again.
    Gone {
        peer: PeerId,
    },
    Installed(Result<Box<Installed>, install::Failed>),
    /// The process on that node has ended.
    Ended {
        node: NodeId,
    },
    HandOver,
    /// Rows of this replica's state cannot be read.
    Hurt {
        why: String,
        reply: oneshot::Sender<bool>,
    },
    /// Likewise, and another replica was to have them.
    Unsendable {
        why: String,
    },
    /// Why the replica is not given up, which somebody else considered.
    Kept {
        why: String,
    },
    /// What a survey says of rows here that cannot be read.
    Surveyed {
        why: String,
        found: Found,
    },
    Stop {
        done: oneshot::Sender<()>,
    },
}

/// How others talk to the driver.
#[derive(Clone)]
pub struct GroupHandle {
    pub id: GroupId,
    pub peer: PeerId,
    mailbox: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

/// What the driver shows of itself.
struct Shared {
    applied: AtomicU64,
    term: AtomicU64,
    leader_node: AtomicU64,
    leads: AtomicBool,
    /// Has state to serve from: it is not waiting for its first snapshot.
    ready: AtomicBool,
    /// The replica is to be stopped and opened from disk again.
    reopen: AtomicBool,
    /// Rows are damaged, and it is being found out whether another replica has them all.
    mending: AtomicBool,
    /// It is about to give up its rows: see `turn.rs`.
    claims: Arc<AtomicBool>,
    log_bytes: AtomicU64,
    /// When the write to the log that is under way began, in monotonic nanoseconds; 0: none is.
    writing_since: AtomicU64,
    /// Since when the disk has no room for the log, likewise.
    full_since: AtomicU64,
    /// How long writes to the log take.
    log_tail: Mutex<Tail>,
    /// When a leader was last heard, in monotonic nanoseconds.
    leader_heard: AtomicU64,
    /// Everything committed by then is applied, in monotonic nanoseconds; 0: it was never known.
    fresh_at: AtomicU64,
    configuration: Mutex<Arc<Configuration>>,
    /// Of a leader: the nodes of voters that do not have what was committed a moment ago.
    lacking: Mutex<Vec<NodeId>>,
    failed: Mutex<Option<String>>,
}

impl Shared {
    fn set_lacking(&self, nodes: Vec<NodeId>) {
        *self.lacking.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    fn blocked_for(&self, now: MonoTime) -> Duration {
        time_since(&self.writing_since, now).max(time_since(&self.full_since, now))
    }
}

/// Monotonic nanoseconds; 0 is no time at all.
fn time_since(since: &AtomicU64, now: MonoTime) -> Duration {
    match since.load(Ordering::Relaxed) {
        0 => Duration::ZERO,
        since => now.since(MonoTime(since)),
    }
}

/// What a driver is made of.
pub struct Parts {
    pub env: Env,
    pub id: GroupId,
    pub node: NodeId,
    pub peer: PeerId,
    pub raft: RaftPeer,
    pub machine: Machine,
    pub configuration: Configuration,
    pub applied: LogIndex,
    /// The replica has no state yet.
    pub stateless: bool,
    pub engine: Engine,
    pub kv: Arc<LsmKv>,
    pub map: watch::Receiver<Arc<ClusterMap>>,
    /// The cluster's generation is at least this; a node without a map learns it after its replicas were opened.
    pub generation_min: Arc<AtomicU32>,
    /// Entries kept behind the applied index for followers that lag a little: else each of them needed a snapshot.
    pub tail_entries: u64,
    pub heartbeats: Arc<Heartbeats>,
    pub events: Arc<EventLog>,
}

/// Starts the driver of a group.
pub fn start(parts: Parts) -> GroupHandle {
    let (mailbox, requests) = mpsc::channel(MAILBOX_MAX);
    let shared = Arc::new(Shared {
        applied: AtomicU64::new(parts.applied.0),
        term: AtomicU64::new(0),
        leader_node: AtomicU64::new(0),
        leads: AtomicBool::new(false),
        ready: AtomicBool::new(!parts.stateless),
        reopen: AtomicBool::new(false),
        mending: AtomicBool::new(false),
        claims: Arc::default(),
        log_bytes: AtomicU64::new(0),
        writing_since: AtomicU64::new(0),
        full_since: AtomicU64::new(0),
        log_tail: Mutex::default(),
        leader_heard: AtomicU64::new(parts.env.now().0),
        fresh_at: AtomicU64::new(0),
        configuration: Mutex::new(Arc::new(parts.configuration.clone())),
        lacking: Mutex::default(),
        failed: Mutex::new(None),
    });
    let handle = GroupHandle { id: parts.id, peer: parts.peer, mailbox, shared };
    let env = parts.env.clone();
    env.spawn("group", driver::Driver::new(parts, &handle).run(requests));
    handle
}

impl GroupHandle {
    /// Executes a command through the log.
    pub async fn propose(&self, command: Command, acknowledge: Acknowledge) -> Result<Reply, GroupError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Propose { data: command.encode(), acknowledge, reply }).await?;
        answer.await.map_err(|_| GroupError::Unknown("the node is shutting down".into()))?
    }

    /// Returns once this replica, which must lead, has applied everything that was acknowledged anywhere before.
    pub async fn barrier(&self) -> Result<(), GroupError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Barrier { reply }).await?;
        answer.await.map_err(|_| GroupError::Busy("the node is shutting down".into()))?
    }

    /// Lets the log forget entries whose effect is durable in the key-value store.
    pub async fn trim(&self, index: LogIndex) {
        let _ = self.send(Request::Trim { index }).await;
    }

    /// Hands over a message of a peer. Lost when the driver is behind, as a network may lose it.
    pub fn step(&self, from: NodeId, message: Message, committed: Option<LogIndex>, waits: bool) {
        let _ = self.mailbox.try_send(Request::Step { from, message, committed, waits });
    }

    /// The process on `node` has ended: if it led, nobody waits for it.
    pub fn ended(&self, node: NodeId) {
        let _ = self.mailbox.try_send(Request::Ended { node });
    }

    /// Whoever leads with this replica's log or node out of order: another one is to lead, if it can at once.
    pub fn hand_over(&self) {
        let _ = self.mailbox.try_send(Request::HandOver);
    }

    /// Rows of this replica's state cannot be read. Answers whether another replica is to be asked: this one has stopped
    /// serving, and its group makes it anew; or, while the group could not do without it, another one is to lead.
    pub async fn hurt(&self, why: String) -> bool {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Hurt { why, reply }).await.is_ok() && answer.await.unwrap_or(false)
    }

    /// Another replica was to have the state here, and it cannot be read.
    pub fn unsendable(&self, why: String) {
        let _ = self.mailbox.try_send(Request::Unsendable { why });
    }

    /// A node says that this peer of the group does not exist there (any more).
    pub fn gone(&self, peer: PeerId) {
        let _ = self.mailbox.try_send(Request::Gone { peer });
    }

    /// Ends the driver, after the write that is under way: then nothing touches the log or the key-value store.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        if self.send(Request::Stop { done }).await.is_ok() {
            // Dropped when the driver ended for another reason.
            let _ = stopped.await;
        }
    }

    async fn send(&self, request: Request) -> Result<(), GroupError> {
        self.mailbox.send(request).await.map_err(|_| GroupError::Busy("the replica is shutting down".into()))
    }

    pub fn applied(&self) -> LogIndex {
        LogIndex(self.shared.applied.load(Ordering::Acquire))
    }

    pub fn term(&self) -> Term {
        Term(self.shared.term.load(Ordering::Relaxed))
    }

    /// Where the leader is, as this replica sees it.
    pub fn leader(&self) -> Option<NodeId> {
        let leader = self.shared.leader_node.load(Ordering::Relaxed);
        (leader != 0).then_some(NodeId(leader as u32))
    }

    /// Whether this replica leads. A leader that was voted out may not know it yet: only what it commits counts.
    pub fn is_leader(&self) -> bool {
        self.shared.leads.load(Ordering::Relaxed)
    }

    /// Has state; `false` while a new replica waits for its first snapshot.
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Relaxed)
    }

    pub fn configuration(&self) -> Arc<Configuration> {
        self.shared.configuration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The nodes of the group's voters, each once; while the voters change, of the old ones as well.
    pub fn voter_nodes(&self) -> Vec<NodeId> {
        let configuration = self.configuration();
        let voters = configuration.voters.iter().chain(&configuration.voters_outgoing);
        let mut nodes: Vec<NodeId> = Vec::new();
        for node in voters.filter_map(|peer| configuration.nodes.get(peer)) {
            if !nodes.contains(node) {
                nodes.push(*node);
            }
        }
        nodes
    }

    /// As this replica knows, which leads: the nodes of voters that have lost their log or rows, or lack what was committed a
    /// moment ago.
    pub fn lacking(&self) -> Vec<NodeId> {
        self.shared.lacking.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the replica last heard from a leader, or else when it began.
    pub fn leader_heard(&self) -> MonoTime {
        MonoTime(self.shared.leader_heard.load(Ordering::Relaxed))
    }

    /// For how long the replica has not known that it holds everything; `None`: it never has.
    pub fn staleness(&self, now: MonoTime) -> Option<Duration> {
        match self.shared.fresh_at.load(Ordering::Relaxed) {
            0 => None,
            at => Some(now.since(MonoTime(at))),
        }
    }

    /// For how long nothing could be added to the log: its disk owes an answer, or has no room.
    pub fn blocked_for(&self, now: MonoTime) -> Duration {
        self.shared.blocked_for(now)
    }

    /// How long writes to the log take: the latency that is met in every second of work.
    pub fn log_tail(&self, now: MonoTime) -> Option<Duration> {
        let mut tail = self.shared.log_tail.lock().unwrap_or_else(PoisonError::into_inner);
        let writing = time_since(&self.shared.writing_since, now);
        if writing > SLOW_MIN {
            tail.note(writing, now);
        }
        tail.get(now)
    }

    /// Bytes of entries that the log still needs.
    pub fn log_bytes(&self) -> u64 {
        self.shared.log_bytes.load(Ordering::Relaxed)
    }

    /// Whether the replica waits to be stopped and opened from disk again.
    pub fn wants_reopening(&self) -> bool {
        self.shared.reopen.load(Ordering::Acquire)
    }

    /// For whoever takes it upon itself what becomes of the replica, if nobody else has, until [`GroupHandle::end_mending`].
    pub fn begin_mending(&self) -> bool {
        !self.shared.mending.swap(true, Ordering::AcqRel)
    }

    /// The replica stays, for this reason.
    pub async fn end_mending(&self, why: String) {
        let _ = self.send(Request::Kept { why }).await;
    }

    /// Whether it is not known yet what becomes of the replica.
    pub fn is_mending(&self) -> bool {
        self.shared.mending.load(Ordering::Acquire)
    }

    /// Whether it has given up its rows, or has none yet, and is going to have another replica's.
    pub fn is_without_rows(&self) -> bool {
        self.wants_reopening() || (self.failed().is_none() && !self.is_ready())
    }

    /// See [`turn::Turn::claims`].
    pub fn claims(&self) -> Arc<AtomicBool> {
        self.shared.claims.clone()
    }

    /// Whether it is about to give up its rows.
    pub fn claims_turn(&self) -> bool {
        self.shared.claims.load(Ordering::Acquire)
    }

    /// Why the replica has stopped serving, if it has.
    pub fn failed(&self) -> Option<String> {
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Byte map of a hard state: term u64, vote u64, little-endian.
pub fn encode_hard_state(hard_state: HardState) -> Bytes {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&hard_state.term.0.to_le_bytes());
    out[8..].copy_from_slice(&hard_state.vote.0.to_le_bytes());
    Bytes::copy_from_slice(&out)
}

pub fn decode_hard_state(raw: &[u8]) -> Option<HardState> {
    let raw: &[u8; 16] = raw.try_into().ok()?;
    let (term, vote) = raw.split_at(8);
    let number = |half: &[u8]| Some(u64::from_le_bytes(half.try_into().ok()?));
    Some(HardState { term: Term(number(term)?), vote: PeerId(number(vote)?) })
}
