//! Who watches a cluster all the time: which sessions are closed, who leads, that no two lead in one term, and that a node
//! which is emptied goes when it is empty.

use base::env::MonoTime;
use base::ids::{Generation, GroupId, NodeId, Term};
use base::sim::SimHandle;
use meta::map::command::{ClusterMap, NodeState, PgRow};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::recorder::Recorder;

/// How often one looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// Three deadlines of a tenth of a second each are missed before anybody is taken to be silent, and who says itself that it is
/// unfit is borne for a fifth of a second; less by how closely one looks.
const SILENCE_MIN: Duration = Duration::from_millis(150);
/// For so long after a node was out of service, it may be voted out for the same again.
const TROUBLE_PASSES: Duration = Duration::from_secs(1);

/// Watches until the run ends.
pub async fn watch(sim: SimHandle, cluster: Cluster, recorder: Recorder) {
    let mut claims: BTreeMap<(u64, GroupId, Term), NodeId> = BTreeMap::new();
    let mut states: BTreeMap<u32, NodeState> = BTreeMap::new();
    let mut lives = Lives::default();
    loop {
        for what in lives.look(&sim, &cluster) {
            recorder.violation(what);
        }
        if let Some(serving) = cluster.all_serving().first() {
            left_too_early(&serving.client.map().map, &mut states)
                .into_iter()
                .for_each(|node| recorder.violation(format!("node {node} was emptied, and left while groups name it")));
            crate::domains::on_one_node(&serving.client.map().map)
                .into_iter()
                .for_each(|what| recorder.violation(what));
        }
        cluster.note_fences();
        // A cluster that was recovered begins anew where its survivor was, and may use terms again that only others knew.
        let life = cluster.recoveries();
        for (group, term, node) in cluster.claims() {
            let known = claims.get(&(life, group, term)).copied();
            match known {
                None => {
                    claims.insert((life, group, term), node);
                    recorder.count("leaders_elected", 1);
                    let what = if group.0 == 0 { "the cluster map" } else { "the objects" };
                    recorder.note(|| format!("node {node} leads group {group} ({what}), term {term}"));
                }
                Some(first) if first != node => recorder.violation(format!(
                    "nodes {first} and {node} both lead group {group} in term {term}: there is one leader a term"
                )),
                Some(_) => {}
            }
        }
        sim.sleep(INTERVAL).await;
    }
}

/// What the map has said of each node's present generation.
#[derive(Default)]
struct Lives {
    /// The newest version that was looked at, and after how many recoveries.
    newest: (u64, u64),
    nodes: BTreeMap<u32, Life>,
}

struct Life {
    generation: u32,
    state: NodeState,
    since: MonoTime,
    was_down: bool,
    /// Processes of the node before this one.
    starts: u64,
    /// When it, or the life before, was last seen out of service, or came back without having been started anew.
    out: Option<MonoTime>,
}

impl Lives {
    /// A node is fenced for what was seen of this life, and given up for a life that was fenced: what was decided from an
    /// older map must not befall its next life.
    fn look(&mut self, sim: &SimHandle, cluster: &Cluster) -> Vec<String> {
        let mut wrong = Vec::new();
        let Some(map) = cluster.newest_map() else { return wrong };
        let newest = (cluster.recoveries(), map.version);
        if newest.0 != self.newest.0 {
            self.nodes.clear();
        } else if newest <= self.newest {
            return wrong;
        }
        self.newest = newest;
        let now = sim.now();
        for row in &map.nodes {
            let before = self.nodes.get(&row.id).filter(|life| life.generation == row.generation);
            let was_down = row.state() == NodeState::Down || before.is_some_and(|life| life.was_down);
            let since = before.filter(|life| life.state == row.state()).map_or(now, |life| life.since);
            let starts = cluster.starts(NodeId(row.id));
            let last = self.nodes.get(&row.id);
            let was_out = last.and_then(|last| last.out);
            let comes_back = last.is_some_and(|last| last.generation != row.generation && last.starts == starts);
            let out = if row.state() == NodeState::Down || comes_back { Some(now) } else { was_out };
            // Links are not of one life: one that was cut may be known to be mended everywhere but at the leader.
            let is_same_trouble = was_out.is_some_and(|out| now.since(out) < TROUBLE_PASSES);
            if let Some(life) = before.filter(|life| life.state.serves() && row.state() == NodeState::Down) {
                let lives = cluster.generation(NodeId(row.id)) == Some(Generation(row.generation));
                let age = now.since(life.since);
                if lives && age < SILENCE_MIN && !is_same_trouble {
                    wrong.push(format!(
                        "node {} was fenced {age:?} after it came up, in less time than silence takes",
                        row.id
                    ));
                }
            }
            if row.state() == NodeState::Lost && before.is_some() && !was_down {
                wrong.push(format!("node {} was given up, and generation {} was never down", row.id, row.generation));
            }
            self.nodes
                .insert(row.id, Life { generation: row.generation, state: row.state(), since, was_down, starts, out });
        }
        wrong
    }
}

/// Nodes that were being emptied, and were removed while placement groups name their disks.
fn left_too_early(map: &ClusterMap, states: &mut BTreeMap<u32, NodeState>) -> Vec<u32> {
    let mut early = Vec::new();
    for row in &map.nodes {
        let before = states.insert(row.id, row.state());
        if before == Some(NodeState::Draining) && row.state() == NodeState::Removed {
            let disks: BTreeSet<&[u8]> =
                map.disks.iter().filter(|disk| disk.node == row.id).map(|disk| disk.id.as_ref()).collect();
            let members = |group: &PgRow| group.members.iter().any(|disk| disks.contains(disk.as_ref()));
            if map.pgs.iter().any(members) {
                early.push(row.id);
            }
        }
    }
    early
}
