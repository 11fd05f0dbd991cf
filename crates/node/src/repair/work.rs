//! The work of repair: uniting groups that move, comparing those that are open, letting go of those that left.

use base::Env;
use base::env::MonoTime;
use base::ids::{ChunkId, DiskId, NodeId, OwnerId, PgId, PoolId};
use base::plant::{self, Plant};
use bytes::Bytes;
use client::NAMED_IDS_MAX;
use client::wire::{Ask, Failure, GetChunk, PgDigestAsk, PgDigestLine, PgDigests, Told};
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use meta::map::command::ClusterMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::{Digest, Engine, NewChunk, StoreError};
use tokio::sync::watch;

use super::answer::DIGESTS_MAX;
use super::budget::{Admitted, Budget};
use super::exchange::{Peers, State, Walk};
use super::plan::{Group, Member, Reach, Suspects, Verdict, Want, groups_of, judge, left_by};
use super::speed::Speed;
use super::{Key, Mark, NodeHealth, Owed, Progress};
use crate::arrivals::Arrivals;
use crate::disks::Disks;
use crate::events::{EventKind, EventLog};
use crate::start::Healing;

/// Chunks of one group that are pulled at once, or wait for the budget of their disk.
const PULLS_MAX: usize = 32;
/// Groups whose inventories are exchanged in one round of comparisons.
const EXCHANGES_MAX: usize = 128;
/// Bytes of a chunk that are asked for at once while users are served.
const PIECE_BYTES: u32 = 1 << 20;
/// Why a group is left as it is for now.
const IS_OVER: &str = "the group has changed, groups of fewer copies come first, or the time for it is over";
/// How long a comparison pulls for one group before others are looked at.
const COMPARE_MAX: Duration = Duration::from_secs(30);
/// Looks at digests that differ, before inventories are walked.
const LOOKS_MAX: usize = 3;
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Chunks that leave in one request.
const EVICTIONS_MAX: usize = 4096;
/// For so long groups of few copies that could not be united are tried again before those of more copies, with such pauses.
const CLASS_PATIENCE: Duration = Duration::from_millis(300);
const CLASS_PAUSE: Duration = Duration::from_millis(50);
/// Pause before a move that could not be finished is tried again.
const MOVE_RETRY: Duration = Duration::from_millis(200);
const MOVE_CHECK: Duration = Duration::from_secs(2);
/// How often damage is looked for, and how fast a disk with damage is read.
const SCRUB_CHECK: Duration = Duration::from_secs(2);
const SCRUB_BYTES_PER_S: u64 = 128 << 20;

pub struct Repairer {
    pub env: Env,
    pub node: NodeId,
    pub disks: Arc<Disks>,
    pub peers: Arc<dyn Peers>,
    pub progress: Arc<Progress>,
    pub healing: Healing,
    pub arrivals: Arc<Arrivals>,
    /// What happened, for people.
    pub events: Option<Arc<EventLog>>,
    /// A group is in hand while its chunks come or go because it moves: what has just been pulled must not be let go of by
    /// a decision from an older map.
    pub budget: Budget,
}

/// What the comparer remembers of a group.
#[derive(Default)]
struct Watched {
    mark: Option<Mark>,
    suspects: Suspects,
    exchanged: Option<MonoTime>,
    /// The first exchange of these members in these lives: what differed then may have differed for long.
    first_exchanged: Option<MonoTime>,
    healthy: bool,
    owed: Owed,
    wants: Wants,
}

/// What an exchange left undone.
#[derive(Clone, Default)]
struct Wants {
    missing: u64,
    hopeless: Vec<ChunkId>,
}

