//! What the threads of a running worker share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::control::Control;
use super::progress::Progress;
use super::queue_set::QueueSet;
use super::settings::{JobLimit, RunUntil, Settings};
use super::thread_slots::ThreadSlot;
use crate::handler::{ContextAccess, Middleware, OnFailure};
use crate::lease_table::LeaseTable;
use crate::stop::StopSignal;
use crate::{Pq, Store, WakeSignal};

/// One run of a worker.
pub(super) struct WorkerRun<S: Store> {
    pub(super) pq: Pq<S>,
    pub(super) queues: QueueSet<S>,
    pub(super) settings: Settings,
    pub(super) middleware: Vec<Arc<Middleware>>,
    pub(super) on_failure: Vec<Box<OnFailure>>,
    pub(super) until: RunUntil,
    pub(super) job_limit: JobLimit,
    pub(super) stop: Arc<StopSignal>,
    pub(super) progress: Arc<Progress>,
    pub(super) leases: Arc<LeaseTable>,
    /// For each queue of `queues` what its leased handlers may touch.
    pub(super) context_access: Vec<Arc<ContextAccess<S>>>,
    /// Held by the thread that waits for jobs on behalf of the others.
    pub(super) waiter: Mutex<()>,
    pub(super) maintenance: MaintenanceSignal,
    /// Whether the run has ended although handlers have not. Their outcomes are no longer passed to the store.
    pub(super) abandoned: AtomicBool,
    /// Whether the store has ever answered. Until then an error ends the worker if a retry cannot succeed.
    pub(super) reached: AtomicBool,
}

impl<S: Store> WorkerRun<S> {
    pub(super) fn new(
        pq: Pq<S>,
        queues: QueueSet<S>,
        settings: Settings,
        middleware: Vec<Arc<Middleware>>,
        on_failure: Vec<Box<OnFailure>>,
        control: &Control<S>,
        until: RunUntil,
    ) -> Self {
        let (stop, progress, leases) =
            (Arc::clone(&control.stop), Arc::clone(&control.progress), Arc::<LeaseTable>::default());
        progress.threads.create(settings.threads);
        let queues = queues.ready();
        let context_access = queues
            .all
            .iter()
            .map(|served| {
                Arc::new(ContextAccess {
                    pq: pq.clone(),
                    queue: served.queue.clone(),
                    leases: Arc::clone(&leases),
                    stop: Arc::clone(&stop),
                })
            })
            .collect();
        Self {
            pq,
            queues,
            settings,
            middleware,
            on_failure,
            until,
            job_limit: JobLimit::new(until),
            stop,
            progress,
            leases,
            context_access,
            waiter: Mutex::default(),
            maintenance: MaintenanceSignal::default(),
            abandoned: AtomicBool::new(false),
            reached: AtomicBool::new(false),
        }
    }

    pub(super) fn store(&self) -> &S {
        self.pq.store()
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    pub(super) fn slots(&self) -> &[ThreadSlot] {
        self.progress.threads.all()
    }
}

/// Wakes the maintenance thread, and ends it.
#[derive(Debug, Default)]
pub(super) struct MaintenanceSignal {
    pub(super) wake: WakeSignal,
    /// Whether the maintenance thread sleeps for longer than a new lease may wait for it.
    pub(super) idle: AtomicBool,
    pub(super) ended: AtomicBool,
}

impl MaintenanceSignal {
    /// Asks the maintenance thread to end.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.wake.notify();
    }

    /// Wakes the maintenance thread if it sleeps for long. Must be called when a lease needs to be extended soon.
    pub(super) fn lease_added(&self) {
        if self.idle.swap(false, Ordering::SeqCst) {
            self.wake.notify();
        }
    }
}
