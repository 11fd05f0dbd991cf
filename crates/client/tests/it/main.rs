//! The client against three nodes, some of which are silent, refuse, or have lost something.
#![allow(clippy::unwrap_used)]

mod fake;

use base::ids::{Generation, NodeId, Session};
use bytes::Bytes;
use client::wire::Failure;
use client::{CompleteRequest, Error, FinishPart, FinishPut, Reads, Staleness, Terms};
use fake::{Fake, GATEWAY};
use meta::map::command::Acknowledgement::{All, AllStrict, Majority, One};
use meta::map::command::{FeatureLevel, KeyRow, MapCommand, NodeRow};
use meta::map::{ROOT_LEVEL_MIN, ROOT_NAME};
use meta::object::command::{CreateUpload, NamedPart};
use std::sync::Arc;
use std::time::Duration;

fn body() -> Bytes {
    Bytes::from(vec![5; 5000])
}

fn millis(fake: &Fake) -> u64 {
    fake.sim().now().0 / 1_000_000
}

#[test]
fn all_means_every_member_that_is_not_down() {
    let fake = Fake::new(1);
    let bucket = fake.bucket(All);
    fake.put(&bucket, "k", body()).unwrap();
    assert_eq!(fake.holders(), [1, 2, 3]);
    assert_eq!(fake.state().acknowledgement, Some(All));
    assert_eq!(fake.get(&bucket, "k").unwrap(), body());
}

/// The story of a node that is killed or paused in the middle of a write.
#[test]
fn a_silent_member_is_waited_for_until_it_is_voted_down() {
    for seed in 0..10 {
        let fake = Fake::new(seed);
        let bucket = fake.bucket(All);
        fake.sim().pause(NodeId(3));
        let before = millis(&fake);
        fake.later(700, |state| state.vote_down(3));
        fake.put(&bucket, "k", body()).unwrap();
        let took = millis(&fake) - before;
        assert!((700..800).contains(&took), "neither acknowledged before the vote nor held up after it: {took} ms");
        assert_eq!(fake.holders(), [1, 2]);
    }
}

#[test]
fn a_member_that_is_silent_and_not_down_is_never_left_out() {
    let fake = Fake::new(2);
    let bucket = fake.bucket(All);
    fake.sim().partition(&[&[NodeId(3)], &[NodeId(1), NodeId(2), GATEWAY]]);
    let refused = fake.put(&bucket, "k", body());
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
}

/// Towards the end of its time a store that was refused at once was sent again without a pause.
#[test]
fn a_member_that_refuses_at_once_is_asked_with_pauses_until_the_end() {
    let fake = Fake::new(2);
    let bucket = fake.bucket(All);
    fake.state().refuses.insert(3, Failure::Busy);
    let refused = fake.put(&bucket, "k", body());
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    let asked = fake.state().refused;
    assert!((10..100).contains(&asked), "with pauses of at most half a second for half a minute: {asked}");
}

/// A raise waits for the map while the node is voted out and comes back under a newer generation.
#[test]
fn a_session_that_was_overtaken_does_not_come_back() {
    let fake = Fake::new(31);
    let present = fake.client.session();
    let [raised, newest] =
        [1, 2].map(|more| Session { generation: Generation(present.generation.0 + more), ..present });
    fake.client.renew_session(newest);
    let named = fake.client.chunks_named();
    for older in [present, raised, newest] {
        fake.client.renew_session(older);
        assert_eq!(fake.client.session(), newest);
    }
    assert_eq!(fake.client.chunks_named(), named);
}

/// A PUT of a slow client may take longer than a session lasts.
#[test]
fn a_session_is_in_use_until_the_last_write_that_began_in_it_has_ended() {
    let fake = Fake::new(32);
    let bucket = fake.bucket(All);
    let first = fake.client.session();
    let later = |more| Session { generation: Generation(first.generation.0 + more), ..first };
    let writer = fake.client.write(&bucket, Bytes::from_static(b"slow"), None);
    fake.client.renew_session(later(1));
    let other = fake.client.write(&bucket, Bytes::from_static(b"less slow"), None);
    fake.client.renew_session(later(2));
    assert_eq!(fake.client.oldest_session(), first);
    drop(writer);
    assert_eq!(fake.client.oldest_session(), later(1));
    fake.client.renew_session(later(3));
    drop(other);
    assert_eq!(fake.client.oldest_session(), later(3));
}

