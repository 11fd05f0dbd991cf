//! A cluster's metadata is kept in a file, lost, and put back.

use base::env::Disk;
use base::ids::NodeId;
use bytes::Bytes;
use client::{BucketInfo, Error, ListObjectsRequest};
use node::Node;
use node::backup;
use std::sync::Arc;
use tokio::sync::mpsc;

use crate::cluster::Cluster;
use crate::{SIZES, bytes_of, get, put};

/// The one whose disk is exchanged.
const NEW_DISK: NodeId = NodeId(3);

impl Cluster {
    fn backup(&self, asked: u32) -> Bytes {
        let node = self.nodes[&NodeId(asked)].clone();
        let (out, mut pieces) = mpsc::channel(2);
        self.on(NodeId(asked), async move {
            let taking = async move { node.backup(out).await };
            let gathering = async {
                let mut all = Vec::new();
                while let Some(piece) = pieces.recv().await {
                    all.extend_from_slice(&piece);
                }
                all
            };
            futures_util::future::join(taking, gathering).await.1.into()
        })
    }

    fn stop_all(&mut self) {
        for (id, _) in std::mem::take(&mut self.nodes) {
            self.sim.crash(id);
        }
    }

    /// `None`: the node crashed meanwhile.
    fn restore(&self, id: u32, file: &Bytes) -> Option<Result<Vec<String>, String>> {
        let generation = backup::check(&file[..]).map_or(1, |summary| summary.generation_above(0).expect("the first"));
        self.restore_as(id, file, generation)
    }

    fn restore_as(&self, id: u32, file: &Bytes, generation: u32) -> Option<Result<Vec<String>, String>> {
        let id = NodeId(id);
        let (data, disk): (Arc<dyn Disk>, Arc<dyn Disk>) = (self.sim.disk(id, "data"), self.sim.disk(id, "disk"));
        let (env, file) = (self.sim_node(id).env(), file.clone());
        let restored = async move {
            let open = || Ok(std::io::Cursor::new(file.clone()));
            let target =
                backup::Target { env: &env, data: &*data, metadata: disk, new_disk: id == NEW_DISK, generation };
            let done = backup::restore(target, open).await?;
            backup::finish(&*data)?;
            Ok(done)
        };
        self.sim.block_on(self.sim_node(id).run(restored)).ok()
    }

    fn start_all(&mut self, nodes: &[u32]) {
        nodes.iter().for_each(|id| self.start(NodeId(*id)));
    }

    fn keys(&self, asked: u32) -> Vec<String> {
        let client = self.client(NodeId(asked));
        self.on(NodeId(asked), async move {
            let bucket = client.bucket("photos").await.expect("the bucket is there");
            let listed = client.list_objects(&bucket, ListObjectsRequest { limit: 1000, ..Default::default() }).await;
            let objects = listed.expect("the shard answers").objects;
            objects.into_iter().map(|object| String::from_utf8_lossy(&object.key).into_owned()).collect()
        })
    }
}

/// A cluster of `nodes` with one object of each size.
fn filled(seed: u64, nodes: u32) -> Cluster {
    let mut cluster = Cluster::found(seed);
    for _ in 1..nodes {
        cluster.join();
    }
    if nodes > 1 {
        cluster.wait_for_safety(NodeId(1));
    }
    let client = cluster.client(NodeId(1));
    cluster.on(NodeId(1), async move {
        let bucket = client.create_bucket("photos", "root").await.expect("the name is free");
        for (at, size) in SIZES.into_iter().enumerate() {
            put(&client, &bucket, &format!("key-{at}"), bytes_of(size, at as u8)).await.expect("stored");
        }
    });
    cluster
}

fn put_through(cluster: &Cluster, node: u32, key: &'static str) -> Result<(), Error> {
    let client = cluster.client(NodeId(node));
    cluster.on(NodeId(node), async move {
        let bucket: BucketInfo = client.bucket("photos").await?;
        put(&client, &bucket, key, bytes_of(300_000, 9)).await
    })
}

