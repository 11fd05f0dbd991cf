//! The framing of a connection between nodes, inside TLS, which vouches for every byte; or, where bulk bytes travel
//! unencrypted, sealed as [`super::seal`] says.
//!
//! A frame is a header of [`HEADER_LEN`] bytes (integers little-endian), then the head, then the bulk bytes:
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 1 | kind, see [`Kind`] |
//! | 1 | 3 | zero |
//! | 4 | 4 | bytes of the head, at most [`HEAD_BYTES_MAX`] |
//! | 8 | 4 | bytes of bulk, at most [`BULK_BYTES_MAX`] |
//! | 12 | 8 | request id; 0 where there is none |

use base::buffer_pool::BufferPool;
use base::codec::{DecodeError, Reader, Writer};
use base::env::Frame;
use bytes::Bytes;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::outbox::{Message, Outbox};
use super::seal::{self, Sealing};

pub const HEADER_LEN: usize = 20;
pub const HEAD_BYTES_MAX: usize = client::wire::HEAD_BYTES_MAX;
pub const BULK_BYTES_MAX: usize = 8 << 20;

/// What a frame may have before its sender has said who it is.
pub const GREETING_BYTES_MAX: usize = 64 << 10;

/// A side that has sent nothing for this long sends a ping.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);

/// A peer that was not heard for this long is taken for gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
const _: () = assert!(PING_INTERVAL.as_millis() * 2 < SILENCE_MAX.as_millis(), "one late ping is no silence");

/// Bulk from this size on is read into memory that a disk can be written from without a copy.
const ALIGNED_FROM_BYTES: usize = 256 << 10;

/// What is smaller travels in one write with its neighbours.
const COALESCE_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// First frame of a connection: who the caller is. Head: [`super::hello::Hello`].
    Hello = 1,
    /// Its answer. Head: [`super::hello::HelloAnswer`].
    HelloAnswer = 2,
    Request = 3,
    Answer = 4,
    /// The request of this id was not taken: nothing was done.
    NotTaken = 5,
    OneWay = 6,
    Ping = 7,
    /// First and only frame of one who wants to join the cluster. Head: [`crate::join::JoinRequest`].
    Join = 8,
    /// Its answer. Head: [`crate::join::JoinAnswer`].
    JoinAnswer = 9,
}

const KINDS: [Kind; 9] = [
    Kind::Hello,
    Kind::HelloAnswer,
    Kind::Request,
    Kind::Answer,
    Kind::NotTaken,
    Kind::OneWay,
    Kind::Ping,
    Kind::Join,
    Kind::JoinAnswer,
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub kind: Kind,
    pub head_len: u32,
    pub bulk_len: u32,
    pub id: u64,
}

impl Header {
    pub fn of(message: &Message) -> Header {
        let bulk: usize = message.frame.bulk.iter().map(Bytes::len).sum();
        Header {
            kind: message.kind,
            head_len: u32::try_from(message.frame.head.len())
                .expect("checked against HEAD_BYTES_MAX before it was queued"),
            bulk_len: u32::try_from(bulk).expect("checked against BULK_BYTES_MAX before it was queued"),
            id: message.id,
        }
    }

    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u8(self.kind as u8);
        out.put_bytes(&[0; 3]);
        out.put_u32(self.head_len);
        out.put_u32(self.bulk_len);
        out.put_u64(self.id);
    }

    pub fn decode(raw: &[u8; HEADER_LEN]) -> Result<Header, DecodeError> {
        let mut reader = Reader::new(raw);
        let number = reader.u8("kind")?;
        let kind = KINDS.into_iter().find(|kind| *kind as u8 == number).ok_or_else(|| reader.error("unknown kind"))?;
        if reader.array::<3>("zeroes")? != [0; 3] {
            return Err(reader.error("zeroes"));
        }
        let head_len = reader.u32("head length")?;
        let bulk_len = reader.u32("bulk length")?;
        if head_len as usize > HEAD_BYTES_MAX || bulk_len as usize > BULK_BYTES_MAX {
            return Err(reader.error("longer than allowed"));
        }
        Ok(Header { kind, head_len, bulk_len, id: reader.u64("request id")? })
    }
}

/// Whether `frame` may be sent at all.
pub fn fits(frame: &Frame) -> bool {
    frame.head.len() <= HEAD_BYTES_MAX && frame.bulk.iter().map(Bytes::len).sum::<usize>() <= BULK_BYTES_MAX
}

/// A frame up to its bulk bytes.
pub struct Start {
    pub header: Header,
    pub head: Bytes,
    /// What the CRC-32C of the bulk bytes must be, where TLS does not vouch for them.
    bulk_crc: Option<u32>,
}

