//! `cargo xtask fuzz`: every target of `fuzz/` for a while, from its committed seeds on.

use std::path::{Path, PathBuf};

use crate::run::{self, Counts};

/// Longest input in bytes: more only makes each try slower.
const INPUT_BYTES_MAX: usize = 16 << 10;

/// Runs all targets, or only those named, `seconds` each. A crash counts as failed; its input is in `fuzz/artifacts`.
pub fn run(counts: &mut Counts, seconds: u64, only: &[&str]) {
    if !run::exists("cargo-fuzz") {
        println!("== fuzz: skipped, because cargo-fuzz is not installed (cargo install cargo-fuzz)");
        counts.skipped += 1;
        return;
    }
    for target in targets(Path::new(".")).iter().filter(|target| only.is_empty() || only.contains(&target.as_str())) {
        let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        for folder in [&corpus, &seeds] {
            if let Err(error) = std::fs::create_dir_all(folder) {
                println!("== fuzz: {folder}: {error}");
                counts.failed += 1;
                return;
            }
        }
        let (time, len) = (format!("-max_total_time={seconds}"), format!("-max_len={INPUT_BYTES_MAX}"));
        // Without a sanitizer any toolchain will do, and the code under test is safe Rust but for a few system calls.
        let arguments = [
            "fuzz",
            "run",
            "-s",
            "none",
            target,
            &corpus,
            &seeds,
            "--",
            &time,
            &len,
            "-timeout=10",
            "-print_final_stats=1",
        ];
        run::step(counts, &format!("fuzz {target}"), "cargo", &arguments);
    }
}

/// The names of all targets below `root`, in order.
fn targets(root: &Path) -> Vec<String> {
    let files = std::fs::read_dir(root.join("fuzz/targets")).into_iter().flatten().flatten();
    let mut names: Vec<String> = files
        .map(|file| PathBuf::from(file.file_name()))
        .filter(|name| name.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|name| name.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_built_and_has_seeds() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let manifest = std::fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
        let targets = targets(&root);
        assert!(targets.len() >= 10);
        for target in &targets {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
            let seeds = std::fs::read_dir(root.join("fuzz/seeds").join(target));
            assert!(seeds.is_ok_and(|mut seeds| seeds.next().is_some()), "{target} has no seeds");
        }
    }
}
