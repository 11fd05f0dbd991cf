//! Every kind of trouble twice, one after the other and most of them short: so that in a campaign none strikes rarely.

use base::env::RandomExt;
use std::time::Duration;

use crate::disaster::{LAG_STEP, LAG_STEPS_FEW};
use crate::nemesis::{Nemesis, Refused};
use crate::trouble::{TROUBLES, Trouble};

/// What happens to one node and passes, and what does not pass by itself or happens to more than one.
pub const BLOWS: usize = TIMES * (TROUBLES.len() + OTHERS.len()) + 1;
const TIMES: usize = 2;

/// Between two troubles, in milliseconds.
const LULL_MILLIS: u64 = 150;

#[derive(Clone, Copy)]
enum Blow {
    Single(Trouble),
    AllPower,
    Flicker,
    EmptyDisk,
    Swap,
    NewNode,
    Spoil,
    RotMetadata,
    PartLeaders,
    RestartInTurn,
    WrongDisk,
    Rough,
    SlowDisk,
    SlowerLinks,
}

const OTHERS: [Blow; 13] = [
    Blow::AllPower,
    Blow::Flicker,
    Blow::EmptyDisk,
    Blow::Swap,
    Blow::NewNode,
    Blow::Spoil,
    Blow::RotMetadata,
    Blow::PartLeaders,
    Blow::RestartInTurn,
    Blow::WrongDisk,
    Blow::Rough,
    Blow::SlowDisk,
    Blow::SlowerLinks,
];

impl Nemesis {
    /// All of it, in an order that is drawn; at last the node whose copies may be bad, or any, is replaced.
    pub async fn storm(&self) -> Result<(), Refused> {
        let each: Vec<Blow> = TROUBLES.into_iter().map(Blow::Single).chain(OTHERS).collect();
        let mut blows = each.repeat(TIMES);
        let mut left = self.plan.crashes;
        while left > 0 && !blows.is_empty() {
            let blow = blows.swap_remove(self.sim.below(blows.len() as u64) as usize);
            self.sim.sleep(Duration::from_millis(self.sim.below(LULL_MILLIS))).await;
            self.bring(blow).await?;
            left -= 1;
        }
        if left > 0 || self.ration.tainted().is_some() { self.replace_node().await } else { Ok(()) }
    }

    async fn bring(&self, blow: Blow) -> Result<(), Refused> {
        match blow {
            Blow::Single(trouble) => self.strike_one(trouble).await,
            Blow::AllPower => self.cut_all_power().await,
            Blow::Flicker => self.flicker().await,
            Blow::EmptyDisk => self.replace_disk().await,
            Blow::Swap => self.swap_one().await,
            Blow::NewNode => self.replace_node().await,
            Blow::Spoil => self.spoil_chunks().await,
            Blow::RotMetadata => self.rot_metadata().await,
            Blow::PartLeaders => self.part_leaders_once_apart().await,
            Blow::RestartInTurn => self.restart_in_turn().await,
            Blow::WrongDisk => self.give_wrong_disk().await,
            Blow::Rough => self.roughen().await,
            Blow::SlowDisk => {
                self.slow_down_disk(self.draw_node()).await;
                self.set_slowness(1);
                Ok(())
            }
            Blow::SlowerLinks => {
                let late = self.draw_node();
                let pause = self.sim.sleep(LAG_STEP);
                self.lag_behind(&[late], None, LAG_STEPS_FEW, pause).await;
                Ok(())
            }
        }
    }

    /// A new node comes, and then one that was there is emptied and goes.
    async fn swap_one(&self) -> Result<(), Refused> {
        let victim = self.draw_doomed().await?;
        self.recorder.fault("nodes are added");
        self.join().await?;
        self.await_safe("after a node was added").await?;
        self.drain(victim).await?;
        if self.ration.tainted() == Some(victim) {
            self.ration.untaint();
        }
        self.await_safe("after a node was emptied").await
    }

    /// Leadership is spread over the nodes when all is quiet: then there are two to be parted.
    async fn part_leaders_once_apart(&self) -> Result<(), Refused> {
        const SPREAD_MAX: Duration = Duration::from_secs(10);
        let began = self.sim.now();
        let is_one = || {
            let leaders = self.cluster.leaders();
            let mut leaders = leaders.values();
            let first = leaders.next();
            leaders.all(|leader| Some(leader) == first)
        };
        while is_one() && self.sim.now().since(began) < SPREAD_MAX {
            self.sim.sleep(Duration::from_millis(100)).await;
        }
        self.part_leaders().await
    }
}
