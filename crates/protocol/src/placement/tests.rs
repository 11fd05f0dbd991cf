use super::*;
use base::ids::PoolId;
use proptest::prelude::*;

const TIB: u64 = 1 << 40;

fn disk_id(node: u32, number: u32) -> DiskId {
    DiskId((u128::from(mix(u64::from(node))) << 64) + u128::from(mix(u64::from(number) + 77)))
}

fn candidate(node: u32, number: u32, place: &str) -> Candidate {
    let locality = Locality::parse(place);
    Candidate { disk: disk_id(node, number), node: NodeId(node), capacity_bytes: TIB, locality, may_gain: true }
}

/// A letter a node: the zone that it is in.
fn zones(letters: &str, disks: u32) -> Vec<Candidate> {
    let of = |(node, letter): (u32, char)| (0..disks).map(move |disk| candidate(node, disk, &format!("zone={letter}")));
    (1u32..).zip(letters.chars()).flat_map(of).collect()
}

fn empty(count: u32) -> Vec<Held> {
    let bits = count.next_power_of_two().trailing_zeros() as u8;
    (0..count).map(|prefix| (PgId { pool: PoolId(1), bits, prefix }, Vec::new())).collect()
}

fn placed(groups: &[Held], copies: usize, candidates: &[Candidate]) -> Vec<Held> {
    groups.iter().map(|(pg, _)| *pg).zip(plan(groups, copies, candidates)).collect()
}

/// Copies that are where they were not before.
fn moved(before: &[Held], after: &[Held]) -> usize {
    before.iter().zip(after).map(|((_, old), (_, new))| new.iter().filter(|disk| !old.contains(disk)).count()).sum()
}

fn load(groups: &[Held], disk: DiskId) -> usize {
    groups.iter().filter(|(_, members)| members.contains(&disk)).count()
}

/// What must hold of every layout.
fn check(groups: &[Held], copies: usize, candidates: &[Candidate]) {
    let of = |disk: &DiskId| candidates.iter().find(|candidate| candidate.disk == *disk).unwrap();
    let count = |key: &dyn Fn(&Candidate) -> String| candidates.iter().map(key).collect::<BTreeSet<String>>().len();
    let levels: [&dyn Fn(&Candidate) -> String; 4] = [
        &|it| it.locality.region.clone(),
        &|it| format!("{}/{}", it.locality.region, it.locality.zone),
        &|it| format!("{}/{}/{}", it.locality.region, it.locality.zone, it.locality.rack),
        &|it| it.node.to_string(),
    ];
    let nodes = count(levels[3]);
    for (pg, members) in groups {
        assert_eq!(members.len(), copies.min(nodes), "{pg:?}");
        for key in levels {
            let domains = count(key);
            let used: BTreeSet<String> = members.iter().map(|disk| key(of(disk))).collect();
            if domains >= copies {
                assert_eq!(used.len(), members.len(), "{pg:?}: two copies in one domain of {domains}");
            }
        }
    }
}

#[test]
fn copies_are_in_distinct_domains_and_as_many_as_there_are_nodes() {
    for nodes in 1..=6usize {
        let disks = zones(&"a".repeat(nodes), 3);
        let groups = placed(&empty(128), 3, &disks);
        check(&groups, 3, &disks);
    }
    for letters in ["abc", "abcabc", "aabbcc", "aaabc", "abcd", "aaaaabbc"] {
        let disks = zones(letters, 2);
        check(&placed(&empty(256), 3, &disks), 3, &disks);
    }
    // Two zones: one copy in one, two in the other, on every group.
    let disks = zones("aaabbb", 1);
    let groups = placed(&empty(128), 3, &disks);
    let in_a =
        |members: &Vec<DiskId>| members.iter().filter(|disk| disks[..3].iter().any(|it| it.disk == **disk)).count();
    assert!(groups.iter().all(|(_, members)| members.len() == 3 && (1..=2).contains(&in_a(members))));
}

#[test]
fn fill_is_even_within_5_percent_at_1000_groups() {
    for (letters, disks) in [("aaaaa", 1), ("abcabcabc", 2), ("aaaabbbbcccc", 1), ("aaaaaaaaaaaaaaaaaaaa", 2)] {
        let disks = zones(letters, disks);
        let groups = placed(&empty(1000), 3, &disks);
        check(&groups, 3, &disks);
        let off = spread(&groups, 3, &disks);
        assert!(off <= 0.05, "{letters}: {off}");
    }
}

#[test]
fn capacity_draws_proportionally_as_far_as_the_domains_allow() {
    let mut disks = zones("aaaa", 1);
    disks[0].capacity_bytes = 2 * TIB;
    let groups = placed(&empty(1000), 2, &disks);
    // Two copies of 1000 groups over weights 2, 1, 1, 1.
    let loads: Vec<usize> = disks.iter().map(|it| load(&groups, it.disk)).collect();
    assert!(loads[0].abs_diff(800) <= 8 && loads[1..].iter().all(|it| it.abs_diff(400) <= 4), "{loads:?}");
    // A zone as big as all others together still holds one copy of each group.
    let mut disks = zones("abc", 1);
    disks[0].capacity_bytes = 8 * TIB;
    let groups = placed(&empty(1000), 3, &disks);
    assert!(disks.iter().all(|it| load(&groups, it.disk) == 1000));
}

