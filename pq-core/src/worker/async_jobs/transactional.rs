//! The queues whose asynchronous handlers run in the transactions that take their jobs.
//!
//! The thread starts an attempt for each job that may be ready. An attempt has a connection of its own on the
//! executor, and runs at most one job. While attempts find jobs more are started, up to the limits.

use std::time::Instant;

use super::attempt::Attempt;
use super::events::AttemptEnd;
use super::{Dispatcher, Flight, RESERVED_PAUSE};
use crate::worker::queue_set::ServedQueue;
use crate::worker::threads::ends_when_empty;
use crate::{Scan, Store};

/// The state of one such queue.
#[derive(Debug)]
pub(super) struct TransactionalQueue {
    position: usize,
    /// The maximum number of attempts at the same time.
    limit: usize,
    /// The attempts that have not found a job yet.
    looking: usize,
    /// The attempts that run a job.
    running: usize,
    /// Whether a job may be ready.
    may_have_jobs: bool,
    /// How often the queue was to be looked at again. An attempt that began before the last time may have missed a job.
    looks: u64,
    /// When a job may be ready again, if none is now.
    poll_at: Instant,
    /// Whether the next job must be taken under a lease.
    pub(super) needs_lease: bool,
}

impl TransactionalQueue {
    pub(super) fn all_of<S: Store>(queues: &[ServedQueue<S>], now: Instant) -> Vec<Option<Self>> {
        let state = |(position, served): (usize, &ServedQueue<S>)| {
            let limit = served.attempts()?.min(served.concurrency);
            Some(Self {
                position,
                limit,
                looking: 0,
                running: 0,
                may_have_jobs: true,
                looks: 0,
                poll_at: now,
                needs_lease: false,
            })
        };
        queues.iter().enumerate().map(state).collect()
    }

    /// Returns whether an attempt may be started beside this many leased jobs of the queue.
    ///
    /// As many may look for a job as run one, so that their number doubles while jobs are found, and few of them find
    /// nothing.
    fn may_start(&self, leased: usize) -> bool {
        !self.needs_lease && leased + self.attempts() < self.limit && self.looking <= self.running
    }

    /// Returns the number of its attempts.
    pub(super) fn attempts(&self) -> usize {
        self.looking + self.running
    }

    /// Returns how many leased jobs may be in hand beside its attempts.
    pub(super) fn leased_limit(&self) -> usize {
        self.limit.saturating_sub(self.attempts())
    }

    /// Returns whether the queue was empty at the last look, and no attempt has ended since.
    pub(super) fn is_empty(&self) -> bool {
        !self.may_have_jobs && !self.needs_lease
    }

    /// Has the queue looked at again.
    pub(super) fn look_again(&mut self) {
        self.may_have_jobs = true;
        self.looks += 1;
    }
}

impl<S: Store> Dispatcher<'_, S> {
    /// Starts attempts, as far as the limits allow.
    pub(super) fn start_attempts(&mut self) {
        while self.may_start_attempts()
            && let Some(position) = self.next_to_attempt()
        {
            if self.run.job_limit.reserve(1) == 0 {
                if let Some(queue) = &mut self.transactional[position] {
                    (queue.may_have_jobs, queue.poll_at) = (false, Instant::now() + RESERVED_PAUSE);
                }
                continue;
            }
            self.start_attempt(position);
        }
    }

    fn may_start_attempts(&self) -> bool {
        !self.is_held_back
            && !self.in_hand.is_full()
            && self.flights.len() < self.run.settings.concurrency
            && !self.run.stop.is_finishing()
    }

    fn next_to_attempt(&self) -> Option<usize> {
        let now = Instant::now();
        let wants = |position: &usize| {
            self.transactional[*position].as_ref().is_some_and(|queue| {
                queue.may_start(self.in_hand.of_queue(*position))
                    && (queue.may_have_jobs || queue.poll_at <= now)
            })
        };
        self.run.queues.order().into_iter().find(wants)
    }

    fn start_attempt(&mut self, position: usize) {
        let run = self.run;
        let served = &run.queues.all[position];
        let Some(queue) = &mut self.transactional[position] else { return };
        queue.looking += 1;
        let scan = if ends_when_empty(run) { Scan::Full } else { Scan::Resume };
        let number = self.flights.insert(Flight::Attempt { position, looks: queue.looks, has_job: false });
        let attempt = Attempt::new(run, &self.events, (self.thread, position, number), scan);
        if let Some(in_transaction) = served.in_transaction() {
            self.executor.spawn((in_transaction.attempt)(attempt));
        }
    }

    /// Records that an attempt has found a job, so that there may be more.
    pub(super) fn record_found(&mut self, number: usize) {
        if let Some(Flight::Attempt { position, has_job, .. }) = self.flights.get_mut(number)
            && let Some(queue) = &mut self.transactional[*position]
        {
            *has_job = true;
            queue.looking -= 1;
            queue.running += 1;
            queue.may_have_jobs = true;
            self.run.queues.record_turn(*position, &[]);
            self.run.record_poll();
        }
    }

    /// Records that an attempt has ended. Returns its error, if it has one.
    pub(super) fn record_attempt(
        &mut self,
        number: usize,
        end: AttemptEnd<S::Error>,
    ) -> Result<(), S::Error> {
        let Some(Flight::Attempt { position, looks, has_job }) = self.flights.remove(number) else {
            return Ok(());
        };
        let Some(queue) = &mut self.transactional[position] else { return Ok(()) };
        if has_job {
            queue.running -= 1;
        } else {
            queue.looking -= 1;
        }
        match end {
            AttemptEnd::Empty { next_due } => {
                let (interval, served) = (self.run.store().poll_interval(), &self.run.queues.all[position]);
                queue.poll_at =
                    Instant::now() + served.poll_due(next_due).map_or(interval, |due| due.min(interval));
                // It may have looked before the job was put that it was to be looked for.
                queue.may_have_jobs &= queue.looks != looks;
                self.run.record_poll();
            }
            AttemptEnd::NeedsLease => queue.needs_lease = true,
            AttemptEnd::Ran => self.look_again_after(position),
            // The executor ends, or it was the handler's future that was dropped.
            AttemptEnd::Dropped => {
                (queue.may_have_jobs, queue.poll_at) = (false, Instant::now() + RESERVED_PAUSE)
            }
            AttemptEnd::Failed(error) => {
                queue.may_have_jobs = true;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Has a queue looked at again, and all queues if the run ends when they are empty: a handler may have put jobs.
    pub(super) fn look_again_after(&mut self, position: usize) {
        if ends_when_empty(self.run) {
            self.look_again_everywhere();
        } else if let Some(queue) = &mut self.transactional[position] {
            queue.look_again();
        }
    }

    pub(super) fn look_again_everywhere(&mut self) {
        self.transactional.iter_mut().flatten().for_each(TransactionalQueue::look_again);
    }

    /// Returns when the next attempt must be started, if nothing happens. `None` if something must happen before.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        if !self.may_start_attempts() {
            return None;
        }
        let may_start = |queue: &&TransactionalQueue| queue.may_start(self.in_hand.of_queue(queue.position));
        self.transactional.iter().flatten().filter(may_start).map(|queue| queue.poll_at).min()
    }
}
