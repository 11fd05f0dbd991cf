//! Which disks hold which placement group: pure, so that each decision can be tested as data.
//!
//! Failure domains are nested: region, zone, rack, node. Copies of one group are spread over them as evenly as there are
//! domains: with as many zones as copies (or more) no two copies share a zone, and likewise on every other level; on no
//! level does a domain get more than its even share, `ceil(copies / domains)`. Two copies never share a node.
//!
//! [`plan`] takes where the groups are and says where they should be. What may stay stays; what must go, and what evens out
//! the fill of the disks (in proportion to their capacity), moves, and nothing else. Among the places that would do,
//! weighted rendezvous hashing chooses (Thaler and Ravishankar 1998; weights as in Schindelhauer and Schomaker 2005), so
//! that the groups of a disk are shared with many others, which can all help to make its copies again.

use base::ids::{DiskId, NodeId, PgId};
use base::plant::{self, Plant};
use std::collections::{BTreeMap, BTreeSet};

/// A disk may have so much more or less than its share before groups move for the sake of evenness.
const TOLERANCE: f64 = 0.03;

/// Where a node stands: names from the widest domain to the narrowest, each may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub rack: String,
}

impl Locality {
    /// From `region=eu,zone=b,rack=r2`; what is not given, or not known, is empty.
    pub fn parse(text: &str) -> Locality {
        let mut locality = Locality::default();
        for (name, value) in text.split(',').filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "region" => locality.region = value.trim().into(),
                "zone" => locality.zone = value.trim().into(),
                "rack" => locality.rack = value.trim().into(),
                _ => {}
            }
        }
        locality
    }
}

/// A disk that may hold data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub disk: DiskId,
    pub node: NodeId,
    pub capacity_bytes: u64,
    pub locality: Locality,
    /// May be given groups that it does not hold; else it only keeps those that it has.
    pub may_gain: bool,
}

/// A group and the disks that hold it, in no order.
pub type Held = (PgId, Vec<DiskId>);

/// Region, zone, rack, node.
const LEVELS: usize = 4;
const NODE: usize = 3;

/// Where each of `groups` should be, in their order, best first: at most `copies` disks each, and fewer only where there are
/// too few nodes. Members that are no candidates are gone.
pub fn plan(groups: &[Held], copies: usize, candidates: &[Candidate]) -> Vec<Vec<DiskId>> {
    let mut layout = Layout::new(groups, copies, candidates);
    layout.fill();
    layout.even_out();
    layout.members()
}

/// How far the fullest and the emptiest disk are from their shares, as parts of these: what `plan` evens out.
pub fn spread(groups: &[Held], copies: usize, candidates: &[Candidate]) -> f64 {
    let layout = Layout::new(groups, copies, candidates);
    let off =
        |disk: usize| (layout.held_by[disk].len() as f64 - layout.share[disk]).abs() / layout.share[disk].max(1.0);
    (0..layout.disks.len()).map(off).fold(0.0, f64::max)
}

struct Layout<'a> {
    copies: usize,
    disks: Vec<&'a Candidate>,
    /// The domain of each disk on each level.
    domains: Vec<[usize; LEVELS]>,
    /// Copies of one group in one domain of each level, at most.
    most: [usize; LEVELS],
    /// Groups that each disk should hold, in proportion to its capacity as far as the domains allow.
    share: Vec<f64>,
    groups: Vec<PgId>,
    /// Of each group: positions of disks.
    members: Vec<Vec<usize>>,
    /// Members that had to leave for the sake of the domains, and stay where there is no better place.
    crowded: Vec<Vec<usize>>,
    /// Of each disk: the groups that it holds.
    held_by: Vec<BTreeSet<usize>>,
}

