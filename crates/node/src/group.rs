//! The driver of one group on this node: one task owns the Raft peer and the state machine; others send it messages.
//!
//! A round: take what Raft hands out; start to make entries durable (at most one write under way, the next takes all
//! that gathered meanwhile: group commit); apply what is committed in one transaction; answer.

use base::Env;
use base::ids::{GroupId, LogIndex, NodeId, PeerId, Term};
use bytes::Bytes;
use protocol::raft::{Entry, HardState, NotTaken, RaftPeer, ReadGrant, Role, UNCOMMITTED_BYTES_MAX};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::{Engine, RaftEntry, RaftWrite, StoreError};
use tokio::sync::{mpsc, oneshot};

use crate::machine::{Command, Machine, Reply};

/// Raft's unit of time.
const TICK: Duration = Duration::from_millis(100);
/// Requests waiting for the driver; senders wait when it is full.
const MAILBOX_MAX: usize = 1024;
/// State that may wait for a flush; beyond it new commands are refused until the disk has caught up.
const UNFLUSHED_BYTES_MAX: u64 = 256 << 20;
/// Pause before a log write is tried again that the disk had no room for.
const FULL_PAUSE: Duration = Duration::from_millis(200);
/// Requests taken in one round.
const ROUND_MAX: usize = 256;

const _: () = assert!(
    2 * UNCOMMITTED_BYTES_MAX as usize <= store::RAFT_WRITE_LEN_MAX,
    "whatever gathers while a write is under way fits into the next one"
);

/// Why a group did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupError {
    /// Nothing was done. Who leads, if known.
    NotLeader(Option<PeerId>),
    /// Nothing was done; later it may be.
    Busy(String),
    /// The command may or may not be executed later.
    Unknown(String),
    /// This replica's state is damaged or its disk has failed: it serves nothing any more. Nothing was done.
    Failed(String),
}

enum Request {
    Propose { data: Bytes, reply: oneshot::Sender<Result<Reply, GroupError>> },
    Barrier { reply: oneshot::Sender<Result<(), GroupError>> },
    Trim { index: LogIndex },
    Stop { done: oneshot::Sender<()> },
}

