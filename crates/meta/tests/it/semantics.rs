//! What S3 promises, case by case; each named after what somebody got wrong.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::Bytes;
use meta::group::{self, Install};
use meta::object::command::*;
use meta::object::query;
use meta::view::{Changes, Row, View, ViewError, commit};

use crate::shard::*;

#[test]
fn a_fresh_put_of_an_unversioned_bucket_writes_the_version_and_the_slot() {
    let mut shard = Shard::new(Versioning::Off);
    let body = shard.body(10);
    let slot = SlotRef { node: 1, generation: 1, slot: 0, sequence: 1 };
    let put = ShardCommand::PutObject(put_of("k", "e", body));
    let (changes, outcome) =
        shard.entry(ShardEntry { slot: Some(slot), range_epoch: 1, command: Some(put), ..ShardEntry::default() });
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
    let sequences: Vec<u64> = shard.garbage().iter().map(|row| row.sequence).collect();
    // The first was written by the entry before the DELETEs.
    let max = |index| meta::object::garbage_sequence_max(base::ids::LogIndex(index));
    let overwritten = shard.index - 2;
    assert!(sequences[0] <= max(overwritten) && sequences[0] > max(overwritten - 1) && sequences[1] > max(overwritten));
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

fn change(key: &str, version: Option<Bytes>, tag: &str) -> ShardCommand {
    let tags = Some(Tags { tags: vec![Header { name: tag.to_owned(), value: "v".to_owned() }] });
    ShardCommand::ChangeVersion(ChangeVersion {
        bucket: BUCKET,
        key: text(key),
        version,
        tags,
        ..ChangeVersion::default()
    })
}

fn object(shard: &Shard, version: Option<Bytes>) -> ObjectVersion {
    match shard.read(ShardRead::GetObject(GetObject { bucket: BUCKET, key: text("k"), version })) {
        ShardFound::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

fn tag_of(object: &ObjectVersion) -> String {
    object.attributes.iter().flat_map(|attributes| &attributes.tags).map(|tag| tag.name.as_str()).collect()
}

#[test]
fn tags_and_access_lists_change_one_version_and_nothing_else_of_it() {
    let mut shard = Shard::new(Versioning::Off);
    assert_refused(shard.run(change("k", None, "t")), Reason::NoSuchKey);
    shard.put("k", "plain");
    let before = object(&shard, None);
    assert!(
        matches!(shard.run(change("k", None, "t")), ShardOutcome::Written(w) if w.version.is_empty() && w.size == 10)
    );
    let after = object(&shard, None);
    assert_eq!(tag_of(&after), "t");
    let untagged = Attributes { tags: vec![], ..after.attributes.clone().unwrap() };
    assert_eq!(ObjectVersion { attributes: Some(untagged), ..after }, before);
    let acl = ChangeVersion { bucket: BUCKET, key: text("k"), acl: Some("a".into()), ..ChangeVersion::default() };
    shard.run(ShardCommand::ChangeVersion(acl));
    let attributes = object(&shard, None).attributes.unwrap();
    assert_eq!((attributes.acl.as_str(), attributes.tags.len()), ("a", 1), "what is absent stays");

    shard.set_versioning(Versioning::Enabled, 2);
    let (null, first) = (Bytes::from_static(b"null"), shard.written("k", "first"));
    assert!(matches!(shard.run(change("k", Some(null.clone()), "n")), ShardOutcome::Written(w) if w.version == null));
    assert!(matches!(shard.run(change("k", None, "new")), ShardOutcome::Written(w) if w.version == first));
    assert_eq!(
        (tag_of(&object(&shard, Some(null.clone()))), tag_of(&object(&shard, None))),
        ("n".into(), "new".into())
    );
    shard.set_versioning(Versioning::Suspended, 3);
    shard.put("k", "null again");
    shard.run(change("k", Some(null.clone()), "s"));
    assert_eq!(tag_of(&object(&shard, Some(null))), "s");
    let ShardOutcome::Deleted(marker) = shard.delete("k", None) else { panic!() };
    assert_refused(shard.run(change("k", None, "t")), Reason::DeleteMarker);
    assert_refused(shard.run(change("k", Some(marker.version), "t")), Reason::DeleteMarker);
    assert_refused(shard.run(change("k", Some(random(77)), "t")), Reason::NoSuchVersion);
    assert_eq!(tag_of(&object(&shard, Some(first))), "new");
    assert_eq!(shard.garbage_chunks(), 2, "the two null versions that were replaced, and nothing else");
}

fn must_not_exist() -> Option<Precondition> {
    Some(Precondition { must_not_exist: true, ..Precondition::default() })
}

fn must_exist() -> Option<Precondition> {
    Some(Precondition { must_exist: true, ..Precondition::default() })
}

fn etag_is(etag: &str) -> Option<Precondition> {
    Some(Precondition { etag_is: vec![etag.to_owned()], ..Precondition::default() })
}

#[test]
fn exactly_one_of_many_racing_creators_wins() {
    for versioning in [Versioning::Off, Versioning::Enabled, Versioning::Suspended] {
        let mut shard = Shard::new(versioning);
        let outcomes: Vec<_> = (0..32).map(|_| shard.put_if("k", "e", must_not_exist())).collect();
        assert!(matches!(outcomes[0], ShardOutcome::Written(_)));
        for loser in outcomes.into_iter().skip(1) {
            assert_refused(loser, Reason::PreconditionFailed);
        }
        // The losers' bodies are not the shard's: nothing was dropped and nothing is named.
        assert_eq!(shard.garbage_chunks(), 0);
        // Behind a delete marker there is no object.
        shard.delete("k", None);
        assert!(matches!(shard.put_if("k", "e", must_not_exist()), ShardOutcome::Written(_)));
    }
}

#[test]
fn if_match_on_a_missing_key_is_no_such_key_not_a_failed_condition() {
    for versioning in [Versioning::Off, Versioning::Enabled] {
        let mut shard = Shard::new(versioning);
        assert_refused(shard.put_if("k", "b", etag_is("a")), Reason::NoSuchKey);
        assert_refused(shard.put_if("k", "b", must_exist()), Reason::NoSuchKey);
        shard.put("k", "a");
        assert_refused(shard.put_if("k", "b", etag_is("x")), Reason::PreconditionFailed);
        assert!(matches!(shard.put_if("k", "b", etag_is("a")), ShardOutcome::Written(_)));
        shard.delete("k", None);
        assert_refused(shard.put_if("k", "c", etag_is("b")), Reason::NoSuchKey);
    }
}

#[test]
fn a_conditional_delete_of_nothing_succeeds_and_writes_no_marker() {
    let mut shard = Shard::new(Versioning::Enabled);
    assert_eq!(shard.delete_if("k", None, etag_is("x")), ShardOutcome::Deleted(Deleted::default()));
    let version = shard.written("k", "a");
    assert_refused(shard.delete_if("k", None, etag_is("x")), Reason::PreconditionFailed);
    assert_refused(shard.delete_if("k", Some(&version), etag_is("x")), Reason::PreconditionFailed);
    let size = |size| Some(Precondition { size_is: Some(size), ..Precondition::default() });
    assert_refused(shard.delete_if("k", None, size(11)), Reason::PreconditionFailed);
    let modified = |ms| Some(Precondition { modified_ms_is: Some(ms), ..Precondition::default() });
    assert_refused(shard.delete_if("k", None, modified(2000)), Reason::PreconditionFailed);
    // HTTP dates carry no milliseconds.
    assert!(matches!(shard.delete_if("k", None, modified(1999)), ShardOutcome::Deleted(Deleted { marker: true, .. })));
    // The newest version is a marker now: it has no ETag, but it is there.
    assert_refused(shard.delete_if("k", None, etag_is("a")), Reason::PreconditionFailed);
    assert!(matches!(shard.delete_if("k", None, must_exist()), ShardOutcome::Deleted(Deleted { marker: true, .. })));
    assert!(matches!(shard.delete_if("k", Some(&version), etag_is("a")), ShardOutcome::Deleted(_)));
    assert!(matches!(shard.delete_if("k", Some(&version), etag_is("x")), ShardOutcome::Deleted(_)));
}

#[test]
fn deleted_keys_make_no_phantom_prefixes() {
    let mut shard = Shard::new(Versioning::Enabled);
    shard.put("gone/a", "e");
    shard.put("gone/b", "e");
    shard.put("here/a", "e");
    shard.put("here/b", "e");
    for key in ["gone/a", "gone/b", "here/a"] {
        shard.delete(key, None);
    }
    let page = shard.list(ListObjects { delimiter: text("/"), limit: 10, ..ListObjects::default() });
    assert_eq!(page.prefixes, vec![text("here/")]);
    let versions = shard.list_versions(ListVersions { delimiter: text("/"), limit: 10, ..ListVersions::default() });
    assert_eq!(versions.prefixes, vec![text("gone/"), text("here/")]);
}

#[test]
fn an_empty_page_is_asked_for_and_given() {
    let mut shard = Shard::new(Versioning::Off);
    shard.put("k", "e");
    assert_eq!(shard.list(ListObjects::default()), ObjectPage::default());
    assert_eq!(shard.list_versions(ListVersions::default()), ObjectPage::default());
}

#[test]
fn keys_that_no_object_can_have_are_refused() {
    let mut shard = Shard::new(Versioning::Off);
    assert_refused(shard.put("", "e"), Reason::Invalid);
    assert_refused(shard.put(&"k".repeat(1025), "e"), Reason::Invalid);
    assert!(matches!(shard.put(&"k".repeat(1024), "e"), ShardOutcome::Written(_)));
}

#[test]
fn bodies_that_do_not_add_up_are_refused() {
    let mut shard = Shard::new(Versioning::Off);
    let good = shard.body(10);
    let mut cut = good.clone();
    cut.chunks.truncate(27);
    let bad = [
        Body { size: 11, ..good.clone() },
        cut,
        Body { inline: Some(text("xy")), ..Body::default() },
        Body { inline: Some(text("xy")), size: 2, ..good.clone() },
        Body { upload: random(1), ..good },
    ];
    for body in bad {
        assert_refused(shard.run(ShardCommand::PutObject(put_of("k", "e", body))), Reason::Invalid);
    }
    let none = PutObject { body: None, ..put_of("k", "e", Body::default()) };
    assert_refused(shard.run(ShardCommand::PutObject(none)), Reason::Invalid);
    assert!(matches!(shard.run(ShardCommand::PutObject(put_of("k", "e", Body::default()))), ShardOutcome::Written(_)));
}

#[test]
fn a_frozen_bucket_takes_no_writes_and_a_late_setting_does_not_thaw_it() {
    let mut shard = Shard::new(Versioning::Off);
    let bucket = BucketRef { bucket: BUCKET };
    shard.put("k", "e");
    assert_refused(shard.run(ShardCommand::FreezeBucket(bucket.clone())), Reason::BucketNotEmpty);
    shard.delete("k", None);
    assert_eq!(shard.run(ShardCommand::FreezeBucket(bucket.clone())), done());
    assert_refused(shard.put("k", "e"), Reason::BucketFrozen);
    shard.set_versioning(Versioning::Off, 1);
    assert_refused(shard.put("k", "e"), Reason::BucketFrozen);
    shard.set_versioning(Versioning::Off, 2);
    assert!(matches!(shard.put("k", "e"), ShardOutcome::Written(_)));
    assert_refused(shard.run(ShardCommand::DropBucket(bucket)), Reason::Invalid);
}

#[test]
fn a_dropped_bucket_never_comes_back() {
    let mut shard = Shard::new(Versioning::Off);
    let bucket = BucketRef { bucket: BUCKET };
    assert_eq!(shard.run(ShardCommand::FreezeBucket(bucket.clone())), done());
    assert_eq!(shard.run(ShardCommand::DropBucket(bucket.clone())), done());
    assert_eq!(shard.run(ShardCommand::DropBucket(bucket.clone())), done());
    let row = BucketRow { bucket: BUCKET, settings_version: 99, ..BucketRow::default() };
    assert_refused(shard.run(ShardCommand::SetBucket(row)), Reason::NoSuchBucket);
    assert_refused(shard.put("k", "e"), Reason::NoSuchBucket);
    assert_refused(shard.run(ShardCommand::FreezeBucket(bucket)), Reason::NoSuchBucket);
}

#[test]
fn a_delete_marker_makes_a_versioned_bucket_not_empty() {
    let mut shard = Shard::new(Versioning::Enabled);
    shard.delete("k", None);
    assert_refused(shard.run(ShardCommand::FreezeBucket(BucketRef { bucket: BUCKET })), Reason::BucketNotEmpty);
}

#[test]
fn versioning_is_suspended_never_switched_off() {
    let mut shard = Shard::new(Versioning::Enabled);
    let row = BucketRow { bucket: BUCKET, settings_version: 9, ..BucketRow::default() };
    assert_refused(shard.run(ShardCommand::SetBucket(row)), Reason::Invalid);
    // An older setting that arrives late changes nothing.
    shard.set_versioning(Versioning::Suspended, 3);
    shard.set_versioning(Versioning::Enabled, 2);
    assert_eq!(shard.written("k", "e"), Bytes::from_static(b"null"));
}

#[test]
fn keys_outside_the_range_are_another_shards() {
    let mut shard = Shard::new(Versioning::Off);
    let mut rows = shard.rows.clone();
    std::mem::swap(&mut rows, &mut shard.rows);
    shard.rows.clear();
    let range = |key: &str| meta::keys::range_point(base::ids::BucketId(BUCKET), key.as_bytes());
    let init = InitShard {
        range_start: range("b"),
        range_end: range("d"),
        range_epoch: 4,
        feature_level: 1,
        order_base: 1000,
    };
    assert_refused(shard.put("b", "e"), Reason::WrongRange);
    assert_eq!(shard.run(ShardCommand::InitShard(init.clone())), done());
    assert_eq!(shard.run(ShardCommand::InitShard(init.clone())), done());
    let other = InitShard { range_end: Bytes::new(), ..init };
    assert_refused(shard.run(ShardCommand::InitShard(other)), Reason::Invalid);
    shard.set_versioning(Versioning::Enabled, 1);
    for key in ["a", "d", "da"] {
        assert_refused(shard.put(key, "e"), Reason::WrongRange);
    }
    // Orders go on above those of the group that had the range before.
    let version = shard.written("c", "e");
    assert_eq!(meta::object::order_of_version(&version), Some(1000 + shard.index));
    assert!(matches!(shard.put("b", "e"), ShardOutcome::Written(_)));
}

#[test]
fn a_shard_that_does_not_know_a_command_refuses_it_and_one_of_a_newer_level_stops() {
    let mut shard = Shard::new(Versioning::Off);
    let level = |level| ShardCommand::SetFeatureLevel(SetFeatureLevel { level });
    assert_eq!(shard.run(level(1)), done());
    let newer = ShardEntry { command: Some(level(meta::group::FEATURE_LEVEL + 1)), ..ShardEntry::default() };
    let stopped = meta::object::apply(&shard.rows, GROUP, base::ids::LogIndex(99), newer);
    assert!(
        stopped.is_err_and(|error| error.to_string().contains("start a newer henge")),
        "to refuse it is to diverge"
    );
    let (_, outcome) = shard.entry(ShardEntry::default());
    assert_refused(outcome, Reason::Invalid);
}

/// A node of the version before would keep the row without its pool.
#[test]
fn an_object_names_a_pool_only_when_every_node_knows_pools() {
    let mut shard = Shard::at_level(Versioning::Off, 3);
    let body = shard.body(10);
    let put = put_of("k", "e", body);
    let attributes = put.attributes.clone().map(|attributes| Attributes { pool: 2, ..attributes });
    let cold = ShardCommand::PutObject(PutObject { attributes: attributes.clone(), ..put });
    let upload = ShardCommand::CreateUpload(CreateUpload {
        bucket: BUCKET,
        key: text("k"),
        upload: random(7),
        attributes,
        ..CreateUpload::default()
    });
    assert_refused(shard.run(cold.clone()), Reason::Invalid);
    assert_refused(shard.run(upload.clone()), Reason::Invalid);
    assert!(matches!(shard.put("k", "e"), ShardOutcome::Written(_)));
    assert_eq!(shard.run(ShardCommand::SetFeatureLevel(SetFeatureLevel { level: 4 })), done());
    assert!(matches!(shard.run(cold), ShardOutcome::Written(_)));
    assert!(!matches!(shard.run(upload), ShardOutcome::Refused(_)));
}

#[test]
fn all_rows_of_a_group_lie_in_its_ranges() {
    let mut shard = Shard::new(Versioning::Enabled);
    shard.put("k", "e");
    shard.delete("k", None);
    crate::uploads::upload(&mut shard, "u", 1, 2);
    let slot = Some(SlotRef { node: 1, generation: 1, slot: 0, sequence: 1 });
    let command = Some(ShardCommand::CloseSession(CloseSession { node: 1, floor: 1 }));
    shard.entry(ShardEntry { slot, range_epoch: 1, fence: None, command });
    let state = group::load(&shard.rows, GROUP).unwrap();
    let ranges = meta::group::row_ranges(GROUP, &state);
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    for key in shard.rows.keys() {
        assert_eq!(ranges.iter().filter(|(from, to)| key >= from && key < to).count(), 1, "{}", key.escape_ascii());
    }
}

/// Rows that are replaced by others between two reads of one query.
struct Replaced {
    before: BTreeMap<Bytes, Bytes>,
    after: BTreeMap<Bytes, Bytes>,
    reads_before: Cell<u32>,
}

impl Replaced {
    fn rows(&self) -> &BTreeMap<Bytes, Bytes> {
        let left = self.reads_before.get();
        self.reads_before.set(left.saturating_sub(1));
        if left > 0 { &self.before } else { &self.after }
    }
}

impl View for Replaced {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        View::get(self.rows(), key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, ViewError> {
        View::scan(self.rows(), from, to, limit)
    }
}

#[test]
fn the_null_version_is_found_while_it_is_overwritten() {
    let mut shard = Shard::new(Versioning::Enabled);
    shard.put("k", "older");
    shard.set_versioning(Versioning::Suspended, 2);
    shard.put("k", "one");
    let before = shard.rows.clone();
    shard.put("k", "two");
    for reads_before in 0..8 {
        let view =
            Replaced { before: before.clone(), after: shard.rows.clone(), reads_before: Cell::new(reads_before) };
        let get = GetObject { bucket: BUCKET, key: text("k"), version: Some(text("null")) };
        let found = shard.read_counted(&view, ShardRead::GetObject(get));
        assert!(matches!(found, ShardFound::Object(_)), "{reads_before}: {found:?}");
    }
}

#[test]
fn rows_that_are_being_replaced_answer_nothing() {
    let mut shard = Shard::new(Versioning::Off);
    shard.put("k", "e");
    let asked = || ShardQuery {
        range_epoch: 1,
        read: Some(ShardRead::ListObjects(ListObjects { bucket: BUCKET, limit: 10, ..ListObjects::default() })),
    };
    assert!(query(&shard.rows, GROUP, asked()).is_ok());
    let state = group::load(&shard.rows, GROUP).unwrap();
    let marked = group::mark(GROUP, &state, Install::Incomplete);
    commit(&mut shard.rows, Changes(vec![marked]));
    assert!(matches!(query(&shard.rows, GROUP, asked()), Err(ViewError::Io(_))));
}
