//! How a node makes itself known: its row, its disks, the root user; on the very first start also the pool and the
//! shard. And how it comes back after it was voted out: under a new generation, or not at all.

use base::Env;
use base::buffer::BLOCK;
use base::env::Disk;
use base::ids::{DiskId, Generation, MapVersion, NodeId, PgId, PoolId, Session};
use base::plant::{self, Plant};
use bytes::Bytes;
use client::{Client, KeyRow};
use meta::map::command::{
    Authority, ClusterGeneration, ClusterMap, DiskRow, DiskState, InitCluster, MapCommand, MapOutcome, NodeRow,
    NodeState, PgRow, PgRows, PoolRow, ShardRow,
};
use meta::map::{AUTHORITY_LEVEL_MIN, CLOSED_LEVEL_MIN, ROOT_NAME};
use meta::object::command::InitShard;
use meta::object::transition::POOLS_LEVEL_MIN;
use protocol::placement::{self, Candidate, Held, Locality};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use crate::disks::{Disks, NodeDisk};
use crate::events::EventKind;
use crate::home::{self, GenerationClock, NodeIdentity};
use crate::service::{Service, Standing};
use crate::start::{Config, FIRST_SHARD, StartError};

/// First pause before an announcement is tried again; doubles up to the maximum.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long the own replica of the map may lag behind the announcement before the node announces itself anew.
const REACH_PATIENCE: Duration = Duration::from_secs(1);
/// The pool that a new cluster has.
const FIRST_POOL: PoolId = PoolId(1);
/// Its placement groups: 2^7. The number doubles as the cluster grows.
pub const FIRST_PG_BITS: u8 = 7;
/// Copies that the default pool asks for.
const DEFAULT_COPIES: u32 = 3;

/// What a node says of itself, and where it stands.
pub struct Announcer {
    pub env: Env,
    pub data: Arc<dyn Disk>,
    pub locality: String,
    pub advertise: String,
    pub region: String,
    pub root: (String, String),
    pub authority: Option<(String, String)>,
    /// Placement groups of the pool, should this node make the cluster: two to the power of this.
    pub first_pg_bits: u8,
    /// What this node follows.
    pub feature_level_max: u32,
    pub identity: NodeIdentity,
    pub clock: Arc<GenerationClock>,
    pub disks: Arc<Disks>,
    pub service: Arc<Service>,
    pub client: Client,
    /// This process has announced itself under it.
    announced: Option<Generation>,
}

impl Announcer {
    pub fn new(
        config: &Config,
        identity: NodeIdentity,
        clock: Arc<GenerationClock>,
        service: &Arc<Service>,
        client: &Client,
    ) -> Announcer {
        Announcer {
            env: config.env.clone(),
            data: config.data.clone(),
            locality: config.locality.clone(),
            advertise: config.advertise.clone(),
            region: config.region.clone(),
            root: config.root.clone(),
            authority: config.authority.clone(),
            first_pg_bits: FIRST_PG_BITS,
            feature_level_max: config.feature_level_max,
            identity,
            clock,
            disks: service.disks.clone(),
            service: service.clone(),
            client: client.clone(),
            announced: None,
        }
    }

    /// Other than [`FIRST_PG_BITS`].
    pub fn with_pg_bits(self, first_pg_bits: u8) -> Announcer {
        Announcer { first_pg_bits, ..self }
    }

