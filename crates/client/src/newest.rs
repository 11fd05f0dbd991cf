//! The newest map: kept, waited for, fetched when an answer shows that there is a newer one.

use base::env::{Channel, MonoTime, RandomExt};
use base::ids::{GROUP_ZERO, MapVersion, NodeId};
use meta::map::command::{ClusterMap, MapCommand, MapEntry, MapOutcome, MapReply};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;

use crate::call::{ATTEMPT_MAX, Backoff, Client, OPERATION_MAX, unexpected};
use crate::error::Error;
use crate::map::MapView;
use crate::wire::{self, Answer, Ask, GetMap, Told};

/// Before a map is fetched from another node: the own replica usually follows in a moment, and that costs nothing.
const FETCH_PAUSE: Duration = Duration::from_millis(10);
/// How often unknown names, which may be anybody's invention, are looked for in a fresh map.
const LOOK_UP_INTERVAL: Duration = Duration::from_millis(100);

/// (Not a `tokio::sync::watch`: that wakes its waiters in random order, which no seed would replay.)
#[derive(Default)]
pub(crate) struct Newest {
    held: RwLock<Arc<MapView>>,
    changed: Notify,
    /// The highest version that any answer has shown.
    shown: AtomicU64,
    /// One fetch at a time.
    fetching: AtomicBool,
    /// When an unknown name was last looked for in a fresh map.
    looked_up: Mutex<Option<MonoTime>>,
}

impl Newest {
    pub fn get(&self) -> Arc<MapView> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the newer of two maps.
    fn learn(&self, map: ClusterMap) -> Arc<MapView> {
        let held = self.get();
        let is_newer = |held: &MapView, version| version > held.version() || held.version() == MapVersion(0);
        if !is_newer(&held, MapVersion(map.version)) {
            return held;
        }
        // Indexed outside of the lock: every other request waits there.
        let fresh = Arc::new(MapView::new(map));
        let newest = {
            let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
            if is_newer(&held, fresh.version()) {
                *held = fresh;
            }
            held.clone()
        };
        self.changed.notify_waiters();
        newest
    }

    /// The map as soon as it is newer than `version`.
    pub async fn newer_than(&self, version: MapVersion) -> Arc<MapView> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that a change in between is not missed.
            changed.as_mut().enable();
            let map = self.get();
            if map.version() > version {
                return map;
            }
            changed.await;
        }
    }

    /// No answer so far has shown a newer map than `map`.
    pub fn is_newest(&self, map: &MapView) -> bool {
        map.version().0 >= self.shown.load(Ordering::SeqCst)
    }
}

impl Client {
    /// The map as cached; possibly empty before the first refresh.
    pub fn map(&self) -> Arc<MapView> {
        self.shared.newest.get()
    }

    /// Keeps the newer of two maps.
    pub fn learn_map(&self, map: ClusterMap) -> Arc<MapView> {
        self.shared.newest.learn(map)
    }

    /// The map as soon as it is newer than `version`.
    pub async fn map_newer_than(&self, version: MapVersion) -> Arc<MapView> {
        self.shared.newest.newer_than(version).await
    }

