//! Every persistent key. One ordered key-value instance per disk holds the rows of all groups on it.
//!
//! ```text
//! byte map of a key (all integers big-endian, so that byte order is the order of the numbers)
//!
//! 01  group u64  sub u8 ...            rows of one group, whatever its kind
//! 01  group      00                    GroupState      applied index, term, Raft configuration, level, range (one row)
//! 01  group      10  bucket u64        Bucket          the shard's copy of a bucket's settings
//! 01  group      11  bucket u64        BucketRules     its lifecycle rules, apart because only the worker reads them
//! 01  group      12  bucket u64        BucketUsage     what a bucket with a quota holds
//! 01  group      20  node u32          SessionFloor    sessions of the node below this generation are closed
//! 01  group      21  node u32  generation u32  slot u16    Slot    last sequence and its reply
//! 01  group      30  sequence u64      Garbage         chunks that no key names any more
//! 01  group      40..4f                reserved: divergence digests
//! 01  group      50  bucket u64  name (rest)    FenceFloor   the highest fence token that writes to the bucket came with
//! 01  group      51  bucket u64        FenceCount      how many floors the bucket has
//! 01  group      52..5f                reserved: fences
//! 01  group      60..6f                reserved: intents of operations across shards
//!
//! 02  sub u8 ...                       the cluster map (group 0 only)
//! 02  00                               MapState        cluster, region, level, map version, counters
//! 02  10  id u32                       Node
//! 02  11  id u128                      Disk
//! 02  12  id u8                        Pool
//! 02  13  pool u8  prefix u32          Pg
//! 02  14  group u64                    Shard           directory entry
//! 02  15  id u64                       BucketEntry
//! 02  16  name (rest)                  BucketName      -> id
//! 02  17  access key (rest)            AccessKey
//! 02  18  name (rest)                  AccessKeyName   -> access key
//! 02  19                               Authority       the cluster's certificate authority
//! 02  1a  id (rest)                    Token           the right to join once
//! 02  1b  bucket u64  kind u8          BucketConfiguration   one setting of a bucket, by kind
//!
//! 03                                   reserved: rows that belong to a disk, not to a group
//!
//! 10  bucket u64  key'  order~ u64     Version         data rows: not prefixed by a group, so that a split of a
//! 11  bucket u64  key'  upload u128    Upload          range copies nothing; the range says whose they are
//! 12  bucket u64  key'  upload u128  0000              Completed    which version an upload became
//! 12  bucket u64  key'  upload u128  number u16        Part         part numbers are 1..=10,000
//! 13..1f                               reserved: object lock, later kinds of data
//!
//! key'    the object key with each 00 written as 00 FF, then 00 01: no key is a prefix of another, and byte order is
//!         the order of the keys
//! order~  u64::MAX - order: the versions of a key are adjacent, newest first
//! ```
//!
//! Uploads and parts stand in spaces of their own, so that listing objects never walks them, and listing uploads never
//! walks parts.

use base::codec::{DecodeError, Reader, Writer};
use base::ids::{BucketId, Generation, GroupId, NodeId, Session};
use bytes::Bytes;

/// The longest object key in bytes, as in S3.
pub const OBJECT_KEY_LEN_MAX: usize = 1024;

/// How many first bytes of a key say whose row it is: which group's, or else (data rows) only of which kind. The row that says
/// what a group's replica is at all is on its own, because a replica that has lost it cannot even be replaced where it is.
pub fn owner_len(key: &[u8]) -> usize {
    match (key.first(), key.get(9)) {
        (Some(&tag::GROUP), Some(&tag::GROUP_STATE)) => 10,
        (Some(&tag::GROUP), _) => 9,
        _ => 1,
    }
}

