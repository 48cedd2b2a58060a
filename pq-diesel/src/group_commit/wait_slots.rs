//! Slots in which queued calls wait for a signal.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The slots of calls that queued at about the same time.
///
/// To wake sixteen threads one by one takes a fifth as long as the call that they waited for. All slots therefore
/// share one condition variable, and a leader wakes them with a single system call.
pub(super) struct WaitSlots<A> {
    signals: Mutex<Vec<Option<Signal<A>>>>,
    changed: Condvar,
}

/// The slot of one queued call.
pub(super) struct Slot<A> {
    slots: Arc<WaitSlots<A>>,
    index: usize,
}

/// The signal to a queued call.
pub(super) enum Signal<A> {
    /// Lead at this instant, unless a leader has taken the call along by then.
    LeadAt(Instant),
    /// Lead now.
    Lead,
    /// Return this answer.
    Answer(A),
    /// Run without followers.
    RunAlone,
    /// Fail: the leader panicked or does not answer.
    LeaderLost,
}

impl<A> Default for WaitSlots<A> {
    fn default() -> Self {
        Self { signals: Mutex::default(), changed: Condvar::new() }
    }
}

impl<A> WaitSlots<A> {
    fn signals(&self) -> MutexGuard<'_, Vec<Option<Signal<A>>>> {
        // No code panics while it holds this lock.
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A> Clone for Slot<A> {
    fn clone(&self) -> Self {
        Self { slots: Arc::clone(&self.slots), index: self.index }
    }
}

impl<A> PartialEq for Slot<A> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slots, &other.slots) && self.index == other.index
    }
}

impl<A> Slot<A> {
    /// Adds a slot to the slots.
    pub(super) fn new(slots: &Arc<WaitSlots<A>>) -> Self {
        let mut signals = slots.signals();
        signals.push(None);
        Self { slots: Arc::clone(slots), index: signals.len() - 1 }
    }

    /// Waits for a signal. Returns `None` if there is none by `deadline`.
    pub(super) fn wait(&self, deadline: Instant) -> Option<Signal<A>> {
        let mut signals = self.slots.signals();
        loop {
            if let Some(signal) = signals[self.index].take() {
                return Some(signal);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            signals =
                self.slots.changed.wait_timeout(signals, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Signals the slots. Slots that were added together are woken together.
pub(super) fn send<A>(signals: impl IntoIterator<Item = (Slot<A>, Signal<A>)>) {
    let mut signalled: Vec<Arc<WaitSlots<A>>> = Vec::new();
    for (slot, signal) in signals {
        slot.slots.signals()[slot.index] = Some(signal);
        if !signalled.iter().any(|slots| Arc::ptr_eq(slots, &slot.slots)) {
            signalled.push(slot.slots);
        }
    }
    for slots in signalled {
        slots.changed.notify_all();
    }
}
