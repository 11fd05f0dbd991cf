//! What a run is made of, drawn from its seed.

use base::env::{Random, RandomExt};
use base::ids::NodeId;
use base::plant::Plant;
use base::{KIB, MIB};
use bytes::Bytes;
use meta::group::FEATURE_LEVEL;
use node::{Healing, LifecyclePace, Tuning};
use std::time::Duration;
use store::EngineOptions;
use store::kv::KvOptions;

use crate::upgrade::LEVEL_BEFORE;

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
    /// Long lives of many small objects and many restarts: volumes are compacted, merged and recycled.
    Wear,
    /// Three nodes, with all that may happen to nodes, their disks and the network between them.
    Cluster3,
    /// Five nodes.
    Cluster5,
    /// Three or five nodes, and nothing happens to them; or of three, two are destroyed at once and the third goes on.
    Calm,
    /// Three nodes become six, of which then two are emptied and go.
    Growth,
    /// A node comes back without its log while another has not caught up and the third is down.
    LostLog,
    /// Leaders of different groups do not reach each other.
    Apart,
    /// Two of three nodes are destroyed at once, while the third is slow or has only just come back; it goes on alone.
    Disaster,
    /// A node is paused until others have taken its place, and wakes up with old requests.
    Zombie,
    /// One vote, and two elections that ask for it around a power cut.
    Ballot,
    /// A leader that nobody reaches gathers entries which others' replace, and loses its power.
    Stranded,
    /// A node that is brought up to date loses its power again and again in the middle of it.
    Behind,
    /// Many writes are under way when a node stops hearing, messages are lost, or a leader goes.
    Surge,
    /// Three nodes are replaced by three new ones, while some know only old maps.
    Renewal,
    /// The same while a gateway does not hear of it, and writes to disks that hold nothing any more.
    Overtaken,
    /// A node is away while what it holds is deleted, and until the others have rewritten their disks.
    Absence,
    /// All data goes from old nodes to new ones when one of the old comes back, which has missed deletions.
    Handover,
    /// Five nodes, two of which are destroyed: of some chunks one copy is left, of others two.
    Twofold,
    /// Three nodes, and each kind of trouble twice, one after the other and most of them short, in an order of the seed's.
    Storm,
    /// Three nodes, and clients that take locks; in no mixture, but on demand.
    Fences,
    /// Three nodes go over to the next version in turn; in no mixture, but on demand.
    Upgrade,
}

impl Profile {
    pub const ALL: [Profile; 26] = [
        Profile::Crashes,
        Profile::FlushErrors,
        Profile::BitRot,
        Profile::MetadataRot,
        Profile::DiskFull,
        Profile::Wear,
        Profile::Cluster3,
        Profile::Cluster5,
        Profile::Calm,
        Profile::Growth,
        Profile::LostLog,
        Profile::Apart,
        Profile::Disaster,
        Profile::Zombie,
        Profile::Ballot,
        Profile::Stranded,
        Profile::Behind,
        Profile::Surge,
        Profile::Renewal,
        Profile::Overtaken,
        Profile::Absence,
        Profile::Handover,
        Profile::Twofold,
        Profile::Storm,
        Profile::Fences,
        Profile::Upgrade,
    ];

    fn draw(random: &dyn Random) -> Profile {
        match random.below(100) {
            // Where each kind of fault strikes; the others tell what chance would not.
            0..60 => Profile::Storm,
            60..65 => Profile::Crashes,
            65..66 => Profile::Wear,
            66..69 => Profile::FlushErrors,
            69..73 => Profile::BitRot,
            73..75 => Profile::MetadataRot,
            75..77 => Profile::DiskFull,
            77..80 => Profile::Cluster3,
            80..81 => Profile::Handover,
            81..82 => Profile::Cluster5,
            82..83 => Profile::Twofold,
            83..84 => Profile::Calm,
            84..85 => Profile::Absence,
            85..86 => Profile::Growth,
            86..88 => Profile::LostLog,
            88..89 => Profile::Apart,
            89..91 => Profile::Disaster,
            91..92 => Profile::Zombie,
            92..94 => Profile::Ballot,
            94..95 => Profile::Stranded,
            95..96 => Profile::Behind,
            96..98 => Profile::Surge,
            98..99 => Profile::Renewal,
            _ => Profile::Overtaken,
        }
    }

    /// As the command line has it.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Those whose story is told in a quiet network have none that loses and repeats.
    pub fn may_be_rough(self) -> bool {
        !matches!(self, Profile::Calm | Profile::LostLog | Profile::Disaster)
            && (!self.is_story() || self == Profile::Storm)
    }

