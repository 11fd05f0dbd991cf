//! The cluster map.

use std::collections::BTreeMap;

use base::ids::LogIndex;
use bytes::Bytes;
use meta::map::command::*;
use meta::map::{CLOSED_LEVEL_MIN, ROOT_LEVEL_MIN, ROOT_NAME, absorb, apply, load};
use meta::object::command::{CloseSession, SlotRef, Versioning};
use meta::view::commit;
use proptest::prelude::*;
use prost::Message;

use crate::shard::{random, text};

pub struct Map {
    pub rows: BTreeMap<Bytes, Bytes>,
    index: u64,
    /// Followed change by change.
    followed: ClusterMap,
}

impl Map {
    /// A cluster of one node with one disk, one pool and two placement groups.
    pub fn initialised() -> Map {
        let mut map = Map { rows: BTreeMap::new(), index: 0, followed: ClusterMap::default() };
        for command in commands().into_iter().take(5) {
            assert_eq!(map.run(command).outcome(), MapOutcome::Done);
        }
        map
    }

    pub fn map(&self) -> &ClusterMap {
        &self.followed
    }

    pub fn entry(&mut self, entry: MapEntry) -> MapReply {
        self.index += 1;
        let before = self.followed.clone();
        let (changes, reply) = apply(&self.rows, LogIndex(self.index), entry.clone()).unwrap();
        for change in &changes.0 {
            absorb(&mut self.followed, change).unwrap();
        }
        commit(&mut self.rows, changes);
        let loaded = load(&self.rows).unwrap();
        assert_eq!(self.followed, loaded, "following the changes is reading all rows");
        // A reply that is given again names the version of its time.
        assert!(reply.version <= loaded.version);
        let is_same = before == ClusterMap { version: before.version, ..loaded.clone() };
        assert_eq!(
            loaded.version,
            before.version + u64::from(!is_same),
            "the version counts effective changes: {entry:?}"
        );
        reply
    }

    pub fn run(&mut self, command: MapCommand) -> MapReply {
        self.entry(MapEntry { slot: None, command: Some(command) })
    }

    #[track_caller]
    pub fn expect(&mut self, command: MapCommand, outcome: MapOutcome) -> MapReply {
        let reply = self.run(command);
        assert_eq!(reply.outcome(), outcome, "{}", reply.detail);
        reply
    }
}

pub fn node(id: u32, generation: u32) -> NodeRow {
    NodeRow { id, generation, generation_floor: 0, address: "h:1".into(), feature_level_max: 2, ..NodeRow::default() }
}

fn bucket(name: &str) -> BucketEntry {
    BucketEntry { name: name.into(), owner: "o".into(), pool: 1, ..BucketEntry::default() }
}

fn configuration(bucket: u64, kind: ConfigurationKind, value: Option<&'static [u8]>) -> SetBucketConfiguration {
    let value = value.map(Bytes::from_static);
    SetBucketConfiguration { bucket, kind: kind as i32, value, settings_version: 0 }
}

fn pg(prefix: u32, epoch: u32) -> PgRow {
    PgRow { pool: 1, prefix, epoch, members: vec![random(5)], ..PgRow::default() }
}

pub fn token(id: u64) -> TokenRow {
    let secret_hash = Bytes::from(vec![id as u8; 32]);
    TokenRow { id: format!("{id:016x}"), secret_hash, created_ms: 1000, expires_ms: 2000, ..TokenRow::default() }
}

pub fn redeem(id: u64, now_ms: u64) -> RedeemToken {
    let TokenRow { id, secret_hash, .. } = token(id);
    RedeemToken { id, secret_hash, now_ms, node: Some(node(0, 0)), joiner: Bytes::new() }
}

fn key(access_key: &str, name: &str) -> KeyRow {
    KeyRow { access_key: access_key.into(), secret_key: "top-secret".into(), name: name.into(), ..KeyRow::default() }
}

