//! The thread that extends a worker's leases and sends its heartbeats.
//!
//! It does nothing else, and each of its calls must be answered within a fraction of the lease. So a call of another
//! thread that hangs cannot make running handlers lose their leases, and a call of its own is repeated in time on
//! another connection.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::heartbeat::HeartbeatSender;
use super::worker_run::WorkerRun;
use crate::Store;

/// The longest time that the thread sleeps while the worker holds a lease, and while it holds none.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
const IDLE_PAUSE: Duration = Duration::from_secs(1);

/// Extends leases and sends heartbeats until it is asked to end. Then deregisters the worker.
pub(super) fn keep_leases<S: Store>(run: &WorkerRun<S>) {
    let mut heartbeat = HeartbeatSender::default();
    let signal = &run.lease_keeper;
    while !signal.ended.load(Ordering::SeqCst) {
        let seen = signal.wake.generation();
        run.progress.sample();
        let holds_leases = !run.leases.is_empty();
        run.leases.extend_due(run.store());
        heartbeat.send_if_due(run);
        // A lease that is taken from here on finds the flag set, and wakes this thread.
        signal.idle.store(!holds_leases, Ordering::SeqCst);
        if signal.ended.load(Ordering::SeqCst) {
            break;
        }
        let is_idle = !holds_leases && run.leases.is_empty();
        signal.wake.wait_past(seen, if is_idle { IDLE_PAUSE } else { BUSY_PAUSE });
        signal.idle.store(false, Ordering::SeqCst);
    }
    heartbeat.deregister(run);
}
