//! What happened to the cluster, as this node saw it: a bounded list, kept in the node's own directory, from which
//! `henge events` makes one timeline of all nodes.
//!
//! Only for people: nothing is decided from it, and losing it loses no data. Its times are wall-clock times.

use base::Env;
use base::checksum::crc32c;
use base::env::{Disk, read_file, replace_file};
use base::ids::NodeId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prost::Message;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Events that a node remembers.
pub const EVENTS_MAX: usize = 500;
/// Bytes of a sentence.
const TEXT_LEN_MAX: usize = 300;
const FILE: &str = "events";
const FILE_BYTES_MAX: u64 = 1 << 20;
/// From a change of the list to its place on disk.
const STORE_PAUSE: Duration = Duration::from_secs(2);
/// The same event of several nodes, so close to each other, is one.
const SAME_MS: u64 = 3000;

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum EventKind {
    Other = 0,
    Started = 1,
    /// A node missed its deadlines.
    Suspected = 2,
    /// Word of a suspect came after all.
    Heard = 3,
    /// Nobody who was asked reaches a suspect.
    Confirmed = 4,
    /// Others reach a suspect: the link to it is broken.
    Cut = 5,
    /// Voted down: its generation is fenced, writes go on without it.
    Fenced = 6,
    /// A leader was elected.
    Elected = 7,
    Up = 8,
    /// Given up: its copies are made again elsewhere.
    Lost = 9,
    /// Placement groups begin to move or to be copied.
    Moving = 10,
    Moved = 11,
    /// What a node lacked is there.
    Repaired = 12,
    Draining = 13,
    Removed = 14,
    DiskFailed = 15,
    Damaged = 16,
    CopiesRaised = 17,
    /// A node or disk answers far more slowly than its peers.
    Slow = 18,
    /// Everything is where it belongs.
    Settled = 19,
    /// The external fence command was asked to stop a node.
    FenceCommand = 20,
    /// Every node knows the next feature level: older versions are refused from here on.
    Upgraded = 21,
}

impl EventKind {
    /// As users see it; a word of the glossary.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Other => "other",
            EventKind::Started => "started",
            EventKind::Suspected => "suspected",
            EventKind::Heard => "heard",
            EventKind::Confirmed => "confirmed",
            EventKind::Cut => "cut",
            EventKind::Fenced => "fenced",
            EventKind::Elected => "elected",
            EventKind::Up => "up",
            EventKind::Lost => "lost",
            EventKind::Moving => "moving",
            EventKind::Moved => "moved",
            EventKind::Repaired => "repaired",
            EventKind::Draining => "draining",
            EventKind::Removed => "removed",
            EventKind::DiskFailed => "disk_failed",
            EventKind::Damaged => "damaged",
            EventKind::CopiesRaised => "copies_raised",
            EventKind::Slow => "slow",
            EventKind::Settled => "settled",
            EventKind::FenceCommand => "fence_command",
            EventKind::Upgraded => "upgraded",
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    #[prost(uint64, tag = "1")]
    pub wall_ms: u64,
    #[prost(enumeration = "EventKind", tag = "2")]
    pub kind: i32,
    /// The node that it is about; 0: none.
    #[prost(uint32, tag = "3")]
    pub about: u32,
    #[prost(string, tag = "4")]
    pub text: String,
    /// Who saw it, when it is shown together with those of other nodes.
    #[prost(uint32, repeated, tag = "5")]
    pub seen_by: Vec<u32>,
}

/// A list of events, oldest first.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Events {
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<Event>,
}

