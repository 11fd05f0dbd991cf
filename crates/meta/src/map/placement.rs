//! Placement groups: a move is Open -> Closed -> Open, each step under the next epoch. What a step may change is decided
//! here, in apply, so that no planner can lose a copy by mistake: while a group is closed, its rows name every disk that
//! may hold something.

use std::collections::BTreeSet;

use base::ids::NodeId;
use base::plant::{self, Plant};
use bytes::Bytes;

use super::apply::{Halt, Step, count_up, id_u128, refuse, require};
use super::command::{DiskRow, DiskState, MapOutcome, MapReply, NodeRow, NodeState, PgRow, PgRows, PoolRow};
use super::{COPIES_MAX, MEMBERS_BEFORE_MAX, PGS_MAX};
use crate::keys::Key;

const FIRST_EPOCH: u32 = 1;

impl Step<'_> {
    pub fn set_pgs(&mut self, mut rows: PgRows) -> Result<MapReply, Halt> {
        if plant::is(Plant::DecideStale) {
            self.ask_no_epochs(&mut rows)?;
        }
        // One command carries no more rows than the map may hold.
        for (number, row) in rows.rows.iter().enumerate() {
            let in_order = number == 0 || {
                let last = &rows.rows[number - 1];
                (last.pool, last.prefix) < (row.pool, row.prefix)
            };
            require(in_order, "placement groups come in order, each once")?;
            self.set_pg(row)?;
        }
        Ok(MapReply::default())
    }

    /// A planted defect: whatever epoch the rows were decided under, they follow.
    fn ask_no_epochs(&self, rows: &mut PgRows) -> Result<(), Halt> {
        for row in &mut rows.rows {
            let key = Key::Pg { pool: u8::try_from(row.pool).unwrap_or(0), prefix: row.prefix };
            row.epoch = self.read::<PgRow>(&key)?.map_or(row.epoch, |before| before.epoch + 1);
        }
        Ok(())
    }

    fn set_pg(&mut self, row: &PgRow) -> Result<(), Halt> {
        let pool_id = u8::try_from(row.pool).unwrap_or(0);
        let pool: Option<PoolRow> = self.read(&Key::Pool { id: pool_id })?;
        let Some(pool) = pool.filter(|pool| pool.id == row.pool) else {
            return refuse(MapOutcome::NotFound, format!("pool {}", row.pool));
        };
        require(row.prefix >> pool.pg_bits == 0, "the pool has no such placement group")?;
        require(!row.members.is_empty(), "a placement group has members")?;
        check_list(&row.members, COPIES_MAX)?;
        check_list(&row.members_before, MEMBERS_BEFORE_MAX)?;
        let key = Key::Pg { pool: pool_id, prefix: row.prefix };
        let before: Option<PgRow> = self.read(&key)?;
        match &before {
            Some(before) => check_move(before, row)?,
            None => {
                require(row.epoch == FIRST_EPOCH, "a new placement group starts at epoch 1")?;
                count_up(&mut self.state.pgs, PGS_MAX, "placement groups")?;
            }
        }
        let known: BTreeSet<&Bytes> =
            before.iter().flat_map(|row| row.members.iter().chain(&row.members_before)).collect();
        for member in row.members.iter().chain(&row.members_before).filter(|member| !known.contains(member)) {
            self.check_new_member(member)?;
        }
        self.put(&key, row, before.as_ref());
        Ok(())
    }

    /// A disk that takes data for the first time in this group.
    fn check_new_member(&self, member: &[u8]) -> Result<(), Halt> {
        let id = id_u128(member)?;
        let named = base::ids::DiskId(id);
        let Some(disk) = self.read::<DiskRow>(&Key::Disk { id })? else {
            return refuse(MapOutcome::NotFound, format!("disk {named}"));
        };
        require(disk.state() != DiskState::Removed, &format!("disk {named} was removed"))?;
        let node = self.read::<NodeRow>(&Key::Node { id: NodeId(disk.node) })?.unwrap_or_default();
        let takes_data = !matches!(node.state(), NodeState::Joining | NodeState::Removed);
        require(takes_data, &format!("disk {named} is on node {}, which takes no data", disk.node))
    }
}

/// One step of a move: see [`super::command::MapCommand::SetPgs`].
fn check_move(before: &PgRow, after: &PgRow) -> Result<(), Halt> {
    let group = format!("placement group {}.{:x}", after.pool, after.prefix);
    if after.epoch <= before.epoch {
        return refuse(MapOutcome::Stale, format!("{group} is at epoch {}", before.epoch));
    }
    require(Some(after.epoch) == before.epoch.checked_add(1), &format!("{group} is at epoch {}", before.epoch))?;
    if after.closed {
        let holders: BTreeSet<&Bytes> = before.members.iter().chain(&before.members_before).collect();
        let named: BTreeSet<&Bytes> = after.members_before.iter().collect();
        return require(named == holders, &format!("{group}: a move names every disk that may hold something"));
    }
    require(before.closed, &format!("{group} is closed before its members change"))?;
    require(after.members == before.members, &format!("{group} opens with the members that it was closed for"))?;
    require(after.members_before.is_empty(), &format!("{group}: an open group has no members before"))
}

fn check_list(members: &[Bytes], len_max: usize) -> Result<(), Halt> {
    require(members.len() <= len_max, &format!("at most {len_max} members"))?;
    for (number, member) in members.iter().enumerate() {
        id_u128(member)?;
        require(!members[..number].contains(member), "a member is named twice")?;
    }
    Ok(())
}
