//! The settings of a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{Error, Executor, Retention};

const MIN_LEASE: Duration = Duration::from_millis(10);

/// The settings of a worker, with the defaults that its builder documents.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) threads: usize,
    pub(super) min_batch: usize,
    pub(super) max_batch: usize,
    pub(super) lease: Duration,
    pub(super) maintain_every: Duration,
    pub(super) retention: Retention,
    /// `None` if the worker does not register itself.
    pub(super) heartbeat_every: Option<Duration>,
    pub(super) supervisor: Option<u32>,
    pub(super) leave_unknown_tasks_for: Duration,
    /// `None` if a stopped worker waits for its handlers without limit.
    pub(super) stop_within: Option<Duration>,
    /// Whether the end of a stop leaves the jobs of running handlers to their leases, as the end of the process does.
    pub(super) dies_at_deadline: bool,
    /// How many asynchronous handlers run at the same time.
    pub(super) concurrency: usize,
    pub(super) executor: Option<Arc<dyn Executor>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threads: 1,
            min_batch: 1,
            max_batch: 4_096,
            lease: Duration::from_secs(30),
            maintain_every: Duration::from_secs(1),
            retention: Retention::default(),
            heartbeat_every: Some(Duration::from_secs(2)),
            supervisor: None,
            leave_unknown_tasks_for: Duration::from_secs(24 * 3_600),
            stop_within: None,
            dies_at_deadline: false,
            concurrency: 100,
            executor: None,
        }
    }
}

impl Settings {
    pub(super) fn check(&self) -> Result<(), Error> {
        let Self { threads, min_batch, max_batch, lease, .. } = *self;
        let wrong = if threads == 0 {
            "invalid number of threads 0: a worker needs at least one thread".to_owned()
        } else if min_batch == 0 || max_batch < min_batch {
            format!("invalid batch size {min_batch}..={max_batch}: min must be at least 1 and not exceed max")
        } else if lease < MIN_LEASE {
            format!("invalid lease {lease:?}: it must be at least {MIN_LEASE:?}")
        } else if self.concurrency == 0 {
            "invalid concurrency 0: a worker must run at least one asynchronous handler".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::InvalidSetting(wrong))
    }
}

/// The condition under which a run ends without a request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunUntil {
    Stopped,
    Empty,
    Jobs(u64),
}

/// The number of jobs that the threads of a run begin in all.
#[derive(Debug)]
pub(super) struct JobLimit(Option<Limit>);

#[derive(Debug)]
struct Limit {
    jobs: u64,
    /// Jobs that no thread has reserved.
    left: AtomicU64,
    begun: AtomicU64,
}

impl JobLimit {
    pub(super) fn new(until: RunUntil) -> Self {
        Self(match until {
            RunUntil::Jobs(jobs) => Some(Limit { jobs, left: jobs.into(), begun: 0.into() }),
            RunUntil::Stopped | RunUntil::Empty => None,
        })
    }

    /// Reserves up to `wanted` of the jobs, and returns how many.
    ///
    /// None may be left although the limit is not reached, because another thread has reserved more than it will find.
    pub(super) fn reserve(&self, wanted: usize) -> usize {
        let Some(limit) = &self.0 else { return wanted };
        let take = |left: u64| Some(left.saturating_sub(wanted as u64));
        let before = limit.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        let before = before.unwrap_or_else(|left| left);
        usize::try_from(before).unwrap_or(usize::MAX).min(wanted)
    }

    /// Returns reserved jobs that were not begun.
    pub(super) fn release(&self, jobs: usize) {
        if let Some(limit) = &self.0 {
            limit.left.fetch_add(jobs as u64, Ordering::SeqCst);
        }
    }

    /// Records that reserved jobs were begun. Returns `true` if they were the last ones.
    pub(super) fn record_begun(&self, jobs: usize) -> bool {
        self.0.as_ref().is_some_and(|limit| {
            let before = limit.begun.fetch_add(jobs as u64, Ordering::SeqCst);
            before < limit.jobs && before + jobs as u64 >= limit.jobs
        })
    }

    /// Returns whether no more jobs may be begun.
    pub(super) fn is_reached(&self) -> bool {
        self.0.as_ref().is_some_and(|limit| limit.begun.load(Ordering::SeqCst) >= limit.jobs)
    }
}
