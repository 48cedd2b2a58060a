//! Calls of the store, made in a thread of their own so that the dispatcher goes on without one that hangs.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::lock::lock;

/// How long the dispatcher waits for a call, and how long while others are late.
const PATIENCE: Duration = Duration::from_secs(1);
const SHORT_PATIENCE: Duration = Duration::from_millis(100);

/// The maximum number of late calls. Each has a connection, and some must be left for leases and maintenance.
const MAX_LATE: usize = 4;

/// What a thread makes calls by.
type Work = Box<dyn FnOnce() + Send>;

/// The result of a call, or its panic.
pub(super) type Made<R> = thread::Result<R>;

/// Makes calls, and counts those that are late.
#[derive(Default)]
pub(super) struct Calls {
    /// The thread that makes calls, unless its last one is late. It ends when this is dropped.
    thread: Option<Sender<Work>>,
    late: usize,
}

/// The result of a call, as its two threads share it.
enum Answer<R> {
    Awaited,
    Here(Made<R>),
    /// The call is late.
    NotAwaited,
}

impl Calls {
    /// Makes a call, and returns its result.
    ///
    /// Returns `None` if the call is late. Its result is then passed to `late`, in another thread, which must have the
    /// dispatcher call [`Calls::answered`].
    pub(super) fn make<R: Send + 'static>(
        &mut self,
        call: impl FnOnce() -> R + Send + 'static,
        late: impl FnOnce(Made<R>) + Send + 'static,
    ) -> Option<R> {
        let shared = Arc::new((Mutex::new(Answer::Awaited), Condvar::new()));
        let answer = Arc::clone(&shared);
        self.start(Box::new(move || {
            let made = catch_unwind(AssertUnwindSafe(call));
            let mut state = lock(&answer.0);
            if matches!(*state, Answer::NotAwaited) {
                drop(state);
                return late(made);
            }
            *state = Answer::Here(made);
            answer.1.notify_one();
        }));
        let patience = if self.late == 0 { PATIENCE } else { SHORT_PATIENCE };
        let is_awaited = |answer: &mut Answer<R>| matches!(answer, Answer::Awaited);
        let waited = shared.1.wait_timeout_while(lock(&shared.0), patience, is_awaited);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, Answer::NotAwaited) {
            Answer::Here(made) => Some(made.unwrap_or_else(|panic| resume_unwind(panic))),
            Answer::Awaited | Answer::NotAwaited => {
                self.late += 1;
                self.thread = None;
                None
            }
        }
    }

    /// Passes work to the thread, and starts one if there is none.
    fn start(&mut self, work: Work) {
        let work = match &self.thread {
            Some(thread) => match thread.send(work) {
                Ok(()) => return,
                Err(returned) => returned.0,
            },
            None => work,
        };
        let (sender, received) = channel::<Work>();
        // The receiver is there, so this cannot fail.
        let _ = sender.send(work);
        thread::spawn(move || received.iter().for_each(|work| work()));
        self.thread = Some(sender);
    }

    /// Records that the result of a late call has arrived.
    pub(super) fn answered(&mut self) {
        self.late -= 1;
    }

    pub(super) fn are_late(&self) -> bool {
        self.late > 0
    }

    /// Returns whether no call can be made before a late one has ended.
    pub(super) fn is_full(&self) -> bool {
        self.late >= MAX_LATE
    }

    /// Returns whether a take can be made. The last call is left for outcomes.
    pub(super) fn may_take(&self) -> bool {
        self.late < MAX_LATE - 1
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_call_that_hangs_is_late_and_stops_no_other_one() {
        let (mut calls, (go_on, wait), (sender, late)) = (Calls::default(), channel(), channel());
        assert_eq!(calls.make(|| 1, |_| ()), Some(1));
        let begun = Instant::now();
        let hangs = move || wait.recv().is_ok();
        let send = move |made: Made<bool>| sender.send(made.is_ok_and(|is_ok| is_ok)).expect("a receiver");
        assert_eq!(calls.make(hangs, send), None);
        assert!(begun.elapsed() >= PATIENCE && calls.are_late());
        let is_made = (0..10).any(|_| {
            // On a busy machine the answer may be late.
            let made = calls.make(|| 2, |_| ());
            calls.late = 1;
            made == Some(2)
        });
        assert!(is_made, "another thread makes it");
        let (open, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for late in 1..MAX_LATE {
            assert!(!calls.is_full(), "{late} calls are late");
            assert_eq!(calls.may_take(), late < MAX_LATE - 1);
            let gate = Arc::clone(&gate);
            assert_eq!(calls.make(move || lock(&gate).recv().is_ok(), |_| ()), None);
        }
        assert!(calls.is_full() && !calls.may_take());
        drop(open);
        go_on.send(()).expect("the call waits");
        assert!(late.recv().expect("its result comes late"));
        calls.answered();
        assert!(!calls.is_full() && !calls.may_take());
    }

    #[test]
    #[should_panic(expected = "on purpose")]
    fn a_panic_of_a_call_is_one_of_the_dispatcher() {
        Calls::default().make(|| panic!("on purpose"), |_: Made<()>| ());
    }
}
