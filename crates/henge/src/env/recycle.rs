//! Large read buffers, used again when the reader has dropped them: a fresh buffer of 4 MiB costs more processor time
//! for zeroing and page faults than the read itself.

use base::buffer::AlignedBuf;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Smaller buffers come from the allocator's own caches, cheaply enough.
const LEN_MIN: usize = 64 << 10;

/// Buffers have a power of two of capacity up to this; larger ones are not kept.
const LEN_MAX: usize = 8 << 20;

const CLASSES: usize = (LEN_MAX / LEN_MIN).ilog2() as usize + 1;

/// Bytes that one disk keeps for later.
const KEPT_BYTES_MAX: usize = 32 << 20;

#[derive(Default)]
pub struct Recycler {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    classes: [Vec<AlignedBuf>; CLASSES],
    bytes: usize,
}

impl Recycler {
    /// A buffer of length `len`, whose bytes are anything: what a read does not fill must be cut off.
    pub fn take(&self, len: usize) -> AlignedBuf {
        let Some(class) = class_of(len) else { return AlignedBuf::zeroed(len) };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.classes[class].pop();
        kept.bytes -= found.as_ref().map_or(0, AlignedBuf::capacity);
        drop(kept);
        let mut buffer = found.unwrap_or_else(|| AlignedBuf::with_capacity(LEN_MIN << class));
        buffer.set_len(len);
        buffer
    }

    /// Freezes what was read, without a copy; the memory comes back when the last reader drops it.
    pub fn freeze(self: &Arc<Self>, buffer: AlignedBuf) -> Bytes {
        if class_of(buffer.capacity()).is_none() {
            return buffer.freeze();
        }
        Bytes::from_owner(Lent { buffer: Some(buffer), home: Arc::clone(self) })
    }

    fn give_back(&self, buffer: AlignedBuf) {
        let capacity = buffer.capacity();
        let Some(class) = class_of(capacity).filter(|class| capacity == LEN_MIN << class) else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + capacity <= KEPT_BYTES_MAX {
            kept.bytes += capacity;
            kept.classes[class].push(buffer);
        }
    }
}

/// The class whose buffers hold `len` bytes; `None` where recycling does not pay.
fn class_of(len: usize) -> Option<usize> {
    (LEN_MIN..=LEN_MAX).contains(&len).then(|| (len.next_power_of_two() / LEN_MIN).ilog2() as usize)
}

struct Lent {
    /// Taken only by `drop`.
    buffer: Option<AlignedBuf>,
    home: Arc<Recycler>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map(AlignedBuf::as_slice).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.buffer.take().into_iter().for_each(|buffer| self.home.give_back(buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_within_bounds_and_only_when_nobody_reads_it() {
        let recycler = Arc::new(Recycler::default());
        let mut buffer = recycler.take(100_000);
        assert_eq!((buffer.len(), buffer.capacity()), (100_000, 128 << 10));
        buffer.as_mut_slice().fill(7);
        let address = buffer.as_slice().as_ptr();
        let lent = recycler.freeze(buffer);
        let slice = lent.slice(10..20);
        drop(lent);
        assert_ne!(recycler.take(100_000).as_slice().as_ptr(), address, "somebody still reads it");
        assert_eq!(slice, [7; 10].as_slice());
        drop(slice);
        let again = recycler.take(70_000);
        assert_eq!((again.len(), again.as_slice().as_ptr()), (70_000, address));
        drop(recycler.freeze(again));

        let many: Vec<Bytes> = (0..10).map(|_| recycler.freeze(recycler.take(LEN_MAX))).collect();
        drop(many);
        assert!(recycler.kept.lock().unwrap().bytes <= KEPT_BYTES_MAX);
        for len in [0, 1, LEN_MIN - 1, LEN_MAX + 1] {
            assert_eq!(recycler.freeze(recycler.take(len)).len(), len);
        }
    }

    #[test]
    fn classes_hold_what_they_are_for() {
        for len in [LEN_MIN, LEN_MIN + 1, 1 << 20, (1 << 20) + 1, LEN_MAX] {
            assert!(LEN_MIN << class_of(len).unwrap() >= len, "{len}");
        }
        assert_eq!(class_of(LEN_MAX), Some(CLASSES - 1));
    }
}
