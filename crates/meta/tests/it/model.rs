//! Random commands against the shard and against a plain model of S3, in all versioning states, with uploads; then
//! listings with random prefixes, delimiters, markers and page sizes, over one shard and over two.

use std::collections::{BTreeMap, BTreeSet};

use base::ids::{BucketId, GroupId, LogIndex};
use bytes::Bytes;
use meta::chunks;
use meta::group::{self, GroupState};
use meta::keys::{Key, range_point};
use meta::object::command::*;
use meta::object::{apply, query, references};
use meta::view::{Overlay, View, commit};
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;

use crate::shard::*;

const MIB: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum Op {
    Put { key: usize, condition: usize },
    Delete { key: usize, condition: usize },
    DeleteVersion { key: usize, which: Index },
    Versioning(bool),
    CreateUpload { key: usize },
    PutPart { upload: Index, number: u32, large: bool },
    Complete { upload: Index, parts: Vec<bool>, condition: usize },
    Abort { upload: Index },
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..KEYS.len();
    prop_oneof![
        6 => (key.clone(), 0usize..8).prop_map(|(key, condition)| Op::Put { key, condition }),
        3 => (key.clone(), 0usize..8).prop_map(|(key, condition)| Op::Delete { key, condition }),
        2 => (key.clone(), any::<Index>()).prop_map(|(key, which)| Op::DeleteVersion { key, which }),
        1 => any::<bool>().prop_map(Op::Versioning),
        1 => key.prop_map(|key| Op::CreateUpload { key }),
        2 => (any::<Index>(), 1u32..6, any::<bool>())
            .prop_map(|(upload, number, large)| Op::PutPart { upload, number, large }),
        2 => (any::<Index>(), proptest::collection::vec(any::<bool>(), 5), 0usize..8)
            .prop_map(|(upload, parts, condition)| Op::Complete { upload, parts, condition }),
        1 => any::<Index>().prop_map(|upload| Op::Abort { upload }),
    ]
}

const KEYS: [&[u8]; 16] = [
    b"a",
    b"a/",
    b"a/b",
    b"a/b/c",
    b"a/c",
    b"a\0",
    b"a\0/x",
    b"a0",
    b"ab",
    b"b/",
    b"b/\xff",
    b"b/\xff/x",
    b"\xff",
    b"\xff\xff/y",
    b"\0",
    b"z//z",
];

fn key(number: usize) -> Bytes {
    Bytes::from_static(KEYS[number])
}

#[derive(Clone, Debug, PartialEq)]
struct ModelVersion {
    id: Bytes,
    marker: bool,
    etag: String,
    /// Counters of its chunks.
    chunks: Vec<u32>,
    size: u64,
}

#[derive(Clone, Debug)]
struct ModelUpload {
    id: Bytes,
    key: Bytes,
    parts: BTreeMap<u32, (String, u32, u64)>,
    open: bool,
}

/// What the shard should hold.
struct Model {
    versioning: Versioning,
    /// Newest first.
    keys: BTreeMap<Bytes, Vec<ModelVersion>>,
    uploads: Vec<ModelUpload>,
    dropped: BTreeSet<u32>,
}

impl Model {
    fn current(&self, key: &Bytes) -> Option<&ModelVersion> {
        self.keys.get(key)?.first()
    }

    fn remove(&mut self, key: &Bytes, id: &[u8]) -> Option<ModelVersion> {
        let versions = self.keys.get_mut(key)?;
        let at = versions.iter().position(|version| version.id == id)?;
        let removed = versions.remove(at);
        if versions.is_empty() {
            self.keys.remove(key);
        }
        self.dropped.extend(&removed.chunks);
        Some(removed)
    }

    /// Writes a version; `id` is what the shard answered (empty when the bucket is not versioned).
    fn write(&mut self, key: &Bytes, mut version: ModelVersion, id: &Bytes) {
        version.id = if self.versioning == Versioning::Enabled { id.clone() } else { Bytes::from_static(b"null") };
        if self.versioning != Versioning::Enabled {
            self.remove(key, b"null");
        }
        let versions = self.keys.entry(key.clone()).or_default();
        assert!(!versions.iter().any(|other| other.id == version.id), "version ids are unique");
        versions.insert(0, version);
    }

