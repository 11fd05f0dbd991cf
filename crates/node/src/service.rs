//! What a node answers to clients and other nodes: decodes a request, hands it to the group or disk it is for.

use base::Env;
use base::checksum::Crc64;
use base::env::{BoxFuture, Channel, Frame, Handler};
use base::ids::{ChunkId, DiskId, GROUP_ZERO, GroupId, NodeId, OwnerId, PgEpoch};
use base::plant::{self, Plant};
use bytes::Bytes;
use client::MapView;
use client::wire::{self, Answer, Ask, ChunkDone, Failed, Failure, Request, Told};
use meta::map::command::{Acknowledgement, ClusterMap};
use meta::object::command::{Reason, Refused, ShardAnswer, ShardFound, ShardRead};
use meta::view::ViewError;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use store::kv::Kv;
use store::{Engine, NewChunk, PutOutcome, StoreError};
use tokio::sync::watch;

use crate::arrivals::Arrivals;
use crate::controller::{self, Control};
use crate::disks::{AnsweredBy, Disks, NodeDisk, Operation};
use crate::events::{EventLog, Events};
use crate::group::install::{Offered, PageError};
use crate::group::{Acknowledge, GroupError, GroupHandle};
use crate::machine::{Command, KvView, Reply};
use crate::metrics::Counters;
use crate::repair::{self, Progress};
use crate::replicas::Replicas;
use crate::sweep;
use crate::traffic::Traffic;
use crate::transport::{self, RaftBatch};

/// Chunks named in one delete request.
const DELETES_MAX: usize = 4096;

/// Everything that requests are answered from.
pub struct Service {
    pub node: NodeId,
    pub env: Env,
    pub disks: Arc<Disks>,
    pub replicas: Arc<Replicas>,
    pub kv: Arc<dyn Kv>,
    /// States that replicas elsewhere are fetching.
    pub offered: Offered,
    pub standing: watch::Sender<Standing>,
    pub map: watch::Receiver<Arc<ClusterMap>>,
    pub counters: Arc<Counters>,
    pub control: Arc<Control>,
    /// What happened, for people.
    pub events: Arc<EventLog>,
    pub repair: Arc<Progress>,
    pub arrivals: Arc<Arrivals>,
    pub traffic: Arc<Traffic>,
    /// The map decoded for look-ups, as of the version it carries.
    pub view: RwLock<Arc<MapView>>,
}

/// Where this node stands in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The cluster does not know of this start yet.
    Starting,
    Serving,
    /// Voted out: takes nothing until it is back under a new generation.
    Fenced,
    /// It must not run: a sentence.
    Ended(String),
}

/// The service as the network calls it.
pub struct Front(pub Arc<Service>);

impl Handler for Front {
    fn handle(&self, from: NodeId, channel: Channel, request: Frame) -> BoxFuture<Frame> {
        let service = self.0.clone();
        Box::pin(async move {
            if channel == Channel::Raft {
                match transport::decode(&request) {
                    Ok(batch) => service.take_raft(from, batch),
                    Err(why) => tracing::warn!("node {from}: {why}"),
                }
                return Frame::default();
            }
            let (mut answer, bulk) = match wire::head::<Request>(&request) {
                Ok(head) => service.answer(from, head, request.bulk).await,
                Err(why) => (Answer::failed(Failure::Invalid, why), Vec::new()),
            };
            answer.map_version = service.map.borrow().version;
            wire::frame(&answer, bulk)
        })
    }

    fn ended(&self, node: NodeId) {
        self.0.replicas.all().iter().for_each(|group| group.ended(node));
        Control::ended(&self.0, node);
    }
}

type Answered = (Answer, Vec<Bytes>);

