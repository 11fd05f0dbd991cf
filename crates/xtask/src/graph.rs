//! The architecture as a table: which crate may depend on which. A new edge is an event: it is added here, and the
//! commit says why.

use crate::run::Counts;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Each room with the rooms that it may depend on. `sim` and `xtask` are depended on by nothing.
const ROOMS: &[(&str, &str, &[&str])] = &[
    ("base", "crates/base", &[]),
    ("protocol", "crates/protocol", &["base"]),
    ("store", "crates/store", &["base"]),
    ("meta", "crates/meta", &["base"]),
    ("access", "crates/access", &["base"]),
    ("client", "crates/client", &["base", "protocol", "meta"]),
    ("node", "crates/node", &["base", "protocol", "store", "meta", "client"]),
    ("gateway-s3", "crates/gateways/s3", &["base", "access", "client"]),
    ("henge", "crates/henge", &["base", "protocol", "store", "meta", "access", "client", "node", "gateway-s3"]),
    ("sim", "crates/sim", &["base", "protocol", "store", "meta", "client", "node", "gateway-s3"]),
    ("xtask", "crates/xtask", &[]),
];

pub fn check(counts: &mut Counts) {
    println!("== crate graph");
    let problems = problems(Path::new("."));
    for problem in &problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        counts.passed += 1;
    } else {
        println!("== crate graph FAILED");
        counts.failed += 1;
    }
}

/// What in the manifests under `root` contradicts the table.
pub fn problems(root: &Path) -> Vec<String> {
    let names: BTreeSet<&str> = ROOMS.iter().map(|(name, _, _)| *name).collect();
    let mut problems = Vec::new();
    for (name, folder, allowed) in ROOMS {
        let path = root.join(folder).join("Cargo.toml");
        let manifest = match std::fs::read_to_string(&path) {
            Ok(manifest) => manifest,
            Err(error) => {
                problems.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        for (section, dependencies) in dependencies(&manifest) {
            for dependency in dependencies.iter().filter(|dependency| names.contains(dependency.as_str())) {
                if !allowed.contains(&dependency.as_str()) {
                    problems
                        .push(format!("{name} must not depend on {dependency} ([{section}] of {})", path.display()));
                }
            }
        }
    }
    problems
}

/// The names in each section of dependencies of a manifest.
fn dependencies(manifest: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut sections: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut section = None;
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.ends_with("dependencies").then(|| name.to_string());
        } else if let (Some(section), Some(name)) = (&section, line.split(['.', '=', ' ']).next())
            && !name.is_empty()
            && !name.starts_with('#')
        {
            sections.entry(section.clone()).or_default().insert(name.to_string());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_follow_the_table() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        assert_eq!(problems(&root), Vec::<String>::new());
    }

    #[test]
    fn every_crate_of_the_workspace_is_in_the_table() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("the workspace has a manifest");
        let members: BTreeSet<&str> = manifest
            .lines()
            .map(str::trim)
            .filter_map(|line| line.strip_prefix("\"crates/")?.strip_suffix("\","))
            .collect();
        let table: BTreeSet<&str> = ROOMS.iter().filter_map(|(_, folder, _)| folder.strip_prefix("crates/")).collect();
        assert_eq!(members, table);
    }

    #[test]
    fn a_forbidden_edge_is_seen_in_every_kind_of_section() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nbase.workspace = true\n# note\n[dev-dependencies]\n\
                        store = { path = \"..\" }\n[target.'cfg(unix)'.dependencies]\nnode = \"1\"\n";
        let found: BTreeSet<String> = dependencies(manifest).into_values().flatten().collect();
        assert_eq!(found, ["base", "node", "store"].map(String::from).into());
    }
}
