//! Fence tokens: a client that believes to hold a lock, and does not any more, changes nothing.
//!
//! Whoever hands out a lock hands out a token with it, higher for each holder. A write says `KEY:TOKEN`; the shard keeps
//! the highest token that a write to the bucket came with under each key, and refuses lower ones: from the first write of
//! a new holder on, whatever an earlier one still has under way is refused, however late it comes. No clock, no lease.
//! (M. Kleppmann, "How to do distributed locking", 2016.)
//!
//! ```text
//! holder A  token 7 ──PUT──> floor 7      (pauses)                     ──PUT 7──> refused: the floor is 8
//! holder B                                 token 8 ──PUT──> floor 8
//! ```
//!
//! Floors belong to the bucket, not to the object that is written. They never fall unless an operator says so, and go with
//! the bucket.

use base::ids::BucketId;
use base::plant::{self, Plant};
use bytes::Bytes;
use prost::Message;

use super::apply::{Halt, Step, done, refuse};
use super::buckets::bucket_row;
use super::command::{BucketRow, Reason, ResetFence, ShardCommand, ShardOutcome};
use crate::group::read_row;
use crate::keys::{self, Key};
use crate::map::command::ConfigurationKind;
use crate::view::Changes;

/// Bytes of a fence's key.
pub const FENCE_KEY_LEN_MAX: usize = 128;
/// Keys under which a bucket has floors, in one shard.
pub const FENCES_MAX: u32 = 10_000;
/// From this level of a shard on its writes may carry fences; from this level of the map on there are tokens.
pub const FENCE_LEVEL_MIN: u32 = 3;
/// Floors removed by one `DropBucket`.
const DROP_FENCES_MAX: usize = 1000;

/// What a write says of the lock that its sender holds.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Fence {
    /// The name of the lock: 1 to [`FENCE_KEY_LEN_MAX`] bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(uint64, tag = "2")]
    pub token: u64,
}

