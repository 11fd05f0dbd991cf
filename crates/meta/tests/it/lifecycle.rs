//! Lifecycle inside apply: the worker finds, the command decides again.

use base::ids::BucketId;
use meta::map::command::{BucketConfigurationRow, ConfigurationKind};
use meta::object::command::*;
use meta::object::expire::{self, DuePage, Expire, Place, Pools};
use meta::object::lifecycle::{LifecycleRule, LifecycleRules, Moment};
use prost::Message;

use crate::shard::*;

pub const DAY: u64 = 24 * 3600 * 1000;

pub fn rule() -> LifecycleRule {
    LifecycleRule { id: "r".into(), enabled: true, ..LifecycleRule::default() }
}

pub fn set_rules(shard: &mut Shard, versioning: Versioning, version: u64, rules: Vec<LifecycleRule>) {
    let value = LifecycleRules { rules }.encode_to_vec().into();
    let kind = ConfigurationKind::Lifecycle as i32;
    let row = BucketRow {
        bucket: BUCKET,
        versioning: versioning as i32,
        settings_version: version,
        configurations: vec![BucketConfigurationRow { bucket: BUCKET, kind, version, value }],
        ..BucketRow::default()
    };
    assert_eq!(shard.run(ShardCommand::SetBucket(row)), done());
}

fn at(now_ms: u64) -> Moment {
    Moment { now_ms, day_ms: 0 }
}

/// Everything that a whole search finds.
fn search(shard: &Shard, now_ms: u64) -> DuePage {
    let mut all = DuePage::default();
    let mut place = Place::Start;
    loop {
        let page = expire::due(&shard.rows, GROUP, BucketId(BUCKET), &Pools::default(), &place, at(now_ms)).unwrap();
        all.keys.extend(page.keys);
        all.uploads.extend(page.uploads);
        match page.next {
            Some(next) => place = next,
            None => return all,
        }
    }
}

fn command(found: &DuePage, now_ms: u64) -> ShardCommand {
    ShardCommand::Expire(Expire {
        bucket: BUCKET,
        keys: found.keys.clone(),
        uploads: found.uploads.clone(),
        now_ms,
        day_ms: 0,
        marker_id: random(77),
    })
}

/// Search and do, until nothing is due.
fn settle(shard: &mut Shard, now_ms: u64) {
    for _ in 0..10 {
        let found = search(shard, now_ms);
        if found == DuePage::default() {
            return;
        }
        shard.run(command(&found, now_ms));
    }
    panic!("lifecycle never comes to rest");
}

fn versions(shard: &Shard) -> Vec<(String, bool)> {
    let page = shard.list_versions(ListVersions { limit: 1000, ..ListVersions::default() });
    page.objects.iter().map(|row| (String::from_utf8_lossy(&row.key).into_owned(), row.delete_marker)).collect()
}

fn named(list: &[(&str, bool)]) -> Vec<(String, bool)> {
    list.iter().map(|(key, marker)| ((*key).to_owned(), *marker)).collect()
}

#[test]
fn objects_of_an_unversioned_bucket_go_with_their_chunks() {
    let mut shard = Shard::new(Versioning::Off);
    let prefix = text("old/");
    set_rules(&mut shard, Versioning::Off, 2, vec![LifecycleRule { expire_days: Some(1), prefix, ..rule() }]);
    for key in ["old/a", "old/b", "new/a"] {
        shard.put(key, "e");
    }
    assert_eq!(search(&shard, 2 * DAY - 1).keys, [""; 0]);
    assert_eq!(search(&shard, 2 * DAY).keys, ["old/a", "old/b"]);
    settle(&mut shard, 2 * DAY);
    assert_eq!(versions(&shard), named(&[("new/a", false)]));
    assert_eq!(shard.garbage_chunks(), 2);
}

#[test]
fn a_put_that_comes_between_search_and_command_survives() {
    let mut shard = Shard::new(Versioning::Off);
    set_rules(&mut shard, Versioning::Off, 2, vec![LifecycleRule { expire_days: Some(1), ..rule() }]);
    shard.put("k", "old");
    let found = search(&shard, 2 * DAY);
    assert_eq!(found.keys, ["k"]);
    let body = shard.body(10);
    shard.run(ShardCommand::PutObject(PutObject { modified_ms: 2 * DAY, ..put_of("k", "new", body) }));
    assert_eq!(shard.run(command(&found, 2 * DAY)), done());
    assert_eq!(shard.get("k", None), Ok("new".into()));
    // The same for rules that were taken back.
    shard.put("k", "old again");
    let found = search(&shard, 2 * DAY);
    shard.set_versioning(Versioning::Off, 3);
    assert_eq!(shard.run(command(&found, 2 * DAY)), done());
    assert_eq!(shard.get("k", None), Ok("old again".into()));
}

