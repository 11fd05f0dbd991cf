//! An open file of a simulated disk: [`File`] as operations in flight.

use bytes::Bytes;
use std::io;
use std::sync::Arc;
use tokio::sync::oneshot;

use super::medium::InodeRef;
use super::{Fault, OperationKind, Reply, SimDisk, State};
use crate::buffer::BLOCK;
use crate::env::{Caching, File, Flush, IoFuture};
use crate::sim::executor::lock;
use crate::sim::trace::{TraceKind, digest_pieces, fold};

/// An open file. Of no use after a crash of its disk, like everything else that the process held.
pub(super) struct SimFile {
    pub(super) disk: Arc<SimDisk>,
    pub(super) inode: InodeRef,
    pub(super) opened_at: u64,
    pub(super) caching: Caching,
}

impl SimFile {
    fn check_alignment(&self, offset: u64, len: usize) {
        let aligned = offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK);
        assert!(
            aligned || self.caching == Caching::Buffered,
            "direct I/O of {len} bytes at {offset} is not aligned to {BLOCK}"
        );
    }

    fn check_fresh(&self, state: &State) -> io::Result<()> {
        if self.opened_at == state.crashes {
            Ok(())
        } else {
            Err(io::Error::other("this file was opened before the crash"))
        }
    }

    fn begin_read(&self, offset: u64, len: usize, reply: Reply<Bytes>) -> Result<(), (Reply<Bytes>, io::Error)> {
        let mut state = self.disk.state();
        if let Err(error) = self.check_fresh(&state).and_then(|()| self.disk.check_readable(&state)) {
            return Err((reply, error));
        }
        let range = state.model.read_nanos;
        let nanos = state.latency_nanos(range, len);
        let kind = OperationKind::Read { inode: self.inode.clone(), offset, len, reply };
        self.disk.begin(&mut state, kind, nanos, fold(offset, len as u64));
        Ok(())
    }

    fn begin_write(
        &self,
        offset: u64,
        pieces: Vec<Bytes>,
        flush: Flush,
        reply: Reply<()>,
    ) -> Result<(), (Reply<()>, io::Error)> {
        let mut state = self.disk.state();
        if let Err(error) = self.check_fresh(&state).and_then(|()| self.disk.begin_change(&state)) {
            return Err((reply, error));
        }
        let len: usize = pieces.iter().map(Bytes::len).sum();
        state.counts.writes += 1;
        state.counts.written_bytes += len as u64;
        let faults = [Fault::WriteError, Fault::LostWrite, Fault::MisdirectedWrite];
        let fault = faults.into_iter().filter(|fault| state.strikes(*fault)).last();
        if let Some(fault) = fault {
            self.disk.core.trace(TraceKind::Fault, u64::from(self.disk.node.0), fault as u64);
        }
        let range = state.model.write_nanos;
        let nanos = state.latency_nanos(range, len);
        let digest = digest_pieces(offset, &pieces);
        let kind = OperationKind::Write { inode: self.inode.clone(), offset, pieces, flush, fault, reply };
        self.disk.begin(&mut state, kind, nanos, digest);
        Ok(())
    }
}

async fn answer<T>(receiver: oneshot::Receiver<io::Result<T>>) -> io::Result<T> {
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the node crashed during the operation")))
}

impl File for SimFile {
    fn size_bytes(&self) -> io::Result<u64> {
        let state = self.disk.state();
        self.check_fresh(&state)?;
        self.disk.check_readable(&state)?;
        Ok(lock(&self.inode).size_bytes())
    }

    fn read_at(&self, offset: u64, len: usize) -> IoFuture<Bytes> {
        self.check_alignment(offset, len);
        let (reply, receiver) = oneshot::channel();
        if let Err((reply, error)) = self.begin_read(offset, len, reply) {
            drop(reply.send(Err(error)));
        }
        Box::pin(answer(receiver))
    }

    fn read_now(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.check_alignment(offset, len);
        let mut state = self.disk.state();
        self.check_fresh(&state)?;
        self.disk.check_readable(&state)?;
        state.read(&self.inode, offset, len)
    }

    fn write_at(&self, offset: u64, pieces: Vec<Bytes>, flush: Flush) -> IoFuture<()> {
        self.check_alignment(offset, pieces.iter().map(Bytes::len).sum());
        let (reply, receiver) = oneshot::channel();
        if let Err((reply, error)) = self.begin_write(offset, pieces, flush, reply) {
            drop(reply.send(Err(error)));
        }
        Box::pin(answer(receiver))
    }

    fn flush(&self) -> IoFuture<()> {
        let (reply, receiver) = oneshot::channel();
        let mut state = self.disk.state();
        match self.check_fresh(&state) {
            Ok(()) => self.disk.begin_flush(&mut state, self.inode.clone(), reply),
            Err(error) => drop(reply.send(Err(error))),
        }
        drop(state);
        Box::pin(answer(receiver))
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        let fresh = self.check_fresh(&self.disk.state());
        fresh?;
        self.disk.change(|_| {
            lock(&self.inode).set_size(size_bytes);
            Ok(())
        })
    }

    fn reserve(&self, size_bytes: u64) -> IoFuture<()> {
        let fresh = self.check_fresh(&self.disk.state());
        let reserved = fresh.and_then(|()| {
            self.disk.change(|state| {
                let room_bytes = state.room_bytes();
                let reserved = lock(&self.inode).reserve(size_bytes, room_bytes);
                reserved.map_err(|_| io::Error::new(io::ErrorKind::StorageFull, "the disk is full"))
            })
        });
        Box::pin(std::future::ready(reserved))
    }
}