impl Repairer {
    /// Unites what moves, whenever the map says that something does. `may_act`: the map here is the node's own present.
    pub async fn run_moves(
        self: Arc<Self>,
        mut map: watch::Receiver<Arc<ClusterMap>>,
        may_act: impl Fn() -> bool,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            let now = map.borrow_and_update().clone();
            let finished = may_act() && self.unite_all(&now, &map).await;
            let pause = if finished { MOVE_CHECK } else { MOVE_RETRY };
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                changed = map.changed() => if changed.is_err() { return },
                () = self.env.sleep(pause) => {}
            }
        }
    }

    /// Whether all groups that move are done.
    async fn unite_all(&self, now: &ClusterMap, map: &watch::Receiver<Arc<ClusterMap>>) -> bool {
        let pass = Pass::new(self.node, now, map);
        self.progress.keep(now, &pass.then);
        let mut newer = map.clone();
        let work = self.unite_each(&pass);
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                Ok(()) = newer.changed() => {
                    let newest = newer.borrow_and_update().clone();
                    self.progress.keep(&newest, &pass.newest());
                }
                finished = &mut work => return finished,
            }
        }
    }

    async fn unite_each(&self, pass: &Pass<'_>) -> bool {
        let is_due = |group: &&Group| group.closed && !self.progress.is_done(group);
        let mut groups: Vec<&Group> = pass.then.iter().filter(is_due).collect();
        groups.sort_by_key(|group| in_order(group));
        if plant::is(Plant::RepairBackwards) {
            groups.reverse();
        }
        let mut finished = true;
        // The last copies before everything else: the next class begins when the one before has ended.
        let mut classes: VecDeque<Vec<&Group>> = VecDeque::new();
        for group in groups {
            match classes.back_mut() {
                Some(class) if class[0].sources == group.sources => class.push(group),
                _ => classes.push_back(vec![group]),
            }
        }
        while let Some(class) = classes.pop_front() {
            let mut left = self.unite_class(class, pass).await;
            // Who refuses at first has often not heard of the newest map yet. Whatever is less urgent could take long.
            let patience = if classes.is_empty() { Duration::ZERO } else { CLASS_PATIENCE };
            let until = self.env.now() + patience;
            loop {
                let failed = left.len();
                left.retain(|group| pass.is_present(group) && !pass.overtakes(group));
                finished &= failed == left.len();
                if left.is_empty() || self.env.now() >= until {
                    break;
                }
                self.env.sleep(CLASS_PAUSE).await;
                left = self.unite_class(left, pass).await;
            }
            finished &= left.is_empty();
        }
        finished
    }

    /// Answers which could not be united.
    async fn unite_class<'a>(&self, groups: Vec<&'a Group>, pass: &Pass<'_>) -> Vec<&'a Group> {
        let unites = groups.into_iter().map(async |group| (!self.unite_one(group, pass).await).then_some(group));
        at_once(self.budget.groups_at_once(), unites).await.into_iter().flatten().collect()
    }

    async fn unite_one(&self, group: &Group, pass: &Pass<'_>) -> bool {
        // Other groups open and close meanwhile. One that has changed is taken up by the next pass, as it is then.
        if !pass.is_present(group) || pass.overtakes(group) {
            return false;
        }
        let united = match self.budget.take(group.key()) {
            None => Err("its chunks are being let go of".into()),
            Some(_in_hand) => self.unite(group, || !pass.is_present(group) || pass.overtakes(group)).await,
        };
        match united {
            Ok(()) => self.progress.finish(group),
            Err(why) => {
                tracing::debug!("placement group {} cannot be united yet: {why}", group.pg);
                return false;
            }
        }
        true
    }

    /// Pulls whatever any member, old or new, has and this disk lacks. Fails when it `is_over`; what was pulled stays.
    pub async fn unite(&self, group: &Group, is_over: impl Fn() -> bool) -> Result<(), String> {
        let engine = self.disks.engine(group.own)?;
        if !group.all_required_serve() {
            return Err("a member is down".into());
        }
        let members = group.reachable();
        let mut walk = Walk::new(group, engine, &*self.peers, &members);
        while let Some(mut window) = walk.next().await? {
            let mut buried = Vec::new();
            let mut wants = Vec::new();
            for (id, states) in &mut window {
                if plant::is(Plant::ForgetInMove) {
                    states.retain(|(_, state)| *state != State::Deleted);
                }
                match judge(*id, states, 1 + members.len()) {
                    Verdict::Bury => buried.push(*id),
                    Verdict::Pull(want) | Verdict::Mend(want) => wants.push(want),
                    Verdict::Hopeless => tracing::error!("chunk {id} has no good copy on any disk of its group"),
                    Verdict::Conflict => conflict(*id),
                    Verdict::Same | Verdict::Elsewhere => {}
                }
            }
            self.bury(engine, buried).await?;
            self.pull_all(engine, group, &walk, wants, &is_over).await?;
            if is_over() {
                return Err(IS_OVER.into());
            }
        }
        Ok(())
    }

    async fn bury(&self, engine: &Engine, ids: Vec<ChunkId>) -> Result<(), String> {
        if ids.is_empty() {
            return Ok(());
        }
        self.progress.counters.buried_chunks.inc_by(ids.len() as u64);
        engine.delete(ids).await.map_err(|error| error.to_string())
    }

    /// Fails when one cannot be pulled; the others are, nevertheless, until it `is_over`.
    async fn pull_all(
        &self,
        engine: &Engine,
        group: &Group,
        walk: &Walk<'_>,
        wants: Vec<Want>,
        is_over: &impl Fn() -> bool,
    ) -> Result<(), String> {
        let pulls = wants.iter().map(|want| self.pull_admitted(engine, group, walk, want, is_over));
        at_once(PULLS_MAX, pulls).await.into_iter().fold(Ok(()), Result::and)
    }

    /// A pull that yields to users may wait for long, and what is more urgent come meanwhile.
    async fn pull_admitted(
        &self,
        engine: &Engine,
        group: &Group,
        walk: &Walk<'_>,
        want: &Want,
        is_over: &impl Fn() -> bool,
    ) -> Result<(), String> {
        if is_over() {
            return Err(IS_OVER.into());
        }
        let served = || self.disks.disk(group.own).ok().and_then(|disk| disk.meter.served());
        let admitted = self.budget.admit(&self.env, group.own, served, group.urgency(), want.len).await;
        let mut admitted = admitted.ok_or("the disk is not this node's")?;
        if is_over() {
            return Err(IS_OVER.into());
        }
        let sources = want.sources.iter().filter_map(|number| walk.member(*number)).collect();
        let pulled = self.pull(engine, group, want, sources, &mut admitted).await;
        admitted.rest(&self.env).await;
        pulled
    }

    /// From whichever source gives bytes that verify. A chunk that is deleted meanwhile is no failure.
    async fn pull(
        &self,
        engine: &Engine,
        group: &Group,
        want: &Want,
        sources: Vec<Member>,
        admitted: &mut Admitted<'_>,
    ) -> Result<(), String> {
        if want.id.counter.is_multiple_of(8) && plant::is(Plant::DropRepair) {
            return Ok(());
        }
        let _coming = self.arrivals.expect(group.own, want.id).await;
        let mut why = String::from("no other disk has it");
        // Different chunks begin with different sources.
        let first = want.id.counter as usize % sources.len().max(1);
        for source in sources.iter().cycle().skip(first).take(sources.len()) {
            match self.fetch(source, want, admitted).await {
                Ok((owner, payload)) if len_of(&payload) == u64::from(want.len) => {
                    let chunk = NewChunk { id: want.id, owner, epoch: group.epoch, crc64: want.crc64, payload };
                    // The store compares the bytes with the checksum before it takes them.
                    let stored = if admitted.yields { engine.put_gently(chunk).await } else { engine.put(chunk).await };
                    match stored {
                        Ok(_) => {
                            self.progress.counters.pulled_chunks.inc();
                            self.progress.counters.pulled_bytes.inc_by(u64::from(want.len));
                            return Ok(());
                        }
                        Err(StoreError::Deleted) => return Ok(()),
                        Err(StoreError::BadPayload) => why = format!("node {} sent other bytes", source.node),
                        Err(error) => return Err(format!("chunk {}: {error}", want.id)),
                    }
                }
                Ok(_) => why = format!("node {} sent other bytes", source.node),
                Err((Failure::Deleted, _)) => return Ok(()),
                Err((_, detail)) => why = detail,
            }
        }
        Err(format!("chunk {}: {why}", want.id))
    }

    /// A chunk's bytes from one source. While users are served they come in pieces, with rests: no read of a user waits for
    /// all of them.
    async fn fetch(
        &self,
        source: &Member,
        want: &Want,
        admitted: &mut Admitted<'_>,
    ) -> Result<(OwnerId, Vec<Bytes>), (Failure, String)> {
        let (mut owner, mut payload) = (OwnerId::default(), Vec::new());
        let step = if admitted.yields { PIECE_BYTES } else { want.len.max(1) };
        // An empty chunk is asked for as well.
        let starts = std::iter::once(0).chain((step..want.len).step_by(step as usize));
        for start in starts {
            if start > 0 {
                admitted.rest(&self.env).await;
            }
            let ask = Ask::GetChunk(GetChunk {
                disk: Bytes::copy_from_slice(&source.disk.0.to_be_bytes()),
                id: Bytes::copy_from_slice(&want.id.to_bytes()),
                start,
                // What is longer than it should be is noticed.
                end: if want.len - start > step { start + step } else { u32::MAX },
                repair: true,
            });
            match self.peers.ask(source.node, ask).await? {
                (Told::Chunk(done), piece) => {
                    // Whose header alone is damaged cannot tell.
                    owner = if owner == OwnerId::default() { OwnerId(done.owner) } else { owner };
                    payload.extend(piece);
                }
                _ => return Err((Failure::Invalid, format!("node {} gives no bytes", source.node))),
            }
        }
        Ok((owner, payload))
    }

    /// Compares copies until the node stops.
    pub async fn run_comparisons(
        self: Arc<Self>,
        map: watch::Receiver<Arc<ClusterMap>>,
        may_act: impl Fn() -> bool,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut comparer = Comparer::new(self.clone());
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.env.sleep(self.healing.compare_interval) => {}
            }
            if may_act() {
                let now = map.borrow().clone();
                comparer.round(&now).await;
                self.let_go(&map).await;
            }
        }
    }

    /// Where damage shows, there may be more: then the whole disk is read, soon and not at the scrub's leisure.
    /// Once everything that it may have cost is there again, volumes are rewritten without it. `are_sound`: whether all
    /// replicas here serve.
    pub async fn run_scrubs(
        self: Arc<Self>,
        map: watch::Receiver<Arc<ClusterMap>>,
        are_sound: impl Fn() -> bool,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut scrubbed: BTreeMap<DiskId, (u64, MonoTime)> = BTreeMap::new();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.env.sleep(SCRUB_CHECK) => {}
            }
            for disk in &self.disks.all {
                let Ok(engine) = &disk.engine else { continue };
                let (known, since) = scrubbed.get(&disk.id).copied().unwrap_or_default();
                let stats = engine.stats();
                if stats.damaged > known {
                    tracing::warn!("disk {} has damage: all of it is read now", disk.label);
                    let _ = engine.scrub_at(SCRUB_BYTES_PER_S).await;
                    scrubbed.insert(disk.id, (engine.stats().damaged, self.env.now()));
                } else if stats.volumes_with_damage > 0 && are_sound() {
                    let now = map.borrow().clone();
                    if self.progress.is_whole(&now, self.node, disk.id, since) {
                        tracing::info!("disk {} has everything again: what is damaged is rewritten", disk.label);
                        if let Err(error) = engine.release_damage(known).await {
                            tracing::warn!("disk {}: it is not sealed yet: {error}", disk.label);
                        }
                    }
                }
            }
        }
    }

    /// Drops the chunks of groups that other disks hold now.
    pub async fn let_go(&self, map: &watch::Receiver<Arc<ClusterMap>>) {
        for disk in &self.disks.all {
            let Ok(engine) = &disk.engine else { continue };
            let left = left_by(&map.borrow(), disk.id);
            for group in
                left.into_iter().filter(|group| engine.digest(group.pg.pool, group.pg.slots()) != Digest::default())
            {
                let Some(_in_hand) = self.budget.take(group.key()) else { continue };
                // The map may have changed while other chunks came or went.
                if !left_by(&map.borrow(), disk.id).contains(&group) {
                    continue;
                }
                if let Err(why) = self.let_go_of(engine, &group).await {
                    tracing::debug!("chunks of placement group {} stay on disk {}: {why}", group.pg, disk.label);
                }
            }
        }
    }

    /// Drops here what every member says that it holds, and what any has deleted. What a member lacks stays: this may be the
    /// only copy left.
    async fn let_go_of(&self, engine: &Engine, group: &Group) -> Result<(), String> {
        if plant::is(Plant::EvictBlindly) {
            let own = engine.inventory(None, group.pg.pool, group.pg.slots(), EVICTIONS_MAX);
            let ids = own.into_iter().map(|stat| stat.id).collect();
            return engine.evict(ids).await.map_err(|error| error.to_string());
        }
        let members = group.reachable();
        if members.len() < group.others.len() || !group.all_required_serve() {
            return Err("a member is away".into());
        }
        let mut walk = Walk::new(group, engine, &*self.peers, &members);
        let (mut kept, mut evicted) = (0u64, 0);
        while let Some(window) = walk.next().await? {
            let mut ids = Vec::new();
            for (id, states) in &window {
                let Some((_, own)) = states.iter().find(|(number, _)| *number == 0) else { continue };
                let is_there = |state: &State| match (state, own) {
                    (State::Deleted, _) => true,
                    (State::Good { .. }, State::Good { .. }) => state == own,
                    (State::Good { .. }, _) => true,
                    (State::Damaged, _) => false,
                };
                let holders = states.iter().filter(|(number, state)| *number > 0 && is_there(state)).count();
                // One tombstone is enough: whoever lacks it and the chunk will never be asked for either.
                let is_deleted = states.iter().any(|(number, state)| *number > 0 && *state == State::Deleted);
                match (own, is_deleted || holders == members.len()) {
                    (State::Deleted, _) => {}
                    (_, true) => ids.push(*id),
                    (_, false) => kept += 1,
                }
            }
            evicted += ids.len();
            self.progress.counters.evicted_chunks.inc_by(ids.len() as u64);
            for some in ids.chunks(EVICTIONS_MAX) {
                engine.evict(some.to_vec()).await.map_err(|error| error.to_string())?;
            }
            if evicted >= EVICTIONS_MAX {
                break;
            }
        }
        if kept > 0 { Err(format!("{kept} of them are not on all members")) } else { Ok(()) }
    }
}