/// One persistent key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    GroupState {
        group: GroupId,
    },
    Bucket {
        group: GroupId,
        bucket: BucketId,
    },
    BucketRules {
        group: GroupId,
        bucket: BucketId,
    },
    BucketUsage {
        group: GroupId,
        bucket: BucketId,
    },
    FenceFloor {
        group: GroupId,
        bucket: BucketId,
        name: Bytes,
    },
    FenceCount {
        group: GroupId,
        bucket: BucketId,
    },
    SessionFloor {
        group: GroupId,
        node: NodeId,
    },
    Slot {
        group: GroupId,
        session: Session,
        slot: u16,
    },
    Garbage {
        group: GroupId,
        sequence: u64,
    },

    MapState,
    Node {
        id: NodeId,
    },
    Disk {
        id: u128,
    },
    Pool {
        id: u8,
    },
    Pg {
        pool: u8,
        prefix: u32,
    },
    Shard {
        group: GroupId,
    },
    BucketEntry {
        id: BucketId,
    },
    BucketName {
        name: Bytes,
    },
    AccessKey {
        access_key: Bytes,
    },
    AccessKeyName {
        name: Bytes,
    },
    Authority,
    Token {
        id: Bytes,
    },
    BucketConfiguration {
        bucket: BucketId,
        kind: u8,
    },

    Version {
        bucket: BucketId,
        key: Bytes,
        order: u64,
    },
    Upload {
        bucket: BucketId,
        key: Bytes,
        upload: u128,
    },
    Completed {
        bucket: BucketId,
        key: Bytes,
        upload: u128,
    },
    /// `number` is 1..=10,000; 0 would be [`Key::Completed`].
    Part {
        bucket: BucketId,
        key: Bytes,
        upload: u128,
        number: u16,
    },
}

/// First bytes of keys.
mod tag {
    pub const GROUP: u8 = 0x01;
    pub const MAP: u8 = 0x02;
    pub const VERSION: u8 = 0x10;
    pub const UPLOAD: u8 = 0x11;
    pub const PART: u8 = 0x12;

    pub const GROUP_STATE: u8 = 0x00;
    pub const BUCKET: u8 = 0x10;
    pub const BUCKET_RULES: u8 = 0x11;
    pub const BUCKET_USAGE: u8 = 0x12;
    pub const SESSION_FLOOR: u8 = 0x20;
    pub const SLOT: u8 = 0x21;
    pub const GARBAGE: u8 = 0x30;
    pub const FENCE_FLOOR: u8 = 0x50;
    pub const FENCE_COUNT: u8 = 0x51;

    pub const MAP_STATE: u8 = 0x00;
    pub const NODE: u8 = 0x10;
    pub const DISK: u8 = 0x11;
    pub const POOL: u8 = 0x12;
    pub const PG: u8 = 0x13;
    pub const SHARD: u8 = 0x14;
    pub const BUCKET_ENTRY: u8 = 0x15;
    pub const BUCKET_NAME: u8 = 0x16;
    pub const ACCESS_KEY: u8 = 0x17;
    pub const ACCESS_KEY_NAME: u8 = 0x18;
    pub const AUTHORITY: u8 = 0x19;
    pub const TOKEN: u8 = 0x1a;
    pub const BUCKET_CONFIGURATION: u8 = 0x1b;
}

