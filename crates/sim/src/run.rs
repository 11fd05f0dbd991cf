//! One run: everything that happens under one seed, and what came of it.

use base::env::RandomExt;
use base::sim::{NetModel, Sim, SimHandle, TraceEvent};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

use crate::cluster::{Cluster, FOUNDER};
use crate::nemesis::Nemesis;
use crate::plan::{Plan, Planted, Profile};
use crate::recorder::Recorder;
use crate::timeline::Timeline;
use crate::trouble::Ration;
use crate::worker::{Excuses, Worker};

/// Task runs and events of one run; more is a live lock.
const EVENTS_MAX: u64 = 20_000_000;

/// How often one looks which sessions are closed.
const FENCE_CHECK: Duration = Duration::from_millis(50);

/// What is not left to the seed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Wanted {
    pub planted: Option<Planted>,
    pub profile: Option<Profile>,
}

/// What a run has come to.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub profile: Profile,
    pub violations: Vec<String>,
    /// How often what happened.
    pub counts: BTreeMap<&'static str, u64>,
    pub histories: u64,
    pub undecided: u64,
    pub simulated: Duration,
    /// A hash over everything that happened: equal for equal seeds.
    pub trace_hash: u64,
}

/// Runs `seed` to its end. `is_traced` prints what happens as it happens.
pub fn run(seed: u64, wanted: Wanted, is_traced: bool) -> Report {
    run_in(&Sim::new(seed), wanted, is_traced)
}

/// Every event of a run: to find where two runs of one seed part.
pub fn events(seed: u64, wanted: Wanted) -> Vec<TraceEvent> {
    let sim = Sim::new(seed);
    sim.record_trace();
    run_in(&sim, wanted, false);
    sim.trace()
}

fn run_in(sim: &Sim, wanted: Wanted, is_traced: bool) -> Report {
    let seed = sim.seed();
    sim.set_events_max(EVENTS_MAX);
    let is_rough = sim.below(3) == 0;
    if is_rough {
        sim.set_net_model(NetModel::rough());
    }
    let plan = Arc::new(Plan { is_rough, ..Plan::draw(&**sim, wanted.planted, wanted.profile) });
    let recorder = Recorder::new(SimHandle::clone(sim), is_traced);
    recorder.note(|| format!("{plan:?}"));
    let nemesis = nemesis(sim, &plan, &recorder);
    nemesis.plant(false);
    let timeline = is_traced.then(|| tracing::subscriber::set_default(Timeline(SimHandle::clone(sim))));
    sim.block_on(live(SimHandle::clone(sim), nemesis));
    drop(timeline);
    let is_versioned = |bucket: usize| plan.buckets[bucket].versioned;
    let (histories, undecided) = recorder.check_histories(is_versioned);
    Report {
        seed,
        profile: plan.profile,
        violations: recorder.violations(),
        counts: recorder.counts(),
        histories,
        undecided,
        simulated: Duration::from_nanos(sim.now().0),
        trace_hash: sim.trace_hash(),
    }
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
async fn live(sim: SimHandle, nemesis: Nemesis) {
    if nemesis.found().await.is_err() {
        return;
    }
    let clients_done = Arc::new(AtomicBool::new(false));
    let is_set_up = nemesis.is_set_up.clone();
    let (sender, all_done) = oneshot::channel();
    let (done, worker, planter) = (clients_done.clone(), nemesis.verifier.clone(), nemesis.clone());
    let clients_sim = sim.clone();
    sim.spawn("clients", async move {
        worker.set_up().await;
        planter.plant(true);
        is_set_up.store(true, Ordering::Relaxed);
        run_clients(&clients_sim, &worker).await;
        done.store(true, Ordering::Relaxed);
        let _ = sender.send(());
    });
    let is_cluster = nemesis.plan.nodes > 1;
    if is_cluster {
        let (cluster, watcher) = (nemesis.cluster.clone(), sim.clone());
        sim.spawn("watch fences", async move {
            loop {
                cluster.note_fences();
                watcher.sleep(FENCE_CHECK).await;
            }
        });
    }
    let survived = if is_cluster { nemesis.trouble(clients_done).await } else { nemesis.run(clients_done).await };
    if survived.is_err() {
        // The node is gone for good, and its clients wait for it in vain.
        return;
    }
    if all_done.await.is_err() || nemesis.recorder.has_violations() {
        return;
    }
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
