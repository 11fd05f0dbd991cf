//! Memory that direct I/O can write from and read into: aligned to, and a multiple of, 4 KiB.

use bytes::Bytes;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::Arc;

use crate::buffer_pool::BufferPool;

/// Alignment in bytes of everything that goes to a [`crate::env::File`]: offsets, lengths and, for speed, memory.
pub const BLOCK: usize = 4096;

/// Rounds up to a whole number of blocks.
pub const fn align_up(len: u64) -> u64 {
    len.next_multiple_of(BLOCK as u64)
}

/// An owned buffer that starts at a block boundary. `len` is what was filled; the capacity is a whole number of blocks,
/// and the bytes between `len` and the capacity are zero unless the owner wrote them, or anything when the buffer came
/// from a [`BufferPool`].
pub struct AlignedBuf {
    pointer: std::ptr::NonNull<u8>,
    capacity: usize,
    len: usize,
    /// Where the memory goes when the buffer is dropped.
    home: Option<Arc<BufferPool>>,
}

// SAFETY: the buffer owns its memory exclusively; shared access is only through `&self` to plain bytes.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above; `&AlignedBuf` gives read access to initialised bytes only.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A zeroed buffer of `len` 0 with room for at least `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> AlignedBuf {
        let capacity = capacity.next_multiple_of(BLOCK).max(BLOCK);
        let layout = AlignedBuf::layout(capacity);
        // SAFETY: the layout's size is at least BLOCK, so never zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(pointer) = std::ptr::NonNull::new(raw) else { handle_alloc_error(layout) };
        AlignedBuf { pointer, capacity, len: 0, home: None }
    }

    /// A zeroed buffer of exactly `len` bytes.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let mut buffer = AlignedBuf::with_capacity(len);
        buffer.len = len;
        buffer
    }

    /// The same memory, which goes to `home` when it is dropped.
    pub(crate) fn at_home(mut self, home: Arc<BufferPool>) -> AlignedBuf {
        self.home = Some(home);
        self
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK).expect("capacity is far below isize::MAX and BLOCK is a power of two")
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Room left before the buffer is full.
    pub fn spare(&self) -> usize {
        self.capacity - self.len
    }

    /// Appends as much of `data` as fits and says how much that was.
    pub fn fill_from(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.spare());
        let start = self.len;
        self.len += taken;
        self.as_mut_slice()[start..].copy_from_slice(&data[..taken]);
        taken
    }

    /// Sets the length; bytes that were never written are zero, or anything in a buffer of a pool.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "a buffer does not grow");
        self.len = len;
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `capacity` bytes are allocated and initialised (zeroed), and len <= capacity.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }

    /// Freezes the buffer without copying.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Freezes the buffer padded with zeroes to whole blocks, without copying.
    pub fn freeze_padded(mut self) -> Bytes {
        let filled = self.len;
        self.len = filled.next_multiple_of(BLOCK);
        self.as_mut_slice()[filled..].fill(0);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let memory = AlignedBuf { pointer: self.pointer, capacity: self.capacity, len: 0, home: None };
            return home.give_back(memory);
        }
        // SAFETY: allocated in `with_capacity` with the same layout, and freed once: what went home is not freed here.
        unsafe { dealloc(self.pointer.as_ptr(), AlignedBuf::layout(self.capacity)) }
    }
}

/// Whether direct I/O can use this memory as it is.
pub fn is_aligned(data: &[u8]) -> bool {
    (data.as_ptr() as usize).is_multiple_of(BLOCK) && data.len().is_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_up_to_its_capacity_and_freezes_padded() {
        let mut buffer = AlignedBuf::with_capacity(5000);
        assert_eq!(buffer.capacity(), 8192);
        assert_eq!(buffer.fill_from(&[7; 5000]), 5000);
        assert_eq!(buffer.fill_from(&[8; 5000]), 3192);
        buffer.set_len(5000);
        let frozen = buffer.freeze_padded();
        assert!(is_aligned(&frozen));
        assert_eq!(frozen.len(), 8192);
        assert_eq!(&frozen[..5000], &[7; 5000]);
    }
}
