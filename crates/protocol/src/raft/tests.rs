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
    assert_eq!(peer.known_committed(), None, "nothing of its own term is committed yet");
    settle(&mut peer);
    assert!(peer.known_committed().is_some());
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

/// It asks nobody for a vote, so nothing else makes its term durable before others hear of it.
#[test]
fn a_learner_hears_of_a_term_of_the_only_voter_when_it_is_durable() {
    let mut restored = fresh(1, &[1]);
    restored.configuration.learners = vec![PeerId(2)];
    restored.configuration.nodes.insert(PeerId(2), NodeId(2));
    restored.configuration.peer_last = PeerId(2);
    let mut peer = RaftPeer::new(restored, random(1)).unwrap();
    peer.campaign();
    let first = peer.take_ready().unwrap();
    assert!(first.hard_state.is_some() && first.messages.is_empty(), "{:?}", first.messages);
    peer.propose(Bytes::from_static(b"\x01a")).unwrap();
    let mut told = first.messages_after_flush;
    let mut last = first.number;
    while let Some(ready) = peer.take_ready() {
        assert!(ready.messages.is_empty(), "{:?}", ready.messages);
        told.extend(ready.messages_after_flush);
        last = ready.number;
    }
    assert!(!told.is_empty() && told.iter().all(|message| message.to() == PeerId(2)));
    peer.persisted(last);
    for _ in 0..HEARTBEAT_TICKS {
        peer.tick();
    }
    assert!(!peer.take_ready().unwrap().messages.is_empty(), "from now on at once");
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
    let known: Vec<LogIndex> = peers.iter().filter_map(RaftPeer::known_committed).collect();
    assert_eq!(known, [logs[0].last().unwrap().index], "only the leader knows all that is committed");
    assert_eq!(logs[0].iter().filter(|entry| !entry.data.is_empty()).count(), 20);
    assert_eq!(logs[0], logs[1]);
    assert_eq!(logs[1], logs[2]);
}

#[test]
fn when_the_leader_s_process_has_ended_nobody_waits_for_its_silence() {
    for seed in 0..50 {
        let mut peers: Vec<RaftPeer> =
            (1..=3).map(|i| RaftPeer::new(fresh(i, &[1, 2, 3]), random(seed * 10 + i)).unwrap()).collect();
        let exchange = |peers: &mut [RaftPeer], away: Option<usize>| {
            for _ in 0..8 {
                let messages: Vec<Message> = peers.iter_mut().flat_map(|peer| settle(peer).1).collect();
                for message in messages {
                    let (from, to) = (message.from().0 as usize - 1, message.to().0 as usize - 1);
                    if Some(from) != away && Some(to) != away {
                        peers[to].step(message).unwrap();
                    }
                }
            }
        };
        peers[0].campaign();
        exchange(&mut peers, None);
        peers.iter_mut().for_each(RaftPeer::tick);
        exchange(&mut peers, None);
        let term = peers[0].leadership().term;
        assert_eq!(peers[0].leadership().role, Role::Leader);
        peers.iter_mut().for_each(RaftPeer::leader_ended);
        assert_eq!(peers[0].leadership().role, Role::Leader, "a leader knows better");
        let mut ticks = 0;
        while peers[1..].iter().all(|peer| peer.leadership().role != Role::Leader) {
            peers[1..].iter_mut().for_each(RaftPeer::tick);
            exchange(&mut peers, Some(0));
            ticks += 1;
            assert!(ticks <= 2, "seed {seed}: far sooner than after {ELECTION_TICKS} ticks of silence");
        }
        assert!(peers[1..].iter().any(|peer| peer.leadership().term > term));
    }
}

/// Two peers whose messages the test carries: the first leads.
fn pair() -> (RaftPeer, RaftPeer) {
    let mut peers: Vec<RaftPeer> = (1..=2).map(|i| RaftPeer::new(fresh(i, &[1, 2]), random(i)).unwrap()).collect();
    let (mut second, mut first) = (peers.pop().unwrap(), peers.pop().unwrap());
    first.campaign();
    for _ in 0..6 {
        exchange(&mut first, &mut second);
    }
    assert_eq!(first.leadership().role, Role::Leader);
    (first, second)
}

fn exchange(first: &mut RaftPeer, second: &mut RaftPeer) {
    let (_, to_second, _) = settle(first);
    to_second.into_iter().for_each(|message| second.step(message).unwrap());
    let (_, to_first, _) = settle(second);
    to_first.into_iter().for_each(|message| first.step(message).unwrap());
}

