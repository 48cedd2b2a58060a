//! The threads of a worker: each looks, works what it found, and looks again.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use super::batch_sizer::BatchSizer;
use super::shared::{Shared, lock};
use super::status::{Report, StopMode};
use super::take_limiter::TakenBatch;
use super::{Until, leased, maintenance, transactional};
use crate::wait::{Look, look_and_wait};
use crate::{RawJob, Scan, Store, StoreError, Wait, WakeSignal};

/// How long the worker pauses after errors.
pub(super) mod backoff {
    use std::time::Duration;

    pub(crate) const FIRST: Duration = Duration::from_millis(20);
    pub(crate) const MAX: Duration = Duration::from_secs(2);
}

/// What a look came to.
pub(super) struct Batch {
    pub(super) taken: usize,
    pub(super) bytes: usize,
    /// Whether some had serialization keys.
    pub(super) has_keys: bool,
    pub(super) given_back: usize,
    pub(super) next_due: Option<Duration>,
}

impl Batch {
    pub(super) fn nothing(next_due: Option<Duration>) -> Self {
        Self { taken: 0, bytes: 0, has_keys: false, given_back: 0, next_due }
    }

    /// These jobs, which are still to be begun.
    pub(super) fn of(jobs: &[RawJob]) -> Self {
        Self {
            taken: jobs.len(),
            bytes: jobs.iter().map(RawJob::size).sum(),
            has_keys: jobs.iter().any(|job| job.serialization_key.is_some()),
            given_back: 0,
            next_due: None,
        }
    }
}

/// Has the process keep the memory of a batch for the next one.
///
/// glibc gives free memory at the end of a heap back to the system from 128 kB on, and gets it anew page by page: for
/// each batch that is a fifth of the work of a thread whose handlers do nothing. Once a block that it got from the
/// system directly is freed, it takes such sizes for passing and keeps twice as much (mallopt(3), M_MMAP_THRESHOLD).
/// This block is never written to, so it costs nothing. Where the application has set these thresholds they stay.
fn keep_memory() {
    const ABOUT_A_BATCH: usize = 4 << 20;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(black_box(Vec::<u8>::with_capacity(ABOUT_A_BATCH))));
}

/// Runs a worker until it ends.
pub(super) fn run<S: Store>(shared: &Arc<Shared<S>>) -> Result<Report, S::Error>
where
    S::Conn: Send,
{
    keep_memory();
    let ended = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let maintenance_thread = scope.spawn(|| maintenance::run(shared, &ended));
        let threads: Vec<_> =
            (0..shared.settings.threads).map(|thread| scope.spawn(move || serve(shared, thread))).collect();
        let mut outcome = Ok(());
        for thread in threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => outcome = Err(error),
                Err(panic) => {
                    ended.store(true, Ordering::SeqCst);
                    shared.maintenance.notify();
                    std::panic::resume_unwind(panic);
                }
            }
        }
        ended.store(true, Ordering::SeqCst);
        shared.maintenance.notify();
        let _ = maintenance_thread.join();
        outcome
    });
    outcome.map(|()| shared.signals.totals.report())
}

/// One thread's work.
fn serve<S: Store>(shared: &Arc<Shared<S>>, thread: usize) -> Result<(), S::Error> {
    let mut sizer = BatchSizer::new(shared.settings.min_batch, shared.settings.max_batch);
    let mut pause = backoff::FIRST;
    while !shared.signals.is_ending() {
        match work_once(shared, thread, &mut sizer) {
            Ok(true) => {
                pause = backoff::FIRST;
                shared.reached.store(true, Ordering::Relaxed);
            }
            Ok(false) => return Ok(()),
            Err(error) => {
                let fatal = !error.is_unavailable() && !shared.reached.load(Ordering::Relaxed);
                if fatal {
                    shared.signals.stop(StopMode::Abort);
                    return Err(error);
                }
                tracing::warn!(%error, "a worker's look failed; it tries again");
                sleep(shared, pause);
                pause = (pause * 2).min(backoff::MAX);
            }
        }
    }
    Ok(())
}

