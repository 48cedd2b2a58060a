//! The user's side: the handle, its queues, and queues on the caller's connection.

mod admin;
mod archive;
mod audit;
mod bound;
#[cfg(feature = "cron")]
mod cron;
mod get;
mod handle;
mod iter;
mod lease;
mod limits;
mod notes;
mod operate;
mod put;
mod result;
mod spans;
mod steps;
mod workflow;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

pub use bound::BoundQueue;
pub use get::Decoded;
pub use handle::Pq;
pub use iter::Iter;

use crate::{CancellationToken, Codec, QueueName, Store, Trace};

/// A queue of jobs with payloads of type `T`.
///
/// Cheap to clone, and usable from many threads at once. Its methods use connections of the handle.
/// [`Queue::on`] gives the same methods on the caller's connection, inside the caller's transaction.
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

impl<S, T> fmt::Debug for Queue<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Returns the queue's name.
    #[must_use]
    pub fn name(&self) -> &QueueName {
        &self.name
    }

    /// Returns the handle that the queue belongs to.
    #[must_use]
    pub fn pq(&self) -> &Pq<S> {
        &self.pq
    }

    /// Replaces the codec of the payloads. Default: the handle's.
    #[must_use]
    pub fn with_codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.pq.codec = codec;
        self
    }

    /// Sets a token that ends the queue's waits with [`crate::Error::Stopped`]. Default: the handle's.
    #[must_use]
    pub fn with_cancellation_token(mut self, token: &CancellationToken) -> Self {
        self.pq.cancellation_token = Some(token.clone());
        self
    }

    /// Binds the queue to a connection: its calls are part of the transaction that the connection is in.
    ///
    /// They commit or roll back with the caller's own writes.
    pub fn on<'a>(&'a self, conn: &'a mut S::Conn) -> BoundQueue<'a, S, T> {
        BoundQueue::new(self, conn)
    }

    /// Runs `work` in a transaction on a connection of the handle, as [`Pq::transaction`] does.
    ///
    /// # Errors
    ///
    /// The error of `work`, or the store's error.
    pub fn transaction<R, E: From<S::Error>>(
        &self,
        work: impl FnOnce(&mut S::Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        self.pq.transaction(work)
    }

    pub(crate) fn store(&self) -> &S {
        &self.pq.store
    }

    /// Returns the same queue without its payload type.
    pub(crate) fn untyped(&self) -> Queue<S, ()> {
        Queue { pq: self.pq.clone(), name: self.name.clone(), payload: PhantomData }
    }

    /// Returns the trace context of the caller.
    pub(crate) fn trace(&self) -> Trace {
        self.pq.tracer().map(|tracer| tracer.context()).unwrap_or_default()
    }
}
