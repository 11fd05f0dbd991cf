//! Defects planted between the nodes of a cluster, to show that the checkers see them: a network that answers in place
//! of the node that was asked.

use base::env::{BoxFuture, Channel, Frame, Handler, MonoTime, Net, NetError};
use base::ids::NodeId;
use bytes::Bytes;
use client::wire::{self, Answer, Ask, ChunkDone, Request, Told};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::plan::Planted;

/// [`Net`] of one node, with a defect.
pub struct PlantedNet {
    net: Arc<dyn Net>,
    node: NodeId,
    planted: Planted,
    /// Answers to reads by the bytes of the question.
    read_before: Arc<Mutex<BTreeMap<Bytes, Frame>>>,
}

impl PlantedNet {
    /// `net` itself unless the defect is one of the network.
    pub fn over(net: Arc<dyn Net>, node: NodeId, planted: Option<Planted>) -> Arc<dyn Net> {
        match planted {
            Some(planted @ (Planted::StaleReads | Planted::UnsentStores | Planted::UnsentDeletes)) => {
                Arc::new(PlantedNet { net, node, planted, read_before: Arc::default() })
            }
            _ => net,
        }
    }

    /// The answer that is made up on the spot, if this request is one for that.
    fn made_up(&self, to: NodeId, request: &Request) -> Option<Frame> {
        let done = |epoch| {
            let told = Told::Chunk(ChunkDone { epoch, ..ChunkDone::default() });
            wire::frame(&Answer { map_version: request.map_version, ..Answer::of(told) }, Vec::new())
        };
        match (self.planted, request.ask.as_ref()?) {
            (Planted::UnsentStores, Ask::PutChunk(put)) if to != self.node => Some(done(put.epoch)),
            (Planted::UnsentDeletes, Ask::DeleteChunks(_)) if to != self.node => Some(done(0)),
            _ => None,
        }
    }
}

impl Net for PlantedNet {
    fn call(
        &self,
        to: NodeId,
        channel: Channel,
        request: Frame,
        deadline: MonoTime,
    ) -> BoxFuture<Result<Frame, NetError>> {
        let decoded: Option<Request> = wire::head(&request).ok();
        if let Some(answer) = decoded.as_ref().and_then(|decoded| self.made_up(to, decoded)) {
            return Box::pin(async move { Ok(answer) });
        }
        let is_read = matches!(decoded.and_then(|decoded| decoded.ask), Some(Ask::QueryShard(_)));
        if self.planted != Planted::StaleReads || !is_read {
            return self.net.call(to, channel, request, deadline);
        }
        // Every other time, a question is answered as it was the last time.
        let read_before = self.read_before.clone();
        let held = read_before.lock().unwrap_or_else(PoisonError::into_inner).remove(&request.head);
        if let Some(held) = held {
            return Box::pin(async move { Ok(held) });
        }
        let question = request.head.clone();
        let answer = self.net.call(to, channel, request, deadline);
        Box::pin(async move {
            let answer = answer.await?;
            read_before.lock().unwrap_or_else(PoisonError::into_inner).insert(question, answer.clone());
            Ok(answer)
        })
    }

    fn send(&self, to: NodeId, channel: Channel, message: Frame) {
        self.net.send(to, channel, message);
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        self.net.serve(handler);
    }

    fn learn_peers(&self, peers: &[(NodeId, String)]) {
        self.net.learn_peers(peers);
    }
}