/// The events of one node.
pub struct EventLog {
    env: Env,
    node: NodeId,
    held: Mutex<Held>,
    counts: Family<KindLabel, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabel {
    kind: &'static str,
}

#[derive(Default)]
struct Held {
    events: VecDeque<Event>,
    changes: u64,
}

impl EventLog {
    /// With what the node's directory remembers. A list that cannot be read is begun anew.
    pub async fn open(env: Env, node: NodeId, disk: &dyn Disk) -> EventLog {
        let events = match read_file(disk, FILE, FILE_BYTES_MAX).await {
            Ok(Some(raw)) => decode(&raw).unwrap_or_default(),
            _ => Vec::new(),
        };
        let counts = Family::default();
        for kind in (0..=EventKind::Settled as i32).filter_map(|number| EventKind::try_from(number).ok()) {
            drop(counts.get_or_create(&KindLabel { kind: kind.as_str() }));
        }
        EventLog { env, node, held: Mutex::new(Held { events: events.into(), changes: 0 }), counts }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `about`: the node that it is about; 0 for none.
    pub fn record(&self, kind: EventKind, about: NodeId, text: impl Into<String>) {
        self.counts.get_or_create(&KindLabel { kind: kind.as_str() }).inc();
        let mut text = text.into();
        let cut = (0..=TEXT_LEN_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
        let wall_ms = self.env.clock.wall().0;
        let event = Event { wall_ms, kind: kind as i32, about: about.0, text, seen_by: vec![self.node.0] };
        let mut held = self.held();
        held.events.push_back(event);
        while held.events.len() > EVENTS_MAX {
            held.events.pop_front();
        }
        held.changes += 1;
    }

    /// Since the node started.
    pub fn counts(&self) -> Family<KindLabel, Counter> {
        self.counts.clone()
    }

    /// Oldest first.
    pub fn all(&self) -> Vec<Event> {
        self.held().events.iter().cloned().collect()
    }

    /// Keeps the list on disk, a little later than it changes.
    pub async fn keep(self: Arc<Self>, disk: Arc<dyn Disk>, mut stop: watch::Receiver<bool>) {
        let mut kept = 0;
        loop {
            let ends = tokio::select! {
                biased;
                ended = stop.wait_for(|stop| *stop) => { drop(ended); true }
                () = self.env.sleep(STORE_PAUSE) => false,
            };
            let (changes, events) = {
                let held = self.held();
                (held.changes, held.events.iter().cloned().collect::<Vec<Event>>())
            };
            if changes != kept {
                match replace_file(&*disk, FILE, encode(events)).await {
                    Ok(()) => kept = changes,
                    Err(error) => tracing::debug!("the list of events cannot be kept: {error}"),
                }
            }
            if ends {
                return;
            }
        }
    }
}

/// Byte map: a list in Protocol Buffers, then its CRC-32C (4, LE).
fn encode(events: Vec<Event>) -> bytes::Bytes {
    let mut out = Events { events }.encode_to_vec();
    let crc = crc32c(&[], &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.into()
}

fn decode(raw: &[u8]) -> Option<Vec<Event>> {
    let (body, crc) = raw.split_last_chunk::<4>()?;
    let is_whole = crc32c(&[], body) == u32::from_le_bytes(*crc);
    let mut events = Events::decode(body).ok().filter(|_| is_whole)?.events;
    let surplus = events.len().saturating_sub(EVENTS_MAX);
    events.drain(..surplus);
    Some(events)
}

/// The timelines of several nodes as one: by time, what several saw at about the same time only once.
pub fn merge(lists: Vec<Vec<Event>>) -> Vec<Event> {
    let mut all: Vec<Event> = lists.into_iter().flatten().collect();
    all.sort_by(|a, b| (a.wall_ms, a.kind, a.about, &a.seen_by).cmp(&(b.wall_ms, b.kind, b.about, &b.seen_by)));
    let mut merged: Vec<Event> = Vec::new();
    for event in all {
        let recent = merged.iter_mut().rev().take_while(|other| event.wall_ms - other.wall_ms <= SAME_MS);
        let same = recent.into_iter().find(|other| {
            (other.kind, other.about, &other.text) == (event.kind, event.about, &event.text)
                && other.seen_by.iter().all(|node| !event.seen_by.contains(node))
        });
        match same {
            Some(same) => {
                same.seen_by.extend(event.seen_by);
                same.seen_by.sort_unstable();
            }
            None => merged.push(event),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::sim::Sim;
    use proptest::prelude::*;

    fn event(wall_ms: u64, kind: EventKind, about: u32, seen_by: u32) -> Event {
        Event { wall_ms, kind: kind as i32, about, text: "as it is".into(), seen_by: vec![seen_by] }
    }

    #[test]
    fn what_several_nodes_saw_is_told_once() {
        let lists = vec![
            vec![event(1000, EventKind::Suspected, 3, 1), event(9000, EventKind::Suspected, 3, 1)],
            vec![event(1200, EventKind::Suspected, 3, 2), event(1300, EventKind::Suspected, 4, 2)],
        ];
        let merged = merge(lists);
        let shown: Vec<(u64, u32, &[u32])> =
            merged.iter().map(|event| (event.wall_ms, event.about, &event.seen_by[..])).collect();
        assert_eq!(shown, vec![(1000, 3, &[1, 2][..]), (1300, 4, &[2][..]), (9000, 3, &[1][..])]);
        let twice = vec![event(1000, EventKind::Up, 3, 1), event(1100, EventKind::Up, 3, 1)];
        assert_eq!(merge(vec![twice]).len(), 2, "one node does not see one thing twice");
    }

    #[test]
    fn the_newest_are_remembered_over_a_restart() {
        let sim = Sim::new(5);
        let node = sim.node(NodeId(1));
        let env = node.env();
        let disk: Arc<dyn Disk> = sim.disk(NodeId(1), "data");
        let kept = sim.block_on(node.run(async move {
            let log = Arc::new(EventLog::open(env.clone(), NodeId(1), &*disk).await);
            (0..EVENTS_MAX + 7).for_each(|number| log.record(EventKind::Other, NodeId(2), format!("number {number}")));
            let stop = watch::Sender::new(true);
            log.clone().keep(disk.clone(), stop.subscribe()).await;
            (log.all(), EventLog::open(env, NodeId(1), &*disk).await.all())
        }));
        let (before, after) = kept.expect("no crash meanwhile");
        assert_eq!((before.len(), before[0].text.as_str()), (EVENTS_MAX, "number 7"));
        assert_eq!(before, after);
    }

    proptest! {
        #[test]
        fn lists_round_trip_and_a_flipped_bit_is_noticed(count in 0usize..20, bit in any::<usize>()) {
            let events: Vec<Event> = (0..count as u64).map(|n| event(n, EventKind::Elected, 1, 2)).collect();
            let raw = encode(events.clone());
            prop_assert_eq!(decode(&raw), Some(events));
            let mut bad = raw.to_vec();
            let at = bit % (bad.len() * 8);
            bad[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(decode(&bad), None);
        }
    }
}
