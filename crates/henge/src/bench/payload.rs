//! Contents of benchmark objects: incompressible, different for each key and version, and known to whoever knows both.

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::s3_client::hex;

/// `size` bytes that follow from key and version alone.
pub fn payload(key: &str, version: u64, size: usize) -> Bytes {
    let seed = base::checksum::crc64(format!("{key}\0{version}").as_bytes());
    let mut out = vec![0; size];
    let mut state = seed;
    for piece in out.chunks_mut(8) {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
    }
    out.into()
}

/// Writes `number` into each MiB of `buffer`, in place where nobody else holds it: objects are told apart from each other, also
/// by a server that keeps equal contents once, and no time goes into making them.
pub fn stamped(buffer: Bytes, number: u64) -> Bytes {
    let mut buffer = buffer.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    for piece in buffer.chunks_mut(1 << 20) {
        let len = piece.len().min(8);
        piece[..len].copy_from_slice(&number.to_le_bytes()[..len]);
    }
    buffer.freeze()
}

/// In hexadecimal.
pub fn sha256(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_follow_from_key_and_version() {
        assert_eq!(payload("k", 1, 1000), payload("k", 1, 1000));
        assert_ne!(payload("k", 1, 1000), payload("k", 2, 1000));
        assert_ne!(payload("k", 1, 1000), payload("l", 1, 1000));
        assert_eq!(payload("k", 1, 13).len(), 13);
        assert_eq!(payload("k", 1, 0).len(), 0);
    }

    #[test]
    fn stamps_tell_bodies_apart_in_every_mebibyte_and_copy_only_what_is_shared() {
        let plain = payload("k", 1, (1 << 20) + 3);
        let held = stamped(plain.clone(), 7);
        assert_eq!((&held[..8], &held[1 << 20..]), (&7u64.to_le_bytes()[..], &[7, 0, 0][..]));
        assert_eq!(held[8..1 << 20], plain[8..1 << 20]);
        let at = held.as_ptr();
        let again = stamped(held, 8);
        assert_eq!((again[0], again.as_ptr()), (8, at));
        let other = stamped(again.clone(), 9);
        assert_eq!((again[0], other[0]), (8, 9));
    }
}
