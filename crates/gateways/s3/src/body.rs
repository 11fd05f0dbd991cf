//! The body of an answer: small and whole, or an object that streams.

use crate::fair::Place;
use bytes::Bytes;
use client::ObjectReader;
use futures_util::Stream;
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The body of an answer.
pub struct ResponseBody {
    kind: Kind,
    /// Held until the last byte is handed over.
    place: Option<Arc<Place>>,
}

enum Kind {
    Whole(Bytes),
    Object {
        pieces: Pieces,
        left: u64,
    },
    /// An error was handed to the server, which breaks the connection.
    Broken,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, client::Error>> + Send>>;

/// Why a body ended before its announced length. The connection is broken, so that the client can not take what came
/// for the whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("reading the object failed after its answer had begun: {0}")]
    Read(client::Error),
    #[error("the object ended {left} bytes before its length")]
    Short { left: u64 },
    #[error("the object goes on {over} bytes behind its length")]
    Long { over: u64 },
}

impl ResponseBody {
    /// The place of the request, which goes on while an object streams.
    pub fn hold(&mut self, place: Arc<Place>) {
        if matches!(self.kind, Kind::Object { .. }) {
            self.place = Some(place);
        }
    }

    pub fn empty() -> ResponseBody {
        ResponseBody::whole(Bytes::new())
    }

    pub fn whole(bytes: impl Into<Bytes>) -> ResponseBody {
        ResponseBody { kind: Kind::Whole(bytes.into()), place: None }
    }

    /// `first` was read already, so that an object whose first bytes are lost gets a whole error instead of a broken
    /// answer. `length`: exactly so many bytes come, with `first`.
    pub fn object(first: Bytes, reader: ObjectReader, length: u64) -> ResponseBody {
        let pieces = futures_util::stream::unfold((Some(first), reader), |(first, mut reader)| async move {
            let piece = match first {
                Some(first) => Ok(first),
                None => reader.next().await?,
            };
            Some((piece, (None, reader)))
        });
        ResponseBody::stream(Box::pin(pieces), length)
    }

    fn stream(pieces: Pieces, length: u64) -> ResponseBody {
        ResponseBody { kind: Kind::Object { pieces, left: length }, place: None }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let outcome = match &mut self.kind {
            Kind::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Kind::Whole(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Broken => return Poll::Ready(None),
            Kind::Object { pieces, left } => match std::task::ready!(pieces.as_mut().poll_next(cx)) {
                None if *left == 0 => Ok(None),
                None => Err(BodyError::Short { left: *left }),
                Some(Err(error)) => Err(BodyError::Read(error)),
                Some(Ok(bytes)) => match left.checked_sub(bytes.len() as u64) {
                    Some(rest) => {
                        *left = rest;
                        Ok(Some(Frame::data(bytes)))
                    }
                    None => Err(BodyError::Long { over: bytes.len() as u64 - *left }),
                },
            },
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, "the answer to a GET was broken off");
            self.kind = Kind::Broken;
        }
        Poll::Ready(outcome.transpose())
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_empty(),
            Kind::Object { left, .. } => *left == 0,
            Kind::Broken => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Object { left, .. } => SizeHint::with_exact(*left),
            Kind::Broken => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    fn read(pieces: Vec<Result<Bytes, client::Error>>, length: u64) -> Result<Bytes, BodyError> {
        let body = ResponseBody::stream(Box::pin(futures_util::stream::iter(pieces)), length);
        body.collect().now_or_never().expect("nothing here waits").map(|whole| whole.to_bytes())
    }

    #[test]
    fn an_object_streams_to_its_end() {
        let pieces = vec![Ok(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"c"))];
        assert_eq!(read(pieces, 3).unwrap(), "abc");
        assert_eq!(ResponseBody::whole("abc").collect().now_or_never().unwrap().unwrap().to_bytes(), "abc");
    }

    #[test]
    fn a_body_that_is_not_what_was_announced_is_an_error() {
        let ab = || Ok(Bytes::from_static(b"ab"));
        assert!(matches!(read(vec![ab()], 3), Err(BodyError::Short { left: 1 })));
        assert!(matches!(read(vec![ab(), ab()], 3), Err(BodyError::Long { over: 1 })));
        let damaged = client::Error::Damaged("chunk".to_owned());
        assert!(matches!(read(vec![ab(), Err(damaged)], 3), Err(BodyError::Read(_))));
    }
}