    /// Announces the node, again and again until the cluster has taken it in; then watches over its standing.
    pub async fn keep(mut self, mut stop: watch::Receiver<bool>) {
        let mut map = self.service.map.clone();
        loop {
            let announced = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                announced = self.announce_patiently() => announced,
            };
            match announced {
                Err(StartError(why)) => {
                    self.service.standing.send_replace(Standing::Ended(why));
                    return;
                }
                Ok(version) => {
                    let reached = map.wait_for(|map| map.version >= version.0);
                    tokio::select! {
                        biased;
                        _ = stop.wait_for(|stop| *stop) => return,
                        reached = reached => if reached.is_err() { return },
                        // A node without a replica of the map does not see its own fate: it asks again.
                        () = self.env.sleep(REACH_PATIENCE) => continue,
                    }
                    self.service.standing.send_replace(Standing::Serving);
                    let (own, generation) = (self.identity.node, self.client.session().generation);
                    let what = format!("node {own} serves under generation {generation}");
                    self.service.events.record(EventKind::Up, own, what);
                }
            }
            let present = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                present = self.voted_out(&mut map) => present,
            };
            let Some(present) = present else { return };
            if let Some(why) = self.usurped(&present).await {
                self.service.standing.send_replace(Standing::Ended(why));
                return;
            }
            tracing::warn!(
                "the cluster has voted this node out while it was silent; it comes back under a new generation"
            );
            self.service.standing.send_replace(Standing::Fenced);
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                renewed = self.renew_patiently() => if let Err(why) = renewed {
                    self.service.standing.send_replace(Standing::Ended(why));
                    return;
                }
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.wait_until_fit() => {}
            }
        }
    }

    /// Waits for a map in which this node is out. Its own replica of group 0 says so; but whoever was lost may be no member of that
    /// group any more, and then only the client hears of it, from whoever answers it.
    async fn voted_out(&self, map: &mut watch::Receiver<Arc<ClusterMap>>) -> Option<Arc<ClusterMap>> {
        let told = async {
            let mut shown = self.client.map();
            while !self.is_fenced(&shown.map) {
                shown = self.client.map_newer_than(shown.version()).await;
            }
            Arc::new(shown.map.clone())
        };
        tokio::select! {
            biased;
            own = map.wait_for(|map| self.is_fenced(map)) => own.ok().map(|map| map.clone()),
            shown = told => Some(shown),
        }
    }

    /// The newer of the map of the own replica and the client's.
    fn newest_map(&self) -> Arc<ClusterMap> {
        let (own, shown) = (self.service.map.borrow().clone(), self.client.map());
        if shown.map.version > own.version { Arc::new(shown.map.clone()) } else { own }
    }

    /// Waits until no disk hangs or is too full for a log, and the links to all nodes that serve work, as far as is known:
    /// else this node, or the other, would be voted out again at once.
    async fn wait_until_fit(&self) {
        const CHECK: Duration = Duration::from_millis(100);
        let mut told = false;
        loop {
            let map = self.newest_map();
            let mut cut = self.service.control.observations().cut_off_from(&map, self.identity.node);
            // Nobody reports to one that is lost: whether the link works again, it must try.
            let is_lost = map.nodes.iter().any(|row| row.id == self.identity.node.0 && row.state() == NodeState::Lost);
            while let Some(other) = cut.first().copied()
                && is_lost
                && crate::controller::reaches(&self.service, other).await
            {
                cut.remove(0);
            }
            let hangs = crate::controller::disk_hangs(&self.env, &self.service);
            let own = self.identity.node;
            let until = match cut.first() {
                _ if hangs => "its disk answers again, and has room".to_owned(),
                Some(other) => format!("the link between it and node {other} works again"),
                None => return,
            };
            if !std::mem::replace(&mut told, true) {
                let what = format!("node {own} stays out of service until {until}");
                tracing::warn!("{what}");
                self.service.events.record(EventKind::Cut, own, what);
            }
            self.env.sleep(CHECK).await;
        }
    }

    /// Voted out, or somebody else has announced itself as this node.
    fn is_fenced(&self, map: &ClusterMap) -> bool {
        let generation = self.client.session().generation.0;
        let row = map.nodes.iter().find(|row| row.id == self.identity.node.0);
        row.is_some_and(|row| {
            let out = matches!(row.state(), NodeState::Down | NodeState::Lost | NodeState::Removed);
            out || row.generation_floor > generation
        })
    }

    /// Somebody else has announced itself as this node since: two processes run on one directory and a copy of it. The newer
    /// one stays, because what both would write under one name cannot be told apart. The own directory counts, not the session: a
    /// raise whose reply was lost is this process's own, and stands there.
    async fn usurped(&self, map: &ClusterMap) -> Option<String> {
        let own = self.clock.now().await.current.0;
        let row = map.nodes.iter().find(|row| row.id == self.identity.node.0 && row.generation > own)?;
        Some(format!(
            "another process runs as node {}, at {}, under generation {} (this one has {own}): one of the two data \
             directories is a copy of the other; run only one of them",
            row.id, row.address, row.generation
        ))
    }

    /// A generation that nobody has seen.
    async fn renew(&self) -> Result<(), String> {
        let generation =
            self.clock.raise().await.map_err(|error| format!("the generation cannot be raised: {error}"))?;
        self.client.renew_session(Session { node: self.identity.node, generation });
        Ok(())
    }

    /// A node is voted out when its disk is full, too; then the generation can be raised only when there is room again. Fails when meanwhile
    /// somebody else has announced itself as this node.
    async fn renew_patiently(&self) -> Result<(), String> {
        let (own, mut pause) = (self.identity.node, RETRY_MIN);
        let mut told = None;
        while let Err(why) = self.renew().await {
            let what = format!("node {own} stays out of service: {why}");
            if told.as_ref() != Some(&what) {
                tracing::warn!("{what}");
                self.service.events.record(EventKind::Other, own, what.clone());
                told = Some(what);
            }
            self.env.sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
            if let Some(why) = self.usurped(&self.newest_map()).await {
                return Err(why);
            }
        }
        Ok(())
    }

    /// Retries what may succeed later. Answers the version of the map that the local replica must have reached before
    /// this node takes data.
    async fn announce_patiently(&mut self) -> Result<MapVersion, StartError> {
        let mut pause = RETRY_MIN;
        loop {
            match self.announce().await {
                Ok(version) => return Ok(version),
                Err(Announce::Later(why)) => {
                    tracing::info!("the cluster map cannot be told of this node yet: {why}");
                    self.env.sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(Announce::Never(error)) => return Err(error),
            }
        }
    }

    async fn announce(&mut self) -> Result<MapVersion, Announce> {
        let client = &self.client.clone();
        let map = client.refresh_map().await?;
        let cluster = self.identity.cluster.0.to_be_bytes();
        if map.map.cluster.is_empty() {
            if self.identity.joined {
                return Err(Announce::Later("the cluster has not been set up".into()));
            }
            let init = InitCluster {
                cluster: Bytes::copy_from_slice(&cluster),
                region: self.region.clone(),
                feature_level: self.feature_level_max,
            };
            client.change_map_checked(MapCommand::InitCluster(init)).await?;
        } else if map.map.cluster.as_ref() != cluster {
            let why = "the metadata on this disk belongs to another cluster than the data directory";
            return Err(Announce::Never(StartError(why.into())));
        }
        if self.identity.recovered {
            // From here on, what knows only the cluster before the recovery is refused.
            let generation = client.map().map.cluster_generation + 1;
            client.change_map_checked(MapCommand::SetClusterGeneration(ClusterGeneration { generation })).await?;
            tracing::warn!("the cluster was recovered from this node and goes on as generation {generation}");
            let told = NodeIdentity { recovered: false, ..self.identity };
            home::store_identity(&*self.data, &told).await.map_err(|error| Announce::Later(error.to_string()))?;
            self.identity = told;
        }
        self.announce_node().await?;
        announce_disks(self.identity.node, &self.disks, client).await?;
        if !self.identity.joined {
            self.set_up().await?;
        }
        announce_root(&self.root, client).await?;
        self.announce_authority().await?;
        if !self.identity.set_up {
            let set_up = NodeIdentity { set_up: true, ..self.identity };
            home::store_identity(&*self.data, &set_up).await.map_err(|error| Announce::Later(error.to_string()))?;
        }
        Ok(client.map().version())
    }

    async fn announce_node(&mut self) -> Result<(), Announce> {
        let map = self.client.map();
        let before = map.map.nodes.iter().find(|row| row.id == self.identity.node.0).cloned();
        match &before {
            Some(row) if row.state() == NodeState::Removed => {
                let why = format!(
                    "node {} was removed from the cluster: start anew with an empty --data and a token",
                    row.id
                );
                return Err(Announce::Never(StartError(why)));
            }
            None if self.identity.joined => {
                let why = "the cluster does not know this node: start anew with an empty --data and a token";
                return Err(Announce::Never(StartError(why.into())));
            }
            _ => {}
        }
        // A generation that the cluster has seen was used: chunk ids of another life, or of a copy, would come again.
        let seen = before.as_ref().map_or(0, |row| row.generation_floor.max(row.generation));
        let used = before.as_ref().map_or(0, |row| row.generation);
        let is_used =
            |own: Generation| own.0 == used && self.announced != Some(own) && !plant::is(Plant::SameGeneration);
        while self.client.session().generation.0 < seen || is_used(self.client.session().generation) {
            self.renew().await.map_err(Announce::Later)?;
        }
        self.announced = Some(self.client.session().generation);
        let generation = self.client.session().generation.0;
        let node = NodeRow {
            id: self.identity.node.0,
            // Whatever an earlier life of this node still has under way is refused from here on.
            generation_floor: generation,
            generation,
            locality: self.locality.clone(),
            address: self.advertise.clone(),
            feature_level_max: self.feature_level_max,
            state: NodeState::Up as i32,
            ..before.unwrap_or_default()
        };
        let reply = self.client.change_map(MapCommand::SetNode(node)).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(()),
            // Voted out again meanwhile: the next try comes under a newer generation.
            MapOutcome::Stale => Err(Announce::Later(reply.detail)),
            outcome => Err(Announce::Never(StartError(format!("node {}: {outcome:?}: {}", reply.id, reply.detail)))),
        }
    }

    /// All nodes were given another certificate authority while they were stopped.
    async fn announce_authority(&self) -> Result<(), Announce> {
        let map = self.client.map();
        let Some((certificate_pem, key_pem)) = self.authority.clone() else { return Ok(()) };
        let own = Authority { certificate_pem, key_pem };
        let is_other = map.map.authority.as_ref().is_some_and(|known| *known != own);
        if is_other && map.map.feature_level >= AUTHORITY_LEVEL_MIN {
            tracing::warn!("the cluster has a new certificate authority");
            self.client.change_map_checked(MapCommand::SetAuthority(own)).await?;
        }
        Ok(())
    }

    /// The parts of a cluster that its founder makes.
    async fn set_up(&self) -> Result<(), Announce> {
        let client = &self.client;
        // The groups come after the pool: a first start that crashed in between is finished here.
        if client.map().map.pgs.is_empty() {
            set_up_pool(self.identity.node, &self.disks, client, self.first_pg_bits).await?;
        }
        if client.map().map.shards.is_empty() {
            set_up_shard(self.identity.node, client).await?;
        }
        if let Some((certificate_pem, key_pem)) =
            self.authority.clone().filter(|_| client.map().map.authority.is_none())
        {
            client.change_map_checked(MapCommand::SetAuthority(Authority { certificate_pem, key_pem })).await?;
        }
        Ok(())
    }
}

