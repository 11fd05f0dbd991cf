//! Lifecycle in the shard: what a worker finds to be due, and the command that does it.
//!
//! The worker names keys and uploads; apply judges each of them again, with the rules and versions that it finds then.

use base::ids::{BucketId, GroupId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

use super::apply::{Halt, Step, done, random_id, refuse};
use super::buckets::bucket_row;
use super::command::{DeleteObject, Done, ObjectVersion, Reason, ShardOutcome, Upload, Versioning};
use super::lifecycle::{Judge, LifecycleRules, Moment, Verdict};
use super::scan::Cursor;
use super::versions::{Found, decode_version};
use crate::group::{GroupState, decode_row, read_row};
use crate::keys::{Key, Space};
use crate::view::{View, ViewError};

/// Keys and uploads that one command may name.
pub const EXPIRE_NAMES_MAX: usize = 256;
/// Versions and parts after whose removal a command ends with `more`. With the parts of the last version it stays well
/// below what one entry may drop.
const REMOVALS_MAX: usize = 10_000;
/// Moves that one step of a search names: each brings its version's list of chunks.
pub const MOVES_MAX: usize = 32;
/// Rows that one search for due keys looks at (and the rest of the last key).
const SEARCH_ROWS_MAX: usize = 2_000;

/// Judge these keys and uploads by the bucket's lifecycle rules, at this time.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Expire {
    #[prost(uint64, tag = "1")]
    pub bucket: u64,
    /// Ascending.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub keys: Vec<Bytes>,
    #[prost(message, repeated, tag = "3")]
    pub uploads: Vec<UploadName>,
    /// The worker's wall clock.
    #[prost(uint64, tag = "4")]
    pub now_ms: u64,
    /// See [`Moment`].
    #[prost(uint64, tag = "5")]
    pub day_ms: u64,
    /// 16 random bytes for the ids of delete markers.
    #[prost(bytes = "bytes", tag = "6")]
    pub marker_id: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct UploadName {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub upload: Bytes,
}

/// Where a search goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Among the objects: after this key.
    Objects(Bytes),
    /// Among the uploads: after this row.
    Uploads(Bytes),
    #[default]
    Start,
}

/// What one step of a search found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DuePage {
    pub keys: Vec<Bytes>,
    pub uploads: Vec<UploadName>,
    pub moves: Vec<Move>,
    /// `None`: the bucket was searched to its end.
    pub next: Option<Place>,
}

/// A version whose bytes belong in another pool by now.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// As it is stored, its key filled in.
    pub version: ObjectVersion,
    pub order: u64,
    pub pool: u32,
}

/// What a search must know of the pools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    /// By storage class.
    pub by_class: BTreeMap<String, u32>,
    /// Of the bucket: what versions mean by pool 0.
    pub own: u32,
    /// Versions that are not named, by key and order: the worker could not move them.
    pub stuck: BTreeSet<(Bytes, u64)>,
}

impl Pools {
    /// Where a version that should be in `class` goes, unless it is there.
    fn destination(&self, class: &str, row: &ObjectVersion) -> Option<u32> {
        let now = row.attributes.as_ref().map_or(0, |attributes| attributes.pool);
        let now = if now == 0 { self.own } else { now };
        self.by_class.get(class).copied().filter(|pool| *pool != now)
    }

    fn is_stuck(&self, key: &Bytes, found: &Found) -> bool {
        !self.stuck.is_empty() && self.stuck.contains(&(key.clone(), found.order))
    }
}

/// The rules that the shard has for a bucket.
fn rules_of(view: &dyn View, group: GroupId, bucket: BucketId) -> Result<Option<LifecycleRules>, ViewError> {
    read_row::<LifecycleRules>(view, &Key::BucketRules { group, bucket })
}

/// Buckets with rules in this shard, each with its encoded rules.
pub fn buckets_with_rules(view: &dyn View, group: GroupId) -> Result<Vec<(BucketId, Bytes)>, ViewError> {
    let (from, to) = crate::keys::rules_rows(group);
    let mut cursor = Cursor::new(view, from, to);
    let mut buckets = Vec::new();
    while let Some((raw, value)) = cursor.next()? {
        if let Ok(Key::BucketRules { bucket, .. }) = Key::decode(&raw) {
            buckets.push((bucket, value));
        }
    }
    Ok(buckets)
}

