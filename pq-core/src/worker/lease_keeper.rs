//! The thread that extends a worker's leases and sends its heartbeats.
//!
//! It does nothing else, and each of its calls must be answered within a fraction of the lease. So a call of another
//! thread that hangs cannot make running handlers lose their leases, and a call of its own is repeated in time on
//! another connection.

use std::time::Duration;

use super::heartbeat::HeartbeatSender;
use super::worker_run::WorkerRun;
use crate::Store;

/// Extends leases and sends heartbeats until it is asked to end. Then deregisters the worker.
pub(super) fn keep_leases<S: Store>(run: &WorkerRun<S>) {
    let mut heartbeat = HeartbeatSender::default();
    run.lease_keeper.repeat(&run.leases, || {
        run.progress.sample();
        run.leases.extend_due(run.store());
        heartbeat.send_if_due(run);
        Duration::MAX
    });
    heartbeat.deregister(run);
}