impl<'a> Layout<'a> {
    fn new(groups: &[Held], copies: usize, candidates: &'a [Candidate]) -> Layout<'a> {
        let mut disks: Vec<&Candidate> = candidates.iter().filter(|disk| disk.capacity_bytes > 0).collect();
        disks.sort_by_key(|candidate| candidate.disk);
        let (domains, counts) = domains(&disks);
        let most = counts.map(|count| copies.div_ceil(count.max(1)));
        let copies = copies.min(counts[NODE]);
        let most_of_domain = |most: usize| if plant::is(Plant::ShareZone) { copies } else { most };
        let on_node = if plant::is(Plant::ShareNode) { copies } else { 1 };
        let most = [most_of_domain(most[0]), most_of_domain(most[1]), most_of_domain(most[2]), on_node];
        let share = shares(&disks, &domains, &most, groups.len(), copies);
        let mut layout = Layout {
            copies,
            domains,
            most,
            share,
            groups: groups.iter().map(|(pg, _)| *pg).collect(),
            members: vec![Vec::new(); groups.len()],
            crowded: vec![Vec::new(); groups.len()],
            held_by: vec![BTreeSet::new(); disks.len()],
            disks,
        };
        for (group, (_, held)) in groups.iter().enumerate() {
            layout.keep(group, held);
        }
        layout
    }

    /// Members that may stay where they are.
    fn keep(&mut self, group: usize, held: &[DiskId]) {
        let position = |id: &DiskId| self.disks.binary_search_by_key(id, |candidate| candidate.disk).ok();
        let held: Vec<usize> = held.iter().filter_map(position).collect();
        for disk in held {
            if self.members[group].len() < self.copies && self.fits(group, disk, None, 0) {
                self.add(group, disk);
            } else if !self.members[group].contains(&disk) {
                self.crowded[group].push(disk);
            }
        }
    }

    fn add(&mut self, group: usize, disk: usize) {
        self.members[group].push(disk);
        self.held_by[disk].insert(group);
    }

    fn replace(&mut self, group: usize, from: usize, to: usize) {
        self.members[group].retain(|member| *member != from);
        self.held_by[from].remove(&group);
        self.add(group, to);
    }

    /// Whether `disk` may hold a copy beside the group's others (but for `leaving`), on all levels from `level` inwards.
    fn fits(&self, group: usize, disk: usize, leaving: Option<usize>, level: usize) -> bool {
        let others = self.members[group].iter().filter(|member| Some(**member) != leaving);
        let mut counts = [1; LEVELS];
        for other in others {
            if *other == disk {
                return false;
            }
            for (level, count) in counts.iter_mut().enumerate() {
                *count += usize::from(self.domains[*other][level] == self.domains[disk][level]);
            }
        }
        (level..LEVELS).all(|level| counts[level] <= self.most[level])
    }

    /// Gives every group as many members as there can be.
    fn fill(&mut self) {
        for group in 0..self.groups.len() {
            while self.members[group].len() < self.copies {
                let Some(disk) = self.place(group) else { break };
                self.crowded[group].retain(|other| *other != disk);
                self.add(group, disk);
            }
        }
    }

    /// The best place for one more copy: the domains are given up from the widest inwards, and only when nothing else is left.
    fn place(&self, group: usize) -> Option<usize> {
        for level in 0..LEVELS {
            let fits = |disk: &usize| self.fits(group, *disk, None, level);
            let places = (0..self.disks.len()).filter(|disk| self.disks[*disk].may_gain).filter(fits);
            let best =
                |(room, score): &(bool, f64), other: &(bool, f64)| room.cmp(&other.0).then(score.total_cmp(&other.1));
            let rated = places.map(|disk| (self.rate(group, disk), disk));
            if let Some((_, disk)) = rated.max_by(|a, b| best(&a.0, &b.0).then(b.1.cmp(&a.1))) {
                return Some(disk);
            }
            if let Some(disk) =
                self.crowded[group].iter().copied().find(|disk| self.fits(group, *disk, None, level + 1))
            {
                return Some(disk);
            }
        }
        None
    }

    /// With room below its share first; then by the score of the hash.
    fn rate(&self, group: usize, disk: usize) -> (bool, f64) {
        ((self.held_by[disk].len() as f64) + 0.5 < self.share[disk], self.score(group, disk))
    }

    /// `-weight / ln(u)` for u uniform in (0, 1): the disk with the highest score wins with probability proportional to
    /// its weight.
    fn score(&self, group: usize, disk: usize) -> f64 {
        let (group, candidate) = (self.groups[group], self.disks[disk]);
        let mut hash = u64::from(group.pool.0) << 40 | u64::from(group.bits) << 32 | u64::from(group.prefix);
        for word in [candidate.disk.0 as u64, (candidate.disk.0 >> 64) as u64] {
            hash = mix(hash ^ word);
        }
        let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -(candidate.capacity_bytes as f64) / uniform.ln()
    }

    /// By how much a disk holds more than its share.
    fn surplus(&self, disk: usize) -> f64 {
        self.held_by[disk].len() as f64 - self.share[disk]
    }

    /// Moves copies from disks above their share to disks below, when some disk is far enough from it.
    fn even_out(&mut self) {
        let is_off = |disk: usize| {
            let only_keeps = !self.disks[disk].may_gain && self.surplus(disk) < 0.0;
            !only_keeps && self.surplus(disk).abs() > (self.share[disk] * TOLERANCE).max(1.0)
        };
        if !(0..self.disks.len()).any(is_off) {
            return;
        }
        let moves_max = self.groups.len() * self.copies;
        for _ in 0..moves_max {
            if !self.move_one() {
                return;
            }
        }
    }

    /// One copy from the fullest disk that can give to the emptiest that can take; or over a third disk, which gives one of
    /// its own away for it. `false` when nothing would get better.
    fn move_one(&mut self) -> bool {
        let mut by_surplus: Vec<usize> = (0..self.disks.len()).collect();
        by_surplus.sort_by(|a, b| self.surplus(*b).total_cmp(&self.surplus(*a)).then(a.cmp(b)));
        let takers: Vec<usize> = by_surplus.iter().rev().copied().filter(|disk| self.disks[*disk].may_gain).collect();
        for from in &by_surplus {
            // Else the two would only change places.
            let better = |to: &&usize| self.surplus(*from) - self.surplus(**to) > 1.0 + 1e-9;
            let takers: Vec<usize> = takers.iter().take_while(better).copied().collect();
            if let Some((group, to)) = takers.iter().find_map(|to| Some((self.movable(*from, *to)?, *to))) {
                self.replace(group, *from, to);
                return true;
            }
            for to in takers {
                if self.move_over(*from, to) {
                    return true;
                }
            }
        }
        false
    }

    /// The group on `from` that prefers `to` most, of those that may move there.
    fn movable(&self, from: usize, to: usize) -> Option<usize> {
        let fits = |group: &usize| self.fits(*group, to, Some(from), 0);
        let able = self.held_by[from].iter().copied().filter(fits);
        able.map(|group| (self.score(group, to), group))
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
            .map(|it| it.1)
    }

    fn move_over(&mut self, from: usize, to: usize) -> bool {
        for over in (0..self.disks.len()).filter(|over| *over != from && *over != to) {
            if !self.disks[over].may_gain {
                continue;
            }
            let (Some(first), Some(second)) = (self.movable(from, over), self.movable(over, to)) else { continue };
            if first != second {
                self.replace(second, over, to);
                if self.fits(first, over, Some(from), 0) {
                    self.replace(first, from, over);
                    return true;
                }
                self.replace(second, to, over);
            }
        }
        false
    }

    fn members(&self) -> Vec<Vec<DiskId>> {
        let sorted = |group: usize| {
            let mut members = self.members[group].clone();
            members.sort_by(|a, b| self.score(group, *b).total_cmp(&self.score(group, *a)).then(a.cmp(b)));
            members.into_iter().map(|disk| self.disks[disk].disk).collect()
        };
        (0..self.groups.len()).map(sorted).collect()
    }
}

/// The domain of each disk on each level, and how many there are.
fn domains(disks: &[&Candidate]) -> (Vec<[usize; LEVELS]>, [usize; LEVELS]) {
    let mut numbers: [BTreeMap<Path<'_>, usize>; LEVELS] = Default::default();
    let mut out = Vec::with_capacity(disks.len());
    for disk in disks {
        let number = |level: usize| {
            let next = numbers[level].len();
            *numbers[level].entry(path(disk, level)).or_insert(next)
        };
        out.push([0, 1, 2, NODE].map(number));
    }
    (out, numbers.map(|level| level.len()))
}

/// Names of nested domains, from the widest inwards; within a rack, the node.
type Path<'a> = (&'a str, &'a str, &'a str, u32);

fn path(disk: &Candidate, level: usize) -> Path<'_> {
    let Locality { region, zone, rack } = &disk.locality;
    match level {
        0 => (region, "", "", 0),
        1 => (region, zone, "", 0),
        2 => (region, zone, rack, 0),
        _ => (region, zone, rack, disk.node.0),
    }
}

