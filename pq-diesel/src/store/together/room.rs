//! Where calls wait, and how they learn what became of them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Those who came to wait at the same time. They are woken by one call of the system's: to wake sixteen threads one
/// by one takes as long as a fifth of what they waited for.
pub(super) struct Room<R> {
    words: Mutex<Vec<Option<Word<R>>>>,
    told: Condvar,
}

/// One of the places in a room.
pub(super) struct Seat<R> {
    room: Arc<Room<R>>,
    number: usize,
}

/// What a call that waits is told.
pub(super) enum Word<R> {
    /// To lead when this moment has come, if nobody has taken it along until then.
    Watch(Instant),
    Lead,
    Done(R),
    Alone,
    Lost,
}

impl<R> Default for Room<R> {
    fn default() -> Self {
        Self { words: Mutex::default(), told: Condvar::new() }
    }
}

impl<R> Room<R> {
    fn words(&self) -> MutexGuard<'_, Vec<Option<Word<R>>>> {
        // Nothing panics while it holds the lock.
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Clone for Seat<R> {
    fn clone(&self) -> Self {
        Self { room: Arc::clone(&self.room), number: self.number }
    }
}

impl<R> PartialEq for Seat<R> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.room, &other.room) && self.number == other.number
    }
}

impl<R> Seat<R> {
    pub(super) fn take(room: &Arc<Room<R>>) -> Self {
        let mut words = room.words();
        words.push(None);
        Self { room: Arc::clone(room), number: words.len() - 1 }
    }

    /// Waits for a word, until then at the latest.
    pub(super) fn wait(&self, until: Option<Instant>) -> Option<Word<R>> {
        let mut words = self.room.words();
        loop {
            if let Some(word) = words[self.number].take() {
                return Some(word);
            }
            words = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.room.told.wait(words).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return None,
                Some(left) => {
                    self.room.told.wait_timeout(words, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Tells each its word, and wakes a room once.
pub(super) fn tell<R>(words: impl IntoIterator<Item = (Seat<R>, Word<R>)>) {
    let mut rooms: Vec<Arc<Room<R>>> = Vec::new();
    for (seat, word) in words {
        seat.room.words()[seat.number] = Some(word);
        if !rooms.iter().any(|room| Arc::ptr_eq(room, &seat.room)) {
            rooms.push(seat.room);
        }
    }
    for room in rooms {
        room.told.notify_all();
    }
}
