//! What a waiting thread sleeps on, and what ends its sleep.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What a waiting thread sleeps on. A store rings it when a look may be worth it.
///
/// A ring is a hint and is never lost: whoever read [`Bell::count`] before it does not sleep past it.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<u64>,
    changed: Condvar,
}

impl Bell {
    /// A bell that has not been rung.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Wakes whoever sleeps on the bell, now or at its next sleep.
    pub fn ring(&self) {
        *lock(&self.rung) += 1;
        self.changed.notify_all();
    }

    /// How often the bell has been rung.
    #[must_use]
    pub fn count(&self) -> u64 {
        *lock(&self.rung)
    }

    /// Sleeps until the bell has been rung more than `heard` times, or for `at_most`. Uses no CPU
    /// while it sleeps, and does not return before either.
    pub fn sleep(&self, heard: u64, at_most: Duration) {
        let until = Instant::now().checked_add(at_most);
        let mut rung = lock(&self.rung);
        while *rung == heard {
            let left = match until.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return,
                Some(left) => left,
                None => Duration::MAX,
            };
            rung = self.changed.wait_timeout(rung, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Ends waits from another thread: every wait of the handles that were given this stop returns
/// [`crate::Error::Stopped`], those under way at once and later ones before they begin.
///
/// Clones are the same stop. What is under way in the database is finished first, so nothing is lost.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<StopState>);

#[derive(Debug, Default)]
struct StopState {
    stopped: AtomicBool,
    bells: Mutex<Vec<Weak<Bell>>>,
}

impl Stop {
    /// A stop that has not been asked for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the waits. There is no way back.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        for bell in lock(&self.0.bells).iter().filter_map(Weak::upgrade) {
            bell.ring();
        }
    }

    /// Whether [`Stop::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    /// Has the bell rung by [`Stop::stop`] while the guard lives. The caller looks at
    /// [`Stop::is_stopped`] after this, or a stop in between would be missed.
    pub(crate) fn rings(&self, bell: &Arc<Bell>) -> StopGuard<'_> {
        lock(&self.0.bells).push(Arc::downgrade(bell));
        StopGuard { stop: self, bell: Arc::downgrade(bell) }
    }
}

/// Takes the bell off its [`Stop`] again.
pub(crate) struct StopGuard<'a> {
    stop: &'a Stop,
    bell: Weak<Bell>,
}

impl Drop for StopGuard<'_> {
    fn drop(&mut self) {
        lock(&self.stop.0.bells).retain(|bell| !bell.ptr_eq(&self.bell));
    }
}

/// No invariant spans a panic under these locks, so a poisoned one is as good as new.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
