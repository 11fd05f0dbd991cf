//! Accepts HTTP/1.1 connections, plain or over TLS, for any service: bounded in number, in headers and in how long a
//! client may take to send them; and lets them finish when the node stops.

use gateway_s3::Peer;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::failure::{Context, Failure};
use crate::paced::Paced;
use crate::predecessor;

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;

/// Of these, those from one address: nobody takes them all.
const CONNECTIONS_OF_ADDRESS_MAX: usize = CONNECTIONS_MAX / 4 * 3;

/// Connections that wait in the kernel's queue.
const BACKLOG: u32 = 1024;

/// How long a client may take to finish a TLS handshake, and to send the headers of a request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Read buffer of a connection, and with it the most bytes that the headers of a request may have.
const BUFFER_BYTES_MAX: usize = 256 << 10;

/// How long requests may go on after the node was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// After the kernel refused a connection (out of file descriptors, say), before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds `address`. `flag` is what the operator can change.
pub async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, Failure> {
    let bound = predecessor::retry(io::ErrorKind::AddrInUse, || {
        let socket = new_socket(address)?;
        // Connections of the process before may linger; nobody else listens when this succeeds.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    });
    bound.await.map_err(|error| bind_failure(address, flag, &error))
}

fn new_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

fn bind_failure(address: SocketAddr, flag: &str, error: &io::Error) -> Failure {
    Failure(match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{address} is in use by another program, perhaps another henge; choose another address with {flag}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("listening on {address} is not permitted; choose a port from 1024 on with {flag}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{address} is no address of this machine; choose another with {flag}")
        }
        _ => format!("cannot listen on {address}: {error}; choose another address with {flag}"),
    })
}

/// The certificate chain and key of `--tls-cert` and `--tls-key`.
pub fn tls_acceptor(certificate: &std::path::Path, key: &std::path::Path) -> Result<TlsAcceptor, Failure> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .context(|| format!("--tls-cert {} is not a readable PEM certificate chain", certificate.display()))?;
    let key_der = PrivateKeyDer::from_pem_file(key)
        .context(|| format!("--tls-key {} is not a readable PEM private key", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context(|| "TLS cannot be set up".into())?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .context(|| format!("{} and {} cannot be used together", certificate.display(), key.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until `stop` turns true, then until running requests have ended, at most `DRAIN_TIMEOUT` more.
pub async fn serve<S, B>(listener: TcpListener, tls: Option<TlsAcceptor>, service: S, mut stop: watch::Receiver<bool>)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let shares = Shares::new(CONNECTIONS_OF_ADDRESS_MAX);
    loop {
        let permit = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            permit = Arc::clone(&permits).acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let Some(share) = shares.take(address.ip()) else {
                    tracing::debug!(%address, "an address has too many connections: a new one is closed");
                    continue;
                };
                let peer = Peer { address: Some(address.ip()), secure: tls.is_some() };
                let service = Introduced { service: service.clone(), peer };
                tokio::spawn(connection(stream, tls.clone(), service, stop.clone(), (permit, share)));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = u32::try_from(CONNECTIONS_MAX).expect("CONNECTIONS_MAX is small");
    if tokio::time::timeout(DRAIN_TIMEOUT, permits.acquire_many(all)).await.is_err() {
        tracing::warn!("some requests did not end in time and are cut off");
    }
}

/// A service whose requests know from which connection they come.
#[derive(Clone)]
struct Introduced<S> {
    service: S,
    peer: Peer,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Introduced<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<Incoming>) -> S::Future {
        request.extensions_mut().insert(self.peer);
        self.service.call(request)
    }
}

async fn connection<S, B>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    service: S,
    stop: watch::Receiver<bool>,
    places: (OwnedSemaphorePermit, Share),
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    // Without it, small answers wait up to 40 ms for the client's acknowledgement of the segment before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    match tls {
        None => requests(stream, service, stop).await,
        Some(acceptor) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => requests(stream, service, stop).await,
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake took too long"),
        },
    }
    drop(places);
}

/// How many connections each address has.
#[derive(Clone)]
struct Shares {
    taken: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    max: usize,
}

/// A connection's share of what its address may have; given back when it is dropped.
struct Share {
    shares: Shares,
    address: IpAddr,
}

impl Shares {
    fn new(max: usize) -> Shares {
        Shares { taken: Arc::default(), max }
    }

    /// `None`: the address has its share already.
    fn take(&self, address: IpAddr) -> Option<Share> {
        let address = Peer::sender(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_insert(0);
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), address })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

async fn requests<S, B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: S,
    mut stop: watch::Receiver<bool>,
) where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(Paced::new(stream)), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        biased;
        outcome = &mut connection => outcome,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Returns once the node was told to stop (or nobody is left who could tell).
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";

    #[tokio::test]
    async fn a_request_that_runs_when_the_node_stops_gets_its_answer() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--s3").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrived, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let signals = (Arc::clone(&arrived), Arc::clone(&go_on));
        let service = hyper::service::service_fn(move |_request: Request<Incoming>| {
            let (arrived, go_on) = signals.clone();
            async move {
                arrived.notify_one();
                go_on.notified().await;
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"done"))))
            }
        });
        let (stop, stopping) = watch::channel(false);
        let serving = tokio::spawn(serve(listener, None, service, stopping));
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut busy = TcpStream::connect(address).await.unwrap();
        busy.write_all(REQUEST).await.unwrap();
        arrived.notified().await;
        stop.send_replace(true);
        let mut nothing = Vec::new();
        idle.read_to_end(&mut nothing).await.unwrap();
        assert!(nothing.is_empty(), "an idle connection is closed");
        assert!(!serving.is_finished(), "a running request is waited for");
        go_on.notify_one();
        let mut answer = Vec::new();
        busy.read_to_end(&mut answer).await.unwrap();
        assert!(answer.ends_with(b"done"), "{}", String::from_utf8_lossy(&answer));
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }

    #[test]
    fn no_address_takes_all_connections() {
        let shares = Shares::new(2);
        let of = |text: &str| shares.take(text.parse().unwrap());
        let held = [of("10.0.0.1").unwrap(), of("::ffff:10.0.0.1").unwrap()];
        assert!(of("10.0.0.1").is_none());
        let others = [of("10.0.0.2"), of("2001:db8::1"), of("2001:db8::ffff:2"), of("2001:db8:0:1::1")];
        assert!(others.iter().all(Option::is_some));
        assert!(of("2001:db8::3").is_none(), "the same network of 64 bits");
        drop(held);
        assert!(of("10.0.0.1").is_some());
        drop(others);
        assert!(shares.taken.lock().unwrap().is_empty(), "nothing is kept of those who left");
    }

    #[tokio::test]
    async fn headers_without_bound_are_refused() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--s3").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = hyper::service::service_fn(|_request: Request<Incoming>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"done"))))
        });
        let (_stop, stopping) = watch::channel(false);
        tokio::spawn(serve(listener, None, service, stopping));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\nX-Long: ").await.unwrap();
        // The server may close before all is sent.
        let _ = stream.write_all(&vec![b'a'; 2 * BUFFER_BYTES_MAX]).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }

    #[tokio::test]
    async fn ports_that_are_taken_are_named_with_their_flag() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--s3").await.unwrap();
        let address = listener.local_addr().unwrap();
        let refused = bind(address, "--admin").await.map(drop).unwrap_err().0;
        assert!(refused.contains(&address.to_string()) && refused.contains("--admin"), "{refused}");
    }
}
