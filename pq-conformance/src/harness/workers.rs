//! Handlers and workers for the cases.

use std::fmt::Display;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pq_core::store::Store;
use pq_core::{Control, Failure, Handler, JobId, Outcome, Pq, Report, StopMode, Task, Worker};

use super::{Harness, TIMEOUT};
use crate::Fixture;

/// The records of handlers, in order.
pub(crate) struct Seen<T>(Arc<Mutex<Vec<T>>>);

impl<T> Clone for Seen<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Seen<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn push(&self, item: T) {
        self.0.lock().unwrap().push(item);
    }

    pub(crate) fn all(&self) -> Vec<T>
    where
        T: Clone,
    {
        self.0.lock().unwrap().clone()
    }
}

/// A lease that a worker extends many times a second.
///
/// A slow machine may extend such a lease too late. A case that uses it must therefore disable maintenance, which
/// alone returns the jobs of expired leases.
pub(crate) const SHORT_LEASE: Duration = Duration::from_millis(150);

/// Returns the task that most cases use.
pub(crate) fn task<F: Fixture, A>(harness: &Harness<F>) -> Task<F::Store, A> {
    harness.named::<()>("apples").task("eat")
}

/// Returns a transactional and a leased handler that do the same work.
pub(crate) fn both<F: Fixture, A, R, E>(
    task: &Task<F::Store, A>,
    work: impl Fn(pq_core::Job<A>) -> Result<R, E> + Clone + Send + Sync + 'static,
) -> [Handler<F::Store>; 2]
where
    A: serde::de::DeserializeOwned + 'static,
    R: Into<Outcome>,
    E: Display,
{
    let other = work.clone();
    [task.transactional(move |_, job| work(job)), task.leased(move |_, job| other(job))]
}

/// Runs a worker with this handler until its queue is empty.
pub(crate) fn run_until_empty<F: Fixture>(harness: &Harness<F>, handler: Handler<F::Store>) -> Report {
    Worker::new(&harness.pq).serve(handler).run_until_empty().unwrap()
}

/// Does the same, and fails if the handler panics, as it does if one of its assertions fails.
pub(crate) fn run_asserting<F: Fixture>(harness: &Harness<F>, handler: Handler<F::Store>) -> Report {
    let panics = Seen::new();
    let seen = panics.clone();
    let worker = Worker::new(&harness.pq).serve(handler).on_failure(move |_, failure, _| {
        if let Failure::Panic(text) = failure {
            seen.push(text.clone());
        }
    });
    let report = worker.run_until_empty().unwrap();
    assert_eq!(panics.all(), [""; 0]);
    report
}

/// The two ends of a gated handler, which reports that it has started and waits for the signal to end.
pub(crate) struct Gate {
    pub(crate) started: Receiver<u32>,
    pub(crate) proceed: Sender<()>,
}

/// Returns a gated handler of leased jobs.
pub(crate) fn gate<F: Fixture>(harness: &Harness<F>) -> (Handler<F::Store>, Gate) {
    let (start, started) = channel();
    let (proceed, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let handler = task::<F, u32>(harness).leased(move |_, job| {
        start.send(job.data).unwrap();
        wait.lock().unwrap().recv_timeout(TIMEOUT).map_err(|_| "no signal to proceed came")
    });
    (handler, Gate { started, proceed })
}

/// Stops a worker when a case fails. Its threads would otherwise keep the case from ending.
struct StopOnDrop<'c, S: Store>(&'c Control<S>);

impl<S: Store> Drop for StopOnDrop<'_, S> {
    fn drop(&mut self) {
        self.0.stop(StopMode::Abort);
    }
}

/// Runs a worker while `body` runs, and returns the worker's report.
pub(crate) fn run_beside<F: Fixture>(
    worker: Worker<F::Store>,
    body: impl FnOnce(&Control<F::Store>),
) -> Report {
    let control = worker.control();
    std::thread::scope(|threads| {
        let running = threads.spawn(|| worker.run().unwrap());
        let _stop = StopOnDrop(&control);
        body(&control);
        running.join().unwrap()
    })
}

/// Waits until the worker has extended a running job's lease past the end of the next term.
pub(crate) fn wait_for_extension<S: Store>(pq: &Pq<S>, job: JobId, lease: Duration) {
    let lease_until = || pq.find(job).ok().flatten().unwrap().lease_until.unwrap();
    let first = lease_until();
    wait_until("the lease is extended", || lease_until() > first + lease);
}

/// Polls a condition until it is true.
pub(crate) fn wait_until(condition: &str, mut is_true: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_true() {
        assert!(started.elapsed() < TIMEOUT, "timed out waiting until {condition}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
