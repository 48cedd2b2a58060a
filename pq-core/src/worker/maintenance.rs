//! The maintenance thread of a worker.
//!
//! It settles what threads with slow handlers have finished, puts the periodic jobs that are due, requeues the jobs
//! of expired leases, prunes the archive, and passes the worker's counters and the notes of running handlers to the
//! store. Each of these may hang for as long as a call may, so the leases of running handlers are extended elsewhere
//! ([`super::lease_keeper`]).

use std::time::{Duration, Instant};

use super::counting::CounterFlush;
use super::maintenance_schedule::MaintenanceSchedule;
use super::sending_notes::send_if_due;
use super::settling::{give_back_buffer, settle_for_thread};
use super::thread_slots::ThreadSlot;
use super::worker_run::WorkerRun;
use crate::incidents::Call;
use crate::lock::lock;
use crate::{MaintenanceReport, Store, workflow};

/// After a handler has run for this long the jobs that its thread has not begun are given back.
const SLOW_HANDLER: Duration = Duration::from_millis(100);

/// Runs maintenance, and passes counters to the store, until it is asked to end.
pub(super) fn run_maintenance<S: Store>(run: &WorkerRun<S>) {
    let mut schedule = MaintenanceSchedule::new(run.settings.maintain_every, Instant::now());
    let (mut counters, mut sent_at) = (CounterFlush::default(), None);
    run.maintenance.repeat(&run.leases, || {
        relieve_threads(run);
        counters.flush_if_due(run);
        send_if_due(run, &mut sent_at);
        // Maintenance requeues the jobs of expired leases. While this worker could not extend its own, for example
        // after the store was unavailable, they must not be among them.
        let holds_own = !run.leases.is_extension_due();
        schedule.look_for_follow_ups(run.progress.report().ended(), Instant::now());
        if !holds_own || run.stop.is_finishing() {
            return Duration::MAX;
        }
        if schedule.due_in(Instant::now()).is_zero() {
            maintain(run, &mut schedule);
        }
        schedule.due_in(Instant::now())
    });
    counters.flush(run);
}

/// Relieves the threads whose handlers are slow.
///
/// Settles what such a thread has finished, gives back what it has not begun, and lets the lease of a handler that
/// hangs expire.
fn relieve_threads<S: Store>(run: &WorkerRun<S>) {
    let is_aborting = run.stop.is_aborting();
    for slot in run.slots() {
        let Some(handler) = slot.running() else { continue };
        let Some(lease) = handler.lease else { continue };
        let is_slow = is_aborting || handler.since.elapsed() > SLOW_HANDLER;
        if is_slow {
            give_back_buffer(slot);
        }
        if is_slow || has_finished_keys(slot) {
            settle_for_thread(run, slot);
        }
        // A handler that ignores its timeout keeps its thread. Its job must not be kept as well.
        let hangs = handler
            .timeout
            .is_some_and(|timeout| handler.since.elapsed() > timeout.saturating_add(run.settings.lease));
        if hangs && run.leases.remove(lease) {
            tracing::error!(
                queue = %handler.job.queue,
                job_id = %handler.job.id,
                attempt = handler.job.attempt,
                "handler ignored its timeout; its lease will expire"
            );
        }
    }
}

/// Returns whether the thread has finished jobs with serialization keys, for which others may wait.
fn has_finished_keys(slot: &ThreadSlot) -> bool {
    lock(&slot.finished).iter().any(|finished| finished.job.serialization_key.is_some())
}

/// Puts the periodic jobs that are due. Does the rest of what [`crate::Pq::maintain`] does if a search is due.
fn maintain<S: Store>(run: &WorkerRun<S>, schedule: &mut MaintenanceSchedule) {
    let store = run.store();
    let report: Result<Option<MaintenanceReport>, S::Error> = store.with_connection(|conn| {
        #[cfg(feature = "cron")]
        fire_crons(run, conn, schedule)?;
        let began = Instant::now();
        if !schedule.is_search_due(began) {
            return Ok(None);
        }
        let mut report = store.maintain(conn, &run.settings.retention)?;
        if let Some(report) = report.as_mut().filter(|report| report.workflows) {
            // Jobs that wait again may wait for jobs that have ended.
            report.more |= workflow::advance(&run.pq, conn)?;
        }
        let found = report.is_some_and(|report| report.returned + report.pruned > 0 || report.more);
        let now = Instant::now();
        if let Some(report) = report {
            schedule.record_waits(&report, now.saturating_duration_since(began), now);
        }
        schedule.record_search(now.saturating_duration_since(began), found, now);
        Ok(report)
    });
    schedule.record_run(matches!(report, Ok(Some(report)) if report.more), Instant::now());
    match report {
        Ok(Some(report)) if report.returned > 0 => {
            tracing::warn!(jobs = report.returned, "leases expired; their jobs were requeued");
        }
        Ok(_) => {}
        Err(error) => return run.incidents.failed(Call::Maintain, &error),
    }
    run.incidents.succeeded(Call::Maintain);
}

/// Puts the periodic jobs that are due. Only an unavailable store keeps the rest of maintenance from its run.
#[cfg(feature = "cron")]
fn fire_crons<S: Store>(
    run: &WorkerRun<S>,
    conn: &mut S::Conn,
    schedule: &mut MaintenanceSchedule,
) -> Result<(), S::Error> {
    let now = Instant::now();
    let corrected = if schedule.is_tick_check_due(now) {
        schedule.record_tick_check(now);
        crate::cron::bring_crons_forward(run.store(), conn)
    } else {
        Ok(())
    };
    match corrected.and_then(|()| crate::cron::fire_due_crons(&run.pq, conn)) {
        Ok(_) => run.incidents.succeeded(Call::Cron),
        Err(error) if crate::StoreError::is_unavailable(&error) => return Err(error),
        Err(error) => run.incidents.failed(Call::Cron, &error),
    }
    Ok(())
}
