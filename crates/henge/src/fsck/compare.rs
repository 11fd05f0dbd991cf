//! One walk over the rows of a group: does each say what it should, and is there what it names.

use base::ids::{BucketId, ChunkId};
use bytes::Bytes;
use meta::keys::Key;
use meta::map::command::ClusterMap;
use meta::object::command::{Body, ObjectVersion, Part};
use meta::view::{View, ViewError};
use prost::Message;
use std::collections::BTreeSet;

use super::Findings;
use super::copies::{self, Held, Holders};
use super::metadata::{GroupRows, after};

/// Rows read at once.
const SCAN_ROWS: usize = 1000;

/// What metadata names.
#[derive(Default)]
pub struct Named {
    pub chunks: BTreeSet<ChunkId>,
    pub garbage: BTreeSet<ChunkId>,
    /// Some rows could not be read: what they name is unknown.
    pub incomplete: bool,
}

pub struct Compare<'a> {
    pub group: &'a GroupRows<'a>,
    pub held: &'a Held,
    pub holders: &'a Holders,
    pub map: &'a ClusterMap,
}

impl Compare<'_> {
    pub fn all_rows(&self, named: &mut Named, findings: &mut Findings) {
        named.incomplete |= self.group.is_incomplete;
        for (from, to) in &self.group.ranges {
            self.range(from.clone(), to, named, findings);
        }
    }

    fn range(&self, mut from: Bytes, to: &Bytes, named: &mut Named, findings: &mut Findings) {
        loop {
            let page = match self.group.rows.scan(&from, to, SCAN_ROWS) {
                Ok(page) => page,
                Err(ViewError::Damaged { first, last, .. }) => {
                    // Listed when the store was verified. Up to `first` row by row, then on behind `last`.
                    named.incomplete = true;
                    self.rows_before(&mut from, &first, named, findings);
                    from = after(&from.max(last));
                    continue;
                }
                Err(ViewError::Io(why)) => {
                    named.incomplete = true;
                    findings.add("metadata", self.group.place, why);
                    return;
                }
            };
            for (key, value) in &page {
                self.row(key, value, named, findings);
            }
            match page.last() {
                Some((last, _)) if page.len() == SCAN_ROWS => from = after(last),
                _ => return,
            }
        }
    }

    /// The rows from `from` on that come before a damaged place.
    fn rows_before(&self, from: &mut Bytes, damaged: &Bytes, named: &mut Named, findings: &mut Findings) {
        while let Ok(page) = self.group.rows.scan(from, damaged, 1) {
            let Some((key, value)) = page.first() else { return };
            self.row(key, value, named, findings);
            *from = after(key);
        }
    }

    fn row(&self, key: &Bytes, value: &Bytes, named: &mut Named, findings: &mut Findings) {
        let chunks = match meta::object::references(key, value) {
            Ok(chunks) => chunks,
            Err(error) => {
                named.incomplete = true;
                findings.add("metadata", self.group.place, error.to_string());
                return;
            }
        };
        let mut object = None;
        if let Ok(Key::Version { .. } | Key::Part { .. }) = Key::decode(key) {
            findings.objects += 1;
            object = self.check_body(key, value, findings);
        }
        let name = object.unwrap_or_default();
        let mut body_bytes = 0;
        for chunk in chunks {
            let id = chunk.chunk.id;
            if chunk.garbage {
                named.garbage.insert(id);
                continue;
            }
            if !named.chunks.insert(id) {
                findings.add("metadata", name.to_string(), format!("chunk {id} is named by two objects"));
            }
            findings.chunks_named += 1;
            body_bytes += u64::from(chunk.chunk.len);
            self.check_chunk(&name.to_string(), &chunk.chunk, findings);
        }
        if let Some(expected) = name.chunk_bytes.filter(|expected| *expected != body_bytes) {
            let detail = format!("its chunks have {body_bytes} bytes, it should have {expected}");
            findings.add("lost", name.to_string(), detail);
        }
    }

    /// Checks what a version or part says of its own bytes.
    fn check_body(&self, key: &Bytes, value: &Bytes, findings: &mut Findings) -> Option<ObjectName> {
        let (bucket, object, what, body) = match Key::decode(key).ok()? {
            Key::Version { bucket, key, .. } => {
                let row = ObjectVersion::decode(value.clone()).ok()?;
                let what = format!("version {}", row.version.escape_ascii());
                (bucket, key, what, row.body?)
            }
            Key::Part { bucket, key, number, .. } => {
                (bucket, key, format!("part {number}"), Part::decode(value.clone()).ok()?.body?)
            }
            _ => return None,
        };
        let mut name = ObjectName { bucket: self.bucket_name(bucket), key: object.clone(), what, chunk_bytes: None };
        if let Some(inline) = &body.inline {
            if base::checksum::crc32c(&[], inline) != body.inline_crc32c || inline.len() as u64 != body.size {
                findings.add("corrupt", name.to_string(), "the bytes in its row do not verify");
            }
        } else if body.upload.is_empty() {
            name.chunk_bytes = Some(body.size);
        } else {
            self.check_parts(&name, bucket, &object, &body, findings);
        }
        Some(name)
    }

    fn check_parts(&self, name: &ObjectName, bucket: BucketId, key: &Bytes, body: &Body, findings: &mut Findings) {
        let Ok(upload) = <[u8; 16]>::try_from(body.upload.as_ref()) else {
            findings.add("metadata", name.to_string(), "its upload id is malformed");
            return;
        };
        let upload = u128::from_be_bytes(upload);
        let sum: u64 = body.parts.iter().map(|part| part.size).sum();
        if sum != body.size {
            findings.add("metadata", name.to_string(), "its size is not the sum of its parts");
        }
        for part in &body.parts {
            let number = u16::try_from(part.number).unwrap_or(0);
            let row = Key::Part { bucket, key: key.clone(), upload, number }.encode();
            if let Ok(None) = self.group.rows.get(&row) {
                findings.add("lost", name.to_string(), format!("part {} is missing", part.number));
            }
        }
    }

    /// Whether a chunk is where it should be, as it should be.
    fn check_chunk(&self, name: &str, chunk: &meta::chunks::ChunkRef, findings: &mut Findings) {
        let judged = copies::judge(chunk, self.held, self.holders.of_chunk(chunk.id));
        let path = |disk| self.held.disks.get(disk).map_or("?", String::as_str);
        let id = chunk.id;
        findings.chunks_elsewhere += u64::from(judged.is_elsewhere);
        if let Some(why) = judged.lost {
            findings.add("lost", name, format!("chunk {id} {why}"));
        }
        for disk in &judged.corrupt {
            findings.add("corrupt", path(disk), format!("the copy of chunk {id} of {name} has other bytes"));
        }
        if let Some(degraded) = judged.degraded {
            findings.degraded += 1;
            let paths: Vec<&str> = degraded.missing_on.iter().map(path).collect();
            let unknown = match degraded.not_given {
                0 => String::new(),
                count => format!(" (of those found; {count} of its disks were not given)"),
            };
            let (good, wanted) = (degraded.good, degraded.wanted);
            findings.add(
                "degraded",
                name,
                format!("chunk {id} has {good} of {wanted} copies{unknown}: no good one on {}", paths.join(", ")),
            );
        }
        for _ in &judged.stray {
            findings.strays.count(id, u64::from(chunk.len));
        }
    }

    fn bucket_name(&self, id: BucketId) -> String {
        let entry = self.map.buckets.iter().find(|bucket| bucket.id == id.0);
        entry.map_or_else(|| format!("bucket {id}"), |bucket| bucket.name.clone())
    }
}

/// For messages: whose bytes these are.
#[derive(Default)]
struct ObjectName {
    bucket: String,
    key: Bytes,
    what: String,
    /// Bytes that its chunks should have.
    chunk_bytes: Option<u64>,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} ({})", self.bucket, self.key.escape_ascii(), self.what)
    }
}
