//! Taking a backup from a cluster that serves.

use base::ids::{GROUP_ZERO, GroupId, NodeId};
use bytes::Bytes;
use client::wire::SnapshotRows;
use client::{Client, MapView};
use meta::map::command::ClusterMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

use super::{End, GroupHead, Head, Kind, Rows, frame, header};
use crate::group::install::{Source, page};
use crate::service::Service;

/// How often the groups are looked at anew because buckets changed between the first and the last of them.
const ATTEMPTS: usize = 8;
/// From this feature level on, every node knows [`client::wire::SnapshotPage::newest`].
const NEWEST_LEVEL_MIN: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// Sends the bytes of a backup, in order. One that cannot be completed ends with the reason, which [`super::check`]
/// tells; when nobody receives any more, it stops.
pub(crate) async fn take(service: &Service, client: &Client, out: mpsc::Sender<Bytes>) {
    let mut taking = Taking { out, next: 0 };
    if let Err(why) = taking.all(service, client).await {
        tracing::warn!("a backup of the metadata was not completed: {why}");
        let _ = taking.send(Kind::Failed(why)).await;
    }
}

struct Taking {
    out: mpsc::Sender<Bytes>,
    next: u64,
}

/// A group whose rows stand still from its first page on.
struct Opened {
    group: GroupId,
    source: Source,
    first: SnapshotRows,
}

impl Taking {
    async fn send(&mut self, kind: Kind) -> Result<(), String> {
        let bytes = frame(self.next, kind);
        self.next += 1;
        self.out.send(bytes).await.map_err(|_| "whoever asked for it has gone".to_owned())
    }

    async fn all(&mut self, service: &Service, client: &Client) -> Result<(), String> {
        self.out.send(header()).await.map_err(|_| "whoever asked for it has gone".to_owned())?;
        let (map, groups) = open(service, client).await?;
        let head = Head {
            cluster: map.map.cluster.clone(),
            taken_ms: client.wall_ms(),
            groups: groups.iter().map(|opened| opened.group.0).collect(),
        };
        self.send(Kind::Head(head)).await?;
        let mut rows = 0;
        for Opened { group, source, first } in groups {
            self.send(Kind::Group(GroupHead { group: group.0, state: first.state.clone() })).await?;
            let mut now = first;
            loop {
                let (token, done) = (now.token, now.done);
                let after = now.rows.last().map(|row| row.key.clone());
                rows += now.rows.len() as u64;
                self.send(Kind::Rows(Rows { rows: now.rows })).await?;
                if done {
                    break;
                }
                let after = after.ok_or("a page without rows that is not the last")?;
                now = page(&source, token, after, false).await.map_err(|why| format!("group {group}: {why}"))?;
            }
        }
        self.send(Kind::End(End { rows })).await
    }
}

/// The newest state of every group, and buckets that were the same before the first and after the last was looked at: the map
/// and the shards then agree about them.
async fn open(service: &Service, client: &Client) -> Result<(Arc<MapView>, Vec<Opened>), String> {
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            service.env.sleep(PAUSE).await;
        }
        let before = client.refresh_map().await.map_err(|error| error.to_string())?;
        if before.map.feature_level < NEWEST_LEVEL_MIN {
            return Err(
                "a node runs an older henge, which may answer with an older state: upgrade all nodes first".into()
            );
        }
        let shards = before.map.shards.iter().map(|row| GroupId(row.group));
        let mut opened = Vec::new();
        for group in std::iter::once(GROUP_ZERO).chain(shards) {
            opened.push(open_group(service, &before.map, group).await?);
        }
        let after = client.refresh_map().await.map_err(|error| error.to_string())?;
        let agreed =
            |map: &ClusterMap| (map.buckets.clone(), map.configurations.clone(), map.shards.clone(), map.pools.clone());
        if agreed(&before.map) == agreed(&after.map) {
            return Ok((before, opened));
        }
    }
    Err("buckets were made, changed or deleted all the while: try again".into())
}

/// From the leader, whoever that is.
async fn open_group(service: &Service, map: &ClusterMap, group: GroupId) -> Result<Opened, String> {
    let leader = service.replicas.get(group).and_then(|handle| handle.leader());
    let others = map.nodes.iter().filter(|row| row.state().serves()).map(|row| NodeId(row.id));
    let mut whys = Vec::new();
    for from in leader.into_iter().chain(others.filter(|node| Some(*node) != leader)) {
        let source = Source { env: service.env.clone(), group, from, cancelled: Arc::default() };
        match page(&source, 0, Bytes::new(), true).await {
            Ok(first) => return Ok(Opened { group, source, first }),
            Err(why) => whys.push(format!("node {from}: {why}")),
        }
    }
    Err(format!("nobody has the newest state of group {group}: {}", whys.join("; ")))
}
