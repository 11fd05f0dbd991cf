//! The list of tests that are not passed, each with its reason: `conformance/s3-tests.toml`.
//!
//! ```text
//! [feature]
//! test_name = "reason"
//! ```

use std::collections::BTreeMap;
use std::path::Path;

/// Tests by name, with the reason why they are not passed.
pub type Expected = BTreeMap<String, String>;

/// Reads a list. Only tables of strings are known.
pub fn read(path: &Path) -> Result<Expected, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text).map_err(|(line, why)| format!("{}:{line}: {why}", path.display()))
}

fn parse(text: &str) -> Result<Expected, (usize, String)> {
    let mut expected = Expected::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || (line.starts_with('[') && line.ends_with(']')) {
            continue;
        }
        let fail = |why: &str| (index + 1, why.to_owned());
        let (name, reason) = line.split_once('=').ok_or_else(|| fail("neither a table nor `test = \"reason\"`"))?;
        let name = name.trim().trim_matches('"');
        let reason = reason.trim().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let reason = reason.filter(|reason| !reason.is_empty()).ok_or_else(|| fail("a test needs a reason"))?;
        if expected.insert(name.to_owned(), reason.to_owned()).is_some() {
            return Err(fail("a test is listed twice"));
        }
    }
    Ok(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_tests_and_reasons() {
        let read = parse("# c\n[a]\ntest_x = \"because\"\n\n\"test_y[1]\" = \"later\"\n").unwrap();
        assert_eq!(read.get("test_x").map(String::as_str), Some("because"));
        assert_eq!(read.get("test_y[1]").map(String::as_str), Some("later"));
        for bad in ["x", "x = 1", "x = \"\"", "x = \"a\"\nx = \"b\""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_list_of_this_repository_can_be_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/s3-tests.toml");
        assert!(read(&path).is_ok());
    }
}
