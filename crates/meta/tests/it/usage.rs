//! Quotas: the count is exact whatever happens while it is made, and no write goes beyond the quota.

use base::ids::BucketId;
use meta::map::command::{BucketConfigurationRow, ConfigurationKind};
use meta::object::command::*;
use meta::object::usage::{CountUsage, Quota, usage};
use proptest::prelude::*;
use prost::Message;

use crate::shard::*;

fn set_quota(shard: &mut Shard, versioning: Versioning, version: u64, quota: Option<Quota>) {
    let row = |quota: Quota| BucketConfigurationRow {
        bucket: BUCKET,
        kind: ConfigurationKind::Quota as i32,
        version,
        value: quota.encode_to_vec().into(),
    };
    let row = BucketRow {
        bucket: BUCKET,
        versioning: versioning as i32,
        settings_version: version,
        configurations: quota.map(row).into_iter().collect(),
        ..BucketRow::default()
    };
    assert_eq!(shard.run(ShardCommand::SetBucket(row)), done());
}

fn count(shard: &mut Shard) -> ShardOutcome {
    shard.run(ShardCommand::CountUsage(CountUsage { bucket: BUCKET }))
}

fn counted(shard: &Shard) -> Option<(u64, u64)> {
    usage(&shard.rows, GROUP, BucketId(BUCKET)).unwrap().map(|usage| (usage.bytes, usage.objects))
}

fn bytes(max: u64) -> Option<Quota> {
    Some(Quota { bytes_max: Some(max), objects_max: None })
}

#[test]
fn a_quota_stops_writes_and_never_deletes() {
    let mut shard = Shard::new(Versioning::Off);
    shard.put("a", "e");
    shard.put("b", "e");
    assert_eq!(counted(&shard), None, "nothing is counted without a quota");
    set_quota(&mut shard, Versioning::Off, 2, bytes(25));
    assert_eq!(count(&mut shard), done());
    assert_eq!(counted(&shard), Some((20, 2)));
    assert_refused(shard.put("c", "e"), Reason::QuotaExceeded);
    shard.written("a", "replaced");
    assert_eq!(counted(&shard), Some((20, 2)), "an overwrite takes the room of what it replaces");
    shard.delete("a", None);
    shard.written("c", "e");
    assert_eq!(counted(&shard), Some((20, 2)));
    set_quota(&mut shard, Versioning::Off, 3, Some(Quota { bytes_max: None, objects_max: Some(1) }));
    assert_refused(shard.put("d", "e"), Reason::QuotaExceeded);
    shard.written("c", "same number");
    set_quota(&mut shard, Versioning::Off, 4, None);
    assert_eq!(counted(&shard), None);
    shard.written("d", "e");
}

#[test]
fn multipart_objects_count_when_they_are_completed() {
    let mut shard = Shard::new(Versioning::Off);
    set_quota(&mut shard, Versioning::Off, 2, bytes(15));
    count(&mut shard);
    let upload = |shard: &mut Shard, id, key: &str, size| {
        let create = CreateUpload { bucket: BUCKET, key: text(key), upload: random(id), ..CreateUpload::default() };
        shard.run(ShardCommand::CreateUpload(create));
        let body = Some(shard.body(size));
        let etag = "p".to_owned();
        let (key, upload) = (text(key), random(id));
        let part = PutPart {
            bucket: BUCKET,
            key: key.clone(),
            upload: upload.clone(),
            number: 1,
            body,
            etag,
            ..PutPart::default()
        };
        shard.run(ShardCommand::PutPart(part));
        let parts = vec![NamedPart { number: 1, etag: "p".into(), checksums: vec![] }];
        let version_id = random(id);
        shard.run(ShardCommand::CompleteUpload(CompleteUpload {
            bucket: BUCKET,
            key,
            upload,
            parts,
            version_id,
            ..CompleteUpload::default()
        }))
    };
    assert!(matches!(upload(&mut shard, 1, "a", 12), ShardOutcome::Written(_)));
    assert_eq!(counted(&shard), Some((12, 1)));
    assert_refused(upload(&mut shard, 2, "b", 12), Reason::QuotaExceeded);
    assert!(matches!(upload(&mut shard, 3, "a", 13), ShardOutcome::Written(_)), "it replaces 12 bytes");
    assert_eq!(counted(&shard), Some((13, 1)));
}

/// What a full walk over the versions finds.
fn truth(shard: &Shard) -> (u64, u64) {
    let page = shard.list_versions(ListVersions { limit: 1000, ..ListVersions::default() });
    let objects = page.objects.iter().filter(|row| !row.delete_marker);
    objects.fold((0, 0), |(bytes, count), row| (bytes + row.body.as_ref().unwrap().size, count + 1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Puts, deletes, deletes of versions and changes of versioning, before, while and after rows are counted.
    #[test]
    fn the_count_is_what_a_walk_finds(steps in proptest::collection::vec((0u8..6, 0u8..4, 0usize..8), 1..60), begin in 0usize..60) {
        let mut shard = Shard::new(Versioning::Off);
        let mut versioning = Versioning::Off;
        let mut settings = 1;
        let mut quota = None;
        for (number, (what, key, pick)) in steps.into_iter().enumerate() {
            if number == begin {
                settings += 1;
                quota = bytes(1 << 40);
                set_quota(&mut shard, versioning, settings, quota);
                count(&mut shard);
            }
            let key = format!("k{key}");
            match what {
                0..=2 => drop(shard.put(&key, "e")),
                3 => drop(shard.delete(&key, None)),
                4 => {
                    let page = shard.list_versions(ListVersions { limit: 1000, ..ListVersions::default() });
                    if let Some(row) = page.objects.get(pick) {
                        let (key, version) = (String::from_utf8_lossy(&row.key).into_owned(), row.version.clone());
                        shard.delete(&key, Some(&version));
                    }
                }
                _ => {
                    versioning = if versioning == Versioning::Enabled { Versioning::Suspended } else { Versioning::Enabled };
                    settings += 1;
                    set_quota(&mut shard, versioning, settings, quota);
                }
            }
            if quota.is_some() {
                prop_assert_eq!(counted(&shard), Some(truth(&shard)));
            }
        }
    }
}
