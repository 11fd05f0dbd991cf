//! The control plane at work: every node reports itself to its observers; where group 0 leads, what was heard becomes
//! changes of the map (`control.rs` decides), and fenced sessions are closed in every shard.

use base::Env;
use base::env::{Channel, MonoTime};
use base::ids::{GROUP_ZERO, GroupId, NodeId, Session};
use base::plant::{self, Plant};
use bytes::Bytes;
use client::Client;
use client::wire::{self, Answer, Ask, DiskTail, GroupReport, NodeReport, Reach, Told};
use futures_util::future::join_all;
use meta::map::command::{ClusterMap, MapCommand, MapEntry, MapOutcome, NodeState};
use protocol::detector::{Opinion, Turn};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

use crate::control::{self, Rules};
use crate::disks::NodeDisk;
use crate::events::{EventKind, EventLog};
use crate::fence_agent::{self, FenceAgent, Shots};
use crate::group::{Acknowledge, GroupHandle};
use crate::machine::{Command, Reply};
use crate::observations::{self, DETECTION, Observations};
use crate::service::Service;

const CONTROL_INTERVAL: Duration = Duration::from_millis(50);
/// Without a word from group 0's leader for so long, a node says that it is unfit: it missed six heartbeats.
const DEAF_AFTER: Duration = Duration::from_millis(500);
/// A disk that has owed an answer for so long holds up whoever waits for all copies.
const DISK_PATIENCE: Duration = Duration::from_secs(4);
pub const LOST_AFTER: Duration = Duration::from_secs(600);
/// How long a node that is asked whether it reaches another waits for it, and how long the asker waits.
pub const REACH_PATIENCE: Duration = Duration::from_millis(150);
const HELP_PATIENCE: Duration = Duration::from_millis(400);
/// How often the placement is looked at when the map does not change.
const PLACEMENT_INTERVAL: Duration = Duration::from_millis(500);
/// How long a node leads before it looks whether its own disks allow it: where all disks hang, leadership stays for a while.
const LEAD_MIN: Duration = Duration::from_secs(2);
/// Pause before a session that could not be closed is tried again.
const CLOSE_PAUSE: Duration = Duration::from_millis(200);

/// By how much decisions are late that are planted to be.
const STALE: Duration = Duration::from_secs(3);

const _: () = assert!(HELP_PATIENCE.as_millis() > REACH_PATIENCE.as_millis());

/// What this node has heard, as the leader of group 0 would use it.
#[derive(Default)]
pub struct Control {
    observations: Mutex<Observations>,
    /// What the external fence agent was asked.
    pub shots: Shots,
}

impl Control {
    pub fn observations(&self) -> MutexGuard<'_, Observations> {
        self.observations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process of a node is said to have ended: others are asked.
    pub fn ended(service: &Arc<Service>, node: NodeId) {
        let turn = service.control.observations().ended(node, service.env.now());
        if let Some(turn) = turn {
            tracing::info!("node {node}: its process has ended");
            service.events.record(EventKind::Suspected, turn.node, format!("the process of node {node} has ended"));
            service.env.spawn("confirm an end", confirm(service.clone(), node));
        }
    }

    /// Takes in the report of `from`.
    pub fn hear(&self, env: &Env, events: &EventLog, from: NodeId, report: NodeReport) {
        let wall_ms = env.clock.wall().0;
        let (now, theirs) = (env.now(), report.wall_ms);
        let news = self.observations().hear(from, report, now, wall_ms);
        news.turn.into_iter().for_each(|turn| record(events, turn));
        if news.wrong_clock {
            let off_s = i128::from(theirs).abs_diff(i128::from(wall_ms)) / 1000;
            let what = format!(
                "the clock of node {from} is {off_s} s off this node's: dates of objects will be wrong; set the clocks"
            );
            tracing::warn!("{what}");
            events.record(EventKind::Other, from, what);
        }
    }
}

/// What has become of a node in the eyes of this one.
fn record(events: &EventLog, turn: Turn) {
    let node = turn.node;
    let (kind, what) = match turn.to {
        Opinion::Suspect => (EventKind::Suspected, "missed three deadlines; others are asked whether they reach it"),
        Opinion::Silent => (EventKind::Confirmed, "is reached by nobody who was asked"),
        Opinion::Cut => (EventKind::Cut, "is reached by others: the link to it is broken"),
        Opinion::Trusted => (EventKind::Heard, "is heard again"),
    };
    tracing::info!("node {node} {what}");
    events.record(kind, node, format!("node {node} {what}"));
}

