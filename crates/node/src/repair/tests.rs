//! Repair against nodes that are engines on simulated disks, and a map that the test writes.

use base::Env;
use base::checksum::crc64;
use base::env::{BoxFuture, Disk};
use base::ids::{ChunkId, ClusterId, DiskId, Generation, NodeId, OwnerId, PgEpoch, PgId, PoolId, Session, Slot};
use base::sim::{Sim, SimDisk};
use bytes::Bytes;
use client::wire::{Answer, Ask, ChunkDone, Failure, Told};
use meta::map::command::{ClusterMap, DiskRow, DiskState, NodeRow, NodeState, PgRow, PoolRow};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::{DiskIdentity, Engine, EngineOptions, NewChunk};
use tokio::sync::watch;

use super::exchange::{Asked, Peers};
use super::plan::{Group, groups_of};
use super::work::{Comparer, Pass};
use super::{Progress, Repairer, answer};
use crate::arrivals::{Arrivals, Come};
use crate::disks::{Disks, NodeDisk};
use crate::home::{GenerationClock, NodeIdentity, load_generations};
use crate::start::Healing;
use crate::sweep::{Due, Swept, candidates};

const AFTER: Duration = Duration::from_secs(5);

/// Nodes 1, 2, 3, each with one disk. They share one map.
struct Nodes {
    disks: BTreeMap<NodeId, Arc<Disks>>,
    map: watch::Sender<Arc<ClusterMap>>,
    /// What was asked of whom.
    asked: Mutex<Vec<(NodeId, &'static str)>>,
    /// In this order.
    pulled: Mutex<Vec<ChunkId>>,
    /// Of the answers of this node to questions for inventories the one after so many others is this.
    refuses: Mutex<Option<(NodeId, u32, Failure)>>,
    /// Whose bytes take long; those of others take a little.
    slow: Mutex<Option<(ChunkId, Duration)>>,
    env: Env,
}

struct Asker(Arc<Nodes>);

impl Peers for Asker {
    fn ask(&self, node: NodeId, ask: Ask) -> BoxFuture<Asked> {
        let nodes = self.0.clone();
        Box::pin(async move { nodes.answer(node, ask).await })
    }
}

impl Nodes {
    async fn answer(&self, node: NodeId, ask: Ask) -> Asked {
        let map = self.map.borrow().clone();
        let disks = &self.disks[&node];
        let note = |what| self.asked.lock().unwrap().push((node, what));
        let answer = match ask {
            Ask::Inventory(ask) => {
                note("inventory");
                if let Some(failure) = self.refusal(node) {
                    return Err((failure, "as the test says".into()));
                }
                answer::inventory(&map, disks, &ask)
            }
            Ask::PgDigests(ask) => answer::digests(&map, disks, &ask),
            Ask::GetChunk(get) => {
                note("chunk");
                let id = ChunkId::from_bytes(get.id.as_ref().try_into().unwrap());
                self.pulled.lock().unwrap().push(id);
                let slow = *self.slow.lock().unwrap();
                if let Some((slow, for_long)) = slow {
                    self.env.sleep(if slow == id { for_long } else { Duration::from_millis(20) }).await;
                }
                return match disks.metadata().get_owned(id, get.start..get.end).await {
                    Ok(data) => {
                        Ok((Told::Chunk(ChunkDone { epoch: 1, owner: data.owner.unwrap().0, crc64: 0 }), data.pieces))
                    }
                    Err(error) => Err((Failure::NotFound, error.to_string())),
                };
            }
            other => panic!("{other:?}"),
        };
        told(answer)
    }

