//! Checksums: CRC-32C (RFC 3720) for headers and blocks, CRC-64/NVME (NVM Express specification) for whole chunks.
//!
//! A checksum is *seeded* with the bytes that say where the data belongs (disk, volume incarnation, id, block
//! number ...), so that a misdirected or stale block cannot verify.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C over `seed` followed by `data`.
pub fn crc32c(seed: &[u8], data: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    if !seed.is_empty() {
        digest.update(seed);
    }
    digest.update(data);
    digest.finalize() as u32
}

/// CRC-32C, seeded as [`crc32c`], of data that arrives in pieces.
pub struct Crc32c(Digest);

impl Crc32c {
    pub fn new(seed: &[u8]) -> Crc32c {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(seed);
        Crc32c(digest)
    }

    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    pub fn finish(self) -> u32 {
        self.0.finalize() as u32
    }
}

/// CRC-64/NVME of `data`.
pub fn crc64(data: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, data)
}

/// CRC-64/NVME of data that arrives in pieces.
pub struct Crc64(Digest);

impl Crc64 {
    pub fn new() -> Crc64 {
        Crc64(Digest::new(CrcAlgorithm::Crc64Nvme))
    }

    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    pub fn finish(self) -> u64 {
        self.0.finalize()
    }
}

impl Default for Crc64 {
    fn default() -> Crc64 {
        Crc64::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_check_values() {
        assert_eq!(crc32c(&[], b"123456789"), 0xe306_9283);
        assert_eq!(crc64(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(crc32c(b"1234", b"56789"), 0xe306_9283);
        let mut streamed = Crc32c::new(b"12");
        streamed.update(b"345");
        streamed.update(b"6789");
        assert_eq!(streamed.finish(), crc32c(b"12", b"3456789"));
        let mut streamed = Crc64::new();
        streamed.update(b"12345");
        streamed.update(b"6789");
        assert_eq!(streamed.finish(), crc64(b"123456789"));
    }
}
