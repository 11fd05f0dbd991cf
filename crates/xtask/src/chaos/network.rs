//! Faults of the network, through the switch of this process.

use std::time::Duration;

use super::arena::Arena;
use super::cluster::{Cluster, MAP_GROUP, OBJECTS_GROUP, Place};
use super::load::{self, Load, USUAL};
use super::processes::{Failure, fail, now_ms, sleep, wait_for};
use super::report::Figures;
use super::switch::{Link, Switch, address};

/// Until a write succeeds again, whatever happened: longer than a gateway tries.
const SERVED_PATIENCE: Duration = Duration::from_secs(90);

/// Until leadership is where it belongs again.
const LEADERS_PATIENCE: Duration = Duration::from_secs(60);

/// Until a node that is cut off says so.
const TOLD_PATIENCE: Duration = Duration::from_secs(30);

const CUT: Link = Link { cut: true, lost_percent: 0, repeated_percent: 0, delay_us: (0, 0), bytes_per_second: 0 };

/// A cluster on a switch, with clients of all nodes on the hub.
struct Stage<'a, 'f> {
    // Dropped in this order: servers before their network.
    load: Load,
    cluster: Cluster<'a>,
    switch: Switch,
    figures: &'f mut Figures,
    events: Vec<u64>,
}

impl<'a, 'f> Stage<'a, 'f> {
    fn set(arena: &'a Arena, figures: &'f mut Figures, fault: &str, count: u8) -> Result<Stage<'a, 'f>, Failure> {
        let folder = arena.folder(fault)?;
        let switch = Switch::start(count, arena.random())?;
        let place = |number: u8| Place {
            ip: address(number),
            data: folder.join(format!("node{number}")),
            namespace: Some(switch.namespace(number.into()).to_owned()),
            environment: Vec::new(),
        };
        let cluster = Cluster::found(arena, &folder, (1..=count).map(place).collect())?;
        let load = Load::start(&cluster, &folder.join("acks.jsonl"), &USUAL)?;
        Ok(Stage { load, cluster, switch, figures, events: Vec::new() })
    }

    fn event(&mut self) {
        self.events.push(now_ms());
        self.figures.events += 1;
    }

    /// Everything heals and is served again.
    fn heal(&mut self) -> Result<(), Failure> {
        self.switch.heal();
        let healed = now_ms();
        self.load.wait_served(healed, SERVED_PATIENCE)?;
        sleep(Duration::from_secs(3))
    }

    /// Nothing passes between two nodes for a while.
    fn cut_link(&mut self, one: usize, other: usize) -> Result<(), Failure> {
        self.event();
        self.switch.set_both(one, other, CUT);
        sleep(Duration::from_secs(15))?;
        self.heal()
    }

    /// A node that is cut off must not take a write.
    fn refuses(&self, node: usize) -> Result<(), Failure> {
        let s3 = &self.cluster.s3_of_all()[node - 1];
        let words = ["bench", "put", "--concurrency", "2", "--seconds", "1", "--timeout", "2s", "--s3", s3];
        match self.cluster.henge(&words)?.status {
            0 => fail(format!("node {node} is cut off and took a write")),
            _ => Ok(()),
        }
    }

    fn conclude(self) -> Result<(), Failure> {
        load::conclude(self.cluster, self.load, &self.events, self.figures)
    }
}

/// Each node in turn hears nobody, is heard by nobody, or both. The two others serve; the one says that it does not.
pub fn cuts(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let mut stage = Stage::set(arena, figures, "cuts", 3)?;
    for _ in 0..arena.rounds(1, 1) {
        for node in stage.cluster.numbers() {
            for (hears, is_heard) in [(false, false), (false, true), (true, false)] {
                stage.event();
                for other in stage.cluster.numbers().filter(|other| *other != node) {
                    stage.switch.set(other, node, if hears { Link::default() } else { CUT });
                    stage.switch.set(node, other, if is_heard { Link::default() } else { CUT });
                }
                stage.load.wait_served(now_ms() + 1_000, SERVED_PATIENCE)?;
                let told = || format!("a status other than `safe` of node {node}, which is cut off");
                wait_for(TOLD_PATIENCE, told, || {
                    let status = stage.cluster.status(node)?;
                    Ok(status.is_none_or(|status| status.text("verdict") != Some("safe")).then_some(()))
                })?;
                stage.refuses(node)?;
                sleep(Duration::from_secs(4))?;
                stage.heal()?;
            }
        }
    }
    stage.conclude()
}

