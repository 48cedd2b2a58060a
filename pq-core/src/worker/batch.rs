//! The result of one take of jobs.

use std::time::Duration;

use crate::Claim;

/// A batch of jobs that was taken, or the reason to wait if there was none.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) taken: usize,
    pub(super) bytes: usize,
    pub(super) has_keys: bool,
    /// Jobs of the batch whose handlers did not begin.
    pub(super) unbegun: usize,
    /// When the next scheduled job is due, if there was no job to take.
    pub(super) next_due: Option<Duration>,
}

impl Batch {
    pub(super) fn empty(next_due: Option<Duration>) -> Self {
        Self { taken: 0, bytes: 0, has_keys: false, unbegun: 0, next_due }
    }

    pub(super) fn of(jobs: &[Claim]) -> Self {
        Self {
            taken: jobs.len(),
            bytes: jobs.iter().map(|job| job.size()).sum(),
            has_keys: jobs.iter().any(|job| job.serialization_key.is_some()),
            unbegun: 0,
            next_due: None,
        }
    }
}
