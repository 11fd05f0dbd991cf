//! Crashes, lost states, cuts: nothing that was acknowledged is lost, and the group comes back.

use base::env::RandomExt;
use base::ids::NodeId;
use protocol::membership::NodeState;
use protocol::raft::{ConfigurationChange, Role};

use crate::cluster::{CALM, Cluster, ROUGH};
use crate::members::grown;

#[test]
fn a_voter_without_state_votes_and_acknowledges_but_never_leads() {
    for seed in 0..20 {
        let mut cluster = grown(seed, 3);
        cluster.flush_state(NodeId(2), seed % 2 == 0);
        cluster.run(20);
        let (lost, dead) = (NodeId(2), NodeId(3));
        // Who led until now is the dead one: an election is needed at once.
        let leader = cluster.leader().unwrap();
        let dead = if leader == lost { dead } else { leader };
        cluster.crash(lost);
        cluster.lose_state(lost);
        cluster.faults.pull = (450, 500);
        cluster.start(lost);
        cluster.crash(dead);
        let before = cluster.acked.len();
        cluster.run_until("commands with a lost state and a dead voter", 400, |cluster| {
            assert_ne!(cluster.leader(), Some(lost));
            cluster.acked.len() > before + 30
        });
        assert!(cluster.raft(lost).needs_snapshot(), "all that was while its state is still being pulled");
        cluster.run_until("its state is back", 1000, |cluster| !cluster.raft(lost).needs_snapshot());
        let survivor = cluster.nodes.keys().copied().find(|id| *id != lost && *id != dead).unwrap();
        cluster.assert_converged(&[lost.0, survivor.0]);
        // Now it may lead.
        cluster.start(dead);
        cluster.assert_converged(&[1, 2, 3]);
        let peer = cluster.configuration(lost).peer_of(lost).unwrap();
        cluster.run_until("it leads", 200, |cluster| {
            if let Some(leader) = cluster.leader() {
                cluster.raft(leader).transfer_leadership(peer);
            }
            cluster.leader() == Some(lost)
        });
    }
}

#[test]
fn a_follower_behind_the_trimmed_log_is_brought_up_by_snapshot() {
    for seed in 0..20 {
        let mut cluster = grown(seed, 3);
        cluster.run(20);
        let behind = NodeId(cluster.leader().unwrap().0 % 3 + 1);
        cluster.crash(behind);
        let before = cluster.acked.len();
        cluster.run_until("commands", 1000, |cluster| cluster.acked.len() > before + 50);
        cluster.run(20);
        for id in 1..=3 {
            cluster.flush_state(NodeId(id), true);
        }
        cluster.faults = if seed % 2 == 0 { CALM } else { ROUGH };
        cluster.start(behind);
        let before = cluster.acked.len();
        cluster.run_until("commands", 3000, |cluster| cluster.acked.len() > before + 50);
        cluster.assert_converged(&[1, 2, 3]);
    }
}

#[test]
fn a_joint_configuration_survives_a_restart_of_all() {
    let mut seen = 0;
    for seed in 0..60 {
        let mut cluster = grown(seed, 4);
        cluster.run(60);
        cluster.plans = false;
        let leader = cluster.leader().unwrap();
        let now = cluster.configuration(leader);
        let leaving = now.voters.iter().copied().find(|peer| now.node_of(*peer) != Some(leader)).unwrap();
        let change = ConfigurationChange::Promote { peers: now.learners.clone(), remove: vec![leaving] };
        cluster.raft(leader).propose_configuration(&change).unwrap();
        let last = now.learners.clone();
        cluster.run(seed % 10);
        let joint = (1..=4).any(|id| cluster.configuration(NodeId(id)).is_joint());
        for id in 1..=4 {
            if cluster.random.below(2) == 0 {
                cluster.flush_state(NodeId(id), false);
            }
        }
        for id in 1..=4 {
            cluster.crash(NodeId(id));
        }
        for id in 1..=4 {
            cluster.start(NodeId(id));
        }
        let before = cluster.acked.len();
        cluster.run_until("commands after the restart", 2000, |cluster| cluster.acked.len() > before + 10);
        cluster.run_until("out of the joint configuration", 2000, |cluster| {
            let leader = cluster.leader();
            leader.is_some_and(|leader| !cluster.configuration(leader).is_joint())
        });
        if joint {
            seen += 1;
            let leader = cluster.leader().unwrap();
            let after = cluster.configuration(leader);
            assert!(after.voters.contains(&last[0]) && !after.voters.contains(&leaving), "{after:?}");
        }
    }
    assert!(seen > 10, "the restart fell into a joint configuration in {seen} seeds");
}

