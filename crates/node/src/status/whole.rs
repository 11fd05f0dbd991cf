//! The map and the answers of all nodes, put together: pure.

use base::ids::NodeId;
use client::disk_id;
use meta::map::command::{ClusterMap, NodeRow, NodeState, PgRow};
use std::collections::{BTreeMap, BTreeSet};

use super::local::LocalGroup;
use super::{ChunkCounts, DiskStatus, Findings, GroupStatus, LocalStatus, NodeStatus, RepairStatus, Status, Verdict};

type Answers = [(NodeId, Option<LocalStatus>)];

/// `asker`: the node whose view this is.
pub fn combine(map: &ClusterMap, asker: NodeId, answers: &Answers) -> Status {
    let mut findings = Findings::default();
    for (node, status) in answers.iter().filter_map(|(node, status)| Some((node, status.as_ref()?))) {
        if !status.standing.is_empty() {
            findings.add(Verdict::Unavailable, format!("node {node} {}", status.standing));
        }
        for finding in &status.findings {
            findings.add(Verdict::from_number(finding.verdict), on(*node, answers, &finding.reason));
        }
    }
    if map.version == 0 {
        findings.add(Verdict::Unavailable, format!("node {asker} has not seen the cluster map yet"));
    }
    let nodes = nodes(map, answers, &mut findings);
    let groups = groups(map, answers, &mut findings);
    votes(answers, &groups, &mut findings);
    copies(map, &groups, &mut findings);
    let mut chunks = placement(map, answers, &mut findings);
    if map.pools.iter().any(|pool| pool.copies_effective < pool.copies) {
        chunks.degraded = chunks.total;
        let only_copy = map.pools.iter().any(|pool| pool.copies_effective == 1);
        chunks.last_copy = if only_copy { chunks.total } else { chunks.last_copy };
    }
    let repair = RepairStatus {
        queued_bytes: sum(answers, |status| status.missing_bytes),
        eta_s: eta_s(answers),
        last_copies: sum(answers, |status| status.last_copies),
    };
    repairs(map, answers, &mut findings);
    advise(map, answers, &groups, &mut findings);
    let Findings { verdict, reasons, doing, todo } = findings;
    Status { verdict, reasons, doing, todo, epoch: map.version, nodes, groups, chunks, repair }
}

/// What the cluster is about.
fn repairs(map: &ClusterMap, answers: &Answers, findings: &mut Findings) {
    for (node, status) in answers.iter().filter_map(|(node, status)| Some((node, status.as_ref()?))) {
        if status.missing_chunks > 0 {
            let (chunks, mib) = (status.missing_chunks, status.missing_bytes.div_ceil(1 << 20));
            let first = match status.last_copies {
                0 => String::new(),
                last => format!(", first {last} of which one copy is left"),
            };
            findings.does(format!("node {node} fetches {chunks} copies of chunks ({mib} MiB) that it lacks{first}"));
        }
    }
    let (all, moving) = (map.pgs.len(), map.pgs.iter().filter(|row| row.closed).count());
    let to_move = crate::control::to_move(map);
    if moving > 0 || to_move > 0 {
        findings.does(format!(
            "{moving} of {all} placement groups are being copied to where they belong; {to_move} copies of groups to go"
        ));
    }
    for row in map.disks.iter().filter(|row| row.slow && row.state().serves()) {
        let id = disk_id(&row.id).map_or_else(String::new, |id| id.to_string());
        findings.does(format!(
            "disk {id} of node {} is far slower than its peers: it leads nothing and takes nothing new that others can take; \
             look at it if that lasts",
            row.node
        ));
    }
    for row in map.nodes.iter().filter(|row| row.state() == NodeState::Down) {
        findings.does(format!(
            "writes go on without node {}; if it stays away, its copies are made again on other nodes",
            row.id
        ));
    }
}

