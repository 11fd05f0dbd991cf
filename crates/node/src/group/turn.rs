//! Whose turn it is to do without its rows: one replica of a group at a time, because those that are damaged in different
//! places complete each other until one of them is whole again.
//!
//! A replica looks first whether any other is at it, then claims its turn, then asks all of them again. Who then finds the
//! claim of a lower node id takes its own back; who has the lowest waits until that has happened. Two never go on
//! together: each would have been answered before the other claimed, and each claims before it asks.
//!
//! A voter that the map marks as down is not asked: it may stay away for ever, and until it is back nothing is at it.

use base::Env;
use base::env::{Channel, MonoTime};
use base::ids::{GroupId, LogIndex, NodeId, PeerId};
use bytes::Bytes;
use client::wire::{self, Answer, Ask, AskRows, Request, RowsState, Told};
use futures_util::future::join_all;
use meta::group::GroupState;
use meta::map::command::ClusterMap;
use protocol::raft::Configuration;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

use super::driver::is_up;
use super::install::{self, Source};

/// How long a node may take to say what it does.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks, and how many there are: then it is too long, and tried again later.
const PAUSE: Duration = Duration::from_millis(500);
const LOOKS_MAX: usize = 60;

pub struct Turn {
    pub env: Env,
    pub group: GroupId,
    pub node: NodeId,
    pub peer: PeerId,
    /// Where the other voters are, as far as is known here; while the voters change, the old ones as well.
    pub others: Vec<NodeId>,
    pub map: watch::Receiver<Arc<ClusterMap>>,
    /// What is not applied by whom has the rows, and is not in the log here, is lost.
    pub at_least: LogIndex,
    /// What others are told. Stays set when the turn has come: whoever does without its rows takes it back.
    pub claims: Arc<AtomicBool>,
}

/// Where the voters are that are not on `node`; while they change, the old ones as well.
pub fn others(configuration: &Configuration, node: NodeId) -> Vec<NodeId> {
    let voters = configuration.voters.iter().chain(&configuration.voters_outgoing);
    let nodes = voters.filter_map(|peer| configuration.node_of(*peer));
    let others: BTreeSet<NodeId> = nodes.filter(|other| *other != node).collect();
    others.into_iter().collect()
}

fn is_at_work(rows: &RowsState) -> bool {
    !rows.waits && !rows.claims && !rows.stopped
}

/// Why it is not this replica's turn.
struct Ahead {
    /// The claim here is in the way.
    yields: bool,
    why: String,
}

impl Turn {
    /// Waits until no other replica is without its rows, or wants to be.
    pub async fn take(&self) -> Result<(), String> {
        let mut why = String::new();
        for look in 0..LOOKS_MAX {
            if look > 0 {
                self.env.sleep(PAUSE).await;
            }
            let mut ahead = self.look().await;
            if ahead.is_none() && !self.claims.swap(true, Ordering::AcqRel) {
                ahead = self.look().await;
            }
            let Some(ahead) = ahead else { return Ok(()) };
            if ahead.yields {
                self.claims.store(false, Ordering::Release);
            }
            why = ahead.why;
        }
        self.claims.store(false, Ordering::Release);
        Err(why)
    }

    /// Claims the turn of a replica that is to be given up for good, rows, vote and log, when that can be at this moment: the
    /// others suffice, and one of them can read every row. Of two that ask at once neither may; they ask again.
    pub async fn take_for_good(&self) -> Result<(), String> {
        if self.claims.swap(true, Ordering::AcqRel) {
            return Err("it is about to have its rows replaced".into());
        }
        let taken = self.others_have_all(is_at_work).await;
        if taken.is_err() {
            self.claims.store(false, Ordering::Release);
        }
        taken
    }

    /// Whether a replica that has stopped, and so has no part in any majority, may be replaced: the others that vote suffice, and
    /// one of them can read every row.
    pub async fn is_replaceable(&self) -> bool {
        let votes = |rows: &RowsState| !rows.claims && !rows.stopped;
        self.others_have_all(votes).await.is_ok()
    }