/// A client that breaks off again and again would fill the memory of a gateway that counts requests.
#[test]
fn what_a_write_holds_is_held_until_its_last_chunk_is_stored_or_given_up() {
    let fake = Fake::new(33);
    let bucket = fake.bucket(All);
    let held: Arc<()> = Arc::default();
    fake.state().refuses.insert(3, Failure::Busy);
    let mut writer = fake.client.write(&bucket, Bytes::from_static(b"broken off"), None);
    writer.hold(held.clone());
    fake.run(async move { writer.write(vec![7; base::CHUNK_SIZE_MAX].into()).await }).unwrap();
    fake.sim().run_for(Duration::from_secs(1));
    assert_eq!(Arc::strong_count(&held), 2, "the writer is gone, its chunk is still being stored");
    fake.state().refuses.clear();
    fake.sim().run_for(Duration::from_secs(2));
    assert_eq!((Arc::strong_count(&held), fake.holders()), (1, vec![]));
}

/// Stored, and not yet asked for by the writer, when the client breaks off: nobody would ever delete them.
#[test]
fn chunks_that_are_stored_already_go_with_their_writer() {
    let fake = Fake::new(34);
    let bucket = fake.bucket(All);
    let mut writer = fake.client.write(&bucket, Bytes::from_static(b"broken off"), None);
    let writer = fake.run(async move {
        writer.write(vec![7; 2 * base::CHUNK_SIZE_MAX].into()).await.unwrap();
        writer
    });
    fake.sim().run_for(Duration::from_secs(1));
    assert_eq!(fake.holders(), [1, 1, 2, 2, 3, 3]);
    drop(writer);
    fake.sim().run_for(Duration::from_secs(2));
    assert_eq!(fake.holders(), vec![]);
}

/// The client's map still says that node 3 is down; the answers of the others show a map in which it is back.
#[test]
fn a_member_that_came_back_counts_as_soon_as_any_answer_shows_it() {
    let fake = Fake::new(17);
    let bucket = fake.bucket(All);
    fake.state().vote_down(3);
    let stale = fake.state().map();
    fake.client.learn_map(stale);
    let back = NodeRow { id: 3, generation: 2, feature_level_max: 4, ..NodeRow::default() };
    fake.state().change(MapCommand::SetNode(back));
    fake.put(&bucket, "k", body()).unwrap();
    assert_eq!(fake.holders(), [1, 2, 3]);
}

#[test]
fn a_lost_answer_is_asked_for_again() {
    let fake = Fake::new(3);
    let bucket = fake.bucket(All);
    fake.sim().cut(NodeId(3), GATEWAY);
    let sim = fake.sim();
    fake.later(3000, move |_| sim.heal());
    fake.put(&bucket, "k", body()).unwrap();
    assert_eq!(fake.holders(), [1, 2, 3]);
}

#[test]
fn a_majority_does_not_wait_for_the_last() {
    let fake = Fake::new(4);
    let bucket = fake.bucket(Majority);
    fake.sim().pause(NodeId(3));
    let before = millis(&fake);
    fake.put(&bucket, "k", body()).unwrap();
    assert!(millis(&fake) - before < 200);
    assert_eq!(fake.state().acknowledgement, Some(Majority));
    // The rest follows in the background.
    fake.sim().resume(NodeId(3));
    fake.sim().run_for(Duration::from_secs(10));
    assert_eq!(fake.holders(), [1, 2, 3]);
}

#[test]
fn a_request_may_ask_for_more_or_less_than_its_bucket() {
    let fake = Fake::new(5);
    let bucket = fake.bucket(All);
    let under = |rule| bucket.clone().under(Terms { acknowledgement: Some(rule), ..Terms::default() });
    // From here on the client knows who leads.
    fake.put(&under(All), "k0", Bytes::from_static(b"inline")).unwrap();
    fake.sim().pause(NodeId(2));
    fake.sim().pause(NodeId(3));
    let before = millis(&fake);
    fake.put(&under(One), "k", body()).unwrap();
    assert!(millis(&fake) - before < 200);
    assert_eq!(fake.holders(), [1]);
    assert_eq!(fake.state().acknowledgement, Some(One));
    fake.sim().resume(NodeId(2));
    fake.sim().resume(NodeId(3));
    fake.sim().run_for(Duration::from_secs(10));
    assert_eq!(fake.holders(), [1, 2, 3], "the rest follows");
    fake.put(&under(AllStrict), "k2", body()).unwrap();
    fake.state().vote_down(3);
    fake.put(&under(All), "k3", body()).unwrap();
    let refused = fake.put(&under(AllStrict), "k4", body());
    assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("all-strict")), "{refused:?}");
}