impl Key {
    /// The key's bytes: see the module's byte map.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        match self {
            Key::GroupState { group } => put_group(&mut out, *group, tag::GROUP_STATE),
            Key::Bucket { group, bucket } => {
                put_group(&mut out, *group, tag::BUCKET);
                out.put_u64_be(bucket.0);
            }
            Key::BucketRules { group, bucket } => {
                put_group(&mut out, *group, tag::BUCKET_RULES);
                out.put_u64_be(bucket.0);
            }
            Key::BucketUsage { group, bucket } => {
                put_group(&mut out, *group, tag::BUCKET_USAGE);
                out.put_u64_be(bucket.0);
            }
            Key::FenceFloor { group, bucket, name } => {
                put_group(&mut out, *group, tag::FENCE_FLOOR);
                out.put_u64_be(bucket.0);
                out.put_bytes(name);
            }
            Key::FenceCount { group, bucket } => {
                put_group(&mut out, *group, tag::FENCE_COUNT);
                out.put_u64_be(bucket.0);
            }
            Key::SessionFloor { group, node } => {
                put_group(&mut out, *group, tag::SESSION_FLOOR);
                out.put_u32_be(node.0);
            }
            Key::Slot { group, session, slot } => {
                put_group(&mut out, *group, tag::SLOT);
                out.put_u32_be(session.node.0);
                out.put_u32_be(session.generation.0);
                out.put_bytes(&slot.to_be_bytes());
            }
            Key::Garbage { group, sequence } => {
                put_group(&mut out, *group, tag::GARBAGE);
                out.put_u64_be(*sequence);
            }
            Key::Version { bucket, key, order } => {
                put_object(&mut out, tag::VERSION, *bucket, key);
                out.put_u64_be(u64::MAX - order);
            }
            Key::Upload { bucket, key, upload } => {
                put_object(&mut out, tag::UPLOAD, *bucket, key);
                out.put_bytes(&upload.to_be_bytes());
            }
            Key::Completed { bucket, key, upload } => put_part(&mut out, *bucket, key, *upload, 0),
            Key::Part { bucket, key, upload, number } => put_part(&mut out, *bucket, key, *upload, *number),
            map_key => put_map(&mut out, map_key),
        }
        Bytes::from(out)
    }

    /// Reads what `encode` wrote.
    pub fn decode(bytes: &[u8]) -> Result<Key, DecodeError> {
        let mut reader = Reader::new(bytes);
        let key = match reader.u8("key tag")? {
            tag::GROUP => decode_group(&mut reader)?,
            tag::MAP => decode_map(&mut reader)?,
            tag::VERSION => {
                let (bucket, key) = take_object(&mut reader)?;
                Key::Version { bucket, key, order: u64::MAX - reader.u64_be("version order")? }
            }
            tag::UPLOAD => {
                let (bucket, key) = take_object(&mut reader)?;
                Key::Upload { bucket, key, upload: take_u128(&mut reader)? }
            }
            tag::PART => {
                let (bucket, key) = take_object(&mut reader)?;
                let upload = take_u128(&mut reader)?;
                match take_u16(&mut reader)? {
                    0 => Key::Completed { bucket, key, upload },
                    number => Key::Part { bucket, key, upload, number },
                }
            }
            _ => return Err(reader.error("key tag unknown")),
        };
        if reader.remaining() > 0 {
            return Err(reader.error("bytes after the key"));
        }
        Ok(key)
    }
}

fn put_group(out: &mut Vec<u8>, group: GroupId, sub: u8) {
    out.put_u8(tag::GROUP);
    out.put_u64_be(group.0);
    out.put_u8(sub);
}

fn put_object(out: &mut Vec<u8>, space: u8, bucket: BucketId, key: &[u8]) {
    out.put_u8(space);
    out.put_u64_be(bucket.0);
    put_escaped(out, key);
    out.put_bytes(&KEY_END);
}

fn put_part(out: &mut Vec<u8>, bucket: BucketId, key: &[u8], upload: u128, number: u16) {
    put_object(out, tag::PART, bucket, key);
    out.put_bytes(&upload.to_be_bytes());
    out.put_bytes(&number.to_be_bytes());
}

fn put_map(out: &mut Vec<u8>, key: &Key) {
    out.put_u8(tag::MAP);
    match key {
        Key::MapState => out.put_u8(tag::MAP_STATE),
        Key::Node { id } => {
            out.put_u8(tag::NODE);
            out.put_u32_be(id.0);
        }
        Key::Disk { id } => {
            out.put_u8(tag::DISK);
            out.put_bytes(&id.to_be_bytes());
        }
        Key::Pool { id } => out.put_bytes(&[tag::POOL, *id]),
        Key::Pg { pool, prefix } => {
            out.put_bytes(&[tag::PG, *pool]);
            out.put_u32_be(*prefix);
        }
        Key::Shard { group } => {
            out.put_u8(tag::SHARD);
            out.put_u64_be(group.0);
        }
        Key::BucketEntry { id } => {
            out.put_u8(tag::BUCKET_ENTRY);
            out.put_u64_be(id.0);
        }
        Key::BucketName { name } => put_name(out, tag::BUCKET_NAME, name),
        Key::AccessKey { access_key } => put_name(out, tag::ACCESS_KEY, access_key),
        Key::AccessKeyName { name } => put_name(out, tag::ACCESS_KEY_NAME, name),
        Key::Authority => out.put_u8(tag::AUTHORITY),
        Key::Token { id } => put_name(out, tag::TOKEN, id),
        Key::BucketConfiguration { bucket, kind } => {
            out.put_u8(tag::BUCKET_CONFIGURATION);
            out.put_u64_be(bucket.0);
            out.put_u8(*kind);
        }
        _ => unreachable!("every other key is written by encode"),
    }
}

