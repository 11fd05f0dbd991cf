//! Real sockets and real TLS between several networks in one process.

use super::hello::{Club, Hello, HelloAnswer};
use super::tls::{Authority, CERTIFICATE_LIFE};
use super::*;
use crate::env::conformance::{self, Echo};
use crate::env::real_env;
use base::Env;
use base::buffer::is_aligned;
use prost::Message as _;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CLUB: Club = Club { cluster: ClusterId(7), generation: 1 };

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// A node on a runtime of its own: dropped, it is gone with all its connections, as a process that is killed.
struct TestNode {
    env: Env,
    net: Arc<RealNet>,
    address: String,
    runtime: Option<tokio::runtime::Runtime>,
}

impl TestNode {
    fn start(node: u32, authority: &Authority) -> TestNode {
        TestNode::start_as(node, CLUB, authority.issue(NodeId(node), CERTIFICATE_LIFE, now()).unwrap())
    }

    fn start_as(node: u32, club: Club, tls: NodeTls) -> TestNode {
        TestNode::start_with(node, club, tls, false)
    }

    fn start_with(node: u32, club: Club, tls: NodeTls, bulk_plaintext: bool) -> TestNode {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (env, net) = real_env(NodeId(node), runtime.handle().clone(), Arc::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let _in_runtime = runtime.enter();
        net.enter(club, tls, TcpListener::from_std(listener).unwrap(), address.clone(), bulk_plaintext);
        drop(_in_runtime);
        TestNode { env, net, address, runtime: Some(runtime) }
    }

    fn serving(self) -> TestNode {
        self.net.serve(Arc::new(Echo::new(self.net.shared.node)));
        self
    }

    fn knows(&self, other: &TestNode) {
        self.net.learn_peers(&[(other.net.shared.node, other.address.clone())]);
    }

    async fn call(&self, to: u32, frame: Frame) -> Result<Frame, NetError> {
        self.call_over(Channel::Control, to, frame).await
    }

    async fn call_over(&self, channel: Channel, to: u32, frame: Frame) -> Result<Frame, NetError> {
        let deadline = self.env.now() + Duration::from_secs(60);
        self.net.call(NodeId(to), channel, frame, deadline).await
    }

    /// Calls until the outcome is `wanted`: after a failure, a link rests for a moment.
    async fn call_until(&self, to: u32, wanted: Result<(), NetError>) {
        loop {
            let outcome = self.call(to, hello_frame()).await.map(drop);
            if outcome == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.runtime.take().expect("taken here only").shutdown_background();
    }
}

fn hello_frame() -> Frame {
    Frame { head: Bytes::from_static(b"hello"), bulk: vec![] }
}

#[tokio::test]
async fn keeps_the_contract_of_net() {
    let authority = Authority::make().unwrap();
    let (near, far) = (TestNode::start(1, &authority), TestNode::start(2, &authority));
    near.knows(&far);
    far.knows(&near);
    conformance::check_net(&near.env, NodeId(1), &far.env, NodeId(2), NodeId(3)).await;
}

#[tokio::test]
async fn calls_fail_at_once_when_the_peer_dies_and_succeed_when_it_is_back_elsewhere() {
    let authority = Authority::make().unwrap();
    let near = TestNode::start(1, &authority).serving();
    let far = TestNode::start(2, &authority).serving();
    near.knows(&far);
    near.call_until(2, Ok(())).await;
    // An empty head is never answered.
    let mut waiting = Box::pin(near.call(2, Frame::default()));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    near.call_until(2, Ok(())).await;
    drop(far);
    assert_eq!(waiting.await, Err(NetError::Broken));
    near.call_until(2, Err(NetError::NotSent)).await;
    let again = TestNode::start(2, &authority).serving();
    near.knows(&again);
    near.call_until(2, Ok(())).await;
    near.net.learn_peers(&[(NodeId(2), String::new())]);
    near.call_until(2, Err(NetError::NotSent)).await;
}

#[tokio::test]
async fn the_end_of_a_process_is_told_and_a_broken_connection_alone_is_not() {
    struct Listening(tokio::sync::mpsc::UnboundedSender<NodeId>);
    impl Handler for Listening {
        fn handle(&self, _: NodeId, _: Channel, request: Frame) -> BoxFuture<Frame> {
            Box::pin(async move { request })
        }
        fn ended(&self, node: NodeId) {
            let _ = self.0.send(node);
        }
    }
    let authority = Authority::make().unwrap();
    let near = TestNode::start(1, &authority);
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
    near.net.serve(Arc::new(Listening(sender)));
    let (far, other) = (TestNode::start(2, &authority).serving(), TestNode::start(3, &authority).serving());
    near.knows(&far);
    near.knows(&other);
    near.call_until(2, Ok(())).await;
    near.call_until(3, Ok(())).await;
    // The other one breaks the connection, and goes on listening.
    other.net.expel(&BTreeSet::from([NodeId(1)]));
    near.call_until(3, Err(NetError::NotSent)).await;
    drop(far);
    assert_eq!(told.recv().await, Some(NodeId(2)));
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn who_has_moved_is_found_as_soon_as_it_calls() {
    let authority = Authority::make().unwrap();
    let near = TestNode::start(1, &authority).serving();
    let far = TestNode::start(2, &authority).serving();
    near.knows(&far);
    near.call_until(2, Ok(())).await;
    let old_address = far.address.clone();
    drop(far);
    near.call_until(2, Err(NetError::NotSent)).await;
    let moved = TestNode::start(2, &authority).serving();
    moved.knows(&near);
    moved.call_until(1, Ok(())).await;
    // The map still says the old address, again and again.
    near.net.learn_peers(&[(NodeId(2), old_address)]);
    near.call_until(2, Ok(())).await;
}

#[tokio::test]
async fn a_peer_that_falls_silent_breaks_the_connection() {
    let authority = Authority::make().unwrap();
    let (near, far) = (TestNode::start(1, &authority), TestNode::start(2, &authority).serving());
    // Between the two, a relay that can stop passing things on without closing anything.
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    near.net.learn_peers(&[(NodeId(2), relay.local_addr().unwrap().to_string())]);
    let far_address = far.address.clone();
    let (mute, mut muted) = watch::channel(false);
    tokio::spawn(async move {
        let (mut a, _) = relay.accept().await.unwrap();
        let mut b = TcpStream::connect(far_address).await.unwrap();
        tokio::select! {
            biased;
            _ = async { muted.wait_for(|muted| *muted).await.map(drop) } => {}
            _ = tokio::io::copy_bidirectional(&mut a, &mut b) => {}
        }
        std::future::pending::<()>().await;
    });
    near.call_until(2, Ok(())).await;
    mute.send_replace(true);
    assert_eq!(near.call(2, hello_frame()).await, Err(NetError::Broken));
}

#[tokio::test]
async fn keeps_the_contract_of_net_with_bulk_in_the_clear() {
    let authority = Authority::make().unwrap();
    let start =
        |node| TestNode::start_with(node, CLUB, authority.issue(NodeId(node), CERTIFICATE_LIFE, now()).unwrap(), true);
    let (near, far) = (start(1), start(2));
    near.knows(&far);
    far.knows(&near);
    conformance::check_net(&near.env, NodeId(1), &far.env, NodeId(2), NodeId(3)).await;
    let piece = Bytes::from((0..frame::BULK_BYTES_MAX / 2).map(|at| (at % 251) as u8).collect::<Vec<u8>>());
    for channel in [Channel::Bulk, Channel::Repair] {
        for len in [0, 1, 4096, piece.len()] {
            let bulk = vec![piece.slice(..len), piece.slice(len / 2..)];
            let asked = Frame { head: vec![9; len.min(100_000) + 1].into(), bulk };
            let answer = near.call_over(channel, 2, asked.clone()).await.unwrap();
            assert!(answer.head == asked.head && answer.bulk.concat() == asked.bulk.concat());
        }
    }
}

/// What a listener on the wire sees of one call over `channel`, and of the answer: head, bulk bytes.
async fn overheard(channel: Channel, near_plain: bool, far_plain: bool) -> (bool, bool) {
    let authority = Authority::make().unwrap();
    let start = |node, plain| {
        TestNode::start_with(node, CLUB, authority.issue(NodeId(node), CERTIFICATE_LIFE, now()).unwrap(), plain)
    };
    let (near, far) = (start(1, near_plain), start(2, far_plain).serving());
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    near.net.learn_peers(&[(NodeId(2), relay.local_addr().unwrap().to_string())]);
    let far_address = far.address.clone();
    let heard = Arc::new(Mutex::new([Vec::new(), Vec::new()]));
    let tape = Arc::clone(&heard);
    tokio::spawn(async move {
        let (a, _) = relay.accept().await.unwrap();
        let b = TcpStream::connect(far_address).await.unwrap();
        let ((mut from_a, mut to_a), (mut from_b, mut to_b)) = (a.into_split(), b.into_split());
        let (there, back) = (Arc::clone(&tape), tape);
        tokio::join!(pass_on(&mut from_a, &mut to_b, 0, &there), pass_on(&mut from_b, &mut to_a, 1, &back));
    });
    let asked =
        Frame { head: Bytes::from_static(b"what is said"), bulk: vec![Bytes::from(b"what is stored ".repeat(10_000))] };
    let answer = near.call_over(channel, 2, asked.clone()).await.unwrap();
    assert!(answer.bulk.concat() == asked.bulk.concat());
    let heard = heard.lock().unwrap();
    let seen = |what: &[u8]| heard.each_ref().map(|bytes| bytes.windows(what.len()).any(|window| window == what));
    let (head, bulk) = (seen(b"what is said"), seen(b"what is stored"));
    assert_eq!(bulk[0], bulk[1], "both ways alike");
    (head[0] || head[1], bulk[0])
}

async fn pass_on(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    way: usize,
    tape: &Mutex<[Vec<u8>; 2]>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        tape.lock().unwrap()[way].extend_from_slice(&buffer[..len]);
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn only_bulk_between_two_that_both_allow_it_can_be_overheard() {
    for channel in [Channel::Bulk, Channel::Repair] {
        assert_eq!(overheard(channel, true, true).await, (false, true), "{channel:?}");
        assert_eq!(overheard(channel, true, false).await, (false, false), "{channel:?}");
        assert_eq!(overheard(channel, false, true).await, (false, false), "{channel:?}");
    }
    for channel in [Channel::Control, Channel::Raft] {
        assert_eq!(overheard(channel, true, true).await, (false, false), "{channel:?}");
    }
}

#[tokio::test]
async fn large_bulk_arrives_in_aligned_memory_and_what_is_too_large_is_not_sent() {
    let authority = Authority::make().unwrap();
    let (near, far) = (TestNode::start(1, &authority), TestNode::start(2, &authority).serving());
    near.knows(&far);
    let piece = Bytes::from(vec![5; frame::BULK_BYTES_MAX / 2]);
    let largest = Frame { head: Bytes::from_static(b"x"), bulk: vec![piece.clone(), piece.clone()] };
    let answer = near.call(2, largest).await.unwrap();
    assert_eq!(answer.bulk.len(), 1);
    assert!(is_aligned(&answer.bulk[0]) && answer.bulk[0].iter().all(|byte| *byte == 5));
    let above = vec![piece.clone(), piece, Bytes::from_static(b"!")];
    for frame in [
        Frame { head: vec![0; frame::HEAD_BYTES_MAX + 1].into(), bulk: vec![] },
        Frame { head: Bytes::from_static(b"x"), bulk: above },
    ] {
        assert_eq!(near.call(2, frame).await, Err(NetError::NotSent));
    }
    assert!(near.call(2, hello_frame()).await.is_ok());
}

#[tokio::test]
async fn strangers_get_nowhere() {
    let authority = Authority::make().unwrap();
    let far = TestNode::start(2, &authority).serving();
    let issue = |authority: &Authority, node| authority.issue(NodeId(node), CERTIFICATE_LIFE, now()).unwrap();
    let other_authority = Authority::make().unwrap();
    for (what, stranger) in [
        ("another authority", TestNode::start(1, &other_authority)),
        ("another cluster", TestNode::start_as(1, Club { cluster: ClusterId(8), ..CLUB }, issue(&authority, 1))),
        ("another generation", TestNode::start_as(1, Club { generation: 2, ..CLUB }, issue(&authority, 1))),
        ("another's certificate", TestNode::start_as(1, CLUB, issue(&authority, 3))),
        (
            "an expired certificate",
            TestNode::start_as(1, CLUB, authority.issue(NodeId(1), Duration::ZERO, now() / 2).unwrap()),
        ),
    ] {
        stranger.knows(&far);
        assert_eq!(stranger.call(2, hello_frame()).await, Err(NetError::NotSent), "{what}");
    }
    // A peer at the address of another is noticed, too.
    let near = TestNode::start(1, &authority);
    near.net.learn_peers(&[(NodeId(3), far.address.clone())]);
    assert_eq!(near.call(3, hello_frame()).await, Err(NetError::NotSent));
    // Noise on the port.
    let mut noise = TcpStream::connect(&far.address).await.unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = noise.read_to_end(&mut Vec::new()).await;
    near.knows(&far);
    assert!(near.call(2, hello_frame()).await.is_ok());
}

#[tokio::test]
async fn without_a_certificate_a_greeting_is_refused_and_a_join_reaches_admission() {
    struct Welcome;
    impl Admission for Welcome {
        fn admit(&self, request: Bytes) -> BoxFuture<Bytes> {
            Box::pin(async move { [b"so you ask ", &request[..]].concat().into() })
        }
    }
    let authority = Authority::make().unwrap();
    let far = TestNode::start(2, &authority).serving();
    far.net.admit_by(Arc::new(Welcome));
    let fingerprint = authority.fingerprint().unwrap();
    let connect = || async {
        let stream = TcpStream::connect(&far.address).await.unwrap();
        tls::connector_by_fingerprint(fingerprint).0.connect(tls::server_name(NodeId(2)), stream).await.unwrap()
    };
    let mut stream = connect().await;
    let hello = Hello::new(CLUB, NodeId(1), Channel::Control, 5, "");
    frame::write_greeting(&mut stream, frame::Kind::Hello, hello.to_bytes()).await.unwrap();
    let (_, head) = frame::read_greeting(&mut stream).await.unwrap();
    let refused = HelloAnswer::decode(head).unwrap().refused;
    assert!(refused.contains("certificate"), "{refused}");
    assert!(frame::read_greeting(&mut stream).await.is_err(), "the connection is closed");

    let mut stream = connect().await;
    frame::write_greeting(&mut stream, frame::Kind::Join, Bytes::from_static(b"me")).await.unwrap();
    let answer = frame::read_greeting(&mut stream).await.unwrap();
    assert_eq!(answer, (frame::Kind::JoinAnswer, Bytes::from_static(b"so you ask me")));
    // Nothing else may be asked before a greeting.
    let mut stream = connect().await;
    frame::write_greeting(&mut stream, frame::Kind::Request, Bytes::new()).await.unwrap();
    assert!(frame::read_greeting(&mut stream).await.is_err());
}

#[tokio::test]
async fn one_who_knows_only_the_fingerprint_notices_another_authority() {
    let authority = Authority::make().unwrap();
    let far = TestNode::start(2, &authority);
    let stream = TcpStream::connect(&far.address).await.unwrap();
    let (connector, mismatch) = tls::connector_by_fingerprint([1; 32]);
    assert!(connector.connect(tls::server_name(NodeId(2)), stream).await.is_err());
    assert!(mismatch.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_copy_of_a_node_is_refused_while_the_original_is_connected() {
    let authority = Authority::make().unwrap();
    let far = TestNode::start(2, &authority).serving();
    let (original, copy) = (TestNode::start(1, &authority), TestNode::start(1, &authority));
    original.knows(&far);
    copy.knows(&far);
    original.call_until(2, Ok(())).await;
    assert_eq!(copy.call(2, hello_frame()).await, Err(NetError::NotSent));
    drop(original);
    copy.call_until(2, Ok(())).await;
    // To itself it does not talk at all, not even over the network.
    let twin = TestNode::start(1, &authority).serving();
    twin.net.shared.membership.get().unwrap();
    let link = Link::start(&copy.net.shared, NodeId(1), Channel::Control, twin.address.clone());
    assert!(link.call(hello_frame()).ok().unwrap().answer().await.is_err());
}

#[tokio::test]
async fn the_removed_are_cut_off_and_stay_out() {
    let authority = Authority::make().unwrap();
    let (near, far) = (TestNode::start(1, &authority), TestNode::start(2, &authority).serving());
    near.knows(&far);
    near.call_until(2, Ok(())).await;
    let mut waiting = Box::pin(near.call(2, Frame::default()));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    far.net.expel(&BTreeSet::from([NodeId(1)]));
    assert!(waiting.await.is_err());
    near.call_until(2, Err(NetError::NotSent)).await;
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let authority = Authority::make().unwrap();
    let far = TestNode::start(2, &authority).serving();
    let expired = authority.issue(NodeId(1), Duration::ZERO, now() / 2).unwrap();
    let near = TestNode::start_as(1, CLUB, expired);
    near.net.serve(Arc::new(Echo::new(NodeId(1))));
    near.knows(&far);
    far.knows(&near);
    assert_eq!(near.call(2, hello_frame()).await, Err(NetError::NotSent));
    assert_eq!(far.call(1, hello_frame()).await, Err(NetError::NotSent));
    near.net.renew_tls(authority.issue(NodeId(1), CERTIFICATE_LIFE, now()).unwrap());
    near.call_until(2, Ok(())).await;
    far.call_until(1, Ok(())).await;
}

#[test]
fn of_two_processes_of_one_name_only_the_one_that_nobody_takes_in_ends() {
    let (mut rivalry, start) = (super::Rivalry::default(), std::time::Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    assert!(!rivalry.is_over(at(0)));
    assert!(!rivalry.is_over(at(9)), "the other may have just died");
    rivalry.welcomed();
    assert!(!rivalry.is_over(at(12)), "somebody takes it in");
    rivalry.parted();
    assert!(!rivalry.is_over(at(13)), "that counts from here");
    assert!(!rivalry.is_over(at(22)));
    assert!(rivalry.is_over(at(24)));
    assert!(!rivalry.is_over(at(60)), "long ago is not all the time since");
}
