//! One run: everything that happens under one seed, and what came of it.

use base::env::RandomExt;
use base::plant::{self, Plant};
use base::sim::{NetModel, Sim, SimHandle, TraceEvent};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

use crate::cluster::{Cluster, FOUNDER};
use crate::nemesis::Nemesis;
use crate::plan::{Limits, Plan, Profile};
use crate::ration::Ration;
use crate::recorder::{Recorder, Shown};
use crate::timeline::{Point, Timeline};
use crate::worker::{Excuses, Worker};

/// Task runs and events of one run; more is a live lock.
const EVENTS_MAX: u64 = 20_000_000;

/// Words in the names of faults after which disks do not hold what was written to them.
const DAMAGE: [&str; 12] = [
    "fail",
    "flipped",
    "writes lost",
    "misdirected",
    "spoilt",
    "rots",
    "vanishes",
    "full",
    "replaced by",
    "another's",
    "destroyed",
    "log is lost",
];

/// What is not left to the seed.
#[derive(Clone, Default, Debug)]
pub struct Wanted {
    /// A defect, planted once the buckets exist.
    pub plant: Option<Plant>,
    pub profile: Option<Profile>,
    pub limits: Limits,
    pub shown: Shown,
}

/// What a run has come to.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub profile: Profile,
    pub violations: Vec<String>,
    /// How often what happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// How often which kind of fault struck.
    pub faults: BTreeMap<&'static str, u64>,
    /// How often which sequence of faults was told.
    pub stories: BTreeMap<&'static str, u64>,
    /// Points of the product that were reached.
    pub points: BTreeSet<Point>,
    pub histories: u64,
    pub undecided: u64,
    pub simulated: Duration,
    pub events: u64,
    /// A hash over everything that happened: equal for equal seeds.
    pub trace_hash: u64,
}

/// Runs `seed` to its end.
pub fn run(seed: u64, wanted: &Wanted) -> Report {
    run_in(&Sim::new(seed), wanted)
}

/// Every event of a run: to find where two runs of one seed part.
pub fn events(seed: u64, wanted: &Wanted) -> Vec<TraceEvent> {
    let sim = Sim::new(seed);
    sim.record_trace();
    run_in(&sim, wanted);
    sim.trace()
}

fn run_in(sim: &Sim, wanted: &Wanted) -> Report {
    plant::set(None);
    sim.set_events_max(EVENTS_MAX);
    let is_rough = sim.below(3) == 0;
    let plan = Plan::draw(&**sim, wanted.profile).limited(&wanted.limits);
    let is_rough = is_rough && plan.profile.may_be_rough();
    if is_rough {
        sim.set_net_model(NetModel::rough());
    }
    let plan = Arc::new(Plan { is_rough, ..plan });
    let recorder = Recorder::new(SimHandle::clone(sim), wanted.shown);
    recorder.note(|| plan.in_words());
    let nemesis = nemesis(sim, &plan, &recorder);
    let timeline = Timeline::new(SimHandle::clone(sim), wanted.shown);
    let shown = tracing::subscriber::set_default(timeline.clone());
    sim.block_on(live(SimHandle::clone(sim), nemesis, wanted.plant));
    drop(shown);
    if let Some(planted) = wanted.plant {
        recorder.note(|| format!("the planted defect {} was committed {} times", planted.name(), plant::reached()));
    }
    plant::set(None);
    let is_versioned = |bucket: usize| plan.buckets[bucket].versioned;
    let (histories, undecided) = recorder.check_histories(is_versioned);
    let mut faults = recorder.faults();
    faults.extend(sim.fault_counts());
    let stories = recorder.stories();
    if !nemesis_damage(&faults) && !nemesis_damage(&stories) {
        for cry in timeline.cries() {
            recorder.violation(format!("nothing was damaged, and the product finds damage: {cry}"));
        }
    }
    Report {
        seed: sim.seed(),
        profile: plan.profile,
        violations: recorder.violations(),
        counts: recorder.counts(),
        faults,
        stories,
        points: timeline.reached(),
        histories,
        undecided,
        simulated: Duration::from_nanos(sim.now().0),
        events: sim.events_done(),
        trace_hash: sim.trace_hash(),
    }
}

/// Whether anything was done to what disks hold that a power cut alone does not do.
fn nemesis_damage(faults: &BTreeMap<&'static str, u64>) -> bool {
    faults.keys().any(|what| DAMAGE.iter().any(|damage| what.contains(damage)))
}

fn nemesis(sim: &SimHandle, plan: &Arc<Plan>, recorder: &Recorder) -> Nemesis {
    let cluster = Cluster::new(sim.clone(), plan.clone(), recorder.clone());
    let excuses = Arc::new(Excuses::default());
    let verifier = Worker {
        id: 1000,
        sim: sim.clone(),
        cluster: cluster.clone(),
        recorder: recorder.clone(),
        plan: plan.clone(),
        excuses: excuses.clone(),
        home: Arc::new(AtomicU32::new(FOUNDER.0)),
        tokens: Arc::default(),
    };
    Nemesis {
        sim: sim.clone(),
        cluster,
        recorder: recorder.clone(),
        plan: plan.clone(),
        excuses,
        verifier,
        is_set_up: Arc::default(),
        ration: Ration::default(),
    }
}

/// The first start, the clients with the nemesis against them, the checks at the end.
async fn live(sim: SimHandle, nemesis: Nemesis, planted: Option<Plant>) {
    if nemesis.found().await.is_err() {
        return;
    }
    let clients_done = Arc::new(AtomicBool::new(false));
    let is_set_up = nemesis.is_set_up.clone();
    let (sender, all_done) = oneshot::channel();
    let (done, worker) = (clients_done.clone(), nemesis.verifier.clone());
    let clients_sim = sim.clone();
    sim.spawn("clients", async move {
        worker.set_up().await;
        plant::set(planted);
        is_set_up.store(true, Ordering::Relaxed);
        run_clients(&clients_sim, &worker).await;
        done.store(true, Ordering::Relaxed);
        let _ = sender.send(());
    });
    let is_cluster = nemesis.plan.nodes > 1;
    if is_cluster {
        sim.spawn("watch", crate::watch::watch(sim.clone(), nemesis.cluster.clone(), nemesis.recorder.clone()));
    }
    let survived = if is_cluster { nemesis.trouble(clients_done).await } else { nemesis.run(clients_done).await };
    if survived.is_err() {
        // The node is gone for good, and its clients wait for it in vain.
        return;
    }
    if all_done.await.is_err() || nemesis.recorder.has_violations() {
        return;
    }
    nemesis.recorder.note(|| "the clients are done".into());
    if is_cluster {
        nemesis.check_cluster().await;
    } else {
        nemesis.check_all().await;
    }
}

async fn run_clients(sim: &SimHandle, worker: &Worker) {
    let mut ends = Vec::new();
    for id in 0..=worker.plan.clients {
        let (sender, end) = oneshot::channel::<()>();
        let client = Worker { id, home: Arc::new(AtomicU32::new(FOUNDER.0)), ..worker.clone() };
        let is_last = id == worker.plan.clients;
        sim.spawn("client", async move {
            if is_last {
                client.churn().await
            } else if client.plan.profile == Profile::Fences {
                client.hold_locks().await
            } else {
                client.work().await
            }
            drop(sender);
        });
        ends.push(end);
    }
    for end in ends {
        // Nothing is sent: the sender is dropped when the client is done.
        let _ = end.await;
    }
}
