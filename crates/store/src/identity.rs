//! Who a disk directory is: two equal copies in the file `identity`, each in its own checksummed block.

use base::buffer::BLOCK;
use base::checksum::crc32c;
use base::codec::{DecodeError, Reader, Writer};
use base::env::{Disk, read_file, replace_file};
use base::ids::{ClusterId, DiskId, NodeId};
use bytes::Bytes;
use std::sync::Arc;

use crate::errors::StoreError;

/// Of the identity, and so of what may lie on the disk. 2: payloads may stand apart from their headers.
const VERSION: u16 = 2;
const APART_VERSION: u16 = 2;

/// Name of the identity file.
pub const IDENTITY_FILE: &str = "identity";

const MAGIC: &[u8; 8] = b"HENGEDSK";
const SEED: &[u8] = b"henge disk identity";

/// Written once, by `format`; says whose disk this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskIdentity {
    pub cluster: ClusterId,
    pub disk: DiskId,
    pub node: NodeId,
}

impl DiskIdentity {
    fn encode(&self, version: u16) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK);
        block.put_bytes(MAGIC);
        block.put_u16(version);
        block.put_u16(0);
        block.put_u32(self.node.0);
        block.put_u128(self.cluster.0);
        block.put_u128(self.disk.0);
        block.resize(BLOCK - 4, 0);
        let crc = crc32c(SEED, &block);
        block.put_u32(crc);
        block
    }

    fn decode(block: &[u8]) -> Result<Decoded, DecodeError> {
        let mut reader = Reader::new(block);
        let covered = Reader::new(block).take(BLOCK - 4, "identity block")?;
        let crc = Reader::new(&block[BLOCK - 4..]).u32("identity checksum")?;
        if crc != crc32c(SEED, covered) {
            return Err(reader.error("identity checksum"));
        }
        if reader.take(8, "identity magic")? != MAGIC {
            return Err(reader.error("identity magic"));
        }
        let version = reader.u16("identity version")?;
        if version > VERSION {
            return Ok(Decoded::Newer(version));
        }
        reader.u16("identity flags")?;
        let node = NodeId(reader.u32("node")?);
        let cluster = ClusterId(reader.u128("cluster")?);
        let disk = DiskId(reader.u128("disk")?);
        Ok(Decoded::Known(DiskIdentity { cluster, disk, node }, version))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Decoded {
    Known(DiskIdentity, u16),
    Newer(u16),
}

/// The identity, and whether one of its copies is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FoundIdentity {
    pub identity: DiskIdentity,
    pub copy_damaged: bool,
    version: u16,
}

impl FoundIdentity {
    /// Whether every henge that opens this disk knows payloads that stand apart from their headers.
    pub fn knows_apart(&self) -> bool {
        self.version >= APART_VERSION
    }
}

pub(crate) fn decode_file(contents: &[u8]) -> Result<FoundIdentity, StoreError> {
    let copy = |number: usize| {
        let block = contents.get(number * BLOCK..(number + 1) * BLOCK).unwrap_or_default();
        DiskIdentity::decode(block)
    };
    let (first, second) = (copy(0), copy(1));
    let copy_damaged = first != second || contents.len() != 2 * BLOCK;
    match first.or(second) {
        Ok(Decoded::Known(identity, version)) => Ok(FoundIdentity { identity, copy_damaged, version }),
        Ok(Decoded::Newer(found)) => Err(StoreError::NewerFormat { found, known: VERSION }),
        Err(error) => Err(StoreError::IdentityDamaged(error.to_string())),
    }
}

pub(crate) async fn find(disk: &Arc<dyn Disk>) -> Result<Option<FoundIdentity>, StoreError> {
    let contents = read_file(disk.as_ref(), IDENTITY_FILE, 1 << 20)
        .await
        .map_err(|error| StoreError::io("reading the disk identity", &error))?;
    contents.map(|contents| decode_file(&contents)).transpose()
}

/// Makes the disk one of the newest version.
pub(crate) async fn write(disk: &Arc<dyn Disk>, identity: &DiskIdentity) -> Result<(), StoreError> {
    write_as(disk, identity, VERSION).await
}

/// Both copies anew, as they were.
pub(crate) async fn rewrite(disk: &Arc<dyn Disk>, found: &FoundIdentity) -> Result<(), StoreError> {
    write_as(disk, &found.identity, found.version).await
}

