//! The settings of a worker.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::{Error, Retention};

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

/// The number of jobs that the threads of a run may still begin.
#[derive(Debug)]
pub(super) struct JobLimit(Option<AtomicI64>);

impl JobLimit {
    pub(super) fn new(until: RunUntil) -> Self {
        Self(match until {
            RunUntil::Jobs(jobs) => Some(AtomicI64::new(i64::try_from(jobs).unwrap_or(i64::MAX))),
            RunUntil::Stopped | RunUntil::Empty => None,
        })
    }

    /// Reserves up to `wanted` of the jobs, and returns how many.
    pub(super) fn reserve(&self, wanted: usize) -> usize {
        let Some(left) = &self.0 else { return wanted };
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let before = left.fetch_sub(wanted, Ordering::SeqCst);
        let reserved = before.clamp(0, wanted);
        left.fetch_add(wanted - reserved, Ordering::SeqCst);
        usize::try_from(reserved).unwrap_or_default()
    }

    /// Returns reserved jobs that were not begun.
    pub(super) fn release(&self, jobs: usize) {
        if let Some(left) = &self.0 {
            left.fetch_add(i64::try_from(jobs).unwrap_or_default(), Ordering::SeqCst);
        }
    }
}
