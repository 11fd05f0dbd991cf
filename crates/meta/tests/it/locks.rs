//! Object lock inside apply: what a lock forbids is forbidden to every command.

use meta::map::command::{BucketConfigurationRow, ConfigurationKind};
use meta::object::command::*;
use meta::object::lock::{BucketLock, ObjectLock, RetentionMode};
use prost::Message;

use crate::shard::*;

const UNTIL: u64 = 10_000;

fn lock_bucket(shard: &mut Shard, lock: BucketLock) {
    let kind = ConfigurationKind::ObjectLock as i32;
    let row = BucketRow {
        bucket: BUCKET,
        versioning: Versioning::Enabled as i32,
        settings_version: 9,
        configurations: vec![BucketConfigurationRow {
            bucket: BUCKET,
            kind,
            version: 9,
            value: lock.encode_to_vec().into(),
        }],
        ..BucketRow::default()
    };
    assert_eq!(shard.run(ShardCommand::SetBucket(row)), done());
}

fn locked(shard: &mut Shard, lock: ObjectLock) -> ShardOutcome {
    let body = shard.body(10);
    let mut put = put_of("k", "e", body);
    put.attributes.as_mut().unwrap().lock = Some(lock);
    shard.run(ShardCommand::PutObject(put))
}

fn version_of(outcome: ShardOutcome) -> bytes::Bytes {
    match outcome {
        ShardOutcome::Written(written) => written.version,
        other => panic!("{other:?}"),
    }
}

fn lock(mode: RetentionMode) -> ObjectLock {
    ObjectLock { mode: mode as i32, retain_until_ms: UNTIL, legal_hold: false }
}

fn delete(shard: &mut Shard, version: &bytes::Bytes, now_ms: u64, bypass_governance: bool) -> ShardOutcome {
    let delete = DeleteObject {
        bucket: BUCKET,
        key: text("k"),
        version: Some(version.clone()),
        modified_ms: now_ms,
        marker_id: random(3),
        bypass_governance,
        ..DeleteObject::default()
    };
    shard.run(ShardCommand::DeleteObject(delete))
}

fn retain(shard: &mut Shard, mode: RetentionMode, until_ms: u64, now_ms: u64, bypass: bool) -> ShardOutcome {
    let change = ChangeVersion {
        bucket: BUCKET,
        key: text("k"),
        retention: Some(Retention { mode: mode as i32, until_ms }),
        bypass_governance: bypass,
        now_ms,
        ..ChangeVersion::default()
    };
    shard.run(ShardCommand::ChangeVersion(change))
}

fn hold(shard: &mut Shard, legal_hold: bool) -> ShardOutcome {
    let change =
        ChangeVersion { bucket: BUCKET, key: text("k"), legal_hold: Some(legal_hold), ..ChangeVersion::default() };
    shard.run(ShardCommand::ChangeVersion(change))
}

#[test]
fn compliance_yields_to_nobody_until_it_ends() {
    let mut shard = Shard::new(Versioning::Enabled);
    lock_bucket(&mut shard, BucketLock::default());
    let written = locked(&mut shard, lock(RetentionMode::Compliance));
    let version = version_of(written);
    for bypass in [false, true] {
        assert_refused(delete(&mut shard, &version, UNTIL - 1, bypass), Reason::ObjectLocked);
        for (mode, until) in
            [(RetentionMode::Compliance, UNTIL - 1), (RetentionMode::Governance, UNTIL * 2), (RetentionMode::None, 0)]
        {
            assert_refused(retain(&mut shard, mode, until, 1, bypass), Reason::ObjectLocked);
        }
    }
    version_of(retain(&mut shard, RetentionMode::Compliance, UNTIL + 5, 1, false));
    assert_refused(delete(&mut shard, &version, UNTIL + 4, true), Reason::ObjectLocked);
    assert_eq!(shard.get("k", Some(&version)), Ok("e".into()));
    // A plain DELETE only hides it.
    assert!(matches!(shard.delete("k", None), ShardOutcome::Deleted(deleted) if deleted.marker));
    assert_eq!(shard.get("k", Some(&version)), Ok("e".into()));
    assert!(matches!(delete(&mut shard, &version, UNTIL + 5, false), ShardOutcome::Deleted(_)));
    assert_eq!(shard.garbage_chunks(), 1);
}

#[test]
fn governance_yields_to_the_right_to_bypass_it_and_a_hold_to_nothing() {
    let mut shard = Shard::new(Versioning::Enabled);
    lock_bucket(&mut shard, BucketLock::default());
    let written = locked(&mut shard, lock(RetentionMode::Governance));
    let version = version_of(written);
    assert_refused(delete(&mut shard, &version, 1, false), Reason::ObjectLocked);
    version_of(hold(&mut shard, true));
    assert_refused(delete(&mut shard, &version, 1, true), Reason::ObjectLocked);
    assert_refused(delete(&mut shard, &version, UNTIL + 1, true), Reason::ObjectLocked);
    version_of(hold(&mut shard, false));
    assert!(matches!(delete(&mut shard, &version, 1, true), ShardOutcome::Deleted(_)));
}

#[test]
fn the_default_retention_counts_from_the_write_and_only_where_none_is_given() {
    let mut shard = Shard::new(Versioning::Enabled);
    let days = BucketLock { default_mode: RetentionMode::Governance as i32, default_days: 1, default_years: 0 };
    lock_bucket(&mut shard, days);
    let lock_now = |shard: &Shard| match shard.read(ShardRead::GetObject(GetObject {
        bucket: BUCKET,
        key: text("k"),
        version: None,
    })) {
        ShardFound::Object(object) => object.attributes.unwrap().lock,
        other => panic!("{other:?}"),
    };
    shard.put("k", "e");
    let day = 24 * 3600 * 1000;
    let expected =
        ObjectLock { mode: RetentionMode::Governance as i32, retain_until_ms: 1000 + day, legal_hold: false };
    assert_eq!(lock_now(&shard), Some(expected));
    locked(&mut shard, lock(RetentionMode::Compliance));
    assert_eq!(lock_now(&shard), Some(lock(RetentionMode::Compliance)));
    locked(&mut shard, ObjectLock { legal_hold: true, ..ObjectLock::default() });
    assert_eq!(lock_now(&shard), Some(ObjectLock { legal_hold: true, ..expected }));
}

#[test]
fn a_bucket_without_object_lock_takes_no_locks() {
    let mut shard = Shard::new(Versioning::Enabled);
    assert_refused(locked(&mut shard, lock(RetentionMode::Governance)), Reason::NotLockable);
    shard.put("k", "e");
    assert_refused(retain(&mut shard, RetentionMode::Governance, UNTIL, 1, true), Reason::NotLockable);
    assert_refused(hold(&mut shard, true), Reason::NotLockable);
}