/// One of each, in an order in which all succeed.
pub fn commands() -> Vec<MapCommand> {
    vec![
        MapCommand::InitCluster(InitCluster { cluster: random(1), region: "r".into(), feature_level: 1 }),
        MapCommand::SetNode(node(1, 1)),
        MapCommand::SetDisk(DiskRow { id: random(5), node: 1, capacity_bytes: 9, ..DiskRow::default() }),
        MapCommand::SetPool(PoolRow {
            id: 1,
            name: "p".into(),
            copies: 3,
            copies_effective: 1,
            pg_bits: 1,
            ..PoolRow::default()
        }),
        MapCommand::SetPgs(PgRows { rows: vec![pg(0, 1), pg(1, 1)] }),
        MapCommand::SetShard(ShardRow { group: 1, range_epoch: 1, nodes: vec![1], ..ShardRow::default() }),
        MapCommand::CreateBucket(bucket("b")),
        MapCommand::SetBucket(BucketEntry { id: 1, state: 1, ..bucket("b") }),
        MapCommand::SetBucketConfiguration(configuration(1, ConfigurationKind::Cors, Some(b"value"))),
        MapCommand::RemoveBucket(BucketId { id: 1 }),
        MapCommand::CreateKey(key("AK", "n")),
        MapCommand::DeleteKey(KeyName { name: "n".into() }),
        MapCommand::CloseSession(CloseSession { node: 1, floor: 1 }),
        MapCommand::SetFeatureLevel(FeatureLevel { level: 2 }),
        MapCommand::CreateToken(token(1)),
        MapCommand::RedeemToken(RedeemToken { joiner: random(1), ..redeem(1, 1500) }),
        MapCommand::SetAuthority(Authority { certificate_pem: "certificate".into(), key_pem: "key".into() }),
        MapCommand::SetClusterGeneration(ClusterGeneration { generation: 1 }),
        MapCommand::SetPgs(PgRows { rows: vec![PgRow { closed: true, members_before: vec![random(5)], ..pg(0, 2) }] }),
        MapCommand::SetPgs(PgRows { rows: vec![pg(0, 3)] }),
        MapCommand::SetNodeState(SetNodeState { id: 1, state: 1, raise_floor: true, generation: 1, stays: false }),
    ]
}

#[test]
fn one_of_each_is_done() {
    let mut map = Map::initialised();
    for command in commands().into_iter().skip(5) {
        map.expect(command, MapOutcome::Done);
    }
}

#[test]
fn nothing_happens_before_the_cluster_is_named_and_it_is_named_once() {
    let mut map = Map { rows: BTreeMap::new(), index: 0, followed: ClusterMap::default() };
    map.expect(MapCommand::SetNode(node(1, 1)), MapOutcome::Invalid);
    let init = |id| MapCommand::InitCluster(InitCluster { cluster: random(id), region: "r".into(), feature_level: 1 });
    map.expect(init(1), MapOutcome::Done);
    map.expect(init(1), MapOutcome::Done);
    map.expect(init(2), MapOutcome::Invalid);
}

#[test]
fn bucket_names_are_unique_and_ids_are_never_used_again() {
    let mut map = Map::initialised();
    let first = map.expect(MapCommand::CreateBucket(bucket("b")), MapOutcome::Done);
    let taken = map.expect(MapCommand::CreateBucket(bucket("b")), MapOutcome::BucketExists);
    assert_eq!(taken.bucket.unwrap().id, first.id);
    map.expect(MapCommand::RemoveBucket(BucketId { id: first.id }), MapOutcome::Done);
    map.expect(MapCommand::RemoveBucket(BucketId { id: first.id }), MapOutcome::NotFound);
    let second = map.expect(MapCommand::CreateBucket(bucket("b")), MapOutcome::Done);
    assert_eq!(second.id, first.id + 1);
    map.expect(MapCommand::CreateBucket(bucket("")), MapOutcome::Invalid);
}