    fn refusal(&self, node: NodeId) -> Option<Failure> {
        let mut refuses = self.refuses.lock().unwrap();
        let (of, after, failure) = refuses.filter(|(of, _, _)| *of == node)?;
        *refuses = (after > 0).then(|| (of, after - 1, failure));
        (after == 0).then_some(failure)
    }
}

fn told(answer: Answer) -> Asked {
    match answer.told {
        Some(Told::Failed(failed)) => Err((failed.failure(), failed.detail)),
        Some(told) => Ok((told, Vec::new())),
        None => panic!("no answer"),
    }
}

fn disk_id(node: u32) -> DiskId {
    DiskId(u128::from(node) * 1000)
}

fn raw(node: u32) -> Bytes {
    Bytes::copy_from_slice(&disk_id(node).0.to_be_bytes())
}

struct Bench {
    sim: Sim,
    media: BTreeMap<u32, Arc<SimDisk>>,
    nodes: Arc<Nodes>,
    repairers: BTreeMap<u32, Arc<Repairer>>,
}

impl Bench {
    /// One placement group, open, on the disks of these nodes.
    fn new(members: &[u32]) -> Bench {
        let sim = Sim::new(5);
        let host = sim.node(NodeId(1));
        let env = host.env();
        let (mut media, mut disks) = (BTreeMap::new(), BTreeMap::new());
        for node in 1..=3 {
            let disk = sim.disk(NodeId(1), &format!("d{node}"));
            let (on_node, env) = (disk.clone() as Arc<dyn Disk>, env.clone());
            let engine = sim.block_on(async move {
                let identity = DiskIdentity { cluster: ClusterId(1), disk: disk_id(node), node: NodeId(node) };
                Engine::format(&env, on_node.clone(), &identity, &options()).await.unwrap();
                Engine::open(&env, on_node, options()).await.unwrap().0
            });
            let label = format!("d{node}");
            let all = vec![NodeDisk::new(label, disk_id(node), Ok(engine))];
            disks.insert(NodeId(node), Arc::new(Disks::new(all)));
            media.insert(node, disk);
        }
        let map = watch::Sender::new(Arc::new(map(members)));
        let nodes = Arc::new(Nodes {
            disks,
            map,
            asked: Mutex::default(),
            pulled: Mutex::default(),
            refuses: Mutex::default(),
            slow: Mutex::default(),
            env: env.clone(),
        });
        let arrivals = |node: u32| {
            let home = sim.disk(NodeId(node), "home") as Arc<dyn Disk>;
            let identity = NodeIdentity {
                cluster: ClusterId(1),
                node: NodeId(node),
                set_up: false,
                joined: true,
                recovered: false,
            };
            let clock = sim.block_on(async move { GenerationClock::start(home, &identity).await.unwrap() });
            Arc::new(Arrivals::new(env.clone(), nodes.map.subscribe(), Arc::new(clock)))
        };
        let repairer = |node: u32| Repairer {
            env: env.clone(),
            node: NodeId(node),
            disks: nodes.disks[&NodeId(node)].clone(),
            peers: Arc::new(Asker(nodes.clone())),
            progress: Arc::new(Progress::default()),
            healing: Healing::default(),
            arrivals: arrivals(node),
            events: None,
            budget: super::Budget::new(&nodes.disks[&NodeId(node)]),
        };
        let repairers = (1..=3).map(|node| (node, Arc::new(repairer(node)))).collect();
        Bench { sim, media, nodes, repairers }
    }

    /// Node 2 has chunks of a session of node 1 that node 1 has swept; they are to move to node 1.
    fn with_orphans(numbers: std::ops::RangeInclusive<u32>) -> (Bench, Vec<ChunkId>) {
        let bench = Bench::new(&[2]);
        let session = Session { node: NodeId(1), generation: Generation(3) };
        let put = |number| {
            let orphan = ChunkId { session, ..id(number) };
            bench.sim.block_on(bench.engine(2).put(NewChunk { id: orphan, ..chunk(number) })).unwrap();
            orphan
        };
        let orphans = numbers.map(put).collect();
        bench.sim.block_on(bench.repairers[&1].arrivals.record(Generation(5))).unwrap();
        bench.change(|map| {
            map.nodes[0].generation_floor = 5;
            close(map, &[1]);
        });
        (bench, orphans)
    }

    fn engine(&self, node: u32) -> &Engine {
        self.nodes.disks[&NodeId(node)].metadata()
    }

    fn put(&self, node: u32, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            self.sim.block_on(self.engine(node).put(chunk(number))).unwrap();
        }
    }

    /// A few bytes each.
    fn put_small(&self, node: u32, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            let payload = Bytes::copy_from_slice(&number.to_le_bytes());
            let crc64 = crc64(&payload);
            let (id, owner, epoch) = (id(number), OwnerId(7), PgEpoch(1));
            let chunk = NewChunk { id, owner, epoch, crc64, payload: vec![payload] };
            self.sim.block_on(self.engine(node).put(chunk)).unwrap();
        }
    }

    fn delete(&self, node: u32, number: u32) {
        self.sim.block_on(self.engine(node).delete(vec![id(number)])).unwrap();
    }

    fn has(&self, node: u32, number: u32) -> bool {
        match self.sim.block_on(self.engine(node).get_owned(id(number), 0..u32::MAX)) {
            Ok(data) => data.owner == Some(OwnerId(7)) && data.into_bytes() == payload(number),
            Err(_) => false,
        }
    }

    fn change(&self, change: impl FnOnce(&mut ClusterMap)) {
        let mut map = ClusterMap::clone(&self.nodes.map.borrow());
        change(&mut map);
        map.version += 1;
        self.nodes.map.send_replace(Arc::new(map));
    }

    fn group(&self, node: u32) -> Group {
        groups_of(&self.nodes.map.borrow(), NodeId(node)).remove(0)
    }

    fn unite(&self, node: u32) -> Result<(), String> {
        let group = self.group(node);
        self.sim.block_on(self.repairers[&node].unite(&group, || false))
    }

    fn round(&self, comparer: &mut Comparer, node: u32) -> (u64, u64) {
        let map = self.nodes.map.borrow().clone();
        self.sim.block_on(comparer.round(&map));
        let health = self.repairers[&node].progress.health(&map, NodeId(node));
        (health.healthy, health.hopeless_chunks)
    }

    /// Rots the payload of a chunk, so that the engine notices.
    fn damage(&self, node: u32, number: u32) {
        let needle = payload(number);
        for name in self.media[&node].files() {
            let contents = self.media[&node].contents(&name).unwrap();
            if let Some(at) = contents.windows(64).position(|window| window == &needle[..64]) {
                self.media[&node].overwrite(&name, at as u64, &[contents[at] ^ 1]);
            }
        }
        assert!(!self.has(node, number));
    }
}

