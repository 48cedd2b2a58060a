//! The signal that ends all threads of a run.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct Shutdown {
    requested: Mutex<bool>,
    changed: Condvar,
}

impl Shutdown {
    pub(super) fn request(&self) {
        *self.requested.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub(super) fn is_requested(&self) -> bool {
        *self.requested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps for this time or until shutdown. Returns whether shutdown was requested.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut requested = self.requested.lock().unwrap_or_else(PoisonError::into_inner);
        while !*requested {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (requested, _) =
                self.changed.wait_timeout(requested, left).unwrap_or_else(PoisonError::into_inner);
        }
        *requested
    }
}

/// Requests shutdown when a thread ends, also by a panic, because a run without one of its threads measures
/// nothing.
pub(super) struct ShutdownOnDrop<'e>(pub(super) &'e Shutdown);

impl Drop for ShutdownOnDrop<'_> {
    fn drop(&mut self) {
        self.0.request();
    }
}
