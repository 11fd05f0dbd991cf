//! One entry of group 0's log.

use base::ids::{FeatureLevel, GROUP_ZERO, Generation, GroupId, LogIndex, NodeId};
use bytes::Bytes;
use prost::Message;

use super::command::{
    ClusterMap, DiskRow, DiskState, InitCluster, KeyName, KeyRow, MapCommand, MapEntry, MapOutcome, MapReply, NodeRow,
    NodeState, PoolRow, SetDiskSlow, SetKeyPolicy, SetRootKey, ShardRow,
};
use super::{
    ACCESS_KEYS_MAX, CLASS_LEN_MAX, COPIES_MAX, DISKS_MAX, NODES_MAX, PG_BITS_MAX, POLICY_LEN_MAX, SHARDS_MAX,
    TEXT_LEN_MAX,
};
use crate::group::{self, FEATURE_LEVEL, decode_row, read_row};
use crate::keys::{self, Key};
use crate::object::command::{CloseSession, SlotRef};
use crate::object::transition::POOLS_LEVEL_MIN;
use crate::slots::{self, Standing};
use crate::view::{Changes, View, ViewError};

/// What the map keeps about itself: one row, written by every effective change.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MapState {
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// Empty before `InitCluster`.
    #[prost(bytes = "bytes", tag = "2")]
    pub cluster: Bytes,
    #[prost(string, tag = "3")]
    pub region: String,
    #[prost(uint32, tag = "4")]
    pub feature_level: u32,
    /// The highest ids ever allotted: they are never allotted again.
    #[prost(uint64, tag = "5")]
    pub bucket_id_last: u64,
    #[prost(uint32, tag = "6")]
    pub node_id_last: u32,
    #[prost(uint64, tag = "7")]
    pub nodes: u64,
    #[prost(uint64, tag = "8")]
    pub disks: u64,
    #[prost(uint64, tag = "9")]
    pub pgs: u64,
    #[prost(uint64, tag = "10")]
    pub shards: u64,
    #[prost(uint64, tag = "11")]
    pub buckets: u64,
    #[prost(uint64, tag = "12")]
    pub access_keys: u64,
    #[prost(uint64, tag = "13")]
    pub tokens: u64,
    #[prost(uint32, tag = "14")]
    pub cluster_generation: u32,
    /// Bytes of all configurations of buckets.
    #[prost(uint64, tag = "15")]
    pub configuration_bytes: u64,
    /// Fence tokens handed out.
    #[prost(uint64, tag = "16")]
    pub fences: u64,
}

/// The feature level that knows a root key that was set by a command.
pub const ROOT_LEVEL_MIN: u32 = 5;

/// By this the root key is found.
pub const ROOT_NAME: &str = "root";

/// The feature level from which on the certificate authority can be another.
pub const AUTHORITY_LEVEL_MIN: u32 = 5;

/// The feature level that knows [`NodeRow::closed_below`].
pub const CLOSED_LEVEL_MIN: u32 = 5;

/// Bits of a fence token below the cluster's generation.
const FENCE_COUNT_BITS: u32 = 40;

impl MapState {
    pub fn fill(self, map: &mut ClusterMap) {
        map.version = self.version;
        map.cluster = self.cluster;
        map.region = self.region;
        map.feature_level = self.feature_level;
        map.cluster_generation = self.cluster_generation;
    }
}

