//! The lifecycle worker: on the node of a shard's leader, it looks for what the rules of buckets have come to, and names
//! it in commands. What is done is decided by the shard ([`meta::object::lifecycle`]); so a worker may die, run twice or
//! run late, and a new leader's begins anew.
//!
//! A clock that is far from those of most other nodes deletes nothing: the rules wait until it is set.
//!
//! Transitions it makes itself: the bytes are stored in the other pool, and a command puts their new names in the place of
//! the old ones, if these are still there.
//!
//! It also finishes the counting of buckets that were given a quota.

use base::Env;
use base::calendar::UtcDay;
use base::env::{BoxFuture, MonoTime, RandomExt};
use base::ids::{BucketId, GROUP_ZERO, GroupId};
use bytes::Bytes;
use client::{Client, Error};
use futures_util::stream::{FuturesUnordered, StreamExt};
use meta::object::expire::{self, DuePage, Expire, Move, Place};
use meta::object::lifecycle::Moment;
use meta::object::usage;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use crate::machine::KvView;
use crate::service::Service;

/// When the worker looks.
#[derive(Clone, Debug)]
pub struct LifecyclePace {
    /// From one look to the next. Buckets whose rules were done on this day already are passed over.
    pub interval: Duration,
    /// 0: days are dates of the UTC calendar. Else, for tests, how long a day lasts; then every look is a whole one.
    pub day_ms: u64,
}

impl Default for LifecyclePace {
    fn default() -> LifecyclePace {
        LifecyclePace { interval: Duration::from_secs(60), day_ms: 0 }
    }
}

/// Between two steps of a search: users come first.
const STEP_PAUSE: Duration = Duration::from_millis(10);
/// Versions that are moved to another pool at once.
const MOVES_AT_ONCE: usize = 4;
/// Searches of one bucket in one look: what expires may make more due (a marker that hides nothing any more).
const ROUNDS_MAX: usize = 4;

/// Before a bucket is looked through again in which a version could not be moved: each look reads all its rows.
const RETRY_PAUSE: Duration = Duration::from_secs(10 * 60);
/// Versions of a bucket that could not be moved in one look; then no more are tried. Bounds what is remembered.
const STUCK_MAX: usize = 1024;
/// Of these, those that failed by what may keep others from moving, too: each has waited as long as an operation does.
const FAILED_MAX: usize = 16;

/// What has been done for each bucket.
type Done = BTreeMap<(GroupId, BucketId), DoneFor>;

/// A bucket was looked through by these rules.
struct DoneFor {
    day: UtcDay,
    rules: Bytes,
    /// From when on it is looked through again on the same day, because something is left.
    again: Option<MonoTime>,
}

impl DoneFor {
    fn holds(&self, today: UtcDay, rules: &Bytes, now: MonoTime) -> bool {
        self.day == today && self.rules == *rules && self.again.is_none_or(|again| now < again)
    }
}

/// What became of the moves of a bucket in one look.
#[derive(Default)]
struct Moving {
    /// Versions that could not be moved, by key and order: they are not tried again in this look, nor in others' way.
    stuck: BTreeSet<(Bytes, u64)>,
    failed: usize,
    /// No more are tried in this look; what is to expire does.
    stopped: bool,
}

impl Moving {
    fn is_complete(&self) -> bool {
        self.stuck.is_empty() && !self.stopped
    }

    /// A version stays where it is, whole or as damaged as it was.
    fn note(&mut self, bucket: &str, found: Move, error: &Error) {
        let Move { version, order, .. } = found;
        let key = version.key;
        match error {
            // It was replaced, deleted or moved meanwhile.
            Error::PreconditionFailed
            | Error::NoSuchBucket
            | Error::NoSuchKey
            | Error::NoSuchUpload
            | Error::InvalidPart { .. } => {}
            error => {
                tracing::warn!("{bucket}/{} stays in its storage class: {error}", key.escape_ascii());
                match error {
                    // For the scrub to mend.
                    Error::Damaged(_) => {}
                    Error::Full => self.stopped = true,
                    _ => self.failed += 1,
                }
            }
        }
        self.stuck.insert((key, order));
        self.stopped |= self.stuck.len() >= STUCK_MAX || self.failed >= FAILED_MAX;
    }
}

pub async fn run(
    env: Env,
    service: Arc<Service>,
    client: Client,
    pace: LifecyclePace,
    mut stop: watch::Receiver<bool>,
) {
    let mut done = Done::new();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = env.sleep(pace.interval) => {}
        }
        let groups = service.replicas.all();
        let leads = |id: GroupId| groups.iter().any(|group| group.id == id && id != GROUP_ZERO && group.is_leader());
        done.retain(|(group, _), _| leads(*group));
        for group in groups.iter().filter(|group| leads(group.id)) {
            if let Err(error) = look(&env, &service, &client, &pace, group.id, &mut done).await {
                tracing::warn!("lifecycle rules of group {} wait: {error}", group.id);
            }
        }
    }
}

async fn look(
    env: &Env,
    service: &Service,
    client: &Client,
    pace: &LifecyclePace,
    group: GroupId,
    done: &mut Done,
) -> Result<(), Error> {
    let uncounted = usage::buckets_to_count(&KvView::of(&service.kv), group);
    let ruled = expire::buckets_with_rules(&KvView::of(&service.kv), group);
    let (uncounted, ruled) = match (uncounted, ruled) {
        (Ok(uncounted), Ok(ruled)) => (uncounted, ruled),
        (Err(error), _) | (_, Err(error)) => return Err(service.lost_rows(group, &error).await),
    };
    for bucket in uncounted {
        client.count_usage(group, 0, bucket.0).await?;
    }
    for (bucket, rules) in ruled {
        let today = UtcDay::of(client.wall_ms());
        let is_done = done.get(&(group, bucket)).is_some_and(|done| done.holds(today, &rules, env.now()));
        if is_done && pace.day_ms == 0 {
            continue;
        }
        let mut moving = Moving::default();
        let mut rounds = 0;
        while search(env, service, client, pace, (group, bucket), &mut moving).await? && rounds < ROUNDS_MAX {
            rounds += 1;
        }
        let again = (!moving.is_complete()).then(|| env.now() + RETRY_PAUSE);
        if rounds < ROUNDS_MAX || again.is_some() {
            done.insert((group, bucket), DoneFor { day: today, rules, again });
        }
    }
    Ok(())
}

