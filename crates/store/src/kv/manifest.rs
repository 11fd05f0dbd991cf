//! The manifest: which runs make up the store. It is the store's one mutable file, replaced as a whole, so that a
//! crash leaves the old or the new one.
//!
//! ```text
//! file    `kv-manifest`: copy, copy                each a multiple of 4 KiB, so that no bad sector harms both
//! copy     0 magic "HENGEKVM"     8 version u32     12 body len u32     16 disk u128     32 sequence u64
//!         40 body                then zeroes, so that the copy fills whole blocks        last 4: crc u32
//! body    next run id u64, transactions u64, levels u8, then for each level: runs u32, then for each run
//!         id u64, nonce u64, bytes u64, entries u64, deletions u64, first len u16, first key, last len u16, last key
//! ```
//! The CRC-32C covers the whole copy before it, seeded with the disk's id. One damaged copy is survivable and is
//! written anew at the next opening; two are an error, as nothing else says which runs are in use.

use base::buffer::{BLOCK, align_up};
use base::checksum::crc32c;
use base::codec::{DecodeError, Reader, Writer};
use base::env::{self, Disk};
use bytes::Bytes;
use std::io;

use super::KvError;
use super::run::{RunMeta, take_key};

pub(super) const FILE_NAME: &str = "kv-manifest";
/// What to do when no sound manifest is left.
pub(super) const ADVICE: &str = "nothing else says which runs are in use, so this disk's metadata is lost: let the \
    node be refilled from its peers, or restore the directory from a copy";
const MAGIC: [u8; 8] = *b"HENGEKVM";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 40;
/// Levels that a store has at most: with ten times the bytes in each next level, enough for any disk.
pub(super) const LEVELS: usize = 7;
/// Bytes that are read at most: about a million runs.
const SIZE_BYTES_MAX: u64 = 512 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Rises with each replacement.
    pub(super) sequence: u64,
    pub(super) next_run_id: u64,
    /// How many transactions since the store was made are in the runs.
    pub(super) transactions: u64,
    /// Level 0 newest first; the others in key order without overlap.
    pub(super) levels: Vec<Vec<RunMeta>>,
}

/// What was found of a manifest.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    Manifest {
        manifest: Manifest,
        /// What is wrong with one of the copies.
        copy_damage: Option<String>,
    },
}

impl Manifest {
    /// Makes this manifest the durable one. An error leaves unknown which one is.
    pub(super) async fn replace(&self, disk: &dyn Disk, disk_seed: u128) -> io::Result<()> {
        env::replace_file(disk, FILE_NAME, Bytes::from(self.encode(disk_seed))).await
    }

    /// Bytes of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.encode(0).len() as u64
    }

    fn encode(&self, disk_seed: u128) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u64(self.next_run_id);
        body.put_u64(self.transactions);
        body.put_u8(u8::try_from(self.levels.len()).expect("LEVELS fits in u8"));
        for level in &self.levels {
            body.put_u32(u32::try_from(level.len()).expect("a level has far fewer runs"));
            for run in level {
                put_run(&mut body, run);
            }
        }
        let mut copy = Vec::with_capacity(HEADER_BYTES + body.len() + BLOCK);
        copy.put_bytes(&MAGIC);
        copy.put_u32(VERSION);
        copy.put_u32(u32::try_from(body.len()).expect("a manifest is far below 4 GiB"));
        copy.put_u128(disk_seed);
        copy.put_u64(self.sequence);
        copy.put_bytes(&body);
        copy.resize(copy_bytes(body.len()) - 4, 0);
        let crc = crc32c(&disk_seed.to_le_bytes(), &copy);
        copy.put_u32(crc);
        copy.extend_from_within(..);
        copy
    }
}

/// Bytes of a copy whose body has `body_len` bytes.
fn copy_bytes(body_len: usize) -> usize {
    align_up((HEADER_BYTES + body_len + 4) as u64) as usize
}

