//! The options of a call of a task.

use std::time::Duration;

use serde::Serialize;

use crate::{Backoff, IntoWhen, JobId, OnConflict, PutOptions};

/// The options of a call of a task. An option that is not set is as the task has it.
///
/// The retries, the backoff, the timeout and the lease that are not set are those of the task of the worker that runs
/// the job, so that a new version of a program can change them for jobs that wait already. All others are those of the
/// task that is called.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct CallOptions {
    pub(super) put: PutOptions,
    pub(super) max_retries: Option<u32>,
    pub(super) backoff: Option<Backoff>,
    pub(super) timeout: Option<Duration>,
    pub(super) lease: Option<Duration>,
}

/// Takes over the options of a put.
impl From<PutOptions> for CallOptions {
    fn from(put: PutOptions) -> Self {
        Self { put, ..Self::default() }
    }
}

impl CallOptions {
    /// Creates options without any value set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets when the job is due. See [`PutOptions::schedule_at`].
    pub fn schedule_at(mut self, when: impl IntoWhen) -> Self {
        self.put = self.put.schedule_at(when);
        self
    }

    /// Sets when the job should be done. See [`PutOptions::expected_at`].
    pub fn expected_at(mut self, when: impl IntoWhen) -> Self {
        self.put = self.put.expected_at(when);
        self
    }

    /// Sets the priority. See [`PutOptions::priority`].
    pub fn priority(mut self, priority: i32) -> Self {
        self.put = self.put.priority(priority);
        self
    }

    /// Adds jobs that must be done before this one is due. See [`PutOptions::after`].
    pub fn after(mut self, jobs: impl IntoIterator<Item = JobId>) -> Self {
        self.put = self.put.after(jobs);
        self
    }

    /// Adds jobs that must have ended before this one is due. See [`PutOptions::after_any_outcome`].
    pub fn after_any_outcome(mut self, jobs: impl IntoIterator<Item = JobId>) -> Self {
        self.put = self.put.after_any_outcome(jobs);
        self
    }

    /// Adds the job to the batch that this job waits for. See [`PutOptions::in_batch`].
    pub fn in_batch(mut self, follow_up: JobId) -> Self {
        self.put = self.put.in_batch(follow_up);
        self
    }

    pub(crate) fn open(mut self) -> Self {
        self.put = self.put.open();
        self
    }

    /// Sets the serialization key. See [`PutOptions::serialization_key`].
    pub fn serialization_key(mut self, key: impl Into<String>) -> Self {
        self.put = self.put.serialization_key(key);
        self
    }

    /// Sets a unique key. See [`PutOptions::unique`].
    pub fn unique(self, key: impl Into<String>) -> Self {
        self.unique_or(key, OnConflict::Keep)
    }

    /// Sets a unique key, and what happens if it is taken. See [`PutOptions::unique_or`].
    pub fn unique_or(mut self, key: impl Into<String>, on_conflict: OnConflict) -> Self {
        self.put = self.put.unique_or(key, on_conflict);
        self
    }

    /// Lets the job keep its serialization key while it waits for a retry. See [`PutOptions::strict_order`].
    pub fn strict_order(mut self) -> Self {
        self.put = self.put.strict_order();
        self
    }

    /// Sets the group. See [`PutOptions::group`].
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.put = self.put.group(group);
        self
    }

    /// Sets the cost. See [`PutOptions::cost`].
    pub fn cost(mut self, tokens: u32) -> Self {
        self.put = self.put.cost(tokens);
        self
    }

    /// Sets the tags. See [`PutOptions::tags`].
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.put = self.put.tags(tags);
        self
    }

    /// Sets the metadata. See [`PutOptions::metadata`].
    pub fn metadata(mut self, metadata: impl Serialize) -> Self {
        self.put = self.put.metadata(metadata);
        self
    }

    /// Keeps the job when it is done, and notifies callers that wait. See [`PutOptions::awaited`].
    pub fn awaited(mut self) -> Self {
        self.put = self.put.awaited();
        self
    }

    /// Sets the maximum number of retries.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = Some(retries);
        self
    }

    /// Sets the same delay before every retry.
    pub fn retry_in(self, delay: Duration) -> Self {
        self.backoff(Backoff::fixed(delay))
    }

    /// Sets the delay before a retry.
    ///
    /// A [`Backoff::custom`] cannot be stored with a job, so the call returns [`crate::Error::InvalidSetting`]. Set it
    /// at the task or the handler.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = Some(backoff);
        self
    }

    /// Sets how long the handler may run.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the length of the lease while the job is run by a leased handler.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Returns these options, with those of `others` for the ones that are not set.
    pub(super) fn or(&self, others: &Self) -> Self {
        Self {
            put: self.put.or(&others.put),
            max_retries: self.max_retries.or(others.max_retries),
            backoff: self.backoff.clone().or_else(|| others.backoff.clone()),
            timeout: self.timeout.or(others.timeout),
            lease: self.lease.or(others.lease),
        }
    }
}