impl Service {
    /// `from`: who sent it, as the network has verified.
    async fn answer(&self, from: NodeId, request: Request, bulk: Vec<Bytes>) -> Answered {
        // The map is for everybody: from it a node learns that it was voted out. Raft has terms.
        let is_open = matches!(
            request.ask,
            Some(
                Ask::GetMap(_)
                    | Ask::SnapshotPage(_)
                    | Ask::Rows(_)
                    | Ask::GetStatus(_)
                    | Ask::GetEvents(_)
                    | Ask::Reach(_)
            )
        );
        if request.node != from.0 && !is_open {
            let why = format!("node {from} calls itself node {}", request.node);
            return (Answer::failed(Failure::Invalid, why), Vec::new());
        }
        if let Err(failed) =
            self.check_generation(&request).or_else(|failed| if is_open { Ok(()) } else { Err(failed) })
        {
            return (failed.into(), Vec::new());
        }
        let Some(ask) = request.ask else {
            return (Answer::failed(Failure::Invalid, "a request of a newer version"), Vec::new());
        };
        match ask {
            Ask::GetMap(get) => (self.get_map(get.linearizable).await, Vec::new()),
            Ask::ProposeMap(entry) => {
                self.follow(request.map_version).await;
                (self.propose(GROUP_ZERO, Command::Map(entry), Acknowledge::Everyone).await, Vec::new())
            }
            Ask::ProposeShard(propose) => {
                self.follow(request.map_version).await;
                let acknowledge = match propose.acknowledgement() {
                    Acknowledgement::All => Acknowledge::Everyone,
                    Acknowledgement::Majority | Acknowledgement::One => Acknowledge::Majority,
                    Acknowledgement::AllStrict => Acknowledge::Strict,
                };
                let command = Command::Shard(propose.entry.unwrap_or_default());
                (self.propose(GroupId(propose.group), command, acknowledge).await, Vec::new())
            }
            Ask::QueryShard(query) if query.eventual => {
                (self.query_stale(GroupId(query.group), query.query.unwrap_or_default()), Vec::new())
            }
            Ask::QueryShard(query) => {
                (self.query(GroupId(query.group), query.query.unwrap_or_default()).await, Vec::new())
            }
            Ask::PutChunk(put) => (self.put_chunk(put, bulk).await, Vec::new()),
            Ask::GetChunk(get) => self.get_chunk(get).await,
            Ask::CloneChunk(clone) => (self.clone_chunk(clone).await, Vec::new()),
            Ask::DeleteChunks(delete) => (self.delete_chunks(delete).await, Vec::new()),
            Ask::SnapshotPage(ask) => (self.snapshot_page(ask).await, Vec::new()),
            Ask::Rows(ask) => (Answer::of(Told::Rows(self.replicas.rows_of(GroupId(ask.group)))), Vec::new()),
            Ask::GetStatus(_) => {
                let status = prost::Message::encode_to_vec(&crate::status::local(self)).into();
                (Answer::of(Told::Status(wire::EncodedStatus { status })), Vec::new())
            }
            Ask::GetEvents(_) => {
                let events = prost::Message::encode_to_vec(&Events { events: self.events.all() }).into();
                (Answer::of(Told::Events(wire::EncodedEvents { events })), Vec::new())
            }
            Ask::Reach(ask) => {
                let reached = controller::reaches(self, NodeId(ask.node)).await;
                (Answer::of(Told::Reached(wire::Reached { reached })), Vec::new())
            }
            Ask::NodeReport(report) => (self.hear(from, report), Vec::new()),
            Ask::Inventory(ask) => (repair::inventory(&self.map.borrow(), &self.disks, &ask), Vec::new()),
            Ask::PgDigests(ask) => (repair::digests(&self.map.borrow(), &self.disks, &ask), Vec::new()),
            Ask::Named(ask) => (self.named(GroupId(ask.group), &ask.ids).await, Vec::new()),
        }
    }

    async fn snapshot_page(&self, ask: wire::SnapshotPage) -> Answer {
        if ask.newest && ask.token == 0 {
            let Some(group) = self.replicas.get(GroupId(ask.group)) else {
                return Answer::failed(Failure::NotLeader, "no replica of it is here");
            };
            if let Err(error) = group.barrier().await {
                return group_failure(error);
            }
        }
        match self.offered.page(&self.env, &*self.kv, &ask) {
            Ok(rows) => Answer::of(Told::SnapshotRows(rows)),
            Err(error) => {
                // Whoever leads without being able to send its state makes nobody whole.
                if let (PageError::Unreadable(ViewError::Damaged { .. }), Ok(group)) =
                    (&error, self.group(GroupId(ask.group)))
                {
                    self.counters.damaged_rows.inc();
                    group.unsendable(error.to_string());
                }
                Answer::failed(Failure::Busy, error.to_string())
            }
        }
    }

