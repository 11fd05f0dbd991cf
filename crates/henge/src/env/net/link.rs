//! The calling side: one connection to one peer on one channel, opened when there is something to say, and kept.

use base::env::{Channel, Frame, NetError, RandomExt};
use base::ids::NodeId;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::frame::{self, Kind};
use super::hello::{Hello, HelloAnswer};
use super::outbox::{Message, Outbox};
use super::seal::{Keys, Sealing};
use super::{NetShared, READ_AHEAD_BYTES, SEAL_AHEAD_BYTES, tls};

/// How long a TCP connection may take, with the look-up of the name.
const CONNECT_MAX: Duration = Duration::from_millis(500);

/// How long the handshake and the first words may take after that.
const GREETING_MAX: Duration = Duration::from_secs(1);

/// After a failure, calls fail at once for this long; doubled by each further failure up to the maximum.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// After a connection broke: how long to look whether the peer's machine refuses new ones, and how often.
const PROBE_MAX: Duration = Duration::from_millis(100);
const PROBE_PAUSE: Duration = Duration::from_millis(5);
const PROBES_MAX: usize = 2;

/// Calls that wait for their answers at once.
const CALLS_MAX: usize = 1024;
const _: () = assert!(CALLS_MAX <= super::accept::CALLS_MAX, "a peer takes what one caller asks at once");

pub struct Link {
    peer: NodeId,
    channel: Channel,
    outbox: Arc<Outbox>,
    state: Mutex<State>,
    address: watch::Sender<String>,
}

#[derive(Default)]
struct State {
    calls: BTreeMap<u64, oneshot::Sender<Result<Frame, NetError>>>,
    calls_begun: u64,
    /// Until then nobody is to be reached.
    silent_until: Option<Instant>,
}

/// A call under way. Dropped, it is forgotten, and not sent if it was not yet.
pub struct Call {
    link: Arc<Link>,
    id: u64,
    answer: oneshot::Receiver<Result<Frame, NetError>>,
}

impl Call {
    pub async fn answer(mut self) -> Result<Frame, NetError> {
        (&mut self.answer).await.unwrap_or(Err(NetError::Broken))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.link.lock().calls.remove(&self.id).is_some() {
            self.link.outbox.withdraw(self.id);
        }
    }
}

/// A connection whose greeting is over.
enum Stream {
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
    /// Bulk bytes travel unencrypted: see [`super::seal`].
    Plain(TcpStream, Box<Keys>),
}

/// Ends TLS, as the peer has just agreed, and tells it so by a first frame: until then it sends nothing that TLS would not
/// understand.
async fn leave_tls(stream: TlsStream<BufReader<TcpStream>>) -> io::Result<Stream> {
    let (stream, session) = stream.into_inner();
    let mut keys = Keys::of(&session, true)?;
    let mut stream = super::only_this(stream)?;
    frame::write_first(&mut stream, &mut keys.sealing).await?;
    Ok(Stream::Plain(stream, Box::new(keys)))
}

/// Whether nobody listens at an address any more: the machine says so, it is not merely silent.
async fn has_ended(address: &str) -> bool {
    for _ in 0..PROBES_MAX {
        match timeout(PROBE_MAX, TcpStream::connect(address)).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return true,
            // Of a process that ends, the listener may be closed a moment after the connections.
            Ok(Ok(_)) => tokio::time::sleep(PROBE_PAUSE).await,
            _ => return false,
        }
    }
    false
}

impl Link {
    /// A link to `peer` at `address` (HOST:PORT), whose task runs until the runtime ends.
    pub fn start(net: &Arc<NetShared>, peer: NodeId, channel: Channel, address: String) -> Arc<Link> {
        let link = Arc::new(Link {
            peer,
            channel,
            outbox: Arc::default(),
            state: Mutex::default(),
            address: watch::Sender::new(address),
        });
        let task = Arc::clone(&link).run(Arc::clone(net));
        net.runtime.spawn(crate::env::or_abort("link", task));
        link
    }

    /// The peer is elsewhere now: a connection to another address is broken off. Empty: it is nowhere.
    pub fn move_to(&self, address: &str) {
        let moved = self.address.send_if_modified(|known| {
            let moved = known != address;
            if moved {
                *known = address.to_owned();
            }
            moved
        });
        if moved {
            self.lock().silent_until = None;
        }
    }

    pub fn call(self: &Arc<Link>, request: Frame) -> Result<Call, NetError> {
        let mut state = self.lock();
        if !self.reachable(&state) || state.calls.len() >= CALLS_MAX {
            return Err(NetError::NotSent);
        }
        state.calls_begun += 1;
        let id = state.calls_begun;
        // Both under one lock, so that a failing connection sees either both or neither.
        if !self.outbox.offer(Message { kind: Kind::Request, id, frame: request, _held: None }) {
            return Err(NetError::NotSent);
        }
        let (sender, answer) = oneshot::channel();
        state.calls.insert(id, sender);
        Ok(Call { link: Arc::clone(self), id, answer })
    }

    pub fn send(&self, message: Frame) {
        let state = self.lock();
        if self.reachable(&state) {
            // Without room it is lost, as the contract allows.
            let _ = self.outbox.offer(Message { kind: Kind::OneWay, id: 0, frame: message, _held: None });
        }
    }

    fn reachable(&self, state: &State) -> bool {
        !self.address.borrow().is_empty() && state.silent_until.is_none_or(|until| Instant::now() >= until)
    }