/// Applies the entry at `index` of group 0's log. Pure, as [`crate::object::apply`]. The map's version rises by one
/// with every effective change; what changes nothing (also a refusal) leaves it.
pub fn apply(view: &dyn View, _index: LogIndex, entry: MapEntry) -> Result<(Changes, MapReply), ViewError> {
    let slot = entry.slot;
    let state: MapState = read_row(view, &Key::MapState)?.unwrap_or_default();
    if state.feature_level > FEATURE_LEVEL {
        return Err(group::newer(state.feature_level));
    }
    let refusal = match standing(view, slot.as_ref())? {
        Standing::Fresh => None,
        Standing::Repeat(reply) => return Ok((Changes::default(), reply)),
        Standing::Fenced => Some(Halt::refused(MapOutcome::Stale, "a later command was executed in this slot")),
        Standing::Closed => Some(Halt::refused(MapOutcome::SessionClosed, "the session is below the floor")),
        Standing::Invalid => Some(Halt::refused(MapOutcome::Invalid, "slots are 0..256, sequences start at 1")),
    };
    if let Some(halt) = refusal {
        return Ok((Changes::default(), halt.into_reply(state.version)?));
    }
    let version_before = state.version;
    let mut step = Step { view, state, changes: Changes::default(), is_effective: false };
    let (mut changes, reply) = match step.execute(entry.command) {
        Ok(reply) => step.finish(reply),
        Err(halt) => (Changes::default(), halt.into_reply(version_before)?),
    };
    slots::record(&mut changes, GROUP_ZERO, slot.as_ref(), &reply);
    Ok((changes, reply))
}

/// The slot table's word, and the node's: a generation below the node's floor is fenced even before its session has
/// been closed here.
fn standing(view: &dyn View, slot: Option<&SlotRef>) -> Result<Standing<MapReply>, ViewError> {
    if let Some(slot) = slot {
        let node: Option<NodeRow> = read_row(view, &Key::Node { id: NodeId(slot.node) })?;
        if node.is_some_and(|node| slot.generation < node.generation_floor) {
            return Ok(Standing::Closed);
        }
    }
    slots::standing(view, GROUP_ZERO, slot)
}

pub(super) enum Halt {
    Refused(Box<MapReply>),
    View(ViewError),
}

impl Halt {
    pub fn refused(outcome: MapOutcome, detail: impl Into<String>) -> Halt {
        Halt::Refused(Box::new(MapReply { outcome: outcome as i32, detail: detail.into(), ..MapReply::default() }))
    }

    fn into_reply(self, version: u64) -> Result<MapReply, ViewError> {
        match self {
            Halt::Refused(reply) => Ok(MapReply { version, ..*reply }),
            Halt::View(error) => Err(error),
        }
    }
}

impl From<ViewError> for Halt {
    fn from(error: ViewError) -> Halt {
        Halt::View(error)
    }
}

pub(super) fn refuse<T>(outcome: MapOutcome, detail: impl Into<String>) -> Result<T, Halt> {
    Err(Halt::refused(outcome, detail))
}

pub(super) fn require(condition: bool, detail: &str) -> Result<(), Halt> {
    if condition { Ok(()) } else { refuse(MapOutcome::Invalid, detail) }
}

/// One command on its way: what it changes so far. Buckets are in `buckets.rs`, nodes and
/// tokens in `nodes.rs`, placement in `placement.rs`.
pub(super) struct Step<'v> {
    pub view: &'v dyn View,
    pub state: MapState,
    pub changes: Changes,
    pub is_effective: bool,
}

