//! The result of one take of jobs.

use std::borrow::Borrow;
use std::time::Duration;

use crate::Claim;

/// A batch of jobs that was taken, or the reason to wait if there was none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    pub(super) taken: usize,
    pub(super) bytes: usize,
    pub(super) has_keys: bool,
    /// The smallest limit of its jobs, if leases that they were in before were lost.
    pub(super) lease_limit: Option<usize>,
    /// Jobs of the batch whose handlers did not begin.
    pub(super) unbegun: usize,
    /// When the next scheduled job is due, if there was no job to take.
    pub(super) next_due: Option<Duration>,
}

impl Batch {
    pub(super) fn empty(next_due: Option<Duration>) -> Self {
        Self { taken: 0, bytes: 0, has_keys: false, lease_limit: None, unbegun: 0, next_due }
    }

    pub(super) fn of(jobs: &[impl Borrow<Claim>]) -> Self {
        let jobs = || jobs.iter().map(Borrow::borrow);
        Self {
            taken: jobs().count(),
            bytes: jobs().map(|job| job.size()).sum(),
            has_keys: jobs().any(|job| job.serialization_key.is_some()),
            lease_limit: jobs().filter_map(|job| job.lease_limit).min().map(|limit| limit as usize),
            unbegun: 0,
            next_due: None,
        }
    }
}
