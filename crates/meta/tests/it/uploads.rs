//! Multipart uploads: what peers got wrong.

use bytes::Bytes;
use meta::object::command::*;

use crate::shard::*;

const PART: u64 = 5 << 20;

/// An upload with parts 1..=`count` of the minimum size.
pub fn upload(shard: &mut Shard, key: &str, id: u128, count: u32) -> Vec<NamedPart> {
    assert_eq!(shard.run(create(key, id)), done());
    (1..=count).map(|number| put_part(shard, key, id, number, PART)).collect()
}

fn create(key: &str, id: u128) -> ShardCommand {
    let attributes = Attributes {
        headers: vec![Header { name: "content-type".into(), value: "text/x".into() }],
        ..Attributes::default()
    };
    ShardCommand::CreateUpload(CreateUpload {
        bucket: BUCKET,
        key: text(key),
        upload: random(id),
        attributes: Some(attributes),
        created_ms: 17,
        ..CreateUpload::default()
    })
}

fn put_part(shard: &mut Shard, key: &str, id: u128, number: u32, size: u64) -> NamedPart {
    let body = shard.body(size);
    let etag = format!("p{number}-{size}");
    let put = PutPart {
        bucket: BUCKET,
        key: text(key),
        upload: random(id),
        number,
        body: Some(body),
        etag: etag.clone(),
        checksums: vec![checksum("sum")],
        modified_ms: 18,
    };
    assert!(matches!(shard.run(ShardCommand::PutPart(put)), ShardOutcome::Written(_)));
    NamedPart { number, etag, checksums: vec![checksum("sum")] }
}

fn checksum(value: &str) -> Checksum {
    Checksum { algorithm: "crc32".into(), value: value.into(), composite: false }
}

fn complete_of(key: &str, id: u128, parts: Vec<NamedPart>) -> CompleteUpload {
    CompleteUpload {
        bucket: BUCKET,
        key: text(key),
        upload: random(id),
        parts,
        modified_ms: 19,
        version_id: random(1),
        etag: format!("m-{id}"),
        ..CompleteUpload::default()
    }
}

pub fn complete(key: &str, id: u128, parts: Vec<NamedPart>) -> ShardCommand {
    ShardCommand::CompleteUpload(complete_of(key, id, parts))
}

fn abort(key: &str, id: u128) -> ShardCommand {
    ShardCommand::AbortUpload(AbortUpload { bucket: BUCKET, key: text(key), upload: random(id) })
}

#[test]
fn a_completed_object_keeps_its_part_rows_and_its_attributes() {
    let mut shard = Shard::new(Versioning::Off);
    let named = upload(&mut shard, "k", 1, 3);
    let outcome = shard.run(complete("k", 1, named));
    let written = Written { version: Bytes::new(), etag: "m-1".into(), modified_ms: 19, size: 3 * PART };
    assert_eq!(outcome, ShardOutcome::Written(written));
    let get = GetObject { bucket: BUCKET, key: text("k"), version: None };
    let ShardFound::Object(object) = shard.read(ShardRead::GetObject(get)) else { panic!() };
    assert_eq!(object.attributes.unwrap().headers[0].value, "text/x");
    let body = object.body.unwrap();
    assert_eq!(body.upload, random(1));
    let sizes: Vec<_> = body.parts.iter().map(|part| (part.number, part.size)).collect();
    assert_eq!(sizes, vec![(1, PART), (2, PART), (3, PART)]);
    let list = ListParts { bucket: BUCKET, key: text("k"), upload: random(1), after: 1, limit: 1 };
    let ShardFound::Parts(page) = shard.read(ShardRead::ListParts(list)) else { panic!() };
    assert_eq!((page.parts[0].number, page.truncated), (2, true));
    assert_eq!(shard.garbage_chunks(), 0);
    shard.delete("k", None);
    assert_eq!(shard.garbage_chunks(), 3);
}

