//! A shard in memory, driven as a Raft driver would: one entry after the other, each committed.

use std::collections::BTreeMap;

use base::ids::{ChunkId, GroupId, LogIndex};
use bytes::Bytes;
use meta::chunks::{self, ChunkRef};
use meta::object::command::*;
use meta::object::{apply, query};
use meta::view::{Changes, View, commit};

pub const GROUP: GroupId = GroupId(1);
pub const BUCKET: u64 = 7;

pub struct Shard {
    pub rows: BTreeMap<Bytes, Bytes>,
    pub index: u64,
    chunk: u32,
}

impl Shard {
    /// A shard of everything, with one bucket.
    pub fn new(versioning: Versioning) -> Shard {
        Shard::at_level(versioning, meta::group::FEATURE_LEVEL)
    }

    pub fn at_level(versioning: Versioning, feature_level: u32) -> Shard {
        let mut shard = Shard { rows: BTreeMap::new(), index: 0, chunk: 0 };
        let init = InitShard { range_epoch: 1, feature_level, ..InitShard::default() };
        assert_eq!(shard.run(ShardCommand::InitShard(init)), done());
        shard.set_versioning(versioning, 1);
        shard
    }

    pub fn set_versioning(&mut self, versioning: Versioning, settings_version: u64) {
        let row = BucketRow { bucket: BUCKET, versioning: versioning as i32, settings_version, ..BucketRow::default() };
        assert_eq!(self.run(ShardCommand::SetBucket(row)), done());
    }

    pub fn entry(&mut self, entry: ShardEntry) -> (Changes, ShardOutcome) {
        self.index += 1;
        let (changes, reply) = apply(&self.rows, GROUP, LogIndex(self.index), entry).unwrap();
        commit(&mut self.rows, changes.clone());
        (changes, reply.outcome.unwrap())
    }

    pub fn run(&mut self, command: ShardCommand) -> ShardOutcome {
        self.entry(ShardEntry { command: Some(command), ..ShardEntry::default() }).1
    }

    pub fn read(&self, read: ShardRead) -> ShardFound {
        self.read_counted(&self.rows, read)
    }

    pub fn read_counted(&self, view: &dyn View, read: ShardRead) -> ShardFound {
        let asked = ShardQuery { range_epoch: 1, read: Some(read) };
        query(view, GROUP, asked).unwrap().found.unwrap()
    }

    /// A body of one fresh chunk.
    pub fn body(&mut self, size: u64) -> Body {
        self.chunk += 1;
        let id = ChunkId { counter: self.chunk, ..ChunkId::from_u128(0) };
        let chunk = ChunkRef { id, len: size as u32, crc64: 0 };
        Body { size, chunks: chunks::pack(&[chunk]), ..Body::default() }
    }

    pub fn put(&mut self, key: &str, etag: &str) -> ShardOutcome {
        self.put_if(key, etag, None)
    }

    pub fn put_if(&mut self, key: &str, etag: &str, precondition: Option<Precondition>) -> ShardOutcome {
        let body = self.body(10);
        let put = PutObject { precondition, ..put_of(key, etag, body) };
        self.run(ShardCommand::PutObject(put))
    }

    pub fn written(&mut self, key: &str, etag: &str) -> Bytes {
        match self.put(key, etag) {
            ShardOutcome::Written(written) => written.version,
            other => panic!("{other:?}"),
        }
    }

    pub fn delete(&mut self, key: &str, version: Option<&Bytes>) -> ShardOutcome {
        self.delete_if(key, version, None)
    }

    pub fn delete_if(
        &mut self,
        key: &str,
        version: Option<&Bytes>,
        precondition: Option<Precondition>,
    ) -> ShardOutcome {
        let delete = DeleteObject {
            bucket: BUCKET,
            key: text(key),
            version: version.cloned(),
            precondition,
            modified_ms: 5000,
            marker_id: random(99),
            bypass_governance: false,
        };
        self.run(ShardCommand::DeleteObject(delete))
    }

    /// The ETag that a GET finds, or why it finds none.
    pub fn get(&self, key: &str, version: Option<&Bytes>) -> Result<String, Reason> {
        let get = GetObject { bucket: BUCKET, key: text(key), version: version.cloned() };
        match self.read(ShardRead::GetObject(get)) {
            ShardFound::Object(object) => Ok(object.attributes.unwrap().etag),
            ShardFound::Refused(refused) => Err(refused.reason()),
            other => panic!("{other:?}"),
        }
    }

    pub fn list(&self, list: ListObjects) -> ObjectPage {
        match self.read(ShardRead::ListObjects(ListObjects { bucket: BUCKET, ..list })) {
            ShardFound::Objects(page) => page,
            other => panic!("{other:?}"),
        }
    }

    pub fn list_versions(&self, list: ListVersions) -> ObjectPage {
        match self.read(ShardRead::ListVersions(ListVersions { bucket: BUCKET, ..list })) {
            ShardFound::Versions(page) => page,
            other => panic!("{other:?}"),
        }
    }

    pub fn garbage(&self) -> Vec<Garbage> {
        match self.read(ShardRead::ListGarbage(ListGarbage { after: 0, limit: 1000 })) {
            ShardFound::Garbage(page) => page.rows,
            other => panic!("{other:?}"),
        }
    }

    /// Chunks in the garbage queue.
    pub fn garbage_chunks(&self) -> usize {
        self.garbage().iter().map(|row| chunks::unpack(&row.chunks).unwrap().len()).sum()
    }
}

pub fn put_of(key: &str, etag: &str, body: Body) -> PutObject {
    PutObject {
        bucket: BUCKET,
        key: text(key),
        body: Some(body),
        attributes: Some(Attributes { etag: etag.to_owned(), ..Attributes::default() }),
        precondition: None,
        modified_ms: 1000,
        version_id: random(1),
    }
}

pub fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn random(number: u128) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub fn done() -> ShardOutcome {
    ShardOutcome::Done(Done { more: false })
}

#[track_caller]
pub fn assert_refused(outcome: ShardOutcome, reason: Reason) {
    match outcome {
        ShardOutcome::Refused(refused) => assert_eq!(refused.reason(), reason, "{}", refused.detail),
        other => panic!("{other:?}"),
    }
}
