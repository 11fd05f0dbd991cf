//! The body of a request: bytes that pass through uncopied, and an end that is reached only when everything the
//! client said about them has proven true. Until `next` has answered `None`, nothing may be committed.

pub(crate) mod chunked;

use crate::auth::BodyProof;
use crate::error::{Code, Result, S3Error};
use crate::pace::Pace;
use base::env::{BoxFuture, Clock, MonoTime};
use bytes::{Bytes, BytesMut};
use chunked::{Chunked, Piece};
use http_body::Body as _;
use http_body_util::combinators::UnsyncBoxBody;
use sha2::{Digest, Sha256};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

/// The body as the HTTP server hands it over.
pub type RawBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A request body that verifies itself.
pub struct Payload {
    source: Source,
    framing: Framing,
    length: Length,
    taken: u64,
    /// What has arrived and is not decoded yet.
    pending: Bytes,
    /// Trailers that were announced, in lower case.
    announced: Vec<String>,
    trailers: Vec<(String, String)>,
    done: bool,
}

/// Bytes of content that must arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    Exactly(u64),
    /// Not announced: the transfer coding of HTTP marks the end (RFC 9112 section 7.1).
    AtMost(u64),
    /// As `AtMost`, and not less than the first.
    Between(u64, u64),
}

enum Framing {
    Plain,
    Hashed { sha256: Sha256, expected: [u8; 32] },
    Chunked(Box<Chunked>),
}

impl Payload {
    /// `announced`: the names in `x-amz-trailer`.
    pub fn new(
        body: RawBody,
        proof: BodyProof,
        length: Length,
        announced: Vec<String>,
        clock: Arc<dyn Clock>,
    ) -> Payload {
        let framing = match proof {
            BodyProof::None => Framing::Plain,
            BodyProof::Sha256(expected) => Framing::Hashed { sha256: Sha256::new(), expected },
            BodyProof::ChunkedUnsigned => Framing::Chunked(Box::new(Chunked::new(None, true))),
            BodyProof::ChunkedSigned { chain, trailers } => {
                Framing::Chunked(Box::new(Chunked::new(Some(chain), trailers)))
            }
        };
        Payload {
            source: Source { body, clock, pace: Pace::default(), waiting: None },
            framing,
            length,
            taken: 0,
            pending: Bytes::new(),
            announced,
            trailers: Vec::new(),
            done: false,
        }
    }

    /// Bytes of content that the client announced.
    pub fn announced_length(&self) -> Option<u64> {
        match self.length {
            Length::Exactly(length) => Some(length),
            Length::AtMost(_) | Length::Between(..) => None,
        }
    }

    /// Whether it was announced that nothing will come.
    pub fn is_empty(&self) -> bool {
        self.length == Length::Exactly(0)
    }

