//! The handle that stops a worker and shows its status.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::progress::Progress;
use super::status::Status;
use crate::lock::lock;
use crate::stop::{StopMode, StopSignal};
use crate::{Pq, QueueName, Store};

/// Stops a worker and returns its status, from any thread.
///
/// [`super::Worker::control`] returns it. Clones control the same worker.
pub struct Control<S> {
    pub(super) stop: Arc<StopSignal>,
    pub(super) progress: Arc<Progress>,
    /// The worker's queues and handle while it runs.
    ///
    /// A process that exits while its pool opens connections may crash in the driver. A control that outlives the run
    /// would keep the pool alive, so the run removes this when it ends.
    running: Arc<Mutex<Option<RunningWorker<S>>>>,
}

/// The parts of a worker that a control needs to query the store.
struct RunningWorker<S> {
    queues: Vec<QueueName>,
    pq: Pq<S>,
}

impl<S> Clone for Control<S> {
    fn clone(&self) -> Self {
        Self {
            stop: Arc::clone(&self.stop),
            progress: Arc::clone(&self.progress),
            running: Arc::clone(&self.running),
        }
    }
}

impl<S> fmt::Debug for Control<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("stopping", &self.stop.mode()).finish_non_exhaustive()
    }
}

impl<S: Store> Control<S> {
    pub(super) fn new() -> Self {
        Self { stop: Arc::default(), progress: Arc::default(), running: Arc::default() }
    }

    /// Allows the control to query the store while the returned guard lives.
    pub(super) fn attach(&self, queues: Vec<QueueName>, pq: &Pq<S>) -> Attached<'_, S> {
        *lock(&self.running) = Some(RunningWorker { queues, pq: pq.clone() });
        Attached(self)
    }

    /// Asks the worker to stop, and returns at once.
    ///
    /// It can be called before the worker runs, and again with a more urgent mode.
    pub fn stop(&self, mode: StopMode) {
        if self.stop.mode() < Some(mode) {
            tracing::info!(%mode, "stop was requested");
        }
        self.stop.request(mode);
    }

    /// Returns the time since the thread that extends leases and sends heartbeats last looked whether one is due.
    ///
    /// It does so once a second, or whenever a call of it has ended, also while the store cannot be reached. A worker
    /// whose thread is silent for a minute hangs. Returns `None` if the worker does not run.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        self.progress.silent_for()
    }

    /// Returns the status of the worker, and asks the store how many jobs wait.
    #[must_use]
    pub fn status(&self) -> Status {
        let running = lock(&self.running).as_ref().map(|run| (run.queues.clone(), run.pq.clone()));
        let waiting = running.and_then(|(queues, pq)| {
            let store = pq.store();
            let count = |queue: &QueueName| {
                let counts: Result<_, S::Error> = store.with_connection(|conn| store.counts(conn, queue));
                counts.ok().map(|counts| counts.waiting())
            };
            queues.iter().map(count).sum()
        });
        Status { waiting, ..self.progress.status(self.stop.mode()) }
    }
}

/// Detaches the control from the store when the run ends, by whatever way.
pub(super) struct Attached<'c, S: Store>(&'c Control<S>);

impl<S: Store> Drop for Attached<'_, S> {
    fn drop(&mut self) {
        *lock(&self.0.running) = None;
    }
}
