//! What follows a failed attempt: a retry, or the archive.

use std::time::Duration;

use super::incoming::Incoming;
use super::isolation::Isolation;
use crate::envelope::Envelope;
use crate::{Backoff, Claim, Failure, Outcome, Payload, Queue, Store};

/// The retries, the timeout and the history of jobs. What a call says takes precedence.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) max_retries: u32,
    pub(crate) max_crashes: u32,
    pub(crate) backoff: Backoff,
    pub(crate) timeout: Option<Duration>,
    /// Whether completed jobs are archived.
    pub(crate) keep_history: bool,
    /// How many handlers that send statements may share a transaction, see [`Policy::max_senders`].
    pub(crate) max_sharing: usize,
    pub(crate) isolation: Isolation,
    /// How many jobs an asynchronous handler runs at the same time.
    pub(crate) concurrency: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_retries: 0,
            max_crashes: 3,
            backoff: Backoff::default(),
            timeout: None,
            keep_history: false,
            max_sharing: 1,
            isolation: Isolation::default(),
            concurrency: usize::MAX,
        }
    }
}

impl Policy {
    /// Returns how many handlers that send statements may share a transaction at the default isolation level, including
    /// this one. Returns 0 if this one needs another level.
    pub(crate) fn max_senders(&self) -> usize {
        match self.isolation {
            Isolation::ReadCommitted => self.max_sharing.max(1),
            Isolation::RepeatableRead | Isolation::Serializable => 0,
        }
    }

    pub(crate) fn timeout(&self, envelope: Option<&Envelope>) -> Option<Duration> {
        envelope.and_then(|envelope| envelope.duration("timeout")).or(self.timeout)
    }

    /// Returns the failure of a job whose worker died in as many attempts as allowed.
    pub(crate) fn crashed(&self, job: &Claim) -> Option<Failure> {
        let times = u32::try_from(job.crashes).unwrap_or_default();
        (times >= self.max_crashes.max(1)).then_some(Failure::Crashed { times })
    }

    /// Returns how many retries the job may have, and how many of its attempts failed before this one. A crash is not a
    /// failure.
    ///
    /// In Python each retry is a job of its own, whose envelope has the count.
    pub(crate) fn retries(&self, job: &Claim, envelope: Option<&Envelope>) -> (u32, u32) {
        let allowed = envelope.and_then(Envelope::max_retries).unwrap_or(self.max_retries);
        let earlier = u32::try_from(job.attempt.saturating_sub(job.crashes)).unwrap_or_default();
        let before = envelope.map_or(0, |envelope| envelope.retried_before(job.id));
        (allowed, earlier.saturating_sub(1).saturating_add(before))
    }

    /// Returns the outcome of a failed attempt: [`Outcome::Retry`] if retries are left, and [`Outcome::Dead`]
    /// otherwise.
    ///
    /// `retry` is the delay and the payload that a handler returned in [`Outcome::Retry`]. Without it the delay is that
    /// of the call or of this policy. Without a payload the call's envelope is rewritten to count the failure.
    pub(crate) fn after_failure<S: Store>(
        &self,
        queue: &Queue<S, ()>,
        job: &Incoming,
        failure: &Failure,
        retry: Option<(Duration, Option<Payload>)>,
    ) -> Outcome {
        let Incoming { claim, envelope } = job;
        let error = failure.to_string();
        let (allowed, tried) = self.retries(claim, envelope.as_ref());
        let is_final = matches!(failure, Failure::Undecodable(_) | Failure::Crashed { .. });
        if is_final || tried >= allowed {
            return Outcome::Dead { error };
        }
        let failures = tried.saturating_add(1);
        let (after, payload) = retry.unwrap_or_else(|| {
            let of_call = envelope.as_ref().and_then(Envelope::backoff);
            (of_call.as_ref().unwrap_or(&self.backoff).delay(failures, claim.id), None)
        });
        let count_failure = |mut envelope: Envelope| {
            envelope.count_failures(claim.id, failures).ok()?;
            queue.encode_json(envelope.to_json().ok()?).ok()
        };
        Outcome::Retry { after, error, payload: payload.or_else(|| envelope.clone().and_then(count_failure)) }
    }
}
