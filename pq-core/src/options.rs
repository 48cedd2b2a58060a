//! What can be said of a job when it is put.

use crate::{Error, IntoWhen, Key, NewJob, OnConflict, Payload, TimeError, When};

/// What can be said of a job when it is put, beside its payload.
///
/// A time that cannot be used is remembered and refused by the put itself, before anything is sent.
///
/// ```
/// use pq_core::PutOptions;
/// let options = PutOptions::new().schedule_at("5m").priority(3);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct PutOptions {
    schedule_at: Option<Result<When, TimeError>>,
    expected_at: Option<Result<When, TimeError>>,
    priority: Option<i32>,
    serialization_key: Option<String>,
    unique: Option<(String, OnConflict)>,
}

impl PutOptions {
    /// Due at once, wanted at no time, of priority 0, with no key.
    pub fn new() -> Self {
        Self::default()
    }

    /// The job is not taken before this time, on the store's clock.
    pub fn schedule_at(mut self, when: impl IntoWhen) -> Self {
        self.schedule_at = Some(when.into_when());
        self
    }

    /// The job is wanted by this time: an ordering hint among jobs of one priority, never a promise.
    pub fn expected_at(mut self, when: impl IntoWhen) -> Self {
        self.expected_at = Some(when.into_when());
        self
    }

    /// Higher goes first; 0 unless said.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Of the queue's jobs that share this key, one is taken at a time. 1 to 1024 bytes.
    pub fn serialization_key(mut self, key: impl Into<String>) -> Self {
        self.serialization_key = Some(key.into());
        self
    }

    /// Of the queue's jobs with this key, one waits or runs at a time; where there is one already,
    /// that is kept and nothing is put. 1 to 1024 bytes.
    pub fn unique(self, key: impl Into<String>) -> Self {
        self.unique_or(key, OnConflict::Keep)
    }

    /// As [`PutOptions::unique`], with something else to do where there is a job already.
    pub fn unique_or(mut self, key: impl Into<String>, on_conflict: OnConflict) -> Self {
        self.unique = Some((key.into(), on_conflict));
        self
    }

    /// Whether a put with these options would be refused, for those who want to know before they have
    /// a payload.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTime`] for the first time that cannot be used, [`Error::InvalidKey`].
    pub fn check(&self) -> Result<(), Error> {
        self.job(Payload::from_stored(String::new())).map(drop)
    }

    /// These options, and for what they do not say the others.
    pub(crate) fn or(&self, others: &Self) -> Self {
        Self {
            schedule_at: self.schedule_at.clone().or_else(|| others.schedule_at.clone()),
            expected_at: self.expected_at.clone().or_else(|| others.expected_at.clone()),
            priority: self.priority.or(others.priority),
            serialization_key: self.serialization_key.clone().or_else(|| others.serialization_key.clone()),
            unique: self.unique.clone().or_else(|| others.unique.clone()),
        }
    }

    /// The job that is put with these options.
    pub(crate) fn job(&self, payload: Payload) -> Result<NewJob, Error> {
        Ok(NewJob {
            payload,
            schedule_at: self.schedule_at.clone().transpose()?,
            expected_at: self.expected_at.clone().transpose()?,
            priority: self.priority.unwrap_or_default(),
            serialization_key: self.serialization_key.clone().map(Key::new).transpose()?,
            unique: match &self.unique {
                Some((key, on_conflict)) => Some((Key::new(key.clone())?, *on_conflict)),
                None => None,
            },
        })
    }
}
