//! Aligned buffers, used again when their last reader has dropped them: zeroing a fresh buffer of 4 MiB and faulting its
//! pages in costs more processor time than hashing and sending what it then holds, and aligning a small one more than
//! filling it.
//!
//! What is kept for later is bounded, and goes back to the system when nobody wants it ([`BufferPool::age`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::{AlignedBuf, BLOCK};

const LEN_MIN: usize = BLOCK;

/// Buffers have a power of two of capacity up to this; larger ones are not kept.
const LEN_MAX: usize = 8 << 20;

const CLASSES: usize = (LEN_MAX / LEN_MIN).ilog2() as usize + 1;

/// Bytes that one pool keeps for later.
const KEPT_BYTES_MAX: usize = 64 << 20;

#[derive(Default)]
pub struct BufferPool {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    classes: [Class; CLASSES],
    bytes: usize,
}

#[derive(Default)]
struct Class {
    free: Vec<AlignedBuf>,
    /// Fewest free buffers since [`BufferPool::age`] was last called: so many were not needed.
    idle: usize,
}

impl BufferPool {
    /// An empty buffer with room for at least `capacity` bytes. What was never written to it is anything.
    pub fn take(self: &Arc<Self>, capacity: usize) -> AlignedBuf {
        let Some(class) = class_of(capacity) else { return AlignedBuf::with_capacity(capacity) };
        let found = {
            let mut kept = self.kept();
            let found = kept.classes[class].free.pop();
            kept.classes[class].idle = kept.classes[class].idle.min(kept.classes[class].free.len());
            kept.bytes -= found.as_ref().map_or(0, AlignedBuf::capacity);
            found
        };
        found.unwrap_or_else(|| AlignedBuf::with_capacity(LEN_MIN << class)).at_home(Arc::clone(self))
    }

    /// Frees what was kept and not needed since the last call. To be called every few seconds.
    pub fn age(&self) {
        let idle: Vec<AlignedBuf> = {
            let mut kept = self.kept();
            let mut idle = Vec::new();
            for class in &mut kept.classes {
                idle.extend(class.free.drain(..class.idle));
                class.idle = class.free.len();
            }
            kept.bytes -= idle.iter().map(AlignedBuf::capacity).sum::<usize>();
            idle
        };
        // Outside of the lock: giving memory back to the system takes a while.
        drop(idle);
    }

    /// Bytes that are kept for later.
    pub fn kept_bytes(&self) -> usize {
        self.kept().bytes
    }

    pub(crate) fn give_back(&self, buffer: AlignedBuf) {
        let capacity = buffer.capacity();
        let Some(class) = class_of(capacity).filter(|class| capacity == LEN_MIN << class) else { return };
        let mut kept = self.kept();
        if kept.bytes + capacity <= KEPT_BYTES_MAX {
            kept.bytes += capacity;
            kept.classes[class].free.push(buffer);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing can panic while the lock is held, so a poisoned lock still guards a whole state.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The class whose buffers hold `len` bytes; `None` for what is too large to be kept.
fn class_of(len: usize) -> Option<usize> {
    (len <= LEN_MAX).then(|| (len.max(LEN_MIN).next_power_of_two() / LEN_MIN).ilog2() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn memory_comes_back_within_bounds_and_only_when_nobody_reads_it() {
        let pool = Arc::new(BufferPool::default());
        let mut buffer = pool.take(100_000);
        assert_eq!((buffer.len(), buffer.capacity()), (0, 128 << 10));
        buffer.fill_from(&[7; 100_000]);
        let address = buffer.as_slice().as_ptr();
        let lent = buffer.freeze();
        let slice = lent.slice(10..20);
        drop(lent);
        assert_ne!(pool.take(100_000).as_slice().as_ptr(), address, "somebody still reads it");
        pool.age();
        pool.age();
        assert_eq!(slice, [7; 10].as_slice());
        drop(slice);
        let again = pool.take(70_000);
        assert_eq!((again.len(), again.as_slice().as_ptr()), (0, address));
        drop(again);

        let many: Vec<Bytes> = (0..10).map(|_| pool.take(LEN_MAX).freeze()).collect();
        drop(many);
        assert!(pool.kept_bytes() <= KEPT_BYTES_MAX);
        for len in [0, 1, LEN_MIN - 1, LEN_MAX + 1] {
            assert!(pool.take(len).capacity() >= len);
        }
    }

    #[test]
    fn padding_is_zeroed_although_the_memory_was_used_before() {
        let pool = Arc::new(BufferPool::default());
        let mut first = pool.take(16 << 10);
        first.set_len(16 << 10);
        first.as_mut_slice().fill(9);
        drop(first);
        let mut second = pool.take(16 << 10);
        second.fill_from(&[1; 5000]);
        let frozen = second.freeze_padded();
        assert_eq!(frozen.len(), 8192);
        assert!(frozen[5000..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_nobody_wants_goes_back_to_the_system() {
        let pool = Arc::new(BufferPool::default());
        let some: Vec<AlignedBuf> = (0..4).map(|_| pool.take(LEN_MIN)).collect();
        drop(some);
        pool.age();
        assert_eq!(pool.kept_bytes(), 4 * LEN_MIN, "it has only just come back");
        drop([pool.take(LEN_MIN), pool.take(LEN_MIN)]);
        pool.age();
        assert_eq!(pool.kept_bytes(), 2 * LEN_MIN, "two were wanted meanwhile");
        pool.age();
        assert_eq!(pool.kept_bytes(), 0);
    }

    #[test]
    fn classes_hold_what_they_are_for() {
        for len in [0, 1, LEN_MIN, LEN_MIN + 1, 1 << 20, (1 << 20) + 1, LEN_MAX] {
            assert!(LEN_MIN << class_of(len).unwrap() >= len, "{len}");
        }
        assert_eq!(class_of(LEN_MAX), Some(CLASSES - 1));
    }
}
