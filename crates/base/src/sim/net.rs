//! The message network of a simulation: whole messages, each with a delay of its own, so that they overtake each
//! other; links that lose, repeat, hold back or swallow. What a node says to itself arrives at once and always.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::clock::NodeClock;
use super::executor::{Core, Event, EventKey, Incarnation, lock};
use super::prng::{PPM, Prng};
use super::trace::{TraceKind, digest};
use crate::env::{BoxFuture, Channel, Frame, Handler, MonoTime, Net, NetError};
use crate::ids::NodeId;

/// Messages that one link may hold back or calls that one node may wait for. Beyond it a request is not sent.
const QUEUE_MAX: usize = 65_536;

/// How long it takes to learn that a peer does not accept connections, when nothing answers at all.
const CONNECT_TIMEOUT_NANOS: u64 = 1_000_000_000;

type CallResult = Result<Frame, NetError>;

/// How the network behaves, for all links alike.
#[derive(Clone, Copy, Debug)]
pub struct NetModel {
    /// One way, least and most, in nanoseconds.
    pub latency_nanos: (u64, u64),
    /// Bulk bytes add to the delay at this rate.
    pub per_mib_nanos: u64,
    /// So many in a million messages take up to `tail_nanos` longer.
    pub tail_ppm: u64,
    pub tail_nanos: u64,
    /// So many in a million messages are lost: requests and answers with their connection, or in silence.
    pub loss_ppm: u64,
    /// So many in a million requests and one-way messages arrive twice.
    pub duplicate_ppm: u64,
}

impl Default for NetModel {
    /// A quiet local network.
    fn default() -> NetModel {
        NetModel {
            latency_nanos: (50_000, 400_000),
            per_mib_nanos: 800_000,
            tail_ppm: 2_000,
            tail_nanos: 20_000_000,
            loss_ppm: 0,
            duplicate_ppm: 0,
        }
    }
}

impl NetModel {
    /// A bad day: losses, repetitions and long delays.
    pub fn rough() -> NetModel {
        NetModel {
            tail_ppm: 50_000,
            tail_nanos: 300_000_000,
            loss_ppm: 20_000,
            duplicate_ppm: 20_000,
            ..NetModel::default()
        }
    }
}

pub(super) struct NetState {
    pub(super) model: NetModel,
    prng: Prng,
    links: BTreeMap<(NodeId, NodeId), Link>,
    listeners: BTreeMap<NodeId, Listener>,
    calls: BTreeMap<u64, Call>,
    calls_begun: u64,
}

/// One direction between two nodes.
#[derive(Default)]
struct Link {
    cut: bool,
    hung: bool,
    delay_nanos: u64,
    /// When the last of its messages arrives: one that arrives before has overtaken it.
    last_arrival_nanos: u64,
    held: Vec<Packet>,
}

struct Listener {
    incarnation: Arc<Incarnation>,
    handler: Arc<dyn Handler>,
}

struct Call {
    caller: Arc<Incarnation>,
    reply: oneshot::Sender<CallResult>,
    deadline: EventKey,
}

#[derive(Clone)]
pub(super) struct Packet {
    from: NodeId,
    to: NodeId,
    /// Connections end with the process: what was on its way to an earlier incarnation does not reach the next.
    to_start: u64,
    channel: Channel,
    frame: Frame,
    kind: PacketKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PacketKind {
    OneWay,
    Request(u64),
    Answer(u64),
    /// The connection breaks, because the sender's process has ended.
    End,
}

impl Packet {
    fn digest(&self) -> u64 {
        let head = digest(self.channel as u64, &self.frame.head);
        self.frame.bulk.iter().fold(head, |hash, piece| digest(hash, piece))
    }

    fn link(&self) -> u64 {
        u64::from(self.from.0) << 32 | u64::from(self.to.0)
    }

    fn bulk_bytes(&self) -> u64 {
        self.frame.bulk.iter().map(|piece| piece.len() as u64).sum()
    }
}

impl NetState {
    pub(super) fn new(prng: Prng) -> NetState {
        NetState {
            model: NetModel::default(),
            prng,
            links: BTreeMap::new(),
            listeners: BTreeMap::new(),
            calls: BTreeMap::new(),
            calls_begun: 0,
        }
    }