    fn hear(&self, from: NodeId, report: wire::NodeReport) -> Answer {
        self.control.hear(&self.env, &self.events, from, report);
        Answer::of(Told::Chunk(ChunkDone::default()))
    }

    /// Raft's traffic is not gated by generations of nodes: Raft has terms. Two lives of a cluster never mix, though.
    fn take_raft(&self, from: NodeId, batch: RaftBatch) {
        let ours = self.replicas.generation();
        if batch.cluster_generation < ours {
            return transport::send_recovered(&self.env, from, ours);
        }
        if self.map.borrow().version == 0 {
            self.replicas.learn_generation(batch.cluster_generation);
        }
        // A node that holds nothing yet has no life before this one.
        if batch.cluster_generation > ours && self.map.borrow().version > 0 {
            let why = format!(
                "the cluster was recovered without this node and goes on as generation {}; what this node holds is from \
                 before: if the others were restored from a backup, restore this one from the same; else start it anew with an \
                 empty --data and a token",
                batch.cluster_generation
            );
            tracing::error!("{why}");
            self.standing.send_replace(Standing::Ended(why));
            return;
        }
        self.replicas.deliver(from, batch);
    }

    /// Who counts for `all` is judged by the newest map that anybody on the way has seen.
    async fn follow(&self, version: u64) {
        const FOLLOW_MAX: Duration = Duration::from_millis(500);
        if self.map.borrow().version < version {
            let mut map = self.map.clone();
            // When it does not come, the older map counts more voters rather than fewer; a newcomer is the exception.
            let _ = self.env.timeout(FOLLOW_MAX, map.wait_for(|map| map.version >= version)).await;
        }
    }

    /// The zombie learns its fate from this answer.
    fn check_generation(&self, request: &Request) -> Result<(), Failed> {
        let map = self.map.borrow();
        if request.cluster_generation < map.cluster_generation {
            let (theirs, ours) = (request.cluster_generation, map.cluster_generation);
            let why =
                format!("the cluster was recovered: it is at generation {ours}, node {} at {theirs}", request.node);
            transport::send_recovered(&self.env, NodeId(request.node), ours);
            return Err(Failed::new(Failure::StaleGeneration, why));
        }
        let floor = map.nodes.iter().find(|row| row.id == request.node).map_or(0, |row| row.generation_floor);
        // A command belongs to the session that it was begun in, whatever its sender calls itself by now.
        let slot = match &request.ask {
            Some(Ask::ProposeShard(propose)) => propose.entry.as_ref().and_then(|entry| entry.slot.as_ref()),
            Some(Ask::ProposeMap(entry)) => entry.slot.as_ref(),
            _ => None,
        };
        let generation = slot.map_or(request.generation, |slot| slot.generation.min(request.generation));
        if generation < floor && !plant::is(Plant::StaleGeneration) {
            self.counters.stale_generations.inc();
            let why = format!("generation {} of node {} is below its floor {floor}", generation, request.node);
            return Err(Failed::new(Failure::StaleGeneration, why));
        }
        Ok(())
    }

    fn group(&self, id: GroupId) -> Result<GroupHandle, Failed> {
        let missing = || Failed::new(Failure::NotLeader, format!("no replica of group {id} here"));
        self.replicas.get(id).ok_or_else(missing)
    }

    async fn get_map(&self, linearizable: bool) -> Answer {
        if linearizable {
            let group = match self.group(GROUP_ZERO) {
                Ok(group) => group,
                Err(failed) => return failed.into(),
            };
            if let Err(error) = group.barrier().await {
                return group_failure(error);
            }
        }
        Answer::of(Told::Map(ClusterMap::clone(&self.map.borrow())))
    }