    async fn others_have_all(&self, counts: impl Fn(&RowsState) -> bool) -> Result<(), String> {
        let others = self.spared(&counts).await?;
        let cancelled = Arc::default();
        let mut why = None;
        for node in others {
            match self.read_through(node, &cancelled).await {
                // The reading may have taken long.
                Ok(_) => return self.spared(&counts).await.map(|_| ()),
                Err(error) => why = Some(format!("the replica on node {node} cannot be read: {error}")),
            }
        }
        why.map_or(Ok(()), Err)
    }

    /// The state of the replica on `node`, of which every row was read, and which has come far enough.
    pub async fn read_through(&self, node: NodeId, cancelled: &Arc<AtomicBool>) -> Result<GroupState, String> {
        let source = Source { env: self.env.clone(), group: self.group, from: node, cancelled: cancelled.clone() };
        install::read_through(&source, self.at_least).await
    }

    /// The other voters of which that holds, if they are a majority of all; nobody, if the replica here does not vote. By the
    /// newest configuration that another replica has: here, where rows are damaged or missing, it may have been replaced long
    /// ago.
    async fn spared(&self, counts: impl Fn(&RowsState) -> bool) -> Result<Vec<NodeId>, String> {
        let configuration = self.newest_configuration().await.ok_or("nobody else says who votes")?;
        if !configuration.is_voter(self.peer) {
            return Ok(Vec::new());
        }
        if !configuration.voters_outgoing.is_empty() {
            return Err("its voters change at this moment".into());
        }
        let others = configuration.voters.iter().filter(|peer| **peer != self.peer);
        let others = others.filter_map(|peer| configuration.node_of(*peer)).collect();
        // A learner in the place of a voter has no part in any majority yet.
        let answers = self.ask_all(others).await.into_iter();
        let counted = answers.filter(|(_, rows)| rows.as_ref().is_some_and(|rows| rows.voter && counts(rows)));
        let counted: Vec<NodeId> = counted.map(|(node, _)| node).collect();
        match counted.len() > configuration.voters.len() / 2 {
            true => Ok(counted),
            false => Err("the other replicas are no majority that is at work".into()),
        }
    }

    /// Of the replica that has come furthest; of those that are known to vote, or else of all.
    async fn newest_configuration(&self) -> Option<Configuration> {
        let up = self.map.borrow().nodes.iter().map(|row| NodeId(row.id)).filter(|node| *node != self.node).collect();
        for asked in [self.others.clone(), up] {
            let answers = self.ask_all(asked).await.into_iter();
            let has_rows = |rows: &RowsState| rows.voter && !rows.waits && !rows.stopped;
            let whole = answers.filter(|(_, rows)| rows.as_ref().is_some_and(has_rows));
            let states = whole.map(async |(from, _)| {
                let source = Source { env: self.env.clone(), group: self.group, from, cancelled: Arc::default() };
                let page = install::page(&source, 0, Bytes::new(), false).await.ok()?;
                meta::group::decode(&page.state).ok()
            });
            let newest = join_all(states).await.into_iter().flatten().max_by_key(|state| state.applied_index);
            if let Some(state) = newest {
                return Configuration::decode(&state.conf_state).ok();
            }
        }
        None
    }

    async fn look(&self) -> Option<Ahead> {
        let ahead =
            self.ask_all(self.others.clone()).await.into_iter().filter_map(|(node, rows)| self.ahead(node, rows));
        ahead.max_by_key(|ahead| ahead.yields)
    }

    /// All but those that the map has as down. A node whose replica of the map is damaged may have none.
    async fn ask_all(&self, nodes: Vec<NodeId>) -> Vec<(NodeId, Option<RowsState>)> {
        let map = self.map.borrow().clone();
        let asked = nodes.into_iter().filter(|node| map.nodes.is_empty() || is_up(&map, *node));
        join_all(asked.map(|node| async move { (node, self.ask(node).await) })).await
    }

    fn ahead(&self, node: NodeId, rows: Option<RowsState>) -> Option<Ahead> {
        let ahead = |yields, what: &str| Some(Ahead { yields, why: format!("the replica on node {node} {what}") });
        match rows {
            None => ahead(true, "does not say whether it has its rows"),
            Some(rows) if rows.waits => ahead(true, "waits for its rows"),
            Some(rows) if rows.claims => ahead(node < self.node, "is about to have its rows replaced"),
            Some(_) => None,
        }
    }