/// Reads the manifest, if there is one. The error says what is wrong and what to do.
pub(super) async fn read(disk: &dyn Disk, disk_seed: u128) -> Result<Found, KvError> {
    let contents = env::read_file(disk, FILE_NAME, SIZE_BYTES_MAX)
        .await
        .map_err(|error| damaged(format!("{FILE_NAME} in {} cannot be read: {error}", disk.describe())))?;
    let Some(contents) = contents else { return Ok(Found::Nothing) };
    decode(&contents, disk_seed).map_err(|what| match what {
        Unreadable::Damaged(what) => damaged(format!("{FILE_NAME} in {}: {what}; {ADVICE}", disk.describe())),
        Unreadable::Foreign(what) => KvError::Io(format!("{FILE_NAME} in {} {what}", disk.describe())),
    })
}

pub(super) enum Unreadable {
    Damaged(String),
    /// Sound, but not for this store or this version.
    Foreign(String),
}

pub(super) fn damaged(detail: String) -> KvError {
    KvError::Damaged { first: Bytes::new(), last: Bytes::from_static(&[0xff; 16]), detail }
}

pub(super) fn decode(contents: &[u8], disk_seed: u128) -> Result<Found, Unreadable> {
    let half = contents.len() / 2;
    let first = decode_copy(contents, disk_seed);
    let second = decode_copy(&contents[half..], disk_seed);
    let (manifest, copy_damage) = match (first, second) {
        (Ok(first), Ok(second)) if first == second => (first, None),
        (Ok(first), Ok(second)) => {
            let newer = if first.sequence >= second.sequence { first } else { second };
            (newer, Some("its copies differ".to_owned()))
        }
        (Ok(manifest), Err(Unreadable::Damaged(what))) => (manifest, Some(format!("second copy: {what}"))),
        (Err(Unreadable::Damaged(what)), Ok(manifest)) => (manifest, Some(format!("first copy: {what}"))),
        (Err(Unreadable::Foreign(what)), _) | (_, Err(Unreadable::Foreign(what))) => {
            return Err(Unreadable::Foreign(what));
        }
        (Err(Unreadable::Damaged(first)), Err(Unreadable::Damaged(second))) => {
            return Err(Unreadable::Damaged(format!("both copies are damaged (first: {first}; second: {second})")));
        }
    };
    Ok(Found::Manifest { manifest, copy_damage })
}

fn decode_copy(contents: &[u8], disk_seed: u128) -> Result<Manifest, Unreadable> {
    let malformed = |error: DecodeError| Unreadable::Damaged(error.to_string());
    let mut reader = Reader::new(contents);
    let magic = reader.array::<8>("magic").map_err(malformed)?;
    let version = reader.u32("version").map_err(malformed)?;
    let body_len = reader.u32("body length").map_err(malformed)? as usize;
    let disk = reader.u128("disk").map_err(malformed)?;
    let sequence = reader.u64("sequence").map_err(malformed)?;
    if magic != MAGIC {
        return Err(Unreadable::Damaged("not a manifest".to_owned()));
    }
    let len = copy_bytes(body_len);
    let copy = contents.get(..len).ok_or_else(|| Unreadable::Damaged("cut short".to_owned()))?;
    let crc = Reader::new(&copy[len - 4..]).u32("checksum").map_err(malformed)?;
    // Checked with the disk id it names itself, so that a sound manifest of another disk is told from damage.
    if crc32c(&disk.to_le_bytes(), &copy[..len - 4]) != crc {
        return Err(Unreadable::Damaged("it fails its checksum".to_owned()));
    }
    if disk != disk_seed {
        let what = format!("belongs to disk {disk:032x}, not to {disk_seed:032x}: put each disk's files back in place");
        return Err(Unreadable::Foreign(what));
    }
    if version != VERSION {
        let what =
            format!("has format {version}, and this henge knows format {VERSION}: start the version that wrote it");
        return Err(Unreadable::Foreign(what));
    }
    let body = &copy[HEADER_BYTES..HEADER_BYTES + body_len];
    decode_body(body, sequence).map_err(malformed)
}

