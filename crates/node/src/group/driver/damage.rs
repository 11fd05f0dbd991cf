//! A replica whose rows cannot be read: who leads instead of it, and when its state is replaced by another's.

use base::ids::{LogIndex, PeerId};
use meta::group::{self, GroupState, Install};
use protocol::raft::Role;
use std::sync::atomic::Ordering;
use std::time::Duration;
use store::kv::{Kv, LsmKv};

use super::Driver;
use super::members::is_up;
use crate::group::turn::Turn;
use crate::group::{Request, install};
use crate::machine::KvView;

/// From one look whether others have what is damaged here to the next.
const SURVEY_PAUSE: Duration = Duration::from_secs(30);

impl Driver {
    /// Rows here cannot be read. Another replica leads, if one can; when one is known to have every row, this one gives up
    /// its own, keeps vote and log, and is opened anew to wait for a snapshot. Answers whether others are to be asked.
    pub(super) fn hurt(&mut self, why: String) -> bool {
        if self.failed().is_some() {
            return true;
        }
        if group::load(&KvView::over(&*self.kv), self.id).is_err() {
            return self.give_up(why);
        }
        self.survey(why);
        self.hand_over()
    }

    /// Not even the group's own row can be read: the replica stops for good when a majority of voters is at work without
    /// it; as long as that is not so, or voters change, another one leads if it can.
    fn give_up(&mut self, why: String) -> bool {
        if self.is_spare() {
            self.fail(why);
            return true;
        }
        self.hand_over()
    }

    /// Whether a majority of voters is at work without this replica.
    pub(super) fn is_spare(&self) -> bool {
        !self.raft.pending_configuration() && self.others_at_work() > self.configuration.voters.len() / 2
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

    /// Has the own rows read, and all of another replica: who gives up its own must know that they are damaged, and that
    /// they are elsewhere; and no other replica is without its own, or about to be.
    pub(super) fn survey(&mut self, why: String) {
        let other = self.leader_node().filter(|node| *node != self.node);
        let other = other.or_else(|| self.node_of(self.heir()?));
        let Some(mailbox) = self.mailbox.upgrade().filter(|_| self.fetching.is_none() && !self.stateless) else {
            return;
        };
        let Some(other) = other.filter(|_| self.env.now() >= self.survey_due) else { return };
        if self.shared.mending.swap(true, Ordering::AcqRel) {
            return;
        }
        let (source, kv, turn) = (self.source(other, self.given_up.clone()), self.kv.clone(), self.turn());
        self.env.spawn("survey a replica", async move {
            let found = survey(&source, &kv, &turn).await.map_err(|error| format!("{why}; node {other}: {error}"));
            let _ = mailbox.send(Request::Surveyed { why, found }).await;
        });
    }

    /// Another replica has every row, or that is not known.
    pub(super) fn surveyed(&mut self, why: String, found: Result<GroupState, String>) {
        let marked = found.and_then(|source| self.may_do_without(&why, &source)).and_then(|()| {
            let old = group::load(&KvView::over(&*self.kv), self.id).map_err(|error| error.to_string())?;
            let mark = crate::machine::change_out(group::mark(self.id, &old, Install::Incomplete));
            self.kv.commit(vec![mark]).map_err(|error| error.to_string())
        });
        match marked {
            // Whether the mark is flushed does not matter: without it, a restart finds the old rows and the log.
            Ok(()) => {
                self.shared.reopen.store(true, Ordering::Release);
                if self.failed().is_none() {
                    self.fail(format!("its state is replaced by another replica's: {why}"));
                }
            }
            Err(error) => {
                tracing::warn!(group = self.id.0, "damaged rows are kept: {error}");
                self.survey_due = self.env.now() + SURVEY_PAUSE;
            }
        }
        // Others are told from here on that it has no rows, or that it goes on with those that it has.
        self.shared.claims.store(false, Ordering::Release);
        self.shared.mending.store(false, Ordering::Release);
    }

    pub(super) fn turn(&self) -> Turn {
        let voters = self.configuration.voters.iter().filter(|peer| **peer != self.peer);
        Turn {
            env: self.env.clone(),
            group: self.id,
            node: self.node,
            others: voters.filter_map(|peer| self.node_of(*peer)).collect(),
            map: self.map.clone(),
            claims: self.shared.claims.clone(),
        }
    }

    /// Whether this replica may give up its rows for those of `source`. A leader may not: until another one leads, its rows are
    /// the newest. With what the source has applied and the own log nothing is missing that was committed.
    fn may_do_without(&mut self, why: &str, source: &GroupState) -> Result<(), String> {
        match self.failed() {
            Some(other) if other != why => return Err(format!("the replica has stopped: {other}")),
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

    /// How many other voters serve, as far as is known here.
    fn others_at_work(&self) -> usize {
        let map = self.map.borrow().clone();
        let progress = self.raft.progress();
        let serves = |peer: &&PeerId| {
            let answers = progress.iter().find(|it| it.peer == **peer).is_none_or(|it| it.active);
            let is_up = self.node_of(**peer).is_some_and(|node| is_up(&map, node));
            **peer != self.peer && answers && is_up && !self.gone.contains(*peer) && !self.rowless.contains(*peer)
        };
        self.configuration.voters.iter().filter(serves).count()
    }
}

/// Succeeds when rows are damaged here, the other node's replica has its whole state and can read every row of it, and no
/// other replica is without its own: answers what that one's row said. Nothing is kept.
async fn survey(source: &install::Source, own: &LsmKv, turn: &Turn) -> Result<GroupState, String> {
    if !install::is_damaged(source, own).await? {
        // What is stored as it was written and makes no sense is the same everywhere.
        return Err("every row can be read here".into());
    }
    turn.take().await?;
    install::read_through(source).await
}