fn malformed(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed frame: {error}"))
}

async fn read_header(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Header> {
    let mut raw = [0; HEADER_LEN];
    fill(reader, &mut raw).await?;
    Header::decode(&raw).map_err(malformed)
}

/// The next frame, up to its bulk bytes; with `opening` where it is sealed.
pub async fn read_start(reader: &mut (impl AsyncRead + Unpin), opening: Option<&mut Sealing>) -> io::Result<Start> {
    if let Some(opening) = opening {
        return read_sealed(reader, opening, seal::SEALED_BYTES_MAX).await;
    }
    let header = read_header(reader).await?;
    let mut head = vec![0; header.head_len as usize];
    fill(reader, &mut head).await?;
    Ok(Start { header, head: head.into(), bulk_crc: None })
}

async fn read_sealed(
    reader: &mut (impl AsyncRead + Unpin),
    opening: &mut Sealing,
    sealed_max: usize,
) -> io::Result<Start> {
    let mut len = [0; 4];
    fill(reader, &mut len).await?;
    let sealed_len = u32::from_le_bytes(len) as usize;
    if !(seal::SEALED_BYTES_MIN..=sealed_max).contains(&sealed_len) {
        return Err(malformed("shorter or longer than allowed"));
    }
    let mut sealed = vec![0; sealed_len];
    fill(reader, &mut sealed).await?;
    let (bulk_crc, opened) = opening.open(len, &mut sealed)?;
    let (raw, head) = opened.split_first_chunk().ok_or_else(|| malformed("too short"))?;
    let (header, head_len) = (Header::decode(raw).map_err(malformed)?, head.len());
    if head_len != header.head_len as usize {
        return Err(malformed("another head than announced"));
    }
    sealed.truncate(4 + HEADER_LEN + head_len);
    Ok(Start { header, head: Bytes::from(sealed).slice(4 + HEADER_LEN..), bulk_crc: Some(bulk_crc) })
}

/// The whole frame; bulk bytes are read straight into the one buffer that they stay in.
pub async fn read_rest(
    reader: &mut (impl AsyncRead + Unpin),
    start: Start,
    buffers: &Arc<BufferPool>,
) -> io::Result<Frame> {
    let bulk = match start.header.bulk_len as usize {
        0 => vec![],
        len if len >= ALIGNED_FROM_BYTES => {
            let mut buffer = buffers.take(len);
            buffer.set_len(len);
            fill(reader, buffer.as_mut_slice()).await?;
            vec![buffer.freeze()]
        }
        len => {
            let mut buffer = vec![0; len];
            fill(reader, &mut buffer).await?;
            vec![buffer.into()]
        }
    };
    if start.bulk_crc.is_some_and(|crc| crc != seal::crc_of(&bulk)) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "bulk bytes arrived damaged"));
    }
    Ok(Frame { head: start.head, bulk })
}

/// The first frame of a connection, whose sender is not known yet: small, without bulk.
pub async fn read_greeting(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<(Kind, Bytes)> {
    let header = read_header(reader).await?;
    if header.head_len as usize > GREETING_BYTES_MAX || header.bulk_len > 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first frame is too long"));
    }
    let mut head = vec![0; header.head_len as usize];
    fill(reader, &mut head).await?;
    Ok((header.kind, head.into()))
}

/// Sends one frame without bulk.
pub async fn write_greeting(writer: &mut (impl AsyncWrite + Unpin), kind: Kind, head: Bytes) -> io::Result<()> {
    let message = Message { kind, id: 0, frame: Frame { head, bulk: vec![] }, _held: None };
    let mut out = Vec::with_capacity(HEADER_LEN + message.frame.head.len());
    Header::of(&message).encode(&mut out);
    out.extend_from_slice(&message.frame.head);
    writer.write_all(&out).await?;
    writer.flush().await
}

/// Sends the first sealed frame of a connection: a ping.
pub async fn write_first(writer: &mut (impl AsyncWrite + Unpin), sealing: &mut Sealing) -> io::Result<()> {
    write_batch(&[Message::ping()], &mut Vec::new(), writer, Some(sealing)).await
}

/// Receives it.
pub async fn read_first(reader: &mut (impl AsyncRead + Unpin), opening: &mut Sealing) -> io::Result<()> {
    let start = read_sealed(reader, opening, seal::SEALED_BYTES_MIN).await?;
    match (start.header.kind, start.header.bulk_len) {
        (Kind::Ping, 0) => Ok(()),
        _ => Err(malformed("the first one is no ping")),
    }
}

