//! A map that was kept aside, and goes on in another life of the cluster.

use bytes::Bytes;
use prost::Message;

use super::apply::MapState;
use crate::keys::Key;
use crate::view::{Change, ViewError};

/// Each life of the cluster has a range of ids of its own: what a former one allotted is not allotted again.
const NODE_IDS: u32 = 100;
const BUCKET_ID_BITS: u32 = 32;
/// So does the map's version, which never falls.
const VERSION_BITS: u32 = 32;

/// A row of a kept map as it is to be in the cluster's life `generation`. The same for every node that does it. Rows that
/// are not the map's own state stay as they are.
pub fn revive(row: Change, generation: u32) -> Result<Change, ViewError> {
    let Change::Put { key, value } = row else { return Ok(row) };
    if key != Key::MapState.encode() {
        return Ok(Change::Put { key, value });
    }
    let mut state = MapState::decode(value).map_err(|error| ViewError::bad_row(&key, error))?;
    state.cluster_generation = state.cluster_generation.max(generation);
    let node_ids = generation.saturating_mul(NODE_IDS);
    state.node_id_last = state.node_id_last.saturating_add(NODE_IDS).max(node_ids);
    state.bucket_id_last = state.bucket_id_last.saturating_add(1).max(u64::from(generation) << BUCKET_ID_BITS);
    state.version = state.version.saturating_add(1).max(u64::from(generation) << VERSION_BITS);
    Ok(Change::Put { key, value: Bytes::from(state.encode_to_vec()) })
}
