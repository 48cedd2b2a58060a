//! Getting one job after the other.

use serde::de::DeserializeOwned;

use super::Queue;
use crate::{CancellationToken, Job, Store, Wait};

/// Gets one job after the other; see [`Queue::iter`].
pub struct Iter<'a, S, T> {
    queue: &'a Queue<S, T>,
    wait: Wait,
}

impl<'a, S, T> Iter<'a, S, T> {
    pub(super) fn new(queue: &'a Queue<S, T>, wait: Wait) -> Self {
        Self { queue, wait }
    }
}

impl<S: Store, T: DeserializeOwned> Iterator for Iter<'_, S, T> {
    type Item = Result<Option<Job<T>>, S::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let stopped = || self.queue.pq.stop.as_ref().is_some_and(CancellationToken::is_cancelled);
        if stopped() {
            return None;
        }
        match self.queue.get(self.wait) {
            Err(_) if stopped() => None,
            got => Some(got),
        }
    }
}

/// Waits a second for each job, as Python's `pq` does.
impl<'a, S: Store, T: DeserializeOwned> IntoIterator for &'a Queue<S, T> {
    type Item = Result<Option<Job<T>>, S::Error>;
    type IntoIter = Iter<'a, S, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter(Wait::default())
    }
}
