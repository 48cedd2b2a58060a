//! The jobs that a thread with asynchronous handlers has in hand: those that run, and those that wait to begin.

use std::collections::HashMap;

use crate::worker::prepared_job::PreparedJob;
use crate::{Claim, Store};

/// The payload bytes of the jobs in hand from which on no more are taken.
const MAX_BYTES: usize = 32 << 20;

/// Counts jobs, for the limits of queues, of tasks and of memory.
#[derive(Debug)]
pub(super) struct InHand {
    by_queue: Vec<usize>,
    /// How many handlers run of each task that has a limit, and of each whole queue that has one.
    running: HashMap<(usize, Option<String>), usize>,
    bytes: usize,
}

impl InHand {
    pub(super) fn new(queues: usize) -> Self {
        Self { by_queue: vec![0; queues], running: HashMap::new(), bytes: 0 }
    }

    /// Records a job of the queue at this position that was taken.
    pub(super) fn add(&mut self, position: usize, job: &Claim) {
        self.by_queue[position] += 1;
        self.bytes += job.size();
    }

    /// Records a job that has ended, or that is given back.
    pub(super) fn remove(&mut self, position: usize, job: &Claim) {
        self.by_queue[position] -= 1;
        self.bytes -= job.size();
    }

    /// Returns how many more jobs of the queue may be taken, if `limit` are allowed.
    pub(super) fn room(&self, position: usize, limit: usize) -> usize {
        limit.saturating_sub(self.by_queue[position])
    }

    /// Returns whether the jobs in hand take so much memory that no more are taken.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= MAX_BYTES
    }

    /// Returns whether the limit of the job's task lets its handler begin.
    pub(super) fn may_begin<S: Store>(&self, position: usize, job: &PreparedJob<'_, S>) -> bool {
        let limit = job.concurrency();
        limit == usize::MAX || self.running.get(&(position, job.task.clone())).is_none_or(|now| *now < limit)
    }

    pub(super) fn begin<S: Store>(&mut self, position: usize, job: &PreparedJob<'_, S>) {
        if job.concurrency() < usize::MAX {
            *self.running.entry((position, job.task.clone())).or_default() += 1;
        }
    }

    pub(super) fn end<S: Store>(&mut self, position: usize, job: &PreparedJob<'_, S>) {
        if job.concurrency() < usize::MAX
            && let Some(running) = self.running.get_mut(&(position, job.task.clone()))
        {
            *running -= 1;
        }
    }
}
