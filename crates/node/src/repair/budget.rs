//! How much repair does at once: bytes under way to each disk, and which groups are in hand.
//!
//! A disk is pulled to by several groups at a time; what bounds them is one budget a disk, in bytes, so that few large
//! chunks or many small ones are under way. While a disk serves users a pull weighs sixteen times as much and rests three times
//! as long as it took: the busier the machine, the longer. A last copy does neither, and has a budget of its own, so that it
//! never stands behind others.

use base::Env;
use base::env::MonoTime;
use base::ids::DiskId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Key, Urgency};
use crate::disks::Disks;

/// What a pull weighs at least, so that small ones are bounded as well: 1024 of them for a disk.
const UNIT_BYTES: u32 = 64 << 10;
/// Memory of the pulls to one disk; as much again for last copies.
const DISK_BYTES_MAX: u32 = 64 << 20;
const DISK_UNITS: u32 = DISK_BYTES_MAX / UNIT_BYTES;
/// How much more a pull weighs while its disk serves users: one of the largest chunks is then under way.
const YIELD_WEIGHT: u32 = 16;
/// How many times as long as it took a pull rests while its disk serves users. With one pull at a time and this rest the
/// users' p99 stays below twice what it is without repair (`evidence/23-rebuild-speed.sh`).
const YIELD_RESTS: u32 = 3;
/// How long after an operation of a user a disk counts as serving users.
const BUSY_FOR: Duration = Duration::from_millis(500);
/// The longest rest.
const YIELD_MAX: Duration = Duration::from_secs(1);
/// Groups whose inventories are walked at once, for each disk of the node, and in all.
const GROUPS_PER_DISK: usize = 4;
const GROUPS_MAX: usize = 64;

const _: () = assert!(YIELD_WEIGHT * (base::CHUNK_SIZE_MAX as u32).div_ceil(UNIT_BYTES) <= DISK_UNITS);

pub struct Budget {
    lanes: BTreeMap<DiskId, Lane>,
    in_hand: Mutex<BTreeSet<Key>>,
}

struct Lane {
    last_copies: Semaphore,
    others: Semaphore,
}

impl Budget {
    pub fn new(disks: &Disks) -> Budget {
        let lane =
            || Lane { last_copies: Semaphore::new(DISK_UNITS as usize), others: Semaphore::new(DISK_UNITS as usize) };
        Budget { lanes: disks.all.iter().map(|disk| (disk.id, lane())).collect(), in_hand: Mutex::default() }
    }

    /// Groups that are worked on at once.
    pub fn groups_at_once(&self) -> usize {
        (self.lanes.len() * GROUPS_PER_DISK).clamp(1, GROUPS_MAX)
    }

    /// Waits until `len` bytes may be pulled to a disk. `served`: when a user's operation on it began last.
    pub async fn admit(
        &self,
        env: &Env,
        disk: DiskId,
        served: impl Fn() -> Option<MonoTime>,
        urgency: Urgency,
        len: u32,
    ) -> Option<Admitted<'_>> {
        let lane = self.lanes.get(&disk)?;
        let units = len.div_ceil(UNIT_BYTES).max(1);
        if urgency == Urgency::LastCopy {
            let permit = lane.last_copies.acquire_many(units.min(DISK_UNITS)).await.ok()?;
            return Some(Admitted { _permit: permit, since: env.now(), yields: false });
        }
        let is_busy = || served().is_some_and(|at| env.now().since(at) < BUSY_FOR);
        loop {
            let yields = is_busy();
            let units = if yields { units * YIELD_WEIGHT } else { units };
            let permit = lane.others.acquire_many(units.min(DISK_UNITS));
            tokio::pin!(permit);
            // Who gives up its place goes to the end: only when users have come or gone.
            while is_busy() == yields {
                tokio::select! {
                    biased;
                    permit = &mut permit => return Some(Admitted { _permit: permit.ok()?, since: env.now(), yields }),
                    () = env.sleep(BUSY_FOR) => {}
                }
            }
        }
    }

    /// Takes a group in hand: nobody else brings or removes its chunks meanwhile. `None` while somebody does.
    pub fn take(&self, key: Key) -> Option<InHand<'_>> {
        self.in_hand().insert(key).then(|| InHand { budget: self, key })
    }

    fn in_hand(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pull that may begin. It has ended when it is dropped.
pub struct Admitted<'a> {
    _permit: SemaphorePermit<'a>,
    since: MonoTime,
    /// Users are served by this disk.
    pub yields: bool,
}

impl Admitted<'_> {
    /// After each step of the pull: users go first, unless one more failure would lose something.
    pub async fn rest(&mut self, env: &Env) {
        if self.yields {
            env.sleep((env.now().since(self.since) * YIELD_RESTS).min(YIELD_MAX)).await;
            self.since = env.now();
        }
    }
}

