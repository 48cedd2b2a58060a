//! What the threads of a running worker share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::control::Control;
use super::progress::Progress;
use super::queue_set::QueueSet;
use super::settings::{JobLimit, RunUntil, Settings};
use super::settling::SETTLE_WITHIN;
use super::store_clock::StoreClock;
use super::thread_slots::ThreadSlot;
use super::wait_turn::WaitTurn;
use crate::handler::{ContextAccess, Middleware, OnFailure, OpenNotes};
use crate::incidents::{Call, Incidents};
use crate::lease_table::LeaseTable;
use crate::stop::StopSignal;
use crate::{Pq, Store, WakeSignal};

/// One run of a worker.
pub(super) struct WorkerRun<S: Store> {
    pub(super) pq: Pq<S>,
    pub(super) queues: QueueSet<S>,
    pub(super) settings: Settings,
    blocking_threads: usize,
    pub(super) middleware: Vec<Arc<Middleware>>,
    pub(super) on_failure: Vec<Box<OnFailure>>,
    pub(super) until: RunUntil,
    pub(super) job_limit: JobLimit,
    pub(super) stop: Arc<StopSignal>,
    pub(super) progress: Arc<Progress>,
    pub(super) leases: Arc<LeaseTable>,
    /// What running attempts have noted.
    pub(super) notes: Arc<OpenNotes>,
    pub(super) clock: Arc<StoreClock>,
    /// The calls that the store refuses at present.
    pub(super) incidents: Incidents,
    /// For each queue of `queues` what its leased handlers may touch.
    pub(super) context_access: Vec<Arc<ContextAccess<S>>>,
    /// Belongs to the thread that waits for jobs on behalf of the others.
    pub(super) wait_turn: WaitTurn,
    pub(super) lease_keeper: ThreadSignal,
    pub(super) maintenance: ThreadSignal,
    /// Whether the run has ended although handlers have not. Their outcomes are no longer passed to the store.
    pub(super) abandoned: AtomicBool,
    /// Whether the store has ever answered. Until then an error ends the worker if a retry cannot succeed.
    reached: AtomicBool,
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
        let clock = Arc::new(StoreClock::new());
        let notes = OpenNotes::new(&clock);
        let queues = queues.ready();
        let blocking_threads = if queues.blocking_names().is_empty() { 0 } else { settings.threads };
        progress.threads.create(blocking_threads + usize::from(queues.has_asynchronous()));
        let context_access = queues
            .all
            .iter()
            .map(|served| {
                Arc::new(ContextAccess {
                    pq: pq.clone(),
                    queue: served.queue.clone(),
                    leases: Arc::clone(&leases),
                    notes: Arc::clone(&notes),
                    stop: Arc::clone(&stop),
                })
            })
            .collect();
        Self {
            pq,
            queues,
            settings,
            blocking_threads,
            middleware,
            on_failure,
            until,
            job_limit: JobLimit::new(until),
            stop,
            progress,
            leases,
            notes,
            clock,
            incidents: Incidents::default(),
            context_access,
            wait_turn: WaitTurn::default(),
            lease_keeper: ThreadSignal::default(),
            maintenance: ThreadSignal::default(),
            abandoned: AtomicBool::new(false),
            reached: AtomicBool::new(false),
        }
    }

    /// Returns how many threads run blocking handlers. One more serves the queues with asynchronous ones.
    pub(super) fn blocking_threads(&self) -> usize {
        self.blocking_threads
    }

    /// Records that reserved jobs were begun. After the last ones, threads that wait for jobs end.
    pub(super) fn record_begun(&self, jobs: usize) {
        if self.job_limit.record_begun(jobs) {
            self.stop.waits().cancel();
        }
    }

    /// Records that the store answered a poll.
    pub(super) fn record_poll(&self) {
        self.incidents.succeeded(Call::Poll);
        if !self.is_reached() && !self.reached.swap(true, Ordering::Relaxed) {
            tracing::info!("worker became ready");
        }
    }

    /// Returns whether the store has ever answered a poll.
    pub(super) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    /// Returns whether the run shall stop, holds no job, and cannot reach the store.
    pub(super) fn is_idle_without_store(&self) -> bool {
        self.stop.is_finishing()
            && self.incidents.is_store_unavailable()
            && self.leases.is_empty()
            && self.slots().iter().all(|slot| slot.buffered() == 0 && slot.all_running().is_empty())
    }

    pub(super) fn store(&self) -> &S {
        self.pq.store()
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Wakes the threads that care for leases if they sleep for long. Must be called when a lease was taken or needs to
    /// be extended soon.
    pub(super) fn lease_added(&self) {
        self.lease_keeper.lease_added();
        self.maintenance.lease_added();
    }

    pub(super) fn slots(&self) -> &[ThreadSlot] {
        self.progress.threads.all()
    }
}

/// Wakes the lease keeper or the maintenance thread, and ends it.
#[derive(Debug, Default)]
pub(super) struct ThreadSignal {
    wake: WakeSignal,
    /// Whether the thread sleeps for longer than a new lease may wait for it.
    idle: AtomicBool,
    ended: AtomicBool,
}

/// The shortest time that the thread sleeps, and the longest while the worker holds a lease, and while it holds none.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const BUSY_PAUSE: Duration = SETTLE_WITHIN;
const IDLE_PAUSE: Duration = Duration::from_secs(1);

impl ThreadSignal {
    /// Calls `work` until the thread is asked to end, and sleeps in between.
    ///
    /// `work` returns after which time it must be called again. It is called earlier while the worker holds a lease.
    pub(super) fn repeat(&self, leases: &LeaseTable, mut work: impl FnMut() -> Duration) {
        while !self.ended.load(Ordering::SeqCst) {
            let seen = self.wake.generation();
            let holds_leases = !leases.is_empty();
            let due_in = work();
            // A lease that is taken from here on finds the flag set, and wakes this thread.
            self.idle.store(!holds_leases, Ordering::SeqCst);
            if self.ended.load(Ordering::SeqCst) {
                break;
            }
            let is_idle = !holds_leases && leases.is_empty();
            let longest = if is_idle { IDLE_PAUSE } else { BUSY_PAUSE };
            self.wake.wait_past(seen, due_in.clamp(SHORTEST_PAUSE, longest));
            self.idle.store(false, Ordering::SeqCst);
        }
    }

    /// Asks the thread to end.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.wake.notify();
    }

    fn lease_added(&self) {
        if self.idle.swap(false, Ordering::SeqCst) {
            self.wake.notify();
        }
    }
}