    async fn run(self: Arc<Link>, net: Arc<NetShared>) {
        let mut addresses = self.address.subscribe();
        let mut backoff = BACKOFF_MIN;
        loop {
            self.outbox.wait_filled().await;
            let address = addresses.borrow_and_update().clone();
            let mut was_connected = false;
            match self.connect(&net, &address).await {
                Err(error) => {
                    tracing::debug!(peer = self.peer.0, channel = ?self.channel, address, %error, "not connected");
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
                Ok(stream) => {
                    tracing::debug!(peer = self.peer.0, channel = ?self.channel, address, "connected");
                    (backoff, was_connected) = (BACKOFF_MIN, true);
                    net.rivalry().welcomed();
                    let error = self.converse(&net, stream, &mut addresses).await;
                    net.rivalry().parted();
                    tracing::debug!(peer = self.peer.0, channel = ?self.channel, address, %error, "connection lost");
                }
            }
            self.fail_all(net.random.jitter(backoff));
            if was_connected && matches!(self.channel, Channel::Control | Channel::Raft) && has_ended(&address).await {
                net.tell_ended(self.peer);
            }
        }
    }

    async fn connect(&self, net: &Arc<NetShared>, address: &str) -> io::Result<Stream> {
        let Some(membership) = net.membership.get() else {
            return Err(io::Error::other("this node is no member of a cluster yet"));
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
        let stream = timeout(CONNECT_MAX, TcpStream::connect(address)).await.map_err(late)??;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&membership.tls().client));
        let greeting = async {
            let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
            let mut stream = connector.connect(tls::server_name(self.peer), stream).await?;
            stream.get_mut().1.set_buffer_limit(Some(SEAL_AHEAD_BYTES));
            let mut hello = Hello::new(membership.club(), net.node, self.channel, net.process, &membership.advertise);
            hello.bulk_plaintext = membership.may_be_plain(self.channel);
            frame::write_greeting(&mut stream, Kind::Hello, hello.to_bytes()).await?;
            let (kind, head) = frame::read_greeting(&mut stream).await?;
            let answer = HelloAnswer::decode(head).map_err(io::Error::other)?;
            match answer.refused.as_str() {
                "" if kind == Kind::HelloAnswer && answer.bulk_plaintext && hello.bulk_plaintext => {
                    leave_tls(stream).await
                }
                "" if kind == Kind::HelloAnswer && !answer.bulk_plaintext => Ok(Stream::Tls(Box::new(stream))),
                "" => Err(io::Error::other("the peer does not answer the greeting")),
                why => {
                    let why = format!("node {} at {address} refuses this node: {why}", self.peer);
                    net.complain(self.peer, &why);
                    if answer.occupied && net.rivalry().is_over(Instant::now()) {
                        net.replaced.send_replace(Some(why));
                    }
                    Err(io::Error::other("refused"))
                }
            }
        };
        timeout(GREETING_MAX, greeting).await.map_err(late)?
    }

    /// Sends and receives until the connection breaks; says why it did.
    async fn converse(&self, net: &NetShared, stream: Stream, addresses: &mut watch::Receiver<String>) -> io::Error {
        match stream {
            Stream::Tls(stream) => {
                let (reader, writer) = tokio::io::split(*stream);
                self.converse_by(net, reader, writer, None, addresses).await
            }
            Stream::Plain(stream, keys) => {
                let (reader, writer) = stream.into_split();
                let reader = BufReader::with_capacity(READ_AHEAD_BYTES, reader);
                self.converse_by(net, reader, writer, Some(*keys), addresses).await
            }
        }
    }

    async fn converse_by(
        &self,
        net: &NetShared,
        mut reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin + Send + 'static,
        keys: Option<Keys>,
        addresses: &mut watch::Receiver<String>,
    ) -> io::Error {
        let (sealing, mut opening) = keys.map_or((None, None), |keys| (Some(keys.sealing), Some(keys.opening)));
        let moved = async {
            // The sender lives as long as `self`.
            let _ = addresses.changed().await;
            io::Error::other("the peer has another address now")
        };
        let reading = self.read_loop(net, &mut reader, &mut opening);
        frame::converse(&net.runtime, reading, Arc::clone(&self.outbox), writer, sealing, moved).await
    }

    async fn read_loop(
        &self,
        net: &NetShared,
        reader: &mut (impl AsyncRead + Unpin),
        opening: &mut Option<Sealing>,
    ) -> io::Error {
        loop {
            if let Err(error) = self.read_one(net, reader, opening).await {
                return error;
            }
        }
    }

    async fn read_one(
        &self,
        net: &NetShared,
        reader: &mut (impl AsyncRead + Unpin),
        opening: &mut Option<Sealing>,
    ) -> io::Result<()> {
        let start = frame::read_start(reader, opening.as_mut()).await?;
        let header = start.header;
        let body = frame::read_rest(reader, start, &net.buffers).await?;
        let answer = match header.kind {
            Kind::Answer => Ok(body),
            Kind::NotTaken => Err(NetError::NotSent),
            Kind::Ping => return Ok(()),
            other => return Err(io::Error::other(format!("{other:?} is no answer"))),
        };
        // Nobody may be waiting any more.
        if let Some(waiting) = self.lock().calls.remove(&header.id) {
            let _ = waiting.send(answer);
        }
        Ok(())
    }

    /// All calls have failed, and for `pause` all others do.
    fn fail_all(&self, pause: Duration) {
        let mut state = self.lock();
        state.silent_until = Some(Instant::now() + pause);
        let unsent: BTreeSet<u64> = self.outbox.take_all().iter().map(|message| message.id).collect();
        for (id, waiting) in std::mem::take(&mut state.calls) {
            let error = if unsent.contains(&id) { NetError::NotSent } else { NetError::Broken };
            let _ = waiting.send(Err(error));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while the lock is held, so a poisoned lock still guards a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
