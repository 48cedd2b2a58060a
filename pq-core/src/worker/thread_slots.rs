//! What each thread of a worker has in hand, where the maintenance thread and the status can see it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::error_backoff::ErrorBackoff;
use super::statistics::ThreadStatistics;
use super::status::Running;
use super::tally::EndedAttempt;
use crate::handler::JobNotes;
use crate::lock::lock;
use crate::{Claim, Outcome};

/// A handler that is running.
#[derive(Clone)]
pub(super) struct RunningHandler {
    pub(super) job: Arc<Claim>,
    pub(super) task: Option<String>,
    pub(super) lease: Option<i64>,
    pub(super) timeout: Option<Duration>,
    pub(super) since: Instant,
}

/// A leased job whose handler has ended, and that is not settled.
pub(super) struct FinishedJob {
    pub(super) job: Arc<Claim>,
    pub(super) outcome: Outcome,
    pub(super) at: Instant,
    /// `None` if the job was not begun.
    pub(super) attempt: Option<EndedAttempt>,
    /// The outcome with which the handler settled the job in a transaction of its own.
    ///
    /// That transaction may have been rolled back, so `outcome` is passed to the store all the same. If the store
    /// refuses it, this one has been committed.
    pub(super) settled_as: Option<Box<Outcome>>,
    /// What the attempt has noted, if some of it is not stored yet.
    pub(super) notes: Option<Arc<JobNotes>>,
}

/// The retries of outcomes that the store refused for a reason that may pass.
#[derive(Debug, Default)]
pub(super) struct SettleRetries {
    pub(super) backoff: ErrorBackoff,
    /// The earliest time of the next try; `None` if nothing was refused.
    pub(super) next_at: Option<Instant>,
    /// Whether the connection was lost, so that an earlier try may have been committed.
    pub(super) may_be_settled: bool,
}

/// One thread's jobs and statistics. Every lock is the slot's own, so threads do not contend.
#[derive(Default)]
pub(super) struct ThreadSlot {
    running: Mutex<Option<RunningHandler>>,
    /// The asynchronous handlers that the thread has started, at their numbers.
    concurrent: Mutex<Vec<Option<RunningHandler>>>,
    /// Leased jobs that are not begun.
    pub(super) buffer: Mutex<VecDeque<Arc<Claim>>>,
    /// Leased jobs that are not settled. The maintenance thread settles those that wait too long.
    pub(super) finished: Mutex<Vec<FinishedJob>>,
    /// Locked while jobs of `finished` are passed to the store. Those that it refuses for now are put back first.
    pub(super) settling: Mutex<SettleRetries>,
    /// Jobs of the thread's transaction that are not begun.
    in_transaction: AtomicU64,
    pub(super) statistics: ThreadStatistics,
}

impl ThreadSlot {
    pub(super) fn begin(&self, handler: RunningHandler) {
        *lock(&self.running) = Some(handler);
    }

    pub(super) fn end(&self) {
        *lock(&self.running) = None;
    }

    pub(super) fn begin_concurrent(&self, number: usize, handler: RunningHandler) {
        let mut concurrent = lock(&self.concurrent);
        if concurrent.len() <= number {
            concurrent.resize(number + 1, None);
        }
        concurrent[number] = Some(handler);
    }

    pub(super) fn end_concurrent(&self, number: usize) {
        if let Some(ended) = lock(&self.concurrent).get_mut(number) {
            *ended = None;
        }
    }

    /// Returns the blocking handler that the thread runs.
    pub(super) fn running(&self) -> Option<RunningHandler> {
        lock(&self.running).clone()
    }

    /// Returns all handlers that the thread runs or has started.
    pub(super) fn all_running(&self) -> Vec<RunningHandler> {
        self.running().into_iter().chain(lock(&self.concurrent).iter().flatten().cloned()).collect()
    }

    pub(super) fn set_buffered_in_transaction(&self, jobs: usize) {
        self.in_transaction.store(jobs as u64, Ordering::Relaxed);
    }

    /// Returns how many jobs the thread has taken and not begun.
    pub(super) fn buffered(&self) -> u64 {
        lock(&self.buffer).len() as u64 + self.in_transaction.load(Ordering::Relaxed)
    }
}

/// The slots of a worker's threads. There are none before the worker runs.
#[derive(Default)]
pub(super) struct ThreadSlots(OnceLock<Box<[ThreadSlot]>>);

impl ThreadSlots {
    pub(super) fn create(&self, threads: usize) {
        self.0.get_or_init(|| (0..threads).map(|_| ThreadSlot::default()).collect());
    }

    pub(super) fn all(&self) -> &[ThreadSlot] {
        self.0.get().map_or(&[], |slots| slots)
    }

    /// Returns the jobs whose handlers are running, in the order of their ids.
    pub(super) fn running(&self) -> Vec<Running> {
        let describe = |handler: RunningHandler| Running {
            id: handler.job.id,
            queue: handler.job.queue.to_string(),
            task: handler.task,
            attempt: handler.job.attempt,
            age: handler.since.elapsed(),
        };
        let mut running: Vec<Running> =
            self.all().iter().flat_map(ThreadSlot::all_running).map(describe).collect();
        running.sort_by_key(|running| running.id);
        running
    }
}
