//! A cluster goes over to the next version, node after node, under load; some nodes go back for a while. As long as one
//! of them is of the version before, nobody goes on to the next feature level. Then all do, and who is still of the
//! version before does not start.

use base::env::RandomExt;
use base::ids::NodeId;
use meta::group::FEATURE_LEVEL;
use std::time::Duration;

use crate::cluster::{SHARD, StartFailure};
use crate::nemesis::{Nemesis, Refused};
use crate::trouble::Trouble;

/// What the version before knows.
pub const LEVEL_BEFORE: u32 = FEATURE_LEVEL - 1;

/// Nodes that go back to the version before, in one story.
const RETURNS_MAX: u32 = 2;

/// Within this, everybody is at the new level.
const RAISED_MAX: Duration = Duration::from_secs(30);
const RAISED_CHECK: Duration = Duration::from_millis(200);

impl Nemesis {
    pub async fn upgrade(&self) -> Result<(), Refused> {
        self.until_set_up().await;
        self.await_safe("before the upgrade").await?;
        let mut old = self.cluster.nodes();
        let mut returns = 0;
        while !old.is_empty() {
            self.expect_old_level();
            let node = old.swap_remove(self.sim.below(old.len() as u64) as usize);
            self.restart_as(node, FEATURE_LEVEL).await?;
            if !old.is_empty() && returns < RETURNS_MAX && self.sim.below(3) == 0 {
                returns += 1;
                self.restart_as(node, LEVEL_BEFORE).await?;
                old.push(node);
            }
        }
        self.await_new_level().await?;
        self.await_safe("after the upgrade").await?;
        self.refuse_old().await
    }

    /// The node ends, in one way or another, and goes on as another version.
    async fn restart_as(&self, node: NodeId, level: u32) -> Result<(), Refused> {
        self.recorder.fault("a node is started as another version");
        self.recorder.note(|| format!("NEMESIS node {node} goes on as a version of feature level {level}"));
        self.ration.strike(node, self.plan.nodes);
        let how = [Trouble::ShutDown, Trouble::Kill, Trouble::PowerCut][self.sim.below(3) as usize];
        self.stop(node, how).await;
        self.cluster.set_feature_level(node, level);
        self.start(node).await?;
        self.ration.mend(node);
        self.sim.sleep(Duration::from_millis(500 + self.sim.below(2500))).await;
        Ok(())
    }

    /// A node of the version before is among them: all that any node knows is at its level.
    fn expect_old_level(&self) {
        for (node, map, shard) in self.cluster.feature_levels(SHARD) {
            if map > LEVEL_BEFORE || shard > LEVEL_BEFORE {
                self.recorder.violation(format!(
                    "node {node} is at feature level {map} (map) and {shard} (shard) beside a node of level {LEVEL_BEFORE}"
                ));
            }
        }
    }

    async fn await_new_level(&self) -> Result<(), Refused> {
        let began = self.sim.now();
        loop {
            let levels = self.cluster.feature_levels(SHARD);
            if levels.iter().all(|(_, map, shard)| (*map, *shard) == (FEATURE_LEVEL, FEATURE_LEVEL)) {
                self.recorder.note(|| {
                    format!("all are at feature level {FEATURE_LEVEL} after {:?}", self.sim.now().since(began))
                });
                return Ok(());
            }
            if self.sim.now().since(began) > RAISED_MAX {
                self.recorder.violation(format!("not all have gone on to feature level {FEATURE_LEVEL}: {levels:?}"));
                return Err(Refused);
            }
            self.sim.sleep(RAISED_CHECK).await;
        }
    }

    /// One that comes back as the version before says so and does nothing.
    async fn refuse_old(&self) -> Result<(), Refused> {
        let node = self.draw_node();
        self.recorder.note(|| format!("NEMESIS node {node} comes back as the version before"));
        self.ration.strike(node, self.plan.nodes);
        self.stop(node, Trouble::ShutDown).await;
        self.cluster.set_feature_level(node, LEVEL_BEFORE);
        match self.cluster.start(node).await {
            Err(StartFailure::Refused(why)) if why.contains("start a newer henge") => {}
            outcome => {
                let why = format!("node {node} started as a version that is too old, or does not say so: {outcome:?}");
                self.recorder.violation(why);
            }
        }
        if self.sim.is_running(node) {
            self.cluster.kill(node).await;
        }
        self.cluster.set_feature_level(node, FEATURE_LEVEL);
        self.start(node).await?;
        self.ration.mend(node);
        Ok(())
    }
}
