//! Fence tokens: once a later holder has written, an earlier one never does.

use meta::map::command::{BucketConfigurationRow, ConfigurationKind};
use meta::object::command::*;
use meta::object::fence::{FENCES_MAX, Fence, FencePolicy};
use proptest::prelude::*;
use prost::Message;

use crate::shard::*;

fn fence(key: &str, token: u64) -> Option<Fence> {
    Some(Fence { key: text(key), token })
}

fn under(shard: &mut Shard, fence: Option<Fence>, command: ShardCommand) -> ShardOutcome {
    shard.entry(ShardEntry { fence, command: Some(command), ..ShardEntry::default() }).1
}

fn put(shard: &mut Shard, key: &str, etag: &str, fence: Option<Fence>) -> ShardOutcome {
    let body = shard.body(10);
    under(shard, fence, ShardCommand::PutObject(put_of(key, etag, body)))
}

fn delete(shard: &mut Shard, key: &str, fence: Option<Fence>) -> ShardOutcome {
    let delete = DeleteObject { bucket: BUCKET, key: text(key), marker_id: random(9), ..DeleteObject::default() };
    under(shard, fence, ShardCommand::DeleteObject(delete))
}

fn requiring(settings_version: u64) -> ShardCommand {
    let value = FencePolicy { required: true }.encode_to_vec().into();
    let kind = ConfigurationKind::Fence as i32;
    let row = BucketConfigurationRow { bucket: BUCKET, kind, version: settings_version, value };
    let row = BucketRow { bucket: BUCKET, settings_version, configurations: vec![row], ..BucketRow::default() };
    ShardCommand::SetBucket(row)
}

fn require(shard: &mut Shard, settings_version: u64) {
    assert_eq!(shard.run(requiring(settings_version)), done());
}

#[track_caller]
fn assert_written(outcome: ShardOutcome) {
    assert!(matches!(outcome, ShardOutcome::Written(_) | ShardOutcome::Deleted(_)), "{outcome:?}");
}

#[test]
fn a_lower_token_is_refused_whatever_it_writes() {
    let mut shard = Shard::new(Versioning::Off);
    assert_written(put(&mut shard, "a", "1", fence("lock", 7)));
    assert_written(put(&mut shard, "b", "2", fence("lock", 7)));
    assert_written(put(&mut shard, "b", "3", fence("lock", 9)));
    // The floor is the bucket's, not the object's.
    assert_refused(put(&mut shard, "a", "4", fence("lock", 8)), Reason::StaleFence);
    assert_refused(delete(&mut shard, "a", fence("lock", 7)), Reason::StaleFence);
    let part = PutPart { bucket: BUCKET, key: text("a"), upload: random(1), number: 1, ..PutPart::default() };
    assert_refused(under(&mut shard, fence("lock", 7), ShardCommand::PutPart(part)), Reason::StaleFence);
    assert_eq!(shard.get("a", None), Ok("1".into()));
    assert_written(put(&mut shard, "a", "5", fence("other", 1)));
    assert_written(put(&mut shard, "a", "6", None));
    assert_written(delete(&mut shard, "a", fence("lock", 9)));
}

#[test]
fn an_operator_frees_a_lock_that_somebody_has_taken_for_ever() {
    let mut shard = Shard::new(Versioning::Off);
    let reset = |key: &str, token| ShardCommand::ResetFence(ResetFence { bucket: BUCKET, key: text(key), token });
    assert_written(put(&mut shard, "a", "1", fence("lock", u64::MAX)));
    assert_refused(put(&mut shard, "a", "2", fence("lock", 7)), Reason::StaleFence);
    assert_eq!(shard.run(reset("lock", Some(7))), done());
    assert_refused(put(&mut shard, "a", "2", fence("lock", 6)), Reason::StaleFence);
    assert_written(put(&mut shard, "a", "2", fence("lock", 7)));
    for number in 1..FENCES_MAX {
        delete(&mut shard, "absent", fence(&number.to_string(), 1));
    }
    assert_refused(delete(&mut shard, "absent", fence("one more", 1)), Reason::Invalid);
    assert_eq!(shard.run(reset("lock", None)), done());
    assert_eq!(shard.run(reset("lock", None)), done(), "it is gone already, and counts once");
    assert_written(delete(&mut shard, "absent", fence("one more", 1)));
    assert_refused(delete(&mut shard, "absent", fence("lock", 1)), Reason::Invalid);
}

#[test]
fn a_bucket_never_asks_for_what_its_shard_does_not_know() {
    let mut shard = Shard::at_level(Versioning::Off, 2);
    assert_refused(shard.run(requiring(2)), Reason::Invalid);
    assert_written(shard.put("a", "1"));
    assert_refused(put(&mut shard, "a", "2", fence("lock", 1)), Reason::Invalid);
}

