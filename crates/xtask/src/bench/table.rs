//! The figures of a run: one table for people, one JSON file for comparing two commits.

use serde_json::{Value, json};
use std::path::Path;

/// One row of one subject.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Line {
    pub row: String,
    pub value: f64,
    pub unit: &'static str,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    /// Processor time of all servers per operation, in microseconds.
    pub cpu_us: Option<f64>,
    /// Bytes that all servers wrote per byte of payload.
    pub disk_bytes: Option<f64>,
    pub failed: f64,
}

impl Line {
    pub fn named(row: &str) -> Line {
        Line { row: row.to_owned(), ..Line::default() }
    }
}

/// The run with the median value, with the failures of all.
pub fn median(row: &str, runs: &[Line]) -> Option<Line> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(|a, b| a.value.total_cmp(&b.value));
    let middle = sorted.get(sorted.len() / 2)?.clone();
    let failed = runs.iter().map(|run| run.failed).sum();
    Some(Line { row: row.to_owned(), failed, ..middle })
}

#[derive(Default)]
pub struct Report {
    /// Subject and line, in the order in which they were measured.
    lines: Vec<(String, Line)>,
    missing: Vec<String>,
    /// Sentences that say which gates hold.
    gates: Vec<String>,
}

/// A figure that must be so many times another one of the same run.
pub struct Gate {
    pub subject: &'static str,
    pub row: &'static str,
    pub beside: &'static str,
    pub beside_row: &'static str,
    pub limit: Limit,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Limit {
    /// The value must be at least so many times the other.
    ValueAtLeast(f64),
    /// The median latency must be at most so many times the other.
    MedianAtMost(f64),
}

impl Gate {
    /// In one round.
    fn ratio(&self, round: &[(&str, Line)]) -> Option<f64> {
        let find =
            |subject, row| round.iter().find(|(of, line)| *of == subject && line.row == row).map(|(_, line)| line);
        let (line, other) = (find(self.subject, self.row)?, find(self.beside, self.beside_row)?);
        match self.limit {
            Limit::ValueAtLeast(_) => Some(line.value / other.value),
            Limit::MedianAtMost(_) => Some(line.p50_us? / other.p50_us?),
        }
    }
}

/// What the rows of a subject are put in relation to: the same row of these, where they were measured.
const COMPARED: [(&str, [&str; 3]); 2] = [
    ("henge, 1 node", ["garage, 1 node, flushed", "garage, 1 node, not flushed", "nginx"]),
    ("henge, 3 nodes", ["garage, 3 nodes, flushed", "garage, 3 nodes, not flushed", "nginx"]),
];

impl Report {
    pub fn add(&mut self, subject: &str, line: Line) {
        println!("{}", show(subject, &line));
        self.lines.push((subject.to_owned(), line));
    }

    /// Something was not measured: a sentence.
    pub fn missing(&mut self, why: &str) {
        println!("not measured: {why}");
        self.missing.push(why.to_owned());
    }

    /// Judges a gate by the median of its ratios in those rounds in which both rows were measured; of two in the middle, the worse.
    pub fn judge(&mut self, gate: &Gate, rounds: &[Vec<(&str, Line)>]) {
        let mut ratios: Vec<f64> = rounds.iter().filter_map(|round| gate.ratio(round)).collect();
        ratios.sort_by(f64::total_cmp);
        if ratios.is_empty() {
            return;
        }
        let ratio = match gate.limit {
            Limit::ValueAtLeast(_) => ratios[(ratios.len() - 1) / 2],
            Limit::MedianAtMost(_) => ratios[ratios.len() / 2],
        };
        let (wanted, holds) = match gate.limit {
            Limit::ValueAtLeast(least) => (format!("at least {least:.2}"), ratio >= least),
            Limit::MedianAtMost(most) => (format!("p50 at most {most:.2}"), ratio <= most),
        };
        let verdict = if holds { "holds" } else { "DOES NOT HOLD" };
        let (lowest, highest) = (ratios[0], ratios[ratios.len() - 1]);
        let text = format!(
            "{}: {ratio:.2} ({lowest:.2} to {highest:.2}, {} of {} rounds) x {}, {} ({wanted}): {verdict}",
            gate.row,
            ratios.len(),
            rounds.len(),
            gate.beside,
            gate.beside_row
        );
        println!("{text}");
        self.gates.push(text);
    }

    fn find(&self, subject: &str, row: &str) -> Option<&Line> {
        self.lines.iter().find(|(of, line)| of == subject && line.row == row).map(|(_, line)| line)
    }

