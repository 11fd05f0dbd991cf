//! A state that comes from another replica: fetched beside the rounds, then taken for the own one.

use base::ids::NodeId;
use base::plant::{self, Plant};
use protocol::raft::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

use super::{Driver, Fetching};
use crate::group::Request;
use crate::group::install::{self, Installed};
use crate::transport::{self, PeerGone};

/// Before a state is fetched again whose place is held by damage; and after any other failure.
const DAMAGED_PAUSE: Duration = Duration::from_secs(10);
const FAILED_PAUSE: Duration = Duration::from_millis(300);

impl Driver {
    /// Begins to fetch the state that a snapshot message announces. `false`: Raft itself says what is to be done.
    pub(super) fn fetch_snapshot(&mut self, from: NodeId, message: &Message) -> bool {
        if self.fetching.is_some() {
            return true;
        }
        let Some((index, _, configuration)) = message.snapshot() else { return false };
        let has_lost_log = self.configuration.is_empty() && configuration.is_voter(self.peer);
        if has_lost_log && !plant::is(Plant::VoteAfterLoss) {
            // A new member votes only after it acknowledged a snapshot: this one did, and has lost it since.
            let gone = PeerGone { group: self.id.0, peer: self.peer.0 };
            transport::send_gone(&self.env, from, self.generation(), gone);
            return true;
        }
        if !self.raft.would_restore(message) {
            return false;
        }
        if self.env.now() < self.fetch_due {
            return true;
        }
        let cancelled = Arc::<AtomicBool>::default();
        let source = self.source(from, cancelled.clone());
        let fetch = install::Fetch { source, kv: self.kv.clone(), message: message.clone(), at_least: index };
        let (mailbox, turn) = (self.mailbox.clone(), self.turn());
        let (end, ended) = oneshot::channel();
        self.fetching = Some(Fetching { cancelled, ended });
        self.env.spawn("install snapshot", async move {
            let mut result = install::fetch(fetch).await.map(Box::new);
            if let Err(failed) = &mut result
                && failed.damaged
            {
                failed.spare = turn.take_for_good().await.is_ok();
            }
            // Before the mailbox, whose reader may be waiting for this end.
            let _ = end.send(());
            if let Some(mailbox) = mailbox.upgrade() {
                let _ = mailbox.send(Request::Installed(result)).await;
            }
        });
        true
    }

    pub(super) fn installed(&mut self, result: Result<Box<Installed>, install::Failed>) {
        self.fetching = None;
        let installed = match result {
            Ok(installed) => installed,
            // The rows cannot be replaced where they are: the replica is made anew, together with what the damage hides else.
            Err(failed) if failed.damaged && failed.spare => {
                self.held.clear();
                self.shared.claims.store(false, Ordering::Release);
                return self.fail(format!("its state cannot be replaced: {}", failed.why));
            }
            Err(failed) if failed.state_is_gone && !self.stateless => {
                // Raft here still counts on a state: the replica is opened anew, as after a crash.
                self.held.clear();
                self.shared.reopen.store(true, Ordering::Release);
                return self.fail(format!("its state was being replaced, and that was cut off: {}", failed.why));
            }
            Err(failed) => {
                tracing::warn!(
                    group = self.id.0,
                    "a snapshot was not installed and is asked for again: {}",
                    failed.why
                );
                self.fetch_due = self.env.now() + if failed.damaged { DAMAGED_PAUSE } else { FAILED_PAUSE };
                return self.apply_held();
            }
        };
        let Installed { index, term, configuration, message } = *installed;
        tracing::info!(group = self.id.0, index = index.0, "a snapshot was installed");
        self.stateless = false;
        if let Err(error) = self.machine.reload(&configuration) {
            return self.fail(error.to_string());
        }
        self.applied = index;
        self.shared.applied.store(index.0, Ordering::Release);
        self.configuration = configuration.clone();
        if let Err(why) = self.raft.step(message.with_snapshot(index, term, &configuration)) {
            tracing::warn!(group = self.id.0, "{why}");
        }
        self.apply_held();
    }

    pub(super) fn apply_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.apply(held);
        }
    }
}
