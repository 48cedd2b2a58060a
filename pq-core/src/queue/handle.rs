//! The handle, which names queues and runs transactions.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::Queue;
use crate::put_counts::{ByTask, PUT_COUNTS_INTERVAL, PutCounts};
use crate::{
    CancellationToken, Codec, Error, Json, MaintenanceReport, PayloadLimits, QueueName, Retention, Store,
    TaskCounters, Tracer, workflow,
};

/// A handle to the queues of one store.
///
/// Cheap to clone, and usable from many threads at once.
pub struct Pq<S> {
    // Dropped before the store, which its thread uses.
    pub(super) put_counts: Option<Arc<PutCounts>>,
    pub(super) store: Arc<S>,
    pub(super) codec: Arc<dyn Codec>,
    pub(super) limits: PayloadLimits,
    pub(super) cancellation_token: Option<CancellationToken>,
    pub(super) tracer: Option<Arc<dyn Tracer>>,
    pub(super) actor: Option<Arc<str>>,
    pub(super) operation_timeout: Option<Duration>,
}

impl<S> Clone for Pq<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            codec: Arc::clone(&self.codec),
            limits: self.limits,
            cancellation_token: self.cancellation_token.clone(),
            tracer: self.tracer.clone(),
            actor: self.actor.clone(),
            operation_timeout: self.operation_timeout,
            put_counts: self.put_counts.clone(),
        }
    }
}

/// Shows the payload limits, since a store need not implement `Debug`.
impl<S> fmt::Debug for Pq<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pq").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl<S> AsRef<Pq<S>> for Pq<S> {
    fn as_ref(&self) -> &Pq<S> {
        self
    }
}

impl<S: Store> Pq<S> {
    /// Creates a handle to the queues of a store, with the codec [`Json`] and the default [`PayloadLimits`].
    #[must_use]
    pub fn new(store: S) -> Self {
        Self {
            store: Arc::new(store),
            codec: Arc::new(Json),
            limits: PayloadLimits::default(),
            cancellation_token: None,
            tracer: None,
            actor: None,
            operation_timeout: None,
            put_counts: Some(Arc::default()),
        }
    }

