//! A disk opened by its summaries is the disk that reading it whole would have given, whatever became of it before.

use base::checksum::crc64;
use base::env::{Disk, RandomExt};
use base::ids::{
    ChunkId, ClusterId, DiskId, Generation, GroupId, LogIndex, NodeId, OwnerId, PeerId, PgEpoch, PoolId, Session, Slot,
    Term,
};
use base::sim::{Sim, SimDisk, SimNode};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::recovery::{Recovered, Source, recover};
use crate::{DiskIdentity, Engine, EngineOptions, NewChunk, RaftEntry, RaftWrite, StoreError};

const NODE: NodeId = NodeId(1);
const DISK: DiskId = DiskId(0xd1);
const IDENTITY: DiskIdentity = DiskIdentity { cluster: ClusterId(0xc1), disk: DISK, node: NODE };
const GROUPS: u64 = 3;

fn options() -> EngineOptions {
    EngineOptions {
        volume_size_bytes: Some(1 << 20),
        ahead_bytes: 64 << 10,
        compaction_bytes_per_s: 1 << 30,
        scrub_bytes_per_s: 0,
        apart_worth: 0,
        ..EngineOptions::default()
    }
}

struct Bench {
    sim: Sim,
    node: SimNode,
    disk: Arc<SimDisk>,
}

impl Bench {
    fn new(seed: u64) -> Bench {
        let sim = Sim::new(seed);
        let node = sim.node(NODE);
        let disk = node.disk("d");
        let bench = Bench { sim, node, disk };
        let env = bench.node.env();
        bench.sim.block_on(Engine::format(&env, bench.dyn_disk(), &IDENTITY, &options())).unwrap();
        bench
    }

    fn dyn_disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    fn open(&self) -> Engine {
        let (env, disk) = (self.node.env(), self.dyn_disk());
        self.sim.block_on(async move { Engine::open(&env, disk, options()).await }).unwrap().0
    }

    fn recover(&self, source: Source) -> Recovered {
        self.sim.block_on(recover(&self.dyn_disk(), DISK, source)).unwrap()
    }

    fn summaries(&self) -> Vec<String> {
        self.disk.files().into_iter().filter(|name| name.starts_with("summary-")).collect()
    }

    /// How many volumes were opened by their summaries, to the same effect as by reading them.
    fn compare(&self, context: &str) -> usize {
        let (by_summaries, by_volumes) = (self.recover(Source::Summaries), self.recover(Source::Volumes));
        assert_eq!(portrait(&by_summaries), portrait(&by_volumes), "{context}");
        assert!(by_volumes.summarised.is_empty());
        by_summaries.summarised.len()
    }
}

/// All that a start learns, as lines that can be compared.
fn portrait(recovered: &Recovered) -> Vec<String> {
    let state = &recovered.state;
    let mut lines: Vec<String> = state.index.iter().map(|slot| format!("{slot:?}")).collect();
    lines.extend(state.volumes.iter().map(|volume| format!("{volume:?}")));
    lines.extend(state.raft.iter().map(|log| format!("{log:?}")));
    lines.push(format!("{:?} {} {}", state.damaged, state.damaged_count, state.conflicts));
    lines.push(format!("{} {}", state.raft_lost, state.next_incarnation));
    lines.push(format!("{:?} {:?} {:?}", recovered.cut, recovered.unsealed, recovered.spare));
    lines.push(format!("{:?}", crate::RecoveryReport { summarised: 0, ..recovered.report.clone() }));
    lines
}

fn id(counter: u32) -> ChunkId {
    let session = Session { node: NODE, generation: Generation(1) };
    ChunkId { pool: PoolId(1), slot: Slot::new(counter.wrapping_mul(0x9e37)), session, counter }
}

fn chunk(counter: u32, len: usize) -> NewChunk {
    let payload = Bytes::from((0..len).map(|at| (at as u32 ^ counter) as u8).collect::<Vec<_>>());
    NewChunk { id: id(counter), owner: OwnerId(7), epoch: PgEpoch(3), crc64: crc64(&payload), payload: vec![payload] }
}

