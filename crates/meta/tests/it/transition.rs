//! Transitions: what a search finds, and the command by which bytes change their pool.

use base::ids::BucketId;
use bytes::Bytes;
use meta::object::command::*;
use meta::object::expire::{self, MOVES_MAX, Move, Place, Pools};
use meta::object::lifecycle::{LifecycleRule, Moment, Transition};
use meta::object::transition::MoveBody;

use crate::lifecycle::{DAY, rule, set_rules};
use crate::shard::*;

fn to(class: &str, days: u32) -> Transition {
    Transition { class: class.into(), days, ..Transition::default() }
}

fn pools() -> Pools {
    Pools {
        by_class: [("STANDARD".into(), 1), ("WARM".into(), 2), ("COLD".into(), 3)].into(),
        own: 1,
        ..Pools::default()
    }
}

fn search(shard: &Shard, now_ms: u64) -> Vec<Move> {
    search_among(shard, &pools(), now_ms)
}

fn search_among(shard: &Shard, pools: &Pools, now_ms: u64) -> Vec<Move> {
    let (mut moves, mut place) = (Vec::new(), Place::Start);
    loop {
        let at = Moment { now_ms, day_ms: 0 };
        let page = expire::due(&shard.rows, GROUP, BucketId(BUCKET), pools, &place, at).unwrap();
        moves.extend(page.moves);
        match page.next {
            Some(next) => place = next,
            None => return moves,
        }
    }
}

fn destinations(moves: &[Move]) -> Vec<(&[u8], u32)> {
    moves.iter().map(|found| (found.version.key.as_ref(), found.pool)).collect()
}

/// The command of a worker that has stored the bytes of one chunk anew.
fn command(shard: &mut Shard, found: &Move) -> MoveBody {
    let body = found.version.body.clone().unwrap();
    MoveBody {
        bucket: BUCKET,
        key: found.version.key.clone(),
        order: found.order,
        modified_ms: found.version.modified_ms,
        pool_before: found.version.attributes.as_ref().unwrap().pool,
        chunks_before: body.chunks.clone(),
        body: (!body.chunks.is_empty()).then(|| shard.body(body.size)),
        pool: found.pool,
        ..MoveBody::default()
    }
}

