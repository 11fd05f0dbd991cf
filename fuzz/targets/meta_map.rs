//! Log entries of the cluster map: apply never panics, and following the changes is reading all rows.
#![no_main]

use base::ids::LogIndex;
use bytes::Bytes;
use meta::map::command::{ClusterMap, MapEntry};
use meta::map::{absorb, apply, load};
use prost::Message;
use std::collections::BTreeMap;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut rows: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let mut followed = ClusterMap::default();
    let (mut index, mut rest) = (0, data);
    while let Some((len, behind)) = rest.split_first_chunk::<2>() {
        let (item, behind) = behind.split_at(behind.len().min(usize::from(u16::from_le_bytes(*len))));
        rest = behind;
        let Ok(entry) = MapEntry::decode(Bytes::copy_from_slice(item)) else { continue };
        index += 1;
        let Ok((changes, _)) = apply(&rows, LogIndex(index), entry) else { continue };
        for change in &changes.0 {
            absorb(&mut followed, change).expect("apply writes rows that can be followed");
        }
        meta::view::commit(&mut rows, changes);
    }
    assert_eq!(followed, load(&rows).expect("apply writes rows that can be read"));
});
