//! What the tests share: a simulated node with one disk, and data that can be told from any other.

use base::checksum::crc64;
use base::env::Disk;
use base::ids::{ChunkId, ClusterId, DiskId, Generation, NodeId, OwnerId, PgEpoch, PoolId, Session, Slot};
use base::sim::{Sim, SimDisk, SimNode};
use bytes::Bytes;
use std::sync::Arc;
use store::{DiskIdentity, Engine, EngineOptions, NewChunk, RecoveryReport, StoreError};

pub const NODE: NodeId = NodeId(1);

pub const IDENTITY: DiskIdentity = DiskIdentity { cluster: ClusterId(0xc1), disk: DiskId(0xd1), node: NODE };

pub struct Bench {
    pub sim: Sim,
    pub node: SimNode,
    pub disk: Arc<SimDisk>,
}

impl Bench {
    /// A node with an empty disk.
    pub fn new(seed: u64) -> Bench {
        let sim = Sim::new(seed);
        let node = sim.node(NODE);
        let disk = node.disk("d");
        Bench { sim, node, disk }
    }

    /// A node with a formatted disk.
    pub fn formatted(seed: u64) -> Bench {
        let bench = Bench::new(seed);
        let (env, disk) = (bench.node.env(), bench.dyn_disk());
        bench.sim.block_on(async { Engine::format(&env, disk, &IDENTITY, &small()).await }).unwrap();
        bench
    }

    pub fn dyn_disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    pub fn try_open(&self) -> Result<(Engine, RecoveryReport), StoreError> {
        self.try_open_with(small())
    }

    pub fn try_open_with(&self, options: EngineOptions) -> Result<(Engine, RecoveryReport), StoreError> {
        let (env, disk) = (self.node.env(), self.dyn_disk());
        self.sim.block_on(async move { Engine::open(&env, disk, options).await })
    }

    pub fn open(&self) -> Engine {
        self.try_open().unwrap().0
    }

    pub fn close(&self, engine: Engine) {
        self.sim.block_on(engine.close());
    }

    /// Power off and on again.
    pub fn crash(&self, engine: Engine) {
        self.node.crash();
        drop(engine);
    }

    pub fn put(&self, engine: &Engine, chunk: NewChunk) -> Result<store::PutOutcome, StoreError> {
        self.sim.block_on(engine.put(chunk))
    }

    pub fn get(&self, engine: &Engine, id: ChunkId) -> Result<Bytes, StoreError> {
        self.sim.block_on(engine.get(id, 0..u32::MAX)).map(store::ChunkData::into_bytes)
    }

    pub fn delete(&self, engine: &Engine, ids: Vec<ChunkId>) {
        self.sim.block_on(engine.delete(ids)).unwrap();
    }

    /// Names of the files that begin with `prefix`.
    pub fn files(&self, prefix: &str) -> Vec<String> {
        self.disk.files().into_iter().filter(|name| name.starts_with(prefix)).collect()
    }
}

/// Small volumes, so that tests see many of them.
pub fn small() -> EngineOptions {
    EngineOptions {
        volume_size_bytes: Some(2 << 20),
        ahead_bytes: 64 << 10,
        compaction_bytes_per_s: 1 << 30,
        scrub_bytes_per_s: 0,
        apart_worth: 0,
        ..EngineOptions::default()
    }
}

pub fn id(counter: u32) -> ChunkId {
    ChunkId {
        pool: PoolId(1),
        slot: Slot::new(counter.wrapping_mul(0x9e37)),
        session: Session { node: NODE, generation: Generation(1) },
        counter,
    }
}

/// `len` bytes that no other chunk has.
pub fn payload(counter: u32, len: usize) -> Bytes {
    let mut state = u64::from(counter).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out.into()
}

pub fn chunk(counter: u32, len: usize) -> NewChunk {
    let payload = payload(counter, len);
    NewChunk { id: id(counter), owner: OwnerId(7), epoch: PgEpoch(3), crc64: crc64(&payload), payload: vec![payload] }
}