/// Fills `out`. An error when the peer is silent for too long.
async fn fill(reader: &mut (impl AsyncRead + Unpin), out: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < out.len() {
        let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "nothing was heard for too long");
        let read = timeout(SILENCE_MAX, reader.read(&mut out[filled..])).await.map_err(silent)??;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
    }
    Ok(())
}

/// Receives by `reading` and sends what comes into `outbox`, sealed where there is a `sealing`, until one of them breaks, or
/// `ended` says so; answers why.
///
/// Each has a task of its own: where both share one, a side that always has something to do starves the other.
pub async fn converse(
    runtime: &Handle,
    reading: impl Future<Output = io::Error>,
    outbox: Arc<Outbox>,
    mut writer: impl AsyncWrite + Unpin + Send + 'static,
    sealing: Option<Sealing>,
    ended: impl Future<Output = io::Error>,
) -> io::Error {
    let (broken, written) = oneshot::channel();
    let writing = runtime.spawn(crate::env::or_abort("connection's writer", async move {
        // Nobody listens any more when the reader broke first.
        let _ = broken.send(write_loop(&outbox, &mut writer, sealing).await);
    }));
    let error = tokio::select! {
        biased;
        error = reading => error,
        error = written => error.unwrap_or_else(|_| io::ErrorKind::BrokenPipe.into()),
        error = ended => error,
    };
    // Only when it is really gone may another connection take from the same outbox.
    writing.abort();
    let _ = writing.await;
    error
}

/// Sends what comes into `outbox`, and a ping where nothing comes, until the connection breaks.
async fn write_loop(
    outbox: &Outbox,
    writer: &mut (impl AsyncWrite + Unpin),
    mut sealing: Option<Sealing>,
) -> io::Error {
    let mut scratch = Vec::with_capacity(COALESCE_BYTES);
    loop {
        let batch = timeout(PING_INTERVAL, outbox.next_batch()).await;
        let batch = batch.unwrap_or_else(|_| vec![Message::ping()]);
        if let Err(error) = write_batch(&batch, &mut scratch, writer, sealing.as_mut()).await {
            return error;
        }
    }
}