/// What people should do, the most urgent first.
fn advise(map: &ClusterMap, answers: &Answers, groups: &[GroupStatus], findings: &mut Findings) {
    let node = |row: &NodeRow| format!("node {} ({})", row.id, row.address);
    let in_state = |state: NodeState| map.nodes.iter().filter(move |row| row.state() == state);
    if findings.verdict == Verdict::Lost {
        findings
            .asks_for("run `henge fsck` on the stopped nodes: it names the objects to restore from a backup".into());
    }
    if groups.iter().any(|group| group.leader == 0) {
        findings.asks_for(
            "bring back nodes until a majority is up; only if they are gone for good, stop the one with the newest data and \
             run `henge recover` there"
                .into(),
        );
    }
    for row in in_state(NodeState::Down) {
        let id = row.id;
        findings.asks_for(format!(
            "start {} again; if it is gone for good, say so with `henge node remove {id} --lost`",
            node(row)
        ));
    }
    let up = in_state(NodeState::Up).count();
    let wanted = map.pools.iter().map(|pool| pool.copies as usize).max().unwrap_or(1);
    if up < wanted {
        let missing = wanted - up;
        findings.asks_for(format!(
            "add {missing} node(s) for {wanted} copies of everything (`henge token create`, then `henge server --join`), and \
             keep a backup until then"
        ));
    }
    for (id, status) in answers.iter().filter_map(|(id, status)| Some((id, status.as_ref()?))) {
        for disk in &status.disks {
            match disk.state.as_str() {
                "full" => findings.asks_for(format!(
                    "delete something, or add disks or nodes: disk {} of node {id} is full",
                    disk.path
                )),
                "up" | "closed" | "slow" => {}
                _ => findings
                    .asks_for(format!("replace disk {} of node {id}, and start the node with the new one", disk.path)),
            }
        }
    }
    if findings.todo.is_empty() && findings.verdict != Verdict::Safe {
        findings.asks_for("nothing: this heals by itself; look again in a while".into());
    }
}

/// When the slowest node will have its copies, at the speed of late.
fn eta_s(answers: &Answers) -> Option<u64> {
    let behind = answers.iter().filter_map(|(_, status)| status.as_ref()).filter(|status| status.missing_bytes > 0);
    let seconds = behind.map(|status| status.missing_bytes.checked_div(status.pulled_bytes_per_s).map(|s| s + 1));
    seconds.collect::<Option<Vec<u64>>>()?.into_iter().max()
}

/// Names the node where there are several.
fn on(node: NodeId, answers: &Answers, reason: &str) -> String {
    if answers.len() > 1 { format!("node {node}: {reason}") } else { reason.into() }
}

fn sum(answers: &Answers, of: impl Fn(&LocalStatus) -> u64) -> u64 {
    answers.iter().filter_map(|(_, status)| status.as_ref()).map(of).sum()
}

fn nodes(map: &ClusterMap, answers: &Answers, findings: &mut Findings) -> Vec<NodeStatus> {
    let mut nodes = Vec::new();
    for row in map.nodes.iter().filter(|row| row.state() != NodeState::Removed) {
        let asked = answers.iter().find(|(node, _)| node.0 == row.id);
        let answer = asked.and_then(|(_, status)| status.as_ref());
        let silent = asked.is_some() && answer.is_none();
        nodes.push(NodeStatus {
            id: row.id,
            generation: row.generation,
            state: state(row, silent, findings),
            locality: row.locality.clone(),
            disks: answer.map(|status| disks(map, status)).unwrap_or_default(),
        });
    }
    nodes
}

fn state(row: &NodeRow, silent: bool, findings: &mut Findings) -> &'static str {
    let id = row.id;
    match row.state() {
        NodeState::Up if silent => {
            findings.add(Verdict::AtRisk, format!("node {id} ({}) does not answer this node", row.address));
            "suspect"
        }
        NodeState::Up => "up",
        NodeState::Joining => "joining",
        NodeState::Draining => {
            findings.add(Verdict::AtRisk, format!("node {id} is being emptied; it may be stopped when it is removed"));
            "draining"
        }
        NodeState::Down => {
            findings
                .add(Verdict::AtRisk, format!("node {id} ({}) is down: what it holds has a copy less", row.address));
            "down"
        }
        NodeState::Lost => {
            findings.add(Verdict::AtRisk, format!("node {id} is lost; its copies are made again on other nodes"));
            "lost"
        }
        NodeState::Removed => "removed",
    }
}