/// One search through a bucket; does what is due. Answers whether there was anything.
async fn search(
    env: &Env,
    service: &Service,
    client: &Client,
    pace: &LifecyclePace,
    (group, bucket): (GroupId, BucketId),
    moving: &mut Moving,
) -> Result<bool, Error> {
    let mut place = Place::Start;
    let mut found_any = false;
    loop {
        let Some(mut pools) = client.pools_for(bucket) else { return Ok(false) };
        if moving.stopped {
            pools.by_class.clear();
        }
        pools.stuck.clone_from(&moving.stuck);
        let at = Moment { now_ms: client.wall_ms(), day_ms: pace.day_ms };
        let map = service.map.borrow().clone();
        let doubt = service.control.observations().doubts_clock(&map, service.node, env.now(), at.now_ms);
        if let Some(why) = doubt {
            return Err(Error::Unavailable(why));
        }
        let page = match expire::due(&KvView::of(&service.kv), group, bucket, &pools, &place, at) {
            Ok(page) => page,
            Err(error) => return Err(service.lost_rows(group, &error).await),
        };
        let DuePage { keys, uploads, moves, next } = page;
        if !keys.is_empty() || !uploads.is_empty() {
            found_any = true;
            service.counters.expired.inc_by((keys.len() + uploads.len()) as u64);
            let mut marker_id = [0; 16];
            env.random.fill(&mut marker_id);
            let marker_id = Bytes::copy_from_slice(&marker_id);
            let (now_ms, day_ms) = (at.now_ms, at.day_ms);
            let command = Expire { bucket: bucket.0, keys, uploads, now_ms, day_ms, marker_id };
            match client.expire(group, command).await {
                // The bucket is being deleted, or a command of its deletion came first.
                Ok(()) | Err(Error::NoSuchBucket) => {}
                Err(error) => return Err(error),
            }
        }
        found_any |= !moves.is_empty();
        move_all(service, client, bucket, moves, moving).await;
        match next {
            Some(next) => place = next,
            None => return Ok(found_any),
        }
        env.sleep(STEP_PAUSE).await;
    }
}

/// Moves versions to where they belong, a few at once. One that cannot be moved keeps no other from it, and nothing else
/// that is due.
async fn move_all(service: &Service, client: &Client, bucket: BucketId, moves: Vec<Move>, moving: &mut Moving) {
    let Some(bucket) = client.known_bucket_of(bucket) else { return };
    let task = |found: Move| -> BoxFuture<(Move, Result<(), Error>)> {
        let (client, bucket) = (client.clone(), bucket.clone());
        Box::pin(async move {
            let result = client.move_version(&bucket, &found).await;
            (found, result)
        })
    };
    let mut waiting = moves.into_iter();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < MOVES_AT_ONCE && !moving.stopped {
            let Some(found) = waiting.next() else { break };
            running.push(task(found));
        }
        match running.next().await {
            Some((_, Ok(()))) => {
                service.counters.transitioned.inc();
            }
            Some((found, Err(error))) => moving.note(&bucket.name, found, &error),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::ObjectVersion;

    fn version(number: u64) -> Move {
        let version = ObjectVersion { key: Bytes::from_static(b"k"), ..ObjectVersion::default() };
        Move { version, order: number, pool: 2 }
    }

    #[test]
    fn what_cannot_be_moved_stops_the_moves_only_where_others_would_fail_too() {
        let mut moving = Moving::default();
        assert!(moving.is_complete());
        for number in 0..100 {
            moving.note("b", version(number), &Error::PreconditionFailed);
            moving.note("b", version(100 + number), &Error::Damaged("gone".into()));
        }
        assert!(!moving.stopped && !moving.is_complete());
        assert_eq!(moving.stuck.len(), 200);
        let mut away = Moving::default();
        for number in 0..FAILED_MAX as u64 {
            assert!(!away.stopped, "one object that cannot be read says nothing of the others");
            away.note("b", version(number), &Error::Unavailable("no copy answers".into()));
        }
        assert!(away.stopped);
        let mut full = Moving::default();
        full.note("b", version(1), &Error::Full);
        assert!(full.stopped && !full.is_complete());
        for number in 200..STUCK_MAX as u64 {
            assert!(!moving.stopped);
            moving.note("b", version(number), &Error::NoSuchKey);
        }
        assert!(moving.stopped, "what is remembered is bounded");
    }

    #[test]
    fn a_bucket_in_which_something_is_left_is_looked_through_again_on_the_same_day() {
        let (day, rules, start) = (UtcDay::of(0), Bytes::from_static(b"rules"), MonoTime(0));
        let again = start + RETRY_PAUSE;
        let whole = DoneFor { day, rules: rules.clone(), again: None };
        let left = DoneFor { day, rules: rules.clone(), again: Some(again) };
        assert!(whole.holds(day, &rules, again) && left.holds(day, &rules, start));
        assert!(!left.holds(day, &rules, again));
        assert!(!whole.holds(UtcDay::of(25 * 60 * 60 * 1000), &rules, start));
        assert!(!whole.holds(day, &Bytes::from_static(b"others"), start));
    }
}