#[test]
fn an_eventual_answer_says_how_stale_it_is_and_so_does_a_refusal() {
    let fake = Fake::new(18);
    let bucket = fake.bucket(All);
    fake.put(&bucket, "k", Bytes::from_static(b"inline")).unwrap();
    let ask = |key| {
        let staleness = Arc::new(Staleness::default());
        let terms = Terms { reads: Reads::Eventual(staleness.clone()), ..Terms::default() };
        let found = fake.get(&bucket.clone().under(terms), key);
        (found.map(|_| ()), staleness.is_noted(), staleness.get_ms())
    };
    fake.state().staleness_ms = Some(7000);
    assert_eq!(ask("k"), (Ok(()), true, Some(7000)));
    assert_eq!(ask("absent"), (Err(Error::NoSuchKey), true, Some(7000)), "the replica may lack it because it is stale");
    fake.state().staleness_ms = Some(0);
    assert_eq!(ask("k"), (Ok(()), true, Some(0)));
    fake.state().staleness_ms = None;
    assert_eq!(ask("absent"), (Err(Error::NoSuchKey), true, None));
    fake.sim().partition(&[&[GATEWAY], &[NodeId(1), NodeId(2), NodeId(3)]]);
    let (lost, is_noted, _) = ask("k");
    assert!(matches!(&lost, Err(Error::Unavailable(_))) && !is_noted, "nobody has answered: {lost:?}");
}

/// The replica that is asked for the parts is staler than the one that showed the object.
#[test]
fn the_parts_of_an_object_are_never_older_than_the_object() {
    let fake = Fake::new(19);
    let reads = Reads::Eventual(Arc::default());
    let bucket = fake.bucket(All).under(Terms { reads, ..Terms::default() });
    let key = Bytes::from_static(b"k");
    let (client, within) = (fake.client.clone(), bucket.clone());
    let create = CreateUpload { key: key.clone(), ..CreateUpload::default() };
    let upload = fake.run(async move { client.create_upload(&within, create).await }).unwrap();
    let put_part = |bytes: &'static [u8]| {
        let (client, bucket, key, upload) = (fake.client.clone(), bucket.clone(), key.clone(), upload.clone());
        fake.run(async move {
            let mut writer = client.write(&bucket, key, None);
            writer.write(Bytes::from_static(bytes)).await?;
            let etag = bytes.escape_ascii().to_string();
            writer.finish_part(FinishPart { upload, number: 1, etag, ..FinishPart::default() }).await
        })
    };
    put_part(b"old").unwrap();
    let stale_rows = fake.state().shard_rows.clone();
    put_part(b"new").unwrap();
    let (client, within) = (fake.client.clone(), bucket.clone());
    let object = fake.run(async move {
        let parts = vec![NamedPart { number: 1, etag: "new".into(), ..NamedPart::default() }];
        let complete = CompleteRequest { parts, etag: "e-1".into(), ..CompleteRequest::default() };
        client.complete_upload(&within, &key, &upload, complete).await?;
        client.head(&within, &key, None).await
    });
    fake.state().stale_rows = Some(stale_rows);
    let client = fake.client.clone();
    let read = fake.run(async move {
        let mut reader = client.read(&bucket, &object.unwrap(), 0..u64::MAX);
        reader.next().await
    });
    assert_eq!(read, Some(Ok(Bytes::from_static(b"new"))));
}

/// What `one` gives up: the only copy is away, and the answer says so within seconds.
#[test]
fn an_only_copy_that_is_away_is_named() {
    let fake = Fake::new(6);
    let bucket = fake.bucket(All).under(Terms { acknowledgement: Some(One), ..Terms::default() });
    for node in [2, 3] {
        fake.state().refuses.insert(node, Failure::Full);
    }
    fake.state().vote_down(2);
    fake.state().vote_down(3);
    fake.put(&bucket, "k", body()).unwrap();
    fake.state().refuses.clear();
    for (node, up) in [(2, true), (3, true), (1, false)] {
        if up {
            let back = NodeRow { id: node, generation: 2, feature_level_max: 4, ..NodeRow::default() };
            fake.state().change(MapCommand::SetNode(back));
        } else {
            fake.state().refuses.insert(node, Failure::Busy);
            fake.state().vote_down(node);
        }
    }
    let before = millis(&fake);
    let lost = fake.get(&bucket, "k");
    assert!(matches!(&lost, Err(Error::Unavailable(why)) if why.contains("chunk")), "{lost:?}");
    assert!(millis(&fake) - before < 12_000, "{}", millis(&fake) - before);
}

