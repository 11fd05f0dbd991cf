//! What writes and reads promise with three copies, cell by cell: the table in `docs/consistency.md` quotes these tests.

use base::ids::NodeId;
use bytes::Bytes;
use client::{Acknowledgement, BucketInfo, Client, Error, Reads, Terms};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::{bytes_of, get, put};

const WRITER: NodeId = NodeId(1);

/// Three nodes that hold everything three times, and a bucket.
fn three(seed: u64) -> Cluster {
    let mut cluster = Cluster::found(seed);
    cluster.join();
    cluster.join();
    cluster.wait_for_voters(&[1, 2, 3]);
    let client = cluster.client(WRITER);
    cluster.on(WRITER, async move { client.create_bucket("b", "root").await.expect("the name is free") });
    cluster.wait_for_safety(WRITER);
    cluster
}

fn eventually() -> Terms {
    Terms { reads: Reads::Eventual(std::sync::Arc::default()), ..Terms::default() }
}

/// Bodies that ride in the metadata, and that are chunks.
fn bodies() -> [(&'static str, Bytes); 2] {
    [("small", bytes_of(700, 1)), ("large", bytes_of(300_000, 2))]
}

async fn put_both(client: &Client, bucket: &BucketInfo) -> Result<(), Error> {
    for (key, body) in bodies() {
        put(client, bucket, key, body).await?;
    }
    Ok(())
}

fn write(cluster: &Cluster, rule: Acknowledgement) -> Result<(), Error> {
    let client = cluster.client(WRITER);
    cluster.on(WRITER, async move {
        let bucket = client.bucket("b").await?;
        put_both(&client, &bucket.under(Terms { acknowledgement: Some(rule), ..Terms::default() })).await
    })
}

/// What a read finds, under these terms; and how stale it says that it may be.
fn read(cluster: &Cluster, node: NodeId, terms: Terms) -> (Result<bool, Error>, Option<u64>) {
    let client = cluster.client(node);
    cluster.on(node, async move {
        let Some(bucket) = client.known_bucket("b") else { return (Err(Error::NoSuchBucket), None) };
        let bucket = bucket.under(terms);
        let mut is_same = true;
        for (key, body) in bodies() {
            match get(&client, &bucket, key).await {
                Ok(found) => is_same &= found == body,
                Err(error) => return (Err(error), None),
            }
        }
        let staleness_ms = match &bucket.terms.reads {
            Reads::Eventual(staleness) => staleness.get_ms(),
            Reads::Strong => Some(0),
        };
        (Ok(is_same), staleness_ms)
    })
}

/// The power fails at the moment of the answer, and two of three nodes never come back: the third has it all.
fn outlives_two(rule: Acknowledgement, seed: u64) {
    for survivor in [1, 2, 3].map(NodeId) {
        let mut cluster = three(seed + u64::from(survivor.0));
        write(&cluster, rule).expect("written");
        for node in [1, 2, 3].map(NodeId) {
            cluster.sim.crash(node);
            cluster.nodes.remove(&node);
        }
        let config = cluster.config(survivor);
        let (env, data, disk) = (config.env, config.data, config.disks[0].disk.clone());
        let told = cluster.on(survivor, async move { node::offline::recover(&env, &*data, disk).await });
        told.expect("the survivor becomes the only voter");
        cluster.start(survivor);
        assert_eq!(read(&cluster, survivor, Terms::default()).0, Ok(true), "{rule:?} on {survivor}");
    }
}

#[test]
fn without_a_majority_a_strong_read_says_no_and_an_eventual_one_answers() {
    let cluster = three(60);
    write(&cluster, Acknowledgement::All).expect("written");
    // Followers learn a moment after the answer that what they hold is committed.
    cluster.sim.run_for(Duration::from_secs(1));
    cluster.sim.crash(NodeId(1));
    cluster.sim.crash(NodeId(2));
    let survivor = NodeId(3);
    let (found, staleness_ms) = read(&cluster, survivor, eventually());
    assert_eq!(found, Ok(true));
    assert!(staleness_ms.is_some());
    let (strong, _) = read(&cluster, survivor, Terms::default());
    assert!(matches!(strong, Err(Error::Unavailable(_))), "{strong:?}");
}

#[test]
fn all_outlives_two_nodes_at_once() {
    outlives_two(Acknowledgement::All, 10);
}

#[test]
fn all_strict_outlives_two_nodes_at_once() {
    outlives_two(Acknowledgement::AllStrict, 20);
}

/// Those that do not lead say who does.
#[test]
fn all_strict_is_taken_through_every_node() {
    let cluster = three(70);
    for node in [1, 2, 3].map(NodeId) {
        let client = cluster.client(node);
        let written = cluster.on(node, async move {
            let bucket = client.bucket("b").await?;
            let strict = Terms { acknowledgement: Some(Acknowledgement::AllStrict), ..Terms::default() };
            put(&client, &bucket.under(strict), "small", bytes_of(700, 1)).await
        });
        assert_eq!(written, Ok(()), "through {node}");
    }
}

/// It hears of its removal, and cannot answer: what it holds may be old for long.
#[test]
fn a_node_that_knows_that_it_was_voted_out_answers_no_eventual_read() {
    let cluster = three(80);
    write(&cluster, Acknowledgement::All).expect("written");
    cluster.sim.run_for(Duration::from_secs(1));
    let mute = NodeId(3);
    assert_eq!(read(&cluster, mute, eventually()).0, Ok(true));
    cluster.sim.cut(mute, NodeId(1));
    cluster.sim.cut(mute, NodeId(2));
    let is_out = |cluster: &Cluster| {
        let nodes = cluster.nodes[&mute].status().nodes;
        nodes.iter().any(|node| node.id == mute.0 && node.state == "down")
    };
    cluster.wait("the node knows", Duration::from_secs(20), is_out);
    cluster.sim.run_for(Duration::from_millis(100));
    let (refused, staleness_ms) = read(&cluster, mute, eventually());
    assert!(matches!(refused, Err(Error::Unavailable(_))) && staleness_ms.is_none(), "{refused:?}");
}

#[test]
fn all_goes_on_without_a_node_and_all_strict_does_not() {
    let cluster = three(30);
    cluster.sim.crash(NodeId(3));
    write(&cluster, Acknowledgement::All).expect("written without the dead node, once it is voted down");
    let refused = write(&cluster, Acknowledgement::AllStrict);
    assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("all-strict")), "{refused:?}");
    assert_eq!(read(&cluster, WRITER, Terms::default()).0, Ok(true));
}

