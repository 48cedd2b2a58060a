//! Polling the queues, and taking jobs under leases.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::calls::Made;
use super::events::Event;
use super::{Dispatcher, OwnLease, RESERVED_PAUSE, WaitingJob};
use crate::wait::Polled;
use crate::worker::batch::Batch;
use crate::worker::leased_batch::take_under_lease;
use crate::worker::threads::ends_when_empty;
use crate::worker::worker_run::WorkerRun;
use crate::{Outcome, Scan, Settlement, Store, Taken};

/// The maximum number of late takes of one queue. The second is made on another connection.
const MAX_LATE_TAKES: usize = 2;

impl<S: Store> Dispatcher<'_, S> {
    /// Takes jobs of the first queue that has any, and returns their number. A take that is late ends the poll, with
    /// none.
    pub(super) fn poll(&mut self, want: usize) -> Result<Polled<usize>, S::Error> {
        let run = self.run;
        let scan = if ends_when_empty(run) { Scan::Full } else { Scan::Resume };
        let (mut next_due, mut empty) = (None, Vec::new());
        (self.is_limited, self.has_asked) = (false, false);
        for position in run.queues.order() {
            if !run.queues.all[position].is_asynchronous() {
                continue;
            }
            // What a queue's limit does not let begin is left to other workers.
            let (limit, want) = match &self.transactional[position] {
                None => (run.queues.all[position].concurrency, want),
                // Of such a queue only a job is leased that an attempt has found and left.
                Some(queue) if queue.needs_lease => (queue.leased_limit(), 1),
                Some(_) => continue,
            };
            let is_late = self.late_takes[position] >= MAX_LATE_TAKES;
            let room = if is_late { 0 } else { self.in_hand.room(position, limit, run.settings.concurrency) };
            self.is_limited |= room == 0;
            let reserved = run.job_limit.reserve(want.min(room));
            if reserved == 0 {
                let is_reserved = room > 0 && !run.job_limit.is_reached();
                next_due = next_due.into_iter().chain(is_reserved.then_some(RESERVED_PAUSE)).min();
                continue;
            }
            let Some(taken) = self.take(position, reserved, scan) else { return Ok(Polled::Found(0)) };
            let (count, due) = self.record_take(position, reserved, taken)?;
            self.has_asked = true;
            if count > 0 {
                run.queues.record_turn(position, &empty);
                return Ok(Polled::Found(count));
            }
            empty.push(position);
            next_due = next_due.into_iter().chain(due).min();
        }
        Ok(Polled::Nothing { next_due })
    }

    /// Takes jobs of a queue. Returns `None` if the call is late.
    fn take(&mut self, position: usize, want: usize, scan: Scan) -> Option<Result<Taken, S::Error>> {
        let (run, events) = (Arc::clone(self.run), Arc::clone(&self.events));
        let late_run = Arc::clone(&run);
        let late = move |taken| {
            let refused = events.push(position, Event::Taken { reserved: want, taken });
            refused.into_iter().for_each(|event| give_back_unbegun(&late_run, event));
        };
        let taken = self.calls.make(move || take_under_lease(&run, position, want, scan), late);
        if taken.is_none() {
            self.late_takes[position] += 1;
            self.in_hand.reserve(position, want);
        }
        taken
    }

    /// Records the answer to a take for which jobs were reserved. Returns how many it has, and when the next one is
    /// due.
    fn record_take(
        &mut self,
        position: usize,
        reserved: usize,
        taken: Result<Taken, S::Error>,
    ) -> Result<(usize, Option<Duration>), S::Error> {
        let count = taken.as_ref().map_or(0, |taken| taken.jobs.len());
        self.run.job_limit.release(reserved - count);
        let taken = taken?;
        if let Some(queue) = &mut self.transactional[position] {
            // The jobs of a limited queue are never taken by an attempt.
            queue.needs_lease = taken.jobs.iter().any(|job| job.limited);
            queue.look_again();
        }
        let next_due = self.run.queues.all[position].poll_due(taken.next_due);
        self.add(position, taken);
        Ok((count, next_due))
    }

    /// Records the answer to a take that was late.
    pub(super) fn record_late_take(
        &mut self,
        position: usize,
        reserved: usize,
        taken: Made<Result<Taken, S::Error>>,
    ) -> Result<(), S::Error> {
        self.calls.answered();
        self.late_takes[position] -= 1;
        self.in_hand.release(position, reserved);
        let taken = taken.unwrap_or_else(|panic| resume_unwind(panic));
        let (count, _) = self.record_take(position, reserved, taken)?;
        if count > 0 {
            self.run.queues.record_turn(position, &[]);
        }
        self.run.record_poll();
        Ok(())
    }

    /// Adds the jobs of a take, if there are any, to those that wait.
    fn add(&mut self, position: usize, mut taken: Taken) {
        let Some(lease) = taken.jobs.first().and_then(|job| job.lease()) else { return };
        self.leases.insert(lease, OwnLease { unsettled: taken.jobs.len(), ..OwnLease::default() });
        let limit = Batch::of(&taken.jobs).lease_limit.unwrap_or(usize::MAX);
        self.max_take = limit.min(self.max_take.saturating_mul(2)).clamp(1, self.run.settings.max_batch);
        if limit < taken.jobs.len() {
            // A job that kills its worker must not take more than this many others with it.
            // They are settled before one begins.
            taken.jobs.split_off(limit).into_iter().for_each(|job| self.give_back(job));
            self.settle(true);
            if self.leases.get(&lease).is_some_and(|own| own.unsettled > limit) {
                std::mem::take(&mut taken.jobs).into_iter().for_each(|job| self.give_back(job));
            }
        }
        let served = &self.run.queues.all[position];
        taken.jobs.iter().for_each(|job| self.in_hand.add(position, job));
        let since = Instant::now();
        let waits = |job| WaitingJob { position, prepared: served.prepare(job), since };
        self.waiting.extend(taken.jobs.into_iter().map(waits));
    }
}

/// Gives back the jobs of a take that was so late that its thread has ended. Without that they would wait until their
/// lease expires.
pub(super) fn give_back_unbegun<S: Store>(run: &WorkerRun<S>, event: Event<S::Error>) {
    let Event::Taken { taken: Ok(Ok(taken)), .. } = event else { return };
    let Some(lease) = taken.jobs.first().and_then(|job| job.lease()) else { return };
    let outcome = |job| Settlement { job, outcome: Outcome::GiveBack };
    let settlements: Vec<Settlement<'_>> = taken.jobs.iter().map(|job| outcome(job)).collect();
    let store = run.store();
    if let Err(error) = store.with_connection(|conn| store.settle(conn, &settlements)) {
        tracing::warn!(lease, %error, "jobs were not given back; their lease will expire");
    }
    run.leases.remove(lease);
}