fn put_name(out: &mut Vec<u8>, sub: u8, name: &[u8]) {
    out.put_u8(sub);
    out.put_bytes(name);
}

fn decode_group(reader: &mut Reader<'_>) -> Result<Key, DecodeError> {
    let group = GroupId(reader.u64_be("group")?);
    Ok(match reader.u8("group row")? {
        tag::GROUP_STATE => Key::GroupState { group },
        tag::BUCKET => Key::Bucket { group, bucket: BucketId(reader.u64_be("bucket")?) },
        tag::BUCKET_RULES => Key::BucketRules { group, bucket: BucketId(reader.u64_be("bucket")?) },
        tag::BUCKET_USAGE => Key::BucketUsage { group, bucket: BucketId(reader.u64_be("bucket")?) },
        tag::FENCE_COUNT => Key::FenceCount { group, bucket: BucketId(reader.u64_be("bucket")?) },
        tag::FENCE_FLOOR => {
            let bucket = BucketId(reader.u64_be("bucket")?);
            Key::FenceFloor { group, bucket, name: take_rest(reader)? }
        }
        tag::SESSION_FLOOR => Key::SessionFloor { group, node: NodeId(reader.u32_be("node")?) },
        tag::SLOT => {
            let node = NodeId(reader.u32_be("node")?);
            let generation = Generation(reader.u32_be("generation")?);
            Key::Slot { group, session: Session { node, generation }, slot: take_u16(reader)? }
        }
        tag::GARBAGE => Key::Garbage { group, sequence: reader.u64_be("garbage sequence")? },
        _ => return Err(reader.error("group row unknown")),
    })
}

fn decode_map(reader: &mut Reader<'_>) -> Result<Key, DecodeError> {
    Ok(match reader.u8("map row")? {
        tag::MAP_STATE => Key::MapState,
        tag::NODE => Key::Node { id: NodeId(reader.u32_be("node")?) },
        tag::DISK => Key::Disk { id: take_u128(reader)? },
        tag::POOL => Key::Pool { id: reader.u8("pool")? },
        tag::PG => Key::Pg { pool: reader.u8("pool")?, prefix: reader.u32_be("prefix")? },
        tag::SHARD => Key::Shard { group: GroupId(reader.u64_be("group")?) },
        tag::BUCKET_ENTRY => Key::BucketEntry { id: BucketId(reader.u64_be("bucket")?) },
        tag::BUCKET_NAME => Key::BucketName { name: take_rest(reader)? },
        tag::ACCESS_KEY => Key::AccessKey { access_key: take_rest(reader)? },
        tag::ACCESS_KEY_NAME => Key::AccessKeyName { name: take_rest(reader)? },
        tag::AUTHORITY => Key::Authority,
        tag::TOKEN => Key::Token { id: take_rest(reader)? },
        tag::BUCKET_CONFIGURATION => Key::BucketConfiguration {
            bucket: BucketId(reader.u64_be("bucket")?),
            kind: reader.u8("kind of configuration")?,
        },
        _ => return Err(reader.error("map row unknown")),
    })
}

fn take_u16(reader: &mut Reader<'_>) -> Result<u16, DecodeError> {
    Ok(u16::from_be_bytes(reader.array("u16")?))
}

fn take_u128(reader: &mut Reader<'_>) -> Result<u128, DecodeError> {
    Ok(u128::from_be_bytes(reader.array("u128")?))
}

fn take_rest(reader: &mut Reader<'_>) -> Result<Bytes, DecodeError> {
    Ok(Bytes::copy_from_slice(reader.take(reader.remaining(), "name")?))
}