pub struct InHand<'a> {
    budget: &'a Budget,
    key: Key,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.budget.in_hand().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::NodeDisk;
    use base::ids::{NodeId, PoolId};
    use base::sim::Sim;
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    const DISK: DiskId = DiskId(5);
    const LARGE: u32 = 4 << 20;

    fn budget() -> (Sim, Env, Budget) {
        let disks = Disks::new(vec![NodeDisk::new("d".into(), DISK, Err("none is needed".into()))]);
        let sim = Sim::new(1);
        let env = sim.node(NodeId(1)).env();
        (sim, env, Budget::new(&disks))
    }

    /// Pulls that are admitted before one has to wait.
    fn admitted<'a>(
        env: &Env,
        budget: &'a Budget,
        served: Option<MonoTime>,
        urgency: Urgency,
        len: u32,
    ) -> Vec<Admitted<'a>> {
        let mut all = Vec::new();
        while let Some(Some(one)) = budget.admit(env, DISK, || served, urgency, len).now_or_never() {
            all.push(one);
        }
        all
    }

    #[test]
    fn a_disk_is_pulled_to_by_few_large_or_many_small_and_by_fewer_while_users_are_served() {
        let (sim, env, budget) = budget();
        assert_eq!(admitted(&env, &budget, None, Urgency::Degraded, LARGE).len(), 16);
        assert_eq!(admitted(&env, &budget, None, Urgency::Whole, 3000).len(), 1024);
        let served = Some(env.now());
        let yielding = admitted(&env, &budget, served, Urgency::Degraded, LARGE);
        assert_eq!(yielding.len(), 1, "somebody was served");
        assert!(yielding.iter().all(|one| one.yields));
        let last = admitted(&env, &budget, served, Urgency::LastCopy, LARGE);
        assert_eq!(last.len(), 16, "a last copy stands behind nobody");
        assert!(last.iter().all(|one| !one.yields));
        drop((yielding, last));
        sim.block_on(env.sleep(BUSY_FOR));
        assert_eq!(admitted(&env, &budget, served, Urgency::Degraded, LARGE).len(), 16, "that was long ago");
    }

    #[test]
    fn pulls_that_wait_behind_users_go_on_together_when_those_have_left() {
        let (sim, env, budget) = budget();
        let served = Some(env.now());
        let first = admitted(&env, &budget, served, Urgency::Degraded, LARGE);
        let (env, budget) = (&env, &budget);
        let others = (0..16).map(|_| budget.admit(env, DISK, || served, Urgency::Degraded, LARGE));
        let others = sim.block_on(async move {
            let waiting = join_all(others);
            tokio::pin!(waiting);
            tokio::select! {
                biased;
                _ = &mut waiting => panic!("the first has all that there is"),
                () = env.sleep(BUSY_FOR * 3) => drop(first),
            }
            tokio::select! {
                biased;
                all = waiting => all,
                () = env.sleep(BUSY_FOR * 3) => panic!("they still wait for each other"),
            }
        });
        assert!(others.iter().all(|one| one.as_ref().is_some_and(|one| !one.yields)));
    }

    /// While users are served a large chunk needs all units at once: it keeps its place until it has them.
    #[test]
    fn a_large_chunk_is_not_passed_by_small_ones_for_ever() {
        let (sim, env, budget) = budget();
        let (env, budget) = (&env, &budget);
        let served = || Some(env.now());
        let small = |n: u64| async move {
            env.sleep(Duration::from_millis(n)).await;
            loop {
                let held = budget.admit(env, DISK, served, Urgency::Degraded, 3000).await;
                env.sleep(BUSY_FOR + Duration::from_millis(n)).await;
                drop(held);
            }
        };
        let large = async {
            env.sleep(Duration::from_secs(2)).await;
            let since = env.now();
            budget.admit(env, DISK, served, Urgency::Degraded, LARGE).await.expect("a lane");
            env.now().since(since)
        };
        let waited = sim.block_on(async move {
            tokio::select! {
                biased;
                waited = large => waited,
                _ = join_all((0..100).map(small)) => panic!("they never end"),
                () = env.sleep(Duration::from_secs(60)) => panic!("the large one was passed for a minute"),
            }
        });
        assert!(waited < 3 * BUSY_FOR, "{waited:?}");
    }

    #[test]
    fn a_group_is_in_one_hand() {
        let (_sim, _, budget) = budget();
        let key = (PoolId(1), 3);
        let taken = budget.take(key);
        assert!(taken.is_some() && budget.take(key).is_none() && budget.take((PoolId(1), 4)).is_some());
        drop(taken);
        assert!(budget.take(key).is_some());
    }
}
