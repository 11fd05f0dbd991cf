//! A map that was kept aside, and goes on in another life of the cluster.

use bytes::Bytes;
use prost::Message;

use super::apply::MapState;
use crate::keys::Key;
use crate::view::{Change, ViewError};

/// Ids that may have been allotted since the map was kept are not allotted again.
const NODE_IDS: u32 = 1000;
const BUCKET_IDS: u64 = 1 << 20;
/// Changes that the map may have seen since: its version never falls.
const VERSIONS: u64 = 1 << 32;

/// A row of a kept map as it is to be in the cluster's life `generation`. The same for every node that does it. Rows that
/// are not the map's own state stay as they are.
pub fn revive(row: Change, generation: u32) -> Result<Change, ViewError> {
    let Change::Put { key, value } = row else { return Ok(row) };
    if key != Key::MapState.encode() {
        return Ok(Change::Put { key, value });
    }
    let mut state = MapState::decode(value).map_err(|error| ViewError::bad_row(&key, error))?;
    state.cluster_generation = state.cluster_generation.max(generation);
    state.node_id_last = state.node_id_last.saturating_add(NODE_IDS);
    state.bucket_id_last = state.bucket_id_last.saturating_add(BUCKET_IDS);
    state.version = state.version.saturating_add(VERSIONS);
    Ok(Change::Put { key, value: Bytes::from(state.encode_to_vec()) })
}
