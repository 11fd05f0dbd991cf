//! Who is served when more is asked than can be done at once: the tenants in turn, each in the order in which it asked.
//!
//! A tenant is an access key, or the address of somebody who has none. What runs is bounded (and with it memory), what
//! waits is bounded, and how long it waits is bounded; beyond that the answer is `503 SlowDown`, for those of whom the most
//! wait. No tenant may hold all places: whoever floods the gateway waits for itself. While several ask, each has few small
//! requests at work at once, so that nobody's wait long behind another's in the queues below.

use crate::error::{Code, Result, S3Error};
use base::env::{Clock, MonoTime};
use http::HeaderValue;
use http::header::RETRY_AFTER;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Units of work that run at once.
const UNITS_MAX: usize = 512;
/// Units of one tenant that run at once.
const UNITS_OF_TENANT_MAX: usize = 384;
/// Light requests of one tenant that are at work at once while others ask as well: enough to keep the disks busy.
const LIGHT_SHARED_MAX: usize = 64;
/// Tenants share for so long after another one asked.
const SHARED_FOR: Duration = Duration::from_secs(1);
/// Requests that wait: all, and of one tenant.
const WAITING_MAX: usize = 2048;
const WAITING_OF_TENANT_MAX: usize = 512;
/// How long a request waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// A request that moves few bytes, and one that may hold several chunks in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weight {
    Light = 1,
    Heavy = 8,
}

/// The places of a gateway. Cheap to clone.
#[derive(Clone, Default)]
pub struct Places {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: usize,
    tenants: BTreeMap<String, Tenant>,
    /// Tenants that wait, each once.
    turn: VecDeque<String>,
    /// Who asked last, and when.
    last: Option<(String, MonoTime)>,
    shared_until: MonoTime,
    /// Whether several tenants have asked of late.
    is_shared: bool,
}

#[derive(Default)]
struct Tenant {
    running: usize,
    /// Of these, light requests whose answer has not begun.
    light: usize,
    queue: VecDeque<(Weight, oneshot::Sender<()>)>,
}

/// A place; given back when it is dropped.
pub struct Place {
    places: Places,
    tenant: String,
    weight: Weight,
    /// The answer has begun: it waits for its reader now, and nobody for it.
    has_begun: AtomicBool,
}

impl Places {
    /// Waits for a place, in turn.
    pub async fn take(&self, tenant: String, weight: Weight, clock: &dyn Clock) -> Result<Place> {
        let granted = self.ask(&tenant, weight, clock.now())?;
        // From here on the place is given back whatever happens: also when the grant and the end of patience cross.
        let place = Claim { places: self.clone(), tenant, weight, granted, is_over: false };
        place.wait(clock).await
    }

    fn ask(&self, tenant: &str, weight: Weight, now: MonoTime) -> Result<oneshot::Receiver<()>> {
        let mut state = self.lock();
        state.note(tenant, now);
        let waiting = state.tenants.get(tenant).map_or(0, |tenant| tenant.queue.len());
        if waiting >= WAITING_OF_TENANT_MAX {
            return Err(slow_down());
        }
        let (grant, granted) = oneshot::channel();
        state.tenants.entry(tenant.to_owned()).or_default().queue.push_back((weight, grant));
        state.waiting += 1;
        if waiting == 0 && !state.turn.iter().any(|name| name == tenant) {
            state.turn.push_back(tenant.to_owned());
        }
        state.grant();
        if state.waiting > WAITING_MAX {
            state.refuse_one(tenant);
        }
        Ok(granted)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, tenant: &str, weight: Weight, has_begun: bool) {
        let mut state = self.lock();
        state.running -= weight as usize;
        if let Some(tenant) = state.tenants.get_mut(tenant) {
            tenant.running -= weight as usize;
            if !has_begun {
                tenant.light -= weight.light();
            }
        }
        state.forget(tenant);
        state.grant();
    }
}

impl Weight {
    /// What it counts among light requests.
    fn light(self) -> usize {
        usize::from(self == Weight::Light)
    }
}

impl Place {
    /// The answer begins. From here on its reader decides how long it takes.
    pub fn begin(&self) {
        if self.has_begun.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut state = self.places.lock();
        if let Some(tenant) = state.tenants.get_mut(&self.tenant) {
            tenant.light -= self.weight.light();
        }
        state.grant();
    }
}

