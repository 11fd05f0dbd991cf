//! Who watches a cluster all the time: which sessions are closed, who leads, that no two lead in one term, and that a node
//! which is emptied goes when it is empty.

use base::ids::{GroupId, NodeId, Term};
use base::sim::SimHandle;
use meta::map::command::{ClusterMap, NodeState, PgRow};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::recorder::Recorder;

/// How often one looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// Watches until the run ends.
pub async fn watch(sim: SimHandle, cluster: Cluster, recorder: Recorder) {
    let mut claims: BTreeMap<(u64, GroupId, Term), NodeId> = BTreeMap::new();
    let mut states: BTreeMap<u32, NodeState> = BTreeMap::new();
    loop {
        if let Some(serving) = cluster.all_serving().first() {
            left_too_early(&serving.client.map().map, &mut states)
                .into_iter()
                .for_each(|node| recorder.violation(format!("node {node} was emptied, and left while groups name it")));
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
