//! Nothing that arrives can make apply or a query panic, and no refusal changes a row.

use base::ids::{GROUP_ZERO, LogIndex};
use bytes::Bytes;
use meta::group::FEATURE_LEVEL;
use meta::map::command::*;
use meta::object::command::*;
use meta::object::{apply, query};
use meta::view::commit;
use proptest::prelude::*;
use prost::Message;

use crate::shard::*;

/// A shard with something of everything.
fn populated() -> Shard {
    let mut shard = Shard::new(Versioning::Off);
    shard.put("a/b", "e");
    shard.set_versioning(Versioning::Enabled, 2);
    shard.put("a/b", "f");
    shard.set_versioning(Versioning::Suspended, 3);
    shard.put("a/b", "g");
    let named = crate::uploads::upload(&mut shard, "a/b", 1, 2);
    shard.run(crate::uploads::complete("a/b", 1, named));
    crate::uploads::upload(&mut shard, "a/c", 2, 3);
    shard
}

/// Entries whose mutations reach deep.
fn entries(shard: &mut Shard) -> Vec<ShardEntry> {
    let body = shard.body(10);
    let condition = Precondition {
        must_exist: true,
        etag_is: vec!["m-1".into()],
        etag_is_not: vec!["x".into()],
        size_is: Some(5),
        ..Precondition::default()
    };
    let named = vec![NamedPart { number: 1, etag: "p1-5242880".into(), checksums: vec![] }];
    let commands = [
        ShardCommand::PutObject(PutObject {
            precondition: Some(condition.clone()),
            ..put_of("a/b", "h", body.clone())
        }),
        ShardCommand::PutObject(put_of("a/b", "h", body.clone())),
        ShardCommand::DeleteObject(DeleteObject {
            bucket: BUCKET,
            key: text("a/b"),
            version: Some(text("null")),
            precondition: Some(condition),
            modified_ms: 1,
            marker_id: random(4),
            bypass_governance: false,
        }),
        ShardCommand::PutPart(PutPart {
            bucket: BUCKET,
            key: text("a/c"),
            upload: random(2),
            number: 2,
            body: Some(body),
            etag: "e".into(),
            ..PutPart::default()
        }),
        crate::uploads::complete("a/c", 2, named.clone()),
        crate::uploads::complete("a/b", 1, named),
        ShardCommand::AbortUpload(AbortUpload { bucket: BUCKET, key: text("a/c"), upload: random(2) }),
        ShardCommand::CreateUpload(CreateUpload {
            bucket: BUCKET,
            key: text("n"),
            upload: random(8),
            ..Default::default()
        }),
        ShardCommand::ChangeVersion(ChangeVersion {
            bucket: BUCKET,
            key: text("a/b"),
            tags: Some(Tags { tags: vec![Header { name: "t".into(), value: "v".into() }] }),
            acl: Some("a".into()),
            ..ChangeVersion::default()
        }),
        ShardCommand::FreezeBucket(BucketRef { bucket: BUCKET }),
        ShardCommand::DropBucket(BucketRef { bucket: BUCKET }),
        ShardCommand::SetBucket(BucketRow { bucket: BUCKET, versioning: 1, settings_version: 9, ..Default::default() }),
        ShardCommand::RetireGarbage(RetireGarbage { sequences: vec![65536 * 4, 9] }),
        ShardCommand::CloseSession(CloseSession { node: 1, floor: 2 }),
        ShardCommand::InitShard(InitShard { range_epoch: 1, feature_level: 1, ..InitShard::default() }),
    ];
    let slot = Some(SlotRef { node: 1, generation: 1, slot: 2, sequence: 3 });
    commands
        .into_iter()
        .map(|command| ShardEntry { slot, range_epoch: 1, fence: None, command: Some(command) })
        .collect()
}

fn reads() -> Vec<ShardRead> {
    let key = text("a/b");
    vec![
        ShardRead::GetObject(GetObject { bucket: BUCKET, key: key.clone(), version: Some(text("null")) }),
        ShardRead::ListObjects(ListObjects {
            bucket: BUCKET,
            prefix: text("a"),
            delimiter: text("/"),
            after: text("a"),
            limit: 2,
            from: text("a"),
        }),
        ShardRead::ListVersions(ListVersions {
            bucket: BUCKET,
            key_marker: key.clone(),
            version_marker: Some(text("null")),
            limit: 2,
            ..ListVersions::default()
        }),
        ShardRead::ListUploads(ListUploads {
            bucket: BUCKET,
            key_marker: key.clone(),
            upload_marker: random(1),
            limit: 2,
            ..ListUploads::default()
        }),
        ShardRead::GetUpload(GetUpload { bucket: BUCKET, key: text("a/c"), upload: random(2) }),
        ShardRead::ListParts(ListParts { bucket: BUCKET, key, upload: random(1), after: 1, limit: 1 }),
        ShardRead::ListGarbage(ListGarbage { after: 1, limit: 1 }),
    ]
}