    /// The refusal that S3 gives, for a PUT.
    fn refusal(&self, key: &Bytes, condition: usize) -> Option<Reason> {
        let current = self.current(key).filter(|version| !version.marker);
        match (condition, current) {
            (1, Some(_)) => Some(Reason::PreconditionFailed),
            (2 | 3, None) => Some(Reason::NoSuchKey),
            (3, Some(version)) if version.etag != "e1" => Some(Reason::PreconditionFailed),
            (4, Some(version)) if version.etag == "e1" => Some(Reason::PreconditionFailed),
            _ => None,
        }
    }

    fn live_chunks(&self) -> BTreeSet<u32> {
        let versions = self.keys.values().flatten().flat_map(|version| version.chunks.iter().copied());
        let open = self.uploads.iter().filter(|upload| upload.open);
        let parts = open.flat_map(|upload| upload.parts.values().map(|part| part.1));
        versions.chain(parts).collect()
    }
}

fn condition(number: usize) -> Option<Precondition> {
    let none = Precondition::default();
    match number {
        1 => Some(Precondition { must_not_exist: true, ..none }),
        2 => Some(Precondition { must_exist: true, ..none }),
        3 => Some(Precondition { etag_is: vec!["e9".into(), "e1".into()], ..none }),
        4 => Some(Precondition { etag_is_not: vec!["e1".into()], ..none }),
        _ => None,
    }
}

/// The shard, the model, and a second shard that applies the same entries in batches through an overlay.
struct Run {
    shard: Shard,
    model: Model,
    entries: Vec<ShardCommand>,
    settings_version: u64,
    counter: u32,
}

impl Run {
    fn new() -> Run {
        let model =
            Model { versioning: Versioning::Off, keys: BTreeMap::new(), uploads: Vec::new(), dropped: BTreeSet::new() };
        Run { shard: Shard::new(Versioning::Off), model, entries: Vec::new(), settings_version: 1, counter: 0 }
    }

    fn run(&mut self, command: ShardCommand) -> ShardOutcome {
        self.entries.push(command.clone());
        self.shard.run(command)
    }

