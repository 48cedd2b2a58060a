//! The thread that serves queues with asynchronous handlers.
//!
//! It takes jobs under leases, starts their handlers on the [`Executor`], and settles the jobs of a lease together when
//! their handlers have ended. It does not wait for handlers: while they run it takes more, as long as fewer than
//! [`crate::Worker::concurrency`] run. Jobs that are taken and cannot begin yet wait in the thread.

mod flights;
mod in_hand;
mod pace;
mod running;

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Wake, Waker};
use std::time::{Duration, Instant};

use tracing::Instrument;

use self::flights::Flights;
use self::in_hand::InHand;
use self::pace::Pace;
use self::running::{Ended, ResultSender, run_guarded};
use super::batch::Batch;
use super::catch_panic::panic_text;
use super::error_backoff::ErrorBackoff;
use super::leased_batch::set_lease_length;
use super::prepared_job::PreparedJob;
use super::settings::RunUntil;
use super::settling::{SETTLE_WITHIN, settle_finished};
use super::status::Report;
use super::thread_slots::{FinishedJob, RunningHandler, ThreadSlot};
use super::threads::{ends_when_empty, requeue_expired};
use super::worker_run::WorkerRun;
use crate::handler::{Context, Executor, HandlerFuture, Run};
use crate::lock::lock;
use crate::stop::StopMode;
use crate::wait::Polled;
use crate::{Claim, Error, Failure, Outcome, Scan, Store, StoreError, Taken, WakeSignal};

/// The interval at which running handlers are told through their tokens that they should end, and at which jobs of leases
/// that still have running handlers are settled.
const TELL_EVERY: Duration = Duration::from_millis(25);

/// The time after which the queues are polled again when they had fewer jobs than were wanted.
const POLL_AFTER_FEW: Duration = Duration::from_millis(10);

/// A lease is confirmed before a job begins if it was not within this time.
const CONFIRM_EVERY: Duration = Duration::from_millis(1);

/// Jobs that were taken and cannot begin within this time are given back, so that other workers can take them.
const WAIT_AT_MOST: Duration = Duration::from_secs(1);

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
        in_hand: InHand::new(run.queues.all.len()),
        is_limited: false,
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
                        if self.is_fatal(&error) {
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
                    // The last poll was while handlers ran, which may have put more jobs.
                    let ends = is_empty && (run.until != RunUntil::Empty || !requeue_expired(run)?);
                    if ends {
                        return Ok(());
                    }
                    poll_at = now;
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

    /// Returns whether the error of a poll ends the worker.
    fn is_fatal(&self, error: &S::Error) -> bool {
        let has_answered = self.run.reached.load(Ordering::Relaxed);
        !error.is_passing() && !has_answered || error.is_read_only() && ends_when_empty(self.run)
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
        let room = most.saturating_sub(self.flights.len() + self.waiting.len());
        // While handlers are quick, room for a few jobs is not worth a take of its own.
        if room < (ahead / 2).max(1) || self.in_hand.is_full() { 0 } else { room.min(self.max_take) }
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
            let room = self.in_hand.room(position, run.queues.all[position].concurrency);
            self.is_limited |= room == 0;
            let reserved = run.job_limit.reserve(want.min(room));
            if reserved == 0 {
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
            taken.jobs.split_off(limit).into_iter().for_each(|job| self.give_back(job));
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
        while self.flights.len() < self.run.settings.concurrency
            && let Some(job) = self.waiting.pop_front()
        {
            if self.in_hand.may_begin(job.position, &job.prepared) {
                self.start(job.position, job.prepared);
            } else {
                passed_over.push_back(job);
            }
        }
        passed_over.append(&mut self.waiting);
        self.waiting = passed_over;
        while self.waiting.front().is_some_and(|job| job.since.elapsed() > WAIT_AT_MOST) {
            self.waiting.pop_front().into_iter().for_each(|job| self.give_back_waiting(job));
        }
        self.slot.set_buffered_in_transaction(self.waiting.len());
    }

    fn start(&mut self, position: usize, prepared: PreparedJob<'r, S>) {
        let (run, now, job) = (self.run, Instant::now(), Arc::clone(&prepared.incoming.claim));
        let lease = job.lease().unwrap_or_default();
        if !self.is_held(lease, now) {
            tracing::warn!(queue = %job.queue, job_id = %job.id, "job was skipped because its lease was lost");
            self.slot.statistics.add(&job.queue, &Report { lost: 1, ..Report::default() });
            self.in_hand.remove(position, &job);
            return self.forget(lease, 1);
        }
        run.record_begun(1);
        let timeout = prepared.timeout();
        let context = Arc::new(Context::new(&run.context_access[position], &prepared.incoming, timeout));
        let own_length = prepared.incoming.envelope.as_ref().and_then(|envelope| envelope.duration("lease"));
        if let Some(length) = own_length {
            set_lease_length(run, lease, length);
        }
        let future = match future_of(&prepared, &context) {
            Ok(future) => future,
            Err(failure) => {
                self.in_hand.remove(position, &job);
                let (job, outcome) = prepared.end(run, &run.queues.all[position], Err(failure));
                return self.finish(FinishedJob { job, outcome, at: now, settled_as: None });
            }
        };
        self.in_hand.begin(position, &prepared);
        let handler = RunningHandler {
            id: job.id,
            queue: job.queue.clone(),
            task: prepared.task.clone(),
            attempt: job.attempt,
            lease: None,
            timeout,
            since: now,
        };
        let span = tracing::info_span!(
            "pq.run",
            queue = %job.queue,
            job_id = %job.id,
            task = prepared.task.as_deref(),
            attempt = job.attempt
        );
        let number = self.flights.insert(Flight { position, prepared, context });
        self.slot.begin_concurrent(number, handler);
        let sender = ResultSender::new(&self.ended, number);
        let timeout = timeout.map(|limit| (limit, self.executor.sleep(limit)));
        let run_handler = async move { sender.send(run_guarded(future, timeout).await) };
        self.executor.spawn(Box::pin(run_handler.instrument(span)));
    }

    /// Returns whether the lease is held. It is extended first if it may expire soon.
    fn is_held(&mut self, lease: i64, now: Instant) -> bool {
        let Some(own) = self.leases.get_mut(&lease) else { return false };
        if own.confirmed_at.is_none_or(|at| now - at >= CONFIRM_EVERY) {
            let is_held = self.run.leases.confirm(self.run.store(), lease, now, CONFIRM_EVERY);
            own.confirmed_at = is_held.then_some(now);
        }
        own.confirmed_at.is_some()
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
            let result = match result {
                Err(Failure::Error(error)) if run.stop.is_aborting() => {
                    // The handler was asked to end, so its error says nothing about the job.
                    let job_id = prepared.incoming.claim.id;
                    tracing::info!(%job_id, error, "handler ended early; its job is given back");
                    Ok(Outcome::GiveBack)
                }
                result => result,
            };
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

/// Returns the future of a job's handler. The function that makes it may fail or panic.
fn future_of<S: Store>(
    prepared: &PreparedJob<'_, S>,
    context: &Arc<Context<S>>,
) -> Result<HandlerFuture, Failure> {
    let handler = prepared.handler.as_ref().map_err(Clone::clone)?;
    let Run::Asynchronous(handler) = &handler.run else {
        return Err(Failure::Error("the handler is not asynchronous".to_owned()));
    };
    catch_unwind(AssertUnwindSafe(|| handler(context, &prepared.incoming)))
        .unwrap_or_else(|panic| Err(Failure::Panic(panic_text(panic))))
}
