//! A cluster in memory under a seed: drivers as simple as they can be, disks that lose what was not flushed, a network
//! that loses, doubles, delays and reorders. Whatever happens, it checks that no two peers lead in one term, that all
//! apply the same entries, that an acknowledged command stays, and that a granted read sees all that was acknowledged.

use base::env::{Random, RandomExt};
use base::ids::{LogIndex, NodeId, PeerId, Term};
use bytes::Bytes;
use protocol::membership::{NodeState, NodeView, next_change};
use protocol::raft::{
    Configuration, ENTRY_COMMAND, Entry, HardState, Message, MessageKind, RaftPeer, Ready, Restored, Role, Waiting,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Seeded(AtomicU64);

impl Seeded {
    pub fn new(seed: u64) -> Arc<Seeded> {
        Arc::new(Seeded(AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
    }
}

impl Random for Seeded {
    fn next_u64(&self) -> u64 {
        let z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What the state machine holds: a digest of all commands in their order is as good as their effect.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct State {
    pub applied: LogIndex,
    pub term: Term,
    pub digest: u64,
    pub configuration: Configuration,
}

/// What survives a crash.
#[derive(Clone, Default)]
struct Disk {
    peer: PeerId,
    hard_state: HardState,
    base: (LogIndex, Term),
    entries: Vec<Entry>,
    /// `None`: lost, or not there yet.
    state: Option<State>,
}

/// A ready that is to be flushed, or several.
#[derive(Default)]
struct Write {
    number: u64,
    restored: Option<State>,
    /// The log is trimmed up to what was restored, not begun anew.
    keeps_log: bool,
    entries: Vec<Entry>,
    hard_state: Option<HardState>,
    messages: Vec<Message>,
}

struct Pull {
    message: Message,
    from: NodeId,
    done_at: u64,
}

#[derive(Default)]
pub struct Node {
    disk: Disk,
    pub raft: Option<RaftPeer>,
    pub state: Option<State>,
    pulled: Option<State>,
    pull: Option<Pull>,
    gathering: Write,
    writing: Option<(u64, Write)>,
    /// Where a peer's last message came from.
    heard: BTreeMap<PeerId, NodeId>,
    reads: BTreeMap<u64, u64>,
}

#[derive(Clone, Copy)]
pub struct Faults {
    /// Of a thousand messages.
    pub lost: u64,
    pub doubled: u64,
    /// Ticks.
    pub delay_max: u64,
    /// Ticks until a write is durable.
    pub flush_max: u64,
    pub pull: (u64, u64),
}

pub const CALM: Faults = Faults { lost: 0, doubled: 0, delay_max: 1, flush_max: 1, pull: (0, 2) };
pub const ROUGH: Faults = Faults { lost: 100, doubled: 30, delay_max: 4, flush_max: 3, pull: (0, 30) };

pub struct Cluster {
    pub random: Arc<Seeded>,
    pub faults: Faults,
    pub nodes: BTreeMap<NodeId, Node>,
    pub states: BTreeMap<NodeId, NodeState>,
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub wanted_voters: usize,
    pub group_zero: bool,
    pub plans: bool,
    /// The driver flushes the state whenever the configuration has changed.
    pub flushes_changes: bool,
    pub now: u64,
    /// (due, sequence) -> from, to, message.
    wire: BTreeMap<(u64, u64), (NodeId, NodeId, Bytes)>,
    sequence: u64,
    decided: BTreeMap<LogIndex, (Term, Bytes)>,
    leaders: BTreeMap<Term, PeerId>,
    proposed: BTreeMap<(LogIndex, Term), u64>,
    pub acked: BTreeMap<u64, LogIndex>,
    next_command: u64,
    pub granted: u64,
    /// Every configuration that was ever applied, by its entry.
    pub configurations: BTreeMap<LogIndex, Configuration>,
}

impl Cluster {
    /// One node with a group of one; the others are there and have nothing.
    pub fn new(seed: u64, nodes: u32) -> Cluster {
        let ids = (1..=nodes).map(NodeId);
        let mut cluster = Cluster {
            random: Seeded::new(seed),
            faults: CALM,
            nodes: ids.clone().map(|id| (id, Node::default())).collect(),
            states: ids.map(|id| (id, NodeState::Up)).collect(),
            cut: BTreeSet::new(),
            wanted_voters: 3,
            group_zero: true,
            plans: true,
            flushes_changes: false,
            now: 0,
            wire: BTreeMap::new(),
            sequence: 0,
            decided: BTreeMap::new(),
            leaders: BTreeMap::new(),
            proposed: BTreeMap::new(),
            acked: BTreeMap::new(),
            next_command: 1,
            granted: 0,
            configurations: BTreeMap::new(),
        };
        let configuration = Configuration::of_one(PeerId(1), NodeId(1));
        let first = cluster.nodes.get_mut(&NodeId(1)).unwrap();
        first.disk.peer = PeerId(1);
        // A state that no log entry could rebuild: it must come with a snapshot.
        first.disk.state = Some(State { digest: 77, configuration, ..State::default() });
        cluster.start(NodeId(1));
        cluster
    }

    pub fn start(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.disk.peer == PeerId(0) || node.raft.is_some() {
            return;
        }
        let disk = node.disk.clone();
        let restored = Restored {
            peer: disk.peer,
            configuration: disk.state.as_ref().map(|state| state.configuration.clone()).unwrap_or_default(),
            hard_state: disk.hard_state,
            base: disk.base,
            entries: disk.entries,
            applied: disk.state.as_ref().map(|state| state.applied).unwrap_or_default(),
            waiting: if disk.state.is_some() { Waiting::No } else { Waiting::ForState },
            // Both kinds of leaders work, also beside each other.
            commits_lazily: id.0 % 2 == 1,
        };
        node.state = disk.state;
        let mut raft = RaftPeer::new(restored, self.random.clone()).unwrap();
        raft.campaign_if_alone();
        node.raft = Some(raft);
    }

    /// What is not durable is gone; a write under way may or may not have happened.
    pub fn crash(&mut self, id: NodeId) {
        let happened = self.random.below(2) == 0;
        let node = self.nodes.get_mut(&id).unwrap();
        let mut writing = node.writing.take();
        if let Some((_, write)) = &mut writing {
            if write.restored.is_some() && !happened {
                // The rows are half replaced.
                node.disk.state = None;
            } else if happened {
                node.disk.write(write);
            }
        }
        *node = Node { disk: std::mem::take(&mut node.disk), ..Node::default() };
    }

    /// The fewest voters that a node could come back with.
    pub fn voters_min(&self) -> usize {
        let disks = self.nodes.values().filter_map(|node| node.disk.state.as_ref());
        disks.map(|state| state.configuration.voters.len()).min().unwrap_or_default()
    }

    /// Only the log of a stopped node is left.
    pub fn lose_state(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        assert!(node.raft.is_none());
        node.disk.state = None;
    }

    pub fn leader(&self) -> Option<NodeId> {
        let leads = |node: &Node| {
            node.raft.as_ref().map(RaftPeer::leadership).filter(|it| it.role == Role::Leader).map(|it| it.term)
        };
        self.nodes.iter().filter_map(|(id, node)| leads(node).map(|term| (term, *id))).max().map(|(_, id)| id)
    }

    pub fn raft(&mut self, id: NodeId) -> &mut RaftPeer {
        self.nodes.get_mut(&id).unwrap().raft.as_mut().expect("the node is running")
    }

    pub fn configuration(&self, id: NodeId) -> Configuration {
        self.nodes[&id].state.as_ref().map(|state| state.configuration.clone()).unwrap_or_default()
    }

    /// Gives the leader a command, if there is one.
    pub fn propose(&mut self) -> Option<u64> {
        let leader = self.leader()?;
        let command = self.next_command;
        let mut data = vec![ENTRY_COMMAND];
        data.extend(command.to_le_bytes());
        data.resize(9 + self.random.below(60) as usize, 7);
        let at = self.raft(leader).propose(data.into()).ok()?;
        self.next_command += 1;
        self.proposed.insert(at, command);
        Some(command)
    }

    pub fn read(&mut self, id: NodeId) -> bool {
        let acknowledged = self.acked.values().max().map_or(0, |index| index.0);
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(raft) = &mut node.raft else { return false };
        self.sequence += 1;
        let asked = raft.read_index(self.sequence).is_ok();
        if asked {
            node.reads.insert(self.sequence, acknowledged);
        }
        asked
    }

    /// From now on a crash comes back with this state.
    pub fn flush_state(&mut self, id: NodeId, trim: bool) {
        let node = self.nodes.get_mut(&id).unwrap();
        let (Some(raft), Some(state)) = (&mut node.raft, &node.state) else { return };
        if node.disk.state.is_none() || node.writing.as_ref().is_some_and(|(_, write)| write.restored.is_some()) {
            return;
        }
        if node.gathering.restored.is_some() || node.disk.last() < state.applied {
            return;
        }
        node.disk.state = Some(state.clone());
        if trim {
            raft.trim(state.applied);
            node.disk.trim(state.applied);
        }
    }

    pub fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.tick();
        }
    }

    /// Runs with a command a tick until `done`.
    pub fn run_until(&mut self, what: &str, ticks_max: u64, mut done: impl FnMut(&mut Cluster) -> bool) {
        for _ in 0..ticks_max {
            if done(self) {
                return;
            }
            self.propose();
            self.tick();
        }
        panic!("{what}: not within {ticks_max} ticks: {}", self.describe());
    }

    pub fn describe(&self) -> String {
        let mut out = String::new();
        for (id, node) in &self.nodes {
            let leadership = node.raft.as_ref().map(RaftPeer::leadership);
            let applied = node.state.as_ref().map(|state| state.applied);
            let progress = node.raft.as_ref().map(RaftPeer::progress).unwrap_or_default();
            out += &format!("\n{id}: peer {} {leadership:?} applied {applied:?}", node.disk.peer);
            out += &format!(" {:?} {progress:?}", self.configuration(*id));
        }
        out
    }

    pub fn tick(&mut self) {
        self.now += 1;
        self.deliver();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            if let Some(raft) = &mut self.nodes.get_mut(&id).unwrap().raft {
                raft.tick();
            }
            self.finish_pull(id);
            self.work(id);
            self.finish_write(id);
            self.work(id);
            if self.plans && self.now.is_multiple_of(5) {
                self.plan(id);
                self.work(id);
            }
        }
    }

    fn plan(&mut self, id: NodeId) {
        let views: Vec<NodeView> =
            self.states.iter().map(|(node, state)| NodeView { node: *node, state: *state }).collect();
        let (wanted, zero) = (self.wanted_voters, self.group_zero);
        let Some(raft) = &mut self.nodes.get_mut(&id).unwrap().raft else { return };
        if raft.leadership().role != Role::Leader || raft.pending_configuration() {
            return;
        }
        if let Some(change) = next_change(raft.configuration(), &views, &[], &raft.progress(), wanted, zero) {
            let _ = raft.propose_configuration(&change);
        }
    }

    fn deliver(&mut self) {
        while let Some(first) = self.wire.first_entry() {
            if first.key().0 > self.now {
                return;
            }
            let (from, to, raw) = first.remove();
            let message = Message::decode(&raw).expect("what a correct peer encodes, another decodes");
            if !self.cut.contains(&(from, to)) {
                self.receive(from, to, message);
                self.work(to);
            }
        }
    }

    fn receive(&mut self, from: NodeId, to: NodeId, message: Message) {
        let (least, most) = self.faults.pull;
        let done_at = self.now + least + self.random.below(most - least + 1);
        let node = self.nodes.get_mut(&to).unwrap();
        let newer = message.to() > node.disk.peer;
        if newer && matches!(message.kind(), MessageKind::Heartbeat | MessageKind::Append | MessageKind::Snapshot) {
            // A new peer was allotted to this node: an earlier one retires.
            *node = Node { disk: Disk { peer: message.to(), ..Disk::default() }, ..Node::default() };
            self.start(to);
        }
        let node = self.nodes.get_mut(&to).unwrap();
        let Some(raft) = &mut node.raft else { return };
        if message.to() != node.disk.peer {
            assert!(raft.step(message).is_err());
            return;
        }
        node.heard.insert(message.from(), from);
        if message.kind() == MessageKind::Snapshot && raft.would_restore(&message) {
            if node.pull.is_none() && node.pulled.is_none() {
                node.pull = Some(Pull { message, from, done_at });
            }
            return;
        }
        raft.step(message).expect("peers are correct");
    }

    fn finish_pull(&mut self, id: NodeId) {
        let now = self.now;
        let Some(pull) = self.nodes.get_mut(&id).unwrap().pull.take_if(|pull| pull.done_at <= now) else { return };
        let Some(rows) = self.nodes[&pull.from].state.clone() else { return };
        let (index, term, _) = pull.message.snapshot().unwrap();
        if self.cut.contains(&(pull.from, id)) || rows.applied < index || rows.term < term {
            return;
        }
        let message = pull.message.with_snapshot(rows.applied, rows.term, &rows.configuration);
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(raft) = &mut node.raft else { return };
        if raft.would_restore(&message) {
            raft.step(message).unwrap();
            node.pulled = Some(rows);
        }
    }

    fn work(&mut self, id: NodeId) {
        loop {
            let node = self.nodes.get_mut(&id).unwrap();
            let Some(raft) = &mut node.raft else { return };
            let leadership = raft.leadership();
            let own = node.disk.peer;
            if leadership.role == Role::Leader {
                let leader = *self.leaders.entry(leadership.term).or_insert(own);
                assert_eq!(leader, own, "two leaders in term {}", leadership.term);
            }
            let Some(ready) = raft.take_ready() else { break };
            self.handle(id, ready);
        }
        let delay = self.random.below(self.faults.flush_max + 1);
        let node = self.nodes.get_mut(&id).unwrap();
        if node.writing.is_none() && node.gathering.number > 0 {
            node.writing = Some((self.now + delay, std::mem::take(&mut node.gathering)));
        }
    }

    fn handle(&mut self, id: NodeId, ready: Ready) {
        self.send(id, ready.messages);
        for entry in &ready.committed {
            self.apply(id, entry);
        }
        let node = self.nodes.get_mut(&id).unwrap();
        let raft = node.raft.as_mut().unwrap();
        if let Some(last) = ready.committed.last() {
            raft.applied(last.index);
        }
        if self.flushes_changes && ready.committed.iter().any(Entry::is_configuration) {
            self.flush_state(id, false);
        }
        let node = self.nodes.get_mut(&id).unwrap();
        for grant in &ready.reads {
            let asked: Vec<u64> = node.reads.range(..=grant.context).map(|(context, _)| *context).collect();
            for context in asked {
                let acknowledged = node.reads.remove(&context).unwrap();
                assert!(grant.index.0 >= acknowledged, "a read would miss what was acknowledged before");
                self.granted += 1;
            }
        }
        if let Some((index, term, configuration)) = ready.restored {
            let rows = node.pulled.take().expect("only what was pulled is stepped");
            assert_eq!((rows.applied, rows.term, &rows.configuration), (index, term, &configuration));
            node.state = Some(rows.clone());
            node.gathering.restored = Some(rows);
            node.gathering.keeps_log = ready.keeps_log;
            if !ready.keeps_log {
                node.gathering.entries.clear();
            }
        }
        let gathering = &mut node.gathering;
        gathering.number = ready.number;
        if let Some(first) = ready.append.first() {
            gathering.entries.retain(|entry| entry.index < first.index);
        }
        gathering.entries.extend(ready.append);
        gathering.hard_state = ready.hard_state.or(gathering.hard_state);
        gathering.messages.extend(ready.messages_after_flush);
    }

    fn apply(&mut self, id: NodeId, entry: &Entry) {
        let node = self.nodes.get_mut(&id).unwrap();
        assert!(entry.index <= node.disk.last(), "only what is durable here is applied");
        let state = node.state.as_mut().expect("a peer without a state applies nothing");
        assert_eq!(entry.index.0, state.applied.0 + 1, "entries are applied in order");
        (state.applied, state.term) = (entry.index, entry.term);
        let decided = self.decided.entry(entry.index).or_insert((entry.term, entry.data.clone()));
        assert_eq!(
            *decided,
            (entry.term, entry.data.clone()),
            "two peers applied different entries at {}",
            entry.index
        );
        if entry.is_configuration() {
            state.configuration = node.raft.as_mut().unwrap().apply_configuration(entry);
            let known = self.configurations.entry(entry.index).or_insert_with(|| state.configuration.clone());
            assert_eq!(*known, state.configuration);
        } else {
            let mix = |digest: u64, byte: &u8| (digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            state.digest = entry.data.iter().fold(state.digest, mix);
        }
        if let Some(command) = self.proposed.remove(&(entry.index, entry.term)) {
            self.acked.insert(command, entry.index);
        }
    }

    fn finish_write(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).unwrap();
        let Some((_, mut write)) = node.writing.take_if(|(due, _)| *due <= now) else { return };
        node.disk.write(&mut write);
        node.raft.as_mut().expect("a crash takes the write with it").persisted(write.number);
        self.send(id, write.messages);
    }

    fn send(&mut self, id: NodeId, messages: Vec<Message>) {
        for message in messages {
            let node = &self.nodes[&id];
            let placed = node.raft.as_ref().and_then(|raft| raft.configuration().node_of(message.to()));
            let Some(to) = placed.or_else(|| node.heard.get(&message.to()).copied()) else { continue };
            let copies = if self.random.below(1000) < self.faults.doubled { 2 } else { 1 };
            for _ in 0..copies {
                if self.random.below(1000) < self.faults.lost {
                    continue;
                }
                let due = self.now + 1 + self.random.below(self.faults.delay_max);
                self.sequence += 1;
                self.wire.insert((due, self.sequence), (id, to, message.encode()));
            }
        }
    }

    /// All of these nodes run, have the same state, and it holds every command that was ever acknowledged.
    pub fn assert_converged(&mut self, ids: &[u32]) {
        let ids: Vec<NodeId> = ids.iter().copied().map(NodeId).collect();
        let last = self.decided.keys().last().copied().unwrap_or_default();
        let agree = |cluster: &mut Cluster| {
            let mut states = ids.iter().map(|id| cluster.nodes[id].state.clone());
            let first = states.next().flatten();
            first.as_ref().is_some_and(|state| state.applied >= last) && states.all(|state| state == first)
        };
        for _ in 0..2000 {
            if agree(self) {
                return;
            }
            self.tick();
        }
        panic!("no agreement: {}", self.describe());
    }
}

impl Disk {
    fn last(&self) -> LogIndex {
        self.entries.last().map_or(self.base.0, |entry| entry.index)
    }

    fn write(&mut self, write: &mut Write) {
        let kept = write.restored.take_if(|_| write.keeps_log);
        if let Some(state) = write.restored.take() {
            self.base = (state.applied, state.term);
            self.entries.clear();
            self.state = Some(state);
        }
        if let Some(first) = write.entries.first() {
            assert!(first.index > self.base.0 && first.index.0 <= self.last().0 + 1, "a log has no gaps");
            self.entries.retain(|entry| entry.index < first.index);
        }
        self.entries.append(&mut write.entries);
        self.hard_state = write.hard_state.unwrap_or(self.hard_state);
        if let Some(state) = kept {
            self.trim(state.applied);
            assert_eq!(self.base, (state.applied, state.term), "the log holds what was restored");
            self.state = Some(state);
        }
    }

    fn trim(&mut self, index: LogIndex) {
        let Some(last) = self.entries.iter().rfind(|entry| entry.index <= index) else { return };
        self.base = (last.index, last.term);
        self.entries.retain(|entry| entry.index > index);
    }
}

trait Alone {
    fn campaign_if_alone(&mut self);
}

impl Alone for RaftPeer {
    fn campaign_if_alone(&mut self) {
        if self.configuration().voters.len() == 1 {
            self.campaign();
        }
    }
}
