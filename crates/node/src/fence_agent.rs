//! An external agent that makes sure that a node cannot act any more (STONITH), for hardware that is shared with others.
//!
//! It is asked before the cluster by itself gives a node up for `lost`, never before it votes one `down`: writes do not
//! wait for it. It adds to the generation check and never replaces it: whatever the agent says, the floor was raised when the
//! node was voted down. An agent that fails, hangs or is not sure keeps the node from being given up: it is asked again,
//! and an operator may decide (`henge node remove ID --lost`).
//!
//! Only a leader of group 0 whom a majority has just confirmed asks it, and only about a node that a majority has voted
//! down: of two sides that do not reach each other, the smaller one shoots nobody.

use base::Env;
use base::env::{BoxFuture, MonoTime};
use base::ids::{Generation, NodeId};
use meta::map::command::{ClusterMap, MapCommand, NodeState};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::events::EventKind;
use crate::group::GroupHandle;
use crate::service::Service;

/// How long the agent may take.
pub const SHOT_MAX: Duration = Duration::from_secs(60);
/// From a failure to the next attempt.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Who is to be stopped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub node: NodeId,
    /// HOST:PORT of its cluster port, as it announced.
    pub address: String,
    pub generation: Generation,
}

pub trait FenceAgent: Send + Sync {
    /// `Ok` only when the node is known to be stopped; what is answered is kept for people. Called again after a failure, and
    /// by new leaders: to stop what is stopped is no failure. Dropped when it takes longer than [`SHOT_MAX`].
    fn stop(&self, target: Target) -> BoxFuture<Result<String, String>>;
}

/// What became of the attempts, by node.
#[derive(Default)]
pub struct Shots {
    by_node: Mutex<BTreeMap<NodeId, (Generation, Shot)>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Shot {
    UnderWay,
    Stopped,
    Failed { at: MonoTime, why: String },
}

impl Shots {
    fn by_node(&self) -> MutexGuard<'_, BTreeMap<NodeId, (Generation, Shot)>> {
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out of `decided` the nodes that are to be given up and are not known to be stopped; answers those that the agent
    /// is to be asked about now.
    fn hold(&self, map: &ClusterMap, decided: &mut Vec<(MapCommand, String)>, now: MonoTime) -> Vec<Target> {
        let mut shots = self.by_node();
        shots.retain(|node, _| map.nodes.iter().any(|row| row.id == node.0 && row.state() == NodeState::Down));
        let mut due = Vec::new();
        decided.retain(|(command, _)| {
            let MapCommand::SetNodeState(change) = command else { return true };
            if change.state() != NodeState::Lost {
                return true;
            }
            let (node, generation) = (NodeId(change.id), Generation(change.generation));
            match shots.get(&node).filter(|(of, _)| *of == generation).map(|(_, shot)| shot) {
                Some(Shot::Stopped) => return true,
                Some(Shot::UnderWay) => return false,
                Some(Shot::Failed { at, .. }) if now.since(*at) < RETRY_AFTER => return false,
                Some(Shot::Failed { .. }) | None => {}
            }
            shots.insert(node, (generation, Shot::UnderWay));
            let row = map.nodes.iter().find(|row| row.id == node.0);
            due.push(Target { node, address: row.map(|row| row.address.clone()).unwrap_or_default(), generation });
            false
        });
        due
    }

    /// Nothing, when this node leads no more and somebody else's decision, or a later life of the node, took its place.
    fn ended(&self, target: &Target, shot: Option<Shot>) {
        let mut shots = self.by_node();
        if shots.get(&target.node).is_none_or(|(of, _)| *of != target.generation) {
            return;
        }
        match shot {
            Some(shot) => shots.insert(target.node, (target.generation, shot)),
            None => shots.remove(&target.node),
        };
    }

