//! What the futures on the executor report to the thread that started them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::calls::Made;
use crate::handler::HandlerResult;
use crate::lock::lock;
use crate::{Outcome, Taken, WakeSignal};

/// What has happened to a future, or to a late call.
pub(super) enum Event<E> {
    /// The handler of a leased job has ended.
    HandlerEnded(HandlerResult),
    /// An attempt has taken a job in its transaction.
    JobFound,
    /// The transaction of an attempt has ended.
    AttemptEnded(AttemptEnd<E>),
    /// A late take from the queue at this position has ended.
    Taken { reserved: usize, taken: Made<Result<Taken, E>> },
    /// Late outcomes of this many jobs of the lease were passed to the store.
    Settled { lease: i64, jobs: usize, made: Made<()> },
}

/// How an attempt ended that took its job in its transaction.
pub(super) enum AttemptEnd<E> {
    /// There was no job; the next scheduled one is due after this time, if there is one.
    Empty { next_due: Option<Duration> },
    /// The job must be run under a lease.
    NeedsLease,
    /// A job was run, and its outcome is stored.
    Ran,
    /// The transaction was rolled back, or it is not known whether it was committed.
    Failed(E),
    /// Its future was dropped, and the transaction was rolled back.
    Dropped,
}

/// Events, each with the number of its future.
type Numbered<E> = Vec<(usize, Event<E>)>;

/// The events that the thread has not handled, or `None` when it has ended, and the signal that wakes it.
pub(super) struct Events<E> {
    events: Mutex<Option<Numbered<E>>>,
    signal: Arc<WakeSignal>,
}

impl<E> Events<E> {
    pub(super) fn new(signal: &Arc<WakeSignal>) -> Arc<Self> {
        Arc::new(Self { events: Mutex::new(Some(Vec::new())), signal: Arc::clone(signal) })
    }

    /// Returns the events since the last call.
    pub(super) fn take(&self) -> Numbered<E> {
        lock(&self.events).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Returns the last events, and refuses those that come later, because the thread ends.
    pub(super) fn close(&self) -> Numbered<E> {
        lock(&self.events).take().unwrap_or_default()
    }

    /// Passes an event to the thread. Returns it if the thread has ended.
    pub(super) fn push(&self, number: usize, event: Event<E>) -> Option<Event<E>> {
        let is_first = {
            let mut events = lock(&self.events);
            let Some(events) = events.as_mut() else { return Some(event) };
            events.push((number, event));
            events.len() == 1
        };
        // The thread takes all events when it wakes.
        if is_first {
            self.signal.notify();
        }
        None
    }
}

/// Sends the result of one handler. If the handler is dropped before it ends, its job is given back.
pub(super) struct ResultSender<E> {
    events: Arc<Events<E>>,
    number: usize,
    is_sent: bool,
}

impl<E> ResultSender<E> {
    pub(super) fn new(events: &Arc<Events<E>>, number: usize) -> Self {
        Self { events: Arc::clone(events), number, is_sent: false }
    }

    pub(super) fn send(mut self, result: HandlerResult) {
        self.is_sent = true;
        self.events.push(self.number, Event::HandlerEnded(result));
    }
}

impl<E> Drop for ResultSender<E> {
    fn drop(&mut self) {
        if !self.is_sent {
            self.events.push(self.number, Event::HandlerEnded(Ok(Outcome::GiveBack)));
        }
    }
}
