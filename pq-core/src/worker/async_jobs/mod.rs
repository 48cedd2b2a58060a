//! The thread that serves queues with asynchronous handlers.
//!
//! It takes jobs under leases, starts their handlers on the [`Executor`], and settles the jobs of a lease together when
//! their handlers have ended. It does not wait for handlers: while they run it takes more, as long as fewer than
//! [`crate::Worker::concurrency`] run. Jobs that are taken and cannot begin yet wait in the thread.

mod flights;
mod in_hand;
mod pace;
mod running;
mod start;

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Wake, Waker};
use std::time::{Duration, Instant};

use self::flights::Flights;
use self::in_hand::{InHand, MayBegin};
use self::pace::Pace;
use self::running::Ended;
use super::batch::Batch;
use super::error_backoff::ErrorBackoff;
use super::prepared_job::PreparedJob;
use super::settings::RunUntil;
use super::settling::{SETTLE_WITHIN, settle_finished};
use super::thread_slots::{FinishedJob, ThreadSlot};
use super::threads::{ends_when_empty, is_fatal, requeue_expired};
use super::worker_run::WorkerRun;
use crate::handler::{Context, Executor};
use crate::lock::lock;
use crate::stop::StopMode;
use crate::wait::Polled;
use crate::{Claim, Error, Outcome, Scan, Store, StoreError, Taken, WakeSignal};

/// The interval at which running handlers are told through their tokens that they should end, and at which jobs of leases
/// that still have running handlers are settled.
const TELL_EVERY: Duration = Duration::from_millis(25);

/// The time after which the queues are polled again when they had fewer jobs than were wanted.
const POLL_AFTER_FEW: Duration = Duration::from_millis(10);

/// Jobs that were taken and cannot begin within this time are given back, so that other workers can take them.
const WAIT_AT_MOST: Duration = Duration::from_secs(1);

/// The same for jobs that wait for others of their task, or until so few handlers run that they may begin.
const WAIT_FOR_OTHERS: Duration = Duration::from_secs(10);

/// The time after which the thread looks again whether there are jobs to begin, if others have reserved the last ones.
const RESERVED_PAUSE: Duration = Duration::from_millis(10);

/// A job that is taken and not begun.
struct WaitingJob<'r, S: Store> {
    position: usize,
    prepared: PreparedJob<'r, S>,
    since: Instant,
}

/// A job whose handler runs.
struct Flight<'r, S: Store> {
    position: usize,
    prepared: PreparedJob<'r, S>,
    context: Arc<Context<S>>,
}

/// A lease of this thread.
#[derive(Default)]
struct OwnLease {
    /// The number of jobs that are not settled.
    unsettled: usize,
    finished: Vec<FinishedJob>,
    confirmed_at: Option<Instant>,
}

/// The state of the thread.
struct Dispatcher<'r, S: Store> {
    run: &'r WorkerRun<S>,
    slot: &'r ThreadSlot,
    executor: Arc<dyn Executor>,
    ended: Arc<Ended>,
    flights: Flights<Flight<'r, S>>,
    in_hand: InHand,
    /// Whether the last poll left out a queue because of its limit.
    is_limited: bool,
    /// Whether nothing may begin until handlers have ended, because a job may kill the worker.
    is_held_back: bool,
    /// The largest number of jobs to take at a time. Smaller after a take that the store refused, and after a lost lease.
    max_take: usize,
    /// Jobs that are taken and not begun.
    waiting: VecDeque<WaitingJob<'r, S>>,
    leases: HashMap<i64, OwnLease>,
    pace: Pace,
    told_at: Instant,
}

/// Forwards a wake-up to a signal.
struct Forward(Arc<WakeSignal>);

