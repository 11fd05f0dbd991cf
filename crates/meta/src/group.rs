//! What every group keeps about itself, in one row that the driver writes once per batch of log entries.

use base::ids::{BucketId, GROUP_ZERO, GroupId, LogIndex, Term};
use bytes::Bytes;
use prost::Message;

use crate::keys::{self, Key, Space};
use crate::view::{Change, View, ViewError};

/// The highest level of behaviour that this binary knows. A group's own level, not this number, decides what apply
/// does; a binary that is older than a group's level must not serve it.
pub const FEATURE_LEVEL: u32 = 5;

/// What a version that does not know a command and one that knows it at a higher level say alike: replies are part of
/// the replicated state.
pub(crate) const NOT_YET: &str = "the feature level does not know this command yet: a node runs an older henge";

/// A replica that newer versions have gone on with: it must not apply what it understands otherwise than they do.
pub(crate) fn newer(level: u32) -> ViewError {
    ViewError::Io(format!("it is at feature level {level}, this henge knows {FEATURE_LEVEL}: start a newer henge"))
}

/// The row of a group. Written in the same transaction as the changes of the entries up to `applied_index`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GroupState {
    #[prost(uint64, tag = "1")]
    pub applied_index: u64,
    #[prost(uint64, tag = "2")]
    pub applied_term: u64,
    /// The Raft configuration as of `applied_index`, in the driver's own encoding.
    #[prost(bytes = "bytes", tag = "3")]
    pub conf_state: Bytes,
    /// 0: the shard has not been initialised.
    #[prost(uint32, tag = "4")]
    pub feature_level: u32,
    #[prost(bytes = "bytes", tag = "5")]
    pub range_start: Bytes,
    /// Exclusive; empty: unbounded.
    #[prost(bytes = "bytes", tag = "6")]
    pub range_end: Bytes,
    #[prost(uint64, tag = "7")]
    pub range_epoch: u64,
    /// See [`crate::object::command::InitShard::order_base`].
    #[prost(uint64, tag = "8")]
    pub order_base: u64,
    /// How far the installation of a snapshot has come.
    #[prost(enumeration = "Install", tag = "9")]
    pub install: i32,
}

/// Whether the rows of a group are its state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Install {
    Whole = 0,
    /// The rows are being replaced: they mean nothing.
    Incomplete = 1,
    /// The rows are a snapshot's. The log may still be the one from before: unless it holds the applied entry, it
    /// begins anew after it.
    LogDue = 2,
}

impl GroupState {
    /// Whether the shard owns this key.
    pub fn owns(&self, bucket: BucketId, key: &[u8]) -> bool {
        let point = keys::range_point(bucket, key);
        self.feature_level > 0 && point >= self.range_start && (self.range_end.is_empty() || point < self.range_end)
    }

    /// Whether this binary knows how to apply the group's log.
    pub fn is_supported(&self) -> bool {
        self.feature_level <= FEATURE_LEVEL
    }
}

/// The group's row; all zero when there is none yet.
pub fn load(view: &dyn View, group: GroupId) -> Result<GroupState, ViewError> {
    let key = Key::GroupState { group }.encode();
    decode_row(&key, view.get(&key)?).map(Option::unwrap_or_default)
}

/// The change that records that everything up to `applied` is in the view. The driver calls it once per batch, on the
/// overlay that holds the batch's changes, and commits it with them.
pub fn advance(
    view: &dyn View,
    group: GroupId,
    applied: LogIndex,
    term: Term,
    conf_state: Bytes,
) -> Result<Change, ViewError> {
    let mut state = load(view, group)?;
    assert!(state.applied_index <= applied.0, "the applied index never falls");
    state.applied_index = applied.0;
    state.applied_term = term.0;
    state.conf_state = conf_state;
    state.install = Install::Whole as i32;
    Ok(put_state(group, &state))
}

/// The change that notes how far the installation of a snapshot has come.
pub fn mark(group: GroupId, state: &GroupState, install: Install) -> Change {
    put_state(group, &GroupState { install: install as i32, ..state.clone() })
}

/// Where the group's row is kept.
pub fn state_key(group: GroupId) -> Bytes {
    Key::GroupState { group }.encode()
}

/// The row as a snapshot carries it beside the rows.
pub fn encode(state: &GroupState) -> Bytes {
    Bytes::from(state.encode_to_vec())
}

pub fn decode(raw: &Bytes) -> Result<GroupState, String> {
    GroupState::decode(raw.clone()).map_err(|error| format!("the row of the group is malformed: {error}"))
}

pub(crate) fn put_state(group: GroupId, state: &GroupState) -> Change {
    Change::Put { key: Key::GroupState { group }.encode(), value: Bytes::from(state.encode_to_vec()) }
}

/// All rows that are the group's state, as ranges of keys in order: what a snapshot carries, and what it replaces.
pub fn row_ranges(group: GroupId, state: &GroupState) -> Vec<(Bytes, Bytes)> {
    let mut ranges = vec![keys::group_rows(group)];
    if group == GROUP_ZERO {
        ranges.push(keys::map_rows());
    } else if state.feature_level > 0 {
        ranges.extend(Space::ALL.map(|space| space.range(&state.range_start, &state.range_end)));
    }
    ranges
}

/// Decodes a row's value. A value that does not decode is damage: the store's checksum covered what we wrote.
pub(crate) fn decode_row<M: Message + Default>(key: &[u8], value: Option<Bytes>) -> Result<Option<M>, ViewError> {
    value.map(|value| M::decode(value).map_err(|error| ViewError::bad_row(key, error))).transpose()
}

/// Reads and decodes one row.
pub(crate) fn read_row<M: Message + Default>(view: &dyn View, key: &Key) -> Result<Option<M>, ViewError> {
    let key = key.encode();
    decode_row(&key, view.get(&key)?)
}
