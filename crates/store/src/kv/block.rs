//! Sorted blocks: the leaves and the index of a run file.
//!
//! ```text
//! block     entry * n, restart u32 * r, r u32, crc u32
//! entry     shared varint, unshared varint, tag varint, key byte * unshared
//!           tag 0: a deletion, nothing follows
//!           tag n: crc u32, value byte * (n - 1)
//! ```
//! Integers are little-endian, varints LEB128. A key is the first `shared` bytes of the key before it and the
//! `unshared` bytes given. Every 16th entry is a *restart*: it shares nothing, and its offset stands in the restart
//! table, so that a search is a binary search over restarts and then at most 16 steps.
//!
//! The block's `crc` is CRC-32C over all bytes before it, seeded with disk, run and offset, so that a misplaced block
//! does not verify. The entry's `crc` is that of its [`Cell`], made at commit and carried unchanged ever after.

use base::checksum::crc32c;
use base::codec::{DecodeError, Writer};
use bytes::Bytes;

use super::{KEY_LEN_MAX, VALUE_LEN_MAX};

/// Entries from one restart to the next.
const RESTART_INTERVAL: usize = 16;
/// Bytes of the smallest block: the restart count and the checksum.
pub(super) const BLOCK_BYTES_MIN: usize = 8;
/// Bytes of the largest block that a writer makes: one entry with the longest key and value, and its frame.
pub(super) const BLOCK_BYTES_MAX: usize = VALUE_LEN_MAX + KEY_LEN_MAX + 64;

/// What stands under a key: a value with the checksum that it has carried since its commit, or a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// CRC-32C of the value, seeded with the key; 0 for a deletion.
    pub(super) crc: u32,
    pub(super) value: Option<Bytes>,
}

impl Cell {
    pub(super) fn put(key: &[u8], value: Bytes) -> Cell {
        Cell { crc: crc32c(key, &value), value: Some(value) }
    }

    pub(super) fn deletion() -> Cell {
        Cell { crc: 0, value: None }
    }

    /// Whether the value is so large that many of them would fill memory unnoticed.
    pub(super) fn is_large(&self) -> bool {
        self.value.as_ref().is_some_and(|value| value.len() >= 1 << 16)
    }

    /// Whether the value is the one that was committed under `key`.
    pub(super) fn verifies(&self, key: &[u8]) -> bool {
        self.value.as_ref().is_none_or(|value| crc32c(key, value) == self.crc)
    }
}

/// Builds one block after the other; keys of a block are added in rising order.
#[derive(Default)]
pub(super) struct BlockBuilder {
    entries: Vec<u8>,
    restarts: Vec<u32>,
    last_key: Vec<u8>,
    count: usize,
}

impl BlockBuilder {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that the block has now, without its end.
    pub(super) fn size_bytes(&self) -> usize {
        self.entries.len() + 4 * self.restarts.len()
    }

    pub(super) fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    pub(super) fn add(&mut self, key: &[u8], cell: &Cell) {
        assert!(self.count == 0 || key > self.last_key.as_slice(), "keys of a block rise");
        let shared = if self.count.is_multiple_of(RESTART_INTERVAL) {
            self.restarts.push(u32::try_from(self.entries.len()).expect("a block is smaller than 4 GiB"));
            0
        } else {
            shared_len(&self.last_key, key)
        };
        put_varint(&mut self.entries, shared);
        put_varint(&mut self.entries, key.len() - shared);
        put_varint(&mut self.entries, cell.value.as_ref().map_or(0, |value| value.len() + 1));
        self.entries.put_bytes(&key[shared..]);
        if let Some(value) = &cell.value {
            self.entries.put_u32(cell.crc);
            self.entries.put_bytes(value);
        }
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.count += 1;
    }

    /// Appends the finished block to `out` and starts anew. Returns the block's length in bytes.
    pub(super) fn finish_into(&mut self, out: &mut Vec<u8>, seed: &[u8]) -> u32 {
        let start = out.len();
        out.put_bytes(&self.entries);
        for restart in &self.restarts {
            out.put_u32(*restart);
        }
        out.put_u32(u32::try_from(self.restarts.len()).expect("fewer restarts than bytes"));
        let crc = crc32c(seed, &out[start..]);
        out.put_u32(crc);
        self.entries.clear();
        self.entries.shrink_to(1 << 20);
        self.restarts.clear();
        self.last_key.clear();
        self.count = 0;
        u32::try_from(out.len() - start).expect("a block is smaller than 4 GiB")
    }
}