impl Step<'_> {
    fn execute(&mut self, command: Option<MapCommand>) -> Result<MapReply, Halt> {
        let Some(command) = command else {
            return refuse(MapOutcome::Invalid, group::NOT_YET);
        };
        if let MapCommand::InitCluster(init) = command {
            return self.init_cluster(init);
        }
        require(!self.state.cluster.is_empty(), "the cluster has not been initialised")?;
        // A node of an older version would not follow: then nobody does.
        let knows = FeatureLevel(self.state.feature_level) >= level_of(&command);
        require(knows, group::NOT_YET)?;
        match command {
            MapCommand::InitCluster(_) => unreachable!("handled above"),
            MapCommand::SetNode(row) => self.set_node(row),
            MapCommand::SetDisk(row) => self.set_disk(row),
            MapCommand::SetPool(row) => self.set_pool(row),
            MapCommand::SetPgs(rows) => self.set_pgs(rows),
            MapCommand::SetShard(row) => self.set_shard(row),
            MapCommand::CreateBucket(entry) => self.create_bucket(entry),
            MapCommand::SetBucket(entry) => self.set_bucket(entry),
            MapCommand::RemoveBucket(id) => self.remove_bucket(id),
            MapCommand::CreateKey(row) => self.create_key(row),
            MapCommand::DeleteKey(name) => self.delete_key(name),
            MapCommand::SetKeyPolicy(set) => self.set_key_policy(set),
            MapCommand::CloseSession(close) => self.close_session(close),
            MapCommand::SetFeatureLevel(level) => self.set_feature_level(level.level),
            MapCommand::CreateToken(row) => self.create_token(row),
            MapCommand::RedeemToken(redeem) => self.redeem_token(redeem),
            MapCommand::SetAuthority(authority) => self.set_authority(authority),
            MapCommand::SetClusterGeneration(raise) => self.set_cluster_generation(raise.generation),
            MapCommand::SetNodeState(change) => self.set_node_state(&change),
            MapCommand::SetBucketConfiguration(set) => self.set_bucket_configuration(set),
            MapCommand::SetDiskSlow(set) => self.set_disk_slow(&set),
            MapCommand::NextFence(_) => self.next_fence(),
            MapCommand::SetRootKey(set) => self.set_root_key(set),
        }
    }

    fn finish(mut self, mut reply: MapReply) -> (Changes, MapReply) {
        if self.is_effective {
            self.state.version += 1;
            self.changes.put(Key::MapState.encode(), encode(&self.state));
        }
        reply.version = self.state.version;
        (self.changes, reply)
    }

    /// One counter serves all keys. The cluster's generation stands above it: a recovery may forget the newest tokens.
    /// Nobody looks at the counter in a map, so the map's version stays.
    fn next_fence(&mut self) -> Result<MapReply, Halt> {
        require(self.state.fences < (1 << FENCE_COUNT_BITS) - 1, "there are no more fence tokens")?;
        self.state.fences += 1;
        self.changes.put(Key::MapState.encode(), encode(&self.state));
        let id = (u64::from(self.state.cluster_generation) << FENCE_COUNT_BITS) + self.state.fences;
        Ok(MapReply { id, ..MapReply::default() })
    }

    pub fn read<M: Message + Default>(&self, key: &Key) -> Result<Option<M>, Halt> {
        Ok(read_row(self.view, key)?)
    }

    /// Writes a row when it differs from the one before.
    pub fn put<M: Message + PartialEq>(&mut self, key: &Key, row: &M, before: Option<&M>) {
        if before != Some(row) {
            self.changes.put(key.encode(), encode(row));
            self.is_effective = true;
        }
    }

    fn init_cluster(&mut self, init: InitCluster) -> Result<MapReply, Halt> {
        require(init.cluster.len() == 16, "a cluster id has 16 bytes")?;
        check_text(&init.region)?;
        require((1..=FEATURE_LEVEL).contains(&init.feature_level), "this feature level is not known")?;
        if !self.state.cluster.is_empty() {
            require(self.state.cluster == init.cluster, "this is another cluster; two clusters never merge")?;
            return Ok(MapReply::default());
        }
        self.state.cluster = init.cluster;
        self.state.region = init.region;
        self.state.feature_level = init.feature_level;
        self.is_effective = true;
        Ok(MapReply::default())
    }

    fn set_disk(&mut self, mut row: DiskRow) -> Result<MapReply, Halt> {
        let id = id_u128(&row.id)?;
        require(DiskState::try_from(row.state).is_ok(), "the disk's state is not known")?;
        if self.read::<NodeRow>(&Key::Node { id: NodeId(row.node) })?.is_none() {
            return refuse(MapOutcome::NotFound, format!("node {}", row.node));
        }
        let key = Key::Disk { id };
        let before: Option<DiskRow> = self.read(&key)?;
        row.slow = row.state().serves() && before.as_ref().is_some_and(|before| before.slow);
        match &before {
            Some(before) => {
                let was_removed = before.state == DiskState::Removed as i32;
                require(!was_removed || row.state == before.state, "a removed disk does not come back")?;
            }
            None => count_up(&mut self.state.disks, DISKS_MAX, "disks")?,
        }
        self.put(&key, &row, before.as_ref());
        Ok(MapReply::default())
    }

    fn set_disk_slow(&mut self, set: &SetDiskSlow) -> Result<MapReply, Halt> {
        let key = Key::Disk { id: id_u128(&set.id)? };
        let before = self.read::<DiskRow>(&key)?.filter(|row| row.state() != DiskState::Removed);
        let Some(before) = before else {
            return refuse(MapOutcome::NotFound, "no such disk");
        };
        let after = DiskRow { slow: set.slow, ..before.clone() };
        self.put(&key, &after, Some(&before));
        Ok(MapReply::default())
    }

    fn set_pool(&mut self, row: PoolRow) -> Result<MapReply, Halt> {
        check_text(&row.name)?;
        let Ok(id) = u8::try_from(row.id) else {
            return refuse(MapOutcome::Invalid, "pool ids are 0..=255");
        };
        let copies = 1..=COPIES_MAX as u32;
        require(copies.contains(&row.copies) && copies.contains(&row.copies_effective), "a pool has 1 to 16 copies")?;
        require(row.copies_effective <= row.copies, "more copies are in effect than the policy asks for")?;
        require(row.pg_bits <= PG_BITS_MAX, "too many placement groups")?;
        let key = Key::Pool { id };
        let before: Option<PoolRow> = self.read(&key)?;
        if let Some(before) = &before {
            let (id, name, copies) = (before.id, &before.name, before.copies);
            let same = row.name == *name && row.copies == copies;
            require(same, &format!("pool {id} is there already: its name ({name}) and its {copies} copies stay"))?;
            let falls = row.copies_effective < before.copies_effective;
            require(!falls, "copies in effect never fall: groups that have them would be short of them")?;
        }
        let bits_before = before.as_ref().map_or(0, |before| before.pg_bits);
        require(row.pg_bits >= bits_before, "placement groups are split, never merged")?;
        let class_before = before.as_ref().map_or("", |before| before.class.as_str());
        if row.class != class_before {
            require(class_before.is_empty(), "the storage class of a pool stays")?;
            self.check_new_class(&row.class)?;
        }
        self.put(&key, &row, before.as_ref());
        Ok(MapReply::default())
    }

    fn check_new_class(&self, class: &str) -> Result<(), Halt> {
        let is_of_class = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        let is_valid = (1..=CLASS_LEN_MAX).contains(&class.len()) && class.bytes().all(is_of_class);
        require(is_valid, "a storage class has up to 32 capital letters, digits and underscores")?;
        let (from, to) = keys::pool_rows();
        for (key, value) in self.view.scan(&from, &to, usize::from(u8::MAX) + 1)? {
            let pool = decode_row::<PoolRow>(&key, Some(value))?.unwrap_or_default();
            require(pool.class != class, &format!("pool {} has the storage class {class}", pool.id))?;
        }
        Ok(())
    }

    fn set_shard(&mut self, row: ShardRow) -> Result<MapReply, Halt> {
        require(row.group != GROUP_ZERO.0, "group 0 is the map itself")?;
        require(row.nodes.len() <= COPIES_MAX, "a shard has at most 16 replicas")?;
        require(row.range_start.len().max(row.range_end.len()) <= 8 + keys::OBJECT_KEY_LEN_MAX, "a bound is too long")?;
        let key = Key::Shard { group: GroupId(row.group) };
        let before: Option<ShardRow> = self.read(&key)?;
        match &before {
            Some(before) if row.range_epoch < before.range_epoch => {
                return refuse(
                    MapOutcome::Stale,
                    format!("shard {} is at range epoch {}", row.group, before.range_epoch),
                );
            }
            Some(_) => {}
            None => count_up(&mut self.state.shards, SHARDS_MAX, "shards")?,
        }
        self.put(&key, &row, before.as_ref());
        Ok(MapReply::default())
    }

    fn create_key(&mut self, row: KeyRow) -> Result<MapReply, Halt> {
        // Only `SetRootKey` counts; versions before it drop the field.
        let row = KeyRow { root_changes: 0, ..row };
        check_text(&row.access_key)?;
        check_text(&row.secret_key)?;
        check_text(&row.name)?;
        check_policy(&row.policy)?;
        require(!row.access_key.is_empty() && !row.secret_key.is_empty(), "an access key has an id and a secret")?;
        let key = access_key(&row.access_key);
        let name_key = access_key_name(&row.name);
        let same_id = self.read::<KeyRow>(&key)?;
        let same_name = if row.name.is_empty() { None } else { self.read::<KeyName>(&name_key)? };
        // A new root key takes the place of the old one, in one step: there is always exactly one.
        let old_root = match &same_name {
            Some(name) if row.root => self.read::<KeyRow>(&access_key(&name.name))?.filter(|old| old.root),
            _ => None,
        };
        let is_taken = match &old_root {
            Some(old) => same_id.is_some_and(|found| found.access_key != old.access_key),
            None => same_id.is_some() || same_name.is_some(),
        };
        if is_taken {
            return refuse(MapOutcome::KeyExists, row.access_key);
        }
        if let Some(old) = old_root {
            if old.root_changes > 0 {
                return refuse(MapOutcome::Stale, "the root key was set by a command, and only a command changes it");
            }
            self.changes.delete(access_key(&old.access_key).encode());
            self.state.access_keys -= 1;
        }
        count_up(&mut self.state.access_keys, ACCESS_KEYS_MAX, "access keys")?;
        self.put(&key, &row, None);
        if !row.name.is_empty() {
            self.put(&name_key, &KeyName { name: row.access_key }, None);
        }
        Ok(MapReply::default())
    }

    fn set_root_key(&mut self, set: SetRootKey) -> Result<MapReply, Halt> {
        check_text(&set.access_key)?;
        check_text(&set.secret_key)?;
        require(!set.access_key.is_empty() && !set.secret_key.is_empty(), "an access key has an id and a secret")?;
        let named = self.read::<KeyName>(&access_key_name(ROOT_NAME))?;
        let before = match named {
            Some(named) => self.read::<KeyRow>(&access_key(&named.name))?.filter(|row| row.root),
            None => None,
        };
        let Some(before) = before else {
            return refuse(MapOutcome::NotFound, "there is no root key yet");
        };
        if set.changes_before != before.root_changes {
            return refuse(MapOutcome::Stale, "another command has changed the root key meanwhile");
        }
        let key = access_key(&set.access_key);
        if set.access_key != before.access_key {
            if self.read::<KeyRow>(&key)?.is_some() {
                return refuse(MapOutcome::KeyExists, set.access_key);
            }
            self.changes.delete(access_key(&before.access_key).encode());
            self.put(&access_key_name(ROOT_NAME), &KeyName { name: set.access_key.clone() }, None);
        }
        let root_changes = before.root_changes + 1;
        let after = KeyRow {
            access_key: set.access_key,
            secret_key: set.secret_key,
            created_ms: set.now_ms,
            root_changes,
            ..before
        };
        self.put(&key, &after, None);
        Ok(MapReply { id: root_changes, ..MapReply::default() })
    }

    fn delete_key(&mut self, name: KeyName) -> Result<MapReply, Halt> {
        let by_name = self.read::<KeyName>(&access_key_name(&name.name))?;
        let key = access_key(&by_name.unwrap_or(name.clone()).name);
        let row = match self.read::<KeyRow>(&key)? {
            Some(row) => row,
            None => return refuse(MapOutcome::NotFound, name.name),
        };
        require(!row.root, "the root key cannot be deleted")?;
        self.changes.delete(key.encode());
        if !row.name.is_empty() {
            self.changes.delete(access_key_name(&row.name).encode());
        }
        self.state.access_keys -= 1;
        self.is_effective = true;
        Ok(MapReply::default())
    }

    fn set_key_policy(&mut self, set: SetKeyPolicy) -> Result<MapReply, Halt> {
        check_policy(&set.policy)?;
        let by_name = self.read::<KeyName>(&access_key_name(&set.name))?;
        let key = access_key(&by_name.map_or(set.name.clone(), |found| found.name));
        let Some(before) = self.read::<KeyRow>(&key)? else { return refuse(MapOutcome::NotFound, set.name) };
        self.put(&key, &KeyRow { policy: set.policy, ..before.clone() }, Some(&before));
        Ok(MapReply::default())
    }

    fn close_session(&mut self, close: CloseSession) -> Result<MapReply, Halt> {
        slots::close(self.view, GROUP_ZERO, NodeId(close.node), Generation(close.floor), &mut self.changes)?;
        Ok(MapReply::default())
    }

    fn set_cluster_generation(&mut self, generation: u32) -> Result<MapReply, Halt> {
        let before = self.state.cluster_generation;
        if generation < before {
            return refuse(MapOutcome::Stale, format!("the cluster is at generation {before}"));
        }
        if generation > before {
            self.state.cluster_generation = generation;
            self.is_effective = true;
        }
        Ok(MapReply::default())
    }

    fn set_feature_level(&mut self, level: u32) -> Result<MapReply, Halt> {
        if level < self.state.feature_level {
            return refuse(MapOutcome::Stale, format!("the feature level is {}", self.state.feature_level));
        }
        let (from, to) = keys::node_rows();
        for (key, value) in self.view.scan(&from, &to, NODES_MAX as usize)? {
            let node = decode_row::<NodeRow>(&key, Some(value))?.unwrap_or_default();
            let follows = node.state == NodeState::Removed as i32 || node.feature_level_max >= level;
            require(follows, &format!("node {} does not support feature level {level}", node.id))?;
        }
        if level > FEATURE_LEVEL {
            return Err(group::newer(level).into());
        }
        if level > self.state.feature_level {
            self.state.feature_level = level;
            self.is_effective = true;
        }
        Ok(MapReply::default())
    }
}

