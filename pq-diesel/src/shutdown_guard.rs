//! Makes the end of a handle wait for its threads and connections.
//!
//! While a process exits, the memory of libpq and of the TLS library is torn down. A thread that is inside of them at
//! that moment crashes. A handle has such threads (r2d2 opens connections in threads of its own, and the listener is
//! one), so dropping a handle waits for them.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The longest wait. A thread may be inside of libpq for as long as an unreachable server lets it.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Counts the threads and connections that must end before the handle.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShutdownGuard(Arc<(Mutex<usize>, Condvar)>);

/// One thread or connection, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Guarded(ShutdownGuard);

impl ShutdownGuard {
    /// Counts one more thread or connection.
    pub(crate) fn enter(&self) -> Guarded {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Guarded(self.clone())
    }

    /// Waits until the count is zero, at most [`MAX_WAIT`].
    pub(crate) fn wait(&self) {
        let (count, changed) = &*self.0;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = changed.wait_timeout_while(count, MAX_WAIT, |count| *count > 0);
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let (count, changed) = &*self.0.0;
        *count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        changed.notify_all();
    }
}
