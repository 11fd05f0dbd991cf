//! A Bloom filter in cache lines (Putze, Sanders, Singler 2007): which keys a part of a run surely does not hold.
//! About 10 bits a key, 1 % false positives, one cache line touched per question.
//!
//! The filter is a whole number of 64-byte lines; bit `b` of a line is bit `b % 8` of its byte `b / 8`. The hash and
//! the choice of bits are part of the file format.

const LINE_BYTES: usize = 64;
const BITS_PER_KEY: usize = 10;
const PROBES: u32 = 7;
// Seven probes take nine bits each of one 64-bit word.
const _: () = assert!(PROBES * 9 <= 64 && LINE_BYTES * 8 == 1 << 9);

/// A filter that holds the keys with these hashes.
pub(super) fn build(hashes: &[u64]) -> Vec<u8> {
    let lines = (hashes.len() * BITS_PER_KEY).div_ceil(LINE_BYTES * 8).max(1);
    let mut filter = vec![0; lines * LINE_BYTES];
    for hash in hashes {
        let (start, bits) = place(*hash, lines);
        for probe in 0..PROBES {
            let bit = (bits >> (probe * 9)) as usize & 0x1ff;
            filter[start + bit / 8] |= 1 << (bit % 8);
        }
    }
    filter
}

/// Whether the filter may hold the key with this hash; `true` for a filter that is not one.
pub(super) fn may_contain(filter: &[u8], hash: u64) -> bool {
    let lines = filter.len() / LINE_BYTES;
    if lines == 0 {
        return true;
    }
    let (start, bits) = place(hash, lines);
    (0..PROBES).all(|probe| {
        let bit = (bits >> (probe * 9)) as usize & 0x1ff;
        filter[start + bit / 8] & (1 << (bit % 8)) != 0
    })
}

/// Hash of a key: multiply and fold, 8 bytes at a time (after wyhash, Wang Yi 2019).
pub(super) fn hash(key: &[u8]) -> u64 {
    let mut state = fold(key.len() as u64 ^ 0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db);
    for piece in key.chunks(8) {
        let mut word = [0; 8];
        word[..piece.len()].copy_from_slice(piece);
        state = fold(state ^ u64::from_le_bytes(word), 0x8ebc_6af0_9c88_c6e3);
    }
    fold(state, 0x5899_65cc_7537_4cc3)
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The line's first byte, and the word that chooses bits in it.
fn place(hash: u64, lines: usize) -> (usize, u64) {
    let line = ((u128::from(hash) * lines as u128) >> 64) as usize;
    (line * LINE_BYTES, fold(hash, 0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_every_key_and_few_others() {
        let key = |n: u32| format!("bucket/0000{n}/object").into_bytes();
        let hashes: Vec<u64> = (0..20_000).map(|n| hash(&key(n))).collect();
        let filter = build(&hashes);
        assert!(hashes.iter().all(|hash| may_contain(&filter, *hash)));
        let wrong = (20_000..40_000).filter(|n| may_contain(&filter, hash(&key(*n)))).count();
        assert!(wrong < 500, "{wrong} of 20,000 absent keys pass");
    }

    #[test]
    fn the_hash_is_part_of_the_format() {
        assert_eq!(hash(b""), 0x9c26_8340_cd8b_c1fe);
        assert_eq!(hash(b"henge"), 0x5ec0_92cf_c497_eb3f);
    }
}