/// Bytes that tell where they stood, in several chunks.
fn long_body() -> Bytes {
    (0..5u32 << 18).flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn a_copy_is_made_by_the_nodes_and_moves_no_byte() {
    let fake = Fake::new(20);
    let bucket = fake.bucket(All);
    let body = long_body();
    fake.put(&bucket, "from", body.clone()).unwrap();
    fake.copy(&bucket, "from", "whole", 0..body.len() as u64).unwrap();
    assert_eq!(fake.state().clones, 6, "two chunks on three nodes");
    assert_eq!(fake.get(&bucket, "whole").unwrap(), body);
    let range = 1000..(4 << 20) + 10;
    fake.copy(&bucket, "from", "part", range.clone()).unwrap();
    assert_eq!(fake.state().clones, 12);
    assert_eq!(fake.get(&bucket, "part").unwrap(), body[range.start as usize..range.end as usize]);
    fake.put(&bucket, "small", Bytes::from_static(b"rides in the row")).unwrap();
    fake.copy(&bucket, "small", "small copy", 6..8).unwrap();
    assert_eq!(fake.get(&bucket, "small copy").unwrap(), b"in");
    // The source may go: nothing is shared.
    let sources: Vec<_> = fake.state().chunks.keys().copied().collect();
    assert_eq!(sources.len(), 3 * 2 + 6 + 6);
}

#[test]
fn a_copy_that_the_nodes_cannot_make_is_read_and_stored() {
    let fake = Fake::new(21);
    let bucket = fake.bucket(All);
    let body = long_body();
    fake.put(&bucket, "from", body.clone()).unwrap();
    // One member has lost what it held.
    fake.state().chunks.retain(|(node, _), _| *node != 2);
    fake.copy(&bucket, "from", "to", 0..body.len() as u64).unwrap();
    assert_eq!(fake.get(&bucket, "to").unwrap(), body);
    // A copy of other bytes on one member must not become a copy of the object.
    let fake = Fake::new(22);
    let bucket = fake.bucket(All);
    fake.put(&bucket, "from", body.clone()).unwrap();
    let damaged = fake.state().chunks.iter_mut().find(|((node, _), _)| *node == 3).map(|(id, bytes)| {
        *bytes = vec![9; bytes.len()].into();
        *id
    });
    assert!(damaged.is_some());
    match fake.copy(&bucket, "from", "to", 0..body.len() as u64) {
        Ok(()) => assert_eq!(fake.get(&bucket, "to").unwrap(), body),
        Err(error) => assert!(matches!(error, Error::Damaged(_)), "{error}"),
    }
}

/// Under the bucket's `one`, bytes that had three copies would have one, while the old ones are deleted.
#[test]
fn a_move_waits_for_all_copies_whatever_the_bucket_says() {
    for (rule, waits_for) in [(One, All), (Majority, All), (All, All), (AllStrict, AllStrict)] {
        let fake = Fake::new(23);
        let bucket = fake.bucket(rule);
        let pool = fake.add_pool();
        fake.put(&bucket, "k", body()).unwrap();
        fake.sim().run_for(Duration::from_secs(1));
        let version = fake.head(&bucket, "k");
        let before = millis(&fake);
        fake.sim().pause(NodeId(3));
        let sim = fake.sim();
        fake.later(700, move |_| sim.resume(NodeId(3)));
        fake.transition(&bucket, &version, pool).unwrap();
        assert!(millis(&fake) - before >= 700, "{rule:?}: acknowledged before node 3 had its copy");
        assert_eq!(fake.state().acknowledgement, Some(waits_for));
        assert_eq!(fake.holders(), [1, 1, 2, 2, 3, 3], "the old copies and the new ones");
    }
}

/// The old chunks are deleted seconds after a transition, while somebody reads them.
#[test]
fn who_reads_or_copies_an_object_that_moves_gets_the_same_bytes() {
    let fake = Fake::new(24);
    let bucket = fake.bucket(All);
    let pool = fake.add_pool();
    let whole = long_body();
    fake.put(&bucket, "k", whole.clone()).unwrap();
    let before = fake.head(&bucket, "k");
    let old = fake.chunks_in(1);
    let (client, of, version) = (fake.client.clone(), bucket.clone(), before.clone());
    let mut reader = client.read(&of, &version, 0..u64::MAX);
    let (first, mut reader) = fake.run(async move { (reader.next().await.unwrap().unwrap(), reader) });
    fake.transition(&bucket, &before, pool).unwrap();
    fake.bury(old);
    let mut read = first.to_vec();
    let (rest, of, writing) = (fake.client.clone(), bucket.clone(), before.clone());
    let bytes = fake.run(async move {
        while let Some(piece) = reader.next().await {
            read.extend_from_slice(&piece.unwrap());
        }
        let mut writer = rest.write(&of, Bytes::from_static(b"copy"), None);
        writer.copy_from(&of, &writing, 0..u64::MAX).await.unwrap();
        writer.finish(FinishPut::default()).await.unwrap();
        read
    });
    assert!(bytes == whole, "read while it moved");
    assert!(fake.get(&bucket, "copy").unwrap() == whole, "copied while it moved");
    // What was replaced is no more what was read.
    let moved = fake.head(&bucket, "k");
    fake.put(&bucket, "k", body()).unwrap();
    fake.bury(fake.chunks_in(pool as u8));
    let (client, of) = (fake.client.clone(), bucket.clone());
    let refused = fake.run(async move { client.read(&of, &moved, 0..u64::MAX).next().await });
    assert!(matches!(&refused, Some(Err(Error::Unavailable(why))) if why.contains("replaced")), "{refused:?}");
}

#[test]
fn the_parts_of_an_object_that_moves_are_found_again() {
    let fake = Fake::new(25);
    let bucket = fake.bucket(All);
    let pool = fake.add_pool();
    let whole = long_body();
    let (client, of, bytes) = (fake.client.clone(), bucket.clone(), whole.clone());
    fake.run(async move {
        let key = Bytes::from_static(b"k");
        let upload = CreateUpload { key: key.clone(), ..CreateUpload::default() };
        let upload = client.create_upload(&of, upload).await.unwrap();
        let mut parts = Vec::new();
        for (number, bytes) in [(1, bytes.clone()), (2, bytes.slice(..5000))] {
            let mut writer = client.write(&of, key.clone(), None);
            writer.write(bytes).await.unwrap();
            let etag = format!("{number:032}");
            let part = FinishPart { upload: upload.clone(), number, etag: etag.clone(), ..FinishPart::default() };
            writer.finish_part(part).await.unwrap();
            parts.push(NamedPart { number, etag, ..NamedPart::default() });
        }
        let request = CompleteRequest { parts, etag: "e-2".into(), ..CompleteRequest::default() };
        client.complete_upload(&of, &key, &upload, request).await.unwrap();
    });
    let before = fake.head(&bucket, "k");
    let old = fake.chunks_in(1);
    let (client, of, version) = (fake.client.clone(), bucket.clone(), before.clone());
    let mut reader = client.read(&of, &version, 0..u64::MAX);
    // The rows of all parts are fetched with the first piece.
    let (first, mut reader) = fake.run(async move { (reader.next().await.unwrap().unwrap(), reader) });
    fake.transition(&bucket, &before, pool).unwrap();
    fake.bury(old);
    let read = fake.run(async move {
        let mut read = first.to_vec();
        while let Some(piece) = reader.next().await {
            read.extend_from_slice(&piece.unwrap());
        }
        read
    });
    assert!(read == [&whole[..], &whole[..5000]].concat(), "each part where it stands now");
}

#[test]
fn an_invented_storage_class_does_not_cost_a_look_into_the_map_each_time() {
    let fake = Fake::new(26);
    fake.add_pool();
    let before = fake.state().map_reads;
    let client = fake.client.clone();
    fake.run(async move {
        for _ in 0..100 {
            assert_eq!(client.pool_of_class("INVENTED").await, Ok(None));
        }
        assert_eq!(client.pool_of_class("COLD").await, Ok(Some(2)));
    });
    assert_eq!(fake.state().map_reads - before, 1);
}

#[test]
fn a_pool_has_no_more_copies_than_metadata() {
    let fake = Fake::new(27);
    let client = fake.client.clone();
    let refused = fake.run(async move { client.create_pool("safer", "SAFER", 4).await });
    assert!(matches!(&refused, Err(Error::Invalid(why)) if why.contains("at most 3 copies")), "{refused:?}");
    assert_eq!(fake.state().map().pools.len(), 1);
}

#[test]
fn less_than_a_majority_is_never_enough() {
    for rule in [All, Majority] {
        let fake = Fake::new(5);
        let bucket = fake.bucket(rule);
        fake.later(0, |state| {
            state.vote_down(2);
            state.vote_down(3);
        });
        fake.sim().run_for(Duration::from_millis(1));
        let refused = fake.put(&bucket, "k", body());
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        assert_eq!(fake.holders(), []);
    }
}

/// The client's map is old: the members refuse, the answer shows the newer map, the bytes go there under a new id.
#[test]
fn a_group_that_moved_gets_the_chunk_under_a_new_id() {
    let fake = Fake::new(6);
    let bucket = fake.bucket(All);
    fake.state().step_groups();
    fake.state().step_groups();
    fake.put(&bucket, "k", body()).unwrap();
    assert_eq!(fake.get(&bucket, "k").unwrap(), body());
    fake.sim().run_for(Duration::from_secs(1));
    assert_eq!(fake.holders(), [1, 2, 3], "what was abandoned is deleted");
}

#[test]
fn writers_wait_while_every_group_is_closed() {
    let fake = Fake::new(7);
    let bucket = fake.bucket(All);
    fake.state().step_groups();
    fake.later(2000, |state| state.step_groups());
    fake.put(&bucket, "k", body()).unwrap();
    assert_eq!(fake.holders(), [1, 2, 3]);
}

#[test]
fn a_full_disk_is_full_and_nothing_is_left_behind() {
    let fake = Fake::new(8);
    let bucket = fake.bucket(All);
    fake.state().refuses.insert(2, Failure::Full);
    assert_eq!(fake.put(&bucket, "k", body()), Err(Error::Full));
    fake.sim().run_for(Duration::from_secs(1));
    assert_eq!(fake.holders(), []);
}

#[test]
fn a_hanging_leader_costs_no_more_than_the_vote() {
    let fake = Fake::new(9);
    let bucket = fake.bucket(All);
    fake.put(&bucket, "k", body()).unwrap();
    fake.sim().pause(NodeId(1));
    let before = millis(&fake);
    fake.later(700, |state| {
        state.leader = 3;
        state.vote_down(1);
    });
    assert_eq!(fake.get(&bucket, "k").unwrap(), body());
    let took = millis(&fake) - before;
    assert!(took < 900, "{took} ms");
}

#[test]
fn a_dead_leader_is_found_again_by_asking_around() {
    let fake = Fake::new(10);
    let bucket = fake.bucket(All);
    fake.put(&bucket, "k", body()).unwrap();
    fake.sim().kill(NodeId(1));
    fake.later(500, |state| state.leader = 3);
    assert_eq!(fake.get(&bucket, "k").unwrap(), body());
}

#[test]
fn reads_fail_over_between_copies() {
    let fake = Fake::new(11);
    let bucket = fake.bucket(All);
    fake.put(&bucket, "k", body()).unwrap();
    for lost in [1, 2] {
        fake.state().chunks.retain(|(node, _), _| *node != lost);
        assert_eq!(fake.get(&bucket, "k").unwrap(), body());
    }
    assert!(fake.client.bad_copies_seen() > 0);
    fake.state().refuses.insert(1, Failure::Damaged);
    assert_eq!(fake.get(&bucket, "k").unwrap(), body());
}

#[test]
fn a_hanging_copy_costs_a_second_and_a_node_that_is_down_is_asked_last() {
    let fake = Fake::new(12);
    let bucket = fake.bucket(All);
    fake.put(&bucket, "k", body()).unwrap();
    fake.state().leader = 3;
    fake.sim().pause(NodeId(1));
    let before = millis(&fake);
    assert_eq!(fake.get(&bucket, "k").unwrap(), body());
    assert!(millis(&fake) - before < 3500, "one attempt at the old leader, one at the first copy");
    fake.state().vote_down(1);
    let map = fake.state().map();
    fake.client.learn_map(map);
    let before = millis(&fake);
    assert_eq!(fake.get(&bucket, "k").unwrap(), body());
    assert!(millis(&fake) - before < 100);
}

#[test]
fn loss_is_declared_only_when_every_member_has_answered() {
    let fake = Fake::new(13);
    let bucket = fake.bucket(All);
    fake.put(&bucket, "k", body()).unwrap();
    let held = std::mem::take(&mut fake.state().chunks);
    fake.sim().pause(NodeId(3));
    let silent = fake.get(&bucket, "k");
    assert!(matches!(silent, Err(Error::Unavailable(_))), "{silent:?}");
    fake.sim().resume(NodeId(3));
    let lost = fake.get(&bucket, "k");
    assert!(matches!(&lost, Err(Error::Damaged(why)) if why.contains("k: chunk")), "{lost:?}");
    fake.state().chunks = held;
    assert_eq!(fake.get(&bucket, "k").unwrap(), body());
}

#[test]
fn tombstones_go_to_every_member_in_service_and_need_a_majority() {
    let fake = Fake::new(14);
    let bucket = fake.bucket(All);
    fake.put(&bucket, "k", body()).unwrap();
    let ids: Vec<_> = fake.state().chunks.keys().map(|(_, id)| *id).take(1).collect();
    let bury = |ids: Vec<_>| {
        let client = fake.client.clone();
        fake.run(async move { client.bury_chunks(&ids).await })
    };
    fake.state().refuses.insert(3, Failure::Busy);
    assert!(bury(ids.clone()).is_err(), "a member in service did not answer");
    fake.state().vote_down(3);
    let map = fake.state().map();
    fake.client.learn_map(map);
    bury(ids.clone()).unwrap();
    assert_eq!(fake.holders(), [3]);
    fake.state().vote_down(2);
    let map = fake.state().map();
    fake.client.learn_map(map);
    assert!(bury(ids).is_err());
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let story = || {
        let fake = Fake::new(15);
        let bucket = fake.bucket(All);
        fake.sim().pause(NodeId(3));
        fake.later(700, |state| state.vote_down(3));
        fake.put(&bucket, "k", body()).unwrap();
        fake.sim().trace_hash()
    };
    assert_eq!(story(), story());
}

#[test]
fn tokens_and_nodes_by_the_operators_words() {
    let fake = Fake::new(16);
    let client = fake.client.clone();
    fake.run(async move {
        client.create_token("0123456789abcdef", [1; 32], Duration::from_secs(60)).await.unwrap();
        let row = NodeRow { feature_level_max: 4, ..NodeRow::default() };
        let redeem = |secret| client.redeem_token("0123456789abcdef", [secret; 32], Bytes::new(), row.clone());
        assert!(matches!(redeem(2).await, Err(Error::Invalid(why)) if why.contains("does not know")));
        assert_eq!(redeem(1).await, Ok(NodeId(4)));
        assert!(matches!(redeem(1).await, Err(Error::Invalid(why)) if why.contains("used already")));
        assert_eq!(client.nodes().await.unwrap().len(), 4);
        assert!(
            matches!(client.remove_node(NodeId(1), false).await, Err(Error::Invalid(why)) if why.contains("add a node"))
        );
        assert!(
            matches!(client.remove_node(NodeId(1), true).await, Err(Error::Invalid(why)) if why.contains("in service"))
        );
        assert!(
            matches!(client.remove_node(NodeId(7), true).await, Err(Error::Invalid(why)) if why.contains("no node 7"))
        );
        assert_eq!(client.remove_node(NodeId(4), true).await, Ok(client::Removal::Removed));
    });
    fake.state().vote_down(2);
    let client = fake.client.clone();
    fake.run(async move {
        assert_eq!(client.remove_node(NodeId(2), true).await, Ok(client::Removal::Removed));
    });
}

/// A majority is gone: whoever asks is told within seconds, with the reason, and nothing is said to have failed that may
/// yet be carried out.
#[test]
fn without_a_leader_a_write_is_refused_within_seconds() {
    let fake = Fake::new(31);
    let bucket = fake.bucket(All);
    fake.state().leader = 0;
    let before = millis(&fake);
    let refused = fake.put(&bucket, "k", body());
    let took = millis(&fake) - before;
    assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("majority")), "{refused:?}");
    assert!((4000..5500).contains(&took), "{took} ms: neither during an election nor after half a minute");
    let found = fake.get(&bucket, "k");
    assert!(matches!(found, Err(Error::Unavailable(_))), "{found:?}");
}