fn options() -> EngineOptions {
    EngineOptions {
        volume_size_bytes: Some(4 << 20),
        ahead_bytes: 64 << 10,
        scrub_bytes_per_s: 0,
        ..EngineOptions::default()
    }
}

fn map(members: &[u32]) -> ClusterMap {
    let node = |id| NodeRow { id, ..NodeRow::default() };
    let disk = |id: u32| DiskRow { id: raw(id), node: id, capacity_bytes: 1 << 30, ..DiskRow::default() };
    let members: Vec<Bytes> = members.iter().map(|node| raw(*node)).collect();
    ClusterMap {
        version: 1,
        nodes: (1..=3).map(node).collect(),
        disks: (1..=3).map(disk).collect(),
        pools: vec![PoolRow { id: 1, copies: 3, copies_effective: 1, pg_bits: 0, ..PoolRow::default() }],
        pgs: vec![PgRow { pool: 1, prefix: 0, epoch: 1, members, ..PgRow::default() }],
        ..ClusterMap::default()
    }
}

fn close(map: &mut ClusterMap, members: &[u32]) {
    let row = &mut map.pgs[0];
    row.members_before = std::mem::replace(&mut row.members, members.iter().map(|node| raw(*node)).collect());
    (row.closed, row.epoch) = (true, row.epoch + 1);
}

/// A group that moves from `before` to `members`.
fn closed_row(prefix: u32, before: &[u32], members: &[u32]) -> PgRow {
    let raws = |nodes: &[u32]| nodes.iter().map(|node| raw(*node)).collect();
    PgRow { pool: 1, prefix, epoch: 2, closed: true, members: raws(members), members_before: raws(before) }
}

fn open(map: &mut ClusterMap) {
    let row = &mut map.pgs[0];
    row.members_before.clear();
    (row.closed, row.epoch) = (false, row.epoch + 1);
}

fn id(number: u32) -> ChunkId {
    let session = Session { node: NodeId(9), generation: Generation(1) };
    ChunkId { pool: PoolId(1), slot: Slot::new(number.wrapping_mul(0x9e37_79b9)), session, counter: number }
}

fn payload(number: u32) -> Bytes {
    let len = if number.is_multiple_of(5) { 300_000 } else { 3000 };
    (0..len).map(|i: u32| (i.wrapping_mul(number + 3) >> 3) as u8 ^ number as u8).collect::<Vec<u8>>().into()
}

fn chunk(number: u32) -> NewChunk {
    let payload = payload(number);
    let crc64 = crc64(&payload);
    NewChunk { id: id(number), owner: OwnerId(7), epoch: PgEpoch(1), crc64, payload: vec![payload] }
}

#[test]
fn new_members_get_what_any_old_one_has_and_nothing_that_was_deleted() {
    let bench = Bench::new(&[1, 2]);
    bench.put(1, 1..=12);
    bench.put(2, 8..=20);
    bench.delete(2, 3);
    bench.change(|map| close(map, &[2, 3]));
    bench.unite(3).unwrap();
    bench.unite(2).unwrap();
    for node in [2, 3] {
        let held: Vec<u32> = (1..=20).filter(|number| bench.has(node, *number)).collect();
        assert_eq!(held, (1..=20).filter(|number| *number != 3).collect::<Vec<_>>());
    }
    assert_eq!(bench.engine(2).digest(PoolId(1), 0..=0xff_ffff), bench.engine(3).digest(PoolId(1), 0..=0xff_ffff));
}

