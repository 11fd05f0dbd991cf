//! The ack log: one JSON line before each change that is asked for, and one for each answer of the server, handed to the
//! operating system before anything else happens. So the death of this process loses none, and any prefix of the log
//! says what was acknowledged by then and what was under way. What it says is judged by `verify`.

use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::{Context, Failure};

/// Scripts depend on the names and shapes of all fields.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct AckLine {
    /// Wall-clock time of the line, milliseconds since 1970.
    pub t_ms: u64,
    pub op: Op,
    pub bucket: String,
    pub key: String,
    /// Counts the puts of this key, from 1. Of a get: what was last put.
    pub version: u64,
    /// Of a put: sent. Of a get: received. Else 0.
    pub bytes: u64,
    /// In hexadecimal, of what was sent or received; empty for a delete and for "there is no such object".
    pub sha256: String,
    pub result: Outcome,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Put,
    Get,
    Delete,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// A put or delete that is about to be sent: until the next line of its key, nobody can tell.
    Sent,
    /// Acknowledged; a get: what it must be.
    Ok,
    /// Certainly not done; a get: not what it must be.
    Fail,
    /// Nobody can tell: it may have been done.
    Unknown,
}

pub struct AckLog {
    path: PathBuf,
    file: Mutex<File>,
}

impl AckLog {
    /// Goes on behind what earlier runs have written.
    pub fn open(path: &Path) -> Result<AckLog, Failure> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.context(|| format!("the ack log {} cannot be written", path.display()))?;
        Ok(AckLog { path: path.to_owned(), file: Mutex::new(file) })
    }

    pub fn append(&self, line: &AckLine) -> Result<(), Failure> {
        let cannot = || format!("the ack log {} cannot be written", self.path.display());
        let mut text = serde_json::to_vec(line).context(cannot)?;
        text.push(b'\n');
        // One system call a line, so that lines of several tasks never mix.
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text).context(cannot)
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_shape_that_scripts_depend_on() {
        let line = AckLine {
            t_ms: 5,
            op: Op::Put,
            bucket: "b".into(),
            key: "k".into(),
            version: 1,
            bytes: 3,
            sha256: "00".into(),
            result: Outcome::Unknown,
        };
        let text =
            r#"{"t_ms":5,"op":"put","bucket":"b","key":"k","version":1,"bytes":3,"sha256":"00","result":"unknown"}"#;
        assert_eq!(serde_json::to_string(&line).unwrap(), text);
        assert_eq!(serde_json::from_str::<AckLine>(text).unwrap(), line);
    }
}
