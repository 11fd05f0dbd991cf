use super::*;
use base::ids::NodeId;
use std::sync::atomic::{AtomicU64, Ordering};

struct Counter(AtomicU64);

impl Random for Counter {
    fn next_u64(&self) -> u64 {
        let z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    }
}

fn random(seed: u64) -> Arc<dyn Random> {
    Arc::new(Counter(AtomicU64::new(seed)))
}

fn configuration(voters: &[u64]) -> Configuration {
    let voters: Vec<PeerId> = voters.iter().copied().map(PeerId).collect();
    Configuration {
        nodes: voters.iter().map(|peer| (*peer, NodeId(peer.0 as u32))).collect(),
        peer_last: voters.last().copied().unwrap_or_default(),
        voters,
        ..Configuration::default()
    }
}

fn fresh(peer: u64, voters: &[u64]) -> Restored {
    Restored { peer: PeerId(peer), configuration: configuration(voters), ..Restored::default() }
}

/// Handles all readies of one peer as a driver would, without losing anything.
fn settle(peer: &mut RaftPeer) -> (Vec<Entry>, Vec<Message>, Vec<ReadGrant>) {
    let (mut committed, mut messages, mut reads) = (vec![], vec![], vec![]);
    while let Some(ready) = peer.take_ready() {
        messages.extend(ready.messages);
        peer.persisted(ready.number);
        messages.extend(ready.messages_after_flush);
        if let Some(last) = ready.committed.last() {
            peer.applied(last.index);
        }
        committed.extend(ready.committed);
        reads.extend(ready.reads);
    }
    (committed, messages, reads)
}

#[test]
fn the_only_voter_leads_at_once_and_commits_only_what_is_durable() {
    let mut peer = RaftPeer::new(fresh(1, &[1]), random(1)).unwrap();
    assert_eq!(peer.propose(Bytes::from_static(b"\x01x")), Err(NotTaken::NotLeader));
    peer.campaign();
    assert_eq!(peer.leadership().role, Role::Leader);
    settle(&mut peer);
    let (index, term) = peer.propose(Bytes::from_static(b"\x01a")).unwrap();
    let ready = peer.take_ready().unwrap();
    assert_eq!(ready.append, vec![Entry { index, term, data: Bytes::from_static(b"\x01a") }]);
    assert!(ready.committed.is_empty(), "not durable yet, so not committed");
    assert!(peer.take_ready().is_none());
    peer.persisted(ready.number);
    let (committed, _, _) = settle(&mut peer);
    assert_eq!(committed.len(), 1);
    peer.read_index(7).unwrap();
    let (_, _, reads) = settle(&mut peer);
    assert_eq!(reads, vec![ReadGrant { context: 7, index }]);
}

#[test]
fn a_restarted_peer_continues_after_what_was_applied() {
    let mut restored = fresh(1, &[1]);
    restored.hard_state = HardState { term: Term(3), vote: PeerId(1) };
    restored.base = (LogIndex(10), Term(2));
    restored.entries =
        (11..=14).map(|i| Entry { index: LogIndex(i), term: Term(3), data: Bytes::from_static(b"\x01c") }).collect();
    restored.applied = LogIndex(12);
    let mut peer = RaftPeer::new(restored.clone(), random(2)).unwrap();
    peer.campaign();
    let (committed, _, _) = settle(&mut peer);
    let indices: Vec<u64> = committed.iter().map(|entry| entry.index.0).collect();
    assert_eq!(indices, vec![13, 14, 15], "the rest of the log and the new term's own entry");
    peer.trim(LogIndex(14));
    assert_eq!(peer.log_size().1, 1);

    restored.applied = LogIndex(15);
    assert!(RaftPeer::new(restored, random(2)).is_err(), "a state machine ahead of its log lost entries");
}

#[test]
fn three_peers_elect_one_leader_and_agree() {
    let mut peers: Vec<RaftPeer> =
        (1..=3).map(|i| RaftPeer::new(fresh(i, &[1, 2, 3]), random(i * 77)).unwrap()).collect();
    let mut logs: Vec<Vec<Entry>> = vec![vec![]; 3];
    let mut proposed = 0;
    for round in 0..200 {
        for peer in &mut peers {
            peer.tick();
        }
        for peer in &mut peers {
            if round > 60 && proposed < 20 && peer.propose(Bytes::from(vec![ENTRY_COMMAND, proposed])).is_ok() {
                proposed += 1;
            }
        }
        for _ in 0..6 {
            let mut all = vec![];
            for (peer, log) in peers.iter_mut().zip(&mut logs) {
                let (committed, messages, _) = settle(peer);
                log.extend(committed);
                all.extend(messages);
            }
            for message in all {
                let to = message.to().0 as usize - 1;
                peers[to].step(message).unwrap();
            }
        }
    }
    let leaders = peers.iter().filter(|peer| peer.leadership().role == Role::Leader).count();
    assert_eq!(leaders, 1);
    assert_eq!(proposed, 20);
    assert_eq!(logs[0].iter().filter(|entry| !entry.data.is_empty()).count(), 20);
    assert_eq!(logs[0], logs[1]);
    assert_eq!(logs[1], logs[2]);
}