    pub(super) fn set_cut(&mut self, from: NodeId, to: NodeId, cut: bool) {
        self.links.entry((from, to)).or_default().cut = cut;
    }

    pub(super) fn set_hung(&mut self, from: NodeId, to: NodeId) {
        self.links.entry((from, to)).or_default().hung = true;
    }

    pub(super) fn set_delay(&mut self, from: NodeId, to: NodeId, delay_nanos: u64) {
        self.links.entry((from, to)).or_default().delay_nanos = delay_nanos;
    }

    fn link(&self, packet: &Packet) -> Option<&Link> {
        self.links.get(&(packet.from, packet.to))
    }

    fn delay_nanos(&mut self, bulk_bytes: u64) -> u64 {
        let (low, high) = self.model.latency_nanos;
        let mut nanos = self.prng.between(low, high) + bulk_bytes * self.model.per_mib_nanos / crate::MIB;
        if self.prng.chance(self.model.tail_ppm) {
            nanos += self.prng.between(0, self.model.tail_nanos);
        }
        nanos
    }
}

impl Core {
    /// Makes every link work again; what was held back is on its way.
    pub(super) fn net_heal(&self) {
        let mut net = lock(&self.net);
        let links = std::mem::take(&mut net.links);
        for packet in links.into_values().flat_map(|link| link.held) {
            let nanos = net.delay_nanos(packet.bulk_bytes());
            self.schedule_in(nanos, Event::Deliver(Box::new(packet)));
        }
    }

    /// Lets go what a link held back.
    pub(super) fn net_unhang(&self, from: NodeId, to: NodeId) {
        let mut net = lock(&self.net);
        let Some(link) = net.links.get_mut(&(from, to)) else {
            return;
        };
        link.hung = false;
        for packet in std::mem::take(&mut link.held) {
            let nanos = net.delay_nanos(packet.bulk_bytes());
            self.schedule_in(nanos, Event::Deliver(Box::new(packet)));
        }
    }

    /// Forgets a crashed node's handler, which the caller must drop, and what it waited for.
    pub(super) fn net_forget(&self, node: NodeId) -> impl Sized + use<> {
        let mut net = lock(&self.net);
        let listener = net.listeners.remove(&node).map(|listener| listener.handler);
        let gone: Vec<u64> = net.calls.iter().filter(|(_, call)| call.caller.node == node).map(|(id, _)| *id).collect();
        let calls: Vec<Call> = gone.iter().filter_map(|id| net.calls.remove(id)).collect();
        drop(net);
        for call in &calls {
            self.cancel(call.deadline);
        }
        (listener, calls)
    }

    /// Those who are connected to a process that has ended learn it soon.
    pub(super) fn net_end(self: &Arc<Core>, node: NodeId) {
        let others: Vec<NodeId> = lock(&self.net).listeners.keys().copied().filter(|other| *other != node).collect();
        for to in others {
            let to_start = self.running_start(to).unwrap_or(0);
            let (channel, frame, kind) = (Channel::Control, Frame::default(), PacketKind::End);
            let packet = Packet { from: node, to, to_start, channel, frame, kind };
            let nanos = lock(&self.net).delay_nanos(0);
            self.schedule_in(nanos, Event::Deliver(Box::new(packet)));
        }
    }

    fn net_call(
        self: &Arc<Core>,
        caller: &SimNet,
        mut packet: Packet,
        deadline: MonoTime,
        reply: oneshot::Sender<CallResult>,
    ) {
        let deadline_nanos = caller.clock.sim_nanos(deadline);
        let refused = if !caller.incarnation.is_alive() {
            Some(NetError::NotSent)
        } else if deadline_nanos <= self.now_nanos() {
            Some(NetError::DeadlineExceeded)
        } else if lock(&self.net).calls.len() >= QUEUE_MAX {
            Some(NetError::NotSent)
        } else {
            None
        };
        if let Some(error) = refused {
            drop(reply.send(Err(error)));
            return;
        }
        let id = {
            let mut net = lock(&self.net);
            net.calls_begun += 1;
            let id = net.calls_begun;
            let deadline = self.schedule(deadline_nanos, Event::CallDeadline(id));
            net.calls.insert(id, Call { caller: caller.incarnation.clone(), reply, deadline });
            id
        };
        packet.kind = PacketKind::Request(id);
        self.net_send(packet);
    }

