//! What can be said about the safety of the data: computed, never guessed.
//!
//! `local.rs` says what one node sees of itself; `whole.rs` puts the answers of all nodes and the map together. What a
//! node does not answer for is never called safe.

mod local;
mod whole;

use base::env::Channel;
use base::ids::NodeId;
use client::wire::{self, Answer, Ask, GetEvents, GetStatus, Told};
use futures_util::future::join_all;
use meta::map::command::NodeState;
use std::time::Duration;

use crate::events::{self, Event, Events};
use crate::service::Service;
pub use local::LocalStatus;

/// How long a node may take to say how it is.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Reasons are cut here, so that a broken disk does not fill the screen.
const REASONS_MAX: usize = 20;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// Every copy that the policy asks for exists and verifies.
    Safe,
    /// Everything can be read; one more failure may lose or block something.
    AtRisk,
    /// Something cannot be served now.
    Unavailable,
    /// Something is gone.
    Lost,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Safe => "safe",
            Verdict::AtRisk => "at_risk",
            Verdict::Unavailable => "unavailable",
            Verdict::Lost => "lost",
        }
    }

    fn from_number(number: u32) -> Verdict {
        match number {
            0 => Verdict::Safe,
            1 => Verdict::AtRisk,
            2 => Verdict::Unavailable,
            _ => Verdict::Lost,
        }
    }
}

/// The whole picture.
#[derive(Clone, Debug)]
pub struct Status {
    pub verdict: Verdict,
    /// Whole sentences: what is wrong, and with what.
    pub reasons: Vec<String>,
    /// What the cluster does about it by itself.
    pub doing: Vec<String>,
    /// What people should do.
    pub todo: Vec<String>,
    /// Version of the cluster map.
    pub epoch: u64,
    pub nodes: Vec<NodeStatus>,
    pub groups: Vec<GroupStatus>,
    pub chunks: ChunkCounts,
    pub repair: RepairStatus,
}

#[derive(Clone, Debug)]
pub struct NodeStatus {
    pub id: u32,
    pub generation: u32,
    pub state: &'static str,
    pub locality: String,
    pub disks: Vec<DiskStatus>,
}

#[derive(Clone, Debug)]
pub struct DiskStatus {
    pub id: String,
    pub path: String,
    pub state: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    pub id: u64,
    /// `map` or `objects`.
    pub kind: &'static str,
    /// Node id of the leader; 0 when there is none.
    pub leader: u64,
    pub term: u64,
    /// Node ids.
    pub voters: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct ChunkCounts {
    pub total: u64,
    /// Fewer copies than the policy asks for.
    pub degraded: u64,
    /// One good copy left although the policy asks for more.
    pub last_copy: u64,
    pub corrupt: u64,
    pub lost: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct RepairStatus {
    pub queued_bytes: u64,
    pub eta_s: Option<u64>,
    /// Copies to be made of what has one copy left.
    pub last_copies: u64,
}

/// What is wrong, the worst first in the verdict.
pub(crate) struct Findings {
    verdict: Verdict,
    reasons: Vec<String>,
    doing: Vec<String>,
    todo: Vec<String>,
}

impl Default for Findings {
    fn default() -> Findings {
        Findings { verdict: Verdict::Safe, reasons: Vec::new(), doing: Vec::new(), todo: Vec::new() }
    }
}

impl Findings {
    fn add(&mut self, verdict: Verdict, reason: String) {
        self.verdict = self.verdict.max(verdict);
        if self.reasons.len() < REASONS_MAX && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    fn does(&mut self, what: String) {
        if self.doing.len() < REASONS_MAX && !self.doing.contains(&what) {
            self.doing.push(what);
        }
    }

    fn asks_for(&mut self, what: String) {
        if self.todo.len() < REASONS_MAX && !self.todo.contains(&what) {
            self.todo.push(what);
        }
    }
}

/// A state of a node as users see it.
pub fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Up => "up",
        NodeState::Down => "down",
        NodeState::Lost => "lost",
        NodeState::Draining => "draining",
        NodeState::Removed => "removed",
        NodeState::Joining => "joining",
    }
}

/// What this node sees without asking anybody: what others would say of themselves is missing.
pub fn of_this_node(service: &Service) -> Status {
    let map = service.map.borrow().clone();
    whole::combine(&map, service.node, &[(service.node, Some(local::collect(service)))])
}

/// For another node, or for oneself.
pub fn local(service: &Service) -> LocalStatus {
    local::collect(service)
}

/// Asks all nodes of the cluster.
pub async fn of_the_cluster(service: &Service, client: &client::Client) -> Status {
    let map = service.map.borrow().clone();
    let nodes: Vec<NodeId> = map.nodes.iter().map(|row| NodeId(row.id)).filter(|id| *id != service.node).collect();
    let ask = nodes.iter().map(|node| ask(service, client, *node));
    let mut answers = vec![(service.node, Some(local::collect(service)))];
    answers.extend(nodes.iter().copied().zip(join_all(ask).await));
    whole::combine(&map, service.node, &answers)
}

/// The timeline of the whole cluster, oldest first; of the nodes that answer.
pub async fn events_of_the_cluster(service: &Service, client: &client::Client) -> Vec<Event> {
    let map = service.map.borrow().clone();
    let others = map.nodes.iter().map(|row| NodeId(row.id)).filter(|id| *id != service.node);
    let asks = others.map(|node| told(service, client, node, Ask::GetEvents(GetEvents {})));
    let mut lists = vec![service.events.all()];
    for answer in join_all(asks).await {
        if let Some(Told::Events(list)) = answer {
            lists.push(<Events as prost::Message>::decode(list.events).unwrap_or_default().events);
        }
    }
    events::merge(lists)
}

async fn ask(service: &Service, client: &client::Client, node: NodeId) -> Option<LocalStatus> {
    match told(service, client, node, Ask::GetStatus(GetStatus {})).await? {
        Told::Status(status) => <LocalStatus as prost::Message>::decode(status.status).ok(),
        _ => None,
    }
}

async fn told(service: &Service, client: &client::Client, node: NodeId, ask: Ask) -> Option<Told> {
    let request = client.request(ask);
    let deadline = service.env.now() + ANSWER_MAX;
    let call = service.env.net.call(node, Channel::Control, wire::frame(&request, Vec::new()), deadline);
    wire::head::<Answer>(&call.await.ok()?).ok()?.told
}
