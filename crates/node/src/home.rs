//! The node's own directory: who it is, and how often it has started.
//!
//! Byte maps (integers little-endian). `node`: magic "HNGENODE" (8), format version u16, flags u16 (bit 0: set up),
//! node u32, cluster u128, CRC-32C of all before it u32; flag bit 1: joined a cluster that another node founded; flag
//! bit 2: recovered, and the cluster's generation is still to be raised.
//! `contacts`: magic "HNGECONT" (8), count u32, then for each other node: id u32, length of its address u16, address;
//! CRC-32C u32. `generation`: magic "HNGEGEN1" (8), node u32, generation u32,
//! swept u32 (orphans of older generations were removed), CRC-32C u32. `restoring`, while a backup of the metadata is being
//! put in the place of what was here: magic "HNGEREST" (8), generation u32, digest of the backup u32, set aside u8, CRC-32C
//! u32. Each is replaced as a whole.

use base::checksum::crc32c;
use base::codec::{DecodeError, Reader, Writer};
use base::env::{Disk, read_file, replace_file};
use base::ids::{ClusterId, Generation, NodeId};
use base::plant::{self, Plant};
use std::io;
use std::sync::Arc;
use tokio::sync::Mutex;

const NODE_FILE: &str = "node";
const NODE_MAGIC: &[u8; 8] = b"HNGENODE";
const GENERATION_FILE: &str = "generation";
const GENERATION_MAGIC: &[u8; 8] = b"HNGEGEN1";
const FORMAT_VERSION: u16 = 1;
const FLAG_SET_UP: u16 = 1;
const FLAG_JOINED: u16 = 2;
const FLAG_RECOVERED: u16 = 4;
const RESTORING_FILE: &str = "restoring";
const RESTORING_MAGIC: &[u8; 8] = b"HNGEREST";
const CONTACTS_FILE: &str = "contacts";
const CONTACTS_MAGIC: &[u8; 8] = b"HNGECONT";
/// Other nodes that are remembered: enough to find the cluster again.
const CONTACTS_MAX: usize = 64;
const FILE_BYTES_MAX: u64 = 128 << 10;

/// Which cluster and node a directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    pub cluster: ClusterId,
    pub node: NodeId,
    /// The cluster has been set up: from then on an empty metadata disk is a loss, not a fresh start.
    pub set_up: bool,
    /// Another node founded the cluster: this one never does.
    pub joined: bool,
    /// An operator made this node the sole voter; the cluster has not been told of its new generation yet.
    pub recovered: bool,
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
    let has = |flag: u16| flags & flag != 0;
    let (set_up, joined, recovered) = (has(FLAG_SET_UP), has(FLAG_JOINED), has(FLAG_RECOVERED));
    Ok(Some(NodeIdentity { cluster, node, set_up, joined, recovered }))
}

pub async fn store_identity(disk: &dyn Disk, identity: &NodeIdentity) -> io::Result<()> {
    let mut out = Vec::new();
    out.put_bytes(NODE_MAGIC);
    out.put_u16(FORMAT_VERSION);
    let flag = |is_set: bool, flag: u16| if is_set { flag } else { 0 };
    let recovered = flag(identity.recovered, FLAG_RECOVERED);
    out.put_u16(flag(identity.set_up, FLAG_SET_UP) | flag(identity.joined, FLAG_JOINED) | recovered);
    out.put_u32(identity.node.0);
    out.put_u128(identity.cluster.0);
    replace_file(disk, NODE_FILE, sealed(out)).await
}

/// A restoration that was begun and not completed: the node does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restoring {
    /// Of the cluster, under which it goes on.
    pub generation: u32,
    /// Of the backup: [`crate::backup::Summary::digest`].
    pub digest: u32,
    /// What the key-value store held has been set aside: what it holds now is the restoration's own.
    pub set_aside: bool,
}

pub async fn load_restoring(disk: &dyn Disk) -> Result<Option<Restoring>, HomeError> {
    let Some(raw) = read_file(disk, RESTORING_FILE, FILE_BYTES_MAX).await? else { return Ok(None) };
    let damaged = |error: DecodeError| HomeError::Damaged { file: RESTORING_FILE, detail: error.to_string() };
    let mut reader = Reader::new(checked(&raw).map_err(damaged)?);
    if reader.take(8, "magic").map_err(damaged)? != RESTORING_MAGIC {
        return Err(HomeError::Damaged { file: RESTORING_FILE, detail: "it is not henge's".into() });
    }
    let generation = reader.u32("generation").map_err(damaged)?;
    let digest = reader.u32("digest").map_err(damaged)?;
    let set_aside = reader.u8("set aside").map_err(damaged)? != 0;
    Ok(Some(Restoring { generation, digest, set_aside }))
}

pub async fn store_restoring(disk: &dyn Disk, restoring: Restoring) -> io::Result<()> {
    let mut out = Vec::new();
    out.put_bytes(RESTORING_MAGIC);
    out.put_u32(restoring.generation);
    out.put_u32(restoring.digest);
    out.put_u8(restoring.set_aside.into());
    replace_file(disk, RESTORING_FILE, sealed(out)).await
}

/// The restoration is complete, durably.
pub fn end_restoring(disk: &dyn Disk) -> io::Result<()> {
    disk.remove(RESTORING_FILE)?;
    disk.flush_directory()
}

