//! Waiting until a cluster says that everything is safe; and the changes of its membership that lead there.

use base::ids::NodeId;
use base::sim::NetModel;
use node::Verdict;
use std::time::Duration;

use crate::cluster::Serving;
use crate::nemesis::{Nemesis, Refused};

/// Virtual time within which a cluster that nothing stands in the way of must be safe.
const SAFE_MAX: Duration = Duration::from_secs(180);
/// How often one looks whether it is.
const SAFE_CHECK: Duration = Duration::from_millis(500);
/// Tries of a change of the membership.
const TRIES_MAX: u32 = 20;

impl Nemesis {
    /// A node whose metadata was out of reach or bad is whole again before anybody else is struck: its replicas do not vote
    /// until they have been made anew.
    pub async fn spare_the_wounded(&self) -> Result<(), Refused> {
        match self.ration.is_anybody_wounded() {
            true => self.await_safe("before anybody else is struck").await,
            false => Ok(()),
        }
    }

    /// Before something is destroyed, everything has all its copies; and nothing else was damaged before.
    pub async fn draw_doomed(&self) -> Result<NodeId, Refused> {
        self.await_safe("before something is destroyed").await?;
        Ok(self.ration.tainted().unwrap_or_else(|| self.draw_node()))
    }

    /// A node that does not run is given up, once the cluster agrees.
    pub async fn remove(&self, gone: NodeId) -> Result<(), Refused> {
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            let through = self.any_serving_but(gone).await;
            match self.cluster.remove(gone, &through).await {
                Ok(()) => return Ok(()),
                Err(why) => last = why,
            }
            self.sim.sleep(Duration::from_secs(1)).await;
        }
        self.recorder.violation(format!("node {gone} cannot be removed: {last}"));
        Err(Refused)
    }

    async fn any_serving_but(&self, not: NodeId) -> Serving {
        loop {
            let serving = self.verifier.serving().await;
            if serving.node != not {
                return serving;
            }
            self.sim.sleep(SAFE_CHECK).await;
        }
    }

    /// A new node joins and starts.
    pub async fn join(&self) -> Result<(), Refused> {
        let node = self.admit().await?;
        self.start(node).await
    }

    /// A new node belongs to the cluster, and does not run yet.
    pub async fn admit(&self) -> Result<NodeId, Refused> {
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            let through = self.verifier.serving().await;
            match self.cluster.join(&through).await {
                Ok(node) => {
                    self.recorder.note(|| format!("node {node} joins"));
                    self.recorder.count("nodes_joined", 1);
                    self.unsettle_clocks(node);
                    return Ok(node);
                }
                Err(why) => last = why,
            }
            self.sim.sleep(Duration::from_secs(1)).await;
        }
        self.recorder.violation(format!("no node can join: {last}"));
        Err(Refused)
    }

    /// A node is emptied and goes; the cluster decides when.
    pub async fn drain(&self, node: NodeId) -> Result<(), Refused> {
        self.recorder.fault("a node is drained");
        self.recorder.note(|| format!("node {node} is to be emptied, and to go"));
        self.cluster.set_leaving(node);
        let began = self.sim.now();
        loop {
            let through = self.any_serving_but(node).await;
            match self.cluster.drain(node, &through).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(why) => self.recorder.note(|| format!("node {node} does not go yet: {why}")),
            }
            if self.sim.now().since(began) > SAFE_MAX {
                self.recorder.violation(format!("node {node} was to be emptied and is still there after {SAFE_MAX:?}"));
                return Err(Refused);
            }
            self.sim.sleep(SAFE_CHECK).await;
        }
        self.recorder.note(|| format!("node {node} has gone, after {:?}", self.sim.now().since(began)));
        self.cluster.dismiss(node).await;
        Ok(())
    }

    /// A node that stays holds no data from now on, or takes some again.
    pub async fn set_empty(&self, node: NodeId, is_empty: bool) -> Result<(), Refused> {
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            let through = self.verifier.serving().await;
            match self.cluster.set_empty(node, is_empty, &through).await {
                Ok(()) => return Ok(()),
                Err(why) => last = why,
            }
            self.sim.sleep(Duration::from_secs(1)).await;
        }
        self.recorder.violation(format!("node {node} cannot be told to be empty or not: {last}"));
        Err(Refused)
    }

    /// Waits until every node runs, reaches the others, and says that everything is safe.
    pub async fn await_safe(&self, when: &str) -> Result<(), Refused> {
        let began = self.sim.now();
        loop {
            let Some(why) = self.why_unsafe().await else {
                self.ration.heal();
                self.recorder.note(|| format!("everything is safe {when}, after {:?}", self.sim.now().since(began)));
                return Ok(());
            };
            if self.sim.now().since(began) > SAFE_MAX / 2 {
                // What is lost in silence again and again, nobody can wait for.
                self.sim.set_net_model(NetModel::default());
            }
            if self.sim.now().since(began) > SAFE_MAX {
                self.recorder.violation(format!("never safe {when}: {why}"));
                return Err(Refused);
            }
            self.sim.sleep(SAFE_CHECK).await;
        }
    }

    /// What the first node says that does not find everything safe.
    async fn why_unsafe(&self) -> Option<String> {
        for node in self.cluster.nodes() {
            let why = self.why_unsafe_to(node).await;
            if why.is_some() {
                return why;
            }
        }
        None
    }

    async fn why_unsafe_to(&self, node: NodeId) -> Option<String> {
        let Some(status) = self.cluster.cluster_status(node).await else {
            return Some(format!("node {node} does not serve"));
        };
        let is_safe = status.verdict == Verdict::Safe;
        (!is_safe).then(|| {
            let nodes: Vec<String> =
                status.nodes.iter().map(|node| format!("{}.{} {}", node.id, node.generation, node.state)).collect();
            let groups: Vec<String> = status
                .groups
                .iter()
                .map(|group| format!("{}: node {} leads {:?}", group.id, group.leader, group.voters))
                .collect();
            format!(
                "node {node} says {:?}: {}\n      (map {}, nodes [{}], groups [{}])",
                status.verdict,
                status.reasons.join("; "),
                status.epoch,
                nodes.join(", "),
                groups.join(", ")
            )
        })
    }
}
