//! The network between nodes: whole messages over TCP with mutual TLS, one connection per peer and channel and
//! direction, opened when there is something to say. Messages to oneself are handed over in memory.
//!
//! `frame` is what travels, `link` calls, `accept` answers, `hello` is how the two introduce themselves, `tls` who may; `seal`
//! is for networks on which chunks need no encryption.
//! A peer that is not heard for three seconds is gone: its connection breaks, and all that waits on it fails at once.

mod accept;
pub mod frame;
pub mod hello;
mod link;
mod outbox;
mod seal;
#[cfg(test)]
mod tests;
pub mod tls;

use base::buffer_pool::BufferPool;
use base::env::{BoxFuture, Channel, Clock, Frame, Handler, MonoTime, Net, NetError, Random};
use base::ids::{ClusterId, NodeId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

use hello::Club;
use link::Link;
use tls::NodeTls;

/// What one system call reads of a connection, and what is encrypted ahead of the socket.
const READ_AHEAD_BYTES: usize = 128 << 10;
const SEAL_AHEAD_BYTES: usize = 256 << 10;

/// The same complaint about a peer is logged once in this time.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(30);

/// When for so long nobody takes this process in because another one under the same name is connected, that one stays. A
/// process that has died is not connected any more after three seconds.
const RIVAL_MAX: Duration = Duration::from_secs(10);

const CHANNELS: [Channel; 4] = [Channel::Control, Channel::Raft, Channel::Bulk, Channel::Repair];

/// The network of one node.
pub struct RealNet {
    shared: Arc<NetShared>,
    clock: Arc<dyn Clock>,
}

/// What all connections share.
struct NetShared {
    node: NodeId,
    /// Drawn anew by each process.
    process: u64,
    runtime: Handle,
    random: Arc<dyn Random>,
    /// What bulk bytes are received into.
    buffers: Arc<BufferPool>,
    handler: OnceLock<Arc<dyn Handler>>,
    admission: OnceLock<Arc<dyn Admission>>,
    membership: OnceLock<Membership>,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    callers: Mutex<Callers>,
    /// Removed nodes: their certificates are good, and they are not.
    expelled: watch::Sender<BTreeSet<NodeId>>,
    complaints: Mutex<BTreeMap<NodeId, (String, Instant)>>,
    rivalry: Mutex<Rivalry>,
    /// What was said when another process had taken this one's place.
    replaced: watch::Sender<Option<String>>,
}

/// Who admits new nodes: `request` and the answer are messages of [`crate::join`].
pub trait Admission: Send + Sync {
    fn admit(&self, request: Bytes) -> BoxFuture<Bytes>;
}

/// Another node, and the links to it, one per channel.
struct Peer {
    /// Where `learn_peers` said last that it is. What it says of itself when it calls is newer than the same said again.
    taught: String,
    links: [Arc<Link>; 4],
}

struct Membership {
    /// HOST:PORT under which others reach this node.
    advertise: String,
    cluster: ClusterId,
    generation: AtomicU32,
    tls: RwLock<Arc<NodeTls>>,
    /// Bulk bytes need no encryption where the other side says so, too.
    bulk_plaintext: bool,
}

impl Membership {
    fn club(&self) -> Club {
        Club { cluster: self.cluster, generation: self.generation.load(Ordering::Relaxed) }
    }

    /// Whether bulk bytes on a connection of `channel` may travel unencrypted.
    fn may_be_plain(&self, channel: Channel) -> bool {
        self.bulk_plaintext && matches!(channel, Channel::Bulk | Channel::Repair)
    }

    fn tls(&self) -> Arc<NodeTls> {
        Arc::clone(&self.tls.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RealNet {
    /// The network of `node`. Until it has entered a cluster, it reaches nobody but itself.
    pub fn new(
        node: NodeId,
        runtime: Handle,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        buffers: Arc<BufferPool>,
    ) -> RealNet {
        let shared = NetShared {
            node,
            process: random.next_u64(),
            runtime,
            random,
            buffers,
            handler: OnceLock::new(),
            admission: OnceLock::new(),
            membership: OnceLock::new(),
            peers: Mutex::default(),
            callers: Mutex::default(),
            expelled: watch::Sender::default(),
            complaints: Mutex::default(),
            rivalry: Mutex::default(),
            replaced: watch::Sender::default(),
        };
        RealNet { shared: Arc::new(shared), clock }
    }

    /// From now on this node is a member of `club`, takes connections from `listener` and may call others. `advertise`:
    /// HOST:PORT under which others reach that listener. `bulk_plaintext`: chunks may travel unencrypted between this node
    /// and those that say the same.
    pub fn enter(&self, club: Club, tls: NodeTls, listener: TcpListener, advertise: String, bulk_plaintext: bool) {
        let Club { cluster, generation } = club;
        let generation = AtomicU32::new(generation);
        let tls = RwLock::new(Arc::new(tls));
        let membership = Membership { advertise, cluster, generation, tls, bulk_plaintext };
        assert!(self.shared.membership.set(membership).is_ok(), "a node enters its cluster once, at start");
        let accepting = accept::accept_all(Arc::clone(&self.shared), listener);
        self.shared.runtime.spawn(super::or_abort("cluster port", accepting));
    }

    /// New connections are made with a newer certificate; those that there are stay.
    pub fn renew_tls(&self, tls: NodeTls) {
        if let Some(membership) = self.shared.membership.get() {
            *membership.tls.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tls);
        }
    }

    /// The cluster was recovered: members of older generations are refused from now on.
    pub fn raise_generation(&self, generation: u32) {
        if let Some(membership) = self.shared.membership.get() {
            membership.generation.fetch_max(generation, Ordering::Relaxed);
        }
    }

    /// Whom those who want to join are answered by. Set once.
    pub fn admit_by(&self, admission: Arc<dyn Admission>) {
        assert!(self.shared.admission.set(admission).is_ok(), "admission is set once, at start");
    }

    /// These nodes were removed from the cluster: their connections are broken off, and refused from now on.
    pub fn expel(&self, nodes: &BTreeSet<NodeId>) {
        self.shared.expelled.send_if_modified(|known| {
            let modified = known != nodes;
            if modified {
                known.clone_from(nodes);
            }
            modified
        });
    }

    /// Waits until it is known that another process under this node's name is in the cluster in this one's place: the two run on
    /// a directory and a copy of it. Answers who says so.
    pub async fn replaced(&self) -> String {
        let mut replaced = self.shared.replaced.subscribe();
        let said = replaced.wait_for(Option::is_some).await.map(|said| said.clone());
        // The sender lives as long as `self`.
        said.ok().flatten().unwrap_or_default()
    }

    fn link(&self, to: NodeId, channel: Channel) -> Option<Arc<Link>> {
        self.shared.peers().get(&to).map(|peer| Arc::clone(&peer.links[hello::channel_number(channel) as usize]))
    }

    /// Hands over a message to oneself.
    fn deliver(&self, channel: Channel, message: Frame) -> Option<Local> {
        let handling = self.shared.handler.get()?.handle(self.shared.node, channel, message);
        Some(Local { handling: Some(handling), runtime: self.shared.runtime.clone() })
    }

    fn begin(&self, to: NodeId, channel: Channel, request: Frame) -> Result<BoxFuture<Outcome>, NetError> {
        if !frame::fits(&request) {
            return Err(NetError::NotSent);
        }
        if to == self.shared.node {
            let local = self.deliver(channel, request).ok_or(NetError::NotSent)?;
            if !matches!(channel, Channel::Bulk | Channel::Repair) {
                return Ok(Box::pin(async { Ok(local.await) }));
            }
            // A reader whose client dawdles is not polled: the work goes on without it, or the disk would seem to hang.
            let (told, answer) = tokio::sync::oneshot::channel();
            self.shared.runtime.spawn(super::or_abort("local message", async move { drop(told.send(local.await)) }));
            return Ok(Box::pin(async { answer.await.map_err(|_| NetError::Broken) }));
        }
        let call = self.link(to, channel).ok_or(NetError::NotSent)?.call(request)?;
        Ok(Box::pin(call.answer()))
    }
}

type Outcome = Result<Frame, NetError>;

/// The connection below TLS that has ended, where the peer waited for its turn. What TLS itself had read ahead is dropped: the
/// first sealed frame then does not verify.
fn only_this(stream: BufReader<TcpStream>) -> io::Result<TcpStream> {
    match stream.buffer() {
        [] => Ok(stream.into_inner()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the peer spoke before its turn")),
    }
}

/// The handling of a message to oneself. It runs within its caller, which spares a task and two wake-ups; when the
/// caller gives up, it goes on in a task of its own: as in a network, the work is not stopped.
struct Local {
    /// Gone when it has answered.
    handling: Option<BoxFuture<Frame>>,
    runtime: Handle,
}

impl Future for Local {
    type Output = Frame;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Frame> {
        let handling = self.handling.as_mut().expect("a future is not polled after its end");
        let polled = handling.as_mut().poll(context);
        if polled.is_ready() {
            self.handling = None;
        }
        polled
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if let Some(handling) = self.handling.take() {
            self.runtime.spawn(super::or_abort("local message", async move { drop(handling.await) }));
        }
    }
}

impl Net for RealNet {
    fn call(&self, to: NodeId, channel: Channel, request: Frame, deadline: MonoTime) -> BoxFuture<Outcome> {
        let answer = match self.begin(to, channel, request) {
            Ok(answer) => answer,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let expiry = self.clock.sleep_until(deadline);
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer,
                () = expiry => Err(NetError::DeadlineExceeded),
            }
        })
    }

    fn send(&self, to: NodeId, channel: Channel, message: Frame) {
        // A message that cannot be delivered is lost, as the contract allows.
        if to == self.shared.node {
            // Dropped, it goes on by itself.
            drop(self.deliver(channel, message));
        } else if let Some(link) = self.link(to, channel).filter(|_| frame::fits(&message)) {
            link.send(message);
        }
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        assert!(self.shared.handler.set(handler).is_ok(), "a node's handler is set once, at start");
    }

    fn learn_peers(&self, peers: &[(NodeId, String)]) {
        for (node, address) in peers {
            self.shared.teach(*node, address);
        }
    }
}

impl NetShared {
    /// A peer's process has ended.
    fn tell_ended(&self, peer: NodeId) {
        if let Some(handler) = self.handler.get() {
            handler.ended(peer);
        }
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeId, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `node` is at `address` (HOST:PORT), as the cluster map says.
    fn teach(self: &Arc<NetShared>, node: NodeId, address: &str) {
        if node == self.node {
            return;
        }
        let mut peers = self.peers();
        match peers.get_mut(&node) {
            Some(peer) if peer.taught == address => {}
            Some(peer) => {
                peer.taught = address.to_owned();
                peer.links.iter().for_each(|link| link.move_to(address));
            }
            None => {
                let links = CHANNELS.map(|channel| Link::start(self, node, channel, address.to_owned()));
                peers.insert(node, Peer { taught: address.to_owned(), links });
            }
        }
    }

    /// `node` itself said that it is at `address`: it may have moved before the map could say so.
    fn heard_from(self: &Arc<NetShared>, node: NodeId, address: &str) {
        if address.is_empty() {
            return;
        }
        let known = self.peers().get(&node).map(|peer| peer.links.each_ref().map(Arc::clone));
        match known {
            Some(links) => links.iter().for_each(|link| link.move_to(address)),
            None => self.teach(node, address),
        }
    }

    fn callers(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rivalry(&self) -> MutexGuard<'_, Rivalry> {
        self.rivalry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_expelled(&self, node: NodeId) -> bool {
        self.expelled.borrow().contains(&node)
    }

    /// Waits until `node` is removed from the cluster.
    async fn expelled(&self, node: NodeId) {
        let mut expelled = self.expelled.subscribe();
        // The sender lives as long as `self`.
        let _ = expelled.wait_for(|expelled| expelled.contains(&node)).await;
    }

    /// Logs what is wrong with a peer, not each time that it happens.
    fn complain(&self, peer: NodeId, sentence: &str) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |(said, at): &(String, Instant)| said == sentence && at.elapsed() < COMPLAINT_PAUSE;
        if !complaints.get(&peer).is_some_and(fresh) {
            complaints.insert(peer, (sentence.to_owned(), Instant::now()));
            tracing::error!("{sentence}");
        }
    }
}

/// Whether this process or another one of the same name is taken in by others.
#[derive(Default)]
struct Rivalry {
    /// Connections to others that there are.
    connected: usize,
    /// The first and the latest time that others refused this process for the other one, while nobody took it in.
    refused: Option<(Instant, Instant)>,
}

impl Rivalry {
    fn welcomed(&mut self) {
        self.connected += 1;
        self.refused = None;
    }

    fn parted(&mut self) {
        self.connected -= 1;
    }

    /// Somebody has refused this process. Answers whether it is the one that has to go: never while anybody takes it in, so
    /// that of two at least one stays.
    fn is_over(&mut self, now: Instant) -> bool {
        if self.connected > 0 {
            return false;
        }
        let (first, last) =
            self.refused.filter(|(_, last)| now.duration_since(*last) < RIVAL_MAX).unwrap_or((now, now));
        self.refused = Some((first, now.max(last)));
        now.duration_since(first) > RIVAL_MAX
    }
}

/// Which process calls itself which node, for as long as it is connected.
#[derive(Default)]
struct Callers {
    present: BTreeMap<NodeId, (u64, usize)>,
}

impl Callers {
    fn enter(&mut self, node: NodeId, process: u64) -> Result<(), String> {
        let (known, connections) = self.present.entry(node).or_insert((process, 0));
        if *known != process {
            return Err(format!(
                "another process that calls itself node {node} is connected: either it has just died, and this passes, \
                 or one runs on a copy of the other's directory"
            ));
        }
        *connections += 1;
        Ok(())
    }

    fn leave(&mut self, node: NodeId) {
        if let Some((_, connections)) = self.present.get_mut(&node) {
            *connections -= 1;
            if *connections == 0 {
                self.present.remove(&node);
            }
        }
    }
}
