//! The threads of a worker. Each polls, runs what it took, and polls again.

use std::hint::black_box;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::batch_sizer::BatchSizer;
use super::error_backoff::ErrorBackoff;
use super::maintenance;
use super::poll::{PollResult, poll};
use super::settings::RunUntil;
use super::status::Report;
use super::worker_run::WorkerRun;
use crate::lock::lock;
use crate::stop::StopMode;
use crate::wait::{Polled, poll_and_wait};
use crate::{Scan, Store, StoreError, Wait, WakeSignal};

/// Runs the threads of a worker until all of them have ended.
pub(super) fn run_threads<S: Store>(run: &WorkerRun<S>) -> Result<Report, S::Error>
where
    S::Conn: Send,
{
    keep_freed_memory();
    let ended = AtomicBool::new(false);
    let end_maintenance = || {
        ended.store(true, Ordering::SeqCst);
        run.maintenance.wake.notify();
    };
    std::thread::scope(|scope| {
        let maintenance_thread = scope.spawn(|| maintenance::run_until(run, &ended));
        let threads: Vec<_> =
            (0..run.settings.threads).map(|thread| scope.spawn(move || run_thread(run, thread))).collect();
        let mut result = Ok(());
        for thread in threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => result = Err(error),
                Err(panic) => {
                    end_maintenance();
                    std::panic::resume_unwind(panic);
                }
            }
        }
        end_maintenance();
        let _ = maintenance_thread.join();
        result
    })?;
    Ok(run.progress.report())
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
            Ok(true) => {
                backoff.reset();
                run.reached.store(true, Ordering::Relaxed);
            }
            Ok(false) => return Ok(()),
            Err(error) => {
                let is_fatal = !error.is_passing() && !run.reached.load(Ordering::Relaxed);
                if is_fatal {
                    run.stop.request(StopMode::Abort);
                    return Err(error);
                }
                tracing::warn!(%error, "polling failed; the worker will retry");
                pause(run, backoff.next_pause());
            }
        }
    }
    Ok(())
}

/// Runs one batch, and waits for it if need be. Returns `false` if the thread shall end.
fn run_next_batch<S: Store>(
    run: &WorkerRun<S>,
    thread: usize,
    sizer: &mut BatchSizer,
) -> Result<bool, S::Error> {
    let ends_when_empty = run.until == RunUntil::Empty || run.stop.mode() == Some(StopMode::Drain);
    // A worker that exits when its queues are empty needs a full scan first.
    let scan = if ends_when_empty { Scan::Full } else { Scan::Resume };
    match poll(run, thread, sizer, scan, &mut || ())? {
        PollResult::Ran => return Ok(true),
        PollResult::LimitReached => return Ok(false),
        PollResult::Empty { .. } if ends_when_empty => return Ok(false),
        PollResult::Empty { .. } => {}
    }
    run.reached.store(true, Ordering::Relaxed);
    // One thread polls on behalf of those that wait. When it has taken jobs it lets the next one wait, and runs them.
    let mut waiter = Some(lock(&run.waiter));
    let names = run.queues.names();
    let waited = poll_and_wait(run.store(), &names, Wait::Forever, Some(run.stop.waits()), |scan| {
        Ok(match poll(run, thread, sizer, scan, &mut || drop(waiter.take()))? {
            PollResult::Ran => Polled::Found(true),
            PollResult::LimitReached => Polled::Found(false),
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
