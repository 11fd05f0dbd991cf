//! Keys and rows as they lie in a key-value store whose checksums did not catch the damage: an error, never a panic.
#![no_main]

use base::ids::{GROUP_ZERO, GroupId};
use bytes::Bytes;
use meta::keys::Key;
use meta::object::command::ShardQuery;
use meta::object::query;
use prost::Message;
use std::collections::BTreeMap;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(key) = Key::decode(data) {
        assert_eq!(key.encode(), data, "a key has one encoding");
    }
    let mut rows: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let mut rest = data;
    let take = |rest: &mut &[u8]| {
        let (len, behind) = rest.split_first()?;
        let (item, behind) = behind.split_at(behind.len().min(usize::from(*len)));
        *rest = behind;
        Some(Bytes::copy_from_slice(item))
    };
    let asked = take(&mut rest).unwrap_or_default();
    while let (Some(key), Some(value)) = (take(&mut rest), take(&mut rest)) {
        rows.insert(key, value);
    }
    let _ = meta::map::load(&rows);
    let _ = meta::group::load(&rows, GROUP_ZERO);
    if let Ok(asked) = ShardQuery::decode(asked) {
        let _ = query(&rows, GroupId(1), asked);
    }
});
