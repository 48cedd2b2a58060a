//! What can be said at the call of a task.

use std::time::Duration;

use crate::{Backoff, IntoWhen, OnConflict, PutOptions};

/// What can be said at the call of a task. What is not said is as the task has it.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct CallOptions {
    pub(super) put: PutOptions,
    pub(super) max_retries: Option<u32>,
    pub(super) backoff: Option<Backoff>,
    pub(super) timeout: Option<Duration>,
    pub(super) lease: Option<Duration>,
}

impl CallOptions {
    /// Everything as the task has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`PutOptions::schedule_at`].
    pub fn schedule_at(mut self, when: impl IntoWhen) -> Self {
        self.put = self.put.schedule_at(when);
        self
    }

    /// As [`PutOptions::expected_at`].
    pub fn expected_at(mut self, when: impl IntoWhen) -> Self {
        self.put = self.put.expected_at(when);
        self
    }

    /// As [`PutOptions::priority`].
    pub fn priority(mut self, priority: i32) -> Self {
        self.put = self.put.priority(priority);
        self
    }

    /// As [`PutOptions::serialization_key`].
    pub fn serialization_key(mut self, key: impl Into<String>) -> Self {
        self.put = self.put.serialization_key(key);
        self
    }

    /// As [`PutOptions::unique`].
    pub fn unique(self, key: impl Into<String>) -> Self {
        self.unique_or(key, OnConflict::Keep)
    }

    /// As [`PutOptions::unique_or`].
    pub fn unique_or(mut self, key: impl Into<String>, on_conflict: OnConflict) -> Self {
        self.put = self.put.unique_or(key, on_conflict);
        self
    }

    /// How often this job is tried again.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = Some(retries);
        self
    }

    /// How long this job waits after each failure.
    pub fn retry_in(self, delay: Duration) -> Self {
        self.backoff(Backoff::fixed(delay))
    }

    /// How long this job waits after its failures. One that is a function of your own cannot travel with
    /// a call, and is refused.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = Some(backoff);
        self
    }

    /// How long its handler may run.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long its lease is, while it runs under one.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// These, and for what they do not say the others.
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
