use super::*;
use crate::history::{Action, Condition, Entry, OPEN, Value};
use proptest::prelude::*;

fn op(begin: u64, end: u64, action: Action, outcome: Outcome) -> Operation {
    Operation { client: 0, begin, end, action, outcome }
}

fn put(value: u32) -> Action {
    Action::Put { value: Value(value), condition: Condition::Always }
}

fn create(value: u32) -> Action {
    Action::Put { value: Value(value), condition: Condition::Absent }
}

fn read(found: Option<u32>) -> Action {
    Action::Read { found: found.map(Value) }
}

fn delete() -> Action {
    Action::Delete { condition: Condition::Always }
}

use Outcome::{Done, Refused, Unknown};

fn is_linearizable(history: &[Operation]) -> bool {
    match check(false, history) {
        Verdict::Linearizable => true,
        Verdict::Violation { .. } => false,
        Verdict::Undecided => panic!("small histories are always decided"),
    }
}

#[test]
fn a_lost_acknowledged_write_is_a_violation() {
    let mut history = vec![op(1, 2, put(1), Done), op(3, 4, read(None), Done)];
    assert!(!is_linearizable(&history));
    history[0].outcome = Unknown;
    history[0].end = OPEN;
    assert!(is_linearizable(&history), "a write of unknown outcome may never happen");
}

#[test]
fn a_stale_read_is_a_violation_only_when_the_newer_write_had_ended() {
    let stale =
        |read_begins| vec![op(1, 2, put(1), Done), op(3, 6, put(2), Done), op(read_begins, 8, read(Some(1)), Done)];
    assert!(is_linearizable(&stale(5)));
    assert!(!is_linearizable(&stale(7)));
}

#[test]
fn reads_never_go_back() {
    let history =
        [op(1, 10, put(1), Done), op(2, 3, read(Some(1)), Done), op(4, 5, read(None), Done), op(6, 7, put(2), Done)];
    assert!(!is_linearizable(&history));
}

#[test]
fn an_unknown_write_may_surface_late_but_not_vanish_again() {
    let mut history = vec![
        op(1, OPEN, put(1), Unknown),
        op(2, 3, put(2), Done),
        op(4, 5, read(Some(2)), Done),
        op(6, 7, read(Some(1)), Done),
    ];
    assert!(is_linearizable(&history));
    history.push(op(8, 9, read(Some(2)), Done));
    assert!(!is_linearizable(&history));
}

#[test]
fn an_unknown_write_that_has_ended_does_not_surface_later() {
    let history = |end| vec![op(1, end, put(1), Unknown), op(3, 4, read(None), Done), op(5, 6, read(Some(1)), Done)];
    assert!(is_linearizable(&history(OPEN)));
    assert!(!is_linearizable(&history(2)), "a power cut came between, and what it had swept away came back");
}

#[test]
fn a_deleted_value_does_not_come_back() {
    let history = [op(1, 2, put(1), Done), op(3, 4, delete(), Done), op(5, 6, read(Some(1)), Done)];
    assert!(!is_linearizable(&history));
}

#[test]
fn two_winners_of_one_race_are_a_violation() {
    let history = |second| vec![op(1, 4, create(1), Done), op(2, 5, create(2), second)];
    assert!(!is_linearizable(&history(Done)));
    assert!(is_linearizable(&history(Refused)));
    assert!(!is_linearizable(&[op(1, 2, create(1), Refused)]), "nobody was there to lose against");
}

#[test]
fn a_refusal_may_be_the_only_trace_of_an_unknown_write() {
    let history = [op(1, OPEN, put(1), Unknown), op(2, 3, create(2), Refused), op(4, 5, read(Some(1)), Done)];
    assert!(is_linearizable(&history));
    let lost = [op(1, OPEN, put(1), Unknown), op(2, 3, create(2), Refused), op(4, 5, read(None), Done)];
    assert!(!is_linearizable(&lost));
}

