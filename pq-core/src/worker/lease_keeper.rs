//! The thread that extends a worker's leases and sends its heartbeats.
//!
//! It does nothing else, and each of its calls must be answered within a fraction of the lease. So a call of another
//! thread that hangs cannot make running handlers lose their leases, and a call of its own is repeated in time on
//! another connection.

use std::time::Duration;

use super::heartbeat::HeartbeatSender;
use super::thread_slots::ThreadSlot;
use super::worker_run::WorkerRun;
use crate::incidents::Call;
use crate::{JobId, QueueName, Store};

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
    heartbeat.deregister(run);
}

/// Logs the running handlers whose leases may have expired. Other workers may run their jobs.
fn log_lost_leases<S: Store>(run: &WorkerRun<S>) {
    let handlers = run.slots().iter().flat_map(ThreadSlot::all_running);
    for handler in
        handlers.filter(|handler| handler.lease.is_some_and(|lease| run.leases.report_expiry(lease)))
    {
        log_lost_lease(&handler.queue, handler.id, handler.attempt);
    }
}

/// Logs that a lease was lost while a handler ran under it.
pub(super) fn log_lost_lease(queue: &QueueName, job_id: JobId, attempt: i32) {
    tracing::warn!(%queue, %job_id, attempt, "lease was lost while its handler ran; the job may run twice");
}
