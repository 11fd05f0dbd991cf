//! From rows to the map that clients and planners hold in memory.

use bytes::Bytes;
use prost::Message;

use super::apply::MapState;
use super::command::ClusterMap;
use crate::keys::{self, Key};
use crate::view::{Change, View, ViewError};

/// Rows of one read while loading.
const LOAD_BATCH: usize = 1024;

/// The whole map, its rows sorted: nodes, disks, pools and buckets by id, placement groups by pool and prefix, shards
/// by group, keys by access key, tokens by id, configurations by bucket and kind. For the start of a node; then
/// [`absorb`] what each command changes.
pub fn load(view: &dyn View) -> Result<ClusterMap, ViewError> {
    let mut map = ClusterMap::default();
    let (mut from, to) = keys::map_rows();
    loop {
        let rows = view.scan(&from, &to, LOAD_BATCH)?;
        let Some((last, _)) = rows.last() else {
            return Ok(map);
        };
        from = [last.as_ref(), &[0]].concat().into();
        for (key, value) in rows {
            absorb(&mut map, &Change::Put { key, value })?;
        }
    }
}

/// Follows one change of the rows. Changes of other rows (slots, the group's own) leave the map alone.
pub fn absorb(map: &mut ClusterMap, change: &Change) -> Result<(), ViewError> {
    let (raw, value) = match change {
        Change::Put { key, value } => (key, Some(value)),
        Change::Delete { key } => (key, None),
    };
    let key = Key::decode(raw).map_err(|error| ViewError::bad_row(raw, error))?;
    match key {
        Key::MapState => decode::<MapState>(raw, value)?.unwrap_or_default().fill(map),
        Key::Node { id } => replace(&mut map.nodes, decode(raw, value)?, |row| row.id.cmp(&id.0)),
        Key::Disk { id } => replace(&mut map.disks, decode(raw, value)?, |row| row.id[..].cmp(&id.to_be_bytes())),
        Key::Pool { id } => replace(&mut map.pools, decode(raw, value)?, |row| row.id.cmp(&u32::from(id))),
        Key::Pg { pool, prefix } => {
            replace(&mut map.pgs, decode(raw, value)?, |row| (row.pool, row.prefix).cmp(&(u32::from(pool), prefix)));
        }
        Key::Shard { group } => replace(&mut map.shards, decode(raw, value)?, |row| row.group.cmp(&group.0)),
        Key::BucketEntry { id } => replace(&mut map.buckets, decode(raw, value)?, |row| row.id.cmp(&id.0)),
        Key::AccessKey { access_key } => {
            replace(&mut map.keys, decode(raw, value)?, |row| row.access_key.as_bytes().cmp(&access_key));
        }
        Key::Authority => map.authority = decode(raw, value)?,
        Key::BucketConfiguration { bucket, kind } => {
            let at = (bucket.0, i32::from(kind));
            replace(&mut map.configurations, decode(raw, value)?, |row| (row.bucket, row.kind).cmp(&at));
        }
        Key::Token { id } => replace(&mut map.tokens, decode(raw, value)?, |row| row.id.as_bytes().cmp(&id)),
        _ => {}
    }
    Ok(())
}

fn decode<M: Message + Default>(key: &Bytes, value: Option<&Bytes>) -> Result<Option<M>, ViewError> {
    crate::group::decode_row(key, value.cloned())
}

/// Puts, replaces or removes the row at its place in a sorted list.
fn replace<M>(rows: &mut Vec<M>, row: Option<M>, order: impl FnMut(&M) -> std::cmp::Ordering) {
    match (rows.binary_search_by(order), row) {
        (Ok(at), Some(row)) => rows[at] = row,
        (Ok(at), None) => drop(rows.remove(at)),
        (Err(at), Some(row)) => rows.insert(at, row),
        (Err(_), None) => {}
    }
}