impl Wake for Forward {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// Serves the queues with asynchronous handlers until the worker is stopped, and their handlers have ended.
pub(super) fn run_dispatcher<S: Store>(run: &WorkerRun<S>, thread: usize) -> Result<(), S::Error> {
    let executor = run.settings.executor.clone();
    let executor =
        executor.ok_or_else(|| Error::InvalidSetting("a worker without an executor".to_owned()))?;
    let (signal, now) = (WakeSignal::new(), Instant::now());
    Dispatcher {
        run,
        slot: &run.slots()[thread],
        executor,
        ended: Ended::new(&signal),
        flights: Flights::default(),
        in_hand: InHand::new(run.queues.all.len(), run.settings.concurrency),
        is_limited: false,
        is_held_back: false,
        max_take: run.settings.max_batch,
        waiting: VecDeque::new(),
        leases: HashMap::new(),
        pace: Pace::new(now),
        told_at: now,
    }
    .run_until_stopped(&signal)
}

impl<'r, S: Store> Dispatcher<'r, S> {
    fn run_until_stopped(&mut self, signal: &Arc<WakeSignal>) -> Result<(), S::Error> {
        let run = self.run;
        let arrivals = WakeSignal::new();
        let _subscriptions: Vec<_> = run
            .queues
            .all
            .iter()
            .filter(|served| served.is_asynchronous())
            .map(|served| run.store().subscribe(served.queue.name(), &arrivals))
            .collect();
        let _registration = run.stop.waits().notifies(signal);
        let waker = Waker::from(Arc::new(Forward(Arc::clone(signal))));
        let (mut backoff, mut poll_at, mut seen_arrivals) = (ErrorBackoff::default(), Instant::now(), None);
        // After an error nothing is polled before this time.
        let mut retry_at = poll_at;
        loop {
            let seen = signal.generation();
            let has_ended = self.record_ended();
            if run.is_abandoned() {
                return Ok(());
            }
            let is_finishing = run.stop.is_finishing();
            if is_finishing {
                mem::take(&mut self.waiting).into_iter().for_each(|job| self.give_back_waiting(job));
            }
            self.start_waiting();
            self.settle(is_finishing);
            let want = if is_finishing { 0 } else { self.want() };
            let mut is_empty = false;
            let now = Instant::now();
            let has_room_again = has_ended && self.is_limited;
            let is_due = seen_arrivals != Some(arrivals.generation()) || now >= poll_at || has_room_again;
            if want > 0 && is_due && now >= retry_at {
                seen_arrivals = Some(arrivals.generation());
                match self.poll(want) {
                    Ok(Polled::Nothing { next_due }) => {
                        let interval = run.store().poll_interval();
                        poll_at = Instant::now() + next_due.map_or(interval, |due| due.min(interval));
                        is_empty = true;
                    }
                    // Another job notifies, so the handlers of these go first.
                    Ok(Polled::Found(count)) if count < want => poll_at = Instant::now() + POLL_AFTER_FEW,
                    Ok(Polled::Found(_)) => poll_at = Instant::now(),
                    Err(error) => {
                        if is_fatal(run, &error) {
                            run.stop.request(StopMode::Abort);
                            return Err(error);
                        }
                        tracing::warn!(%error, "polling failed; the worker will retry");
                        if !error.is_unavailable() {
                            // A smaller take needs less of the store.
                            self.max_take = (self.max_take / 8).max(1);
                        }
                        retry_at = Instant::now() + backoff.next_pause();
                        poll_at = retry_at;
                        continue;
                    }
                }
                backoff.reset();
                run.reached.store(true, Ordering::Relaxed);
                if !is_empty {
                    continue;
                }
            }
            if self.flights.is_empty() && self.waiting.is_empty() {
                self.settle(true);
                if is_finishing || run.job_limit.is_reached() {
                    return Ok(());
                }
                if ends_when_empty(run) {
                    // The last poll may have been while handlers ran, which may have put more jobs.
                    let expired = is_empty && run.until == RunUntil::Empty;
                    match if expired { requeue_expired(run) } else { Ok(!is_empty) } {
                        Ok(false) => return Ok(()),
                        Ok(true) => poll_at = now,
                        Err(error) if is_fatal(run, &error) => return Err(error),
                        Err(error) => {
                            tracing::warn!(%error, "looking for expired leases failed; the worker will retry");
                            retry_at = Instant::now() + backoff.next_pause();
                            poll_at = retry_at;
                        }
                    }
                    if now >= retry_at {
                        continue;
                    }
                }
            }
            // Has an arrival notify the signal. One that came since the poll ends the wait at once.
            let arrived = seen_arrivals.is_some_and(|seen| {
                pin!(arrivals.passed(seen)).poll(&mut TaskContext::from_waker(&waker)).is_ready()
            });
            if !(arrived && want > 0) || now < retry_at {
                signal.wait_past(seen, self.pause(poll_at.max(retry_at), want > 0));
            }
        }
    }