    async fn propose(&self, id: GroupId, command: Command, acknowledge: Acknowledge) -> Answer {
        let group = match self.group(id) {
            Ok(group) => group,
            Err(failed) => return failed.into(),
        };
        match group.propose(command, acknowledge).await {
            Ok(Reply::Map(reply)) => Answer::of(Told::MapReply(reply)),
            Ok(Reply::Shard(reply)) => Answer::of(Told::ShardReply(reply)),
            Err(error) => group_failure(error),
        }
    }

    async fn query(&self, id: GroupId, query: meta::object::command::ShardQuery) -> Answer {
        let group = match self.group(id) {
            Ok(group) => group,
            Err(failed) => return failed.into(),
        };
        let is_listing = matches!(query.read, Some(ShardRead::ListObjects(_)));
        let is_unasked =
            (is_listing && plant::is(Plant::ListStale)) || (group.is_leader() && plant::is(Plant::ReadWithoutIndex));
        if !is_unasked && let Err(error) = group.barrier().await {
            return group_failure(error);
        }
        match self.query_rows(id, query) {
            Ok(answer) => Answer::of(Told::ShardAnswer(answer)),
            Err(error) => self.unreadable(&group, &error).await,
        }
    }

    /// All of an answer from the rows of one moment: a snapshot of another replica may be about to replace them.
    fn query_rows(&self, id: GroupId, query: meta::object::command::ShardQuery) -> Result<ShardAnswer, ViewError> {
        let rows = self.kv.snapshot();
        meta::object::query(&KvView::over(&*rows), id, query)
    }

    /// From what the replica here has applied. What it cannot answer another replica can.
    fn query_stale(&self, id: GroupId, query: meta::object::command::ShardQuery) -> Answer {
        if *self.standing.borrow() != Standing::Serving {
            return Answer::failed(Failure::Busy, "the node waits for the cluster to take it back");
        }
        let group = match self.group(id) {
            Ok(group) => group,
            Err(failed) => return failed.into(),
        };
        if !group.is_ready() || group.failed().is_some() || group.applied().0 == 0 {
            return Answer::failed(Failure::Busy, format!("the replica of group {id} has no state to answer from"));
        }
        // Before the rows are read: they may become newer meanwhile, never older.
        let staleness = group.staleness(self.env.now());
        match self.query_rows(id, query) {
            Ok(answer) => {
                let staleness_ms = staleness.map(|staleness| staleness.as_millis() as u64);
                Answer { staleness_ms, ..Answer::of(Told::ShardAnswer(answer)) }
            }
            Err(error) => Answer::failed(Failure::Busy, error.to_string()),
        }
    }

    /// Rows of this node's replica cannot be read. Another replica answers when there is one: this one is made anew.
    /// With one voter, what is damaged is lost, and the answer is final.
    async fn unreadable(&self, group: &GroupHandle, error: &ViewError) -> Answer {
        if !matches!(error, ViewError::Damaged { .. }) {
            return Answer::failed(Failure::Busy, error.to_string());
        }
        if self.give_up(group, error).await {
            return Answer::failed(Failure::Damaged, error.to_string());
        }
        if group.configuration().voters.len() > 1 {
            let why = format!("{error}; the group's other replicas cannot take over at the moment");
            return Answer::failed(Failure::Busy, why);
        }
        let refused = Refused { reason: Reason::Damaged as i32, detail: error.to_string() };
        Answer::of(Told::ShardAnswer(ShardAnswer { found: Some(ShardFound::Refused(refused)) }))
    }

    /// For workers that read this node's replica of `group`: what is damaged is noted, and the replica made anew if it can.
    pub async fn lost_rows(&self, id: GroupId, error: &ViewError) -> client::Error {
        if let (ViewError::Damaged { .. }, Ok(group)) = (error, self.group(id)) {
            self.give_up(&group, error).await;
        }
        client::Error::Damaged(error.to_string())
    }

    /// Notes that rows of this node's replica are damaged. Answers whether another replica is to be asked.
    async fn give_up(&self, group: &GroupHandle, error: &ViewError) -> bool {
        self.counters.damaged_rows.inc();
        tracing::error!(group = group.id.0, "{error}");
        group.hurt(error.to_string()).await
    }

