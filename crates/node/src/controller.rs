//! The control plane at work: every node reports itself to the voters of group 0; where group 0 leads, what was heard
//! becomes changes of the map (`control.rs` decides), and fenced sessions are closed in every shard.

use base::Env;
use base::env::{Channel, MonoTime};
use base::ids::{GROUP_ZERO, GroupId, NodeId, Session};
use client::Client;
use client::wire::{self, Ask, GroupReport, NodeReport};
use meta::map::command::{MapCommand, MapEntry, MapOutcome};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

use crate::control::{self, Observations, Rules};
use crate::group::{Acknowledge, GroupHandle};
use crate::machine::{Command, Reply};
use crate::service::Service;

const REPORT_INTERVAL: Duration = Duration::from_millis(100);
const CONTROL_INTERVAL: Duration = Duration::from_millis(50);
/// Silence after which a node is voted down: six reports.
pub const DOWN_AFTER: Duration = Duration::from_millis(600);
/// Without a word from group 0's leader for so long, a node falls silent itself: it misses six heartbeats.
const DEAF_AFTER: Duration = Duration::from_millis(500);
pub const LOST_AFTER: Duration = Duration::from_secs(600);
/// A controller that comes later than this was itself paused, and heard nobody meanwhile.
const OWN_PAUSE_MIN: Duration = Duration::from_millis(250);
/// How often the placement is looked at when the map does not change.
const PLACEMENT_INTERVAL: Duration = Duration::from_millis(500);
/// Pause before a session that could not be closed is tried again.
const CLOSE_PAUSE: Duration = Duration::from_millis(200);

const _: () = assert!(DOWN_AFTER.as_millis() >= 4 * REPORT_INTERVAL.as_millis(), "one lost report is no silence");

/// What this node has heard, as the leader of group 0 would use it.
#[derive(Default)]
pub struct Control {
    observations: Mutex<Observations>,
}

impl Control {
    pub fn observations(&self) -> MutexGuard<'_, Observations> {
        self.observations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the report of `from`.
    pub fn hear(&self, env: &Env, from: NodeId, report: NodeReport) {
        let wall_ms = env.clock.wall().0;
        let (now, theirs) = (env.now(), report.wall_ms);
        if self.observations().hear(from, report, now, wall_ms) {
            tracing::warn!(
                "the clock of node {from} is {} s off this node's: dates of objects will be wrong; set the clocks",
                i128::from(theirs).abs_diff(i128::from(wall_ms)) / 1000
            );
        }
    }
}

/// Tells the voters of group 0, ten times a second, that this node lives and what it has done.
pub async fn report(env: Env, service: Arc<Service>, client: Client, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(REPORT_INTERVAL) => {}
        }
        if group_zero(&service).is_some_and(|group| group.failed().is_some() || is_deaf(&env, &group)) {
            // It cannot follow the map any more: silence has it voted out.
            continue;
        }
        let report =
            NodeReport { wall_ms: env.clock.wall().0, done: service.repair.done(), groups: led_groups(&service) };
        let frame = wire::frame(&client.request(Ask::NodeReport(report.clone())), Vec::new());
        for voter in watchers(&service, &client).into_iter().filter(|node| *node != service.node) {
            env.net.send(voter, Channel::Control, frame.clone());
        }
        service.control.hear(&env, service.node, report);
    }
}

/// Who hears no leader is not to be counted on, however well it is heard: writes would wait for it for ever.
fn is_deaf(env: &Env, group: &GroupHandle) -> bool {
    !group.is_leader() && env.now().since(group.leader_heard()) > DEAF_AFTER
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

/// Decides, while this node leads group 0.
pub async fn control(
    env: Env,
    service: Arc<Service>,
    client: Client,
    lost_after: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let rules = Rules { own: service.node, down_after: DOWN_AFTER, lost_after };
    let mut lead = Lead::default();
    let closer = Arc::new(Closer::default());
    let mut expected = env.now() + CONTROL_INTERVAL;
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.clock.sleep_until(expected) => {}
        }
        let now = env.now();
        let was_paused = now.since(expected) > OWN_PAUSE_MIN;
        expected = now + CONTROL_INTERVAL;
        let Some(group) = group_zero(&service).filter(|group| group.is_leader()) else {
            lead = Lead::default();
            continue;
        };
        if !std::mem::replace(&mut lead.leads, true) || was_paused {
            service.control.observations().forgive(now);
        }
        closer.close_due(&env, &service, &client);
        if !lead.proposing.load(Ordering::Acquire) {
            let commands = lead.decide(&service, now, &rules);
            propose(&env, group, commands, &lead.proposing);
        }
    }
}

/// A time of leadership.
#[derive(Default)]
struct Lead {
    leads: bool,
    /// Earlier decisions are on their way into the map: new ones would be made from an old map.
    proposing: Arc<AtomicBool>,
    /// Map version and time of the last look at the placement.
    placed: Option<(u64, MonoTime)>,
}

impl Lead {
    fn decide(&mut self, service: &Service, now: MonoTime, rules: &Rules) -> Vec<MapCommand> {
        let map = service.map.borrow().clone();
        let mut seen = service.control.observations();
        let commands = control::decide_nodes(&map, &mut seen, now, rules);
        let is_due =
            self.placed.is_none_or(|(version, at)| version != map.version || now.since(at) > PLACEMENT_INTERVAL);
        if !commands.is_empty() || !is_due {
            return commands;
        }
        self.placed = Some((map.version, now));
        control::decide_placement(&map, &seen).into_iter().collect()
    }
}

fn propose(env: &Env, group: GroupHandle, commands: Vec<MapCommand>, proposing: &Arc<AtomicBool>) {
    if commands.is_empty() {
        return;
    }
    proposing.store(true, Ordering::Release);
    let proposing = proposing.clone();
    env.spawn("control", async move {
        for command in commands {
            let what = describe(&command);
            let entry = MapEntry { slot: None, command: Some(command) };
            match group.propose(Command::Map(entry), Acknowledge::Majority).await {
                Ok(Reply::Map(reply)) if reply.outcome() == MapOutcome::Done => tracing::info!("{what}"),
                Ok(Reply::Map(reply)) => tracing::info!("{what}: {:?}: {}", reply.outcome(), reply.detail),
                Ok(Reply::Shard(_)) => tracing::error!("{what}: a shard's reply came from group 0"),
                Err(error) => tracing::info!("{what}: {error:?}"),
            }
        }
        proposing.store(false, Ordering::Release);
    });
}

fn describe(command: &MapCommand) -> String {
    match command {
        MapCommand::SetNodeState(change) => format!("node {} becomes {:?}", change.id, change.state()),
        MapCommand::SetPool(row) => format!("pool {} has {} copies in effect", row.id, row.copies_effective),
        MapCommand::SetPgs(rows) => {
            let closed = rows.rows.iter().filter(|row| row.closed).count();
            format!("{closed} placement groups begin to move, {} have moved", rows.rows.len() - closed)
        }
        other => format!("{other:?}"),
    }
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
