//! Which points of the product were reached: every place that logs something is one. A simulator that never gets
//! somewhere is noticed here.

use sim::Point;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Crates whose code a simulation runs.
const CRATES: [&str; 6] = ["base", "protocol", "store", "meta", "client", "node"];
const MACROS: [&str; 4] = ["tracing::debug!(", "tracing::info!(", "tracing::warn!(", "tracing::error!("];

/// Says how many points were reached and which were not.
pub fn print(reached: &BTreeSet<Point>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut points = Vec::new();
    for name in CRATES {
        look_through(&root, &Path::new("crates").join(name).join("src"), &mut points);
    }
    points.sort();
    let is_reached = |point: &&(String, u32, String)| {
        reached.iter().any(|(file, line)| file.ends_with(&point.0) && *line == point.1)
    };
    let missed: Vec<_> = points.iter().filter(|point| !is_reached(point)).collect();
    println!("points: {} of {} that log something were reached; not:", points.len() - missed.len(), points.len());
    for (file, line, text) in missed {
        println!("  {file}:{line}  {text}");
    }
}

fn look_through(root: &Path, folder: &Path, points: &mut Vec<(String, u32, String)>) {
    let Ok(entries) = std::fs::read_dir(root.join(folder)) else { return };
    let paths: BTreeSet<PathBuf> = entries.flatten().map(|entry| folder.join(entry.file_name())).collect();
    for path in paths {
        if root.join(&path).is_dir() {
            look_through(root, &path, points);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && let Ok(text) = std::fs::read_to_string(root.join(&path))
        {
            let lines: Vec<&str> = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).collect();
            for (number, line) in lines.iter().enumerate().filter(|(_, line)| MACROS.iter().any(|it| line.contains(it)))
            {
                let next = lines.get(number + 1).copied().unwrap_or_default();
                let shown = if line.trim_end().ends_with('(') { next } else { line };
                points.push((path.to_string_lossy().into_owned(), number as u32 + 1, shown.trim().to_string()));
            }
        }
    }
}