fn raw_message(kind: MessageType, term: u64) -> Message {
    let mut message = eraftpb::Message { from: 2, to: 1, term, ..eraftpb::Message::default() };
    message.set_msg_type(kind);
    Message(message)
}

fn snapshot_message(index: u64, term: u64, configuration: &Configuration) -> Message {
    let mut message = raw_message(MessageType::MsgSnapshot, 9);
    message.0.set_snapshot(message::snapshot_of(index, term, configuration));
    message
}

#[test]
fn a_waiting_peer_votes_and_asks_but_never_campaigns() {
    let mut restored = fresh(1, &[1, 2]);
    restored.waiting = Waiting::ForState;
    restored.hard_state.term = Term(3);
    restored.entries = vec![Entry { index: LogIndex(1), term: Term(3), data: Bytes::from_static(b"\x01c") }];
    let mut peer = RaftPeer::new(restored, random(1)).unwrap();
    peer.campaign();
    (0..100).for_each(|_| peer.tick());
    peer.step(raw_message(MessageType::MsgTimeoutNow, 3)).unwrap();
    assert_eq!(peer.leadership(), Leadership { term: Term(3), role: Role::Follower, leader: None });
    let mut vote = raw_message(MessageType::MsgRequestVote, 4);
    (vote.0.index, vote.0.log_term) = (1, 3);
    peer.step(vote).unwrap();
    let mut heartbeat = raw_message(MessageType::MsgHeartbeat, 4);
    heartbeat.0.commit = 1;
    peer.step(heartbeat).unwrap();
    let (committed, messages, _) = settle(&mut peer);
    assert!(committed.is_empty() && peer.needs_snapshot());
    let kinds: Vec<MessageKind> = messages.iter().map(Message::kind).collect();
    assert_eq!(kinds, vec![MessageKind::VoteReply, MessageKind::HeartbeatReply, MessageKind::AppendReply]);
    assert!(messages[2].0.request_snapshot > 0);
}

#[test]
fn no_election_before_a_snapshot_is_installed() {
    let mut restored = fresh(1, &[1, 2]);
    restored.waiting = Waiting::ForState;
    let mut peer = RaftPeer::new(restored, random(1)).unwrap();
    let message = snapshot_message(7, 8, &configuration(&[1, 2]));
    assert!(peer.would_restore(&message));
    peer.step(message.clone()).unwrap();
    assert!(!peer.would_restore(&message), "one is enough");
    let ready = peer.take_ready().unwrap();
    assert_eq!(ready.restored, Some((LogIndex(7), Term(8), configuration(&[1, 2]))));
    // `raft-rs` would look for entries that are not there, and stop the process.
    peer.step(raw_message(MessageType::MsgTimeoutNow, 9)).unwrap();
    (0..100).for_each(|_| peer.tick());
    peer.campaign();
    assert_eq!(peer.leadership().role, Role::Follower);
    peer.persisted(ready.number);
    assert_eq!(peer.applied_index(), LogIndex(7));
    (0..100).for_each(|_| peer.tick());
    assert_eq!(peer.leadership().role, Role::Candidate);
}

/// What was acknowledged behind a snapshot is not even for a moment out of the log: a crash between two writes must not cost it.
#[test]
fn a_snapshot_of_what_the_log_holds_keeps_the_log() {
    let entry = |index| Entry { index: LogIndex(index), term: Term(3), data: Bytes::from_static(b"\x01c") };
    let mut restored = fresh(1, &[1, 2]);
    restored.waiting = Waiting::ForState;
    restored.hard_state.term = Term(3);
    restored.entries = (1..=10).map(entry).collect();
    let mut peer = RaftPeer::new(restored.clone(), random(1)).unwrap();
    let mut append = raw_message(MessageType::MsgAppend, 3);
    (append.0.index, append.0.log_term) = (10, 3);
    append.0.set_entries(vec![raft_entry(11, 3, Bytes::from_static(b"\x01c"))].into());
    // One more is handed out and not durable yet, another not handed out.
    peer.step(append.clone()).unwrap();
    let before = peer.take_ready().unwrap();
    assert_eq!(before.append, vec![entry(11)]);
    (append.0.index, append.0.entries) = (11, vec![raft_entry(12, 3, Bytes::from_static(b"\x01c"))].into());
    peer.step(append).unwrap();
    peer.step(snapshot_message(4, 3, &configuration(&[1, 2]))).unwrap();
    let ready = peer.take_ready().unwrap();
    assert_eq!(ready.restored, Some((LogIndex(4), Term(3), configuration(&[1, 2]))));
    assert!(ready.keeps_log);
    assert_eq!(ready.append, vec![entry(12)], "what was handed out before is not written again");
    peer.persisted(ready.number);
    settle(&mut peer);
    assert_eq!(peer.log_size().1, 8, "5 to 12");
    // A log that does not hold that entry begins anew.
    let mut peer = RaftPeer::new(restored, random(1)).unwrap();
    peer.step(snapshot_message(12, 3, &configuration(&[1, 2]))).unwrap();
    let ready = peer.take_ready().unwrap();
    assert!(ready.restored.is_some() && !ready.keeps_log && ready.append.is_empty());
}