#[test]
fn versions_expire_by_a_marker_then_go_then_the_marker_goes() {
    let mut shard = Shard::new(Versioning::Enabled);
    let rules = vec![LifecycleRule { expire_days: Some(1), noncurrent_days: Some(1), ..rule() }];
    set_rules(&mut shard, Versioning::Enabled, 2, rules);
    shard.put("k", "v1");
    shard.put("k", "v2");
    shard.run(command(&search(&shard, 2 * DAY), 2 * DAY));
    // The current version expired; the marker is the newest now. (v1 was judged as before that.)
    assert_eq!(shard.get("k", None), Err(Reason::NoSuchKey).or(Err(Reason::DeleteMarker)));
    settle(&mut shard, 2 * DAY);
    assert_eq!(versions(&shard), named(&[("k", true), ("k", false)]), "v2 stopped being current just now");
    settle(&mut shard, 4 * DAY);
    assert_eq!(versions(&shard), named(&[]), "v2 went, and the marker that hid it");
    assert_eq!(shard.garbage_chunks(), 2);
}

#[test]
fn a_suspended_bucket_expires_into_one_null_marker() {
    let mut shard = Shard::new(Versioning::Off);
    shard.put("k", "null");
    shard.set_versioning(Versioning::Enabled, 2);
    shard.put("k", "v1");
    set_rules(&mut shard, Versioning::Suspended, 3, vec![LifecycleRule { expire_days: Some(1), ..rule() }]);
    shard.run(command(&search(&shard, 2 * DAY), 2 * DAY));
    assert_eq!(versions(&shard), named(&[("k", true), ("k", false)]), "the null version gave way to the null marker");
    assert_eq!(shard.garbage_chunks(), 1);
    settle(&mut shard, 2 * DAY);
    assert_eq!(shard.get("k", Some(&text("null"))), Err(Reason::DeleteMarker));
}

#[test]
fn uploads_are_aborted_and_commands_are_idempotent() {
    let mut shard = Shard::new(Versioning::Off);
    set_rules(&mut shard, Versioning::Off, 2, vec![LifecycleRule { abort_days: Some(1), ..rule() }]);
    let create = |id| CreateUpload { bucket: BUCKET, key: text("u"), upload: random(id), ..CreateUpload::default() };
    shard.run(ShardCommand::CreateUpload(create(5)));
    shard.run(ShardCommand::CreateUpload(CreateUpload { created_ms: 2 * DAY, ..create(6) }));
    let body = Some(shard.body(10));
    let part = PutPart { bucket: BUCKET, key: text("u"), upload: random(5), number: 1, body, ..PutPart::default() };
    shard.run(ShardCommand::PutPart(part));
    let found = search(&shard, 2 * DAY);
    assert_eq!(found.uploads.iter().map(|name| name.upload.clone()).collect::<Vec<_>>(), [random(5)]);
    assert_eq!(shard.run(command(&found, 2 * DAY)), done());
    assert_eq!(shard.garbage_chunks(), 1);
    assert_eq!(shard.run(command(&found, 2 * DAY)), done());
    assert_eq!(shard.garbage_chunks(), 1, "twice is once");
}

#[test]
fn long_searches_come_in_steps_and_miss_nothing() {
    let mut shard = Shard::new(Versioning::Enabled);
    set_rules(&mut shard, Versioning::Enabled, 2, vec![LifecycleRule { expire_days: Some(1), ..rule() }]);
    for number in 0..3000 {
        shard.put(&format!("k{number:05}"), "e");
    }
    let first =
        expire::due(&shard.rows, GROUP, BucketId(BUCKET), &Pools::default(), &Place::Start, at(2 * DAY)).unwrap();
    assert_eq!(first.keys.len(), expire::EXPIRE_NAMES_MAX);
    assert_eq!(search(&shard, 2 * DAY).keys.len(), 3000);
    let doubled = DuePage { keys: vec![text("k00001"), text("k00001")], ..DuePage::default() };
    assert_refused(shard.run(command(&doubled, 2 * DAY)), Reason::Invalid);
}
