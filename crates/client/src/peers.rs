//! What nodes ask each other besides clients' requests.

use base::env::Channel;
use base::ids::{ChunkId, GroupId, NodeId};
use bytes::Bytes;
use std::time::Duration;

use crate::call::{Client, unexpected};
use crate::error::Error;
use crate::wire::{Ask, Failure, Named, Told};

/// Chunks asked about at once.
pub const NAMED_IDS_MAX: usize = 64 << 10;

impl Client {
    /// Asks a node once. `Busy` also stands for no answer within `patience`. Chunks that are copied again have a
    /// connection of their own.
    pub async fn ask_peer(
        &self,
        to: NodeId,
        ask: Ask,
        patience: Duration,
    ) -> Result<(Told, Vec<Bytes>), (Failure, String)> {
        let channel = if matches!(ask, Ask::GetChunk(_)) { Channel::Repair } else { Channel::Bulk };
        self.ask_over(channel, to, ask, Vec::new(), patience).await
    }

    /// Those of `ids` (at most [`NAMED_IDS_MAX`]) that a row of `group` names, by its leader and as of now.
    pub async fn named_chunks(&self, group: GroupId, ids: &[ChunkId]) -> Result<Vec<ChunkId>, Error> {
        assert!(ids.len() <= NAMED_IDS_MAX, "the caller cuts its list");
        let raw: Vec<u8> = ids.iter().flat_map(|id| id.to_bytes()).collect();
        match self.ask_leader(group, Ask::Named(Named { group: group.0, ids: raw.into() })).await? {
            Told::Named(named) => {
                let id = |raw: &[u8]| Some(ChunkId::from_bytes(raw.try_into().ok()?));
                Ok(named.ids.chunks(ChunkId::LEN).filter_map(id).collect())
            }
            other => Err(unexpected(&other)),
        }
    }
}