/// While users are served a large chunk comes in pieces, with rests; else at once.
#[test]
fn a_large_chunk_yields_to_users() {
    let bench = Bench::new(&[1]);
    let payload: Bytes = (0..3_500_000u32).map(|i| (i.wrapping_mul(7) >> 3) as u8).collect::<Vec<u8>>().into();
    let large = NewChunk { crc64: crc64(&payload), payload: vec![payload.clone()], ..chunk(5) };
    bench.sim.block_on(bench.engine(1).put(large)).unwrap();
    let asked = || bench.nodes.pulled.lock().unwrap().len();
    let mut took = Vec::new();
    for (epoch, node, are_served, asks) in [(2, 2, false, 1), (3, 3, true, 4)] {
        bench.change(|map| {
            close(map, &[1, node]);
            map.pgs[0].epoch = epoch;
        });
        let env = &bench.nodes.env;
        let before = (asked(), env.now());
        *bench.nodes.slow.lock().unwrap() = Some((id(5), Duration::from_millis(50)));
        if are_served {
            bench.nodes.disks[&NodeId(node)].all[0].meter.serve(env.now());
        }
        bench.unite(node).unwrap();
        assert_eq!(asked() - before.0, asks);
        took.push(env.now().since(before.1));
        let data = bench.sim.block_on(bench.engine(node).get(id(5), 0..u32::MAX)).unwrap();
        assert!(data.into_bytes() == payload);
    }
    let rests = took[1] - took[0];
    assert!(rests > Duration::from_millis(4 * 50 + 3 * 50), "three times as long as each piece took: {rests:?}");
}

#[test]
fn a_move_waits_for_an_old_member_that_is_down_but_not_for_a_lost_one() {
    let bench = Bench::new(&[1, 2]);
    bench.put(1, 1..=3);
    bench.put(2, 1..=3);
    bench.change(|map| {
        close(map, &[1, 3]);
        map.nodes[1].state = NodeState::Down as i32;
    });
    assert!(bench.unite(3).is_err());
    assert!(!bench.has(3, 1), "nothing is done by halves");
    bench.change(|map| map.nodes[1].state = NodeState::Lost as i32);
    bench.unite(3).unwrap();
    assert!(bench.has(3, 1));
}

/// Only the failed disk has a good copy, and an answer of its node is lost: the group opened without the chunk.
#[test]
fn a_lost_answer_of_a_failed_disk_is_not_an_empty_disk() {
    let bench = Bench::new(&[1, 2]);
    let pages = super::exchange::PAGE_ENTRIES as u32;
    bench.put_small(1, 1..=pages + 50);
    bench.change(|map| {
        close(map, &[2, 3]);
        map.disks[0].state = DiskState::Failed as i32;
    });
    // At the first question, and in the middle of a walk.
    for after in [0, 1] {
        *bench.nodes.refuses.lock().unwrap() = Some((NodeId(1), after, Failure::Busy));
        assert!(bench.unite(3).is_err());
    }
    bench.unite(3).unwrap();
    assert_eq!(bench.engine(3).stats().chunks, u64::from(pages) + 50);
    // Its node says that the disk cannot be read: nobody waits for it.
    *bench.nodes.refuses.lock().unwrap() = Some((NodeId(1), 0, Failure::NoDisk));
    bench.unite(2).unwrap();
}

#[test]
fn an_inventory_is_told_only_under_the_same_epoch() {
    let bench = Bench::new(&[1]);
    bench.put(1, 1..=3);
    bench.change(|map| close(map, &[1, 2]));
    let mut ahead = bench.group(2);
    ahead.epoch = PgEpoch(3);
    let result = bench.sim.block_on(bench.repairers[&2].unite(&ahead, || false));
    assert!(result.unwrap_err().contains("Busy"), "the other node's map is older");
    let behind = bench.group(2);
    bench.change(|map| close(map, &[1, 2, 3]));
    let result = bench.sim.block_on(bench.repairers[&2].unite(&behind, || false));
    assert!(result.unwrap_err().contains("StalePlacement"));
}

#[test]
fn large_inventories_come_page_by_page() {
    let bench = Bench::new(&[1]);
    let count = 2 * super::exchange::PAGE_ENTRIES as u32 + 100;
    bench.put_small(1, 1..=count);
    bench.put(2, 1_000_000..1_000_010);
    bench.change(|map| close(map, &[1, 2]));
    bench.unite(2).unwrap();
    bench.unite(1).unwrap();
    assert_eq!(bench.engine(2).stats().chunks, u64::from(count) + 10);
    let digest = |node| bench.engine(node).digest(PoolId(1), 0..=0xff_ffff);
    assert_eq!(digest(1), digest(2));
}

