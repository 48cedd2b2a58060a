//! Passing the notes of running attempts to the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::thread_slots::FinishedJob;
use super::worker_run::WorkerRun;
use crate::handler::send_notes;
use crate::{Store, StoreError};

/// The notes of a running attempt are stored at this interval.
const SEND_EVERY: Duration = Duration::from_secs(1);

/// Stores the notes of all running attempts that have any, once in [`SEND_EVERY`]. `sent_at` is when it did.
pub(super) fn send_if_due<S: Store>(run: &WorkerRun<S>, sent_at: &mut Option<Instant>) {
    if sent_at.is_some_and(|at| at.elapsed() < SEND_EVERY) {
        return;
    }
    let open = run.notes.all();
    if !open.is_empty() {
        *sent_at = Some(Instant::now());
        report(send_notes(run.store(), open, false));
    }
}

/// Stores what is left of the notes of attempts that have ended, before their outcomes.
pub(super) fn send_last<S: Store>(run: &WorkerRun<S>, finished: &[FinishedJob]) {
    let left: Vec<_> = finished.iter().filter_map(|job| job.notes.as_ref()).map(Arc::clone).collect();
    if !left.is_empty() {
        report(send_notes(run.store(), left, true));
    }
}

/// Notes that could not be stored are sent again, unless their job is settled before.
fn report<E: StoreError>(sent: Result<(), E>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "notes of jobs not stored");
    }
}