    /// Sets the codec of the queues that the handle names from now on. Default: [`Json`].
    #[must_use]
    pub fn with_codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.codec = codec;
        self
    }

    /// Sets the largest payload that the queues accept. Default: [`PayloadLimits::default`].
    #[must_use]
    pub fn with_limits(mut self, limits: PayloadLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets a token that ends the waits of the queues. Default: none.
    #[must_use]
    pub fn with_cancellation_token(mut self, token: &CancellationToken) -> Self {
        self.cancellation_token = Some(token.clone());
        self
    }

    /// Sets what connects the handle to a system of distributed tracing. Default: none.
    ///
    /// It can be a function that returns the caller's trace context. Each job that the handle puts carries the
    /// context of its put. The handler reads it by [`crate::Context::trace`], and middleware gets it too. A periodic
    /// job has none. A job that is moved, retried or requeued keeps it. Any other [`Tracer`] also describes the spans
    /// of puts, takes, handlers and settlements.
    #[must_use]
    pub fn with_trace(mut self, tracer: impl Tracer + 'static) -> Self {
        self.tracer = Some(Arc::new(tracer));
        self
    }

    /// Lets the handle count none of its puts, so that nothing of them is in the store's counters. See
    /// [`Pq::store_put_counts`].
    #[must_use]
    pub fn without_put_counts(mut self) -> Self {
        self.put_counts = None;
        self
    }

    /// Sets how long each statement of an operation may take, if the store can limit it. Default: no limit for
    /// operations whose work grows with the queue, and that of the store's calls for the others.
    ///
    /// An operation is a call that manages queues, jobs, workers or periodic jobs. One that takes longer fails with
    /// the store's error, and what it had changed is rolled back, but for the batches that [`Pq::operate`] has
    /// committed. The methods of [`Queue::on`] are not limited.
    #[must_use]
    pub fn with_operation_timeout(mut self, timeout: Duration) -> Self {
        self.operation_timeout = Some(timeout);
        self
    }

    pub(crate) fn tracer(&self) -> Option<&Arc<dyn Tracer>> {
        self.tracer.as_ref()
    }

    /// Returns the queue of this name, with payloads of type `T`.
    ///
    /// Nothing is created in the store: a queue exists as soon as a job is put. For any JSON use
    /// [`serde_json::Value`]. For JSON text, kept byte for byte, use `Box<serde_json::value::RawValue>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidQueueName`].
    pub fn queue<T>(&self, name: impl AsRef<str>) -> Result<Queue<S, T>, Error> {
        let name = QueueName::new(name)?;
        Ok(Queue { pq: self.clone(), name, payload: PhantomData })
    }

    /// Runs `work` in a transaction on a connection of the handle.
    ///
    /// `Ok` commits. An error or a panic rolls back. To use a queue in the transaction, bind it to the connection by
    /// [`Queue::on`].
    ///
    /// # Errors
    ///
    /// The error of `work`, or the store's error.
    pub fn transaction<R, E: From<S::Error>>(
        &self,
        work: impl FnOnce(&mut S::Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        let store = &*self.store;
        store
            .with_connection(|conn| store.transaction(conn, |conn| store.with_call_timeout(conn, None, work)))
    }

    /// Runs the maintenance that every [`crate::Worker`] runs: for programs without a worker.
    ///
    /// It puts the periodic jobs that are due, returns the jobs of expired leases in batches
    /// ([`MaintenanceReport::more`]), and prunes the archive by `retention`. Any number of processes may call it at any
    /// time. Returns `None` if another process is returning jobs and pruning now.
    ///
    /// A periodic job that cannot be put prevents nothing else ([`crate::fire_due_crons`]).
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn maintain(&self, retention: &Retention) -> Result<Option<MaintenanceReport>, S::Error> {
        self.store.with_connection(|conn| {
            #[cfg(feature = "cron")]
            let fired = crate::cron::bring_crons_forward(&*self.store, conn)
                .and_then(|()| crate::cron::fire_due_crons(self, conn));
            let mut report = self.store.maintain(conn, retention)?;
            if let Some(report) = report.as_mut().filter(|report| report.workflows) {
                // Jobs that wait again may wait for jobs that have ended.
                report.more |= workflow::advance(self, conn)?;
            }
            #[cfg(feature = "cron")]
            fired?;
            Ok(report)
        })
    }

    /// Adds what this handle and its clones have put to the store's counters ([`Pq::counters`]).
    ///
    /// A handle with connections of its own does that every 10 s, and when its last clone is dropped, so only a
    /// program that ends without dropping it needs this call.
    ///
    /// A put is counted when its call returns, also in a transaction that is rolled back later. One that met a job
    /// with its unique key is not counted. The jobs of periodic jobs and the calls that undo jobs of workflows are
    /// counted by the handle whose maintenance put them, after their commit. A crash loses what was counted since the
    /// last time.
    ///
    /// # Errors
    ///
    /// The store's errors. The counts are kept, unless the store may have added them.
    pub fn store_put_counts(&self) -> Result<(), S::Error> {
        self.put_counts.as_ref().map_or(Ok(()), |counts| counts.store(&*self.store))
    }

    /// Takes what [`Pq::store_put_counts`] would store, to store it by other means.
    #[doc(hidden)]
    #[must_use]
    pub fn take_put_counts(&self) -> Vec<TaskCounters> {
        self.put_counts.as_ref().map(|counts| counts.take()).unwrap_or_default()
    }

    /// Puts back counts that were taken and could not be stored.
    #[doc(hidden)]
    pub fn put_back_put_counts(&self, counted: Vec<TaskCounters>) {
        if let Some(counts) = &self.put_counts {
            counts.put_back(counted);
        }
    }

    /// Counts jobs of a queue that were put and call the same task, or none, after a blocking call.
    pub(crate) fn count_jobs(&self, queue: &QueueName, task: Option<Arc<str>>, jobs: u64) {
        if jobs > 0 {
            self.count_puts(queue, ByTask::of(task, jobs));
            self.store_put_counts_regularly();
        }
    }

    /// Counts jobs that were put.
    pub(super) fn count_puts(&self, queue: &QueueName, put: ByTask) {
        if let Some(counts) = &self.put_counts {
            counts.add(queue, put);
        }
    }

    /// Begins to store the counts of puts regularly, after a blocking call.
    pub(super) fn store_put_counts_regularly(&self) {
        if let Some(counts) = self.put_counts.as_ref().filter(|_| self.store.has_connections()) {
            counts.store_every(PUT_COUNTS_INTERVAL, &self.store);
        }
    }

    /// Returns the token that ends the waits of the queues, if one was set.
    #[must_use]
    pub fn cancellation_token(&self) -> Option<&CancellationToken> {
        self.cancellation_token.as_ref()
    }

    /// Returns the store behind the handle.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }
}
