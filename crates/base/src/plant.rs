//! Defects that can be planted, to see that the simulator finds them.
//!
//! A site in the product asks [`is`], in one line. Without the feature `plant` the answer is the constant `false`, and
//! nothing of the site is left in the binary; only the simulator depends on the feature, and a build without debug
//! assertions refuses it. With it, [`set`] chooses the defect of the present thread, at run time: simulations run one to
//! a thread.

#[cfg(all(feature = "plant", not(debug_assertions)))]
compile_error!("the feature `plant` is for tests: a build without debug assertions cannot have it");

macro_rules! plants {
    ($($(#[doc = $what:literal])+ $plant:ident = $name:literal,)+) => {
        /// What can be planted, each with what goes wrong then.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Plant {
            $($(#[doc = $what])+ $plant,)+
        }

        impl Plant {
            pub const ALL: &[Plant] = &[$(Plant::$plant),+];

            /// As the command line has it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Plant::$plant => $name,)+
                }
            }

            /// What goes wrong.
            pub fn what(self) -> &'static str {
                match self {
                    $(Plant::$plant => concat!($($what),+).trim_ascii_start(),)+
                }
            }
        }
    };
}

plants! {
    /// A batch of the journal is acknowledged without a flush.
    SkipFlush = "skip-flush",
    /// Large payloads are named by their locators without having been flushed.
    SkipBulkFlush = "skip-bulk-flush",
    /// The name of a new volume is not made durable.
    SkipDirectoryFlush = "skip-directory-flush",
    /// What recovery has read from the page cache is not flushed before the node goes on from it.
    SkipRecoveredFlush = "skip-recovered-flush",
    /// A failed flush is tried again, and its success is believed.
    RetryFlush = "retry-flush",
    /// A large chunk is acknowledged before its locator is flushed.
    AckBeforeLocator = "ack-before-locator",
    /// A damaged journal is cut as if its end were torn.
    CutDamage = "cut-damage",
    /// Entries of a log that a later one cut off come back at the next start.
    ResurrectBehindCut = "resurrect-behind-cut",
    /// A recycled volume keeps its incarnation, so that its old records verify.
    ReuseIncarnation = "reuse-incarnation",
    /// The checksums of a chunk's blocks are not compared.
    IgnoreChecksum = "ignore-checksum",
    /// Compaction drops tombstones whose chunks other volumes still hold.
    DropTombstone = "drop-tombstone",
    /// The log is trimmed beyond what the key-value store has flushed.
    TrimBeyondFlush = "trim-beyond-flush",
    /// The manifest of the key-value store names runs that are not flushed.
    SkipRunFlush = "skip-run-flush",
    /// A snapshot replaces a state without a mark that says so, before or after.
    InstallUnmarked = "install-unmarked",
    /// A leader takes for committed what it alone holds.
    AckBeforeQuorum = "ack-before-quorum",
    /// A follower acknowledges entries before they are flushed.
    AckBeforeFlush = "ack-before-flush",
    /// A vote is sent before it is flushed.
    VoteBeforeFlush = "vote-before-flush",
    /// Terms and votes are not written down.
    ForgetVote = "forget-vote",
    /// A peer that has lost its log votes again under the same id.
    VoteAfterLoss = "vote-after-loss",
    /// A leader answers reads without asking whether it still leads.
    ReadWithoutIndex = "read-without-index",
    /// Any replica answers listings, from whatever it has applied.
    ListStale = "list-stale",
    /// Metadata is acknowledged when a majority has it, where all that are up were promised.
    AckAtMajority = "ack-at-majority",
    /// Chunks are acknowledged when a majority has them, where all that are up were promised.
    StoreAtMajority = "store-at-majority",
    /// Chunks are reported stored by other nodes and never sent to them.
    UnsentStores = "unsent-stores",
    /// Chunks are reported deleted by other nodes, which are never told.
    UnsentDeletes = "unsent-deletes",
    /// A disk takes chunks that were placed under an older epoch of their group.
    StaleEpoch = "stale-epoch",
    /// Commands of a fenced generation are executed.
    StaleGeneration = "stale-generation",
    /// A node starts under the generation of its life before.
    SameGeneration = "same-generation",
    /// Closing a session leaves no trace in the shard.
    ForgetFloor = "forget-floor",
    /// A command that is sent again is executed again.
    RetryTwice = "retry-twice",
    /// The reply to a conditional PUT is forgotten: sent again, it meets its own first execution.
    ForgetReply = "forget-reply",
    /// A chunk id is used for several chunks.
    ReuseChunkId = "reuse-chunk-id",
    /// A PUT whose outcome is unknown has its chunks deleted, although it may be executed yet.
    DeleteEarly = "delete-early",
    /// Orphans are swept before the sessions that may still commit them are closed.
    SweepBeforeClose = "sweep-before-close",
    /// Of eight chunks that a disk lacks, one is reported pulled and is not.
    DropRepair = "drop-repair",
    /// A placement group counts as healthy whatever its comparison has shown.
    ClaimHealth = "claim-health",
    /// A disk that is to leave a placement group lets go of its chunks at once, without asking who holds them.
    EvictBlindly = "evict-blindly",
    /// An inventory is answered before its disk's node has adopted the epoch that it is asked for.
    InventoryEarly = "inventory-early",
    /// A placement group opens before its new members have united what the old ones hold.
    OpenEarly = "open-early",
    /// A write goes by the versioning that its bucket had first.
    StaleVersioning = "stale-versioning",
    /// A bucket is deleted without having been frozen.
    SkipFreeze = "skip-freeze",
    /// A completed upload can still be aborted, and its parts go.
    KeepUpload = "keep-upload",
    /// A chunk that another member has deleted is taken for one that it lacks.
    ResurrectDeleted = "resurrect-deleted",
    /// A tombstone is forgotten although a member that may lack it is away.
    ForgetTombstone = "forget-tombstone",
    /// A node that is emptied counts as empty while placement groups still name its disks.
    DrainEarly = "drain-early",
    /// A write whose fence token is too low is executed.
    IgnoreFence = "ignore-fence",
    /// What is repaired first is what has the most copies left.
    RepairBackwards = "repair-backwards",
    /// Two copies of a placement group may be in one zone, although there is one for each.
    ShareZone = "share-zone",
    /// Two copies of a placement group may be on one node.
    ShareNode = "share-node",
    /// What the leader of the map decides is carried out seconds later, whatever the map has become.
    DecideStale = "decide-stale",
    /// Who takes over a placement group ignores what its members before have deleted.
    ForgetInMove = "forget-in-move",
}

