//! The notes of running attempts, until they are stored.

use std::cell::RefCell;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use crate::lock::lock;
use crate::notes::PendingLines;
use crate::store::Notes;
use crate::worker::store_clock::StoreClock;
use crate::{Claim, LogLevel, LogLine, NewNotes, Progress};

/// The longest time that a handler waits for notes that are sent while it settles its job, in milliseconds.
const MAX_HOLD_BACK_MS: u32 = 100;

/// The notes of one attempt.
#[derive(Debug)]
pub(crate) struct JobNotes {
    job: Arc<Claim>,
    state: Mutex<State>,
    /// Held while notes are sent to the store, so that they are stored in their order.
    sending: Mutex<()>,
    registry: Arc<OpenNotes>,
}

#[derive(Debug, Default)]
struct State {
    lines: PendingLines,
    progress: Option<Progress>,
    /// Whether `progress` is not stored yet.
    has_new_progress: bool,
    is_registered: bool,
    /// Whether the handler has stored the notes in the transaction that settles its job. If that is rolled back, they
    /// are stored at the attempt's end.
    is_held_back: bool,
    /// Whether notes are being sent. They may come back.
    is_sending: bool,
    /// Whether the handler has ended. What other code notes then is dropped.
    has_ended: bool,
}

impl State {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && !self.has_new_progress
    }
}

/// The notes of all attempts of a worker that have noted anything.
#[derive(Debug)]
pub(crate) struct OpenNotes {
    all: Mutex<Vec<Arc<JobNotes>>>,
    clock: Arc<StoreClock>,
}

impl OpenNotes {
    pub(crate) fn new(clock: &Arc<StoreClock>) -> Arc<Self> {
        Arc::new(Self { all: Mutex::default(), clock: Arc::clone(clock) })
    }

    pub(crate) fn all(&self) -> Vec<Arc<JobNotes>> {
        lock(&self.all).clone()
    }
}

impl JobNotes {
    pub(crate) fn new(job: &Arc<Claim>, registry: &Arc<OpenNotes>) -> Arc<Self> {
        let (job, registry) = (Arc::clone(job), Arc::clone(registry));
        Arc::new(Self { job, state: Mutex::default(), sending: Mutex::default(), registry })
    }

    pub(crate) fn log(self: &Arc<Self>, level: LogLevel, text: &str) {
        let line = LogLine::new(self.registry.clock.now(), level, text);
        self.change(|state| state.lines.push(line));
    }

    pub(crate) fn set_progress(self: &Arc<Self>, progress: Progress) {
        self.change(|state| {
            state.progress = Some(progress);
            state.has_new_progress = true;
        });
    }

    fn change(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        if state.has_ended {
            return;
        }
        change(&mut state);
        // The registry is always locked after the state.
        if !mem::replace(&mut state.is_registered, true) {
            lock(&self.registry.all).push(Arc::clone(self));
        }
    }

    /// Drops what is noted from now on. Returns whether anything is left to store.
    pub(crate) fn end(self: &Arc<Self>) -> bool {
        let mut state = lock(&self.state);
        state.has_ended = true;
        state.is_held_back = false;
        let is_left = !state.is_empty() || state.is_sending;
        if mem::take(&mut state.is_registered) {
            lock(&self.registry.all).retain(|other| !Arc::ptr_eq(other, self));
        }
        is_left
    }

    /// Returns a copy of what is not stored yet, which the caller stores in a transaction that settles the job.
    ///
    /// Waits for notes that are sent now, but not for long: who sends them may hang with the store. If they are
    /// refused then, they are lost.
    pub(crate) fn hold_back(&self) -> Option<(Vec<LogLine>, Option<Progress>)> {
        let _sending = (0..MAX_HOLD_BACK_MS).find_map(|_| match self.sending.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(Duration::from_millis(1));
                None
            }
        });
        let mut state = lock(&self.state);
        if state.is_empty() {
            return None;
        }
        state.is_held_back = true;
        Some((state.lines.copy(), state.progress.clone()))
    }

    fn has_new(&self) -> bool {
        let state = lock(&self.state);
        !state.is_empty() && !state.is_held_back
    }

    fn take(&self) -> Option<(Vec<LogLine>, Option<Progress>)> {
        let mut state = lock(&self.state);
        if state.is_empty() || state.is_held_back {
            return None;
        }
        state.has_new_progress = false;
        state.is_sending = true;
        Some((state.lines.take(), state.progress.clone()))
    }

    fn sent(&self) {
        lock(&self.state).is_sending = false;
    }

    fn put_back(&self, lines: Vec<LogLine>) {
        let mut state = lock(&self.state);
        state.lines.put_back(lines);
        state.has_new_progress = state.progress.is_some();
    }
}