#[test]
fn a_token_is_seen_even_when_its_write_is_refused() {
    let mut shard = Shard::new(Versioning::Off);
    assert_written(put(&mut shard, "a", "1", fence("lock", 1)));
    let body = shard.body(10);
    let absent = Some(Precondition { must_not_exist: true, ..Precondition::default() });
    let conditional = PutObject { precondition: absent, ..put_of("a", "2", body) };
    let refused = under(&mut shard, fence("lock", 2), ShardCommand::PutObject(conditional));
    assert_refused(refused, Reason::PreconditionFailed);
    assert_refused(put(&mut shard, "a", "3", fence("lock", 1)), Reason::StaleFence);
}

#[test]
fn a_bucket_may_require_tokens() {
    let mut shard = Shard::new(Versioning::Off);
    shard.written("a", "1");
    require(&mut shard, 2);
    assert_refused(shard.put("a", "2"), Reason::FenceRequired);
    assert_refused(shard.delete("a", None), Reason::FenceRequired);
    let change = ChangeVersion { bucket: BUCKET, key: text("a"), ..ChangeVersion::default() };
    assert_refused(shard.run(ShardCommand::ChangeVersion(change)), Reason::FenceRequired);
    // Parts are nothing yet; what makes an object of them, or throws them away, is.
    let create = CreateUpload { bucket: BUCKET, key: text("u"), upload: random(1), ..CreateUpload::default() };
    assert_eq!(shard.run(ShardCommand::CreateUpload(create)), done());
    let abort = AbortUpload { bucket: BUCKET, key: text("u"), upload: random(1) };
    assert_refused(shard.run(ShardCommand::AbortUpload(abort.clone())), Reason::FenceRequired);
    assert_eq!(under(&mut shard, fence("lock", 1), ShardCommand::AbortUpload(abort)), done());
    assert_written(put(&mut shard, "a", "3", fence("lock", 1)));
}

#[test]
fn a_retry_is_answered_although_the_floor_has_risen() {
    let mut shard = Shard::new(Versioning::Off);
    let slot = SlotRef { node: 1, generation: 1, slot: 0, sequence: 1 };
    let body = shard.body(10);
    let command = Some(ShardCommand::PutObject(put_of("a", "1", body)));
    let entry = ShardEntry { slot: Some(slot), range_epoch: 1, fence: fence("lock", 1), command };
    let first = shard.entry(entry.clone()).1;
    assert_written(put(&mut shard, "a", "2", fence("lock", 2)));
    assert_eq!(shard.entry(entry).1, first);
    assert_eq!(shard.get("a", None), Ok("2".into()), "it was not executed again");
}

#[test]
fn keys_are_bounded_and_go_with_the_bucket() {
    let mut shard = Shard::new(Versioning::Off);
    let before = shard.rows.len();
    assert_refused(put(&mut shard, "a", "1", fence("", 1)), Reason::Invalid);
    assert_refused(put(&mut shard, "a", "1", fence(&"k".repeat(129), 1)), Reason::Invalid);
    for number in 0..FENCES_MAX {
        delete(&mut shard, "absent", fence(&number.to_string(), 1));
    }
    assert_refused(delete(&mut shard, "absent", fence("one more", 1)), Reason::Invalid);
    assert_refused(delete(&mut shard, "absent", fence("3", 0)), Reason::StaleFence);
    assert_eq!(shard.run(ShardCommand::FreezeBucket(BucketRef { bucket: BUCKET })), done());
    // A late write does not leave a floor behind.
    assert_refused(delete(&mut shard, "absent", fence("3", 5)), Reason::BucketFrozen);
    let mut steps = 0;
    while shard.run(ShardCommand::DropBucket(BucketRef { bucket: BUCKET })) != done() {
        steps += 1;
    }
    assert!(steps >= 10, "{steps}: a bounded number in one step");
    assert_eq!(shard.rows.len(), before);
}

#[test]
fn what_is_no_write_of_a_user_takes_no_fence() {
    let mut shard = Shard::new(Versioning::Off);
    let retire = ShardCommand::RetireGarbage(RetireGarbage { sequences: vec![1] });
    assert_refused(under(&mut shard, fence("lock", 1), retire), Reason::Invalid);
}

proptest! {
    #[test]
    fn accepted_tokens_of_a_key_never_fall(tokens in proptest::collection::vec((0u64..3, 0u64..6), 1..40)) {
        let mut shard = Shard::new(Versioning::Off);
        let mut highest = [0; 3];
        for (key, token) in tokens {
            let outcome = put(&mut shard, "a", "e", fence(&format!("lock{key}"), token));
            let accepted = matches!(outcome, ShardOutcome::Written(_));
            prop_assert_eq!(accepted, token >= highest[key as usize]);
            highest[key as usize] = token.max(highest[key as usize]);
        }
    }
}
