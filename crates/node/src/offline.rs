//! A stopped node, looked at without changing anything: what the offline check needs besides `store::inspect`.

use base::env::Disk;
use base::ids::GroupId;
use meta::group;
use meta::view::Overlay;
use protocol::raft::Entry;
use store::RaftLog;

pub use crate::home::{HomeError, NodeIdentity};
pub use crate::machine::KvView;

/// Whose directory `data` is; `None` when no node has been here. Checks all of the node's own files.
pub async fn identity(data: &dyn Disk) -> Result<Option<NodeIdentity>, HomeError> {
    let Some(identity) = crate::home::load_identity(data).await? else { return Ok(None) };
    crate::home::load_generations(data, identity.node).await?;
    Ok(Some(identity))
}

/// Applies to `rows` what `log` says beyond them, as the next start of the node would. Only for groups whose one
/// voter is this node: what its log holds is committed. Answers how many entries that were, or why it cannot be done.
pub fn replay(rows: &mut Overlay<'_>, group: GroupId, log: &RaftLog) -> Result<u64, String> {
    let applied = group::load(rows, group).map_err(|error| error.to_string())?.applied_index;
    if log.base.0.0 > applied {
        return Err(format!("the log begins after entry {}, the key-value store ends at entry {applied}", log.base.0));
    }
    let mut replayed = 0;
    for entry in log.entries.iter().filter(|entry| entry.index.0 > applied) {
        let entry = Entry { index: entry.index, term: entry.term, data: entry.data.clone() };
        if !entry.data.is_empty() {
            crate::machine::apply_one(rows, group, &entry).map_err(|error| error.to_string())?;
        }
        replayed += 1;
    }
    Ok(replayed)
}
