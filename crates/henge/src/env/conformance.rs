//! The contracts of `Disk` and `File` and of `Net` as checks that every implementation passes, the real and the
//! simulated one.

use base::Env;
use base::buffer::{AlignedBuf, BLOCK};
use base::env::{
    BoxFuture, Caching, Channel, Disk, Flush, Frame, Handler, NetError, OpenMode, read_file, replace_file,
};
use base::ids::NodeId;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

const DIRECT: Caching = Caching::Direct;
const BUFFERED: Caching = Caching::Buffered;

/// Checks an empty `disk`, and leaves files behind.
pub async fn check(disk: Arc<dyn Disk>) {
    names_and_modes(&*disk);
    whole_blocks(&*disk).await;
    scattered_pieces(&*disk).await;
    buffered_bytes(&*disk).await;
    many_at_once(&*disk).await;
    small_files(&*disk).await;
    lock_and_space(&*disk);
}

fn names_and_modes(disk: &dyn Disk) {
    assert_eq!(disk.list().unwrap(), []);
    let missing = disk.open("b", OpenMode::Existing, DIRECT).err().map(|e| e.kind());
    assert_eq!(missing, Some(io::ErrorKind::NotFound));
    let file = disk.open("b", OpenMode::CreateNew, DIRECT).unwrap();
    let taken = disk.open("b", OpenMode::CreateNew, BUFFERED).err().map(|e| e.kind());
    assert_eq!(taken, Some(io::ErrorKind::AlreadyExists));
    file.set_size(3 * BLOCK as u64).unwrap();
    disk.open("a", OpenMode::CreateNew, BUFFERED).unwrap();
    let listed: Vec<(String, u64)> = disk.list().unwrap().into_iter().map(|e| (e.name, e.size_bytes)).collect();
    assert_eq!(listed, [("a".to_owned(), 0), ("b".to_owned(), 3 * BLOCK as u64)]);

    disk.rename("b", "a").unwrap();
    assert_eq!(disk.list().unwrap().len(), 1);
    assert_eq!(disk.open("a", OpenMode::Existing, DIRECT).unwrap().size_bytes().unwrap(), 3 * BLOCK as u64);
    assert_eq!(disk.rename("b", "c").map_err(|e| e.kind()), Err(io::ErrorKind::NotFound));
    assert_eq!(disk.remove("b").map_err(|e| e.kind()), Err(io::ErrorKind::NotFound));
    disk.remove("a").unwrap();
    disk.flush_directory().unwrap();
    assert_eq!(disk.list().unwrap(), []);
    // An open file outlives its name.
    assert_eq!(file.size_bytes().unwrap(), 3 * BLOCK as u64);
}

async fn whole_blocks(disk: &dyn Disk) {
    let file = disk.open("blocks", OpenMode::CreateNew, DIRECT).unwrap();
    assert_eq!(file.read_at(0, BLOCK).await.unwrap(), Bytes::new(), "nothing is there yet");
    let mut buffer = AlignedBuf::zeroed(2 * BLOCK);
    buffer.as_mut_slice().fill(7);
    let aligned = buffer.freeze();
    file.write_at(BLOCK as u64, vec![aligned.clone()], Flush::Yes).await.unwrap();
    assert_eq!(file.size_bytes().unwrap(), 3 * BLOCK as u64);
    assert_eq!(file.read_at(0, BLOCK).await.unwrap(), vec![0; BLOCK], "a hole reads as zeroes");
    assert_eq!(file.read_at(BLOCK as u64, 2 * BLOCK).await.unwrap(), aligned);
    assert_eq!(file.read_now(2 * BLOCK as u64, 8 * BLOCK).unwrap(), aligned[BLOCK..], "short only at the end");
    assert_eq!(file.read_now(64 * BLOCK as u64, BLOCK).unwrap(), Bytes::new(), "nothing behind the end");
    file.set_size(2 * BLOCK as u64).unwrap();
    file.set_size(3 * BLOCK as u64).unwrap();
    file.flush().await.unwrap();
    assert_eq!(file.read_at(2 * BLOCK as u64, BLOCK).await.unwrap(), vec![0; BLOCK], "what was cut is gone");
    assert_eq!(file.read_at(BLOCK as u64, BLOCK).await.unwrap(), aligned[..BLOCK]);
    file.reserve(2 * BLOCK as u64).await.unwrap();
    file.reserve(64 * BLOCK as u64).await.unwrap();
    assert_eq!(file.read_at(BLOCK as u64, BLOCK).await.unwrap(), aligned[..BLOCK], "what is there stays");
    let behind = file.read_at(3 * BLOCK as u64, BLOCK).await.unwrap();
    assert!(behind.iter().all(|byte| *byte == 0), "what was never written is zeroes, or behind the end");
    file.write_at(8 * BLOCK as u64, vec![aligned.clone()], Flush::Yes).await.unwrap();
    assert_eq!(file.read_at(8 * BLOCK as u64, 2 * BLOCK).await.unwrap(), aligned);
}

