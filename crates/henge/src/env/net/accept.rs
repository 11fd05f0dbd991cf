//! The answering side: takes connections, learns from the certificate who calls, and hands requests to the handler.
//!
//! Nobody without a certificate of the cluster gets further than one question: to be admitted.

use base::env::{BoxFuture, Channel};
use base::ids::NodeId;
use bytes::Bytes;
use prost::Message as _;
use rustls::pki_types::CertificateDer;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::frame::{self, Header, Kind};
use super::hello::{Hello, HelloAnswer};
use super::outbox::{Message, Outbox};
use super::seal::{Keys, Sealing};
use super::{NetShared, READ_AHEAD_BYTES, SEAL_AHEAD_BYTES, tls};

/// Connections of members at once.
const CONNECTIONS_MAX: usize = 4096;

/// Connections whose callers are not known yet. Beyond these, new ones are closed at once.
const STRANGERS_MAX: usize = 256;

/// How long a caller may take to say who it is, and how long an admission may take.
const GREETING_MAX: Duration = Duration::from_secs(3);
const ADMISSION_MAX: Duration = Duration::from_secs(30);

/// Requests of one connection that are served at once. Beyond it they are not taken.
pub const CALLS_MAX: usize = 2048;

/// Bulk bytes of one connection's requests in memory, in units of 1 KiB. Beyond it nothing more is read.
const REQUEST_KIB_MAX: usize = 128 << 10;
const _: () = assert!(REQUEST_KIB_MAX * 1024 >= frame::BULK_BYTES_MAX, "the largest request can be taken");

/// After the kernel refused a connection (out of file descriptors, say), before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Stream = TlsStream<BufReader<TcpStream>>;

/// Takes connections until the runtime ends.
pub async fn accept_all(net: Arc<NetShared>, listener: TcpListener) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection of another node could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&strangers).try_acquire_owned() else {
            tracing::debug!("too many connections of unknown callers at once: one is closed");
            continue;
        };
        let (net, connections) = (Arc::clone(&net), Arc::clone(&connections));
        let runtime = net.runtime.clone();
        runtime.spawn(crate::env::or_abort("cluster connection", async move {
            if let Err(error) = connection(&net, stream, permit, &connections).await {
                tracing::debug!(%error, "a connection of another node ended");
            }
        }));
    }
}

async fn connection(
    net: &Arc<NetShared>,
    stream: TcpStream,
    stranger: OwnedSemaphorePermit,
    connections: &AtomicUsize,
) -> io::Result<()> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the caller did not say who it is");
    let (mut stream, kind, head) = timeout(GREETING_MAX, greet(net, stream)).await.map_err(late)??;
    match kind {
        Kind::Join => {
            let admission = net.admission.get().ok_or_else(|| io::Error::other("this node admits nobody yet"))?;
            let admitting = with_pings(&mut stream, admission.admit(head));
            let answer = timeout(ADMISSION_MAX, admitting).await.map_err(late)??;
            timeout(GREETING_MAX, frame::write_greeting(&mut stream, Kind::JoinAnswer, answer)).await.map_err(late)?
        }
        Kind::Hello => {
            let admitted = member(net, &stream, head);
            let answer = match &admitted {
                Ok(caller) => HelloAnswer { bulk_plaintext: caller.plain, ..HelloAnswer::default() },
                Err(refused) => {
                    HelloAnswer { refused: refused.why.clone(), occupied: refused.occupied, ..HelloAnswer::default() }
                }
            };
            let answer = answer.encode_to_vec().into();
            timeout(GREETING_MAX, frame::write_greeting(&mut stream, Kind::HelloAnswer, answer))
                .await
                .map_err(late)??;
            let caller = admitted.map_err(|refused| io::Error::other(refused.why))?;
            drop(stranger);
            let _counted = Counted::new(connections)?;
            if !caller.plain {
                let (reader, writer) = tokio::io::split(stream);
                return Err(serve(net, &caller, reader, writer, None).await);
            }
            let (reader, writer, keys) = timeout(GREETING_MAX, leave_tls(stream)).await.map_err(late)??;
            Err(serve(net, &caller, reader, writer, Some(keys)).await)
        }
        other => Err(io::Error::other(format!("{other:?} is no greeting"))),
    }
}