    /// Ends a call that still waits.
    pub(super) fn net_finish(&self, id: u64, result: CallResult) {
        let call = lock(&self.net).calls.remove(&id);
        let Some(call) = call else { return };
        self.cancel(call.deadline);
        // The caller may have stopped waiting.
        drop(call.reply.send(result));
    }

    /// Puts a packet on its way, or not, as the link and the seed have it.
    fn net_send(self: &Arc<Core>, mut packet: Packet) {
        self.trace(TraceKind::Send, packet.link(), packet.digest());
        let start = self.running_start(packet.to);
        packet.to_start = start.unwrap_or(0);
        if packet.from == packet.to {
            return self.net_deliver(packet);
        }
        let mut net = lock(&self.net);
        if net.link(&packet).is_some_and(|link| link.cut) {
            self.count_fault("messages into a cut link", 1);
            return self.net_swallow(&mut net, &packet);
        }
        if start.is_none() {
            return self.net_fail(&mut net, &packet, NetError::NotSent);
        }
        let slow_nanos = net.link(&packet).map_or(0, |link| link.delay_nanos);
        let loss_ppm = net.model.loss_ppm;
        if net.prng.chance(loss_ppm) {
            self.count_fault("messages lost", 1);
            return self.net_lose(&mut net, &packet);
        }
        let duplicate_ppm = net.model.duplicate_ppm;
        if !matches!(packet.kind, PacketKind::Answer(_)) && net.prng.chance(duplicate_ppm) {
            self.count_fault("messages repeated", 1);
            let nanos = slow_nanos + net.delay_nanos(packet.bulk_bytes());
            self.schedule_in(nanos, Event::Deliver(Box::new(packet.clone())));
        }
        self.count_fault("messages on a slow link", u64::from(slow_nanos > 0));
        let nanos = slow_nanos + net.delay_nanos(packet.bulk_bytes());
        let arrival_nanos = self.now_nanos().saturating_add(nanos);
        let link = net.links.entry((packet.from, packet.to)).or_default();
        self.count_fault("messages overtaken", u64::from(arrival_nanos < link.last_arrival_nanos));
        link.last_arrival_nanos = link.last_arrival_nanos.max(arrival_nanos);
        self.schedule_in(nanos, Event::Deliver(Box::new(packet)));
    }

    pub(super) fn net_deliver(self: &Arc<Core>, packet: Packet) {
        let to_self = packet.from == packet.to;
        let mut net = lock(&self.net);
        if let Some(link) = net.links.get_mut(&(packet.from, packet.to)).filter(|_| !to_self) {
            if link.hung && link.held.len() < QUEUE_MAX {
                link.held.push(packet);
                self.count_fault("messages held by a hanging link", 1);
                return;
            }
            if link.cut || link.hung {
                return self.net_lose(&mut net, &packet);
            }
        }
        self.trace(TraceKind::Deliver, packet.link(), packet.digest());
        if let PacketKind::Answer(id) = packet.kind {
            drop(net);
            // An answer to an earlier incarnation finds no call: those were forgotten at the crash.
            return self.net_finish(id, Ok(packet.frame));
        }
        let listener = net.listeners.get(&packet.to).filter(|listener| listener.incarnation.number == packet.to_start);
        let Some(listener) = listener else {
            // Whoever runs and does not listen refuses the connection; whoever has gone broke it.
            let refused = self.running_start(packet.to) == Some(packet.to_start);
            let error = if refused { NetError::NotSent } else { NetError::Broken };
            return self.net_fail(&mut net, &packet, error);
        };
        let (incarnation, handler) = (listener.incarnation.clone(), listener.handler.clone());
        drop(net);
        if packet.kind == PacketKind::End {
            let task = async move { handler.ended(packet.from) };
            return self.spawn(incarnation.slot, Some(&incarnation), "hear of an end", Box::pin(task));
        }
        let guard = AnswerGuard {
            core: self.clone(),
            from: packet.to,
            to: packet.from,
            channel: packet.channel,
            kind: packet.kind,
        };
        let task = async move {
            let guard = guard;
            let answer = handler.handle(packet.from, packet.channel, packet.frame).await;
            guard.send(answer);
        };
        self.spawn(incarnation.slot, Some(&incarnation), "answer a message", Box::pin(task));
    }

