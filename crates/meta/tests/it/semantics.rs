//! What S3 promises, case by case; each named after what somebody got wrong.

use bytes::Bytes;
use meta::object::command::*;

use crate::shard::*;

#[test]
fn a_fresh_put_of_an_unversioned_bucket_writes_the_version_and_the_slot() {
    let mut shard = Shard::new(Versioning::Off);
    let body = shard.body(10);
    let slot = SlotRef { node: 1, generation: 1, slot: 0, sequence: 1 };
    let put = ShardCommand::PutObject(put_of("k", "e", body));
    let (changes, outcome) = shard.entry(ShardEntry { slot: Some(slot), range_epoch: 1, command: Some(put) });
    assert!(matches!(outcome, ShardOutcome::Written(written) if written.version.is_empty()));
    assert_eq!(changes.0.len(), 2);
    assert_eq!(shard.get("k", None), Ok("e".into()));
}

#[test]
fn overwriting_and_deleting_drop_the_chunks() {
    let mut shard = Shard::new(Versioning::Off);
    shard.put("k", "a");
    shard.put("k", "b");
    assert_eq!(shard.garbage_chunks(), 1);
    assert_eq!(shard.delete("k", None), ShardOutcome::Deleted(Deleted::default()));
    assert_eq!(shard.garbage_chunks(), 2);
    assert_eq!(shard.get("k", None), Err(Reason::NoSuchKey));
    assert_eq!(shard.delete("k", None), ShardOutcome::Deleted(Deleted::default()));
    assert_eq!(shard.garbage_chunks(), 2);
    let sequences = shard.garbage().iter().map(|row| row.sequence).collect();
    assert_eq!(shard.run(ShardCommand::RetireGarbage(RetireGarbage { sequences })), done());
    assert_eq!(shard.garbage_chunks(), 0);
}

#[test]
fn deleting_a_delete_marker_brings_the_object_back() {
    let mut shard = Shard::new(Versioning::Enabled);
    shard.put("k", "a");
    let ShardOutcome::Deleted(deleted) = shard.delete("k", None) else { panic!() };
    assert!(deleted.marker);
    assert_eq!(shard.get("k", None), Err(Reason::DeleteMarker));
    assert_eq!(shard.list(ListObjects { limit: 10, ..ListObjects::default() }).objects, vec![]);
    let again = shard.delete("k", Some(&deleted.version));
    assert_eq!(again, ShardOutcome::Deleted(Deleted { marker: true, version: deleted.version }));
    assert_eq!(shard.get("k", None), Ok("a".into()));
    assert_eq!(shard.garbage_chunks(), 0);
}

#[test]
fn a_suspended_bucket_has_one_null_version_and_it_is_the_newest() {
    let null = Bytes::from_static(b"null");
    let mut shard = Shard::new(Versioning::Off);
    shard.put("k", "off");
    shard.set_versioning(Versioning::Enabled, 2);
    let first = shard.written("k", "v1");
    assert_eq!(shard.get("k", Some(&null)), Ok("off".into()));
    shard.set_versioning(Versioning::Suspended, 3);
    assert_eq!(shard.written("k", "s1"), null);
    assert_eq!(shard.garbage_chunks(), 1);
    assert_eq!(shard.written("k", "s2"), null);
    assert_eq!(shard.garbage_chunks(), 2);
    assert_eq!(shard.get("k", None), Ok("s2".into()));
    assert_eq!(shard.get("k", Some(&null)), Ok("s2".into()));
    assert_eq!(shard.get("k", Some(&first)), Ok("v1".into()));
    let versions = shard.list_versions(ListVersions { limit: 10, ..ListVersions::default() });
    assert_eq!(versions.objects.iter().map(|object| &object.version).collect::<Vec<_>>(), vec![&null, &first]);
    shard.delete("k", Some(&null));
    assert_eq!(shard.get("k", None), Ok("v1".into()));
    assert_eq!(shard.get("k", Some(&null)), Err(Reason::NoSuchVersion));
}