/// Flips, cuts and appends.
fn mutate(mut bytes: Vec<u8>, edits: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    for (at, kind, byte) in edits {
        if bytes.is_empty() {
            break;
        }
        let at = at.index(bytes.len());
        match kind % 4 {
            0 => bytes[at] = *byte,
            1 => bytes.truncate(at),
            2 => bytes.insert(at, *byte),
            _ => bytes[at] ^= 1 << (byte % 8),
        }
    }
    bytes
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_entry_makes_apply_panic(
        junk in proptest::collection::vec(any::<u8>(), 0..200),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), edits()), 20),
    ) {
        let mut shard = populated();
        let entries = entries(&mut shard);
        let mutated = mutations.iter().map(|(which, edits)| mutate(which.get(&entries).encode_to_vec(), edits));
        for bytes in mutated.chain([junk]) {
            let Ok(entry) = ShardEntry::decode(Bytes::from(bytes)) else { continue };
            let slotless = ShardEntry { slot: None, ..entry.clone() };
            for entry in [entry, slotless] {
                shard.index += 1;
                let applied = apply(&shard.rows, GROUP, LogIndex(shard.index), entry.clone());
                if matches!(&entry.command, Some(ShardCommand::SetFeatureLevel(to)) if to.level > FEATURE_LEVEL) {
                    // What cannot be followed stops the replica, unless the slot or the epoch forbids it anyway.
                    prop_assert!(applied.is_err() || applied.is_ok_and(|(changes, _)| changes.0.is_empty()));
                    continue;
                }
                let (changes, reply) = applied.unwrap();
                let again = apply(&shard.rows, GROUP, LogIndex(shard.index), entry.clone()).unwrap();
                prop_assert_eq!(&again.0, &changes);
                if matches!(reply.outcome, Some(ShardOutcome::Refused(_))) {
                    prop_assert!(changes.0.len() <= usize::from(entry.slot.is_some()));
                }
                commit(&mut shard.rows, changes);
            }
        }
    }

    #[test]
    fn no_query_panics(
        junk in proptest::collection::vec(any::<u8>(), 0..200),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), edits()), 20),
    ) {
        let shard = populated();
        let reads = reads();
        let encode = |read: &ShardRead| ShardQuery { range_epoch: 1, read: Some(read.clone()) }.encode_to_vec();
        let mutated = mutations.iter().map(|(which, edits)| mutate(encode(which.get(&reads)), edits));
        for bytes in mutated.chain([junk]) {
            if let Ok(asked) = ShardQuery::decode(Bytes::from(bytes)) {
                query(&shard.rows, GROUP, asked).unwrap();
            }
        }
    }

    #[test]
    fn no_entry_makes_the_map_panic(
        junk in proptest::collection::vec(any::<u8>(), 0..200),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), edits()), 30),
    ) {
        let mut map = crate::map::Map::initialised();
        let commands = crate::map::commands();
        let slot = Some(SlotRef { node: 1, generation: 1, slot: 2, sequence: 3 });
        let encode = |command: &MapCommand| MapEntry { slot, command: Some(command.clone()) }.encode_to_vec();
        let mutated = mutations.iter().map(|(which, edits)| mutate(encode(which.get(&commands)), edits));
        for bytes in mutated.chain([junk]) {
            let Ok(entry) = MapEntry::decode(Bytes::from(bytes)) else { continue };
            map.entry(entry.clone());
            map.entry(MapEntry { slot: None, ..entry });
        }
        let state = meta::group::load(&map.rows, GROUP_ZERO).unwrap();
        prop_assert_eq!(state.applied_index, 0);
    }

    /// Rows that are damaged in a way that their checksum did not catch are an error, never a panic.
    #[test]
    fn no_damaged_row_makes_apply_or_a_query_panic(
        which: prop::sample::Index, change in edits(), entry: prop::sample::Index, read: prop::sample::Index,
    ) {
        let mut shard = populated();
        let entries = entries(&mut shard);
        let keys: Vec<Bytes> = shard.rows.keys().cloned().collect();
        let key = which.get(&keys);
        let value = mutate(shard.rows[key].to_vec(), &change);
        shard.rows.insert(key.clone(), value.into());
        let _ = apply(&shard.rows, GROUP, LogIndex(1000), entry.get(&entries).clone());
        let _ = query(&shard.rows, GROUP, ShardQuery { range_epoch: 0, read: Some(read.get(&reads()).clone()) });
    }
}
