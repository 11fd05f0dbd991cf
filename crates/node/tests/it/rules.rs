//! Lifecycle rules on a running node, on simulated time.

use base::ids::NodeId;
use base::sim::Sim;
use client::{ConfigurationKind, Error, LifecycleRule, LifecycleRules, Quota, Transition};
use node::{LifecyclePace, Node, Tuning};
use prost::Message;
use std::time::Duration;

use crate::cluster::three_with;
use crate::{bytes_of, config, get, put};

const NODE: NodeId = NodeId(1);
/// Of a test.
const DAY: Duration = Duration::from_secs(100);

fn tuning() -> Tuning {
    let lifecycle = LifecyclePace { interval: Duration::from_secs(1), day_ms: DAY.as_millis() as u64 };
    Tuning { lifecycle, ..Tuning::default() }
}

#[test]
fn objects_expire_when_their_day_has_come_and_not_before() {
    let sim = Sim::new(11);
    let node = sim.node(NODE);
    let (config, env) = (config(&sim, node.env()), node.env());
    sim.block_on(node.run(async move {
        let running = Node::start_tuned(config, tuning()).await.expect("a fresh node starts");
        let client = running.client();
        let bucket = client.create_bucket("logs", "root").await.expect("the name is free");
        let rule = LifecycleRule {
            id: "r".into(),
            enabled: true,
            prefix: "old/".into(),
            expire_days: Some(2),
            ..LifecycleRule::default()
        };
        let value = Some(LifecycleRules { rules: vec![rule] }.encode_to_vec().into());
        client.set_configuration(&bucket, ConfigurationKind::Lifecycle, value, None).await.expect("set");
        for key in ["old/a", "old/b", "new/a"] {
            put(&client, &bucket, key, bytes_of(5000, 1)).await.expect("stored");
        }
        env.sleep(DAY).await;
        // Written again: its days begin anew.
        put(&client, &bucket, "old/b", bytes_of(5000, 2)).await.expect("stored");
        assert!(get(&client, &bucket, "old/a").await.is_ok(), "one day is not two");
        env.sleep(DAY + Duration::from_secs(5)).await;
        assert_eq!(get(&client, &bucket, "old/a").await, Err(Error::NoSuchKey));
        assert_eq!(get(&client, &bucket, "old/b").await.expect("not due yet"), bytes_of(5000, 2));
        env.sleep(DAY).await;
        assert_eq!(get(&client, &bucket, "old/b").await, Err(Error::NoSuchKey));
        assert!(get(&client, &bucket, "new/a").await.is_ok(), "no rule speaks of it");
    }))
    .expect("nothing crashes here");
}

/// The clock of the node that looks for what is due jumps by ten days.
#[test]
fn a_clock_that_most_others_contradict_expires_nothing() {
    let cluster = three_with(15, Box::new(|_| tuning()));
    let leader = NodeId(cluster.nodes[&NODE].status().groups[1].leader as u32);
    let there = async |client: client::Client| {
        let bucket = client.bucket("logs").await.expect("it is there");
        get(&client, &bucket, "a").await
    };
    let client = cluster.client(leader);
    cluster.on(leader, async move {
        let bucket = client.create_bucket("logs", "root").await.expect("the name is free");
        let rule = LifecycleRule { id: "r".into(), enabled: true, expire_days: Some(2), ..LifecycleRule::default() };
        let value = Some(LifecycleRules { rules: vec![rule] }.encode_to_vec().into());
        client.set_configuration(&bucket, ConfigurationKind::Lifecycle, value, None).await.expect("set");
        put(&client, &bucket, "a", bytes_of(5000, 1)).await.expect("stored");
    });
    let jump_ms = 10 * DAY.as_millis() as i64;
    cluster.sim.jump_wall(leader, jump_ms);
    cluster.sim.run_for(DAY);
    assert_eq!(cluster.on(leader, there(cluster.client(leader))), Ok(bytes_of(5000, 1).to_vec()));
    cluster.sim.jump_wall(leader, -jump_ms);
    cluster.sim.run_for(DAY);
    assert!(cluster.on(leader, there(cluster.client(leader))).is_ok(), "two days are not over");
    cluster.sim.run_for(DAY + Duration::from_secs(60));
    assert_eq!(cluster.on(leader, there(cluster.client(leader))), Err(Error::NoSuchKey));
}