    async fn named(&self, id: GroupId, ids: &[u8]) -> Answer {
        let group = match self.group(id) {
            Ok(group) => group,
            Err(failed) => return failed.into(),
        };
        match group.barrier().await {
            Ok(()) => match sweep::named(self, id, ids).await {
                Ok(answer) => answer,
                Err(error) => self.unreadable(&group, &error).await,
            },
            Err(error) => group_failure(error),
        }
    }

    async fn put_chunk(&self, put: wire::PutChunk, bulk: Vec<Bytes>) -> Answer {
        let (disk, engine, id) = match (self.disk(&put.disk), chunk_id(&put.id)) {
            (Ok((disk, engine)), Some(id)) => (disk, engine, id),
            (Err(failed), _) => return failed.into(),
            (_, None) => return Answer::failed(Failure::Invalid, "a chunk id has 16 bytes"),
        };
        // Until the map here holds this node's return, it may be older than what the node had adopted before.
        if *self.standing.borrow() != Standing::Serving {
            return Answer::failed(Failure::Busy, "the node has just started and waits for the cluster map");
        }
        let current = self.placement_epoch(id);
        if current != Some(PgEpoch(put.epoch)) && !plant::is(Plant::StaleEpoch) {
            let why = format!("chunk {id} was placed under epoch {}, here it is {current:?}", put.epoch);
            return Answer::failed(Failure::StalePlacement, why);
        }
        let chunk =
            NewChunk { id, owner: OwnerId(put.owner), epoch: PgEpoch(put.epoch), crc64: put.crc64, payload: bulk };
        disk.meter.serve(self.env.now());
        let under_way = disk.meter.begin(&self.env);
        let stored = engine.put(chunk).await;
        // It may have been on its way, or in the disk's queue, while its writer was voted out and the orphans were swept.
        self.arrivals.came(disk.id, id);
        under_way.answered(
            Operation::Store,
            match &stored {
                Ok(PutOutcome::Stored) => AnsweredBy::Disk,
                Err(error) if is_disk_failure(error) => AnsweredBy::FailedDisk,
                Ok(PutOutcome::AlreadyStored) | Err(_) => AnsweredBy::Memory,
            },
        );
        if let Err(error) = stored {
            return store_failure(id, &error);
        }
        // The group may have been closed meanwhile, and its inventory taken: then this copy does not count.
        let is_current = self.placement_epoch(id) == Some(PgEpoch(put.epoch)) || plant::is(Plant::StaleEpoch);
        if !is_current || *self.standing.borrow() != Standing::Serving {
            let why = format!("the placement of chunk {id} changed while it was stored");
            return Answer::failed(Failure::StalePlacement, why);
        }
        Answer::of(Told::Chunk(ChunkDone { epoch: put.epoch, owner: put.owner, crc64: put.crc64 }))
    }

    async fn get_chunk(&self, get: wire::GetChunk) -> Answered {
        let (disk, engine, id) = match (self.disk(&get.disk), chunk_id(&get.id)) {
            (Ok((disk, engine)), Some(id)) => (disk, engine, id),
            (Err(failed), _) => return (failed.into(), Vec::new()),
            (_, None) => return (Answer::failed(Failure::Invalid, "a chunk id has 16 bytes"), Vec::new()),
        };
        if !get.repair {
            disk.meter.serve(self.env.now());
        }
        let under_way = disk.meter.begin(&self.env);
        let read = match get.repair {
            true => engine.get_owned(id, get.start..get.end).await,
            false => engine.get(id, get.start..get.end).await,
        };
        under_way.answered(
            Operation::Read,
            match &read {
                Ok(data) if !data.from_memory => AnsweredBy::Disk,
                Err(error) if is_disk_failure(error) => AnsweredBy::FailedDisk,
                Ok(_) | Err(_) => AnsweredBy::Memory,
            },
        );
        match read {
            Ok(data) => {
                let owner = data.owner.map_or(0, |owner| owner.0);
                let done = ChunkDone { epoch: data.stat.epoch.0, owner, crc64: 0 };
                (Answer::of(Told::Chunk(done)), data.pieces)
            }
            Err(error) => (store_failure(id, &error), Vec::new()),
        }
    }