/// Runs these, at most `most` at a time, begun in their order; answers in the order in which they ended.
async fn at_once<F: Future>(most: usize, all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting = all;
    let mut under_way = FuturesUnordered::new();
    let mut ended = Vec::new();
    loop {
        under_way.extend(waiting.by_ref().take(most.saturating_sub(under_way.len())));
        match under_way.next().await {
            Some(output) => ended.push(output),
            None => return ended,
        }
    }
}

/// The fewest copies first.
fn in_order(group: &Group) -> (usize, Key) {
    (group.sources, group.key())
}

/// The groups that one map has this node unite, while newer ones come.
pub(super) struct Pass<'a> {
    node: NodeId,
    /// This node's groups when it began, in the order of their keys.
    then: Arc<Vec<Group>>,
    map: &'a watch::Receiver<Arc<ClusterMap>>,
    /// This node's groups in the newest map that was looked at, and its version.
    newest: Mutex<(u64, Arc<Vec<Group>>)>,
    /// Whether groups with so many copies are overtaken, as of a version of the map.
    overtaken: Mutex<(u64, BTreeMap<usize, bool>)>,
}

impl<'a> Pass<'a> {
    pub fn new(node: NodeId, now: &ClusterMap, map: &'a watch::Receiver<Arc<ClusterMap>>) -> Pass<'a> {
        let then = Arc::new(groups_of(now, node));
        let newest = Mutex::new((now.version, then.clone()));
        Pass { node, then, map, newest, overtaken: Mutex::default() }
    }

    fn newest(&self) -> Arc<Vec<Group>> {
        let map = self.map.borrow();
        let mut held = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 != map.version {
            *held = (map.version, Arc::new(groups_of(&map, self.node)));
        }
        held.1.clone()
    }

    /// The newest map says of this group what it said when the pass began: of its epoch, its members, and who of them is there.
    fn is_present(&self, group: &Group) -> bool {
        let newest = self.newest();
        let found = newest.binary_search_by_key(&group.key(), Group::key);
        found.is_ok_and(|at| newest[at] == *group)
    }

    /// Whether the newest map gives this node a group to unite that has fewer copies left than `group` and did not when the pass
    /// began.
    pub fn overtakes(&self, group: &Group) -> bool {
        let newest = self.newest();
        if Arc::ptr_eq(&newest, &self.then) || plant::is(Plant::RepairBackwards) {
            return false;
        }
        let version = self.newest.lock().unwrap_or_else(PoisonError::into_inner).0;
        let mut overtaken = self.overtaken.lock().unwrap_or_else(PoisonError::into_inner);
        if overtaken.0 != version {
            *overtaken = (version, BTreeMap::new());
        }
        *overtaken.1.entry(group.sources).or_insert_with(|| {
            let urgent = |groups: &[Group]| -> BTreeSet<(PgId, usize)> {
                let urgent = groups.iter().filter(|it| it.closed && it.sources < group.sources);
                urgent.map(|it| (it.pg, it.sources)).collect()
            };
            !urgent(&newest).is_subset(&urgent(&self.then))
        })
    }
}

fn conflict(id: ChunkId) {
    tracing::error!("two disks hold other bytes under the id of chunk {id}; both are left as they are");
}

fn len_of(payload: &[Bytes]) -> u64 {
    payload.iter().map(|piece| piece.len() as u64).sum()
}

/// Compares the copies of open groups, round after round.
pub struct Comparer {
    repairer: Arc<Repairer>,
    watched: BTreeMap<Key, Watched>,
    speed: Speed,
    /// The most that was lacking since nothing was.
    lacked: Owed,
}

impl Comparer {
    pub fn new(repairer: Arc<Repairer>) -> Comparer {
        Comparer { repairer, watched: BTreeMap::new(), speed: Speed::default(), lacked: Owed::default() }
    }

