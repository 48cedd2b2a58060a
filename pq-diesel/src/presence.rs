//! What must have ended before a handle is gone.
//!
//! libpq, and the TLS library below it, must not be at work in another thread while the process exits: what they
//! use is torn down then, and they crash. A handle has such threads (r2d2 opens connections in its own, and the
//! listener is one), so its end waits for theirs.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Counts what is present.
#[derive(Clone, Debug, Default)]
pub(crate) struct Present(Arc<(Mutex<usize>, Condvar)>);

/// Is present until it is dropped.
#[derive(Debug)]
pub(crate) struct Presence(Present);

impl Present {
    pub(crate) fn enter(&self) -> Presence {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Presence(self.clone())
    }

    /// Waits until nothing is present, but not for ever: a server that cannot be reached may keep a thread in
    /// libpq for as long as the connection string lets it.
    pub(crate) fn wait_for_all_to_leave(&self) {
        const AT_MOST: Duration = Duration::from_secs(5);
        let (count, changed) = &*self.0;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = changed.wait_timeout_while(count, AT_MOST, |count| *count > 0);
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let (count, changed) = &*self.0.0;
        *count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        changed.notify_all();
    }
}
