//! Running steps and counting what they report.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

/// Real counts: of tests as the test runner prints them, and one for each other step.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

/// Runs a step that passes or fails as a whole.
pub fn step(counts: &mut Counts, name: &str, program: &str, arguments: &[&str]) {
    println!("== {name}: {program} {}", arguments.join(" "));
    match Command::new(program).args(arguments).status() {
        Ok(status) if status.success() => counts.passed += 1,
        Ok(status) => {
            println!("== {name} FAILED ({status})");
            counts.failed += 1;
        }
        Err(error) => {
            println!("== {name} FAILED: {program} cannot be started: {error}");
            counts.failed += 1;
        }
    }
}

/// Runs a program in the place of this one: its output and its exit code are all there is.
pub fn instead(program: &str, arguments: &[&str]) -> ExitCode {
    match Command::new(program).args(arguments).status() {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("xtask: {program} cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

pub fn exists(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// All tests of the workspace, counted from the runner's own closing lines.
pub fn tests(counts: &mut Counts) {
    println!("== tests: cargo test --workspace --no-fail-fast");
    let child = Command::new("cargo").args(["test", "--workspace", "--no-fail-fast"]).stdout(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            println!("== tests FAILED: cargo cannot be started: {error}");
            counts.failed += 1;
            return;
        }
    };
    let mut seen = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            println!("{line}");
            add(&mut seen, &line);
        }
    }
    let succeeded = child.wait().is_ok_and(|status| status.success());
    if !succeeded && seen.failed == 0 {
        // A crate did not compile, or a test process died without a closing line.
        seen.failed = 1;
    }
    counts.passed += seen.passed;
    counts.failed += seen.failed;
    counts.skipped += seen.skipped;
}

/// Adds `test result: ok. 7 passed; 0 failed; 1 ignored; ...`.
fn add(counts: &mut Counts, line: &str) {
    let Some(rest) = line.strip_prefix("test result: ") else { return };
    for part in rest.split([';', '.']) {
        let mut words = part.split_whitespace();
        let (Some(Ok(number)), Some(word)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
        match word {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" => counts.skipped += number,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let mut counts = Counts::default();
        add(
            &mut counts,
            "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s",
        );
        add(&mut counts, "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out");
        add(&mut counts, "test something ... ok");
        assert_eq!(counts, Counts { passed: 9, failed: 4, skipped: 1 });
    }
}