#[test]
fn settings_versions_rise_and_stale_settings_are_refused() {
    let mut map = Map::initialised();
    let created = map.expect(MapCommand::CreateBucket(bucket("b")), MapOutcome::Done).bucket.unwrap();
    assert_eq!(created.settings_version, 1);
    let enabled = BucketEntry { versioning: Versioning::Enabled as i32, ..created.clone() };
    let reply = map.expect(MapCommand::SetBucket(enabled.clone()), MapOutcome::Done);
    assert_eq!(reply.bucket.as_ref().unwrap().settings_version, 2);
    map.expect(MapCommand::SetBucket(enabled), MapOutcome::Stale);
    // The same again changes nothing.
    let same = map.expect(MapCommand::SetBucket(reply.bucket.unwrap()), MapOutcome::Done);
    assert_eq!(same.bucket.as_ref().unwrap().settings_version, 2);
    let off = BucketEntry { settings_version: 0, versioning: 0, ..created.clone() };
    map.expect(MapCommand::SetBucket(off), MapOutcome::Invalid);
    let renamed = BucketEntry { settings_version: 0, name: "c".into(), ..same.bucket.unwrap() };
    map.expect(MapCommand::SetBucket(renamed), MapOutcome::Invalid);
    map.expect(MapCommand::SetBucket(BucketEntry { id: 77, ..created }), MapOutcome::NotFound);
}

#[test]
fn a_bucket_has_one_configuration_of_each_kind_and_they_go_with_it() {
    use ConfigurationKind::{Cors, Tagging};
    let mut map = Map::initialised();
    let set = |bucket, kind, value| MapCommand::SetBucketConfiguration(configuration(bucket, kind, value));
    map.expect(set(1, Cors, Some(b"a")), MapOutcome::NotFound);
    for name in ["b", "c"] {
        map.expect(MapCommand::CreateBucket(bucket(name)), MapOutcome::Done);
    }
    map.expect(set(2, Cors, Some(b"other")), MapOutcome::Done);
    let first = map.expect(set(1, Cors, Some(b"a")), MapOutcome::Done).bucket.unwrap();
    assert_eq!(first.settings_version, 2);
    let same = map.expect(set(1, Cors, Some(b"a")), MapOutcome::Done).bucket.unwrap();
    assert_eq!(same.settings_version, 2, "what changes nothing raises nothing");
    map.expect(set(1, Tagging, Some(b"t")), MapOutcome::Done);
    let from = |settings_version| {
        let changed = configuration(1, Cors, Some(b"b"));
        MapCommand::SetBucketConfiguration(SetBucketConfiguration { settings_version, ..changed })
    };
    map.expect(from(2), MapOutcome::Stale);
    map.expect(from(3), MapOutcome::Done);
    let shown = |map: &Map| -> Vec<(u64, i32, u64, Bytes)> {
        let rows = map.map().configurations.iter();
        rows.map(|row| (row.bucket, row.kind, row.version, row.value.clone())).collect()
    };
    let other = (2, Cors as i32, 2, Bytes::from_static(b"other"));
    let (cors, tagging) = ((1, 2, 4, Bytes::from_static(b"b")), (1, 3, 3, Bytes::from_static(b"t")));
    assert_eq!(shown(&map), [cors, tagging.clone(), other.clone()]);
    map.expect(set(1, Cors, None), MapOutcome::Done);
    assert_eq!(shown(&map), [tagging, other.clone()]);
    map.expect(MapCommand::RemoveBucket(BucketId { id: 1 }), MapOutcome::Done);
    assert_eq!(shown(&map), [other]);
    let unknown = SetBucketConfiguration { bucket: 2, kind: 99, ..SetBucketConfiguration::default() };
    map.expect(MapCommand::SetBucketConfiguration(unknown), MapOutcome::Invalid);
}