#[test]
fn a_silent_member_that_nobody_can_vote_down_is_not_waited_for_long() {
    let fake = Fake::new(32);
    let bucket = fake.bucket(All);
    fake.state().leader = 0;
    fake.sim().hang(GATEWAY, NodeId(3));
    let before = millis(&fake);
    let refused = fake.put(&bucket, "k", body());
    let took = millis(&fake) - before;
    assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("node 3")), "{refused:?}");
    assert!((4000..8000).contains(&took), "{took} ms");
}

/// The leader that took the command is never heard of again: it may have been carried out.
#[test]
fn what_may_have_been_done_is_not_called_failed() {
    let fake = Fake::new(33);
    let bucket = fake.bucket(All);
    fake.sim().cut(NodeId(1), GATEWAY);
    fake.later(1000, |state| state.leader = 0);
    let unknown = fake.put(&bucket, "k", Bytes::from_static(b"inline"));
    assert!(matches!(unknown, Err(Error::OutcomeUnknown(_))), "{unknown:?}");
}

/// This node was voted out and does not come back (its disk is broken): its clients are sent elsewhere soon.
#[test]
fn a_node_that_stays_out_says_so_within_seconds() {
    let fake = Fake::new(34);
    let bucket = fake.bucket(All);
    fake.put(&bucket, "k", body()).unwrap();
    for node in 1..=3 {
        fake.state().refuses.insert(node, Failure::StaleGeneration);
    }
    let before = millis(&fake);
    let refused = fake.put(&bucket, "other", body());
    assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("voted out")), "{refused:?}");
    assert!(millis(&fake) - before < 1000, "no store of this life will ever be taken");
}

