//! The lifecycle worker: on the node of a shard's leader, it looks for what the rules of buckets have come to, and names
//! it in commands. What is done is decided by the shard ([`meta::object::lifecycle`]); so a worker may die, run twice or
//! run late, and a new leader's begins anew.
//!
//! Transitions it makes itself: the bytes are stored in the other pool, and a command puts their new names in the place of
//! the old ones, if these are still there.
//!
//! It also finishes the counting of buckets that were given a quota.

use base::Env;
use base::calendar::UtcDay;
use base::env::{BoxFuture, RandomExt};
use base::ids::{BucketId, GROUP_ZERO, GroupId};
use bytes::Bytes;
use client::{Client, Error};
use futures_util::stream::{self, StreamExt};
use meta::object::expire::{self, DuePage, Expire, Move, Place};
use meta::object::lifecycle::Moment;
use meta::object::usage;
use std::collections::BTreeMap;
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

/// Until when a bucket's rules are done: the date, and the rules.
type Done = BTreeMap<(GroupId, BucketId), (UtcDay, Bytes)>;

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
        let is_done = done.get(&(group, bucket)).is_some_and(|(day, known)| *day == today && *known == rules);
        if is_done && pace.day_ms == 0 {
            continue;
        }
        let mut rounds = 0;
        while search(env, service, client, pace, group, bucket).await? && rounds < ROUNDS_MAX {
            rounds += 1;
        }
        if rounds < ROUNDS_MAX {
            done.insert((group, bucket), (today, rules));
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
    group: GroupId,
    bucket: BucketId,
) -> Result<bool, Error> {
    let mut place = Place::Start;
    let mut found_any = false;
    loop {
        let Some(pools) = client.pools_for(bucket) else { return Ok(false) };
        let at = Moment { now_ms: client.wall_ms(), day_ms: pace.day_ms };
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
        found_any |= move_all(service, client, bucket, moves).await?;
        match next {
            Some(next) => place = next,
            None => return Ok(found_any),
        }
        env.sleep(STEP_PAUSE).await;
    }
}

/// Moves versions to where they belong. Answers whether any was moved: what is damaged stays where it is, for the scrub to
/// mend, and is tried again with the next look.
async fn move_all(service: &Service, client: &Client, bucket: BucketId, moves: Vec<Move>) -> Result<bool, Error> {
    let Some(bucket) = client.known_bucket_of(bucket).filter(|_| !moves.is_empty()) else { return Ok(false) };
    let task = |found: Move| -> BoxFuture<(Move, Result<(), Error>)> {
        let (client, bucket) = (client.clone(), bucket.clone());
        Box::pin(async move {
            let result = client.move_version(&bucket, &found).await;
            (found, result)
        })
    };
    let mut running = stream::iter(moves.into_iter().map(task).collect::<Vec<_>>()).buffer_unordered(MOVES_AT_ONCE);
    let mut moved_any = false;
    while let Some((found, result)) = running.next().await {
        match result {
            Ok(()) => {
                moved_any = true;
                service.counters.transitioned.inc();
            }
            // It was replaced, deleted or moved meanwhile.
            Err(Error::PreconditionFailed | Error::NoSuchBucket | Error::NoSuchKey | Error::InvalidPart { .. }) => {}
            Err(Error::Damaged(why)) => {
                let key = found.version.key.escape_ascii();
                tracing::warn!("{}/{key} stays in its storage class: {why}", bucket.name);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(moved_any)
}