impl State {
    fn note(&mut self, tenant: &str, now: MonoTime) {
        match &mut self.last {
            Some((last, at)) if last == tenant => *at = now,
            last => {
                if last.as_ref().is_some_and(|(_, at)| now < *at + SHARED_FOR) {
                    self.shared_until = now + SHARED_FOR;
                }
                *last = Some((tenant.to_owned(), now));
            }
        }
        self.is_shared = now < self.shared_until;
    }

    /// Gives free places to those whose turn it is.
    fn grant(&mut self) {
        let mut passed_over = 0;
        while passed_over < self.turn.len() {
            let Some(name) = self.turn.pop_front() else { return };
            let tenant = self.tenants.get_mut(&name).expect("who waits is known");
            // Who has lost patience meanwhile needs no place.
            while tenant.queue.front().is_some_and(|(_, grant)| grant.is_closed()) {
                tenant.queue.pop_front();
                self.waiting -= 1;
            }
            let Some(kind) = tenant.queue.front().map(|(weight, _)| *weight) else {
                self.forget(&name);
                continue;
            };
            let weight = kind as usize;
            let light_max = if self.is_shared { LIGHT_SHARED_MAX } else { UNITS_OF_TENANT_MAX };
            if tenant.running + weight > UNITS_OF_TENANT_MAX || tenant.light + kind.light() > light_max {
                self.turn.push_back(name);
                passed_over += 1;
                continue;
            }
            if self.running + weight > UNITS_MAX {
                // Nobody overtakes: else a heavy request would wait for ever behind light ones.
                self.turn.push_front(name);
                return;
            }
            let (_, grant) = tenant.queue.pop_front().expect("its weight was looked at");
            self.waiting -= 1;
            if grant.send(()).is_ok() {
                self.running += weight;
                tenant.running += weight;
                tenant.light += kind.light();
            }
            if tenant.queue.is_empty() {
                self.forget(&name);
            } else {
                self.turn.push_back(name);
            }
            passed_over = 0;
        }
    }

    /// Takes those out of a tenant's queue who have lost patience or went away.
    fn leave(&mut self, name: &str) {
        let Some(tenant) = self.tenants.get_mut(name) else { return };
        let before = tenant.queue.len();
        tenant.queue.retain(|(_, grant)| !grant.is_closed());
        self.waiting -= before - tenant.queue.len();
        if tenant.queue.is_empty() {
            self.turn.retain(|waiting| waiting != name);
            self.forget(name);
        }
        // Who went may have been too heavy for what is free, and in front of others.
        self.grant();
    }