/// The next keys and uploads of a bucket to which something is due.
pub fn due(
    view: &dyn View,
    group: GroupId,
    bucket: BucketId,
    pools: &Pools,
    place: &Place,
    at: Moment,
) -> Result<DuePage, ViewError> {
    let state = crate::group::load(view, group)?;
    let is_open = bucket_row(view, group, bucket)?.is_some_and(|row| !row.frozen);
    let Some(rules) = rules_of(view, group, bucket)?.filter(|_| is_open) else { return Ok(DuePage::default()) };
    match place {
        Place::Start => due_objects(view, &state, bucket, &rules, pools, None, at),
        Place::Objects(after) => due_objects(view, &state, bucket, &rules, pools, Some(after), at),
        Place::Uploads(after) => due_uploads(view, &state, bucket, &rules, after, at),
    }
}

fn due_objects(
    view: &dyn View,
    state: &GroupState,
    bucket: BucketId,
    rules: &LifecycleRules,
    pools: &Pools,
    after: Option<&Bytes>,
    at: Moment,
) -> Result<DuePage, ViewError> {
    let space = Space::Versions;
    let (range_start, range_end) = space.range(&state.range_start, &state.range_end);
    let start = after.map_or(Bytes::new(), |key| space.key_end(bucket, key)).max(range_start);
    let mut page = DuePage::default();
    let mut visited = 0;
    for prefix in rules.prefixes() {
        let from = space.prefix_start(bucket, &prefix).max(start.clone());
        let to = space.prefix_end(bucket, &prefix).min(range_end.clone());
        let mut cursor = Cursor::new(view, from.clone(), to.clone().max(from));
        let mut held = next_version(&mut cursor)?;
        while let Some((key, _)) = &held {
            let key = key.clone();
            let judge = Judge::new(rules, &key, at);
            if judge_key(judge, &key, pools, &mut held, &mut cursor, &mut page.moves)? {
                page.keys.push(key.clone());
            }
            let is_full = page.keys.len() >= EXPIRE_NAMES_MAX || page.moves.len() >= MOVES_MAX;
            if visited + cursor.visited >= SEARCH_ROWS_MAX || is_full {
                page.next = Some(Place::Objects(key));
                return Ok(page);
            }
        }
        visited += cursor.visited;
    }
    page.next = Some(Place::Uploads(Bytes::new()));
    Ok(page)
}

type Versioned = (Bytes, Found);

/// The next row that is a version.
fn next_version(cursor: &mut Cursor<'_>) -> Result<Option<Versioned>, ViewError> {
    while let Some((raw, value)) = cursor.next()? {
        let (key, found) = decode_version(&raw, value)?;
        if found.row.null_order == 0 {
            return Ok(Some((key, found)));
        }
    }
    Ok(None)
}

/// Walks over the versions of `key`, the first of which is in `held`; leaves the first of the next key there. Answers
/// whether something is to expire, and notes what stays and moves.
fn judge_key(
    mut judge: Judge<'_>,
    key: &Bytes,
    pools: &Pools,
    held: &mut Option<Versioned>,
    cursor: &mut Cursor<'_>,
    moves: &mut Vec<Move>,
) -> Result<bool, ViewError> {
    let mut is_due = false;
    while let Some((_, found)) = held.take() {
        *held = next_version(cursor)?;
        let is_last = held.as_ref().is_none_or(|(next, _)| next != key);
        let destination = judge.class_due(&found.row).and_then(|class| pools.destination(class, &found.row));
        match (judge.next(&found.row, is_last), destination) {
            (Verdict::Keep, Some(pool)) if moves.len() < MOVES_MAX && !pools.is_stuck(key, &found) => {
                let version = ObjectVersion { key: key.clone(), ..found.row };
                moves.push(Move { version, order: found.order, pool });
            }
            (Verdict::Keep, _) => {}
            _ => is_due = true,
        }
        if is_last {
            break;
        }
    }
    Ok(is_due)
}

fn due_uploads(
    view: &dyn View,
    state: &GroupState,
    bucket: BucketId,
    rules: &LifecycleRules,
    after: &Bytes,
    at: Moment,
) -> Result<DuePage, ViewError> {
    let space = Space::Uploads;
    let (range_start, range_end) = space.range(&state.range_start, &state.range_end);
    let from = space.prefix_start(bucket, b"").max(range_start).max(after.clone());
    let to = space.prefix_end(bucket, b"").min(range_end);
    let mut cursor = Cursor::new(view, from.clone(), to.max(from));
    let mut page = DuePage::default();
    while let Some((raw, value)) = cursor.next()? {
        let Ok(Key::Upload { key, .. }) = Key::decode(&raw) else {
            return Err(ViewError::bad_row(&raw, "not the key of an upload"));
        };
        let row = decode_row::<Upload>(&raw, Some(value))?.unwrap_or_default();
        if rules.aborts(&key, row.created_ms, at) {
            page.uploads.push(UploadName { key, upload: row.upload });
        }
        if cursor.visited >= SEARCH_ROWS_MAX || page.uploads.len() >= EXPIRE_NAMES_MAX {
            // The successor of a key is the key and a zero byte.
            page.next = Some(Place::Uploads([raw.as_ref(), &[0]].concat().into()));
            return Ok(page);
        }
    }
    Ok(page)
}

