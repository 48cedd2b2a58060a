//! Iterating over the jobs of a queue.

use std::fmt;

use serde::de::DeserializeOwned;

use super::Queue;
use crate::{CancellationToken, Job, Store, Wait};

/// Gets one job after another. See [`Queue::iter`].
pub struct Iter<'a, S, T> {
    queue: &'a Queue<S, T>,
    wait: Wait,
}

impl<'a, S, T> Iter<'a, S, T> {
    pub(super) fn new(queue: &'a Queue<S, T>, wait: Wait) -> Self {
        Self { queue, wait }
    }
}

impl<S, T> fmt::Debug for Iter<'_, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("queue", &self.queue.name).field("wait", &self.wait).finish()
    }
}

impl<S: Store, T: DeserializeOwned> Iterator for Iter<'_, S, T> {
    type Item = Result<Option<Job<T>>, S::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let token = self.queue.pq.cancellation_token.as_ref();
        let is_cancelled = || token.is_some_and(CancellationToken::is_cancelled);
        if is_cancelled() {
            return None;
        }
        match self.queue.get(self.wait) {
            Err(_) if is_cancelled() => None,
            got => Some(got),
        }
    }
}

/// Waits up to one second for each job, as Python's `pq` does.
impl<'a, S: Store, T: DeserializeOwned> IntoIterator for &'a Queue<S, T> {
    type Item = Result<Option<Job<T>>, S::Error>;
    type IntoIter = Iter<'a, S, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter(Wait::default())
    }
}