    fn body(&mut self, size: u64) -> (Body, u32) {
        self.counter += 1;
        let body = self.shard.body(size);
        let chunk = chunks::unpack(&body.chunks).unwrap()[0].id.counter;
        (body, chunk)
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Put { key: number, condition } => self.put(key(number), condition),
            Op::Delete { key: number, condition } => self.delete(key(number), condition),
            Op::DeleteVersion { key: number, which } => self.delete_version(key(number), which),
            Op::Versioning(enabled) => self.set_versioning(enabled),
            Op::CreateUpload { key: number } => self.create_upload(key(number)),
            Op::PutPart { upload, number, large } => self.put_part(upload, number, large),
            Op::Complete { upload, parts, condition } => self.complete(upload, &parts, condition),
            Op::Abort { upload } => self.abort(upload),
        }
    }

    fn put(&mut self, key: Bytes, number: usize) {
        let (body, chunk) = self.body(10);
        let etag = format!("e{}", chunk % 3);
        let put = PutObject { key: key.clone(), precondition: condition(number), ..put_of("", &etag, body) };
        let refusal = self.model.refusal(&key, number);
        match (self.run(ShardCommand::PutObject(put)), refusal) {
            (ShardOutcome::Refused(refused), Some(reason)) => assert_eq!(refused.reason(), reason),
            (ShardOutcome::Written(written), None) => {
                assert_eq!(written.version.is_empty(), self.model.versioning == Versioning::Off);
                let version = ModelVersion { id: Bytes::new(), marker: false, etag, chunks: vec![chunk], size: 10 };
                self.model.write(&key, version, &written.version);
            }
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, key: Bytes, number: usize) {
        let command = DeleteObject {
            bucket: BUCKET,
            key: key.clone(),
            precondition: condition(number),
            marker_id: random(3),
            ..DeleteObject::default()
        };
        let outcome = self.run(ShardCommand::DeleteObject(command));
        // Unlike a write, a DELETE succeeds where there is nothing, and its condition sees a delete marker.
        let current = self.model.current(&key).cloned();
        let fails = current.as_ref().is_some_and(|version| match number {
            1 => true,
            3 => version.etag != "e1",
            4 => version.etag == "e1",
            _ => false,
        });
        if fails {
            return assert_refused(outcome, Reason::PreconditionFailed);
        }
        let ShardOutcome::Deleted(deleted) = outcome else { panic!("{outcome:?}") };
        if current.is_none() && condition(number).is_some() {
            assert_eq!(deleted, Deleted::default());
        } else if self.model.versioning == Versioning::Off {
            assert_eq!(deleted, Deleted::default());
            self.model.remove(&key, b"null");
        } else {
            assert!(deleted.marker);
            let marker = ModelVersion { id: Bytes::new(), marker: true, etag: String::new(), chunks: vec![], size: 0 };
            self.model.write(&key, marker, &deleted.version);
        }
    }

    fn delete_version(&mut self, key: Bytes, which: Index) {
        let mut ids: Vec<Bytes> = vec![Bytes::from_static(b"null"), random(u128::MAX - 5), random(7 << 64)];
        ids.extend(self.model.keys.get(&key).into_iter().flatten().map(|version| version.id.clone()));
        let id = which.get(&ids).clone();
        let command =
            DeleteObject { bucket: BUCKET, key: key.clone(), version: Some(id.clone()), ..DeleteObject::default() };
        let ShardOutcome::Deleted(deleted) = self.run(ShardCommand::DeleteObject(command)) else { panic!() };
        let removed = self.model.remove(&key, &id);
        assert_eq!(deleted.marker, removed.is_some_and(|version| version.marker));
    }

    fn set_versioning(&mut self, enabled: bool) {
        self.settings_version += 1;
        let versioning = if enabled { Versioning::Enabled } else { Versioning::Suspended };
        let row = BucketRow {
            bucket: BUCKET,
            versioning: versioning as i32,
            settings_version: self.settings_version,
            ..BucketRow::default()
        };
        assert_eq!(self.run(ShardCommand::SetBucket(row)), done());
        self.model.versioning = versioning;
    }

    fn create_upload(&mut self, key: Bytes) {
        let id = random(0x1000 + self.model.uploads.len() as u128);
        let create = CreateUpload { bucket: BUCKET, key: key.clone(), upload: id.clone(), ..CreateUpload::default() };
        assert_eq!(self.run(ShardCommand::CreateUpload(create)), done());
        self.model.uploads.push(ModelUpload { id, key, parts: BTreeMap::new(), open: true });
    }

    fn pick(&self, which: Index) -> Option<usize> {
        (!self.model.uploads.is_empty()).then(|| which.index(self.model.uploads.len()))
    }

    fn put_part(&mut self, which: Index, number: u32, large: bool) {
        let Some(at) = self.pick(which) else { return };
        let size = if large { 5 * MIB } else { 3 };
        let (body, chunk) = self.body(size);
        let etag = format!("p{chunk}");
        let (upload, key) = (self.model.uploads[at].id.clone(), self.model.uploads[at].key.clone());
        let put =
            PutPart { bucket: BUCKET, key, upload, number, body: Some(body), etag: etag.clone(), ..PutPart::default() };
        let outcome = self.run(ShardCommand::PutPart(put));
        if !self.model.uploads[at].open {
            return assert_refused(outcome, Reason::NoSuchUpload);
        }
        assert!(matches!(outcome, ShardOutcome::Written(_)));
        if let Some(replaced) = self.model.uploads[at].parts.insert(number, (etag, chunk, size)) {
            self.model.dropped.insert(replaced.1);
        }
    }

    fn complete(&mut self, which: Index, chosen: &[bool], number: usize) {
        let Some(at) = self.pick(which) else { return };
        let upload = self.model.uploads[at].clone();
        let is_chosen = |number: &u32| chosen[*number as usize - 1];
        let parts: Vec<_> = upload.parts.iter().filter(|(number, _)| is_chosen(number)).collect();
        let named = |(number, part): &(&u32, &(String, u32, u64))| NamedPart {
            number: **number,
            etag: part.0.clone(),
            checksums: vec![],
        };
        let etag = format!("m{at}");
        let complete = CompleteUpload {
            bucket: BUCKET,
            key: upload.key.clone(),
            upload: upload.id.clone(),
            parts: parts.iter().map(named).collect(),
            precondition: condition(number),
            etag: etag.clone(),
            version_id: random(1),
            ..CompleteUpload::default()
        };
        let outcome = self.run(ShardCommand::CompleteUpload(complete));
        if !upload.open {
            // Answered as before while the version that it made is there.
            let versions = self.model.keys.get(&upload.key).into_iter().flatten();
            let exists = versions.into_iter().any(|version| version.etag == etag);
            return match outcome {
                ShardOutcome::Written(written) => assert!(exists && written.etag == etag),
                outcome => {
                    assert!(!exists);
                    assert_refused(outcome, Reason::NoSuchUpload);
                }
            };
        }
        if parts.is_empty() {
            return assert_refused(outcome, Reason::Invalid);
        }
        if let Some(reason) = self.model.refusal(&upload.key, number) {
            return assert_refused(outcome, reason);
        }
        if parts[..parts.len() - 1].iter().any(|(_, part)| part.2 < 5 * MIB) {
            return assert_refused(outcome, Reason::EntityTooSmall);
        }
        let ShardOutcome::Written(written) = outcome else { panic!("{outcome:?}") };
        let size = parts.iter().map(|(_, part)| part.2).sum();
        assert_eq!(written.size, size);
        let chunks: Vec<u32> = parts.iter().map(|(_, part)| part.1).collect();
        let unnamed = upload.parts.iter().filter(|(number, _)| !is_chosen(number)).map(|(_, part)| part.1);
        self.model.dropped.extend(unnamed);
        self.model.uploads[at].open = false;
        let version = ModelVersion { id: Bytes::new(), marker: false, etag, chunks, size };
        self.model.write(&upload.key, version, &written.version);
    }

    fn abort(&mut self, which: Index) {
        let Some(at) = self.pick(which) else { return };
        let (upload, key) = (self.model.uploads[at].id.clone(), self.model.uploads[at].key.clone());
        let outcome = self.run(ShardCommand::AbortUpload(AbortUpload { bucket: BUCKET, key, upload }));
        if !self.model.uploads[at].open {
            return assert_refused(outcome, Reason::NoSuchUpload);
        }
        assert_eq!(outcome, done());
        self.model.uploads[at].open = false;
        let parts: Vec<u32> = self.model.uploads[at].parts.values().map(|part| part.1).collect();
        self.model.dropped.extend(parts);
    }

    /// Every version is found, nothing else is; every chunk is named once, by what should name it.
    fn check(&self) {
        for key in KEYS.map(Bytes::from_static) {
            let get = |version: Option<Bytes>| {
                self.shard.read(ShardRead::GetObject(GetObject { bucket: BUCKET, key: key.clone(), version }))
            };
            let versions = self.model.keys.get(&key).cloned().unwrap_or_default();
            for (number, version) in versions.iter().enumerate() {
                check_found(get(Some(version.id.clone())), version, number == 0);
            }
            match versions.first() {
                Some(newest) => check_found(get(None), newest, true),
                None => assert_missing(get(None), Reason::NoSuchKey),
            }
            if !versions.iter().any(|version| version.id == "null") {
                assert_missing(get(Some(Bytes::from_static(b"null"))), Reason::NoSuchVersion);
            }
        }
        self.check_row_counts();
        let (mut live, mut garbage) = (BTreeSet::new(), BTreeSet::new());
        for (key, value) in &self.shard.rows {
            for named in references(key, value).unwrap() {
                assert_eq!(named.owner.0, BUCKET);
                let set = if named.garbage { &mut garbage } else { &mut live };
                assert!(set.insert(named.chunk.id.counter), "a chunk is named twice");
            }
        }
        assert_eq!(live, self.model.live_chunks());
        assert_eq!(garbage, self.model.dropped);
    }
}