#[test]
fn configurations_are_bounded_each_and_together() {
    use meta::map::{CONFIGURATION_LEN_MAX, CONFIGURATIONS_LEN_MAX};
    let mut map = Map::initialised();
    let set = |bucket, length| {
        let value = Some(Bytes::from(vec![7; length]));
        let kind = ConfigurationKind::Policy as i32;
        MapCommand::SetBucketConfiguration(SetBucketConfiguration { bucket, kind, value, settings_version: 0 })
    };
    let fit = CONFIGURATIONS_LEN_MAX / CONFIGURATION_LEN_MAX as u64;
    for number in 1..=fit {
        map.expect(MapCommand::CreateBucket(bucket(&format!("b{number}"))), MapOutcome::Done);
        map.expect(set(number, CONFIGURATION_LEN_MAX), MapOutcome::Done);
    }
    map.expect(MapCommand::CreateBucket(bucket("one-more")), MapOutcome::Done);
    map.expect(set(fit + 1, 1), MapOutcome::TooMany);
    map.expect(set(1, CONFIGURATION_LEN_MAX + 1), MapOutcome::Invalid);
    map.expect(set(1, CONFIGURATION_LEN_MAX - 1), MapOutcome::Done);
    map.expect(set(fit + 1, 1), MapOutcome::Done);
    map.expect(MapCommand::RemoveBucket(BucketId { id: 2 }), MapOutcome::Done);
    map.expect(set(fit + 1, CONFIGURATION_LEN_MAX), MapOutcome::Done);
}

#[test]
fn generations_and_floors_never_fall() {
    let mut map = Map::initialised();
    map.expect(MapCommand::SetNode(node(1, 5)), MapOutcome::Done);
    map.expect(MapCommand::SetNode(node(1, 4)), MapOutcome::Stale);
    let fenced = NodeRow { generation_floor: 6, state: NodeState::Down as i32, ..node(1, 5) };
    map.expect(MapCommand::SetNode(fenced.clone()), MapOutcome::Done);
    // The zombie may not declare itself up again; its next life may.
    map.expect(MapCommand::SetNode(node(1, 5)), MapOutcome::Stale);
    map.expect(MapCommand::SetNode(node(1, 6)), MapOutcome::Done);
    assert_eq!(load(&map.rows).unwrap().nodes[0].generation_floor, 6);
    map.expect(MapCommand::SetNode(NodeRow { state: NodeState::Removed as i32, ..node(1, 6) }), MapOutcome::Done);
    map.expect(MapCommand::SetNode(node(1, 7)), MapOutcome::Invalid);
    let allotted = map.expect(MapCommand::SetNode(node(0, 1)), MapOutcome::Done);
    assert_eq!(allotted.id, 2);
}

#[test]
fn sessions_that_were_closed_stay_closed_and_the_one_in_use_is_open() {
    let mut map = Map::initialised();
    let node = |generation| NodeRow { feature_level_max: CLOSED_LEVEL_MIN, ..node(1, generation) };
    let closing = |generation, closed_below| NodeRow { closed_below, ..node(generation) };
    let row = |map: &Map| load(&map.rows).unwrap().nodes[0].clone();
    map.expect(MapCommand::SetNode(closing(5, 4)), MapOutcome::Done);
    assert_eq!(row(&map).closed_below, 0, "an older version would not keep it");
    map.expect(MapCommand::SetFeatureLevel(FeatureLevel { level: CLOSED_LEVEL_MIN }), MapOutcome::Done);
    map.expect(MapCommand::SetNode(closing(7, 6)), MapOutcome::Done);
    assert_eq!((row(&map).closed_below, row(&map).sessions_open_from()), (6, 6));
    // Who announces the node anew has no say in it; nor does anybody close what is in use.
    map.expect(MapCommand::SetNode(node(8)), MapOutcome::Done);
    assert_eq!(row(&map).closed_below, 6);
    map.expect(MapCommand::SetNode(closing(8, 100)), MapOutcome::Done);
    assert_eq!(row(&map).closed_below, 8);
    // Closed is not fenced: the node is in service, and so is what it does now.
    assert_eq!(row(&map).generation_floor, 0);
}

