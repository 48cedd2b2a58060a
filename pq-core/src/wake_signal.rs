//! The signal that a waiting thread sleeps on.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::lock::lock;

/// Wakes waiting threads when a poll may find a job.
///
/// A notification is a hint and is never lost: a thread that read [`WakeSignal::generation`] before the notification
/// does not sleep past it.
#[derive(Debug, Default)]
pub struct WakeSignal {
    generation: Mutex<u64>,
    changed: Condvar,
}

impl WakeSignal {
    /// Creates a signal that has not been notified.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Wakes every thread that sleeps on the signal, now or at its next sleep.
    pub fn notify(&self) {
        *lock(&self.generation) += 1;
        self.changed.notify_all();
    }

    /// Returns how many times the signal has been notified.
    #[must_use]
    pub fn generation(&self) -> u64 {
        *lock(&self.generation)
    }

    /// Sleeps until the generation differs from `seen`, or for `at_most`.
    ///
    /// Uses no CPU while it sleeps, and does not return earlier.
    pub fn wait_past(&self, seen: u64, at_most: Duration) {
        let until = Instant::now().checked_add(at_most);
        let mut generation = lock(&self.generation);
        while *generation == seen {
            let left = match until.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return,
                Some(left) => left,
                None => Duration::MAX,
            };
            generation =
                self.changed.wait_timeout(generation, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
