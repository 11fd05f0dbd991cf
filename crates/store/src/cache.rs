//! A bounded cache of verified bytes that never change where they stand. Second-chance replacement (Corbató's clock)
//! in shards, so that readers on many threads rarely wait for each other.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const SHARDS_MAX: usize = 16;
/// A cache of less is not divided: a shard keeps no block that would take more than a quarter of it.
const SHARD_BYTES_MIN: usize = 16 << 20;
/// Bytes a block takes beside its content, roughly.
const BLOCK_OVERHEAD_BYTES: usize = 128;

/// Where a block stands: run id, or number of a volume, and offset in bytes. Neither is ever reused, so an entry is
/// never stale.
pub type BlockAddress = (u64, u64);

pub struct BlockCache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes_max: usize,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What was asked for lately and not found, as marks in a table that later ones overwrite. A block that is asked for again
/// while its mark stands is worth keeping; one that is read in passing drives nothing out.
pub struct Missed {
    marks: Vec<AtomicU64>,
}

#[derive(Default)]
struct Shard {
    places: BTreeMap<BlockAddress, usize>,
    slots: Vec<Slot>,
    hand: usize,
    bytes: usize,
}

struct Slot {
    address: BlockAddress,
    content: Bytes,
    /// Asked for since the hand came by.
    used: bool,
}

impl BlockCache {
    pub fn new(bytes_max: usize) -> BlockCache {
        BlockCache::with_shards(bytes_max, SHARDS_MAX)
    }

    /// For blocks of up to 1 MiB, when there is room for a little more than four of them.
    pub fn for_large(bytes_max: usize) -> BlockCache {
        BlockCache::with_shards(bytes_max, (bytes_max / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX))
    }