/// The handshake and the caller's first frame.
async fn greet(net: &NetShared, stream: TcpStream) -> io::Result<(Stream, Kind, Bytes)> {
    let membership = net.membership.get().ok_or_else(|| io::Error::other("this node is no member of a cluster yet"))?;
    stream.set_nodelay(true)?;
    let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
    let mut stream = TlsAcceptor::from(Arc::clone(&membership.tls().server)).accept(stream).await?;
    stream.get_mut().1.set_buffer_limit(Some(SEAL_AHEAD_BYTES));
    let (kind, head) = frame::read_greeting(&mut stream).await?;
    Ok((stream, kind, head))
}

/// Ends TLS, as the caller was told; its first frame says that it has heard so.
async fn leave_tls(stream: Stream) -> io::Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf, Keys)> {
    let (stream, session) = stream.into_inner();
    let mut keys = Keys::of(&session, false)?;
    let (reader, writer) = super::only_this(stream)?.into_split();
    let mut reader = BufReader::with_capacity(READ_AHEAD_BYTES, reader);
    frame::read_first(&mut reader, &mut keys.opening).await?;
    Ok((reader, writer, keys))
}

/// Waits for `answer`, and lets the caller know meanwhile that it is not forgotten.
async fn with_pings(stream: &mut Stream, mut answer: BoxFuture<Bytes>) -> io::Result<Bytes> {
    loop {
        match timeout(frame::PING_INTERVAL, &mut answer).await {
            Ok(answer) => return Ok(answer),
            Err(_) => frame::write_greeting(stream, Kind::Ping, Bytes::new()).await?,
        }
    }
}

/// A member that calls. Counted as present until it is dropped.
struct Caller {
    net: Arc<NetShared>,
    node: NodeId,
    channel: Channel,
    /// Bulk bytes travel unencrypted: see [`super::seal`].
    plain: bool,
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.net.callers().leave(self.node);
    }
}

struct Refused {
    why: String,
    /// See [`HelloAnswer::occupied`].
    occupied: bool,
}

impl From<String> for Refused {
    fn from(why: String) -> Refused {
        Refused { why, occupied: false }
    }
}

/// Who calls, or why it may not.
fn member(net: &Arc<NetShared>, stream: &Stream, head: Bytes) -> Result<Caller, Refused> {
    let certificate: Option<&CertificateDer<'_>> = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let hello = Hello::decode(head).map_err(|error| format!("malformed greeting: {error}"))?;
    let node = NodeId(hello.node);
    if !certificate.is_some_and(|certificate| tls::is_of_node(certificate, node)) {
        return Err(format!("the caller's certificate is not that of node {node}").into());
    }
    let membership = net.membership.get().expect("without it there was no handshake");
    let refused = |why: String| {
        net.complain(node, &format!("node {node} was refused: {why}"));
        Refused::from(why)
    };
    if let Some(why) = hello.refusal(membership.club()) {
        return Err(refused(why));
    }
    if node == net.node {
        return Err(refused(format!(
            "another process calls itself node {node}: is its directory a copy of this node's?"
        )));
    }
    if net.is_expelled(node) {
        return Err(refused(format!("node {node} was removed from the cluster")));
    }
    let channel = hello.channel().ok_or_else(|| "an unknown channel".to_owned())?;
    net.callers().enter(node, hello.process).map_err(|why| Refused { occupied: true, ..refused(why) })?;
    net.heard_from(node, &hello.advertise);
    let plain = hello.bulk_plaintext && membership.may_be_plain(channel);
    Ok(Caller { net: Arc::clone(net), node, channel, plain })
}