/// Tells its observers, ten times a second, that this node lives, and the voters of group 0 what it has done.
pub async fn report(env: Env, service: Arc<Service>, client: Client, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(DETECTION.interval) => {}
        }
        let cut = service.control.observations().cut().iter().map(|node| node.0).collect();
        let brief =
            NodeReport { wall_ms: env.clock.wall().0, cut, unfit: is_unfit(&env, &service), ..NodeReport::default() };
        let tails = tails(&service, env.now());
        let report = NodeReport { done: service.repair.done(), groups: led_groups(&service), tails, ..brief.clone() };
        let frame = |report| wire::frame(&client.request(Ask::NodeReport(report)), Vec::new());
        let (brief, whole) = (frame(brief), frame(report.clone()));
        let watchers = watchers(&service, &client);
        let observers = observations::observers_of(service.node, &service.map.borrow(), &watchers);
        for node in observers.into_iter().filter(|node| *node != service.node && !watchers.contains(node)) {
            env.net.send(node, Channel::Control, brief.clone());
        }
        for voter in watchers.into_iter().filter(|node| *node != service.node) {
            env.net.send(voter, Channel::Control, whole.clone());
        }
        service.control.hear(&env, &service.events, service.node, report);
    }
}

/// How slow this node's disks are. The logs of its groups are on the first.
fn tails(service: &Service, now: MonoTime) -> Vec<DiskTail> {
    let logs = service.replicas.all().iter().filter_map(|group| group.log_tail(now)).max();
    let own = |(number, disk): (usize, &NodeDisk)| {
        let tail = disk.meter.tail(now).max(logs.filter(|_| number == 0))?;
        Some(DiskTail { disk: Bytes::copy_from_slice(&disk.id.0.to_be_bytes()), tail_us: tail.as_micros() as u64 })
    };
    service.disks.all.iter().enumerate().filter_map(own).collect()
}

/// Who hears no leader, or whose disk hangs, is not to be counted on, however well it is heard: writes would wait for it
/// for ever.
fn is_unfit(env: &Env, service: &Service) -> bool {
    let now = env.now();
    let is_deaf = |group: &GroupHandle| !group.is_leader() && now.since(group.leader_heard()) > DEAF_AFTER;
    group_zero(service).is_some_and(|group| group.failed().is_some() || is_deaf(&group)) || disk_hangs(env, service)
}

/// Whether a disk has owed an answer for too long, or has no room for a log.
pub fn disk_hangs(env: &Env, service: &Service) -> bool {
    let now = env.now();
    service.replicas.all().iter().any(|group| group.blocked_for(now) > DISK_PATIENCE)
        || service.disks.all.iter().any(|disk| disk.meter.stalled_for(now) > DISK_PATIENCE)
}

/// Whether this node reaches another one, now.
pub async fn reaches(service: &Service, node: NodeId) -> bool {
    node == service.node || ask_whether(service, node, node, REACH_PATIENCE).await == Some(true)
}

/// Asks a node whether it reaches another. `None`: it does not answer.
async fn ask_whether(service: &Service, to: NodeId, reached: NodeId, patience: Duration) -> Option<bool> {
    // Whoever asks, and under which generation, does not matter to the answer.
    let request = wire::Request {
        node: service.node.0,
        cluster_generation: service.map.borrow().cluster_generation,
        ask: Some(Ask::Reach(Reach { node: reached.0 })),
        ..wire::Request::default()
    };
    let deadline = service.env.now() + patience;
    let call = service.env.net.call(to, Channel::Control, wire::frame(&request, Vec::new()), deadline);
    match wire::head::<Answer>(&call.await.ok()?).ok()?.told {
        Some(Told::Reached(it)) => Some(it.reached),
        _ => None,
    }
}

/// Has others look whether they reach a suspect.
async fn confirm(service: Arc<Service>, suspect: NodeId) {
    let helpers = service.control.observations().detector().helpers(suspect);
    let asks = helpers.into_iter().map(|helper| ask_whether(&service, helper, suspect, HELP_PATIENCE));
    let answers = join_all(asks).await;
    let mut seen = service.control.observations();
    let turn = match answers.into_iter().flatten().reduce(|one, other| one || other) {
        Some(is_reached) => seen.told(suspect, is_reached),
        None => seen.unanswered(suspect, service.env.now()),
    };
    drop(seen);
    turn.into_iter().for_each(|turn| record(&service.events, turn));
}

fn group_zero(service: &Service) -> Option<GroupHandle> {
    service.replicas.get(GROUP_ZERO)
}

/// Whoever may lead group 0. Without a replica that knows, everybody in the newest map that was fetched.
fn watchers(service: &Service, client: &Client) -> Vec<NodeId> {
    let voters = group_zero(service).map(|group| group.voter_nodes()).unwrap_or_default();
    if voters.is_empty() { client.map().map.nodes.iter().map(|row| NodeId(row.id)).collect() } else { voters }
}