    /// The next piece of content. `None`: the body is complete and has verified. After an error nothing more comes.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        if self.done {
            return None;
        }
        let piece = self.advance().await;
        self.done = !matches!(piece, Ok(Some(_)));
        piece.transpose()
    }

    /// The value of a trailer. Empty-handed before the end of the body.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The whole body, if it has at most `max` bytes.
    pub async fn collect(&mut self, max: u64) -> Result<Bytes> {
        let too_long = || S3Error::new(Code::MaxMessageLengthExceeded, format!("The body is longer than {max} bytes."));
        if self.announced_length().is_some_and(|length| length > max) {
            return Err(too_long());
        }
        let mut whole = BytesMut::new();
        while let Some(piece) = self.next().await {
            let piece = piece?;
            if whole.len() as u64 + piece.len() as u64 > max {
                return Err(too_long());
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    async fn advance(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(content) = self.decode_pending()? {
                if content.len() as u64 > self.room() {
                    return Err(self.too_long());
                }
                self.taken += content.len() as u64;
                return Ok(Some(content));
            }
            match self.source.frame().await? {
                Some(bytes) => self.pending = bytes,
                None => return self.end().map(|()| None),
            }
        }
    }

    /// How much content may still come.
    fn room(&self) -> u64 {
        match self.length {
            Length::Exactly(length) | Length::AtMost(length) | Length::Between(_, length) => length - self.taken,
        }
    }

    fn too_long(&self) -> S3Error {
        match self.length {
            Length::Exactly(_) => S3Error::new(Code::IncompleteBody, "The body is longer than was announced."),
            Length::AtMost(most) | Length::Between(_, most) => {
                S3Error::new(Code::EntityTooLarge, format!("The body is longer than the maximum of {most} bytes."))
            }
        }
    }

    fn decode_pending(&mut self) -> Result<Option<Bytes>> {
        let room = self.room();
        while !self.pending.is_empty() {
            match &mut self.framing {
                Framing::Plain => return Ok(Some(std::mem::take(&mut self.pending))),
                Framing::Hashed { sha256, .. } => {
                    sha256.update(&self.pending);
                    return Ok(Some(std::mem::take(&mut self.pending)));
                }
                Framing::Chunked(chunked) => match chunked.decode(&mut self.pending, room)? {
                    Piece::Content(content) => return Ok(Some(content)),
                    Piece::NeedMore => {}
                },
            }
        }
        Ok(None)
    }

    /// The source has ended: is the body what the client said?
    fn end(&mut self) -> Result<()> {
        if let Length::Exactly(length) = self.length
            && self.taken != length
        {
            let taken = self.taken;
            let message = format!("The body has {taken} bytes where {length} were announced. Nothing was stored.");
            return Err(S3Error::new(Code::IncompleteBody, message));
        }
        if let Length::Between(least, _) = self.length
            && self.taken < least
        {
            let message = format!("Your proposed upload is smaller than the minimum allowed size of {least} bytes.");
            return Err(S3Error::new(Code::EntityTooSmall, message));
        }
        match &mut self.framing {
            Framing::Plain => {}
            Framing::Hashed { sha256, expected } => {
                if std::mem::take(sha256).finalize().as_slice() != expected.as_slice() {
                    return Err(S3Error::new(
                        Code::XAmzContentSHA256Mismatch,
                        "The provided x-amz-content-sha256 header does not match what was received. Nothing was stored.",
                    ));
                }
            }
            Framing::Chunked(chunked) => self.trailers = chunked.finish()?,
        }
        self.check_trailers()
    }

    /// What was announced must have come, and nothing else.
    fn check_trailers(&self) -> Result<()> {
        let came = |name: &String| self.trailers.iter().filter(|(given, _)| given == name).count() == 1;
        let expected = |name: &String| self.announced.contains(name);
        let all_came = self.announced.iter().all(came);
        if all_came && self.trailers.iter().all(|(name, _)| expected(name)) {
            return Ok(());
        }
        Err(S3Error::new(
            Code::MalformedTrailerError,
            "The trailers of the body are not those that x-amz-trailer announced. Nothing was stored.",
        ))
    }
}

/// The raw body, watched by a clock: a client that stays silent, or drips, is given up.
struct Source {
    body: RawBody,
    clock: Arc<dyn Clock>,
    pace: Pace,
    /// Since when nothing has arrived, and when patience ends; only while we wait.
    waiting: Option<(MonoTime, BoxFuture<()>)>,
}

impl Source {
    /// The next data frame. `None` at the end.
    async fn frame(&mut self) -> Result<Option<Bytes>> {
        loop {
            match std::future::poll_fn(|cx| self.poll(cx)).await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        self.pace.moved(data.len());
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(None),
            }
        }
    }

    fn poll(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            if let Some((since, _)) = self.waiting.take() {
                self.pace.waited(self.clock.now().since(since));
            }
            let broken = |_| S3Error::new(Code::IncompleteBody, "The body ended before its announced length.");
            return Poll::Ready(frame.map(|result| result.map_err(broken)));
        }
        loop {
            let (clock, patience) = (&self.clock, self.pace.patience());
            let begin = || (clock.now(), clock.sleep_until(clock.now() + patience));
            let (_, patience) = self.waiting.get_or_insert_with(begin);
            if patience.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.waiting = None;
            if !self.pace.settle() {
                let message = "Too little was received for too long in the middle of the body.";
                return Poll::Ready(Some(Err(S3Error::new(Code::RequestTimeout, message))));
            }
        }
    }
}