fn read(shard: &Shard, key: &str) -> ObjectVersion {
    match shard.read(ShardRead::GetObject(GetObject { bucket: BUCKET, key: text(key), version: None })) {
        ShardFound::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_transition_that_fell_due_last_counts() {
    let mut shard = Shard::new(Versioning::Off);
    let transitions = vec![to("COLD", 7), to("WARM", 1), to("NOWHERE", 2)];
    set_rules(&mut shard, Versioning::Off, 2, vec![LifecycleRule { transitions, prefix: text("a"), ..rule() }]);
    shard.put("a", "e");
    shard.put("b", "e");
    assert_eq!(destinations(&search(&shard, 2 * DAY - 1)), []);
    assert_eq!(destinations(&search(&shard, 2 * DAY)), [(&b"a"[..], 2)]);
    assert_eq!(destinations(&search(&shard, 3 * DAY)), [], "a class that is not there is not moved to");
    assert_eq!(destinations(&search(&shard, 8 * DAY)), [(&b"a"[..], 3)]);
    let found = search(&shard, 8 * DAY).remove(0);
    let before = read(&shard, "a");
    let moved = command(&mut shard, &found);
    assert_eq!(shard.run(ShardCommand::MoveBody(moved.clone())), done());
    assert_eq!(destinations(&search(&shard, 8 * DAY)), [], "it is where it belongs");
    let after = read(&shard, "a");
    assert_eq!(after.attributes.as_ref().unwrap().pool, 3);
    assert_ne!(after.body, before.body);
    let same =
        |row: &ObjectVersion| (row.modified_ms, row.version.clone(), row.attributes.as_ref().unwrap().etag.clone());
    assert_eq!(same(&after), same(&before), "only the place of the bytes changes");
    assert_eq!(shard.garbage_chunks(), 1, "the old chunk goes");
    // A late copy of the command finds nothing to do.
    assert_refused(shard.run(ShardCommand::MoveBody(moved)), Reason::PreconditionFailed);
    assert_eq!(shard.garbage_chunks(), 1);
}

#[test]
fn a_version_that_was_replaced_removed_or_moved_meanwhile_stays_as_it_is() {
    let mut shard = Shard::new(Versioning::Off);
    set_rules(&mut shard, Versioning::Off, 2, vec![LifecycleRule { transitions: vec![to("WARM", 1)], ..rule() }]);
    shard.put("k", "old");
    let found = search(&shard, 2 * DAY).remove(0);
    let late = command(&mut shard, &found);
    // The same date, ETag and size: only the chunks tell the new object from the old.
    shard.put("k", "old");
    let new = read(&shard, "k");
    assert_refused(shard.run(ShardCommand::MoveBody(late.clone())), Reason::PreconditionFailed);
    assert_eq!(read(&shard, "k"), new);
    shard.delete("k", None);
    assert_refused(shard.run(ShardCommand::MoveBody(late.clone())), Reason::PreconditionFailed);
    // A move that forgets chunks, or changes the size, is none.
    shard.put("k", "newer");
    let found = search(&shard, 2 * DAY).remove(0);
    let whole = command(&mut shard, &found);
    let shorter = Some(shard.body(9));
    assert_refused(shard.run(ShardCommand::MoveBody(MoveBody { body: shorter, ..whole.clone() })), Reason::Invalid);
    assert_refused(shard.run(ShardCommand::MoveBody(MoveBody { body: None, ..whole.clone() })), Reason::Invalid);
    let inline = Body { size: 10, inline: Some(Bytes::from_static(&[7; 10])), ..Body::default() };
    assert_refused(shard.run(ShardCommand::MoveBody(MoveBody { body: Some(inline), ..whole })), Reason::Invalid);
}

#[test]
fn noncurrent_versions_and_those_that_ride_in_their_row_move_too() {
    let mut shard = Shard::new(Versioning::Enabled);
    let noncurrent_transitions = vec![Transition { kept: 1, ..to("COLD", 1) }];
    let rules = vec![LifecycleRule { noncurrent_transitions, ..rule() }];
    set_rules(&mut shard, Versioning::Enabled, 2, rules);
    let inline = Body { size: 2, inline: Some(Bytes::from_static(b"ab")), ..Body::default() };
    shard.run(ShardCommand::PutObject(put_of("k", "1", inline)));
    shard.put("k", "2");
    shard.put("k", "3");
    shard.delete("k", None);
    // The marker is current; "3" is the one newer noncurrent version that is kept.
    let due = 5000 + 2 * DAY;
    let found = search(&shard, due);
    let etags: Vec<&str> = found.iter().map(|found| found.version.attributes.as_ref().unwrap().etag.as_str()).collect();
    assert_eq!(etags, ["2", "1"]);
    for found in &found {
        let moved = command(&mut shard, found);
        assert_eq!(shard.run(ShardCommand::MoveBody(moved)), done());
    }
    assert_eq!(search(&shard, due), []);
    assert_eq!(shard.garbage_chunks(), 1);
    let page = shard.list_versions(ListVersions { limit: 10, ..ListVersions::default() });
    let pools: Vec<u32> = page.objects.iter().map(|row| row.attributes.as_ref().map_or(9, |a| a.pool)).collect();
    assert_eq!(pools, [9, 0, 3, 3], "listings say where versions are");
}

#[test]
fn what_expires_is_not_moved_first() {
    let mut shard = Shard::new(Versioning::Off);
    let both = LifecycleRule { transitions: vec![to("WARM", 1)], expire_days: Some(2), ..rule() };
    set_rules(&mut shard, Versioning::Off, 2, vec![both]);
    shard.put("k", "e");
    assert_eq!(destinations(&search(&shard, 3 * DAY)), []);
}

/// As many as a page holds, all of them damaged: they were named again and again, and the others never.
#[test]
fn versions_that_cannot_be_moved_do_not_hide_others_of_their_key() {
    let mut shard = Shard::new(Versioning::Enabled);
    let rules = vec![LifecycleRule { noncurrent_transitions: vec![to("COLD", 1)], ..rule() }];
    set_rules(&mut shard, Versioning::Enabled, 2, rules);
    for number in 0..MOVES_MAX + 6 {
        shard.put("k", &number.to_string());
    }
    let mut pools = pools();
    let found = search_among(&shard, &pools, 10 * DAY);
    assert_eq!(found.len(), MOVES_MAX);
    let place = |found: &Move| (found.version.key.clone(), found.order);
    pools.stuck.extend(found.iter().map(place));
    let others = search_among(&shard, &pools, 10 * DAY);
    assert_eq!(others.len(), 5, "all but the newest");
    assert!(others.iter().all(|other| !pools.stuck.contains(&place(other))));
}

/// A worker may die between two parts.
#[test]
fn parts_move_one_by_one_and_the_version_last() {
    let mut shard = Shard::new(Versioning::Off);
    set_rules(&mut shard, Versioning::Off, 2, vec![LifecycleRule { transitions: vec![to("WARM", 1)], ..rule() }]);
    let upload = random(5);
    let create = CreateUpload { bucket: BUCKET, key: text("k"), upload: upload.clone(), ..CreateUpload::default() };
    shard.run(ShardCommand::CreateUpload(create));
    let mut parts = Vec::new();
    for number in 1..=2 {
        let (body, upload, etag) = (Some(shard.body(6 << 20)), upload.clone(), format!("p{number}"));
        let put = PutPart { bucket: BUCKET, key: text("k"), upload, number, body, etag, ..PutPart::default() };
        parts.push(NamedPart { number, etag: put.etag.clone(), checksums: vec![] });
        shard.run(ShardCommand::PutPart(put));
    }
    let complete =
        CompleteUpload { bucket: BUCKET, key: text("k"), upload: upload.clone(), parts, ..CompleteUpload::default() };
    assert!(matches!(shard.run(ShardCommand::CompleteUpload(complete)), ShardOutcome::Written(_)));
    let found = search(&shard, 2 * DAY).remove(0);
    let moved = command(&mut shard, &found);
    let list = ListParts { bucket: BUCKET, key: text("k"), upload, after: 0, limit: 10 };
    let rows = |shard: &Shard| match shard.read(ShardRead::ListParts(list.clone())) {
        ShardFound::Parts(page) => page.parts,
        other => panic!("{other:?}"),
    };
    for part in rows(&shard) {
        let (chunks_before, body) = (part.body.unwrap().chunks, Some(shard.body(6 << 20)));
        let of_part = MoveBody { part: part.number, chunks_before, body, ..moved.clone() };
        assert_eq!(shard.run(ShardCommand::MoveBody(of_part.clone())), done());
        assert_refused(shard.run(ShardCommand::MoveBody(of_part)), Reason::PreconditionFailed);
        assert_eq!(search(&shard, 2 * DAY).len(), 1, "not all of it is there yet");
    }
    let no_part = MoveBody { part: 3, ..moved.clone() };
    assert_refused(shard.run(ShardCommand::MoveBody(no_part)), Reason::InvalidPart);
    assert_eq!(shard.run(ShardCommand::MoveBody(moved)), done());
    assert_eq!(search(&shard, 2 * DAY), []);
    assert_eq!(shard.garbage_chunks(), 2);
    assert_eq!(rows(&shard).iter().map(|part| part.etag.as_str()).collect::<Vec<_>>(), ["p1", "p2"]);
    shard.delete("k", None);
    assert_eq!(shard.garbage_chunks(), 4, "what was moved goes with the object");
}