/// Ends an escaped object key; sorts before every escaped byte that could follow.
const KEY_END: [u8; 2] = [0x00, 0x01];
/// Sorts after every row of a key and before every longer key.
const KEY_END_NEXT: [u8; 2] = [0x00, 0x02];

fn put_escaped(out: &mut Vec<u8>, key: &[u8]) {
    for &byte in key {
        out.put_u8(byte);
        if byte == 0x00 {
            out.put_u8(0xff);
        }
    }
}

fn take_object(reader: &mut Reader<'_>) -> Result<(BucketId, Bytes), DecodeError> {
    let bucket = BucketId(reader.u64_be("bucket")?);
    let mut key = Vec::new();
    loop {
        match reader.u8("object key")? {
            0x00 => match reader.u8("escape in object key")? {
                0xff => key.push(0x00),
                0x01 => return Ok((bucket, Bytes::from(key))),
                _ => return Err(reader.error("escape in object key unknown")),
            },
            byte => key.push(byte),
        }
    }
}

/// A space of data rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Versions,
    Uploads,
    Parts,
}

impl Space {
    pub const ALL: [Space; 3] = [Space::Versions, Space::Uploads, Space::Parts];

    fn tag(self) -> u8 {
        match self {
            Space::Versions => tag::VERSION,
            Space::Uploads => tag::UPLOAD,
            Space::Parts => tag::PART,
        }
    }

    /// The first possible row of the keys of `bucket` that start with `prefix`.
    pub fn prefix_start(self, bucket: BucketId, prefix: &[u8]) -> Bytes {
        let mut out = vec![self.tag()];
        out.put_u64_be(bucket.0);
        put_escaped(&mut out, prefix);
        Bytes::from(out)
    }

    /// Above every row of the keys of `bucket` that start with `prefix`.
    pub fn prefix_end(self, bucket: BucketId, prefix: &[u8]) -> Bytes {
        prefix_end(&self.prefix_start(bucket, prefix))
    }

    /// The first possible row of exactly `key`.
    pub fn key_start(self, bucket: BucketId, key: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(key.len() + 32);
        put_object(&mut out, self.tag(), bucket, key);
        Bytes::from(out)
    }

    /// Above every row of exactly `key`, below every row of greater keys.
    pub fn key_end(self, bucket: BucketId, key: &[u8]) -> Bytes {
        let mut out = vec![self.tag()];
        out.put_u64_be(bucket.0);
        put_escaped(&mut out, key);
        out.put_bytes(&KEY_END_NEXT);
        Bytes::from(out)
    }

    /// The rows of this space in a shard's range: from `start` (inclusive) to `end` (exclusive).
    pub fn range(self, range_start: &[u8], range_end: &[u8]) -> (Bytes, Bytes) {
        let from = self.range_bound(range_start);
        let to =
            if range_end.is_empty() { Bytes::copy_from_slice(&[self.tag() + 1]) } else { self.range_bound(range_end) };
        (from, to)
    }

    fn range_bound(self, point: &[u8]) -> Bytes {
        let mut out = vec![self.tag()];
        let (bucket, key) = point.split_at(point.len().min(8));
        out.put_bytes(bucket);
        put_escaped(&mut out, key);
        Bytes::from(out)
    }
}

/// A point of the space that shards divide: bucket (8, big-endian), object key. Compared as bytes with a shard's
/// `range_start` and `range_end`.
pub fn range_point(bucket: BucketId, key: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(8 + key.len());
    out.put_u64_be(bucket.0);
    out.put_bytes(key);
    Bytes::from(out)
}

/// All rows of `group` that carry its id in their key.
pub fn group_rows(group: GroupId) -> (Bytes, Bytes) {
    let mut from = vec![tag::GROUP];
    from.put_u64_be(group.0);
    let to = prefix_end(&from);
    (Bytes::from(from), to)
}

/// The lifecycle rules of all buckets in `group`.
pub fn rules_rows(group: GroupId) -> (Bytes, Bytes) {
    rows_of_sub(group, tag::BUCKET_RULES)
}

/// The usage of all buckets in `group` that are counted.
pub fn usage_rows(group: GroupId) -> (Bytes, Bytes) {
    rows_of_sub(group, tag::BUCKET_USAGE)
}

