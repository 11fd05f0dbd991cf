//! ceph/s3-tests: its configuration, its run, and the comparison with what is expected. The suite is the user's copy;
//! nothing of it is in this repository.

use super::Options;
use super::cluster::{Cluster, Key, LIFECYCLE_DAY_S};
use super::expected::{self, Expected};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What AWS's own behaviour or the suite's own reference implementation does not pass is not run.
const ALL: &str = "not fails_on_aws and not fails_on_rgw";

/// Beyond these, the marks of features that are not S3's own.
const FIRST_GATE: &str = "not fails_on_aws and not fails_on_rgw and not encryption and not sse_s3 and not bucket_encryption \
    and not bucket_logging and not bucket_logging_cleanup and not cloud_transition and not cloud_restore \
    and not auth_aws2 and not iam_user and not iam_account and not test_of_sts and not user_policy and not iam_tenant";

const FILES: [&str; 2] = ["s3tests/functional/test_s3.py", "s3tests/functional/test_headers.py"];

const EXPECTED: &str = "conformance/s3-tests.toml";

/// Storage classes besides the usual one: name, class and copies of their pools.
const POOLS: [(&str, &str, &str); 2] = [("warm", "WARM", "2"), ("cold", "COLD", "3")];

/// How long a node that was killed stays away.
const AWAY: Duration = Duration::from_secs(60);

/// Tests by name, and whether each passed.
type Outcomes = BTreeMap<String, bool>;

pub fn run(options: &Options, cluster: &mut Cluster) -> Result<bool, String> {
    let suite = options.suite.as_deref().ok_or("--suite DIR is missing: a checkout of ceph/s3-tests")?;
    let configuration = cluster.directory.join("s3-tests.conf");
    for (name, class, copies) in POOLS {
        cluster.henge(&["pool", "create", name, "--class", class, "--copies", copies])?;
    }
    std::fs::write(&configuration, configure(cluster)?).map_err(|error| error.to_string())?;
    let pytest = Pytest { options, suite, configuration: &configuration };
    let all = pytest.collect(ALL)?;
    let gate = pytest.collect(FIRST_GATE)?;
    println!(
        "== ceph/s3-tests on {} node(s): {} tests, {} of them in the first gate",
        cluster.nodes,
        all.len(),
        gate.len()
    );
    let outcomes = pytest.run(cluster, all.len())?;
    if options.select.is_some() {
        let failed = outcomes.values().filter(|passed| !**passed).count();
        println!("{} passed, {failed} failed", outcomes.len() - failed);
        return Ok(failed == 0);
    }
    let expected = expected::read(Path::new(EXPECTED))?;
    table(&outcomes, &expected);
    Ok(judge(&outcomes, &expected, &all, &gate))
}

fn configure(cluster: &Cluster) -> Result<String, String> {
    let classes = format!("storage_classes = {}\n", POOLS.map(|(_, class, _)| class).join(", "));
    let mut text = format!(
        "[DEFAULT]\nhost = 127.0.0.1\nport = {}\nis_secure = False\nssl_verify = False\n\n[fixtures]\n\
         bucket prefix = henge-{{random}}-\niam name prefix = s3-tests-\niam path prefix = /s3-tests/\n",
        cluster.port(1)
    );
    for section in ["s3 main", "s3 alt", "s3 tenant", "iam", "iam root", "iam alt root"] {
        let name = section.replace(' ', "-");
        let Key { id, secret } = cluster.create_key(&name)?;
        // The user of a key is the key itself.
        text.push_str(&format!(
            "\n[{section}]\naccess_key = {id}\nsecret_key = {secret}\nuser_id = {id}\ndisplay_name = {id}\n\
             email = {name}@example.com\n"
        ));
        match section {
            "s3 main" => {
                text.push_str(&format!("api_name = us-east-1\nlc_debug_interval = {LIFECYCLE_DAY_S}\n{classes}"))
            }
            "s3 tenant" => text.push_str("tenant =\n"),
            _ => {}
        }
    }
    Ok(text)
}

struct Pytest<'a> {
    options: &'a Options,
    suite: &'a Path,
    configuration: &'a Path,
}

impl Pytest<'_> {
    fn command(&self, marks: &str) -> Command {
        let mut command = Command::new(&self.options.python);
        command.current_dir(self.suite).env("S3TEST_CONF", self.configuration);
        command.args(["-m", "pytest", "-p", "no:cacheprovider", "-m", marks]).args(FILES);
        if let Some(select) = &self.options.select {
            command.args(["-k", select]);
        }
        command
    }

    /// The names of the tests with these marks.
    fn collect(&self, marks: &str) -> Result<Vec<String>, String> {
        let output = self.command(marks).args(["-q", "--collect-only"]).output();
        let output = output.map_err(|error| format!("{}: {error}", self.options.python))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let names: Vec<String> = text.lines().filter_map(name_of).map(str::to_owned).collect();
        if names.is_empty() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("pytest finds no tests in {}:\n{text}{why}", self.suite.display()));
        }
        Ok(names)
    }

    /// Runs the tests; with `--kill`, the last node is away from half-way on for a while.
    fn run(&self, cluster: &Cluster, count: usize) -> Result<Outcomes, String> {
        let mut command = self.command(ALL);
        command.args(["-v", "--tb=line"]).stdout(Stdio::piped());
        if let Some(workers) = self.options.workers {
            command.args(["-n", &workers.to_string()]);
        }
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", self.options.python))?;
        let stdout = child.stdout.take().ok_or("pytest has no output")?;
        let mut outcomes = Outcomes::new();
        let mut victim = self.options.kill.then(|| cluster.nodes.to_string());
        let mut away = None;
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some((name, passed)) = outcome_of(&line) {
                // An error in the teardown comes after the test itself passed.
                let kept = outcomes.entry(name.to_owned()).or_insert(true);
                *kept &= passed;
            }
            println!("{line}");
            if outcomes.len() * 2 >= count
                && let Some(node) = victim.take()
            {
                println!("== node {node} is killed");
                cluster.henge(&["dev", "kill", &node])?;
                away = Some((node, std::time::Instant::now()));
            }
            if let Some((node, since)) = away.take_if(|(_, since)| since.elapsed() >= AWAY) {
                println!("== node {node} comes back after {} s", since.elapsed().as_secs());
                cluster.henge(&["dev", "start", &node])?;
            }
        }
        child.wait().map_err(|error| error.to_string())?;
        Ok(outcomes)
    }
}