fn disks(map: &ClusterMap, status: &LocalStatus) -> Vec<DiskStatus> {
    let slow: BTreeSet<String> =
        map.disks.iter().filter(|row| row.slow).filter_map(|row| disk_id(&row.id)).map(|id| id.to_string()).collect();
    let is_slow = |disk: &super::local::LocalDisk| disk.state == "up" && slow.contains(&disk.id);
    let disk = |disk: &super::local::LocalDisk| DiskStatus {
        id: disk.id.clone(),
        path: disk.path.clone(),
        state: if is_slow(disk) { "slow".into() } else { disk.state.clone() },
        total_bytes: disk.total_bytes,
        used_bytes: disk.used_bytes,
    };
    status.disks.iter().map(disk).collect()
}

/// Each group as the replica with the newest term shows it; of several, the one that leads.
fn groups(map: &ClusterMap, answers: &Answers, findings: &mut Findings) -> Vec<GroupStatus> {
    let mut newest: BTreeMap<u64, (NodeId, &LocalGroup)> = BTreeMap::new();
    let rank = |(node, group): (NodeId, &LocalGroup)| (group.term, group.leader == node.0, group.leader != 0);
    for (node, status) in answers.iter().filter_map(|(node, status)| Some((*node, status.as_ref()?))) {
        for group in &status.groups {
            let held = newest.entry(group.id).or_insert((node, group));
            if rank((node, group)) > rank(*held) {
                *held = (node, group);
            }
        }
    }
    let newest: BTreeMap<u64, &LocalGroup> = newest.into_iter().map(|(id, (_, group))| (id, group)).collect();
    let known: BTreeSet<u64> =
        std::iter::once(0).chain(map.shards.iter().map(|row| row.group)).chain(newest.keys().copied()).collect();
    let mut out = Vec::new();
    for id in known {
        let kind = if id == 0 { "map" } else { "objects" };
        let group = newest.get(&id);
        let leader = group.map_or(0, |group| u64::from(group.leader));
        if leader == 0 {
            findings.add(
                Verdict::Unavailable,
                format!("group {id} ({kind}) has no leader: a majority of its voters must be up and in touch"),
            );
        }
        for node in group.map(|group| group.lacking.as_slice()).unwrap_or_default() {
            findings.add(Verdict::AtRisk, format!("group {id} ({kind}) is a voter short: node {node}'s catches up"));
        }
        out.push(GroupStatus {
            id,
            kind,
            leader,
            term: group.map_or(0, |group| group.term),
            voters: group.map(|group| group.voters.iter().map(|node| u64::from(*node)).collect()).unwrap_or_default(),
        });
    }
    out
}

/// Whether every voter is there and has what it votes by: one whose log was lost counts as a voter until its successor, which learns on
/// the same node, has taken its place, and may be missing for the majority meanwhile.
fn votes(answers: &Answers, groups: &[GroupStatus], findings: &mut Findings) {
    for (node, status) in answers {
        for group in groups.iter().filter(|group| group.voters.contains(&u64::from(node.0))) {
            let replica =
                status.as_ref().and_then(|status| status.groups.iter().find(|replica| replica.id == group.id));
            if !replica.is_some_and(|replica| replica.works && !replica.learns) {
                let what = "is not there, hears no leader, or is being made anew";
                let what = format!("group {} ({}) is a voter short: node {node}'s {what}", group.id, group.kind);
                findings.add(Verdict::AtRisk, what);
            }
        }
    }
}