    /// One comparison of everything, and what follows from it.
    pub async fn round(&mut self, map: &ClusterMap) {
        let began = self.repairer.env.now();
        let groups = groups_of(map, self.repairer.node);
        let open: Vec<&Group> = groups.iter().filter(|group| !group.closed).collect();
        let keys: BTreeSet<Key> = open.iter().map(|group| group.key()).collect();
        self.watched.retain(|key, _| keys.contains(key));
        let closed: Vec<&Group> = groups.iter().filter(|group| group.closed).collect();
        let mut queue = self.repairer.owed_by_all(&closed).await;
        let agreements = self.repairer.agreements(&open).await;
        let now = self.repairer.env.now();
        let mut differing = Vec::new();
        for group in &open {
            let watched = self.watched.entry(group.key()).or_default();
            let mark = Some(Mark::of(group));
            if watched.mark != mark {
                *watched = Watched { mark: mark.clone(), ..Watched::default() };
            }
            let (agreement, owed) =
                agreements.get(&group.key()).copied().unwrap_or((Agreement::Unknown, Owed::default()));
            watched.owed = owed;
            match agreement {
                Agreement::Equal => {
                    let (healthy, exchanged) = (!group.degraded, watched.exchanged);
                    *watched = Watched { mark, healthy, exchanged, ..Watched::default() };
                }
                Agreement::Differs { damaged } if watched.is_due(now, damaged, &self.repairer.healing) => {
                    differing.push((group.sources, watched.exchanged, *group));
                }
                Agreement::Differs { .. } => {}
                Agreement::Unknown => watched.healthy = false,
            }
        }
        differing.sort_by_key(|(sources, exchanged, group)| (*sources, *exchanged, group.key()));
        if plant::is(Plant::RepairBackwards) {
            differing.reverse();
        }
        differing.truncate(EXCHANGES_MAX);
        self.exchange_all(differing.into_iter().map(|(_, _, group)| group).collect()).await;
        for group in &open {
            let watched = self.watched.get(&group.key());
            if let Some(watched) = watched.filter(|watched| !watched.healthy && !plant::is(Plant::ClaimHealth)) {
                let held = &mut queue[group.urgency() as usize];
                *held = held.and(watched.owed);
            }
        }
        self.tell(&groups, queue, began);
    }