#[test]
fn the_last_voter_does_not_elect_itself_before_its_log_is_durable() {
    let mut peer = RaftPeer::new(fresh(1, &[1]), random(1)).unwrap();
    let mut append = raw_message(MessageType::MsgAppend, 1);
    append.0.set_entries(vec![raft_entry(1, 1, Bytes::from_static(b"\x01c"))].into());
    peer.step(append).unwrap();
    let ready = peer.take_ready().unwrap();
    peer.campaign();
    (0..100).for_each(|_| peer.tick());
    assert_eq!(peer.leadership().role, Role::Follower);
    peer.persisted(ready.number);
    peer.campaign();
    assert_eq!(peer.leadership().role, Role::Leader);
}

#[test]
fn what_no_correct_peer_sends_is_refused() {
    let (mut leader, mut follower) = pair();
    let term = leader.leadership().term.0;
    let mut ahead = raw_message(MessageType::MsgAppendResponse, term);
    ahead.0.index = 1000;
    assert!(leader.step(ahead).is_err());
    let mut ahead = raw_message(MessageType::MsgHeartbeat, term);
    (ahead.0.from, ahead.0.to, ahead.0.commit) = (1, 2, 1000);
    assert!(follower.step(ahead.clone()).is_err());
    ahead.0.to = 5;
    assert!(follower.step(ahead).is_err(), "a message for another peer");
    leader.propose(Bytes::from_static(b"\x01a")).unwrap();
    exchange(&mut leader, &mut follower);
}

#[test]
fn the_end_of_a_joint_configuration_is_not_a_new_leader_s_entry() {
    let leave = raft_entry(5, 2, Bytes::from_static(&[ENTRY_CONFIGURATION]));
    assert_eq!(leave.get_entry_type(), eraftpb::EntryType::EntryConfChangeV2);
    assert!(leave.data.is_empty());
    assert_eq!(entry_out(&leave).data, Bytes::from_static(&[ENTRY_CONFIGURATION]));
    assert!(entry_out(&leave).is_configuration());
    let first = raft_entry(5, 2, Bytes::new());
    assert_eq!(first.get_entry_type(), eraftpb::EntryType::EntryNormal);
    assert!(!entry_out(&first).is_configuration());
}

#[test]
fn rows_of_the_first_version_are_read() {
    // {voters = 1: [1]}, packed as protobuf does.
    assert_eq!(Configuration::decode(&[0x0a, 1, 1]), Ok(Configuration::of_one(PeerId(1), NodeId(1))));
    assert_eq!(Configuration::decode(&[]), Ok(Configuration::default()));
    assert!(Configuration::decode(&[0x0a, 2, 1, 1]).is_err(), "a peer twice");
    assert!(Configuration::decode(&[0x0a, 1, 1, 0x12, 1, 1]).is_err(), "voter and learner");
    assert!(Configuration::decode(&[0x0a, 1, 0]).is_err(), "peer 0");
    assert!(Configuration::decode(&[0x12, 1, 3]).is_err(), "no voter");
    assert!(Configuration::decode(&[0x0a, 1, 1, 0x78, 1]).is_err(), "a field of a later version");
    assert!(Configuration::decode(&[0x0a, 1]).is_err());
}

