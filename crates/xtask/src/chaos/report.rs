//! What a fault did to the cluster, in figures.

use std::fmt::Write;

use super::json::quote;
use super::load::Ack;

#[derive(Default)]
pub struct Figures {
    /// Kills, pauses, cuts: how often the fault happened.
    pub events: u64,
    /// Answers that clients got, and those among them that acknowledged a change.
    pub operations: u64,
    pub acknowledged: u64,
    /// Keys that were read back at the end.
    pub verified: u64,
    /// Acknowledged and gone.
    pub lost: u64,
    /// Other bytes than may be there: wrong, resurrected, or written late by a node that was voted out.
    pub wrong: u64,
    pub unreadable: u64,
    /// For each event the longest time in which no write succeeded.
    pub gaps_ms: Vec<u64>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// What does not hold.
    pub problems: Vec<String>,
}

/// Problems that are kept of one fault.
const PROBLEMS_MAX: usize = 20;

impl Figures {
    pub fn count(&mut self, acks: &[Ack]) {
        self.operations += acks.iter().filter(|ack| ack.result != "sent").count() as u64;
        self.acknowledged += acks.iter().filter(|ack| ack.is_write_done()).count() as u64;
    }

    pub fn problem(&mut self, what: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(what);
        }
    }

    pub fn hold(&self) -> bool {
        self.problems.is_empty() && self.lost == 0 && self.wrong == 0 && self.unreadable == 0
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let mut out = format!(
            "{} events, {} operations, {} acknowledged, {} verified, lost {}, wrong {}",
            self.events, self.operations, self.acknowledged, self.verified, self.lost, self.wrong
        );
        if self.unreadable > 0 {
            let _ = write!(out, ", unreadable {}", self.unreadable);
        }
        if !self.gaps_ms.is_empty() {
            let p = |share| percentile(&self.gaps_ms, share);
            let _ = write!(out, "; no write for at most p50 {} ms, p99 {} ms, max {} ms", p(50), p(99), p(100));
        }
        out
    }

    pub fn json(&self, name: &str, seconds: f64) -> String {
        let texts = |items: &[String]| items.iter().map(|item| quote(item)).collect::<Vec<_>>().join(",");
        let gaps = self.gaps_ms.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        format!(
            "{{\"fault\":{},\"holds\":{},\"seconds\":{seconds:.1},\"events\":{},\"operations\":{},\"acknowledged\":{},\
             \"verified\":{},\"lost\":{},\"wrong\":{},\"unreadable\":{},\"gaps_ms\":[{gaps}],\"notes\":[{}],\
             \"problems\":[{}]}}",
            quote(name),
            self.hold(),
            self.events,
            self.operations,
            self.acknowledged,
            self.verified,
            self.lost,
            self.wrong,
            self.unreadable,
            texts(&self.notes),
            texts(&self.problems),
        )
    }
}

/// The smallest value that at least `share` percent of all do not exceed.
pub fn percentile(values: &[u64], share: usize) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let index = (sorted.len() * share).div_ceil(100).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::json::Json;
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values = [5, 1, 3, 2, 4];
        assert_eq!([0, 1, 50, 80, 99, 100].map(|share| percentile(&values, share)), [1, 1, 3, 4, 5, 5]);
        assert_eq!(percentile(&[], 50), 0);
    }

    #[test]
    fn figures_are_json_and_hold_only_without_any_loss() {
        let mut figures = Figures { events: 2, gaps_ms: vec![3, 4], ..Figures::default() };
        figures.notes.push("a \"note\"".into());
        assert!(figures.hold());
        let json = Json::parse(&figures.json("kill", 1.25)).unwrap();
        assert_eq!((json.text("fault"), json.number("events"), json.list("gaps_ms").len()), (Some("kill"), Some(2), 2));
        figures.lost = 1;
        assert!(!figures.hold());
    }
}
