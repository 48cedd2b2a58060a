//! Streams of jobs.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use pq_core::{Job, Wait};
use pq_diesel::Error;
use serde::de::DeserializeOwned;

use crate::pool::BoxFuture;
use crate::queue::Queue;

/// A stream of jobs. Created by [`Queue::stream`].
pub struct JobStream<T> {
    queue: Queue<T>,
    next: Option<BoxFuture<'static, Result<Option<Job<T>>, Error>>>,
}

impl<T> JobStream<T> {
    pub(crate) fn new(queue: Queue<T>) -> Self {
        Self { queue, next: None }
    }
}

impl<T> fmt::Debug for JobStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobStream").field("queue", self.queue.name()).finish_non_exhaustive()
    }
}

impl<T: DeserializeOwned + Send + 'static> Stream for JobStream<T> {
    type Item = Result<Job<T>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let queue = self.queue.clone();
            let next =
                self.next.get_or_insert_with(|| Box::pin(async move { queue.get(Wait::Forever).await }));
            let job = ready!(next.as_mut().poll(context));
            self.next = None;
            match job {
                Ok(Some(job)) => return Poll::Ready(Some(Ok(job))),
                Ok(None) => {}
                Err(error) if error.is_stopped() => return Poll::Ready(None),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}
