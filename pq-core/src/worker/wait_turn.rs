//! The turn to wait: one thread of a worker polls on behalf of those that are idle.
//!
//! Idle threads that each poll would multiply the load. So the thread that has the turn waits for jobs, and passes the
//! turn on when it has taken some. A poll can hang, for example because its server process is stopped. The next thread
//! then takes the turn away, so that the worker continues and can be stopped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lock::lock;
use crate::{CancellationToken, WakeSignal};

/// The time after which a poll hangs, as far as the other threads are concerned.
const PATIENCE: Duration = Duration::from_secs(1);

/// The turn, and the threads that want it.
#[derive(Debug, Default)]
pub(super) struct WaitTurn(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many times the turn was taken. This is the number of the turn that is taken now.
    taken: u64,
    holder: Holder,
    /// The threads that want the turn, in order. Only the first one observes the holder.
    queue: VecDeque<Arc<WakeSignal>>,
}

/// What the thread that has the turn does.
#[derive(Debug, Default)]
enum Holder {
    #[default]
    None,
    Sleeps,
    PollsSince(Instant),
}

/// The turn of one thread. Passed on when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    of: &'a WaitTurn,
    number: u64,
}

impl WaitTurn {
    /// Waits for the turn. Returns `None` if `token` is cancelled.
    pub(super) fn take(&self, token: &CancellationToken) -> Option<Turn<'_>> {
        let signal = WakeSignal::new();
        let _registration = token.notifies(&signal);
        lock(&self.0).queue.push_back(Arc::clone(&signal));
        loop {
            let seen = signal.generation();
            if token.is_cancelled() {
                lock(&self.0).leave(&signal);
                return None;
            }
            let pause = {
                let mut state = lock(&self.0);
                match state.available_in(&signal) {
                    Duration::ZERO => {
                        state.leave(&signal);
                        state.taken += 1;
                        state.holder = Holder::PollsSince(Instant::now());
                        return Some(Turn { of: self, number: state.taken });
                    }
                    pause => pause,
                }
            };
            signal.wait_past(seen, pause);
        }
    }
}

impl State {
    /// Returns for how long the thread with this signal does not look again, unless it is notified.
    fn available_in(&self, signal: &Arc<WakeSignal>) -> Duration {
        if !self.queue.front().is_some_and(|first| Arc::ptr_eq(first, signal)) {
            return Duration::MAX;
        }
        match self.holder {
            Holder::None => Duration::ZERO,
            Holder::Sleeps => PATIENCE,
            Holder::PollsSince(since) => PATIENCE.saturating_sub(since.elapsed()),
        }
    }

    /// Removes a thread from the queue. The one that is first now begins to observe the holder.
    fn leave(&mut self, signal: &Arc<WakeSignal>) {
        self.queue.retain(|other| !Arc::ptr_eq(other, signal));
        self.notify_first();
    }

    fn notify_first(&self) {
        self.queue.front().iter().for_each(|first| first.notify());
    }
}

impl Turn<'_> {
    /// Records that the thread begins a poll.
    pub(super) fn begin_poll(&self) {
        self.set(Holder::PollsSince(Instant::now()));
    }

    /// Records that the thread sleeps until its next poll. Returns `false` if it has lost the turn.
    pub(super) fn end_poll(&self) -> bool {
        self.set(Holder::Sleeps)
    }

    /// Returns `false` and changes nothing if another thread has taken the turn.
    fn set(&self, holder: Holder) -> bool {
        let mut state = lock(&self.of.0);
        let is_held = state.taken == self.number;
        if is_held {
            state.holder = holder;
        }
        is_held
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.set(Holder::None) {
            lock(&self.of.0).notify_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_keeps_the_turn_and_one_whose_poll_hangs_loses_it() {
        let (turns, token) = (WaitTurn::default(), CancellationToken::new());
        let first = turns.take(&token);
        assert!(first.as_ref().is_some_and(Turn::end_poll));
        std::thread::scope(|threads| {
            let second = threads.spawn(|| turns.take(&token));
            std::thread::sleep(PATIENCE + PATIENCE / 4);
            assert!(!second.is_finished(), "a thread that sleeps lost the turn");
            first.iter().for_each(Turn::begin_poll);
            let second = second.join().ok().flatten();
            assert!(second.as_ref().is_some_and(Turn::end_poll), "the second thread has no turn");
            assert!(first.as_ref().is_some_and(|first| !first.end_poll()), "two threads have the turn");
            // The first one is late, and passes nothing on.
            drop(first);
            assert!(second.as_ref().is_some_and(Turn::end_poll));
            let third = threads.spawn(|| turns.take(&token));
            drop(second);
            assert!(third.join().is_ok_and(|third| third.is_some()));
        });
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_turn_at_once() {
        let (turns, token) = (WaitTurn::default(), CancellationToken::new());
        let _hangs = turns.take(&token);
        std::thread::scope(|threads| {
            let others: Vec<_> = (0..3).map(|_| threads.spawn(|| turns.take(&token))).collect();
            while lock(&turns.0).queue.len() < 3 {
                std::thread::yield_now();
            }
            token.cancel();
            assert!(others.into_iter().all(|other| other.join().is_ok_and(|turn| turn.is_none())));
        });
        assert!(lock(&turns.0).queue.is_empty());
    }
}
