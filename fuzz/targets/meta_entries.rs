//! Log entries of an object shard, one after the other, then a query: nothing that arrives makes apply or a query panic,
//! and applying twice to one state gives one result.
#![no_main]

use base::ids::{GroupId, LogIndex};
use bytes::Bytes;
use meta::object::command::{ShardEntry, ShardQuery};
use meta::object::{apply, query};
use prost::Message;
use std::collections::BTreeMap;

const GROUP: GroupId = GroupId(1);

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut rows: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let (mut index, mut rest) = (0, data);
    // Each item: two bytes of length, then an entry, or a query where the top bit is set.
    while let Some((len, behind)) = rest.split_first_chunk::<2>() {
        let len = u16::from_le_bytes(*len);
        let (item, behind) = behind.split_at(behind.len().min(usize::from(len & 0x7fff)));
        rest = behind;
        let item = Bytes::copy_from_slice(item);
        if len & 0x8000 != 0 {
            if let Ok(asked) = ShardQuery::decode(item) {
                let _ = query(&rows, GROUP, asked);
            }
        } else if let Ok(entry) = ShardEntry::decode(item) {
            index += 1;
            let Ok((changes, reply)) = apply(&rows, GROUP, LogIndex(index), entry.clone()) else { continue };
            let (again, same) = apply(&rows, GROUP, LogIndex(index), entry).expect("it was applied before");
            assert!(again == changes && same == reply, "apply depends on nothing but the rows");
            meta::view::commit(&mut rows, changes);
        }
    }
});