    /// Returns how long to sleep if nothing happens.
    fn pause(&self, poll_at: Instant, polls: bool) -> Duration {
        let now = Instant::now();
        let until_poll = if polls { poll_at.saturating_duration_since(now) } else { Duration::MAX };
        if self.leases.is_empty() { until_poll } else { until_poll.min(TELL_EVERY) }
    }

    /// Returns how many jobs to take now.
    fn want(&mut self) -> usize {
        let ahead = self.pace.of_period(Instant::now());
        let most = self.run.settings.concurrency.saturating_add(ahead);
        let in_hand = self.flights.len() + self.waiting.len() - self.in_hand.blocked();
        let room = most.saturating_sub(in_hand);
        // While handlers are quick, room for a few jobs is not worth a take of its own.
        let is_too_little = room < (ahead / 2).max(1);
        if is_too_little || self.is_held_back || self.in_hand.is_full() { 0 } else { room.min(self.max_take) }
    }

    /// Takes jobs of the first queue that has any, and returns their number.
    fn poll(&mut self, want: usize) -> Result<Polled<usize>, S::Error> {
        let run = self.run;
        let scan = if ends_when_empty(run) { Scan::Full } else { Scan::Resume };
        let (mut next_due, mut empty) = (None, Vec::new());
        self.is_limited = false;
        for position in run.queues.order() {
            if !run.queues.all[position].is_asynchronous() {
                continue;
            }
            // What a queue's limit does not let begin is left to other workers.
            let limit = run.queues.all[position].concurrency;
            let room = self.in_hand.room(position, limit, run.settings.concurrency);
            self.is_limited |= room == 0;
            let reserved = run.job_limit.reserve(want.min(room));
            if reserved == 0 {
                let is_reserved = room > 0 && !run.job_limit.is_reached();
                next_due = next_due.into_iter().chain(is_reserved.then_some(RESERVED_PAUSE)).min();
                continue;
            }
            let taken = self.take(position, reserved, scan);
            let count = taken.as_ref().map_or(0, |taken| taken.jobs.len());
            run.job_limit.release(reserved - count);
            let taken = taken?;
            if count > 0 {
                run.queues.record_turn(position, &empty);
                self.add(position, taken);
                return Ok(Polled::Found(count));
            }
            empty.push(position);
            next_due = next_due.into_iter().chain(taken.next_due).min();
        }
        Ok(Polled::Nothing { next_due })
    }

    fn take(&self, position: usize, want: usize, scan: Scan) -> Result<Taken, S::Error> {
        let run = self.run;
        let (store, queue, length) = (run.store(), run.queues.all[position].queue.name(), run.settings.lease);
        let _span = tracing::debug_span!("pq.take", %queue, want).entered();
        let (asked_at, taken) = store.with_connection(|conn| {
            let asked_at = Instant::now();
            Ok::<_, S::Error>((asked_at, store.lease(conn, queue, want, length, scan)?))
        })?;
        if let Some(lease) = taken.jobs.first().and_then(|job| job.lease()) {
            run.leases.insert(lease, length, asked_at);
            run.lease_added();
        }
        Ok(taken)
    }

