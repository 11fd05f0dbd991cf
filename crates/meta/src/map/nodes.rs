//! Nodes: how they join, come up, are fenced, drain and go.

use base::ids::NodeId;
use base::plant::{self, Plant};
use bytes::Bytes;

use super::apply::{CLOSED_LEVEL_MIN, Halt, Step, check_text, count_up, refuse, require};
use super::command::{Authority, MapOutcome, MapReply, NodeRow, NodeState, RedeemToken, SetNodeState, TokenRow};
use super::{NODES_MAX, PEM_LEN_MAX, TOKENS_MAX};
use crate::group::decode_row;
use crate::keys::{self, Key};

/// Hexadecimal digits of a token's id.
const TOKEN_ID_LEN: usize = 16;
const SHA256_LEN: usize = 32;
/// Bytes by which a joiner is known again.
const JOINER_LEN_MAX: usize = 64;

impl Step<'_> {
    pub fn set_node(&mut self, mut row: NodeRow) -> Result<MapReply, Halt> {
        check_text(&row.locality)?;
        check_text(&row.address)?;
        let Ok(state) = NodeState::try_from(row.state) else {
            return refuse(MapOutcome::Invalid, "the node's state is not known");
        };
        let level = self.state.feature_level;
        let follows = row.feature_level_max >= level || state == NodeState::Removed;
        require(follows, &format!("the cluster is at feature level {level}: start a newer henge"))?;
        if row.id == 0 {
            row.id = self.next_node_id()?;
        }
        let key = Key::Node { id: NodeId(row.id) };
        let before: Option<NodeRow> = self.read(&key)?;
        row.leaving = before.as_ref().is_some_and(|before| before.leaving);
        if row.leaving && state == NodeState::Up {
            row.state = NodeState::Draining as i32;
        }
        match &before {
            Some(before) => {
                row.generation_floor = row.generation_floor.max(before.generation_floor);
                row.closed_below = row.closed_below.max(before.closed_below);
                // A fenced node comes back under a new generation only.
                let is_fenced = row.generation < row.generation_floor && state.serves();
                if row.generation < before.generation || is_fenced {
                    let detail = format!("generation {} is fenced or older than {}", row.generation, before.generation);
                    return refuse(MapOutcome::Stale, detail);
                }
                check_step(before, state)?;
            }
            None => count_up(&mut self.state.nodes, NODES_MAX, "nodes")?,
        }
        row.closed_below = if level < CLOSED_LEVEL_MIN { 0 } else { row.closed_below.min(row.generation) };
        self.state.node_id_last = self.state.node_id_last.max(row.id);
        self.put(&key, &row, before.as_ref());
        Ok(MapReply { id: u64::from(row.id), ..MapReply::default() })
    }

    pub fn set_node_state(&mut self, change: &SetNodeState) -> Result<MapReply, Halt> {
        let Ok(state) = NodeState::try_from(change.state) else {
            return refuse(MapOutcome::Invalid, "the node's state is not known");
        };
        let key = Key::Node { id: NodeId(change.id) };
        let Some(before) = self.read::<NodeRow>(&key)? else {
            return refuse(MapOutcome::NotFound, format!("node {}", change.id));
        };
        if change.generation != before.generation && !plant::is(Plant::DecideStale) {
            let detail = format!("node {} is at generation {} now", change.id, before.generation);
            return refuse(MapOutcome::Stale, detail);
        }
        let was_up = before.state() != NodeState::Joining;
        require(was_up || state == NodeState::Removed, "a node that never was up can only be removed")?;
        check_step(&before, state)?;
        let fence = before.generation.saturating_add(u32::from(change.raise_floor));
        let floor = before.generation_floor.max(if change.raise_floor { fence } else { 0 });
        if state.serves() && before.generation < floor {
            return refuse(MapOutcome::Stale, format!("generation {} is fenced", before.generation));
        }
        let leaving = match state {
            NodeState::Draining => !change.stays,
            NodeState::Up => false,
            _ => before.leaving,
        };
        let after = NodeRow { state: change.state, generation_floor: floor, leaving, ..before.clone() };
        self.put(&key, &after, Some(&before));
        Ok(MapReply { id: u64::from(after.id), ..MapReply::default() })
    }

    pub fn create_token(&mut self, row: TokenRow) -> Result<MapReply, Halt> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_id = row.id.len() == TOKEN_ID_LEN && row.id.bytes().all(is_digit);
        require(is_id, "a token's id is 16 lower-case hexadecimal digits")?;
        require(row.secret_hash.len() == SHA256_LEN, "a token's secret is hashed with SHA-256")?;
        require(row.used_by == 0 && row.joiner.is_empty(), "a new token is unused")?;
        require(row.expires_ms > row.created_ms, "a token expires after it was made")?;
        let key = token_key(&row.id);
        require(self.read::<TokenRow>(&key)?.is_none(), "there is a token with this id")?;
        self.prune_tokens(row.created_ms)?;
        count_up(&mut self.state.tokens, TOKENS_MAX, "tokens")?;
        self.put(&key, &row, None);
        Ok(MapReply::default())
    }

    /// Removes what had expired by `now_ms`; when the map is full, also what was used.
    fn prune_tokens(&mut self, now_ms: u64) -> Result<(), Halt> {
        let is_full = self.state.tokens >= TOKENS_MAX;
        let (from, to) = keys::token_rows();
        for (key, value) in self.view.scan(&from, &to, TOKENS_MAX as usize)? {
            let token = decode_row::<TokenRow>(&key, Some(value))?.unwrap_or_default();
            if token.expires_ms <= now_ms || (is_full && token.used_by != 0) {
                self.changes.delete(key);
                self.state.tokens -= 1;
                self.is_effective = true;
            }
        }
        Ok(())
    }

    pub fn redeem_token(&mut self, redeem: RedeemToken) -> Result<MapReply, Halt> {
        require(redeem.joiner.len() <= JOINER_LEN_MAX, "a joiner is known by at most 64 bytes")?;
        let key = token_key(&redeem.id);
        let before = self.read::<TokenRow>(&key)?.filter(|token| token.secret_hash == redeem.secret_hash);
        let Some(before) = before else {
            return refuse(MapOutcome::TokenUnknown, "the cluster does not know this token");
        };
        if before.used_by != 0 {
            return self.redeem_again(&before, &redeem);
        }
        if before.expires_ms <= redeem.now_ms {
            return refuse(MapOutcome::TokenExpired, "the token has expired");
        }
        let node = redeem.node.unwrap_or_default();
        require(node.id == 0, "a node that joins has no id yet")?;
        let joining = NodeRow { state: NodeState::Joining as i32, generation_floor: 0, ..node };
        let reply = self.set_node(joining)?;
        let used = TokenRow { used_by: reply.id as u32, joiner: redeem.joiner, ..before.clone() };
        self.put(&key, &used, Some(&before));
        Ok(reply)
    }

    /// The same joiner asks again because its first answer was lost; anybody else is too late.
    fn redeem_again(&self, token: &TokenRow, redeem: &RedeemToken) -> Result<MapReply, Halt> {
        let node: Option<NodeRow> = self.read(&Key::Node { id: NodeId(token.used_by) })?;
        let is_joining = node.is_some_and(|node| node.state() == NodeState::Joining);
        if is_joining && !redeem.joiner.is_empty() && redeem.joiner == token.joiner {
            return Ok(MapReply { id: u64::from(token.used_by), ..MapReply::default() });
        }
        refuse(MapOutcome::TokenUsed, format!("node {} has joined with this token", token.used_by))
    }

    pub fn set_authority(&mut self, authority: Authority) -> Result<MapReply, Halt> {
        for pem in [&authority.certificate_pem, &authority.key_pem] {
            require(!pem.is_empty() && pem.len() <= PEM_LEN_MAX, "an authority has a certificate and a key")?;
        }
        let before: Option<Authority> = self.read(&Key::Authority)?;
        let is_same = before.as_ref().is_none_or(|before| *before == authority);
        // Whoever can have a command committed has a certificate of the authority that a majority goes by.
        let may_change = self.state.feature_level >= super::AUTHORITY_LEVEL_MIN;
        require(is_same || may_change, "the cluster has another certificate authority")?;
        self.put(&Key::Authority, &authority, before.as_ref());
        Ok(MapReply::default())
    }

    fn next_node_id(&self) -> Result<u32, Halt> {
        match self.state.node_id_last.checked_add(1) {
            Some(id) => Ok(id),
            None => refuse(MapOutcome::TooMany, "no node id is left"),
        }
    }
}

/// What never happens to a node that is in the map, whoever asks.
fn check_step(before: &NodeRow, state: NodeState) -> Result<(), Halt> {
    let was_removed = before.state() == NodeState::Removed;
    require(!was_removed || state == NodeState::Removed, "a removed node does not come back")?;
    let was_up = before.state() != NodeState::Joining;
    require(!was_up || state != NodeState::Joining, "a node joins once")
}

fn token_key(id: &str) -> Key {
    Key::Token { id: Bytes::copy_from_slice(id.as_bytes()) }
}