#[test]
fn bytes_move_to_the_pool_of_their_storage_class_and_stay_the_same() {
    let sim = Sim::new(13);
    let node = sim.node(NODE);
    let (config, env) = (config(&sim, node.env()), node.env());
    sim.block_on(node.run(async move {
        let running = Node::start_tuned(config, tuning()).await.expect("a fresh node starts");
        let client = running.client();
        let pool = client.create_pool("cold", "COLD", 3).await.expect("made").id;
        assert_eq!(client.pool_of_class("COLD").await, Ok(Some(pool)));
        assert_eq!(client.pool_of_class("WARM").await, Ok(None));
        assert!(matches!(client.create_pool("again", "COLD", 3).await, Err(Error::Invalid(_))));
        let more = client.create_pool("more", "SAFER", 4).await;
        assert!(matches!(&more, Err(Error::Invalid(why)) if why.contains("at most 3 copies")), "{more:?}");
        let bucket = client.create_bucket("logs", "root").await.expect("the name is free");
        let (long, short) = (bytes_of(5 << 20, 1), bytes_of(100, 2));
        put(&client, &bucket, "long", long.clone()).await.expect("stored");
        put(&client, &bucket, "short", short.clone()).await.expect("stored");
        put(&client, &bucket.clone().in_pool(pool), "there", long.clone()).await.expect("stored");
        let transitions = vec![Transition { class: "COLD".into(), days: 1, ..Transition::default() }];
        let rule = LifecycleRule { id: "r".into(), enabled: true, transitions, ..LifecycleRule::default() };
        let value = Some(LifecycleRules { rules: vec![rule] }.encode_to_vec().into());
        client.set_configuration(&bucket, ConfigurationKind::Lifecycle, value, None).await.expect("set");
        let places = async |key: &str| {
            let object = client.head(&bucket, &key.to_owned().into(), None).await.expect("it is there");
            let chunks = meta::chunks::unpack(&object.body.unwrap_or_default().chunks).expect("whole");
            let pools: Vec<u8> = chunks.iter().map(|chunk| chunk.id.pool.0).collect();
            (object.attributes.unwrap_or_default().pool, pools)
        };
        assert_eq!(places("long").await, (0, vec![1, 1]));
        assert_eq!(places("there").await.1, [pool as u8; 2], "what is written to a pool is stored there");
        env.sleep(DAY + Duration::from_secs(5)).await;
        assert_eq!(places("long").await, (pool, vec![pool as u8; 2]));
        assert_eq!(places("short").await, (pool, vec![]));
        for (key, bytes) in [("long", &long), ("short", &short), ("there", &long)] {
            assert_eq!(get(&client, &bucket, key).await.expect("readable"), *bytes, "{key}");
        }
    }))
    .expect("nothing crashes here");
}

/// One object whose bytes are gone ended the search through all buckets of its shard, each time before what came after it.
#[test]
fn an_object_that_cannot_be_moved_holds_up_nothing_else() {
    let sim = Sim::new(14);
    let node = sim.node(NODE);
    let (config, env) = (config(&sim, node.env()), node.env());
    sim.block_on(node.run(async move {
        let running = Node::start_tuned(config, tuning()).await.expect("a fresh node starts");
        let client = running.client();
        let pool = client.create_pool("cold", "COLD", 2).await.expect("made").id;
        let transitions = vec![Transition { class: "COLD".into(), days: 1, ..Transition::default() }];
        let moves = LifecycleRule { id: "m".into(), enabled: true, transitions, ..LifecycleRule::default() };
        let expires = LifecycleRule { id: "e".into(), enabled: true, expire_days: Some(1), ..LifecycleRule::default() };
        let mut buckets = Vec::new();
        for (name, rule) in [("first", moves), ("second", expires)] {
            let bucket = client.create_bucket(name, "root").await.expect("the name is free");
            for key in ["a", "b"] {
                put(&client, &bucket, key, bytes_of(5000, 1)).await.expect("stored");
            }
            let value = Some(LifecycleRules { rules: vec![rule] }.encode_to_vec().into());
            client.set_configuration(&bucket, ConfigurationKind::Lifecycle, value, None).await.expect("set");
            buckets.push(bucket);
        }
        let object = client.head(&buckets[0], &"a".to_owned().into(), None).await.expect("it is there");
        let chunks = meta::chunks::unpack(&object.body.unwrap_or_default().chunks).expect("whole");
        let ids: Vec<_> = chunks.iter().map(|chunk| chunk.id).collect();
        client.bury_chunks(&ids).await.expect("its bytes are gone");
        env.sleep(DAY + Duration::from_secs(90)).await;
        let b = client.head(&buckets[0], &"b".to_owned().into(), None).await.expect("it is there");
        assert_eq!(b.attributes.unwrap_or_default().pool, pool, "the next object moved");
        for key in ["a", "b"] {
            assert_eq!(get(&client, &buckets[1], key).await, Err(Error::NoSuchKey), "{key} has expired");
        }
    }))
    .expect("nothing crashes here");
}

#[test]
fn a_quota_is_counted_and_kept_by_writes_of_every_kind() {
    let sim = Sim::new(12);
    let node = sim.node(NODE);
    let config = config(&sim, node.env());
    sim.block_on(node.run(async move {
        let running = Node::start(config).await.expect("a fresh node starts");
        let client = running.client();
        let bucket = client.create_bucket("small", "root").await.expect("the name is free");
        put(&client, &bucket, "a", bytes_of(6000, 1)).await.expect("stored");
        let quota = Some(Quota { bytes_max: Some(10_000), objects_max: None });
        client.set_quota(&bucket, quota).await.expect("set and counted");
        let usage = client.usage(&bucket).await.expect("counted");
        assert_eq!((usage.bytes, usage.objects, usage.complete), (6000, 1, true));
        let refused = put(&client, &bucket, "b", bytes_of(5000, 1)).await;
        assert!(matches!(refused, Err(Error::QuotaExceeded { .. })), "{refused:?}");
        put(&client, &bucket, "b", bytes_of(4000, 1)).await.expect("it fits");
        client.set_quota(&bucket, None).await.expect("taken away");
        put(&client, &bucket, "c", bytes_of(5000, 1)).await.expect("nothing limits it");
    }))
    .expect("nothing crashes here");
}