    /// Walks the inventories of groups whose digests differ, and repairs this disk's part of them.
    async fn exchange_all(&mut self, groups: Vec<&Group>) {
        let repairer = self.repairer.clone();
        let before: Vec<(&Group, Suspects)> = groups
            .into_iter()
            .map(|group| (group, std::mem::take(&mut self.watched.entry(group.key()).or_default().suspects)))
            .collect();
        let compares = before.iter().map(|(group, suspects)| {
            let repairer = &repairer;
            async move {
                let began = repairer.env.now();
                (*group, suspects, began, repairer.compare(group, suspects).await)
            }
        });
        for (group, suspects, began, compared) in at_once(repairer.budget.groups_at_once(), compares).await {
            self.exchanged(group, suspects, began, compared);
        }
    }

    fn exchanged(
        &mut self,
        group: &Group,
        before: &Suspects,
        began: MonoTime,
        compared: Result<(Suspects, Wants), String>,
    ) {
        let missing_after = self.repairer.healing.missing_after;
        let watched = self.watched.entry(group.key()).or_default();
        watched.exchanged = Some(began);
        match compared {
            Ok((suspects, wants)) => {
                let first = *watched.first_exchanged.get_or_insert(began);
                let is_known = watched.healthy || began.since(first) >= missing_after;
                let whole = wants.hopeless.is_empty() && wants.missing == 0 && !group.degraded;
                watched.healthy = is_known && whole && suspects.are_fresh(began, missing_after);
                (watched.suspects, watched.wants) = (suspects, wants);
            }
            Err(why) => {
                tracing::debug!("placement group {} cannot be compared now: {why}", group.pg);
                watched.healthy = false;
                watched.suspects = before.clone();
            }
        }
    }

