//! What this node sends to others, counted: a wrapper around the network.

use base::env::{BoxFuture, Channel, Frame, Handler, MonoTime, Net, NetError};
use base::ids::NodeId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::sync::Arc;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ChannelLabel {
    channel: &'static str,
}

/// Frames and bytes sent, by channel. Answers are not counted: whoever asked for them counts its questions.
#[derive(Default)]
pub struct Traffic {
    frames: Family<ChannelLabel, Counter>,
    bytes: Family<ChannelLabel, Counter>,
}

impl Traffic {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("network_sent_frames", "Messages and requests sent to nodes", self.frames.clone());
        registry.register("network_sent_bytes", "Bytes of messages and requests sent to nodes", self.bytes.clone());
    }
}

/// A network that counts what is sent over it.
pub struct Metered {
    inner: Arc<dyn Net>,
    /// Frames and bytes of control, Raft, bulk and repair.
    counters: [(Counter, Counter); 4],
}

impl Metered {
    pub fn over(inner: Arc<dyn Net>, traffic: &Traffic) -> Arc<dyn Net> {
        let counters = ["control", "raft", "bulk", "repair"].map(|channel| {
            let label = ChannelLabel { channel };
            (traffic.frames.get_or_create(&label).clone(), traffic.bytes.get_or_create(&label).clone())
        });
        Arc::new(Metered { inner, counters })
    }

    fn count(&self, channel: Channel, frame: &Frame) {
        let (frames, bytes) = match channel {
            Channel::Control => &self.counters[0],
            Channel::Raft => &self.counters[1],
            Channel::Bulk => &self.counters[2],
            Channel::Repair => &self.counters[3],
        };
        frames.inc();
        bytes.inc_by((frame.head.len() + frame.bulk.iter().map(bytes::Bytes::len).sum::<usize>()) as u64);
    }
}

impl Net for Metered {
    fn call(
        &self,
        to: NodeId,
        channel: Channel,
        request: Frame,
        deadline: MonoTime,
    ) -> BoxFuture<Result<Frame, NetError>> {
        self.count(channel, &request);
        self.inner.call(to, channel, request, deadline)
    }

    fn send(&self, to: NodeId, channel: Channel, message: Frame) {
        self.count(channel, &message);
        self.inner.send(to, channel, message);
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        self.inner.serve(handler);
    }

    fn learn_peers(&self, peers: &[(NodeId, String)]) {
        self.inner.learn_peers(peers);
    }
}
