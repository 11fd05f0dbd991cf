//! The disks of this node: each an engine of its own, the failure of one leaves the others serving.

use base::ids::DiskId;
use std::collections::BTreeMap;
use store::{DiskState, DiskUsage, Engine};

/// One disk as configured and opened.
pub struct NodeDisk {
    /// A path in production.
    pub label: String,
    pub id: DiskId,
    /// The engine, or why there is none.
    pub engine: Result<Engine, String>,
}

/// All disks, the one that holds metadata first.
pub struct Disks {
    pub all: Vec<NodeDisk>,
    by_id: BTreeMap<DiskId, usize>,
}

impl Disks {
    pub fn new(all: Vec<NodeDisk>) -> Disks {
        let by_id = all.iter().enumerate().map(|(i, disk)| (disk.id, i)).collect();
        Disks { all, by_id }
    }

    /// The engine of a disk, or a sentence.
    pub fn engine(&self, id: DiskId) -> Result<&Engine, String> {
        let Some(index) = self.by_id.get(&id) else { return Err(format!("this node has no disk {id}")) };
        let disk = &self.all[*index];
        disk.engine.as_ref().map_err(|why| format!("disk {} is out of service: {why}", disk.label))
    }

    pub fn metadata(&self) -> &Engine {
        self.all[0].engine.as_ref().expect("a node does not start without its metadata disk")
    }

    pub fn engines(&self) -> impl Iterator<Item = &Engine> {
        self.all.iter().filter_map(|disk| disk.engine.as_ref().ok())
    }

    /// Filled so far that waiting with the deletion of garbage would hurt.
    pub fn short_of_space(&self) -> bool {
        self.engines().any(|engine| {
            let usage = engine.usage();
            usage.used_bytes > usage.capacity_bytes / 10 * 7
        })
    }
}

impl NodeDisk {
    /// As `status` shows it.
    pub fn state(&self) -> (&'static str, String) {
        match &self.engine {
            Err(why) => ("failed", why.clone()),
            Ok(engine) => match engine.state() {
                DiskState::Healthy => ("up", String::new()),
                DiskState::Full => ("full", "takes no new data until something is deleted".into()),
                DiskState::Broken(why) => ("failed", why),
                DiskState::Closed => ("closed", String::new()),
            },
        }
    }

    pub fn usage(&self) -> DiskUsage {
        self.engine.as_ref().map(Engine::usage).unwrap_or_default()
    }
}