/// Five nodes, two of them on one side. The objects' shard has three voters: where two of them are among the two, nobody
/// can be served until the heal.
pub fn splits(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let mut stage = Stage::set(arena, figures, "splits", 5)?;
    let mut random = arena.random();
    let mut served = 0;
    for _ in 0..arena.rounds(1, 5) {
        stage.event();
        let first = random.between(1, 5) as usize;
        let second = first % 5 + 1;
        for one in [first, second] {
            for other in stage.cluster.numbers().filter(|other| ![first, second].contains(other)) {
                stage.switch.set_both(one, other, CUT);
            }
        }
        let cut = now_ms();
        sleep(Duration::from_secs(12))?;
        served += usize::from(stage.load.acks()?.iter().any(|ack| ack.is_write_done() && ack.t_ms > cut + 2_000));
        stage.heal()?;
    }
    stage
        .figures
        .notes
        .push(format!("{served} splits were served, the others had two voters of three on the small side"));
    stage.conclude()
}

/// Each link of three in turn is cut, so that both ends see the third node but not each other; in between those whose ends
/// lead the map's group and the objects': the harder case, and which it is changes with every cut.
pub fn bridge(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let mut stage = Stage::set(arena, figures, "bridge", 3)?;
    for _ in 0..arena.rounds(1, 1) {
        for (one, other) in [(1, 2), (2, 3), (3, 1)] {
            stage.cut_link(one, other)?;
            let mut leaders = || {
                let (map, objects) = (stage.cluster.leader(MAP_GROUP)?, stage.cluster.leader(OBJECTS_GROUP)?);
                Ok((map != objects).then_some((map, objects)))
            };
            let (map, objects) = wait_for(LEADERS_PATIENCE, || "two leaders on two nodes".into(), &mut leaders)?;
            stage.cut_link(map, objects)?;
        }
    }
    stage.conclude()
}

/// The links of each node in turn come and go: too fast for anybody to be sure of anything.
pub fn flapping(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let mut stage = Stage::set(arena, figures, "flapping", 3)?;
    let mut random = arena.random();
    for _ in 0..arena.rounds(1, 1) {
        for node in stage.cluster.numbers() {
            stage.event();
            for turn in 0..40 {
                let link = if turn % 2 == 0 { CUT } else { Link::default() };
                for other in stage.cluster.numbers().filter(|other| *other != node) {
                    stage.switch.set_both(node, other, link);
                }
                sleep(Duration::from_millis(random.between(50, 700)))?;
            }
            stage.heal()?;
        }
    }
    stage.conclude()
}

/// All links between nodes delay, lose, repeat and reorder.
pub fn bad_network(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let mut stage = Stage::set(arena, figures, "bad-network", 3)?;
    let links = [
        Link { delay_us: (30_000, 70_000), ..Link::default() },
        Link { lost_percent: 2, delay_us: (100, 10_000), ..Link::default() },
        Link { repeated_percent: 20, delay_us: (0, 5_000), ..Link::default() },
        Link { lost_percent: 5, repeated_percent: 5, delay_us: (1_000, 60_000), ..Link::default() },
    ];
    for _ in 0..arena.rounds(1, 1) {
        for link in links {
            stage.event();
            stage.switch.set_all(link);
            sleep(Duration::from_secs(12))?;
            stage.load.wait_served(now_ms(), SERVED_PATIENCE)?;
            stage.heal()?;
        }
    }
    stage.conclude()
}

/// Each node in turn is far away behind a thin line.
pub fn slow_link(arena: &Arena, figures: &mut Figures) -> Result<(), Failure> {
    let mut stage = Stage::set(arena, figures, "slow-link", 3)?;
    let slow = Link { delay_us: (50_000, 55_000), bytes_per_second: 1_000_000, ..Link::default() };
    for _ in 0..arena.rounds(1, 1) {
        for node in stage.cluster.numbers() {
            stage.event();
            for other in stage.cluster.numbers().filter(|other| *other != node) {
                stage.switch.set_both(node, other, slow);
            }
            sleep(Duration::from_secs(12))?;
            stage.load.wait_served(now_ms(), SERVED_PATIENCE)?;
            stage.heal()?;
        }
    }
    stage.conclude()
}
