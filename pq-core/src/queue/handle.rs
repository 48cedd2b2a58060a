//! The handle, which names queues.

use std::marker::PhantomData;
use std::sync::Arc;

use super::Queue;
use crate::{
    CancellationToken, Codec, Error, Json, MaintenanceReport, PayloadLimits, QueueName, Retention, Store,
    Trace,
};

/// A handle to the queues of one store. Cheap to clone, and usable from many threads at once.
pub struct Pq<S> {
    pub(super) store: Arc<S>,
    pub(super) codec: Arc<dyn Codec>,
    pub(super) limits: PayloadLimits,
    pub(super) stop: Option<CancellationToken>,
    pub(super) trace: Option<TraceSource>,
}

/// Gives the context of the trace that the caller is in.
type TraceSource = Arc<dyn Fn() -> Trace + Send + Sync>;

impl<S> Clone for Pq<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            codec: Arc::clone(&self.codec),
            limits: self.limits,
            stop: self.stop.clone(),
            trace: self.trace.clone(),
        }
    }
}

impl<S: Store> Pq<S> {
    /// A handle to the queues of this store, with JSON as it is and the default limits.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self {
            store: Arc::new(store),
            codec: Arc::new(Json),
            limits: PayloadLimits::default(),
            stop: None,
            trace: None,
        }
    }

    /// The queues named from here on encode and decode their payloads with this codec.
    #[must_use]
    pub fn with_codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.codec = codec;
        self
    }

    /// The queues named from here on refuse larger payloads than this.
    #[must_use]
    pub fn with_limits(mut self, limits: PayloadLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The waits of the queues named from here on end when `stop` says so.
    #[must_use]
    pub fn with_stop(mut self, stop: &CancellationToken) -> Self {
        self.stop = Some(stop.clone());
        self
    }

    /// The calls of tasks carry what this function gives when they are made: the context of the caller's
    /// trace, to be found by the handler ([`crate::Context::trace`]) and by middleware.
    #[must_use]
    pub fn with_trace(mut self, trace: impl Fn() -> Trace + Send + Sync + 'static) -> Self {
        self.trace = Some(Arc::new(trace));
        self
    }

    /// The queue of this name, whose payloads are of type `T`. Costs nothing: a queue is there as
    /// soon as it is named.
    ///
    /// Use [`serde_json::Value`] for any JSON, or `Box<serde_json::value::RawValue>` for its text,
    /// byte for byte.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidQueueName`].
    pub fn queue<T>(&self, name: impl AsRef<str>) -> Result<Queue<S, T>, Error> {
        let name = QueueName::new(name)?;
        Ok(Queue { pq: self.clone(), name, payload: PhantomData })
    }

    /// Runs `work` in a transaction on a connection of the handle's own: `Ok` commits, an error or a
    /// panic rolls back. Use [`Queue::on`] with the connection inside of it.
    ///
    /// # Errors
    ///
    /// What `work` returned, or the store's own.
    pub fn transaction<R, E: From<S::Error>>(
        &self,
        work: impl FnOnce(&mut S::Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        self.store.with_connection(|conn| self.store.transaction(conn, work))
    }

    /// Does what any process may do at any time, and every [`crate::Worker`] does: puts the periodic jobs that are
    /// due, returns the jobs of leases that are over, some at a time ([`MaintenanceReport::more`]), and prunes the archive by these
    /// bounds. `None` says that another process is at the latter two.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn maintain(&self, retention: &Retention) -> Result<Option<MaintenanceReport>, S::Error> {
        self.store.with_connection(|conn| {
            crate::cron::fire_due_crons(&*self.store, conn)?;
            self.store.maintain(conn, retention)
        })
    }

    /// The store behind the handle.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }
}
