//! A token that ends waits from another thread or task.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::WakeSignal;
use crate::lock::lock;

/// Ends waits from another thread.
///
/// Every wait of the handles that were given this token returns [`crate::Error::Stopped`]: waits in progress at once,
/// and later ones before they begin. A statement that is being executed is finished first, so nothing is lost.
///
/// Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct CancellationToken(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cancelled: AtomicBool,
    signals: Mutex<Vec<Weak<WakeSignal>>>,
}

impl CancellationToken {
    /// Creates a token that has not been cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the waits. This cannot be undone.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        for signal in lock(&self.0.signals).iter().filter_map(Weak::upgrade) {
            signal.notify();
        }
    }

    /// Returns whether [`CancellationToken::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Waits until [`CancellationToken::cancel`] is called. The future can be dropped at any time.
    pub async fn cancelled(&self) {
        let signal = WakeSignal::new();
        let _registration = self.notifies(&signal);
        while !self.is_cancelled() {
            signal.passed(0).await;
        }
    }

    /// Makes [`CancellationToken::cancel`] notify `signal` while the guard lives.
    ///
    /// The caller must read [`CancellationToken::is_cancelled`] after this call, or it misses a cancellation that came
    /// before.
    pub fn notifies(&self, signal: &Arc<WakeSignal>) -> Registration<'_> {
        lock(&self.0.signals).push(Arc::downgrade(signal));
        Registration { token: self, signal: Arc::downgrade(signal) }
    }
}

/// Removes the signal from its [`CancellationToken`] when it is dropped.
#[derive(Debug)]
pub struct Registration<'t> {
    token: &'t CancellationToken,
    signal: Weak<WakeSignal>,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        lock(&self.token.0.signals).retain(|signal| !signal.ptr_eq(&self.signal));
    }
}