#[test]
fn completing_again_answers_the_same_until_the_object_is_gone() {
    for versioning in [Versioning::Off, Versioning::Enabled] {
        let mut shard = Shard::new(versioning);
        let named = upload(&mut shard, "k", 1, 2);
        let first = shard.run(complete("k", 1, named.clone()));
        // A condition that held the first time does not fail the second time.
        let again = CompleteUpload {
            precondition: Some(Precondition { must_not_exist: true, ..Precondition::default() }),
            modified_ms: 20,
            version_id: random(2),
            ..complete_of("k", 1, named.clone())
        };
        assert_eq!(shard.run(ShardCommand::CompleteUpload(again.clone())), first);
        let other = CompleteUpload { etag: "m-other".into(), ..again.clone() };
        assert_refused(shard.run(ShardCommand::CompleteUpload(other)), Reason::NoSuchUpload);
        let ShardOutcome::Written(written) = first else { panic!() };
        shard.delete("k", (versioning == Versioning::Enabled).then_some(&written.version));
        assert_refused(shard.run(ShardCommand::CompleteUpload(again)), Reason::NoSuchUpload);
        assert_eq!(shard.garbage_chunks(), 2);
    }
}

#[test]
fn abort_against_complete_leaves_either_and_never_half() {
    let mut shard = Shard::new(Versioning::Off);
    let named = upload(&mut shard, "k", 1, 2);
    assert_eq!(shard.run(abort("k", 1)), done());
    assert_refused(shard.run(complete("k", 1, named)), Reason::NoSuchUpload);
    assert_eq!(shard.get("k", None), Err(Reason::NoSuchKey));
    assert_eq!(shard.garbage_chunks(), 2);

    let named = upload(&mut shard, "k", 2, 2);
    assert!(matches!(shard.run(complete("k", 2, named)), ShardOutcome::Written(_)));
    assert_refused(shard.run(abort("k", 2)), Reason::NoSuchUpload);
    assert_eq!(shard.get("k", None), Ok("m-2".into()));
    assert_eq!(shard.garbage_chunks(), 2);
}

#[test]
fn parts_may_be_uploaded_again_and_left_out() {
    let mut shard = Shard::new(Versioning::Off);
    let mut named = upload(&mut shard, "k", 1, 4);
    let stale = named[1].clone();
    named[1] = put_part(&mut shard, "k", 1, 2, PART + 1);
    assert_eq!(shard.garbage_chunks(), 1);
    let with_stale = vec![named[0].clone(), stale];
    assert_refused(shard.run(complete("k", 1, with_stale)), Reason::InvalidPart);
    assert!(matches!(shard.run(complete("k", 1, named[1..3].to_vec())), ShardOutcome::Written(_)));
    assert_eq!(shard.garbage_chunks(), 3);
    let list = ListParts { bucket: BUCKET, key: text("k"), upload: random(1), after: 0, limit: 10 };
    let ShardFound::Parts(page) = shard.read(ShardRead::ListParts(list)) else { panic!() };
    assert_eq!(page.parts.iter().map(|part| part.number).collect::<Vec<_>>(), vec![2, 3]);
}

#[test]
fn what_cannot_be_completed_says_why() {
    let mut shard = Shard::new(Versioning::Off);
    let named = upload(&mut shard, "k", 1, 3);
    let small = put_part(&mut shard, "k", 1, 2, PART - 1);
    let with = |parts: Vec<NamedPart>| complete("k", 1, parts);
    let (one, three) = (named[0].clone(), named[2].clone());
    assert_refused(shard.run(with(vec![])), Reason::Invalid);
    assert_refused(shard.run(with(vec![three.clone(), one.clone()])), Reason::InvalidPartOrder);
    assert_refused(shard.run(with(vec![one.clone(), one.clone()])), Reason::InvalidPartOrder);
    assert_refused(shard.run(with(vec![one.clone(), small.clone(), three.clone()])), Reason::EntityTooSmall);
    let missing = NamedPart { number: 9, ..one.clone() };
    assert_refused(shard.run(with(vec![one.clone(), missing])), Reason::InvalidPart);
    let wrong_sum = NamedPart { checksums: vec![checksum("other")], ..one.clone() };
    assert_refused(shard.run(with(vec![wrong_sum])), Reason::InvalidPart);
    let wrong_size = CompleteUpload { size_expected: Some(1), ..complete_of("k", 1, vec![one.clone()]) };
    assert_refused(shard.run(ShardCommand::CompleteUpload(wrong_size)), Reason::Invalid);
    let taken = CompleteUpload {
        precondition: Some(Precondition { must_exist: true, ..Precondition::default() }),
        ..complete_of("k", 1, vec![one.clone()])
    };
    assert_refused(shard.run(ShardCommand::CompleteUpload(taken)), Reason::NoSuchKey);
    // The last part may be small; and after all the refusals everything is still there.
    let right_size = CompleteUpload { size_expected: Some(2 * PART - 1), ..complete_of("k", 1, vec![one, small]) };
    assert!(matches!(shard.run(ShardCommand::CompleteUpload(right_size)), ShardOutcome::Written(_)));
}