fn joint() -> Configuration {
    let peers = |ids: &[u64]| ids.iter().copied().map(PeerId).collect();
    Configuration {
        voters: peers(&[1, 2, 4]),
        learners: peers(&[5]),
        voters_outgoing: peers(&[1, 2, 3]),
        learners_next: peers(&[3]),
        auto_leave: true,
        nodes: (1..=5).map(|id| (PeerId(id), NodeId(id as u32 + 10))).collect(),
        peer_last: PeerId(9),
    }
}

/// One of each kind that peers send, with data where it may have some.
fn samples() -> Vec<Message> {
    let mut append = raw_message(MessageType::MsgAppend, 7);
    (append.0.index, append.0.log_term, append.0.commit) = (10, 6, 9);
    let change = configuration(&[1]).plan(&ConfigurationChange::AddLearner { node: NodeId(2) }).unwrap();
    let change = Bytes::from([&[ENTRY_CONFIGURATION], &change.encode()[..]].concat());
    let data = [Bytes::new(), Bytes::from_static(b"\x01command"), change, Bytes::from_static(&[ENTRY_CONFIGURATION])];
    let entries = data.into_iter().zip(11..).map(|(data, index)| raft_entry(index, 7, data));
    append.0.set_entries(entries.collect::<Vec<_>>().into());
    let mut reply = raw_message(MessageType::MsgAppendResponse, 7);
    (reply.0.reject, reply.0.reject_hint, reply.0.request_snapshot, reply.0.index) = (true, 4, 3, 2);
    let mut vote = raw_message(MessageType::MsgRequestPreVote, 7);
    (vote.0.commit, vote.0.commit_term, vote.0.context) = (5, 6, Bytes::from_static(b"CampaignTransfer"));
    let mut samples = vec![append, reply, vote, snapshot_message(20, 7, &joint())];
    for kind in [
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgTimeoutNow,
    ] {
        samples.push(raw_message(kind, 7));
    }
    samples
}

#[test]
fn messages_come_back_as_they_were() {
    for message in samples() {
        let raw = message.encode();
        assert_eq!(Message::decode(&raw), Ok(message.clone()));
        let mut longer = raw.to_vec();
        longer.extend([0xf8, 0x01, 1]);
        assert!(Message::decode(&longer).is_err(), "a field of a later version");
    }
    let (index, term, configuration) = snapshot_message(20, 7, &joint()).snapshot().unwrap();
    assert_eq!((index, term, configuration), (LogIndex(20), Term(7), joint()));
}

#[test]
fn messages_that_make_no_sense_are_refused() {
    let local =
        [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgReadIndex, MessageType::MsgTransferLeader];
    for kind in local {
        assert!(Message::decode(&raw_message(kind, 7).encode()).is_err(), "{kind:?}");
    }
    let refused = |change: &dyn Fn(&mut eraftpb::Message)| {
        let mut message = samples().remove(0);
        change(&mut message.0);
        assert!(Message::decode(&message.encode()).is_err());
    };
    refused(&|message| message.to = message.from);
    refused(&|message| message.from = 0);
    refused(&|message| message.term = 0);
    refused(&|message| message.log_term = 8);
    refused(&|message| message.index = 11);
    refused(&|message| message.index = u64::MAX);
    refused(&|message| message.mut_entries()[1].term = 5);
    refused(&|message| message.mut_entries()[1].term = 8);
    refused(&|message| message.mut_entries()[1].data = Bytes::from_static(b"\x03later"));
    refused(&|message| message.mut_entries()[1].data = Bytes::from_static(b"\x02\xff\xff"));
    refused(&|message| message.set_msg_type(MessageType::MsgHeartbeat));
    assert!(Message::decode(&vec![0; MESSAGE_LEN_MAX + 1]).is_err());
    let mut overlapping = joint();
    overlapping.learners.push(PeerId(1));
    assert!(Message::decode(&snapshot_message(20, 7, &overlapping).encode()).is_err());
    assert!(Message::decode(&snapshot_message(20, 10, &joint()).encode()).is_err(), "a snapshot of a later term");
    assert!(Message::decode(&snapshot_message(0, 7, &joint()).encode()).is_err());
}

