//! The worker's registration in the store, and the requests to stop that it receives in reply.

use std::time::Instant;

use super::worker_run::WorkerRun;
use crate::incidents::Call;
use crate::lease_table::extension_timeout;
use crate::{Heartbeat, HeartbeatReply, Status, Store, WorkerId};

/// Sends the heartbeats of a worker.
#[derive(Debug, Default)]
pub(super) struct HeartbeatSender {
    /// The id that the store assigned at the first heartbeat.
    worker: Option<WorkerId>,
    sent_at: Option<Instant>,
}

impl HeartbeatSender {
    /// Sends a heartbeat if one is due, and requests the stop mode of the reply.
    pub(super) fn send_if_due<S: Store>(&mut self, run: &WorkerRun<S>) {
        let Some(interval) = run.settings.heartbeat_every else { return };
        if self.sent_at.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        self.sent_at = Some(Instant::now());
        let heartbeat = Heartbeat {
            worker: self.worker,
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
            supervisor: run.settings.supervisor.unwrap_or_else(std::process::id),
            queues: run.queues.names(),
            threads: run.settings.threads,
            status: Status {
                refused: run.incidents.refusal(Call::Poll),
                tasks: run.queues.tasks(),
                ..run.progress.status(run.stop.mode())
            },
        };
        let store = run.store();
        let reply: Result<HeartbeatReply, S::Error> =
            call_within(run, |conn| store.heartbeat(conn, &heartbeat));
        match reply {
            Ok(HeartbeatReply { worker, stop }) => {
                run.incidents.succeeded(Call::Heartbeat);
                self.worker = Some(worker);
                if let Some(mode) = stop.filter(|mode| run.stop.mode() < Some(*mode)) {
                    tracing::info!(%worker, %mode, "stop was requested through the store");
                    run.stop.request(mode);
                }
            }
            Err(error) => run.incidents.failed(Call::Heartbeat, &error),
        }
    }

    /// Removes the worker from the store.
    pub(super) fn deregister<S: Store>(&self, run: &WorkerRun<S>) {
        let Some(worker) = self.worker else { return };
        let store = run.store();
        let removed = call_within(run, |conn| store.deregister(conn, worker));
        if let Err(error) = removed {
            tracing::debug!(%error, %worker, "deregistering failed; maintenance will remove the worker");
        }
    }
}

/// Runs `work` on a connection of the store, with the call timeout of an extension of the worker's leases.
///
/// The thread extends leases too, so it must not wait longer.
pub(super) fn call_within<S: Store, R>(
    run: &WorkerRun<S>,
    work: impl FnOnce(&mut S::Conn) -> Result<R, S::Error>,
) -> Result<R, S::Error> {
    let (store, timeout) = (run.store(), extension_timeout(run.settings.lease));
    store.with_connection(|conn| store.with_call_timeout(conn, Some(timeout), work))
}
