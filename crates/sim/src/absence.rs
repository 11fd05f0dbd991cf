//! A node is away while what it holds is deleted, and for so long that the others have rewritten their disks when it comes
//! back. What they may forget until then, and what they may not, is the rule for tombstones: without one, what the absent
//! node still holds is taken for missing on all others. And nobody sweeps it: its session was swept long before, when the
//! chunk was named.

use base::env::RandomExt;
use base::ids::NodeId;
use futures_util::future::join_all;
use std::time::Duration;

use crate::cluster::Serving;
use crate::history::Condition;
use crate::nemesis::{Nemesis, Refused};
use crate::trouble::Trouble;
use crate::worker::Worker;

/// The buckets of every plan: what is written over and over, and what stays until it is deleted.
const PLAIN: usize = 0;
const VERSIONS: usize = 1;
/// What the absent node still holds: small chunks, in the journals.
const KEPT_BYTES_MAX: u64 = 12_000;
/// Every node has swept the sessions that ended before: several times the pause between sweeps.
pub const SWEPT: Duration = Duration::from_secs(12);
/// The others go on without the absent node: it is down in the map.
pub const VOTED_DOWN: Duration = Duration::from_secs(3);
/// What each disk takes in meanwhile, in chunks that go into its journals: enough to fill two of them, so that those with the
/// deleted chunks and with their tombstones are rewritten.
const WEAR_BYTES_PER_DISK: u64 = 14 << 20;
const WEAR_CHUNK_BYTES: u64 = 192 << 10;
/// Emptied journals have been let go of.
const COMPACTED: Duration = Duration::from_secs(5);

impl Nemesis {
    pub async fn outstay_tombstones(&self) -> Result<(), Refused> {
        self.until_set_up().await;
        self.await_safe("before the story").await?;
        let absent = self.draw_node();
        let Some(serving) = self.serving_on(absent) else { return Ok(()) };
        self.verifier.add_versions(&serving).await;
        self.recorder.story("a node is away for longer than its peers keep journals");
        self.recorder.note(|| format!("NEMESIS node {absent} is started anew, so that its session ends and is swept"));
        self.restart(absent).await?;
        self.await_safe("after the node was started anew").await?;
        self.sim.sleep(SWEPT).await;

        self.recorder.note(|| format!("NEMESIS node {absent} is away; what it holds is deleted, and much is written"));
        self.ration.strike(absent, self.plan.nodes);
        self.stop(absent, [Trouble::PowerCut, Trouble::ShutDown][self.sim.below(2) as usize]).await;
        self.sim.sleep(VOTED_DOWN).await;
        if let Some(other) = self.other_than(absent) {
            self.verifier.remove_versions(&other).await;
            self.verifier.wear(&other, WEAR_BYTES_PER_DISK * self.plan.disks as u64).await;
            self.sim.sleep(COMPACTED).await;
        }
        self.recorder.note(|| format!("NEMESIS node {absent} comes back"));
        self.start(absent).await?;
        self.ration.mend(absent);
        Ok(())
    }

    /// A new life of a node, without anything lost.
    pub async fn restart(&self, node: NodeId) -> Result<(), Refused> {
        self.ration.strike(node, self.plan.nodes);
        self.stop(node, [Trouble::ShutDown, Trouble::Kill][self.sim.below(2) as usize]).await;
        self.start(node).await?;
        self.ration.mend(node);
        Ok(())
    }

    pub fn other_than(&self, node: NodeId) -> Option<Serving> {
        let mut others = self.cluster.all_serving();
        others.retain(|serving| serving.node != node);
        (!others.is_empty()).then(|| others.swap_remove(self.sim.below(others.len() as u64) as usize))
    }
}

impl Worker {
    /// One more version of every key, each in a chunk.
    pub async fn add_versions(&self, serving: &Serving) {
        let Some(info) = self.bucket(serving, VERSIONS).await else { return };
        let puts = self.plan.keys.iter().map(|key| {
            let (key, info) = (self.key(VERSIONS, key), info.clone());
            async move {
                let len = 2000 + self.sim.below(KEPT_BYTES_MAX - 2000);
                self.put_len(serving, &info, &key, Condition::Always, len).await
            }
        });
        join_all(puts).await;
    }

    /// Removes every version that was ever heard of.
    pub async fn remove_versions(&self, serving: &Serving) {
        let Some(info) = self.bucket(serving, VERSIONS).await else { return };
        let removals = self.plan.keys.iter().map(|key| {
            let (key, info) = (self.key(VERSIONS, key), info.clone());
            async move {
                for (value, version) in self.recorder.versions_of(&key) {
                    self.delete_this_version(serving, &info, &key, (value, version)).await;
                }
            }
        });
        join_all(removals).await;
    }

    /// Writes so much into keys that are overwritten again and again.
    async fn wear(&self, serving: &Serving, bytes: u64) {
        let Some(info) = self.bucket(serving, PLAIN).await else { return };
        let rounds = bytes.div_ceil(WEAR_CHUNK_BYTES * self.plan.keys.len() as u64);
        for _ in 0..rounds {
            let puts = self.plan.keys.iter().map(|key| {
                let (key, info) = (self.key(PLAIN, key), info.clone());
                async move { self.put_len(serving, &info, &key, Condition::Always, WEAR_CHUNK_BYTES).await }
            });
            join_all(puts).await;
        }
    }
}