/// The groups that each disk should hold: `groups * copies`, in proportion to the capacities, where no domain gets more
/// copies of a group than `most`.
fn shares(
    disks: &[&Candidate],
    domains: &[[usize; LEVELS]],
    most: &[usize; LEVELS],
    groups: usize,
    copies: usize,
) -> Vec<f64> {
    let mut share = vec![0.0; disks.len()];
    let all: Vec<usize> = (0..disks.len()).collect();
    divide(&Shape { disks, domains, most, groups: groups as f64 }, &all, 0, (groups * copies) as f64, &mut share);
    share
}

struct Shape<'a> {
    disks: &'a [&'a Candidate],
    domains: &'a [[usize; LEVELS]],
    most: &'a [usize; LEVELS],
    groups: f64,
}

impl Shape<'_> {
    /// The domains of `level` among these disks, or on the innermost level the disks.
    fn parts(&self, disks: &[usize], level: usize) -> Vec<Vec<usize>> {
        if level == LEVELS {
            return disks.iter().map(|disk| vec![*disk]).collect();
        }
        let mut parts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for disk in disks {
            parts.entry(self.domains[*disk][level]).or_default().push(*disk);
        }
        parts.into_values().collect()
    }

    /// What these disks, one domain of `level`, can hold at most.
    fn cap(&self, disks: &[usize], level: usize) -> f64 {
        let own = self.groups * if level < LEVELS { self.most[level] as f64 } else { 1.0 };
        if level >= NODE {
            return own;
        }
        let inner: f64 = self.parts(disks, level + 1).iter().map(|part| self.cap(part, level + 1)).sum();
        own.min(inner)
    }
}

