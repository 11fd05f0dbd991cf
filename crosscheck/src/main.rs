//! Generated histories of one key, judged by the simulator's own checker (Wing, Gong and Lowe) and by `stateright`'s
//! `LinearizabilityTester`, whose model of a key is written here a second time. They must agree on every one.
//!
//! Of what histories hold, stateright knows operations that ended and operations that never did; an unknown outcome with
//! an end (a session that was closed) is checked against brute force, beside the checker itself.
//!
//! `cargo run --release [HISTORIES [SEED]]`

#[allow(dead_code, unused_imports)]
#[path = "../../crates/sim/src/history.rs"]
mod history;
#[allow(dead_code)]
#[path = "../../crates/sim/src/linearizability.rs"]
mod linearizability;

use history::{Action, Condition, OPEN, Operation, Outcome, Value};
use linearizability::Verdict;
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};
use std::process::ExitCode;

/// Values that writes draw from: few, so that conditions hold now and then.
const VALUES: u64 = 4;
/// Operations of one history at most.
const OPERATIONS_MAX: u64 = 14;

/// What one key does, written without looking at the simulator's model.
#[derive(Clone, Debug, PartialEq, Default)]
struct Key(Option<u32>);

#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Done,
    Refused,
    Found(Option<u32>),
}

impl Key {
    fn meets(&self, condition: Condition) -> bool {
        match condition {
            Condition::Always => true,
            Condition::Absent => self.0.is_none(),
            Condition::Is(value) => self.0 == Some(value.0),
        }
    }
}

impl SequentialSpec for Key {
    type Op = Action;
    type Ret = Answer;

    fn invoke(&mut self, op: &Action) -> Answer {
        match op {
            Action::Read { .. } => Answer::Found(self.0),
            Action::Put { value, condition } if self.meets(*condition) => {
                self.0 = Some(value.0);
                Answer::Done
            }
            // To delete what is not there succeeds.
            Action::Delete { condition } if self.0.is_none() || self.meets(*condition) => {
                self.0 = None;
                Answer::Done
            }
            Action::Put { .. } | Action::Delete { .. } => Answer::Refused,
            other => unreachable!("{other:?} is not generated: versions are the simulator's own matter"),
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

fn draw_action(random: &mut Random) -> Action {
    let condition = match random.below(4) {
        0 | 1 => Condition::Always,
        2 => Condition::Absent,
        _ => Condition::Is(Value(random.below(VALUES) as u32)),
    };
    match random.below(9) {
        0..4 => Action::Put { value: Value(random.below(VALUES) as u32), condition },
        4 => Action::Delete { condition },
        _ => Action::Read { found: None },
    }
}

/// A history that some order explains, in which an answer is changed now and then.
fn draw_history(random: &mut Random) -> Vec<Operation> {
    let clients = 1 + random.below(4) as usize;
    let mut free_at = vec![0u64; clients];
    let mut drawn = Vec::new();
    for number in 0..1 + random.below(OPERATIONS_MAX) {
        let client = random.below(clients as u64) as usize;
        let begin = free_at[client] + 1 + random.below(4);
        let end = begin + 1 + random.below(6);
        free_at[client] = end;
        // All moments are different. It happens at some moment in between.
        let (begin, end) = (begin * 1000 + number, end * 1000 + 500 + number);
        let happens = begin + 1 + random.below(end - begin - 1);
        drawn.push((happens, Operation { client: client as u32, begin, end, action: draw_action(random), outcome: Outcome::Done }));
    }
    let mut order: Vec<usize> = (0..drawn.len()).collect();
    order.sort_by_key(|index| drawn[*index].0);
    let mut key = Key::default();
    for index in order {
        let operation = &mut drawn[index].1;
        let is_unknown = !matches!(operation.action, Action::Read { .. }) && random.below(6) == 0;
        if is_unknown {
            (operation.outcome, operation.end) = (Outcome::Unknown, OPEN);
            if random.below(2) == 0 {
                continue;
            }
        }
        match (key.invoke(&operation.action), &mut operation.action) {
            (Answer::Found(value), Action::Read { found }) => *found = value.map(Value),
            (Answer::Refused, _) if !is_unknown => operation.outcome = Outcome::Refused,
            _ => {}
        }
    }
    let mut history: Vec<Operation> = drawn.into_iter().map(|(_, operation)| operation).collect();
    if random.below(2) == 0 {
        let index = random.below(history.len() as u64) as usize;
        if let Action::Read { found } = &mut history[index].action {
            *found = [None, Some(Value(random.below(VALUES) as u32))][random.below(2) as usize];
        } else if let Action::Put { condition: Condition::Absent | Condition::Is(_), .. } = history[index].action {
            history[index].outcome = match history[index].outcome {
                Outcome::Done => Outcome::Refused,
                Outcome::Refused => Outcome::Done,
                Outcome::Unknown => Outcome::Unknown,
            };
        }
    }
    history
}

/// Every operation is a thread of its own: those that never end would keep a thread for ever.
fn by_stateright(history: &[Operation]) -> bool {
    let mut tester = LinearizabilityTester::<usize, Key>::new(Key::default());
    let mut moments: Vec<(u64, usize, bool)> = Vec::new();
    for (index, operation) in history.iter().enumerate() {
        moments.push((operation.begin, index, true));
        if operation.outcome != Outcome::Unknown {
            moments.push((operation.end, index, false));
        }
    }
    moments.sort_unstable();
    for (_, index, is_begin) in moments {
        let operation = &history[index];
        let answer = match (&operation.action, operation.outcome) {
            (Action::Read { found }, _) => Answer::Found(found.map(|value| value.0)),
            (_, Outcome::Refused) => Answer::Refused,
            _ => Answer::Done,
        };
        let taken = if is_begin {
            tester.on_invoke(index, operation.action.clone())
        } else {
            tester.on_return(index, answer)
        };
        taken.expect("each operation begins once and ends once");
    }
    tester.is_consistent()
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let histories = arguments.next().unwrap_or(200_000);
    let mut random = Random(arguments.next().unwrap_or(1));
    let (mut right, mut wrong, mut differing) = (0u64, 0u64, 0u64);
    for number in 0..histories {
        let history = draw_history(&mut random);
        let own = match linearizability::check(false, &history) {
            Verdict::Linearizable => true,
            Verdict::Violation { .. } => false,
            Verdict::Undecided => panic!("small histories are always decided"),
        };
        if own != by_stateright(&history) {
            differing += 1;
            println!("history {number}: here {own}, stateright says {}: {history:#?}", !own);
        }
        *(if own { &mut right } else { &mut wrong }) += 1;
    }
    println!("histories: {histories}, linearizable {right}, not {wrong}, judged differently {differing}");
    if differing == 0 && right > 0 && wrong > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