/// How others talk to the driver.
#[derive(Clone)]
pub struct GroupHandle {
    pub id: GroupId,
    mailbox: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

/// What the driver shows of itself.
struct Shared {
    applied: AtomicU64,
    term: AtomicU64,
    leader: AtomicU64,
    log_bytes: AtomicU64,
    failed: Mutex<Option<String>>,
}

impl GroupHandle {
    /// Executes a command through the log.
    pub async fn propose(&self, command: Command) -> Result<Reply, GroupError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Propose { data: command.encode(), reply }).await?;
        answer.await.map_err(|_| GroupError::Unknown("the node is shutting down".into()))?
    }

    /// Returns once this replica has applied everything that was acknowledged anywhere before the call.
    pub async fn barrier(&self) -> Result<(), GroupError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Barrier { reply }).await?;
        answer.await.map_err(|_| GroupError::Busy("the node is shutting down".into()))?
    }

    /// Lets the log forget entries whose effect is durable in the key-value store.
    pub async fn trim(&self, index: LogIndex) {
        let _ = self.send(Request::Trim { index }).await;
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
        self.mailbox.send(request).await.map_err(|_| GroupError::Busy("the node is shutting down".into()))
    }

    pub fn applied(&self) -> LogIndex {
        LogIndex(self.shared.applied.load(Ordering::Acquire))
    }

    pub fn term(&self) -> Term {
        Term(self.shared.term.load(Ordering::Relaxed))
    }

    pub fn leader(&self) -> Option<PeerId> {
        let leader = self.shared.leader.load(Ordering::Relaxed);
        (leader != 0).then_some(PeerId(leader))
    }

    pub fn is_leader(&self) -> bool {
        self.leader().is_some()
    }

    /// The nodes of the group's voters.
    pub fn voter_nodes(&self) -> Vec<NodeId> {
        // With one node a peer's number is its node's.
        vec![NodeId(1)]
    }

    /// Bytes of entries that the log still needs.
    pub fn log_bytes(&self) -> u64 {
        self.shared.log_bytes.load(Ordering::Relaxed)
    }

    /// Why the replica has stopped serving, if it has.
    pub fn failed(&self) -> Option<String> {
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Starts the driver of a group.
pub fn start(env: &Env, id: GroupId, peer: PeerId, raft: RaftPeer, machine: Machine, engine: Engine) -> GroupHandle {
    let (mailbox, requests) = mpsc::channel(MAILBOX_MAX);
    let shared = Arc::new(Shared {
        applied: AtomicU64::new(0),
        term: AtomicU64::new(0),
        leader: AtomicU64::new(0),
        log_bytes: AtomicU64::new(0),
        failed: Mutex::new(None),
    });
    let driver = Driver {
        env: env.clone(),
        id,
        peer,
        raft,
        machine,
        engine,
        shared: shared.clone(),
        unwritten: Unwritten::default(),
        writing: None,
        proposals: BTreeMap::new(),
        barriers_new: Vec::new(),
        barriers_asked: BTreeMap::new(),
        barriers_granted: BTreeMap::new(),
        next_context: 1,
        applied: LogIndex(0),
        stopping: None,
    };
    env.spawn("group", driver.run(requests));
    GroupHandle { id, mailbox, shared }
}

type Proposal = (Term, oneshot::Sender<Result<Reply, GroupError>>);
type Barrier = oneshot::Sender<Result<(), GroupError>>;

struct Driver {
    env: Env,
    id: GroupId,
    peer: PeerId,
    raft: RaftPeer,
    machine: Machine,
    engine: Engine,
    shared: Arc<Shared>,
    unwritten: Unwritten,
    writing: Option<oneshot::Receiver<Result<u64, StoreError>>>,
    proposals: BTreeMap<LogIndex, Proposal>,
    /// Reads not yet given to Raft; asked of Raft, by context; granted, by the index that must be applied first.
    barriers_new: Vec<Barrier>,
    barriers_asked: BTreeMap<u64, Vec<Barrier>>,
    barriers_granted: BTreeMap<LogIndex, Vec<Barrier>>,
    next_context: u64,
    applied: LogIndex,
    /// The driver was asked to end.
    stopping: Option<oneshot::Sender<()>>,
}

/// What Raft wants durable and is not being written yet.
#[derive(Default)]
struct Unwritten {
    number: u64,
    entries: Vec<Entry>,
    hard_state: Option<HardState>,
    trim: Option<LogIndex>,
}

impl Driver {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut next_tick = self.env.now() + TICK;
        loop {
            self.advance();
            let tick = self.env.clock.sleep_until(next_tick);
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
                () = tick => {
                    next_tick = self.env.now() + TICK;
                    self.raft.tick();
                }
            }
            if let Some(done) = self.stopping.take() {
                return self.stop(done).await;
            }
        }
    }

    async fn stop(mut self, done: oneshot::Sender<()>) {
        if let Some(written) = self.writing.take() {
            // Whether it succeeded matters to nobody any more: what waits for it is told that its outcome is unknown.
            let _ = written.await;
        }
        let why = "the node is shutting down";
        for (_, reply) in std::mem::take(&mut self.proposals).into_values() {
            let _ = reply.send(Err(GroupError::Unknown(why.into())));
        }
        let asked = std::mem::take(&mut self.barriers_asked).into_values().flatten();
        let granted = std::mem::take(&mut self.barriers_granted).into_values().flatten();
        for barrier in self.barriers_new.drain(..).chain(asked).chain(granted) {
            let _ = barrier.send(Err(GroupError::Busy(why.into())));
        }
        let _ = done.send(());
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Propose { data, reply } => self.propose(data, reply),
            Request::Barrier { reply } => self.barriers_new.push(reply),
            Request::Stop { done } => self.stopping = Some(done),
            Request::Trim { index } => {
                let index = index.min(self.applied);
                self.raft.trim(index);
                self.unwritten.trim = self.unwritten.trim.max(Some(index));
            }
        }
    }

    fn propose(&mut self, data: Bytes, reply: oneshot::Sender<Result<Reply, GroupError>>) {
        if let Some(why) = self.failed() {
            let _ = reply.send(Err(GroupError::Failed(why)));
            return;
        }
        if self.machine.unflushed_bytes() > UNFLUSHED_BYTES_MAX {
            let _ = reply.send(Err(GroupError::Busy("the key-value store is behind with its flushes".into())));
            return;
        }
        match self.raft.propose(data) {
            Ok((index, term)) => {
                self.proposals.insert(index, (term, reply));
            }
            Err(NotTaken::NotLeader) => {
                let _ = reply.send(Err(GroupError::NotLeader(self.raft.leadership().leader)));
            }
            Err(NotTaken::Busy) => {
                let _ = reply.send(Err(GroupError::Busy("too many commands are waiting to be committed".into())));
            }
        }
    }

    /// Carries out everything that Raft has decided so far.
    fn advance(&mut self) {
        if self.failed().is_some() {
            return self.refuse_all();
        }
        self.ask_for_barriers();
        while let Some(ready) = self.raft.take_ready() {
            assert!(ready.messages.is_empty() && ready.messages_after_flush.is_empty(), "the only voter has no peers");
            self.grant(&ready.reads);
            if !ready.committed.is_empty() && !self.apply(&ready.committed) {
                return self.refuse_all();
            }
            self.unwritten.add(ready.number, ready.append, ready.hard_state);
            self.write();
        }
        self.write();
        self.show();
    }

    /// Starts to make durable what gathered, unless a write is under way.
    fn write(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let unwritten = std::mem::take(&mut self.unwritten);
        if unwritten.entries.is_empty() && unwritten.hard_state.is_none() && unwritten.trim.is_none() {
            // Nothing but messages or reads: as good as durable.
            if unwritten.number > 0 {
                self.raft.persisted(unwritten.number);
            }
            return;
        }
        let entry_out = |entry: Entry| RaftEntry { index: entry.index, term: entry.term, data: entry.data };
        let write = RaftWrite {
            group: self.id,
            peer: self.peer,
            hard_state: unwritten.hard_state.map(encode_hard_state),
            entries: unwritten.entries.into_iter().map(entry_out).collect(),
            trim_to: unwritten.trim,
            reset: None,
        };
        let (done, written) = oneshot::channel();
        let (engine, number) = (self.engine.clone(), unwritten.number);
        let env = self.env.clone();
        self.env.spawn("raft write", async move {
            let result = loop {
                match engine.raft_write(write.clone()).await {
                    // Space may come back, and nothing was written: meanwhile new commands are refused as too many.
                    Err(StoreError::Full) => env.sleep(FULL_PAUSE).await,
                    result => break result,
                }
            };
            let _ = done.send(result.map(|()| number));
        });
        self.writing = Some(written);
    }

    fn written(&mut self, result: Result<u64, StoreError>) {
        self.writing = None;
        match result {
            Ok(0) => {}
            Ok(number) => self.raft.persisted(number),
            Err(error) => self.fail(format!("its log cannot be written: {error}")),
        }
    }

    /// `false` when the replica has failed.
    fn apply(&mut self, entries: &[Entry]) -> bool {
        let applied = match self.machine.apply(entries) {
            Ok(applied) => applied,
            Err(error) => {
                self.fail(error.to_string());
                return false;
            }
        };
        self.applied = applied.last.0;
        self.raft.applied(self.applied);
        self.shared.applied.store(self.applied.0, Ordering::Release);
        for (index, term, reply) in applied.replies {
            self.answer(index, term, reply);
        }
        let later = self.barriers_granted.split_off(&LogIndex(self.applied.0 + 1));
        for barrier in std::mem::replace(&mut self.barriers_granted, later).into_values().flatten() {
            let _ = barrier.send(Ok(()));
        }
        true
    }

    fn answer(&mut self, index: LogIndex, term: Term, reply: Reply) {
        let Some((proposed_in, sender)) = self.proposals.remove(&index) else { return };
        let outcome = if proposed_in == term {
            Ok(reply)
        } else {
            // Another leader's entry took the place: ours will never be committed.
            Err(GroupError::NotLeader(self.raft.leadership().leader))
        };
        let _ = sender.send(outcome);
    }

    /// One ReadIndex for all reads that have gathered.
    fn ask_for_barriers(&mut self) {
        if self.barriers_new.is_empty() {
            return;
        }
        match self.raft.read_index(self.next_context) {
            Ok(()) => {
                self.barriers_asked.insert(self.next_context, std::mem::take(&mut self.barriers_new));
                self.next_context += 1;
            }
            Err(NotTaken::NotLeader) => {
                let leader = self.raft.leadership().leader;
                for barrier in self.barriers_new.drain(..) {
                    let _ = barrier.send(Err(GroupError::NotLeader(leader)));
                }
            }
            // A new leader has not committed in its term yet: they wait for it.
            Err(NotTaken::Busy) => {}
        }
    }

    fn grant(&mut self, grants: &[ReadGrant]) {
        for grant in grants {
            let Some(barriers) = self.barriers_asked.remove(&grant.context) else { continue };
            if grant.index <= self.applied {
                for barrier in barriers {
                    let _ = barrier.send(Ok(()));
                }
            } else {
                self.barriers_granted.entry(grant.index).or_default().extend(barriers);
            }
        }
    }

    fn show(&self) {
        let leadership = self.raft.leadership();
        let leader = match leadership.role {
            Role::Leader => self.peer.0,
            _ => leadership.leader.map_or(0, |peer| peer.0),
        };
        self.shared.term.store(leadership.term.0, Ordering::Relaxed);
        self.shared.leader.store(leader, Ordering::Relaxed);
        self.shared.log_bytes.store(self.raft.log_size().0, Ordering::Relaxed);
    }

    fn failed(&self) -> Option<String> {
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&mut self, why: String) {
        tracing::error!(group = self.id.0, "the replica stops serving: {why}");
        self.shared.leader.store(0, Ordering::Relaxed);
        *self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    fn refuse_all(&mut self) {
        let why = self.failed().unwrap_or_default();
        for (_, reply) in std::mem::take(&mut self.proposals).into_values() {
            let _ = reply.send(Err(GroupError::Unknown(why.clone())));
        }
        let asked = std::mem::take(&mut self.barriers_asked).into_values().flatten();
        let granted = std::mem::take(&mut self.barriers_granted).into_values().flatten();
        for barrier in self.barriers_new.drain(..).chain(asked).chain(granted) {
            let _ = barrier.send(Err(GroupError::Failed(why.clone())));
        }
    }
}