#[test]
fn what_lacks_for_long_is_pulled_and_then_the_group_is_healthy() {
    let bench = Bench::new(&[1, 2, 3]);
    for node in [1, 2, 3] {
        bench.put(node, 1..=10);
    }
    let mut comparer = Comparer::new(bench.repairers[&2].clone());
    assert_eq!(bench.round(&mut comparer, 2), (1, 0));
    bench.put(1, 11..=12);
    bench.put(3, 11..=12);
    assert_eq!(bench.round(&mut comparer, 2), (1, 0), "it may be under way");
    assert!(!bench.has(2, 11));
    bench.sim.run_for(AFTER);
    assert_eq!(bench.round(&mut comparer, 2), (0, 0));
    assert!(bench.has(2, 11) && bench.has(2, 12));
    assert_eq!(bench.round(&mut comparer, 2), (1, 0));
    bench.nodes.asked.lock().unwrap().clear();
    assert_eq!(bench.round(&mut comparer, 2), (1, 0));
    assert!(bench.nodes.asked.lock().unwrap().is_empty(), "equal digests need no inventories");
}

/// A node came back after an absence and was called whole, because all that it lacked had only just been noticed.
#[test]
fn what_differs_at_the_first_look_may_have_differed_for_long() {
    let bench = Bench::new(&[1, 2, 3]);
    for node in [1, 2, 3] {
        bench.put(node, 1..=10);
    }
    bench.put(1, 11..=12);
    let mut comparer = Comparer::new(bench.repairers[&1].clone());
    assert_eq!(bench.round(&mut comparer, 1), (0, 0));
    bench.put(2, 11..=12);
    bench.put(3, 11..=12);
    assert_eq!(bench.round(&mut comparer, 1), (1, 0));
    bench.change(|map| map.nodes[2].generation += 1);
    bench.put(1, 13..=13);
    assert_eq!(bench.round(&mut comparer, 1), (0, 0), "node 3 began a new life");
    bench.sim.run_for(AFTER);
    assert_eq!(bench.round(&mut comparer, 1), (0, 0), "it still lacks what it lacked");
}

#[test]
fn a_tombstone_elsewhere_deletes_here_and_stops_the_pull_by_others() {
    let bench = Bench::new(&[1, 2, 3]);
    bench.put(1, 1..=3);
    bench.put(2, 2..=3);
    bench.put(3, 1..=3);
    bench.delete(3, 1);
    let mut second = Comparer::new(bench.repairers[&2].clone());
    bench.round(&mut second, 2);
    bench.sim.run_for(AFTER);
    bench.round(&mut second, 2);
    assert!(!bench.has(2, 1), "it was deleted, not lost");
    let mut first = Comparer::new(bench.repairers[&1].clone());
    bench.round(&mut first, 1);
    assert!(!bench.has(1, 1) && bench.has(1, 2));
    assert_eq!(bench.round(&mut first, 1), (1, 0));
    assert_eq!(bench.round(&mut second, 2), (1, 0));
}

#[test]
fn a_damaged_copy_is_mended_at_once_and_one_without_a_good_copy_is_told() {
    let bench = Bench::new(&[1, 2]);
    for node in [1, 2] {
        bench.put(node, 1..=6);
    }
    bench.damage(1, 3);
    bench.damage(1, 5);
    assert_eq!(bench.engine(1).damaged().len(), 2);
    let mut comparer = Comparer::new(bench.repairers[&1].clone());
    bench.round(&mut comparer, 1);
    assert!(bench.has(1, 3) && bench.has(1, 5));
    assert_eq!(bench.engine(1).damaged(), vec![]);
    assert_eq!(bench.round(&mut comparer, 1), (1, 0));
    bench.damage(1, 6);
    bench.damage(2, 6);
    bench.sim.run_for(AFTER);
    assert_eq!(bench.round(&mut comparer, 1), (0, 1));
    let progress = &bench.repairers[&1].progress;
    let health = || progress.health(&bench.nodes.map.borrow(), NodeId(1));
    assert_eq!((health().unasked_chunks, health().lost), (1, vec![]), "nobody knows yet whether it is named");
    progress.answer(&progress.doubtful(), false);
    assert_eq!((health().unnamed_chunks, health().lost), (1, vec![]));
    assert_eq!(progress.doubtful(), vec![id(6)], "it may be named yet");
    progress.answer(&progress.doubtful(), true);
    assert_eq!((health().lost_chunks, health().lost), (1, vec![id(6)]));
    assert_eq!(bench.round(&mut comparer, 1), (0, 1));
    assert_eq!((health().lost_chunks, progress.doubtful()), (1, vec![]), "what was answered stays so");
}