/// Found by reading: a setting that is spread to the shards thaws the bucket, and its deletion went on nevertheless.
#[test]
fn a_bucket_that_is_deleted_while_a_setting_changes_holds_nothing_that_was_acknowledged() {
    use meta::object::command::Versioning;
    let mut lost = Vec::new();
    let (mut gones, mut puts) = (0, 0);
    for seed in 0..3000 {
        let fake = Fake::new(seed);
        let bucket = fake.bucket(All);
        let (sim, client, bucket) = (fake.sim(), fake.client.clone(), bucket.clone());
        let (deleted, put) = fake.run(async move {
            let delete = async {
                sim.sleep(Duration::from_micros(seed * 131 % 7000)).await;
                client.delete_bucket("b").await
            };
            let set = async {
                sim.sleep(Duration::from_micros(seed * 577 % 7000)).await;
                client.set_versioning("b", Versioning::Enabled).await
            };
            let put = async {
                sim.sleep(Duration::from_micros(seed * 7919 % 20_000)).await;
                for _ in 0..3 {
                    let mut writer = client.write(&bucket, Bytes::from_static(b"k"), None);
                    writer.write(Bytes::from_static(b"x")).await.unwrap();
                    if writer.finish(client::FinishPut::default()).await.is_ok() {
                        return true;
                    }
                }
                false
            };
            let (deleted, _, put) = futures_util::future::join3(delete, set, put).await;
            (deleted, put)
        });
        let gone = fake.state().map().buckets.is_empty();
        gones += u32::from(gone);
        puts += u32::from(put);
        if put && gone {
            lost.push((seed, deleted));
        }
    }
    eprintln!("{gones} gone, {puts} put");
    assert!(
        lost.is_empty(),
        "{} of 3000: an acknowledged object in a bucket that is gone: {:?}",
        lost.len(),
        &lost[..lost.len().min(3)]
    );
}

