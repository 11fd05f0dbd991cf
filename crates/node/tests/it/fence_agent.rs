//! The external fence agent (STONITH): whom it is asked about, and what follows from its answers.

use base::env::BoxFuture;
use base::ids::NodeId;
use meta::map::command::NodeState;
use node::{EventKind, FenceAgent, Healing, Target, Tuning};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cluster::{Cluster, state_of, tuning};
use crate::{bytes_of, get, put};

/// Answers as the test says; then not at all.
#[derive(Default)]
struct Agent {
    answers: Mutex<VecDeque<Result<String, String>>>,
    /// By whom, and whom to stop.
    asked: Mutex<Vec<(NodeId, Target)>>,
}

struct OfNode(NodeId, Arc<Agent>);

impl FenceAgent for OfNode {
    fn stop(&self, target: Target) -> BoxFuture<Result<String, String>> {
        self.1.asked.lock().expect("no test panics with it").push((self.0, target));
        let answer = self.1.answers.lock().expect("no test panics with it").pop_front();
        Box::pin(async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }
}

fn four(agent: &Arc<Agent>) -> Cluster {
    let agent = agent.clone();
    let with_agent = move |node| {
        let healing = Healing { lost_after: Duration::from_secs(5), ..tuning(node).healing };
        Tuning { healing, fence_agent: Some(Arc::new(OfNode(node, agent.clone()))), ..tuning(node) }
    };
    let mut cluster = Cluster::found_with(31, Box::new(with_agent));
    cluster.join();
    cluster.join();
    cluster.wait_for_voters(&[1, 2, 3]);
    cluster.join();
    cluster.wait_for_safety(NodeId(1));
    cluster
}

/// The leader of the map is cut off from both others, and lives. Its agent shoots nobody; the others' fails, hangs, and
/// succeeds at last. Only then is the node given up; what does not need it moves to a new node meanwhile. When it is
/// back it is what it was told to be: lost, then up again under a new generation, with nothing of its own in between.
#[test]
fn a_node_is_given_up_when_the_agent_has_stopped_it_and_the_smaller_side_shoots_nobody() {
    let agent = Arc::new(Agent::default());
    agent.answers.lock().unwrap().push_back(Err("no answer from the power switch".into()));
    let mut cluster = four(&agent);
    let alone = NodeId(cluster.nodes[&NodeId(1)].status().groups[0].leader as u32);
    let others: Vec<NodeId> = (1..=4).map(NodeId).filter(|node| *node != alone).collect();
    let client = cluster.client(others[0]);
    let bucket =
        cluster.on(others[0], async move { client.create_bucket("photos", "root").await.expect("it is free") });
    for other in others.iter().chain(&[NodeId(5)]) {
        cluster.sim.cut(alone, *other);
        cluster.sim.cut(*other, alone);
    }
    let cut = cluster.sim.now();
    cluster.sim.run_for(Duration::from_secs(20));
    let asked = || agent.asked.lock().unwrap().clone();
    assert_eq!(asked().len(), 1, "{:?}", asked());
    assert_eq!(state_of(&cluster, others[0], alone), NodeState::Down, "the agent failed");
    let status = cluster.nodes[&asked()[0].0].clone();
    let reasons = cluster.on(asked()[0].0, async move { status.cluster_status().await }).reasons;
    assert!(reasons.iter().any(|reason| reason.contains("power switch")), "{reasons:?}");
    // Writes go on meanwhile.
    let (client, photos) = (cluster.client(others[0]), bucket.clone());
    let stored = cluster.on(others[0], async move { put(&client, &photos, "later", bytes_of(5000, 3)).await });
    stored.expect("writes do not wait for the agent");
    // The second attempt hangs. A fifth node is given what the other three can do without the fourth.
    assert_eq!(cluster.join(), NodeId(5));
    cluster.wait("groups move to a new node", Duration::from_secs(60), |cluster| {
        let map = cluster.client(others[0]).map();
        let of_new = |disk: &bytes::Bytes| map.map.disks.iter().any(|row| row.node == 5 && row.id == *disk);
        map.map.pgs.iter().any(|row| !row.closed && row.members.iter().any(of_new))
    });
    assert_eq!(state_of(&cluster, others[0], alone), NodeState::Down, "it is still held");
    cluster.sim.run_for(Duration::from_secs(105).saturating_sub(cluster.sim.now().since(cut)));
    assert_eq!(asked().len(), 2, "{:?}", asked());
    assert_eq!(state_of(&cluster, others[0], alone), NodeState::Down, "the agent hung");
    agent.answers.lock().unwrap().push_back(Ok("it is off".into()));
    cluster.wait("it is given up", Duration::from_secs(60), |cluster| {
        state_of(cluster, others[0], alone) == NodeState::Lost
    });
    assert!(asked().iter().all(|(by, target)| *by != alone && target.node == alone), "{:?}", asked());
    let node = cluster.nodes[&others[0]].clone();
    let events = cluster.on(others[0], async move { node.cluster_events().await });
    assert_eq!(events.iter().filter(|event| event.kind() == EventKind::FenceCommand).count(), 3);
    // A late write of the one that was shot and lives: refused, or carried out under a generation that counts.
    let generation = cluster.client(alone).session().generation;
    cluster.sim.heal();
    let (client, photos) = (cluster.client(alone), bucket.clone());
    let late = cluster.on(alone, async move { put(&client, &photos, "late", bytes_of(5000, 4)).await });
    assert!(late.is_err() || cluster.client(alone).session().generation > generation, "a fenced session wrote");
    cluster.wait_for_safety(alone);
    let client = cluster.client(alone);
    let found = cluster.on(alone, async move { get(&client, &bucket, "later").await });
    assert!(found.expect("it is there") == bytes_of(5000, 3));
}