    /// The whole table, with ratios.
    pub fn print(&self, baseline: Option<&Report>) {
        println!(
            "\n{:<30} {:<26} {:>10} {:<6} {:>8} {:>8} {:>8} {:>6}",
            "", "", "", "", "p50 us", "p99 us", "cpu us", "disk"
        );
        for (subject, line) in &self.lines {
            let mut text = show(subject, line);
            let others = COMPARED.iter().filter(|(of, _)| of == subject).flat_map(|(_, others)| others);
            for (other, found) in others.filter_map(|other| Some((other, self.find(other, &line.row)?))) {
                text += &format!("  {:.2} x {other}", line.value / found.value);
            }
            if let Some(before) = baseline.and_then(|baseline| baseline.find(subject, &line.row)) {
                text += &format!("  {:.2} x before", line.value / before.value);
                if let (Some(now), Some(then)) = (line.cpu_us, before.cpu_us) {
                    text += &format!(", cpu {:.2} x", now / then);
                }
            }
            println!("{text}");
        }
        self.gates.iter().for_each(|gate| println!("gate: {gate}"));
        self.missing.iter().for_each(|why| println!("not measured: {why}"));
    }

    pub fn write(&self, path: &Path) -> Result<(), String> {
        let line = |(subject, line): &(String, Line)| {
            json!({
                "subject": subject, "row": line.row, "value": line.value, "unit": line.unit, "p50_us": line.p50_us,
                "p99_us": line.p99_us, "cpu_us": line.cpu_us, "disk_bytes": line.disk_bytes, "failed": line.failed,
            })
        };
        let all = json!({ "lines": self.lines.iter().map(line).collect::<Vec<_>>(), "missing": self.missing, "gates": self.gates });
        std::fs::write(path, format!("{all:#}\n")).map_err(|error| format!("{}: {error}", path.display()))
    }

    pub fn read(path: &Path) -> Result<Report, String> {
        let raw = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let all: Value = serde_json::from_slice(&raw).map_err(|error| format!("{}: {error}", path.display()))?;
        let line = |value: &Value| {
            let number = |name: &str| value[name].as_f64();
            let row = value["row"].as_str()?.to_owned();
            let line = Line {
                row,
                value: number("value")?,
                unit: "",
                p50_us: number("p50_us"),
                p99_us: number("p99_us"),
                cpu_us: number("cpu_us"),
                disk_bytes: number("disk_bytes"),
                failed: number("failed").unwrap_or(0.0),
            };
            Some((value["subject"].as_str()?.to_owned(), line))
        };
        let lines = all["lines"].as_array().ok_or_else(|| format!("{} has no lines", path.display()))?;
        Ok(Report { lines: lines.iter().filter_map(line).collect(), ..Report::default() })
    }
}

fn show(subject: &str, line: &Line) -> String {
    let optional =
        |value: Option<f64>, digits: usize| value.map_or(String::from("-"), |value| format!("{value:.digits$}"));
    let mut text = format!(
        "{subject:<30} {:<26} {:>10.1} {:<6} {:>8} {:>8} {:>8} {:>6}",
        line.row,
        line.value,
        line.unit,
        optional(line.p50_us, 0),
        optional(line.p99_us, 0),
        optional(line.cpu_us, 0),
        optional(line.disk_bytes, 2),
    );
    if line.failed > 0.0 {
        text += &format!("  {} failed", line.failed);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_run_is_shown_with_the_failures_of_all() {
        let run = |value, failed| Line { value, failed, ..Line::named("x") };
        let line = median("row", &[run(3.0, 1.0), run(9.0, 0.0), run(5.0, 2.0)]).unwrap();
        assert_eq!((line.value, line.failed, line.row.as_str()), (5.0, 3.0, "row"));
        assert_eq!(median("row", &[]), None);
    }

    #[test]
    fn gates_are_judged_by_rates_and_by_medians_of_the_same_round() {
        let mut report = Report::default();
        let round = |speed: f64, ratio: f64| {
            let fio = Line { value: speed * 100.0, p50_us: Some(50.0 / speed), ..Line::named("a") };
            let own = Line { value: speed * 100.0 * ratio, p50_us: Some(50.0 / speed / ratio), ..Line::named("b") };
            vec![("fio", fio), ("henge", own)]
        };
        // The machine is twice as fast in the second of them, and the last was cut short.
        let mut rounds = vec![round(1.0, 0.8), round(2.0, 0.8), round(1.0, 0.1), round(1.0, 1.5)];
        rounds[3].pop();
        let limits = [0.75, 0.85].map(Limit::ValueAtLeast).into_iter().chain([1.3, 1.2].map(Limit::MedianAtMost));
        for limit in limits {
            report.judge(&Gate { subject: "henge", row: "b", beside: "fio", beside_row: "a", limit }, &rounds);
        }
        let unknown = Gate { subject: "x", row: "b", beside: "fio", beside_row: "a", limit: Limit::ValueAtLeast(1.0) };
        report.judge(&unknown, &rounds);
        let verdicts: Vec<_> = report.gates.iter().map(|gate| gate.ends_with(": holds")).collect();
        assert_eq!(verdicts, [true, false, true, false]);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut report = Report::default();
        let line = Line { value: 12.5, cpu_us: Some(3.0), ..Line::named("PUT 4KiB c=1") };
        report.add("henge, 1 node", line.clone());
        let path = std::env::temp_dir().join(format!("henge-bench-test-{}.json", std::process::id()));
        report.write(&path).unwrap();
        let read = Report::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.find("henge, 1 node", "PUT 4KiB c=1"), Some(&line));
        assert!(Report::read(&path).is_err());
    }
}
