//! The node's own directory: who it is, and how often it has started.
//!
//! Byte maps (integers little-endian). `node`: magic "HNGENODE" (8), format version u16, flags u16 (bit 0: set up),
//! node u32, cluster u128, CRC-32C of all before it u32. `generation`: magic "HNGEGEN1" (8), node u32, generation u32,
//! swept u32 (orphans of older generations were removed), CRC-32C u32. Both are replaced as a whole.

use base::checksum::crc32c;
use base::codec::{DecodeError, Reader, Writer};
use base::env::{Disk, read_file, replace_file};
use base::ids::{ClusterId, Generation, NodeId};
use std::io;
use std::sync::Arc;
use tokio::sync::Mutex;

const NODE_FILE: &str = "node";
const NODE_MAGIC: &[u8; 8] = b"HNGENODE";
const GENERATION_FILE: &str = "generation";
const GENERATION_MAGIC: &[u8; 8] = b"HNGEGEN1";
const FORMAT_VERSION: u16 = 1;
const FLAG_SET_UP: u16 = 1;
const FILE_BYTES_MAX: u64 = 4096;

/// Which cluster and node a directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    pub cluster: ClusterId,
    pub node: NodeId,
    /// The cluster has been set up: from then on an empty metadata disk is a loss, not a fresh start.
    pub set_up: bool,
}