/// Stores what these attempts have noted, in one call. Notes that the store refuses or cannot take now are kept.
///
/// Passes attempts whose notes another thread stores now, unless they `are_last`.
pub(crate) fn send_notes<S: Notes>(
    store: &S,
    mut all: Vec<Arc<JobNotes>>,
    are_last: bool,
) -> Result<(), S::Error> {
    // The last ones may be sent by another thread now, and come back.
    all.retain(|notes| are_last || notes.has_new());
    if all.is_empty() {
        return Ok(());
    }
    // In one order, so that two calls never wait for each other.
    all.sort_by_key(|notes| (notes.job.id, notes.job.token));
    // Nobody waits for notes while they wait for a connection.
    store.with_connection(|conn| {
        let locked: Vec<(&JobNotes, MutexGuard<'_, ()>)> = all
            .iter()
            .filter_map(|notes| {
                let guard = if are_last { Some(lock(&notes.sending)) } else { notes.sending.try_lock().ok() };
                guard.map(|guard| (&**notes, guard))
            })
            .collect();
        let taken: Vec<_> = locked.iter().filter_map(|(notes, _)| Some((*notes, notes.take()?))).collect();
        if taken.is_empty() {
            return Ok(());
        }
        let new: Vec<NewNotes<'_>> = taken
            .iter()
            .map(|(notes, (lines, progress))| NewNotes {
                job: &notes.job,
                lines,
                progress: progress.as_ref(),
            })
            .collect();
        let stored = store.write_notes(conn, &new, are_last);
        drop(new);
        let sent = match stored {
            Ok(accepted) => {
                let refused = taken.into_iter().zip(accepted).filter(|(_, accepted)| !accepted);
                refused.for_each(|((notes, (lines, _)), _)| notes.put_back(lines));
                Ok(())
            }
            Err(error) => {
                taken.into_iter().for_each(|(notes, (lines, _))| notes.put_back(lines));
                Err(error)
            }
        };
        locked.iter().for_each(|(notes, _)| notes.sent());
        sent
    })
}

thread_local! {
    /// The notes of the attempt that this thread runs.
    static CURRENT: RefCell<Option<Arc<JobNotes>>> = const { RefCell::new(None) };
}

/// Whether something asks for the current attempt. Until then nothing is set.
static IS_ASKED_FOR: AtomicBool = AtomicBool::new(false);

/// Has workers record from now on which attempt a thread runs.
#[cfg(feature = "log-layer")]
pub(crate) fn ask_for_current() {
    IS_ASKED_FOR.store(true, Ordering::Relaxed);
}

/// Returns the notes of the attempt that this thread runs.
#[cfg(feature = "log-layer")]
pub(crate) fn current() -> Option<Arc<JobNotes>> {
    // A destructor of the thread may log when this one is gone.
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// Makes an attempt the one that this thread runs, until it is dropped.
pub(crate) struct Entered(Option<Arc<JobNotes>>);

impl Entered {
    /// Returns whether something asks for the current attempt.
    pub(crate) fn is_asked_for() -> bool {
        IS_ASKED_FOR.load(Ordering::Relaxed)
    }

    /// Does nothing unless something asks for the current attempt.
    pub(crate) fn enter(notes: impl FnOnce() -> Arc<JobNotes>) -> Option<Self> {
        Self::is_asked_for().then(|| Self(CURRENT.replace(Some(notes()))))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}
