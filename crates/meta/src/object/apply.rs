//! One entry of a shard's log: who may do it, whether it was done before, what it changes, what is answered.

use base::ids::{BucketId, FeatureLevel, Generation, GroupId, LogIndex, NodeId, Session};
use base::plant::{self, Plant};
use bytes::Bytes;
use prost::Message;

use super::command::{
    Attributes, Body, CloseSession, Done, InitShard, Reason, Refused, RetireGarbage, ShardCommand, ShardEntry,
    ShardOutcome, ShardReply,
};
use super::fence::FENCE_LEVEL_MIN;
use super::garbage::Dropped;
use super::transition::POOLS_LEVEL_MIN;
use super::usage::Account;
use super::{ATTRIBUTES_LEN_MAX, CHUNKS_MAX, ETAG_LEN_MAX, INLINE_BYTES_MAX, RETIRE_MAX};
use crate::chunks::{self, ChunkRef};
use crate::group::{self, FEATURE_LEVEL, GroupState};
use crate::keys::{Key, OBJECT_KEY_LEN_MAX};
use crate::slots::{self, Standing};
use crate::view::{Changes, View, ViewError};

/// Applies the entry at `index` of the log of `group`. Pure: the same view and entry give the same changes and reply. A
/// refused command changes nothing but its slot and the floor of its fence. An error means that this replica cannot go
/// on; nothing is changed.
pub fn apply(
    view: &dyn View,
    group: GroupId,
    index: LogIndex,
    entry: ShardEntry,
) -> Result<(Changes, ShardReply), ViewError> {
    let slot = entry.slot;
    match slots::standing(view, group, slot.as_ref())? {
        Standing::Fresh => {}
        Standing::Repeat(_) if is_conditional(&entry) && plant::is(Plant::ForgetReply) => {}
        Standing::Repeat(reply) => return Ok((Changes::default(), reply)),
        Standing::Fenced => return Ok(unrecorded(Reason::StaleSequence, "a later command was executed in this slot")),
        Standing::Closed => return Ok(unrecorded(Reason::SessionClosed, "the session is below the floor")),
        Standing::Invalid => return Ok(unrecorded(Reason::Invalid, "slots are 0..256, sequences start at 1")),
    }
    let state = group::load(view, group)?;
    if !state.is_supported() {
        return Err(group::newer(state.feature_level));
    }
    if entry.range_epoch != 0 && entry.range_epoch != state.range_epoch {
        return Ok(unrecorded(Reason::WrongRange, "the range has another epoch"));
    }
    let mut step = Step {
        view,
        group,
        index,
        state,
        changes: Changes::default(),
        dropped: Dropped::default(),
        account: Account::default(),
    };
    let mut raised = Changes::default();
    let fenced = step.raise_fence(entry.fence.as_ref(), entry.command.as_ref(), &mut raised);
    let result = fenced.and_then(|()| step.execute(entry.command));
    let (mut changes, outcome) = match result {
        Ok(outcome) => (step.finish(), outcome),
        // The sender asks another shard, and may come back with the same sequence: nothing was executed, and the epoch
        // it believed in never comes back.
        Err(Halt::Refused(Reason::WrongRange, detail)) => return Ok(unrecorded(Reason::WrongRange, &detail)),
        Err(Halt::Refused(reason, detail)) => (Changes::default(), refused(reason, detail)),
        Err(Halt::View(error)) => return Err(error),
    };
    // A token that was seen is seen, whatever became of its write.
    changes.0.extend(raised.0);
    let reply = ShardReply { outcome: Some(outcome) };
    slots::record(&mut changes, group, slot.as_ref(), &reply);
    Ok((changes, reply))
}

fn is_conditional(entry: &ShardEntry) -> bool {
    matches!(&entry.command, Some(ShardCommand::PutObject(put)) if put.precondition.is_some())
}

/// Why a command stops: an answer, or rows that cannot be read.
#[derive(Debug)]
pub(super) enum Halt {
    Refused(Reason, String),
    View(ViewError),
}

impl From<ViewError> for Halt {
    fn from(error: ViewError) -> Halt {
        Halt::View(error)
    }
}

pub(super) fn refuse<T>(reason: Reason, detail: impl Into<String>) -> Result<T, Halt> {
    Err(Halt::Refused(reason, detail.into()))
}

fn refused(reason: Reason, detail: String) -> ShardOutcome {
    ShardOutcome::Refused(Refused { reason: reason as i32, detail })
}

fn unrecorded(reason: Reason, detail: &str) -> (Changes, ShardReply) {
    (Changes::default(), ShardReply { outcome: Some(refused(reason, detail.to_owned())) })
}

/// One command on its way through the state machine.
pub(super) struct Step<'v> {
    pub view: &'v dyn View,
    pub group: GroupId,
    pub index: LogIndex,
    pub state: GroupState,
    pub changes: Changes,
    pub dropped: Dropped,
    pub account: Account,
}