/// The rows that are there, by kind: nothing is left behind.
impl Run {
    fn check_row_counts(&self) {
        let (mut versions, mut pointers, mut open, mut completed) = (0, 0, 0, 0);
        for (raw, value) in &self.shard.rows {
            match Key::decode(raw).unwrap() {
                Key::Version { .. } if ObjectVersion::decode(value.clone()).unwrap().null_order != 0 => pointers += 1,
                Key::Version { .. } => versions += 1,
                Key::Upload { .. } => open += 1,
                Key::Completed { .. } => completed += 1,
                _ => {}
            }
        }
        let expected = self.model.keys.values().flatten();
        assert_eq!(versions, expected.clone().count());
        assert_eq!(completed, expected.filter(|version| version.etag.starts_with('m')).count());
        assert_eq!(open, self.model.uploads.iter().filter(|upload| upload.open).count());
        let nulls = self.model.keys.values().filter(|versions| versions.iter().any(|version| version.id == "null"));
        assert!(pointers <= nulls.count());
    }
}

fn check_found(found: ShardFound, version: &ModelVersion, latest: bool) {
    match found {
        ShardFound::Object(object) => {
            assert!(!version.marker);
            assert_eq!(object.version, version.id);
            assert_eq!(object.attributes.unwrap().etag, version.etag);
            assert_eq!(object.body.unwrap().size, version.size);
            assert_eq!(object.latest, latest);
        }
        ShardFound::Refused(refused) => {
            assert_eq!(refused.reason(), Reason::DeleteMarker);
            assert!(version.marker);
        }
        other => panic!("{other:?}"),
    }
}