/// The node's generation clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Generations {
    pub current: Generation,
    /// Chunks of sessions below this that nobody names have been removed.
    pub swept: Generation,
}

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error(
        "file `{file}` is damaged ({detail}): restore the newest copy of it (an older `generation` is refused later), or \
         start anew with an empty --data"
    )]
    Damaged { file: &'static str, detail: String },
    #[error("file `{file}` has format version {found}, this binary knows version {known}: start a newer henge")]
    NewerFormat { file: &'static str, found: u16, known: u16 },
    #[error("{0}")]
    Io(#[from] io::Error),
}

pub async fn load_identity(disk: &dyn Disk) -> Result<Option<NodeIdentity>, HomeError> {
    let Some(raw) = read_file(disk, NODE_FILE, FILE_BYTES_MAX).await? else { return Ok(None) };
    let damaged = |error: DecodeError| HomeError::Damaged { file: NODE_FILE, detail: error.to_string() };
    let body = checked(&raw).map_err(damaged)?;
    let mut reader = Reader::new(body);
    if reader.take(8, "magic").map_err(damaged)? != NODE_MAGIC {
        return Err(HomeError::Damaged { file: NODE_FILE, detail: "it is not henge's".into() });
    }
    let version = reader.u16("version").map_err(damaged)?;
    if version > FORMAT_VERSION {
        return Err(HomeError::NewerFormat { file: NODE_FILE, found: version, known: FORMAT_VERSION });
    }
    let flags = reader.u16("flags").map_err(damaged)?;
    let node = NodeId(reader.u32("node").map_err(damaged)?);
    let cluster = ClusterId(reader.u128("cluster").map_err(damaged)?);
    Ok(Some(NodeIdentity { cluster, node, set_up: flags & FLAG_SET_UP != 0 }))
}

pub async fn store_identity(disk: &dyn Disk, identity: &NodeIdentity) -> io::Result<()> {
    let mut out = Vec::new();
    out.put_bytes(NODE_MAGIC);
    out.put_u16(FORMAT_VERSION);
    out.put_u16(if identity.set_up { FLAG_SET_UP } else { 0 });
    out.put_u32(identity.node.0);
    out.put_u128(identity.cluster.0);
    replace_file(disk, NODE_FILE, sealed(out)).await
}

/// The node's generation clock. One owner of the file, so that no writer undoes another's raise.
pub struct GenerationClock {
    disk: Arc<dyn Disk>,
    node: NodeId,
    generations: Mutex<Generations>,
}

impl GenerationClock {
    /// Reads the clock and raises it: the new generation is durable before anything is done under it.
    pub async fn start(disk: Arc<dyn Disk>, identity: &NodeIdentity) -> Result<GenerationClock, HomeError> {
        let node = identity.node;
        let generations = load_generations(&*disk, node).await?;
        if generations.current.0 == 0 && identity.set_up {
            let detail = "it is missing although the node has run before".into();
            return Err(HomeError::Damaged { file: GENERATION_FILE, detail });
        }
        let clock = GenerationClock { disk, node, generations: Mutex::new(generations) };
        clock.raise().await?;
        Ok(clock)
    }

    pub async fn now(&self) -> Generations {
        *self.generations.lock().await
    }

    /// The next generation, durably.
    pub async fn raise(&self) -> io::Result<Generation> {
        let mut held = self.generations.lock().await;
        let raised = Generations { current: Generation(held.current.0 + 1), ..*held };
        store_generations(&*self.disk, self.node, raised).await?;
        *held = raised;
        Ok(raised.current)
    }

    /// Records that no orphans of generations below `swept` are left.
    pub async fn record_sweep(&self, swept: Generation) -> io::Result<()> {
        let mut held = self.generations.lock().await;
        let recorded = Generations { swept, ..*held };
        store_generations(&*self.disk, self.node, recorded).await?;
        *held = recorded;
        Ok(())
    }
}

/// The generations of `node`; zero when the directory is new.
pub async fn load_generations(disk: &dyn Disk, node: NodeId) -> Result<Generations, HomeError> {
    let Some(raw) = read_file(disk, GENERATION_FILE, FILE_BYTES_MAX).await? else { return Ok(Generations::default()) };
    let damaged = |error: DecodeError| HomeError::Damaged { file: GENERATION_FILE, detail: error.to_string() };
    let mut reader = Reader::new(checked(&raw).map_err(damaged)?);
    let magic_fits = reader.take(8, "magic").map_err(damaged)? == GENERATION_MAGIC;
    let owner = NodeId(reader.u32("node").map_err(damaged)?);
    if !magic_fits || owner != node {
        return Err(HomeError::Damaged { file: GENERATION_FILE, detail: "it belongs to another node".into() });
    }
    Ok(Generations {
        current: Generation(reader.u32("generation").map_err(damaged)?),
        swept: Generation(reader.u32("swept").map_err(damaged)?),
    })
}

async fn store_generations(disk: &dyn Disk, node: NodeId, generations: Generations) -> io::Result<()> {
    let mut out = Vec::new();
    out.put_bytes(GENERATION_MAGIC);
    out.put_u32(node.0);
    out.put_u32(generations.current.0);
    out.put_u32(generations.swept.0);
    replace_file(disk, GENERATION_FILE, sealed(out)).await
}

fn sealed(mut body: Vec<u8>) -> bytes::Bytes {
    let crc = crc32c(&[], &body);
    body.put_u32(crc);
    body.into()
}

fn checked(raw: &[u8]) -> Result<&[u8], DecodeError> {
    let Some((body, crc)) = raw.split_last_chunk::<4>() else {
        return Err(DecodeError { what: "too short", offset: raw.len() });
    };
    if crc32c(&[], body) != u32::from_le_bytes(*crc) {
        return Err(DecodeError { what: "checksum", offset: body.len() });
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::sim::Sim;

    fn identity(node: u32) -> NodeIdentity {
        NodeIdentity { cluster: ClusterId(1), node: NodeId(node), set_up: false }
    }

    #[test]
    fn a_lost_generation_is_not_a_fresh_start() {
        let sim = Sim::new(3);
        let node = sim.node(NodeId(1));
        let _env = node.env();
        let disk: Arc<dyn Disk> = sim.disk(NodeId(1), "data");
        let ran_before = NodeIdentity { set_up: true, ..identity(1) };
        let start = sim.block_on(node.run(async move { GenerationClock::start(disk, &ran_before).await.is_err() }));
        assert!(start.expect("no crash meanwhile"));
    }

    #[test]
    fn generations_rise_over_crashes_and_foreign_files_are_refused() {
        let sim = Sim::new(1);
        let node = sim.node(NodeId(1));
        for start in 1..=5 {
            let disk: Arc<dyn Disk> = sim.disk(NodeId(1), "data");
            let _env = node.env();
            let clock = sim.block_on(node.run(async move {
                let clock = GenerationClock::start(disk, &identity(7)).await?;
                clock.record_sweep(clock.now().await.current).await?;
                Ok::<_, HomeError>(clock.now().await)
            }));
            let now = clock.expect("no crash meanwhile").expect("the clock starts");
            assert_eq!(now, Generations { current: Generation(start), swept: Generation(start) });
            sim.crash(NodeId(1));
        }
        let disk: Arc<dyn Disk> = sim.disk(NodeId(1), "data");
        let _env = node.env();
        let foreign = sim.block_on(node.run(async move { GenerationClock::start(disk, &identity(8)).await.is_err() }));
        assert!(foreign.expect("no crash meanwhile"));
    }

    #[test]
    fn a_flipped_bit_in_the_identity_is_damage() {
        let sim = Sim::new(2);
        let node = sim.node(NodeId(1));
        let _env = node.env();
        let disk = sim.disk(NodeId(1), "data");
        let identity = NodeIdentity { cluster: ClusterId(77), node: NodeId(3), set_up: true };
        let on_node: Arc<dyn Disk> = disk.clone();
        sim.block_on(node.run(async move { store_identity(&*on_node, &identity).await })).unwrap().unwrap();
        let good = disk.contents(NODE_FILE).expect("the file exists");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            disk.overwrite(NODE_FILE, 0, &bad);
            let on_node: Arc<dyn Disk> = disk.clone();
            let read = sim.block_on(node.run(async move { load_identity(&*on_node).await })).unwrap();
            assert!(matches!(read, Err(HomeError::Damaged { .. })), "bit {bit}");
        }
    }
}
