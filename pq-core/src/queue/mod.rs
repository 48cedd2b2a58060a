//! The user's side: the handle, its queues, and what they do on whose connection.

mod bound;
mod get;
mod handle;
mod iter;
mod lease;
mod manage;
mod oversee;
mod put;

use std::marker::PhantomData;
use std::sync::Arc;

pub use bound::BoundQueue;
pub use handle::Pq;
pub use iter::Iter;

use crate::{CancellationToken, Codec, Counts, QueueName, Store, Trace};

/// A queue: a named line of jobs. Cheap to clone, and usable from many threads at once.
///
/// Its own methods run on connections of the handle's own. [`Queue::on`] does the same on the
/// caller's connection, inside the caller's transaction.
pub struct Queue<S, T> {
    pq: Pq<S>,
    name: QueueName,
    payload: PhantomData<fn(T) -> T>,
}

impl<S, T> Clone for Queue<S, T> {
    fn clone(&self) -> Self {
        Self { pq: self.pq.clone(), name: self.name.clone(), payload: PhantomData }
    }
}

impl<S: Store, T> Queue<S, T> {
    /// The queue's name.
    #[must_use]
    pub fn name(&self) -> &QueueName {
        &self.name
    }

    /// The same queue with another codec.
    #[must_use]
    pub fn with_codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.pq.codec = codec;
        self
    }

    /// The same queue, whose waits end when `stop` says so.
    #[must_use]
    pub fn with_stop(mut self, stop: &CancellationToken) -> Self {
        self.pq.stop = Some(stop.clone());
        self
    }

    /// The same queue on this connection: inside its transaction, if it is in one. What is done
    /// there commits or rolls back with what the caller does, and never before.
    pub fn on<'a>(&'a self, conn: &'a mut S::Conn) -> BoundQueue<'a, S, T> {
        BoundQueue::new(self, conn)
    }

    /// Counts the queue's jobs by state. No lock is taken, and none waited for.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn counts(&self) -> Result<Counts, S::Error> {
        let store = &*self.pq.store;
        store.with_connection(|conn| store.counts(conn, &self.name))
    }

    /// Deletes every job of the queue that nobody holds, scheduled ones included, and says how many.
    ///
    /// # Errors
    ///
    /// The store's own; nothing was deleted then.
    pub fn clear(&self) -> Result<u64, S::Error> {
        let store = &*self.pq.store;
        store.with_connection(|conn| store.clear(conn, &self.name))
    }

    /// Runs `work` in a transaction, as [`Pq::transaction`] does.
    ///
    /// # Errors
    ///
    /// What `work` returned, or the store's own.
    pub fn transaction<R, E: From<S::Error>>(
        &self,
        work: impl FnOnce(&mut S::Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        self.pq.transaction(work)
    }

    pub(crate) fn store(&self) -> &S {
        &self.pq.store
    }

    /// The same queue, of whatever type.
    pub(crate) fn untyped(&self) -> Queue<S, ()> {
        Queue { pq: self.pq.clone(), name: self.name.clone(), payload: PhantomData }
    }

    /// The context of the trace that the caller is in.
    pub(crate) fn trace(&self) -> Trace {
        self.pq.trace.as_ref().map(|trace| trace()).unwrap_or_default()
    }
}