/// The content of a block whose checksum holds, without the checksum; `None` when it does not hold.
pub(super) fn checked(raw: Bytes, seed: &[u8]) -> Option<Bytes> {
    let content_len = raw.len().checked_sub(4)?;
    let stored = u32::from_le_bytes(raw[content_len..].try_into().ok()?);
    (crc32c(seed, &raw[..content_len]) == stored).then(|| raw.slice(..content_len))
}

/// A position in a block: at an entry, or behind the last one.
pub(super) struct BlockCursor {
    content: Bytes,
    restarts_at: usize,
    restarts: usize,
    /// Offset of the entry after the current one.
    next: usize,
    key: Vec<u8>,
    crc: u32,
    /// Where the value stands; `None` for a deletion.
    value: Option<(usize, usize)>,
    at_entry: bool,
}

impl BlockCursor {
    /// A cursor before the first entry of a block's checked content.
    pub(super) fn new(content: Bytes) -> Result<BlockCursor, DecodeError> {
        let malformed = |what| DecodeError { what, offset: content.len() };
        let count_at = content.len().checked_sub(4).ok_or(malformed("block too short"))?;
        let restarts = read_u32(&content, count_at).ok_or(malformed("restart count"))? as usize;
        let table = restarts.checked_mul(4).ok_or(malformed("restart count"))?;
        let restarts_at = count_at.checked_sub(table).ok_or(malformed("restart count"))?;
        Ok(BlockCursor {
            content,
            restarts_at,
            restarts,
            next: 0,
            key: Vec::new(),
            crc: 0,
            value: None,
            at_entry: false,
        })
    }

    pub(super) fn first(&mut self) -> Result<(), DecodeError> {
        self.key.clear();
        self.next = 0;
        self.advance()
    }

    /// Goes to the first entry with a key of at least `target`.
    pub(super) fn seek(&mut self, target: &[u8]) -> Result<(), DecodeError> {
        // The last restart whose key is at most the target, or the first one.
        let (mut low, mut high) = (0, self.restarts);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.restart_key(middle)? <= target {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.key.clear();
        self.next = if self.restarts == 0 { self.restarts_at } else { self.restart_offset(low)? };
        self.advance()?;
        while self.at_entry && self.key.as_slice() < target {
            self.advance()?;
        }
        Ok(())
    }

    /// Goes to the next entry.
    pub(super) fn advance(&mut self) -> Result<(), DecodeError> {
        let start = self.next;
        self.at_entry = false;
        if start >= self.restarts_at {
            return Ok(());
        }
        let entry = Entry::decode(&self.content[..self.restarts_at], start)?;
        if entry.shared > self.key.len() || entry.shared + entry.unshared.len() > KEY_LEN_MAX {
            return Err(DecodeError { what: "key length", offset: start });
        }
        self.key.truncate(entry.shared);
        self.key.extend_from_slice(entry.unshared);
        (self.crc, self.value, self.next) = (entry.crc, entry.value, entry.end);
        self.at_entry = true;
        Ok(())
    }

    /// The key at the cursor; `None` behind the last entry.
    pub(super) fn key(&self) -> Option<&[u8]> {
        self.at_entry.then_some(self.key.as_slice())
    }

    /// The cell at the cursor, which must be at an entry. Its value shares the block's memory.
    pub(super) fn cell(&self) -> Cell {
        assert!(self.at_entry, "a cell is read only at an entry");
        match self.value {
            None => Cell::deletion(),
            Some((start, end)) => Cell { crc: self.crc, value: Some(self.content.slice(start..end)) },
        }
    }

    fn restart_offset(&self, restart: usize) -> Result<usize, DecodeError> {
        let at = self.restarts_at + 4 * restart;
        match read_u32(&self.content, at) {
            Some(offset) if (offset as usize) < self.restarts_at => Ok(offset as usize),
            _ => Err(DecodeError { what: "restart", offset: at }),
        }
    }

    fn restart_key(&self, restart: usize) -> Result<&[u8], DecodeError> {
        let offset = self.restart_offset(restart)?;
        let entry = Entry::decode(&self.content[..self.restarts_at], offset)?;
        if entry.shared != 0 {
            return Err(DecodeError { what: "restart shares a prefix", offset });
        }
        Ok(entry.unshared)
    }
}

/// One entry as it stands in a block. Plain slices instead of a `Reader`, as every search passes through here.
struct Entry<'a> {
    shared: usize,
    unshared: &'a [u8],
    crc: u32,
    value: Option<(usize, usize)>,
    end: usize,
}

