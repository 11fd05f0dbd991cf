//! Which disks hold a placement group: pure, so that each decision can be tested as data.
//!
//! Weighted rendezvous hashing (Thaler and Ravishankar 1998; weights as in Schindelhauer and Schomaker 2005): each
//! disk draws a score for the group from a hash and its capacity; the highest scores in distinct failure domains win.
//! A disk that is added or removed moves only the groups that it wins or held.

use base::ids::{DiskId, NodeId, PgId};

/// A disk that may be given data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub disk: DiskId,
    pub node: NodeId,
    pub capacity_bytes: u64,
}

/// The members of `group`, best first: at most `copies`, never two on one node.
pub fn members(group: PgId, copies: usize, candidates: &[Candidate]) -> Vec<DiskId> {
    let mut scored: Vec<(f64, &Candidate)> = candidates
        .iter()
        .filter(|candidate| candidate.capacity_bytes > 0)
        .map(|candidate| (score(group, candidate), candidate))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.disk.cmp(&b.1.disk)));
    let mut chosen: Vec<&Candidate> = Vec::new();
    for (_, candidate) in scored {
        if chosen.len() < copies && chosen.iter().all(|other| other.node != candidate.node) {
            chosen.push(candidate);
        }
    }
    chosen.into_iter().map(|candidate| candidate.disk).collect()
}

/// `-weight / ln(u)` for u uniform in (0, 1): the disk with the highest score wins with probability proportional to
/// its weight.
fn score(group: PgId, candidate: &Candidate) -> f64 {
    let mut hash = u64::from(group.pool.0) << 40 | u64::from(group.bits) << 32 | u64::from(group.prefix);
    for word in [candidate.disk.0 as u64, (candidate.disk.0 >> 64) as u64] {
        hash = mix(hash ^ word);
    }
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -(candidate.capacity_bytes as f64) / uniform.ln()
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ids::PoolId;

    const BITS: u8 = 10;

    fn candidates(nodes: u32, disks_per_node: u128) -> Vec<Candidate> {
        (0..nodes)
            .flat_map(|node| {
                (0..disks_per_node).map(move |disk| Candidate {
                    disk: DiskId((u128::from(node) << 64) + disk * 0x1234_5678_9abc + 99),
                    node: NodeId(node),
                    capacity_bytes: 1 << 40,
                })
            })
            .collect()
    }

    fn all(copies: usize, candidates: &[Candidate]) -> Vec<Vec<DiskId>> {
        (0..1 << BITS).map(|prefix| members(PgId { pool: PoolId(1), bits: BITS, prefix }, copies, candidates)).collect()
    }

    #[test]
    fn copies_are_on_distinct_nodes_and_as_many_as_there_are_nodes() {
        for nodes in 1..=5u32 {
            let disks = candidates(nodes, 3);
            for group in all(3, &disks) {
                assert_eq!(group.len(), (nodes as usize).min(3));
                let mut on: Vec<NodeId> =
                    group.iter().map(|id| disks.iter().find(|c| c.disk == *id).unwrap().node).collect();
                on.sort();
                on.dedup();
                assert_eq!(on.len(), group.len());
            }
        }
    }

    #[test]
    fn capacity_draws_proportionally() {
        let mut disks = candidates(2, 1);
        disks[1].capacity_bytes *= 3;
        let heavy = all(1, &disks).iter().filter(|group| group[0] == disks[1].disk).count() as f64;
        let share = heavy / f64::from(1 << BITS);
        assert!((0.70..0.80).contains(&share), "expected three quarters, got {share}");
    }

    #[test]
    fn a_new_disk_moves_only_what_it_wins() {
        let before = all(1, &candidates(4, 1));
        let with_new = candidates(5, 1);
        let after = all(1, &with_new);
        for (old, new) in before.iter().zip(&after) {
            assert!(old == new || new[0] == with_new[4].disk);
        }
    }
}