#[test]
fn a_new_root_key_waits_until_every_node_is_upgraded_and_says_for_whom() {
    let fake = Fake::new(61);
    let given = |secret: &str| KeyRow {
        access_key: "ROOT".into(),
        secret_key: secret.into(),
        name: ROOT_NAME.into(),
        root: true,
        ..KeyRow::default()
    };
    let ask = |from: KeyRow, secret: &'static str| {
        let client = fake.client.clone();
        fake.run(async move {
            client.refresh_map().await.unwrap();
            client.set_root_key(&from, "ROOT", secret).await
        })
    };
    let client = fake.client.clone();
    let first = given("first");
    let row = first.clone();
    fake.run(async move { client.insert_access_key(row).await }).unwrap();
    let upgrade = |node: u32| {
        let row = NodeRow { id: node, generation: 1, feature_level_max: ROOT_LEVEL_MIN, ..NodeRow::default() };
        fake.state().change(MapCommand::SetNode(row));
    };
    upgrade(1);
    let refused = ask(first.clone(), "second");
    let names = |why: &str| ["node 1", "node 2", "node 3"].map(|node| why.contains(node));
    assert!(matches!(&refused, Err(Error::Invalid(why)) if names(why) == [false, true, true]), "{refused:?}");
    upgrade(2);
    upgrade(3);
    let refused = ask(first.clone(), "second");
    assert!(matches!(&refused, Err(Error::Invalid(why)) if why.contains("try again")), "{refused:?}");
    fake.state().change(MapCommand::SetFeatureLevel(FeatureLevel { level: ROOT_LEVEL_MIN }));
    assert_eq!(ask(first.clone(), "second"), Ok(1));
    // Another operator had seen the same key.
    let late = ask(first, "third");
    assert!(matches!(&late, Err(Error::Invalid(why)) if why.contains("another command")), "{late:?}");
    // A node that starts with what it was given looks again, and finds that it is none of its business.
    let (client, row) = (fake.client.clone(), given("first"));
    let start = fake.run(async move { client.insert_access_key(row).await });
    assert!(matches!(&start, Err(Error::Unavailable(_))), "{start:?}");
    let client = fake.client.clone();
    let root = fake.run(async move { client.refresh_map().await.unwrap().root().cloned() }).unwrap();
    assert_eq!((root.secret_key.as_str(), root.root_changes), ("second", 1));
}