impl Step<'_> {
    fn execute(&mut self, command: Option<ShardCommand>) -> Result<ShardOutcome, Halt> {
        let Some(command) = command else {
            return refuse(Reason::Invalid, group::NOT_YET);
        };
        if let ShardCommand::InitShard(init) = command {
            return self.init_shard(init);
        }
        if self.state.feature_level == 0 {
            return refuse(Reason::WrongRange, "the shard has not been initialised");
        }
        if FeatureLevel(self.state.feature_level) < level_of(&command) {
            return refuse(Reason::Invalid, group::NOT_YET);
        }
        match command {
            ShardCommand::InitShard(_) => unreachable!("handled above"),
            ShardCommand::SetBucket(row) => self.set_bucket(row),
            ShardCommand::FreezeBucket(bucket) => self.freeze_bucket(BucketId(bucket.bucket)),
            ShardCommand::DropBucket(bucket) => self.drop_bucket(BucketId(bucket.bucket)),
            ShardCommand::PutObject(put) => self.put_object(put),
            ShardCommand::DeleteObject(delete) => self.delete_object(delete),
            ShardCommand::CreateUpload(create) => self.create_upload(create),
            ShardCommand::PutPart(put) => self.put_part(put),
            ShardCommand::CompleteUpload(complete) => self.complete_upload(complete),
            ShardCommand::AbortUpload(abort) => self.abort_upload(abort),
            ShardCommand::RetireGarbage(retire) => self.retire_garbage(retire),
            ShardCommand::CloseSession(close) => self.close_session(close),
            ShardCommand::SetFeatureLevel(set) => self.set_feature_level(set.level),
            ShardCommand::ChangeVersion(change) => self.change_version(change),
            ShardCommand::Expire(expire) => self.expire(expire),
            ShardCommand::CountUsage(count) => self.count_usage(count),
            ShardCommand::ResetFence(reset) => self.reset_fence(&reset),
            ShardCommand::MoveBody(moved) => self.move_body(moved),
        }
    }

    fn finish(mut self) -> Changes {
        self.dropped.finish(self.group, self.index, &mut self.changes);
        self.changes
    }

    fn init_shard(&mut self, init: InitShard) -> Result<ShardOutcome, Halt> {
        let state = &mut self.state;
        if state.feature_level > 0 {
            let same = state.range_start == init.range_start
                && state.range_end == init.range_end
                && state.range_epoch == init.range_epoch;
            return if same {
                Ok(done())
            } else {
                refuse(Reason::Invalid, "the shard has been initialised with another range")
            };
        }
        if init.feature_level == 0 || init.feature_level > FEATURE_LEVEL {
            return refuse(Reason::Invalid, format!("feature level {} is not known", init.feature_level));
        }
        if !init.range_end.is_empty() && init.range_end <= init.range_start {
            return refuse(Reason::Invalid, "the range is empty");
        }
        if init.order_base > ORDER_BASE_MAX {
            return refuse(Reason::Invalid, "the order base is too high");
        }
        state.feature_level = init.feature_level;
        state.range_start = init.range_start;
        state.range_end = init.range_end;
        state.range_epoch = init.range_epoch;
        state.order_base = init.order_base;
        self.put_state();
        Ok(done())
    }

    fn set_feature_level(&mut self, level: u32) -> Result<ShardOutcome, Halt> {
        if level > FEATURE_LEVEL {
            return Err(group::newer(level).into());
        }
        if level > self.state.feature_level {
            self.state.feature_level = level;
            self.put_state();
        }
        Ok(done())
    }

    fn put_state(&mut self) {
        self.changes.0.push(group::put_state(self.group, &self.state));
    }

    fn retire_garbage(&mut self, retire: RetireGarbage) -> Result<ShardOutcome, Halt> {
        if retire.sequences.len() > RETIRE_MAX {
            return refuse(Reason::Invalid, format!("more than {RETIRE_MAX} garbage rows"));
        }
        for sequence in retire.sequences {
            self.changes.delete(Key::Garbage { group: self.group, sequence }.encode());
        }
        Ok(done())
    }

    fn close_session(&mut self, close: CloseSession) -> Result<ShardOutcome, Halt> {
        let (node, floor) = (NodeId(close.node), Generation(close.floor));
        let more = slots::close(self.view, self.group, node, floor, &mut self.changes)?;
        Ok(ShardOutcome::Done(Done { more }))
    }

    /// The order of a version written now. Rises with the log, so that it is fresh and above every earlier one.
    pub fn fresh_order(&self) -> u64 {
        self.state.order_base + self.index.0
    }

    /// Refuses keys that no object can have and keys of other shards.
    pub fn check_key(&self, bucket: BucketId, key: &Bytes) -> Result<(), Halt> {
        if key.is_empty() || key.len() > OBJECT_KEY_LEN_MAX {
            return refuse(Reason::Invalid, "object keys have 1 to 1024 bytes");
        }
        if !self.state.owns(bucket, key) {
            return refuse(Reason::WrongRange, "the key is not in this shard's range");
        }
        Ok(())
    }

    /// Checks that a body is whole and that nobody has given up its chunks. A session below its node's floor may have
    /// had its uncommitted chunks swept: what it stored may not be committed any more, by whomever.
    pub fn check_body(&self, body: Option<Body>) -> Result<Body, Halt> {
        let Some(body) = body else {
            return refuse(Reason::Invalid, "a body is missing");
        };
        if !body.upload.is_empty() || !body.parts.is_empty() {
            return refuse(Reason::Invalid, "only CompleteUpload makes bodies of parts");
        }
        if let Some(inline) = &body.inline {
            if inline.len() > INLINE_BYTES_MAX || inline.len() as u64 != body.size || !body.chunks.is_empty() {
                return refuse(Reason::Invalid, "an inline body is too long or not of its size");
            }
            return Ok(body);
        }
        if body.chunks.len() > CHUNKS_MAX * ChunkRef::LEN {
            return refuse(Reason::Invalid, format!("more than {CHUNKS_MAX} chunks"));
        }
        let Ok(chunks) = chunks::unpack(&body.chunks) else {
            return refuse(Reason::Invalid, "chunk references are cut short");
        };
        if chunks.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>() != body.size {
            return refuse(Reason::Invalid, "the chunks do not add up to the size");
        }
        let mut checked: Option<Session> = None;
        for chunk in &chunks {
            if checked == Some(chunk.id.session) {
                continue;
            }
            if slots::is_closed(self.view, self.group, chunk.id.session)? {
                return refuse(Reason::SessionClosed, format!("chunk {} is of a closed session", chunk.id));
            }
            checked = Some(chunk.id.session);
        }
        Ok(body)
    }
}

