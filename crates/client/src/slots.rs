//! The sender's half of the slot table: which (slot, sequence) a command travels under, so that a retry is recognised.

use base::ids::Session;
use meta::object::command::SlotRef;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Commands in flight from one session to one shard.
pub const SLOTS_MAX: usize = 256;

/// The slots of one session at one group.
pub struct Slots {
    session: Session,
    free: Mutex<Vec<(u32, u64)>>,
    permits: Arc<Semaphore>,
}

impl Slots {
    pub fn new(session: Session) -> Arc<Slots> {
        // Popped from the back: the lowest slots are used most, so that the table stays short.
        let free = (0..SLOTS_MAX as u32).rev().map(|slot| (slot, 1)).collect();
        Arc::new(Slots { session, free: Mutex::new(free), permits: Arc::new(Semaphore::new(SLOTS_MAX)) })
    }

    /// Waits for a free slot. It is free again, under its next sequence, when the guard is dropped.
    pub async fn take(self: &Arc<Slots>) -> SlotGuard {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (slot, sequence) = self.lock().pop().expect("there are as many permits as slots");
        SlotGuard { slots: self.clone(), slot, sequence, _permit: permit }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u32, u64)>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot in use by one command and its retries.
pub struct SlotGuard {
    slots: Arc<Slots>,
    slot: u32,
    sequence: u64,
    _permit: OwnedSemaphorePermit,
}

impl SlotGuard {
    pub fn reference(&self) -> SlotRef {
        let Session { node, generation } = self.slots.session;
        SlotRef { node: node.0, generation: generation.0, slot: self.slot, sequence: self.sequence }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        // The next command's higher sequence acknowledges this one's reply, and fences a copy that is still under way.
        // Runs before the permit field is dropped, so that whoever gets the permit finds the slot.
        self.slots.lock().push((self.slot, self.sequence + 1));
    }
}
