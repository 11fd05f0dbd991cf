//! A cluster of three nodes without Raft and disks: the real state machines in one place that all nodes answer from, and
//! chunks in memory. The network, the clocks and what happens to nodes are simulated.

use base::env::{BoxFuture, Channel, Frame, Handler};
use base::ids::{ChunkId, DiskId, GROUP_ZERO, Generation, GroupId, LogIndex, NodeId, Session};
use base::sim::{Sim, SimHandle};
use bytes::Bytes;
use client::wire::{self, Answer, Ask, ChunkDone, Failed, Failure, Request, Told};
use client::{BucketInfo, Client, ClientConfig, Error, FinishPut, MapView};
use meta::map::command::*;
use meta::object::command::*;
use meta::object::expire::Move;
use meta::object::transition::POOLS_LEVEL_MIN;
use meta::view::commit;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

pub type Rows = BTreeMap<Bytes, Bytes>;

/// Where the client under test lives; not one of the nodes.
pub const GATEWAY: NodeId = NodeId(9);
const GROUP: GroupId = GroupId(1);

#[derive(Default)]
pub struct State {
    map_rows: Rows,
    pub shard_rows: Rows,
    index: u64,
    pub leader: u32,
    pub chunks: BTreeMap<(u32, ChunkId), Bytes>,
    tombstones: BTreeSet<(u32, ChunkId)>,
    /// What a node answers to chunk requests instead of carrying them out.
    pub refuses: BTreeMap<u32, Failure>,
    /// How many it has answered so.
    pub refused: usize,
    /// What the last shard command asked for.
    pub acknowledgement: Option<Acknowledgement>,
    /// What eventual reads are answered from, instead of what there is.
    pub stale_rows: Option<Rows>,
    pub staleness_ms: Option<u64>,
    /// Chunks that were made from others on their nodes.
    pub clones: usize,
    /// Linearizable reads of the map.
    pub map_reads: usize,
}

impl State {
    pub fn map(&self) -> ClusterMap {
        meta::map::load(&self.map_rows).unwrap()
    }

    pub fn change(&mut self, command: MapCommand) -> MapReply {
        let reply = self.apply_map(MapEntry { slot: None, command: Some(command) });
        assert_eq!(reply.outcome(), MapOutcome::Done, "{}", reply.detail);
        reply
    }

    fn apply_map(&mut self, entry: MapEntry) -> MapReply {
        self.index += 1;
        let (changes, reply) = meta::map::apply(&self.map_rows, LogIndex(self.index), entry).unwrap();
        commit(&mut self.map_rows, changes);
        reply
    }

    fn apply_shard(&mut self, entry: ShardEntry) -> ShardReply {
        self.index += 1;
        let (changes, reply) = meta::object::apply(&self.shard_rows, GROUP, LogIndex(self.index), entry).unwrap();
        commit(&mut self.shard_rows, changes);
        reply
    }

    pub fn vote_down(&mut self, node: u32) {
        let state = NodeState::Down as i32;
        self.change(MapCommand::SetNodeState(SetNodeState {
            id: node,
            state,
            raise_floor: true,
            generation: 1,
            stays: false,
        }));
    }

    /// Moves every group one step: closes open ones, opens closed ones.
    pub fn step_groups(&mut self) {
        let step = |row: &PgRow| PgRow {
            epoch: row.epoch + 1,
            closed: !row.closed,
            members_before: if row.closed { vec![] } else { row.members.clone() },
            ..row.clone()
        };
        let rows = self.map().pgs.iter().map(step).collect();
        self.change(MapCommand::SetPgs(PgRows { rows }));
    }

