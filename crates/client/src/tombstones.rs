//! Deletion of chunks: tombstones on the disks that hold them or may get them.

use base::ids::ChunkId;
use base::plant::{self, Plant};
use bytes::Bytes;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::call::Client;
use crate::error::Error;
use crate::map::{MapView, Member};
use crate::wire::{Ask, DeleteChunks, Failure};

/// Chunks named in one delete request.
const DELETES_MAX: usize = 1024;
const DELETE_ATTEMPT_MAX: Duration = Duration::from_secs(5);

impl Client {
    /// Writes tombstones on every member that is in service, while a group moves also on those before; fails unless all
    /// of them have them, and unless they are a majority of the members of each group.
    pub async fn bury_chunks(&self, ids: &[ChunkId]) -> Result<(), Error> {
        let map = self.map();
        for id in ids {
            let Some(placement) = map.placement(*id) else { continue };
            let usable = placement.members.iter().filter(|member| member.usable).count();
            if usable < placement.majority() {
                return Err(Error::Unavailable(format!("chunk {id} has no majority of its disks in service")));
            }
        }
        for result in self.delete_on_all(&map, ids).await {
            result.map_err(|(_, why)| Error::Unavailable(why))?;
        }
        Ok(())
    }

    /// Tombstones for chunks that nobody will name; best effort: the orphan sweep finds the rest.
    pub(crate) async fn delete_chunks(&self, ids: Vec<ChunkId>) {
        let _ = self.delete_on_all(&self.map(), &ids).await;
    }

    pub(crate) fn delete_in_background(&self, ids: Vec<ChunkId>) {
        let client = self.clone();
        self.shared.env.spawn("delete abandoned chunks", async move { client.delete_chunks(ids).await });
    }

    /// All disks in parallel, each one request at a time.
    async fn delete_on_all(&self, map: &MapView, ids: &[ChunkId]) -> Vec<Result<(), (Failure, String)>> {
        join_all(by_disk(map, ids).into_iter().map(|(member, ids)| self.delete_on(member, ids))).await
    }

    async fn delete_on(&self, member: Member, ids: Vec<u8>) -> Result<(), (Failure, String)> {
        if member.node != self.session().node && plant::is(Plant::UnsentDeletes) {
            return Ok(());
        }
        for ids in ids.chunks(DELETES_MAX * ChunkId::LEN) {
            let disk = Bytes::copy_from_slice(&member.disk.0.to_be_bytes());
            let ask = Ask::DeleteChunks(DeleteChunks { disk, ids: Bytes::copy_from_slice(ids) });
            self.ask_node(member.node, ask, Vec::new(), DELETE_ATTEMPT_MAX).await?;
        }
        Ok(())
    }
}

/// The ids that each disk in service gets, 16 bytes each.
fn by_disk(map: &MapView, ids: &[ChunkId]) -> BTreeMap<Member, Vec<u8>> {
    let mut by_disk: BTreeMap<Member, Vec<u8>> = BTreeMap::new();
    for id in ids {
        let Some(placement) = map.placement(*id) else { continue };
        let mut members = placement.members;
        members.extend(placement.members_before);
        // A disk may be among both.
        members.sort();
        members.dedup();
        for member in members.into_iter().filter(|member| member.usable) {
            by_disk.entry(member).or_default().extend_from_slice(&id.to_bytes());
        }
    }
    by_disk
}
