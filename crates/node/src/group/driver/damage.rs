//! A replica whose rows cannot be read: who leads instead of it, and when its state is replaced by another's.

use base::ids::{LogIndex, PeerId};
use meta::group::{self, GroupState, Install};
use protocol::raft::Role;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use store::kv::{Kv, LsmKv};

use super::Driver;
use crate::group::install::Source;
use crate::group::turn::{self, Turn};
use crate::group::{Request, install};
use crate::machine::KvView;

/// From one look whether others have what is damaged here to the next; and when the replica has stopped over it.
const SURVEY_PAUSE: Duration = Duration::from_secs(30);
const STOPPED_PAUSE: Duration = Duration::from_secs(10);

impl Driver {
    /// Rows here cannot be read. Another replica leads, if one can; when one is known to have every row, this one gives up
    /// its own, keeps vote and log, and is opened anew to wait for a snapshot. Answers whether others are to be asked.
    pub(super) fn hurt(&mut self, why: String) -> bool {
        if self.failed().is_some() {
            return true;
        }
        self.survey(why);
        self.hand_over()
    }

    pub(super) fn hand_over(&mut self) -> bool {
        let heir = self.heir();
        if let Some(heir) = heir {
            self.raft.transfer_leadership(heir);
        }
        heir.is_some() || self.leader_node().is_some_and(|node| node != self.node)
    }

    /// Of the other voters that answer this leader and have rows, the one that has most.
    fn heir(&self) -> Option<PeerId> {
        let is_whole = |peer: &PeerId| !self.gone.contains(peer) && !self.rowless.contains(peer);
        let able = |it: &protocol::raft::PeerProgress| {
            it.peer != self.peer && it.active && self.configuration.is_voter(it.peer) && is_whole(&it.peer)
        };
        self.raft.progress().into_iter().filter(able).max_by_key(|it| it.matched).map(|it| it.peer)
    }

    /// Another replica was to have the rows here, and they cannot be read. Seldom, because each of two that are hurt would hand
    /// over to the other for ever.
    pub(super) fn unsendable(&mut self, why: String) {
        if self.env.now() >= self.unsendable_due {
            self.unsendable_due = self.env.now() + SURVEY_PAUSE;
            tracing::error!(group = self.id.0, "the state here cannot be sent: {why}");
            self.hurt(why);
        }
    }

    /// Has the own rows read, and all of another replica: who gives up its own must know that they are damaged, and that
    /// they are elsewhere; and no other replica is without its own, or about to be.
    pub(super) fn survey(&mut self, why: String) {
        if self.fetching.is_some() || self.stateless || self.env.now() < self.survey_due && !self.stopped_over_rows {
            return;
        }
        if !self.shared.mending.swap(true, Ordering::AcqRel) && !self.survey_after(Duration::ZERO, why) {
            self.shared.mending.store(false, Ordering::Release);
        }
    }

    /// `false`: there is nobody to ask.
    fn survey_after(&self, pause: Duration, why: String) -> bool {
        let leader = self.leader_node().filter(|node| *node != self.node);
        let first = leader.or_else(|| self.node_of(self.heir()?));
        let mut turn = self.turn();
        turn.others.sort_by_key(|node| Some(*node) != first);
        let (Some(mailbox), false) = (self.mailbox.upgrade(), turn.others.is_empty()) else { return false };
        let (kv, shared, cancelled) = (self.kv.clone(), self.shared.clone(), self.given_up.clone());
        self.env.spawn("survey a replica", async move {
            turn.env.sleep(pause).await;
            let mut found = survey(&turn, &kv, cancelled).await;
            let has_stopped = || shared.failed.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            if let Found::Nothing(why) = &found
                && has_stopped()
                && turn.is_replaceable().await
            {
                found = Found::Replaceable(why.clone());
            }
            let _ = mailbox.send(Request::Surveyed { why, found }).await;
        });
        true
    }

    /// What is to become of rows that cannot be read.
    pub(super) fn surveyed(&mut self, why: String, found: Found) {
        let kept = match found {
            Found::Whole(source) => self.mark_incomplete(&why, &source).err(),
            Found::Replaceable(error) => {
                if self.failed().is_none() {
                    self.fail(format!("{why}; {error}"));
                }
                None
            }
            Found::Nothing(error) => Some(error),
        };
        // Others are told from here on that it has no rows, or has stopped, or that it goes on with those that it has.
        self.shared.claims.store(false, Ordering::Release);
        match kept {
            Some(error) => {
                tracing::warn!(group = self.id.0, "damaged rows are kept: {why}; {error}");
                self.kept(why);
            }
            None => self.shared.mending.store(false, Ordering::Release),
        }
    }