async fn scattered_pieces(disk: &dyn Disk) {
    let file = disk.open("pieces", OpenMode::CreateNew, DIRECT).unwrap();
    let mut buffer = AlignedBuf::zeroed(4 * BLOCK);
    buffer.as_mut_slice().iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 251) as u8);
    let all = buffer.freeze();
    // Misaligned, odd, empty and aligned memory, 3 blocks in sum.
    let pieces = vec![
        all.slice(0..BLOCK),
        all.slice(BLOCK..BLOCK + 10),
        Bytes::new(),
        all.slice(BLOCK + 10..2 * BLOCK),
        all.slice(2 * BLOCK..3 * BLOCK),
    ];
    file.write_at(0, pieces, Flush::Yes).await.unwrap();
    assert_eq!(file.read_at(0, 3 * BLOCK).await.unwrap(), all[..3 * BLOCK]);
    // More pieces than one system call takes.
    let many: Vec<Bytes> = all.chunks(16).map(Bytes::copy_from_slice).cycle().take(3 * 1024).collect();
    let expected = many.concat();
    assert_eq!(expected.len() % BLOCK, 0);
    file.write_at(4 * BLOCK as u64, many, Flush::No).await.unwrap();
    assert_eq!(file.read_at(4 * BLOCK as u64, expected.len()).await.unwrap(), expected);
}

async fn buffered_bytes(disk: &dyn Disk) {
    let file = disk.open("bytes", OpenMode::CreateNew, BUFFERED).unwrap();
    let many: Vec<Bytes> = (0..3000u32).map(|i| Bytes::copy_from_slice(&i.to_le_bytes()[..3])).collect();
    let expected = many.concat();
    file.write_at(5, many, Flush::Yes).await.unwrap();
    assert_eq!(file.read_at(0, 5).await.unwrap(), vec![0; 5]);
    assert_eq!(file.read_at(5, 100_000).await.unwrap(), expected);
    assert_eq!(file.read_now(6, 3).unwrap(), expected[1..4]);
    file.write_at(0, vec![], Flush::Yes).await.unwrap();
    assert_eq!(file.size_bytes().unwrap(), 5 + expected.len() as u64);
}

async fn many_at_once(disk: &dyn Disk) {
    let file = disk.open("many", OpenMode::CreateNew, DIRECT).unwrap();
    let block = |i: u8| {
        let mut buffer = AlignedBuf::zeroed(BLOCK);
        buffer.as_mut_slice().fill(i);
        buffer.freeze()
    };
    let writes: Vec<_> =
        (0..=255).map(|i| file.write_at(u64::from(i) * BLOCK as u64, vec![block(i)], Flush::No)).collect();
    let mut writes = writes.into_iter();
    // A dropped future does not cancel its operation; what was awaited is done when the flush begins.
    drop(writes.next());
    for write in writes {
        write.await.unwrap();
    }
    file.flush().await.unwrap();
    for i in 1..=255 {
        assert_eq!(file.read_at(u64::from(i) * BLOCK as u64, BLOCK).await.unwrap(), block(i));
    }
    while file.read_at(0, BLOCK).await.unwrap() != block(0) {}
}

async fn small_files(disk: &dyn Disk) {
    assert_eq!(read_file(disk, "identity", 100).await.unwrap(), None);
    for contents in [&b"first"[..], b"", b"second, longer"] {
        replace_file(disk, "identity", Bytes::copy_from_slice(contents)).await.unwrap();
        assert_eq!(read_file(disk, "identity", 100).await.unwrap(), Some(Bytes::copy_from_slice(contents)));
    }
    assert!(read_file(disk, "identity", 3).await.is_err());
    assert!(disk.list().unwrap().iter().all(|entry| entry.name != "identity.new"));
}

fn lock_and_space(disk: &dyn Disk) {
    let before = disk.list().unwrap();
    let guard = disk.lock().unwrap();
    assert_eq!(disk.lock().err().map(|e| e.kind()), Some(io::ErrorKind::WouldBlock));
    drop(guard);
    drop(disk.lock().unwrap());
    assert_eq!(disk.list().unwrap(), before, "the lock is no file of the engine's");
    let space = disk.space().unwrap();
    assert!(space.total_bytes > 0 && space.available_bytes <= space.total_bytes);
    assert!(!disk.describe().is_empty());
}

