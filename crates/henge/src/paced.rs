//! A connection that is given up when the other end takes what we send too slowly: whoever reads a byte a second would
//! otherwise hold a request's memory for days. (How slowly requests may come in is the business of the gateway, which
//! knows when it waits for one.)

use gateway_s3::Pace;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

pub struct Paced<S> {
    stream: S,
    pace: Pace,
    /// Since when nothing was taken, and when patience ends; only while we wait.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<S> Paced<S> {
    pub fn new(stream: S) -> Paced<S> {
        Paced { stream, pace: Pace::default(), waiting: None }
    }

    /// Counts what a write did; `None` while patience lasts.
    fn judge(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = written {
            if let Some((since, _)) = self.waiting.take() {
                self.pace.waited(since.elapsed());
            }
            if let Ok(bytes) = &result {
                self.pace.moved(*bytes);
            }
            return Poll::Ready(result);
        }
        loop {
            let patience = self.pace.patience();
            let begin = || (Instant::now(), Box::pin(tokio::time::sleep(patience)));
            let (_, sleep) = self.waiting.get_or_insert_with(begin);
            ready!(sleep.as_mut().poll(cx));
            self.waiting = None;
            if !self.pace.settle() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly")));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_is_written_arrives_whole() {
        let (ours, mut theirs) = tokio::io::duplex(1000);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await.unwrap();
            all
        });
        let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let mut paced = Paced::new(ours);
        paced.write_all(&bytes).await.unwrap();
        drop(paced);
        assert_eq!(reader.await.unwrap(), bytes);
    }
}