    /// The replica goes on; or, if it has stopped over its rows and so has no part in any majority, waits until the others
    /// suffice, as its log may be needed.
    pub(super) fn kept(&mut self, why: String) {
        self.survey_due = self.env.now() + SURVEY_PAUSE;
        if !self.stopped_over_rows || !self.survey_after(STOPPED_PAUSE, why) {
            self.shared.mending.store(false, Ordering::Release);
        }
    }

    /// Another replica has every row: this one is opened anew without its own.
    fn mark_incomplete(&mut self, why: &str, source: &GroupState) -> Result<(), String> {
        self.may_do_without(source)?;
        let old = group::load(&KvView::over(&*self.kv), self.id).map_err(|error| error.to_string())?;
        let mark = crate::machine::change_out(group::mark(self.id, &old, Install::Incomplete));
        // Whether the mark is flushed does not matter: without it, a restart finds the old rows and the log.
        self.kv.commit(vec![mark]).map_err(|error| error.to_string())?;
        self.shared.reopen.store(true, Ordering::Release);
        if self.failed().is_none() {
            self.fail(format!("its state is replaced by another replica's: {why}"));
        }
        Ok(())
    }

    pub(super) fn turn(&self) -> Turn {
        Turn {
            env: self.env.clone(),
            group: self.id,
            node: self.node,
            peer: self.peer,
            others: turn::others(&self.configuration, self.node),
            map: self.map.clone(),
            at_least: self.raft.log_base(),
            claims: self.shared.claims.clone(),
        }
    }

    /// Whether this replica may give up its rows for those of `source`. A leader may not: until another one leads, its rows are
    /// the newest. With what the source has applied and the own log nothing is missing that was committed.
    fn may_do_without(&mut self, source: &GroupState) -> Result<(), String> {
        match self.failed() {
            Some(other) if !self.stopped_over_rows => return Err(format!("the replica has stopped: {other}")),
            None if self.raft.leadership().role == Role::Leader => {
                self.hand_over();
                return Err("this replica leads".into());
            }
            Some(_) | None => {}
        }
        if self.stateless || self.fetching.is_some() {
            return Err("they are being replaced already".into());
        }
        if LogIndex(source.applied_index) < self.raft.log_base() || !source.is_supported() {
            return Err("the other replica is behind, or of a newer version".into());
        }
        Ok(())
    }

    /// A peer says whether it waits for its rows.
    pub(super) fn note_rows(&mut self, peer: PeerId, waits: bool) {
        if waits && self.configuration.is_member(peer) {
            self.rowless.insert(peer);
        } else {
            self.rowless.remove(&peer);
        }
    }
}

/// What a survey says.
pub enum Found {
    /// Rows are damaged here, and this is the state of a replica that can read every row of its own; no other replica is without
    /// its rows.
    Whole(GroupState),
    /// The replica cannot be mended where it is, and its group can do without it.
    Replaceable(String),
    /// Why nothing can be done now.
    Nothing(String),
}

/// Nothing of what is read is kept.
async fn survey(turn: &Turn, own: &LsmKv, cancelled: Arc<AtomicBool>) -> Found {
    if let Err(error) = group::load(&KvView::over(own), turn.group) {
        // It does not even know what it owns.
        return match turn.take_for_good().await {
            Ok(()) => Found::Replaceable(error.to_string()),
            Err(why) => Found::Nothing(format!("{error}; {why}")),
        };
    }
    let here = Source { env: turn.env.clone(), group: turn.group, from: turn.node, cancelled: cancelled.clone() };
    match install::is_damaged(&here, own).await {
        Ok(true) => {}
        // What is stored as it was written and makes no sense is the same everywhere.
        Ok(false) => return Found::Nothing("every row can be read here".into()),
        Err(why) => return Found::Nothing(why),
    }
    let mut nobody = match turn.take().await {
        Ok(()) => String::new(),
        Err(why) => return Found::Nothing(why),
    };
    for node in &turn.others {
        match turn.read_through(*node, &cancelled).await {
            Ok(state) => return Found::Whole(state),
            Err(why) => nobody = format!("node {node}: {why}"),
        }
    }
    Found::Nothing(nobody)
}