    /// Sentences for `status`: who is not given up, and why. What was tried may be of a time when this node led.
    pub fn findings(&self, map: &ClusterMap) -> Vec<String> {
        let is_down = |node: &NodeId, of: &Generation| {
            let mut rows = map.nodes.iter().filter(|row| row.id == node.0 && row.generation == of.0);
            rows.any(|row| row.state() == NodeState::Down)
        };
        let finding = |(node, (of, shot)): (&NodeId, &(Generation, Shot))| match shot {
            Shot::Failed { .. } if !is_down(node, of) => None,
            Shot::Failed { why, .. } => Some(format!(
                "node {node} is not given up, because the fence command failed ({why}): it is tried again; when you \
                 know that the node is off, `henge node remove {node} --lost`"
            )),
            Shot::UnderWay | Shot::Stopped => None,
        };
        self.by_node().iter().filter_map(finding).collect()
    }
}

/// What of `decided` may be proposed now. For the rest the agent is asked.
pub fn hold(
    env: &Env,
    service: &Arc<Service>,
    agent: &Arc<dyn FenceAgent>,
    group: &GroupHandle,
    mut decided: Vec<(MapCommand, String)>,
) -> Vec<(MapCommand, String)> {
    let map = service.map.borrow().clone();
    for target in service.control.shots.hold(&map, &mut decided, env.now()) {
        let (service, agent, group) = (service.clone(), agent.clone(), group.clone());
        env.spawn("fence agent", async move { ask(&service, &*agent, &group, target).await });
    }
    decided
}

async fn ask(service: &Service, agent: &dyn FenceAgent, group: &GroupHandle, target: Target) {
    let env = &service.env;
    // A leader that a majority has left does not know that yet.
    let is_confirmed = group.barrier().await.is_ok();
    let is_target = |map: &ClusterMap| {
        let is_down = |state| state == NodeState::Down;
        map.nodes
            .iter()
            .any(|row| row.id == target.node.0 && is_down(row.state()) && row.generation == target.generation.0)
    };
    if !is_confirmed || !is_target(&service.map.borrow()) {
        return service.control.shots.ended(&target, None);
    }
    let stopped = tokio::select! {
        biased;
        stopped = agent.stop(target.clone()) => stopped,
        () = env.sleep(SHOT_MAX) => Err(format!("it did not end within {} s", SHOT_MAX.as_secs())),
    };
    let node = target.node;
    let (shot, what) = match stopped {
        Ok(said) => (Shot::Stopped, format!("the fence command has stopped node {node}: {said}")),
        Err(why) => {
            let what = format!("the fence command failed, node {node} is not given up: {why}");
            (Shot::Failed { at: env.now(), why }, what)
        }
    };
    tracing::warn!("{what}");
    service.events.record(EventKind::FenceCommand, node, what);
    service.control.shots.ended(&target, Some(shot));
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::map::command::{NodeRow, SetNodeState};

    fn map(state: NodeState) -> ClusterMap {
        let row = NodeRow { id: 3, generation: 7, state: state as i32, address: "c:9002".into(), ..NodeRow::default() };
        ClusterMap { nodes: vec![row], ..ClusterMap::default() }
    }

    fn decided(state: NodeState) -> Vec<(MapCommand, String)> {
        let change = SetNodeState { id: 3, state: state as i32, generation: 7, ..SetNodeState::default() };
        vec![(MapCommand::SetNodeState(change), String::new())]
    }

    fn at(seconds: u64) -> MonoTime {
        MonoTime(seconds * 1_000_000_000)
    }

    #[test]
    fn a_node_is_given_up_only_when_the_agent_has_stopped_it() {
        let shots = Shots::default();
        let hold = |state, seconds| {
            let mut decided = decided(state);
            let due = shots.hold(&map(NodeState::Down), &mut decided, at(seconds));
            (decided.len(), due)
        };
        let target = Target { node: NodeId(3), address: "c:9002".into(), generation: Generation(7) };
        assert_eq!(hold(NodeState::Down, 0), (1, vec![]), "writes never wait for it");
        assert_eq!(hold(NodeState::Lost, 0), (0, vec![target.clone()]));
        assert_eq!(hold(NodeState::Lost, 1), (0, vec![]), "one attempt at a time");
        shots.ended(&target, Some(Shot::Failed { at: at(2), why: "no answer".into() }));
        assert!(shots.findings(&map(NodeState::Down))[0].contains("no answer"));
        assert_eq!(shots.findings(&map(NodeState::Lost)), Vec::<String>::new(), "another leader has given it up");
        assert_eq!(hold(NodeState::Lost, 3), (0, vec![]));
        assert_eq!(hold(NodeState::Lost, 40), (0, vec![target.clone()]), "it is tried again");
        shots.ended(&target, Some(Shot::Stopped));
        assert_eq!(hold(NodeState::Lost, 41), (1, vec![]));
        assert_eq!(shots.findings(&map(NodeState::Down)), Vec::<String>::new());
        let mut nothing = Vec::new();
        shots.hold(&map(NodeState::Up), &mut nothing, at(50));
        assert_eq!(
            hold(NodeState::Lost, 51),
            (0, vec![target]),
            "it was back meanwhile: that shot says nothing any more"
        );
    }

    #[test]
    fn a_shot_of_an_earlier_life_does_not_count() {
        let shots = Shots::default();
        let target = Target { node: NodeId(3), address: String::new(), generation: Generation(6) };
        shots.by_node().insert(NodeId(3), (Generation(6), Shot::Stopped));
        let hold = |seconds| {
            let mut decided = decided(NodeState::Lost);
            (shots.hold(&map(NodeState::Down), &mut decided, at(seconds)).len(), decided.len())
        };
        assert_eq!(hold(1), (1, 0));
        shots.ended(&target, Some(Shot::Stopped));
        assert_eq!(hold(2), (0, 0), "the attempt of now is still under way");
    }
}
