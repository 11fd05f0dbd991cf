//! Heartbeats of all Raft groups between two nodes, as one message: with many groups, one each would be most of what nodes
//! say to each other.
//!
//! Only heartbeats and their answers wait, and only those without a context: what confirms a read (ReadIndex) goes at once
//! and keeps its group's context, so gathering can delay a leader's sign of life by [`GATHER`], and nothing else. The
//! replicas of a node tick at the same moments, so that little time is enough.

use base::Env;
use base::env::MonoTime;
use base::ids::NodeId;
use protocol::raft::{Message, MessageKind};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::group::TICK;
use crate::transport::{self, RaftItem};

/// How long a heartbeat waits for others.
const GATHER: Duration = Duration::from_millis(4);
/// Heartbeats that wait for one node; with so many they go at once.
const WAITING_MAX: usize = 4096;

const _: () = assert!(GATHER.as_millis() * 4 < TICK.as_millis(), "a heartbeat is hardly later for it");

/// What waits, by node and the generation of the cluster that it is sent under.
type Waiting = BTreeMap<(NodeId, u32), Vec<RaftItem>>;

pub struct Heartbeats {
    env: Env,
    waiting: Mutex<Waiting>,
}

/// Whether a message may wait for others to the same node.
pub fn may_wait(message: &Message) -> bool {
    matches!(message.kind(), MessageKind::Heartbeat | MessageKind::HeartbeatReply) && !message.has_context()
}

impl Heartbeats {
    pub fn new(env: Env) -> Heartbeats {
        Heartbeats { env, waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends this soon, with what else there is for `to`.
    pub fn add(self: &Arc<Self>, to: NodeId, cluster_generation: u32, item: RaftItem) {
        let mut waiting = self.waiting();
        let is_first = waiting.is_empty();
        let held = waiting.entry((to, cluster_generation)).or_default();
        held.push(item);
        let is_full = held.len() >= WAITING_MAX;
        drop(waiting);
        if is_full {
            self.send();
        } else if is_first {
            let heartbeats = self.clone();
            self.env.spawn("heartbeats", async move {
                heartbeats.env.sleep(GATHER).await;
                heartbeats.send();
            });
        }
    }

    fn send(&self) {
        let waiting = std::mem::take(&mut *self.waiting());
        for ((to, cluster_generation), items) in waiting {
            transport::send(&self.env, to, cluster_generation, items);
        }
    }
}

/// The next moment at which the replicas of a node tick, all at once. Nodes differ, so that the elections of two followers
/// do not begin at the same moment.
pub fn next_tick(node: NodeId, now: MonoTime) -> MonoTime {
    const STEPS: u64 = 8;
    let tick = TICK.as_nanos() as u64;
    let phase = u64::from(node.0) * 3 % STEPS * tick / STEPS;
    let since = now.0.saturating_sub(phase);
    MonoTime((since / tick + 1) * tick + phase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::env::Handler;
    use base::env::{BoxFuture, Channel, Frame, Net, NetError};
    use base::sim::Sim;
    use bytes::Bytes;

    /// A network that only counts.
    #[derive(Default)]
    struct Counting {
        sent: Mutex<Vec<(NodeId, usize)>>,
    }

    impl Net for Counting {
        fn call(&self, _: NodeId, _: Channel, _: Frame, _: MonoTime) -> BoxFuture<Result<Frame, NetError>> {
            Box::pin(async { Err(NetError::NotSent) })
        }
        fn send(&self, to: NodeId, _: Channel, message: Frame) {
            let batch = transport::decode(&message).unwrap();
            self.sent.lock().unwrap().push((to, batch.items.len()));
        }
        fn serve(&self, _: Arc<dyn Handler>) {}
    }

    #[test]
    fn a_thousand_groups_send_one_message_a_node() {
        let sim = Sim::new(3);
        let node = sim.node(NodeId(1));
        let counting = Arc::new(Counting::default());
        let env = Env { net: counting.clone(), ..node.env() };
        let heartbeats = Arc::new(Heartbeats::new(env.clone()));
        let done = sim.block_on(node.run(async move {
            for round in 0..3 {
                env.clock.sleep_until(next_tick(NodeId(1), env.now())).await;
                for group in 0..1000 {
                    for to in [2, 3] {
                        let message = Bytes::from_static(b"beat");
                        let item = RaftItem { group, message, fresh: round == 0, ..RaftItem::default() };
                        heartbeats.add(NodeId(to), 0, item);
                    }
                }
            }
            env.sleep(TICK).await;
        }));
        done.expect("no crash meanwhile");
        let sent = counting.sent.lock().unwrap().clone();
        assert_eq!(sent, [2, 3].repeat(3).into_iter().map(|to| (NodeId(to), 1000)).collect::<Vec<_>>());
    }

    #[test]
    fn replicas_of_a_node_tick_together_and_nodes_apart() {
        let tick = TICK.as_nanos() as u64;
        for node in (1..20).map(NodeId) {
            let first = next_tick(node, MonoTime(123_456_789));
            assert!(first.0 > 123_456_789 && first.0 - 123_456_789 <= tick);
            assert_eq!(next_tick(node, MonoTime(first.0 - 1)), first);
            assert_eq!(next_tick(node, first), MonoTime(first.0 + tick));
        }
        let phases: std::collections::BTreeSet<u64> =
            (1..=5).map(|node| next_tick(NodeId(node), MonoTime(tick * 9)).0 % tick).collect();
        assert_eq!(phases.len(), 5);
    }
}