fn led_groups(service: &Service) -> Vec<GroupReport> {
    let report = |group: &GroupHandle| GroupReport {
        group: group.id.0,
        term: group.term().0,
        voters: group.voter_nodes().iter().map(|node| node.0).collect(),
    };
    service.replicas.all().iter().filter(|group| group.is_leader()).map(report).collect()
}

/// Watches other nodes; and decides, while this node leads group 0.
pub async fn control(
    env: Env,
    service: Arc<Service>,
    client: Client,
    lost_after: Duration,
    fence_agent: Option<Arc<dyn FenceAgent>>,
    mut stop: watch::Receiver<bool>,
) {
    let rules = Rules { own: service.node, lost_after };
    let mut lead = Lead::default();
    let closer = Arc::new(Closer::default());
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(CONTROL_INTERVAL) => {}
        }
        let now = env.now();
        look(&env, &service, &client, now);
        let Some(group) = group_zero(&service).filter(|group| group.is_leader()) else {
            lead = Lead::default();
            continue;
        };
        if !std::mem::replace(&mut lead.leads, true) {
            lead.hand_over_due = now + LEAD_MIN;
            service.control.observations().lead(now);
        }
        if now >= lead.hand_over_due && disk_hangs(&env, &service) {
            // Nobody votes out the node that decides: another one decides, and does.
            lead.hand_over_due = now + LEAD_MIN;
            group.hand_over();
        }
        closer.close_due(&env, &service, &client);
        if !lead.proposing.load(Ordering::Acquire) {
            let release = |commands| match &fence_agent {
                Some(agent) => fence_agent::hold(&env, &service, agent, &group, commands),
                None => commands,
            };
            let commands = lead.decide(&service, now, &rules, release);
            let map = service.map.borrow().clone();
            propose(&env, group, map, commands, &lead.proposing, &service.events);
        }
    }
}

fn look(env: &Env, service: &Arc<Service>, client: &Client, now: MonoTime) {
    let map = service.map.borrow().clone();
    let voters = watchers(service, client);
    let (turns, suspects) = service.control.observations().look(&map, service.node, &voters, now);
    turns.into_iter().for_each(|turn| record(&service.events, turn));
    for suspect in suspects {
        env.spawn("confirm silence", confirm(service.clone(), suspect));
    }
}

/// A time of leadership.
#[derive(Default)]
struct Lead {
    leads: bool,
    /// Not before is leadership handed over because of the own disks.
    hand_over_due: MonoTime,
    /// Earlier decisions are on their way into the map: new ones would be made from an old map.
    proposing: Arc<AtomicBool>,
    /// Map version and time of the last look at the placement.
    placed: Option<(u64, MonoTime)>,
    /// Something moves, or is to.
    moves: bool,
}

impl Lead {
    /// What is to change, and what the timeline says of it. `release` keeps back what waits for the fence agent: the rest
    /// of the cluster does not wait for that.
    fn decide(
        &mut self,
        service: &Service,
        now: MonoTime,
        rules: &Rules,
        release: impl FnOnce(Vec<(MapCommand, String)>) -> Vec<(MapCommand, String)>,
    ) -> Vec<(MapCommand, String)> {
        let map = service.map.borrow().clone();
        let mut seen = service.control.observations();
        let mut commands = release(control::decide_nodes(&map, &mut seen, now, rules));
        if commands.is_empty() {
            commands.extend(control::decide_level(&map));
        }
        if commands.is_empty() {
            commands = control::decide_slow(&map, &mut seen, now);
        }
        let is_due =
            self.placed.is_none_or(|(version, at)| version != map.version || now.since(at) > PLACEMENT_INTERVAL);
        if !commands.is_empty() || !is_due {
            return commands;
        }
        self.placed = Some((map.version, now));
        let decided = control::decide_placement(&map, &seen);
        drop(seen);
        match &decided {
            Some(_) => self.moves = true,
            None if self.moves && control::is_settled(&map) => {
                self.moves = false;
                let what = "every placement group is open and where it belongs";
                service.events.record(EventKind::Settled, NodeId(0), what);
            }
            None => {}
        }
        let described = |command: MapCommand| {
            let what = describe(&command, &map);
            (command, what)
        };
        decided.map(described).into_iter().collect()
    }
}

