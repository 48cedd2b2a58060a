//! The thread that extends a worker's leases and sends its heartbeats.
//!
//! It does nothing else, and each of its calls must be answered within a fraction of the lease. So a call of another
//! thread that hangs cannot make running handlers lose their leases, and a call of its own is repeated in time on
//! another connection.

use std::time::Duration;

use super::heartbeat::{HeartbeatSender, call_within};
use super::thread_slots::ThreadSlot;
use super::worker_run::WorkerRun;
use crate::incidents::Call;
use crate::{Claim, Outcome, Settlement, Store};

/// Extends leases and sends heartbeats until it is asked to end. Then deregisters the worker.
pub(super) fn keep_leases<S: Store>(run: &WorkerRun<S>) {
    let mut heartbeat = HeartbeatSender::default();
    run.lease_keeper.repeat(&run.leases, || {
        run.progress.sample();
        match run.leases.extend_due(run.store()) {
            Ok(()) => run.incidents.succeeded(Call::Extend),
            Err(error) => run.incidents.failed(Call::Extend, &error),
        }
        log_lost_leases(run);
        heartbeat.send_if_due(run);
        Duration::MAX
    });
    run.progress.end();
    if run.is_abandoned() && !run.settings.dies_at_deadline {
        leave_running_jobs(run);
    }
    heartbeat.deregister(run);
}

/// Has the leased jobs run again after a lease length whose handlers have not ended at the deadline of a stop. Neither
/// an attempt nor a crash is counted.
///
/// Without that the leases would expire, as if the worker had died. A handler may go on until the process ends, so
/// its job is not given back at once.
fn leave_running_jobs<S: Store>(run: &WorkerRun<S>) {
    let handlers: Vec<_> = run.slots().iter().flat_map(ThreadSlot::all_running).collect();
    let reason = "the worker stopped before the handler had ended".to_owned();
    let outcome = Outcome::Snooze { after: run.settings.lease, reason: Some(reason), payload: None };
    let leased = handlers.iter().filter(|handler| handler.job.lease().is_some());
    let settlements: Vec<Settlement<'_>> =
        leased.map(|handler| Settlement { job: &handler.job, outcome: outcome.clone() }).collect();
    if settlements.is_empty() {
        return;
    }
    let store = run.store();
    if let Err(error) = call_within(run, |conn| store.settle(conn, &settlements)) {
        tracing::warn!(%error, "jobs whose handlers run were not left to others; their leases will expire");
    }
}

/// Logs the running handlers whose leases may have expired. Other workers may run their jobs.
fn log_lost_leases<S: Store>(run: &WorkerRun<S>) {
    let handlers = run.slots().iter().flat_map(ThreadSlot::all_running);
    for handler in
        handlers.filter(|handler| handler.lease.is_some_and(|lease| run.leases.report_expiry(lease)))
    {
        log_lost_lease(&handler.job);
    }
}

/// Logs that a lease was lost while a handler ran under it.
pub(super) fn log_lost_lease(job: &Claim) {
    let Claim { record, .. } = job;
    let (queue, job_id, attempt) = (&record.queue, record.id, record.attempt);
    tracing::warn!(%queue, %job_id, attempt, "lease was lost while its handler ran; the job may run twice");
}