/// Where other nodes of the cluster were last; empty for a cluster of one.
pub async fn load_contacts(disk: &dyn Disk) -> Result<Vec<(NodeId, String)>, HomeError> {
    let Some(raw) = read_file(disk, CONTACTS_FILE, FILE_BYTES_MAX).await? else { return Ok(Vec::new()) };
    let damaged = |error: DecodeError| HomeError::Damaged { file: CONTACTS_FILE, detail: error.to_string() };
    decode_contacts(&raw).map_err(damaged)
}

pub(crate) fn decode_contacts(raw: &[u8]) -> Result<Vec<(NodeId, String)>, DecodeError> {
    let mut reader = Reader::new(checked(raw)?);
    if reader.take(8, "magic")? != CONTACTS_MAGIC {
        return Err(reader.error("magic"));
    }
    let count = reader.u32("count")?;
    let mut contacts = Vec::new();
    for _ in 0..count {
        let node = NodeId(reader.u32("node")?);
        let len = usize::from(reader.u16("length of an address")?);
        let address = String::from_utf8_lossy(reader.take(len, "address")?).into_owned();
        contacts.push((node, address));
    }
    Ok(contacts)
}

pub async fn store_contacts(disk: &dyn Disk, contacts: &[(NodeId, String)]) -> io::Result<()> {
    let mut out = Vec::new();
    out.put_bytes(CONTACTS_MAGIC);
    let kept = &contacts[..contacts.len().min(CONTACTS_MAX)];
    out.put_u32(kept.len() as u32);
    for (node, address) in kept {
        let address = &address.as_bytes()[..address.len().min(usize::from(u16::MAX))];
        out.put_u32(node.0);
        out.put_u16(address.len() as u16);
        out.put_bytes(address);
    }
    replace_file(disk, CONTACTS_FILE, sealed(out)).await
}

/// Makes an empty directory the home of a node that was let into a cluster. Durable when it returns; refused when the
/// directory belongs to a node already.
pub async fn join(
    disk: &dyn Disk,
    cluster: ClusterId,
    node: NodeId,
    contacts: &[(NodeId, String)],
) -> Result<(), HomeError> {
    if let Some(found) = load_identity(disk).await? {
        let why = format!("the directory belongs to node {} of cluster {} already", found.node, found.cluster);
        return Err(HomeError::Io(io::Error::other(why)));
    }
    // The identity last: only then is the directory a node's.
    store_contacts(disk, contacts).await?;
    store_identity(disk, &NodeIdentity { cluster, node, set_up: false, joined: true, recovered: false }).await?;
    Ok(())
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
        if generations.current.0 == 0 || !plant::is(Plant::SameGeneration) {
            clock.raise().await?;
        }
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

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Records that no orphans of generations below `swept` are left, if that `is_so` still when nobody else writes here.
    pub async fn record_sweep(&self, swept: Generation, is_so: impl FnOnce() -> bool) -> io::Result<()> {
        let mut held = self.generations.lock().await;
        if held.swept == swept || !is_so() {
            return Ok(());
        }
        // Should it fail, the file may have it or not: what is taken back later must be, in the file.
        held.swept = held.swept.max(swept);
        store_generations(&*self.disk, self.node, Generations { swept, ..*held }).await?;
        held.swept = swept;
        Ok(())
    }

    /// Records that there may be orphans of `generation`.
    pub async fn take_back_sweep(&self, generation: Generation) -> io::Result<()> {
        let mut held = self.generations.lock().await;
        if held.swept > generation {
            store_generations(&*self.disk, self.node, Generations { swept: generation, ..*held }).await?;
            held.swept = generation;
        }
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

/// What metadata named may have changed altogether: the next sweep looks at the chunks of all sessions again.
pub async fn forget_sweeps(disk: &dyn Disk, node: NodeId) -> Result<(), HomeError> {
    let held = load_generations(disk, node).await?;
    if held.current.0 > 0 {
        store_generations(disk, node, Generations { swept: Generation(0), ..held }).await?;
    }
    Ok(())
}

async fn store_generations(disk: &dyn Disk, node: NodeId, generations: Generations) -> io::Result<()> {
    let mut out = Vec::new();
    out.put_bytes(GENERATION_MAGIC);
    out.put_u32(node.0);
    out.put_u32(generations.current.0);
    out.put_u32(generations.swept.0);
    replace_file(disk, GENERATION_FILE, sealed(out)).await
}

pub(crate) fn sealed(mut body: Vec<u8>) -> bytes::Bytes {
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
        NodeIdentity { cluster: ClusterId(1), node: NodeId(node), set_up: false, joined: false, recovered: false }
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
    fn a_directory_joins_once_and_remembers_the_others() {
        let sim = Sim::new(4);
        let node = sim.node(NodeId(1));
        let _env = node.env();
        let disk: Arc<dyn Disk> = sim.disk(NodeId(1), "data");
        let others = vec![(NodeId(1), "10.0.0.1:9002".to_string()), (NodeId(2), "b.example:9002".to_string())];
        let joined = sim.block_on(node.run(async move {
            join(&*disk, ClusterId(5), NodeId(3), &others).await?;
            assert!(join(&*disk, ClusterId(5), NodeId(4), &others).await.is_err(), "one directory, one node");
            let identity = load_identity(&*disk).await?.expect("just written");
            assert!(identity.joined && identity.node == NodeId(3));
            assert_eq!(load_contacts(&*disk).await?, others);
            Ok::<_, HomeError>(())
        }));
        joined.expect("no crash meanwhile").expect("nothing fails");
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
                clock.record_sweep(clock.now().await.current, || true).await?;
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
        let identity =
            NodeIdentity { cluster: ClusterId(77), node: NodeId(3), set_up: true, joined: false, recovered: false };
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