    /// What is read was verified by the store; what is stored is that, under another id.
    async fn clone_chunk(&self, clone: wire::CloneChunk) -> Answer {
        let wire::CloneChunk { disk, from, start, end, id, owner, epoch } = clone;
        let (answer, source) =
            self.get_chunk(wire::GetChunk { disk: disk.clone(), id: from, start, end, repair: false }).await;
        if !matches!(answer.told, Some(Told::Chunk(_))) {
            return answer;
        }
        let mut crc = Crc64::new();
        source.iter().for_each(|piece| crc.update(piece));
        self.put_chunk(wire::PutChunk { disk, id, owner, epoch, crc64: crc.finish() }, source).await
    }

    async fn delete_chunks(&self, delete: wire::DeleteChunks) -> Answer {
        let engine = match self.disk(&delete.disk) {
            Ok((_, engine)) => engine,
            Err(failed) => return failed.into(),
        };
        if !delete.ids.len().is_multiple_of(ChunkId::LEN) || delete.ids.len() > DELETES_MAX * ChunkId::LEN {
            return Answer::failed(Failure::Invalid, "chunk ids have 16 bytes each, at most 4096 at once");
        }
        let ids: Vec<ChunkId> = delete.ids.chunks_exact(ChunkId::LEN).filter_map(chunk_id).collect();
        match engine.delete(ids).await {
            Ok(()) => Answer::of(Told::Chunk(ChunkDone::default())),
            Err(error) => Answer::failed(Failure::Busy, error.to_string()),
        }
    }

    fn disk(&self, raw: &[u8]) -> Result<(&NodeDisk, &Engine), Failed> {
        let id = raw.try_into().map(|raw| DiskId(u128::from_be_bytes(raw)));
        let id = id.map_err(|_| Failed::new(Failure::Invalid, "a disk id has 16 bytes"))?;
        let missing = |why| Failed::new(Failure::NoDisk, why);
        let engine = self.disks.engine(id).map_err(missing)?;
        Ok((self.disks.disk(id).map_err(missing)?, engine))
    }

    fn placement_epoch(&self, id: ChunkId) -> Option<PgEpoch> {
        let placement = self.view().placement(id)?;
        (!placement.closed).then_some(placement.epoch)
    }

    /// The newest map, decoded once per version.
    fn view(&self) -> Arc<MapView> {
        let held = self.view.read().unwrap_or_else(PoisonError::into_inner).clone();
        if held.version().0 == self.map.borrow().version {
            return held;
        }
        let fresh = Arc::new(MapView::new(ClusterMap::clone(&self.map.borrow())));
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        fresh
    }
}

fn chunk_id(raw: &[u8]) -> Option<ChunkId> {
    Some(ChunkId::from_bytes(raw.try_into().ok()?))
}

fn group_failure(error: GroupError) -> Answer {
    match error {
        GroupError::NotLeader(leader) => {
            let leader = leader.map_or(0, |node| node.0);
            let failed = Failed { failure: Failure::NotLeader as i32, detail: String::new(), leader };
            Answer::of(Told::Failed(failed))
        }
        GroupError::Busy(why) => Answer::failed(Failure::Busy, why),
        GroupError::Unknown(why) => Answer::failed(Failure::Unknown, why),
        GroupError::TooFewCopies(why) => Answer::failed(Failure::TooFewCopies, why),
        GroupError::Failed(why) => Answer::failed(Failure::Damaged, why),
    }
}

/// What says something about the disk, not about the request.
fn is_disk_failure(error: &StoreError) -> bool {
    matches!(error, StoreError::Io(_) | StoreError::Damaged(_) | StoreError::Broken(_))
}

fn store_failure(id: ChunkId, error: &StoreError) -> Answer {
    let failure = match error {
        StoreError::NotFound => Failure::NotFound,
        StoreError::Deleted => Failure::Deleted,
        StoreError::Damaged(_) => Failure::Damaged,
        StoreError::Conflict => Failure::Conflict,
        StoreError::BadPayload | StoreError::Invalid(_) => Failure::Invalid,
        StoreError::Full => Failure::Full,
        _ => Failure::Busy,
    };
    Answer::failed(failure, format!("chunk {id}: {error}"))
}