    /// A story that waits for its moment: clients go on until it has been told.
    pub fn is_story(self) -> bool {
        matches!(
            self,
            Profile::Apart
                | Profile::Zombie
                | Profile::Ballot
                | Profile::Stranded
                | Profile::Behind
                | Profile::Surge
                | Profile::Renewal
                | Profile::Overtaken
                | Profile::Absence
                | Profile::Handover
                | Profile::Twofold
                | Profile::Storm
                | Profile::Upgrade
        )
    }

    /// Where each node stands. Three zones, so that each copy can have its own, also where nodes come and go.
    pub fn locality(self, node: NodeId) -> String {
        match self {
            Profile::Growth => format!("zone={}", node.0 % 3),
            _ => String::new(),
        }
    }

    pub fn nodes(self) -> usize {
        match self {
            Profile::Cluster3
            | Profile::Calm
            | Profile::Growth
            | Profile::LostLog
            | Profile::Apart
            | Profile::Disaster
            | Profile::Zombie
            | Profile::Ballot
            | Profile::Stranded
            | Profile::Behind
            | Profile::Surge
            | Profile::Renewal
            | Profile::Overtaken
            | Profile::Absence
            | Profile::Handover
            | Profile::Storm
            | Profile::Fences
            | Profile::Upgrade => 3,
            Profile::Cluster5 | Profile::Twofold => 5,
            Profile::Crashes
            | Profile::FlushErrors
            | Profile::BitRot
            | Profile::MetadataRot
            | Profile::Wear
            | Profile::DiskFull => 1,
        }
    }
}

/// Where a planted defect does harm: the kind of run that looks for it.
pub fn hunting_ground(plant: Plant) -> Profile {
    match plant {
        Plant::SkipFlush
        | Plant::SkipBulkFlush
        | Plant::SkipDirectoryFlush
        | Plant::SkipRecoveredFlush
        | Plant::AckBeforeLocator
        | Plant::ReuseIncarnation
        | Plant::TrimBeyondFlush
        | Plant::SkipRunFlush
        | Plant::SameGeneration
        | Plant::StaleVersioning
        | Plant::SkipFreeze
        | Plant::KeepUpload
        | Plant::ReuseChunkId => Profile::Crashes,
        Plant::DropTombstone => Profile::Wear,
        Plant::RetryFlush => Profile::FlushErrors,
        Plant::CutDamage => Profile::MetadataRot,
        Plant::IgnoreChecksum => Profile::BitRot,
        Plant::UnsentStores | Plant::UnsentDeletes => Profile::Calm,
        Plant::AckAtMajority | Plant::StoreAtMajority | Plant::ClaimHealth => Profile::Disaster,
        Plant::VoteAfterLoss => Profile::LostLog,
        Plant::OpenEarly | Plant::DrainEarly | Plant::ShareZone => Profile::Growth,
        Plant::EvictBlindly | Plant::InventoryEarly | Plant::ShareNode => Profile::Renewal,
        Plant::StaleEpoch => Profile::Overtaken,
        Plant::ForgetTombstone => Profile::Absence,
        Plant::ForgetInMove => Profile::Handover,
        Plant::RepairBackwards => Profile::Twofold,
        Plant::SweepBeforeClose | Plant::ForgetFloor => Profile::Apart,
        Plant::ReadWithoutIndex | Plant::StaleGeneration => Profile::Zombie,
        Plant::VoteBeforeFlush => Profile::Ballot,
        Plant::ResurrectBehindCut => Profile::Stranded,
        Plant::InstallUnmarked => Profile::Behind,
        Plant::DeleteEarly | Plant::ForgetReply | Plant::AckBeforeFlush => Profile::Surge,
        Plant::IgnoreFence => Profile::Fences,
        Plant::AckBeforeQuorum
        | Plant::ForgetVote
        | Plant::ListStale
        | Plant::RetryTwice
        | Plant::ResurrectDeleted
        | Plant::DecideStale
        | Plant::DropRepair => Profile::Cluster3,
    }
}

fn buckets(profile: Profile) -> Vec<BucketPlan> {
    let plan = |name, versioned, majority| BucketPlan { name, versioned, majority };
    let mut buckets = vec![plan("plain", false, false), plan("versions", true, false)];
    // Two nodes that are destroyed at once may take with them what a majority has acknowledged.
    if profile.nodes() > 1 && !matches!(profile, Profile::Calm | Profile::Disaster | Profile::Twofold) {
        // Where versions stay, what was lost is not hidden by what was written over it.
        buckets.push(plan("quick", matches!(profile, Profile::Renewal | Profile::Overtaken), true));
    }
    buckets
}

