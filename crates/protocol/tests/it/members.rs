//! Groups grow, replace members, hand over leadership and serve reads.

use base::ids::{NodeId, PeerId};
use protocol::membership::NodeState;
use protocol::raft::{Configuration, ConfigurationChange, NotTaken, Role};

use crate::cluster::{CALM, Cluster, ROUGH};

fn voters(cluster: &Cluster) -> usize {
    cluster.leader().map_or(0, |leader| cluster.configuration(leader).voters.len())
}

fn settled(configuration: &Configuration, voters: usize) -> bool {
    configuration.voters.len() == voters && !configuration.is_joint()
}

/// A cluster whose group has grown over all its nodes.
pub fn grown(seed: u64, nodes: u32) -> Cluster {
    let mut cluster = Cluster::new(seed, nodes);
    cluster.run_until("three voters", 2000, |cluster| voters(cluster) == nodes.min(3) as usize);
    cluster
}

#[test]
fn a_group_grows_from_one_to_three_under_load() {
    for seed in 0..40 {
        let mut cluster = Cluster::new(seed, 3);
        cluster.faults = if seed % 2 == 0 { CALM } else { ROUGH };
        // Every other log still begins at entry 1 when the learners come.
        let trims = seed % 4 < 2;
        cluster.run_until("three voters", 20_000, |cluster| {
            if cluster.now.is_multiple_of(50) {
                cluster.flush_state(NodeId(1), trims);
            }
            voters(cluster) == 3
        });
        let sizes: Vec<usize> = cluster.configurations.values().map(|it| it.voters.len()).collect();
        assert!(sizes.is_sorted() && sizes.contains(&2), "one voter more at a time: {sizes:?}");
        cluster.faults = CALM;
        let before = cluster.acked.len();
        cluster.run_until("commands", 1000, |cluster| cluster.acked.len() > before + 20);
        cluster.assert_converged(&[1, 2, 3]);
        let peers: Vec<u64> = cluster.configuration(NodeId(2)).voters.iter().map(|peer| peer.0).collect();
        assert_eq!(peers, vec![1, 2, 3]);
    }
}

#[test]
fn a_dead_voter_is_replaced_in_one_joint_change() {
    for seed in 0..20 {
        let mut cluster = grown(seed, 4);
        cluster.run_until("a replica everywhere", 2000, |cluster| {
            let leader = cluster.leader().unwrap();
            cluster.configuration(leader).learners.len() == 1
        });
        cluster.faults = ROUGH;
        let spare = *cluster.configuration(NodeId(1)).learners.first().unwrap();
        let dead = NodeId(3);
        cluster.crash(dead);
        cluster.states.insert(dead, NodeState::Down);
        let known = cluster.configurations.len();
        cluster.run(300);
        assert_eq!(cluster.configurations.len(), known, "a node that is down changes nothing");
        cluster.states.insert(dead, NodeState::Gone);
        cluster.run_until("the dead voter is replaced", 20_000, |cluster| {
            let leader = cluster.leader();
            leader.is_some_and(|leader| {
                let now = cluster.configuration(leader);
                settled(&now, 3) && now.voters.contains(&spare) && now.peer_of(dead).is_none()
            })
        });
        let since: Vec<&Configuration> = cluster.configurations.values().skip(known).collect();
        assert!(since.iter().any(|it| it.is_joint() && it.voters_outgoing.len() == 3), "{since:?}");
        assert!(since.iter().all(|it| it.voters.len() == 3), "never fewer voters: {since:?}");
        cluster.faults = CALM;
        cluster.assert_converged(&[1, 2, 4]);
        // The old peer comes back, asks and is told nothing; the node gets a new one.
        cluster.start(dead);
        cluster.states.insert(dead, NodeState::Up);
        cluster.run_until("a new replica", 20_000, |cluster| {
            let leader = cluster.leader();
            leader.is_some_and(|leader| cluster.configuration(leader).peer_of(dead) == Some(PeerId(5)))
        });
        cluster.assert_converged(&[1, 2, 3, 4]);
    }
}