/// Answers with what it got; not at all when the head is empty. Says when a message of one `!` came.
pub struct Echo {
    node: NodeId,
    marked: Arc<Notify>,
}

impl Echo {
    pub fn new(node: NodeId) -> Echo {
        Echo { node, marked: Arc::default() }
    }
}

impl Handler for Echo {
    fn handle(&self, from: NodeId, channel: Channel, request: Frame) -> BoxFuture<Frame> {
        if request.head.as_ref() == b"!" {
            self.marked.notify_one();
        }
        let answered = format!("{} {channel:?} {}", from.0, self.node.0).into_bytes();
        Box::pin(async move {
            match request.head.as_ref() {
                b"" => std::future::pending().await,
                b"who" => Frame { head: answered.into(), bulk: vec![] },
                _ => request,
            }
        })
    }
}

/// Checks two networks that know each other and have no handlers yet. `nobody` is known to neither.
pub async fn check_net(env: &Env, near: NodeId, far_env: &Env, far: NodeId, nobody: NodeId) {
    let net = &env.net;
    let soon = || env.now() + Duration::from_secs(60);
    let frame =
        Frame { head: Bytes::from_static(b"hello"), bulk: vec![Bytes::from_static(b"bu"), Bytes::from_static(b"lk")] };
    for to in [near, far, nobody] {
        let outcome = net.call(to, Channel::Control, frame.clone(), soon()).await;
        assert_eq!(outcome, Err(NetError::NotSent), "{to} has no handler");
    }
    let (here, there) = (Echo::new(near), Echo::new(far));
    let marked = [Arc::clone(&here.marked), Arc::clone(&there.marked)];
    net.serve(Arc::new(here));
    far_env.net.serve(Arc::new(there));
    for channel in [Channel::Control, Channel::Raft, Channel::Bulk, Channel::Repair] {
        assert_eq!(net.call(nobody, channel, frame.clone(), soon()).await, Err(NetError::NotSent));
        for to in [near, far] {
            let answer = call_until_sent(env, to, channel, &frame).await;
            assert_eq!((answer.head, answer.bulk.concat()), (frame.head.clone(), frame.bulk.concat()));
            let who = Frame { head: Bytes::from_static(b"who"), bulk: vec![] };
            let answer = call_until_sent(env, to, channel, &who).await;
            assert_eq!(answer.head, format!("{near} {channel:?} {to}"));
        }
    }
    // What is not answered: by a deadline that passes, and by one that has passed.
    for to in [near, far] {
        let brief = env.now() + Duration::from_millis(20);
        assert_eq!(net.call(to, Channel::Raft, Frame::default(), brief).await, Err(NetError::DeadlineExceeded));
        assert_eq!(net.call(to, Channel::Raft, Frame::default(), env.now()).await, Err(NetError::DeadlineExceeded));
    }
    // Many at once, each with its own answer.
    let numbered =
        |i: u32| Frame { head: Bytes::copy_from_slice(&i.to_be_bytes()), bulk: vec![vec![i as u8; 10_000].into()] };
    let calls: Vec<_> = (1..500).map(|i| (i, net.call(far, Channel::Bulk, numbered(i), soon()))).collect();
    for (i, call) in calls {
        assert_eq!(call.await, Ok(numbered(i)));
    }
    for (to, marked) in [near, far].into_iter().zip(&marked) {
        net.send(to, Channel::Control, Frame { head: Bytes::from_static(b"!"), bulk: vec![] });
        marked.notified().await;
    }
}

/// After a failure, a network may refuse calls for a moment.
async fn call_until_sent(env: &Env, to: NodeId, channel: Channel, frame: &Frame) -> Frame {
    loop {
        let outcome = env.net.call(to, channel, frame.clone(), env.now() + Duration::from_secs(60)).await;
        match outcome {
            Err(NetError::NotSent) => env.sleep(Duration::from_millis(5)).await,
            outcome => return outcome.expect("a call that was sent is answered"),
        }
    }
}

#[test]
fn the_simulated_net_keeps_the_contract() {
    let sim = base::sim::Sim::new(1);
    let (near, far) = (sim.node(NodeId(1)), sim.node(NodeId(2)));
    let (env, far_env) = (near.env(), far.env());
    sim.block_on(near.run(async move { check_net(&env, NodeId(1), &far_env, NodeId(2), NodeId(3)).await })).unwrap();
}