/// Fewer placement groups cost less time to compare, where much else is to happen.
const STORM_PG_BITS: u8 = 5;
/// Where a spoilt disk may forget what was deleted, sessions are closed within the story.
const STORM_RENEWAL: Duration = Duration::from_secs(20);
/// Memory for chunks of nodes that have some: more than some stories fill, and less than others. Chunks of more than 256 KiB
/// are not kept.
const CHUNK_CACHE_BYTES: usize = 2 << 20;
const LARGE_CHUNK_CACHE_BYTES: usize = 1 << 20;
/// What a disk holds that is to be filled.
const DISK_FULL_BYTES: u64 = 96 * MIB;

#[derive(Clone, Debug)]
pub struct BucketPlan {
    pub name: &'static str,
    pub versioned: bool,
    /// Acknowledged by a majority, not by all that are up.
    pub majority: bool,
}

/// What a shorter story of the same seed leaves out.
#[derive(Clone, Default, Debug)]
pub struct Limits {
    pub clients: Option<u32>,
    pub operations: Option<u32>,
    pub troubles: Option<u32>,
    pub buckets: Option<usize>,
    pub keys: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub profile: Profile,
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
    /// Most small chunks are of whole blocks, and lie apart from their headers however few they are.
    pub whole_blocks: bool,
    /// Chunks that were stored or read lately come from memory, or none do.
    pub keeps_chunks: bool,
    /// What each disk may hold.
    pub disk_bytes: u64,
    /// Messages are lost, repeated and late.
    pub is_rough: bool,
    /// How long a node may be down until its copies are made again elsewhere.
    pub lost_after: Duration,
    /// What the nodes know when the story begins.
    pub feature_level: u32,
}

impl Plan {
    pub fn draw(random: &dyn Random, wanted: Option<Profile>) -> Plan {
        let drawn = Profile::draw(random);
        let profile = wanted.unwrap_or(drawn);
        let keys = match profile {
            Profile::Wear => 40,
            Profile::Twofold => 12,
            Profile::Renewal | Profile::Overtaken => 12,
            _ => 3 + random.below(10),
        };
        let mut plan = Plan {
            profile,
            whole_blocks: keys % 4 == 0,
            keeps_chunks: false,
            nodes: match profile {
                Profile::Calm => [3, 5][random.below(2) as usize],
                _ => profile.nodes(),
            },
            patience: (profile.nodes() > 1).then(|| Duration::from_secs([3, 12, 40][random.below(3) as usize])),
            disks: match profile {
                Profile::BitRot | Profile::Disaster | Profile::Twofold | Profile::Storm => 2,
                _ if profile.nodes() > 1 => 1 + random.below(2) as usize,
                Profile::DiskFull | Profile::Wear => 1,
                _ => 1 + random.below(3) as usize,
            },
            clients: 2 + random.below(if profile.is_story() { 2 } else { 5 }) as u32,
            operations: match profile {
                // Until its end.
                _ if profile.is_story() => u32::MAX,
                Profile::Wear => 150,
                Profile::Growth => 120,
                _ => 20 + random.below(60) as u32,
            },
            crashes: match profile {
                Profile::Wear => 24,
                Profile::Renewal | Profile::Overtaken | Profile::Absence | Profile::Upgrade => 1,
                Profile::Handover | Profile::Twofold => 1,
                Profile::Storm => crate::storm::BLOWS as u32,
                _ if profile.is_story() => 1 + random.below(3) as u32,
                _ => 1 + random.below(if profile.nodes() > 1 { 10 } else { 6 }) as u32,
            },
            // Some in folders, some not; no key is the beginning of another.
            keys: (0..keys).map(|i| Bytes::from(format!("{}{i:02}", ["", "a/", "b/c/"][i as usize % 3]))).collect(),
            buckets: buckets(profile),
            large_per_myriad: match (profile, [0, 100, 400][random.below(3) as usize]) {
                (Profile::Wear, _) => 0,
                (Profile::Storm, drawn) => drawn / 10,
                (_, drawn) => drawn,
            },
            is_rough: false,
            lost_after: Duration::from_secs(match profile {
                // Who is away comes back.
                Profile::Absence | Profile::Handover => 600,
                _ if profile.nodes() > 1 => [6, 600][random.below(2) as usize],
                _ => 600,
            }),
            feature_level: if profile == Profile::Upgrade { LEVEL_BEFORE } else { FEATURE_LEVEL },
            disk_bytes: if profile == Profile::DiskFull { DISK_FULL_BYTES } else { 16 << 30 },
        };
        // Of what was drawn already, so that seeds stay what they were.
        plan.keeps_chunks = plan.clients % 2 == 1;
        plan
    }

