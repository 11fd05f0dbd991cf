//! The terms of one request: what its sender asks for beyond what the bucket says.

use base::ids::BucketId;
use bytes::Bytes;
use meta::map::command::{Acknowledgement, ConfigurationKind, MapCommand, MapOutcome, NextFence};
use meta::object::command::{ResetFence, ShardCommand};
use meta::object::fence::{Fence, FencePolicy};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buckets::{BucketInfo, Configuration};
use crate::call::Client;
use crate::error::Error;
use crate::map::MapView;

/// What writes and reads through a [`BucketInfo`] are done under.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Of writes: the token of the lock that the sender holds.
    pub fence: Option<Fence>,
    /// Of writes: what the answer waits for. Absent: what the bucket says.
    pub acknowledgement: Option<Acknowledgement>,
    pub reads: Reads,
}

/// Which replica of the metadata a read may ask. Bytes are read from any copy that verifies in either case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// The leader, confirmed by a quorum: everything that was acknowledged before is seen.
    #[default]
    Strong,
    /// Any, as of whatever it has applied; how stale that was is noted here.
    Eventual(Arc<Staleness>),
}

/// How stale what was read may be, at most. Holds one more than the milliseconds; 0: no replica has answered.
#[derive(Debug, Default)]
pub struct Staleness(AtomicU64);

impl Staleness {
    const UNKNOWN: u64 = u64::MAX;

    pub(crate) fn note(&self, staleness_ms: Option<u64>) {
        let held = staleness_ms.map_or(Staleness::UNKNOWN, |staleness_ms| staleness_ms.saturating_add(1));
        self.0.fetch_max(held, Ordering::Relaxed);
    }

    /// Whether a replica has answered at all.
    pub fn is_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// The greatest of all reads, in milliseconds; `None`: a replica did not know, or none has answered.
    pub fn get_ms(&self) -> Option<u64> {
        match self.0.load(Ordering::Relaxed) {
            0 | Staleness::UNKNOWN => None,
            held => Some(held - 1),
        }
    }
}

impl PartialEq for Staleness {
    fn eq(&self, other: &Staleness) -> bool {
        (self.is_noted(), self.get_ms()) == (other.is_noted(), other.get_ms())
    }
}

impl Eq for Staleness {}

impl BucketInfo {
    /// Whether what changes objects needs a fence token, as of the map that the bucket was looked up in. What cannot be
    /// read is of a newer version, and asks for more rather than less.
    pub fn requires_fence(&self) -> bool {
        let kept = self.configuration(ConfigurationKind::Fence);
        kept.is_some_and(|kept| kept.decode::<FencePolicy>().is_none_or(|policy| policy.required))
    }

    /// The same bucket; what is done through it is done under these terms.
    #[must_use]
    pub fn under(mut self, terms: Terms) -> BucketInfo {
        self.terms = terms;
        self
    }
}

impl Client {
    /// What a write through `bucket` waits for.
    pub(crate) fn acknowledgement(&self, map: &MapView, bucket: &BucketInfo) -> Acknowledgement {
        bucket.terms.acknowledgement.unwrap_or_else(|| map.acknowledgement(BucketId(bucket.id)))
    }

    /// From when this returns on, the bucket takes writes only with a fence token, or also without.
    pub async fn require_fence(&self, bucket: &str, required: bool) -> Result<(), Error> {
        let bucket = self.bucket(bucket).await?;
        let value = required.then(|| Configuration::encode(&FencePolicy { required }));
        self.set_configuration(&bucket, ConfigurationKind::Fence, value, None).await
    }

    /// Sets the floor of a fence in a bucket to `token`, or forgets it; one that is not there stays so. What was refused
    /// before may be done from then on.
    pub async fn reset_fence(&self, bucket: &str, key: Bytes, token: Option<u64>) -> Result<(), Error> {
        let bucket = self.bucket(bucket).await?.id;
        for (group, epoch) in self.groups_of(BucketId(bucket)) {
            let reset = ShardCommand::ResetFence(ResetFence { bucket, key: key.clone(), token });
            self.change_shard(group, epoch, reset, Acknowledgement::All).await?;
        }
        Ok(())
    }

    /// A fence token, higher than all that were handed out before, for whatever key.
    pub async fn next_fence(&self) -> Result<u64, Error> {
        let reply = self.change_map(MapCommand::NextFence(NextFence {})).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(reply.id),
            MapOutcome::SessionClosed => Err(Error::OutcomeUnknown(reply.detail)),
            _ => Err(Error::Invalid(reply.detail)),
        }
    }
}
