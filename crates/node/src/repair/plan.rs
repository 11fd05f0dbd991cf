//! What the map asks of this node's disks, and what is to be done about an id: pure.

use base::env::MonoTime;
use base::ids::{ChunkId, DiskId, NodeId, PgEpoch, PgId, PoolId};
use base::plant::{self, Plant};
use client::disk_id;
use meta::map::command::{ClusterMap, DiskState, NodeState, PgRow};
use std::collections::BTreeMap;
use std::time::Duration;

use super::Urgency;
use super::exchange::State;

/// A placement group that one of this node's disks is a member of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    pub pg: PgId,
    pub epoch: PgEpoch,
    pub closed: bool,
    pub own: DiskId,
    /// The other members; while it moves, also those before.
    pub others: Vec<Member>,
    /// Fewer copies than the pool has in effect, or a member that is out of service.
    pub degraded: bool,
    /// Disks in service that hold it, and how many there should be.
    pub sources: usize,
    pub wanted: usize,
    /// The generations of the other members' nodes: whoever was away, or started anew, must be compared with again.
    pub lives: Vec<u32>,
}

/// Another disk of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    pub disk: DiskId,
    pub node: NodeId,
    pub reach: Reach,
    /// What it holds must be known before the group may open.
    pub required: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    Serving,
    /// Down: it may come back with what only it has.
    Awaited,
    /// Its node serves, and the disk has failed: perhaps it can still be read.
    Failed,
    Gone,
}

impl Group {
    pub fn key(&self) -> (PoolId, u32) {
        (self.pg.pool, self.pg.prefix)
    }

    pub fn urgency(&self) -> Urgency {
        match self.sources {
            0 | 1 if self.wanted > 1 => Urgency::LastCopy,
            _ if self.sources < self.wanted => Urgency::Degraded,
            _ => Urgency::Whole,
        }
    }

    /// Whoever can be asked.
    pub fn reachable(&self) -> Vec<Member> {
        self.others.iter().copied().filter(|other| matches!(other.reach, Reach::Serving | Reach::Failed)).collect()
    }

    /// Nobody whose answer is needed is away.
    pub fn all_required_serve(&self) -> bool {
        self.others.iter().all(|other| !other.required || other.reach == Reach::Serving)
    }
}

/// The groups of this node, in order.
pub fn groups_of(map: &ClusterMap, node: NodeId) -> Vec<Group> {
    let places = Places::new(map);
    map.pgs.iter().filter_map(|row| places.group(row, node)).collect()
}

/// Groups that are to have nothing on `disk` any more: open, and held by others, each of whom must be asked.
pub fn left_by(map: &ClusterMap, disk: DiskId) -> Vec<Group> {
    let places = Places::new(map);
    let raw = disk.0.to_be_bytes();
    let is_open = |row: &PgRow| !row.closed || plant::is(Plant::EvictBlindly);
    let is_elsewhere = |row: &&PgRow| is_open(row) && !row.members.iter().any(|member| member.as_ref() == raw);
    let group = |row: &PgRow| {
        let mut group = places.group_for(row, disk)?;
        group.others.iter_mut().for_each(|other| other.required = true);
        Some(group)
    };
    map.pgs.iter().filter(is_elsewhere).filter_map(group).collect()
}

fn bits_of(map: &ClusterMap) -> BTreeMap<u32, u8> {
    map.pools.iter().map(|row| (row.id, row.pg_bits.min(24) as u8)).collect()
}

pub fn pg_id(row: &PgRow, bits: &BTreeMap<u32, u8>) -> Option<PgId> {
    Some(PgId { pool: PoolId(u8::try_from(row.pool).ok()?), bits: *bits.get(&row.pool)?, prefix: row.prefix })
}

struct Places {
    nodes: BTreeMap<u32, (NodeState, u32)>,
    disks: BTreeMap<DiskId, (NodeId, DiskState)>,
    bits: BTreeMap<u32, u8>,
    copies: BTreeMap<u32, usize>,
}

impl Places {
    fn new(map: &ClusterMap) -> Places {
        let disks = map.disks.iter().filter_map(|row| Some((disk_id(&row.id)?, (NodeId(row.node), row.state()))));
        Places {
            nodes: map.nodes.iter().map(|row| (row.id, (row.state(), row.generation))).collect(),
            disks: disks.collect(),
            bits: bits_of(map),
            copies: map.pools.iter().map(|row| (row.id, row.copies_effective as usize)).collect(),
        }
    }

    fn group(&self, row: &PgRow, node: NodeId) -> Option<Group> {
        let mut members = row.members.iter().filter_map(|raw| disk_id(raw));
        let own = members.find(|disk| self.disks.get(disk).is_some_and(|(on, _)| *on == node))?;
        self.group_for(row, own)
    }

