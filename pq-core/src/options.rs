//! What can be said of a job when it is put.

use crate::{IntoWhen, TimeError, When};

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
    priority: i32,
}

impl PutOptions {
    /// Due at once, wanted at no time, of priority 0.
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
        self.priority = priority;
        self
    }

    /// Whether a put with these options would be refused, for those who want to know before they have
    /// a payload.
    ///
    /// # Errors
    ///
    /// [`TimeError`] for the first time that cannot be used.
    pub fn check(&self) -> Result<(), TimeError> {
        self.checked().map(drop)
    }

    pub(crate) fn checked(&self) -> Result<Checked, TimeError> {
        Ok(Checked {
            schedule_at: self.schedule_at.clone().transpose()?,
            expected_at: self.expected_at.clone().transpose()?,
            priority: self.priority,
        })
    }
}

/// The options of a put, known to be good.
pub(crate) struct Checked {
    pub(crate) schedule_at: Option<When>,
    pub(crate) expected_at: Option<When>,
    pub(crate) priority: i32,
}
