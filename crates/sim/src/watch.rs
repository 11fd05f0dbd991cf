//! Who watches a cluster all the time: which sessions are closed, who leads, and that no two lead in one term.

use base::ids::{GroupId, NodeId, Term};
use base::sim::SimHandle;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::recorder::Recorder;

/// How often one looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// Watches until the run ends.
pub async fn watch(sim: SimHandle, cluster: Cluster, recorder: Recorder) {
    let mut claims: BTreeMap<(u64, GroupId, Term), NodeId> = BTreeMap::new();
    loop {
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