    fn tell(&mut self, groups: &[Group], queue: [Owed; 3], began: MonoTime) {
        // What a healthy group seems to owe is under way, and not in the queue.
        let owed = queue.into_iter().fold(Owed::default(), Owed::and);
        let pulled = self.repairer.progress.counters.pulled_bytes.get();
        let pulled_bytes_per_s = self.speed.look(self.repairer.env.now(), pulled, owed.chunks > 0);
        let mut health = NodeHealth { checked: true, pulled_bytes_per_s, queue, ..NodeHealth::default() };
        let mut marks = BTreeMap::new();
        let mut hopeless = Vec::new();
        for group in groups {
            let watched = self.watched.get(&group.key());
            if watched.is_some_and(|watched| watched.healthy || plant::is(Plant::ClaimHealth)) {
                marks.insert(group.key(), Mark::of(group));
            }
            hopeless.extend(watched.into_iter().flat_map(|watched| watched.wants.hopeless.iter().copied()));
            if let Ok(engine) = self.repairer.disks.engine(group.own) {
                health.corrupt_chunks += engine.digest(group.pg.pool, group.pg.slots()).damaged;
            }
        }
        self.note(owed);
        (health.missing_chunks, health.missing_bytes) = (owed.chunks, owed.bytes);
        health.hopeless_chunks = hopeless.len() as u64;
        self.repairer.progress.tell(health, hopeless, marks, began);
    }

