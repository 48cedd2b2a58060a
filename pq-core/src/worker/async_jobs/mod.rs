//! The thread that serves queues with asynchronous handlers.
//!
//! It takes jobs under leases, starts their handlers on the [`Executor`], and settles the jobs of a lease together when
//! their handlers have ended. It does not wait for handlers: while they run it takes more, as long as fewer than
//! [`crate::Worker::concurrency`] run. Jobs that are taken and cannot begin yet wait in the thread.
//!
//! Of a queue whose handlers are transactional it takes no job itself: it starts attempts, which take their jobs in
//! their transactions (`transactional`).

mod attempt;
mod calls;
mod events;
mod finish;
mod flights;
mod in_hand;
mod pace;
mod polls;
mod running;
mod start;
mod taking;
mod transactional;

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

pub use self::attempt::{Attempt, AttemptFuture};
use self::calls::Calls;
use self::events::{Event, Events};
use self::flights::Flights;
use self::in_hand::{InHand, MayBegin};
use self::pace::Pace;
use self::polls::{Found, Polls};
use self::taking::give_back_unbegun;
use self::transactional::TransactionalQueue;
use super::prepared_job::PreparedJob;
use super::thread_slots::{FinishedJob, ThreadSlot};
use super::threads::ends_when_empty;
use super::worker_run::WorkerRun;
use crate::handler::{Context, Executor, HandlerResult};
use crate::{Error, Store, WakeSignal};

/// While leases are held, the interval at which the thread cancels the tokens of handlers that should end, and settles
/// jobs of leases that still have running handlers.
const CHECK_EVERY: Duration = Duration::from_millis(25);

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

/// What runs on the executor.
enum Flight<'r, S: Store> {
    /// The handler of a leased job.
    Leased { position: usize, began: Instant, prepared: PreparedJob<'r, S>, context: Arc<Context<S>> },
    /// An attempt that takes its job in its transaction.
    Attempt { position: usize, looks: u64, has_job: bool },
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
    run: &'r Arc<WorkerRun<S>>,
    thread: usize,
    slot: &'r ThreadSlot,
    executor: Arc<dyn Executor>,
    events: Arc<Events<S::Error>>,
    flights: Flights<Flight<'r, S>>,
    in_hand: InHand,
    /// Whether the last poll left out a queue because of its limit.
    is_limited: bool,
    /// Whether the last poll asked the store. Attempts ask it for queues whose handlers are transactional.
    has_asked: bool,
    /// Whether nothing may begin until handlers have ended, because a job may kill the worker.
    is_held_back: bool,
    /// The largest number of jobs to take at a time. Smaller after a take that the store refused, and after a lost
    /// lease.
    max_take: usize,
    /// Jobs that are taken and not begun.
    waiting: VecDeque<WaitingJob<'r, S>>,
    leases: HashMap<i64, OwnLease>,
    /// The state of each queue whose handlers are transactional, at its position.
    transactional: Vec<Option<TransactionalQueue>>,
    calls: Calls,
    /// How many takes are late of each queue.
    late_takes: Vec<usize>,
    pace: Pace,
    checked_at: Instant,
}

/// Forwards a wake-up to a signal.
struct Forward(Arc<WakeSignal>);