    /// As `own` sees it, which need not be a member.
    fn group_for(&self, row: &PgRow, own: DiskId) -> Option<Group> {
        let disks = |raw: &[bytes::Bytes]| -> Vec<DiskId> { raw.iter().filter_map(|raw| disk_id(raw)).collect() };
        let members = disks(&row.members);
        let mut all = members.clone();
        all.extend(disks(&row.members_before).into_iter().filter(|disk| !members.contains(disk)));
        let others: Vec<Member> = all.into_iter().filter(|disk| *disk != own).map(|disk| self.member(disk)).collect();
        let serving = |disk: &&DiskId| **disk == own || self.member(**disk).reach == Reach::Serving;
        let copies = members.iter().filter(serving).count();
        let wanted = self.copies.get(&row.pool).copied().unwrap_or(1).max(members.len());
        let holders = if row.closed { disks(&row.members_before) } else { members };
        let sources = holders.iter().filter(serving).count();
        let life = |other: &Member| self.nodes.get(&other.node.0).map_or(0, |(_, generation)| *generation);
        let lives = others.iter().map(life).collect();
        Some(Group {
            lives,
            pg: pg_id(row, &self.bits)?,
            epoch: PgEpoch(row.epoch),
            closed: row.closed,
            own,
            others,
            degraded: copies < wanted,
            sources,
            wanted,
        })
    }

    fn member(&self, disk: DiskId) -> Member {
        let (node, state) = self.disks.get(&disk).copied().unwrap_or((NodeId(0), DiskState::Removed));
        let reach = match self.nodes.get(&node.0).map(|(state, _)| *state) {
            Some(NodeState::Up | NodeState::Draining) if state.serves() => Reach::Serving,
            Some(NodeState::Up | NodeState::Draining) if state == DiskState::Failed => Reach::Failed,
            Some(NodeState::Down | NodeState::Joining) if state.serves() => Reach::Awaited,
            _ => Reach::Gone,
        };
        Member { disk, node, reach, required: matches!(reach, Reach::Serving | Reach::Awaited) }
    }
}

/// What is to be done here about an id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All disks agree.
    Same,
    /// Others lack it; they know best how to get it.
    Elsewhere,
    /// It was deleted: the copy here goes.
    Bury,
    /// This disk lacks it.
    Pull(Want),
    /// As `Pull`; the copy here is damaged.
    Mend(Want),
    /// No disk that answered has a good copy.
    Hopeless,
    /// Two disks hold other bytes under the same id: never happens, or a defect.
    Conflict,
}

/// A chunk to be pulled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    pub id: ChunkId,
    pub len: u32,
    pub crc64: u64,
    /// Numbers of the disks that have it.
    pub sources: Vec<usize>,
}

/// Judges what `disks` disks say about `id`; the own is number 0. Tombstones always win.
pub fn judge(id: ChunkId, states: &[(usize, State)], disks: usize) -> Verdict {
    let own = states.iter().find(|(number, _)| *number == 0).map(|(_, state)| *state);
    if states.iter().any(|(_, state)| *state == State::Deleted) && !plant::is(Plant::ResurrectDeleted) {
        let lives_here = matches!(own, Some(State::Good { .. } | State::Damaged));
        let lives_elsewhere = states.iter().any(|(_, state)| *state != State::Deleted);
        return if lives_here {
            Verdict::Bury
        } else if lives_elsewhere {
            Verdict::Elsewhere
        } else {
            Verdict::Same
        };
    }
    let good: Vec<(usize, u32, u64)> = states
        .iter()
        .filter_map(|(number, state)| match state {
            State::Good { len, crc64 } => Some((*number, *len, *crc64)),
            _ => None,
        })
        .collect();
    let Some((_, len, crc64)) = good.first().copied() else { return Verdict::Hopeless };
    if good.iter().any(|(_, l, c)| (*l, *c) != (len, crc64)) {
        return Verdict::Conflict;
    }
    let sources = good.iter().map(|(number, _, _)| *number).collect();
    match own {
        Some(State::Good { .. }) if good.len() == disks => Verdict::Same,
        Some(State::Good { .. }) => Verdict::Elsewhere,
        Some(_) => Verdict::Mend(Want { id, len, crc64, sources }),
        None => Verdict::Pull(Want { id, len, crc64, sources }),
    }
}

/// Ids that differ between the disks of a group, and since when. What a writer has under way differs for a moment.
#[derive(Clone, Debug, Default)]
pub struct Suspects {
    since: BTreeMap<ChunkId, MonoTime>,
    /// More differ than are remembered.
    overflow: bool,
}

/// Differing ids remembered for one group.
const SUSPECTS_MAX: usize = 1 << 16;

impl Suspects {
    /// The same id in the comparison before: since then; else since now.
    pub fn note(&mut self, before: &Suspects, id: ChunkId, now: MonoTime) -> MonoTime {
        let since = before.since.get(&id).copied().unwrap_or(now);
        if self.since.len() < SUSPECTS_MAX {
            self.since.insert(id, since);
        } else {
            self.overflow = true;
        }
        since
    }

