//! Serialization keys and unique keys.

use std::fmt;

use serde::Serialize;

use crate::Error;

/// A serialization key or a unique key: any text of 1 to 1024 bytes without NUL.
///
/// Keys of different queues are independent of each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Key(String);

impl Key {
    /// The maximum length of a key, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 1024;

    /// Checks a key.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    pub fn new(key: impl Into<String>) -> Result<Self, Error> {
        let key = key.into();
        let reason = if key.is_empty() {
            "it must not be empty".to_owned()
        } else if key.len() > Self::MAX_BYTES {
            format!("it must have at most {} bytes, and has {}", Self::MAX_BYTES, key.len())
        } else if key.contains('\0') {
            "it must not contain NUL".to_owned()
        } else {
            return Ok(Self(key));
        };
        Err(Error::InvalidKey { key: key.chars().take(40).collect(), reason })
    }

    /// Wraps a key that was read from a store, without checks.
    #[must_use]
    pub fn from_stored(key: String) -> Self {
        Self(key)
    }

    /// Returns the key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The action of a put if a job with the same unique key is waiting or running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnConflict {
    /// Keeps the existing job unchanged and puts nothing.
    #[default]
    Keep,
    /// Replaces payload, times and priority of the existing job, which keeps its id.
    ///
    /// A running job is kept unchanged.
    Replace,
    /// Moves the existing job to the new `schedule_at`, with its payload unchanged (debounce).
    ///
    /// A running job is kept unchanged.
    Reschedule,
    /// Keeps the existing job if it waits, and puts one more if it runs.
    ///
    /// For events: a handler that begins after this put sees everything that was committed with it, because the kept
    /// job is not begun before the put's transaction ends. The new job owns the key from then on. If the running job
    /// returns to the queue, it does so without a key, so both may wait or run at the same time.
    ///
    /// The put waits for a transactional handler that runs the job, and not for a leased one.
    KeepWaiting,
}

/// The outcome of a put. Returned in [`Put::outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PutOutcome {
    /// A job was added.
    Added,
    /// A job with the same unique key existed and was kept unchanged.
    Kept,
    /// A waiting job with the same unique key now has the new payload and options.
    Replaced,
    /// A waiting job with the same unique key now has the new `schedule_at`.
    Rescheduled,
}

/// The result of a put: the id of the job, and whether it was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Put {
    /// The id of the added job, or of the existing one with the same unique key.
    pub id: crate::JobId,
    /// The outcome.
    pub outcome: PutOutcome,
}

impl Put {
    /// Returns the result for an added job.
    #[must_use]
    pub fn added(id: crate::JobId) -> Self {
        Self { id, outcome: PutOutcome::Added }
    }
}