/// The first voter grew the group to three, and its own state was never flushed since: it comes back with the
/// configuration of a group of one, whose only voter could elect itself at once.
#[test]
fn a_state_from_before_the_group_grew_does_not_make_a_second_leader() {
    for seed in 0..20 {
        let mut cluster = grown(seed, 3);
        cluster.plans = false;
        cluster.run(60);
        let first = NodeId(1);
        cluster.crash(first);
        let cut: Vec<_> = [2, 3].into_iter().flat_map(|id| [(first, NodeId(id)), (NodeId(id), first)]).collect();
        cluster.cut.extend(cut);
        cluster.start(first);
        assert!(cluster.configuration(first).voters.len() == 1, "the state is that old");
        let before = cluster.acked.len();
        for _ in 0..300 {
            assert_ne!(cluster.raft(first).leadership().role, Role::Leader);
            cluster.propose();
            cluster.tick();
        }
        assert!(cluster.acked.len() > before, "the others go on");
        cluster.cut.clear();
        cluster.assert_converged(&[1, 2, 3]);
    }
}

/// Everything at once, under many seeds. What must hold is checked by the cluster with every step.
#[test]
fn whatever_happens() {
    let seeds = std::env::var("PROTOCOL_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    let from = std::env::var("PROTOCOL_SEED_FROM").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in from..from + seeds {
        let guard = Named(seed);
        ordeal(seed);
        std::mem::forget(guard);
    }
}

/// Says which seed failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        eprintln!("seed {}", self.0);
    }
}

fn ordeal(seed: u64) {
    let nodes = 3 + (seed % 3) as u32;
    let mut cluster = Cluster::new(seed, nodes);
    cluster.group_zero = seed.is_multiple_of(2);
    cluster.wanted_voters = if nodes == 5 && seed % 4 < 2 { 5 } else { 3 };
    cluster.flushes_changes = seed % 8 < 6;
    let random = cluster.random.clone();
    let mut healthy_lost = None;
    for _ in 0..40 {
        cluster.faults = if random.below(3) == 0 { CALM } else { ROUGH };
        for _ in 0..random.below(120) {
            for _ in 0..random.below(3) {
                cluster.propose();
            }
            if let Some(leader) = cluster.leader() {
                cluster.read(leader);
            }
            cluster.tick();
        }
        let node = NodeId(1 + random.below(u64::from(nodes)) as u32);
        match random.below(9) {
            0 | 1 => cluster.crash(node),
            2 | 3 => cluster.start(node),
            4 => cluster.flush_state(node, true),
            5 => {
                let other = NodeId(1 + random.below(u64::from(nodes)) as u32);
                cluster.cut.insert((node, other));
            }
            6 => cluster.cut.clear(),
            7 => {
                // One state at a time: what only it held may be with no other otherwise.
                let healed = healthy_lost.is_none_or(|id: NodeId| cluster.nodes[&id].state.is_some());
                // Of two voters, the one without a state may have the longer log: only an operator can decide then.
                let three = cluster.flushes_changes && cluster.voters_min() > 2;
                if healed && three {
                    cluster.crash(node);
                    cluster.lose_state(node);
                    cluster.start(node);
                    healthy_lost = Some(node);
                }
            }
            _ => {
                let gone = cluster.states.values().filter(|state| **state != NodeState::Up).count();
                let state = cluster.states.get_mut(&node).unwrap();
                *state = if *state != NodeState::Up {
                    NodeState::Up
                } else if gone == 0 && nodes > 3 {
                    NodeState::Gone
                } else {
                    NodeState::Up
                };
            }
        }
    }
    cluster.faults = CALM;
    cluster.cut.clear();
    cluster.states.values_mut().for_each(|state| *state = NodeState::Up);
    for id in 1..=nodes {
        cluster.start(NodeId(id));
    }
    let before = cluster.acked.len();
    let wanted = cluster.wanted_voters;
    cluster.run_until("the group is whole", 10_000, |cluster| {
        let leader = cluster.leader();
        leader.is_some_and(|leader| {
            let now = cluster.configuration(leader);
            now.voters.len() >= wanted && !now.is_joint() && cluster.acked.len() > before + 10
        })
    });
    let leader = cluster.leader().unwrap();
    let now = cluster.configuration(leader);
    let ids: Vec<u32> = now.voters.iter().map(|peer| now.node_of(*peer).unwrap().0).collect();
    cluster.assert_converged(&ids);
}