fn assert_missing(found: ShardFound, reason: Reason) {
    match found {
        ShardFound::Refused(refused) => assert_eq!(refused.reason(), reason),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_shard_does_what_the_model_does(ops in proptest::collection::vec(op(), 1..60)) {
        let mut run = Run::new();
        for op in ops {
            run.step(op);
        }
        run.check();
    }

    #[test]
    fn batches_through_an_overlay_give_the_same_rows(
        ops in proptest::collection::vec(op(), 1..40), sizes in proptest::collection::vec(1usize..7, 40),
    ) {
        let mut run = Run::new();
        for op in ops {
            run.step(op);
        }
        let mut batched = Shard::new(Versioning::Off);
        let mut entries = run.entries.into_iter();
        for size in sizes {
            let batch: Vec<_> = entries.by_ref().take(size).collect();
            let mut overlay = Overlay::new(&batched.rows);
            for command in batch {
                batched.index += 1;
                let entry = ShardEntry { command: Some(command), ..ShardEntry::default() };
                let (changes, _) = apply(&overlay, GROUP, LogIndex(batched.index), entry).unwrap();
                overlay.absorb(changes);
            }
            let changes = overlay.into_changes();
            commit(&mut batched.rows, changes);
        }
        prop_assert_eq!(batched.rows, run.shard.rows);
    }
}

/// One result of a listing: a key with (for versions) the number of its version, or a common prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Prefix(Bytes),
    Entry(Bytes, Bytes),
}

#[derive(Clone, Debug)]
struct Listing {
    prefix: Bytes,
    delimiter: Bytes,
    after: Bytes,
    limit: u32,
}