    /// For the timeline: that this node lacked something, and lacks nothing any more.
    fn note(&mut self, owed: Owed) {
        if owed.chunks > self.lacked.chunks {
            self.lacked = owed;
        } else if owed.chunks == 0 && self.lacked.chunks > 0 {
            let Owed { chunks, bytes } = std::mem::take(&mut self.lacked);
            let node = self.repairer.node;
            let what = format!("node {node} has all its copies again; it lacked {chunks} chunks ({bytes} bytes)");
            if let Some(events) = &self.repairer.events {
                events.record(EventKind::Repaired, node, what);
            }
        }
    }
}

impl Watched {
    /// Inventories are walked no more often than something may be found missing; what is damaged here, at once.
    fn is_due(&self, now: MonoTime, damaged: bool, healing: &Healing) -> bool {
        let pause = if damaged { healing.compare_interval } else { healing.missing_after };
        self.exchanged.is_none_or(|exchanged| now.since(exchanged) >= pause)
    }
}

#[derive(Clone, Copy)]
enum Agreement {
    Equal,
    Differs {
        /// Here.
        damaged: bool,
    },
    /// A member did not answer, or its map is another one.
    Unknown,
}

type Lines = BTreeMap<(Key, DiskId), PgDigestLine>;

impl Repairer {
    /// What differs at one moment may be under way: it is looked at again, a few times.
    async fn agreements(&self, groups: &[&Group]) -> BTreeMap<Key, (Agreement, Owed)> {
        let mut found = BTreeMap::new();
        let mut open: Vec<&Group> = groups.to_vec();
        for look in 0..LOOKS_MAX {
            if look > 0 && !open.is_empty() {
                self.env.sleep(LOOK_PAUSE).await;
            }
            let lines = self.ask_digests(&open).await;
            found.extend(
                open.iter().map(|group| (group.key(), (self.agreement(group, &lines), self.owed(group, &lines)))),
            );
            open.retain(|group| matches!(found.get(&group.key()), Some((Agreement::Differs { damaged: false }, _))));
        }
        found
    }

    /// The digests of all members of these groups, as their nodes tell them.
    async fn ask_digests(&self, groups: &[&Group]) -> Lines {
        let mut asks: BTreeMap<NodeId, Vec<(Key, DiskId)>> = BTreeMap::new();
        for group in groups {
            for member in group.others.iter().filter(|other| other.reach == Reach::Serving) {
                asks.entry(member.node).or_default().push((group.key(), member.disk));
            }
        }
        let asked = asks
            .into_iter()
            .flat_map(|(node, asks)| asks.chunks(DIGESTS_MAX).map(|some| (node, some.to_vec())).collect::<Vec<_>>());
        let answers = asked.map(|(node, asks)| async move {
            let line = |((pool, prefix), disk): &(Key, DiskId)| PgDigestAsk {
                disk: Bytes::copy_from_slice(&disk.0.to_be_bytes()),
                pool: u32::from(pool.0),
                prefix: *prefix,
            };
            let ask = Ask::PgDigests(PgDigests { groups: asks.iter().map(line).collect() });
            match self.peers.ask(node, ask).await {
                Ok((Told::PgDigests(page), _)) => asks.into_iter().zip(page.groups).collect(),
                _ => Vec::new(),
            }
        });
        join_all(answers).await.into_iter().flatten().collect()
    }

    /// What groups that move still owe to this node's disks, by urgency.
    async fn owed_by_all(&self, groups: &[&Group]) -> [Owed; 3] {
        let lines = self.ask_digests(groups).await;
        let mut queue = [Owed::default(); 3];
        for group in groups {
            let held = &mut queue[group.urgency() as usize];
            *held = held.and(self.owed(group, &lines));
        }
        queue
    }

    fn owed(&self, group: &Group, lines: &Lines) -> Owed {
        let Ok(engine) = self.disks.engine(group.own) else { return Owed::default() };
        let own = engine.digest(group.pg.pool, group.pg.slots());
        let line = |member: &Member| lines.get(&(group.key(), member.disk));
        let more = |line: &PgDigestLine| Owed {
            chunks: line.chunks.saturating_sub(own.chunks),
            bytes: line.bytes.saturating_sub(own.bytes),
        };
        group.others.iter().filter_map(line).map(more).max_by_key(|owed| (owed.bytes, owed.chunks)).unwrap_or_default()
    }