#[test]
fn versions_stay_below_newer_ones() {
    let all = |found: &[Entry]| Action::ReadVersions { found: found.to_vec() };
    let (one, two) = (Entry::Value(Value(1)), Entry::Value(Value(2)));
    let history = |found: &[Entry]| {
        vec![
            op(1, 2, put(1), Done),
            op(3, 4, delete(), Done),
            op(5, 6, put(2), Done),
            op(7, 8, all(found), Done),
            op(9, 10, Action::DeleteVersion { value: Value(2) }, Done),
            op(11, 12, read(None), Done),
            op(13, 14, Action::ReadVersion { value: Value(1), found: true }, Done),
        ]
    };
    assert_eq!(check(true, &history(&[one, Entry::Marker, two])), Verdict::Linearizable);
    assert!(matches!(check(true, &history(&[one, two])), Verdict::Violation { .. }));
}

#[test]
fn a_long_history_with_many_unknown_writes_is_decided() {
    let mut history = Vec::new();
    for round in 0..900u32 {
        let at = u64::from(round) * 10;
        let end = if round % 50 == 7 { OPEN } else { at + 4 };
        history.push(op(at + 1, end, put(round), if round % 50 == 7 { Unknown } else { Done }));
        let seen = if round % 50 == 7 { round.checked_sub(1) } else { Some(round) };
        history.push(op(at + 5, at + 6, read(seen), Done));
    }
    assert!(is_linearizable(&history));
    history.push(op(9_001, 9_002, read(Some(3)), Done));
    assert!(!is_linearizable(&history));
}

/// Tries every order of every subset that contains all operations with known outcomes.
fn brute_force(history: &[Operation], state: &KeyState, left: &mut Vec<usize>, newest_begin: u64) -> bool {
    if left.iter().all(|index| history[*index].outcome == Unknown) {
        return true;
    }
    for position in 0..left.len() {
        let index = left[position];
        let earliest_end = left.iter().map(|i| &history[*i]).filter(|op| op.outcome != Unknown).map(|op| op.end).min();
        if earliest_end.is_some_and(|end| end < history[index].begin) {
            continue;
        }
        if history[index].outcome == Unknown && history[index].end < newest_begin {
            continue;
        }
        let Some(next) = state.step(false, &history[index].action, history[index].outcome) else { continue };
        left.remove(position);
        let fits = brute_force(history, &next, left, newest_begin.max(history[index].begin));
        left.insert(position, index);
        if fits {
            return true;
        }
    }
    false
}

fn any_action() -> impl Strategy<Value = (Action, Outcome)> {
    let outcome = prop_oneof![6 => Just(Done), 1 => Just(Refused), 2 => Just(Unknown)];
    let condition = prop_oneof![
        2 => Just(Condition::Always),
        1 => Just(Condition::Absent),
        1 => (0..4u32).prop_map(|value| Condition::Is(Value(value))),
    ];
    let action = prop_oneof![
        4 => (0..4u32, condition).prop_map(|(value, condition)| Action::Put { value: Value(value), condition }),
        1 => Just(delete()),
        4 => proptest::option::of(0..4u32).prop_map(read),
    ];
    (action, outcome).prop_map(|(action, outcome)| match (&action, outcome) {
        (Action::Read { .. }, _) => (action, Done),
        (Action::Put { condition: Condition::Always, .. } | Action::Delete { .. }, Refused) => (action, Done),
        _ => (action, outcome),
    })
}

/// Up to three clients, each with one operation after the other, at moments that are all different.
fn any_history() -> impl Strategy<Value = Vec<Operation>> {
    proptest::collection::vec((any_action(), 0..3usize, 1..6u64, 1..6u64, any::<bool>()), 1..8).prop_map(|drawn| {
        let mut free_at = [0u64; 3];
        let mut history = Vec::new();
        for (index, ((action, outcome), client, pause, length, stays_open)) in drawn.into_iter().enumerate() {
            let begin = free_at[client] + pause;
            free_at[client] = begin + length;
            // Spread over distinct moments: ties are broken by the operation's number.
            let (begin, end) = (begin * 100 + index as u64, (begin + length) * 100 + 50 + index as u64);
            let end = if outcome == Unknown && stays_open { OPEN } else { end };
            history.push(Operation { client: client as u32, begin, end, action, outcome });
        }
        history
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn agrees_with_brute_force(history in any_history()) {
        let mut left: Vec<usize> = (0..history.len()).collect();
        let expected = brute_force(&history, &KeyState::default(), &mut left, 0);
        prop_assert_eq!(is_linearizable(&history), expected);
    }
}