/// The lowest feature level of the map at which a command is followed: that of the version that brought it, or what it carries: an
/// older version would keep the row without that. A new command, or a new field of an old one, is added here with a new level,
/// in the same change.
pub fn level_of(command: &MapCommand) -> FeatureLevel {
    match command {
        MapCommand::SetPool(row) if !row.class.is_empty() => FeatureLevel(POOLS_LEVEL_MIN),
        MapCommand::InitCluster(_)
        | MapCommand::SetNode(_)
        | MapCommand::SetDisk(_)
        | MapCommand::SetPool(_)
        | MapCommand::SetPgs(_)
        | MapCommand::SetShard(_)
        | MapCommand::CreateBucket(_)
        | MapCommand::SetBucket(_)
        | MapCommand::RemoveBucket(_)
        | MapCommand::CreateKey(_)
        | MapCommand::DeleteKey(_)
        | MapCommand::CloseSession(_)
        | MapCommand::SetFeatureLevel(_)
        | MapCommand::CreateToken(_)
        | MapCommand::RedeemToken(_)
        | MapCommand::SetAuthority(_)
        | MapCommand::SetClusterGeneration(_)
        | MapCommand::SetNodeState(_)
        | MapCommand::SetBucketConfiguration(_)
        | MapCommand::SetKeyPolicy(_) => FeatureLevel(1),
        MapCommand::NextFence(_) | MapCommand::SetDiskSlow(_) => FeatureLevel(3),
        MapCommand::SetRootKey(_) => FeatureLevel(ROOT_LEVEL_MIN),
    }
}