/// Whether there are as many copies of data and metadata as the policy asks for.
fn copies(map: &ClusterMap, groups: &[GroupStatus], findings: &mut Findings) {
    let removed = |id: &u64| map.nodes.iter().any(|row| u64::from(row.id) == *id && row.state() == NodeState::Removed);
    let joined = map.nodes.iter().filter(|row| !matches!(row.state(), NodeState::Removed | NodeState::Joining)).count();
    for pool in &map.pools {
        let (wanted, effective) = (pool.copies, pool.copies_effective);
        if effective < wanted && joined < wanted as usize {
            findings.add(
                Verdict::AtRisk,
                format!(
                    "each object has {effective} of {wanted} copies, because the cluster has {joined} of {wanted} nodes"
                ),
            );
        } else if effective < wanted {
            findings.add(Verdict::AtRisk, format!("the number of copies is being raised from {effective} to {wanted}"));
        }
        for group in groups.iter().filter(|group| group.leader != 0) {
            let voters = group.voters.iter().filter(|id| !removed(id)).count();
            if voters < joined.min(wanted as usize) {
                let id = group.id;
                let what = format!("group {id} ({}) has {voters} voters and is given more", group.kind);
                findings.add(Verdict::AtRisk, what);
            }
        }
    }
}

/// Where the copies are, and whether their holders have compared them.
fn placement(map: &ClusterMap, answers: &Answers, findings: &mut Findings) -> ChunkCounts {
    let node_of: BTreeMap<&[u8], u32> = map.disks.iter().map(|row| (row.id.as_ref(), row.node)).collect();
    let up: BTreeSet<u32> = map
        .nodes
        .iter()
        .filter(|row| matches!(row.state(), NodeState::Up | NodeState::Draining))
        .map(|row| row.id)
        .collect();
    let usable: BTreeSet<&[u8]> = map
        .disks
        .iter()
        .filter(|row| row.state().serves() && up.contains(&row.node))
        .map(|row| row.id.as_ref())
        .collect();
    let of_pool: BTreeMap<u32, usize> =
        map.pools.iter().map(|pool| (pool.id, pool.copies_effective.max(1) as usize)).collect();
    let effective = of_pool.values().copied().max().unwrap_or(1);
    let (mut degraded, mut last, mut gone, mut moving) = (0u64, 0u64, 0u64, 0u64);
    for row in &map.pgs {
        moving += u64::from(row.closed);
        let holders = holders(row, &usable, &node_of);
        let wanted = of_pool.get(&row.pool).copied().unwrap_or(1);
        match holders {
            0 => gone += 1,
            1 if wanted > 1 => last += 1,
            _ => {}
        }
        degraded += u64::from(holders < wanted);
    }
    let all = map.pgs.len() as u64;
    if moving > 0 {
        findings.add(Verdict::AtRisk, format!("{moving} of {all} placement groups are being moved or copied"));
    }
    if gone > 0 {
        findings.add(Verdict::Unavailable, format!("{gone} of {all} placement groups have no disk in service"));
    }
    if degraded > 0 && effective > 1 {
        findings
            .add(Verdict::AtRisk, format!("{degraded} of {all} placement groups have fewer copies than they should"));
    }
    let unequal = sum(answers, |status| status.placement_groups - status.healthy_groups.min(status.placement_groups));
    let missing = sum(answers, |status| status.missing_chunks);
    if missing > 0 {
        findings.add(Verdict::AtRisk, format!("{missing} copies of chunks are missing and are being fetched"));
    } else if unequal > 0 && effective > 1 {
        findings.add(Verdict::AtRisk, format!("{unequal} copies of placement groups are still to be compared"));
    }
    let total = sum(answers, |status| status.chunks).div_ceil(effective as u64);
    let share = |groups: u64| (total * groups).checked_div(all).unwrap_or(0);
    let corrupt = sum(answers, |status| status.corrupt);
    // Each member of the group counts it.
    let named = answers.iter().filter_map(|(_, status)| Some(status.as_ref()?.lost_chunks)).max().unwrap_or(0);
    let lost = if effective == 1 { corrupt } else { named };
    ChunkCounts { total, degraded: share(degraded), last_copy: share(last), corrupt, lost }
}