#[test]
fn a_fenced_generation_cannot_change_the_map() {
    let mut map = Map::initialised();
    map.expect(MapCommand::SetNode(NodeRow { generation_floor: 3, ..node(1, 3) }), MapOutcome::Done);
    let entry = |generation| MapEntry {
        slot: Some(SlotRef { node: 1, generation, slot: 0, sequence: 1 }),
        command: Some(MapCommand::CreateBucket(bucket("b"))),
    };
    assert_eq!(map.entry(entry(2)).outcome(), MapOutcome::SessionClosed);
    let done = map.entry(entry(3));
    assert_eq!(done.outcome(), MapOutcome::Done);
    // A retry is answered as before, not with BucketExists.
    assert_eq!(map.entry(entry(3)).id, done.id);
    map.expect(MapCommand::CloseSession(CloseSession { node: 1, floor: 4 }), MapOutcome::Done);
    assert_eq!(map.entry(entry(3)).outcome(), MapOutcome::SessionClosed);
}

#[test]
fn placement_groups_are_set_all_or_none_and_name_what_there_is() {
    let mut map = Map::initialised();
    let set = |rows| MapCommand::SetPgs(PgRows { rows });
    let closed = |prefix| PgRow { closed: true, members_before: vec![random(5)], ..pg(prefix, 2) };
    map.expect(set(vec![closed(0), pg(1, 1)]), MapOutcome::Stale);
    assert_eq!(map.map().pgs[0].epoch, 1);
    map.expect(set(vec![closed(0), closed(1)]), MapOutcome::Done);
    map.expect(set(vec![pg(1, 3), pg(0, 3)]), MapOutcome::Invalid);
    map.expect(set(vec![pg(2, 1)]), MapOutcome::Invalid);
    map.expect(set(vec![PgRow { pool: 9, ..pg(0, 3) }]), MapOutcome::NotFound);
    let again = |members| PgRow { members, epoch: 3, ..closed(0) };
    map.expect(set(vec![again(vec![random(6)])]), MapOutcome::NotFound);
    map.expect(set(vec![again(vec![random(5), random(5)])]), MapOutcome::Invalid);
    map.expect(set(vec![again(vec![])]), MapOutcome::Invalid);
    map.expect(set(vec![pg(0, 3), pg(1, 3)]), MapOutcome::Done);
}

#[test]
fn keys_are_unique_by_access_key_and_name_and_the_root_stays() {
    let mut map = Map::initialised();
    map.expect(MapCommand::CreateKey(KeyRow { root: true, ..key("ROOT", "root") }), MapOutcome::Done);
    map.expect(MapCommand::CreateKey(key("A", "one")), MapOutcome::Done);
    map.expect(MapCommand::CreateKey(key("A", "two")), MapOutcome::KeyExists);
    map.expect(MapCommand::CreateKey(key("B", "one")), MapOutcome::KeyExists);
    let delete = |name: &str| MapCommand::DeleteKey(KeyName { name: name.into() });
    map.expect(delete("root"), MapOutcome::Invalid);
    map.expect(delete("one"), MapOutcome::Done);
    map.expect(delete("A"), MapOutcome::NotFound);
    map.expect(MapCommand::CreateKey(key("A", "one")), MapOutcome::Done);
    map.expect(delete("A"), MapOutcome::Done);
    assert_eq!(load(&map.rows).unwrap().keys.len(), 1);
}

fn set_root(access_key: &str, secret_key: &str, changes_before: u64) -> MapCommand {
    MapCommand::SetRootKey(SetRootKey {
        access_key: access_key.into(),
        secret_key: secret_key.into(),
        changes_before,
        now_ms: 7,
    })
}

/// At the feature level that knows how to set the root key.
fn map_that_sets_root_keys() -> Map {
    let mut map = Map::initialised();
    map.expect(MapCommand::SetNode(NodeRow { feature_level_max: ROOT_LEVEL_MIN, ..node(1, 1) }), MapOutcome::Done);
    map.expect(MapCommand::SetFeatureLevel(FeatureLevel { level: ROOT_LEVEL_MIN }), MapOutcome::Done);
    map
}