/// Why an announcement did not succeed.
enum Announce {
    Later(String),
    Never(StartError),
}

impl From<client::Error> for Announce {
    fn from(error: client::Error) -> Announce {
        match error {
            client::Error::Unavailable(why) | client::Error::OutcomeUnknown(why) => Announce::Later(why),
            error => Announce::Never(error.into()),
        }
    }
}

/// Raises the generation of a session that has lived for long: first in the own directory, then in the map (which
/// refuses a generation that it has seen), then in use. Of the sessions before the one that ends now, those are closed in which
/// nothing is under way any more, so that what they left can be judged while this process goes on.
pub async fn raise(client: &Client, clock: &GenerationClock) -> Result<Generation, String> {
    let generation = clock.raise().await.map_err(|error| error.to_string())?;
    let session = client.session();
    let map = client.map();
    let row = map.map.nodes.iter().find(|row| row.id == session.node.0).cloned().unwrap_or_default();
    let knows_closed = map.map.feature_level >= CLOSED_LEVEL_MIN;
    let closed_below = if knows_closed { client.oldest_session().generation.0 } else { row.closed_below };
    let row = NodeRow { id: session.node.0, generation: generation.0, closed_below, ..row };
    client.change_map_checked(MapCommand::SetNode(row)).await.map_err(|error| error.to_string())?;
    client.renew_session(Session { generation, ..session });
    Ok(generation)
}