#[test]
fn majority_and_one_outlive_a_node_that_is_not_the_only_holder() {
    for (seed, rule) in [(40, Acknowledgement::Majority), (41, Acknowledgement::One)] {
        let cluster = three(seed);
        // A silent node holds up what waits for all, until it is voted down; these do not wait for it.
        cluster.sim.pause(NodeId(3));
        let began = cluster.sim.now();
        write(&cluster, rule).expect("written");
        assert!(cluster.sim.now().since(began) < Duration::from_millis(300), "{rule:?} waits for nobody");
        cluster.sim.resume(NodeId(3));
        cluster.wait_for_safety(WRITER);
        cluster.sim.crash(WRITER);
        let reader = NodeId(2);
        cluster.wait("a strong read", Duration::from_secs(20), |cluster| {
            read(cluster, reader, Terms::default()).0 == Ok(true)
        });
    }
}

#[test]
fn an_eventual_read_says_how_stale_it_is() {
    let cluster = three(50);
    write(&cluster, Acknowledgement::All).expect("written");
    let apart = NodeId(3);
    cluster.sim.run_for(Duration::from_secs(1));
    cluster.sim.partition(&[&[apart], &[NodeId(1), NodeId(2)]]);
    cluster.sim.run_for(Duration::from_secs(5));
    let client = cluster.client(WRITER);
    cluster.on(WRITER, async move {
        let bucket = client.bucket("b").await.expect("the bucket is there");
        put(&client, &bucket, "small", bytes_of(700, 9)).await.expect("the majority goes on");
    });
    let written = cluster.sim.now();
    let (old, staleness_ms) = read(&cluster, apart, eventually());
    assert_eq!(old, Ok(true), "what it had");
    assert!(staleness_ms.is_some_and(|ms| (4500..10_000).contains(&ms)), "{staleness_ms:?}");
    assert!(read(&cluster, apart, Terms::default()).0.is_err(), "a strong read says no");
    cluster.sim.heal();
    // The first word of its leader does not make it fresh: what it lacks must have come, too.
    let end = cluster.sim.now() + Duration::from_secs(30);
    loop {
        assert!(cluster.sim.now() < end, "what is new never comes");
        let asked = cluster.sim.now();
        let (found, staleness_ms) = read(&cluster, apart, eventually());
        match found {
            Ok(false) if staleness_ms.is_some_and(|ms| ms < 1000) => break,
            Ok(true) => {
                let since_ms = asked.since(written).as_millis() as u64;
                assert!(staleness_ms.is_some_and(|ms| ms + 20 >= since_ms), "{staleness_ms:?} after {since_ms} ms");
            }
            _ => {}
        }
        cluster.sim.run_for(Duration::from_micros(200));
    }
    // The leader, and everybody else, is fresh while all is well.
    for node in [1, 2, 3].map(NodeId) {
        let (found, staleness_ms) = read(&cluster, node, eventually());
        assert_eq!(found, Ok(false));
        assert!(staleness_ms.is_some_and(|ms| ms < 1000), "{node}: {staleness_ms:?}");
    }
}
