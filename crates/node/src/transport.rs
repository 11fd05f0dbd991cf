//! Raft's messages on the wire: one-way frames, each with what one replica has for one node.

use base::Env;
use base::env::{Channel, Frame};
use base::ids::NodeId;
use bytes::Bytes;
use prost::Message;

/// Bytes of messages in one frame; more go in further frames.
const FRAME_BYTES_MAX: usize = 4 << 20;

#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftBatch {
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<RaftItem>,
    #[prost(message, repeated, tag = "2")]
    pub gone: Vec<PeerGone>,
    /// The cluster's generation as the sender knows it: raised when the cluster is recovered from one node. Two lives
    /// of a cluster never mix.
    #[prost(uint32, tag = "3")]
    pub cluster_generation: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftItem {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub message: Bytes,
    /// The receiver is a learner that never acknowledged anything: it may begin with an empty log.
    #[prost(bool, tag = "3")]
    pub fresh: bool,
    /// Of a leader that has committed in its own term: all that is committed, whatever the message says. Raft's heartbeats
    /// name no more than the receiver is known to hold.
    #[prost(uint64, optional, tag = "4")]
    pub committed: Option<u64>,
    /// The sender votes and acknowledges, and has no rows yet: it cannot lead.
    #[prost(bool, tag = "5")]
    pub waits: bool,
}

/// This peer does not exist on the sender's node, or was removed from the group by a committed change.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerGone {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(uint64, tag = "2")]
    pub peer: u64,
}

pub fn send(env: &Env, to: NodeId, cluster_generation: u32, items: Vec<RaftItem>) {
    let empty = || RaftBatch { cluster_generation, ..RaftBatch::default() };
    let mut batch = empty();
    let mut size = 0;
    for item in items {
        if size + item.message.len() > FRAME_BYTES_MAX && !batch.items.is_empty() {
            env.net.send(to, Channel::Raft, frame(&std::mem::replace(&mut batch, empty())));
            size = 0;
        }
        size += item.message.len();
        batch.items.push(item);
    }
    env.net.send(to, Channel::Raft, frame(&batch));
}

pub fn send_gone(env: &Env, to: NodeId, cluster_generation: u32, gone: PeerGone) {
    env.net.send(to, Channel::Raft, frame(&RaftBatch { gone: vec![gone], cluster_generation, ..RaftBatch::default() }));
}

/// Tells a node from before a recovery that the cluster goes on without it.
pub fn send_recovered(env: &Env, to: NodeId, cluster_generation: u32) {
    env.net.send(to, Channel::Raft, frame(&RaftBatch { cluster_generation, ..RaftBatch::default() }));
}

pub fn decode(frame: &Frame) -> Result<RaftBatch, String> {
    RaftBatch::decode(frame.head.clone()).map_err(|error| format!("malformed Raft batch: {error}"))
}

fn frame(batch: &RaftBatch) -> Frame {
    Frame { head: batch.encode_to_vec().into(), bulk: Vec::new() }
}