/// Divides `total` among the domains of `level`, and each part among the domains within.
fn divide(shape: &Shape<'_>, disks: &[usize], level: usize, total: f64, share: &mut [f64]) {
    let parts = shape.parts(disks, level);
    let weight = |part: &Vec<usize>| part.iter().map(|disk| shape.disks[*disk].capacity_bytes as f64).sum::<f64>();
    let wanted: Vec<(f64, f64)> = parts.iter().map(|part| (weight(part), shape.cap(part, level))).collect();
    for (part, amount) in parts.iter().zip(poured(total, &wanted)) {
        if level == LEVELS {
            share[part[0]] = amount;
        } else {
            divide(shape, part, level + 1, amount, share);
        }
    }
}

/// Pours `total` into vessels of (weight, cap): in proportion to the weights, what a full one cannot take to the others.
fn poured(total: f64, vessels: &[(f64, f64)]) -> Vec<f64> {
    let mut level = vec![None; vessels.len()];
    let mut left = total;
    loop {
        let open = || (0..vessels.len()).filter(|n| level[*n].is_none());
        let weight: f64 = open().map(|n| vessels[n].0).sum();
        let full: Vec<usize> = open().filter(|n| left * vessels[*n].0 / weight > vessels[*n].1).collect();
        if full.is_empty() {
            let fill = |n: usize| level[n].unwrap_or(if weight > 0.0 { left * vessels[n].0 / weight } else { 0.0 });
            return (0..vessels.len()).map(fill).collect();
        }
        for n in full {
            level[n] = Some(vessels[n].1);
            left -= vessels[n].1;
        }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
