//! When the thread polls: at arrivals of jobs, at set times, and again after an error.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Waker};
use std::time::{Duration, Instant};

use super::transactional::TransactionalQueue;
use super::{Dispatcher, POLL_AFTER_FEW};
use crate::incidents::Call;
use crate::stop::StopMode;
use crate::wait::Polled;
use crate::worker::error_backoff::ErrorBackoff;
use crate::worker::settings::RunUntil;
use crate::worker::threads::{is_fatal, maintain_if_needed};
use crate::{Store, StoreError, WakeSignal};

/// The arrivals that the thread has answered, and the times of its next polls.
pub(super) struct Polls {
    /// Notified when jobs arrive in a queue with asynchronous handlers.
    pub(super) arrivals: Arc<WakeSignal>,
    /// The arrivals that the last poll has answered, and those that attempts have.
    polled: Option<u64>,
    attempted: Option<u64>,
    /// The time of the next poll if nothing arrives before.
    next_at: Instant,
    /// After an error nothing is polled before this time.
    retry_at: Instant,
    backoff: ErrorBackoff,
}

/// What a poll has found.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// Jobs, or an error. Either way the thread looks again what to do.
    Something,
    /// No queue has a ready job.
    Nothing,
    /// It was not time to poll.
    NotPolled,
}

impl Polls {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            arrivals: WakeSignal::new(),
            polled: None,
            attempted: None,
            next_at: now,
            retry_at: now,
            backoff: ErrorBackoff::default(),
        }
    }

    /// Polls again only after a pause.
    fn pause(&mut self) {
        self.retry_at = Instant::now() + self.backoff.next_pause();
        self.next_at = self.retry_at;
    }

    /// Has the next arrival call `waker`. Returns whether jobs have arrived since the last poll.
    pub(super) fn have_arrivals(&self, waker: &Waker) -> bool {
        self.polled.is_some_and(|seen| {
            pin!(self.arrivals.passed(seen)).poll(&mut TaskContext::from_waker(waker)).is_ready()
        })
    }

    pub(super) fn may_poll(&self, now: Instant) -> bool {
        now >= self.retry_at
    }
}

impl<S: Store> Dispatcher<'_, S> {
    /// Starts attempts, and takes up to `want` jobs if a poll is due. `has_ended` says that a handler or a late take
    /// has ended, which may leave room for jobs of a limited queue.
    pub(super) fn poll_if_due(
        &mut self,
        polls: &mut Polls,
        want: usize,
        has_ended: bool,
    ) -> Result<Found, S::Error> {
        let now = Instant::now();
        // Read once: attempts and the poll must answer the same arrivals.
        let arrived = Some(polls.arrivals.generation());
        if polls.attempted != arrived {
            polls.attempted = arrived;
            self.look_again_everywhere();
        }
        if !polls.may_poll(now) {
            return Ok(Found::NotPolled);
        }
        self.start_attempts();
        let has_room_again = has_ended && self.is_limited;
        let needs_lease = self.transactional.iter().flatten().any(|queue| queue.needs_lease);
        let is_due = polls.polled != arrived || now >= polls.next_at || has_room_again || needs_lease;
        if want == 0 || !is_due {
            return Ok(Found::NotPolled);
        }
        polls.polled = arrived;
        let polled = match self.poll(want) {
            Ok(polled) => polled,
            Err(error) => {
                self.record_error(error, polls)?;
                return Ok(Found::Something);
            }
        };
        let (found, pause) = match polled {
            Polled::Nothing { next_due } => {
                let interval = self.run.store().poll_interval();
                (Found::Nothing, next_due.map_or(interval, |due| due.min(interval)))
            }
            // Another job notifies, so the handlers of these go first.
            Polled::Found(count) if count < want => (Found::Something, POLL_AFTER_FEW),
            Polled::Found(_) => (Found::Something, Duration::ZERO),
        };
        polls.next_at = Instant::now() + pause;
        if self.has_asked {
            polls.backoff.reset();
            self.run.record_poll();
        }
        Ok(found)
    }

    /// Ends the worker if it cannot reach what it needs. Otherwise polls again only after a pause.
    pub(super) fn record_error(&mut self, error: S::Error, polls: &mut Polls) -> Result<(), S::Error> {
        if is_fatal(self.run, &error) {
            self.run.stop.request(StopMode::Abort);
            return Err(error);
        }
        self.run.incidents.failed(Call::Poll, &error);
        if !error.is_unavailable() {
            // A smaller take needs less of the store.
            self.max_take = (self.max_take / 8).max(1);
        }
        polls.pause();
        Ok(())
    }

    /// Returns whether a run that ends when its queues are empty has ended: the thread holds no job, and the last poll
    /// found none (`is_empty`). If it has not, the next poll is due.
    pub(super) fn is_done_with_empty_queues(
        &mut self,
        polls: &mut Polls,
        is_empty: bool,
    ) -> Result<bool, S::Error> {
        let run = self.run;
        // The last poll may have been while handlers ran, which may have put more jobs.
        let is_empty = is_empty && self.transactional.iter().flatten().all(TransactionalQueue::is_empty);
        let may_have_expired = is_empty && run.until == RunUntil::Empty;
        match if may_have_expired { maintain_if_needed(run) } else { Ok(!is_empty) } {
            Ok(false) => return Ok(true),
            Ok(true) => {
                polls.next_at = Instant::now();
                if may_have_expired {
                    self.look_again_everywhere();
                }
            }
            Err(error) if is_fatal(run, &error) => return Err(error),
            Err(error) => {
                run.incidents.failed(Call::Poll, &error);
                polls.pause();
            }
        }
        Ok(false)
    }

    /// Returns how long to sleep if nothing happens. `polls_for_jobs` says that jobs are wanted.
    pub(super) fn pause(&self, polls: &Polls, polls_for_jobs: bool) -> Duration {
        let now = Instant::now();
        let next = polls_for_jobs.then_some(polls.next_at).into_iter().chain(self.next_attempt()).min();
        let until_poll =
            next.map_or(Duration::MAX, |next| next.max(polls.retry_at).saturating_duration_since(now));
        if self.leases.is_empty() { until_poll } else { until_poll.min(super::CHECK_EVERY) }
    }
}