fn rows_of_sub(group: GroupId, sub: u8) -> (Bytes, Bytes) {
    let mut from = Vec::new();
    put_group(&mut from, group, sub);
    let to = prefix_end(&from);
    (Bytes::from(from), to)
}

/// The fence floors of a bucket in `group`.
pub fn fence_rows(group: GroupId, bucket: BucketId) -> (Bytes, Bytes) {
    let from = Key::FenceFloor { group, bucket, name: Bytes::new() }.encode();
    let to = prefix_end(&from);
    (from, to)
}

/// All rows of the cluster map.
pub fn map_rows() -> (Bytes, Bytes) {
    (Bytes::from_static(&[tag::MAP]), Bytes::from_static(&[tag::MAP + 1]))
}

/// All nodes' rows of the cluster map.
pub fn node_rows() -> (Bytes, Bytes) {
    (Bytes::from_static(&[tag::MAP, tag::NODE]), Bytes::from_static(&[tag::MAP, tag::NODE + 1]))
}

/// All pools' rows of the cluster map.
pub fn pool_rows() -> (Bytes, Bytes) {
    (Bytes::from_static(&[tag::MAP, tag::POOL]), Bytes::from_static(&[tag::MAP, tag::POOL + 1]))
}

/// All tokens' rows of the cluster map.
pub fn token_rows() -> (Bytes, Bytes) {
    (Bytes::from_static(&[tag::MAP, tag::TOKEN]), Bytes::from_static(&[tag::MAP, tag::TOKEN + 1]))
}

/// All configurations of a bucket in the cluster map.
pub fn configuration_rows(bucket: BucketId) -> (Bytes, Bytes) {
    let mut prefix = vec![tag::MAP, tag::BUCKET_CONFIGURATION];
    prefix.put_u64_be(bucket.0);
    let to = prefix_end(&prefix);
    (Bytes::from(prefix), to)
}

/// All garbage rows of `group` with a sequence above `after`.
pub fn garbage_rows(group: GroupId, after: Option<u64>) -> (Bytes, Bytes) {
    let first = after.map_or(Some(0), |after| after.checked_add(1));
    let mut prefix = Vec::new();
    put_group(&mut prefix, group, tag::GARBAGE);
    let to = prefix_end(&prefix);
    let from = first.map_or(to.clone(), |sequence| Key::Garbage { group, sequence }.encode());
    (from, to)
}

/// All slot rows of the sessions of `node` below generation `below`.
pub fn slot_rows_below(group: GroupId, node: NodeId, below: Generation) -> (Bytes, Bytes) {
    let at = |generation| Key::Slot { group, session: Session { node, generation }, slot: 0 }.encode();
    (at(Generation(0)), at(below))
}

/// The rows of the parts of one upload (not its `Completed` row).
pub fn part_rows(bucket: BucketId, key: &Bytes, upload: u128, after: u16) -> (Bytes, Bytes) {
    let mut prefix = Vec::new();
    put_object(&mut prefix, tag::PART, bucket, key);
    prefix.put_bytes(&upload.to_be_bytes());
    let to = prefix_end(&prefix);
    let from = match after.checked_add(1) {
        Some(number) => Key::Part { bucket, key: key.clone(), upload, number }.encode(),
        None => to.clone(),
    };
    (from, to)
}