fn check_objects(cluster: &Cluster, node: u32) {
    let client = cluster.client(NodeId(node));
    cluster.on(NodeId(node), async move {
        let bucket = client.bucket("photos").await.expect("the bucket is there");
        for (at, size) in SIZES.into_iter().enumerate() {
            let read = get(&client, &bucket, &format!("key-{at}")).await.expect("the object is there");
            assert!(read == bytes_of(size, at as u8), "through node {node}: key-{at}");
        }
    });
}

/// Five nodes, of which two do not vote in the shard. What came after the backup is gone, all else is there; one node has lost
/// its disk altogether, and is healed.
#[test]
fn metadata_comes_back_from_a_backup() {
    let mut cluster = filled(7, 5);
    let file = cluster.backup(5);
    let summary = backup::check(&file[..]).expect("it is whole");
    assert_eq!((summary.nodes.len(), summary.buckets, summary.versions), (5, 1, SIZES.len() as u64));
    assert_eq!(summary.groups.iter().map(|group| group.voters.len()).collect::<Vec<_>>(), [5, 3]);
    put_through(&cluster, 2, "later").expect("stored");
    cluster.stop_all();
    cluster.sim.disk(NodeId(3), "disk").erase();
    for id in 1..=5 {
        let done = cluster.restore(id, &file).expect("no crash").expect("it fits");
        assert_eq!(done.len(), 2, "{done:?}");
    }
    cluster.start_all(&[1, 2, 3, 4, 5]);
    cluster.wait_for_safety(NodeId(4));
    (1..=5).for_each(|id| check_objects(&cluster, id));
    let keys: Vec<String> = (0..SIZES.len()).map(|at| format!("key-{at}")).collect();
    assert_eq!(cluster.keys(2), keys, "what came later is not there");
    put_through(&cluster, 3, "afterwards").expect("it goes on");
    // Whatever joined since the backup, its id is not used again.
    assert!(cluster.join() > NodeId(100));
}

/// A node on which nothing was restored is of the cluster's former life.
#[test]
fn a_node_that_was_not_restored_stays_out() {
    let mut cluster = filled(8, 3);
    let file = cluster.backup(1);
    cluster.stop_all();
    for id in [1, 2] {
        cluster.restore(id, &file).expect("no crash").expect("it fits");
    }
    cluster.start_all(&[1, 2]);
    cluster.sim.run_for(std::time::Duration::from_secs(2));
    let config = cluster.config(NodeId(3));
    let started = cluster.sim.block_on(cluster.sim_node(NodeId(3)).run(Node::start(config)));
    if let Ok(Ok(node)) = started {
        let why = cluster.on(NodeId(3), async move { node.ended().await });
        assert!(why.contains("recovered without this node"), "{why}");
    }
    check_objects(&cluster, 2);
    // Restored, it comes in, although the others have gone on meanwhile.
    cluster.sim.crash(NodeId(3));
    put_through(&cluster, 1, "meanwhile").expect("two of three are enough");
    cluster.restore(3, &file).expect("no crash").expect("it fits");
    cluster.start(NodeId(3));
    cluster.wait_for_safety(NodeId(3));
    check_objects(&cluster, 3);
    assert!(cluster.keys(3).contains(&"meanwhile".to_owned()));
}

