//! Inventories: what the disks of a placement group hold, page by page, side by side.

use base::env::BoxFuture;
use base::ids::{ChunkId, NodeId};
use bytes::{BufMut, Bytes, BytesMut};
use client::wire::{Ask, Failure, Inventory, Told};
use std::collections::{BTreeMap, VecDeque};
use store::{Engine, Known};

use super::plan::{Group, Member};

/// Entries of one page: bounds the memory of an exchange to about this, twice, for each disk.
pub const PAGE_ENTRIES: usize = 4096;
const ENTRY_LEN: usize = ChunkId::LEN + 4 + 8 + 1;
const GOOD: u8 = 0;
const DELETED: u8 = 1;
const DAMAGED: u8 = 2;

/// What a disk says about an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Good {
        len: u32,
        crc64: u64,
    },
    /// It has a tombstone.
    Deleted,
    /// Its bytes do not verify.
    Damaged,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub id: ChunkId,
    pub state: State,
}

impl From<Known> for Entry {
    fn from(known: Known) -> Entry {
        match known {
            Known::Deleted(id) => Entry { id, state: State::Deleted },
            Known::Chunk(stat) if stat.damaged => Entry { id: stat.id, state: State::Damaged },
            Known::Chunk(stat) => Entry { id: stat.id, state: State::Good { len: stat.len, crc64: stat.crc64 } },
        }
    }
}

/// One page of a disk's inventory, straight from its engine. And whether more follows.
pub fn page_of(engine: &Engine, group: &Group, after: Option<ChunkId>) -> (Vec<Entry>, bool) {
    let page = engine.known(after, group.pg.pool, group.pg.slots(), PAGE_ENTRIES);
    let more = page.len() == PAGE_ENTRIES;
    (page.into_iter().map(Entry::from).collect(), more)
}

/// As [`client::wire::InventoryPage`] says.
pub fn encode(entries: &[Entry]) -> Bytes {
    let mut out = BytesMut::with_capacity(entries.len() * ENTRY_LEN);
    for entry in entries {
        let (len, crc64, state) = match entry.state {
            State::Good { len, crc64 } => (len, crc64, GOOD),
            State::Deleted => (0, 0, DELETED),
            State::Damaged => (0, 0, DAMAGED),
        };
        out.put_slice(&entry.id.to_bytes());
        out.put_u32_le(len);
        out.put_u64_le(crc64);
        out.put_u8(state);
    }
    out.freeze()
}