fn root_given(access_key: &str, secret_key: &str) -> MapCommand {
    let row = KeyRow { root: true, secret_key: secret_key.into(), ..key(access_key, ROOT_NAME) };
    MapCommand::CreateKey(row)
}

#[test]
fn what_a_command_sets_as_root_key_no_start_of_a_node_brings_back() {
    let mut map = Map::initialised();
    map.expect(root_given("ROOT", "first"), MapOutcome::Done);
    let early = map.expect(set_root("ROOT", "second", 0), MapOutcome::Invalid);
    assert!(early.detail.contains("feature level"), "a node of an older version would not follow: {early:?}");
    map.expect(root_given("ROOT", "of another start"), MapOutcome::Done);

    let mut map = map_that_sets_root_keys();
    map.expect(set_root("ROOT", "second", 0), MapOutcome::NotFound);
    map.expect(root_given("ROOT", "first"), MapOutcome::Done);
    map.expect(MapCommand::CreateKey(key("APP", "app")), MapOutcome::Done);
    assert_eq!(map.expect(set_root("ROOT", "second", 0), MapOutcome::Done).id, 1);
    for given in [root_given("ROOT", "first"), root_given("ROOT", "second"), root_given("OTHER", "first")] {
        map.expect(given, MapOutcome::Stale);
    }
    map.expect(set_root("ROOT", "third", 0), MapOutcome::Stale);
    map.expect(set_root("APP", "third", 1), MapOutcome::KeyExists);
    for (access_key, secret_key) in [("", "third"), ("ROOT", ""), (&*"A".repeat(1025), "third")] {
        map.expect(set_root(access_key, secret_key, 1), MapOutcome::Invalid);
    }
    assert_eq!(map.expect(set_root("BOSS", "third", 1), MapOutcome::Done).id, 2);
    let root: Vec<&KeyRow> = map.map().keys.iter().filter(|row| row.root).collect();
    let expected =
        KeyRow { root: true, root_changes: 2, secret_key: "third".into(), created_ms: 7, ..key("BOSS", ROOT_NAME) };
    assert_eq!(root, [&expected]);
    // The id is free again, and the name is not.
    map.expect(MapCommand::CreateKey(key("ROOT", "another")), MapOutcome::Done);
    map.expect(MapCommand::CreateKey(key("THIRD", ROOT_NAME)), MapOutcome::KeyExists);
    map.expect(MapCommand::DeleteKey(KeyName { name: "BOSS".into() }), MapOutcome::Invalid);
}

#[test]
fn nobody_counts_changes_of_the_root_key_but_the_command() {
    let mut map = map_that_sets_root_keys();
    let MapCommand::CreateKey(row) = root_given("ROOT", "first") else { unreachable!() };
    map.expect(MapCommand::CreateKey(KeyRow { root_changes: 9, ..row }), MapOutcome::Done);
    assert_eq!(map.map().keys[0].root_changes, 0);
    map.expect(root_given("ROOT", "second"), MapOutcome::Done);
}

/// What may happen to the root key and to others, with few names, so that they meet.
fn key_command() -> impl Strategy<Value = MapCommand> {
    let name = || prop::sample::select(vec!["A", "B", "C"]);
    prop_oneof![
        (name(), name()).prop_map(|(id, secret)| root_given(id, secret)),
        (name(), name(), 0u64..4).prop_map(|(id, secret, before)| set_root(id, secret, before)),
        (name(), name()).prop_map(|(id, name)| MapCommand::CreateKey(key(id, name))),
        name().prop_map(|name| MapCommand::DeleteKey(KeyName { name: name.into() })),
    ]
}

