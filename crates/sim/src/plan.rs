//! What a run is made of, drawn from its seed.

use base::env::{Random, RandomExt};
use base::{KIB, MIB};
use bytes::Bytes;
use node::{Healing, LifecyclePace, Tuning};
use std::time::Duration;
use store::EngineOptions;
use store::kv::KvOptions;

/// The kind of trouble of a run. Power cuts and kills happen in all of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Profile {
    /// Power cuts that lose and tear what was not flushed, and kills.
    Crashes,
    /// Flushes fail: the disk must take no more writes, and lose nothing acknowledged.
    FlushErrors,
    /// Bits flip at rest, writes are lost or land elsewhere on a disk without metadata: an error or the right bytes,
    /// never wrong ones; and what lies on other disks is served.
    BitRot,
    /// Bits flip on the disk with the metadata while the node is down: it says so, or serves what is right.
    MetadataRot,
    /// Disks fill up and are emptied again.
    DiskFull,
    /// Three nodes, with all that may happen to nodes, their disks and the network between them.
    Cluster3,
    /// Five nodes.
    Cluster5,
}

impl Profile {
    pub const ALL: [Profile; 7] = [
        Profile::Crashes,
        Profile::FlushErrors,
        Profile::BitRot,
        Profile::MetadataRot,
        Profile::DiskFull,
        Profile::Cluster3,
        Profile::Cluster5,
    ];

    fn draw(random: &dyn Random) -> Profile {
        match random.below(100) {
            0..46 => Profile::Crashes,
            46..53 => Profile::FlushErrors,
            53..58 => Profile::BitRot,
            58..62 => Profile::MetadataRot,
            62..66 => Profile::DiskFull,
            66..88 => Profile::Cluster3,
            _ => Profile::Cluster5,
        }
    }

    pub fn nodes(self) -> usize {
        match self {
            Profile::Cluster3 => 3,
            Profile::Cluster5 => 5,
            _ => 1,
        }
    }
}

/// A defect planted into a run, to show that the checkers see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// Once there is a cluster, flushes of files and directories are reported done and do nothing.
    SkipFlushes,
    /// Only flushes of directories do nothing.
    SkipDirectoryFlushes,
    /// A gateway answers every other read of metadata as it did the last time.
    StaleReads,
    /// Chunks are reported stored by other nodes and never sent to them.
    UnsentStores,
    /// Chunks are reported deleted by other nodes, which are never told.
    UnsentDeletes,
}

impl Planted {
    /// Where the defect does harm.
    fn profile(self) -> Profile {
        match self {
            Planted::SkipFlushes | Planted::SkipDirectoryFlushes | Planted::StaleReads => Profile::Crashes,
            Planted::UnsentStores | Planted::UnsentDeletes => Profile::Cluster3,
        }
    }
}

/// What a disk holds that is to be filled.
const DISK_FULL_BYTES: u64 = 96 * MIB;

#[derive(Clone, Debug)]
pub struct BucketPlan {
    pub name: &'static str,
    pub versioned: bool,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub profile: Profile,
    pub planted: Option<Planted>,
    pub nodes: usize,
    /// Of each node.
    pub disks: usize,
    /// How long a client of a cluster waits for an answer before it asks another node.
    pub patience: Option<Duration>,
    pub clients: u32,
    /// Of each client.
    pub operations: u32,
    pub crashes: u32,
    pub keys: Vec<Bytes>,
    pub buckets: Vec<BucketPlan>,
    /// Of ten thousand puts, how many are larger than a chunk.
    pub large_per_myriad: u64,
    /// What each disk may hold.
    pub disk_bytes: u64,
    /// Messages are lost, repeated and late.
    pub is_rough: bool,
    /// How long a node may be down until its copies are made again elsewhere.
    pub lost_after: Duration,
}

impl Plan {
    pub fn draw(random: &dyn Random, planted: Option<Planted>, wanted: Option<Profile>) -> Plan {
        let drawn = Profile::draw(random);
        let profile = wanted.unwrap_or(planted.map_or(drawn, Planted::profile));
        let keys = 3 + random.below(10);
        Plan {
            profile,
            planted,
            nodes: profile.nodes(),
            patience: (profile.nodes() > 1).then(|| Duration::from_secs([3, 12, 40][random.below(3) as usize])),
            disks: match profile {
                Profile::BitRot => 2,
                Profile::Cluster3 | Profile::Cluster5 => 1 + random.below(2) as usize,
                Profile::DiskFull => 1,
                _ => 1 + random.below(3) as usize,
            },
            clients: 2 + random.below(5) as u32,
            operations: 20 + random.below(60) as u32,
            crashes: 1 + random.below(if profile.nodes() > 1 { 10 } else { 6 }) as u32,
            // Some in folders, some not; no key is the beginning of another.
            keys: (0..keys).map(|i| Bytes::from(format!("{}{i:02}", ["", "a/", "b/c/"][i as usize % 3]))).collect(),
            buckets: vec![
                BucketPlan { name: "plain", versioned: false },
                BucketPlan { name: "versions", versioned: true },
            ],
            large_per_myriad: [0, 100, 400][random.below(3) as usize],
            is_rough: false,
            lost_after: Duration::from_secs(if profile.nodes() > 1 { [6, 600][random.below(2) as usize] } else { 600 }),
            disk_bytes: if profile == Profile::DiskFull { DISK_FULL_BYTES } else { 16 << 30 },
        }
    }

    /// Sizes and times so small that flushes, trimming, compaction and recycling happen all the time.
    pub fn tuning(&self) -> Tuning {
        Tuning {
            engine: EngineOptions {
                volume_size_bytes: Some(6 * MIB),
                ahead_bytes: 256 * KIB,
                scrub_interval_s: 2,
                ..EngineOptions::default()
            },
            key_value: KvOptions {
                cache_bytes: MIB as usize,
                block_bytes: 1 << 10,
                run_bytes: 64 * KIB,
                l0_runs: 2,
                l0_runs_max: 6,
                level1_bytes: 128 * KIB,
                level_ratio: 4,
                ..KvOptions::default()
            },
            flush_bytes: 4 * KIB,
            garbage_grace: Duration::from_millis(300),
            lifecycle: LifecyclePace { interval: Duration::from_secs(2), ..LifecyclePace::default() },
            healing: Healing {
                lost_after: self.lost_after,
                compare_interval: Duration::from_millis(400),
                missing_after: Duration::from_millis(1500),
                sweep_interval: Duration::from_secs(4),
            },
        }
    }

    /// Sizes around every border: nothing, inline, small chunk, large chunk, several chunks.
    pub fn draw_size(&self, random: &dyn Random) -> u64 {
        if random.below(10_000) < self.large_per_myriad {
            return [4 * MIB, 4 * MIB + 1, 5 * MIB, 9 * MIB][random.below(4) as usize] - random.below(2);
        }
        match random.below(20) {
            0 => 0,
            1..8 => random.below(KIB + 2),
            8..14 => KIB + random.below(16 * KIB),
            14..18 => 16 * KIB + random.below(100 * KIB),
            18 => 256 * KIB - 2 + random.below(5),
            _ => 256 * KIB + random.below(512 * KIB),
        }
    }
}