#[test]
fn what_left_goes_when_the_group_has_opened_and_may_return() {
    let bench = Bench::new(&[1]);
    bench.put(1, 1..=10);
    let map = bench.nodes.map.subscribe();
    let let_go = || bench.sim.block_on(bench.repairers[&1].let_go(&map));
    bench.change(|map| close(map, &[2]));
    let_go();
    assert!(bench.has(1, 1), "while it moves, the old copy is the only one");
    bench.unite(2).unwrap();
    bench.change(open);
    bench.put(1, 11..=11);
    let_go();
    assert!(!bench.has(1, 1) && bench.has(2, 1));
    assert!(bench.has(1, 11), "the member lacks it: this may be the only copy");
    bench.put(2, 11..=11);
    let_go();
    assert_eq!(bench.engine(1).stats().chunks, 0);
    bench.change(|map| close(map, &[1]));
    bench.unite(1).unwrap();
    assert!((1..=10).all(|number| bench.has(1, number)));
}

/// Two disks of a node changed places in a group just when orphans were swept: one took what others were about to delete, and
/// kept it for good, because the other had never heard of it.
#[test]
fn what_one_member_has_deleted_leaves_although_another_knows_nothing_of_it() {
    let bench = Bench::new(&[1]);
    let map = bench.nodes.map.subscribe();
    bench.change(|map| close(map, &[2, 3]));
    bench.unite(2).unwrap();
    bench.unite(3).unwrap();
    bench.change(open);
    bench.put(1, 11..=12);
    bench.put(2, 11..=11);
    bench.delete(2, 11);
    bench.sim.block_on(bench.repairers[&1].let_go(&map));
    assert!(!bench.has(1, 11), "a tombstone always wins");
    assert!(bench.has(1, 12), "nobody has deleted it: this may be the only copy");
}

#[test]
fn tombstones_stay_until_the_group_is_healthy_with_all_members() {
    let bench = Bench::new(&[1, 2]);
    let repairer = &bench.repairers[&1];
    assert!(!repairer.progress.may_forget(id(1)), "nothing is known yet");
    let (stop, stopped) = watch::channel(false);
    let moves = repairer.clone().run_moves(bench.nodes.map.subscribe(), || true, stopped);
    repairer.env.spawn("moves", moves);
    let mut comparer = Comparer::new(repairer.clone());
    let settle = |comparer: &mut Comparer| {
        bench.sim.run_for(Duration::from_millis(10));
        bench.round(comparer, 1);
        repairer.progress.may_forget(id(1))
    };
    assert!(settle(&mut comparer));
    bench.change(|map| map.nodes[1].state = NodeState::Down as i32);
    bench.sim.run_for(Duration::from_millis(10));
    assert!(!repairer.progress.may_forget(id(1)), "the finding is void at once");
    assert!(!settle(&mut comparer));
    bench.change(|map| {
        map.nodes[1].state = NodeState::Up as i32;
        map.nodes[1].generation = 2;
    });
    bench.sim.run_for(Duration::from_millis(10));
    assert!(!repairer.progress.may_forget(id(1)), "whoever was away must be compared with first");
    assert!(settle(&mut comparer));
    bench.change(|map| map.pgs[0].members = vec![raw(2)]);
    assert!(settle(&mut comparer), "the group is none of this node's any more");
    drop(stop);
}

/// Two groups move at once; of the second, in the order of groups, only one copy is left.
#[test]
fn the_last_copies_are_made_before_all_others() {
    let bench = Bench::new(&[1, 2]);
    for node in [1, 2] {
        bench.put(node, 1..=40);
    }
    bench.change(|map| {
        map.pools[0].pg_bits = 1;
        map.pgs = vec![closed_row(0, &[1, 2], &[1, 2, 3]), closed_row(1, &[1], &[1, 3])];
    });
    let repairer = &bench.repairers[&3];
    let (stop, stopped) = watch::channel(false);
    repairer.env.spawn("moves", repairer.clone().run_moves(bench.nodes.map.subscribe(), || true, stopped));
    bench.sim.run_for(Duration::from_secs(5));
    let prefix = |id: &ChunkId| PgId::of_slot(PoolId(1), 1, id.slot).prefix;
    let order: Vec<u32> = bench.nodes.pulled.lock().unwrap().iter().map(prefix).collect();
    let last_copies = order.iter().take_while(|prefix| **prefix == 1).count();
    assert!(last_copies > 5 && last_copies < order.len(), "{order:?}");
    assert!(order[last_copies..].iter().all(|prefix| *prefix == 0), "{order:?}");
    assert!((1..=40).all(|number| bench.has(3, number)));
    assert_eq!(repairer.progress.done().len(), 2);
    drop(stop);
}