proptest! {
    /// Also: following the changes is reading all rows (`Map::entry`).
    #[test]
    fn there_is_one_root_key_and_its_count_only_rises(
        commands in prop::collection::vec(key_command(), 0..40),
    ) {
        let mut map = map_that_sets_root_keys();
        map.expect(root_given("A", "first"), MapOutcome::Done);
        let root = |map: &Map| {
            let roots: Vec<KeyRow> = map.map().keys.iter().filter(|row| row.root).cloned().collect();
            assert_eq!(roots.len(), 1, "{roots:?}");
            roots[0].clone()
        };
        for (number, mut command) in commands.into_iter().enumerate() {
            // The same row once more would count as a change of the map.
            match &mut command {
                MapCommand::CreateKey(row) => row.created_ms = 1 + number as u64,
                MapCommand::SetRootKey(set) => set.now_ms = 1 + number as u64,
                _ => {}
            }
            let before = root(&map);
            let done = map.run(command.clone()).outcome() == MapOutcome::Done;
            let after = root(&map);
            match command {
                MapCommand::SetRootKey(set) if done => {
                    prop_assert_eq!(set.changes_before, before.root_changes);
                    prop_assert_eq!(after.root_changes, before.root_changes + 1);
                    prop_assert_eq!((after.access_key, after.secret_key), (set.access_key, set.secret_key));
                }
                MapCommand::CreateKey(row) if row.root && done => prop_assert_eq!(before.root_changes, 0),
                _ => prop_assert_eq!(before, after),
            }
        }
    }

    #[test]
    fn a_change_of_the_root_key_survives_its_encoding(
        access_key in ".*", secret_key in ".*", changes_before in any::<u64>(), now_ms in any::<u64>(),
    ) {
        let set = SetRootKey { access_key, secret_key, changes_before, now_ms };
        let entry = MapEntry { slot: None, command: Some(MapCommand::SetRootKey(set)) };
        let decoded = MapEntry::decode(Bytes::from(entry.encode_to_vec())).unwrap();
        prop_assert_eq!(decoded, entry);
    }
}

#[test]
fn counts_are_bounded() {
    let mut map = Map::initialised();
    for number in 0..10_000 {
        // Not through `entry`, which reads the whole map each time.
        let command = Some(MapCommand::CreateKey(key(&format!("K{number}"), "")));
        let (changes, _) = apply(&map.rows, LogIndex(9), MapEntry { slot: None, command }).unwrap();
        commit(&mut map.rows, changes);
    }
    map.followed = load(&map.rows).unwrap();
    map.expect(MapCommand::CreateKey(key("one more", "")), MapOutcome::TooMany);
    map.expect(MapCommand::DeleteKey(KeyName { name: "K7".into() }), MapOutcome::Done);
    map.expect(MapCommand::CreateKey(key("one more", "")), MapOutcome::Done);
}

#[test]
fn the_feature_level_waits_for_every_node_and_never_falls() {
    let mut map = Map::initialised();
    map.expect(MapCommand::SetNode(NodeRow { feature_level_max: 1, ..node(2, 1) }), MapOutcome::Done);
    let level = |level| MapCommand::SetFeatureLevel(FeatureLevel { level });
    map.expect(level(2), MapOutcome::Invalid);
    let removed = NodeRow { feature_level_max: 1, state: NodeState::Removed as i32, ..node(2, 1) };
    map.expect(MapCommand::SetNode(removed), MapOutcome::Done);
    map.expect(level(2), MapOutcome::Done);
    map.expect(level(1), MapOutcome::Stale);
    // A version that does not follow is not let in: neither as a new node nor when it is started again.
    let known = map.expect(MapCommand::SetNode(node(3, 1)), MapOutcome::Done).id as u32;
    for id in [0, known] {
        let older =
            map.expect(MapCommand::SetNode(NodeRow { feature_level_max: 1, ..node(id, 2) }), MapOutcome::Invalid);
        assert!(older.detail.contains("start a newer henge"), "{older:?}");
    }
    let removed = NodeRow { feature_level_max: 1, state: NodeState::Removed as i32, ..node(known, 2) };
    map.expect(MapCommand::SetNode(removed), MapOutcome::Done);
    // Every node follows, but this binary does not: to refuse it would be to diverge.
    map.expect(MapCommand::SetNode(NodeRow { feature_level_max: u32::MAX, ..node(1, 1) }), MapOutcome::Done);
    let newer = MapEntry { slot: None, command: Some(level(meta::group::FEATURE_LEVEL + 1)) };
    let stopped = apply(&map.rows, LogIndex(99), newer);
    assert!(stopped.is_err_and(|error| error.to_string().contains("start a newer henge")));
}