    /// Adds the jobs of a take to those that wait.
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
        }
        let served = &self.run.queues.all[position];
        taken.jobs.iter().for_each(|job| self.in_hand.add(position, job));
        let since = Instant::now();
        let waits = |job| WaitingJob { position, prepared: served.prepare(job), since };
        self.waiting.extend(taken.jobs.into_iter().map(waits));
    }

    /// Starts the jobs that wait, in order, as far as the limits allow. Gives back those that have waited for long.
    fn start_waiting(&mut self) {
        let mut passed_over = VecDeque::new();
        self.is_held_back = false;
        while self.flights.len() < self.run.settings.concurrency
            && let Some(job) = self.waiting.pop_front()
        {
            match self.in_hand.may_begin(job.position, &job.prepared) {
                MayBegin::Now => self.start(job.position, job.prepared),
                MayBegin::AfterItsTask => passed_over.push_back(job),
                MayBegin::AfterAll => {
                    self.waiting.push_front(job);
                    self.is_held_back = true;
                    break;
                }
            }
        }
        self.in_hand.set_blocked(passed_over.iter().map(|job| job.position));
        passed_over.append(&mut self.waiting);
        self.waiting = passed_over;
        let blocked = self.in_hand.blocked();
        let mut position = 0;
        while let Some(job) = self.waiting.get(position) {
            let waits_for_others =
                position < blocked || self.in_hand.cap(&job.prepared.incoming.claim).is_some();
            let longest = if waits_for_others { WAIT_FOR_OTHERS } else { WAIT_AT_MOST };
            if job.since.elapsed() <= longest {
                if position >= blocked {
                    break;
                }
                position = blocked;
                continue;
            }
            self.waiting.remove(position).into_iter().for_each(|job| self.give_back_waiting(job));
        }
        self.slot.set_buffered_in_transaction(self.waiting.len());
    }

    /// Records the handlers that have ended, and tells others that they should. Returns whether any has.
    fn record_ended(&mut self) -> bool {
        let (run, now, ended) = (self.run, Instant::now(), self.ended.take());
        let has_ended = !ended.is_empty();
        self.pace.record(ended.len(), now);
        for (number, result) in ended {
            let Some(Flight { position, mut prepared, context }) = self.flights.remove(number) else {
                continue;
            };
            self.slot.end_concurrent(number);
            self.in_hand.end(position, &prepared);
            self.in_hand.remove(position, &prepared.incoming.claim);
            let result = prepared.unless_asked_to_end(run, result);
            let (settled_as, checkpoint) = context.take_effects();
            if checkpoint.is_some() {
                // A retry begins with the arguments of the last checkpoint.
                prepared.incoming.envelope = checkpoint;
            }
            let (job, outcome) = prepared.end(run, &run.queues.all[position], result);
            self.finish(FinishedJob { job, outcome, at: now, settled_as: settled_as.map(Box::new) });
        }
        if now - self.told_at >= TELL_EVERY {
            self.told_at = now;
            self.flights.iter().for_each(|flight| flight.context.cancel_if_stopped());
        }
        has_ended
    }

    fn finish(&mut self, finished: FinishedJob) {
        let lease = finished.job.lease().unwrap_or_default();
        if let Some(own) = self.leases.get_mut(&lease) {
            own.finished.push(finished);
        }
    }

    /// Settles the leases all of whose handlers have ended, and others whose jobs have waited for long, or all finished
    /// jobs.
    fn settle(&mut self, all: bool) {
        let now = Instant::now();
        let due: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, own)| {
                let has_waited = || own.finished.first().is_some_and(|first| now - first.at >= SETTLE_WITHIN);
                !own.finished.is_empty() && (all || own.finished.len() == own.unsettled || has_waited())
            })
            .map(|(lease, _)| *lease)
            .collect();
        for lease in due {
            let Some(own) = self.leases.get_mut(&lease) else { continue };
            let finished = mem::take(&mut own.finished);
            let count = finished.len();
            lock(&self.slot.finished).extend(finished);
            settle_finished(self.run, self.slot);
            self.forget(lease, count);
        }
    }

    /// Forgets jobs of a lease that are settled or lost.
    fn forget(&mut self, lease: i64, jobs: usize) {
        if let Some(own) = self.leases.get_mut(&lease) {
            own.unsettled -= jobs;
            if own.unsettled == 0 {
                self.leases.remove(&lease);
                self.run.leases.remove(lease);
            }
        }
    }

    fn give_back(&mut self, job: Arc<Claim>) {
        self.run.job_limit.release(1);
        self.finish(FinishedJob { job, outcome: Outcome::GiveBack, at: Instant::now(), settled_as: None });
    }

    fn give_back_waiting(&mut self, job: WaitingJob<'r, S>) {
        self.in_hand.remove(job.position, &job.prepared.incoming.claim);
        self.give_back(job.prepared.incoming.claim);
    }
}