async fn announce_disks(node: NodeId, disks: &Disks, client: &Client) -> Result<(), Announce> {
    let map = client.map();
    let id_bytes = |id: DiskId| Bytes::copy_from_slice(&id.0.to_be_bytes());
    for disk in disks.all.iter().filter(|disk| disk.id != DiskId(0)) {
        let before = map.map.disks.iter().find(|row| row.id == id_bytes(disk.id)).map(DiskRow::state);
        let state = match before {
            Some(DiskState::Removed) => {
                tracing::warn!("disk {} was removed from the cluster: it holds nothing that is needed", disk.label);
                continue;
            }
            _ if disk.engine.is_err() => DiskState::Failed,
            Some(DiskState::Draining) => DiskState::Draining,
            _ => DiskState::Up,
        };
        let row = DiskRow {
            id: id_bytes(disk.id),
            node: node.0,
            capacity_bytes: disk.usage().capacity_bytes / BLOCK as u64 * BLOCK as u64,
            state: state as i32,
            metadata: disk.id == disks.all[0].id,
            ..DiskRow::default()
        };
        client.change_map_checked(MapCommand::SetDisk(row)).await?;
    }
    let present = |row: &DiskRow| disks.all.iter().any(|disk| id_bytes(disk.id) == row.id);
    for row in map.map.disks.iter().filter(|row| row.node == node.0 && !present(row)) {
        tracing::error!("disk {} of this node is missing: what only it holds cannot be read", hex(&row.id));
        let failed = DiskRow { state: DiskState::Failed as i32, ..row.clone() };
        client.change_map_checked(MapCommand::SetDisk(failed)).await?;
    }
    Ok(())
}