    /// Fetches the map; linearizable: all changes acknowledged before the call are in it.
    pub async fn refresh_map(&self) -> Result<Arc<MapView>, Error> {
        let ask = Ask::GetMap(GetMap { linearizable: true });
        match self.ask_leader(GROUP_ZERO, ask).await? {
            Told::Map(map) => Ok(self.learn_map(map)),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether a majority of group 0 answers, so that whoever is silent will be voted down. Asked for at most once a second.
    pub(crate) async fn majority_answers(&self) -> bool {
        const VALID: Duration = Duration::from_secs(1);
        const PATIENCE: Duration = Duration::from_secs(2);
        let mut asked = self.shared.majority.lock().await;
        if let Some((_, answers)) = asked.filter(|(at, _)| self.shared.env.now().since(*at) < VALID) {
            return answers;
        }
        let ask = Ask::GetMap(GetMap { linearizable: true });
        let answers = match self.ask_leader_within(GROUP_ZERO, ask, PATIENCE).await {
            Ok(Told::Map(map)) => {
                self.learn_map(map);
                true
            }
            _ => false,
        };
        *asked = Some((self.shared.env.now(), answers));
        answers
    }

    /// As `refresh_map`, but rarely: for names that may be anybody's invention. In between the cached map answers, which
    /// this node's own replica keeps fresh.
    pub(crate) async fn refresh_map_sometimes(&self) -> Result<Arc<MapView>, Error> {
        {
            let mut last = self.shared.newest.looked_up.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.shared.env.now();
            if last.is_some_and(|last| now.since(last) < LOOK_UP_INTERVAL) {
                return Ok(self.map());
            }
            *last = Some(now);
        }
        self.refresh_map().await
    }

    /// Changes the map, once, whatever is lost on the way; afterwards the cached map includes the change.
    pub async fn change_map(&self, command: MapCommand) -> Result<MapReply, Error> {
        let slot = self.slots(GROUP_ZERO).take().await;
        let entry = MapEntry { slot: Some(slot.reference()), command: Some(command) };
        match self.ask_leader(GROUP_ZERO, Ask::ProposeMap(entry)).await? {
            Told::MapReply(reply) => {
                // The change is made: no error may say that nothing was done.
                let unseen = |error| Error::OutcomeUnknown(format!("the map was changed and cannot be read: {error}"));
                self.refresh_map().await.map_err(unseen)?;
                Ok(reply)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// As a change of the map whose refusal is an error.
    pub async fn change_map_checked(&self, command: MapCommand) -> Result<MapReply, Error> {
        let reply = self.change_map(command).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(reply),
            // An earlier try may have been executed.
            MapOutcome::SessionClosed => Err(Error::OutcomeUnknown(reply.detail)),
            outcome => Err(Error::Invalid(format!("{outcome:?}: {}", reply.detail))),
        }
    }

    /// An answer of node `by` carried this version of the map. A newer one than ours is fetched in the background.
    pub(crate) fn map_shown(&self, version: u64, by: NodeId) {
        let newest = &self.shared.newest;
        if version <= newest.get().version().0 {
            return;
        }
        newest.shown.fetch_max(version, Ordering::SeqCst);
        if !newest.fetching.swap(true, Ordering::SeqCst) {
            let client = self.clone();
            self.shared.env.spawn("fetch the map", async move { client.catch_up(by).await });
        }
    }

    /// Fetches from the node that showed the newer map first, then from whoever answers.
    async fn catch_up(&self, by: NodeId) {
        let (env, newest) = (&self.shared.env, &self.shared.newest);
        let mut backoff = Backoff::new(env.now() + OPERATION_MAX);
        let mut from = by;
        let mut contact = 0;
        env.sleep(FETCH_PAUSE).await;
        loop {
            if newest.is_newest(&self.map()) {
                newest.fetching.store(false, Ordering::SeqCst);
                // What was shown between the look and the store found a fetch under way.
                if newest.is_newest(&self.map()) || newest.fetching.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
            if let Some(map) = self.fetch_map(from).await {
                self.learn_map(map);
                continue;
            }
            if !backoff.wait(env).await {
                // The next answer that shows a newer map starts anew.
                newest.fetching.store(false, Ordering::SeqCst);
                return;
            }
            let contacts = self.contacts(GROUP_ZERO);
            from = contacts[contact % contacts.len()];
            contact += 1;
        }
    }

    /// Asks another node, any, once, for the map that it has.
    pub async fn ask_around(&self) {
        let own = self.session().node;
        let others: Vec<NodeId> = self.contacts(GROUP_ZERO).into_iter().filter(|node| *node != own).collect();
        if others.is_empty() {
            return;
        }
        let drawn = self.shared.env.random.below(others.len() as u64);
        if let Some(map) = self.fetch_map(others[drawn as usize]).await {
            self.learn_map(map);
        }
    }

    /// What the replica of node `from` has applied, if that is news.
    async fn fetch_map(&self, from: NodeId) -> Option<ClusterMap> {
        let request = self.request(Ask::GetMap(GetMap { linearizable: false }));
        let reply = self.call(from, Channel::Control, wire::frame(&request, Vec::new()), ATTEMPT_MAX).await.ok()?;
        match wire::head::<Answer>(&reply).ok()?.told {
            Some(Told::Map(map)) if map.version > self.map().version().0 => Some(map),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(version: u64) -> ClusterMap {
        ClusterMap { version, ..ClusterMap::default() }
    }

    #[test]
    fn the_newer_of_two_maps_is_kept() {
        let newest = Newest::default();
        assert_eq!(newest.learn(map(3)).version(), MapVersion(3));
        assert_eq!(newest.learn(map(2)).version(), MapVersion(3));
        assert_eq!(newest.learn(map(4)).version(), MapVersion(4));
        assert_eq!(newest.get().version(), MapVersion(4));
    }

    #[test]
    fn a_map_is_not_the_newest_when_an_answer_has_shown_a_newer_one() {
        let newest = Newest::default();
        newest.learn(map(3));
        assert!(newest.is_newest(&newest.get()));
        newest.shown.store(4, Ordering::Release);
        assert!(!newest.is_newest(&newest.get()));
        newest.learn(map(4));
        assert!(newest.is_newest(&newest.get()));
    }
}
