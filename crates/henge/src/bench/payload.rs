//! Contents of benchmark objects: incompressible, different for each key and version, and known to whoever knows both.

use bytes::Bytes;
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
}