/// The name in `path::test_name`.
fn name_of(line: &str) -> Option<&str> {
    let (path, name) = line.trim().split_once("::")?;
    path.ends_with(".py").then_some(name)
}

/// The test and its outcome in a line of `pytest -v`, with or without workers.
fn outcome_of(line: &str) -> Option<(&str, bool)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let name = words.iter().find_map(|word| name_of(word))?;
    let is = |outcome: &str| words.contains(&outcome);
    if is("PASSED") {
        Some((name, true))
    } else if is("FAILED") || is("ERROR") {
        Some((name, false))
    } else {
        None
    }
}

/// Which feature a test is about, by its name.
fn feature_of(name: &str) -> &'static str {
    const FEATURES: [(&str, &str); 26] = [
        ("lifecycle", "lifecycle"),
        ("object_lock", "object lock"),
        ("post_object", "browser upload"),
        ("cors", "CORS"),
        ("tag", "tagging"),
        ("block_public", "public access block"),
        ("public_block", "public access block"),
        ("policy", "bucket policy"),
        ("ownership", "object ownership"),
        ("bucket_owner", "object ownership"),
        ("object_writer", "object ownership"),
        ("acl", "access lists"),
        ("access_bucket", "access lists"),
        ("grant", "access lists"),
        ("sse", "encryption"),
        ("encrypt", "encryption"),
        ("logging", "logging"),
        ("cksum", "checksums"),
        ("checksum", "checksums"),
        ("version", "versioning"),
        ("delete_marker", "versioning"),
        ("multipart", "multipart"),
        ("copy", "copy"),
        ("if_match", "conditions"),
        ("ifmatch", "conditions"),
        ("list", "listing"),
    ];
    let found = FEATURES.iter().find(|(word, _)| name.contains(word));
    found.map_or("objects and buckets", |(_, feature)| feature)
}

fn table(outcomes: &Outcomes, expected: &Expected) {
    let mut features: BTreeMap<&str, (u32, u32, u32)> = BTreeMap::new();
    for (name, passed) in outcomes {
        let row = features.entry(feature_of(name)).or_default();
        match (passed, expected.contains_key(name)) {
            (true, _) => row.0 += 1,
            (false, true) => row.1 += 1,
            (false, false) => row.2 += 1,
        }
    }
    println!("\n{:<24}{:>8}{:>10}{:>8}", "feature", "passed", "excluded", "failed");
    for (feature, (passed, excluded, failed)) in features {
        println!("{feature:<24}{passed:>8}{excluded:>10}{failed:>8}");
    }
}

/// Prints what is not as listed; `true` when all is.
fn judge(outcomes: &Outcomes, expected: &Expected, all: &[String], gate: &[String]) -> bool {
    let passes = |name: &String| outcomes.get(name).copied().unwrap_or(false);
    let count = |names: &[String]| names.iter().filter(|name| passes(name)).count();
    println!("\nfirst gate: {} of {} pass; second gate: {} of {}", count(gate), gate.len(), count(all), all.len());
    let failed: Vec<&String> = all.iter().filter(|name| !passes(name) && !expected.contains_key(*name)).collect();
    let cured: Vec<&String> = expected.keys().filter(|name| passes(name)).collect();
    for name in &failed {
        println!("FAILED and not listed: {name}");
    }
    for name in &cured {
        println!("PASSED: take it off {EXPECTED}: {name}");
    }
    println!(
        "henge: {} passed, {} failed, {} skipped",
        count(all),
        failed.len(),
        all.len() - count(all) - failed.len()
    );
    failed.is_empty() && cured.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_from_both_forms() {
        let plain = "s3tests/functional/test_s3.py::test_a[x-1] PASSED      [  1%]";
        assert_eq!(outcome_of(plain), Some(("test_a[x-1]", true)));
        let parallel = "[gw1] [ 99%] FAILED s3tests/functional/test_headers.py::test_b ";
        assert_eq!(outcome_of(parallel), Some(("test_b", false)));
        assert_eq!(outcome_of("s3tests/functional/test_s3.py::test_a "), None);
        assert_eq!(outcome_of("ERROR at teardown"), None);
    }

    #[test]
    fn what_differs_from_the_list_fails() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let outcomes =
            |pairs: &[(&str, bool)]| pairs.iter().map(|(name, passed)| ((*name).to_owned(), *passed)).collect();
        let listed = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), "why".to_owned())).collect();
        let all = names(&["a", "b"]);
        assert!(judge(&outcomes(&[("a", true), ("b", false)]), &listed(&["b"]), &all, &all));
        assert!(!judge(&outcomes(&[("a", true), ("b", false)]), &listed(&[]), &all, &all));
        assert!(!judge(&outcomes(&[("a", true), ("b", true)]), &listed(&["b"]), &all, &all), "it passes now");
        assert!(!judge(&outcomes(&[("a", true)]), &listed(&[]), &all, &all), "what did not run did not pass");
    }
}