async fn write_as(disk: &Arc<dyn Disk>, identity: &DiskIdentity, version: u16) -> Result<(), StoreError> {
    let block = identity.encode(version);
    let contents = Bytes::from([block.as_slice(), block.as_slice()].concat());
    replace_file(disk.as_ref(), IDENTITY_FILE, contents)
        .await
        .map_err(|error| StoreError::io("writing the disk identity", &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Slot;
    use crate::recovery::{Source, recover};
    use crate::{Engine, EngineOptions, NewChunk};
    use base::checksum::crc64;
    use base::ids::{ChunkId, OwnerId, PgEpoch};
    use base::sim::Sim;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn identities_survive_a_flip_in_either_copy(
            cluster: u128, disk: u128, node: u32, at: prop::sample::Index, flip in 1u8..,
        ) {
            let identity = DiskIdentity { cluster: ClusterId(cluster), disk: DiskId(disk), node: NodeId(node) };
            let version = (cluster % 2) as u16 + 1;
            let block = identity.encode(version);
            let mut contents = [block.as_slice(), block.as_slice()].concat();
            prop_assert_eq!(decode_file(&contents), Ok(FoundIdentity { identity, copy_damaged: false, version }));
            let at = at.index(contents.len());
            contents[at] ^= flip;
            prop_assert_eq!(decode_file(&contents), Ok(FoundIdentity { identity, copy_damaged: true, version }));
        }

        #[test]
        fn both_copies_damaged_is_an_error(at: (prop::sample::Index, prop::sample::Index), flip in 1u8..) {
            let identity = DiskIdentity { cluster: ClusterId(1), disk: DiskId(2), node: NodeId(3) };
            let block = identity.encode(VERSION);
            let mut contents = [block.as_slice(), block.as_slice()].concat();
            contents[at.0.index(BLOCK)] ^= flip;
            contents[BLOCK + at.1.index(BLOCK)] ^= flip;
            prop_assert!(matches!(decode_file(&contents), Err(StoreError::IdentityDamaged(_))));
        }

        #[test]
        fn decoding_never_panics(data: Vec<u8>) {
            prop_assert!(decode_file(&data).is_err());
        }
    }

    /// The henge that formatted it may be put back.
    #[test]
    fn a_disk_of_the_first_version_keeps_its_layout() {
        const IDENTITY: DiskIdentity = DiskIdentity { cluster: ClusterId(1), disk: DiskId(2), node: NodeId(3) };
        for version in [1, VERSION] {
            let sim = Sim::new(1);
            let node = sim.node(IDENTITY.node);
            let (env, disk): (_, Arc<dyn Disk>) = (node.env(), node.disk("d"));
            let options = EngineOptions { apart_worth: 0, ..EngineOptions::default() };
            let (found, apart) = sim.block_on(async move {
                Engine::format(&env, disk.clone(), &IDENTITY, &options).await.unwrap();
                write_as(&disk, &IDENTITY, version).await.unwrap();
                let (engine, _) = Engine::open(&env, disk.clone(), options).await.unwrap();
                let payload = Bytes::from(vec![7; BLOCK]);
                let (id, owner, crc64) = (ChunkId::from_u128(5), OwnerId(6), crc64(&payload));
                let chunk = NewChunk { id, owner, epoch: PgEpoch(1), crc64, payload: vec![payload.clone()] };
                engine.put(chunk).await.unwrap();
                assert_eq!(engine.get(id, 0..u32::MAX).await.unwrap().into_bytes(), payload);
                engine.close().await;
                let recovered = recover(&disk, IDENTITY.disk, Source::Volumes).await.unwrap();
                let Some(Slot::Live(live)) = recovered.state.index.get(id) else { panic!("it was stored") };
                (find(&disk).await.unwrap().unwrap(), live.apart)
            });
            assert_eq!((found.version, apart > 0), (version, version >= APART_VERSION));
        }
    }

    #[test]
    fn a_newer_format_is_told_apart_from_damage() {
        let mut block = DiskIdentity { cluster: ClusterId(1), disk: DiskId(2), node: NodeId(3) }.encode(VERSION);
        block[8..10].copy_from_slice(&(VERSION + 1).to_le_bytes());
        let crc = crc32c(SEED, &block[..BLOCK - 4]);
        block[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
        let contents = [block.as_slice(), block.as_slice()].concat();
        assert_eq!(decode_file(&contents), Err(StoreError::NewerFormat { found: 3, known: 2 }));
    }
}