/// A new last copy stood behind large groups that only move: a class was worked off whole before the newest map was looked at.
/// Pulls that yield to users take long: what is more urgent does not wait until all of a window are done.
#[test]
fn a_group_that_is_over_is_left_in_the_middle_of_a_window() {
    let bench = Bench::new(&[1, 2]);
    let large = || (1..=20).map(|number| number * 5);
    bench.put(1, large());
    bench.change(|map| close(map, &[1, 3]));
    *bench.nodes.slow.lock().unwrap() = Some((id(5), Duration::from_millis(20)));
    bench.nodes.disks[&NodeId(3)].all[0].meter.serve(bench.nodes.env.now());
    let group = bench.group(3);
    let pulled = || bench.nodes.pulled.lock().unwrap().len();
    let united = bench.sim.block_on(bench.repairers[&3].unite(&group, || pulled() > 0));
    assert!(united.unwrap_err().contains("has changed"));
    assert!(pulled() < 15, "those that were admitted together, not all");
    assert!(large().any(|number| bench.has(3, number)), "what was pulled stays");
}

#[test]
fn a_new_last_copy_overtakes_a_group_that_only_moves() {
    let bench = Bench::new(&[1, 2]);
    bench.put(1, 1..=4);
    bench.change(|map| {
        map.pools[0].pg_bits = 1;
        map.pgs = vec![closed_row(0, &[1, 2], &[1, 2, 3]), closed_row(1, &[1, 2], &[1, 2, 3])];
    });
    let then = bench.nodes.map.borrow().clone();
    let group = bench.group(3);
    let map_with = |change: &dyn Fn(&mut ClusterMap)| {
        let mut map = ClusterMap::clone(&then);
        map.version += 1;
        change(&mut map);
        map
    };
    let overtaken = |then: &ClusterMap, newest: &ClusterMap| {
        let (_, newest) = watch::channel(Arc::new(newest.clone()));
        Pass::new(NodeId(3), then, &newest).overtakes(&group)
    };
    let overtakes = |newest: &ClusterMap| overtaken(&then, newest);
    assert!(!overtakes(&then));
    assert!(!overtakes(&map_with(&|map| map.pgs[1].epoch = 3)), "as many copies as before");
    assert!(overtakes(&map_with(&|map| map.pgs[1] = closed_row(1, &[1], &[1, 3]))));
    let last = map_with(&|map| map.pgs[1] = closed_row(1, &[1], &[1, 3]));
    let later = ClusterMap { version: last.version + 1, ..last.clone() };
    assert!(!overtaken(&last, &later), "it was known, and comes in its order");
    let united = bench.sim.block_on(bench.repairers[&3].unite(&group, || true));
    assert!(united.unwrap_err().contains("come first"));
}

/// Each group that opens is a new version of the map: a pass ended at the first, and waited for the slowest of the four groups
/// in hand before others were begun.
#[test]
fn a_slow_group_holds_up_no_others_while_these_open() {
    const GROUPS: u32 = 16;
    let bench = Bench::new(&[1]);
    bench.put(1, 1..=200);
    bench.change(|map| {
        map.pools[0].pg_bits = GROUPS.ilog2();
        map.pgs = (0..GROUPS).map(|prefix| closed_row(prefix, &[1], &[1, 3])).collect();
    });
    let prefix_of = |number: u32| PgId::of_slot(PoolId(1), GROUPS.ilog2() as u8, id(number).slot).prefix;
    let of_first = (1..=200).find(|number| prefix_of(*number) == 0).unwrap();
    *bench.nodes.slow.lock().unwrap() = Some((id(of_first), Duration::from_secs(60)));
    let repairer = &bench.repairers[&3];
    let (stop, stopped) = watch::channel(false);
    repairer.env.spawn("moves", repairer.clone().run_moves(bench.nodes.map.subscribe(), || true, stopped));
    let open_done = || {
        for done in repairer.progress.done() {
            bench.change(|map| {
                let row = &mut map.pgs[done.prefix as usize];
                row.members_before.clear();
                (row.closed, row.epoch) = (false, 3);
            });
        }
    };
    for _ in 0..1000 {
        bench.sim.run_for(Duration::from_millis(5));
        open_done();
    }
    let closed: Vec<u32> = bench.nodes.map.borrow().pgs.iter().filter(|row| row.closed).map(|row| row.prefix).collect();
    assert_eq!(closed, [0], "all but the slow one");
    assert!((1..=200).all(|number| bench.has(3, number) || prefix_of(number) == 0));
    bench.sim.run_for(Duration::from_secs(60));
    open_done();
    assert!((1..=200).all(|number| bench.has(3, number)));
    drop(stop);
}