fn listing() -> impl Strategy<Value = Listing> {
    let prefixes = prop_oneof![
        3 => Just(Bytes::new()),
        1 => Just(Bytes::from_static(b"a")),
        1 => Just(Bytes::from_static(b"a/")),
        1 => Just(Bytes::from_static(b"b/")),
        1 => Just(Bytes::from_static(b"\xff")),
        1 => Just(Bytes::from_static(b"nothing")),
    ];
    let delimiters = prop_oneof![
        2 => Just(Bytes::new()),
        4 => Just(Bytes::from_static(b"/")),
        1 => Just(Bytes::from_static(b"//")),
        1 => Just(Bytes::from_static(b"\0")),
        1 => Just(Bytes::from_static(b"\xff")),
    ];
    let after = prop_oneof![
        3 => Just(Bytes::new()),
        3 => (0..KEYS.len()).prop_map(key),
        1 => Just(Bytes::from_static(b"a/aa")),
        1 => Just(Bytes::from_static(b"b")),
    ];
    (prefixes, delimiters, after, 1u32..8).prop_map(|(prefix, delimiter, after, limit)| Listing {
        prefix,
        delimiter,
        after,
        limit,
    })
}

impl Model {
    /// The naive listing: group all keys, then leave out what is not after the marker.
    fn list(&self, listing: &Listing, all_versions: bool) -> Vec<Item> {
        let mut items = Vec::new();
        for (key, versions) in self.keys.iter().filter(|(key, _)| key.starts_with(&listing.prefix)) {
            let shown: Vec<_> = if all_versions {
                versions.iter().collect()
            } else {
                versions.first().into_iter().filter(|version| !version.marker).collect()
            };
            for version in shown {
                let item = self.item(listing, key, version);
                let position = match &item {
                    Item::Prefix(prefix) => prefix,
                    Item::Entry(key, _) => key,
                };
                if (listing.after.is_empty() || *position > listing.after) && items.last() != Some(&item) {
                    items.push(item);
                }
            }
        }
        items
    }

    fn item(&self, listing: &Listing, key: &Bytes, version: &ModelVersion) -> Item {
        let rest = &key[listing.prefix.len()..];
        let len = listing.delimiter.len();
        let cut = (len > 0).then(|| rest.windows(len).position(|window| window == listing.delimiter)).flatten();
        match cut {
            Some(at) => Item::Prefix(key.slice(..listing.prefix.len() + at + len)),
            None => Item::Entry(key.clone(), version.id.clone()),
        }
    }
}

/// Asks a set of shards as a client does: each page from the shard that owns the place where it begins.
struct Asker<'a> {
    view: &'a dyn View,
    groups: Vec<(GroupId, GroupState)>,
}

impl Asker<'_> {
    fn ask(&self, place: &[u8], read: ShardRead) -> ObjectPage {
        let owner = self.groups.iter().find(|(_, state)| state.owns(BucketId(BUCKET), place)).unwrap();
        let asked = ShardQuery { range_epoch: 0, read: Some(read) };
        match query(self.view, owner.0, asked).unwrap().found.unwrap() {
            ShardFound::Objects(page) | ShardFound::Versions(page) => page,
            other => panic!("{other:?}"),
        }
    }

    /// All pages of a listing of objects, one after the other, each filled up over `resume`.
    fn list_objects(&self, listing: &Listing) -> Vec<Item> {
        let mut items = Vec::new();
        let mut after = listing.after.clone();
        let mut from = Bytes::new();
        let mut room = listing.limit;
        loop {
            let list = ListObjects {
                bucket: BUCKET,
                prefix: listing.prefix.clone(),
                delimiter: listing.delimiter.clone(),
                after: after.clone(),
                limit: room,
                from: from.clone(),
            };
            let place = from.clone().max(after.clone()).max(listing.prefix.clone());
            let page = self.ask(&place, ShardRead::ListObjects(list));
            let count = (page.objects.len() + page.prefixes.len()) as u32;
            assert!(count <= room);
            items.extend(merged(&page));
            if count > 0 {
                after = page.next_after.clone();
            }
            if !page.truncated {
                return items;
            }
            if page.resume.is_empty() {
                assert_eq!(count, room, "a page that is cut at its limit is full");
            }
            from = page.resume;
            room -= count;
            if room == 0 {
                room = listing.limit;
            }
        }
    }

    fn list_versions(&self, listing: &Listing, version_marker: Option<Bytes>) -> (Vec<Item>, Vec<bool>) {
        let (mut items, mut latest) = (Vec::new(), Vec::new());
        let mut marker = (listing.after.clone(), version_marker);
        let mut from = Bytes::new();
        loop {
            let list = ListVersions {
                bucket: BUCKET,
                prefix: listing.prefix.clone(),
                delimiter: listing.delimiter.clone(),
                key_marker: marker.0.clone(),
                version_marker: marker.1.clone(),
                limit: listing.limit,
                from: from.clone(),
            };
            let place = from.clone().max(marker.0.clone()).max(listing.prefix.clone());
            let page = self.ask(&place, ShardRead::ListVersions(list));
            items.extend(merged(&page));
            latest.extend(page.objects.iter().map(|object| object.latest));
            if !page.objects.is_empty() || !page.prefixes.is_empty() {
                marker = (page.next_after.clone(), page.next_version.clone());
            }
            if !page.truncated {
                return (items, latest);
            }
            from = page.resume;
        }
    }
}