    async fn ask(&self, node: NodeId) -> Option<RowsState> {
        let ask = Ask::Rows(AskRows { group: self.group.0 });
        let request = Request { ask: Some(ask), ..Request::default() };
        let deadline: MonoTime = self.env.now() + PATIENCE;
        let reply = self.env.net.call(node, Channel::Bulk, wire::frame(&request, Vec::new()), deadline).await;
        match wire::head::<Answer>(&reply.ok()?).ok()?.told {
            Some(Told::Rows(rows)) => Some(rows),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::env::{BoxFuture, Frame, Handler};
    use base::sim::{NetModel, Sim};
    use meta::map::command::{NodeRow, NodeState};
    use std::sync::Mutex;

    /// What a replica tells about itself.
    #[derive(Default)]
    struct Replica {
        claims: Arc<AtomicBool>,
        waits: AtomicBool,
        learns: AtomicBool,
        unreadable: AtomicBool,
    }

    impl Handler for Replica {
        fn handle(&self, _: NodeId, _: Channel, asked: Frame) -> BoxFuture<Frame> {
            let is = |flag: &AtomicBool| flag.load(Ordering::Acquire);
            let told = match wire::head::<Request>(&asked).unwrap().ask {
                Some(Ask::SnapshotPage(_)) if is(&self.unreadable) => Answer::failed(wire::Failure::Busy, "damaged"),
                Some(Ask::SnapshotPage(_)) => {
                    let nodes = (1..=3).map(|id| (PeerId(id), NodeId(id as u32))).collect();
                    let voters = (1..=3).map(PeerId).collect();
                    let configuration =
                        Configuration { voters, nodes, peer_last: PeerId(3), ..Configuration::default() };
                    let state = GroupState { conf_state: configuration.encode(), ..GroupState::default() };
                    let state = meta::group::encode(&state);
                    Answer::of(Told::SnapshotRows(wire::SnapshotRows { done: true, state, ..Default::default() }))
                }
                _ => {
                    let (waits, claims, voter) = (is(&self.waits), is(&self.claims), !is(&self.learns));
                    Answer::of(Told::Rows(RowsState { waits, claims, stopped: false, voter }))
                }
            };
            Box::pin(async move { wire::frame(&told, Vec::new()) })
        }
    }

    fn map_of(down: &[u32]) -> Arc<ClusterMap> {
        let state = |id| if down.contains(&id) { NodeState::Down } else { NodeState::Up };
        let row = |id| NodeRow { id, state: state(id) as i32, ..NodeRow::default() };
        Arc::new(ClusterMap { nodes: (1..=3).map(row).collect(), ..ClusterMap::default() })
    }

    fn turn(env: Env, node: u32, map: Arc<ClusterMap>, replica: &Replica) -> Turn {
        let others = (1..=3).filter(|other| *other != node).map(NodeId).collect();
        // The sender is dropped: the map stays as it is.
        let (_, map) = watch::channel(map);
        let claims = replica.claims.clone();
        let (group, at_least, peer) = (GroupId(1), LogIndex(0), PeerId(node.into()));
        Turn { env, group, node: NodeId(node), peer, others, map, at_least, claims }
    }

    /// Two that find damage at the same moment both gave up their rows: only the third had any.
    #[test]
    fn of_those_who_want_to_at_once_one_does_without_its_rows_and_then_the_next() {
        for seed in 0..60 {
            let sim = Sim::new(seed);
            if seed % 2 == 0 {
                sim.set_net_model(NetModel::rough());
            }
            let replicas: Vec<Arc<Replica>> = (0..3).map(|_| Arc::default()).collect();
            let at_once = Arc::new(Mutex::new((0, 0)));
            let mut ended = Vec::new();
            for node in 1..=3u32 {
                let replica = replicas[node as usize - 1].clone();
                let env = sim.node(NodeId(node)).env();
                env.net.serve(replica.clone());
                let (turn, at_once) = (turn(env.clone(), node, map_of(&[]), &replica), at_once.clone());
                let delay = Duration::from_micros(seed * 131 * u64::from(node) % 3000);
                let (end, done) = tokio::sync::oneshot::channel();
                ended.push(done);
                let spawner = env.clone();
                spawner.spawn("mend", async move {
                    env.sleep(delay).await;
                    turn.take().await.unwrap();
                    replica.waits.store(true, Ordering::Release);
                    replica.claims.store(false, Ordering::Release);
                    at_once.lock().unwrap().0 += 1;
                    env.sleep(Duration::from_millis(700)).await;
                    let mut held = at_once.lock().unwrap();
                    *held = (held.0 - 1, held.1.max(held.0));
                    drop(held);
                    replica.waits.store(false, Ordering::Release);
                    let _ = end.send(());
                });
            }
            for done in ended {
                sim.block_on(done).unwrap();
            }
            assert_eq!(at_once.lock().unwrap().1, 1, "seed {seed}");
        }
    }

    /// What is given up for good is no majority's any more, and whoever takes its place does not vote yet.
    #[test]
    fn a_replica_is_given_up_for_good_when_the_other_voters_are_at_work_and_nobody_else_is_at_it() {
        let sim = Sim::new(3);
        let replicas: Vec<Arc<Replica>> = (0..3).map(|_| Arc::default()).collect();
        let turns: Vec<Turn> = (1..=3)
            .map(|node| {
                let replica = &replicas[node as usize - 1];
                let env = sim.node(NodeId(node)).env();
                env.net.serve(replica.clone());
                turn(env, node, map_of(&[]), replica)
            })
            .collect();
        let take = |node: usize| sim.block_on(turns[node - 1].take_for_good());
        take(1).unwrap();
        take(1).unwrap_err();
        take(3).unwrap_err();
        assert!(!replicas[2].claims.load(Ordering::Acquire), "what was not taken is in nobody's way");
        replicas[0].claims.store(false, Ordering::Release);
        replicas[1].waits.store(true, Ordering::Release);
        take(1).unwrap_err();
        assert!(sim.block_on(turns[0].is_replaceable()), "one that has stopped can do no more than one that waits");
        replicas[1].waits.store(false, Ordering::Release);
        replicas[1].learns.store(true, Ordering::Release);
        take(3).unwrap_err();
        assert!(!sim.block_on(turns[2].is_replaceable()));
        replicas[1].learns.store(false, Ordering::Release);
        replicas[0].unreadable.store(true, Ordering::Release);
        replicas[1].unreadable.store(true, Ordering::Release);
        take(3).unwrap_err();
        replicas[0].unreadable.store(false, Ordering::Release);
        take(3).unwrap();
        // What is known here of who votes is old: two of the voters, and one that has been replaced.
        let mut turn = turn(sim.node(NodeId(3)).env(), 3, map_of(&[]), &Replica::default());
        turn.others = vec![NodeId(7), NodeId(8)];
        sim.block_on(turn.take_for_good()).unwrap();
        turn.claims.store(false, Ordering::Release);
        // And one that does not vote any more is nobody's loss.
        turn.peer = PeerId(9);
        replicas[0].waits.store(true, Ordering::Release);
        replicas[1].unreadable.store(false, Ordering::Release);
        sim.block_on(turn.take_for_good()).unwrap();
    }

    #[test]
    fn one_that_is_down_is_not_waited_for_and_one_that_is_silent_is() {
        let sim = Sim::new(5);
        let replica = Replica::default();
        let env = sim.node(NodeId(1)).env();
        let third = sim.node(NodeId(3)).env();
        third.net.serve(Arc::new(Replica::default()));
        sim.block_on(turn(env.clone(), 1, map_of(&[2]), &replica).take()).unwrap();
        assert!(replica.claims.swap(false, Ordering::AcqRel), "others are told");
        sim.block_on(turn(env, 1, map_of(&[]), &replica).take()).unwrap_err();
        assert!(!replica.claims.load(Ordering::Acquire), "nobody waits for a claim that has ended");
    }
}
