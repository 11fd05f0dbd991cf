//! All that is on old nodes goes to new ones, at the moment when one of the old ones comes back: it still holds what was
//! deleted while it was away, the others have the tombstones, and none of them is a member any more when the new members
//! have united what there is. A tombstone that does not count then leaves the chunk on all new members for good: its session
//! was swept long before, when the chunk was named.

use base::env::RandomExt;

use crate::absence::{SWEPT, VOTED_DOWN};
use crate::nemesis::{Nemesis, Refused};
use crate::stories::all;
use crate::trouble::Trouble;

impl Nemesis {
    pub async fn hand_over_deleted(&self) -> Result<(), Refused> {
        self.until_set_up().await;
        self.await_safe("before the story").await?;
        let old = self.cluster.nodes();
        let absent = self.draw_node();
        let Some(serving) = self.serving_on(absent) else { return Ok(()) };
        self.verifier.add_versions(&serving).await;
        self.recorder.story("a node comes back when all is handed over");
        self.recorder.note(|| format!("NEMESIS node {absent} is started anew, so that its session ends"));
        self.restart(absent).await?;
        self.await_safe("after the node was started anew").await?;

        self.recorder.note(|| format!("NEMESIS node {absent} is away; what it holds is deleted, and new nodes join"));
        self.ration.strike(absent, self.plan.nodes);
        self.stop(absent, [Trouble::PowerCut, Trouble::ShutDown][self.sim.below(2) as usize]).await;
        self.sim.sleep(VOTED_DOWN).await;
        if let Some(other) = self.other_than(absent) {
            self.verifier.remove_versions(&other).await;
        }
        self.recorder.fault("nodes are added");
        for _ in 0..=old.len() {
            self.join().await?;
        }
        // The new nodes too have swept the session by now, and found nothing of it.
        self.sim.sleep(SWEPT).await;
        self.recorder.note(|| "NEMESIS all old nodes are to be emptied, and to go".into());
        if let Some(through) = self.other_than(absent) {
            for node in &old {
                self.cluster.set_leaving(*node);
                // What is refused now is asked for again below.
                let _ = self.cluster.drain(*node, &through).await;
            }
        }
        self.recorder.note(|| format!("NEMESIS node {absent} comes back"));
        self.start(absent).await?;
        self.ration.mend(absent);
        all(old.iter().map(|node| self.drain(*node))).await?;
        self.await_safe("after all was handed over").await
    }
}