    fn answer(&mut self, node: u32, ask: Ask, bulk: Vec<Bytes>) -> (Told, Vec<Bytes>) {
        let leads = node == self.leader;
        let other = Told::Failed(Failed { leader: self.leader, ..Failed::new(Failure::NotLeader, "") });
        let failed = |failure| (Told::Failed(Failed::new(failure, format!("{failure:?}"))), vec![]);
        let told = match ask {
            Ask::GetMap(get) if leads || !get.linearizable => {
                self.map_reads += usize::from(get.linearizable);
                Told::Map(self.map())
            }
            Ask::ProposeMap(entry) if leads => Told::MapReply(self.apply_map(entry)),
            Ask::ProposeShard(propose) if leads => {
                self.acknowledgement = Some(propose.acknowledgement());
                Told::ShardReply(self.apply_shard(propose.entry.unwrap()))
            }
            Ask::QueryShard(query) if query.eventual => {
                let rows = self.stale_rows.as_ref().unwrap_or(&self.shard_rows);
                Told::ShardAnswer(meta::object::query(rows, GROUP, query.query.unwrap()).unwrap())
            }
            Ask::QueryShard(query) if leads => {
                Told::ShardAnswer(meta::object::query(&self.shard_rows, GROUP, query.query.unwrap()).unwrap())
            }
            Ask::PutChunk(_) | Ask::GetChunk(_) | Ask::CloneChunk(_) | Ask::DeleteChunks(_)
                if self.refuses.contains_key(&node) =>
            {
                self.refused += 1;
                return failed(self.refuses[&node]);
            }
            Ask::PutChunk(put) => {
                let id = ChunkId::from_bytes(put.id[..].try_into().unwrap());
                let placement = MapView::new(self.map()).placement(id).unwrap();
                if placement.closed || placement.epoch.0 != put.epoch {
                    return failed(Failure::StalePlacement);
                }
                self.chunks.insert((node, id), bulk.concat().into());
                Told::Chunk(ChunkDone { epoch: put.epoch, ..ChunkDone::default() })
            }
            Ask::GetChunk(get) => {
                let id = ChunkId::from_bytes(get.id[..].try_into().unwrap());
                if self.tombstones.contains(&(node, id)) {
                    return failed(Failure::Deleted);
                }
                let Some(chunk) = self.chunks.get(&(node, id)) else { return failed(Failure::NotFound) };
                let piece = chunk.slice(get.start as usize..get.end as usize);
                return (Told::Chunk(ChunkDone { epoch: 1, ..ChunkDone::default() }), vec![piece]);
            }
            Ask::CloneChunk(clone) => {
                let [from, id] = [&clone.from, &clone.id].map(|id| ChunkId::from_bytes(id[..].try_into().unwrap()));
                let Some(source) = self.chunks.get(&(node, from)) else { return failed(Failure::NotFound) };
                let bytes = source.slice(clone.start as usize..clone.end as usize);
                let mut crc = base::checksum::Crc64::new();
                crc.update(&bytes);
                self.chunks.insert((node, id), bytes);
                self.clones += 1;
                Told::Chunk(ChunkDone { epoch: clone.epoch, crc64: crc.finish(), ..ChunkDone::default() })
            }
            Ask::DeleteChunks(delete) => {
                for id in delete.ids.chunks_exact(ChunkId::LEN) {
                    let place = (node, ChunkId::from_bytes(id.try_into().unwrap()));
                    self.chunks.remove(&place);
                    self.tombstones.insert(place);
                }
                Told::Chunk(ChunkDone { epoch: 0, ..ChunkDone::default() })
            }
            _ => other,
        };
        (told, vec![])
    }
}

struct FakeNode {
    id: u32,
    state: Arc<Mutex<State>>,
}

impl Handler for FakeNode {
    fn handle(&self, _from: NodeId, _channel: Channel, request: Frame) -> BoxFuture<Frame> {
        let mut state = self.state.lock().unwrap();
        let ask = wire::head::<Request>(&request).unwrap().ask.unwrap();
        let (told, bulk) = state.answer(self.id, ask, request.bulk);
        let map_version = state.map().version;
        let answer = Answer { map_version, told: Some(told), staleness_ms: state.staleness_ms };
        Box::pin(async move { wire::frame(&answer, bulk) })
    }
}

/// Three nodes with a disk each, four groups on all of them; node 1 leads.
pub struct Fake {
    sim: Sim,
    state: Arc<Mutex<State>>,
    pub client: Client,
}

impl Fake {
    pub fn new(seed: u64) -> Fake {
        let sim = Sim::new(seed);
        let state = Arc::new(Mutex::new(State { leader: 1, ..State::default() }));
        set_up(&mut state.lock().unwrap());
        for id in 1..=3 {
            sim.env(NodeId(id)).net.serve(Arc::new(FakeNode { id, state: state.clone() }));
        }
        let client = Client::new(ClientConfig {
            env: sim.env(GATEWAY),
            session: Session { node: GATEWAY, generation: Generation(1) },
            contacts: vec![NodeId(2), NodeId(1)],
            region: "r".into(),
        });
        Fake { sim, state, client }
    }

    pub fn sim(&self) -> SimHandle {
        (*self.sim).clone()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Runs on the gateway's node.
    pub fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        self.sim.block_on(self.sim.node(GATEWAY).run(task)).expect("the gateway does not crash")
    }

    /// After `millis`, changes the state, and tells the client as the follower of its own replica would.
    pub fn later(&self, millis: u64, change: impl FnOnce(&mut State) + Send + 'static) {
        let (sim, state, client) = (self.sim(), self.state.clone(), self.client.clone());
        self.sim.spawn("later", async move {
            sim.sleep(std::time::Duration::from_millis(millis)).await;
            let map = {
                let mut state = state.lock().unwrap();
                change(&mut state);
                state.map()
            };
            client.learn_map(map);
        });
    }

    pub fn bucket(&self, acknowledgement: Acknowledgement) -> BucketInfo {
        let client = self.client.clone();
        let bucket = self.run(async move { client.create_bucket("b", "root").await.unwrap() });
        let row = BucketEntry { acknowledgement: acknowledgement as i32, ..self.state().map().buckets[0].clone() };
        self.state().change(MapCommand::SetBucket(BucketEntry { settings_version: 0, ..row }));
        let map = self.state().map();
        self.client.learn_map(map);
        bucket
    }