    fn agreement(&self, group: &Group, lines: &Lines) -> Agreement {
        let Ok(engine) = self.disks.engine(group.own) else { return Agreement::Unknown };
        let own = engine.digest(group.pg.pool, group.pg.slots());
        let damaged = own.damaged > 0;
        let mut differs = damaged;
        for member in group.others.iter().filter(|other| other.reach == Reach::Serving) {
            let line = lines.get(&(group.key(), member.disk));
            match line.filter(|line| !line.unavailable && line.epoch == group.epoch.0) {
                None => return Agreement::Unknown,
                Some(line) => differs |= (line.chunks, line.sum) != (own.chunks, own.sum),
            }
        }
        if differs { Agreement::Differs { damaged } } else { Agreement::Equal }
    }

    /// What differs now, and what stays to be done. What is known to be missing or damaged here is pulled, what others
    /// have deleted is deleted.
    async fn compare(&self, group: &Group, before: &Suspects) -> Result<(Suspects, Wants), String> {
        let engine = self.disks.engine(group.own)?;
        let now = self.env.now();
        let members = group.reachable();
        let mut walk = Walk::new(group, engine, &*self.peers, &members);
        let (mut suspects, mut left) = (Suspects::default(), Wants::default());
        let is_over = || self.env.now().since(now) > COMPARE_MAX;
        while let Some(window) = walk.next().await? {
            let mut buried = Vec::new();
            let mut wants = Vec::new();
            for (id, states) in &window {
                match judge(*id, states, 1 + members.len()) {
                    Verdict::Same => {}
                    Verdict::Elsewhere => {
                        suspects.note(before, *id, now);
                    }
                    Verdict::Bury => buried.push(*id),
                    Verdict::Mend(want) => wants.push(want),
                    Verdict::Pull(want) => {
                        let since = suspects.note(before, *id, now);
                        if now.since(since) >= self.healing.missing_after {
                            wants.push(want);
                        }
                    }
                    Verdict::Hopeless => {
                        suspects.note(before, *id, now);
                        // Whoever is away may have a good copy.
                        if group.all_required_serve() {
                            left.hopeless.push(*id);
                        }
                    }
                    Verdict::Conflict => conflict(*id),
                }
            }
            self.bury(engine, buried).await?;
            let count = wants.len() as u64;
            if let Err(why) = self.pull_all(engine, group, &walk, wants, &is_over).await {
                tracing::info!("placement group {}: {why}", group.pg);
                left.missing += count;
            }
        }
        Ok((suspects, left))
    }
}

impl Progress {
    fn is_done(&self, group: &Group) -> bool {
        self.state().done.get(&group.key()) == Some(&group.epoch)
    }

    fn finish(&self, group: &Group) {
        self.state().done.insert(group.key(), group.epoch);
    }

    /// Takes in the newest map: forgets what is done of other epochs.
    fn keep(&self, map: &ClusterMap, groups: &[Group]) {
        let now: BTreeMap<Key, &Group> = groups.iter().map(|group| (group.key(), group)).collect();
        let mut state = self.state();
        state.done.retain(|key, epoch| now.get(key).is_some_and(|group| group.closed && group.epoch == *epoch));
        state.bits = map
            .pools
            .iter()
            .filter_map(|row| Some((PoolId(u8::try_from(row.id).ok()?), row.pg_bits.min(24) as u8)))
            .collect();
        let is_whole = |group: &&Group| !group.degraded && !group.closed;
        state.whole = Some(groups.iter().filter(is_whole).map(|group| (group.key(), Mark::of(group))).collect());
        state.own = now.into_keys().collect();
    }

    fn tell(&self, health: NodeHealth, hopeless: Vec<ChunkId>, healthy: BTreeMap<Key, Mark>, began: MonoTime) {
        let mut state = self.state();
        let known = |id: ChunkId| (id, state.hopeless.get(&id).copied().flatten());
        state.hopeless = hopeless.into_iter().take(NAMED_IDS_MAX).map(known).collect();
        if state.hopeless.values().any(Option::is_none) {
            self.doubt.notify_one();
        }
        state.health = health;
        state.healthy = healthy;
        state.compared = Some(began);
    }
}

impl Mark {
    pub(super) fn of(group: &Group) -> Mark {
        Mark { epoch: group.epoch, lives: group.lives.clone() }
    }
}
