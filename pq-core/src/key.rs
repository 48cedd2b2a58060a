//! Serialization keys and unique keys.

use std::fmt;

use crate::Error;

/// A serialization key or a unique key: any text of 1 to 1024 bytes without NUL. It means something
/// within its queue alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// The most bytes of a key.
    pub const MAX_BYTES: usize = 1024;

    /// Checks a key.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    pub fn new(key: impl Into<String>) -> Result<Self, Error> {
        let key = key.into();
        let reason = if key.is_empty() {
            "it is empty".to_owned()
        } else if key.len() > Self::MAX_BYTES {
            format!("it has {} bytes, and {} are the most", key.len(), Self::MAX_BYTES)
        } else if key.contains('\0') {
            "it holds a NUL character".to_owned()
        } else {
            return Ok(Self(key));
        };
        Err(Error::InvalidKey { key: key.chars().take(40).collect(), reason })
    }

    /// Takes a key that a store holds already.
    #[must_use]
    pub fn from_stored(key: String) -> Self {
        Self(key)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a put does where a job with its unique key waits or runs already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnConflict {
    /// The old job stays as it is, and nothing is put.
    #[default]
    Keep,
    /// While the old job waits it takes the new payload, times and priority, under its old id. One
    /// that is running stays as it is.
    Replace,
    /// While the old job waits it keeps its payload and is put off to the new `schedule_at`
    /// (debounce). One that is running stays as it is.
    Reschedule,
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PutOutcome {
    /// A job was added.
    Added,
    /// A job with the same unique key was there, and stays as it is.
    Kept,
    /// A job with the same unique key was waiting, and has taken the new payload and options.
    Replaced,
    /// A job with the same unique key was waiting, and waits until the new `schedule_at`.
    Rescheduled,
}

/// The answer to a put: which job it is, and what was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Put {
    /// The job that is there now.
    pub id: crate::JobId,
    /// How it came to be there.
    pub outcome: PutOutcome,
}

impl Put {
    /// A job that was added.
    #[must_use]
    pub fn added(id: crate::JobId) -> Self {
        Self { id, outcome: PutOutcome::Added }
    }
}