/// What the least movement is: what a changed disk gains or loses.
#[test]
fn a_change_moves_what_it_must_and_at_most_a_tenth_more() {
    let disks = zones("aabbccaabbcc", 2);
    let before = placed(&empty(1000), 3, &disks);
    assert_eq!(moved(&before, &placed(&before, 3, &disks)), 0, "no change, no movement");

    // A node more: its two disks get their share, 3000 / 26 each.
    let mut more = disks.clone();
    more.extend([candidate(90, 0, "zone=a"), candidate(90, 1, "zone=a")]);
    let after = placed(&before, 3, &more);
    check(&after, 3, &more);
    // With three zones each has one copy of every group: zone a's 1000 are shared by ten disks instead of eight.
    let least = 2.0 * 1000.0 / 10.0;
    let count = moved(&before, &after) as f64;
    assert!(count <= least * 1.1, "{count} of at least {least}");
    assert!(spread(&after, 3, &more) <= 0.05);

    // A node less: what it held moves.
    let (gone, less): (Vec<_>, Vec<_>) = disks.iter().cloned().partition(|it| it.node == NodeId(3));
    let least = gone.iter().map(|it| load(&before, it.disk)).sum::<usize>() as f64;
    let after = placed(&before, 3, &less);
    check(&after, 3, &less);
    let count = moved(&before, &after) as f64;
    assert!(count <= least * 1.1, "{count} of at least {least}");
    assert!(spread(&after, 3, &less) <= 0.05);

    // A disk twice as large.
    let mut larger = disks.clone();
    larger[4].capacity_bytes *= 2;
    let after = placed(&before, 3, &larger);
    let least = 2.0 * 1000.0 / 9.0 - load(&before, larger[4].disk) as f64;
    let count = moved(&before, &after) as f64;
    assert!(count <= least * 1.1 + 1.0, "{count} of at least {least}");
}

/// Zones that come later: what shares a zone moves apart.
#[test]
fn new_domains_are_used() {
    let one = zones("aaaaaa", 1);
    let before = placed(&empty(300), 3, &one);
    let three = zones("aabbcc", 1);
    let after = placed(&before, 3, &three);
    check(&after, 3, &three);
    assert!(spread(&after, 3, &three) <= 0.05);
}

#[test]
fn a_disk_that_only_keeps_is_given_nothing() {
    let mut disks = zones("aaaa", 1);
    let before = placed(&empty(100), 3, &disks[..3]);
    disks[1].may_gain = false;
    disks[3].may_gain = false;
    let after = placed(&before, 3, &disks);
    assert_eq!(moved(&before, &after), 0);
}

#[test]
fn localities_are_read_as_they_are_given() {
    let locality = Locality::parse("region=eu, zone=b,rack=r2");
    assert_eq!((&locality.region[..], &locality.zone[..], &locality.rack[..]), ("eu", "b", "r2"));
    assert_eq!(Locality::parse(""), Locality::default());
    assert_eq!(Locality::parse("zone=b,colour=red").zone, "b");
}

fn shapes() -> impl Strategy<Value = Vec<Candidate>> {
    let node = (0u8..3, 0u8..3, 0u8..3, 1u32..3, 1u64..5);
    proptest::collection::vec(node, 1..12).prop_map(|nodes| {
        let disks = |(number, (region, zone, rack, disks, size)): (usize, (u8, u8, u8, u32, u64))| {
            let place = format!("region={region},zone={zone},rack={rack}");
            (0..disks)
                .map(move |disk| Candidate { capacity_bytes: size * TIB, ..candidate(number as u32 + 1, disk, &place) })
        };
        nodes.into_iter().enumerate().flat_map(disks).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever the shape: distinct nodes, distinct domains on each level that has enough, nothing that moves twice.
    #[test]
    fn every_layout_is_sound_and_settled(disks in shapes(), copies in 1usize..5, count in 1u32..100) {
        let groups = placed(&empty(count), copies, &disks);
        let nodes = disks.iter().map(|it| it.node).collect::<BTreeSet<NodeId>>().len();
        for (_, members) in &groups {
            let of = |disk: &DiskId| disks.iter().find(|it| it.disk == *disk).unwrap();
            prop_assert_eq!(members.len(), copies.min(nodes));
            let on: BTreeSet<NodeId> = members.iter().map(|disk| of(disk).node).collect();
            prop_assert_eq!(on.len(), members.len());
            let regions = |disks: &mut dyn Iterator<Item = &Candidate>| {
                disks.map(|it| it.locality.region.clone()).collect::<BTreeSet<String>>().len()
            };
            if regions(&mut disks.iter()) >= copies {
                prop_assert_eq!(regions(&mut members.iter().map(of)), members.len());
            }
        }
        prop_assert_eq!(moved(&groups, &placed(&groups, copies, &disks)), 0);
    }

    /// The shares add up, and no disk is meant to hold a group twice.
    #[test]
    fn shares_add_up(disks in shapes(), copies in 1usize..5) {
        let groups = empty(64);
        let layout = Layout::new(&groups, copies, &disks);
        let sum: f64 = layout.share.iter().sum();
        prop_assert!(sum <= (64 * layout.copies) as f64 + 1e-6);
        prop_assert!(layout.share.iter().all(|share| *share <= 64.0 + 1e-6));
    }
}