    /// For the timeline.
    pub fn in_words(&self) -> String {
        let network = if self.is_rough { "a network that loses, repeats and delays" } else { "a quiet network" };
        format!(
            "a story of kind {}: {} nodes with {} disks each, which {}, {network}; {} clients with {} on {} keys in {} \
             buckets; at most {} troubles; lost after {:?}",
            self.profile.name(),
            self.nodes,
            self.disks,
            if self.keeps_chunks { "keep chunks in memory" } else { "read all from disks" },
            self.clients,
            if self.profile.is_story() {
                "as much as comes".into()
            } else {
                format!("{} operations each", self.operations)
            },
            self.keys.len(),
            self.buckets.len(),
            self.crashes,
            self.lost_after
        )
    }

    /// The same with less of everything.
    #[must_use]
    pub fn limited(mut self, limits: &Limits) -> Plan {
        self.clients = self.clients.min(limits.clients.unwrap_or(u32::MAX));
        self.operations = self.operations.min(limits.operations.unwrap_or(u32::MAX));
        self.crashes = self.crashes.min(limits.troubles.unwrap_or(u32::MAX));
        self.buckets.truncate(limits.buckets.unwrap_or(usize::MAX).max(1));
        self.keys.truncate(limits.keys.unwrap_or(usize::MAX).max(1));
        self
    }

    /// Sizes and times so small that flushes, trimming, compaction and recycling happen all the time.
    pub fn tuning(&self) -> Tuning {
        let Tuning { first_pg_bits, key_value, .. } = Tuning::default();
        Tuning {
            fence_agent: None,
            engine: EngineOptions {
                volume_size_bytes: Some(6 * MIB),
                ahead_bytes: 256 * KIB,
                scrub_interval_s: 2,
                cache_bytes: if self.keeps_chunks { CHUNK_CACHE_BYTES } else { 0 },
                large_cache_bytes: if self.keeps_chunks { LARGE_CHUNK_CACHE_BYTES } else { 0 },
                apart_worth: if self.whole_blocks { 0 } else { EngineOptions::default().apart_worth },
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
                ..key_value
            },
            flush_bytes: 4 * KIB,
            garbage_grace: Duration::from_millis(300),
            tail_entries: 8,
            snapshot_page_rows: 24,
            first_pg_bits: if self.profile == Profile::Storm { STORM_PG_BITS } else { first_pg_bits },
            lifecycle: LifecyclePace { interval: Duration::from_secs(2), ..LifecyclePace::default() },
            healing: Healing {
                lost_after: self.lost_after,
                compare_interval: Duration::from_millis(400),
                missing_after: Duration::from_millis(1500),
                sweep_interval: Duration::from_secs(4),
                renew_after: if self.profile == Profile::Storm {
                    STORM_RENEWAL
                } else {
                    Healing::default().renew_after
                },
            },
        }
    }

    /// Sizes around every border: nothing, inline, small chunk, large chunk, several chunks.
    pub fn draw_size(&self, random: &dyn Random) -> u64 {
        if random.below(10_000) < self.large_per_myriad {
            return [4 * MIB, 4 * MIB + 1, 5 * MIB, 9 * MIB][random.below(4) as usize] - random.below(2);
        }
        // In a storm, what happens matters more than how much of it.
        let sizes = if self.profile == Profile::Storm { 100 } else { 20 };
        let size = match random.below(sizes) {
            20..60 => random.below(8 * KIB),
            60.. => KIB + random.below(8 * KIB),
            0 => 0,
            1..8 => random.below(KIB + 2),
            8..14 => KIB + random.below(16 * KIB),
            14..18 => 16 * KIB + random.below(100 * KIB),
            18 => 256 * KIB - 2 + random.below(5),
            _ => 256 * KIB + random.below(512 * KIB),
        };
        let small = KIB + 2..16 * KIB;
        if self.whole_blocks && small.contains(&size) { size.next_multiple_of(4 * KIB) } else { size }
    }
}
