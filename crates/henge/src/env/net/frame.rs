//! The framing of a connection between nodes, inside TLS, which vouches for every byte.
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

/// The next header.
pub async fn read_header(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Header> {
    let mut raw = [0; HEADER_LEN];
    fill(reader, &mut raw).await?;
    Header::decode(&raw)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("malformed frame: {error}")))
}

/// What follows `header`; bulk bytes are read straight into the one buffer that they stay in.
pub async fn read_body(
    reader: &mut (impl AsyncRead + Unpin),
    header: Header,
    buffers: &Arc<BufferPool>,
) -> io::Result<Frame> {
    let mut head = vec![0; header.head_len as usize];
    fill(reader, &mut head).await?;
    let bulk = match header.bulk_len as usize {
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
    Ok(Frame { head: head.into(), bulk })
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

/// Receives by `reading` and sends what comes into `outbox` until one of them breaks, or `ended` says so; answers why.
///
/// Each has a task of its own: where both share one, a side that always has something to do starves the other.
pub async fn converse(
    runtime: &Handle,
    reading: impl Future<Output = io::Error>,
    outbox: Arc<Outbox>,
    mut writer: impl AsyncWrite + Unpin + Send + 'static,
    ended: impl Future<Output = io::Error>,
) -> io::Error {
    let (broken, written) = oneshot::channel();
    let writing = runtime.spawn(crate::env::or_abort("connection's writer", async move {
        // Nobody listens any more when the reader broke first.
        let _ = broken.send(write_loop(&outbox, &mut writer).await);
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
async fn write_loop(outbox: &Outbox, writer: &mut (impl AsyncWrite + Unpin)) -> io::Error {
    let mut scratch = Vec::with_capacity(COALESCE_BYTES);
    loop {
        let batch = timeout(PING_INTERVAL, outbox.next_batch()).await;
        let batch = batch.unwrap_or_else(|_| vec![Message::ping()]);
        if let Err(error) = write_batch(&batch, &mut scratch, writer).await {
            return error;
        }
    }
}

async fn write_batch(
    batch: &[Message],
    scratch: &mut Vec<u8>,
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    for message in batch {
        Header::of(message).encode(scratch);
        for piece in std::iter::once(&message.frame.head).chain(&message.frame.bulk) {
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
        let writing = tokio::spawn(async move { write_batch(&batch, &mut Vec::new(), &mut near).await.map(|()| near) });
        for frame in &frames {
            let header = read_header(&mut far).await.unwrap();
            assert_eq!((header.kind, header.id), (Kind::OneWay, 7));
            let read = read_body(&mut far, header, &buffers).await.unwrap();
            assert_eq!((&read.head, read.bulk.concat()), (&frame.head, frame.bulk.concat()));
            assert!(
                read.bulk.len() <= 1 && (read.bulk.concat().len() < ALIGNED_FROM_BYTES || is_aligned(&read.bulk[0]))
            );
        }
        drop(writing.await.unwrap().unwrap());
        assert_eq!(read_header(&mut far).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
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
