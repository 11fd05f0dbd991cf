//! The first words of a connection between members: who calls, of which cluster, speaking which protocol.

use base::env::Channel;
use base::ids::{ClusterId, NodeId};
use bytes::Bytes;
use prost::Message;

/// The protocol between nodes: framing, and what the heads of requests mean. A node refuses any other.
pub const PROTOCOL_VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "2")]
    pub cluster: Bytes,
    /// Raised by a recovery that left nodes behind: they may not come back as if nothing had happened.
    #[prost(uint32, tag = "3")]
    pub cluster_generation: u32,
    /// The caller. Believed only because its certificate is for this name.
    #[prost(uint32, tag = "4")]
    pub node: u32,
    /// 0 control, 1 Raft, 2 bulk, 3 repair.
    #[prost(uint32, tag = "5")]
    pub channel: u32,
    /// Drawn anew by each process: tells a node from a copy of its directory that runs beside it.
    #[prost(fixed64, tag = "6")]
    pub process: u64,
    /// HOST:PORT under which the caller is reached.
    #[prost(string, tag = "7")]
    pub advertise: String,
    /// The caller would have bulk bytes of this connection travel unencrypted.
    #[prost(bool, tag = "8")]
    pub bulk_plaintext: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HelloAnswer {
    /// Empty: welcome. Otherwise a sentence that says why not.
    #[prost(string, tag = "1")]
    pub refused: String,
    /// Refused because another process under the same name is connected.
    #[prost(bool, tag = "2")]
    pub occupied: bool,
    /// So would the answering side: from here on frames are as [`super::seal`] has them.
    #[prost(bool, tag = "3")]
    pub bulk_plaintext: bool,
}

/// What both sides must agree on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Club {
    pub cluster: ClusterId,
    pub generation: u32,
}

impl Hello {
    pub fn new(club: Club, node: NodeId, channel: Channel, process: u64, advertise: &str) -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            cluster: Bytes::copy_from_slice(&club.cluster.0.to_be_bytes()),
            cluster_generation: club.generation,
            node: node.0,
            channel: channel_number(channel),
            process,
            advertise: advertise.to_owned(),
            bulk_plaintext: false,
        }
    }

    /// Why a member of `club` does not talk to this caller.
    pub fn refusal(&self, club: Club) -> Option<String> {
        if self.protocol != PROTOCOL_VERSION {
            return Some(format!(
                "node {} speaks version {} of the protocol between nodes, and this node version {PROTOCOL_VERSION}: run \
                 the same henge on both",
                self.node, self.protocol
            ));
        }
        if self.cluster.as_ref() != club.cluster.0.to_be_bytes() {
            return Some(format!("node {} is not of cluster {}: clusters never merge", self.node, club.cluster));
        }
        if self.cluster_generation != club.generation {
            return Some(format!(
                "node {} is of generation {} of the cluster, and this node of generation {}: the cluster was recovered \
                 without the older one. If it was restored from a backup, restore that node from the same one; else it must \
                 start anew with an empty --data and a join token",
                self.node, self.cluster_generation, club.generation
            ));
        }
        None
    }

    pub fn channel(&self) -> Option<Channel> {
        super::CHANNELS.into_iter().find(|one| channel_number(*one) == self.channel)
    }

    pub fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}

pub fn channel_number(channel: Channel) -> u32 {
    match channel {
        Channel::Control => 0,
        Channel::Raft => 1,
        Channel::Bulk => 2,
        Channel::Repair => 3,
    }
}