/// Refuses what is malformed, too long, or not in order.
pub fn decode(raw: &[u8]) -> Result<Vec<Entry>, String> {
    if !raw.len().is_multiple_of(ENTRY_LEN) || raw.len() / ENTRY_LEN > PAGE_ENTRIES {
        return Err(format!("an inventory page of {} bytes", raw.len()));
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(raw.len() / ENTRY_LEN);
    for line in raw.chunks_exact(ENTRY_LEN) {
        let number = |range: std::ops::Range<usize>| {
            line[range].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let id = ChunkId::from_bytes(line[..ChunkId::LEN].try_into().expect("a line is longer than an id"));
        let state = match line[ENTRY_LEN - 1] {
            GOOD => State::Good { len: number(16..20) as u32, crc64: number(20..28) },
            DELETED => State::Deleted,
            DAMAGED => State::Damaged,
            other => return Err(format!("an inventory line of state {other}")),
        };
        if entries.last().is_some_and(|last| last.id >= id) {
            return Err("an inventory page that is not in order".into());
        }
        entries.push(Entry { id, state });
    }
    Ok(entries)
}

/// What a node answered, with bulk bytes; or why it did not.
pub type Asked = Result<(Told, Vec<Bytes>), (Failure, String)>;

/// How other nodes are asked.
pub trait Peers: Send + Sync {
    fn ask(&self, node: NodeId, ask: Ask) -> BoxFuture<Asked>;
}

/// The inventories of a group's disks, walked together in id order. The first is the own disk's.
pub struct Walk<'a> {
    group: &'a Group,
    engine: &'a Engine,
    peers: &'a dyn Peers,
    cursors: Vec<Cursor>,
}

struct Cursor {
    /// `None`: the own disk.
    member: Option<Member>,
    waiting: VecDeque<Entry>,
    after: Option<ChunkId>,
    ended: bool,
}

/// What every disk says about a run of ids. An id that a disk does not know is not among its states.
pub type Window = BTreeMap<ChunkId, Vec<(usize, State)>>;

impl<'a> Walk<'a> {
    /// `members` are asked. One that is not required has failed: it may say that it cannot be read.
    pub fn new(group: &'a Group, engine: &'a Engine, peers: &'a dyn Peers, members: &[Member]) -> Walk<'a> {
        let cursor = |member: Option<Member>| Cursor { member, waiting: VecDeque::new(), after: None, ended: false };
        let cursors = std::iter::once(None).chain(members.iter().copied().map(Some)).map(cursor).collect();
        Walk { group, engine, peers, cursors }
    }

    /// The disk behind the number in a window.
    pub fn member(&self, number: usize) -> Option<Member> {
        self.cursors[number].member
    }

    /// The next run of ids; `None` at the end. Fails when a disk does not answer: what is not known of it is not nothing.
    pub async fn next(&mut self) -> Result<Option<Window>, String> {
        for number in 0..self.cursors.len() {
            if self.cursors[number].waiting.is_empty() && !self.cursors[number].ended {
                self.fill(number).await?;
            }
        }
        if self.cursors.iter().all(|cursor| cursor.waiting.is_empty()) {
            return Ok(None);
        }
        // Up to here everybody has said all.
        let known = |cursor: &Cursor| if cursor.ended { None } else { cursor.waiting.back().map(|entry| entry.id) };
        let upto = self.cursors.iter().filter_map(known).min();
        let mut window = Window::new();
        for (number, cursor) in self.cursors.iter_mut().enumerate() {
            while let Some(entry) = cursor.waiting.front().filter(|entry| upto.is_none_or(|upto| entry.id <= upto)) {
                window.entry(entry.id).or_default().push((number, entry.state));
                cursor.waiting.pop_front();
            }
        }
        Ok(Some(window))
    }

    async fn fill(&mut self, number: usize) -> Result<(), String> {
        let cursor = &mut self.cursors[number];
        let (entries, more) = match cursor.member {
            None => page_of(self.engine, self.group, cursor.after),
            Some(member) => match ask_page(self.peers, self.group, &member, cursor.after).await {
                Ok(page) => page,
                // What a failed disk held is gone only when its node says so.
                Err((Failure::NoDisk, _)) if !member.required => (Vec::new(), false),
                Err((_, why)) => return Err(why),
            },
        };
        cursor.ended = !more || entries.is_empty();
        cursor.after = entries.last().map(|entry| entry.id).or(cursor.after);
        cursor.waiting.extend(entries);
        Ok(())
    }
}

async fn ask_page(
    peers: &dyn Peers,
    group: &Group,
    member: &Member,
    after: Option<ChunkId>,
) -> Result<(Vec<Entry>, bool), (Failure, String)> {
    let ask = Ask::Inventory(Inventory {
        disk: Bytes::copy_from_slice(&member.disk.0.to_be_bytes()),
        pool: u32::from(group.pg.pool.0),
        prefix: group.pg.prefix,
        epoch: group.epoch.0,
        after: after.map(|id| Bytes::copy_from_slice(&id.to_bytes())).unwrap_or_default(),
    });
    match peers.ask(member.node, ask).await {
        Ok((Told::Inventory(page), _)) => {
            let invalid = |why| (Failure::Invalid, why);
            let entries = decode(&page.entries).map_err(invalid)?;
            if entries.first().is_some_and(|first| after.is_some_and(|after| first.id <= after)) {
                return Err(invalid(format!("node {} repeats its inventory", member.node)));
            }
            Ok((entries, page.more))
        }
        Ok(_) => Err((Failure::Invalid, format!("node {} answered another question", member.node))),
        Err((failure, detail)) => Err((failure, format!("{failure:?}: {detail}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pages_round_trip(lines in proptest::collection::btree_map(any::<u128>(), (any::<u32>(), any::<u64>(), 0u8..3), 0..40)) {
            let entry = |(id, (len, crc64, state)): (u128, (u32, u64, u8))| {
                let state = [State::Good { len, crc64 }, State::Deleted, State::Damaged][state as usize];
                Entry { id: ChunkId::from_u128(id), state }
            };
            let entries: Vec<Entry> = lines.into_iter().map(entry).collect();
            prop_assert_eq!(decode(&encode(&entries)), Ok(entries));
        }

        #[test]
        fn garbage_is_refused_or_in_order(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(entries) = decode(&raw) {
                prop_assert!(entries.is_sorted_by(|a, b| a.id < b.id));
            }
        }
    }
}
