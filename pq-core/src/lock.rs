//! Locking a mutex whether or not it is poisoned.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks the mutex. Ignores poison: no invariant of this crate spans a panic under one of its locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