    /// Sends away who came last to the longest queue; of equal ones, to that of `asker`.
    fn refuse_one(&mut self, asker: &str) {
        let longest = self.tenants.iter().max_by_key(|(name, tenant)| (tenant.queue.len(), *name == asker));
        let Some(name) = longest.map(|(name, _)| name.clone()) else { return };
        let Some(tenant) = self.tenants.get_mut(&name) else { return };
        // What is dropped here tells the one who waits.
        if tenant.queue.pop_back().is_some() {
            self.waiting -= 1;
        }
        if tenant.queue.is_empty() {
            self.turn.retain(|waiting| *waiting != name);
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &str) {
        if self.tenants.get(name).is_some_and(|tenant| tenant.running == 0 && tenant.queue.is_empty()) {
            self.tenants.remove(name);
        }
    }
}

/// A place that was asked for.
struct Claim {
    places: Places,
    tenant: String,
    weight: Weight,
    granted: oneshot::Receiver<()>,
    is_over: bool,
}

impl Claim {
    async fn wait(mut self, clock: &dyn Clock) -> Result<Place> {
        let deadline = clock.now() + WAIT_MAX;
        let granted = tokio::select! {
            biased;
            granted = &mut self.granted => granted.is_ok(),
            () = clock.sleep_until(deadline) => false,
        };
        if !granted {
            return Err(slow_down());
        }
        // Taken over: nothing is left to give back.
        self.is_over = true;
        let (places, tenant) = (self.places.clone(), std::mem::take(&mut self.tenant));
        Ok(Place { places, tenant, weight: self.weight, has_begun: AtomicBool::new(false) })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.granted.close();
        match self.granted.try_recv() {
            // Granted in the moment in which patience ended, or the request was broken off.
            Ok(()) => self.places.give_back(&self.tenant, self.weight, false),
            Err(_) => self.places.lock().leave(&self.tenant),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.give_back(&self.tenant, self.weight, *self.has_begun.get_mut());
    }
}

/// The answer under overload: come again later.
pub fn slow_down() -> S3Error {
    S3Error::new(Code::SlowDown, "Please reduce your request rate: more is asked than can be served now.")
        .header(RETRY_AFTER, HeaderValue::from_static("1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::env::{BoxFuture, MonoTime, WallTime};
    use futures_util::FutureExt;

    /// Time stands still, or patience is over at once.
    struct Patience(bool);

    impl Clock for Patience {
        fn now(&self) -> MonoTime {
            MonoTime(0)
        }
        fn wall(&self) -> WallTime {
            WallTime(0)
        }
        fn sleep_until(&self, _: MonoTime) -> BoxFuture<()> {
            if self.0 { Box::pin(std::future::pending()) } else { Box::pin(std::future::ready(())) }
        }
    }

    const PATIENT: Patience = Patience(true);

    fn now(places: &Places, tenant: &str, weight: Weight) -> Option<Place> {
        places.take(tenant.to_owned(), weight, &Patience(false)).now_or_never().expect("decided at once").ok()
    }

    #[test]
    fn a_flood_leaves_places_for_others() {
        let places = Places::default();
        let flood: Vec<Place> = std::iter::from_fn(|| now(&places, "flood", Weight::Light)).collect();
        assert_eq!(flood.len(), UNITS_OF_TENANT_MAX);
        let others: Vec<Place> = (0..UNITS_MAX - UNITS_OF_TENANT_MAX)
            .map(|i| now(&places, &format!("t{i}"), Weight::Light).expect("there is room"))
            .collect();
        assert!(now(&places, "late", Weight::Light).is_none());
        drop(others);
        drop(flood);
        let state = places.lock();
        assert_eq!((state.running, state.waiting, state.tenants.len(), state.turn.len()), (0, 0, 0, 0));
    }

    /// Small requests of a flood would fill the queues of disks and log, and another tenant's stand behind them.
    #[test]
    fn while_others_ask_a_flood_has_few_small_requests_at_work() {
        let places = Places::default();
        let of = |tenant: &str| now(&places, tenant, Weight::Light);
        let mut flood: Vec<Place> = (0..200).map(|_| of("flood").expect("alone it has room")).collect();
        drop(of("other").expect("there is room"));
        assert!(of("flood").is_none(), "it has more at work than while others ask");
        flood.truncate(LIGHT_SHARED_MAX);
        assert!(of("flood").is_none());
        // An answer that streams is its reader's business.
        flood[0].begin();
        flood[0].begin();
        let one = of("flood").expect("one has begun to answer");
        assert!(of("flood").is_none());
        assert!(now(&places, "flood", Weight::Heavy).is_some(), "large ones are bounded by what they hold in memory");
        drop((flood, one));
        let tenants = &places.lock().tenants;
        assert!(tenants.is_empty(), "nothing is left");
    }

    /// A heavy request of a tenant that has all it may have waits for that tenant's own, and holds up nobody.
    #[test]
    fn who_waits_for_its_own_places_does_not_hold_up_others() {
        let places = Places::default();
        let take = |tenant: &str, weight| places.take(tenant.to_owned(), weight, &PATIENT);
        let of = |tenant: &str, weight| now(&places, tenant, weight).expect("there is room");
        let full: Vec<Place> = (0..UNITS_OF_TENANT_MAX / 8).map(|_| of("full", Weight::Heavy)).collect();
        let rest: Vec<Place> =
            (UNITS_OF_TENANT_MAX..UNITS_MAX - 4).map(|i| of(&format!("t{i}"), Weight::Light)).collect();
        let mut waits = std::pin::pin!(take("full", Weight::Heavy));
        assert!(waits.as_mut().now_or_never().is_none());
        assert!(now(&places, "other", Weight::Light).is_some(), "four places are free");
        drop((full, rest));
        assert!(waits.now_or_never().is_some_and(|place| place.is_ok()));
    }

    #[test]
    fn tenants_are_served_in_turn() {
        let places = Places::default();
        let held: Vec<Place> = (0..2)
            .flat_map(|tenant| std::iter::repeat_n(tenant, UNITS_MAX / 2 / Weight::Heavy as usize))
            .map(|tenant| now(&places, &format!("held{tenant}"), Weight::Heavy).expect("there is room"))
            .collect();
        let mut waiting: Vec<(&str, BoxFuture<Result<Place>>)> = Vec::new();
        for (tenant, number) in [("flood", 300), ("a", 1), ("b", 2)] {
            for _ in 0..number {
                let places = places.clone();
                let mut wait: BoxFuture<Result<Place>> =
                    Box::pin(async move { places.take(tenant.to_owned(), Weight::Light, &PATIENT).await });
                assert!((&mut wait).now_or_never().is_none(), "everything is taken");
                waiting.push((tenant, wait));
            }
        }
        drop(held.into_iter().next());
        // Eight units are free: flood, a, b, flood, b, flood ...
        let mut served = BTreeMap::new();
        for (tenant, mut wait) in waiting {
            if let Some(Ok(place)) = (&mut wait).now_or_never() {
                *served.entry(tenant).or_insert(0) += 1;
                std::mem::forget(place);
            } else {
                std::mem::forget(wait);
            }
        }
        assert_eq!((served["a"], served["b"]), (1, 2), "{served:?}");
    }

    /// Floods of several tenants fill the queue; whoever comes new still has its place, or its place in the queue.
    #[test]
    fn a_full_queue_is_full_for_those_who_filled_it() {
        let places = Places::default();
        let wait = |tenant: &str| -> BoxFuture<Result<Place>> {
            let (places, tenant) = (places.clone(), tenant.to_owned());
            Box::pin(async move { places.take(tenant, Weight::Light, &PATIENT).await })
        };
        let floods = ["a", "b", "c", "d"];
        let _shared: Vec<Place> = floods.iter().map(|name| now(&places, name, Weight::Light).unwrap()).collect();
        let mut held = Vec::new();
        for name in floods {
            held.extend(std::iter::from_fn(|| now(&places, name, Weight::Light)));
        }
        let mut waiting: Vec<(&str, BoxFuture<Result<Place>>)> = Vec::new();
        for name in floods {
            waiting.extend((0..WAITING_OF_TENANT_MAX).map(|_| (name, wait(name))));
        }
        for (_, wait) in &mut waiting {
            assert!(wait.now_or_never().is_none());
        }
        assert_eq!(places.lock().waiting, WAITING_MAX);
        held.push(now(&places, "new", Weight::Light).expect("places are free, and nobody's turn is before"));
        held.extend((0..).map_while(|i| now(&places, &format!("t{i}"), Weight::Light)));
        assert_eq!(places.lock().running, UNITS_MAX);
        let mut patient = wait("new");
        assert!((&mut patient).now_or_never().is_none(), "it waits");
        let answers = waiting.iter_mut().filter_map(|(_, wait)| wait.now_or_never());
        let refused: Vec<Code> = answers.map(|answer| answer.err().expect("no place is free").code).collect();
        assert!(!refused.is_empty() && refused.iter().all(|code| *code == Code::SlowDown), "{refused:?}");
        drop(held);
        assert!(patient.now_or_never().unwrap().is_ok());
    }

    #[test]
    fn what_waits_is_bounded_and_patience_ends() {
        let places = Places::default();
        let _held: Vec<Place> = std::iter::from_fn(|| now(&places, "flood", Weight::Light)).collect();
        let mut waiting = Vec::new();
        for _ in 0..WAITING_OF_TENANT_MAX {
            let places = places.clone();
            let mut wait: BoxFuture<Result<Place>> =
                Box::pin(async move { places.take("flood".to_owned(), Weight::Light, &PATIENT).await });
            assert!((&mut wait).now_or_never().is_none());
            waiting.push(wait);
        }
        let refused = places.take("flood".to_owned(), Weight::Light, &PATIENT).now_or_never().expect("at once");
        let error = refused.err().expect("the queue is full");
        assert_eq!((error.code, error.headers.len()), (Code::SlowDown, 1));
        assert!(now(&places, "other", Weight::Light).is_some(), "others are served");
        waiting.truncate(1);
        let mut again = std::pin::pin!(places.take("flood".to_owned(), Weight::Light, &PATIENT));
        assert!(again.as_mut().now_or_never().is_none(), "who gave up waits no longer: there is room in the queue");
        assert_eq!(places.lock().waiting, 2);
        drop(waiting);
        assert_eq!(places.lock().running, UNITS_OF_TENANT_MAX, "who gave up holds nothing");
    }
}