fn encode(row: &impl Message) -> Bytes {
    Bytes::from(row.encode_to_vec())
}

pub(super) fn count_up(count: &mut u64, max: u64, what: &str) -> Result<(), Halt> {
    if *count >= max {
        return refuse(MapOutcome::TooMany, format!("the map holds at most {max} {what}"));
    }
    *count += 1;
    Ok(())
}

pub(super) fn check_text(text: &str) -> Result<(), Halt> {
    require(text.len() <= TEXT_LEN_MAX, "a name or address is too long")
}

fn check_policy(policy: &str) -> Result<(), Halt> {
    require(policy.len() <= POLICY_LEN_MAX, "a policy is longer than 20 KiB")
}

pub(super) fn id_u128(raw: &[u8]) -> Result<u128, Halt> {
    match <[u8; 16]>::try_from(raw) {
        Ok(id) => Ok(u128::from_be_bytes(id)),
        Err(_) => refuse(MapOutcome::Invalid, "a disk id has 16 bytes"),
    }
}

fn access_key(access_key: &str) -> Key {
    Key::AccessKey { access_key: Bytes::copy_from_slice(access_key.as_bytes()) }
}

fn access_key_name(name: &str) -> Key {
    Key::AccessKeyName { name: Bytes::copy_from_slice(name.as_bytes()) }
}
