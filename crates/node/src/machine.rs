//! The state machine of a group, behind one face for the driver: bytes of log entries in, changes and replies out.

use base::ids::{GROUP_ZERO, GroupId, LogIndex, Term};
use bytes::Bytes;
use meta::group;
use meta::map::command::{ClusterMap, MapEntry, MapReply};
use meta::object::command::{ShardEntry, ShardReply};
use meta::view::{Change, Overlay, Row, View, ViewError};
use prost::Message;
use protocol::raft::{Configuration, ENTRY_COMMAND, Entry};
use std::sync::Arc;
use store::kv::{Kv, KvError};
use tokio::sync::watch;

/// What a command asks for.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "encoded where it is made; never kept or queued")]
pub enum Command {
    Map(MapEntry),
    Shard(ShardEntry),
}

/// What it was answered.
#[derive(Clone, Debug)]
pub enum Reply {
    Map(MapReply),
    Shard(ShardReply),
}

/// The state of one group in the key-value store of its disk.
pub struct Machine {
    group: GroupId,
    kv: Arc<dyn Kv>,
    configuration: Configuration,
    /// Group 0 only: the map after the last batch, for everybody on this node.
    map: Option<watch::Sender<Arc<ClusterMap>>>,
}

/// Effect of a batch of entries.
pub struct Applied {
    pub last: (LogIndex, Term),
    /// For each entry that was a command.
    pub replies: Vec<(LogIndex, Term, Reply)>,
}

impl Command {
    pub fn encode(&self) -> Bytes {
        let len = match self {
            Command::Map(entry) => entry.encoded_len(),
            Command::Shard(entry) => entry.encoded_len(),
        };
        let mut out = Vec::with_capacity(1 + len);
        out.push(ENTRY_COMMAND);
        match self {
            Command::Map(entry) => entry.encode_raw(&mut out),
            Command::Shard(entry) => entry.encode_raw(&mut out),
        }
        out.into()
    }
}

impl Machine {
    /// `map`: where the state of group 0 is published. `stateless`: the rows mean nothing yet.
    pub fn new(
        group: GroupId,
        kv: Arc<dyn Kv>,
        configuration: &Configuration,
        stateless: bool,
        map: &watch::Sender<Arc<ClusterMap>>,
    ) -> Result<Machine, ViewError> {
        let map = (group == GROUP_ZERO).then(|| map.clone());
        let mut machine = Machine { group, kv, configuration: Configuration::default(), map };
        if !stateless {
            machine.reload(configuration)?;
        }
        Ok(machine)
    }

    /// Reads again what is held in memory: the rows were replaced.
    pub fn reload(&mut self, configuration: &Configuration) -> Result<(), ViewError> {
        self.configuration = configuration.clone();
        if let Some(map) = &self.map {
            map.send_replace(Arc::new(meta::map::load(&KvView::of(&self.kv))?));
        }
        Ok(())
    }

    /// Bytes that the next flush of the key-value store would write.
    pub fn unflushed_bytes(&self) -> u64 {
        self.kv.unflushed_bytes()
    }

    /// Applies entries in order and commits all their changes, with the applied index, in one transaction.
    /// `reconfigure` answers the configuration from a configuration entry on.
    pub fn apply(
        &mut self,
        entries: &[Entry],
        reconfigure: &mut dyn FnMut(&Entry) -> Configuration,
    ) -> Result<Applied, ViewError> {
        let last = entries.last().expect("a batch is never empty");
        let view = KvView::of(&self.kv);
        let mut overlay = Overlay::new(&view);
        let mut replies = Vec::with_capacity(entries.len());
        for entry in entries.iter().filter(|entry| !entry.data.is_empty()) {
            if entry.is_configuration() {
                self.configuration = reconfigure(entry);
                continue;
            }
            let reply = apply_one(&mut overlay, self.group, entry)?;
            replies.push((entry.index, entry.term, reply));
        }
        let map_changed = self.map.is_some() && !overlay.is_empty();
        let conf_state = self.configuration.encode();
        let advanced = group::advance(&overlay, self.group, last.index, last.term, conf_state)?;
        let changes = overlay.into_changes().0;
        if let Some(map) = self.map.as_ref().filter(|_| map_changed) {
            let mut newest = ClusterMap::clone(&map.borrow());
            for change in &changes {
                meta::map::absorb(&mut newest, change)?;
            }
            self.commit(changes, advanced)?;
            map.send_replace(Arc::new(newest));
        } else {
            self.commit(changes, advanced)?;
        }
        Ok(Applied { last: (last.index, last.term), replies })
    }

    fn commit(&self, changes: Vec<Change>, advanced: Change) -> Result<(), ViewError> {
        let changes = changes.into_iter().chain([advanced]).map(change_out).collect();
        self.kv.commit(changes).map_err(|error| view_error(&error))
    }
}

pub fn apply_one(overlay: &mut Overlay<'_>, group: GroupId, entry: &Entry) -> Result<Reply, ViewError> {
    let undecodable =
        |why: String| ViewError::Io(format!("entry {} of group {group} cannot be applied: {why}", entry.index));
    if entry.data[0] != ENTRY_COMMAND {
        return Err(undecodable(format!("it is of kind {}, which this version does not know", entry.data[0])));
    }
    let data = entry.data.slice(1..);
    let (changes, reply) = if group == GROUP_ZERO {
        let decoded = MapEntry::decode(data).map_err(|error| undecodable(error.to_string()))?;
        let (changes, reply) = meta::map::apply(overlay, entry.index, decoded)?;
        (changes, Reply::Map(reply))
    } else {
        let decoded = ShardEntry::decode(data).map_err(|error| undecodable(error.to_string()))?;
        let (changes, reply) = meta::object::apply(overlay, group, entry.index, decoded)?;
        (changes, Reply::Shard(reply))
    };
    overlay.absorb(changes);
    Ok(reply)
}

/// The key-value store as `meta` reads it.
pub struct KvView<'a>(&'a dyn store::kv::KvRead);

impl<'a> KvView<'a> {
    pub fn of(kv: &'a Arc<dyn Kv>) -> KvView<'a> {
        KvView(&**kv)
    }

    pub fn over(reader: &'a dyn store::kv::KvRead) -> KvView<'a> {
        KvView(reader)
    }
}

impl View for KvView<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        self.0.get(key).map_err(|error| view_error(&error))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, ViewError> {
        if limit == 0 || from >= to {
            return Ok(Vec::new());
        }
        let rows = self.0.scan(from, to, limit).map_err(|error| view_error(&error))?;
        Ok(rows.into_iter().map(|row| (row.key, row.value)).collect())
    }
}

fn view_error(error: &KvError) -> ViewError {
    match error {
        KvError::Damaged { first, last, detail } => {
            ViewError::Damaged { first: first.clone(), last: last.clone(), detail: detail.clone() }
        }
        other => ViewError::Io(other.to_string()),
    }
}

pub fn change_out(change: Change) -> store::kv::Change {
    match change {
        Change::Put { key, value } => store::kv::Change::Put { key, value },
        Change::Delete { key } => store::kv::Change::Delete { key },
    }
}
