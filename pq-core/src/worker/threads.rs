//! The threads of a worker. Each polls, runs what it took, and polls again.

use std::hint::black_box;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::async_jobs::run_dispatcher;
use super::batch_sizer::BatchSizer;
use super::catch_panic::catch_panic;
use super::error_backoff::ErrorBackoff;
use super::poll::{PollResult, poll};
use super::settings::RunUntil;
use super::status::Report;
use super::thread_slots::ThreadSlot;
use super::wait_turn::Turn;
use super::worker_run::WorkerRun;
use super::{lease_keeper, maintenance};
use crate::incidents::Call;
use crate::lock::lock;
use crate::stop::StopMode;
use crate::wait::{Polled, Subscribe, poll_and_wait};
use crate::{Scan, Store, StoreError, Wait, WakeSignal, workflow};

/// The time after which a run that ends when its queues are empty looks again for expired leases that it cannot return.
const EXPIRED_PAUSE: Duration = Duration::from_millis(20);

/// Runs the threads of a worker until all of them have ended, or until the deadline of a stop.
///
/// The threads are not scoped, because a thread whose handler does not return would keep its scope from ending.
pub(super) fn run_threads<S: Store>(run: &Arc<WorkerRun<S>>) -> Result<Report, S::Error> {
    keep_freed_memory();
    let endings = Arc::new(Endings::default());
    let _registration = run.stop.waits().notifies(&endings.signal);
    let others: [OtherThread<S>; OTHERS] =
        [("lease keeper", lease_keeper::keep_leases), ("maintenance", maintenance::run_maintenance)];
    let mut threads: Vec<_> = others
        .into_iter()
        .map(|(thread, work)| {
            endings.spawn(run, move |endings, run| {
                if let Err(panic) = catch_panic(|| work(run)) {
                    tracing::error!(%panic, thread, "a thread of the worker panicked");
                }
                endings.others.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    let total = run.slots().len();
    threads.extend((0..total).map(|thread| {
        endings.spawn(run, move |endings, run| {
            // The thread behind those that run blocking handlers serves the queues with asynchronous ones.
            let ended = catch_unwind(AssertUnwindSafe(|| match thread < run.blocking_threads() {
                true => run_thread(run, thread),
                false => run_dispatcher(run, thread),
            }));
            if ended.is_err() {
                run.stop.request(StopMode::Abort);
            }
            lock(&endings.threads).push(ended);
        })
    }));
    let have_all_ended = endings.wait(run, Duration::ZERO, || lock(&endings.threads).len() == total);
    if !have_all_ended {
        abandon(run);
    }
    run.lease_keeper.end();
    run.maintenance.end();
    if endings.wait(run, DEREGISTER_WITHIN, || endings.others.load(Ordering::SeqCst) == OTHERS)
        && have_all_ended
    {
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
    let mut result = Ok(run.progress.report());
    for ended in mem::take(&mut *lock(&endings.threads)) {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => result = Err(error),
            Err(panic) => resume_unwind(panic),
        }
    }
    result
}

/// The name of a thread that runs no handlers, and its work.
type OtherThread<S> = (&'static str, fn(&WorkerRun<S>));

/// The number of threads that run no handlers.
const OTHERS: usize = 2;

/// The time after the deadline of a stop for which the run waits until the lease keeper has deregistered it.
const DEREGISTER_WITHIN: Duration = Duration::from_secs(1);

/// How long a run that holds no job waits for its threads when it is stopped while the store cannot be reached, and how
/// often it looks.
const STOP_WITHOUT_STORE: Duration = Duration::from_millis(500);
const STORE_CHECK_PAUSE: Duration = Duration::from_millis(50);

/// Ends the run although handlers have not returned.
///
/// Their leases are no longer extended, and their outcomes are not passed to the store. The lease keeper leaves their
/// jobs to other workers when it ends.
fn abandon<S: Store>(run: &WorkerRun<S>) {
    run.abandoned.store(true, Ordering::SeqCst);
    run.stop.request(StopMode::Abort);
    for handler in run.slots().iter().flat_map(ThreadSlot::all_running) {
        tracing::error!(
            queue = %handler.job.queue,
            job_id = %handler.job.id,
            attempt = handler.job.attempt,
            "the worker ended although a handler had not; the job will run again"
        );
    }
}

/// The threads of a run that have ended.
struct Endings<E> {
    threads: Mutex<Vec<thread::Result<Result<(), E>>>>,
    /// How many of the [`OTHERS`] have ended.
    others: AtomicUsize,
    /// Notified by each thread that has ended, and by requests to stop.
    signal: Arc<WakeSignal>,
}

impl<E> Default for Endings<E> {
    fn default() -> Self {
        Self { threads: Mutex::default(), others: AtomicUsize::new(0), signal: WakeSignal::new() }
    }
}

impl<E: Send + 'static> Endings<E> {
    /// Spawns a thread that notifies the signal when it has ended.
    fn spawn<S: Store>(
        self: &Arc<Self>,
        run: &Arc<WorkerRun<S>>,
        work: impl FnOnce(&Self, &Arc<WorkerRun<S>>) + Send + 'static,
    ) -> JoinHandle<()> {
        let (endings, run) = (Arc::clone(self), Arc::clone(run));
        thread::spawn(move || {
            work(&endings, &run);
            endings.signal.notify();
        })
    }

    /// Waits until `have_ended` returns `true`. Returns `false` if the deadline of a stop, and `grace`, came first.
    ///
    /// A tenth of the time before the deadline, running handlers are asked to end. A run that holds no job while the
    /// store cannot be reached has a deadline of its own, because its threads wait for connections that may not come.
    fn wait<S: Store>(&self, run: &WorkerRun<S>, grace: Duration, have_ended: impl Fn() -> bool) -> bool {
        let time_left = || {
            let within = run.settings.stop_within?.saturating_add(grace);
            Some((run.stop.time_left(within)?, within / 10))
        };
        loop {
            let seen = self.signal.generation();
            if have_ended() {
                return true;
            }
            if run.is_idle_without_store()
                && run.stop.time_left(STOP_WITHOUT_STORE.saturating_add(grace)) == Some(Duration::ZERO)
            {
                return false;
            }
            let pause = match time_left() {
                None => Duration::MAX,
                Some((Duration::ZERO, _)) => return false,
                Some((left, _)) if run.stop.is_aborting() => left,
                Some((left, last)) if left > last => left - last,
                Some((left, _)) => {
                    run.stop.request(StopMode::Abort);
                    left
                }
            };
            let is_checked = run.stop.is_finishing() && run.incidents.is_store_unavailable();
            self.signal.wait_past(seen, if is_checked { pause.min(STORE_CHECK_PAUSE) } else { pause });
        }
    }
}

/// Has glibc keep the memory of a freed batch for the next one.
///
/// By default glibc returns free memory at the top of a heap to the system from 128 kB on. Each batch would then get
/// its memory page by page from the system. When a block that was mapped directly is freed, glibc raises both
/// thresholds to its size, see `M_MMAP_THRESHOLD` in mallopt(3). This block is never written to, so it uses no memory.
/// Thresholds that the application has set are kept.
fn keep_freed_memory() {
    const BLOCK: usize = 4 << 20;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(black_box(Vec::<u8>::with_capacity(BLOCK))));
}

fn run_thread<S: Store>(run: &WorkerRun<S>, thread: usize) -> Result<(), S::Error> {
    let mut sizer = BatchSizer::new(run.settings.min_batch, run.settings.max_batch);
    let mut backoff = ErrorBackoff::default();
    while !run.stop.is_finishing() {
        match run_next_batch(run, thread, &mut sizer) {
            Ok(true) => backoff.reset(),
            Ok(false) => return Ok(()),
            Err(_) if run.is_abandoned() => return Ok(()),
            Err(error) => {
                if is_fatal(run, &error) {
                    run.stop.request(StopMode::Abort);
                    return Err(error);
                }
                run.incidents.failed(Call::Poll, &error);
                pause(run, backoff.next_pause());
            }
        }
    }
    Ok(())
}

/// Returns whether the error of a poll ends the worker.
pub(super) fn is_fatal<S: Store>(run: &WorkerRun<S>, error: &S::Error) -> bool {
    !error.is_passing() && !run.is_reached() || error.is_read_only() && ends_when_empty(run)
}

/// Returns whether the run ends when its queues are empty.
pub(super) fn ends_when_empty<S: Store>(run: &WorkerRun<S>) -> bool {
    run.until == RunUntil::Empty || run.stop.mode() == Some(StopMode::Drain)
}

/// Runs one batch, and waits for it if need be. Returns `false` if the thread shall end.
fn run_next_batch<S: Store>(
    run: &WorkerRun<S>,
    thread: usize,
    sizer: &mut BatchSizer,
) -> Result<bool, S::Error> {
    let ends_when_empty = ends_when_empty(run);
    // A worker that exits when its queues are empty needs a full scan first.
    let scan = if ends_when_empty { Scan::Full } else { Scan::Resume };
    let polled = poll(run, thread, sizer, scan, &mut || ())?;
    if matches!(polled, PollResult::Empty { .. }) {
        run.record_poll();
    }
    match polled {
        PollResult::Ran => return Ok(true),
        PollResult::LimitReached => return Ok(false),
        PollResult::Empty { .. } if run.until == RunUntil::Empty => {
            return Ok(maintain_if_needed(run)?
                || matches!(poll(run, thread, sizer, scan, &mut || ())?, PollResult::Ran));
        }
        PollResult::Empty { .. } if ends_when_empty => return Ok(false),
        PollResult::Empty { .. } => {}
    }
    // One thread polls on behalf of those that wait. When it has taken jobs it lets the next one wait, and runs them.
    let Some(turn) = run.wait_turn.take(run.stop.waits()) else { return Ok(true) };
    let mut turn = Some(turn);
    let names = run.queues.blocking_names();
    let (token, incidents) = (Some(run.stop.waits()), &run.incidents);
    let waited =
        poll_and_wait(run.store(), Subscribe::Puts(&names), Wait::Forever, token, incidents, |scan| {
            turn.iter().for_each(Turn::begin_poll);
            let polled = poll(run, thread, sizer, scan, &mut || drop(turn.take()));
            let is_held = turn.as_ref().is_some_and(Turn::end_poll);
            Ok(match polled? {
                PollResult::Ran => Polled::Found(true),
                PollResult::LimitReached => Polled::Found(false),
                // The poll took so long that another thread waits now.
                PollResult::Empty { .. } if !is_held => Polled::Found(true),
                PollResult::Empty { next_due } => Polled::Nothing { next_due },
            })
        });
    match waited {
        Ok(more) => Ok(more.unwrap_or(true)),
        // The wait was ended by a request to stop. The caller's loop reads its mode.
        Err(_) if run.stop.waits().is_cancelled() => Ok(true),
        Err(error) => Err(error),
    }
}

/// Returns the jobs of expired leases to their queues, and makes those due that waited for jobs that have ended, for
/// a run that ends when its queues are empty.
///
/// Returns `false` if there were none. Even then another process may have returned its jobs since the last
/// poll, so the queues must be polled again.
pub(super) fn maintain_if_needed<S: Store>(run: &WorkerRun<S>) -> Result<bool, S::Error> {
    if run.settings.maintain_every == Duration::MAX {
        return Ok(false);
    }
    let (store, queues) = (run.store(), run.queues.names());
    let maintained = store.with_connection(|conn| {
        if !store.needs_maintenance(conn, &queues)? {
            return Ok::<_, S::Error>(None);
        }
        let report = store.maintain(conn, &run.settings.retention)?;
        if report.is_some_and(|report| report.workflows) {
            workflow::advance(&run.pq, conn)?;
        }
        Ok(Some(report))
    })?;
    let Some(report) = maintained else { return Ok(false) };
    if report.is_none_or(|report| report.returned == 0) {
        // Another process returns the jobs, or a transaction settles them or holds a follow-up.
        pause(run, EXPIRED_PAUSE);
    }
    Ok(true)
}

/// Pauses after an error. A request to stop ends the pause, unless the worker drains and must continue.
fn pause<S: Store>(run: &WorkerRun<S>, pause: Duration) {
    let signal = WakeSignal::new();
    let _registration = run.stop.waits().notifies(&signal);
    if !run.stop.waits().is_cancelled() {
        signal.wait_past(0, pause);
    } else if !run.stop.is_finishing() {
        std::thread::sleep(pause);
    }
}