    /// Whether all that differs may still be under way.
    pub fn are_fresh(&self, now: MonoTime, missing_after: Duration) -> bool {
        !self.overflow && self.since.values().all(|since| now.since(*since) < missing_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use meta::map::command::{DiskRow, NodeRow, PoolRow};

    const GOOD: State = State::Good { len: 5, crc64: 9 };

    fn id() -> ChunkId {
        ChunkId::from_u128(7)
    }

    fn want(sources: &[usize]) -> Want {
        Want { id: id(), len: 5, crc64: 9, sources: sources.to_vec() }
    }

    #[test]
    fn each_case_of_an_id() {
        let cases: [(&[(usize, State)], Verdict); 12] = [
            (&[(0, GOOD), (1, GOOD), (2, GOOD)], Verdict::Same),
            (&[(0, GOOD), (1, GOOD)], Verdict::Elsewhere),
            (&[(0, GOOD), (1, GOOD), (2, State::Damaged)], Verdict::Elsewhere),
            (&[(1, GOOD), (2, GOOD)], Verdict::Pull(want(&[1, 2]))),
            (&[(0, State::Damaged), (2, GOOD)], Verdict::Mend(want(&[2]))),
            (&[(0, State::Damaged), (1, State::Damaged)], Verdict::Hopeless),
            (&[(1, State::Damaged)], Verdict::Hopeless),
            (&[(0, GOOD), (1, State::Deleted)], Verdict::Bury),
            (&[(0, State::Damaged), (1, State::Deleted)], Verdict::Bury),
            (&[(1, GOOD), (2, State::Deleted)], Verdict::Elsewhere),
            (&[(0, State::Deleted), (1, State::Deleted)], Verdict::Same),
            (&[(0, GOOD), (1, State::Good { len: 6, crc64: 9 })], Verdict::Conflict),
        ];
        for (states, expected) in cases {
            assert_eq!(judge(id(), states, 3), expected, "{states:?}");
        }
    }

    #[test]
    fn what_differs_for_long_is_missing_and_what_is_under_way_is_not() {
        let second = |s: u64| MonoTime(s * 1_000_000_000);
        let after = Duration::from_secs(5);
        let mut first = Suspects::default();
        assert_eq!(first.note(&Suspects::default(), id(), second(10)), second(10));
        let mut again = Suspects::default();
        assert_eq!(again.note(&first, id(), second(12)), second(10));
        assert!(again.are_fresh(second(12), after));
        assert!(!again.are_fresh(second(15), after));
        let mut gone = Suspects::default();
        assert!(gone.are_fresh(second(99), after), "nothing differs");
        assert_eq!(gone.note(&Suspects::default(), id(), second(99)), second(99), "the count starts anew");
    }

    #[test]
    fn the_map_says_who_is_asked() {
        let raw = |disk: u128| Bytes::copy_from_slice(&disk.to_be_bytes());
        let node = |id, state: NodeState| NodeRow { id, state: state as i32, ..NodeRow::default() };
        let disk = |id: u32, state: DiskState| DiskRow {
            id: raw(id.into()),
            node: id,
            capacity_bytes: 1,
            state: state as i32,
            ..DiskRow::default()
        };
        let map = ClusterMap {
            nodes: vec![
                node(1, NodeState::Up),
                node(2, NodeState::Down),
                node(3, NodeState::Lost),
                node(4, NodeState::Draining),
                node(5, NodeState::Up),
            ],
            disks: (1..=5).map(|id| disk(id, if id == 5 { DiskState::Failed } else { DiskState::Up })).collect(),
            pools: vec![PoolRow { id: 1, copies_effective: 2, pg_bits: 1, ..PoolRow::default() }],
            pgs: vec![
                PgRow { pool: 1, prefix: 0, epoch: 4, members: vec![raw(4), raw(5)], ..PgRow::default() },
                PgRow {
                    pool: 1,
                    prefix: 1,
                    epoch: 7,
                    closed: true,
                    members: vec![raw(1), raw(4)],
                    members_before: vec![raw(1), raw(2), raw(3), raw(5)],
                },
            ],
            ..ClusterMap::default()
        };
        let groups = groups_of(&map, NodeId(1));
        assert_eq!(groups.len(), 1);
        let group = &groups[0];
        assert_eq!((group.epoch, group.closed, group.own, group.degraded), (PgEpoch(7), true, DiskId(1), false));
        let reach: Vec<(u32, Reach, bool)> =
            group.others.iter().map(|other| (other.node.0, other.reach, other.required)).collect();
        assert_eq!(
            reach,
            [(4, Reach::Serving, true), (2, Reach::Awaited, true), (3, Reach::Gone, false), (5, Reach::Failed, false)]
        );
        assert!(!group.all_required_serve());
        assert!(groups_of(&map, NodeId(4))[0].degraded, "its other member has failed");
        assert_eq!(left_by(&map, DiskId(1)).len(), 1);
        assert_eq!(left_by(&map, DiskId(5)), vec![], "a group that moves still needs it");
    }
}