/// Nodes in service that hold a copy: while the group moves, those it comes from.
fn holders(row: &PgRow, usable: &BTreeSet<&[u8]>, node_of: &BTreeMap<&[u8], u32>) -> usize {
    let members = if row.closed { &row.members_before } else { &row.members };
    let nodes: BTreeSet<u32> = members
        .iter()
        .filter(|disk| usable.contains(disk.as_ref()))
        .filter_map(|disk| node_of.get(disk.as_ref()).copied())
        .collect();
    nodes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use meta::map::command::{DiskRow, DiskState, PoolRow, ShardRow};

    fn disk(node: u32) -> Bytes {
        Bytes::copy_from_slice(&u128::from(node).to_be_bytes())
    }

    fn map() -> ClusterMap {
        let members: Vec<Bytes> = (1..=3).map(disk).collect();
        let pg = |prefix| PgRow { pool: 1, prefix, epoch: 3, members: members.clone(), ..PgRow::default() };
        ClusterMap {
            version: 9,
            nodes: (1..=3).map(|id| NodeRow { id, generation: 1, ..NodeRow::default() }).collect(),
            disks: (1..=3).map(|node| DiskRow { id: disk(node), node, ..DiskRow::default() }).collect(),
            pools: vec![PoolRow { id: 1, copies: 3, copies_effective: 3, pg_bits: 1, ..PoolRow::default() }],
            pgs: (0..2).map(pg).collect(),
            shards: vec![ShardRow { group: 1, ..ShardRow::default() }],
            ..ClusterMap::default()
        }
    }

    fn answers() -> Vec<(NodeId, Option<LocalStatus>)> {
        let group =
            |id| LocalGroup { id, leader: 1, term: 4, voters: vec![1, 2, 3], works: true, ..LocalGroup::default() };
        let status = LocalStatus {
            groups: vec![group(0), group(1)],
            chunks: 10,
            placement_groups: 2,
            healthy_groups: 2,
            ..LocalStatus::default()
        };
        (1..=3).map(|id| (NodeId(id), Some(status.clone()))).collect()
    }

    fn verdict(map: &ClusterMap, answers: &Answers) -> (Verdict, String) {
        let status = combine(map, NodeId(1), answers);
        (status.verdict, status.reasons.join("; "))
    }

    #[test]
    fn safe_is_said_only_when_everybody_has_compared_everything() {
        let (map, answers) = (map(), answers());
        assert_eq!(verdict(&map, &answers), (Verdict::Safe, String::new()));
        let safe = combine(&map, NodeId(1), &answers);
        assert!(safe.doing.is_empty() && safe.todo.is_empty(), "{safe:?}");
        let mut lacking = answers.clone();
        let third = lacking[2].1.as_mut().unwrap();
        (third.missing_chunks, third.missing_bytes, third.last_copies, third.pulled_bytes_per_s) =
            (4, 8 << 20, 1, 1 << 20);
        let status = combine(&map, NodeId(1), &lacking);
        assert!(
            status.doing[0].contains("4 copies of chunks (8 MiB)") && status.doing[0].contains("first 1"),
            "{status:?}"
        );
        assert_eq!((status.repair.queued_bytes, status.repair.eta_s, status.repair.last_copies), (8 << 20, Some(9), 1));
        assert!(status.todo[0].starts_with("nothing"), "{status:?}");
        assert_eq!(combine(&map, NodeId(1), &answers).chunks.total, 10, "thirty copies of ten chunks");

        let mut unequal = answers.clone();
        unequal[1].1.as_mut().unwrap().healthy_groups = 1;
        assert_eq!(verdict(&map, &unequal).0, Verdict::AtRisk);
        let mut silent = answers.clone();
        silent[2].1 = None;
        assert!(verdict(&map, &silent).1.contains("node 3"), "whoever does not answer is named");
        let mut leaderless = answers.clone();
        leaderless.iter_mut().for_each(|(_, status)| status.as_mut().unwrap().groups[1].leader = 0);
        assert_eq!(verdict(&map, &leaderless).0, Verdict::Unavailable);
    }

    /// Found by the simulator: a log was lost, its node's new replica was still learning, and the cluster called itself safe; a
    /// second node was destroyed, and with it the group's majority.
    #[test]
    fn a_voter_that_is_being_made_anew_is_not_safe() {
        type Change = fn(&mut LocalStatus);
        let changes: [Change; 3] = [
            |status| status.groups[1].learns = true,
            |status| status.groups[1].works = false,
            |status| drop(status.groups.pop()),
        ];
        for change in changes {
            let mut answers = answers();
            change(answers[2].1.as_mut().unwrap());
            let (verdict, why) = verdict(&map(), &answers);
            assert_eq!(verdict, Verdict::AtRisk);
            assert!(why.contains("group 1 (objects) is a voter short: node 3"), "{why}");
        }
        let mut late = answers();
        late[0].1.as_mut().unwrap().groups[1].lacking = vec![3];
        assert!(verdict(&map(), &late).1.contains("group 1 (objects) is a voter short: node 3"), "its leader says so");
        late.rotate_left(1);
        assert_eq!(verdict(&map(), &late).0, Verdict::AtRisk, "whoever is asked first");
        let mut idle = answers();
        idle.iter_mut().for_each(|(_, status)| status.as_mut().unwrap().groups[1].voters = vec![1, 2]);
        idle[2].1.as_mut().unwrap().groups[1].learns = true;
        assert!(!verdict(&map(), &idle).1.contains("is a voter short"), "who has no vote lacks none");
    }

    /// It was given up, and still votes until a learner takes its vote over: the majority is thinner than it looks.
    #[test]
    fn a_removed_voter_that_is_gone_is_not_safe() {
        let (mut map, mut answers) = (map(), answers());
        map.nodes[2].state = NodeState::Removed as i32;
        map.nodes.push(NodeRow { id: 4, generation: 1, ..NodeRow::default() });
        map.disks[2].node = 4;
        answers.push((NodeId(4), answers[2].1.clone()));
        answers[3].1.as_mut().unwrap().groups.iter_mut().for_each(|group| group.learns = true);
        answers[2].1 = None;
        let (verdict, why) = verdict(&map, &answers);
        assert_eq!(verdict, Verdict::AtRisk);
        assert!(why.contains("voter short: node 3") && why.contains("2 voters"), "{why}");
    }

    #[test]
    fn what_the_map_lacks_is_never_safe() {
        let answers = answers();
        let mut down = map();
        down.nodes[1].state = NodeState::Down as i32;
        let (verdict_of_down, why) = verdict(&down, &answers);
        assert_eq!(verdict_of_down, Verdict::AtRisk);
        assert!(why.contains("node 2") && why.contains("2 of 2 placement groups"), "{why}");
        let status = combine(&down, NodeId(1), &answers);
        assert!(status.todo[0].contains("henge node remove 2 --lost"), "{:?}", status.todo);
        assert!(status.doing[0].contains("without node 2"), "{:?}", status.doing);

        let mut moving = map();
        moving.pgs[0].closed = true;
        moving.pgs[0].members_before = vec![disk(1)];
        assert_eq!(verdict(&moving, &answers).0, Verdict::AtRisk);

        let mut fewer = map();
        fewer.pools[0].copies_effective = 2;
        assert_eq!(verdict(&fewer, &answers).0, Verdict::AtRisk);

        let mut gone = map();
        gone.disks.iter_mut().for_each(|row| row.state = DiskState::Failed as i32);
        assert_eq!(verdict(&gone, &answers).0, Verdict::Unavailable);
    }
}