impl Wake for Forward {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// Serves the queues with asynchronous handlers until the worker is stopped, and their handlers have ended.
pub(super) fn run_dispatcher<S: Store>(run: &Arc<WorkerRun<S>>, thread: usize) -> Result<(), S::Error> {
    let executor = run.settings.executor.clone();
    let executor =
        executor.ok_or_else(|| Error::InvalidSetting("a worker without an executor".to_owned()))?;
    let (signal, now) = (WakeSignal::new(), Instant::now());
    let events = Events::new(&signal);
    let mut dispatcher = Dispatcher {
        run,
        thread,
        slot: &run.slots()[thread],
        executor,
        events: Arc::clone(&events),
        flights: Flights::default(),
        in_hand: InHand::new(run.queues.all.len(), run.settings.concurrency),
        is_limited: false,
        has_asked: false,
        is_held_back: false,
        max_take: run.settings.max_batch,
        waiting: VecDeque::new(),
        leases: HashMap::new(),
        transactional: TransactionalQueue::all_of(&run.queues.all, now),
        calls: Calls::default(),
        late_takes: vec![0; run.queues.all.len()],
        pace: Pace::new(now),
        checked_at: now,
    };
    let ended = dispatcher.run_until_stopped(&signal);
    events.close().into_iter().for_each(|(_, event)| give_back_unbegun(run, event));
    ended
}

impl<'r, S: Store> Dispatcher<'r, S> {
    fn run_until_stopped(&mut self, signal: &Arc<WakeSignal>) -> Result<(), S::Error> {
        let run = self.run;
        let mut polls = Polls::new();
        let _subscriptions: Vec<_> = run
            .queues
            .all
            .iter()
            .filter(|served| served.is_asynchronous())
            .map(|served| run.store().subscribe(served.queue.name(), &polls.arrivals))
            .collect();
        let _registration = run.stop.waits().notifies(signal);
        let waker = Waker::from(Arc::new(Forward(Arc::clone(signal))));
        loop {
            let seen = signal.generation();
            let has_ended = match self.record_events() {
                Ok(has_ended) => has_ended,
                Err(error) => {
                    self.record_error(error, &mut polls)?;
                    false
                }
            };
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
            let found = self.poll_if_due(&mut polls, want, has_ended)?;
            if found == Found::Something {
                continue;
            }
            let is_idle = self.flights.is_empty() && self.waiting.is_empty();
            if is_idle {
                self.settle(true);
            }
            if is_idle && !self.calls.are_late() {
                if is_finishing || run.job_limit.is_reached() {
                    return Ok(());
                }
                if ends_when_empty(run) {
                    if self.is_done_with_empty_queues(&mut polls, found == Found::Nothing)? {
                        return Ok(());
                    }
                    if polls.may_poll(Instant::now()) {
                        continue;
                    }
                }
            }
            // An arrival since the last poll ends the wait at once, unless polls pause after an error.
            let has_arrival = polls.have_arrivals(&waker) && want > 0;
            if !has_arrival || !polls.may_poll(Instant::now()) {
                signal.wait_past(seen, self.pause(&polls, want > 0));
            }
        }
    }

    /// Returns how many jobs to take now.
    fn want(&mut self) -> usize {
        let ahead = self.pace.of_period(Instant::now());
        let most = self.run.settings.concurrency.saturating_add(ahead);
        let in_hand = self.flights.len() + self.waiting.len() - self.in_hand.blocked();
        let room = most.saturating_sub(in_hand);
        // While handlers are quick, room for a few jobs is not worth a take of its own.
        let is_too_little = room < (ahead / 2).max(1);
        let cannot_take = self.is_held_back || self.in_hand.is_full() || !self.calls.may_take();
        if is_too_little || cannot_take { 0 } else { room.min(self.max_take) }
    }

    /// Starts the jobs that wait, in order, as far as the limits allow. Gives back those that have waited for long.
    fn start_waiting(&mut self) {
        let mut passed_over = VecDeque::new();
        let attempts = self.transactional.iter().flatten().map(TransactionalQueue::attempts).sum();
        self.is_held_back = false;
        while self.flights.len() < self.run.settings.concurrency
            && let Some(job) = self.waiting.pop_front()
        {
            match self.in_hand.may_begin(job.position, &job.prepared, attempts) {
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

    /// Handles what the futures and late calls have reported, and cancels the tokens of handlers that should end.
    /// Returns whether a leased handler or a late take has ended.
    fn record_events(&mut self) -> Result<bool, S::Error> {
        let (now, events) = (Instant::now(), self.events.take());
        let (mut ended, mut has_taken, mut failed) = (0, false, Ok(()));
        for (number, event) in events {
            match event {
                Event::HandlerEnded(result) => {
                    ended += 1;
                    self.record_ended(number, result, now);
                }
                Event::JobFound => self.record_found(number),
                Event::AttemptEnded(end) => failed = failed.and(self.record_attempt(number, end)),
                Event::Taken { reserved, taken } => {
                    has_taken = true;
                    failed = failed.and(self.record_late_take(number, reserved, taken));
                }
                Event::Settled { lease, jobs, made } => {
                    self.calls.answered();
                    made.unwrap_or_else(|panic| resume_unwind(panic));
                    self.forget(lease, jobs);
                }
            }
        }
        self.pace.record(ended, now);
        if now - self.checked_at >= CHECK_EVERY {
            self.checked_at = now;
            for flight in self.flights.iter() {
                if let Flight::Leased { context, .. } = flight {
                    context.cancel_if_stopped();
                }
            }
        }
        failed.map(|()| has_taken || ended > 0)
    }

    fn record_ended(&mut self, number: usize, result: HandlerResult, now: Instant) {
        let run = self.run;
        let Some(Flight::Leased { position, began, mut prepared, context }) = self.flights.remove(number)
        else {
            return;
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
        let attempt = Some(prepared.ended_attempt(&run.clock, began, now));
        let (job, outcome) = prepared.end(run, &run.queues.all[position], result);
        let (settled_as, notes) = (settled_as.map(Box::new), context.end_notes());
        self.finish(FinishedJob { job, outcome, at: now, attempt, settled_as, notes });
        self.look_again_after(position);
    }
}