async fn set_up_pool(node: NodeId, disks: &Disks, client: &Client, bits: u8) -> Result<(), Announce> {
    let candidate = |disk: &NodeDisk| Candidate {
        disk: disk.id,
        node,
        capacity_bytes: disk.usage().capacity_bytes,
        locality: Locality::default(),
        may_gain: true,
    };
    let candidates: Vec<Candidate> = disks.all.iter().filter(|disk| disk.engine.is_ok()).map(candidate).collect();
    let group = |prefix| (PgId { pool: FIRST_POOL, bits, prefix }, Vec::new());
    let groups: Vec<Held> = (0..1 << bits).map(group).collect();
    let chosen = placement::plan(&groups, DEFAULT_COPIES as usize, &candidates);
    let row = |(pg, members): (PgId, Vec<DiskId>)| PgRow {
        pool: u32::from(pg.pool.0),
        prefix: pg.prefix,
        epoch: 1,
        closed: false,
        members: members.iter().map(|id| Bytes::copy_from_slice(&id.0.to_be_bytes())).collect(),
        members_before: Vec::new(),
    };
    let rows: Vec<PgRow> = groups.into_iter().map(|(pg, _)| pg).zip(chosen).map(row).collect();
    let knows_pools = client.map().map.feature_level >= POOLS_LEVEL_MIN;
    let pool = PoolRow {
        id: u32::from(FIRST_POOL.0),
        name: "default".into(),
        copies: DEFAULT_COPIES,
        copies_effective: rows.iter().map(|row| row.members.len() as u32).min().unwrap_or(0),
        pg_bits: u32::from(bits),
        class: if knows_pools { client::STANDARD.into() } else { String::new() },
    };
    client.change_map_checked(MapCommand::SetPool(pool)).await?;
    client.change_map_checked(MapCommand::SetPgs(PgRows { rows })).await?;
    Ok(())
}

async fn set_up_shard(node: NodeId, client: &Client) -> Result<(), Announce> {
    const FIRST_RANGE_EPOCH: u64 = 1;
    let feature_level = client.map().map.feature_level;
    let init = InitShard { range_epoch: FIRST_RANGE_EPOCH, feature_level, ..InitShard::default() };
    client.init_shard(FIRST_SHARD, init).await?;
    let row =
        ShardRow { group: FIRST_SHARD.0, range_epoch: FIRST_RANGE_EPOCH, nodes: vec![node.0], ..ShardRow::default() };
    client.change_map_checked(MapCommand::SetShard(row)).await?;
    Ok(())
}

async fn announce_root(root: &(String, String), client: &Client) -> Result<(), Announce> {
    let (access_key, secret_key) = root.clone();
    // What a command has set stays, whatever this node was given.
    let stays = |row: &KeyRow| row.root_changes > 0 || (row.access_key == access_key && row.secret_key == secret_key);
    if client.map().root().is_some_and(stays) {
        return Ok(());
    }
    let row = KeyRow {
        access_key,
        secret_key,
        name: ROOT_NAME.into(),
        created_ms: client.wall_ms(),
        root: true,
        ..KeyRow::default()
    };
    match client.insert_access_key(row).await {
        Ok(_) => Ok(()),
        Err(client::Error::KeyExists) => {
            let why =
                "the root user has the id of another access key: choose another HENGE_ROOT_USER, or delete that key";
            Err(Announce::Never(StartError(why.into())))
        }
        Err(error) => Err(error.into()),
    }
}

fn hex(raw: &[u8]) -> String {
    client::disk_id(raw).map_or_else(|| "?".into(), |id| id.to_string())
}
