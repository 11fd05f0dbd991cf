//! The slot table and the session floors.

use base::ids::{ChunkId, Generation, NodeId, Session};
use meta::chunks::{self, ChunkRef};
use meta::object::command::*;

use crate::shard::*;

fn slot(generation: u32, slot: u32, sequence: u64) -> SlotRef {
    SlotRef { node: 3, generation, slot, sequence }
}

fn send(shard: &mut Shard, slot: SlotRef, key: &str) -> ShardOutcome {
    let body = shard.body(10);
    let put = ShardCommand::PutObject(put_of(key, "e", body));
    shard.entry(ShardEntry { slot: Some(slot), range_epoch: 1, command: Some(put), ..ShardEntry::default() }).1
}

fn close(shard: &mut Shard, floor: u32) -> ShardOutcome {
    shard.run(ShardCommand::CloseSession(CloseSession { node: 3, floor }))
}

#[test]
fn a_retry_gets_the_first_answer_and_changes_nothing() {
    let mut shard = Shard::new(Versioning::Enabled);
    let first = send(&mut shard, slot(1, 0, 1), "k");
    let body = shard.body(10);
    let entry = ShardEntry {
        slot: Some(slot(1, 0, 1)),
        range_epoch: 1,
        fence: None,
        command: Some(ShardCommand::PutObject(put_of("k", "e", body))),
    };
    let (changes, again) = shard.entry(entry);
    assert_eq!(again, first);
    assert!(changes.is_empty());
    // A refusal is an answer too.
    let condition = Some(Precondition { must_not_exist: true, ..Precondition::default() });
    for _ in 0..2 {
        let body = shard.body(10);
        let put = PutObject { precondition: condition.clone(), ..put_of("k", "e", body) };
        let entry = ShardEntry {
            slot: Some(slot(1, 0, 2)),
            range_epoch: 1,
            fence: None,
            command: Some(ShardCommand::PutObject(put)),
        };
        assert_refused(shard.entry(entry).1, Reason::PreconditionFailed);
        shard.delete("k", None);
    }
}

#[test]
fn a_late_copy_is_fenced_by_a_later_command() {
    let mut shard = Shard::new(Versioning::Off);
    send(&mut shard, slot(1, 0, 5), "k");
    assert_refused(send(&mut shard, slot(1, 0, 4), "late"), Reason::StaleSequence);
    assert_eq!(shard.get("late", None), Err(Reason::NoSuchKey));
    // Other slots and sessions are their own.
    assert!(matches!(send(&mut shard, slot(1, 1, 4), "k"), ShardOutcome::Written(_)));
    assert!(matches!(send(&mut shard, slot(2, 0, 4), "k"), ShardOutcome::Written(_)));
}

#[test]
fn a_closed_session_is_never_executed_again() {
    let mut shard = Shard::new(Versioning::Off);
    send(&mut shard, slot(1, 0, 1), "k");
    send(&mut shard, slot(2, 0, 1), "k");
    assert_eq!(close(&mut shard, 2), done());
    assert_refused(send(&mut shard, slot(1, 0, 1), "k"), Reason::SessionClosed);
    assert_refused(send(&mut shard, slot(1, 9, 9), "k"), Reason::SessionClosed);
    assert!(matches!(send(&mut shard, slot(2, 0, 2), "k"), ShardOutcome::Written(_)));
    // A floor never falls.
    assert_eq!(close(&mut shard, 1), done());
    assert_refused(send(&mut shard, slot(1, 0, 2), "k"), Reason::SessionClosed);
    // Other nodes are not concerned.
    let other = SlotRef { node: 4, ..slot(1, 0, 1) };
    assert!(matches!(send(&mut shard, other, "k"), ShardOutcome::Written(_)));
}

#[test]
fn closing_removes_slot_rows_in_bounded_steps() {
    let mut shard = Shard::new(Versioning::Off);
    let before = shard.rows.len();
    for generation in 1..=20 {
        for number in 0..256 {
            send(&mut shard, slot(generation, number, 1), "k");
        }
    }
    let sequences: Vec<u64> = shard.garbage().iter().map(|row| row.sequence).collect();
    assert_eq!(sequences.len(), 1000);
    assert_eq!(close(&mut shard, 21), ShardOutcome::Done(Done { more: true }));
    assert_eq!(close(&mut shard, 21), done());
    loop {
        let sequences: Vec<u64> = shard.garbage().iter().map(|row| row.sequence).collect();
        if sequences.is_empty() {
            break;
        }
        assert_eq!(shard.run(ShardCommand::RetireGarbage(RetireGarbage { sequences })), done());
    }
    // What is left: the object and the floor.
    assert_eq!(shard.rows.len(), before + 2);
}

/// The orphan sweep deletes what closed sessions stored and nobody named. A commit that named it later would name
/// nothing, under whichever session it came.
#[test]
fn chunks_of_a_closed_session_are_never_committed() {
    let mut shard = Shard::new(Versioning::Off);
    close(&mut shard, 2);
    let session = |generation| Session { node: NodeId(3), generation: Generation(generation) };
    let body = |generation| {
        let id = ChunkId { session: session(generation), ..ChunkId::from_u128(1) };
        Body { size: 5, chunks: chunks::pack(&[ChunkRef { id, len: 5, crc64: 0 }]), ..Body::default() }
    };
    assert_refused(shard.run(ShardCommand::PutObject(put_of("k", "e", body(1)))), Reason::SessionClosed);
    assert!(matches!(shard.run(ShardCommand::PutObject(put_of("k", "e", body(2)))), ShardOutcome::Written(_)));
}

#[test]
fn slots_beyond_the_table_are_refused() {
    let mut shard = Shard::new(Versioning::Off);
    assert_refused(send(&mut shard, slot(1, 256, 1), "k"), Reason::Invalid);
    assert_refused(send(&mut shard, slot(1, 0, 0), "k"), Reason::Invalid);
    assert!(matches!(send(&mut shard, slot(1, 255, 1), "k"), ShardOutcome::Written(_)));
}

#[test]
fn a_wrong_range_epoch_leaves_the_slot_for_the_next_try() {
    let mut shard = Shard::new(Versioning::Off);
    let body = shard.body(10);
    let command = Some(ShardCommand::PutObject(put_of("k", "e", body)));
    let stale = ShardEntry { slot: Some(slot(1, 0, 1)), range_epoch: 9, fence: None, command };
    let (changes, outcome) = shard.entry(stale.clone());
    assert_refused(outcome, Reason::WrongRange);
    assert!(changes.is_empty());
    assert!(matches!(shard.entry(ShardEntry { range_epoch: 1, ..stale }).1, ShardOutcome::Written(_)));
}
