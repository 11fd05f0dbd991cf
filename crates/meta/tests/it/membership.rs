//! Tokens, joining, fencing, draining, the authority.

use bytes::Bytes;
use meta::map::command::*;
use meta::map::{AUTHORITY_LEVEL_MIN, TOKENS_MAX};
use meta::object::command::SlotRef;
use proptest::prelude::*;

use crate::map::{Map, node, redeem, token};
use crate::shard::random;

fn state(id: u32, state: NodeState, generation: u32) -> MapCommand {
    MapCommand::SetNodeState(SetNodeState { id, state: state as i32, raise_floor: false, generation, stays: false })
}

fn vote_down(id: u32, generation: u32) -> MapCommand {
    MapCommand::SetNodeState(SetNodeState {
        id,
        state: NodeState::Down as i32,
        raise_floor: true,
        generation,
        stays: false,
    })
}

fn row(map: &Map, id: u32) -> NodeRow {
    map.map().nodes.iter().find(|row| row.id == id).cloned().unwrap()
}

#[test]
fn a_token_lets_one_node_join() {
    let mut map = Map::initialised();
    map.expect(MapCommand::RedeemToken(redeem(1, 1500)), MapOutcome::TokenUnknown);
    map.expect(MapCommand::CreateToken(token(1)), MapOutcome::Done);
    map.expect(MapCommand::CreateToken(token(1)), MapOutcome::Invalid);
    let guess = RedeemToken { secret_hash: Bytes::from(vec![9; 32]), ..redeem(1, 1500) };
    map.expect(MapCommand::RedeemToken(guess), MapOutcome::TokenUnknown);
    map.expect(MapCommand::RedeemToken(redeem(1, 2000)), MapOutcome::TokenExpired);
    let old = RedeemToken { node: Some(NodeRow { feature_level_max: 0, ..node(0, 0) }), ..redeem(1, 1500) };
    map.expect(MapCommand::RedeemToken(old), MapOutcome::Invalid);
    let joined = map.expect(MapCommand::RedeemToken(redeem(1, 1500)), MapOutcome::Done);
    assert_eq!(joined.id, 2);
    assert_eq!(row(&map, 2).state(), NodeState::Joining);
    assert_eq!(map.map().tokens[0].used_by, 2);
    map.expect(MapCommand::RedeemToken(redeem(1, 1500)), MapOutcome::TokenUsed);
    assert_eq!(map.map().nodes.len(), 2);
}

#[test]
fn a_repeated_redeem_is_answered_as_before() {
    let mut map = Map::initialised();
    map.expect(MapCommand::CreateToken(token(1)), MapOutcome::Done);
    let slot = Some(SlotRef { node: 1, generation: 1, slot: 0, sequence: 1 });
    let entry = MapEntry { slot, command: Some(MapCommand::RedeemToken(redeem(1, 1500))) };
    let first = map.entry(entry.clone());
    assert_eq!((first.outcome(), first.id), (MapOutcome::Done, 2));
    assert_eq!(map.entry(entry), first);
}

#[test]
fn only_the_same_joiner_redeems_again_and_only_before_it_was_up() {
    let mut map = Map::initialised();
    map.expect(MapCommand::CreateToken(token(1)), MapOutcome::Done);
    let by =
        |joiner: u128, now_ms| MapCommand::RedeemToken(RedeemToken { joiner: random(joiner), ..redeem(1, now_ms) });
    assert_eq!(map.expect(by(7, 1500), MapOutcome::Done).id, 2);
    map.expect(by(8, 1500), MapOutcome::TokenUsed);
    assert_eq!(map.expect(by(7, 2500), MapOutcome::Done).id, 2);
    map.expect(MapCommand::SetNode(node(2, 1)), MapOutcome::Done);
    map.expect(by(7, 1500), MapOutcome::TokenUsed);
}

