//! How much repair does at once: bytes under way to each disk, and which groups are in hand.
//!
//! A disk is pulled to by several groups at a time; what bounds them is one budget a disk, in bytes, so that few large
//! chunks or many small ones are under way. While a disk serves users a pull weighs four times as much and rests for as long
//! as it took; a last copy does neither, and has a budget of its own, so that it never stands behind others.

use base::Env;
use base::env::MonoTime;
use base::ids::DiskId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Key, Urgency};
use crate::disks::Disks;

/// What a pull weighs at least, so that small ones are bounded as well: 512 of them for a disk.
const UNIT_BYTES: u32 = 64 << 10;
/// Memory of the pulls to one disk; as much again for last copies.
const DISK_BYTES_MAX: u32 = 32 << 20;
const DISK_UNITS: u32 = DISK_BYTES_MAX / UNIT_BYTES;
/// How much more a pull weighs while its disk serves users: two of the largest chunks are then under way.
const YIELD_WEIGHT: u32 = 4;
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
    /// Operations of users when they were last counted, and when there was a new one.
    served: Mutex<(u64, Option<MonoTime>)>,
}

impl Budget {
    pub fn new(disks: &Disks) -> Budget {
        let lane = || Lane {
            last_copies: Semaphore::new(DISK_UNITS as usize),
            others: Semaphore::new(DISK_UNITS as usize),
            served: Mutex::default(),
        };
        Budget { lanes: disks.all.iter().map(|disk| (disk.id, lane())).collect(), in_hand: Mutex::default() }
    }

    /// Groups that are worked on at once.
    pub fn groups_at_once(&self) -> usize {
        (self.lanes.len() * GROUPS_PER_DISK).clamp(1, GROUPS_MAX)
    }

    /// Waits until `len` bytes may be pulled to a disk of which users have had `served` operations so far.
    pub async fn admit(
        &self,
        env: &Env,
        disk: DiskId,
        served: u64,
        urgency: Urgency,
        len: u32,
    ) -> Option<Admitted<'_>> {
        let lane = self.lanes.get(&disk)?;
        let units = len.div_ceil(UNIT_BYTES).max(1);
        if urgency == Urgency::LastCopy {
            let permit = lane.last_copies.acquire_many(units.min(DISK_UNITS)).await.ok()?;
            return Some(Admitted { permit, since: env.now(), yields: false });
        }
        let yields = lane.serves_users(served, env.now());
        let units = if yields { units * YIELD_WEIGHT } else { units };
        let permit = lane.others.acquire_many(units.min(DISK_UNITS)).await.ok()?;
        Some(Admitted { permit, since: env.now(), yields })
    }

    /// Takes a group in hand: nobody else brings or removes its chunks meanwhile. `None` while somebody does.
    pub fn take(&self, key: Key) -> Option<InHand<'_>> {
        self.in_hand().insert(key).then(|| InHand { budget: self, key })
    }

    fn in_hand(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn serves_users(&self, served: u64, now: MonoTime) -> bool {
        let mut seen = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served != seen.0 {
            *seen = (served, Some(now));
        }
        seen.1.is_some_and(|at| now.since(at) < BUSY_FOR)
    }
}

/// A pull that may begin. It ends with [`Admitted::rest`], or at once when it is dropped.
pub struct Admitted<'a> {
    permit: SemaphorePermit<'a>,
    since: MonoTime,
    yields: bool,
}

impl Admitted<'_> {
    /// Users go first, unless one more failure would lose something.
    pub async fn rest(self, env: &Env) {
        if self.yields {
            env.sleep(env.now().since(self.since).min(YIELD_MAX)).await;
        }
        drop(self.permit);
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

    const DISK: DiskId = DiskId(5);
    const LARGE: u32 = 4 << 20;

    fn budget() -> (Env, Budget) {
        let disks = Disks::new(vec![NodeDisk::new("d".into(), DISK, Err("none is needed".into()))]);
        (Sim::new(1).node(NodeId(1)).env(), Budget::new(&disks))
    }

    /// Pulls that are admitted before one has to wait.
    fn admitted<'a>(env: &Env, budget: &'a Budget, served: u64, urgency: Urgency, len: u32) -> Vec<Admitted<'a>> {
        let mut all = Vec::new();
        while let Some(Some(one)) = budget.admit(env, DISK, served, urgency, len).now_or_never() {
            all.push(one);
        }
        all
    }

    #[test]
    fn a_disk_is_pulled_to_by_few_large_or_many_small_and_by_fewer_while_users_are_served() {
        let (env, budget) = budget();
        assert_eq!(admitted(&env, &budget, 0, Urgency::Degraded, LARGE).len(), 8);
        assert_eq!(admitted(&env, &budget, 0, Urgency::Whole, 3000).len(), 512);
        let yielding = admitted(&env, &budget, 1, Urgency::Degraded, LARGE);
        assert_eq!(yielding.len(), 2, "somebody was served");
        assert!(yielding.iter().all(|one| one.yields));
        let last = admitted(&env, &budget, 2, Urgency::LastCopy, LARGE);
        assert_eq!(last.len(), 8, "a last copy stands behind nobody");
        assert!(last.iter().all(|one| !one.yields));
    }

    #[test]
    fn a_group_is_in_one_hand() {
        let (_, budget) = budget();
        let key = (PoolId(1), 3);
        let taken = budget.take(key);
        assert!(taken.is_some() && budget.take(key).is_none() && budget.take((PoolId(1), 4)).is_some());
        drop(taken);
        assert!(budget.take(key).is_some());
    }
}