proptest::proptest! {
    #[test]
    fn decoding_anything_never_panics(raw in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = Message::decode(&raw);
        let _ = Configuration::decode(&raw);
        let _ = Change::decode(&raw);
    }

    /// What passes after damage is taken by peers in any role without a panic.
    #[test]
    fn damaged_messages_never_stop_a_peer(
        which in 0usize..10, flips in proptest::collection::vec((0usize..200, 0u8..8), 1..4), term in 1u64..10,
    ) {
        let mut message = samples().remove(which);
        message.0.term = message.0.term.min(term);
        let mut raw = message.encode().to_vec();
        for (at, bit) in flips {
            let at = at % raw.len();
            raw[at] ^= 1 << bit;
        }
        if let Ok(mut message) = Message::decode(&raw) {
            let (mut leader, mut follower) = pair();
            message.0.to = 1;
            let _ = leader.step(message.clone());
            message.0.to = 2;
            message.0.from = 1;
            let _ = follower.step(message);
            (0..30).for_each(|_| { leader.tick(); follower.tick(); settle(&mut leader); settle(&mut follower); });
        }
    }

    #[test]
    fn configurations_come_back_as_they_were(
        voters in proptest::collection::btree_set(1u64..50, 1..6),
        outgoing in proptest::collection::btree_set(1u64..50, 0..6),
        learners in proptest::collection::btree_set(50u64..99, 0..4),
        auto_leave: bool,
    ) {
        let peers = |ids: &std::collections::BTreeSet<u64>| ids.iter().copied().map(PeerId).collect::<Vec<_>>();
        let mut before = Configuration {
            voters: peers(&voters),
            learners: peers(&learners),
            learners_next: outgoing.difference(&voters).take(2).copied().map(PeerId).collect(),
            auto_leave: auto_leave && !outgoing.is_empty(),
            voters_outgoing: peers(&outgoing),
            nodes: BTreeMap::new(),
            peer_last: PeerId(120),
        };
        before.nodes = before.members().into_iter().map(|peer| (peer, NodeId(peer.0 as u32 * 3))).collect();
        proptest::prop_assert_eq!(Configuration::decode(&before.encode()), Ok(before));
    }
}

/// What a leader sends to a follower that comes back, and what that hands out to be written: all of it in messages that
/// are taken.
fn catch_up(count: usize, len: usize) -> (usize, u32) {
    let mut peers: std::collections::BTreeMap<u64, RaftPeer> =
        (1..=3).map(|id| (id, RaftPeer::new(fresh(id, &[1, 2, 3]), random(id)).unwrap())).collect();
    peers.get_mut(&1).unwrap().campaign();
    let mut longest = 0;
    let mut exchange = |peers: &mut std::collections::BTreeMap<u64, RaftPeer>, cut: bool| {
        loop {
            let mut all = Vec::new();
            for peer in peers.values_mut() {
                while let Some(ready) = peer.take_ready() {
                    all.extend(ready.messages);
                    peer.persisted(ready.number);
                    all.extend(ready.messages_after_flush);
                    if let Some(last) = ready.committed.last() {
                        peer.applied(last.index);
                    }
                }
            }
            if all.is_empty() {
                return;
            }
            for message in all {
                if cut && (message.to() == PeerId(3) || message.from() == PeerId(3)) {
                    continue;
                }
                let encoded = message.encode();
                longest = longest.max(encoded.len());
                let message = Message::decode(&encoded).expect("what a peer sends is taken");
                peers.get_mut(&message.to().0).unwrap().step(message).unwrap();
            }
        }
    };
    exchange(&mut peers, false);
    assert_eq!(peers[&1].leadership().role, Role::Leader);
    for number in 0..count {
        let mut data = vec![7; len];
        data[0] = ENTRY_COMMAND;
        peers.get_mut(&1).unwrap().propose(data.into()).unwrap();
        if (number + 1) * len >= 1 << 20 || number % 100 == 99 {
            exchange(&mut peers, true);
        }
    }
    let target = peers[&1].applied_index();
    let mut ticks = 0;
    while peers[&3].applied_index() < target {
        ticks += 1;
        assert!(ticks < 2000, "it does not catch up");
        peers.get_mut(&1).unwrap().tick();
        exchange(&mut peers, false);
    }
    (longest, ticks)
}

/// Found by reading: raft-rs put everything that a follower lacked into one message, which nobody took.
#[test]
fn a_follower_that_comes_back_is_sent_no_more_at_once_than_is_taken() {
    for (count, len) in [(90_000, 80), (40_000, 1024), (100, 900_000)] {
        let (longest, ticks) = catch_up(count, len);
        assert!(longest < 2 << 20, "a message of {longest} bytes");
        assert!(ticks < 200, "{count} entries of {len} bytes took {ticks} ticks");
    }
}