fn propose(
    env: &Env,
    group: GroupHandle,
    map: Arc<ClusterMap>,
    commands: Vec<(MapCommand, String)>,
    proposing: &Arc<AtomicBool>,
    events: &Arc<EventLog>,
) {
    if commands.is_empty() {
        return;
    }
    proposing.store(true, Ordering::Release);
    let (proposing, events, task_env) = (proposing.clone(), events.clone(), env.clone());
    env.spawn("control", async move {
        if plant::is(Plant::DecideStale) {
            task_env.sleep(STALE).await;
        }
        for (command, what) in commands {
            let kinds = kinds_of(&command, &map);
            let entry = MapEntry { slot: None, command: Some(command) };
            match group.propose(Command::Map(entry), Acknowledge::Majority).await {
                Ok(Reply::Map(reply)) if reply.outcome() == MapOutcome::Done => {
                    tracing::info!("{what}");
                    kinds.into_iter().for_each(|(kind, about)| events.record(kind, about, what.clone()));
                }
                Ok(Reply::Map(reply)) => tracing::info!("{what}: {:?}: {}", reply.outcome(), reply.detail),
                Ok(Reply::Shard(_)) => tracing::error!("{what}: a shard's reply came from group 0"),
                Err(error) => tracing::info!("{what}: {error:?}"),
            }
        }
        proposing.store(false, Ordering::Release);
    });
}

fn describe(command: &MapCommand, map: &ClusterMap) -> String {
    match command {
        MapCommand::SetPool(row) => format!("pool {} has {} copies in effect", row.id, row.copies_effective),
        MapCommand::SetPgs(rows) => {
            let begin = rows.rows.iter().filter(|row| row.closed).count();
            let ended = rows.rows.len() - begin;
            let under_way = map.pgs.iter().filter(|row| row.closed).count() + begin - ended;
            match (begin, ended) {
                (0, _) => format!("{ended} placement groups have moved, {under_way} are under way"),
                (_, 0) => format!("{begin} placement groups begin to move, {under_way} are under way"),
                _ => format!("{ended} placement groups have moved, {begin} begin to, {under_way} are under way"),
            }
        }
        other => format!("{other:?}"),
    }
}

/// What the timeline calls a change that was made.
fn kinds_of(command: &MapCommand, map: &ClusterMap) -> Option<(EventKind, NodeId)> {
    Some(match command {
        MapCommand::SetNodeState(change) => {
            let kind = match change.state() {
                NodeState::Down => EventKind::Fenced,
                NodeState::Lost => EventKind::Lost,
                NodeState::Draining => EventKind::Draining,
                NodeState::Removed => EventKind::Removed,
                NodeState::Up | NodeState::Joining => EventKind::Up,
            };
            (kind, NodeId(change.id))
        }
        MapCommand::SetDiskSlow(set) => {
            let row = map.disks.iter().find(|row| row.id == set.id);
            (EventKind::Slow, NodeId(row.map_or(0, |row| row.node)))
        }
        MapCommand::SetPool(_) => (EventKind::CopiesRaised, NodeId(0)),
        MapCommand::SetFeatureLevel(_) => (EventKind::Upgraded, NodeId(0)),
        MapCommand::SetPgs(rows) if rows.rows.iter().any(|row| row.closed) => (EventKind::Moving, NodeId(0)),
        MapCommand::SetPgs(_) => (EventKind::Moved, NodeId(0)),
        _ => return None,
    })
}

/// Closes fenced sessions in every group, again and again until each has acknowledged.
#[derive(Default)]
struct Closer {
    state: Mutex<Closing>,
}

#[derive(Default)]
struct Closing {
    /// The floor below which each group has closed a node's sessions.
    closed: BTreeMap<(GroupId, NodeId), u32>,
    /// One at a time in each group.
    busy: BTreeSet<GroupId>,
}

impl Closer {
    fn state(&self) -> MutexGuard<'_, Closing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_due(self: &Arc<Self>, env: &Env, service: &Service, client: &Client) {
        let map = service.map.borrow().clone();
        let mut state = self.state();
        for (group, session) in control::sessions_due(&map, &state.closed) {
            if state.busy.insert(group) {
                let (closer, env, client) = (self.clone(), env.clone(), client.clone());
                let task_env = env.clone();
                env.spawn("close session", async move { closer.close(&task_env, &client, group, session).await });
            }
        }
    }

    async fn close(&self, env: &Env, client: &Client, group: GroupId, session: Session) {
        let closed = client.close_sessions(group, session).await;
        if let Err(error) = &closed {
            tracing::info!("sessions of node {} in group {group} are not closed yet: {error}", session.node);
            env.sleep(CLOSE_PAUSE).await;
        }
        let mut state = self.state();
        state.busy.remove(&group);
        if closed.is_ok() {
            state.closed.insert((group, session.node), session.generation.0);
        }
    }
}
