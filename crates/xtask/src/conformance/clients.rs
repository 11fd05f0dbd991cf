//! The clients that people use, each as a script that does what its users do.

use super::Options;
use super::cluster::Cluster;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const SCRIPTS: &str = "conformance/clients";

/// The exit status by which a script says that its client is not installed.
const NOT_INSTALLED: i32 = 77;

pub fn run(options: &Options, cluster: &mut Cluster) -> Result<bool, String> {
    let key = cluster.create_key("clients")?;
    let mut scripts: Vec<PathBuf> = std::fs::read_dir(SCRIPTS)
        .map_err(|error| format!("{SCRIPTS}: {error}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|kind| kind == "sh"))
        .collect();
    scripts.sort();
    let mut rows = Vec::new();
    for script in scripts {
        let name = script.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if options.only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        println!("== {name}");
        let work = cluster.directory.join(&name);
        std::fs::create_dir_all(&work).map_err(|error| error.to_string())?;
        let output = Command::new("bash")
            .args(["-euo", "pipefail"])
            .arg(std::fs::canonicalize(&script).map_err(|error| error.to_string())?)
            .current_dir(&work)
            .env("ENDPOINT", format!("http://{}", cluster.s3(1)))
            .env("AWS_ACCESS_KEY_ID", &key.id)
            .env("AWS_SECRET_ACCESS_KEY", &key.secret)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_REGION", "us-east-1")
            .env_remove("AWS_CA_BUNDLE")
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        // The first line is the client's version.
        let version = text.lines().next().unwrap_or_default().to_owned();
        rows.push((name, version, output.status.code()));
    }
    let word = |code: &Option<i32>| match code {
        Some(0) => "works",
        Some(NOT_INSTALLED) => "not installed",
        _ => "FAILS",
    };
    println!("\n{:<16}{:<16}version", "client", "outcome");
    for (name, version, code) in &rows {
        println!("{name:<16}{:<16}{version}", word(code));
    }
    let count = |wanted: &str| rows.iter().filter(|(_, _, code)| word(code) == wanted).count();
    let (passed, failed, skipped) = (count("works"), count("FAILS"), count("not installed"));
    println!("henge: {passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0 && passed > 0)
}
