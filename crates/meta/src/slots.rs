//! The slot table: makes a command that is sent again return its first answer instead of executing again (as in
//! NFSv4.1, RFC 8881 section 2.10.6), and the floors that close sessions.
//!
//! A session is one life of one node. It has at most [`SLOTS_MAX`] slots, each used by one command at a time. A slot's
//! row holds the last sequence executed there and its reply. A higher sequence acknowledges the earlier one and fences
//! its late copy. Once a session is below its node's floor, nothing of it is executed any more, and its rows are
//! removed: whether its last commands were executed is then unknown.

use base::ids::{Generation, GroupId, NodeId, Session};
use base::plant::{self, Plant};
use bytes::Bytes;
use prost::Message;

use crate::group::read_row;
use crate::keys::{self, Key};
use crate::object::command::SlotRef;
use crate::view::{Changes, View, ViewError};

/// Slots of one session.
pub const SLOTS_MAX: u32 = 256;
/// Slot rows removed by one `CloseSession`. What is left is harmless (the floor is asked first) and goes with the next.
pub const SLOT_ROWS_CLOSED_MAX: usize = 4096;

#[derive(Clone, PartialEq, prost::Message)]
struct SlotRow {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    /// The encoded reply.
    #[prost(bytes = "bytes", tag = "2")]
    reply: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FloorRow {
    #[prost(uint32, tag = "1")]
    floor: u32,
}

/// What the slot table says about a command whose replies are `R`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing<R> {
    /// Not executed yet.
    Fresh,
    /// Executed before, with this reply.
    Repeat(R),
    /// A later command was executed in this slot.
    Fenced,
    /// The session is below the floor.
    Closed,
    /// No such slot or sequence.
    Invalid,
}

fn session_of(slot: &SlotRef) -> Session {
    Session { node: NodeId(slot.node), generation: Generation(slot.generation) }
}

fn slot_key(group: GroupId, slot: &SlotRef) -> Key {
    let number = u16::try_from(slot.slot).expect("standing() refused slots from 256 on");
    Key::Slot { group, session: session_of(slot), slot: number }
}

/// Where a command with this slot stands. `None` (an internal command) is always fresh.
pub fn standing<R: Message + Default>(
    view: &dyn View,
    group: GroupId,
    slot: Option<&SlotRef>,
) -> Result<Standing<R>, ViewError> {
    let Some(slot) = slot else {
        return Ok(Standing::Fresh);
    };
    if slot.slot >= SLOTS_MAX || slot.sequence == 0 {
        return Ok(Standing::Invalid);
    }
    if is_closed(view, group, session_of(slot))? {
        return Ok(Standing::Closed);
    }
    let key = slot_key(group, slot);
    let Some(row) = read_row::<SlotRow>(view, &key)? else {
        return Ok(Standing::Fresh);
    };
    Ok(match slot.sequence.cmp(&row.sequence) {
        std::cmp::Ordering::Greater => Standing::Fresh,
        std::cmp::Ordering::Equal if plant::is(Plant::RetryTwice) => Standing::Fresh,
        std::cmp::Ordering::Equal => {
            Standing::Repeat(R::decode(row.reply).map_err(|error| ViewError::bad_row(&key.encode(), error))?)
        }
        std::cmp::Ordering::Less => Standing::Fenced,
    })
}

/// Records the reply of a command that was executed. `standing` said `Fresh` before.
pub fn record(changes: &mut Changes, group: GroupId, slot: Option<&SlotRef>, reply: &impl Message) {
    if let Some(slot) = slot {
        let row = SlotRow { sequence: slot.sequence, reply: Bytes::from(reply.encode_to_vec()) };
        changes.put(slot_key(group, slot).encode(), Bytes::from(row.encode_to_vec()));
    }
}

/// The lowest generation of `node` that is not closed.
pub fn floor(view: &dyn View, group: GroupId, node: NodeId) -> Result<Generation, ViewError> {
    let row = read_row::<FloorRow>(view, &Key::SessionFloor { group, node })?;
    Ok(Generation(row.map_or(0, |row| row.floor)))
}

/// Whether `session` is closed.
pub fn is_closed(view: &dyn View, group: GroupId, session: Session) -> Result<bool, ViewError> {
    Ok(session.generation < floor(view, group, session.node)?)
}

/// Closes the sessions of `node` below `new_floor` and removes their slot rows, a bounded number at once. A floor never
/// falls. Answers whether more slot rows are left.
pub fn close(
    view: &dyn View,
    group: GroupId,
    node: NodeId,
    new_floor: Generation,
    changes: &mut Changes,
) -> Result<bool, ViewError> {
    let floor = floor(view, group, node)?.max(new_floor);
    let row = FloorRow { floor: if plant::is(Plant::ForgetFloor) { 0 } else { floor.0 } };
    changes.put(Key::SessionFloor { group, node }.encode(), Bytes::from(row.encode_to_vec()));
    let (from, to) = keys::slot_rows_below(group, node, floor);
    let rows = view.scan(&from, &to, SLOT_ROWS_CLOSED_MAX)?;
    let more = rows.len() == SLOT_ROWS_CLOSED_MAX;
    for (key, _) in rows {
        changes.delete(key);
    }
    Ok(more)
}