    fn with_shards(bytes_max: usize, shards: usize) -> BlockCache {
        BlockCache {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_bytes_max: bytes_max / shards,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    pub fn get(&self, address: BlockAddress) -> Option<Bytes> {
        let mut shard = self.shard(address).lock().expect("nothing panics while a shard is locked");
        let shard = &mut *shard;
        let found = shard.places.get(&address).map(|place| {
            let slot = &mut shard.slots[*place];
            slot.used = true;
            slot.content.clone()
        });
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Whether a block of so many bytes would be kept: not one that would take a large part of its shard.
    pub fn has_room_for(&self, len: usize) -> bool {
        len + BLOCK_OVERHEAD_BYTES <= self.shard_bytes_max / 4
    }

    /// Keeps a block that it [has room for](Self::has_room_for), at the cost of others.
    pub fn insert(&self, address: BlockAddress, content: &Bytes) {
        if !self.has_room_for(content.len()) {
            return;
        }
        let cost = cost(content);
        let mut shard = self.shard(address).lock().expect("nothing panics while a shard is locked");
        if shard.places.contains_key(&address) {
            return;
        }
        while shard.bytes + cost > self.shard_bytes_max {
            shard.evict_one();
        }
        shard.bytes += cost;
        let place = shard.slots.len();
        shard.places.insert(address, place);
        shard.slots.push(Slot { address, content: content.clone(), used: false });
    }

    /// Drops all blocks of a run or volume that is gone: nobody asks for them again.
    pub fn forget(&self, of: u64) {
        for shard in &self.shards {
            let mut shard = shard.lock().expect("nothing panics while a shard is locked");
            while let Some((_, place)) = shard.places.range((of, 0)..=(of, u64::MAX)).next() {
                let place = *place;
                shard.remove(place);
            }
        }
    }

    pub fn clear(&self) {
        for shard in &self.shards {
            *shard.lock().expect("nothing panics while a shard is locked") = Shard::default();
        }
    }

    /// Bytes held now.
    pub fn bytes(&self) -> u64 {
        let bytes = |shard: &Mutex<Shard>| shard.lock().expect("nothing panics while a shard is locked").bytes as u64;
        self.shards.iter().map(bytes).sum()
    }

    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    fn shard(&self, address: BlockAddress) -> &Mutex<Shard> {
        &self.shards[(mixed(address) >> 32) as usize % self.shards.len()]
    }
}

impl Missed {
    /// With room for so many marks.
    pub fn new(marks: usize) -> Missed {
        Missed { marks: (0..marks).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Whether the mark of this block stands. Leaves it there.
    pub fn again(&self, address: BlockAddress) -> bool {
        // Never the mark of an empty place.
        let mark = mixed(address) | 1;
        let place = (mark >> 32) as usize % self.marks.len();
        self.marks[place].swap(mark, Ordering::Relaxed) == mark
    }
}

fn mixed(address: BlockAddress) -> u64 {
    (address.0.rotate_left(32) ^ address.1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Shard {
    /// Advances the hand to a block that was not asked for since the last round, and drops it. Ends within two
    /// rounds. The shard must not be empty.
    fn evict_one(&mut self) {
        loop {
            self.hand = if self.hand + 1 >= self.slots.len() { 0 } else { self.hand + 1 };
            let slot = &mut self.slots[self.hand];
            if std::mem::take(&mut slot.used) {
                continue;
            }
            return self.remove(self.hand);
        }
    }

    fn remove(&mut self, place: usize) {
        let gone = self.slots.swap_remove(place);
        self.places.remove(&gone.address);
        self.bytes -= cost(&gone.content);
        if let Some(moved) = self.slots.get(place) {
            self.places.insert(moved.address, place);
        }
    }
}

fn cost(content: &Bytes) -> usize {
    content.len() + BLOCK_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_forgotten_and_nothing_else() {
        let cache = BlockCache::new((SHARDS_MAX * 64) << 10);
        let content = Bytes::from(vec![1; 1000]);
        let all: Vec<BlockAddress> = (0..300).map(|i| (i % 3, i * 4096)).collect();
        all.iter().for_each(|address| cache.insert(*address, &content));
        let before = cache.bytes();
        cache.forget(1);
        assert_eq!(cache.bytes(), before / 3 * 2);
        assert!(all.iter().all(|address| cache.get(*address).is_some() == (address.0 != 1)));
        // The hand goes on where places are fewer now.
        (0..10_000).for_each(|i| cache.insert((7, i), &content));
        [0, 2, 7].into_iter().for_each(|of| cache.forget(of));
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_cache_for_large_blocks_keeps_them_however_small_it_is() {
        for mib in [4, 5, 23, 64, 375, 4096] {
            let cache = BlockCache::for_large((mib << 20) + 1024);
            assert!(cache.has_room_for(1 << 20), "{mib}");
            let content = Bytes::from(vec![1; 1 << 20]);
            (0..3 * mib.min(64)).for_each(|i| cache.insert((9, i as u64 * 4096), &content));
            assert!(cache.bytes() >= 3 << 20 && cache.bytes() <= (mib as u64 + 1) << 20, "{mib}: {}", cache.bytes());
        }
        assert!(!BlockCache::for_large(0).has_room_for(0));
    }

    #[test]
    fn what_is_missed_again_soon_is_told_from_what_is_read_in_passing() {
        let missed = Missed::new(512);
        let blocks = |from: u64, to: u64| (from..to).map(|i| (i % 7, i << 20));
        assert!(!missed.again((0, 0)) && missed.again((0, 0)) && missed.again((0, 0)));
        assert!(blocks(1, 20_000).all(|address| !missed.again(address)), "a long pass");
        assert!(!missed.again((0, 0)), "so much was read since");
        let again = |_| blocks(0, 100).filter(|address| missed.again(*address)).count();
        let rounds: Vec<usize> = (0..2).map(again).collect();
        assert!(rounds[0] == 1 && rounds[1] > 60, "{rounds:?}");
    }

    #[test]
    fn stays_within_its_bound_and_prefers_what_is_used() {
        let cache = BlockCache::new((SHARDS_MAX * 64) << 10);
        let hot = (0, 0);
        let content = Bytes::from(vec![1; 1000]);
        cache.insert(hot, &content);
        for offset in 1..10_000 {
            assert_eq!(cache.get(hot), Some(content.clone()));
            cache.insert((1, offset), &Bytes::from(offset.to_le_bytes().repeat(100)));
            if let Some(found) = cache.get((1, offset / 2)) {
                assert_eq!(found, (offset / 2).to_le_bytes().repeat(100));
            }
        }
        assert!(cache.bytes() <= ((SHARDS_MAX * 64) << 10) as u64);
        assert!(cache.bytes() >= ((SHARDS_MAX * 60) << 10) as u64);
        cache.insert((2, 0), &Bytes::from(vec![0; 40 << 10]));
        assert_eq!(cache.get((2, 0)), None);
        cache.clear();
        assert_eq!(cache.get(hot), None);
    }
}