async fn write_batch(
    batch: &[Message],
    scratch: &mut Vec<u8>,
    writer: &mut (impl AsyncWrite + Unpin),
    mut sealing: Option<&mut Sealing>,
) -> io::Result<()> {
    let mut header = Vec::with_capacity(HEADER_LEN);
    for message in batch {
        let Frame { head, bulk } = &message.frame;
        header.clear();
        Header::of(message).encode(&mut header);
        let outside = match &mut sealing {
            Some(sealing) => {
                sealing.seal(&[&header, head], bulk, scratch);
                None
            }
            None => {
                scratch.extend_from_slice(&header);
                Some(head)
            }
        };
        for piece in outside.into_iter().chain(bulk) {
            if scratch.len() + piece.len() <= COALESCE_BYTES {
                scratch.extend_from_slice(piece);
                continue;
            }
            writer.write_all(scratch).await?;
            scratch.clear();
            writer.write_all(piece).await?;
        }
    }
    writer.write_all(scratch).await?;
    scratch.clear();
    // Heads are sealed here, and long ones are rare.
    if scratch.capacity() > 2 * COALESCE_BYTES {
        scratch.shrink_to(COALESCE_BYTES);
    }
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::buffer::is_aligned;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_round_trip(kind in 0usize..9, head_len in 0..=HEAD_BYTES_MAX as u32, bulk_len in 0..=BULK_BYTES_MAX as u32, id: u64) {
            let header = Header { kind: KINDS[kind], head_len, bulk_len, id };
            let mut raw = Vec::new();
            header.encode(&mut raw);
            prop_assert_eq!(Header::decode(raw.as_slice().try_into().unwrap()), Ok(header));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_allow_too_much(raw: [u8; HEADER_LEN]) {
            if let Ok(header) = Header::decode(&raw) {
                prop_assert!(header.head_len as usize <= HEAD_BYTES_MAX && header.bulk_len as usize <= BULK_BYTES_MAX);
            }
        }
    }

    #[tokio::test]
    async fn batches_arrive_piece_by_piece_as_they_were_sent() {
        batches_arrive(None, None).await;
    }

    #[tokio::test]
    async fn sealed_batches_arrive_as_they_were_sent() {
        batches_arrive(Some(Sealing::new(&[3; 32])), Some(Sealing::new(&[3; 32]))).await;
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_sealed_frame_ends_the_connection() {
        let frame = Frame { head: Bytes::from_static(b"head"), bulk: vec![Bytes::from_static(b"bulk")] };
        let message = Message { kind: Kind::OneWay, id: 7, frame, _held: None };
        let mut raw = Vec::new();
        write_batch(&[message], &mut Vec::new(), &mut raw, Some(&mut Sealing::new(&[3; 32]))).await.unwrap();
        assert!(raw.ends_with(b"bulk") && !raw.windows(4).any(|window| window == b"head"));
        let read = async |raw: &[u8]| {
            let (mut raw, mut opening) = (raw, Sealing::new(&[3; 32]));
            let start = read_start(&mut raw, Some(&mut opening)).await?;
            read_rest(&mut raw, start, &Arc::default()).await
        };
        assert_eq!(read(&raw).await.unwrap().bulk.concat(), b"bulk");
        for at in 0..raw.len() {
            let mut altered = raw.clone();
            altered[at] ^= 0x80;
            assert!(read(&altered).await.is_err(), "byte {at}");
            assert!(read(&raw[..at]).await.is_err(), "cut at {at}");
        }
    }

    #[tokio::test]
    async fn the_first_sealed_frame_is_a_ping() {
        let (mut raw, frame) = (Vec::new(), Frame { head: Bytes::from_static(b"head"), bulk: vec![] });
        write_first(&mut raw, &mut Sealing::new(&[3; 32])).await.unwrap();
        assert!(read_first(&mut raw.as_slice(), &mut Sealing::new(&[3; 32])).await.is_ok());
        for (kind, frame) in [(Kind::Ping, frame), (Kind::OneWay, Frame::default())] {
            let mut raw = Vec::new();
            let message = Message { kind, id: 0, frame, _held: None };
            write_batch(&[message], &mut Vec::new(), &mut raw, Some(&mut Sealing::new(&[3; 32]))).await.unwrap();
            assert!(read_first(&mut raw.as_slice(), &mut Sealing::new(&[3; 32])).await.is_err(), "{kind:?}");
        }
        // A head that is not as long as its header says.
        let header = Header { kind: Kind::OneWay, head_len: 5, bulk_len: 0, id: 0 };
        let (mut encoded, mut raw) = (Vec::new(), Vec::new());
        header.encode(&mut encoded);
        Sealing::new(&[3; 32]).seal(&[&encoded, b"head"], &[], &mut raw);
        assert!(read_start(&mut raw.as_slice(), Some(&mut Sealing::new(&[3; 32]))).await.is_err());
    }

    async fn batches_arrive(mut sealing: Option<Sealing>, mut opening: Option<Sealing>) {
        let (mut near, mut far) = tokio::io::duplex(1000);
        let buffers = Arc::default();
        let big = Bytes::from((0..ALIGNED_FROM_BYTES).map(|i| (i % 251) as u8).collect::<Vec<u8>>());
        let frames = [
            Frame::default(),
            Frame { head: Bytes::from_static(b"head"), bulk: vec![] },
            Frame { head: vec![9; COALESCE_BYTES + 1].into(), bulk: vec![Bytes::from_static(b"a"), Bytes::new()] },
            Frame { head: Bytes::from_static(b"h"), bulk: vec![big.slice(..10), big.slice(10..)] },
        ];
        let messages = |frame: &Frame| Message { kind: Kind::OneWay, id: 7, frame: frame.clone(), _held: None };
        let batch: Vec<Message> = frames.iter().map(messages).collect();
        let writing = tokio::spawn(async move {
            let sealing = sealing.as_mut();
            write_batch(&batch, &mut Vec::new(), &mut near, sealing).await.map(|()| near)
        });
        for frame in &frames {
            let start = read_start(&mut far, opening.as_mut()).await.unwrap();
            assert_eq!((start.header.kind, start.header.id), (Kind::OneWay, 7));
            let read = read_rest(&mut far, start, &buffers).await.unwrap();
            assert_eq!((&read.head, read.bulk.concat()), (&frame.head, frame.bulk.concat()));
            assert!(
                read.bulk.len() <= 1 && (read.bulk.concat().len() < ALIGNED_FROM_BYTES || is_aligned(&read.bulk[0]))
            );
        }
        drop(writing.await.unwrap().unwrap());
        let end = read_start(&mut far, opening.as_mut()).await.err().unwrap();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn strangers_may_not_send_much() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        write_greeting(&mut near, Kind::Hello, vec![0; GREETING_BYTES_MAX].into()).await.unwrap();
        assert_eq!(read_greeting(&mut far).await.unwrap().0, Kind::Hello);
        write_greeting(&mut near, Kind::Hello, vec![0; GREETING_BYTES_MAX + 1].into()).await.unwrap();
        assert!(read_greeting(&mut far).await.is_err());
    }
}
