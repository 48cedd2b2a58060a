//! The thread that keeps leases alive, settles what waits too long, and runs maintenance when it is due.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::heartbeat::HeartbeatSender;
use super::leased::{SETTLE_WITHIN, give_back, settle};
use super::maintenance_schedule::MaintenanceSchedule;
use super::shared::{Shared, lock};
use super::status::StopMode;
use crate::Store;

/// A handler that runs for longer than this has its thread's other jobs given to others.
const ALONE_AFTER: Duration = Duration::from_millis(100);
/// The longest between two extensions of a lease, by which a handler learns that its job is cancelled.
const TELL_WITHIN: Duration = Duration::from_secs(2);

/// Keeps until the threads have ended.
pub(super) fn run<S: Store>(shared: &Arc<Shared<S>>, ended: &AtomicBool) {
    let mut heartbeat = HeartbeatSender::default();
    let mut schedule = MaintenanceSchedule::new(shared.settings.maintain_every, Instant::now());
    while !ended.load(Ordering::SeqCst) {
        let heard = shared.maintenance.generation();
        shared.signals.sample();
        let busy = relieve(shared);
        extend(shared);
        if schedule.due_in(Instant::now()).is_zero() && !shared.signals.is_ending() {
            schedule.run(shared);
        }
        heartbeat.send_if_due(shared);
        shared.maintenance_idle.store(!busy, Ordering::SeqCst);
        if ended.load(Ordering::SeqCst) {
            break;
        }
        let until_sweep = schedule.due_in(Instant::now());
        let idle = !busy && lock(&shared.leases).is_empty();
        let most = if idle { Duration::from_secs(1) } else { SETTLE_WITHIN };
        shared.maintenance.wait_past(heard, until_sweep.clamp(SETTLE_WITHIN, most.max(SETTLE_WITHIN)));
        shared.maintenance_idle.store(false, Ordering::SeqCst);
    }
    heartbeat.deregister(shared);
}

/// Settles what threads with long handlers have ended and gives back what they have not begun, and lets go of the
/// keys that threads keep. Says whether there are leases to keep.
fn relieve<S: Store>(shared: &Shared<S>) -> bool {
    let now = shared.signals.mode() == Some(StopMode::Abort);
    for (thread, started) in shared.signals.all_started() {
        if started.lease.is_none() {
            continue;
        }
        let is_long = now || started.at.elapsed() > ALONE_AFTER;
        if is_long {
            give_back(shared, thread);
        }
        if is_long || keeps_keys(shared, thread) {
            settle(shared, thread);
        }
        // A handler that does not end when its time is over keeps its thread, but not its job.
        let hangs =
            started.timeout.is_some_and(|timeout| started.at.elapsed() > timeout + shared.settings.lease);
        if let Some(state) =
            started.lease.filter(|_| hangs).and_then(|lease| lock(&shared.leases).remove(&lease))
        {
            tracing::error!(id = %started.id, held = ?state.length, "a handler does not end; its lease will");
        }
    }
    !lock(&shared.leases).is_empty()
}

/// Whether a thread that runs a handler has ended jobs whose keys others may wait for.
fn keeps_keys<S: Store>(shared: &Shared<S>, thread: usize) -> bool {
    lock(&shared.slot(thread).finished).iter().any(|ended| ended.job.serialization_key.is_some())
}

fn extend<S: Store>(shared: &Shared<S>) {
    let mut due = HashMap::<Duration, Vec<i64>>::new();
    for (lease, state) in lock(&shared.leases).iter() {
        if !state.lost && state.extended.elapsed() >= (state.length / 3).min(TELL_WITHIN) {
            due.entry(state.length).or_default().push(*lease);
        }
    }
    let store = shared.pq.store();
    for (length, leases) in due {
        let extended: Result<_, S::Error> = store.with_connection(|conn| store.extend(conn, &leases, length));
        let extended = match extended {
            Ok(extended) => extended,
            Err(error) => {
                tracing::warn!(%error, leases = leases.len(), "leases cannot be extended; the worker tries again");
                continue;
            }
        };
        let mut held = lock(&shared.leases);
        for lease in leases {
            let Some(state) = held.get_mut(&lease) else { continue };
            match extended.iter().find(|extended| extended.lease == lease) {
                Some(extended) => {
                    state.extended = Instant::now();
                    state.cancel_requested.extend(extended.cancelled.iter().copied());
                }
                None => {
                    // It may also have been settled meanwhile; then nobody asks any more.
                    state.lost = true;
                }
            }
        }
    }
}
