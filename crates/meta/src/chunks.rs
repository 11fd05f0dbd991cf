//! How metadata names chunks: packed references of 28 bytes each.

use base::codec::{DecodeError, Reader};
use base::ids::ChunkId;
use bytes::{BufMut, Bytes, BytesMut};

/// A chunk as an object names it. Byte map: id (16, big-endian), length (4, LE), CRC-64/NVME of the payload (8, LE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    pub id: ChunkId,
    pub len: u32,
    pub crc64: u64,
}

impl ChunkRef {
    /// Length of a packed reference in bytes.
    pub const LEN: usize = 28;
}

/// Packs references one after the other.
pub fn pack(chunks: &[ChunkRef]) -> Bytes {
    let mut out = BytesMut::with_capacity(chunks.len() * ChunkRef::LEN);
    for chunk in chunks {
        out.put_slice(&chunk.id.to_bytes());
        out.put_u32_le(chunk.len);
        out.put_u64_le(chunk.crc64);
    }
    out.freeze()
}

/// The references of a packed list.
pub fn unpack(packed: &[u8]) -> Result<Vec<ChunkRef>, DecodeError> {
    let mut reader = Reader::new(packed);
    let mut chunks = Vec::with_capacity(packed.len() / ChunkRef::LEN);
    while reader.remaining() > 0 {
        chunks.push(ChunkRef {
            id: ChunkId::from_bytes(reader.array("chunk id")?),
            len: reader.u32("chunk length")?,
            crc64: reader.u64("chunk checksum")?,
        });
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn references_round_trip(raw in proptest::collection::vec((any::<u128>(), any::<u32>(), any::<u64>()), 0..20)) {
            let chunks: Vec<ChunkRef> = raw
                .into_iter()
                .map(|(id, len, crc64)| ChunkRef { id: ChunkId::from_u128(id), len, crc64 })
                .collect();
            prop_assert_eq!(unpack(&pack(&chunks)), Ok(chunks));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = unpack(&bytes);
        }
    }
}
