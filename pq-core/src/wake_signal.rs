//! The signal that a waiting thread or an asynchronous task sleeps on.

use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::lock::lock;

/// Wakes waiting threads and asynchronous tasks when a poll may find a job.
///
/// A notification is a hint and is never lost: a thread or a task that read [`WakeSignal::generation`] before the
/// notification does not sleep past it.
#[derive(Debug, Default)]
pub struct WakeSignal {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    /// The tasks that wait for the next notification.
    tasks: Vec<Waker>,
}

impl WakeSignal {
    /// Creates a signal that has not been notified.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Wakes everything that sleeps on the signal, now or at its next sleep.
    pub fn notify(&self) {
        let tasks = {
            let mut state = lock(&self.state);
            state.generation += 1;
            std::mem::take(&mut state.tasks)
        };
        self.changed.notify_all();
        tasks.into_iter().for_each(Waker::wake);
    }

    /// Returns how many times the signal has been notified.
    #[must_use]
    pub fn generation(&self) -> u64 {
        lock(&self.state).generation
    }

    /// Sleeps until the generation differs from `seen`, or for `at_most`.
    ///
    /// Uses no CPU while it sleeps, and does not return earlier.
    pub fn wait_past(&self, seen: u64, at_most: Duration) {
        let until = Instant::now().checked_add(at_most);
        let mut state = lock(&self.state);
        while state.generation == seen {
            let left = match until.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return,
                Some(left) => left,
                None => Duration::MAX,
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns a future that is ready when the generation differs from `seen`.
    #[must_use]
    pub fn passed(&self, seen: u64) -> Passed<'_> {
        Passed { signal: self, seen }
    }
}

/// A future that waits for a notification. Created by [`WakeSignal::passed`]. It can be dropped at any time.
#[derive(Debug)]
pub struct Passed<'s> {
    signal: &'s WakeSignal,
    seen: u64,
}

impl Future for Passed<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.signal.state);
        if state.generation != self.seen {
            return Poll::Ready(());
        }
        if !state.tasks.iter().any(|task| task.will_wake(context.waker())) {
            state.tasks.push(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_notification_wakes_a_task_once_and_is_not_lost() {
        let (signal, count) = (WakeSignal::new(), Arc::new(Count::default()));
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let seen = signal.generation();
        let mut wait = pin!(signal.passed(seen));
        for _ in 0..3 {
            assert!(wait.as_mut().poll(&mut context).is_pending());
        }
        signal.notify();
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "the task is woken once, however often it was polled");
        assert!(wait.as_mut().poll(&mut context).is_ready());
        assert!(
            pin!(signal.passed(seen)).poll(&mut context).is_ready(),
            "a later wait sees the notification"
        );
    }
}