#[test]
fn a_removed_leader_hands_over_first() {
    let mut cluster = grown(5, 3);
    let leader = cluster.leader().unwrap();
    cluster.states.insert(leader, NodeState::Removed);
    cluster.run_until("two voters", 5000, |cluster| {
        let now = cluster.leader().unwrap_or(leader);
        now != leader && settled(&cluster.configuration(now), 2)
    });
    cluster.run(200);
    assert_ne!(cluster.leader(), Some(leader));
    assert_eq!(voters(&cluster), 2);
}

#[test]
fn five_voters_come_two_at_a_time() {
    let mut cluster = Cluster::new(9, 5);
    cluster.wanted_voters = 5;
    cluster.run_until("five voters", 5000, |cluster| voters(cluster) == 5);
    assert!(cluster.configurations.values().all(|it| it.voters.len() != 4 || it.is_joint()));
    cluster.assert_converged(&[1, 2, 3, 4, 5]);
}

#[test]
fn leadership_goes_where_it_is_sent() {
    let mut cluster = grown(3, 3);
    for round in 0..6u32 {
        let target = NodeId(1 + round % 3);
        if cluster.leader() == Some(target) {
            continue;
        }
        let peer = cluster.configuration(target).peer_of(target).unwrap();
        let from = cluster.leader().unwrap();
        let start = cluster.now;
        cluster.run_until("the transfer", 60, |cluster| {
            let leader = cluster.leader();
            if cluster.now > start + 20 && leader == Some(from) {
                panic!("an able voter takes over within an election timeout");
            }
            if cluster.now == start + 5 {
                cluster.raft(from).transfer_leadership(peer);
            }
            leader == Some(target)
        });
    }
    // To a learner, to nobody, to a dead node: nothing happens.
    let leader = cluster.leader().unwrap();
    let dead = NodeId(leader.0 % 3 + 1);
    let dead_peer = cluster.configuration(leader).peer_of(dead).unwrap();
    cluster.crash(dead);
    cluster.run(40);
    cluster.raft(leader).transfer_leadership(dead_peer);
    cluster.raft(leader).transfer_leadership(PeerId(77));
    assert!(cluster.propose().is_some(), "commands are still taken");
}

#[test]
fn reads_are_granted_by_a_majority_only() {
    for seed in 0..20 {
        let mut cluster = grown(seed, 3);
        cluster.faults = ROUGH;
        for _ in 0..300 {
            cluster.propose();
            let leader = cluster.leader();
            leader.map(|leader| cluster.read(leader));
            cluster.tick();
        }
        assert!(cluster.granted > 100, "{}", cluster.granted);
        // An old leader that is cut off may believe in itself for a while: it grants nothing any more.
        cluster.faults = CALM;
        cluster.run(60);
        let old = cluster.leader().unwrap();
        let others: Vec<NodeId> = cluster.nodes.keys().copied().filter(|id| *id != old).collect();
        cluster.run(30);
        cluster.cut.extend(others.iter().flat_map(|other| [(old, *other), (*other, old)]));
        let before = cluster.granted;
        for _ in 0..100 {
            cluster.read(old);
            cluster.propose();
            cluster.tick();
        }
        assert_eq!(cluster.granted, before, "alone it has no majority");
        assert_ne!(cluster.raft(old).leadership().role, Role::Leader, "and steps down");
        cluster.cut.clear();
        cluster.assert_converged(&[1, 2, 3]);
    }
}

#[test]
fn one_change_at_a_time() {
    let mut cluster = Cluster::new(1, 3);
    cluster.plans = false;
    cluster.run(30);
    let raft = cluster.raft(NodeId(1));
    let change = ConfigurationChange::AddLearner { node: NodeId(2) };
    raft.propose_configuration(&change).unwrap();
    assert!(raft.pending_configuration());
    assert_eq!(raft.propose_configuration(&change), Err(NotTaken::Busy));
    let unknown = ConfigurationChange::Promote { peers: vec![PeerId(9)], remove: vec![] };
    cluster.run(20);
    assert!(!cluster.raft(NodeId(1)).pending_configuration());
    assert_eq!(cluster.raft(NodeId(1)).propose_configuration(&unknown), Err(NotTaken::Busy));
    let last = ConfigurationChange::Remove { peers: vec![PeerId(1)] };
    assert_eq!(cluster.raft(NodeId(1)).propose_configuration(&last), Err(NotTaken::Busy));
    assert_eq!(cluster.configuration(NodeId(1)).peer_last, PeerId(2));
}
