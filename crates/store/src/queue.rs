//! What waits for the committer: three lanes, drained Raft first, then users, then background work.

use base::ids::{ChunkId, GroupId};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::errors::StoreError;
use crate::format::batch::RecordIn;
use crate::format::record::PAYLOAD_MAX;
use crate::index::VolumeNumber;
use crate::raft_log::RaftWrite;

/// Cost in bytes up to which requests share a round. A larger one has a round of its own.
pub const ROUND_COST_MAX: usize = 4 << 20;
/// Bytes that may wait in each lane. Who brings more waits for room.
const LANE_BYTES_MAX: usize = 64 << 20;
const ROOM_UNIT: usize = 1 << 10;
const _: () = assert!(LANE_BYTES_MAX > PAYLOAD_MAX + ROUND_COST_MAX, "the largest request fits into a lane");

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    AlreadyStored,
    /// The world had changed since the (background) request was made.
    Skipped,
}

/// Where a live record was when it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub volume: VolumeNumber,
    pub offset: u64,
    pub journal: VolumeNumber,
}

#[derive(Debug)]
pub enum Request {
    /// A chunk or a locator. With `moved_from`, only if the chunk still is there.
    Store {
        record: RecordIn,
        len: u32,
        crc64: u64,
        moved_from: Option<Place>,
        bulk: Option<VolumeNumber>,
    },
    /// Tombstones. With `moved_from`, only those that are in that volume.
    Delete {
        ids: Vec<ChunkId>,
        moved_from: Option<VolumeNumber>,
    },
    /// Marks that chunks leave this disk. With `moved_from`, only marks that are in that volume.
    Evict {
        ids: Vec<ChunkId>,
        moved_from: Option<VolumeNumber>,
    },
    Raft(RaftWrite),
    RaftRemove(GroupId),
    /// A group's rewritten log, valid while its last record has this number.
    RaftRewrite {
        record: RecordIn,
        number: u64,
    },
    /// Writes a group's hard state and base once more, those of the two that lie in this volume: also while its log is
    /// being written. Not when that takes more than `len_max` bytes of payload.
    RaftRenew {
        group: GroupId,
        volume: VolumeNumber,
        len_max: usize,
    },
    RaftDamaged {
        group: GroupId,
        reason: String,
    },
    /// Lets go of a volume, and of these tombstones with it.
    Drop {
        volume: VolumeNumber,
        tombstones: Vec<ChunkId>,
    },
    /// Nothing to write; but a volume that is to be rewritten is sealed now, and not at the next write.
    Seal,
}

impl Request {
    /// Bytes that this request adds to a batch, at most.
    pub fn cost(&self) -> usize {
        match self {
            Request::Store { record, .. } | Request::RaftRewrite { record, .. } => record.cost(),
            Request::Delete { ids, .. } | Request::Evict { ids, .. } => {
                ids.len() * crate::index::TOMBSTONE_COST as usize
            }
            Request::Raft(write) => write.size_bytes() + 96 * (write.entries.len() + 4),
            Request::RaftRemove(_) | Request::Drop { .. } => 96,
            Request::RaftRenew { len_max, .. } => len_max + 2 * 104,
            Request::Seal => 0,
            Request::RaftDamaged { reason, .. } => 104 + reason.len(),
        }
    }

    /// Requests of one group are composed one per round: each is checked against what the one before left.
    fn group(&self) -> Option<GroupId> {
        match self {
            Request::Raft(write) => Some(write.group),
            Request::RaftRemove(group) | Request::RaftDamaged { group, .. } | Request::RaftRenew { group, .. } => {
                Some(*group)
            }
            Request::RaftRewrite { record, .. } => Some(record.header.group()),
            _ => None,
        }
    }