pub(super) fn decode_body(body: &[u8], sequence: u64) -> Result<Manifest, DecodeError> {
    let mut reader = Reader::new(body);
    let next_run_id = reader.u64("next run id")?;
    let transactions = reader.u64("transactions")?;
    let levels = usize::from(reader.u8("levels")?);
    if levels != LEVELS {
        return Err(reader.error("levels"));
    }
    let mut manifest = Manifest { sequence, next_run_id, transactions, levels: Vec::new() };
    for _ in 0..levels {
        let mut runs = Vec::new();
        for _ in 0..reader.u32("runs")? {
            runs.push(take_run(&mut reader)?);
        }
        manifest.levels.push(runs);
    }
    if reader.remaining() != 0 {
        return Err(reader.error("body length"));
    }
    Ok(manifest)
}

fn put_run(out: &mut Vec<u8>, run: &RunMeta) {
    out.put_u64(run.id);
    out.put_u64(run.nonce);
    out.put_u64(run.size_bytes);
    out.put_u64(run.entries);
    out.put_u64(run.deletions);
    for key in [&run.first, &run.last] {
        out.put_u16(u16::try_from(key.len()).expect("KEY_LEN_MAX fits in u16"));
        out.put_bytes(key);
    }
}

fn take_run(reader: &mut Reader<'_>) -> Result<RunMeta, DecodeError> {
    Ok(RunMeta {
        id: reader.u64("run id")?,
        nonce: reader.u64("nonce")?,
        size_bytes: reader.u64("run bytes")?,
        entries: reader.u64("entries")?,
        deletions: reader.u64("deletions")?,
        first: take_key(reader)?,
        last: take_key(reader)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: u128 = 7;

    fn runs() -> impl Strategy<Value = RunMeta> {
        (any::<[u64; 5]>(), any::<Vec<u8>>(), any::<Vec<u8>>()).prop_map(|(numbers, first, last)| {
            let [id, nonce, size_bytes, entries, deletions] = numbers;
            RunMeta { id, nonce, size_bytes, entries, deletions, first: first.into(), last: last.into() }
        })
    }

    fn manifests() -> impl Strategy<Value = Manifest> {
        let levels = proptest::collection::vec(proptest::collection::vec(runs(), 0..4), LEVELS);
        (any::<[u64; 3]>(), levels).prop_map(|([sequence, next_run_id, transactions], levels)| Manifest {
            sequence,
            next_run_id,
            transactions,
            levels,
        })
    }

    fn read_back(contents: &[u8]) -> Option<(Manifest, Option<String>)> {
        match decode(contents, DISK) {
            Ok(Found::Manifest { manifest, copy_damage }) => Some((manifest, copy_damage)),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn round_trips(manifest in manifests()) {
            prop_assert_eq!(read_back(&manifest.encode(DISK)), Some((manifest, None)));
        }

        #[test]
        fn one_flip_is_survived_and_reported(manifest in manifests(), flip: proptest::sample::Index) {
            let mut contents = manifest.encode(DISK);
            let bit = flip.index(contents.len() * 8);
            contents[bit / 8] ^= 1 << (bit % 8);
            let (found, copy_damage) = read_back(&contents).unwrap();
            prop_assert_eq!(found, manifest);
            prop_assert!(copy_damage.is_some());
        }

        #[test]
        fn damage_in_both_copies_is_an_error(manifest in manifests(), flip: proptest::sample::Index) {
            let mut contents = manifest.encode(DISK);
            let half = contents.len() / 2;
            let bit = flip.index(half * 8);
            contents[bit / 8] ^= 1 << (bit % 8);
            contents[half + bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(decode(&contents, DISK), Err(Unreadable::Damaged(_))));
        }

        #[test]
        fn decoding_any_bytes_never_panics(contents: Vec<u8>) {
            prop_assert!(read_back(&contents).is_none());
        }
    }

    #[test]
    fn another_disk_is_told_from_damage() {
        let manifest = Manifest { levels: vec![Vec::new(); LEVELS], ..Manifest::default() };
        let contents = manifest.encode(DISK + 1);
        assert!(matches!(decode(&contents, DISK), Err(Unreadable::Foreign(_))));
        assert_eq!(contents.len(), 2 * BLOCK);
    }
}