impl Unwritten {
    fn add(&mut self, number: u64, entries: Vec<Entry>, hard_state: Option<HardState>) {
        self.number = number;
        if let Some(first) = entries.first() {
            // Raft replaces its tail from here on; what was not written yet need not be.
            let keep = self.entries.iter().take_while(|entry| entry.index < first.index).count();
            self.entries.truncate(keep);
        }
        self.entries.extend(entries);
        self.hard_state = hard_state.or(self.hard_state);
    }
}

async fn next_written(writing: &mut Option<oneshot::Receiver<Result<u64, StoreError>>>) -> Result<u64, StoreError> {
    match writing {
        None => std::future::pending().await,
        Some(written) => written.await.unwrap_or(Err(StoreError::Closed)),
    }
}

/// Byte map of a hard state: term u64, vote u64, little-endian.
fn encode_hard_state(hard_state: HardState) -> bytes::Bytes {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&hard_state.term.0.to_le_bytes());
    out[8..].copy_from_slice(&hard_state.vote.0.to_le_bytes());
    bytes::Bytes::copy_from_slice(&out)
}

pub fn decode_hard_state(raw: &[u8]) -> Option<HardState> {
    let raw: &[u8; 16] = raw.try_into().ok()?;
    let (term, vote) = raw.split_at(8);
    let number = |half: &[u8]| Some(u64::from_le_bytes(half.try_into().ok()?));
    Some(HardState { term: Term(number(term)?), vote: PeerId(number(vote)?) })
}