/// Serves requests until the connection breaks; says why it did.
async fn serve(
    net: &Arc<NetShared>,
    caller: &Caller,
    mut reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin + Send + 'static,
    keys: Option<Keys>,
) -> io::Error {
    let (sealing, mut opening) = keys.map_or((None, None), |keys| (Some(keys.sealing), Some(keys.opening)));
    let service = Service {
        net: Arc::clone(net),
        from: caller.node,
        channel: caller.channel,
        outbox: Arc::default(),
        calls: Arc::new(Semaphore::new(CALLS_MAX)),
        request_kib: Arc::new(Semaphore::new(REQUEST_KIB_MAX)),
    };
    let expelled = async {
        net.expelled(caller.node).await;
        io::Error::other("the caller was removed from the cluster")
    };
    let outbox = Arc::clone(&service.outbox);
    let reading = service.read_loop(&mut reader, &mut opening);
    frame::converse(&net.runtime, reading, outbox, writer, sealing, expelled).await
}

struct Service {
    net: Arc<NetShared>,
    from: NodeId,
    channel: Channel,
    outbox: Arc<Outbox>,
    calls: Arc<Semaphore>,
    request_kib: Arc<Semaphore>,
}

impl Service {
    async fn read_loop(&self, reader: &mut (impl AsyncRead + Unpin), opening: &mut Option<Sealing>) -> io::Error {
        loop {
            if let Err(error) = self.read_one(reader, opening).await {
                return error;
            }
        }
    }

    async fn read_one(&self, reader: &mut (impl AsyncRead + Unpin), opening: &mut Option<Sealing>) -> io::Result<()> {
        let start = frame::read_start(reader, opening.as_mut()).await?;
        let header = start.header;
        let kib = header.bulk_len.div_ceil(1024);
        let memory = Arc::clone(&self.request_kib).acquire_many_owned(kib).await;
        let memory = memory.expect("the semaphore is never closed");
        let body = frame::read_rest(reader, start, &self.net.buffers).await?;
        match header.kind {
            Kind::Request | Kind::OneWay => {}
            Kind::Ping => return Ok(()),
            other => return Err(io::Error::other(format!("{other:?} is no request"))),
        }
        let place = Arc::clone(&self.calls).try_acquire_owned();
        let (Some(handler), Ok(place)) = (self.net.handler.get(), place) else {
            return self.do_not_take(header);
        };
        let handling = handler.handle(self.from, self.channel, body);
        let outbox = Arc::clone(&self.outbox);
        // In a task of its own: a caller that gives up does not stop the work.
        self.net.runtime.spawn(crate::env::or_abort("request of a node", async move {
            let answer = handling.await;
            drop(memory);
            if header.kind == Kind::Request {
                if !frame::fits(&answer) {
                    // The caller's deadline tells it that the outcome is unknown.
                    tracing::error!(head_bytes = answer.head.len(), "an answer is too long to be sent");
                    return;
                }
                outbox.push(Message { kind: Kind::Answer, id: header.id, frame: answer, _held: Some(place) });
            }
        }));
        Ok(())
    }

    fn do_not_take(&self, header: Header) -> io::Result<()> {
        let refusal = Message { kind: Kind::NotTaken, id: header.id, frame: Default::default(), _held: None };
        if header.kind == Kind::Request && !self.outbox.offer(refusal) {
            return Err(io::Error::other("the caller asks and does not read"));
        }
        Ok(())
    }
}

/// One of `CONNECTIONS_MAX`.
struct Counted<'a>(&'a AtomicUsize);

impl Counted<'_> {
    fn new(connections: &AtomicUsize) -> io::Result<Counted<'_>> {
        let counted = Counted(connections);
        if connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            return Err(io::Error::other("too many connections"));
        }
        Ok(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