/// Cut off anywhere, it is begun again; the node does not start meanwhile.
#[test]
fn a_restoration_that_is_cut_off_is_done_again() {
    let mut cluster = filled(9, 3);
    let file = cluster.backup(2);
    cluster.stop_all();
    let mut refused = 0;
    for nth in 1.. {
        cluster.sim.disk(NodeId(1), "disk").crash_after_ops(nth);
        let done = cluster.restore(1, &file);
        cluster.sim.disk(NodeId(1), "disk").crash_after_ops(0);
        match done {
            Some(Ok(_)) => {
                assert!(nth > 20, "a restoration has many operations: {nth}");
                break;
            }
            Some(Err(why)) => assert!(why.contains("power"), "{why}"),
            None => {}
        }
        cluster.sim.crash(NodeId(1));
        // Before anything was changed, the node is what it was.
        let config = cluster.config(NodeId(1));
        let started = cluster.sim.block_on(cluster.sim_node(NodeId(1)).run(Node::start(config)));
        match started.expect("no crash") {
            Ok(_) => cluster.sim.crash(NodeId(1)),
            Err(why) => {
                assert!(why.to_string().contains("was cut off"), "{why}");
                refused += 1;
            }
        }
    }
    assert!(refused > 10);
    for id in [2, 3] {
        cluster.restore(id, &file).expect("no crash").expect("it fits");
    }
    cluster.start_all(&[1, 2, 3]);
    cluster.wait_for_safety(NodeId(1));
    check_objects(&cluster, 1);
}

/// Every flipped bit and every missing end is noticed before anything is changed; so is a file of another cluster, and a
/// generation that is not above the backup's.
#[test]
fn what_is_not_a_whole_backup_changes_nothing() {
    let mut cluster = filled(10, 1);
    let file = cluster.backup(1);
    backup::check(&file[..]).expect("it is whole");
    let steps = (0..file.len()).step_by(file.len() / 500);
    for at in steps {
        assert!(backup::check(&file[..at]).is_err(), "cut at {at}");
        let mut hurt = file.to_vec();
        hurt[at] ^= 1 << (at % 8);
        assert!(backup::check(&hurt[..]).is_err(), "a bit flipped at {at}");
    }
    assert!(backup::check(&[&file[..], b"x"].concat()[..]).is_err(), "something follows");
    let mut other = filled(11, 1);
    cluster.stop_all();
    other.stop_all();
    let cut = file.slice(..file.len() - 3);
    for (cluster, file, generation, why) in
        [(&cluster, &cut, 1, "before its end"), (&other, &file, 1, "cluster"), (&cluster, &file, 0, "above 0")]
    {
        let refused = cluster.restore_as(1, file, generation).expect("no crash").expect_err(why);
        assert!(refused.contains(why), "{refused}");
    }
    for cluster in [&mut cluster, &mut other] {
        cluster.start(NodeId(1));
        check_objects(cluster, 1);
    }
    cluster.stop_all();
    cluster.sim.disk(NodeId(1), "disk").erase();
    let refused = cluster.restore(1, &file).expect("no crash").expect_err("nobody said that the disk is a new one");
    assert!(refused.contains("--new-disk"), "{refused}");
}

/// Nodes that were restored from different backups are not one cluster, and one whose restoration was cut off is not
/// restored from an older one: it may have voted since.
#[test]
fn backups_are_told_apart() {
    let mut cluster = filled(12, 1);
    let first = cluster.backup(1);
    put_through(&cluster, 1, "later").expect("stored");
    let second = cluster.backup(1);
    let generation_of =
        |file: &Bytes| backup::check(&file[..]).expect("it is whole").generation_above(0).expect("free");
    let (low, high) = match generation_of(&first) < generation_of(&second) {
        true => (first, second),
        false => (second, first),
    };
    assert!(generation_of(&low) < generation_of(&high));
    cluster.stop_all();
    cluster.sim.disk(NodeId(1), "disk").crash_after_ops(15);
    let cut = cluster.restore(1, &high);
    assert!(cut.is_none_or(|cut| cut.is_err()));
    cluster.sim.disk(NodeId(1), "disk").crash_after_ops(0);
    cluster.sim.crash(NodeId(1));
    let refused = cluster.restore(1, &low).expect("no crash").expect_err("another was begun");
    assert!(refused.contains("another restoration"), "{refused}");
    cluster.restore(1, &high).expect("no crash").expect("it fits");
    cluster.start(NodeId(1));
    check_objects(&cluster, 1);
}