    /// A lost packet: its connection breaks, which the caller may see, or the caller waits until its deadline.
    fn net_lose(&self, net: &mut NetState, packet: &Packet) {
        if net.prng.chance(PPM / 2) {
            self.net_fail(net, packet, NetError::Broken);
        }
    }

    /// A packet into a cut link. When it would have needed a new connection, the caller learns that it was never sent.
    fn net_swallow(&self, net: &mut NetState, packet: &Packet) {
        if let PacketKind::Request(id) = packet.kind
            && net.prng.chance(PPM / 4)
        {
            self.schedule_in(CONNECT_TIMEOUT_NANOS, Event::CallFailed(id, NetError::NotSent));
        }
    }

    /// The caller learns after a while that its call has failed, whichever of its packets was hit.
    fn net_fail(&self, net: &mut NetState, packet: &Packet, error: NetError) {
        if let PacketKind::Request(id) | PacketKind::Answer(id) = packet.kind {
            let nanos = net.delay_nanos(0);
            self.schedule_in(nanos, Event::CallFailed(id, error));
        }
    }

    /// Which start of `node` is running, if any.
    fn running_start(&self, node: NodeId) -> Option<u64> {
        let world = self.world();
        let slot = *world.node_slots.get(&node)?;
        world.nodes[slot].running.as_ref().map(|(incarnation, _)| incarnation.number)
    }
}

/// Sends the answer of a handler back, or breaks the connection when the handler dies with its node.
struct AnswerGuard {
    core: Arc<Core>,
    from: NodeId,
    to: NodeId,
    channel: Channel,
    kind: PacketKind,
}

impl AnswerGuard {
    fn send(mut self, frame: Frame) {
        if let Some(packet) = self.packet(frame) {
            self.core.net_send(packet);
        }
    }

    fn packet(&mut self, frame: Frame) -> Option<Packet> {
        let PacketKind::Request(id) = std::mem::replace(&mut self.kind, PacketKind::OneWay) else {
            return None;
        };
        let kind = PacketKind::Answer(id);
        Some(Packet { from: self.from, to: self.to, to_start: 0, channel: self.channel, frame, kind })
    }
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        if let Some(packet) = self.packet(Frame::default()) {
            let mut net = lock(&self.core.net);
            if !net.link(&packet).is_some_and(|link| link.cut || link.hung) {
                self.core.net_lose(&mut net, &packet);
            }
        }
    }
}

/// [`Net`] of one incarnation of a node.
pub(super) struct SimNet {
    pub(super) core: Arc<Core>,
    pub(super) clock: Arc<NodeClock>,
    pub(super) incarnation: Arc<Incarnation>,
}

impl SimNet {
    fn packet(&self, to: NodeId, channel: Channel, frame: Frame) -> Packet {
        Packet { from: self.incarnation.node, to, to_start: 0, channel, frame, kind: PacketKind::OneWay }
    }
}

impl Net for SimNet {
    fn call(&self, to: NodeId, channel: Channel, request: Frame, deadline: MonoTime) -> BoxFuture<CallResult> {
        let (reply, receiver) = oneshot::channel();
        self.core.net_call(self, self.packet(to, channel, request), deadline, reply);
        // Without an answer the caller's node has crashed.
        Box::pin(async move { receiver.await.unwrap_or(Err(NetError::Broken)) })
    }

    fn send(&self, to: NodeId, channel: Channel, message: Frame) {
        if self.incarnation.is_alive() {
            self.core.net_send(self.packet(to, channel, message));
        }
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        if !self.incarnation.is_alive() {
            return;
        }
        let listener = Listener { incarnation: self.incarnation.clone(), handler };
        let before = lock(&self.core.net).listeners.insert(self.incarnation.node, listener);
        assert!(before.is_none(), "a node sets its handler once, at start");
    }
}