/// Works a batch, waiting for one if need be. `false` where there is nothing more to do.
fn work_once<S: Store>(
    shared: &Arc<Shared<S>>,
    thread: usize,
    sizer: &mut BatchSizer,
) -> Result<bool, S::Error> {
    let ends_when_empty = || shared.until == Until::Empty || shared.signals.mode() == Some(StopMode::Drain);
    let ends = ends_when_empty();
    // Who ends where there is nothing has to know it for sure.
    let scan = if ends { Scan::Full } else { Scan::Resume };
    match poll(shared, thread, sizer, scan, &mut || ())? {
        PollResult::Worked => return Ok(true),
        PollResult::Enough => return Ok(false),
        PollResult::Nothing { .. } if ends => return Ok(false),
        PollResult::Nothing { .. } => {}
    }
    shared.reached.store(true, Ordering::Relaxed);
    // One thread waits for all: when it has found something it lets the next one wait, and works.
    let mut leader = Some(lock(&shared.leader));
    let names = shared.queues.names();
    let waited =
        look_and_wait(shared.pq.store(), &names, Wait::Forever, Some(&shared.signals.stop), |scan| {
            Ok(match poll(shared, thread, sizer, scan, &mut || drop(leader.take()))? {
                PollResult::Worked => Look::Found(true),
                PollResult::Enough => Look::Found(false),
                PollResult::Nothing { next_due } => Look::Nothing { next_due },
            })
        });
    match waited {
        Ok(more) => Ok(more.unwrap_or(true)),
        // Whoever stopped it has said how; the loop looks at that.
        Err(_) if shared.signals.stop.is_cancelled() => Ok(true),
        Err(error) => Err(error),
    }
}

enum PollResult {
    Worked,
    Nothing {
        next_due: Option<Duration>,
    },
    /// As many jobs as were to be run are begun.
    Enough,
}

/// Looks at the queues in turn until one has jobs, and works them.
fn poll<S: Store>(
    shared: &Arc<Shared<S>>,
    thread: usize,
    sizer: &mut BatchSizer,
    scan: Scan,
    found: &mut dyn FnMut(),
) -> Result<PollResult, S::Error> {
    let mut next_due = None;
    let mut passed = Vec::new();
    for position in shared.queues.order() {
        let served = &shared.queues.all[position];
        // Who has to know for sure that there is nothing looks beside whoever works.
        if let Some(left) = served.limiter.affinity_delay(thread, Instant::now())
            && scan == Scan::Resume
        {
            passed.push(position);
            next_due = sooner(next_due, Some(left));
            continue;
        }
        let want = shared.reserve(sizer.size());
        if want == 0 {
            return Ok(PollResult::Enough);
        }
        let mut begun = None;
        let mut began = || {
            begun = Some(Instant::now());
            found();
        };
        let batch = match served.is_transactional() {
            true => transactional::batch(shared, thread, served, want, scan, &mut began),
            false => leased::batch(shared, thread, position, want, scan, &mut began),
        };
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                shared.release(want);
                if begun.is_some() {
                    shared.reached.store(true, Ordering::Relaxed);
                }
                if !error.is_unavailable() {
                    sizer.shrink_after_error();
                }
                return Err(error);
            }
        };
        shared.release(want - (batch.taken - batch.given_back));
        if batch.taken > 0 {
            let Batch { taken, bytes, has_keys, .. } = batch;
            let took = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
            served.limiter.record_batch(thread, TakenBatch { has_keys, taken, want, took }, Instant::now());
            shared.queues.served(position, &passed);
            sizer.record(taken, bytes, took);
            if has_keys {
                sizer.limit_for_keys();
            }
            return Ok(PollResult::Worked);
        }
        served.limiter.record_empty(thread);
        passed.push(position);
        next_due = sooner(next_due, batch.next_due);
    }
    Ok(PollResult::Nothing { next_due })
}

fn sooner(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

/// Pauses after an error, unless the worker is stopped meanwhile.
fn sleep<S: Store>(shared: &Shared<S>, pause: Duration) {
    let signal = WakeSignal::new();
    let _stop = shared.signals.stop.notifies(&signal);
    if !shared.signals.stop.is_cancelled() {
        signal.wait_past(0, pause);
    } else if !shared.signals.is_ending() {
        std::thread::sleep(pause);
    }
}
