//! The terms of one request: what its sender asks for beyond what the bucket says.

use meta::map::command::{ConfigurationKind, MapCommand, MapOutcome, NextFence};
use meta::object::fence::{Fence, FencePolicy};

use crate::buckets::{BucketInfo, Configuration};
use crate::call::Client;
use crate::error::Error;

/// What writes and reads through a [`BucketInfo`] are done under.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Of writes: the token of the lock that the sender holds.
    pub fence: Option<Fence>,
}

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
    /// From when this returns on, the bucket takes writes only with a fence token, or also without.
    pub async fn require_fence(&self, bucket: &str, required: bool) -> Result<(), Error> {
        let bucket = self.bucket(bucket).await?;
        let value = required.then(|| Configuration::encode(&FencePolicy { required }));
        self.set_configuration(&bucket, ConfigurationKind::Fence, value, None).await
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