/// Everything that makes records: puts small and large, again and anew, deletions, evictions, logs that grow, are cut,
/// trimmed, reset and removed.
async fn live(engine: Engine, sim: base::sim::SimHandle, life: u32, rounds: u64) {
    let mut lasts: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..rounds as u32 {
        let known = || id((sim.below(u64::from(life) + 1) as u32) << 16 | sim.below(u64::from(round) + 1) as u32);
        let len = match sim.below(20) {
            0 => 256 * 1024 + sim.below(60_000),
            1 => sim.below(100_000),
            // Half of them of whole blocks, whose payloads stand apart.
            _ => match sim.below(6_000) {
                len if len % 2 == 0 => len.next_multiple_of(4096),
                len => len,
            },
        };
        let outcome = match sim.below(12) {
            0 | 1 => engine.delete(vec![known(), known()]).await,
            2 => engine.evict(vec![known(), known()]).await,
            3 => engine.put(chunk(known().counter, 100)).await.map(drop),
            4..6 => raft(&engine, &sim, &mut lasts).await,
            _ => engine.put(chunk(life << 16 | round, len as usize)).await.map(drop),
        };
        match outcome {
            Err(StoreError::Broken(_) | StoreError::Closed | StoreError::Io(_)) => return,
            Ok(()) | Err(StoreError::Conflict | StoreError::Deleted | StoreError::Invalid(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn raft(engine: &Engine, sim: &base::sim::SimHandle, lasts: &mut BTreeMap<u64, u64>) -> Result<(), StoreError> {
    let group = 1 + sim.below(GROUPS);
    let number = GroupId(group);
    if sim.below(40) == 0 {
        lasts.remove(&group);
        return engine.raft_remove(number).await;
    }
    let reset = (!lasts.contains_key(&group) || sim.below(30) == 0).then(|| (LogIndex(sim.below(1000)), Term(1)));
    let last = reset.map_or_else(|| lasts[&group], |(index, _)| index.0);
    let entries: Vec<_> = (last + 1..=last + sim.below(4))
        .map(|index| RaftEntry { index: LogIndex(index), term: Term(1), data: vec![index as u8; 700].into() })
        .collect();
    let last = entries.last().map_or(last, |entry| entry.index.0);
    lasts.insert(group, last);
    let trim_to = (sim.below(8) == 0 && !entries.is_empty()).then_some(LogIndex(last));
    let hard_state = (sim.below(2) == 0).then(|| Bytes::from(format!("vote {last}")));
    engine.raft_write(RaftWrite { group: number, peer: PeerId(1), hard_state, reset, entries, trim_to }).await
}

/// Several lives of one disk; after each, both ways of opening it are compared.
fn lives(bench: &Bench, seed: u64, power_cuts: bool) -> usize {
    let mut summarised = 0;
    for life in 0..4 {
        let engine = bench.open();
        if power_cuts {
            bench.disk.crash_after_ops(20 + bench.sim.below(900));
        }
        let sim = (*bench.sim).clone();
        let ends_well = bench.sim.below(2) == 0;
        let env = bench.node.env();
        let waits = Duration::from_secs(bench.sim.below(20));
        let rounds = 100 + bench.sim.below(500);
        let lived = bench.sim.block_on(bench.node.run(async move {
            live(engine.clone(), sim, life, rounds).await;
            env.sleep(waits).await;
            if ends_well {
                engine.close().await;
            }
        }));
        bench.node.crash();
        assert!(lived.is_ok() || power_cuts, "seed {seed} life {life}: the node stopped by itself");
        summarised += bench.compare(&format!("seed {seed} life {life}"));
    }
    summarised
}

#[test]
fn summaries_open_a_disk_as_reading_it_whole_does() {
    let mut summarised = 0;
    for seed in 0..30 {
        summarised += lives(&Bench::new(seed), seed, false);
    }
    assert!(summarised > 200, "only {summarised} volumes were opened by their summaries");
}

#[test]
fn summaries_open_a_disk_as_reading_it_whole_does_after_power_cuts() {
    let mut summarised = 0;
    for seed in 100..140 {
        summarised += lives(&Bench::new(seed), seed, true);
    }
    assert!(summarised > 100, "only {summarised} volumes were opened by their summaries");
}

/// Any damage to a summary costs time, and nothing else.
#[test]
fn damaged_summaries_are_not_believed() {
    let mut damaged = 0;
    for seed in 200..220 {
        let bench = Bench::new(seed);
        lives(&bench, seed, false);
        for round in 0..12 {
            let summaries = bench.summaries();
            let Some(name) = summaries.get(bench.sim.below(summaries.len().max(1) as u64) as usize) else { break };
            let contents = bench.disk.contents(name).unwrap();
            let whole = bench.recover(Source::Summaries).summarised.len();
            if contents.is_empty() {
                continue;
            }
            let at = bench.sim.below(contents.len() as u64);
            match bench.sim.below(4) {
                0 => bench.disk.overwrite(name, at / 4096 * 4096, &[0; 4096]),
                1 => {
                    // Another volume's, or this one's in the wrong place.
                    let other = bench.disk.contents(&summaries[0]).unwrap();
                    let len = other.len().min(contents.len());
                    bench.disk.overwrite(name, 0, &other[..len]);
                }
                2 => {
                    let file =
                        bench.disk.open(name, base::env::OpenMode::Existing, base::env::Caching::Direct).unwrap();
                    file.set_size(at / 4096 * 4096).unwrap();
                }
                _ => bench.disk.flip(name, at, 1 << bench.sim.below(8)),
            }
            let now = bench.compare(&format!("seed {seed} round {round}: {name} at {at}"));
            // Of several that were damaged, so that none was believed, one may now be cut to nothing, which is no damage.
            assert!(now <= whole || whole == 0, "seed {seed} round {round}: {whole}, now {now}");
            damaged += whole.saturating_sub(now);
        }
    }
    assert!(damaged > 40, "only {damaged} summaries were found damaged");
}

/// What a start does not read must not stay hidden once it was found: the next start reads it.
#[test]
fn a_volume_in_which_damage_was_found_has_no_summary() {
    let bench = Bench::new(300);
    let engine = bench.open();
    for number in 0..300 {
        bench.sim.block_on(engine.put(chunk(number, 5000 + number as usize))).unwrap();
    }
    bench.sim.run_for(Duration::from_secs(1));
    let volume = bench.disk.files().into_iter().find(|name| name.starts_with("journal-")).unwrap();
    let summary = volume.replace("journal-", "summary-");
    assert!(bench.summaries().contains(&summary));
    bench.sim.block_on(engine.close());

    // The payload of some chunk rots: the start does not see it, the scrub does.
    bench.disk.flip(&volume, 200_000, 4);
    let (env, disk) = (bench.node.env(), bench.dyn_disk());
    let (engine, report) = bench.sim.block_on(Engine::open(&env, disk, options())).unwrap();
    assert!(report.summarised > 0 && report.damaged.is_empty(), "{report:?}");
    let inspected = bench.recover(Source::Volumes);
    assert_eq!(inspected.report.damaged.len(), 1, "an inspection reads everything");
    assert_eq!(bench.sim.block_on(engine.scrub_now()).unwrap().damaged, 1);
    bench.sim.block_on(engine.close());
    assert!(!bench.summaries().contains(&summary));
    let (env, disk) = (bench.node.env(), bench.dyn_disk());
    let (engine, report) = bench.sim.block_on(Engine::open(&env, disk, options())).unwrap();
    assert_eq!(report.damaged.len(), 1, "the next start names it");

    // Nor does it get a new one.
    bench.sim.run_for(Duration::from_secs(60));
    assert!(!bench.summaries().contains(&summary));
    bench.sim.block_on(engine.close());
}

/// A volume of an earlier life, sealed by the next start's list, is summed up by reading it; one that is dropped takes its
/// summary with it.
#[test]
fn volumes_of_earlier_lives_get_summaries_and_dropped_ones_lose_them() {
    let bench = Bench::new(301);
    let engine = bench.open();
    for number in 0..100 {
        bench.sim.block_on(engine.put(chunk(number, 5000))).unwrap();
    }
    bench.node.crash();
    drop(engine);
    assert!(bench.summaries().is_empty(), "nothing is sealed");
    let engine = bench.open();
    bench.sim.run_for(Duration::from_secs(30));
    assert_eq!(bench.summaries().len(), 1);
    bench.sim.block_on(engine.close());
    assert_eq!(bench.compare("summed up later"), 1);

    let engine = bench.open();
    bench.sim.block_on(engine.delete((0..100).map(id).collect())).unwrap();
    bench.sim.run_for(Duration::from_secs(30));
    assert!(bench.summaries().is_empty(), "{:?}", bench.disk.files());
    bench.sim.block_on(engine.close());
}