/// The smallest byte string above every one that starts with `prefix`. Our prefixes start with a tag below FF, so
/// there is one.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|&byte| byte != 0xff).expect("a prefix starts with a tag below FF");
    let mut out = prefix[..=kept].to_vec();
    out[kept] += 1;
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object_key() -> impl Strategy<Value = Bytes> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(0xff), Just(b'a'), any::<u8>()];
        proptest::collection::vec(byte, 0..12).prop_map(Bytes::from)
    }

    fn any_key() -> impl Strategy<Value = Key> {
        let numbers = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u16>());
        (0usize..26, numbers, object_key(), any::<u128>()).prop_map(|(kind, (a, b, c, d, e), key, upload)| {
            let group = GroupId(a);
            let bucket = BucketId(b);
            match kind {
                0 => Key::GroupState { group },
                1 => Key::Bucket { group, bucket },
                2 => Key::SessionFloor { group, node: NodeId(c) },
                3 => Key::Slot { group, session: Session { node: NodeId(c), generation: Generation(d) }, slot: e },
                4 => Key::Garbage { group, sequence: b },
                5 => Key::MapState,
                6 => Key::Node { id: NodeId(c) },
                7 => Key::Disk { id: upload },
                8 => Key::Pool { id: e as u8 },
                9 => Key::Pg { pool: e as u8, prefix: c },
                10 => Key::Shard { group },
                11 => Key::BucketEntry { id: bucket },
                12 => Key::BucketName { name: key },
                13 => Key::AccessKey { access_key: key },
                14 => Key::AccessKeyName { name: key },
                15 => Key::Version { bucket, key, order: a },
                16 => Key::Upload { bucket, key, upload },
                17 => Key::Completed { bucket, key, upload },
                18 => Key::Authority,
                19 => Key::Token { id: key },
                20 => Key::BucketConfiguration { bucket, kind: e as u8 },
                21 => Key::BucketRules { group, bucket },
                22 => Key::BucketUsage { group, bucket },
                23 => Key::FenceFloor { group, bucket, name: key },
                24 => Key::FenceCount { group, bucket },
                _ => Key::Part { bucket, key, upload, number: e.max(1) },
            }
        })
    }

    proptest! {
        #[test]
        fn keys_round_trip(key in any_key()) {
            prop_assert_eq!(Key::decode(&key.encode()), Ok(key));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Key::decode(&bytes);
        }

        #[test]
        fn versions_sort_by_bucket_then_key_then_newest_first(
            a in (0u64..3, object_key(), 0u64..3), b in (0u64..3, object_key(), 0u64..3),
        ) {
            let encode = |(bucket, key, order): &(u64, Bytes, u64)| {
                Key::Version { bucket: BucketId(*bucket), key: key.clone(), order: *order }.encode()
            };
            let ours = encode(&a).cmp(&encode(&b));
            let wanted = (a.0, &a.1).cmp(&(b.0, &b.1)).then(b.2.cmp(&a.2));
            prop_assert_eq!(ours, wanted);
        }

        #[test]
        fn prefixes_and_keys_enclose_exactly_their_rows(prefix in object_key(), key in object_key(), order: u64) {
            let bucket = BucketId(7);
            let row = Key::Version { bucket, key: key.clone(), order }.encode();
            let space = Space::Versions;
            let within = row >= space.prefix_start(bucket, &prefix) && row < space.prefix_end(bucket, &prefix);
            prop_assert_eq!(within, key.starts_with(&prefix));
            let exact = row >= space.key_start(bucket, &prefix) && row < space.key_end(bucket, &prefix);
            prop_assert_eq!(exact, key == prefix);
            prop_assert_eq!(row < space.key_start(bucket, &prefix), key < prefix);
        }

        #[test]
        fn a_shard_range_encloses_exactly_the_rows_of_its_points(
            start in object_key(), end in object_key(), key in object_key(), order: u64, bucket in 0u64..3,
        ) {
            let (range_start, range_end) = (range_point(BucketId(1), &start), range_point(BucketId(1), &end));
            let point = range_point(BucketId(bucket), &key);
            let row = Key::Version { bucket: BucketId(bucket), key, order }.encode();
            let (from, to) = Space::Versions.range(&range_start, &range_end);
            prop_assert_eq!(row >= from && row < to, point >= range_start && point < range_end);
        }
    }

    #[test]
    fn rows_of_parts_exclude_the_completed_row_and_other_uploads() {
        let (bucket, key) = (BucketId(1), Bytes::from_static(b"k"));
        let (from, to) = part_rows(bucket, &key, 5, 0);
        let part = |upload, number| Key::Part { bucket, key: key.clone(), upload, number }.encode();
        assert!(Key::Completed { bucket, key: key.clone(), upload: 5 }.encode() < from);
        assert!(part(5, 1) >= from && part(5, u16::MAX) < to);
        assert!(part(6, 1) >= to);
        assert!(part(4, 9) < from);
    }
}