/// The results of a page in the order of their positions.
fn merged(page: &ObjectPage) -> Vec<Item> {
    let mut items: Vec<(Bytes, usize, Item)> = Vec::new();
    for (number, object) in page.objects.iter().enumerate() {
        items.push((object.key.clone(), number, Item::Entry(object.key.clone(), object.version.clone())));
    }
    items.extend(page.prefixes.iter().map(|prefix| (prefix.clone(), 0, Item::Prefix(prefix.clone()))));
    items.sort();
    items.into_iter().map(|(_, _, item)| item).collect()
}

/// The same rows as one shard, or divided between two at `at`.
fn askers(rows: &mut BTreeMap<Bytes, Bytes>, at: &Bytes) -> Vec<(GroupId, GroupState)> {
    let bucket = rows[&Key::Bucket { group: GROUP, bucket: BucketId(BUCKET) }.encode()].clone();
    let point = range_point(BucketId(BUCKET), at);
    let whole = GroupState { feature_level: 1, ..GroupState::default() };
    let states = [GroupState { range_end: point.clone(), ..whole.clone() }, GroupState { range_start: point, ..whole }];
    let mut groups = Vec::new();
    for (number, state) in states.into_iter().enumerate() {
        let group = GroupId(100 + number as u64);
        rows.insert(Key::GroupState { group }.encode(), state.encode_to_vec().into());
        rows.insert(Key::Bucket { group, bucket: BucketId(BUCKET) }.encode(), bucket.clone());
        groups.push((group, state));
    }
    groups
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn listings_are_those_of_the_model(
        ops in proptest::collection::vec(op(), 1..60),
        listings in proptest::collection::vec(listing(), 12),
        split in 0..KEYS.len(),
        marker: Index,
    ) {
        let mut run = Run::new();
        for op in ops {
            run.step(op);
        }
        let mut rows = run.shard.rows.clone();
        let divided = askers(&mut rows, &key(split));
        let whole = vec![(GROUP, group::load(&rows, GROUP).unwrap())];
        for groups in [whole, divided] {
            let asker = Asker { view: &rows, groups };
            for listing in &listings {
                prop_assert_eq!(asker.list_objects(listing), run.model.list(listing, false), "{:?}", listing);
                let (items, latest) = asker.list_versions(listing, None);
                prop_assert_eq!(&items, &run.model.list(listing, true), "{:?}", listing);
                let entries = items.iter().filter_map(|item| match item {
                    Item::Entry(key, id) => Some(run.model.keys[key][0].id == id),
                    Item::Prefix(_) => None,
                });
                prop_assert_eq!(latest, entries.collect::<Vec<bool>>());
            }
            // From any version on come exactly the ones behind it.
            let all = Listing { prefix: Bytes::new(), delimiter: Bytes::new(), after: Bytes::new(), limit: 3 };
            let items = run.model.list(&all, true);
            if !items.is_empty() {
                let at = marker.index(items.len());
                let Item::Entry(key, id) = &items[at] else { unreachable!() };
                let listing = Listing { after: key.clone(), ..all };
                let (found, _) = asker.list_versions(&listing, Some(id.clone()));
                prop_assert_eq!(&found[..], &items[at + 1..]);
            }
        }
    }
}
