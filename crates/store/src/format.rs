//! The bytes on disk, as pure functions. `docs/formats.md` shows them as byte maps.
//!
//! A volume is a file of one *incarnation*: a number that is used once per disk. A journal volume is a chain of
//! batches of records; a bulk volume holds large payloads at block boundaries, each behind one header block. Every
//! checksum is seeded with the disk, the incarnation and the place, so that a stale, misdirected or foreign block
//! does not verify.

pub mod batch;
pub mod raft;
pub mod record;
pub mod summary;
pub mod volume;

use base::ids::DiskId;

/// Version of everything in a disk directory; stands in the identity and in each batch header.
pub const FORMAT_VERSION: u16 = 1;

/// What a volume's checksums are seeded with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seed {
    pub disk: DiskId,
    pub incarnation: u64,
}

impl Seed {
    /// Seed of a header that stands at byte `offset` of the volume.
    pub(crate) fn header(self, offset: u64) -> [u8; 32] {
        let mut seed = [0; 32];
        seed[..16].copy_from_slice(&self.disk.0.to_le_bytes());
        seed[16..24].copy_from_slice(&self.incarnation.to_le_bytes());
        seed[24..].copy_from_slice(&offset.to_le_bytes());
        seed
    }

    /// Seed of payload block `block` of the record `id`.
    pub(crate) fn block(self, id: &[u8; 16], block: u32) -> [u8; 44] {
        let mut seed = [0; 44];
        seed[..16].copy_from_slice(&self.disk.0.to_le_bytes());
        seed[16..24].copy_from_slice(&self.incarnation.to_le_bytes());
        seed[24..40].copy_from_slice(id);
        seed[40..].copy_from_slice(&block.to_le_bytes());
        seed
    }
}