/// Leaves room for every log index above it.
const ORDER_BASE_MAX: u64 = 1 << 62;

/// The lowest feature level at which a shard follows a command, with what it carries: an older version would keep a row without
/// the fields that it does not know.
fn level_of(command: &ShardCommand) -> FeatureLevel {
    let names_pool = |attributes: &Option<Attributes>| attributes.as_ref().is_some_and(|held| held.pool != 0);
    match command {
        ShardCommand::PutObject(put) if names_pool(&put.attributes) => FeatureLevel(POOLS_LEVEL_MIN),
        ShardCommand::CreateUpload(create) if names_pool(&create.attributes) => FeatureLevel(POOLS_LEVEL_MIN),
        ShardCommand::InitShard(_)
        | ShardCommand::SetBucket(_)
        | ShardCommand::FreezeBucket(_)
        | ShardCommand::DropBucket(_)
        | ShardCommand::PutObject(_)
        | ShardCommand::DeleteObject(_)
        | ShardCommand::CreateUpload(_)
        | ShardCommand::PutPart(_)
        | ShardCommand::CompleteUpload(_)
        | ShardCommand::AbortUpload(_)
        | ShardCommand::RetireGarbage(_)
        | ShardCommand::CloseSession(_)
        | ShardCommand::SetFeatureLevel(_) => FeatureLevel(1),
        ShardCommand::ChangeVersion(_) | ShardCommand::Expire(_) | ShardCommand::CountUsage(_) => FeatureLevel(2),
        ShardCommand::ResetFence(_) => FeatureLevel(FENCE_LEVEL_MIN),
        ShardCommand::MoveBody(_) => FeatureLevel(POOLS_LEVEL_MIN),
    }
}

pub(super) fn done() -> ShardOutcome {
    ShardOutcome::Done(Done { more: false })
}

pub(super) fn check_attributes(attributes: &Attributes) -> Result<(), Halt> {
    check_etag(&attributes.etag)?;
    if attributes.encoded_len() > ATTRIBUTES_LEN_MAX {
        return refuse(Reason::Invalid, format!("attributes are longer than {ATTRIBUTES_LEN_MAX} bytes"));
    }
    Ok(())
}

/// ETags go into replies, which the slot table keeps: they are short.
pub(super) fn check_etag(etag: &str) -> Result<(), Halt> {
    if etag.len() > ETAG_LEN_MAX {
        return refuse(Reason::Invalid, format!("an ETag is longer than {ETAG_LEN_MAX} bytes"));
    }
    Ok(())
}

/// A 16-byte id that a gateway drew at random.
pub(super) fn random_id(raw: &[u8]) -> Result<u128, Halt> {
    match <[u8; 16]>::try_from(raw) {
        Ok(id) => Ok(u128::from_be_bytes(id)),
        Err(_) => refuse(Reason::Invalid, "an id does not have 16 bytes"),
    }
}
