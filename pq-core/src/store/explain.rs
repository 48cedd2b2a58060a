//! What a store knows about why a job waits.

use chrono::{DateTime, Utc};

use super::Connect;
use crate::{JobId, Reason, Session};

/// Explains why a job waits.
pub trait Explain: Connect {
    /// Returns the circumstances of a waiting job. For a job that does not wait only the time and
    /// [`Circumstances::is_hidden`] are set. Takes no lock.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn circumstances(&self, conn: &mut Self::Conn, id: JobId) -> Result<Circumstances, Self::Error>;
}

/// The circumstances of a waiting job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// The time of the store's clock.
    pub now: DateTime<Utc>,
    /// Whether jobs may be hidden from the caller's role.
    pub is_hidden: bool,
    /// Since when its queue is paused, and by whom, if it is.
    pub paused: Option<(DateTime<Utc>, Option<String>)>,
    /// The transaction of another session that holds the job, if one does.
    pub held_by: Option<Session>,
    /// What holds its serialization key, if anything does.
    pub key_holder: Option<KeyHolder>,
    /// The first due job of its serialization key, if that is another one that waits.
    pub first_of_key: Option<JobId>,
    /// How many jobs it waits for, at most [`crate::Reason::MAX_COUNTED`], and the first of them, if it waits for any.
    pub after: Option<(u64, JobId)>,
    /// The limits of its queue and of its group that are reached: [`Reason::Full`] and [`Reason::NoTokens`].
    pub limits: Vec<Reason>,
    /// If its queue is fair: its group, and the number of ready jobs of the group with the same priority that come
    /// first, at most [`crate::Reason::MAX_COUNTED`].
    pub turn: Option<(Option<String>, u64)>,
    /// The number of due jobs of its queue that come first, at most [`crate::Reason::MAX_COUNTED`].
    pub ahead: u64,
}

impl Circumstances {
    /// Returns the circumstances of a job that nothing keeps from being taken.
    #[must_use]
    pub fn new(now: DateTime<Utc>) -> Self {
        Self {
            now,
            is_hidden: false,
            paused: None,
            held_by: None,
            key_holder: None,
            first_of_key: None,
            after: None,
            limits: Vec::new(),
            turn: None,
            ahead: 0,
        }
    }
}

/// What holds a serialization key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyHolder {
    /// The job that runs, if it is known.
    pub job: Option<JobId>,
    /// The session whose open transaction holds the key, if one does.
    pub session: Option<Session>,
}