impl<'a> Entry<'a> {
    fn decode(entries: &'a [u8], offset: usize) -> Result<Entry<'a>, DecodeError> {
        Entry::take(entries, offset).ok_or(DecodeError { what: "entry", offset })
    }

    fn take(entries: &'a [u8], mut at: usize) -> Option<Entry<'a>> {
        let shared = take_varint(entries, &mut at)?;
        let unshared_len = take_varint(entries, &mut at)?;
        let tag = take_varint(entries, &mut at)?;
        let unshared = entries.get(at..at.checked_add(unshared_len)?)?;
        at += unshared_len;
        let (mut crc, mut value) = (0, None);
        if let Some(len) = tag.checked_sub(1) {
            crc = read_u32(entries, at)?;
            let start = at + 4;
            at = start.checked_add(len)?;
            if at > entries.len() {
                return None;
            }
            value = Some((start, at));
        }
        Some(Entry { shared, unshared, crc, value, end: at })
    }
}

fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn shared_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

fn put_varint(out: &mut Vec<u8>, value: usize) {
    let mut rest = u32::try_from(value).expect("lengths in a block are below 4 GiB");
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn take_varint(data: &[u8], at: &mut usize) -> Option<usize> {
    let first = *data.get(*at)?;
    *at += 1;
    if first < 0x80 {
        return Some(usize::from(first));
    }
    let mut value = u32::from(first & 0x7f);
    for shift in [7, 14, 21, 28] {
        let byte = *data.get(*at)?;
        *at += 1;
        let bits = u32::from(byte & 0x7f);
        if shift == 28 && bits > 0xf {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Some(value as usize);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SEED: &[u8] = b"seed";

    fn build(rows: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Bytes {
        let mut builder = BlockBuilder::default();
        for (key, value) in rows {
            builder.add(key, &cell(key, value));
        }
        let mut out = Vec::new();
        let len = builder.finish_into(&mut out, SEED);
        assert_eq!(len as usize, out.len());
        Bytes::from(out)
    }

    fn cell(key: &[u8], value: &Option<Vec<u8>>) -> Cell {
        value.as_ref().map_or(Cell::deletion(), |value| Cell::put(key, Bytes::from(value.clone())))
    }

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        // A small alphabet, so that keys share prefixes and collide.
        proptest::collection::vec(0_u8..3, 0..8)
    }

    proptest! {
        #[test]
        fn blocks_round_trip_and_seek(
            rows in proptest::collection::btree_map(keys(), proptest::option::of(keys()), 0..100),
            target in keys(),
        ) {
            let content = checked(build(&rows), SEED).unwrap();
            let mut cursor = BlockCursor::new(content).unwrap();
            cursor.first().unwrap();
            for (key, value) in &rows {
                prop_assert_eq!(cursor.key(), Some(key.as_slice()));
                prop_assert_eq!(cursor.cell(), cell(key, value));
                prop_assert!(cursor.cell().verifies(key));
                cursor.advance().unwrap();
            }
            prop_assert_eq!(cursor.key(), None);
            cursor.seek(&target).unwrap();
            prop_assert_eq!(cursor.key(), rows.range(target..).next().map(|(key, _)| key.as_slice()));
        }

        #[test]
        fn decoding_any_bytes_never_panics(content: Vec<u8>, target in keys()) {
            if let Ok(mut cursor) = BlockCursor::new(Bytes::from(content)) {
                let _ = cursor.seek(&target);
                let mut more = cursor.first().is_ok();
                while more && cursor.key().is_some() {
                    let _ = cursor.cell();
                    more = cursor.advance().is_ok();
                }
            }
        }

        #[test]
        fn a_flipped_bit_fails_the_checksum(
            rows in proptest::collection::btree_map(keys(), proptest::option::of(keys()), 1..20),
            flip: proptest::sample::Index,
        ) {
            let mut raw = build(&rows).to_vec();
            let bit = flip.index(raw.len() * 8);
            raw[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(checked(Bytes::from(raw), SEED).is_none());
        }
    }

    #[test]
    fn a_value_does_not_verify_under_another_key() {
        let cell = Cell::put(b"key", Bytes::from_static(b"value"));
        assert!(cell.verifies(b"key"));
        assert!(!cell.verifies(b"kez"));
    }
}