#[test]
fn malformed_tokens_are_refused() {
    let mut map = Map::initialised();
    let create = MapCommand::CreateToken;
    map.expect(create(TokenRow { id: "short".into(), ..token(1) }), MapOutcome::Invalid);
    map.expect(create(TokenRow { id: "000000000000000A".into(), ..token(1) }), MapOutcome::Invalid);
    map.expect(create(TokenRow { secret_hash: random(1), ..token(1) }), MapOutcome::Invalid);
    map.expect(create(TokenRow { used_by: 1, ..token(1) }), MapOutcome::Invalid);
    map.expect(create(TokenRow { expires_ms: 1000, ..token(1) }), MapOutcome::Invalid);
}

#[test]
fn tokens_are_bounded_and_expired_and_used_ones_make_room() {
    let mut map = Map::initialised();
    for id in 0..TOKENS_MAX {
        map.expect(MapCommand::CreateToken(token(id)), MapOutcome::Done);
    }
    map.expect(MapCommand::CreateToken(token(5000)), MapOutcome::TooMany);
    map.expect(MapCommand::RedeemToken(redeem(3, 1500)), MapOutcome::Done);
    map.expect(MapCommand::CreateToken(token(5000)), MapOutcome::Done);
    assert_eq!(map.map().tokens.len() as u64, TOKENS_MAX);
    let later = TokenRow { created_ms: 2000, expires_ms: 9000, ..token(6000) };
    map.expect(MapCommand::CreateToken(later), MapOutcome::Done);
    assert_eq!(map.map().tokens.len(), 1);
}

#[test]
fn a_node_joins_once_and_only_comes_up_by_itself() {
    let mut map = Map::initialised();
    map.expect(MapCommand::CreateToken(token(1)), MapOutcome::Done);
    map.expect(MapCommand::RedeemToken(redeem(1, 1500)), MapOutcome::Done);
    for refused in [NodeState::Up, NodeState::Down, NodeState::Lost, NodeState::Draining] {
        map.expect(state(2, refused, 0), MapOutcome::Invalid);
    }
    map.expect(MapCommand::SetNode(node(2, 1)), MapOutcome::Done);
    assert_eq!(row(&map, 2).state(), NodeState::Up);
    map.expect(MapCommand::SetNode(NodeRow { state: NodeState::Joining as i32, ..node(2, 2) }), MapOutcome::Invalid);
    map.expect(state(2, NodeState::Joining, 1), MapOutcome::Invalid);
    map.expect(state(2, NodeState::Removed, 1), MapOutcome::Done);
    map.expect(state(2, NodeState::Up, 1), MapOutcome::Invalid);
    map.expect(state(9, NodeState::Down, 1), MapOutcome::NotFound);
}

#[test]
fn voting_a_node_down_fences_the_life_that_was_seen_and_no_later_one() {
    let mut map = Map::initialised();
    map.expect(MapCommand::SetNode(node(1, 5)), MapOutcome::Done);
    map.expect(vote_down(1, 4), MapOutcome::Stale);
    assert_eq!(row(&map, 1).state(), NodeState::Up);
    map.expect(vote_down(1, 5), MapOutcome::Done);
    assert_eq!((row(&map, 1).state(), row(&map, 1).generation_floor), (NodeState::Down, 6));
    // The same vote again changes nothing.
    map.expect(vote_down(1, 5), MapOutcome::Done);
    assert_eq!(row(&map, 1).generation_floor, 6);
    map.expect(state(1, NodeState::Up, 5), MapOutcome::Stale);
    map.expect(MapCommand::SetNode(node(1, 5)), MapOutcome::Stale);
    map.expect(MapCommand::SetNode(node(1, 6)), MapOutcome::Done);
    map.expect(vote_down(1, 5), MapOutcome::Stale);
    map.expect(state(1, NodeState::Lost, 6), MapOutcome::Done);
    map.expect(MapCommand::SetNode(node(1, 6)), MapOutcome::Done);
    assert_eq!(row(&map, 1).state(), NodeState::Up);
}

