//! Costs, counted in rows read: they follow the results, not what is stored.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::Bytes;
use meta::object::command::*;
use meta::view::{Row, View, ViewError};

use crate::shard::*;

/// Counts the rows that are read.
struct Counting<'a> {
    rows: &'a BTreeMap<Bytes, Bytes>,
    read: Cell<usize>,
}

impl View for Counting<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        self.read.set(self.read.get() + 1);
        View::get(self.rows, key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, ViewError> {
        let rows = View::scan(self.rows, from, to, limit)?;
        self.read.set(self.read.get() + rows.len().max(1));
        Ok(rows)
    }
}

fn rows_read(shard: &Shard, list: ShardRead) -> (usize, ObjectPage) {
    let view = Counting { rows: &shard.rows, read: Cell::new(0) };
    match shard.read_counted(&view, list) {
        ShardFound::Objects(page) | ShardFound::Versions(page) => (view.read.get(), page),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_delimiter_is_a_skip_scan() {
    let mut shard = Shard::new(Versioning::Off);
    for folder in 0..20 {
        for file in 0..500 {
            shard.put(&format!("{folder:02}/{file:03}"), "e");
        }
    }
    let list = ListObjects { bucket: BUCKET, delimiter: text("/"), limit: 1000, ..ListObjects::default() };
    let (read, page) = rows_read(&shard, ShardRead::ListObjects(list));
    assert_eq!(page.prefixes.len(), 20);
    assert!(!page.truncated);
    assert!(read < 20 * 16, "{read} rows for 20 prefixes");

    let all = ListObjects { bucket: BUCKET, prefix: text("07/"), limit: 1000, ..ListObjects::default() };
    let (read, page) = rows_read(&shard, ShardRead::ListObjects(all));
    assert_eq!(page.objects.len(), 500);
    assert!(read < 600, "{read} rows for 500 keys");

    let first = ListObjects { bucket: BUCKET, limit: 1, ..ListObjects::default() };
    let (read, page) = rows_read(&shard, ShardRead::ListObjects(first));
    assert!(page.truncated);
    assert!(read < 32, "{read} rows for 1 key");
}

#[test]
fn a_key_with_many_versions_is_passed_in_one_jump() {
    let mut shard = Shard::new(Versioning::Enabled);
    for key in ["a", "b", "c"] {
        for _ in 0..2000 {
            shard.put(key, "e");
        }
    }
    let list = ListObjects { bucket: BUCKET, limit: 10, ..ListObjects::default() };
    let (read, page) = rows_read(&shard, ShardRead::ListObjects(list));
    assert_eq!(page.objects.len(), 3);
    assert!(read < 100, "{read} rows for 3 keys");

    // Going on within a key does not walk over the versions before it, nor does reading an old version.
    let versions = shard.list_versions(ListVersions { limit: 1000, ..ListVersions::default() });
    let next = ListVersions {
        bucket: BUCKET,
        key_marker: versions.next_after.clone(),
        version_marker: versions.next_version.clone(),
        limit: 10,
        ..ListVersions::default()
    };
    let (read, page) = rows_read(&shard, ShardRead::ListVersions(next));
    assert!(page.objects.iter().all(|object| !object.latest));
    assert!(read < 40, "{read} rows for 10 versions");
    let get = GetObject { bucket: BUCKET, key: text("a"), version: versions.next_version };
    let view = Counting { rows: &shard.rows, read: Cell::new(0) };
    assert!(matches!(shard.read_counted(&view, ShardRead::GetObject(get)), ShardFound::Object(_)));
    assert!(view.read.get() < 6);
}

#[test]
fn a_query_that_finds_only_delete_markers_ends_and_says_where_to_go_on() {
    let mut shard = Shard::new(Versioning::Enabled);
    for number in 0..100_500 {
        shard.delete(&format!("d/{number:06}"), None);
    }
    shard.put("d/z", "e");
    let first = ListObjects { delimiter: text("/"), limit: 10, ..ListObjects::default() };
    let page = shard.list(first.clone());
    assert!(page.truncated && page.prefixes.is_empty());
    assert_eq!(page.resume, text("d/100000"));
    let page = shard.list(ListObjects { from: page.resume, ..first });
    assert_eq!(page.prefixes, vec![text("d/")]);
    assert!(!page.truncated);
}

#[test]
fn completing_ten_thousand_parts_reads_each_once_and_listing_walks_over_none() {
    let mut shard = Shard::new(Versioning::Off);
    let named = crate::uploads::upload(&mut shard, "k", 1, 10_000);
    let view = Counting { rows: &shard.rows, read: Cell::new(0) };
    let entry = ShardEntry {
        slot: None,
        range_epoch: 1,
        fence: None,
        command: Some(crate::uploads::complete("k", 1, named.clone())),
    };
    let (changes, _) = meta::object::apply(&view, GROUP, base::ids::LogIndex(99_999), entry).unwrap();
    assert!(view.read.get() < 10_100, "{} rows", view.read.get());
    assert!(changes.0.len() < 5);

    shard.run(crate::uploads::complete("k", 1, named));
    crate::uploads::upload(&mut shard, "l", 2, 500);
    let (read, page) =
        rows_read(&shard, ShardRead::ListObjects(ListObjects { bucket: BUCKET, limit: 10, ..Default::default() }));
    assert_eq!(page.objects.len(), 1);
    assert!(read < 10);
    let view = Counting { rows: &shard.rows, read: Cell::new(0) };
    let list = ShardRead::ListUploads(ListUploads { bucket: BUCKET, limit: 10, ..ListUploads::default() });
    let ShardFound::Uploads(page) = shard.read_counted(&view, list) else { panic!() };
    assert_eq!(page.uploads.len(), 1);
    assert!(view.read.get() < 10);

    // Dropping it all makes few rows.
    shard.delete("k", None);
    assert_eq!(shard.garbage().len(), 1);
    assert_eq!(shard.garbage_chunks(), 10_000);
}