#[test]
fn an_object_has_at_most_5_tib() {
    let part = u64::from(u32::MAX);
    let parts = meta::object::OBJECT_SIZE_MAX.div_ceil(part) as u32;
    let mut shard = Shard::new(Versioning::Off);
    shard.run(create("k", 1));
    let named: Vec<NamedPart> = (1..=parts).map(|number| put_part(&mut shard, "k", 1, number, part)).collect();
    assert!(u64::from(parts) * part > meta::object::OBJECT_SIZE_MAX);
    assert_refused(shard.run(complete("k", 1, named.clone())), Reason::EntityTooLarge);
    let fits = named[..named.len() - 1].to_vec();
    let size = fits.len() as u64 * part;
    assert!(matches!(shard.run(complete("k", 1, fits)), ShardOutcome::Written(written) if written.size == size));
}

#[test]
fn part_numbers_and_upload_ids_are_checked() {
    let mut shard = Shard::new(Versioning::Off);
    upload(&mut shard, "k", 1, 1);
    for number in [0, 10_001, u32::MAX] {
        let body = Some(shard.body(5));
        let put = PutPart { bucket: BUCKET, key: text("k"), upload: random(1), number, body, ..PutPart::default() };
        assert_refused(shard.run(ShardCommand::PutPart(put)), Reason::Invalid);
    }
    assert_refused(shard.run(create("k", 1)), Reason::Invalid);
    assert_refused(shard.run(abort("other", 1)), Reason::NoSuchUpload);
    let short = AbortUpload { bucket: BUCKET, key: text("k"), upload: text("short") };
    assert_refused(shard.run(ShardCommand::AbortUpload(short)), Reason::Invalid);
}

#[test]
fn uploads_are_listed_by_key_then_id_with_markers_and_prefixes() {
    let mut shard = Shard::new(Versioning::Off);
    for (key, id) in [("a", 3), ("a", 1), ("b/x", 2), ("b/y", 4), ("c", 5)] {
        upload(&mut shard, key, id, 1);
    }
    let named = upload(&mut shard, "c", 6, 1);
    shard.run(complete("c", 6, named));
    let list = |shard: &Shard, list: ListUploads| {
        let list = ListUploads { bucket: BUCKET, delimiter: text("/"), ..list };
        let ShardFound::Uploads(page) = shard.read(ShardRead::ListUploads(list)) else { panic!() };
        let ids: Vec<_> = page.uploads.iter().map(|upload| (upload.key.clone(), upload.upload.clone())).collect();
        (ids, page.prefixes.clone(), page)
    };
    let (ids, prefixes, page) = list(&shard, ListUploads { limit: 10, ..ListUploads::default() });
    assert_eq!(ids, vec![(text("a"), random(1)), (text("a"), random(3)), (text("c"), random(5))]);
    assert_eq!(prefixes, vec![text("b/")]);
    assert!(!page.truncated);

    let (mut all, mut key_marker, mut upload_marker) = (Vec::new(), Bytes::new(), Bytes::new());
    loop {
        let (ids, prefixes, page) =
            list(&shard, ListUploads { limit: 1, key_marker, upload_marker, ..ListUploads::default() });
        all.extend(ids.into_iter().map(|(key, _)| key));
        all.extend(prefixes);
        if !page.truncated {
            break;
        }
        (key_marker, upload_marker) = (page.next_key, page.next_upload);
    }
    assert_eq!(all, ["a", "a", "b/", "c"].map(text));
}

#[test]
fn dropping_a_bucket_aborts_its_uploads_in_steps() {
    let mut shard = Shard::new(Versioning::Off);
    for id in 0..2500 {
        upload(&mut shard, "k", id + 1, 1);
    }
    let bucket = BucketRef { bucket: BUCKET };
    assert_eq!(shard.run(ShardCommand::FreezeBucket(bucket.clone())), done());
    let mut steps = 0;
    while shard.run(ShardCommand::DropBucket(bucket.clone())) == ShardOutcome::Done(Done { more: true }) {
        steps += 1;
    }
    assert_eq!(steps, 2);
    assert_eq!(shard.garbage_chunks(), 2500);
    let list = ListUploads { bucket: BUCKET, limit: 1, ..ListUploads::default() };
    let ShardFound::Refused(refused) = shard.read(ShardRead::ListUploads(list)) else { panic!() };
    assert_eq!(refused.reason(), Reason::NoSuchBucket);
}
