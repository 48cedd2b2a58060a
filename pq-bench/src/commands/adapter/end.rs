//! The end of the run, of which all threads are told.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct End {
    told: Mutex<bool>,
    bell: Condvar,
}

impl End {
    pub(super) fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_all();
    }

    pub(super) fn is_told(&self) -> bool {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps this long, and no longer than until the end. Whether the end has come.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        while !*told {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (told, _) = self.bell.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner);
        }
        *told
    }
}

/// Tells of the end when a thread is over, also by a panic: a run in which a part has ended measures nothing.
pub(super) struct Ends<'e>(pub(super) &'e End);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.tell();
    }
}