    pub fn put(&self, bucket: &BucketInfo, key: &'static str, bytes: Bytes) -> Result<(), Error> {
        let (client, bucket) = (self.client.clone(), bucket.clone());
        self.run(async move {
            let mut writer = client.write(&bucket, Bytes::from_static(key.as_bytes()), None);
            writer.write(bytes).await?;
            writer.finish(FinishPut::default()).await.map(|_| ())
        })
    }

    pub fn get(&self, bucket: &BucketInfo, key: &'static str) -> Result<Vec<u8>, Error> {
        let (client, bucket) = (self.client.clone(), bucket.clone());
        self.run(async move {
            let object = client.head(&bucket, &Bytes::from_static(key.as_bytes()), None).await?;
            let mut reader = client.read(&bucket, &object, 0..u64::MAX);
            let mut out = Vec::new();
            while let Some(piece) = reader.next().await {
                out.extend_from_slice(&piece?);
            }
            Ok(out)
        })
    }

    /// A server-side copy.
    pub fn copy(
        &self,
        bucket: &BucketInfo,
        from: &'static str,
        to: &'static str,
        range: Range<u64>,
    ) -> Result<(), Error> {
        let (client, bucket) = (self.client.clone(), bucket.clone());
        self.run(async move {
            let source = client.head(&bucket, &Bytes::from_static(from.as_bytes()), None).await?;
            let mut writer = client.write(&bucket, Bytes::from_static(to.as_bytes()), None);
            writer.copy_from(&bucket, &source, range).await?;
            writer.finish(FinishPut::default()).await.map(|_| ())
        })
    }

    /// Another pool, with three copies.
    pub fn add_pool(&self) -> u32 {
        let client = self.client.clone();
        self.run(async move { client.create_pool("cold", "COLD", 3).await.unwrap().id })
    }

    /// As a due transition: what `head` has answered goes to the pool. The bucket is not versioned.
    pub fn transition(&self, bucket: &BucketInfo, version: &ObjectVersion, pool: u32) -> Result<(), Error> {
        let (client, bucket) = (self.client.clone(), bucket.clone());
        let found = Move { version: version.clone(), order: 0, pool };
        self.run(async move { client.move_version(&bucket, &found).await })
    }

    pub fn head(&self, bucket: &BucketInfo, key: &'static str) -> ObjectVersion {
        let (client, bucket) = (self.client.clone(), bucket.clone());
        self.run(async move { client.head(&bucket, &Bytes::from_static(key.as_bytes()), None).await.unwrap() })
    }

    pub fn bury(&self, ids: Vec<ChunkId>) {
        let client = self.client.clone();
        self.run(async move { client.bury_chunks(&ids).await.unwrap() });
    }

    /// The chunks that lie in this pool.
    pub fn chunks_in(&self, pool: u8) -> Vec<ChunkId> {
        let ids: BTreeSet<ChunkId> = self.state().chunks.keys().map(|(_, id)| *id).collect();
        ids.into_iter().filter(|id| id.pool.0 == pool).collect()
    }

    /// The nodes that hold the one chunk there is.
    pub fn holders(&self) -> Vec<u32> {
        self.state().chunks.keys().map(|(node, _)| *node).collect()
    }
}

fn set_up(state: &mut State) {
    let disk = |id: u32| Bytes::copy_from_slice(&DiskId(u128::from(id)).0.to_be_bytes());
    let cluster = Bytes::from_static(&[7; 16]);
    state.change(MapCommand::InitCluster(InitCluster { cluster, region: "r".into(), feature_level: POOLS_LEVEL_MIN }));
    for id in 1..=3 {
        let feature_level_max = POOLS_LEVEL_MIN;
        state.change(MapCommand::SetNode(NodeRow { id, generation: 1, feature_level_max, ..NodeRow::default() }));
        state.change(MapCommand::SetDisk(DiskRow { id: disk(id), node: id, capacity_bytes: 1, ..DiskRow::default() }));
    }
    let pool = PoolRow { id: 1, name: "p".into(), copies: 3, copies_effective: 3, pg_bits: 2, ..PoolRow::default() };
    state.change(MapCommand::SetPool(pool));
    let members: Vec<Bytes> = (1..=3).map(disk).collect();
    let row = |prefix| PgRow { pool: 1, prefix, epoch: 1, members: members.clone(), ..PgRow::default() };
    state.change(MapCommand::SetPgs(PgRows { rows: (0..4).map(row).collect() }));
    let shard = ShardRow { group: GROUP.0, range_epoch: 1, nodes: vec![1, 2, 3], ..ShardRow::default() };
    state.change(MapCommand::SetShard(shard));
    let init =
        ShardCommand::InitShard(InitShard { range_epoch: 1, feature_level: POOLS_LEVEL_MIN, ..InitShard::default() });
    state.apply_shard(ShardEntry { command: Some(init), ..ShardEntry::default() });
    assert_ne!(GROUP, GROUP_ZERO);
}