    fn lane(&self, background: bool) -> Lane {
        if background {
            Lane::Background
        } else if self.group().is_some() {
            Lane::Raft
        } else {
            Lane::User
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lane {
    Raft,
    User,
    Background,
}

/// A request and who waits for it.
#[derive(Debug)]
pub struct Waiting {
    pub request: Request,
    reply: oneshot::Sender<Result<Outcome, StoreError>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Waiting {
    pub fn answer(self, outcome: Result<Outcome, StoreError>) {
        // The caller may have gone away; the outcome stands nevertheless.
        let _ = self.reply.send(outcome);
    }
}

pub type Pending = oneshot::Receiver<Result<Outcome, StoreError>>;

#[derive(Default)]
struct Lanes {
    lanes: [VecDeque<Waiting>; 3],
    closed: bool,
}

pub struct Queue {
    lanes: Mutex<Lanes>,
    room: [Arc<Semaphore>; 3],
    pub wake: Notify,
}

impl Queue {
    pub fn new() -> Queue {
        let room = || Arc::new(Semaphore::new(LANE_BYTES_MAX / ROOM_UNIT));
        Queue { lanes: Mutex::default(), room: [room(), room(), room()], wake: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().expect("no one panics while holding the lanes")
    }

    /// Waits for room, then queues. The outcome comes through what is returned.
    pub async fn push(&self, request: Request, background: bool) -> Result<Pending, StoreError> {
        let lane = request.lane(background) as usize;
        let units = request.cost().div_ceil(ROOM_UNIT).min(LANE_BYTES_MAX / ROOM_UNIT);
        let room = self.room[lane].clone().acquire_many_owned(units as u32).await.map_err(|_| StoreError::Closed)?;
        let (reply, pending) = oneshot::channel();
        let mut lanes = self.lock();
        if lanes.closed {
            return Err(StoreError::Closed);
        }
        lanes.lanes[lane].push_back(Waiting { request, reply, _room: Some(room) });
        drop(lanes);
        self.wake.notify_one();
        Ok(pending)
    }

    /// Queues and waits for the outcome.
    pub async fn run(&self, request: Request, background: bool) -> Result<Outcome, StoreError> {
        let pending = self.push(request, background).await?;
        pending.await.map_err(|_| StoreError::Closed)?
    }

    /// The next round: Raft first, then users, then background, up to a cost of `cost_max` bytes.
    pub fn take(&self, cost_max: usize) -> Vec<Waiting> {
        let mut lanes = self.lock();
        let mut taken: Vec<Waiting> = Vec::new();
        let mut cost = 0;
        let mut groups = BTreeSet::new();
        for lane in &mut lanes.lanes {
            let mut kept = VecDeque::new();
            while let Some(next) = lane.pop_front() {
                if next.request.group().is_some_and(|group| groups.contains(&group)) {
                    kept.push_back(next);
                    continue;
                }
                if !taken.is_empty() && cost + next.request.cost() > cost_max {
                    lane.push_front(next);
                    break;
                }
                groups.extend(next.request.group());
                cost += next.request.cost();
                taken.push(next);
            }
            while let Some(back) = kept.pop_back() {
                lane.push_front(back);
            }
        }
        taken
    }

    /// Nothing more is taken in; what waits is still served.
    pub fn close(&self) {
        self.lock().closed = true;
        for room in &self.room {
            room.close();
        }
        self.wake.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Whether users or Raft wait: background work then yields.
    pub fn is_busy(&self) -> bool {
        let lanes = self.lock();
        !lanes.lanes[Lane::Raft as usize].is_empty() || !lanes.lanes[Lane::User as usize].is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::PeerId;
    use base::sim::Sim;

    fn raft(group: u64) -> Request {
        Request::Raft(RaftWrite { group: GroupId(group), peer: PeerId(1), ..RaftWrite::default() })
    }

    fn delete(count: usize) -> Request {
        Request::Delete { ids: vec![ChunkId::from_u128(1); count], moved_from: None }
    }

    fn kinds(taken: &[Waiting]) -> String {
        let letter = |waiting: &Waiting| match &waiting.request {
            Request::Raft(write) => format!("r{}", write.group),
            Request::Delete { ids, .. } => format!("d{}", ids.len()),
            _ => "?".into(),
        };
        taken.iter().map(letter).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn raft_goes_first_one_request_per_group_and_round() {
        let queue = Queue::new();
        Sim::new(1).block_on(async {
            let mut pending = Vec::new();
            for (request, background) in
                [(delete(1), false), (raft(1), false), (raft(1), false), (delete(2), true), (raft(2), false)]
            {
                pending.push(queue.push(request, background).await.unwrap());
            }
            assert_eq!(kinds(&queue.take(ROUND_COST_MAX)), "r1 r2 d1 d2");
            assert_eq!(kinds(&queue.take(ROUND_COST_MAX)), "r1");
            assert_eq!(kinds(&queue.take(ROUND_COST_MAX)), "");
        });
    }

    #[test]
    fn a_large_request_has_a_round_of_its_own() {
        let queue = Queue::new();
        Sim::new(1).block_on(async {
            let mut pending = Vec::new();
            for count in [1, 60_000, 2] {
                pending.push(queue.push(delete(count), false).await.unwrap());
            }
            assert_eq!(kinds(&queue.take(ROUND_COST_MAX)), "d1");
            assert_eq!(kinds(&queue.take(ROUND_COST_MAX)), "d60000");
            assert_eq!(kinds(&queue.take(ROUND_COST_MAX)), "d2");
            queue.close();
            assert!(matches!(queue.push(delete(1), false).await, Err(StoreError::Closed)));
        });
    }
}