impl Plant {
    pub fn from_name(name: &str) -> Option<Plant> {
        Plant::ALL.iter().copied().find(|plant| plant.name() == name)
    }
}

/// Whether `plant` is what this thread is to do wrong.
#[cfg(not(feature = "plant"))]
#[inline(always)]
pub const fn is(_plant: Plant) -> bool {
    false
}

#[cfg(feature = "plant")]
pub use planted::{is, reached, set};

#[cfg(feature = "plant")]
mod planted {
    use super::Plant;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Plant>> = const { Cell::new(None) };
        static REACHED: Cell<u64> = const { Cell::new(0) };
    }

    /// Whether `plant` is what this thread is to do wrong. Counts how often it is.
    pub fn is(plant: Plant) -> bool {
        let is_planted = PLANTED.get() == Some(plant);
        if is_planted {
            REACHED.set(REACHED.get() + 1);
        }
        is_planted
    }

    /// From now on this thread does that wrong.
    pub fn set(plant: Option<Plant>) {
        PLANTED.set(plant);
        REACHED.set(0);
    }

    /// How often the defect's sites were passed since it was planted.
    pub fn reached() -> u64 {
        REACHED.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_back() {
        for plant in Plant::ALL {
            assert_eq!(Plant::from_name(plant.name()), Some(*plant));
            assert!(plant.what().ends_with('.'));
        }
    }
}