#[test]
fn a_node_that_drains_goes_on_draining_when_it_was_down() {
    let mut map = Map::initialised();
    map.expect(state(1, NodeState::Draining, 1), MapOutcome::Done);
    map.expect(vote_down(1, 1), MapOutcome::Done);
    map.expect(MapCommand::SetNode(node(1, 1)), MapOutcome::Stale);
    map.expect(MapCommand::SetNode(node(1, 2)), MapOutcome::Done);
    assert_eq!(row(&map, 1).state(), NodeState::Draining);
    map.expect(state(1, NodeState::Up, 2), MapOutcome::Done);
    map.expect(MapCommand::SetNode(node(1, 3)), MapOutcome::Done);
    assert_eq!(row(&map, 1).state(), NodeState::Up);
}

#[test]
fn there_is_one_authority_and_generations_of_the_cluster_only_rise() {
    let mut map = Map::initialised();
    let set = |key: &str| MapCommand::SetAuthority(Authority { certificate_pem: "c".into(), key_pem: key.into() });
    map.expect(set(""), MapOutcome::Invalid);
    map.expect(set("k"), MapOutcome::Done);
    map.expect(set("k"), MapOutcome::Done);
    map.expect(set("other"), MapOutcome::Invalid);
    assert_eq!(map.map().authority.as_ref().unwrap().key_pem, "k");
    map.expect(MapCommand::SetNode(NodeRow { feature_level_max: AUTHORITY_LEVEL_MIN, ..node(1, 1) }), MapOutcome::Done);
    map.expect(MapCommand::SetFeatureLevel(FeatureLevel { level: AUTHORITY_LEVEL_MIN }), MapOutcome::Done);
    map.expect(set("other"), MapOutcome::Done);
    assert_eq!(map.map().authority.as_ref().unwrap().key_pem, "other");
    let raise = |generation| MapCommand::SetClusterGeneration(ClusterGeneration { generation });
    map.expect(raise(2), MapOutcome::Done);
    map.expect(raise(1), MapOutcome::Stale);
    map.expect(raise(2), MapOutcome::Done);
    assert_eq!(map.map().cluster_generation, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever is proposed in whatever order: floors and generations never fall, what serves is not fenced, what was
    /// removed stays removed, and a token makes one node.
    #[test]
    fn nodes_follow_their_rules(steps in proptest::collection::vec((0u8..6, 1u32..4, 0i32..6, 0u32..5, any::<bool>()), 1..60)) {
        let mut map = Map::initialised();
        for (kind, id, raw_state, generation, flag) in steps {
            let before = map.map().clone();
            let command = match kind {
                0 | 1 => MapCommand::SetNode(NodeRow { state: raw_state, ..node(id, generation) }),
                2 | 3 => MapCommand::SetNodeState(SetNodeState { id, state: raw_state, raise_floor: flag, generation, stays: false }),
                4 => MapCommand::CreateToken(token(u64::from(id))),
                _ => MapCommand::RedeemToken(RedeemToken { joiner: random(u128::from(generation)), ..redeem(u64::from(id), 1500) }),
            };
            map.run(command);
            for old in &before.nodes {
                let new = row(&map, old.id);
                prop_assert!(new.generation >= old.generation && new.generation_floor >= old.generation_floor);
                prop_assert!(old.state() != NodeState::Removed || new.state() == NodeState::Removed);
                prop_assert!(old.state() == NodeState::Joining || new.state() != NodeState::Joining);
                prop_assert!(!new.state().serves() || new.generation >= new.generation_floor);
                prop_assert!(!(new.leaving && new.state() == NodeState::Up));
            }
            for old in before.tokens.iter().filter(|token| token.used_by != 0) {
                let new = map.map().tokens.iter().find(|token| token.id == old.id);
                prop_assert!(new.is_none_or(|new| new.used_by == old.used_by));
            }
        }
    }
}