/// A node took orphans from the others when it had swept their session, and whoever would have deleted them was lost: they
/// stayed for good (seed 1 of the simulator's storms).
#[test]
fn what_comes_of_a_session_that_was_swept_is_swept_again() {
    let (bench, orphans) = Bench::with_orphans(1..=3);
    let arrivals = &bench.repairers[&1].arrivals;
    let (swept_below, own) = (Generation(5), orphans[0].session.generation);
    let swept = Swept::from([(NodeId(1), swept_below)]);
    let due = Due { fenced: swept.clone(), closed: swept.clone() };
    bench.unite(1).unwrap();
    let candidates = |come: &Come| candidates(bench.engine(1), PoolId(1), &due, &swept, come, None).0;
    assert_eq!(candidates(&Come::default()), [], "its session counts as swept");
    let come = arrivals.take();
    assert_eq!(candidates(&come).len(), orphans.len());
    assert_eq!(candidates(&arrivals.take()), [], "once");
    // A sweep that fails looks at nothing, and one that began before records nothing.
    arrivals.put_back(come.clone());
    let record = || {
        bench.sim.block_on(arrivals.record(swept_below)).unwrap();
        bench.sim.block_on(arrivals.recorded()).1
    };
    assert_eq!(record(), own);
    assert_eq!(arrivals.take(), come);
    assert_eq!(record(), swept_below);
    // Nor one that ends while a chunk is on its way.
    let coming = bench.sim.block_on(arrivals.expect(disk_id(1), orphans[0]));
    assert_eq!(record(), own);
    drop(coming);
}

/// The node's own sessions are recorded as swept. Power is cut right after a chunk of them has come.
#[test]
fn the_record_of_a_sweep_is_taken_back_before_a_chunk_comes() {
    let (bench, orphans) = Bench::with_orphans(1..=1);
    let home = bench.sim.disk(NodeId(1), "home");
    let on_disk = || {
        let home = home.clone();
        bench.sim.block_on(async move { load_generations(&*home, NodeId(1)).await.unwrap().swept })
    };
    assert_eq!(on_disk(), Generation(5));
    bench.unite(1).unwrap();
    assert!(bench.engine(1).stat(orphans[0]).is_some());
    bench.sim.crash(NodeId(1));
    assert_eq!(on_disk(), orphans[0].session.generation);
}

/// A copy is worth more than the space of an orphan.
#[test]
fn copies_are_made_although_the_record_of_the_sweep_cannot_be_written() {
    for hangs in [false, true] {
        let (bench, orphans) = Bench::with_orphans(1..=40);
        let home = bench.sim.disk(NodeId(1), "home");
        if hangs {
            home.hang_for(Duration::from_secs(60));
        } else {
            home.set_rate_ppm(base::sim::Fault::FlushError, 1_000_000);
        }
        let began = bench.nodes.env.now();
        bench.unite(1).unwrap();
        assert!(orphans.iter().all(|id| bench.engine(1).stat(*id).is_some()));
        assert!(bench.nodes.env.now() < began + Duration::from_secs(5), "one waits, and not for long");
        // A write that was begun ends before the next, and does not undo it.
        home.set_rate_ppm(base::sim::Fault::FlushError, 0);
        let arrivals = bench.repairers[&1].arrivals.clone();
        arrivals.take();
        bench.sim.block_on(arrivals.record(Generation(4))).unwrap();
        bench.sim.run_for(Duration::from_secs(60));
        let kept = bench.sim.block_on(async move { load_generations(&*home, NodeId(1)).await.unwrap().swept });
        assert_eq!(kept, Generation(4), "hangs: {hangs}");
    }
}

#[test]
fn of_more_arrivals_than_can_be_asked_about_sessions_are_kept_until_it_is_over() {
    let bench = Bench::new(&[2]);
    let arrivals = &bench.repairers[&1].arrivals;
    bench.change(|map| map.nodes[1].generation_floor = 9);
    let of = |counter: usize| {
        let session = Session { node: NodeId(2), generation: Generation(7) };
        ChunkId { session, counter: counter as u32, ..id(1) }
    };
    let most = client::NAMED_IDS_MAX;
    (0..most + 2).for_each(|counter| arrivals.came(disk_id(1), of(counter)));
    let first = arrivals.take();
    assert!(first.has(disk_id(1), of(0)) && !first.has(disk_id(1), of(most)), "those that were noted one by one");
    let then = arrivals.take();
    assert!(then.has(disk_id(1), of(most)) && then.has(disk_id(1), of(most + 1)), "those that were not");
    assert!(!then.has(disk_id(2), of(most)));
    assert_eq!(arrivals.take(), Come::default());
    arrivals.came(disk_id(1), ChunkId { session: Session { node: NodeId(2), generation: Generation(9) }, ..id(1) });
    assert_eq!(arrivals.take(), Come::default(), "its session is open, and will be swept");
}