#[test]
fn secrets_are_not_shown_for_debugging() {
    let authority = Authority { certificate_pem: "shown".into(), key_pem: "top-secret".into() };
    let hash = Bytes::from_static(b"top-secret");
    let token = TokenRow { id: "token".into(), secret_hash: hash.clone(), ..TokenRow::default() };
    let (keys, tokens) = (vec![key("AK", "n")], vec![token.clone()]);
    let map = ClusterMap { keys, tokens, authority: Some(authority.clone()), ..ClusterMap::default() };
    let commands = [
        MapCommand::CreateKey(key("AK", "n")),
        MapCommand::SetAuthority(authority),
        MapCommand::RedeemToken(RedeemToken { id: token.id.clone(), secret_hash: hash, ..RedeemToken::default() }),
        MapCommand::CreateToken(token),
        set_root("AK", "top-secret", 0),
    ];
    let shown = format!("{map:?} {commands:?}");
    assert!(shown.contains("AK") && shown.contains("shown") && shown.contains("token"));
    assert!(!shown.contains("top-secret"));
    assert_eq!(text("x").len(), 1);
}

#[test]
fn fence_tokens_rise_over_a_recovery_and_leave_the_map_as_it_is() {
    let mut map = Map::initialised();
    let required = configuration(1, ConfigurationKind::Fence, Some(b""));
    map.expect(MapCommand::CreateBucket(bucket("b")), MapOutcome::Done);
    map.expect(MapCommand::NextFence(NextFence {}), MapOutcome::Invalid);
    map.expect(MapCommand::SetBucketConfiguration(required.clone()), MapOutcome::Invalid);
    map.expect(MapCommand::SetNode(NodeRow { feature_level_max: 3, ..node(1, 1) }), MapOutcome::Done);
    map.expect(MapCommand::SetFeatureLevel(FeatureLevel { level: 3 }), MapOutcome::Done);
    map.expect(MapCommand::SetBucketConfiguration(required), MapOutcome::Done);
    let version = map.map().version;
    let next = |map: &mut Map| map.run(MapCommand::NextFence(NextFence {})).id;
    assert_eq!([next(&mut map), next(&mut map)], [1, 2]);
    assert_eq!(map.map().version, version);
    let before_loss = next(&mut map) + 1000;
    map.run(MapCommand::SetClusterGeneration(ClusterGeneration { generation: 1 }));
    assert!(next(&mut map) > before_loss, "a recovery may have forgotten tokens that were handed out");
}

#[test]
fn a_slow_disk_stays_slow_until_somebody_says_otherwise() {
    let mut map = Map::initialised();
    let slow = |map: &mut Map, slow| map.run(MapCommand::SetDiskSlow(SetDiskSlow { id: random(5), slow })).outcome();
    assert_eq!(slow(&mut map, true), MapOutcome::Invalid, "a node of an older version would not follow");
    map.expect(MapCommand::SetNode(NodeRow { feature_level_max: 3, ..node(1, 1) }), MapOutcome::Done);
    map.expect(MapCommand::SetFeatureLevel(FeatureLevel { level: 3 }), MapOutcome::Done);
    assert_eq!(slow(&mut map, true), MapOutcome::Done);
    let again = DiskRow { id: random(5), node: 1, capacity_bytes: 10, ..DiskRow::default() };
    map.run(MapCommand::SetDisk(again));
    assert!(map.map().disks[0].slow, "its node has started anew");
    assert_eq!(slow(&mut map, false), MapOutcome::Done);
    assert!(!map.map().disks[0].slow);
    let unknown = SetDiskSlow { id: random(77), slow: true };
    assert_eq!(map.run(MapCommand::SetDiskSlow(unknown)).outcome(), MapOutcome::NotFound);
}
