//! What the product logs: lines of a run's timeline, and a record of which points of the code were reached.

use base::sim::SimHandle;
use std::collections::BTreeSet;
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::recorder::{Shown, stamp};

/// A place in the product that logs something: file and line.
pub type Point = (&'static str, u32);

/// Prints events with the simulated time and the node, and keeps where they came from. Spans are not shown.
#[derive(Clone)]
pub struct Timeline {
    sim: SimHandle,
    level: Option<Level>,
    reached: Arc<Mutex<BTreeSet<Point>>>,
    cries: Arc<Mutex<Vec<String>>>,
}

/// Words with which the product says that what a disk holds is not what was written there.
const CRIES: [&str; 3] = ["damage", "made anew", "cannot be restored"];
/// Cries that are kept.
const CRIES_MAX: usize = 20;

impl Timeline {
    pub fn new(sim: SimHandle, shown: Shown) -> Timeline {
        let level = match shown {
            Shown::Nothing => None,
            Shown::Story => Some(Level::INFO),
            Shown::Everything => Some(Level::DEBUG),
        };
        Timeline { sim, level, reached: Arc::default(), cries: Arc::default() }
    }

    /// What the product has said of damage that it found.
    pub fn cries(&self) -> Vec<String> {
        self.cries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep_cry(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let mut cries = self.cries.lock().unwrap_or_else(PoisonError::into_inner);
        if cries.len() < CRIES_MAX && CRIES.iter().any(|cry| line.0.contains(cry)) {
            let node = self.sim.running_node().map_or(String::new(), |node| format!("node {node}: "));
            cries.push(format!("{}  {node}{}", stamp(&self.sim).trim(), line.0));
        }
    }

    /// Every point that was reached so far.
    pub fn reached(&self) -> BTreeSet<Point> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Subscriber for Timeline {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            self.reached.lock().unwrap_or_else(PoisonError::into_inner).insert((file, line));
        }
        if *metadata.level() == Level::ERROR {
            self.keep_cry(event);
        }
        if self.level.is_none_or(|level| *metadata.level() > level) {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let node = self.sim.running_node().map_or(String::new(), |node| format!("[node {node}] "));
        let mark = if *metadata.level() == Level::ERROR { "ERROR " } else { "" };
        println!("{}  {node}{mark}{}", stamp(&self.sim), line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let written = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, "{name}={value:?} "),
        };
        written.expect("writing into a string does not fail");
    }
}
