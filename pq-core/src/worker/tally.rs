//! What became of the jobs of a batch, for the report and for the counters.

use std::time::{Duration, Instant};

use super::prepared_job::PreparedJob;
use super::status::Report;
use super::store_clock::StoreClock;
use crate::{Counters, Failure, Outcome, Store};

/// An attempt that has ended.
#[derive(Clone, Debug)]
pub(super) struct EndedAttempt {
    /// The task under which it is counted; empty if there is none, or if this worker does not know it.
    task: String,
    /// `None` if the job has no handler.
    times: Option<Times>,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    is_first: bool,
    wait: Duration,
    run: Duration,
    late: Option<Duration>,
}

impl<S: Store> PreparedJob<'_, S> {
    /// Describes the attempt, which began and ended at these times, to the counters.
    pub(super) fn ended_attempt(&self, clock: &StoreClock, began: Instant, ended: Instant) -> EndedAttempt {
        let job = &self.incoming.claim;
        // Only names of handlers are counted, since a payload may contain any name.
        let is_known = !matches!(self.handler, Err(Failure::UnknownTask(_)));
        let task = self.task.clone().filter(|_| is_known).unwrap_or_default();
        let times = self.handler.is_ok().then(|| Times {
            is_first: job.attempt - job.crashes == 1,
            wait: clock.since(job.schedule_at.map_or(job.enqueued_at, |at| at.max(job.enqueued_at)), began),
            run: ended.saturating_duration_since(began),
            late: job.expected_at.map(|at| clock.since(at, began)),
        });
        EndedAttempt { task, times }
    }
}

/// Counts what became of the jobs of one queue.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) report: Report,
    by_task: Vec<(String, Counters)>,
    /// The position of the task that was counted last. The jobs of a batch are mostly of one task.
    last: usize,
}

impl Tally {
    /// Counts an outcome that the store has accepted. Without `attempt` the job was not begun.
    pub(super) fn record(&mut self, outcome: &Outcome, attempt: Option<&EndedAttempt>) {
        self.report.record(outcome);
        if let Some(attempt) = attempt {
            count(self.counters_of(&attempt.task), outcome, attempt.times);
        }
    }

    /// Returns the counters by task.
    pub(super) fn into_counters(self) -> Vec<(String, Counters)> {
        self.by_task
    }

    fn counters_of(&mut self, task: &str) -> &mut Counters {
        if self.by_task.get(self.last).is_none_or(|(name, _)| name != task) {
            self.last = self.by_task.iter().position(|(name, _)| name == task).unwrap_or_else(|| {
                self.by_task.push((task.to_owned(), Counters::default()));
                self.by_task.len() - 1
            });
        }
        &mut self.by_task[self.last].1
    }
}

fn count(counters: &mut Counters, outcome: &Outcome, times: Option<Times>) {
    let counts_attempt = match outcome {
        Outcome::Complete | Outcome::Keep { .. } => {
            counters.done += 1;
            true
        }
        Outcome::Retry { .. } => {
            counters.failed += 1;
            counters.retried += 1;
            true
        }
        Outcome::Dead { .. } => {
            counters.failed += 1;
            counters.dead += 1;
            true
        }
        Outcome::Cancel { .. } => {
            counters.cancelled += 1;
            true
        }
        Outcome::Snooze { .. } => false,
        Outcome::GiveBack => return,
        Outcome::RolledBack(outcome) => return count(counters, outcome, times),
    };
    if let Some(times) = times {
        counters.tried += u64::from(times.is_first && counts_attempt);
        counters.wait.record(times.wait);
        counters.run.record(times.run);
        times.late.iter().for_each(|late| counters.late.record(*late));
    }
}