/// The configuration of kind [`ConfigurationKind::Fence`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct FencePolicy {
    /// What changes objects needs a token.
    #[prost(bool, tag = "1")]
    pub required: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct FenceFloor {
    #[prost(uint64, tag = "1")]
    token: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct FenceCount {
    #[prost(uint32, tag = "1")]
    keys: u32,
}

/// What a command does to a bucket, in the eyes of its fences.
enum Reach {
    /// Objects, or what is about to become one, change.
    Changes(BucketId),
    /// Bytes gather that nobody sees yet.
    Prepares(BucketId),
    /// The cluster's own business.
    Nothing,
}

fn reach_of(command: &ShardCommand) -> Reach {
    let bucket = BucketId;
    match command {
        ShardCommand::PutObject(put) => Reach::Changes(bucket(put.bucket)),
        ShardCommand::DeleteObject(delete) => Reach::Changes(bucket(delete.bucket)),
        ShardCommand::CompleteUpload(complete) => Reach::Changes(bucket(complete.bucket)),
        ShardCommand::AbortUpload(abort) => Reach::Changes(bucket(abort.bucket)),
        ShardCommand::ChangeVersion(change) => Reach::Changes(bucket(change.bucket)),
        ShardCommand::CreateUpload(create) => Reach::Prepares(bucket(create.bucket)),
        ShardCommand::PutPart(put) => Reach::Prepares(bucket(put.bucket)),
        _ => Reach::Nothing,
    }
}

pub(super) fn is_required(row: &BucketRow) -> bool {
    let kind = ConfigurationKind::Fence as i32;
    let found = row.configurations.iter().find(|configuration| configuration.kind == kind);
    // What cannot be read is of a newer version, and asks for more rather than less.
    found.is_some_and(|found| FencePolicy::decode(found.value.clone()).map_or(true, |policy| policy.required))
}

impl Step<'_> {
    /// Refuses a write whose token is too low or missing; notes in `raised` what its token raises. Of buckets that take
    /// no writes the command itself will speak.
    pub(super) fn raise_fence(
        &mut self,
        fence: Option<&Fence>,
        command: Option<&ShardCommand>,
        raised: &mut Changes,
    ) -> Result<(), Halt> {
        let (bucket, changes) = match command.map_or(Reach::Nothing, reach_of) {
            Reach::Changes(bucket) => (bucket, true),
            Reach::Prepares(bucket) => (bucket, false),
            Reach::Nothing if fence.is_some() => return refuse(Reason::Invalid, "this command takes no fence"),
            Reach::Nothing => return Ok(()),
        };
        let Some(fence) = fence else {
            let row = bucket_row(self.view, self.group, bucket)?.filter(|_| changes);
            return match row.is_some_and(|row| is_required(&row)) {
                true => refuse(Reason::FenceRequired, ""),
                false => Ok(()),
            };
        };
        if self.state.feature_level < FENCE_LEVEL_MIN {
            return refuse(Reason::Invalid, "the shard's feature level does not know fences yet");
        }
        if fence.key.is_empty() || fence.key.len() > FENCE_KEY_LEN_MAX {
            return refuse(Reason::Invalid, "the key of a fence has 1 to 128 bytes");
        }
        if bucket_row(self.view, self.group, bucket)?.is_none_or(|row| row.frozen) {
            return Ok(());
        }
        self.raise(bucket, fence, raised)
    }

    fn raise(&mut self, bucket: BucketId, fence: &Fence, raised: &mut Changes) -> Result<(), Halt> {
        let key = Key::FenceFloor { group: self.group, bucket, name: fence.key.clone() };
        let floor = read_row::<FenceFloor>(self.view, &key)?;
        if let Some(floor) = floor.filter(|floor| fence.token < floor.token && !plant::is(Plant::IgnoreFence)) {
            let name = String::from_utf8_lossy(&fence.key);
            return refuse(Reason::StaleFence, format!("{name}: token {} is below {}", fence.token, floor.token));
        }
        if floor.is_none() {
            let key = Key::FenceCount { group: self.group, bucket };
            let count = read_row::<FenceCount>(self.view, &key)?.unwrap_or_default();
            if count.keys >= FENCES_MAX {
                return refuse(Reason::Invalid, format!("the bucket has {FENCES_MAX} fences, the most there may be"));
            }
            raised.put(key.encode(), FenceCount { keys: count.keys + 1 }.encode_to_vec().into());
        }
        if floor.is_none_or(|floor| floor.token < fence.token) {
            raised.put(key.encode(), FenceFloor { token: fence.token }.encode_to_vec().into());
        }
        Ok(())
    }

    /// What an operator says: a floor that somebody has raised out of everybody's reach, or that nobody needs any more.
    pub(super) fn reset_fence(&mut self, reset: &ResetFence) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(reset.bucket);
        if bucket_row(self.view, self.group, bucket)?.is_none() {
            return refuse(Reason::NoSuchBucket, bucket.to_string());
        }
        let key = Key::FenceFloor { group: self.group, bucket, name: reset.key.clone() };
        if read_row::<FenceFloor>(self.view, &key)?.is_none() {
            return Ok(done());
        }
        if let Some(token) = reset.token {
            self.changes.put(key.encode(), FenceFloor { token }.encode_to_vec().into());
            return Ok(done());
        }
        let count_key = Key::FenceCount { group: self.group, bucket };
        let count = read_row::<FenceCount>(self.view, &count_key)?.unwrap_or_default();
        let left = FenceCount { keys: count.keys.saturating_sub(1) };
        self.changes.put(count_key.encode(), left.encode_to_vec().into());
        self.changes.delete(key.encode());
        Ok(done())
    }

    /// Removes floors of a bucket that goes, a bounded number. Answers whether some are left.
    pub(super) fn drop_fences(&mut self, bucket: BucketId) -> Result<bool, Halt> {
        let (from, to) = keys::fence_rows(self.group, bucket);
        let rows = self.view.scan(&from, &to, DROP_FENCES_MAX)?;
        let more = rows.len() == DROP_FENCES_MAX;
        for (key, _) in rows {
            self.changes.delete(key);
        }
        self.changes.delete(Key::FenceCount { group: self.group, bucket }.encode());
        Ok(more)
    }
}