impl Step<'_> {
    /// Does what the rules say to the named keys and uploads. `more`: send it again.
    pub fn expire(&mut self, expire: Expire) -> Result<ShardOutcome, Halt> {
        let bucket = BucketId(expire.bucket);
        let (settings, versioning) = self.open_bucket(bucket)?;
        if expire.keys.len() + expire.uploads.len() > EXPIRE_NAMES_MAX {
            return refuse(Reason::Invalid, format!("more than {EXPIRE_NAMES_MAX} names"));
        }
        // Each key is judged once: the command does not see its own changes.
        if expire.keys.windows(2).any(|pair| pair[0] >= pair[1]) {
            return refuse(Reason::Invalid, "the keys are not in ascending order");
        }
        let Some(rules) = rules_of(self.view, self.group, bucket)? else { return Ok(done()) };
        let at = Moment { now_ms: expire.now_ms, day_ms: expire.day_ms };
        let mut removed = 0;
        for key in &expire.keys {
            self.check_key(bucket, key)?;
            self.expire_key(bucket, key, versioning, &rules, at, &expire.marker_id, &mut removed)?;
            if removed >= REMOVALS_MAX {
                self.settle_usage(bucket, &settings)?;
                return Ok(ShardOutcome::Done(Done { more: true }));
            }
        }
        self.settle_usage(bucket, &settings)?;
        let mut aborted: Vec<u128> = Vec::new();
        for name in &expire.uploads {
            self.check_key(bucket, &name.key)?;
            let upload = random_id(&name.upload)?;
            let row = read_row::<Upload>(self.view, &Key::Upload { bucket, key: name.key.clone(), upload })?;
            let is_due = row.is_some_and(|row| rules.aborts(&name.key, row.created_ms, at));
            if !is_due || aborted.contains(&upload) {
                continue;
            }
            aborted.push(upload);
            self.changes.delete(Key::Upload { bucket, key: name.key.clone(), upload }.encode());
            removed += 1 + self.drop_parts(bucket, &name.key, upload)?;
            if removed >= REMOVALS_MAX {
                return Ok(ShardOutcome::Done(Done { more: true }));
            }
        }
        Ok(done())
    }

    #[allow(clippy::too_many_arguments)]
    fn expire_key(
        &mut self,
        bucket: BucketId,
        key: &Bytes,
        versioning: Versioning,
        rules: &LifecycleRules,
        at: Moment,
        marker_id: &Bytes,
        removed: &mut usize,
    ) -> Result<(), Halt> {
        let view = self.view;
        let (from, to) = (Space::Versions.key_start(bucket, key), Space::Versions.key_end(bucket, key));
        let mut cursor = Cursor::new(view, from, to);
        let mut judge = Judge::new(rules, key, at);
        let mut held = next_version(&mut cursor)?;
        while let Some((_, found)) = held.take() {
            held = next_version(&mut cursor)?;
            match judge.next(&found.row, held.is_none()) {
                Verdict::Keep => {}
                Verdict::Remove => {
                    *removed += 1 + found.row.body.as_ref().map_or(0, |body| body.parts.len());
                    self.remove_row(bucket, key, &found);
                    self.drop_content(bucket, key, &found.row)?;
                }
                Verdict::Expire => {
                    *removed += 1 + found.row.body.as_ref().map_or(0, |body| body.parts.len());
                    // What this writes, the older versions are judged by next time.
                    return self.expire_current(bucket, key, versioning, found, at, marker_id);
                }
            }
            if *removed >= REMOVALS_MAX {
                break;
            }
        }
        Ok(())
    }

    /// As a plain DELETE of the key.
    fn expire_current(
        &mut self,
        bucket: BucketId,
        key: &Bytes,
        versioning: Versioning,
        found: Found,
        at: Moment,
        marker_id: &Bytes,
    ) -> Result<(), Halt> {
        let delete = DeleteObject {
            bucket: bucket.0,
            key: key.clone(),
            modified_ms: at.now_ms,
            marker_id: marker_id.clone(),
            ..DeleteObject::default()
        };
        if let (_, Some(removed)) = self.delete_newest(bucket, versioning, Some(found), &delete)? {
            self.drop_content(bucket, key, &removed.row)?;
        }
        Ok(())
    }
}
